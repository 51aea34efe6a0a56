"""What a conversion on disk is to do: which leaf of the new checkpoint is which of the old, and what is made."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath

from ckpt_schema._frameworks import boxes, variables
from ckpt_schema._layouts import leaves, paths
from ckpt_schema._layouts.dims import Binder
from ckpt_schema._layouts.paths import KeyPath
from ckpt_schema._layouts.table import Slot
from ckpt_schema._lens.lens import Lens, planned
from ckpt_schema._lens.plan.pieces import Pieces, pieces_of
from ckpt_schema._lens.read_sides import made_abstract, name_of
from ckpt_schema._messages.text import counted
from ckpt_schema._trees.conformance import Matcher
from ckpt_schema._trees.containers import FlatTree, Tree, build, flatten
from ckpt_schema._trees.defaults import stand_in
from ckpt_schema._trees.slots import SlotFinder
from ckpt_schema.errors import CheckpointMismatchError, ConformanceError, Mismatch
from ckpt_schema.orbax._adapt import Words, adapted
from ckpt_schema.orbax._metadata import DiskTree
from ckpt_schema.orbax._private_leaves import PrivateLeaves, find
from ckpt_schema.orbax._records import recorded_alone
from ckpt_schema.orbax._sides import Fit, Side, ambiguous, interchangeable, verify_written
from ckpt_schema.orbax._targets import declared
from ckpt_schema.orbax._whereabouts import meant, stand

__all__ = ["Route", "Whereabouts", "dotted", "route_through", "route_to"]


@dataclasses.dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where the state of a checkpoint stands, as `ckpt_schema.orbax.restore` is told it."""

    item: str | None
    at: str | None
    items: Mapping[str, str] | None
    aux: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class Route:
    """What a conversion is to do.

    Attributes:
        disk: The state on disk.
        fit: The part of it that is converted.
        private: What stands beside it.
        kept: Which leaves of that no layout has a place for, by key path: they stay beside the state.
        beside: Leaves of the state that the new layout has no place for, and where each goes beside it.
        pieces: What each leaf of the result is.
        sources: For each position that the pieces read: the tree on disk, and the key path in it.
        result: The new state, abstract.
    """

    disk: DiskTree
    fit: Fit
    private: PrivateLeaves | None
    kept: Sequence[KeyPath]
    beside: Mapping[int, KeyPath]
    pieces: Pieces
    sources: Mapping[int, tuple[DiskTree, KeyPath]]
    result: FlatTree


def dotted(key: KeyPath) -> str:
    """What Orbax calls a leaf in its files."""
    return ".".join(map(str, key))


def route_to(place: epath.Path, target: Any, words: Words, where: Whereabouts) -> Route:
    """The way from a checkpoint to the layout of a target."""
    given: dict[str, Any] = dataclasses.asdict(where)
    read = meant(place, **given)
    target = made_abstract(target)
    whole = variables.state_of(target)
    lens, read = adapted(read, whole, name_of(target, "the target"), words, where.aux)
    disk, fits = stand(place, lens, read, **given)
    # A target says types alone here: what is on no disk has no value that could be linked.
    onto = jax.tree.map(_plain, declared(whole, lens))
    return _route(disk, _of_source(fits, lens), lens, onto, where)


def route_through(
    place: epath.Path,
    lens: Lens,
    disk_side: Side | None,
    where: Whereabouts,
    read: DiskTree | None = None,
) -> Route:
    """The way from a checkpoint of either side of a lens to the other side.

    Args:
        place: The checkpoint.
        lens: The lens.
        disk_side: The side that is on disk, if that was said.
        where: Where the state stands.
        read: What is meant of the checkpoint, where that is known already.

    Raises:
        CheckpointMismatchError: There is none, or of neither side, or it could be of either.
    """
    disk, fits = stand(place, lens, read, **dataclasses.asdict(where))
    if disk_side is not None and len(fits) > 1:
        wanted = lens.source if disk_side == "source" else lens.view
        fits = [fit for fit in fits if fit.layout is wanted]
    # What fits both sides, and means something else in each, is what its own record says.
    if len(fits) > 1 and not interchangeable(lens):
        fits = recorded_alone(disk.path, fits, lambda fit: fit.layout)
    if not fits:
        raise ambiguous(CheckpointMismatchError, f"{disk.path} is a checkpoint", lens, "disk_side")
    fit = _of_source(fits, lens)
    verify_written(lens.view if fit.layout is lens.source else lens.source, lens)
    return _route(disk, fit, lens if fit.layout is lens.source else ~lens, None, where)


def _of_source(fits: Sequence[Fit], lens: Lens) -> Fit:
    return next((fit for fit in fits if fit.layout is lens.source), fits[0])


