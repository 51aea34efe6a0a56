"""Sizes that a layout which was read off tells of the dims of one that is declared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ckpt_schema._layouts.dims import Dim
from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.table import Layout, Row
from ckpt_schema._lens.derive.globs import by_node
from ckpt_schema._lens.derive.names import Names
from ckpt_schema._lens.rules import Rename, Rule

__all__ = ["with_known_sizes"]


def with_known_sizes(
    source: Layout, view: Layout, rules: Sequence[Rule], dims: Mapping[str, int]
) -> tuple[tuple[Layout, Layout], Mapping[str, int]]:
    """Both layouts; where one of them has numbers alone, they are the sizes of the dims of the other.

    A dim takes the size that all leaves of one path tell. Where they tell several, it has none, and
    whoever joins the two says so.

    Args:
        source: The source's layout.
        view: The view's layout.
        rules: The rules of the lens, which say what is called how on both sides.
        dims: Sizes that are given.

    Returns:
        The layouts, and the sizes that are given and that no leaf tells.
    """
    tables = source, view
    named = [bool(table.names()) for table in tables]
    if named[0] == named[1]:
        return tables, dims
    renames, _, _ = by_node(source, view, [rule for rule in rules if isinstance(rule, Rename)])
    names = Names.of(renames)
    here = {names.called(path): row for path, row in _weights(source)}
    there = dict(_weights(view))
    told: dict[str, set[int]] = {}
    for path in here.keys() & there.keys():
        pair = here[path], there[path]
        declared, read = pair if named[0] else (pair[1], pair[0])
        for name, size in _told(declared, read):
            told.setdefault(name, set()).add(size)
    sizes = {name: several.pop() for name, several in told.items() if len(several) == 1}
    left = {name: size for name, size in dims.items() if sizes.get(name) != size}
    sizes = {name: size for name, size in sizes.items() if name not in left}
    if named[0]:
        source = source.sized(sizes)
    else:
        view = view.sized(sizes)
    return (source, view), left


def _weights(table: Layout) -> Iterator[tuple[LogicalPath, Row]]:
    return ((row.model_path, row) for row in table.rows if row.is_weight)


def _told(declared: Row, read: Row) -> Iterator[tuple[str, int]]:
    """What each dim of a declared row is, of those that are one axis or one list on both sides."""
    pairs: list[tuple[Dim, Dim]] = []
    if len(declared.leaf.dims) == len(read.leaf.dims):
        pairs += zip(declared.leaf.dims, read.leaf.dims, strict=True)
    if len(declared.repeats) == len(read.repeats):
        several = zip(declared.repeats, read.repeats, strict=True)
        pairs += [(one.size, other.size) for one, other in several]
    for dim, number in pairs:
        if len(dim) == len(number) == 1:
            name, size = dim[0], number[0]
            if isinstance(name, str) and isinstance(size, int):
                yield name, size
