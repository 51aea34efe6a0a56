"""Cells: which elements of one stored row are which elements of another, and what happens to them.

A cell maps one strided block of a source row onto one of a view row. Axes of the array and index
symbols of the key are axes alike. Derivation, composition and inverse are one algorithm: where two
cells share a row in the middle, `through` holds their blocks of it against each other.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence

from ckpt_schema._layouts.sizes import ONE, ZERO, Size, UndecidedError
from ckpt_schema._lens.codecs import Codec, inverted, joined
from ckpt_schema._lens.digits import Common, Run, coarse_first, meet

__all__ = [
    "Cell",
    "Constant",
    "ContradictionError",
    "Digit",
    "Geometry",
    "Path",
    "Place",
    "composed",
    "identity",
    "taken_apart",
    "through",
    "tidy",
]

Place = tuple[int, Size]
"""Of a digit: the axis of a row, those of its key first, and how far a step goes there."""

Starts = tuple[tuple[Size, ...], tuple[Size, ...]]


class ContradictionError(Exception):
    """What one lens fills in is not what the next one cuts off.

    Attributes:
        first: The cell that fills.
        second: The cell that cuts off.
    """

    def __init__(self, first: Cell, second: Cell) -> None:
        """Keeps both."""
        super().__init__(f"{first} | {second}")
        self.first, self.second = first, second


@dataclasses.dataclass(frozen=True, slots=True)
class Digit:
    """A number of steps, taken on both sides at once.

    Attributes:
        size: How many steps.
        at: Where a step goes on each side; it may go back. None where it stays: each step has the
            same element there, a repeat.
    """

    size: Size
    at: tuple[Place | None, Place | None]

    def __str__(self) -> str:
        """The size, and for each side the axis and the stride."""
        places = ["-" if place is None else f"{place[0]}:{place[1]}" for place in self.at]
        return f"{self.size}({' '.join(places)})"


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Two strided blocks, one of each side, that have the same elements.

    Attributes:
        starts: The first element on each side, one number for each axis; none for a constant.
        digits: How both go on from there.
    """

    starts: Starts
    digits: tuple[Digit, ...]

    def __invert__(self) -> Geometry:
        """The same, the sides exchanged."""
        digits: list[Digit] = []
        for digit in self.digits:
            digits.append(Digit(digit.size, (digit.at[1], digit.at[0])))
        return Geometry((self.starts[1], self.starts[0]), tuple(digits))

    @property
    def volume(self) -> Size:
        """How many pairs of elements it has."""
        volume = ONE
        for digit in self.digits:
            volume *= digit.size
        return volume

    @property
    def names(self) -> frozenset[str]:
        """Every dim in it."""
        return _names(self)

    @functools.cached_property
    def is_identity(self) -> bool:
        """Whether each element stands at the same place on both sides."""
        starts = any(self.starts[0]) or any(self.starts[1])
        return not starts and all(digit.at[0] == digit.at[1] for digit in self.digits)

    def where(self, known: Mapping[str, Size]) -> Geometry:
        """The same with what is known put in for names."""

        def place(at: Place | None) -> Place | None:
            return at and (at[0], at[1].where(known))

        source = tuple([size.where(known) for size in self.starts[0]])
        view = tuple([size.where(known) for size in self.starts[1]])
        digits: list[Digit] = []
        for digit in self.digits:
            digits.append(Digit(digit.size.where(known), (place(digit.at[0]), place(digit.at[1]))))
        return Geometry((source, view), tuple(digits))

    def box(self, side: int, axes: int | None = None) -> Geometry:
        """The elements that it has on one side, from a constant on, whatever they are on the other.

        Args:
            side: 0 for the source, 1 for the view.
            axes: How many axes of that side are looked at; all unless given.
        """
        starts = self.starts[side][:axes]
        digits: list[Digit] = []
        for digit in self.digits:
            place = digit.at[side]
            # A repeat stays on one element of this side: in the box that is there once.
            if place is not None and place[0] < len(starts):
                digits.append(Digit(digit.size, (None, place)))
        return tidy(Geometry(((), starts), tuple(digits)))

    def moved(self, digit: Digit, steps: Size | int) -> Geometry:
        """The same, which starts so many steps of a digit later on both sides."""
        source = _stepped(self.starts[0], digit.at[0], steps)
        view = _stepped(self.starts[1], digit.at[1], steps)
        return Geometry((source, view), self.digits)

    def __str__(self) -> str:
        """Starts and digits."""
        source, view = (" ".join(map(str, start)) for start in self.starts)
        return " ".join([f"[{source}] ~ [{view}]", *map(str, self.digits)])


