"""Nodes that have no partner, and the nodes of the other side that they may be: lines to paste, of which one is true each.

Where shapes do not tell, running both models does; the error says how.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence, Set

from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.table import Layout, Row
from ckpt_schema._lens.rules import Rename
from ckpt_schema.errors import CkptSchemaError, DerivationError

__all__ = ["open_names", "with_discovery"]

_SHOWN = 6
"""How many nodes one node is offered; more are counted."""


def open_names(error: CkptSchemaError, source: Layout, view: Layout) -> list[str]:
    """Renames of whole nodes that shapes allow and do not tell, commented, to paste beside the rules of an error.

    Args:
        error: What derivation says of the two layouts.
        source: The source's layout.
        view: The view's layout.

    Returns:
        A heading and a line for each node; nothing where no node is in doubt.
    """
    unplaced = {fault.path for fault in error.mismatches if fault.kind == "unplaced"}
    certain = [rule for rule in error.rules if isinstance(rule, Rename)]
    here = _nodes(source.rows, unplaced, {rule.source for rule in certain})
    there = _nodes(view.rows, unplaced, {rule.view for rule in certain})
    alike: dict[object, list[LogicalPath]] = collections.defaultdict(list)
    for node, leaves in there.items():
        alike[leaves].append(node)
    heads = {(rule.source[:-1], rule.view[:-1]) for rule in certain}
    lines: list[str] = []
    for node, leaves in here.items():
        likely = _Likely(node, heads)
        own = "/".join(node)
        others = ["/".join(one) for one in sorted(alike.get(leaves, ()), key=likely)]
        if others:
            more = f", or {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
            choice = "".join(f" or {other!r}" for other in others[1:_SHOWN])
            lines.append(f"    # cs.rename({own!r}, {others[0]!r}),{choice}{more}")
    if not lines:
        return []
    head = "open: shapes allow these, and do not tell; paste the lines that are true into rules=:"
    return ["\n".join([head, *lines])]


def with_discovery(error: DerivationError, source: Layout, view: Layout) -> DerivationError:
    """An error that says how running both models tells which leaf is which, where both sides have weights in doubt."""
    unsettled = {
        fault.path for fault in error.mismatches if fault.kind == "unplaced" and not fault.rules
    }
    for table in (source, view):
        weights = (row for row in table.rows if row.is_weight)
        if not any("/".join(row.path) in unsettled for row in weights):
            return error
    # What stands last may be cut.
    return DerivationError(error.header, error.mismatches, [_BY_RUNNING, *error.notes])


_BY_RUNNING = (
    "running both models tells which leaf is which: found = cs.discover(source_run, source, "
    "view_run, view), then rules=found.rules, scan=found.scan, lists=found.lists"
)


class _Likely:
    """Puts first, of the nodes that one may be, those where its siblings are, and then those of its name."""

    def __init__(self, node: LogicalPath, heads: Set[tuple[LogicalPath, LogicalPath]]) -> None:
        """Of one node, and of what stands above those that are certain, on both sides."""
        self._node, self._heads = node, heads

    def __call__(self, other: LogicalPath) -> tuple[bool, bool]:
        """The rank of one that it may be: smaller is likelier."""
        are_there = (self._node[:-1], other[:-1]) in self._heads
        return not are_there, self._node[-1] != other[-1]


def _nodes(
    rows: Iterable[Row], unplaced: set[str], named: set[LogicalPath]
) -> dict[LogicalPath, object]:
    """The nodes of a model that hold leaves without a partner alone, each with what it holds."""
    rows_below: dict[LogicalPath, list[Row]] = collections.defaultdict(list)
    for row in rows:
        if row.is_weight and len(row.model_path) > 1:
            rows_below[row.path[row.body : -1]].append(row)
    return {
        node: _held(inner)
        for node, inner in rows_below.items()
        if all("/".join(row.path) in unplaced for row in inner)
        and not any(node[: len(name)] == name for name in named)
    }


def _held(rows: Sequence[Row]) -> object:
    """What a node holds: the names, shapes and repeats of its leaves."""
    return frozenset(
        (row.path[-1], row.leaf, tuple(repeat.size for repeat in row.repeats)) for row in rows
    )
