"""Rules that match nothing, or change nothing: what a user wrote is never ignored."""

from __future__ import annotations

import difflib
from collections.abc import Container, Iterator, Sequence

from ckpt_schema import dims as dims_
from ckpt_schema import paths
from ckpt_schema.errors import Mismatch
from ckpt_schema.lens.arrays import Flip
from ckpt_schema.lens.joins import Join
from ckpt_schema.lens.partial import Pad, Scale, Unpad
from ckpt_schema.lens.rules import Factor, Fuse, Padding, Private, RawKey, Reverse, Rule, Tie, under
from ckpt_schema.lens.ties import copies
from ckpt_schema.paths import LogicalPath
from ckpt_schema.table import Layout, Series

__all__ = ["idle", "matches_nothing"]


def idle(
    source: Layout,
    view: Layout,
    rules: Sequence[Rule],
    joins: Sequence[Join],
    divided: Container[object],
    known: set[str],
) -> Iterator[Mismatch]:
    """The rules that do nothing.

    Args:
        source: The source's layout.
        view: The view's layout.
        rules: The rules.
        joins: What was joined by them.
        divided: The rules by which parts are one leaf.
        known: Paths that have a fault already.
    """
    yield from _idle(source, view, rules, joins, known)
    yield from _unsaid(rules, joins)
    yield from _undivided(rules, divided)


def _idle(
    source: Layout, view: Layout, rules: Sequence[Rule], joins: Sequence[Join], known: set[str]
) -> Iterator[Mismatch]:
    """Leaves that a rule calls private, and that have a partner which is never absent; raw keys that are none; idle ties."""
    pairs = [
        (source.rows[before], view.rows[after]) for one in joins for before, after in one.pairs
    ]
    for rule in rules:
        if isinstance(rule, RawKey):
            found = [
                a.leaf.is_key != b.leaf.is_key for a, b in pairs if under(b, rule.path) is not None
            ]
            failed = [
                row
                for row in view.rows
                if under(row, rule.path) is not None and "/".join(row.path) in known
            ]
            if not any(found) and not failed:
                yield Mismatch(
                    str(rule),
                    "rule",
                    "a key on one side and raw data on the other",
                    "none",
                    "drop the rule",
                )
        if isinstance(rule, Tie):
            several = [table.name for table in (source, view) if copies(table, [rule])]
            if len(several) != 1:
                both = f"leaves at {'/'.join(rule.copy)} and at {'/'.join(rule.of)}"
                expected = f"{both} of one side, which the other stores once"
                hint = (
                    "drop the rule: both sides have both"
                    if several
                    else "print the layouts to see their paths"
                )
                yield Mismatch(str(rule), "rule", expected, " and ".join(several) or "none", hint)
        if isinstance(rule, Private):
            for pair in pairs:
                if any(under(row, rule.path) is not None for row in pair) and not any(
                    row.optional for row in pair
                ):
                    keys = " and ".join(paths.format_path(row.key) for row in pair)
                    hint = "drop the rule, or give one of the two another attribute name"
                    yield Mismatch(
                        str(rule),
                        "rule",
                        "a leaf without a partner",
                        f"{keys}, which are one leaf",
                        hint,
                    )


def _unsaid(rules: Sequence[Rule], joins: Sequence[Join]) -> Iterator[Mismatch]:
    """Rules for the values of leaves that change none."""
    for rule in rules:
        if isinstance(rule, (Reverse, Padding, Factor)):
            mine = [one for one in joins if rule in one.told.rules]
            edits = [edit for one in mine for edit in one.chain.edits]
            if isinstance(rule, Padding):
                done = any(
                    isinstance(e, (Pad, Unpad)) and (e.small, e.large) == (rule.small, rule.large)
                    for e in edits
                )
                small, large = map(dims_.format_dim, (rule.small, rule.large))
                expected = f"a leaf with {small} on one side and {large} on the other"
            elif isinstance(rule, Reverse):
                done = any(isinstance(edit, Flip) for edit in edits)
                expected = f"a leaf with an axis {dims_.format_dim(rule.dim)}"
            else:
                done = any(isinstance(edit, Scale) for edit in edits) or bool(
                    mine and not rule.exponent
                )
                expected = "a leaf of floats"
            if not done:
                hint = "print the layouts to see their dims"
                yield Mismatch(
                    str(rule),
                    "rule",
                    f"{expected}, at {'/'.join(rule.path)} or below",
                    "none",
                    hint,
                )


def _undivided(rules: Sequence[Rule], used: Container[object]) -> Iterator[Mismatch]:
    """Rules that make parts one where there are none."""
    for rule in rules:
        if isinstance(rule, (Fuse, Series)) and rule not in used:
            paths_ = rule.parts if isinstance(rule, Fuse) else rule.members
            expected = f"leaves below {' and '.join('/'.join(path) for path in paths_)} of one side, which the other has as one"
            yield Mismatch(
                str(rule), "rule", expected, "none", "print the layouts to see their paths"
            )


def matches_nothing(rule: Rule, path: LogicalPath, *tables: Layout) -> Mismatch:
    """The fault of a rule for a path that no row of some layouts has."""
    others = {
        "/".join(row.path[row.body or 0 :][: len(path)]) for table in tables for row in table.rows
    }
    text = "/".join(path)
    close = difflib.get_close_matches(text, sorted(others), n=1)
    hint = (
        f"near: {close[0]}"
        if close
        else "logical paths are chains of attribute names; print the layout to see them"
    )
    names = " or ".join(dict.fromkeys(table.name for table in tables))
    return Mismatch(str(rule), "rule", f"a leaf of {names} at {text} or below", "none", hint)
