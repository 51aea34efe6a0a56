"""Keys as the words that they are made of, for managers that hold no typed keys, and back.

A key of ``threefry2x32`` is two words: an array ``key<fry>[3]`` is ``uint32[3 2]`` on such a disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ckpt_schema._layouts import leaves
from ckpt_schema._trees.containers import Tree

__all__ = ["abstract_words", "in_words", "rewrapped"]


def in_words(tree: Tree) -> Tree:
    """The tree with each typed key as its raw data."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if leaves.is_typed_key(x) else x, tree)


def abstract_words(tree: Tree) -> Tree:
    """The same of abstract leaves. The data are cut as the keys are, and their words not at all."""
    return jax.tree.map(_abstract, tree)


def rewrapped(items: Mapping[str, Any], wanted: Mapping[str, Tree], at: str | None) -> Any:
    """What was read, by item, with keys where ``wanted`` has some.

    Raw data do not tell the implementation: it is that of the key that is wanted. What has other
    words, or another shape, stays as it was read, and does not conform.

    Args:
        items: What was read.
        wanted: The items that the state is spread over, with typed keys.
        at: The key path at which the state stands in its item.
    """
    told = dict(items)
    for name, tree in wanted.items():
        # An item that is not there is told of by others.
        if told.get(name) is None:
            continue
        # What was read has the state at its place in the item, or it is the state itself.
        keys: dict[str, Any] = {}
        for path, leaf in _named(tree):
            if leaves.is_typed_key(leaf):
                keys[path] = leaf
                if at:
                    keys.setdefault(f"{at}/{path}", leaf)
        read = [_key(leaf, keys.get(path)) for path, leaf in _named(told[name])]
        told[name] = jax.tree.unflatten(jax.tree.structure(told[name]), read)
    return told


def _abstract(leaf: Any) -> Any:
    """The words of an abstract key; another leaf as it is."""
    if not leaves.is_typed_key(leaf):
        return leaf
    words = leaves.key_words(str(leaf.dtype))
    return jax.ShapeDtypeStruct((*leaf.shape, words), jnp.uint32, sharding=leaf.sharding)


def _named(tree: Tree) -> list[tuple[str, Any]]:
    """Each leaf with its path; numbers and the names of fields are spelled as Orbax gives them back."""
    pairs = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in pairs]


def _key(leaf: Any, kind: Any) -> Any:
    """The key of some words, of the kind that is wanted; another leaf as it is."""
    if kind is None or leaves.is_typed_key(leaf):
        return leaf
    dtype = str(kind.dtype)
    if leaves.signature(leaf) != ((*kind.shape, leaves.key_words(dtype)), "uint32"):
        return leaf
    return jax.random.wrap_key_data(jnp.asarray(leaf), impl=leaves.key_impl(dtype))
