"""The files of a pytree on disk, and a pytree put together of arrays that stand in others, none of which is read.

Where arrays have folders of their own, those are linked under their new names. In a database
(OCDBT) the whole of the other is linked below the new one, which then refers to its values by
file and offset; and what nothing refers to goes.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import tensorstore as ts
from etils import epath
from orbax.checkpoint import v1 as ocp

from ckpt_schema._compat import ARRAY_METADATA_FILES, DATABASE_FILE, PYTREE_FILE
from ckpt_schema._trees.containers import Tree
from ckpt_schema.errors import CheckpointWriteError, Mismatch

__all__ = [
    "Assembly",
    "PytreeFiles",
    "Stored",
    "array_notes",
    "database",
    "linked",
    "linked_tree",
    "saved",
    "sharding_notes",
    "skeleton",
]

_SHARDINGS = "_sharding"
_STRINGS = "_strings.json"
_DATABASE = "ocdbt.process_"
"""In a database, where the values stand that one process has written."""

Entry = Mapping[str, Any]
"""What a file of metadata says of one leaf."""


@dataclasses.dataclass(frozen=True, eq=False)
class PytreeFiles:
    """The files of one pytree.

    Attributes:
        folder: Where they are.
        told: What its file of metadata says.
        is_made: Whether they were written meanwhile, by `saved`.
    """

    folder: Path
    told: Mapping[str, Any]
    is_made: bool = False

    @classmethod
    def read(cls, folder: Path) -> PytreeFiles:
        """Reads the metadata of a pytree."""
        return cls(folder, json.loads((folder / PYTREE_FILE).read_text()))

    @property
    def is_database(self) -> bool:
        """Whether all arrays are in one database."""
        return (self.folder / DATABASE_FILE).exists()

    @property
    def is_zarr3(self) -> bool:
        """Whether arrays are in the third format of zarr."""
        return bool(self.told.get("use_zarr3"))

    def is_like(self, other: PytreeFiles) -> bool:
        """Whether arrays of one may stand in the other as they are."""
        return (self.is_database, self.is_zarr3) == (other.is_database, other.is_zarr3)

    @functools.cached_property
    def entries(self) -> Mapping[str, Entry]:
        """What is said of each leaf, by its dotted name."""
        return {_name(entry): entry for entry in self.told["tree_metadata"].values()}

    @functools.cached_property
    def arrays(self) -> Mapping[str, Mapping[str, Entry]]:
        """What each process has said of the arrays that it wrote, by its file and their names."""
        by_file: dict[str, Mapping[str, Entry]] = {}
        for file, said in array_notes(self.folder):
            by_file[file] = {entry["param_name"]: entry for entry in said}
        return by_file

    @functools.cached_property
    def shardings(self) -> Mapping[str, str] | None:
        """How each array was sharded, in Orbax's own words; None where no file says it."""
        if not (self.folder / _SHARDINGS).exists():
            return None
        return sharding_notes(self.folder)


def sharding_notes(item: epath.Path | Path) -> Mapping[str, str]:
    """How each array of a pytree was sharded, by its dotted name, in Orbax's own words; none where no file says it."""
    file = item / _SHARDINGS
    told: Mapping[str, str] = json.loads(file.read_text()) if file.exists() else {}
    return {base64.b64decode(name).decode(): text for name, text in told.items()}


def array_notes(item: epath.Path | Path) -> Iterator[tuple[str, list[Entry]]]:
    """What is noted of the arrays of a pytree beside it, by the name of the file of each process.

    Of each array there are its name, its chunks, and what it was made of.
    """
    folder = item / ARRAY_METADATA_FILES  # `glob` would take the whole path for a pattern
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        said: list[Any] = json.loads(file.read_text())["array_metadatas"]
        yield file.name, [each["array_metadata"] for each in said]


@dataclasses.dataclass(frozen=True, slots=True)
class Stored:
    """A leaf in the files of a pytree."""

    files: PytreeFiles
    name: str


def _name(entry: Entry) -> str:
    return ".".join(str(key["key"]) for key in entry["key_metadata"])


