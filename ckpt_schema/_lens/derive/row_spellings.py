"""How a row keeps its factors: from the dims and levels of a row to the spelling that the core reads.

`relations` says with tokens which factors of two rows are the same, and gets here what each row makes
of them. For ``[heads, dim]``, stacked on its first axis for each of ``depth`` layers, that is

    depth | heads | dim      the axes of the array, each of one span of one factor

A factor of size 1 has no token: it says nothing of where an element stands.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts.sizes import Size
from ckpt_schema._layouts.table import Row
from ckpt_schema._lens.derive.axis_names import sized
from ckpt_schema._lens.derive.row_parts import RowPart, Within
from ckpt_schema._lens.spellings import Span, Spelling, Token, of_dim

__all__ = ["SpelledRow", "leaf_tokens", "level_tokens", "spelled_row"]


def leaf_tokens(row: Row) -> list[Token]:
    """A token for each factor of a leaf's own axes."""
    factors = sized(dims_.factors(row.leaf.dims))
    return [("leaf", number) for number, _ in enumerate(factors)]


def level_tokens(row: Row) -> list[list[Token]]:
    """A token for each factor of each level of a row."""
    levels: list[list[Token]] = []
    for number, repeat in enumerate(row.repeats):
        levels.append([("level", number, place) for place, _ in enumerate(repeat.size)])
    return levels


@dataclasses.dataclass(frozen=True, slots=True)
class SpelledRow:
    """How a row keeps its factors.

    Attributes:
        spelling: The axes of the row, those of its key first.
        spots: Which span, by axis and number, what is within more elements is.
    """

    spelling: Spelling
    spots: Mapping[Within, tuple[int, int]]


class _KeptSpan(NamedTuple):
    """A span of an axis, and what tells that it stands within more elements."""

    span: Span
    within: Within | None


_Axis = list[_KeptSpan]


def spelled_row(
    part: RowPart, factors: Sequence[Token], levels: Sequence[Sequence[Token]], words: int
) -> SpelledRow:
    """How a row keeps its factors.

    Args:
        part: The row.
        factors: What each factor of the leaf's own axes is, those of size 1 left out.
        levels: For each level of repetition, what each of its factors is.
        words: How many words the last axis has, of keys.
    """
    row = part.row
    # Tokens are handed out in the order of the axes, for factors of size 1 have none.
    remaining = iter(factors)
    axes: list[_Axis] = []
    for number, dim in enumerate(row.leaf.dims):
        tokens: list[tuple[Token | None, Size]] = []
        for factor in dim:
            token = None if factor == 1 else next(remaining)
            tokens.append((token, of_dim((factor,))))
        axes.append(_axis(("axis", number), tokens, part.within))
    stacks: list[_Axis] = []
    for number, (repeat, level) in enumerate(zip(row.repeats, levels, strict=True)):
        tokens = []
        for token, factor in zip(level, repeat.size, strict=True):
            tokens.append((token, of_dim((factor,))))
        stacks.append(_axis(("level", number), tokens, part.within))
    # The index symbols of the key are axes like any other, and come first.
    in_order: list[_Axis] = []
    for number, repeat in enumerate(row.repeats):
        if repeat.axis is None:
            in_order.append(stacks[number])
    for kind, number in row.axes:
        in_order.append(axes[number] if kind == "axis" else stacks[number])
    # A key's words are its last axis, as those of raw data are. No layer or part divides them.
    if words:
        size = Size.of(words)
        in_order.append([_KeptSpan(Span((("words", size),), size), None)])
    spelling: list[tuple[Span, ...]] = []
    spots: dict[Within, tuple[int, int]] = {}
    for number, axis in enumerate(in_order):
        spelling.append(tuple([kept.span for kept in axis]))
        for place, kept in enumerate(axis):
            if kept.within:
                spots[kept.within] = number, place
    return SpelledRow(tuple(spelling), spots)


def _axis(
    at: tuple[str, int], factors: Sequence[tuple[Token | None, Size]], within: Sequence[Within]
) -> _Axis:
    """The spans of an axis: of what stands within more elements one, of every other factor one.

    Of ``heads*dim``, where ``dim`` is padded to 128, they are ``heads``, and ``dim`` within 128.
    """
    axis: _Axis = []
    starting = {each.first: each for each in within if each.at == at}
    number = 0
    # What is within may have no factor of its own, at the end of the axis too: a part that is 1.
    while number < len(factors) or number in starting:
        held = starting.pop(number, None)
        end = number + 1 if held is None else held.last
        inner = tuple([(token, size) for token, size in factors[number:end] if token is not None])
        if held is not None:
            axis.append(_KeptSpan(Span(inner, held.size, held.start), held))
        elif inner:
            axis.append(_KeptSpan(Span(inner, inner[0][1]), None))
        # Of none, the number stays, and what comes next there is found: each is taken out once.
        number = end
    return axis
