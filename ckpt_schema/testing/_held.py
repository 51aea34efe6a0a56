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
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        tuple(jax.tree_util.keystr((key,), simple=True) for key in path): leaf
        for path, leaf in flat
    }


def whole_array(row: Row, found: HeldLeaves, sizes: Sizes) -> Any:
    """All leaves of a row as one array, unrolled levels first; None where one is missing."""
    leaves: list[Any] = []
    for indices in indices_of(row, sizes):
        key = key_of(row, indices)
        at = len(key) - row.inside
        boxed = (*key[:at], "value", *key[at:])
        leaf = found.get(key, found.get(boxed))
        if leaf is None:
            return None
        leaves.append(host(leaf))
    if not leaves:
        return None
    counts = tuple(last + 1 for last in indices_of(row, sizes)[-1])
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
            numbers = [each.astype(np.float64) for each in (one, other)]
        alike = np.array_equal(*numbers, equal_nan=True)
        return alike and np.array_equal(*map(np.signbit, numbers))
    if one.dtype != other.dtype:  # integers of two dtypes, or a Python number
        return bool(np.all(one.astype(np.int64) == other.astype(np.int64)))
    return np.ascontiguousarray(one).tobytes() == np.ascontiguousarray(other).tobytes()


def first(one: Any, other: Any) -> str:
    """Where the first element is that should be another."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return ""
    octets = [np.ascontiguousarray(x).reshape(-1).view(f"V{x.itemsize}") for x in (one, other)]
    unlike = [n for n, (a, b) in enumerate(zip(*octets, strict=True)) if a.tobytes() != b.tobytes()]
    place = " ".join(str(at) for at in np.unravel_index(unlike[0], one.shape))
    bits = [f"0x{octet[unlike[0]].tobytes()[::-1].hex()}" for octet in octets]
    return f"{len(unlike)} of {one.size} elements, the first at [{place}]: bits {bits[0]}, found {bits[1]}"
