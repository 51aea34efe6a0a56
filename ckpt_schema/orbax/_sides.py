"""Which side of a lens a tree is on, and where in a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

from ckpt_schema._frameworks import variables
from ckpt_schema._frameworks.state_names import STATE_FIELDS, WEIGHTS
from ckpt_schema._layouts import leaves
from ckpt_schema._layouts.dims import Binder
from ckpt_schema._layouts.overlaps import outlined
from ckpt_schema._layouts.paths import Index, KeyPath, Pattern, format_path
from ckpt_schema._layouts.precision import verify_closed
from ckpt_schema._layouts.table import Layout, Slot, called
from ckpt_schema._lens.axis_rules import Replicated
from ckpt_schema._lens.lens import Lens
from ckpt_schema._lens.plan.moved_leaves import only_moves
from ckpt_schema._lens.registry import Registry
from ckpt_schema._lens.replicas import CopiedTree, copies_fault
from ckpt_schema._trees.conformance import Match, Matcher
from ckpt_schema._trees.containers import FlatTree, Tree, flatten
from ckpt_schema._trees.slots import SlotFinder
from ckpt_schema.errors import CheckpointMismatchError, ConformanceError, DerivationError, Mismatch
from ckpt_schema.orbax._metadata import DiskTree

__all__ = [
    "Fit",
    "Side",
    "ambiguous",
    "interchangeable",
    "locate",
    "may_stand",
    "standing_distance",
    "toward",
    "verify_arguments",
    "verify_names",
    "verify_written",
]

_ENVELOPE = tuple(name for name in STATE_FIELDS if name != WEIGHTS)
"""What stands beside the variables in a Linen train state that keeps its weights bare."""


Candidate = TypeVar("Candidate")

Side = Literal["source", "view"]
"""A side of a lens, by name."""


@dataclasses.dataclass(frozen=True, slots=True)
class Fit:
    """What part of a checkpoint conforms to which layout.

    Attributes:
        layout: The layout.
        prefix: The key path of the conforming subtree; empty for the whole.
        tree: The conforming part of the subtree there.
        slots: Which leaf of it (by position) is which slot of the layout.
    """

    layout: Layout
    prefix: KeyPath
    tree: Tree
    slots: Mapping[Slot, int]


_OF_VERSIONS = (
    "name the two versions, registry.lens(V1, V3); or let metadata tell which one is on disk, "
    "cs.orbax.lens_between(path, target, registry)"
)


def verify_arguments(lens: object, **sides: object) -> None:
    """Raises unless these are a lens, and sides by name or None.

    Raises:
        ConformanceError: With every argument that is none.
    """
    faults: list[Mismatch] = []
    if not isinstance(lens, Lens):
        hint = "the path comes first, then the tree, then the lens"
        if isinstance(lens, Registry):
            hint = _OF_VERSIONS
        faults.append(Mismatch("lens", "argument", "a Lens", f"a {type(lens).__name__}", hint))
    for name, side in sides.items():
        if side not in (None, "source", "view"):
            faults.append(Mismatch(name, "argument", '"source" or "view"', repr(side)))
    if faults:
        raise ConformanceError("wrong arguments", faults)


def verify_written(table: Layout, lens: Lens, onto: Tree | None = None) -> None:
    """Raises where it is not known which floats are written: no target says it, as it does of what is read.

    Args:
        table: The side of the lens that is written.
        lens: The lens.
        onto: The tree whose dtypes the result has, if there is one.

    Raises:
        SchemaError: With every leaf of any float.
    """
    if onto is None:
        side = "source" if table is lens.source else "view"
        cure = f'say which, lens.at({side}="bfloat16")'
        verify_closed(table, "what is written", cure)


def verify_names(**names: object) -> None:
    """Raises unless these are names of items, or None.

    Raises:
        ConformanceError: With every argument that is none.
    """
    faults: list[Mismatch] = []
    for argument, name in names.items():
        if name is not None and not isinstance(name, str):
            expected = "the name of an item, or None"
            faults.append(Mismatch(argument, "argument", expected, repr(name)))
    if faults:
        raise ConformanceError("wrong arguments", faults)


def toward(
    tree: Tree, lens: Lens, what: str, told: Side | None, argument: str
) -> tuple[Lens, Match]:
    """The lens, turned so that ``tree`` is on its view side, and which leaf of the tree is what there.

    Args:
        tree: The tree.
        lens: The lens.
        what: What the tree is, for messages.
        told: The side it is on, if that was said.
        argument: The argument that says it, for messages.

    Raises:
        ConformanceError: The tree conforms to neither side, and the faults are those of the nearer
            one; or to both.
    """
    tried: list[tuple[Match, Layout]] = []
    fits: list[tuple[Lens, Match]] = []
    flat = flatten(tree)
    source, view = lens.matchers
    turned = [(flat, view, ("view", lens)), (flat, source, ("source", ~lens))]
    # Both sides are matched, though one fits: a tree that fits both is told, and not guessed at.
    for (name, side), matcher, has_others in _nearest_first(turned):
        # A whole match of a side with other keys would only find these again, and is dear.
        if fits and has_others:
            break
        if told not in (None, name):
            continue
        match = matcher.match(flat, Binder(side.dims))
        if match.report.ok:
            fits.append((side, match))
        tried.append((match, side.view))
    if len(fits) > 1 and not interchangeable(lens):
        # A State is what an NNX side alone is made of; a dict may be the pure dict of one.
        fits = [fit for fit in fits if variables.is_state(tree) and fit[0].view.container == "nnx"]
        if len(fits) != 1:
            raise ambiguous(ConformanceError, f"{what} is a tree", lens, argument)
    if fits:
        return fits[0]
    match, table = max(tried, key=lambda one: _likeness(*one))
    nearest = match.report
    here, there = called(lens.source, lens.view)
    near = here if table is lens.source else there
    header = f"{what} conforms to neither {here} nor {there}; nearest is {near}"
    raise ConformanceError(header, nearest.mismatches, nearest.notes)


def interchangeable(lens: Lens) -> bool:
    """Whether a tree that conforms to both sides is the same tree on both, as a checkpoint keeps it."""
    rows = lens.source.rows, lens.view.rows
    if any(lens.folds):
        return False
    # Where leaves only move, and to the same keys, the bytes on disk mean the same on both sides.
    for join in lens.joins:
        moves = only_moves(join, rows)
        for before, after in join.pairs:
            has_same_key = _stored(rows[0][before].key) == _stored(rows[1][after].key)
            if not (moves and has_same_key):
                return False
    return True


def _stored(key: Pattern) -> Pattern:
    """A key as a checkpoint has it, where int keys are strings."""
    parts: list[Any] = []
    for part in key:
        is_index = isinstance(part, Index)
        parts.append(dataclasses.replace(part, text=True) if is_index else str(part))
    return tuple(parts)


def ambiguous(
    error: type[ConformanceError], what: str, lens: Lens, argument: str
) -> ConformanceError:
    """The error for what could be on either side."""
    sides = f"{lens.source.name} (source) or {lens.view.name} (view)"
    found = "leaves that conform to both, and mean something else in each"
    fault = Mismatch(
        "",
        "ambiguous",
        f"{sides}, not both",
        found,
        f'say which: {argument}="source" or {argument}="view"',
    )
    return error(f"{what} of {lens.source.name} as well as of {lens.view.name}", [fault])


def locate(disk: DiskTree, lens: Lens) -> list[Fit]:
    """Where in the checkpoint a tree of either side of ``lens`` stands: its view (no translation is needed), or its source.

    Weights alone are looked for in the whole, then where a full train state keeps them. There are
    several places only where the same leaves conform to both sides.

    Raises:
        CheckpointMismatchError: Neither is anywhere; the faults are those of the nearest.
    """
    tried: list[_Tried] = []
    # As it is first: a counter is read as a number only where its dtype is all that does not fit.
    fits = _fitting(disk, lens, tried, _as_stored) or _fitting(disk, lens, [], _as_numbers)
    if fits:
        return fits
    copied = _of_copies(disk, lens)
    if copied is not None:
        raise CheckpointMismatchError(f"{disk.where} is kept once for each device", [copied])
    match, table, prefix = max(tried, key=lambda one: _likeness(*one[:2]))
    nearest = match.report
    where = f" under {format_path(prefix)}" if prefix else ""
    here, there = called(lens.source, lens.view)
    near = here if table is lens.source else there
    header = f"{disk.where} is a checkpoint of neither {there} nor {here}; nearest is {near}{where}"
    raise CheckpointMismatchError(header, nearest.mismatches, nearest.notes)


def _of_copies(disk: DiskTree, lens: Lens) -> Mismatch | None:
    """The fault of a checkpoint that fits but for the axis of copies that pmap leaves in front of each leaf."""
    try:
        copied = CopiedTree.of(disk.tree, Replicated(0))
    except DerivationError:
        return None
    fits = _fitting(dataclasses.replace(disk, tree=copied.tree), lens, [], _as_stored)
    if not fits:
        return None
    rule = Replicated(0, is_view=fits[0].layout is lens.view)
    return copies_fault(disk.path.name, copied.count, rule)


def may_stand(disk: DiskTree, lens: Lens) -> bool:
    """Whether a tree has the keys of either side, and no others: what conforms nearly always."""
    return 0 in (standing_distance(disk, lens.view), standing_distance(disk, lens.source))


def standing_distance(disk: DiskTree, layout: Layout) -> int:
    """How far a checkpoint is from a layout, wherever in it a tree of that may stand.

    See `Matcher.distance`.
    """
    matcher = Matcher(layout)
    return min(matcher.distance(tree) for _, _, tree in _candidates(disk, layout))


_Tried = tuple[Match, Layout, KeyPath]
"""A tree of a checkpoint, held against a layout, and where it stands."""


def _fitting(
    disk: DiskTree,
    lens: Lens,
    tried: list[_Tried],
    read_as: Callable[[Tree, Layout], Tree],
) -> list[Fit]:
    """The places that conform, each tree read so.

    What is wrong with the others is added to ``tried``.
    """
    fits: list[Fit] = []
    matchers = {id(matcher.layout): matcher for matcher in lens.matchers}
    flats: dict[int, FlatTree] = {}
    found: list[tuple[FlatTree, Matcher, tuple[Layout, KeyPath, Tree]]] = []
    for each in _candidates(disk, lens.view, lens.source):
        layout, _, tree = each
        if id(tree) not in flats:
            flats[id(tree)] = flatten(tree)
        found.append((flats[id(tree)], matchers[id(layout)], each))
    for (layout, prefix, tree), matcher, has_others in _nearest_first(found):
        if fits and has_others:
            break
        # One place is enough. Only the other side, on the same leaves, would be another reading.
        if fits and (fits[0].prefix != prefix or fits[0].layout is layout):
            continue
        tree = read_as(tree, layout)
        match = matcher.match(flats.get(id(tree), tree), Binder(lens.dims))
        if match.report.ok:
            fits.append(Fit(layout, prefix, tree, match.slots))
        tried.append((match, layout, prefix))
    return fits


def _as_stored(tree: Tree, layout: Layout) -> Tree:
    return tree


def _as_numbers(tree: Tree, layout: Layout) -> Tree:
    """The tree with a number, to be read as such, for each counter whose dtype is not the declared one.

    A step is a step, however many bits it was saved in. Its value is looked at when it was read.
    """
    flat, slot = flatten(tree), SlotFinder(layout).slot
    converted: list[Any] = []
    for key, leaf in zip(flat.keys, flat.leaves, strict=True):
        at = slot(key, stored=flat.stored) if _is_counter(leaf) else None
        row = None if at is None else layout.rows[at[0]].leaf
        other = row is not None and not row.dims and row.dtype != str(leaf.dtype)
        converted.append(_number(leaf) if other else leaf)
    return flat.treedef.unflatten(converted)


def _number(leaf: Any) -> int:
    return leaves.untold(int) if leaves.is_abstract(leaf) else int(leaf)


def _is_counter(leaf: Any) -> bool:
    shape, dtype = leaves.signature(leaf) or ((0,), "")
    return shape == () and dtype.removeprefix("u").startswith("int") and not leaves.is_scalar(leaf)


def _candidates(disk: DiskTree, *sides: Layout) -> Iterator[tuple[Layout, KeyPath, Tree]]:
    yield from ((layout, (), disk.tree) for layout in sides)
    for layout in sides:
        for home in layout.homes:
            inner = disk.at(home)
            if inner is not None:
                yield layout, home, inner
        # A Linen train state may keep its weights bare, beside the step and the optimizer state.
        if layout.homes and isinstance(disk.tree, dict) and disk.tree.keys() >= set(_ENVELOPE):
            bare = {key: child for key, child in disk.tree.items() if key not in _ENVELOPE}
            yield layout, (), bare


def _nearest_first(
    candidates: Sequence[tuple[FlatTree, Matcher, Candidate]],
) -> Iterator[tuple[Candidate, Matcher, bool]]:
    """What is to be tried, by the distance of its tree from its layout, and whether it has others than its keys.

    How far such are is found out only where they are asked for.
    """
    far: list[tuple[FlatTree, Matcher, Candidate]] = []
    for flat, matcher, candidate in candidates:
        if matcher.has_keys(flat):
            yield candidate, matcher, False
        else:
            far.append((flat, matcher, candidate))
    # A distance takes a walk of all leaves, and of one candidate alone nobody asks for it.
    if len(far) > 1:
        far.sort(key=lambda each: each[1].distance(each[0]))
    for _, matcher, candidate in far:
        yield candidate, matcher, True


def _likeness(match: Match, layout: Layout) -> tuple[int, int, int]:
    """How near a tree is to a layout: by the leaves that are where they should be, then by those that end alike.

    What does not match says nothing: a tree that lacks one level has all of its leaves elsewhere.
    """
    ends = {_end(row.key) for row in layout.rows}
    alike = sum(_end(key) in ends for key in match.flat.keys)
    return len(match.slots), alike, -len(match.report)


def _end(key: Pattern) -> tuple[str, ...]:
    """The last two segments of a key path, without numbers, and without the level that a Variable adds."""
    return outlined(tuple(segment for segment in key if segment != "value")[-2:])
