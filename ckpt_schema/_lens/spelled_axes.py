"""How a rule spells the axes of a leaf that no class declares: ``"heads*dim embed -> embed heads dim"``.

A layout that was read off a tree has sizes, and no names. So a rule that splits, joins or turns axes
names them itself, on both sides of an arrow, as einops does. Names hold within the rule, and their
sizes are read off the leaf.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator
from typing import TypeVar

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts.dims import Dims, Sum
from ckpt_schema._messages.text import shown
from ckpt_schema.errors import Mismatch, SchemaError

__all__ = ["ARROW", "SpelledAxes", "parse_spelled"]

ARROW = "->"

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, slots=True)
class SpelledAxes:
    """The axes of a leaf on both sides of a rule.

    Attributes:
        first: Those of the leaf before the arrow.
        others: Those of each leaf behind it: one, or one for each part.
        text: As they were written.
    """

    first: Dims
    others: tuple[Dims, ...]
    text: str

    def __str__(self) -> str:
        """As they were written."""
        return self.text

    def of_part(self, number: int) -> Dims:
        """The axes of a part; one spelling serves all parts that are alike."""
        return self.others[number if len(self.others) > 1 else 0]


def parse_spelled(rule: str, text: str, parts: int | None = None) -> SpelledAxes:
    """The axes that a rule spells.

    Args:
        rule: The name of the rule, for messages.
        text: Axes, an arrow and axes; behind the arrow of a fused leaf those of each part, separated
            by commas, or once for all.
        parts: How many parts there are; None where the rule speaks of one leaf on both sides.

    Raises:
        SchemaError: With everything that is wrong with it.

    Example:
        >>> spelled = parse_spelled("rename", "heads*dim embed -> embed heads dim")
        >>> dims_.format_dims(spelled.first), dims_.format_dims(spelled.of_part(0))
        ('heads*dim embed', 'embed heads dim')
    """
    # Commas part the leaves behind the arrow, and spaces the axes of each.
    before, _, after = text.partition(ARROW)
    others = tuple(map(dims_.parse_dims, after.split(",")))
    spelled = SpelledAxes(dims_.parse_dims(before), others, " ".join(text.split()))
    faults = [*_faults(spelled, parts)]
    if faults:
        raise SchemaError(f"{rule}(...) is not well formed", faults)
    return spelled


def _faults(spelled: SpelledAxes, parts: int | None) -> Iterator[Mismatch]:
    """What is wrong with axes that were spelled."""
    example = "heads*dim embed -> embed heads dim"
    if parts is not None:
        example = "embed q+k+v -> embed q, embed k, embed v"

    def fault(expected: str, found: str) -> Mismatch:
        return Mismatch("axes", "declaration", expected, found, f"such as {example!r}")

    count = 1 if parts is None else parts
    if ARROW not in spelled.text or not spelled.first or not all(spelled.others):
        yield fault("the axes of a leaf on both sides of an arrow", shown(spelled.text))
        return
    if len(spelled.others) not in (1, count):
        yield fault(f"axes for each of {count} leaves behind the arrow", f"{len(spelled.others)}")
    before = _names(spelled.first)
    twice = _several(before)
    behind: set[str] = set()
    for dims in spelled.others:
        there = _names(dims)
        twice += _several(there)
        behind |= there.keys()
        unknown = sorted(there.keys() - before.keys())
        if unknown:
            yield fault("the same names on both sides", f"{' '.join(unknown)} behind the arrow")
    if twice:
        yield fault("each name once on each side", f"{' '.join(dict.fromkeys(twice))} again")
    # A part need not have all of them, but together the parts are the whole.
    lost = sorted(before.keys() - behind)
    if lost:
        yield fault("the same names on both sides", f"{' '.join(lost)} before the arrow alone")
    # The axis that parts share is a sum, or has a number: what follows is of one leaf alone.
    if parts is not None:
        return
    if any(isinstance(factor, Sum) for factor in dims_.factors(spelled.first)):
        yield fault("names and products of them", dims_.format_dims(spelled.first))
    # A number is told by being the only one of its size: of "2 2 -> 2 2" nobody knows which is which.
    numbers = _numbers(spelled.first)
    others = [_numbers(dims) for dims in spelled.others]
    if any(map(_several, (numbers, *others))):
        yield fault("each number once on each side", spelled.text)
    elif any(there != numbers for there in others):
        yield fault("the same numbers on both sides", spelled.text)


def _several(counts: collections.Counter[_T]) -> list[_T]:
    """What occurs more than once."""
    return [one for one, count in counts.items() if count > 1]


def _numbers(dims: Dims) -> collections.Counter[int]:
    """How often each number but 1 occurs."""
    counts: collections.Counter[int] = collections.Counter()
    for factor in dims_.factors(dims):
        # An axis of size 1 may stand anywhere, and on one side alone.
        if isinstance(factor, int) and factor != 1:
            counts[factor] += 1
    return counts


def _names(dims: Dims) -> collections.Counter[str]:
    """How often each name occurs."""
    counts: collections.Counter[str] = collections.Counter()
    for factor in dims_.factors(dims):
        if isinstance(factor, str):
            counts[factor] += 1
        elif isinstance(factor, Sum):
            counts += _names(factor.terms)
    return counts
