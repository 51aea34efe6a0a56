"""Tied leaves: which rows of a layout are one leaf, stored twice."""

from __future__ import annotations

from collections.abc import Sequence

from ckpt_schema._layouts.table import Layout
from ckpt_schema._lens.derive.scope import Hit, Scope
from ckpt_schema._lens.rules import Rule, Tie

__all__ = ["copies", "originals"]


def originals(table: Layout, ties: Scope[Tie]) -> dict[int, list[tuple[Hit[Tie], int]]]:
    """For each row that rules call a copy: the rules, the one that holds first, and the number of what it is a copy of."""
    if not ties:
        return {}
    numbers = {row.path: number for number, row in enumerate(table.rows)}
    of_copies: dict[int, list[tuple[Hit[Tie], int]]] = {}
    for number, hits in ties.along(table.rows).items():
        row = table.rows[number]
        for hit in hits:
            of = numbers.get((*row.path[: hit.start], *hit.rule.of, *row.path[hit.end :]))
            if of is not None:
                of_copies.setdefault(number, []).append((hit, of))
    return of_copies


def copies(table: Layout, rules: Sequence[Rule]) -> dict[int, int]:
    """The rows that rules call copies, by number, each with the number of the row that it is a copy of."""
    ties = Scope((rule.copy, rule) for rule in rules if isinstance(rule, Tie))
    return {number: hits[0][1] for number, hits in originals(table, ties).items()}
