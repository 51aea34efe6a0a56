"""GPT-2: query, key and value in one weight, linear layers the other way round, places that are learned.

The masks that the hub's own files hold are no weights. They are not read, and are written where a
save is given them: ``onto=cs.hf.load(folder)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Float32

from ckpt_schema._layouts.fields import field
from ckpt_schema._layouts.schema import Schema
from ckpt_schema._lens.rules import fuse, own, private
from ckpt_schema.families._centered import CenteredNorm, CenteredVector, FullLayer
from ckpt_schema.families._decoders import Embedding, FileHead, Head, Linear
from ckpt_schema.families._family import Family, FileForm, ToldSizes, told_size, width_of

__all__ = ["Decoder", "Files", "TiedDecoder", "TiedFiles", "dims_from", "lens_of"]


class Turned(Schema):
    """A linear layer of GPT-2, which has it the other way round than torch does."""

    weight: Float32[Array, "inner out"]
    bias: Float32[Array, " out"]


class FileAttention(Schema):
    """What goes into attention, all in one, and the mask that older files keep."""

    qkv: Turned = field(key="c_attn", dims={"inner": "embed", "out": "3*heads*head_dim"})
    out: Turned = field(key="c_proj", dims={"inner": "heads*head_dim", "out": "embed"})
    # Named `bias` on disk, beside no weight: it is the mask.
    mask: Float32[Array, "1 1 places places"] = field(key="bias", optional=True)
    masked: Float32[Array, ""] = field(key="masked_bias", optional=True)


class FileLayer(Schema):
    """A layer of the files."""

    attention_norm: CenteredVector = field(key="ln_1")
    attention: FileAttention = field(key="attn")
    mlp_norm: CenteredVector = field(key="ln_2")
    up: Turned = field(key="mlp/c_fc", dims={"inner": "embed", "out": "mlp"})
    down: Turned = field(key="mlp/c_proj", dims={"inner": "mlp", "out": "embed"})


class TiedFiles(Schema, joined="."):
    """The files of a model whose head is its embedding."""

    embed: Linear = field(key="transformer/wte", dims={"out": "vocab", "inner": "embed"})
    positions: Linear = field(key="transformer/wpe", dims={"out": "places", "inner": "embed"})
    layers: list[FileLayer] = field(key="transformer/h/{i}", length="depth")
    norm: CenteredVector = field(key="transformer/ln_f")


class Files(TiedFiles, FileHead, joined="."):
    """The files of a model with a head of its own."""


class TiedDecoder(Schema):
    """A model whose head is its embedding: ``embed.attend`` of Flax."""

    embed: Embedding
    positions: Embedding = field(dims={"vocab": "places"})
    layers: list[FullLayer] = field(length="depth")
    norm: CenteredNorm


class Decoder(TiedDecoder, Head):
    """A model with a head of its own."""


def gpt2_sizes(told: Mapping[str, Any]) -> ToldSizes:
    """What a config has for each dim."""
    embed, heads = told_size(told, "n_embd"), told_size(told, "n_head")
    mlp = told_size(told, "n_inner")
    if mlp[1] is None and type(embed[1]) is int:
        mlp = ("n_inner", 4 * embed[1])  # unless it is given
    return {
        "embed": embed,
        "heads": heads,
        "head_dim": width_of(embed, heads),
        "mlp": mlp,
        "vocab": told_size(told, "vocab_size"),
        "places": told_size(told, "n_positions"),
        "depth": told_size(told, "n_layer"),
    }


_PARTS = [f"layers[]/attention/{name}" for name in ("query", "key", "value")]
_RULES = (
    fuse("layers[]/attention/qkv", _PARTS),
    # The masks go back as they were read; no model has them.
    private("layers[]/attention/mask", own),
    private("layers[]/attention/masked", own),
)
_FAMILY = Family(
    "GPT-2",
    ("gpt2",),
    (FileForm(Files, _RULES), FileForm(TiedFiles, _RULES)),
    # The files of a model without a head leave the first of these out.
    ("transformer.", ""),
    TiedDecoder,
    gpt2_sizes,
)
lens_of, dims_from = _FAMILY.lens_of, _FAMILY.dims_from
