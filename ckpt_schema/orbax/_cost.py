"""What a restore would cost: what each process reads, and what each device holds; told from metadata alone."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from ckpt_schema._layouts import leaves
from ckpt_schema._lens.adapt.adaptation import Scan
from ckpt_schema._lens.lens import Lens
from ckpt_schema._lens.registry import Registry
from ckpt_schema._lens.rules import Rule
from ckpt_schema._messages.text import counted, in_bytes, shown
from ckpt_schema._trees.containers import flatten
from ckpt_schema.errors import ConformanceError, Mismatch
from ckpt_schema.orbax._adapt import Words
from ckpt_schema.orbax._metadata import SKIP, DiskTree
from ckpt_schema.orbax._pytree_files import array_notes
from ckpt_schema.orbax._restore import Prepared, prepared
from ckpt_schema.orbax._sides import Side, interchangeable
from ckpt_schema.orbax._targets import placed_abstract, spare_sharding, verify_even

__all__ = ["RestoreCost", "dry_run"]


@dataclasses.dataclass(frozen=True, slots=True)
class RestoreCost:
    """What a restore costs.

    Attributes:
        lens: The lens from what is on disk to the target.
        leaves: How many arrays are read.
        stored: How many there are in the checkpoint.
        read: How many bytes each process reads at least: the chunks that its devices need some of, each once. They may be
            compressed on disk.
        read_at_most: The same, a chunk once for each other part of it that a device of the process needs: of parts that are
            asked for at once, TensorStore reads the chunk once or several times, as it happens.
        result: How many bytes of the result a device holds, at most.
        peak: How many bytes a device holds at any one time, at most: what is read, and while that is edited, twice the
            largest leaf. Arrays that the target has come on top, unless they are given up.
    """

    lens: Lens
    leaves: int
    stored: int
    read: tuple[int, ...]
    read_at_most: tuple[int, ...]
    result: int
    peak: int

    def __str__(self) -> str:
        """On four lines."""
        least, most = in_bytes(min(self.read)), in_bytes(max(self.read_at_most))
        span = least if least == most else f"{least} to {most}"
        whose = "it reads" if len(self.read) == 1 else f"each of {len(self.read)} processes reads"
        lines = (
            f"{self.leaves} of {counted(self.stored, 'array')} on disk are read",
            f"{whose} {span}",
            f"a device holds {in_bytes(self.result)} of the result",
            f"a device holds {in_bytes(self.peak)} at any one time, at most",
        )
        return "\n".join(lines)


def dry_run(
    path: epath.PathLike,
    target: Any,
    lens: Lens | Registry | None = None,
    *,
    rules: Sequence[Rule] = (),
    scan: Scan | None = None,
    lists: Sequence[str] | None = None,
    item: str | None = None,
    at: str | None = None,
    items: Mapping[str, str] | None = None,
    target_side: Side | None = None,
    disk_side: Side | None = None,
    processes: int | None = None,
) -> RestoreCost:
    """What `restore` would cost; of it all is done but the reading, so what it would refuse is refused.

    Args:
        path: See `restore`.
        target: See `restore`; its leaves may be abstract, and count as if they had values. Their
            shardings say what each device reads and holds.
        lens: See `restore`.
        rules: See `restore`.
        scan: See `restore`.
        lists: See `restore`.
        item: See `restore`.
        at: See `restore`.
        items: See `restore`.
        target_side: See `restore`.
        disk_side: See `restore`.
        processes: How many processes have the devices, each as many, in the order of their numbers;
            unless given, those that there are.

    Raises:
        CheckpointMismatchError: As `restore` does.
        ConformanceError: As `restore` does.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> path = f"{tempfile.mkdtemp()}/1"
        >>> import ckpt_schema as cs
        >>> cs.orbax.save(path, {"params": {"a": jnp.zeros((64, 4)), "b": jnp.zeros(16)}})
        >>> print(dry_run(path, {"params": {"b": jnp.zeros(16), "a": jnp.zeros((64, 4))}}))
        2 of 2 arrays on disk are read
        it reads 1.1 KiB
        a device holds 1.1 KiB of the result
        a device holds 1.1 KiB at any one time, at most
    """
    _verify(processes)
    words = Words(rules, scan, lists)
    where: dict[str, Any] = {"item": item, "at": at, "items": items}
    sides = target_side, disk_side
    ready = prepared(path, target, lens, words, sides=sides, valued=True, **where)
    return _cost(ready, processes)


def _verify(processes: object) -> None:
    if processes is None or (type(processes) is int and processes > 0):
        return
    fault = Mismatch("processes", "argument", "a number of processes, or None", shown(processes))
    raise ConformanceError("wrong arguments", [fault])


def _cost(ready: Prepared, processes: int | None) -> RestoreCost:
    chunks = _chunks(ready.disk)
    flat = flatten(ready.place.tree)
    wanted = flat.treedef.flatten_up_to(ready.wanted)
    goals = flat.treedef.flatten_up_to(ready.expected)
    below = (*ready.disk.root, *ready.place.prefix)
    asked = flatten(ready.state)
    spare = spare_sharding(ready.state)
    made = [placed_abstract(leaf, spare) for leaf in asked.leaves]
    # Neither the target nor what is read may be cut unevenly; both are told in one error.
    placed = zip((*asked.keys, *flat.keys), (*made, *goals), strict=True)
    verify_even("the target cannot be on these devices", placed)
    costs = _Costs(processes)
    for key, order, goal in zip(flat.keys, wanted, goals, strict=True):
        if order is not SKIP:
            costs.add(goal, chunks.get(".".join(map(str, (*below, *key)))))
    # What only moves is its own result. An edit has a leaf and what it makes of it at one time.
    held = [_on_device(leaf) for leaf in made]
    largest = max((*costs.shards, *held), default=0)
    edited = not (ready.side.source is ready.side.view or interchangeable(ready.side))
    return RestoreCost(
        ready.side,
        costs.leaves,
        len(jax.tree.leaves(ready.disk.tree)),
        tuple(costs.read),
        tuple(costs.read_at_most),
        sum(held),
        sum(costs.shards) + 2 * largest * edited,
    )


class _Costs:
    """What leaves cost that are read, added up.

    Attributes:
        leaves: How many there are.
        read: The bytes that each process reads, at least.
        read_at_most: The same, at most.
        shards: The bytes of each on a device.
    """

    def __init__(self, processes: int | None) -> None:
        devices = sorted(jax.devices(), key=lambda one: one.id)
        self._processes: dict[Any, int] = {}
        for place, device in enumerate(devices):
            # 8 devices of 2 processes: the first 4 are of process 0, the others of process 1.
            shared = None if processes is None else place * processes // len(devices)
            self._processes[device] = device.process_index if shared is None else shared
        self.leaves = 0
        self.read = [0] * (processes or jax.process_count())
        self.read_at_most = [*self.read]
        self.shards: list[int] = []
        self._known: dict[Any, tuple[list[int], list[int]]] = {}

    def add(self, leaf: jax.ShapeDtypeStruct, chunk: Sequence[int] | None) -> None:
        """Adds one."""
        self.leaves += 1
        self.shards.append(_on_device(leaf))
        # Layers are alike, and devices are many.
        alike = leaf.shape, leaf.dtype, leaf.sharding, None if chunk is None else tuple(chunk)
        if alike not in self._known:
            self._known[alike] = self._by_process(leaf, chunk)
        least, most = self._known[alike]
        self.read = [*map(sum, zip(self.read, least, strict=True))]
        self.read_at_most = [*map(sum, zip(self.read_at_most, most, strict=True))]

    def _by_process(
        self, leaf: jax.ShapeDtypeStruct, chunk: Sequence[int] | None
    ) -> tuple[list[int], list[int]]:
        """What each process reads of a leaf, at least and at most."""
        shape = leaf.shape
        whole = tuple(chunk) if chunk is not None and len(chunk) == len(shape) else None
        needed: list[set[_Box]] = [set() for _ in self.read]
        boxes: list[set[_Box]] = [set() for _ in self.read]
        most = [0 for _ in self.read]
        size = leaves.itemsize(str(leaf.dtype))
        assert leaf.sharding is not None
        for device, index in leaf.sharding.devices_indices_map(shape).items():
            box = tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))
            process = self._processes[device]
            # Two devices of one process that hold the same part: it is read once.
            if box in boxes[process]:
                continue
            boxes[process].add(box)
            parts = [box] if whole is None else [*_cut(box, whole, shape)]
            needed[process].update(parts)
            most[process] += size * sum(map(_elements, parts))
        return [size * sum(map(_elements, parts)) for parts in needed], most


_Box = tuple[tuple[int, int], ...]
"""Where a part of an array starts and stops, axis by axis."""


def _cut(box: _Box, chunk: Sequence[int], shape: Sequence[int]) -> Iterator[_Box]:
    """The chunks that a part of an array has something of."""
    sides: list[list[tuple[int, int]]] = []
    for (start, stop), size, length in zip(box, chunk, shape, strict=True):
        step = max(size, 1)
        numbers = range(start // step, -(-stop // step))
        # 2 to 7 of an axis of 10, in chunks of 4: the chunks 0 to 4 and 4 to 8.
        # The last may be shorter.
        sides.append([(n * step, min((n + 1) * step, length)) for n in numbers])
    yield from itertools.product(*sides)


def _elements(box: _Box) -> int:
    return math.prod(stop - start for start, stop in box)


def _on_device(leaf: jax.ShapeDtypeStruct) -> int:
    """How many bytes of a leaf a device holds."""
    assert leaf.sharding is not None
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaves.itemsize(str(leaf.dtype))


def _chunks(disk: DiskTree) -> Mapping[str, Sequence[int]]:
    """The shapes of the chunks of arrays, by dotted name, where Orbax has noted them."""
    found: dict[str, Sequence[int]] = {}
    parts = disk.parts or [((), disk)]
    # What is read by a reader of its own has no chunks, or none that Orbax has noted.
    for at, part in parts if disk.reader is None else ():
        for _, arrays in array_notes(part.path / (part.item or "")):
            for array in arrays:
                name = ".".join((*map(str, at), array["param_name"]))
                chunk: Any = array.get("chunk_shape") or array.get("write_shape")
                found[name] = chunk
    return found
