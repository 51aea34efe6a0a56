"""Rules that speak of many leaves: globs and Variable types, each replaced by a rule for every node that it means.

``*`` is one segment of a logical path or a part of one, ``**`` any number of segments; what stands
in quotes is literal. All patterns are looked up together, in one walk of each layout: they are one
trie, and a node of the layout knows how far each of them has come. So the work grows with the
leaves and with the rules, and not with their product.
"""

from __future__ import annotations

import collections
import dataclasses
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ckpt_schema._layouts.paths import LogicalPath, named, unquoted
from ckpt_schema._layouts.table import Layout, Row
from ckpt_schema._lens.derive.scope import GlobPath, Scope
from ckpt_schema._lens.fold_rules import Adapter, Dequantize, Total
from ckpt_schema._lens.rules import (
    Apart,
    Fuse,
    Move,
    Private,
    Rename,
    Reset,
    Rule,
    Tie,
    VariableKind,
)
from ckpt_schema.errors import Mismatch

__all__ = ["as_written", "by_node"]

_DEEP = "**"


def _is_star(segment: str) -> bool:
    """Whether a segment stands for several."""
    return "*" in segment and not segment.startswith("'")


def _is_many(path: LogicalPath) -> bool:
    return any(isinstance(segment, VariableKind) or _is_star(segment) for segment in path)


@dataclasses.dataclass(frozen=True, slots=True)
class _Glob:
    """A rule for many leaves, with the path of it that is looked up.

    Attributes:
        rule: The rule.
        field: What it calls that path.
        others: What it calls the paths that have the same stars.
        sides: Where it is looked up: in the source (0), in the view (1), in both.
        at_root: Whether its path is one from the root, and not also one in the model.
    """

    rule: Rule
    field: str
    others: tuple[str, ...]
    sides: tuple[int, ...]
    at_root: bool

    @property
    def path(self) -> LogicalPath:
        """The path that is looked up."""
        return getattr(self.rule, self.field)

    def paths(self) -> Iterator[LogicalPath]:
        """The paths that have the same stars."""
        for name in self.others:
            value: Any = getattr(self.rule, name)
            yield from value if value and isinstance(value[0], tuple) else [value]

    def fault(self) -> Mismatch | None:
        """What is wrong with its stars."""
        counts = {_stars(path) for path in self.paths()}
        own = _stars(self.path)
        if not self.others or (counts == {own} and max(own) < 2):
            return None
        expected = "the same stars in each path, at most one * and one **"
        hint = "what a star stands for in the first path, it stands for in the others"
        return Mismatch(str(self.rule), "rule", expected, "others", hint)

    def at(self, path: LogicalPath, called: Scope[Rename]) -> Rule:
        """The rule for one of its nodes.

        ``called`` is what the nodes above are called in the view.
        """
        known = len([s for s in self.path if not isinstance(s, VariableKind) and not _is_star(s)])
        fields: dict[str, Any] = {
            self.field: GlobPath(path, known, by_depth=isinstance(self.rule, Rename))
        }
        if self.others:
            deep, part = _captured(self.path, path)
            # What ** stands for has a name of its own in the view where a rule renames it there.
            if isinstance(self.rule, Rename) and self.path[0] == self.rule.view[0] == _DEEP:
                above = called.prefixes(deep)[:1]
                for hit in above:
                    deep = (*hit.rule.view, *deep[hit.end :])
            for name in self.others:
                value: Any = getattr(self.rule, name)
                several = bool(value) and isinstance(value[0], tuple)
                filled = [_filled(one, deep, part) for one in (value if several else [value])]
                fields[name] = tuple(filled) if several else filled[0]
        if isinstance(self.rule, Reset):
            return Reset(**fields)
        return dataclasses.replace(self.rule, **fields)


