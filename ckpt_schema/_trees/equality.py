"""Bitwise equality of two trees: what the laws of a lens mean by ``==``.

Containers and their static data, shapes, dtypes, key implementations, shardings and bits are
compared; NaN payloads and the sign of zero count. Where ``numpy.testing`` or
``chex.assert_trees_all_equal`` take two different states for one, this does not.
"""

from __future__ import annotations

import difflib
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import chex
import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding

from ckpt_schema._compat import Tracer
from ckpt_schema._layouts import leaves, paths
from ckpt_schema._layouts.paths import Key, KeyPath
from ckpt_schema._layouts.pytrees import children
from ckpt_schema._messages.text import shown
from ckpt_schema._trees import placement
from ckpt_schema._trees.containers import FlatTree, Tree, flatten
from ckpt_schema._trees.placement import octets
from ckpt_schema.errors import CkptSchemaError, Mismatch

__all__ = ["TreesDifferError", "assert_trees_identical", "differences"]


_KINDS = (
    (Tracer, "tracer"),
    (jax.Array, "jax array"),
    (np.generic, "NumPy scalar"),
    (np.ndarray, "NumPy array"),
)


class TreesDifferError(CkptSchemaError, AssertionError):
    """Two trees are not identical.

    An ``AssertionError``, so that test runners show it as a failure.
    """

    counts = "difference"


def assert_trees_identical(left: Tree, right: Tree) -> None:
    """Raises unless two trees are equal to the last bit.

    Raises:
        TreesDifferError: With every difference that `differences` finds.

    Example:
        >>> assert_trees_identical({"x": np.float32(0.0)}, {"x": np.float32(-0.0)})
        Traceback (most recent call last):
        ckpt_schema._trees.equality.TreesDifferError: the trees are not identical: 1 difference
          x  expected bits 0x00000000, found 0x80000000
             -> 1 of 1 elements differ, the first at []
    """
    unlike = differences(left, right)
    if unlike:
        raise TreesDifferError("the trees are not identical", unlike)


def differences(left: Tree, right: Tree) -> tuple[Mismatch, ...]:
    """Everything in which ``right`` is not ``left``, by key path.

    Args:
        left: A tree of arrays, abstract values and Python numbers in any containers.
        right: The tree that is compared with it.

    Returns:
        Differences of containers, and of leaves that both trees have; ``()`` when there are none. A
        number is no array, and a NumPy array no jax array. Abstract leaves are equal in shape,
        dtype and sharding. Of an array that spans several hosts, the shards on this host are
        compared.

    Raises:
        ConformanceError: jax cannot flatten one of the trees.
    """
    first, second = flatten(left), flatten(right)
    # One call of chex for all of the structure; where it fails, the two are walked to say where.
    try:
        chex.assert_trees_all_equal_structs(left, right)
    except AssertionError:
        return (*_structures(left, right, ()), *_shared_leaves(first, second))
    unlike: list[Mismatch] = []
    for key, ours, theirs in zip(first.keys, first.leaves, second.leaves, strict=True):
        unlike += _leaf(key, ours, theirs)
    return tuple(unlike)


def _shared_leaves(first: FlatTree, second: FlatTree) -> Iterator[Mismatch]:
    """Where leaves differ that both trees have. What one alone has, the structures tell."""
    others = dict(zip(second.keys, second.leaves, strict=True))
    for key, value in zip(first.keys, first.leaves, strict=True):
        if key in others:
            yield from _leaf(key, value, others[key])


def _structures(left: Tree, right: Tree, at: KeyPath) -> Iterator[Mismatch]:
    """Where the containers of two trees differ, each named at the highest place."""
    if jax.tree.structure(left) == jax.tree.structure(right):
        return
    here = paths.format_path(at)
    # jax takes an object that it does not know for a leaf: one class may be a leaf here, and none there.
    is_leaf, is_other_leaf = (jax.tree_util.all_leaves([node]) for node in (left, right))
    if type(left) is not type(right) or is_leaf != is_other_leaf:
        yield Mismatch(here, "container", _container(left), _container(right))
        return
    ours, theirs = dict(children(left)), dict(children(right))
    for key in ours.keys() - theirs.keys():
        where, hint = paths.format_path((*at, key)), _near(key, theirs)
        yield Mismatch(where, "missing", _container(ours[key]), "nothing", hint)
    for key in theirs.keys() - ours.keys():
        where, hint = paths.format_path((*at, key)), _near(key, ours)
        yield Mismatch(where, "extra", "nothing", _container(theirs[key]), hint)
    below: list[Mismatch] = []
    for key in ours:
        if key in theirs:
            below += _structures(ours[key], theirs[key], (*at, key))
    yield from below
    # The structures differ, and neither keys nor what is below: so data that no leaf tells do.
    if not below and ours.keys() == theirs.keys():
        hint = f"static data of the {type(left).__name__} differ"
        yield Mismatch(here, "container", _static(left), _static(right), hint)


def _container(node: Any) -> str:
    return leaves.describe(node) if jax.tree_util.all_leaves([node]) else f"a {type(node).__name__}"


def _static(node: Any) -> str:
    """The static data of one container, cut to a line."""
    found = repr(jax.tree.structure(node, is_leaf=lambda child: child is not node).node_data())
    return found if len(found) <= 200 else f"{found[:200]}..."


