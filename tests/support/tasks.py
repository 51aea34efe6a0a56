"""Random tasks with their values, and what they have to make of them, element by element.

A task is drawn as two layouts of the same factors. A layout is a list of axes, of which the first
goes from leaf to leaf. An axis is a list of spans; a span keeps some factors, major first, within a
number of elements. One span of the results is the *joint*: each part of the task has factors of its
own there, and one part follows the other.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from ckpt_schema._layouts import leaves
from ckpt_schema._lens.arrays.blocks import Block, Check, Copy, Filling, Kind, Spot, Step, Task
from ckpt_schema._lens.codecs import Codec, Exact, inverted
from ckpt_schema.testing._values import DTYPES, IMPLS, INTEGERS, hostile

FLOATS = ("float32", "bfloat16", "float16")
JOINT = "joint"


# --- Layouts  ---


@dataclasses.dataclass(frozen=True)
class Span:
    """Factors that an axis keeps within so many elements, from one of them on."""

    factors: tuple[str, ...]
    size: int
    start: int = 0


Layout = tuple[tuple[Span, ...], ...]
"""The axes of leaves, each as its spans, major first. The first one goes from leaf to leaf."""

Sizes = Mapping[str, int]


def _shape(layout: Layout) -> tuple[int, ...]:
    """How many leaves there are, and the shape of each."""
    return tuple(math.prod(span.size for span in axis) for axis in layout)


def _places(layout: Layout, sizes: Sizes) -> tuple[dict[str, Spot], list[int]]:
    """Where a step of each factor goes, and where all of them start."""
    spots: dict[str, Spot] = {}
    starts: list[int] = []
    for number, axis in enumerate(layout):
        stride, start = 1, 0
        for span in reversed(axis):
            start += span.start * stride
            inner = stride
            for name in reversed(span.factors):
                spots[name] = (number, inner)
                inner *= sizes[name]
            stride *= span.size
        starts.append(start)
    return spots, starts


def _gaps(layout: Layout, held: Callable[[Span], int]) -> Iterator[list[tuple[int, int, Spot]]]:
    """What spans have besides what they hold, as boxes without a common element.

    Args:
        layout: The layout. The axis from leaf to leaf has no gaps.
        held: How many elements of a span are held, from its start on.

    Yields:
        For each box and each span, where it begins, how long it is there, and where a step goes.
    """
    spans: list[tuple[Span, Spot]] = []
    for number, axis in enumerate(layout[1:]):
        stride = 1
        for span in reversed(axis):
            spans.append((span, (number, stride)))
            stride *= span.size
    for at, (span, _) in enumerate(spans):
        end = span.start + held(span)
        for begin, stop in ((0, span.start), (end, span.size)):
            if begin == stop:
                continue
            box: list[tuple[int, int, Spot]] = []
            for other, (each, spot) in enumerate(spans):
                if other < at:
                    box.append((each.start, held(each), spot))
                elif other == at:
                    box.append((begin, stop - begin, spot))
                else:
                    box.append((0, each.size, spot))
            if all(size for _, size, _ in box):
                yield box


# --- Tasks  ---


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Which tasks are drawn.

    Attributes:
        dtypes: The dtypes of results.
        sizes: The sizes of factors.
        parts: How many parts there are at most.
        pads: Whether leaves have elements that no leaf of the other side has.
        repeats: Whether elements are written several times, or stand several times in what is read.
        codecs: Whether elements change on their way.
        flips: Whether some go back.
        turns: Whether there are several leaves.
    """

    dtypes: tuple[str, ...] = DTYPES
    sizes: tuple[int, ...] = (0, 1, 2, 2, 3, 3, 4)
    parts: int = 3
    pads: bool = True
    repeats: bool = True
    codecs: bool = True
    flips: bool = True
    turns: bool = True


