"""The laws of a lens, each a function that raises where it is broken. Equality is bitwise throughout.

Where states are drawn apart, one may lack an optional leaf that the other has: it is dropped.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, SingleDeviceSharding

from ckpt_schema._frameworks.variables import variables_of
from ckpt_schema._layouts import leaves
from ckpt_schema._layouts.paths import fill, format_path
from ckpt_schema._layouts.table import Layout, Slot
from ckpt_schema._lens.arrays.axes import Entries
from ckpt_schema._lens.arrays.programs import settled
from ckpt_schema._lens.lens import Lens
from ckpt_schema._trees.conformance import Matcher, check
from ckpt_schema._trees.containers import Tree
from ckpt_schema._trees.equality import assert_trees_identical
from ckpt_schema._trees.placement import describe_shardings, placed
from ckpt_schema._trees.placement import gathered as gathered_bits
from ckpt_schema.errors import CkptSchemaError, ConformanceError, Mismatch
from ckpt_schema.testing._applied import applied
from ckpt_schema.testing._lossy import excused, lost_more

__all__ = [
    "LawError",
    "abstract_like",
    "abstraction",
    "backward",
    "carries",
    "composes",
    "conforms",
    "declared_layouts",
    "donated",
    "donates",
    "gathered_leaves",
    "gathers_nothing",
    "get_get",
    "get_put",
    "identical",
    "inverse",
    "jit",
    "moved",
    "placed_like",
    "put_get",
    "put_put",
    "sharding",
    "sharding_kept",
    "sharing",
    "started",
]


class LawError(CkptSchemaError, AssertionError):
    """What a lens makes is not what a law says."""


def get_put(lens: Lens, s: Tree) -> None:
    """``put(get(s), onto=s) == s``."""
    identical(lens.put(lens.get(s), onto=s), s)


def put_get(lens: Lens, v: Tree) -> None:
    """``get(put(v), onto=v) == v``; and ``get(put(v))`` is ``v`` up to what the lens loses."""
    put = lens.put(v)
    identical(lens.get(put, onto=v), v)
    if not lens.exact:
        faults = [*lost_more(backward(lens), lens.get(put), v)]
        if faults:
            raise LawError("more is lost than the lens says", faults)


def put_put(lens: Lens, s: Tree, v: Tree, w: Tree) -> None:
    """``put(w, onto=put(v, onto=s)) == put(w, onto=s)``; where ``w == get(s)``, up to what the lens loses.

    For then the right side has the own bits of ``s``, which ``put(v, onto=s)`` has no more.
    """
    onto = lens.put(v, onto=s, drop=True)
    identical(lens.put(w, onto=onto, drop=True), lens.put(w, onto=s, drop=True))
    if not lens.exact:
        still = lens.get(s)
        there = lens.put(still, onto=s, drop=True)
        if carries(backward(lens), still):  # some of it may come back by its own bits alone
            identical(excused(lens, lens.put(still, onto=onto, drop=True), there), there)


def get_get(lens: Lens, s: Tree, t: Tree, v: Tree) -> None:
    """``get(t, onto=get(s, onto=v)) == get(t, onto=v)``; `put_put` of the way back."""
    put_put(backward(lens), v, s, t)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class _Backward(Lens):
    """A lens whose ``get`` is the ``put`` of another one, itself: what an inverse does is another matter."""

    forth: Lens | None = None

    def get(self, s: Tree, onto: Tree | None = None, **how: Any) -> Tree:
        """The other's ``put``."""
        assert self.forth is not None
        return self.forth.put(s, onto, **how)

    def put(self, v: Tree, onto: Tree | None = None, **how: Any) -> Tree:
        """The other's ``get``."""
        assert self.forth is not None
        return self.forth.get(v, onto, **how)


@functools.lru_cache(maxsize=64)
def backward(lens: Lens) -> Lens:
    """What a lens does on the way back, as a lens for the laws that speak of ``get``."""
    there = ~lens
    return _Backward(
        there.source,
        there.view,
        there.joins,
        there.dims,
        there.derivations,
        there.folds,
        forth=lens,
    )


