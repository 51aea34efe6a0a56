"""Cells through the layout between two lenses: which elements meet there, for all sizes.

`composition` asks it for the joins of ``a >> b`` once it is settled which row of the one is which of
the other. Each cell into a row between is held against each cell out of it:

    source  --first-->  middle  --second-->  view      becomes      source  -->  view
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts import paths
from ckpt_schema._layouts.sizes import Size, UndecidedError
from ckpt_schema._layouts.table import Layout, Row
from ckpt_schema._lens.cells import Cell, Constant, ContradictionError, composed
from ckpt_schema._lens.derive.bounds import SizeBounds
from ckpt_schema._lens.derive.folded_rows import FoldedRows
from ckpt_schema._lens.derive.joins import Join, joins_of
from ckpt_schema._lens.derive.relations import undecided
from ckpt_schema.errors import Mismatch

__all__ = ["Joined", "through_the_middle"]


class Joined(Protocol):
    """Two layouts, their joins, and sizes that are bound beforehand."""

    @property
    def source(self) -> Layout:
        """The left layout."""
        ...

    @property
    def view(self) -> Layout:
        """The right layout."""
        ...

    @property
    def joins(self) -> tuple[Join, ...]:
        """Which rows share elements."""
        ...

    @property
    def dims(self) -> Mapping[str, int]:
        """Sizes, in elements."""
        ...

    @property
    def folds(self) -> FoldedRows:
        """Rows that stand for several."""
        ...

    @property
    def wholes(self) -> tuple[Layout, Layout]:
        """Both layouts, with these rows as what is computed."""
        ...


def through_the_middle(
    first: Joined, second: Joined, middle: Mapping[int, int], faults: list[Mismatch]
) -> list[Join]:
    """The joins from end to end.

    Args:
        first: The lens into the layout between.
        second: The lens out of it.
        middle: For each row there, by its number in the first lens, that in the second.
        faults: What does not compose is added here.
    """
    met = _Met(first, second, middle, faults)
    cells, (left, right) = met.cells()
    if faults:
        return []
    # What has lost its partner behind the middle still has to be written, each side by itself.
    cells = _written(cells, left, 0)
    cells = _written(cells, right, 1)
    tables = first.source, second.view
    return [*joins_of(cells, lambda side, at: len(tables[side].rows[at].unrolled))]


class _Met:
    """The cells of two lenses, held against each other."""

    def __init__(
        self, first: Joined, second: Joined, middle: Mapping[int, int], faults: list[Mismatch]
    ) -> None:
        self.first, self.second, self.middle, self.faults = first, second, middle, faults
        rows: list[Row] = []
        for table in (first.source, first.view, second.source, second.view):
            rows += table.rows
        cells: list[Cell] = []
        for join in (*first.joins, *second.joins):
            cells += join.cells
        # Padding says which size is the greater one, and so where some cells end.
        self.bounds = SizeBounds.of(rows, cells)
        given = {**first.dims, **second.dims}
        self.sizes = {name: Size.of(size) for name, size in given.items()}

    def cells(self) -> tuple[list[Cell], tuple[list[Cell], list[Cell]]]:
        """The cells from end to end.

        For each outer side also those that lead nowhere: to what the middle is by default.
        """
        ends: list[Cell] = []
        # The cells out of each row between, by its number in the second lens.
        onward: dict[int, list[Cell]] = {}
        for join in self.second.joins:
            for cell in join.cells:
                if isinstance(cell.source, int):
                    onward.setdefault(cell.source, []).append(cell)
                else:
                    # It is padding of the view, or the like: nothing between has a part in it.
                    ends.append(cell)
        left: list[Cell] = []
        reached: set[int] = set()
        for join in self.first.joins:
            for cell in join.cells:
                if not isinstance(cell.view, int):
                    ends.append(cell)
                    continue
                at = self.middle[cell.view]
                reached.add(at)
                # What the second lens drops comes back as the default of the row between.
                if at not in onward and not cell.is_constant:
                    default = Constant(self.second.source.rows[at].default)
                    left.append(dataclasses.replace(cell, view=default))
                for other in onward.get(at, ()):
                    ends += self._composed(dataclasses.replace(cell, view=at), other, cell.view)
        right: list[Cell] = []
        numbers_in_first = {at: number for number, at in self.middle.items()}
        for at, cells in onward.items():
            if at in reached:
                continue
            # What the first lens does not make is what the row between is by default.
            default = Constant(self.first.view.rows[numbers_in_first[at]].default)
            for cell in cells:
                if not cell.is_constant:
                    right.append(dataclasses.replace(cell, source=default))
        return ends, (left, right)

    def _composed(self, one: Cell, other: Cell, row: int) -> list[Cell]:
        """Two cells as one, for all sizes if that can be; or else for those that are given."""
        try:
            return self.bounds.composed([one], [other])
        except ContradictionError as wrong:
            self.faults.append(_unlike_padding(self.first.view.rows[row], wrong))
            return []
        except UndecidedError as wrong:
            fault = self._undecided(one, other, wrong)
        # For all sizes first, so that a lens without dims= stays one; given sizes decide the rest.
        if self.sizes:
            try:
                return composed([one.where(self.sizes)], [other.where(self.sizes)])
            except UndecidedError as wrong:
                fault = self._undecided(one, other, wrong)
        self.faults.append(fault)
        return []

    def _undecided(self, one: Cell, other: Cell, wrong: UndecidedError) -> Mismatch:
        # The bounds have put names of their own in the place of dims: users know these alone.
        points = [point.where(self.bounds.back) for point in wrong.points]
        spelled = " and ".join(map(str, points))
        why = UndecidedError(f"which of {spelled} comes first depends on the sizes", *points)
        # A constant has no row to name; the first one stands for its side.
        source = one.source if isinstance(one.source, int) else 0
        view = other.view if isinstance(other.view, int) else 0
        return undecided(self.first.source.rows[source], self.second.view.rows[view], why)


def _unlike_padding(row: Row, wrong: ContradictionError) -> Mismatch:
    """The fault where a row in the middle is padded with one value, and cut where it holds another."""
    ends = wrong.first.source, wrong.second.view
    fills = " and ".join(str(end.value) for end in ends if isinstance(end, Constant))
    hint = "no tree is padded with both: give both lenses the same fill="
    where = paths.format_path(row.key)
    # The padding is at the end of the one axis on which the cell does not start at 0.
    padded = "it"
    starts = wrong.first.geometry.starts[1][len(row.unrolled) :]
    for dim, start in zip(row.dims, starts, strict=False):
        if start:
            padded = dims_.format_dim(dim)
            break
    return Mismatch(where, "rule", f"one fill in the padding of {padded}", fills, hint)


# --- What has lost its writer  ---


def _written(cells: Sequence[Cell], ended: Sequence[Cell], side: int) -> list[Cell]:
    """The cells, and what writes the elements of one outer side whose writer leads nowhere now.

    What only compared such elements writes them. What nothing reaches is as the middle has it by
    default, where other elements of the row have a partner; a row without any is private as a
    whole.
    """
    written = list(cells)
    rows: set[object] = set()
    for cell in cells:
        if not cell.is_constant:
            rows.add((cell.source, cell.view)[side])
    for end in ended:
        # What compared elements has not written them: they have another writer.
        if end.compares[side] or (end.source, end.view)[side] not in rows:
            continue
        heir = _heir(written, end, side)
        if heir is None:
            written.append(_alone(end, side))
            continue
        flags = list(written[heir].compares)
        flags[side] = False
        written[heir] = dataclasses.replace(written[heir], compares=(flags[0], flags[1]))
    return written


def _heir(cells: Sequence[Cell], end: Cell, side: int) -> int | None:
    """The first cell, by number, that only compares the very elements that another cell wrote."""
    row, elements = (end.source, end.view)[side], end.geometry.box(side)
    for number, cell in enumerate(cells):
        is_of_row = (cell.source, cell.view)[side] == row
        if is_of_row and cell.compares[side] and cell.geometry.box(side) == elements:
            return number
    return None


def _alone(end: Cell, side: int) -> Cell:
    """A cell that leads to a default, with the elements of its own side alone."""
    own = end.geometry.box(side)
    return dataclasses.replace(end, geometry=own if side else ~own)
