"""What a join does, in words: as the table of a lens shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts.dims import Sum
from ckpt_schema._layouts.sizes import ONE, Size
from ckpt_schema._layouts.table import Row
from ckpt_schema._lens.cells import Cell, Digit, Place
from ckpt_schema._lens.codecs import Exact, Rounded
from ckpt_schema._lens.derive.joins import Join
from ckpt_schema._lens.spellings import of_dim
from ckpt_schema._messages.text import shown

__all__ = ["described"]

Rows = tuple[Sequence[Row], Sequence[Row]]


def described(join: Join, rows: Rows) -> str:
    """What happens to the leaves of a join; nothing where they only move.

    Example:
        >>> from ckpt_schema._layouts.dims import parse_dims
        >>> from ckpt_schema._layouts.leaves import Leaf
        >>> from ckpt_schema._lens.derive.relations import relate
        >>> one, other = (
        ...     Row(("w",), ("w",), Leaf(parse_dims(text), "float32")) for text in ("embed 3*heads", "3 heads embed")
        ... )
        >>> print(described(relate(one, other).join(0, 0), ((one,), (other,))))
        embed 3*heads -> 3 heads embed
    """
    words: list[str] = []
    for cell in join.cells:
        text = _constant(cell, rows) if cell.is_constant else _cell(cell, rows)
        if text and text not in words:
            words.append(text)
    return ", ".join(words)


def _constant(cell: Cell, rows: Rows) -> str:
    """What one side has alone: ``axis 0 from vocab on padded with 0``."""
    side, number, constant = cell.alone
    assert isinstance(number, int)
    # Axes of the key come first: what starts later on one of these is layers.
    symbols = len(rows[side][number].unrolled)
    where = "all"
    for axis, start in enumerate(cell.geometry.starts[side]):
        if start:
            where = f"axis {axis - symbols} from {start} on"
            if axis < symbols:
                where = f"layers from {start} on"
            break
    # A fill has a number of its own, and all else is written as it is.
    value = shown(getattr(constant.value, "value", constant.value))
    if not constant.is_fill:
        return f"{where} private"
    return f"{where} cut off, {value}" if side == 0 else f"{where} padded with {value}"


def _cell(cell: Cell, rows: Rows) -> str:
    """What happens to elements that both sides have: their axes first, then their values."""
    assert isinstance(cell.source, int) and isinstance(cell.view, int)
    both = rows[0][cell.source], rows[1][cell.view]
    symbols = len(both[0].unrolled), len(both[1].unrolled)
    is_open = any(row.leaf.is_open for row in both)
    words: list[str] = []
    for word in cell.codec:
        # The dtypes of any float stand for others: of a cast there the factor alone is known.
        if is_open and isinstance(word, (Exact, Rounded)):
            word = Exact("", "", word.exponent if isinstance(word, Exact) else 0)
        if str(word):
            words.append(str(word))
    if is_open:
        words.append(f"{both[0].leaf.dtype} -> {both[1].leaf.dtype}")
    if both[0].leaf.is_key != both[1].leaf.is_key:
        words.append(f"{_dtype_of_key(both[0])} -> {_dtype_of_key(both[1])}")
    spelled = _spellings(both)
    before = _spelled(cell, 0, both[0], symbols, spelled)
    after = _spelled(cell, 1, both[1], symbols, spelled)
    # If the keys are alike each leaf goes to the one of its number: only what is in a leaf is said.
    if before[: symbols[0]] == after[: symbols[1]]:
        before, after = before[symbols[0] :], after[symbols[1] :]
    before_text, after_text = " ".join(before), " ".join(after)
    if before_text != after_text:
        words.insert(0, f"{before_text or '()'} -> {after_text or '()'}")
    else:
        order = _order(cell)
        # Of axes that are as long nothing else tells it.
        if order != sorted(order):
            words.insert(0, f"axes {' '.join(str(axis - symbols[0]) for axis in order)}")
    return ", ".join(words)


def _dtype_of_key(row: Row) -> str:
    """What a side of `raw_key` has."""
    return row.leaf.dtype if row.leaf.is_key else "raw data"


def _order(cell: Cell) -> list[int]:
    """For each digit, in the order of the view's axes: the axis of the source that it is on."""
    axes: list[tuple[int, int]] = []  # of the view, and of the source
    for digit in cell.geometry.digits:
        before, after = digit.at
        if before and after:
            axes.append((after[0], before[0]))
    return [before for _, before in sorted(axes)]


def _spelled(
    cell: Cell, side: int, row: Row, symbols: tuple[int, int], spelled: Mapping[Size, str]
) -> list[str]:
    """The axes of one side, each with the digits on it, in braces those that go from leaf to leaf."""
    axes: list[str] = []
    count = symbols[side]
    ranks = len(cell.geometry.starts[side])
    for axis in range(ranks):
        # The last axis of keys are their words, which nobody has declared.
        if row.leaf.is_key and axis == ranks - 1:
            continue
        own: list[tuple[Place, Digit]] = []
        for digit in cell.geometry.digits:
            place = digit.at[side]
            if place is not None and place[0] == axis:
                own.append((place, digit))
        own.sort(key=lambda each: _rank(each[0]), reverse=True)
        text = "*".join(_digit(digit, side, spelled) for _, digit in own) or "1"
        # A digit that goes back starts at its last element, and what is said is where it ends.
        low = cell.geometry.starts[side][axis]
        for place, digit in own:
            if not place[1].nonnegative:
                low = low + place[1] * (digit.size - 1)
        if low:
            text = f"{_size(low, spelled)}:+{text}"
        axes.append(f"{{{text}}}" if axis < count else text)
    return axes


def _rank(place: Place) -> tuple[int, str]:
    """Puts digits of one axis in order, major first: the stride of an outer one has more factors."""
    stride = place[1]
    size = stride if stride.nonnegative else -stride
    return len(size.terms[0][0]) if size != ONE else 0, str(size)


def _digit(digit: Digit, side: int, spelled: Mapping[Size, str]) -> str:
    """A digit by its size, with a minus where it goes back."""
    place = digit.at[side]
    back = place is not None and not place[1].nonnegative
    text = _size(digit.size, spelled)
    return f"-{text}" if back else text


def _size(size: Size, spelled: Mapping[Size, str]) -> str:
    """A size as the rows write it: a polynomial has its factors in an order of its own."""
    return spelled.get(size, str(size))


def _spellings(rows: Sequence[Row]) -> Mapping[Size, str]:
    """How the rows themselves write sizes: in the order of their factors."""
    spellings: dict[Size, str] = {}
    for row in rows:
        dims = [*row.all_dims]
        while dims:
            dim = dims.pop()
            # Of 3*heads*dim also 3*heads and heads*dim: what a digit has may be a part of an axis.
            for first in range(len(dim)):
                for last in range(first + 1, len(dim) + 1):
                    factors = dim[first:last]
                    is_number = dims_.size_of(factors, {}) is not None
                    # Parts of an axis in numbers say no more than their sum.
                    if is_number and any(isinstance(factor, Sum) for factor in factors):
                        continue
                    spellings.setdefault(of_dim(factors), dims_.format_dim(factors))
            for factor in dim:
                if isinstance(factor, Sum):
                    dims += factor.terms
    return spellings
