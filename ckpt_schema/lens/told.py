"""What rules say of one joined leaf, beyond what its types do."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from ckpt_schema.dims import Dim
from ckpt_schema.lens.rules import Factor, Padding, RawKey, Reverse, Rule, under
from ckpt_schema.table import Row

__all__ = ["UNTOLD", "Fill", "Told", "told", "unscaled"]


@dataclasses.dataclass(frozen=True, slots=True)
class Fill:
    """An axis that one side pads: its dim without padding, its dim with it, and what the padding holds."""

    small: Dim
    large: Dim
    value: float | int | bool


@dataclasses.dataclass(frozen=True, slots=True)
class Told:
    """What is said of a leaf.

    Attributes:
        raw: Whether it is a key on one side, and the raw data of one on the other.
        flips: The axes that run the other way.
        fills: The axes that one side pads.
        exponent: The view's values are two to this times the source's.
        rules: The rules that say so.
    """

    raw: bool = False
    flips: frozenset[Dim] = frozenset()
    fills: tuple[Fill, ...] = ()
    exponent: int = 0
    rules: tuple[Rule, ...] = ()

    @property
    def inverse(self) -> Told:
        """The same said of the way back."""
        return dataclasses.replace(self, exponent=-self.exponent)

    def then(self, other: Told) -> Told:
        """What is said of a leaf that goes on by another lens."""
        fills = tuple(dict.fromkeys((*self.fills, *other.fills)))
        return Told(
            self.raw or other.raw, self.flips ^ other.flips, fills, self.exponent + other.exponent
        )


UNTOLD = Told()
"""Nothing is said."""


def told(row: Row, rules: Iterable[Rule]) -> Told:
    """What rules say of a row of the view."""
    found = UNTOLD
    mirror = row.path[0] == "opt_state"
    for rule in rules:
        if not isinstance(rule, (RawKey, Reverse, Padding, Factor)):
            continue
        start = under(row, rule.path)
        if start is None or (isinstance(rule, Factor) and mirror and start > 0):
            continue
        used = (*found.rules, rule)
        if isinstance(rule, RawKey):
            found = dataclasses.replace(found, raw=True, rules=used)
        elif isinstance(rule, Reverse):
            found = dataclasses.replace(found, flips=found.flips ^ {rule.dim}, rules=used)
        elif isinstance(rule, Factor):
            found = dataclasses.replace(found, exponent=found.exponent + rule.exponent, rules=used)
        elif not any((fill.small, fill.large) == (rule.small, rule.large) for fill in found.fills):
            value = 0 if mirror and start > 0 else rule.fill
            found = dataclasses.replace(
                found, fills=(*found.fills, Fill(rule.small, rule.large, value)), rules=used
            )
    return found


def unscaled(row: Row, rules: Iterable[Rule]) -> Factor | None:
    """The rule that scales the leaf which a row of the optimizer state mirrors, where none says what becomes of the row."""
    factors = [rule for rule in rules if isinstance(rule, Factor)]
    if row.path[0] != "opt_state" or any(
        row.path[: len(rule.path)] == rule.path for rule in factors
    ):
        return None
    return next((rule for rule in factors if under(row, rule.path) is not None), None)
