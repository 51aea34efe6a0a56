"""A target as a restore sees it: what each of its leaves asks for."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Generator, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from ckpt_schema._compat import Tracer
from ckpt_schema._layouts import leaves, paths
from ckpt_schema._layouts.leaves import Init
from ckpt_schema._lens.arrays.checks import narrowed
from ckpt_schema._lens.arrays.donation import Donation
from ckpt_schema._lens.arrays.shardings import mesh_of, on_devices
from ckpt_schema._lens.derived_lens import derive
from ckpt_schema._lens.lens import Lens, planned
from ckpt_schema._trees import placement
from ckpt_schema._trees.conformance import Match
from ckpt_schema._trees.containers import Tree, flatten, without
from ckpt_schema._trees.defaults import stand_in
from ckpt_schema._trees.slots import SlotFinder
from ckpt_schema._trees.undeclared import unread
from ckpt_schema.errors import CkptSchemaError, ConformanceError, Mismatch

__all__ = [
    "abstracted",
    "declared",
    "given_up",
    "goals",
    "identity_on",
    "kept_positions",
    "placed_abstract",
    "restarted",
    "spare_sharding",
    "told_of_loss",
    "verify_even",
    "verify_meshes",
    "with_stand_ins",
    "with_values",
]


def declared(state: Tree, lens: Lens) -> Tree:
    """The target without what neither side declares and a model works without: streams, caches, records of a pass."""
    finders = [SlotFinder(lens.source), SlotFinder(lens.view)]

    # Which side the target is on is not known yet: what either side declares may be read.
    def is_declared(key: paths.KeyPath) -> bool:
        return any(finder.slot(key, stored=False) is not None for finder in finders)

    left = unread(state, is_declared)
    return without(state, left) if left else state


def _as_jax(leaf: Any) -> Any:
    """A NumPy leaf as an array of jax.

    As it is where jax has none like it, which the layout then says.
    """
    try:
        return jnp.asarray(leaf)
    except (TypeError, ValueError):  # big-endian, text, objects, masked arrays
        return leaf


def goals(target: Tree) -> Any:
    """The leaves of the target as what they ask for.

    An array that was donated has no value, and NumPy arrays become jax's. An array that jax has put
    on the first device because nobody said where has no sharding of its own, and none that jit
    would take beside those of a mesh: it goes to that mesh.
    """
    mesh = mesh_of(jax.tree.leaves(target))
    spare = None if mesh is None else NamedSharding(mesh, PartitionSpec())

    def goal(leaf: Any) -> Any:
        # An int64 that jax would make an int32 stays NumPy's: the layout has a fault for it,
        # with its path.
        if isinstance(leaf, (np.ndarray, np.generic)) and not narrowed("", str(leaf.dtype)):
            leaf = _as_jax(leaf)
        loose = (
            isinstance(leaf, jax.Array)
            and not isinstance(leaf, Tracer)
            and spare is not None
            and not leaf.committed
        )
        # A training step may have donated it: shape, dtype and sharding are still known.
        if isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer) and leaf.is_deleted():
            return jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=spare if loose else leaf.sharding
            )
        return placement.placed(leaf, spare) if loose else leaf

    return jax.tree.map(goal, target)


def verify_meshes(state: Tree) -> None:
    """Raises where a leaf is sharded over an abstract mesh that no mesh in context stands for.

    Raises:
        ConformanceError: With every such leaf.
    """
    meshes: list[Any] = []
    for leaf in jax.tree.leaves(state):
        meshes.append(getattr(getattr(leaf, "sharding", None), "mesh", None))
    # Nearly all targets name devices, or nothing at all: these need no key paths.
    if not any(map(_is_without_devices, meshes)):
        return
    hint = "restore within jax.set_mesh(mesh), or give the target shardings over a mesh of devices"
    faults: list[Mismatch] = []
    for key, own in zip(flatten(state).keys, meshes, strict=True):
        if not _is_without_devices(own):
            continue
        # An abstract mesh has axes and no devices.
        # The mesh in context stands for it if it has these axes.
        mesh = jax.sharding.get_mesh()
        if not dict(own.shape).items() <= dict(mesh.shape).items():
            where, expected = paths.format_path(key), f"a mesh with {dict(own.shape)} in context"
            found = "no mesh" if mesh.empty else f"{dict(mesh.shape)}"
            faults.append(Mismatch(where, "sharding", expected, found, hint))
    if faults:
        raise ConformanceError("the target's shardings name no devices", faults)


def verify_even(header: str, placed: Iterable[tuple[paths.KeyPath, Any]]) -> None:
    """Raises where devices cannot share an axis evenly, which jax does not allow."""
    faults: dict[paths.KeyPath, Mismatch] = {}
    for key, leaf in placed:
        sharding: Any = getattr(leaf, "sharding", None)
        try:
            if sharding is not None:
                sharding.shard_shape(leaf.shape)
        except ValueError:
            expected, found = "axes that the devices share evenly", leaves.describe(leaf)
            hint = (
                f"take another mesh, or another sharding than {getattr(sharding, 'spec', 'that')}"
            )
            faults[key] = Mismatch(paths.format_path(key), "sharding", expected, found, hint)
    if faults:
        raise ConformanceError(header, [*faults.values()])


def _is_without_devices(mesh: Any) -> bool:
    """Whether a mesh is an abstract one, which says how many devices there are and not which."""
    return mesh is not None and not isinstance(mesh, Mesh) and not mesh.empty


def with_values(state: Tree, values: Mapping[int, Any]) -> Tree:
    """The target with other leaves at some positions."""
    if not values:
        return state
    flat, treedef = jax.tree.flatten(state)
    return treedef.unflatten(values.get(at, leaf) for at, leaf in enumerate(flat))


def with_stand_ins(state: Tree) -> Tree:
    """The target with a value of no bytes in the place of each abstract leaf."""
    return jax.tree.map(lambda x: stand_in(x) if leaves.is_abstract(x) else x, state)


def restarted(state: Tree, side: Lens, match: Match) -> Tree:
    """The target without the values of what its transformation starts: it starts from the params that are restored."""
    joined = side.joined[1]
    rows = side.view.rows
    flat = jax.tree.leaves(state)
    fresh: dict[int, Any] = {}
    for (number, _), position in match.slots.items():
        # Its own moments belong to params that the restore is about to replace.
        if number not in joined and isinstance(rows[number].default, Init):
            fresh[position] = leaves.abstract(flat[position])
    return with_values(state, fresh)


def identity_on(side: Lens) -> Lens:
    """From the target's own layout to itself."""
    known = side.view.names()
    # The source may have dims that the view never names, and `derive` refuses those.
    dims = {name: size for name, size in side.dims.items() if name in known}
    return derive(side.view, side.view, dims=dims)


