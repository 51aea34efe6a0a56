"""Whisper: what is heard, and what is written of it. Keys have no biases, and the head is the embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Float32

from ckpt_schema._layouts.fields import field
from ckpt_schema._layouts.schema import Schema
from ckpt_schema.families._centered import (
    BiasedKernel,
    BiasedOutput,
    CenteredNorm,
    CenteredVector,
)
from ckpt_schema.families._decoders import BiasedHeads, BiasedLinear, Embedding, Heads, Linear
from ckpt_schema.families._family import Family, FileForm, ToldSizes, told_size, width_of

__all__ = ["Files", "Transcriber", "dims_from", "lens_of"]

_OWN = ("heads", "head_dim", "mlp", "places", "depth")  # may differ between encoder and decoder
_HEARD = {dim: f"heard_{dim}" for dim in _OWN}


# --- as Hugging Face has it  ---


class FileAttention(Schema):
    """Attention to one's own, or to what was heard."""

    query: BiasedLinear = field(key="q_proj", dims={"out": "heads*head_dim", "inner": "embed"})
    key: Linear = field(key="k_proj", dims={"out": "heads*head_dim", "inner": "embed"})
    value: BiasedLinear = field(key="v_proj", dims={"out": "heads*head_dim", "inner": "embed"})
    out: BiasedLinear = field(key="out_proj", dims={"out": "embed", "inner": "heads*head_dim"})


class FileLayer(Schema):
    """A layer of the encoder."""

    attention_norm: CenteredVector = field(key="self_attn_layer_norm")
    attention: FileAttention = field(key="self_attn")
    mlp_norm: CenteredVector = field(key="final_layer_norm")
    up: BiasedLinear = field(key="fc1", dims={"out": "mlp", "inner": "embed"})
    down: BiasedLinear = field(key="fc2", dims={"out": "embed", "inner": "mlp"})


class FileCrossLayer(FileLayer):
    """A layer of the decoder."""

    cross_norm: CenteredVector = field(key="encoder_attn_layer_norm")
    cross: FileAttention = field(key="encoder_attn")


class Convolution(Schema):
    """A convolution of torch."""

    weight: Float32[Array, "out inner 3"]
    bias: Float32[Array, " out"]


class FileEncoder(Schema):
    """What hears."""

    first: Convolution = field(key="conv1", dims={"out": "embed", "inner": "mels"})
    second: Convolution = field(key="conv2", dims={"out": "embed", "inner": "embed"})
    positions: Linear = field(key="embed_positions", dims={"out": "places", "inner": "embed"})
    layers: list[FileLayer] = field(key="layers/{i}", length="depth")
    norm: CenteredVector = field(key="layer_norm")


class FileDecoder(Schema):
    """What writes."""

    embed: Linear = field(key="embed_tokens", dims={"out": "vocab", "inner": "embed"})
    positions: Linear = field(key="embed_positions", dims={"out": "places", "inner": "embed"})
    layers: list[FileCrossLayer] = field(key="layers/{i}", length="depth")
    norm: CenteredVector = field(key="layer_norm")


class Files(Schema, joined="."):
    """The files."""

    encoder: FileEncoder = field(key="model/encoder", dims=_HEARD)
    decoder: FileDecoder = field(key="model/decoder")


# --- as a model of NNX has it  ---


class Keyless(Schema):
    """Attention whose keys have no biases."""

    query: BiasedHeads
    key: Heads
    value: BiasedHeads
    out: BiasedOutput


class EncoderLayer(Schema):
    """A layer of the encoder."""

    attention_norm: CenteredNorm
    attention: Keyless
    mlp_norm: CenteredNorm
    up: BiasedKernel = field(key="mlp/up", dims={"inner": "embed", "out": "mlp"})
    down: BiasedKernel = field(key="mlp/down", dims={"inner": "mlp", "out": "embed"})


class DecoderLayer(EncoderLayer):
    """A layer of the decoder."""

    cross_norm: CenteredNorm
    cross: Keyless


class Conv(Schema):
    """A convolution of NNX, ``nnx.Conv``."""

    weight: Float32[Array, "3 inner out"] = field(key="kernel")
    bias: Float32[Array, " out"]


class Hearing(Schema):
    """The encoder."""

    first: Conv = field(dims={"inner": "mels", "out": "embed"})
    second: Conv = field(dims={"inner": "embed", "out": "embed"})
    positions: Embedding = field(dims={"vocab": "places"})
    layers: list[EncoderLayer] = field(length="depth")
    norm: CenteredNorm


class Writing(Schema):
    """The decoder, whose head is ``embed.attend`` of Flax."""

    embed: Embedding
    positions: Embedding = field(dims={"vocab": "places"})
    layers: list[DecoderLayer] = field(length="depth")
    norm: CenteredNorm


class Transcriber(Schema):
    """A model."""

    encoder: Hearing = field(dims=_HEARD)
    decoder: Writing


def whisper_sizes(told: Mapping[str, Any]) -> ToldSizes:
    """What a config has for each dim."""
    embed = told_size(told, "d_model")
    sizes = {"embed": embed, "mels": told_size(told, "num_mel_bins")}
    sizes["vocab"] = told_size(told, "vocab_size")
    # The encoder calls its dims otherwise where they may be others: `heard_heads`.
    for called, side, places in (
        (_HEARD, "encoder", "max_source_positions"),
        (dict(zip(_OWN, _OWN, strict=True)), "decoder", "max_target_positions"),
    ):
        heads = told_size(told, f"{side}_attention_heads")
        sizes |= {
            called["heads"]: heads,
            called["head_dim"]: width_of(embed, heads),
            called["mlp"]: told_size(told, f"{side}_ffn_dim"),
            called["places"]: told_size(told, places),
            called["depth"]: told_size(told, f"{side}_layers"),
        }
    return sizes


_FAMILY = Family(
    "Whisper", ("whisper",), (FileForm(Files),), ("model.", ""), Transcriber, whisper_sizes
)
lens_of, dims_from = _FAMILY.lens_of, _FAMILY.dims_from