INVERTIBLE = Wanted(repeats=False)
"""Tasks that have a way back: see `inverse`."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A task, and what draws values for it.

    Attributes:
        task: The task.
        seed: Draws the values.
    """

    task: Task
    seed: int

    def values(self, place: Callable[[Any], Any] = lambda value: value) -> list[Any]:
        """The inputs: NumPy arrays and typed key arrays, each placed."""
        rng = np.random.default_rng(self.seed)
        found = [self._value(rng, number) for number in range(len(self.task.inputs))]
        return [place(value) for value in found]

    def _value(self, rng: np.random.Generator, number: int) -> Any:
        kind = self.task.inputs[number]
        codecs = {copy.block.codec for copy in self.task.copies if copy.source == number} - {()}
        bounds = None
        if kind.dtype in INTEGERS:
            dtypes = {kind.dtype, *(_view_of(codec) for codec in codecs)}
            infos = [jnp.iinfo(dtype) for dtype in dtypes]
            bounds = max(int(info.min) for info in infos), min(int(info.max) for info in infos)
        value = hostile(rng, kind.dtype, kind.shape, bounds)
        if codecs and not bounds:  # times a power of two: what neither over- nor underflows
            value = rng.integers(-8, 8, kind.shape).astype(jnp.dtype(kind.dtype))
        checks = [check for check in self.task.checks if check.source == number]
        if not checks:
            return value
        stored = _bytes(value)
        for check in checks:
            for index in _indices(check.block, 0, ()):
                stored[index] = _of_bits(check.bits, stored.shape[-1])
        return _from_bytes(stored, kind.dtype)

    def expected(self, values: Sequence[Any]) -> list[Any]:
        """What the task makes of them, as NumPy arrays: of keys, the words."""
        return made(self.task, values)


def cases(wanted: Wanted = Wanted()) -> st.SearchStrategy[Case]:
    """Random tasks. One seed is drawn for all choices: so few examples are unlike each other."""
    return st.integers(0, 2**32 - 1).map(lambda seed: case(random.Random(seed), wanted))


def case(rng: random.Random, wanted: Wanted = Wanted()) -> Case:
    """A random task."""
    return Case(_Drawn(rng, wanted).task(), rng.randrange(2**32))


