"""Families against what transformers has made and computed; ``python tests/families.py`` makes more of it anew."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import families
import jax
import numpy as np
import pytest
from decoder import Decoder
from flax import nnx

import ckpt_schema as cs

llama = cs.families.llama
FOLDER = families.DATA / "llama"


@pytest.fixture(scope="module")
def restored() -> tuple[Decoder, cs.Lens]:
    return families.restored(FOLDER)


def test_a_llama_computes_what_transformers_does_and_is_written_as_it_was(
    restored: tuple[Decoder, cs.Lens], tmp_path: Path
) -> None:
    model, lens = restored
    assert families.error_of(model, FOLDER) < families.MOST
    cs.hf.save(tmp_path / "again", model, lens, config_from=FOLDER)
    assert families.unlike(FOLDER, tmp_path / "again") == []
    config = (tmp_path / "again" / "config.json").read_text()
    assert config == (FOLDER / "config.json").read_text()


def test_whatever_is_exchanged_is_seen_in_what_is_computed(
    restored: tuple[Decoder, cs.Lens],
) -> None:
    """Two tensors of one shape in each other's place; or a square one turned."""
    model, lens = restored
    graph, state = nnx.split(model)
    tokens = np.load(FOLDER / "expected.npz")["tokens"]
    run = jax.jit(lambda weights: nnx.merge(graph, weights)(tokens))
    tensors = cs.hf.load(FOLDER)
    right = run(state)
    pairs = [
        {one: tensors[other], other: tensors[one]}
        for one, other in itertools.combinations(tensors, 2)
        if tensors[one].shape == tensors[other].shape
    ]
    square = [name for name, array in tensors.items() if len({*array.shape}) < array.ndim]
    assert len(pairs) > 20 and square
    for changed in [*pairs, *({name: tensors[name].T} for name in square)]:
        weights = lens.get({**tensors, **changed}, onto=state)
        error = np.abs(run(weights) - right).max() / np.abs(right).max()
        assert error > families.MOST, [*changed]


def test_a_head_that_no_file_has_is_the_embedding(tmp_path: Path) -> None:
    tensors = cs.hf.load(FOLDER)
    del tensors["lm_head.weight"]
    cs.hf.save(tmp_path / "tied", tensors)
    lens = llama.lens_of(tmp_path / "tied")
    model = cs.hf.restore(tmp_path / "tied", Decoder(llama.dims_from(FOLDER), nnx.Rngs(0)), lens)
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
    target = cs.abstract(cs.nnx.Params[llama.Decoder], sizes)
    assert cs.check(cs.nnx.Params[llama.Decoder], target).ok


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