# Rows of one kind have equal geometries, so that most of what is asked of one was asked before.
@functools.lru_cache(1 << 14)
def _names(geometry: Geometry) -> frozenset[str]:
    """Every dim in a geometry."""
    sizes = [*geometry.starts[0], *geometry.starts[1]]
    for digit in geometry.digits:
        sizes.append(digit.size)
        for place in digit.at:
            if place is not None:
                sizes.append(place[1])
    return frozenset[str]().union(*[size.names for size in sizes])


def _stepped(start: Sequence[Size], place: Place | None, steps: Size | int) -> tuple[Size, ...]:
    """A start that is moved by some steps of a digit."""
    if place is None:
        return tuple(start)
    axis, stride = place
    return (*start[:axis], start[axis] + stride * steps, *start[axis + 1 :])


@dataclasses.dataclass(frozen=True, slots=True)
class Constant:
    """What stands on the other side of elements that have no partner there.

    Attributes:
        value: What it is, as bits: equal constants are one.
        is_fill: Whether it is padding, which is verified when it is cut off; or else a default,
            which anything may take the place of.
    """

    value: Hashable
    is_fill: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    """Elements of a source row that are elements of a view row.

    Attributes:
        source: The row, or a constant.
        view: The row, or a constant.
        geometry: Which elements.
        codec: What happens to each from the source to the view; from the constant to the row where
            one of both is a constant.
        compares: For each side, whether the elements there have another cell that writes them: this
            one only compares.
    """

    source: Hashable
    view: Hashable
    geometry: Geometry
    codec: Codec = ()
    compares: tuple[bool, bool] = (False, False)

    @property
    def is_constant(self) -> bool:
        """Whether one side is a constant."""
        return isinstance(self.source, Constant) or isinstance(self.view, Constant)

    @property
    def alone(self) -> tuple[int, Hashable, Constant]:
        """Of a cell whose other side is a constant: the side of the row, the row, and the constant."""
        if isinstance(self.view, Constant):
            return 0, self.source, self.view
        assert isinstance(self.source, Constant)
        return 1, self.view, self.source

    def __invert__(self) -> Cell:
        """The same from the view to the source."""
        codec = self.codec if self.is_constant else inverted(self.codec)
        compares = self.compares[1], self.compares[0]
        return Cell(self.view, self.source, ~self.geometry, codec, compares)

    def where(self, known: Mapping[str, Size]) -> Cell:
        """The same with what is known put in for names."""
        return dataclasses.replace(self, geometry=self.geometry.where(known))

    def __str__(self) -> str:
        """Both rows, the elements, and the codec."""
        words = [f"{self.source} ~ {self.view}", str(self.geometry), *map(str, self.codec)]
        return ", ".join(words)


def identity(row: Hashable, dims: Sequence[Size]) -> Cell:
    """A row as it is."""
    start = (ZERO,) * len(dims)
    digits: list[Digit] = []
    for axis, size in enumerate(dims):
        digits.append(Digit(size, ((axis, ONE), (axis, ONE))))
    return Cell(row, row, tidy(Geometry((start, start), tuple(digits))))


# --- One spelling of a geometry ---


@functools.lru_cache(1 << 14)
def tidy(geometry: Geometry) -> Geometry:
    """One spelling: digits step forward, none has one step, and those that go on alike are one.

    Example:
        >>> heads, dim = Size.of("heads"), Size.of("dim")
        >>> outer, inner = Digit(heads, ((0, dim), (0, dim))), Digit(dim, ((0, ONE), (0, ONE)))
        >>> print(tidy(Geometry(((ZERO,), (ZERO,)), (outer, inner))))
        [0] ~ [0] dim*heads(0:1 0:1)
    """
    # The source comes last: a digit that can step forward on one side alone does so there.
    geometry = _forward(_forward(geometry, 1), 0)
    digits = [digit for digit in geometry.digits if digit.size != ONE and digit.at != (None, None)]
    # What a pair makes may be the outer or the inner one of another pair.
    pair = _first_pair(digits)
    while pair is not None:
        outer, inner = pair
        digits.remove(outer)
        digits.remove(inner)
        digits.append(Digit(outer.size * inner.size, inner.at))
        pair = _first_pair(digits)
    # The order of digits means nothing: sorted, geometries that say the same are equal.
    return Geometry(geometry.starts, tuple(sorted(digits, key=str)))


