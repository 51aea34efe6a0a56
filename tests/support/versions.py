"""Four versions of one training code, whose models are in `branches`: declared, trained, and placed on meshes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from jaxtyping import Array, Float32, Int32
from pair_models import Training

import ckpt_schema as cs
from support import branches
from support.branches import HEADS, Batch, batch

IMPL = "unsafe_rbg"
SEEN, OTHER_SEEN, FRESH, OTHER_FRESH = (
    0,
    100,
    3,
    4,
)  # the declared defaults: each version has its own


# --- Layouts  ---


class Embed(cs.Schema):
    """The table."""

    embedding: Float32[Array, "vocab embed"]


class Dense(cs.Schema):
    """The branch with a bias."""

    kernel: Float32[Array, "features heads*head_dim"]
    bias: Float32[Array, " heads*head_dim"]


class Fused(cs.Schema):
    """The other branch."""

    kernel: Float32[Array, "features heads*head_dim"]


class Split(cs.Schema):
    """The other branch, split into heads."""

    kernel: Float32[Array, "features heads head_dim"]


class Turned(cs.Schema):
    """The other branch, transposed."""

    kernel: Float32[Array, "heads*head_dim features"]


class ScannedLayerLayout(cs.Schema):
    """One layer under ``nn.scan``."""

    wi: Dense = cs.field(key="Dense_0")
    mix: Fused = cs.field(key="Dense_1")
    first: Int32[Array, ""] = cs.field(collection="seen", axis=0, default=SEEN)


class ScannedLayout(cs.Schema):
    """Linen, scanned."""

    embed: Embed = cs.field(key="Embed_0")
    layers: ScannedLayerLayout = cs.field(scan="depth", axis=1)


class UnrolledLayerLayout(cs.Schema):
    """One layer in Linen."""

    wi: Dense
    mix: Split
    first: Int32[Array, ""] = cs.field(collection="seen", default=OTHER_SEEN)


class UnrolledLayout(cs.Schema):
    """Linen, unrolled."""

    embed: Embed
    layers: list[UnrolledLayerLayout] = cs.field(key="layers_{i}", length="depth")


class ListedLayerLayout(cs.Schema):
    """One layer in NNX."""

    up: Dense
    mix: Split
    noise: cs.Stream["urbg"] = cs.field(
        key="dropout/rngs", tag="default", default=cs.constant_key(FRESH)
    )


class ListedLayout(cs.Schema):
    """NNX, in a list."""

    table: Embed
    layers: list[ListedLayerLayout] = cs.field(length="depth")


class StackedLayerLayout(cs.Schema):
    """One of the layers that ``nnx.vmap`` stacks."""

    wi: Dense
    mix: Turned
    noise: cs.Stream["urbg"] = cs.field(
        key="drop/rngs", tag="default", default=cs.constant_key(OTHER_FRESH)
    )


class StackedLayout(cs.Schema):
    """NNX, stacked."""

    embed: Embed
    layers: StackedLayerLayout = cs.field(scan="depth", axis=0)


# --- Training  ---


def filled(tree: Any) -> Any:
    """Abstract leaves as small whole numbers, and keys of any bits; no two layers are alike, in their momenta neither."""
    draw = np.random.default_rng(len(jax.tree.leaves(tree)))

    def fill(leaf: Any) -> jax.Array:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(
                draw.integers(0, 2**32, (*leaf.shape, 4), np.uint32), impl=IMPL
            )
        return jnp.asarray(draw.integers(1, 100, leaf.shape), leaf.dtype)

    return jax.tree.map(fill, tree)


def _sgd() -> optax.GradientTransformation:
    return optax.sgd(lambda count: 0.25 / (1 + count % 2), momentum=0.5)


class LinenState(TrainState):
    """A train state with what the model has seen."""

    seen: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Linen:
    """A version in Linen.

    Attributes:
        model: The model.
        body: Its layout.
        tx: The transformation.
    """

    model: nn.Module
    body: type[cs.Schema]
    tx: optax.GradientTransformation
    container = LinenState

    @functools.cached_property
    def layout(self) -> cs.Layout:
        """The layout of its train state."""
        return cs.linen.BareTrainState[self.body, self.tx]

    @functools.cached_property
    def start(self) -> LinenState:
        """The state before the first step."""

        def made() -> LinenState:
            variables = self.model.init(jax.random.key(0), *batch(0)[:2])
            return LinenState.create(apply_fn=self.model.apply, tx=self.tx, **variables).replace(
                step=jnp.int32(0)
            )

        return filled(jax.eval_shape(made))

    def contained(self, tree: dict[str, Any]) -> LinenState:
        """What a lens makes without ``onto``, as the train state."""
        return LinenState(apply_fn=self.model.apply, tx=self.tx, **tree)

    @functools.cached_property
    def step(self) -> Callable[[LinenState, Batch], LinenState]:
        """A step of training."""
        return jax.jit(self._step)

    def _step(self, state: LinenState, batch: Batch) -> LinenState:
        tokens, x, targets = batch

        def loss(params: Any) -> tuple[jax.Array, Any]:
            total, updated = state.apply_fn(
                {"params": params, "seen": state.seen}, tokens, x, mutable=["seen"]
            )
            return (total * targets).sum(), updated

        gradients, updated = jax.grad(loss, has_aux=True)(state.params)
        return state.apply_gradients(grads=gradients, **updated)


@dataclasses.dataclass(frozen=True, eq=False)
class Nnx:
    """A version in NNX; see `Linen`."""

    model: Callable[[nnx.Rngs], nnx.Module]
    body: type[cs.Schema]
    tx: optax.GradientTransformation
    container = nnx.State

    @functools.cached_property
    def layout(self) -> cs.Layout:
        """The layout of its train state."""
        return cs.nnx.TrainState[self.body, self.tx]

    @functools.cached_property
    def _made(self) -> tuple[Any, Any]:
        def made() -> Training:
            return Training(self.model(nnx.Rngs(jax.random.key(0, impl=IMPL))), self.tx, nnx.Param)

        return nnx.split(nnx.eval_shape(made))

    @functools.cached_property
    def start(self) -> nnx.State[Any, Any]:
        """The state before the first step."""
        return filled(self._made[1])

    def contained(self, tree: nnx.State[Any, Any]) -> nnx.State[Any, Any]:
        """What a lens makes without ``onto``: a state."""
        return tree

    def module(self, state: nnx.State[Any, Any]) -> Training:
        """A module of its own in a state."""
        return nnx.merge(self._made[0], state, copy=True)

    @functools.cached_property
    def step(self) -> Callable[[Any, Batch], Any]:
        """A step of training."""
        return jax.jit(functools.partial(self._step, self._made[0]))

    def _step(self, graph: Any, state: Any, batch: Batch) -> Any:
        module, (tokens, x, targets) = nnx.merge(graph, state), batch
        gradients = nnx.grad(lambda model: (model(tokens, x) * targets).sum())(module.model)
        module.optimizer.update(module.model, gradients)
        return nnx.state(module)


VERSIONS: dict[str, Linen | Nnx] = {
    "scanned": Linen(branches.LinenScanned(), ScannedLayout, _sgd()),
    "unrolled": Linen(
        branches.LinenUnrolled(), UnrolledLayout, optax.chain(optax.clip(2.0**20), _sgd())
    ),
    "listed": Nnx(branches.NnxListed, ListedLayout, _sgd()),
    "stacked": Nnx(branches.NnxStacked, StackedLayout, optax.chain(optax.clip(2.0**20), _sgd())),
}
NAMES = tuple(VERSIONS)
_WORDS = {
    "embed": "table",
    "layers[]/wi": "layers[]/up",
}  # what the others call so, to what "listed" calls it


@functools.cache
def lens(*route: str) -> cs.Lens:
    """The lens from the first version on a route to the last, composed where there are others between."""
    if len(route) > 2:
        return lens(*route[:2]) >> lens(*route[1:])
    source, view = route
    pairs = [
        (name if source != "listed" else other, name if view != "listed" else other)
        for name, other in _WORDS.items()
    ]
    edits = [cs.rename(one, other) for one, other in pairs if one != other]
    return cs.derive(
        VERSIONS[source].layout, VERSIONS[view].layout, rules=edits, dims={"heads": HEADS}
    )


# --- Meshes  ---


def _mesh(*shape: int) -> Mesh:
    return jax.make_mesh(
        shape, ("data", "model")[: len(shape)], axis_types=(AxisType.Auto,) * len(shape)
    )


@functools.cache
def mesh(name: str) -> Mesh | None:
    """A mesh of all devices by name, ``4x2``, or None for a single device."""
    return None if name == "one" else _mesh(*map(int, name.split("x")))


MESHES = ("one", "4x2", "2x4", "8")


def sharding(name: str, shape: tuple[int, ...]) -> Any:
    """Where an array goes: its last axes are sharded, as far as they can be; a single device is not the first."""
    on = mesh(name)
    if on is None:
        return SingleDeviceSharding(jax.devices()[3])
    free = list(on.axis_names)
    spec = [
        free.pop() if free and size % on.shape[free[-1]] == 0 else None for size in reversed(shape)
    ]
    return NamedSharding(on, PartitionSpec(*reversed(spec)))


def sharded(tree: Any, name: str) -> Any:
    """Abstract leaves like those of a tree, on a mesh."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(name, x.shape)), tree
    )


def placed(tree: Any, name: str) -> Any:
    """The tree on a mesh."""
    return jax.device_put(tree, jax.tree.map(lambda x: sharding(name, x.shape), tree))
