"""Meshes over the devices there are, and every way to shard leaves over them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ckpt_schema._trees import placement
from ckpt_schema.testing._devices import verify_devices

__all__ = [
    "MESHES",
    "MeshSpec",
    "Mixed",
    "Placer",
    "Sharded",
    "all_shardings",
    "as_jax",
    "as_numpy",
    "mesh",
    "other_memories",
]

MeshSpec = tuple[tuple[int, ...], AxisType]
"""The shape of a mesh over all devices, and the type of its axes."""
_SHAPES = ((4, 2), (2, 4), (8,))
_KINDS = AxisType.Auto, AxisType.Explicit
MESHES: tuple[MeshSpec, ...] = tuple(
    (shape, kind) for kind, shape in itertools.product(_KINDS, _SHAPES)
)
Placer = Callable[[Any], Any]
"""What makes a leaf of a NumPy array, or of a key array."""


def as_numpy(value: Any) -> Any:
    """A NumPy array where there can be one; key arrays stay jax arrays."""
    return value


def as_jax(value: Any) -> Any:
    """A jax array on one device."""
    return jnp.asarray(value)


@dataclasses.dataclass(frozen=True)
class Sharded:
    """Places leaves on a mesh, sharded in one of the ways their shapes allow.

    Attributes:
        mesh: The mesh.
        seed: Which of the ways; leaves of one shape are sharded alike, as by logical axis rules.
    """

    mesh: Mesh
    seed: int = 0

    def sharding(self, shape: tuple[int, ...]) -> NamedSharding:
        """How leaves of this shape are sharded.

        Of one way in six they are in another memory, if there is one.
        """
        specs = all_shardings(self.mesh, shape)
        # Of one seed, leaves of other shapes are sharded in ways that have nothing in common.
        chosen = specs[(self.seed * 7919 + 31 * len(shape)) % len(specs)]
        # A leaf that is moved to the host keeps its mesh axes: both have to be carried over.
        memories = other_memories()
        if self.seed % 6 == 3 and memories:
            return chosen.with_memory_kind(memories[0])
        return chosen

    def __call__(self, value: Any) -> Any:
        """The leaf, sharded; over the devices of all processes, where the mesh has them."""
        return placement.placed(value, self.sharding(tuple(value.shape)))


class Mixed:
    """Places every other leaf as another place does, and leaves the rest to NumPy."""

    def __init__(self, place: Placer) -> None:
        """Keeps the other place; the first leaf is NumPy's."""
        self._place, self._count = place, 0

    def __call__(self, value: Any) -> Any:
        """The leaf; key arrays are never NumPy's."""
        self._count += 1
        # Keys have no NumPy array to be, and count all the same.
        keys = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
        return self._place(value) if keys or self._count % 2 == 0 else as_numpy(value)


@functools.cache
def mesh(shape: tuple[int, ...], axis_type: AxisType = AxisType.Auto) -> Mesh:
    """A mesh of this shape over the first devices, its axes called x, y, z.

    Raises:
        DevicesError: There are fewer devices.
    """
    # A mesh may be of fewer devices than there are.
    devices = jax.devices()[: math.prod(shape)]
    verify_devices(math.prod(shape))
    return jax.make_mesh(
        shape, ("x", "y", "z")[: len(shape)], axis_types=(axis_type,) * len(shape), devices=devices
    )


@functools.cache
def other_memories() -> tuple[str, ...]:
    """The kinds of memory that devices have besides the one that arrays are in where nothing is said."""
    device = jax.devices()[0]
    kinds = {memory.kind for memory in device.addressable_memories()}
    return tuple(sorted(kinds - {device.default_memory().kind}))


@functools.cache
def all_shardings(on: Mesh, shape: tuple[int, ...]) -> tuple[NamedSharding, ...]:
    """Every way to shard an array of ``shape``, most mesh axes first.

    Jax has no leaves that are sharded unevenly.
    """
    names = tuple(on.axis_names)
    # What an axis may be sharded over: (), (x,), (y,), (x, y), (y, x).
    groups: list[tuple[str, ...]] = []
    for count in range(len(names) + 1):
        groups += itertools.permutations(names, count)
    specs: list[tuple[int, str, PartitionSpec]] = []
    for spec in itertools.product(groups, repeat=len(shape)):
        used = list(itertools.chain.from_iterable(spec))
        # A mesh axis shards one axis of a leaf.
        fits = all(size % _ways(on, group) == 0 for size, group in zip(shape, spec, strict=True))
        if len(set(used)) == len(used) and fits:
            entries = PartitionSpec(*map(_entry, spec))
            specs.append((-len(used), str(entries), entries))
    specs.sort(key=lambda item: item[:2])
    return tuple(NamedSharding(on, spec) for _, _, spec in specs)


def _ways(on: Mesh, group: Sequence[str]) -> int:
    """Over how many devices some mesh axes shard."""
    return math.prod(on.shape[axis] for axis in group)


def _entry(group: tuple[str, ...]) -> Any:
    """Mesh axes as a `PartitionSpec` has them: one of them by its name alone."""
    if len(group) < 2:
        return group[0] if group else None
    return group
