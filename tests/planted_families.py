"""Quick families for `planted_faults.py`: between them every kind of leaf, of repetition and of rule; two lines test each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import optax
from jaxtyping import Array, BFloat16, Float32, Int4, Int32, Int64, UInt32
from support.models import LinenDecoder, NnxDecoder

import ckpt_schema as cs

ADAM = optax.adamw(optax.constant_schedule(1e-3))

TX = optax.chain(optax.clip_by_global_norm(1.0), ADAM, optax.ema(0.9), optax.apply_every(2))

OTHER = optax.chain(ADAM, optax.ema(0.9), optax.ema(0.99), optax.add_noise(0.1, 0.5, 0))
"""The same without clipping, with a second average that nothing stands for, and noise in the place
of what gathered gradients: both count, and neither count is the other's."""

FACTORS = optax.adafactor(1e-3, min_dim_size_to_factor=4)

# --- What only rules say  ---


class Fused(cs.Schema):
    """Attention with one projection, as some code has it."""

    qkv: Float32[Array, "embed q+2*kv"]
    gates: Float32[Array, "embed 3*heads"]


class Apart(cs.Schema):
    """The same with a projection for each."""

    k: Float32[Array, "embed kv"]  # not in the order that the rule says
    v: Float32[Array, "kv embed"]
    q: Float32[Array, "embed q"]
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
    spun: Float32[Array, "heads heads heads"]
    noise: cs.Key["rbg", " heads"]
    seed: cs.Key["fry", " heads"]
    twin: cs.Key["fry", " heads"]


class Ruled(cs.Schema):
    """The same in other values and parts."""

    attention: Apart
    table: Float32[Array, "padded embed"]
    kernel: Float32[Array, "embed width"]
    query: Float32[Array, "embed heads"]
    names: Int32[Array, " padded"]
    turned: Float32[Array, "heads heads heads"]
    noise: UInt32[Array, "heads 4"]
    seed: cs.Key["fry", " heads"]


RULES = (
    cs.pad("table", "vocab", "padded"),
    cs.pad("names", "vocab", "padded", fill=-1),
    cs.tie("head", "table"),
    cs.flip("kernel", "width"),
    cs.scale("query", 0.125),
    cs.rename("spun", "turned", axes="1 2 0"),
    cs.raw_key("noise"),
    cs.tie("twin", "seed"),
    cs.fuse("attention/qkv", ["attention/q", "attention/k", "attention/v"]),
    cs.fuse("attention/gates", ["attention/first", "attention/second", "attention/third"]),
)

# --- Lists of layers with a remainder, and experts in them  ---


class Expert(cs.Schema):
    """One of the experts of a layer."""

    up: BFloat16[Array, "embed mlp"]


class NoisyExpert(Expert):
    """The same with keys of its own, stacked on two axes."""

    noise: cs.Key["fry"] = cs.field(default=cs.fresh_key(5))


class StackedLayer(cs.Schema):
    """A layer whose experts are one array."""

    experts: NoisyExpert = cs.field(scan="experts", axis=0)
    scale: Float32[Array, " embed"]


class ListedLayer(cs.Schema):
    """A layer whose experts are a list."""

    experts: list[Expert] = cs.field(length="experts")
    scale: Float32[Array, " embed"]


class Listed(cs.Schema):
    """All layers in one list."""

    layers: list[ListedLayer] = cs.field(key="layers_{2*i+1}", length="first+3*blocks+rest")
    count: Int32[Array, ""]
    bias: Float32[Array, " embed"] | None = cs.field(default=0.5)


class ScannedBlock(cs.Schema):
    """Three layers, as one body of a loop."""

    layers: list[StackedLayer] = cs.field(length=3)


class Scanned(cs.Schema):
    """Most of the layers in blocks of three that are stacked, and those that remain."""

    first: StackedLayer = cs.field(scan="first", axis=0)
    blocks: ScannedBlock = cs.field(scan="blocks", axis=-1)
    rest: list[StackedLayer] = cs.field(length="rest")
    layers = cs.series("first[]", "blocks[]/layers[]", "rest[]")
    count: UInt32[Array, ""]
    bias: Float32[Array, " embed"] | None = cs.field(default=0.5)
    mask: Float32[Array, " embed"] = cs.field(default=-0.0)


# --- Lenses that are composed of two  ---


