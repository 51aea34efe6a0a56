"""Parts of tensors, read by the byte ranges that hold them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from ckpt_schema._layouts import paths
from ckpt_schema._safetensors.header import Tensor
from ckpt_schema.errors import CheckpointMismatchError, Mismatch

__all__ = ["Extent", "read_extents", "read_tensor"]

Extent = tuple[tuple[int, int], ...]
"""A part of an array: where it begins and ends on each axis."""

_PIECE = 1 << 24
"""Bytes that are read at once where parts of them go to several boxes: enough that a disk is busy, and few to hold."""

_ALIGNED = 64
"""Bytes of which the address of an array is a multiple, so that jax takes it over."""


def read_tensor(tensor: Tensor) -> np.ndarray[Any, Any]:
    """All of a tensor."""
    whole = tuple((0, size) for size in tensor.shape)
    return read_extents(tensor, [whole])[whole]


def read_extents(tensor: Tensor, boxes: Collection[Extent]) -> dict[Extent, np.ndarray[Any, Any]]:
    """Parts of a tensor.

    Args:
        tensor: The tensor.
        boxes: The parts. Bytes that several of them need are read once.

    Raises:
        CheckpointMismatchError: The file is another than when its header was read, or holds what is
            no value.
    """
    # Devices that hold copies have one box, which is read for all of them.
    found: dict[Extent, np.ndarray[Any, Any]] = {}
    for box in dict.fromkeys(boxes):
        found[box] = _empty([end - start for start, end in box], tensor.dtype)
    try:
        with tensor.file.open("rb") as opened:
            reading = _Reading(opened, tensor.dtype.itemsize)
            parts = [_Part(box, made) for box, made in found.items()]
            reading.fill(tensor.start, tensor.shape, parts)
    except (OSError, EOFError) as error:
        raise _refusal(tensor, str(error) or type(error).__name__) from error
    if tensor.dtype == np.bool_:
        for made in found.values():
            # A byte is a bool where it is 0 or 1; what others are, each program sees otherwise.
            if made.size and made.view(np.uint8).max() > 1:
                raise _refusal(tensor, "a byte that is neither 0 nor 1, in BOOL")
    return found


def _empty(shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """An array that is not filled yet, where jax takes it over as it is on a CPU, in the place of a copy."""
    # Of a little more memory than is needed, what begins at a multiple is taken.
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNED, np.uint8)
    start = -memory.ctypes.data % _ALIGNED
    return memory[start : start + size].view(dtype).reshape(shape)


def _refusal(tensor: Tensor, found: str) -> CheckpointMismatchError:
    where = f"{tensor.file.name}: {paths.format_path((tensor.name,))}"
    hint = "a copy may be incomplete, or the file damaged: take another copy"
    expected = "the bytes that the header tells of"
    fault = Mismatch(where, "checkpoint", expected, found, hint)
    return CheckpointMismatchError(f"{tensor.file} cannot be read", [fault])


@dataclasses.dataclass(frozen=True, slots=True)
class _Part:
    """A box, and the array that gets it."""

    box: Extent
    made: np.ndarray[Any, Any]

    def is_run(self, shape: Sequence[int]) -> bool:
        """Whether its elements stand in one row of bytes: it is whole on all axes but the first."""
        return all(span == (0, size) for span, size in zip(self.box[1:], shape[1:], strict=True))

    def row(self, at: int) -> _Part:
        """What it has of one index of the first axis."""
        return _Part(self.box[1:], self.made[at - self.box[0][0]])


class _Reading:
    """An open file that is read from, and the bytes of an element."""

    def __init__(self, opened: Any, width: int) -> None:
        self.opened, self.width = opened, width

    def fill(self, start: int, shape: Sequence[int], parts: Sequence[_Part]) -> None:
        """Reads parts of an array whose bytes begin at ``start``."""
        # Rows 4 to 8 of (16, 512) are read where they go. Columns 0 to 256 have a bit of each row:
        # whole rows are read, some at once, and each part takes its columns of them.
        row = math.prod(shape[1:]) * self.width
        rest: list[_Part] = []
        for part in parts:
            if part.is_run(shape):
                # A scalar has no axis, and one element.
                first = part.box[0][0] if part.box else 0
                self._read(start + first * row, part.made)
            elif part.made.size:
                rest.append(part)
        if not rest:
            return
        begin = min(part.box[0][0] for part in rest)
        end = max(part.box[0][1] for part in rest)
        step = max(1, _PIECE // row)
        for first in range(begin, end, step):
            last = min(first + step, end)
            wanted = [part for part in rest if part.box[0][0] < last and first < part.box[0][1]]
            # A row that is larger than a piece is an array itself, of one axis less.
            if wanted and row >= _PIECE:
                self.fill(start + first * row, shape[1:], [part.row(first) for part in wanted])
            elif wanted:
                piece = np.empty([last - first, *shape[1:]], wanted[0].made.dtype)
                self._read(start + first * row, piece)
                for part in wanted:
                    _cut(piece, first, part)

    def _read(self, start: int, made: np.ndarray[Any, Any]) -> None:
        """Fills an array with the bytes that begin at ``start``."""
        # A read may give less than was asked for.
        left = made.reshape(-1).view(np.uint8).data
        self.opened.seek(start)
        while left:
            count: int = self.opened.readinto(left)
            if not count:
                raise EOFError("the end of the file")
            left = left[count:]


def _cut(piece: np.ndarray[Any, Any], first: int, part: _Part) -> None:
    """Copies what a part has of some rows."""
    start, end = part.box[0]
    low, high = max(start, first), min(end, first + len(piece))
    inner = tuple(slice(*span) for span in part.box[1:])
    part.made[low - start : high - start] = piece[(slice(low - first, high - first), *inner)]
