"""Restore a checkpoint of either side of a lens into a target of either side, sharded as the target says."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
from etils import epath

from ckpt_schema._frameworks import variables
from ckpt_schema._layouts import leaves, paths
from ckpt_schema._lens.adapt.stacks import Scan
from ckpt_schema._lens.arrays.checks import narrowed
from ckpt_schema._lens.derive.served_weights import lacks_served
from ckpt_schema._lens.lens import Lens
from ckpt_schema._lens.plan.fallback_leaves import fallback_values
from ckpt_schema._lens.read_sides import made_abstract, name_of
from ckpt_schema._lens.registry import Registry
from ckpt_schema._lens.rules import Rule
from ckpt_schema._messages.warned import warn
from ckpt_schema._trees.conformance import Match
from ckpt_schema._trees.containers import Tree, flatten, verify_readable
from ckpt_schema._trees.defaults import stand_in
from ckpt_schema.errors import (
    CheckpointMismatchError,
    ConformanceError,
    Mismatch,
    ServedWeightsWarning,
)
from ckpt_schema.orbax import _metadata as metadata
from ckpt_schema.orbax._adapt import Words, adapted, adapted_item, spare_words
from ckpt_schema.orbax._agreement import agree, raised_by_all, said_by_all
from ckpt_schema.orbax._collector import old_objects_aside
from ckpt_schema.orbax._load import number_for
from ckpt_schema.orbax._loaded_leaves import verified
from ckpt_schema.orbax._metadata import SKIP, DiskTree
from ckpt_schema.orbax._missing import Missing, initialised, verify_missing
from ckpt_schema.orbax._private_leaves import Orders, PrivateLeaves, find
from ckpt_schema.orbax._records import recorded, recorded_alone
from ckpt_schema.orbax._same_layout import same_layout
from ckpt_schema.orbax._sides import (
    Fit,
    Side,
    ambiguous,
    interchangeable,
    toward,
    verify_arguments,
    verify_names,
)
from ckpt_schema.orbax._targets import (
    abstracted,
    declared,
    given_up,
    goals,
    identity_on,
    kept_positions,
    placed_abstract,
    restarted,
    spare_sharding,
    told_of_loss,
    verify_meshes,
    with_stand_ins,
    with_values,
)
from ckpt_schema.orbax._versions import reading, version_of
from ckpt_schema.orbax._whereabouts import meant, read_several, stand, usual, verify_standing

__all__ = ["Prepared", "RestoreTimes", "prepared", "restore"]

Target = TypeVar("Target")

_LOGGER = logging.getLogger("ckpt_schema")


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


@old_objects_aside()
def restore(
    path: epath.PathLike | Mapping[str, epath.PathLike],
    target: Target | Callable[[], Target],
    lens: Lens | Registry | None = None,
    *,
    rules: Sequence[Rule] = (),
    scan: Scan | None = None,
    lists: Sequence[str] | None = None,
    missing: Missing | None = None,
    item: str | None = None,
    at: str | Mapping[str, str] | None = None,
    items: Mapping[str, str] | None = None,
    target_side: Side | None = None,
    disk_side: Side | None = None,
    aux: str | None = "nnx_aux",
    donate_target: bool = False,
    times: Callable[[RestoreTimes], None] | None = None,
) -> Target:
    """Restores the checkpoint at ``path`` into the form of ``target``.

    Which side of the lens is on disk is decided from one metadata read. A checkpoint of the target's own layout is loaded as it
    is; one of the other side is loaded in its own layout, straight into the shardings that the lens makes of the target's, and
    then translated. A lens of weights alone finds them in a full train state too. Only what the target has a place for is read,
    and all of it is validated before a byte of array data is.

    Without a lens, that through which `save` wrote the checkpoint is taken, if both fit it. Any
    other checkpoint is adapted to the target: `ckpt_schema.adapt` makes the lens, and is an error
    where anything can be read in two ways. What was done is logged in one line by the logger
    ``ckpt_schema``.

    Args:
        path: A checkpoint directory, local or remote, written by Orbax's v1 or v0 API. Of a lens that
            `ckpt_schema.merge` made, a path for each part, by its name; a part may be a folder of Hugging Face.
        target: An abstract or concrete ``nnx.State``, ``TrainState`` or dict of either side, or a
            module, which is an ``nnx.Module`` or any ``nnx.Pytree``, or a dict that holds modules.
            Shardings of its leaves are kept; leaves without one are replicated over the mesh of the
            others, or else go to the first device. Private leaves that the disk lacks are taken
            from a concrete target, or else from their declared defaults. A function is called for
            the shapes of what it makes, and the result is a state like that.
        lens: The lens; unless given, the one that `ckpt_schema.adapt` makes. Of a registry, the one
            from the version that is on disk, which its structure tells, to that of the target.
        rules: What names and shapes do not tell, where no lens is given; see `ckpt_schema.adapt`.
        scan: The axis of stacked nodes, where no lens is given.
        lists: Patterns of lists of layers, where no lens is given.
        missing: What the checkpoint lacks and the target's own function makes, `ckpt_schema.init` of
            globs. The target is a function then; nothing is computed that is not named.
        item: Which pytree of the checkpoint, where it holds several. The one that fits is found where none is named.
        at: The key path in it where the state stands, as in ``{"model": state, "config": ...}``; what is beside it is not read.
            Of several paths, that of each part by its name, ``{"text": "params"}``; a part that is not named is at the root.
        items: For a state that is spread over several pytrees, which one holds what is at a key:
            ``{"params": "model_params", "opt_state": "optimizer_state"}``. All other keys are those of ``item``.
        target_side: The side of the lens that the target is on, for targets that conform to both.
        disk_side: The side that is on disk, for checkpoints that could be of either.
        aux: What `save` called the private leaves that stand beside the state. They are restored if they are there, and are
            those of the target. With None they are not looked for.
        donate_target: Whether the caller gives up the arrays of the target. What the checkpoint has
            in their place is read into memory that they have left: no more is ever held than the
            checkpoint, and twice its largest leaf. They are deleted when all is validated, just
            before the read. Where the read fails all the same, the target has no values any more,
            and the error says so. What the target alone has stays.
        times: Called once with the time each part took.

    Returns:
        A tree of the target's own kind, of jax arrays, and of Python numbers where the target has such.
        Streams, caches and records of a pass that the layouts do not declare are left as they are. Modules are updated,
        and returned, only when all went well.

    Raises:
        CheckpointMismatchError: There is no checkpoint, or it is of neither side, or could be of either, or differs from the
            target, or holds a number that the target's dtype does not, or private leaves of another model, with every fault.
        ConformanceError: The target is on neither side, could be on either, or has shardings over a mesh without devices.
    """
    clock = [time.perf_counter()]
    place: Any = path
    # The checkpoints of a merged lens are read as one tree, with a key for each.
    if isinstance(path, Mapping):
        with raised_by_all():
            place = read_several(path, at, item or items, aux=aux)
        at = aux = None
    with raised_by_all():
        words = Words(rules, scan, lists)
        sides = target_side, disk_side
        where: dict[str, Any] = {"item": item, "at": at, "items": items, "aux": aux}
        first = same = None
        # Most restores are of the target's own layout: these need no lens and no plan.
        is_plain = words == Words() and missing is None and not donate_target
        if is_plain and sides == (None, None) and isinstance(lens, (Lens, type(None))):
            verify_names(item=item, aux=aux)
            verify_standing(at, items)
            target = made_abstract(target)
            verify_readable(target)
            first = usual(place, item, items, aux)
            if first is not None and at is None:
                same = same_layout(first, variables.state_of(target), lens)
            if same is not None and lens is not None:
                _report(same.disk, aux)
    # Where one process has another target, all of them go the way on which that is found.
    if said_by_all(same is not None) and same is not None:
        told = {"path": same.disk.path, "item": same.disk.item, "layout": same.name}
        agree("processes do not restore the same", told)
        clock.append(time.perf_counter())
        with raised_by_all():
            result = same.load()
        if times is not None:
            jax.block_until_ready(result)
            clock.append(time.perf_counter())
            times(RestoreTimes(clock[1] - clock[0], clock[2] - clock[1], 0.0))
        return variables.updated(target, result)
    with raised_by_all():
        given: dict[str, Any] = {"first": first, "missing": missing, "sides": sides, **where}
        ready = _through_recorded(first, target, given) if lens is None else None
        ready = ready or prepared(place, target, lens, words, **given)
        expected, side = ready.expected, ready.side
        # Only the plan tells what of a target lives on in the result:
        # it is asked before a byte is freed.
        kept = (
            kept_positions(expected, ready.state, side, ready.orders)
            if donate_target
            else set[int]()
        )
    disk, state = ready.disk, ready.state
    agree(
        "processes do not restore the same",
        {"path": disk.path, "item": disk.item, "layout": ready.place.layout.name},
    )
    clock.append(time.perf_counter())
    # All is validated by now. What fails from here on says that the values are gone.
    if donate_target:
        state = given_up(ready.whole, ready.own, state, kept)
    with told_of_loss(is_lost=donate_target):
        with raised_by_all():
            loaded = metadata.read_arrays(disk, ready.place.prefix, ready.wanted)
            # Private leaves are not translated:
            # they are values of the target that the rest goes onto.
            if ready.private is not None:
                state = with_values(state, ready.private.load(ready.orders))
            loaded = verified(loaded, ready.wanted, expected, disk)
        clock.append(time.perf_counter())
        result = _translated(loaded, state, side, disk)
    if times is not None:
        # jax returns before it has computed: without the wait the lens would seem to take no time.
        jax.block_until_ready(result)
        clock.append(time.perf_counter())
        spans = [after - before for before, after in itertools.pairwise(clock)]
        times(RestoreTimes(*spans))
    return variables.updated(ready.target, variables.completed(result, ready.whole))


def _through_recorded(
    first: DiskTree | None, target: Any, given: Mapping[str, Any]
) -> Prepared | None:
    """The restore through the lens that the checkpoint was saved through, if it tells one that fits.

    Args:
        first: The checkpoint, where nothing else was said of the lens.
        target: The target.
        given: What else `prepared` is told.
    """
    lens = None if first is None else recorded(first.path).lens()
    if first is None or lens is None:
        return None
    try:
        # A save writes the source of its lens, whichever side its state was on.
        named: dict[str, Any] = {**given, "sides": (None, "source")}
        found = prepared(first.path, target, lens, Words(), **named)
    except (CheckpointMismatchError, ConformanceError):  # the structure has the last word
        return None
    text = "%s is read through the lens that it was saved through, %s -> %s"
    _LOGGER.info(text, first.where, lens.source.name, lens.view.name)
    return found


@dataclasses.dataclass(frozen=True, slots=True)
class Prepared:
    """A restore of which everything is validated, and nothing read.

    Attributes:
        disk: What is on disk.
        place: The part of it that is read.
        side: The lens from there to the target.
        match: Which leaf of the target is what in that.
        expected: What is read, as abstract leaves with shardings.
        wanted: What is asked of Orbax.
        private: The private leaves beside the state, if there are any.
        orders: Which of them are read.
        target: The target, of which a function has been traced.
        whole: Its state.
        own: That, without what the layouts do not declare.
        state: The same as what it asks for.
    """

    disk: DiskTree
    place: Fit
    side: Lens
    match: Match
    expected: Tree
    wanted: Tree
    private: PrivateLeaves | None
    orders: Orders
    target: Any
    whole: Tree
    own: Tree
    state: Tree


def prepared(
    path: epath.PathLike | DiskTree,
    target: Any,
    lens: Lens | Registry | None,
    words: Words,
    *,
    first: DiskTree | None = None,
    missing: Missing | None = None,
    item: str | None = None,
    at: str | None = None,
    items: Mapping[str, str] | None = None,
    sides: tuple[Side | None, Side | None] = (None, None),
    aux: str | None = "nnx_aux",
    name: str | None = None,
    valued: bool = False,
) -> Prepared:
    """All of a restore that is done before anything is read; see `restore`.

    Args:
        path: The checkpoint, or what is known of it, whether it exists or not.
        target: See `restore`.
        lens: See `restore`.
        words: What is said of the lens that is to be made.
        first: What is usually meant of the checkpoint, if it was read already.
        missing: See `restore`.
        item: See `restore`.
        at: See `restore`.
        items: See `restore`.
        sides: The side of the target, and that of the disk, if they are given.
        aux: See `restore`.
        name: What messages call the target; unless given, what its class is called.
        valued: Whether each leaf of the target counts as if it had a value.

    Raises:
        CheckpointMismatchError: As `restore` does.
        ConformanceError: As `restore` does.
    """
    known = path if isinstance(path, DiskTree) else None
    place_on_disk = path.path if isinstance(path, DiskTree) else path
    verify_names(item=item, aux=aux)
    verify_missing(missing, target)
    factory: Any = target
    target = made_abstract(target)
    verify_standing(at, items)
    verify_readable(target)
    whole = variables.state_of(target)
    where: dict[str, Any] = {"item": item, "at": at, "items": items, "aux": aux}
    target_side, disk_side = sides
    is_adapted, read = lens is None, known
    # A lens made here goes from the disk to the target; one that is given may go either way.
    if lens is None:
        words = dataclasses.replace(words, own=missing and missing.rows)
        called = name_of(target, "the target") if name is None else name
        # Where nobody has said which pytree is meant, all of the checkpoint's are looked at.
        if known is None and item is None and at is None and items is None:
            lens, read = adapted_item(place_on_disk, first, whole, called, words, aux)
        else:
            read = known or meant(first or place_on_disk, **where).without_texts()
            lens, read = adapted(read, whole, called, words, aux)
        target_side, disk_side = "view", "source"
    elif words.rules or words.scan is not None or words.lists is not None:
        raise spare_words()
    elif isinstance(lens, Registry):
        found = reading(place_on_disk, version_of(whole, lens), lens, **where)
        lens, read = found.lens, found.disk
        target_side, disk_side = "view", "source"
    verify_arguments(lens, target_side=target_side, disk_side=disk_side)
    own = declared(whole, lens)
    state = goals(own)
    verify_meshes(state)
    side, match = toward(state, lens, "the target", target_side, "target_side")
    if missing is not None:
        state = with_values(state, initialised(missing, factory, state, side, match))
    disk, places = stand(place_on_disk, side, read, first, **where, texts=False)
    # They stand beside a state of the other layout; the target's own layout has them in it.
    has_other_layout = any(place.layout is not side.view for place in places)
    private = find(disk, aux, total=not is_adapted) if has_other_layout else None
    values = with_stand_ins(state) if valued else state
    place, side, expected, orders = _source(
        disk, places, (state, values), match, side, lens, disk_side, private
    )
    wanted = _wanted(disk, place, expected, side, match)
    state = restarted(state, side, match)
    if not is_adapted and (private is None or not orders):
        _report(disk, aux)
    unserved = lacks_served(flatten(disk.tree).keys, place.layout)
    if unserved is not None:
        warn(unserved, ServedWeightsWarning)
    return Prepared(
        disk, place, side, match, expected, wanted, private, orders, target, whole, own, state
    )


def _report(disk: DiskTree, aux: str | None) -> None:
    """Says so where there are private leaves that nobody reads."""
    if aux is not None and (aux in disk.beside or disk.at((aux,)) is not None):
        text = (
            f"{disk.path} has leaves of another layout beside its state ({aux}), which are not read"
        )
        cure = "ckpt_schema.orbax.load_private reads them, and save(..., private=) keeps them; with aux=None nobody asks"
        warn(f"{text}: {cure}")


_OTHER_SIZES = (
    "where the target's leaf is another one of that name, as the head of a new task is: derive with "
    "apart(path), and the target keeps its own"
)

_Reading = tuple[Fit, Lens, Tree, Orders]


def _source(
    disk: DiskTree,
    places: Sequence[Fit],
    states: tuple[Tree, Tree],
    match: Match,
    side: Lens,
    lens: Lens,
    disk_side: Side | None,
    private: PrivateLeaves | None,
) -> _Reading:
    """Which of several readings of the checkpoint fits the target, the lens from there, and what the target makes of it.

    The target is given as it is, and with what counts as its values.

    Raises:
        CheckpointMismatchError: None does, or two that differ do.
    """
    state, values = states
    fits: list[_Reading] = []
    faults: list[CheckpointMismatchError] = []
    for place in places:
        # The user's word decides only where the structure does not: a sole reading is taken anyhow.
        is_of_source = place.layout is lens.source
        if disk_side is not None and len(places) > 1 and is_of_source != (disk_side == "source"):
            continue
        # Of the target's own layout nothing is translated, but it is validated by the same steps.
        through = identity_on(side) if place.layout is side.view else side
        try:
            orders = private.wanted(state, through, match) if private is not None else {}
            # Private leaves will have values by then: something stands in for them meanwhile.
            fillers: dict[int, Any] = {}
            for position, (_, asked) in orders.items():
                fillers[position] = stand_in(asked)
            held = with_values(values, fillers)
            goal = abstracted(state, through, match)
            expected, spare = _expected(disk, place, goal, held, through)
        except CheckpointMismatchError as error:
            faults.append(error)
            continue
        placed: Orders = {}
        for position, (key, asked) in orders.items():
            placed[position] = (key, placed_abstract(asked, spare))
        fits.append((place, through, expected, placed))
    if not fits:
        raise faults[0]
    # Two readings of the same values are no choice; of others, the record of the save decides.
    if len(fits) > 1 and not interchangeable(side):
        fits = recorded_alone(disk.path, fits, lambda fit: fit[0].layout)
        if len(fits) != 1:
            what = f"{disk.path} is a checkpoint"
            raise ambiguous(CheckpointMismatchError, what, lens, "disk_side")
    return fits[0]


def _expected(disk: DiskTree, place: Fit, goal: Tree, held: Tree, side: Lens) -> tuple[Tree, Any]:
    """What the lens makes of the target, as an abstract tree in the disk's containers, with a sharding on every leaf.

    Args:
        disk: The checkpoint.
        place: The part of it that is read.
        goal: The target, without its values.
        held: The target, with a value in the place of each leaf that the checkpoint has beside its state.
        side: The lens from the checkpoint's layout to the target's.

    Returns:
        The tree, and the sharding of leaves that have none of their own.

    Raises:
        CheckpointMismatchError: Shapes on disk and in the target do not fit one another, or the target has abstract leaves that
            neither the disk nor a default fills.
    """
    try:
        # Only what both have is read.
        expected = side.put(goal, onto=place.tree, drop=True)
        side.dry_run(expected, onto=held, drop=True)
    except ConformanceError as error:
        header = f"{disk.path} does not fit the target"
        sized = any(fault.kind in ("shape", "dims") for fault in error.mismatches)
        raise CheckpointMismatchError(header, error.mismatches, [_OTHER_SIZES] * sized) from error
    spare = spare_sharding(goal)
    return jax.tree.map(lambda leaf: placed_abstract(leaf, spare), expected), spare


def _wanted(disk: DiskTree, place: Fit, expected: Tree, side: Lens, match: Match) -> Tree:
    """What is asked of Orbax: the expected leaves that the target has a place for.

    Raises:
        CheckpointMismatchError: With every leaf of 64 bits that jax would narrow.
    """
    present = {number for number, _ in match.slots}
    rows: set[int] = set()
    for join in side.joins:
        for before, after in join.pairs:
            if after in present:
                rows.add(before)
    # A row that the disk lacks has the value of the one it falls back on: that one is read too.
    for number, other in fallback_values(side.source).items():
        if number in rows:
            rows.add(other)
    # A folded leaf is made of several: of fp8 weights the scale is read beside them.
    for fold in side.folds[0]:
        if fold.row in rows:
            rows.update(fold.others)
    read: set[int] = set()
    for (number, _), position in place.slots.items():
        if number in rows:
            read.add(position)
    flat = flatten(place.tree)
    goals = flat.treedef.flatten_up_to(expected)
    wanted: list[Any] = []
    faults: list[Mismatch] = []
    for position, (key, stored) in enumerate(zip(flat.keys, flat.leaves, strict=True)):
        # Ordered as a plain number: an array would be cut down to the bits of its dtype.
        number = None if position not in read else number_for(stored)
        wanted.append(SKIP if position not in read else goals[position])
        if number is not None:
            wanted[-1] = number
        elif position in read:
            dtype = leaves.dtype_name(goals[position].dtype)
            if narrowed("", dtype) is not None:
                where = paths.format_path((*place.prefix, *key))
                faults += filter(None, [narrowed(where, dtype)])
    if faults:
        raise CheckpointMismatchError(f"{disk.path} has leaves that jax would narrow", faults)
    return flat.treedef.unflatten(wanted)


def _translated(loaded: Tree, state: Tree, side: Lens, disk: DiskTree) -> Tree:
    """The loaded tree in the target's form.

    Raises:
        CheckpointMismatchError: A value does not fit the target's dtype.
    """
    try:
        result = side.get(loaded, onto=state, donate=True, drop=True)
    except ConformanceError as error:
        header = f"{disk.path} does not fit the target"
        raise CheckpointMismatchError(header, error.mismatches) from error
    # A step that is a Python number in the target stays one: the lens has made an array of it.
    if not any(map(leaves.is_scalar, jax.tree.leaves(state))):
        return result
    return jax.tree.map(
        lambda like, x: type(like)(x) if leaves.is_scalar(like) else x, state, result
    )
