"""Which leaves without a partner are one, where that is beyond doubt.

And what each might be where it is not.

What counts is structure: the types of leaves, and which of them stand together in a node. Names
count as they do where leaves are joined: below one node, and below two that are one beyond doubt,
what is called the same is the same. That two names resemble each other says nothing, and neither
does the order of numbers: ``Dense_0`` may well be ``fc2``. So a pair is certain only where each is
the only one that the other can be, and nothing that is known already speaks against it.
"""

from __future__ import annotations

import collections
import dataclasses
import difflib
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts import overlaps, paths
from ckpt_schema._layouts.formats import FORMATS
from ckpt_schema._layouts.leaves import ANY_FLOAT
from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.table import Row
from ckpt_schema._lens.rules import Rename

__all__ = ["Loose", "Partners", "form", "partners", "renames"]

_SIBLING = re.compile(r"(.*[^\d_.-])[_.-]?(0|[1-9]\d*)")
"""A node's name that ends in a number."""

_COMPARED = 200  # leaves on a side; where there are more, candidates stand in their natural order


@dataclasses.dataclass(frozen=True, slots=True)
class Loose:
    """A leaf of the model that has no partner.

    Attributes:
        number: The number of its row.
        row: Its row.
        path: Its path in the model, in the view's words.
        required: Whether it must have a partner: it has no default, and no tree may lack it.
    """

    number: int
    row: Row
    path: LogicalPath
    required: bool


Placed = tuple[Row, LogicalPath, Row]
"""A row of the source, its path in the model in the view's words, and the view's row that it is joined with."""


@dataclasses.dataclass(frozen=True, slots=True)
class Partners:
    """What `partners` found.

    Attributes:
        certain: The number of the view's row, by that of the source's.
        open: For rows of the source, and of the view, that are in no such pair: all that they can
            be, the likeliest first.
    """

    certain: Mapping[int, int]
    open: tuple[Mapping[int, Sequence[Loose]], Mapping[int, Sequence[Loose]]]


def form(row: Row) -> Any:
    """What two rows share if any edit relates them, whatever the order and grouping of their dims."""
    factors = dims_.factors(row.leaf.dims)
    named = sorted(str(factor) for factor in factors if not isinstance(factor, int))
    size = math.prod(factor for factor in factors if isinstance(factor, int))
    repeats = tuple(repeat.size for repeat in row.repeats)
    return row.root, row.leaf.dtype, tuple(named), size, repeats


def partners(left: Sequence[Loose], right: Sequence[Loose], placed: Iterable[Placed]) -> Partners:
    """Judges all pairs of leaves without a partner, for both sides at once.

    Args:
        left: Those of the source.
        right: Those of the view.
        placed: The rows that are joined, and the path of the source's in the view's words.
    """
    forms = _Forms((*left, *right))
    sides = [forms.groups(rows) for rows in (left, right)]
    common = sides[0].keys() & sides[1].keys()
    # Structure proposes, and all that is known disposes: a pair is certain only after both.
    pairs = [*_undisputed(_paired(left, right, forms), sides, forms, placed)]
    certain = {one.number: other.number for one, other in pairs}
    done = certain.keys(), set(certain.values())
    compared = max(len(left), len(right)) <= _COMPARED
    open_: tuple[dict[int, Sequence[Loose]], dict[int, Sequence[Loose]]] = {}, {}
    for kind in common:
        rest = [_without(side[kind], known) for side, known in zip(sides, done, strict=True)]
        for rows, others, candidates in (
            (rest[0], rest[1], open_[0]),
            (rest[1], rest[0], open_[1]),
        ):
            if others:
                candidates |= {row.number: _ordered(row, others, rows, compared) for row in rows}
    return Partners(certain, open_)


def _without(rows: Sequence[Loose], numbers: Collection[int]) -> list[Loose]:
    return [row for row in rows if row.number not in numbers]


class _Forms:
    """A number for each form, so that forms are compared at no cost.

    Where leaves of any float are among the rows, all floats are of one form.
    """

    def __init__(self, rows: Iterable[Loose]) -> None:
        self._numbers: dict[Any, int] = {}
        self._any_float = any(each.row.leaf.is_open for each in rows)

    def number(self, value: Any) -> int:
        """The number of a form, or of the structure of a node."""
        return self._numbers.setdefault(value, len(self._numbers))

    def of(self, row: Row) -> int:
        """The number of a row's form."""
        if self._any_float and row.leaf.dtype in FORMATS:
            row = dataclasses.replace(row, leaf=dataclasses.replace(row.leaf, dtype=ANY_FLOAT))
        return self.number(form(row))

    def groups(self, rows: Sequence[Loose]) -> dict[int, list[Loose]]:
        """Rows by their form."""
        by_form: dict[int, list[Loose]] = {}
        for row in rows:
            by_form.setdefault(self.of(row.row), []).append(row)
        return by_form


