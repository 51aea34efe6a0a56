"""Tasks carried out on real leaves: jax arrays by programs, NumPy arrays, tracers, abstract values.

A program that has every layer among its results compiles the longer, the more there are. Here a
stack is taken apart by one small program that is told which layer to read, and put together by one
that writes a layer into its place. What is read is freed as soon as it is written: no more than
twice the bytes of what is made is held besides the inputs.

This is the last step of a translation: a plan has said which `Task` makes which leaves, `checks` has
let the values pass, and `run` makes the results.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ckpt_schema._compat import Tracer
from ckpt_schema._layouts import leaves
from ckpt_schema._lens.arrays import moves, programs, shardings
from ckpt_schema._lens.arrays.blocks import Block, Copy, Filling, Kind, Task
from ckpt_schema._lens.arrays.conversions import converted, linear
from ckpt_schema._lens.arrays.frames import frame
from ckpt_schema._lens.arrays.programs import KnownShardings
from ckpt_schema._lens.arrays.shardings import on_devices
from ckpt_schema._lens.codecs import Codec
from ckpt_schema._trees import placement

__all__ = ["as_like", "run"]

_AT_ONCE = 8
"""So many blocks without turns are put together by one program; more are written one after the other."""


def run(
    task: Task, values: Sequence[Any], likes: Sequence[Any], beside: Sequence[Any] = ()
) -> list[Any]:
    """What a task makes.

    Args:
        task: What is done.
        values: The inputs.
        likes: For each result, the leaf it stands for in the tree it goes onto, or None. A result
            takes its sharding, and becomes a Python number where it is one.
        beside: The leaves of the same tree. Where several hosts have a part in them, a Python
            number becomes an array that is on all of their mesh.

    Returns:
        The results: abstract where an input is, sharded as the blocks map the inputs' shardings
        where ``likes`` doesn't say.
    """
    inputs: list[Any] = []
    for value, kind in zip(values, task.inputs, strict=True):
        inputs.append(_array(value, kind.dtype, beside) if leaves.is_scalar(value) else value)
    # One abstract input makes all results so, and a tracer is stronger than an array.
    if any(leaves.is_abstract(value) for value in inputs):
        results = _abstract(task, inputs)
    elif any(isinstance(value, Tracer) for value in inputs):
        return _traced(task, inputs)
    elif not any(isinstance(value, jax.Array) for value in inputs):
        number = all(map(leaves.is_scalar, values))
        results = [_on_host(made, number=number) for made in _by_numpy(task, inputs)]
    else:
        results = _by_programs(task, _on_one_mesh(inputs))
    return [as_like(result, like) for result, like in zip(results, likes, strict=True)]


def _array(value: complex, dtype: str, beside: Sequence[Any]) -> Any:
    """A Python number as an array."""
    # Every host has to have the same array, where several take part.
    mesh = shardings.mesh_of(beside) if jax.process_count() > 1 else None
    if mesh is None or leaves.is_narrowed(dtype):
        return leaves.materialized(value, dtype)
    array = np.asarray(value, jnp.dtype(dtype))
    return placement.placed(array, NamedSharding(mesh, PartitionSpec()))


def _on_one_mesh(values: Sequence[Any]) -> list[Any]:
    """Leaves beside those on an explicit mesh are put on all of it, if nobody said where: no program takes both."""
    named = [sharding for sharding in map(_sharding, values) if isinstance(sharding, NamedSharding)]
    if not named or len(named) == len(values) or AxisType.Explicit not in named[0].mesh.axis_types:
        return list(values)
    whole = NamedSharding(named[0].mesh, PartitionSpec())
    placed: list[Any] = []
    for value in values:
        is_there = isinstance(_sharding(value), NamedSharding)
        placed.append(value if is_there else placement.placed(value, whole))
    return placed


def _sharding(value: Any) -> Any:
    """How a leaf is sharded; nothing of NumPy's arrays."""
    return getattr(value, "sharding", None)


def _on_host(result: Any, *, number: bool) -> Any:
    """What NumPy made.

    Of a number, an array of jax's as every number becomes, where jax has such.
    """
    if isinstance(result, jax.Array):  # NumPy has no keys
        return result
    return jnp.asarray(result) if number and not leaves.is_narrowed(result.dtype) else result


