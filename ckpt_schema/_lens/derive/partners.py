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
    named: list[str] = []
    size = 1
    for factor in dims_.factors(row.leaf.dims):
        if isinstance(factor, int):
            size *= factor
        else:
            named.append(str(factor))
    repeats = tuple(repeat.size for repeat in row.repeats)
    return row.root, row.leaf.dtype, tuple(sorted(named)), size, repeats


def partners(left: Sequence[Loose], right: Sequence[Loose], placed: Iterable[Placed]) -> Partners:
    """Judges all pairs of leaves without a partner, for both sides at once.

    Args:
        left: Those of the source.
        right: Those of the view.
        placed: The rows that are joined, and the path of the source's in the view's words.
    """
    # No rename speaks of a leaf that is a whole model, for it has no path there.
    left, right = ([one for one in side if one.path] for side in (left, right))
    forms = _Forms((*left, *right))
    sides = forms.groups(left), forms.groups(right)
    # Structure proposes, and all that is known disposes: a pair is certain only after both.
    pairs = [*_undisputed(_paired(left, right, forms), sides, forms, placed)]
    certain = {one.number: other.number for one, other in pairs}
    taken = set(certain.values())
    compared = max(len(left), len(right)) <= _COMPARED
    open_: tuple[dict[int, Sequence[Loose]], dict[int, Sequence[Loose]]] = {}, {}
    for kind in sides[0].keys() & sides[1].keys():
        # What a certain partner has been found for is no candidate of any other leaf.
        ours = _without(sides[0][kind], certain)
        theirs = _without(sides[1][kind], taken)
        if not ours or not theirs:
            continue
        for row in ours:
            open_[0][row.number] = _ordered(row, theirs, ours, compared)
        for row in theirs:
            open_[1][row.number] = _ordered(row, ours, theirs, compared)
    return Partners(certain, open_)


def _without(rows: Sequence[Loose], numbers: Collection[int]) -> list[Loose]:
    return [row for row in rows if row.number not in numbers]


class _Forms:
    """A number for each form, so that forms are compared at no cost.

    Where leaves of any float are among the rows, all floats are of one form.
    """

    def __init__(self, rows: Iterable[Loose]) -> None:
        self._numbers: dict[Any, int] = {}
        self._any_float = any(loose.row.leaf.is_open for loose in rows)

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

    # A leaf of the same axes in the same order comes before one that is like it in name.
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
    for node in reversed(
        made
    ):  # children before parents, whose structure is that of their children
        own = None if node.leaf is None else forms.of(node.leaf.row)
        kinds: list[int] = []
        for child in node.below.values():
            kinds.append(child.kind)
            node.depth = max(node.depth, 1 + child.depth)
        # Sorted, for names are no part of a structure, and so neither is the order of children.
        node.kind = forms.number((own, *sorted(kinds)))
    return {head: root.below for head, root in roots.items()}


def _paired(
    left: Sequence[Loose], right: Sequence[Loose], forms: _Forms
) -> Iterator[tuple[Loose, Loose]]:
    """Pairs of leaves that structure tells: from the root down, then those that are the only ones of their form.

    Those whose paths spell numbers in two ways are pairs before all others.
    """
    paired: tuple[set[int], set[int]] = set(), set()

    def noted(one: Loose, other: Loose) -> tuple[Loose, Loose]:
        paired[0].add(one.number)
        paired[1].add(other.number)
        return one, other

    for pair in _numbered(left, right, forms):
        yield noted(*pair)
    # They stand at other depths on both sides: left in the trees, they would make nodes unlike.
    left, right = _without(left, paired[0]), _without(right, paired[1])
    ours, theirs = _trees(left, forms), _trees(right, forms)
    waiting: list[tuple[_Children, _Children]] = []
    for head in ours.keys() & theirs.keys():
        waiting.append((ours[head], theirs[head]))
    while waiting:
        for pair in _counterparts(*waiting.pop(), waiting, forms):
            yield noted(*pair)
    # What structure has left is a pair where each is alone of its form, wherever both stand.
    here = forms.groups(_without(left, paired[0]))
    there = forms.groups(_without(right, paired[1]))
    for kind in here.keys() & there.keys():
        if len(here[kind]) == len(there[kind]) == 1:
            yield here[kind][0], there[kind][0]


