"""The demo's GPT in NNX, unrolled, with a dropout stream in every layer's state."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from ckpt_schema.demo.linen_gpt import ModelSizes

__all__ = ["NnxGPT", "NnxTrainState"]


class Block(nnx.Module):
    """One layer: attention and MLP, each after a norm and beside a residual."""

    def __init__(self, sizes: ModelSizes, rngs: nnx.Rngs) -> None:
        """Draws the weights."""
        s = self.sizes = sizes
        self.norm1 = nnx.LayerNorm(s.embed, rngs=rngs)
        self.norm2 = nnx.LayerNorm(s.embed, rngs=rngs)
        self.out = nnx.Linear(s.heads * s.head_dim, s.embed, use_bias=False, rngs=rngs)
        self.qkv = nnx.Linear(s.embed, 3 * s.heads * s.head_dim, use_bias=False, rngs=rngs)
        self.wi = nnx.Linear(s.embed, s.mlp, rngs=rngs)
        self.wo = nnx.Linear(s.mlp, s.embed, rngs=rngs)
        # Rate 0: the function is Linen's, and the state holds a stream.
        self.dropout = nnx.Dropout(0.0, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The layer's output, float32[batch, length, embed]."""
        s = self.sizes
        qkv = self.qkv(self.norm1(x))
        q, k, v = jnp.moveaxis(qkv.reshape(*x.shape[:2], 3, s.heads, s.head_dim), 2, 0)
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.reshape(*x.shape[:2], s.heads * s.head_dim))
        return x + self.dropout(self.wo(jax.nn.gelu(self.wi(self.norm2(x)))))


# Stacked layers keep their weights on axis 1, as the Linen model does, and their streams, of rank 0 each, on axis 0.
_AXES = nnx.StateAxes({nnx.Param: 1, ...: 0})


class NnxGPT(nnx.Module):
    """A decoder-only transformer over characters, its layers stacked (scanned) or in a list (unrolled)."""

    def __init__(self, sizes: ModelSizes, rngs: nnx.Rngs, *, scanned: bool = False) -> None:
        """Draws the weights."""
        s = sizes
        self.embed = nnx.Embed(s.vocab, s.embed, rngs=rngs)
        self.positions = nnx.Param(
            nnx.initializers.normal(0.02)(rngs.params(), (s.length, s.embed))
        )
        if scanned:
            stack = nnx.vmap(lambda rngs: Block(s, rngs), in_axes=0, out_axes=_AXES)
            self.layers = nnx.split_rngs(splits=s.depth)(stack)(rngs)
        else:
            self.layers = nnx.List([Block(s, rngs) for _ in range(s.depth)])
        self.norm = nnx.LayerNorm(s.embed, rngs=rngs)
        self.head = nnx.Linear(s.embed, s.vocab, use_bias=False, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits, float32[batch, length, vocab]."""
        x = self.embed(tokens) + self.positions.get_value()
        if isinstance(self.layers, nnx.List):
            for layer in self.layers:
                x = layer(x)
        else:
            x = nnx.scan(lambda layer, x: layer(x), in_axes=(_AXES, nnx.Carry), out_axes=nnx.Carry)(
                self.layers, x
            )
        return self.head(self.norm(x))


class NnxTrainState(nnx.Module):
    """A model beside its optimizer: what is checkpointed."""

    def __init__(self, model: NnxGPT, tx: optax.GradientTransformation) -> None:
        """Makes a new optimizer state."""
        self.model = model
        self.optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
