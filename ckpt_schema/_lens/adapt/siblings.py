"""Siblings with numbers in their names that are a list of layers, as the other side or a rule has it."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ckpt_schema._layouts.leaves import Leaf
from ckpt_schema._layouts.paths import Index, Key, KeyPath, LogicalPath, Pattern, format_path
from ckpt_schema._layouts.streams import is_raw_key
from ckpt_schema._layouts.table import Row
from ckpt_schema._lens.read_sides import ReadSide, ReadSides
from ckpt_schema._lens.rules import Move, Rename, Reset, Rule
from ckpt_schema.errors import DerivationError, Mismatch, SchemaError

__all__ = ["NUMBERED", "is_stream", "model_start", "names_in", "with_lists"]

NUMBERED = re.compile(r"(?P<stem>.*\D)(?P<number>0|[1-9]\d*)")
"""The name of one of several siblings that differ in a number."""

_NUMBER = re.compile(r"(?P<stem>)(?P<number>0|[1-9]\d*)")
"""That of one whose name is a number, a string as others."""


def with_lists(sides: ReadSides, given: Sequence[str] | None, rules: Sequence[Rule]) -> ReadSides:
    """Both sides with their lists: those that are given, those that rules call lists, and those that both sides show.

    Siblings are shown to be a list where the other side has one node of their name. Where it has a list of another name
    and of the same layers, they are read as one too: what they are called then is all that a rule has to tell.
    """
    words = _Words.of(rules, 0), _Words.of(rules, 1)
    left, right = sides
    if given is not None:
        (left, ours), (right, theirs) = (_with_lists(side, given) for side in sides)
        unknown = [pattern for pattern in given if pattern not in {*ours, *theirs}]
        if unknown:
            _refuse(unknown, sides)
    while True:  # lists inside of lists are seen when these are
        asked = given is not None
        found = (
            [*_lists(left, right, words[0], asked=asked)],
            [*_lists(right, left, words[1], asked=asked)],
        )
        if not any(found):
            return left, right
        left, right = left.read(lists=found[0]), right.read(lists=found[1])


def _with_lists(side: ReadSide, given: Sequence[str]) -> tuple[ReadSide, Sequence[str]]:
    """A side read with those of the lists that it has, and these."""
    try:
        return side.read(lists=given), given
    except SchemaError as error:
        unfit = {fault.path for fault in error.mismatches}
    left = [pattern for pattern in given if pattern not in unfit]
    if len(left) < len(given):
        return _with_lists(side, left)
    left = [pattern for pattern in given if _has_list(side, pattern)]
    return side.read(lists=left), left


def _has_list(side: ReadSide, pattern: str) -> bool:
    try:
        side.read(lists=[pattern])
    except SchemaError:
        return False
    return True


def _refuse(unknown: Sequence[str], sides: ReadSides) -> None:
    here, there = (side.name for side in sides)
    hint = "write the path of the node in the model, without params or model in front; outside of the model, its whole key path"
    faults = [
        Mismatch(pattern, "rule", f"repeated nodes of {here} or {there}", "no such nodes", hint)
        for pattern in unknown
    ]
    raise DerivationError(f"lists= does not fit {here} or {there}", faults)


@dataclasses.dataclass(frozen=True)
class _Words:
    """The segments of paths that rules have for one side."""

    segments: frozenset[str]

    @classmethod
    def of(cls, rules: Sequence[Rule], at: int) -> _Words:
        """Those of the paths that speak of the source, or of the view."""
        names: set[str] = set()
        for rule in rules:
            fields = {field.name: getattr(rule, field.name) for field in dataclasses.fields(rule)}
            if isinstance(rule, (Rename, Move, Reset)):
                fields.pop(("view", "source")[at])
            for value in fields.values():
                names.update(_segments(value))
        return cls(frozenset(names))

    def calls_a_list(self, name: str) -> bool:
        """Whether a rule calls nodes of this name a list."""
        return f"{name}[]" in self.segments


def names_in(rule: Rule) -> Iterator[str]:
    """The segments of all paths of a rule."""
    for field in dataclasses.fields(rule):
        yield from _segments(getattr(rule, field.name))


def _segments(value: object) -> Iterator[str]:
    """The segments of a path, or of several."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, tuple):
        several: tuple[object, ...] = value
        for one in several:
            yield from _segments(one)


