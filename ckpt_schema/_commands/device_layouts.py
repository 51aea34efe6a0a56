"""How the leaves of a checkpoint or a tree lie on devices, in the words of jax.

``ckpt-schema show`` has it beside each leaf, on a terminal. An array tells it itself; of a checkpoint Orbax has
noted it when it was saved, on whatever devices that was.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jax.sharding import NamedSharding

from ckpt_schema._commands.operands import Operand
from ckpt_schema._frameworks.variables import state_of
from ckpt_schema._layouts.paths import KeyPath, Pattern
from ckpt_schema._layouts.table import Layout
from ckpt_schema._trees.containers import flatten
from ckpt_schema._trees.slots import SlotFinder
from ckpt_schema.orbax._metadata import DiskTree
from ckpt_schema.orbax._pytree_files import sharding_notes

__all__ = ["Shardings", "shardings_of"]


class Shardings(NamedTuple):
    """How leaves lie on the devices of a mesh.

    Attributes:
        texts: Over which axes of the mesh the leaves of a row are split, by its key path.
        mesh: The mesh; nothing where several are told of, which the texts name then.
    """

    texts: Mapping[Pattern, str]
    mesh: str = ""


class _Sharding(NamedTuple):
    """One sharding: which axes of which mesh split each axis of an array."""

    spec: tuple[Any, ...]
    mesh: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        """As jax writes it, ``P('data', None)``; of what no axis is split by, whole."""
        return f"P({', '.join(map(repr, self.spec))})" if any(self.spec) else "whole"


def shardings_of(operand: Operand, table: Layout) -> Shardings:
    """The shardings of the leaves of each row, those on one device left out: there is nothing to tell.

    Args:
        operand: A checkpoint, or a tree of arrays or abstract ones.
        table: Its layout.
    """
    if operand.is_declared:
        return Shardings({})
    flat = flatten(state_of(operand.value))
    find = SlotFinder(table).slot
    noted = {} if operand.disk is None else dict(_noted(operand.disk))
    # Layers of a list are one row: each sharding that some of them have is told once.
    by_row: dict[Pattern, dict[_Sharding, None]] = {}
    meshes: set[str] = set()
    for key, leaf in zip(flat.keys, flat.leaves, strict=True):
        slot = find(key, stored=flat.stored)
        sharding = noted.get(".".join(map(str, key))) or _of_leaf(leaf)
        if slot is not None and sharding is not None:
            by_row.setdefault(table.rows[slot[0]].key, {})[sharding] = None
            meshes.add(_mesh(sharding))
    # One mesh for all is told in the title.
    has_one_mesh = len(meshes) == 1
    texts: dict[Pattern, str] = {}
    for key, several in by_row.items():
        words: list[str] = []
        for sharding in several:
            words.append(str(sharding) if has_one_mesh else f"{sharding} on {_mesh(sharding)}")
        texts[key] = " or ".join(words)
    return Shardings(texts, meshes.pop() if has_one_mesh else "")


def _of_leaf(leaf: Any) -> _Sharding | None:
    """The sharding of an array, or of an abstract one that has one."""
    sharding = getattr(leaf, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return None
    return _known(tuple(sharding.spec), sharding.mesh.shape)


def _known(spec: tuple[Any, ...], mesh: Mapping[str, int]) -> _Sharding | None:
    """A sharding, unless there is one device."""
    if max(mesh.values(), default=1) == 1:
        return None
    return _Sharding(spec, tuple(mesh.items()))


def _mesh(sharding: _Sharding) -> str:
    """The mesh of a sharding: ``data=2, model=4``."""
    return ", ".join([f"{name}={size}" for name, size in sharding.mesh])


def _noted(disk: DiskTree) -> Iterator[tuple[str, _Sharding]]:
    """What Orbax has noted of the leaves of a checkpoint when it saved them, by their dotted names in the state."""
    parts: Sequence[tuple[KeyPath, DiskTree]] = disk.parts or [((), disk)]
    # Another format than Orbax's has no notes.
    if disk.reader is not None:
        return
    root = _dotted(disk.root)
    for at, part in parts:
        for name, text in sharding_notes(part.path / (part.item or "")).items():
            note = json.loads(text)
            if note.get("sharding_type") != "NamedSharding" or not name.startswith(root):
                continue
            # What splits an axis: a name, several, or none. JSON has lists where jax has tuples.
            spec: list[Any] = []
            for names in note["partition_spec"]:
                spec.append(tuple(names) if isinstance(names, list) else names)
            mesh = dict(zip(note["axis_names"], note["shape"], strict=True))
            sharding = _known(tuple(spec), mesh)
            if sharding is not None:
                yield _dotted(at) + name[len(root) :], sharding


def _dotted(key: KeyPath) -> str:
    """What the names of leaves below a key path begin with: ``params.layers.``."""
    return "".join([f"{segment}." for segment in key])
