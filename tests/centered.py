"""GPT-2, ViT and Whisper in NNX, with the weights of `ckpt_schema.families`; they compute what those of transformers do."""

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
    """A layer of an encoder, or of a decoder, which may see an encoder too."""

    def __init__(
        self,
        sizes: tuple[int, int, int],
        activation: str,
        rngs: nnx.Rngs,
        *,
        epsilon: float = 1e-5,
        key_biased: bool = True,
        crossed: bool = False,
    ) -> None:
        embed, heads, width = sizes
        biased = (True, key_biased, True)
        self.attention_norm = nnx.LayerNorm(embed, epsilon=epsilon, rngs=rngs)
        self.attention = Attention(embed, heads, rngs, biased=biased)
        self.mlp_norm = nnx.LayerNorm(embed, epsilon=epsilon, rngs=rngs)
        self.mlp = Mlp(embed, width, activation, rngs)
        if crossed:
            self.cross_norm = nnx.LayerNorm(embed, epsilon=epsilon, rngs=rngs)
            self.cross = Attention(embed, heads, rngs, biased=biased)

    def __call__(
        self, x: jax.Array, memory: jax.Array | None = None, *, causal: bool = False
    ) -> jax.Array:
        y = self.attention_norm(x)
        x = x + self.attention(y, y, causal=causal)
        if memory is not None:
            x = x + self.cross(self.cross_norm(x), memory)
        return x + self.mlp(self.mlp_norm(x))


class Gpt2(nnx.Module):
    """From tokens to logits."""

    def __init__(
        self, dims: Mapping[str, int], config: Mapping[str, Any], rngs: nnx.Rngs, *, tied: bool
    ) -> None:
        sizes = dims["embed"], dims["heads"], dims["mlp"]
        act, epsilon = config["activation_function"], config["layer_norm_epsilon"]
        self.embed = nnx.Embed(dims["vocab"], dims["embed"], rngs=rngs)
        self.positions = nnx.Embed(dims["places"], dims["embed"], rngs=rngs)
        self.layers = nnx.List(
            [Layer(sizes, act, rngs, epsilon=epsilon) for _ in range(dims["depth"])]
        )
        self.norm = nnx.LayerNorm(dims["embed"], epsilon=epsilon, rngs=rngs)
        self.tied = tied
        if not tied:
            self.head = nnx.Linear(dims["embed"], dims["vocab"], use_bias=False, rngs=rngs)

    def __call__(self, input_ids: jax.Array) -> jax.Array:
        x = self.embed(input_ids) + self.positions(jnp.arange(input_ids.shape[1]))
        for layer in self.layers:
            x = layer(x, causal=True)
        x = self.norm(x)
        return self.embed.attend(x) if self.tied else self.head(x)


class Vit(nnx.Module):
    """From images to logits, to what is pooled, or to what is known of every patch."""

    def __init__(
        self, dims: Mapping[str, int], config: Mapping[str, Any], rngs: nnx.Rngs, *, end: str
    ) -> None:
        embed, patch = dims["embed"], (dims["height"], dims["width"])
        sizes, epsilon = (embed, dims["heads"], dims["mlp"]), config["layer_norm_eps"]
        self.patches = nnx.Conv(
            dims["channels"], embed, patch, strides=patch, padding="VALID", rngs=rngs
        )
        self.first = nnx.Param(jnp.zeros((1, 1, embed)))
        self.positions = nnx.Param(jnp.zeros((1, dims["places"], embed)))
        self.layers = nnx.List(
            [
                Layer(sizes, config["hidden_act"], rngs, epsilon=epsilon)
                for _ in range(dims["depth"])
            ]
        )
        self.norm = nnx.LayerNorm(embed, epsilon=epsilon, rngs=rngs)
        self.end = end
        if end == "head":
            self.head = nnx.Linear(embed, dims["classes"], rngs=rngs)
        if end == "pooler":
            self.pooler = nnx.Linear(embed, dims["pooled"], rngs=rngs)

    def __call__(self, pixel_values: jax.Array) -> jax.Array:
        x = self.patches(pixel_values.transpose(0, 2, 3, 1))
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        first = jnp.broadcast_to(self.first[...], (x.shape[0], 1, x.shape[-1]))
        x = jnp.concatenate([first, x], 1) + self.positions[...]
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x)
        if self.end == "head":
            return self.head(x[:, 0])
        return jnp.tanh(self.pooler(x[:, 0])) if self.end == "pooler" else x


class Hearing(nnx.Module):
    """The encoder of Whisper."""

    def __init__(self, dims: Mapping[str, int], act: str, rngs: nnx.Rngs) -> None:
        embed = dims["embed"]
        sizes = embed, dims["heard_heads"], dims["heard_mlp"]
        self.first = nnx.Conv(dims["mels"], embed, (3,), padding=1, rngs=rngs)
        self.second = nnx.Conv(embed, embed, (3,), strides=2, padding=1, rngs=rngs)
        self.positions = nnx.Embed(dims["heard_places"], embed, rngs=rngs)
        self.layers = nnx.List(
            [Layer(sizes, act, rngs, key_biased=False) for _ in range(dims["heard_depth"])]
        )
        self.norm = nnx.LayerNorm(embed, epsilon=1e-5, rngs=rngs)

    def __call__(self, input_features: jax.Array) -> jax.Array:
        gelu = ACTIVATIONS["gelu"]
        x = gelu(self.second(gelu(self.first(input_features.transpose(0, 2, 1)))))
        x = x + self.positions.embedding[...]
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class Writing(nnx.Module):
    """The decoder of Whisper."""

    def __init__(self, dims: Mapping[str, int], act: str, rngs: nnx.Rngs) -> None:
        sizes = dims["embed"], dims["heads"], dims["mlp"]
        self.embed = nnx.Embed(dims["vocab"], dims["embed"], rngs=rngs)
        self.positions = nnx.Embed(dims["places"], dims["embed"], rngs=rngs)
        self.layers = nnx.List(
            [Layer(sizes, act, rngs, key_biased=False, crossed=True) for _ in range(dims["depth"])]
        )
        self.norm = nnx.LayerNorm(dims["embed"], epsilon=1e-5, rngs=rngs)

    def __call__(self, tokens: jax.Array, memory: jax.Array) -> jax.Array:
        x = self.embed(tokens) + self.positions(jnp.arange(tokens.shape[1]))
        for layer in self.layers:
            x = layer(x, memory, causal=True)
        return self.embed.attend(self.norm(x))


class Whisper(nnx.Module):
    """From what is heard, and what has been written of it, to logits."""

    def __init__(self, dims: Mapping[str, int], config: Mapping[str, Any], rngs: nnx.Rngs) -> None:
        act = config["activation_function"]
        self.encoder, self.decoder = Hearing(dims, act, rngs), Writing(dims, act, rngs)

    def __call__(self, input_features: jax.Array, decoder_input_ids: jax.Array) -> jax.Array:
        return self.decoder(decoder_input_ids, self.encoder(input_features))
