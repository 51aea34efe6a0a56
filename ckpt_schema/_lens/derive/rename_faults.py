"""Rules that rename or move what is not there, and renames whose two paths begin at two places."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from ckpt_schema._layouts.paths import LogicalPath, path_names
from ckpt_schema._layouts.table import Layout, Row
from ckpt_schema._lens.derive.missing_paths import MissingPaths
from ckpt_schema._lens.derive.names import Decision, Names, is_inner
from ckpt_schema._lens.derive.scope import GlobPath, Hit, standing
from ckpt_schema._lens.rules import Move, Rename, Rule
from ckpt_schema.errors import Mismatch

__all__ = ["HalfRooted", "nameless"]


def nameless(
    source: Layout,
    view: Layout,
    rules: Sequence[Rule],
    names: Names,
    decisions: Mapping[int, Decision],
    missing_paths: MissingPaths,
) -> Iterator[Mismatch]:
    """Rules that rename or move what is not there, on either side."""
    named = [rule for rule in rules if isinstance(rule, (Rename, Move))]
    if not named:
        return
    here = {id(hit.rule) for decision in decisions.values() for hit in decision.hits}
    there = {id(rule) for rule in names.matched(view.rows)}
    meant = _meant(source, view, [rule for rule in named if id(rule) not in here], names)
    meant |= _meant(source, view, [rule for rule in named if id(rule) not in there], names)
    as_keys = (
        _by_keys(source, [rule.source for rule in named if id(rule) not in here]),
        _by_keys(view, [rule.view for rule in named if id(rule) not in there]),
    )
    for rule in named:
        for side, (path, rows) in enumerate(((rule.source, here), (rule.view, there))):
            table = (source, view)[side]
            if path and id(rule) not in rows:
                words = f"first the words of {source.name}, then those of {view.name}"
                hint = f"{words}: {meant[rule]}" if rule in meant else ""
                if not hint and path in as_keys[side]:
                    own = "/".join(as_keys[side][path])
                    hint = f"that is where {table.name} stores it; rules say its path in the model, {own}"
                yield missing_paths.fault(rule, path, table, hint=hint)


def _meant(
    source: Layout, view: Layout, wrong: Sequence[Rename | Move], names: Names
) -> dict[Rename | Move, Rename]:
    """For rules in the words of the other side, as another rule renames it: the same in the right words."""
    said: dict[Rename | Move, list[Rename]] = {}
    for rule in wrong:
        if isinstance(rule, Rename):
            olds = [rule.source, *names.uncalled(rule.source)]
            news = [rule.view, names.called(rule.view)]
            said[rule] = [Rename(old, new) for old in olds for new in news]
    several = [one for each in said.values() for one in each]
    left = standing(source, [one.source for one in several])
    right = standing(view, [one.view for one in several])
    meant: dict[Rename | Move, Rename] = {}
    for rule, each in said.items():
        fitting = [one for one in each if one.source in left and one.view in right]
        if fitting:
            meant[rule] = fitting[0]
    return meant


def _by_keys(table: Layout, wanted: Sequence[LogicalPath]) -> dict[LogicalPath, LogicalPath]:
    """The path in the model of what some paths are the keys of: so it is stored, and rules call it otherwise."""
    left = {path for path in wanted if path}
    found: dict[LogicalPath, LogicalPath] = {}
    for row in table.rows if left else ():
        if row.body is None or row.mirrors:
            continue
        keys = tuple(map(str, row.key))
        for end in range(len(keys), 0, -1):
            below = keys[end:]
            cut = len(row.path) - len(below)
            if keys[:end] in left and cut > row.body and path_names(row.path[cut:]) == below:
                found.setdefault(keys[:end], row.path[row.body : cut])
    return found


# --- one path from the root, one in the model  ---


@dataclasses.dataclass(frozen=True, slots=True)
class HalfRooted:
    """The renames of which one path begins at the root and the other in the model: they join nothing.

    Attributes:
        faults: One for each.
        rows: The rows of each side that they speak of, by number: that these have no partner follows.
    """

    faults: Sequence[Mismatch]
    rows: tuple[set[int], set[int]]

    @classmethod
    def of(
        cls, source: Layout, view: Layout, names: Names, decisions: Mapping[int, Decision]
    ) -> HalfRooted:
        """Those among the rules by which rows of the source were named."""
        hits = {number: decision.hits for number, decision in decisions.items()}
        here = _Beginnings.of(source.rows, hits)
        at_root = [rule for rule, one in here.items() if one.head]
        in_model = [rule for rule, one in here.items() if one.head == ()]
        faults: list[Mismatch] = []
        rows: tuple[set[int], set[int]] = set(), set()
        if not at_root and not in_model:
            return cls(faults, rows)
        there = _Beginnings.of(view.rows, names.views.along(view.rows))
        for rule in (*at_root, *in_model):
            other = there.get(rule)
            if other is None or other.head is None or bool(other.head) == bool(here[rule].head):
                continue
            faults.append(_half_rooted(rule, here[rule].head or (), other.head))
            rows[0].update(here[rule].rows)
            rows[1].update(other.rows)
        for table, own in zip((source, view), rows, strict=True):
            params = {"/".join(table.rows[number].path) for number in own}
            own.update(n for n, row in enumerate(table.rows) if row.mirrors in params)
        return cls(faults, rows)


@dataclasses.dataclass(slots=True)
class _Beginnings:
    """Where a rule's path begins in the rows that it speaks of.

    Attributes:
        head: What stands before the model's own path where it begins at the root; nothing where it
            begins in the model; None where it tells no model's node, or begins at both.
        rows: The rows, by number.
    """

    head: LogicalPath | None
    rows: set[int]

    @classmethod
    def of(
        cls, rows: Sequence[Row], hits: Mapping[int, Sequence[Hit[Rename | Move]]]
    ) -> dict[Rename, _Beginnings]:
        """Those of all renames."""
        heads: dict[Rename, set[LogicalPath | None]] = collections.defaultdict(set)
        numbers: dict[Rename, set[int]] = collections.defaultdict(set)
        for number, several in hits.items():
            row = rows[number]
            for hit in several:
                if isinstance(hit.rule, Rename):
                    tells = bool(row.body) and is_inner(hit, row)
                    heads[hit.rule].add((() if hit.start else row.root) if tells else None)
                    numbers[hit.rule].add(number)
        found: dict[Rename, _Beginnings] = {}
        for rule, several in heads.items():
            found[rule] = cls(several.pop() if len(several) == 1 else None, numbers[rule])
        return found


def _half_rooted(rule: Rename, here: LogicalPath, there: LogicalPath) -> Mismatch:
    """The fault of one of them: what stands at the root of one path is none of the other's."""
    both = dataclasses.replace(rule, source=rule.source[len(here) :], view=rule.view[len(there) :])
    head = "/".join(here or there)
    hint = f"without {head}/ both are paths in the model"
    if not isinstance(rule.source, GlobPath):
        hint = f"{hint}; write {both} in its place"
    found = f"one from the root, below {head}, and one in the model"
    return Mismatch(str(rule), "rule", "two paths in the model", found, hint)
