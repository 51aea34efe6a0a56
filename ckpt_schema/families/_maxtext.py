"""Families as MaxText has them: the parts of its decoders, scanned and unrolled, and the lens to them.

The parts have the logical names that the other layouts of a family have. What MaxText keeps otherwise,
such as a query that is scaled, each family says by rules. Layers are scanned on axis 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Literal

from etils import epath
from jaxtyping import Array, Float32

from ckpt_schema import linen, nnx
from ckpt_schema._layouts.fields import field
from ckpt_schema._layouts.precision import with_dtypes
from ckpt_schema._layouts.schema import Schema, layout
from ckpt_schema._layouts.table import Layout, Row
from ckpt_schema._lens.axis_rules import pad
from ckpt_schema._lens.codecs import holds
from ckpt_schema._lens.derived_lens import derive
from ckpt_schema._lens.lens import Lens
from ckpt_schema._lens.rules import Rule
from ckpt_schema._lens.value_rules import cast, scale
from ckpt_schema.families._decoders import BiasedHeads, Embedding, Heads, Kernel, Norm, Output
from ckpt_schema.families._family import Family, FileForm, config_of

__all__ = [
    "Maxtext",
    "MaxtextAttention",
    "MaxtextBiasedAttention",
    "MaxtextEnds",
    "MaxtextExpert",
    "MaxtextGated",
    "MaxtextHead",
    "MaxtextHeadNorms",
    "MaxtextNorms",
    "MaxtextOuterNorms",
    "maxtext_layers",
    "maxtext_pairs",
    "query_is_scaled",
]


class MaxtextEnds(Schema):
    """What stands before the layers, and after them."""

    embed: Embedding = field(key="token_embedder")
    norm: Norm = field(key="decoder/decoder_norm")


class MaxtextHead(Schema):
    """A head of its own, where ``logits_via_embedding`` does not hold."""

    head: Kernel = field(key="decoder/logits_dense", dims={"inner": "embed", "out": "vocab"})


class MaxtextAttention(Schema):
    """Queries of all heads, keys and values of groups of them."""

    query: Heads = field(key="self_attention/query")
    key: Heads = field(key="self_attention/key", dims={"heads": "kv"})
    value: Heads = field(key="self_attention/value", dims={"heads": "kv"})
    out: Output = field(key="self_attention/out")


class MaxtextBiasedAttention(Schema):
    """The same with biases, but for the output."""

    query: BiasedHeads = field(key="self_attention/query")
    key: BiasedHeads = field(key="self_attention/key", dims={"heads": "kv"})
    value: BiasedHeads = field(key="self_attention/value", dims={"heads": "kv"})
    out: Output = field(key="self_attention/out")


class MaxtextHeadNorms(Schema):
    """The norms of queries and keys, head by head."""

    query_norm: Norm = field(key="self_attention/query_norm", dims={"embed": "head_dim"})
    key_norm: Norm = field(key="self_attention/key_norm", dims={"embed": "head_dim"})


class MaxtextGated(Schema):
    """A gated MLP."""

    gate: Kernel = field(key="mlp/wi_0", dims={"inner": "embed", "out": "mlp"})
    up: Kernel = field(key="mlp/wi_1", dims={"inner": "embed", "out": "mlp"})
    down: Kernel = field(key="mlp/wo", dims={"inner": "mlp", "out": "embed"})


class MaxtextExpert(Schema):
    """One of experts that are stacked, on axis 0 however layers are."""

    gate: Float32[Array, "embed mlp"] = field(key="wi_0")
    up: Float32[Array, "embed mlp"] = field(key="wi_1")
    down: Float32[Array, "mlp embed"] = field(key="wo")


class MaxtextNorms(Schema):
    """The norms of what goes into attention and MLP."""

    attention_norm: Norm = field(key="pre_self_attention_layer_norm")
    mlp_norm: Norm = field(key="post_self_attention_layer_norm")


class MaxtextOuterNorms(Schema):
    """The norms of what goes into attention and MLP, and of what comes out of them."""

    attention_norm: Norm = field(key="pre_self_attention_norm")
    attention_out_norm: Norm = field(key="post_self_attention_norm")
    mlp_norm: Norm = field(key="pre_ffw_norm")
    mlp_out_norm: Norm = field(key="post_ffw_norm")


def maxtext_layers(layer: type[Schema], depth: str = "depth") -> tuple[type[Schema], type[Schema]]:
    """Layers of one kind, scanned and unrolled."""

    # Axis 1 is the usual `param_scan_axis` of MaxText.
    class Scanned(Schema):
        layers: layer = field(key="decoder/layers", scan=depth, axis=1)  # pyright: ignore[reportInvalidTypeForm]

    class Unrolled(Schema):
        layers: list[layer] = field(key="decoder/layers_{i}", length=depth)  # pyright: ignore[reportInvalidTypeForm]

    return Scanned, Unrolled


def maxtext_pairs() -> tuple[type[Schema], type[Schema]]:
    """Layers of Gemma 2, of which MaxText makes one of two: scanned and unrolled."""
    near, far = _half_of_pair("local"), _half_of_pair("global")

    # Both halves are in one node, where each leaf has the kind of its attention in its name.
    class Scanned(Schema):
        local: near = field(key="decoder/layers", scan="pairs", axis=1)  # pyright: ignore[reportInvalidTypeForm]
        full: far = field(key="decoder/layers", scan="pairs", axis=1)  # pyright: ignore[reportInvalidTypeForm]

    class Unrolled(Schema):
        local: list[near] = field(key="decoder/layers_{i}", length="pairs")  # pyright: ignore[reportInvalidTypeForm]
        full: list[far] = field(key="decoder/layers_{i}", length="pairs")  # pyright: ignore[reportInvalidTypeForm]

    return Scanned, Unrolled


def _half_of_pair(kind: str) -> type[Schema]:
    """One of the two, whose every part is called by the kind of its attention."""
    to_mlp, to_embed = {"inner": "embed", "out": "mlp"}, {"inner": "mlp", "out": "embed"}

    class Half(Schema):
        query: Heads = field(key=f"self_attention_{kind}/query")
        key: Heads = field(key=f"self_attention_{kind}/key", dims={"heads": "kv"})
        value: Heads = field(key=f"self_attention_{kind}/value", dims={"heads": "kv"})
        out: Output = field(key=f"self_attention_{kind}/out")
        gate: Kernel = field(key=f"mlp_{kind}/wi_0", dims=to_mlp)
        up: Kernel = field(key=f"mlp_{kind}/wi_1", dims=to_mlp)
        down: Kernel = field(key=f"mlp_{kind}/wo", dims=to_embed)
        attention_norm: Norm = field(key=f"pre_self_attention_norm_{kind}")
        attention_out_norm: Norm = field(key=f"post_self_attention_norm_{kind}")
        mlp_norm: Norm = field(key=f"pre_ffw_norm_{kind}")
        mlp_out_norm: Norm = field(key=f"post_ffw_norm_{kind}")

    return Half


def query_is_scaled(told: Mapping[str, Any]) -> tuple[Rule, ...]:
    """What is said where the query is scaled before it is kept, and not each time that it is used."""
    return (scale("**/query/weight", "head_dim ** -0.5"),)


def _nothing(told: Mapping[str, Any]) -> tuple[Rule, ...]:
    """What is said of a family that MaxText keeps as Hugging Face does."""
    return ()


@dataclasses.dataclass(frozen=True, slots=True)
class Maxtext:
    """A family as MaxText has it.

    Attributes:
        family: The family.
        layers: The layers, scanned and unrolled.
        rules: What it keeps otherwise than Hugging Face does, by what a config tells.
        more: Sizes by which its layers are counted, by the sizes that a config tells.
        forms: How the files are read, where it is not as those of the family are.
    """

    family: Family
    layers: tuple[type[Schema], type[Schema]]
    rules: Callable[[Mapping[str, Any]], tuple[Rule, ...]] = _nothing
    more: Callable[[Mapping[str, int]], Mapping[str, int]] = dict
    forms: tuple[FileForm, ...] = ()

    def layout(self, *, scan: bool = True, tied: bool = False) -> type[Schema]:
        """The weights of a model, for `ckpt_schema.linen.Params`, and for `ckpt_schema.nnx.Params` in memory.

        Args:
            scan: Whether layers are stacked, ``scan_layers`` of MaxText.
            tied: Whether its head is its embedding, ``logits_via_embedding`` of MaxText.

        Example:
            >>> import ckpt_schema as cs
            >>> tied = cs.families.llama.maxtext.layout(tied=True)
            >>> print(cs.layout(cs.linen.Params[tied]).rows[0])
            params/token_embedder/embedding  float32[vocab embed]
        """
        ends = (MaxtextEnds,) if tied else (MaxtextEnds, MaxtextHead)
        name = f"{'Tied' if tied else ''}{'Scanned' if scan else 'Unrolled'}Maxtext"
        body = self.layers[0 if scan else 1]  # stands first, for its series
        return type(Schema)(name, (body, *ends), {"__doc__": f"{self.family.name} of MaxText."})

    def lens_of(
        self,
        path: epath.PathLike,
        *,
        scan: bool = True,
        interleaved: bool | None = None,
        vocab: int | None = None,
        dtype: str | None = None,
        container: Literal["linen", "nnx"] = "linen",
        rules: Iterable[Rule] = (),
    ) -> Lens:
        """The lens between a folder of Hugging Face and the weights of MaxText.

        They are what MaxText's own converter makes, bit for bit, where that is right, and rounded
        where they are computed: ``lens.loss`` says which. What of them has not changed goes back to
        the bits of the folder with ``cs.hf.save(..., onto=cs.hf.load(folder))``. A model whose files
        leave the head out has none in MaxText.

        Args:
            path: A folder with a config, or a safetensors file or an index in one.
            scan: Whether layers are stacked, ``scan_layers`` of MaxText.
            interleaved: Whether the halves of a rotation are, as MaxText has them for models that are
                called ``llama3.1...``, and with ``rope_type: llama3.1``. Unless given, they are where
                the config has the rotation of Llama 3.1.
            vocab: The size of the vocabulary, where MaxText pads it with zeros.
            dtype: That of all weights; as each is in the folder unless given. What a narrower one
                does not have is rounded, once, after all else is computed.
            container: Whether they stand as in a checkpoint, or as in a model in memory.
            rules: More of them, such as what to leave aside of a folder.

        Returns:
            The lens, for `ckpt_schema.hf.restore` and `ckpt_schema.hf.save`.

        Raises:
            CheckpointMismatchError: There is no such folder, its files are damaged, or its config
                is none of the family.
            DerivationError: The folder holds something that no rule leaves aside.

        Example:
            ``weights = cs.hf.restore(folder, target, cs.families.llama.maxtext.lens_of(folder))``
        """
        told = config_of(path)
        files = self.family.stored(path, self.forms)
        source = layout(files.files)
        # Files that leave the head out have the embedding for one.
        tied = all(row.model_path[0] != "head" for row in source.rows)
        body = self.layout(scan=scan, tied=tied)
        view = layout((linen.Params if container == "linen" else nnx.Params)[body])
        said = [*files.rules, *self.rules(told)]
        sizes = dict(self.family.dims_from(told))
        # The halves of a rotation are in front of one another there, and take turns here.
        if _has_turns(told) if interleaved is None else interleaved:
            source = _with_dims(source, _TURNED, {"head_dim": "2*half"})
            view = _with_dims(view, _TURNED, {"head_dim": "half*2"})
        if vocab is not None:
            view = _with_dims(view, _ENDS, {"vocab": "padded"})
            said += [pad(f"{end}/weight", "vocab", "padded") for end in _ENDS[: 2 - tied]]
            sizes["padded"] = vocab
        view, rounded = _typed(view, source, dtype)
        # A config tells more sizes than these layouts have dims.
        named = source.names() | view.names()
        known: dict[str, int] = {}
        for name, size in {**sizes, **self.more(sizes)}.items():
            if name in named:
                known[name] = size
        return derive(source, view, rules=[*said, *rounded, *rules], dims=known)


_ENDS = ("embed", "head")
_TURNED = ("query", "key", "query_norm", "key_norm")
"""What a rotation turns."""


def _has_turns(told: Mapping[str, Any]) -> bool:
    """Whether a config has the rotation of Llama 3.1, under the name that it has in any release."""
    for name in ("rope_parameters", "rope_scaling"):
        scaling = told.get(name)
        # An older config calls the kind `type`.
        if isinstance(scaling, dict):
            entries: dict[str, Any] = scaling
            if entries.get("rope_type", entries.get("type")) == "llama3":
                return True
    return False


def _with_dims(table: Layout, nodes: Collection[str], renames: Mapping[str, str]) -> Layout:
    """The layout, dims of the leaves of these nodes renamed."""
    rows: list[Row] = []
    for row in table.rows:
        leaf = row.leaf.renamed(renames) if row.model_path[-2] in nodes else row.leaf
        rows.append(dataclasses.replace(row, leaf=leaf))
    return dataclasses.replace(table, rows=tuple(rows))


def _typed(view: Layout, source: Layout, dtype: str | None) -> tuple[Layout, tuple[Rule, ...]]:
    """The view in one dtype, or in those of the source; and what to say where that has fewer values."""
    stored = {row.model_path: row.leaf.dtype for row in source.rows}
    first = source.rows[0].leaf.dtype  # of leaves that the files have in other parts
    dtypes = [dtype or stored.get(row.model_path, first) for row in view.rows]
    # A value that is rounded has to be said of; one that is widened has not.
    narrower = dtype is not None and not all(holds(dtype, own) for own in stored.values())
    typed = with_dtypes(view, dict(enumerate(dtypes)))
    return typed, (cast("**", rounding="nearest"),) if narrower else ()
