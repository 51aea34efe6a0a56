"""Families against what transformers has made and computed; ``python tests/families.py`` makes more of it anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import families
import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from support.profiles import sampled

import ckpt_schema as cs
from ckpt_schema.testing import check_laws

llama = cs.families.llama
FOLDER = families.DATA / "llama"


@pytest.mark.parametrize("name", families.KEPT)
def test_a_model_computes_what_transformers_does_and_is_written_as_it_was(
    name: str, tmp_path: Path
) -> None:
    folder = families.DATA / name
    model, lens = families.restored(folder)
    assert families.error_of(model, folder) < families.MOST
    cs.hf.save(tmp_path / "again", model, lens, config_from=folder)
    assert families.unlike(folder, tmp_path / "again") == []
    config = (tmp_path / "again" / "config.json").read_text()
    assert config == (folder / "config.json").read_text()


def test_whatever_is_exchanged_is_seen_in_what_is_computed() -> None:
    """Two tensors of one shape in each other's place; or a square one turned."""
    count, unseen = families.unseen(*families.restored(FOLDER), FOLDER)
    assert count > 30 and not unseen


def test_biases_of_keys_that_no_output_shows_are_those_of_their_layers() -> None:
    model, _ = families.restored(families.DATA / "vit")
    tensors = cs.hf.load(families.DATA / "vit")
    for number, layer in enumerate(model.layers):
        stored = tensors[f"vit.encoder.layer.{number}.attention.attention.key.bias"]
        assert np.asarray(layer.attention.key.bias[...]).tobytes() == stored.tobytes()


def test_a_classifier_may_be_begun_of_a_model_without_a_head(tmp_path: Path) -> None:
    folder, vit = families.DATA / "vit", cs.families.vit
    tensors = cs.hf.load(folder)
    bare = {name.removeprefix("vit."): x for name, x in tensors.items() if "vit." in name}
    cs.hf.save(tmp_path / "bare", bare)
    with pytest.raises(cs.DerivationError, match="head/weight"):
        vit.lens_of(tmp_path / "bare")
    lens = vit.lens_of(tmp_path / "bare", rules=[cs.private("head", cs.own)])
    begun: Any = families.model_of(folder, lens)
    nnx.update(begun, jax.tree.map(lambda x: np.full(x.shape, 7, x.dtype), nnx.state(begun)))
    model = cs.hf.restore(tmp_path / "bare", begun, lens)
    assert (model.head.kernel[...] == 7).all()
    model.head.kernel[...] = tensors["classifier.weight"].T
    model.head.bias[...] = tensors["classifier.bias"]
    assert families.error_of(model, folder) < families.MOST
    cs.hf.save(tmp_path / "again", model, lens)
    assert families.unlike(tmp_path / "bare", tmp_path / "again") == []


def test_what_a_family_does_not_have_is_left_aside_by_a_rule(tmp_path: Path) -> None:
    """Such as a tower that sees: not read, and written where a save has it; never in silence."""
    folder, both, gemma3 = families.DATA / "gemma3", tmp_path / "both", cs.families.gemma3
    seeing = {
        f"vision_tower.layers.{n}.fc.{kind}": np.full((3, n + 1), n, "bfloat16")
        for n in range(2)
        for kind in ("weight", "bias")
    }
    reading = {f"language_model.{name}": array for name, array in cs.hf.load(folder).items()}
    cs.hf.save(both, reading | seeing)
    with pytest.raises(
        cs.DerivationError, match=r"private\('vision_tower/layers/0/fc/bias', own\)"
    ):
        gemma3.lens_of(both)
    lens = gemma3.lens_of(both, rules=[cs.private("vision_tower", cs.own)])
    model = cs.hf.restore(both, families.model_of(folder, lens), lens)
    assert families.error_of(model, folder) < families.MOST
    with pytest.raises(cs.ConformanceError, match="pass onto="):
        cs.hf.save(tmp_path / "lone", model, lens)
    cs.hf.save(tmp_path / "again", model, lens, onto=cs.hf.load(both))
    assert families.unlike(both, tmp_path / "again") == []


