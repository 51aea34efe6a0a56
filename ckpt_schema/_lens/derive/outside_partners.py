"""Leaves of a model that the other side keeps beside it, under the names that they have in the model.

bn/mean of the model here and rest/bn/mean there: where a program splits its model, statistics stand beside the params.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Container, Mapping, Sequence

from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.table import Layout, Row
from ckpt_schema._lens.derive.partners import Loose
from ckpt_schema._lens.rules import Rename

__all__ = ["OutsidePartner", "outside_partners"]


@dataclasses.dataclass(frozen=True, slots=True)
class OutsidePartner:
    """What a leaf is on the other side, if one of the two stands beside the model.

    Attributes:
        row: The other side's leaf.
        rule: The rename that joins them.
    """

    row: Row
    rule: Rename

    @property
    def cure(self) -> str:
        """What is said of the leaf."""
        return f"only {'/'.join(self.row.path)} has its name and its type; {self.rule} joins them"


_Pair = tuple[Loose, Loose]
"""A leaf of the source, and one of the view."""


def outside_partners(
    source: Layout, view: Layout, loose: Sequence[Sequence[Loose]], certain: Mapping[int, int]
) -> tuple[dict[int, OutsidePartner], dict[int, OutsidePartner]]:
    """The partners by the numbers of the source's rows, and by those of the view's.

    They are certain where all of them stand below one node: no other node has a leaf of such a name.

    Args:
        source: The source's layout.
        view: The view's layout.
        loose: The leaves of both that have no partner.
        certain: Those that have one for another reason, by the numbers of both.
    """
    taken = {*certain.values()}
    left = [leaf for leaf in loose[0] if leaf.required and leaf.number not in certain]
    right = [leaf for leaf in loose[1] if leaf.required and leaf.number not in taken]
    found: tuple[dict[int, OutsidePartner], dict[int, OutsidePartner]] = {}, {}
    for pairs in (_below_one_node(left, right), [(b, a) for a, b in _below_one_node(right, left)]):
        rules = _rules(source, view, pairs)
        for (here, there), rule in zip(pairs, rules, strict=True):
            found[0][here.number] = OutsidePartner(there.row, rule)
            found[1][there.number] = OutsidePartner(here.row, rule)
    return found


def _below_one_node(inside: Sequence[Loose], outside: Sequence[Loose]) -> list[_Pair]:
    """The leaves of a model and those of the other side that stand beside it, all below one node."""
    by_path: dict[LogicalPath, Loose] = {}
    for leaf in inside:
        if leaf.row.body:
            by_path[leaf.path] = leaf
    pairs: list[_Pair] = []
    heads: set[LogicalPath] = set()
    met: collections.Counter[int] = collections.Counter()
    for leaf in outside:
        path = leaf.path
        if leaf.row.body:
            continue
        for end in range(1, len(path)):
            partner = by_path.get(path[end:])
            if partner is not None and _held(partner.row) == _held(leaf.row):
                pairs.append((partner, leaf))
                heads.add(path[:end])
                met[partner.number] += 1
    # Two models, or two such nodes, would leave it open which is which.
    roots = {partner.row.root for partner, _ in pairs}
    return pairs if len(heads) == len(roots) == 1 and set(met.values()) == {1} else []


def _held(row: Row) -> object:
    """A leaf: a stack and a list of as many layers hold the same."""
    return row.leaf, tuple(repeat.size for repeat in row.repeats)


def _rules(source: Layout, view: Layout, pairs: Sequence[_Pair]) -> list[Rename]:
    """The rename of each pair: of several leaves of one name it is one, where no other leaf has that name."""
    by_name: dict[str, list[_Pair]] = {}
    for here, there in pairs:
        by_name.setdefault(here.row.path[-1], []).append((here, there))
    numbers = {here.number for here, _ in pairs}, {there.number for _, there in pairs}
    # Asked once for all leaves of a name, of which there may be as many as layers.
    wholes: dict[str, Rename] = {}
    for name, several in by_name.items():
        heads = {_heads(here.row, there.row) for here, there in several}
        if len(several) == 1 or len(heads) > 1:
            continue
        ((ours, theirs),) = heads
        if _has_no_other(source, ours, name, numbers[0]) and _has_no_other(
            view, theirs, name, numbers[1]
        ):
            wholes[name] = Rename((*ours, "**", name), (*theirs, "**", name))
    rules: list[Rename] = []
    for here, there in pairs:
        whole = wholes.get(here.row.path[-1])
        rules.append(Rename(here.row.path, there.row.path) if whole is None else whole)
    return rules


def _heads(here: Row, there: Row) -> tuple[LogicalPath, LogicalPath]:
    """What two paths begin with that end in the same names."""
    same = 0
    while (
        same < min(len(here.path), len(there.path))
        and here.path[-1 - same] == there.path[-1 - same]
    ):
        same += 1
    return here.path[: len(here.path) - same], there.path[: len(there.path) - same]


def _has_no_other(table: Layout, head: LogicalPath, name: str, numbers: Container[int]) -> bool:
    """Whether all leaves of a name below a node are among those of some numbers, and none is the node's own."""
    for number, row in enumerate(table.rows):
        is_named = row.path[: len(head)] == head and row.path[-1] == name
        if is_named and (number not in numbers or len(row.path) == len(head) + 1):
            return False
    return bool(head)
