"""Qwen 3 with experts.

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
    FileHeadNorms,
    FileNorms,
    FileStackedExperts,
    Head,
    HeadNorms,
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
    MaxtextHeadNorms,
    MaxtextNorms,
    maxtext_layers,
)

__all__ = ["Decoder", "Files", "TiedDecoder", "TiedFiles", "dims_from", "lens_of", "maxtext"]


class FileExpert(Schema):
    """An expert of the files."""

    gate: Float32[Array, "mlp embed"] = field(key="gate_proj/weight")
    up: Float32[Array, "mlp embed"] = field(key="up_proj/weight")
    down: Float32[Array, "embed mlp"] = field(key="down_proj/weight")


class FileExperts(Schema):
    """Experts, and what chooses among them."""

    router: Linear = field(key="mlp/gate", dims={"out": "experts", "inner": "embed"})
    experts: list[FileExpert] = field(key="mlp/experts/{i}", length="experts")


class FileLayer(FileAttention, FileHeadNorms, FileExperts, FileNorms):
    """A layer of the files."""


class StackedFileLayer(FileAttention, FileHeadNorms, FileStackedExperts, FileNorms):
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


class ModelLayer(Attention, HeadNorms, Experts, Norms):
    """A layer of the model."""


class TiedDecoder(Ends):
    """A model whose head is its embedding: ``embed.attend`` of Flax."""

    layers: list[ModelLayer] = field(length="depth")


class Decoder(TiedDecoder, Head):
    """A model with a head of its own."""


class MaxtextExperts(Schema):
    """Experts, and what chooses among them."""

    router: Kernel = field(key="moe_block/gate", dims={"inner": "embed", "out": "experts"})
    experts: MaxtextExpert = field(key="moe_block", scan="experts")


class MaxtextLayer(MaxtextAttention, MaxtextHeadNorms, MaxtextExperts, MaxtextNorms):
    """A layer of MaxText."""


_FAMILY = Family(
    "Qwen 3 with experts",
    ("qwen3_moe",),
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
maxtext = Maxtext(_FAMILY, maxtext_layers(MaxtextLayer))