def test_tables_of_rotations_in_older_files_are_left_aside_by_a_rule(tmp_path: Path) -> None:
    tables = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": np.ones(1) for n in range(2)}
    cs.hf.save(tmp_path / "old", cs.hf.load(FOLDER) | tables)
    with pytest.raises(cs.DerivationError, match="rotary_emb"):
        llama.lens_of(tmp_path / "old")
    rules = [cs.private("**/rotary_emb/inv_freq", cs.own)]
    lens = llama.lens_of(tmp_path / "old", rules=rules)
    model = cs.hf.restore(tmp_path / "old", families.model_of(FOLDER, lens), lens)
    assert families.error_of(model, FOLDER) < families.MOST
    cs.hf.save(tmp_path / "again", model, lens, onto=cs.hf.load(tmp_path / "old"))
    assert families.unlike(tmp_path / "old", tmp_path / "again") == []


@pytest.mark.parametrize("name", sampled(["mixtral", "gpt2"], 2))
def test_the_laws_hold(name: str) -> None:
    """On one example of each; of all families on more: ``python tests/families.py --laws 3``."""
    for _, lens in families.lenses([families.DATA / name]):
        check_laws(lens, max_examples=1, meshes=())


@pytest.mark.parametrize("prefix", ["", "language_model.model."])
def test_names_may_begin_otherwise(prefix: str, tmp_path: Path) -> None:
    folder = families.DATA / "gemma3"
    tensors = cs.hf.load(folder)
    moved = {prefix + name.removeprefix("model."): array for name, array in tensors.items()}
    cs.hf.save(tmp_path / "moved", moved)
    lens = cs.families.gemma3.lens_of(tmp_path / "moved")
    model = cs.hf.restore(tmp_path / "moved", families.model_of(folder, lens), lens)
    assert families.error_of(model, folder) < families.MOST
    cs.hf.save(tmp_path / "again", model, lens)
    assert families.unlike(tmp_path / "moved", tmp_path / "again") == []


def test_experts_may_be_stacked_in_the_files(tmp_path: Path) -> None:
    """As transformers 5 has them: the gate is the first half of what goes into an expert."""
    folder = families.DATA / "mixtral"
    tensors = cs.hf.load(folder)
    for n in range(2):
        own, new = f"model.layers.{n}.block_sparse_moe", f"model.layers.{n}.mlp"
        tensors[f"{new}.gate.weight"] = tensors.pop(f"{own}.gate.weight")
        gate, down, up = (
            np.stack([tensors.pop(f"{own}.experts.{expert}.w{part}.weight") for expert in range(3)])
            for part in (1, 2, 3)
        )
        tensors[f"{new}.experts.gate_up_proj"] = np.concatenate([gate, up], axis=1)
        tensors[f"{new}.experts.down_proj"] = down
    cs.hf.save(tmp_path / "stacked", tensors)
    lens = cs.families.mixtral.lens_of(tmp_path / "stacked")
    model = cs.hf.restore(tmp_path / "stacked", families.model_of(folder, lens), lens)
    assert families.error_of(model, folder) < families.MOST
    cs.hf.save(tmp_path / "again", model, lens)
    assert families.unlike(tmp_path / "stacked", tmp_path / "again") == []


def test_masks_of_older_files_are_no_weights(tmp_path: Path) -> None:
    """As in the hub's GPT-2, whose names have no prefix: not read, and written where a save has them."""
    folder, old, gpt2 = families.DATA / "gpt2", tmp_path / "old", cs.families.gpt2
    weights = {
        name.removeprefix("transformer."): array for name, array in cs.hf.load(folder).items()
    }
    masks = {f"h.{n}.attn.bias": np.tril(np.ones((1, 1, 9, 9), "uint8")) for n in range(2)}
    cs.hf.save(old, {**weights, **masks, "h.0.attn.masked_bias": np.float32(-1e4)})
    lens = gpt2.lens_of(old)
    model = cs.hf.restore(old, families.model_of(folder, lens), lens)
    assert families.error_of(model, folder) < families.MOST
    cs.hf.save(tmp_path / "bare", weights)
    cs.hf.save(tmp_path / "new", model, lens)
    cs.hf.save(tmp_path / "again", model, lens, onto=cs.hf.load(old))
    assert families.unlike(tmp_path / "bare", tmp_path / "new") == []
    assert families.unlike(old, tmp_path / "again") == []


