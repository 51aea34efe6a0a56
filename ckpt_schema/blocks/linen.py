"""The layers of ``flax.linen`` that hold state.

Each is the layout of the layer's own variables, of any float. Dims are called as Flax calls the
arguments that say them, and otherwise by ``cs.field(dims={"in_features": "embed"})``: by a name, a
number, or as several axes, ``{"out_features": "heads head_dim"}``. What a layer may be made without,
such as its bias, a tree may lack.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from jaxtyping import Array, Float, Int32

from ckpt_schema._layouts.fields import Field, field
from ckpt_schema._layouts.schema import Schema
from ckpt_schema.blocks._around import Beside, Inner, around

__all__ = [
    "RNN",
    "BatchNorm",
    "Bidirectional",
    "Conv",
    "ConvLSTMCell",
    "ConvLocal",
    "ConvTranspose",
    "Dense",
    "DenseGeneral",
    "Einsum",
    "Embed",
    "Fp8DirectDotGeneralOp",
    "Fp8DotGeneral",
    "Fp8DotGeneralOp",
    "Fp8Einsum",
    "GRUCell",
    "GroupNorm",
    "InstanceNorm",
    "LSTMCell",
    "LayerNorm",
    "MGUCell",
    "MultiHeadAttention",
    "MultiHeadDotProductAttention",
    "NANOOFp8DotGeneralOp",
    "OptimizedLSTMCell",
    "PReLU",
    "RMSNorm",
    "SelfAttention",
    "SimpleCell",
    "SpectralNorm",
    "WeightNorm",
]

Layer = TypeVar("Layer", bound=Schema)
Backward = TypeVar("Backward", bound=Schema)


# --- linear layers  ---


class Dense(Schema):
    """A linear layer."""

    kernel: Float[Array, "in_features out_features"]
    bias: Float[Array, " out_features"] | None


class DenseGeneral(Dense):
    """A linear layer over several axes: ``dims={"out_features": "heads head_dim"}``."""


class Einsum(Schema):
    """An einsum with a kernel; what its axes are is for ``dims=`` to say, ``{"shape": "heads dim embed"}``."""

    kernel: Float[Array, " shape"]
    bias: Float[Array, " bias_shape"] | None


class Embed(Schema):
    """A table of vectors."""

    embedding: Float[Array, "num_embeddings features"]


class Conv(Schema):
    """A convolution; of several axes by ``dims={"kernel_size": "height width"}``.

    ``in_features`` are those of one group, where there are groups.
    """

    kernel: Float[Array, "kernel_size in_features out_features"]
    bias: Float[Array, " out_features"] | None


class ConvTranspose(Conv):
    """A transposed convolution, without ``transpose_kernel``."""


class ConvLocal(Schema):
    """A convolution with a kernel for each position; ``patch`` is the size of a kernel times the features in."""

    kernel: Float[Array, "positions patch out_features"]
    bias: Float[Array, "positions out_features"] | None


class PReLU(Schema):
    """A rectifier whose slope is learned."""

    negative_slope: Float[Array, ""]


# --- norms  ---


class RMSNorm(Schema):
    """A norm by the root of the mean square."""

    scale: Float[Array, " features"] | None


class LayerNorm(RMSNorm):
    """A norm by mean and variance."""

    bias: Float[Array, " features"] | None


class GroupNorm(LayerNorm):
    """A norm over groups of features."""


class InstanceNorm(LayerNorm):
    """A norm over all but batch and features."""


class BatchNorm(LayerNorm):
    """A norm over the batch, with its running statistics."""

    mean: Float[Array, " features"] = field(collection="batch_stats", type="BatchStat")
    var: Float[Array, " features"] = field(collection="batch_stats", type="BatchStat")


# --- attention  ---


class MultiHeadAttention(Schema):
    """Attention of several heads, with the norms of its queries and keys and the cache of its decoding, where it has them."""

    query: DenseGeneral = field(dims={"out_features": "num_heads head_dim"})
    key: DenseGeneral = field(
        dims={"in_features": "in_kv_features", "out_features": "num_heads head_dim"}
    )
    value: DenseGeneral = field(
        dims={"in_features": "in_kv_features", "out_features": "num_heads head_dim"}
    )
    out: DenseGeneral = field(dims={"in_features": "num_heads head_dim"})
    # Layer norms without a bias.
    query_ln: RMSNorm = field(optional=True, dims={"features": "head_dim"})
    key_ln: RMSNorm = field(optional=True, dims={"features": "head_dim"})
    cached_key: Float[Array, "batch length num_heads head_dim"] = field(
        collection="cache", type="Cache", ephemeral=True
    )
    cached_value: Float[Array, "batch length num_heads head_dim"] = field(
        collection="cache", type="Cache", ephemeral=True
    )
    cache_index: Int32[Array, ""] = field(collection="cache", type="Cache", ephemeral=True)


class MultiHeadDotProductAttention(MultiHeadAttention):
    """The same under its older name."""


class SelfAttention(MultiHeadAttention):
    """The same of one input."""


# --- recurrent cells  ---


class InputGate(Schema):
    """What a gate makes of the input."""

    kernel: Float[Array, "in_features hidden_features"]


class BiasedInputGate(InputGate):
    """The same with a bias."""

    bias: Float[Array, " hidden_features"]


class HiddenGate(Schema):
    """What a gate makes of the state."""

    kernel: Float[Array, "in_features=hidden_features out_features=hidden_features"]


class BiasedHiddenGate(HiddenGate):
    """The same with a bias."""

    bias: Float[Array, " hidden_features"]


class LSTMCell(Schema):
    """A long short-term memory, with the gates i, f, g and o."""

    ii: InputGate
    if_: InputGate = field(key="if")
    ig: InputGate
    io: InputGate
    hi: BiasedHiddenGate
    hf: BiasedHiddenGate
    hg: BiasedHiddenGate
    ho: BiasedHiddenGate


class OptimizedLSTMCell(LSTMCell):
    """The same, as it is kept."""


class GRUCell(Schema):
    """A gated recurrent unit, with the gates r, z and n."""

    ir: BiasedInputGate
    iz: BiasedInputGate
    in_: BiasedInputGate = field(key="in")
    hr: HiddenGate
    hz: HiddenGate
    hn: BiasedHiddenGate


class MaybeBiasedHiddenGate(HiddenGate):
    """What a gate makes of the state, with a bias where there is a reset gate."""

    bias: Float[Array, " hidden_features"] | None


class MGUCell(Schema):
    """A minimal gated unit, with the gates f and n."""

    if_: BiasedInputGate = field(key="if")
    in_: BiasedInputGate = field(key="in")
    hf: HiddenGate
    hn: MaybeBiasedHiddenGate


class SimpleCell(Schema):
    """A cell without gates."""

    i: BiasedInputGate
    h: HiddenGate


class ConvGates(Schema):
    """The convolution that makes four gates."""

    kernel: Float[Array, "kernel_size in_features 4*hidden_features"]
    bias: Float[Array, " 4*hidden_features"] | None


class ConvLSTMCell(Schema):
    """A long short-term memory of convolutions."""

    ih: ConvGates
    hh: ConvGates = field(dims={"in_features": "hidden_features"})


# --- products in eight bits  ---


class Fp8DotGeneralOp(Schema):
    """The scales of a product in eight bits: a part of the layer whose product it is, ``Dense_0/Fp8DotGeneralOp_0``."""

    input_scale: Float[Array, " 1"] = field(collection="_overwrite_with_gradient")
    kernel_scale: Float[Array, " 1"] = field(collection="_overwrite_with_gradient")
    output_grad_scale: Float[Array, " 1"] = field(collection="_overwrite_with_gradient")
    input_amax_history: Float[Array, " amax_history_length"] = field(
        collection="_overwrite_with_gradient"
    )
    kernel_amax_history: Float[Array, " amax_history_length"] = field(
        collection="_overwrite_with_gradient"
    )
    output_grad_amax_history: Float[Array, " amax_history_length"] = field(
        collection="_overwrite_with_gradient"
    )


class Fp8DotGeneral(Fp8DotGeneralOp):
    """The same under its newer name."""


class Fp8DirectDotGeneralOp(Fp8DotGeneralOp):
    """The same, quantized before the product."""


class NANOOFp8DotGeneralOp(Fp8DotGeneralOp):
    """The same in the formats of AMD."""


class Fp8Einsum(Fp8DotGeneralOp):
    """The same of an einsum."""


# --- layers around layers  ---


class RNN(Schema, Generic[Layer]):
    """A cell along a sequence, ``RNN[LSTMCell]``.

    This is of a cell that is given to it in ``setup``. One that is made where it is called, in
    ``nn.compact``, stands beside it under a name of its own: declare the cell there.
    """

    if not TYPE_CHECKING:

        def __class_getitem__(cls, cell: type[Schema]) -> type[Schema]:
            return around(cls, {"cell": cell})


class Bidirectional(Schema, Generic[Layer, Backward]):
    """Two of them, one from each end: ``Bidirectional[RNN[LSTMCell], RNN[GRUCell]]``."""

    if not TYPE_CHECKING:

        def __class_getitem__(cls, both: tuple[type[Schema], type[Schema]]) -> type[Schema]:
            forward, backward = both
            return around(cls, {"forward_rnn": forward, "backward_rnn": backward})


class SpectralNorm(Schema, Generic[Layer]):
    """A layer whose params are divided by their spectral norms, ``SpectralNorm[Dense]``: ``kernel_u``, ``kernel_sigma``.

    Like `RNN`, this is of a layer that is given to it.
    """

    if not TYPE_CHECKING:

        def __class_getitem__(cls, layer: type[Schema]) -> type[Schema]:
            return around(cls, {"layer_instance": layer}, _spectral)


class WeightNorm(Schema, Generic[Layer]):
    """A layer whose kernels have a norm of their own, ``WeightNorm[Dense]``: ``kernel_scale``, if it is scaled.

    Like `RNN`, this is of a layer that is given to it.
    """

    if not TYPE_CHECKING:

        def __class_getitem__(cls, layer: type[Schema]) -> type[Schema]:
            return around(cls, {"layer_instance": layer}, _scaled)


def _spectral(inner: Inner) -> tuple[Beside, ...]:
    if inner.rank < 2:
        return ()
    return (
        Beside("u", f"1 {inner.last}", _statistic(inner, "u")),
        Beside("sigma", "", _statistic(inner, "sigma")),
    )


def _statistic(inner: Inner, name: str) -> Any:
    key = _beside(inner, name)
    return field(key=key, collection="batch_stats", type="BatchStat", optional=inner.optional)


def _scaled(inner: Inner) -> tuple[Beside, ...]:
    if "kernel" not in inner.key:
        return ()
    told: Field = field(key=_beside(inner, "scale"), optional=True)  # use_scale=False
    return (Beside("scale", inner.last, told),)


def _beside(inner: Inner, name: str) -> str:
    """One key, in quotes: Linen joins the path of the param."""
    return f"'{'/'.join(['layer_instance', *map(str, inner.key), name])}'"
