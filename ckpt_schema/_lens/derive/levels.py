"""Levels of repetition: which layers of one row are which of another, whatever each side makes of them."""

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


def levels_of(source: Row, view: Row) -> Levels | Mismatch:
    """The levels of two rows: by name, or where names do not tell, by position.

    A number is no name: 3 blocks of 2 layers are 2 blocks of 3, and not each block a layer.
    """
    sides = _factors(source), _factors(view)
    factors = [[factor for _, factor in side] for side in sides]
    if factors[0] == factors[1]:
        named = [[("level", number) for number in range(len(factors[0]))]] * 2
    elif sorted(map(str, factors[0])) != sorted(map(str, factors[1])) or any(
        isinstance(one, int) and one != other for one, other in zip(*factors, strict=True)
    ):
        return _in_blocks(source, view, sides, factors)
    elif len(set(factors[0])) < len(factors[0]):
        why = "levels of one size in another order: count them with named dims"
        return fault(source, view, "ambiguous", why)
    else:
        named = [[("level", factors[0].index(factor)) for factor in side] for side in factors]
    return Levels((_by_level(source, sides[0], named[0]), _by_level(view, sides[1], named[1])))


def _factors(row: Row) -> list[tuple[int, DimFactor]]:
    """The factors of all levels of a row, each with the number of its level."""
    return [(level, f) for level, repeat in enumerate(row.repeats) for f in repeat.size]


def _counts(row: Row) -> str:
    return " ".join(dims_.format_dim(repeat.size) for repeat in row.repeats) or "none"


def _by_level(
    row: Row, factors: Sequence[tuple[int, DimFactor]], tokens: Sequence[Token]
) -> list[list[Token]]:
    levels: list[list[Token]] = [[] for _ in row.repeats]
    for (number, _), token in zip(factors, tokens, strict=True):
        levels[number].append(token)
    return levels


def _in_blocks(
    source: Row,
    view: Row,
    sides: Sequence[Sequence[tuple[int, DimFactor]]],
    factors: Sequence[Sequence[DimFactor]],
) -> Levels | Mismatch:
    """The same where layers stand in other blocks on each side, as many in all."""
    one, other = factors
    head = 0
    while head < min(len(one), len(other)) and one[head] == other[head]:
        head += 1
    tail = 0
    while tail < min(len(one), len(other)) - head and one[-1 - tail] == other[-1 - tail]:
        tail += 1
    middle = [side[head : len(side) - tail] for side in factors]
    if not all(middle) or of_dim(tuple(middle[0])) != of_dim(tuple(middle[1])):
        here, there = _counts(view), _counts(source)
        hint = f"repeats: {here} in the view, {there} in the source; count them with the same dim"
        return fault(source, view, "dims", hint)
    named: list[list[Token]] = []
    blocks: list[list[Token]] = []
    for side, own in enumerate(middle):
        blocks.append([("block", side, number) for number in range(len(own))])
        first: list[Token] = [("level", number) for number in range(head)]
        last: list[Token] = [("level", -1 - number) for number in reversed(range(tail))]
        named.append([*first, *blocks[-1], *last])
    tokens = _by_level(source, sides[0], named[0]), _by_level(view, sides[1], named[1])
    return Levels(tokens, (blocks[0], blocks[1]))
