"""Frames: how an array is reshaped so that one side of a block is a slice of it.

Reshaping a row-major array moves nothing. Where the steps of an axis follow one another without a
gap, they are a *run*: a slice of the axis as it is. Where they leave gaps, the axis is cut into one
axis for each of them: every second element of six, from 1 on, is the slice ``[:, 1:]`` of ``(3, 2)``.

`moves` slices by frames, and `shardings` asks which steps go along an axis.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

from ckpt_schema._lens.arrays.blocks import Block

__all__ = ["Cut", "Frame", "frame", "spots", "steps_along"]


@dataclasses.dataclass(frozen=True, slots=True)
class Cut:
    """What is taken of one axis of a reshaped array.

    Attributes:
        axis: The axis, as the array has it before it is reshaped.
        length: How long the axis is that it has become.
        start: Where it starts, at step 0 of each turn.
        size: How many elements are taken.
        steps: The numbers of the block's steps that these are, major first.
        turns: The turns that move the start: the number of each, and by how much.
    """

    axis: int
    length: int
    start: int
    size: int
    steps: tuple[int, ...] = ()
    turns: tuple[tuple[int, int], ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Frame:
    """One side of a block, as slices of the reshaped array.

    Attributes:
        cuts: One for each axis of the reshaped array.
    """

    cuts: tuple[Cut, ...]

    @property
    def dims(self) -> tuple[int, ...]:
        """The shape of the reshaped array."""
        return tuple(cut.length for cut in self.cuts)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape of the slice."""
        return tuple(cut.size for cut in self.cuts)

    @property
    def steps(self) -> tuple[int, ...]:
        """The numbers of the steps in their order in the slice."""
        numbers: list[int] = []
        for cut in self.cuts:
            numbers += cut.steps
        return tuple(numbers)

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the array."""
        return self.dims == self.sizes


@dataclasses.dataclass(frozen=True, slots=True)
class _Along:
    """A step along an axis: its number, how many it is, and how far each goes; forward."""

    number: int
    size: int
    stride: int
    is_turn: bool
    is_back: bool


def steps_along(block: Block, side: int, axis: int) -> list[_Along]:
    """The steps of a side along an axis, the widest first."""
    steps: list[_Along] = []
    for number, step in enumerate(block.steps):
        spot = step.at[side]
        if spot is not None and spot[0] == axis:
            stride = spot[1]
            steps.append(_Along(number, step.size, abs(stride), step.is_turn, stride < 0))
    # A step of one element goes as far as the wider one that it stands behind: heads*1.
    return sorted(steps, key=lambda along: (-along.stride, -along.size))


def spots(block: Block, side: int, axis: int) -> list[_Along]:
    """The steps of a side along an axis that go anywhere: not those of one step."""
    return [step for step in steps_along(block, side, axis) if step.size != 1]


@functools.lru_cache(1 << 12)
def frame(block: Block, side: int, shape: tuple[int, ...]) -> Frame | None:
    """The frame of one side of a block; None where an axis has none: its steps interlock.

    Args:
        block: The block.
        side: 0 for what is read, 1 for what is written.
        shape: The shape of the array there.

    Example:
        >>> from ckpt_schema._lens.arrays.blocks import Step
        >>> odd = Block(((1,), (0,)), (Step(3, ((0, 2), (0, 1))),))
        >>> read, written = frame(odd, 0, (6,)), frame(odd, 1, (3,))
        >>> read.dims, read.sizes, written.is_whole
        ((3, 2), (3, 1), True)
    """
    cuts: list[Cut] = []
    for axis, (length, start) in enumerate(zip(shape, block.starts[side], strict=True)):
        axis_cuts = _cuts(axis, length, start, spots(block, side, axis))
        if axis_cuts is None:
            return None
        cuts += axis_cuts
    return Frame(tuple(cuts))


def _cuts(axis: int, length: int, start: int, along: Sequence[_Along]) -> list[Cut] | None:
    """The slices of one axis."""
    inner = [step for step in along if not step.is_turn]
    turns = [step for step in along if step.is_turn]
    # Where a step goes back, the slice begins at its end.
    low = start - _backward(inner)
    if _is_run(inner):
        size = math.prod(step.size for step in inner)
        numbers = tuple(step.number for step in inner)
        moved: list[tuple[int, int]] = []
        for turn in turns:
            moved.append((turn.number, -turn.stride if turn.is_back else turn.stride))
        return [Cut(axis, length, low, size, numbers, tuple(moved))]
    return _apart(axis, length, low - _backward(turns), along)


def _backward(steps: Sequence[_Along]) -> int:
    """How many elements before the first one those steps lead that go back."""
    count = 0
    for step in steps:
        if step.is_back:
            count += (step.size - 1) * step.stride
    return count


def _is_run(inner: Sequence[_Along]) -> bool:
    """Whether steps follow one another without a gap: as (3 steps of 4, 4 steps of 1) do."""
    stride = 1
    for step in reversed(inner):
        if step.stride != stride:
            return False
        stride *= step.size
    return True


def _apart(axis: int, length: int, low: int, along: Sequence[_Along]) -> list[Cut] | None:
    """A cut for each step, where each divides the one before and all of them the axis."""
    cuts: list[Cut] = []
    radix, rest = length, low
    for step in along:
        # An axis of `radix` elements becomes one of `count` times `stride`.
        if radix % step.stride:
            return None
        count = radix // step.stride
        begin, rest = divmod(rest, step.stride)
        if begin + step.size > count:
            return None
        if step.is_turn:
            # A turn takes one of its steps; one that goes back starts at the last.
            turn = (step.number, -1 if step.is_back else 1)
            first = begin + step.size - 1 if step.is_back else begin
            cuts.append(Cut(axis, count, first, 1, (), (turn,)))
        else:
            cuts.append(Cut(axis, count, begin, step.size, (step.number,)))
        radix = step.stride
    if radix > 1:
        cuts.append(Cut(axis, radix, rest, 1))
    return cuts
