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
        tree: dict[str, jax.ShapeDtypeStruct] = {}
        for name, tensor in self.tensors.items():
            tree[name] = jax.ShapeDtypeStruct(tensor.shape, tensor.dtype)
        return tree


def place_of(path: epath.PathLike) -> epath.Path:
    """The path from the root. Links stay: a cache of Hugging Face is made of them, and what they lead to has no names."""
    text = os.fspath(path)
    # gs://bucket/folder is no path of this machine, which `abspath` would make of it.
    if "://" in text:
        return epath.Path(text)
    # Not `resolve`: it follows links.
    return epath.Path(os.path.abspath(os.path.expanduser(text)))  # noqa: PTH100, PTH111


def is_of_weights(path: epath.PathLike) -> bool:
    """Whether a path is that of a folder of Hugging Face, or of a file of such, by its name or by what is in it."""
    place = place_of(path)
    if not place.is_dir():
        return _is_named(place.name) and place.exists()
    try:
        children = [child.name for child in place.iterdir()]
    except OSError:  # what nobody may read is named by whoever reads it
        return False
    return any(map(_is_named, children))


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
    # An index before files: those that it names stand beside it.
    candidates = usual or indices or files
    if len(candidates) == 1:
        return place / candidates[0]
    if candidates:
        hint = f"pass the path of the one that is meant, such as {place / candidates[0]}"
        if not (usual or indices):
            hint += "; files that belong together need the index that names them"
        raise _refusal(place, f"several: {_listed(candidates)}", hint)
    raise _without_weights(place, names)


def _without_weights(place: epath.Path, names: list[str]) -> CheckpointMismatchError:
    """That a folder has no safetensors file, and what reads the files that it has."""
    if _ORBAX_FILES & {*names}:
        return _refusal(place, "a checkpoint of Orbax", "ckpt_schema.orbax reads it")
    for name in names:
        for ending, cure in _CURES.items():
            if name.endswith(ending):
                return _refusal(place, f"no safetensors file, but {name}", cure)
    found = f"a directory with {_listed(names)}" if names else "an empty directory"
    return _refusal(place, found, "check the path")


def _listed(names: list[str]) -> str:
    """The first names, and how many more there are: ``a, b, c and 2 others``."""
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
            # A name that is twice in one file is a fault of its header: here it is in two files.
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
    read: list[tuple[epath.Path, Header]] = []
    for name in sorted({*wanted.values()}, key=paths.natural):
        file = index.parent / name
        if not file.exists():
            hint = "a download may be incomplete"
            faults.append(Mismatch(name, "checkpoint", "a file", "no such file", hint))
            continue
        header = read_header(file)
        read.append((file, header))
        # A damaged header has no tensors: each that the index names would be a fault too.
        if not header.faults:
            present = {tensor.name for tensor in header.tensors}
            faults += _unlike(index, name, wanted, present)
    return _whole(place, read, faults)


def _unlike(
    index: epath.Path, file: str, wanted: Mapping[str, str], present: set[str]
) -> list[Mismatch]:
    """Where the index and a file differ in what is in the file."""
    named = {name for name, where in wanted.items() if where == file}
    hint = f"the files may be of two models: take another copy of them and of {index.name}"
    differences = (
        (named - present, "the tensor that the index names", "none"),
        # One that the index has in another file is told where both files are known.
        (present - wanted.keys(), "no tensor but those that the index names", "one"),
    )
    faults: list[Mismatch] = []
    for names, expected, found in differences:
        for name in sorted(names, key=paths.natural):
            where = f"{file}: {paths.format_path((name,))}"
            faults.append(Mismatch(where, "checkpoint", expected, found, hint))
    return faults


def _weight_map(index: epath.Path, faults: list[Mismatch]) -> Mapping[str, str]:
    """Which file each tensor is in; what is wrong with the index is added to ``faults``."""
    expected = 'an index, {"weight_map": {name: file}}'
    hint = "a copy may be incomplete: take another one"

    def wrong(found: str, where: str = index.name) -> Mapping[str, str]:
        faults.append(Mismatch(where, "checkpoint", expected, found, hint))
        return {}

    try:
        entries, twice = parsed(index.read_bytes())
    except ValueError as error:
        return wrong(str(error))
    for name in twice:
        wrong("the name twice", f"{index.name}: {paths.format_path((name,))}")
    mapped: Any = None
    if isinstance(entries, dict):
        mapped = cast(dict[str, Any], entries).get("weight_map")
    if not isinstance(mapped, dict) or not mapped:
        return wrong(shown(entries))
    files = cast(dict[str, Any], mapped)
    expected = "the name of a file beside the index"
    for name, file in files.items():
        # An index is not trusted: "../../secret" would be read where the folder does not reach.
        if not (isinstance(file, str) and file not in (".", "..") and _is_plain(file)):
            wrong(shown(file), f"{index.name}: {paths.format_path((name,))}")
    # Of an index with faults nothing is looked up: its files would make faults of the same cause.
    return {} if faults else files


def _is_plain(name: str) -> bool:
    """Whether a name is that of a file in the same folder, to any system."""
    return bool(name) and not any(char in name for char in "/\\\0")
