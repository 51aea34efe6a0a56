"""A decoder of NNX, with the weights of `ckpt_schema.families`, which computes what those of transformers do."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

ACTIVATIONS = {"silu": jax.nn.silu, "gelu_pytorch_tanh": jax.nn.gelu}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a config says beside sizes, and what its type means.

    Attributes:
        biased: Whether queries, keys and values have biases.
        head_norms: Whether queries and keys have norms.
        outer_norms: Whether what comes out of attention and MLP has norms.
        offset: What is added to the scale of a norm.
        epsilon: What keeps norms from dividing by zero.
        root: What the embedding is multiplied by.
        activation: That of the gate.
        query: What the query is multiplied by.
        score_cap: The bound of the scores, if there is one.
        logit_cap: The bound of the logits, if there is one.
        rates: How fast the heads of each layer rotate.
        windows: How many tokens each layer sees; none is all.
        chosen: How many experts a token has; none is a plain MLP.
        shared: Whether the weights of the chosen experts add up to one.
    """

    biased: bool
    head_norms: bool
    outer_norms: bool
    offset: float
    epsilon: float
    root: float
    activation: str
    query: float
    score_cap: float | None
    logit_cap: float | None
    rates: tuple[float, ...]
    windows: tuple[int | None, ...]
    chosen: int | None
    shared: bool

    @classmethod
    def of(cls, config: Mapping[str, Any], dims: Mapping[str, int]) -> Settings:
        """What a ``config.json`` of transformers 5 says."""
        kind = config["model_type"]
        gemma = kind.startswith("gemma")
        layers = config.get("layer_types") or ["full_attention"] * dims["depth"]
        rotary = config["rope_parameters"]
        window = config.get("sliding_window") if kind != "mixtral" else None
        return cls(
            biased=kind == "qwen2",
            head_norms=kind in ("qwen3", "qwen3_moe", "gemma3_text"),
            outer_norms=gemma,
            offset=float(gemma),
            epsilon=config["rms_norm_eps"],
            root=dims["embed"] ** 0.5 if gemma else 1.0,
            activation=config.get("hidden_act") or config["hidden_activation"],
            query=config.get("query_pre_attn_scalar", dims["head_dim"]) ** -0.5,
            score_cap=config.get("attn_logit_softcapping"),
            logit_cap=config.get("final_logit_softcapping"),
            rates=tuple(rotary.get(layer, rotary)["rope_theta"] for layer in layers),
            windows=tuple(window if layer == "sliding_attention" else None for layer in layers),
            chosen=config.get("num_experts_per_tok"),
            shared=config.get("norm_topk_prob", True),
        )


def capped(x: jax.Array, most: float | None) -> jax.Array:
    return x if most is None else most * jnp.tanh(x / most)


def turned(x: jax.Array, theta: float) -> jax.Array:
    """Rotary embeddings, the halves of each head in front of one another."""
    half = x.shape[-1] // 2
    rates = theta ** (-jnp.arange(half) / half)
    angles = jnp.arange(x.shape[1])[:, None, None] * rates
    first, second = x[..., :half], x[..., half:]
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


class Norm(nnx.Module):
    """An RMS norm, whose scale may stand about one."""

    def __init__(self, width: int, said: Settings) -> None:
        self.scale = nnx.Param(jnp.ones(width))
        self.offset, self.epsilon = said.offset, said.epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        square = jnp.mean(x * x, -1, keepdims=True)
        return x / jnp.sqrt(square + self.epsilon) * (self.offset + self.scale[...])


class Attention(nnx.Module):
    def __init__(
        self, dims: Mapping[str, int], said: Settings, number: int, rngs: nnx.Rngs
    ) -> None:
        embed, width = dims["embed"], dims["head_dim"]

        def project(heads: int) -> nnx.LinearGeneral:
            return nnx.LinearGeneral(embed, (heads, width), use_bias=said.biased, rngs=rngs)

        self.query, self.key, self.value = (project(dims[n]) for n in ("heads", "kv", "kv"))
        self.out = nnx.LinearGeneral(
            (dims["heads"], width), embed, axis=(-2, -1), use_bias=False, rngs=rngs
        )
        if said.head_norms:
            self.query_norm, self.key_norm = Norm(width, said), Norm(width, said)
        self.said = said
        self.theta, self.window = said.rates[number], said.windows[number]

    def __call__(self, x: jax.Array) -> jax.Array:
        query, key, value = self.query(x), self.key(x), self.value(x)
        if self.said.head_norms:
            query, key = self.query_norm(query), self.key_norm(key)
        query, key = turned(query, self.theta), turned(key, self.theta)
        groups = query.shape[2] // key.shape[2]
        key, value = (jnp.repeat(each, groups, axis=2) for each in (key, value))
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) * self.said.query
        seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        if self.window is not None:
            seen &= ~jnp.tril(seen, -self.window)
        scores = jnp.where(seen, capped(scores, self.said.score_cap), -jnp.inf)
        return self.out(jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), value))


