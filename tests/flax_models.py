"""Real models for the tests: one small decoder in Linen and in NNX, the layouts declared for it, and its train states."""

from __future__ import annotations

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState
from jaxtyping import Array, Float32

import ckpt_schema as cs

VOCAB, EMBED, MLP, HEADS, HEAD_DIM, DEPTH = 11, 8, 16, 2, 4, 3
TOKENS = jnp.arange(6, dtype=jnp.int32)[None]

OPTIMIZERS: dict[str, optax.GradientTransformation] = {
    "sgd": optax.sgd(0.1),
    "sgd momentum": optax.sgd(0.1, momentum=0.9),
    "adam": optax.adam(1e-3),
    "adam schedule": optax.adam(optax.linear_schedule(1e-3, 0.0, 10)),
    "adamw": optax.adamw(1e-3),
    "adamw schedule": optax.adamw(optax.linear_schedule(1e-3, 0.0, 10)),
    "adamw bfloat16 mu": optax.adamw(1e-3, mu_dtype=jnp.bfloat16),
    "chain": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)),
    "chain schedule": optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(optax.linear_schedule(1e-3, 0.0, 10))
    ),
}


# --- Linen  ---


class Block(nn.Module):
    """A pre-norm transformer block with Flax's own names."""

    @nn.compact
    def __call__(self, x: jax.Array, _: None = None) -> tuple[jax.Array, None]:
        """The block, in the form that ``nn.scan`` wants."""
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=HEADS)(y, y)
        y = nn.relu(nn.Dense(MLP)(nn.LayerNorm()(x)))
        return x + nn.Dense(EMBED)(y), None


class Decoder(nn.Module):
    """The decoder; its layers are stacked on axis 1 of each leaf, or unrolled as ``layers_0``, ``layers_1``."""

    scan: bool = True

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits."""
        x = nn.Embed(VOCAB, EMBED, name="embed")(tokens)
        if self.scan:
            layers = nn.scan(
                Block, variable_axes={"params": 1}, split_rngs={"params": True}, length=DEPTH
            )
            x, _ = cast("Any", layers(name="layers"))(x, None)
        else:
            for i in range(DEPTH):
                x, _ = Block(name=f"layers_{i}")(x)
        return nn.Dense(VOCAB, name="head")(nn.LayerNorm(name="norm")(x))


@functools.cache
def linen_variables(*, scan: bool) -> Any:
    """The decoder's variables, each leaf with values of its own."""
    shapes = jax.eval_shape(Decoder(scan).init, jax.random.key(0), TOKENS)
    return numbered(shapes)


def numbered(tree: Any) -> Any:
    """``tree`` with every abstract float leaf filled with small distinct values."""
    leaves, treedef = jax.tree.flatten(tree)
    filled = [
        (np.arange(x.size).reshape(x.shape) % 17 - 8 + i % 5) / 64 for i, x in enumerate(leaves)
    ]
    return treedef.unflatten(
        [jnp.asarray(value, x.dtype) for value, x in zip(filled, leaves, strict=True)]
    )


@functools.cache
def _linen_apply(*, scan: bool) -> Any:
    return jax.jit(Decoder(scan).apply)


def linen_logits(variables: Any, *, scan: bool) -> jax.Array:
    """What the Linen decoder computes."""
    return _linen_apply(scan=scan)(variables, TOKENS)


def linen_state(
    tx: optax.GradientTransformation, *, scan: bool = True, bare: bool = False
) -> TrainState:
    """A Linen train state whose moments are not zero."""
    variables = linen_variables(scan=scan)
    params = variables["params"] if bare else variables
    state = TrainState.create(apply_fn=Decoder(scan).apply, params=params, tx=tx)
    return state.replace(step=7, opt_state=moved(state.opt_state))


def moved(opt_state: Any) -> Any:
    """An optimizer state in which no leaf is zero, so that a leaf that is lost cannot hide behind its initial value."""
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x) + np.asarray(3, x.dtype)), opt_state)


# --- NNX  ---


class NnxBlock(nnx.Module):
    """The same block, with dropout streams of its own and of its attention."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm1 = nnx.LayerNorm(EMBED, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            HEADS, EMBED, decode=False, dropout_rate=0.1, rngs=rngs
        )
        self.norm2 = nnx.LayerNorm(EMBED, rngs=rngs)
        self.wi = nnx.Linear(EMBED, MLP, rngs=rngs)
        self.wo = nnx.Linear(MLP, EMBED, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The block without dropout."""
        x = x + self.attention(self.norm1(x), deterministic=True)
        return x + self.dropout(self.wo(nnx.relu(self.wi(self.norm2(x)))), deterministic=True)


class NnxDecoder(nnx.Module):
    """The same decoder; its layers are an ``nnx.List``."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(VOCAB, EMBED, rngs=rngs)
        self.layers = nnx.List([NnxBlock(rngs) for _ in range(DEPTH)])
        self.norm = nnx.LayerNorm(EMBED, rngs=rngs)
        self.head = nnx.Linear(EMBED, VOCAB, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits."""
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


