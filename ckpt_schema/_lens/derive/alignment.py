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
        # From the inside out, and never within a param's own path, nor at the row itself: of
        # `opt_state/0/mu/wi/kernel` it is looked for at `opt_state/0/mu`, then at `opt_state/0`.
        innermost = min(row.body or len(row.path), len(row.path) - 1)
        for end in range(innermost, 0, -1):
            part = self._parts.get(row.path[:end])
            if part is not None:
                return part
        return None


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
    parts = set(source.parts), set(view.parts)
    # Where a tree does not tell types, a part is where it stands.
    if not all(parts) or (parts[0] == parts[1] and not settled):
        return Alignment({}, (frozenset(), frozenset()))
    # A param that one side alone has is in no part of the other, so that parts are held against
    # each other without it.
    common = set(map(called, _model(source))) & set(_model(view))
    left, right = _kept(source, called, common), _kept(view, lambda path: path, common)
    for before, after in settled:
        _settle(left, before)
        _settle(right, after)
    pairs: dict[LogicalPath, LogicalPath] = {}
    # Labels are what a user called the parts, so these come before types, of which there may be two.
    for kind in (_labelled, _typed):
        pairs |= _paired(kind, *_unpaired(left, right, pairs))
    # What is left may have gone into a wrapper as a whole, or have come out of one.
    pairs |= _wrapped(*_unpaired(left, right, pairs))
    moved: dict[LogicalPath, LogicalPath] = {}
    for path, to in pairs.items():
        if path != to:
            moved[path] = to
    lonely = left.keys() - pairs.keys(), right.keys() - set(pairs.values())
    return Alignment(moved, (frozenset(lonely[0]), frozenset(lonely[1])))


def _unpaired(
    left: Mapping[LogicalPath, _Kept],
    right: Mapping[LogicalPath, _Kept],
    pairs: Mapping[LogicalPath, LogicalPath],
) -> tuple[list[_Kept], list[_Kept]]:
    """The parts of both sides that are in no pair."""
    partners = set(pairs.values())
    return (
        [part for path, part in left.items() if path not in pairs],
        [part for path, part in right.items() if path not in partners],
    )


def _settle(parts: dict[LogicalPath, _Kept], settled: LogicalPath | None) -> None:
    """Takes those parts out that a rule has placed: with ``opt_state/1`` it has placed ``opt_state/1/0`` too."""
    if settled is None:
        return
    for path in [*parts]:
        if path[: len(settled)] == settled:
            del parts[path]


def _model(table: Layout) -> Iterator[LogicalPath]:
    """The paths of the params, and of averages of them, within the model."""
    for row in table.rows:
        if row.body is not None and not row.optimizer:
            yield row.path[row.body :]


@dataclasses.dataclass(frozen=True, slots=True)
class _Kept:
    """A part that keeps something: leaves of its own, or what mirrors the params.

    Attributes:
        path: Its path in its own layout.
        type: The class of its state.
        leaves: What it keeps, in the view's words: of its own leaves the path and the leaf, of
            mirrors the field and the param, ``(("mu",), ("wi", "kernel"))``.
    """

    path: LogicalPath
    type: type
    leaves: frozenset[Any]


def _kept(
    table: Layout, called: Callable[[LogicalPath], LogicalPath], common: set[LogicalPath]
) -> dict[LogicalPath, _Kept]:
    """The parts of a layout that keep something, by path."""
    owners = Owners(table)
    leaves_of: dict[LogicalPath, set[Any]] = {}
    types: dict[LogicalPath, type] = {}
    for row in table.rows:
        part = owners.part(row)
        if part is None:
            continue
        leaves = leaves_of.setdefault(part.path, set())
        types[part.path] = part.type
        start = len(part.path)
        if row.body is None:
            leaves.add((row.path[start:], row.leaf))
        elif called(row.path[row.body :]) in common:
            leaves.add((row.path[start : row.body], called(row.path[row.body :])))
    kept: dict[LogicalPath, _Kept] = {}
    for path, leaves in leaves_of.items():
        kept[path] = _Kept(path, types[path], frozenset(leaves))
    return kept


def _labelled(part: _Kept) -> Any:
    """The type of a part, and the names on the way to it."""
    # Numbers are positions in a chain, which is what may have changed.
    return part.type, tuple(segment for segment in part.path if not segment.isdecimal())


def _typed(part: _Kept) -> Any:
    """The type of a part alone, which must be the only one of it."""
    return part.type


def _paired(
    kind: Callable[[_Kept], Any], left: Sequence[_Kept], right: Sequence[_Kept]
) -> Iterator[tuple[LogicalPath, LogicalPath]]:
    """Parts of one kind, in their order, where both sides have as many of it and what they keep is the same."""
    groups: dict[Any, tuple[list[_Kept], list[_Kept]]] = {}
    for side, parts in enumerate((left, right)):
        for part in parts:
            groups.setdefault(kind(part), ([], []))[side].append(part)
    for ours, theirs in groups.values():
        # Several of one label keep their order; several of one type have labels that differ.
        if len(ours) == len(theirs) and (kind is _labelled or len(ours) == 1):
            for one, other in zip(ours, theirs, strict=True):
                # What keeps other things is another part, unless it stands in the same place: there
                # the rows themselves are told to be unlike.
                if one.path == other.path or one.leaves == other.leaves:
                    yield one.path, other.path


def _wrapped(left: Sequence[_Kept], right: Sequence[_Kept]) -> Mapping[LogicalPath, LogicalPath]:
    """Parts that stand inside of a wrapper on one side: by the one change of what their paths start with that places all.

    Where ``opt_state/0`` and ``opt_state/1`` are ``opt_state/inner/0`` and ``opt_state/inner/1`` in
    the view, it is ``opt_state`` that became ``opt_state/inner``.
    """
    wrappers: dict[tuple[LogicalPath, LogicalPath], dict[LogicalPath, LogicalPath]] = {}
    for one in left:
        for other in right:
            if one.type is other.type and one.leaves == other.leaves:
                before, after = list(one.path), list(other.path)
                while before and after and before[-1] == after[-1]:
                    before.pop()
                    after.pop()
                wrappers.setdefault((tuple(before), tuple(after)), {})[one.path] = other.path
    # By their types, so many parts could have a partner at all.
    types = collections.Counter(part.type for part in left)
    count = (types & collections.Counter(part.type for part in right)).total()
    # A wrapper that explains only some of the parts is none: two of them would be a guess.
    whole = [pairs for pairs in wrappers.values() if len(pairs) == count]
    return whole[0] if len(whole) == 1 else {}
