"""The tensors of a folder of Hugging Face: in one file, or in several that an index names."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from typing import Any, cast

import jax
from etils import epath

from ckpt_schema._compat import CHECKPOINT_FILE, PYTREE_FILE
from ckpt_schema._layouts import paths
from ckpt_schema._messages.strict_json import parsed
from ckpt_schema._messages.text import counted, shown
from ckpt_schema._safetensors.header import Header, Tensor, read_header
from ckpt_schema.errors import CheckpointMismatchError, Mismatch

__all__ = [
    "FILE",
    "INDEX",
    "INDEX_ENDING",
    "Weights",
    "is_name_of_file",
    "is_of_weights",
    "is_weights_file",
    "read_weights",
]

FILE = "model.safetensors"
"""The one file of a folder."""

INDEX = "model.safetensors.index.json"
"""What tells in which of several files each tensor is."""

INDEX_ENDING = ".index.json"
"""What the name of an index has behind that of the file in whose place there are several."""

_ENDING, _INDEX_ENDING = ".safetensors", f".safetensors{INDEX_ENDING}"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_CURES = {
    **dict.fromkeys(
        _PICKLES,
        "a pickle runs code when it is read: load it where it is trusted, and save it again with "
        "save_pretrained, which writes safetensors",
    ),
    ".gguf": "convert it to safetensors",
    ".msgpack": "flax.serialization.msgpack_restore reads it; lens.get takes what it returns",
    ".h5": "load it with transformers, and save it again with save_pretrained",
}
_ORBAX_FILES = frozenset({CHECKPOINT_FILE, PYTREE_FILE})
_SHOWN = 3  # names of a folder


@dataclasses.dataclass(frozen=True, slots=True)
class Weights:
    """Tensors on disk.

    Attributes:
        path: The folder or file that was named.
        tensors: Each tensor by its name.
        metadata: What the files say besides, as text by name.
    """

    path: epath.Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    @property
    def tree(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The tensors without their values."""
        return {
            name: jax.ShapeDtypeStruct(tensor.shape, tensor.dtype)
            for name, tensor in self.tensors.items()
        }


def place_of(path: epath.PathLike) -> epath.Path:
    """The path from the root. Links stay: a cache of Hugging Face is made of them, and what they lead to has no names."""
    text = os.fspath(path)
    return epath.Path(text if "://" in text else os.path.abspath(os.path.expanduser(text)))  # noqa: PTH100, PTH111


def is_of_weights(path: epath.PathLike) -> bool:
    """Whether a path is that of a folder of Hugging Face, or of a file of such, by its name or by what is in it."""
    place = place_of(path)
    if place.is_dir():
        try:
            children = [child.name for child in place.iterdir()]
        except OSError:  # what nobody may read is named by whoever reads it
            return False
        return any(map(_is_named, children))
    return _is_named(place.name) and place.exists()


def _is_named(name: str) -> bool:
    return name.endswith((_ENDING, _INDEX_ENDING))


def is_name_of_file(name: object) -> bool:
    """Whether a file of safetensors can be called so."""
    return isinstance(name, str) and name.endswith(_ENDING) and name != _ENDING and _is_plain(name)


def is_weights_file(name: str) -> bool:
    """Whether a file holds weights by its name, of safetensors or of another format, or tells where they are."""
    return name.endswith(("index.json", _ENDING, *_CURES))


def read_weights(path: epath.PathLike) -> Weights:
    """The headers of the file, of the files that an index names, or of those of a folder.

    No array data.

    Raises:
        CheckpointMismatchError: With everything that is wrong with the files.
    """
    place = place_of(path)
    try:
        file = _meant(place)
        if file.name.endswith(_INDEX_ENDING):
            return _of_index(place, file)
        return _whole(place, [(file, read_header(file))], [])
    except OSError as error:  # nobody may look there
        if isinstance(error, CheckpointMismatchError):
            raise
        found = (str(error) or type(error).__name__).splitlines()[0]
        raise _refusal(place, found, "check the path, and who may read it") from error


def _refusal(place: epath.Path, found: str, hint: str) -> CheckpointMismatchError:
    expected = "a folder of Hugging Face, or a safetensors file"
    fault = Mismatch(str(place), "checkpoint", expected, found, hint)
    return CheckpointMismatchError(f"{place} cannot be read", [fault])


