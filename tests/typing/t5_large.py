from flax import nnx
from jaxtyping import Array, Int32, UInt32

import ckpt_schema as cs
from ckpt_schema import blocks


class Attention(cs.Schema):
    """4 leaves, 4,194,304 parameters."""

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
    """3 leaves, 8,650,752 parameters."""

    down_proj: blocks.nnx.Linear = cs.field(dims={"in_features": "mlp", "out_features": "embed"})
    gate_proj: blocks.nnx.Linear = cs.field(dims={"in_features": "embed", "out_features": "mlp"})
    up_proj: blocks.nnx.Linear = cs.field(dims={"in_features": "embed", "out_features": "mlp"})


class DecoderLayer(cs.Schema):
    """14 leaves, 17,042,432 parameters."""

    cross_attention: Attention
    cross_norm: blocks.nnx.RMSNorm = cs.field(dims={"features": "embed"})
    mlp: Mlp
    mlp_norm: blocks.nnx.RMSNorm = cs.field(dims={"features": "embed"})
    self_attention: Attention
    self_norm: blocks.nnx.RMSNorm = cs.field(dims={"features": "embed"})


class Decoder(cs.Schema):
    """338 leaves, 409,019,904 parameters."""

    final_norm: blocks.nnx.RMSNorm = cs.field(dims={"features": "embed"})
    layers: list[DecoderLayer] = cs.field(length="num_decoder_layers")
    relative_embedding: blocks.nnx.Embed = cs.field(
        dims={"features": "heads", "num_embeddings": "buckets"},
    )


class EncoderLayer(cs.Schema):
    """9 leaves, 12,847,104 parameters."""

    mlp: Mlp
    mlp_norm: blocks.nnx.RMSNorm = cs.field(dims={"features": "embed"})
    self_attention: Attention
    self_norm: blocks.nnx.RMSNorm = cs.field(dims={"features": "embed"})


class Encoder(cs.Schema):
    """218 leaves, 308,332,032 parameters."""

    final_norm: blocks.nnx.RMSNorm = cs.field(dims={"features": "embed"})
    layers: list[EncoderLayer] = cs.field(length="num_encoder_layers")
    relative_embedding: blocks.nnx.Embed = cs.field(
        dims={"features": "heads", "num_embeddings": "buckets"},
    )


class Model(cs.Schema):
    """558 leaves, 783,150,080 parameters."""

    decoder: Decoder
    encoder: Encoder
    lm_head: blocks.nnx.Linear = cs.field(dims={"in_features": "embed", "out_features": "vocab"})
    shared: blocks.nnx.Embed = cs.field(dims={"features": "embed", "num_embeddings": "vocab"})


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
    "num_decoder_layers": 24,
    "num_encoder_layers": 24,
    "embed": 1024,
    "heads": 16,
    "head_dim": 64,
    "mlp": 2816,
    "buckets": 32,
    "vocab": 32128,
}
layout = cs.layout(Training, dims=SIZES, dtype="float32", has=["**/scale"])
