"""The joins of leaves that have found each other: what rules say of their values, and the cells.

In `derivation.join_rows` this is the last step but the faults: `pairing` has told which rows are one
leaf, `relations` and `parts` know the elements, and here the words of rules are put to each pair.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from ckpt_schema._layouts.sizes import Size, UndecidedError
from ckpt_schema._layouts.table import Layout, Row
from ckpt_schema._lens.cells import Cell
from ckpt_schema._lens.derive.bounds import composed_if_known
from ckpt_schema._lens.derive.joins import Join
from ckpt_schema._lens.derive.leaf_rules import (
    UNTOLD,
    Told,
    ValueRule,
    spoken,
    told,
    unscaled,
    unshifted,
)
from ckpt_schema._lens.derive.moments import Moments
from ckpt_schema._lens.derive.names import Decision
from ckpt_schema._lens.derive.pairing import Members, RowsByPart, SharedLeaf
from ckpt_schema._lens.derive.private_pairs import PrivatePairs
from ckpt_schema._lens.derive.relations import relate, undecided
from ckpt_schema._lens.derive.repeats import unlike_moments
from ckpt_schema._lens.derive.scope import Hit, Spoken
from ckpt_schema._lens.derive.ties import Copies
from ckpt_schema._lens.derive.wholes import both_divided, divided
from ckpt_schema._lens.rules import Rename, Rule
from ckpt_schema.errors import Mismatch

__all__ = ["LeafJoins", "SaidOfSides", "said_of_parts", "with_moments"]

SaidOfSides = tuple[Spoken[ValueRule], Spoken[ValueRule]]
"""For the source and the view, what rules say of the values in its rows, by the rows' numbers."""


def said_of_parts(
    source: Layout,
    rules: Sequence[Rule],
    said: Spoken[ValueRule],
    members: Iterable[Members],
) -> Spoken[ValueRule]:
    """What rules say of the source's rows that are parts, or have parts, by the source's own paths.

    A rule speaks of the view's rows. One for none of these may be for a part that the view has in
    a whole: ``scale("attn/q", 2.0)`` where the view has ``attn/qkv`` alone.
    """
    if not any(members):
        return {}
    # What speaks of a row of the view is for that row alone, though the source may have such a path.
    used: set[int] = set()
    for hits in said.values():
        for hit in hits:
            used.add(id(hit.rule))
    return spoken([rule for rule in rules if id(rule) not in used]).along(source.rows)


