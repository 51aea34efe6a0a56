"""Models that a new user brings: restored in one line, or with what the error says to paste, trained on, and saved back."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import nnx
from flax.training import train_state
from support.profiles import thorough_only

import ckpt_schema as cs

STEPS = 3


def settled(path: Path, target: Callable[[], Any]) -> tuple[Any, list[Any]]:
    """What a restore gives once the rules of its first error are pasted, and these rules."""
    try:
        return cs.orbax.restore(path, target()), []
    except cs.DerivationError as error:
        assert "to paste, for all of them" in str(error)
        rules = [*error.rules]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", cs.AxesWarning)
        return cs.orbax.restore(path, target(), rules=rules), rules


def goes_on(
    path: Path, state: Any, fields: tuple[str, ...], target: Callable[[], Any], steps: Any
) -> list[Any]:
    """A Linen run that goes on in NNX and again in Linen, its losses equal to the last bit; the rules that it took."""
    linen_step, nnx_step = steps
    cs.orbax.save(path, {name: getattr(state, name) for name in fields})
    training, rules = settled(path, target)
    for _ in range(STEPS):
        state, loss = linen_step(state)
        assert loss == nnx_step(training)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", cs.AxesWarning)
        back = path.with_name("back")
        cs.orbax.save(back, training, layout=path, rules=rules)
    state = state.replace(**cs.orbax.restore(back, {name: getattr(state, name) for name in fields}))
    state, loss = linen_step(state)
    assert loss == nnx_step(training)
    return list(map(str, rules))


# --- A transformer with averages and a key in its train state  ---

EMBED, HEADS, VOCAB, LENGTH = 8, 2, 11, 6
ADAM = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = nn.LayerNorm(name="norm")(x)
        attention = nn.MultiHeadDotProductAttention(HEADS, name="attention")
        x = x + attention(h, h)
        return x + nn.Dense(EMBED, name="down")(nn.gelu(nn.Dense(2 * EMBED, name="up")(x)))


class LinenTransformer(nn.Module):
    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(VOCAB, EMBED, name="embed")(tokens)
        x = x + self.param("positions", nn.initializers.normal(0.02), (LENGTH, EMBED))
        for i in range(3):
            x = LinenBlock(name=f"block_{i}")(x)
        return nn.Dense(VOCAB, name="head")(x)


class NnxBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm = nnx.LayerNorm(EMBED, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, EMBED, decode=False, rngs=rngs)
        self.up = nnx.Linear(EMBED, 2 * EMBED, rngs=rngs)
        self.down = nnx.Linear(2 * EMBED, EMBED, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.norm(x))
        return x + self.down(nnx.gelu(self.up(x)))


class NnxTransformer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(VOCAB, EMBED, rngs=rngs)
        self.positions = nnx.Param(jnp.zeros((LENGTH, EMBED)))
        self.blocks = nnx.List([NnxBlock(rngs) for _ in range(3)])
        self.head = nnx.Linear(EMBED, VOCAB, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embed(tokens) + self.positions[...]
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class AveragedState(train_state.TrainState):
    ema_params: Any
    rng: jax.Array


class AveragedTraining(nnx.Module):
    def __init__(self) -> None:
        self.model = NnxTransformer(nnx.Rngs(1))
        self.optimizer = nnx.Optimizer(self.model, ADAM, wrt=nnx.Param)
        self.ema = nnx.clone(self.model)
        self.rng = nnx.Variable(jax.random.key(0))


def batch(key: jax.Array) -> jax.Array:
    return jax.random.randint(key, (2, LENGTH), 0, VOCAB)


def entropy(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    shifted = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:])
    return shifted.mean()


@jax.jit
def averaged(old: jax.Array, new: jax.Array) -> jax.Array:
    """The average, leaf by leaf, so that both frameworks compile the same."""
    return old * 0.9 + new * 0.1


@jax.jit
def linen_gradients(state: AveragedState) -> Any:
    rng, key = jax.random.split(state.rng)
    tokens = batch(key)
    served = entropy(state.apply_fn({"params": state.ema_params}, tokens), tokens)

    def loss(params: Any) -> jax.Array:
        return entropy(state.apply_fn({"params": params}, tokens), tokens)

    own, gradients = jax.value_and_grad(loss)(state.params)
    return state.apply_gradients(grads=gradients).replace(rng=rng), (own, served)


def linen_averaged_step(state: AveragedState) -> tuple[AveragedState, Any]:
    state, losses = linen_gradients(state)
    average = jax.tree.map(averaged, state.ema_params, state.params)
    return state.replace(ema_params=average), losses


@nnx.jit
def nnx_gradients(training: AveragedTraining) -> Any:
    rng, key = jax.random.split(training.rng[...])
    tokens = batch(key)
    served = entropy(training.ema(tokens), tokens)
    own, gradients = nnx.value_and_grad(lambda model: entropy(model(tokens), tokens))(
        training.model
    )
    training.optimizer.update(training.model, gradients)
    training.rng[...] = rng
    return own, served


def nnx_averaged_step(training: AveragedTraining) -> Any:
    losses = nnx_gradients(training)
    both = nnx.state(training.ema), nnx.state(training.model)
    nnx.update(training.ema, jax.tree.map(averaged, *both))
    return losses


@thorough_only
def test_a_transformer_with_averages_and_a_key(tmp_path: Path) -> None:
    model = LinenTransformer()
    params = model.init(jax.random.key(0), batch(jax.random.key(0)))["params"]
    state = AveragedState.create(
        apply_fn=model.apply, params=params, tx=ADAM, ema_params=params, rng=jax.random.key(7)
    )
    state, _ = linen_averaged_step(state)
    fields = "step", "params", "opt_state", "ema_params", "rng"
    steps = linen_averaged_step, nnx_averaged_step
    assert goes_on(tmp_path / "run", state, fields, AveragedTraining, steps) == [
        "rename('ema_params', 'ema')",
        "rename('block[]', 'blocks[]')",
    ]


# --- An ordinary model with names of Linen's own  ---

INPUTS = jax.random.normal(jax.random.key(0), (8, 5))


class PlainBlock(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = nn.Dense(16)(nn.LayerNorm()(x))
        return x + nn.Dense(8)(nn.gelu(h))


class Plain(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(8)(x)
        for _ in range(3):
            x = PlainBlock()(x)
        return nn.Dense(5)(nn.LayerNorm()(x))


class TwinBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.up = nnx.Linear(8, 16, rngs=rngs)
        self.down = nnx.Linear(16, 8, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.down(nnx.gelu(self.up(self.norm(x))))


class Twin(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(1)
        self.stem = nnx.Linear(5, 8, rngs=rngs)
        self.blocks = nnx.List([TwinBlock(rngs) for _ in range(3)])
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.out = nnx.Linear(8, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.out(self.norm(x))


class Training(nnx.Module):
    """A model and its optimizer, under names of one's own."""

    def __init__(self, model: Any, tx: Any) -> None:
        self.net = model
        self.opt = nnx.Optimizer(model, tx, wrt=nnx.Param)


