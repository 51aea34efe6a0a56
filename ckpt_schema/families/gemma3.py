"""Gemma 3, the part that reads: Gemma 2 with norms of queries and keys.

The scale of a norm is kept as Hugging Face has it, as what is added to one, and so is the embedding,
which the model multiplies by the root of its width. A model that keeps the sum, or the product, says
so by rules: ``lens_of(folder, rules=[cs.shift("**/*norm/weight", 1.0)])``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from ckpt_schema._layouts.fields import field, series
from ckpt_schema._layouts.schema import Schema
from ckpt_schema._lens.rules import Rule
from ckpt_schema._lens.value_rules import scale, shift
from ckpt_schema.families._decoders import (
    Attention,
    Ends,
    FileAttention,
    FileEnds,
    FileGated,
    FileHead,
    FileHeadNorms,
    FileOuterNorms,
    Gated,
    Head,
    HeadNorms,
    OuterNorms,
    decoder_sizes,
)
from ckpt_schema.families._family import Family, FileForm
from ckpt_schema.families._maxtext import (
    Maxtext,
    MaxtextAttention,
    MaxtextGated,
    MaxtextHeadNorms,
    MaxtextOuterNorms,
    maxtext_layers,
)

__all__ = ["Decoder", "Files", "TiedDecoder", "TiedFiles", "dims_from", "lens_of", "maxtext"]


class FileLayer(FileAttention, FileHeadNorms, FileGated, FileOuterNorms):
    """A layer of the files."""


class TiedFiles(FileEnds, joined="."):
    """The files of a model whose head is its embedding."""

    layers: list[FileLayer] = field(key="model/layers/{i}", length="depth")


class Files(TiedFiles, FileHead, joined="."):
    """The files of a model with a head of its own."""


class ModelLayer(Attention, HeadNorms, Gated, OuterNorms):
    """A layer of the model."""


class TiedDecoder(Ends):
    """A model whose head is its embedding: ``embed.attend`` of Flax."""

    layers: list[ModelLayer] = field(length="depth")


class Decoder(TiedDecoder, Head):
    """A model with a head of its own."""


# Of 26 layers, four blocks and two that are left.
_DEPTH = "6*blocks+rest"


class TiedBlockFiles(FileEnds, joined="."):
    """The same files, layers counted as MaxText scans them."""

    layers: list[FileLayer] = field(key="model/layers/{i}", length=_DEPTH)


class BlockFiles(TiedBlockFiles, FileHead, joined="."):
    """The same with a head of its own."""


class MaxtextLayer(MaxtextAttention, MaxtextHeadNorms, MaxtextGated, MaxtextOuterNorms):
    """A layer of MaxText."""


class MaxtextBlock(Schema):
    """Six layers, of which the last attends to all."""

    layers: list[MaxtextLayer] = field(key="layers_{i}", length=6)


class MaxtextBlocks(Schema):
    """Blocks that are scanned, and what is left, which is not."""

    blocks: MaxtextBlock = field(key="decoder/layers", scan="blocks", axis=1)
    rest: list[MaxtextLayer] = field(key="decoder/layers_remainder/layers_{i}", length="rest")
    layers = series("blocks[]/layers[]", "rest[]")


def _blocks(sizes: Mapping[str, int]) -> Mapping[str, int]:
    """How many blocks there are, and how many layers are left."""
    return {"blocks": sizes["depth"] // 6, "rest": sizes["depth"] % 6}


def _otherwise(told: Mapping[str, Any]) -> tuple[Rule, ...]:
    """Norms as sums with one; the embedding times a root that is rounded, in any precision of weights."""
    # The model rounds the root to bfloat16 before it multiplies.
    root = float(jnp.bfloat16(told["hidden_size"] ** 0.5))
    return shift("**/*norm/weight", 1.0), scale("embed/weight", root)


_FAMILY = Family(
    "Gemma 3",
    ("gemma3_text", "gemma3"),
    (FileForm(Files), FileForm(TiedFiles)),
    # Files of a model without a head have no prefix, those of one that sees one of its own.
    ("model.", "", "language_model.model.", "model.language_model."),
    TiedDecoder,
    decoder_sizes,
)
lens_of, dims_from = _FAMILY.lens_of, _FAMILY.dims_from
maxtext = Maxtext(
    _FAMILY,
    (MaxtextBlocks, maxtext_layers(MaxtextLayer, _DEPTH)[1]),
    _otherwise,
    _blocks,
    (FileForm(BlockFiles), FileForm(TiedBlockFiles)),
)
