"""Leaves that are computed of several of the other side: which rows, and which of the parts stands for what is computed.

All that a lens does to such a leaf it does to the *whole*, what is computed, which stands in the
place of one part. So a rule for a sum is a rename of that part, the others being private.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterator, Mapping, Sequence

import jax.numpy as jnp

from ckpt_schema._layouts import leaves
from ckpt_schema._layouts.formats import FORMATS
from ckpt_schema._layouts.leaves import Leaf
from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.sizes import Size
from ckpt_schema._layouts.table import Layout, Row, called
from ckpt_schema._lens.derive.globs import by_node
from ckpt_schema._lens.derive.joins import Join
from ckpt_schema._lens.derive.scope import GlobPath, Scope, standing
from ckpt_schema._lens.fold_rules import (
    Adapter,
    Addition,
    Dequantize,
    FoldKind,
    FoldRule,
    LowRank,
    Scaling,
    Total,
)
from ckpt_schema._lens.rules import Private, Rename, Reset, Rule
from ckpt_schema._lens.spellings import of_dim
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
    single, _, faults = by_node(source, view, rules)
    kept: list[Rule] = [rule for rule in rules if not isinstance(rule, FoldRule)]
    privates = [rule.path for rule in single if isinstance(rule, Private)]
    several: list[_Wanted] = []
    for rule in single:
        found: _Wanted | Mismatch | None = None
        if isinstance(rule, Total):
            found = _wanted((source, view), rule, privates)
        elif isinstance(rule, (Dequantize, Adapter)):
            found = _wanted_beside((source, view), rule, privates)
        if isinstance(found, Mismatch):
            faults.append(found)
        elif found is not None:
            several.append(found)
    if faults:
        raise DerivationError("no lens from {} to {}".format(*called(source, view)), faults)
    for one in several:
        if isinstance(one.rule, Total) and one.rest != one.rule.whole:
            ways = (one.rest, one.rule.whole) if one.side == 0 else (one.rule.whole, one.rest)
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
    sides = [side for side, found in enumerate(there) if found == every]
    if len(sides) == 1:
        said = all(_is_said(part, privates) for part in rule.beside)
        is_told = rule.rounds if isinstance(rule, Dequantize) else said
        return _Wanted(rule, sides[0], rule.path, rule.beside, is_told)
    if isinstance(rule.path, GlobPath) and not any(
        _is_meant(*one, rule) for one in zip(tables, there, strict=True)
    ):
        return None
    names = {part: "/".join(part) for part in (rule.path, *rule.beside)}
    expected = f"{' and '.join(names.values())} on one side"
    hint = "print the layouts to see their paths"
    nearest = max(there, key=len)
    lacking = [name for part, name in names.items() if part not in nearest]
    found = "all on both sides" if sides else f"no {' and no '.join(lacking)}"
    return Mismatch(str(rule), "rule", expected, found, hint)


def _is_meant(table: Layout, there: set[LogicalPath], rule: Dequantize | Adapter) -> bool:
    """Whether a layout has a leaf that a glob is for, though it lacks what belongs to it."""
    if isinstance(rule, Adapter):
        return rule.path in there and not there.isdisjoint(rule.beside)
    rows = Scope([(rule.path, rule)]).along(table.rows)
    return any(_is_quantized(table.rows[number]) for number in rows)


def _is_quantized(row: Row) -> bool:
    form = FORMATS.get(row.leaf.dtype)
    return row.leaf.dtype in _NARROW or (form is not None and form.bits <= 8)


_NARROW = frozenset({"int8", "uint8", "int4", "uint4", "int2", "uint2"})


def with_wholes(tables: tuple[Layout, Layout], wanted: Sequence[_Wanted]) -> tuple[Layout, Layout]:
    """Both layouts; leaves that stand for a product with scales have the dtype of that.

    Raises:
        DerivationError: With every leaf that has no scales, or is none that could have.
    """
    faults: list[Mismatch] = []
    left, right = (_with_wholes(table, wanted, side, faults) for side, table in enumerate(tables))
    if faults:
        raise DerivationError("no lens from {} to {}".format(*called(*tables)), faults)
    return left, right


def _with_wholes(
    table: Layout, wanted: Sequence[_Wanted], side: int, faults: list[Mismatch]
) -> Layout:
    own = [one for one in wanted if one.side == side and isinstance(one.rule, Dequantize)]
    if not own:
        return table
    rows, by_path = list(table.rows), {row.path: row for row in table.rows}
    for at, hits in Scope((one.rest, one) for one in own).along(table.rows).items():
        (part,), row = hits[0].rule.others, rows[at]
        other = by_path.get((*row.path[: hits[0].start], *part, *row.path[hits[0].end :]))
        rule = hits[0].rule.rule
        if other is None or not isinstance(rule, Dequantize):
            continue
        kind = _scaling(rule, row, other)
        if isinstance(kind, Mismatch):
            faults.append(kind)
            continue
        leaf = Leaf(row.leaf.dims, other.leaf.dtype, row.leaf.names, other.leaf.any_float)
        rows[at] = dataclasses.replace(row, leaf=leaf)
    return dataclasses.replace(table, rows=tuple(rows))


def as_declared(table: Layout, of: Layout) -> Layout:
    """A layout; leaves that have stood for something else have the dtypes again that they have in another one."""
    rows = list(table.rows)
    for number, (row, own) in enumerate(zip(table.rows, of.rows, strict=True)):
        if row.leaf.dtype != own.leaf.dtype:
            leaf = Leaf(row.leaf.dims, own.leaf.dtype, row.leaf.names, own.leaf.any_float)
            rows[number] = dataclasses.replace(row, leaf=leaf)
    return dataclasses.replace(table, rows=tuple(rows))


def whole_table(table: Layout, folds: Sequence[FoldedRow]) -> Layout:
    """A layout, whose leaves that stand for several have the dtype of what is computed."""
    rows = list(table.rows)
    for one in folds:
        leaf = rows[one.row].leaf
        dtype = one.kind.dtype([rows[number].leaf.dtype for number in one.parts])
        if dtype != leaf.dtype:
            made = Leaf(leaf.dims, dtype, leaf.names)
            rows[one.row] = dataclasses.replace(rows[one.row], leaf=made)
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
            if len(others) < len(found):
                hint = f"{one.rule} computes leaf by leaf: declare them alike"
                expected = "the same leaves in each part"
                faults.append(_fault(row, expected, "one that lacks some", hint))
                continue
            kind = _kind(one.rule, row, [table.rows[number] for number in others])
            if isinstance(kind, Mismatch):
                faults.append(kind)
                continue
            folds[side].append(FoldedRow(at, tuple(others), kind, one.is_told))
            used.add(id(one))
    for one in wanted:
        if not faults and id(one) not in used:
            expected = f"a partner of {'/'.join(one.rest)}, for what is computed"
            faults.append(Mismatch(str(one.rule), "rule", expected, "none"))
    if faults:
        raise DerivationError("no lens from {} to {}".format(*called(*tables)), faults)
    return tuple(folds[0]), tuple(folds[1])


def _kind(rule: FoldRule, row: Row, others: Sequence[Row]) -> FoldKind | Mismatch:
    """What is computed of rows, or what keeps them from that."""
    for other in others:
        if other.repeats != row.repeats or other.optional or row.optional:
            hint = f"{rule} computes leaf by leaf: declare them alike"
            expected = f"{row.stored} and the others always there, with the same layers"
            return _fault(row, expected, f"{other.stored} at {'/'.join(other.path)}", hint)
    if isinstance(rule, Total):
        return _addition(rule, row, others)
    if isinstance(rule, Adapter):
        return _low_rank(rule, row, others)
    return _scaling(rule, row, others[0])


def _is_float(row: Row) -> bool:
    if row.leaf.is_open or row.leaf.is_key:
        return row.leaf.is_open
    return jnp.issubdtype(leaves.dtype_of(row.leaf.dtype), jnp.floating)


def _addition(rule: Total, row: Row, others: Sequence[Row]) -> FoldKind | Mismatch:
    hint = f"{rule} adds element by element: declare the parts alike"
    if not _is_float(row):
        return _fault(row, "floats", str(row.stored), hint)
    for other in others:
        if str(other.stored) != str(row.stored):
            where = f"{other.stored} at {'/'.join(other.path)}"
            return _fault(row, f"{row.stored} in each part", where, hint)
    return Addition()


def _scaling(rule: Dequantize, row: Row, scales: Row) -> FoldKind | Mismatch:
    if not _is_quantized(row):
        hint = "other dtypes hold what they stand for: leave the rule out"
        return _fault(row, "float8_*, int8, int4", str(row.stored), hint)
    if not _is_float(scales):
        where = f"{scales.stored} at {'/'.join(scales.path)}"
        return _fault(row, "scales that are floats", where, "declare them as they are stored")
    count = len(row.leaf.dims)
    if len(rule.block) > count:
        hint = "a block has a number, or None, for each of the last axes"
        return _fault(row, f"{len(rule.block)} axes, for {rule}", str(row.stored), hint)
    own = [*[1] * (count - len(rule.block)), *rule.block]
    # A stack has scales for each layer.
    block = tuple(own[number] if what == "axis" else 1 for what, number in row.axes)
    return Scaling(block, rule.rounds)


def _low_rank(rule: Adapter, row: Row, others: Sequence[Row]) -> FoldKind | Mismatch:
    for one in (row, *others):
        if not _is_float(one):
            return _fault(one, "floats", str(one.stored), f"{rule} multiplies and adds")
    first, second = others
    found = [*dict.fromkeys(_subscripts(row, first, second))]
    if len(found) == 1:
        return LowRank(rule.alpha, found[0])
    both = f"{first.stored} and {second.stored}"
    hint = "declare a as [rank, in] and b as [out, rank], beside [out, in], with names for the dims"
    if found:
        return _fault(row, "one axis that is the rank", f"several in {both}", hint)
    return _fault(row, f"two leaves whose product is {row.stored}", both, hint)


def _subscripts(row: Row, first: Row, second: Row) -> Iterator[str]:
    """The ways in which a product of two leaves is like another one."""
    # By names, where all axes of each leaf have their own.
    named = [_labels(one, [*map(of_dim, one.leaf.dims)]) for one in (first, second, row)]
    a, b, whole = named
    rank = set(a) & set(b) - set(whole)
    apart = all(len(set(labels)) == len(labels) for labels in named)
    if apart and len(rank) == 1 and set(whole) == (set(a) | set(b)) - rank:
        yield _spelled(named)
        return
    dims = [[*map(of_dim, one.leaf.dims)] for one in (row, first, second)]
    if any(len(each) != 2 for each in dims):
        return
    ways = (("oi", "ri", "or"), ("io", "ir", "ro"))  # as PEFT has them, and as Flax does
    for way in ways:
        sizes: dict[str, set[Size]] = {}
        for letters, each in zip(way, dims, strict=True):
            for letter, dim in zip(letters, each, strict=True):
                sizes.setdefault(letter, set()).add(dim)
        if all(len(one) == 1 for one in sizes.values()):
            labelled = zip((row, first, second), way, strict=True)
            whole, a, b = (_labels(one, [*letters]) for one, letters in labelled)
            yield _spelled([a, b, whole])


def _labels(row: Row, own: Sequence[Hashable]) -> list[Hashable]:
    """What the axes of a leaf as it is stored are called, stacks included."""
    return [own[number] if what == "axis" else ("level", number) for what, number in row.axes]


def _spelled(labels: Sequence[Sequence[Hashable]]) -> str:
    letters: dict[Hashable, str] = {}
    for each in labels:
        for label in each:
            letters.setdefault(label, chr(ord("a") + len(letters)))
    first, second, whole = ("".join(letters[label] for label in each) for each in labels)
    return f"{first},{second}->{whole}"


def _fault(row: Row, expected: str, found: str, hint: str) -> Mismatch:
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
            what = one.kind.lost(names, [row.leaf.dtype for row in rows])
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
