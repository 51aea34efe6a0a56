"""Leaves that are computed of several of the other side: which rows, and which of the parts stands for what is computed.

All that a lens does to such a leaf it does to the *whole*, what is computed, which stands in the
place of one part. So a rule for a sum is a rename of that part, the others being private.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import jax.numpy as jnp

from ckpt_schema._layouts import leaves
from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.table import Layout, Row, called
from ckpt_schema._lens.derive.globs import by_node
from ckpt_schema._lens.derive.joins import Join
from ckpt_schema._lens.derive.scope import Scope, standing
from ckpt_schema._lens.fold_rules import Addition, FoldKind, Total
from ckpt_schema._lens.rules import Private, Rename, Reset, Rule
from ckpt_schema.errors import DerivationError, Mismatch

__all__ = [
    "NO_FOLDS",
    "FoldedRow",
    "FoldedRows",
    "as_renames",
    "fold_losses",
    "folded_rows",
    "verify_no_folds_between",
]


@dataclasses.dataclass(frozen=True, slots=True)
class FoldedRow:
    """A row that stands for what is computed of several rows of its side in a lens.

    Attributes:
        row: The number of the row.
        others: Those of the other rows.
        kind: What is computed of them, this row first.
        is_told: Whether rules say what becomes of the parts where the whole alone is there.
    """

    row: int
    others: tuple[int, ...]
    kind: FoldKind
    is_told: bool

    @property
    def parts(self) -> tuple[int, ...]:
        """All rows, this one first."""
        return (self.row, *self.others)


FoldedRows = tuple[tuple[FoldedRow, ...], tuple[FoldedRow, ...]]
"""For the source and the view, its rows that stand for several."""

NO_FOLDS: FoldedRows = (), ()


@dataclasses.dataclass(frozen=True, slots=True)
class _Wanted:
    """A rule for one fold.

    Attributes:
        rule: The rule.
        side: Which side has the parts.
        rest: The part that holds what the others do not.
        is_told: Whether rules say what becomes of the others.
    """

    rule: Total
    side: int
    rest: LogicalPath
    is_told: bool

    @property
    def others(self) -> list[LogicalPath]:
        """The other parts."""
        return [part for part in self.rule.parts if part != self.rest]


def as_renames(
    source: Layout, view: Layout, rules: Sequence[Rule]
) -> tuple[list[Rule], list[_Wanted]]:
    """Rules without those for sums: in their place the rename of one part, the others being private.

    Raises:
        DerivationError: With every rule for a sum that names what is not there.
    """
    if not any(isinstance(rule, Total) for rule in rules):
        return [*rules], []
    single, _, faults = by_node(source, view, rules)
    kept: list[Rule] = [rule for rule in rules if not isinstance(rule, Total)]
    privates = [rule.path for rule in single if isinstance(rule, Private)]
    several: list[_Wanted] = []
    for rule in single:
        if isinstance(rule, Total):
            found = _wanted((source, view), rule, privates)
            if isinstance(found, Mismatch):
                faults.append(found)
            else:
                several.append(found)
    if faults:
        raise DerivationError("no lens from {} to {}".format(*called(source, view)), faults)
    for one in several:
        whole = one.rule.whole
        ways = (one.rest, whole) if one.side == 0 else (whole, one.rest)
        if one.rest != whole:
            kept.append(Rename(*ways))
        kept += [Private(part, None) for part in one.others if not _is_said(part, privates)]
    return kept, several


def _is_said(part: LogicalPath, privates: Sequence[LogicalPath]) -> bool:
    return any(part[: len(path)] == path for path in privates)


def _wanted(
    tables: tuple[Layout, Layout], rule: Total, privates: Sequence[LogicalPath]
) -> _Wanted | Mismatch:
    sides: list[int] = []
    for side, table in enumerate(tables):
        there = standing(table, rule.parts) == set(rule.parts)
        if there and standing(tables[1 - side], [rule.whole]):
            sides.append(side)
    if len(sides) != 1:
        parts = " and ".join("/".join(part) for part in rule.parts)
        expected = f"{parts} on one side, and {'/'.join(rule.whole)} on the other"
        found = "both on both sides" if sides else "no such leaves"
        hint = "print the layouts to see their paths"
        return Mismatch(str(rule), "rule", expected, found, hint)
    open_ = [part for part in rule.parts if not _is_said(part, privates)]
    if not open_:
        expected = "one part without a private(...), which holds what the others do not"
        return Mismatch(str(rule), "rule", expected, "none", "drop one of them")
    if sides[0] == 1 and rule.whole not in open_ and rule.whole in rule.parts:
        other = "/".join(open_[-1])
        expected = (
            f"the part that is called as the sum is to hold what is left, {other} being private"
        )
        hint = f"say private({other!r}, ...) instead"
        return Mismatch(
            str(rule), "rule", expected, f"private({'/'.join(rule.whole)!r}, ...)", hint
        )
    rest = rule.whole if rule.whole in open_ else open_[-1]
    return _Wanted(rule, sides[0], rest, len(open_) == 1)


def folded_rows(
    tables: tuple[Layout, Layout], wanted: Sequence[_Wanted], joins: Sequence[Join]
) -> FoldedRows:
    """The rows that stand for several.

    Raises:
        DerivationError: With every part that cannot be added to another one, and everything that an
            optimizer keeps for a part and that nobody says what becomes of.
    """
    if not wanted:
        return NO_FOLDS
    faults: list[Mismatch] = []
    folds: tuple[list[FoldedRow], list[FoldedRow]] = [], []
    for side, table in enumerate(tables):
        joined = {pair[side] for join in joins for pair in join.pairs}
        scope = Scope((one.rest, one) for one in wanted if one.side == side)
        numbers = {row.path: number for number, row in enumerate(table.rows)}
        for at, hits in scope.along(table.rows).items():
            row = table.rows[at]
            if at not in joined or not hits:
                continue
            one, start, end = hits[0].rule, hits[0].start, hits[0].end
            if row.mirrors:
                faults.append(_unlike_moments(row, one))
                continue
            wanted_paths = [(*row.path[:start], *part, *row.path[end:]) for part in one.others]
            found = [numbers.get(path) for path in wanted_paths]
            others = [number for number in found if number is not None]
            wrong = [*_unlike(row, [table.rows[number] for number in others], one)]
            if len(others) < len(found):
                wrong = [_fault(row, one, "the same leaves in each part", "one that lacks some")]
            faults += wrong
            folds[side].append(FoldedRow(at, tuple(others), Addition(), one.is_told))
    if faults:
        raise DerivationError("no lens from {} to {}".format(*called(*tables)), faults)
    return tuple(folds[0]), tuple(folds[1])


def _unlike(row: Row, others: Sequence[Row], one: _Wanted) -> Iterator[Mismatch]:
    """What keeps rows from being added."""
    dtype = row.leaf.dtype
    is_float = row.leaf.is_open or (
        not row.leaf.is_key and jnp.issubdtype(leaves.dtype_of(dtype), jnp.floating)
    )
    if not is_float:
        yield _fault(row, one, "floats", str(row.stored))
    for other in others:
        alike = str(other.stored) == str(row.stored) and other.repeats == row.repeats
        if not alike or other.optional or row.optional:
            expected = f"{row.stored} in each part, always there and with the same layers"
            yield _fault(row, one, expected, f"{other.stored} at {'/'.join(other.path)}")


def _fault(row: Row, one: _Wanted, expected: str, found: str) -> Mismatch:
    hint = f"{one.rule} adds element by element: declare the parts alike"
    return Mismatch("/".join(row.path), "rule", expected, found, hint)


def _unlike_moments(row: Row, one: _Wanted) -> Mismatch:
    """The fault of what an optimizer keeps for a part: both parts are trained, and the sum takes both steps."""
    resets = Reset(view=row.path) if one.side else Reset(source=row.path)
    return Mismatch(
        "/".join(row.path),
        "rule",
        f"what becomes of it where {one.rule} holds",
        "each part takes steps of its own, and the sum takes one",
        f"say {resets}, and the same of the other side, to start it anew",
        mirrors=row.mirrors,
        rules=(resets,),
    )


def fold_losses(
    tables: tuple[Layout, Layout], folds: FoldedRows, joins: Sequence[Join]
) -> Mapping[str, str]:
    """What is lost of parts, by the logical path in the view."""
    found: dict[str, str] = {}
    for side, several in enumerate(folds):
        for one in several:
            rows = [tables[side].rows[number] for number in one.parts]
            names = ["/".join(row.model_path) for row in rows]
            what = one.kind.lost(names, rows[0].leaf.dtype)
            for join in joins:
                views = {pair[1] for pair in join.pairs if pair[side] == one.row}
                for number in views:
                    found["/".join(tables[1].rows[number].path)] = what
    return found


def verify_no_folds_between(*ends: tuple[Layout, Sequence[FoldedRow]]) -> None:
    """Raises where layouts between two lenses have rows that stand for several: the parts would be forgotten.

    Raises:
        DerivationError: With every such row.
    """
    faults: list[Mismatch] = []
    for table, folds in ends:
        for one in folds:
            row = table.rows[one.row]
            expected = "a leaf of which nothing is computed with others, between two lenses"
            hint = "go through both lenses one after the other, with onto= for the parts"
            fault = Mismatch("/".join(row.path), "rule", expected, f"one of {table.name}", hint)
            faults.append(fault)
    if faults:
        raise DerivationError("parts would be forgotten between the lenses", faults)