def _numbered(
    left: Sequence[Loose], right: Sequence[Loose], forms: _Forms
) -> Iterator[tuple[Loose, Loose]]:
    """Leaves of layers that differ: one path has the number of a layer in its name, the other below it, in a list.

    ``layers_0/w`` here is ``layers/0/w`` there.
    """
    ours, theirs = _by_spelled_path(left), _by_spelled_path(right)
    for path, several in ours.items():
        others = theirs.get(path, [])
        if len(several) != 1 or len(others) != 1:
            continue
        one, other = several[0], others[0]
        # Of one length, both spell numbers in one way: then something else keeps them apart.
        if len(one.path) != len(other.path) and forms.of(one.row) == forms.of(other.row):
            yield one, other


def _by_spelled_path(rows: Sequence[Loose]) -> dict[object, list[Loose]]:
    """Leaves by where they would be, if all numbered siblings were items of lists."""
    by_path: dict[object, list[Loose]] = {}
    for row in rows:
        spelled: list[str] = []
        for segment in row.path:
            spelled += _in_list(segment)
        by_path.setdefault((row.row.root, *spelled), []).append(row)
    return by_path


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
    pairs: list[tuple[_Node, _Node]] = []
    for name, one in left.items():
        other = right.get(name)
        # One name may be a leaf here and a node there, or leaves of two forms: no counterparts.
        if other and (one.kind == other.kind or (one.below and other.below)):
            pairs.append((one, other))
            del rest[0][name], rest[1][name]
    # Of those that are called otherwise, those are certain that are alone of their structure.
    kinds = _by_kind(rest[0]), _by_kind(rest[1])
    for kind, nodes in kinds[0].items():
        others = kinds[1].get(kind, [])
        if len(nodes) == len(others) == 1:
            pairs.append((nodes[0], others[0]))
            del rest[0][nodes[0].name], rest[1][others[0].name]
    for one, other in pairs:
        if one.leaf is not None and other.leaf is not None:
            yield one.leaf, other.leaf
        if one.below and other.below:
            waiting.append((one.below, other.below))
    level = _level(*rest, forms)
    if level is not None:
        waiting.append(level)


def _by_kind(children: _Children) -> dict[int, list[_Node]]:
    """Nodes by their structure."""
    by_kind: dict[int, list[_Node]] = {}
    for node in children.values():
        by_kind.setdefault(node.kind, []).append(node)
    return by_kind


def _level(left: _Children, right: _Children, forms: _Forms) -> tuple[_Children, _Children] | None:
    """The children to go on with where all that is left on one side stands one level deeper on the other.

    So ``encoder`` and ``head`` here are what stands in ``model`` there, ``model/backbone`` and ``model/top``.
    """
    if _is_one_level_up(left, right, forms):
        (deeper,) = right.values()
        return left, deeper.below
    if _is_one_level_up(right, left, forms):
        (deeper,) = left.values()
        return deeper.below, right
    return None


def _is_one_level_up(children: _Children, others: _Children, forms: _Forms) -> bool:
    """Whether some nodes hold what one node of the other side holds one level deeper."""
    if not children or len(others) != 1:
        return False
    (deeper,) = others.values()
    # It has a level more, or else the nodes are unlike it for some other reason.
    if not deeper.below or deeper.depth <= max(node.depth for node in children.values()):
        return False
    balance: collections.Counter[int] = collections.Counter()
    for leaf in deeper.leaves():
        balance[forms.of(leaf.row)] += 1
    for node in children.values():
        for leaf in node.leaves():
            balance[forms.of(leaf.row)] -= 1
    return not any(balance.values())


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
    pairs = list(pairs)
    names = _last_names(sides[0]), _last_names(sides[1])
    numbered: set[LogicalPath] = set()
    known: set[tuple[_Place, _Place]] = set()
    for before, path, after in placed:
        known.add((_node(before), _node(after)))
        if any(map(_has_number, path)):
            numbered.add(overlaps.outlined(path))
    # With which nodes of the other side each node shares leaves, by what is joined or would be.
    met: tuple[dict[_Place, set[_Place]], dict[_Place, set[_Place]]] = {}, {}
    for here, there in (*known, *_nodes_of(pairs)):
        met[0].setdefault(here, set()).add(there)
        met[1].setdefault(there, set()).add(here)
    for one, other in pairs:
        # What may lack a partner makes no certain pair: it may as well have none.
        if not one.required or not other.required:
            continue
        kind, before, after = forms.of(one.row), one.path, other.path
        nodes = _node(one.row), _node(other.row)
        is_name_taken = before[-1] in names[1][kind] or after[-1] in names[0][kind]
        is_named = before[-1] != after[-1] and is_name_taken
        is_torn = nodes not in known and (len(met[0][nodes[0]]) > 1 or len(met[1][nodes[1]]) > 1)
        is_shifted = (
            before != after and overlaps.outlined(before) == overlaps.outlined(after) in numbered
        )
        # A list of stacks and a stack of lists have one name: which of their levels is which, as
        # well as how each is stored, is another matter than what they are called.
        is_regrouped = before != after and paths.path_names(before) == paths.path_names(after)
        if not (is_named or is_torn or is_shifted or is_regrouped):
            yield one, other


