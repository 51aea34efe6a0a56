"""Pieces that both sides were cut into without need, as one: what the whole cut for the sake of other leaves."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from ckpt_schema.discovery._layer_levels import single_axes
from ckpt_schema.discovery._leaf_pieces import LeafPiece, narrowed_factor, whole_piece
from ckpt_schema.discovery._matching import Pairing
from ckpt_schema.discovery._points import orders

__all__ = ["coarse_pairs"]

_Item = TypeVar("_Item", LeafPiece, Pairing)

_Layer = tuple[str, tuple[tuple[int, int], ...]]
"""A leaf, and the axes that some pieces have one index of, with the index: a layer of a stack."""


def coarse_pairs(
    pieces: tuple[Sequence[LeafPiece], Sequence[LeafPiece]], pairings: Sequence[Pairing]
) -> tuple[tuple[list[LeafPiece], list[LeafPiece]], list[Pairing]]:
    """The same with one pair for several, where all pieces of a leaf are those of another, in the same order.

    All leaves of one shape are cut alike. Where one of them is fused of gates on one side, a kernel of
    its shape is cut in as many parts, on both sides, though it is one leaf on both.

    Args:
        pieces: All pieces of both sides.
        pairings: What belongs together.
    """
    together: dict[tuple[_Layer, _Layer], list[Pairing]] = collections.defaultdict(list)
    for pairing in pairings:
        if len(pairing.sources) == 1:
            together[_layer(pairing.sources[0]), _layer(pairing.view)].append(pairing)
    # For each that is part of a coarse one, what stands in its place.
    for_pairs: dict[Pairing, Pairing] = {}
    for_pieces: tuple[dict[LeafPiece, LeafPiece], dict[LeafPiece, LeafPiece]] = {}, {}
    for pairs in together.values():
        coarse = _one_pair(pairs) if len(pairs) > 1 else None
        if coarse is not None:
            for pair in pairs:
                for_pairs[pair] = coarse
                for_pieces[0][pair.sources[0]] = coarse.sources[0]
                for_pieces[1][pair.view] = coarse.view
    if not for_pairs:
        return (list(pieces[0]), list(pieces[1])), list(pairings)
    return (
        (_replaced(pieces[0], for_pieces[0]), _replaced(pieces[1], for_pieces[1])),
        _replaced(pairings, for_pairs),
    )


def _replaced(items: Sequence[_Item], others: Mapping[_Item, _Item]) -> list[_Item]:
    """Items, or what stands in their place, each once."""
    return list(dict.fromkeys(others.get(item, item) for item in items))


def _layer(piece: LeafPiece) -> _Layer:
    return piece.leaf, tuple(single_axes(piece))


def _one_pair(pairs: Sequence[Pairing]) -> Pairing | None:
    """Several pairs of two layers as one; None where they are not all of both, or in another order there."""
    source = _layer_piece([pair.sources[0] for pair in pairs])
    view = _layer_piece([pair.view for pair in pairs])
    if source is None or view is None:
        return None
    # Which element of the source each of the view is, as the pieces say it and as one pair would.
    elements = np.zeros(math.prod(view.leaf_shape), int)
    for pair in pairs:
        elements[pair.view.places] = pair.sources[0].places.transpose(pair.orders[0])
    wanted = elements[view.places]
    for order in orders(source.shape, view.shape):
        if np.array_equal(source.places.transpose(order), wanted):
            return Pairing(view, (source,), (order,))
    return None


def _layer_piece(pieces: Sequence[LeafPiece]) -> LeafPiece | None:
    """All of the layer that some pieces are of; None where they are not all of it, or hold other values each."""
    first = pieces[0]
    if len({(piece.scale, piece.offset) for piece in pieces}) > 1:
        return None
    layer = whole_piece(first.leaf, first.leaf_shape)
    for axis, index in single_axes(first):
        layer = narrowed_factor(layer, axis, (index, index + 1))
    # Pieces of one leaf do not overlap, so as many elements are all of them.
    size = sum(math.prod(piece.shape) for piece in set(pieces))
    if size != math.prod(layer.shape):
        return None
    return dataclasses.replace(layer, scale=first.scale, offset=first.offset)
