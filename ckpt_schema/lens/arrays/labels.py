"""Logical names of axes, which go with the steps of blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ckpt_schema.lens.arrays.axes import Clash, Labels, deal_label, merge_labels
from ckpt_schema.lens.blocks import Block, Copy, Task

__all__ = ["labelled"]


def labelled(task: Task, labels: Sequence[Labels]) -> list[Labels]:
    """The logical names of each result's axes, from those of the inputs.

    Args:
        task: What is done.
        labels: For each input: a name for each of its axes, or None.

    Returns:
        The same for each result; a `Clash` where what is copied to it is called differently.
    """
    return [_result(task, number, labels) for number in range(len(task.results))]


def _result(task: Task, number: int, labels: Sequence[Labels]) -> Labels:
    rank = len(task.results[number].shape)
    copies = [copy for copy in task.copies if copy.result == number and not copy.compares]
    called = {_named(copy, labels[copy.source], rank): copy for copy in copies}
    if not called:
        return (None,) * rank
    shared = {*_shared([copy.block for copy in copies], rank)}
    names: list[Any] = []
    for axis, column in enumerate(zip(*called, strict=True)):
        several = tuple(dict.fromkeys(column))
        if len(several) == 1:
            names.append(several[0])
        else:  # what parts of an axis are called is no name of the axis
            names.append(None if axis in shared else Clash(several))
    return tuple(names)


def _shared(blocks: Sequence[Block], rank: int) -> Iterator[int]:
    """The axes of a result that blocks have one after the other."""
    for axis in range(rank):
        if len({block.starts[1][axis] for block in blocks}) > 1:
            yield axis


def _named(copy: Copy, labels: Labels, rank: int) -> Labels:
    """What the axes of a result are called, by what is copied to it."""
    block = copy.block
    names: dict[int, Any] = {}
    for axis, label in enumerate(labels):
        along = _along(block, 0, axis)
        for number, own in zip(along, deal_label(label, len(along)), strict=True):
            names[number] = own
    found: list[Any] = []
    for axis in range(rank):
        own = [None if block.steps[n].is_turn else names.get(n) for n in _along(block, 1, axis)]
        found.append(merge_labels(own))
    return tuple(found)


def _along(block: Block, side: int, axis: int) -> list[int]:
    """The steps of a side along an axis, the widest first."""
    found: list[tuple[int, int]] = []
    for number, step in enumerate(block.steps):
        spot = step.at[side]
        if spot is not None and spot[0] == axis:
            found.append((abs(spot[1]), number))
    return [number for _, number in sorted(found, key=lambda each: -each[0])]
