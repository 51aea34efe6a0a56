"""Rules that match nothing, or change nothing: what a user wrote is never ignored."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Container, Iterator, Mapping, Sequence

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts import paths
from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.table import Layout, Series
from ckpt_schema._lens import expressions
from ckpt_schema._lens.axis_rules import Grown, Padding, Repeated, Reverse
from ckpt_schema._lens.derive.joins import Join
from ckpt_schema._lens.derive.leaf_rules import PaddedAxis, Told
from ckpt_schema._lens.derive.names import Names
from ckpt_schema._lens.derive.relations import applies, stripped
from ckpt_schema._lens.derive.scope import GlobPath, Scope, Spoken, standing
from ckpt_schema._lens.derive.ties import originals
from ckpt_schema._lens.rules import (
    Apart,
    Fuse,
    Private,
    RawKey,
    Rename,
    Rule,
    Tie,
)
from ckpt_schema._lens.value_rules import Factor, Offset, Rounding
from ckpt_schema.errors import Mismatch

__all__ = ["Contested", "Unmatched", "idle", "partnered", "without_spare_casts"]


def idle(
    source: Layout,
    view: Layout,
    rules: Sequence[Rule],
    names: Names,
    joins: Sequence[Join],
    divided: Container[object],
    known: set[str],
) -> Iterator[Mismatch]:
    """The rules that do nothing.

    Args:
        source: The source's layout.
        view: The view's layout.
        rules: The rules.
        names: Those that rename or move.
        joins: What was joined by them.
        divided: The rules by which parts are one leaf.
        known: Paths and rules that have a fault already.
    """
    yield from _idle_keys((source, view), rules, joins, known)
    yield from _idle_ties(source, view, rules)
    sound = _of_sound_rows(source, view, rules, known) if known else rules
    yield from _unsaid((source, view), sound, names, joins)
    if not known:
        yield from _unordered(rules, joins)
    yield from _undivided(rules, divided)
    yield from _unsized((source, view), rules)


def _unsized(tables: tuple[Layout, Layout], rules: Sequence[Rule]) -> Iterator[Mismatch]:
    """Factors of dims that neither layout has."""
    known = {name: None for table in tables for name in sorted(table.names())}
    for rule in rules:
        if not isinstance(rule, Factor) or not isinstance(rule.factor, str):
            continue
        for name in sorted(expressions.dims_in(rule.factor) - known.keys()):
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"near: {near[0]}" if near else "print the layouts to see their dims"
            expected = f"a dim of {tables[0].name} or {tables[1].name}"
            yield Mismatch(str(rule), "rule", expected, name, hint)


def _of_sound_rows(
    source: Layout, view: Layout, rules: Sequence[Rule], known: set[str]
) -> list[Rule]:
    """Without the rules that have a fault already, or whose leaves have: it says more than that they do nothing.

    But a padding of dims that no leaf has is a fault of its own, and often the reason for the other.
    """
    rules = [rule for rule in rules if str(rule) not in known]
    said = [rule for rule in rules if isinstance(rule, _CHANGES)]
    if not said:
        return rules
    scope = Scope((rule.path, rule) for rule in said)
    faulty = scope.matched(row for row in view.rows if "/".join(row.path) in known)
    rows = [*source.rows, *view.rows]
    axes = {dim for row in rows for dim in row.all_dims}
    dropped: set[int] = set()
    for number, rule in enumerate(said):
        misnamed = isinstance(rule, (Padding, Grown)) and not {rule.small, rule.large} <= axes
        if number in faulty and not misnamed:
            dropped.add(id(rule))
    return [rule for rule in rules if id(rule) not in dropped]


def _idle_keys(
    tables: tuple[Layout, Layout], rules: Sequence[Rule], joins: Sequence[Join], known: set[str]
) -> Iterator[Mismatch]:
    """Raw keys that are none."""
    keys = Scope((rule.path, rule) for rule in rules if isinstance(rule, RawKey))
    if not keys:
        return
    source, view = (table.rows for table in tables)
    pairs = [(source[here], view[there]) for one in joins for here, there in one.pairs]
    used = keys.matched(b for a, b in pairs if a.leaf.is_key != b.leaf.is_key)
    used |= keys.matched(row for row in view if "/".join(row.path) in known)
    for number, rule in enumerate(rule for rule in rules if isinstance(rule, RawKey)):
        if number not in used:
            expected = "a key on one side and raw data on the other"
            yield Mismatch(str(rule), "rule", expected, "none", "drop the rule")


def _idle_ties(source: Layout, view: Layout, rules: Sequence[Rule]) -> Iterator[Mismatch]:
    """Ties of leaves that both sides have, or none."""
    ties = [rule for rule in rules if isinstance(rule, Tie)]
    scope = Scope((rule.copy, rule) for rule in ties)
    tied: list[tuple[str, set[int]]] = []
    for table in (source, view):
        copies = originals(table, scope).values()
        tied.append((table.name, {hit.number for hits in copies for hit, _ in hits}))
    for number, rule in enumerate(ties):
        several = [name for name, used in tied if number in used]
        if len(several) != 1:
            both = f"leaves at {'/'.join(rule.copy)} and at {'/'.join(rule.of)}"
            expected = f"{both} of one side, which the other stores once"
            hint = (
                "drop the rule: both sides have both"
                if several
                else "print the layouts to see their paths"
            )
            yield Mismatch(str(rule), "rule", expected, " and ".join(several) or "none", hint)


@dataclasses.dataclass(frozen=True, slots=True)
class Contested:
    """Leaves that a rule calls private, and that have a partner which is never absent.

    Attributes:
        pairs: The numbers of both rows, with the rule.
        spelled: For each rule, the key paths of one such leaf on both sides, and how many there are.
    """

    pairs: Mapping[tuple[int, int], Private]
    spelled: Mapping[Private, tuple[str, str, int]]

    def faults(self) -> Iterator[Mismatch]:
        """A fault for each of the rules."""
        for rule, (left, right, count) in self.spelled.items():
            parted = Apart(rule.path, rule.default)
            more = f" (and {count - 1} more)" if count > 1 else ""
            both = f"{left}, which both sides have"
            if left != right:
                both = f"{left} and {right}, which are one leaf"
            is_glob = isinstance(rule.path, GlobPath)
            found = f"none: {both}{more}" if is_glob else f"{both}{more}"
            hint = f"drop the rule, or say {parted} if the two share only their name"
            yield Mismatch(
                str(rule), "rule", "a leaf without a partner", found, hint, rules=(parted,)
            )


def partnered(
    source: Layout,
    view: Layout,
    alone: tuple[Spoken[Private | Apart], Spoken[Private | Apart]],
    pairs: Sequence[tuple[int, int]],
    losers: Container[LogicalPath],
) -> Contested:
    """Those pairs of rows, by number, that a rule calls private.

    Args:
        source: The source's layout.
        view: The view's layout.
        alone: The rules for leaves without a partner that speak of each row of the two.
        pairs: The numbers of rows that are one leaf.
        losers: The paths of the source's rows whose name in the view others have: of these a rule may speak.
    """
    # Such a rule speaks of what has lost its name: of a node, not of its leaves that no other took the name of.
    about_losers: set[int] = set()
    for number, hits in alone[0].items():
        if source.rows[number].path in losers:
            about_losers.update(hit.number for hit in hits)
    contested: dict[tuple[int, int], Private] = {}
    spelled: dict[Private, tuple[str, str, int]] = {}
    touched = (pair for pair in pairs if pair[0] in alone[0] or pair[1] in alone[1])
    for pair in touched:
        rows = source.rows[pair[0]], view.rows[pair[1]]
        there = () if rows[1].path in losers else alone[1].get(pair[1], ())
        over = (*alone[0].get(pair[0], ()), *there)
        said = {
            hit.number: hit.rule
            for hit in over
            if isinstance(hit.rule, Private) and hit.number not in about_losers
        }
        if not said or any(row.optional for row in rows):
            continue
        for rule in said.values():
            if not isinstance(rule.path, GlobPath):  # that is meant for those without a partner
                contested[pair] = rule
        for rule in said.values():
            left, right, count = spelled.get(rule, ("", "", 0))
            if not count:
                left, right = (paths.format_path(row.key) for row in rows)
            spelled[rule] = left, right, count + 1
    return Contested(contested, spelled)


def _unsaid(
    tables: tuple[Layout, Layout], rules: Sequence[Rule], names: Names, joins: Sequence[Join]
) -> Iterator[Mismatch]:
    """Rules for the values of leaves that change none."""
    said = [rule for rule in rules if isinstance(rule, _CHANGES)]
    used: set[int] = set()
    for one in joins if said else ():
        changes = [rule for rule in one.told.rules if isinstance(rule, _CHANGES)]
        if not changes:
            continue
        rows = [(tables[0].rows[here], tables[1].rows[there]) for here, there in one.pairs]
        pads = [rule for rule in one.told.rules if isinstance(rule, Padding)]
        fills = tuple(PaddedAxis.of(rule.small, rule.large, rule.fill) for rule in pads)
        bare = Told(fills=fills)
        cut = [(stripped(before, bare), stripped(after, bare)) for before, after in rows]
        for rule in changes:
            if any(applies(rule, both) for both in (*rows, *cut)):
                used.add(id(rule))
    unused = [rule for rule in said if id(rule) not in used]
    in_new_words = {id(rule): names.called(rule.path) for rule in unused}
    there = standing(tables[1], in_new_words.values())
    for rule in unused:
        hint, path = "print the layouts to see their dims", in_new_words[id(rule)]
        if path != rule.path and path in there:
            meant = dataclasses.replace(rule, path=path)
            hint = f"it is in the words of {tables[1].name}: {meant}"
        expected = f"{_changed(rule)}, at {'/'.join(rule.path)} or below"
        yield Mismatch(str(rule), "rule", expected, "none", hint)


def without_spare_casts(
    tables: tuple[Layout, Layout], rules: Sequence[Rule], joins: Sequence[Join]
) -> list[Rule]:
    """The rules, but for casts of leaves of any float that turned out to be of one dtype on both sides."""
    used: set[int] = set()
    for one in joins:
        for here, there in one.pairs:
            leaf, other = tables[0].rows[here].leaf, tables[1].rows[there].leaf
            if leaf.is_open or other.is_open or leaf.dtype != other.dtype:
                used.update(id(rule) for rule in one.told.rules)
    return [rule for rule in rules if not isinstance(rule, Rounding) or id(rule) in used]


_Change = Reverse | Padding | Grown | Repeated | Factor | Offset | Rounding
_CHANGES = (Reverse, Padding, Grown, Repeated, Factor, Offset, Rounding)


def _changed(rule: _Change) -> str:
    """What a rule is for."""
    if isinstance(rule, Reverse):
        return f"a leaf with an axis {dims_.format_dim(rule.dim)}"
    if isinstance(rule, Rounding):
        return "a leaf of floats whose dtype is another one on the other side"
    if isinstance(rule, (Factor, Offset)):
        return "a leaf of floats"
    if isinstance(rule, Repeated):
        return f"a leaf with a factor {rule.times} on one side alone"
    small, large = map(dims_.format_dim, (rule.small, rule.large))
    return f"a leaf with {small} on one side and {large} on the other"


def _unordered(rules: Sequence[Rule], joins: Sequence[Join]) -> Iterator[Mismatch]:
    """Rules that say the order of axes of no leaf that is one on both sides."""
    ordered = [rule for rule in rules if isinstance(rule, Rename) and rule.axes is not None]
    used = {rule for one in joins for rule in one.told.rules} if ordered else set[Rule]()
    for rule in ordered:
        if rule not in used:
            hint = "of parts of a leaf, declare the axes with named dims"
            expected = "a leaf that is one leaf on both sides"
            yield Mismatch(str(rule), "rule", expected, "none that it orders", hint)


def _undivided(rules: Sequence[Rule], used: Container[object]) -> Iterator[Mismatch]:
    """Rules that make parts one where there are none."""
    for rule in rules:
        if isinstance(rule, (Fuse, Series)) and rule not in used:
            paths_ = rule.parts if isinstance(rule, Fuse) else rule.members
            expected = f"leaves below {' and '.join('/'.join(path) for path in paths_)} of one side, which the other has as one"
            yield Mismatch(
                str(rule), "rule", expected, "none", "print the layouts to see their paths"
            )


class Unmatched:
    """The faults of rules for paths that no row has.

    What is near is looked up for the first few of them.
    """

    def __init__(self) -> None:
        """Nothing is looked up yet."""
        self._left = 20  # a look-up compares a path with all of a layout
        self._paths: dict[tuple[int, tuple[int, ...]], list[str]] = {}
        self._slashes: dict[int, list[LogicalPath]] = {}

    def fault(self, rule: Rule, path: LogicalPath, *tables: Layout, hint: str = "") -> Mismatch:
        """The fault of a rule for a path that no row of some layouts has.

        ``hint`` where a cure is known.
        """
        text = "/".join(path)
        hint = hint or self._slashed(text, tables) or ""
        close = None if hint else self._close(text, len(path), tables)
        if close:
            hint = f"near: {close}"
        elif not hint:
            hint = "logical paths are chains of attribute names; print the layout to see them"
        names = " or ".join(dict.fromkeys(table.name for table in tables))
        return Mismatch(str(rule), "rule", f"a leaf of {names} at {text} or below", "none", hint)

    def _slashed(self, text: str, tables: Sequence[Layout]) -> str | None:
        """Why a path names nothing, though it reads like one that is there: that has a key in quotes."""
        for table in tables:
            if id(table) not in self._slashes:
                bodies = [row.model_path for row in table.rows]
                quoted = (path for path in bodies if any("'" in one for one in path))
                self._slashes[id(table)] = list(quoted)
            for path in self._slashes[id(table)]:
                if "/".join(map(paths.unquoted, path)).startswith(text):
                    key = next(segment for segment in path if "'" in segment)
                    return f"one key that holds a slash is written in quotes: {key}"
        return None

    def _close(self, text: str, length: int, tables: Sequence[Layout]) -> str | None:
        """The path as long as a rule's that is the most like it."""
        if not self._left:
            return None
        self._left -= 1
        key = length, tuple(id(table) for table in tables)
        if key not in self._paths:
            rows = [row for table in tables for row in table.rows]
            others = {"/".join(row.model_path[:length]) for row in rows}
            self._paths[key] = sorted(others)
        return next(iter(difflib.get_close_matches(text, self._paths[key], n=1)), None)
