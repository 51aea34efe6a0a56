"""What rules say of leaves without a partner: their defaults, those that start anew, and those that are parted."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts import leaves
from ckpt_schema._layouts.leaves import Default, Fill, Init
from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.table import Layout, Row
from ckpt_schema._lens.derive.missing_paths import MissingPaths
from ckpt_schema._lens.derive.scope import Hit, Scope, Spoken, is_mirror
from ckpt_schema._lens.derive.view_names import names_apart, renamed_row
from ckpt_schema._lens.rules import Apart, Private, Reset, Rule
from ckpt_schema.errors import Mismatch

__all__ = ["Alone", "Lone", "declare", "lone", "owned", "part", "restart"]

Sides = tuple[Layout, Layout]
Lone = tuple[frozenset[int], frozenset[int]]
"""The numbers of rows of the source, and of the view, that have no partner."""

LoneRule = Private | Apart
"""A rule for leaves without a partner."""

Alone = tuple[Spoken[LoneRule], Spoken[LoneRule]]
"""Those that speak of each row of the source, and of the view."""


def lone(sides: Sides, rules: Sequence[Rule]) -> Alone:
    """The rules for leaves without a partner, by the rows that they speak of."""
    entries = ((rule.path, rule) for rule in rules if isinstance(rule, LoneRule))
    scope = Scope(entries, follows=True)
    source, view = sides
    return scope.along(source.rows), scope.along(view.rows)


def declare(
    sides: Sides,
    alone: Alone,
    rules: Sequence[Rule],
    missing_paths: MissingPaths,
    faults: list[Mismatch],
) -> Sides:
    """Both layouts with the defaults that rules declare."""
    said = [rule for rule in rules if isinstance(rule, LoneRule)]
    if not said:
        return sides
    matched: set[int] = set()
    source, view = (
        _with_defaults(table, over, matched, faults)
        for table, over in zip(sides, alone, strict=True)
    )
    for number, rule in enumerate(said):
        if number not in matched and isinstance(rule, Private):
            faults.append(missing_paths.fault(rule, rule.path, source, view))
    return source, view


def _with_defaults(
    table: Layout, over: Spoken[LoneRule], matched: set[int], faults: list[Mismatch]
) -> Layout:
    """``table`` with the defaults of rules.

    What an optimizer keeps for those leaves starts as it does.
    """
    rows = list(table.rows)
    fitting: set[object] = set()  # many rules give many leaves one default
    for number, hits in over.items():
        row = rows[number]
        # Without its transformation nobody knows how a mirror starts: a rule must name it itself.
        if is_mirror(row) and table.initial is None:
            hits = [hit for hit in hits if hit.start == 0]
        if not hits:
            continue
        matched.update(hit.number for hit in hits)
        default = _default(row, hits)
        # 1 and True are equal, and not for every dtype are both a default.
        kind = row.leaf.dtype, default, type(default.value) if isinstance(default, Fill) else None
        if default is not None and kind not in fitting:
            if leaves.holds(row.leaf, default):
                fitting.add(kind)
            else:
                hint = "fresh_key(seed) for keys, a number of the leaf's kind for arrays"
                expected = f"a default for {row.leaf}"
                faults.append(Mismatch("/".join(row.path), "dtype", expected, str(default), hint))
        rows[number] = dataclasses.replace(row, default=default)
    return dataclasses.replace(table, rows=tuple(rows))


def _default(row: Row, hits: Sequence[Hit[LoneRule]]) -> Default | None:
    if is_mirror(row) and hits[0].start > 0:
        return Init()
    for hit in hits:
        if isinstance(hit.rule, Private) or hit.rule.default is not None:
            return hit.rule.default
    return row.default


def owned(sides: Sides, alone: Alone) -> Lone:
    """The rows that keep their own value, by a rule that gives no other."""
    keeping: list[frozenset[int]] = []
    for table, over in zip(sides, alone, strict=True):
        private = [number for number, hits in over.items() if isinstance(hits[0].rule, Private)]
        keeping.append(frozenset(n for n in private if table.rows[n].default is None))
    return keeping[0], keeping[1]


def part(
    sides: Sides,
    alone: Alone,
    rules: Sequence[Rule],
    missing_paths: MissingPaths,
    faults: list[Mismatch],
) -> tuple[Sides, Lone]:
    """Both layouts, and the rows that rules part.

    A dim that these alone share is one of its own in the view.
    """
    said = [rule for rule in rules if isinstance(rule, Apart)]
    if not said:
        return sides, (frozenset(), frozenset())
    parted: list[frozenset[int]] = []
    matched: list[set[LogicalPath]] = []
    for over in alone:
        found = {n: _parting(hits) for n, hits in over.items()}
        parted.append(frozenset(n for n, paths in found.items() if paths))
        matched.append({path for paths in found.values() for path in paths})
    for rule in said:
        there = [table for table, found in zip(sides, matched, strict=True) if rule.path in found]
        if not there:
            faults.append(missing_paths.fault(rule, rule.path, *sides))
        elif len(there) == 1:
            (near,), (far,) = there, [table for table in sides if table is not there[0]]
            faults.append(_one_sided(rule, near, far))
    source, view = parted
    return (sides[0], _with_own_dims(sides, (source, view))), (source, view)


def _parting(hits: Sequence[Hit[LoneRule]]) -> list[LogicalPath]:
    """The paths of the rules among some that part two leaves of one name."""
    return [hit.rule.path for hit in hits if isinstance(hit.rule, Apart)]


def _one_sided(rule: Apart, near: Layout, far: Layout) -> Mismatch:
    hint = f"what one side has alone is private: {Private(rule.path, rule.default or Fill(0))}"
    expected = f"leaves of {far.name} too at {'/'.join(rule.path)} or below"
    return Mismatch(str(rule), "rule", expected, f"leaves of {near.name} alone", hint)


def _with_own_dims(sides: Sides, lone: Lone) -> Layout:
    """The view.

    Dims that both sides have, and at least one in parted leaves alone, get names of their own
    there.
    """
    source, view = sides
    # Parted leaves have equal names by chance, and so may their dims: these are two sizes then.
    shared = _names(source, lone[0], parted=False) | _names(view, lone[1], parted=False)
    mine = (_names(view, lone[1], parted=True) & _names(source, lone[0], parted=True)) - shared
    if not mine:
        return view
    renames = names_apart(mine, source.names() | view.names())
    rows = [
        renamed_row(row, renames) if number in lone[1] else row
        for number, row in enumerate(view.rows)
    ]
    sizes = tuple((renames.get(name, name), size) for name, size in view.sizes)
    return dataclasses.replace(view, rows=tuple(rows), sizes=sizes)


def _names(table: Layout, lone: frozenset[int], *, parted: bool) -> set[str]:
    """The dim names of the rows that are parted, or of all the rest."""
    names: set[str] = set()
    for number, row in enumerate(table.rows):
        if (number in lone) == parted:
            names |= dims_.dim_names(row.all_dims)
    if not parted:
        names |= dims_.dim_names(count for node in table.nodes for count in node.counts)
    return names


def restart(
    sides: Sides, rules: Sequence[Rule], missing_paths: MissingPaths, faults: list[Mismatch]
) -> tuple[Sides, Lone]:
    """Both layouts with the transformation's own start on what is reset, and the rows that are."""
    (source, left), (view, right) = (
        _restarted(table, list(_resets(rules, n)), missing_paths, faults)
        for n, table in enumerate(sides)
    )
    return (source, view), (left, right)


