"""A decoder of 26 layers as Gemma 3 has them, in Linen and in NNX: five with a sliding window, then one without, and so on.

Four blocks of six and a remainder of two, scanned or unrolled: four forms of one model, that compute the same function. Layers
that are scanned are compared with such, and unrolled ones with such: XLA compiles the two to programs that round differently.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState
from jaxtyping import Array, Float32
from pair_models import LinenRun, NnxRun, Training, tokens
from support.profiles import THOROUGH

import ckpt_schema as cs

BLOCKS, INSIDE, REST = (4 if THOROUGH else 2), 6, 2
LAYERS = BLOCKS * INSIDE + REST
VOCAB, EMBED, HEADS, HEAD_DIM, MLP, WINDOW = 32, 16, 2, 8, 32, 3

# No clipping by a global norm: it adds leaves up in the order of their names, and "layers_10" stands before "layers_2".
TX = optax.chain(optax.clip(1.0), optax.adamw(optax.cosine_decay_schedule(3e-3, 100)))


def _is_local(number: int) -> bool:
    return number % INSIDE < INSIDE - 1


def attention(q: jax.Array, k: jax.Array, v: jax.Array, local: bool) -> jax.Array:
    """Causal attention of the heads, float32[batch, length, heads*head_dim], over a window if ``local``."""
    q, k, v = (x.reshape(*x.shape[:2], HEADS, HEAD_DIM) for x in (q, k, v))
    window = (WINDOW - 1, 0) if local else None
    mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True, local_window_size=window)
    return mixed.reshape(*mixed.shape[:2], HEADS * HEAD_DIM)


# --- Linen  ---


class LinenLayer(nn.Module):
    """Attention and MLP, each after a norm and beside a residual."""

    local: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The layer's output."""
        y = nn.RMSNorm(name="attention_norm")(x)
        dense = functools.partial(nn.Dense, use_bias=False)
        q, k, v = (dense(HEADS * HEAD_DIM, name=name)(y) for name in "qkv")
        x = x + dense(EMBED, name="out")(attention(q, k, v, self.local))
        hidden = dense(MLP, name="wi")(nn.RMSNorm(name="mlp_norm")(x))
        return x + dense(EMBED, name="wo")(nn.gelu(hidden))


class LinenBlock(nn.Module):
    """Six layers, in the form that ``nn.scan`` wants."""

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        """The block's output."""
        for i in range(INSIDE):
            x = LinenLayer(_is_local(i), name=f"layers_{i}")(x)
        return x, None


class LinenGemma(nn.Module):
    """The decoder in Linen."""

    scanned: bool

    @nn.compact
    def __call__(self, text: jax.Array) -> jax.Array:
        """Logits."""
        x = nn.Embed(VOCAB, EMBED, name="embed")(text)
        if self.scanned:
            blocks: Any = nn.scan(
                LinenBlock, variable_axes={"params": 1}, split_rngs={"params": True}, length=BLOCKS
            )
            x, _ = blocks(name="blocks")(x, None)
            for i in range(REST):
                x = LinenLayer(_is_local(i), name=f"rest_{i}")(x)
        else:
            for i in range(LAYERS):
                x = LinenLayer(_is_local(i), name=f"layers_{i}")(x)
        return nn.Dense(VOCAB, use_bias=False, name="head")(nn.RMSNorm(name="norm")(x))


# --- NNX  ---


