from flax import nnx
from jaxtyping import Array, Float32, Int32, UInt32

import ckpt_schema as cs
from ckpt_schema import blocks


class Attention(cs.Schema):
    """4 leaves, 16,777,216 parameters."""

    k_proj: blocks.nnx.LinearGeneral = cs.field(
        dims={"in_features": "embed", "out_features": "heads head_dim"},
    )
    o_proj: blocks.nnx.LinearGeneral = cs.field(
        dims={"in_features": "heads head_dim", "out_features": "embed"},
    )
    q_proj: blocks.nnx.LinearGeneral = cs.field(
        dims={"in_features": "embed", "out_features": "heads head_dim"},
    )
    v_proj: blocks.nnx.LinearGeneral = cs.field(
        dims={"in_features": "embed", "out_features": "heads head_dim"},
    )


class Mlp(cs.Schema):
    """3 leaves, 17,301,504 to 67,239,936 parameters."""

    down_proj: blocks.nnx.Linear = cs.field(dims={"in_features": "mlp", "out_features": "embed"})
    gate_proj: blocks.nnx.Linear = cs.field(dims={"in_features": "embed", "out_features": "mlp"})
    up_proj: blocks.nnx.Linear = cs.field(dims={"in_features": "embed", "out_features": "mlp"})


class Layer0(cs.Schema):
    """9 leaves, 84,021,248 parameters."""

    attention: Attention
    input_norm: blocks.nnx.RMSNorm = cs.field(dims={"features": "embed"})
    mlp: Mlp
    post_attention_norm: blocks.nnx.RMSNorm = cs.field(dims={"features": "embed"})


class LayerMlp(cs.Schema):
    """7 leaves, 571,080,704 parameters."""

    down: Float32[Array, "experts expert_mlp embed"]
    gate: Float32[Array, "experts embed expert_mlp"]
    router: blocks.nnx.Linear = cs.field(dims={"in_features": "embed", "out_features": "experts"})
    shared: Mlp = cs.field(dims={"mlp": "shared_mlp"})
    up: Float32[Array, "experts embed expert_mlp"]


class Layer(cs.Schema):
    """13 leaves, 587,862,016 parameters."""

    attention: Attention
    input_norm: blocks.nnx.RMSNorm = cs.field(dims={"features": "embed"})
    mlp: LayerMlp
    post_attention_norm: blocks.nnx.RMSNorm = cs.field(dims={"features": "embed"})


class Model(cs.Schema):
    """363 leaves, 16,375,728,128 parameters."""

    embed_tokens: blocks.nnx.Embed = cs.field(dims={"features": "embed", "num_embeddings": "vocab"})
    layers: list[Layer0 | Layer] = cs.field(items=[Layer0, *[Layer] * 27])
    lm_head: blocks.nnx.Linear = cs.field(dims={"in_features": "embed", "out_features": "vocab"})
    norm: blocks.nnx.RMSNorm = cs.field(dims={"features": "embed"})


class Training(cs.nnx.State):
    params: Model = cs.field(key="model")
    opt_state: cs.OptState = cs.kept(
        of="params",
        key="optimizer/opt_state",
        mirrors=["0/mu", "0/nu"],
        leaves={"0/count": Int32[Array, ""]},
    )
    step: UInt32[Array, ""] = cs.field(key="optimizer/step", type=nnx.OptState)


SIZES = {
    "vocab": 102400,
    "embed": 2048,
    "heads": 16,
    "head_dim": 128,
    "mlp": 10944,
    "experts": 64,
    "expert_mlp": 1408,
    "shared_mlp": 2816,
}
layout = cs.layout(Training, dims=SIZES, dtype="float32", has=["**/scale"])
