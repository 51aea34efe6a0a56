"""Moves: the elements of a block, read from one array and written to another. What they are is not looked at.

NumPy moves by strided views of both arrays. Programs reshape an array into the frame of a block and
take a slice; where a block has no frame (its steps interlock), every element is indexed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ckpt_schema._lens.arrays.blocks import Block
from ckpt_schema._lens.arrays.frames import Frame, frame

__all__ = ["copied", "filled", "filled_in", "read", "written"]

Array = np.ndarray[Any, Any]
Change = Callable[[Any], Any]


# --- NumPy: both sides of a block are views  ---


def copied(value: Array, result: Array, block: Block, turns: Sequence[int], change: Change) -> None:
    """Copies a block of one NumPy array to another, each element changed on the way."""
    _strided(result, block, 1, turns)[...] = change(_strided(value, block, 0, turns))


def filled(result: Array, block: Block, number: Any) -> None:
    """Fills a block of a NumPy array with one value."""
    _strided(result, block, 1, ())[...] = number


def _strided(array: Array, block: Block, side: int, turns: Sequence[int]) -> Array:
    """One side of a block as a view of an array: an axis for each step that is no turn."""
    begin = list(block.starts[side])
    taken = iter(turns)
    shape: list[int] = []
    strides: list[int] = []
    for step in block.steps:
        spot = step.at[side]
        if step.is_turn:
            turn = next(taken)
            if spot is not None:
                begin[spot[0]] += turn * spot[1]
            continue
        shape.append(step.size)
        strides.append(0 if spot is None else array.strides[spot[0]] * spot[1])
    if 0 in shape:
        return np.empty(shape, array.dtype)
    _verify_inside(array, begin, block, side)
    # Of an array of no axes the dots keep an array.
    corner = array[(*(slice(at, None) for at in begin), ...)]
    if array.dtype.isbuiltin == 1:
        return np.lib.stride_tricks.as_strided(corner, shape, strides)
    # NumPy does not know how to describe the dtypes of others; of their bytes it does.
    octets = corner.view(f"u{array.dtype.itemsize}")
    return np.lib.stride_tricks.as_strided(octets, shape, strides).view(array.dtype)


def _verify_inside(array: Array, begin: Sequence[int], block: Block, side: int) -> None:
    """Raises where a block leaves an array: strides would lead to memory that is somebody else's.

    Raises:
        IndexError: It does, which no block of a lens should.
    """
    low, high = [*begin], [*begin]
    for step in block.steps:
        spot = step.at[side]
        if spot is not None and not step.is_turn:
            axis, stride = spot
            end = high if stride > 0 else low
            end[axis] += (step.size - 1) * stride
    for axis, size in enumerate(array.shape):
        if low[axis] < 0 or high[axis] >= size:
            reached = f"from {low[axis]} to {high[axis]}"
            raise IndexError(f"a block goes {reached} on axis {axis}, which has {size}")


# --- Inside of programs  ---


def read(value: Any, block: Block, shape: tuple[int, ...], turns: Sequence[Any]) -> Any:
    """What a block reads, in the shape of the slice that it writes.

    Args:
        value: A traced array.
        block: The block.
        shape: The shape of the array that is written.
        turns: The step of each turn; it may be traced.
    """
    source = frame(block, 0, value.shape)
    target = frame(block, 1, shape)
    # 1. What is read, an axis for each step, in the order in which the source has them.
    if source is None:
        part, order = value[_indices(block, 0, turns)], _inner(block, 0)
    else:
        part, order = _slice(value.reshape(source.dims), source, block, turns), source.steps
        part = part.reshape([block.steps[number].size for number in order])
    # 2. The same in the order of the result, with an axis of 1 for each step that reads nothing:
    # its elements stand there several times.
    wanted = _inner(block, 1) if target is None else target.steps
    shaped = [block.steps[number].size for number in wanted]
    permutation: list[int] = []
    kept: list[int] = []
    for number, size in zip(wanted, shaped, strict=True):
        if number in order:
            permutation.append(order.index(number))
        kept.append(size if number in order else 1)
    part = jnp.transpose(part, permutation)
    if len(order) < len(wanted):
        part = jnp.broadcast_to(part.reshape(kept), shaped)
    # 3. Steps that go back in the result.
    back = _back(block, wanted)
    if back:
        part = jnp.flip(part, back)
    return part.reshape(shaped if target is None else target.sizes)


def written(whole: Any, part: Any, block: Block, turns: Sequence[Any]) -> Any:
    """An array with what was read in its place."""
    target = frame(block, 1, whole.shape)
    if target is None:
        back = _back(block, _inner(block, 1))
        # What was read is in the order of elements; the indices go back.
        part = jnp.flip(part, back) if back else part
        return whole.at[_indices(block, 1, turns)].set(part)
    if target.is_whole:
        return part.reshape(whole.shape)
    starts = _starts(target, block, turns)
    framed = whole.reshape(target.dims)
    part = part.reshape(target.sizes)
    return jax.lax.dynamic_update_slice(framed, part, starts).reshape(whole.shape)


def _back(block: Block, numbers: Sequence[int]) -> list[int]:
    """Which of some steps go back in what is written, by their place among these."""
    axes: list[int] = []
    for axis, number in enumerate(numbers):
        spot = block.steps[number].at[1]
        if spot is not None and spot[1] < 0:
            axes.append(axis)
    return axes


def filled_in(whole: Any, block: Block, number: Any) -> Any:
    """An array with one value in the place of a block."""
    if block.is_empty:
        return whole
    target = frame(block, 1, whole.shape)
    shape = [block.steps[step].size for step in _inner(block, 1)]
    if target is not None:  # it has an axis of one step for each that is left out
        shape = target.sizes
    part = jnp.full(shape, number, whole.dtype)
    return written(whole, part, block, ())


def _inner(block: Block, side: int) -> tuple[int, ...]:
    """The steps of a side that are not one alone, and no turns, by number."""
    numbers: list[int] = []
    for number, step in enumerate(block.steps):
        if step.size != 1 and not step.is_turn and step.at[side] is not None:
            numbers.append(number)
    return tuple(numbers)


def _indices(block: Block, side: int, turns: Sequence[Any]) -> tuple[Any, ...]:
    """The index of every element of a side, where no frame tells them.

    One array for each axis, to index with all of them: each step has a dimension of its own in
    them, so that broadcasting adds up where the steps of one axis lead.
    """
    numbers = _inner(block, side)
    indices: list[Any] = list(block.starts[side])
    taken = iter(turns)
    for step in block.steps:
        spot = step.at[side]
        if step.is_turn:
            turn = next(taken)
            if spot is not None:
                indices[spot[0]] = indices[spot[0]] + turn * spot[1]
    for dimension, number in enumerate(numbers):
        step = block.steps[number]
        spot = step.at[side]
        assert spot is not None
        shape = [1] * len(numbers)
        shape[dimension] = step.size
        indices[spot[0]] = indices[spot[0]] + np.arange(step.size).reshape(shape) * spot[1]
    return tuple(indices)


def _slice(value: Any, target: Frame, block: Block, turns: Sequence[Any]) -> Any:
    """A frame's slice of an array that has its shape."""
    if target.is_whole:
        return value
    if any(cut.turns for cut in target.cuts):
        return jax.lax.dynamic_slice(value, _starts(target, block, turns), target.sizes)
    # Where nothing turns, XLA knows the slice when it compiles.
    starts = [cut.start for cut in target.cuts]
    ends = [cut.start + cut.size for cut in target.cuts]
    return jax.lax.slice(value, starts, ends)


def _starts(target: Frame, block: Block, turns: Sequence[Any]) -> list[Any]:
    """Where a slice starts on each axis.

    Numbers without a sign need no look at what a negative one would mean, for which jax keeps a
    program of its own.
    """
    turning = [number for number, step in enumerate(block.steps) if step.is_turn]
    taken = dict(zip(turning, turns, strict=True))
    starts: list[Any] = []
    for cut in target.cuts:
        start: Any = np.uint32(cut.start)
        for number, stride in cut.turns:
            further = taken[number] * np.uint32(abs(stride))
            start = start + further if stride > 0 else start - further
        starts.append(start)
    return starts
