"""Tasks whose leaves stand for several: what is computed of those is made first, or taken apart last.

Between the two a task is what it always is. What is computed, the whole, is held only as long as
the leaves that are made of it::

    base, a, b  --Gathered-->  whole  --inner Task-->  whole  --TakenApart-->  base, a, b

A plan makes such tasks of the rules `total`, `dequantize` and `lora`; `fold_arithmetic` computes.
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
from ckpt_schema._trees import placement
from ckpt_schema.errors import ConformanceError, Mismatch

__all__ = [
    "AnyTask",
    "FoldTask",
    "Gathered",
    "TakenApart",
    "equal_in_trace",
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

    @property
    def returning(self) -> tuple[int, ...]:
        """Those of the leaves that the way back makes: of a sum, the first."""
        return self.places[: 1 if self.kind is None else self.kind.made]


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
        numbers: set[int] = set()
        for gathered in self.before:
            numbers.update(gathered.returning)
        return frozenset(numbers)

    def of_wholes(self, flags: Sequence[Any]) -> list[Any]:
        """For each input of the task within, whether all hold that is said of its leaves; that may be traced."""
        by_whole: list[Any] = []
        for gathered in self.before:
            of_parts = [flags[number] for number in gathered.returning]
            # `and` would ask for the value of a tracer.
            by_whole.append(functools.reduce(operator.and_, of_parts))
        return by_whole


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
    wholes = [_gathered(gathered, task, values) for gathered in task.before]
    owns: list[Any] = []
    goals: list[Any] = []
    for apart in task.after:
        # A whole goes where the whole is of the tree that results go onto, if that has all parts.
        own = _own_whole(apart, values)
        owns.append(own)
        goals.append(likes[apart.results[0]] if own is None else own)
    results: list[Any] = [None] * len(task.results)
    for apart, whole, own in zip(task.after, inner(wholes, goals), owns, strict=True):
        parts = _taken_apart(apart, whole, own, values, likes)
        for number, part in zip(apart.results, parts, strict=True):
            results[number] = part
    return results


def _gathered(gathered: Gathered, task: FoldTask, values: Sequence[Any]) -> Any:
    """An input of the task within."""
    if gathered.kind is None:
        return values[gathered.places[0]]
    parts: list[Any] = []
    kinds: list[Kind] = []
    for number in gathered.places:
        parts.append(values[number])
        kinds.append(task.inputs[number])
    return whole_of(gathered.kind, parts, kinds)


def _own_whole(apart: TakenApart, values: Sequence[Any]) -> Any:
    """What is computed of the parts that the tree has which results go onto; None where one is not there."""
    if apart.kind is None:
        return None
    parts: list[Any] = []
    for number in apart.own:
        part = None if number is None else values[number]
        if part is None or leaves.is_abstract(part) or leaves.is_deleted(part):
            return None
        parts.append(part)
    try:
        return whole_of(apart.kind, parts, apart.kinds)
    except InfiniteError:
        return None  # nothing was made of it


def _taken_apart(
    apart: TakenApart, whole: Any, own: Any, values: Sequence[Any], likes: Sequence[Any]
) -> list[Any]:
    """The leaves that are made of a whole: those that are there, where it is what was computed of them.

    Raises:
        ConformanceError: Nobody says what they are.
    """
    if apart.kind is None:
        return [whole]
    goals = [likes[number] for number in apart.results]
    mine = [values[number] for number in apart.own[: len(goals)] if number is not None]
    # Nobody has changed the whole: its parts stay, though no arithmetic would give them back.
    same = _is_same(whole, own)
    if same is True:
        return mine
    if leaves.is_abstract(whole):
        return [_abstract_part(whole, apart, number, like) for number, like in enumerate(goals)]
    if apart.cure:
        fault = untold_parts(apart.where, apart.cure, is_traced=isinstance(same, Tracer))
        raise ConformanceError("what is computed of several does not tell its parts", [fault])
    made = unfolded_parts(apart.kind, whole, _others(apart, values), apart.kinds)
    # Under a trace the question has no answer yet: the program decides.
    if isinstance(same, Tracer):
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


def _abstract_part(whole: Any, apart: TakenApart, number: int, like: Any) -> Any:
    kind = apart.kinds[number]
    # The first part has the axes of the whole; scales and narrow factors have others.
    sharding = getattr(whole, "sharding", None) if number == 0 else None
    # Numbers may be sharded where the words that they stand in do not divide.
    if sharding is not None and not placement.divides(sharding, kind.shape):
        sharding = None
    part = jax.ShapeDtypeStruct(kind.shape, leaves.dtype_of(kind.dtype), sharding=sharding)
    return execution.as_like(part, like)


def _others(apart: TakenApart, values: Sequence[Any]) -> list[Any]:
    """The parts that are not made: what is there, or what they are by default."""
    assert apart.kind is not None
    others: list[Any] = []
    for part in range(apart.kind.made, len(apart.kinds)):
        number, spare, kind = apart.own[part], apart.spare[part], apart.kinds[part]
        if number is not None:
            others.append(values[number])
        else:
            assert spare is not None
            others.append(np.full(kind.shape, spare.value, leaves.dtype_of(kind.dtype)))
    return others


def _is_same(whole: Any, own: Any) -> Any:
    """Whether two leaves are equal to the last bit; under a trace that is traced, and what is not there is not."""
    if whole is own:
        return True
    if own is None or leaves.is_abstract(whole):
        return False
    if isinstance(whole, Tracer) or isinstance(own, Tracer):
        return equal_in_trace(whole, own)
    return difference(whole, own) is None


def equal_in_trace(first: Any, second: Any) -> Any:
    """Whether two leaves are equal to the last bit, traced. No derivative goes through the question."""
    a = jax.lax.stop_gradient(jnp.asarray(first))
    b = jax.lax.stop_gradient(jnp.asarray(second))
    return ~differs(a, b).any()


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
    """What would be lost on the way in, in the task within, and on the way out: the first of these."""
    faults: list[Mismatch] = []
    for value, path in zip(given.values, given.paths, strict=True):
        fault = checks.deleted(value, path)
        if fault is not None:
            faults.append(fault)
    if faults:
        return faults
    wholes: list[Any] = []
    for gathered in task.before:
        try:
            wholes.append(_gathered(gathered, task, given.values))
        except InfiniteError as error:
            faults.append(_infinite(given.paths[gathered.places[error.part]], error))
    if faults:
        return faults
    # A whole has no key path: messages call it by its first part.
    names = [given.paths[gathered.places[0]] for gathered in task.before]
    likes = [given.likes[apart.results[0]] for apart in task.after]
    try:
        checks.verify([LeafTask(task.inner, wholes, likes, names)])
    except ConformanceError as error:
        return list(error.mismatches)
    return [*_untold(task, given, wholes)]


def _untold(task: FoldTask, given: LeafTask[AnyTask], wholes: Sequence[Any]) -> Iterator[Mismatch]:
    """What is wrong with wholes that are to be taken apart."""
    if not any(apart.kind for apart in task.after):
        return
    # Whether a whole can be taken apart shows when it is: the parts are dropped again.
    owns = [_own_whole(apart, given.values) for apart in task.after]
    made = [wholes[0]] if task.moves else execution.run(task.inner, wholes, owns)
    for apart, whole, own in zip(task.after, made, owns, strict=True):
        try:
            _taken_apart(apart, whole, own, given.values, given.likes)
        except ConformanceError as error:
            yield from error.mismatches
        except InfiniteError as error:
            yield _infinite(apart.where, error)


def _infinite(where: str, error: InfiniteError) -> Mismatch:
    return Mismatch(where, "value", "a finite number", error.found, error.hint)
