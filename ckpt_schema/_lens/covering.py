"""Whether every element of every row is written once, for all sizes.

Volumes that add up are not enough: two blocks on one half have the volume of the whole. So the
blocks that are written are within their row, no two of them share an element, and then volumes add
up. What is only compared writes nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

from ckpt_schema._layouts.sizes import ONE, ZERO, Size
from ckpt_schema._lens.cells import Cell, Geometry, through

__all__ = ["Flaw", "flaws"]


@dataclasses.dataclass(frozen=True, slots=True)
class Flaw:
    """Why a row is not written once.

    Attributes:
        row: The row.
        kind: A cell is ``outside`` of it, two cells ``overlap``, or all leave a ``gap``.
        cells: Those it is about.
        missing: For a gap, how many elements nothing writes.
    """

    row: Hashable
    kind: Literal["outside", "overlap", "gap"]
    cells: tuple[Cell, ...]
    missing: Size = ZERO


def flaws(
    cells: Iterable[Cell], side: int, rows: Mapping[Hashable, Sequence[Size]]
) -> Iterator[Flaw]:
    """What is wrong with how the rows of one side are written.

    Args:
        cells: The cells of a lens.
        side: 0 for the source, 1 for the view.
        rows: The size of each axis of each row there.

    Raises:
        UndecidedError: Whether two cells overlap depends on the sizes.
    """
    writers: dict[Hashable, list[Cell]] = {row: [] for row in rows}
    for cell in cells:
        row = (cell.source, cell.view)[side]
        if row in writers and not cell.compares[side]:
            writers[row].append(cell)
    for row, dims in rows.items():
        yield from _of_row(row, dims, side, writers[row])


def _of_row(
    row: Hashable, dims: Sequence[Size], side: int, cells: Sequence[Cell]
) -> Iterator[Flaw]:
    """What is wrong with one row, whose writers are these cells."""
    boxes: list[tuple[Cell, Geometry]] = []
    missing = functools.reduce(Size.__mul__, dims, ONE)
    for cell in cells:
        # A box goes from a constant to the row: its elements, whatever they are on the other side.
        box = cell.geometry.box(side)
        boxes.append((cell, box))
        missing -= box.volume
        if not _is_inside(box, dims):
            yield Flaw(row, "outside", (cell,))
    for (one, box), (other, other_box) in itertools.combinations(boxes, 2):
        # Composed by way of the row, from constant to constant: what is left is what both have.
        if through(box, ~other_box):
            yield Flaw(row, "overlap", (one, other))
    if missing:
        yield Flaw(row, "gap", tuple(cells), missing)


def _is_inside(box: Geometry, dims: Sequence[Size]) -> bool:
    """Whether the first and the last element of a block stand in a row with these axes."""
    last = list(box.starts[1])
    for digit in box.digits:
        if digit.at[1] is not None:
            axis, stride = digit.at[1]
            last[axis] += stride * (digit.size - 1)
    first = box.starts[1]
    # A block of a slack may have no element; what matters is where its last one is if it has any.
    some: dict[str, Size] = {}
    for digit in box.digits:
        for name in digit.size.slacks:
            some[name] = Size.of(name) + 1
    for low, high, size in zip(first, last, dims, strict=True):
        if not low.nonnegative or not (size - 1 - high).where(some).nonnegative:
            return False
    return True
