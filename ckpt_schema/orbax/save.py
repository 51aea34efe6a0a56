"""Save a state of either side of a lens in the layout of its source."""

from __future__ import annotations

import collections
import contextlib
import time
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.core import Tracer
from orbax.checkpoint import v1 as ocp

from ckpt_schema import leaves, paths
from ckpt_schema.errors import CheckpointExistsError, ConformanceError, Mismatch
from ckpt_schema.frameworks import linen, nnx
from ckpt_schema.lens.core import Lens
from ckpt_schema.orbax.agreement import agree, raised_by_all
from ckpt_schema.orbax.metadata import absolute
from ckpt_schema.orbax.private import private_leaves, verify_private
from ckpt_schema.orbax.sides import Side, toward
from ckpt_schema.slots import SlotFinder
from ckpt_schema.table import Layout
from ckpt_schema.trees import FlatTree, Tree, flatten, without

__all__ = ["save"]

_STATE = "state"  # what Orbax's own save calls the one pytree of a checkpoint
_UNSTORABLE = ("uint2", "uint4", "float8_e4m3")
_SWEEPS, _QUIET = 40, 5  # at most, and in a row without a find: two seconds, a quarter of one


def save(
    path: epath.PathLike,
    state: Any,
    lens: Lens,
    *,
    onto: Tree | None = None,
    side: Side | None = None,
    aux: str | None = "nnx_aux",
    private: Tree | None = None,
) -> None:
    """Saves ``state`` as a checkpoint in the layout of ``lens.source``, whichever side it is on.

    An NNX run that writes Linen checkpoints passes a lens from Linen to NNX; ``~lens`` writes the other way. Leaves that the
    source has no place for, which are private to the view by declaration, stand beside the state in a pytree of their own: who
    loads the checkpoint without this library does not meet them, and `restore` gives them back. Everything is validated before
    anything is written; Orbax writes to a temporary directory and renames it, so that what exists is whole.

    Args:
        path: The directory to make, local or remote. It must not exist.
        state: A concrete ``nnx.State``, ``nnx.Module``, ``TrainState`` or dict.
        lens: The lens.
        onto: Where the source's private leaves come from, and its containers; see `Lens.put`. Boxes are saved if it has them.
        side: The side that the state is on, for states that conform to both.
        aux: The name of that pytree. With None, private leaves are not saved.
        private: The private leaves that are saved beside it, as `load_private` returns them; those of the state unless given.

    Raises:
        CheckpointExistsError: There is something at ``path``; it is not touched.
        ConformanceError: The state is on neither side, or could be on either, or holds leaves that Orbax cannot save, or values
            that cannot be carried over.
    """
    place, tree = absolute(path), nnx.state_of(state)
    with raised_by_all():
        if (
            jax.process_index() == 0
        ):  # of several, another may have begun to write when this one looks
            _verify_free(place)
        turned, match = toward(tree, lens, "the state", side, "side")
        _verify(tree, _valueless)
        if private is not None:
            verify_private(private, lens)
        _verify_name(aux, private)
    agree(
        "processes do not save the same",
        {"path": place, **_of_hosts(tree)} if jax.process_count() > 1 else {},
    )
    with raised_by_all():
        source = tree
        if turned.view is lens.view:
            source = turned.put(tree, onto=onto)
            source = linen.unboxed(source) if onto is None else source
            private = private_leaves(match, turned) if private is None else private
        source = _lasting(source, turned.view if source is tree else turned.source)
        items = {_STATE: source} | ({aux: private} if aux is not None and private else {})
        for item in items.values():
            _verify(item, _valueless)
            _verify(item, _unsavable)
    _write(place, jax.tree.map(_savable, jax.block_until_ready(items)))


def _of_hosts(tree: Tree) -> dict[str, str]:
    """The leaves that each process has for itself, and what must be the same in all of them: a number, or a checksum."""
    flat = flatten(tree)
    pairs = [
        (paths.format_path(key), leaf) for key, leaf in zip(flat.keys, flat.leaves, strict=True)
    ]
    numbers = {where: repr(leaf) for where, leaf in pairs if leaves.is_scalar(leaf)}
    arrays = {where: leaf for where, leaf in pairs if isinstance(leaf, (np.ndarray, np.generic))}
    return numbers | {
        at: f"{leaves.describe(x)} with checksum {zlib.crc32(np.asarray(x).tobytes()):08x}"
        for at, x in arrays.items()
    }


def _verify_free(place: epath.Path) -> None:
    if place.exists():
        fault = Mismatch(
            str(place),
            "checkpoint",
            "nothing there yet",
            "a file or directory",
            "save elsewhere, or remove it",
        )
        raise CheckpointExistsError(f"{place} exists and is not overwritten", [fault])
    above = next((p for p in place.parents if p.exists()), place)
    if above.exists() and not above.is_dir():
        fault = Mismatch(
            str(above),
            "checkpoint",
            "a directory, or nothing",
            "a file",
            "save elsewhere, or remove it",
        )
        raise CheckpointExistsError(f"{place} cannot be made below a file", [fault])


