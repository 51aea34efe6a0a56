"""Leaves that a tree may lack and that another leaf of it then stands for."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence

from ckpt_schema._layouts import paths
from ckpt_schema._layouts.fallbacks import SameAs
from ckpt_schema._layouts.paths import KeyPath, LogicalPath
from ckpt_schema._layouts.table import Layout, Slot
from ckpt_schema._lens.derive.joins import Join
from ckpt_schema._lens.plan.plan import Same
from ckpt_schema._trees.conformance import Match

__all__ = ["fallback_values", "lost_copies", "with_fallbacks"]

_LOST = "nothing else would keep it: give onto a leaf of its own there, or make both equal"


def fallback_values(table: Layout) -> dict[int, int]:
    """For each row that falls back on another one: that one, unless other dtypes were given to both."""
    originals: dict[int, LogicalPath] = {}
    for number, row in enumerate(table.rows):
        if isinstance(row.default, SameAs):
            originals[number] = row.default.of(row.path)
    # Few layouts have any: the others need no table of their paths.
    if not originals:
        return {}
    numbers = {row.path: number for number, row in enumerate(table.rows)}
    others: dict[int, int] = {}
    for number, path in originals.items():
        other = numbers.get(path)
        # A leaf of another dtype would not be the same, to the last bit, after the way back.
        if other is not None and table.rows[other].leaf == table.rows[number].leaf:
            others[number] = other
    return others


def with_fallbacks(
    tree: Match, source: Layout, view: Layout, joins: Sequence[Join], onto: Match | None
) -> Match:
    """A tree in which what it lacks is what stands for it, where the result has a place for that."""
    others = fallback_values(source)
    if not others:
        return tree
    results: dict[int, set[int]] = {}  # the rows of the view that are made of a row of the source
    for join in joins:
        for number in join.sources:
            results.setdefault(number, set()).update(join.views)
    # Onto says which leaves the result has; without it, where both sides may lack a leaf, nothing
    # asks for what stands for it.
    if onto is None:
        asked = {number for number, row in enumerate(view.rows) if not row.optional}
    else:
        asked = {number for number, _ in onto.slots}
    slots = dict(tree.slots)
    for number, other in others.items():
        if asked.isdisjoint(results.get(number, ())):
            continue
        for (row, indices), position in tree.slots.items():
            # What the tree has itself stays.
            if row == other:
                slots.setdefault((number, indices), position)
    return dataclasses.replace(tree, slots=slots)


def lost_copies(
    view: Layout, places: Mapping[Slot, int], keys: Mapping[Slot, KeyPath], kept: Collection[Slot]
) -> Iterator[tuple[Slot, Same]]:
    """Leaves that a result has no place for, and that another leaf of it stands for: they have to be equal.

    Args:
        view: The layout of the result.
        places: Where each leaf comes from.
        keys: What each is made of.
        kept: The leaves that the result has.
    """
    others = fallback_values(view)
    for slot in keys:
        if slot[0] not in others or slot in kept:
            continue
        other = others[slot[0]], slot[1]
        if other in places:
            first, copy = paths.format_path(keys[other]), paths.format_path(keys[slot])
            there = paths.format_path(paths.fill(view.rows[other[0]].key, slot[1]))
            yield slot, Same(places[other], places[slot], (first, copy, there), _LOST)
