from flax import nnx
from jaxtyping import Array, Int32, UInt32

import ckpt_schema as cs
from ckpt_schema import blocks


class Attention(cs.Schema):
    """4 leaves, 67,108,864 parameters."""

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
    """3 leaves, 135,266,304 parameters."""

    down_proj: blocks.nnx.Linear = cs.field(dims={"in_features": "mlp", "out_features": "embed"})
    gate_proj: blocks.nnx.Linear = cs.field(dims={"in_features": "embed", "out_features": "mlp"})
    up_proj: blocks.nnx.Linear = cs.field(dims={"in_features": "embed", "out_features": "mlp"})


class Layer(cs.Schema):
    """9 leaves, 202,383,360 parameters."""

    attention: Attention
    input_norm: blocks.nnx.RMSNorm = cs.field(dims={"features": "embed"})
    mlp: Mlp
    post_attention_norm: blocks.nnx.RMSNorm = cs.field(dims={"features": "embed"})


class Model(cs.Schema):
    """291 leaves, 6,738,415,616 parameters."""

    embed_tokens: blocks.nnx.Embed = cs.field(dims={"features": "embed", "num_embeddings": "vocab"})
    layers: list[Layer] = cs.field(length="depth")
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
    "depth": 32,
    "vocab": 32000,
    "embed": 4096,
    "heads": 32,
    "head_dim": 128,
    "mlp": 11008,
}
layout = cs.layout(Training, dims=SIZES, dtype="float32", has=["**/scale"])
