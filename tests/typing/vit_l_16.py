import optax
from jaxtyping import Array, Float32, Int32

import ckpt_schema as cs
from ckpt_schema import blocks


class Encoderblock(cs.Schema):
    """16 leaves, 12,596,224 parameters."""

    Dense_0: blocks.linen.Dense = cs.field(
        dims={"in_features": "embed", "out_features": "size_4096"},
    )
    Dense_1: blocks.linen.Dense = cs.field(
        dims={"in_features": "size_4096", "out_features": "embed"},
    )
    LayerNorm_0: blocks.linen.LayerNorm = cs.field(dims={"features": "embed"})
    LayerNorm_1: blocks.linen.LayerNorm = cs.field(dims={"features": "embed"})
    MultiHeadDotProductAttention_0: blocks.linen.MultiHeadDotProductAttention = cs.field(
        dims={
            "in_features": "embed",
            "in_kv_features": "embed",
            "num_heads": "heads",
            "out_features": "embed",
        },
    )


class Model(cs.Schema):
    """392 leaves, 304,326,632 parameters."""

    cls: Float32[Array, "1 1 embed"]
    embedding: blocks.linen.Conv = cs.field(
        dims={"in_features": "size_3", "kernel_size": "heads heads", "out_features": "embed"},
    )
    encoder_norm: blocks.linen.LayerNorm = cs.field(dims={"features": "embed"})
    encoderblock: list[Encoderblock] = cs.field(key="encoderblock_{i}", length="depth")
    head: blocks.linen.Dense = cs.field(dims={"in_features": "embed", "out_features": "vocab"})
    pos_embedding: Float32[Array, "1 size_197 embed"]


class Inferred(cs.Schema, name="inferred"):
    params: Model = cs.field(key={"params": "params/params", ...: "{collection}"})
    opt_state: cs.OptState = cs.kept(
        of="params",
        mirrors=["0/mu", "0/nu"],
        root="params",
        leaves={"0/count": Int32[Array, ""]},
        containers={
            "": tuple,
            "0": optax.ScaleByAdamState,
            "1": optax.EmptyState,
            "2": optax.EmptyState,
        },
    )
    step: Int32[Array, ""]


SIZES = {
    "depth": 24,
    "embed": 1024,
    "heads": 16,  # stands for height and width too, of the same size
    "size_3": 3,  # nothing tells what it is
    "size_4096": 4096,  # nothing tells what it is
    "head_dim": 64,
    "vocab": 1000,
    "size_197": 197,  # nothing tells what it is
}
layout = cs.layout(
    Inferred,
    dims=SIZES,
    dtype="float32",
    has=["**/bias", "**/encoder_norm/scale", "**/LayerNorm_0/scale", "**/LayerNorm_1/scale"],
)
