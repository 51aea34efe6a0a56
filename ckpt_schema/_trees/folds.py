"""Repeated nodes of a model that nobody has declared: lists of layers, in one another, and layers that are stacked."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ckpt_schema._frameworks.envelopes import Envelope, Found, Read
from ckpt_schema._layouts import leaves, paths
from ckpt_schema._layouts.paths import Index, Key, KeyPath, LogicalPath, Pattern, named
from ckpt_schema._layouts.streams import is_raw_key
from ckpt_schema.errors import Mismatch, SchemaError

__all__ = ["Fold", "Folds", "folded"]

_BARE = "write its path in the model, without params or model in front"
_OR_WHOLE = f"{_BARE}; outside of the model, its whole key path"
_OWN_AXIS = "give it its own beside, as scan={{{!r}: 0}}, or None where it is not stacked"


_Axes = Mapping[Any, int | None]
"""The axis that leaves are stacked on, by collection or Variable type.

``object`` stands for any.
"""


def _by_kind(given: int | Mapping[Any, int] | None) -> _Axes:
    return given if isinstance(given, Mapping) else {object: given}


def _axis_of(kind: Any, axes: _Axes) -> int | None:
    """The axis for a leaf of a collection or Variable type: that of the nearest type that is named."""
    own: list[Any] = [*kind.__mro__] if isinstance(kind, type) else [kind, object]
    return next((axes[one] for one in own if one in axes), None)


@dataclasses.dataclass(frozen=True, slots=True)
class Fold:
    """How one body key is seen as part of repeated nodes.

    Attributes:
        path: Its logical path, each repeated node with a mark.
        key: What it is spelled as, with an index symbol for each list.
        levels: For each mark, how many members the list has; None where the layers are stacked.
        axis: The axis that they are stacked on.
    """

    path: LogicalPath
    key: Pattern
    levels: tuple[int | None, ...]
    axis: int | None = None


_Stack = tuple[int, int]
"""Which segment of a key is a stacked node, and the axis that the leaf is stacked on."""


@dataclasses.dataclass(frozen=True, slots=True)
class Folds:
    """How keys are seen that are part of repeated nodes.

    Attributes:
        model: For keys in the model.
        beside: For whole key paths of leaves outside of it.
    """

    model: dict[KeyPath, Fold]
    beside: dict[KeyPath, Fold]


def folded(
    read: Read,
    scan: Mapping[str, int | Mapping[Any, int] | None],
    lists: Sequence[str],
    kinds: Envelope,
) -> Folds:
    """For each key of a tree that is part of a repeated node, how.

    Args:
        read: The leaves of the tree.
        scan: As in `infer`.
        lists: As in `infer`.
        kinds: What the tree is, for the collections of its leaves.

    Raises:
        SchemaError: With every list and every stacked node that the model does not have, or not so.
    """
    if not scan and not lists and not any(isinstance(key, int) for key in read.segments):
        return Folds({}, {})  # names alone show no list
    keys = {body: leaf for leaf in read.leaves if (body := kinds.body(leaf.key)) is not None}
    faults: list[Mismatch] = []
    axes = {node: _by_kind(axis) for node, axis in scan.items()}
    patterns_ = [paths.parse_pattern(text) for text in lists]
    stacked = {paths.parse_path(text) for text in scan}
    listed = _Lists(keys, _heads(patterns_), stacked)
    outside = _outside(read, kinds) if lists else {}
    others = _Lists(outside, _heads(patterns_), set(), named_alone=True)
    patterns = {key: pattern for pattern, inner in listed.members.items() for key in inner}
    stacks = dict(_stacked(keys, patterns, axes, kinds, faults))
    folds: dict[KeyPath, Fold] = {}
    for pattern, members in listed.members.items():
        for key in members:
            stack = stacks.get(key)
            if stack is not None or listed.counts[pattern]:
                folds[key] = _fold(pattern, listed.counts[pattern], stack)
    lone: dict[KeyPath, Fold] = {}
    for pattern, members in others.members.items():
        if others.counts[pattern]:
            lone |= dict.fromkeys(members, _fold(pattern, others.counts[pattern], None))
    known = {fold.key for fold in (*folds.values(), *lone.values())}
    faults += _unused_lists(patterns_, listed.seen | others.seen, known)
    if faults:
        raise SchemaError("scan= and lists= do not fit the tree", faults)
    return Folds(folds, lone)


def _outside(read: Read, kinds: Envelope) -> dict[KeyPath, Found]:
    """The leaves that are not of the model, nor kept like it, nor an optimizer's, by their key paths."""
    heads = [prefix for prefix, _ in kinds.weights] + [*kinds.copies]
    heads += [kinds.optimizer] if kinds.optimizer is not None else []
    own = [leaf for leaf in read.leaves if not any(leaf.key[: len(h)] == h for h in heads)]
    return {leaf.key: leaf for leaf in own}


def _heads(named: Sequence[Pattern]) -> list[Pattern]:
    """The lists that patterns name, those on the way to another included."""
    ends = [
        (pattern, end + 1)
        for pattern in named
        for end, segment in enumerate(pattern)
        if isinstance(segment, Index)
    ]
    return [pattern[:end] for pattern, end in ends]