class Oldest(cs.Schema):
    """Where the first lens starts."""

    head: Float32[Array, "padded embed"]
    kernel: Float32[Array, "width embed heads"]
    cube: Float32[Array, "heads heads heads"]
    table: Float32[Array, "padded embed"]
    names: Int32[Array, " vocab"]
    bias: Float32[Array, " embed"] = cs.field(default=0.25)


class Middle(cs.Schema):
    """Where both meet."""

    head: Float32[Array, "vocab embed"]
    kernel: Float32[Array, "embed heads width"]
    cube: Float32[Array, "heads heads heads"]
    table: Float32[Array, "vocab embed"]
    names: Int32[Array, " vocab"]
    bias: Float32[Array, " embed"]
    scale: Float32[Array, " embed"] = cs.field(default=0.5)


class Newest(cs.Schema):
    """Where the second one ends."""

    head: Float32[Array, "vocab embed"]  # cut off by the one, scaled by the other
    kernel: Float32[Array, "heads width embed"]
    cube: Float32[Array, "heads heads heads"]
    table: Float32[Array, "padded embed"]
    names: Int32[Array, " vocab"]
    bias: Float32[Array, " embed"]
    scale: Float32[Array, " embed"]


FIRST = (
    cs.flip("kernel", "width"),
    cs.rename("cube", "cube", axes="1 2 0"),
    cs.pad("table", "vocab", "padded", fill=0.5),
    cs.pad("head", "vocab", "padded"),
    cs.private("scale", 1.5),
)
SECOND = (
    cs.flip("kernel", "width"),
    cs.pad("table", "vocab", "padded", fill=0.25),
    cs.scale("head", 0.5),
)


class Small(cs.Schema):
    """What is padded, and no value of it looked at."""

    table: Float32[Array, "vocab embed"]
    codes: Int4[Array, "vocab embed"]


class Large(cs.Schema):
    """The same with padding."""

    table: Float32[Array, "padded embed"]
    codes: Int4[Array, "padded embed"]


class Weight(cs.Schema):
    """A dense layer of one size, as PyTorch has it."""

    weight: Float32[Array, "outputs=embed inputs=embed"]
    bias: Float32[Array, " embed"]


class Turned(cs.Schema):
    """The same under the same names, the other way round."""

    weight: Float32[Array, "inputs=embed outputs=embed"]
    bias: Float32[Array, " embed"]


class Counted(cs.Schema):
    """A norm that counts its batches, in more bits than jax has."""

    mean: Float32[Array, " embed"]
    batches: Int64[Array, ""] = cs.field(default=3)


class Uncounted(cs.Schema):
    """A norm that does not."""

    mean: Float32[Array, " embed"]


# --- A model that is tuned: a head of its own, two kinds of layers in a row, layers without end  ---


class Gated(Weight):
    """A layer that has a gate too."""

    gate: Float32[Array, " embed"]


class TurnedGated(Turned):
    """The same, the other way round."""

    gate: Float32[Array, " embed"]


class TurnedWide(cs.Schema):
    """A dense layer that says itself what its one size is called there."""

    weight: Float32[Array, "inputs=width outputs=width"]
    bias: Float32[Array, " width"]


class Adapters(cs.Schema):
    """The head that a file has."""

    adapters: list[Weight] = cs.field(length="adapters", dims={"embed": "task"})
    bias: Float32[Array, " task"]


class StackedAdapters(cs.Schema):
    """The head that the model has."""

    adapters: Turned = cs.field(scan="adapters", axis=0, dims={"embed": "task"})
    bias: Float32[Array, " task"]


class Grouped(cs.Schema):
    """Attention with more queries than keys: no axis tells the groups but by the two others."""

    query: Float32[Array, "width kv*group*dim"]
    repeated: Float32[Array, "width kv*dim"]  # seen before the scale that tells dim
    scale: Float32[Array, " dim"]


class Apiece(cs.Schema):
    """The same with an axis for each."""

    query: Float32[Array, "width kv group dim"]
    repeated: Float32[Array, "width kv dim"]
    scale: Float32[Array, " dim"]


class Filed(cs.Schema):
    """A file: its first two layers are dense, the others have gates, and all are counted through."""

    dense: list[Weight] = cs.field(key="h_{i}", length=2, dims={"embed": "width"})
    gated: list[Gated] = cs.field(key="h_{i+2}", length="gated", dims={"embed": "width"})
    attention: Grouped
    head: Adapters


class Tuned(cs.Schema):
    """The model: layers of a kind are one stack."""

    dense: TurnedWide = cs.field(scan=2, axis=1)
    gated: TurnedGated = cs.field(scan="gated", axis=0, dims={"embed": "width"})
    attention: Apiece
    head: StackedAdapters


