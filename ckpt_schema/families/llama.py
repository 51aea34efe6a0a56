"""Llama 2 and 3, and Mistral, which has the same weights.

Both layouts keep the two halves of a rotation in front of one another, as Hugging Face does, and the
query as it is. An NNX model is of this family if its weights are called as `Decoder` says, or with a
rule for each name that differs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from etils import epath
from jaxtyping import Array, Float32

from ckpt_schema import hf, nnx
from ckpt_schema._layouts.fields import field
from ckpt_schema._layouts.schema import Schema
from ckpt_schema._layouts.table import Layout
from ckpt_schema._lens.lens import Lens, derive
from ckpt_schema._lens.rules import Rule, tie
from ckpt_schema._messages.text import shown
from ckpt_schema.errors import CheckpointMismatchError, Mismatch

__all__ = ["Decoder", "Files", "TiedDecoder", "TiedFiles", "dims_from", "lens_of"]


# --- as Hugging Face has it  ---


class Linear(Schema):
    """A linear layer of torch."""

    weight: Float32[Array, "out inner"]


class Vector(Schema):
    """The scale of a norm."""

    weight: Float32[Array, " embed"]


class FileLayer(Schema):
    """A layer of the files."""

    query: Linear = field(key="self_attn/q_proj", dims={"out": "heads*head_dim", "inner": "embed"})
    key: Linear = field(key="self_attn/k_proj", dims={"out": "kv*head_dim", "inner": "embed"})
    value: Linear = field(key="self_attn/v_proj", dims={"out": "kv*head_dim", "inner": "embed"})
    out: Linear = field(key="self_attn/o_proj", dims={"out": "embed", "inner": "heads*head_dim"})
    gate: Linear = field(key="mlp/gate_proj", dims={"out": "mlp", "inner": "embed"})
    up: Linear = field(key="mlp/up_proj", dims={"out": "mlp", "inner": "embed"})
    down: Linear = field(key="mlp/down_proj", dims={"out": "embed", "inner": "mlp"})
    before: Vector = field(key="input_layernorm")
    after: Vector = field(key="post_attention_layernorm")


class TiedFiles(Schema, joined="."):
    """The files of a model whose head is its embedding."""

    embed: Linear = field(key="model/embed_tokens", dims={"out": "vocab", "inner": "embed"})
    layers: list[FileLayer] = field(key="model/layers/{i}", length="depth")
    norm: Vector = field(key="model/norm")


class Files(TiedFiles, joined="."):
    """The files of a model with a head of its own."""

    head: Linear = field(key="lm_head", dims={"out": "vocab", "inner": "embed"})


# --- as a model of NNX has it  ---


class Kernel(Schema):
    """A linear layer of NNX, ``nnx.Linear``."""

    weight: Float32[Array, "inner out"] = field(key="kernel")


class Heads(Schema):
    """A linear layer to heads, ``nnx.LinearGeneral(embed, (heads, head_dim))``."""

    weight: Float32[Array, "embed heads head_dim"] = field(key="kernel")


class Output(Schema):
    """A linear layer from heads, ``nnx.LinearGeneral((heads, head_dim), embed, axis=(-2, -1))``."""

    weight: Float32[Array, "heads head_dim embed"] = field(key="kernel")


class Norm(Schema):
    """A norm, ``nnx.RMSNorm``."""

    weight: Float32[Array, " embed"] = field(key="scale")


class Embedding(Schema):
    """A table of vectors, ``nnx.Embed``."""

    weight: Float32[Array, "vocab embed"] = field(key="embedding")


class ModelLayer(Schema):
    """A layer of the model."""

    query: Heads = field(key="attention/query")
    key: Heads = field(key="attention/key", dims={"heads": "kv"})
    value: Heads = field(key="attention/value", dims={"heads": "kv"})
    out: Output = field(key="attention/out")
    gate: Kernel = field(key="mlp/gate", dims={"inner": "embed", "out": "mlp"})
    up: Kernel = field(key="mlp/up", dims={"inner": "embed", "out": "mlp"})
    down: Kernel = field(key="mlp/down", dims={"inner": "mlp", "out": "embed"})
    before: Norm = field(key="attention_norm")
    after: Norm = field(key="mlp_norm")


class TiedDecoder(Schema):
    """A model whose head is its embedding: ``embed.attend`` of Flax."""

    embed: Embedding
    layers: list[ModelLayer] = field(length="depth")
    norm: Norm


class Decoder(TiedDecoder):
    """A model with a head of its own."""

    head: Kernel = field(dims={"inner": "embed", "out": "vocab"})


# --- between them  ---


def lens_of(path: epath.PathLike, view: type[Schema] | Layout = Decoder) -> Lens:
    """The lens between a folder of Hugging Face and a model of NNX.

    The headers of the folder say its dtypes, and whether it has a head. Where it has none, that of
    the view is the embedding: written to both, and held against it on the way back.

    Args:
        path: A folder, a safetensors file, or the index of several.
        view: `Decoder`, `TiedDecoder`, or a layout of your own with the same logical names.

    Returns:
        The lens, for `ckpt_schema.hf.restore` and `ckpt_schema.hf.save`.

    Raises:
        CheckpointMismatchError: There is no such folder, or its files are damaged.
        DerivationError: The view is no model of this family.

    Example:
        ``model = cs.hf.restore(folder, model, cs.families.llama.lens_of(folder))``
    """
    has_head = "lm_head.weight" in hf.metadata(path)
    files = hf.as_stored(Files if has_head else TiedFiles, path)
    target = nnx.Params[view]
    tied = not has_head and any(row.path[-2:] == ("head", "weight") for row in target.rows)
    rules: list[Rule] = [tie("head/weight", "embed/weight")] if tied else []
    return derive(files, target, rules=rules)


def dims_from(config: Mapping[str, Any] | epath.PathLike) -> dict[str, int]:
    """The sizes that a config of Hugging Face tells, by the names of these layouts.

    Args:
        config: What stands in a ``config.json``, or the path of one, or of its folder.

    Returns:
        The sizes, for `ckpt_schema.abstract`.

    Raises:
        CheckpointMismatchError: With everything that it does not tell.

    Example:
        >>> sizes = {"hidden_size": 8, "intermediate_size": 24, "vocab_size": 32}
        >>> dims_from({**sizes, "num_attention_heads": 4, "num_hidden_layers": 2})
        {'embed': 8, 'heads': 4, 'kv': 4, 'head_dim': 2, 'mlp': 24, 'vocab': 32, 'depth': 2}
    """
    told = _told(config)
    heads, embed = told.get("num_attention_heads"), told.get("hidden_size")
    kv = told.get("num_key_value_heads") or heads  # older configs have no groups
    head_dim = told.get("head_dim")  # nor this, where heads divide the width
    if head_dim is None and isinstance(heads, int) and isinstance(embed, int) and heads > 0:
        head_dim = embed // heads if embed % heads == 0 else None
    found = {
        "embed": ("hidden_size", embed),
        "heads": ("num_attention_heads", heads),
        "kv": ("num_key_value_heads", kv),
        "head_dim": ("head_dim", head_dim),
        "mlp": ("intermediate_size", told.get("intermediate_size")),
        "vocab": ("vocab_size", told.get("vocab_size")),
        "depth": ("num_hidden_layers", told.get("num_hidden_layers")),
    }
    faults = [
        Mismatch(key, "checkpoint", "a size", "none" if size is None else shown(size))
        for key, size in found.values()
        if type(size) is not int or size < 1
    ]
    if faults:
        raise CheckpointMismatchError("the config is none of a Llama", faults)
    return {dim: cast(int, size) for dim, (_, size) in found.items()}


def _told(config: Mapping[str, Any] | epath.PathLike) -> Mapping[str, Any]:
    """What stands in a config.

    Raises:
        CheckpointMismatchError: There is none, or it is no JSON.
    """
    if isinstance(config, Mapping):
        return config
    path = Path(config)
    path = path / "config.json" if path.is_dir() else path
    try:
        told = json.loads(path.read_text())
        if isinstance(told, dict):
            return cast(dict[str, Any], told)
        found = shown(told)
    except (OSError, ValueError) as error:
        found = (str(error) or type(error).__name__).splitlines()[0]
    fault = Mismatch(str(path), "checkpoint", "an object of JSON", found)
    raise CheckpointMismatchError(f"{path} is no config", [fault])
