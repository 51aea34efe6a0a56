"""How what is made of leaves is sharded, from the shardings of these."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ckpt_schema._layouts import leaves
from ckpt_schema._lens.arrays.axes import Entries, deal, house
from ckpt_schema._lens.arrays.blocks import Block, Copy, Task
from ckpt_schema._lens.arrays.frames import frame, spots
from ckpt_schema._messages.text import counted
from ckpt_schema._messages.warned import warn
from ckpt_schema.errors import ShardingWarning

__all__ = [
    "constrained",
    "equivalent",
    "lost_axes",
    "mesh_of",
    "of_axes",
    "of_slice",
    "off_axes",
    "on_devices",
    "results",
    "warn_of_whole",
]


def results(task: Task, values: Sequence[Any]) -> list[Any]:
    """How each result is sharded, from the inputs' shardings; nothing where that is unknown."""
    shardings = [getattr(value, "sharding", None) for value in values]
    first = next((s for s in shardings if isinstance(s, NamedSharding)), None)
    if first is None:
        alike = shardings[0] is not None and all(s == shardings[0] for s in shardings)
        return [shardings[0]] * len(task.results) if alike else []
    ways: dict[str, int] = dict(first.mesh.shape)
    split: list[Entries] = []
    for value, sharding in zip(values, shardings, strict=True):
        spec = ()
        if isinstance(sharding, NamedSharding) and sharding.mesh == first.mesh:
            spec = sharding.spec
        split.append(_entries(spec, len(value.shape)))
    # What no axis could take on the way, one that came later may: the axis of a stack.
    given = dict.fromkeys(axis for entries in split for axes in entries for axis in axes)
    wanted: list[NamedSharding] = []
    for kind, copies in zip(task.results, task.writers, strict=True):
        entries = _result(kind.shape, copies, split, ways)
        lost = [axis for axis in given if not _takes(entries, axis)]
        spec = _spec(house(entries, kind.shape, lost, ways))
        wanted.append(NamedSharding(first.mesh, spec, memory_kind=first.memory_kind))
    return wanted


def _result(
    shape: tuple[int, ...],
    copies: Sequence[Copy],
    split: Sequence[Entries],
    ways: Mapping[str, int],
) -> Entries:
    """How one result is sharded: as the finest of what is copied to it."""
    known = tuple(ways.items())
    unlike = dict.fromkeys((copy.block, split[copy.source]) for copy in copies)
    followed = [_followed(block, entries, shape, known) for block, entries in unlike]
    if not followed:
        return ((),) * len(shape)
    return max(
        followed, key=lambda entries: math.prod(ways[axis] for axes in entries for axis in axes)
    )


@functools.lru_cache(1 << 12)
def _followed(
    block: Block, entries: Entries, shape: tuple[int, ...], known: tuple[tuple[str, int], ...]
) -> Entries:
    """Mesh axes go with the steps that they shard.

    One that fits none goes to another axis it divides.
    """
    ways = dict(known)
    taken: dict[int, tuple[str, ...]] = {}
    homeless: list[str] = []
    for axis, axes in enumerate(entries):
        along = spots(block, 0, axis)
        dealt, left = deal(axes, [each.size for each in along], ways)
        homeless += left
        for each, own in zip(along, dealt, strict=True):
            if each.is_turn or block.steps[each.number].at[1] is None:
                homeless += own
            else:
                taken[each.number] = own
    merged: list[tuple[str, ...]] = []
    for axis, size in enumerate(shape):
        own = [name for each in spots(block, 1, axis) for name in taken.get(each.number, ())]
        (kept,), left = deal(own, [size], ways)
        merged.append(kept)
        homeless += left
    return house(tuple(merged), shape, homeless, ways)


