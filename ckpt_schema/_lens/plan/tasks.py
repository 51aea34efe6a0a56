"""Cells at given sizes: which leaves of a tree are made of which, and by what blocks."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

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
)
from ckpt_schema._lens.cells import Cell, Constant, Geometry
from ckpt_schema._lens.codecs import Codec
from ckpt_schema._lens.derive.joins import Join
from ckpt_schema.errors import ConformanceError, Mismatch

__all__ = [
    "Application",
    "Kept",
    "applications",
    "as_it_is",
    "bits_of",
    "gaps",
    "needed",
    "only_moves",
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
        copies, fillings, inputs = (
            list(self.task.copies),
            list(self.task.fillings),
            list(self.task.inputs),
        )
        read: list[Slot] = []
        open_: list[Kept] = []
        for each in self.kept:
            slot, kind = self.results[each.result], self.task.results[each.result]
            if there(slot):
                steps = tuple(
                    Step(step.size, (step.at[1], step.at[1])) for step in each.block.steps
                )
                starts = each.block.starts[1], each.block.starts[1]
                copies.append(Copy(len(inputs), each.result, Block(starts, steps)))
                inputs.append(kind)
                read.append(slot)
            elif isinstance(each.default, leaves.Fill):
                bits = bits_of(each.default.value, kind.dtype)
                fillings.append(Filling(each.result, each.block, bits))
            else:
                open_.append(each)
        made = dataclasses.replace(
            self.task, inputs=tuple(inputs), copies=tuple(copies), fillings=tuple(fillings)
        )
        return made, read, open_


def only_moves(join: Join, rows: Rows) -> bool:
    """Whether leaves of a join go from side to side as they are, for all sizes.

    Only the sizes that their keys count need be known then.
    """
    if len(join.cells) != 1 or not join.plain:
        return False
    cell = join.cells[0]
    return not cell.codec and _is_identity(cell.geometry, *_ends(cell, rows))


@dataclasses.dataclass(frozen=True, slots=True)
class _End:
    """A row at one end of a cell."""

    number: int
    row: Row
    symbols: int


def _ends(cell: Cell, rows: Rows) -> tuple[_End, _End]:
    assert isinstance(cell.source, int) and isinstance(cell.view, int)
    both = [
        _End(number, table[number], len(table[number].unrolled))
        for number, table in zip((cell.source, cell.view), rows, strict=True)
    ]
    return both[0], both[1]


def _is_identity(geometry: Geometry, source: _End, view: _End) -> bool:
    """Whether the axes of two leaves are the same, whatever their keys are."""
    if source.row.leaf.dtype != view.row.leaf.dtype:
        return False
    if len(source.row.dims) != len(view.row.dims):
        return False
    starts = [
        start[end.symbols :] for start, end in zip(geometry.starts, (source, view), strict=True)
    ]
    if any(any(start) for start in starts):
        return False
    for digit in geometry.digits:
        spots = [
            None if place is None or place[0] < end.symbols else (place[0] - end.symbols, place[1])
            for place, end in zip(digit.at, (source, view), strict=True)
        ]
        if spots[0] != spots[1]:
            return False
    return True


def needed(join: Join, rows: Rows) -> frozenset[str]:
    """The dims whose sizes it takes to tell which leaves are made of which, and how."""
    if not only_moves(join, rows):
        return join.names
    geometry = join.cells[0].geometry
    counts = [end.symbols for end in _ends(join.cells[0], rows)]
    found = [
        size for start, count in zip(geometry.starts, counts, strict=True) for size in start[:count]
    ]
    for number in _along_keys(geometry, (counts[0], counts[1])):
        digit = geometry.digits[number]
        found += [digit.size, *(place[1] for place in digit.at if place is not None)]
    return frozenset[str]().union(*(size.names for size in found))


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
    found = _Found(rows, sizes)
    for cell in join.cells:
        if join.compares[1]:  # nothing here writes: a leaf of its own is made, padding and all
            cell = dataclasses.replace(cell, compares=(cell.compares[0], False))
        found.add(cell)
    yield from found.applications()


def _moves(join: Join, rows: Rows, sizes: Sizes) -> Iterator[Application]:
    """Leaves that go from side to side as they are."""
    (cell,) = join.cells
    source, view = _ends(cell, rows)
    nothing = Task((), (), ())
    if not source.symbols and not view.symbols:
        yield Application(((source.number, ()),), ((view.number, ()),), nothing, moves=True)
        return
    for one, other, _ in _instances(cell.geometry, (source.symbols, view.symbols), sizes):
        before, after = (source.number, one), (view.number, other)
        yield Application((before,), (after,), nothing, moves=True)


_Turns = tuple[int, ...]


def _instances(
    geometry: Geometry, symbols: tuple[int, int], sizes: Sizes
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], _Turns]]:
    """The leaves of both sides that a cell joins, with the step that each takes of digits along their keys."""
    starts = [
        [size.at(sizes) for size in start[:count]]
        for start, count in zip(geometry.starts, symbols, strict=True)
    ]
    along = _along_keys(geometry, symbols)
    digits = [geometry.digits[number] for number in along]
    ranges = [range(digit.size.at(sizes)) for digit in digits]
    strides = [
        [
            None if place is None or place[0] >= count else (place[0], place[1].at(sizes))
            for place, count in zip(digit.at, symbols, strict=True)
        ]
        for digit in digits
    ]
    for steps in itertools.product(*ranges):
        indices = [list(start) for start in starts]
        for step, both in zip(steps, strides, strict=True):
            for index, spot in zip(indices, both, strict=True):
                if spot is not None:
                    index[spot[0]] += spot[1] * step
        yield tuple(indices[0]), tuple(indices[1]), steps


def _along_keys(geometry: Geometry, symbols: tuple[int, int]) -> list[int]:
    """The digits that go from leaf to leaf on a side, by number."""
    found: list[int] = []
    for number, digit in enumerate(geometry.digits):
        both = zip(digit.at, symbols, strict=True)
        if any(place is not None and place[0] < count for place, count in both):
            found.append(number)
    return found


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


class _Found:
    """What cells make of leaves, while it is gathered."""

    def __init__(self, rows: Rows, sizes: Sizes) -> None:
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
        source, view = _ends(cell, self.rows)
        symbols = source.symbols, view.symbols
        blocks = _blocks(cell, symbols, self.sizes)
        repeats = _repeats(cell.geometry, symbols)
        along = _along_keys(cell.geometry, symbols)
        turning = [place for place, number in enumerate(along) if _turns(cell, number, symbols)]
        again = [place for place, number in enumerate(along) if number in repeats]
        for one, other, steps in _instances(cell.geometry, symbols, self.sizes):
            turns = tuple(steps[place] for place in turning)
            is_later = any(steps[place] for place in again)
            for number, block in enumerate(blocks):
                # Of elements that stand several times in what is read, the first are read.
                compares = cell.compares[1] or is_later or number > 0
                yield _Copied((source.number, one), (view.number, other), block, turns, compares)

    def _constants(self, cell: Cell) -> Iterator[_Alone]:
        side, number, constant = cell.alone
        assert isinstance(number, int)
        if side == 1 and cell.compares[1]:
            return  # what it is a copy of fills it
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
        written = {(each.source, each.view) for each in self.copies if not each.compares}
        for copied in self.copies:
            # A leaf that holds its own copies is looked at as one.
            is_own = (copied.source, copied.view) in written
            by_itself = copied.compares and not is_own and self._is_whole(copied)
            (apart if by_itself else together).append(copied)
        read = {copied.source for copied in together}
        lone: dict[Slot, list[_Alone]] = {}  # the padding of what is only compared
        for alone in self.alone:
            if alone.side == 0 and alone.slot not in read:
                lone.setdefault(alone.slot, []).append(alone)
        compared = lone.keys() & {copied.source for copied in apart}
        self.alone = [each for each in self.alone if each.side or each.slot not in compared]
        yield from self._together(together)
        for copied in apart:
            padding = lone.pop(copied.source, [])
            yield self._application([dataclasses.replace(copied, compares=False)], padding)

    def _is_whole(self, copied: _Copied) -> bool:
        """Whether all of a leaf of the view is one block."""
        return copied.block.count == math.prod(self._kind(1, copied.view).stored)

    def _together(self, together: Sequence[_Copied]) -> Iterator[Application]:
        groups = _Groups()
        for copied in together:
            groups.join((0, copied.source), (1, copied.view))
        for alone in self.alone:
            groups.join((alone.side, alone.slot), (alone.side, alone.slot))
        copies: dict[int, list[_Copied]] = {}
        for copied in together:
            copies.setdefault(groups.of((0, copied.source)), []).append(copied)
        rest: dict[int, list[_Alone]] = {}
        for alone in self.alone:
            rest.setdefault(groups.of((alone.side, alone.slot)), []).append(alone)
        for group in sorted(copies.keys() | rest.keys()):
            yield self._application(copies.get(group, []), rest.get(group, []))

    def _application(self, copies: list[_Copied], alone: list[_Alone]) -> Application:
        # Writers before what only compares; results in the order of the view's leaves.
        copies.sort(key=lambda each: (each.compares, each.view, each.source))
        slots: list[dict[Slot, int]] = [{}, {}]
        for each in copies:
            slots[0].setdefault(each.source, len(slots[0]))
            slots[1].setdefault(each.view, len(slots[1]))
        for each in alone:
            slots[each.side].setdefault(each.slot, len(slots[each.side]))
        made: list[Copy] = []
        for each in copies:
            numbers = slots[0][each.source], slots[1][each.view]
            made.append(Copy(*numbers, each.block, each.turns, each.compares))
        fillings: list[Filling] = []
        values: list[leaves.Fill] = []
        checks: list[Check] = []
        kept: list[Kept] = []
        for each in alone:
            number, value = slots[each.side][each.slot], each.constant.value
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
        kinds = [tuple(self._kind(side, slot) for slot in each) for side, each in enumerate(slots)]
        task = Task(kinds[0], kinds[1], tuple(made), tuple(fillings), tuple(checks))
        inputs, results = (tuple(each) for each in slots)
        is_move = not kept and _is_move(task)
        return Application(inputs, results, task, tuple(kept), is_move, tuple(values))

    def _kind(self, side: int, slot: Slot) -> Kind:
        row = self.rows[side][slot[0]]
        shape = dims_.sizes_of(row.dims, self.sizes)
        assert shape is not None, f"unbound dims in {row}"
        return Kind(shape, row.leaf.dtype)


def gaps(task: Task) -> list[int]:
    """The results of which not every element is written once, by number.

    Cells are derived for sizes of at least 1. Where a dim is 0, what was said to lie behind another
    element may lie before it.
    """
    left = [math.prod(kind.stored) for kind in task.results]
    for copy in task.copies:
        if not copy.compares:
            left[copy.result] -= copy.block.count
    for filling in task.fillings:
        left[filling.result] -= filling.block.count
    return [number for number, elements in enumerate(left) if elements]


def as_it_is(row: Row, sizes: Sizes) -> Task:
    """What makes a leaf of one that only moves, where it becomes another object all the same."""
    kind = Kind(dims_.sizes_of(row.dims, sizes) or (), row.leaf.dtype)
    return Task((kind,), (kind,), (Copy(0, 0, all_of(kind.stored)),))


def _default(value: object) -> leaves.Default | None:
    assert value is None or isinstance(value, leaves.Default)
    return value


def _is_move(task: Task) -> bool:
    """Whether the one leaf that is made is the one that is read, as it is."""
    if len(task.copies) != 1 or task.fillings or task.checks or task.inputs != task.results:
        return False
    (copy,) = task.copies
    block = copy.block
    if block.codec or any(step.is_turn or step.at[0] != step.at[1] for step in block.steps):
        return False
    return block.count == math.prod(task.inputs[0].stored)


def _blocks(cell: Cell, symbols: tuple[int, int], sizes: Sizes) -> list[Block]:
    """A cell's block; several where what is read stands there several times, one for each."""
    geometry = cell.geometry
    begin = [
        tuple(size.at(sizes) for size in start[count:])
        for start, count in zip(geometry.starts, symbols, strict=True)
    ]
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
            if spots != [None, None]:
                steps.append(Step(size, (spots[0], spots[1]), is_turn=True))
        elif spots[0] is not None and spots[1] is None and not cell.is_constant:
            repeats.append((size, spots[0]))
        else:
            steps.append(Step(size, (spots[0], spots[1])))
    found: list[Block] = []
    codec = _bound(cell.codec, sizes)
    for taken in itertools.product(*(range(size) for size, _ in repeats)):
        start = list(begin[0])
        for step, (_, (axis, stride)) in zip(taken, repeats, strict=True):
            start[axis] += step * stride
        found.append(Block((tuple(start), begin[1]), tuple(steps), codec))
    return found


