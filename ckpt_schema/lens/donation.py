"""Freeing leaves that the caller gives up: each as soon as nothing needs it any more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import jax
from jax.core import Tracer

__all__ = ["Donation"]


class Donation:
    """The leaves of a tree that is given up, and what still needs them.

    Attributes:
        uses: How often each array, by its id, will be needed yet.
    """

    def __init__(self, given: Sequence[Any], needed: Iterable[Any]) -> None:
        """Frees what nothing needs.

        Args:
            given: The leaves that are given up.
            needed: What will be needed yet: each leaf as often as it will be.
        """
        self._given = {
            id(leaf): leaf
            for leaf in given
            if isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer)
        }
        self.uses = Counter(map(id, needed))
        for number in self._given.keys() - self.uses.keys():
            self._given[number].delete()

    def used(self, inputs: Sequence[Any], results: Sequence[Any]) -> None:
        """Frees those of ``inputs`` that were needed for the last time, once ``results`` are made of them."""
        jax.block_until_ready(
            results
        )  # or else the next results are allocated before these inputs are freed
        for leaf in inputs:
            self.uses[id(leaf)] -= 1
            if not self.uses[id(leaf)] and id(leaf) in self._given:
                self._given.pop(id(leaf)).delete()
