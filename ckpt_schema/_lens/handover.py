"""Leaves of a result that are handed over one after the other: no more is held than what one of them needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax

from ckpt_schema._compat import Tracer
from ckpt_schema._layouts import leaves, paths
from ckpt_schema._layouts.table import Layout
from ckpt_schema._lens.arrays.donation import Donation
from ckpt_schema._lens.plan.pieces import Pieces, pieces_of
from ckpt_schema._lens.plan.plan import Plan
from ckpt_schema._messages.text import shown
from ckpt_schema._trees.containers import Tree, flatten
from ckpt_schema.errors import ConformanceError, Mismatch

__all__ = ["CHUNK_BYTES", "named_leaves", "tree_in_place"]

CHUNK_BYTES = 2**28
"""How many bytes of a transfer are under way at a time, unless the caller says so."""


def named_leaves(
    plan: Plan, view: Layout, tree: Tree, found: Sequence[Any], kept: Sequence[Any]
) -> Iterator[tuple[str, Any]]:
    """Each leaf of the result with its name, made when its turn comes; see `Lens.stream`.

    Args:
        plan: How it is made.
        view: The layout of the result.
        tree: What it is made of.
        found: The leaves of that.
        kept: The leaves that the result goes onto.

    Raises:
        ConformanceError: A leaf of the tree has no value.
    """
    _verify_valued(tree, "it cannot be streamed")
    pieces = pieces_of(plan)
    # The structure alone tells the names: what stands in it does not matter.
    result = flatten(plan.treedef.unflatten(range(len(pieces.places))))
    names: list[str] = []
    for key in result.keys:
        # A Variable of NNX holds its value under a key of its own.
        own = key[:-1] if view.container == "nnx" and key[-1:] == ("value",) else key
        names.append(str(own[0]) if len(own) == 1 else paths.format_path(own))
    return _named(pieces, [*found, *kept], names)


def _named(pieces: Pieces, pool: Sequence[Any], names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Each leaf with its name. A generator by itself: what is wrong with the arguments is said at once."""
    for numbers, value in pieces.values(pool):
        for number in numbers:
            yield names[number], value


def tree_in_place(
    plan: Plan,
    tree: Tree,
    found: Sequence[Any],
    kept: Sequence[Any],
    *,
    chunk_bytes: int,
    donate_onto: bool,
) -> Tree:
    """The result, each leaf of which is where the leaf is that it takes the place of; see `Lens.transfer`.

    Args:
        plan: How it is made.
        tree: What it is made of.
        found: The leaves of that.
        kept: The leaves that the result goes onto, in the order of its own.
        chunk_bytes: How many bytes are under way at a time.
        donate_onto: Whether the leaves of the last are freed, each before its place is taken.

    Raises:
        ConformanceError: Before anything is made or freed.
    """
    _verify_chunk(chunk_bytes)
    _verify_valued(tree, "it cannot be transferred")
    pool, start = [*found, *kept], len(found)
    plan.verify(pool, kept)
    pieces = pieces_of(plan, verified=True)
    donation = _donation(pieces, found, kept) if donate_onto else None
    results: list[Any] = [None] * len(pieces.places)
    pending: list[Any] = []
    under_way = 0
    for numbers, value in pieces.values(pool):
        for number in numbers:
            own = kept[number]
            # A private leaf is what it was.
            if start <= pieces.places[number] < len(pool):
                results[number] = value
                continue
            # Freed before its place is taken, so that both are never there at once.
            if donation is not None:
                donation.used([own], [])
            results[number] = _placed(value, own)
            pending.append(results[number])
            under_way += results[number].nbytes
        del value
        if under_way >= chunk_bytes:
            # Otherwise all of them would be on their way at once.
            jax.block_until_ready(pending)
            pending.clear()
            under_way = 0
    return plan.treedef.unflatten(results)


def _placed(value: Any, own: Any) -> Any:
    """A value where another leaf is, in memory of its own: the trainer gives its own up in its next step."""
    sharding = getattr(own, "sharding", None)
    return jax.device_put(value, sharding, may_alias=False)


def _donation(pieces: Pieces, found: Sequence[Any], kept: Sequence[Any]) -> Donation:
    """Frees each leaf that the result goes onto in its turn, unless something else needs it."""
    positions = [*pieces.places]
    for piece in pieces.every:
        positions += piece.inputs
    # Each leaf once for its own turn, and once more for whatever else it is read for.
    needed: list[Any] = [*found, *kept]
    for position in positions:
        if 0 <= position - len(found) < len(kept):
            needed.append(kept[position - len(found)])
    return Donation(kept, needed)


def _verify_chunk(chunk_bytes: object) -> None:
    """Raises unless so many bytes can be under way."""
    if type(chunk_bytes) is not int or chunk_bytes < 1:
        expected = "a number of bytes, such as 2**28"
        fault = Mismatch("chunk_bytes", "argument", expected, shown(chunk_bytes))
        raise ConformanceError("wrong arguments", [fault])


def _verify_valued(tree: Tree, what: str) -> None:
    """Raises where leaves have no value that could be handed over."""
    flat = flatten(tree)
    faults: list[Mismatch] = []
    for key, leaf in zip(flat.keys, flat.leaves, strict=True):
        if leaves.is_abstract(leaf) or isinstance(leaf, Tracer):
            where, found = paths.format_path(key), leaves.describe(leaf)
            faults.append(Mismatch(where, "abstract", "a value", found))
    if faults:
        raise ConformanceError(f"the tree has leaves without values: {what}", faults)
