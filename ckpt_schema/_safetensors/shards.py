"""Tensors with a sharding: each process reads what its own devices hold, or as much of what reads less."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from ckpt_schema._safetensors.header import Tensor
from ckpt_schema._safetensors.ranges import Extent, read_extents
from ckpt_schema._trees import placement

__all__ = ["read_sharded"]


def read_sharded(tensor: Tensor, sharding: Sharding) -> jax.Array:
    """A tensor with a sharding.

    Bytes stand in rows of the first axis. Where devices of a process hold parts of rows alone, all
    processes together read each row once, and hand its parts to one another.
    """
    rows = None if sharding.is_fully_addressable else _by_rows(tensor.shape, sharding)
    if rows is not None:
        return placement.placed(_read(tensor, rows), sharding)
    return _read(tensor, sharding)


def _read(tensor: Tensor, sharding: Sharding) -> jax.Array:
    shape = tensor.shape
    indices = sharding.addressable_devices_indices_map(shape)
    extents = {_extent(index, shape) for index in indices.values()}
    extents_of = read_extents(tensor, extents)
    return jax.make_array_from_callback(
        shape, sharding, lambda index: extents_of[_extent(index, shape)], dtype=tensor.dtype
    )


def _extent(index: Sequence[Any] | None, shape: Sequence[int]) -> Extent:
    return tuple(each.indices(n)[:2] for each, n in zip(index or (), shape, strict=True))


def _by_rows(shape: tuple[int, ...], sharding: Sharding) -> NamedSharding | None:
    """A sharding of the first axis, over devices of the same mesh, by which processes read less.

    Every one finds the same.

    Nothing where each process needs all of the rows that it needs something of.
    """
    if not isinstance(sharding, NamedSharding):
        return None
    # What the devices of each process hold. Each process looks at all, so that all find the same.
    held: dict[int, set[Extent]] = {}
    for device, index in sharding.devices_indices_map(shape).items():
        held.setdefault(device.process_index, set()).add(_extent(index, shape))
    # Where each process needs whole rows alone, nothing is read in vain.
    row = math.prod(shape[1:])
    if all(_elements(extents) == row * _rows(extents) for extents in held.values()):
        return None
    # As many mesh axes as the rows can be divided by, in the order of the mesh.
    axes: list[str] = []
    ways = 1
    for name, size in sharding.mesh.shape.items():
        if shape[0] % (ways * size) == 0:
            axes.append(name)
            ways *= size
    spec = PartitionSpec(tuple(axes))
    return NamedSharding(sharding.mesh, spec) if ways > 1 else None


def _elements(extents: set[Extent]) -> int:
    count = 0
    for extent in extents:
        count += math.prod(end - start for start, end in extent)
    return count


def _rows(extents: set[Extent]) -> int:
    """How many rows some extents have a part of: those of equal shards are the same, or apart."""
    spans = {extent[0] for extent in extents if extent}
    return sum(end - start for start, end in spans)
