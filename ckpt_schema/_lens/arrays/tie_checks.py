"""Tied leaves: that they are equal to the last bit.

A layout may say that a leaf stands in two places. Before a plan takes one of both, it asks here
whether the other has anything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ckpt_schema._compat import Tracer
from ckpt_schema._layouts import leaves
from ckpt_schema._lens.arrays.comparison import difference
from ckpt_schema.errors import ConformanceError, Mismatch

__all__ = ["TIED", "Pair", "verify_same"]

Pair = tuple[Any, Any, tuple[str, str, str], str]
"""A leaf, its copy, the key paths of what both are made of, and that of what they are to be; and what to do otherwise."""

TIED = "tied leaves are equal to the last bit: make them so, or drop the tie and give each a place"
"""What to do about leaves that a rule ties."""


def verify_same(pairs: Sequence[Pair]) -> None:
    """Raises unless each copy is equal to its original, to the last bit. Abstract leaves have no bits.

    Raises:
        ConformanceError: With the first element in which each pair differs, or that a pair is
            traced.
    """
    faults: list[Mismatch] = []
    for first, copy, names, cure in pairs:
        faults += _fault(first, copy, names, cure)
    if faults:
        raise ConformanceError("tied leaves are not one", faults)


def _fault(first: Any, copy: Any, names: tuple[str, str, str], cure: str) -> list[Mismatch]:
    # One array in two places, as an embedding that is shared, is not looked at.
    if first is copy or leaves.is_abstract(first) or leaves.is_abstract(copy):
        return []
    if isinstance(first, Tracer) or isinstance(copy, Tracer):
        hint = "ties are verified by value: translate outside of jit"
        return [Mismatch(names[1], "tie", f"what {names[0]} has", "a tracer", hint)]
    if leaves.is_deleted(first) or leaves.is_deleted(copy):
        hint = "a step that they were donated to has used them up: pass what that step returned"
        return [Mismatch(names[1], "deleted", f"what {names[0]} has", "a deleted array", hint)]
    unlike = difference(first, copy)
    if unlike is None:
        return []
    place, here, there = unlike
    spot = f"at {names[2]}[{place}]"
    expected = f"what {names[0]} has, {here} {spot}"
    return [Mismatch(names[1], "tie", expected, f"{there} {spot}", cure)]