def _lasting(tree: Tree, table: Layout) -> Tree:
    """The tree without its ephemeral leaves."""
    if not any(row.ephemeral for row in table.rows):
        return tree
    flat, slot = flatten(tree), SlotFinder(table).slot
    found = ((key, slot(key, stored=flat.stored)) for key in flat.keys)
    return without(
        tree, {key for key, at in found if at is not None and table.rows[at[0]].ephemeral}
    )


def _verify_name(aux: str | None, private: Tree | None) -> None:
    if aux is None and private is None:
        return
    if not aux or aux == _STATE or "/" in aux:
        fault = Mismatch(
            "aux", "declaration", "a name of its own for the private leaves", repr(aux)
        )
        raise ConformanceError("private leaves have no place", [fault])


def _verify(tree: Tree, check: Any) -> None:
    faults = sorted(check(flatten(tree)), key=lambda fault: paths.natural(fault.path))
    if faults:
        raise ConformanceError("the state cannot be saved", faults)


def _valueless(flat: FlatTree) -> Iterator[Mismatch]:
    """Leaves without values: Orbax would find out half-way through its write."""
    for key, leaf in zip(flat.keys, flat.leaves, strict=True):
        where = paths.format_path(key)
        if leaves.is_abstract(leaf):
            yield Mismatch(
                where,
                "abstract",
                "a value",
                "an abstract leaf",
                "initialize the state before saving it",
            )
        elif isinstance(leaf, Tracer):
            yield Mismatch(where, "abstract", "a value", "a tracer", "save outside of jit")
        elif isinstance(leaf, jax.Array) and leaf.is_deleted():
            yield Mismatch(
                where,
                "abstract",
                "a value",
                "a deleted array",
                "it was donated; keep what jit returned",
            )


def _unsavable(flat: FlatTree) -> Iterator[Mismatch]:
    """What Orbax refuses half-way, or loses.

    Empty arrays, some dtypes, leaves with one name when joined by dots; and of several processes, jax arrays that one has for
    itself: whose would be written?
    """
    several = jax.process_count() > 1
    names = collections.Counter(".".join(map(str, key)) for key in flat.keys)
    for key, leaf in zip(flat.keys, flat.leaves, strict=True):
        where, name = paths.format_path(key), ".".join(map(str, key))
        if 0 in (leaves.signature(leaf) or ((),))[0]:
            yield Mismatch(
                where,
                "shape",
                "at least one element",
                leaves.describe(leaf),
                "Orbax saves no empty arrays",
            )
        if (leaves.signature(leaf) or ((), ""))[1] in _UNSTORABLE:
            yield Mismatch(
                where,
                "dtype",
                "a dtype that Orbax stores",
                leaves.describe(leaf),
                "TensorStore has no such dtype",
            )
        if several and isinstance(leaf, jax.Array) and leaf.is_fully_addressable:
            hint = "jax.device_put it to NamedSharding(mesh, PartitionSpec()), or make it under jit with out_shardings"
            found = f"{leaves.describe(leaf)} on devices of one process"
            yield Mismatch(
                where, "sharding", "a global array, over devices of all processes", found, hint
            )
        if names[name] > 1:
            yield Mismatch(
                where,
                "ambiguous",
                f"one leaf called {name}",
                str(names[name]),
                "Orbax would keep one of them",
            )


def _savable(leaf: Any) -> Any:
    """NumPy scalars, which Orbax refuses, and bools, which make its metadata unreadable, as arrays."""
    return np.asarray(leaf) if isinstance(leaf, (bool, np.generic)) else leaf


def _write(place: epath.Path, items: dict[str, Tree]) -> None:
    """Saves pytrees by name; if that fails, what this save has begun to write is removed."""
    first = jax.process_index() == 0
    before = _unfinished(place) if first else set[epath.Path]()
    try:
        ocp.save_checkpointables(place, items)
    except Exception:
        if first:
            _sweep(place, before)
        raise


def _sweep(place: epath.Path, before: set[epath.Path]) -> None:
    """Removes what a failed save has left, until nothing of it comes back.

    Orbax raises at the first failure, while other arrays are still being written by threads that no one can wait for.
    """
    quiet = 0
    for _ in range(_SWEEPS):
        left = _unfinished(place) - before
        for path in left:
            with contextlib.suppress(
                OSError
            ):  # something was written to it meanwhile: the next round sees it
                path.rmtree(missing_ok=True)
        quiet = 0 if left else quiet + 1
        if quiet == _QUIET:
            return
        time.sleep(0.05)


def _unfinished(place: epath.Path) -> set[epath.Path]:
    if not place.parent.is_dir():
        return set()
    return {
        p for p in place.parent.iterdir() if p.name.startswith(f"{place.name}.orbax-checkpoint-tmp")
    }
