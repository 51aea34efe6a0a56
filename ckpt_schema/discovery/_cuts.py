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
        return tuple(math.prod(sizes) for sizes in self.factors)

    @property
    def flat(self) -> list[int]:
        """The sizes of all factors, in order."""
        return [size for sizes in self.factors for size in sizes]

    def first_factor(self, axis: int) -> int:
        """The number of the first factor of an axis of the leaf."""
        return sum(len(sizes) for sizes in self.factors[:axis])

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
        every = np.arange(math.prod(self.flat)).reshape(self.flat)
        own = every[tuple(slice(*span) for span in self.spans)]
        order = [number for axis in self.axes for number in axis]
        single = [number for number in range(own.ndim) if number not in order]
        return own.transpose([*order, *single]).reshape(self.shape)

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
            own = [_indices(next(spans), size) for size in sizes]
            is_cut = any(own)
            each = (word or str(size) for word, size in zip(own, sizes, strict=True))
            words.append("*".join(each) if is_cut else ":")
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
        words = [] if self.scale == 1 else [f"times {self.scale:.6g}"]
        words += [] if not self.offset else [f"plus {self.offset:g}"]
        words += [] if not self.rotary[0] else [f"rotary order of heads of {self.rotary[0]}"]
        return " ".join(words)


def form_of(shape: Sequence[int]) -> AxisSizes:
    """The sizes in ascending order, without those of 1."""
    return tuple(sorted(size for size in shape if size != 1))


def whole_piece(leaf: str, shape: Sequence[int]) -> LeafPiece:
    """The piece that is all of a leaf; axes of size 1 are none of its own."""
    axes = tuple((at,) for at, size in enumerate(shape) if size != 1)
    return LeafPiece(
        leaf, tuple((size,) for size in shape), tuple((0, size) for size in shape), axes
    )


_Step = Callable[[LeafPiece], list[LeafPiece]]


@dataclasses.dataclass(frozen=True)
class _Cut:
    """A way to cut a leaf, as the steps to it; they are taken only on the pieces that stand for all.

    Attributes:
        steps: What is done, to all pieces alike.
        samples: One piece of each shape that comes of it.
    """

    steps: tuple[_Step, ...]
    samples: tuple[LeafPiece, ...]

    def then(self, step: _Step) -> _Cut:
        """The same, and one step more."""
        samples: dict[tuple[int, ...], LeafPiece] = {}
        for piece in step(self.samples[0]):
            samples.setdefault(piece.shape, piece)
        return _Cut((*self.steps, step), tuple(samples.values()))

    def pieces(self, whole: LeafPiece) -> list[LeafPiece]:
        """All pieces of a leaf."""
        found = [whole]
        for step in self.steps:
            cut: list[LeafPiece] = []
            for piece in found:
                cut += step(piece)
            found = cut
        return found


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
    whole = whole_piece("", shape)
    level = [_Cut((), (whole,))]
    seen = {level[0].samples}
    found: list[_Cut] = []
    for _ in range(_DEEPEST + 1):
        found += [cut for cut in level if all(piece.form in forms for piece in cut.samples)]
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
    ways = [cut.pieces(whole) for cut in found]
    steps = [len(cut.steps) for cut in found]
    ranks = sorted(range(len(ways)), key=lambda at: (steps[at], len(ways[at])))
    kept: list[list[LeafPiece]] = []
    alike: collections.Counter[tuple[AxisSizes, ...]] = collections.Counter()
    for rank in ranks:
        way = ways[rank]
        forms_of_way = tuple(sorted(piece.form for piece in way))
        alike[forms_of_way] += 1
        if alike[forms_of_way] <= _MOST_ALIKE:
            kept.append(way)
    return kept or [[whole]]


def unstacked_forms(form: AxisSizes) -> set[AxisSizes]:
    """The forms that come of a leaf where stacks are taken apart."""
    found = {form}
    for at, size in enumerate(form):
        if len(form) > 1 and size <= _MOST_PARTS:
            found |= unstacked_forms((*form[:at], *form[at + 1 :]))
    return found


def joined_forms(form: AxisSizes) -> set[AxisSizes]:
    """The forms that come of a leaf where stacks are taken apart and axes are joined."""
    found = unstacked_forms(form)
    for at, size in enumerate(form):
        for behind in range(at + 1, len(form)):
            rest = [*form[:at], *form[at + 1 : behind], *form[behind + 1 :]]
            found |= joined_forms(form_of([size * form[behind], *rest]))
    return found


def _steps(
    cut: _Cut, forms: Collection[AxisSizes], *, joins: bool, is_matrix: bool
) -> Iterator[_Step]:
    """One step on all pieces alike: two axes are joined, a stack is taken apart, an axis is split."""
    piece, *others = cut.samples
    if others:
        return
    rank = len(piece.shape)
    for first, second in _joins(rank) if joins else ():
        yield functools.partial(_joined, first=first, second=second)
    for at in range(rank if rank > 1 else 0):
        if len(piece.axes[at]) == 1 and piece.shape[at] <= _MOST_PARTS:
            yield functools.partial(_singles, at=at)
    if any(len(sizes) > 1 for sizes in piece.factors):
        return  # parts of parts are none that anyone keeps
    # A matrix is never joined to one axis and cut into bits: that says nothing.
    if rank == 1 and is_matrix and not any(_is_single(span) for span in piece.spans):
        return
    for at in range(rank):
        if len(piece.axes[at]) == 1:
            for plan in _splits(piece, at, forms):
                yield functools.partial(_split, at=at, plan=plan)


