"""Part of a row: what is left of it where factors of its axes stand among more elements.

What is padded, and what is a share of a longer axis, is a row part: a row as the other side has it,
with a note of where its elements stand among more. `row_spellings` spells both together.

    vocab within padded, from 0        q within q+k+v, from 0        k within q+k+v, from q
"""

from __future__ import annotations

import dataclasses

from ckpt_schema._layouts.dims import Dim, Sum
from ckpt_schema._layouts.sizes import ZERO, Size
from ckpt_schema._layouts.table import Row
from ckpt_schema._lens.derive.leaf_rules import PaddedAxis
from ckpt_schema._lens.spellings import of_dim

__all__ = ["RowPart", "Within", "mentions", "places_of", "spots_of"]


Where = tuple[str, int]
"""An ``axis`` of a leaf's own, or a ``level`` of repetition, by number."""


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

    at: Where
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

    def cut(self, at: Where, first: int, last: int, fill: PaddedAxis) -> RowPart:
        """The part that is left where factors have more than both sides: these become those that both have."""
        kind, number = at
        if kind == "axis":
            dim = self.row.leaf.dims[number]
            leaf = self.row.leaf.with_factors(number, first, last, fill.small)
            row = dataclasses.replace(self.row, leaf=leaf)
        else:
            level = self.row.repeats[number]
            dim = level.size
            size = (*dim[:first], *fill.small, *dim[last:])
            levels = [*self.row.repeats]
            levels[number] = dataclasses.replace(level, size=size)
            row = dataclasses.replace(self.row, repeats=tuple(levels))
        own = Within(at, first, first + len(fill.small), of_dim(dim[first:last]), ZERO, fill)
        # What stands further on the axis has moved, where one factor has become several.
        shift = len(fill.small) - (last - first)
        kept = [_shifted(within, at, first, shift) for within in self.within]
        return RowPart(row, (*kept, own))


def _shifted(within: Within, at: Where, first: int, shift: int) -> Within:
    """What stands on an axis where another factor is several now, or several are one."""
    if within.at != at or within.last <= first:
        return within
    # What begins before the factor, or with it, holds it: it keeps its start and becomes longer.
    start = within.first + (shift if within.first > first else 0)
    return dataclasses.replace(within, first=start, last=within.last + shift)


def spots_of(row: Row, dim: Dim) -> list[tuple[int, int, int]]:
    """Where a row has a dim: which axis, and which of its factors.

    Whole axes before those that it is a factor of.
    """
    return [(at, first, last) for (_, at), first, last in _places(_axes(row), dim)]


def places_of(row: Row, dim: Dim) -> list[tuple[Where, int, int]]:
    """The same of axes and of levels of repetition."""
    sizes = _axes(row)
    for number, repeat in enumerate(row.repeats):
        sizes.append((("level", number), repeat.size))
    return _places(sizes, dim)


def _axes(row: Row) -> list[tuple[Where, Dim]]:
    """The axes of a leaf's own, each with its size."""
    return [(("axis", number), size) for number, size in enumerate(row.leaf.dims)]


def _places(sizes: list[tuple[Where, Dim]], dim: Dim) -> list[tuple[Where, int, int]]:
    """Where a dim stands among some axes."""
    whole = [(at, 0, len(size)) for at, size in sizes if size == dim]
    # "embed" is the axis of that name, though it is a factor of "embed*mlp" too.
    if whole:
        return whole
    spots: list[tuple[Where, int, int]] = []
    for at, size in sizes:
        # A dim may be several factors itself: "q*dim" stands in "3*q*dim" from 1 to 3.
        for first in range(len(size) - len(dim) + 1):
            if size[first : first + len(dim)] == dim:
                spots.append((at, first, first + len(dim)))
    return spots


def mentions(row: Row, dim: Dim) -> bool:
    """Whether a row has a dim as an axis, a level, a factor of one, or in a sum."""
    waiting = [*row.all_dims]
    while waiting:
        size = waiting.pop()
        if size == dim:
            return True
        for factor in size:
            if (factor,) == dim:
                return True
            # The terms of a sum are dims themselves, and may have sums in them.
            if isinstance(factor, Sum):
                waiting += factor.terms
    return False
