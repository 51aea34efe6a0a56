"""Which siblings are a list of layers, and which leaves are stacked: as pieces that belong together show it.

A list has members ``0 .. n-1``. It is one for the lens if each member's pieces belong to pieces of the
other side that have its number too: in a list there, or on an axis of a stack.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from ckpt_schema._layouts.paths import Index, Key, KeyPath, Pattern, fill, format_path
from ckpt_schema._layouts.table import Layout, Row
from ckpt_schema._lens.adapt.siblings import NUMBERED, is_stream, model_start
from ckpt_schema._lens.read_sides import Axes
from ckpt_schema._trees.containers import flatten
from ckpt_schema._trees.inference import infer_tree
from ckpt_schema._trees.slots import SlotFinder
from ckpt_schema.discovery._leaf_pieces import LeafPiece
from ckpt_schema.discovery._models import RunnableModel

__all__ = ["Addresses", "LayerLevels", "found_levels", "single_axes"]

Partners = Mapping[LeafPiece, Sequence[LeafPiece]]
"""For each piece that is told, the pieces of the other side that it belongs to."""


@dataclasses.dataclass(frozen=True)
class LayerLevels:
    """What tells how one side is to be read.

    Attributes:
        lists: Patterns of siblings that are a list of layers, as `infer` takes them.
        scan: The axis of each stacked node, as `infer` takes it.
    """

    lists: tuple[str, ...] = ()
    scan: Mapping[str, Axes] = dataclasses.field(default_factory=dict[str, Axes])

    def beside(self, found: LayerLevels) -> LayerLevels:
        """These, which are given, and those that were found."""
        lists = dict.fromkeys((*self.lists, *found.lists))
        return LayerLevels(tuple(lists), {**found.scan, **self.scan})


class Addresses:
    """Where the leaves of one side stand in its model, by their names.

    Attributes:
        layout: The layout that was read off.
        rows: Its rows, by their logical paths in the model, without those of an optimizer.
        slots: For each leaf, its row, and which layer of it.
        keys: For each leaf, its key path from the model's root on.
        streams: The leaves that are the key or the count of a stream.
    """

    def __init__(self, model: RunnableModel, levels: LayerLevels, name: str) -> None:
        """Reads the layout of a model's leaves."""
        joined = getattr(model, "joined", None)
        self.layout: Layout = infer_tree(
            model.tree, scan=levels.scan, lists=levels.lists, joined=joined, name=name
        )
        # Of rows of one path the first counts.
        self.rows: dict[str, Row] = {}
        for row in reversed(self.layout.rows):
            if not row.mirrors:
                self.rows["/".join(row.model_path)] = row
        finder = SlotFinder(self.layout)
        flat = flatten(model.tree)
        self.slots: dict[str, tuple[Row, tuple[int, ...]]] = {}
        self.keys: dict[str, KeyPath] = {}
        for key in flat.keys:
            slot = finder.slot(key, stored=flat.stored)
            if slot is None:
                continue
            number, indices = slot
            row = self.layout.rows[number]
            self.slots[format_path(key)] = row, indices
            if row.body is not None and not row.mirrors:
                self.keys[format_path(key)] = _body_key(row, indices)
        held = {key: (self.slots[name][0].leaf, name) for name, key in self.keys.items()}
        self.streams = frozenset(name for name, key in self.keys.items() if is_stream(key, held))

    def path(self, name: str) -> str:
        """The logical path of a leaf in its model."""
        row, _ = self.slots[name]
        return "/".join(row.model_path)

    def spoken(self, name: str) -> str:
        """The key path of a leaf in its model, without what a Variable adds: rules say it so, but for numbers of layers."""
        row, indices = self.slots[name]
        head = model_start(row)
        if head < 0:  # all of it is one key
            return name
        return format_path(fill(row.key, indices)[head:])


def _body_key(row: Row, indices: tuple[int, ...]) -> KeyPath:
    """A key path from the model's root on; numbers of a list stand by themselves."""
    # Layer 2 of layers[]/kernel is layers/2/kernel; on an axis of a stack it has no number.
    segments: list[Key] = []
    marks = iter(indices)
    repeats = iter(row.repeats)
    for segment in row.model_path:
        if not segment.endswith("[]"):
            segments.append(segment)
            continue
        segments.append(segment.removesuffix("[]"))
        if next(repeats).axis is None:
            segments.append(next(marks))
    return tuple(segments)


