from flax import nnx
from jaxtyping import Array, Int32, UInt32

import ckpt_schema as cs
from ckpt_schema import blocks


class Dropout(cs.Schema):
    """2 leaves, 0 parameters."""

    rngs: cs.Stream["fry"] = cs.field(tag="default")


class Layer(cs.Schema):
    """20 leaves, 600 parameters."""

    attention: blocks.nnx.MultiHeadAttention = cs.field(
        dims={
            "in_features": "embed",
            "in_kv_features": "embed",
            "num_heads": "heads",
            "out_features": "embed",
        },
    )
    dropout: Dropout
    norm1: blocks.nnx.LayerNorm = cs.field(dims={"features": "embed"})
    norm2: blocks.nnx.LayerNorm = cs.field(dims={"features": "embed"})
    wi: blocks.nnx.Linear = cs.field(dims={"in_features": "embed", "out_features": "mlp"})
    wo: blocks.nnx.Linear = cs.field(dims={"in_features": "mlp", "out_features": "embed"})


class Model(cs.Schema):
    """65 leaves, 2,003 parameters."""

    embed: blocks.nnx.Embed = cs.field(dims={"features": "embed", "num_embeddings": "vocab"})
    head: blocks.nnx.Linear = cs.field(dims={"in_features": "embed", "out_features": "vocab"})
    layers: list[Layer] = cs.field(length="depth")
    norm: blocks.nnx.LayerNorm = cs.field(dims={"features": "embed"})


class State(cs.nnx.State):
    params: Model = cs.field(key="model")
    opt_state: cs.OptState = cs.kept(
        of="params",
        key="optimizer/opt_state",
        mirrors=["1/0/mu", "1/0/nu"],
        leaves={"1/0/count": Int32[Array, ""], "1/2/count": Int32[Array, ""]},
    )
    step: UInt32[Array, ""] = cs.field(key="optimizer/step", type=nnx.OptState)


SIZES = {
    "depth": 3,
    "vocab": 11,
    "embed": 8,
    "heads": 2,
    "head_dim": 4,
    "mlp": 16,
}
layout = cs.layout(
    State,
    dims=SIZES,
    dtype="float32",
    has=["**/bias", "**/rngs", "**/norm1/scale", "**/norm2/scale", "**/norm/scale"],
)
