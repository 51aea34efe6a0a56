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
    """Whether a path means several nodes: of one pattern, or of one Variable type."""
    return _literal(path) < len(path)


def _literal(path: LogicalPath) -> int:
    """How many segments of a path stand for themselves alone."""
    count = 0
    for segment in path:
        if not isinstance(segment, VariableKind) and not _is_star(segment):
            count += 1
    return count


def _is_several(value: Any) -> bool:
    """Whether a field of a rule holds several paths, as the parts of `fuse` and `total`, and not one."""
    return bool(value) and isinstance(value[0], tuple)


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
            yield from value if _is_several(value) else [value]

    def fault(self) -> Mismatch | None:
        """What is wrong with its stars."""
        if not self.others:
            return None
        counts = {_stars(path) for path in self.paths()}
        own = _stars(self.path)
        # With two stars of a kind nobody could say which of them a star in another path is.
        if counts == {own} and max(own) < 2:
            return None
        expected = "the same stars in each path, at most one * and one **"
        hint = "what a star stands for in the first path, it stands for in the others"
        return Mismatch(str(self.rule), "rule", expected, "others", hint)

    def at(self, path: LogicalPath, called: Scope[Rename]) -> Rule:
        """The rule for one of its nodes.

        ``called`` is what the nodes above are called in the view.
        """
        own_path = GlobPath(path, _literal(self.path), by_depth=isinstance(self.rule, Rename))
        fields: dict[str, Any] = {self.field: own_path}
        if self.others:
            deep, part = _captured(self.path, path)
            # What ** stands for has a name of its own in the view where a rule renames it there:
            # of `encoder/wi` it is `encoder`, and with rename("encoder", "enc") that is `enc` there.
            if isinstance(self.rule, Rename) and self.path[0] == self.rule.view[0] == _DEEP:
                longest = called.prefixes(deep)[:1]
                for hit in longest:
                    deep = (*hit.rule.view, *deep[hit.end :])
            for name in self.others:
                value: Any = getattr(self.rule, name)
                if _is_several(value):
                    fields[name] = tuple([_filled(pattern, deep, part) for pattern in value])
                else:
                    fields[name] = _filled(value, deep, part)
        # The other side of a reset is a node of its own, with stars of its own: it is left out here.
        if isinstance(self.rule, Reset):
            return Reset(**fields)
        return dataclasses.replace(self.rule, **fields)


def _globs(rule: Rule) -> Iterator[_Glob]:
    """The paths of a rule that are looked up, where it is one for many leaves."""
    if isinstance(rule, Reset):
        # Each side has nodes of its own to start anew, and either may be left out.
        for side, name in enumerate(("source", "view")):
            if _is_many(getattr(rule, name) or ()):
                yield _Glob(rule, name, (), (side,), at_root=True)
        return
    glob: _Glob | None = None
    if isinstance(rule, (Rename, Move)):
        glob = _Glob(rule, "source", ("view",), (0,), at_root=isinstance(rule, Move))
    elif isinstance(rule, (Fuse, Total)):
        # Either side may have the whole; the parts have its stars, so the whole is what is looked up.
        glob = _Glob(rule, "whole", ("parts",), (0, 1), at_root=False)
    elif isinstance(rule, (Dequantize, Adapter)):
        others = ("a", "b")
        if isinstance(rule, Dequantize):
            others = ("scale", "zero") if isinstance(rule.zero, tuple) else ("scale",)
        glob = _Glob(rule, "path", others, (0, 1), at_root=False)
    elif isinstance(rule, Tie):
        glob = _Glob(rule, "copy", ("of",), (0, 1), at_root=False)
    elif hasattr(rule, "path"):
        # What has no partner stands on either side; a rule for values speaks of the view.
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
    globs_of: list[list[_Glob]] = []  # of each rule, by its number
    sound: list[_Glob] = []
    faults: list[Mismatch] = []
    for rule in rules:
        globs_of.append([*_globs(rule)])
        for glob in globs_of[-1]:
            fault = glob.fault()
            if fault is None:
                sound.append(glob)
            else:
                faults.append(fault)
    if not any(globs_of):
        return [*rules], {}, []
    wrong = {fault.path for fault in faults}
    # By the id of a glob, the paths of its nodes: both sides may have a node, and it counts once.
    met: dict[int, dict[LogicalPath, None]] = collections.defaultdict(dict)
    for side, table in enumerate((source, view)):
        _look_up(table, [glob for glob in sound if side in glob.sides], met)
    # A rule for what is in leaves may speak of the parts that the view has in one leaf.
    unmet: list[_Glob] = []
    for glob in sound:
        if glob.sides == (1,) and id(glob) not in met:
            unmet.append(glob)
    _look_up(source, unmet, met)
    called = _called(rules, sound, met)
    single: list[Rule] = []
    written: dict[str, list[str]] = {}
    # The order of the rules stays: of two that contradict one another the later one has the fault.
    for rule, globs in zip(rules, globs_of, strict=True):
        if not globs:
            single.append(rule)
        elif isinstance(rule, Reset):
            single += _plain_reset(rule)
        for glob in globs:
            made = [glob.at(path, called) for path in met.get(id(glob), ())]
            single += made
            written.setdefault(str(rule), []).extend(map(str, made))
            if not made and str(rule) not in wrong:
                faults.append(_unmatched(glob, (source, view)))
    return single, written, faults


