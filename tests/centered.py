"""GPT-2 in NNX, with the weights of `ckpt_schema.families`; it computes what that of transformers does."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

ACTIVATIONS = {"gelu_new": jax.nn.gelu, "gelu": partial(jax.nn.gelu, approximate=False)}


class Attention(nnx.Module):
    """What is seen may be another's: that of an encoder, in a decoder."""

    def __init__(
        self, embed: int, heads: int, rngs: nnx.Rngs, *, biased: tuple[bool, ...] = (True,) * 3
    ) -> None:
        shape = (heads, embed // heads)
        self.query, self.key, self.value = (
            nnx.LinearGeneral(embed, shape, use_bias=each, rngs=rngs) for each in biased
        )
        self.out = nnx.LinearGeneral(shape, embed, axis=(-2, -1), rngs=rngs)

    def __call__(self, x: jax.Array, seen: jax.Array, *, causal: bool = False) -> jax.Array:
        query, key, value = self.query(x), self.key(seen), self.value(seen)
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) * query.shape[-1] ** -0.5
        if causal:
            scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -jnp.inf)
        return self.out(jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), value))


class Mlp(nnx.Module):
    def __init__(self, embed: int, width: int, activation: str, rngs: nnx.Rngs) -> None:
        self.up = nnx.Linear(embed, width, rngs=rngs)
        self.down = nnx.Linear(width, embed, rngs=rngs)
        self.act = ACTIVATIONS[activation]

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(self.act(self.up(x)))


class Layer(nnx.Module):
    def __init__(
        self, embed: int, heads: int, width: int, act: str, epsilon: float, rngs: nnx.Rngs
    ) -> None:
        self.attention_norm = nnx.LayerNorm(embed, epsilon=epsilon, rngs=rngs)
        self.attention = Attention(embed, heads, rngs)
        self.mlp_norm = nnx.LayerNorm(embed, epsilon=epsilon, rngs=rngs)
        self.mlp = Mlp(embed, width, act, rngs)

    def __call__(self, x: jax.Array, *, causal: bool = False) -> jax.Array:
        y = self.attention_norm(x)
        x = x + self.attention(y, y, causal=causal)
        return x + self.mlp(self.mlp_norm(x))


class Gpt2(nnx.Module):
    """From tokens to logits."""

    def __init__(
        self, dims: Mapping[str, int], config: Mapping[str, Any], rngs: nnx.Rngs, *, tied: bool
    ) -> None:
        embed, heads, width = (dims[name] for name in ("embed", "heads", "mlp"))
        act, epsilon = config["activation_function"], config["layer_norm_epsilon"]
        self.embed = nnx.Embed(dims["vocab"], embed, rngs=rngs)
        self.positions = nnx.Embed(dims["places"], embed, rngs=rngs)
        self.layers = nnx.List(
            [Layer(embed, heads, width, act, epsilon, rngs) for _ in range(dims["depth"])]
        )
        self.norm = nnx.LayerNorm(embed, epsilon=epsilon, rngs=rngs)
        self.tied = tied
        if not tied:
            self.head = nnx.Linear(embed, dims["vocab"], use_bias=False, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embed(tokens) + self.positions(jnp.arange(tokens.shape[1]))
        for layer in self.layers:
            x = layer(x, causal=True)
        x = self.norm(x)
        return self.embed.attend(x) if self.tied else self.head(x)