def skeleton(tree: Tree, folder: Path) -> list[Entry]:
    """What Orbax writes of the structure of a tree: an entry for each leaf, and for each empty node.

    Orbax itself is asked to save the tree with nothing in it, so that no other is to know its rules.
    """
    # The number beside the tree is an array: without one, Orbax warns that it has none to merge.
    empty = jax.tree.map(lambda _: None, tree)
    ocp.save(str(folder), {"tree": empty, "number": 0})
    told = PytreeFiles.read(folder / "state").told["tree_metadata"]
    shutil.rmtree(folder)
    entries: list[Entry] = []
    for entry in told.values():
        if entry["key_metadata"][0]["key"] == "tree":
            # Without the level that was put around the tree to save it.
            entries.append({**entry, "key_metadata": entry["key_metadata"][1:]})
    return entries


def saved(leaves: Mapping[str, Any], like: PytreeFiles, folder: Path) -> PytreeFiles:
    """The files of leaves that Orbax writes under their dotted names, in the format of other files."""
    # An array of another format could not be linked beside those that only move.
    context = ocp.Context()
    context.array.saving.use_ocdbt = like.is_database
    context.array.saving.use_zarr3 = like.is_zarr3
    with context:
        ocp.save(str(folder), dict(leaves))
    return dataclasses.replace(PytreeFiles.read(folder / "state"), is_made=True)