@jax.jit
def plain_step(state: train_state.TrainState) -> Any:
    def loss(params: Any) -> jax.Array:
        return ((state.apply_fn({"params": params}, INPUTS) - INPUTS) ** 2).mean()

    value, gradients = jax.value_and_grad(loss)(state.params)
    return state.apply_gradients(grads=gradients), value


@nnx.jit
def twin_step(training: Training) -> jax.Array:
    loss, gradients = nnx.value_and_grad(lambda net: ((net(INPUTS) - INPUTS) ** 2).mean())(
        training.net
    )
    training.opt.update(training.net, gradients)
    return loss


def test_a_compact_model_and_its_twin(tmp_path: Path) -> None:
    model, tx = Plain(), optax.adamw(1e-2)
    params = model.init(jax.random.key(0), INPUTS)["params"]
    state = train_state.TrainState.create(apply_fn=model.apply, params=params, tx=tx)
    state, _ = plain_step(state)
    target = lambda: Training(Twin(), tx)  # noqa: E731
    rules = goes_on(
        tmp_path / "run", state, ("step", "params", "opt_state"), target, (plain_step, twin_step)
    )
    assert rules == [
        "rename('Dense_0', 'stem')",
        "rename('Dense_1', 'out')",
        "rename('LayerNorm_0', 'norm')",
        "rename('PlainBlock[]/Dense_0', 'blocks[]/up')",
        "rename('PlainBlock[]/Dense_1', 'blocks[]/down')",
        "rename('PlainBlock[]/LayerNorm_0', 'blocks[]/norm')",
    ]


