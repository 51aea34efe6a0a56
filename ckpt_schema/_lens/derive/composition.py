"""Composition: cells through the rows between two lenses. The layout between them is never built."""

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
    number = {row.key: n for n, row in enumerate(first.view.rows)}
    # From the rows of the first's view to those of the second's source, which are the same.
    middle = {number[row.key]: n for n, row in enumerate(second.source.rows)}
    onward: dict[int, list[Join]] = {}
    for join in second.joins:
        for at in join.sources:
            onward.setdefault(at, []).append(join)
    back = {middle[at] for join in first.joins for at in join.views}
    source, view = list(first.source.rows), list(second.view.rows)
    for before in first.joins:
        for one, at in before.pairs:
            if middle[at] not in onward:
                row = second.source.rows[middle[at]]
                source[one] = _left_over(source[one], row, first.source, faults)
    # Where one end lacks an optional leaf, the layout between them fills it in before the other end can.
    for before in first.joins:
        for one, row in before.pairs:
            for other in {at for after in onward.get(middle[row], ()) for at in after.views}:
                if first.source.rows[one].optional:
                    view[other] = _defaulted(
                        view[other], first.view.rows[row].default, second.view, faults
                    )
                if second.view.rows[other].optional:
                    source[one] = _defaulted(
                        source[one], second.source.rows[middle[row]].default, first.source, faults
                    )
    joins = through_the_middle(first, second, middle, faults)
    by_second = {m: n for n, m in middle.items()}
    for join in second.joins:
        for at, other in join.pairs:
            if at not in back:
                row = first.view.rows[by_second[at]]
                view[other] = _left_over(view[other], row, second.view, faults)
    if faults:
        raise DerivationError(
            f"no lens from {first.source.name} to {second.view.name}",
            faults,
        )
    return (
        dataclasses.replace(first.source, rows=tuple(source)),
        dataclasses.replace(second.view, rows=tuple(view)),
        tuple(sorted(joins, key=lambda join: min(join.views))),
    )


def _contradictions(first: Joined, second: Joined) -> list[Mismatch]:
    """Dims that both lenses are bound to, differently."""
    return [
        Mismatch(
            name,
            "dims",
            f"{first.dims[name]}, as in the first",
            f"{size} in the second",
            "bind both to the same",
        )
        for name, size in second.dims.items()
        if first.dims.get(name, size) != size
    ]


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
    if isinstance(default, Init) and table.initial is None:
        hint = f"declare {table.name} with its transformation"
        faults.append(
            Mismatch("/".join(row.path), "chain", "a transformation that starts it", "none", hint)
        )
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
    left = {row.key: row.stored for row in first.rows}
    right = {row.key: row.stored for row in second.rows}
    faults: list[Mismatch] = []
    for key in sorted({**left, **right}, key=lambda key: paths.natural(paths.format_path(key))):
        one, other = left.get(key), right.get(key)
        if one is None or other is None or not _may_be_one(one, other):
            both = ("nothing" if leaf is None else str(leaf) for leaf in (one, other))
            faults.append(Mismatch(paths.format_path(key), "unplaced", *both))
    return [*with_mirrors(first, faults)]


def _may_be_one(leaf: Leaf, other: Leaf) -> bool:
    """Whether two leaves are one, or are once it is known which floats they are."""
    if not (leaf.is_open or other.is_open):
        return str(leaf) == str(other)
    is_float = may_be_one(leaf.dtype, other.dtype)
    return is_float and str(leaf.with_dtype("")) == str(other.with_dtype(""))
