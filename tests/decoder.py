"""A decoder of NNX, with the weights of `ckpt_schema.families.llama`, which computes what Llama does."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx


class Attention(nnx.Module):
    def __init__(self, dims: Mapping[str, int], rngs: nnx.Rngs) -> None:
        embed, width = dims["embed"], dims["head_dim"]

        def project(heads: int) -> nnx.LinearGeneral:
            return nnx.LinearGeneral(embed, (heads, width), use_bias=False, rngs=rngs)

        self.query, self.key, self.value = (project(dims[n]) for n in ("heads", "kv", "kv"))
        self.out = nnx.LinearGeneral(
            (dims["heads"], width), embed, axis=(-2, -1), use_bias=False, rngs=rngs
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        query, key, value = turned(self.query(x)), turned(self.key(x)), self.value(x)
        groups = query.shape[2] // key.shape[2]
        key, value = (jnp.repeat(each, groups, axis=2) for each in (key, value))
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
        seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf))
        return self.out(jnp.einsum("bhqk,bkhd->bqhd", weights, value))


def turned(x: jax.Array) -> jax.Array:
    """Rotary embeddings, the halves of each head in front of one another."""
    half = x.shape[-1] // 2
    rates = 10_000.0 ** (-jnp.arange(half) / half)
    angles = jnp.arange(x.shape[1])[:, None, None] * rates
    first, second = x[..., :half], x[..., half:]
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


class Gated(nnx.Module):
    def __init__(self, dims: Mapping[str, int], rngs: nnx.Rngs) -> None:
        self.gate = nnx.Linear(dims["embed"], dims["mlp"], use_bias=False, rngs=rngs)
        self.up = nnx.Linear(dims["embed"], dims["mlp"], use_bias=False, rngs=rngs)
        self.down = nnx.Linear(dims["mlp"], dims["embed"], use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Layer(nnx.Module):
    def __init__(self, dims: Mapping[str, int], rngs: nnx.Rngs) -> None:
        self.attention = Attention(dims, rngs)
        self.attention_norm = nnx.RMSNorm(dims["embed"], epsilon=1e-6, rngs=rngs)
        self.mlp = Gated(dims, rngs)
        self.mlp_norm = nnx.RMSNorm(dims["embed"], epsilon=1e-6, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class Decoder(nnx.Module):
    """From tokens to logits."""

    def __init__(self, dims: Mapping[str, int], rngs: nnx.Rngs, *, tied: bool = False) -> None:
        self.embed = nnx.Embed(dims["vocab"], dims["embed"], rngs=rngs)
        self.layers = nnx.List([Layer(dims, rngs) for _ in range(dims["depth"])])
        self.norm = nnx.RMSNorm(dims["embed"], epsilon=1e-6, rngs=rngs)
        self.tied = tied
        if not tied:
            self.head = nnx.Linear(dims["embed"], dims["vocab"], use_bias=False, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x)
        return self.embed.attend(x) if self.tied else self.head(x)
