"""What rules say of a leaf, as they are documented, for the oracle of origins."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TypeVar

from ckpt_schema._frameworks.moment_names import DEGREES
from ckpt_schema._layouts.dims import Dim
from ckpt_schema._layouts.paths import LogicalPath, parse_path
from ckpt_schema._layouts.table import Row
from ckpt_schema._lens import expressions
from ckpt_schema._lens.axis_rules import Padding, Repeated, Reverse
from ckpt_schema._lens.rules import Factor, RawKey, Rule
from ckpt_schema._lens.value_rules import Offset, Rounding
from ckpt_schema.testing._named_arrays import Sizes
from ckpt_schema.testing._provenance import Line

__all__ = ["Statement", "rules_over", "start_in", "statement_of"]

T = TypeVar("T")


def start_in(row: Row, prefix: LogicalPath) -> int | None:
    """Where a path begins in that of a row: at the root or at the model's; None where it does not."""
    for start in (0, row.body):
        if start is not None and row.path[start : start + len(prefix)] == prefix:
            return start
    # What mirrors a param goes along with it, wherever the path of that one begins.
    return row.body if parse_path(row.mirrors)[: len(prefix)] == prefix else None


@dataclasses.dataclass(frozen=True)
class Statement:
    """What rules say of a leaf: whether it is raw data on one side, what is flipped, padded and scaled.

    It is open where each element comes from several, or nobody knows how it is scaled.
    """

    raw: bool = False
    flips: frozenset[Dim] = frozenset()
    pads: tuple[tuple[Dim, Dim, float], ...] = ()
    exponent: int = 0
    factor: float | str = 1.0
    power: int = 1
    amount: float = 0.0
    rounds: bool = False
    order: tuple[int, ...] | None = None
    is_open: bool = False

    @property
    def is_of_values(self) -> bool:
        """Whether nothing is said but what becomes of each element where it stands."""
        return not (self.raw or self.flips or self.pads or self.order or self.is_open)

    def line(self, sizes: Sizes, dtypes: Sequence[str]) -> Line:
        """What is said of floats, their power of two aside, whose dtypes are these."""
        factor = self.factor
        factor = expressions.value(factor, sizes) if isinstance(factor, str) else factor
        factor, alike = factor**self.power, len({*dtypes}) == 1
        # Without a word of rounding a cast is exact, or refused.
        keeps = abs(factor) == 1 and not self.amount and (alike or not self.rounds)
        reach = abs(self.amount)
        return Line(factor, self.amount, reach, frozenset[str]() if keeps else frozenset(dtypes))


def rules_over(row: Row, rules: Iterable[tuple[LogicalPath, T]]) -> list[tuple[int, T]]:
    """The rules that speak of a row, each with where its path begins in that of the row; the one that wins first.

    The longest path wins; of what an optimizer keeps for a param, one that begins at the root.
    """
    mirror = bool(row.mirrors)
    ranked: list[tuple[tuple[bool, int], int, T]] = []
    for path, rule in rules:
        start = start_in(row, path)
        if start is not None:
            # A path that begins at the model counts as if it were written from the root.
            ranked.append(((mirror and start > 0, -start - len(path)), start, rule))
    ranked.sort(key=lambda hit: hit[0])
    return [(start, rule) for _, start, rule in ranked]


def statement_of(row: Row, rules: Iterable[Rule]) -> Statement:
    """What rules say of a row of the view; of rules that say one kind of thing one wins. A moment is padded with 0."""
    mirror = bool(row.mirrors)
    flips, raw, exponent = set[Dim](), False, None
    factor: float | str = 1.0
    power, amount, rounds = 1, None, False
    pads: dict[tuple[Dim, Dim], float] = {}
    kinds = (RawKey, Reverse, Padding, Repeated, Factor, Offset, Rounding)
    spoken = [(r.path, r) for r in rules if isinstance(r, kinds)]
    is_open = False
    for start, rule in rules_over(row, spoken):
        # The rule that wins comes first: what a kind of rule has said already is not said again.
        if isinstance(rule, RawKey):
            raw = True
        elif isinstance(rule, Reverse):
            flips.add(rule.dim)
        elif isinstance(rule, Padding):
            pads.setdefault((rule.small, rule.large), 0 if mirror and start > 0 else rule.fill)
        elif isinstance(rule, Repeated):
            is_open = True  # each element comes from several
        elif isinstance(rule, Rounding):
            rounds = True
        elif isinstance(rule, Offset):
            follows = mirror and start > 0  # what depends on gradients alone is not shifted
            is_open = is_open or (amount is None and follows and _degree(row) is None)
            amount = amount if amount is not None else 0.0 if follows else rule.amount
        elif exponent is None:
            # A moment of degree d goes by the factor to the power of -d, and the param by itself.
            degree = _degree(row) if mirror and start > 0 else -1
            is_open = is_open or degree is None
            power, factor = -(degree or 0), rule.rest
            exponent = power * rule.exponent
    # What stands where two paddings meet depends on their order, which is that of the rules.
    order = list(dict.fromkeys((r.small, r.large) for r in rules if isinstance(r, Padding)))
    told = tuple((*axis, pads[axis]) for axis in order if axis in pads)
    scaled = exponent or 0, factor, power, amount or 0.0, rounds
    return Statement(raw, frozenset(flips), told, *scaled, is_open=is_open)


def _degree(row: Row) -> int | None:
    """The degree of a moment in the gradient of its param, whose path ends its own."""
    own = row.path[: len(row.path) - len(parse_path(row.mirrors)) + 1]
    # The innermost name counts: `nu` in `chain/1/nu/...`.
    for name in reversed(own):
        if name in DEGREES:
            return DEGREES[name]
    return None
