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

    down_proj: blocks.nnx.Linear = cs.field(dims={"in_features": "mlp_2", "out_features": "embed"})
    gate_proj: blocks.nnx.Linear = cs.field(dims={"in_features": "embed", "out_features": "mlp_2"})
    up_proj: blocks.nnx.Linear = cs.field(dims={"in_features": "embed", "out_features": "mlp_2"})


class Item(cs.Schema):
    """9 leaves, 84,021,248 parameters."""

    attention: Attention
    input_norm: blocks.nnx.RMSNorm = cs.field(dims={"features": "embed"})
    mlp: Mlp
    post_attention_norm: blocks.nnx.RMSNorm = cs.field(dims={"features": "embed"})


class ItemMlp(cs.Schema):
    """7 leaves, 571,080,704 parameters."""

    down: Float32[Array, "size_64 size_1408 embed"]
    gate: Float32[Array, "size_64 embed size_1408"]
    router: blocks.nnx.Linear = cs.field(dims={"in_features": "embed", "out_features": "size_64"})
    shared: Mlp = cs.field(dims={"mlp_2": "mlp"})
    up: Float32[Array, "size_64 embed size_1408"]


class LayersItem(cs.Schema):
    """13 leaves, 587,862,016 parameters."""

    attention: Attention
    input_norm: blocks.nnx.RMSNorm = cs.field(dims={"features": "embed"})
    mlp: ItemMlp
    post_attention_norm: blocks.nnx.RMSNorm = cs.field(dims={"features": "embed"})


class Layers(cs.Schema):
    """360 leaves, 15,956,295,680 parameters."""

    item_0: Item = cs.field(name="0")
    item_1: LayersItem = cs.field(name="1")
    item_2: LayersItem = cs.field(name="2")
    item_3: LayersItem = cs.field(name="3")
    item_4: LayersItem = cs.field(name="4")
    item_5: LayersItem = cs.field(name="5")
    item_6: LayersItem = cs.field(name="6")
    item_7: LayersItem = cs.field(name="7")
    item_8: LayersItem = cs.field(name="8")
    item_9: LayersItem = cs.field(name="9")
    item_10: LayersItem = cs.field(name="10")
    item_11: LayersItem = cs.field(name="11")
    item_12: LayersItem = cs.field(name="12")
    item_13: LayersItem = cs.field(name="13")
    item_14: LayersItem = cs.field(name="14")
    item_15: LayersItem = cs.field(name="15")
    item_16: LayersItem = cs.field(name="16")
    item_17: LayersItem = cs.field(name="17")
    item_18: LayersItem = cs.field(name="18")
    item_19: LayersItem = cs.field(name="19")
    item_20: LayersItem = cs.field(name="20")
    item_21: LayersItem = cs.field(name="21")
    item_22: LayersItem = cs.field(name="22")
    item_23: LayersItem = cs.field(name="23")
    item_24: LayersItem = cs.field(name="24")
    item_25: LayersItem = cs.field(name="25")
    item_26: LayersItem = cs.field(name="26")
    item_27: LayersItem = cs.field(name="27")


class Model(cs.Schema):
    """363 leaves, 16,375,728,128 parameters."""

    embed_tokens: blocks.nnx.Embed = cs.field(dims={"features": "embed", "num_embeddings": "vocab"})
    layers: Layers
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
    "embed": 2048,
    "head_dim": 128,
    "heads": 16,
    "size_64": 64,  # nothing tells what it is
    "mlp": 2816,
    "size_1408": 1408,  # nothing tells what it is
    "mlp_2": 10944,
    "vocab": 102400,
}
layout = cs.layout(Training, dims=SIZES, dtype="float32", has=["**/scale"])
