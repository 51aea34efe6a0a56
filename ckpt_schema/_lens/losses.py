"""What a codec loses, in plain words, and how much at most."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ckpt_schema._layouts.formats import FORMATS
from ckpt_schema._layouts.table import Layout
from ckpt_schema._lens.codecs import Codec, Plus, Rounded, Times, holds, is_exact
from ckpt_schema._lens.derive.joins import Join

__all__ = ["loss", "losses"]


def loss(codec: Codec, dtype: str = "") -> str | None:
    """What a codec loses there and back, whichever way does; None where it keeps every bit.

    A bound of a value is one of its magnitude, and holds down to the least number that has all of
    its digits. What would lose more is refused, for it makes a number infinite, or none.

    Args:
        codec: What happens to each element.
        dtype: The dtype before it, where the codec's first word does not tell.

    Example:
        >>> loss((Rounded("float32", "bfloat16"),))
        'bfloat16 keeps 8 of the 24 bits of float32: at most 2**-8 of each value'
        >>> loss((Rounded("float32", "float16"),))  # doctest: +NORMALIZE_WHITESPACE
        'float16 keeps 11 of the 24 bits of float32: at most 2**-11 of each value,
         or 2**-25 in all where it is below 2**-14'
        >>> loss((Times(0.3),), "float32")
        'times 0.3 and back is rounded in float32: at most 2**-23 of each value'
        >>> loss((Plus(1.0),), "bfloat16")
        'plus 1.0 is rounded in bfloat16: at most 2**-8 of the sum'
    """
    return "; ".join(_losses(codec, dtype)) or None


def losses(source: Layout, view: Layout, joins: Sequence[Join]) -> Mapping[str, str]:
    """What is lost of each leaf of the view, by its logical path; see `Lens.loss`."""
    lost_of: dict[str, dict[str, None]] = {}
    for join in joins:
        for cell in join.cells:
            # A constant is made anew, and loses nothing.
            if not isinstance(cell.source, int) or not isinstance(cell.view, int):
                continue
            lost = loss(cell.codec, source.rows[cell.source].leaf.dtype)
            if lost is not None:
                # A leaf may have several parts: each thing is said of it once.
                path = "/".join(view.rows[cell.view].path)
                lost_of.setdefault(path, {})[lost] = None
    return {path: "; ".join(several) for path, several in lost_of.items()}


def _losses(codec: Codec, dtype: str) -> Iterator[str]:
    """What each word of a codec loses, if anything."""
    for word in codec:
        if isinstance(word, Times) and is_exact(word):
            continue
        if isinstance(word, Times):
            yield _rounded(f"times {word.factor} and back", dtype, "each value", each_way=2)
        elif isinstance(word, Plus):
            yield _rounded(str(word), dtype, "the sum", each_way=1)
        else:
            dtype = word.view
            if isinstance(word, Rounded):
                yield from filter(None, [_fewer(word)])


def _rounded(what: str, dtype: str, of: str, each_way: int) -> str:
    """The loss of an operation whose result is rounded."""
    form = FORMATS.get(dtype)
    if form is None:
        units = "one unit" if each_way == 2 else "half a unit"
        return f"{what} is rounded: at most {units} in the last place of {of}"
    return f"{what} is rounded in {dtype}: at most {_power(2 - each_way + form.mantissa)} of {of}"


def _fewer(word: Rounded) -> str | None:
    """The loss of a cast, in the direction that has one."""
    ways = (word.source, word.view), (word.view, word.source)
    # Of bfloat16 and float16 neither has all values of the other.
    lossy = [_cast(wide, narrow) for wide, narrow in ways if not holds(narrow, wide)]
    return " and ".join(lossy) or None


def _cast(wide: str, narrow: str) -> str:
    """The loss of a cast to fewer digits, or to a smaller range."""
    before, after = FORMATS.get(wide), FORMATS.get(narrow)
    if before is None or after is None:
        return f"{narrow} does not have all values of {wide}"
    said, bounds = f"{narrow} has fewer values than {wide}", list[str]()
    if after.mantissa < before.mantissa:
        bits = f"{after.mantissa + 1} of the {before.mantissa + 1} bits"
        said = f"{narrow} keeps {bits} of {wide}"
        bounds += [f"{_power(after.mantissa + 1)} of each value"]
    if before.normal < after.normal:
        bounds += [f"{_power(1 - after.least)} in all where it is below {_power(-after.normal)}"]
    return f"{said}: at most {', or '.join(bounds)}" if bounds else said


def _power(exponent: int) -> str:
    return f"2**{-exponent}"
