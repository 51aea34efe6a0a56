"""Leaves that still are what a lens made of a tree: that tree's own bits stand for them on the way back.

A plan that knows a tree which results go onto calls this in the place of `run_task`. What was
rounded does not come back by the inverse alone. So a leaf is held against what the other
direction makes of the tree that the result goes onto, bit for bit. It is looked at as a whole: of a
leaf in which one element is another one, all elements are made anew. Element by element, what a
model was initialized with would stay wherever it happens to round to what a checkpoint holds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ckpt_schema._compat import Tracer
from ckpt_schema._layouts import leaves
from ckpt_schema._lens.arrays import checks, execution, programs
from ckpt_schema._lens.arrays.blocks import Copy, Kind, Task
from ckpt_schema._lens.arrays.comparison import difference
from ckpt_schema._lens.arrays.fold_tasks import (
    AnyTask,
    FoldTask,
    equal_in_trace,
    folded_through,
    run_task,
    verify_tasks,
)
from ckpt_schema._trees import placement
from ckpt_schema._trees.jitted import Program
from ckpt_schema.errors import ConformanceError

__all__ = ["Echo", "stays", "with_own_bits"]


@dataclasses.dataclass(frozen=True, slots=True)
class Echo:
    """What the other direction makes of a tree that results go onto.

    Attributes:
        task: What it does.
        inputs: Where the leaves are that it reads.
        stands: For each leaf that it makes, the number of the input that this stands beside, or None.
    """

    task: AnyTask
    inputs: tuple[int, ...]
    stands: tuple[int | None, ...]


def with_own_bits(
    task: AnyTask,
    echoes: Sequence[Echo],
    values: Sequence[Any],
    likes: Sequence[Any],
    pool: Sequence[Any],
    count: int,
) -> list[Any]:
    """What a task makes, with the own bits of the leaves that results stand for.

    Args:
        task: What is done.
        echoes: What the other direction makes of those leaves.
        values: The inputs.
        likes: For each result, the leaf it stands for.
        pool: The leaves of both trees.
        count: How many inputs are of the tree that is translated; the others are such leaves.
    """
    # For each input, whether it still is what the other direction makes: True, False, or a tracer.
    same: list[Any] = [False] * count + [True] * (len(values) - count)
    for echo in echoes:
        for number, is_same in _same(echo, values, pool).items():
            same[number] = is_same
    if isinstance(task, Task):
        return _own_or_made(task, same, values, likes, pool)
    inner, flags = task.inner, task.of_wholes(same)

    def through(wholes: Sequence[Any], goals: Sequence[Any]) -> list[Any]:
        return _own_or_made(inner, flags, wholes, goals, pool)

    return folded_through(task, values, likes, through)


def _own_or_made(
    task: Task,
    same: Sequence[Any],
    values: Sequence[Any],
    likes: Sequence[Any],
    pool: Sequence[Any],
) -> list[Any]:
    """What a task makes, with the own bits of what is made of inputs that are the same."""
    owners = [_owner(task, number, same) for number in range(len(task.results))]
    if all(owner is True for owner in owners):
        return list(likes)
    made = execution.run(task, values, likes, pool)
    if all(owner is False for owner in owners):
        return made
    # A stack of which some layers are the same: each element is asked for.
    results: list[Any] = []
    elements = _flags(task, values, likes, same)
    for owner, value, like, flags in zip(owners, made, likes, elements, strict=True):
        results.append(_one_of(owner, value, like, flags))
    return results


def stays(
    task: AnyTask,
    echoes: Sequence[Echo],
    values: Sequence[Any],
    pool: Sequence[Any],
    count: int,
) -> bool:
    """Whether all inputs still are what the other direction makes, so that no value is made anew.

    Args:
        task: What is done.
        echoes: What the other direction makes of the leaves that results stand for.
        values: The inputs.
        pool: The leaves of both trees.
        count: How many inputs are of the tree that is translated.
    """
    made_there = task.told if isinstance(task, FoldTask) else range(count)
    wanted = {number for number in made_there if number < count}
    same: dict[int, Any] = {}
    for echo in echoes:
        same |= _same(echo, values, pool)
    return same.keys() == wanted and all(flag is True for flag in same.values())


def _same(echo: Echo, values: Sequence[Any], pool: Sequence[Any]) -> dict[int, Any]:
    """For inputs, by number, whether they are what the other direction makes.

    Under a trace that is traced; nothing is said where one of the leaves is abstract or deleted.
    """
    given = [pool[number] for number in echo.inputs]
    likes = [None if number is None else values[number] for number in echo.stands]
    is_traced = False
    for value in (*given, *likes):
        if value is None:  # of a leaf that stands beside no input
            continue
        if leaves.is_abstract(value) or leaves.is_deleted(value):
            return {}  # there are no bits
        is_traced = is_traced or isinstance(value, Tracer)
    # The other direction may refuse these values, which only says that nothing came of them.
    if not is_traced and not _is_defined(echo.task, given, likes):
        return {}
    made = run_task(echo.task, given, likes, pool)
    same: dict[int, Any] = {}
    for number, value in zip(echo.stands, made, strict=True):
        if number is None:
            continue
        if is_traced:
            same[number] = equal_in_trace(values[number], value)
        else:
            same[number] = difference(values[number], value) is None
    return same


def _is_defined(task: AnyTask, values: Sequence[Any], likes: Sequence[Any]) -> bool:
    """Whether every value survives a task."""
    arrays: list[Any] = []
    for value, kind in zip(values, task.inputs, strict=True):
        arrays.append(leaves.materialized(value, kind.dtype))
    try:
        # Nobody reads these faults: the leaves need no names.
        verify_tasks([checks.LeafTask(task, arrays, likes, [""] * len(arrays))])
    except ConformanceError:
        return False
    return True


def _owner(task: Task, number: int, same: Sequence[Any]) -> bool | None:
    """Whether all of a result is as it was, or nothing; None: a part is, or a trace will tell."""
    flags = [same[copy.source] for copy in task.writers[number]]
    # What is filled in is written anew, whatever stands there.
    if any(filling.result == number for filling in task.fillings):
        flags.append(False)
    if all(flag is True for flag in flags):
        return True
    if all(flag is False for flag in flags):
        return False
    return None


def _flags(
    task: Task, values: Sequence[Any], likes: Sequence[Any], same: Sequence[Any]
) -> list[Any]:
    """For each result, which elements are as they were: those of inputs that are.

    The same task moves ones and zeros in the place of the values, which no codec is to touch.
    """
    copies: list[Copy] = []
    for writers in task.writers:
        for copy in writers:
            plain = dataclasses.replace(copy.block, codec=())
            copies.append(dataclasses.replace(copy, block=plain))
    inputs = tuple(Kind(kind.shape, "uint8") for kind in task.inputs)
    results = tuple(Kind(kind.shape, "uint8") for kind in task.results)
    flags = [_all_of(value, flag) for value, flag in zip(values, same, strict=True)]
    arrays = [like if isinstance(like, (jax.Array, np.ndarray)) else None for like in likes]
    return execution.run(Task(inputs, results, tuple(copies)), flags, arrays)


def _all_of(value: Any, flag: Any) -> Any:
    """One flag for each element of a leaf, where its elements are."""
    if not isinstance(flag, Tracer) and not isinstance(value, jax.Array):
        return np.full(np.shape(value), flag, "uint8")
    zeros = jnp.zeros_like(value, "uint8")
    return zeros | jnp.asarray(flag, "uint8")


def _one_of(owner: bool | None, made: Any, like: Any, flags: Any) -> Any:
    """What was made, but for the elements that are as they were.

    Args:
        owner: True where all of them are, False where none is, None where flags tell.
        made: What was made.
        like: The leaf that it stands for.
        flags: 1 for each element that is as it was.
    """
    if owner is not None:
        return like if owner else made
    if isinstance(made, np.ndarray):
        return np.where(flags.astype(bool), like, made)
    if isinstance(made, Tracer):
        return _chosen(made, jnp.asarray(leaves.materialized(like, str(made.dtype))), flags)
    near = [placement.near(value) for value in (made, like, flags)]
    return programs.settled(placement.placed(_CHOOSER(*near), made.sharding))


@jax.custom_jvp
def _chosen(made: Any, own: Any, flags: Any) -> Any:
    """Elements of two arrays, bit for bit."""
    stays_own = flags.astype(bool)
    chosen: list[Any] = []
    for theirs, ours in zip(programs.to_bits(made), programs.to_bits(own), strict=True):
        chosen.append(jnp.where(stays_own, ours, theirs))
    return programs.from_bits(tuple(chosen), str(made.dtype))


@_chosen.defjvp
def _tangent(primals: tuple[Any, ...], along: tuple[Any, ...]) -> tuple[Any, Any]:
    # What is as it was depends on the argument all the same: by what is made of it.
    return _chosen(*primals), along[0]


_CHOOSER = Program(_chosen)