def _lists(own: ReadSide, other: ReadSide, words: _Words, *, asked: bool) -> Iterator[str]:
    """Patterns of siblings with numbers, equal in all else, that are to be read as lists.

    Where the lists were asked for by name, only rules call others so.
    """
    if own.joined is not None:  # there a number is a segment of its own, and read as a list
        return
    strangers = _strangers(own, other)
    taken: set[LogicalPath] = set()
    outer_first = sorted(_siblings(own).items(), key=lambda group: len(group[0][0]))
    for (head, key, stem), members in outer_first:
        if any(head[:end] in taken for end in range(len(head) + 1)):
            continue  # what such a list holds is looked at when it is one
        # Of members that are called by their numbers alone, the node above is the list.
        name = stem.strip("_-.") if stem else head[-1]
        node = (*head, name) if stem else head
        first, *more = sorted(members)
        in_turn = [first, *more] == list(range(first, first + len(members)))
        alike = all(member == members[first] for member in members.values())
        if not (in_turn and alike and first in (0, 1)):
            continue
        spelled = {f"{stem}{number}" for number in members}
        apart = any((*head, one) in other.nodes for one in spelled)
        called = words.calls_a_list(name)
        inner = members[first] if not stem else {(): None}
        shown = first == 0 and any((*node, *path) in other.nodes for path in inner)
        meant = (len(members), _weights_held(members[first])) in strangers
        meant = meant and not spelled & words.segments
        if called or (not asked and not apart and (shown or meant)):
            taken.update((*head, one) for one in spelled)
            symbol = "{i+1}" if first else "{i}"
            pattern = format_path((*key, stem)) + symbol if stem else f"{format_path(key)}/{symbol}"
            if pattern not in own.lists:  # what is left of such a list is the stream of one member
                yield pattern


def _siblings(
    side: ReadSide,
) -> Mapping[tuple[LogicalPath, Pattern, str], Mapping[int, Mapping[LogicalPath, Any]]]:
    """Nodes of one name but for a number: what each holds, by where they stand, how that is spelled, and their stem."""
    groups: dict[tuple[LogicalPath, Pattern, str], dict[int, dict[LogicalPath, Any]]] = {}
    for path, row in side.weights.items():
        heads = _heads(row)
        for at, segment in enumerate(path):
            if not segment[-1:].isdecimal():  # most, which no pattern has to be asked for
                continue
            match = NUMBERED.fullmatch(segment) or (_NUMBER.fullmatch(segment) if at else None)
            if match and not row.path[(row.body or 0) + at].endswith("[]"):
                members = groups.setdefault((path[:at], heads[at], match["stem"]), {})
                members.setdefault(int(match["number"]), {})[path[at + 1 :]] = row.leaf, row.kind
    return {group: _shared(members) for group, members in groups.items()}


def _shared(
    members: Mapping[int, Mapping[LogicalPath, Any]],
) -> Mapping[int, Mapping[LogicalPath, Any]]:
    """What siblings hold, without the streams that some alone have: of one that all share, NNX keeps the first."""
    counts = collections.Counter(path for held in members.values() for path in held)
    return {
        number: {
            path: one
            for path, one in held.items()
            if counts[path] == len(members) or not is_stream(path, held)
        }
        for number, held in members.items()
    }


def _weights_held(held: Mapping[LogicalPath, tuple[Leaf, Any]]) -> frozenset[tuple[Leaf, int]]:
    """How many leaves of each type a node holds; a stream, as of dropout, is of one framework alone."""
    leaves = (leaf for path, (leaf, _) in held.items() if not is_stream(path, held))
    return frozenset(collections.Counter(leaves).items())


def is_stream(path: KeyPath, held: Mapping[Any, tuple[Leaf, Any]]) -> bool:
    """Whether a leaf is a key, or the count beside one.

    Args:
        path: Where it stands.
        held: All that stands beside it, and it: the leaves, and what else is known of them.
    """
    at = (*path[:-1], "key") if path[-1:] == ("count",) else path
    leaf, _ = held.get(at, held[path])  # a sibling that is a leaf itself has no path
    has_count = at[-1:] == ("key",) and (*at[:-1], "count") in held
    return leaf.is_key or (has_count and is_raw_key(leaf.dtype, leaf.dims))


def _strangers(own: ReadSide, other: ReadSide) -> set[tuple[int, Any]]:
    """The lists of a side that the first has no node for: how many layers, and what leaves each holds, whatever their names."""
    counts: dict[LogicalPath, int] = {}
    held: dict[LogicalPath, dict[LogicalPath, tuple[Leaf, Any]]] = collections.defaultdict(dict)
    for path, row in other.weights.items():
        marked = [n for n, one in enumerate(row.model_path) if one.endswith("[]")]
        for at, repeat in zip(marked, row.repeats, strict=True):
            node, count = path[: at + 1], repeat.size[0]
            if isinstance(count, int) and node not in own.nodes:
                counts[node] = count
                held[node][path[at + 1 :]] = row.leaf, row.kind
    return {(counts[node], _weights_held(leaves)) for node, leaves in held.items()}


def model_start(row: Row) -> int:
    """At which segment of a row's key its path in the model begins; less than 0 where all of the path is one key."""
    return len(row.key) - len(row.model_path) - sum(map(_is_number, row.key))


def _is_number(segment: Key | Index) -> bool:
    """Whether a segment is a symbol alone, which is no segment of the path: the name of its list is."""
    return isinstance(segment, Index) and not segment.prefix + segment.suffix


def _heads(row: Row) -> list[Pattern]:
    """What each segment of a row's path in the model stands below, as it is spelled."""
    names = row.model_path
    key = row.key[model_start(row) :]
    heads: list[Pattern] = []
    at = 0
    for _ in names:
        heads.append(key[:at])
        at += 1
        if at < len(key) and _is_number(key[at]):
            at += 1
    return heads
