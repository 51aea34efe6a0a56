"""Four kinds of models, each in Linen and in NNX: a ResNet, an LSTM, one with LoRA adapters, and one with tied embeddings.

Both models of a pair are made of the layers of their framework, and compute the same function with the same operations. Where a
gradient is clipped by its global norm, that takes names that sort alike: optax adds the leaves up in the order of the tree.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Batch = tuple[jax.Array, jax.Array]
CHANNELS, WIDE, CLASSES, BLOCKS = 8, 16, 10, 2
VOCAB, EMBED, HIDDEN, MLP, RANK, LENGTH = 32, 16, 24, 32, 4, 6
EXAMPLES = 8


# --- ResNet  ---


class LinenBlock(nn.Module):
    """A residual block, its modules named by Linen."""

    features: int
    strides: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """The block; where it changes the shape, the shortcut is a convolution too."""
        norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        y = nn.Conv(self.features, (3, 3), self.strides, use_bias=False)(x)
        y = nn.Conv(self.features, (3, 3), use_bias=False)(nn.relu(norm()(y)))
        y = norm(scale_init=nn.initializers.constant(0.5))(y)
        if self.strides > 1:
            x = norm(name="norm_proj")(
                nn.Conv(self.features, (1, 1), self.strides, use_bias=False, name="conv_proj")(x)
            )
        return nn.relu(x + y)


class LinenResNet(nn.Module):
    """A small ResNet."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = True) -> jax.Array:
        """Logits."""
        x = nn.Conv(CHANNELS, (3, 3), use_bias=False, name="conv_init")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="bn_init")(x))
        x = LinenBlock(WIDE, strides=2, name="down")(x, train=train)
        for i in range(BLOCKS):
            x = LinenBlock(WIDE, name=f"block_{i}")(x, train=train)
        return nn.Dense(CLASSES)(x.mean((1, 2)))


