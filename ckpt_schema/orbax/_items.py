"""What a save writes of a state: a tree of the source, and what has no place there beside it."""

from __future__ import annotations

import collections
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from ckpt_schema._compat import Tracer
from ckpt_schema._frameworks import boxes, variables
from ckpt_schema._layouts import leaves, paths
from ckpt_schema._layouts.paths import KeyPath
from ckpt_schema._layouts.table import Layout
from ckpt_schema._lens.lens import Lens
from ckpt_schema._trees.containers import FlatTree, Tree, flatten, verify_readable, without
from ckpt_schema._trees.slots import SlotFinder
from ckpt_schema.errors import ConformanceError, Mismatch
from ckpt_schema.orbax._agreement import agree, raised_by_all
from ckpt_schema.orbax._places import verify_name
from ckpt_schema.orbax._private_leaves import private_leaves, verify_private
from ckpt_schema.orbax._raw_keys import in_words
from ckpt_schema.orbax._sides import Side, toward, verify_arguments, verify_written
from ckpt_schema.orbax._whereabouts import spread_over, verify_standing

__all__ = ["STATE", "items_of", "valueless", "verify_each"]

STATE = "state"
"""What Orbax's own save calls the one pytree of a checkpoint."""

# As TensorStore has it; a new release may store more.
_UNSTORABLE = ("uint2", "uint4", "float8_e4m3")


def items_of(
    state: Any,
    lens: Lens,
    *,
    onto: Tree | None = None,
    side: Side | None = None,
    item: str = STATE,
    at: str | None = None,
    items: Mapping[str, str] | None = None,
    aux: str | None = "nnx_aux",
    private: Tree | None = None,
    raw_keys: bool = False,
) -> dict[str, Tree]:
    """What `save` would write of ``state``: items by name, for any call of Orbax that takes some.

    So the state goes into one checkpoint with whatever else belongs there, and by whatever writes
    it: a manager, an asynchronous save. `restore` reads such a checkpoint as it reads those of
    `save`.

    Args:
        state: A concrete ``nnx.State``, ``nnx.Module``, ``TrainState`` or dict.
        lens: The lens.
        onto: Where the source's private leaves come from, and its containers; see `Lens.put`. Boxes
            are saved if it has them.
        side: The side that the state is on, for states that conform to both.
        item: The name of the item that holds the tree.
        at: The key path in it where the tree stands.
        items: For a state that is spread over several items, which one holds what is at a key; see
            `restore`.
        aux: The name of the item that holds the private leaves. With None, there is none.
        private: The private leaves that it holds, as `load_private` returns them; those of the
            state unless given.
        raw_keys: Whether typed keys become their raw data, for managers that hold no typed keys, as
            those of emergencies. `state_of` is told the same.

    Returns:
        The tree of ``lens.source`` under ``item``, and the private leaves under ``aux``, if
        there are any.

    Raises:
        ConformanceError: The state is on neither side, or could be on either, or holds leaves that
            Orbax cannot save, or values that cannot be carried over; or an argument is none.

    Example:
        ``checkpointer.save_checkpointables(step, {**items_of(run, lens), "data": iterator})``
    """
    with raised_by_all():
        verify_arguments(lens, side=side)
        verify_standing(at, items)
        for name in (item, *(items or {}).values()):
            verify_name(name, "item", "the state")
        if aux is not None or private is not None:
            taken = (item, *(items or {}).values())
            verify_name(aux, "aux", "the private leaves", taken)
        verify_readable(state)
        tree = variables.state_of(state)
        # Turned so that the state is on the view's side, whichever side of the user's lens that is.
        turned, match = toward(tree, lens, "the state", side, "side")
        # Only from the view there is anything to translate:
        # a state of the source is written as it is.
        if turned.view is lens.view:
            verify_written(lens.source, lens, onto)
        verify_each(tree, valueless)
        if private is not None:
            verify_private(private, lens)
    agree("processes do not save the same", _of_hosts(tree) if jax.process_count() > 1 else {})
    with raised_by_all():
        source = tree
        if turned.view is lens.view:
            source = turned.put(tree, onto=onto)
            # Boxes are written only where the caller's own tree has them.
            source = boxes.unboxed(source) if onto is None else source
            private = private_leaves(match, turned) if private is None else private
        source = _lasting(source, turned.view if source is tree else turned.source)
        trees = spread_over(source, item, at, items or {})
        trees |= {aux: private} if aux is not None and private else {}
        trees = in_words(trees) if raw_keys else trees
        # Once more, of what will be written:
        # `onto` and `private` may hold leaves without values too.
        for tree in trees.values():
            verify_each(tree, valueless)
            verify_each(tree, _unsavable)
    return jax.tree.map(_savable, jax.block_until_ready(trees))


