"""The law that a lens moves by names: an oracle of layouts and rules says where each element comes from, bit by bit."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ckpt_schema.errors import Mismatch
from ckpt_schema.lens.core import Lens
from ckpt_schema.lens.derivation import Derivation
from ckpt_schema.paths import format_path
from ckpt_schema.table import Row
from ckpt_schema.testing.frames import FILLS, Sizes, bases, indices_of, key_of
from ckpt_schema.testing.laws import LawError
from ckpt_schema.testing.origins import Origin, origins
from ckpt_schema.trees import Tree

__all__ = ["naming"]


def naming(lens: Lens, s: Tree) -> None:
    """``get(s)[name][i] == s[name][i]`` for every leaf and every index ``i`` by the names of dims and layers.

    What rules say of axes, parts, copies, padding and factors is said of the elements as well.
    """
    found, before, after = origins_of(lens), _by_key(s), _by_key(lens.get(s))
    starts = bases(lens.source, lens.dims)
    faults: list[Mismatch] = []
    for number, origin in found.items():
        row, rows = lens.view.rows[number], [lens.source.rows[at] for at in origin.rows]
        ours = [_whole(each, before, lens.dims) for each in rows]
        if any(each is None for each in ours):
            continue
        theirs = _whole(row, after, lens.dims)
        if theirs is None:
            faults.append(_fault(rows, row, "nothing"))
            continue
        expected = _expected(origin, [starts[at] for at in origin.rows], ours)
        if not _same(expected, theirs):
            faults.append(
                _fault(rows, row, "others, or in another order", _first(expected, theirs))
            )
    if faults:
        raise LawError("elements are not where their names say", faults)


def _fault(rows: list[Row], row: Row, found: str, hint: str = "") -> Mismatch:
    names = " and ".join(f"{format_path(each.key)}, {each.stored}" for each in rows)
    return Mismatch(
        format_path(row.key), "naming", f"the elements of {names}, by their names", found, hint
    )


@functools.lru_cache(maxsize=256)
def origins_of(lens: Lens) -> Mapping[int, Origin]:
    """Where everything comes from; where paths do not tell, as in chains unlike each other, the lens does."""
    steps = lens.derivations or (Derivation(lens.source, lens.view),)
    pairs = [join.pairs[0] for join in lens.joins if join.plain]
    return origins(steps, lens.dims, pairs)


def _by_key(tree: Tree) -> dict[tuple[str, ...], Any]:
    """The leaves of a tree by key path, all segments as strings."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        tuple(jax.tree_util.keystr((key,), simple=True) for key in path): leaf
        for path, leaf in flat
    }


def _whole(row: Row, found: Mapping[tuple[str, ...], Any], sizes: Sizes) -> Any:
    """All leaves of a row as one array, unrolled levels first; None where one is missing."""
    leaves: list[Any] = []
    for indices in indices_of(row, sizes):
        key = key_of(row, indices)
        at = len(key) - row.inside
        boxed = (*key[:at], "value", *key[at:])
        leaf = found.get(key, found.get(boxed))
        if leaf is None:
            return None
        leaves.append(_host(leaf))
    if not leaves:
        return None
    counts = tuple(last + 1 for last in indices_of(row, sizes)[-1])
    return np.reshape(np.stack(leaves), (*counts, *leaves[0].shape))


def _host(value: Any) -> np.ndarray[Any, Any]:
    keys = isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(value) if keys else value)


def _expected(origin: Origin, starts: list[int], values: list[Any]) -> np.ndarray[Any, Any]:
    """What the row should hold, all of its leaves as one array, as the source's dtype has it."""
    ids = origin.ids.ravel()
    made = np.zeros(ids.shape, values[0].dtype)
    for start, value in zip(starts, values, strict=True):
        own = (ids >= start) & (ids < start + value.size)
        made[own] = value.ravel()[ids[own] - start]
    if origin.exponent:
        made = _scaled(made, origin.exponent)
    for number, fill in enumerate(origin.fills):
        made[ids == FILLS - number] = np.asarray(fill).astype(made.dtype)
    return made.reshape(origin.ids.shape)


def _scaled(value: np.ndarray[Any, Any], exponent: int) -> np.ndarray[Any, Any]:
    """Floats times a power of two; what is no number keeps its bits."""
    with np.errstate(all="ignore"):
        scaled = (value.astype(np.float64) * 2.0**exponent).astype(value.dtype)
    return np.where(np.isnan(value), value, scaled)


def _same(one: Any, other: Any) -> bool:
    if one.shape != other.shape:
        return False
    if one.dtype != other.dtype:  # integers of two dtypes, or a Python number
        return bool(np.all(one.astype(np.int64) == other.astype(np.int64)))
    return np.ascontiguousarray(one).tobytes() == np.ascontiguousarray(other).tobytes()


def _first(one: Any, other: Any) -> str:
    """Where the first element is that should be another."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return ""
    octets = [np.ascontiguousarray(x).reshape(-1).view(f"V{x.itemsize}") for x in (one, other)]
    unlike = [n for n, (a, b) in enumerate(zip(*octets, strict=True)) if a.tobytes() != b.tobytes()]
    place = " ".join(str(at) for at in np.unravel_index(unlike[0], one.shape))
    bits = [f"0x{octet[unlike[0]].tobytes()[::-1].hex()}" for octet in octets]
    return f"{len(unlike)} of {one.size} elements, the first at [{place}]: bits {bits[0]}, found {bits[1]}"
