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

__all__ = ["candidate_renames", "with_discovery"]

_SHOWN = 6
"""How many nodes one node is offered; more are counted."""


def candidate_renames(error: CkptSchemaError, source: Layout, view: Layout) -> list[str]:
    """Renames of whole nodes that shapes allow and do not tell, commented, to paste beside the rules of an error.

    Args:
        error: What derivation says of the two layouts.
        source: The source's layout.
        view: The view's layout.

    Returns:
        A heading and a line for each node; nothing where no node is in doubt.
    """
    unplaced = {fault.path for fault in error.mismatches if fault.kind == "unplaced"}
    # What a certain rename places is no more in doubt, on either side.
    renamed: set[LogicalPath] = set()
    taken: set[LogicalPath] = set()
    heads: set[tuple[LogicalPath, LogicalPath]] = set()
    for rule in error.rules:
        if isinstance(rule, Rename):
            renamed.add(rule.source)
            taken.add(rule.view)
            heads.add((rule.source[:-1], rule.view[:-1]))
    here = _nodes(source.rows, unplaced, renamed)
    alike: dict[object, list[LogicalPath]] = collections.defaultdict(list)
    for node, leaves in _nodes(view.rows, unplaced, taken).items():
        alike[leaves].append(node)
    lines: list[str] = []
    for node, leaves in here.items():
        candidates = sorted(alike.get(leaves, ()), key=_Likely(node, heads))
        if candidates:
            lines.append(_line("/".join(node), [*map("/".join, candidates)]))
    if not lines:
        return []
    head = "open: shapes allow these, and do not tell; paste the lines that are true into rules=:"
    return ["\n".join([head, *lines])]


def _line(node: str, candidates: Sequence[str]) -> str:
    """The likeliest rename, in a comment that says what else the node may be.

    ``# cs.rename('encoder', 'enc'), or 'dec' or 'head'``: the name is changed by hand where another is true.
    """
    line = f"    # cs.rename({node!r}, {candidates[0]!r}),"
    for other in candidates[1:_SHOWN]:
        line += f" or {other!r}"
    if len(candidates) > _SHOWN:
        line += f", or {len(candidates) - _SHOWN} more"
    return line


def with_discovery(error: DerivationError, source: Layout, view: Layout) -> DerivationError:
    """An error that says how running both models tells which leaf is which, where both sides have weights in doubt."""
    unsettled: set[str] = set()
    for fault in error.mismatches:
        if fault.kind == "unplaced" and not fault.rules:
            unsettled.add(fault.path)
    # If one side has all of its weights placed, there is nothing that the other's could be.
    for table in (source, view):
        if not any(row.is_weight and "/".join(row.path) in unsettled for row in table.rows):
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
    rows_in: dict[LogicalPath, list[Row]] = collections.defaultdict(list)
    placed: set[LogicalPath] = set()
    for row in rows:
        # A leaf at the root of a model stands in no node.
        if row.is_weight and len(row.model_path) > 1:
            node = row.model_path[:-1]
            rows_in[node].append(row)
            if "/".join(row.path) not in unplaced:
                placed.add(node)
    held: dict[LogicalPath, object] = {}
    for node, inner in rows_in.items():
        # A rename of a node places all that is below it.
        is_named = any(node[:end] in named for end in range(len(node) + 1))
        if node not in placed and not is_named:
            held[node] = _held(inner)
    return held


def _held(rows: Sequence[Row]) -> object:
    """What a node holds: the names, shapes and repeats of its leaves."""
    leaves: set[object] = set()
    for row in rows:
        # On which axis layers are stacked a lens changes, and how many there are it does not.
        counts = tuple([repeat.size for repeat in row.repeats])
        leaves.add((row.path[-1], row.leaf, counts))
    return frozenset(leaves)
