"""Which rows of the two sides are one leaf: those of one path, once the source's are renamed.

In `derivation.join_rows` this stands between what rules say of names and the cells: it makes no
cell, and looks at no axis but to tell whether both sides have the same parts of a leaf.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple

from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.sizes import ONE, Size
from ckpt_schema._layouts.table import Layout, Row
from ckpt_schema._lens.derive.alignment import Alignment, Owners
from ckpt_schema._lens.derive.names import Decision, Names, moved_paths, nowhere
from ckpt_schema._lens.derive.scope import Scope, Spoken
from ckpt_schema._lens.derive.wholes import Member
from ckpt_schema._lens.rules import Apart, Fuse, Move, Private, Rename
from ckpt_schema._lens.spellings import of_dim
from ckpt_schema.errors import Mismatch

__all__ = [
    "Members",
    "RowsByPart",
    "SharedLeaf",
    "paths_in_view",
    "rows_by_path",
    "same_parts",
    "seen_paths",
    "take_names_away",
]

Members = Mapping[int, Member]
"""What some rows of a side are parts of, by the numbers of the rows."""

RowsByPart = dict[int | None, int]
"""The rows that one path stands for: ``{None: 7}`` is one whole leaf, ``{0: 4, 1: 5, 2: 6}`` its parts."""


class SharedLeaf(NamedTuple):
    """A leaf that both sides have, and not both in the same parts: at least one has it in several."""

    before: RowsByPart
    after: RowsByPart


# --- What each row is called  ---


def paths_in_view(
    source: Layout,
    names: Names,
    decisions: Mapping[int, Decision],
    alignment: Alignment,
    restarted: frozenset[int],
    members: Members,
) -> list[LogicalPath]:
    """The path of each source row in the view's words: that of the whole for a row that is part of one.

    With ``rename("wi", "up")`` the row ``mlp/wi/kernel`` has the path ``mlp/up/kernel`` here.
    """
    owners = Owners(source)
    # A rule that fuses says the view's words already: of a path from the root only moves still hold.
    without_renames = dataclasses.replace(names, renames=Scope[Rename | Move](()))
    paths: list[LogicalPath] = []
    for number, row in enumerate(source.rows):
        # What begins anew, or shares no more than a name, has no partner whatever it is called.
        if number in restarted:
            paths.append(nowhere(row))
            continue
        optimizer_part = owners.part(row) if source.parts else None
        member = members.get(number)
        if member is None:
            paths.append(moved_paths(row, decisions.get(number), optimizer_part, alignment))
            continue
        # Rules are asked of the whole, which no row of the source is: of "attn/qkv" for "attn/q".
        whole = dataclasses.replace(row, path=member.path)
        if not isinstance(member.group.rule, Fuse):
            decision = names.decision(whole)
        elif member.start:
            # A path in the model says nothing of where that stands: ema/attn/q is in avg/attn/qkv.
            decision = dataclasses.replace(names.decision(whole), inner=None)
        else:
            decision = without_renames.decision(whole)
        paths.append(moved_paths(whole, decision, optimizer_part, alignment))
    return paths


def take_names_away(
    source: Layout,
    paths: list[LogicalPath],
    decisions: Mapping[int, Decision],
    alone: Spoken[Private | Apart],
) -> frozenset[LogicalPath]:
    """The paths of private rows whose name a rule gives to other rows; in ``paths`` they have none now.

    So EMA weights are served as the params: ``rename("ema", "params")`` and ``private("params")``
    together leave the source's own params without a place in the view.
    """
    given_names: set[LogicalPath] = set()
    for number in decisions:
        if paths[number] != source.rows[number].path:
            given_names.add(paths[number])
    if not given_names:
        return frozenset()
    losers: set[LogicalPath] = set()
    for number, row in enumerate(source.rows):
        # A row that is renamed itself has another name to go by: two may change places.
        if row.path not in given_names or number in decisions:
            continue
        if any(isinstance(hit.rule, Private) for hit in alone.get(number, ())):
            losers.add(row.path)
            paths[number] = nowhere(row)
    return frozenset(losers)


def seen_paths(view: Layout, names: Names, members: Members) -> list[LogicalPath]:
    """The path of each view row; a part has that of its whole, as the source's words are renamed.

    The source may call the whole by a name that a rule changes, so it is renamed here as there.
    """
    paths = [row.path for row in view.rows]
    for number, member in members.items():
        path = member.path
        paths[number] = (*path[: member.start], *names.called(path[member.start :]))
    return paths


# --- Which rows have one path  ---


def rows_by_path(
    table: Layout,
    paths: Sequence[LogicalPath],
    members: Members,
    left_out: Container[int],
    said: tuple[str, str],
    faults: list[Mismatch],
) -> dict[LogicalPath, RowsByPart]:
    """The rows of one side by their path, and where several are parts of one leaf, by part.

    Two rows of one path that are no such parts are a fault: nobody says which of them is meant.

    Args:
        table: The side's layout.
        paths: The path of each of its rows, in the words that both sides are compared in.
        members: Which rows are parts of a leaf.
        left_out: The numbers of rows that are not looked at.
        said: What such a fault says: what is expected, and the hint.
        faults: Takes the faults.
    """
    by_path: dict[LogicalPath, RowsByPart] = {}
    for number, path in enumerate(paths):
        if number in left_out:
            continue
        rows = by_path.setdefault(path, {})
        part = members[number].number if number in members else None
        # The first of two rows keeps the place; the fault is told at the second.
        first = rows.setdefault(part, number)
        has_twin = first != number
        # A whole leaf beside parts of the same leaf: one of both is too many.
        is_mixed = None in rows and len(rows) > 1
        if has_twin or is_mixed:
            other = first if has_twin else _other_row(rows, number)
            both = f"{'/'.join(table.rows[other].path)} and {'/'.join(table.rows[number].path)}"
            expected, hint = said
            faults.append(Mismatch("/".join(path), "ambiguous", expected, both, hint))
    return by_path


def _other_row(rows: RowsByPart, number: int) -> int:
    for other in rows.values():
        if other != number:
            return other
    raise AssertionError(number)


def same_parts(tables: tuple[Layout, Layout], before: RowsByPart, after: RowsByPart) -> bool:
    """Whether both sides have a leaf whole, or in the same parts, which are then joined one by one.

    Parts of the same numbers may still be of other sizes: ``q+k+v`` cut in three of one size here,
    and where each ends there.
    """
    if before.keys() != after.keys():
        return False
    if None in before:
        return True
    # Parts that differ go by their wholes, element by element, and no longer one by one.
    for part, number in before.items():
        row, other = tables[0].rows[number], tables[1].rows[after[part]]
        if _elements(row) != _elements(other):
            return False
    return True


def _elements(row: Row) -> Size:
    """How many elements one repeat of a leaf has."""
    count = ONE
    for dim in row.leaf.dims:
        count *= of_dim(dim)
    return count
