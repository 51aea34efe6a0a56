"""What would be lost of values, and leaves that jax cannot take as they are: found before anything is made.

`verify` stands before `execution` in the flow: it gets every task of a plan with its real leaves,
and raises with all faults of all of them, or lets them pass. Three kinds of faults are looked for:
leaves that jax cannot take, elements that a cast or a cut would lose, and copies that are not equal.
"""

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
from ckpt_schema._lens.arrays.blocks import (
    Block,
    Check,
    Copy,
    Filling,
    Kind,
    Step,
    Task,
    all_of,
)
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
    faults: list[Mismatch] = []
    for each in given:
        faults += _refused(each)
    # Values are not read of a leaf that is refused: jax could not take it for that either.
    refused = {fault.path for fault in faults}
    for each in given:
        if refused.isdisjoint(each.paths):
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
    """The faults of leaves that jax cannot take, whatever their values are."""
    values, names = given.values, given.paths
    if any(map(leaves.is_abstract, values)):
        return
    faults: list[Mismatch] = []
    for value, name in zip(values, names, strict=True):
        fault = deleted(value, name)
        if fault is not None:
            faults.append(fault)
    # A deleted array tells neither its devices nor its values.
    if not faults:
        faults = [*_apart(values, names), *_too_wide(given)]
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
    if not arrays:
        return False  # NumPy moves them, a byte each
    for copy in given.task.copies:
        if not copy.turns and _divides(copy, given.task):
            return True
    # A tracer does not tell its devices.
    placed = [array for array in arrays if not isinstance(array, Tracer)]
    return any(len(array.sharding.device_set) > 1 for array in placed)


def _divides(copy: Copy, task: Task) -> bool:
    """Whether a block is part of a leaf, on either side."""
    size = math.prod(step.size for step in copy.block.steps)
    read = math.prod(task.inputs[copy.source].shape)
    written = math.prod(task.results[copy.result].shape)
    return size < read or size < written


def deleted(value: Any, name: str) -> Mismatch | None:
    """The fault of an array that is no more."""
    if not leaves.is_deleted(value):
        return None
    hint = "a step that it was donated to has used it up: pass what that step returned"
    return Mismatch(name, "deleted", "an array", "one that was deleted", hint)


def _apart(values: Sequence[Any], names: Sequence[str]) -> Iterator[Mismatch]:
    """Leaves on other devices than the first, of which one is to be made, where jax has been told to keep them there."""
    first, wanted = "", None
    for value, name in zip(values, names, strict=True):
        # jax moves an array by itself that is not committed, and NumPy's.
        if not isinstance(value, jax.Array) or isinstance(value, Tracer) or not value.committed:
            continue
        devices = value.sharding.device_set
        if wanted is None:
            first, wanted = name, devices
        elif devices != wanted:
            expected = f"it on the devices of {first}, {_ids(wanted)}"
            hint = "put all of them on the same devices, by jax.device_put with one sharding"
            yield Mismatch(name, "sharding", expected, _ids(devices), hint)


def _ids(devices: set[Any]) -> str:
    """Devices as messages write them: ``cpu 0, 1``."""
    numbers = sorted(device.id for device in devices)
    return f"{next(iter(devices)).platform} {', '.join(map(str, numbers))}"


def _too_wide(given: LeafTask[Task]) -> Iterator[Mismatch]:
    """Leaves of 64 bits that jax would make narrower on the way, or where they go.

    NumPy moves its own.
    """
    for value, name, kind in zip(given.values, given.paths, given.task.inputs, strict=True):
        if isinstance(value, jax.Array):
            fault = narrowed(name, kind.dtype)
            if fault is not None:
                yield fault
    # What has a sharding becomes an array of jax's, whatever it is made of.
    if not any(getattr(like, "sharding", None) is not None for like in given.likes):
        return
    for dtype in dict.fromkeys(kind.dtype for kind in given.task.results):
        fault = narrowed(given.paths[0], dtype)
        if fault is not None:
            yield fault


# --- Values that would be lost  ---


