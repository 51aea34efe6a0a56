"""A checkpoint that is the very tree of a target: nothing is translated, and Orbax alone reads it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ckpt_schema._layouts import leaves
from ckpt_schema._layouts.dims import Binder
from ckpt_schema._layouts.table import Layout
from ckpt_schema._lens.arrays.checks import narrowed
from ckpt_schema._lens.lens import Lens
from ckpt_schema._trees.conformance import Match
from ckpt_schema._trees.containers import FlatTree, Tree, flatten
from ckpt_schema.orbax._load import number_for
from ckpt_schema.orbax._loaded_leaves import verified
from ckpt_schema.orbax._metadata import DiskTree, read_arrays
from ckpt_schema.orbax._sides import interchangeable
from ckpt_schema.orbax._targets import goals, placed_abstract, spare_sharding, verify_meshes

__all__ = ["SameLayout", "same_layout"]

_WIDEST = {int: "int64", float: "float64"}


@dataclasses.dataclass(frozen=True, slots=True)
class SameLayout:
    """A restore that translates nothing.

    Attributes:
        disk: What is on disk.
        name: What the layout is called.
        expected: What is read, as abstract leaves with shardings, in the containers of the disk.
        wanted: What is asked of Orbax.
        state: The target, as what its leaves ask for.
        positions: For each leaf of the target, which leaf on disk it is.
    """

    disk: DiskTree
    name: str
    expected: Tree
    wanted: Tree
    state: Tree
    positions: tuple[int, ...]

    def load(self) -> Tree:
        """What Orbax loads, in the form of the target.

        Raises:
            CheckpointMismatchError: It cannot be read, or is not what was asked for.
        """
        loaded = read_arrays(self.disk, (), self.wanted)
        read = jax.tree.leaves(verified(loaded, self.wanted, self.expected, self.disk))
        asked, treedef = jax.tree.flatten(self.state)
        made: list[Any] = []
        for like, at in zip(asked, self.positions, strict=True):
            made.append(type(like)(read[at]) if leaves.is_scalar(like) else read[at])
        return treedef.unflatten(made)


def same_layout(disk: DiskTree, target: Tree, lens: Lens | None) -> SameLayout | None:
    """How a checkpoint is read that has the keys, shapes and dtypes of the target, and no others.

    None where it has others, or where it is not certain that both are of one side of the lens.

    Args:
        disk: What is on disk.
        target: The target's state.
        lens: The lens, if one is given.

    Raises:
        ConformanceError: The target has shardings over a mesh without devices.
    """
    if disk.parts or disk.reader is not None or disk.joined is not None:
        return None
    stored, asked = flatten(disk.tree), flatten(target)
    positions = _positions(stored, asked)
    if positions is None:
        return None
    dtypes: Mapping[int, str] = {}
    name = "the target's own"
    if lens is not None:
        match = _match(asked, lens)
        if match is None:
            return None
        table, held = match
        name = table.name
        # A Python number of the target says no dtype: the lens does.
        dtypes = {at: table.rows[number].leaf.dtype for (number, _), at in held.slots.items()}
    state = goals(target)
    verify_meshes(state)
    spare = spare_sharding(state)
    expected: list[Any] = [None] * len(positions)
    wanted: list[Any] = [None] * len(positions)
    for at, (leaf, place) in enumerate(zip(jax.tree.leaves(state), positions, strict=True)):
        if leaves.is_scalar(leaf):
            wanted[place] = number_for(stored.leaves[place])
            dtype = dtypes.get(at, _WIDEST[type(wanted[place])])
            expected[place] = placed_abstract(jax.ShapeDtypeStruct((), np.dtype(dtype)), spare)
        else:
            wanted[place] = expected[place] = placed_abstract(leaf, spare)
    made = stored.treedef.unflatten
    return SameLayout(disk, name, made(expected), made(wanted), state, positions)


def _positions(stored: FlatTree, asked: FlatTree) -> tuple[int, ...] | None:
    """For each leaf of the target, the leaf on disk that has its key, shape and dtype; None unless all have one."""
    if len(stored.leaves) != len(asked.leaves):
        return None
    # A save turns keys of every kind into strings.
    places = {tuple(map(str, key)): at for at, key in enumerate(stored.keys)}
    positions: list[int] = []
    for key, leaf in zip(asked.keys, asked.leaves, strict=True):
        place = places.pop(tuple(map(str, key)), None)
        found = leaves.signature(leaf)
        if place is None or found is None or found != leaves.signature(stored.leaves[place]):
            return None
        # A bool or a complex number is read by the longer way, which has faults for it.
        if leaves.is_scalar(leaf) and type(leaf) not in _WIDEST:
            return None
        if not leaves.is_scalar(leaf) and narrowed("", found[1]):
            return None
        positions.append(place)
    return tuple(positions)


def _match(flat: FlatTree, lens: Lens) -> tuple[Layout, Match] | None:
    """The one side of a lens that a target conforms to."""
    # A target that fits both sides is left to `toward`, which says what to do, unless both are one.
    fitting = [side for side in reversed(lens.matchers) if side.has_keys(flat)]
    if not fitting or (len(fitting) > 1 and not interchangeable(lens)):
        return None
    match = fitting[0].match(flat, Binder(lens.dims))
    return (fitting[0].layout, match) if match.report.ok else None
