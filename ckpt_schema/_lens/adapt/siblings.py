"""Siblings with numbers in their names that are a list of layers, as the other side or a rule has it."""

from __future__ import annotations

import collections
import dataclasses
import functools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from ckpt_schema._layouts.leaves import Leaf
from ckpt_schema._layouts.paths import (
    Index,
    Key,
    KeyPath,
    LogicalPath,
    Pattern,
    format_path,
    glob_means,
    int_key,
    list_depth,
    path_names,
)
from ckpt_schema._layouts.streams import is_raw_key
from ckpt_schema._layouts.table import Row
from ckpt_schema._lens.read_sides import ReadSide, ReadSides
from ckpt_schema._lens.rules import Move, Rename, Reset, Rule
from ckpt_schema.errors import DerivationError, Mismatch, SchemaError

__all__ = ["NUMBERED", "called_apart", "is_stream", "model_start", "names_in", "with_lists"]

NUMBERED = re.compile(r"(?P<stem>.*\D)(?P<number>0|[1-9]\d*)")
"""The name of one of several siblings that differ in a number."""

_NUMBER = re.compile(r"(?P<stem>)(?P<number>0|[1-9]\d*)")
"""That of one whose name is a number, a string as others."""


def with_lists(sides: ReadSides, given: Sequence[str] | None, rules: Sequence[Rule]) -> ReadSides:
    """Both sides with their lists: those that are given, those that rules call lists, and those that both sides show.

    Siblings are shown to be a list where the other side has one node of their name. Where it has a list of another name
    and of the same layers, they are read as one too: what they are called then is all that a rule has to tell. Those of
    which a rule calls one by its own name, ``mid_0`` or ``net/0``, are no list.
    """
    words = _Words.of(rules, 0), _Words.of(rules, 1)
    left, right = _with_items_apart(sides, words)
    sides = left, right
    if given is not None:
        left, ours = _with_lists(left, given)
        right, theirs = _with_lists(right, given)
        unknown = [pattern for pattern in given if pattern not in {*ours, *theirs}]
        if unknown:
            _refuse(unknown, sides)
    asked = given is not None
    while True:
        # Both look at the sides as they were before: what is read as a list has other nodes.
        patterns = (
            [*_lists(left, right, words[0], asked=asked)],
            [*_lists(right, left, words[1], asked=asked)],
        )
        if not any(patterns):
            return left, right
        left, right = left.read(lists=patterns[0]), right.read(lists=patterns[1])
        # Lists inside of these are seen now, in the next round.


def _with_lists(side: ReadSide, given: Sequence[str]) -> tuple[ReadSide, Sequence[str]]:
    """A side read with those of the lists that it has, and these."""
    try:
        return side.read(lists=given), given
    except SchemaError as error:
        unfit = {fault.path for fault in error.mismatches}
    fitting = [pattern for pattern in given if pattern not in unfit]
    if len(fitting) < len(given):
        return _with_lists(side, fitting)
    # The error names other paths than the patterns, so each is tried by itself.
    fitting = [pattern for pattern in given if _has_list(side, pattern)]
    return side.read(lists=fitting), fitting


def _has_list(side: ReadSide, pattern: str) -> bool:
    """Whether a side can be read with one of the lists that were given."""
    try:
        side.read(lists=[pattern])
    except SchemaError:
        return False
    return True


def _refuse(unknown: Sequence[str], sides: ReadSides) -> None:
    """Raises the error of lists that neither side has."""
    here, there = sides[0].name, sides[1].name
    expected = f"repeated nodes of {here} or {there}"
    hint = "write the path of the node in the model, without params or model in front; outside of the model, its whole key path"
    faults = [Mismatch(pattern, "rule", expected, "no such nodes", hint) for pattern in unknown]
    raise DerivationError(f"lists= does not fit {here} or {there}", faults)


_Spoken = tuple[LogicalPath, LogicalPath | None]
"""A path of a rule for one side, and the rule's path for the other where it has one for each."""


