"""The join: two layouts in, a total lens out, or one error that names everything that has no place."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Container, Mapping, Sequence

from ckpt_schema import chains, leaves
from ckpt_schema.errors import DerivationError, Mismatch
from ckpt_schema.leaves import Fill, Init
from ckpt_schema.lens.align import Alignment, Owners, Settled, align
from ckpt_schema.lens.idle import idle, matches_nothing
from ckpt_schema.lens.joins import Join
from ckpt_schema.lens.relate import relate
from ckpt_schema.lens.rules import Factor, Fuse, Move, Private, Rename, Reset, Rule, under
from ckpt_schema.lens.ties import copies
from ckpt_schema.lens.told import UNTOLD, told, unscaled
from ckpt_schema.lens.unplaced import unplaced
from ckpt_schema.lens.wholes import Member, divided, groups, membership
from ckpt_schema.paths import LogicalPath
from ckpt_schema.table import Layout, Part, Row

__all__ = ["join"]


def join(
    source: Layout, view: Layout, rules: Sequence[Rule] = ()
) -> tuple[Layout, Layout, tuple[Join, ...]]:
    """Joins two layouts on their logical paths.

    Returns:
        Both layouts, with defaults that rules declare, and the joins in the view's order.

    Raises:
        DerivationError: With every row of both sides that has no place, every pair of rows whose types no edit relates, every
            ambiguity, and every rule that matches nothing.
    """
    _verify_rules(rules)
    faults: list[Mismatch] = []
    source, view = _declare(source, view, rules, faults)
    (source, left), (view, right) = (
        _restarted(t, _resets(rules, n), faults) for n, t in enumerate((source, view))
    )
    alignment = align(source, view, lambda path: _called(path, rules), _settled(rules))
    members = tuple(
        _members(table, other, rules) for table, other in ((source, view), (view, source))
    )
    renamed = _renamed(source, view, rules, alignment, left, members[0], faults)
    twice = copies(source, rules), copies(view, rules)
    expected = "one source leaf for one view leaf"
    theirs = _by_path(source, renamed, members[0], twice[0].keys(), expected, faults)
    expected = "one view leaf for one source leaf"
    ours = _by_path(
        view, _seen(view, rules, members[1]), members[1], twice[1].keys() | right, expected, faults
    )
    pairs: list[tuple[int, int]] = []
    joins: list[Join] = []
    for path, after in ours.items():
        before = theirs.get(path, {})
        if before.keys() == after.keys():
            alike = [(before[part], after[part]) for part in after]
            pairs += alike
            joins += _joined(source, view, rules, alike, faults)
        elif before:
            joins += _divided(source, view, before, after, members, faults)
    onward, back = dict(pairs), {there: here for here, there in pairs}
    again = [(copy, onward[of]) for copy, of in twice[0].items() if of in onward]
    again += [(back[of], copy) for copy, of in twice[1].items() if of in back]
    joins += _joined(source, view, rules, again, faults)
    divided_by = {member.group.rule for side in members for member in side.values()}
    faults += idle(source, view, rules, joins, divided_by, {f.path for f in faults})
    placed = [pair for one in joins for pair in one.pairs]
    faults += unplaced(source, view, renamed, placed, alignment, {f.path for f in faults})
    if faults:
        parts = [*map(str, source.parts)], [*map(str, view.parts)]
        notes = (
            chains.side_by_side((source.name, view.name), parts)
            if any(f.kind == "chain" for f in faults)
            else []
        )
        raise DerivationError(
            f"no lens from {source.name} to {view.name}: {len(faults)} fault(s)", faults, notes
        )
    return source, view, tuple(joins)


_Members = Mapping[int, Member]
"""By the numbers of rows: what they are part of."""


def _members(table: Layout, other: Layout, rules: Sequence[Rule]) -> _Members:
    several = groups(table, other, rules)
    found = (
        {number: membership(row, several) for number, row in enumerate(table.rows)}
        if several
        else {}
    )
    return {number: member for number, member in found.items() if member is not None}


def _seen(view: Layout, rules: Sequence[Rule], members: _Members) -> list[LogicalPath]:
    """The path of each of the view's rows, parts under that of the whole; a rule calls it what the source does."""
    found = [row.path for row in view.rows]
    for number, member in members.items():
        if isinstance(member.group.rule, Fuse):
            path = member.path
            found[number] = (*path[: member.start], *_called(path[member.start :], rules))
        else:
            found[number] = member.path
    return found


