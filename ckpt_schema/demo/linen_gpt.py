"""The demo's GPT in Linen, its layers under ``nn.scan`` or unrolled."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

__all__ = ["LinenGPT", "ModelSizes"]


@dataclasses.dataclass(frozen=True, slots=True)
class ModelSizes:
    """The sizes of the model, in elements."""

    vocab: int = 128
    embed: int = 64
    heads: int = 4
    head_dim: int = 16
    mlp: int = 128
    depth: int = 3
    length: int = 32


class Block(nn.Module):
    """One layer: attention and MLP, each after a norm and beside a residual."""

    sizes: ModelSizes

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The layer's output, float32[batch, length, embed]."""
        s = self.sizes
        qkv = nn.Dense(3 * s.heads * s.head_dim, use_bias=False, name="qkv")(nn.LayerNorm()(x))
        q, k, v = jnp.moveaxis(qkv.reshape(*x.shape[:2], 3, s.heads, s.head_dim), 2, 0)
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        x = x + nn.Dense(s.embed, use_bias=False, name="out")(
            mixed.reshape(*x.shape[:2], s.heads * s.head_dim)
        )
        hidden = nn.Dense(s.mlp, name="wi")(nn.LayerNorm()(x))
        return x + nn.Dense(s.embed, name="wo")(jax.nn.gelu(hidden))


class LinenGPT(nn.Module):
    """A decoder-only transformer over characters."""

    sizes: ModelSizes
    scanned: bool = True

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits, float32[batch, length, vocab]."""
        s = self.sizes
        x = nn.Embed(s.vocab, s.embed, name="embed")(tokens)
        x = x + self.param("positions", nn.initializers.normal(0.02), (s.length, s.embed))
        if self.scanned:
            layers = nn.scan(
                lambda block, carry, _: (block(carry), None),
                variable_axes={"params": 1},
                split_rngs={"params": True},
                length=s.depth,
            )
            x, _ = layers(Block(s, name="layers"), x, None)
        else:
            for i in range(s.depth):
                x = Block(s, name=f"layers_{i}")(x)
        return nn.Dense(s.vocab, use_bias=False, name="head")(nn.LayerNorm(name="norm")(x))
