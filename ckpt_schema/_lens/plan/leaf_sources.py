"""Where each leaf of the result comes from, as far as joins tell: from a leaf that only moves, or from a job.

`compilation` asks this first; what no join fills it finds in onto, or makes of a default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from ckpt_schema._layouts import leaves, paths
from ckpt_schema._layouts.paths import KeyPath
from ckpt_schema._layouts.table import Row, Slot, called
from ckpt_schema._lens.arrays.blocks import Task, gaps
from ckpt_schema._lens.arrays.checks import RulePaths
from ckpt_schema._lens.arrays.own_bits import Echo
from ckpt_schema._lens.codecs import is_undone
from ckpt_schema._lens.derive.joins import Join
from ckpt_schema._lens.derive.middle import Joined
from ckpt_schema._lens.plan import refusals
from ckpt_schema._lens.plan.folded_leaves import FoldedLeaves, Unfolded, UntoldWhole
from ckpt_schema._lens.plan.labels import Carried
from ckpt_schema._lens.plan.matched_trees import MatchedTrees
from ckpt_schema._lens.plan.moved_leaves import lone_move
from ckpt_schema._lens.plan.plan import Job, Same
from ckpt_schema._lens.plan.tasks import Application, applications, as_it_is, needed
from ckpt_schema._trees.chains import with_mirrors
from ckpt_schema.errors import ConformanceError, Mismatch

__all__ = ["LeafSources", "leaf_sources"]


@dataclasses.dataclass(slots=True)
class LeafSources:
    """Where slots of the result come from; it grows join by join.

    Attributes:
        places: The position in the pool of what fills a slot.
        keys: For each of these slots, the key path of what it is made of.
        jobs: What is made, in the order in which the pool has it.
        same: Leaves that fill a slot which another fills already: they have to be equal.
        carried: What is done to which leaves, for the names of their axes.
        alone: What leaves hold by default that have no partner, others of their row having one.
        filled: What those hold that are padding.
        untold: The wholes that nothing tells the parts of.
    """

    places: dict[Slot, int] = dataclasses.field(default_factory=dict[Slot, int])
    keys: dict[Slot, KeyPath] = dataclasses.field(default_factory=dict[Slot, KeyPath])
    jobs: list[Job] = dataclasses.field(default_factory=list[Job])
    same: list[Same] = dataclasses.field(default_factory=list[Same])
    carried: list[Carried] = dataclasses.field(default_factory=list[Carried])
    alone: dict[Slot, leaves.Default | None] = dataclasses.field(
        default_factory=dict[Slot, leaves.Default | None]
    )
    filled: dict[Slot, leaves.Default] = dataclasses.field(
        default_factory=dict[Slot, leaves.Default]
    )
    untold: list[UntoldWhole] = dataclasses.field(default_factory=list[UntoldWhole])

    def fill(self, slot: Slot, place: int, key: KeyPath, row: Row) -> None:
        """Says where a slot comes from.

        Of two places that fill one slot, the second is a copy of the first.
        """
        if slot not in self.places:
            self.places[slot], self.keys[slot] = place, key
            return
        there = paths.fill(row.key, slot[1])
        names = (
            paths.format_path(self.keys[slot]),
            paths.format_path(key),
            paths.format_path(there),
        )
        self.same.append(Same(self.places[slot], place, names))


def leaf_sources(sides: Joined, trees: MatchedTrees, *, is_put: bool) -> LeafSources:
    """Where each slot of the result comes from, as far as joins tell.

    Args:
        sides: Both layouts, and which of the left one's rows is which of the right one's.
        trees: The trees.
        is_put: Whether rules speak of what is on the left.

    Raises:
        ConformanceError: A dim that is needed is unbound, or a tree has some leaves of those that
            are made together, and not all.
    """
    gathering = _Gathering(sides, trees, is_put=is_put)
    for join in sides.joins:
        gathering.add(join)
    faults = gathering.faults
    if not faults:
        faults += refusals.not_read(
            sides.source, sides.view, sides.joins, trees.tree, gathering.used, trees.sizes
        )
    if faults:
        header = "{} cannot be taken to {}".format(*called(sides.source, sides.view))
        raise ConformanceError(header, with_mirrors(sides.view, faults))
    return gathering.sources


class _Gathering:
    """The sources of slots, while they are gathered join by join.

    Attributes:
        sources: What is known of them.
        faults: What is wrong.
        used: The slots of the tree that anything is made of.
    """

    def __init__(self, sides: Joined, trees: MatchedTrees, *, is_put: bool) -> None:
        self.sources = LeafSources()
        self.faults: list[Mismatch] = []
        self.used: set[Slot] = set()
        self._trees, self._is_put = trees, is_put
        self._rows = sides.source.rows, sides.view.rows
        # A row that stands for what is computed of several; all other rows are the same in both.
        self._wholes = sides.wholes[0].rows, sides.wholes[1].rows
        self._folds = FoldedLeaves(self._rows, sides.folds, trees.sizes)
        self._end = trees.count  # where the pool will have what the next job makes
        self._moved: set[int] = set()
        self._present = {number for number, _ in trees.tree.slots}
        self._last: tuple[Join, Sequence[Application]] | None = None

    def add(self, join: Join) -> None:
        """Adds what a join makes of the tree."""
        # Nearly all leaves of nearly all lenses are handed on, one by one.
        lone = lone_move(join, self._wholes)
        if lone is not None and self._has_handed_on(*lone):
            return
        # A join of which the tree has no row is of optional leaves that it lacks.
        if self._present.isdisjoint(join.sources):
            return
        row, sizes = self._rows[1][join.views[0]], self._trees.sizes
        wanted = needed(join, self._wholes) | self._folds.dims(join)
        unbound = sorted(wanted - sizes.keys())
        if unbound:
            self.faults.append(refusals.unbound(row, sizes, unbound))
            return
        # What types could not decide for all sizes is decided for these.
        short = [*refusals.too_short(join, row, sizes)]
        if short:
            self.faults += short
            return
        for made in applications(join, self._wholes, sizes):
            self._add_made(join, made)

    def _has_handed_on(self, slot: Slot, result: Slot) -> bool:
        """Adds a leaf that is one of the tree, the same object, unless it needs a job, or a fold knows of it."""
        if self._folds.of(0, slot) is not None or self._folds.of(1, result) is not None:
            return False
        position = self._trees.tree.slots.get(slot)
        if position is None or not self._may_be_the_same(result, position):
            return False
        self.used.add(slot)
        self.sources.carried.append((None, (result,), (position,)))
        self._hand_on(result, position)
        return True

    def _hand_on(self, result: Slot, position: int) -> None:
        key = self._trees.tree.flat.keys[position]
        self.sources.fill(result, position, key, self._rows[1][result[0]])
        self._moved.add(position)

    def _add_made(self, join: Join, made: Application) -> None:
        """Adds leaves that are made together."""
        parts: list[Slot] = []
        for slot in made.inputs:
            parts += self._folds.parts(0, slot)
        self.used.update(parts)
        if not made.inputs:
            self._add_alone(made)
            return
        # Private leaves: nothing is made of them, and nothing is asked.
        if not made.results and not made.task.checks:
            return
        # If all are lacking they are optional, and so is what would be made of them.
        lacking = [slot for slot in parts if slot not in self._trees.tree.slots]
        if not lacking:
            self._add_whole(join, made)
            for slot in made.inputs:
                self.faults += self._folds.faults(0, slot)
            for slot in made.results:
                self.faults += self._folds.faults(1, slot)
        elif len(lacking) < len(parts):
            for slot in lacking:
                self.faults.append(refusals.absent(self._rows[0][slot[0]], slot))

    def _add_alone(self, made: Application) -> None:
        """Adds leaves that are made of nothing: layers that the other side does not have."""
        for kept in made.kept:
            self.sources.alone[made.results[kept.result]] = kept.default
        for filling, value in zip(made.task.fillings, made.values, strict=True):
            self.sources.filled[made.results[filling.result]] = value

    def _add_whole(self, join: Join, made: Application) -> None:
        """Adds leaves that are made together, all of whose inputs are there."""
        tree = self._trees.tree
        positions = tuple(tree.slots[slot] for slot in made.inputs)
        key = tree.flat.keys[positions[0]]
        self.sources.carried.append((None if made.moves else made.task, made.results, positions))
        is_whole = made.moves and not self._folds.touch(made, 0)
        if is_whole and self._may_be_the_same(made.results[0], positions[0]):
            self._hand_on(made.results[0], positions[0])
            return
        unfolded = self._unfolded(join, made)
        self.sources.jobs.append(self._job(join, made, unfolded))
        for slot in unfolded.results:
            self.sources.fill(slot, self._end, key, self._rows[1][slot[0]])
            self._end += 1

    def _may_be_the_same(self, slot: Slot, position: int) -> bool:
        """Whether a leaf that only moves may be the same object as the one at a position of the tree."""
        # A copy takes the sharding of what it stands for: it is placed, and not handed on.
        if self._trees.onto is not None and position in self._moved:
            return False
        # A Python number, as ``TrainState.create`` leaves in ``step``, becomes the array that onto has there.
        if self._trees.like(slot) is None:
            return True
        is_number = leaves.is_scalar(self._trees.tree.flat.leaves[position])
        return not is_number or leaves.is_scalar(self._trees.leaf_of_onto(slot))

    def _unfolded(self, join: Join, made: Application) -> Unfolded:
        """What makes them; what has no partner is kept from what the result goes onto."""
        task, kept, homeless = made.onto(self._trees.has_value)
        if made.moves:
            task = self._as_it_is(0, made)
        for part in homeless:
            slot = made.results[part.result]
            self.faults.append(refusals.homeless(self._rows[1][slot[0]], slot, abstract=False))
        # Each of those without a home would be a gap besides.
        if not homeless:
            for number in gaps(task):
                row = self._rows[1][made.results[number][0]]
                self.faults.append(refusals.gap(row, join, self._trees.sizes))
        return self._folds.unfolded(made, task, kept, 0, self._trees.has_value)

    def _as_it_is(self, side: int, made: Application) -> Task:
        return as_it_is(self._wholes[side][made.inputs[0][0]], self._trees.sizes)

    def _job(self, join: Join, made: Application, unfolded: Unfolded) -> Job:
        """The job that makes them."""
        tree = self._trees.tree
        inputs: list[int] = []
        names: list[str] = []
        for slot in unfolded.inputs:
            inputs.append(tree.slots[slot])
            names.append(paths.format_path(tree.flat.keys[tree.slots[slot]]))
        for slot in unfolded.kept:
            inputs.append(self._trees.kept_place(slot))
            names.append(paths.format_path(paths.fill(self._rows[1][slot[0]].key, slot[1])))
        self.sources.untold += unfolded.untold
        # Rules speak of the model on one side, whichever way a lens goes.
        slots = unfolded.inputs if self._is_put else unfolded.results
        rows = self._rows[0 if self._is_put else 1]
        model_paths = tuple(rows[number].model_path for number, _ in slots)
        return Job(
            unfolded.task,
            tuple(inputs),
            tuple(names),
            likes=tuple(map(self._trees.like, unfolded.results)),
            echoes=tuple(self._echoes(join, made, unfolded)),
            count=len(unfolded.inputs),
            said=RulePaths(model_paths, of_inputs=self._is_put),
        )

    def _echoes(self, join: Join, made: Application, unfolded: Unfolded) -> Iterator[Echo]:
        """What the other direction makes of the leaves that results stand for, where that is not undone."""
        if self._trees.onto is None or not self._is_lossy(made):
            return
        tree = self._trees.tree
        stands = {slot: number for number, slot in enumerate(unfolded.inputs)}
        for back in self._backward(join):
            task, kept, homeless = back.onto(tree.slots.__contains__)
            # Other layers of the join have jobs, and so echoes, of their own.
            if homeless or stands.keys().isdisjoint(back.results):
                continue
            if back.moves:
                task = self._as_it_is(1, back)
            other = self._folds.unfolded(back, task, kept, 1, tree.slots.__contains__)
            if not all(map(self._trees.has_value, other.inputs)):
                continue
            # The other direction reads onto, and keeps what it has no partner for from the tree.
            inputs = [self._trees.kept_place(slot) for slot in other.inputs]
            inputs += [tree.slots[slot] for slot in other.kept]
            yield Echo(other.task, tuple(inputs), tuple(map(stands.get, other.results)))

    def _is_lossy(self, made: Application) -> bool:
        """Whether the way back and forth may make other values of what it is given, and rules allow that."""
        folds = [*filter(None, [self._folds.of(0, slot) for slot in made.inputs])]
        # What is computed is the same again of the same parts: only parts that were made may differ.
        if folds:
            return all(fold.is_told for fold in folds)
        return not all(is_undone(copy.block.codec) for copy in made.task.copies)

    def _backward(self, join: Join) -> Sequence[Application]:
        """What the other direction does to the leaves of a join."""
        # All layers of one join ask for it, one after the other.
        if self._last is None or self._last[0] is not join:
            rows = self._wholes[1], self._wholes[0]
            self._last = join, [*applications(join.inverse, rows, self._trees.sizes)]
        return self._last[1]
