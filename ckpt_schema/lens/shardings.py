"""How the results of edits are sharded, from the shardings of their inputs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ckpt_schema import leaves
from ckpt_schema.errors import ShardingWarning
from ckpt_schema.lens.axes import Entries, house
from ckpt_schema.lens.edits import Chain
from ckpt_schema.text import counted

__all__ = [
    "constrained",
    "equivalent",
    "lost_axes",
    "mesh_of",
    "on_devices",
    "results",
    "warn_of_whole",
    "with_axis",
    "without_axis",
]


def results(chain: Chain, values: Sequence[Any], sizes: Mapping[str, int]) -> list[Any]:
    """How each result is sharded, from the inputs' shardings; nothing where that is unknown."""
    shardings = [getattr(value, "sharding", None) for value in values]
    shapes = [tuple(value.shape) for value in values]
    first = next((s for s in shardings if isinstance(s, NamedSharding)), None)
    if first is None:
        alike = shardings[0] is not None and all(s == shardings[0] for s in shardings)
        return [shardings[0]] * len(chain.shapes(shapes, sizes)) if alike else []
    ways: dict[str, int] = dict(first.mesh.shape)
    specs = [
        s.spec if isinstance(s, NamedSharding) and s.mesh == first.mesh else () for s in shardings
    ]
    split = [_entries(spec, len(shape)) for spec, shape in zip(specs, shapes, strict=True)]
    # What no axis could take on the way, one that came later may: the axis of a stack.
    given = dict.fromkeys(axis for entries in split for axes in entries for axis in axes)
    found = [
        house(each, shape, [axis for axis in given if not _takes(each, axis)], ways)
        for each, shape in zip(
            chain.entries(split, shapes, sizes, ways), chain.shapes(shapes, sizes), strict=True
        )
    ]
    return [NamedSharding(first.mesh, _spec(each), memory_kind=first.memory_kind) for each in found]


def _takes(entries: Entries, axis: str) -> bool:
    return any(axis in axes for axes in entries)


def with_axis(sharding: NamedSharding, axis: int, rank: int) -> NamedSharding:
    """The sharding of leaves of so many axes, with another axis among them that is not sharded."""
    entries = _entries(sharding.spec, rank)
    return NamedSharding(
        sharding.mesh,
        _spec((*entries[:axis], (), *entries[axis:])),
        memory_kind=sharding.memory_kind,
    )


def without_axis(sharding: NamedSharding, axis: int) -> NamedSharding:
    """The sharding without one of its axes."""
    spec = PartitionSpec(*sharding.spec[:axis], *sharding.spec[axis + 1 :])
    return NamedSharding(sharding.mesh, spec, memory_kind=sharding.memory_kind)


def equivalent(value: Any, sharding: NamedSharding) -> bool:
    """Whether a leaf is sharded so already."""
    own = getattr(value, "sharding", None)
    return isinstance(own, NamedSharding) and own.is_equivalent_to(sharding, value.ndim)


def constrained(value: Any, sharding: NamedSharding | None) -> Any:
    """A traced leaf with its sharding given; keys are as jax shards them."""
    if sharding is None or jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return value
    explicit = (
        AxisType.Explicit in sharding.mesh.axis_types
    )  # inside of `jax.sharding.auto_axes` the mesh is another
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
        lost: For each, the key path of what it is made of, the mesh axes that sharded this, and what is made of it.
    """
    lines = [
        f"\n  {path}  sharded over {', '.join(axes)}, which no axis of {leaves.describe(made)} divides by: each device of "
        f"{'it' if len(axes) == 1 else 'them'} holds all of it"
        for path, axes, made in lost
    ]
    several = counted(len(lost), "edited leaf takes", "edited leaves take")
    header = f"{several} more memory than their source: give their shardings by onto="
    warnings.warn(header + "".join(lines), ShardingWarning, stacklevel=2)


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
