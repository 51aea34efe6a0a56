"""Freeing leaves that the caller gives up: each as soon as nothing needs it any more.

A plan with ``donate=True`` has one of these for the tree that it is given, and tells it after each
task what was read and what was made.

Two arrays may share one buffer: ``device_put`` of an array to where it is, or the data of a key.
What is counted are buffers, and where an array does not tell its own it is not freed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import jax

from ckpt_schema._compat import Tracer
from ckpt_schema._layouts.leaves import is_typed_key

__all__ = ["Donation"]

_Buffers = frozenset[Hashable]


class Donation:
    """The leaves of a tree that is given up, and what still needs their buffers."""

    def __init__(self, given: Sequence[Any], needed: Iterable[Any]) -> None:
        """Frees what nothing needs.

        Args:
            given: The leaves that are given up.
            needed: What will be needed yet: each leaf as often as it will be.
        """
        self._known: dict[int, _Buffers] = {}
        self._given: dict[int, Any] = {}
        for leaf in given:
            if self._buffers(leaf):  # what does not tell its buffers is not freed
                self._given[id(leaf)] = leaf
        self._uses: Counter[Hashable] = Counter()
        for leaf in needed:
            self._uses.update(self._buffers(leaf))
        self._free(list(self._given.values()))

    def used(self, inputs: Sequence[Any], results: Sequence[Any]) -> None:
        """Frees those of ``inputs`` that were needed for the last time, once ``results`` are made of them."""
        # Otherwise the next results are allocated before these inputs are freed.
        jax.block_until_ready(results)
        for leaf in results:  # what jax handed on as it was is needed for good
            self._uses.update(_buffers(leaf))
        for leaf in inputs:
            self._uses.subtract(self._buffers(leaf))
        self._free(inputs)

    def _free(self, leaves: Iterable[Any]) -> None:
        for leaf in leaves:
            is_needed = any(self._uses[buffer] for buffer in self._buffers(leaf))
            if id(leaf) in self._given and not is_needed:
                self._given.pop(id(leaf)).delete()

    def _buffers(self, leaf: Any) -> _Buffers:
        """`_buffers` of a leaf of either tree, looked up once: all of them are held as long as this is."""
        pointers = self._known.get(id(leaf))
        if pointers is None:
            pointers = self._known[id(leaf)] = _buffers(leaf)
        return pointers


def _buffers(leaf: Any) -> _Buffers:
    """Where on this process's devices the data of an array is.

    Nothing where that is not told, or it is no such array.
    """
    if not isinstance(leaf, jax.Array) or isinstance(leaf, Tracer) or leaf.is_deleted():
        return frozenset()
    if is_typed_key(leaf):
        leaf = jax.random.key_data(leaf)
    buffers: set[Hashable] = set()
    try:
        for shard in leaf.addressable_shards:
            buffers.add((shard.data.device, shard.data.unsafe_buffer_pointer()))
    except Exception:  # each backend without pointers has an error of its own
        return frozenset()
    return frozenset(buffers)