def off_axes(value: Any, axes: Collection[int]) -> NamedSharding | None:
    """A sharding that leaves some axes of an array whole: what sharded them shards others that it divides."""
    sharding = getattr(value, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return None
    entries = _entries(sharding.spec, value.ndim)
    homeless = [name for axis in axes if axis < len(entries) for name in entries[axis]]
    if not homeless:
        return None
    kept = tuple(() if axis in axes else own for axis, own in enumerate(entries))
    shape = [0 if axis in axes else size for axis, size in enumerate(value.shape)]
    spec = _spec(house(kept, shape, homeless, dict(sharding.mesh.shape)))
    return NamedSharding(sharding.mesh, spec, memory_kind=sharding.memory_kind)


def of_slice(sharding: NamedSharding, block: Block, shape: tuple[int, ...]) -> NamedSharding:
    """The sharding of the slice that a block writes of an array.

    It is as the array's on each axis that it has as a whole; a slice without a frame is nowhere
    sharded.
    """
    target = frame(block, 1, shape)
    entries = _entries(sharding.spec, len(shape))
    ways = dict(sharding.mesh.shape)
    kept: list[tuple[str, ...]] = []
    for axis, own in enumerate(entries):
        cuts = [cut for cut in target.cuts if cut.axis == axis] if target is not None else []
        wholes = [cut.size if cut.size == cut.length else 1 for cut in cuts]
        kept += deal(own, wholes, ways)[0]
    return NamedSharding(sharding.mesh, _spec(tuple(kept)), memory_kind=sharding.memory_kind)


def of_axes(sharding: NamedSharding, axes: Sequence[int]) -> NamedSharding:
    """The sharding of an array that has some of the axes of another."""
    entries = _entries(sharding.spec, max([*axes, len(sharding.spec) - 1]) + 1)
    spec = _spec(tuple(entries[axis] for axis in axes))
    return NamedSharding(sharding.mesh, spec, memory_kind=sharding.memory_kind)


def _takes(entries: Entries, axis: str) -> bool:
    return any(axis in axes for axes in entries)


def equivalent(value: Any, sharding: NamedSharding) -> bool:
    """Whether a leaf is sharded so already."""
    own = getattr(value, "sharding", None)
    return isinstance(own, NamedSharding) and own.is_equivalent_to(sharding, value.ndim)


def constrained(value: Any, sharding: NamedSharding | None) -> Any:
    """A traced leaf with its sharding given; keys are as jax shards them."""
    if sharding is None or jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return value
    # Inside of `jax.sharding.auto_axes` the mesh is another.
    explicit = AxisType.Explicit in sharding.mesh.axis_types
    return jax.lax.with_sharding_constraint(value, sharding.spec if explicit else sharding)


def lost_axes(inputs: Sequence[Any], result: Any) -> list[str]:
    """The mesh axes that shard one of the inputs and not the result, so that each device holds more of it than it need."""
    after = getattr(result, "sharding", None)
    if not isinstance(after, NamedSharding) or not result.shape:  # a scalar is nobody's burden
        return []
    kept = _used(after)
    shardings = (getattr(value, "sharding", None) for value in inputs)
    before = (
        axis
        for s in shardings
        if isinstance(s, NamedSharding) and s.mesh == after.mesh
        for axis in _used(s)
    )
    return [
        axis for axis in dict.fromkeys(before) if axis not in kept and after.mesh.shape[axis] > 1
    ]


def warn_of_whole(lost: Sequence[tuple[str, Sequence[str], Any]]) -> None:
    """Warns of leaves that are not sharded any more as they could be.

    Args:
        lost: For each, the key path of what it is made of, the mesh axes that sharded this, and
            what is made of it.
    """
    lines = [
        f"\n  {path}  sharded over {', '.join(axes)}, which no axis of {leaves.describe(made)} divides by: each device of "
        f"{'it' if len(axes) == 1 else 'them'} holds all of it"
        for path, axes, made in lost
    ]
    several = counted(len(lost), "edited leaf takes", "edited leaves take")
    header = f"{several} more memory than their source: give their shardings by onto="
    warn(header + "".join(lines), ShardingWarning)


def _used(sharding: NamedSharding) -> list[str]:
    return [axis for axes in _entries(sharding.spec, len(sharding.spec)) for axis in axes]


def _entries(spec: PartitionSpec | tuple[()], rank: int) -> Entries:
    full = (*spec, *[None] * (rank - len(spec)))
    return tuple(
        axes if isinstance(axes, tuple) else (axes,) if isinstance(axes, str) else ()
        for axes in full
    )


def _spec(entries: Entries) -> PartitionSpec:
    return PartitionSpec(
        *(None if not axes else axes[0] if len(axes) == 1 else axes for axes in entries)
    )


def on_devices(sharding: Any) -> Any:
    """A sharding on real devices, or None: ``jax.eval_shape`` leaves an abstract mesh, for which the mesh in context stands."""
    own: Any = getattr(sharding, "mesh", None)
    if not isinstance(sharding, NamedSharding) or isinstance(own, Mesh):
        return sharding
    mesh = jax.sharding.get_mesh()
    return None if mesh.empty else NamedSharding(mesh, sharding.spec)


def mesh_of(values: Sequence[Any]) -> Mesh | None:
    """The mesh that the leaves are sharded over, or None."""
    for value in values:
        sharding = getattr(value, "sharding", None)
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
            return sharding.mesh
    return None
