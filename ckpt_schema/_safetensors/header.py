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


_Placed = tuple[int, int, Tensor]
"""Where in the buffer a tensor begins and ends, and the tensor."""


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
            # Before the text is read: a damaged length could ask for all memory.
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
    # A clone without Git LFS has small texts in the place of files: "version https://git-lfs...".
    if head == b"version ":
        hint = "git lfs pull, or a download of the file itself, gets what it stands for"
        return _fault(file.name, expected, "a pointer of Git LFS", hint)
    if len(head) < LENGTH_BYTES:
        return _fault(file.name, expected, counted(len(head), "byte"), _COPY)
    longest = min(size - LENGTH_BYTES, _LONGEST)
    if length > longest:
        expected = f"a header of at most {longest} bytes"
        return _fault(file.name, expected, f"one that claims {length}", _COPY)
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
        entries = self._entries(text)
        metadata = self._metadata(entries.pop("__metadata__", {}))
        placed: list[_Placed] = []
        for name, entry in entries.items():
            placed += self._tensor(name, entry)
        # A tensor that cannot be placed would leave a hole, and be told twice.
        if not self.faults:
            # By place alone: tensors have no order, and empty ones may begin at the same byte.
            placed.sort(key=lambda one: one[:2])
            self._verify_whole(placed)
        if self.faults:
            return Header(faults=tuple(self.faults))
        # Headers count from the buffer, and readers of byte ranges from the start of the file.
        buffer = self.file.stat().length - self.room
        tensors: list[Tensor] = []
        for start, _, tensor in placed:
            tensors.append(dataclasses.replace(tensor, start=buffer + start))
        return Header(tuple(tensors), metadata)

    def say(self, name: str, expected: str, found: str, hint: str = _COPY) -> None:
        """Adds a fault; of a tensor, or of the file where the name is empty."""
        where = f"{self.file.name}: {paths.format_path((name,))}" if name else self.file.name
        self.faults.append(_fault(where, expected, found, hint))

    def _entries(self, text: bytes) -> dict[str, Any]:
        """The header as JSON: an entry for each tensor, and one for the metadata."""
        expected = "a header of JSON, an object that begins with a brace"
        # JSON may begin with blanks, and the format may not.
        if not text.startswith(b"{"):
            self.say("", expected, f"one that begins with {text[:8]!r}")
            return {}
        try:
            entries, twice = parsed(text)
        except ValueError as error:
            self.say("", expected, str(error))
            return {}
        # Python's own parser keeps the last entry of a name, and forgets the others silently.
        for name in twice:
            self.say(name, "one tensor of a name", "several")
        return entries if isinstance(entries, dict) else {}

    def _metadata(self, entry: Any) -> Mapping[str, str]:
        if isinstance(entry, dict):
            pairs = cast(dict[str, Any], entry)
            if all(isinstance(value, str) for value in pairs.values()):
                return pairs
        self.say("__metadata__", "texts by name", shown(entry))
        return {}

    def _tensor(self, name: str, entry: Any) -> Iterator[_Placed]:
        """A tensor, where its bytes begin and end in the buffer; nothing where something is wrong with it."""
        told: Mapping[str, Any] = cast(dict[str, Any], entry) if isinstance(entry, dict) else {}
        if sorted(told) != sorted(_PARTS):
            expected = "dtype, shape and data_offsets"
            self.say(name, expected, ", ".join(told) if told else shown(entry))
            return
        # All that is wrong with a tensor is told, and then it is left out.
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
        start, end = offsets
        held = math.prod(shape) * dtype.itemsize
        # (0, 2**62, 2) has no bytes, and NumPy makes no such array: it counts an axis of 0 as 1.
        counted_by_numpy = math.prod(max(size, 1) for size in shape) * dtype.itemsize
        if held != end - start:
            expected = f"{held} bytes, as {told['dtype']} of shape {shape} has"
            self.say(name, expected, f"{end - start}")
        elif counted_by_numpy >= _MOST:
            self.say(name, "a shape that an array can have", shown(shape))
        else:
            # Where the tensor begins in the file is known once all tensors are.
            yield start, end, Tensor(self.file, name, dtype, tuple(shape), 0)

    def _verify_dtype(self, name: str, dtype: Any) -> None:
        if isinstance(dtype, str) and dtype in RANKS:
            return
        hint = _COPY
        if dtype in UNREAD_DTYPES:
            hint = "several of its elements share a byte, which is not read: convert the tensor"
        self.say(name, f"a dtype among {', '.join(RANKS)}", shown(dtype), hint)

    def _verify_whole(self, placed: list[_Placed]) -> None:
        """Every byte of the buffer is one tensor's: bytes of none could hide anything."""
        reached = 0
        for start, end, tensor in placed:
            if start != reached:
                kind = "a hole" if start > reached else "it shares bytes with another"
                expected = f"bytes from {reached} on, where another ends"
                self.say(tensor.name, expected, f"{start}: {kind}")
            # One that lies within another does not take back what is reached.
            reached = max(reached, end)
        if reached != self.room:
            self.say("", f"{reached} bytes of tensors", f"{self.room}")


def _are_sizes(entry: Any) -> bool:
    """Whether this is a list of whole numbers, none of them negative."""
    if not isinstance(entry, list):
        return False
    # By its type, not `isinstance`: to Python a bool is a whole number.
    return all(type(size) is int and 0 <= size < _MOST for size in cast(list[Any], entry))
