"""What is done to one leaf, as tasks: from its dims on both sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ckpt_schema._layouts.dims import parse_dims
from ckpt_schema._layouts.leaves import Leaf
from ckpt_schema._layouts.table import Repeat, Row
from ckpt_schema._lens.arrays import execution
from ckpt_schema._lens.arrays.blocks import Task
from ckpt_schema._lens.derive.leaf_rules import UNTOLD, Told
from ckpt_schema._lens.derive.relations import Relation, relate
from ckpt_schema._lens.plan.tasks import applications


def both_ways(
    before: str,
    after: str,
    sizes: Mapping[str, int],
    *,
    dtype: str = "float32",
    stacked: tuple[int | None, int | None] | None = None,
    told: Told = UNTOLD,
) -> tuple[Task, Task]:
    """What is done to a leaf on the way there, and on the way back.

    Args:
        before: Its dims in the source.
        after: Its dims in the view.
        sizes: Their sizes, in elements.
        dtype: Its dtype on both sides.
        stacked: If there is one in each of ``depth`` layers: the axis that stacks them on each side, or None.
        told: What rules say of it.
    """
    rows: list[Row] = []
    for text, axis in zip((before, after), stacked or (None, None), strict=True):
        levels = () if stacked is None else (Repeat(("depth",), axis),)
        rows.append(Row(("x",), ("x",), Leaf(parse_dims(text), dtype), levels))
    made = relate(*rows, told)
    assert isinstance(made, Relation), made
    join, tables = made.join(0, 0, told), ((rows[0],), (rows[1],))
    (there,) = applications(join, tables, sizes)
    (back,) = applications(join.inverse, tables[::-1], sizes)
    return there.task, back.task


def run(task: Task, values: Sequence[Any]) -> list[Any]:
    """What a task makes of leaves, onto nothing."""
    return execution.run(task, values, [None] * len(task.results))
