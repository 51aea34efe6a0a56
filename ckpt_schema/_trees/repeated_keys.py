"""Repeated nodes of a model that nobody has declared: lists of layers, in one another, and layers that are stacked.

`inference` asks before it makes rows of the leaves of a tree. ``layers/0/w`` and ``layers/1/w`` are
one row, ``layers/{i}/w``; so are they where ``lists=`` says it of ``layers_0`` and ``layers_1``. A key
under ``scan=`` stays one row with one level more.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ckpt_schema._frameworks.envelopes import Envelope, Found, Read
from ckpt_schema._layouts import leaves, paths
from ckpt_schema._layouts.paths import Index, Key, KeyPath, LogicalPath, Pattern, named
from ckpt_schema._layouts.streams import is_raw_key
from ckpt_schema.errors import Mismatch, SchemaError

__all__ = ["RepeatedKey", "RepeatedKeys", "repeated_keys"]

# What to do about a path in scan= or lists= that leads nowhere, and about a leaf without the axis.
_BARE = "write its path in the model, without params or model in front"
_OR_WHOLE = f"{_BARE}; outside of the model, its whole key path"
_OWN_AXIS = "give it its own beside, as scan={{{!r}: 0}}, or None where it is not stacked"


_Axes = Mapping[Any, int | None]
"""The axis that leaves are stacked on, by collection or Variable type.

``object`` stands for any.
"""


def _by_kind(given: int | Mapping[Any, int] | None) -> _Axes:
    # One axis is the axis of all leaves: scan={"layers": 0} is scan={"layers": {object: 0}}.
    return given if isinstance(given, Mapping) else {object: given}


def _axis_of(kind: Any, axes: _Axes) -> int | None:
    """The axis for a leaf of a collection or Variable type: that of the nearest type that is named."""
    # A collection of Linen is a string, which is of no type but any.
    kinds: list[Any] = [*kind.__mro__] if isinstance(kind, type) else [kind, object]
    for nearest in kinds:
        if nearest in axes:
            return axes[nearest]
    return None


@dataclasses.dataclass(frozen=True, slots=True)
class RepeatedKey:
    """A key of the model that is part of repeated nodes, as a row spells it.

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
class RepeatedKeys:
    """The keys of a tree that are part of repeated nodes.

    Attributes:
        model: For keys in the model.
        beside: For whole key paths of leaves outside of it.
    """

    model: dict[KeyPath, RepeatedKey]
    beside: dict[KeyPath, RepeatedKey]


def repeated_keys(
    read: Read,
    scan: Mapping[str, int | Mapping[Any, int] | None],
    lists: Sequence[str],
    kinds: Envelope,
) -> RepeatedKeys:
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
        return RepeatedKeys({}, {})  # names alone show no list
    # The leaves of the model by their keys in it, without params or model in front.
    keys: dict[KeyPath, Found] = {}
    for leaf in read.leaves:
        body = kinds.body(leaf.key)
        if body is not None:
            keys[body] = leaf
    faults: list[Mismatch] = []
    axes = {node: _by_kind(axis) for node, axis in scan.items()}
    lists_named = [*map(paths.parse_pattern, lists)]
    stacked = set(map(paths.parse_path, scan))
    listed = _Lists(keys, _heads(lists_named), stacked)
    # Outside of the model a number may mean anything, so a list is one there by its name alone.
    outside = _outside(read, kinds) if lists else {}
    others = _Lists(outside, _heads(lists_named), set(), named_alone=True)
    patterns: dict[KeyPath, Pattern] = {}
    for pattern, members in listed.members.items():
        patterns |= dict.fromkeys(members, pattern)
    stacks = dict(_stacked(keys, patterns, axes, kinds, faults))
    # What is in no list and no stack is not repeated: its path is its key.
    model: dict[KeyPath, RepeatedKey] = {}
    for pattern, members in listed.members.items():
        for key in members:
            stack = stacks.get(key)
            if stack is not None or listed.counts[pattern]:
                model[key] = _repeated_key(pattern, listed.counts[pattern], stack)
    beside: dict[KeyPath, RepeatedKey] = {}
    for pattern, members in others.members.items():
        if others.counts[pattern]:
            beside |= dict.fromkeys(members, _repeated_key(pattern, others.counts[pattern], None))
    known: set[Pattern] = set()
    for repeated in (*model.values(), *beside.values()):
        known.add(repeated.key)
    faults += _unused_lists(lists_named, listed.seen | others.seen, known)
    if faults:
        raise SchemaError("scan= and lists= do not fit the tree", faults)
    return RepeatedKeys(model, beside)


