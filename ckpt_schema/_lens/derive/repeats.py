"""Factors that repeat: what one side keeps several times, one beside the other, and the other side once."""

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
        alone = [at for at, _ in self.again if len(leaf.dims[at]) == 1]
        for at, number in self.again:
            leaf = leaf.with_factors(at, number, number + 1, (1,))
        for at in sorted(alone, reverse=True):
            leaf = leaf.without_axis(at)
        return dataclasses.replace(self.full, leaf=leaf)

    def tokens(self, own: Sequence[Token]) -> list[Token]:
        """What each factor is, those of size 1 left out, from what each of the row with one of each is."""
        left, tokens = iter(own), list[Token]()
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
        side = 0 if spots[0] else 1
        if len(spots[side]) > 1:
            return fault(source, view, "ambiguous", _which(rows[side], rule, spots[side]))
        again[side].update(spots[side])
    return Once(source, frozenset(again[0])), Once(view, frozenset(again[1]))


def repeated_by(row: Row, rule: Repeated) -> list[Spot]:
    """Where a row has the factor that a rule says repeats."""
    spots: list[Spot] = []
    for at, dim in enumerate(row.leaf.dims):
        if rule.axis in (None, dim):
            spots += [(at, number) for number, factor in enumerate(dim) if factor == rule.times]
    return spots


def count_of(row: Row, rule: Repeated) -> int:
    """How often a row has the factor that a rule says repeats, in sums or by itself."""
    count, waiting = 0, [*row.leaf.dims]
    while waiting:
        for factor in waiting.pop():
            count += factor == rule.times
            if isinstance(factor, Sum):
                waiting += factor.terms
    return count


def _which(row: Row, rule: Repeated, spots: Sequence[Spot]) -> str:
    """What to do where a leaf has the factor of a rule more than once."""
    axes = list(dict.fromkeys(dims_.format_dim(row.leaf.dims[at]) for at, _ in spots))
    why = f"{rule.times} is a factor of {row.stored} more than once"
    if len(axes) < len(spots) or rule.axis is not None:
        return f"{why}: call the one that repeats by a name of its own"
    return f"{why}: say which axis it repeats, axis={axes[0]!r} or axis={axes[1]!r}"


def unlike_moments(before: Row, after: Row, hits: Sequence[Hit[object]]) -> Mismatch | None:
    """The fault of what an optimizer keeps for a param that is repeated, where no rule speaks of it itself.

    Each copy gets a gradient of its own, and what stands once gets their sum: moments of copies are
    neither equal nor told by those of the one.
    """
    rules = [hit for hit in hits if isinstance(hit.rule, Repeated)]
    for hit in rules:
        assert isinstance(hit.rule, Repeated)
        rule, rows = hit.rule, (before, after)
        here = [any(repeated_by(row, rule)) for row in rows]
        own = any(each.start == 0 for each in rules)
        if own or not any(is_mirror(row) for row in rows) or all(here) or not any(here):
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