def _faults(given: LeafTask[Task]) -> Iterator[Mismatch]:
    """The faults of values: of each input no more than those of the first look that finds one."""
    faulty: set[int] = set()  # inputs, by number
    for check in given.task.checks:
        if check.source not in faulty:
            for fault in _padding(given, check):
                faulty.add(check.source)
                yield fault
    changing = [copy for copy in given.task.copies if copy.block.codec]
    alike = _alike(given.task) if changing else set[int]()
    seen: set[tuple[int, Codec, _Region | None]] = set()
    for copy in changing:
        if copy.source in faulty or copy.block.is_empty:
            continue
        # A leaf that is read as a whole, in whatever parts, is looked at once, without cutting it.
        is_alike = copy.source in alike
        key = copy.source, copy.block.codec, None if is_alike else _region(copy)
        if key not in seen:
            seen.add(key)
            for fault in _changed(given, copy, is_part=not is_alike):
                faulty.add(copy.source)
                yield fault
    # Copies are compared last: each is read with its codec, which has to lose nothing.
    if not faulty:
        for result in dict.fromkeys(copy.result for copy in given.task.copies if copy.compares):
            yield from _unlike(given, result)


_Region = tuple[tuple[int, ...], tuple[tuple[int, int, int, int | None], ...]]
"""What a copy reads: where it starts, and for each step the size, the axis, how far it goes, and which one is taken.

Layer 2 of a stack ``float32[6 512]`` is ``((0, 0), ((6, 0, 1, 2), (512, 1, 1, None)))``.
"""


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
    alike: set[int] = set()
    for source, several in regions.items():
        # Cells of a leaf do not overlap: to see that all of it is read, counting is enough.
        count = sum(_count(region) for region in several)
        whole = math.prod(task.inputs[source].stored)
        if len(codecs[source]) == 1 and count == whole:
            alike.add(source)
    return alike


def _count(region: _Region) -> int:
    """How many elements it has."""
    count = 1
    for size, _, _, turn in region[1]:
        if turn is None:
            count *= size
    return count


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
    for axis, begin in enumerate(begins):
        if begin:
            return axis, begin
    return 0, begins[0]


def _changed(given: LeafTask[Task], copy: Copy, *, is_part: bool) -> Iterator[Mismatch]:
    """What a codec would change in a leaf, or in the part of it that is read."""
    value, path = given.values[copy.source], given.paths[copy.source]
    codec = copy.block.codec
    if not isinstance(value, (np.ndarray, np.generic)):
        for word in codec:
            wide = narrowed(path, word.view) if isinstance(word, (Exact, Rounded)) else None
            if wide is not None:
                yield wide
                return
    if leaves.is_abstract(value) or (not leaves.is_scalar(value) and 0 in value.shape):
        return
    first = codec[0]
    is_cast = isinstance(first, (Exact, Rounded)) and first.source != first.view
    kind = "cast" if is_cast else "scale"
    wanted = conversions.expected(codec)
    if isinstance(value, Tracer):
        if conversions.is_checked(codec):
            words = ", ".join(map(str, codec))
            hint = f"{words} is checked by value: translate outside of jit"
            yield Mismatch(path, kind, wanted, "a tracer", hint)
        return
    if leaves.is_scalar(value):
        value = leaves.materialized(value, given.task.inputs[copy.source].dtype)
    near = placement.near(value)
    if is_part:
        block = dataclasses.replace(copy.block, codec=())
        near = _read(near, block, given.task, copy.source, copy.turns)
    name = None if given.said is None else given.said.of(copy)
    lost = conversions.lost(near, codec, name)
    if lost is not None:
        yield Mismatch(path, kind, wanted, *lost)


def _read(value: Any, block: Block, task: Task, source: int, turns: Sequence[int] = ()) -> Any:
    """What a block reads of a concrete leaf, by itself: an array with one axis for each step.

    Steps that read nothing, which write the same elements again, are left out.
    """
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
    # Blocks count the words of keys as an axis, and shapes do not.
    if kind.dtype.startswith("key<"):
        shape = shape[:-1]
    part = dataclasses.replace(kind, shape=tuple(shape))
    inner = Task((kind,), (part,), (Copy(0, 0, alone, tuple(turns)),))
    return execution.run(inner, [value], [None])[0]


