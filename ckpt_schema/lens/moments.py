"""What becomes of the moments of a param that a rule scales: their degrees tell, or a rule."""

from __future__ import annotations

from ckpt_schema.errors import Mismatch
from ckpt_schema.frameworks.degrees import Degree, Degrees, NoDegree
from ckpt_schema.lens.rules import Factor, Reset
from ckpt_schema.table import Layout, Row

__all__ = ["Moments"]


class Moments:
    """How the optimizer states of two layouts go along with params that are scaled."""

    def __init__(self, source: Layout, view: Layout) -> None:
        """Takes both layouts; no transformation is run before a power is asked for."""
        self._source, self._view = source, view
        self._degrees = Degrees(source), Degrees(view)

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
        sides = (self._source, before, self._degrees[0]), (self._view, after, self._degrees[1])
        knowing = [side for side in sides if side[0].initial is not None] or [sides[1]]
        found = [(layout, degrees.of(row)) for layout, row, degrees in knowing]
        powers = {each.power for _, each in found if isinstance(each, Degree)}
        reasons = [
            f"{each.reason} ({layout.name})" for layout, each in found if isinstance(each, NoDegree)
        ]
        if not reasons and len(powers) == 1:
            return powers.pop()
        reason = (
            reasons[0] if reasons else "the transformations of the two sides scale it differently"
        )
        return self._fault(before, after, factor, reason)

    def _fault(self, before: Row, row: Row, factor: Factor, reason: str) -> Mismatch:
        where = "/".join(row.path)
        same, anew = Factor(row.path, 0), Reset(before.path, row.path)
        known = self._source.initial is not None and self._view.initial is not None
        hint = f"say {same} to leave it as it is, or another factor"
        if known:
            hint = f"say {anew} to start it anew, {same} to leave it as it is, or another factor"
        return Mismatch(
            where,
            "rule",
            f"what becomes of it where {factor} holds",
            f"no power of the factor that carries it: {reason}",
            hint,
            mirrors=row.mirrors,
            rules=(anew if known else same,),
        )