def _outside(read: Read, kinds: Envelope) -> dict[KeyPath, Found]:
    """The leaves that are not of the model, nor kept like it, nor an optimizer's, by their key paths."""
    heads = [prefix for prefix, _ in kinds.weights] + [*kinds.copies]
    heads += [kinds.optimizer] if kinds.optimizer is not None else []
    outside: dict[KeyPath, Found] = {}
    for leaf in read.leaves:
        if not any(leaf.key[: len(head)] == head for head in heads):
            outside[leaf.key] = leaf
    return outside


def _heads(named: Sequence[Pattern]) -> list[Pattern]:
    """The lists that patterns name, those on the way to another included."""
    # towers_{i}/layers_{j}/w names two: towers_{i}, and towers_{i}/layers_{j}.
    heads: list[Pattern] = []
    for pattern in named:
        for at, segment in enumerate(pattern):
            if isinstance(segment, Index):
                heads.append(pattern[: at + 1])
    return heads


class _Lists:
    """The keys of a body, and which of them are one leaf of the members of lists.

    Outer lists are taken together first.

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
        # At first each key is a pattern of its own, without a symbol.
        self.members: dict[Pattern, list[KeyPath]] = {key: [key] for key in keys}
        self.counts: dict[Pattern, tuple[int, ...]] = dict.fromkeys(self.members, ())
        self.seen: set[Pattern] = set()
        # From the front, so that an inner list is read once for all members of the outer one.
        for at in range(max(map(len, keys), default=0)):
            self._take_together(at)

    def _take_together(self, at: int) -> None:
        """Takes the keys together that differ in one segment alone, where that counts alike members."""
        # layers/0/w stands under the head layers/{i}, the rest w and the number 0.
        heads: dict[Pattern, dict[Pattern, dict[int, Pattern]]] = {}
        for pattern in self.members:
            found = self._symbol(pattern, at)
            if found is not None:
                symbol, number = found
                rests = heads.setdefault((*pattern[:at], symbol), {})
                rests.setdefault(pattern[at + 1 :], {})[number] = pattern
        # An error tells these from nodes that the tree does not have at all.
        self.seen.update(heads)
        for head, every in heads.items():
            rests = self._shared(every)
            # All leaves of a node or none: a half of it that is a list would be two nodes.
            if not self._alike(rests):
                continue
            for rest, numbered in rests.items():
                # Layers are alike: the first tells how many members the lists above have.
                count = self.counts[numbered[0]]
                keys: list[KeyPath] = []
                for number in sorted(numbered):
                    keys += self.members.pop(numbered[number])
                self.members[(*head, *rest)] = keys
                self.counts[(*head, *rest)] = (*count, len(numbered))

    def _symbol(self, pattern: Pattern, at: int) -> tuple[Index, int] | None:
        """The index symbol that a segment may be, and the index that it then is."""
        key = pattern[at] if at < len(pattern) else None
        if key is None or isinstance(key, Index):
            return None
        # What lists= says comes first: it may be of names, layers_0, which show nothing by themselves.
        for said in self._named.get(_unquoted(pattern[:at]), ()) if self._named else ():
            symbol = _as_spelled(said, key)
            index = symbol.index(key)
            if index is not None:
                return symbol, index
        is_shown = at > 0 and not self._named_alone
        if not isinstance(key, int) or not is_shown:
            return None
        # A mark stands on a name: of a list of lists, the outer one alone is a list.
        if isinstance(pattern[at - 1], Index):
            return None
        # scan= says that the node is a stack; its numbers are no layers then.
        above = tuple(named(one) for one in pattern[:at] if not isinstance(one, Index))
        return None if above in self._stacked else (Index(), key)

    def _shared(
        self, rests: Mapping[Pattern, Mapping[int, Pattern]]
    ) -> Mapping[Pattern, Mapping[int, Pattern]]:
        """The leaves without the streams that some members alone have: of one that all share, NNX keeps the first."""
        numbers: set[int] = set()
        for numbered in rests.values():
            numbers.update(numbered)
        shared: dict[Pattern, Mapping[int, Pattern]] = {}
        for rest, numbered in rests.items():
            if len(numbered) == len(numbers) or not self._are_streams(numbered.values()):
                shared[rest] = numbered
        return shared

    def _are_streams(self, patterns: Iterable[Pattern]) -> bool:
        """Whether all keys that some patterns spell are of streams."""
        keys = itertools.chain.from_iterable(map(self.members.__getitem__, patterns))
        return all(map(self._is_stream, keys))

    def _is_stream(self, key: KeyPath) -> bool:
        """Whether a leaf is a key, or the count beside one.

        A checkpoint has lost its Variable type; an older one has lost what kind of key it is, too.
        """
        own_key = (*key[:-1], "key") if key[-1] == "count" else key
        told = leaves.signature(self._keys[own_key].value) if own_key in self._keys else None
        if told is None:
            return False
        shape, dtype = told[0], str(told[1])
        if dtype.startswith("key<"):
            return True
        # uint32[2] may be anything: it is a raw key where it is called so and has a count beside it.
        has_count = (*own_key[:-1], "count") in self._keys
        return own_key[-1] == "key" and has_count and is_raw_key(dtype, shape)

    def _alike(self, rests: Mapping[Pattern, Mapping[int, Pattern]]) -> bool:
        """Whether every member of a list has every leaf, of one shape and dtype."""
        members: list[int] | None = None
        for numbered in rests.values():
            numbers = sorted(numbered)
            # Members 0, 1, ... without a gap: a dict by number of step, 100 and 200, is no list.
            if numbers != list(range(len(numbers))) or members not in (None, numbers):
                return False
            members = numbers
            signatures: set[Any] = set()
            counts: set[tuple[int, ...]] = set()
            for pattern in numbered.values():
                # Keys that were taken together before are alike already, so that the first stands for all.
                first = self.members[pattern][0]
                signatures.add(leaves.signature(self._keys[first].value))
                # Two towers of three and of four layers are no list of towers.
                counts.add(self.counts[pattern])
            if len(signatures) != 1 or len(counts) != 1:
                return False
        return members is not None


def _is_number(symbol: Index) -> bool:
    """Whether a symbol is all of a key."""
    return symbol.then is None and not symbol.prefix and not symbol.suffix and not symbol.width


def _as_spelled(symbol: Index, key: Key) -> Index:
    """A symbol for keys of this kind: whoever names a list need not know whether its numbers are strings."""
    return dataclasses.replace(symbol, text=isinstance(key, str)) if _is_number(symbol) else symbol


def _unquoted(pattern: Sequence[Key | Index]) -> Pattern:
    """A pattern that says of no number whether it is a string."""
    return tuple([_as_spelled(one, 0) if isinstance(one, Index) else one for one in pattern])


def _repeated_key(pattern: Pattern, counts: Sequence[int], stack: _Stack | None) -> RepeatedKey:
    """``layers_{i}`` and ``layers/{i}`` are both the logical node ``layers[]``, as is a stacked ``layers``."""
    names: list[str] = []
    levels: list[int | None] = []
    left = iter(counts)
    for at, segment in enumerate(pattern):
        if isinstance(segment, Index):
            levels.append(next(left))
            # A symbol that is all of its key has no name, and marks the node above it.
            stem = named((segment.prefix + segment.suffix).strip("_-."))
            if stem != named(""):
                names.append(stem)
            names[-1] = f"{names[-1]}[]"
        else:
            names.append(named(segment))
        if stack is not None and at == stack[0]:
            levels.append(None)
            names[-1] = f"{names[-1]}[]"
    return RepeatedKey(tuple(names), pattern, tuple(levels), None if stack is None else stack[1])


def _ends(pattern: Pattern) -> dict[LogicalPath, int]:
    """The nodes on a pattern by their names without numbers, and the segment after each."""
    # layers_{i}/mlp/w: layers ends at 1, layers/mlp at 2, layers/mlp/w at 3.
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
        # Most are plain paths, which a dict finds; each glob is tried on each node.
        self._globs = [path for path in self.axes if "*" in "".join(path)]

    def along(self, ends: Mapping[LogicalPath, int]) -> list[tuple[int, int, LogicalPath]]:
        """Those that lead to a node on the way to a leaf: where each ends, and how many segments it names; the last decides."""
        found: list[tuple[int, int, LogicalPath]] = []
        for node, end in ends.items():
            if node in self.axes:
                found.append((end, len(node), node))
            for glob in self._globs:
                if paths.glob_means(glob, node):
                    plain = [name for name in glob if "*" not in name]
                    found.append((end, len(plain), glob))
        # The innermost node comes last, and of several paths to one node the one with fewest stars.
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
        # A node in a list may be said with its number, layers/0/blocks, or without.
        spelled = tuple(map(named, key))
        ends = {spelled[:end]: end for end in range(1, len(key) + 1)}
        ends |= _ends(patterns[key])
        above = heads.along(ends)
        if not above:
            continue
        for _, _, head in above:
            used.add(head)
        # The outermost path says which node is the stack, the innermost on what axis this leaf is.
        node = above[0][0] - 1
        kind = leaf.kind or kinds.collection(leaf.key)
        axis = _axis_of(kind, heads.axes[above[-1][2]])
        if axis is None:
            continue
        rank = len((leaves.signature(leaf.value) or ((),))[0])
        where = paths.format_path(key)
        if not -rank <= axis < rank:
            expected, found = f"a leaf with axis {axis}", leaves.describe(leaf.value)
            hint = _OWN_AXIS.format("/".join(max(_ends(patterns[key]), key=len)))
            faults.append(Mismatch(where, "shape", expected, found, hint))
        # The logical node would be layers[][]: two marks on one name, which no path can spell.
        following = patterns[key][node + 1 : node + 2]
        if isinstance(patterns[key][node], Index) or following == (Index(),):
            expected = "a stack of layers"
            found = "a stack that is a list, or is in one, by one name"
            faults.append(Mismatch(where, "declaration", expected, found, "declare it as a class"))
        # Faults are collected, so the axis of a wrong leaf has to be some axis as well.
        yield key, (node, axis % max(rank, 1))
    for head in heads.axes.keys() - used:
        where = "/".join(head)
        faults.append(Mismatch(where, "rule", "a node of the model", "no leaf below it", _BARE))


def _unused_lists(
    named: Sequence[Pattern], heads: set[Pattern], keys: Iterable[Pattern]
) -> Iterator[Mismatch]:
    """A fault for each pattern of ``lists=`` that made no list."""
    lengths = set(map(len, named))
    used: set[Pattern] = set()
    for key in keys:
        for length in lengths:
            used.add(_unquoted(key[:length]))
    seen = set(map(_unquoted, heads))
    for pattern in named:
        if _unquoted(pattern) in used:
            continue
        found, hint = "no such node", _OR_WHOLE
        if _unquoted(pattern) in seen:
            found, hint = "members that differ", "members 0 .. n-1 must have the same leaves"
        where, expected = paths.format_path(pattern), "a repeated node of the model"
        yield Mismatch(where, "rule", expected, found, hint)