def _first_pair(digits: Sequence[Digit]) -> tuple[Digit, Digit] | None:
    """An outer and an inner digit that are one: a step of the outer is all steps of the inner."""
    for outer, inner in itertools.permutations(digits, 2):
        continues = _continues(outer.at[0], inner.at[0], inner.size)
        if continues and _continues(outer.at[1], inner.at[1], inner.size):
            return outer, inner
    return None


def _continues(outer: Place | None, inner: Place | None, size: Size) -> bool:
    """Whether on a side a step of the outer digit leads to where the inner one would go next."""
    if outer is None or inner is None:
        return outer is inner
    return outer[0] == inner[0] and outer[1] == inner[1] * size


def _forward(geometry: Geometry, side: int) -> Geometry:
    """The same elements with digits that step forward on one side."""
    forward, digits = geometry, list[Digit]()
    for digit in geometry.digits:
        place = digit.at[side]
        # Counted from its last step, and back: the same pairs of elements.
        if place is not None and not place[1].nonnegative:
            forward = forward.moved(digit, digit.size - 1)
            digit = Digit(digit.size, (_turned(digit.at[0]), _turned(digit.at[1])))
        digits.append(digit)
    return Geometry(forward.starts, tuple(digits))


def _turned(place: Place | None) -> Place | None:
    """Where a digit goes that steps the other way."""
    return place and (place[0], -place[1])


def taken_apart(geometry: Geometry, most: int = 6) -> list[Geometry]:
    """A geometry whose digits of a known size, up to ``most``, are taken step by step.

    Of ``3(0:dim 0:1) dim(0:1 0:3)`` there are three, each ``dim(0:1 0:3)`` with a start of its own.
    """
    short: list[Digit] = []
    ranges: list[range] = []
    rest: list[Digit] = []
    for digit in geometry.digits:
        count = digit.size.number
        if count is not None and count <= most:
            short.append(digit)
            ranges.append(range(count))
        else:
            rest.append(digit)
    boxes: list[Geometry] = []
    for steps in itertools.product(*ranges):
        box = Geometry(geometry.starts, tuple(rest))
        for digit, step in zip(short, steps, strict=True):
            box = box.moved(digit, step)
        boxes.append(box)
    return boxes


# --- Composition ---


@dataclasses.dataclass(frozen=True, slots=True)
class Path:
    """Elements that two geometries lead to from end to end.

    Attributes:
        geometry: Which elements.
        is_copy: For each outer side, whether they are repeats there of those of another path.
    """

    geometry: Geometry
    is_copy: tuple[bool, bool]


@functools.lru_cache(1 << 14)
def through(first: Geometry, second: Geometry) -> tuple[Path, ...]:
    """Which elements are which from the source of one geometry to the view of another, by the row between.

    Raises:
        UndecidedError: It depends on the sizes in a way that no geometries tell.
    """
    try:
        return tuple(_through(first, second))
    except UndecidedError:
        # As a whole a digit of three steps may cut a block for some sizes; step by step it may not.
        ours, theirs = taken_apart(first), taken_apart(second)
        if len(ours) == len(theirs) == 1:
            raise
        paths: list[Path] = []
        for one, other in itertools.product(ours, theirs):
            paths += _through(one, other)
        return tuple(paths)


def _through(first: Geometry, second: Geometry) -> Iterator[Path]:
    """The same as both geometries stand."""
    # `meet` takes blocks that step forward.
    both = _forward(first, 1), _forward(second, 0)
    common: list[list[Common]] = []
    for axis in range(len(first.starts[1])):
        offset = both[1].starts[0][axis] - both[0].starts[1][axis]
        common.append(meet(offset, _runs(both, 0, axis), _runs(both, 1, axis)))
        # What has nothing in common on one axis has nothing in common.
        if not common[-1]:
            return
    # Axes do not depend on one another: each common part of one goes with each of another.
    for chosen in itertools.product(*common):
        yield _from_end_to_end(both, chosen)


def _runs(both: tuple[Geometry, Geometry], which: int, axis: int) -> list[Run]:
    """The digits that one of two geometries has on an axis of the row between."""
    runs: list[Run] = []
    for number, digit in enumerate(both[which].digits):
        place = digit.at[1 - which]
        if place is not None and place[0] == axis:
            runs.append(Run(digit.size, place[1], which, number))
    return coarse_first(runs)


