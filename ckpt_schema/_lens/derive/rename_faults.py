"""Rules that rename or move what is not there, and renames whose two paths begin at two places.

Both are mistakes in the words of a rule. `derivation` has them told before it joins anything: that
the leaves which were meant have no place is a consequence, and is told no second time.
"""

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
    here: set[int] = set()
    for decision in decisions.values():
        here.update(id(hit.rule) for hit in decision.hits)
    there = {id(rule) for rule in names.matched(view.rows)}
    absent: list[Rename | Move] = []
    absent_paths: tuple[list[LogicalPath], list[LogicalPath]] = [], []
    for rule in named:
        if id(rule) not in here:
            absent_paths[0].append(rule.source)
        if id(rule) not in there:
            absent_paths[1].append(rule.view)
        if id(rule) not in here or id(rule) not in there:
            absent.append(rule)
    # What the user may have meant is looked up for all of them at once, and only for them.
    meant = _meant(source, view, absent, names)
    as_keys = _by_keys(source, absent_paths[0]), _by_keys(view, absent_paths[1])
    for rule in named:
        for side, (path, rows) in enumerate(((rule.source, here), (rule.view, there))):
            table = (source, view)[side]
            # An empty path is the root, which every layout has.
            if not path or id(rule) in rows:
                continue
            words = f"first the words of {source.name}, then those of {view.name}"
            hint = f"{words}: {meant[rule]}" if rule in meant else ""
            if not hint and path in as_keys[side]:
                own = "/".join(as_keys[side][path])
                hint = (
                    f"that is where {table.name} stores it; rules say its path in the model, {own}"
                )
            yield missing_paths.fault(rule, path, table, hint=hint)


def _meant(
    source: Layout, view: Layout, wrong: Sequence[Rename | Move], names: Names
) -> dict[Rename | Move, Rename]:
    """For rules in the words of the other side, as another rule renames it: the same in the right words.

    Beside ``rename("enc", "encoder")`` a rule for ``encoder/wi`` of the source means ``enc/wi``.
    """
    attempts: dict[Rename | Move, list[Rename]] = {}
    olds: set[LogicalPath] = set()
    news: set[LogicalPath] = set()
    for rule in wrong:
        if not isinstance(rule, Rename):
            continue
        for old in (rule.source, *names.uncalled(rule.source)):
            for new in (rule.view, names.called(rule.view)):
                attempts.setdefault(rule, []).append(Rename(old, new))
                olds.add(old)
                news.add(new)
    # All of them are looked up at once: layouts are long, and rules may be many.
    left, right = standing(source, olds), standing(view, news)
    meant: dict[Rename | Move, Rename] = {}
    for rule, several in attempts.items():
        for attempt in several:
            if attempt.source in left and attempt.view in right:
                meant[rule] = attempt
                break
    return meant


def _by_keys(table: Layout, wanted: Sequence[LogicalPath]) -> dict[LogicalPath, LogicalPath]:
    """The path in the model of what some paths are the keys of: so it is stored, and rules call it otherwise.

    Of a leaf with the key ``transformer.h.0.attn`` and the path ``layers[]/attn`` a rule may say the first.
    """
    keys_of_rules = {path for path in wanted if path}
    by_keys: dict[LogicalPath, LogicalPath] = {}
    for row in table.rows if keys_of_rules else ():
        if row.body is None or row.mirrors:
            continue
        keys = tuple(map(str, row.key))
        for end in range(len(keys), 0, -1):
            # A node stands where both go on alike: below it keys and path have the same names.
            below = keys[end:]
            cut = len(row.path) - len(below)
            is_node = cut > row.body and path_names(row.path[cut:]) == below
            if is_node and keys[:end] in keys_of_rules:
                by_keys.setdefault(keys[:end], row.path[row.body : cut])
    return by_keys


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
        at_root: list[Rename] = []
        in_model: list[Rename] = []
        for rule, beginnings in here.items():
            if beginnings.head is not None:
                (at_root if beginnings.head else in_model).append(rule)
        faults: list[Mismatch] = []
        rows: tuple[set[int], set[int]] = set(), set()
        # Nearly all lenses end here: the view's rows are not looked at in vain.
        if not at_root and not in_model:
            return cls(faults, rows)
        there = _Beginnings.of(view.rows, names.views.along(view.rows))
        for rule in (*at_root, *in_model):
            head, other = here[rule].head or (), there.get(rule)
            if other is None or other.head is None or bool(other.head) == bool(head):
                continue
            faults.append(_half_rooted(rule, head, other.head))
            rows[0].update(here[rule].rows)
            rows[1].update(other.rows)
        for table, of_side in zip((source, view), rows, strict=True):
            _add_mirrors(table, of_side)
        return cls(faults, rows)


def _add_mirrors(table: Layout, numbers: set[int]) -> None:
    """Adds to the numbers of some rows those of the rows that mirror them."""
    params = {"/".join(table.rows[number].path) for number in numbers}
    for number, row in enumerate(table.rows):
        if row.mirrors in params:
            numbers.add(number)


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
                if not isinstance(hit.rule, Rename):
                    continue
                numbers[hit.rule].add(number)
                # Outside of a model, and of a rule that ends before it begins, nothing can be told.
                if row.body and is_inner(hit, row):
                    heads[hit.rule].add(() if hit.start else row.root)
                else:
                    heads[hit.rule].add(None)
        by_rule: dict[Rename, _Beginnings] = {}
        for rule, beginnings in heads.items():
            head = beginnings.pop() if len(beginnings) == 1 else None
            by_rule[rule] = cls(head, numbers[rule])
        return by_rule


def _half_rooted(rule: Rename, here: LogicalPath, there: LogicalPath) -> Mismatch:
    """The fault of one of them: what stands at the root of one path is none of the other's."""
    both = dataclasses.replace(rule, source=rule.source[len(here) :], view=rule.view[len(there) :])
    head = "/".join(here or there)
    hint = f"without {head}/ both are paths in the model"
    # The user wrote a glob, and not the rule for one node that it has become here.
    if not isinstance(rule.source, GlobPath):
        hint = f"{hint}; write {both} in its place"
    found = f"one from the root, below {head}, and one in the model"
    return Mismatch(str(rule), "rule", "two paths in the model", found, hint)
