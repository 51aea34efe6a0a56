"""Choices of how leaves are cut under which both models have as many pieces of each form."""

from __future__ import annotations

import bisect
import collections
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ckpt_schema.discovery._leaf_pieces import AxisSizes

__all__ = ["FormCounts", "PieceOption", "even_choices", "least_unlike"]

FormCounts = collections.Counter[AxisSizes]
Changes = frozenset[Any]
"""What a choice says of leaves; this module only joins it."""

Array = np.ndarray[Any, Any]

_MOST_STATES = 400
_MOST_CHOICES = 24
_SPARE = (1, 8, 64)
"""How much more cutting than the least that there is, is looked at first: mostly that is enough."""


@dataclasses.dataclass(frozen=True)
class PieceOption:
    """What some leaves may be cut into.

    Attributes:
        counts: How many pieces of each form; those of the view are negative.
        cost: How much cutting it is.
        changes: The change that says it.
    """

    counts: FormCounts
    cost: int
    changes: Changes


_Entry = tuple[int, int, "_Chain"]
"""A choice of options so far: its cost, a number that no other has, and the options, the last first."""

_Chain = tuple["PieceOption", "_Chain"] | None


def even_choices(options: Sequence[Sequence[PieceOption]]) -> Iterator[Changes]:
    """The choices of one option each whose counts add up to nothing, the least cutting first.

    They are looked for as they are asked for: what cuts much is not searched where little is enough.

    Args:
        options: Those of each group of leaves.
    """
    groups = _counted(options)
    if groups is None:
        return
    given: set[Changes] = set()
    for spare in (*_SPARE, None):
        for _, _, chain in _even_entries(groups, spare):
            changes = _chosen(chain)
            if changes not in given and len(given) < _MOST_CHOICES:
                given.add(changes)
                yield changes
        if len(given) == _MOST_CHOICES:
            return


def _even_entries(groups: Sequence[_CountedGroup], spare: int | None) -> list[_Entry]:
    """The even choices, those of the least cost first.

    Groups are gone through one after the other; what is kept of each choice is what does not yet come
    out even. After a source of two kernels (4, 6) that is {(4, 6): 2}; of all choices that leave the
    same gap, the cheapest are kept.

    Args:
        groups: The options.
        spare: How much they may cost more than the cheapest options of all groups; None for any.
    """
    # No two entries have one number, so that chains, which have no order, are never compared.
    numbers = itertools.count()
    entries_of_gaps: list[list[_Entry]] = [[(0, next(numbers), None)]]
    gaps = np.zeros((1, groups[0].counts.shape[1] if groups else 0), int)
    dearest = np.inf
    if spare is not None:
        dearest = spare + sum(group.costs.min() for group in groups)
    for number, group in enumerate(groups):
        behind = groups[number + 1 :]
        # What is left may cost so much, whatever is chosen behind this group.
        dearest_here = dearest - sum(other.costs.min() for other in behind)
        # Each option beside each gap, at once: what no groups behind can bring to nothing is dropped.
        left = gaps[:, None] + group.counts
        least, most = _bounds(behind, left.shape[-1])
        may_close = ((left + least <= 0) & (left + most >= 0)).all(-1)
        cheapest = np.array([entries[0][0] for entries in entries_of_gaps])
        may_close &= cheapest[:, None] + group.costs <= dearest_here
        following: dict[bytes, tuple[Array, list[_Entry]]] = {}
        for gap, at in np.argwhere(may_close):
            row, option = left[gap, at], group.options[at]
            _, kept = following.setdefault(row.tobytes(), (row, []))
            for cost, _, chain in entries_of_gaps[gap]:
                total = cost + option.cost
                # Entries come in order of cost: those behind this one cost no less.
                if total > dearest_here or (len(kept) == _MOST_CHOICES and total >= kept[-1][0]):
                    break
                bisect.insort(kept, (total, next(numbers), (option, chain)))
                del kept[_MOST_CHOICES:]
        # A gap of few forms is likelier to close.
        fewest = sorted(following.values(), key=_unlikelihood)[:_MOST_STATES]
        if not fewest:
            return []
        gaps = np.stack([row for row, _ in fewest])
        entries_of_gaps = [entries for _, entries in fewest]
    # Behind the last group the one gap is none.
    return entries_of_gaps[0]