def identical(left: Tree, right: Tree) -> None:
    """Raises unless two trees are equal to the last bit; elements narrower than a byte are compared as wider ones too.

    Which bits of such an element count is what the library itself says.

    Raises:
        TreesDifferError: They are not equal.
        LawError: They are, but for what narrow elements are as floats.
    """
    assert_trees_identical(left, right)
    pairs = zip(_leaves(left), jax.tree.leaves(right), strict=True)
    faults = [
        Mismatch(path, "value", *map(str, both))
        for (path, one), other in pairs
        for both in [(_widened(one), _widened(other))]
        if both[0] is not None and both[1] is not None and both[0].tobytes() != both[1].tobytes()
    ]
    if faults:
        raise LawError("the trees are not identical", faults)


def _widened(leaf: Any) -> np.ndarray[Any, Any] | None:
    """A leaf of elements narrower than a byte as floats, whose sign counts; None of any other leaf."""
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or getattr(dtype, "itemsize", 0) != 1 or leaves.is_abstract(leaf):
        return None
    return gathered_bits(leaf).astype(np.float64) if jnp.issubdtype(dtype, jnp.number) else None


def conforms(lens: Lens, s: Tree, v: Tree) -> None:
    """``check(View, get(s)) == []``, with ``onto`` and without."""
    for found in (lens.get(s), lens.get(s, onto=v, drop=True)):
        report = check(lens.view, found, _known(lens, lens.view))
        if not report.ok:
            raise LawError(
                f"what is made does not conform to {lens.view.name}",
                report.mismatches,
            )
        untagged = [*_untagged(lens, found)]
        if untagged:
            raise LawError("Variables have not the tags that are declared", untagged)


def _untagged(lens: Lens, made: Tree) -> Iterator[Mismatch]:
    """The Variables of a view that have not the tag of their row."""
    found = variables_of(made)
    for number, indices in Matcher(lens.view).match(made).slots if found else ():
        row = lens.view.rows[number]
        key = fill(row.key, indices)[: len(row.key) - row.inside]
        tag = dict(row.metadata).get("tag")
        told = dict(found[key][1]).get("tag") if key in found else tag
        if told != tag:
            yield Mismatch(format_path(key), "tag", str(tag), str(told))


def carries(lens: Lens, s: Tree) -> bool:
    """Whether the lens does not refuse ``s`` for its values."""
    try:
        lens.get(s)
    except ConformanceError:
        return False
    return True


def declared_layouts(lens: Lens, s: Tree | None, v: Tree | None) -> None:
    """``check(Source, s) == [] == check(View, v)``, and each is translated into what the other is like; both may be missing."""
    for table, tree in ((lens.source, s), (lens.view, v)):
        if tree is None:
            continue
        report = check(table, tree, _known(lens, table))
        if not report.ok:
            header = f"the state that is given does not conform to {table.name}"
            raise LawError(header, report.mismatches, report.notes)
        lens = lens.bind(**report.dims)  # no tree tells the factors of a product
    faults = [*_mistyped(~lens, s), *_mistyped(lens, v)]
    if faults:
        raise LawError("Variables are of other types than they are declared", faults)
    if s is None or v is None:
        return
    one, other = (jax.tree.map(_shape, tree) for tree in (s, v))
    identical(_as_given(lens.get(one, onto=other), other), other)
    identical(_as_given(lens.put(other, onto=one), one), one)


def _known(lens: Lens, table: Layout) -> dict[str, int]:
    return {name: size for name, size in lens.dims.items() if name in table.names()}


def _as_given(made: Tree, given: Tree) -> Tree:
    """The shapes of a tree; what is given as a Python number, as ``step`` often is, has none."""
    shapes = jax.tree.map(_shape, made)
    if jax.tree.structure(shapes) != jax.tree.structure(given):
        return shapes
    return jax.tree.map(lambda x, like: like if leaves.is_scalar(like) else x, shapes, given)


def _mistyped(lens: Lens, v: Tree | None) -> Iterator[Mismatch]:
    """The Variables of ``v`` that are of no such type as the lens would make, there and back."""
    typed = v is not None and lens.view.container == "nnx"  # a plain layout says nothing of types
    found = variables_of(v) if typed else {}
    made = variables_of(lens.get(lens.put(jax.tree.map(_shape, v)))) if found else {}
    for key, (kind, tag) in found.items():
        expected, told = made[key]
        if not issubclass(kind, expected):
            yield Mismatch(
                format_path(key),
                "type",
                f"nnx.{expected.__name__}, or a class of it",
                f"nnx.{kind.__name__}",
            )
        elif tag != told:
            hint = "nnx.Rngs(0) tags what it is asked for as its default stream: declare tag="
            yield Mismatch(
                format_path(key), "tag", str(dict(told).get("tag")), str(dict(tag).get("tag")), hint
            )


