"""Tiles: where a stored row keeps the elements of a logical array, and small lenses between two logical arrays.

A logical array has an axis for each factor that a layout names: of ``heads*dim`` two. A row may have
them in another order, several on one axis, and some in its key. What a rule does, it does to whole
axes of logical arrays: so it combines with any order and grouping, and with any other rule.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence

from ckpt_schema.lens.cells import Digit, Geometry, Place
from ckpt_schema.sizes import ONE, ZERO, Size

__all__ = ["flipped", "padded", "parts", "repeated", "tile", "whole"]


def tile(
    axes: Sequence[Sequence[Hashable]],
    sizes: Mapping[Hashable, Size],
    logical: Sequence[Hashable],
) -> Geometry:
    """From a row to the logical array that it keeps.

    Args:
        axes: The factors of each axis of the row, major first; those of its key come first.
        sizes: The size of each factor.
        logical: The factors in the order of the axes of the logical array. One that the row does
            not have is of size 1.

    Example:
        >>> sizes = {"embed": Size.of("embed"), "heads": Size.of("heads"), "dim": Size.of("dim")}
        >>> print(tile([["heads", "dim"], ["embed"]], sizes, ["embed", "heads", "dim"]))
        [0 0] ~ [0 0 0] heads(0:dim 1:1) dim(0:1 2:1) embed(1:1 0:1)
    """
    places = {factor: number for number, factor in enumerate(logical)}
    digits: list[Digit] = []
    for number, axis in enumerate(axes):
        for factor, stride in zip(axis, _strides([sizes[each] for each in axis]), strict=True):
            digits.append(Digit(sizes[factor], ((number, stride), (places[factor], ONE))))
    return Geometry((_zeros(len(axes)), _zeros(len(logical))), tuple(digits))


def _strides(sizes: Sequence[Size]) -> list[Size]:
    """How far a step of each factor of an axis goes."""
    found: list[Size] = []
    stride = ONE
    for size in reversed(sizes):
        found.append(stride)
        stride *= size
    return found[::-1]


# --- Small lenses between two logical arrays  ---


def whole(dims: Sequence[Size]) -> Geometry:
    """All of an array as it is."""
    return Geometry((_zeros(len(dims)), _zeros(len(dims))), _kept(dims))


def flipped(dims: Sequence[Size], axis: int) -> Geometry:
    """One axis the other way round."""
    start = _at(len(dims), axis, dims[axis] - 1)
    return Geometry((_zeros(len(dims)), start), _kept(dims, {axis: (axis, -ONE)}))


def padded(dims: Sequence[Size], axis: int, more: Size) -> tuple[Geometry, Geometry]:
    """One axis longer by so much at its end: what stays, and the padding from a constant on."""
    hole: list[Digit] = []
    for number, size in enumerate(dims):
        hole.append(Digit(more if number == axis else size, (None, (number, ONE))))
    start = _at(len(dims), axis, dims[axis])
    return whole(dims), Geometry(((), start), tuple(hole))


def parts(dims: Sequence[Size], axis: int, lengths: Iterable[Size]) -> list[Geometry]:
    """From an array to its parts, which share one axis one after the other.

    Args:
        dims: The size of each axis of the whole; that of the axis is not looked at.
        axis: The axis.
        lengths: How long each part is there; together they are the whole.
    """
    found: list[Geometry] = []
    begin = ZERO
    for length in lengths:
        own = [length if number == axis else size for number, size in enumerate(dims)]
        starts = _at(len(dims), axis, begin), _zeros(len(dims))
        found.append(Geometry(starts, _kept(own)))
        begin += length
    return found


def repeated(dims: Sequence[Size], axis: int, times: Size) -> Geometry:
    """Each element several times, along an axis of its own that stands before ``axis``."""
    after = {number: (number + 1, ONE) for number in range(axis, len(dims))}
    digits = (*_kept(dims, after), Digit(times, (None, (axis, ONE))))
    return Geometry((_zeros(len(dims)), _zeros(len(dims) + 1)), digits)


def _zeros(rank: int) -> tuple[Size, ...]:
    return (ZERO,) * rank


def _at(rank: int, axis: int, start: Size) -> tuple[Size, ...]:
    """The start of all axes but one."""
    return tuple(start if number == axis else ZERO for number in range(rank))


def _kept(dims: Sequence[Size], to: Mapping[int, Place] | None = None) -> tuple[Digit, ...]:
    """A digit for each axis, which steps there as it does here unless another place is given."""
    places = to or {}
    return tuple(
        Digit(size, ((number, ONE), places.get(number, (number, ONE))))
        for number, size in enumerate(dims)
    )