def _globs(rule: Rule) -> Iterator[_Glob]:
    """The paths of a rule that are looked up, where it is one for many leaves."""
    if isinstance(rule, Reset):
        for side, name in enumerate(("source", "view")):
            if _is_many(getattr(rule, name) or ()):
                yield _Glob(rule, name, (), (side,), at_root=True)
        return
    glob: _Glob | None = None
    if isinstance(rule, (Rename, Move)):
        glob = _Glob(rule, "source", ("view",), (0,), at_root=isinstance(rule, Move))
    elif isinstance(rule, (Fuse, Total)):
        glob = _Glob(rule, "whole", ("parts",), (0, 1), at_root=False)
    elif isinstance(rule, (Dequantize, Adapter)):
        others = ("scale",) if isinstance(rule, Dequantize) else ("a", "b")
        glob = _Glob(rule, "path", others, (0, 1), at_root=False)
    elif isinstance(rule, Tie):
        glob = _Glob(rule, "copy", ("of",), (0, 1), at_root=False)
    elif hasattr(rule, "path") and hasattr(rule, "__str__"):
        sides = (0, 1) if isinstance(rule, (Private, Apart)) else (1,)
        glob = _Glob(rule, "path", (), sides, at_root=False)
    if glob is not None and any(map(_is_many, (glob.path, *glob.paths()))):
        yield glob


def by_node(
    source: Layout, view: Layout, rules: Sequence[Rule]
) -> tuple[list[Rule], dict[str, list[str]], list[Mismatch]]:
    """Rules, those for many leaves replaced by one for each of their nodes.

    Args:
        source: The source's layout.
        view: The view's layout.
        rules: The rules, as they were given.

    Returns:
        The rules; those that stand for each rule for many leaves; and the faults of those that
        match nothing, or that have other stars in one path than in another.
    """
    by_rule = {number: [*_globs(rule)] for number, rule in enumerate(rules)}
    globs = [one for several in by_rule.values() for one in several]
    if not globs:
        return [*rules], {}, []
    faults = [fault for one in globs if (fault := one.fault()) is not None]
    wrong = {fault.path for fault in faults}
    sound = [one for one in globs if str(one.rule) not in wrong]
    met: dict[int, dict[LogicalPath, None]] = collections.defaultdict(dict)
    for side, table in enumerate((source, view)):
        _look_up(table, [one for one in sound if side in one.sides], met)
    # A rule for what is in leaves may speak of the parts that the view has in one leaf.
    _look_up(source, [one for one in sound if one.sides == (1,) and id(one) not in met], met)
    called = _called(rules, sound, met)
    single: list[Rule] = []
    written: dict[str, list[str]] = {}
    for number, rule in enumerate(rules):
        several = by_rule[number]
        if not several:
            single.append(rule)
        elif isinstance(rule, Reset):
            # A reset may have a glob for one side and a plain path for the other: that one stays.
            kept = {n: p for n in ("source", "view") if (p := getattr(rule, n)) and not _is_many(p)}
            single += [Reset(**kept)] if kept else []
        for one in several:
            made = [one.at(path, called) for path in met.get(id(one), ())]
            single += made
            written.setdefault(str(rule), []).extend(map(str, made))
            if not made and str(rule) not in wrong:
                faults.append(_unmatched(one, (source, view)))
    return single, written, faults


def _called(
    rules: Iterable[Rule], globs: Sequence[_Glob], met: Mapping[int, Iterable[LogicalPath]]
) -> Scope[Rename]:
    """What nodes are called in the view, by the rules for one node and by those for many, the nodes above first."""
    named_as: list[Rename] = []
    several = [one for one in globs if isinstance(one.rule, Rename)]
    many = {id(one.rule) for one in several}
    named_as += [rule for rule in rules if isinstance(rule, Rename) and id(rule) not in many]
    taken = {rule.source for rule in named_as}
    scope = Scope((rule.source, rule) for rule in named_as)
    pairs = [(path, one) for one in several for path in met.get(id(one), ()) if path not in taken]
    # The name of a node is built on those of the nodes above it, so these come first.
    for depth in sorted({len(path) for path, _ in pairs}):
        for path, one in pairs:
            if len(path) == depth:
                rule = one.at(path, scope)
                assert isinstance(rule, Rename)
                named_as.append(rule)
        scope = Scope((rule.source, rule) for rule in named_as)
    return scope


