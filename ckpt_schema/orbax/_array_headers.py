"""The tree of a pytree on disk, read off the headers of its arrays at once.

`orbax.checkpoint.metadata` opens each array: of many small leaves that takes as long as to load
them. Here the structure is read from Orbax's own file, and the headers, which say shape and dtype,
as plain values of the store that they stand in. Where anything is not as it is known here, Orbax is
asked, which says what is wrong with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jax
from etils import epath

from ckpt_schema._layouts import leaves
from ckpt_schema._trees.containers import Tree
from ckpt_schema.orbax._places import is_remote
from ckpt_schema.orbax._pytree_files import PytreeFiles, database

__all__ = ["read_headers"]

# What Orbax calls the kinds of leaves.
_ARRAYS = ("jax.Array", "np.ndarray")
_NUMBER = "scalar"
_EMPTY: Mapping[str, Callable[[], Any]] = {
    "None": lambda: None,
    "NamedTuple": lambda: None,
    "Dict": dict,
    "List": list,
    "Tuple": tuple,
}
_LIST, _DICT = 1, 2  # kinds of keys
_Entry = Mapping[str, Any]
_NUMBERS = {"i": 0, "u": 0, "f": 0.0}  # by the kind of a dtype


def read_headers(item: epath.Path) -> Tree | None:
    """The tree of a pytree as Orbax tells it: ``ShapeDtypeStruct``s, and numbers without their values.

    None where it is of a form that is not known here, is damaged, or is kept in a remote store.

    Args:
        item: The folder of the pytree.
    """
    if is_remote(item):
        return None
    try:
        files = PytreeFiles.read(Path(item))
        if len(files.entries) != len(files.told["tree_metadata"]):
            return None  # two leaves of one name
        kinds: dict[str, str] = {}
        arrays: list[str] = []
        for name, entry in files.entries.items():
            kinds[name] = _kind(entry)
            # An empty dict or None is told by the structure alone, and has no array.
            if kinds[name] not in _EMPTY:
                arrays.append(name)
        headers = dict(zip(arrays, _headers(files, arrays), strict=True))
        shapes: dict[bytes, jax.ShapeDtypeStruct] = {}  # most headers are that of a sibling too
        root = _Node()
        for name, entry in files.entries.items():
            leaf: Any
            if name not in headers:
                leaf = _EMPTY[kinds[name]]()
            else:
                header = headers[name]
                if header not in shapes:
                    shapes[header] = _shape(header)
                leaf = shapes[header] if kinds[name] in _ARRAYS else _number(shapes[header])
            root.plant(_keys(entry), leaf)
        return root.tree()
    # Whatever a damaged file may raise: Orbax is asked then.
    except (KeyError, ValueError, TypeError, AttributeError, OSError):
        return None


def _kind(entry: _Entry) -> str:
    """What a leaf is.

    Raises:
        ValueError: It is not known here, or stands elsewhere.
    """
    said = entry["value_metadata"]
    kind = str(said["value_type"])
    if kind in _EMPTY:
        return kind
    if kind not in (*_ARRAYS, _NUMBER) or said.get("skip_deserialize"):
        raise ValueError(f"a leaf of another kind: {kind}")
    return kind


def _keys(entry: _Entry) -> list[tuple[str, int]]:
    """The names of the nodes above a leaf and of itself, and of what kind each key is."""
    return [(str(key["key"]), int(key["key_type"])) for key in entry["key_metadata"]]


def _headers(files: PytreeFiles, arrays: Sequence[str]) -> list[bytes]:
    """The headers of arrays, as they stand in the store."""
    header = "zarr.json" if files.is_zarr3 else ".zarray"
    if not files.is_database:
        return [(files.folder / name / header).read_bytes() for name in arrays]
    store = database(files.folder)
    # All are asked for before one is waited for.
    reads = [store.read(f"{name}/{header}") for name in arrays]
    return [read.result().value for read in reads]


def _shape(header: bytes) -> jax.ShapeDtypeStruct:
    """The shape and dtype that a header of either format of zarr says.

    Raises:
        ValueError: It is none, as where the array is gone.
    """
    told: Any = json.loads(header)
    name = told["data_type"] if "data_type" in told else told["dtype"]
    if not isinstance(name, str):
        raise ValueError("a dtype of several fields")
    return jax.ShapeDtypeStruct(tuple(map(int, told["shape"])), leaves.dtype_of(name))


def _number(shape: jax.ShapeDtypeStruct) -> Any:
    """A Python number of the type that an array without axes was made of.

    Raises:
        KeyError: It is of another type.
    """
    if shape.shape:
        raise ValueError("a number with axes")
    return _NUMBERS[shape.dtype.kind]


class _Node:
    """A dict or list that is made leaf by leaf."""

    def __init__(self) -> None:
        """An empty one, of which it is not known yet what it is."""
        self._kind: int | None = None
        self._children: dict[str, Any] = {}

    def plant(self, keys: Sequence[tuple[str, int]], leaf: Any) -> None:
        """Puts a leaf below it.

        Raises:
            ValueError: There is one already, or a node is of two kinds.
        """
        (name, kind), *below = keys
        if kind not in (_LIST, _DICT) or self._kind not in (None, kind):
            raise ValueError("a node of another kind, or of two")
        self._kind = kind
        if not below:
            if name in self._children:
                raise ValueError("two leaves of one name")
            self._children[name] = leaf
            return
        child = self._children.setdefault(name, _Node())
        if not isinstance(child, _Node):
            raise ValueError("a leaf with leaves below it")
        child.plant(below, leaf)

    def tree(self) -> Tree:
        """What was made.

        Raises:
            KeyError: A list is not whole.
        """
        made: dict[str, Tree] = {}
        for name, child in self._children.items():
            made[name] = cast(Any, child).tree() if isinstance(child, _Node) else child
        if self._kind == _DICT:
            return made
        # Children of a list are named by their numbers, and come in any order.
        return [made[str(number)] for number in range(len(made))]
