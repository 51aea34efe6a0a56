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
    # Where both have names they mean one another; where none has, there is nothing to tell.
    is_source_declared = bool(source.names())
    if is_source_declared == bool(view.names()):
        return tables, dims
    # A leaf is called as in the view: only renames say how, of all rules.
    renames, _, _ = by_node(source, view, [rule for rule in rules if isinstance(rule, Rename)])
    names = Names.of(renames)
    here: dict[LogicalPath, Row] = {}
    for row in _weights(source):
        here[names.called(row.model_path)] = row
    there: dict[LogicalPath, Row] = {}
    for row in _weights(view):
        there[row.model_path] = row
    told: dict[str, set[int]] = {}
    for path in here.keys() & there.keys():
        pair = here[path], there[path]
        declared, read = pair if is_source_declared else pair[::-1]
        for name, size in _told(declared, read):
            told.setdefault(name, set()).add(size)
    # A size that is given and is not the one that leaves tell is left to whoever joins the two.
    left = dict(dims)
    sizes: dict[str, int] = {}
    for name, several in told.items():
        if len(several) > 1:
            continue
        (size,) = several
        if dims.get(name, size) == size:
            left.pop(name, None)
            sizes[name] = size
    if is_source_declared:
        source = source.sized(sizes)
    else:
        view = view.sized(sizes)
    return (source, view), left


def _weights(table: Layout) -> Iterator[Row]:
    """The rows of the model: what mirrors them has the same dims."""
    return (row for row in table.rows if row.is_weight)


def _told(declared: Row, read: Row) -> Iterator[tuple[str, int]]:
    """What each dim of a declared row is, of those that are one axis or one list on both sides."""
    pairs: list[tuple[Dim, Dim]] = []
    if len(declared.leaf.dims) == len(read.leaf.dims):
        pairs += zip(declared.leaf.dims, read.leaf.dims, strict=True)
    if len(declared.repeats) == len(read.repeats):
        for one, other in zip(declared.repeats, read.repeats, strict=True):
            pairs.append((one.size, other.size))
    # Of a product or a sum the number tells no name.
    for dim, number in pairs:
        if len(dim) == len(number) == 1:
            name, size = dim[0], number[0]
            if isinstance(name, str) and isinstance(size, int):
                yield name, size
