"""The join: two layouts in, a total lens out, or one error that names everything that has no place."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Sequence

from ckpt_schema import leaves, paths
from ckpt_schema.errors import DerivationError, Mismatch
from ckpt_schema.leaves import Default, Fill, FreshKey
from ckpt_schema.lens.edits import Chain
from ckpt_schema.lens.relate import relate
from ckpt_schema.paths import LogicalPath
from ckpt_schema.table import Layout, Row

__all__ = ["Join", "Private", "Rename", "Rule", "join", "private", "rename"]


@dataclasses.dataclass(frozen=True, slots=True)
class Rename:
    """See `rename`."""

    source: LogicalPath
    view: LogicalPath

    def __str__(self) -> str:
        """The rule as it is written."""
        return f"rename({'/'.join(self.source)!r}, {'/'.join(self.view)!r})"


@dataclasses.dataclass(frozen=True, slots=True)
class Private:
    """See `private`."""

    path: LogicalPath
    default: Default

    def __str__(self) -> str:
        """The rule as it is written."""
        return f"private({'/'.join(self.path)!r}, {self.default})"


Rule = Rename | Private


def rename(source: str, view: str) -> Rename:
    """A rule: the node or leaf at logical path ``source`` is the view's node or leaf at ``view``.

    It holds in the model and in every part of the optimizer state that mirrors it.

    Example:
        >>> print(rename("layers[]/LayerNorm_0", "layers[]/norm"))
        rename('layers[]/LayerNorm_0', 'layers[]/norm')
    """
    return Rename(tuple(source.split("/")), tuple(view.split("/")))


def private(path: str, default: Default | float) -> Private:
    """A rule: what is at logical path ``path`` has no partner on the other side; where none is given it holds ``default``."""
    return Private(tuple(path.split("/")), default if isinstance(default, Default) else Fill(default))


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
    faults += _unplaced(source, view, renamed, joins, {f.path for f in faults})
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
                if any(_under(row, rule.path) is not None for row in pair) and not any(row.optional for row in pair):
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
    hit = [_under(row, rule.path) is not None for row in table.rows]
    if not any(hit):
        return table
    for row, inside in zip(table.rows, hit, strict=True):
        if inside and not leaves.holds(row.leaf, rule.default):
            hint = "fresh_key(seed) for keys, a number of the leaf's kind for arrays"
            faults.append(Mismatch("/".join(row.path), "dtype", f"a default for {row.leaf}", str(rule.default), hint))
    rows = tuple(dataclasses.replace(r, default=rule.default) if h else r for r, h in zip(table.rows, hit, strict=True))
    return dataclasses.replace(table, rows=rows)


def _under(row: Row, prefix: LogicalPath) -> int | None:
    """Where in the row's path ``prefix`` starts: at the root, or at the model's root; None when in neither place."""
    for start in (0, row.body):
        if start is not None and row.path[start : start + len(prefix)] == prefix:
            return start
    return None


def _renamed(source: Layout, view: Layout, rules: Sequence[Rename], faults: list[Mismatch]) -> list[LogicalPath]:
    """The path of each source row in the view's words; each row is renamed by the first rule that matches it, once."""
    found = [row.path for row in source.rows]
    for rule in rules:
        used = False
        for number, row in enumerate(source.rows):
            start = _under(row, rule.source)
            if start is not None:
                used = True
                if found[number] == row.path:
                    found[number] = (*row.path[:start], *rule.view, *row.path[start + len(rule.source) :])
        if not used:
            faults.append(_matches_nothing(rule, rule.source, source))
        if all(_under(row, rule.view) is None for row in view.rows):
            faults.append(_matches_nothing(rule, rule.view, view))
    return found