def test_a_model_may_keep_norms_and_embedding_as_it_uses_them(tmp_path: Path) -> None:
    """What is rounded goes back to the bits of the file where those are given."""
    folder = families.DATA / "gemma2"
    tensors = cs.hf.load(folder)
    rules = [cs.shift("**/*norm/weight", 1.0), cs.scale("embed/weight", "embed ** 0.5")]
    gemma2 = cs.families.gemma2
    lens = gemma2.lens_of(folder, rules=rules).bind(**gemma2.dims_from(folder))
    made = lens.get(tensors)
    scale = tensors["model.layers.1.post_attention_layernorm.weight"]
    table = tensors["model.embed_tokens.weight"]
    assert (made["layers"][1]["attention_out_norm"]["scale"] == 1 + scale).all()
    np.testing.assert_allclose(made["embed"]["embedding"], table * 8**0.5, rtol=1e-6)
    back = lens.put(made, onto=tensors)
    assert all(np.asarray(back[name]).tobytes() == tensors[name].tobytes() for name in tensors)


def test_a_config_of_another_family_is_refused(tmp_path: Path) -> None:
    """Gemma has the names of Llama, and adds one to the scale of each norm."""
    cs.hf.save(tmp_path / "other", cs.hf.load(FOLDER))
    (tmp_path / "other" / "config.json").write_text('{"model_type": "gemma"}')
    for path in (tmp_path / "other", tmp_path / "other" / "model.safetensors"):
        with pytest.raises(cs.CheckpointMismatchError, match=r"llama or mistral.*gemma"):
            llama.lens_of(path)


def test_a_head_that_no_file_has_is_the_embedding(tmp_path: Path) -> None:
    tensors = cs.hf.load(FOLDER)
    del tensors["lm_head.weight"]
    cs.hf.save(tmp_path / "tied", tensors)
    lens = llama.lens_of(tmp_path / "tied")
    model: Any = cs.hf.restore(tmp_path / "tied", families.model_of(FOLDER, lens), lens)
    head = np.asarray(model.head.kernel[...])
    assert head.tobytes() == tensors["model.embed_tokens.weight"].T.tobytes()
    cs.hf.save(tmp_path / "again", model, lens)
    assert families.unlike(tmp_path / "tied", tmp_path / "again") == []
    model.head.kernel[...] += 1
    with pytest.raises(cs.ConformanceError, match="head/kernel"):
        cs.hf.save(tmp_path / "other", model, lens)


def test_a_folder_is_read_in_the_dtypes_that_it_has(tmp_path: Path) -> None:
    tensors: dict[str, Any] = cs.hf.load(FOLDER)
    narrow = {name: jax.numpy.asarray(array, "bfloat16") for name, array in tensors.items()}
    cs.hf.save(tmp_path / "narrow", narrow)
    files = cs.hf.as_stored(llama.Files, tmp_path / "narrow")
    assert {row.leaf.dtype for row in files.rows} == {"bfloat16"}
    assert cs.check(files, narrow).ok
    assert cs.hf.as_stored(llama.Files, FOLDER).rows == cs.layout(llama.Files).rows


def test_sizes_are_told_by_the_config(tmp_path: Path) -> None:
    told = json.loads((FOLDER / "config.json").read_text())
    sizes = {"embed": 8, "heads": 4, "kv": 2, "head_dim": 2, "mlp": 12, "vocab": 16, "depth": 2}
    assert llama.dims_from(FOLDER) == llama.dims_from(FOLDER / "config.json") == sizes
    assert llama.dims_from({**told, "head_dim": 6}) == {**sizes, "head_dim": 6}
    old = {name: size for name, size in told.items() if name not in ("num_key_value_heads",)}
    assert llama.dims_from(old)["kv"] == 4
    assert cs.families.gpt2.dims_from(families.DATA / "gpt2")["mlp"] == 32  # four times the width
    target = cs.abstract(cs.nnx.Params[llama.Decoder], sizes)
    assert cs.check(cs.nnx.Params[llama.Decoder], target).ok


