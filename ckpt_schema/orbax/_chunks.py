"""How arrays are cut into chunks on disk, for those who will read them.

A chunk is read whole. Orbax makes one of each shard that it saves, so that a reader whose shards
lie otherwise reads more than it holds. Orbax cuts chunks by two words for each leaf, the bytes that
a chunk may have and axes that are cut first. What these make of a leaf is worked out here, to find
the words that serve the reader best.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import logging
import math
import os
from collections.abc import Generator, Iterator, Mapping
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec, Sharding
from orbax.checkpoint import v1 as ocp

from ckpt_schema._frameworks import boxes, variables
from ckpt_schema._layouts import leaves, paths
from ckpt_schema._layouts.table import Slot
from ckpt_schema._lens.lens import Lens
from ckpt_schema._lens.read_sides import made_abstract
from ckpt_schema._trees.containers import Tree, flatten, verify_readable
from ckpt_schema._trees.slots import SlotFinder
from ckpt_schema.errors import ConformanceError, Mismatch
from ckpt_schema.orbax._contexts import directories_first
from ckpt_schema.orbax._sides import Side, toward
from ckpt_schema.orbax._targets import abstracted, declared, goals, verify_even
from ckpt_schema.orbax._whereabouts import keys_named

__all__ = ["Chunking", "Chunkings", "chunkings_for", "shards_read", "written_in"]

Shape = tuple[int, ...]

_FLOOR = 2**10
"""The bytes of the smallest chunk that is made."""

_ENTRY = 80
"""About how many bytes a chunk takes in the index of an array, of which a reader reads the whole."""

_ENOUGH = 1.1
"""What a reader may read, as a ratio to what it holds: beyond that larger chunks are better."""


@dataclasses.dataclass(frozen=True, slots=True)
class Chunking:
    """What Orbax is told of how to cut a leaf.

    Attributes:
        bytes: How many bytes a chunk may have.
        axes: Axes of which a chunk has one element.
        chunk: What it makes of this.
    """

    bytes: int
    axes: Shape
    chunk: Shape


Chunkings = Mapping[int, Chunking]
"""How leaves are to be cut, by the identity of each. Those that are not named are cut as they were sharded."""


# --- who reads  ---


def shards_read(read_as: Any, state: Any, lens: Lens, side: Side | None) -> dict[Slot, Shape]:
    """The shape of what a device of the reader holds of each leaf of the source, by slot.

    Args:
        read_as: A mesh; or a target of either side, or shardings by leaf.
        state: What is saved.
        lens: The lens that it is saved through, whose source is written.
        side: The side that it is on, if that was said.

    Raises:
        ConformanceError: The target is on neither side, or has no shardings, or such that cannot be.
    """
    told = None
    if isinstance(read_as, (Mesh, AbstractMesh)):
        target, told = _on_mesh(variables.state_of(state), read_as), side
    elif _is_of_shardings(read_as):
        target, told = _with_shardings(variables.state_of(state), read_as), side
    else:
        target = made_abstract(read_as)
    verify_readable(target)
    target = goals(declared(variables.state_of(target), lens))
    turned, match = toward(target, lens, "read_as", told, "side")
    goal = abstracted(target, turned, match)
    placed = zip(flatten(target).keys, jax.tree.leaves(goal), strict=True)
    verify_even("read_as cannot be on its devices", placed)
    # A target of the source's own side was matched already, whatever containers it has.
    if turned.view is lens.source:
        flat, slots = jax.tree.leaves(goal), match.slots
    else:
        made = boxes.unboxed(turned.put(goal))
        flat, slots = jax.tree.leaves(made), lens.matchers[0].match(made).slots
    shards: dict[Slot, Shape] = {}
    for slot, position in slots.items():
        leaf = flat[position]
        if isinstance(getattr(leaf, "sharding", None), Sharding):
            shards[slot] = tuple(leaf.sharding.shard_shape(leaf.shape))
    if not shards:
        hint = "a function tells shapes alone: give a mesh, or what it makes with shardings"
        fault = Mismatch("read_as", "argument", "shardings", "none on any leaf", hint)
        raise ConformanceError("read_as does not say how the checkpoint will be read", [fault])
    return shards


def _on_mesh(state: Tree, mesh: Any) -> Tree:
    """The state without values, sharded over another mesh by the same specs.

    Raises:
        ConformanceError: With every leaf whose spec names an axis that the mesh has not.
    """
    faults: list[Mismatch] = []
    flat, treedef = jax.tree.flatten(state)
    keys = flatten(state).keys
    made: list[Any] = []
    for key, leaf in zip(keys, flat, strict=True):
        if leaves.signature(leaf) is None or leaves.is_scalar(leaf):
            made.append(leaf)
            continue
        own = getattr(leaf, "sharding", None)
        spec = own.spec if isinstance(own, NamedSharding) else PartitionSpec()
        named = [name for part in spec for name in (part if isinstance(part, tuple) else (part,))]
        if not {name for name in named if isinstance(name, str)} <= set(mesh.axis_names):
            hint = "give read_as an abstract target, whose shardings say how each leaf is read"
            expected = f"a spec of the axes {', '.join(map(str, mesh.axis_names))}"
            fault = Mismatch(paths.format_path(key), "sharding", expected, str(spec), hint)
            faults.append(fault)
            continue
        leaf = leaves.abstract(leaf)
        sharding = NamedSharding(mesh, spec)
        made.append(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding))
    if faults:
        raise ConformanceError("read_as is a mesh that the state cannot be on", faults)
    return treedef.unflatten(made)


def _is_of_shardings(tree: Any) -> bool:
    found = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, Sharding))
    return bool(found) and all(isinstance(leaf, Sharding) for leaf in found)


def _with_shardings(state: Tree, shardings: Any) -> Tree:
    """The state without values, each leaf with its sharding.

    Raises:
        ConformanceError: The shardings are of another structure.
    """

    def with_sharding(leaf: Any, sharding: Any) -> Any:
        if leaves.signature(leaf) is None or leaves.is_scalar(leaf):
            return leaf
        leaf = leaves.abstract(leaf)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    try:
        return jax.tree.map(with_sharding, state, shardings)
    except (ValueError, TypeError) as error:
        found = (str(error).splitlines() or [type(error).__name__])[0]
        fault = Mismatch("read_as", "argument", "a sharding for each leaf of the state", found)
        raise ConformanceError("read_as is of another structure than the state", [fault]) from error


# --- how a leaf is cut  ---


def chunkings_for(
    trees: Mapping[str, Tree],
    shards: Mapping[Slot, Shape],
    lens: Lens,
    *,
    at: str | None,
    items: Mapping[str, str] | None,
) -> dict[int, Chunking]:
    """How the leaves of items are to be cut for a reader; a leaf that is well as it is has no entry.

    Args:
        trees: What is saved, by item.
        shards: What a device of the reader holds of each leaf; see `shards_read`.
        lens: The lens whose source is saved.
        at: The key path where the state stands.
        items: Which item holds what is at a key.
    """
    above = () if at is None else keys_named(at)
    held_at = {name: (key,) for key, name in (items or {}).items()}
    finder = SlotFinder(lens.source)
    chunkings: dict[int, Chunking] = {}
    for name, tree in trees.items():
        flat = flatten(tree)
        for key, leaf in zip(flat.keys, flat.leaves, strict=True):
            whole = (*held_at.get(name, ()), *key)
            is_below = tuple(map(str, whole[: len(above)])) == tuple(map(str, above))
            slot = finder.slot(whole[len(above) :], stored=flat.stored) if is_below else None
            shape = None if slot is None else shards.get(slot)
            cut = None if shape is None else _chunking_of(leaf, shape)
            chunkings |= {} if cut is None else {id(leaf): cut}
    return chunkings


def _chunking_of(leaf: Any, shard: Shape) -> Chunking | None:
    shape, dtype = leaves.signature(leaf) or ((), "")
    # Of a key, or of a number, there is nothing that is worth a cut.
    if not shape or dtype.startswith("key<") or len(shard) != len(shape):
        return None
    return _best(tuple(shape), _shape_written(leaf), shard, leaves.itemsize(dtype))


def _shape_written(leaf: Any) -> Shape:
    """The part of a leaf that Orbax writes at once: a shard, which its replicas share if they can."""
    if not isinstance(leaf, jax.Array):
        return tuple(leaf.shape)
    shard = tuple(leaf.sharding.shard_shape(leaf.shape))
    saving = directories_first().array.saving
    shares = saving.use_replica_parallel
    if shares is None:
        platforms = os.environ.get("JAX_PLATFORMS", "").lower()
        shares = "gpu" not in platforms and "cuda" not in platforms
    shards = math.prod(-(-size // part) for size, part in zip(leaf.shape, shard, strict=True))
    replicas = len(leaf.sharding.device_set) // max(shards, 1)
    replicas = min(replicas, saving.max_replicas_for_replica_parallel or replicas)
    if not shares or replicas <= 1:
        return shard
    axis = next((n for n, size in enumerate(shard) if size % replicas == 0), None)
    least = saving.min_slice_bytes_for_replica_parallel or 0
    if axis is None or math.prod(shard) * leaf.dtype.itemsize // replicas < least:
        return shard
    return (*shard[:axis], shard[axis] // replicas, *shard[axis + 1 :])


@functools.lru_cache(maxsize=1024)
def _best(shape: Shape, written: Shape, shard: Shape, itemsize: int) -> Chunking | None:
    """The cut by which a reader reads the least; of several that are as good, that of the largest chunks.

    None where no cut is better than none.
    """
    plain = _ratio(shape, shard, written, itemsize)
    if plain <= _ENOUGH:
        return None
    best, chosen = (plain, -math.prod(written) * itemsize), None
    # Axes on which a chunk reaches beyond what is read of it.
    too_long = [n for n, part in enumerate(written) if part > 1 and shard[n] % part]
    for count in range(len(too_long) + 1):
        for axes in itertools.combinations(too_long, count):
            for chunk in _chunks(shape, written, axes):
                size = math.prod(chunk) * itemsize
                if size < _FLOOR:
                    break
                rank = max(_ratio(shape, shard, chunk, itemsize), _ENOUGH), -size
                if rank < best:
                    best, chosen = rank, Chunking(size, axes, chunk)
    return chosen


def _ratio(shape: Shape, shard: Shape, chunk: Shape, itemsize: int) -> float:
    """What a device reads at most to hold a shard, as a ratio to what it holds: whole chunks, and the index of all."""
    sides = zip(shape, shard, chunk, strict=True)
    chunks = math.prod(map(math.ceil, (n / m for n, m in zip(shape, chunk, strict=True))))
    index = chunks * _ENTRY / (math.prod(shard) * itemsize)
    return math.prod(_ratio_of_axis(*each) for each in sides) + index


@functools.lru_cache(maxsize=4096)
def _ratio_of_axis(size: int, part: int, chunk: int) -> float:
    most = 0
    for start in range(0, size, max(part, 1)):
        stop = min(start + part, size)
        read = min(-(-stop // chunk) * chunk, size) - start // chunk * chunk
        most = max(most, read)
    return most / max(part, 1)


def _chunks(shape: Shape, written: Shape, axes: Shape) -> Iterator[Shape]:
    """The chunks that Orbax makes of a part that it writes, the fewer bytes a chunk may have.

    It cuts the axes that are named down to one element. Then it goes on with the longest of those
    axes that are cut already, by the sharding or by itself, and only when these are at their end
    with others.
    """
    divisors = [[*_divisors(size)] for size in written]
    cut = {n for n, (whole, part) in enumerate(zip(shape, written, strict=True)) if whole != part}
    for axis in axes:
        divisors[axis] = [1]
        cut.add(axis)
    every = range(len(shape))
    yield tuple(each[-1] for each in divisors)
    while any(len(each) > 1 for each in divisors):
        longest = max(cut, key=lambda n: (divisors[n][-1], -n), default=None)
        if longest is None or len(divisors[longest]) == 1:
            cut = {*every}
            continue
        divisors[longest].pop()
        yield tuple(each[-1] for each in divisors)


@functools.lru_cache(maxsize=1024)
def _divisors(size: int) -> Shape:
    small = [n for n in range(1, math.isqrt(size) + 1) if size % n == 0]
    return tuple(sorted({*small, *(size // n for n in small)}))


# --- what Orbax is told  ---


@contextlib.contextmanager
def written_in(chunkings: Chunkings) -> Generator[None]:
    """The caller's context of Orbax, as a save needs it, and with the chunks of some leaves."""
    context = directories_first()
    if not chunkings:
        with context:
            yield
        return
    saving = context.array.saving
    saving.scoped_storage_options_creator = _creator(
        chunkings, saving.scoped_storage_options_creator
    )
    with _without_advice(), context:
        yield


def _creator(chunkings: Chunkings, given: Any) -> Any:
    """What tells Orbax how to store each leaf: what the caller's own function says, and the chunks."""

    def options(key: Any, value: Any) -> Any:
        told = None if given is None else given(key, value)
        cut = chunkings.get(id(value))
        if cut is None:
            return told
        options = ocp.options.ArrayOptions.Saving.StorageOptions() if told is None else told
        return dataclasses.replace(options, chunk_byte_size=cut.bytes, shard_axes=cut.axes)

    return options


@contextlib.contextmanager
def _without_advice() -> Generator[None]:
    """Code in which Orbax does not say of each leaf that small chunks may be slow, which was weighed here."""
    logger = logging.getLogger("absl")

    def is_other(record: logging.LogRecord) -> bool:
        return "target_byte_size too small" not in record.getMessage()

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)
