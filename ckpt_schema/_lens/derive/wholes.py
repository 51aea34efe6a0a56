"""Which rows of a layout are parts of one leaf of the other: by a series of its schema, or by a rule."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

from ckpt_schema._layouts import paths
from ckpt_schema._layouts.dims import Dim
from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.sizes import Size
from ckpt_schema._layouts.table import Layout, Row, Series
from ckpt_schema._lens.derive import parts as parts_
from ckpt_schema._lens.derive.joins import Join
from ckpt_schema._lens.derive.leaf_rules import Told
from ckpt_schema._lens.derive.scope import Scope, standing
from ckpt_schema._lens.rules import Fuse, Rule
from ckpt_schema.errors import Mismatch

__all__ = [
    "Group",
    "Member",
    "both_divided",
    "divided",
    "groups",
    "lacking",
    "memberships",
    "span",
]


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
    """Nodes or leaves of one layout that are a node or leaf of the other, in this order.

    Attributes:
        whole: The logical path of the node or leaf that they are together.
        members: Their own.
        rule: What says so.
    """

    whole: LogicalPath
    members: tuple[LogicalPath, ...]
    rule: Series | Fuse

    @property
    def axis(self) -> Dim | None:
        """Which factor of the whole's dims they share, if that was said."""
        return self.rule.axis if isinstance(self.rule, Fuse) else None


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """A row that is part of a leaf.

    Attributes:
        group: What it is part of.
        number: Which part.
        start: How many segments of its path stand before those of the group.
        path: Its path as part of the whole.
    """

    group: Group
    number: int
    start: int
    path: LogicalPath


def groups(table: Layout, other: Layout, rules: Iterable[Rule]) -> list[Group]:
    """The groups of ``table`` that rules name."""
    fused = [rule for rule in rules if isinstance(rule, Fuse)]
    parts = standing(table, [path for rule in fused for path in rule.parts])
    wholes = standing(other, [rule.whole for rule in fused])
    named = collections.Counter(rule.whole for rule in fused)
    virtual = {whole for whole, count in named.items() if count > 1}  # neither side need have it
    named_groups: list[Group] = []
    for rule in fused:
        if parts.issuperset(rule.parts) and (rule.whole in wholes or rule.whole in virtual):
            named_groups.append(Group(rule.whole, rule.parts, rule))
    return named_groups


def memberships(table: Layout, several: Sequence[Group]) -> dict[int, Member]:
    """What the rows of ``table`` are parts of, by number: by the longest path."""
    members: list[tuple[LogicalPath, tuple[Group, int]]] = []
    for group in several:
        members += [(path, (group, number)) for number, path in enumerate(group.members)]
    scope = Scope(members)
    by_number: dict[int, Member] = {}
    for at, hits in scope.along(table.rows).items():
        row = table.rows[at]
        hit = hits[0]
        group, part = hit.rule
        path = (*row.path[: hit.start], *group.whole, *row.path[hit.end :])
        by_number[at] = Member(group, part, hit.start, path)
    return by_number


def divided(
    tables: tuple[Layout, Layout],
    whole: int,
    parts: Mapping[int, int],
    members: Mapping[int, Member],
    told: Callable[[int, int], Told],
    known: Mapping[str, Size],
) -> list[Join] | Mismatch:
    """The joins of a row of the first table with rows of the second that are parts of it.

    Args:
        tables: The layout of the whole, and that of the parts.
        whole: The number of its row.
        parts: The numbers of their rows, by part.
        members: What each row of the second layout is part of.
        told: What rules say of a row, from the first table to the second: by which of both has it,
            and its number.
        known: Sizes that are given beforehand.
    """
    row, member = tables[0].rows[whole], next(members[number] for number in parts.values())
    group = member.group
    missing = lacking(row, group, parts)
    if missing is not None:
        return missing
    numbered = [
        parts_.Numbered(number, tables[1].rows[number], told(1, number))
        for _, number in sorted(parts.items())
    ]
    both = parts_.Divided(parts_.Numbered(whole, row, told(0, whole)), tuple(numbered))
    return parts_.split(both, group.axis, known)


def both_divided(
    tables: tuple[Layout, Layout],
    parts: Sequence[Mapping[int, int]],
    members: Sequence[Mapping[int, Member]],
    told: Callable[[int, int], Told],
    known: Mapping[str, Size],
) -> list[Join] | Mismatch:
    """The joins of rows of the source with rows of the view that are parts of one leaf, which neither has whole.

    Args:
        tables: The layouts of the source and of the view.
        parts: For each, the numbers of the rows, by part.
        members: For each, what its rows are part of.
        told: What rules say of a row: by side, and its number.
        known: Sizes that are given beforehand.
    """
    several: list[list[parts_.Numbered]] = []
    axes: list[Dim | None] = []
    for side, table in enumerate(tables):
        numbers = [number for _, number in sorted(parts[side].items())]
        member = members[side][numbers[0]]
        row = table.rows[numbers[0]]
        missing = lacking(row, member.group, parts[side])
        if missing is not None:
            return missing
        several.append([])
        for number in numbers:
            said = told(side, number)
            several[side].append(
                parts_.Numbered(number, table.rows[number], said if side else said.inverse)
            )
        axes.append(member.group.axis)
    return parts_.between_parts(several[0], several[1], axes, known)


def lacking(row: Row, group: Group, parts: Mapping[int, int]) -> Mismatch | None:
    """The fault of a leaf of which some part is not there."""
    missing = ["/".join(path) for number, path in enumerate(group.members) if number not in parts]
    if not missing:
        return None
    hint = "parts of one leaf are alike: declare it in all of them, or give the parts names of their own"
    expected = f"this leaf in {' and in '.join('/'.join(path) for path in group.members)}"
    absent = f"none in {' or '.join(missing)}"
    return Mismatch("/".join(row.path), "unplaced", expected, absent, hint)


def span(row: Row, member: Member) -> tuple[int, int]:
    """Which levels of repetition of a row make up its share of a list."""
    outer = paths.list_depth(row.path[: member.start])
    return outer, outer + paths.list_depth(member.group.members[member.number])
