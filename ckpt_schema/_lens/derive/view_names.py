"""Dims of one name that are two things: those of the view get a name of their own.

Of two lenses that are composed, ``a >> b``, both outer layouts may call something ``padded`` that the
layout between has not. These sizes have nothing to do with each other, so that of the view becomes
``padded_view``; and what is composed with the result has to know it by both names.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Set

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts.sizes import Size
from ckpt_schema._layouts.table import Layout, Node, Repeat, Row
from ckpt_schema._lens import codecs
from ckpt_schema._lens.cells import Cell
from ckpt_schema._lens.derive.joins import Join

__all__ = [
    "as_called",
    "common_names",
    "names_apart",
    "names_between",
    "renamed_joins",
    "renamed_layout",
    "renamed_row",
]


def common_names(joins: Iterable[Join]) -> set[str]:
    """The dims whose sizes say how many elements both sides of joins have in common.

    All others count what one side has besides: padding, copies, what is private in part.
    """
    names: set[str] = set()
    for join in joins:
        for cell in join.cells:
            if cell.is_constant:
                continue
            for digit in cell.geometry.digits:
                # A digit that stays on one side, at None, counts copies on the other.
                if None not in digit.at:
                    names |= digit.size.names
    return names


def names_apart(names: Iterable[str], taken: Set[str]) -> dict[str, str]:
    """What the view's dims of these names are called, where the source has others of that name.

    Example:
        >>> names_apart(["padded"], {"padded", "padded_view"})
        {'padded': 'padded_view_'}
    """
    own_names: dict[str, str] = {}
    for name in sorted(names):
        new = f"{name}_view"
        # What was composed before may have taken that.
        while new in taken:
            new += "_"
        own_names[name] = new
    return own_names


_WORD = re.compile(r"\w+|\W")


def as_called(table: Layout, other: Layout) -> dict[str, str]:
    """What dims of one layout are called in another, where a composition has named them apart there.

    So what was composed composes with the next as its parts do.
    """
    rows = {row.key: row for row in other.rows}
    taken = table.names()
    names: dict[str, str] = {}
    for row in table.rows:
        if row.key not in rows:
            continue
        # Written out, both have the same words in the same places, but for the names.
        own = _WORD.findall(str(row.stored))
        theirs = _WORD.findall(str(rows[row.key].stored))
        for name, new in zip(own, theirs, strict=False):
            is_named_apart = new != name and new.rstrip("_") == f"{name}_view"
            if is_named_apart and new not in taken:
                names[name] = new
    return names


def names_between(table: Layout, other: Layout) -> dict[str, str]:
    """What dims of one layout are called in another with the same rows, where that is something else."""
    names: dict[str, str] = {}
    for row, twin in zip(table.rows, other.rows, strict=True):
        if row.all_dims == twin.all_dims:
            continue
        own = _WORD.findall(dims_.format_dims(row.all_dims))
        theirs = _WORD.findall(dims_.format_dims(twin.all_dims))
        for name, new in zip(own, theirs, strict=True):
            if name != new:
                names[name] = new
    return names


def renamed_row(row: Row, names: Mapping[str, str]) -> Row:
    """A row with other names of dims, which its class calls so now."""
    leaf = dataclasses.replace(row.leaf, dims=dims_.renamed_dims(row.leaf.dims, names))
    repeats: list[Repeat] = []
    for repeat in row.repeats:
        (size,) = dims_.renamed_dims((repeat.size,), names)
        repeats.append(dataclasses.replace(repeat, size=size))
    return dataclasses.replace(row, leaf=leaf, repeats=tuple(repeats))


def renamed_layout(table: Layout, names: Mapping[str, str]) -> Layout:
    """A layout with other names of dims."""
    rows = tuple(renamed_row(row, names) for row in table.rows)
    # Containers count their members by the same dims.
    nodes: list[Node] = []
    for node in table.nodes:
        counts = dims_.renamed_dims(node.counts, names)
        nodes.append(dataclasses.replace(node, counts=counts))
    sizes = tuple((names.get(name, name), size) for name, size in table.sizes)
    return dataclasses.replace(table, rows=rows, nodes=tuple(nodes), sizes=sizes)


def renamed_joins(joins: Iterable[Join], names: Mapping[str, str]) -> tuple[Join, ...]:
    """Joins with other names of dims."""
    sizes = {name: Size.of(new) for name, new in names.items()}
    renamed: list[Join] = []
    for join in joins:
        cells: list[Cell] = []
        for cell in join.cells:
            # A factor may be an expression of dims, such as "head_dim ** -0.5".
            codec = codecs.reworded(cell.codec, names)
            cells.append(dataclasses.replace(cell.where(sizes), codec=codec))
        renamed.append(dataclasses.replace(join, cells=tuple(cells)))
    return tuple(renamed)