def _unmatched(one: _Glob, tables: Sequence[Layout]) -> Mismatch:
    names = " or ".join(dict.fromkeys(tables[side].name for side in one.sides))
    where = "/".join(one.path)
    hint = "* is one segment or a part of one, ** any number of them; print the layout to see its paths"
    if isinstance(one.path[0], VariableKind):
        hint = "print the layout to see the types of its Variables"
    return Mismatch(str(one.rule), "rule", f"leaves of {names} at {where}", "none", hint)


def as_written(
    faults: Iterable[Mismatch], written: Mapping[str, Sequence[str]]
) -> Iterator[Mismatch]:
    """Faults, those of rules that stand for one for many leaves under the name of that one, and once.

    That one of them does nothing is no fault: it is one where all of them do nothing.
    """
    origins = {made: rule for rule, several in written.items() for made in several}
    idle: dict[str, dict[str, Mismatch]] = {}
    told: set[tuple[str, str]] = set()
    for fault in faults:
        rule = origins.get(fault.path)
        other = fault.found.removesuffix(_TOO)
        if other in origins and other != fault.found:
            fault = dataclasses.replace(fault, found=origins[other] + _TOO)
            if origins[other] == rule:
                continue  # the deeper one wins
        if rule is None:
            yield fault
        elif fault.found.startswith("none"):
            idle.setdefault(rule, {})[fault.path] = fault
        elif (rule, fault.found) not in told:
            told.add((rule, fault.found))
            yield dataclasses.replace(fault, path=rule)
    for rule, each in idle.items():
        if len(each) == len({*written[rule]}):
            yield dataclasses.replace(next(iter(each.values())), path=rule, rules=())


_TOO = " too"  # as two rules that contradict one another are told of


# --- the stars of a pattern  ---


def _stars(path: LogicalPath) -> tuple[int, int]:
    """How many ``*`` and how many ``**`` there are; a Variable type is as good as a star."""
    deep = sum([segment == _DEEP for segment in path])
    single = sum([s.count("*") for s in path if _is_star(s) and s != _DEEP])
    kinds = sum([isinstance(segment, VariableKind) for segment in path])
    return single + 2 * kinds, deep


def _captured(pattern: LogicalPath, path: LogicalPath) -> tuple[LogicalPath, str]:
    """What ``**`` and ``*`` stand for in one path."""
    surplus = len(path) - len(pattern) + 1 if _DEEP in pattern else 0
    deep: LogicalPath = ()
    part, at = "", 0
    for segment in pattern:
        if segment == _DEEP:
            deep = path[at : at + surplus]
            at += surplus
            continue
        if segment == "*":
            part = path[at]
        elif _is_star(segment):
            before, after = segment.split("*")
            text = unquoted(path[at])
            part = text[len(before) : len(text) - len(after)]
        at += 1
    return deep, part


def _filled(pattern: LogicalPath, deep: LogicalPath, part: str) -> LogicalPath:
    """A path with what the stars stand for in their places."""
    segments: list[str] = []
    for segment in pattern:
        if segment == _DEEP:
            segments += deep
        elif segment == "*" or not _is_star(segment):
            segments.append(part if segment == "*" else segment)
        else:
            text = segment.replace("*", part if part[:1] != "'" else unquoted(part))
            tail = "[]" if text.endswith("[]") else ""
            segments.append(named(text.removesuffix("[]")) + tail)
    return tuple(segments)


# --- looking patterns up  ---


