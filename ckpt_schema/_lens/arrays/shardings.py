"""How what is made of leaves is sharded, from the shardings of these.

`execution` asks this of each task on jax's arrays. Mesh axes travel with the steps of blocks: a
kernel ``float32[embed heads dim]`` that is sharded over ``heads`` becomes one ``[embed heads*dim]``
that is sharded on its last axis. No leaf is gathered where some axis can take what shards it.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
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
        # On one device, or told by devices alone: results stay there, where all inputs are.
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
    given = dict.fromkeys(itertools.chain.from_iterable(map(_names, split)))
    wanted: list[NamedSharding] = []
    for kind, copies in zip(task.results, task.writers, strict=True):
        entries = _result(kind.shape, copies, split, ways)
        taken = set(_names(entries))
        lost = [axis for axis in given if axis not in taken]
        spec = _spec(house(entries, kind.shape, lost, ways))
        wanted.append(NamedSharding(first.mesh, spec, memory_kind=first.memory_kind))
    return wanted


def _result(
    shape: tuple[int, ...],
    copies: Sequence[Copy],
    split: Sequence[Entries],
    ways: Mapping[str, int],
) -> Entries:
    """How one result is sharded: as the finest of what is copied to it.

    Args:
        shape: That of the result.
        copies: What writes it.
        split: How each input is sharded.
        ways: How many shards each mesh axis makes.
    """
    # Of a hundred layers, which are sharded alike, one is followed.
    unlike = dict.fromkeys((copy.block, split[copy.source]) for copy in copies)
    known = tuple(ways.items())
    finest: Entries = ((),) * len(shape)
    most = 0
    for block, entries in unlike:
        followed = _followed(block, entries, shape, known)
        count = math.prod(ways[axis] for axis in _names(followed))
        if count > most:
            finest, most = followed, count
    return finest


@functools.lru_cache(1 << 12)
def _followed(
    block: Block, entries: Entries, shape: tuple[int, ...], known: tuple[tuple[str, int], ...]
) -> Entries:
    """Mesh axes go with the steps that they shard.

    One that fits none goes to another axis it divides.
    """
    ways = dict(known)
    taken: dict[int, tuple[str, ...]] = {}  # for each step, by number
    homeless: list[str] = []
    for axis, axes in enumerate(entries):
        along = spots(block, 0, axis)
        dealt, left = deal(axes, [step.size for step in along], ways)
        homeless += left
        for step, names in zip(along, dealt, strict=True):
            # A turn has left the leaf, and a step that writes nothing has no place in the result.
            if step.is_turn or block.steps[step.number].at[1] is None:
                homeless += names
            else:
                taken[step.number] = names
    merged: list[tuple[str, ...]] = []
    for axis, size in enumerate(shape):
        names = []
        for step in spots(block, 1, axis):
            names += taken.get(step.number, ())
        (kept,), left = deal(names, [size], ways)
        merged.append(kept)
        homeless += left
    return house(tuple(merged), shape, homeless, ways)


def off_axes(value: Any, axes: Collection[int]) -> NamedSharding | None:
    """A sharding that leaves some axes of an array whole: what sharded them shards others that it divides.

    None where nothing shards them.
    """
    sharding = getattr(value, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return None
    kept: list[tuple[str, ...]] = []
    shape: list[int] = []
    homeless: list[str] = []
    for axis, names in enumerate(_entries(sharding.spec, value.ndim)):
        is_off = axis in axes
        homeless += names if is_off else ()
        kept.append(() if is_off else names)
        shape.append(0 if is_off else value.shape[axis])  # no mesh axis is housed on none
    if not homeless:
        return None
    spec = _spec(house(tuple(kept), shape, homeless, dict(sharding.mesh.shape)))
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
    for axis, names in enumerate(entries):
        cuts = [cut for cut in target.cuts if cut.axis == axis] if target is not None else []
        # Of an axis that is cut the slice has a part, which no mesh axis is said to divide.
        wholes = [cut.size if cut.size == cut.length else 1 for cut in cuts]
        kept += deal(names, wholes, ways)[0]
    return NamedSharding(sharding.mesh, _spec(tuple(kept)), memory_kind=sharding.memory_kind)


def of_axes(sharding: NamedSharding, axes: Sequence[int]) -> NamedSharding:
    """The sharding of an array that has some of the axes of another."""
    entries = _entries(sharding.spec, max([*axes, len(sharding.spec) - 1]) + 1)
    spec = _spec(tuple(entries[axis] for axis in axes))
    return NamedSharding(sharding.mesh, spec, memory_kind=sharding.memory_kind)


def equivalent(value: Any, sharding: NamedSharding) -> bool:
    """Whether a leaf is sharded so already."""
    own = getattr(value, "sharding", None)
    return isinstance(own, NamedSharding) and own.is_equivalent_to(sharding, value.ndim)


def constrained(value: Any, sharding: NamedSharding | None) -> Any:
    """A traced leaf with its sharding given; keys are as jax shards them."""
    if sharding is None or leaves.is_typed_key(value):
        return value
    # Inside of `jax.sharding.auto_axes` the mesh is another.
    explicit = AxisType.Explicit in sharding.mesh.axis_types
    return jax.lax.with_sharding_constraint(value, sharding.spec if explicit else sharding)


def lost_axes(inputs: Sequence[Any], result: Any) -> list[str]:
    """The mesh axes that shard one of the inputs and not the result, so that each device holds more of it than it need."""
    after = getattr(result, "sharding", None)
    if not isinstance(after, NamedSharding) or not result.shape:  # a scalar is nobody's burden
        return []
    kept = {*_used(after)}
    lost: dict[str, None] = {}  # in the order of the inputs
    for value in inputs:
        before = getattr(value, "sharding", None)
        if not isinstance(before, NamedSharding) or before.mesh != after.mesh:
            continue
        for axis in _used(before):
            if axis not in kept and after.mesh.shape[axis] > 1:
                lost[axis] = None
    return [*lost]


def warn_of_whole(lost: Sequence[tuple[str, Sequence[str], Any]]) -> None:
    """Warns of leaves that are not sharded any more as they could be.

    Args:
        lost: For each, the key path of what it is made of, the mesh axes that sharded this, and
            what is made of it.
    """
    several = counted(len(lost), "edited leaf takes", "edited leaves take")
    text = f"{several} more memory than their source: give their shardings by onto="
    for path, axes, made in lost:
        names = "it" if len(axes) == 1 else "them"
        text += (
            f"\n  {path}  sharded over {', '.join(axes)}, which no axis of "
            f"{leaves.describe(made)} divides by: each device of {names} holds all of it"
        )
    warn(text, ShardingWarning)


def _used(sharding: NamedSharding) -> Iterator[str]:
    """The mesh axes that shard some axis."""
    return _names(_entries(sharding.spec, len(sharding.spec)))


def _names(entries: Entries) -> Iterator[str]:
    """The mesh axes of all axes of a leaf, one after the other."""
    return itertools.chain.from_iterable(entries)


def _entries(spec: PartitionSpec | tuple[()], rank: int) -> Entries:
    """A spec at full length: ``P('data', ('x', 'y'))`` of rank 3 is ``(('data',), ('x', 'y'), ())``."""
    entries: list[tuple[str, ...]] = []
    # jax gives typed keys on a mesh of one device the spec of their words, which has an axis more.
    whole = (*spec, *[None] * (rank - len(spec)))[:rank]
    for axes in whole:
        if isinstance(axes, tuple):
            entries.append(axes)
        else:
            # Besides names there are None and `PartitionSpec.UNCONSTRAINED`, which shard nothing.
            entries.append((axes,) if isinstance(axes, str) else ())
    return tuple(entries)


def _spec(entries: Entries) -> PartitionSpec:
    """The inverse of `_entries`, in the short form that jax prints."""
    axes: list[Any] = []
    for names in entries:
        if not names:
            axes.append(None)
        else:
            axes.append(names[0] if len(names) == 1 else names)
    return PartitionSpec(*axes)


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
