"""The law that names and mesh axes stay on their axes: what a box, a Variable or a sharding says of an axis goes where it goes.

It is tried on abstract leaves, with which nothing is computed. The oracle of origins tells which axis of a result runs along
which axis of the source.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax import nnx
from flax.core import meta
from jax.sharding import NamedSharding, PartitionSpec

from ckpt_schema._layouts import leaves
from ckpt_schema._layouts.paths import KeyPath, fill, format_path
from ckpt_schema._layouts.table import Layout, Row, slots_of
from ckpt_schema._lens.lens import Lens
from ckpt_schema._trees import containers
from ckpt_schema._trees.conformance import Matcher
from ckpt_schema._trees.containers import Tree
from ckpt_schema.errors import Mismatch
from ckpt_schema.testing._applied import applied
from ckpt_schema.testing._laws import LawError
from ckpt_schema.testing._meshes import all_shardings, mesh
from ckpt_schema.testing._named_arrays import (
    Sizes,
    bases,
    factor_size,
    frame_of,
    indices_of,
    key_of,
    size,
)
from ckpt_schema.testing._naming import origins_of, unpacked_tables
from ckpt_schema.testing._provenance import Origin

__all__ = ["axes_kept"]

_MESH = (2, 2)


@dataclasses.dataclass(frozen=True)
class _Axis:
    """An axis of the leaves of a row: of which row, which axis of a leaf (None for an unrolled level), its size."""

    row: int
    at: int | None
    size: int


@functools.lru_cache(maxsize=256)
def axes_kept(lens: Lens) -> None:
    """What is said of an axis of ``s`` is said of the axis of ``get(s)`` that it becomes, for a lens whose dims are bound.

    Of an axis that is split the first factor has the name, and the others have none; axes that are one share their names.

    Raises:
        LawError: With every axis of which something else is said.
    """
    kind = (meta.Partitioned, nn.LogicallyPartitioned)[sum(lens.dims.values()) % 2]
    after = _boxes(lens.get(_named_tree(lens, kind)))
    starts = bases(unpacked_tables(lens)[0], lens.dims)
    faults = [*_misplaced(lens)]
    for number, origin in origins_of(lens).items():
        row = lens.view.rows[number]
        rows = [lens.source.rows[at] for at in origin.rows]
        # What mirrors a param is named as the param is: nothing of its own is to be seen there.
        if row.optimizer or not all(map(_has_names, rows)):
            continue
        if any(_has_lone(each, lens.dims) for each in (row, *rows)):
            continue  # of a factor of one element nothing tells what it runs along
        # All layers of a list are named alike: the first speaks for them.
        for indices in indices_of(row, lens.dims)[:1]:
            key = key_of(row, indices)
            box = after.get(key[: len(key) - row.inside])
            where = format_path(row.key)
            if box is None:
                faults.append(Mismatch(where, "names", "names of its axes", "none"))
                continue
            # The class of a box goes along; a Variable has none to give.
            if lens.source.container != "nnx" and box[0] is not kind:
                faults.append(Mismatch(where, "box", kind.__name__, box[0].__name__))
            runs = _runs(lens, row, origin, starts)
            faults += _unlike(lens, where, runs, box, alone=len(rows) == 1)
    if faults:
        raise LawError("names or mesh axes are not on the axes that they were on", faults)


# --- What is said  ---


def _has_names(row: Row) -> bool:
    return not row.optimizer and bool(row.dims)


def _has_lone(row: Row, sizes: Sizes) -> bool:
    """Whether a factor of an axis of a leaf has one element alone."""
    for _, dim in _own(row):
        for factor in dim:
            if factor_size(factor, sizes) == 1:
                return True
    return False


def _names(lens: Lens, number: int) -> tuple[str, ...]:
    """The names of the axes of a leaf: of those of one dim one, and in every other lens one less for a leaf that is alone."""
    row = lens.source.rows[number]
    said = tuple(f"of {dim}" for _, dim in _own(row))
    is_part = False
    for join in lens.joins:
        is_part = is_part or (number in join.sources and len(join.pairs) > 1)
    # Which lenses these are follows from their sizes, so that one is always tried alike.
    every = is_part or row.repeats or len(said) < 2 or sum(lens.dims.values()) // 2 % 2
    return said if every else said[:-1]


def _own(row: Row) -> list[Any]:
    """The axes of a leaf of a row, without the words of keys."""
    frame = frame_of(row)
    first = len(row.unrolled)
    held = row.leaf.dtype.startswith("key<")
    return [*frame.axes[first : len(frame.axes) - held]]


def _shape(row: Row, sizes: Sizes) -> tuple[int, ...]:
    """The shape of a leaf of a row."""
    return tuple(size(dim, sizes) for _, dim in _own(row))


def _spec(lens: Lens, row: Row) -> tuple[tuple[str, ...], ...]:
    """Which mesh axes shard each axis of a leaf: one axis, over both if these divide it."""
    sizes = _shape(row, lens.dims)
    first = sum(lens.dims.values()) % max(1, len(sizes))
    entries: list[tuple[str, ...]] = [()] * len(sizes)
    for at in [*range(first, len(sizes)), *range(first)]:
        if sizes[at] and not sizes[at] % 2:
            entries[at] = ("x", "y") if not sizes[at] % 4 else ("x",)
            break
    return tuple(entries)


def _named_tree(lens: Lens, kind: type) -> Tree:
    """An abstract state of the source, its axes named and sharded."""
    layout, many = lens.source, len(jax.devices()) >= 4
    made: list[tuple[KeyPath, Row, Any]] = []
    labelled: dict[KeyPath, Any] = {}
    for at, row in enumerate(layout.rows):
        for indices in slots_of(row, lens.dims):
            key = fill(row.key, indices)
            shape = _shape(row, lens.dims)
            spec = PartitionSpec(*(axes or None for axes in _spec(lens, row)))
            sharding = NamedSharding(mesh(_MESH), spec) if many and _has_names(row) else None
            dtype = leaves.dtype_of(row.leaf.dtype)
            made.append((key, row, jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)))
            if _has_names(row):
                names = _names(lens, at)
                # As the metadata of a Variable; of a box that says which class it is of.
                box = {} if layout.container == "nnx" else {"linen_meta_type": kind}
                labelled[key[: len(key) - row.inside]] = {"out_sharding": names, **box}
    return containers.build(layout, made, lens.dims, labelled)


def _boxes(tree: Tree) -> dict[tuple[str, ...], tuple[Any, tuple[Any, ...], Any]]:
    """For each box or Variable that names axes, by its key path as strings: its class, the names and the leaf."""

    def is_box(node: Any) -> bool:
        return isinstance(node, (meta.Partitioned, nnx.Variable))

    boxes: dict[tuple[str, ...], tuple[Any, tuple[Any, ...], Any]] = {}
    for path, node in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_box)[0]:
        key = tuple(jax.tree_util.keystr((each,), simple=True) for each in path)
        if isinstance(node, nnx.Variable):
            said = node.get_metadata()
            told = said.get("out_sharding")
            if told is not None:
                leaf = jax.tree.leaves(node.get_value())[0]
                boxes[key] = (said.get("linen_meta_type") or meta.Partitioned, tuple(told), leaf)
        elif is_box(node):
            boxes[key] = (type(node), tuple(node.names), node.value)
    return boxes


# --- Where leaves go that stand for others  ---


def _misplaced(lens: Lens) -> Iterator[Mismatch]:
    """What is edited or made and does not go where ``onto`` has it, where each leaf of ``onto`` is sharded otherwise."""
    if len(jax.devices()) < _MESH[0] * _MESH[1]:
        return
    view = _sharded_tree(lens.view, lens)
    result = lens.get(_sharded_tree(lens.source, lens), onto=view)
    slots = Matcher(lens.view).match(result).slots
    # Of a leaf and its turned copy one moves, and the other is edited: either one is right.
    kept: set[int] = set()
    for _, application in applied(lens, lens.dims):
        if application.moves and application.results[0] in slots:
            kept.add(slots[application.results[0]])
    by_place = {at: slot for slot, at in slots.items()}
    leaves_of = zip(jax.tree.leaves(result), jax.tree.leaves(view), strict=True)
    for at, (made, like) in enumerate(leaves_of):
        if at not in kept and made.sharding != like.sharding:
            number, indices = by_place[at]
            where = format_path(fill(lens.view.rows[number].key, indices))
            expected = f"that of onto, {like.sharding}"
            yield Mismatch(where, "sharding", expected, str(made.sharding))


def _sharded_tree(layout: Layout, lens: Lens) -> Tree:
    """An abstract state, each leaf sharded in another way than the one before it."""
    made: list[tuple[KeyPath, Row, Any]] = []
    for row in layout.rows:
        shape = _shape(row, lens.dims)
        ways, dtype = all_shardings(mesh(_MESH), shape), leaves.dtype_of(row.leaf.dtype)
        for indices in slots_of(row, lens.dims):
            way = ways[len(made) % len(ways)]
            leaf = jax.ShapeDtypeStruct(shape, dtype, sharding=way)
            made.append((fill(row.key, indices), row, leaf))
    return containers.build(layout, made, lens.dims)


# --- Which axis runs along which  ---


@dataclasses.dataclass(frozen=True)
class _Factor:
    """Even steps along an axis.

    Attributes:
        axis: The axis of the source; None where the elements are copies, which run along none.
        size: How many steps.
        step: How far each goes, in elements of that axis.
    """

    axis: _Axis | None
    size: int
    step: int


@dataclasses.dataclass(frozen=True)
class _Run:
    """What an axis of a leaf of the view runs along.

    Attributes:
        axes: The axes of the source.
        factors: The steps that it is a product of, major first; None where it is no product.
    """

    axes: tuple[_Axis, ...]
    factors: tuple[_Factor, ...] | None


def _runs(lens: Lens, row: Row, origin: Origin, starts: list[int]) -> dict[int, _Run]:
    """What each axis of the leaves of a row runs along, if it has several elements; below zero the numbers of layers."""
    ids, first = origin.ids, len(row.unrolled)
    runs: dict[int, _Run] = {}
    for at in range(first + len(_own(row)) if ids.size else 0):
        # One line of the array tells the axis: from the first element of all others on.
        line = np.moveaxis(ids, at, 0).reshape(ids.shape[at], -1)[:, 0]
        if len(line) > 1 and not (line < 0).any():  # of padding nothing is said
            runs[at - first] = _along(lens, line, starts)
    return runs


def _along(lens: Lens, line: Any, starts: list[int]) -> _Run:
    """What a line of elements runs along."""
    axes: list[_Axis] = []
    factors: tuple[_Factor, ...] | None = None
    # Which row each element is of, which the numbers where rows start tell.
    numbers = np.searchsorted(np.asarray(starts), line, side="right") - 1
    rows: list[int] = list(dict.fromkeys(numbers.tolist()))
    for number in rows:
        row = unpacked_tables(lens)[0].rows[number]
        shape = frame_of(row).shape(lens.dims)
        first = len(row.unrolled)
        own = line[numbers == number] - starts[number]
        places = np.stack(np.unravel_index(own, shape), axis=1)
        known: list[_Axis] = []
        for at, length in enumerate(shape):
            axis = _Axis(number, at - first if at >= first else None, length)
            known.append(axis)
            # An axis on which the place stays as it is has no part in the line.
            if len(own) == 1 or len({*places[:, at].tolist()}) > 1:
                axes.append(axis)
        factors = _factors(places, known)
    return _Run(tuple(axes), factors if len(rows) == 1 else None)


def _factors(places: Any, axes: list[_Axis]) -> tuple[_Factor, ...] | None:
    """The even steps, major first, that places are a product of; None where they are none.

    Of the places [0 0] [0 1] [0 2] [1 0] [1 1] [1 2] these are 2 along the first axis and 3 along
    the second.
    """
    factors: list[_Factor] = []
    while len(places) > 1:
        # The minor factor is as long as the first step goes on.
        step = places[1] - places[0]
        even = (places == places[0] + np.arange(len(places))[:, None] * step).all(axis=1)
        count = len(places) if even.all() else int(even.argmin())
        along = np.flatnonzero(step)
        if len(places) % count or len(along) > 1:
            return None
        whole = places.reshape(-1, count, places.shape[1])
        if (whole - whole[:, :1] != whole[0] - whole[0, 0]).any():
            return None
        # A step that goes nowhere reads copies.
        axis = axes[along[0]] if along.size else None
        factors.append(_Factor(axis, count, abs(int(step[along[0]])) if along.size else 0))
        # The places where each of these begins are a product of all other factors.
        places = whole[:, 0]
    return tuple(reversed(factors))


def _expected(lens: Lens, run: _Run, runs: Iterable[_Run]) -> Any:
    """What an axis is called: as each axis of which it has the first factor, and by nothing else."""
    # Of an axis that is split the first factor takes the longest steps.
    longest: dict[_Axis | None, int] = {}
    for each in runs:
        for factor in each.factors or ():
            longest[factor.axis] = max(longest.get(factor.axis, 0), factor.step)
    names: list[str] = []
    for factor in run.factors or ():
        name = _name(lens, factor.axis) if factor.axis is not None else None
        if name is not None and factor.step == longest[factor.axis]:
            names.append(name)
    return tuple(names) if len(names) > 1 else names[0] if names else None


def _unlike(
    lens: Lens, where: str, runs: Mapping[int, _Run], box: Any, *, alone: bool
) -> Iterator[Mismatch]:
    """What is wrong with what is said of the axes of a leaf, which is made of one row alone or of several."""
    _, names, leaf = box
    is_product = alone and all(run.factors is not None for run in runs.values())
    for at, run in runs.items():
        if at < 0:
            continue
        name = names[at] if at < len(names) else None
        of = [_name(lens, axis) for axis in run.axes]
        flat = name if isinstance(name, tuple) else () if name is None else (name,)
        # Where the oracle has no factors, a name must at least be one of the axes that come in.
        if not {*of}.issuperset(flat):
            yield Mismatch(where, "names", f"{of} on axis {at}", str(name))
        elif is_product:
            expected = _expected(lens, run, runs.values())
            if name != expected:
                yield Mismatch(where, "names", f"{expected} on axis {at}", str(name))
        elif flat and len({*of}) > 1 and len({axis.row for axis in run.axes}) == len(of):
            yield Mismatch(where, "names", f"no name on axis {at}, for parts differ", str(name))
        if alone and len(run.axes) == 1 and len(run.factors or ()) == 1:
            yield from _unlike_sharding(lens, where, at, run.axes[0], leaf)


def _unlike_sharding(lens: Lens, where: str, at: int, axis: _Axis, leaf: Any) -> Iterator[Mismatch]:
    """What is wrong with the mesh axes of an axis that is a whole one of the source."""
    if axis.at is None or axis.at >= len(_own(lens.source.rows[axis.row])):
        return  # layers that are not stacked, and the words of keys
    spec = _spec(lens, lens.source.rows[axis.row])[axis.at]
    sharded = getattr(leaf, "sharding", None)
    if leaf.shape[at] == axis.size and isinstance(sharded, NamedSharding):
        entry = sharded.spec[at] if at < len(sharded.spec) else None
        told = entry if isinstance(entry, tuple) else () if entry is None else (entry,)
        if told[: len(spec)] != spec:
            yield Mismatch(where, "sharding", f"{spec} on axis {at}", str(sharded.spec))


def _name(lens: Lens, axis: _Axis) -> str | None:
    names = _names(lens, axis.row)
    return names[axis.at] if axis.at is not None and axis.at < len(names) else None