def _joins(rank: int) -> Iterator[tuple[int, int]]:
    """Which axes may be one, the major one first: those side by side come first, then those in order."""
    for at in range(rank - 1):
        yield at, at + 1
    for at in range(rank):
        for behind in range(at + 2, rank):
            yield at, behind
    for at in range(rank):
        for before in range(at):
            yield at, before


def _is_single(span: tuple[int, int]) -> bool:
    return span[1] == span[0] + 1


def _joined(piece: LeafPiece, first: int, second: int) -> list[LeafPiece]:
    """Two axes as one, which stands where the first of them stood."""
    both = piece.axes[first] + piece.axes[second]
    axes: list[tuple[int, ...]] = []
    for at, axis in enumerate(piece.axes):
        if at != max(first, second):
            axes.append(both if at == min(first, second) else axis)
    return [dataclasses.replace(piece, axes=tuple(axes))]


def _singles(piece: LeafPiece, at: int) -> list[LeafPiece]:
    """A piece for each index of an axis."""
    [number] = piece.axes[at]
    start, stop = piece.spans[number]
    found: list[LeafPiece] = []
    for index in range(start, stop):
        found.append(narrowed_factor(piece, number, (index, index + 1)))
    return found


def narrowed_factor(piece: LeafPiece, number: int, span: tuple[int, int]) -> LeafPiece:
    """The piece with less of one factor; what has one index of it has no axis for it."""
    spans = (*piece.spans[:number], span, *piece.spans[number + 1 :])
    axes = piece.axes
    if span[1] == span[0] + 1:
        axes = tuple(axis for axis in axes if axis != (number,))
    return dataclasses.replace(piece, spans=spans, axes=axes)


@dataclasses.dataclass(frozen=True)
class _SplitPlan:
    """How an axis is cut: ``outer`` times runs times ``inner``; what of the runs each part has."""

    outer: int
    inner: int
    runs: tuple[int, ...]


def _splits(piece: LeafPiece, at: int, forms: Collection[AxisSizes]) -> Iterator[_SplitPlan]:
    """The ways to cut one axis into parts whose forms the other model has."""
    size = piece.shape[at]
    rest = [*piece.shape[:at], *piece.shape[at + 1 :]]
    fitting = [part for part in range(1, size) if form_of([*rest, part]) in forms]
    for count in range(2, _MOST_PARTS + 1):
        if size % count or size // count not in fitting:
            continue
        yield _SplitPlan(1, size // count, (1,) * count)
        part = size // count
        for inner in range(1, part):
            if part % inner == 0:  # head by head, or one by one
                yield _SplitPlan(part // inner, inner, (1,) * count)
    for count in (2, 3):
        # The largest part first: a query stands before the keys and values of its groups.
        for runs in itertools.product(fitting[::-1], repeat=count):
            if sum(runs) == size and len(set(runs)) > 1 and runs[0] != runs[-1]:
                yield _SplitPlan(1, 1, runs)
                yield from _in_groups(runs)


def _in_groups(runs: tuple[int, ...]) -> Iterator[_SplitPlan]:
    """The same parts, interleaved in groups: queries, a key and a value for each group of heads."""
    common = math.gcd(*runs)
    for outer in range(2, common + 1):
        if common % outer:
            continue
        for inner in range(1, common // outer + 1):
            if (common // outer) % inner == 0:
                yield _SplitPlan(outer, inner, tuple(run // outer // inner for run in runs))


def _split(piece: LeafPiece, at: int, plan: _SplitPlan) -> list[LeafPiece]:
    """The parts of one axis."""
    [number] = piece.axes[at]
    start, stop = piece.spans[number]
    found: list[LeafPiece] = []
    if (start, stop) != (0, piece.flat[number]):  # a run of a factor is only cut into runs
        for run in plan.runs if plan.outer == 1 else ():
            end = start + run * plan.inner
            found.append(narrowed_factor(piece, number, (start, end)))
            start = end
        return found
    whole = divided_factor(piece, number, (plan.outer, sum(plan.runs), plan.inner))
    # The factors of the axis are at number, number + 1 and number + 2 now; those of size 1 stay.
    first = 0
    for run in plan.runs:
        span = first, first + run
        first += run
        spans = (*whole.spans[: number + 1], span, *whole.spans[number + 2 :])
        own = [number] if plan.outer > 1 else []
        own += [number + 1] if run > 1 else []
        own += [number + 2] if plan.inner > 1 else []
        axes = [*whole.axes[:at], *([tuple(own)] if own else []), *whole.axes[at + 1 :]]
        found.append(dataclasses.replace(whole, spans=spans, axes=tuple(axes)))
    return found


def divided_factor(piece: LeafPiece, number: int, sizes: tuple[int, int, int]) -> LeafPiece:
    """The piece with one factor as a product of three; the others are counted anew."""
    factors: list[tuple[int, ...]] = []
    at = 0
    for each in piece.factors:
        if at <= number < at + len(each):
            inside = number - at
            factors.append((*each[:inside], *sizes, *each[inside + 1 :]))
        else:
            factors.append(each)
        at += len(each)
    more = tuple((0, size) for size in sizes)
    spans = (*piece.spans[:number], *more, *piece.spans[number + 1 :])
    axes = tuple(
        tuple(other if other <= number else other + 2 for other in axis) for axis in piece.axes
    )
    return dataclasses.replace(piece, factors=tuple(factors), spans=spans, axes=axes)
