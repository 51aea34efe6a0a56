"""From two matched trees to a `Plan`: where each leaf of the result comes from."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts import leaves, paths
from ckpt_schema._layouts.fallbacks import SameAs
from ckpt_schema._layouts.leaves import Init, Leaf, Made
from ckpt_schema._layouts.paths import KeyPath
from ckpt_schema._layouts.table import Layout, Row, Slot, called, slots_of
from ckpt_schema._lens.arrays.blocks import Task
from ckpt_schema._lens.arrays.checks import RulePaths, narrowed
from ckpt_schema._lens.arrays.own_bits import Echo
from ckpt_schema._lens.codecs import is_undone
from ckpt_schema._lens.derive.joins import Join
from ckpt_schema._lens.derive.middle import Joined
from ckpt_schema._lens.plan import refusals
from ckpt_schema._lens.plan.fallback_leaves import fallback_values, lost_copies, with_fallbacks
from ckpt_schema._lens.plan.folded_leaves import FoldedLeaves, Unfolded, with_scales
from ckpt_schema._lens.plan.labels import Carried, Labelled, carried
from ckpt_schema._lens.plan.plan import (
    Dropped,
    Job,
    Make,
    Plan,
    Restart,
    Same,
    gatherer,
    signature_of,
)
from ckpt_schema._lens.plan.tasks import Application, applications, as_it_is, gaps, needed
from ckpt_schema._trees.chains import with_mirrors
from ckpt_schema._trees.conformance import Match
from ckpt_schema._trees.containers import build, flatten
from ckpt_schema._trees.defaults import spot_of
from ckpt_schema._trees.slots import SlotFinder
from ckpt_schema.errors import ConformanceError, Mismatch

__all__ = ["compile_plan"]


@dataclasses.dataclass(slots=True)
class _Sources:
    """Where each slot of the result comes from, while this is being found out."""

    places: dict[
        Slot, int
    ]  # positions in the pool: the source's leaves, then onto's, then the results of all jobs
    jobs: list[Job]
    same: list[Same]
    carried: list[Carried]
    keys: dict[Slot, KeyPath]  # of what the first to fill a slot is made of
    alone: dict[
        Slot, leaves.Default | None
    ]  # what leaves hold that have no partner, others of their row having one
    filled: dict[Slot, leaves.Default]  # what those hold that are padding
    untold: list[Mismatch]  # what stands for several, of which nothing tells the parts

    def fill(self, slot: Slot, place: int, key: KeyPath, row: Row) -> None:
        """Says where a slot comes from.

        Of two places that fill one slot, the second is a copy of the first.
        """
        if slot in self.places:
            first, copy, there = map(
                paths.format_path, (self.keys[slot], key, paths.fill(row.key, slot[1]))
            )
            self.same.append(Same(self.places[slot], place, (first, copy, there)))
        else:
            self.places[slot], self.keys[slot] = place, key


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
    sizes = with_scales(sides, sizes)
    wanted = _wanted(view, joins, tree, onto, sizes)
    base = len(tree.flat.leaves) + (len(onto.flat.leaves) if onto else 0)
    whole = with_fallbacks(tree, source, view, joins, onto)
    sources = _sources(sides, whole, onto, sizes, base, is_put=is_put)
    edited = base + sum(len(job.likes) for job in sources.jobs)
    makes: list[Make] = []
    places: dict[Slot, int] = {}
    copies: list[Slot] = []  # of other leaves of the result
    faults: list[Mismatch] = []
    for slot in wanted:
        kept = None if onto is None else onto.slots.get(slot)
        row = view.rows[slot[0]]
        default = sources.filled.get(slot) or sources.alone.get(slot, row.default)
        if slot in sources.places:
            places[slot] = sources.places[slot]
        elif (
            slot not in sources.filled
            and kept is not None
            and onto
            and (abstract or not leaves.is_abstract(onto.flat.leaves[kept]))
        ):
            places[slot] = len(tree.flat.leaves) + kept
        elif isinstance(default, Init):
            continue  # made from the params, once these have their places
        elif isinstance(default, SameAs):
            copies.append(slot)
        elif default is not None:
            shape, spot = dims_.sizes_of(row.dims, sizes), spot_of(row, slot[1], sizes)
            if shape is None or spot is None:
                faults.append(refusals.unbound(row, sizes))
                continue
            narrow = narrowed(paths.format_path(paths.fill(row.key, slot[1])), row.leaf.dtype)
            like = None if kept is None or onto is None else onto.flat.leaves[kept]
            if narrow is not None and getattr(like, "sharding", None) is not None:
                faults.append(narrow)
                continue
            places[slot] = edited + len(makes)
            makes.append(Make(default, row.leaf.dtype, shape, spot, kept, abstract))
        else:
            faults.append(refusals.homeless(row, slot, kept is not None))
    again: Restart | None = None
    fresh = [
        slot
        for slot in wanted
        if slot not in places and isinstance(view.rows[slot[0]].default, Init)
    ]
    if fresh and not faults:
        again = _restart(view, wanted, fresh, places, onto, sizes, faults, abstract=abstract)
        places |= {slot: edited + len(makes) + n for n, slot in enumerate(fresh)}
    others = fallback_values(view) if copies else {}
    for number, indices in copies:
        place = places.get((others.get(number, number), indices))
        if place is None:
            faults.append(refusals.homeless(view.rows[number], (number, indices), abstract=False))
        else:
            places[number, indices] = place
    if not faults and not abstract:
        faults += sources.untold
    if faults:
        header = "{1} cannot be filled from {0}".format(*called(source, view))
        raise ConformanceError(header, with_mirrors(view, faults))
    labelled = carried(source, view, tree, sources.carried, wanted, sizes) if onto is None else {}
    treedef, order = _container(view, wanted, onto, sizes, labelled)
    same, lost = sources.same, dict(sources.keys)
    for slot, pair in lost_copies(view, sources.places, sources.keys, places):
        same.append(pair)
        del lost[slot]
    return Plan(
        signature_of(tree.flat.treedef, tree.flat.leaves, _declared(source, tree)),
        None
        if onto is None
        else signature_of(onto.flat.treedef, onto.flat.leaves, _declared(view, onto)),
        treedef,
        gatherer([places[slot] for slot in order]),
        tuple(sources.jobs),
        tuple(makes),
        again,
        tuple(same),
        () if onto is None else tuple(_dropped(source, view, tree, onto, lost, sizes)),
    )


def _dropped(
    source: Layout,
    view: Layout,
    tree: Match,
    onto: Match,
    keys: Mapping[Slot, KeyPath],
    sizes: Mapping[str, int],
) -> Iterator[Dropped]:
    """Leaves that a tree has and what it goes onto lacks.

    Ephemeral ones are for whoever has a place.
    """
    lost = [slot for slot in keys if slot not in onto.slots]
    if not lost:
        return
    slots = {tree.flat.keys[at]: (slot, at) for slot, at in tree.slots.items()}
    for slot in lost:
        row, ((number, indices), position) = view.rows[slot[0]], slots[keys[slot]]
        own = source.rows[number]
        if row.ephemeral or own.ephemeral:
            continue
        where = paths.format_path(paths.fill(row.key, slot[1]))
        hint = f"give onto a leaf at {where}, take this one out of the tree, or say drop=True"
        expected = f"a place for it in onto, {row.stored} at {where}"
        fault = Mismatch(paths.format_path(keys[slot]), "dropped", expected, "none", hint)
        shape, spot = dims_.sizes_of(own.dims, sizes), spot_of(own, indices, sizes)
        spare = None
        if isinstance(own.default, Made) and shape is not None and spot is not None:
            spare = Make(own.default, own.leaf.dtype, shape, spot, None, abstract=False)
        yield Dropped(fault, position, spare)


def _restart(
    view: Layout,
    wanted: Sequence[Slot],
    fresh: Sequence[Slot],
    places: Mapping[Slot, int],
    onto: Match | None,
    sizes: Mapping[str, int],
    faults: list[Mismatch],
    *,
    abstract: bool,
) -> Restart | None:
    """What makes the leaves of the optimizer state that start anew, from the params of the result."""
    initial, rows = view.initial, view.rows
    if initial is None:
        faults += (refusals.homeless(rows[slot[0]], slot, abstract=False) for slot in fresh)
        return None
    params = [slot for slot in wanted if initial.trains(rows[slot[0]])]
    keys = [paths.fill(rows[number].key, indices) for number, indices in params]

    def state(values: Sequence[Any]) -> Any:
        return initial(
            [
                (key, rows[slot[0]], value)
                for key, slot, value in zip(keys, params, values, strict=True)
            ]
        )

    shapes = [
        jax.ShapeDtypeStruct(dims_.sizes_of(rows[n].dims, sizes) or (), rows[n].leaf.dtype)
        for n, _ in params
    ]
    flat, find = flatten(jax.eval_shape(state, shapes)), SlotFinder(view).slot
    positions = {find(key, stored=False): at for at, key in enumerate(flat.keys)}
    for slot in fresh:
        row, at = rows[slot[0]], positions.get(slot)
        made = None if at is None else flat.leaves[at]
        if leaves.signature(made) != (dims_.sizes_of(row.dims, sizes), row.leaf.dtype):
            where = paths.format_path(paths.fill(row.key, slot[1]))
            faults.append(
                Mismatch(
                    where,
                    "shape",
                    str(row.stored),
                    f"{leaves.describe(made)} from the transformation",
                )
            )
    if faults:
        return None
    picked = [positions[slot] for slot in fresh]
    models = {("/".join(rows[n].path), at_): at for at, (n, at_) in enumerate(params)}
    along = [models.get((rows[n].mirrors, indices)) for n, indices in fresh]
    same = [
        at is not None and rows[params[at][0]].dims == rows[n].dims
        for at, (n, _) in zip(along, fresh, strict=True)
    ]
    return Restart(
        lambda values: [jax.tree.leaves(state(values))[at] for at in picked],
        tuple(places[slot] for slot in params),
        tuple(None if onto is None else onto.slots.get(slot) for slot in fresh),
        tuple(at if alike else None for at, alike in zip(along, same, strict=True)),
        abstract,
    )


def _declared(table: Layout, match: Match) -> Callable[[int], Leaf]:
    """What each leaf of a matched tree, by position, is declared to be."""
    numbers = {position: number for (number, _), position in match.slots.items()}
    return lambda position: table.rows[numbers[position]].stored


def _wanted(
    view: Layout, joins: Sequence[Join], tree: Match, onto: Match | None, sizes: Mapping[str, int]
) -> list[Slot]:
    """Every leaf the result has: those of ``onto``, or else all that are required, carried or defaulted."""
    if onto is not None:
        return list(onto.slots)
    present = {number for number, _ in tree.slots}
    carried = {at for one in joins if not present.isdisjoint(one.sources) for at in one.views}
    slots: list[Slot] = []
    faults: list[Mismatch] = []
    for number, row in enumerate(view.rows):
        is_spare = row.default is None or isinstance(row.default, SameAs)
        if row.optional and is_spare and number not in carried:
            continue
        if not row.unrolled:
            slots.append((number, ()))
        elif any(dims_.size_of(dim, sizes) is None for dim in row.unrolled):
            faults.append(refusals.unbound(row, sizes))
        else:
            slots += [(number, indices) for indices in slots_of(row, sizes)]
    if faults:
        raise ConformanceError(f"{view.name} cannot be bound", with_mirrors(view, faults))
    return slots


def _sources(
    sides: Joined,
    tree: Match,
    onto: Match | None,
    sizes: Mapping[str, int],
    base: int,
    *,
    is_put: bool,
) -> _Sources:
    """Where each slot of the result comes from, as far as joins tell."""
    source, view, joins = sides.source, sides.view, sides.joins
    work = _Work(sides, tree, onto, sizes, base, is_put=is_put)
    present = {number for number, _ in tree.slots}
    for join in joins:
        if not present.isdisjoint(join.sources):  # or else an optional leaf that this tree lacks
            work.add(join)
    if not work.faults:
        work.faults += refusals.not_read(source, view, joins, tree, work.used, sizes)
    if work.faults:
        header = "{} cannot be taken to {}".format(*called(source, view))
        raise ConformanceError(header, with_mirrors(view, work.faults))
    return work.found


class _Work:
    """The sources of slots, while they are gathered join by join.

    Attributes:
        found: What is known of them.
        faults: What is wrong.
        used: The slots of the tree that anything is made of.
    """

    def __init__(
        self,
        sides: Joined,
        tree: Match,
        onto: Match | None,
        sizes: Mapping[str, int],
        base: int,
        *,
        is_put: bool,
    ) -> None:
        self._is_put = is_put
        self.rows = sides.source.rows, sides.view.rows
        self._wholes = sides.wholes[0].rows, sides.wholes[1].rows
        self.folds = FoldedLeaves(self.rows, sides.folds, sizes)
        self.tree, self.onto, self.sizes = tree, onto, sizes
        self.found = _Sources({}, [], [], [], {}, {}, {}, [])
        self.faults: list[Mismatch] = []
        self.used: set[Slot] = set()
        self._base = base
        self._moved: set[int] = set()
        self._last: tuple[Join, Sequence[Application]] | None = None

    def add(self, join: Join) -> None:
        """Adds what a join makes of the tree."""
        row = self.rows[1][join.views[0]]
        wanted = needed(join, self._wholes) | self.folds.dims(join)
        unbound = sorted(wanted - self.sizes.keys())
        wrong = [refusals.unbound(row, self.sizes, unbound)] if unbound else []
        wrong = wrong or [*refusals.too_short(join, row, self.sizes)]
        if wrong:
            self.faults += wrong
            return
        for made in applications(join, self._wholes, self.sizes):
            parts = [part for slot in made.inputs for part in self.folds.parts(0, slot)]
            self.used.update(parts)
            if not made.inputs:
                self._add_alone(made)
                continue
            if not made.results and not made.task.checks:  # private: nothing is asked of it
                continue
            lacking = [slot for slot in parts if slot not in self.tree.slots]
            if not lacking:
                self._add(join, made)
                self.faults += (f for slot in made.inputs for f in self.folds.faults(0, slot))
                self.faults += (f for slot in made.results for f in self.folds.faults(1, slot))
            elif len(lacking) < len(parts):
                self.faults += (refusals.absent(self.rows[0][slot[0]], slot) for slot in lacking)

    def _add_alone(self, made: Application) -> None:
        """Adds leaves that are made of nothing: layers that the other side does not have."""
        for kept in made.kept:
            self.found.alone[made.results[kept.result]] = kept.default
        for filling, value in zip(made.task.fillings, made.values, strict=True):
            self.found.filled[made.results[filling.result]] = value

    def _add(self, join: Join, made: Application) -> None:
        """Adds leaves that are made together, all of whose inputs are there."""
        positions = tuple(self.tree.slots[slot] for slot in made.inputs)
        key = self.tree.flat.keys[positions[0]]
        self.found.carried.append((None if made.moves else made.task, made.results, positions))
        # A copy takes the sharding of what it stands for: it is placed, and not handed on.
        again = positions[0] in self._moved and self.onto is not None
        result = made.results[0] if made.results else None
        if (
            result is not None
            and made.moves
            and not self.folds.touch(made, 0)
            and not again
            and not _materialized(self.tree, positions[0], self.onto, result)
        ):
            self.found.fill(result, positions[0], key, self.rows[1][result[0]])
            self._moved.add(positions[0])
            return
        unfolded = self._unfolded(join, made)
        self.found.jobs.append(self._job(join, made, unfolded))
        for slot in unfolded.results:
            self.found.fill(slot, self._base, key, self.rows[1][slot[0]])
            self._base += 1

    def _unfolded(self, join: Join, made: Application) -> Unfolded:
        """What makes them; what has no partner is kept from what the result goes onto."""
        task, extra, open_ = made.onto(lambda slot: _has_value(self.onto, slot))
        if made.moves:
            task = self._as_it_is(0, made)
        for one in open_:
            slot = made.results[one.result]
            self.faults.append(refusals.homeless(self.rows[1][slot[0]], slot, abstract=False))
        for number in [] if open_ else gaps(task):
            self.faults.append(
                refusals.gap(self.rows[1][made.results[number][0]], join, self.sizes)
            )
        return self.folds.unfolded(made, task, extra, 0, lambda slot: _has_value(self.onto, slot))

    def _as_it_is(self, side: int, made: Application) -> Task:
        return as_it_is(self._wholes[side][made.inputs[0][0]], self.sizes)

    def _job(self, join: Join, made: Application, unfolded: Unfolded) -> Job:
        """The job that makes them."""
        positions = [self.tree.slots[slot] for slot in unfolded.inputs]
        keys = [self.tree.flat.keys[at] for at in positions]
        places, likes = list(positions), list[int | None]()
        if self.onto is not None:
            likes += (self.onto.slots.get(slot) for slot in unfolded.results)
            places += (len(self.tree.flat.leaves) + self.onto.slots[s] for s in unfolded.kept)
            keys += (paths.fill(self.rows[1][slot[0]].key, slot[1]) for slot in unfolded.kept)
        spelled = tuple(paths.format_path(key) for key in keys)
        likes = likes or [None] * len(unfolded.results)
        self.found.untold += refusals.all_untold(unfolded.untold)
        echoes = tuple(self._echoes(join, made, unfolded))
        slots = unfolded.inputs if self._is_put else unfolded.results
        rows = self.rows[0 if self._is_put else 1]
        said = RulePaths(tuple(rows[slot[0]].model_path for slot in slots), of_inputs=self._is_put)
        count = len(positions)
        return Job(unfolded.task, tuple(places), spelled, tuple(likes), echoes, count, said)

    def _echoes(self, join: Join, made: Application, unfolded: Unfolded) -> Iterator[Echo]:
        """What the other direction makes of the leaves that results stand for, where that is not undone."""
        folds = [fold for slot in made.inputs if (fold := self.folds.of(0, slot)) is not None]
        is_exact = all(is_undone(copy.block.codec) for copy in made.task.copies)
        # What is computed is the same again of the same parts: only parts that were made may differ.
        if self.onto is None or (is_exact and not folds) or not all(f.is_told for f in folds):
            return
        place = {slot: number for number, slot in enumerate(unfolded.inputs)}
        for back in self._backward(join):
            task, extra, open_ = back.onto(lambda slot: slot in self.tree.slots)
            if open_ or place.keys().isdisjoint(back.results):
                continue
            if back.moves:
                task = self._as_it_is(1, back)
            other = self.folds.unfolded(back, task, extra, 1, lambda s: s in self.tree.slots)
            if not all(_has_value(self.onto, slot) for slot in other.inputs):
                continue
            start = len(self.tree.flat.leaves)
            inputs = [start + self.onto.slots[slot] for slot in other.inputs]
            inputs += (self.tree.slots[slot] for slot in other.kept)
            stands = tuple(place.get(slot) for slot in other.results)
            yield Echo(other.task, tuple(inputs), stands)

    def _backward(self, join: Join) -> Sequence[Application]:
        """What the other direction does to the leaves of a join."""
        if self._last is None or self._last[0] is not join:
            rows = self._wholes[1], self._wholes[0]
            self._last = join, [*applications(join.inverse, rows, self.sizes)]
        return self._last[1]


def _has_value(onto: Match | None, slot: Slot) -> bool:
    """Whether a tree has a leaf with values in a slot."""
    at = None if onto is None else onto.slots.get(slot)
    return at is not None and onto is not None and not leaves.is_abstract(onto.flat.leaves[at])


def _materialized(tree: Match, position: int, onto: Match | None, output: Slot) -> bool:
    """Whether a Python number, as ``TrainState.create`` leaves in ``step``, becomes the array that ``onto`` has there."""
    kept = None if onto is None else onto.slots.get(output)
    if kept is None or onto is None or not leaves.is_scalar(tree.flat.leaves[position]):
        return False
    return not leaves.is_scalar(onto.flat.leaves[kept])


def _container(
    view: Layout,
    wanted: Sequence[Slot],
    onto: Match | None,
    sizes: Mapping[str, int],
    labelled: Mapping[KeyPath, Labelled],
) -> tuple[Any, list[Slot]]:
    """The structure of the result, and the slot of each of its leaves."""
    if onto is not None:
        by_position = {position: slot for slot, position in onto.slots.items()}
        return onto.flat.treedef, [by_position[i] for i in range(len(by_position))]
    rows = view.rows
    # The leaves of this tree have their slots, so that its flattening tells their order.
    numbered = [
        (paths.fill(rows[s[0]].key, s[1]), rows[s[0]], _Placed(s, _dtype(rows[s[0]].leaf.dtype)))
        for s in wanted
    ]
    order, treedef = jax.tree.flatten(build(view, numbered, sizes, labelled))
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
