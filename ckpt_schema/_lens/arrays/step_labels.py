"""Logical names of axes, which go with the steps of blocks.

A kernel whose axes are called ``("embed", "heads", "head_dim")`` becomes one that is called
``("embed", ("heads", "head_dim"))`` where a lens merges the last two. A plan asks this once, and
hands the names to what boxes leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    by_result: list[Labels] = []
    for kind, copies in zip(task.results, task.writers, strict=True):
        by_result.append(_result(len(kind.shape), copies, labels))
    return by_result


def _result(rank: int, copies: Sequence[Copy], labels: Sequence[Labels]) -> Labels:
    # All layers of a stack mostly say the same.
    called = dict.fromkeys(_named(copy, labels[copy.source], rank) for copy in copies)
    if not called:
        return (None,) * rank
    shared = _shared([copy.block for copy in copies], rank)
    names: list[Any] = []
    for axis, name in enumerate(agreed([*called])):
        # What parts of an axis are called is no name of the axis.
        is_of_parts = axis in shared and isinstance(name, Clash)
        names.append(None if is_of_parts else name)
    return tuple(names)


def _shared(blocks: Sequence[Block], rank: int) -> set[int]:
    """The axes of a result that blocks have one after the other."""
    axes: set[int] = set()
    for axis in range(rank):
        if len({block.starts[1][axis] for block in blocks}) > 1:
            axes.add(axis)
    return axes


def _named(copy: Copy, labels: Labels, rank: int) -> Labels:
    """What the axes of a result are called, by what is copied to it."""
    names: dict[int, Any] = {}  # of each step, by number
    for axis, label in enumerate(labels):
        along = steps_along(copy.block, 0, axis)
        for step, name in zip(along, deal_label(label, len(along)), strict=True):
            names[step.number] = name
    merged: list[Any] = []
    for axis in range(rank):
        factors: list[Any] = []
        for step in steps_along(copy.block, 1, axis):
            # Layers have no name of their own that an axis of the stack could bear.
            factors.append(None if step.is_turn else names.get(step.number))
        merged.append(merge_labels(factors))
    return tuple(merged)
