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
        # Of a drawn `w` nothing is as the lens made it: own bits count only where `w` is `get(s)`.
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
    faults: list[Mismatch] = []
    for (path, one), other in zip(_leaves(left), jax.tree.leaves(right), strict=True):
        first, second = _widened(one), _widened(other)
        if first is not None and second is not None and first.tobytes() != second.tobytes():
            faults.append(Mismatch(path, "value", str(first), str(second)))
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
    variables = variables_of(made)
    for number, indices in Matcher(lens.view).match(made).slots if variables else ():
        row = lens.view.rows[number]
        # A Variable whose value has parts is one, and each part has a row.
        key = fill(row.key, indices)[: len(row.key) - row.inside]
        tag = dict(row.metadata).get("tag")
        told = dict(variables[key][1]).get("tag") if key in variables else tag
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
    # Shapes are enough, of states of any size, and the real model may be abstract.
    one, other = jax.tree.map(_shape, s), jax.tree.map(_shape, v)
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
    variables = variables_of(v) if typed else {}
    # Without an onto the lens makes its own Variables, of the types that are declared.
    made = variables_of(lens.get(lens.put(jax.tree.map(_shape, v)))) if variables else {}
    for key, (kind, tag) in variables.items():
        expected, told = made[key]
        where = format_path(key)
        if not issubclass(kind, expected):
            wanted = f"nnx.{expected.__name__}, or a class of it"
            yield Mismatch(where, "type", wanted, f"nnx.{kind.__name__}")
        elif tag != told:
            hint = "nnx.Rngs(0) tags what it is asked for as its default stream: declare tag="
            wanted, tag_of = str(dict(told).get("tag")), str(dict(tag).get("tag"))
            yield Mismatch(where, "tag", wanted, tag_of, hint)


def _shape(value: Any) -> Any:
    return value if leaves.is_scalar(value) else jax.ShapeDtypeStruct(value.shape, value.dtype)


def abstraction(lens: Lens, s: Tree, v: Tree) -> None:
    """``abstract(get(s)) == get(abstract(s))``, shardings included, with ``onto`` and without."""
    identical(abstract_like(lens.get(abstract_like(s))), abstract_like(lens.get(s)))
    made = abstract_like(lens.get(s, onto=v, drop=True))
    identical(abstract_like(lens.get(abstract_like(s), onto=v, drop=True)), made)
    # That a leaf is a number is no value of it.
    onto = jax.tree.map(lambda x: x if leaves.is_scalar(x) else _abstract(x), v)
    identical(abstract_like(lens.get(abstract_like(s), onto=onto, drop=True)), made)


def abstract_like(tree: Tree) -> Tree:
    """The abstract values of a tree; being on the one default device is the same as not being placed yet."""
    return jax.tree.map(_abstract, tree)


def _abstract(value: Any) -> Any:
    like = value if leaves.is_abstract(value) else leaves.abstract(value)
    if isinstance(like.sharding, NamedSharding):
        return like
    return jax.ShapeDtypeStruct(like.shape, like.dtype)


def sharing(lens: Lens, s: Tree, v: Tree) -> None:
    """A leaf that only moves is the same object; so is a private one of ``onto``.

    Of leaves that are tied, any one may stand for all; and where one is stored twice, the second may be a copy, placed as
    that of ``onto``.
    """
    before, onto = _slots(lens.source, s), _slots(lens.view, v)
    after = _slots(lens.view, lens.get(s, onto=v, drop=True))
    # What a fold makes is not private, though no join speaks of it.
    made = set(lens.joined[1])
    for fold in lens.folds[1]:
        made.update(fold.parts[: fold.kind.made])
    faults: list[Mismatch] = []
    for slot, leaf in after.items():
        if slot[0] not in made and slot in onto and leaf is not onto[slot]:
            faults.append(_copied(lens.view, slot, "that of onto"))
    sizes = {**check(lens.source, s).dims, **check(lens.view, v).dims, **lens.dims}
    unedited = moved(lens, sizes)
    uses: collections.Counter[Slot] = collections.Counter()
    for ones in unedited.values():
        uses.update(ones)
    objects = {id(after[other]) for other in unedited if other in after}
    for other, ones in unedited.items():
        given = [one for one in ones if one in before]
        if not given or other not in after:
            continue
        for one in given:
            # Of what is stored twice one leaf is the object itself, and the other may be a copy.
            is_there_too = uses[one] > 1 and id(before[one]) in objects
            if after[other] is before[one] or is_there_too:
                break
        else:
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
                where, kind = _spelled(lens.view, slot), type(after[slot]).__name__
                yield Mismatch(where, "sharing", "an array of NumPy's, as before", kind)


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
    moves: dict[Slot, list[Slot]] = {}
    edited: set[Slot] = set()
    folded = {one.row for one in lens.folds[0]}, {one.row for one in lens.folds[1]}
    for _, made in applied(lens, sizes):
        # A row that stands for several is made of them, though to the lens it only moves.
        rows, results = {slot[0] for slot in made.inputs}, {slot[0] for slot in made.results}
        is_plain = folded[0].isdisjoint(rows) and folded[1].isdisjoint(results)
        if made.moves and is_plain:
            moves.setdefault(made.results[0], []).append(made.inputs[0])
        else:
            edited |= {*made.results}
    return {other: ones for other, ones in moves.items() if other not in edited}


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
    # Both at once: a program is compiled for each.
    made, changes = jax.jit(lambda tree, along: jax.jvp(lens.get, (tree,), (along,)))(s, still)
    identical(gathered_leaves(made), gathered_leaves(lens.get(s)))
    faults: list[Mismatch] = []
    for path, x in _leaves(changes):
        # A tangent that is padded with the fill, or shifted as the leaf is, is no zero.
        if x.dtype != jax.dtypes.float0 and np.asarray(x).any():
            faults.append(Mismatch(path, "derivative", "0, for nothing changes", "others"))
    if faults:
        raise LawError("what does not change has a derivative", faults)