def found_levels(
    models: tuple[RunnableModel, RunnableModel],
    pieces: tuple[Sequence[LeafPiece], Sequence[LeafPiece]],
    partners: tuple[Partners, Partners],
) -> tuple[LayerLevels, LayerLevels]:
    """How both sides are to be read, so that a rule speaks of a layer and not of each.

    Args:
        models: The source and the view.
        pieces: All their pieces.
        partners: What belongs to what, for each side.
    """
    # Each side is read as if it had neither lists nor stacks: every leaf by itself.
    addresses = [Addresses(model, LayerLevels(), "plain") for model in models]
    plain = [side.keys for side in addresses]
    lists: list[list[Pattern]] = []
    for side in (0, 1):
        groups = _sibling_groups(plain[side], addresses[side].streams)
        told: list[_ListName] = []
        for group, members in groups.items():
            if _is_list(members, pieces[side], partners[side], plain[1 - side]):
                told.append(group)
        lists.append(_patterns(told, groups))
    levels: list[LayerLevels] = []
    for side in (0, 1):
        axes = _stacked(pieces[side], partners[side], plain[1 - side])
        scan = _by_node(axes, plain[side], pieces[side])
        patterns = tuple(format_path(pattern) for pattern in lists[side])
        levels.append(LayerLevels(patterns, scan))
    return levels[0], levels[1]


_ListName = tuple[KeyPath, str]
"""Where a list stands, and what stands in front of the numbers of its members."""

_Group = dict[int, dict[KeyPath, str]]
"""By the number of the member: what stands in it, by the path below it, and its name."""


def _sibling_groups(
    keys: Mapping[str, KeyPath], streams: Collection[str]
) -> dict[_ListName, _Group]:
    """Siblings whose names differ in a number, 0 to n-1, and that hold the same.

    Of a stream that all members share NNX keeps the first, so one that some alone have tells nothing.
    """
    # layers_0/norm/scale is {("norm", "scale"): its name} of member 0 of ((), "layers").
    numbered: dict[_ListName, _Group] = collections.defaultdict(dict)
    for name, key in keys.items():
        for depth, segment in enumerate(key):
            match = NUMBERED.fullmatch(segment) if isinstance(segment, str) else None
            if match:
                members = numbered[key[:depth], match["stem"]]
                members.setdefault(int(match["number"]), {})[key[depth + 1 :]] = name
    groups: dict[_ListName, _Group] = {}
    for group, members in numbered.items():
        # One sibling with a number, as a Dense_0, is no list; nor are 1 and 3 without 0 and 2.
        if len(members) < 2 or sorted(members) != [*range(len(members))]:
            continue
        held = {_held(member, streams) for member in members.values()}
        if len(held) == 1:
            groups[group] = members
    return groups


def _held(member: Mapping[KeyPath, str], streams: Collection[str]) -> frozenset[KeyPath]:
    """What stands in a member, without its streams."""
    return frozenset(path for path, name in member.items() if name not in streams)


def _patterns(told: Sequence[_ListName], groups: Iterable[_ListName]) -> list[Pattern]:
    """The patterns of lists; one within the members of another is one pattern, where it is a list in each."""
    outer = set(told)

    def pattern(group: _ListName) -> Pattern:
        # blocks_0/norm_0 is blocks_{}/norm_{} if blocks are a list themselves.
        head, stem = group
        segments: list[Key | Index] = []
        for depth, segment in enumerate(head):
            match = NUMBERED.fullmatch(segment) if isinstance(segment, str) else None
            is_outer = match is not None and (head[:depth], match["stem"]) in outer
            segments.append(Index(match["stem"], text=True) if match and is_outer else segment)
        return (*segments, Index(stem, text=True))

    # How many groups have a pattern, and of how many it is told that they are lists.
    counts = collections.Counter(map(pattern, groups))
    lists = collections.Counter(map(pattern, told))
    return [each for each, count in lists.items() if count == counts[each]]


def _is_list(
    members: _Group, pieces: Sequence[LeafPiece], partners: Partners, others: Mapping[str, KeyPath]
) -> bool:
    """Whether each member's pieces belong to pieces of the same number, in one place for all members."""
    by_leaf = _by_leaf(pieces)
    is_told = False
    for rest in members[0]:
        # A stream that not all have.
        if any(rest not in member for member in members.values()):
            continue
        # For each part of the leaf that all members have, where their partners have the number.
        places: dict[object, list[set[object]]] = collections.defaultdict(list)
        for number, member in sorted(members.items()):
            for piece in by_leaf.get(member[rest], ()):
                for partner in partners.get(piece, ()):
                    part = piece.factors, piece.spans
                    places[part].append(_places(partner, others, number))
        # Member 0 at index 0 of an axis, member 1 at index 1 of another axis: that is no list.
        for of_members in places.values():
            if len(of_members) != len(members) or not set[object].intersection(*of_members):
                return False
            is_told = True
    return is_told


def _by_leaf(pieces: Iterable[LeafPiece]) -> dict[str, list[LeafPiece]]:
    by_leaf: dict[str, list[LeafPiece]] = collections.defaultdict(list)
    for piece in pieces:
        by_leaf[piece.leaf].append(piece)
    return by_leaf


