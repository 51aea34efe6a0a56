"""Siblings with numbers that are alike, as ``layers_0`` and ``layers_1`` are: the lists of trees that nobody has named."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ckpt_schema._diff.both_sides import BothSides
from ckpt_schema._layouts.paths import Index, Pattern, format_path, int_key
from ckpt_schema._layouts.table import Layout, Row
from ckpt_schema._lens.read_sides import ReadSide, ReadSides
from ckpt_schema.errors import SchemaError

__all__ = ["found_lists", "with_common_lists"]


class _Stem(NamedTuple):
    """The node that siblings are in, from the root of the model, and what their names begin with."""

    head: Pattern
    text: str

    @property
    def pattern(self) -> str:
        """The siblings as a list is written."""
        return format_path((*self.head, Index(self.text, text=True)))


class _Place(NamedTuple):
    """A node in one of several siblings: which they are, its number, and where in it the node is."""

    stem: _Stem
    number: int
    inside: Pattern


_Members = Mapping[int, Mapping[Pattern, Any]]
"""What each of several siblings holds, by its number."""


def found_lists(read: Callable[[Sequence[str]], Layout]) -> tuple[list[str], Layout]:
    """The patterns of all lists that a tree shows, and the tree as it is read with them.

    Modules of leaves alone that Linen has named itself, ``Dense_0`` and ``Dense_1``, are no list: they are what a layer is
    made of.

    Args:
        read: Reads the tree, with these lists.
    """
    known: list[str] = []
    table = read(known)
    while True:  # lists inside of lists are seen when these are
        siblings = _siblings(table.rows)
        shown = [stem.pattern for stem, members in siblings.items() if _are_list(stem, members)]
        news = [pattern for pattern in shown if pattern not in known]
        if not news:
            return known, table
        try:
            table = read([*known, *news])
        except SchemaError:  # what is alike in one model is not in all that mirrors it
            return known, table
        known += news


def with_common_lists(both_sides: BothSides) -> BothSides:
    """Both sides with the lists that one of them shows, and that hold anything that differs.

    Siblings that are a list on one side, and unlike one another on the other, are none: each is told by itself. One layer
    alone is a list where the other side shows one.
    """
    apart: set[_Stem] = set()
    while True:  # lists inside of lists are seen when these are, or are none
        sides, rest = both_sides.sides, both_sides.rest
        apart |= _parted(rest)
        places = (place for side in rest for row in side.layout.rows for place in _places(row))
        wanted = {place.stem for place in places} - apart
        if not wanted:
            return both_sides
        both = [_siblings(side.layout.rows, apart, wanted) for side in sides]
        news: dict[_Stem, list[int]] = {}
        for stem in {**both[0], **both[1]}:
            read = [at for at in (0, 1) if stem in both[at] and _may_be_read(sides[at], stem)]
            shown = any(_are_list(stem, both[at][stem]) for at in read)
            if shown and all(_are_alike(both[at][stem]) for at in read):
                news[stem] = read
            else:
                apart.add(stem)
        if not news:
            continue
        try:
            both_sides = BothSides(_read(sides, news))
        except SchemaError:  # what is alike in one model is not in all that mirrors it
            apart |= {stem for stem in news if not _fits(sides, stem, news[stem])} or news.keys()


def _parted(rest: ReadSides) -> set[_Stem]:
    """Siblings that are no list on one side at least: one differs from that of the other side, and one before it does not."""
    left, right = (side.layout.rows for side in rest)
    known = {row.path for row in right}
    numbers: dict[tuple[_Stem, Pattern], set[int]] = {}
    for row in left:
        for stem, number, inside in _places(row) if row.path in known else ():
            numbers.setdefault((stem, (*inside, row.key[-1])), set()).add(number)
    return {stem for (stem, _), several in numbers.items() if max(several) >= len(several)}


def _may_be_read(side: ReadSide, stem: _Stem) -> bool:
    """Whether siblings are not read as a list yet, and may be."""
    return side.tree is not None and stem.pattern not in side.lists


def _read(sides: ReadSides, lists: Mapping[_Stem, Collection[int]]) -> ReadSides:
    """Both sides, each with its lists."""
    left, right = (
        side.read(lists=[stem.pattern for stem, read in lists.items() if at in read])
        for at, side in enumerate(sides)
    )
    return left, right


def _fits(sides: ReadSides, stem: _Stem, read: Collection[int]) -> bool:
    """Whether siblings are a list on these sides."""
    try:
        _read(sides, {stem: read})
    except SchemaError:
        return False
    return True


def _are_list(stem: _Stem, members: _Members) -> bool:
    """Whether siblings are a list by what they hold."""
    own = stem.text[0].isupper() and all(len(path) == 1 for path in members[min(members)])
    return len(members) > 1 and not own and _are_alike(members)


def _are_alike(members: _Members) -> bool:
    """Whether siblings are there from the first on, and hold the same."""
    whole = sorted(members) == [*range(len(members))]
    return whole and all(held == members[0] for held in members.values())


def _siblings(
    rows: Sequence[Row],
    apart: Collection[_Stem] = (),
    wanted: Collection[_Stem] | None = None,
) -> dict[_Stem, dict[int, dict[Pattern, Any]]]:
    """Outermost siblings with numbers: what each of them holds.

    Args:
        rows: The rows of a layout.
        apart: Siblings that are told each by itself: what is in them is looked at.
        wanted: Those that are asked for; all, unless given.
    """
    groups: dict[_Stem, dict[int, dict[Pattern, Any]]] = {}
    known: dict[Pattern, tuple[dict[Pattern, Any], Pattern] | None] = {}  # by node
    for row in rows:
        node = row.key[:-1]
        if node not in known:
            known[node] = None
            place = next((each for each in _places(row) if each.stem not in apart), None)
            if place is not None and (wanted is None or place.stem in wanted):
                members = groups.setdefault(place.stem, {})
                known[node] = members.setdefault(place.number, {}), place.inside
        found = known[node]
        if found is not None:
            held, inside = found
            held[(*inside, row.key[-1])] = row.leaf, row.repeats, row.kind
    return groups


def _places(row: Row) -> Iterator[_Place]:
    """The siblings with numbers that the node of a row is in, the outermost first."""
    if row.body is None or row.optimizer:
        return
    bare = [s for s in row.key if isinstance(s, Index) and not s.prefix and not s.suffix]
    start = len(row.key) - (len(row.path) - row.body) - len(bare)  # the root of its model
    node = row.key[start:-1]
    for at, segment in enumerate(node):
        if isinstance(segment, str):
            text = segment.rstrip("0123456789")
            number = int_key(segment[len(text) :])
            if text and number is not None:
                yield _Place(_Stem(node[:at], text), number, node[at + 1 :])
