"""Whether a lens writes each element of the rows that it joins once, on both sides and for all sizes."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence

import ckpt_schema as cs
from ckpt_schema._layouts import leaves
from ckpt_schema._layouts.sizes import Size, slack
from ckpt_schema._layouts.table import Row
from ckpt_schema._lens.cells import Cell
from ckpt_schema._lens.covering import Flaw, flaws
from ckpt_schema._lens.spellings import of_dim


def flaws_of(lens: cs.Lens) -> Iterator[Flaw]:
    """What is wrong with how the rows of the source are written, and then those of the view."""
    yield from _of_side(lens, 0)
    yield from _of_side(lens, 1)


def _of_side(lens: cs.Lens, side: int) -> Iterator[Flaw]:
    table = (lens.source, lens.view)[side]
    known = {**{name: Size.of(size) for name, size in lens.dims.items()}, **_longer(lens)}
    cells: list[Cell] = []
    rows: dict[Hashable, Sequence[Size]] = {}
    for join in lens.joins:
        for number in (join.sources, join.views)[side]:
            rows[number] = [size.where(known) for size in _axes(table.rows[number])]
        if not join.compares[side]:  # or else the padding of a copy is that of what it is a copy of
            cells += (cell.where(known) for cell in join.cells)
    yield from flaws(cells, side, rows)


def _axes(row: Row) -> list[Size]:
    """The size of each axis of a row: those of its key first, and the words of keys last."""
    words = [Size.of(leaves.key_words(row.leaf.dtype))] if row.leaf.is_key else []
    return [*map(of_dim, row.unrolled), *map(of_dim, row.dims), *words]


def _longer(lens: cs.Lens) -> Mapping[str, Size]:
    """The dims that padded axes have, each as what it is padded from and something more."""
    known: dict[str, Size] = {}
    for join in lens.joins:
        for cell in join.cells:
            if not cell.is_constant:
                continue
            for digit in cell.geometry.digits:
                large, small = digit.size.parts
                names = sorted(large.names - small.names)
                if digit.size.nonnegative or len(names) != 1 or large != Size.of(names[0]):
                    continue
                known[names[0]] = small + slack(names[0])
    return known
