"""Families against what MaxText's own converters make; ``python tests/families_maxtext.py --python PATH`` runs these anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import families
import families_maxtext as told
import jax
import numpy as np
import pytest
from families_maxtext import CASES, FORMS
from support.profiles import sampled

import ckpt_schema as cs
from ckpt_schema import cli
from ckpt_schema.testing import check_laws

KEPT: dict[str, dict[str, str]] = json.loads(told.KEPT.read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a case."""
    home = tmp_path_factory.mktemp("hub")

    def made(name: str) -> Path:
        path = home / name
        return path if path.exists() else CASES[name].write(path)

    return made


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CASES)
def test_what_a_lens_makes_is_what_maxtext_does_and_goes_back(
    name: str, form: str, folder: Any
) -> None:
    """Every bit, of every leaf; and the folder again, to the last bit of what nobody has changed."""
    tensors, lens = cs.hf.load(folder(name)), told.lens_of(CASES[name], folder(name), form)
    made = lens.get(tensors)
    found = {key: told.digest(leaf) for key, leaf in told.leaves(made).items()}
    assert found == KEPT[f"{name}, {form}"]
    back = lens.put(made, onto=tensors)
    assert back.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert told.digest(back[key]) == told.digest(tensor), key


def test_a_root_that_is_a_power_of_two_loses_nothing(folder: Any) -> None:
    """Heads of 4, of 16 or of 64; what stands in the lens for others is told."""
    for name, is_exact in (("mistral", True), ("llama3.1", False)):
        tensors, lens = cs.hf.load(folder(name)), told.lens_of(CASES[name], folder(name), "scanned")
        assert [*lens.loss] == ["params/layers[]/query/weight"]
        back = lens.put(lens.get(tensors))
        same = {key for key in tensors if told.digest(back[key]) == told.digest(tensors[key])}
        assert all("q_proj" in key for key in tensors.keys() - same)
        assert (len(same) == len(tensors)) == is_exact


def test_gemma_2_is_scaled_by_what_its_config_says(folder: Any) -> None:
    """Where MaxText's converter takes the width of a head, though the model computes with another number, as in 27B."""
    tensors, path = cs.hf.load(folder("gemma2")), folder("gemma2").with_name("other")
    cs.hf.save(path, tensors)
    config = CASES["gemma2"].config | {"query_pre_attn_scalar": 16}
    (path / "config.json").write_text(json.dumps(config))
    made = told.leaves(told.lens_of(CASES["gemma2"], path, "unrolled").get(tensors))
    unlike = {
        key for key, leaf in made.items() if told.digest(leaf) != KEPT["gemma2, unrolled"][key]
    }
    assert unlike == {key for key in made if "query" in key}
    stored = tensors["model.layers.1.self_attn.q_proj.weight"].T.reshape(12, 4, 8)
    query = made["params/decoder/layers_0/self_attention_global/query/kernel"]
    assert (np.asarray(query) == stored / 4).all()


def test_an_odd_layer_of_gemma_2_is_an_error(folder: Any) -> None:
    """MaxText's converter leaves it out where layers are unrolled, in silence."""
    tensors, path = cs.hf.load(folder("gemma2")), folder("gemma2").with_name("odd")
    cs.hf.save(path, {key: x for key, x in tensors.items() if "layers.3" not in key})
    config = CASES["gemma2"].config | {"num_hidden_layers": 3}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(cs.CheckpointMismatchError, match="an even number of layers"):
        told.lens_of(CASES["gemma2"], path, "unrolled")


def test_halves_are_turned_about_where_the_config_or_a_word_says_so(folder: Any) -> None:
    """As MaxText has them for its models called llama3.1, in which 0 and 4, 1 and 5 stand side by side."""
    tensors, maxtext = cs.hf.load(folder("llama3.1")), cs.families.llama.maxtext
    path = folder("llama3.1")
    said, unsaid, other = (
        maxtext.lens_of(path, **words).get(tensors)["params"]["decoder"]["layers"]["self_attention"]
        for words in ({"interleaved": True}, {}, {"interleaved": False})
    )
    for part in ("query", "key"):
        pairs = np.asarray(other[part]["kernel"])[..., [0, 4, 1, 5, 2, 6, 3, 7]]
        assert (np.asarray(unsaid[part]["kernel"]) == pairs).all()
        assert (np.asarray(said[part]["kernel"]) == pairs).all()
    assert (np.asarray(said["value"]["kernel"]) == np.asarray(other["value"]["kernel"])).all()
    told_so = {"rope_scaling": {"type": "llama3"}, "rope_parameters": None}  # of older releases
    (path.parent / "old").mkdir()
    (path.parent / "old" / "model.safetensors").symlink_to(path / "model.safetensors")
    config = json.dumps(CASES["llama3.1"].config | told_so)
    (path.parent / "old" / "config.json").write_text(config)
    assert "half*2" in str(maxtext.lens_of(path.parent / "old" / "model.safetensors"))