def _plain_reset(rule: Reset) -> list[Reset]:
    """What stays of a reset that has a glob for one side: that for the other, where it is a plain path."""
    if rule.source and not _is_many(rule.source):
        return [Reset(source=rule.source)]
    if rule.view and not _is_many(rule.view):
        return [Reset(view=rule.view)]
    return []


def _called(
    rules: Iterable[Rule], globs: Sequence[_Glob], met: Mapping[int, Iterable[LogicalPath]]
) -> Scope[Rename]:
    """What nodes are called in the view, by the rules for one node and by those for many, the nodes above first."""
    renaming = [glob for glob in globs if isinstance(glob.rule, Rename)]
    of_many = {id(glob.rule) for glob in renaming}
    renames: list[Rename] = []
    for rule in rules:
        if isinstance(rule, Rename) and id(rule) not in of_many:
            renames.append(rule)
    # A rule for this very node decides over a glob that means it too.
    taken = {rename.source for rename in renames}
    nodes_at: dict[int, list[tuple[LogicalPath, _Glob]]] = {}
    for glob in renaming:
        for path in met.get(id(glob), ()):
            if path not in taken:
                nodes_at.setdefault(len(path), []).append((path, glob))
    scope = _by_source(renames)
    # The name of a node is built on those of the nodes above it, so these come first.
    for depth in sorted(nodes_at):
        for path, glob in nodes_at[depth]:
            rename = glob.at(path, scope)
            assert isinstance(rename, Rename)
            renames.append(rename)
        scope = _by_source(renames)
    return scope


def _by_source(renames: Iterable[Rename]) -> Scope[Rename]:
    return Scope((rename.source, rename) for rename in renames)


def _unmatched(glob: _Glob, tables: Sequence[Layout]) -> Mismatch:
    """The fault of a rule for many leaves that means none."""
    names = " or ".join(dict.fromkeys(tables[side].name for side in glob.sides))
    where = "/".join(glob.path)
    hint = "* is one segment or a part of one, ** any number of them; print the layout to see its paths"
    if isinstance(glob.path[0], VariableKind):
        hint = "print the layout to see the types of its Variables"
    return Mismatch(str(glob.rule), "rule", f"leaves of {names} at {where}", "none", hint)


def as_written(
    faults: Iterable[Mismatch], written: Mapping[str, Sequence[str]]
) -> Iterator[Mismatch]:
    """Faults, those of rules that stand for one for many leaves under the name of that one, and once.

    That one of them does nothing is no fault: it is one where all of them do nothing.
    """
    # By the text of a rule for one node, that of the rule which the user wrote for many.
    origins: dict[str, str] = {}
    for rule, of_nodes in written.items():
        for of_node in of_nodes:
            origins[of_node] = rule
    idle: dict[str, dict[str, Mismatch]] = {}
    told: set[tuple[str, str]] = set()
    for fault in faults:
        rule = origins.get(fault.path)
        # A contradiction names a second rule, and that may be one of many leaves as well.
        other = fault.found.removesuffix(_TOO)
        if other in origins and other != fault.found:
            fault = dataclasses.replace(fault, found=origins[other] + _TOO)
            if origins[other] == rule:
                continue  # the deeper one wins
        if rule is None:
            yield fault
        elif fault.found.startswith("none"):
            # Whether it is a fault shows only when all of the rule's nodes are known.
            idle.setdefault(rule, {})[fault.path] = fault
        elif (rule, fault.found) not in told:
            told.add((rule, fault.found))
            yield dataclasses.replace(fault, path=rule)
    for rule, fault_of in idle.items():
        if len(fault_of) == len({*written[rule]}):
            first = next(iter(fault_of.values()))
            # Its `rules` would say what to write for that node alone.
            yield dataclasses.replace(first, path=rule, rules=())


_TOO = " too"  # as two rules that contradict one another are told of


# --- the stars of a pattern  ---


def _stars(path: LogicalPath) -> tuple[int, int]:
    """How many ``*`` and how many ``**`` there are."""
    single = deep = 0
    for segment in path:
        if isinstance(segment, VariableKind):
            # No other path could say what it stands for: as two stars it is refused beside one.
            single += 2
        elif segment == _DEEP:
            deep += 1
        elif _is_star(segment):
            single += segment.count("*")
    return single, deep


