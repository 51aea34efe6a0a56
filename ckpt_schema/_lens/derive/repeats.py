"""Factors that repeat: what one side keeps several times, one beside the other, and the other side once.

`relations` asks `once` for both rows without their copies, and relates those. The copies get tokens
that the other side has not, which the core reads as the same elements again:

    repeat("attn/k", times="group"):  [heads*group, dim]  ->  [heads, dim], and "group" again
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts.dims import Sum
from ckpt_schema._layouts.table import Row
from ckpt_schema._lens.axis_rules import Repeated
from ckpt_schema._lens.derive.axis_names import fault
from ckpt_schema._lens.derive.scope import Hit, is_mirror
from ckpt_schema._lens.rules import Reset
from ckpt_schema._lens.spellings import Token
from ckpt_schema.errors import Mismatch

__all__ = ["Once", "count_of", "once", "repeated_by", "unlike_moments"]

Spot = tuple[int, int]
"""A factor of a leaf: of which axis, and which one there."""


@dataclasses.dataclass(frozen=True, slots=True)
class Once:
    """A row that keeps something several times.

    Attributes:
        full: The row.
        again: The factors that repeat what the others hold.
    """

    full: Row
    again: frozenset[Spot] = frozenset()

    @property
    def row(self) -> Row:
        """The row with one of each; an axis that has nothing but copies is none of its."""
        if not self.again:
            return self.full
        leaf = self.full.leaf
        only_copies: list[int] = []
        for at, number in self.again:
            if len(leaf.dims[at]) == 1:
                only_copies.append(at)
            # A factor of 1 in its place leaves the numbers of the others as they are.
            leaf = leaf.with_factors(at, number, number + 1, (1,))
        # From the last one on: what is taken away moves none of the axes that come next.
        for at in sorted(only_copies, reverse=True):
            leaf = leaf.without_axis(at)
        return dataclasses.replace(self.full, leaf=leaf)

    def tokens(self, own: Sequence[Token]) -> list[Token]:
        """What each factor is, those of size 1 left out, from what each of the row with one of each is."""
        left = iter(own)
        tokens: list[Token] = []
        for at, dim in enumerate(self.full.leaf.dims):
            for number, factor in enumerate(dim):
                if (at, number) in self.again:
                    tokens.append(("repeat", at, number))
                elif factor != 1:
                    tokens.append(next(left))
        return tokens


def once(source: Row, view: Row, rules: Sequence[Repeated]) -> tuple[Once, Once] | Mismatch:
    """Both rows, with what rules say is repeated on one of them; or why nobody can say where."""
    rows = source, view
    again: tuple[set[Spot], set[Spot]] = set(), set()
    for rule in rules:
        spots = [repeated_by(row, rule) for row in rows]
        if all(spots):
            continue  # both sides keep as many: to neither is it a repeat
        # Where neither has the factor nothing is added: that the rule is idle is told elsewhere.
        side = 0 if spots[0] else 1
        if len(spots[side]) > 1:
            return fault(source, view, "ambiguous", _which(rows[side], rule, spots[side]))
        again[side].update(spots[side])
    return Once(source, frozenset(again[0])), Once(view, frozenset(again[1]))


def repeated_by(row: Row, rule: Repeated) -> list[Spot]:
    """Where a row has the factor that a rule says repeats."""
    spots: list[Spot] = []
    for at, dim in enumerate(row.leaf.dims):
        if rule.axis not in (None, dim):
            continue
        for number, factor in enumerate(dim):
            if factor == rule.times:
                spots.append((at, number))
    return spots


def count_of(row: Row, rule: Repeated) -> int:
    """How often a row has the factor that a rule says repeats, in sums or by itself."""
    count = 0
    waiting = [*row.leaf.dims]
    while waiting:
        for factor in waiting.pop():
            count += factor == rule.times
            if isinstance(factor, Sum):
                waiting += factor.terms
    return count


def _which(row: Row, rule: Repeated, spots: Sequence[Spot]) -> str:
    """What to do where a leaf has the factor of a rule more than once."""
    axes: dict[str, None] = {}
    for at, _ in spots:
        axes[dims_.format_dim(row.leaf.dims[at])] = None
    why = f"{rule.times} is a factor of {row.stored} more than once"
    # An axis is said by its size: where two of them are written alike that would say nothing.
    if len(axes) < len(spots) or rule.axis is not None:
        return f"{why}: call the one that repeats by a name of its own"
    first, second, *_ = axes
    return f"{why}: say which axis it repeats, axis={first!r} or axis={second!r}"


def unlike_moments(before: Row, after: Row, hits: Sequence[Hit[object]]) -> Mismatch | None:
    """The fault of what an optimizer keeps for a param that is repeated, where no rule speaks of it itself.

    Each copy gets a gradient of its own, and what stands once gets their sum: moments of copies are
    neither equal nor told by those of the one.
    """
    if not is_mirror(before) and not is_mirror(after):
        return None
    rules: list[Repeated] = []
    for hit in hits:
        if isinstance(hit.rule, Repeated):
            # From the root on, a rule speaks of the optimizer state itself.
            if hit.start == 0:
                return None
            rules.append(hit.rule)
    for rule in rules:
        # Where both sides have copies, or neither has any, their moments are alike too.
        if bool(repeated_by(before, rule)) == bool(repeated_by(after, rule)):
            continue
        anew = Reset(before.path, after.path)
        same = dataclasses.replace(rule, path=after.path)
        expected = f"what becomes of it where {rule} holds"
        why = "each copy has a gradient of its own, and what stands once has their sum"
        hint = (
            f"say {anew} to start it anew, or {same} where you know that all copies have the same"
        )
        return Mismatch(
            "/".join(after.path), "rule", expected, why, hint, mirrors=after.mirrors, rules=(anew,)
        )
    return None