def as_like(result: Any, like: Any) -> Any:
    """A result where the leaf is that it stands for, and of its kind: a Python number, NumPy's array, jax's."""
    if leaves.is_abstract(result):
        target = _sharding(like)
        if leaves.is_scalar(like) or isinstance(like, (np.generic, np.ndarray)):
            # What it stands for is on no device.
            return jax.ShapeDtypeStruct(result.shape, result.dtype)
        if target is None:
            return result
        return jax.ShapeDtypeStruct(result.shape, result.dtype, sharding=target)
    if leaves.is_scalar(like):
        return type(like)(result)
    if isinstance(like, np.generic):
        return placement.gathered(result)[()]
    if isinstance(like, np.ndarray):
        return placement.gathered(result)
    target = on_devices(_sharding(like))
    if target is None or (isinstance(result, jax.Array) and result.sharding == target):
        return result
    return programs.settled(placement.placed(result, target))


def _abstract(task: Task, values: Sequence[Any]) -> list[jax.ShapeDtypeStruct]:
    # Where the inputs do not tell how they are sharded, the results do not either.
    known = shardings.results(task, values) or [None] * len(task.results)
    results: list[jax.ShapeDtypeStruct] = []
    for kind, sharding in zip(task.results, known, strict=True):
        dtype = leaves.dtype_of(kind.dtype)
        results.append(jax.ShapeDtypeStruct(kind.shape, dtype, sharding=sharding))
    return results


# --- NumPy  ---


def _by_numpy(task: Task, values: Sequence[Any]) -> list[Any]:
    given = [np.asarray(value) for value in values]
    results: list[Any] = []
    for kind, copies, fillings in zip(task.results, task.writers, _fillings(task), strict=True):
        results.append(_made_by_numpy(kind, copies, fillings, given))
    return results


def _fillings(task: Task) -> list[list[Filling]]:
    """What is filled in of each result.

    Programs are told by what they fill in, but not by which of many layers that is.
    """
    by_result: list[list[Filling]] = [[] for _ in task.results]
    for filling in task.fillings:
        by_result[filling.result].append(dataclasses.replace(filling, result=0))
    return by_result


def _made_by_numpy(
    kind: Kind, copies: Sequence[Copy], fillings: Sequence[Filling], given: Sequence[Any]
) -> Any:
    """One result of NumPy arrays, written block by block."""
    is_key = kind.dtype.startswith("key<")  # which NumPy does not have: its words are moved
    dtype = programs.of_bits(kind.dtype)[0] if is_key else jnp.dtype(kind.dtype)
    made: Any = np.zeros(kind.stored, dtype)
    for filling in fillings:
        moves.filled(made, filling.block, programs.number_of(filling.bits, dtype))
    for copy in copies:
        change = functools.partial(_changed, codec=copy.block.codec)
        moves.copied(given[copy.source], made, copy.block, copy.turns, change)
    if is_key:
        return jax.random.wrap_key_data(jnp.asarray(made), impl=leaves.key_impl(kind.dtype))
    return made


def _changed(part: Any, codec: Codec) -> Any:
    """What a block reads of a NumPy array, each element changed."""
    if not codec:
        return part  # a view: nothing is copied but to the result
    return converted(np.ascontiguousarray(part), codec).reshape(part.shape)


# --- Inside of a trace  ---


def _traced(task: Task, values: Sequence[Any]) -> list[Any]:
    fillings = _fillings(task)

    def made(*given: Any) -> list[Any]:
        results: list[Any] = []
        for kind, copies, filled in zip(task.results, task.writers, fillings, strict=True):
            results.append(_differentiable(task, kind, copies, filled, given))
        return results

    # Of a tracer, its type tells how it is sharded: on an explicit mesh, where that counts.
    known = [jax.typeof(value) if isinstance(value, Tracer) else value for value in values]
    wanted: list[NamedSharding] = []
    for sharding in shardings.results(task, known):
        if isinstance(sharding, NamedSharding) and AxisType.Explicit in sharding.mesh.axis_types:
            wanted.append(sharding)
    return programs.known_shardings(made, wanted)(*values) if wanted else made(*values)


def _differentiable(
    task: Task, kind: Kind, copies: Sequence[Copy], fillings: Sequence[Filling], given: Any
) -> Any:
    """One result, with derivatives: an integer has none, but what moves floats is linear."""
    blocks = [(copy.source, copy.block, copy.turns) for copy in copies]

    def made(*values: Any) -> Any:
        bits = [programs.to_bits(value) for value in values]
        parts = programs.put_together(blocks, task.inputs, fillings, kind, bits)
        return programs.from_bits(parts, kind.dtype)

    # Keys and integers have no derivative, so that there is nothing to say of them.
    is_inexact = all(
        leaves.is_typed_key(value) or jnp.issubdtype(value.dtype, jnp.inexact) for value in given
    )
    if not is_inexact or kind.dtype.startswith("key<"):
        return made(*given)
    # What is moved are bits, through which jax sees no derivative: it is given besides.
    moved = jax.custom_jvp(made)

    def tangents(primals: tuple[Any, ...], along: tuple[Any, ...]) -> tuple[Any, Any]:
        return moved(*primals), _tangent(kind, copies, along)

    moved.defjvp(tangents)
    return moved(*given)


