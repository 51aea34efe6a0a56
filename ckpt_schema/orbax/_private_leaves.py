"""Private leaves on disk: what the layout of a checkpoint has no place for stands beside it, in a pytree of its own.

Whoever loads the checkpoint with Orbax alone does not meet them: they are another item of the same
directory. Some trainers keep them inside of the state instead, under one key; such checkpoints are
read too.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from ckpt_schema._layouts import leaves, paths
from ckpt_schema._layouts.paths import KeyPath
from ckpt_schema._layouts.table import Layout, Row, Slot
from ckpt_schema._lens.lens import Lens
from ckpt_schema._messages.text import counted
from ckpt_schema._trees.conformance import Match
from ckpt_schema._trees.containers import Tree, flatten
from ckpt_schema._trees.slots import SlotFinder
from ckpt_schema.errors import CheckpointMismatchError, ConformanceError, Mismatch
from ckpt_schema.orbax import _metadata as metadata
from ckpt_schema.orbax._agreement import raised_by_all
from ckpt_schema.orbax._metadata import SKIP, DiskTree
from ckpt_schema.orbax._sides import verify_names

__all__ = ["Orders", "PrivateLeaves", "find", "load_private", "private_leaves", "verify_private"]

Orders = Mapping[int, tuple[KeyPath, Any]]
"""For leaves of a target, by position: the key path of the private leaf on disk, and as what it is to be read."""


def private_leaves(match: Match, lens: Lens) -> dict[Any, Any]:
    """The leaves of a tree of the view that the source has no place for, as nested dicts.

    Empty when there are none.
    """
    private = lens.private[1]
    root: dict[Any, Any] = {}
    for (number, indices), position in match.slots.items():
        # A cache is private too, and no checkpoint keeps it.
        if number in private and not lens.view.rows[number].ephemeral:
            *above, last = paths.fill(lens.view.rows[number].key, indices)
            node = root
            for key in above:
                node = node.setdefault(key, {})
            node[last] = match.flat.leaves[position]
    return root


def verify_private(private: Tree, lens: Lens) -> None:
    """Raises unless these are private leaves of the lens's view.

    Raises:
        ConformanceError: With every leaf that the view does not have, or that the source has a
            place for.
    """
    private_rows, finder = lens.private[1], SlotFinder(lens.view)
    expected = f"a private leaf of {lens.view.name}"
    flat = flatten(private)
    faults: list[Mismatch] = []
    for key, leaf in zip(flat.keys, flat.leaves, strict=True):
        # `load_private` gives keys as the disk has them, where an int is a text.
        slot = finder.slot(key, stored=True)
        if slot is None or slot[0] not in private_rows:
            where, found = paths.format_path(key), leaves.describe(leaf)
            faults.append(Mismatch(where, "extra", expected, found))
    if faults:
        raise ConformanceError(
            f"private= is not what {lens.source.name} has no place for",
            faults,
        )


def load_private(path: epath.PathLike, *, aux: str = "nnx_aux") -> dict[Any, Any]:
    """The private leaves that a checkpoint keeps beside its state, for `save` to keep them in the next one.

    Args:
        path: A checkpoint directory.
        aux: What they are called there.

    Returns:
        Nested dicts of jax arrays, on the first device; on all of them where there are several
        processes.

    Raises:
        CheckpointMismatchError: There is no such checkpoint, or it keeps no private leaves.
    """
    with raised_by_all():
        verify_names(aux=aux)
        item = find(metadata.read_metadata(path), aux)
        if item is None:
            fault = Mismatch(
                str(path),
                "checkpoint",
                f"private leaves called {aux}",
                "none",
                "it was saved without any",
            )
            raise CheckpointMismatchError(f"{path} keeps no private leaves", [fault])
    here = SingleDeviceSharding(jax.local_devices()[0])
    # Of several processes Orbax saves no array that is on the devices of one.
    if jax.process_count() > 1:
        here = NamedSharding(jax.make_mesh((jax.device_count(),), ("all",)), PartitionSpec())
    wanted = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), item.tree
    )
    with raised_by_all():
        return metadata.read_arrays(item.disk, item.prefix, wanted)


@dataclasses.dataclass(frozen=True, slots=True)
class PrivateLeaves:
    """Private leaves in a checkpoint.

    Attributes:
        disk: The pytree that holds them.
        prefix: Where in it they stand.
        tree: They, without values.
        total: Whether these have to be all the private leaves of the target, and no others. A target
            that has none has no place for these, and leaves them.
    """

    disk: DiskTree
    prefix: KeyPath
    tree: Tree
    total: bool = True

    def wanted(self, state: Tree, side: Lens, match: Match) -> Orders:
        """Which leaf of the target is which of these.

        Args:
            state: The target.
            side: The lens from the checkpoint's layout to the target's.
            match: The target, matched with the lens's view.

        Raises:
            CheckpointMismatchError: With every private leaf of the target that is not here, is
                another here, or is here alone.
        """
        private = side.private[1]
        goals = jax.tree.leaves(state)
        here = self.slots(side)
        strays = self.strays(side)
        own: list[tuple[Slot, int]] = []
        for slot, position in match.slots.items():
            if slot[0] in private and not side.view.rows[slot[0]].ephemeral:
                own.append((slot, position))
        # A target without private leaves of its own, as one for serving,
        # leaves those on disk alone.
        faults: list[Mismatch] = []
        for key, stored in strays if self.total and own else ():
            faults.append(Mismatch(paths.format_path(key), "extra", "no such leaf", stored, _HINT))
        if strays and not self.total:
            _LOGGER.info(
                "%s not read, as the target has no place for them: %s",
                counted(len(strays), "private leaf", "private leaves"),
                ", ".join(paths.format_path(key) for key, _ in strays[:_NAMED]),
            )
        orders: dict[int, tuple[KeyPath, Any]] = {}
        for slot, position in own:
            row, goal = side.view.rows[slot[0]], leaves.abstract(goals[position])
            where = paths.format_path(paths.fill(row.key, slot[1]))
            if slot not in here:
                if self.total:
                    faults.append(
                        Mismatch(where, "missing", leaves.describe(goal), "no such leaf", _HINT)
                    )
                continue
            key, stored = here[slot]
            # They come from a run of the same model: nothing is cast, and a difference is a fault.
            if leaves.signature(stored) != leaves.signature(goal):
                kind = (
                    "shape"
                    if stored.dtype == goal.dtype
                    else "impl"
                    if row.leaf.is_key
                    else "dtype"
                )
                hint = _RAW if kind == "impl" and str(stored.dtype) == "uint32" else _HINT
                faults.append(
                    Mismatch(where, kind, leaves.describe(goal), leaves.describe(stored), hint)
                )
            orders[position] = key, goal
        if faults:
            faults.sort(key=lambda fault: paths.natural(fault.path))
            header = f"the private leaves in {self.disk.path} are not those of the target"
            raise CheckpointMismatchError(header, faults)
        return orders

    def slots(self, side: Lens) -> dict[Slot, tuple[KeyPath, Any]]:
        """The key path of each that is a leaf of the view, and the leaf, by what it is there."""
        known: dict[Slot, tuple[KeyPath, Any]] = {}
        for key, leaf, slot in self._found(side.view):
            if slot is not None:
                known[slot] = (key, leaf)
        return known

    def strays(self, side: Lens) -> list[tuple[KeyPath, str]]:
        """The key path of each that is no leaf of the view, and what it is."""
        strays: list[tuple[KeyPath, str]] = []
        for key, leaf, slot in self._found(side.view):
            if slot is None:
                strays.append((key, leaves.describe(leaf)))
        return strays

    def rows(self, view: Layout) -> list[Row]:
        """The rows of a layout of which leaves are here."""
        numbers = {slot[0] for _, _, slot in self._found(view) if slot is not None}
        return [view.rows[number] for number in sorted(numbers)]

    def _found(self, view: Layout) -> list[tuple[KeyPath, Any, Slot | None]]:
        """Every leaf, and which of the view's it is.

        Where the view is weights alone, only those of the weights.
        """
        flat, finder = flatten(self.tree), SlotFinder(view)
        # A train state has its weights under a home, as `params`,
        # which a view of weights does not have.
        home: KeyPath = ()
        for place in view.homes:
            if any(key[: len(place)] == place for key in flat.keys):
                home = place
                break
        located: list[tuple[KeyPath, Any, Slot | None]] = []
        for key, leaf in zip(flat.keys, flat.leaves, strict=True):
            if key[: len(home)] == home:
                located.append((key, leaf, finder.slot(key[len(home) :], stored=True)))
        return located

    def load(self, orders: Orders) -> dict[int, Any]:
        """The values, by position in the target."""
        # Orbax is given all of the tree, with a placeholder for what is not read.
        by_key = dict(orders.values())
        flat = flatten(self.tree)
        order = flat.treedef.unflatten([by_key.get(key, SKIP) for key in flat.keys])
        loaded = flat.treedef.flatten_up_to(metadata.read_arrays(self.disk, self.prefix, order))
        values = dict(zip(flat.keys, loaded, strict=True))
        return {position: values[key] for position, (key, _) in orders.items()}


_LOGGER = logging.getLogger("ckpt_schema")
_NAMED = 5
_HINT = "the model has changed since; restore with aux=None, and they are made anew"
_RAW = "raw data of a key: state_of(..., raw_keys=True) makes a key of it, or pass aux=None, and it is made anew"


def find(disk: DiskTree, aux: str | None, *, total: bool = True) -> PrivateLeaves | None:
    """The private leaves beside the state, or inside of it.

    None where there are none, or ``aux`` is None.
    """
    if aux is None:
        return None
    # Inside first: some trainers keep them under a key of the state,
    # and older releases have one pytree.
    inside = disk.at((aux,))
    if inside is not None:
        return PrivateLeaves(disk, (aux,), inside, total)
    if aux in disk.beside:
        other = metadata.read_metadata(disk.path, aux)
        return PrivateLeaves(other, (), other.tree, total)
    return None
