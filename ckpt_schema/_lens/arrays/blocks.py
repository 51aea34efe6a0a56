"""Blocks: cells of concrete leaves, in numbers. What is read of one array, and where it is written in another.

A *leaf* here is one array of a tree; the index symbols of its key have their numbers. The digits of
a cell that step along the axes of both leaves are *steps* of a block. One that steps along an axis
on one side and from leaf to leaf on the other is a *turn*: each leaf has its own, and all share one
block. So a hundred layers that are stacked are a hundred copies by one block.

Floats are told by their bits here, and a typed key is an array of its words: it has one more axis
than jax shows, the last, and the dtype uint32.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from ckpt_schema._layouts.leaves import dtype_of, key_words
from ckpt_schema._lens.codecs import Codec

__all__ = [
    "Block",
    "Check",
    "Copy",
    "Filling",
    "Kind",
    "Spot",
    "Step",
    "Task",
    "all_of",
    "bits_of",
    "gaps",
]

Spot = tuple[int, int]
"""An axis of a leaf, and how many elements a step goes there; it may go back on the view's side."""


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """A digit of a block.

    Attributes:
        size: How many steps it has.
        at: Where a step goes in what is read, and in what is written. None on the first side: every
            step writes the same elements again. Of a turn one of both is None: the other side is
            another leaf at each step.
        is_turn: Whether a copy takes one step of it, and not all.
    """

    size: int
    at: tuple[Spot | None, Spot | None]
    is_turn: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Block:
    """Elements of one leaf that are elements of another.

    Attributes:
        starts: The first element in what is read, and in what is written, at step 0 of each turn.
        steps: How both go on from there. No two steps of a side reach one element.
        codec: What happens to each element.
    """

    starts: tuple[tuple[int, ...], tuple[int, ...]]
    steps: tuple[Step, ...]
    codec: Codec = ()

    @property
    def count(self) -> int:
        """How many elements one copy has."""
        return math.prod(step.size for step in self.steps if not step.is_turn)

    @property
    def is_empty(self) -> bool:
        """Whether it has no element, or no copy."""
        return any(step.size == 0 for step in self.steps)


def all_of(shape: Sequence[int]) -> Block:
    """All of an array as it is."""
    start = (0,) * len(shape)
    steps = tuple(Step(size, ((axis, 1), (axis, 1))) for axis, size in enumerate(shape))
    return Block((start, start), steps)


@dataclasses.dataclass(frozen=True, slots=True)
class Copy:
    """One block, read and written.

    Attributes:
        source: The number of the leaf that is read, among the inputs of the task.
        result: The number of the leaf that is written, among its results.
        block: Which elements.
        turns: For each turn of the block, in their order, which step of it is taken.
        compares: Whether what is there already, by another copy, has to be equal to the last bit;
            nothing is written.
    """

    source: int
    result: int
    block: Block
    turns: tuple[int, ...] = ()
    compares: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Filling:
    """Elements of a result that no input has.

    Attributes:
        result: The number of the leaf that is written, among the results of the task.
        block: Which elements: nothing is read, all steps are of the view's side.
        bits: What each of them holds: the bits of a value of the leaf's dtype, as an unsigned
            number.
    """

    result: int
    block: Block
    bits: int


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """Elements of an input that no result has: they hold what the way back fills in.

    Attributes:
        source: The number of the leaf, among the inputs of the task.
        block: Which elements: nothing is written, all steps are of the source's side.
        bits: What each of them has to hold.
        fill: The same as a user said it, for messages.
    """

    source: int
    block: Block
    bits: int
    fill: float | int | bool


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """What a leaf is.

    Attributes:
        shape: Its shape as jax shows it: without the words of a key.
        dtype: The name of its dtype: ``float32``, ``key<fry>``.
    """

    shape: tuple[int, ...]
    dtype: str

    @property
    def stored(self) -> tuple[int, ...]:
        """The shape of what blocks count: of keys, the words."""
        words = (key_words(self.dtype),) if self.dtype.startswith("key<") else ()
        return (*self.shape, *words)


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """Leaves that are made of others, all together: nothing else reads or writes any of them.

    Attributes:
        inputs: What is read.
        results: What is made. Every element of each is written once, by a copy or a filling.
        copies: The blocks, in the order of the results that they write.
        fillings: What no input has.
        checks: What has to hold of the inputs besides.
    """

    inputs: tuple[Kind, ...]
    results: tuple[Kind, ...]
    copies: tuple[Copy, ...]
    fillings: tuple[Filling, ...] = ()
    checks: tuple[Check, ...] = ()

    @property
    def writers(self) -> list[list[Copy]]:
        """The copies that write each result."""
        copies: list[list[Copy]] = [[] for _ in self.results]
        for copy in self.copies:
            if not copy.compares:
                copies[copy.result].append(copy)
        return copies

    @property
    def is_move(self) -> bool:
        """Whether the one leaf that is made is the one that is read, as it is."""
        if len(self.copies) != 1 or self.fillings or self.checks or self.inputs != self.results:
            return False
        block = self.copies[0].block
        if block.codec or any(step.is_turn or step.at[0] != step.at[1] for step in block.steps):
            return False
        # Each step goes on both sides alike, but only a part of the leaf may be read.
        return block.count == math.prod(self.inputs[0].stored)


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


def bits_of(value: float | int | bool, dtype: str) -> int:
    """The bits of a number in a dtype, as an unsigned integer.

    Example:
        >>> hex(bits_of(1.0, "bfloat16")), bits_of(-1, "int8")
        ('0x3f80', 255)
    """
    array = np.asarray(value).astype(dtype_of(dtype))
    return int.from_bytes(array.tobytes(), "little")
