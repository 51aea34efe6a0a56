"""What is in a tree, read without the package: by path, each leaf's dtype, shape and bits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from fuzz.attempts import SilentError

Path = tuple[str, ...]
Bits = tuple[str, tuple[int, ...], bytes]
ABSTRACT, DELETED = b"abstract", b"deleted"


def leaves(tree: Any) -> dict[Path, Bits]:
    """The leaves by path, each key as a string, whatever the containers are."""
    return {path: bits(leaf) for path, leaf in _walked(tree, ())}


def _walked(tree: Any, at: Path) -> Iterator[tuple[Path, Any]]:
    if isinstance(tree, Mapping):
        for key, child in tree.items():
            yield from _walked(child, (*at, str(key)))
    elif isinstance(tree, (list, tuple)):
        for key, child in enumerate(tree):
            yield from _walked(child, (*at, str(key)))
    elif isinstance(tree, nnx.Variable):
        yield at, tree.get_value()
    elif tree is not None:
        yield at, tree


def bits(leaf: Any) -> Bits:
    """What a leaf holds. A Python number is what jax makes of it, an abstract leaf has no bits."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return str(leaf.dtype), tuple(leaf.shape), ABSTRACT
    if isinstance(leaf, jax.Array) and leaf.is_deleted():
        return str(leaf.dtype), leaf.shape, DELETED
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return str(leaf.dtype), leaf.shape, np.asarray(jax.random.key_data(leaf)).tobytes()
    if isinstance(leaf, (int, float, complex)) and not isinstance(leaf, np.generic):
        kind = {bool: "bool", int: "int32", float: "float32"}.get(type(leaf), "complex64")
        leaf = np.asarray(leaf, kind)
    value = np.asarray(leaf)
    return str(value.dtype), value.shape, value.tobytes()


def same(found: Any, expected: Any, *, abstract: bool = False) -> None:
    """Raises where two trees do not hold the same leaves, to the last bit.

    Args:
        found: What the package gave.
        expected: What is right.
        abstract: Whether what was given holds leaves without values, so that the result may have some.
    """
    ours, theirs = leaves(expected), leaves(found)
    if abstract:
        for path in ours.keys() & theirs.keys():
            if theirs[path][2] in (ABSTRACT, DELETED):
                ours[path] = (*ours[path][:2], theirs[path][2])
    for path in sorted({*ours, *theirs}):
        expects, holds = ours.get(path), theirs.get(path)
        if expects != holds:
            told = [leaf and (leaf[0], leaf[1]) for leaf in (holds, expects)]  # no bits to be read
            what = "other bits" if told[0] == told[1] else f"{told[0]} instead of {told[1]}"
            raise SilentError(f"{'/'.join(path)[:100]}: {what}"[:300])
