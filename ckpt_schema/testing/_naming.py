"""The law that a lens moves by names: an oracle of layouts and rules says where each element comes from, bit by bit."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from ckpt_schema._layouts.paths import format_path
from ckpt_schema._layouts.table import Layout, Row
from ckpt_schema._lens.ancestry import Derivation
from ckpt_schema._lens.lens import Lens
from ckpt_schema._trees.containers import Tree
from ckpt_schema.errors import Mismatch
from ckpt_schema.testing._held import HeldLeaves, by_key, first, same, whole_array
from ckpt_schema.testing._laws import LawError
from ckpt_schema.testing._named_arrays import FILLS, bases, indices_of
from ckpt_schema.testing._origins import origins
from ckpt_schema.testing._provenance import Origin, is_alike
from ckpt_schema.testing._sums import add_sums, alike_sums, computed_again, unpacked_layout

__all__ = ["naming", "origins_of", "unpacked_tables"]


def naming(lens: Lens, s: Tree) -> None:
    """``get(s)[name][i] == s[name][i]`` for every leaf and every index ``i`` by the names of dims and layers.

    What rules say of axes, parts, copies, padding and factors is said of the elements as well.
    """
    by_row, before, after = origins_of(lens), by_key(s), by_key(lens.get(s))
    # A row that stands for several holds what is computed of them, as the lens has it.
    added = add_sums(lens.source, lens.folds[0], before, lens.dims)
    add_sums(lens.view, lens.folds[1], after, lens.dims)
    computed = {one.row for one in lens.folds[0]}
    made = {one.row for one in lens.folds[1]}
    source, view = unpacked_tables(lens)
    starts = bases(source, lens.dims)
    faults: list[Mismatch] = []
    for number, origin in by_row.items():
        row, rows = view.rows[number], [source.rows[at] for at in origin.rows]
        firsts: list[int] = []
        ours: list[Any] = []
        for at in origin.rows:
            # Of no layers there is no leaf.
            if indices_of(source.rows[at], lens.dims):
                firsts.append(starts[at])
                ours.append(whole_array(source.rows[at], before, lens.dims))
        if not ours or not indices_of(row, lens.dims):
            continue
        # An optional leaf that the source lacks says nothing.
        if any(each is None for each in ours):
            continue
        theirs = whole_array(row, after, lens.dims)
        if theirs is None:
            faults.append(_fault(rows, row, "nothing"))
            continue
        expected = _expected(origin, firsts, ours)
        # What is rounded on the way is as good as the line says, and all else is equal in each bit.
        if origin.line.dtypes and is_alike(origin.line, expected, theirs):
            continue
        if number in made or not computed.isdisjoint(origin.rows):
            sizes = _added(lens, origin, added)
            bound = computed_again(lens, number, expected) if number in made else 0
            if alike_sums(expected, theirs, sizes, bound):
                continue
        if not same(expected, theirs):
            faults.append(_fault(rows, row, "others, or in another order", first(expected, theirs)))
    if faults:
        raise LawError("elements are not where their names say", faults)


def _added(lens: Lens, origin: Origin, added: HeldLeaves) -> Any:
    """How large what was added is, for each element of a row of the view."""
    starts = bases(lens.source, lens.dims)
    firsts: list[int] = []
    sizes: list[Any] = []
    for at in origin.rows:
        array = whole_array(lens.source.rows[at], added, lens.dims)
        if array is not None:  # what is no sum is not rounded
            firsts.append(starts[at])
            sizes.append(array)
    # They go where the elements go, and are scaled as these are.
    return np.abs(_expected(origin, firsts, sizes)) if sizes else np.longdouble(0)


def _fault(rows: list[Row], row: Row, found: str, hint: str = "") -> Mismatch:
    names = " and ".join(f"{format_path(each.key)}, {each.stored}" for each in rows)
    expected = f"the elements of {names}, by their names"
    return Mismatch(format_path(row.key), "naming", expected, found, hint)


@functools.lru_cache(maxsize=256)
def origins_of(lens: Lens) -> Mapping[int, Origin]:
    """Where everything comes from; where paths do not tell, as in chains unlike each other, the lens does."""
    # A lens that was made of cells alone has no rules: names tell all of it.
    steps = [*(lens.derivations or (Derivation(lens.source, lens.view),))]
    # Numbers in words are elements of no layout that anybody has declared.
    source, view = unpacked_tables(lens)
    if source is not lens.source:
        steps[0] = _with_end(steps[0], source, is_left=True)
    if view is not lens.view:
        steps[-1] = _with_end(steps[-1], view, is_left=False)
    pairs = [join.pairs[0] for join in lens.joins if join.plain]
    return origins(steps, lens.dims, pairs)


def unpacked_tables(lens: Lens) -> tuple[Layout, Layout]:
    """Both layouts, whose leaves of words have an element for each number."""
    left, right = lens.folds
    return unpacked_layout(lens.source, left), unpacked_layout(lens.view, right)


def _with_end(step: Derivation, table: Layout, *, is_left: bool) -> Derivation:
    if is_left != step.inverted:
        return dataclasses.replace(step, source=table)
    return dataclasses.replace(step, view=table)


def _expected(origin: Origin, starts: list[int], values: list[Any]) -> np.ndarray[Any, Any]:
    """What the row should hold, all of its leaves as one array, as the source's dtype has it."""
    ids = origin.ids.ravel()
    made = np.zeros(ids.shape, values[0].dtype)
    for start, value in zip(starts, values, strict=True):
        # The elements of this row have the numbers from its start on.
        own = (ids >= start) & (ids < start + value.size)
        made[own] = value.ravel()[ids[own] - start]
    if origin.exponent:
        made = _scaled(made, origin.exponent)
    if origin.line.dtypes:
        with np.errstate(invalid="ignore"):  # signaling NaNs
            made = made.astype(np.longdouble) * origin.line.factor + origin.line.amount
    elif origin.line.factor == -1:
        made = np.where(_is_nan(made), made, -made)
    # Last, for a fill is what padding holds after all scaling.
    for number, fill in enumerate(origin.fills):
        made[ids == FILLS - number] = np.asarray(fill).astype(made.dtype)
    return made.reshape(origin.ids.shape)


def _scaled(value: np.ndarray[Any, Any], exponent: int) -> np.ndarray[Any, Any]:
    """Floats times a power of two; what is no number keeps its bits."""
    with np.errstate(all="ignore"):
        scaled = (value.astype(np.float64) * 2.0**exponent).astype(value.dtype)
    return np.where(_is_nan(value), value, scaled)


def _is_nan(value: np.ndarray[Any, Any]) -> Any:
    with np.errstate(invalid="ignore"):
        return np.isnan(value)
