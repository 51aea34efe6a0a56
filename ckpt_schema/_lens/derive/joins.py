"""Joins: rows that are one leaf, or parts of one, and the cells that say which element of one is which of the other."""

from __future__ import annotations

import dataclasses
import functools
import itertools
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
        both = [cell for cell in self.cells if not cell.is_constant]
        found = [(_row(cell.source), _row(cell.view)) for cell in both]
        return (found[0],) if len(found) == 1 else tuple(dict.fromkeys(found))

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
        both = [cell.compares for cell in self.cells if not cell.is_constant]
        return all(one for one, _ in both), all(other for _, other in both)

    @functools.cached_property
    def inverse(self) -> Join:
        """The same join seen from the other side."""
        turned = (~cell for cell in self.cells)
        cells = (dataclasses.replace(cell, geometry=tidy(cell.geometry)) for cell in turned)
        return Join(tuple(cells), self.told.inverse, self.plain)

    @functools.cached_property
    def names(self) -> frozenset[str]:
        """The dims whose sizes say which elements these are, and what happens to them."""
        dims: set[str] = set()
        for cell in self.cells:
            dims |= cell.geometry.names | codecs.dims_of(cell.codec)
        return frozenset(dims)


def _row(end: object) -> int:
    assert isinstance(end, int) and not isinstance(end, Constant)
    return end


def joins_of(cells: Iterable[Cell], symbols: Callable[[int, int], int]) -> Iterator[Join]:
    """The joins of cells, of those that touch one leaf each.

    Leaves of a row that no other leaf shares, such as new layers, stand with another leaf of that
    row. A row of which no leaf is shared has no join.

    Args:
        cells: The cells.
        symbols: How many index symbols the key of a row has, by side and number.
    """
    groups = [*_grouped(cells, symbols)]
    homes: dict[tuple[int, object], list[Cell]] = {}
    for group in groups:
        for cell in group:
            if not cell.is_constant:
                homes.setdefault((0, cell.source), group)
                homes.setdefault((1, cell.view), group)
    alone = [group for group in groups if all(cell.is_constant for cell in group)]
    for cell in itertools.chain.from_iterable(alone):
        side, number, _ = cell.alone
        if (side, number) in homes:
            homes[side, number].append(cell)
    plain: dict[tuple[object, object], list[Cell]] = {}
    for group in groups:
        if any(group is other for other in alone):
            continue
        merged = tuple(group) if len(group) == 1 else normal(group)
        if len(merged) == 1:
            plain.setdefault((merged[0].source, merged[0].view), []).append(merged[0])
        else:
            yield Join(merged, plain=sum(not cell.is_constant for cell in merged) == 1)
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
    of: dict[int, int] = {}  # of each cell, by place: its group
    known: dict[tuple[int, int], list[tuple[int, Geometry]]] = {}
    several = [*cells]
    for place, cell in enumerate(several):
        of[place] = place
        for side, end in enumerate((cell.source, cell.view)):
            if isinstance(end, Constant):
                continue
            row = (side, _row(end))
            box = cell.geometry.box(side, symbols(*row))  # which leaves it touches
            for other, its in known.setdefault(row, []):
                if of[other] != of[place] and _meet(box, its):
                    _merge(of, of[other], of[place])
            known[row].append((place, box))
    places: dict[int, list[int]] = {}
    for place, group in of.items():
        places.setdefault(group, []).append(place)
    for group in sorted(places.values(), key=min):
        yield [several[place] for place in group]


def _merge(of: dict[int, int], one: int, other: int) -> None:
    for place, group in of.items():
        if group == other:
            of[place] = one


def _meet(one: Geometry, other: Geometry) -> bool:
    """Whether two sets of leaves have one in common, for some sizes."""
    if one == other:
        return True
    try:
        return bool(through(one, ~other))
    except UndecidedError:
        return True
