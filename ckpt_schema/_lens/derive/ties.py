"""Tied leaves: which rows of a layout are one leaf, stored twice.

`derivation` leaves copies out where it looks for partners, and then joins each of them with what its
original is joined with. Such a join writes nothing on the copy's other side: it compares.

    tie("head", of="embed"):  embed -> wte is written, head -> wte is compared with it
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ckpt_schema._layouts.table import Layout
from ckpt_schema._lens.derive.leaf_rules import Told
from ckpt_schema._lens.derive.scope import Hit, Scope
from ckpt_schema._lens.rules import Rename, Rule, Tie
from ckpt_schema.errors import Mismatch

__all__ = ["Copies", "originals"]


def originals(table: Layout, ties: Scope[Tie]) -> dict[int, list[tuple[Hit[Tie], int]]]:
    """For each row that rules call a copy: the rules, the one that holds first, and the number of what it is a copy of."""
    if not ties:
        return {}
    numbers = {row.path: number for number, row in enumerate(table.rows)}
    of_copies: dict[int, list[tuple[Hit[Tie], int]]] = {}
    for number, hits in ties.along(table.rows).items():
        row = table.rows[number]
        for hit in hits:
            # A rule for a node ties each leaf below it with the one of the same name there.
            of = numbers.get((*row.path[: hit.start], *hit.rule.of, *row.path[hit.end :]))
            if of is not None:
                of_copies.setdefault(number, []).append((hit, of))
    return of_copies


Order = tuple[int, ...]
"""Which axis of the first of two leaves each of the second is."""


@dataclasses.dataclass(frozen=True)
class Copies:
    """The rows of both sides that rules call copies.

    Attributes:
        tables: The source and the view.
        of: For each side, the copies by number, each with the number of what it is a copy of.
        orders: For each side, the order of the axes of each copy, where a rule says it.
    """

    tables: tuple[Layout, Layout]
    of: tuple[Mapping[int, int], Mapping[int, int]]
    orders: tuple[Mapping[int, Order | None], Mapping[int, Order | None]]

    @classmethod
    def by(cls, source: Layout, view: Layout, rules: Sequence[Rule]) -> Copies:
        """Those by some rules."""
        ties = Scope((rule.copy, rule) for rule in rules if isinstance(rule, Tie))
        of: tuple[dict[int, int], dict[int, int]] = {}, {}
        orders: tuple[dict[int, Order | None], dict[int, Order | None]] = {}, {}
        for side, table in enumerate((source, view)):
            for number, several in originals(table, ties).items():
                hit, of[side][number] = several[0]
                orders[side][number] = hit.rule.axes
        return cls((source, view), of, orders)

    def compares(self, source: int, view: int) -> tuple[bool, bool]:
        """For each side of a pair, whether it has another partner, which writes it: a copy is compared with it."""
        return view in self.of[1], source in self.of[0]

    def said(self, said: Told, source: int, view: int) -> Told:
        """What is said of a pair of which one is a copy, from what is said of what that is a copy of."""
        before, after = self.orders[0].get(source), self.orders[1].get(view)
        order = after if before is None else before
        if order is None:
            return said
        axes = [*range(len(order))] if said.axes is None else [*said.axes]
        if len(axes) == len(order):  # or else it is refused, as it was said
            # copy -> original -> view: for each axis of the original the rule has one of the copy.
            if before is not None:
                axes = [before[axis] for axis in axes]
            # source -> original -> copy: on the way to the copy the same rule is read backwards.
            if after is not None:
                axes = [axes[after.index(at)] for at in range(len(axes))]
            order = tuple(axes)
        return dataclasses.replace(said, axes=order)

    def told(self, fault: Mismatch, source: int, view: int) -> Mismatch:
        """A fault of such a pair: the order of axes is said by the rule that ties them."""
        side = 0 if source in self.of[0] else 1
        copy = (source, view)[side]
        rows = self.tables[side].rows
        hint = fault.hint
        ties: list[Any] = []
        # The fault knows no ties, and offers a rename. That would speak of the original as well.
        for rule in fault.rules:
            if not isinstance(rule, Rename) or rule.axes is None:
                continue
            axes = rule.axes
            if side == 1:  # it says the axes of the copy
                axes = tuple(axes.index(at) for at in range(len(axes)))
            tie = Tie(rows[copy].model_path, rows[self.of[side][copy]].model_path, axes)
            hint = hint.replace(str(rule), str(tie))
            ties.append(tie)
        return dataclasses.replace(fault, hint=hint, rules=tuple(ties)) if ties else fault