def _of_hosts(tree: Tree) -> dict[str, str]:
    """The leaves that each process has for itself, with what all must agree on: value, checksum."""
    flat = flatten(tree)
    numbers: dict[str, str] = {}
    arrays: dict[str, str] = {}
    for key, leaf in zip(flat.keys, flat.leaves, strict=True):
        where = paths.format_path(key)
        if leaves.is_scalar(leaf):
            numbers[where] = repr(leaf)
        elif isinstance(leaf, (np.ndarray, np.generic)):
            # The arrays themselves would be too much for the service by which processes agree.
            checksum = zlib.crc32(np.asarray(leaf).tobytes())
            arrays[where] = f"{leaves.describe(leaf)} with checksum {checksum:08x}"
    return numbers | arrays


def _lasting(tree: Tree, table: Layout) -> Tree:
    """The tree without its ephemeral leaves."""
    if not any(row.ephemeral for row in table.rows):
        return tree
    flat, finder = flatten(tree), SlotFinder(table)
    ephemeral: set[KeyPath] = set()
    for key in flat.keys:
        slot = finder.slot(key, stored=flat.stored)
        # A leaf without a slot is none of the layout's, and stays.
        if slot is not None and table.rows[slot[0]].ephemeral:
            ephemeral.add(key)
    return without(tree, ephemeral)


Wrong = tuple[KeyPath, str, str, str, str]
"""Where a leaf stands, and what is wrong with it: kind of fault, expected, found, what to do."""


def verify_each(tree: Tree, check: Callable[[FlatTree], Iterator[Wrong]]) -> None:
    """Raises with every fault that a check finds in a tree."""
    # A path is written where it is asked for: of thousands of small leaves,
    # writing each takes long.
    faults = [Mismatch(paths.format_path(key), *told) for key, *told in check(flatten(tree))]
    if faults:
        faults.sort(key=lambda fault: paths.natural(fault.path))
        raise ConformanceError("the state cannot be saved", faults)


def valueless(flat: FlatTree) -> Iterator[Wrong]:
    """Leaves without values: Orbax would find out half-way through its write."""
    for key, leaf in zip(flat.keys, flat.leaves, strict=True):
        if leaves.is_abstract(leaf):
            hint = "initialize the state before saving it"
            yield key, "abstract", "a value", "an abstract leaf", hint
        elif isinstance(leaf, Tracer):
            yield key, "abstract", "a value", "a tracer", "save outside of jit"
        elif isinstance(leaf, jax.Array) and leaf.is_deleted():
            hint = "it was donated; keep what jit returned"
            yield key, "abstract", "a value", "a deleted array", hint


def _unsavable(flat: FlatTree) -> Iterator[Wrong]:
    """What Orbax refuses half-way, or loses.

    Empty arrays, some dtypes, leaves with one name when joined by dots; and of several processes,
    jax arrays that one has for itself: whose would be written?
    """
    several = jax.process_count() > 1
    # Orbax joins the keys of an array by dots: {"a": {"b": x}} and {"a.b": y} are both a.b.
    names = [".".join(map(str, key)) for key in flat.keys]
    counts = collections.Counter(names)
    for key, name, leaf in zip(flat.keys, names, flat.leaves, strict=True):
        shape, dtype = leaves.signature(leaf) or ((), "")
        if 0 in shape:
            hint = "Orbax saves no empty arrays"
            yield key, "shape", "at least one element", leaves.describe(leaf), hint
        if dtype in _UNSTORABLE:
            hint = "TensorStore has no such dtype"
            yield key, "dtype", "a dtype that Orbax stores", leaves.describe(leaf), hint
        if type(leaf) is complex:
            hint = 'make it an array of its dtype, jax.numpy.asarray(x, "complex64")'
            yield key, "dtype", "a leaf that Orbax stores", leaves.describe(leaf), hint
        # A NumPy array is no matter: each process has the same one,
        # which is checked by its checksum.
        if several and isinstance(leaf, jax.Array) and leaf.is_fully_addressable:
            hint = (
                "jax.device_put it to NamedSharding(mesh, PartitionSpec()), "
                "or make it under jit with out_shardings"
            )
            found = f"{leaves.describe(leaf)} on devices of one process"
            yield key, "sharding", "a global array, over devices of all processes", found, hint
        if counts[name] > 1:
            hint = "Orbax would keep one of them"
            yield key, "ambiguous", f"one leaf called {name}", str(counts[name]), hint


def _savable(leaf: Any) -> Any:
    """As arrays: NumPy scalars, which Orbax refuses, and bools, which make metadata unreadable."""
    return np.asarray(leaf) if isinstance(leaf, (bool, np.generic)) else leaf
