"""Leaves that a tree may lack and that another leaf of it then stands for."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence

from ckpt_schema._layouts import paths
from ckpt_schema._layouts.fallbacks import SameAs
from ckpt_schema._layouts.paths import KeyPath
from ckpt_schema._layouts.table import Layout, Slot
from ckpt_schema._lens.derive.joins import Join
from ckpt_schema._lens.plan.plan import Same
from ckpt_schema._trees.conformance import Match

__all__ = ["fallback_values", "lost_copies", "with_fallbacks"]

_LOST = "nothing else would keep it: give onto a leaf of its own there, or make both equal"


def fallback_values(table: Layout) -> dict[int, int]:
    """For each row that falls back on another one: that one, unless other dtypes were given to both."""
    spoken = [
        (number, row.default.of(row.path))
        for number, row in enumerate(table.rows)
        if isinstance(row.default, SameAs)
    ]
    if not spoken:
        return {}
    numbers = {row.path: number for number, row in enumerate(table.rows)}
    others: dict[int, int] = {}
    for number, path in spoken:
        other = numbers.get(path)
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
    after: dict[int, set[int]] = {}
    for join in joins:
        for number in join.sources:
            after.setdefault(number, set()).update(join.views)
    there = None if onto is None else {number for number, _ in onto.slots}
    slots = dict(tree.slots)
    for number, other in others.items():
        # Where both sides may lack it, nothing asks for what stands for it.
        wanted = {at for at in after.get(number, ()) if there or not view.rows[at].optional}
        is_wanted = bool(wanted if there is None else wanted & there)
        for (row, indices), position in tree.slots.items() if is_wanted else ():
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
    for slot in [slot for slot in keys if slot[0] in others and slot not in kept]:
        other = others[slot[0]], slot[1]
        if other in places:
            first, copy = (paths.format_path(keys[each]) for each in (other, slot))
            there = paths.format_path(paths.fill(view.rows[other[0]].key, slot[1]))
            yield slot, Same(places[other], places[slot], (first, copy, there), _LOST)
