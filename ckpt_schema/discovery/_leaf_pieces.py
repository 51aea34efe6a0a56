"""Pieces of leaves: a leaf is cut until its pieces have the shapes of pieces of the other model.

A piece knows how it was cut: each axis of its leaf is a product of factors, of each factor it has a
span, and each of its own axes is made of some factors. So what is found of pieces can be said as a
rule for leaves.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

__all__ = [
    "AxisSizes",
    "LeafPiece",
    "Recode",
    "cuts_into",
    "divided_factor",
    "form_of",
    "joined_forms",
    "narrowed_factor",
    "unstacked_forms",
    "whole_piece",
]

AxisSizes = tuple[int, ...]
"""The sizes of a piece's axes, in ascending order: what does not tell how they are turned."""

_DEEPEST = 3  # how often a leaf is cut: a stack of fused heads takes three
_LARGEST_LEVEL = 3000
_MOST_ALIKE = 40  # ways to cut a leaf into pieces of the same forms, by how they are interleaved
_MOST_PARTS = 16  # layers of a stack, or parts of an axis: small models are asked for


@dataclasses.dataclass(frozen=True)
class LeafPiece:
    """A part of a leaf.

    Attributes:
        leaf: The key path of the leaf.
        factors: For each axis of the leaf, the sizes that it is a product of.
        spans: For each factor, the first index that the piece has and the one after the last.
        axes: For each axis of the piece, the numbers of the factors that it is made of, in order.
        scale: The value in the leaf is this times the value of the piece, ...
        offset: ... plus this.
    """

    leaf: str
    factors: tuple[tuple[int, ...], ...]
    spans: tuple[tuple[int, int], ...]
    axes: tuple[tuple[int, ...], ...]
    scale: float = 1.0
    offset: float = 0.0

    @property
    def leaf_shape(self) -> tuple[int, ...]:
        """The shape of the whole leaf."""
        return tuple(map(math.prod, self.factors))

    @property
    def flat(self) -> list[int]:
        """The sizes of all factors, in order."""
        return list(itertools.chain(*self.factors))

    def first_factor(self, axis: int) -> int:
        """The number of the first factor of an axis of the leaf."""
        return sum(map(len, self.factors[:axis]))

    def lengths(self, numbers: Iterable[int]) -> list[int]:
        """How much of each of some factors it has."""
        spans = [self.spans[number] for number in numbers]
        return [stop - start for start, stop in spans]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the piece."""
        return tuple(math.prod(self.lengths(axis)) for axis in self.axes)

    @property
    def form(self) -> AxisSizes:
        """The sizes of its axes, in ascending order."""
        return form_of(self.shape)

    @functools.cached_property
    def places(self) -> np.ndarray[Any, Any]:
        """Where each element of the piece is in the flat leaf."""
        # All elements of the leaf are numbered, and then cut and turned as the piece is.
        numbers = np.arange(math.prod(self.flat)).reshape(self.flat)
        within = numbers[tuple(slice(*span) for span in self.spans)]
        order = list(itertools.chain(*self.axes))
        # A factor of which it has one index is in no axis. It goes last, where the reshape drops it.
        single = sorted(set(range(within.ndim)) - set(order))
        return within.transpose([*order, *single]).reshape(self.shape)

    @property
    def is_whole(self) -> bool:
        """Whether it has every element of its leaf."""
        return all(span == (0, size) for span, size in zip(self.spans, self.flat, strict=True))

    def __str__(self) -> str:
        """The leaf, with the indices that the piece has of each axis that is cut."""
        if self.is_whole:
            return self.leaf
        words: list[str] = []
        spans = iter(self.spans)
        for sizes in self.factors:
            factors: list[str] = []
            is_cut = False
            # The first 2 of each 4 on an axis of 12 are 3*0:2: what is whole is told by its size.
            for size in sizes:
                indices = _indices(next(spans), size)
                is_cut = is_cut or indices != ""
                factors.append(indices or str(size))
            words.append("*".join(factors) if is_cut else ":")
        return f"{self.leaf}[{', '.join(words)}]"


def _indices(span: tuple[int, int], size: int) -> str:
    """The indices that a span has of a factor; nothing where it has all."""
    start, stop = span
    if span == (0, size):
        return ""
    return str(start) if stop == start + 1 else f"{start}:{stop}"


@dataclasses.dataclass(frozen=True, order=True)
class Recode:
    """How the values of a leaf of one side differ from those of the other side.

    Attributes:
        scale: The leaf holds this times the other side's value, ...
        offset: ... plus this.
        rotary: The size of a head and of the outer part of its axis, of which the other side has
            the two parts in the other order; (0, 0) where none is.
        axis: Which axis of the leaf the heads are on.
    """

    scale: float = 1.0
    offset: float = 0.0
    rotary: tuple[int, int] = (0, 0)
    axis: int = 0

    def __str__(self) -> str:
        """In words."""
        words: list[str] = []
        if self.scale != 1:
            words.append(f"times {self.scale:.6g}")
        if self.offset:
            words.append(f"plus {self.offset:g}")
        if self.rotary[0]:
            words.append(f"rotary order of heads of {self.rotary[0]}")
        return " ".join(words)


def form_of(shape: Sequence[int]) -> AxisSizes:
    """The sizes in ascending order, without those of 1."""
    return tuple(sorted(size for size in shape if size != 1))


def whole_piece(leaf: str, shape: Sequence[int]) -> LeafPiece:
    """The piece that is all of a leaf; axes of size 1 are none of its own."""
    axes: list[tuple[int, ...]] = []
    for axis, size in enumerate(shape):
        if size != 1:
            axes.append((axis,))
    factors = tuple((size,) for size in shape)
    spans = tuple((0, size) for size in shape)
    return LeafPiece(leaf, factors, spans, tuple(axes))


_Step = Callable[[LeafPiece], list[LeafPiece]]


@dataclasses.dataclass(frozen=True)
class _Cut:
    """A way to cut a leaf, as the steps to it; they are taken only on the pieces that stand for all.

    A leaf has thousands of ways, and a stack of a hundred layers a hundred pieces in each: most ways
    are dropped when their samples are seen.

    Attributes:
        steps: What is done, to all pieces alike.
        samples: One piece of each shape that comes of it.
    """

    steps: tuple[_Step, ...]
    samples: tuple[LeafPiece, ...]

    def fits(self, forms: Collection[AxisSizes]) -> bool:
        """Whether all pieces that come of it have one of these forms."""
        return all(sample.form in forms for sample in self.samples)

    def then(self, step: _Step) -> _Cut:
        """The same, and one step more."""
        # Only what has one sample is cut further: see `_steps`.
        samples: dict[tuple[int, ...], LeafPiece] = {}
        for piece in step(self.samples[0]):
            samples.setdefault(piece.shape, piece)
        return _Cut((*self.steps, step), tuple(samples.values()))

    def pieces(self, whole: LeafPiece) -> list[LeafPiece]:
        """All pieces of a leaf."""
        pieces = [whole]
        for step in self.steps:
            cut: list[LeafPiece] = []
            for piece in pieces:
                cut += step(piece)
            pieces = cut
        return pieces


def cuts_into(
    shape: Sequence[int], forms: Collection[AxisSizes], *, joins: bool = True
) -> list[list[LeafPiece]]:
    """The ways to cut a leaf into pieces of given forms, the least cutting first.

    Args:
        shape: Its shape.
        forms: The forms that pieces may have.
        joins: Whether axes may be joined.

    Returns:
        Some ways, of a leaf without a name; the whole leaf alone where there is none.
    """
    # Level by level: cuts of no step, of one step, and so on. What comes of other steps in the end
    # to the same pieces is one cut.
    whole = whole_piece("", shape)
    level = [_Cut((), (whole,))]
    seen = {level[0].samples}
    fitting: list[_Cut] = []
    for _ in range(_DEEPEST + 1):
        for cut in level:
            if cut.fits(forms):
                fitting.append(cut)
        following: list[_Cut] = []
        for cut in level:
            for step in _steps(cut, forms, joins=joins, is_matrix=len(shape) > 1):
                further = cut.then(step)
                if further.samples not in seen:
                    seen.add(further.samples)
                    following.append(further)
            if len(following) > _LARGEST_LEVEL:
                break
        level = following
    ways: list[tuple[int, list[LeafPiece]]] = []
    for cut in fitting:
        ways.append((len(cut.steps), cut.pieces(whole)))
    ways.sort(key=lambda pair: (pair[0], len(pair[1])))
    kept: list[list[LeafPiece]] = []
    alike: collections.Counter[tuple[AxisSizes, ...]] = collections.Counter()
    for _, way in ways:
        forms_of_way = tuple(sorted(piece.form for piece in way))
        alike[forms_of_way] += 1
        if alike[forms_of_way] <= _MOST_ALIKE:
            kept.append(way)
    return kept or [[whole]]


def unstacked_forms(form: AxisSizes) -> set[AxisSizes]:
    """The forms that come of a leaf where stacks are taken apart."""
    forms = {form}
    for axis, size in enumerate(form):
        if len(form) > 1 and size <= _MOST_PARTS:
            forms |= unstacked_forms((*form[:axis], *form[axis + 1 :]))
    return forms


def joined_forms(form: AxisSizes) -> set[AxisSizes]:
    """The forms that come of a leaf where stacks are taken apart and axes are joined."""
    forms = unstacked_forms(form)
    # (2, 4, 6) becomes (6, 8), (4, 12) and (2, 24), and all that comes of each of these.
    for axis, size in enumerate(form):
        for behind in range(axis + 1, len(form)):
            rest = [*form[:axis], *form[axis + 1 : behind], *form[behind + 1 :]]
            forms |= joined_forms(form_of([size * form[behind], *rest]))
    return forms


def _steps(
    cut: _Cut, forms: Collection[AxisSizes], *, joins: bool, is_matrix: bool
) -> Iterator[_Step]:
    """One step on all pieces alike: two axes are joined, a stack is taken apart, an axis is split."""
    # A step is for all pieces alike, so pieces of several shapes are the last that are made.
    piece, *others = cut.samples
    if others:
        return
    rank = len(piece.shape)
    for first, second in _joins(rank) if joins else ():
        yield functools.partial(_joined, first=first, second=second)
    # A bias is no stack of numbers: one axis stays.
    for axis in range(rank if rank > 1 else 0):
        if len(piece.axes[axis]) == 1 and piece.shape[axis] <= _MOST_PARTS:
            yield functools.partial(_singles, axis=axis)
    # Parts of parts are none that anyone keeps.
    for sizes in piece.factors:
        if len(sizes) > 1:
            return
    # A matrix is never joined to one axis and cut into bits: that says nothing.
    if rank == 1 and is_matrix and not any(map(_is_single, piece.spans)):
        return
    for axis in range(rank):
        if len(piece.axes[axis]) == 1:
            for plan in _splits(piece, axis, forms):
                yield functools.partial(_split, axis=axis, plan=plan)


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


def _is_single(span: tuple[int, int]) -> bool:
    return span[1] == span[0] + 1


def _joined(piece: LeafPiece, first: int, second: int) -> list[LeafPiece]:
    """Two axes as one, which stands where the first of them stood."""
    both = piece.axes[first] + piece.axes[second]
    axes: list[tuple[int, ...]] = []
    for axis, factors in enumerate(piece.axes):
        if axis != max(first, second):
            axes.append(both if axis == min(first, second) else factors)
    return [dataclasses.replace(piece, axes=tuple(axes))]


def _singles(piece: LeafPiece, axis: int) -> list[LeafPiece]:
    """A piece for each index of an axis."""
    [factor] = piece.axes[axis]
    start, stop = piece.spans[factor]
    layers: list[LeafPiece] = []
    for index in range(start, stop):
        layers.append(narrowed_factor(piece, factor, (index, index + 1)))
    return layers


def narrowed_factor(piece: LeafPiece, factor: int, span: tuple[int, int]) -> LeafPiece:
    """The piece with less of one factor; what has one index of it has no axis for it."""
    spans = (*piece.spans[:factor], span, *piece.spans[factor + 1 :])
    axes = piece.axes
    if _is_single(span):
        axes = tuple(axis for axis in axes if axis != (factor,))
    return dataclasses.replace(piece, spans=spans, axes=axes)


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


def divided_factor(piece: LeafPiece, factor: int, sizes: tuple[int, int, int]) -> LeafPiece:
    """The piece with one factor as a product of three; the others are counted anew.

    Its axis has the first of the three alone: the caller says which of them are in it.
    """
    factors: list[tuple[int, ...]] = []
    first = 0
    for axis_sizes in piece.factors:
        if first <= factor < first + len(axis_sizes):
            inside = factor - first
            factors.append((*axis_sizes[:inside], *sizes, *axis_sizes[inside + 1 :]))
        else:
            factors.append(axis_sizes)
        first += len(axis_sizes)
    more = tuple((0, size) for size in sizes)
    spans = (*piece.spans[:factor], *more, *piece.spans[factor + 1 :])
    # Two factors more stand in front of those behind it.
    axes: list[tuple[int, ...]] = []
    for axis in piece.axes:
        axes.append(tuple(other if other <= factor else other + 2 for other in axis))
    return dataclasses.replace(piece, factors=tuple(factors), spans=spans, axes=tuple(axes))