def _shape(value: Any) -> Any:
    return value if leaves.is_scalar(value) else jax.ShapeDtypeStruct(value.shape, value.dtype)


def abstraction(lens: Lens, s: Tree, v: Tree) -> None:
    """``abstract(get(s)) == get(abstract(s))``, shardings included, with ``onto`` and without."""
    identical(abstract_like(lens.get(abstract_like(s))), abstract_like(lens.get(s)))
    found = abstract_like(lens.get(s, onto=v, drop=True))
    identical(abstract_like(lens.get(abstract_like(s), onto=v, drop=True)), found)
    onto = jax.tree.map(
        lambda x: x if leaves.is_scalar(x) else _abstract(x), v
    )  # that a leaf is a number is no value of it
    identical(abstract_like(lens.get(abstract_like(s), onto=onto, drop=True)), found)


def abstract_like(tree: Tree) -> Tree:
    """The abstract values of a tree; being on the one default device is the same as not being placed yet."""
    return jax.tree.map(_abstract, tree)


def _abstract(value: Any) -> Any:
    found = value if leaves.is_abstract(value) else leaves.abstract(value)
    return (
        found
        if isinstance(found.sharding, NamedSharding)
        else jax.ShapeDtypeStruct(found.shape, found.dtype)
    )


def sharing(lens: Lens, s: Tree, v: Tree) -> None:
    """A leaf that only moves is the same object; so is a private one of ``onto``.

    Of leaves that are tied, any one may stand for all; and where one is stored twice, the second may be a copy, placed as
    that of ``onto``.
    """
    found, before, kept = (
        _slots(lens.view, lens.get(s, onto=v, drop=True)),
        _slots(lens.source, s),
        _slots(lens.view, v),
    )
    made_too = {n for fold in lens.folds[1] for n in fold.parts[: fold.kind.made]}
    alone = {slot for slot in found if slot[0] not in lens.joined[1] | made_too}
    private = [slot for slot in found if slot in kept and slot in alone]
    faults = [
        _copied(lens.view, slot, "that of onto")
        for slot in private
        if found[slot] is not kept[slot]
    ]
    sizes = {**check(lens.source, s).dims, **check(lens.view, v).dims, **lens.dims}
    unedited = moved(lens, sizes)
    uses = collections.Counter(one for ones in unedited.values() for one in ones)
    made = {id(found[other]) for other in unedited if other in found}
    for other, ones in unedited.items():
        given = [one for one in ones if one in before]
        kept = any(
            found[other] is before[one] or (uses[one] > 1 and id(before[one]) in made)
            for one in given
            if other in found
        )
        if given and other in found and not kept:
            of = " or ".join(_spelled(lens.source, one) for one in given)
            faults.append(_copied(lens.view, other, f"that of {of}"))
    faults += _moved_to_jax(lens, sizes, before, _slots(lens.view, lens.get(s)))
    if faults:
        raise LawError("leaves that only move are copied", faults)


def _moved_to_jax(
    lens: Lens, sizes: Mapping[str, int], before: Mapping[Slot, Any], after: Mapping[Slot, Any]
) -> Iterator[Mismatch]:
    """What is made of NumPy arrays alone and is none; there are no keys of NumPy's."""
    for _, made in applied(lens, sizes):
        arrays = [isinstance(before.get(slot), np.ndarray) for slot in made.inputs]
        if not arrays or not all(arrays):
            continue
        for slot in made.results:
            keys = lens.view.rows[slot[0]].leaf.dtype.startswith("key<")
            if slot in after and not keys and not isinstance(after[slot], np.ndarray):
                where, found = _spelled(lens.view, slot), type(after[slot]).__name__
                yield Mismatch(where, "sharing", "an array of NumPy's, as before", found)


