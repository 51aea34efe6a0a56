"""Trees like the weights, such as their average, that each side calls otherwise: one rule joins them as wholes.

ema/encoder/w here and average/encoder/w there, beside params/encoder/w on both sides
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.table import Layout, Row
from ckpt_schema._lens.derive.partners import Loose
from ckpt_schema._lens.derive.restarts import is_param_row
from ckpt_schema._lens.rules import Rename, Rule

__all__ = ["CopyOfWeights", "copy_of_weights"]


@dataclasses.dataclass(frozen=True, slots=True)
class CopyOfWeights:
    """A tree like the weights, such as their average, of which each side has one that the other has not.

    Attributes:
        rule: The rename that joins both.
        is_certain: Whether they hold the same, or one has all of the other. Where they do not, the
            weights beside them do not yet either.
    """

    rule: Rename
    is_certain: bool

    def holds(self, row: Row) -> bool:
        """Whether a leaf of the model is in one of the two."""
        here, there = self.rule.source, self.rule.view
        return row.path[: len(here)] == here or row.path[: len(there)] == there


def copy_of_weights(
    source: Layout, view: Layout, loose: Sequence[Sequence[Loose]], rules: Sequence[Rule]
) -> CopyOfWeights | None:
    """The two trees like the weights, if there are such and no rule joins them."""
    sides = [_averages(source, view), _averages(view, source)]
    # Of several such trees nobody can say which is which.
    if not any(sides) or max(map(len, sides)) > 1:
        return None
    # Where one side has none that is known as one, a node of its own may hold the same leaves.
    for side in (0, 1):
        if not sides[side]:
            node = _like(sides[1 - side][0], loose[1 - side], loose[side])
            if node is None:
                return None
            sides[side] = [node]
    held: list[collections.Counter[object]] = []
    for [head], leaves in zip(sides, loose, strict=True):
        count: collections.Counter[object] = collections.Counter()
        for leaf in leaves:
            if leaf.row.path[: len(head)] == head:
                count[_held(leaf.row)] += 1
        held.append(count)
    # A clone of a module has statistics besides, which an average of its params has not.
    is_certain = held[0] <= held[1] or held[1] <= held[0]
    copy = CopyOfWeights(Rename(sides[0][0], sides[1][0]), is_certain)
    if copy.rule in rules:
        return None
    # Trees that differ may be one once the weights beside them have their rules, if any lack these.
    if is_certain or any(
        leaf.required and not copy.holds(leaf.row) for leaf in (*loose[0], *loose[1])
    ):
        return copy
    # Where these have their rules, leaves that are fused on one side are what still differs.
    if _is_whole(source, sides[0][0]) and _is_whole(view, sides[1][0]):
        return CopyOfWeights(copy.rule, is_certain=True)
    return None


def _is_whole(table: Layout, head: LogicalPath) -> bool:
    """Whether a tree beside the weights has all params that the model has, and no others."""
    params: dict[bool, set[LogicalPath]] = {True: set(), False: set()}
    for row in table.rows:
        if row.is_weight and is_param_row(row):
            params[row.path[: len(head)] == head].add(row.path[row.body or 0 :])
    return params[True] == params[False]


def _averages(table: Layout, far: Layout) -> list[LogicalPath]:
    """Where a layout has trees like the weights, and the other has none."""
    others = {row.root for row in far.rows}
    heads: dict[LogicalPath, None] = {}
    for row in table.rows:
        # The model's own place is no such tree, as long as the other side has its model there too.
        if row.body and not row.mirrors and row.root not in others:
            heads[row.root] = None
    return list(heads)


def _held(row: Row) -> object:
    """A leaf: a stack and a list of as many layers hold the same."""
    return row.leaf, tuple(repeat.size for repeat in row.repeats)


def _like(
    head: LogicalPath, leaves: Sequence[Loose], others: Sequence[Loose]
) -> LogicalPath | None:
    """The one node, deeper in a tree of another kind, that has all params of such a tree under their names."""
    own: dict[LogicalPath, object] = {}
    params: dict[LogicalPath, object] = {}
    for leaf in leaves:
        if leaf.row.root == head:
            name = leaf.row.path[len(head) :]
            own[name] = _held(leaf.row)
            if is_param_row(leaf.row):
                params[name] = own[name]
    if not params:
        return None
    # What stands below each node outside of a model, under each of the nodes that lead to it.
    below: dict[LogicalPath, dict[LogicalPath, object]] = {}
    for leaf in others:
        path = leaf.row.path
        for end in range(1, len(path)) if not leaf.row.body else ():
            below.setdefault(path[:end], {})[path[end:]] = _held(leaf.row)
    nodes: list[LogicalPath] = []
    for node, held in below.items():
        has_all = own.items() <= held.items()
        # An average of the params may lack statistics, but has nothing that the tree lacks.
        if has_all or params.items() <= held.items() <= own.items():
            nodes.append(node)
    return nodes[0] if len(nodes) == 1 else None
