"""Leaves that are computed of several of the other side: which rows, and which of the parts stands for what is computed.

All that a lens does to such a leaf it does to the *whole*, what is computed, which stands in the
place of one part. So a rule for a sum is a rename of that part, the others being private.

Around a derivation this comes three times: `without_folds` turns the rules for folds into plain
ones, `with_wholes` makes the rows what is computed, and when both layouts are joined
`folded_rows` tells which rows it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.table import Layout, Row, called
from ckpt_schema._lens.derive.fold_kinds import (
    as_stored_leaf,
    as_whole,
    fold_fault,
    fold_kind,
    is_quantized,
    scaling,
)
from ckpt_schema._lens.derive.globs import by_node
from ckpt_schema._lens.derive.joins import Join
from ckpt_schema._lens.derive.scope import GlobPath, Hit, Scope, standing
from ckpt_schema._lens.fold_rules import (
    Adapter,
    Dequantize,
    FoldKind,
    FoldRule,
    Scaling,
    Total,
)
from ckpt_schema._lens.rules import Private, Rename, Reset, Rule
from ckpt_schema.errors import DerivationError, Mismatch

__all__ = [
    "NO_FOLDS",
    "FoldedRow",
    "FoldedRows",
    "as_declared",
    "fold_losses",
    "folded_rows",
    "verify_no_folds_between",
    "whole_table",
    "with_wholes",
    "without_folds",
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


_Scalings = Mapping[int, Scaling]
"""What is computed of rows and their scales, by number."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Wanted:
    """A rule for one fold.

    Attributes:
        rule: The rule.
        side: Which side has the parts.
        rest: The part that stands for the whole: in a sum, the one that holds what the others do not.
        others: The other parts.
        is_told: Whether rules say what becomes of the parts where the whole alone is there.
    """

    rule: FoldRule
    side: int
    rest: LogicalPath
    others: tuple[LogicalPath, ...]
    is_told: bool


def without_folds(
    source: Layout, view: Layout, rules: Sequence[Rule]
) -> tuple[list[Rule], list[_Wanted]]:
    """Rules without those for folds: in their place the other parts are private, and a sum has the name of one part.

    Raises:
        DerivationError: With every rule for a fold that names what is not there.
    """
    if not any(isinstance(rule, FoldRule) for rule in rules):
        return [*rules], []
    # Globs are taken apart here for the folds alone: the other rules go on to the derivation as written.
    of_nodes, _, faults = by_node(source, view, rules)
    kept: list[Rule] = [rule for rule in rules if not isinstance(rule, FoldRule)]
    # First all of them, for a rule that makes a part private may stand behind the one for its sum.
    privates: list[LogicalPath] = []
    for rule in of_nodes:
        if isinstance(rule, Private):
            privates.append(rule.path)
    folds: list[_Wanted] = []
    for rule in of_nodes:
        fold: _Wanted | Mismatch | None = None
        if isinstance(rule, Total):
            fold = _wanted((source, view), rule, privates)
        elif isinstance(rule, (Dequantize, Adapter)):
            fold = _wanted_beside((source, view), rule, privates)
        if isinstance(fold, Mismatch):
            faults.append(fold)
        elif fold is not None:
            folds.append(fold)
    if faults:
        raise DerivationError("no lens from {} to {}".format(*called(source, view)), faults)
    for fold in folds:
        # Of parts in the source total("bias", ["bias_ih", "bias_hh"]) is rename("bias_hh", "bias").
        # In the folds of other kinds the part that stands for the whole has its name already.
        if isinstance(fold.rule, Total) and fold.rest != fold.rule.whole:
            part, whole = fold.rest, fold.rule.whole
            kept.append(Rename(whole, part) if fold.side else Rename(part, whole))
        for part in fold.others:
            if not _is_said(part, privates):
                kept.append(Private(part, None))
    return kept, folds


def _is_said(part: LogicalPath, privates: Sequence[LogicalPath]) -> bool:
    """Whether rules call a part private, or a node above it."""
    return any(part[: len(path)] == path for path in privates)


def _wanted(
    tables: tuple[Layout, Layout], rule: Total, privates: Sequence[LogicalPath]
) -> _Wanted | Mismatch:
    """Which side has the parts of a sum, and which of them has what the others do not."""
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
    # Of total("bias", ["bias", "more"]) private("bias") would speak of the sum too, in the source.
    if sides[0] == 1 and rule.whole not in open_ and rule.whole in rule.parts:
        other = "/".join(open_[-1])
        expected = (
            f"the part that is called as the sum is to hold what is left, {other} being private"
        )
        hint = f"say private({other!r}, ...) instead"
        return Mismatch(
            str(rule), "rule", expected, f"private({'/'.join(rule.whole)!r}, ...)", hint
        )
    # A part that is called as the sum needs no rename; else it is the last, as the others are private.
    rest = rule.whole if rule.whole in open_ else open_[-1]
    others = tuple(part for part in rule.parts if part != rest)
    return _Wanted(rule, sides[0], rest, others, len(open_) == 1)