def donates(lens: Lens, s: Tree, twin: Tree) -> None:
    """``get(s, donate=True) == get(s)``: nothing is freed that is needed; ``twin`` is equal to ``s``, in other buffers."""
    expected = lens.get(s)
    identical(lens.get(twin, donate=True), expected)


def _copied(layout: Layout, slot: Slot, of: str) -> Mismatch:
    return Mismatch(_spelled(layout, slot), "sharing", f"{of}, the object itself", "another object")


def _spelled(layout: Layout, slot: Slot) -> str:
    return format_path(fill(layout.rows[slot[0]].key, slot[1]))


def moved(lens: Lens, sizes: Mapping[str, int]) -> dict[Slot, list[Slot]]:
    """What only moves, with what it may be: of leaves that are tied, any, for they are equal."""
    found: dict[Slot, list[Slot]] = {}
    edited: set[Slot] = set()
    summed = [{one.row for one in rows} for rows in lens.folds]
    for _, made in applied(lens, sizes):
        added = any(slot[0] in summed[0] for slot in made.inputs)
        added = added or any(slot[0] in summed[1] for slot in made.results)
        if made.moves and not added:
            found.setdefault(made.results[0], []).append(made.inputs[0])
        else:
            edited |= {*made.results}
    return {other: ones for other, ones in found.items() if other not in edited}


def _slots(layout: Layout, tree: Tree) -> dict[Slot, Any]:
    match = Matcher(layout).match(tree)
    return {slot: match.flat.leaves[position] for slot, position in match.slots.items()}


def inverse(lens: Lens, s: Tree, v: Tree) -> None:
    """``(~l).get == l.put`` and ``(~l).put == l.get``."""
    identical((~lens).get(v, onto=s, drop=True), lens.put(v, onto=s, drop=True))
    identical((~lens).put(s, onto=v, drop=True), lens.get(s, onto=v, drop=True))
    identical((~lens).get(v), lens.put(v))


def composes(first: Lens, second: Lens, s: Tree, w: Tree) -> None:
    """``(a >> b).get == b.get . a.get``, and so for put; with ``onto``, the tree between takes its private leaves from it.

    A composed lens drops detours, and so keeps shardings that are lost on them: the bits are compared, wherever they are.
    """
    both = first >> second
    identical(gathered_leaves(both.get(s)), gathered_leaves(second.get(first.get(s))))
    identical(
        gathered_leaves(both.get(s, onto=w, drop=True)),
        gathered_leaves(second.get(first.get(s, onto=second.put(w), drop=True), onto=w, drop=True)),
    )
    identical(gathered_leaves(both.put(w)), gathered_leaves(first.put(second.put(w))))
    identical(
        gathered_leaves(both.put(w, onto=s, drop=True)),
        gathered_leaves(first.put(second.put(w, onto=first.get(s), drop=True), onto=s, drop=True)),
    )


def jit(lens: Lens, s: Tree) -> None:
    """``jit(get)(s) == get(s)``, and where ``s`` does not change, ``get(s)`` does not."""
    still = jax.tree.map(_still, s)
    found, moved = jax.jit(lambda tree, along: jax.jvp(lens.get, (tree,), (along,)))(s, still)
    identical(gathered_leaves(found), gathered_leaves(lens.get(s)))
    faults = [
        Mismatch(path, "derivative", "0, for nothing changes", "others")
        for path, x in _leaves(moved)
        if x.dtype != jax.dtypes.float0 and np.asarray(x).any()
    ]
    if faults:
        raise LawError("what does not change has a derivative", faults)


def _still(value: Any) -> Any:
    """A direction in which a leaf does not change."""
    if jnp.issubdtype(value.dtype, jnp.inexact):
        return jnp.zeros_like(value)
    return np.zeros(value.shape, jax.dtypes.float0)


def _one_device() -> SingleDeviceSharding:
    return SingleDeviceSharding(jax.devices()[0])


def gathered_leaves(tree: Tree) -> Tree:
    """The tree with all jax arrays on one device."""
    return jax.tree.map(
        lambda x: settled(placed(x, _one_device())) if isinstance(x, jax.Array) else x,
        tree,
    )


def placed_like(tree: Tree, target: Tree) -> Tree:
    """The tree with each leaf sharded as that of the target is."""
    return jax.tree.map(lambda x, like: settled(placed(x, like.sharding)), tree, target)


