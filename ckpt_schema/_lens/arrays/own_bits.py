"""Leaves that still are what a lens made of a tree: that tree's own bits stand for them on the way back.

What was rounded does not come back by the inverse alone. So a leaf is held against what the other
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
from ckpt_schema._lens.arrays.blocks import Kind, Task
from ckpt_schema._lens.arrays.comparison import difference, differs
from ckpt_schema._lens.arrays.fold_tasks import (
    AnyTask,
    FoldTask,
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
    same: list[Any] = [False] * count + [True] * (len(values) - count)
    for echo in echoes:
        for at, found in _same(echo, values, pool).items():
            same[at] = found
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
    flags = _flags(task, values, likes, same)
    each = zip(owners, made, likes, flags, strict=True)
    return [_one_of(owner, *of) for owner, *of in each]


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
    told = {at for at in task.told if at < count} if isinstance(task, FoldTask) else {*range(count)}
    found: dict[int, Any] = {}
    for echo in echoes:
        found |= _same(echo, values, pool)
    return found.keys() == told and all(flag is True for flag in found.values())


def _same(echo: Echo, values: Sequence[Any], pool: Sequence[Any]) -> dict[int, Any]:
    """For inputs, by number, whether they are what the other direction makes.

    Under a trace that is traced.
    """
    given = [pool[at] for at in echo.inputs]
    every = [*given, *(values[at] for at in echo.stands if at is not None)]
    if any(leaves.is_abstract(value) or leaves.is_deleted(value) for value in every):
        return {}  # there are no bits
    is_traced = any(isinstance(value, Tracer) for value in every)
    likes = [None if at is None else values[at] for at in echo.stands]
    if not is_traced and not _is_defined(echo.task, given, likes):
        return {}
    made = run_task(echo.task, given, likes, pool)
    by_result: dict[int, Any] = {}
    for at, value in zip(echo.stands, made, strict=True):
        if at is not None and is_traced:
            pair = [jax.lax.stop_gradient(jnp.asarray(each)) for each in (values[at], value)]
            by_result[at] = ~differs(*pair).any()
        elif at is not None:
            by_result[at] = difference(values[at], value) is None
    return by_result


def _is_defined(task: AnyTask, values: Sequence[Any], likes: Sequence[Any]) -> bool:
    """Whether every value survives a task."""
    pairs = zip(values, task.inputs, strict=True)
    arrays = [leaves.materialized(value, kind.dtype) for value, kind in pairs]
    try:
        verify_tasks([checks.LeafTask(task, arrays, likes, [""] * len(arrays))])
    except ConformanceError:
        return False
    return True


def _owner(task: Task, number: int, same: Sequence[Any]) -> bool | None:
    """Whether all of a result is as it was, or nothing; None: a part is, or a trace will tell."""
    writers = task.writers[number]
    told = [same[copy.source] for copy in writers]
    if any(filling.result == number for filling in task.fillings):
        told.append(False)
    if all(each is True for each in told):
        return True
    return False if all(each is False for each in told) else None


def _flags(
    task: Task, values: Sequence[Any], likes: Sequence[Any], same: Sequence[Any]
) -> list[Any]:
    """For each result, which elements are as they were: those of inputs that are."""
    copies = [
        dataclasses.replace(copy, block=dataclasses.replace(copy.block, codec=()))
        for copies in task.writers
        for copy in copies
    ]
    kinds = [
        tuple(Kind(kind.shape, "uint8") for kind in each) for each in (task.inputs, task.results)
    ]
    flags = [_all_of(value, flag) for value, flag in zip(values, same, strict=True)]
    arrays = [like if isinstance(like, (jax.Array, np.ndarray)) else None for like in likes]
    return execution.run(Task(kinds[0], kinds[1], tuple(copies)), flags, arrays)


def _all_of(value: Any, flag: Any) -> Any:
    """One flag for each element of a leaf, where its elements are."""
    if not isinstance(flag, Tracer) and not isinstance(value, jax.Array):
        return np.full(np.shape(value), flag, "uint8")
    zeros = jnp.zeros_like(value, "uint8")
    return zeros | jnp.asarray(flag, "uint8")


def _one_of(owner: bool | None, made: Any, like: Any, flags: Any) -> Any:
    """What was made, but for the elements that are as they were."""
    if owner is not None:
        return like if owner else made
    if isinstance(made, np.ndarray):
        return np.where(flags.astype(bool), like, made)
    if isinstance(made, Tracer):
        return _chosen(made, jnp.asarray(leaves.materialized(like, str(made.dtype))), flags)
    near = [placement.near(each) for each in (made, like, flags)]
    return programs.settled(placement.placed(_CHOOSER(*near), made.sharding))


@jax.custom_jvp
def _chosen(made: Any, own: Any, flags: Any) -> Any:
    """Elements of two arrays, bit for bit."""
    pairs = zip(programs.to_bits(made), programs.to_bits(own), strict=True)
    chosen = tuple(jnp.where(flags.astype(bool), ours, theirs) for theirs, ours in pairs)
    return programs.from_bits(chosen, str(made.dtype))


@_chosen.defjvp
def _tangent(primals: tuple[Any, ...], along: tuple[Any, ...]) -> tuple[Any, Any]:
    # What is as it was depends on the argument all the same: by what is made of it.
    return _chosen(*primals), along[0]


_CHOOSER = Program(_chosen)