@dataclasses.dataclass(frozen=True)
class _Words:
    """The paths that rules have for one side.

    Attributes:
        paths: Each, with that for the other side.
        segments: The segments of all.
    """

    paths: Sequence[_Spoken]
    segments: frozenset[str]

    @classmethod
    def of(cls, rules: Sequence[Rule], side: int) -> _Words:
        """Those of the paths that speak of the source (0), or of the view (1)."""
        paths: list[_Spoken] = []
        for rule in rules:
            # Rules of both sides have a path for each: that of the other side says nothing here.
            if isinstance(rule, (Rename, Move, Reset)):
                both = rule.source, rule.view
                if both[side] is not None:
                    paths.append((both[side] or (), both[1 - side]))
                continue
            for field in dataclasses.fields(rule):
                for path in _paths(getattr(rule, field.name)):
                    paths.append((path, None))
        segments: set[str] = set()
        for path, _ in paths:
            segments.update(path)
        return cls(paths, frozenset(segments))

    def calls_a_list(self, name: str) -> bool:
        """Whether a rule calls nodes of this name a list."""
        return f"{name}[]" in self.segments

    @functools.cached_property
    def has_stars(self) -> bool:
        """Whether any of them means several nodes."""
        return any("*" in segment for segment in self.segments)

    def tell_apart(self, near: ReadSide, node: LogicalPath, members: _Names, far: ReadSide) -> bool:
        """Whether a rule calls one of several siblings by its own name, as ``mid_0``.

        Args:
            near: The side that has the siblings.
            node: What they would be as a list.
            members: The path of each, and what it holds that the list would have.
            far: The other side.
        """
        for path, other in self.paths:
            for names in _in_model(path_names(path), near):
                for member, shared in members.items():
                    end = _end_at(names, member, node)
                    if end is None or _is_of_a_list(path, other, far):
                        continue
                    # A stream that one layer alone has keeps its name beside the list.
                    if end == len(names) or not _is_left(near, names, member, shared):
                        return True
        return False


_Names = Mapping[LogicalPath, Collection[LogicalPath]]
"""The paths of siblings, and the paths of leaves in each that all of them have."""


def _end_at(names: LogicalPath, member: LogicalPath, node: LogicalPath) -> int | None:
    """Where the path of a rule names a sibling, and not whatever stands there."""
    for end in range(1, len(names) + 1):
        last = names[end - 1]
        # `*` and `mid*` mean a list `mid[]` as well, and `mid_*` means its members alone.
        if last == "**" or glob_means((last,), (f"{node[-1]}[]",)):
            continue
        if glob_means(names[:end], member):
            return end
    return None


def _is_left(
    side: ReadSide, names: LogicalPath, member: LogicalPath, shared: Collection[LogicalPath]
) -> bool:
    """Whether a rule's path means a leaf of a sibling that is no leaf of the list."""
    for path in side.weights:
        is_own = path[: len(member)] == member and path[len(member) :] not in shared
        if is_own and glob_means((*names, "**"), path):
            return True
    return False


def _in_model(path: LogicalPath, side: ReadSide) -> Iterator[LogicalPath]:
    """A path of a rule as one in the model; it may begin at the root."""
    yield path
    for root in side.roots:
        if root and path[: len(root)] == root:
            yield path[len(root) :]


def _is_of_a_list(path: LogicalPath, other: LogicalPath | None, far: ReadSide) -> bool:
    """Whether a rule for both sides speaks of lists, though its path for the one names an item: the other is of a list there.

    So ``rename("layers_0", "layers/0")`` may join what the first layers alone have, as a stream, and all layers are one list
    on both sides.
    """
    if other is None:
        return False
    if list_depth(other) > list_depth(path):
        return True
    for names in _in_model(path_names(other), far):
        for end, name in enumerate(names):
            if name.isdecimal() and names[:end] in far.item_counts:
                return True
    return False


