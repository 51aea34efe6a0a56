"""Defaults, made: the leaves of a tree that nothing else tells.

A plan makes them last, when all that moves and all tasks are done. Of keys each leaf gets its own,
which follows from where it stands in the model and not from how the layout keeps it.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts import leaves
from ckpt_schema._layouts.leaves import ConstantKey, Fill, FreshKey, Made, key_impl
from ckpt_schema._layouts.table import Row

__all__ = ["Receiver", "make_default", "spot_of", "stand_in"]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Receiver:
    """Which leaf of a model a default is made for.

    Attributes:
        path: The logical path of its row, within the model.
        numbers: The number of each repeat that the leaf holds, on as many axes as the leaf has;
            None without repeats.
    """

    path: str = ""
    numbers: np.ndarray[Any, Any] | None = None


_ANYWHERE = Receiver()


def spot_of(row: Row, indices: Sequence[int], sizes: Mapping[str, int]) -> Receiver | None:
    """Where a slot of a row stands, or None while a number of repeats is not known.

    Repeats are counted through all levels, outermost first: a stack and a list of the same layers
    have the same numbers.
    """
    path = "/".join(row.model_path)
    if not row.repeats:
        return Receiver(path)
    counts = dims_.sizes_of(tuple(repeat.size for repeat in row.repeats), sizes)
    if counts is None:
        return None
    axes: dict[int, int] = {}
    for axis, (kind, level) in enumerate(row.axes):
        if kind == "level":
            axes[level] = axis
    # Item 1 of a list, of stacks of 3 layers each: [3 4 5], on the stack axis.
    numbers, unrolled = np.zeros((1,) * len(row.axes), np.uint32), iter(indices)
    for level, count in enumerate(counts):
        if level in axes:
            within: Any = _along(axes[level], count, numbers.ndim)
        else:
            within = next(unrolled)
        numbers = numbers * np.uint32(count) + np.asarray(within, np.uint32)
    return Receiver(path, numbers)


def _along(axis: int, count: int, rank: int) -> np.ndarray[Any, Any]:
    """The numbers from 0 on, on one axis of many."""
    shape = [1] * rank
    shape[axis] = count
    return np.arange(count).reshape(shape)


def make_default(
    default: Made,
    dtype: str,
    shape: tuple[int, ...],
    sharding: Any = None,
    spot: Receiver = _ANYWHERE,
) -> jax.Array:
    """The default value of a leaf.

    Args:
        default: How it is made.
        dtype: The dtype name of the leaf.
        shape: Its concrete shape.
        sharding: Where it goes. With a sharding over several hosts the result is one global array.
        spot: Which leaf it is.

    Returns:
        An array of exactly that dtype and shape.
    """
    data = _words(default, dtype, spot) if dtype.startswith("key<") else _number(default, dtype)
    if sharding is None:
        return _made(dtype, shape, data)
    return _program(dtype, shape, sharding)(data)


def _number(default: Made, dtype: str) -> np.ndarray[Any, Any]:
    return np.asarray(default.value if isinstance(default, Fill) else 0, jnp.dtype(dtype))


def _words(default: Made, dtype: str, spot: Receiver) -> np.ndarray[Any, Any]:
    """The raw data of the keys, on every host the same, whatever is traced around it."""
    seed = 0 if isinstance(default, Fill) else default.seed
    with jax.ensure_compile_time_eval():
        key = jax.random.key(seed, impl=key_impl(dtype))
        if isinstance(default, FreshKey):
            # Python's hash of a string is another one in each process.
            key = jax.random.fold_in(key, np.uint32(zlib.crc32(spot.path.encode())))
            # As a list, for fold_in takes one number; then back on the axes of the leaf.
            if spot.numbers is not None:
                key = _folded(key, spot.numbers.ravel()).reshape(spot.numbers.shape)
        return np.asarray(jax.random.key_data(key))


@jax.jit
def _folded(key: jax.Array, numbers: jax.Array) -> jax.Array:
    """The key folded with each number. Not by ``vmap``, under which unsafe_rbg makes other keys than without."""
    return jax.lax.map(functools.partial(jax.random.fold_in, key), numbers)


def _made(dtype: str, shape: tuple[int, ...], data: Any) -> jax.Array:
    if not dtype.startswith("key<"):
        return jnp.broadcast_to(data, shape)
    # A key's words are one more axis, which the shape of keys does not have.
    words = jnp.broadcast_to(data, (*shape, data.shape[-1]))
    return jax.random.wrap_key_data(words, impl=key_impl(dtype))


@functools.lru_cache(maxsize=1024)
def _program(dtype: str, shape: tuple[int, ...], sharding: Any) -> Any:
    """What makes a default, compiled once for all layers."""
    return jax.jit(functools.partial(_made, dtype, shape), out_shardings=sharding)


def stand_in(goal: Any) -> Any:
    """A leaf of no bytes for one whose value nobody asks for."""
    # NumPy has no keys, so that these alone cannot be a view of one element.
    if leaves.describe(goal).startswith("key<"):
        return make_default(ConstantKey(0), str(goal.dtype), goal.shape)
    return np.broadcast_to(np.zeros((), goal.dtype), goal.shape)
