"""Joins: rows that are one leaf, or parts of one, and the cells that say which element of one is which of the other.

A derivation makes joins leaf by leaf. Where cells were cut anew, by composition or for a list in
several nodes, `joins_of` finds which of them belong together: those that touch one leaf of a tree.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator

from ckpt_schema._layouts.sizes import UndecidedError
from ckpt_schema._lens import codecs
from ckpt_schema._lens.cells import Cell, Constant, Geometry, through, tidy
from ckpt_schema._lens.derive.leaf_rules import UNTOLD, Told
from ckpt_schema._lens.normal import normal

__all__ = ["Join", "joins_of"]


@dataclasses.dataclass(frozen=True)
class Join:
    """Rows of both sides that share elements.

    Attributes:
        cells: Which elements, and what happens to them. Rows are told by their numbers.
        told: What rules say of the leaf, where it is one row on both sides.
        plain: Whether it is one whole row on both sides, but for padding.
    """

    cells: tuple[Cell, ...]
    told: Told = UNTOLD
    plain: bool = False

    @functools.cached_property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Each row of the source with each of the view that it shares elements with."""
        # A dict keeps each pair once, in the order of the cells: several layers are one row.
        pairs: dict[tuple[int, int], None] = {}
        for cell in self.cells:
            if not cell.is_constant:
                pairs[_row(cell.source), _row(cell.view)] = None
        return tuple(pairs)

    @functools.cached_property
    def sources(self) -> tuple[int, ...]:
        """The source's rows."""
        return tuple(dict.fromkeys(source for source, _ in self.pairs))

    @functools.cached_property
    def views(self) -> tuple[int, ...]:
        """The view's rows."""
        return tuple(dict.fromkeys(view for _, view in self.pairs))

    @property
    def compares(self) -> tuple[bool, bool]:
        """For each side, whether all its elements there have another cell that writes them."""
        source_compares = view_compares = True
        for cell in self.cells:
            # Padding has no partner that it could be compared with.
            if not cell.is_constant:
                source_compares &= cell.compares[0]
                view_compares &= cell.compares[1]
        return source_compares, view_compares

    @functools.cached_property
    def inverse(self) -> Join:
        """The same join seen from the other side."""
        cells: list[Cell] = []
        for cell in self.cells:
            turned = ~cell
            # How steps are spelled depends on which side comes last, so it is spelled anew.
            cells.append(dataclasses.replace(turned, geometry=tidy(turned.geometry)))
        return Join(tuple(cells), self.told.inverse, self.plain)

    @functools.cached_property
    def names(self) -> frozenset[str]:
        """The dims whose sizes say which elements these are, and what happens to them."""
        dims: set[str] = set()
        for cell in self.cells:
            dims |= cell.geometry.names | codecs.dims_of(cell.codec)
        return frozenset(dims)


def _row(end: object) -> int:
    """The row at an end of a cell that has one at both."""
    assert isinstance(end, int)
    return end


def joins_of(cells: Iterable[Cell], symbols: Callable[[int, int], int]) -> Iterator[Join]:
    """The joins of cells, of those that touch one leaf each.

    Leaves of a row that no other leaf shares, such as new layers, stand with another leaf of that
    row. A row of which no leaf is shared has no join.

    Args:
        cells: The cells.
        symbols: How many index symbols the key of a row has, by side and number.
    """
    shared: list[list[Cell]] = []
    constants: list[Cell] = []
    for group in _grouped(cells, symbols):
        if all(cell.is_constant for cell in group):
            constants += group
        else:
            shared.append(group)
    # For each row, by side and number, the first group of cells that has a leaf of it.
    homes: dict[tuple[int, object], list[Cell]] = {}
    for group in shared:
        for cell in group:
            if not cell.is_constant:
                homes.setdefault((0, cell.source), group)
                homes.setdefault((1, cell.view), group)
    for cell in constants:
        side, number, _ = cell.alone
        if (side, number) in homes:
            homes[side, number].append(cell)
    plain: dict[tuple[object, object], list[Cell]] = {}
    for group in shared:
        merged = tuple(group) if len(group) == 1 else normal(group)
        if len(merged) == 1:
            plain.setdefault((merged[0].source, merged[0].view), []).append(merged[0])
        else:
            # Padding beside one cell is still one row on both sides.
            yield Join(merged, plain=[cell.is_constant for cell in merged].count(False) == 1)
    for several in plain.values():
        # Layers of a list that no leaf holds together may still go the same way, blocks and a rest.
        for cell in several if len(several) == 1 else normal(several):
            yield Join((cell,), plain=True)


def _grouped(cells: Iterable[Cell], symbols: Callable[[int, int], int]) -> Iterator[list[Cell]]:
    """The cells by what they have in common: those that touch one leaf of a tree are together.

    Args:
        cells: The cells.
        symbols: How many index symbols the key of a row has, by side and number.
    """
    # Of each cell, by its place, the number of its group: at first it is one by itself.
    group_of: dict[int, int] = {}
    boxes_of: dict[tuple[int, int], list[tuple[int, Geometry]]] = {}
    numbered = [*enumerate(cells)]
    for place, cell in numbered:
        group_of[place] = place
        for side, end in enumerate((cell.source, cell.view)):
            if isinstance(end, Constant):
                continue
            row = (side, _row(end))
            # Which leaves it touches: of `layers/3/kernel` the 3 is all that counts.
            box = cell.geometry.box(side, symbols(*row))
            for other, other_box in boxes_of.setdefault(row, []):
                if group_of[other] != group_of[place] and _meet(box, other_box):
                    _merge(group_of, group_of[other], group_of[place])
            boxes_of[row].append((place, box))
    members: dict[int, list[Cell]] = {}
    # By place, so that groups come in the order of their first cells, and cells as they were given.
    for place, cell in numbered:
        members.setdefault(group_of[place], []).append(cell)
    yield from members.values()


def _merge(group_of: dict[int, int], one: int, other: int) -> None:
    """Puts what is in another group into one."""
    for place, group in group_of.items():
        if group == other:
            group_of[place] = one


def _meet(one: Geometry, other: Geometry) -> bool:
    """Whether two sets of leaves have one in common, for some sizes."""
    if one == other:
        return True
    try:
        return bool(through(one, ~other))
    # Sizes decide it, so they may meet: with too small a group a leaf would be made by halves.
    except UndecidedError:
        return True
