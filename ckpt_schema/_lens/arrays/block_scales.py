"""Numbers of few bits, with one scale for each block of them: what they stand for, and new ones for what is given.

A kernel ``float8[300 256]`` in blocks of 128 by 128 has scales ``float32[3 2]``; the last block of
the first axis is cut short. `fold_arithmetic` calls this for the rule `dequantize`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ckpt_schema._compat import Tracer
from ckpt_schema._layouts import leaves
from ckpt_schema._layouts.formats import FORMATS
from ckpt_schema._lens.arrays.blocks import Kind
from ckpt_schema._trees import placement
from ckpt_schema._trees.jitted import Program

__all__ = ["by_shards", "dequantized", "greatest", "grid_of", "requantized"]

Blocks = Sequence[int | None]
"""How many elements a block has along each axis; None where it has all of them."""


def grid_of(shape: Sequence[int], block: Blocks) -> tuple[int, ...]:
    """How many blocks there are along each axis.

    Example:
        >>> grid_of((300, 256), (128, 128)), grid_of((300, 256), (1, None))
        ((3, 2), (300, 1))
    """
    counts: list[int] = []
    for length, size in zip(shape, _sizes(shape, block), strict=True):
        counts.append(-(-length // size))  # rounded up
    return tuple(counts)


def _sizes(shape: Sequence[int], block: Blocks) -> list[int]:
    """The elements of a block along each axis, at least one."""
    sizes: list[int] = []
    for length, size in zip(shape, block, strict=True):
        sizes.append(max(1, length if size is None else size))
    return sizes


@functools.cache
def greatest(dtype: str) -> float:
    """The greatest number of a dtype of few bits."""
    if dtype in FORMATS:
        return float(jnp.finfo(dtype).max)
    return float(jnp.iinfo(dtype).max)


def dequantized(values: Any, scales: Any, block: Blocks, dtype: str) -> tuple[Any, bool]:
    """The numbers times the scales of their blocks, and whether all are finite that may be.

    Each is computed in float32, or float64 where the scales are that, and rounded once.

    Args:
        values: The numbers. The result is where they are, block by block: nothing is gathered but
            the scales.
        scales: One for each block.
        block: How many numbers have one.
        dtype: That of the scales, and of the result.
    """
    shape, sizes = values.shape, _sizes(values.shape, block)
    if isinstance(values, Tracer) or isinstance(scales, Tracer):
        return _traced(values, scales, block, dtype), True
    grid = placement.gathered(scales).reshape(grid_of(shape, block))
    if not isinstance(values, jax.Array):
        with np.errstate(all="ignore"):
            spread = _spread(grid, sizes, (0,) * len(shape), shape)
            made: Any = _times(values, spread, dtype)
        return made, _is_finite(made, values, grid, block, dtype)

    def of_shard(data: Any, index: tuple[slice, ...]) -> Any:
        # Rows 192 to 300 of blocks of 128 have the scales 1 and 2, and begin 64 within the first.
        own: list[slice] = []
        offsets: list[int] = []
        for span, length, size in zip(index, shape, sizes, strict=True):
            start, end, _ = span.indices(length)
            first = start // size
            own.append(slice(first, -(-end // size)))
            offsets.append(start - first * size)
        return _program(tuple(sizes), tuple(offsets), dtype)(data, grid[tuple(own)])

    made = by_shards(placement.near(values), of_shard)
    if made is None:
        return _traced(values, scales, block, dtype), True
    is_finite = _is_finite(made, values, grid, block, dtype)
    return placement.in_memory(made, values.sharding.memory_kind), is_finite


def _traced(values: Any, scales: Any, block: Blocks, dtype: str) -> Any:
    shape, sizes = values.shape, _sizes(values.shape, block)
    grid = jnp.asarray(scales).reshape(grid_of(shape, block))
    return _times(values, _spread(grid, sizes, (0,) * len(shape), shape), dtype)


def by_shards(value: Any, make: Any) -> Any:
    """An array that is made shard by shard, each where it is; None within a trace, where no program is run.

    Args:
        value: What it is made of.
        make: Makes a shard of the data of one, and of its index.
    """
    parts: list[Any] = []
    for shard in value.addressable_shards:
        parts.append(make(shard.data, shard.index))
        if isinstance(parts[-1], Tracer):
            return None
    sharding = value.sharding
    return jax.make_array_from_single_device_arrays(value.shape, sharding, parts)


def _times(values: Any, spread: Any, dtype: str) -> Any:
    # Narrow floats have no product of their own on every backend.
    wide = jnp.promote_types("float32", dtype)
    return (values.astype(wide) * spread.astype(wide)).astype(leaves.dtype_of(dtype))


def _spread(grid: Any, sizes: Sequence[int], offsets: Sequence[int], shape: Sequence[int]) -> Any:
    """The scale of each element of a part of an array."""
    for axis, (size, offset, length) in enumerate(zip(sizes, offsets, shape, strict=True)):
        if size > 1 and grid.shape[axis] > 1:
            grid = grid.repeat(size, axis=axis)
            grid = grid[(*(slice(None),) * axis, slice(offset, offset + length))]
    return grid  # an axis that has one scale is spread by the product


@functools.lru_cache(maxsize=256)
def _program(sizes: tuple[int, ...], offsets: tuple[int, ...], dtype: str) -> Program:
    return Program(
        lambda data, grid: _times(data, _spread(grid, sizes, offsets, data.shape), dtype)
    )


def _is_finite(made: Any, values: Any, grid: Any, block: Blocks, dtype: str) -> bool:
    """Whether every product is finite of a finite number and a finite scale."""
    with np.errstate(all="ignore"):
        known = np.abs(grid.astype(np.float64))
    # Mostly the greatest scale says it already, and no product is looked at.
    most = float(known[np.isfinite(known)].max(initial=0)) * greatest(str(values.dtype))
    if most <= float(jnp.finfo(dtype).max):
        return True
    numbers = placement.gathered(values).astype(np.float64)
    products = placement.gathered(made).astype(np.float64)
    sizes = _sizes(values.shape, block)
    finite = _spread(np.isfinite(known), sizes, (0,) * products.ndim, products.shape)
    return not (~np.isfinite(products) & np.isfinite(numbers) & finite).any()


def requantized(whole: Any, block: Blocks, kinds: Sequence[Kind]) -> tuple[list[Any], bool]:
    """Numbers of few bits and their scales, and whether what they are made of is finite.

    The greatest number of a block becomes the greatest of the dtype, and each is rounded to the
    nearest. A block of zeros has the scale 1.

    Args:
        whole: What they are to stand for.
        block: How many of them have one scale.
        kinds: What the numbers are to be, and the scales.
    """
    if isinstance(whole, Tracer):
        return _quantized(jnp, whole, block, kinds), True
    wide = np.float64 if kinds[1].dtype == "float64" else np.float32
    host = placement.gathered(whole).astype(wide)
    with np.errstate(all="ignore"):
        made = _quantized(np, host, block, kinds)
    if isinstance(whole, jax.Array):
        sharding = whole.sharding
        of_scales = sharding
        # The grid of blocks need not divide as the numbers do: each device has all scales.
        if isinstance(sharding, jax.sharding.NamedSharding):
            of_scales = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
        made = [placement.placed(made[0], sharding), placement.placed(made[1], of_scales)]
    return made, bool(np.isfinite(host).all())


def _quantized(xp: Any, whole: Any, block: Blocks, kinds: Sequence[Kind]) -> list[Any]:
    numbers, scales = kinds
    shape, sizes = whole.shape, _sizes(whole.shape, block)
    wide = jnp.promote_types("float32", scales.dtype)
    # (300, 256) in blocks of 128 is padded to (384, 256), and shown as (3, 128, 2, 128).
    padding: list[tuple[int, int]] = []
    parted: list[int] = []
    for count, size, length in zip(grid_of(shape, block), sizes, shape, strict=True):
        padding.append((0, count * size - length))
        parted += [count, size]
    blocks = xp.pad(whole.astype(wide), padding).reshape(parted)
    inner = tuple(range(1, 2 * len(shape), 2))
    most = xp.abs(blocks).max(axis=inner, initial=0)
    top = greatest(numbers.dtype)
    scale = (most / np.asarray(top, wide)).astype(leaves.dtype_of(scales.dtype))
    scale = xp.where(scale == 0, xp.ones_like(scale), scale)
    # By the scale as it is stored: it may have been rounded, so that a quotient exceeds the top.
    spread = _spread(scale, sizes, (0,) * len(shape), shape).astype(wide)
    ratio = xp.clip(whole.astype(wide) / spread, -top, top)
    if numbers.dtype not in FORMATS:
        ratio = xp.rint(ratio)
    return [ratio.astype(leaves.dtype_of(numbers.dtype)), scale.reshape(scales.shape)]