def _unlikelihood(state: tuple[Array, list[_Entry]]) -> tuple[int, int]:
    row, entries = state
    return int(np.count_nonzero(row)), entries[0][0]


@dataclasses.dataclass(frozen=True)
class _CountedGroup:
    """The options of a group that may be part of an even choice.

    Attributes:
        options: The options.
        counts: A row for each, of how many pieces of each form it has.
        costs: What each costs.
    """

    options: Sequence[PieceOption]
    counts: Array
    costs: Array


def _counted(options: Sequence[Sequence[PieceOption]]) -> list[_CountedGroup] | None:
    """The groups without the options that are in no even choice; None where a group has no others."""
    columns: dict[AxisSizes, int] = {}
    for option in itertools.chain(*options):
        for form in option.counts:
            columns.setdefault(form, len(columns))
    groups: list[_CountedGroup] = []
    for group_options in options:
        if not group_options:
            return None
        counts = np.zeros((len(group_options), len(columns)), int)
        for row, option in zip(counts, group_options, strict=True):
            for form, count in option.counts.items():
                row[columns[form]] = count
        costs = np.array([option.cost for option in group_options])
        groups.append(_CountedGroup(group_options, counts, costs))
    # What a group has too much of a form, all others together must be able to take away. An option
    # that is dropped narrows what its group can take, so others may go in the next round.
    dropped = True
    while dropped:
        dropped = False
        least, most = _bounds(groups, len(columns))
        for number, group in enumerate(groups):
            counts = group.counts
            least_of_others, most_of_others = least - counts.min(0), most - counts.max(0)
            stays = ((counts + least_of_others <= 0) & (counts + most_of_others >= 0)).all(-1)
            if not stays.any():
                return None
            if not stays.all():
                dropped = True
                kept = [group.options[at] for at in np.flatnonzero(stays).tolist()]
                groups[number] = _CountedGroup(kept, counts[stays], group.costs[stays])
    return groups


def _bounds(groups: Sequence[_CountedGroup], width: int) -> tuple[Array, Array]:
    """How few and how many pieces of each form some groups have together."""
    least, most = np.zeros(width, int), np.zeros(width, int)
    for group in groups:
        least = least + group.counts.min(0)
        most = most + group.counts.max(0)
    return least, most


def _chosen(chain: _Chain) -> Changes:
    """The changes of all options of a choice."""
    changes: Changes = frozenset()
    while chain is not None:
        option, chain = chain
        changes |= option.changes
    return changes


def least_unlike(options: Sequence[Sequence[PieceOption]]) -> Changes:
    """The choice that leaves the forms least unlike; one option is bettered after the other."""
    chosen = [group_options[0] for group_options in options]
    # Counters add and subtract what is below zero too, by `update` and `subtract` alone.
    gap: FormCounts = collections.Counter()
    for option in chosen:
        gap.update(option.counts)
    # Each round exchanges the one option that helps the most, until none does.
    while True:
        best: tuple[int, int, PieceOption, FormCounts] | None = None
        for group, group_options in enumerate(options):
            for option in group_options:
                moved = gap.copy()
                moved.subtract(chosen[group].counts)
                moved.update(option.counts)
                gain = _unlike(gap) - _unlike(moved)
                if gain > (0 if best is None else best[0]):
                    best = gain, group, option, moved
        if best is None:
            break
        _, group, option, gap = best
        chosen[group] = option
    changes: Changes = frozenset()
    for option in chosen:
        changes |= option.changes
    return changes


def _unlike(gap: FormCounts) -> int:
    """How many pieces have no partner of their form."""
    return sum(map(abs, gap.values()))
