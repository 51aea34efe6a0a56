"""Save a state of either side of a lens in the layout of its source."""

from __future__ import annotations

from typing import Any

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from ckpt_schema import leaves, paths
from ckpt_schema.errors import CheckpointExistsError, ConformanceError, Mismatch
from ckpt_schema.frameworks import nnx
from ckpt_schema.lens.core import Lens
from ckpt_schema.orbax.sides import toward
from ckpt_schema.trees import Tree, flatten

__all__ = ["save"]


def save(path: epath.PathLike, state: Any, lens: Lens, *, onto: Tree | None = None) -> None:
    """Saves ``state`` as a checkpoint in the layout of ``lens.source``, whichever side it is on.

    An NNX run that writes Linen checkpoints passes a lens from Linen to NNX; ``~lens`` writes the other way. Leaves that the
    source has no place for are private to the view by declaration, and are not saved. Everything is validated before anything is
    written; Orbax writes to a temporary directory and renames it, so that what exists is whole.

    Args:
        path: The directory to make, local or remote. It must not exist.
        state: A concrete ``nnx.State``, ``nnx.Module``, ``TrainState`` or dict.
        lens: The lens.
        onto: Where the source's private leaves come from, and its containers; see `Lens.put`.

    Raises:
        CheckpointExistsError: There is something at ``path``; it is not touched.
        ConformanceError: The state is on neither side, holds abstract or deleted leaves, or a value cannot be carried over.
    """
    place = epath.Path(path)
    if place.exists():
        fault = Mismatch(str(place), "checkpoint", "nothing there yet", "a file or directory", "save elsewhere, or remove it")
        raise CheckpointExistsError(f"{place} exists and is not overwritten: 1 fault", [fault])
    tree = nnx.state_of(state)
    side = toward(tree, lens, "the state")
    _verify_values(tree)
    if side.view is lens.view:
        tree = side.put(tree, onto=onto)
    jax.block_until_ready(tree)
    ocp.save(place, tree)


def _verify_values(tree: Tree) -> None:
    """Refuses what has no values: Orbax would find out half-way through its write."""
    flat = flatten(tree)
    faults = [
        Mismatch(paths.format_path(key), "abstract", "a value", "an abstract leaf", "initialize the state before saving it")
        if leaves.is_abstract(leaf)
        else Mismatch(paths.format_path(key), "abstract", "a value", "a deleted array", "it was donated; keep what jit returned")
        for key, leaf in zip(flat.keys, flat.leaves, strict=True)
        if leaves.is_abstract(leaf) or (isinstance(leaf, jax.Array) and leaf.is_deleted())
    ]
    if faults:
        raise ConformanceError(f"the state cannot be saved: {len(faults)} fault(s)", faults)
