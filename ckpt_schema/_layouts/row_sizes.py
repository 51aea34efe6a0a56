"""How many leaves a row is, and how many elements and bytes they have."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts import leaves
from ckpt_schema._layouts.dims import Dims
from ckpt_schema._layouts.leaves import Leaf
from ckpt_schema._messages.text import counted, in_bytes

__all__ = ["RowSize", "row_size", "summed"]

_NARROW = re.compile(r"(?:u?int|float)([1246])(?:_\w+)?")
"""A dtype of fewer bits than a byte has, by its name: numpy counts a byte for an element of it."""


@dataclasses.dataclass(frozen=True, slots=True)
class RowSize:
    """How large a row is, or several; what a dim without a size decides, or a dtype that is not told, is None.

    Attributes:
        leaves: How many leaves it is.
        elements: How many elements they have.
        bytes: How many bytes.
    """

    leaves: int | None
    elements: int | None
    bytes: int | None

    def __str__(self) -> str:
        """What is known of it."""
        said: list[str] = []
        if self.leaves is not None:
            said.append(counted(self.leaves, "leaf", "leaves"))
        if self.elements is not None:
            said.append(f"{self.elements:,} elements")
        if self.bytes is not None:
            said.append(in_bytes(self.bytes))
        return ", ".join(said)


def row_size(stored: Leaf, unrolled: Dims = ()) -> RowSize:
    """How large a row is.

    Args:
        stored: One leaf of it.
        unrolled: How many of these there are, level by level.

    Example:
        >>> from ckpt_schema._layouts.dims import parse_dims
        >>> print(row_size(Leaf(parse_dims("3 5"), "int4"), ((4,),)))
        4 leaves, 60 elements, 30 B
    """
    # A dim that is a number needs no sizes; of any other one the size is None here.
    counts, shape = dims_.sizes_of(unrolled, {}), dims_.sizes_of(stored.dims, {})
    if counts is None:
        return RowSize(None, None, None)
    # Of layers in lists in lists; 1 where there is no list.
    several = math.prod(counts)
    if shape is None:
        return RowSize(several, None, None)
    elements = math.prod(shape) * several
    if stored.is_open:
        return RowSize(several, elements, None)
    # Elements of 4 bits stand two in a byte: an odd number of them ends in half a byte.
    return RowSize(several, elements, math.ceil(elements * _bits(stored.dtype) / 8))


def summed(sizes: Iterable[RowSize]) -> RowSize:
    """The size of several rows together.

    Example:
        >>> summed([RowSize(1, 2, 8), RowSize(3, 6, None)])
        RowSize(leaves=4, elements=8, bytes=None)
    """
    whole = RowSize(0, 0, 0)
    for size in sizes:
        # Each by itself: of a float without a dtype the elements are known, and only the bytes not.
        whole = RowSize(
            _both(whole.leaves, size.leaves),
            _both(whole.elements, size.elements),
            _both(whole.bytes, size.bytes),
        )
    return whole


def _both(count: int | None, other: int | None) -> int | None:
    # Once a count is not known it stays so: what is known of the rest would be read as the whole.
    return None if count is None or other is None else count + other


def _bits(dtype: str) -> int:
    """How many bits an element takes."""
    # int4, float4_e2m1fn: the number in the name. From 8 bits on, numpy counts right.
    narrow = _NARROW.fullmatch(dtype)
    return int(narrow[1]) if narrow else 8 * leaves.itemsize(dtype)
