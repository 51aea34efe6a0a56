"""From two matched trees to a `Plan`: where each leaf of the result comes from.

A leaf is looked for in this order: what a join makes of the tree (`leaf_sources`), what onto has in
its place, another leaf of the result that stands for it, what its optimizer starts with
(`restart_states`), its default. What is found nowhere is refused, all of it at once.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts import paths
from ckpt_schema._layouts.fallbacks import SameAs
from ckpt_schema._layouts.leaves import Init, Leaf, Made
from ckpt_schema._layouts.paths import KeyPath
from ckpt_schema._layouts.table import Layout, Row, Slot, called, slots_of
from ckpt_schema._lens.arrays.checks import narrowed
from ckpt_schema._lens.derive.joins import Join
from ckpt_schema._lens.derive.middle import Joined
from ckpt_schema._lens.plan import refusals
from ckpt_schema._lens.plan.fallback_leaves import fallback_values, lost_copies, with_fallbacks
from ckpt_schema._lens.plan.folded_leaves import with_scales
from ckpt_schema._lens.plan.labels import Labelled, carried
from ckpt_schema._lens.plan.leaf_sources import LeafSources, leaf_sources
from ckpt_schema._lens.plan.matched_trees import MatchedTrees
from ckpt_schema._lens.plan.plan import Dropped, Make, Plan, Restart, gatherer, signature_of
from ckpt_schema._lens.plan.restart_states import restart_of
from ckpt_schema._trees.chains import with_mirrors
from ckpt_schema._trees.conformance import Match
from ckpt_schema._trees.containers import build
from ckpt_schema._trees.defaults import spot_of
from ckpt_schema.errors import ConformanceError, Mismatch

__all__ = ["compile_plan"]


def compile_plan(
    sides: Joined,
    tree: Match,
    onto: Match | None,
    sizes: Mapping[str, int],
    *,
    abstract: bool,
    is_put: bool,
) -> Plan:
    """The plan that takes trees like ``tree`` from the left layout to the right one.

    Args:
        sides: Both layouts, and which of the left one's rows is which of the right one's.
        tree: The tree that is translated, matched.
        onto: The tree whose container and private leaves the result takes, matched; or None.
        sizes: The dims as both trees bind them.
        abstract: Whether abstract leaves will do for the result.
        is_put: Whether rules speak of what is on the left.

    Raises:
        ConformanceError: A leaf of the result has no source and no default, or a dim that is needed is unbound.
    """
    source, view, joins = sides.source, sides.view, sides.joins
    trees = MatchedTrees(tree, onto, with_scales(sides, sizes), abstract)
    wanted = _wanted(view, joins, trees)
    completed = with_fallbacks(tree, source, view, joins, onto)
    sources = leaf_sources(sides, dataclasses.replace(trees, tree=completed), is_put=is_put)
    places = _Places(view, trees, sources)
    for slot in wanted:
        places.add(slot)
    places.add_restart(wanted)
    places.add_copies()
    faults = places.faults
    if not abstract:
        faults += refusals.all_untold(sources.untold, places.known)
    if faults:
        header = "{1} cannot be filled from {0}".format(*called(source, view))
        raise ConformanceError(header, with_mirrors(view, faults))
    # What onto says of the axes of its leaves is part of its container.
    labelled: Mapping[KeyPath, Labelled] = {}
    if onto is None:
        labelled = carried(source, view, tree, sources.carried, wanted, trees.sizes)
    treedef, order = _container(view, wanted, trees, labelled)
    # A leaf that the result has no place for may be a copy of one that it has.
    lost = dict(sources.keys)
    for slot, pair in lost_copies(view, sources.places, sources.keys, places.known):
        sources.same.append(pair)
        del lost[slot]
    of_onto = None
    if onto is not None:
        declared = _declared(view, onto)
        of_onto = signature_of(onto.flat.treedef, onto.flat.leaves, declared)
    return Plan(
        signature_of(tree.flat.treedef, tree.flat.leaves, _declared(source, tree)),
        of_onto,
        treedef,
        gatherer([places.known[slot] for slot in order]),
        jobs=tuple(sources.jobs),
        makes=tuple(places.makes),
        restart=places.restart,
        same=tuple(sources.same),
        dropped=tuple(_dropped(source, view, trees, lost)),
    )


class _Places:
    """The position in the pool of each leaf of the result, while these are found.

    Attributes:
        known: Those that are found.
        makes: The defaults that are to be made.
        restart: What starts anew, or None.
        faults: What has no place.
    """

    def __init__(self, view: Layout, trees: MatchedTrees, sources: LeafSources) -> None:
        self.known: dict[Slot, int] = {}
        self.makes: list[Make] = []
        self.restart: Restart | None = None
        self.faults: list[Mismatch] = []
        self._view, self._trees, self._sources = view, trees, sources
        self._copies: list[Slot] = []  # of other leaves of the result
        # Defaults stand in the pool behind all that is edited.
        self._edited = trees.count
        for job in sources.jobs:
            self._edited += len(job.likes)

    def add(self, slot: Slot) -> None:
        """Finds the place of a leaf, or makes it; those that need the params come later."""
        sources, row = self._sources, self._view.rows[slot[0]]
        if slot in sources.places:
            self.known[slot] = sources.places[slot]
            return
        # What is padding is made anew; all else that has no partner stays as onto has it.
        kept = self._trees.like(slot)
        is_good = self._trees.abstract or self._trees.has_value(slot)
        if kept is not None and is_good and slot not in sources.filled:
            self.known[slot] = self._trees.kept_place(slot)
            return
        default = sources.filled.get(slot) or sources.alone.get(slot, row.default)
        # Made from the params, once these have their places.
        if isinstance(default, Init):
            return
        if isinstance(default, SameAs):
            self._copies.append(slot)
        elif default is None:
            self.faults.append(refusals.homeless(row, slot, kept is not None))
        else:
            self._make(slot, row, default)

    def _make(self, slot: Slot, row: Row, default: Made) -> None:
        """A leaf is made of a default."""
        sizes, like = self._trees.sizes, self._trees.leaf_of_onto(slot)
        shape, spot = dims_.sizes_of(row.dims, sizes), spot_of(row, slot[1], sizes)
        if shape is None or spot is None:
            self.faults.append(refusals.unbound(row, sizes))
            return
        # Without a sharding a leaf of 64 bits is NumPy's; with one it has to be jax's.
        narrow = narrowed(paths.format_path(paths.fill(row.key, slot[1])), row.leaf.dtype)
        if narrow is not None and getattr(like, "sharding", None) is not None:
            self.faults.append(narrow)
            return
        self.known[slot] = self._edited + len(self.makes)
        kept = self._trees.like(slot)
        made = Make(default, row.leaf.dtype, shape, spot, kept, self._trees.abstract)
        self.makes.append(made)

    def add_restart(self, wanted: Sequence[Slot]) -> None:
        """Adds what the optimizer starts with, made of params whose places are known."""
        fresh: list[Slot] = []
        for slot in wanted:
            if slot not in self.known and isinstance(self._view.rows[slot[0]].default, Init):
                fresh.append(slot)
        # With faults some params have no place, and the state cannot be traced.
        if not fresh or self.faults:
            return
        restart = restart_of(self._view, self._trees, wanted, fresh, self.known)
        if isinstance(restart, Restart):
            self.restart = restart
        else:
            self.faults += restart
        start = self._edited + len(self.makes)
        for number, slot in enumerate(fresh):
            self.known[slot] = start + number

    def add_copies(self) -> None:
        """Adds leaves that others of the result stand for, which may themselves have been made."""
        if not self._copies:
            return
        others = fallback_values(self._view)
        for number, indices in self._copies:
            place = self.known.get((others.get(number, number), indices))
            if place is None:
                row = self._view.rows[number]
                self.faults.append(refusals.homeless(row, (number, indices), abstract=False))
            else:
                self.known[number, indices] = place


def _dropped(
    source: Layout, view: Layout, trees: MatchedTrees, keys: Mapping[Slot, KeyPath]
) -> Iterator[Dropped]:
    """Leaves that a tree has and what it goes onto lacks.

    Ephemeral ones are for whoever has a place.

    Args:
        source: The layout of the tree.
        view: That of the result.
        trees: The trees.
        keys: For slots of the result, the key path of what the tree has for them.
    """
    tree, onto = trees.tree, trees.onto
    # Without onto the result has all that the tree has.
    if onto is None:
        return
    lost = [slot for slot in keys if slot not in onto.slots]
    if not lost:
        return
    slots: dict[KeyPath, tuple[Slot, int]] = {}
    for slot, position in tree.slots.items():
        slots[tree.flat.keys[position]] = slot, position
    for slot in lost:
        (number, indices), position = slots[keys[slot]]
        row, read = view.rows[slot[0]], source.rows[number]
        if row.ephemeral or read.ephemeral:
            continue
        where = paths.format_path(paths.fill(row.key, slot[1]))
        hint = f"give onto a leaf at {where}, take this one out of the tree, or say drop=True"
        expected = f"a place for it in onto, {row.stored} at {where}"
        fault = Mismatch(paths.format_path(keys[slot]), "dropped", expected, "none", hint)
        # Nothing is lost of a leaf that holds its default: the way back makes it again.
        spare = None
        shape = dims_.sizes_of(read.dims, trees.sizes)
        spot = spot_of(read, indices, trees.sizes)
        if isinstance(read.default, Made) and shape is not None and spot is not None:
            spare = Make(read.default, read.leaf.dtype, shape, spot, None, abstract=False)
        yield Dropped(fault, position, spare)


def _declared(table: Layout, match: Match) -> Callable[[int], Leaf]:
    """What each leaf of a matched tree, by position, is declared to be."""
    # One look-up for each leaf that is asked for: most trees have no Python number, and ask for none.
    numbers = {position: number for (number, _), position in match.slots.items()}
    return lambda position: table.rows[numbers[position]].stored


def _wanted(view: Layout, joins: Sequence[Join], trees: MatchedTrees) -> list[Slot]:
    """Every leaf the result has: those of ``onto``, or else all that are required, carried or defaulted."""
    if trees.onto is not None:
        return list(trees.onto.slots)
    carried: frozenset[int] = frozenset()  # rows of the view that something is there for
    # Where all leaves are required, nobody asks.
    if any(row.optional for row in view.rows):
        carried = _carried_rows(joins, trees)
    slots: list[Slot] = []
    faults: list[Mismatch] = []
    for number, row in enumerate(view.rows):
        is_spare = row.default is None or isinstance(row.default, SameAs)
        if row.optional and is_spare and number not in carried:
            continue
        if not row.unrolled:
            slots.append((number, ()))
        elif any(dims_.size_of(dim, trees.sizes) is None for dim in row.unrolled):
            faults.append(refusals.unbound(row, trees.sizes))
        else:
            slots += [(number, indices) for indices in slots_of(row, trees.sizes)]
    if faults:
        raise ConformanceError(f"{view.name} cannot be bound", with_mirrors(view, faults))
    return slots


def _carried_rows(joins: Sequence[Join], trees: MatchedTrees) -> frozenset[int]:
    """The rows of the view that the tree has something for."""
    present = {number for number, _ in trees.tree.slots}
    carried: set[int] = set()
    for join in joins:
        if not present.isdisjoint(join.sources):
            carried.update(join.views)
    return frozenset(carried)


def _container(
    view: Layout,
    wanted: Sequence[Slot],
    trees: MatchedTrees,
    labelled: Mapping[KeyPath, Labelled],
) -> tuple[Any, list[Slot]]:
    """The structure of the result, and the slot of each of its leaves."""
    onto = trees.onto
    if onto is not None:
        by_position = {position: slot for slot, position in onto.slots.items()}
        return onto.flat.treedef, [by_position[number] for number in range(len(by_position))]
    # The leaves of this tree have their slots, so that its flattening tells their order.
    placed: list[tuple[KeyPath, Row, _Placed]] = []
    for slot in wanted:
        row = view.rows[slot[0]]
        leaf = _Placed(slot, _dtype(row.leaf.dtype))
        placed.append((paths.fill(row.key, slot[1]), row, leaf))
    # jax puts the keys of dicts in order, and other containers have an order of their own.
    order, treedef = jax.tree.flatten(build(view, placed, trees.sizes, labelled))
    return treedef, [leaf.slot for leaf in order]


@dataclasses.dataclass(frozen=True, slots=True)
class _Placed:
    """A leaf of a tree that is built for its structure.

    Some containers look at the dtype of what they hold.
    """

    slot: Slot
    dtype: Any


@functools.cache
def _dtype(name: str) -> Any:
    return None if name.startswith("key<") else jnp.dtype(name)
