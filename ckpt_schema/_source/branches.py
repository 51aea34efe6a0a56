"""The rows of a model as the attributes of nested classes: each with what a field says of it.

First step of a text: ``layout_text`` gives the rows of each attribute of the whole tree, and gets branches, of
which ``python_text`` writes classes. Rows whose paths go on with the same segment are one branch:
``layers[]/kernel`` and ``layers[]/bias`` are a branch ``layers`` with two leaves below it.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import operator
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ckpt_schema._layouts import paths
from ckpt_schema._layouts.dims import Dim
from ckpt_schema._layouts.fallbacks import SameAs
from ckpt_schema._layouts.immutable import immutable
from ckpt_schema._layouts.leaves import ConstantKey, Fill, FreshKey, Leaf
from ckpt_schema._layouts.paths import Index, Pattern
from ckpt_schema._layouts.table import Row
from ckpt_schema._messages.text import shown
from ckpt_schema._source.flat_keys import Placed, holds_levels, parted_rows, separator_of
from ckpt_schema._source.importing import Imports, quoted
from ckpt_schema.errors import Mismatch, SchemaError

__all__ = ["Branch", "Grower"]


@immutable
class Branch:
    """An attribute of a class, and what is below it.

    Attributes:
        name: Its logical name, without the mark of a repeated node.
        said: What its field says as it is written, but for sizes and names of dims.
        count: How often it is repeated.
        is_list: Whether each repeat has leaves of its own.
        leaf: What it is, where nothing is below it.
        stream: The implementation of the key, where it is an RNG stream.
        children: What is below it.
        separator: What its class joins the keys below it by; empty where it does not.
    """

    name: str
    said: tuple[tuple[str, str], ...] = ()
    count: Dim | None = None
    is_list: bool = False
    leaf: Leaf | None = None
    stream: str = ""
    children: tuple[Branch, ...] = ()
    separator: str = ""

    @property
    def width(self) -> int:
        """How many dims it and what is below it have together."""
        width = 0 if self.count is None else 1
        if self.leaf is not None:
            width += len(self.leaf.dims)
        for child in self.children:
            width += child.width
        return width


@dataclasses.dataclass(frozen=True, slots=True)
class _At:
    """How far rows have been read: segments of their paths, segments of their keys, and the axes of stacked levels."""

    depth: int = 0
    start: int = 0
    axes: tuple[int | None, ...] = ()


class _Below(NamedTuple):
    """What an attribute has below it, as `Branch` has it."""

    stream: str
    children: tuple[Branch, ...]
    separator: str


class Grower:
    """Reads rows as branches.

    Args:
        imports: Where classes that are named are noted.
        usual: The names of the Variable types that a field need not name: of leaves, and of keys.
    """

    def __init__(self, imports: Imports, usual: tuple[str, str]) -> None:
        """Has read nothing."""
        self._imports, self._usual = imports, usual
        # Equal parts of a model are read once, and are one object: whatever is asked of them later is asked once.
        self._known: dict[tuple[object, ...], _Below] = {}

    def grow(self, rows: Sequence[Placed], depth: int = 0) -> tuple[Branch, ...]:
        """The branches at the root of a model, whose paths begin after ``depth`` segments."""
        return self._branches(rows, _At(depth))

    def _branches(self, rows: Sequence[Placed], at: _At) -> tuple[Branch, ...]:
        groups: dict[str, list[Placed]] = {}
        for placed in rows:
            groups.setdefault(placed[0].path[at.depth], []).append(placed)
        return tuple(self._branch(segment, group, at) for segment, group in groups.items())

    def _branch(self, segment: str, group: Sequence[Placed], at: _At) -> Branch:
        """The branch of the rows whose paths go on with one segment, such as ``layers[]``."""
        name, level = segment.removesuffix("[]"), len(at.axes)
        # What all rows of a group share is read off the first.
        row, first_key = group[0]
        axes, count = at.axes, None
        if segment != name:
            # The field of the node says the axis of most leaves; a leaf on another says so itself.
            votes = collections.Counter([row.repeats[level].axis for row, _ in group])
            axes = (*axes, votes.most_common(1)[0][0])
            count = row.repeats[level].size
        is_list = count is not None and axes[-1] is None
        is_leaf = len(row.path) == at.depth + 1
        end = len(first_key) if is_leaf else _end(group, at, name, is_list)
        said: list[tuple[str, str]] = []
        # A field without a key stands at the attribute's own name, its layers numbered below.
        usual = f"{name}/{{i}}" if is_list else name
        own_key = first_key[at.start : end]
        # Most are spelled as they are called, which is seen before any text is made.
        # A string that looks like a number is none of these: it stands in quotes.
        if own_key != (usual,) or not usual.isidentifier():
            key = _key_text(own_key)
            if key != quoted(usual):
                said.append(("key", key))
        # Layers are stacked on axis 0 unless the field says otherwise.
        if count is not None and axes[-1]:
            said.append(("axis", str(axes[-1])))
        if is_leaf:
            said += self._leaf(row, axes)
            return Branch(name, tuple(said), count, is_list, row.leaf)
        # A Variable that holds a tree of arrays: its type belongs to the node where the Variable is.
        for inside, kind in row.held:
            if len(first_key) - inside == end:
                said.append(("value", self._imports.spell(kind)))
        tag = _tag(group, at.depth)
        if tag not in ("", name):
            said.append(("tag", quoted(tag)))
        below = self._below(group, _At(at.depth + 1, end, axes))
        # A stream is written in one line: what its key declares is said by its field.
        if below.stream:
            said += self._declared(row)
        return Branch(name, tuple(said), count, is_list, None, *below)

    def _below(self, group: Sequence[Placed], at: _At) -> _Below:
        """What is below an attribute."""
        depth, start = at.depth, at.start
        # What tells the rows from those of other parts; objects by their identity, for rows share them.
        marks = [(row.path[depth:], key[start:], *map(id, _told(row))) for row, key in group]
        mark = (at.axes, *marks)
        known = self._known.get(mark)
        if known is None:
            # Keys like "blocks.norm.scale" are taken apart: the class below says that it joins them.
            separator = separator_of(group, at.depth, at.start)
            if separator:
                group = parted_rows(group, at.start, separator)
            stream = _stream(group, at)
            children = () if stream else self._branches(group, at)
            known = self._known[mark] = _Below(stream, children, separator)
        return known

    def _leaf(self, row: Row, axes: Sequence[int | None]) -> Iterator[tuple[str, str]]:
        """What the field of a leaf says of it."""
        usual = self._usual[row.leaf.is_key]
        if isinstance(row.kind, type) and row.kind.__name__ in ("RngKey", "RngCount"):
            # By its name, a type that a stream is made of has the tag of the stream.
            if row.kind.__name__ != usual or row.metadata:
                yield "type", quoted(row.kind.__name__)
        elif isinstance(row.kind, type) and row.kind.__name__ != usual:
            yield "type", self._imports.spell(row.kind)
        elif isinstance(row.kind, str) and row.kind != usual:
            yield "collection", quoted(row.kind)
        # The innermost stack that the leaf is in, and the axis that most leaves of that have.
        for level in reversed(range(len(axes))):
            if axes[level] is not None:
                if row.repeats[level].axis != axes[level]:
                    yield "axis", str(row.repeats[level].axis)
                break
        yield from self._declared(row)

    def _declared(self, row: Row) -> Iterator[tuple[str, str]]:
        """What is declared of a row besides what it is."""
        if isinstance(row.default, Fill):
            value = row.default.value
            # `nan` and `inf` are no words of Python.
            is_literal = value == value and abs(value) != float("inf")
            yield "default", repr(value) if is_literal else f'float("{value}")'
        elif isinstance(row.default, (FreshKey, ConstantKey)):
            yield "default", f"cs.{row.default}"
        elif isinstance(row.default, SameAs) and row.default.depth == 1:
            yield "default", f"cs.same_as({quoted('/'.join(row.default.path))})"
        # What is ephemeral is optional too: saying the first is enough.
        if row.ephemeral:
            yield "ephemeral", "True"
        elif row.optional:
            yield "optional", "True"


_told = operator.attrgetter(
    "leaf", "repeats", "kind", "metadata", "default", "held", "optional", "ephemeral"
)
"""What a field may say of a row."""


def _key_text(key: Pattern) -> str:
    """A key as the field of an attribute writes it: as a string, where one is read as that key.

    A segment may be of any type that a dict has keys of: ``(True, "a")`` is in no string, and is written as a tuple.
    """
    segments: tuple[Any, ...] = key
    is_text = all(isinstance(segment, (str, int, Index)) for segment in segments)
    return quoted(paths.format_path(key)) if is_text else _literal(segments)


def _tag(group: Sequence[Placed], depth: int) -> str:
    """The tag of the stream whose key and count are right below an attribute; empty where there is none."""
    for row, _ in group:
        if row.metadata and len(row.path) == depth + 2:
            tag = dict(row.metadata).get("tag")
            if tag:
                return tag
    return ""


def _end(group: Sequence[Placed], at: _At, name: str, is_list: bool) -> int:
    """How many segments of the keys of a group lead to the node that they share.

    For an attribute ``decoder``, keys ``decoder/norm/scale`` and ``decoder/head/kernel`` give 1. For an attribute
    ``core`` that is spelled otherwise, ``net/inner/norm/scale`` and ``net/inner/head/kernel`` give 2.
    """
    first = group[0][1]
    if is_list:
        # A list ends with the number of the layer: `layers_{i}`, or `layers/{i}`.
        for position in range(at.start, len(first)):
            if isinstance(first[position], Index):
                return position + 1
        return at.start + 1
    shares = len({key[at.start : at.start + 1] for _, key in group}) == 1
    segment = first[at.start] if at.start < len(first) else ""
    if shares and not isinstance(segment, Index) and paths.named(segment) == name:
        return at.start + 1
    end = at.start
    limit = _longest(group, at)
    while end < limit and not isinstance(first[end], Index):
        if any(key[end] != first[end] for _, key in group):
            break
        end += 1
    return end


def _longest(group: Sequence[Placed], at: _At) -> int:
    """How many segments of the keys of a group may lead to a node: each level below it keeps one at least."""
    limits: list[int] = []
    lengths: list[int] = []
    all_joined = True
    for row, key in group:
        levels = len(row.path) - at.depth - 1
        limits.append(len(key) - levels)
        lengths.append(len(key))
        all_joined = all_joined and holds_levels(key, levels)
    # Or all levels have one segment together: the last, in which they are joined.
    if min(limits) <= at.start and all_joined:
        return min(lengths) - 1
    return min(limits)


def _stream(group: Sequence[Placed], at: _At) -> str:
    """The implementation of the key of an RNG stream of NNX; empty where a group is none.

    A stream is written as ``cs.Stream["threefry2x32"]``, which says of both its leaves all that stands here.
    """
    if len(group) != 2:
        return ""
    leaves: dict[str, Placed] = {}
    for row, key in group:
        if len(row.path) == at.depth + 1:
            leaves[row.path[-1]] = row, key
    if leaves.keys() != {"key", "count"}:
        return ""
    (key, at_key), (count, at_count) = leaves["key"], leaves["count"]
    if not key.leaf.is_key or key.leaf.dims or count.leaf != Leaf((), "uint32"):
        return ""
    for row, kind in ((key, "RngKey"), (count, "RngCount")):
        if getattr(row.kind, "__name__", "") != kind:
            return ""
        # Nothing in one line could say that layers are stacked on another axis than the first.
        if row.repeats and row.repeats[-1].axis not in (None, 0):
            return ""
    if at_key[at.start :] != ("key",) or at_count[at.start :] != ("count",):
        return ""
    # One field declares both.
    declared = operator.attrgetter("default", "optional", "ephemeral", "metadata")
    if declared(key) != declared(count):
        return ""
    # "threefry2x32" of the dtype "key<threefry2x32>".
    return key.leaf.dtype[4:-1]


def _literal(keys: tuple[Any, ...]) -> str:
    """Keys as Python writes them.

    Raises:
        SchemaError: One of them is of a type whose values have no such spelling, or is beside a list's numbers.
    """
    if all(map(_is_literal, keys)):
        return repr(keys)
    expected = "keys that are texts, numbers, None, or tuples of them"
    fault = Mismatch("/".join(map(str, keys)), "declaration", expected, shown(keys))
    raise SchemaError("a key cannot be written as Python", [fault])


def _is_literal(key: Any) -> bool:
    if type(key) is tuple:
        several: tuple[Any, ...] = key
        return all(map(_is_literal, several))
    is_number = type(key) is int or (type(key) is float and math.isfinite(key))
    return key is None or type(key) in (str, bool) or is_number
