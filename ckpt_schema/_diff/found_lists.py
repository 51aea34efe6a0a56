"""Siblings with numbers that are alike, as ``layers_0`` and ``layers_1`` are: the lists of trees that nobody has named."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ckpt_schema._diff.both_sides import BothSides
from ckpt_schema._layouts.paths import Index, LogicalPath, Pattern, format_path, int_key, named
from ckpt_schema._layouts.table import Layout, Row
from ckpt_schema._lens.adapt.siblings import called_apart
from ckpt_schema._lens.read_sides import ReadSide, ReadSides
from ckpt_schema._lens.rules import Rule
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

    @property
    def place(self) -> tuple[LogicalPath, str]:
        """The node by the names that lead to it, without the numbers of lists, and the same text."""
        names: list[str] = []
        for key in self.head:
            if not isinstance(key, Index):
                names.append(named(key))
            elif key.prefix + key.suffix:
                names.append(named((key.prefix + key.suffix).strip("_-.")))
        return tuple(names), self.text


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
        news: list[str] = []
        for stem, members in _siblings(table.rows).items():
            if _are_list(stem, members) and stem.pattern not in known:
                news.append(stem.pattern)
        if not news:
            return known, table
        try:
            table = read([*known, *news])
        except SchemaError:  # what is alike in one model is not in all that mirrors it
            return known, table
        known += news


def with_common_lists(both_sides: BothSides, rules: Sequence[Rule] = ()) -> BothSides:
    """Both sides with the lists that one of them shows, and that hold anything that differs.

    Siblings that are a list on one side, and unlike one another on the other, are none: each is told by itself. So is each
    where a rule calls one by its own name. One layer alone is a list where the other side shows one.
    """
    apart: set[_Stem] = set()
    while True:  # lists inside of lists are seen when these are, or are none
        sides, rest = both_sides.sides, both_sides.rest
        apart |= _parted(rest)
        # Only what differs is worth a list: of two large trees that is little.
        wanted: set[_Stem] = set()
        for side in rest:
            for row in side.layout.rows:
                for place in _places(row):
                    wanted.add(place.stem)
        wanted -= apart
        called = called_apart(sides, rules) if wanted else ()
        apart |= {stem for stem in wanted if stem.place in called}
        wanted -= apart
        if not wanted:
            return both_sides
        left, right = sides
        both = (
            _siblings(left.layout.rows, apart, wanted),
            _siblings(right.layout.rows, apart, wanted),
        )
        news: dict[_Stem, list[int]] = {}
        for stem in {**both[0], **both[1]}:
            # The sides on which it would be one: 0, 1 or both. A side that lacks it has no say.
            read = [at for at in (0, 1) if stem in both[at] and _may_be_read(sides[at], stem)]
            shown = any(_are_list(stem, both[at][stem]) for at in read)
            if shown and all(_are_alike(both[at][stem]) for at in read):
                news[stem] = read
            else:
                apart.add(stem)
        if not news:
            continue  # what is in siblings that are none is looked at in the next round
        try:
            both_sides = BothSides(_read(sides, news))
        except SchemaError:  # what is alike in one model is not in all that mirrors it
            # Each may fit by itself and fail beside the others: then none is read, or this would not end.
            misfits = {stem for stem in news if not _fits(sides, stem, news[stem])}
            apart |= misfits or news.keys()


def _parted(rest: ReadSides) -> set[_Stem]:
    """Siblings that are no list on one side at least: one differs from that of the other side, and one before it does not."""
    left, right = rest
    known = {row.path for row in right.layout.rows}
    # Of rows that differ under one path: in which siblings they are, by the leaf that differs there.
    numbers: dict[tuple[_Stem, Pattern], set[int]] = {}
    for row in left.layout.rows:
        for stem, number, inside in _places(row) if row.path in known else ():
            numbers.setdefault((stem, (*inside, row.key[-1])), set()).add(number)
    parted: set[_Stem] = set()
    for (stem, _), several in numbers.items():
        # {1, 2}: three would be 0, 1, 2, so layer 0 is as it was.
        if max(several) >= len(several):
            parted.add(stem)
    return parted


def _may_be_read(side: ReadSide, stem: _Stem) -> bool:
    """Whether siblings are not read as a list yet, and may be."""
    return side.tree is not None and stem.pattern not in side.lists


def _read(sides: ReadSides, lists: Mapping[_Stem, Collection[int]]) -> ReadSides:
    """Both sides, each with its lists."""
    patterns: tuple[list[str], list[str]] = ([], [])
    for stem, read in lists.items():
        for at in read:
            patterns[at].append(stem.pattern)
    left, right = sides
    return left.read(lists=patterns[0]), right.read(lists=patterns[1])


def _fits(sides: ReadSides, stem: _Stem, read: Collection[int]) -> bool:
    """Whether siblings are a list on these sides."""
    try:
        _read(sides, {stem: read})
    except SchemaError:
        return False
    return True


def _are_list(stem: _Stem, members: _Members) -> bool:
    """Whether siblings are a list by what they hold."""
    # Linen's own names begin with the class: Dense_0 and Dense_1 with leaves alone are no list.
    first = members[min(members)]
    is_linens_own = stem.text[0].isupper() and all(len(path) == 1 for path in first)
    return len(members) > 1 and not is_linens_own and _are_alike(members)


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
        # Most nodes have several leaves, and all of them are in the same siblings.
        if node not in known:
            known[node] = None
            for place in _places(row):
                if place.stem in apart:
                    continue
                if wanted is None or place.stem in wanted:
                    members = groups.setdefault(place.stem, {})
                    known[node] = members.setdefault(place.number, {}), place.inside
                break  # what is inside of these is seen when they are a list
        member = known[node]
        if member is not None:
            held, inside = member
            held[(*inside, row.key[-1])] = row.leaf, row.repeats, row.kind
    return groups


def _places(row: Row) -> Iterator[_Place]:
    """The siblings with numbers that the node of a row is in, the outermost first."""
    # What mirrors a model has its lists, and is read with them.
    if row.body is None or row.optimizer:
        return
    bare: list[Index] = []
    for segment in row.key:
        # Of layers/{i} the key has a segment more than the path layers[], and of layers_{i} it has not.
        if isinstance(segment, Index) and not segment.prefix and not segment.suffix:
            bare.append(segment)
    start = len(row.key) - (len(row.path) - row.body) - len(bare)  # the root of its model
    node = row.key[start:-1]
    for at, segment in enumerate(node):
        if isinstance(segment, str):
            # "layers_12" is text "layers_" and number 12; a number alone is a key, and no name.
            text = segment.rstrip("0123456789")
            number = int_key(segment[len(text) :])
            if text and number is not None:
                yield _Place(_Stem(node[:at], text), number, node[at + 1 :])
