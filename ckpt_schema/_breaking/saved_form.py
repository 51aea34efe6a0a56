"""What a state of a layout is on disk, before anybody has saved one: the metadata of such a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
from etils import epath

from ckpt_schema._layouts import leaves
from ckpt_schema._layouts.paths import Key, KeyPath
from ckpt_schema._layouts.table import VALUE_LEVELS, Layout, Node
from ckpt_schema.errors import Mismatch, SchemaError
from ckpt_schema.orbax._metadata import DiskTree

__all__ = ["saved_form"]


def saved_form(table: Layout) -> DiskTree:
    """The checkpoint of a state of this layout, as its metadata would tell it.

    A save keeps dicts with string keys and lists, and no classes: a NamedTuple is a dict of its fields,
    and what has no leaves is None or empty.

    Raises:
        SchemaError: The layout has dims without sizes.
    """
    sizes = table.bound()
    _verify_sized(table, sizes)
    root: dict[str, Any] = {}
    tops: set[KeyPath] = set()
    for entry in table.entries(sizes):
        row = table.rows[entry.slot[0]]
        # No save has a cache, and of what a tree may lack nobody knows that it is there.
        if row.ephemeral or (row.optional and row.default is None):
            continue
        key = entry.key
        # A save of an NNX state puts a level below each Variable: kernel/value, or kernel/value/scale.
        if table.container == "nnx":
            end = len(key) - row.inside
            tops.add(key[:end])
            key = (*key[:end], VALUE_LEVELS[0], *key[end:])
        dtype = leaves.dtype_of(row.leaf.dtype)
        _put(root, key, jax.ShapeDtypeStruct(entry.shape, dtype))
    # The innermost first: a list is made of what is in it already.
    for key, node in sorted(_containers(table, sizes), key=lambda one: -len(one[0])):
        place = key
        if table.container == "nnx":
            # What has no leaves is the value of a Variable itself.
            end = len(key)
            while end and key[:end] not in tops:
                end -= 1
            end = end or len(key)
            place = (*key[:end], VALUE_LEVELS[0], *key[end:])
        _put(root, place, _saved(node, _at(root, place)))
    return DiskTree(epath.Path(table.name), None, root)


def _verify_sized(table: Layout, sizes: Mapping[str, int]) -> None:
    missing = sorted(table.names() - sizes.keys())
    hint = f"give sizes, cs.layout({table.name.rpartition('.')[2]}, dims={{...}})"
    # All of them at once: with one alone the next call would fail by the next.
    faults = [Mismatch(name, "dims", "the size of every dim", "none", hint) for name in missing]
    if faults:
        raise SchemaError(f"no checkpoint of {table.name} is known", faults)


def _containers(table: Layout, sizes: Mapping[str, int]) -> Iterator[tuple[KeyPath, Node]]:
    for node in table.nodes:
        for key in node.keys(sizes):
            yield key, node


def _put(root: dict[str, Any], key: KeyPath, value: Any) -> None:
    node = root
    for segment in key[:-1]:
        node = node.setdefault(str(segment), {})
    node[str(key[-1])] = value


def _at(root: dict[str, Any], key: KeyPath) -> Any:
    node: Any = root
    for segment in key:
        node = node.get(str(segment)) if isinstance(node, dict) else None
    return node


def _saved(node: Node, below: Any) -> Any:
    """What a save makes of a container, from what is in it."""
    children: dict[str, Any] = below if isinstance(below, dict) else {}
    if node.type in (tuple, list):
        if not children:
            return node.type()
        # By number: as text "10" would come before "2".
        return [children[key] for key in sorted(children, key=_number)]
    if not children:
        return {} if issubclass(node.type, Mapping) else None
    return children


def _number(key: Key) -> int:
    return int(key)