def _nodes_of(pairs: Iterable[tuple[Loose, Loose]]) -> Iterator[tuple[_Place, _Place]]:
    """The nodes that both leaves of each pair stand in."""
    for one, other in pairs:
        yield _node(one.row), _node(other.row)


def _last_names(by_form: Mapping[int, Sequence[Loose]]) -> dict[int, set[str]]:
    """The names of the leaves of each form."""
    names: dict[int, set[str]] = {}
    for kind, rows in by_form.items():
        names[kind] = {row.path[-1] for row in rows}
    return names


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
        # The shortest first: it is the one that renames the most.
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
        # The rows of the view that no other leaf may be led to.
        self._taken = {*onward.values(), *certain.values()}
        # The rows of the source by each path that a rule for them may have.
        self._below: dict[LogicalPath, list[int]] = {}
        for number, row in enumerate(source):
            path = row.model_path
            for end in range(1, len(path) + 1) if not row.optimizer else ():
                self._below.setdefault(path[:end], []).append(number)
        self._there = {(row.root, row.model_path): number for number, row in enumerate(view)}
        # Verdicts by the two paths of a rule: leaves of one node ask for the same ones.
        self._known: dict[tuple[LogicalPath, LogicalPath], str] = {}

    def verdict(self, before: LogicalPath, after: LogicalPath) -> str:
        """Whether the rule is ``safe``: it takes no leaf from where it is joined, and none to where another belongs.

        ``later`` it will be where the leaves that it would take to a wrong place get rules of their
        own now; else it is ``wrong``.
        """
        pair = before, after
        if pair not in self._known:
            effects = {self._effect(number, before, after) for number in self._below[before]}
            # Two rules for one path would be a dispute.
            if "wrong" in effects or before in self._given:
                self._known[pair] = "wrong"
            else:
                self._known[pair] = "later" if "later" in effects else "safe"
        return self._known[pair]

    def _effect(self, number: int, before: LogicalPath, after: LogicalPath) -> str:
        """What the rule does to one leaf below its path."""
        row = self._source[number]
        path = row.model_path
        for end in range(len(before) + 1, len(path) + 1):
            if path[:end] in self._given:
                return "safe"  # a rule for a longer path says where it goes
        if number in self._onward:
            return "wrong"
        goal = self._there.get((row.root, (*after, *path[len(before) :])))
        if goal is None or self._certain.get(number) == goal:
            return "safe"
        if number in self._certain:
            # It belongs elsewhere: a rule of its own keeps it from this one, if that is for a node
            # further down.
            first, _ = next(_spellings(path, self._view[self._certain[number]].model_path))
            return "later" if len(first) > len(before) else "wrong"
        return "wrong" if goal in self._taken or form(self._view[goal]) != form(row) else "safe"


def _spellings(
    before: LogicalPath, after: LogicalPath
) -> Iterator[tuple[LogicalPath, LogicalPath]]:
    """All rules that make one path of another, the shortest first.

    Of ``mlp/wi/kernel`` and ``ff/wi/kernel`` they are ``mlp`` to ``ff``, then ``mlp/wi`` to ``ff/wi``,
    then both whole paths.
    """
    # How many segments both end in alike; one of each is left, for a rule has two paths.
    same = 0
    while same < min(len(before), len(after)) - 1 and before[-1 - same] == after[-1 - same]:
        same += 1
    for cut in range(same, -1, -1):
        yield before[: len(before) - cut], after[: len(after) - cut]
