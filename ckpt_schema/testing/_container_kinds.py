"""The containers that trees of a layout are met in, beside the layout's own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState

from ckpt_schema._frameworks.state_names import STATE_FIELDS
from ckpt_schema._layouts.table import Layout

__all__ = ["LINEN", "NNX", "OWN", "Container", "container_kinds", "orbax_tree", "train_state"]

Container = Callable[[Any], Any]


def _own(tree: Any) -> Any:
    return tree


@functools.cache
def _train_state_of(more: tuple[str, ...]) -> type[TrainState]:
    """The class that code with these collections declares."""
    # Fields that a class adds need a default, for they come after some that have one.
    body = {"__annotations__": dict.fromkeys(more, Any), **dict.fromkeys(more)}
    return type("TrainState", (TrainState,), {**body, "__module__": __name__})


def train_state(tree: dict[str, Any]) -> Any:
    """The object that Linen code trains with."""
    kind = _train_state_of(tuple(sorted(tree.keys() - {*STATE_FIELDS})))
    # What it trains with is no leaf.
    return kind(apply_fn=None, tx=None, **tree)  # pyright: ignore[reportArgumentType]


def orbax_tree(tree: Any) -> Any:
    """What Orbax returns for a tree of dicts, tuples and NamedTuples: dicts, lists, and None for what is empty."""
    # A NamedTuple without fields, such as optax's EmptyState, is what comes back as None.
    if hasattr(tree, "_fields"):
        return {name: orbax_tree(getattr(tree, name)) for name in tree._fields} or None
    if isinstance(tree, (tuple, list)):
        return [orbax_tree(child) for child in tree]
    if isinstance(tree, dict):
        return {key: orbax_tree(child) for key, child in tree.items()}
    return tree


def boxed(tree: Any) -> Any:
    """The tree with every leaf that has axes in a box, as ``nn.with_partitioning`` leaves it."""

    def box(leaf: Any) -> Any:
        # A scalar, such as a count of steps, has no axis to name.
        return nn.Partitioned(leaf, names=(None,) * np.ndim(leaf)) if np.ndim(leaf) else leaf

    return jax.tree.map(box, tree)


def on_disk(tree: Any) -> Any:
    """An ``nnx.State`` as Orbax stores it: a ``value`` level under every leaf, int keys turned into strings."""
    return _stored(nnx.to_pure_dict(tree), lambda leaf: {"value": leaf})


def pure_on_disk(tree: Any) -> Any:
    """A pure dict as Orbax stores it: int keys turned into strings."""
    return _stored(nnx.to_pure_dict(tree), lambda leaf: leaf)


def _stored(tree: Any, leaf: Callable[[Any], Any]) -> Any:
    if isinstance(tree, dict):
        return {str(key): _stored(child, leaf) for key, child in tree.items()}
    return leaf(tree)


OWN: Mapping[str, Container] = {"own": _own}
LINEN: Mapping[str, Container] = {
    "dict": _own,
    "TrainState": train_state,
    "boxed TrainState": lambda tree: train_state(boxed(tree)),
    "orbax": orbax_tree,
}
NNX: Mapping[str, Container] = {
    "State": _own,
    "pure dict": nnx.to_pure_dict,
    "on disk": on_disk,
    "pure on disk": pure_on_disk,
}


def container_kinds(layout: Layout) -> Mapping[str, Container]:
    """Every container that trees of a layout are met in, by name; the first is the layout's own."""
    if layout.container == "nnx":
        # Orbax stores a Variable with parts otherwise.
        whole = any(row.inside for row in layout.rows)
        return {"State": NNX["State"]} if whole else NNX
    # An optimizer without a leaf is a node of the state all the same.
    fields = {each.key[0] for each in (*layout.rows, *layout.nodes)}
    if fields.issuperset(STATE_FIELDS):
        return LINEN
    # A tree of dicts alone is on disk as it is.
    several = {"dict": LINEN["dict"]}
    if layout.nodes:
        several["orbax"] = LINEN["orbax"]
    return several
