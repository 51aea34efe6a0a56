"""The layouts of the demo's models, declared: what a user of the library writes for a model of their own."""

from __future__ import annotations

from jaxtyping import Array, Float32

import ckpt_schema as cs

__all__ = ["LinenScanned", "LinenUnrolled", "NnxScanned", "NnxUnrolled"]


class Norm(cs.Schema):
    """``LayerNorm``: the same in both frameworks."""

    scale: Float32[Array, " embed"]
    bias: Float32[Array, " embed"]


class Linear(cs.Schema):
    """``Dense`` or ``Linear`` without bias."""

    kernel: Float32[Array, "rows columns"]


class Affine(Linear):
    """``Dense`` or ``Linear`` with bias."""

    bias: Float32[Array, " columns"]


class Layer(cs.Schema):
    """What a layer of any of the models holds, by its logical names."""

    norm1: Norm
    norm2: Norm
    out: Linear = cs.field(dims={"rows": "mixed", "columns": "embed"})
    qkv: Linear = cs.field(dims={"rows": "embed", "columns": "qkv"})
    wi: Affine = cs.field(dims={"rows": "embed", "columns": "mlp"})
    wo: Affine = cs.field(dims={"rows": "mlp", "columns": "embed"})


class LinenLayer(Layer):
    """A layer as Linen spells it."""

    norm1: Norm = cs.field(key="LayerNorm_0")
    norm2: Norm = cs.field(key="LayerNorm_1")


class NnxLayer(Layer):
    """A layer as NNX spells it; the stream of its dropout has no place in Linen."""

    dropout: cs.Stream["urbg"] = cs.field(
        key="dropout/rngs", default=cs.fresh_key(0), tag="default"
    )


class Body(cs.Schema):
    """What stands around the layers in all of the models."""

    embed: Float32[Array, "vocab embed"] = cs.field(key="embed/embedding")
    head: Float32[Array, "embed vocab"] = cs.field(key="head/kernel")
    norm: Norm
    positions: Float32[Array, "length embed"]


class LinenScanned(Body):
    """Linen under ``nn.scan``: one array per leaf, the layers on axis 1."""

    layers: LinenLayer = cs.field(scan="depth", axis=1)


class LinenUnrolled(Body):
    """Linen with a module per layer."""

    layers: list[LinenLayer] = cs.field(key="layers_{i}", length="depth")


class NnxScanned(Body):
    """NNX with its layers stacked by ``nnx.vmap``: weights on axis 1, the streams' scalars on axis 0."""

    layers: NnxLayer = cs.field(scan="depth", axis=1)


class NnxUnrolled(Body):
    """NNX with an ``nnx.List`` of layers."""

    layers: list[NnxLayer] = cs.field(length="depth")
