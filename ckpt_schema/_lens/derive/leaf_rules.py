"""What rules say of one joined leaf, beyond what its types do."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Sequence

from ckpt_schema._layouts.dims import Dim
from ckpt_schema._layouts.leaves import Fill, Init
from ckpt_schema._layouts.table import Row
from ckpt_schema._lens.axis_rules import Grown, Padding, Repeated, Reverse
from ckpt_schema._lens.cells import Constant
from ckpt_schema._lens.derive.scope import Hit, Scope, is_mirror
from ckpt_schema._lens.rules import Factor, RawKey, Rule

__all__ = ["UNTOLD", "PaddedAxis", "Told", "ValueRule", "by_family", "spoken", "told", "unscaled"]


@dataclasses.dataclass(frozen=True, slots=True)
class PaddedAxis:
    """An axis, or layers, of which one side has more: the dim that both have, that of this side, and what is in the rest.

    That is padding, or what has no partner on the other side.
    """

    small: Dim
    large: Dim
    rest: Constant

    @classmethod
    def of(cls, small: Dim, large: Dim, fill: float) -> PaddedAxis:
        """One whose rest is padding."""
        return cls(small, large, Constant(Fill(fill), is_fill=True))


@dataclasses.dataclass(frozen=True, slots=True)
class Told:
    """What is said of a leaf.

    Attributes:
        raw: Whether it is a key on one side, and the raw data of one on the other.
        flips: The axes that run the other way.
        fills: The axes that one side pads. Of one axis there are two where layouts between were padded
            otherwise: what the source's padding holds, then what the view's does.
        exponent: The view's values are two to this times the source's.
        repeats: The rules that say which factors of one side repeat.
        rules: The rules that say so.
        axes: Which of the source's own axes each of the view's is, where a rule says it.
    """

    raw: bool = False
    flips: frozenset[Dim] = frozenset()
    fills: tuple[PaddedAxis, ...] = ()
    exponent: int = 0
    repeats: tuple[Repeated, ...] = ()
    rules: tuple[Rule, ...] = ()
    axes: tuple[int, ...] | None = None

    @property
    def inverse(self) -> Told:
        """The same said of the way back."""
        back = self.axes and tuple(self.axes.index(at) for at in range(len(self.axes)))
        return dataclasses.replace(self, fills=self.fills[::-1], exponent=-self.exponent, axes=back)

    def scaled(self, factor: Factor, power: int) -> Told:
        """The same of what an optimizer keeps for a leaf that a rule scales, which goes by a power of the factor."""
        both = (*self.rules, factor)
        return dataclasses.replace(self, exponent=factor.exponent * power, rules=both)

    @property
    def ends(self) -> tuple[tuple[PaddedAxis, PaddedAxis], ...]:
        """Of each axis that is padded, what the source's padding holds, and what the view's does."""
        found: dict[tuple[Dim, Dim], tuple[PaddedAxis, PaddedAxis]] = {}
        for fill in self.fills:
            pair = fill.small, fill.large
            found[pair] = found.get(pair, (fill, fill))[0], fill
        return tuple(found.values())


UNTOLD = Told()
"""Nothing is said."""


ValueRule = RawKey | Reverse | Padding | Grown | Repeated | Factor
"""A rule that speaks of what is in a leaf."""


def spoken(rules: Iterable[Rule]) -> Scope[ValueRule]:
    """Those among ``rules`` that speak of what is in leaves, by the view's paths."""
    kinds = (RawKey, Reverse, Padding, Grown, Repeated, Factor)
    entries = ((rule.path, rule) for rule in rules if isinstance(rule, kinds))
    return Scope(entries, follows=True)


def by_family(row: Row, hits: Sequence[Hit[ValueRule]]) -> dict[Hashable, list[Hit[ValueRule]]]:
    """What is said of a row of the view; of rules that say one kind of thing, the first one holds."""
    mirror = is_mirror(row)
    found: dict[Hashable, list[Hit[ValueRule]]] = {}
    for hit in hits:
        if not (isinstance(hit.rule, Factor) and mirror and hit.start > 0):
            found.setdefault(_family(hit.rule), []).append(hit)
    return found


def _family(rule: ValueRule) -> Hashable:
    if isinstance(rule, Reverse):
        return Reverse, rule.dim
    if isinstance(rule, (Padding, Grown)):
        return Padding, rule.small, rule.large
    if isinstance(rule, Repeated):
        return Repeated, rule.times
    return type(rule)


def told(row: Row, spoken_of: Sequence[Hit[ValueRule]]) -> Told:
    """What rules that speak of a row of the view say of it."""
    hits = [hits[0] for hits in by_family(row, spoken_of).values()]
    if not hits:
        return UNTOLD
    hits.sort(key=lambda hit: hit.number)
    raw, exponent = False, 0
    flips: list[Dim] = []
    fills: list[PaddedAxis] = []
    repeats: list[Repeated] = []
    for hit in hits:
        rule = hit.rule
        if isinstance(rule, RawKey):
            raw = True
        elif isinstance(rule, Reverse):
            flips.append(rule.dim)
        elif isinstance(rule, Factor):
            exponent = rule.exponent
        elif isinstance(rule, Repeated):
            repeats.append(rule)
        else:
            fills.append(_more(rule, follows=hit.start > 0 and is_mirror(row)))
    rules = tuple([hit.rule for hit in hits])
    return Told(raw, frozenset(flips), tuple(fills), exponent, tuple(repeats), rules)


def _more(rule: Padding | Grown, *, follows: bool) -> PaddedAxis:
    """What a rule says of an axis; of what an optimizer keeps, which follows the param, it starts as that starts it."""
    if isinstance(rule, Padding):
        return PaddedAxis.of(rule.small, rule.large, 0 if follows else rule.fill)
    return PaddedAxis(rule.small, rule.large, Constant(Init() if follows else rule.default))


def unscaled(row: Row, hits: Sequence[Hit[ValueRule]]) -> Factor | None:
    """The rule that scales the leaf which a row of the optimizer state mirrors, where none speaks of the row itself."""
    if not is_mirror(row):
        return None
    factors = [(hit.start, hit.rule) for hit in hits if isinstance(hit.rule, Factor)]
    if not factors or factors[0][0] == 0:
        return None
    return factors[0][1]
