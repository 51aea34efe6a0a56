"""Folders of Hugging Face that are written: what is in them, and what is left where a save does not succeed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import llama_models as llama
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import ckpt_schema as cs
from ckpt_schema.hf import _save

LENS = cs.derive(llama.File, cs.nnx.Params[llama.Model], rules=llama.RULES)


def names_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.fixture(scope="module")
def model() -> nnx.Module:
    return nnx.clone(llama.Llama(nnx.Rngs(0)))


def test_a_file_is_what_safetensors_writes(tmp_path: Path) -> None:
    names = ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu")
    kinds = [*map(np.dtype, "?bBhHiIlLefdF"), *(np.dtype(getattr(ml_dtypes, n)) for n in names)]
    drawn = np.random.default_rng(0)
    tensors: dict[str, Any] = {}
    for number, kind in enumerate(kinds):
        bits = drawn.integers(0, 256, (3, 2, kind.itemsize), np.uint8)
        bits = bits % 2 if kind == np.bool_ else bits
        tensors[f"b.{30 - number}"] = bits.view(kind)[..., 0]
        tensors[f"a.é{number}\n"] = bits.view(kind)[:1, 0, 0].reshape(())
        tensors[f"none.{number}"] = bits.view(kind)[:0, :, 0]
    cs.hf.save(tmp_path / "own", tensors)
    save_file(
        {name: np.array(array, order="C") for name, array in tensors.items()},
        tmp_path / "theirs",
        {"format": "pt"},
    )
    own = (tmp_path / "own" / "model.safetensors").read_bytes()
    assert own == (tmp_path / "theirs").read_bytes()


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_llama_goes_to_a_model_and_back_to_the_same_file(tmp_path: Path, dtype: Any) -> None:
    tensors = llama.tensors(dtype)
    (tmp_path / "old").mkdir()
    save_file(tensors, tmp_path / "old" / "model.safetensors", {"format": "pt"})
    file = cs.layout(llama.File)
    rows = [replace(row, leaf=replace(row.leaf, dtype=str(np.dtype(dtype)))) for row in file.rows]
    own = replace(file, rows=tuple(rows))
    lens = cs.derive(own, cs.nnx.Params[llama.Model], rules=llama.RULES)
    model = cs.hf.restore(tmp_path / "old", llama.Llama(nnx.Rngs(0)), lens)
    assert model.layers[0].attention.query.kernel[...].dtype == np.float32
    cs.hf.save(tmp_path / "new", model, lens)
    old, new = (tmp_path / name / "model.safetensors" for name in ("old", "new"))
    assert new.read_bytes() == old.read_bytes()


def test_what_rules_round_goes_back_to_the_bits_of_the_file(tmp_path: Path) -> None:
    """As in Gemma, whose norms are kept as differences from 1, and MaxText, which scales queries of any width."""
    tensors = llama.tensors()
    cs.hf.save(tmp_path / "old", tensors)
    rules = [
        cs.scale("layers[]/query/weight", "(6*half) ** -0.5"),
        cs.shift("layers[]/before/weight", 1.0),
        llama.RULES[1],
    ]
    lens = cs.derive(llama.File, cs.nnx.Params[llama.Model], rules=rules)
    model = cs.hf.restore(tmp_path / "old", llama.Llama(nnx.Rngs(0)), lens)
    norm = tensors["model.layers.0.input_layernorm.weight"]
    assert (np.asarray(model.layers[0].before.scale[...]) == norm + 1).all()
    model.norm.scale[...] += 1
    cs.hf.save(tmp_path / "new", model, lens, onto=cs.hf.load(tmp_path / "old"))
    found = cs.hf.load(tmp_path / "new")
    changed = found.pop("model.norm.weight")
    assert (changed == tensors.pop("model.norm.weight") + 1).all()
    assert all(found[name].tobytes() == tensors[name].tobytes() for name in tensors)


def test_several_files_have_the_index_of_transformers(tmp_path: Path, model: nnx.Module) -> None:
    cs.hf.save(tmp_path / "it", model, LENS, shard_bytes=2000, metadata={"by": "me"})
    index = json.loads((tmp_path / "it" / "model.safetensors.index.json").read_text())
    files = sorted({*index["weight_map"].values()})
    assert files == [
        f"model-{n:05}-of-{len(files):05}.safetensors" for n in range(1, len(files) + 1)
    ]
    assert len(files) > 2
    wanted = LENS.put(nnx.state(model))
    assert index["metadata"] == {"total_size": sum(array.nbytes for array in wanted.values())}
    found: dict[str, Any] = {}
    for file in files:
        tensors = load_file(tmp_path / "it" / file)
        assert sum(array.nbytes for array in tensors.values()) <= 2000
        assert {index["weight_map"][name] for name in tensors} == {file}
        found |= tensors
        with safe_open(tmp_path / "it" / file, "numpy") as opened:
            assert opened.metadata() == {"by": "me"}
    assert found.keys() == wanted.keys()
    assert all((found[name] == np.asarray(wanted[name])).all() for name in wanted)
    back = cs.hf.restore(tmp_path / "it", llama.Llama(nnx.Rngs(1)), LENS)
    assert not cs.differences(nnx.state(back, nnx.Param), nnx.state(model, nnx.Param))


def test_config_and_tokenizer_come_along(tmp_path: Path, model: nnx.Module) -> None:
    old = tmp_path / "old"
    old.mkdir()
    copied = ["config.json", "tokenizer.json", "tokenizer.model", "merges.txt", "LICENSE"]
    left = ["model.safetensors", "pytorch_model.bin", "x.safetensors.index.json", "README.md", ".x"]
    for name in (*copied, *left):
        (old / name).write_text(name)
    (old / "onnx").mkdir()
    cs.hf.save(tmp_path / "new", model, LENS, config_from=old)
    assert names_in(tmp_path / "new") == sorted([*copied, "model.safetensors"])
    assert (tmp_path / "new" / "tokenizer.json").read_text() == "tokenizer.json"


@pytest.mark.parametrize("size", [1000, 20])
def test_a_file_of_another_name_is_written_and_found(tmp_path: Path, size: int) -> None:
    """As PEFT looks for it, and beside it a config of its own; of several, an index of that name."""
    tensors = {f"base_model.model.q.lora_{part}.weight": np.ones((2, 3), "f4") for part in "AB"}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "adapter_config.json").write_text("{}")
    name = "adapter_model.safetensors"
    words: dict[str, Any] = {"name": name, "config_from": tmp_path / "run", "shard_bytes": size}
    cs.hf.save(tmp_path / "it", tensors, **words)
    several = [f"adapter_model-{n:05}-of-00002.safetensors" for n in (1, 2)]
    files = [name] if size > 24 else [*several, f"{name}.index.json"]
    assert names_in(tmp_path / "it") == sorted(["adapter_config.json", *files])
    found = cs.hf.load(tmp_path / "it")
    assert found.keys() == tensors.keys()
    assert all((found[key] == one).all() for key, one in tensors.items())


class Tied(cs.Schema, joined="."):
    embed: llama.Linear = cs.field(key="wte", dims={"out": "vocab", "inner": "embed"})


class Twice(cs.Schema):
    embed: llama.Embedding
    head: llama.Turned = cs.field(dims={"inner": "embed", "out": "vocab"})


def test_a_tensor_that_a_model_has_twice_is_written_once(tmp_path: Path) -> None:
    lens = cs.derive(Tied, Twice, rules=[cs.tie("head/weight", "embed/weight")])
    table = np.arange(6, dtype=np.float32).reshape(3, 2)
    state = {"embed": {"embedding": table}, "head": {"kernel": table.T}}
    cs.hf.save(tmp_path / "it", state, lens)
    assert [*load_file(tmp_path / "it" / "model.safetensors")] == ["wte.weight"]
    assert not cs.differences(
        cs.hf.restore(tmp_path / "it", state, lens), jax.tree.map(jnp.asarray, state)
    )
    state["head"]["kernel"] = table.T + 1
    with pytest.raises(cs.ConformanceError, match="head/kernel"):
        cs.hf.save(tmp_path / "other", state, lens)
    assert names_in(tmp_path) == ["it"]


def test_a_state_that_nobody_declared_is_saved_like_a_folder(tmp_path: Path) -> None:
    old = {"fc.weight": np.ones((3, 2), np.float32), "fc.bias": np.zeros(3, np.float32)}
    cs.hf.save(tmp_path / "old", old)
    rules = [cs.rename("fc/weight", "fc/kernel", axes="1 0")]
    state = {"fc": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3)}}
    cs.hf.save(tmp_path / "new", state, layout=tmp_path / "old", rules=rules)
    found = cs.hf.load(tmp_path / "new")
    assert (found["fc.weight"] == np.arange(6.0).reshape(2, 3).T).all()
    assert (found["fc.bias"] == 1).all()


@pytest.mark.parametrize("piece", [1, 192, 1 << 20])
def test_what_is_sharded_is_written_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    """As it is where shards are rows, and put together where they are not: one row at once, three, or all."""
    monkeypatch.setattr(_save, "_PIECE", piece)
    mesh = jax.make_mesh((2, 4), ("x", "y"))
    array = jnp.arange(256.0, dtype="bfloat16").reshape(8, 4, 8)
    specs = [("x",), (None, "y"), ("y", "x"), (None, None, "y"), ("x", None, "y"), (("y", "x"),)]
    placed = {
        str(spec): jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))
        for spec in specs
    }
    cs.hf.save(tmp_path / "it", {"a": placed, "n": 3})
    found = cs.hf.load(tmp_path / "it")
    assert found.pop("n") == 3
    assert len(found) == len(specs)
    assert all(one.tobytes() == np.asarray(array).tobytes() for one in found.values())
    assert all(one._npy_value is None for one in placed.values())  # jax keeps no copy of any


def test_a_system_may_write_less_than_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda at, data, *place: whole(at, data[:7], *place))
    sharding = NamedSharding(jax.make_mesh((2, 4), ("x", "y")), PartitionSpec("x", "y"))
    array = jax.device_put(jnp.arange(64.0).reshape(8, 8), sharding)
    cs.hf.save(tmp_path / "it", {"a": array})
    assert (cs.hf.load(tmp_path / "it")["a"] == np.asarray(array)).all()


@pytest.mark.parametrize(
    "spans", [((0, 4), (0, 6), (0, 3)), ((1, 3), (2, 5), (0, 3)), ((1, 2),) * 3]
)
def test_a_part_is_written_to_its_ranges(
    tmp_path: Path, spans: tuple[tuple[int, int], ...]
) -> None:
    array = np.arange(72, dtype=np.int16).reshape(4, 6, 3)
    part = array[tuple(slice(*span) for span in spans)]
    (tmp_path / "file").write_bytes(bytes(10 + array.nbytes))
    with (tmp_path / "file").open("r+b") as opened:
        _save._write_part(opened, 10, array.shape, spans, part, 2)  # pyright: ignore[reportPrivateUsage]
    found = np.frombuffer((tmp_path / "file").read_bytes()[10:], np.int16).reshape(array.shape)
    wanted = np.zeros_like(array)
    wanted[tuple(slice(*span) for span in spans)] = part
    assert (found == wanted).all()


# --- What does not succeed  ---


def test_a_place_that_is_taken_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "it").mkdir()
    with pytest.raises(cs.CheckpointExistsError):
        cs.hf.save(tmp_path / "it", {"a": np.zeros(2)})
    assert names_in(tmp_path) == ["it"]
    assert names_in(tmp_path / "it") == []


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "a key": ({"a": jax.random.key(0)}, {}, "save the weights alone"),
    "complex of 128 bits": ({"a": np.zeros(2, "complex128")}, {}, "cast it beforehand"),
    "one name for two": ({"a.b": np.zeros(2), "a": {"b": np.ones(2)}}, {}, "a.b for"),
    "the name of metadata": ({"__metadata__": np.zeros(2)}, {}, "a name that a file can have"),
    "half of a character": ({"\ud800": np.zeros(2)}, {}, "a name that a file can have"),
    "no value": ({"a": jax.ShapeDtypeStruct((2,), "float32")}, {}, "initialize the state"),
    "no bytes": ({"a": np.zeros(2)}, {"shard_bytes": 0}, "a number of bytes"),
    "no name": ({"a": np.zeros(2)}, {"name": "adapter_model"}, "the name of a file"),
    "a path": ({"a": np.zeros(2)}, {"name": "a/b.safetensors"}, "the name of a file"),
    "no text": ({"a": np.zeros(2)}, {"metadata": {"a": 1}}, "texts by name"),
    "no config": ({"a": np.zeros(2)}, {"config_from": "."}, "a folder with a config.json"),
    "a file": ({"a": np.zeros(2)}, {"at": "model.safetensors"}, "pass the folder"),
    "a draft": ({"a": np.zeros(2)}, {"at": "a.orbax-checkpoint-tmp-1"}, "save elsewhere"),
    "two words": ({"a": np.zeros(2)}, {"lens": LENS, "layout": "x"}, "none beside a lens"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_saved_is_told_before_anything_is_written(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    state, words, text = REFUSED[case]
    with pytest.raises(cs.ConformanceError) as raised:
        cs.hf.save(tmp_path / words.pop("at", "it"), state, **words)
    assert text in str(raised.value)
    assert names_in(tmp_path) == []


def test_all_that_a_dtype_does_not_hold_is_told_at_once(tmp_path: Path) -> None:
    """By pattern, and to who takes leaf by leaf, too."""
    cs.hf.save(tmp_path / "old", llama.tensors(ml_dtypes.bfloat16))
    own = cs.hf.as_stored(llama.File, tmp_path / "old")
    lens = cs.derive(own, cs.nnx.Params[llama.Model], rules=llama.RULES)
    model = cs.hf.restore(tmp_path / "old", llama.Llama(nnx.Rngs(0)), lens)
    changed = [model.norm.scale, *(layer.before.scale for layer in model.layers)]
    for scale in changed:
        scale[...] += 1e-4
    with pytest.raises(cs.ConformanceError) as raised:
        cs.hf.save(tmp_path / "new", model, lens)
    assert names_in(tmp_path) == ["old"]
    assert len(raised.value.mismatches) == len(changed) > 2
    text = str(raised.value)
    assert f"layers/{{0..{len(model.layers) - 1}}}/before/scale" in text and "norm/scale" in text
    with pytest.raises(cs.ConformanceError) as streamed:
        [*(~lens).stream(nnx.state(model, nnx.Param))]
    assert str(streamed.value) == str(raised.value)


def test_a_store_is_refused() -> None:
    with pytest.raises(cs.ConformanceError, match="save to a disk, and copy the folder"):
        cs.hf.save("gs://bucket/it", {"a": np.zeros(2)})


def test_a_save_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = _save._write_bytes  # pyright: ignore[reportPrivateUsage]
    count = iter(range(2))

    def full(opened: Any, start: int, array: Any) -> None:
        if next(count, None) is None:
            raise OSError(28, "No space left on device")
        write(opened, start, array)

    monkeypatch.setattr(_save, "_write_bytes", full)
    with pytest.raises(cs.CheckpointWriteError, match="make room"):
        cs.hf.save(tmp_path / "it", {str(n): np.zeros(2) for n in range(4)})
    assert names_in(tmp_path) == []


_KILLED = """
import os, sys
import numpy as np
from ckpt_schema.hf import _save

write = _save._write_bytes
count = iter(range(2))
def killed(opened, start, array):
    write(opened, start, array)
    opened.flush()
    if next(count, None) is None:
        os._exit(9)
_save._write_bytes = killed
_save.save(sys.argv[1], {str(n): np.ones(2) for n in range(4)})
"""


def test_a_save_that_is_killed_leaves_nothing_that_can_be_read(tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path / "it")], check=False)
    assert run.returncode == 9
    [left] = tmp_path.iterdir()  # a draft, which its name tells
    assert left.name.startswith("it.orbax-checkpoint-tmp-")
    [file] = left.glob("**/*.safetensors")
    for path in (tmp_path / "it", left, file, file.parent):
        with pytest.raises(cs.CheckpointMismatchError):
            cs.hf.load(path)
    with pytest.raises(Exception, match="header"):
        load_file(file)
    cs.hf.save(tmp_path / "it", {"a": np.ones(2)})
    assert [*cs.hf.load(tmp_path / "it")] == ["a"]
