"""What becomes of the moments of a param that a rule scales: their degrees tell, or a rule.

`leaf_joins` asks it of each mirror in an optimizer state whose param a rule scales, shifts or makes
longer, and that no rule speaks of itself. What it answers comes from the transformations, which are
run at small sizes in `_frameworks`; a layout that was read off a tree does not know its own.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts.leaves import Fill, Init
from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.table import Layout, Row
from ckpt_schema._lens.axis_rules import Grown
from ckpt_schema._lens.cells import Constant
from ckpt_schema._lens.derive.leaf_rules import PaddedAxis, Told
from ckpt_schema._lens.derive.row_parts import places_of
from ckpt_schema._lens.rules import Reset
from ckpt_schema._lens.value_rules import Factor, Offset
from ckpt_schema.errors import Mismatch

if TYPE_CHECKING:
    from ckpt_schema._frameworks.degrees import Degree, Degrees, NoDegree

__all__ = ["Moments"]

T = TypeVar("T", int, bool)


def _unknown_start(row: Row, fill: PaddedAxis) -> Mismatch:
    """The fault of what starts with no one number: the user has to say it."""
    rule = Grown(row.path, Fill(0), fill.small, fill.large)
    return Mismatch(
        "/".join(row.path),
        "rule",
        f"what it starts with beyond {dims_.format_dim(fill.small)}",
        "no one number: it depends on the params, or the transformation is not known",
        f"say it: {rule}",
        mirrors=row.mirrors,
    )


class Moments:
    """How the optimizer states of two layouts go along with params that are scaled."""

    def __init__(
        self,
        source: Layout,
        view: Layout,
        originals: tuple[Mapping[LogicalPath, Row], Mapping[LogicalPath, Row]] = ({}, {}),
    ) -> None:
        """Takes both layouts; no transformation is run before a power is asked for.

        Args:
            source: The source's.
            view: The view's.
            originals: By the path of a row that neither has, for each of both: which of its rows
                stands for it.
        """
        self._source, self._view = source, view
        self._originals = originals

    def power(self, before: Row, after: Row, factor: Factor) -> int | Mismatch:
        """The power of a param's factor that carries what an optimizer keeps for it.

        Args:
            before: Its row in the source.
            after: Its row in the view.
            factor: The rule that scales the param.

        Returns:
            The power, or the fault where none is known. A layout that was found in a tree, and does
            not know its transformation, follows the other one.
        """
        powers: list[int | str] = []  # or why there is none
        for name, degree in self._degrees(before, after):
            told = degree if isinstance(degree, str) else degree.told
            powers.append(f"{told} ({name})" if isinstance(told, str) else told)
        return self._agreed(before, after, factor, powers)

    def follows(self, before: Row, after: Row, shift: Offset) -> bool | Mismatch:
        """Whether what an optimizer keeps for a param is shifted where the param is.

        It is if it is a copy of the param, and it is not if it depends on gradients alone.

        Args:
            before: Its row in the source.
            after: Its row in the view.
            shift: The rule that shifts the param.
        """
        answers: list[bool | str] = []
        for name, degree in self._degrees(before, after):
            told = _is_copy(degree)
            answers.append(f"{told} ({name})" if isinstance(told, str) else told)
        return self._agreed(before, after, shift, answers)

    def _agreed(
        self, before: Row, after: Row, rule: Factor | Offset, found: Sequence[T | str]
    ) -> T | Mismatch:
        """What all layouts tell alike."""
        answers: set[T] = set()
        for answer in found:
            # One layout that cannot say is enough: the moments of both sides are the same numbers.
            if isinstance(answer, str):
                return self._fault(before, after, rule, answer)
            answers.add(answer)
        if len(answers) == 1:
            return answers.pop()
        differ = "the transformations of the two sides treat it differently"
        return self._fault(before, after, rule, differ)

    def _degrees(self, before: Row, after: Row) -> list[tuple[str, Degree | NoDegree | str]]:
        """The degree by each layout that knows its transformation, or why there is none."""
        if not self._knowing:
            unknown = "its layout was found in a tree, and does not know the transformation"
            return [(self._view.name, unknown)]
        by_layout: list[tuple[str, Degree | NoDegree | str]] = []
        before, after = self._of_layouts(before, after)
        for layout, degrees in self._knowing:
            row = before if layout is self._source else after
            by_layout.append((layout.name, degrees.of(row)))
        return by_layout

    def _of_layouts(self, before: Row, after: Row) -> tuple[Row, Row]:
        """The rows that stand for two, where a layout has not these."""
        source, view = self._originals
        return source.get(before.path, before), view.get(after.path, after)

    def started(self, before: Row, after: Row, said: Told) -> Told | Mismatch:
        """What is said of what an optimizer keeps for a param of which one side has more: the rest as it starts.

        Where the transformation starts all of it with one number, whatever the params are, that is
        the default; else there is none.
        """
        fills: list[PaddedAxis] = []
        before, after = self._of_layouts(before, after)
        for fill in said.fills:
            # `Init` stands for "as the transformation starts it"; another value has been said.
            if not isinstance(fill.rest.value, Init):
                fills.append(fill)
                continue
            # The side that has the longer axis is the one that has more to start.
            is_view = bool(places_of(after, fill.large))
            layout, row = (self._view, after) if is_view else (self._source, before)
            value = _starting_value(layout, row) if layout.initial is not None else None
            if value is None:
                return _unknown_start(row, fill)
            fills.append(dataclasses.replace(fill, rest=Constant(Fill(value))))
        return dataclasses.replace(said, fills=tuple(fills)) if fills else said

    @functools.cached_property
    def _knowing(self) -> list[tuple[Layout, Degrees]]:
        """The layouts that know their transformation."""
        several = [side for side in (self._source, self._view) if side.initial is not None]
        # optax is loaded with the degrees: a lens without an optimizer has no need of it.
        if not several:
            return []
        from ckpt_schema._frameworks.degrees import Degrees

        return [(layout, Degrees(layout)) for layout in several]

    def _fault(self, before: Row, row: Row, rule: Factor | Offset, reason: str) -> Mismatch:
        """The fault of a moment of which nobody can say what becomes of it, and the rules that say it."""
        where = "/".join(row.path)
        anew = Reset(before.path, row.path)
        known = self._source.initial is not None and self._view.initial is not None
        if isinstance(rule, Offset):
            same: Factor | Offset = Offset(row.path, 0.0)
            found = "nothing that tells whether it is shifted"
            hint = f"say {same} to leave it as it is, or another amount"
        else:
            same = Factor(row.path, 1.0)
            found = "no power of the factor that carries it"
            hint = f"say {same} to leave it as it is, or another factor"
            # Only a known transformation can start it anew.
            if known:
                hint = (
                    f"say {anew} to start it anew, {same} to leave it as it is, or another factor"
                )
        return Mismatch(
            where,
            "rule",
            f"what becomes of it where {rule} holds",
            f"{found}: {reason}",
            hint,
            mirrors=row.mirrors,
            rules=(anew if known and isinstance(rule, Factor) else same,),
        )


def _is_copy(degree: Degree | NoDegree | str) -> bool | str:
    """Whether what has a degree is a copy of the param; or why nobody can say."""
    if isinstance(degree, str):
        return degree
    from ckpt_schema._frameworks.degrees import Degree  # optax is loaded, for it has made this

    if not isinstance(degree, Degree):
        return degree.reason
    # What does not go by the param stays where it is, though the param is shifted: mu, nu.
    if not degree.param:
        return False
    if (degree.param, degree.gradient) == (1, 0):
        return True
    return "it depends on the param, and is no copy of it"


def _starting_value(layout: Layout, row: Row) -> float | int | bool | None:
    from ckpt_schema._frameworks.starting_values import starting_value  # which loads optax

    return starting_value(layout, row)
