"""The leaves of trees as NumPy arrays, row by row, for laws that do without the code which finds leaves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ckpt_schema._layouts.table import Row
from ckpt_schema._trees.containers import Tree
from ckpt_schema.testing._named_arrays import Sizes, indices_of, key_of

__all__ = ["HeldLeaves", "by_key", "first", "host", "same", "whole_array"]

HeldLeaves = Mapping[tuple[str, ...], Any]
"""The leaves of a tree by key path, all segments as strings."""


def by_key(tree: Tree) -> dict[tuple[str, ...], Any]:
    """The leaves of a tree by key path, all segments as strings."""
    leaves: dict[tuple[str, ...], Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        leaves[tuple(jax.tree_util.keystr((key,), simple=True) for key in path)] = leaf
    return leaves


def whole_array(row: Row, found: HeldLeaves, sizes: Sizes) -> Any:
    """All leaves of a row as one array, unrolled levels first; None where one is missing."""
    leaves: list[Any] = []
    for indices in indices_of(row, sizes):
        key = key_of(row, indices)
        # A Variable or box in the way is one level more, above what is inside of its value.
        at = len(key) - row.inside
        boxed = (*key[:at], "value", *key[at:])
        leaf = found.get(key, found.get(boxed))
        if leaf is None:
            return None
        leaves.append(host(leaf))
    if not leaves:
        return None
    # The last leaf has the greatest indices: [2, 3] of 3 stages of 4 layers.
    counts = [last + 1 for last in indices_of(row, sizes)[-1]]
    return np.reshape(np.stack(leaves), (*counts, *leaves[0].shape))


def host(value: Any) -> np.ndarray[Any, Any]:
    """A leaf as a NumPy array; keys as their data."""
    keys = isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(value) if keys else value)


def same(one: Any, other: Any) -> bool:
    """Whether both have the same bits, or the same numbers where one is of another dtype."""
    if one.shape != other.shape:
        return False
    if one.dtype != other.dtype and jnp.issubdtype(one.dtype, jnp.floating):
        with np.errstate(invalid="ignore"):  # signaling NaNs
            left, right = one.astype(np.float64), other.astype(np.float64)
        # Both zeros are equal numbers: a sign that is lost shows in the sign alone.
        alike = np.array_equal(left, right, equal_nan=True)
        return alike and np.array_equal(np.signbit(left), np.signbit(right))
    if one.dtype != other.dtype:  # integers of two dtypes, or a Python number
        return bool(np.all(one.astype(np.int64) == other.astype(np.int64)))
    return np.ascontiguousarray(one).tobytes() == np.ascontiguousarray(other).tobytes()


def first(one: Any, other: Any) -> str:
    """Where the first element is that should be another."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return ""
    wanted, found = _octets(one), _octets(other)
    unlike = np.flatnonzero((wanted != found).any(axis=1))
    at = unlike[0]
    place = " ".join(map(str, np.unravel_index(at, one.shape)))
    bits = f"bits {_hexadecimal(wanted[at])}, found {_hexadecimal(found[at])}"
    return f"{len(unlike)} of {one.size} elements, the first at [{place}]: {bits}"


def _octets(array: Any) -> Any:
    """The bytes of each element, on an axis of their own."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(-1, array.itemsize)


def _hexadecimal(octets: Any) -> str:
    """The bits of an element as a number is written, the greatest first."""
    return f"0x{octets.tobytes()[::-1].hex()}"
