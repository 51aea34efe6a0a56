"""Translation where a side keeps several leaves of which the other has the sum.

To the lens the sum stands in the place of one part. It is put there before a tree is translated,
and taken apart in what is made.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from ckpt_schema._compat import Tracer
from ckpt_schema._layouts import leaves, paths
from ckpt_schema._layouts.dims import Binder
from ckpt_schema._layouts.table import Layout, Slot
from ckpt_schema._lens.arrays import addition
from ckpt_schema._lens.arrays.execution import as_like
from ckpt_schema._lens.derive.joins import Join
from ckpt_schema._lens.derive.middle import Joined
from ckpt_schema._lens.derive.totals import Summed
from ckpt_schema._trees.conformance import Match, Matcher
from ckpt_schema._trees.containers import Tree
from ckpt_schema.errors import ConformanceError, Mismatch

__all__ = ["through_sums"]

_Run = Callable[[Tree, Tree | None], Tree]


class _Side:
    """One side of a lens: how its trees are matched, and which of its rows have sums."""

    def __init__(self, table: Layout, sums: Sequence[Summed], dims: Mapping[str, int]) -> None:
        self.table, self.sums, self._dims = table, sums, dims
        self._matcher = Matcher(table)

    def match(self, tree: Tree) -> Match:
        """A tree, matched."""
        return self._matcher.match(tree, Binder(self._dims))

    def slots(self, match: Match) -> Iterator[tuple[Summed, Slot, int, list[int]]]:
        """Each leaf of a tree that has a sum, where it is, and where the others are."""
        for one in self.sums:
            for slot, position in match.slots.items():
                others = [match.slots.get((number, slot[1])) for number in one.others]
                there = [other for other in others if other is not None]
                if slot[0] == one.row and len(there) == len(others):
                    yield one, slot, position, there

    def summed(self, tree: Tree) -> Tree:
        """A tree with the sum in the place of one part."""
        if not self.sums:
            return tree
        match, faults = self.match(tree), list[Mismatch]()
        if not match.report.ok:  # which is told when it is translated
            return tree
        made = list(match.flat.leaves)
        for one, slot, position, others in self.slots(match):
            parts = [made[at] for at in (position, *others)]
            if any(map(leaves.is_deleted, parts)):
                continue
            try:
                made[position] = addition.plus(parts, self.table.rows[one.row].leaf.dtype)
            except addition.InfiniteError:
                faults.append(self._infinite(slot))
        if faults:
            raise ConformanceError(f"leaves of {self.table.name} cannot be added", faults)
        return match.flat.treedef.unflatten(made)

    def taken_apart(self, result: Tree, onto: Tree | None, goal: Tree | None) -> Tree:
        """A tree that was made, with the parts in the place of the sum.

        Args:
            result: The tree.
            onto: What it goes onto.
            goal: The same with the sum in the place of one part.
        """
        if not self.sums:
            return result
        match, made, faults = self.match(result), list[Any](), list[Mismatch]()
        made += match.flat.leaves
        kept = None if onto is None else self.match(onto)
        whole = None if goal is None else self.match(goal).flat.leaves
        for one, slot, position, others in self.slots(match):
            total, dtype = made[position], self.table.rows[one.row].leaf.dtype
            at = None if kept is None else kept.slots.get(slot)
            own, same = None, False
            if kept is not None and whole is not None and at is not None:
                own = kept.flat.leaves[at]
                same = not leaves.is_abstract(own) and addition.is_same(total, whole[at])
            if same is True:
                made[position] = own
                continue
            if not one.is_told and not leaves.is_abstract(total):
                faults.append(self._untold(one, slot))
                continue
            try:
                rest = addition.minus(total, [made[other] for other in others], dtype)
            except addition.InfiniteError:
                faults.append(self._infinite(slot))
                continue
            is_traced = isinstance(rest, Tracer)
            made[position] = addition.one_of(same, own, rest) if is_traced else as_like(rest, own)
        if faults:
            raise ConformanceError("a sum does not tell its parts", faults)
        return match.flat.treedef.unflatten(made)

    def _where(self, slot: Slot) -> str:
        return paths.format_path(paths.fill(self.table.rows[slot[0]].key, slot[1]))

    def _infinite(self, slot: Slot) -> Mismatch:
        hint = "parts that are not added keep their values: give each a place of its own"
        return Mismatch(self._where(slot), "value", "a finite number", "one that is none", hint)

    def _untold(self, one: Summed, slot: Slot) -> Mismatch:
        names = ["/".join(self.table.rows[number].model_path) for number in one.others]
        rules = " and ".join(f"private({name!r}, 0.0)" for name in names)
        expected = "a rule that says what becomes of all parts but one"
        hint = (
            f"add {rules}: what onto has there stays, else it is 0, and this one has what is left"
        )
        return Mismatch(self._where(slot), "rule", expected, "none", hint)


def through_sums(
    lens: Joined, run: _Run, back: _Run, tree: Tree, onto: Tree | None, *, own: bool
) -> Tree:
    """A tree, translated by a lens of which a side has sums.

    Args:
        lens: The lens.
        run: Translates one way, a sum standing in the place of one part.
        back: Translates the other way, sums and all.
        tree: The tree.
        onto: What the result goes onto.
        own: Whether leaves of ``onto`` stay that ``tree`` still is what the other way makes of.

    Raises:
        ConformanceError: As the translation does; and with every sum of which nobody says what the
            parts are.
    """
    sides = [
        _Side(table, sums, lens.dims)
        for table, sums in zip((lens.source, lens.view), lens.sums, strict=True)
    ]
    goal = None if onto is None else sides[1].summed(onto)
    unchanged = set[int]()
    if own and onto is not None and sides[0].sums:  # before anything of the tree is given up
        unchanged = _unchanged(sides[0], back, tree, onto)
    result = run(sides[0].summed(tree), goal)
    result = sides[1].taken_apart(result, onto, goal)
    if onto is None or not sides[0].sums:
        return result
    return _with_own(lens, sides, result, onto, unchanged)


def _unchanged(side: _Side, back: _Run, tree: Tree, onto: Tree) -> set[int]:
    """The rows of a tree, by number, that still are what the other way makes of a tree that it goes onto."""
    try:
        again = back(onto, tree)
    except ConformanceError:
        return set()  # nothing was made of it
    ours, theirs = side.match(tree), side.match(again)
    same: dict[int, bool] = {}
    for slot, position in ours.slots.items():
        at = theirs.slots.get(slot)
        alike = at is not None and addition.is_same(
            ours.flat.leaves[position], theirs.flat.leaves[at]
        )
        same[slot[0]] = same.get(slot[0], True) and alike is True
    return {number for number, alike in same.items() if alike}


def _of_sums(lens: Joined, sides: Sequence[_Side]) -> list[Join]:
    """What is made of sums."""
    rows = {one.row for one in sides[0].sums}
    return [join for join in lens.joins if rows.intersection(join.sources)]


def _with_own(
    lens: Joined, sides: Sequence[_Side], result: Tree, onto: Tree, unchanged: Collection[int]
) -> Tree:
    """What was made; what is made of sums is where it is in the tree that it goes onto.

    Of rows that did not change, it is the own leaf of that.
    """
    made, kept = sides[1].match(result), sides[1].match(onto)
    results = list(made.flat.leaves)
    for join in _of_sums(lens, sides):
        is_own = all(number in unchanged for number in join.sources)
        for slot, position in made.slots.items():
            at = kept.slots.get(slot)
            if slot[0] not in join.views or at is None:
                continue
            leaf, own = results[position], kept.flat.leaves[at]
            if is_own and not leaves.is_abstract(own):
                results[position] = own
            elif not isinstance(leaf, Tracer):
                results[position] = as_like(leaf, own)
    return made.flat.treedef.unflatten(results)
