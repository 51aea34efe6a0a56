"""How the leaves of a checkpoint or a tree lie on devices, in the words of jax."""

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
    found: dict[Pattern, dict[_Sharding, None]] = {}
    for key, leaf in zip(flat.keys, flat.leaves, strict=True):
        slot = find(key, stored=flat.stored)
        one = noted.get(".".join(map(str, key))) or _of_leaf(leaf)
        if slot is not None and one is not None:
            found.setdefault(table.rows[slot[0]].key, {})[one] = None
    meshes = {_mesh(one) for several in found.values() for one in several}
    texts: dict[Pattern, str] = {}
    for key, several in found.items():
        said = [str(one) if len(meshes) == 1 else f"{one} on {_mesh(one)}" for one in several]
        texts[key] = " or ".join(said)
    return Shardings(texts, meshes.pop() if len(meshes) == 1 else "")


def _of_leaf(leaf: Any) -> _Sharding | None:
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
    return ", ".join(f"{name}={size}" for name, size in sharding.mesh)


def _noted(disk: DiskTree) -> Iterator[tuple[str, _Sharding]]:
    """What Orbax has noted of the leaves of a checkpoint when it saved them, by their dotted names in the state."""
    parts: Sequence[tuple[KeyPath, DiskTree]] = disk.parts or [((), disk)]
    root = "".join(f"{segment}." for segment in disk.root)
    for at, part in parts if disk.reader is None else ():
        below = "".join(f"{segment}." for segment in at)
        for name, text in sharding_notes(part.path / (part.item or "")).items():
            told = json.loads(text)
            if told.get("sharding_type") != "NamedSharding" or not name.startswith(root):
                continue
            spec = [tuple(one) if isinstance(one, list) else one for one in told["partition_spec"]]
            mesh = dict(zip(told["axis_names"], told["shape"], strict=True))
            one = _known(tuple(spec), mesh)
            if one is not None:
                yield below + name[len(root) :], one
