"""Levels of repetition: which layers of one row are which of another, whatever each side makes of them.

`relations` asks it of two rows that are one leaf, before it looks at the leaf's own axes. A row of
3 blocks of 2 layers has two levels; whether a level is an axis of a stack or the places in a list is
no matter here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts.dims import DimFactor
from ckpt_schema._layouts.table import Row
from ckpt_schema._lens.derive.axis_names import fault
from ckpt_schema._lens.spellings import Token, of_dim
from ckpt_schema.errors import Mismatch

__all__ = ["Levels", "levels_of"]


@dataclasses.dataclass(frozen=True, slots=True)
class Levels:
    """What the levels of two rows have in common.

    Attributes:
        tokens: For each side and each of its levels, what each factor of the level is.
        blocks: For each side, factors that are the other's together, and not one by one.
    """

    tokens: tuple[list[list[Token]], list[list[Token]]]
    blocks: tuple[list[Token], list[Token]] = dataclasses.field(default=([], []))


@dataclasses.dataclass(frozen=True, slots=True)
class _Factors:
    """The factors of all levels of a row, outermost first.

    Attributes:
        sizes: The factors: ``["blocks", 2, "depth"]`` of the levels ``blocks`` and ``2*depth``.
        levels: For each, the number of its level: ``[0, 1, 1]``.
        count: How many levels there are.
    """

    sizes: list[DimFactor]
    levels: list[int]
    count: int

    @classmethod
    def of(cls, row: Row) -> _Factors:
        """Those of a row."""
        sizes: list[DimFactor] = []
        levels: list[int] = []
        for level, repeat in enumerate(row.repeats):
            sizes += repeat.size
            levels += [level] * len(repeat.size)
        return cls(sizes, levels, len(row.repeats))

    def by_level(self, tokens: Sequence[Token]) -> list[list[Token]]:
        """A token for each factor, as lists of one level each."""
        lists: list[list[Token]] = [[] for _ in range(self.count)]
        for level, token in zip(self.levels, tokens, strict=True):
            lists[level].append(token)
        return lists


def levels_of(source: Row, view: Row) -> Levels | Mismatch:
    """The levels of two rows: by name, or where names do not tell, by position.

    A number is no name: 3 blocks of 2 layers are 2 blocks of 3, and not each block a layer.
    """
    ours, theirs = _Factors.of(source), _Factors.of(view)
    first: list[Token] = [("level", place) for place in range(len(ours.sizes))]
    # The usual case: both count alike, and by the same levels or by others, "3 2" beside "3*2".
    if ours.sizes == theirs.sizes:
        return Levels((ours.by_level(first), theirs.by_level(first)))
    if not _are_reordered(ours.sizes, theirs.sizes):
        return _in_blocks(source, view, ours, theirs)
    if len(set(ours.sizes)) < len(ours.sizes):
        why = "levels of one size in another order: count them with named dims"
        return fault(source, view, "ambiguous", why)
    # Every name stands once on each side, so it tells which level is which.
    second: list[Token] = [("level", ours.sizes.index(factor)) for factor in theirs.sizes]
    return Levels((ours.by_level(first), theirs.by_level(second)))


def _are_reordered(ours: Sequence[DimFactor], theirs: Sequence[DimFactor]) -> bool:
    """Whether both sides count by the same factors, and only names have changed their places."""
    if sorted(map(str, ours)) != sorted(map(str, theirs)):
        return False
    pairs = zip(ours, theirs, strict=True)
    return not any(isinstance(factor, int) and factor != other for factor, other in pairs)


def _counts(row: Row) -> str:
    return " ".join(dims_.format_dim(repeat.size) for repeat in row.repeats) or "none"


def _in_blocks(source: Row, view: Row, ours: _Factors, theirs: _Factors) -> Levels | Mismatch:
    """The same where layers stand in other blocks on each side, as many in all.

    What both sides have alike at the outer and at the inner end is matched one by one. What is left
    in between has as many layers on both sides, and no factor of it is one of the other side's:
    ``depth 3 2`` beside ``depth 6`` leaves ``3 2`` and ``6``.
    """
    head = _common_start(ours.sizes, theirs.sizes)
    # Behind the head only: of "2 2" beside "2" the one 2 that both have is not counted twice.
    tail = _common_start(ours.sizes[head:][::-1], theirs.sizes[head:][::-1])
    middles = (
        ours.sizes[head : len(ours.sizes) - tail],
        theirs.sizes[head : len(theirs.sizes) - tail],
    )
    if not all(middles) or of_dim(tuple(middles[0])) != of_dim(tuple(middles[1])):
        here, there = _counts(view), _counts(source)
        hint = f"repeats: {here} in the view, {there} in the source; count them with the same dim"
        return fault(source, view, "dims", hint)
    # Counted from the inner end, the last levels are the same on both sides, however long these are.
    first: list[Token] = [("level", number) for number in range(head)]
    last: list[Token] = [("level", number) for number in range(-tail, 0)]
    # Tokens of one side alone: that they are the other's together is for the core to work out.
    our_blocks: list[Token] = [("block", 0, number) for number in range(len(middles[0]))]
    their_blocks: list[Token] = [("block", 1, number) for number in range(len(middles[1]))]
    tokens = (
        ours.by_level([*first, *our_blocks, *last]),
        theirs.by_level([*first, *their_blocks, *last]),
    )
    return Levels(tokens, (our_blocks, their_blocks))


def _common_start(ours: Sequence[DimFactor], theirs: Sequence[DimFactor]) -> int:
    """How many factors two sequences have alike before the first that differs."""
    count = 0
    for factor, other in zip(ours, theirs, strict=False):
        if factor != other:
            break
        count += 1
    return count