class Gated(nnx.Module):
    def __init__(self, dims: Mapping[str, int], said: Settings, rngs: nnx.Rngs) -> None:
        self.gate = nnx.Linear(dims["embed"], dims["mlp"], use_bias=False, rngs=rngs)
        self.up = nnx.Linear(dims["embed"], dims["mlp"], use_bias=False, rngs=rngs)
        self.down = nnx.Linear(dims["mlp"], dims["embed"], use_bias=False, rngs=rngs)
        self.act = ACTIVATIONS[said.activation]

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(self.act(self.gate(x)) * self.up(x))


class Stacks(nnx.Module):
    """The weights of all experts, each kind in one array."""

    def __init__(self, dims: Mapping[str, int]) -> None:
        into = (dims["experts"], dims["embed"], dims["mlp"])
        self.gate, self.up = nnx.Param(jnp.zeros(into)), nnx.Param(jnp.zeros(into))
        self.down = nnx.Param(jnp.zeros((into[0], into[2], into[1])))


class Experts(nnx.Module):
    """All experts compute; a token takes some of them."""

    def __init__(self, dims: Mapping[str, int], said: Settings, rngs: nnx.Rngs) -> None:
        self.router = nnx.Linear(dims["embed"], dims["experts"], use_bias=False, rngs=rngs)
        self.experts = Stacks(dims)
        self.said = said

    def __call__(self, x: jax.Array) -> jax.Array:
        own = self.experts
        share = jax.nn.softmax(self.router(x))
        least = jax.lax.top_k(share, self.said.chosen)[0][..., -1:]
        share = jnp.where(share >= least, share, 0.0)
        if self.said.shared:
            share = share / share.sum(-1, keepdims=True)
        gate, up = (jnp.einsum("bte,xem->btxm", x, each[...]) for each in (own.gate, own.up))
        inner = ACTIVATIONS[self.said.activation](gate) * up
        return jnp.einsum("btxm,xme,btx->bte", inner, own.down[...], share)


class Layer(nnx.Module):
    def __init__(
        self, dims: Mapping[str, int], said: Settings, number: int, rngs: nnx.Rngs
    ) -> None:
        self.attention = Attention(dims, said, number, rngs)
        self.mlp = (Gated if said.chosen is None else Experts)(dims, said, rngs)
        self.attention_norm = Norm(dims["embed"], said)
        self.mlp_norm = Norm(dims["embed"], said)
        self.outer = said.outer_norms
        if self.outer:
            self.attention_out_norm = Norm(dims["embed"], said)
            self.mlp_out_norm = Norm(dims["embed"], said)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.attention(self.attention_norm(x))
        x = x + (self.attention_out_norm(y) if self.outer else y)
        y = self.mlp(self.mlp_norm(x))
        return x + (self.mlp_out_norm(y) if self.outer else y)


class Decoder(nnx.Module):
    """From tokens to logits."""

    def __init__(
        self, dims: Mapping[str, int], said: Settings, rngs: nnx.Rngs, *, tied: bool = False
    ) -> None:
        self.embed = nnx.Embed(dims["vocab"], dims["embed"], rngs=rngs)
        self.layers = nnx.List([Layer(dims, said, n, rngs) for n in range(dims["depth"])])
        self.norm = Norm(dims["embed"], said)
        self.said, self.tied = said, tied
        if not tied:
            self.head = nnx.Linear(dims["embed"], dims["vocab"], use_bias=False, rngs=rngs)

    def __call__(self, input_ids: jax.Array) -> jax.Array:
        x = self.embed(input_ids) * self.said.root
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x)
        return capped(self.embed.attend(x) if self.tied else self.head(x), self.said.logit_cap)