# --- lists that a tree shows by itself, of which a rule calls one item by its number  ---


def _with_items_apart(sides: ReadSides, words: tuple[_Words, _Words]) -> ReadSides:
    """Both sides; lists whose items rules call ``net/0``, ``net/1`` are read as nodes apart."""
    # Most rules have no such name.
    if not any(segment.isdecimal() for both in words for segment in both.segments):
        return sides
    while True:
        left, right = sides
        apart = (
            [*_called_by_number(left, words[0], right)],
            [*_called_by_number(right, words[1], left)],
        )
        if not any(apart):
            return sides
        # A node of which it is said that it is no stack is no list either.
        sides = (
            left.read(scan=dict.fromkeys(apart[0])),
            right.read(scan=dict.fromkeys(apart[1])),
        )
        # Lists inside of these are seen now, in the next round.


def _called_by_number(near: ReadSide, words: _Words, far: ReadSide) -> Iterator[str]:
    """The lists of a side of which rules call an item by its number."""
    standing = _beginnings(near)
    # By list, the numbers that are said to be items of a list of the other side too.
    paired: dict[LogicalPath, set[int]] = collections.defaultdict(set)
    apart: dict[LogicalPath, None] = {}
    for path, other in words.paths:
        # What one layer alone has, as a stream, stands below its number as it is. And
        # `layers[]` is what is meant by a rule that says so on the other side.
        if path in standing or (other is not None and list_depth(other) > list_depth(path)):
            continue
        for names in _in_model(path_names(path), near):
            # A rule for both sides in one path speaks of a list that either has.
            for node, number in _items(names, near, far if other is None else near):
                if _is_of_a_list(path, other, far):
                    paired[node].add(number)
                else:
                    apart[node] = None
    for node, numbers in paired.items():
        # Some of the items alone are likely a mistake for all of them.
        if len(numbers) == near.item_counts[node]:
            apart[node] = None
    for node in apart:
        if "/".join(node) not in near.scan:
            yield "/".join(node)


def _items(names: LogicalPath, side: ReadSide, far: ReadSide) -> Iterator[tuple[LogicalPath, int]]:
    """The lists of a side that a rule's path names an item of, and the number of that; the far side may have more of them."""
    for end, name in enumerate(names):
        number = int_key(name) if name.isdecimal() else None
        if number is None:
            continue
        is_glob = any("*" in each for each in names[:end])
        for node in side.item_counts if is_glob else [names[:end]]:
            count = side.item_counts.get(node, 0)
            if not count or not glob_means(names[:end], node):
                continue
            if number < max(count, far.item_counts.get(node, 0)):
                yield node, number


def called_apart(sides: ReadSides, rules: Sequence[Rule]) -> set[tuple[LogicalPath, str]]:
    """Siblings of which rules call one by its own name: the node that they are in, and what their names begin with."""
    found: set[tuple[LogicalPath, str]] = set()
    if not rules:
        return found
    words = _Words.of(rules, 0), _Words.of(rules, 1)
    sides = _with_items_apart(sides, words)
    for at, near in enumerate(sides):
        for (head, _, stem), members in _siblings(near).items():
            node = (*head, stem.strip("_-.")) if stem else head
            held = {(*head, f"{stem}{number}"): each for number, each in members.items()}
            if words[at].tell_apart(near, node, held, sides[1 - at]):
                found.add((head, stem))
    return found


def _beginnings(side: ReadSide) -> set[LogicalPath]:
    """Every path that a leaf of a side stands at or below, from the root and in the model."""
    found: set[LogicalPath] = set()
    for row in side.layout.rows:
        for path in (row.path, row.model_path):
            for end in range(1, len(path) + 1):
                found.add(path[:end])
    return found


def names_in(rule: Rule) -> Iterator[str]:
    """The segments of all paths of a rule."""
    for field in dataclasses.fields(rule):
        for path in _paths(getattr(rule, field.name)):
            yield from path


