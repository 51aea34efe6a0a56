"""The header of a safetensors file, held against the file before anything else is done with it.

A file is 8 bytes that tell the length of the header, the header as JSON, and one buffer. What a
header claims is believed only where the file has it: nothing is read or allocated by a number that
stands in it alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np
from etils import epath

from ckpt_schema._layouts import paths
from ckpt_schema._messages.strict_json import parsed
from ckpt_schema._messages.text import counted, shown
from ckpt_schema._safetensors.dtypes import RANKS, UNREAD_DTYPES, dtype_named
from ckpt_schema.errors import Mismatch

__all__ = ["LENGTH_BYTES", "Header", "Tensor", "read_header"]

LENGTH_BYTES = 8
"""How many bytes tell the length of the header."""

_LONGEST = 100_000_000  # bytes of a header that `safetensors` reads
_AXES = 64  # of an array of NumPy
_MOST = 2**63  # bytes that an index of NumPy reaches
_COPY = "a copy may be incomplete, or the file damaged: take another copy"
_PARTS = ("dtype", "shape", "data_offsets")


@dataclasses.dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file.

    Attributes:
        file: The file.
        name: Its name, with dots.
        dtype: Its dtype.
        shape: Its shape.
        start: Where in the file its first byte stands.
    """

    file: epath.Path
    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int


