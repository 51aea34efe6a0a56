"""What starts anew in a plan: leaves of the optimizer state, as their transformation makes them of the params."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts import leaves, paths
from ckpt_schema._layouts.table import Layout, Slot
from ckpt_schema._lens.plan import refusals
from ckpt_schema._lens.plan.matched_trees import MatchedTrees
from ckpt_schema._lens.plan.plan import Restart
from ckpt_schema._trees.containers import flatten
from ckpt_schema._trees.slots import SlotFinder
from ckpt_schema.errors import Mismatch

__all__ = ["restart_of"]


def restart_of(
    view: Layout,
    trees: MatchedTrees,
    wanted: Sequence[Slot],
    fresh: Sequence[Slot],
    places: Mapping[Slot, int],
) -> Restart | list[Mismatch]:
    """What makes the leaves of the optimizer state that start anew, from the params of the result.

    Args:
        view: The layout of the result.
        trees: The trees that a plan is compiled for.
        wanted: Every leaf that the result has.
        fresh: Those that start anew.
        places: Where the params are in the pool.

    Returns:
        That, or what is wrong: no transformation is known, or it makes leaves of other shapes.
    """
    initial, rows = view.initial, view.rows
    if initial is None:
        return [refusals.homeless(rows[slot[0]], slot, abstract=False) for slot in fresh]
    # A mask may hide leaves of the model from the optimizer.
    params = [slot for slot in wanted if initial.trains(rows[slot[0]])]

    def state(values: Sequence[Any]) -> Any:
        named: list[Any] = []
        for (number, indices), value in zip(params, values, strict=True):
            row = rows[number]
            named.append((paths.fill(row.key, indices), row, value))
        return initial(named)

    # Which leaf of that state is which slot is told by a state of shapes alone.
    shapes: list[jax.ShapeDtypeStruct] = []
    for number, _ in params:
        shape = dims_.sizes_of(rows[number].dims, trees.sizes) or ()
        shapes.append(jax.ShapeDtypeStruct(shape, rows[number].leaf.dtype))
    flat, find = flatten(jax.eval_shape(state, shapes)), SlotFinder(view).slot
    positions = {find(key, stored=False): place for place, key in enumerate(flat.keys)}
    # A transformation that was changed since may make a leaf of another shape.
    faults: list[Mismatch] = []
    for slot in fresh:
        row, place = rows[slot[0]], positions.get(slot)
        made = None if place is None else flat.leaves[place]
        if leaves.signature(made) != (dims_.sizes_of(row.dims, trees.sizes), row.leaf.dtype):
            where = paths.format_path(paths.fill(row.key, slot[1]))
            found = f"{leaves.describe(made)} from the transformation"
            faults.append(Mismatch(where, "shape", str(row.stored), found))
    if faults:
        return faults
    picked = [positions[slot] for slot in fresh]

    def run(values: Sequence[Any]) -> list[Any]:
        made = jax.tree.leaves(state(values))
        return [made[place] for place in picked]

    return Restart(
        run,
        inputs=tuple([places[slot] for slot in params]),
        likes=tuple(map(trees.like, fresh)),
        along=tuple(_along(view, params, fresh)),
        abstract=trees.abstract,
    )


def _along(view: Layout, params: Sequence[Slot], fresh: Sequence[Slot]) -> list[int | None]:
    """For each leaf that starts anew, the number of the param whose sharding it can take; or None."""
    numbers: dict[tuple[str, tuple[int, ...]], int] = {}
    for number, (row_number, indices) in enumerate(params):
        numbers["/".join(view.rows[row_number].path), indices] = number
    along: list[int | None] = []
    for row_number, indices in fresh:
        row = view.rows[row_number]
        number = numbers.get((row.mirrors, indices))
        # A moment that is factored mirrors a param too, and has other axes.
        is_alike = number is not None and view.rows[params[number][0]].dims == row.dims
        along.append(number if is_alike else None)
    return along
