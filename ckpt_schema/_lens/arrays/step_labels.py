"""Logical names of axes, which go with the steps of blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ckpt_schema._lens.arrays.axes import Clash, Labels, agreed, deal_label, merge_labels
from ckpt_schema._lens.arrays.blocks import Block, Copy, Task
from ckpt_schema._lens.arrays.frames import steps_along

__all__ = ["labelled"]


def labelled(task: Task, labels: Sequence[Labels]) -> list[Labels]:
    """The logical names of each result's axes, from those of the inputs.

    Args:
        task: What is done.
        labels: For each input: a name for each of its axes, or None.

    Returns:
        The same for each result; a `Clash` where what is copied to it is called differently.
    """
    both = zip(task.results, task.writers, strict=True)
    return [_result(len(kind.shape), copies, labels) for kind, copies in both]


def _result(rank: int, copies: Sequence[Copy], labels: Sequence[Labels]) -> Labels:
    called = dict.fromkeys(_named(copy, labels[copy.source], rank) for copy in copies)
    if not called:
        return (None,) * rank
    shared = {*_shared([copy.block for copy in copies], rank)}
    # What parts of an axis are called is no name of the axis.
    return tuple(
        None if axis in shared and isinstance(name, Clash) else name
        for axis, name in enumerate(agreed([*called]))
    )


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
        along = steps_along(block, 0, axis)
        for each, own in zip(along, deal_label(label, len(along)), strict=True):
            names[each.number] = own
    merged: list[Any] = []
    for axis in range(rank):
        along = steps_along(block, 1, axis)
        merged.append(merge_labels([None if e.is_turn else names.get(e.number) for e in along]))
    return tuple(merged)
