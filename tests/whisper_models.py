"""A small encoder-decoder like Whisper: in Linen, its encoder scanned and its decoder unrolled, and in NNX, with dropout.

A newcomer wrote it, and `test_whisper.py`, who had read the guide to testing and nothing else.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState

EMBED, HEADS, MLP, MELS, VOCAB, TIME, ENCODERS, DECODERS = 24, 3, 40, 5, 32, 12, 3, 2


def sinusoids(length: int, width: int) -> jax.Array:
    """Fixed positions."""
    t = jnp.arange(length)[:, None] * jnp.exp(-jnp.arange(width // 2) * 0.7)
    return jnp.concatenate([jnp.sin(t), jnp.cos(t)], -1)


class LinenMlp(nn.Module):
    """Two layers."""

    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        """What it computes."""
        return nn.Dense(EMBED, name="down")(nn.gelu(nn.Dense(MLP, name="up")(x)))


class LinenEncoderLayer(nn.Module):
    """Attention and MLP, in the form that ``nn.scan`` wants."""

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> Any:
        """What it computes."""
        y = nn.LayerNorm(name="attn_norm")(x)
        x = x + nn.MultiHeadDotProductAttention(HEADS, name="attn")(y)
        return x + LinenMlp(name="mlp")(nn.LayerNorm(name="mlp_norm")(x)), None


class LinenDecoderLayer(nn.Module):
    """Attention to what was said, to what was heard, and MLP."""

    @nn.compact
    def __call__(self, x: jax.Array, memory: jax.Array) -> Any:
        """What it computes."""
        y = nn.LayerNorm(name="attn_norm")(x)
        mask = nn.make_causal_mask(x[..., 0])
        x = x + nn.MultiHeadDotProductAttention(HEADS, name="attn")(y, mask=mask)
        x = x + nn.MultiHeadDotProductAttention(HEADS, name="cross")(
            nn.LayerNorm(name="cross_norm")(x), memory
        )
        return x + LinenMlp(name="mlp")(nn.LayerNorm(name="mlp_norm")(x))


class LinenWhisper(nn.Module):
    """The model in Linen."""

    @nn.compact
    def __call__(self, mel: jax.Array, tokens: jax.Array) -> Any:
        """What it computes."""
        x = nn.gelu(nn.Conv(EMBED, (3,), name="conv1")(mel))
        x = nn.gelu(nn.Conv(EMBED, (3,), 2, name="conv2")(x))
        x = x + sinusoids(x.shape[1], EMBED)
        layers: Any = nn.scan(
            LinenEncoderLayer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=ENCODERS,
        )
        x, _ = layers(name="encoder")(x, None)
        memory = nn.LayerNorm(name="ln_post")(x)
        embed = nn.Embed(VOCAB, EMBED, name="embed")
        y = (
            embed(tokens)
            + self.param("positions", nn.initializers.normal(0.01), (TIME, EMBED))[
                : tokens.shape[1]
            ]
        )
        for i in range(DECODERS):
            y = LinenDecoderLayer(name=f"decoder_{i}")(y, memory)
        return embed.attend(nn.LayerNorm(name="ln_out")(y))


class NnxMlp(nnx.Module):
    """Two layers, and dropout."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.up = nnx.Linear(EMBED, MLP, rngs=rngs)
        self.down = nnx.Linear(MLP, EMBED, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x: jax.Array) -> Any:
        """What it computes."""
        return self.dropout(self.down(nnx.gelu(self.up(x))))


def attention(rngs: nnx.Rngs) -> nnx.MultiHeadAttention:
    """Attention with dropout."""
    return nnx.MultiHeadAttention(
        HEADS, EMBED, decode=False, deterministic=False, dropout_rate=0.1, rngs=rngs
    )


class NnxEncoderLayer(nnx.Module):
    """Attention and MLP."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.attn_norm = nnx.LayerNorm(EMBED, rngs=rngs)
        self.attn = attention(rngs)
        self.mlp_norm = nnx.LayerNorm(EMBED, rngs=rngs)
        self.mlp = NnxMlp(rngs)

    def __call__(self, x: jax.Array) -> Any:
        """What it computes."""
        x = x + self.attn(self.attn_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class NnxDecoderLayer(nnx.Module):
    """Attention to what was said, to what was heard, and MLP."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.attn_norm = nnx.LayerNorm(EMBED, rngs=rngs)
        self.attn = attention(rngs)
        self.cross_norm = nnx.LayerNorm(EMBED, rngs=rngs)
        self.cross = attention(rngs)
        self.mlp_norm = nnx.LayerNorm(EMBED, rngs=rngs)
        self.mlp = NnxMlp(rngs)

    def __call__(self, x: jax.Array, memory: jax.Array) -> Any:
        """What it computes."""
        x = x + self.attn(self.attn_norm(x), mask=nnx.make_causal_mask(x[..., 0]))
        x = x + self.cross(self.cross_norm(x), memory)
        return x + self.mlp(self.mlp_norm(x))


class NnxWhisper(nnx.Module):
    """The model in NNX."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(MELS, EMBED, (3,), rngs=rngs)
        self.conv2 = nnx.Conv(EMBED, EMBED, (3,), 2, rngs=rngs)
        self.encoder = nnx.List([NnxEncoderLayer(rngs) for _ in range(ENCODERS)])
        self.ln_post = nnx.LayerNorm(EMBED, rngs=rngs)
        self.embed = nnx.Embed(VOCAB, EMBED, rngs=rngs)
        self.positions = nnx.Param(0.01 * jax.random.normal(rngs.params(), (TIME, EMBED)))
        self.decoder = nnx.List([NnxDecoderLayer(rngs) for _ in range(DECODERS)])
        self.ln_out = nnx.LayerNorm(EMBED, rngs=rngs)

    def __call__(self, mel: jax.Array, tokens: jax.Array) -> Any:
        """What it computes."""
        x = nnx.gelu(self.conv2(nnx.gelu(self.conv1(mel))))
        x = x + sinusoids(x.shape[1], EMBED)
        for block in self.encoder:
            x = block(x)
        memory = self.ln_post(x)
        y = self.embed(tokens) + self.positions[: tokens.shape[1]]
        for block in self.decoder:
            y = block(y, memory)
        return self.embed.attend(self.ln_out(y))


class Training(nnx.Module):
    """What NNX trains."""

    def __init__(self, model: nnx.Module, tx: optax.GradientTransformation) -> None:
        self.model = model
        self.optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)


tx = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 1e-3, 10, 100)),
)
mel, tokens = (
    jax.random.normal(jax.random.key(1), (2, 16, MELS)),
    jnp.arange(2 * TIME).reshape(2, TIME) % VOCAB,
)


def linen_train_state() -> TrainState:
    """A state that training begins with."""
    model = LinenWhisper()
    return TrainState.create(
        apply_fn=model.apply, params=model.init(jax.random.key(0), mel, tokens), tx=tx
    )


def nnx_training() -> Training:
    """A module that training begins with."""
    return Training(NnxWhisper(nnx.Rngs(0)), tx)


def linen_logits(state: TrainState) -> jax.Array:
    """What the Linen model computes."""
    return LinenWhisper().apply(state.params, mel, tokens)


def nnx_logits(state: nnx.State) -> jax.Array:
    """What the NNX model computes, without dropout."""
    training = nnx_training()
    nnx.update(training, state)
    training.set_attributes(deterministic=True)
    return training.model(mel, tokens)