def _plain(leaf: Any) -> Any:
    """A leaf of a target, which is on disk and on no device."""
    if leaves.is_scalar(leaf):
        return leaves.untold(type(leaf))
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _route(disk: DiskTree, fit: Fit, through: Lens, onto: Tree | None, where: Whereabouts) -> Route:
    private = find(disk, where.aux, total=False)
    slots = {} if private is None else private.slots(through)
    # Private leaves that the new layout has a place for go back into the state.
    taken = {slot: at for slot, at in slots.items() if slot[0] in through.private[1]}
    if taken:
        onto = _filled(through, fit, taken) if onto is None else onto
        onto = _with_stand_ins(onto, through, taken)
    try:
        plan = planned(through, fit.tree, onto)
        result = through.get(fit.tree, onto=onto, drop=True)
    except ConformanceError as error:
        header = f"{disk.path} cannot be converted"
        raise CheckpointMismatchError(header, error.mismatches, error.notes) from error
    pieces = pieces_of(plan)
    sources = {at: (disk, (*fit.prefix, *key)) for at, key in enumerate(flatten(fit.tree).keys)}
    if onto is not None:
        sources |= _kept_sources(onto, through, taken, private, pieces, disk)
    # The others stay beside it, so that nothing is lost on the way there and back.
    used = {key for key, _ in taken.values()}
    rest: list[KeyPath] = []
    if private is not None:
        rest = [key for key in flatten(private.tree).keys if key not in used]
    _report(disk, fit)
    beside = _beside(through, fit)
    return Route(disk, fit, private, rest, beside, pieces, sources, flatten(boxes.unboxed(result)))


def _filled(through: Lens, fit: Fit, taken: Mapping[Slot, Any]) -> Tree:
    """The state that a lens makes of what is on disk, with the private leaves that stand beside it."""
    # No target says the sizes of dims that the view alone has: those of the disk are all there is.
    binder, view = Binder(through.dims), through.view
    Matcher(through.source).match(fit.tree, binder)
    unbound = sorted(view.names() - binder.sizes.keys())
    if unbound:
        hint = f"lens.bind({', '.join(f'{name}=...' for name in unbound)})"
        fault = Mismatch(", ".join(unbound), "dims", f"every dim of {view.name}", "no size", hint)
        raise CheckpointMismatchError(f"{view.name} cannot be bound", [fault])
    there = {number for number, _ in fit.slots}
    # An optional leaf stands in the result where the disk has what it is made of, and else not.
    joined: set[int] = set()
    for join in through.joins:
        if not there.isdisjoint(join.sources):
            joined.update(join.views)
    made: list[tuple[KeyPath, Any, Any]] = []
    for entry in view.entries(binder.sizes):
        number, row = entry.slot[0], view.rows[entry.slot[0]]
        is_wanted = number in joined or row.default is not None or not row.optional
        if is_wanted or entry.slot in taken:
            value = jax.ShapeDtypeStruct(entry.shape, leaves.dtype_of(row.leaf.dtype))
            made.append((entry.key, row, value))
    return build(view, made, binder.sizes)


def _with_stand_ins(onto: Tree, through: Lens, taken: Mapping[Slot, tuple[KeyPath, Any]]) -> Tree:
    """The tree with a value, whichever, where one stands on disk beside the state."""
    flat, slot = flatten(onto), SlotFinder(through.view).slot
    stand_ins = list(flat.leaves)
    for at, key in enumerate(flat.keys):
        own = slot(key, stored=flat.stored)
        if own is not None and own in taken:
            stand_ins[at] = stand_in(taken[own][1])
    return flat.treedef.unflatten(stand_ins)


def _kept_sources(
    onto: Tree,
    through: Lens,
    taken: Mapping[Slot, tuple[KeyPath, Any]],
    private: PrivateLeaves | None,
    pieces: Pieces,
    disk: DiskTree,
) -> dict[int, tuple[DiskTree, KeyPath]]:
    """Where on disk the leaves stand that the result keeps.

    Raises:
        CheckpointMismatchError: With every leaf that neither the checkpoint has nor a default makes.
    """
    flat, slot = flatten(onto), SlotFinder(through.view).slot
    sources: dict[int, tuple[DiskTree, KeyPath]] = {}
    faults: list[Mismatch] = []
    # A leaf of the target that nothing reads needs no source, as one that is made by a default.
    read: set[int] = set(pieces.places)
    for piece in pieces.every:
        read.update(piece.inputs)
    for number, key in enumerate(flat.keys):
        # Positions of the plan count the leaves of the disk first, then those of the target.
        at, own = pieces.count + number, slot(key, stored=flat.stored)
        if own is not None and own in taken and private is not None:
            sources[at] = private.disk, (*private.prefix, *taken[own][0])
        elif at in read:
            expected = f"a source for {leaves.describe(flat.leaves[number])}"
            hint = "the target's own values are not on disk: restore into it, and save"
            where = paths.format_path(key)
            faults.append(Mismatch(where, "missing", expected, "none in the checkpoint", hint))
    if faults:
        raise CheckpointMismatchError(f"{disk.path} cannot be converted", faults)
    return sources


def _beside(through: Lens, fit: Fit) -> dict[int, KeyPath]:
    """The leaves of the state that the view has no place for, by position, and their key paths beside the new state."""
    rows, alone = through.source.rows, through.private[0]
    beside: dict[int, KeyPath] = {}
    for (number, indices), position in fit.slots.items():
        if number in alone and not rows[number].ephemeral:
            beside[position] = paths.fill(rows[number].key, indices)
    return beside


def _report(disk: DiskTree, fit: Fit) -> None:
    """Says so where a lens of weights alone leaves the rest of a train state where it is."""
    below = disk.tree if disk.root else disk.at(())
    left = len(jax.tree.leaves(below)) - len(jax.tree.leaves(fit.tree))
    if left > 0:
        text = "%s: %s beside what is converted, which the new checkpoint does not have"
        logging.getLogger("ckpt_schema").info(text, disk.where, counted(left, "leaf", "leaves"))
