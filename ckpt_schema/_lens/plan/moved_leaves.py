"""Leaves that go from side to side as they are: which joins are of no others, told for all sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ckpt_schema._layouts.table import Row, Slot
from ckpt_schema._lens.cells import Cell, Geometry, Place
from ckpt_schema._lens.derive.joins import Join

__all__ = ["End", "ends", "lone_move", "only_moves"]

Rows = tuple[Sequence[Row], Sequence[Row]]


def only_moves(join: Join, rows: Rows) -> bool:
    """Whether leaves of a join go from side to side as they are, for all sizes.

    Only the sizes that their keys count need be known then.
    """
    if len(join.cells) != 1 or not join.plain:
        return False
    cell = join.cells[0]
    source, view = ends(cell, rows)
    if cell.codec or source.row.leaf.dtype != view.row.leaf.dtype:
        return False
    if len(source.row.dims) != len(view.row.dims):
        return False
    # A part of a row is cut out, and so is made: only of whole rows leaves may move.
    if not source.symbols and not view.symbols:
        return cell.geometry.is_identity  # asked once for all rows of one shape
    return _is_identity(cell.geometry, source, view)


def lone_move(join: Join, rows: Rows) -> tuple[Slot, Slot] | None:
    """The one leaf that goes from side to side as it is, where a join is no more than that.

    Most joins of most lenses are, and no size is needed to tell.
    """
    if not only_moves(join, rows):
        return None
    source, view = ends(join.cells[0], rows)
    # Of a list there are several leaves.
    if source.symbols or view.symbols:
        return None
    return (source.number, ()), (view.number, ())


@dataclasses.dataclass(frozen=True, slots=True)
class End:
    """A row at one end of a cell.

    The axes of a cell are the index symbols of the row's key, and behind these the axes of its leaf:
    of ``layers/{i}/kernel`` with two axes, axis 0 is the layer, and axis 1 the first of a leaf.
    """

    number: int
    row: Row
    symbols: int

    @classmethod
    def of(cls, number: object, rows: Sequence[Row]) -> End:
        """The row of this number; cells of constants have no two ends."""
        assert isinstance(number, int)
        return cls(number, rows[number], len(rows[number].unrolled))

    def in_leaf(self, place: Place | None) -> Place | None:
        """Where a digit steps in a leaf of the row; None of one that goes from leaf to leaf."""
        if place is None or place[0] < self.symbols:
            return None
        return place[0] - self.symbols, place[1]


def ends(cell: Cell, rows: Rows) -> tuple[End, End]:
    """The rows at both ends of a cell that is no constant."""
    return End.of(cell.source, rows[0]), End.of(cell.view, rows[1])


def _is_identity(geometry: Geometry, source: End, view: End) -> bool:
    """Whether the axes of two leaves are the same, whatever their keys are."""
    # A leaf that starts elsewhere than at 0 is a part.
    if any(geometry.starts[0][source.symbols :]) or any(geometry.starts[1][view.symbols :]):
        return False
    digits = geometry.digits
    return all(source.in_leaf(digit.at[0]) == view.in_leaf(digit.at[1]) for digit in digits)
