"""The outline of a tree: the containers on top of it, by which trees of other structures are told apart at little cost.

What jax raises where a tree has not the structure that is asked for holds the ``repr`` of all that
is in the wrong place: for a state on devices, all of its bytes are copied to the host. Trees in
another container are not to come that far.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

from ckpt_schema._layouts.pytrees import TreeDef

__all__ = ["Outline", "outline"]

_DICTS = dict, collections.OrderedDict  # a defaultdict would be given what is looked for
_MOST = 64  # children of the root that are looked at


@dataclasses.dataclass(frozen=True, slots=True)
class Outline:
    """What is known of the containers on top of a tree.

    Attributes:
        nodes: For each, parents first: which of these is its parent, under which key, its type, and
            how many children it has; None for one that has children of its own way. The first is
            the root.
    """

    nodes: tuple[tuple[int, Any, type, int | None], ...]

    def fits(self, tree: Any) -> bool:
        """Whether ``tree`` has these containers; further down it may differ."""
        nodes: list[Any] = [(tree,)]
        for parent, key, kind, length in self.nodes:
            try:
                node = nodes[parent][key]
            except (KeyError, IndexError):
                return False
            # By class, and not isinstance: to jax a subclass is another structure.
            if type(node) is not kind or (length is not None and len(node) != length):
                return False
            nodes.append(node)
        return True


def outline(treedef: TreeDef) -> Outline:
    """The outline of all trees of a structure; without nodes where that is a leaf.

    Example:
        >>> import jax
        >>> of_pair = outline(jax.tree.structure({"a": (1, 2)}))
        >>> of_pair.fits({"a": (3, [4])}), of_pair.fits({"a": [3, 4]})
        (True, False)
    """
    # A leaf has no node data: any tree may stand in its place.
    if treedef.node_data() is None:
        return Outline(())
    # `fits` holds the tree in a tuple, from which it looks up the root as it does all else.
    nodes = [(0, 0, *_container(treedef))]
    # One level below it is enough: {'params': {...}} and {'params': [...]} differ there.
    keys = _keys(treedef) or ()
    for key, child in zip(keys[:_MOST], treedef.children(), strict=False):
        if child.node_data() is not None:
            nodes.append((1, key, *_container(child)))
    return Outline(tuple(nodes))


def _container(node: TreeDef) -> tuple[type, int | None]:
    """The type of a node that is no leaf, and how many children it has."""
    keys = _keys(node)
    return node.node_data()[0], None if keys is None else len(keys)


def _keys(node: TreeDef) -> Sequence[Any] | None:
    """What the children of a node are looked up by; None where nobody but its class knows."""
    kind, data = node.node_data()
    if kind in _DICTS:
        return data
    named = issubclass(kind, tuple) and hasattr(kind, "_fields")
    return range(len(node.children())) if named or kind in (list, tuple) else None