@pytest.mark.parametrize(
    ("sides", "height", "width", "places"),
    [([4, 2], 4, 2, 9), (4, 4, 4, 5), ([4], None, None, None)],
)
def test_patches_may_have_two_sizes(sides: Any, height: Any, width: Any, places: Any) -> None:
    config = json.loads((families.DATA / "vit" / "config.json").read_text())
    config["patch_size"] = sides
    if height is None:
        with pytest.raises(cs.CheckpointMismatchError, match="patch_size"):
            cs.families.vit.dims_from(config)
        return
    found = cs.families.vit.dims_from(config)
    assert [found[name] for name in ("height", "width", "places")] == [height, width, places]


@pytest.mark.parametrize(
    ("config", "paths"),
    [
        ({"hidden_size": 8}, 6),
        ({"hidden_size": 7, "num_attention_heads": 2, "vocab_size": True}, 4),
        (b"{", 1),
        (b"[]", 1),
        (None, 1),
    ],
)
def test_a_config_that_does_not_tell_all_is_refused(
    tmp_path: Path, config: Any, paths: int
) -> None:
    if not isinstance(config, dict):
        if config is not None:
            (tmp_path / "config.json").write_bytes(config)
        config = tmp_path
    with pytest.raises(cs.CheckpointMismatchError) as raised:
        llama.dims_from(config)
    assert len(raised.value.mismatches) == paths


def test_a_llama_of_few_bits_is_read_and_written_back_to_the_bit(tmp_path: Path) -> None:
    folder = families.DATA / "llama"
    rng = np.random.default_rng(0)
    file: dict[str, Any] = {}
    dense: dict[str, Any] = {}
    for name, tensor in cs.hf.load(folder).items():
        file[name] = dense[name] = np.asarray(tensor)
        if not name.endswith("proj.weight"):
            continue
        file[name] = file[name].astype(np.float32).astype(ml_dtypes.float8_e4m3fn)
        grid = [-(-size // 4) for size in tensor.shape]
        scales = rng.uniform(0.5, 2, size=grid).astype(np.float32)
        file[f"{name}_scale_inv"] = scales
        spread = np.repeat(np.repeat(scales, 4, 0), 4, 1)[: tensor.shape[0], : tensor.shape[1]]
        dense[name] = file[name].astype(np.float32) * spread
    for where, tensors in (("fp8", file), ("dense", dense)):
        cs.hf.save(tmp_path / where, tensors, config_from=folder)
    rule = cs.dequantize("**/weight", scale="**/weight_scale_inv", block=(4, 4))
    lens = cs.families.llama.lens_of(tmp_path / "fp8", rules=[rule])
    model = cs.hf.restore(tmp_path / "fp8", families.model_of(folder, lens), lens)
    plain = cs.families.llama.lens_of(tmp_path / "dense")
    wanted = cs.hf.restore(tmp_path / "dense", families.model_of(folder, plain), plain)
    cs.assert_trees_identical(nnx.state(model), nnx.state(wanted))
    cs.hf.save(tmp_path / "again", model, lens, onto=cs.hf.load(tmp_path / "fp8"))
    assert families.unlike(tmp_path / "fp8", tmp_path / "again") == []


def test_two_families_are_one_model() -> None:
    parts: dict[str, Any] = {}
    tensors: dict[str, Any] = {}
    for name in ("vit", "llama"):
        family, folder = getattr(cs.families, name), families.DATA / name
        lens = family.lens_of(folder)
        known = lens.source.names() | lens.view.names()
        sizes = {dim: n for dim, n in family.dims_from(folder).items() if dim in known}
        parts[name], tensors[name] = (lens.bind(**sizes), name), cs.hf.load(folder)
    both = cs.merge(**parts)
    whole = both.get(tensors)
    for name, (lens, _) in parts.items():
        cs.assert_trees_identical(whole[name], lens.get(tensors[name]))
    target = jax.tree.map(np.zeros_like, whole)
    found = cs.hf.restore({name: families.DATA / name for name in parts}, target, both)
    cs.assert_trees_identical(jax.tree.map(np.asarray, found), jax.tree.map(np.asarray, whole))
    cs.assert_trees_identical(both.put(whole, onto=tensors), tensors)
