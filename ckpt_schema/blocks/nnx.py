"""The layers of ``flax.nnx`` that hold state, under the logical names that those of `linen` have.

`linen` says what is true of both. Two cells keep in one leaf what Linen keeps gate by gate:
``cs.derive(..., rules=GRUCell.gates)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Generic

import jax
from jaxtyping import Array, Float

from ckpt_schema._layouts.fields import field
from ckpt_schema._layouts.leaves import fresh_key
from ckpt_schema._layouts.schema import Schema
from ckpt_schema._layouts.streams import Stream
from ckpt_schema._lens.rules import Rule, fuse
from ckpt_schema.blocks import linen
from ckpt_schema.blocks._around import Beside, Inner, around
from ckpt_schema.blocks.linen import BatchNorm as BatchNorm
from ckpt_schema.blocks.linen import Conv as Conv
from ckpt_schema.blocks.linen import ConvTranspose as ConvTranspose
from ckpt_schema.blocks.linen import Dense as Linear
from ckpt_schema.blocks.linen import DenseGeneral as LinearGeneral
from ckpt_schema.blocks.linen import Einsum as Einsum
from ckpt_schema.blocks.linen import Embed as Embed
from ckpt_schema.blocks.linen import GroupNorm as GroupNorm
from ckpt_schema.blocks.linen import InstanceNorm as InstanceNorm
from ckpt_schema.blocks.linen import LayerNorm as LayerNorm
from ckpt_schema.blocks.linen import PReLU as PReLU
from ckpt_schema.blocks.linen import RMSNorm as RMSNorm

__all__ = [
    "RNN",
    "BatchNorm",
    "Bidirectional",
    "Conv",
    "ConvTranspose",
    "Dropout",
    "Einsum",
    "Embed",
    "GRUCell",
    "GroupNorm",
    "InstanceNorm",
    "LSTMCell",
    "LayerNorm",
    "Linear",
    "LinearGeneral",
    "LoRA",
    "LoRALinear",
    "MultiHeadAttention",
    "OptimizedLSTMCell",
    "PReLU",
    "RMSNorm",
    "SimpleCell",
    "SpectralNorm",
    "WeightNorm",
]


class Dropout(Schema):
    """Dropout with a stream of its own, which Linen has not: where it is new, it starts with a fresh key."""

    rngs: Stream["fry"] = field(optional=True, default=fresh_key(0), tag="default")


class MultiHeadAttention(linen.MultiHeadAttention):
    """Attention of several heads, with the stream of its dropout, where it has one."""

    rngs: Stream["fry"] = field(optional=True, tag="default")


# --- adapters  ---


class Adapter(Schema):
    """The two factors of a change of low rank."""

    lora_a: Float[Array, "in_features lora_rank"] = field(type="LoRAParam")
    lora_b: Float[Array, "lora_rank out_features"] = field(type="LoRAParam")


class LoRA(Adapter, Generic[linen.Layer]):
    """An adapter of low rank, alone, or around the layer that it adapts, ``LoRA[Linear]``."""

    if not TYPE_CHECKING:

        def __class_getitem__(cls, layer: type[Schema]) -> type[Schema]:
            return around(cls, {"base_module": layer})


class LoRALinear(Linear):
    """A linear layer with an adapter of low rank."""

    lora: Adapter


# --- recurrent cells  ---


class CellStream(Schema):
    """The stream of a cell that keeps one, ``keep_rngs=True``."""

    rngs: Stream["fry"] = field(optional=True, tag="default")


class LSTMCell(linen.LSTMCell, CellStream):
    """A long short-term memory, with the gates i, f, g and o."""

    if_: linen.InputGate


class FourOfInput(Schema):
    """What four gates make of the input, one after the other."""

    kernel: Float[Array, "in_features 4*hidden_features"]


class FourOfHidden(Schema):
    """What four gates make of the state, one after the other."""

    kernel: Float[Array, "in_features=hidden_features out_features=4*hidden_features"]
    bias: Float[Array, " 4*hidden_features"]


class OptimizedLSTMCell(CellStream):
    """The same with the gates in one leaf.

    Attributes:
        gates: The rules for a lens to Linen's cells, wherever they stand.
    """

    lstm_i: FourOfInput = field(key="dense_i")
    lstm_h: FourOfHidden = field(key="dense_h")
    gates: ClassVar[tuple[Rule, ...]] = (
        fuse("**/lstm_i", ["**/ii", "**/if_", "**/ig", "**/io"]),
        fuse("**/lstm_h", ["**/hi", "**/hf", "**/hg", "**/ho"]),
    )


class ThreeOfInput(Schema):
    """What three gates make of the input, one after the other."""

    kernel: Float[Array, "in_features 3*hidden_features"]
    bias: Float[Array, " 3*hidden_features"]


class ThreeOfHidden(Schema):
    """What three gates make of the state, one after the other."""

    kernel: Float[Array, "in_features=hidden_features out_features=3*hidden_features"]


class GRUCell(CellStream):
    """A gated recurrent unit, the gates r, z and n in one leaf.

    Linen's cell has one more bias, that of ``hn``: what becomes of it takes a rule of its own.

    Attributes:
        gates: The rules for a lens to Linen's cells, wherever they stand.
    """

    gru_i: ThreeOfInput = field(key="dense_i")
    gru_h: ThreeOfHidden = field(key="dense_h")
    gates: ClassVar[tuple[Rule, ...]] = (
        fuse("**/gru_i", ["**/ir", "**/iz", "**/in_"]),
        fuse("**/gru_h/kernel", ["**/hr/kernel", "**/hz/kernel", "**/hn/kernel"]),
    )


class SimpleCell(CellStream):
    """A cell without gates."""

    i: linen.BiasedInputGate = field(key="dense_i")
    h: linen.HiddenGate = field(key="dense_h")


# --- layers around layers  ---


class RNN(Schema, Generic[linen.Layer]):
    """A cell along a sequence, ``RNN[LSTMCell]``, with the stream that starts its state."""

    rngs: Stream["fry"] = field(optional=True, default=fresh_key(0), tag="carry")

    if not TYPE_CHECKING:

        def __class_getitem__(cls, cell: type[Schema]) -> type[Schema]:
            return around(cls, {"cell": cell})


class Bidirectional(Schema, Generic[linen.Layer, linen.Backward]):
    """Two of them, one from each end: ``Bidirectional[RNN[LSTMCell], RNN[GRUCell]]``."""

    rngs: Stream["fry"] = field(optional=True, default=fresh_key(0), tag="carry")

    if not TYPE_CHECKING:

        def __class_getitem__(cls, both: tuple[type[Schema], type[Schema]]) -> type[Schema]:
            forward, backward = both
            return around(cls, {"forward_rnn": forward, "backward_rnn": backward})


class SpectralNorm(Schema, Generic[linen.Layer]):
    """A layer whose params are divided by their spectral norms, ``SpectralNorm[Linear]``: ``kernel_u``, ``kernel_sigma``."""

    if not TYPE_CHECKING:

        def __class_getitem__(cls, layer: type[Schema]) -> type[Schema]:
            return around(cls, {"layer_instance": layer}, _spectral)


class WeightNorm(Schema, Generic[linen.Layer]):
    """A layer whose kernels have a norm of their own, ``WeightNorm[Linear]``: ``kernel_scale``, in plain arrays."""

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
    # The last key is a tuple, the path of the param and this name.
    key = ("batch_stats", (*inner.key, name))
    return field(key=key, collection="batch_stats", type="BatchStat", optional=inner.optional)


def _scaled(inner: Inner) -> tuple[Beside, ...]:
    if "kernel" not in inner.key:
        return ()
    # A layer may be made without scales.
    told = field(key=("scales", inner.key), type=jax.Array, optional=True)
    return (Beside("scale", inner.last, told),)
