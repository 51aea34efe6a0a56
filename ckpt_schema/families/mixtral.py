"""Mixtral: Mistral with experts.

On disk each expert has names of its own; where transformers 5 has written its own form, they are
stacked.
"""

from __future__ import annotations

from jaxtyping import Array, Float32

from ckpt_schema._layouts.fields import field
from ckpt_schema._layouts.schema import Schema
from ckpt_schema.families._decoders import (
    STACKED_EXPERTS,
    Attention,
    Ends,
    Experts,
    FileAttention,
    FileEnds,
    FileHead,
    FileNorms,
    FileStackedExperts,
    Head,
    Kernel,
    Linear,
    Norms,
    expert_sizes,
)
from ckpt_schema.families._family import Family, FileForm
from ckpt_schema.families._maxtext import (
    Maxtext,
    MaxtextAttention,
    MaxtextExpert,
    MaxtextNorms,
    maxtext_layers,
    query_is_scaled,
)

__all__ = ["Decoder", "Files", "TiedDecoder", "TiedFiles", "dims_from", "lens_of", "maxtext"]


class FileExpert(Schema):
    """An expert of the files."""

    gate: Float32[Array, "mlp embed"] = field(key="w1/weight")
    up: Float32[Array, "mlp embed"] = field(key="w3/weight")
    down: Float32[Array, "embed mlp"] = field(key="w2/weight")


class FileExperts(Schema):
    """Experts, and what chooses among them."""

    router: Linear = field(key="block_sparse_moe/gate", dims={"out": "experts", "inner": "embed"})
    experts: list[FileExpert] = field(key="block_sparse_moe/experts/{i}", length="experts")


class FileLayer(FileAttention, FileExperts, FileNorms):
    """A layer of the files."""


class StackedFileLayer(FileAttention, FileStackedExperts, FileNorms):
    """A layer of files in which experts are stacked."""


class TiedFiles(FileEnds, joined="."):
    """The files of a model whose head is its embedding."""

    layers: list[FileLayer] = field(key="model/layers/{i}", length="depth")


class Files(TiedFiles, FileHead, joined="."):
    """The files of a model with a head of its own."""


class TiedStackedFiles(FileEnds, joined="."):
    """The same where experts are stacked."""

    layers: list[StackedFileLayer] = field(key="model/layers/{i}", length="depth")


class StackedFiles(TiedStackedFiles, FileHead, joined="."):
    """The same with a head of its own."""


class ModelLayer(Attention, Experts, Norms):
    """A layer of the model."""


class TiedDecoder(Ends):
    """A model whose head is its embedding: ``embed.attend`` of Flax."""

    layers: list[ModelLayer] = field(length="depth")


class Decoder(TiedDecoder, Head):
    """A model with a head of its own."""


class MaxtextExperts(Schema):
    """Experts, and what chooses among them."""

    router: Kernel = field(key="MoeBlock_0/gate", dims={"inner": "embed", "out": "experts"})
    experts: MaxtextExpert = field(key="MoeBlock_0", scan="experts")


class MaxtextLayer(MaxtextAttention, MaxtextExperts, MaxtextNorms):
    """A layer of MaxText."""


_FAMILY = Family(
    "Mixtral",
    ("mixtral",),
    (
        FileForm(Files),
        FileForm(TiedFiles),
        FileForm(StackedFiles, STACKED_EXPERTS),
        FileForm(TiedStackedFiles, STACKED_EXPERTS),
    ),
    # The files of a model without a head leave the first of these out.
    ("model.", ""),
    Decoder,
    expert_sizes,
)
lens_of, dims_from = _FAMILY.lens_of, _FAMILY.dims_from
maxtext = Maxtext(_FAMILY, maxtext_layers(MaxtextLayer), query_is_scaled)
