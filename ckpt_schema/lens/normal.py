"""The fewest cells that say the same: what a middle has cut is put together again.

This is for print, and for leaves that only move: of these one cell is all. No value depends on it.
Merging whichever pair comes first does not always end in one form, so the tightest comes first.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Hashable, Iterable, Iterator, Sequence

from ckpt_schema.lens.cells import (
    Cell,
    Digit,
    Geometry,
    Place,
    taken_apart,
    through,
    tidy,
)
from ckpt_schema.sizes import ONE, ZERO, Size, UndecidedError

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
    found: list[Cell] = []
    # What is only compared comes last: it may lie in what is written.
    for group in sorted(groups.values(), key=lambda group: all(group[0].compares)):
        first = group[0]
        for geometry in merged(tuple(cell.geometry for cell in group), first.is_constant):
            cell = dataclasses.replace(first, geometry=geometry)
            if not all(first.compares) or not any(_says(other, cell) for other in found):
                found.append(cell)
    return tuple(sorted(found, key=str))


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
    parts = list(dict.fromkeys(tidy(part) for each in whole for part in taken_apart(each)))
    if not is_constant:
        parts = _absorbed(parts)
    parts = _put_together(parts)
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


def _put_together(parts: list[Geometry]) -> list[Geometry]:
    """Joins two parts at a time, the tightest first."""
    ways = [
        way for one in parts for other in parts if one is not other for way in _joins(one, other)
    ]
    while ways:
        best = min(ways, key=lambda way: way.rank)
        gone = (best.first, best.second)
        parts = [part for part in parts if part not in gone]
        ways = [way for way in ways if way.first not in gone and way.second not in gone]
        for part in parts:
            ways += [*_joins(part, best.made), *_joins(best.made, part)]
        parts.append(best.made)
    return parts


def _joins(one: Geometry, other: Geometry) -> Iterator[_Join]:
    """Every way in which another geometry is what follows on one, along one digit of both sides."""
    moves = [_moves(*starts) for starts in zip(one.starts, other.starts, strict=True)]
    if any(len(move) > 1 for move in moves) or not any(moves):
        return
    ours = [digit for digit in one.digits if digit not in other.digits]
    theirs = [digit for digit in other.digits if digit not in one.digits]
    if len(ours) > 1 or len(theirs) > 1:
        return
    for digit, more in _along(one, moves, ours, theirs):
        steps = digit.size if digit in one.digits else ONE
        if [_stride(place, steps) for place in digit.at] != moves:
            continue
        is_new = digit not in one.digits and digit not in other.digits
        looseness = 1 + _room(one, 0, digit) + _room(one, 1, digit) if is_new else 0
        if looseness > _LOOSEST:
            continue  # or else any two blocks of one shape would be one, however far apart
        rest = [each for each in one.digits if each != digit]
        longer = Digit(steps + more, digit.at)
        yield _Join(looseness, one, other, tidy(Geometry(one.starts, (*rest, longer))))


def _moves(start: Sequence[Size], other: Sequence[Size]) -> list[Place]:
    """On which axes two starts differ, and by how much."""
    both = enumerate(zip(start, other, strict=True))
    return [(axis, there - here) for axis, (here, there) in both if here != there]


def _stride(place: Place | None, steps: Size) -> list[Place]:
    return [] if place is None else [(place[0], place[1] * steps)]


def _along(
    one: Geometry, moves: Sequence[Sequence[Place]], ours: Sequence[Digit], theirs: Sequence[Digit]
) -> Iterator[tuple[Digit, Size]]:
    """The digits along which one geometry may go on as another, and by how many steps more."""
    if ours and theirs:
        if ours[0].at == theirs[0].at:
            yield ours[0], theirs[0].size
    elif ours:
        yield ours[0], ONE
    elif theirs:
        yield theirs[0], theirs[0].size
    else:
        yield from ((digit, digit.size) for digit in one.digits)
        source, view = (move[0] if move else None for move in moves)
        yield Digit(ONE, (source, view)), ONE  # a digit of two steps, which none of both has yet


def _room(geometry: Geometry, side: int, along: Digit) -> int:
    """1 if there is room on a side between a block and the same block a step further along a digit; or else 0."""
    place = along.at[side]
    if place is None:
        return 0
    axis, stride = place[0], _positive(place[1])
    own: list[tuple[Size, Size]] = []
    for digit in geometry.digits:
        at = digit.at[side]
        if at is not None and at[0] == axis:
            own.append((digit.size, _positive(at[1])))
    if any(other == stride * 2 for _, other in own):
        return 0  # it fills the gap that an outer digit leaves
    inner = [size * other for size, other in own if other != stride and stride.over(other)]
    is_tight = stride in inner if inner else stride == ONE
    return 0 if is_tight else 1


def _positive(stride: Size) -> Size:
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
    if _repeats(one) != _repeats(other):
        return False
    ours, theirs = _unrepeated(one), _unrepeated(other)
    try:
        both = [path.geometry for path in through(~ours, theirs)]
    except UndecidedError:
        return False
    volume = sum((found.volume for found in both), ZERO)
    return volume == ours.volume and all(_is_identity(found) for found in both)


def _repeats(geometry: Geometry) -> set[Digit]:
    return {digit for digit in geometry.digits if None in digit.at}


def _unrepeated(geometry: Geometry) -> Geometry:
    digits = tuple(digit for digit in geometry.digits if None not in digit.at)
    return Geometry(geometry.starts, digits)


def _is_identity(geometry: Geometry) -> bool:
    source, view = geometry.starts
    return source == view and all(digit.at[0] == digit.at[1] for digit in geometry.digits)