def _tangent(kind: Kind, copies: Sequence[Copy], along: Sequence[Any]) -> Any:
    """What becomes of a derivative: it moves as the values do, and padding does not depend on anything."""
    made = jnp.zeros(kind.shape, jnp.dtype(kind.dtype))
    for copy in copies:
        if copy.block.is_empty:
            continue
        piece = moves.read(along[copy.source], copy.block, kind.shape, copy.turns)
        piece = linear(piece, copy.block.codec)
        made = moves.written(made, piece, copy.block, copy.turns)
    return made


# --- jax arrays  ---


def _by_programs(task: Task, values: Sequence[Any]) -> list[Any]:
    """The results, in the memory that the inputs were in."""
    held = [placement.near(value) for value in values]
    if all(near is value for near, value in zip(held, values, strict=True)):
        return _made(task, held)
    # Programs run on the device's memory; from the host's, leaves came and go back.
    targets = shardings.results(task, values)
    made = _made(task, held)
    if not targets:
        return made
    return [placement.placed(x, target) for x, target in zip(made, targets, strict=True)]


def _made(task: Task, held: list[Any]) -> list[Any]:
    # The list is given away: what it lets go of is freed.
    work = _Work(task, held)
    return [work.result(number) for number in range(len(task.results))]


class _Work:
    """A task on arrays; each is let go when the last result that needs it is made.

    Attributes:
        task: What is done.
        held: The inputs, by number; None of one that nothing needs any more.
        to: For each result, how it is to be sharded; `()` where nothing is said.
        spread: How inputs are to be sharded before they are read, by number; each once.
        writers: For each result, the copies that write it.
        fillings: For each result, what is filled in.
        uses: How often each input will be needed yet.
    """

    def __init__(self, task: Task, held: list[Any]) -> None:
        self.task, self.held = task, held
        self.to: list[KnownShardings] = []
        for sharding in shardings.results(task, held):
            self.to.append((sharding,) if isinstance(sharding, NamedSharding) else ())
        if not self.to:
            self.to = [()] * len(task.results)
        self.spread = self._off_turns()
        self.writers: list[list[Copy]] = []
        for copies in task.writers:
            self.writers.append([copy for copy in copies if not copy.block.is_empty])
        self.fillings = _fillings(task)
        self.uses = [0] * len(held)
        for copies in self.writers:
            for copy in copies:
                self.uses[copy.source] += 1
            # A result that reads nothing takes its devices from the first input.
            if not copies:
                self.uses[0] += 1

    def _off_turns(self) -> dict[int, NamedSharding]:
        """Inputs that are sharded on an axis which turns run along: how else they are to be.

        Each slice would be gathered from all devices: once, other axes take its place.
        """
        axes: dict[int, set[int]] = {}
        for copy in self.task.copies:
            for axis in _turned(copy):
                axes.setdefault(copy.source, set()).add(axis)
        spread: dict[int, NamedSharding] = {}
        for source, several in axes.items():
            sharding = shardings.off_axes(self.held[source], several)
            if sharding is not None:
                spread[source] = sharding
        return spread

    def value(self, source: int) -> Any:
        """An input, sharded as it is read best."""
        if source in self.spread:
            to = self.spread.pop(source)
            kind = self.task.inputs[source]
            known = _known([self.held[source]])
            handed = programs.spread(known, (to,), kind.dtype)(self.held[source])
            self.held[source] = _taken(handed, kind, (to,))
        return self.held[source]

    def used(self, source: int) -> None:
        """Lets an input go that was needed for the last time."""
        self.uses[source] -= 1
        if not self.uses[source]:
            self.held[source] = None

    def result(self, number: int) -> Any:
        """One result."""
        kind, to = self.task.results[number], self.to[number]
        copies, fillings = self.writers[number], tuple(self.fillings[number])
        if not copies:
            # Nothing is read, but the devices are told by something.
            handed = programs.begun(kind, fillings, to)(self.value(0))
            self.used(0)
            return _taken(handed, kind, to)
        if len(copies) == 1 and not fillings and _is_read(copies[0].block, kind.stored):
            return self._read(copies[0], kind, to)
        # A program that puts together is compiled for each set of turns: layers do not share it.
        if len(copies) <= _AT_ONCE and not any(copy.turns for copy in copies):
            return self._at_once(copies, fillings, kind, to)
        return self._one_by_one(copies, fillings, kind, to)

    def _read(self, copy: Copy, kind: Kind, to: KnownShardings) -> Any:
        """A result that is one block of one input: a layer that is taken out of a stack."""
        value = self.value(copy.source)
        kinds = self.task.inputs[copy.source], kind
        made = programs.read(copy.block, kinds, _known([value]), to, handed=False)
        part = made(value, *map(np.uint32, copy.turns))
        self.used(copy.source)
        return part

    def _at_once(self, copies: list[Copy], fillings: Any, kind: Kind, to: KnownShardings) -> Any:
        """A result of a few blocks, by one program: a kernel of query, key and value."""
        needed = list(dict.fromkeys(copy.source for copy in copies))
        values = [self.value(source) for source in needed]
        # The program knows only the inputs that it needs, by their place among these.
        blocks = tuple((needed.index(copy.source), copy.block, copy.turns) for copy in copies)
        kinds = tuple(self.task.inputs[source] for source in needed)
        handed = programs.assembled(blocks, kinds, fillings, kind, _known(values), to)(*values)
        for copy in copies:
            self.used(copy.source)
        return _taken(handed, kind, to)

    def _one_by_one(self, copies: list[Copy], fillings: Any, kind: Kind, to: KnownShardings) -> Any:
        """A result of many blocks, each written into its place: a stack of a hundred layers."""
        first = self.value(copies[0].source)
        whole = programs.begun(kind, fillings, to)(first)
        # A name would keep the array alive when `used` lets go of it: the bound on memory needs both.
        del first
        shape = kind.stored
        for copy in copies:
            value = self.value(copy.source)
            inner = tuple(shardings.of_slice(sharding, copy.block, shape) for sharding in to)
            kinds = self.task.inputs[copy.source], kind
            turns = [*map(np.uint32, copy.turns)]
            piece = value
            if not _is_slice(copy, kinds, value, inner):
                known = _known([value])
                piece = programs.read(copy.block, kinds, known, inner, handed=True)(value, *turns)
            del value
            self.used(copy.source)
            whole = programs.write(copy.block, to)(whole, piece, *turns)
            del piece
        return _taken(whole, kind, to)


