"""What the optimizer of one side keeps, and the other may have as well, where nothing says that it is an optimizer's.

Such leaves are read as weights: a list of leaves without names, or moments that stand under names of a trainer's own. To let
the optimizer keep its own values then, or to start it anew, would be to give up the moments that are there.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts.formats import FORMATS
from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.table import Layout, Row
from ckpt_schema._lens.derive.scope import said_paths

__all__ = ["nameless_rows", "nameless_told"]

_SHOWN = 3  # nodes that are named; more do not help


def nameless_rows(table: Layout, own: Iterable[Row], others: Iterable[Row]) -> list[Row]:
    """The leaves of a layout that may be what the optimizer of another keeps, by their sizes.

    Args:
        table: The layout.
        own: Its rows that have no partner.
        others: The other side's rows that have none.

    Returns:
        Nothing where an optimizer is known in the layout, or where no one field that is like the
        weights can be there as a whole.
    """
    own = [*own]
    if any(row.optimizer for row in table.rows):
        return []
    kept: set[object] = set()
    # What each field, such as mu, keeps for the weights: it is there as a whole or not at all.
    fields: dict[LogicalPath, collections.Counter[object]] = {}
    weights: collections.Counter[object] = collections.Counter()
    for row in others:
        size = _size(row)
        if row.optimizer:
            kept.add(size)
        else:
            weights[size] += 1
        if row.mirrors:
            fields.setdefault(row.path[: row.body], collections.Counter())[size] += 1
    # Of the leaves here as many are weights as the other side has weights without a partner.
    spare = collections.Counter(map(_size, own)) - weights
    if not kept or not any(field <= spare for field in fields.values()):
        return []
    return [row for row in own if _size(row) in kept]


def _size(row: Row) -> object:
    """What a leaf has in common with another of its shape, on one axis more or in a list; moments may be of another float."""
    named: list[str] = []
    size = 1
    for factor in dims_.factors(row.all_dims):
        if isinstance(factor, int):
            size *= factor
        else:
            named.append(str(factor))
    dtype = row.leaf.dtype
    return "float" if dtype in FORMATS else dtype, tuple(sorted(named)), size


def nameless_told(rows: Iterable[Row], table: Layout, kept: Iterable[Row], far: Layout) -> str:
    """What an error says of such leaves, on either side.

    Args:
        rows: What `nameless_rows` found.
        table: The layout that it is in.
        kept: The rows of the other side's optimizer that have no partner.
        far: The other side's layout.
    """
    spoken = said_paths(table, far)
    # The nodes on top, each once: a trainer keeps a field in one of them.
    here = list(dict.fromkeys(spoken[row.path][0] for row in rows))
    there = list(dict.fromkeys(row.path[0] for row in kept))
    more = f", {len(here) - _SHOWN} more" if len(here) > _SHOWN else ""
    return (
        f"{table.name} names no optimizer, and may have at {', '.join(here[:_SHOWN])}{more} what "
        f"{far.name} keeps at {', '.join(there)}: rename each node or leaf of it, or declare the train "
        "state (cs.optimizer(tx, of=...), or infer(..., tx=tx))"
    )
