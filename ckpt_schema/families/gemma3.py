"""Gemma 3, the part that reads: Gemma 2 with norms of queries and keys.

The scale of a norm is kept as Hugging Face has it, as what is added to one, and so is the embedding,
which the model multiplies by the root of its width. A model that keeps the sum, or the product, says
so by rules: ``lens_of(folder, rules=[cs.shift("**/*norm/weight", 1.0)])``.
"""

from __future__ import annotations

from ckpt_schema._layouts.fields import field
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

__all__ = ["Decoder", "Files", "TiedDecoder", "TiedFiles", "dims_from", "lens_of"]


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


_FAMILY = Family(
    "Gemma 3",
    ("gemma3_text", "gemma3"),
    (FileForm(Files), FileForm(TiedFiles)),
    ("model.", "", "language_model.model.", "model.language_model."),
    TiedDecoder,
    decoder_sizes,
)
lens_of, dims_from = _FAMILY.lens_of, _FAMILY.dims_from