# --- A U-Net whose layers are of different sizes  ---

IMAGES = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
WIDTHS = 4, 6


class LinenConv(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.Conv(self.width, (3, 3), use_bias=False, name="conv")(x)
        return nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x))


class LinenUNet(nn.Module):
    def setup(self) -> None:
        self.down = [LinenConv(width) for width in WIDTHS]
        self.up = [LinenConv(width) for width in reversed(WIDTHS)]
        self.head = nn.Conv(1, (1, 1))

    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        passed: list[jax.Array] = []
        for layer in self.down:
            passed.append(layer(x, train))
            x = nn.max_pool(passed[-1], (2, 2), (2, 2))
        for layer in self.up:
            x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
            x = layer(jnp.concatenate([x, passed.pop()], axis=-1), train)
        return self.head(x)


class NnxConv(nnx.Module):
    def __init__(self, inputs: int, width: int, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(inputs, width, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.relu(self.norm(self.conv(x)))


class NnxUNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.down = nnx.List([NnxConv(1, 4, rngs), NnxConv(4, 6, rngs)])
        self.up = nnx.List([NnxConv(12, 6, rngs), NnxConv(10, 4, rngs)])
        self.head = nnx.Conv(4, 1, (1, 1), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        passed: list[jax.Array] = []
        for layer in self.down:
            passed.append(layer(x))
            x = nnx.max_pool(passed[-1], (2, 2), (2, 2))
        for layer in self.up:
            x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
            x = layer(jnp.concatenate([x, passed.pop()], axis=-1))
        return self.head(x)


class BatchedState(train_state.TrainState):
    batch_stats: Any


@jax.jit
def linen_unet_step(state: BatchedState) -> tuple[BatchedState, jax.Array]:
    def loss(params: Any) -> Any:
        variables = {"params": params, "batch_stats": state.batch_stats}
        images, changed = state.apply_fn(variables, IMAGES, mutable=["batch_stats"])
        return ((images - IMAGES) ** 2).mean(), changed

    (value, changed), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
    state = state.apply_gradients(grads=gradients)
    return state.replace(batch_stats=changed["batch_stats"]), value


@nnx.jit
def nnx_unet_step(training: Training) -> jax.Array:
    loss, gradients = nnx.value_and_grad(lambda net: ((net(IMAGES) - IMAGES) ** 2).mean())(
        training.net
    )
    training.opt.update(training.net, gradients)
    return loss


@thorough_only
def test_a_unet_whose_layers_differ(tmp_path: Path) -> None:
    model, tx = LinenUNet(), optax.sgd(1e-2, momentum=0.9)
    variables = model.init(jax.random.key(0), IMAGES)
    state = BatchedState.create(
        apply_fn=model.apply,
        params=variables["params"],
        tx=tx,
        batch_stats=variables["batch_stats"],
    )
    state, _ = linen_unet_step(state)
    target = lambda: Training(NnxUNet(nnx.Rngs(1)), tx)  # noqa: E731
    fields = "step", "params", "opt_state", "batch_stats"
    steps = linen_unet_step, nnx_unet_step
    assert goes_on(tmp_path / "run", state, fields, target, steps) == [
        "rename('down_0', 'down/0')",
        "rename('down_1', 'down/1')",
        "rename('up_0', 'up/0')",
        "rename('up_1', 'up/1')",
    ]