def _wanted_beside(
    tables: tuple[Layout, Layout],
    rule: Dequantize | Adapter,
    privates: Sequence[LogicalPath],
) -> _Wanted | Mismatch | None:
    """Where a leaf stands beside the others that something is computed of; None of a glob's node that has no such leaf."""
    every = {rule.path, *rule.beside}
    there = [standing(table, every) for table in tables]
    is_there = there[0] == every, there[1] == every
    if is_there[0] != is_there[1]:
        said = all(_is_said(part, privates) for part in rule.beside)
        is_told = rule.rounds if isinstance(rule, Dequantize) else said
        return _Wanted(rule, int(is_there[1]), rule.path, rule.beside, is_told)
    # Of dequantize("**/weight", ...) a norm's weight has no scales, and is none of the numbers.
    is_meant = _is_meant(tables[0], there[0], rule) or _is_meant(tables[1], there[1], rule)
    if isinstance(rule.path, GlobPath) and not is_meant:
        return None
    # What is missing is told of the side that has more of the leaves: likely that one was meant.
    nearest = max(there, key=len)
    names: list[str] = []
    lacking: list[str] = []
    for part in dict.fromkeys((rule.path, *rule.beside)):
        names.append("/".join(part))
        if part not in nearest:
            lacking.append(names[-1])
    expected = f"{' and '.join(names)} on one side"
    hint = "print the layouts to see their paths"
    found = f"no {' and no '.join(lacking)}" if lacking else "all on both sides"
    return Mismatch(str(rule), "rule", expected, found, hint)


def _is_meant(table: Layout, there: set[LogicalPath], rule: Dequantize | Adapter) -> bool:
    """Whether a layout has a leaf that a glob is for, though it lacks what belongs to it."""
    if isinstance(rule, Adapter):
        # One narrow leaf of two beside it: the other was forgotten, or has another name.
        return rule.path in there and not there.isdisjoint(rule.beside)
    # Numbers of few bits without scales: nobody could say what they stand for. Words may be anything.
    if rule.packed is not None:
        return rule.path in there
    rows = Scope([(rule.path, rule)]).along(table.rows)
    return any(is_quantized(table.rows[number]) for number in rows)


def with_wholes(
    tables: tuple[Layout, Layout], wanted: Sequence[_Wanted]
) -> tuple[tuple[Layout, Layout], tuple[_Scalings, _Scalings]]:
    """Both layouts, whose leaves that stand for a product with scales are as that is; and which these are.

    Raises:
        DerivationError: With every leaf that has no scales, or is none that could have.
    """
    faults: list[Mismatch] = []
    left, here = _with_wholes(tables[0], wanted, 0, faults)
    right, there = _with_wholes(tables[1], wanted, 1, faults)
    if faults:
        raise DerivationError("no lens from {} to {}".format(*called(*tables)), faults)
    return (left, right), (here, there)


def _with_wholes(
    table: Layout, wanted: Sequence[_Wanted], side: int, faults: list[Mismatch]
) -> tuple[Layout, _Scalings]:
    # Sums and adapters have the dtype of the part that stands for them: there is nothing to change.
    scaled: list[tuple[LogicalPath, _Wanted]] = []
    for fold in wanted:
        if fold.side == side and isinstance(fold.rule, Dequantize):
            scaled.append((fold.rest, fold))
    kinds: dict[int, Scaling] = {}
    if not scaled:
        return table, kinds
    rows, by_path = list(table.rows), {row.path: row for row in table.rows}
    for number, hits in Scope(scaled).along(table.rows).items():
        hit, row = hits[0], rows[number]
        rule = hit.rule.rule
        others: list[Row] = []
        for part in hit.rule.others:
            other = by_path.get(_beside(row, hit, part))
            others += [] if other is None else [other]
        if len(others) < len(hit.rule.others) or not isinstance(rule, Dequantize):
            continue
        kind = scaling(rule, row, others)
        if isinstance(kind, Mismatch):
            faults.append(kind)
            continue
        # The product is of the dtype of the scales, which may be any float yet.
        scales = others[0].leaf
        dtype = kind.dtype([row.leaf.dtype, scales.dtype])
        leaf = as_whole(row, kind, dtype, any_float=scales.any_float)
        rows[number], kinds[number] = dataclasses.replace(row, leaf=leaf), kind
    return dataclasses.replace(table, rows=tuple(rows)), kinds


def _beside(row: Row, hit: Hit[_Wanted], part: LogicalPath) -> LogicalPath:
    """The path of the leaf that has another part's path where a row has the one that a rule names.

    A fold of nodes is one for each leaf: with ``ih`` beside ``hh`` it is ``cell/hh/bias`` of
    ``cell/ih/bias``.
    """
    return (*row.path[: hit.start], *part, *row.path[hit.end :])


def as_declared(table: Layout, of: Layout, scaled: _Scalings) -> Layout:
    """A layout; leaves that have stood for something else are again what they are in another one.

    Args:
        table: The layout.
        of: That as it was declared. What axes are called, the derivation may have said since.
        scaled: The rows that have stood for a product with scales, by number.
    """
    rows = list(table.rows)
    for number, kind in scaled.items():
        leaf = as_stored_leaf(rows[number], kind, of.rows[number].leaf)
        rows[number] = dataclasses.replace(rows[number], leaf=leaf)
    return dataclasses.replace(table, rows=tuple(rows)) if scaled else table


