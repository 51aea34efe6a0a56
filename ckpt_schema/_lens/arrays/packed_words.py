"""Numbers of few bits that stand in words of integers, several in each: taken out of the words, and put in.

A byte ``0x21`` of two ``uint4`` is the numbers 1 and 2: the first has the lowest bits. A word that is
not full has zeros above. Both ways are shifts of integers, the same on NumPy and on every backend.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ckpt_schema._layouts import leaves
from ckpt_schema._layouts.formats import FORMATS
from ckpt_schema._lens.arrays.blocks import Kind
from ckpt_schema._lens.arrays.floats import as_unsigned, recast, reinterpreted, xp_of
from ckpt_schema._lens.fold_rules import Packing

__all__ = [
    "packed_words",
    "packed_zeros",
    "unpacked_numbers",
    "unpacked_zeros",
    "zeros_axis",
]


def unpacked_numbers(words: Any, packing: Packing) -> Any:
    """The numbers in words: integers as int32, floats as float32, which has all of them.

    Example:
        >>> unpacked_numbers(np.uint8([[0x21, 0xF8]]), Packing("int4", 1, 2))
        array([[ 1,  2, -8, -1]], dtype=int32)
        >>> unpacked_numbers(np.uint8([[0x21, 0xF8]]), Packing("float4_e2m1fn", 1, 2))
        array([[ 0.5,  1. , -0. , -6. ]], dtype=float32)
    """
    xp, bits, axis = xp_of(words), packing.bits, packing.axis
    plain = as_unsigned(words)
    kind = plain.dtype.type
    parts: list[Any] = []
    for number in range(packing.count):
        parts.append((plain >> kind(number * bits)) & kind((1 << bits) - 1))
    # Behind the words of an axis stands one more, of the numbers in a word.
    codes = xp.stack(parts, axis=axis + 1).reshape(packing.whole(words.shape))
    return _numbers(codes, packing.numbers, bits)


def _numbers(codes: Any, numbers: str, bits: int) -> Any:
    """What bits stand for."""
    form = FORMATS.get(numbers)
    if form is None:
        made = codes.astype(np.int32)
        # Of int4, 15 is -1.
        half = np.int32(1 << (bits - 1))
        return (made ^ half) - half if numbers.startswith("int") else made
    wide, _ = recast(codes.astype(np.uint8), form, FORMATS["float32"])
    return reinterpreted(wide, np.float32)


def packed_words(numbers: Any, packing: Packing, dtype: str) -> Any:
    """The words of numbers, which are of the packing's dtype, or integers that it has.

    Args:
        numbers: The numbers, so many that each word is full.
        packing: How they stand in words.
        dtype: That of the words.
    """
    xp, axis, bits = xp_of(numbers), packing.axis, packing.bits
    shape = [*numbers.shape]
    shape[axis : axis + 1] = [shape[axis] // packing.count, packing.count]
    kind = np.dtype(f"uint{np.dtype(dtype).itemsize * 8}").type
    codes = (_codes(numbers, packing).astype(kind) & kind((1 << bits) - 1)).reshape(shape)
    words = xp.zeros((*shape[: axis + 1], *shape[axis + 2 :]), kind)
    for number in range(packing.count):
        words = words | (codes.take(number, axis=axis + 1) << kind(number * bits))
    return reinterpreted(words, dtype)


def _codes(numbers: Any, packing: Packing) -> Any:
    """The bits of numbers."""
    if packing.numbers not in FORMATS:
        return numbers.astype(np.int32)
    if xp_of(numbers) is np:
        return as_unsigned(numbers)
    # A device has numbers of four bits, in which NumPy fills a byte.
    return jax.lax.bitcast_convert_type(numbers, f"uint{packing.bits}").astype(np.uint8)


# --- What stands for zero  ---


def zeros_axis(zeros: Kind, words: str, grid: Sequence[int], packing: Packing | None) -> int | None:
    """Along which axis of the blocks what stands for zero is packed; -1 where it is not, None where it is not as many.

    Args:
        zeros: What is stored of it.
        words: The dtype of the words of numbers.
        grid: How many blocks there are along each axis.
        packing: How the numbers stand in words.

    Example:
        >>> packing = Packing("uint4", 1, 8)
        >>> zeros_axis(Kind((2, 4), "int32"), "int32", (16, 4), packing)
        0
    """
    # Words come first: of an axis with one block, a word is that number as well.
    if packing is not None and zeros.dtype == words and len(zeros.shape) == len(grid):
        for axis, length in enumerate(grid):
            shape = [*grid]
            shape[axis] = -(-length // packing.count)  # rounded up: the last word is filled up
            if tuple(shape) == tuple(zeros.shape):
                return axis
    # An axis with one block may be left out: nothing is meant by it.
    is_alike = [n for n in grid if n != 1] == [n for n in zeros.shape if n != 1]
    return -1 if is_alike else None


def unpacked_zeros(zeros: Any, axis: int, grid: Sequence[int], packing: Packing | None) -> Any:
    """What stands for zero in each block.

    Args:
        zeros: What is stored of it.
        axis: What `zeros_axis` says.
        grid: How many blocks there are along each axis.
        packing: How the numbers stand in words.
    """
    if axis < 0 or packing is None:
        return zeros.astype(np.int32).reshape(tuple(grid))
    made = unpacked_numbers(zeros, dataclasses.replace(packing, axis=axis))
    return made[tuple([slice(length) for length in grid])]


def packed_zeros(numbers: Any, axis: int, zeros: Kind, packing: Packing | None) -> Any:
    """The inverse: as it is stored.

    Args:
        numbers: What stands for zero in each block.
        axis: What `zeros_axis` says.
        zeros: What is to be stored.
        packing: How the numbers stand in words.
    """
    if axis < 0 or packing is None:
        return numbers.astype(leaves.dtype_of(zeros.dtype)).reshape(zeros.shape)
    padding = [(0, 0)] * numbers.ndim
    padding[axis] = (0, -numbers.shape[axis] % packing.count)
    full = xp_of(numbers).pad(numbers, padding)
    return packed_words(full, dataclasses.replace(packing, axis=axis), zeros.dtype)