class NnxTrainState(nnx.Module):
    """A model and its optimizer, the way MaxText holds them."""

    def __init__(self, model: nnx.Module, tx: optax.GradientTransformation) -> None:
        self.model = model
        self.optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)


@functools.cache
def _nnx_decoder() -> Any:
    return nnx.split(nnx.jit(lambda: NnxDecoder(nnx.Rngs(0)))())


def nnx_decoder() -> NnxDecoder:
    """A new model; the cost of making one is paid once."""
    graphdef, state = _nnx_decoder()
    return nnx.merge(graphdef, state, copy=True)


@nnx.jit
def nnx_logits(model: NnxDecoder) -> jax.Array:
    """What the NNX decoder computes."""
    return model(TOKENS)


def nnx_module(tx: optax.GradientTransformation) -> NnxTrainState:
    """A model with its optimizer, whose moments are not zero."""
    module = NnxTrainState(nnx_decoder(), tx)
    state = nnx.state(module.optimizer)
    nnx.update(module.optimizer, moved(state))
    return module


def nnx_state(tx: optax.GradientTransformation) -> nnx.State[Any, Any]:
    """The state of `nnx_module`."""
    return nnx.state(nnx_module(tx))


# --- containers  ---


def on_disk(tree: Any) -> Any:
    """``tree`` as Orbax gives it back: strings for int keys, lists for tuples, dicts for NamedTuples, and ``value`` levels."""
    if isinstance(tree, nnx.Variable):
        return {"value": tree.get_raw_value()}
    if isinstance(tree, TrainState):
        return {name: on_disk(getattr(tree, name)) for name in ("step", "params", "opt_state")}
    if isinstance(tree, optax.EmptyState):
        return None
    if isinstance(tree, tuple) and hasattr(tree, "_asdict"):
        return {name: on_disk(child) for name, child in tree._asdict().items()}
    if isinstance(tree, (tuple, list)):
        return [on_disk(child) for child in tree]
    if isinstance(tree, (dict, nnx.State)):
        return {str(key): on_disk(child) for key, child in tree.items()}
    return tree


# --- schemas  ---


class LayerNormSchema(cs.Schema):
    """``nn.LayerNorm`` and ``nnx.LayerNorm``."""

    scale: Float32[Array, " embed"]
    bias: Float32[Array, " embed"]


class DenseSchema(cs.Schema):
    """``nn.Dense`` and ``nnx.Linear``."""

    kernel: Float32[Array, "inputs outputs"]
    bias: Float32[Array, " outputs"]


class ProjectionSchema(cs.Schema):
    """A projection to heads."""

    kernel: Float32[Array, "embed heads head_dim"]
    bias: Float32[Array, "heads head_dim"]


class OutSchema(cs.Schema):
    """The projection back."""

    kernel: Float32[Array, "heads head_dim embed"]
    bias: Float32[Array, " embed"]


class AttentionSchema(cs.Schema):
    """Attention: two of its modules have names that containers use, ``key`` and ``value``."""

    query: ProjectionSchema
    key: ProjectionSchema
    value: ProjectionSchema
    out: OutSchema


class EmbedSchema(cs.Schema):
    """``nn.Embed``."""

    embedding: Float32[Array, "vocab embed"]


class LinenBlockSchema(cs.Schema):
    """A Linen block, with compact names."""

    norm1: LayerNormSchema = cs.field(key="LayerNorm_0")
    attention: AttentionSchema = cs.field(key="MultiHeadDotProductAttention_0")
    norm2: LayerNormSchema = cs.field(key="LayerNorm_1")
    wi: DenseSchema = cs.field(key="Dense_0", dims={"inputs": "embed", "outputs": "mlp"})
    wo: DenseSchema = cs.field(key="Dense_1", dims={"inputs": "mlp", "outputs": "embed"})


class DecoderSchema(cs.Schema):
    """What every layout of the decoder has in common."""

    embed: EmbedSchema
    norm: LayerNormSchema
    head: DenseSchema = cs.field(dims={"inputs": "embed", "outputs": "vocab"})


class ScannedSchema(DecoderSchema):
    """The Linen decoder under ``nn.scan``."""

    layers: LinenBlockSchema = cs.field(scan="depth", axis=1)


class UnrolledSchema(DecoderSchema):
    """The Linen decoder, unrolled."""

    layers: list[LinenBlockSchema] = cs.field(key="layers_{i}", length="depth")


class NnxAttentionSchema(AttentionSchema):
    """Attention with the stream it draws its dropout from."""

    rngs: cs.Stream["fry"] = cs.field(default=cs.fresh_key(0), tag="default")


class NnxBlockSchema(cs.Schema):
    """An NNX block."""

    norm1: LayerNormSchema
    attention: NnxAttentionSchema
    norm2: LayerNormSchema
    wi: DenseSchema = cs.field(dims={"inputs": "embed", "outputs": "mlp"})
    wo: DenseSchema = cs.field(dims={"inputs": "mlp", "outputs": "embed"})
    dropout: cs.Stream["fry"] = cs.field(key="dropout/rngs", default=cs.fresh_key(0), tag="default")


class NnxSchema(DecoderSchema):
    """The NNX decoder."""

    layers: list[NnxBlockSchema] = cs.field(length="depth")