@dataclasses.dataclass(frozen=True)
class LeafJoins:
    """Makes the joins of one derivation.

    Attributes:
        tables: The source and the view.
        known: Sizes that are given beforehand, for what is open for all sizes.
        moments: What knows how the optimizer states go along with their params.
        faults: Takes what is wrong with a leaf; such a leaf has no join.
    """

    tables: tuple[Layout, Layout]
    known: Mapping[str, Size]
    moments: Moments
    faults: list[Mismatch]

    # --- leaves that are one row on both sides  ---

    def of_pairs(
        self,
        pairs: Sequence[tuple[int, int]],
        values: Spoken[ValueRule],
        decisions: Mapping[int, Decision],
        private: PrivatePairs,
        copies: Copies | None = None,
    ) -> list[Join]:
        """The joins of rows, each pair one leaf.

        Args:
            pairs: Their numbers, in the source and in the view.
            values: What rules say of the values in the view's rows.
            decisions: What rules say of the names of the source's rows.
            private: The pairs that a rule calls private: of these, that is the fault.
            copies: The tied rows, where one of each pair is such a copy.
        """
        source, view = self.tables
        joins: list[Join] = []
        for number, other in pairs:
            before, after, hits = source.rows[number], view.rows[other], values.get(other, ())
            said = _said(after, hits, decisions.get(number))
            compares = False, False
            if copies is not None:
                compares = copies.compares(number, other)
                said = copies.said(said, number, other)
            said = with_moments(before, after, hits, said, self.moments)
            if isinstance(said, Mismatch):
                self.faults.append(said)
                continue
            relation = relate(before, after, said, self.known)
            if not isinstance(relation, Mismatch):
                joins.append(Join(relation.cells(number, other, compares), said, plain=True))
            elif (number, other) not in private.pairs:
                # Of a copy it is the tie that may say how its axes lie, and no rename.
                fault = relation if copies is None else copies.told(relation, number, other)
                self.faults.append(fault)
        return joins

    # --- a leaf that is several rows on one side, or on both  ---

    def of_parts(
        self, leaf: SharedLeaf, members: Sequence[Members], said: SaidOfSides
    ) -> list[Join]:
        """The joins of a leaf that is one row here and several there, or is divided otherwise there.

        Args:
            leaf: Its rows on both sides.
            members: For each side, what its rows are parts of.
            said: What rules say of the values in the rows of each side.
        """
        before, after = leaf
        if None in before and None in after:  # a whole beside its parts, which is told as ambiguous
            return []
        parts = _parts(before), _parts(after)
        words = _WordsOfParts(self.tables, leaf, said, self.moments)
        if None in before:
            whole = before[None]
            made = divided(self.tables, whole, parts[1], members[1], words.onward, self.known)
        elif None in after:
            # `divided` speaks from the whole to its parts, so here it is asked from the view on.
            tables, whole = (self.tables[1], self.tables[0]), after[None]
            made = divided(tables, whole, parts[0], members[0], words.back, self.known)
        else:
            made = both_divided(self.tables, parts, members, words.onward, self.known)
        # The parts were cut without the word that has a fault, and would not hold what it says.
        self.faults.extend(words.faults)
        if words.faults:
            return []
        if isinstance(made, Mismatch):
            row = self.tables[1].rows[next(iter(after.values()))]
            # A rule that names the order of the axes would speak of the whole, and not of a part.
            self.faults.append(dataclasses.replace(made, mirrors=row.mirrors, rules=()))
            return []
        return [join.inverse for join in made] if None in after else made

    # --- tied leaves of which the other side has parts, or a whole  ---

    def with_copies(self, joins: Sequence[Join], copies: Copies) -> list[Join]:
        """The joins; copies of what is part of a leaf, or has parts, go where it goes.

        Plain joins are left out: their copies are pairs themselves, see `of_pairs`.
        """
        joins = list(joins)
        for side in (0, 1):
            numbers_of = _divided_joins_by_row(joins, side)
            for copy, original in copies.of[side].items():
                for number in numbers_of.get(original, ()):
                    order = copies.orders[side][copy]
                    made = self._with_copy(joins[number], side, copy, original, order)
                    if isinstance(made, Mismatch):
                        self.faults.append(made)
                    else:
                        joins[number] = made
        return joins

    def _with_copy(
        self, join: Join, side: int, copy: int, original: int, order: tuple[int, ...] | None
    ) -> Join | Mismatch:
        """A join, in which a copy goes where its original goes: copy -> original -> other side."""
        rows = self.tables[side].rows
        told_of_copy = dataclasses.replace(UNTOLD, axes=order)
        to_original = relate(rows[copy], rows[original], told_of_copy, self.known)
        if isinstance(to_original, Mismatch):
            return to_original
        # Seen from the side of the copy, whichever that is.
        turned = join if side == 0 else join.inverse
        onward = [cell for cell in turned.cells if cell.source == original]
        try:
            cells = composed_if_known(to_original.cells(copy, original), onward, self.known)
        except UndecidedError as wrong:
            return undecided(rows[copy], rows[original], wrong)
        again: list[Cell] = []
        for cell in cells:
            if not cell.is_constant:  # or else it is padding, which the copy has too
                # The original writes these elements of the other side, and the copy is held to them.
                cell = dataclasses.replace(cell, compares=(cell.compares[0], True))
            again.append(cell)
        both = dataclasses.replace(turned, cells=(*turned.cells, *again))
        return both if side == 0 else both.inverse


