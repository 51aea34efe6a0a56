"""Training the demo's models: four forms, one interface, the same arithmetic."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import ckpt_schema as cs
from ckpt_schema.demo.corpus import Text
from ckpt_schema.demo.linen_gpt import LinenGPT, ModelSizes
from ckpt_schema.demo.nnx_gpt import NnxGPT, NnxTrainState
from ckpt_schema.demo.schemas import LinenScanned, LinenUnrolled, NnxScanned, NnxUnrolled

__all__ = [
    "BATCH",
    "Form",
    "LinenForm",
    "NnxForm",
    "make_mesh",
    "make_optimizer",
    "sharded",
    "train",
]

BATCH = 8  # sequences per step


def make_optimizer() -> optax.GradientTransformation:
    """AdamW on a schedule, behind clipping: a chain in a chain."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-3, warmup_steps=10, decay_steps=200)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))


def make_mesh(data: int, model: int) -> Mesh:
    """A mesh of ``data * model`` devices, its axes left to the compiler."""
    return jax.make_mesh(
        (data, model), ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto)
    )


def sharded(tree: Any, mesh: Mesh) -> Any:
    """Abstract leaves like those of ``tree``, wide axes sharded: the first over ``data``, the second over ``model``."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_sharding(x.shape, mesh)), tree
    )


def _sharding(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    names = iter(mesh.axis_names)
    return NamedSharding(
        mesh,
        PartitionSpec(
            *(next(names, None) if size >= 32 and size % 8 == 0 else None for size in shape)
        ),
    )


def _loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


class Form(Protocol):
    """A way to write the model: a framework, and layers scanned or unrolled."""

    @property
    def sizes(self) -> ModelSizes:
        """The sizes of the model."""
        ...

    @property
    def layout(self) -> cs.Layout:
        """The layout of its train state."""
        ...

    @property
    def weights_layout(self) -> cs.Layout:
        """The layout of its weights alone."""
        ...

    def abstract(self, mesh: Mesh) -> Any:
        """Its train state, abstract, with shardings."""
        ...

    def weights(self, mesh: Mesh) -> Any:
        """Its weights alone, abstract, with shardings."""
        ...

    def start(self, weights: Any, mesh: Mesh) -> Any:
        """A train state at step 0 with these weights and a new optimizer state."""
        ...

    def step(self, state: Any, batch: jax.Array) -> tuple[Any, jax.Array]:
        """One step of training on int32[batch, length + 1]: the next state, and the loss before it."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class LinenForm:
    """The model in Linen, its weights kept as the whole variables dict."""

    sizes: ModelSizes
    tx: optax.GradientTransformation
    scanned: bool

    @property
    def layout(self) -> cs.Layout:
        """The declared layout of the train state."""
        return cs.layout(
            cs.linen.TrainState[LinenScanned if self.scanned else LinenUnrolled, self.tx]
        )

    @property
    def weights_layout(self) -> cs.Layout:
        """The declared layout of the variables dict."""
        return cs.layout(cs.linen.Params[LinenScanned if self.scanned else LinenUnrolled])

    @functools.cached_property
    def _model(self) -> LinenGPT:
        return LinenGPT(self.sizes, self.scanned)

    def init(self) -> Any:
        """New variables."""
        return self._model.init(jax.random.key(0), jnp.zeros((1, self.sizes.length), jnp.int32))

    def _create(self, variables: Any) -> TrainState:
        state = TrainState.create(apply_fn=self._model.apply, params=variables, tx=self.tx)
        return state.replace(step=jnp.int32(0))

    def abstract(self, mesh: Mesh) -> Any:
        """Its train state, abstract, with shardings."""
        return sharded(jax.eval_shape(lambda: self._create(self.init())), mesh)

    def weights(self, mesh: Mesh) -> Any:
        """Its variables, abstract, with shardings."""
        return self.abstract(mesh).params

    def start(self, weights: Any, mesh: Mesh) -> Any:
        """A train state at step 0 with these weights and a new optimizer state."""
        shardings = jax.tree.map(lambda x: x.sharding, self.abstract(mesh))
        return jax.jit(self._create, out_shardings=shardings)(weights)

    def step(self, state: Any, batch: jax.Array) -> tuple[Any, jax.Array]:
        """One step of training on int32[batch, length + 1]: the next state, and the loss before it."""
        return self._step(state, batch)

    @functools.cached_property
    def _step(self) -> Callable[[Any, jax.Array], tuple[Any, jax.Array]]:

        def run(state: TrainState, batch: jax.Array) -> tuple[TrainState, jax.Array]:
            def loss(variables: Any) -> jax.Array:
                return _loss(state.apply_fn(variables, batch[:, :-1]), batch[:, 1:])

            value, gradients = jax.value_and_grad(loss)(state.params)
            return state.apply_gradients(grads=gradients), value

        return jax.jit(run)