def abstracted(state: Tree, side: Lens, match: Match) -> Tree:
    """The target without its values, its numbers as what they are declared to be, whatever jax would make of them."""
    declared = {at: side.view.rows[number].leaf.dtype for (number, _), at in match.slots.items()}
    flat, treedef = jax.tree.flatten(state)
    abstract: list[Any] = []
    for position, leaf in enumerate(flat):
        # A step that is a Python int may be declared uint32, which no number says of itself.
        if leaves.is_scalar(leaf) and position in declared:
            abstract.append(jax.ShapeDtypeStruct((), np.dtype(declared[position])))
        else:
            abstract.append(leaves.abstract(leaf))
    return treedef.unflatten(abstract)


def placed_abstract(leaf: Any, spare: Any) -> jax.ShapeDtypeStruct:
    """A leaf without its value, with a sharding: its own, or the spare one."""
    own = getattr(leaf, "sharding", None)
    if own is not None and leaves.is_abstract(leaf) and on_devices(own) is own:
        return leaf  # of many leaves, making each anew takes long
    leaf = leaves.abstract(leaf)  # a number on disk that no leaf of the target stands for
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=on_devices(leaf.sharding) or spare)


def spare_sharding(goal: Tree) -> Sharding:
    """Where leaves go that have no sharding: to all of the mesh of the others, or else to the first device."""
    mesh = mesh_of(jax.tree.leaves(goal))
    if mesh is None:
        return SingleDeviceSharding(jax.local_devices()[0])
    return NamedSharding(mesh, PartitionSpec())


def kept_positions(expected: Tree, state: Tree, side: Lens, read: Collection[int]) -> set[int]:
    """The positions of the target's leaves whose values the result has, or is made of.

    Args:
        expected: What is read of the checkpoint, as an abstract tree.
        state: The target.
        side: The lens from the checkpoint's layout to the target's.
        read: The positions of private leaves that are read too.
    """
    flat = jax.tree.leaves(state)
    # Private leaves that are read too have values of the disk's: those of the target are not kept.
    held = with_values(state, {at: stand_in(flat[at]) for at in read})
    return planned(side, expected, held).kept() - set(read)


def given_up(whole: Tree, own: Tree, state: Tree, kept: Collection[int]) -> Tree:
    """Frees the memory of the target, but for the leaves at some positions, and returns it without their values.

    Args:
        whole: The target as it was given, whose other leaves are kept.
        own: What the layouts declare of it.
        state: The same, as what its leaves ask for.
        kept: The positions, in both of these, of the leaves that are kept.
    """
    flat, flat_own, flat_whole = jax.tree.leaves(state), flatten(own), flatten(whole)
    lost = [position for position in range(len(flat)) if position not in kept]
    lost_keys = {flat_own.keys[position] for position in lost}
    # What no layout declares, a cache or a stream, stays with its values;
    # so do leaves that are kept.
    needed: list[Any] = []
    for key, leaf in zip(flat_whole.keys, flat_whole.leaves, strict=True):
        if key not in lost_keys:
            needed.append(leaf)
    needed += [flat[position] for position in kept]
    given: list[Any] = []
    without_values: dict[int, jax.ShapeDtypeStruct] = {}
    for position in lost:
        leaf = flat[position]
        if isinstance(leaf, jax.Array):
            given.append(leaf)
            without_values[position] = leaves.abstract(leaf)
        # What a leaf asks for may be a copy of it, on the mesh of the others:
        # the leaf itself goes too.
        given.append(flat_own.leaves[position])
    Donation(given, needed)
    return with_values(state, without_values)


@contextlib.contextmanager
def told_of_loss(*, is_lost: bool) -> Generator[None]:
    """Code whose errors say that the target has no values any more, where that is so."""
    text = (
        "the target was given up before the read (donate_target=True), and has no values now; "
        "a restore of another checkpoint into it gives it values again"
    )
    try:
        yield
    except CkptSchemaError as error:
        # An error of this library shows its own notes, and is sent with them to other processes.
        error.notes += (text,) * is_lost
        raise
    except BaseException as error:
        if is_lost:
            error.add_note(text)
        raise