class NnxBlock(nnx.Module):
    """A residual block."""

    def __init__(self, inputs: int, features: int, rngs: nnx.Rngs, strides: int = 1) -> None:
        self.conv1 = nnx.Conv(inputs, features, (3, 3), strides, use_bias=False, rngs=rngs)
        self.norm1 = nnx.BatchNorm(features, momentum=0.9, rngs=rngs)
        self.conv2 = nnx.Conv(features, features, (3, 3), use_bias=False, rngs=rngs)
        self.norm2 = nnx.BatchNorm(
            features, momentum=0.9, scale_init=nnx.initializers.constant(0.5), rngs=rngs
        )

    def shortcut(self, x: jax.Array) -> jax.Array:
        """What the block adds to."""
        return x

    def __call__(self, x: jax.Array) -> jax.Array:
        """The block."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return nnx.relu(self.shortcut(x) + y)


class NnxDownBlock(NnxBlock):
    """A residual block that changes the shape."""

    def __init__(self, inputs: int, features: int, rngs: nnx.Rngs, strides: int = 2) -> None:
        super().__init__(inputs, features, rngs, strides)
        self.projection = nnx.Conv(inputs, features, (1, 1), strides, use_bias=False, rngs=rngs)
        self.projection_norm = nnx.BatchNorm(features, momentum=0.9, rngs=rngs)

    def shortcut(self, x: jax.Array) -> jax.Array:
        """What the block adds to."""
        return self.projection_norm(self.projection(x))


class NnxResNet(nnx.Module):
    """The same ResNet."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.stem = nnx.Conv(3, CHANNELS, (3, 3), use_bias=False, rngs=rngs)
        self.stem_norm = nnx.BatchNorm(CHANNELS, momentum=0.9, rngs=rngs)
        self.down = NnxDownBlock(CHANNELS, WIDE, rngs)
        self.blocks = nnx.List([NnxBlock(WIDE, WIDE, rngs) for _ in range(BLOCKS)])
        self.head = nnx.Linear(WIDE, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits."""
        x = self.down(nnx.relu(self.stem_norm(self.stem(x))))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


# --- LSTM  ---


class LinenLstm(nn.Module):
    """A language model of two LSTMs, one on top of the other."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits."""
        x = nn.Embed(VOCAB, EMBED)(tokens)
        for _ in range(2):
            x = nn.RNN(nn.LSTMCell(HIDDEN))(x)
        return nn.Dense(VOCAB)(x)


class NnxLstm(nnx.Module):
    """The same; each ``nnx.RNN`` has a stream, which it draws its first carry from."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(VOCAB, EMBED, rngs=rngs)
        self.lower = nnx.RNN(nnx.LSTMCell(EMBED, HIDDEN, rngs=rngs), rngs=rngs)
        self.upper = nnx.RNN(nnx.LSTMCell(HIDDEN, HIDDEN, rngs=rngs), rngs=rngs)
        self.dense = nnx.Linear(HIDDEN, VOCAB, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits."""
        return self.dense(self.upper(self.lower(self.embed(tokens))))


# --- LoRA  ---


class Adapter(nn.Module):
    """A product of two narrow matrices, in ``params`` below the layer that it is added to, as Gemma's are."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The product."""
        a = self.param("a", nn.initializers.he_uniform(), (x.shape[-1], RANK))
        b = self.param("b", nn.initializers.zeros, (RANK, self.features))
        return x @ a @ b


class LoraDense(nn.Dense):
    """``nn.Dense`` with an adapter below it."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Both, added up."""
        return super().__call__(x) + Adapter(self.features, name="lora")(x)


class LinenAdapted(nn.Module):
    """A residual block between an embedding and a head, its two layers adapted."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits."""
        x = nn.Embed(VOCAB, EMBED, name="embed")(tokens)
        y = LoraDense(MLP, name="wi")(nn.LayerNorm(name="norm")(x))
        x = x + LoraDense(EMBED, name="wo")(nn.gelu(y))
        return nn.Dense(VOCAB, name="head")(x)


class NnxAdapted(nnx.Module):
    """The same."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(VOCAB, EMBED, rngs=rngs)
        self.norm = nnx.LayerNorm(EMBED, rngs=rngs)
        self.wi = nnx.LoRALinear(EMBED, MLP, lora_rank=RANK, rngs=rngs)
        self.wo = nnx.LoRALinear(MLP, EMBED, lora_rank=RANK, rngs=rngs)
        self.head = nnx.Linear(EMBED, VOCAB, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits."""
        x = self.embed(tokens)
        return self.head(x + self.wo(nnx.gelu(self.wi(self.norm(x)))))


# --- tied embeddings  ---


class LinenTied(nn.Module):
    """A language model that reads and writes with one table."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits."""
        table = nn.Embed(VOCAB, EMBED, name="token_embedder")
        x = table(tokens)
        y = nn.Dense(MLP, name="wi")(nn.LayerNorm(name="ln")(x))
        return table.attend(x + nn.Dense(EMBED, name="wo")(nn.gelu(y)))


class NnxDecoder(nnx.Module):
    """What writes, with a table that someone else reads from."""

    def __init__(self, table: nnx.Embed, rngs: nnx.Rngs) -> None:
        self.norm = nnx.LayerNorm(EMBED, rngs=rngs)
        self.wi = nnx.Linear(EMBED, MLP, rngs=rngs)
        self.wo = nnx.Linear(MLP, EMBED, rngs=rngs)
        self.table = table

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits."""
        return self.table.attend(x + self.wo(nnx.gelu(self.wi(self.norm(x)))))


class NnxTied(nnx.Module):
    """The same; the table stands at ``decoder/table`` and at ``embed``, and in the state at the first of these."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(VOCAB, EMBED, rngs=rngs)
        self.decoder = NnxDecoder(self.embed, rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits."""
        return self.decoder(self.embed(tokens))


# --- training  ---


class Stateful(TrainState):
    """A train state with batch statistics, as Flax's own guide writes it."""

    batch_stats: Any


class Training(nnx.Module):
    """A model and its optimizer."""

    def __init__(
        self, model: nnx.Module, tx: optax.GradientTransformation, wrt: type[nnx.Param[Any]]
    ) -> None:
        self.model = model
        self.optimizer = nnx.Optimizer(model, tx, wrt=wrt)


def _loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


@dataclasses.dataclass(frozen=True, eq=False)
class LinenRun:
    """Training in Linen.

    Attributes:
        model: The model.
        tx: The transformation.
        bare: Whether the train state has ``variables["params"]``, or the whole ``variables``.
        batch: Makes the batch of a step.
    """

    model: nn.Module
    tx: optax.GradientTransformation
    bare: bool
    batch: Callable[[int], Batch]

    @functools.cached_property
    def start(self) -> TrainState:
        """The state before the first step."""
        variables = jax.jit(self.model.init)(jax.random.key(0), self.batch(0)[0])
        params = variables["params"] if self.bare else variables
        given = {"apply_fn": self.model.apply, "tx": self.tx, "params": params}
        if "batch_stats" in variables:
            return Stateful.create(**given, batch_stats=variables["batch_stats"]).replace(
                step=jnp.int32(0)
            )
        return TrainState.create(**given).replace(
            step=jnp.int32(0)
        )  # a Python number would be compiled for on its own

    @functools.cached_property
    def step(self) -> Callable[[TrainState, Batch], tuple[TrainState, jax.Array]]:
        """A step of training: the next state, and the loss before it."""
        return jax.jit(self._step)

    def _step(self, state: TrainState, batch: Batch) -> tuple[TrainState, jax.Array]:
        inputs, targets = batch
        statistics = {"batch_stats": state.batch_stats} if isinstance(state, Stateful) else {}

        def loss(params: Any) -> tuple[jax.Array, Any]:
            variables = {"params": params, **statistics} if self.bare else params
            logits, updated = state.apply_fn(variables, inputs, mutable=list(statistics))
            return _loss(logits, targets), updated

        (value, updated), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
        return state.apply_gradients(grads=gradients, **updated), value


@dataclasses.dataclass(frozen=True, eq=False)
class NnxRun:
    """Training in NNX.

    Attributes:
        model: Makes the model.
        tx: The transformation.
        batch: Makes the batch of a step.
        wrt: What is trained.
    """

    model: Callable[[nnx.Rngs], nnx.Module]
    tx: optax.GradientTransformation
    batch: Callable[[int], Batch]
    wrt: type[nnx.Param[Any]] = nnx.Param

    @functools.cached_property
    def _made(self) -> tuple[Any, Any]:
        return nnx.split(nnx.jit(lambda: Training(self.model(nnx.Rngs(1)), self.tx, self.wrt))())

    @property
    def start(self) -> nnx.State[Any, Any]:
        """The state before the first step."""
        return self._made[1]

    def module(self, state: nnx.State[Any, Any]) -> Training:
        """The module in a state."""
        return nnx.merge(self._made[0], state, copy=True)

    @functools.cached_property
    def step(self) -> Callable[[Any, Batch], tuple[Any, jax.Array]]:
        """A step of training: the next state, and the loss before it."""
        return jax.jit(functools.partial(self._step, self._made[0]))

    def _step(self, graph: Any, state: Any, batch: Batch) -> tuple[Any, jax.Array]:
        module, (inputs, targets) = nnx.merge(graph, state), batch
        loss = nnx.value_and_grad(
            lambda model: _loss(model(inputs), targets), argnums=nnx.DiffState(0, self.wrt)
        )
        value, gradients = loss(module.model)
        module.optimizer.update(module.model, gradients)
        return nnx.state(module), value


Run = LinenRun | NnxRun


def train(run: Run, state: Any, steps: range, mesh: Mesh | None = None) -> tuple[Any, list[str]]:
    """Trains on the batches of these steps: the state after them, and the losses as hexadecimal floats."""
    losses: list[str] = []
    for number in steps:
        batch = run.batch(number)
        if mesh is not None:
            batch = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
        state, loss = run.step(state, batch)
        state = (
            state if mesh is None else placed(state, mesh)
        )  # where the compiler had left it, it would be compiled for anew
        losses.append(float(loss).hex())
    return state, losses


def images(number: int) -> Batch:
    """The batch of a step: images, and what they show."""
    key, other = jax.random.split(jax.random.key(number))
    labels = jax.random.randint(key, (EXAMPLES,), 0, CLASSES)
    return jax.random.normal(other, (EXAMPLES, 8, 8, 3)) + labels[
        :, None, None, None
    ] / CLASSES, labels


def tokens(number: int) -> Batch:
    """The batch of a step: sequences, and what comes next in them."""
    text = jax.random.randint(jax.random.key(number), (EXAMPLES, LENGTH + 1), 0, VOCAB) ** 2 % VOCAB
    return text[:, :-1], text[:, 1:]


def make_mesh(data: int, model: int) -> Mesh:
    """A mesh of all eight devices, its axes left to the compiler."""
    return jax.make_mesh(
        (data, model), ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto)
    )


def sharded(tree: Any, mesh: Mesh) -> Any:
    """Abstract leaves like those of ``tree``, wide axes sharded: the last over ``model``, the one before over ``data``."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_sharding(x.shape, mesh)), tree
    )


def placed(tree: Any, mesh: Mesh) -> Any:
    """The tree, sharded like that."""
    return jax.device_put(tree, jax.tree.map(lambda x: x.sharding, sharded(tree, mesh)))


def _sharding(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    # Not the stem's eight channels. With so few on a device, XLA lays the same operations out in another way for each order of
    # the arguments, so that a product is rounded before it is added to in one framework, and fused with the sum in the other.
    free = iter(reversed(mesh.axis_names))
    spec = [
        next(free, None) if size >= WIDE and size % 8 == 0 else None for size in reversed(shape)
    ]
    return NamedSharding(mesh, PartitionSpec(*reversed(spec)))