@dataclasses.dataclass(frozen=True, eq=False)
class NnxForm:
    """The model in NNX, in a module that holds it beside its optimizer."""

    sizes: ModelSizes
    tx: optax.GradientTransformation
    scanned: bool

    @property
    def layout(self) -> cs.Layout:
        """The declared layout of the train state."""
        return cs.layout(cs.nnx.TrainState[NnxScanned if self.scanned else NnxUnrolled, self.tx])

    @property
    def weights_layout(self) -> cs.Layout:
        """The declared layout of the model's state."""
        return cs.layout(cs.nnx.Params[NnxScanned if self.scanned else NnxUnrolled])

    def _module(self) -> NnxTrainState:
        rngs = nnx.Rngs(jax.random.key(0, impl="unsafe_rbg"))
        return NnxTrainState(NnxGPT(self.sizes, rngs, scanned=self.scanned), self.tx)

    @functools.cached_property
    def _split(self) -> tuple[Any, Any]:
        return nnx.split(nnx.eval_shape(self._module))

    def abstract(self, mesh: Mesh) -> Any:
        """Its train state, abstract, with shardings."""
        return sharded(self._split[1], mesh)

    def weights(self, mesh: Mesh) -> Any:
        """Its model's state, streams included, abstract, with shardings."""
        return self.abstract(mesh)["model"]

    def start(self, weights: Any, mesh: Mesh) -> Any:
        """A train state at step 0 with these weights and a new optimizer state."""

        def create(model_state: Any) -> Any:
            module = self._module()
            nnx.update(module.model, model_state)
            return nnx.state(NnxTrainState(module.model, self.tx))

        shardings = jax.tree.map(lambda x: x.sharding, self.abstract(mesh))
        return jax.jit(create, out_shardings=shardings)(weights)

    def step(self, state: Any, batch: jax.Array) -> tuple[Any, jax.Array]:
        """One step of training on int32[batch, length + 1]: the next state, and the loss before it."""
        return self._step(state, batch)

    @functools.cached_property
    def _step(self) -> Callable[[Any, jax.Array], tuple[Any, jax.Array]]:
        graph = self._split[0]

        def run(state: Any, batch: jax.Array) -> tuple[Any, jax.Array]:
            module = nnx.merge(graph, state)
            loss = nnx.value_and_grad(lambda model: _loss(model(batch[:, :-1]), batch[:, 1:]))
            value, gradients = loss(module.model)
            module.optimizer.update(module.model, gradients)
            return nnx.state(module), value

        return jax.jit(run)


def train(
    form: Form, state: Any, text: Text, mesh: Mesh, first: int, count: int, tick: Callable[[], None]
) -> tuple[Any, list[float]]:
    """Trains for ``count`` steps, on the batches of steps ``first`` and on.

    Args:
        form: How the model is written.
        state: Its train state.
        text: What is learned.
        mesh: The devices; batches are sharded over its first axis.
        first: The number of the first batch.
        count: How many steps.
        tick: Called after each.

    Returns:
        The state afterwards, and the loss of every step.
    """
    losses: list[float] = []
    where = NamedSharding(mesh, PartitionSpec("data"))
    for number in range(first, first + count):
        state, loss = form.step(
            state, jax.device_put(text.batch(number, BATCH, form.sizes.length), where)
        )
        losses.append(float(loss))
        tick()
    return state, losses