def _still(value: Any) -> Any:
    """A direction in which a leaf does not change."""
    if jnp.issubdtype(value.dtype, jnp.inexact):
        return jnp.zeros_like(value)
    return np.zeros(value.shape, jax.dtypes.float0)  # as jax has it of integers and keys


def _one_device() -> SingleDeviceSharding:
    return SingleDeviceSharding(jax.devices()[0])


def gathered_leaves(tree: Tree) -> Tree:
    """The tree with all jax arrays on one device."""
    here = _one_device()
    return jax.tree.map(lambda x: settled(placed(x, here)) if isinstance(x, jax.Array) else x, tree)


def placed_like(tree: Tree, target: Tree) -> Tree:
    """The tree with each leaf sharded as that of the target is."""
    return jax.tree.map(lambda x, like: settled(placed(x, like.sharding)), tree, target)


# --- Targets of a restore  ---


def started(lens: Lens, target: Tree) -> Tree:
    """The target without the values of what starts anew: the optimizer makes these of the params that are restored."""
    flat, treedef = jax.tree.flatten(target)
    rows, joined = lens.view.rows, lens.joined[1]
    for (number, _), at in Matcher(lens.view).match(target).slots.items():
        if number not in joined and isinstance(rows[number].default, leaves.Init):
            flat[at] = leaves.abstract(flat[at])
    return treedef.unflatten(flat)


def donated(tree: Tree) -> Tree:
    """The tree after a step that its arrays were donated to: they know their shapes and shardings, and no values."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array):
            leaf.delete()
    return tree


# --- Shardings  ---


def sharding_kept(lens: Lens, s: Tree, v: Tree) -> None:
    """What is edited or made goes where ``onto`` has it, or else is a global array on the mesh of the rest."""
    devices: set[Any] = set()
    objects: set[int] = set()
    for x in jax.tree.leaves(s):
        devices |= x.sharding.device_set
        objects.add(id(x))
    faults: list[Mismatch] = []
    for path, x in _leaves(lens.get(s)):
        if x.sharding.device_set != devices:
            expected = f"a leaf on all of {len(devices)} devices"
            faults.append(Mismatch(path, "sharding", expected, *describe_shardings(x.sharding)))
    made = _leaves(lens.get(s, onto=v, drop=True))
    for (path, x), like in zip(made, jax.tree.leaves(v), strict=True):
        # What only moves stays where it was, for nothing is copied.
        if id(x) not in objects and x.sharding != like.sharding:
            faults.append(Mismatch(path, "sharding", *_unlike_onto(like.sharding, x.sharding)))
    if faults:
        raise LawError("leaves are not where they belong", faults)


def _unlike_onto(expected: Any, found: Any) -> tuple[str, str]:
    first, second = describe_shardings(expected, found)
    return f"that of onto, {first}", second


def _leaves(tree: Tree) -> list[tuple[str, Any]]:
    """All leaves, each with its key path as messages write it."""
    found: list[tuple[str, Any]] = []
    for path, leaf in jax.tree.leaves_with_path(tree):
        found.append((jax.tree_util.keystr(path, simple=True, separator="/"), leaf))
    return found


def sharding(lens: Lens, s: Tree) -> None:
    """No mesh axis that shards a leaf of ``s`` is lost in ``get(s)``, if it divides any axis of what is made of it."""
    before, after = _slots(lens.source, s), _slots(lens.view, lens.get(s))
    faults: list[Mismatch] = []
    for _, application in applied(lens, {**check(lens.source, s).dims, **lens.dims}):
        ours = [before[slot] for slot in application.inputs if slot in before]
        theirs = [after[slot] for slot in application.results if slot in after]
        if not theirs:
            continue
        # Of all that one application makes the first leaf is looked at.
        made, where = theirs[0], _spelled(lens.view, application.results[0])
        axes, memories = set[str](), set[Any]()
        for leaf in ours:
            axes.update(_axes(leaf))
            memories.add(leaf.sharding.memory_kind)
        for axis in sorted(axes - {*_axes(made)}):
            if _could_take(made, axis):
                told = describe_shardings(made.sharding)
                expected = f"a leaf sharded over {axis} too"
                faults.append(Mismatch(where, "sharding", expected, *told))
        # Of leaves in several memories none tells where the result belongs.
        if len(memories) == 1 and made.sharding.memory_kind not in memories:
            expected = f"a leaf in {memories.pop()}, as what it is made of"
            faults.append(Mismatch(where, "sharding", expected, str(made.sharding.memory_kind)))
    if faults:
        raise LawError("shardings are lost", faults)


def _axes(value: Any) -> list[str]:
    """The mesh axes that shard a leaf."""
    axes: list[str] = []
    if isinstance(value.sharding, NamedSharding):
        for entry in value.sharding.spec:
            axes += () if entry is None else entry if isinstance(entry, tuple) else (entry,)
    return axes


def _could_take(value: Any, axis: str) -> bool:
    """Whether a mesh axis divides what an axis of the leaf has on each device."""
    ways = value.sharding.mesh.shape[axis]
    return any(length and length % ways == 0 for length in value.sharding.shard_shape(value.shape))


def gathers_nothing(before: Any, after: Any) -> bool:
    """Whether ``after`` is split over as many devices as ``before``, unless none of its axes divides so."""
    return _ways(after) == _ways(before)


def _ways(value: Any) -> int:
    return math.prod(value.shape) // max(math.prod(value.sharding.shard_shape(value.shape)), 1)
