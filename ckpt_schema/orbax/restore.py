"""Restore a checkpoint of either side of a lens into a target of either side, sharded as the target says."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from ckpt_schema import leaves
from ckpt_schema.errors import CheckpointMismatchError, ConformanceError
from ckpt_schema.frameworks import nnx
from ckpt_schema.lens.core import Lens, derive
from ckpt_schema.lens.execute import mesh_of, on_devices
from ckpt_schema.orbax import metadata
from ckpt_schema.orbax.metadata import DiskTree
from ckpt_schema.orbax.sides import Place, locate, toward
from ckpt_schema.trees import Tree

__all__ = ["RestoreTimes", "restore"]

Target = TypeVar("Target")


@dataclasses.dataclass(frozen=True, slots=True)
class RestoreTimes:
    """Where the time of a restore went, in seconds.

    Attributes:
        metadata: Reading the metadata, finding the side on disk, and validating everything.
        read: Orbax reading the arrays.
        lens: Translating them; next to nothing where the target's own layout is on disk.
    """

    metadata: float
    read: float
    lens: float


def restore(
    path: epath.PathLike, target: Target, lens: Lens, *, times: Callable[[RestoreTimes], None] | None = None
) -> Target:
    """Restores the checkpoint at ``path`` into the form of ``target``.

    Which side of the lens is on disk is decided from one metadata read. A checkpoint of the target's own layout is loaded as it
    is; one of the other side is loaded in its own layout, straight into the shardings that the lens makes of the target's, and
    then translated. A lens of weights alone finds them in a full train state too, and reads nothing else of it. All of it is
    validated before a byte of array data is read.

    Args:
        path: A checkpoint directory, local or remote.
        target: An abstract or concrete ``nnx.State``, ``TrainState`` or dict of either side, or an ``nnx.Module``. Shardings of
            its leaves are kept; leaves without one go to the default device. Private leaves that the disk lacks are taken from a
            concrete target, or else from their declared defaults.
        lens: The lens.
        times: Called once with the time each part took.

    Returns:
        A tree of the target's own kind. A module is updated, and returned, only when all went well.

    Raises:
        CheckpointMismatchError: There is no checkpoint, or it is of neither side, or differs from the target, with every fault.
        ConformanceError: The target is on neither side, or a value cannot be carried over exactly.
    """
    clock = [time.perf_counter()]
    state: Any = nnx.state_of(target)
    side = toward(state, lens, "the target")
    disk = metadata.read(path)
    place = locate(disk, side)
    if place.layout is side.view:
        side = derive(side.view, side.view).bind(**side.dims) if side.dims else derive(side.view, side.view)
    wanted = _wanted(disk, place, state, side)
    clock.append(time.perf_counter())
    loaded = metadata.load(disk, place.prefix, wanted)
    clock.append(time.perf_counter())
    result = side.get(loaded, onto=state)
    if times is not None:
        jax.block_until_ready(result)
        clock.append(time.perf_counter())
        times(RestoreTimes(*(after - before for before, after in zip(clock, clock[1:], strict=False))))
    return nnx.updated(target, result)


def _wanted(disk: DiskTree, place: Place, state: Tree, side: Lens) -> Tree:
    """The abstract tree to load: what the lens makes of the target, in the disk's containers, with a sharding on every leaf.

    Raises:
        CheckpointMismatchError: Shapes on disk and in the target do not fit one another.
    """
    stored = disk.at(place.prefix)
    goal = jax.tree.map(leaves.abstract, state)
    try:
        expected = side.put(goal, onto=stored)
        side.rehearse(expected, onto=state)
    except ConformanceError as error:
        header = f"{disk.path} does not fit the target: {len(error.mismatches)} fault(s)"
        raise CheckpointMismatchError(header, error.mismatches) from error
    mesh = mesh_of(jax.tree.leaves(goal))
    spare = SingleDeviceSharding(jax.devices()[0]) if mesh is None else NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda leaf, found: _placed(leaf, found, spare), expected, stored)


def _placed(leaf: Any, found: Any, spare: Any) -> Any:
    if leaves.is_scalar(found):
        return found  # Orbax stores Python numbers as such, and only loads them as such
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=on_devices(leaf.sharding) or spare)

