"""What the optimizer of one side keeps, and the other may have as well, where nothing says that it is an optimizer's.

Such leaves are read as weights: a list of leaves without names, or moments that stand under names of a trainer's own. To let
the optimizer keep its own values then, or to start it anew, would be to give up the moments that are there.
"""

from __future__ import annotations

import collections
import math
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
    own, others = [*own], [*others]
    kept = {_size(row) for row in others if row.optimizer}
    if not kept or any(row.optimizer for row in table.rows):
        return []
    fields: dict[LogicalPath, collections.Counter[object]] = {}
    for row in others:
        if row.mirrors:
            fields.setdefault(row.path[: row.body], collections.Counter())[_size(row)] += 1
    spare = collections.Counter(map(_size, own))
    spare -= collections.Counter(_size(row) for row in others if not row.optimizer)
    if not any(field <= spare for field in fields.values()):
        return []
    return [row for row in own if _size(row) in kept]


def _size(row: Row) -> object:
    """What a leaf has in common with another of its shape, on one axis more or in a list; moments may be of another float."""
    factors = [*dims_.factors(row.leaf.dims)]
    for repeat in row.repeats:
        factors += repeat.size
    named = sorted(str(factor) for factor in factors if not isinstance(factor, int))
    size = math.prod(factor for factor in factors if isinstance(factor, int))
    dtype = row.leaf.dtype
    return "float" if dtype in FORMATS else dtype, tuple(named), size


def nameless_told(rows: Iterable[Row], table: Layout, kept: Iterable[Row], far: Layout) -> str:
    """What an error says of such leaves, on either side.

    Args:
        rows: What `nameless_rows` found.
        table: The layout that it is in.
        kept: The rows of the other side's optimizer that have no partner.
        far: The other side's layout.
    """
    spoken = said_paths(table, far)
    here = list(dict.fromkeys(spoken[row.path][0] for row in rows))
    there = list(dict.fromkeys(row.path[0] for row in kept))
    more = f", {len(here) - _SHOWN} more" if len(here) > _SHOWN else ""
    return (
        f"{table.name} names no optimizer, and may have at {', '.join(here[:_SHOWN])}{more} what "
        f"{far.name} keeps at {', '.join(there)}: rename each node or leaf of it, or declare the train "
        "state (cs.optimizer(tx, of=...), or infer(..., tx=tx))"
    )