def whole_table(table: Layout, folds: Sequence[FoldedRow]) -> Layout:
    """A layout, whose leaves that stand for several are as what is computed."""
    rows = list(table.rows)
    for fold in folds:
        row = rows[fold.row]
        dtype = fold.kind.dtype([rows[number].leaf.dtype for number in fold.parts])
        leaf = as_whole(row, fold.kind, dtype)
        if leaf != row.leaf:
            rows[fold.row] = dataclasses.replace(row, leaf=leaf)
    # The same layout where nothing is computed: it is kept by identity.
    return dataclasses.replace(table, rows=tuple(rows)) if folds else table


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
    used: set[int] = set()
    for side, table in enumerate(tables):
        joined: set[int] = set()
        for join in joins:
            joined.update(join.views if side else join.sources)
        of_side: list[tuple[LogicalPath, _Wanted]] = []
        for fold in wanted:
            if fold.side == side:
                of_side.append((fold.rest, fold))
        numbers = {row.path: number for number, row in enumerate(table.rows)}
        for number, hits in Scope(of_side).along(table.rows).items():
            # Without a partner there is nothing that it would be computed for.
            if number not in joined or not hits:
                continue
            row = _folded_row(table, number, hits[0], numbers)
            if isinstance(row, Mismatch):
                faults.append(row)
                continue
            folds[side].append(row)
            used.add(id(hits[0].rule))
    # A leaf with a fault is no row of a fold, and its rule would seem to be of no use.
    for fold in wanted if not faults else ():
        if id(fold) not in used:
            expected = f"a partner of {'/'.join(fold.rest)}, for what is computed"
            faults.append(Mismatch(str(fold.rule), "rule", expected, "none"))
    if faults:
        raise DerivationError("no lens from {} to {}".format(*called(*tables)), faults)
    return tuple(folds[0]), tuple(folds[1])


def _folded_row(
    table: Layout, number: int, hit: Hit[_Wanted], numbers: Mapping[LogicalPath, int]
) -> FoldedRow | Mismatch:
    """The row that a rule says stands for several, with these; or what keeps it from that."""
    row, fold = table.rows[number], hit.rule
    if row.mirrors:
        return _unlike_moments(row, fold)
    others: list[int] = []
    for part in fold.others:
        other = numbers.get(_beside(row, hit, part))
        if other is None:
            hint = f"{fold.rule} computes leaf by leaf: declare them alike"
            return fold_fault(row, "the same leaves in each part", "one that lacks some", hint)
        others.append(other)
    kind = fold_kind(fold.rule, row, [table.rows[other] for other in others])
    if isinstance(kind, Mismatch):
        return kind
    return FoldedRow(number, tuple(others), kind, fold.is_told)


def _unlike_moments(row: Row, fold: _Wanted) -> Mismatch:
    """The fault of what an optimizer keeps for a part: both parts are trained, and the sum takes both steps."""
    resets = Reset(view=row.path) if fold.side else Reset(source=row.path)
    return Mismatch(
        "/".join(row.path),
        "rule",
        f"what becomes of it where {fold.rule} holds",
        "each part takes steps of its own, and the sum takes one",
        f"say {resets}, and the same of the other side, to start it anew",
        mirrors=row.mirrors,
        rules=(resets,),
    )


def fold_losses(
    tables: tuple[Layout, Layout], folds: FoldedRows, joins: Sequence[Join]
) -> Mapping[str, str]:
    """What is lost of parts, by the logical path in the view."""
    lost: dict[str, str] = {}
    for side, of_side in enumerate(folds):
        for fold in of_side:
            names: list[str] = []
            dtypes: list[str] = []
            for number in fold.parts:
                row = tables[side].rows[number]
                names.append("/".join(row.model_path))
                dtypes.append(row.leaf.dtype)
            what = fold.kind.lost(names, dtypes)
            # The whole may be cut in parts again, or be a part: each leaf of the view is told of.
            for join in joins:
                for pair in join.pairs:
                    if pair[side] == fold.row:
                        lost["/".join(tables[1].rows[pair[1]].path)] = what
    return lost


def verify_no_folds_between(*ends: tuple[Layout, Sequence[FoldedRow]]) -> None:
    """Raises where layouts between two lenses have rows that stand for several: the parts would be forgotten.

    Raises:
        DerivationError: With every such row.
    """
    faults: list[Mismatch] = []
    for table, folds in ends:
        for fold in folds:
            row = table.rows[fold.row]
            expected = "a leaf of which nothing is computed with others, between two lenses"
            hint = "go through both lenses one after the other, with onto= for the parts"
            fault = Mismatch("/".join(row.path), "rule", expected, f"one of {table.name}", hint)
            faults.append(fault)
    if faults:
        raise DerivationError("parts would be forgotten between the lenses", faults)
