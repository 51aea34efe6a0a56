"""Two models at values that pairs of pieces share: where outputs are equal at random ones, pairs are proved."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from ckpt_schema.discovery._leaf_pieces import LeafPiece
from ckpt_schema.discovery._models import Leaves, RunnableModel
from ckpt_schema.discovery._points import (
    in_axis_order,
    leaves_of,
    own_block,
    relative_gap,
    shared_values,
)

__all__ = ["Order", "Pairs", "PieceOrigin", "Proof", "ProofPoint", "inverse_order"]

Array = np.ndarray[Any, Any]
Order = tuple[int, ...]
PieceOrigin = tuple[int, Order]
"""The number of a piece of the source, and which of its axes each axis of the view's piece is."""

Pairs = dict[int, tuple[PieceOrigin, ...]]
"""For pieces of the view, by number, what they are made of: one piece, or several, whose sum they are."""


@dataclasses.dataclass(frozen=True)
class ProofPoint:
    """Values of both models, and their outputs there."""

    leaves: tuple[dict[str, Array], dict[str, Array]]
    outputs: tuple[Array, Array]

    @property
    def gap(self) -> float:
        """How far the outputs differ."""
        return relative_gap(*self.outputs)


class Proof:
    """Runs both models where pairs have values of their own.

    Attributes:
        bound: The largest difference of outputs that is none.
    """

    def __init__(
        self,
        models: tuple[RunnableModel, RunnableModel],
        pieces: tuple[list[LeafPiece], list[LeafPiece]],
        noise: float,
        seed: int,
    ) -> None:
        """Runs nothing yet."""
        self._models, self._pieces, self._seed = models, pieces, seed
        self.bound = max(1e-9, 30 * noise)

    def at(self, pairs: Pairs, number: int) -> ProofPoint:
        """Both models where pairs have values of their own, and all else is as at the shared point.

        Args:
            pairs: What belongs together.
            number: Which of many such points.
        """
        seed = self._seed + number
        sources, views = self._pieces
        before, after = shared_values(sources, seed), shared_values(views, seed)
        # First the source: each of its pieces that is paired holds a block that no other has.
        for origins in pairs.values():
            for source, _ in origins:
                piece = sources[source]
                before[source] = in_axis_order(own_block(piece.form, seed, source), piece)
        # Then the view, which is made of the source as the pairs say.
        for view, origins in pairs.items():
            # Two pieces that the view has once are copies of one another, not parts of a sum: for
            # these the source itself is changed, so that both hold the same.
            if len(origins) > 1 and not self.is_sum(view, origins):
                (first, order), *others = origins
                for copy, turned in others:
                    as_first = before[first].transpose(order)
                    before[copy] = as_first.transpose(inverse_order(turned))
            parts = [before[source].transpose(order) for source, order in origins]
            # The mean of equal copies is each of them; a sum is read as the mean times their number.
            after[view] = sum(parts[1:], parts[0]) / len(parts)
        leaves = (
            leaves_of(self._models[0], sources, before),
            leaves_of(self._models[1], views, after),
        )
        outputs = self._models[0].run(leaves[0]), self._models[1].run(leaves[1])
        return ProofPoint(leaves, outputs)

    def is_sum(self, number: int, origins: Sequence[PieceOrigin]) -> bool:
        """Whether a piece of the view is the sum of several, which one reading makes twice their mean; else they are copies."""
        sources, views = self._pieces
        count = len(origins)
        if views[number].scale == count:
            return True
        # The reading may say it of the source in place of the view: each of two is half as much.
        return all(sources[source].scale == 1 / count for source, _ in origins)

    def agrees(self, pairs: Pairs, *numbers: int) -> bool:
        """Whether the outputs are equal at random values, at each of some points."""
        return all(self.at(pairs, number).gap <= self.bound for number in numbers)

    def matters(self, pairs: Pairs, number: int) -> bool:
        """Whether the outputs change where one side alone has other values of a piece."""
        point = self.at(pairs, 62)
        moved = self._moved(1, point.leaves[1], [number], 63)
        return relative_gap(point.outputs[1], self._models[1].run(moved)) > 10 * self.bound

    def _moved(
        self, side: int, leaves: Leaves, numbers: Sequence[int], salt: int
    ) -> dict[str, Array]:
        """Leaves of one model, of which some pieces hold other random values."""
        moved = {name: value.copy() for name, value in leaves.items()}
        for number in numbers:
            piece = self._pieces[side][number]
            block = own_block(piece.form, self._seed + salt, number)
            moved[piece.leaf].reshape(-1)[piece.places] = in_axis_order(block, piece)
        return moved

    def is_inert(self, point: ProofPoint, asleep: Sequence[Sequence[int]]) -> bool:
        """Whether other values of the pieces without a gradient leave the outputs of both models as they are."""
        for side, numbers in enumerate(asleep):
            # A run is not spent where nothing is asleep.
            if not numbers:
                continue
            moved = self._moved(side, point.leaves[side], numbers, 5)
            outputs = self._models[side].run(moved)
            if relative_gap(point.outputs[side], outputs) > self.bound:
                return False
        return True


def inverse_order(order: Order) -> Order:
    """The order that undoes another."""
    return tuple(int(axis) for axis in np.argsort(order))