# --- Training states  ---


class Dense(cs.Schema):
    """A dense layer."""

    kernel: Float32[Array, "inputs outputs"]
    bias: Float32[Array, " outputs"]


class Stacked(cs.Schema):
    """Layers that are stacked on an axis in the middle, whose moments Adafactor keeps as factors."""

    layers: Dense = cs.field(scan="depth", axis=1, dims={"inputs": "embed", "outputs": "mlp"})


class Adapted(cs.Schema):
    """Such layers in front, and adapters for each."""

    layers: Dense = cs.field(scan="depth", axis=0, dims={"inputs": "embed", "outputs": "mlp"})
    adapters: Dense = cs.field(scan="depth", axis=1, dims={"inputs": "embed", "outputs": "mlp"})


class LinenNet(cs.Schema):
    """A small net in Linen: layers by `nn.scan`."""

    embedding: Float32[Array, "vocab embed"] = cs.field(key="Embed_0/embedding")
    layers: Dense = cs.field(scan="depth", axis=1, dims={"inputs": "embed", "outputs": "mlp"})
    mean: Float32[Array, " embed"] = cs.field(collection="batch_stats")


class NnxDense(Dense):
    """A dense layer with dropout."""

    rngs: cs.Stream["fry"] = cs.field(key="dropout/rngs", default=cs.fresh_key(3), tag="default")
    noise: cs.Stream["fry"] = cs.field(key="noise/rngs", default=cs.fresh_key(4), tag="noise")


class NnxNet(cs.Schema):
    """The same net in NNX: layers in a list."""

    embedding: Float32[Array, "vocab embed"] = cs.field(key="embed/embedding")
    extra: Float32[Array, " embed"]
    layers: list[NnxDense] = cs.field(length="depth", dims={"inputs": "embed", "outputs": "mlp"})
    mean: Float32[Array, " embed"] = cs.field(key="norm/mean", type="BatchStat")


def _rules() -> cs.Lens:
    return cs.derive(Plain, Ruled, rules=RULES)


def _layers() -> cs.Lens:
    return cs.derive(Listed, Scanned)


def _training() -> cs.Lens:
    rules = [
        cs.private("extra", 0.5),
        cs.reset(view="opt_state/2"),
        cs.private("opt_state/3/count", 0),
        cs.private("opt_state/3/grad_acc", 0.0),
        cs.reset(view="opt_state/3/rng_key"),
    ]
    return cs.derive(
        cs.linen.TrainState[LinenNet, TX], cs.nnx.TrainState[NnxNet, OTHER], rules=rules
    )


def _factored() -> cs.Lens:
    sizes = {"embed": 4, "mlp": 6, "depth": 3}
    anew = [cs.reset(view=f"opt_state/0/{part}/adapters") for part in ("v_row", "v_col", "v")]
    return cs.derive(
        cs.linen.BareTrainState[Stacked, FACTORS, sizes],
        cs.nnx.TrainState[Adapted, FACTORS, sizes],
        rules=[cs.private("adapters[]", 0.25), *anew],
    )


def _composed() -> cs.Lens:
    return ~cs.derive(Middle, Oldest, rules=FIRST) >> cs.derive(Middle, Newest, rules=SECOND)


def _padded() -> cs.Lens:
    rules = [cs.pad("table", "vocab", "padded", fill=0.5), cs.pad("codes", "vocab", "padded")]
    return cs.derive(Small, Large, rules=rules)


def _turned() -> cs.Lens:
    return cs.derive(Weight, Turned)


def _wide() -> cs.Lens:
    return cs.derive(Counted, Uncounted)


def _tuned() -> cs.Lens:
    return cs.derive(Filed, Tuned, rules=[cs.apart("head", 0.25)])


def _decoder() -> cs.Lens:
    return cs.derive(cs.linen.Params[LinenDecoder], cs.nnx.Params[NnxDecoder])


FAMILIES: Mapping[str, Callable[[], cs.Lens]] = {
    "rules": functools.cache(_rules),
    "layers": functools.cache(_layers),
    "training": functools.cache(_training),
    "factored": functools.cache(_factored),
    "composed": functools.cache(_composed),
    "padded": functools.cache(_padded),
    "turned": functools.cache(_turned),
    "wide": functools.cache(_wide),
    "tuned": functools.cache(_tuned),
    "decoder": functools.cache(_decoder),
}
"""What makes the lens of each family, by name."""
