"""Spellings: where a row keeps each factor of a logical array, and the geometry between two rows that have the same factors.

A row has an axis for each index symbol of its key, then those of the array, then, of typed keys,
one for the words of each key. An axis is a sequence of *spans*: factors that are kept within so
many elements. Mostly a span has one factor and as many elements. One that is padded has more, and
so has one that is a part of a sum: it starts further on.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Hashable, Iterator, Mapping, Sequence

from ckpt_schema._layouts.dims import Dim, DimFactor, Sum
from ckpt_schema._layouts.sizes import ONE, ZERO, Size
from ckpt_schema._lens.cells import Digit, Geometry, Place, tidy

__all__ = [
    "Span",
    "Spelling",
    "Token",
    "beside",
    "between",
    "of_dim",
    "stored_places",
    "tokens",
    "whole",
]

Token = Hashable
"""A factor that two rows have in common, whatever they call it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """Factors of an axis that are kept one in the other.

    Attributes:
        factors: Each with its size, major first.
        size: How many elements the axis has for them.
        start: Where they start there.
    """

    factors: tuple[tuple[Token, Size], ...]
    size: Size
    start: Size = ZERO


Spelling = tuple[tuple[Span, ...], ...]
"""The axes of a row, those of its key first: each as its spans, major first."""


def of_dim(dim: Dim) -> Size:
    """The size of an axis, from those of its factors.

    Example:
        >>> from ckpt_schema._layouts.dims import parse_dims
        >>> print(*map(of_dim, parse_dims("3*heads groups*(per+2)*dim")))
        3*heads dim*groups*per+2*dim*groups
    """
    return _of_dim(dim)


@functools.lru_cache(1 << 14)
def _of_dim(dim: Dim) -> Size:
    size = ONE
    for factor in dim:
        size *= _of_factor(factor)
    return size


def _of_factor(factor: DimFactor) -> Size:
    if isinstance(factor, Sum):
        return sum(map(_of_dim, factor.terms), ZERO)
    return Size.of(factor)


@dataclasses.dataclass(frozen=True, slots=True)
class _Kept:
    """Where a row keeps a factor: of ``heads*dim``, heads on the axis in steps of dim, dim in steps of 1."""

    size: Size
    place: Place


@functools.lru_cache(1 << 12)
def stored_places(spelling: Spelling) -> tuple[Mapping[Token, _Kept], tuple[Size, ...]]:
    """Where a row keeps each factor, and where all of them start."""
    places: dict[Token, _Kept] = {}
    starts: list[Size] = []
    for number, axis in enumerate(spelling):
        stride, start = ONE, ZERO
        # The last factor is the one whose steps are next to each other.
        for span in reversed(axis):
            start += span.start * stride
            inner = stride
            for token, size in reversed(span.factors):
                places[token] = _Kept(size, (number, inner))
                inner *= size
            stride *= span.size
        starts.append(start)
    return places, tuple(starts)


@functools.lru_cache(1 << 12)
def between(source: Spelling, view: Spelling, flipped: frozenset[Token]) -> Geometry:
    """The elements of one row that are those of another with the same factors.

    A factor that one of both lacks repeats there what the other has once.

    Args:
        source: How the one keeps them.
        view: How the other does.
        flipped: The factors that are counted from their end there.

    Example:
        >>> heads, dim = ("h", Size.of("heads")), ("d", Size.of("dim"))
        >>> one = (Span((heads,), heads[1]), Span((dim,), dim[1])),
        >>> other = (Span((dim,), Size.of("padded")),), (Span((heads,), heads[1]),)
        >>> print(between(one, other, frozenset("d")))
        [0] ~ [dim-1 0] dim(0:1 0:-1) heads(0:dim 1:1)
    """
    (ours, begin), (theirs, end) = stored_places(source), stored_places(view)
    starts, digits = list(end), list[Digit]()
    # What one side alone has goes nowhere on the other: each step is the same elements there.
    for token in theirs.keys() - ours.keys():
        digits.append(Digit(theirs[token].size, (None, theirs[token].place)))
    for token, kept in ours.items():
        if token not in theirs:
            digits.append(Digit(kept.size, (kept.place, None)))
            continue
        axis, stride = theirs[token].place
        # From its last element, and back.
        if token in flipped:
            starts[axis] += (kept.size - 1) * stride
            stride = -stride
        digits.append(Digit(kept.size, (kept.place, (axis, stride))))
    return tidy(Geometry((begin, tuple(starts)), tuple(digits)))


def whole(
    spelling: Spelling, logical: Sequence[Sequence[Token]], flipped: frozenset[Token]
) -> Geometry:
    """From a row to a logical array that has these factors on its axes, major first.

    Some are counted from their end.
    """
    places, _ = stored_places(spelling)
    axes: list[tuple[Span, ...]] = []
    for axis in logical:
        spans: list[Span] = []
        for token in axis:
            # Of a logical array nothing is padded: a factor has all of its span.
            size = places[token].size
            spans.append(Span(((token, size),), size))
        axes.append(tuple(spans))
    return between(spelling, tuple(axes), flipped)


@functools.lru_cache(1 << 10)
def beside(spelling: Spelling, order: tuple[tuple[int, int], ...]) -> tuple[Geometry, ...]:
    """What a row has besides its factors: for each of some spans, what follows them there.

    Args:
        spelling: The row.
        order: The spans that leave something, by axis and number. What several leave in common is
            counted to the first of them. Of every other span, what its factors are is meant.

    Returns:
        For each, the elements, from a constant on.
    """
    boxes: list[Geometry] = []
    for number, spot in enumerate(order):
        boxes.append(_rest(spelling, spot, order[number + 1 :]))
    return tuple(boxes)


def _rest(spelling: Spelling, spot: tuple[int, int], after: Sequence[tuple[int, int]]) -> Geometry:
    """What follows on the factors of one span; of the spans after it, all, and of others their factors."""
    starts: list[Size] = []
    digits: list[Digit] = []
    for number, axis in enumerate(spelling):
        stride, start = ONE, ZERO
        # From the last span on, whose elements are next to each other: the stride of one is known then.
        for at, span in reversed([*enumerate(axis)]):
            size = ONE
            for _, factor_size in span.factors:
                size *= factor_size
            start += span.start * stride
            # vocab of a span of padded: padded-vocab more, from vocab on.
            if (number, at) == spot:
                start += size * stride
                size = span.size - size
            elif (number, at) in after:
                size = span.size
            digits.append(Digit(size, (None, (number, stride))))
            stride *= span.size
        starts.append(start)
    return tidy(Geometry(((), tuple(starts)), tuple(digits)))


def tokens(spelling: Spelling) -> Iterator[Token]:
    """Every factor of a row in order."""
    for axis in spelling:
        for span in axis:
            for token, _ in span.factors:
                yield token