def _bound(codec: Codec, sizes: Sizes) -> Codec:
    try:
        return codecs.evaluated(codec, sizes)
    except ArithmeticError as error:
        said = ", ".join(str(word) for word in codec)
        given = " ".join(f"{name}={sizes[name]}" for name in sorted(codecs.dims_of(codec)))
        found = f"{error}, where {given}"
        hint = "declare another factor, or other sizes"
        fault = Mismatch(said, "rule", "a finite number other than 0", found, hint)
        raise ConformanceError("values cannot be scaled", [fault]) from error


def _repeats(geometry: Geometry, symbols: tuple[int, int]) -> set[int]:
    """The digits from leaf to leaf of what is read, which stay in what is written."""
    return {
        number
        for number, digit in enumerate(geometry.digits)
        if digit.at[1] is None and digit.at[0] is not None and digit.at[0][0] < symbols[0]
    }


def _turns(cell: Cell, number: int, symbols: tuple[int, int]) -> bool:
    """Whether a digit from leaf to leaf on one side steps along an axis on the other."""
    both = zip(cell.geometry.digits[number].at, symbols, strict=True)
    return any(place is not None and place[0] >= count for place, count in both)


def bits_of(value: float | int | bool, dtype: str) -> int:
    """The bits of a number in a dtype, as an unsigned integer.

    Example:
        >>> hex(bits_of(1.0, "bfloat16")), bits_of(-1, "int8")
        ('0x3f80', 255)
    """
    array = np.asarray(value).astype(leaves.dtype_of(dtype))
    return int.from_bytes(array.tobytes(), "little")


class _Groups:
    """Leaves that have something in common, by union and find."""

    def __init__(self) -> None:
        self._parents: list[int] = []
        self._numbers: dict[tuple[int, Slot], int] = {}

    def of(self, leaf: tuple[int, Slot]) -> int:
        """The group of a leaf."""
        number = self._numbers.get(leaf)
        if number is None:
            number = self._numbers[leaf] = len(self._parents)
            self._parents.append(number)
        while self._parents[number] != number:
            self._parents[number] = number = self._parents[self._parents[number]]
        return number

    def join(self, one: tuple[int, Slot], other: tuple[int, Slot]) -> None:
        """Puts two leaves into one group, the earlier of theirs."""
        first, second = sorted((self.of(one), self.of(other)))
        self._parents[second] = first