class _State:
    """How far a pattern has come.

    Attributes:
        literal: What comes after a segment that is one of these.
        parts: What comes after a segment that begins and ends so, by the lengths of both, then by
            both.
        deep: What comes after any number of segments.
        stays: Whether it is such a state itself.
        globs: The rules whose path ends here.
    """

    __slots__ = ("deep", "globs", "literal", "parts", "stays")

    def __init__(self, *, stays: bool = False) -> None:
        self.literal: dict[str, _State] = {}
        self.parts: dict[tuple[int, int], dict[tuple[str, str], list[tuple[str, _State]]]] = {}
        self.deep: _State | None = None
        self.stays = stays
        self.globs: list[_Glob] = []

    def after(self, segment: str) -> _State:
        """The state after one segment of a pattern."""
        if segment == _DEEP:
            if self.stays:
                return self
            self.deep = self.deep or _State(stays=True)
            return self.deep
        if not _is_star(segment):
            return self.literal.setdefault(segment, _State())
        ends = segment.split("*")
        before, after = ends[0], ends[-1]
        alike = self.parts.setdefault((len(before), len(after)), {})
        several = alike.setdefault((before, after), [])
        for text, state in several:
            if text == segment:
                return state
        several.append((segment, _State()))
        return several[-1][1]

    def steps(self, segment: str) -> Iterator[_State]:
        """The states after one segment of a path."""
        if self.stays:
            yield self
        literal = self.literal.get(segment)
        if literal is not None:
            yield literal
        text = unquoted(segment) if self.parts else ""
        for (head, tail), alike in self.parts.items():
            if len(text) < head + tail:
                continue
            for pattern, state in alike.get((text[:head], text[len(text) - tail :]), ()):
                if pattern.count("*") == 1 or _compiled(pattern).fullmatch(text):
                    yield state


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, pattern.split("*"))), re.DOTALL)


def _closed(states: Iterable[_State]) -> dict[int, _State]:
    """States, and those that no further segment leads to, by their ids."""
    by_id: dict[int, _State] = {}
    for state in states:
        by_id[id(state)] = state
        if state.deep is not None:
            by_id[id(state.deep)] = state.deep
    return by_id


_Tree = dict[str, Any]
"""The nodes below a node, by segment."""


def _look_up(
    table: Layout, globs: Sequence[_Glob], met: dict[int, dict[LogicalPath, None]]
) -> None:
    """Notes the nodes of a layout that globs mean, by the glob."""
    # Mirrors are left out: what a rule says of a param, it says of what mirrors it.
    rows = [row for row in table.rows if not row.mirrors]
    inner = [row.model_path for row in rows]
    others: list[_Glob] = []
    for one in globs:
        kind = one.path[0]
        if not isinstance(kind, VariableKind):
            others.append(one)
            continue
        for row in rows:
            if _is_of(row, kind):
                met[id(one)][row.path if one.at_root else row.model_path] = None
    _walk(inner, [one for one in others if not one.at_root], met)
    # From the root a pattern that begins with a star would reach the optimizer state too.
    rooted = [one for one in others if one.at_root or not _is_star(one.path[0])]
    _walk([row.path for row in table.rows], rooted, met)


def _is_of(row: Row, kind: VariableKind) -> bool:
    """Whether a row is of a Variable type: a class, or its name in ``flax.nnx``."""
    own, wanted = _variable_type(row.kind), _variable_type(kind.kind)
    return own is not None and wanted is not None and issubclass(own, wanted)


def _variable_type(kind: object) -> type | None:
    variable = getattr(sys.modules.get("flax.nnx"), kind, None) if isinstance(kind, str) else kind
    return variable if isinstance(variable, type) else None


def _walk(
    paths: Iterable[LogicalPath], globs: Sequence[_Glob], met: dict[int, dict[LogicalPath, None]]
) -> None:
    """Notes the nodes on some paths that globs mean."""
    if not globs:
        return
    tree: _Tree = {}
    for path in paths:
        node = tree
        for segment in path:
            node = node.setdefault(segment, {})
    root = _State()
    for one in globs:
        state = root
        for segment in one.path:
            state = state.after(segment)
        state.globs.append(one)
    stack: list[tuple[LogicalPath, _Tree, dict[int, _State]]] = [((), tree, _closed([root]))]
    while stack:
        above, below, states = stack.pop()
        for segment, inside in below.items():
            path = (*above, segment)
            reached = _closed(s for state in states.values() for s in state.steps(segment))
            for key, state in reached.items():
                if state.stays and key in states and above:
                    continue  # of what ends with ** the first node is meant, and all below it with it
                for one in state.globs:
                    met[id(one)][path] = None
            if reached:
                stack.append((path, inside, reached))