class _WordsOfParts:
    """What rules say of the rows of one divided leaf, with the moments that go along.

    Attributes:
        faults: What is wrong with what they say, added to at each question.
    """

    def __init__(
        self,
        tables: tuple[Layout, Layout],
        leaf: SharedLeaf,
        said: SaidOfSides,
        moments: Moments,
    ) -> None:
        self._tables, self._leaf = tables, leaf
        self._said, self._moments = said, moments
        self.faults: list[Mismatch] = []

    def onward(self, side: int, number: int) -> Told:
        """What is said of a row of the source (0) or of the view (1), on the way to the view."""
        hits = self._said[side].get(number, ())
        if not hits:
            return UNTOLD
        # A moment's power is asked of both sides: any row of the leaf stands for the other one.
        rows: list[Row] = []
        for table, numbers in zip(self._tables, self._leaf, strict=True):
            rows.append(table.rows[next(iter(numbers.values()))])
        rows[side] = self._tables[side].rows[number]
        words = with_moments(rows[0], rows[1], hits, told(rows[side], hits), self._moments)
        if isinstance(words, Mismatch):
            self.faults.append(words)
            return UNTOLD
        return words

    def back(self, side: int, number: int) -> Told:
        """The same where the view is the first of two tables, and the way is the one back."""
        return self.onward(1 - side, number).inverse


def _parts(rows: RowsByPart) -> dict[int, int]:
    """The rows that are parts, and not the whole."""
    return {part: number for part, number in rows.items() if part is not None}


def _divided_joins_by_row(joins: Sequence[Join], side: int) -> dict[int, list[int]]:
    """Which joins, by their place, each row of a side is in; of plain ones nothing is told."""
    places: dict[int, list[int]] = {}
    for place, join in enumerate(joins):
        if join.plain:
            continue
        for row in join.views if side else join.sources:
            places.setdefault(row, []).append(place)
    return places


# --- What rules say of one leaf  ---


def _said(view: Row, hits: Sequence[Hit[ValueRule]], decision: Decision | None) -> Told:
    """What rules say of one leaf, the order of its axes included, which a rename may tell."""
    said = told(view, hits) if hits else UNTOLD
    rule = decision.inner.rule if decision is not None and decision.inner is not None else None
    if not isinstance(rule, Rename) or rule.axes is None:
        return said
    # It is kept among the rules that had a say: one that orders no leaf is told as idle.
    return dataclasses.replace(said, axes=rule.axes, rules=(*said.rules, rule))


def with_moments(
    before: Row, after: Row, hits: Sequence[Hit[ValueRule]], said: Told, moments: Moments
) -> Told | Mismatch:
    """What is said of a leaf; what an optimizer keeps for one that rules scale and shift goes along.

    Where ``scale("head", 2.0)`` speaks of a kernel, its gradient is halved, so Adam's mu is scaled
    by 1/2 and nu by 1/4, though no rule speaks of either.
    """
    wrong = unlike_moments(before, after, hits)
    if wrong is not None:
        return wrong
    said_of_rest = moments.started(before, after, said)
    if isinstance(said_of_rest, Mismatch) or not hits:
        return said_of_rest
    said = said_of_rest
    # Only mirrors have such a factor: of the param itself `told` has read the rule already.
    factor = unscaled(after, hits) or unscaled(before, hits)
    if factor is not None:
        power = moments.power(before, after, factor)
        if isinstance(power, Mismatch):
            return power
        said = said.scaled(factor, power)
    shift = unshifted(after, hits) or unshifted(before, hits)
    if shift is None:
        return said
    follows = moments.follows(before, after, shift)
    return follows if isinstance(follows, Mismatch) else said.shifted(shift, follows=follows)
