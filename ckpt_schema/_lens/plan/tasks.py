"""Cells at given sizes: which leaves of a tree are made of which, and by what blocks."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts import leaves
from ckpt_schema._layouts.table import Row, Slot
from ckpt_schema._lens import codecs
from ckpt_schema._lens.arrays.blocks import (
    Block,
    Check,
    Copy,
    Filling,
    Kind,
    Spot,
    Step,
    Task,
    all_of,
    bits_of,
)
from ckpt_schema._lens.cells import Cell, Constant, Digit, Geometry
from ckpt_schema._lens.codecs import Codec
from ckpt_schema._lens.derive.joins import Join
from ckpt_schema._lens.plan.moved_leaves import ends, only_moves
from ckpt_schema.errors import ConformanceError, Mismatch

__all__ = [
    "Application",
    "Kept",
    "applications",
    "as_it_is",
    "needed",
]

Sizes = Mapping[str, int]
Rows = tuple[Sequence[Row], Sequence[Row]]


@dataclasses.dataclass(frozen=True, slots=True)
class Kept:
    """Elements of a result that have no partner: they stay as the tree has them that the result goes onto.

    Attributes:
        result: The number of the leaf among the results.
        block: Which elements; nothing is read.
        default: What they hold where there is no such tree.
    """

    result: int
    block: Block
    default: leaves.Default | None


@dataclasses.dataclass(frozen=True, slots=True)
class Application:
    """Leaves of a tree that are made together of leaves of another.

    Attributes:
        inputs: The slots of what is read.
        results: Those of what is made.
        task: What is done, but for what is kept.
        kept: What has no partner.
        moves: Whether the one leaf that is made is the one that is read.
        values: What each filling of the task fills in.
    """

    inputs: tuple[Slot, ...]
    results: tuple[Slot, ...]
    task: Task
    kept: tuple[Kept, ...] = ()
    moves: bool = False
    values: tuple[leaves.Fill, ...] = ()

    def onto(self, there: Callable[[Slot], bool]) -> tuple[Task, list[Slot], list[Kept]]:
        """The task that keeps what has no partner.

        Args:
            there: Whether the tree that the results go onto has a leaf with values in a slot.

        Returns:
            The task; the slots of that tree's leaves that it reads, after its own inputs; and
            what is neither there nor filled with a number by default.
        """
        copies = list(self.task.copies)
        fillings = list(self.task.fillings)
        inputs = list(self.task.inputs)
        read: list[Slot] = []
        open_: list[Kept] = []
        for kept in self.kept:
            slot, kind = self.results[kept.result], self.task.results[kept.result]
            if there(slot):
                # Both sides of the copy are the same elements, for onto's leaf is of the same layout.
                start = kept.block.starts[1]
                steps: list[Step] = []
                for step in kept.block.steps:
                    steps.append(Step(step.size, (step.at[1], step.at[1])))
                block = Block((start, start), tuple(steps))
                copies.append(Copy(len(inputs), kept.result, block))
                inputs.append(kind)
                read.append(slot)
            elif isinstance(kept.default, leaves.Fill):
                bits = bits_of(kept.default.value, kind.dtype)
                fillings.append(Filling(kept.result, kept.block, bits))
            else:
                open_.append(kept)
        made = dataclasses.replace(
            self.task, inputs=tuple(inputs), copies=tuple(copies), fillings=tuple(fillings)
        )
        return made, read, open_


def needed(join: Join, rows: Rows) -> frozenset[str]:
    """The dims whose sizes it takes to tell which leaves are made of which, and how."""
    if not only_moves(join, rows):
        return join.names
    geometry = join.cells[0].geometry
    source, view = ends(join.cells[0], rows)
    symbols = source.symbols, view.symbols
    # The shapes need not be known: only how many leaves there are, and which is which.
    names: set[str] = set()
    for start, count in zip(geometry.starts, symbols, strict=True):
        for size in start[:count]:
            names |= size.names
    for number in _along_keys(geometry, symbols):
        digit = geometry.digits[number]
        names |= digit.size.names
        for place in digit.at:
            if place is not None:
                names |= place[1].names
    return frozenset(names)


def applications(join: Join, rows: Rows, sizes: Sizes) -> Iterator[Application]:
    """The leaves that a join makes, those together that have something in common.

    Args:
        join: The join; every dim that it needs has a size.
        rows: The rows of the source, and of the view.
        sizes: The size of each dim, in elements.
    """
    if only_moves(join, rows):
        yield from _moves(join, rows, sizes)
        return
    gathering = _BlocksOfLeaves(rows, sizes)
    for cell in join.cells:
        # Nothing here writes: a leaf of its own is made, padding and all.
        if join.compares[1]:
            cell = dataclasses.replace(cell, compares=(cell.compares[0], False))
        gathering.add(cell)
    yield from gathering.applications()


def _moves(join: Join, rows: Rows, sizes: Sizes) -> Iterator[Application]:
    """Leaves that go from side to side as they are."""
    (cell,) = join.cells
    source, view = ends(cell, rows)
    nothing = Task((), (), ())
    symbols = source.symbols, view.symbols
    for left, right, _ in _instances(cell.geometry, symbols, sizes):
        before, after = (source.number, left), (view.number, right)
        yield Application((before,), (after,), nothing, moves=True)


_Turns = tuple[int, ...]


def _instances(
    geometry: Geometry, symbols: tuple[int, int], sizes: Sizes
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], _Turns]]:
    """The leaves of both sides that a cell joins, with the step that each takes of digits along their keys.

    Blocks of two layers, ``blocks/{i}/layers/{j}``, against one list ``layers/{i}``: at the steps (1, 0)
    the leaf (1, 0) here is (2,) there.
    """
    first = [size.at(sizes) for size in geometry.starts[0][: symbols[0]]]
    second = [size.at(sizes) for size in geometry.starts[1][: symbols[1]]]
    ranges: list[range] = []
    strides: list[tuple[Spot | None, Spot | None]] = []
    for number in _along_keys(geometry, symbols):
        digit = geometry.digits[number]
        ranges.append(range(digit.size.at(sizes)))
        left, right = (_along_key(digit, side, symbols[side], sizes) for side in (0, 1))
        strides.append((left, right))
    for steps in itertools.product(*ranges):
        indices = [*first], [*second]
        for step, spots in zip(steps, strides, strict=True):
            for index, spot in zip(indices, spots, strict=True):
                if spot is not None:
                    index[spot[0]] += spot[1] * step
        yield tuple(indices[0]), tuple(indices[1]), steps


def _along_key(digit: Digit, side: int, symbols: int, sizes: Sizes) -> Spot | None:
    """Which index symbol a digit steps along on a side, and how far; None where it steps in a leaf."""
    place = digit.at[side]
    if place is None or place[0] >= symbols:
        return None
    return place[0], place[1].at(sizes)


def _along_keys(geometry: Geometry, symbols: tuple[int, int]) -> list[int]:
    """The digits that go from leaf to leaf on a side, by number."""
    numbers: list[int] = []
    for number, digit in enumerate(geometry.digits):
        both = zip(digit.at, symbols, strict=True)
        if any(place is not None and place[0] < count for place, count in both):
            numbers.append(number)
    return numbers


@dataclasses.dataclass(frozen=True, slots=True)
class _Copied:
    """A block of one leaf that is written to another."""

    source: Slot
    view: Slot
    block: Block
    turns: _Turns
    compares: bool


@dataclasses.dataclass(frozen=True, slots=True)
class _Alone:
    """A block of a leaf that no leaf of the other side has."""

    side: int
    slot: Slot
    block: Block
    constant: Constant


class _BlocksOfLeaves:
    """What cells make of leaves, while it is gathered cell by cell, and then put together to applications."""

    def __init__(self, rows: Rows, sizes: Sizes) -> None:
        """Knows of no block yet."""
        self.rows, self.sizes = rows, sizes
        self.copies: list[_Copied] = []
        self.alone: list[_Alone] = []

    def add(self, cell: Cell) -> None:
        """Adds what a cell makes."""
        if cell.is_constant:
            self.alone += self._constants(cell)
        else:
            self.copies += self._copies(cell)

    def _copies(self, cell: Cell) -> Iterator[_Copied]:
        source, view = ends(cell, self.rows)
        symbols = source.symbols, view.symbols
        # All instances of a cell share its blocks: a hundred layers are one block and a hundred turns.
        blocks = _blocks(cell, symbols, self.sizes)
        repeats = _repeats(cell.geometry, symbols)
        # Which of the steps of an instance are turns of the block, and which read a copy once more.
        turning: list[int] = []
        again: list[int] = []
        for place, number in enumerate(_along_keys(cell.geometry, symbols)):
            if _turns(cell, number, symbols):
                turning.append(place)
            if number in repeats:
                again.append(place)
        for left, right, steps in _instances(cell.geometry, symbols, self.sizes):
            turns = tuple([steps[place] for place in turning])
            is_later = any(steps[place] for place in again)
            for number, block in enumerate(blocks):
                # Of elements that stand several times in what is read, the first are read.
                compares = cell.compares[1] or is_later or number > 0
                yield _Copied((source.number, left), (view.number, right), block, turns, compares)

    def _constants(self, cell: Cell) -> Iterator[_Alone]:
        side, number, constant = cell.alone
        assert isinstance(number, int)
        # What it is a copy of fills it.
        if side == 1 and cell.compares[1]:
            return
        # On the side of the constant there is no key.
        symbols = [0, 0]
        symbols[side] = len(self.rows[side][number].unrolled)
        both = symbols[0], symbols[1]
        (block,) = _blocks(cell, both, self.sizes)
        if block.is_empty:
            return
        for instance in _instances(cell.geometry, both, self.sizes):
            yield _Alone(side, (number, instance[side]), block, constant)

    def applications(self) -> Iterator[Application]:
        """What is made together; what is only compared with all of a leaf is made by itself."""
        together: list[_Copied] = []
        apart: list[_Copied] = []
        written: set[tuple[Slot, Slot]] = set()
        for copied in self.copies:
            if not copied.compares:
                written.add((copied.source, copied.view))
        for copied in self.copies:
            # A leaf that holds its own copies is looked at as one.
            is_own = (copied.source, copied.view) in written
            by_itself = copied.compares and not is_own and self._is_whole(copied)
            (apart if by_itself else together).append(copied)
        read = {copied.source for copied in together}
        compared = {copied.source for copied in apart} - read
        # The padding of what is only compared goes with that.
        padding: dict[Slot, list[_Alone]] = {}
        rest: list[_Alone] = []
        for alone in self.alone:
            if alone.side == 0 and alone.slot in compared:
                padding.setdefault(alone.slot, []).append(alone)
            else:
                rest.append(alone)
        yield from self._together(together, rest)
        # A copy becomes a leaf by itself, which a plan then holds against the one that is there.
        for copied in apart:
            own_padding = padding.pop(copied.source, [])
            yield self._application([dataclasses.replace(copied, compares=False)], own_padding)

    def _is_whole(self, copied: _Copied) -> bool:
        """Whether all of a leaf of the view is one block."""
        return copied.block.count == math.prod(self._kind(1, copied.view).stored)

    def _together(
        self, together: Sequence[_Copied], alone: Sequence[_Alone]
    ) -> Iterator[Application]:
        """What is made of blocks, those of one application that reach one leaf, by way of whatever others."""
        groups = _Groups()
        for copied in together:
            groups.join((0, copied.source), (1, copied.view))
        # What no copy reaches is a group of its own; its place is behind those of all copies.
        for block in alone:
            groups.join((block.side, block.slot), (block.side, block.slot))
        copies: dict[int, list[_Copied]] = {}
        for copied in together:
            copies.setdefault(groups.of((0, copied.source)), []).append(copied)
        rest: dict[int, list[_Alone]] = {}
        for block in alone:
            rest.setdefault(groups.of((block.side, block.slot)), []).append(block)
        for group in sorted(copies.keys() | rest.keys()):
            yield self._application(copies.get(group, []), rest.get(group, []))

    def _application(self, copies: list[_Copied], alone: list[_Alone]) -> Application:
        # Writers before what only compares; results in the order of the view's leaves.
        copies.sort(key=lambda copied: (copied.compares, copied.view, copied.source))
        slots: list[dict[Slot, int]] = [
            {},
            {},
        ]  # on each side the leaves, numbered as the task does
        for copied in copies:
            slots[0].setdefault(copied.source, len(slots[0]))
            slots[1].setdefault(copied.view, len(slots[1]))
        for each in alone:
            slots[each.side].setdefault(each.slot, len(slots[each.side]))
        made: list[Copy] = []
        for copied in copies:
            numbers = slots[0][copied.source], slots[1][copied.view]
            made.append(Copy(*numbers, copied.block, copied.turns, copied.compares))
        fillings: list[Filling] = []
        values: list[leaves.Fill] = []
        checks: list[Check] = []
        kept: list[Kept] = []
        for each in alone:
            number, value = slots[each.side][each.slot], each.constant.value
            # What has a default alone is nobody's padding: of what is read nothing is asked.
            if not each.constant.is_fill:
                if each.side == 1:
                    kept.append(Kept(number, each.block, _default(value)))
                continue
            assert isinstance(value, leaves.Fill)
            bits = bits_of(value.value, self.rows[each.side][each.slot[0]].leaf.dtype)
            if each.side == 1:
                fillings.append(Filling(number, each.block, bits))
                values.append(value)
            else:
                checks.append(Check(number, each.block, bits, value.value))
        inputs, results = tuple(slots[0]), tuple(slots[1])
        task = Task(
            tuple([self._kind(0, slot) for slot in inputs]),
            tuple([self._kind(1, slot) for slot in results]),
            tuple(made),
            tuple(fillings),
            tuple(checks),
        )
        is_move = not kept and task.is_move
        return Application(inputs, results, task, tuple(kept), is_move, tuple(values))

    def _kind(self, side: int, slot: Slot) -> Kind:
        row = self.rows[side][slot[0]]
        shape = dims_.sizes_of(row.dims, self.sizes)
        assert shape is not None, f"unbound dims in {row}"
        return Kind(shape, row.leaf.dtype)


def as_it_is(row: Row, sizes: Sizes) -> Task:
    """What makes a leaf of one that only moves, where it becomes another object all the same."""
    kind = Kind(dims_.sizes_of(row.dims, sizes) or (), row.leaf.dtype)
    return Task((kind,), (kind,), (Copy(0, 0, all_of(kind.stored)),))


def _default(value: object) -> leaves.Default | None:
    assert value is None or isinstance(value, leaves.Default)
    return value


def _blocks(cell: Cell, symbols: tuple[int, int], sizes: Sizes) -> list[Block]:
    """A cell's block; several where what is read stands there several times, one for each."""
    geometry = cell.geometry
    read = [size.at(sizes) for size in geometry.starts[0][symbols[0] :]]
    written = tuple([size.at(sizes) for size in geometry.starts[1][symbols[1] :]])
    steps: list[Step] = []
    repeats: list[tuple[int, Spot]] = []
    for digit in geometry.digits:
        spots: list[Spot | None] = []
        along_key = False
        for place, count in zip(digit.at, symbols, strict=True):
            is_key = place is not None and place[0] < count
            along_key = along_key or is_key
            if place is None or is_key:
                spots.append(None)
            else:
                spots.append((place[0] - count, place[1].at(sizes)))
        size = digit.size.at(sizes)
        if along_key:
            # From leaf to leaf on both sides is no step of a block: each leaf has its own copy.
            if spots != [None, None]:
                steps.append(Step(size, (spots[0], spots[1]), is_turn=True))
        # Steps that read and write nothing new: the same elements stand there again.
        elif spots[0] is not None and spots[1] is None and not cell.is_constant:
            repeats.append((size, spots[0]))
        else:
            steps.append(Step(size, (spots[0], spots[1])))
    blocks: list[Block] = []
    codec = _bound(cell.codec, sizes)
    ranges = [range(size) for size, _ in repeats]
    for taken in itertools.product(*ranges):
        start = [*read]
        for step, (_, (axis, stride)) in zip(taken, repeats, strict=True):
            start[axis] += step * stride
        blocks.append(Block((tuple(start), written), tuple(steps), codec))
    return blocks