class _Lists:
    """The keys of a body, and which of them are one leaf of the members of lists.

    Outer lists are folded first.

    Attributes:
        members: For each pattern, the keys that it spells.
        counts: How many members each list has that is an index symbol of a pattern.
        seen: Nodes that could be lists, whether their members are alike or not.
    """

    def __init__(
        self,
        keys: Mapping[KeyPath, Found],
        named: Sequence[Pattern],
        stacked: set[LogicalPath],
        *,
        named_alone: bool = False,
    ) -> None:
        self._keys, self._stacked, self._named_alone = keys, stacked, named_alone
        self._named: dict[Pattern, list[Index]] = {}  # the symbols, by the node that each is in
        for *head, symbol in named:
            if isinstance(symbol, Index):
                self._named.setdefault(_unquoted(head), []).append(symbol)
        self.members: dict[Pattern, list[KeyPath]] = {key: [key] for key in keys}
        self.counts: dict[Pattern, tuple[int, ...]] = dict.fromkeys(self.members, ())
        self.seen: set[Pattern] = set()
        for at in range(max(map(len, keys), default=0)):
            self._take_together(at)

    def _take_together(self, at: int) -> None:
        """Takes the keys together that differ in one segment alone, where that counts alike members."""
        heads: dict[Pattern, dict[Pattern, dict[int, Pattern]]] = {}
        for pattern in self.members:
            found = self._symbol(pattern, at)
            if found is not None:
                symbol, number = found
                rests = heads.setdefault((*pattern[:at], symbol), {})
                rests.setdefault(pattern[at + 1 :], {})[number] = pattern
        self.seen.update(heads)
        for head, every in heads.items():
            rests = self._shared(every)
            if not self._alike(rests):
                continue
            for rest, each in rests.items():
                inner = [each[number] for number in sorted(each)]
                count = self.counts[inner[0]]
                keys = [key for pattern in inner for key in self.members.pop(pattern)]
                self.members[(*head, *rest)] = keys
                self.counts[(*head, *rest)] = (*count, len(inner))

    def _symbol(self, pattern: Pattern, at: int) -> tuple[Index, int] | None:
        """The index symbol that a segment may be, and the index that it then is."""
        key = pattern[at] if at < len(pattern) else None
        if key is None or isinstance(key, Index):
            return None
        for said in self._named.get(_unquoted(pattern[:at]), ()) if self._named else ():
            symbol = _as_spelled(said, key)
            index = symbol.index(key)
            if index is not None:
                return symbol, index
        is_shown = at > 0 and not self._named_alone
        if not isinstance(key, int) or not is_shown or isinstance(pattern[at - 1], Index):
            return (
                None  # a mark stands on a name: of a list of lists, the outer one is folded alone
            )
        above = tuple(named(one) for one in pattern[:at] if not isinstance(one, Index))
        return None if above in self._stacked else (Index(), key)

    def _shared(
        self, rests: Mapping[Pattern, Mapping[int, Pattern]]
    ) -> Mapping[Pattern, Mapping[int, Pattern]]:
        """The leaves without the streams that some members alone have: of one that all share, NNX keeps the first."""
        numbers = {number for each in rests.values() for number in each}
        return {
            rest: each
            for rest, each in rests.items()
            if len(each) == len(numbers)
            or not all(self._is_stream(key) for p in each.values() for key in self.members[p])
        }

    def _is_stream(self, key: KeyPath) -> bool:
        """Whether a leaf is a key, or the count beside one.

        A checkpoint has lost its Variable type; an older one has lost what kind of key it is, too.
        """
        at = (*key[:-1], "key") if key[-1] == "count" else key
        told = leaves.signature(self._keys[at].value) if at in self._keys else None
        if told is None or str(told[1]).startswith("key<"):
            return told is not None
        has_count = (*at[:-1], "count") in self._keys
        return at[-1] == "key" and has_count and is_raw_key(str(told[1]), told[0])

    def _alike(self, rests: Mapping[Pattern, Mapping[int, Pattern]]) -> bool:
        """Whether every member of a list has every leaf, of one shape and dtype."""
        numbers = {tuple(sorted(each)) for each in rests.values()}
        if len(numbers) != 1 or any(one != tuple(range(len(one))) for one in numbers):
            return False
        for each in rests.values():
            first = [self.members[pattern][0] for pattern in each.values()]
            if len({leaves.signature(self._keys[k].value) for k in first}) != 1:
                return False
            if len({self.counts[pattern] for pattern in each.values()}) != 1:
                return False
        return True


def _is_number(symbol: Index) -> bool:
    """Whether a symbol is all of a key."""
    return symbol.then is None and not symbol.prefix and not symbol.suffix and not symbol.width


def _as_spelled(symbol: Index, key: Key) -> Index:
    """A symbol for keys of this kind: whoever names a list need not know whether its numbers are strings."""
    return dataclasses.replace(symbol, text=isinstance(key, str)) if _is_number(symbol) else symbol