def test_a_vocabulary_is_padded_with_zeros_which_are_verified(folder: Any) -> None:
    tensors = cs.hf.load(folder("llama2"))
    lens = cs.families.llama.maxtext.lens_of(folder("llama2"), vocab=20)
    made = lens.get(tensors)["params"]
    embedding = np.asarray(made["token_embedder"]["embedding"])
    assert embedding.shape == (20, 16) and not embedding[16:].any()
    head = np.asarray(made["decoder"]["logits_dense"]["kernel"])
    assert head.shape == (16, 20) and not head[:, 16:].any()
    made["token_embedder"]["embedding"] = jax.numpy.ones((20, 16))
    with pytest.raises(cs.ConformanceError, match="token_embedder/embedding"):
        lens.put({"params": made}, onto=tensors)


def test_a_dtype_is_that_of_all_and_rounds_last(folder: Any) -> None:
    """MaxText rounds first, and the query, which it scales then, once more."""
    tensors, maxtext = cs.hf.load(folder("llama3.1")), cs.families.llama.maxtext
    half = maxtext.lens_of(folder("llama3.1"), dtype="bfloat16").get(tensors)
    single = maxtext.lens_of(folder("llama3.1")).get(tensors)
    for key, leaf in told.leaves(single).items():
        assert told.digest(told.leaves(half)[key]) == told.digest(leaf.astype("bfloat16"))
    twice = {key: tensor.astype("bfloat16") for key, tensor in tensors.items()}
    cs.hf.save(folder("llama3.1").with_name("rounded"), twice, config_from=folder("llama3.1"))
    theirs = maxtext.lens_of(folder("llama3.1").with_name("rounded")).get(twice)
    unlike = [
        key
        for key, leaf in told.leaves(theirs).items()
        if told.digest(told.leaves(half)[key]) != told.digest(leaf)
    ]
    assert unlike == ["params/decoder/layers/self_attention/query/kernel"]


def test_a_model_in_memory_is_a_target_sharded_or_not(folder: Any) -> None:
    """As MaxText's model of NNX has the same weights."""
    family, path = cs.families.llama, folder("llama3.1")
    lens = family.maxtext.lens_of(path, scan=False, container="nnx")
    target = cs.abstract(lens.view, {**family.dims_from(path), "half": 4})
    found = cs.hf.restore(path, target, lens)
    disk = family.maxtext.lens_of(path, scan=False).get(cs.hf.load(path))["params"]
    for key, leaf in told.leaves(disk).items():
        assert told.digest(told.leaves(found)[f"{key}/value"]) == told.digest(leaf)


@pytest.mark.parametrize(("name", "form"), [("llama3.1", "scanned"), ("gemma3", "scanned")])
def test_from_maxtext_to_a_model_is_the_way_through_the_files(
    name: str, form: str, folder: Any
) -> None:
    """Bit for bit, rounding included; and what has not changed goes back to its own bits."""
    case, path = CASES[name], folder(name)
    near, through = told.lens_of(case, path, form), told.model_lens_of(case, path, form)
    ours = case.family.lens_of(path, families.view_of(path))
    theirs = near.get(cs.hf.load(path))
    target = cs.abstract(ours.view, case.family.dims_from(case.config))
    made = through.get(theirs)
    cs.assert_trees_identical(made, ours.get(near.put(theirs), onto=target))
    cs.assert_trees_identical(through.put(made, onto=theirs), theirs)


def test_the_laws_hold_from_maxtext_to_a_model(folder: Any) -> None:
    """On one example of each; all of them by the same command."""
    lens = told.model_lens_of(CASES["llama2"], folder("llama2"), "unrolled")
    check_laws(lens, ["GetPut", "Naming"], max_examples=1, meshes=())


@pytest.mark.parametrize("name", sampled(["llama2"], 1))
def test_the_laws_hold(name: str, folder: Any) -> None:
    """On one example of each; all of them: ``python tests/families_maxtext.py --laws 3``."""
    lens = told.lens_of(CASES[name], folder(name), "scanned")
    check_laws(lens, ["GetPut", "PutGet"], max_examples=1, meshes=())


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    """Which tells how its heads rotate."""
    cs.hf.save(tmp_path / "bare", cs.hf.load(told.DATA / "llama"))
    with pytest.raises(cs.CheckpointMismatchError, match=r"config\.json"):
        cs.families.llama.maxtext.lens_of(tmp_path / "bare")


@pytest.mark.parametrize(
    ("form", "more"), [("maxtext", ["--no-scan"]), ("nnx", ["--item", "run", "--at", "model"])]
)
def test_a_command_makes_it_and_brings_it_back(
    form: str, more: list[str], folder: Any, tmp_path: Path, capsys: Any
) -> None:
    hub, out, new = map(str, (folder("llama3.1"), tmp_path / "out", tmp_path / "new"))
    words = ["--family", "llama", *more]
    assert cli.main(["hf", hub, out, "--to", form, *words]) == 0
    assert cli.main(["hf", out, new, "--from", form, "--like", hub, *words]) == 0
    assert "leaves" in capsys.readouterr().out
    if form == "nnx":
        assert [*cs.orbax.load(out, item="run")] == ["model"]
    for name in ("model.safetensors", "config.json"):
        assert (Path(new) / name).read_bytes() == (Path(hub) / name).read_bytes()
    assert cli.main(["hf", out, new, "--from", form, *words]) == 2
    assert cli.main(["hf", hub, out, "--to", form, *words]) == 3  # which is there
