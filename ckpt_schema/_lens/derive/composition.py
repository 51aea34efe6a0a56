"""Composition: cells through the rows between two lenses. The layout between them is never built.

`middle` composes the cells. Here is the rest: that both lenses mean the same layout between them,
and what becomes of rows whose partner there has none on the far side.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from ckpt_schema._layouts import leaves, paths
from ckpt_schema._layouts.fallbacks import SameAs
from ckpt_schema._layouts.leaves import Default, Init, Leaf
from ckpt_schema._layouts.precision import may_be_one
from ckpt_schema._layouts.table import Layout, Row
from ckpt_schema._lens.derive.joins import Join
from ckpt_schema._lens.derive.middle import Joined, through_the_middle
from ckpt_schema._trees.chains import with_mirrors
from ckpt_schema.errors import DerivationError, Mismatch

__all__ = ["compose", "verify_alike"]


def compose(first: Joined, second: Joined) -> tuple[Layout, Layout, tuple[Join, ...]]:
    """The joins from end to end.

    A row the middle layout alone defaults carries that default to the far side.

    Raises:
        DerivationError: With every row in which the layouts in the middle differ, and all that do
            not compose.
    """
    faults: list[Mismatch] = []
    verify_alike(first.view, second.source, _contradictions(first, second))
    numbers = {row.key: number for number, row in enumerate(first.view.rows)}
    # From the rows of the first's view to those of the second's source, which are the same.
    middle = {numbers[row.key]: number for number, row in enumerate(second.source.rows)}
    joins_onward: dict[int, list[Join]] = {}
    for join in second.joins:
        for row_number in join.sources:
            joins_onward.setdefault(row_number, []).append(join)
    reached: set[int] = set()
    source, view = list(first.source.rows), list(second.view.rows)
    for join in first.joins:
        for outer, inner in join.pairs:
            reached.add(middle[inner])
            if middle[inner] not in joins_onward:
                row = second.source.rows[middle[inner]]
                source[outer] = _left_over(source[outer], row, first.source, faults)
    # Where one end lacks an optional leaf, the layout between them fills it in before the other end can.
    for join in first.joins:
        for outer, inner in join.pairs:
            far_rows: set[int] = set()
            for after in joins_onward.get(middle[inner], ()):
                far_rows.update(after.views)
            # Both lenses have rules of their own, so each has its own defaults in the middle.
            onward, back = first.view.rows[inner].default, second.source.rows[middle[inner]].default
            for far in far_rows:
                if first.source.rows[outer].optional:
                    view[far] = _defaulted(view[far], onward, second.view, faults)
                if second.view.rows[far].optional:
                    source[outer] = _defaulted(source[outer], back, first.source, faults)
    joins = through_the_middle(first, second, middle, faults)
    # The same as above for the other end: what the first lens has no partner for.
    in_first = {there: here for here, there in middle.items()}
    for join in second.joins:
        for inner, outer in join.pairs:
            if inner not in reached:
                row = first.view.rows[in_first[inner]]
                view[outer] = _left_over(view[outer], row, second.view, faults)
    if faults:
        raise DerivationError(f"no lens from {first.source.name} to {second.view.name}", faults)
    return (
        dataclasses.replace(first.source, rows=tuple(source)),
        dataclasses.replace(second.view, rows=tuple(view)),
        # In the view's order, as those of a derivation are.
        tuple(sorted(joins, key=lambda join: min(join.views))),
    )


def _contradictions(first: Joined, second: Joined) -> list[Mismatch]:
    """Dims that both lenses are bound to, differently."""
    faults: list[Mismatch] = []
    for name, size in second.dims.items():
        other = first.dims.get(name, size)
        if other != size:
            both = f"{other}, as in the first", f"{size} in the second"
            faults.append(Mismatch(name, "dims", *both, "bind both to the same"))
    return faults


def _left_over(row: Row, middle: Row, table: Layout, faults: list[Mismatch]) -> Row:
    """An outer row whose partner in the middle has none on the far side, with the default it has then.

    Without one it keeps its own value, as the middle does. A leaf that the middle may lack would not be there to keep.
    """
    row = _defaulted(row, middle.default, table, faults)
    if row.default is None and middle.optional and not row.optional:
        hint = "declare a default, or make it optional"
        found = f"{row.stored} in {table.name} alone, the layout between them making it optional"
        faults.append(
            Mismatch("/".join(row.path), "unplaced", "a partner on the far side", found, hint)
        )
    return row


def _defaulted(row: Row, default: Default | None, table: Layout, faults: list[Mismatch]) -> Row:
    """``row`` with the default that the layout in the middle declares, if it does."""
    if default is None:
        return row
    # The layout between knew its transformation, and the outer one has to make the start itself.
    if isinstance(default, Init) and table.initial is None:
        hint = f"declare {table.name} with its transformation"
        faults.append(
            Mismatch("/".join(row.path), "chain", "a transformation that starts it", "none", hint)
        )
    # It names another leaf of the layout between, which may be none of the outer one's.
    if isinstance(default, SameAs):
        expected = f"a default of {table.name} itself"
        found, hint = f"{default} in the layout between", "declare it on the outer layout"
        faults.append(Mismatch("/".join(row.path), "declaration", expected, found, hint))
        return row
    if not leaves.holds(row.leaf, default):
        hint = "the layout between them declares it"
        faults.append(
            Mismatch(
                "/".join(row.path),
                "dtype",
                f"a default that {row.leaf.dtype} can hold",
                str(default),
                hint,
            )
        )
    return dataclasses.replace(row, default=default)


def verify_alike(first: Layout, second: Layout, more: Iterable[Mismatch] = ()) -> None:
    """Raises unless two layouts between lenses are one; any float may be every float there.

    Args:
        first: The view of the first lens.
        second: The source of the second.
        more: What else is wrong.

    Raises:
        DerivationError: With every row in which they differ.
    """
    faults = [*_differences(first, second), *more]
    if faults:
        header = (
            f"{first.name} and {second.name} are not one layout, so their lenses do not compose"
        )
        raise DerivationError(header, faults)


def _differences(first: Layout, second: Layout) -> list[Mismatch]:
    """A fault for each leaf that only one of two layouts has, or that they have in two shapes or dtypes."""
    # By key path, for that is what a tree shows: each class may have names of its own.
    left = {row.key: row.stored for row in first.rows}
    right = {row.key: row.stored for row in second.rows}
    faults: list[Mismatch] = []
    for key in sorted({**left, **right}, key=lambda key: paths.natural(paths.format_path(key))):
        one, other = left.get(key), right.get(key)
        if one is None or other is None or not _may_be_one(one, other):
            both = str(one or "nothing"), str(other or "nothing")
            hint = _OTHER_AXES if _differ_in_axes(one, other) else ""
            faults.append(Mismatch(paths.format_path(key), "unplaced", *both, hint))
    return [*with_mirrors(first, faults)]


_OTHER_AXES = (
    "the axes are declared otherwise; if it is one array all the same, derive the second lens from "
    "the layout that the first one makes: derive(first.view, ...)"
)


def _differ_in_axes(leaf: Leaf | None, other: Leaf | None) -> bool:
    """Whether two leaves may be one array whose axes have other names."""
    if leaf is None or other is None or len(leaf.dims) != len(other.dims):
        return False
    return leaf.dtype == other.dtype


def _may_be_one(leaf: Leaf, other: Leaf) -> bool:
    """Whether two leaves are one, or are once it is known which floats they are."""
    if not (leaf.is_open or other.is_open):
        return str(leaf) == str(other)
    is_float = may_be_one(leaf.dtype, other.dtype)
    return is_float and str(leaf.with_dtype("")) == str(other.with_dtype(""))