class NnxLayer(nnx.Module):
    """The same layer, with dropout of nothing: the function is Linen's, and the state holds a stream."""

    def __init__(self, local: bool, rngs: nnx.Rngs) -> None:
        self.local = local
        self.attention_norm = nnx.RMSNorm(EMBED, rngs=rngs)
        linear = functools.partial(nnx.Linear, use_bias=False, rngs=rngs)
        self.q, self.k, self.v = (linear(EMBED, HEADS * HEAD_DIM) for _ in "qkv")
        self.out = linear(HEADS * HEAD_DIM, EMBED)
        self.mlp_norm = nnx.RMSNorm(EMBED, rngs=rngs)
        self.wi, self.wo = linear(EMBED, MLP), linear(MLP, EMBED)
        self.dropout = nnx.Dropout(0.0, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The layer's output."""
        y = self.attention_norm(x)
        x = x + self.out(attention(self.q(y), self.k(y), self.v(y), self.local))
        return x + self.dropout(self.wo(nnx.gelu(self.wi(self.mlp_norm(x)))))


class NnxBlock(nnx.Module):
    """Six layers."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([NnxLayer(_is_local(i), rngs) for i in range(INSIDE)])

    def __call__(self, x: jax.Array) -> jax.Array:
        """The block's output."""
        for layer in self.layers:
            x = layer(x)
        return x


# Weights are stacked on axis 1, as Linen's are; streams, which have no axis of their own, on axis 0.
_AXES = nnx.StateAxes({nnx.Param: 1, ...: 0})


class NnxGemma(nnx.Module):
    """The decoder in NNX."""

    def __init__(self, scanned: bool, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(VOCAB, EMBED, rngs=rngs)
        if scanned:
            stack = nnx.vmap(NnxBlock, in_axes=0, out_axes=_AXES)
            self.blocks = nnx.split_rngs(splits=BLOCKS)(stack)(rngs)
            self.rest = nnx.List([NnxLayer(_is_local(i), rngs) for i in range(REST)])
        else:
            self.layers = nnx.List([NnxLayer(_is_local(i), rngs) for i in range(LAYERS)])
        self.norm = nnx.RMSNorm(EMBED, rngs=rngs)
        self.head = nnx.Linear(EMBED, VOCAB, use_bias=False, rngs=rngs)

    def __call__(self, text: jax.Array) -> jax.Array:
        """Logits."""
        x = self.embed(text)
        if hasattr(self, "blocks"):
            x = nnx.scan(lambda block, x: block(x), in_axes=(_AXES, nnx.Carry), out_axes=nnx.Carry)(
                self.blocks, x
            )
        for layer in self.rest if hasattr(self, "blocks") else self.layers:
            x = layer(x)
        return self.head(self.norm(x))


# --- Layouts  ---


class Norm(cs.Schema):
    """``RMSNorm``."""

    scale: Float32[Array, " embed"]


class Dense(cs.Schema):
    """A layer without bias."""

    kernel: Float32[Array, "inputs outputs"]


class Embed(cs.Schema):
    """The table."""

    embedding: Float32[Array, "vocab embed"]


HEADED, BACK = {"inputs": "embed", "outputs": "heads"}, {"inputs": "heads", "outputs": "embed"}


class Layer(cs.Schema):
    """One layer."""

    attention_norm: Norm
    q: Dense = cs.field(dims=HEADED)
    k: Dense = cs.field(dims=HEADED)
    v: Dense = cs.field(dims=HEADED)
    out: Dense = cs.field(dims=BACK)
    mlp_norm: Norm
    wi: Dense = cs.field(dims={"inputs": "embed", "outputs": "mlp"})
    wo: Dense = cs.field(dims={"inputs": "mlp", "outputs": "embed"})


class StreamedLayer(Layer):
    """One layer in NNX."""

    dropout: cs.Stream["fry"] = cs.field(key="dropout/rngs", default=cs.fresh_key(0))


class Ends(cs.Schema):
    """What is before and after the layers."""

    embed: Embed
    norm: Norm
    head: Dense = cs.field(dims={"inputs": "embed", "outputs": "vocab"})


class LinenUnrolled(Ends):
    """``layers_0`` to ``layers_25``."""

    layers: list[Layer] = cs.field(key="layers_{i}", length="6*blocks+rest")


class LinenSix(cs.Schema):
    """One block."""

    layers: list[Layer] = cs.field(key="layers_{i}", length=INSIDE)


class LinenScanned(Ends):
    """Blocks under ``nn.scan``, and a remainder."""

    blocks: LinenSix = cs.field(scan="blocks", axis=1)
    rest: list[Layer] = cs.field(key="rest_{i}", length="rest")
    layers = cs.series("blocks[]/layers[]", "rest[]")


class NnxUnrolled(Ends):
    """One list."""

    layers: list[StreamedLayer] = cs.field(length="6*blocks+rest")


class NnxSix(cs.Schema):
    """One block in NNX."""

    layers: list[StreamedLayer] = cs.field(length=INSIDE)


class NnxScanned(Ends):
    """Blocks under ``nnx.scan``, and a remainder."""

    blocks: NnxSix = cs.field(scan="blocks", axis=1)
    rest: list[StreamedLayer] = cs.field(length="rest")
    layers = cs.series("blocks[]/layers[]", "rest[]")


LAYOUTS = {
    "Linen scanned": cs.linen.TrainState[LinenScanned, TX],
    "Linen unrolled": cs.linen.TrainState[LinenUnrolled, TX],
    "NNX scanned": cs.nnx.TrainState[NnxScanned, TX],
    "NNX unrolled": cs.nnx.TrainState[NnxUnrolled, TX],
}


class _Unmade(NnxRun):
    """A run whose model is never initialized: its states come from a checkpoint."""

    @functools.cached_property
    def _made(self) -> tuple[Any, Any]:
        return nnx.split(
            nnx.eval_shape(lambda: Training(self.model(nnx.Rngs(1)), self.tx, self.wrt))
        )


@functools.cache
def run(form: str) -> LinenRun | NnxRun:
    """Training in one of the forms; in NNX the state before the first step is abstract."""
    scanned = form.endswith("scanned")
    if form.startswith("Linen"):
        return LinenRun(LinenGemma(scanned), TX, False, tokens)
    return _Unmade(functools.partial(NnxGemma, scanned), TX, tokens)


@functools.cache
def start(form: str) -> Any:
    """The state before the first step, its leaves abstract; to draw 26 layers would take longer than to train them."""
    own = run(form)
    if isinstance(own, NnxRun):
        return own.start

    def made() -> TrainState:
        params = own.model.init(jax.random.key(0), tokens(0)[0])
        return TrainState.create(apply_fn=own.model.apply, tx=TX, params=params).replace(
            step=jnp.int32(0)
        )

    return jax.eval_shape(made)


@functools.cache
def lens(source: str, view: str) -> cs.Lens:
    """From one form to another; that 26 layers are four blocks is told by no list of them."""
    return cs.derive(LAYOUTS[source], LAYOUTS[view], dims={"blocks": BLOCKS})
