"""Random layouts of the layers of one model: listed, stacked, in blocks with a remainder, in stages; fused or apart."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st
from jaxtyping import Array, Float32, Int32

import ckpt_schema as cs
from ckpt_schema.testing._meshes import as_numpy
from ckpt_schema.testing._states import bound, makers
from support.families import SYMBOLS


class Norm(cs.Schema):
    scale: Float32[Array, " embed"]
    count: Int32[Array, ""] = cs.field(axis=0)


class Fused(cs.Schema):
    norm: Norm
    qkv: Float32[Array, "embed heads*dim+2*kv*dim"]


class Apart(cs.Schema):
    norm: Norm = cs.field(key="LayerNorm_0")
    q: Float32[Array, "heads embed dim"]
    k: Float32[Array, "embed kv*dim"]
    v: Float32[Array, "kv dim embed"]


class Equal(cs.Schema):
    norm: Norm
    qkv: Float32[Array, "dim 3*heads embed"]


class Thirds(cs.Schema):
    norm: Norm
    q: Float32[Array, "dim*heads embed"]
    k: Float32[Array, "embed heads dim"]
    v: Float32[Array, "dim heads embed"]


@dataclasses.dataclass(frozen=True)
class Layers:
    """A lens between two layouts, with random states of them.

    Attributes:
        lens: The lens, bound to sizes.
        sizes: In elements.
        seed: Draws the values.
    """

    lens: cs.Lens
    sizes: Mapping[str, int]
    seed: int

    def __repr__(self) -> str:
        """The tables and sizes, for hypothesis to print when a law fails."""
        return f"{self.lens.source}\n{self.lens.view}\n{self.lens}\n{dict(self.sizes)}, seed {self.seed}"

    def states(self, *sides: int) -> list[Any]:
        """One random state for each number of a side."""
        rng, made = (
            np.random.default_rng(self.seed),
            makers(self.sizes, self.lens.source, self.lens.view),
        )
        return [made[side](rng, as_numpy) for side in sides]


def _schema(name: str, **attributes: tuple[Any, Any]) -> type[cs.Schema]:
    """A schema class of attributes, each an annotation (None: there is none) and a value."""
    annotations = {key: kind for key, (kind, _) in attributes.items() if kind is not None}
    body = {
        "__annotations__": annotations,
        **{key: value for key, (_, value) in attributes.items()},
    }
    return types.new_class(name, (cs.Schema,), exec_body=lambda namespace: namespace.update(body))


@st.composite
def _repeated(
    draw: st.DrawFn, block: type[cs.Schema], size: str | int, name: str, kinds: tuple[str, ...]
) -> tuple[Any, Any]:
    """An attribute that repeats ``block``."""
    if draw(st.sampled_from(kinds)) == "stacked":
        return block, cs.field(scan=size, axis=draw(st.sampled_from((0, -1))), key=name)
    return list[block], cs.field(length=size, key=f"{name}{draw(st.sampled_from(SYMBOLS))}")  # type: ignore[valid-type]


BOTH = ("stacked", "listed")


@st.composite
def _model(draw: st.DrawFn, block: type[cs.Schema], form: str, total: str) -> type[cs.Schema]:
    """A model whose layers are ``plain``, in ``blocks`` with a remainder, or in ``stages``."""
    embedding = (Float32[Array, "vocab embed"], cs.field())
    if form == "plain":
        return _schema(
            "Plain", embedding=embedding, layers=draw(_repeated(block, total, "layers", BOTH))
        )
    if form == "stages":
        stage = _schema("Stage", layers=draw(_repeated(block, "depth", "layers", BOTH)))
        stages = draw(_repeated(stage, "stages", "stages", BOTH))
        return _schema(
            "Stages",
            embedding=embedding,
            stages=stages,
            layers=(None, cs.series("stages[]/layers[]")),
        )
    inner = _schema("Block", layers=draw(_repeated(block, 2, "layers", BOTH)))
    blocks, rest = (
        draw(_repeated(inner, "blocks", "blocks", BOTH)),
        draw(_repeated(block, "rest", "rest", BOTH)),
    )
    order = (
        ("blocks[]/layers[]", "rest[]")
        if total.startswith("2")
        else ("rest[]", "blocks[]/layers[]")
    )
    return _schema(
        "Blocks", embedding=embedding, blocks=blocks, rest=rest, layers=(None, cs.series(*order))
    )


@st.composite
def layers(draw: st.DrawFn, *, tx: Any = None) -> Layers:
    """A lens between two layouts of one model, one of which may have the layers in parts, or the attention fused."""
    total = draw(st.sampled_from(("2*blocks+rest", "rest+2*blocks", "stages*depth")))
    divided = "stages" if total == "stages*depth" else "blocks"
    forms = draw(st.sampled_from((("plain", "plain"), ("plain", divided), (divided, divided))))
    fused, apart = draw(st.sampled_from(((Fused, Apart), (Equal, Thirds))))
    splits = forms == ("plain", "plain") and draw(st.booleans())
    pair = (fused, apart) if splits else draw(st.sampled_from(((fused, fused), (apart, apart))))
    models: list[Any] = [
        draw(_model(block, form, total)) for block, form in zip(pair, forms, strict=True)
    ]
    rules = [cs.fuse("layers[]/qkv", ["layers[]/q", "layers[]/k", "layers[]/v"])] if splits else []
    if draw(st.booleans()):
        models.reverse()
    if tx is not None:
        models = [cs.linen.TrainState[models[0], tx], cs.nnx.TrainState[models[1], tx]]
    sizes = {
        "embed": draw(st.integers(1, 3)),
        "vocab": 2,
        "heads": draw(st.integers(1, 2)),
        "dim": 2,
        "kv": 1,
    }
    sizes |= {name: draw(st.integers(1, 3)) for name in ("blocks", "rest", "stages", "depth")}
    return Layers(
        bound(cs.derive(*models, rules=rules), sizes), sizes, draw(st.integers(0, 2**32 - 1))
    )
