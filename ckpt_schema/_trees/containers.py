"""Trees in any container: flattened to key paths, and built anew.

A ``TrainState``, the dict Orbax returns for it, an ``nnx.State``, its pure dict and its on-disk
form are read into the same key paths. What the containers add, ``.value`` of a Variable or a box
and the strings Orbax makes of int keys, is seen by structure when the paths are matched against a
layout, never by name.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any, cast

import jax

from ckpt_schema._layouts.dims import LARGEST
from ckpt_schema._layouts.leaves import is_array_class
from ckpt_schema._layouts.paths import KeyPath, format_path
from ckpt_schema._layouts.pytrees import TreeDef, children, key_paths
from ckpt_schema._layouts.table import Layout, Node, Row
from ckpt_schema._messages.text import shown
from ckpt_schema.errors import ConformanceError, Mismatch

__all__ = [
    "FlatTree",
    "build",
    "flatten",
    "flatten_plain",
    "nodes_of",
    "verify_readable",
    "without",
]

Tree = Any
"""Any pytree of leaves."""


@dataclasses.dataclass(frozen=True)
class FlatTree:
    """A flattened tree.

    Attributes:
        tree: The tree.
        leaves: Its leaves, in jax's order.
        keys: The key path of each leaf, as the container spells it.
        stored: Whether nothing in it rules out that int keys were turned into strings, as any save
            does: it is made of dicts with string keys, and of sequences.
    """

    tree: Tree
    leaves: list[Any]
    keys: list[KeyPath]
    stored: bool

    @functools.cached_property
    def treedef(self) -> TreeDef:
        """Its structure."""
        return jax.tree.structure(self.tree)


def flatten(tree: Tree | FlatTree) -> FlatTree:
    """The leaves of ``tree`` with their key paths; one that is flat already stays so.

    Raises:
        ConformanceError: jax cannot flatten it: a dict mixes int and string keys.
    """
    if isinstance(tree, FlatTree):
        return tree
    # The quickest first. What it says no to may be anything, a tree that jax would choke on too.
    plain = flatten_plain(tree)
    if plain is not None:
        return plain
    verify_readable(tree)
    try:
        flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    except (ValueError, TypeError, RecursionError, SystemError) as error:
        found = (str(error).splitlines() or [type(error).__name__])[0]
        fault = Mismatch("", "key", "a tree that jax can flatten", found)
        raise ConformanceError("the tree cannot be read", [fault]) from error
    keys, stored = key_paths(path for path, _ in flat)
    return FlatTree(tree, [leaf for _, leaf in flat], keys, stored)


def flatten_plain(tree: Tree) -> FlatTree | None:
    """The same of a tree of nothing but dicts with string keys and arrays, as the largest are; None of any other.

    Such a tree holds no modules or containers that are to be looked for, and jax can flatten it.

    Example:
        >>> import numpy as np
        >>> flatten_plain({"b": np.ones(2), "a": {"c": np.ones(3)}}).keys
        [('a', 'c'), ('b',)]
        >>> flatten_plain({"b": (np.ones(2),)})
    """
    # All three are filled on the way, so that no level makes lists of its own.
    keys: list[KeyPath] = []
    found: list[Any] = []
    arrays: set[type] = set()
    if type(tree) is not dict or not _walked(cast(dict[Any, Any], tree), (), keys, found, arrays):
        return None
    return FlatTree(tree, found, keys, stored=True)


def _walked(
    node: dict[Any, Any], at: KeyPath, keys: list[KeyPath], found: list[Any], arrays: set[type]
) -> bool:
    """Whether all that is below a dict is plain, as far as it has been read."""
    if {*map(type, node)} != {str} or len(at) == _DEEPEST:
        return False
    for key in sorted(node):
        child = node[key]
        kind = type(child)
        if kind in arrays:
            keys.append((*at, key))
            found.append(child)
        elif kind is dict:
            if not _walked(child, (*at, key), keys, found, arrays):
                return False
        elif is_array_class(kind) and jax.tree_util.all_leaves([child]):
            arrays.add(kind)
            keys.append((*at, key))
            found.append(child)
        else:
            return False
    return True


_DEEPEST = 300
"""How many levels of containers are read: jax and Python themselves stop at about a thousand."""


def verify_readable(tree: Tree) -> None:
    """Raises where jax could not flatten the tree. It is not tried, for jax never forgets that it failed.

    Raises:
        ConformanceError: A dict has keys of several kinds, or the tree is nested too deep.
    """
    faults: list[Mismatch] = []
    # Level by level, for Python's own recursion would fail where this is to say so.
    level: list[tuple[Any, _Place | None]] = [(tree, None)]
    for _ in range(_DEEPEST):
        below: list[tuple[Any, _Place | None]] = []
        for node, place in level:
            items: Iterable[tuple[Any, Any]] = ()
            if isinstance(node, dict):
                mapping: Mapping[Any, Any] = node
                items = mapping.items()
                faults += _mixed(mapping, place)
            elif isinstance(node, (list, tuple)):
                members: Iterable[Any] = node
                items = enumerate(members)
            for key, child in items:
                if isinstance(child, (dict, list, tuple)):
                    below.append((child, (place, key)))
        level = below
        if not level:
            break
    if level:
        where = format_path(_path(level[0][1])[:3])
        expected, hint = f"at most {_DEEPEST} levels of containers", "pass the state itself"
        faults.append(Mismatch(f"{where}/...", "container", expected, "more", hint))
    if faults:
        raise ConformanceError("the tree cannot be read", faults)


_Place = tuple[Any, Any]
"""The place above, or None, and a key; the path is written where it is asked for."""


def _path(place: _Place | None) -> KeyPath:
    keys: list[Any] = []
    while place is not None:
        place, key = place
        keys.append(key)
    return tuple(reversed(keys))


def _mixed(node: Mapping[Any, Any], place: _Place | None) -> Iterator[Mismatch]:
    """The fault of a dict whose keys jax cannot put in order."""
    # Of nearly all dicts the keys are of one of these kinds, which jax can sort; none is sorted here.
    if {*map(type, node)} in ({str}, {int}, set[type]()):
        for key in node:
            if isinstance(key, int) and abs(key) > LARGEST:  # no list is longer
                where = format_path(_path(place))
                yield Mismatch(where, "key", f"int keys up to {LARGEST}", shown(key))
        return
    try:
        sorted(node)
    except TypeError:
        kinds = {type(key): key for key in node}
        words: list[str] = []
        for kind, key in kinds.items():
            words.append(f"{kind.__name__} key {shown(key)}")
        hint = "a dict must not have both kinds; a save turns int keys into strings"
        if len(kinds) == 1:
            hint = "jax puts the keys of a dict in order: use strings, or ints"
        yield Mismatch(
            format_path(_path(place)), "key", "keys of one kind", " and ".join(words), hint
        )


def build(
    layout: Layout,
    leaves: Iterable[tuple[KeyPath, Row, Any]],
    sizes: Mapping[str, int],
    labelled: Mapping[KeyPath, Mapping[str, Any]] | None = None,
) -> Tree:
    """A tree of the layout's own container, from its leaves.

    Args:
        layout: Says which container, and where nodes other than dicts stand.
        leaves: Key path, row and value of each leaf.
        sizes: How many members the lists have, by name.
        labelled: What boxes or Variables say of the axes of leaves, by their own key path.

    Returns:
        An ``nnx.State`` of Variables, or nested dicts with the optimizer's own tuples and
        NamedTuples in them.
    """
    # Every container is a dict at first, and becomes what it is when its children are there.
    root: dict[Any, Any] = {}
    nodes: list[tuple[Node, KeyPath]] = []
    for node in layout.nodes:
        nodes += [(node, key) for key in node.keys(sizes)]
    for _, key in nodes:
        _parent(root, key).setdefault(key[-1], {})
    # A Variable may hold a container: it stands so many segments above its leaves.
    variables: dict[KeyPath, Row | None] = {}
    for key, row, value in leaves:
        _parent(root, key)[key[-1]] = value
        variables[key[: len(key) - row.inside]] = row
    # Containers that are in no Variable stay what they are in an nnx.State, too.
    holes: list[KeyPath] = []
    for _, key in nodes:
        heads = [key[:end] for end in range(1, len(key) + 1)]
        if variables.keys().isdisjoint(heads):
            holes.append(key)
    variables |= dict.fromkeys(holes)
    for node, key in reversed(nodes):  # children before parents
        parent = _parent(root, key)
        parent[key[-1]] = _container(node, key, parent[key[-1]])
    if layout.container == "nnx":
        from ckpt_schema._frameworks.variables import build_state

        return build_state(root, variables, labelled)
    return _boxed(root, labelled) if labelled else root


def _boxed(root: dict[Any, Any], labelled: Mapping[KeyPath, Mapping[str, Any]]) -> Tree:
    from ckpt_schema._frameworks import boxes

    # jax tells paths in its own classes; what is said goes by key paths.
    def said(path: tuple[Any, ...]) -> Mapping[str, Any] | None:
        return labelled.get(key_paths([path])[0][0])

    def box(path: tuple[Any, ...], value: Any) -> Any:
        return value if said(path) is None else boxes.boxed(value, said(path) or {})

    def is_boxed(path: tuple[Any, ...], value: Any) -> bool:
        return said(path) is not None

    return jax.tree_util.tree_map_with_path(box, root, is_leaf=is_boxed, is_leaf_takes_path=True)


def _parent(root: dict[Any, Any], key: KeyPath) -> dict[Any, Any]:
    for segment in key[:-1]:
        root = root.setdefault(segment, {})
    return root


def _container(node: Node, key: KeyPath, children: Mapping[Any, Any]) -> Any:
    if node.type is type(None):
        return None
    # Found in a tree: its data are known, and stay.
    if node.static is not None:
        treedef, names = node.static
        return treedef.unflatten(children.get(name) for name in names)
    if node.type in (tuple, list):
        return node.type(children[i] for i in range(len(children)))
    if issubclass(node.type, Mapping):
        kind: Any = node.type
        return kind(children)
    fields = getattr(node.type, "_fields", None) or [f.name for f in _fields(node.type)]
    # A field without a leaf is an empty one, as the None of an optimizer that keeps nothing.
    try:
        return node.type(**{name: children.get(name) for name in fields})
    except TypeError as error:
        # A dataclass may have fields that are no children: no leaf tells these.
        hint = "pass onto=, a tree that has one"
        expected, found = f"a {node.type.__name__} of its leaves alone", str(error).splitlines()[0]
        fault = Mismatch(format_path(key), "container", expected, found, hint)
        raise ConformanceError(f"{node.type.__name__} cannot be made", [fault]) from error


def _fields(kind: type) -> list[dataclasses.Field[Any]]:
    """The fields of a dataclass that are children of the pytree it is."""
    fields: list[dataclasses.Field[Any]] = []
    for field in dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ():
        if field.metadata.get("pytree_node", True):
            fields.append(field)
    return fields


def nodes_of(found: Iterable[tuple[KeyPath, Any]]) -> Iterator[Node]:
    """The containers that a tree is built of anew.

    What has data besides its children, or is no sequence, with all of it.
    """
    for key, node in found:
        if node is None or isinstance(node, (tuple, list, Mapping)):
            yield Node(key, type(node))
        # A box is not built with the tree: it goes around its leaf at the end.
        elif not hasattr(node, "unbox"):
            treedef = jax.tree.structure(node, is_leaf=lambda child, node=node: child is not node)
            names = tuple([name for name, _ in children(node)])
            yield Node(key, type(node), static=(treedef, names))


_DROPPED = object()


def without(tree: Tree, dropped: Container[KeyPath]) -> Tree:
    """``tree`` without the leaves at some key paths, and without the dicts and Variables that held nothing else.

    Example:
        >>> without({"a": {"b": 1}, "c": 2}, {("a", "b")})
        {'c': 2}
    """
    kept = _without(tree, dropped, ())
    return {} if kept is _DROPPED else kept


def _without(node: Any, dropped: Container[KeyPath], at: KeyPath) -> Any:
    if jax.tree_util.all_leaves([node]):
        return _DROPPED if at in dropped else node
    below = {key: _without(child, dropped, (*at, key)) for key, child in children(node)}
    # What was empty before stays: an empty dict of a chain is a part of its structure.
    if below and all(child is _DROPPED for child in below.values()):
        return _DROPPED
    if isinstance(node, Mapping):
        kind: Any = type(node)
        kept: dict[Any, Any] = {}
        for key, child in below.items():
            if child is not _DROPPED:
                kept[key] = child
        return kind(kept)
    # Other containers have their members by position, so that an empty dict takes the place.
    treedef = jax.tree.structure(node, is_leaf=lambda child: child is not node)
    return treedef.unflatten({} if child is _DROPPED else child for child in below.values())