def _meant(place: epath.Path) -> epath.Path:
    """The file, or the index of files, that a path means.

    Raises:
        CheckpointMismatchError: There is none, or several.
    """
    if not place.exists():
        raise _refusal(place, "no such path", "check the path; nothing is downloaded")
    if not place.is_dir():
        return place
    names = sorted((child.name for child in place.iterdir()), key=paths.natural)
    indices = [name for name in names if name.endswith(_INDEX_ENDING)]
    files = [name for name in names if name.endswith(_ENDING)]
    # What transformers reads has the usual name; adapters and other forms stand beside it.
    usual = [name for name in (FILE, INDEX) if name in names]
    found = usual or indices or files
    if len(found) == 1:
        return place / found[0]
    if found:
        hint = f"pass the path of the one that is meant, such as {place / found[0]}"
        if not (usual or indices):
            hint += "; files that belong together need the index that names them"
        raise _refusal(place, f"several: {_listed(found)}", hint)
    if _ORBAX_FILES & {*names}:
        raise _refusal(place, "a checkpoint of Orbax", "ckpt_schema.orbax reads it")
    others = {name: cure for name in names for end, cure in _CURES.items() if name.endswith(end)}
    if others:
        name, cure = next(iter(others.items()))
        raise _refusal(place, f"no safetensors file, but {name}", cure)
    found = f"a directory with {_listed(names)}" if names else "an empty directory"
    raise _refusal(place, found, "check the path")


def _listed(names: list[str]) -> str:
    more = f" and {counted(len(names) - _SHOWN, 'other')}" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _whole(
    place: epath.Path, read: Iterable[tuple[epath.Path, Header]], faults: list[Mismatch]
) -> Weights:
    """The tensors of some files as one.

    Raises:
        CheckpointMismatchError: With everything that is wrong with them, and what is known already.
    """
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for file, header in read:
        faults += header.faults
        metadata |= header.metadata
        for tensor in header.tensors:
            first = tensors.setdefault(tensor.name, tensor)
            if first is not tensor:
                where = f"{file.name}: {paths.format_path((tensor.name,))}"
                expected = "each tensor in one file"
                hint = "remove the file that does not belong to the others"
                found = f"it in {first.file.name} too"
                faults.append(Mismatch(where, "checkpoint", expected, found, hint))
    if faults:
        raise CheckpointMismatchError(f"{place} cannot be read", faults)
    return Weights(place, tensors, metadata)


def _of_index(place: epath.Path, index: epath.Path) -> Weights:
    """The tensors of the files that an index names.

    Raises:
        CheckpointMismatchError: With everything that is wrong with them, or with the index.
    """
    faults: list[Mismatch] = []
    wanted = _weight_map(index, faults)
    names = sorted({*wanted.values()}, key=paths.natural)
    read: list[tuple[epath.Path, Header]] = []
    for name in names:
        file = index.parent / name
        if not file.exists():
            hint = "a download may be incomplete"
            faults.append(Mismatch(name, "checkpoint", "a file", "no such file", hint))
            continue
        header = read_header(file)
        read.append((file, header))
        if not header.faults:
            faults += _unlike(index, name, wanted, {tensor.name for tensor in header.tensors})
    return _whole(place, read, faults)


def _unlike(
    index: epath.Path, file: str, wanted: Mapping[str, str], found: set[str]
) -> list[Mismatch]:
    """Where the index and a file differ in what is in the file."""
    named = {name for name, where in wanted.items() if where == file}
    hint = f"the files may be of two models: take another copy of them and of {index.name}"
    differences = (
        (named - found, "the tensor that the index names", "none"),
        # One that the index has in another file is told where both files are known.
        (found - wanted.keys(), "no tensor but those that the index names", "one"),
    )
    return [
        Mismatch(f"{file}: {paths.format_path((name,))}", "checkpoint", expected, other, hint)
        for names, expected, other in differences
        for name in sorted(names, key=paths.natural)
    ]


def _weight_map(index: epath.Path, faults: list[Mismatch]) -> Mapping[str, str]:
    """Which file each tensor is in; what is wrong with the index is added to ``faults``."""
    expected = 'an index, {"weight_map": {name: file}}'
    hint = "a copy may be incomplete: take another one"

    def wrong(found: str, where: str = index.name) -> Mapping[str, str]:
        faults.append(Mismatch(where, "checkpoint", expected, found, hint))
        return {}

    try:
        told, twice = parsed(index.read_bytes())
    except ValueError as error:
        return wrong(str(error))
    for name in twice:
        wrong("the name twice", f"{index.name}: {paths.format_path((name,))}")
    map_: Any = cast(dict[str, Any], told).get("weight_map") if isinstance(told, dict) else None
    if not isinstance(map_, dict) or not map_:
        return wrong(shown(told))
    files = cast(dict[str, Any], map_)
    expected = "the name of a file beside the index"
    for name, file in files.items():
        if not (isinstance(file, str) and file not in (".", "..") and _is_plain(file)):
            wrong(shown(file), f"{index.name}: {paths.format_path((name,))}")
    return {} if faults else files


def _is_plain(name: str) -> bool:
    return bool(name) and not any(char in name for char in "/\\\0")
