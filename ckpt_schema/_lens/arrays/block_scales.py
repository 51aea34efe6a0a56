"""Numbers of few bits, with one scale for each block of them: what they stand for, and new ones for what is given.

A kernel ``float8[300 256]`` in blocks of 128 by 128 has scales ``float32[3 2]``; the last block of
the first axis is cut short. Blocks are of numbers, whether each is an element or several stand in a
word. `fold_arithmetic` calls this for the rule `dequantize`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ckpt_schema._compat import Tracer
from ckpt_schema._layouts import leaves
from ckpt_schema._layouts.formats import FORMATS
from ckpt_schema._lens.arrays import floats
from ckpt_schema._lens.arrays.blocks import Kind
from ckpt_schema._lens.arrays.packed_words import (
    packed_words,
    packed_zeros,
    unpacked_numbers,
    unpacked_zeros,
    zeros_axis,
)
from ckpt_schema._lens.fold_rules import EXPONENTS, Scaling
from ckpt_schema._trees import placement
from ckpt_schema._trees.jitted import Program

__all__ = ["by_shards", "dequantized", "greatest", "grid_of", "has_nan_exponents", "requantized"]

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


def has_nan_exponents(scales: Any, dtype: str) -> bool:
    """Whether scales that are exponents have the one that stands for no number, 255."""
    if dtype not in EXPONENTS or isinstance(scales, Tracer):
        return False
    return bool((placement.gathered(scales).view(np.uint8) == _NO_EXPONENT).any())


_NO_EXPONENT = 255


def dequantized(parts: Sequence[Any], kind: Scaling, kinds: Sequence[Kind]) -> tuple[Any, bool]:
    """The numbers times the scales of their blocks, and whether all are finite that may be.

    Each is computed in float32, or float64 where the scales are that, and rounded once.

    Args:
        parts: The numbers, or words of them; the scales, one for each block; and what stands for
            zero in each, if anything does. The result is where the numbers are, block by block:
            nothing is gathered but the others.
        kind: How many numbers have one scale, and how they stand in words.
        kinds: What each part is.
    """
    values, work = parts[0], _Work.of(kind, kinds)
    if any(isinstance(part, Tracer) for part in parts):
        return _traced(parts, work), True
    scales = work.scales(placement.gathered(parts[1]))
    zeros = work.zeros(placement.gathered(parts[2])) if kind.has_zeros else None
    # Subnormal floats may count as zero on devices: none is met where all scales are far from that.
    is_exact = not _are_plain(scales)

    def of_part(data: Any, index: tuple[slice, ...]) -> Any:
        own, offsets = work.part(index)
        grids = [scales[own]] if zeros is None else [scales[own], zeros[own]]
        if not isinstance(data, jax.Array):
            return work.made(data, grids, offsets, is_exact=False)
        return _program(work, offsets, is_exact)(data, *grids)

    made: Any
    if isinstance(values, jax.Array):
        made = by_shards(placement.near(values), of_part, work.shape)
        if made is None:
            return _traced(parts, work), True
    else:
        made = np.empty(work.shape, leaves.dtype_of(work.dtype))
        for index in _spans(values.shape):
            made[work.whole(index)] = of_part(values[index], index)
    is_finite = _is_finite(made, values, scales, zeros, work)
    if isinstance(values, jax.Array):
        made = placement.in_memory(made, values.sharding.memory_kind)
    return made, is_finite


def _spans(shape: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """An array in parts along its first axes, of as many elements at a time as need be wide at once."""
    axis = 0
    while axis < len(shape) and np.prod(shape[axis + 1 :], dtype=int) > _AT_ONCE:
        axis += 1
    if axis == len(shape):
        yield (slice(None),) * axis
        return
    step = max(1, _AT_ONCE // max(1, int(np.prod(shape[axis + 1 :], dtype=int))))
    starts = [range(0, length, 1) for length in shape[:axis]]
    for start in itertools.product(*starts, range(0, shape[axis], step)):
        index = [slice(at, at + 1) for at in start[:-1]]
        last = slice(start[-1], min(start[-1] + step, shape[axis]))
        yield (*index, last, *[slice(None)] * (len(shape) - axis - 1))


_AT_ONCE = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class _Work:
    """Numbers with scales, of given sizes.

    Attributes:
        kind: How many numbers have one scale, and how they stand in words.
        shape: The shape of the numbers.
        stored: The dtype that they, or words of them, are stored in.
        scaled: That of the scales.
        dtype: That of the products.
        axis: Along which axis of the blocks what stands for zero is packed, see `zeros_axis`.
    """

    kind: Scaling
    shape: tuple[int, ...]
    stored: str
    scaled: str
    dtype: str
    axis: int = -1

    @classmethod
    def of(cls, kind: Scaling, kinds: Sequence[Kind]) -> _Work:
        """What parts of these kinds are."""
        stored, scaled = kinds[0].dtype, kinds[1].dtype
        shape = kind.whole(kinds[0].shape)
        axis = -1
        if kind.has_zeros:
            found = zeros_axis(kinds[2], stored, grid_of(shape, kind.block), kind.packing)
            axis = -1 if found is None else found
        return cls(kind, shape, stored, scaled, kind.dtype([stored, scaled]), axis)

    @property
    def numbers(self) -> str:
        """The dtype of the numbers."""
        return self.kind.numbers(self.stored)

    @property
    def sizes(self) -> list[int]:
        """The numbers of a block along each axis, at least one."""
        return _sizes(self.shape, self.kind.block)

    @property
    def grid(self) -> tuple[int, ...]:
        """How many blocks there are along each axis."""
        return grid_of(self.shape, self.kind.block)

    @property
    def wide(self) -> Any:
        """The floats that are computed in."""
        return np.float64 if self.scaled == "float64" else np.float32

    def scales(self, stored: Any) -> Any:
        """The scales, one for each block, in the floats that are computed in."""
        grid = stored.reshape(self.grid)
        if self.scaled not in EXPONENTS:
            return grid.astype(self.wide)
        bits = grid if self.scaled == "uint8" else floats.as_unsigned(grid)
        wide, _ = floats.recast(bits, FORMATS["float8_e8m0fnu"], FORMATS["float32"])
        return floats.reinterpreted(wide, np.float32)

    def zeros(self, stored: Any) -> Any:
        """What stands for zero in each block."""
        return unpacked_zeros(stored, self.axis, self.grid, self.kind.packing)

    def whole(self, index: tuple[slice, ...]) -> tuple[slice, ...]:
        """The numbers of a part of what is stored."""
        packing = self.kind.packing
        if packing is None:
            return index
        spans = [*index]
        span, count = spans[packing.axis], packing.count
        if span != slice(None):
            start, end, _ = span.indices(self.shape[packing.axis] // count)
            spans[packing.axis] = slice(start * count, end * count)
        return tuple(spans)

    def part(self, index: tuple[slice, ...]) -> tuple[tuple[slice, ...], tuple[int, ...]]:
        """The blocks that a part of what is stored touches, and where it begins within the first of them."""
        # Rows 192 to 300 of blocks of 128 have the scales 1 and 2, and begin 64 within the first.
        own: list[slice] = []
        offsets: list[int] = []
        for span, length, size in zip(self.whole(index), self.shape, self.sizes, strict=True):
            start, end, _ = span.indices(length)
            first = start // size
            own.append(slice(first, -(-end // size)))
            offsets.append(start - first * size)
        return tuple(own), tuple(offsets)

    def made(
        self, data: Any, grids: Sequence[Any], offsets: Sequence[int], *, is_exact: bool
    ) -> Any:
        """The products of a part.

        Args:
            data: What is stored of it.
            grids: The scales of the blocks that it touches, and what stands for zero there.
            offsets: Where it begins within the first of these, along each axis.
            is_exact: Whether floats are to be multiplied as integers.
        """
        packing = self.kind.packing
        # Integers narrower than a byte are not computed with, and narrow floats have no products.
        numbers = data if packing is None else unpacked_numbers(data, packing)
        spread = [_spread(grid, self.sizes, offsets, numbers.shape) for grid in grids]
        if self.kind.has_zeros or self.kind.zero:
            zero = spread[1] if self.kind.has_zeros else np.int32(self.kind.zero)
            numbers = numbers.astype(np.int32) - zero
        numbers = numbers.astype(self.wide)
        if not is_exact:
            with np.errstate(all="ignore"):
                return (numbers * spread[0]).astype(leaves.dtype_of(self.dtype))
        form = FORMATS[str(np.dtype(self.wide))]
        scales = jnp.broadcast_to(spread[0], numbers.shape)
        few, other = floats.as_unsigned(numbers), floats.as_unsigned(scales)
        bits = floats.product(few, other, form, FORMATS[self.dtype])
        return floats.reinterpreted(bits, leaves.dtype_of(self.dtype))


def _are_plain(scales: Any) -> bool:
    """Whether no scale is subnormal, nor any product that a number of few bits makes with one."""
    with np.errstate(all="ignore"):
        size = np.abs(scales)
        return not ((size < 2.0**-100) & (size > 0)).any()


@functools.lru_cache(maxsize=256)
def _program(work: _Work, offsets: tuple[int, ...], is_exact: bool) -> Program:
    return Program(lambda data, *grids: work.made(data, grids, offsets, is_exact=is_exact))


def _traced(parts: Sequence[Any], work: _Work) -> Any:
    """The same under a trace. What is computed as integers has no derivative: it is given besides."""

    def made(data: Any, scales: Any, *others: Any, is_exact: bool = True) -> Any:
        grids = [work.scales(scales)]
        grids += map(work.zeros, others)
        return work.made(data, grids, (0,) * data.ndim, is_exact=is_exact)

    moved = jax.custom_jvp(made)

    def tangents(primals: tuple[Any, ...], along: tuple[Any, ...]) -> tuple[Any, Any]:
        by_float = functools.partial(made, is_exact=False)
        return moved(*primals), jax.jvp(by_float, primals, along)[1]

    moved.defjvp(tangents)
    return moved(*map(jnp.asarray, parts))


def by_shards(value: Any, make: Any, shape: Sequence[int] | None = None) -> Any:
    """An array that is made shard by shard, each where it is; None within a trace, where no program is run.

    Args:
        value: What it is made of.
        make: Makes a shard of the data of one, and of its index.
        shape: That of the result, if not the value's.
    """
    parts: list[Any] = []
    for shard in value.addressable_shards:
        parts.append(make(shard.data, shard.index))
        if isinstance(parts[-1], Tracer):
            return None
    sharding = value.sharding
    return jax.make_array_from_single_device_arrays(tuple(shape or value.shape), sharding, parts)


def _spread(grid: Any, sizes: Sequence[int], offsets: Sequence[int], shape: Sequence[int]) -> Any:
    """The scale of each element of a part of an array."""
    for axis, (size, offset, length) in enumerate(zip(sizes, offsets, shape, strict=True)):
        if size > 1 and grid.shape[axis] > 1:
            grid = grid.repeat(size, axis=axis)
            grid = grid[(*(slice(None),) * axis, slice(offset, offset + length))]
    return grid  # an axis that has one scale is spread by the product


def _is_finite(made: Any, values: Any, scales: Any, zeros: Any, work: _Work) -> bool:
    """Whether every product is finite of a finite number and a finite scale."""
    with np.errstate(all="ignore"):
        known = np.abs(scales.astype(np.float64))
    # Mostly the greatest scale says it already, and no product is looked at.
    size = greatest(work.numbers)
    if zeros is not None:
        size += float(np.abs(zeros).max(initial=0))
    most = float(known[np.isfinite(known)].max(initial=0)) * (size + 1 + abs(work.kind.zero))
    if most <= float(jnp.finfo(work.dtype).max):
        return True
    products = placement.gathered(made).astype(np.float64)
    finite = _spread(np.isfinite(known), work.sizes, (0,) * products.ndim, products.shape)
    beyond = ~np.isfinite(products) & finite
    if work.kind.packing is None and beyond.any():  # numbers in words are all finite
        beyond &= np.isfinite(placement.gathered(values).astype(np.float64))
    return not beyond.any()


def requantized(whole: Any, kind: Scaling, kinds: Sequence[Kind]) -> tuple[list[Any], str]:
    """Numbers of few bits, their scales, what stands for zero; and which values have none, if any.

    The greatest number of a block becomes the greatest of the dtype, and each is rounded to the
    nearest. A block of zeros has the scale 1.

    Args:
        whole: What they are to stand for.
        kind: How many of them have one scale, and how they stand in words.
        kinds: What each part is to be.
    """
    work = _Work.of(kind, kinds)
    if isinstance(whole, Tracer):
        return _quantized(jnp, whole, work, kinds), ""
    host = placement.gathered(whole).astype(work.wide)
    if not np.isfinite(host).all():
        return [], "one that is none"
    if not kind.has_zeros and _range(work)[0] == 0 and (host < 0).any():
        return [], f"{host.min()}, and {work.numbers} less {kind.zero} is never below 0"
    with np.errstate(all="ignore"):
        made = _quantized(np, host, work, kinds)
    if isinstance(whole, jax.Array):
        sharding = whole.sharding
        of_others = sharding
        # The grid of blocks need not divide as the numbers do: each device has all scales.
        if isinstance(sharding, jax.sharding.NamedSharding):
            of_others = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
        first = sharding if placement.divides(sharding, made[0].shape) else of_others
        made = [placement.placed(made[0], first)] + [
            placement.placed(other, of_others) for other in made[1:]
        ]
    return made, ""


def _range(work: _Work) -> tuple[float, float]:
    """The least and the greatest number, what stands for zero taken off."""
    if work.numbers in FORMATS:
        top = greatest(work.numbers)
        return -top, top
    info = jnp.iinfo(work.numbers)
    low, high = int(info.min) - work.kind.zero, int(info.max) - work.kind.zero
    # -128 has no partner above: values are as far from zero on either side.
    return float(max(low, -high) if low == -high - 1 else low), float(high)


def _quantized(xp: Any, given: Any, work: _Work, kinds: Sequence[Kind]) -> list[Any]:
    shape, sizes = work.shape, work.sizes
    whole = given.astype(work.wide)
    # (300, 256) in blocks of 128 is padded to (384, 256), and shown as (3, 128, 2, 128).
    padding: list[tuple[int, int]] = []
    parted: list[int] = []
    for count, size, length in zip(work.grid, sizes, shape, strict=True):
        padding.append((0, count * size - length))
        parted += [count, size]
    blocks = xp.pad(whole, padding).reshape(parted)
    inner = tuple(range(1, 2 * len(shape), 2))
    above, below = blocks.max(axis=inner, initial=0), -blocks.min(axis=inner, initial=0)
    low, high = _range(work)
    one = np.asarray(1, work.wide)
    if work.kind.has_zeros:
        scale = (above + below) / (high - low) * one
    else:
        scale = xp.maximum(above / high, below / -low if low else below * 0) * one
    scale, stored = _stored_scales(xp, scale, work)
    # By the scale as it is stored: it may have been rounded, so that a quotient exceeds the top.
    spread = _spread(scale, sizes, (0,) * len(shape), shape)
    ratio = whole / spread
    others: list[Any] = [stored.reshape(kinds[1].shape)]
    if work.kind.has_zeros:
        info = jnp.iinfo(work.numbers)
        low, high = float(info.min), float(info.max)
        zeros = xp.clip(xp.rint(low + below / scale), low, high)
        ratio = xp.rint(ratio) + _spread(zeros, sizes, (0,) * len(shape), shape)
        zeros = zeros.astype(np.int32)
        others.append(packed_zeros(zeros, work.axis, kinds[2], work.kind.packing))
    ratio = xp.clip(ratio, low, high)
    if work.numbers not in FORMATS:
        ratio = xp.rint(ratio).astype(np.int32) + np.int32(work.kind.zero)
    packing = work.kind.packing
    if packing is None:
        return [ratio.astype(leaves.dtype_of(work.stored)), *others]
    if work.numbers in FORMATS:
        ratio = ratio.astype(leaves.dtype_of(work.numbers))
    return [packed_words(ratio, packing, work.stored), *others]


def _stored_scales(xp: Any, scale: Any, work: _Work) -> tuple[Any, Any]:
    """Scales as they are stored, in the floats that are computed in and in their dtype."""
    if work.scaled not in EXPONENTS:
        stored = scale.astype(leaves.dtype_of(work.scaled))
        stored = xp.where(stored == 0, xp.ones_like(stored), stored)
        return stored.astype(work.wide), stored
    # The least power of two with which the greatest number is none beyond the dtype's.
    mantissa, exponent = xp.frexp(scale)
    power = exponent - (mantissa == 0.5) + _BIAS
    power = xp.where(scale == 0, _BIAS, xp.clip(power, 0, _NO_EXPONENT - 1)).astype(np.uint8)
    stored = (
        power
        if work.scaled == "uint8"
        else floats.reinterpreted(power, leaves.dtype_of(work.scaled))
    )
    return work.scales(stored), stored


_BIAS = 127