def _bound(codec: Codec, sizes: Sizes) -> Codec:
    """A codec whose factors are numbers: scale('head_dim**-0.5') is the 0.125 of 64."""
    try:
        return codecs.evaluated(codec, sizes)
    except ArithmeticError as error:
        said = ", ".join(map(str, codec))
        given = " ".join(f"{name}={sizes[name]}" for name in sorted(codecs.dims_of(codec)))
        found = f"{error}, where {given}"
        hint = "declare another factor, or other sizes"
        fault = Mismatch(said, "rule", "a finite number other than 0", found, hint)
        raise ConformanceError("values cannot be scaled", [fault]) from error


def _repeats(geometry: Geometry, symbols: tuple[int, int]) -> set[int]:
    """The digits from leaf to leaf of what is read, which stay in what is written."""
    numbers: set[int] = set()
    for number, digit in enumerate(geometry.digits):
        source, view = digit.at
        if view is None and source is not None and source[0] < symbols[0]:
            numbers.add(number)
    return numbers


def _turns(cell: Cell, number: int, symbols: tuple[int, int]) -> bool:
    """Whether a digit from leaf to leaf on one side steps along an axis on the other."""
    both = zip(cell.geometry.digits[number].at, symbols, strict=True)
    return any(place is not None and place[0] >= count for place, count in both)


class _Groups:
    """Leaves that have something in common, by union and find.

    A leaf is a side and a slot. Of q, k and v that become one leaf all four are a group.
    """

    def __init__(self) -> None:
        """Knows no leaf yet."""
        self._parents: list[int] = []
        self._numbers: dict[tuple[int, Slot], int] = {}

    def of(self, leaf: tuple[int, Slot]) -> int:
        """The group of a leaf."""
        number = self._numbers.get(leaf)
        if number is None:
            number = self._numbers[leaf] = len(self._parents)
            self._parents.append(number)
        # Halves the way for whoever asks next: each leaf on it is hung where its parent hangs.
        while self._parents[number] != number:
            self._parents[number] = number = self._parents[self._parents[number]]
        return number

    def join(self, one: tuple[int, Slot], other: tuple[int, Slot]) -> None:
        """Puts two leaves into one group, the earlier of theirs."""
        first, second = sorted((self.of(one), self.of(other)))
        self._parents[second] = first
