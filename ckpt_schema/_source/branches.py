"""The rows of a model as the attributes of nested classes: each with what a field says of it."""

from __future__ import annotations

import collections
import dataclasses
import operator
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ckpt_schema._layouts import paths
from ckpt_schema._layouts.dims import Dim
from ckpt_schema._layouts.fallbacks import SameAs
from ckpt_schema._layouts.immutable import immutable
from ckpt_schema._layouts.leaves import ConstantKey, Fill, FreshKey, Leaf
from ckpt_schema._layouts.paths import Index
from ckpt_schema._layouts.table import Row
from ckpt_schema._source.flat_keys import Placed, holds_levels, parted_key, separator_of
from ckpt_schema._source.importing import Imports, quoted

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
        own = (self.count is not None) + (0 if self.leaf is None else len(self.leaf.dims))
        return own + sum(child.width for child in self.children)


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
        name, level = segment.removesuffix("[]"), len(at.axes)
        row = group[0][0]
        axes, count = at.axes, None
        if segment != name:
            several = [row.repeats[level].axis for row, _ in group]
            axes = (*axes, collections.Counter(several).most_common(1)[0][0])
            count = row.repeats[level].size
        is_list = count is not None and axes[-1] is None
        is_leaf = len(row.path) == at.depth + 1
        end = len(group[0][1]) if is_leaf else _end(group, at, name, is_list)
        key = group[0][1][at.start : end]
        said: list[tuple[str, str]] = []
        usual = f"{name}/{{i}}" if is_list else name
        segments: tuple[Any, ...] = key  # of any type that a dict has keys of
        if not all(isinstance(segment, (str, int, Index)) for segment in segments):
            said.append(("key", repr(key)))  # no text is read as such a key
        elif paths.format_path(key) != usual:
            said.append(("key", quoted(paths.format_path(key))))
        if count is not None and axes[-1]:
            said.append(("axis", str(axes[-1])))
        if is_leaf:
            said += self._leaf(row, axes)
            return Branch(name, tuple(said), count, is_list, row.leaf)
        for inside, kind in row.held:
            if len(group[0][1]) - inside == end:
                said.append(("value", self._imports.spell(kind)))
        tags = {row.metadata for row, _ in group if len(row.path) == at.depth + 2}
        tag = next((dict(one)["tag"] for one in tags if dict(one).get("tag")), name)
        if tag != name:
            said.append(("tag", quoted(tag)))
        below = self._below(group, _At(at.depth + 1, end, axes))
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
            separator = separator_of(group, at.depth, at.start)
            if separator:
                group = [(row, parted_key(key, at.start, separator)) for row, key in group]
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
        stacked = [n for n, axis in enumerate(axes) if axis is not None]
        if stacked and row.repeats[stacked[-1]].axis != axes[stacked[-1]]:
            yield "axis", str(row.repeats[stacked[-1]].axis)
        yield from self._declared(row)

    def _declared(self, row: Row) -> Iterator[tuple[str, str]]:
        """What is declared of a row besides what it is."""
        if isinstance(row.default, Fill):
            value = row.default.value
            is_number = value == value and abs(value) != float("inf")
            yield "default", repr(value) if is_number else f'float("{value}")'
        elif isinstance(row.default, (FreshKey, ConstantKey)):
            yield "default", f"cs.{row.default}"
        elif isinstance(row.default, SameAs) and row.default.depth == 1:
            yield "default", f"cs.same_as({quoted('/'.join(row.default.path))})"
        if row.ephemeral:
            yield "ephemeral", "True"
        elif row.optional:
            yield "optional", "True"


_told = operator.attrgetter(
    "leaf", "repeats", "kind", "metadata", "default", "held", "optional", "ephemeral"
)


def _end(group: Sequence[Placed], at: _At, name: str, is_list: bool) -> int:
    """How many segments of the keys of a group lead to the node that they share."""
    first = group[0][1]
    if is_list:
        symbols = (n for n in range(at.start, len(first)) if isinstance(first[n], Index))
        return next(symbols, at.start) + 1
    shares = len({key[at.start : at.start + 1] for _, key in group}) == 1
    segment = first[at.start] if at.start < len(first) else ""
    if shares and not isinstance(segment, Index) and paths.named(segment) == name:
        return at.start + 1
    # Below it, each level keeps one segment at least, or all have one together.
    limit = min(len(key) - (len(row.path) - at.depth - 1) for row, key in group)
    if limit <= at.start:
        several = ((key, len(row.path) - at.depth - 1) for row, key in group)
        if all(holds_levels(key, levels) for key, levels in several):
            limit = min(len(key) for _, key in group) - 1
    end = at.start
    while end < limit and not isinstance(first[end], Index):
        if any(key[end] != first[end] for _, key in group):
            break
        end += 1
    return end


def _stream(group: Sequence[Placed], at: _At) -> str:
    """The implementation of the key of an RNG stream of NNX; empty where a group is none."""
    rows = {row.path[-1]: (row, key) for row, key in group if len(row.path) == at.depth + 1}
    if len(group) != 2 or rows.keys() != {"key", "count"}:
        return ""
    (key, at_key), (count, at_count) = rows["key"], rows["count"]
    kinds: list[Any] = [getattr(row.kind, "__name__", "") for row in (key, count)]
    leaves = not key.leaf.dims and count.leaf == Leaf((), "uint32") and key.leaf.is_key
    if kinds != ["RngKey", "RngCount"] or not leaves:
        return ""
    usual = at_key[at.start :] == ("key",) and at_count[at.start :] == ("count",)
    same = (key.default, key.optional, key.ephemeral, key.metadata) == (
        count.default,
        count.optional,
        count.ephemeral,
        count.metadata,
    )
    first = all(r.axis in (None, 0) for row in (key, count) for r in row.repeats[-1:])
    return key.leaf.dtype[4:-1] if usual and same and first else ""
