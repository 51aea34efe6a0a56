"""The fewest cells that say the same: what a middle has cut is put together again.

This is for print, and for leaves that only move: of these one cell is all. No value depends on it.
Merging whichever pair comes first does not always end in one form, so the tightest comes first.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
import itertools
from collections.abc import Hashable, Iterable, Iterator, Sequence

from ckpt_schema._layouts.sizes import ONE, ZERO, Size, UndecidedError
from ckpt_schema._lens.cells import Cell, Digit, Geometry, Place, taken_apart, through, tidy

__all__ = ["merged", "normal"]

_LOOSEST = 2  # at most one side of two blocks that become one has room between them


def normal(cells: Iterable[Cell]) -> tuple[Cell, ...]:
    """The same cells in one spelling, and as few as can be.

    Args:
        cells: Cells between the same rows, with the same codec, are put together.
    """
    groups: dict[Hashable, list[Cell]] = {}
    for cell in cells:
        alike = (cell.source, cell.view, cell.codec, cell.compares)
        groups.setdefault(alike, []).append(cell)
    merged_cells: list[Cell] = []
    # What is only compared comes last: it may lie in what is written.
    for group in sorted(groups.values(), key=lambda group: all(group[0].compares)):
        first = group[0]
        geometries = tuple([cell.geometry for cell in group])
        for geometry in merged(geometries, first.is_constant):
            cell = dataclasses.replace(first, geometry=geometry)
            if not all(first.compares) or not any(_says(other, cell) for other in merged_cells):
                merged_cells.append(cell)
    return tuple(sorted(merged_cells, key=str))


def _says(cell: Cell, other: Cell) -> bool:
    """Whether all that one cell says of elements is said by another that writes them."""
    ends = (cell.source, cell.view, cell.codec) == (other.source, other.view, other.codec)
    return ends and not cell.is_constant and _is_within(other.geometry, cell.geometry)


@functools.lru_cache(1 << 14)
def merged(geometries: tuple[Geometry, ...], is_constant: bool = False) -> tuple[Geometry, ...]:
    """Geometries of the same two rows, as few as can be.

    Args:
        geometries: Which elements are which.
        is_constant: Whether one side is a constant. What lies in another then stays.
    """
    whole = list(dict.fromkeys(map(tidy, geometries)))
    if len(whole) == 1:
        return tuple(whole)
    # However a block of a known size was cut, its single steps are the same.
    steps: dict[Geometry, None] = {}
    for geometry in whole:
        steps.update(dict.fromkeys(map(tidy, taken_apart(geometry))))
    parts = [*steps]
    if not is_constant:
        parts = _absorbed(parts)
    parts = _put_together(parts)
    # What has grown may hold a part now that it did not hold before.
    if not is_constant:
        parts = _absorbed(parts)
    return tuple(sorted(parts, key=str))


@dataclasses.dataclass(frozen=True, slots=True)
class _Join:
    """Two geometries that continue one another, and the one that they make."""

    looseness: int
    first: Geometry
    second: Geometry
    made: Geometry

    @property
    def rank(self) -> tuple[int, list[str]]:
        """The tightest has the least; the spelling decides where two are equally tight."""
        return self.looseness, sorted((str(self.first), str(self.second)))


def _put_together(parts: Iterable[Geometry]) -> list[Geometry]:
    """Joins two parts at a time, the tightest first."""
    index = _Index()
    ways: list[tuple[tuple[int, list[str]], int, _Join]] = []
    numbers = itertools.count()

    def add(part: Geometry) -> None:
        index.add(part)
        for way in index.joins(part):
            heapq.heappush(ways, (way.rank, next(numbers), way))

    for part in parts:
        if part not in index.parts:
            add(part)
    while ways:
        way = heapq.heappop(ways)[-1]
        # A heap forgets nothing: a part of this way may have gone into another one since.
        if way.first in index.parts and way.second in index.parts:
            index.remove(way.first)
            index.remove(way.second)
            if way.made not in index.parts:
                add(way.made)
    return list(index.parts)


_Digits = frozenset[Digit]
_Places = tuple[Place | None, Place | None]


class _Index:
    """Parts by where they begin and end, so that what follows on one is found without a look at all.

    A part is read along one of its digits: the others are the *rest*. One that has no such digit is
    one step of any.
    """

    def __init__(self) -> None:
        """Knows no part yet."""
        self.parts: dict[Geometry, _Digits] = {}
        # Dicts, as ordered sets: what is found first does not depend on hashes.
        self._by_key: dict[Hashable, dict[Geometry, None]] = {}

    def add(self, part: Geometry) -> None:
        """Takes a part up."""
        self.parts[part] = frozenset(part.digits)
        for key in self._keys(part):
            self._by_key.setdefault(key, {})[part] = None

    def remove(self, part: Geometry) -> None:
        """Forgets a part."""
        for key in self._keys(part):
            self._by_key[key].pop(part, None)
        del self.parts[part]

    def _keys(self, part: Geometry) -> Iterator[Hashable]:
        """All by which a part is looked for."""
        digits = frozenset(part.digits)
        yield "one step", digits, part.starts
        for side in (0, 1):
            yield "side", digits, side, part.starts[side]
        for digit in part.digits:
            rest, end = digits - {digit}, part.moved(digit, digit.size).starts
            yield "begins", rest, digit.at, part.starts
            yield "ends", rest, digit.at, end
            yield "ends before", rest, end
            yield "begins after", rest, part.moved(digit, -1).starts

    def _with(self, *key: Hashable) -> list[Geometry]:
        """The parts that are looked for by a key."""
        return list(self._by_key.get(key, ()))

    def joins(self, part: Geometry) -> Iterator[_Join]:
        """Every way in which a part and another one are one."""
        digits = self.parts[part]
        # Read along each of its own digits: what follows on the part, and what it follows on.
        for digit in part.digits:
            rest, end = digits - {digit}, part.moved(digit, digit.size).starts
            for other in self._with("begins", rest, digit.at, end):
                yield from self._along(digit.at, part, other)
            for other in self._with("one step", rest, end):
                yield from self._along(digit.at, part, other)
            for other in self._with("ends", rest, digit.at, part.starts):
                yield from self._along(digit.at, other, part)
            for other in self._with("one step", rest, part.moved(digit, -1).starts):
                yield from self._along(digit.at, other, part)
        # Read as one step of a digit that only the other has.
        for other in self._with("begins after", digits, part.starts):
            for places in self._extra(other, digits):
                yield from self._along(places, part, other)
        for other in self._with("ends before", digits, part.starts):
            for places in self._extra(other, digits):
                yield from self._along(places, other, part)
        yield from self._side_by_side(part)

    def _extra(self, part: Geometry, rest: _Digits) -> list[_Places]:
        """Where the one digit steps that a part has besides the rest."""
        return [digit.at for digit in self.parts[part] - rest]

    def _along(self, places: _Places, one: Geometry, other: Geometry) -> Iterator[_Join]:
        """One part and what follows on it, as one, if it does along such a digit.

        Layers 0 to 3 and layers 4 to 9 of a stack are layers 0 to 9, and layer 10 is one step more.
        """
        if one == other:
            return
        ours, theirs = _read(one, places), _read(other, places)
        # Of two single steps nothing says how far apart they are: that is `_side_by_side`.
        if ours is None and theirs is None:
            return
        rest, size = ours or (self.parts[one], ONE)
        their_rest, more = theirs or (self.parts[other], ONE)
        if rest == their_rest and one.moved(Digit(size, places), size).starts == other.starts:
            longer = Digit(size + more, places)
            made = tidy(Geometry(one.starts, (*rest, longer)))
            yield _Join(0, one, other, made)

    def _side_by_side(self, part: Geometry) -> Iterator[_Join]:
        """A part and another of the same form, as two steps of a digit that none of both has yet."""
        digits = self.parts[part]
        near: dict[Geometry, None] = {}
        for side in (0, 1):
            for start in _near(part, side):
                near.update(dict.fromkeys(self._with("side", digits, side, start)))
        for other in near:
            for one, two in ((part, other), (other, part)):
                before = _moves(one.starts[0], two.starts[0])
                after = _moves(one.starts[1], two.starts[1])
                # A digit steps along one axis of a side.
                if len(before) > 1 or len(after) > 1 or not (before or after):
                    continue
                step = Digit(
                    Size.of(2), (before[0] if before else None, after[0] if after else None)
                )
                looseness = 1 + _room(one, 0, step) + _room(one, 1, step)
                if looseness <= _LOOSEST:
                    made = tidy(Geometry(one.starts, (*one.digits, step)))
                    yield _Join(looseness, one, two, made)


def _read(part: Geometry, places: _Places) -> tuple[_Digits, Size] | None:
    """The rest of a part, and how many steps it has along a digit.

    None where it has no such digit.
    """
    for digit in part.digits:
        if digit.at == places:
            return frozenset(part.digits) - {digit}, digit.size
    return None


def _near(part: Geometry, side: int) -> Iterator[tuple[Size, ...]]:
    """Where on a side another part may begin, so that there is no room between both."""
    start = part.starts[side]
    yield start
    for axis in range(len(start)):
        steps = {ONE}
        for digit in part.digits:
            place = digit.at[side]
            if place is not None and place[0] == axis:
                stride = _positive(place[1])
                # Behind the last step of the digit, or halfway between two: interleaved halves.
                steps.add(digit.size * stride)
                half = stride.over(Size.of(2))
                if half is not None:
                    steps.add(half)
        for step in steps:
            for there in (start[axis] + step, start[axis] - step):
                yield (*start[:axis], there, *start[axis + 1 :])


def _moves(start: Sequence[Size], other: Sequence[Size]) -> list[Place]:
    """On which axes two starts differ, and by how much."""
    moves: list[Place] = []
    for axis, (here, there) in enumerate(zip(start, other, strict=True)):
        if here != there:
            moves.append((axis, there - here))
    return moves


def _room(geometry: Geometry, side: int, along: Digit) -> int:
    """1 if there is room on a side between a block and the same block a step further along a digit.

    Otherwise 0.
    """
    place = along.at[side]
    if place is None:
        return 0
    axis, stride = place[0], _positive(place[1])
    inner: list[Size] = []  # what each digit inside of a step reaches
    for digit in geometry.digits:
        other = digit.at[side]
        if other is None or other[0] != axis:
            continue
        other_stride = _positive(other[1])
        # The step fills the gap that an outer digit leaves.
        if other_stride == stride * 2:
            return 0
        if other_stride != stride and stride.over(other_stride):
            inner.append(digit.size * other_stride)
    # No room is left if one of them ends where the next step begins.
    is_tight = stride in inner if inner else stride == ONE
    return 0 if is_tight else 1


def _positive(stride: Size) -> Size:
    """How far a step goes, in whichever direction."""
    return stride if stride.nonnegative else -stride


# --- What lies in another ---


def _absorbed(parts: list[Geometry]) -> list[Geometry]:
    """Without what lies in another: a middle that ties leaves several that say the same."""
    kept = list(parts)
    for part in parts:
        if any(part is not other and _is_within(part, other) for other in kept):
            kept.remove(part)
    return kept


def _is_within(one: Geometry, other: Geometry) -> bool:
    """Whether all pairs of elements of one geometry are pairs of another."""
    if one.digits == other.digits:
        return one.starts == other.starts
    if _repeats(one) != _repeats(other):
        return False
    ours, theirs = _unrepeated(one), _unrepeated(other)
    try:
        paths = through(~ours, theirs)
    except UndecidedError:
        return False
    # All of it lies in the other, and each element there is paired with the same one.
    volume = ZERO
    for path in paths:
        if not _is_identity(path.geometry):
            return False
        volume += path.geometry.volume
    return volume == ours.volume


def _repeats(geometry: Geometry) -> set[Digit]:
    """The digits that stay on one side."""
    return {digit for digit in geometry.digits if None in digit.at}


def _unrepeated(geometry: Geometry) -> Geometry:
    """The first of all copies."""
    digits = tuple([digit for digit in geometry.digits if None not in digit.at])
    return Geometry(geometry.starts, digits)


def _is_identity(geometry: Geometry) -> bool:
    """Whether each element of one side is the same one of the other."""
    source, view = geometry.starts
    return source == view and all(digit.at[0] == digit.at[1] for digit in geometry.digits)
