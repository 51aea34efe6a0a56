"""Siblings with numbers that are alike, as ``layers_0`` and ``layers_1`` are: the lists of a tree that nobody has named."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from ckpt_schema._layouts.paths import Index, Pattern, format_path, int_key, parse_pattern
from ckpt_schema._layouts.table import Layout, Row
from ckpt_schema.errors import SchemaError

__all__ = ["found_lists", "stands_at"]


def found_lists(
    read: Callable[[Sequence[str]], Layout], apart: Collection[str] = ()
) -> tuple[list[str], Layout]:
    """The patterns of all lists that a tree shows, and the tree as it is read with them.

    Modules of leaves alone that Linen has named itself, ``Dense_0`` and ``Dense_1``, are no list: they are what a layer is
    made of.

    Args:
        read: Reads the tree, with these lists.
        apart: Patterns of siblings that are no list, whatever the tree shows.
    """
    known: list[str] = []
    table = read(known)
    while True:  # lists inside of lists are seen when these are
        news = [pattern for pattern in _shown(table, apart) if pattern not in known]
        if not news:
            return known, table
        try:
            table = read([*known, *news])
        except SchemaError:  # what is alike in one model is not in all that mirrors it
            return known, table
        known += news


def stands_at(table: Layout, pattern: str) -> bool:
    """Whether a layout has a node that would be a member of a list, and is none."""
    *head, last = parse_pattern(pattern)
    assert isinstance(last, Index)
    models = (row for row in table.rows if row.body is not None and not row.optimizer)
    keys = (_own_key(row) for row in models)
    segments = {key[len(head)] for key in keys if [*key[: len(head)]] == head and key[len(head) :]}
    plain = (segment for segment in segments if not isinstance(segment, Index))
    return any(last.index(segment) is not None for segment in plain)


def _shown(table: Layout, apart: Collection[str]) -> Iterator[str]:
    """The patterns of outermost siblings that are alike."""
    groups: dict[tuple[Pattern, str], dict[int, dict[Pattern, Any]]] = {}
    known_apart = {_head_and_stem(pattern) for pattern in apart}
    for row in table.rows:
        if row.body is None or row.optimizer:
            continue
        key = _own_key(row)
        for at, segment in enumerate(key[:-1]):
            stem, number = _cut(segment)
            if number is not None and stem and (key[:at], stem) not in known_apart:
                members = groups.setdefault((key[:at], stem), {})
                below = members.setdefault(number, {})
                below[key[at + 1 :]] = row.leaf, row.repeats, row.kind
                break  # what is inside of a list is seen when that is one
    for (head, stem), members in groups.items():
        whole = len(members) > 1 and sorted(members) == [*range(len(members))]
        first = members[min(members)]
        own = stem[0].isupper() and all(len(rest) == 1 for rest in first)
        if whole and not own and all(member == first for member in members.values()):
            yield format_path((*head, Index(stem, text=True)))


def _head_and_stem(pattern: str) -> tuple[Pattern, str]:
    """The node that a list is in, and what the names of its members begin with."""
    *head, last = parse_pattern(pattern)
    return tuple(head), last.prefix if isinstance(last, Index) else ""


def _cut(segment: Any) -> tuple[str, int | None]:
    if not isinstance(segment, str):
        return "", None
    stem = segment.rstrip("0123456789")
    return stem, int_key(segment[len(stem) :])


def _own_key(row: Row) -> Pattern:
    """The key of a row from the root of its model."""
    bare = [s for s in row.key if isinstance(s, Index) and not s.prefix and not s.suffix]
    return row.key[len(row.key) - (len(row.path) - (row.body or 0)) - len(bare) :]