@dataclasses.dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself.

    Attributes:
        tensors: Each tensor, in the order of the file.
        metadata: What was saved besides, as text by name.
        faults: What is wrong; then there are no tensors.
    """

    tensors: tuple[Tensor, ...] = ()
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])
    faults: tuple[Mismatch, ...] = ()


def read_header(file: epath.Path) -> Header:
    """The header of a file, with everything that is wrong with it."""
    try:
        size = file.stat().length
        with file.open("rb") as opened:
            head = opened.read(LENGTH_BYTES)
            length = int.from_bytes(head, "little")
            fault = _of_length(file, head, length, size)
            if fault is not None:
                return Header(faults=(fault,))
            text = opened.read(length)
    except OSError as error:
        found = (str(error) or type(error).__name__).splitlines()[0]
        return Header(faults=(_fault(file.name, "a file to read", found, _COPY),))
    return _Reading(file, size - LENGTH_BYTES - length).header(text)


def _of_length(file: epath.Path, head: bytes, length: int, size: int) -> Mismatch | None:
    """What is wrong with the length of a header, if anything is."""
    expected = "a safetensors file"
    if head == b"version ":
        hint = "git lfs pull, or a download of the file itself, gets what it stands for"
        return _fault(file.name, expected, "a pointer of Git LFS", hint)
    if len(head) < LENGTH_BYTES:
        return _fault(file.name, expected, counted(len(head), "byte"), _COPY)
    if length > min(size - LENGTH_BYTES, _LONGEST):
        most = f"a header of at most {min(size - LENGTH_BYTES, _LONGEST)} bytes"
        return _fault(file.name, most, f"one that claims {length}", _COPY)
    return None


def _fault(where: str, expected: str, found: str, hint: str) -> Mismatch:
    return Mismatch(where, "checkpoint", expected, found, hint)


class _Reading:
    """The reading of one header.

    Attributes:
        file: The file.
        room: How many bytes the buffer has.
        faults: What was found to be wrong.
    """

    def __init__(self, file: epath.Path, room: int) -> None:
        self.file, self.room = file, room
        self.faults: list[Mismatch] = []

    def header(self, text: bytes) -> Header:
        """The header that a text is."""
        told = self._told(text)
        metadata = self._metadata(told.pop("__metadata__", {}))
        tensors: list[tuple[int, int, Tensor]] = []
        for name, entry in told.items():
            tensors += self._tensor(name, entry)
        if not self.faults:  # a tensor that cannot be placed would leave a hole of its own
            tensors.sort(key=lambda placed: placed[:2])
            self._verify_whole(tensors)
        if self.faults:
            return Header(faults=tuple(self.faults))
        start = self.file.stat().length - self.room
        extents = (dataclasses.replace(one, start=start + at) for at, _, one in tensors)
        return Header(tuple(extents), metadata)

    def say(self, name: str, expected: str, found: str, hint: str = _COPY) -> None:
        """Adds a fault; of a tensor, or of the file where the name is empty."""
        where = f"{self.file.name}: {paths.format_path((name,))}" if name else self.file.name
        self.faults.append(_fault(where, expected, found, hint))

    def _told(self, text: bytes) -> dict[str, Any]:
        """The header as JSON tells it, which has each name once."""
        expected = "a header of JSON, an object that begins with a brace"
        if not text.startswith(b"{"):
            self.say("", expected, f"one that begins with {text[:8]!r}")
            return {}
        try:
            told, twice = parsed(text)
        except ValueError as error:
            self.say("", expected, str(error))
            return {}
        for name in twice:
            self.say(name, "one tensor of a name", "several")
        return told if isinstance(told, dict) else {}

    def _metadata(self, told: Any) -> Mapping[str, str]:
        if isinstance(told, dict):
            pairs = cast(dict[str, Any], told)
            if all(isinstance(value, str) for value in pairs.values()):
                return pairs
        self.say("__metadata__", "texts by name", shown(told))
        return {}

    def _tensor(self, name: str, entry: Any) -> Iterator[tuple[int, int, Tensor]]:
        """A tensor, where its bytes begin and end in the buffer; nothing where that is not told."""
        told: Mapping[str, Any] = cast(dict[str, Any], entry) if isinstance(entry, dict) else {}
        if sorted(told) != sorted(_PARTS):
            expected = "dtype, shape and data_offsets"
            self.say(name, expected, ", ".join(told) if told else shown(entry))
            return
        known = len(self.faults)
        self._verify_dtype(name, told["dtype"])
        shape, offsets = told["shape"], told["data_offsets"]
        if not _are_sizes(shape) or len(shape) > _AXES:
            self.say(name, f"a shape of at most {_AXES} sizes", shown(shape))
        if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            self.say(name, "two data_offsets, the first of them not the greater", shown(offsets))
        elif offsets[1] > self.room:
            self.say(name, f"data_offsets up to {self.room}, where the file ends", shown(offsets))
        if len(self.faults) > known:
            return
        dtype = dtype_named(told["dtype"])
        held = math.prod(shape) * dtype.itemsize
        if held != offsets[1] - offsets[0]:
            expected = f"{held} bytes, as {told['dtype']} of shape {shape} has"
            self.say(name, expected, f"{offsets[1] - offsets[0]}")
        elif math.prod(max(size, 1) for size in shape) * dtype.itemsize >= _MOST:
            self.say(name, "a shape that an array can have", shown(shape))
        else:
            yield offsets[0], offsets[1], Tensor(self.file, name, dtype, tuple(shape), 0)

    def _verify_dtype(self, name: str, dtype: Any) -> None:
        if isinstance(dtype, str) and dtype in RANKS:
            return
        hint = _COPY
        if dtype in UNREAD_DTYPES:
            hint = "several of its elements share a byte, which is not read: convert the tensor"
        self.say(name, f"a dtype among {', '.join(RANKS)}", shown(dtype), hint)

    def _verify_whole(self, tensors: list[tuple[int, int, Tensor]]) -> None:
        """Every byte of the buffer is one tensor's."""
        at = 0
        for start, end, tensor in tensors:
            if start != at:
                found = f"{start}: {'a hole' if start > at else 'it shares bytes with another'}"
                self.say(tensor.name, f"bytes from {at} on, where another ends", found)
            at = max(at, end)
        if at != self.room:
            self.say("", f"{at} bytes of tensors", f"{self.room}")


def _are_sizes(told: Any) -> bool:
    """Whether this is a list of whole numbers, none of them negative."""
    if not isinstance(told, list):
        return False
    return all(type(size) is int and 0 <= size < _MOST for size in cast(list[Any], told))
