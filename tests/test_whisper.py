"""An encoder-decoder, tested as a user of the library tests it, on one page."""

import functools
from typing import Any

from jaxtyping import Array, Float32
from support.profiles import THOROUGH, thorough_only
from whisper_models import linen_logits, linen_train_state, nnx_logits, nnx_training, tx

import ckpt_schema as cs
from ckpt_schema.testing import LensLaws


class Norm(cs.Schema):
    scale: Float32[Array, " embed"]
    bias: Float32[Array, " embed"]


class Conv(cs.Schema):
    kernel: Float32[Array, "width inputs embed"]
    bias: Float32[Array, " embed"]


class Heads(cs.Schema):
    kernel: Float32[Array, "embed heads head_dim"]
    bias: Float32[Array, "heads head_dim"]


class Attention(cs.Schema):
    query: Heads
    key: Heads
    value: Heads
    out: Conv = cs.field(dims={"width": "heads", "inputs": "head_dim"})


class Mlp(cs.Schema):
    up: Float32[Array, "embed mlp"] = cs.field(key="up/kernel")
    up_bias: Float32[Array, " mlp"] = cs.field(key="up/bias")
    down: Float32[Array, "mlp embed"] = cs.field(key="down/kernel")
    down_bias: Float32[Array, " embed"] = cs.field(key="down/bias")


class Encoder(cs.Schema):
    attn_norm: Norm
    attn: Attention
    mlp_norm: Norm
    mlp: Mlp


class Decoder(Encoder):
    cross_norm: Norm
    cross: Attention


class Linen(cs.Schema):
    conv1: Conv = cs.field(dims={"inputs": "mels"})
    conv2: Conv = cs.field(dims={"inputs": "embed"})
    encoder: Encoder = cs.field(scan="encoders", axis=0)
    ln_post: Norm
    embed: Float32[Array, "vocab embed"] = cs.field(key="embed/embedding")
    positions: Float32[Array, "time embed"]
    decoder: list[Decoder] = cs.field(key="decoder_{i}", length="decoders")
    ln_out: Norm


class NnxAttention(Attention):
    rngs: cs.Stream["fry"] = cs.field(default=cs.fresh_key(0), tag="default")


class NnxMlp(Mlp):
    dropout: cs.Stream["fry"] = cs.field(key="dropout/rngs", default=cs.fresh_key(0), tag="default")


class NnxEncoder(Encoder):
    attn: NnxAttention
    mlp: NnxMlp


class NnxDecoder(NnxEncoder):
    cross_norm: Norm
    cross: NnxAttention


class Nnx(Linen):
    encoder: list[NnxEncoder] = cs.field(length="encoders")
    decoder: list[NnxDecoder] = cs.field(length="decoders")


lens = cs.derive(cs.linen.TrainState[Linen, tx], cs.nnx.TrainState[Nnx, tx])


@functools.cache
def states() -> tuple[Any, Any]:  # made when a test runs, not when it is imported
    return linen_train_state(), nnx_training()


class TestWhisper(LensLaws):
    lens = lens
    max_examples = None if THOROUGH else 2
    source, view = property(lambda self: states()[0]), property(lambda self: states()[1])
    source_outputs, view_outputs = staticmethod(linen_logits), staticmethod(nnx_logits)
    test_values = thorough_only(LensLaws.test_values)
    test_sharding = thorough_only(LensLaws.test_sharding)
    test_restore = thorough_only(LensLaws.test_restore)
    test_save_restore = thorough_only(LensLaws.test_save_restore)
