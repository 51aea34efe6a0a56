"""The layouts of the models in `pair_models`, declared as a user of the library does, and the pairs they make."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import optax
import pair_models
from flax import nnx
from jaxtyping import Array, Float32
from pair_models import LinenRun, NnxRun, images, tokens

import ckpt_schema as cs


class Dense(cs.Schema):
    """``nn.Dense`` and ``nnx.Linear``."""

    kernel: Float32[Array, "inputs outputs"]
    bias: Float32[Array, " outputs"]


class Embed(cs.Schema):
    """``nn.Embed``."""

    embedding: Float32[Array, "vocab embed"]


class LayerNorm(cs.Schema):
    """``nn.LayerNorm``."""

    scale: Float32[Array, " embed"]
    bias: Float32[Array, " embed"]


# --- ResNet  ---


class Conv(cs.Schema):
    """A convolution without bias."""

    kernel: Float32[Array, "3 3 inputs outputs"]


class Projection(cs.Schema):
    """A convolution of single pixels."""

    kernel: Float32[Array, "1 1 inputs outputs"]


class Norm(cs.Schema):
    """Batch normalization: weights, and averages that are no weights."""

    scale: Float32[Array, " features"]
    bias: Float32[Array, " features"]
    mean: Float32[Array, " features"] = cs.field(collection="batch_stats", type=nnx.BatchStat)
    var: Float32[Array, " features"] = cs.field(collection="batch_stats", type=nnx.BatchStat)


SAME = {"inputs": "wide", "outputs": "wide"}
DOWN = {"inputs": "channels", "outputs": "wide"}
WIDE = {"features": "wide"}


class Block(cs.Schema):
    """A residual block."""

    conv1: Conv = cs.field(dims=SAME)
    norm1: Norm = cs.field(dims=WIDE)
    conv2: Conv = cs.field(dims=SAME)
    norm2: Norm = cs.field(dims=WIDE)


class DownBlock(Block):
    """A residual block that changes the shape."""

    conv1: Conv = cs.field(dims=DOWN)
    projection: Projection = cs.field(dims=DOWN)
    projection_norm: Norm = cs.field(dims=WIDE)


class LinenBlock(cs.Schema):
    """A residual block, as Linen spells it."""

    conv1: Conv = cs.field(key="Conv_0", dims=SAME)
    norm1: Norm = cs.field(key="BatchNorm_0", dims=WIDE)
    conv2: Conv = cs.field(key="Conv_1", dims=SAME)
    norm2: Norm = cs.field(key="BatchNorm_1", dims=WIDE)


class LinenDownBlock(LinenBlock):
    """A residual block that changes the shape, as Linen spells it."""

    conv1: Conv = cs.field(key="Conv_0", dims=DOWN)
    projection: Projection = cs.field(key="conv_proj", dims=DOWN)
    projection_norm: Norm = cs.field(key="norm_proj", dims=WIDE)


class LinenResNet(cs.Schema):
    """The ResNet in Linen."""

    stem: Conv = cs.field(key="conv_init", dims={"inputs": 3, "outputs": "channels"})
    stem_norm: Norm = cs.field(key="bn_init", dims={"features": "channels"})
    down: LinenDownBlock
    blocks: list[LinenBlock] = cs.field(key="block_{i}", length="depth")
    head: Dense = cs.field(key="Dense_0", dims={"inputs": "wide", "outputs": "classes"})


class NnxResNet(cs.Schema):
    """The ResNet in NNX."""

    stem: Conv = cs.field(dims={"inputs": 3, "outputs": "channels"})
    stem_norm: Norm = cs.field(dims={"features": "channels"})
    down: DownBlock
    blocks: list[Block] = cs.field(length="depth")
    head: Dense = cs.field(dims={"inputs": "wide", "outputs": "classes"})


# --- LSTM  ---


class Inputs(cs.Schema):
    """What a gate makes of the inputs."""

    kernel: Float32[Array, "inputs hidden"]


class Carried(cs.Schema):
    """What a gate makes of what is carried over."""

    kernel: Float32[Array, "hidden hidden"]
    bias: Float32[Array, " hidden"]


class Cell(cs.Schema):
    """``nnx.LSTMCell``: two modules for each of four gates."""

    ii: Inputs
    if_: Inputs
    ig: Inputs
    io: Inputs
    hi: Carried
    hf: Carried
    hg: Carried
    ho: Carried


class LinenCell(Cell):
    """``nn.LSTMCell``, where a name may be a keyword of Python."""

    if_: Inputs = cs.field(key="if")


class LinenLstm(cs.Schema):
    """The LSTMs in Linen; ``nn.RNN`` has no params of its own."""

    embed: Embed = cs.field(key="Embed_0")
    lower: LinenCell = cs.field(key="LSTMCell_0", dims={"inputs": "embed"})
    upper: LinenCell = cs.field(key="LSTMCell_1", dims={"inputs": "hidden"})
    dense: Dense = cs.field(key="Dense_0", dims={"inputs": "hidden", "outputs": "vocab"})


class NnxLstm(cs.Schema):
    """The LSTMs in NNX; ``nnx.RNN`` has the cell below it, and a stream."""

    embed: Embed
    lower: Cell = cs.field(key="lower/cell", dims={"inputs": "embed"})
    lower_carry: cs.Stream["fry"] = cs.field(
        key="lower/rngs", default=cs.fresh_key(0), tag="default"
    )
    upper: Cell = cs.field(key="upper/cell", dims={"inputs": "hidden"})
    upper_carry: cs.Stream["fry"] = cs.field(
        key="upper/rngs", default=cs.fresh_key(1), tag="default"
    )
    dense: Dense = cs.field(dims={"inputs": "hidden", "outputs": "vocab"})


# --- LoRA  ---


class Adapter(cs.Schema):
    """``nnx.LoRA``."""

    a: Float32[Array, "inputs rank"] = cs.field(key="lora_a", type=nnx.LoRAParam)
    b: Float32[Array, "rank outputs"] = cs.field(key="lora_b", type=nnx.LoRAParam)


class LinenAdapter(cs.Schema):
    """The adapter in Linen, its matrices among the params."""

    a: Float32[Array, "inputs rank"]
    b: Float32[Array, "rank outputs"]


class Adapted(Dense):
    """``nnx.LoRALinear``."""

    lora: Adapter


class LinenAdapted(Dense):
    """``nn.Dense`` with an adapter."""

    lora: LinenAdapter


IN = {"inputs": "embed", "outputs": "mlp"}
OUT = {"inputs": "mlp", "outputs": "embed"}


class AdaptedModel(cs.Schema):
    """What both models with adapters have."""

    embed: Embed
    norm: LayerNorm
    head: Dense = cs.field(dims={"inputs": "embed", "outputs": "vocab"})


class NnxAdaptedModel(AdaptedModel):
    """The model with adapters in NNX."""

    wi: Adapted = cs.field(dims=IN)
    wo: Adapted = cs.field(dims=OUT)


class LinenAdaptedModel(AdaptedModel):
    """The model with adapters in Linen."""

    wi: LinenAdapted = cs.field(dims=IN)
    wo: LinenAdapted = cs.field(dims=OUT)


# --- tied embeddings  ---


class LinenTied(cs.Schema):
    """The model with one table in Linen."""

    embed: Embed = cs.field(key="token_embedder")
    norm: LayerNorm = cs.field(key="ln")
    wi: Dense = cs.field(dims=IN)
    wo: Dense = cs.field(dims=OUT)


class NnxTied(cs.Schema):
    """The model with one table in NNX, whose state has it where it meets it first."""

    embed: Embed = cs.field(key="decoder/table")
    norm: LayerNorm = cs.field(key="decoder/norm")
    wi: Dense = cs.field(key="decoder/wi", dims=IN)
    wo: Dense = cs.field(key="decoder/wo", dims=OUT)


# --- the pairs  ---


def _clipped_adamw() -> optax.GradientTransformation:
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-2, warmup_steps=2, decay_steps=50)
    return optax.chain(optax.clip_by_global_norm(0.25), optax.adamw(schedule))


def _labels(params: Any) -> Any:
    """Which params are adapters, in a dict or an ``nnx.State``."""

    def label(path: Any, _: Any) -> str:
        return "adapters" if "lora" in jax.tree_util.keystr(path) else "frozen"

    return jax.tree_util.tree_map_with_path(label, params)


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """A model in Linen and in NNX, and the lens between their train states."""

    linen: LinenRun
    nnx: NnxRun
    lens: cs.Lens


def _resnet() -> Pair:
    schedule = optax.cosine_decay_schedule(0.1, 50)
    tx = optax.chain(
        optax.add_decayed_weights(1e-3), optax.sgd(schedule, momentum=0.9, nesterov=True)
    )
    lens = cs.derive(cs.linen.BareTrainState[LinenResNet, tx], cs.nnx.TrainState[NnxResNet, tx])
    linen = LinenRun(pair_models.LinenResNet(), tx, True, images)
    return Pair(linen, NnxRun(pair_models.NnxResNet, tx, images), lens)


def _lstm() -> Pair:
    tx = _clipped_adamw()
    lens = cs.derive(cs.linen.TrainState[LinenLstm, tx], cs.nnx.TrainState[NnxLstm, tx])
    linen = LinenRun(pair_models.LinenLstm(), tx, False, tokens)
    return Pair(linen, NnxRun(pair_models.NnxLstm, tx, tokens), lens)


def _lora() -> Pair:
    tx = optax.multi_transform(
        {"adapters": _clipped_adamw(), "frozen": optax.set_to_zero()}, _labels
    )
    lens = cs.derive(
        cs.linen.BareTrainState[LinenAdaptedModel, tx], cs.nnx.TrainState[NnxAdaptedModel, tx]
    )
    linen = LinenRun(pair_models.LinenAdapted(), tx, True, tokens)
    return Pair(linen, NnxRun(pair_models.NnxAdapted, tx, tokens), lens)


def _lora_alone() -> Pair:
    """The same, as NNX code writes it: its optimizer is made for the adapters, and has no place for what is frozen."""
    linen, tx = pair("LoRA").linen, _clipped_adamw()
    view = NnxRun(pair_models.NnxAdapted, tx, tokens, wrt=nnx.LoRAParam)
    layouts = (
        cs.linen.BareTrainState[LinenAdaptedModel, linen.tx],
        cs.nnx.TrainState[NnxAdaptedModel, tx, nnx.LoRAParam],
    )
    return Pair(linen, view, cs.derive(*layouts))


def _tied() -> Pair:
    tx = _clipped_adamw()
    lens = cs.derive(cs.linen.TrainState[LinenTied, tx], cs.nnx.TrainState[NnxTied, tx])
    linen = LinenRun(pair_models.LinenTied(), tx, False, tokens)
    return Pair(linen, NnxRun(pair_models.NnxTied, tx, tokens), lens)


_PAIRS = {
    "ResNet": _resnet,
    "LSTM": _lstm,
    "LoRA": _lora,
    "LoRA alone": _lora_alone,
    "tied embeddings": _tied,
}
NAMES = tuple(_PAIRS)


@functools.cache
def pair(name: str) -> Pair:
    """A pair; what it compiles is compiled once."""
    return _PAIRS[name]()
