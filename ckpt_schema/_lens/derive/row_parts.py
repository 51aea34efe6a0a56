"""Part of a row: what is left of it where factors of its axes stand among more elements."""

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
        kept = [_shifted(each, at, first, shift) for each in self.within]
        return RowPart(row, (*kept, own))


def _shifted(within: Within, at: Where, first: int, shift: int) -> Within:
    """What stands on an axis where another factor is several now, or several are one."""
    if within.at != at or within.last <= first:
        return within
    start = within.first + (shift if within.first > first else 0)
    return dataclasses.replace(within, first=start, last=within.last + shift)


def spots_of(row: Row, dim: Dim) -> list[tuple[int, int, int]]:
    """Where a row has a dim: which axis, and which of its factors.

    Whole axes before those that it is a factor of.
    """
    own: list[tuple[Where, Dim]] = [(("axis", at), axis) for at, axis in enumerate(row.leaf.dims)]
    return [(at, first, last) for (_, at), first, last in _places(own, dim)]


def places_of(row: Row, dim: Dim) -> list[tuple[Where, int, int]]:
    """The same of axes and of levels of repetition."""
    own: list[tuple[Where, Dim]] = [(("axis", at), axis) for at, axis in enumerate(row.leaf.dims)]
    own += [(("level", at), repeat.size) for at, repeat in enumerate(row.repeats)]
    return _places(own, dim)


def _places(own: list[tuple[Where, Dim]], dim: Dim) -> list[tuple[Where, int, int]]:
    whole = [(at, 0, len(each)) for at, each in own if each == dim]
    # "embed" is the axis of that name, though it is a factor of "embed*mlp" too.
    if whole:
        return whole
    spots: list[tuple[Where, int, int]] = []
    for at, each in own:
        for first in range(len(each) - len(dim) + 1):
            if each[first : first + len(dim)] == dim:
                spots.append((at, first, first + len(dim)))
    return spots


def mentions(row: Row, dim: Dim) -> bool:
    """Whether a row has a dim as an axis, a level, a factor of one, or in a sum."""
    waiting = [*row.all_dims]
    while waiting:
        each = waiting.pop()
        if each == dim or any((factor,) == dim for factor in each):
            return True
        for factor in each:
            waiting += factor.terms if isinstance(factor, Sum) else ()
    return False