def _resets(rules: Sequence[Rule], side: int) -> Iterator[tuple[Reset, LogicalPath]]:
    """What rules reset on the source, or on the view."""
    for rule in rules:
        path = (rule.source, rule.view)[side] if isinstance(rule, Reset) else None
        if isinstance(rule, Reset) and path is not None:
            yield rule, path


def _restarted(
    table: Layout,
    resets: Sequence[tuple[Reset, LogicalPath]],
    missing_paths: MissingPaths,
    faults: list[Mismatch],
) -> tuple[Layout, frozenset[int]]:
    """``table`` with the transformation's own start on what is reset, and the numbers of these rows, which have no partner."""
    if not resets:
        return table, frozenset()
    scope = Scope((path, rule) for rule, path in resets)
    hit: set[int] = set()
    matched: set[int] = set()
    unknown: set[int] = set()
    for number, hits in scope.along(table.rows).items():
        # A reset speaks of the optimizer state alone: a path in the model is not meant.
        rooted = {one.number for one in hits if one.start == 0}
        matched |= rooted
        if rooted:
            hit.add(number)
        if not table.rows[number].optimizer:
            unknown |= rooted
    for number, (rule, path) in enumerate(resets):
        if number not in matched:
            faults.append(missing_paths.fault(rule, path, table))
        if table.initial is None or number in unknown:
            hint = f"declare the train state with its transformation, or write {Private(path, Fill(0))}"
            expected = "a part of an optimizer state with a known start"
            faults.append(Mismatch(str(rule), "rule", expected, table.name, hint))
    rows = tuple(
        dataclasses.replace(r, default=Init()) if n in hit else r for n, r in enumerate(table.rows)
    )
    return dataclasses.replace(table, rows=rows) if hit else table, frozenset(hit)
