"""What Orbax has loaded, each leaf proved to be what was asked for."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from ckpt_schema._layouts import leaves, paths
from ckpt_schema._layouts.leaves import Leaf
from ckpt_schema._trees import placement
from ckpt_schema._trees.containers import Tree, flatten
from ckpt_schema._trees.defaults import stand_in
from ckpt_schema.errors import CheckpointMismatchError, Mismatch
from ckpt_schema.orbax._metadata import SKIP, DiskTree

__all__ = ["verified"]


def verified(loaded: Tree, wanted: Tree, expected: Tree, disk: DiskTree) -> Tree:
    """The loaded leaves, numbers as arrays, each proved to be what was expected.

    And stand-ins for those that were not read.

    Raises:
        CheckpointMismatchError: With every leaf that Orbax did not load, or not as it was asked to.
    """
    asked, (goals, treedef) = jax.tree.leaves(wanted), jax.tree.flatten(expected)
    values = jax.tree.structure(wanted).flatten_up_to(loaded)
    # Of each leaf that is not what it should be, its kind of fault and the hint, by position.
    wrong: dict[int, tuple[str, str]] = {}
    made: list[Any] = []
    for at, (order, goal, value) in enumerate(zip(asked, goals, values, strict=True)):
        if order is SKIP:
            made.append(stand_in(goal))
            continue
        # Orbax gives a number back as Python has it.
        if leaves.is_scalar(value) and leaves.accepts(_leaf(goal), value):
            array = np.asarray(value, goal.dtype)
            narrow = leaves.is_narrowed(goal.dtype)  # then it stays NumPy's, and goes into a number
            value = array if narrow else placement.placed(array, goal.sharding)
        if not isinstance(value, (jax.Array, np.ndarray)) or leaves.signature(
            value
        ) != leaves.signature(goal):
            kind = "cast" if leaves.is_scalar(value) else "leaf"
            hint = "the checkpoint is damaged"
            if kind == "cast":
                hint = f"{goal.dtype} does not hold it"
            wrong[at] = kind, hint
        made.append(value)
    # Key paths are made only where there is something to tell.
    if wrong:
        keys = flatten(expected).keys
        faults: list[Mismatch] = []
        for at, (kind, hint) in wrong.items():
            told = str(_leaf(goals[at])), leaves.describe(made[at])
            faults.append(Mismatch(paths.format_path(keys[at]), kind, *told, hint))
        raise CheckpointMismatchError(f"{disk.path} cannot be restored as expected", faults)
    return treedef.unflatten(made)


def _leaf(goal: Any) -> Leaf:
    """What is declared of a leaf of this shape and dtype."""
    return Leaf(tuple([(size,) for size in goal.shape]), str(goal.dtype))
