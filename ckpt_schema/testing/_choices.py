"""Choices told by bytes: what laws are tried on is drawn by one draw, so that no two trials are alike.

Hypothesis makes up to half of its examples of earlier ones, by giving one part of them to another.
Of twenty examples with thirty parts each, most would have the sizes and the mesh of the one before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

from hypothesis import strategies as st

__all__ = ["Choices", "choices"]

T = TypeVar("T")
_LENGTH = 96  # more choices than most lenses need


class Choices:
    """One choice after the other. Zeros choose the first of each, which is the simplest."""

    def __init__(self, told: bytes) -> None:
        """Starts with the first byte; when they are used up, others follow from all of them."""
        self._told, self._at = told, 0

    def of(self, pool: Sequence[T]) -> T:
        """One of a few."""
        return pool[self._next() * len(pool) >> 8]

    def number(self) -> int:
        """One of 65,536 numbers."""
        return self._next() << 8 | self._next()

    def _next(self) -> int:
        if self._at == len(self._told):
            self._told += hashlib.sha256(self._told).digest() if any(self._told) else bytes(32)
        self._at += 1
        return self._told[self._at - 1]


def choices() -> st.SearchStrategy[Choices]:
    """Any choices; they shrink to the first of each."""
    return st.binary(min_size=_LENGTH, max_size=_LENGTH).map(Choices)
