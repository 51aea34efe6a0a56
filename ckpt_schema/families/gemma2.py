"""Gemma 2: four norms a layer, and a head that is the embedding.

The scale of a norm is kept as Hugging Face has it, as what is added to one, and so is the embedding,
which the model multiplies by the root of its width. A model that keeps the sum, or the product, says
so by rules: ``lens_of(folder, rules=[cs.shift("**/*norm/weight", 1.0)])``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_schema._layouts.fields import field
from ckpt_schema._lens.rules import Rule
from ckpt_schema._lens.value_rules import scale, shift
from ckpt_schema._messages.text import shown
from ckpt_schema.errors import CheckpointMismatchError, Mismatch
from ckpt_schema.families._decoders import (
    Attention,
    Ends,
    FileAttention,
    FileEnds,
    FileGated,
    FileHead,
    FileOuterNorms,
    Gated,
    Head,
    OuterNorms,
    decoder_sizes,
)
from ckpt_schema.families._family import Family, FileForm
from ckpt_schema.families._maxtext import (
    Maxtext,
    maxtext_pairs,
)

__all__ = ["Decoder", "Files", "TiedDecoder", "TiedFiles", "dims_from", "lens_of", "maxtext"]


class FileLayer(FileAttention, FileGated, FileOuterNorms):
    """A layer of the files."""


class TiedFiles(FileEnds, joined="."):
    """The files of a model whose head is its embedding."""

    layers: list[FileLayer] = field(key="model/layers/{i}", length="depth")


class Files(TiedFiles, FileHead, joined="."):
    """The files of a model with a head of its own."""


class ModelLayer(Attention, Gated, OuterNorms):
    """A layer of the model."""


class TiedDecoder(Ends):
    """A model whose head is its embedding: ``embed.attend`` of Flax."""

    layers: list[ModelLayer] = field(length="depth")


class Decoder(TiedDecoder, Head):
    """A model with a head of its own."""


def _pairs(sizes: Mapping[str, int]) -> Mapping[str, int]:
    """How many pairs there are.

    Raises:
        CheckpointMismatchError: One layer is left.
    """
    # MaxText scans pairs, and has no layer beside them.
    if sizes["depth"] % 2:
        expected = "an even number of layers, of which MaxText makes pairs"
        fault = Mismatch("num_hidden_layers", "checkpoint", expected, shown(sizes["depth"]))
        raise CheckpointMismatchError("MaxText has no place for the last layer", [fault])
    return {"pairs": sizes["depth"] // 2}


class TiedPairedFiles(FileEnds, joined="."):
    """The same files, as pairs of a layer that attends to a window and of one that attends to all."""

    local: list[FileLayer] = field(key="model/layers/{2*i}", length="pairs")
    full: list[FileLayer] = field(key="model/layers/{2*i+1}", length="pairs")


class PairedFiles(TiedPairedFiles, FileHead, joined="."):
    """The same with a head of its own."""


def _otherwise(told: Mapping[str, Any]) -> tuple[Rule, ...]:
    """Queries and the embedding times what a model multiplies by, and norms as sums with one."""
    # Hugging Face scales queries each time by a number of its own, which is not the width of a head in all sizes.
    number = told.get("query_pre_attn_scalar")
    if not isinstance(number, (int, float)) or number <= 0:
        fault = Mismatch("query_pre_attn_scalar", "checkpoint", "a number", shown(number))
        raise CheckpointMismatchError("the config does not tell how queries are scaled", [fault])
    return (
        shift("**/*norm/weight", 1.0),
        scale("**/query/weight", number**-0.5),
        scale("embed/weight", "embed ** 0.5"),
    )


_FAMILY = Family(
    "Gemma 2",
    ("gemma2",),
    (FileForm(Files), FileForm(TiedFiles)),
    # The files of a model without a head leave the first of these out.
    ("model.", ""),
    TiedDecoder,
    decoder_sizes,
)
lens_of, dims_from = _FAMILY.lens_of, _FAMILY.dims_from
maxtext = Maxtext(
    _FAMILY, maxtext_pairs(), _otherwise, _pairs, (FileForm(PairedFiles), FileForm(TiedPairedFiles))
)
