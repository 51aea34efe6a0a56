import optax
from jaxtyping import Array, Int32

import ckpt_schema as cs
from ckpt_schema import blocks


class Layer(cs.Schema):
    """11 leaves, 198,195,200 parameters."""

    down_proj: blocks.linen.Dense = cs.field(dims={"in_features": "mlp", "out_features": "embed"})
    gate_proj: blocks.linen.Dense = cs.field(dims={"in_features": "embed", "out_features": "mlp"})
    k_proj: blocks.linen.DenseGeneral = cs.field(
        dims={"in_features": "embed", "out_features": "kv_heads head_dim"},
    )
    o_proj: blocks.linen.DenseGeneral = cs.field(
        dims={"in_features": "heads head_dim", "out_features": "embed"},
    )
    post_attention_norm: blocks.linen.RMSNorm = cs.field(dims={"features": "embed"})
    post_ffw_norm: blocks.linen.RMSNorm = cs.field(dims={"features": "embed"})
    pre_attention_norm: blocks.linen.RMSNorm = cs.field(dims={"features": "embed"})
    pre_ffw_norm: blocks.linen.RMSNorm = cs.field(dims={"features": "embed"})
    q_proj: blocks.linen.DenseGeneral = cs.field(
        dims={"in_features": "embed", "out_features": "heads head_dim"},
    )
    up_proj: blocks.linen.Dense = cs.field(dims={"in_features": "embed", "out_features": "mlp"})
    v_proj: blocks.linen.DenseGeneral = cs.field(
        dims={"in_features": "embed", "out_features": "kv_heads head_dim"},
    )


class LayerGroup(cs.Schema):
    """22 leaves, 396,390,400 parameters."""

    global_layer: Layer
    local_layer: Layer


class Model(cs.Schema):
    """24 leaves, 9,241,705,984 parameters."""

    embedder: blocks.linen.Embed = cs.field(dims={"features": "embed", "num_embeddings": "vocab"})
    final_norm: blocks.linen.RMSNorm = cs.field(dims={"features": "embed"})
    layers: LayerGroup = cs.field(scan="depth")


class Inferred(cs.Schema, name="inferred"):
    params: Model = cs.field(key="params/params")
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
    "depth": 21,
    "vocab": 256000,
    "embed": 3584,
    "mlp": 14336,
    "kv_heads": 8,
    "head_dim": 256,
    "heads": 16,
}
layout = cs.layout(Inferred, dims=SIZES, dtype="float32", has=["**/scale"])
