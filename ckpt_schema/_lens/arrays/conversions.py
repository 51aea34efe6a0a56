"""What a codec does to values, and which of them it would lose.

NumPy and jax make the same bits, whatever the backend and whether it optimizes: floats are computed
on as integers. Of each word of a codec:

- `Exact` between integers keeps the number. Between floats it is what `Rounded` is, times a power of
  two and rounded once; `lost` finds what does not come back by the inverse. A NaN keeps its sign and
  its payload, whose bits are counted from the top, so that a wider float gives it back; infinities,
  -0.0 and subnormal numbers stay what they are. No power of two changes a NaN.
- `Rounded` gives the nearest value; of two, the one whose last bit is 0, and in `float8_e8m0fnu`,
  which has powers of two alone, the greater. What is greater than all
  becomes infinity; in dtypes without one, a NaN, and in `float4_e2m1fn`, which has neither, the
  greatest number. Integers are not rounded. A payload is cut, but a NaN stays one.
- `Times` multiplies, or divides, in float32, or float64 for float64: product and quotient are rounded
  once to its digits, and once more to those of a narrower dtype. Infinities stay; a NaN stays, bit
  for bit. Neither overflows on the way.
- `Plus` adds in float32, or float64 for float64, and rounds to the dtype likewise.

In dtypes with one NaN it stands for all others, and becomes the quiet one with no further payload.
Where that has no sign, all lose theirs, and -0.0 becomes 0.0. A complex number is scaled by its
parts, and what is added goes to its real one.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ckpt_schema._layouts.formats import FORMATS, Format
from ckpt_schema._lens.arrays import floats
from ckpt_schema._lens.arrays.comparison import difference
from ckpt_schema._lens.codecs import Codec, Exact, Plus, Rounded, Times, Word, holds
from ckpt_schema._trees.jitted import Program

__all__ = [
    "bits_converted",
    "converted",
    "expected",
    "is_checked",
    "linear",
    "lost",
    "subnormal",
]

_AT_ONCE = 1 << 15
"""How many elements NumPy converts at once: as many as stay in the cache for all operations on them."""


def converted(value: Any, codec: Codec) -> Any:
    """The values after a codec: of NumPy arrays NumPy arrays, and of jax's arrays and tracers such.

    Example:
        >>> converted(np.float32([3.0]), (Exact("float32", "bfloat16", 1),))
        array([6], dtype=bfloat16)
    """
    if not codec:
        return value
    return _from_bits(*bits_converted(_to_bits(value), str(value.dtype), codec))


def bits_converted(bits: Sequence[Any], dtype: str, codec: Codec) -> tuple[tuple[Any, ...], str]:
    """The same of the arrays that stand for a leaf, floats by their bits: those after, and their dtype.

    Args:
        bits: The arrays: one, or the two parts of complex numbers.
        dtype: The dtype of the leaf.
        codec: What happens to each element.
    """
    parts = tuple(bits)
    for word in codec:
        after: list[Any] = []
        for number, part in enumerate(parts):
            made, _ = _by_word(part, dtype, word, is_real=number == 0)
            after.append(made)
        parts, dtype = tuple(after), _dtype_after(dtype, word)
    return parts, dtype


def linear(value: Any, codec: Codec) -> Any:
    """What becomes of a derivative, by operations that jax can turn around; its own rounding is good enough."""
    for word in codec:
        if isinstance(word, (Exact, Rounded)):
            # Scaled in the wider of both dtypes.
            if holds(word.view, word.source):
                value = value.astype(jnp.dtype(word.view))
            if isinstance(word, Exact) and word.exponent:
                # In two halves: 2**200 is no float32, and a value times it may be one.
                half, rest = divmod(word.exponent, 2)
                value = value * value.dtype.type(2.0**half)
                value = value * value.dtype.type(2.0 ** (half + rest))
            value = value.astype(jnp.dtype(word.view))
        elif isinstance(word, Times):
            factor = value.dtype.type(_number(word))
            value = value / factor if word.divides else value * factor
    return value


# --- Bits  ---


def _to_bits(value: Any) -> tuple[Any, ...]:
    """An array as unsigned integers: one, or two of complex numbers; other dtypes as they are."""
    if jnp.issubdtype(value.dtype, jnp.complexfloating):
        if _is_numpy(value):
            real, imaginary = value.real, value.imag
        else:
            real, imaginary = jax.lax.real(value), jax.lax.imag(value)
        return _to_bits(real) + _to_bits(imaginary)
    form = FORMATS.get(str(value.dtype))
    if form is None:
        return (value,)
    if _is_numpy(value):
        return (np.ascontiguousarray(value).view(f"u{value.dtype.itemsize}").reshape(value.shape),)
    return (jax.lax.bitcast_convert_type(value, f"uint{form.bits}"),)


def _from_bits(bits: tuple[Any, ...], dtype: str) -> Any:
    """The inverse of `_to_bits`."""
    kind = jnp.dtype(dtype)
    if len(bits) == 2:
        inner = str(jnp.finfo(kind).dtype)
        real, imaginary = _from_bits(bits[:1], inner), _from_bits(bits[1:], inner)
        if not _is_numpy(real):
            return jax.lax.complex(real, imaginary)
        # A sum of both parts would compute on them: a NaN in one makes one of the other.
        made = np.empty(real.shape, kind)
        made.real, made.imag = real, imaginary
        return made
    if dtype not in FORMATS:
        return bits[0]
    return bits[0].view(kind) if _is_numpy(bits[0]) else jax.lax.bitcast_convert_type(bits[0], kind)


def _is_numpy(value: Any) -> bool:
    return isinstance(value, (np.ndarray, np.generic))


def _dtype_after(dtype: str, word: Word) -> str:
    return word.view if isinstance(word, (Exact, Rounded)) else dtype


def _by_word(bits: Any, dtype: str, word: Word, *, is_real: bool = True) -> floats.Made:
    """The elements after a word, and which of them it ruins: a number became none, or something else a number."""
    form = _form(dtype)
    if form is None:
        return _integers(bits, _dtype_after(dtype, word)), False
    if isinstance(word, Plus) and not is_real:
        return bits, False
    if not _is_numpy(bits):
        return _floats(bits, form, word)
    flat = np.ascontiguousarray(bits).reshape(-1)
    after = _form(_dtype_after(dtype, word)) or form
    made = np.empty(flat.shape, _container(after))
    ruined = np.empty(flat.shape, bool)
    with np.errstate(all="ignore"):
        for start in range(0, flat.size, _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            made[some], ruined[some] = _floats(flat[some], form, word)
    return made.reshape(bits.shape), ruined.reshape(bits.shape)


def _form(dtype: str) -> Format | None:
    """The format of a float, or of the parts of a complex number."""
    if dtype in FORMATS:
        return FORMATS[dtype]
    return FORMATS.get({"complex64": "float32", "complex128": "float64"}.get(dtype, ""))


def _container(form: Format) -> np.dtype[Any]:
    """The unsigned integer that NumPy keeps the bits of a float in."""
    return np.dtype(f"u{max(form.bits // 8, 1)}")


def _floats(bits: Any, form: Format, word: Word) -> floats.Made:
    if isinstance(word, Times):
        return floats.multiplied(bits, form, _number(word), divides=word.divides)
    if isinstance(word, Plus):
        return floats.added(bits, form, word.amount)
    exponent = word.exponent if isinstance(word, Exact) else 0
    return floats.recast(bits, form, _form(word.view) or form, exponent)


def _number(word: Times) -> float:
    assert not isinstance(word.factor, str), (
        "an expression is evaluated before values are converted"
    )
    return word.factor


_CRUMBS = ("int2", "uint2")


def _integers(value: Any, dtype: str) -> Any:
    if _is_numpy(value):
        # NumPy knows no cast between the integers narrower than a byte; int64 holds every value that both dtypes hold.
        value = value.astype(np.int64)
    elif str(value.dtype) in _CRUMBS:
        # In one program, XLA reads two bits as four on a GPU (seen with jaxlib 0.11.2); a whole byte between stands.
        value = jax.lax.optimization_barrier(value.astype(np.int8))
    return value.astype(jnp.dtype(dtype))


# --- What is lost  ---


def is_checked(codec: Codec) -> bool:
    """Whether a codec loses some values that it has no permission to lose, so that they are to be looked for.

    What rounds is allowed to: a trace, whose values nobody knows, is not kept from it.

    Example:
        >>> is_checked((Exact("bfloat16", "float32"),)), is_checked((Exact("float32", "bfloat16"),))
        (False, True)
    """
    return any(map(_loses, codec))


def _loses(word: Word) -> bool:
    """Whether a word that has to be exact is not so of every value."""
    if not isinstance(word, Exact):
        return False
    # A power of two may over- or underflow, even where the dtype stays.
    return word.exponent != 0 or not holds(word.view, word.source)


def expected(codec: Codec) -> str:
    """Which values a codec keeps."""
    for word in codec:
        if _loses(word):
            return _kept(word)
    return "numbers that stay numbers"


def _kept(word: Word) -> str:
    assert isinstance(word, Exact)
    cast = "" if word.source == word.view else f" in {word.view}"
    if word.exponent:
        return f"values that 2**{word.exponent} times themselves tell exactly{cast}"
    if word.view in FORMATS:
        return f"values that {word.view} has"
    info = jnp.iinfo(word.view)
    return f"values of {word.view} ({info.min} to {info.max})"


def lost(value: Any, codec: Codec, said: str | None = None) -> tuple[str, str] | None:
    """What a concrete array has that a codec does not keep, and what to do about it; None where it keeps all.

    Of exact words, that is what does not come back by the inverse. The others may round, but lose a
    number that becomes infinity or a NaN, and an infinity or a NaN that the dtype does not have. It
    is looked for on the devices that the array is on.

    Example:
        >>> lost(np.float32([1, 257]), (Exact("float32", "bfloat16"),))[0]
        '257.0 (0x43808000) at [1], which comes back as 256.0 (0x43800000)'
    """
    for number, word in enumerate(codec):
        first = _lost(value, word, said)
        if first is not None:
            return first
        # What the next word is asked about are the values that it gets; nothing comes after the last.
        if number + 1 < len(codec):
            value = _run(_change, value, word)
    return None


def _lost(value: Any, word: Word, said: str | None) -> tuple[str, str] | None:
    if isinstance(word, Exact) and not _loses(word):
        return None
    if jnp.issubdtype(value.dtype, jnp.integer):
        return _wrapped(value, word)
    back = _run(_round_trip, value, word)
    differs = difference(value, back)
    if differs is None:
        return None
    what = f"{differs[1]} at [{differs[0]}], which comes back as {differs[2]}"
    return what, _cure(word, said)


def _cure(word: Word, said: str | None) -> str:
    if isinstance(word, Exact) and not word.exponent:
        rule = f"cs.cast({'...' if said is None else repr(said)}, rounding='nearest')"
        return f"{word.view} does not have it: add {rule} to the rules, or declare a wider dtype"
    if isinstance(word, Rounded):
        return f"{word.view} has nothing near it: declare a wider dtype"
    if isinstance(word, Plus):
        return "the sum is out of range: declare a wider dtype"
    return "it over- or underflows: scale it by less"


def _wrapped(value: Any, word: Word) -> tuple[str, str] | None:
    """The range of integers, where some do not fit."""
    low, high = _range(value)
    info = jnp.iinfo(_dtype_after(str(value.dtype), word))
    if int(info.min) <= low and high <= int(info.max):
        return None
    return str(low if low == high else f"{low} to {high}"), f"{word} would wrap"


def _range(value: Any) -> tuple[int, int]:
    """The least and greatest element."""
    if not isinstance(value, jax.Array):
        array = np.asarray(value)
        return int(array.min()), int(array.max())
    low, high = (value, value) if value.ndim == 0 else (jnp.min(value), jnp.max(value))
    # A reduction is on all devices of the array, each of which has the result.
    return int(np.asarray(low.addressable_data(0))), int(np.asarray(high.addressable_data(0)))


def _run(what: Any, value: Any, word: Word) -> Any:
    """A function of an array and a word, on the devices that the array is on."""
    return _program(what, word)(value) if isinstance(value, jax.Array) else what(word, value)


@functools.lru_cache(maxsize=256)
def _program(what: Any, word: Word) -> Program:
    return Program(functools.partial(what, word))


def _change(word: Word, value: Any) -> Any:
    return converted(value, (word,))


def _round_trip(word: Word, value: Any) -> Any:
    """What comes back; where a word is allowed to round, the value itself unless it is ruined."""
    dtype, after = str(value.dtype), _dtype_after(str(value.dtype), word)
    parts: list[Any] = []
    for number, bits in enumerate(_to_bits(value)):
        made, ruined = _by_word(bits, dtype, word, is_real=number == 0)
        back, _ = _by_word(made, after, word.inverse, is_real=number == 0)
        if not isinstance(word, Exact):
            back = floats.xp_of(bits).where(ruined, back, bits)
        parts.append(back)
    return _from_bits(tuple(parts), dtype)


def subnormal(value: Any) -> Any:
    """Tells which floats are subnormal, by their bits: compared as numbers they may count as zero."""
    form = FORMATS[str(value.dtype)]
    (bits,) = _to_bits(value)
    magnitude = bits & bits.dtype.type(form.magnitudes)
    return (magnitude > 0) & (magnitude < bits.dtype.type(1 << form.mantissa))
