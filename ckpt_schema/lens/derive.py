"""The join: two layouts in, a total lens out, or one error that names everything that has no place."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Sequence

from ckpt_schema import leaves, paths
from ckpt_schema.errors import DerivationError, Mismatch
from ckpt_schema.lens.edits import Chain
from ckpt_schema.lens.relate import relate
from ckpt_schema.lens.rules import Private, Rename, Rule, under
from ckpt_schema.lens.unplaced import unplaced
from ckpt_schema.paths import LogicalPath
from ckpt_schema.table import Layout

__all__ = ["Join", "join"]


@dataclasses.dataclass(frozen=True, slots=True)
class Join:
    """Two rows that are one leaf, and the edits from the first to the second.

    Attributes:
        source: The number of the source's row.
        view: The number of the view's row.
        chain: What is done to the leaf on the way to the view; empty when it only moves.
        level: The level of repetition that one side stacks and the other unrolls, or None.
    """

    source: int
    view: int
    chain: Chain
    level: int | None = None

    @property
    def inverse(self) -> Join:
        """The same join seen from the other side."""
        return Join(self.view, self.source, ~self.chain, self.level)


def join(source: Layout, view: Layout, rules: Sequence[Rule] = ()) -> tuple[Layout, Layout, tuple[Join, ...]]:
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
    renamed = _renamed(source, view, [r for r in rules if isinstance(r, Rename)], faults)
    partners: dict[LogicalPath, int] = {}
    for number, path in enumerate(renamed):
        first = partners.setdefault(path, number)
        if first != number:
            both = f"{'/'.join(source.rows[first].path)} and {'/'.join(source.rows[number].path)}"
            faults.append(
                Mismatch("/".join(path), "ambiguous", "one source leaf for one view leaf", both, "rename one of them")
            )
    joins: list[Join] = []
    for number, row in enumerate(view.rows):
        partner = partners.pop(row.path, None)
        if partner is not None:
            made = relate(source.rows[partner], row)
            if isinstance(made, Mismatch):
                faults.append(made)
            else:
                joins.append(Join(partner, number, *made))
    faults += _idle(source, view, rules, joins)
    faults += unplaced(source, view, renamed, {j.source: j.view for j in joins}, {f.path for f in faults})
    if faults:
        header = f"no lens from {source.name} to {view.name}: {len(faults)} fault(s)"
        raise DerivationError(header, faults)
    return source, view, tuple(joins)


def _verify_rules(rules: object) -> None:
    several = isinstance(rules, (list, tuple))  # a lone rule is no sequence, and a string is one of the wrong things
    wrong: list[object] = [r for r in rules if not isinstance(r, Rule)] if several else [rules]
    if wrong:
        faults = [Mismatch("edits", "rule", "a list of rename(...) and private(...)", _spelled(rule)) for rule in wrong]
        raise DerivationError(f"edits= is not well formed: {len(faults)} fault(s)", faults)


def _spelled(rule: object) -> str:
    return f"{rule} by itself" if isinstance(rule, Rule) else repr(rule)


def _idle(source: Layout, view: Layout, rules: Sequence[Rule], joins: Sequence[Join]) -> Iterator[Mismatch]:
    """Leaves that a rule calls private, and that have a partner which is never absent."""
    for rule in rules:
        if isinstance(rule, Private):
            for one in joins:
                pair = source.rows[one.source], view.rows[one.view]
                if any(under(row, rule.path) is not None for row in pair) and not any(row.optional for row in pair):
                    keys = " and ".join(paths.format_path(row.key) for row in pair)
                    hint = "drop the rule, or give one of the two another attribute name"
                    yield Mismatch(str(rule), "rule", "a leaf without a partner", f"{keys}, which are one leaf", hint)


def _declare(source: Layout, view: Layout, rules: Sequence[Rule], faults: list[Mismatch]) -> tuple[Layout, Layout]:
    """Both layouts with the defaults that `private` rules declare."""
    for rule in rules:
        if isinstance(rule, Private):
            changed = [_with_default(table, rule, faults) for table in (source, view)]
            if changed[0] is source and changed[1] is view:
                faults.append(_matches_nothing(rule, rule.path, source, view))
            source, view = changed
    return source, view


def _with_default(table: Layout, rule: Private, faults: list[Mismatch]) -> Layout:
    hit = [under(row, rule.path) is not None for row in table.rows]
    if not any(hit):
        return table
    for row, inside in zip(table.rows, hit, strict=True):
        if inside and not leaves.holds(row.leaf, rule.default):
            hint = "fresh_key(seed) for keys, a number of the leaf's kind for arrays"
            faults.append(Mismatch("/".join(row.path), "dtype", f"a default for {row.leaf}", str(rule.default), hint))
    rows = tuple(dataclasses.replace(r, default=rule.default) if h else r for r, h in zip(table.rows, hit, strict=True))
    return dataclasses.replace(table, rows=rows)


def _renamed(source: Layout, view: Layout, rules: Sequence[Rename], faults: list[Mismatch]) -> list[LogicalPath]:
    """The path of each source row in the view's words; each row is renamed by the first rule that matches it, once."""
    found = [row.path for row in source.rows]
    for rule in rules:
        used = False
        for number, row in enumerate(source.rows):
            start = under(row, rule.source)
            if start is not None:
                used = True
                if found[number] == row.path:
                    found[number] = (*row.path[:start], *rule.view, *row.path[start + len(rule.source) :])
        if not used:
            faults.append(_matches_nothing(rule, rule.source, source))
        if all(under(row, rule.view) is None for row in view.rows):
            faults.append(_matches_nothing(rule, rule.view, view))
    return found


def _matches_nothing(rule: Rule, path: LogicalPath, *tables: Layout) -> Mismatch:
    others = {"/".join(row.path[row.body or 0 :][: len(path)]) for table in tables for row in table.rows}
    text = "/".join(path)
    close = difflib.get_close_matches(text, sorted(others), n=1)
    hint = f"near: {close[0]}" if close else "logical paths are chains of attribute names; print the layout to see them"
    names = " or ".join(dict.fromkeys(table.name for table in tables))
    return Mismatch(str(rule), "rule", f"a leaf of {names} at {text} or below", "none", hint)
