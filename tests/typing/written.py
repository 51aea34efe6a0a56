from flax import nnx
from jaxtyping import Array, Float32, Int32, UInt32

import ckpt_schema as cs


class Embed(cs.Schema):
    """1 leaf, 88 parameters."""

    embedding: Float32[Array, "vocab embed"]


class Linear(cs.Schema):
    """2 leaves, 99 to 144 parameters."""

    bias: Float32[Array, " outputs"]
    kernel: Float32[Array, "inputs outputs"]


class Projection(cs.Schema):
    """2 leaves, 72 parameters."""

    bias: Float32[Array, "heads head_dim"]
    kernel: Float32[Array, "embed heads head_dim"]


class Out(cs.Schema):
    """2 leaves, 72 parameters."""

    bias: Float32[Array, " embed"]
    kernel: Float32[Array, "heads head_dim embed"]


class Attention(cs.Schema):
    """10 leaves, 288 parameters."""

    key: Projection
    out: Out
    query: Projection
    rngs: cs.Stream["fry"] = cs.field(tag="default")
    value: Projection


class Dropout(cs.Schema):
    """2 leaves, 0 parameters."""

    rngs: cs.Stream["fry"] = cs.field(tag="default")


class Norm(cs.Schema):
    """2 leaves, 16 parameters."""

    bias: Float32[Array, " embed"]
    scale: Float32[Array, " embed"]


class Layer(cs.Schema):
    """20 leaves, 600 parameters."""

    attention: Attention
    dropout: Dropout
    norm1: Norm
    norm2: Norm
    wi: Linear = cs.field(dims={"inputs": "embed", "outputs": "mlp"})
    wo: Linear = cs.field(dims={"inputs": "mlp", "outputs": "embed"})


class Model(cs.Schema):
    """25 leaves, 2,003 parameters."""

    embed: Embed
    head: Linear = cs.field(dims={"inputs": "embed", "outputs": "vocab"})
    layers: list[Layer] = cs.field(length="depth")
    norm: Norm


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
    "embed": 8,
    "head_dim": 4,
    "heads": 2,
    "mlp": 16,
    "vocab": 11,
}
layout = cs.layout(State, dims=SIZES)