def _ordered(
    row: Loose, others: Sequence[Loose], beside: Sequence[Loose], compared: bool
) -> Sequence[Loose]:
    """What a row can be, the likeliest first: as good a guess as any, and never more than that."""
    if not compared or len(others) * len(beside) > _COMPARED:
        return others
    own = "/".join(row.path)

    def unlike(other: Loose) -> tuple[bool, float]:
        ratio = difflib.SequenceMatcher(None, own, "/".join(other.path)).ratio()
        return other.row.leaf != row.row.leaf, -ratio

    return sorted(others, key=unlike)


# --- pairs by structure  ---


class _Node:
    """A node of the tree of leaves without a partner."""

    __slots__ = ("below", "depth", "kind", "leaf", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.below: dict[str, _Node] = {}
        self.leaf: Loose | None = None
        self.depth = 0  # how many segments there are below it at most
        self.kind = -1  # a number for its structure: two nodes of one kind differ in names alone

    def leaves(self) -> Iterator[Loose]:
        """Every leaf at it and below."""
        waiting: list[_Node] = [self]
        while waiting:
            node = waiting.pop()
            if node.leaf is not None:
                yield node.leaf
            waiting += node.below.values()


_Children = Mapping[str, _Node]


def _trees(rows: Sequence[Loose], forms: _Forms) -> dict[LogicalPath, dict[str, _Node]]:
    """The leaves as trees, one for each place where a model can stand."""
    roots: dict[LogicalPath, _Node] = {}
    made: list[_Node] = []
    for row in rows:
        node = roots.setdefault(row.row.root, _Node(""))
        for segment in row.path:
            if segment not in node.below:
                node.below[segment] = _Node(segment)
                made.append(node.below[segment])
            node = node.below[segment]
        node.leaf = row
    for node in reversed(made):  # children before parents
        own = None if node.leaf is None else forms.of(node.leaf.row)
        children = node.below.values()
        node.kind = forms.number((own, *sorted(child.kind for child in children)))
        node.depth = max((1 + child.depth for child in children), default=0)
    return {head: root.below for head, root in roots.items()}


def _paired(
    left: Sequence[Loose], right: Sequence[Loose], forms: _Forms
) -> Iterator[tuple[Loose, Loose]]:
    """Pairs of leaves that structure tells: from the root down, then those that are the only ones of their form.

    Those whose paths spell numbers in two ways are pairs before all others.
    """
    numbered = [*_numbered(left, right, forms)]
    yield from numbered
    left = _without(left, {one.number for one, _ in numbered})
    right = _without(right, {other.number for _, other in numbered})
    trees = [_trees(rows, forms) for rows in (left, right)]
    heads = trees[0].keys() & trees[1].keys()
    waiting: list[tuple[_Children, _Children]] = [(trees[0][h], trees[1][h]) for h in heads]
    paired: tuple[set[int], set[int]] = set(), set()
    while waiting:
        for one, other in _counterparts(*waiting.pop(), waiting, forms):
            paired[0].add(one.number)
            paired[1].add(other.number)
            yield one, other
    ours = forms.groups(_without(left, paired[0]))
    theirs = forms.groups(_without(right, paired[1]))
    for kind in ours.keys() & theirs.keys():
        if len(ours[kind]) == len(theirs[kind]) == 1:
            yield ours[kind][0], theirs[kind][0]


def _numbered(
    left: Sequence[Loose], right: Sequence[Loose], forms: _Forms
) -> Iterator[tuple[Loose, Loose]]:
    """Leaves of layers that differ: one path has the number of a layer in its name, the other below it, in a list."""
    sides: list[dict[object, list[Loose]]] = []
    for rows in (left, right):
        by_path: dict[object, list[Loose]] = {}
        for row in rows:
            spelled = tuple(one for segment in row.path for one in _in_list(segment))
            by_path.setdefault((row.row.root, spelled), []).append(row)
        sides.append(by_path)
    for path, several in sides[0].items():
        both = several + sides[1].get(path, [])
        if len(several) != 1 or len(both) != 2 or forms.of(both[0].row) != forms.of(both[1].row):
            continue
        if len(both[0].path) != len(both[1].path):  # so one of them is of a list
            yield both[0], both[1]


def _in_list(segment: str) -> Sequence[str]:
    """The segments of a numbered sibling, as of an item of a list: ``layers_0`` as ``layers``, ``0``."""
    match = _SIBLING.fullmatch(segment)
    return [segment] if match is None else [match[1], match[2]]


def _counterparts(
    left: _Children, right: _Children, waiting: list[tuple[_Children, _Children]], forms: _Forms
) -> Iterator[tuple[Loose, Loose]]:
    """Which children of two nodes that are one are one.

    Nodes are put to those that are waiting, leaves are yielded.
    """
    rest = dict(left), dict(right)
    pairs = [(left[name], right[name]) for name in left if name in right]
    # One name may be a leaf here and a node there, or leaves of two forms: no counterparts.
    pairs = [(a, b) for a, b in pairs if a.kind == b.kind or (a.below and b.below)]
    for one, _ in pairs:
        del rest[0][one.name], rest[1][one.name]
    kinds = [collections.Counter(node.kind for node in side.values()) for side in rest]
    by_kind = {node.kind: node for node in rest[1].values()}
    for node in list(rest[0].values()):
        if kinds[0][node.kind] == kinds[1][node.kind] == 1:
            other = by_kind[node.kind]
            pairs.append((node, other))
            del rest[0][node.name], rest[1][other.name]
    for one, other in pairs:
        if one.leaf is not None and other.leaf is not None:
            yield one.leaf, other.leaf
        if one.below and other.below:
            waiting.append((one.below, other.below))
    level = _level(*rest, forms)
    if level is not None:
        waiting.append(level)


def _level(left: _Children, right: _Children, forms: _Forms) -> tuple[_Children, _Children] | None:
    """The children to go on with where all that is left on one side stands one level deeper on the other."""
    for one, other, turned in ((left, right, False), (right, left, True)):
        deeper = next(iter(other.values()), None)
        if not one or deeper is None or len(other) > 1 or not deeper.below:
            continue
        if deeper.depth <= max(node.depth for node in one.values()):
            continue
        held = collections.Counter(forms.of(leaf.row) for leaf in deeper.leaves())
        for node in one.values():
            held.subtract(forms.of(leaf.row) for leaf in node.leaves())
        if not any(held.values()):  # both hold the same leaves
            return (deeper.below, one) if turned else (one, deeper.below)
    return None


# --- what speaks against a pair  ---


def _undisputed(
    pairs: Iterable[tuple[Loose, Loose]],
    sides: Sequence[Mapping[int, Sequence[Loose]]],
    forms: _Forms,
    placed: Iterable[Placed],
) -> Iterator[tuple[Loose, Loose]]:
    """The pairs that nothing speaks against.

    A name speaks against a pair where another leaf of the form has it. A node does where it would
    be torn: what is known of its other leaves is that they are in another node there. Numbers do
    where leaves of that outline are joined already, for then all of them may have another number
    there. Marks of repetition do where they alone differ.
    """
    pairs, placed = list(pairs), list(placed)
    numbered = {overlaps.outlined(path) for _, path, _ in placed if any(map(_has_number, path))}
    names = [_last_names(side) for side in sides]
    known = {(_node(before), _node(after)) for before, _, after in placed}
    met: tuple[dict[_Place, set[_Place]], dict[_Place, set[_Place]]] = {}, {}
    for before, after in (*known, *((_node(a.row), _node(b.row)) for a, b in pairs)):
        met[0].setdefault(before, set()).add(after)
        met[1].setdefault(after, set()).add(before)
    for one, other in pairs:
        kind, before, after = forms.of(one.row), one.path, other.path
        nodes = _node(one.row), _node(other.row)
        named = names[1][kind][before[-1]] or names[0][kind][after[-1]]
        is_named = before[-1] != after[-1] and named
        is_torn = nodes not in known and (len(met[0][nodes[0]]) > 1 or len(met[1][nodes[1]]) > 1)
        is_shifted = (
            before != after and overlaps.outlined(before) == overlaps.outlined(after) in numbered
        )
        # A list of stacks and a stack of lists have one name: which of their levels is which, as
        # well as how each is stored, is another matter than what they are called.
        is_regrouped = before != after and paths.path_names(before) == paths.path_names(after)
        against = is_named or is_torn or is_shifted or is_regrouped
        if one.required and other.required and not against:
            yield one, other


def _last_names(
    by_form: Mapping[int, Sequence[Loose]],
) -> dict[int, collections.Counter[str]]:
    """How often each name is that of a leaf of each form."""
    return {
        kind: collections.Counter(row.path[-1] for row in rows) for kind, rows in by_form.items()
    }


_Place = tuple[LogicalPath, LogicalPath]


def _node(row: Row) -> _Place:
    """The node that a row stands in: where its model is, and where in it."""
    body = row.body or 0
    return row.path[:body], row.path[body:-1]


def _has_number(segment: str) -> bool:
    return any(character.isdecimal() for character in segment)


# --- the rules that say so  ---


def renames(
    certain: Mapping[int, int],
    source: Sequence[Row],
    view: Sequence[Row],
    onward: Mapping[int, int],
    given: Collection[LogicalPath],
) -> dict[int, Rename]:
    """The rules that join certain pairs, by the number of the source's row: one for a whole node wherever it may be.

    They can be followed in any order, and some of them alone. So a rule that takes a leaf where it
    does not belong, unless a rule for that leaf is followed first, is left for the next time.

    Args:
        certain: The pairs.
        source: The rows of the source.
        view: Those of the view.
        onward: The rows of the source that are joined, and with which of the view.
        given: Paths that rules rename already.
    """
    if not certain:
        return {}
    judge = _Renames(certain, source, view, onward, given)
    rules: dict[int, Rename] = {}
    for number, other in certain.items():
        for before, after in _spellings(source[number].model_path, view[other].model_path):
            verdict = judge.verdict(before, after)
            if verdict == "later":
                break  # in the next round one rule serves the whole node
            if verdict == "safe":
                rules[number] = Rename(before, after)
                break
    return rules


class _Renames:
    """What a rename would do besides joining the pair that it is for."""

    def __init__(
        self,
        certain: Mapping[int, int],
        source: Sequence[Row],
        view: Sequence[Row],
        onward: Mapping[int, int],
        given: Collection[LogicalPath],
    ) -> None:
        self._certain, self._source, self._view, self._onward = certain, source, view, onward
        self._given = given
        self._taken, self._paired = set(onward.values()), set(certain.values())
        self._below: dict[LogicalPath, list[int]] = {}
        for number, row in enumerate(source):
            path = row.model_path
            for end in range(1, len(path) + 1) if not row.optimizer else ():
                self._below.setdefault(path[:end], []).append(number)
        self._there = {(row.root, row.model_path): number for number, row in enumerate(view)}
        self._known: dict[tuple[LogicalPath, LogicalPath], str] = {}

    def verdict(self, before: LogicalPath, after: LogicalPath) -> str:
        """Whether the rule is ``safe``: it takes no leaf from where it is joined, and none to where another belongs.

        ``later`` it will be where the leaves that it would take to a wrong place get rules of their
        own now; else it is ``wrong``.
        """
        pair = before, after
        if pair not in self._known:
            effects = {self._effect(number, before, after) for number in self._below[before]}
            if before in self._given:
                effects.add("wrong")
            self._known[pair] = next((v for v in ("wrong", "later") if v in effects), "safe")
        return self._known[pair]

    def _effect(self, number: int, before: LogicalPath, after: LogicalPath) -> str:
        """What the rule does to one leaf below its path."""
        row = self._source[number]
        path = row.model_path
        if any(path[:end] in self._given for end in range(len(before) + 1, len(path) + 1)):
            return "safe"  # a rule for a longer path says where it goes
        if number in self._onward:
            return "wrong"
        goal = self._there.get((row.root, (*after, *path[len(before) :])))
        if goal is None or self._certain.get(number) == goal:
            return "safe"
        if number in self._certain:
            first, _ = next(_spellings(path, self._view[self._certain[number]].model_path))
            return "later" if len(first) > len(before) else "wrong"
        taken = goal in self._taken or goal in self._paired
        return "wrong" if taken or form(self._view[goal]) != form(row) else "safe"


def _spellings(
    before: LogicalPath, after: LogicalPath
) -> Iterator[tuple[LogicalPath, LogicalPath]]:
    """All rules that make one path of another, the shortest first."""
    same = 0
    while same < min(len(before), len(after)) - 1 and before[-1 - same] == after[-1 - same]:
        same += 1
    for cut in range(same, -1, -1):
        yield before[: len(before) - cut], after[: len(after) - cut]
