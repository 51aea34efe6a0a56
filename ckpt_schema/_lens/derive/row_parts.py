"""Part of a row: what is left of it where factors of its axes stand among more elements."""

from __future__ import annotations

import dataclasses

from ckpt_schema._layouts.dims import Dim
from ckpt_schema._layouts.sizes import ZERO, Size
from ckpt_schema._layouts.table import Row
from ckpt_schema._lens.derive.leaf_rules import PaddedAxis
from ckpt_schema._lens.spellings import of_dim

__all__ = ["RowPart", "Within", "spots_of"]


@dataclasses.dataclass(frozen=True, slots=True)
class Within:
    """Factors of an axis that stand among more elements than they count.

    Attributes:
        at: The axis: an ``axis`` of the leaf's own, or a ``level`` of repetition, by number.
        first: The first of these factors there.
        last: The one after the last.
        size: How many elements the row has for them.
        start: Where they start among these.
        fill: What the others hold, where they are padding.
    """

    at: tuple[str, int]
    first: int
    last: int
    size: Size
    start: Size = ZERO
    fill: PaddedAxis | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class RowPart:
    """Part of a row.

    Attributes:
        row: The row, with the dims that the part has.
        within: Where these stand in the row.
    """

    row: Row
    within: tuple[Within, ...] = ()

    def cut(self, at: int, first: int, last: int, fill: PaddedAxis) -> RowPart:
        """The part that is left where factors of an axis are padded: these become those without padding."""
        dims = self.row.leaf.dims
        axis = dims[at]
        leaf = self.row.leaf.with_factors(at, first, last, fill.small)
        row = dataclasses.replace(self.row, leaf=leaf)
        own = Within(
            ("axis", at), first, first + len(fill.small), of_dim(axis[first:last]), ZERO, fill
        )
        shift = len(fill.small) - (last - first)
        kept = [_shifted(each, ("axis", at), first, shift) for each in self.within]
        return RowPart(row, (*kept, own))


def _shifted(within: Within, at: tuple[str, int], first: int, shift: int) -> Within:
    """What stands on an axis where another factor is several now, or several are one."""
    if within.at != at or within.last <= first:
        return within
    start = within.first + (shift if within.first > first else 0)
    return dataclasses.replace(within, first=start, last=within.last + shift)


def spots_of(row: Row, dim: Dim) -> list[tuple[int, int, int]]:
    """Where a row has a dim: which axis, and which of its factors; whole axes before those that it is a factor of."""
    dims = row.leaf.dims
    whole = [(at, 0, len(axis)) for at, axis in enumerate(dims) if axis == dim]
    if whole or len(dim) > 1:
        return whole
    return [
        (at, number, number + 1)
        for at, axis in enumerate(dims)
        for number, factor in enumerate(axis)
        if (factor,) == dim
    ]
