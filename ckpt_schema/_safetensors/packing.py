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
    if len(groups) < 2:
        return [_file(name, dict(tensors), metadata)]
    stem, _, ending = name.rpartition(".")
    return [
        _file(f"{stem}-{number:05}-of-{len(groups):05}.{ending}", group, metadata)
        for number, group in enumerate(groups, 1)
    ]


def _groups(
    tensors: Mapping[str, jax.ShapeDtypeStruct], file_bytes: int
) -> Iterator[dict[str, jax.ShapeDtypeStruct]]:
    """Tensors that go into one file, as many as it takes."""
    group: dict[str, jax.ShapeDtypeStruct] = {}
    room = file_bytes
    for name in sorted(tensors, key=paths.natural):
        size = _bytes(tensors[name])
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
    told: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    starts: dict[str, int] = {}
    dtypes = {own: name_of_dtype(tensor.dtype) or "" for own, tensor in tensors.items()}
    at = 0
    for own in sorted(tensors, key=lambda own: (RANKS[dtypes[own]], own)):
        end = at + _bytes(tensors[own])
        shape = list(tensors[own].shape)
        told[own] = {"dtype": dtypes[own], "shape": shape, "data_offsets": [at, end]}
        starts[own] = at
        at = end
    header = json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % _ALIGNED)
    buffer = LENGTH_BYTES + len(header)
    starts = {own: buffer + start for own, start in starts.items()}
    return WeightsFile(name, header, starts, buffer + at)


def index_of(files: list[WeightsFile]) -> str:
    """The index of several files, as transformers writes it."""
    total = sum(file.size - LENGTH_BYTES - len(file.header) for file in files)
    where = {name: file.name for file in files for name in file.starts}
    told = {"metadata": {"total_size": total}, "weight_map": where}
    return json.dumps(told, indent=2, sort_keys=True) + "\n"
