"""What would be lost of values, and leaves that jax cannot take as they are: found before anything is made."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

import jax
import numpy as np

from ckpt_schema._compat import Tracer
from ckpt_schema._layouts import leaves
from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._lens.arrays import conversions, execution
from ckpt_schema._lens.arrays.blocks import Block, Check, Copy, Kind, Step, Task, all_of
from ckpt_schema._lens.arrays.comparison import difference, stray
from ckpt_schema._lens.codecs import Codec, Exact, Rounded
from ckpt_schema._trees import placement
from ckpt_schema.errors import ConformanceError, Mismatch

__all__ = ["LeafTask", "RulePaths", "deleted", "narrowed", "verify"]

_ABORTING = frozenset({"int2", "uint2"})
"""XLA's CPU backend ends the process, or writes where it must not, where it cuts or joins arrays of
these, and where it edits one that is on several devices."""


_Task = TypeVar("_Task")


@dataclasses.dataclass(frozen=True, slots=True)
class RulePaths:
    """What rules call the leaves of a task.

    Attributes:
        paths: For each input, or for each result.
        of_inputs: For which of the two. A cast is said of the view, whichever way a lens goes.
    """

    paths: tuple[LogicalPath, ...]
    of_inputs: bool

    def of(self, copy: Copy) -> str:
        """That of one side of a copy."""
        return "/".join(self.paths[copy.source if self.of_inputs else copy.result])


@dataclasses.dataclass(frozen=True, slots=True)
class LeafTask(Generic[_Task]):
    """A task, and the leaves that it is for.

    Attributes:
        task: What is done.
        values: The inputs.
        likes: What the results stand for.
        paths: The key paths of the inputs.
        said: What rules call the leaves, where that is known.
    """

    task: _Task
    values: Sequence[Any]
    likes: Sequence[Any]
    paths: Sequence[str]
    said: RulePaths | None = None


def verify(given: Sequence[LeafTask[Task]]) -> None:
    """Raises unless every leaf can be taken as it is, and every value survives.

    Raises:
        ConformanceError: With every leaf that jax cannot take, and all whose values do not fit, or
            are not known under a trace.
    """
    faults = [fault for each in given for fault in _refused(each)]
    wrong = {fault.path for fault in faults}
    for each in given:
        if wrong.isdisjoint(each.paths):
            faults += _faults(each)
    if faults:
        raise ConformanceError("values cannot be carried over exactly", faults)


def narrowed(path: str, dtype: str) -> Mismatch | None:
    """The fault where jax would make a leaf of another dtype: it has no 64-bit arrays unless told to."""
    if not leaves.is_narrowed(dtype):
        return None
    found = f"{jax.dtypes.canonicalize_dtype(dtype)}, which is what jax makes of it"
    hint = 'set jax.config.update("jax_enable_x64", True)'
    return Mismatch(path, "dtype", f"an array of {dtype}", found, hint)


# --- Leaves that jax cannot take  ---


def _refused(given: LeafTask[Task]) -> Iterator[Mismatch]:
    values, names = given.values, given.paths
    if any(map(leaves.is_abstract, values)):
        return
    faults = [
        fault for value, name in zip(values, names, strict=True) if (fault := deleted(value, name))
    ]
    faults = faults or [*_apart(values, names), *_too_wide(given)]
    dtypes = {kind.dtype for kind in given.task.inputs} & _ABORTING
    if dtypes and _ends(given):
        hint = (
            "pass NumPy arrays, or declare another dtype: "
            "XLA ends the process where it cuts, joins or reshards such"
        )
        faults.append(Mismatch(names[0], "dtype", f"no jax array of {min(dtypes)}", "one", hint))
    yield from faults


def _ends(given: LeafTask[Task]) -> bool:
    """Whether moves of arrays of two bits would end the process."""
    arrays = [value for value in given.values if isinstance(value, jax.Array)]
    divided = any(not copy.turns and _divides(copy, given.task) for copy in given.task.copies)
    spread = any(
        not isinstance(value, Tracer) and len(value.sharding.device_set) > 1 for value in arrays
    )
    return bool(arrays) and (divided or spread)


def _divides(copy: Copy, task: Task) -> bool:
    """Whether a block is part of a leaf, on either side."""
    size = math.prod(step.size for step in copy.block.steps)
    shapes = task.inputs[copy.source].shape, task.results[copy.result].shape
    return any(size < math.prod(shape) for shape in shapes)


def deleted(value: Any, name: str) -> Mismatch | None:
    """The fault of an array that is no more."""
    if not leaves.is_deleted(value):
        return None
    hint = "a step that it was donated to has used it up: pass what that step returned"
    return Mismatch(name, "deleted", "an array", "one that was deleted", hint)


def _apart(values: Sequence[Any], names: Sequence[str]) -> Iterator[Mismatch]:
    """Leaves on other devices than the first, of which one is to be made, where jax has been told to keep them there."""
    placed = [
        (name, value.sharding.device_set)
        for name, value in zip(names, values, strict=True)
        if isinstance(value, jax.Array) and not isinstance(value, Tracer) and value.committed
    ]
    for name, devices in placed:
        first, wanted = placed[0]
        if devices != wanted:
            expected = f"it on the devices of {first}, {_ids(wanted)}"
            hint = "put all of them on the same devices, by jax.device_put with one sharding"
            yield Mismatch(name, "sharding", expected, _ids(devices), hint)


def _ids(devices: set[Any]) -> str:
    """Devices as messages write them."""
    numbers = sorted(device.id for device in devices)
    return f"{next(iter(devices)).platform} {', '.join(map(str, numbers))}"


def _too_wide(given: LeafTask[Task]) -> Iterator[Mismatch]:
    """Leaves of 64 bits that jax would make narrower on the way, or where they go.

    NumPy moves its own.
    """
    for value, name, kind in zip(given.values, given.paths, given.task.inputs, strict=True):
        if isinstance(value, jax.Array) and leaves.is_narrowed(kind.dtype):
            yield from filter(None, [narrowed(name, kind.dtype)])
    if any(getattr(like, "sharding", None) is not None for like in given.likes):
        wide = {kind.dtype: None for kind in given.task.results if leaves.is_narrowed(kind.dtype)}
        yield from filter(None, (narrowed(given.paths[0], dtype) for dtype in wide))


# --- Values that would be lost  ---


def _faults(given: LeafTask[Task]) -> Iterator[Mismatch]:
    told: set[int] = set()
    for check in given.task.checks:
        if check.source not in told:
            for fault in _padding(given, check):
                told.add(check.source)
                yield fault
    changed = [copy for copy in given.task.copies if copy.block.codec]
    alike = _alike(given.task) if changed else set[int]()
    seen: set[tuple[int, Codec, _Region | None]] = set()
    for copy in changed:
        if copy.source in told or copy.block.is_empty:
            continue
        is_alike = copy.source in alike
        key = copy.source, copy.block.codec, None if is_alike else _region(copy)
        if key not in seen:
            seen.add(key)
            for fault in _changed(given, copy, is_part=not is_alike):
                told.add(copy.source)
                yield fault
    if not told:
        for result in dict.fromkeys(copy.result for copy in given.task.copies if copy.compares):
            yield from _unlike(given, result)


_Region = tuple[tuple[int, ...], tuple[tuple[int, int, int, int | None], ...]]
"""What a copy reads: where it starts, and for each step the size, the axis, how far it goes, and which one is taken."""


def _region(copy: Copy) -> _Region:
    taken = iter(copy.turns)
    steps: list[tuple[int, int, int, int | None]] = []
    for step in copy.block.steps:
        turn = next(taken) if step.is_turn else None
        if step.at[0] is not None:
            steps.append((step.size, *step.at[0], turn))
    return copy.block.starts[0], tuple(steps)


def _alike(task: Task) -> set[int]:
    """The leaves all of whose elements are read, and with one codec."""
    codecs: dict[int, set[Codec]] = {}
    regions: dict[int, set[_Region]] = {}
    for copy in task.copies:
        codecs.setdefault(copy.source, set()).add(copy.block.codec)
        regions.setdefault(copy.source, set()).add(_region(copy))
    equal: set[int] = set()
    for source, several in regions.items():
        count = sum(_count(region) for region in several)
        whole = math.prod(task.inputs[source].stored)
        if len(codecs[source]) == 1 and count == whole:
            equal.add(source)
    return equal


def _count(region: _Region) -> int:
    """How many elements it has."""
    return math.prod(size for size, _, _, turn in region[1] if turn is None)


def _padding(given: LeafTask[Task], check: Check) -> Iterator[Mismatch]:
    """The first element of a padding that is no fill."""
    value, path = given.values[check.source], given.paths[check.source]
    axis, start = _end_of_axis(check)
    where = f"axis {axis}, from {start} on"
    expected = f"{check.fill} in the padding of {where}"
    if leaves.is_abstract(value) or 0 in value.shape:
        return
    if isinstance(value, Tracer):
        hint = f"cutting off the padding of {where} is checked by value: translate outside of jit"
        yield Mismatch(path, "unpad", expected, "a tracer", hint)
        return
    near = placement.near(value)
    differs = _stray(near, check, axis, start, given.task)
    if differs is not None:
        hint = "values there would be lost: declare the padded size, or another fill="
        yield Mismatch(path, "unpad", expected, f"{differs[1]} at [{differs[0]}] of it", hint)


def _stray(value: Any, check: Check, axis: int, start: int, task: Task) -> Any:
    shape = task.inputs[check.source].stored
    sizes = [1] * len(shape)
    for step in check.block.steps:
        if step.at[0] is not None:
            sizes[step.at[0][0]] *= step.size
    plain = [*shape]
    plain[axis] -= start
    if sizes == plain:  # nothing is sliced: an axis that is sharded need not divide there
        return stray(value, check.fill, axis, start)
    return stray(_read(value, check.block, task, check.source), check.fill, 0, 0)


def _end_of_axis(check: Check) -> tuple[int, int]:
    """The axis that is padded, and from where on."""
    begins = check.block.starts[0]
    axis = next((at for at, begin in enumerate(begins) if begin), 0)
    return axis, begins[axis]


def _changed(given: LeafTask[Task], copy: Copy, *, is_part: bool) -> Iterator[Mismatch]:
    """What a codec would change in a leaf, or in the part of it that is read."""
    value, path = given.values[copy.source], given.paths[copy.source]
    codec = copy.block.codec
    casts = [word.view for word in codec if isinstance(word, (Exact, Rounded))]
    if not isinstance(value, (np.ndarray, np.generic)):
        wide = next(filter(None, (narrowed(path, dtype) for dtype in casts)), None)
        if wide is not None:
            yield wide
            return
    if leaves.is_abstract(value) or (not leaves.is_scalar(value) and 0 in value.shape):
        return
    first = codec[0]
    kind = "scale"
    if isinstance(first, (Exact, Rounded)) and first.source != first.view:
        kind = "cast"
    wanted = conversions.expected(codec)
    if isinstance(value, Tracer):
        if conversions.is_checked(codec):
            said = ", ".join(map(str, codec))
            hint = f"{said} is checked by value: translate outside of jit"
            yield Mismatch(path, kind, wanted, "a tracer", hint)
        return
    if leaves.is_scalar(value):
        value = leaves.materialized(value, given.task.inputs[copy.source].dtype)
    near = placement.near(value)
    if is_part:
        block = dataclasses.replace(copy.block, codec=())
        near = _read(near, block, given.task, copy.source, copy.turns)
    said = None if given.said is None else given.said.of(copy)
    lost = conversions.lost(near, codec, said)
    if lost is not None:
        yield Mismatch(path, kind, wanted, *lost)


def _read(value: Any, block: Block, task: Task, source: int, turns: Sequence[int] = ()) -> Any:
    """What a block reads of a concrete leaf, by itself."""
    steps: list[Step] = []
    shape: list[int] = []
    for step in block.steps:
        if step.is_turn:
            steps.append(Step(step.size, (step.at[0], None), is_turn=True))
        elif step.at[0] is not None:
            steps.append(Step(step.size, (step.at[0], (len(shape), 1))))
            shape.append(step.size)
    alone = Block((block.starts[0], (0,) * len(shape)), tuple(steps))
    kind = task.inputs[source]
    if kind.dtype.startswith("key<"):
        shape = shape[:-1]
    made = dataclasses.replace(kind, shape=tuple(shape))
    inner = Task((kind,), (made,), (Copy(0, 0, alone, tuple(turns)),))
    return execution.run(inner, [value], [None])[0]


def _unlike(given: LeafTask[Task], result: int) -> Iterator[Mismatch]:
    """Where what is compared is not what other copies write there.

    What is compared may be another part of the result than any one copy writes: it is written over
    the result, which has to stay as it is.
    """
    copies = [copy for copy in given.task.copies if copy.result == result]
    writers = [copy for copy in copies if not copy.compares]
    compared = [copy for copy in copies if copy.compares and not copy.block.is_empty]
    if not writers or not compared:
        return
    values = [given.values[copy.source] for copy in (*writers, *compared)]
    if any(map(leaves.is_abstract, values)):
        return
    if any(isinstance(value, Tracer) for value in values):
        for copy in compared:
            first = given.paths[_writer(copy, writers).source]
            hint = "copies are verified by value: translate outside of jit"
            yield Mismatch(given.paths[copy.source], "tie", f"what {first} has", "a tracer", hint)
        return
    made = _made(given, result, writers)
    for copy in compared:
        unlike = difference(made, _written_over(made, given, copy))
        if unlike is not None:
            place, here, there = unlike
            said = [f"{here} in {given.paths[_writer(copy, writers).source]}"]
            said += filter(None, (_at(given, each, place, here) for each in writers))
            own = _at(given, copy, place, there) or there
            hint = "copies of one leaf are equal to the last bit: make them so"
            yield Mismatch(given.paths[copy.source], "tie", said[-1], own, hint)


def _writer(copy: Copy, writers: Sequence[Copy]) -> Copy:
    """The copy that writes what another one compares; the first one where several do."""
    for each in writers:
        if each.block.starts[1] == copy.block.starts[1] and each.turns == copy.turns:
            return each
    return writers[0]


def _at(given: LeafTask[Task], copy: Copy, place: str, value: str) -> str | None:
    """A value with where it stands in what a copy reads.

    None if the copy has no such element, or reads keys.
    """
    kind = given.task.inputs[copy.source]
    if kind.shape != kind.stored:
        return None
    counted, made = (Kind(each.shape, "int64") for each in (kind, given.task.results[copy.result]))
    # Each element by its number, from 1 on: what is not written keeps 0.
    numbers = np.arange(1, math.prod(kind.shape) + 1).reshape(kind.shape)
    plain = dataclasses.replace(copy.block, codec=())
    task = Task(
        (made, counted),
        (made,),
        (
            Copy(0, 0, all_of(made.stored)),
            dataclasses.replace(copy, source=1, result=0, block=plain, compares=False),
        ),
    )
    written = execution.run(task, [np.zeros(made.shape, "int64"), numbers], [None])[0]
    number = int(written[tuple(map(int, place.split()))])
    if not number:
        return None
    spot = " ".join(map(str, np.unravel_index(number - 1, kind.shape)))
    return f"{value} at [{spot}] of {given.paths[copy.source]}"


def _made(given: LeafTask[Task], result: int, writers: Sequence[Copy]) -> Any:
    """One result of a task."""
    task = given.task
    fillings = [
        dataclasses.replace(each, result=0) for each in task.fillings if each.result == result
    ]
    copies = tuple(dataclasses.replace(copy, result=0) for copy in writers)
    alone = Task(task.inputs, (task.results[result],), copies, tuple(fillings))
    return execution.run(alone, [placement.near(each) for each in given.values], [None])[0]


def _written_over(made: Any, given: LeafTask[Task], copy: Copy) -> Any:
    """A result with what is compared with it in its place."""
    kind = given.task.results[copy.result]
    other = dataclasses.replace(copy, source=1, result=0, compares=False)
    copies = Copy(0, 0, all_of(kind.stored)), other
    task = Task((kind, given.task.inputs[copy.source]), (kind,), copies)
    return execution.run(task, [made, placement.near(given.values[copy.source])], [None])[0]