def _near(key: Key, others: Mapping[Key, Any]) -> str:
    close = difflib.get_close_matches(str(key), map(str, others), n=1)
    return f"near: {close[0]}" if close else ""


def _leaf(key: KeyPath, left: Any, right: Any) -> Iterator[Mismatch]:
    """In what one leaf differs: its kind, else its type, else its sharding and its bits."""
    # The same object is equal to itself, whatever it is: what only moves is not even read.
    if left is right:
        return
    # Text is no array, but some trees hold it, and it can be compared.
    if isinstance(left, (str, bytes)) and type(left) is type(right) and left == right:
        return
    where = paths.format_path(key)
    if _kind(left) != _kind(right):
        yield Mismatch(where, "leaf", _kind(left), _kind(right))
        return
    ours, theirs = leaves.signature(left), leaves.signature(right)
    # A deleted array still has a shape, and no bits that could be looked at.
    if leaves.is_deleted(left) or leaves.is_deleted(right):
        ours, theirs = ("deleted" if leaves.is_deleted(x) else "an array" for x in (left, right))
        hint = "a deleted array has no values to compare"
        yield Mismatch(where, "deleted", ours, theirs, hint)
        return
    # Under a trace nobody knows the values, and NumPy's objects need not have bits.
    if ours is None or isinstance(left, Tracer) or ours[1] == "object":
        hint = "not the same object, and nothing that could be compared"
        yield Mismatch(where, "leaf", shown(left), shown(right), hint)
        return
    if ours != theirs:
        kind = "shape" if ours[0] != (theirs or ours)[0] else "dtype"
        yield Mismatch(where, kind, leaves.describe(left), leaves.describe(right))
        return
    if not _same_sharding(left, right):
        shardings = (getattr(side, "sharding", None) for side in (left, right))
        yield Mismatch(where, "sharding", *placement.describe_shardings(*shardings))
        return
    if not leaves.is_abstract(left):
        yield from _bits(where, left, right)


def _kind(value: Any) -> str:
    """What sort of leaf it is: equal bits in leaves of two sorts are no equality."""
    if leaves.is_scalar(value):
        return f"a Python {type(value).__name__}"
    for kind, name in _KINDS:
        if isinstance(value, kind):
            return f"a {name}"
    return f"a {type(value).__name__}"


def _same_sharding(left: Any, right: Any) -> bool:
    ours, theirs = getattr(left, "sharding", None), getattr(right, "sharding", None)
    # An abstract leaf may have none, and differs then from one that has one.
    if ours is None or theirs is None or ours == theirs:
        return ours is theirs or ours == theirs
    if not ours.is_equivalent_to(theirs, len(left.shape)):
        return False
    # Under an explicit mesh the sharding is part of the type a step is traced with, not only of where the bytes are.
    return not (_explicit(ours) or _explicit(theirs)) or jax.typeof(left) == jax.typeof(right)


def _explicit(sharding: Any) -> bool:
    return isinstance(sharding, NamedSharding) and AxisType.Explicit in sharding.mesh.axis_types


def _bits(where: str, left: Any, right: Any) -> Iterator[Mismatch]:
    """The elements whose bits differ, as one fault."""
    if leaves.is_scalar(left):
        ours, theirs = _number(left), _number(right)
        if ours != theirs:
            expected, found = f"{shown(left)}, bits {ours}", f"{shown(right)}, bits {theirs}"
            yield Mismatch(where, "bits", expected, found)
        return
    for (block, start), (other, _) in zip(_blocks(left), _blocks(right), strict=True):
        ours, theirs = octets(block), octets(other)
        unlike = (ours != theirs).any(axis=-1)
        if not unlike.any():
            continue
        first = int(unlike.argmax())
        # Bytes are in order from the lowest; people read from the highest.
        here, there = (f"0x{o[first, ::-1].tobytes().hex()}" for o in (ours, theirs))
        # Of a shard that starts at row 8, element [0 3] is [8 3] of the array.
        place = map(sum, zip(np.unravel_index(first, block.shape), start, strict=True))
        many = f"{int(unlike.sum())} of {unlike.size} elements differ"
        hint = f"{many}, the first at [{' '.join(map(str, place))}]"
        yield Mismatch(where, "bits", f"bits {here}", there, hint)
        # One fault for a leaf, though other shards of it may differ too.
        return


def _number(value: complex) -> str:
    """The bits of a Python number; integers have any number of them."""
    if isinstance(value, (float, complex)):
        parts = (value.real, value.imag) if isinstance(value, complex) else (value,)
        return f"0x{struct.pack(f'>{len(parts)}d', *parts).hex()}"
    return hex(value)


def _blocks(value: Any) -> list[tuple[np.ndarray[Any, Any], tuple[int, ...]]]:
    """The values of an array on the host: whole, or the shards of this host where there are others.

    Each with its start.
    """
    data = value
    # NumPy has no keys: their words are compared.
    if isinstance(value, jax.Array):
        data = jax.random.key_data(value) if leaves.describe(value).startswith("key<") else value
    if not isinstance(data, jax.Array) or data.is_fully_addressable:
        whole = np.asarray(data)
        return [(whole, (0,) * whole.ndim)]
    blocks: list[tuple[np.ndarray[Any, Any], tuple[int, ...]]] = []
    for shard in data.addressable_shards:
        # An axis that is not cut has slice(None).
        start = tuple([part.start or 0 for part in shard.index])
        blocks.append((np.asarray(shard.data), start))
    return blocks
