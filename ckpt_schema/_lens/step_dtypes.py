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
    found = list(steps)
    found[0] = _with_layouts(found[0], with_dtypes(found[0].ends[0], source), found[0].ends[1])
    found[-1] = _with_layouts(found[-1], found[-1].ends[0], with_dtypes(found[-1].ends[1], view))
    return tuple(found)


def closed_steps(steps: Sequence[Derivation]) -> tuple[Derivation, ...]:
    """The steps of a lens, with one dtype for every leaf that is any float.

    Raises:
        SchemaError: With every default that a leaf of its dtype cannot hold.
    """
    sides = [_Side(table) for step in steps for table in step.ends]
    links: list[_Link] = []
    for number, step in enumerate(steps):
        links.append(_within(step))
        if number + 1 < len(steps):
            links.append(_between(step.ends[1], steps[number + 1].ends[0]))
    # What one lens declares of a layout holds for the other, which leaves it open.
    for at in range(1, len(links), 2):
        sides[at + 1].take(sides[at], links[at])
        sides[at].take(sides[at + 1], _turned(links[at]))
    forth = [*zip(sides, sides[1:], links, strict=False)]
    for _ in range(2):
        for one, other, link in forth:
            other.take(one, link)
        for one, other, link in reversed(forth):
            one.take(other, _turned(link))
    closed: list[Derivation] = []
    for number, step in enumerate(steps):
        layouts = [side.closed() for side in sides[2 * number : 2 * number + 2]]
        closed.append(_with_layouts(step, layouts[0], layouts[1]))
    return tuple(closed)


def opened(table: Layout, like: Layout) -> Layout:
    """The layout, whose rows are any float where those of another with the same rows are."""
    return with_dtypes(table, dict.fromkeys(open_rows(like), ANY_FLOAT))


def opened_steps(steps: Sequence[Derivation], like: Sequence[Derivation]) -> tuple[Derivation, ...]:
    """The same of the layouts of steps; a rule that does nothing to floats that stand for others stays."""
    found: list[Derivation] = []
    for step, other in zip(steps, like, strict=True):
        layouts = [opened(*pair) for pair in zip(step.ends, other.ends, strict=True)]
        made = _with_layouts(step, layouts[0], layouts[1])
        found.append(dataclasses.replace(made, rules=other.rules))
    return tuple(found)


def _with_layouts(step: Derivation, first: Layout, last: Layout) -> Derivation:
    """A step with other layouts, in the order in which it is gone through."""
    source, view = (last, first) if step.inverted else (first, last)
    return dataclasses.replace(step, source=source, view=view)


_Link = Mapping[int, Sequence[int]]
"""For rows of a layout, by number, their partners in the layout before."""


def _within(step: Derivation) -> _Link:
    pairs = step.pairs
    if step.inverted:
        pairs = tuple((there, here) for here, there in pairs)
    return _gathered((there, here) for here, there in pairs)


def _between(one: Layout, other: Layout) -> _Link:
    """Two layouts between lenses are one: their rows have the same keys."""
    numbers: dict[Pattern, int] = {row.key: number for number, row in enumerate(one.rows)}
    pairs = ((at, numbers.get(row.key)) for at, row in enumerate(other.rows))
    return _gathered((at, number) for at, number in pairs if number is not None)


def _turned(link: _Link) -> _Link:
    return _gathered((one, other) for other, several in link.items() for one in several)


def _gathered(pairs: Iterable[tuple[int, int]]) -> _Link:
    found: dict[int, list[int]] = {}
    for one, other in pairs:
        found.setdefault(one, []).append(other)
    return found


class _Side:
    """A layout, and the floats that its rows are as far as that is known."""

    def __init__(self, table: Layout) -> None:
        self.table = table
        self.open = open_rows(table)
        self.dtypes = {
            number: row.leaf.dtype
            for number, row in enumerate(table.rows)
            if row.leaf.dtype in FORMATS
        }

    def take(self, other: _Side, link: _Link) -> None:
        """Takes from another side what is open here and known there."""
        for number in self.open:
            if number in self.dtypes:
                continue
            known = {other.dtypes[at] for at in link.get(number, ()) if at in other.dtypes}
            if known:
                self.dtypes[number] = _widest(known)

    def closed(self) -> Layout:
        """The layout with what is known; what nobody knows is float32."""
        return with_dtypes(self.table, {n: self.dtypes.get(n, "float32") for n in self.open})


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
