"""Pieces of leaves: a leaf is cut until its pieces have the shapes of pieces of the other model.

A piece knows how it was cut: each axis of its leaf is a product of factors, of each factor it has a
span, and each of its own axes is made of some factors. So what is found of pieces can be said as a
rule for leaves.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

__all__ = [
    "AxisSizes",
    "LeafPiece",
    "Recode",
    "divided_factor",
    "form_of",
    "is_single",
    "narrowed_factor",
    "whole_piece",
]

AxisSizes = tuple[int, ...]
"""The sizes of a piece's axes, in ascending order: what does not tell how they are turned."""


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

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        """The shape of the piece."""
        return tuple(math.prod(self.lengths(axis)) for axis in self.axes)

    @functools.cached_property
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


def is_single(span: tuple[int, int]) -> bool:
    """Whether a span has one index."""
    return span[1] == span[0] + 1


def narrowed_factor(piece: LeafPiece, factor: int, span: tuple[int, int]) -> LeafPiece:
    """The piece with less of one factor; what has one index of it has no axis for it."""
    spans = (*piece.spans[:factor], span, *piece.spans[factor + 1 :])
    axes = piece.axes
    if is_single(span):
        axes = tuple(axis for axis in axes if axis != (factor,))
    return dataclasses.replace(piece, spans=spans, axes=axes)


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