def _captured(pattern: LogicalPath, path: LogicalPath) -> tuple[LogicalPath, str]:
    """What ``**`` and ``*`` stand for in one path.

    Of ``**/w*`` and the path ``encoder/mlp/wi`` it is ``encoder/mlp`` and ``i``.
    """
    # There is one ** at most, so it has all segments that no other one has.
    surplus = len(path) - len(pattern) + 1 if _DEEP in pattern else 0
    deep: LogicalPath = ()
    part, place = "", 0
    for segment in pattern:
        if segment == _DEEP:
            deep = path[place : place + surplus]
            place += surplus
            continue
        if segment == "*":
            part = path[place]
        elif _is_star(segment):
            before, after = segment.split("*")
            text = unquoted(path[place])
            part = text[len(before) : len(text) - len(after)]
        place += 1
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
            # What is put together is quoted as a whole, where it needs that: a list's [] stays outside.
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
            if self.stays:  # two ** side by side mean no more than one
                return self
            self.deep = self.deep or _State(stays=True)
            return self.deep
        if not _is_star(segment):
            return self.literal.setdefault(segment, _State())
        # By what stands before the first star and after the last: two lookups settle nearly all patterns.
        ends = segment.split("*")
        before, after = ends[0], ends[-1]
        alike = self.parts.setdefault((len(before), len(after)), {})
        patterns = alike.setdefault((before, after), [])
        for pattern, state in patterns:
            if pattern == segment:
                return state
        patterns.append((segment, _State()))
        return patterns[-1][1]

    def steps(self, segment: str) -> Iterator[_State]:
        """The states after one segment of a path."""
        if self.stays:
            yield self
        literal = self.literal.get(segment)
        if literal is not None:
            yield literal
        text = unquoted(segment) if self.parts else ""
        for (head, tail), alike in self.parts.items():
            if len(text) < head + tail:  # one letter cannot be of both ends
                continue
            for pattern, state in alike.get((text[:head], text[len(text) - tail :]), ()):
                if pattern.count("*") == 1 or _compiled(pattern).fullmatch(text):
                    yield state


def _compiled(pattern: str) -> re.Pattern[str]:
    """A pattern of several stars: what stands between these has to be looked for."""
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
    in_model: list[_Glob] = []
    from_root: list[_Glob] = []
    for glob in globs:
        kind = glob.path[0]
        if isinstance(kind, VariableKind):
            for row in rows:
                if _is_of(row, kind):
                    met[id(glob)][row.path if glob.at_root else row.model_path] = None
            continue
        if not glob.at_root:
            in_model.append(glob)
        # From the root a pattern that begins with a star would reach the optimizer state too.
        if glob.at_root or not _is_star(kind):
            from_root.append(glob)
    _walk([row.model_path for row in rows], in_model, met)
    _walk([row.path for row in table.rows], from_root, met)


def _is_of(row: Row, kind: VariableKind) -> bool:
    """Whether a row is of a Variable type: a class, or its name in ``flax.nnx``."""
    own, wanted = _variable_type(row.kind), _variable_type(kind.kind)
    return own is not None and wanted is not None and issubclass(own, wanted)


def _variable_type(kind: object) -> type | None:
    # The core imports no framework, and without an import of NNX no row is of one of its types.
    variable = getattr(sys.modules.get("flax.nnx"), kind, None) if isinstance(kind, str) else kind
    return variable if isinstance(variable, type) else None


def _walk(
    paths: Iterable[LogicalPath], globs: Sequence[_Glob], met: dict[int, dict[LogicalPath, None]]
) -> None:
    """Notes the nodes on some paths that globs mean."""
    if not globs:
        return
    # Both the paths and the patterns become tries: what many have in common is looked at once.
    tree: _Tree = {}
    for path in paths:
        node = tree
        for segment in path:
            node = node.setdefault(segment, {})
    root = _State()
    for glob in globs:
        state = root
        for segment in glob.path:
            state = state.after(segment)
        state.globs.append(glob)
    # Each entry: a node's path, what stands below it, and how far the patterns have come at it.
    stack: list[tuple[LogicalPath, _Tree, dict[int, _State]]] = [((), tree, _closed([root]))]
    while stack:
        above, below, states = stack.pop()
        for segment, inside in below.items():
            path = (*above, segment)
            further: list[_State] = []
            for state in states.values():
                further += state.steps(segment)
            reached = _closed(further)
            for key, state in reached.items():
                if state.stays and key in states and above:
                    continue  # of what ends with ** the first node is meant, and all below it with it
                for glob in state.globs:
                    met[id(glob)][path] = None
            if reached:
                stack.append((path, inside, reached))