def _places(piece: LeafPiece, keys: Mapping[str, KeyPath], number: int) -> set[object]:
    """Where in its name or shape a piece has a number, with all else that tells it from others."""
    # Number 2 of layers/2/kernel is (("layers",), ("kernel",), ...): for each of a list the same.
    key = keys.get(piece.leaf, ())
    places: set[object] = set()
    for depth, segment in enumerate(key):
        if segment == number and not isinstance(segment, str):
            places.add((key[:depth], key[depth + 1 :], piece.spans))
        match = NUMBERED.fullmatch(segment) if isinstance(segment, str) else None
        if match and int(match["number"]) == number:
            places.add((key[:depth], match["stem"], key[depth + 1 :], piece.spans))
    for axis, index in single_axes(piece):
        if index == number:
            places.add((key, axis, _other_spans(piece, axis)))
    return places


def single_axes(piece: LeafPiece) -> Iterator[tuple[int, int]]:
    """The axes of its leaf that a piece has one index of, and the index; each is one factor."""
    for axis, sizes in enumerate(piece.factors):
        start, stop = piece.spans[piece.first_factor(axis)]
        if len(sizes) == 1 and sizes[0] > 1 and stop == start + 1:
            yield axis, start


def _other_spans(piece: LeafPiece, axis: int) -> tuple[tuple[int, int], ...]:
    """The spans of a piece but for that of an axis, which is one factor."""
    factor = piece.first_factor(axis)
    return (*piece.spans[:factor], *piece.spans[factor + 1 :])


def _stacked(
    pieces: Sequence[LeafPiece], partners: Partners, others: Mapping[str, KeyPath]
) -> dict[str, int]:
    """The axis that a leaf is stacked on, for leaves of which each index belongs to a member of one list."""
    stacked: dict[str, int] = {}
    for leaf, pieces_of_leaf in _by_leaf(pieces).items():
        for axis, _ in single_axes(pieces_of_leaf[0]):
            # For each part of a layer, by the index on the axis, where the partner has that number.
            places: dict[object, dict[int, set[object]]] = collections.defaultdict(dict)
            for piece in pieces_of_leaf:
                index = dict(single_axes(piece)).get(axis)
                if index is None:
                    continue
                for partner in partners.get(piece, ()):
                    part = _other_spans(piece, axis)
                    places[part][index] = _places(partner, others, index)
            size = pieces_of_leaf[0].leaf_shape[axis]
            if places and all(_is_one_list(by_index, size) for by_index in places.values()):
                stacked[leaf] = axis
                break
    return stacked


def _is_one_list(by_index: Mapping[int, set[object]], size: int) -> bool:
    """Whether all indices of an axis have their number in one place."""
    return len(by_index) == size and bool(set[object].intersection(*by_index.values()))


def _by_node(
    axes: Mapping[str, int], keys: Mapping[str, KeyPath], pieces: Sequence[LeafPiece]
) -> dict[str, Axes]:
    """The axis of each stacked node: the highest of which all leaves are stacked, or have no partner.

    A leaf that is stacked on another axis than its siblings is named beside its node.
    """
    unknown = {piece.leaf for piece in pieces} - axes.keys()
    # The axes that each leaf is taken apart on, whether that tells anything or not.
    cut: dict[str, set[int]] = collections.defaultdict(set)
    for piece in pieces:
        for axis, _ in single_axes(piece):
            cut[piece.leaf].add(axis)
    by_node: dict[str, Axes] = {}
    done: set[str] = set()
    for leaf in axes:
        key = keys[leaf]
        head, known = key, [leaf]
        # From the root down: the first node that is stacked whole is the highest.
        for end in range(1, len(key)):
            below = [name for name, other in keys.items() if other[:end] == key[:end]]
            # What no gradient tells is stacked where its siblings are, if it is cut as they are.
            if all(name in axes or (name in unknown and cut[name]) for name in below):
                head, known = key[:end], [name for name in below if name in axes]
                break
        if done.issuperset(known):
            continue
        done.update(known)
        counts = collections.Counter(axes[name] for name in known)
        common = counts.most_common(1)[0][0]
        by_node[format_path(_plain(head))] = common
        for name in known:
            if axes[name] != common:
                by_node[format_path(_plain(keys[name]))] = axes[name]
        for name in unknown:
            if keys[name][: len(head)] == head and common not in cut[name]:
                by_node[format_path(_plain(keys[name]))] = min(cut[name])
    return by_node


def _plain(key: KeyPath) -> KeyPath:
    """A key path without the numbers of lists."""
    return tuple(segment for segment in key if not isinstance(segment, int))