# --- Targets of a restore  ---


def started(lens: Lens, target: Tree) -> Tree:
    """The target without the values of what starts anew: the optimizer makes these of the params that are restored."""
    found, treedef = jax.tree.flatten(target)
    rows, joined = lens.view.rows, lens.joined[1]
    for (number, _), at in Matcher(lens.view).match(target).slots.items():
        if number not in joined and isinstance(rows[number].default, leaves.Init):
            found[at] = leaves.abstract(found[at])
    return treedef.unflatten(found)


def donated(tree: Tree) -> Tree:
    """The tree after a step that its arrays were donated to: they know their shapes and shardings, and no values."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array):
            leaf.delete()
    return tree


# --- Shardings  ---


def sharding_kept(lens: Lens, s: Tree, v: Tree) -> None:
    """What is edited or made goes where ``onto`` has it, or else is a global array on the mesh of the rest."""
    devices = {device for x in jax.tree.leaves(s) for device in x.sharding.device_set}
    faults = [
        Mismatch(
            path,
            "sharding",
            f"a leaf on all of {len(devices)} devices",
            *describe_shardings(x.sharding),
        )
        for path, x in _leaves(lens.get(s))
        if x.sharding.device_set != devices
    ]
    moved = {id(x) for x in jax.tree.leaves(s)}
    faults += [
        Mismatch(path, "sharding", *_unlike_onto(like.sharding, x.sharding))
        for (path, x), like in zip(
            _leaves(lens.get(s, onto=v, drop=True)), jax.tree.leaves(v), strict=True
        )
        if id(x) not in moved and x.sharding != like.sharding
    ]
    if faults:
        raise LawError("leaves are not where they belong", faults)


def _unlike_onto(expected: Any, found: Any) -> tuple[str, str]:
    first, second = describe_shardings(expected, found)
    return f"that of onto, {first}", second


def _leaves(tree: Tree) -> list[tuple[str, Any]]:
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), x)
        for path, x in jax.tree.leaves_with_path(tree)
    ]


def sharding(lens: Lens, s: Tree) -> None:
    """No mesh axis that shards a leaf of ``s`` is lost in ``get(s)``, if it divides any axis of what is made of it."""
    before, after = _slots(lens.source, s), _slots(lens.view, lens.get(s))
    faults: list[Mismatch] = []
    for _, at in applied(lens, {**check(lens.source, s).dims, **lens.dims}):
        ours, theirs = (
            [tree[slot] for slot in slots if slot in tree]
            for slots, tree in ((at.inputs, before), (at.results, after))
        )
        faults += (
            Mismatch(
                _spelled(lens.view, at.results[0]),
                "sharding",
                f"a leaf sharded over {axis} too",
                *describe_shardings(made.sharding),
            )
            for made in theirs[:1]
            for axis in sorted({a for x in ours for a in _axes(x)} - {*_axes(made)})
            if _could_take(made, axis)
        )
        memories = {x.sharding.memory_kind for x in ours}
        faults += (
            Mismatch(
                _spelled(lens.view, at.results[0]),
                "sharding",
                f"a leaf in {memory}, as what it is made of",
                str(made.sharding.memory_kind),
            )
            for made in theirs[:1]
            for memory in memories - {made.sharding.memory_kind}
            if len(memories) == 1
        )
    if faults:
        raise LawError("shardings are lost", faults)


def _axes(value: Any) -> list[str]:
    return [axis for axes in _entries(value) for axis in axes]


def _entries(value: Any) -> Entries:
    if not isinstance(value.sharding, NamedSharding):
        return ()
    return tuple(
        () if axes is None else axes if isinstance(axes, tuple) else (axes,)
        for axes in value.sharding.spec
    )


def _could_take(value: Any, axis: str) -> bool:
    ways = value.sharding.mesh.shape[axis]
    return any(length and length % ways == 0 for length in value.sharding.shard_shape(value.shape))


def gathers_nothing(before: Any, after: Any) -> bool:
    """Whether ``after`` is split over as many devices as ``before``, unless none of its axes divides so."""
    return _ways(after) == _ways(before)


def _ways(value: Any) -> int:
    return math.prod(value.shape) // max(math.prod(value.sharding.shard_shape(value.shape)), 1)
