"""Ways to cut a leaf into pieces that have the forms of pieces of the other model."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Sequence

from ckpt_schema.discovery._leaf_pieces import (
    AxisSizes,
    LeafPiece,
    divided_factor,
    form_of,
    is_single,
    narrowed_factor,
    whole_piece,
)

__all__ = [
    "LeafWay",
    "cuts_into",
    "forms_of_cuts",
    "is_stack",
    "joined_forms",
    "layers_way",
    "unstacked_forms",
    "whole_way",
]

_DEEPEST = 3  # how often a leaf is cut: a stack of fused heads takes three
_LARGEST_LEVEL = 3000
_MOST_ALIKE = 40  # ways to cut a leaf into pieces of the same forms, by how they are interleaved
_MOST_PARTS = 16  # layers of a stack, or parts of an axis: small models are asked for

_Step = Callable[[LeafPiece], list[LeafPiece]]


@dataclasses.dataclass(frozen=True, eq=False)
class LeafWay:
    """A way to cut a leaf, as the steps to it; its pieces are made when they are first asked for.

    A leaf has a hundred ways, some into thousands of pieces. Most are dropped when the forms of their
    pieces are seen, and how many pieces there are of each is known without making them.

    Attributes:
        whole: The leaf.
        steps: What is done, to all pieces alike.
        samples: One piece of each shape that comes of it.
        counts: How many pieces have the shape of each sample.
    """

    whole: LeafPiece
    steps: tuple[_Step, ...]
    samples: tuple[LeafPiece, ...]
    counts: tuple[int, ...]

    def __len__(self) -> int:
        """How many pieces there are."""
        return sum(self.counts)

    def __iter__(self) -> Iterator[LeafPiece]:
        """All pieces, in order."""
        return iter(self._pieces)

    @functools.cached_property
    def forms(self) -> collections.Counter[AxisSizes]:
        """How many pieces there are of each form."""
        forms: collections.Counter[AxisSizes] = collections.Counter()
        for sample, count in zip(self.samples, self.counts, strict=True):
            forms[sample.form] += count
        return forms

    @functools.cached_property
    def _pieces(self) -> list[LeafPiece]:
        pieces = [self.whole]
        for step in self.steps:
            cut: list[LeafPiece] = []
            for piece in pieces:
                cut += step(piece)
            pieces = cut
        return pieces

    def fits(self, forms: Collection[AxisSizes]) -> bool:
        """Whether all pieces that come of it have one of these forms."""
        return all(sample.form in forms for sample in self.samples)

    def then(self, step: _Step) -> LeafWay:
        """The same, and one step more."""
        # Only what has one sample is cut further: see `_steps`.
        samples: dict[tuple[int, ...], LeafPiece] = {}
        counts: collections.Counter[tuple[int, ...]] = collections.Counter()
        for piece in step(self.samples[0]):
            samples.setdefault(piece.shape, piece)
            counts[piece.shape] += self.counts[0]
        steps = (*self.steps, step)
        return LeafWay(self.whole, steps, tuple(samples.values()), tuple(counts.values()))


def whole_way(shape: Sequence[int]) -> LeafWay:
    """The way that leaves a leaf whole."""
    whole = whole_piece("", shape)
    return LeafWay(whole, (), (whole,), (1,))


def layers_way(shape: Sequence[int], stacks: Sequence[int]) -> LeafWay:
    """The way that takes a leaf apart on some of its axes, in pieces of one index of each."""
    way = whole_way(shape)
    for axis in stacks:
        # Each axis of a whole leaf is one factor, which has the number of the axis.
        way = way.then(functools.partial(_indexed, factor=axis))
    return way


def cuts_into(shape: Sequence[int], forms: Collection[AxisSizes]) -> list[LeafWay]:
    """The ways to cut a leaf into pieces of given forms, the least cutting first.

    Args:
        shape: Its shape.
        forms: The forms that pieces may have.

    Returns:
        Some ways, of a leaf without a name; the whole leaf alone where there is none.
    """
    # What comes of other steps in the end to the same pieces is one way.
    ways = [*_fitting_ways(shape, forms, lambda way: way.samples, joins=True)]
    ways.sort(key=lambda way: (len(way.steps), len(way)))
    kept: list[LeafWay] = []
    alike: collections.Counter[frozenset[tuple[AxisSizes, int]]] = collections.Counter()
    for way in ways:
        forms_of_way = frozenset(way.forms.items())
        alike[forms_of_way] += 1
        if alike[forms_of_way] <= _MOST_ALIKE:
            kept.append(way)
    return kept or [whole_way(shape)]


def forms_of_cuts(
    shape: Sequence[int], forms: Collection[AxisSizes], *, joins: bool
) -> set[AxisSizes]:
    """The forms of all pieces that a leaf can be cut into, where each has one of given forms; else its own.

    Args:
        shape: Its shape.
        forms: The forms that pieces may have.
        joins: Whether axes may be joined.
    """
    made: set[AxisSizes] = set()
    # Of all ways that can go on alike one is enough: there are some dozens, not thousands.
    for way in _fitting_ways(shape, forms, _likeness, joins=joins):
        made |= way.forms.keys()
    return made or {form_of(shape)}


def _fitting_ways(
    shape: Sequence[int],
    forms: Collection[AxisSizes],
    mark: Callable[[LeafWay], object],
    *,
    joins: bool,
) -> Iterator[LeafWay]:
    """The ways into pieces of given forms; of those that have one mark, the first."""
    # Level by level: ways of no step, of one step, and so on.
    level = [whole_way(shape)]
    seen = {mark(level[0])}
    for depth in range(_DEEPEST + 1):
        yield from (way for way in level if way.fits(forms))
        if depth == _DEEPEST:
            return
        following: list[LeafWay] = []
        for way in level:
            for step in _steps(way, forms, joins=joins, is_last=depth == _DEEPEST - 1):
                further = way.then(step)
                if mark(further) not in seen:
                    seen.add(mark(further))
                    following.append(further)
            if len(following) > _LARGEST_LEVEL:
                break
        level = following


def _likeness(way: LeafWay) -> object:
    """What tells into which forms a way can be cut further; see `_steps`."""
    piece, *others = way.samples
    if others:
        return frozenset(way.forms)
    sizes: list[tuple[int, bool]] = []
    for size, factors in zip(piece.shape, piece.axes, strict=True):
        sizes.append((size, len(factors) == 1))
    return tuple(sorted(sizes)), _is_split(piece), _has_single(piece)


def is_stack(size: int) -> bool:
    """Whether an axis of this size may be taken apart, as layers of a stack."""
    return size <= _MOST_PARTS


@functools.cache
def unstacked_forms(form: AxisSizes) -> frozenset[AxisSizes]:
    """The forms that come of a leaf where stacks are taken apart."""
    forms = {form}
    for axis, size in enumerate(form):
        if len(form) > 1 and is_stack(size):
            forms |= unstacked_forms((*form[:axis], *form[axis + 1 :]))
    return frozenset(forms)


@functools.cache
def joined_forms(form: AxisSizes) -> frozenset[AxisSizes]:
    """The forms that come of a leaf where stacks are taken apart and axes are joined."""
    forms = {*unstacked_forms(form)}
    # (2, 4, 6) becomes (6, 8), (4, 12) and (2, 24), and all that comes of each of these.
    for axis, size in enumerate(form):
        for behind in range(axis + 1, len(form)):
            rest = [*form[:axis], *form[axis + 1 : behind], *form[behind + 1 :]]
            forms |= joined_forms(form_of([size * form[behind], *rest]))
    return frozenset(forms)


def _steps(
    way: LeafWay, forms: Collection[AxisSizes], *, joins: bool, is_last: bool
) -> Iterator[_Step]:
    """One step on all pieces alike: two axes are joined, a stack is taken apart, an axis is split.

    Of the last step only what makes pieces of given forms is of use.
    """
    # A step is for all pieces alike, so pieces of several shapes are the last that are made.
    piece, *others = way.samples
    if others:
        return
    shape = piece.shape
    rank = len(shape)
    for first, second in _joins(rank) if joins else ():
        if not is_last or form_of(_joined_shape(shape, first, second)) in forms:
            yield functools.partial(_joined, first=first, second=second)
    # A bias is no stack of numbers: one axis stays.
    for axis in range(rank if rank > 1 else 0):
        goes_apart = len(piece.axes[axis]) == 1 and is_stack(shape[axis])
        if goes_apart and (not is_last or form_of([*shape[:axis], *shape[axis + 1 :]]) in forms):
            yield functools.partial(_indexed, factor=piece.axes[axis][0])
    # Parts of parts are none that anyone keeps.
    if _is_split(piece):
        return
    # A matrix is never joined to one axis and cut into bits: that says nothing.
    if rank == 1 and len(piece.factors) > 1 and not _has_single(piece):
        return
    for axis in range(rank):
        if len(piece.axes[axis]) == 1:
            for plan in _splits(piece, axis, forms):
                yield functools.partial(_split, axis=axis, plan=plan)


def _is_split(piece: LeafPiece) -> bool:
    """Whether an axis of the leaf is cut in parts."""
    return any(len(sizes) > 1 for sizes in piece.factors)


def _has_single(piece: LeafPiece) -> bool:
    """Whether the piece has one index of a factor."""
    return any(map(is_single, piece.spans))


def _joins(rank: int) -> Iterator[tuple[int, int]]:
    """Which axes may be one, the major one first: those side by side come first, then those in order."""
    for axis in range(rank - 1):
        yield axis, axis + 1
    for axis in range(rank):
        for behind in range(axis + 2, rank):
            yield axis, behind
    for axis in range(rank):
        for before in range(axis):
            yield axis, before


def _joined_shape(shape: Sequence[int], first: int, second: int) -> list[int]:
    """The sizes of the axes, in any order, where two of them are one."""
    rest = [size for axis, size in enumerate(shape) if axis not in (first, second)]
    return [shape[first] * shape[second], *rest]


def _joined(piece: LeafPiece, first: int, second: int) -> list[LeafPiece]:
    """Two axes as one, which stands where the first of them stood."""
    both = piece.axes[first] + piece.axes[second]
    axes: list[tuple[int, ...]] = []
    for axis, factors in enumerate(piece.axes):
        if axis != max(first, second):
            axes.append(both if axis == min(first, second) else factors)
    return [dataclasses.replace(piece, axes=tuple(axes))]


def _indexed(piece: LeafPiece, factor: int) -> list[LeafPiece]:
    """A piece for each index of a factor."""
    start, stop = piece.spans[factor]
    layers: list[LeafPiece] = []
    for index in range(start, stop):
        layers.append(narrowed_factor(piece, factor, (index, index + 1)))
    return layers


@dataclasses.dataclass(frozen=True)
class _SplitPlan:
    """How an axis is cut: ``outer`` times runs times ``inner``; what of the runs each part has.

    An axis of 24 is ``outer=2, inner=3, runs=(2, 1, 1)`` where for each of 2 groups it has two queries,
    a key and a value of 3 numbers each. ``outer=1, inner=8, runs=(1, 1, 1)`` are three thirds.
    """

    outer: int
    inner: int
    runs: tuple[int, ...]


def _splits(piece: LeafPiece, axis: int, forms: Collection[AxisSizes]) -> Iterator[_SplitPlan]:
    """The ways to cut one axis into parts whose forms the other model has."""
    size = piece.shape[axis]
    rest = [*piece.shape[:axis], *piece.shape[axis + 1 :]]
    fitting: list[int] = []
    for part in range(1, size):
        if form_of([*rest, part]) in forms:
            fitting.append(part)
    # Equal parts first: side by side, then interleaved, head by head or number by number.
    for count in range(2, _MOST_PARTS + 1):
        if size % count or size // count not in fitting:
            continue
        part = size // count
        yield _SplitPlan(1, part, (1,) * count)
        for inner in range(1, part):
            if part % inner == 0:
                yield _SplitPlan(part // inner, inner, (1,) * count)
    # Then unequal ones, of which the field has two and three.
    for count in (2, 3):
        # The largest part first: a query stands before the keys and values of its groups.
        for runs in itertools.product(fitting[::-1], repeat=count):
            # Parts as 6, 3 and 6 are no query, key and value.
            if sum(runs) == size and len(set(runs)) > 1 and runs[0] != runs[-1]:
                yield _SplitPlan(1, 1, runs)
                yield from _in_groups(runs)


def _in_groups(runs: tuple[int, ...]) -> Iterator[_SplitPlan]:
    """The same parts, interleaved in groups: queries, a key and a value for each group of heads."""
    # Each group has the same of each part, so the groups divide all parts.
    common = math.gcd(*runs)
    for outer in range(2, common + 1):
        if common % outer:
            continue
        for inner in range(1, common // outer + 1):
            if (common // outer) % inner == 0:
                yield _SplitPlan(outer, inner, tuple(run // outer // inner for run in runs))


def _split(piece: LeafPiece, axis: int, plan: _SplitPlan) -> list[LeafPiece]:
    """The parts of one axis."""
    [factor] = piece.axes[axis]
    start, stop = piece.spans[factor]
    parts: list[LeafPiece] = []
    # What is a run of its factor already is only cut into shorter runs.
    if (start, stop) != (0, piece.flat[factor]):
        for run in plan.runs if plan.outer == 1 else ():
            end = start + run * plan.inner
            parts.append(narrowed_factor(piece, factor, (start, end)))
            start = end
        return parts
    whole = divided_factor(piece, factor, (plan.outer, sum(plan.runs), plan.inner))
    # The three factors of the axis are `factor` and the next two now. Of the middle one each part
    # has its run; a factor of which it has one index is in none of its axes.
    first = 0
    for run in plan.runs:
        span = first, first + run
        first += run
        spans = (*whole.spans[: factor + 1], span, *whole.spans[factor + 2 :])
        factors: list[int] = []
        for number, length in enumerate((plan.outer, run, plan.inner), factor):
            if length > 1:
                factors.append(number)
        within = [tuple(factors)] if factors else []
        axes = (*whole.axes[:axis], *within, *whole.axes[axis + 1 :])
        parts.append(dataclasses.replace(whole, spans=spans, axes=axes))
    return parts
