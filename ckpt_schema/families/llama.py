"""Llama 2 and 3, and Mistral, which has the same weights.

Both layouts keep the two halves of a rotation in front of one another, as Hugging Face does, and the
query as it is. An NNX model is of this family if its weights are called as `Decoder` says, or with a
rule for each name that differs. MaxText keeps the query times the root of the width of its heads, and
turns about the halves of a rotation for models that are called ``llama3.1...``.
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
    FileNorms,
    Gated,
    Head,
    Norms,
    decoder_sizes,
)
from ckpt_schema.families._family import Family, FileForm
from ckpt_schema.families._maxtext import (
    Maxtext,
    MaxtextAttention,
    MaxtextGated,
    MaxtextNorms,
    maxtext_layers,
    query_is_scaled,
)

__all__ = ["Decoder", "Files", "TiedDecoder", "TiedFiles", "dims_from", "lens_of", "maxtext"]


class FileLayer(FileAttention, FileGated, FileNorms):
    """A layer of the files."""


class TiedFiles(FileEnds, joined="."):
    """The files of a model whose head is its embedding."""

    layers: list[FileLayer] = field(key="model/layers/{i}", length="depth")


class Files(TiedFiles, FileHead, joined="."):
    """The files of a model with a head of its own."""


class ModelLayer(Attention, Gated, Norms):
    """A layer of the model."""


class TiedDecoder(Ends):
    """A model whose head is its embedding: ``embed.attend`` of Flax."""

    layers: list[ModelLayer] = field(length="depth")


class Decoder(TiedDecoder, Head):
    """A model with a head of its own."""


class MaxtextLayer(MaxtextAttention, MaxtextGated, MaxtextNorms):
    """A layer of MaxText."""


_FAMILY = Family(
    "Llama",
    ("llama", "mistral"),
    (FileForm(Files), FileForm(TiedFiles)),
    # The files of a model without a head leave the first of these out.
    ("model.", ""),
    Decoder,
    decoder_sizes,
)
lens_of, dims_from = _FAMILY.lens_of, _FAMILY.dims_from
maxtext = Maxtext(_FAMILY, maxtext_layers(MaxtextLayer), query_is_scaled)