def _from_end_to_end(both: tuple[Geometry, Geometry], common: Sequence[Common]) -> Path:
    """What is common on each axis of the row between, as it stands on the outer sides."""
    starts, is_copy = [both[0].starts[0], both[1].starts[1]], [False, False]
    digits: list[Digit] = []
    for part in common:
        for shift in part.shifts:
            place = both[shift.side].digits[shift.digit].at[shift.side]
            starts[shift.side] = _stepped(starts[shift.side], place, shift.steps)
            # A digit that goes nowhere on its outer side makes copies there of what it steps through.
            if place is None and shift.steps:
                is_copy[shift.side] = _is_later(shift.steps)
        for shared in part.digits:
            source, view = _outer(both, 0, shared.ends[0]), _outer(both, 1, shared.ends[1])
            digits.append(Digit(shared.size, (source, view)))
    # Steps that stay on the row between are repeats of the side that they go along.
    for digit in both[0].digits:
        if digit.at[1] is None:
            digits.append(Digit(digit.size, (digit.at[0], None)))
    for digit in both[1].digits:
        if digit.at[0] is None:
            digits.append(Digit(digit.size, (None, digit.at[1])))
    geometry = tidy(Geometry((starts[0], starts[1]), tuple(digits)))
    return Path(geometry, (is_copy[0], is_copy[1]))


def _is_later(steps: Size) -> bool:
    """Whether so many steps along a repeat lead to another copy of its elements than the first.

    Raises:
        UndecidedError: It may be the first for some sizes.
    """
    if not (steps - 1).nonnegative:
        why = f"whether {steps} is 0, so that the first of several copies is meant, depends on the sizes"
        raise UndecidedError(why, steps, ZERO)
    return True


def _outer(
    both: tuple[Geometry, Geometry], which: int, end: tuple[int, Size] | None
) -> Place | None:
    """Where so many steps of a digit go on the outer side."""
    if end is None:
        return None
    number, steps = end
    place = both[which].digits[number].at[which]
    return place and (place[0], place[1] * steps)


def composed(first: Iterable[Cell], second: Iterable[Cell]) -> list[Cell]:
    """The cells from end to end; where the middle keeps elements is forgotten.

    What only one of both has in the middle becomes what its constant makes of it.

    Raises:
        UndecidedError: Which elements meet depends on the sizes.
        ContradictionError: What the first fills in is not what the second cuts off.
    """
    onward: dict[Hashable, list[Cell]] = {}
    cells: list[Cell] = []
    for cell in second:
        if isinstance(cell.source, Constant):
            cells.append(cell)
        else:
            onward.setdefault(cell.source, []).append(cell)
    for cell in first:
        if isinstance(cell.view, Constant):
            cells.append(cell)
            continue
        for other in onward.get(cell.view, ()):
            cells += _joined(cell, other)
    return cells


def _joined(first: Cell, second: Cell) -> Iterator[Cell]:
    """What two cells make of each other that share a row in the middle."""
    made, cut_off = isinstance(first.source, Constant), isinstance(second.view, Constant)
    # The middle alone has these elements: no row of either end does.
    if made and cut_off:
        _verify_constants(first, second)
        return
    # A constant's codec runs from it to the row.
    codec = (
        joined(second.codec, inverted(first.codec))
        if cut_off
        else joined(first.codec, second.codec)
    )
    for path in through(first.geometry, second.geometry):
        flags = zip(first.compares, second.compares, path.is_copy, strict=True)
        source, view = map(any, flags)
        # A default is for what has no partner. What is only compared has one.
        if (cut_off and source and not _is_fill(second.view)) or (
            made and view and not _is_fill(first.source)
        ):
            continue
        yield Cell(first.source, second.view, path.geometry, codec, (source, view))


def _verify_constants(first: Cell, second: Cell) -> None:
    """Raises where both are fills, and not one."""
    if not _is_fill(first.source) or not _is_fill(second.view):
        return
    is_one = (first.source, first.codec) == (second.view, second.codec)
    if not is_one and through(first.geometry, second.geometry):
        raise ContradictionError(first, second)


def _is_fill(end: Hashable) -> bool:
    """Whether an end of a cell is padding."""
    return isinstance(end, Constant) and end.is_fill