def linked(source: Path, target: Path) -> None:
    """Gives a file a second name, or copies it where the file system has no such thing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another device, or one that knows no links, or a file of someone else's
        shutil.copy2(source, target)


def linked_tree(source: Path, target: Path) -> None:
    """The same for every file below a directory."""
    for file in sorted(source.rglob("*")):
        if file.is_file():
            linked(file, target / file.relative_to(source))
    target.mkdir(parents=True, exist_ok=True)  # it may be empty


@dataclasses.dataclass(frozen=True, slots=True)
class Assembly:
    """A pytree that is put together.

    Attributes:
        entries: Its structure, as `skeleton` tells it.
        leaves: Where each of its arrays stands, by dotted name.
        like: The files whose format it has.
    """

    entries: Sequence[Entry]
    leaves: Mapping[str, Stored]
    like: PytreeFiles

    def write(self, folder: Path) -> None:
        """Writes it; the file that makes a pytree of a folder comes last."""
        folder.mkdir(parents=True)
        if self.like.is_database:
            self._refer(folder)
        else:
            for name, stored in self.leaves.items():
                linked_tree(stored.files.folder / stored.name, folder / name)
        self._write_arrays(folder)
        self._write_shardings(folder)
        (folder / PYTREE_FILE).write_text(json.dumps(self._told()))

    def _told(self) -> dict[str, Any]:
        told: dict[str, Any] = {}
        for entry in self.entries:
            stored = self.leaves.get(_name(entry))
            # The skeleton was saved without values: what a leaf is, is told where the leaf stands.
            if stored is not None:
                value = stored.files.entries[stored.name]["value_metadata"]
                entry = {**entry, "value_metadata": value}
            told[str(tuple(key["key"] for key in entry["key_metadata"]))] = entry
        return {**self.like.told, "tree_metadata": told}

    def _write_arrays(self, folder: Path) -> None:
        """Writes what is known of each array, in a file for each process that wrote some of the old."""
        files = {*self.like.arrays}
        for stored in self.leaves.values():
            files |= stored.files.arrays.keys() if stored.files.is_made else set()
        for file in sorted(files):
            said: list[dict[str, Any]] = []
            for name, stored in self.leaves.items():
                arrays = stored.files.arrays
                # What was made here was written by one process,
                # and is noted for each of the old ones.
                entry = arrays.get(file, _first(arrays)).get(stored.name)
                if entry is not None:
                    said.append({"array_metadata": {**entry, "param_name": name}})
            (folder / ARRAY_METADATA_FILES).mkdir(exist_ok=True)
            text = json.dumps({"array_metadatas": said})
            (folder / ARRAY_METADATA_FILES / file).write_text(text)

    def _write_shardings(self, folder: Path) -> None:
        if self.like.shardings is None:
            return
        shardings: dict[str, str] = {}
        spare = _whole(next(iter(self.like.shardings.values()), None))
        # What was made has the sharding of this process,
        # which says nothing of the run that reads it.
        for name, stored in self.leaves.items():
            own = (stored.files.shardings or {}).get(stored.name)
            if own is not None:
                text = spare if spare is not None and stored.files.is_made else own
                shardings[base64.b64encode(name.encode()).decode()] = text
        (folder / _SHARDINGS).write_text(json.dumps(shardings))

    def _refer(self, folder: Path) -> None:
        """Makes a database whose values are those of the others, which are linked below it."""
        others: dict[Path, Path] = {}
        for stored in self.leaves.values():
            own = stored.files.folder
            if own not in others:
                others[own] = folder / f"{_DATABASE}{len(others)}"
                for part in sorted(own.iterdir()):
                    if part.name == DATABASE_FILE:
                        linked(part, others[own] / part.name)
                    elif part.name == "d" or part.name.startswith(_DATABASE):
                        linked_tree(part, others[own] / part.name)
        context = ts.Context(_CACHE)
        whole = ts.Transaction(atomic=True)
        target = database(folder, context, for_writing=True)
        sources = {own: database(place, context) for own, place in others.items()}
        # All copies are begun before the first is waited for. They copy references, and no values.
        copies: list[Any] = []
        for name, stored in self.leaves.items():
            old_range = sources[stored.files.folder] / f"{stored.name}/"
            new_range = (target / f"{name}/").with_transaction(whole)
            copies.append(old_range.experimental_copy_range_to(new_range))
        for copy in copies:
            copy.result()
        whole.commit_async().result()
        _prune(folder)


def _first(arrays: Mapping[str, Mapping[str, Entry]]) -> Mapping[str, Entry]:
    return next(iter(arrays.values()), {})


def _whole(sharding: str | None) -> str | None:
    """A sharding as Orbax words it, of which every device has the whole: what a leaf of another shape can have."""
    if sharding is None:
        return None
    told = json.loads(sharding)
    return json.dumps({**told, "partition_spec": []}) if "partition_spec" in told else sharding


_CACHE = {"cache_pool#ocdbt": {"total_bytes_limit": 100_000_000}}


def database(
    folder: Path, context: ts.Context | None = None, *, for_writing: bool = False
) -> ts.KvStore:
    """The database of a folder, with the options that Orbax writes it with."""
    spec: dict[str, Any] = {
        "driver": "ocdbt",
        "base": {"driver": "file", "path": f"{folder}/"},
        "cache_pool": "cache_pool#ocdbt",
    }
    if for_writing:
        config = {
            "max_inline_value_bytes": 1024,
            "max_decoded_node_bytes": 100_000_000,
            "manifest_kind": "single",
        }
        spec |= {"config": config, "assume_config": True, "target_data_file_size": 2**31}
    return ts.KvStore.open(spec, context=context or ts.Context(_CACHE)).result()


def _prune(folder: Path) -> None:
    """Removes the files below a database that it does not refer to.

    Raises:
        CheckpointWriteError: It refers to some that are not there.
    """
    # The linked databases hold all arrays of the old checkpoint,
    # also those that nobody has any more.
    needed = {folder / name for name in _referred(folder)} | {folder / DATABASE_FILE}
    there = {file for file in folder.rglob("*") if file.is_file()}
    lost = sorted(needed - there)
    if lost:
        fault = Mismatch(str(lost[0]), "checkpoint", "a file of arrays", "none", "convert again")
        raise CheckpointWriteError(f"{folder} could not be put together", [fault])
    for file in there - needed:
        file.unlink()
    # Backwards, so that a folder comes after those in it, which may be all that it holds.
    folders = [part for part in folder.rglob("*") if part.is_dir()]
    for below in sorted(folders, reverse=True):
        if not any(below.iterdir()):
            below.rmdir()


def _referred(folder: Path) -> Iterator[str]:
    """The files that hold the nodes and values of a database, below its folder."""
    base = ts.KvStore.open({"driver": "file", "path": f"{folder}/"}).result()
    manifest = ts.ocdbt.dump(base).result()
    # From the roots down: the tree of versions, the root of each, their nodes, and the values.
    waiting: list[str] = [node["location"] for node in manifest["version_tree_nodes"]]
    for version in manifest["versions"]:
        root = version["root"].get("location")
        if root:  # a version that holds nothing has none
            waiting.append(root)
    while waiting:
        location = waiting.pop()
        kind, below, file, *_ = location.split(":")  # its kind, where it stands, offset and length
        yield f"{below}{file}"
        if kind != "value":
            for entry in ts.ocdbt.dump(base, location).result()["entries"]:
                # A node below, or a value in a file; small values stand in the node itself.
                for key in ("location", "indirect_value"):
                    if key in entry:
                        waiting.append(entry[key])
