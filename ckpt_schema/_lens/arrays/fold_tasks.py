"""Tasks whose leaves stand for several: what is computed of those is made first, or taken apart last.

Between the two a task is what it always is. What is computed, the whole, is held only as long as
the leaves that are made of it.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ckpt_schema._compat import Tracer
from ckpt_schema._layouts import leaves
from ckpt_schema._lens.arrays import checks, execution
from ckpt_schema._lens.arrays.blocks import Kind, Task
from ckpt_schema._lens.arrays.checks import LeafTask
from ckpt_schema._lens.arrays.comparison import difference, differs
from ckpt_schema._lens.arrays.fold_arithmetic import InfiniteError, unfolded_parts, whole_of
from ckpt_schema._lens.fold_rules import FoldKind
from ckpt_schema.errors import ConformanceError, Mismatch

__all__ = [
    "AnyTask",
    "FoldTask",
    "Gathered",
    "TakenApart",
    "folded_through",
    "run_task",
    "untold_parts",
    "verify_tasks",
]


@dataclasses.dataclass(frozen=True, slots=True)
class Gathered:
    """An input of the task within: a leaf, or what is computed of several.

    Attributes:
        places: The numbers of the leaves among the inputs.
        kind: What is computed of them; None of one leaf, which is taken as it is.
    """

    places: tuple[int, ...]
    kind: FoldKind | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class TakenApart:
    """A result of the task within: a leaf, or the whole of several.

    Attributes:
        results: The numbers of the leaves that are made of it among the results.
        kind: What was computed; None of one leaf, which is taken as it is.
        kinds: What each of all the parts is.
        own: Where each of these stands among the inputs, as it is in the tree that results go onto.
        spare: What a part is by default that this tree does not have.
        where: The key path of the first part, for messages.
        cure: What to do where nobody says what becomes of the parts; nothing where that is said.
    """

    results: tuple[int, ...]
    kind: FoldKind | None = None
    kinds: tuple[Kind, ...] = ()
    own: tuple[int | None, ...] = ()
    spare: tuple[leaves.Fill | None, ...] = ()
    where: str = ""
    cure: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class FoldTask:
    """A task, some of whose inputs or results stand for several leaves.

    Attributes:
        inner: What is done between.
        inputs: What is read.
        results: What is made.
        before: What each input of the task within is made of.
        after: What is made of each of its results.
        moves: Whether the task within makes of one leaf that leaf as it is.
    """

    inner: Task
    inputs: tuple[Kind, ...]
    results: tuple[Kind, ...]
    before: tuple[Gathered, ...]
    after: tuple[TakenApart, ...]
    moves: bool = False

    @property
    def told(self) -> frozenset[int]:
        """The inputs that the other direction makes, by number; others are private there."""
        found: set[int] = set()
        for each in self.before:
            found.update(each.places[: 1 if each.kind is None else each.kind.made])
        return frozenset(found)

    def of_wholes(self, flags: Sequence[Any]) -> list[Any]:
        """For each input of the task within, whether all hold that is said of its leaves; that may be traced."""
        found: list[Any] = []
        for each in self.before:
            places = each.places[: 1 if each.kind is None else each.kind.made]
            found.append(functools.reduce(operator.and_, [flags[at] for at in places]))
        return found


AnyTask = Task | FoldTask


def run_task(
    task: AnyTask, values: Sequence[Any], likes: Sequence[Any], beside: Sequence[Any] = ()
) -> list[Any]:
    """What a task makes; see `execution.run`.

    Raises:
        ConformanceError: As `verify_tasks` does.
    """
    if isinstance(task, Task):
        return execution.run(task, values, likes, beside)

    def inner(wholes: Sequence[Any], goals: Sequence[Any]) -> list[Any]:
        if task.moves:
            return [execution.as_like(wholes[0], goals[0])]
        return execution.run(task.inner, wholes, goals, beside)

    return folded_through(task, values, likes, inner)


def folded_through(
    task: FoldTask,
    values: Sequence[Any],
    likes: Sequence[Any],
    inner: Callable[[Sequence[Any], Sequence[Any]], list[Any]],
) -> list[Any]:
    """What a task makes, by something else than the task within.

    Args:
        task: What is done.
        values: The inputs.
        likes: For each result, the leaf it stands for.
        inner: Makes the results within of the inputs within, and of what stands in their place.
    """
    wholes = [_gathered(each, task, values) for each in task.before]
    owns = [_own_whole(each, values) for each in task.after]
    goals = [
        likes[each.results[0]] if own is None else own
        for each, own in zip(task.after, owns, strict=True)
    ]
    results: list[Any] = [None] * len(task.results)
    for each, whole, own in zip(task.after, inner(wholes, goals), owns, strict=True):
        parts = _taken_apart(each, whole, own, values, likes)
        for number, part in zip(each.results, parts, strict=True):
            results[number] = part
    return results


def _gathered(each: Gathered, task: FoldTask, values: Sequence[Any]) -> Any:
    if each.kind is None:
        return values[each.places[0]]
    parts = [values[at] for at in each.places]
    return whole_of(each.kind, parts, [task.inputs[at] for at in each.places])


def _own_whole(each: TakenApart, values: Sequence[Any]) -> Any:
    """What is computed of the parts that the tree has which results go onto."""
    parts = [None if at is None else values[at] for at in each.own]
    is_there = all(
        p is not None and not leaves.is_abstract(p) and not leaves.is_deleted(p) for p in parts
    )
    if each.kind is None or not is_there:
        return None
    try:
        return whole_of(each.kind, parts, each.kinds)
    except InfiniteError:
        return None  # nothing was made of it


def _taken_apart(
    each: TakenApart, whole: Any, own: Any, values: Sequence[Any], likes: Sequence[Any]
) -> list[Any]:
    """The leaves that are made of a whole: those that are there, where it is what was computed of them.

    Raises:
        ConformanceError: Nobody says what they are.
    """
    if each.kind is None:
        return [whole]
    goals = [likes[number] for number in each.results]
    same = _is_same(whole, own)
    if same is True:
        return [values[at] for at in each.own[: len(goals)] if at is not None]
    if leaves.is_abstract(whole):
        return [_abstract_part(whole, each, number, like) for number, like in enumerate(goals)]
    if each.cure:
        fault = untold_parts(each.where, each.cure, is_traced=isinstance(same, Tracer))
        raise ConformanceError("what is computed of several does not tell its parts", [fault])
    made = unfolded_parts(each.kind, whole, _others(each, values), each.kinds)
    if isinstance(same, Tracer):
        mine = [values[at] for at in each.own[: len(goals)] if at is not None]
        return [jnp.where(same, ours, theirs) for ours, theirs in zip(mine, made, strict=True)]
    if isinstance(whole, Tracer):
        return made
    return [execution.as_like(part, like) for part, like in zip(made, goals, strict=True)]


def untold_parts(where: str, cure: str, *, is_traced: bool = False) -> Mismatch:
    """The fault of a whole that does not tell its parts.

    Args:
        where: The key path of the first of them.
        cure: What to do.
        is_traced: Whether it may be what was computed, but is not known yet.
    """
    expected = "a rule that says what becomes of the parts of what was computed"
    found = "none, and a tracer: it may be the whole that was" if is_traced else "none"
    return Mismatch(where, "rule", expected, found, cure)


def _abstract_part(whole: Any, each: TakenApart, number: int, like: Any) -> Any:
    kind = each.kinds[number]
    sharding = getattr(whole, "sharding", None) if number == 0 else None
    part = jax.ShapeDtypeStruct(kind.shape, leaves.dtype_of(kind.dtype), sharding=sharding)
    return execution.as_like(part, like)


def _others(each: TakenApart, values: Sequence[Any]) -> list[Any]:
    """The parts that are not made: what is there, or what they are by default."""
    assert each.kind is not None
    found: list[Any] = []
    for at, spare, kind in [*zip(each.own, each.spare, each.kinds, strict=True)][each.kind.made :]:
        if at is not None:
            found.append(values[at])
        else:
            assert spare is not None
            found.append(np.full(kind.shape, spare.value, leaves.dtype_of(kind.dtype)))
    return found


def _is_same(one: Any, other: Any) -> Any:
    """Whether two leaves are equal to the last bit; under a trace that is traced, and what is not there is not."""
    if one is other:
        return True
    if other is None or leaves.is_abstract(one):
        return False
    if isinstance(one, Tracer) or isinstance(other, Tracer):
        pair = [jax.lax.stop_gradient(jnp.asarray(each)) for each in (one, other)]
        return ~differs(*pair).any()
    return difference(one, other) is None


# --- What would be lost  ---


def verify_tasks(given: Sequence[LeafTask[AnyTask]]) -> None:
    """Raises unless every leaf can be taken as it is, and every value survives; see `checks.verify`.

    What is computed of several leaves is computed for it once more.

    Raises:
        ConformanceError: With every fault.
    """
    faults: list[Mismatch] = []
    plain: list[LeafTask[Task]] = []
    for each in given:
        task = each.task
        if isinstance(task, Task):
            plain.append(LeafTask(task, each.values, each.likes, each.paths, each.said))
        else:
            faults += _faults(task, each)
    try:
        checks.verify(plain)
    except ConformanceError as error:
        raise ConformanceError(error.header, [*error.mismatches, *faults]) from error
    if faults:
        raise ConformanceError("values cannot be carried over exactly", faults)


def _faults(task: FoldTask, given: LeafTask[AnyTask]) -> list[Mismatch]:
    pairs = zip(given.values, given.paths, strict=True)
    lost = [fault for value, name in pairs if (fault := checks.deleted(value, name)) is not None]
    if lost:
        return lost
    faults: list[Mismatch] = []
    wholes: list[Any] = []
    for each in task.before:
        try:
            wholes.append(_gathered(each, task, given.values))
        except InfiniteError:
            faults.append(_infinite(given.paths[each.places[0]]))
    if faults:
        return faults
    names = [given.paths[each.places[0]] for each in task.before]
    likes = [given.likes[each.results[0]] for each in task.after]
    try:
        checks.verify([LeafTask(task.inner, wholes, likes, names)])
    except ConformanceError as error:
        return list(error.mismatches)
    return [*_untold(task, given, wholes)]


def _untold(task: FoldTask, given: LeafTask[AnyTask], wholes: Sequence[Any]) -> Iterator[Mismatch]:
    """What is wrong with wholes that are to be taken apart."""
    if not any(each.kind for each in task.after):
        return
    owns = [_own_whole(each, given.values) for each in task.after]
    made = [wholes[0]] if task.moves else execution.run(task.inner, wholes, owns)
    for each, whole, own in zip(task.after, made, owns, strict=True):
        try:
            _taken_apart(each, whole, own, given.values, given.likes)
        except ConformanceError as error:
            yield from error.mismatches
        except InfiniteError:
            yield _infinite(each.where)


def _infinite(where: str) -> Mismatch:
    hint = "parts that are not computed with keep their values: give each a place of its own"
    return Mismatch(where, "value", "a finite number", "one that is none", hint)
