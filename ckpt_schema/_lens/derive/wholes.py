"""Which rows of a layout are parts of one leaf of the other: by a series of its schema, or by a rule.

First `groups` tells which nodes are together, then `memberships` which rows below them are. `pairing`
meets the rows by the path of their whole; what `divided` and `both_divided` put together here goes to
`parts` for the cells.

    fuse("attn/qkv", ["attn/q", "attn/k", "attn/v"]):   attn/q/kernel is part 0 of attn/qkv/kernel
"""

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
    paths_of_parts: list[LogicalPath] = []
    counts: collections.Counter[LogicalPath] = collections.Counter()
    for rule in fused:
        paths_of_parts += rule.parts
        counts[rule.whole] += 1
    parts = standing(table, paths_of_parts)
    wholes = standing(other, counts)
    named_groups: list[Group] = []
    for rule in fused:
        # Of two rules for one whole, q+k+v and q+kv, neither side need have that.
        has_whole = rule.whole in wholes or counts[rule.whole] > 1
        if has_whole and parts.issuperset(rule.parts):
            named_groups.append(Group(rule.whole, rule.parts, rule))
    return named_groups


def memberships(table: Layout, several: Sequence[Group]) -> dict[int, Member]:
    """What the rows of ``table`` are parts of, by number: by the longest path."""
    members: list[tuple[LogicalPath, tuple[Group, int]]] = []
    for group in several:
        for part, path in enumerate(group.members):
            members.append((path, (group, part)))
    by_number: dict[int, Member] = {}
    for number, hits in Scope(members).along(table.rows).items():
        row = table.rows[number]
        # The first has the longest path: a leaf of a fused node may be fused by itself.
        hit = hits[0]
        group, part = hit.rule
        path = (*row.path[: hit.start], *group.whole, *row.path[hit.end :])
        by_number[number] = Member(group, part, hit.start, path)
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
    row = tables[0].rows[whole]
    any_part = next(iter(parts.values()))
    group = members[any_part].group
    missing = lacking(row, group, parts)
    if missing is not None:
        return missing
    # In the order in which the rule names them: that is how they lie on the axis.
    numbered: list[parts_.Numbered] = []
    for _, number in sorted(parts.items()):
        numbered.append(parts_.Numbered(number, tables[1].rows[number], told(1, number)))
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
        # Each side in the order of its own rule: q, k, v here may be qk, v there.
        numbers = [number for _, number in sorted(parts[side].items())]
        member = members[side][numbers[0]]
        row = table.rows[numbers[0]]
        missing = lacking(row, member.group, parts[side])
        if missing is not None:
            return missing
        numbered: list[parts_.Numbered] = []
        for number in numbers:
            # Rules speak of the way to the view; a part is told on the way from its whole.
            said = told(side, number) if side else told(side, number).inverse
            numbered.append(parts_.Numbered(number, table.rows[number], said))
        several.append(numbered)
        axes.append(member.group.axis)
    return parts_.between_parts(several[0], several[1], axes, known)


def lacking(row: Row, group: Group, parts: Mapping[int, int]) -> Mismatch | None:
    """The fault of a leaf of which some part is not there."""
    # A leaf that one part has, "q/bias", has to be in all of them: half a whole is none.
    members = ["/".join(path) for path in group.members]
    missing = [path for number, path in enumerate(members) if number not in parts]
    if not missing:
        return None
    hint = "parts of one leaf are alike: declare it in all of them, or give the parts names of their own"
    expected = f"this leaf in {' and in '.join(members)}"
    absent = f"none in {' or '.join(missing)}"
    return Mismatch("/".join(row.path), "unplaced", expected, absent, hint)


def span(row: Row, member: Member) -> tuple[int, int]:
    """Which levels of repetition of a row make up its share of a list: the first, and the one after the last."""
    # Each "[]" of a path is one level; those before the group's path repeat the list as a whole.
    outer = paths.list_depth(row.path[: member.start])
    return outer, outer + paths.list_depth(member.group.members[member.number])