def _matches_nothing(rule: Rule, path: LogicalPath, *tables: Layout) -> Mismatch:
    others = {"/".join(row.path[row.body or 0 :][: len(path)]) for table in tables for row in table.rows}
    text = "/".join(path)
    close = difflib.get_close_matches(text, sorted(others), n=1)
    hint = f"near: {close[0]}" if close else "logical paths are chains of attribute names; print the layout to see them"
    names = " or ".join(dict.fromkeys(table.name for table in tables))
    return Mismatch(str(rule), "rule", f"a leaf of {names} at {text} or below", "none", hint)


def _unplaced(
    source: Layout, view: Layout, renamed: Sequence[LogicalPath], joins: Sequence[Join], known: set[str]
) -> Iterator[Mismatch]:
    """Rows of both sides that are neither joined nor private with a default, each with its likeliest partner.

    Rows of the optimizer state that mirror an unplaced row of the model are named on its line: what places one places all.
    """
    placed = {j.source for j in joins}, {j.view for j in joins}
    shared = set(renamed) & {row.path for row in view.rows}
    named = [
        [(p, r) for n, (p, r) in enumerate(zip(names, table.rows, strict=True)) if n not in done and p not in shared]
        for names, table, done in ((renamed, source, placed[0]), ([r.path for r in view.rows], view, placed[1]))
    ]
    left, right = ([row for _, row in rows] for rows in named)
    sides = ((named[0], right, source, view, False), (named[1], left, view, source, True))
    for rows, others, near, far, swapped in sides:
        lost = [r for p, r in rows if r.default is None and not r.optional and "/".join(p) not in known]
        for row, mirrors in _with_mirrors(lost):
            also = f" (and below {', '.join(mirrors)})" if mirrors else ""
            hint = _partner(row, others, swapped=swapped)
            yield Mismatch(
                "/".join(row.path), "unplaced", f"a partner in {far.name}", f"{row.stored} in {near.name} alone{also}", hint
            )


def _with_mirrors(rows: Sequence[Row]) -> list[tuple[Row, list[str]]]:
    """Each row that mirrors no other of ``rows``, with the places in the optimizer state of those that mirror it."""
    groups: dict[LogicalPath, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.path if row.body is None else ("", *row.path[row.body :]), []).append(row)
    return [(first, ["/".join(row.path[: row.body]) for row in mirrors]) for first, *mirrors in groups.values()]


def _partner(row: Row, others: Sequence[Row], *, swapped: bool) -> str:
    """What places ``row``: the rename that joins it to the likeliest of ``others``, or a default."""
    text, by_path = "/".join(row.path), {"/".join(other.path): other for other in others}
    alike = [path for path, other in by_path.items() if other.leaf == row.leaf] if len(others) < 2000 else []
    close = (
        difflib.get_close_matches(text, alike[:200], n=1, cutoff=0.5)
        or difflib.get_close_matches(text, list(by_path)[:200], n=1, cutoff=0.8)
        or (alike if len(alike) == 1 else [])
    )
    rule = Private(row.path[row.body or 0 :], FreshKey(0) if row.leaf.is_key else Fill(0))
    cure = f"give it a default: field(default=...) or {rule}"
    if not close:
        return cure
    other = by_path[close[0]]
    likeliest = f"likeliest: {paths.format_path(other.key)}"
    if [r.size for r in row.repeats] != [r.size for r in other.repeats]:
        keep = "what stacked layers share cannot be told apart: stack them on both sides or on neither"
        return f"{likeliest}; {keep}, or {cure}"
    pair = (other, row) if swapped else (row, other)
    return f"{likeliest}; {_joining(*pair)} joins them, or {cure}"


def _joining(source: Row, view: Row) -> Rename:
    """The shortest rename that makes ``source`` the partner of ``view``."""
    start = source.body or 0
    start = start if source.path[:start] == view.path[:start] else 0
    before, after = list(source.path[start:]), list(view.path[start:])
    while len(before) > 1 and len(after) > 1 and before[-1] == after[-1]:
        before.pop()
        after.pop()
    return Rename(tuple(before), tuple(after))
