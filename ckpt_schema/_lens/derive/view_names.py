"""Dims of one name that are two things: those of the view get a name of their own."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Set

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts.sizes import Size
from ckpt_schema._layouts.table import Layout, Row
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
            for digit in cell.geometry.digits if not cell.is_constant else ():
                names |= digit.size.names if None not in digit.at else frozenset[str]()
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
    names: dict[str, str] = {}
    for row in table.rows:
        if row.key not in rows:
            continue
        own, theirs = (_WORD.findall(str(each.stored)) for each in (row, rows[row.key]))
        for name, new in zip(own, theirs, strict=False):
            if new != name and new.rstrip("_") == f"{name}_view":
                names[name] = new
    taken = table.names()
    return {name: new for name, new in names.items() if new not in taken}


def names_between(table: Layout, other: Layout) -> dict[str, str]:
    """What dims of one layout are called in another with the same rows, where that is something else."""
    names: dict[str, str] = {}
    for row, twin in zip(table.rows, other.rows, strict=True):
        if row.all_dims == twin.all_dims:
            continue
        own, theirs = (_WORD.findall(dims_.format_dims(each.all_dims)) for each in (row, twin))
        names |= {name: new for name, new in zip(own, theirs, strict=True) if name != new}
    return names


def renamed_row(row: Row, names: Mapping[str, str]) -> Row:
    """A row with other names of dims, which its class calls so now."""
    leaf = dataclasses.replace(row.leaf, dims=dims_.renamed_dims(row.leaf.dims, names))
    repeats = tuple(
        dataclasses.replace(repeat, size=dims_.renamed_dims((repeat.size,), names)[0])
        for repeat in row.repeats
    )
    return dataclasses.replace(row, leaf=leaf, repeats=repeats)


def renamed_layout(table: Layout, names: Mapping[str, str]) -> Layout:
    """A layout with other names of dims."""
    rows = tuple(renamed_row(row, names) for row in table.rows)
    nodes = tuple(
        dataclasses.replace(node, counts=dims_.renamed_dims(node.counts, names))
        for node in table.nodes
    )
    sizes = tuple((names.get(name, name), size) for name, size in table.sizes)
    return dataclasses.replace(table, rows=rows, nodes=nodes, sizes=sizes)


def renamed_joins(joins: Iterable[Join], names: Mapping[str, str]) -> tuple[Join, ...]:
    """Joins with other names of dims."""
    sizes = {name: Size.of(new) for name, new in names.items()}
    renamed: list[Join] = []
    for join in joins:
        cells: list[Cell] = []
        for cell in join.cells:
            codec = codecs.reworded(cell.codec, names)
            cells.append(dataclasses.replace(cell.where(sizes), codec=codec))
        renamed.append(dataclasses.replace(join, cells=tuple(cells)))
    return tuple(renamed)