def _is_slice(copy: Copy, kinds: tuple[Kind, Kind], value: Any, inner: KnownShardings) -> bool:
    """Whether a leaf is written as it is: nothing is cut, turned or changed, and it is sharded as it is to be."""
    block = copy.block
    if kinds[0].dtype != kinds[1].dtype or block.codec:
        return False
    if programs.is_handed_as_bits(kinds[1].dtype):
        return False
    read = frame(block, 0, kinds[0].shape)
    written = frame(block, 1, kinds[1].shape)
    if read is None or written is None or not read.is_whole or read.steps != written.steps:
        return False
    # A step back turns the order of elements: what is read is not what is written.
    for number in written.steps:
        spot = block.steps[number].at[1]
        if spot is not None and spot[1] < 0:
            return False
    if not inner:
        return True
    # The axes of the slice but those that turns run along, which the leaf does not have.
    kept = [axis for axis, cut in enumerate(written.cuts) if not cut.turns]
    if len(kept) != value.ndim:
        return False
    return shardings.equivalent(value, shardings.of_axes(inner[0], kept))


def _is_read(block: Block, shape: tuple[int, ...]) -> bool:
    """Whether one program makes all of a leaf, its floats included.

    Where XLA does not optimize, it takes a narrow float that is written several times for a wider
    one, even if it is only bits until then.
    """
    repeats = any(step.at[0] is None and not step.is_turn for step in block.steps)
    return block.count == math.prod(shape) and not repeats


def _taken(handed: Any, kind: Kind, to: KnownShardings) -> Any:
    """The leaf that stands for what a program has handed on."""
    if not programs.is_handed_as_bits(kind.dtype):
        return handed
    return programs.taken(kind.dtype, to)(handed)


def _turned(copy: Copy) -> Iterator[int]:
    """The axes of what is read that turns run along."""
    for step in copy.block.steps:
        if step.is_turn and step.at[0] is not None:
            yield step.at[0][0]


def _known(values: Sequence[Any]) -> KnownShardings:
    """How the leaves are sharded, if all of them are over one mesh."""
    known: list[NamedSharding] = []
    for sharding in map(_sharding, values):
        if not isinstance(sharding, NamedSharding):
            return ()
        if known and sharding.mesh != known[0].mesh:
            return ()
        known.append(sharding)
    return tuple(known)
