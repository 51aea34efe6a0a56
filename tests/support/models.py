"""A decoder as Linen scans it, as NNX unrolls it and as NNX scans it: the three layouts that the laws are tried on.

Between them: a fused and transposed projection, split and merged heads, streams of all three key implementations, keys that are
unstacked, a step that is cast, a private leaf on either side, and an AdamW in a chain with clipping and a schedule.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import optax
from jaxtyping import Array, BFloat16, Float32

import ckpt_schema as cs
from ckpt_schema.demo import schemas
from ckpt_schema.demo.training import make_optimizer

TX = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.cosine_decay_schedule(1e-3, 10)))
SIZES = (
    {"vocab": 16, "embed": 8, "mlp": 8, "heads": 4, "head_dim": 2, "depth": 2, "stats": 8},
    {"vocab": 5, "embed": 3, "mlp": 4, "heads": 1, "head_dim": 2, "depth": 3, "stats": 0},
)
DEMO_SIZES = (
    {"vocab": 16, "embed": 8, "mlp": 16, "qkv": 24, "mixed": 8, "length": 4, "depth": 2},
    {"vocab": 5, "embed": 3, "mlp": 4, "qkv": 9, "mixed": 3, "length": 2, "depth": 3},
)


class Norm(cs.Schema):
    scale: Float32[Array, " embed"]


class Mlp(cs.Schema):
    wi: Float32[Array, "embed mlp"]
    wo: Float32[Array, "mlp embed"]


class LinenBlock(cs.Schema):
    norm: Norm = cs.field(key="LayerNorm_0")
    qkv: BFloat16[Array, "embed 3*heads*head_dim"]
    out: Float32[Array, "heads*head_dim embed"]
    mlp: Mlp = cs.field(key="Mlp_0")
    noise: cs.Key["rbg"] = cs.field(axis=0, collection="batch_stats")


class LinenDecoder(cs.Schema):
    embedding: Float32[Array, "vocab embed"] = cs.field(key="wte/embedding")
    layers: LinenBlock = cs.field(scan="depth", axis=1)
    head: Float32[Array, "vocab embed"] = cs.field(key="lm_head/kernel")
    mean: Float32[Array, " stats"] = cs.field(collection="batch_stats")
    calibration: Float32[Array, "stats 2"] = cs.field(collection="batch_stats", default=1.5)


class NnxBlock(cs.Schema):
    norm: Norm
    qkv: BFloat16[Array, "3 heads head_dim embed"]
    out: Float32[Array, "heads head_dim embed"] = cs.field(key="out/kernel")
    mlp: Mlp
    noise: cs.Key["rbg"]
    dropout: cs.Stream["urbg"] = cs.field(key="dropout/rngs", default=cs.fresh_key(0))
    attention: cs.Stream["rbg"] = cs.field(key="attention/rngs", default=cs.fresh_key(1))


class NnxDecoder(cs.Schema):
    embedding: Float32[Array, "vocab embed"] = cs.field(key="embed/embedding")
    layers: list[NnxBlock] = cs.field(key="layers/{i}", length="depth")
    head: Float32[Array, "embed vocab"] = cs.field(key="head/kernel")
    mean: Float32[Array, " stats"] = cs.field(key="bn/mean", type="BatchStat")
    rngs: cs.Stream["fry"] = cs.field(key="rngs/default", default=cs.fresh_key(2))


class StackedBlock(cs.Schema):
    norm: Norm
    qkv: BFloat16[Array, "embed 3 heads*head_dim"]
    out: Float32[Array, "embed head_dim*heads"]
    mlp: Mlp
    noise: cs.Key["rbg"]
    dropout: cs.Stream["urbg"] = cs.field(default=cs.fresh_key(3))


class StackedDecoder(cs.Schema):
    embedding: Float32[Array, "embed vocab"]
    layers: StackedBlock = cs.field(key="blocks", scan="depth", axis=0)
    head: Float32[Array, "embed vocab"]
    mean: Float32[Array, " stats"] = cs.field(type="BatchStat")
    temperature: Float32[Array, ""] = cs.field(default=0.5, type="BatchStat")


@functools.cache
def to_nnx() -> cs.Lens:
    """Linen's layout to unrolled NNX."""
    return cs.derive(cs.linen.TrainState[LinenDecoder, TX], cs.nnx.TrainState[NnxDecoder, TX])


@functools.cache
def to_stacked() -> cs.Lens:
    """Unrolled NNX to stacked NNX."""
    edits = [cs.private("layers[]/attention", cs.fresh_key(1)), cs.private("rngs", cs.fresh_key(2))]
    return cs.derive(
        cs.nnx.TrainState[NnxDecoder, TX], cs.nnx.TrainState[StackedDecoder, TX], rules=edits
    )


@dataclasses.dataclass(frozen=True)
class Subject:
    """A lens that the laws are tried on.

    Attributes:
        name: For the reports of tests.
        lens: Between Linen's and an NNX layout.
        onward: From there to another NNX layout.
        sizes: Sizes of all dims, in elements: some that divide well, and odd ones.
    """

    name: str
    lens: cs.Lens
    onward: cs.Lens
    sizes: tuple[Mapping[str, int], ...]

    def __repr__(self) -> str:
        """The name."""
        return self.name


@functools.cache
def subjects() -> tuple[Subject, ...]:
    """The decoder above, and the layouts of the demo: scanned to unrolled, and scanned to scanned."""
    tx = make_optimizer()
    linen = cs.linen.TrainState[schemas.LinenScanned, tx]
    unrolled, scanned = (
        cs.nnx.TrainState[schemas.NnxUnrolled, tx],
        cs.nnx.TrainState[schemas.NnxScanned, tx],
    )
    return (
        Subject("decoder", to_nnx(), to_stacked(), SIZES),
        Subject(
            "demo, unrolled", cs.derive(linen, unrolled), cs.derive(unrolled, scanned), DEMO_SIZES
        ),
        Subject(
            "demo, scanned", cs.derive(linen, scanned), cs.derive(scanned, unrolled), DEMO_SIZES
        ),
    )
