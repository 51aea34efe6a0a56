"""Two optimizer states of chains that differ: which part of one is which part of the other, where that is beyond doubt.

A run adds clipping, or a schedule, and every part of the old state stands one position further.
Parts are told by the type of their state and by the labels on the way to them, never by their
position alone: ``opt_state/0/count`` may be Adam's count in one chain and a schedule's in the
other.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.table import Layout, Part, Row

__all__ = ["Alignment", "Owners", "Settled", "align"]

Settled = tuple[LogicalPath | None, LogicalPath | None]


class Owners:
    """Which part of its layout each row of the optimizer state belongs to."""

    def __init__(self, table: Layout) -> None:
        """Reads the parts of ``table``."""
        self._parts = {part.path: part for part in table.parts}

    def part(self, row: Row) -> Part | None:
        """The innermost part that the row stands in."""
        if not row.optimizer:
            return None
        ends = range(min(row.body or len(row.path), len(row.path) - 1), 0, -1)
        return next(
            (self._parts[row.path[:end]] for end in ends if row.path[:end] in self._parts), None
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Alignment:
    """What `align` found.

    Attributes:
        moved: For parts of the source that stand elsewhere in the view: where.
        apart: The parts of the source, and of the view, that keep something and have no partner, or
            several.
    """

    moved: Mapping[LogicalPath, LogicalPath]
    apart: tuple[frozenset[LogicalPath], frozenset[LogicalPath]]


def align(
    source: Layout,
    view: Layout,
    called: Callable[[LogicalPath], LogicalPath],
    settled: Sequence[Settled],
) -> Alignment:
    """Aligns the parts of two optimizer states.

    Args:
        source: The source's layout.
        view: The view's layout.
        called: What a path of the source's model is in the view's words.
        settled: Parts that rules have placed already: paths in the source and in the view, either
            of which may be None.
    """
    types = [{(part.path, part.type) for part in table.parts} for table in (source, view)]
    # Where a tree does not tell types, a part is where it stands.
    if not all(types) or (types[0] == types[1] and not settled):
        return Alignment({}, (frozenset(), frozenset()))
    common = {called(path) for path in _model(source)} & set(_model(view))
    left, right = _kept(source, called, common), _kept(view, lambda path: path, common)
    left = _unsettled(left, {before for before, _ in settled if before is not None})
    right = _unsettled(right, {after for _, after in settled if after is not None})
    pairs: dict[LogicalPath, LogicalPath] = {}
    # Labels are what a user called the parts, so these come before types, of which there may be two.
    for kind in (_labelled, _typed):
        partners = set(pairs.values())
        pairs |= _paired(
            kind,
            [left[p] for p in left if p not in pairs],
            [right[p] for p in right if p not in partners],
        )
    partners = set(pairs.values())
    pairs |= _wrapped(
        [left[p] for p in left if p not in pairs], [right[p] for p in right if p not in partners]
    )
    moved = {path: to for path, to in pairs.items() if path != to}
    return Alignment(
        moved,
        (frozenset(left.keys() - pairs.keys()), frozenset(right.keys() - set(pairs.values()))),
    )


def _unsettled(
    parts: Mapping[LogicalPath, _Kept], settled: set[LogicalPath]
) -> dict[LogicalPath, _Kept]:
    """The parts that do not stand at or below any of some paths."""
    rest: dict[LogicalPath, _Kept] = {}
    for path, part in parts.items():
        heads = [path[:end] for end in range(len(path) + 1)]
        if settled.isdisjoint(heads):
            rest[path] = part
    return rest


def _model(table: Layout) -> Iterator[LogicalPath]:
    return (
        row.path[row.body :] for row in table.rows if row.body is not None and not row.optimizer
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _Kept:
    """A part that keeps something: leaves of its own, or what mirrors the params."""

    path: LogicalPath
    type: type
    leaves: frozenset[Any]


def _kept(
    table: Layout, called: Callable[[LogicalPath], LogicalPath], common: set[LogicalPath]
) -> dict[LogicalPath, _Kept]:
    owners = Owners(table)
    fields_of: dict[LogicalPath, set[Any]] = {}
    types: dict[LogicalPath, type] = {}
    for row in table.rows:
        part = owners.part(row)
        if part is None:
            continue
        leaves = fields_of.setdefault(part.path, set())
        types[part.path] = part.type
        start = len(part.path)
        if row.body is None:
            leaves.add((row.path[start:], row.leaf))
        elif called(row.path[row.body :]) in common:
            leaves.add((row.path[start : row.body], called(row.path[row.body :])))
    return {path: _Kept(path, types[path], frozenset(leaves)) for path, leaves in fields_of.items()}


def _labelled(part: _Kept) -> Any:
    """The type of a part, and the names on the way to it."""
    return part.type, tuple(segment for segment in part.path if not segment.isdecimal())


def _typed(part: _Kept) -> Any:
    """The type of a part alone, which must be the only one of it."""
    return part.type


def _paired(
    kind: Callable[[_Kept], Any], left: Sequence[_Kept], right: Sequence[_Kept]
) -> Iterator[tuple[LogicalPath, LogicalPath]]:
    """Parts of one kind, in their order, where both sides have as many of it and what they keep is the same."""
    groups: tuple[dict[Any, list[_Kept]], ...] = (
        collections.defaultdict(list),
        collections.defaultdict(list),
    )
    for parts, by_type in zip((left, right), groups, strict=True):
        for part in parts:
            by_type[kind(part)].append(part)
    for key, members in groups[0].items():
        others = groups[1].get(key, [])
        if len(members) == len(others) and (kind is _labelled or len(members) == 1):
            for a, b in zip(members, others, strict=True):
                if a.path == b.path or a.leaves == b.leaves:
                    yield a.path, b.path


def _wrapped(left: Sequence[_Kept], right: Sequence[_Kept]) -> Mapping[LogicalPath, LogicalPath]:
    """Parts that stand inside of a wrapper on one side: by the one change of what their paths start with that places all."""
    wrappers: dict[tuple[LogicalPath, LogicalPath], dict[LogicalPath, LogicalPath]] = {}
    for one in left:
        for other in right:
            if one.type is other.type and one.leaves == other.leaves:
                before, after = list(one.path), list(other.path)
                while before and after and before[-1] == after[-1]:
                    before.pop()
                    after.pop()
                wrappers.setdefault((tuple(before), tuple(after)), {})[one.path] = other.path
    types = collections.Counter(part.type for part in left) & collections.Counter(
        part.type for part in right
    )
    # A wrapper that explains only some of the parts is none: two of them would be a guess.
    whole = [pairs for pairs in wrappers.values() if len(pairs) == types.total()]
    return whole[0] if len(whole) == 1 else {}
