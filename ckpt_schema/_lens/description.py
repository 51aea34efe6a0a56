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
    side, number, constant = cell.alone
    assert isinstance(number, int)
    row = rows[side][number]
    symbols = len(row.unrolled)
    axes = [
        axis - symbols
        for axis, start in enumerate(cell.geometry.starts[side])
        if start and axis >= symbols
    ]
    layers = [start for start in cell.geometry.starts[side][:symbols] if start]
    where = (
        f"layers from {layers[0]} on"
        if layers
        else (
            f"axis {axes[0]} from {cell.geometry.starts[side][axes[0] + symbols]} on"
            if axes
            else "all"
        )
    )
    value = shown(getattr(constant.value, "value", constant.value))
    if not constant.is_fill:
        return f"{where} private"
    return f"{where} cut off, {value}" if side == 0 else f"{where} padded with {value}"


def _cell(cell: Cell, rows: Rows) -> str:
    assert isinstance(cell.source, int) and isinstance(cell.view, int)
    both = rows[0][cell.source], rows[1][cell.view]
    symbols = len(both[0].unrolled), len(both[1].unrolled)
    is_open = any(row.leaf.is_open for row in both)
    words: list[str] = []
    for word in cell.codec:
        if is_open and isinstance(word, (Exact, Rounded)):  # of dtypes that stand for others
            word = Exact("", "", word.exponent if isinstance(word, Exact) else 0)
        words += [str(word)] if str(word) else []
    if is_open:
        words.append(" -> ".join(row.leaf.dtype for row in both))
    keys = both[0].leaf.is_key, both[1].leaf.is_key
    if keys[0] != keys[1]:
        names = [row.leaf.dtype if row.leaf.is_key else "raw data" for row in both]
        words.append(" -> ".join(names))
    spelled = _spellings(both)
    axes = [_spelled(cell, side, both[side], symbols, spelled) for side in (0, 1)]
    keys_alike = axes[0][: symbols[0]] == axes[1][: symbols[1]]
    if keys_alike:  # each leaf goes to the one of its number
        axes = [own[count:] for own, count in zip(axes, symbols, strict=True)]
    sides = [" ".join(own) for own in axes]
    if sides[0] != sides[1]:
        words.insert(0, f"{sides[0] or '()'} -> {sides[1] or '()'}")
    else:
        order = _order(cell)
        if order != sorted(order):  # of axes that are as long nothing else tells it
            words.insert(0, f"axes {' '.join(str(axis - symbols[0]) for axis in order)}")
    return ", ".join(words)


def _order(cell: Cell) -> list[int]:
    """For each digit, in the order of the view's axes: the axis of the source that it is on."""
    places = [digit.at for digit in cell.geometry.digits]
    both = [(after[0], before[0]) for before, after in places if before and after]
    return [before for _, before in sorted(both)]


def _spelled(
    cell: Cell, side: int, row: Row, symbols: tuple[int, int], spelled: Mapping[Size, str]
) -> list[str]:
    """The axes of one side, each with the digits on it, in braces those that go from leaf to leaf."""
    axes: list[str] = []
    count = symbols[side]
    ranks = len(cell.geometry.starts[side])
    for axis in range(ranks):
        if row.leaf.is_key and axis == ranks - 1:
            continue
        own: list[tuple[Place, Digit]] = []
        for digit in cell.geometry.digits:
            place = digit.at[side]
            if place is not None and place[0] == axis:
                own.append((place, digit))
        own.sort(key=lambda each: _rank(each[0]), reverse=True)
        start = cell.geometry.starts[side][axis]
        text = "*".join(_digit(digit, side, spelled) for _, digit in own) or "1"
        low = start
        for place, digit in own:
            if not place[1].nonnegative:
                low = low + place[1] * (digit.size - 1)
        if low:
            text = f"{_size(low, spelled)}:+{text}"
        axes.append(f"{{{text}}}" if axis < count else text)
    return axes


def _rank(place: Place) -> tuple[int, str]:
    stride = place[1]
    size = stride if stride.nonnegative else -stride
    return len(size.terms[0][0]) if size != ONE else 0, str(size)


def _digit(digit: Digit, side: int, spelled: Mapping[Size, str]) -> str:
    place = digit.at[side]
    back = place is not None and not place[1].nonnegative
    text = _size(digit.size, spelled)
    return f"-{text}" if back else text


def _size(size: Size, spelled: Mapping[Size, str]) -> str:
    return spelled.get(size, str(size))


def _spellings(rows: Sequence[Row]) -> Mapping[Size, str]:
    """How the rows themselves write sizes: in the order of their factors."""
    spellings: dict[Size, str] = {}
    for row in rows:
        dims = [*row.all_dims]
        while dims:
            dim = dims.pop()
            for first in range(len(dim)):
                for last in range(first + 1, len(dim) + 1):
                    own = dim[first:last]
                    is_number = dims_.size_of(own, {}) is not None
                    if is_number and any(isinstance(factor, Sum) for factor in own):
                        continue  # parts of an axis in numbers say no more than their sum
                    spellings.setdefault(of_dim(own), dims_.format_dim(own))
            for factor in dim:
                if isinstance(factor, Sum):
                    dims += factor.terms
    return spellings
