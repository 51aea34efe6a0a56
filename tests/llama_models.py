"""A Llama as a folder of Hugging Face has it, as a schema, and as a model of NNX."""

from __future__ import annotations

from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Array, Float32

import ckpt_schema as cs

EMBED, HEADS, KV, HEAD_DIM, MLP, VOCAB, DEPTH = 8, 4, 2, 4, 12, 16, 3
LAYER = {
    "self_attn.q_proj.weight": (HEADS * HEAD_DIM, EMBED),
    "self_attn.k_proj.weight": (KV * HEAD_DIM, EMBED),
    "self_attn.v_proj.weight": (KV * HEAD_DIM, EMBED),
    "self_attn.o_proj.weight": (EMBED, HEADS * HEAD_DIM),
    "mlp.gate_proj.weight": (MLP, EMBED),
    "mlp.up_proj.weight": (MLP, EMBED),
    "mlp.down_proj.weight": (EMBED, MLP),
    "input_layernorm.weight": (EMBED,),
    "post_attention_layernorm.weight": (EMBED,),
}


def tensors(dtype: Any = np.float32, *, tied: bool = False) -> dict[str, np.ndarray]:
    """The tensors of a small Llama, no two elements alike."""
    shapes = {"model.embed_tokens.weight": (VOCAB, EMBED), "model.norm.weight": (EMBED,)}
    for number in range(DEPTH):
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in LAYER.items()}
    if not tied:
        shapes["lm_head.weight"] = (VOCAB, EMBED)
    drawn = np.random.default_rng(0)
    return {name: drawn.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


# --- as a file has it  ---


class Linear(cs.Schema):
    weight: Float32[Array, "out inner"]


class Scale(cs.Schema):
    weight: Float32[Array, " embed"]


class FileLayer(cs.Schema):
    query: Linear = cs.field(key="self_attn/q_proj", dims={"out": "heads*2*half", "inner": "embed"})
    key: Linear = cs.field(key="self_attn/k_proj", dims={"out": "kv*2*half", "inner": "embed"})
    value: Linear = cs.field(key="self_attn/v_proj", dims={"out": "kv*2*half", "inner": "embed"})
    out: Linear = cs.field(key="self_attn/o_proj", dims={"out": "embed", "inner": "heads*2*half"})
    gate: Linear = cs.field(key="mlp/gate_proj", dims={"out": "mlp", "inner": "embed"})
    up: Linear = cs.field(key="mlp/up_proj", dims={"out": "mlp", "inner": "embed"})
    down: Linear = cs.field(key="mlp/down_proj", dims={"out": "embed", "inner": "mlp"})
    before: Scale = cs.field(key="input_layernorm")
    after: Scale = cs.field(key="post_attention_layernorm")


class File(cs.Schema, joined="."):
    embed: Linear = cs.field(key="model/embed_tokens", dims={"out": "vocab", "inner": "embed"})
    layers: list[FileLayer] = cs.field(key="model/layers/{i}", length="depth")
    norm: Scale = cs.field(key="model/norm")
    head: Linear = cs.field(key="lm_head", dims={"out": "vocab", "inner": "embed"})


# --- as a model of NNX has it  ---


class Attention(nnx.Module):
    """Its heads keep the two halves of a rotation side by side, and its query is scaled beforehand."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        def project(heads: int) -> nnx.LinearGeneral:
            return nnx.LinearGeneral(EMBED, (heads, HEAD_DIM), use_bias=False, rngs=rngs)

        self.query, self.key, self.value = project(HEADS), project(KV), project(KV)
        self.out = nnx.LinearGeneral(
            (HEADS, HEAD_DIM), EMBED, axis=(-2, -1), use_bias=False, rngs=rngs
        )


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.attention = Attention(rngs)
        self.gate_up = nnx.Linear(EMBED, 2 * MLP, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(MLP, EMBED, use_bias=False, rngs=rngs)
        self.before = nnx.RMSNorm(EMBED, rngs=rngs)
        self.after = nnx.RMSNorm(EMBED, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)


class Llama(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(VOCAB, EMBED, rngs=rngs)
        self.layers = nnx.List([Block(rngs) for _ in range(DEPTH)])
        self.norm = nnx.RMSNorm(EMBED, rngs=rngs)
        self.head = nnx.Linear(EMBED, VOCAB, use_bias=False, rngs=rngs)


class Turned(cs.Schema):
    weight: Float32[Array, "inner out"] = cs.field(key="kernel")


class Query(cs.Schema):
    weight: Float32[Array, "embed heads half*2"] = cs.field(key="kernel")


class KeyHeads(cs.Schema):
    weight: Float32[Array, "embed kv half*2"] = cs.field(key="kernel")


class Value(cs.Schema):
    weight: Float32[Array, "embed kv 2*half"] = cs.field(key="kernel")


class Output(cs.Schema):
    weight: Float32[Array, "heads 2*half embed"] = cs.field(key="kernel")


class Norm(cs.Schema):
    weight: Float32[Array, " embed"] = cs.field(key="scale")


class Embedding(cs.Schema):
    weight: Float32[Array, "vocab embed"] = cs.field(key="embedding")


class ModelLayer(cs.Schema):
    query: Query = cs.field(key="attention/query")
    key: KeyHeads = cs.field(key="attention/key")
    value: Value = cs.field(key="attention/value")
    out: Output = cs.field(key="attention/out")
    gate_up: Turned = cs.field(dims={"inner": "embed", "out": "2*mlp"})
    down: Turned = cs.field(dims={"inner": "mlp", "out": "embed"})
    before: Norm
    after: Norm
    dropout: cs.Stream["fry"] = cs.field(key="dropout/rngs", default=cs.fresh_key(0))


class Model(cs.Schema):
    embed: Embedding
    layers: list[ModelLayer] = cs.field(length="depth")
    norm: Norm
    head: Turned = cs.field(dims={"inner": "embed", "out": "vocab"})


RULES = [
    cs.scale("layers[]/query/weight", HEAD_DIM**-0.5),
    cs.fuse("layers[]/gate_up/weight", ["layers[]/gate/weight", "layers[]/up/weight"]),
]
