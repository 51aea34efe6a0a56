"""How tensors are laid out in files before any of them is written: each file's header, and where each tensor begins."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from ckpt_schema._layouts import paths
from ckpt_schema._safetensors.dtypes import RANKS, name_of_dtype
from ckpt_schema._safetensors.header import LENGTH_BYTES
from ckpt_schema._safetensors.weights import FILE

__all__ = ["WeightsFile", "index_of", "packed"]

_ALIGNED = 8  # bytes: what a header is filled up to with blanks


@dataclasses.dataclass(frozen=True, slots=True)
class WeightsFile:
    """A file that is to be written.

    Attributes:
        name: Its name.
        header: Its header, without the bytes that tell its length.
        starts: Where in it the first byte of each tensor stands.
        size: How many bytes it has.
    """

    name: str
    header: bytes
    starts: Mapping[str, int]
    size: int


def packed(
    tensors: Mapping[str, jax.ShapeDtypeStruct],
    file_bytes: int,
    metadata: Mapping[str, str],
    name: str = FILE,
) -> list[WeightsFile]:
    """The files for some tensors, in the order of their names.

    Each as the library safetensors lays it out.

    Args:
        tensors: The tensors by name; a name has no half of a surrogate, a dtype is one of the
            format's.
        file_bytes: How many bytes of tensors a file has at most, where it has more than one.
        metadata: What is saved besides in each file.
        name: What the file is called; of several, what their names are made of.

    Example:
        >>> tensors = {name: jax.ShapeDtypeStruct((2,), "float32") for name in ("a", "b")}
        >>> [file.name for file in packed(tensors, 8, {})]
        ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
    """
    groups = list(_groups(tensors, file_bytes))
    # A state without tensors is a file too, of no group.
    if len(groups) < 2:
        return [_file(name, dict(tensors), metadata)]
    # transformers counts from 1: model-00001-of-00002.safetensors.
    stem, _, ending = name.rpartition(".")
    files: list[WeightsFile] = []
    for number, group in enumerate(groups, 1):
        files.append(_file(f"{stem}-{number:05}-of-{len(groups):05}.{ending}", group, metadata))
    return files


def _groups(
    tensors: Mapping[str, jax.ShapeDtypeStruct], file_bytes: int
) -> Iterator[dict[str, jax.ShapeDtypeStruct]]:
    """Tensors that go into one file, as many as it takes."""
    group: dict[str, jax.ShapeDtypeStruct] = {}
    room = file_bytes
    # Layer 2 before layer 10: then the tensors of one layer are in one file, or in two at most.
    for name in sorted(tensors, key=paths.natural):
        size = _bytes(tensors[name])
        # A tensor larger than a file may be has a file to itself.
        if group and size > room:
            yield group
            group, room = {}, file_bytes
        group[name] = tensors[name]
        room -= size
    if group:
        yield group


def _bytes(tensor: jax.ShapeDtypeStruct) -> int:
    return math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize


def _file(
    name: str, tensors: Mapping[str, jax.ShapeDtypeStruct], metadata: Mapping[str, str]
) -> WeightsFile:
    """A file of some tensors, byte for byte as the library safetensors would write it."""
    # Without metadata the library writes no entry for it.
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offsets: dict[str, int] = {}
    dtypes = {own: name_of_dtype(tensor.dtype) or "" for own, tensor in tensors.items()}
    end = 0
    for own in sorted(tensors, key=lambda own: (RANKS[dtypes[own]], own)):
        start, end = end, end + _bytes(tensors[own])
        shape = list(tensors[own].shape)
        entries[own] = {"dtype": dtypes[own], "shape": shape, "data_offsets": [start, end]}
        offsets[own] = start
    header = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % _ALIGNED)
    # The header counts from the buffer. Where the buffer begins is known once the header is.
    buffer = LENGTH_BYTES + len(header)
    starts = {own: buffer + offset for own, offset in offsets.items()}
    return WeightsFile(name, header, starts, buffer + end)


def index_of(files: list[WeightsFile]) -> str:
    """The index of several files, as transformers writes it."""
    total = 0
    weight_map: dict[str, str] = {}
    for file in files:
        # Of tensors alone: transformers does not count headers either.
        total += file.size - LENGTH_BYTES - len(file.header)
        weight_map |= dict.fromkeys(file.starts, file.name)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return json.dumps(index, indent=2, sort_keys=True) + "\n"
