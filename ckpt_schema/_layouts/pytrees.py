"""jax's own key entries, read as the key paths of this library."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import jax
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

from ckpt_schema._layouts.paths import Key, KeyPath

__all__ = ["TreeDef", "children", "inner_nodes", "is_inner_node", "key_paths"]

TreeDef = Any
"""A ``jax.tree_util.PyTreeDef``, which type checkers do not know as a type."""


def key_paths(entries: Iterable[tuple[Any, ...]]) -> tuple[list[KeyPath], bool]:
    """The key paths of jax's paths, and whether all of their dict keys are strings and none is an attribute.

    The second says that the tree may have been saved: a save leaves nothing but dicts with string
    keys, and sequences.
    """
    stored = True
    keys: list[KeyPath] = []
    node: tuple[Any, ...] = ()  # where the leaf before stands: the next one often stands there too
    head: KeyPath = ()
    for path in entries:
        if not path:
            keys.append(path)
            continue
        entry, above = path[-1], path[:-1]
        if above != node:
            node = above
            head = tuple(map(_segment, node))
            stored = stored and all(map(_may_be_saved, node))
        if type(entry) is DictKey:
            segment = entry.key
            stored = stored and type(segment) is str
        else:
            segment = _segment(entry)
            stored = stored and _may_be_saved(entry)
        keys.append((*head, segment))
    return keys, stored


def _segment(entry: Any) -> Key:
    """The segment of a key path for one entry of jax's."""
    if isinstance(entry, (DictKey, FlattenedIndexKey)):
        return entry.key
    if isinstance(entry, GetAttrKey):
        return entry.name
    return entry.idx if isinstance(entry, SequenceKey) else str(entry)


def _may_be_saved(entry: Any) -> bool:
    return type(entry.key) is str if type(entry) is DictKey else type(entry) is not GetAttrKey


def children(node: Any) -> list[tuple[Key, Any]]:
    """The keys and children of one container, one level down; None slots are children too."""
    if type(node) is dict:
        held: dict[Any, Any] = node
        return [(key, held[key]) for key in sorted(held)]  # as jax orders them
    flat = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda child: child is not node)[0]
    keys, _ = key_paths(path for path, _ in flat)
    return [(key[0], child) for key, (_, child) in zip(keys, flat, strict=True)]


def inner_nodes(tree: Any, prefix: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every container below the root that is no dict, or an empty one, parents first.

    None slots are containers of nothing.

    Example:
        >>> list(inner_nodes({"a": (1, None)}))
        [(('a',), (1, None)), (('a', 1), None)]
    """
    if tree is None:
        yield prefix, None
    elif not jax.tree_util.all_leaves([tree]):
        if is_inner_node(prefix, tree):
            yield prefix, tree
        for key, child in children(tree):
            if type(child) is not jax.ShapeDtypeStruct:  # what most leaves are of a large tree
                yield from inner_nodes(child, (*prefix, key))


def is_inner_node(key: KeyPath, node: Any) -> bool:
    """Whether a container of a tree is below its root, and no dict but an empty one; None is one anywhere."""
    return node is None or (bool(key) and (type(node) is not dict or not node))