class _Drawn:
    """A task while it is drawn."""

    def __init__(self, rng: random.Random, wanted: Wanted) -> None:
        self.rng, self.wanted = rng, wanted
        self.dtype = rng.choice(wanted.dtypes)
        self.is_key = self.dtype in IMPLS
        self.sizes: dict[str, int] = {}
        self.inputs: list[Kind] = []
        self.copies: list[Copy] = []
        self.fillings: list[Filling] = []
        self.checks: list[Check] = []

    def task(self) -> Task:
        """The task: parts one after the other, and what lies between and beside them."""
        shared = self.factors("s", self.rng.randint(0, 3))
        own = [
            self.factors(f"p{number}_", self.rng.randint(0, 2))
            for number in range(self.rng.randint(1, self.wanted.parts))
        ]
        lengths = [math.prod(self.sizes[name] for name in names) for names in own]
        self.sizes[JOINT] = sum(lengths)
        view = self.layout([*shared, JOINT], is_read=False)
        repeated = self.some(shared) if self.wanted.repeats else set[str]()
        offset = 0
        for names, length in zip(own, lengths, strict=True):
            self.part(shared, names, repeated, self.at_joint(view, names, offset))
            offset += length
        count, *shape = _shape(view)
        results = (Kind(tuple(shape), self.dtype),) * count
        self.beside(view, results)
        self.copies.sort(key=lambda copy: (copy.compares, copy.result, copy.source))
        return Task(
            tuple(self.inputs),
            results,
            tuple(self.copies),
            tuple(self.fillings),
            tuple(self.checks),
        )

    def factors(self, prefix: str, count: int) -> list[str]:
        names = [f"{prefix}{number}" for number in range(count)]
        self.sizes |= {name: self.rng.choice(self.wanted.sizes) for name in names}
        return names

    def some(self, names: Sequence[str], chance: float = 0.2) -> set[str]:
        return {name for name in names if self.rng.random() < chance}

    def layout(self, names: Sequence[str], *, is_read: bool) -> Layout:
        """The factors on axes, in any order, some along the leaves."""
        names = self.rng.sample(names, len(names))
        along = [n for n in names if self.wanted.turns and n and self.rng.random() < 0.3]
        axes: list[list[Span]] = []
        for name in (name for name in names if name not in along):
            last = axes[-1][-1] if axes else None
            choice = self.rng.random()
            if choice < 0.2 and last is not None and JOINT not in (name, *last.factors):
                factors = (*last.factors, name)  # kept within the same elements
                axes[-1][-1] = self.span(factors, pads=True)
            elif choice < 0.5 and axes:
                axes[-1].append(self.span((name,), pads=True))
            else:
                axes.append([self.span((name,), pads=True)])
        if self.rng.random() < 0.2:
            axes.insert(self.rng.randint(0, len(axes)), [])  # an axis of one element
        del is_read
        first = tuple(self.span((name,), pads=False) for name in along)
        return (first, *map(tuple, axes))

    def span(self, factors: tuple[str, ...], *, pads: bool) -> Span:
        size = math.prod(self.sizes[name] for name in factors)
        if not pads or not self.wanted.pads or self.is_key or self.rng.random() < 0.7:
            return Span(factors, size)
        before, after = self.rng.choice([(0, 1), (0, 2), (1, 0), (1, 2), (2, size)])
        return Span(factors, before + size + after, before)

    def at_joint(self, view: Layout, names: Sequence[str], offset: int) -> Layout:
        """The results' layout as one part sees it: with its own factors in the joint."""
        order = tuple(self.rng.sample(names, len(names)))
        axes: list[tuple[Span, ...]] = []
        for axis in view:
            axes.append(
                tuple(
                    Span(order, span.size, span.start + offset) if JOINT in span.factors else span
                    for span in axis
                )
            )
        return tuple(axes)

    def part(
        self, shared: Sequence[str], own: Sequence[str], repeated: set[str], view: Layout
    ) -> None:
        """Leaves to read, and what goes from them to the results."""
        several = self.factors(
            f"r{len(self.inputs)}_", int(self.wanted.repeats and self.rng.random() < 0.2)
        )
        for name in several:
            self.sizes[name] = max(self.sizes[name], 1)
        source = self.layout(
            [*(n for n in shared if n not in repeated), *own, *several], is_read=True
        )
        dtype, codec = self.codec()
        first = len(self.inputs)
        count, *shape = _shape(source)
        self.inputs += [Kind(tuple(shape), dtype)] * count
        flipped = self.some([*shared, *own]) if self.wanted.flips else set[str]()
        self.copies += self.blocks(source, view, flipped - repeated, codec, first)
        if count and not self.is_key and self.rng.random() < 0.7:
            self.check(source, dtype, first, count)

    def codec(self) -> tuple[str, Codec]:
        """The dtype of what is read, and what happens to it."""
        if self.wanted.codecs and self.rng.random() < 0.3:
            if self.dtype in INTEGERS:
                dtype = self.rng.choice([each for each in INTEGERS if each != self.dtype])
                return dtype, (Exact(dtype, self.dtype),)
            if self.dtype in FLOATS:
                return self.dtype, (Exact(self.dtype, self.dtype, self.rng.choice([-3, 2])),)
        return self.dtype, ()

    def blocks(
        self, source: Layout, view: Layout, flipped: set[str], codec: Codec, first: int
    ) -> Iterator[Copy]:
        (ours, begin), (theirs, end) = _places(source, self.sizes), _places(view, self.sizes)
        for name in flipped & theirs.keys():
            axis, stride = theirs[name]
            end[axis] += (self.sizes[name] - 1) * stride
            theirs[name] = axis, -stride
        names = list(dict.fromkeys([*ours, *theirs]))
        self.rng.shuffle(names)
        # One copy for each step from leaf to leaf, and for each repeat of what is read.
        apart = [
            name
            for name in names
            if (name in ours and ours[name][0] == 0)
            or (name in theirs and theirs[name][0] == 0)
            or name not in theirs
        ]
        ranges = [range(self.sizes[name]) for name in apart]
        for steps in itertools.product(*ranges):
            taken = dict(zip(apart, steps, strict=True))
            yield self.copy(names, (ours, theirs), (begin, end), taken, codec, first)

    def copy(
        self,
        names: Sequence[str],
        spots: tuple[Mapping[str, Spot], Mapping[str, Spot]],
        begins: tuple[Sequence[int], Sequence[int]],
        taken: Mapping[str, int],
        codec: Codec,
        first: int,
    ) -> Copy:
        starts = [[*begin] for begin in begins]
        steps: list[Step] = []
        turns: list[int] = []
        for name in names:
            both = [spot.get(name) for spot in spots]
            on_axes = [None if at is None or not at[0] else (at[0] - 1, at[1]) for at in both]
            at = on_axes[0], on_axes[1]
            if name not in taken:
                steps.append(Step(self.sizes[name], at))
                continue
            for side, spot in enumerate(both):
                if spot is not None and (spot[0] == 0 or name not in spots[1]):
                    starts[side][spot[0]] += taken[name] * spot[1]
            if at != (None, None) and name in spots[1]:
                steps.append(Step(self.sizes[name], at, is_turn=True))
                turns.append(taken[name])
        inner = [tuple(start[1:]) for start in starts]
        if self.is_key:
            words = leaves.key_words(self.dtype)
            steps.append(Step(words, ((len(inner[0]), 1), (len(inner[1]), 1))))
            inner = [(*start, 0) for start in inner]
        compares = any(step for name, step in taken.items() if name not in spots[1])
        block = Block((inner[0], inner[1]), tuple(steps), codec)
        return Copy(first + starts[0][0], starts[1][0], block, tuple(turns), compares)

    def check(self, source: Layout, dtype: str, first: int, count: int) -> None:
        """Elements that are read by nothing hold a number."""
        fill = self.rng.choice([0, 1])
        bits = _bits(fill, dtype)
        for box in _gaps(source, self.held):
            starts, steps = _boxed(box, len(source) - 1, 0)
            for number in range(count):
                block = Block((starts, ()), steps)
                self.checks.append(Check(first + number, block, bits, fill))

    def held(self, span: Span) -> int:
        """How many elements of a span the factors take."""
        return math.prod(self.sizes[name] for name in span.factors)

    def beside(self, view: Layout, results: Sequence[Kind]) -> None:
        """What no part writes is filled in, or stays as it is in another leaf."""
        bits = None if self.is_key else _bits(self.rng.choice([0, 1]), self.dtype)
        for box in _gaps(view, self.held):
            kept = self.rng.random() < 0.2
            starts, steps = _boxed(box, len(view) - 1, 1)
            for number, kind in enumerate(results):
                if kept or bits is None:
                    both = tuple(Step(step.size, (step.at[1], step.at[1])) for step in steps)
                    block = Block((starts, starts), both)
                    self.copies.append(Copy(len(self.inputs), number, block))
                    self.inputs.append(kind)
                else:
                    self.fillings.append(Filling(number, Block(((), starts), steps), bits))