def _unlike(given: LeafTask[Task], result: int) -> Iterator[Mismatch]:
    """Where what is compared is not what other copies write there.

    What is compared may be another part of the result than any one copy writes: it is written over
    the result, which has to stay as it is.
    """
    writers: list[Copy] = []
    compared: list[Copy] = []
    for copy in given.task.copies:
        if copy.result == result and not copy.compares:
            writers.append(copy)
        elif copy.result == result and not copy.block.is_empty:
            compared.append(copy)
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
        if unlike is None:
            continue
        place, here, there = unlike
        expected = f"{here} in {given.paths[_writer(copy, writers).source]}"
        # The last writer has the say of an element that several write.
        for writer in writers:
            expected = _at(given, writer, place, here) or expected
        found = _at(given, copy, place, there) or there
        hint = "copies of one leaf are equal to the last bit: make them so"
        yield Mismatch(given.paths[copy.source], "tie", expected, found, hint)


def _writer(copy: Copy, writers: Sequence[Copy]) -> Copy:
    """The copy that writes what another one compares; the first one where several do."""
    for each in writers:
        if each.block.starts[1] == copy.block.starts[1] and each.turns == copy.turns:
            return each
    return writers[0]


def _at(given: LeafTask[Task], copy: Copy, place: str, value: str) -> str | None:
    """A value with where it stands in what a copy reads: ``0.5 (0x3f000000) at [2 0] of params/kernel``.

    None if the copy has no such element, or reads keys.

    Args:
        given: The task, with its leaves.
        copy: One of its copies.
        place: The index of an element of the result.
        value: What stands there, as messages write it.
    """
    kind = given.task.inputs[copy.source]
    if kind.shape != kind.stored:
        return None
    # The same copy is run on the numbers of the elements, from 1 on: what it does not write keeps 0.
    counted = Kind(kind.shape, "int64")
    result = Kind(given.task.results[copy.result].shape, "int64")
    numbers = np.arange(1, math.prod(kind.shape) + 1).reshape(kind.shape)
    plain = dataclasses.replace(copy.block, codec=())
    zeros_first = Copy(0, 0, all_of(result.stored))
    over_them = dataclasses.replace(copy, source=1, result=0, block=plain, compares=False)
    task = Task((result, counted), (result,), (zeros_first, over_them))
    written = execution.run(task, [np.zeros(result.shape, "int64"), numbers], [None])[0]
    number = int(written[tuple(map(int, place.split()))])
    if not number:
        return None
    spot = " ".join(map(str, np.unravel_index(number - 1, kind.shape)))
    return f"{value} at [{spot}] of {given.paths[copy.source]}"


def _made(given: LeafTask[Task], result: int, writers: Sequence[Copy]) -> Any:
    """One result of a task."""
    task = given.task
    # In the task that makes this result alone, it has the number 0.
    fillings: list[Filling] = []
    for filling in task.fillings:
        if filling.result == result:
            fillings.append(dataclasses.replace(filling, result=0))
    copies = tuple(dataclasses.replace(copy, result=0) for copy in writers)
    alone = Task(task.inputs, (task.results[result],), copies, tuple(fillings))
    return execution.run(alone, [placement.near(value) for value in given.values], [None])[0]


def _written_over(made: Any, given: LeafTask[Task], copy: Copy) -> Any:
    """A result with what is compared with it in its place."""
    kind = given.task.results[copy.result]
    other = dataclasses.replace(copy, source=1, result=0, compares=False)
    copies = Copy(0, 0, all_of(kind.stored)), other
    task = Task((kind, given.task.inputs[copy.source]), (kind,), copies)
    return execution.run(task, [made, placement.near(given.values[copy.source])], [None])[0]
