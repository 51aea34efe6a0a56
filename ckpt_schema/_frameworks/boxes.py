"""Linen's boxes: what ``nn.with_partitioning`` puts around a leaf to name its axes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import jax
from flax.core import meta

__all__ = ["box_labels", "boxed", "unboxed"]


def _is_box(node: Any) -> bool:
    return isinstance(node, meta.Partitioned)


def unboxed(tree: Any) -> Any:
    """``tree`` without the boxes that ``nn.with_partitioning`` puts around leaves."""
    return jax.tree.map(lambda x: x.value if _is_box(x) else x, tree, is_leaf=_is_box)


def box_labels(tree: Any) -> dict[int, dict[str, Any]]:
    """What the boxes of a tree say of their axes, as a Variable keeps it, for a tree whose leaves are their own positions."""
    labels: dict[int, dict[str, Any]] = {}
    for box in filter(_is_box, jax.tree.leaves(tree, is_leaf=_is_box)):
        # Flax takes a logical box apart where it is asked for this, and the tree is the caller's.
        said = copy.copy(box).to_nnx_metadata()
        positions = jax.tree.leaves(said.pop("value"))
        # A logical box derives from Partitioned: without its class it would come back as one.
        kind = {} if type(box) is meta.Partitioned else {"linen_meta_type": type(box)}
        labels |= dict.fromkeys(positions, said | kind)
    return labels


def boxed(value: Any, said: Mapping[str, Any]) -> Any:
    """A value in the box that says this of its axes."""
    kind = said.get("linen_meta_type", meta.Partitioned)
    # A Variable that NNX made itself says nothing of mesh and rules, and a logical box asks for its rules.
    return kind.from_nnx_metadata({"mesh": None, "sharding_rules": None, **said, "value": value})
