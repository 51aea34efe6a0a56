"""Values to run both models at: one point that prefers no assignment, and independent ones that prove it.

At the *shared point* all pieces of a form hold one random block, the same however equal axes are
turned. So two models that are one function have equal outputs there, whichever leaf is which. That is
needed and never enough: two other functions may be equal there too.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ckpt_schema.discovery._leaf_pieces import AxisSizes, LeafPiece
from ckpt_schema.discovery._models import RunnableModel

__all__ = [
    "gradients_at",
    "in_axis_order",
    "leaves_of",
    "orders",
    "own_block",
    "relative_gap",
    "shared_block",
    "shared_values",
]

Array = np.ndarray[Any, Any]


def shared_block(form: AxisSizes, seed: int) -> Array:
    """The block that all pieces of a form hold at the shared point."""
    block = _block(form, seed)
    if len(form) < 2:
        return block
    # A square kernel gets a symmetric block: turned or not, it then holds the same.
    total = np.zeros(form)
    count = 0
    for order in itertools.permutations(range(len(form))):
        if _same(form, order):
            total = total + block.transpose(order)
            count += 1
    # A sum of n independent numbers of size one is of size sqrt(n).
    return total / math.sqrt(count) / _scale(form)


def own_block(form: AxisSizes, seed: int, number: int) -> Array:
    """A block that one pair of pieces alone holds."""
    block = _block(form, seed, number + 1)
    return block if len(form) < 2 else block / _scale(form)


def _block(form: AxisSizes, *seed: int) -> Array:
    # Drawn by the form itself: its number among the forms may be another in the other model.
    mark = zlib.crc32(repr(form).encode())
    block = np.random.default_rng([*seed, mark]).normal(size=form)
    # What has one axis may be a variance, or the scale of a norm: it stays positive.
    if len(form) < 2:
        return 1 + 0.3 * np.clip(block, -2, 2)
    return block


def _scale(form: AxisSizes) -> float:
    """What keeps the outputs of a layer as large as its inputs."""
    return math.sqrt(math.prod(form) / max(form))


def _same(form: AxisSizes, order: Sequence[int]) -> bool:
    return all(form[at] == form[axis] for at, axis in enumerate(order))


def in_axis_order(block: Array, piece: LeafPiece) -> Array:
    """A block of the piece's form, with its axes in the order that the piece has them."""
    # The rank of each size: a piece of (6, 2, 4) has the axes 2, 0 and 1 of a block of (2, 4, 6).
    ranks = np.argsort(np.argsort(piece.shape, kind="stable"), kind="stable")
    return block.transpose(ranks)


def shared_values(pieces: Sequence[LeafPiece], seed: int) -> list[Array]:
    """What each piece holds at the shared point."""
    blocks: dict[AxisSizes, Array] = {}
    values: list[Array] = []
    for piece in pieces:
        form = piece.form
        if form not in blocks:
            blocks[form] = shared_block(form, seed)
        values.append(in_axis_order(blocks[form], piece))
    return values


def leaves_of(
    model: RunnableModel, pieces: Sequence[LeafPiece], values: Sequence[Array]
) -> dict[str, Array]:
    """The leaves of a model whose pieces hold these values."""
    leaves = {name: np.ones(shape) for name, shape in model.shapes.items()}
    for piece, value in zip(pieces, values, strict=True):
        leaves[piece.leaf].reshape(-1)[piece.places] = piece.scale * value + piece.offset
    return leaves


def orders(shape: Sequence[int], goal: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """The orders of axes that make a shape another."""
    for order in itertools.permutations(range(len(shape))):
        if tuple(shape[axis] for axis in order) == tuple(goal):
            yield order


def relative_gap(one: Array, other: Array) -> float:
    """How far two arrays differ, relative to the larger; infinite where they cannot be compared."""
    if one.shape != other.shape or not (np.isfinite(one).all() and np.isfinite(other).all()):
        return math.inf
    # Two arrays of zeros are equal: the least number keeps 0 / 0 away.
    larger = max(float(np.linalg.norm(one)), float(np.linalg.norm(other)), 1e-300)
    return float(np.linalg.norm(one - other)) / larger


def gradients_at(
    model: RunnableModel,
    pieces: Sequence[LeafPiece],
    leaves: Mapping[str, Array],
    outputs: Array,
    seed: int,
) -> list[Array]:
    """The gradient of each piece, for a cotangent that the outputs there determine and nothing else does."""
    noise = np.random.default_rng([seed, 7]).normal(size=outputs.shape)
    size = float(np.sqrt(np.mean(outputs**2))) + 1e-300
    by_leaf = model.pullback(leaves, noise + np.cos(3 * outputs / size))
    # The leaf holds scale * value + offset: by the chain rule the value's gradient has the scale.
    return [by_leaf[piece.leaf].reshape(-1)[piece.places] * piece.scale for piece in pieces]
