"""What models with centered norms have in common, which add a bias wherever they can: GPT-2, ViT, Whisper."""

from __future__ import annotations

from jaxtyping import Array, Float32

from ckpt_schema._layouts.fields import field
from ckpt_schema._layouts.schema import Schema
from ckpt_schema.families._decoders import BiasedHeads, Kernel, Norm, Output, Vector

__all__ = [
    "BiasedKernel",
    "BiasedOutput",
    "CenteredNorm",
    "CenteredVector",
    "FullAttention",
    "FullLayer",
]


class CenteredVector(Vector):
    """A norm of torch that subtracts the mean."""

    bias: Float32[Array, " embed"]


class CenteredNorm(Norm):
    """One of NNX, ``nnx.LayerNorm``."""

    bias: Float32[Array, " embed"]


class BiasedKernel(Kernel):
    """A linear layer of NNX with a bias."""

    bias: Float32[Array, " out"]


class BiasedOutput(Output):
    """A linear layer from heads with a bias."""

    bias: Float32[Array, " embed"]


class FullAttention(Schema):
    """As many keys and values as queries."""

    query: BiasedHeads
    key: BiasedHeads
    value: BiasedHeads
    out: BiasedOutput


class FullLayer(Schema):
    """Attention and a plain MLP."""

    attention_norm: CenteredNorm
    attention: FullAttention
    mlp_norm: CenteredNorm
    up: BiasedKernel = field(key="mlp/up", dims={"inner": "embed", "out": "mlp"})
    down: BiasedKernel = field(key="mlp/down", dims={"inner": "mlp", "out": "embed"})
