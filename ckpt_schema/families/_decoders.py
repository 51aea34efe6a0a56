"""What decoders have in common: the parts of their files, and those of a model of NNX.

The files of a family are layers of some of these parts, one after the other, and so is its model.
A part has the same logical names on both sides, so the lens between the two is derived. The query
is as Hugging Face has it on both, and so are the halves of a rotation, in front of one another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Float32

from ckpt_schema._layouts.fields import field
from ckpt_schema._layouts.schema import Schema
from ckpt_schema._lens.rules import fuse
from ckpt_schema.families._family import ToldSizes, told_size, width_of

__all__ = [
    "STACKED_EXPERTS",
    "Attention",
    "BiasedAttention",
    "BiasedHeads",
    "BiasedLinear",
    "Embedding",
    "Ends",
    "Experts",
    "FileAttention",
    "FileBiasedAttention",
    "FileEnds",
    "FileGated",
    "FileHead",
    "FileHeadNorms",
    "FileNorms",
    "FileOuterNorms",
    "FileStackedExperts",
    "Gated",
    "Head",
    "HeadNorms",
    "Heads",
    "Kernel",
    "Linear",
    "Norm",
    "Norms",
    "OuterNorms",
    "Output",
    "Vector",
    "decoder_sizes",
    "expert_sizes",
]


# --- as Hugging Face has them  ---


class Linear(Schema):
    """A linear layer of torch."""

    weight: Float32[Array, "out inner"]


class BiasedLinear(Linear):
    """One with a bias."""

    bias: Float32[Array, " out"]


class Vector(Schema):
    """The scale of a norm."""

    weight: Float32[Array, " embed"]


class FileEnds(Schema):
    """What stands before the layers, and after them."""

    embed: Linear = field(key="model/embed_tokens", dims={"out": "vocab", "inner": "embed"})
    norm: Vector = field(key="model/norm")


class FileHead(Schema):
    """A head of its own, where it is not the embedding."""

    head: Linear = field(key="lm_head", dims={"out": "vocab", "inner": "embed"})


class FileAttention(Schema):
    """Queries of all heads, keys and values of groups of them."""

    query: Linear = field(key="self_attn/q_proj", dims={"out": "heads*head_dim", "inner": "embed"})
    key: Linear = field(key="self_attn/k_proj", dims={"out": "kv*head_dim", "inner": "embed"})
    value: Linear = field(key="self_attn/v_proj", dims={"out": "kv*head_dim", "inner": "embed"})
    out: Linear = field(key="self_attn/o_proj", dims={"out": "embed", "inner": "heads*head_dim"})


class FileBiasedAttention(Schema):
    """The same with biases, but for the output."""

    query: BiasedLinear = field(
        key="self_attn/q_proj", dims={"out": "heads*head_dim", "inner": "embed"}
    )
    key: BiasedLinear = field(key="self_attn/k_proj", dims={"out": "kv*head_dim", "inner": "embed"})
    value: BiasedLinear = field(
        key="self_attn/v_proj", dims={"out": "kv*head_dim", "inner": "embed"}
    )
    out: Linear = field(key="self_attn/o_proj", dims={"out": "embed", "inner": "heads*head_dim"})


class FileHeadNorms(Schema):
    """The norms of queries and keys, head by head."""

    query_norm: Vector = field(key="self_attn/q_norm", dims={"embed": "head_dim"})
    key_norm: Vector = field(key="self_attn/k_norm", dims={"embed": "head_dim"})


class FileGated(Schema):
    """A gated MLP."""

    gate: Linear = field(key="mlp/gate_proj", dims={"out": "mlp", "inner": "embed"})
    up: Linear = field(key="mlp/up_proj", dims={"out": "mlp", "inner": "embed"})
    down: Linear = field(key="mlp/down_proj", dims={"out": "embed", "inner": "mlp"})


class FileNorms(Schema):
    """The norms of what goes into attention and MLP."""

    attention_norm: Vector = field(key="input_layernorm")
    mlp_norm: Vector = field(key="post_attention_layernorm")


class FileOuterNorms(Schema):
    """The norms of what goes into attention and MLP, and of what comes out of them."""

    attention_norm: Vector = field(key="input_layernorm")
    attention_out_norm: Vector = field(key="post_attention_layernorm")
    mlp_norm: Vector = field(key="pre_feedforward_layernorm")
    mlp_out_norm: Vector = field(key="post_feedforward_layernorm")


class StackedExpert(Schema):
    """One of experts that are stacked: its gate is the first half of what goes in."""

    gate_up: Float32[Array, "2*mlp embed"] = field(key="gate_up_proj")
    down: Float32[Array, "embed mlp"] = field(key="down_proj")


class FileStackedExperts(Schema):
    """Gated MLPs of which a router chooses some for each token, as transformers 5 has them in memory."""

    router: Linear = field(key="mlp/gate", dims={"out": "experts", "inner": "embed"})
    experts: StackedExpert = field(key="mlp/experts", scan="experts")


STACKED_EXPERTS = (
    fuse("layers[]/experts[]/gate_up", ["layers[]/experts[]/gate", "layers[]/experts[]/up"]),
)
"""What stacked experts have in one weight, and a model in two."""


# --- as a model of NNX has them  ---


class Kernel(Schema):
    """A linear layer of NNX, ``nnx.Linear``."""

    weight: Float32[Array, "inner out"] = field(key="kernel")


class Heads(Schema):
    """A linear layer to heads, ``nnx.LinearGeneral(embed, (heads, head_dim))``."""

    weight: Float32[Array, "embed heads head_dim"] = field(key="kernel")


class BiasedHeads(Heads):
    """One with biases."""

    bias: Float32[Array, "heads head_dim"]


class Output(Schema):
    """A linear layer from heads, ``nnx.LinearGeneral((heads, head_dim), embed, axis=(-2, -1))``."""

    weight: Float32[Array, "heads head_dim embed"] = field(key="kernel")


class Norm(Schema):
    """A norm, ``nnx.RMSNorm``."""

    weight: Float32[Array, " embed"] = field(key="scale")


class Embedding(Schema):
    """A table of vectors, ``nnx.Embed``."""

    weight: Float32[Array, "vocab embed"] = field(key="embedding")


class Ends(Schema):
    """What stands before the layers, and after them."""

    embed: Embedding
    norm: Norm


class Head(Schema):
    """A head of its own, where it is not ``embed.attend``."""

    head: Kernel = field(dims={"inner": "embed", "out": "vocab"})


class Attention(Schema):
    """Queries of all heads, keys and values of groups of them."""

    query: Heads = field(key="attention/query")
    key: Heads = field(key="attention/key", dims={"heads": "kv"})
    value: Heads = field(key="attention/value", dims={"heads": "kv"})
    out: Output = field(key="attention/out")


class BiasedAttention(Schema):
    """The same with biases, but for the output."""

    query: BiasedHeads = field(key="attention/query")
    key: BiasedHeads = field(key="attention/key", dims={"heads": "kv"})
    value: BiasedHeads = field(key="attention/value", dims={"heads": "kv"})
    out: Output = field(key="attention/out")


class HeadNorms(Schema):
    """The norms of queries and keys, head by head."""

    query_norm: Norm = field(key="attention/query_norm", dims={"embed": "head_dim"})
    key_norm: Norm = field(key="attention/key_norm", dims={"embed": "head_dim"})


class Gated(Schema):
    """A gated MLP."""

    gate: Kernel = field(key="mlp/gate", dims={"inner": "embed", "out": "mlp"})
    up: Kernel = field(key="mlp/up", dims={"inner": "embed", "out": "mlp"})
    down: Kernel = field(key="mlp/down", dims={"inner": "mlp", "out": "embed"})


class Expert(Schema):
    """One of experts that are stacked."""

    gate: Float32[Array, "embed mlp"]
    up: Float32[Array, "embed mlp"]
    down: Float32[Array, "mlp embed"]


class Experts(Schema):
    """Gated MLPs of which a router chooses some for each token."""

    router: Kernel = field(key="mlp/router", dims={"inner": "embed", "out": "experts"})
    experts: Expert = field(key="mlp/experts", scan="experts")


class Norms(Schema):
    """The norms of what goes into attention and MLP."""

    attention_norm: Norm
    mlp_norm: Norm


class OuterNorms(Norms):
    """The norms of what goes into attention and MLP, and of what comes out of them."""

    attention_out_norm: Norm
    mlp_out_norm: Norm


# --- how large they are  ---


def decoder_sizes(told: Mapping[str, Any]) -> ToldSizes:
    """What a config has for each dim of a decoder."""
    embed, heads = told_size(told, "hidden_size"), told_size(told, "num_attention_heads")
    kv = told_size(told, "num_key_value_heads")
    width = told_size(told, "head_dim")
    if width[1] is None:  # older configs have none where heads divide all
        width = width_of(embed, heads)
    return {
        "embed": embed,
        "heads": heads,
        "kv": kv if kv[1] is not None else heads,  # nor groups
        "head_dim": width,
        "mlp": told_size(told, "intermediate_size"),
        "vocab": told_size(told, "vocab_size"),
        "depth": told_size(told, "num_hidden_layers"),
    }


def expert_sizes(told: Mapping[str, Any]) -> ToldSizes:
    """The same with experts, whose width may have a name of its own."""
    return {
        **decoder_sizes(told),
        "mlp": told_size(told, "moe_intermediate_size", "intermediate_size"),
        "experts": told_size(told, "num_local_experts", "num_experts"),
    }
