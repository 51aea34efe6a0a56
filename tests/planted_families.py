"""Quick families for `planted_faults.py`: between them every kind of leaf, of repetition and of rule; two lines test each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import optax
from jaxtyping import Array, BFloat16, Float32, Int32, UInt32
from support.models import LinenDecoder, NnxDecoder

import ckpt_schema as cs

TX = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(1e-3)))

# --- What only rules say  ---


class Fused(cs.Schema):
    """Attention with one projection, as some code has it."""

    qkv: Float32[Array, "embed q+2*kv"]
    gates: Float32[Array, "embed 3*heads"]


class Apart(cs.Schema):
    """The same with a projection for each."""

    q: Float32[Array, "embed q"]
    k: Float32[Array, "embed kv"]
    v: Float32[Array, "kv embed"]
    first: Float32[Array, "heads embed"]
    second: Float32[Array, "embed heads"]
    third: Float32[Array, "heads embed"]


class Plain(cs.Schema):
    """What `Ruled` is made of."""

    attention: Fused
    table: Float32[Array, "vocab embed"]
    head: Float32[Array, "vocab embed"]
    kernel: Float32[Array, "width embed"]
    query: Float32[Array, "embed heads"]
    names: Int32[Array, " vocab"]
    noise: cs.Key["rbg"]


class Ruled(cs.Schema):
    """The same in other values and parts."""

    attention: Apart
    table: Float32[Array, "padded embed"]
    kernel: Float32[Array, "embed width"]
    query: Float32[Array, "embed heads"]
    names: Int32[Array, " padded"]
    noise: UInt32[Array, "4"]


RULES = (
    cs.pad("table", "vocab", "padded"),
    cs.pad("names", "vocab", "padded", fill=-1),
    cs.tie("head", "table"),
    cs.flip("kernel", "width"),
    cs.scale("query", 0.125),
    cs.raw_key("noise"),
    cs.fuse("attention/qkv", ["attention/q", "attention/k", "attention/v"]),
    cs.fuse("attention/gates", ["attention/first", "attention/second", "attention/third"]),
)

# --- Lists of layers with a remainder, and experts in them  ---


class Expert(cs.Schema):
    """One of the experts of a layer."""

    up: BFloat16[Array, "embed mlp"]


class StackedLayer(cs.Schema):
    """A layer whose experts are one array."""

    experts: Expert = cs.field(scan="experts", axis=0)
    scale: Float32[Array, " embed"]


class ListedLayer(cs.Schema):
    """A layer whose experts are a list."""

    experts: list[Expert] = cs.field(length="experts")
    scale: Float32[Array, " embed"]


class Listed(cs.Schema):
    """All layers in one list."""

    layers: list[ListedLayer] = cs.field(key="layers_{i}", length="3*blocks+rest")
    count: Int32[Array, ""]
    bias: Float32[Array, " embed"] | None = cs.field(default=0.5)


class ScannedBlock(cs.Schema):
    """Three layers, as one body of a loop."""

    layers: list[StackedLayer] = cs.field(length=3)


class Scanned(cs.Schema):
    """Most of the layers in blocks of three that are stacked, and those that remain."""

    blocks: ScannedBlock = cs.field(scan="blocks", axis=1)
    rest: list[StackedLayer] = cs.field(length="rest")
    layers = cs.series("blocks[]/layers[]", "rest[]")
    count: UInt32[Array, ""]
    bias: Float32[Array, " embed"] | None = cs.field(default=0.5)
    mask: Float32[Array, " embed"] = cs.field(default=-0.0)


# --- Training states  ---


class Dense(cs.Schema):
    """A dense layer."""

    kernel: Float32[Array, "inputs outputs"]
    bias: Float32[Array, " outputs"]


class LinenNet(cs.Schema):
    """A small net in Linen: layers by `nn.scan`."""

    embedding: Float32[Array, "vocab embed"] = cs.field(key="Embed_0/embedding")
    layers: Dense = cs.field(scan="depth", axis=1, dims={"inputs": "embed", "outputs": "mlp"})
    mean: Float32[Array, " embed"] = cs.field(collection="batch_stats")


class NnxDense(Dense):
    """A dense layer with dropout."""

    rngs: cs.Stream["fry"] = cs.field(key="dropout/rngs", default=cs.fresh_key(3), tag="default")


class NnxNet(cs.Schema):
    """The same net in NNX: layers in a list."""

    embedding: Float32[Array, "vocab embed"] = cs.field(key="embed/embedding")
    layers: list[NnxDense] = cs.field(length="depth", dims={"inputs": "embed", "outputs": "mlp"})
    mean: Float32[Array, " embed"] = cs.field(key="norm/mean", type="BatchStat")


def _rules() -> cs.Lens:
    return cs.derive(Plain, Ruled, RULES)


def _layers() -> cs.Lens:
    return cs.derive(Listed, Scanned)


def _training() -> cs.Lens:
    return cs.derive(cs.linen.TrainState[LinenNet, TX], cs.nnx.TrainState[NnxNet, TX])


def _decoder() -> cs.Lens:
    return cs.derive(cs.linen.Params[LinenDecoder], cs.nnx.Params[NnxDecoder])


FAMILIES: Mapping[str, Callable[[], cs.Lens]] = {
    "rules": functools.cache(_rules),
    "layers": functools.cache(_layers),
    "training": functools.cache(_training),
    "decoder": functools.cache(_decoder),
}
"""What makes the lens of each family, by name."""
