"""Which rows of a layout are parts of one leaf of the other: by a series of its schema, or by a rule."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

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

__all__ = ["Group", "Member", "both_divided", "divided", "groups", "memberships"]


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
    """The groups of ``table``: those of its schema, and those that rules name."""
    found = [Group(series.path, series.members, series) for series in table.series]
    several = [rule for rule in rules if isinstance(rule, (Series, Fuse))]
    parts = standing(table, [path for rule in several for path in _parts(rule)])
    fused = [rule for rule in several if isinstance(rule, Fuse)]
    wholes = standing(_lined_up(other, several), [rule.whole for rule in fused])
    named = collections.Counter(rule.whole for rule in fused)
    virtual = {whole for whole, count in named.items() if count > 1}  # neither side need have it
    for rule in several:
        if not parts.issuperset(_parts(rule)):
            continue
        if isinstance(rule, Series):
            found.append(Group(rule.path, rule.members, rule))
        elif rule.whole in wholes or rule.whole in virtual:
            found.append(Group(rule.whole, rule.parts, rule))
    return found


def _lined_up(table: Layout, rules: Iterable[Series | Fuse]) -> Layout:
    """A layout with each row of a series under the path of the one list."""
    series = [*table.series, *(rule for rule in rules if isinstance(rule, Series))]
    if not series:
        return table
    rows = [*table.rows]
    for number, member in memberships(table, [Group(s.path, s.members, s) for s in series]).items():
        rows[number] = dataclasses.replace(rows[number], path=member.path)
    return dataclasses.replace(table, rows=tuple(rows))


def _parts(rule: Series | Fuse) -> tuple[LogicalPath, ...]:
    return rule.parts if isinstance(rule, Fuse) else rule.members


def memberships(table: Layout, several: Sequence[Group]) -> dict[int, Member]:
    """What the rows of ``table`` are parts of, by number: of a series before a whole, and by the longest path."""
    members: list[tuple[LogicalPath, tuple[Group, int]]] = []
    for group in several:
        members += [(path, (group, number)) for number, path in enumerate(group.members)]
    scope = Scope(members)
    found: dict[int, Member] = {}
    for at, hits in scope.along(table.rows).items():
        row = table.rows[at]
        lists = (hit for hit in hits if isinstance(hit.rule[0].rule, Series))
        hit = next(lists, hits[0])
        group, part = hit.rule
        path = (*row.path[: hit.start], *group.whole, *row.path[hit.end :])
        found[at] = Member(group, part, hit.start, path)
    return found


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
        told: What rules say of a row, from the first table to the second: by which of both has it, and its number.
        known: Sizes that are given beforehand.
    """
    row, member = tables[0].rows[whole], next(members[number] for number in parts.values())
    group = member.group
    lacking = _lacking(row, group, parts)
    if lacking is not None:
        return lacking
    numbered = [
        parts_.Numbered(number, tables[1].rows[number], told(1, number))
        for _, number in sorted(parts.items())
    ]
    both = parts_.Divided(parts_.Numbered(whole, row, told(0, whole)), tuple(numbered))
    if isinstance(group.rule, Fuse):
        return parts_.split(both, group.axis, known)
    start = next(
        at for at in (row.body or 0, 0) if row.path[at : at + len(group.whole)] == group.whole
    )
    level = _levels(row.path[: start + len(group.whole)]) - 1
    spans = [_span(tables[1].rows[number], members[number]) for _, number in sorted(parts.items())]
    return parts_.listed(both, level, spans, known)


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
    shared: list[Group] = []
    for side, table in enumerate(tables):
        numbers = [number for _, number in sorted(parts[side].items())]
        member = members[side][numbers[0]]
        row = table.rows[numbers[0]]
        lacking = _lacking(row, member.group, parts[side])
        if lacking is not None:
            return lacking
        several.append([])
        for number in numbers:
            said = told(side, number)
            several[side].append(
                parts_.Numbered(number, table.rows[number], said if side else said.inverse)
            )
        shared.append(member.group)
    lists = [isinstance(group.rule, Series) for group in shared]
    if all(lists):
        counts = f"{len(parts[1])} parts, as in the view", f"{len(parts[0])} in the source"
        hint = "both sides divide the list, in different ways: take it through a layout that has it whole"
        return Mismatch("/".join(several[0][0].row.path), "dims", *counts, hint)
    if not any(lists):
        axes = shared[0].axis, shared[1].axis
        return parts_.between_parts(several[0], several[1], axes, known)
    side = lists.index(True)
    spans = [_span(each.row, members[side][each.number]) for each in several[side]]
    found = parts_.listed_and_split(
        several[side], spans, several[1 - side], shared[1 - side].axis, known
    )
    return (
        [one.inverse for one in found] if side == 0 and not isinstance(found, Mismatch) else found
    )


def _lacking(row: Row, group: Group, parts: Mapping[int, int]) -> Mismatch | None:
    """The fault of a leaf of which some part is not there."""
    lacking = ["/".join(path) for number, path in enumerate(group.members) if number not in parts]
    if not lacking:
        return None
    hint = "parts of one leaf are alike: declare it in all of them, or give the parts names of their own"
    expected = f"this leaf in {' and in '.join('/'.join(path) for path in group.members)}"
    found = f"none in {' or '.join(lacking)}"
    return Mismatch("/".join(row.path), "unplaced", expected, found, hint)


def _span(row: Row, member: Member) -> tuple[int, int]:
    """Which levels of repetition of a row make up its share of a list."""
    outer = _levels(row.path[: member.start])
    return outer, outer + _levels(member.group.members[member.number])


def _levels(path: LogicalPath) -> int:
    return sum(segment.endswith("[]") for segment in path)
