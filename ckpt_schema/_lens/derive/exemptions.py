"""What rules say of leaves without a partner: their defaults, those that start anew, and those that are parted.

The second step of `derivation`, before any row has found its partner: so what a rule says here of
a leaf that has one after all is told later, by `private_pairs`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

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

__all__ = ["Alone", "Lone", "declare", "lone", "owned", "part", "resets_by_side", "restart"]

Sides = tuple[Layout, Layout]
Lone = tuple[frozenset[int], frozenset[int]]
"""The numbers of rows of the source, and of the view, that have no partner."""

LoneRule = Private | Apart
"""A rule for leaves without a partner."""

Alone = tuple[Spoken[LoneRule], Spoken[LoneRule]]
"""Those that speak of each row of the source, and of the view."""


def lone(sides: Sides, rules: Sequence[Rule]) -> Alone:
    """The rules for leaves without a partner, by the rows that they speak of."""
    entries: list[tuple[LogicalPath, LoneRule]] = []
    for rule in rules:
        if isinstance(rule, LoneRule):
            entries.append((rule.path, rule))
    # What it says of a param it says of that param's moments, which have no partner then either.
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
    # By number, the rules that have found a leaf on either side.
    matched: set[int] = set()
    source = _with_defaults(sides[0], alone[0], matched, faults)
    view = _with_defaults(sides[1], alone[1], matched, faults)
    for number, rule in enumerate(said):
        # What parts two leaves has to find one on both sides: `part` looks for that.
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
        # So private("head", 0) is for `params/head`, and `opt_state/0/mu/head` takes its own.
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
    """What a row is made of by the rules that speak of it; its own default where none says it."""
    # A rule for a param says how that starts, and not how its moments do.
    if is_mirror(row) and hits[0].start > 0:
        return Init()
    for hit in hits:
        # None of a private leaf is a word, to keep its own; of one that is apart nothing was said.
        if isinstance(hit.rule, Private) or hit.rule.default is not None:
            return hit.rule.default
    return row.default


def owned(sides: Sides, alone: Alone) -> Lone:
    """The rows that keep their own value, by a rule that gives no other."""
    keeping: tuple[set[int], set[int]] = set(), set()
    for table, over, kept in zip(sides, alone, keeping, strict=True):
        for number, hits in over.items():
            if isinstance(hits[0].rule, Private) and table.rows[number].default is None:
                kept.add(number)
    return frozenset(keeping[0]), frozenset(keeping[1])


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
    rows: tuple[set[int], set[int]] = set(), set()
    paths: tuple[set[LogicalPath], set[LogicalPath]] = set(), set()
    for side in (0, 1):
        for number, hits in alone[side].items():
            for hit in hits:
                if isinstance(hit.rule, Apart):
                    rows[side].add(number)
                    paths[side].add(hit.rule.path)
    for rule in said:
        is_there = [rule.path in of_side for of_side in paths]
        if not any(is_there):
            faults.append(missing_paths.fault(rule, rule.path, *sides))
        elif not all(is_there):
            near, far = sides if is_there[0] else (sides[1], sides[0])
            faults.append(_one_sided(rule, near, far))
    parted = frozenset(rows[0]), frozenset(rows[1])
    # The view's dims get the new names, and the source's rows stay as they are.
    return (sides[0], _with_own_dims(sides, parted)), parted


def _one_sided(rule: Apart, near: Layout, far: Layout) -> Mismatch:
    """The fault of a rule that parts what only one side has."""
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
    rows = list(view.rows)
    for number in lone[1]:
        rows[number] = renamed_row(rows[number], renames)
    # A size that the view was declared for is that of the dim of the view, whatever it is called now.
    sizes = tuple((renames.get(name, name), size) for name, size in view.sizes)
    return dataclasses.replace(view, rows=tuple(rows), sizes=sizes)


def _names(table: Layout, lone: frozenset[int], *, parted: bool) -> set[str]:
    """The dim names of the rows that are parted, or of all the rest."""
    names: set[str] = set()
    for number, row in enumerate(table.rows):
        if (number in lone) == parted:
            names |= dims_.dim_names(row.all_dims)
    # Nodes keep their dims whatever is parted: one that counts a list of them stays what it is.
    if not parted:
        for node in table.nodes:
            names |= dims_.dim_names(node.counts)
    return names


def resets_by_side(
    rules: Sequence[Rule],
) -> tuple[list[tuple[LogicalPath, Reset]], list[tuple[LogicalPath, Reset]]]:
    """The resets that speak of each side, by their paths there."""
    resets: tuple[list[tuple[LogicalPath, Reset]], list[tuple[LogicalPath, Reset]]] = [], []
    for rule in rules:
        if isinstance(rule, Reset):
            for of_side, path in zip(resets, (rule.source, rule.view), strict=True):
                if path is not None:
                    of_side.append((path, rule))
    return resets


def restart(
    sides: Sides, rules: Sequence[Rule], missing_paths: MissingPaths, faults: list[Mismatch]
) -> tuple[Sides, Lone]:
    """Both layouts with the transformation's own start on what is reset, and the rows that are."""
    resets = resets_by_side(rules)
    source, left = _restarted(sides[0], resets[0], missing_paths, faults)
    view, right = _restarted(sides[1], resets[1], missing_paths, faults)
    return (source, view), (left, right)


def _restarted(
    table: Layout,
    resets: Sequence[tuple[LogicalPath, Reset]],
    missing_paths: MissingPaths,
    faults: list[Mismatch],
) -> tuple[Layout, frozenset[int]]:
    """``table`` with the transformation's own start on what is reset, and the numbers of these rows, which have no partner."""
    if not resets:
        return table, frozenset()
    rows = list(table.rows)
    restarted: set[int] = set()
    # By number, the resets that have found a row, and those that have found one outside of an optimizer.
    matched: set[int] = set()
    misplaced: set[int] = set()
    for number, hits in Scope(resets).along(table.rows).items():
        # A reset speaks of the optimizer state alone: a path in the model is not meant.
        rooted = {hit.number for hit in hits if hit.start == 0}
        if not rooted:
            continue
        matched |= rooted
        restarted.add(number)
        rows[number] = dataclasses.replace(rows[number], default=Init())
        if not rows[number].optimizer:
            misplaced |= rooted
    for number, (path, rule) in enumerate(resets):
        if number not in matched:
            faults.append(missing_paths.fault(rule, path, table))
        # Only what a transformation makes has a start of its own; a param takes a default in words.
        if table.initial is None or number in misplaced:
            hint = f"declare the train state with its transformation, or write {Private(path, Fill(0))}"
            expected = "a part of an optimizer state with a known start"
            faults.append(Mismatch(str(rule), "rule", expected, table.name, hint))
    if not restarted:
        return table, frozenset()
    return dataclasses.replace(table, rows=tuple(rows)), frozenset(restarted)