def _paths(value: object) -> Iterator[LogicalPath]:
    """The paths that a field of a rule holds, one or several: it may hold numbers and values too."""
    if not isinstance(value, tuple):
        return
    parts: tuple[object, ...] = value
    segments = [part for part in parts if isinstance(part, str)]
    if segments:
        yield tuple(segments)
    for part in parts:
        yield from _paths(part)


def _lists(near: ReadSide, far: ReadSide, words: _Words, *, asked: bool) -> Iterator[str]:
    """Patterns of siblings with numbers, equal in all else, that are to be read as lists.

    Where the lists were asked for by name, only rules call others so.
    """
    # In a joined key a number is a segment of its own, and was read as a list.
    if near.joined is not None:
        return
    strangers = _strangers(near, far)
    taken: set[LogicalPath] = set()
    outer_first = sorted(_siblings(near).items(), key=lambda group: len(group[0][0]))
    for (head, key, stem), members in outer_first:
        # What a list holds is looked at when it is read as one: then its members are one node.
        if any(head[:end] in taken for end in range(len(head) + 1)):
            continue
        # A list starts at 0, or at 1 as in files of other frameworks, and skips no number.
        first = min(members)
        in_turn = sorted(members) == list(range(first, first + len(members)))
        alike = all(member == members[first] for member in members.values())
        if not in_turn or not alike or first not in (0, 1):
            continue
        # Of members that are called by their numbers alone, the node above is the list.
        name = stem.strip("_-.") if stem else head[-1]
        names = {f"{stem}{number}" for number in members}
        is_list = words.calls_a_list(name)
        if not is_list and not asked:
            # Where the other side has a member under its own name, they join one by one.
            apart = any((*head, member) in far.nodes for member in names)
            # A rule that speaks of one member means it as a node.
            if not apart and (words.has_stars or not names.isdisjoint(words.segments)):
                held = {(*head, f"{stem}{number}"): each for number, each in members.items()}
                apart = words.tell_apart(near, (*head, name) if stem else head, held, far)
            is_list = not apart and (
                _is_shown(head, name, stem, members, far)
                or (
                    (len(members), _weights_held(members[first])) in strangers
                    and names.isdisjoint(words.segments)
                )
            )
        if not is_list:
            continue
        for member in names:
            taken.add((*head, member))
        symbol = "{i+1}" if first else "{i}"
        pattern = format_path((*key, stem)) + symbol if stem else f"{format_path(key)}/{symbol}"
        # What is left of a list that was read before is the stream of one member.
        if pattern not in near.lists:
            yield pattern


def _is_shown(
    head: LogicalPath,
    name: str,
    stem: str,
    members: Mapping[int, Mapping[LogicalPath, Any]],
    far: ReadSide,
) -> bool:
    """Whether the other side has one node in the place of siblings: ``layers`` where these are ``layers_0``, ``layers_1``."""
    if 0 not in members:
        return False
    if stem:
        return (*head, name) in far.nodes
    # Members that are numbers stand in a node that both sides have: what each holds stands in it there.
    return any((*head, *path) in far.nodes for path in members[0])


def _siblings(
    side: ReadSide,
) -> Mapping[tuple[LogicalPath, Pattern, str], Mapping[int, Mapping[LogicalPath, Any]]]:
    """Nodes of one name but for a number: what each holds, by where they stand, how that is spelled, and their stem."""
    groups: dict[tuple[LogicalPath, Pattern, str], dict[int, dict[LogicalPath, Any]]] = {}
    for path, row in side.weights.items():
        heads = _heads(row)
        for depth, segment in enumerate(path):
            # Most segments end in a letter, and no pattern has to be asked for these.
            if not segment[-1:].isdecimal():
                continue
            match = NUMBERED.fullmatch(segment)
            # A number alone at the root has no node above that could be the list.
            if match is None and depth:
                match = _NUMBER.fullmatch(segment)
            if match and not row.model_path[depth].endswith("[]"):
                members = groups.setdefault((path[:depth], heads[depth], match["stem"]), {})
                held = members.setdefault(int(match["number"]), {})
                held[path[depth + 1 :]] = row.leaf, row.kind
    return {group: _shared(members) for group, members in groups.items()}