def _boxed(
    box: Sequence[tuple[int, int, Spot]], rank: int, side: int
) -> tuple[tuple[int, ...], tuple[Step, ...]]:
    """Where a box of one side starts, and its steps."""
    starts = [0] * rank
    steps: list[Step] = []
    for begin, size, (axis, stride) in box:
        starts[axis] += begin * stride
        spot = axis, stride
        steps.append(Step(size, (spot, None) if side == 0 else (None, spot)))
    return tuple(starts), tuple(steps)


# --- The way back  ---


def inverse(task: Task) -> Task:
    """The task that makes the inputs of the results; nothing is repeated, and nothing dropped unseen."""
    copies: list[Copy] = []
    for copy in task.copies:
        starts = [[*start] for start in copy.block.starts]
        steps: list[Step] = []
        turns: list[int] = []
        taken = iter(copy.turns)
        for step in copy.block.steps:
            ours, theirs = step.at
            turn = next(taken) if step.is_turn else 0
            if theirs is not None and theirs[1] < 0:  # what is read goes forward
                last = step.size - 1
                for start, spot in zip(starts, step.at, strict=True):
                    if spot is not None:
                        start[spot[0]] += last * spot[1]
                ours = ours and (ours[0], -ours[1])
                theirs = theirs[0], -theirs[1]
                turn = last - turn
            steps.append(Step(step.size, (theirs, ours), step.is_turn))
            if step.is_turn:
                turns.append(turn)
        block = Block(
            (tuple(starts[1]), tuple(starts[0])), tuple(steps), inverted(copy.block.codec)
        )
        copies.append(Copy(copy.result, copy.source, block, tuple(turns)))
    copies.sort(key=lambda copy: (copy.result, copy.source))
    fillings = [Filling(c.source, _turned(c.block), c.bits) for c in task.checks]
    checks = [Check(f.result, _turned(f.block), f.bits, 0) for f in task.fillings]
    return Task(task.results, task.inputs, tuple(copies), tuple(fillings), tuple(checks))


def _turned(block: Block) -> Block:
    steps = tuple(Step(step.size, (step.at[1], step.at[0])) for step in block.steps)
    return Block((block.starts[1], block.starts[0]), steps)


# --- The oracle: one element after the other  ---


