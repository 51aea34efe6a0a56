"""Which floats the layouts of a lens hold where some leaves are any float.

The two ends are told by trees, or by a user. What is open all the same is what its partner is: a
layout between two lenses takes what comes in from the source, and a leaf that both trees lack, of
which no array is made, stands for what its partner would be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from ckpt_schema._layouts.formats import FORMATS
from ckpt_schema._layouts.leaves import ANY_FLOAT
from ckpt_schema._layouts.paths import Pattern
from ckpt_schema._layouts.precision import open_rows, with_dtypes
from ckpt_schema._layouts.table import Layout, called
from ckpt_schema._lens.ancestry import Derivation
from ckpt_schema._lens.codecs import holds
from ckpt_schema.errors import DerivationError, Mismatch

__all__ = ["closed_steps", "opened", "opened_steps", "verify_one_dtype", "with_ends"]


def with_ends(
    steps: Sequence[Derivation], source: Mapping[int, str], view: Mapping[int, str]
) -> tuple[Derivation, ...]:
    """The steps of a lens, with these dtypes at its two ends.

    Args:
        steps: The steps, in the order in which they are gone through.
        source: The dtypes of rows of the first layout, by number.
        view: The same of the last layout.

    Raises:
        SchemaError: With every default that a leaf of its dtype cannot hold.
    """
    closed = [*steps]
    start, end = closed[0].ends
    closed[0] = _with_layouts(closed[0], with_dtypes(start, source), end)
    # Read again: of one step both ends are its own.
    start, end = closed[-1].ends
    closed[-1] = _with_layouts(closed[-1], start, with_dtypes(end, view))
    return tuple(closed)


def closed_steps(steps: Sequence[Derivation]) -> tuple[Derivation, ...]:
    """The steps of a lens, with one dtype for every leaf that is any float.

    Raises:
        SchemaError: With every default that a leaf of its dtype cannot hold.
    """
    # Of two steps: source and view of the first, source and view of the second. A link goes from
    # each to the next one: through a step, from one step to the next, through a step.
    sides: list[_Side] = []
    links: list[_Link] = []
    for number, step in enumerate(steps):
        sides += map(_Side, step.ends)
        links.append(_within(step))
        if number + 1 < len(steps):
            links.append(_between(step.ends[1], steps[number + 1].ends[0]))
    # What one lens declares of a layout holds for the other, which leaves it open.
    for number in range(1, len(links), 2):
        sides[number + 1].take(sides[number], links[number])
        sides[number].take(sides[number + 1], _turned(links[number]))
    forth = [*zip(sides, sides[1:], links, strict=False)]
    # Of a leaf with two partners, what comes back from the one goes on to the other: so twice.
    for _ in range(2):
        for one, other, link in forth:
            other.take(one, link)
        for one, other, link in reversed(forth):
            one.take(other, _turned(link))
    closed: list[Derivation] = []
    for number, step in enumerate(steps):
        start, end = sides[2 * number].closed(), sides[2 * number + 1].closed()
        closed.append(_with_layouts(step, start, end))
    return tuple(closed)


def opened(table: Layout, like: Layout) -> Layout:
    """The layout, whose rows are any float where those of another with the same rows are."""
    return with_dtypes(table, dict.fromkeys(open_rows(like), ANY_FLOAT))


def opened_steps(steps: Sequence[Derivation], like: Sequence[Derivation]) -> tuple[Derivation, ...]:
    """The same of the layouts of steps; a rule that does nothing to floats that stand for others stays."""
    open_steps: list[Derivation] = []
    for step, other in zip(steps, like, strict=True):
        start, end = opened(step.ends[0], other.ends[0]), opened(step.ends[1], other.ends[1])
        made = _with_layouts(step, start, end)
        open_steps.append(dataclasses.replace(made, rules=other.rules))
    return tuple(open_steps)


def _with_layouts(step: Derivation, first: Layout, last: Layout) -> Derivation:
    """A step with other layouts, in the order in which it is gone through."""
    source, view = (last, first) if step.inverted else (first, last)
    return dataclasses.replace(step, source=source, view=view)


_Link = Mapping[int, Sequence[int]]
"""For rows of a layout, by number, their partners in the layout before."""


def _within(step: Derivation) -> _Link:
    """Which rows a step joins, as it is gone through."""
    # Pairs are of the source and the view, whichever way the step goes.
    if step.inverted:
        return _gathered(step.pairs)
    return _gathered((there, here) for here, there in step.pairs)


def _between(one: Layout, other: Layout) -> _Link:
    """Two layouts between lenses are one: their rows have the same keys."""
    numbers: dict[Pattern, int] = {row.key: number for number, row in enumerate(one.rows)}
    link: dict[int, list[int]] = {}
    for number, row in enumerate(other.rows):
        if row.key in numbers:
            link[number] = [numbers[row.key]]
    return link


def _turned(link: _Link) -> _Link:
    """The same from the layout before: its rows, with their partners in the next."""
    turned: dict[int, list[int]] = {}
    for other, several in link.items():
        for one in several:
            turned.setdefault(one, []).append(other)
    return turned


def _gathered(pairs: Iterable[tuple[int, int]]) -> _Link:
    """The partners of each row: a fused leaf has several, and so has a tied one."""
    link: dict[int, list[int]] = {}
    for one, other in pairs:
        link.setdefault(one, []).append(other)
    return link


class _Side:
    """A layout, and the floats that its rows are as far as that is known."""

    def __init__(self, table: Layout) -> None:
        """Knows the floats that are declared."""
        self.table = table
        self.open = open_rows(table)
        self.dtypes: dict[int, str] = {}
        for number, row in enumerate(table.rows):
            if row.leaf.dtype in FORMATS:
                self.dtypes[number] = row.leaf.dtype

    def take(self, other: _Side, link: _Link) -> None:
        """Takes from another side what is open here and known there."""
        for number in self.open:
            if number in self.dtypes:
                continue
            known: set[str] = set()
            for partner in link.get(number, ()):
                if partner in other.dtypes:
                    known.add(other.dtypes[partner])
            # One leaf of several loses nothing of any of them.
            if known:
                self.dtypes[number] = _widest(known)

    def closed(self) -> Layout:
        """The layout with what is known; what nobody knows is float32."""
        dtypes = {number: self.dtypes.get(number, "float32") for number in self.open}
        return with_dtypes(self.table, dtypes)


def _widest(dtypes: set[str]) -> str:
    """The one of some floats that has all values of the others, or one that has."""
    for wide in (*sorted(dtypes), "float32"):
        if all(holds(wide, narrow) for narrow in dtypes):
            return wide
    return "float64"


def verify_one_dtype(source: Layout, view: Layout, what: str) -> None:
    """Raises where leaves on either side are any float still, by something that needs one dtype of each.

    Raises:
        DerivationError: With every such leaf.
    """
    faults: list[Mismatch] = []
    for side, table in (("source", source), ("view", view)):
        hint = f'say which, lens.at({side}="bfloat16")'
        for number in open_rows(table):
            row = table.rows[number]
            where, found = "/".join(row.path), f"{row.stored} of the {side}"
            faults.append(Mismatch(where, "dtype", "one dtype", found, hint, mirrors=row.mirrors))
    if faults:
        here, there = called(source, view)
        raise DerivationError(f"{what} needs one dtype of each leaf of {here} -> {there}", faults)