def _by_path(
    table: Layout,
    found: Sequence[LogicalPath],
    members: _Members,
    left_out: Container[int],
    expected: str,
    faults: list[Mismatch],
) -> dict[LogicalPath, dict[int | None, int]]:
    """The rows by path, and where they are parts of one leaf, by part."""
    rows: dict[LogicalPath, dict[int | None, int]] = {}
    for number, path in enumerate(found):
        if number in left_out:
            continue
        parts = rows.setdefault(path, {})
        part = members[number].number if number in members else None
        first = parts.setdefault(part, number)
        if first != number or (None in parts and len(parts) > 1):
            other = first if first != number else next(n for n in parts.values() if n != number)
            both = f"{'/'.join(table.rows[other].path)} and {'/'.join(table.rows[number].path)}"
            faults.append(
                Mismatch("/".join(path), "ambiguous", expected, both, "rename one of them")
            )
    return rows


def _divided(
    source: Layout,
    view: Layout,
    before: Mapping[int | None, int],
    after: Mapping[int | None, int],
    members: Sequence[_Members],
    faults: list[Mismatch],
) -> list[Join]:
    """The joins of a row on one side with rows on the other that are parts of it."""
    parts = [
        {part: number for part, number in side.items() if part is not None}
        for side in (before, after)
    ]
    if None in before:
        found = divided((source, view), before[None], parts[1], members[1])
    elif None in after:
        found = divided((view, source), after[None], parts[0], members[0])
    else:
        row = view.rows[next(iter(after.values()))]
        counts = f"{len(after)} parts, as in the view", f"{len(before)} in the source"
        hint = "both sides divide it, in different ways: take it through a layout that has it whole"
        found = Mismatch("/".join(row.path), "dims", *counts, hint)
    if isinstance(found, Mismatch):
        faults.append(found)
        return []
    return found if None in before else [one.inverse for one in found]


def _joined(
    source: Layout,
    view: Layout,
    rules: Sequence[Rule],
    pairs: Sequence[tuple[int, int]],
    faults: list[Mismatch],
) -> list[Join]:
    """The joins of rows, by number, that are one leaf."""
    joins: list[Join] = []
    for one, other in pairs:
        row = view.rows[other]
        said = told(row, rules) if rules else UNTOLD
        made = relate(source.rows[one], row, said)
        factor = unscaled(row, rules)
        if isinstance(made, Mismatch):
            faults.append(made)
        elif factor is not None:
            where = "/".join(row.path)
            hint = f"say {Factor(row.path, 0)} to leave it as it is, another factor, or reset(view={where!r})"
            expected = f"what becomes of it where {factor} holds"
            faults.append(
                Mismatch(
                    where,
                    "rule",
                    expected,
                    "the state of an optimizer, which no factor of a param tells",
                    hint,
                )
            )
        else:
            joins.append(made.join(one, other, said))
    return joins


def _verify_rules(rules: object) -> None:
    several = isinstance(
        rules, (list, tuple)
    )  # a lone rule is no sequence, and a string is one of the wrong things
    wrong: list[object] = [r for r in rules if not isinstance(r, Rule)] if several else [rules]
    if wrong:
        expected = (
            "a list of rename(...), private(...), move(...), reset(...), raw_key(...), "
            "tie(...), fuse(...) and series(...)"
        )
        faults = [Mismatch("edits", "rule", expected, _spelled(rule)) for rule in wrong]
        raise DerivationError(f"edits= is not well formed: {len(faults)} fault(s)", faults)


def _spelled(rule: object) -> str:
    return f"{rule} by itself" if isinstance(rule, Rule) else repr(rule)


def _declare(
    source: Layout, view: Layout, rules: Sequence[Rule], faults: list[Mismatch]
) -> tuple[Layout, Layout]:
    """Both layouts with the defaults that `private` rules declare."""
    for rule in rules:
        if isinstance(rule, Private):
            changed = [_with_default(table, rule, faults) for table in (source, view)]
            if changed[0] is source and changed[1] is view:
                faults.append(matches_nothing(rule, rule.path, source, view))
            source, view = changed
    return source, view


def _with_default(table: Layout, rule: Private, faults: list[Mismatch]) -> Layout:
    """``table`` with the default on every leaf below the rule's path; what an optimizer keeps for those starts as it does."""
    rows = list(table.rows)
    for number, row in enumerate(rows):
        start = under(row, rule.path)
        if start is None or (start and row.path[0] == "opt_state" and table.initial is None):
            continue
        default = Init() if start and row.path[0] == "opt_state" else rule.default
        if not leaves.holds(row.leaf, default):
            hint = "fresh_key(seed) for keys, a number of the leaf's kind for arrays"
            faults.append(
                Mismatch(
                    "/".join(row.path), "dtype", f"a default for {row.leaf}", str(default), hint
                )
            )
        rows[number] = dataclasses.replace(row, default=default)
    return (
        table
        if all(map(operator.is_, rows, table.rows))
        else dataclasses.replace(table, rows=tuple(rows))
    )


