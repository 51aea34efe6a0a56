"""ViT: images in patches, with a head for classes, a pooler, or neither.

On disk the layers are called as transformers 4 called them; where transformers 5 has written its own
form, as its modules are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Float32

from ckpt_schema._layouts.fields import field
from ckpt_schema._layouts.schema import Schema
from ckpt_schema.families._centered import BiasedKernel, CenteredNorm, CenteredVector, FullLayer
from ckpt_schema.families._decoders import BiasedLinear
from ckpt_schema.families._family import Family, FileForm, ToldSizes, told_size, width_of

__all__ = [
    "BareFiles",
    "Classifier",
    "Encoder",
    "Files",
    "PooledEncoder",
    "PooledFiles",
    "dims_from",
    "lens_of",
]

_INTO = {"out": "heads*head_dim", "inner": "embed"}
_OUT = {"out": "embed", "inner": "heads*head_dim"}
_UP = {"out": "mlp", "inner": "embed"}
_DOWN = {"out": "embed", "inner": "mlp"}


class OldAttention(Schema):
    """Attention of the files."""

    query: BiasedLinear = field(key="attention/query", dims=_INTO)
    key: BiasedLinear = field(key="attention/key", dims=_INTO)
    value: BiasedLinear = field(key="attention/value", dims=_INTO)
    out: BiasedLinear = field(key="output/dense", dims=_OUT)


class OldLayer(Schema):
    """A layer of the files."""

    attention_norm: CenteredVector = field(key="layernorm_before")
    attention: OldAttention
    mlp_norm: CenteredVector = field(key="layernorm_after")
    up: BiasedLinear = field(key="intermediate/dense", dims=_UP)
    down: BiasedLinear = field(key="output/dense", dims=_DOWN)


class NewAttention(Schema):
    """Attention as transformers 5 has it in memory."""

    query: BiasedLinear = field(key="q_proj", dims=_INTO)
    key: BiasedLinear = field(key="k_proj", dims=_INTO)
    value: BiasedLinear = field(key="v_proj", dims=_INTO)
    out: BiasedLinear = field(key="o_proj", dims=_OUT)


class NewLayer(Schema):
    """A layer as transformers 5 has it in memory."""

    attention_norm: CenteredVector = field(key="layernorm_before")
    attention: NewAttention
    mlp_norm: CenteredVector = field(key="layernorm_after")
    up: BiasedLinear = field(key="mlp/fc1", dims=_UP)
    down: BiasedLinear = field(key="mlp/fc2", dims=_DOWN)


class Patches(Schema):
    """What makes vectors of patches, a convolution of torch."""

    weight: Float32[Array, "embed channels height width"]
    bias: Float32[Array, " embed"]


class FileEnds(Schema):
    """What stands before the layers, and after them."""

    first: Float32[Array, "1 1 embed"] = field(key="vit/embeddings/cls_token")
    positions: Float32[Array, "1 places embed"] = field(key="vit/embeddings/position_embeddings")
    patches: Patches = field(key="vit/embeddings/patch_embeddings/projection")
    norm: CenteredVector = field(key="vit/layernorm")


class FilePooler(Schema):
    """What is made of the first place."""

    pooler: BiasedLinear = field(key="vit/pooler/dense", dims={"out": "pooled", "inner": "embed"})


class FileClasses(Schema):
    """A head for classes."""

    head: BiasedLinear = field(key="classifier", dims={"out": "classes", "inner": "embed"})


class OldLayers(Schema):
    """The layers of the files."""

    layers: list[OldLayer] = field(key="vit/encoder/layer/{i}", length="depth")


class NewLayers(Schema):
    """The layers as transformers 5 has them in memory."""

    layers: list[NewLayer] = field(key="vit/layers/{i}", length="depth")


class BareFiles(FileEnds, OldLayers, joined="."):
    """The files of a model without head and pooler."""


class PooledFiles(FileEnds, OldLayers, FilePooler, joined="."):
    """The files of a model with a pooler."""


class Files(FileEnds, OldLayers, FileClasses, joined="."):
    """The files of a model with a head for classes."""


class NewBareFiles(FileEnds, NewLayers, joined="."):
    """`BareFiles`, as transformers 5 has them in memory."""


class NewPooledFiles(FileEnds, NewLayers, FilePooler, joined="."):
    """`PooledFiles`, as transformers 5 has them in memory."""


class NewFiles(FileEnds, NewLayers, FileClasses, joined="."):
    """`Files`, as transformers 5 has them in memory."""


class PatchKernel(Schema):
    """What makes vectors of patches, ``nnx.Conv``."""

    weight: Float32[Array, "height width channels embed"] = field(key="kernel")
    bias: Float32[Array, " embed"]


class Encoder(Schema):
    """A model without head and pooler."""

    first: Float32[Array, "1 1 embed"]
    positions: Float32[Array, "1 places embed"]
    patches: PatchKernel
    layers: list[FullLayer] = field(length="depth")
    norm: CenteredNorm


class PooledEncoder(Encoder):
    """A model with a pooler."""

    pooler: BiasedKernel = field(dims={"inner": "embed", "out": "pooled"})


class Classifier(Encoder):
    """A model with a head for classes."""

    head: BiasedKernel = field(dims={"inner": "embed", "out": "classes"})


def vit_sizes(told: Mapping[str, Any]) -> ToldSizes:
    """What a config has for each dim."""
    embed, heads = told_size(told, "hidden_size"), told_size(told, "num_attention_heads")
    image, patch = _sides(told.get("image_size")), _sides(told.get("patch_size"))
    labels = told.get("id2label") or "LR"  # of two classes transformers writes nothing
    # A place for each patch, and the first for what is told of the whole image.
    places = None
    if None not in (*image, *patch):
        places = 1 + (image[0] // patch[0]) * (image[1] // patch[1])
    return {
        "embed": embed,
        "heads": heads,
        "head_dim": width_of(embed, heads),
        "mlp": told_size(told, "intermediate_size"),
        "depth": told_size(told, "num_hidden_layers"),
        "channels": told_size(told, "num_channels"),
        "height": ("patch_size", patch[0]),
        "width": ("patch_size", patch[1]),
        "places": ("image_size", places),
        "pooled": told_size(told, "pooler_output_size", "hidden_size"),
        "classes": ("id2label", len(labels)),
    }


def _sides(told: Any) -> tuple[Any, Any]:
    """Height and width of what a config has one number for, or two."""
    sides: list[Any] = told if isinstance(told, list) else [told, told]
    known = len(sides) == 2 and all(type(side) is int and side > 0 for side in sides)
    return (sides[0], sides[1]) if known else (None, None)


_FAMILY = Family(
    "ViT",
    ("vit",),
    (
        FileForm(Files),
        FileForm(PooledFiles),
        FileForm(BareFiles),
        FileForm(NewFiles),
        FileForm(NewPooledFiles),
        FileForm(NewBareFiles),
    ),
    # The files of a model without a head leave the first of these out.
    ("vit.", ""),
    Classifier,
    vit_sizes,
)
lens_of, dims_from = _FAMILY.lens_of, _FAMILY.dims_from
