"""Several lenses as one, and several checkpoints restored into one model: cs.merge."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, BFloat16, Float32
from support.outcomes import refused

import ckpt_schema as cs
from ckpt_schema.testing import check_laws

RNG = np.random.default_rng(0)


class Proj(cs.Schema):
    w: Float32[Array, "out embed"] = cs.field(key="weight")


class VisionFile(cs.Schema, joined="."):
    layers: list[Proj] = cs.field(key="vit.layer.{i}", length="depth")
    norm: Float32[Array, " embed"] = cs.field(key="vit.norm.weight")


class Dense(cs.Schema):
    w: Float32[Array, "embed out"] = cs.field(key="kernel")


class Vision(cs.Schema):
    blocks: Dense = cs.field(scan="depth", axis=0)
    norm: Float32[Array, " embed"] = cs.field(key="scale")


class TextFile(cs.Schema):
    embed: Float32[Array, "vocab embed"]
    head: Float32[Array, "vocab embed"]


class Text(cs.Schema):
    table: BFloat16[Array, "padded embed"]


VISION = cs.derive(VisionFile, Vision, rules=[cs.rename("layers[]", "blocks[]")])
RULES = [
    cs.rename("embed", "table"),
    cs.private("**/head", 0.0),
    cs.pad("table", "vocab", "padded"),
    cs.cast("table", rounding="nearest"),
]
TEXT = cs.derive(cs.linen.Params[TextFile], Text, rules=RULES, dims={"padded": 8})
BOTH = cs.merge(vision=(VISION, "encoder"), text=(TEXT, "lm/decoder"))


def same(found: Any, wanted: Any) -> None:
    cs.assert_trees_identical(found, wanted)


def on_host(tree: Any) -> Any:
    return jax.tree.map(np.asarray, tree)


def floats(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.normal(size=shape).astype(np.float32)


def record() -> dict[str, Any]:
    names = [f"vit.layer.{n}.weight" for n in range(2)]
    vision = {**{name: floats(4, 4) for name in names}, "vit.norm.weight": floats(4)}
    return {"vision": vision, "text": {"params": {"embed": floats(5, 6), "head": floats(5, 6)}}}


def test_each_view_stands_at_its_place_and_is_split_off_again() -> None:
    parts = record()
    found = BOTH.get(parts)
    text = TEXT.get(parts["text"])
    same(found, {"encoder": VISION.get(parts["vision"]), "lm": {"decoder": text}})
    back = BOTH.put(found, onto=parts)
    same(back, parts)
    assert found["encoder"]["scale"] is parts["vision"]["vit.norm.weight"]
    (loss,) = BOTH.loss.items()
    assert loss == ("text/table", TEXT.loss["params/table"])


def test_dims_of_one_name_are_those_of_their_part() -> None:
    assert {"embed", "embed_text", "depth", "vocab"} <= BOTH.source.names()
    assert BOTH.dims == {"padded": 8}
    assert BOTH.get(record())["lm"]["decoder"]["table"].shape == (8, 6)  # and not 4
    scaled = cs.derive(Vision, Vision, rules=[cs.scale("norm", "embed ** -1")])
    twice = cs.merge(a=(scaled, "a"), b=(scaled, "b"))
    tree = {"blocks": {"kernel": floats(1, 4, 3)}, "scale": floats(4)}
    wide = {"blocks": {"kernel": floats(1, 8, 3)}, "scale": floats(8)}
    same(twice.get({"a": tree, "b": wide}), {"a": scaled.get(tree), "b": scaled.get(wide)})


def test_what_was_composed_or_turned_is_merged_too() -> None:
    composed = VISION >> cs.derive(Vision, Vision)
    turned = ~cs.derive(Vision, VisionFile, rules=[cs.rename("blocks[]", "layers[]")])
    lens = cs.merge(a=(composed, "a"), b=(turned, "b"), c=(VISION, "c"))
    vision = record()["vision"]
    wanted = VISION.get(vision)
    parts = dict.fromkeys("abc", vision)
    same(lens.get(parts), {"a": wanted, "b": wanted, "c": wanted})
    onward = BOTH >> cs.derive(BOTH.view, BOTH.view)
    parts = record()
    same(onward.get(parts), BOTH.get(parts))
    same((~BOTH).put(parts), BOTH.get(parts))


def test_one_part_may_be_the_root_and_views_may_be_of_nnx() -> None:
    whole = cs.merge(vision=(VISION, ""), text=(TEXT, "decoder"))
    assert sorted(whole.get(record())) == ["blocks", "decoder", "scale"]
    lenses = [cs.derive(VisionFile, cs.nnx.Params[View], rules=[rule]) for View, rule in NNX]
    lens = cs.merge(one=(lenses[0], "one"), two=(lenses[0], "two"))
    vision = record()["vision"]
    found = lens.get({"one": vision, "two": vision})
    assert isinstance(found, nnx.State) and isinstance(found["one"]["scale"], nnx.Param)
    same(on_host(lens.put(found)), {"one": vision, "two": vision})


NNX = [(Vision, cs.rename("layers[]", "blocks[]"))]


class Encoder(cs.Schema):
    blocks: Dense = cs.field(scan="depth", axis=0)
    norm: Float32[Array, " embed"] = cs.field(key="scale")


class Decoder(cs.Schema):
    table: BFloat16[Array, "padded width"]


class Pair(cs.Schema):
    decoder: Decoder


class Whole(cs.Schema):
    encoder: Encoder
    lm: Pair
    projector: Float32[Array, "embed width"]


PARTS: dict[str, Any] = {"vision": (VISION, "encoder"), "text": (TEXT, "lm/decoder")}
FRESH = cs.merge(Whole, rules=[cs.private("projector", 0.0)], **PARTS)


def test_what_the_whole_has_besides_is_its_own() -> None:
    refused(
        lambda: cs.merge(Whole, **PARTS),
        "projector  expected a partner",
        "float32[embed width] in Whole alone",
    )
    parts = record()
    found = FRESH.get(parts)
    same(found["projector"], jnp.zeros((4, 6)))
    own = {**BOTH.get(parts), "projector": floats(4, 6)}
    assert FRESH.get(parts, onto=own)["projector"] is own["projector"]
    same(FRESH.put(own, onto=parts), parts)


def test_it_trains_on_with_a_projector_that_is_new() -> None:
    params = jax.tree.map(jnp.asarray, FRESH.get(record()))
    tx = optax.adam(1e-2)

    def loss(params: Any) -> Any:
        seen = params["encoder"]["scale"] @ (params["projector"] + 1)
        return (params["lm"]["decoder"]["table"][:5].astype("float32") @ seen).sum() ** 2

    updates, _ = tx.update(jax.grad(loss)(params), tx.init(params), params)
    trained = optax.apply_updates(params, updates)
    assert np.abs(np.asarray(trained["projector"])).min() > 0
    back = FRESH.put(trained, onto=record())
    assert back["vision"]["vit.norm.weight"].shape == (4,)


@pytest.mark.parametrize(
    ("merged", "words"),
    [
        (lambda: cs.merge(a=(VISION, "x"), b=(VISION, "x")), "found a/norm and b/norm"),
        (lambda: cs.merge(a=(VISION, "x"), b=(VISION, "x/scale")), "parts of a merge overlap"),
        (lambda: cs.merge(Whole, vision=(VISION, "encoder")), "lm/decoder/table"),
        (
            lambda: cs.merge(Whole, **PARTS, more=(VISION, "more")),
            "expected a leaf of Whole, found float32[embed_more]",
        ),
        (lambda: cs.merge(a=VISION, b=(VISION, 3)), "2 faults"),
        (lambda: cs.merge(), "at least one"),
    ],
)
def test_gaps_and_overlaps_are_errors(merged: Any, words: str) -> None:
    refused(merged, words)


def test_a_train_state_is_no_part() -> None:
    tx = optax.adam(1e-2)
    state = cs.derive(cs.linen.BareTrainState[Text, tx], cs.linen.BareTrainState[Text, tx])
    refused(lambda: cs.merge(a=(state, "a")), "weights alone", "derive the train state")


def test_it_is_printed_and_written_as_data() -> None:
    again = cs.from_json(cs.to_json(BOTH), cs.Lens)
    assert str(again) == str(BOTH)
    parts = record()
    same(again.get(parts), BOTH.get(parts))
    assert "vision/vit.layer.{i}.weight" in str(BOTH) and "lm/decoder/table" in str(BOTH)
    plain = cs.merge(a=(cs.derive(Vision, Vision), "x"), b=(cs.derive(Text, Text), "y"))
    assert "cs.derive(" in cs.to_source(plain)


def test_a_path_for_each_part_of_orbax_and_of_hugging_face(tmp_path: Path) -> None:
    parts = record()
    cs.hf.save(tmp_path / "vit", parts["vision"])
    cs.orbax.save(tmp_path / "lm", jax.tree.map(jnp.asarray, parts["text"]))
    where = {"vision": tmp_path / "vit", "text": tmp_path / "lm"}
    wanted = BOTH.get(parts)
    target = jax.eval_shape(lambda: wanted)
    for restore in (cs.orbax.restore, cs.hf.restore):
        same(on_host(restore(where, target, BOTH)), on_host(wanted))
    mesh = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2])
    over = {3: PartitionSpec(None, "x"), 2: PartitionSpec(None, "x"), 1: PartitionSpec("x")}
    sharded = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=NamedSharding(mesh, over[len(x.shape)])
        ),
        target,
    )
    found = cs.orbax.restore(where, sharded, BOTH)
    same(on_host(found), on_host(wanted))
    assert found["encoder"]["blocks"]["kernel"].sharding.spec == PartitionSpec(None, "x")
    fresh = jax.tree.map(jnp.zeros_like, FRESH.get(parts))
    fresh["projector"] = jnp.ones((4, 6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained = cs.orbax.restore(where, fresh, FRESH)
    same(trained["projector"], jnp.ones((4, 6)))


def test_a_part_may_stand_below_a_key_of_its_checkpoint(tmp_path: Path) -> None:
    """Beside what is not read; the values of it need not even be there."""
    parts = record()
    cs.hf.save(tmp_path / "vit", parts["vision"])
    run = {"old": {"text": parts["text"]}, "text": {"params": {"embed": floats(5, 6)}}}
    cs.orbax.save(tmp_path / "run", jax.tree.map(jnp.asarray, run))
    where = {"vision": tmp_path / "vit", "text": tmp_path / "run"}
    wanted = BOTH.get(parts)
    target = jax.eval_shape(lambda: wanted)
    found = cs.orbax.restore(where, target, BOTH, at={"text": "old/text"})
    same(on_host(found), on_host(wanted))
    as_stored = cs.derive(cs.linen.Params[TextFile], cs.linen.Params[TextFile])
    lens = cs.merge(text=(as_stored, "text"))
    target = jax.eval_shape(lambda: {"text": parts["text"]})
    found = cs.orbax.restore({"text": tmp_path / "run"}, target, lens, at={"text": "old/text"})
    same(on_host(found), {"text": parts["text"]})


def test_what_is_wrong_with_paths_is_told_of_all(tmp_path: Path) -> None:
    cs.hf.save(tmp_path / "vit", record()["vision"])
    target = jax.eval_shape(lambda: BOTH.get(record()))
    restore = cs.orbax.restore
    here, gone = tmp_path / "vit", tmp_path / "gone"
    refused(lambda: restore({"vision": gone, "text": gone}, target, BOTH), "vision: ", "text: ")
    refused(lambda: restore({"vision": here}, target, BOTH), "text/params/embed", "found nothing")
    refused(lambda: restore({}, target, BOTH), "a path for each part")
    both = {"vision": here, "text": here}
    refused(lambda: restore(both, target, BOTH, item="params"), "of one path")
    said = "a key path for some of vision, text"
    for at in ("params", {"txt": "params"}, {"text": ""}, {"text": 3}):
        refused(lambda at=at: restore(both, target, BOTH, at=at), said)
    refused(lambda: restore({"text": here}, target, BOTH, at={"text": "lm"}), "text: at", "lm")
    refused(lambda: restore(both, target, BOTH), "text/params/embed")


# --- A base, and the adapter that PEFT has written for it  ---


class Kernel(cs.Schema):
    w: Float32[Array, "out inner"] = cs.field(key="weight")


class Base(cs.Schema, joined="."):
    layers: list[Kernel] = cs.field(key="model.layers.{i}.q_proj", length="depth")
    norm: Float32[Array, " inner"] = cs.field(key="model.norm.weight")


class Low(cs.Schema):
    a: Float32[Array, "rank inner"] = cs.field(key="lora_A.weight")
    b: Float32[Array, "out rank"] = cs.field(key="lora_B.weight")


class Peft(cs.Schema, joined="."):
    layers: list[Low] = cs.field(key="base_model.model.model.layers.{i}.q_proj", length="depth")


class Adapted(cs.Schema):
    base: Base
    adapter: Peft


class Model(cs.Schema):
    layers: Dense = cs.field(scan="depth", axis=0)
    norm: Float32[Array, " embed"]


class Used(cs.Schema):
    w: Float32[Array, "inner out"] = cs.field(key="kernel")


class Served(cs.Schema):
    layers: Used = cs.field(scan="depth", axis=0)
    norm: Float32[Array, " inner"]


LORA = cs.lora("base/**/w", a="adapter/**/a", b="adapter/**/b", alpha=16)
MERGED = cs.derive(Adapted, Served, rules=[cs.rename("base", ""), LORA])


def test_files_of_peft_are_merged_into_their_base_and_split_off_again(tmp_path: Path) -> None:
    def whole(*shape: int) -> Any:
        return RNG.integers(-9, 9, size=shape).astype(np.float32)

    base = {f"model.layers.{n}.q_proj.weight": whole(6, 8) for n in range(2)}
    base["model.norm.weight"] = whole(8)
    adapter: dict[str, Any] = {}
    for number in range(2):
        name = f"base_model.model.model.layers.{number}.q_proj"
        adapter[f"{name}.lora_A.weight"] = whole(4, 8)
        adapter[f"{name}.lora_B.weight"] = whole(6, 4)
    cs.hf.save(tmp_path / "base", base)
    cs.hf.save(tmp_path / "adapter", adapter)
    kernels = [
        base[f"model.layers.{n}.q_proj.weight"]
        + 4
        * adapter[f"base_model.model.model.layers.{n}.q_proj.lora_B.weight"]
        @ adapter[f"base_model.model.model.layers.{n}.q_proj.lora_A.weight"]
        for n in range(2)
    ]
    wanted = {
        "layers": {"kernel": np.stack([kernel.T for kernel in kernels])},
        "norm": base["model.norm.weight"],
    }
    where = {"base": tmp_path / "base", "adapter": tmp_path / "adapter"}
    target = jax.tree.map(jnp.zeros_like, wanted)
    found = cs.hf.restore(where, target, MERGED)
    same(on_host(found), wanted)
    old = {name: cs.hf.load(path) for name, path in where.items()}
    parts = MERGED.put(found, onto=old)
    cs.hf.save(tmp_path / "again", parts["adapter"])
    same(cs.hf.load(tmp_path / "again"), adapter)


def test_the_laws() -> None:
    laws = ["GetPut", "PutGet", "PutPut", "Naming", "Inverse", "Sharding"]
    check_laws(BOTH, laws, max_examples=1)