def _resets(rules: Sequence[Rule], side: int) -> list[tuple[Reset, LogicalPath]]:
    """What rules reset on the source, or on the view."""
    given = [(rule, (rule.source, rule.view)[side]) for rule in rules if isinstance(rule, Reset)]
    return [(rule, path) for rule, path in given if path is not None]


def _restarted(
    table: Layout, resets: Sequence[tuple[Reset, LogicalPath]], faults: list[Mismatch]
) -> tuple[Layout, frozenset[int]]:
    """``table`` with the transformation's own start on what is reset, and the numbers of these rows, which have no partner."""
    hit: set[int] = set()
    for rule, path in resets:
        below = {number for number, row in enumerate(table.rows) if row.path[: len(path)] == path}
        if not below:
            faults.append(matches_nothing(rule, path, table))
        if table.initial is None or any(
            table.rows[number].path[0] != "opt_state" for number in below
        ):
            hint = f"declare the train state with its transformation, or write {Private(path, Fill(0))}"
            faults.append(
                Mismatch(
                    str(rule),
                    "rule",
                    "a part of an optimizer state with a known start",
                    table.name,
                    hint,
                )
            )
        hit |= below
    rows = tuple(
        dataclasses.replace(r, default=Init()) if n in hit else r for n, r in enumerate(table.rows)
    )
    return dataclasses.replace(table, rows=rows) if hit else table, frozenset(hit)


def _settled(rules: Sequence[Rule]) -> list[Settled]:
    """The parts of the optimizer state that rules place."""
    moves: list[Settled] = [(rule.source, rule.view) for rule in rules if isinstance(rule, Move)]
    return moves + [(rule.source, rule.view) for rule in rules if isinstance(rule, Reset)]


def _called(path: LogicalPath, rules: Sequence[Rule]) -> LogicalPath:
    """What a path of the source's model is in the view's words."""
    for rule in rules:
        if isinstance(rule, Rename) and path[: len(rule.source)] == rule.source:
            return (*rule.view, *path[len(rule.source) :])
    return path


def _renamed(
    source: Layout,
    view: Layout,
    rules: Sequence[Rule],
    alignment: Alignment,
    restarted: frozenset[int],
    members: _Members,
    faults: list[Mismatch],
) -> list[LogicalPath]:
    """The path of each source row in the view's words; the first rule of a kind that matches it counts, once."""
    owners = Owners(source)
    found: list[LogicalPath] = []
    for number, row in enumerate(source.rows):
        told, member = rules, members.get(number)
        if member is not None:
            told = [
                r
                for r in rules
                if not (isinstance(r, Rename) and isinstance(member.group.rule, Fuse))
            ]
        part = owners.part(row) if source.parts else None
        found.append(
            _placed(
                row if member is None else dataclasses.replace(row, path=member.path),
                told,
                part,
                alignment,
            )
        )
    for number in restarted:
        found[number] = _nowhere(source.rows[number])
    for rule in rules:
        if isinstance(rule, (Rename, Move)):
            start = under if isinstance(rule, Rename) else _begins
            for table, path in ((source, rule.source), (view, rule.view)):
                if all(start(row, path) is None for row in table.rows):
                    faults.append(matches_nothing(rule, path, table))
    return found


def _begins(row: Row, prefix: LogicalPath) -> int | None:
    return 0 if row.path[: len(prefix)] == prefix else None


def _nowhere(row: Row) -> LogicalPath:
    """A path that no row has."""
    return ("", *row.path)


def _placed(
    row: Row, rules: Sequence[Rule], part: Part | None, alignment: Alignment
) -> LogicalPath:
    head, body = row.path[: row.body or 0], row.path[row.body or 0 :]
    for rule in rules:
        if isinstance(rule, Rename) and (start := under(row, rule.source)) is not None:
            if start == 0 and head:
                return (*rule.view, *row.path[len(rule.source) :])
            body = (*rule.view, *body[len(rule.source) :])
            break
    whole = (*head, *body)
    for rule in rules:
        if isinstance(rule, Move) and row.path[: len(rule.source)] == rule.source:
            return (*rule.view, *whole[len(rule.source) :])
    if part is None:
        return whole
    if part.path in alignment.apart[0]:
        return _nowhere(row)
    return (*alignment.moved.get(part.path, part.path), *whole[len(part.path) :])
