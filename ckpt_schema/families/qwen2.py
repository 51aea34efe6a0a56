"""Qwen 2 and 2.5: Llama with biases of queries, keys and values."""

from __future__ import annotations

from ckpt_schema._layouts.fields import field
from ckpt_schema.families._decoders import (
    BiasedAttention,
    Ends,
    FileBiasedAttention,
    FileEnds,
    FileGated,
    FileHead,
    FileNorms,
    Gated,
    Head,
    Norms,
    decoder_sizes,
)
from ckpt_schema.families._family import Family, FileForm
from ckpt_schema.families._maxtext import (
    Maxtext,
    MaxtextBiasedAttention,
    MaxtextGated,
    MaxtextNorms,
    maxtext_layers,
)

__all__ = ["Decoder", "Files", "TiedDecoder", "TiedFiles", "dims_from", "lens_of", "maxtext"]


class FileLayer(FileBiasedAttention, FileGated, FileNorms):
    """A layer of the files."""


class TiedFiles(FileEnds, joined="."):
    """The files of a model whose head is its embedding."""

    layers: list[FileLayer] = field(key="model/layers/{i}", length="depth")


class Files(TiedFiles, FileHead, joined="."):
    """The files of a model with a head of its own."""


class ModelLayer(BiasedAttention, Gated, Norms):
    """A layer of the model."""


class TiedDecoder(Ends):
    """A model whose head is its embedding: ``embed.attend`` of Flax."""

    layers: list[ModelLayer] = field(length="depth")


class Decoder(TiedDecoder, Head):
    """A model with a head of its own."""


class MaxtextLayer(MaxtextBiasedAttention, MaxtextGated, MaxtextNorms):
    """A layer of MaxText."""


_FAMILY = Family(
    "Qwen 2",
    ("qwen2",),
    (FileForm(Files), FileForm(TiedFiles)),
    # The files of a model without a head leave the first of these out.
    ("model.", ""),
    Decoder,
    decoder_sizes,
)
lens_of, dims_from = _FAMILY.lens_of, _FAMILY.dims_from
maxtext = Maxtext(_FAMILY, maxtext_layers(MaxtextLayer))
