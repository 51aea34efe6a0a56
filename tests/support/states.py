"""Random trees of a layout, in every container such a tree is met in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState

import ckpt_schema as cs
from ckpt_schema import trees
from ckpt_schema.dims import sizes_of
from ckpt_schema.paths import LogicalPath, fill
from ckpt_schema.table import Row, slots_of
from support.models import TX
from support.values import Bounds, Place, hostile


class Stateful(TrainState):
    """A train state as code with batch statistics declares it."""

    batch_stats: Any = None


def train_state(tree: dict[str, Any]) -> Any:
    """The object that Linen code trains with."""
    return Stateful(apply_fn=None, tx=TX, **tree)


def orbax(tree: Any) -> Any:
    """What Orbax returns for a tree of dicts, tuples and NamedTuples: dicts, lists, and None for what is empty."""
    if hasattr(tree, "_fields"):
        return {name: orbax(getattr(tree, name)) for name in tree._fields} or None
    if isinstance(tree, (tuple, list)):
        return [orbax(child) for child in tree]
    return {key: orbax(child) for key, child in tree.items()} if isinstance(tree, dict) else tree


def boxed(tree: Any) -> Any:
    """The tree with every leaf that has axes in a box, as ``nn.with_partitioning`` leaves it."""
    return jax.tree.map(lambda x: nn.Partitioned(x, names=(None,) * np.ndim(x)) if np.ndim(x) else x, tree)


def on_disk(tree: Any) -> Any:
    """An ``nnx.State`` as Orbax stores it: a ``value`` level under every leaf, int keys turned into strings."""
    return _stored(nnx.to_pure_dict(tree), lambda leaf: {"value": leaf})


def pure_on_disk(tree: Any) -> Any:
    """A pure dict as Orbax stores it: int keys turned into strings."""
    return _stored(nnx.to_pure_dict(tree), lambda leaf: leaf)


def _stored(tree: Any, leaf: Callable[[Any], Any]) -> Any:
    return {str(key): _stored(child, leaf) for key, child in tree.items()} if isinstance(tree, dict) else leaf(tree)


def as_built(tree: Any) -> Any:
    """The layout's own container."""
    return tree


LINEN: Mapping[str, Callable[[Any], Any]] = {
    "dict": as_built,
    "TrainState": train_state,
    "boxed TrainState": lambda tree: train_state(boxed(tree)),
    "orbax": orbax,
}
NNX: Mapping[str, Callable[[Any], Any]] = {
    "State": as_built,
    "pure dict": nnx.to_pure_dict,
    "on disk": on_disk,
    "pure on disk": pure_on_disk,
}


@dataclasses.dataclass(frozen=True)
class Maker:
    """Makes random trees of one side of a lens.

    Attributes:
        layout: The layout.
        sizes: All of its dims, in elements.
        bounds: For rows whose partners have other integer dtypes: the values that all can hold.
        number: Whether a step is a Python number, as ``TrainState.create`` leaves it.
    """

    layout: cs.Layout
    sizes: Mapping[str, int]
    bounds: Mapping[LogicalPath, Bounds]
    number: bool = False

    def __call__(self, rng: np.random.Generator, place: Place, absent: Collection[int] = ()) -> Any:
        """A tree in the layout's own container, without the (optional) rows ``absent``."""
        leaves = []
        for at, row in enumerate(self.layout.rows):
            if at in absent:
                continue
            shape = sizes_of(row.dims, self.sizes)
            assert shape is not None
            for indices in slots_of(row, self.sizes):
                value = hostile(rng, row.leaf.dtype, shape, self.bounds.get(row.path))
                leaves.append((fill(row.key, indices), row, self._leaf(row, value, place)))
        return trees.build(self.layout, leaves, self.sizes)

    def _leaf(self, row: Row, value: Any, place: Place) -> Any:
        return int(value) if self.number and row.path == ("step",) else place(value)


def makers(sizes: Mapping[str, int], *layouts: cs.Layout, number: bool = False) -> tuple[Maker, ...]:
    """One maker per layout; integers are such that the dtype of every layout holds them.

    With ``number``, the step of the first is a Python number, as ``TrainState.create`` leaves it.
    """
    dtypes: dict[LogicalPath, set[str]] = {}
    for layout in layouts:
        for row in layout.rows:
            dtypes.setdefault(row.path, set()).add(row.leaf.dtype)
    bounds = {path: _common(kinds) for path, kinds in dtypes.items() if len(kinds) > 1}
    return tuple(Maker(layout, sizes, bounds, number and at == 0) for at, layout in enumerate(layouts))


def _common(dtypes: Collection[str]) -> Bounds:
    infos = [jnp.iinfo(dtype) for dtype in dtypes]
    return max(int(info.min) for info in infos), min(int(info.max) for info in infos)


def bound(lens: cs.Lens, sizes: Mapping[str, int]) -> cs.Lens:
    """The lens for fixed sizes of all its dims."""
    known = lens.source.names() | lens.view.names()
    return lens.bind(**{name: size for name, size in sizes.items() if name in known})
