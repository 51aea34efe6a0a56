"""Joins: which rows are one leaf, and which leaves of repeated rows go together, whatever either side makes of each level."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from ckpt_schema import dims as dims_
from ckpt_schema.dims import Dim
from ckpt_schema.lens.edits import Chain
from ckpt_schema.lens.told import UNTOLD, Told
from ckpt_schema.table import Slot

__all__ = ["Join", "Place", "Symbol", "instances"]


@dataclasses.dataclass(frozen=True, slots=True)
class Symbol:
    """How the index of one unrolled level of a row is made of the levels of a join.

    Attributes:
        levels: The numbers of these levels, outermost first: the index counts through the last of them first.
        start: Where the row is a part of the list: the sizes of the parts before it.
    """

    levels: tuple[int, ...]
    start: tuple[Dim, ...] | None = None

    def index(self, at: Mapping[int, int], counts: Sequence[int], sizes: Mapping[str, int]) -> int:
        """The index, from those of the levels."""
        index = 0
        for level in self.levels:
            index = index * counts[level] + at[level]
        return index + sum(dims_.size_of(dim, sizes) or 0 for dim in self.start or ())


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """A row of a join.

    Attributes:
        row: Its number.
        symbols: One per index symbol of its key.
    """

    row: int
    symbols: tuple[Symbol, ...] = ()

    @property
    def levels(self) -> set[int]:
        """The levels of the join that this row has unrolled."""
        return {level for symbol in self.symbols for level in symbol.levels}

    def slots(
        self, common: Mapping[int, int], counts: Sequence[int], sizes: Mapping[str, int]
    ) -> Iterator[Slot]:
        """Its leaves for fixed indices of some levels, in the order of the others."""
        own = sorted(self.levels - common.keys())
        for indices in itertools.product(*(range(counts[level]) for level in own)):
            at = {**common, **dict(zip(own, indices, strict=True))}
            yield self.row, tuple(symbol.index(at, counts, sizes) for symbol in self.symbols)


@dataclasses.dataclass(frozen=True, slots=True)
class Join:
    """Rows that are one leaf, and the edits from those of the source to those of the view.

    Attributes:
        sources: The source's row, or its rows where each has a part of the leaf.
        views: The view's.
        chain: What is done to the leaf on the way to the view; empty when it only moves.
        levels: The size of each level of repetition.
        told: What rules say of the leaf.
    """

    sources: tuple[Place, ...]
    views: tuple[Place, ...]
    chain: Chain
    levels: tuple[Dim, ...] = ()
    told: Told = UNTOLD

    @property
    def counts(self) -> set[Dim]:
        """The dims that say which leaves it is of."""
        if not self.levels:
            return set()
        symbols = [symbol for place in (*self.sources, *self.views) for symbol in place.symbols]
        return {
            dim
            for symbol in symbols
            for dim in (*(self.levels[n] for n in symbol.levels), *(symbol.start or ()))
        }

    @property
    def plain(self) -> bool:
        """Whether it joins one whole row with one."""
        places = (*self.sources, *self.views)
        return len(places) == 2 and all(
            symbol.start is None for place in places for symbol in place.symbols
        )

    @property
    def inverse(self) -> Join:
        """The same join seen from the other side."""
        return Join(self.views, self.sources, ~self.chain, self.levels, self.told.inverse)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Each row of the source with each of the view that it is joined with."""
        return [(source.row, view.row) for source in self.sources for view in self.views]


def instances(
    sides: tuple[Sequence[Place], Sequence[Place]], levels: Sequence[Dim], sizes: Mapping[str, int]
) -> Iterator[tuple[list[Slot], list[Slot]]]:
    """The leaves that go into, and come out of, each application of a join's edits.

    Args:
        sides: The rows of both sides.
        levels: The size of each level of the join; every dim must be bound.
        sizes: Sizes of the dims.

    Example:
        >>> stacked, listed = Place(0, (Symbol((1,)),)), Place(5, (Symbol((0, 1)),))
        >>> for inputs, outputs in instances(((stacked,), (listed,)), [("blocks",), (2,)], {"blocks": 3}):
        ...     print(inputs, outputs)
        [(0, (0,))] [(5, (0,)), (5, (2,)), (5, (4,))]
        [(0, (1,))] [(5, (1,)), (5, (3,)), (5, (5,))]
    """
    if not levels or not any(place.symbols for places in sides for place in places):
        yield [(place.row, ()) for place in sides[0]], [(place.row, ()) for place in sides[1]]
        return
    counts = [_bound(size, sizes) for size in levels]
    if _alike(*sides):
        (one,), (other,) = sides
        for indices in itertools.product(
            *(range(math.prod(counts[k] for k in symbol.levels)) for symbol in one.symbols)
        ):
            yield [(one.row, indices)], [(other.row, indices)]
        return
    common = sorted(set.intersection(*(place.levels for places in sides for place in places)))
    for indices in itertools.product(*(range(counts[level]) for level in common)):
        at = dict(zip(common, indices, strict=True))
        before, after = (
            [slot for place in places for slot in place.slots(at, counts, sizes)]
            for places in sides
        )
        yield before, after


def _alike(before: Sequence[Place], after: Sequence[Place]) -> bool:
    """Whether both sides have one row, unrolled in the same way."""
    return (
        len(before) == len(after) == 1
        and before[0].symbols == after[0].symbols
        and all(symbol.start is None for symbol in before[0].symbols)
    )


def _bound(dim: Dim, sizes: Mapping[str, int]) -> int:
    size = dims_.size_of(dim, sizes)
    assert size is not None, f"unbound number of repeats {dims_.format_dim(dim)}"
    return size