def _shared(
    members: Mapping[int, Mapping[LogicalPath, Any]],
) -> Mapping[int, Mapping[LogicalPath, Any]]:
    """What siblings hold, without the streams that some alone have: of one that all share, NNX keeps the first."""
    counts: collections.Counter[LogicalPath] = collections.Counter()
    for held in members.values():
        counts.update(held.keys())
    shared: dict[int, dict[LogicalPath, Any]] = {}
    for number, held in members.items():
        shared[number] = {}
        for path, leaf in held.items():
            if counts[path] == len(members) or not is_stream(path, held):
                shared[number][path] = leaf
    return shared


def _weights_held(held: Mapping[LogicalPath, tuple[Leaf, Any]]) -> frozenset[tuple[Leaf, int]]:
    """How many leaves of each type a node holds; a stream, as of dropout, is of one framework alone."""
    counts: collections.Counter[Leaf] = collections.Counter()
    for path, (leaf, _) in held.items():
        if not is_stream(path, held):
            counts[leaf] += 1
    return frozenset(counts.items())


def is_stream(path: KeyPath, held: Mapping[Any, tuple[Leaf, Any]]) -> bool:
    """Whether a leaf is a key, or the count beside one.

    Args:
        path: Where it stands.
        held: All that stands beside it, and it: the leaves, and what else is known of them.
    """
    # A count tells nothing by itself: it is asked whether the leaf beside it is a key.
    key = (*path[:-1], "key") if path[-1:] == ("count",) else path
    # Of a sibling that is a leaf itself the path is empty, and so are all slices of it.
    leaf, _ = held.get(key, held[path])
    has_count = key[-1:] == ("key",) and (*key[:-1], "count") in held
    return leaf.is_key or (has_count and is_raw_key(leaf.dtype, leaf.dims))


def _strangers(near: ReadSide, far: ReadSide) -> set[tuple[int, Any]]:
    """The far side's lists that the near one has no node for: how many layers, and what leaves each holds, by any name."""
    counts: dict[LogicalPath, int] = {}
    held: dict[LogicalPath, dict[LogicalPath, tuple[Leaf, Any]]] = collections.defaultdict(dict)
    for path, row in far.weights.items():
        # One repeat for each mark, outermost first: layers[]/experts[]/w has two.
        repeats = iter(row.repeats)
        for end, segment in enumerate(row.model_path, 1):
            if not segment.endswith("[]"):
                continue
            node, count = path[:end], next(repeats).size[0]
            if isinstance(count, int) and node not in near.nodes:
                counts[node] = count
                held[node][path[end:]] = row.leaf, row.kind
    strangers: set[tuple[int, Any]] = set()
    for node, leaves in held.items():
        strangers.add((counts[node], _weights_held(leaves)))
    return strangers


def model_start(row: Row) -> int:
    """At which segment of a row's key its path in the model begins; less than 0 where all of the path is one key."""
    return len(row.key) - len(row.model_path) - sum(map(_is_number, row.key))


def _is_number(segment: Key | Index) -> bool:
    """Whether a segment is a symbol alone, which is no segment of the path: the name of its list is."""
    return isinstance(segment, Index) and not segment.prefix + segment.suffix


def _heads(row: Row) -> list[Pattern]:
    """What each segment of a row's path in the model stands below, as it is spelled."""
    key = row.key[model_start(row) :]
    heads: list[Pattern] = []
    end = 0
    for _ in row.model_path:
        heads.append(key[:end])
        end += 1
        # The number of a layer belongs to the name of its list: layers[] is spelled layers/{i}.
        if end < len(key) and _is_number(key[end]):
            end += 1
    return heads
