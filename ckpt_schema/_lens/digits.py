"""Two strided blocks of one axis, held against each other: which elements both have, for all sizes.

An axis is counted in *digits*, major first: a step of a digit goes its stride further, and it has
as many steps as its size. The elements of ``heads*dim`` are those of a digit ``heads`` with stride
``dim`` and a digit ``dim`` with stride 1. A block may leave gaps: one of two interleaved halves has
stride 2. `meet` tells the elements that two blocks share, as blocks with digits of their own.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence

from ckpt_schema._layouts.sizes import ONE, ZERO, Size, UndecidedError, greater, lesser

__all__ = ["Common", "Run", "Shared", "Shift", "coarse_first", "meet"]

_MOST_TURNS = 64  # how many slots are taken one by one at most


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """A digit of one of two blocks on the axis where they meet.

    Attributes:
        size: How many steps it has.
        stride: How many elements a step goes further; positive.
        side: Which block it is of: 0 or 1.
        digit: Its number among the digits of that block.
        times: How many steps of that digit a step of the run is.
    """

    size: Size
    stride: Size
    side: int
    digit: int
    times: Size = ONE


@dataclasses.dataclass(frozen=True, slots=True)
class Shared:
    """A digit of what two blocks have in common.

    Attributes:
        size: How many steps it has.
        ends: For each block, the number of the digit that steps along, and by how many steps;
            None where a block has no such digit.
    """

    size: Size
    ends: tuple[tuple[int, Size] | None, tuple[int, Size] | None]


@dataclasses.dataclass(frozen=True, slots=True)
class Shift:
    """Where common elements begin: so many steps of a digit of one block further than that block."""

    side: int
    digit: int
    steps: Size


@dataclasses.dataclass(frozen=True, slots=True)
class Common:
    """Elements that two blocks have in common."""

    digits: tuple[Shared, ...] = ()
    shifts: tuple[Shift, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class _Slots:
    """Part of a block, counted in slots: each holds the same elements as the one before it.

    Attributes:
        first: The first slot that has elements.
        count: How many have.
        step: The digit that goes from one to the next, and by how many of its steps; None where
            there is but one.
        offset: Where in its slot the part begins.
        runs: The digits inside of a slot.
        shifts: How the part begins within its block.
    """

    first: Size
    count: Size
    step: tuple[int, Size] | None
    offset: Size
    runs: Sequence[Run]
    shifts: tuple[Shift, ...] = ()

    @property
    def end(self) -> Size:
        """The slot after the last."""
        return self.first + self.count


def meet(at: Size, one: Sequence[Run], other: Sequence[Run]) -> list[Common]:
    """The elements that two blocks of one axis have in common.

    Args:
        at: Where the second block starts, counted from the start of the first, in elements.
        one: The digits of the first block, major first. A digit's stride is no less than what
            those after it reach.
        other: The digits of the second.

    Returns:
        Blocks that share no element and together are all that is in both.

    Raises:
        UndecidedError: Which elements these are depends on the sizes in a way that no blocks tell.

    Example:
        >>> q, kv = Size.of("q"), Size.of("kv")
        >>> whole = [Run(q + kv, ONE, 0, 0)]
        >>> part = [Run(kv, ONE, 1, 0)]
        >>> for common in meet(q, whole, part):
        ...     print(common.digits[0].size, [str(shift.steps) for shift in common.shifts])
        kv ['q', '0']
    """
    # A digit of one step goes nowhere.
    one = [run for run in one if run.size != ONE]
    other = [run for run in other if run.size != ONE]
    # One ends before the other starts.
    if (at - _extent(one)).nonnegative or (-at - _extent(other)).nonnegative:
        return []
    if not one and not other:
        # One element each: it is the same one where `at` is 0.
        if at:
            raise UndecidedError(f"whether {at} is 0 depends on the sizes", at, ZERO)
        return [Common()]
    # The coarser one is cut into slots: heads of dim elements, and not the elements.
    if not one or (other and _is_coarser(other[0].stride, one[0].stride)):
        return meet(-at, other, one)
    return _met(at, one, other)


def _met(at: Size, one: Sequence[Run], other: Sequence[Run]) -> list[Common]:
    """The same where the first digit of the first block is the coarsest of all."""
    # Slots are counted from where one of the two blocks starts. Mostly either will do.
    from_one, from_other = (ZERO, at), (-at, ZERO)
    either_way = (from_one, from_other)
    # What starts within a slot of the first is cut by these slots; counted from itself it is not.
    if at.over(one[0].stride) is None:
        either_way = (from_other, from_one)
    faults: list[UndecidedError] = []
    for mine, yours in either_way:
        try:
            return list(_slotwise(mine, one, yours, other))
        except UndecidedError as fault:
            faults.append(fault)
    # Strides that do not divide one another have no common slots; few steps are taken one by one.
    if other and one[0].stride.over(other[0].stride) is None:
        return list(_unrolled(at, one, other))
    raise faults[-1]


def coarse_first(runs: Sequence[Run]) -> list[Run]:
    """The digits of a block in the order that `meet` takes them."""
    return sorted(runs, key=_coarseness, reverse=True)


@functools.cmp_to_key
def _coarseness(one: Run, other: Run) -> int:
    """Puts finer digits first; polynomials have no order that `sorted` could ask for."""
    if one.stride == other.stride:
        return 0
    return 1 if _is_coarser(one.stride, other.stride) else -1


def _is_coarser(stride: Size, other: Size) -> bool:
    """Whether a stride is that of a digit outside of another one: a multiple of its stride, or else greater."""
    if stride == other:
        return False
    is_multiple, divides = stride.over(other) is not None, other.over(stride) is not None
    if is_multiple != divides:
        return is_multiple
    return (stride - other).nonnegative


def _extent(runs: Sequence[Run]) -> Size:
    """From the first to the last element of a block, both counted."""
    extent = ONE
    for run in runs:
        extent += (run.size - 1) * run.stride
    return extent


def _split(at: Size, unit: Size, width: Size) -> tuple[Size, Size]:
    """The slot of ``unit`` elements, and the offset in it, where ``width`` elements from ``at`` on lie.

    Raises:
        UndecidedError: They lie in no single slot for all sizes.
    """
    # A quotient of polynomials does not round as one of numbers: the slot is there, or next to it.
    guess = divmod(at, unit)[0]
    for slot in (ZERO, guess, guess - 1, guess + 1, -ONE):
        offset = at - slot * unit
        if offset.nonnegative and (unit - offset - width).nonnegative:
            return slot, offset
    why = f"{width} elements from {at} on do not lie in one block of {unit} for all sizes"
    end = () if width.number is not None else (at + width,)
    raise UndecidedError(why, at, *end, unit)


def _length(low: Size, high: Size) -> Size:
    """How many are from ``low`` up to ``high``; at least 0 for all sizes."""
    length = high - low
    if not length.nonnegative:
        raise UndecidedError(f"whether {length} is positive depends on the sizes", low, high)
    return length


def _slotwise(
    mine: Size, one: Sequence[Run], yours: Size, other: Sequence[Run]
) -> Iterator[Common]:
    """What two blocks share, slot by slot of the coarsest digit: which slots both have, and what both have within one."""
    run, inner = one[0], one[1:]
    first, offset = _split(mine, run.stride, _extent(inner))
    end = first + run.size
    for part in _in_slots(yours, other, run.stride, (first, end)):
        # Within a slot both are blocks again, of finer digits.
        within = meet(part.offset - offset, inner, part.runs)
        if not within or (part.first - end).nonnegative or (first - part.end).nonnegative:
            continue
        # The slots that both have: from where the later one starts to where the first one ends.
        low, high = greater(first, part.first), lesser(end, part.end)
        count = _length(low, high)
        if not count:
            continue
        shifts = [*part.shifts, Shift(run.side, run.digit, (low - first) * run.times)]
        if part.step:
            digit, steps = part.step
            shifts.append(Shift(1 - run.side, digit, (low - part.first) * steps))
        own = (run.digit, run.times)
        shared = Shared(count, (own, part.step) if run.side == 0 else (part.step, own))
        for common in within:
            yield Common((shared, *common.digits), (*shifts, *common.shifts))


def _in_slots(
    at: Size, runs: Sequence[Run], unit: Size, window: tuple[Size, Size]
) -> Iterator[_Slots]:
    """A block that starts at ``at``, counted in slots of ``unit`` elements.

    Slots out of the window may be left out.
    """
    if runs and runs[0].stride == unit:
        run, inner = runs[0], runs[1:]
        slot, offset = _split(at, unit, _extent(inner))
        yield _Slots(slot, run.size, (run.digit, run.times), offset, inner)
        return
    # All of it in one slot, or else its first digit goes on over several.
    try:
        slot, offset = _split(at, unit, _extent(runs))
    except UndecidedError:
        if not runs or unit.over(runs[0].stride) is None:
            raise
    else:
        yield _Slots(slot, ONE, None, offset, runs)
        return
    yield from _cut(at, runs, unit, window)


def _cut(at: Size, runs: Sequence[Run], unit: Size, window: tuple[Size, Size]) -> Iterator[_Slots]:
    """The same where the first digit goes on over several slots: the end of one slot, whole ones, the start of another."""
    run, inner = runs[0], runs[1:]
    per_slot = unit.over(run.stride)
    assert per_slot is not None
    first, offset = _split(at, run.stride, _extent(inner))
    low = greater(first, window[0] * per_slot)
    high = lesser(first + run.size, window[1] * per_slot)
    if (low - high).nonnegative:
        return

    def part(slot: Size, count: Size, start: Size, size: Size, gap: Size = ZERO) -> _Slots:
        step = (run.digit, per_slot * run.times) if count != ONE else None
        shift = Shift(run.side, run.digit, (start - first) * run.times)
        digits = [dataclasses.replace(run, size=size), *inner]
        return _Slots(slot, count, step, offset + gap * run.stride, digits, (shift,))

    # Steps 2 to 9, in slots of 4: the 2 steps left of slot 0, slot 1 as a whole, 2 steps of slot 2.
    left = _length(low, high)
    slot, gap = _slot_of(low, per_slot)
    if gap:
        head = lesser(per_slot - gap, left)
        yield part(slot, ONE, low, head, gap)
        low, left, slot = low + head, left - head, slot + 1
    whole, tail = _whole_slots(left, per_slot)
    if whole:
        yield part(slot, whole, low, per_slot)
    if tail:
        yield part(slot + whole, ONE, low + whole * per_slot, tail)


def _slot_of(step: Size, per_slot: Size) -> tuple[Size, Size]:
    """The slot that a step of a digit lies in, and how many steps of it come before."""
    exact = step.over(per_slot)
    return _split(step, per_slot, ONE) if exact is None else (exact, ZERO)


def _whole_slots(steps: Size, per_slot: Size) -> tuple[Size, Size]:
    """How many whole slots so many steps are, and how many are left."""
    whole, tail = divmod(steps, per_slot)
    if whole.nonnegative and tail.nonnegative and (per_slot - tail).nonnegative:
        return whole, tail
    return _split(steps, per_slot, ZERO)


def _unrolled(at: Size, one: Sequence[Run], other: Sequence[Run]) -> Iterator[Common]:
    """What two blocks share of which neither stride divides the other.

    Where so many steps of the one are some of the other, for all sizes, those are taken one by one.
    """
    # Of strides 2*dim and 3*dim: 3 steps of the first are 2 of the second.
    run = one[0]
    turns = _turns(run.stride, other[0].stride)
    if turns is None:
        why = (
            f"blocks of {run.stride} and of {other[0].stride} share no block for all sizes: "
            "name the factors alike"
        )
        raise UndecidedError(why, run.stride, other[0].stride)
    # Each turn is a digit of its own: of three, every third step.
    whole, left = divmod(run.size, Size.of(turns))
    if left.number is None:
        why = f"{run.size} is no multiple of {turns} for all sizes"
        raise UndecidedError(why, run.size, Size.of(turns))
    for turn in range(turns):
        size = whole + 1 if turn < left.number else whole
        if not size:
            continue
        every = Run(size, run.stride * turns, run.side, run.digit, run.times * turns)
        shift = Shift(run.side, run.digit, run.times * turn)
        for common in meet(at - run.stride * turn, [every, *one[1:]], other):
            yield Common(common.digits, (*common.shifts, shift))


def _turns(stride: Size, other: Size) -> int | None:
    """How many steps of one stride are some number of steps of the other."""
    for turns in range(2, _MOST_TURNS + 1):
        steps = (stride * turns).over(other)
        if steps is not None and steps.number is not None:
            return turns
    return None