def made(task: Task, values: Sequence[Any]) -> list[Any]:
    """What a task makes of concrete leaves, as NumPy arrays: of keys, their words.

    Every element of every result has to be written once.
    """
    given = [_bytes(value) for value in values]
    results: list[Any] = []
    for number, kind in enumerate(task.results):
        shape, dtype = _stored(kind)
        result = np.zeros((*shape, dtype.itemsize), np.uint8)
        writes = np.zeros(shape, int)
        for copy in task.copies:
            if copy.result != number or copy.compares:
                continue
            both = [[*_indices(copy.block, side, copy.turns)] for side in (0, 1)]
            for there, here in zip(*both, strict=True):
                element = given[copy.source][there]
                result[here] = _coded(element, task.inputs[copy.source].dtype, copy.block.codec)
                writes[here] += 1
        for filling in task.fillings:
            if filling.result == number:
                for here in _indices(filling.block, 1, ()):
                    result[here] = _of_bits(filling.bits, dtype.itemsize)
                    writes[here] += 1
        assert (writes == 1).all(), "every element is written once"
        results.append(np.frombuffer(result.tobytes(), dtype).reshape(shape))
    return results


def agreed(task: Task, values: Sequence[Any]) -> list[Any]:
    """The values with every copy that only compares equal to what is written; no keys."""
    given = [_bytes(value) for value in values]
    read: dict[tuple[int, tuple[int, ...]], Any] = {}
    for copy in sorted(task.copies, key=lambda copy: copy.compares):
        both = [[*_indices(copy.block, side, copy.turns)] for side in (0, 1)]
        for there, here in zip(*both, strict=True):
            if copy.compares:
                given[copy.source][there] = read[copy.result, here]
            else:
                read[copy.result, here] = given[copy.source][there]
    return [
        _from_bytes(stored, kind.dtype) for stored, kind in zip(given, task.inputs, strict=True)
    ]


def elements(block: Block, side: int, turns: Sequence[int] = ()) -> list[tuple[int, ...]]:
    """The index of each element of a side of a block."""
    return [*_indices(block, side, turns)]


def words(value: Any) -> Any:
    """A leaf as a NumPy array: of keys, their words."""
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    return np.asarray(value)


def _indices(block: Block, side: int, turns: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """The elements of a side of a block, one after the other."""
    taken = iter(turns)
    ranges = [
        (lambda step: range(step, step + 1))(next(taken)) if step.is_turn else range(step.size)
        for step in block.steps
    ]
    for steps in itertools.product(*ranges):
        index = list(block.starts[side])
        for step, at in zip(block.steps, steps, strict=True):
            spot = step.at[side]
            if spot is not None:
                index[spot[0]] += at * spot[1]
        assert all(at >= 0 for at in index)
        yield tuple(index)


def _coded(element: Any, dtype: str, codec: Codec) -> Any:
    """The bytes of an element after a codec: whole numbers, or numbers times a power of two."""
    for word in codec:
        assert isinstance(word, Exact) and word.source == dtype
        number = np.frombuffer(element.tobytes(), jnp.dtype(dtype))[0]
        exact = int(number) if dtype in INTEGERS else float(number) * 2.0**word.exponent
        changed = np.asarray(exact).astype(jnp.dtype(word.view))
        element, dtype = np.frombuffer(changed.tobytes(), np.uint8), word.view
    return element


def _view_of(codec: Codec) -> str:
    """The dtype after a codec."""
    word = codec[-1]
    assert isinstance(word, Exact)
    return word.view


def _stored(kind: Kind) -> tuple[tuple[int, ...], Any]:
    """The shape and dtype that a leaf has in memory."""
    if kind.dtype in IMPLS:
        return (*kind.shape, leaves.key_words(kind.dtype)), np.dtype("uint32")
    return kind.shape, jnp.dtype(kind.dtype)


def _bytes(value: Any) -> Any:
    """A leaf as its bytes, on one more axis: no element of it is looked at as a number."""
    array = words(value)
    raw = np.frombuffer(array.tobytes(), np.uint8)
    return raw.reshape((*array.shape, array.dtype.itemsize)).copy()


def _from_bytes(stored: Any, dtype: str) -> Any:
    return np.frombuffer(stored.tobytes(), jnp.dtype(dtype)).reshape(stored.shape[:-1])


def _bits(number: int, dtype: str) -> int:
    return int.from_bytes(np.asarray(number).astype(jnp.dtype(dtype)).tobytes(), "little")


def _of_bits(bits: int, size: int) -> Any:
    return np.frombuffer(bits.to_bytes(size, "little"), np.uint8)