def _unquoted(pattern: Sequence[Key | Index]) -> Pattern:
    """A pattern that says of no number whether it is a string."""
    return tuple([_as_spelled(one, 0) if isinstance(one, Index) else one for one in pattern])


def _fold(pattern: Pattern, counts: Sequence[int], stack: _Stack | None) -> Fold:
    """``layers_{i}`` and ``layers/{i}`` are both the logical node ``layers[]``, as is a stacked ``layers``."""
    names: list[str] = []
    levels: list[int | None] = []
    left = iter(counts)
    for at, segment in enumerate(pattern):
        if isinstance(segment, Index):
            levels.append(next(left))
            stem = named((segment.prefix + segment.suffix).strip("_-."))
            if stem != named(""):
                names.append(stem)
            names[-1] = f"{names[-1]}[]"
        else:
            names.append(named(segment))
        if stack is not None and at == stack[0]:
            levels.append(None)
            names[-1] = f"{names[-1]}[]"
    return Fold(tuple(names), pattern, tuple(levels), None if stack is None else stack[1])


def _ends(pattern: Pattern) -> dict[LogicalPath, int]:
    """The nodes on a pattern by their names without numbers, and the segment after each."""
    ends: dict[LogicalPath, int] = {}
    names: LogicalPath = ()
    for at, segment in enumerate(pattern):
        if isinstance(segment, Index):
            stem = (segment.prefix + segment.suffix).strip("_-.")
            if not stem:
                continue
            names = (*names, named(stem))
        else:
            names = (*names, named(segment))
        ends[names] = at + 1
    return ends


class _StackPaths:
    """The paths of nodes under scans, and of what is in them, some with stars, each with its axes."""

    def __init__(self, scan: Mapping[str, _Axes]) -> None:
        self.axes = {paths.parse_path(text): axes for text, axes in scan.items()}
        self._globs = [path for path in self.axes if any("*" in one for one in path)]

    def along(self, ends: Mapping[LogicalPath, int]) -> list[tuple[int, int, LogicalPath]]:
        """Those that lead to a node on the way to a leaf: where each ends, and how many segments it names; the last decides."""
        found: list[tuple[int, int, LogicalPath]] = []
        for node, end in ends.items():
            if node in self.axes:
                found.append((end, len(node), node))
            for glob in self._globs:
                if paths.glob_means(glob, node):
                    found.append((end, sum("*" not in one for one in glob), glob))
        return sorted(found)


def _stacked(
    keys: Mapping[KeyPath, Found],
    patterns: Mapping[KeyPath, Pattern],
    scan: Mapping[str, _Axes],
    kinds: Envelope,
    faults: list[Mismatch],
) -> Iterator[tuple[KeyPath, _Stack]]:
    """Which leaves stand below stacked nodes, and on what axis each is stacked.

    A path inside of a stacked node says that leaves below it are stacked on another axis. The path of a
    node inside of a list has no numbers: ``layers/blocks`` is the blocks of every layer.
    """
    heads = _StackPaths(scan)
    used: set[LogicalPath] = set()
    for key, leaf in keys.items() if scan else ():
        spelled = tuple(map(named, key))
        ends = {spelled[:end]: end for end in range(1, len(key) + 1)}
        ends |= _ends(patterns[key])
        above = heads.along(ends)
        used.update(head for _, _, head in above)
        kind = leaf.kind or kinds.collection(leaf.key)
        axis = _axis_of(kind, heads.axes[above[-1][2]]) if above else None
        if axis is None:
            continue
        rank = len((leaves.signature(leaf.value) or ((),))[0])
        at = above[0][0] - 1
        where = paths.format_path(key)
        if not -rank <= axis < rank:
            expected, found = f"a leaf with axis {axis}", leaves.describe(leaf.value)
            hint = _OWN_AXIS.format("/".join(max(_ends(patterns[key]), key=len)))
            faults.append(Mismatch(where, "shape", expected, found, hint))
        following = patterns[key][at + 1 : at + 2]
        if isinstance(patterns[key][at], Index) or following == (Index(),):
            expected, found = (
                "a stack of layers",
                "a stack that is a list, or is in one, by one name",
            )
            faults.append(Mismatch(where, "declaration", expected, found, "declare it as a class"))
        yield key, (at, axis % max(rank, 1))
    for head in heads.axes.keys() - used:
        where = "/".join(head)
        faults.append(Mismatch(where, "rule", "a node of the model", "no leaf below it", _BARE))


def _unused_lists(
    named: Sequence[Pattern], heads: set[Pattern], keys: Iterable[Pattern]
) -> Iterator[Mismatch]:
    lengths = {len(one) for one in named}
    used = {_unquoted(key[:length]) for key in keys for length in lengths}
    seen = {_unquoted(head) for head in heads}
    for pattern in named:
        if _unquoted(pattern) not in used:
            where, expected = paths.format_path(pattern), "a repeated node of the model"
            if _unquoted(pattern) in seen:
                yield Mismatch(
                    where,
                    "rule",
                    expected,
                    "members that differ",
                    "members 0 .. n-1 must have the same leaves",
                )
            else:
                yield Mismatch(where, "rule", expected, "no such node", _OR_WHOLE)
