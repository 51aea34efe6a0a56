"""Folders of Hugging Face: what is read of them, and what is refused."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import llama_models as llama
import ml_dtypes
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors.numpy import save, save_file

import ckpt_schema as cs
from ckpt_schema._safetensors import ranges
from ckpt_schema._safetensors.weights import read_weights

DTYPES = {
    **{str(np.dtype(kind)): kind for kind in "?bBhHiIlLefdF"},
    **{
        name: getattr(ml_dtypes, name)
        for name in (
            *("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"),
            *("float8_e4m3fnuz", "float8_e5m2fnuz"),
        )
    },
}


def same(one: Any, other: Any) -> bool:
    """Equal in shape, dtype and every bit."""
    left, right = np.asarray(one), np.asarray(other)
    return (left.dtype, left.shape) == (right.dtype, right.shape) and (
        left.tobytes() == right.tobytes()
    )


def written(folder: Path, tensors: dict[str, Any], *, files: int = 1) -> Path:
    """A folder of one file, or of several with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    if files == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder
    where = {name: f"model-{at % files + 1:05}.safetensors" for at, name in enumerate(tensors)}
    for file in {*where.values()}:
        own = {name: tensors[name] for name in tensors if where[name] == file}
        save_file(own, folder / file)
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def raw(header: Any, buffer: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + buffer


# --- Reading  ---


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_read_to_the_last_bit(tmp_path: Path, dtype: str) -> None:
    kind = np.dtype(DTYPES[dtype])
    bits = np.random.default_rng(0).integers(0, 256, (4, 3, kind.itemsize), np.uint8)
    array = (bits % 2 == 1)[..., 0] if kind == np.bool_ else bits.view(kind)[..., 0].copy()
    tensors = {"a": array, "none": array[:0], "scalar": array[0, 0][None].reshape(())}
    written(tmp_path, tensors)
    found = cs.hf.load(tmp_path)
    assert {name: same(found[name], array) for name, array in tensors.items()} == dict.fromkeys(
        tensors, True
    )
    assert cs.hf.metadata(tmp_path)["a"].dtype == kind


@pytest.mark.parametrize("how", ["folder", "file", "files", "index", "link"])
def test_a_folder_a_file_and_several_with_an_index_are_read(tmp_path: Path, how: str) -> None:
    tensors = llama.tensors()
    path = written(tmp_path / "it", tensors, files=2 if how in ("files", "index") else 1)
    if how == "file":
        path /= "model.safetensors"
    if how == "index":
        path /= "model.safetensors.index.json"
    if how == "link":  # as in a cache of Hugging Face
        (tmp_path / "link").mkdir()
        (path / "model.safetensors").rename(tmp_path / "blob")
        (tmp_path / "link" / "model.safetensors").symlink_to(tmp_path / "blob")
        path = tmp_path / "link"
    found = cs.hf.load(path)
    assert found.keys() == tensors.keys()
    assert all(same(found[name], tensors[name]) for name in tensors)
    assert cs.infer(path).rows == cs.infer(tensors, joined=".").rows


def test_metadata_reads_headers_alone(tmp_path: Path) -> None:
    size = 1 << 40
    entry = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    file = tmp_path / "model.safetensors"
    file.write_bytes(raw({"a": entry}))
    os.truncate(file, file.stat().st_size + size)  # a hole: no disk has so much
    assert cs.hf.metadata(tmp_path)["a"].shape == (size,)


def test_a_part_is_read_by_globs(tmp_path: Path) -> None:
    written(tmp_path, llama.tensors(), files=3)
    found = cs.hf.load(tmp_path, only=["**/layers/1/mlp/*/weight", "lm_head/*"])
    assert sorted(found) == [
        "lm_head.weight",
        *(f"model.layers.1.mlp.{name}_proj.weight" for name in ("down", "gate", "up")),
    ]
    with pytest.raises(cs.CheckpointMismatchError, match="there are 30 tensors"):
        cs.hf.load(tmp_path, only="**/bias")


@pytest.fixture
def mesh() -> Mesh:
    return jax.make_mesh((2, 4), ("x", "y"))


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many bytes of tensors have been read."""
    counts: list[int] = []
    reader: Any = ranges._Reading  # pyright: ignore[reportPrivateUsage]
    read = reader._read

    def counted(self: Any, start: int, made: Any) -> None:
        counts.append(made.nbytes)
        read(self, start, made)

    monkeypatch.setattr(reader, "_read", counted)
    return lambda: sum(counts)


@pytest.mark.parametrize(
    "spec", [("x",), (None, "y"), ("y", "x"), (None, None, "x"), ("x", None, "y"), ()]
)
@pytest.mark.parametrize("piece", [16, 200, 1 << 24])
def test_shards_are_read_by_their_ranges(
    tmp_path: Path,
    mesh: Mesh,
    count: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
    spec: tuple[Any, ...],
    piece: int,
) -> None:
    monkeypatch.setattr(ranges, "_PIECE", piece)
    array = np.random.default_rng(0).standard_normal((8, 4, 8)).astype(np.float32)
    written(tmp_path, {"a": array, "b": array})
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    found = cs.hf.load(tmp_path, only="a", sharding=sharding)["a"]
    assert found.sharding == sharding
    assert same(found, array)
    assert count() == array.nbytes  # each byte once, whatever the shards


def test_what_other_processes_hold_is_not_read(tmp_path: Path, count: Callable[[], int]) -> None:
    array = np.arange(8 * 6 * 4, dtype=np.int32).reshape(8, 6, 4)
    written(tmp_path, {"a": array})
    weights = read_weights(tmp_path)
    box = ((2, 4), (0, 6), (0, 4))
    assert same(ranges.read_extents(weights.tensors["a"], [box])[box], array[2:4])
    assert count() == array[2:4].nbytes


# --- Restoring  ---

LENS = cs.derive(llama.File, cs.nnx.Params[llama.Model], rules=llama.RULES)


def test_a_llama_is_restored_into_a_model_and_goes_back_bit_for_bit(tmp_path: Path) -> None:
    tensors = llama.tensors()
    model = cs.hf.restore(written(tmp_path, tensors, files=2), llama.Llama(nnx.Rngs(0)), LENS)
    query = tensors["model.layers.1.self_attn.q_proj.weight"]
    halves = query.reshape(llama.HEADS, 2, llama.HEAD_DIM // 2, llama.EMBED)
    pairs = halves.transpose(3, 0, 2, 1).reshape(llama.EMBED, llama.HEADS, llama.HEAD_DIM)
    assert same(model.layers[1].attention.query.kernel[...], pairs / 2)
    fused = model.layers[2].gate_up.kernel[...]
    assert same(fused[:, llama.MLP :], tensors["model.layers.2.mlp.up_proj.weight"].T)
    back = LENS.put(nnx.state(model))
    assert back.keys() == tensors.keys()
    assert all(same(back[name], tensors[name]) for name in tensors)


def test_a_target_is_sharded_as_it_says(
    tmp_path: Path, mesh: Mesh, count: Callable[[], int]
) -> None:
    tensors = llama.tensors()
    written(tmp_path, tensors)
    rules = {"embed": "x", "mlp": "y", "heads": "y", "vocab": "y"}
    sizes = {"heads": llama.HEADS, "kv": llama.KV, "half": llama.HEAD_DIM // 2, "vocab": 16}
    dims = {"embed": llama.EMBED, "mlp": llama.MLP, "depth": llama.DEPTH, **sizes}
    target = cs.abstract(cs.nnx.Params[llama.Model], dims, mesh, rules)
    found = cs.hf.restore(tmp_path, target, LENS)
    for one, asked in zip(jax.tree.leaves(found), jax.tree.leaves(target), strict=True):
        assert one.sharding == asked.sharding
    assert count() == sum(array.nbytes for array in tensors.values())
    back = LENS.put(found)
    assert all(same(back[name], tensors[name]) for name in tensors)


class Plain(nnx.Module):
    """A model that spells its weights in its own way, and no shape otherwise."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(llama.VOCAB, llama.EMBED, rngs=rngs)
        self.layers = nnx.List([PlainLayer(rngs) for _ in range(3)])


class PlainLayer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.mlp = nnx.Linear(llama.EMBED, llama.MLP, use_bias=False, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)


PLAIN = [
    cs.rename("model/embed_tokens/weight", "embed/embedding"),
    cs.rename("model/layers[]/mlp/weight", "layers[]/mlp/kernel", axes="1 0"),
]


def plain_tensors(dtype: Any = np.float32) -> dict[str, Any]:
    every = llama.tensors(dtype)
    found = {"model.embed_tokens.weight": every["model.embed_tokens.weight"]}
    gates = [every[f"model.layers.{n}.mlp.gate_proj.weight"] for n in range(3)]
    return found | {f"model.layers.{n}.mlp.weight": gate for n, gate in enumerate(gates)}


def test_a_folder_is_adapted_to_a_model_that_nobody_declared(tmp_path: Path) -> None:
    tensors = plain_tensors()
    written(tmp_path, tensors)
    model = cs.hf.restore(tmp_path, Plain(nnx.Rngs(0)), rules=PLAIN)
    kernel = model.layers[2].mlp.kernel[...]
    assert same(kernel, tensors["model.layers.2.mlp.weight"].T)
    lens = cs.adapt(tmp_path, Plain(nnx.Rngs(0)), rules=PLAIN)
    assert "model.layers.{i}.mlp.weight" in str(lens)
    assert same(lens.get(cs.hf.load(tmp_path))["layers"][2]["mlp"]["kernel"][...], kernel)


def test_an_optimizer_starts_anew_from_narrow_weights(tmp_path: Path) -> None:
    tensors = plain_tensors(ml_dtypes.bfloat16)
    written(tmp_path, tensors)

    class Training(nnx.Module):
        def __init__(self) -> None:
            self.model = Plain(nnx.Rngs(0))
            self.optimizer = nnx.Optimizer(self.model, optax.adamw(1e-3), wrt=nnx.Param)

    training = Training()
    model = cs.hf.restore(tmp_path, training.model, rules=PLAIN)
    assert model is training.model
    wide = tensors["model.layers.2.mlp.weight"].T.astype(np.float32)
    assert same(training.model.layers[2].mlp.kernel[...], wide)


# --- What is refused  ---

TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def entry(**parts: Any) -> dict[str, Any]:
    return {"a": {**TENSOR, **parts}}


DAMAGED = {
    "nothing": (b"", "found 0 bytes"),
    "a short length": (b"\1\0\0", "found 3 bytes"),
    "a length beyond the file": (struct.pack("<Q", 99) + b"{}", "one that claims 99"),
    "a huge length": (struct.pack("<Q", 2**63) + b"{}", "one that claims 9223372036854775808"),
    "no header": (struct.pack("<Q", 0), "one that begins with b''"),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "no object": (raw(b"[]"), "one that begins with b'[]'"),
    "blanks before": (raw(b" {}"), "one that begins with"),
    "no JSON": (raw(b'{"a": '), "Expecting value"),
    "more than one object": (raw(b"{}{}"), "Extra data"),
    "no UTF-8": (raw(b'{"\xff": 1}'), "no UTF-8"),
    "half a surrogate": (raw(b'{"\\ud800": 1}'), "no UTF-8"),
    "no number": (raw(b'{"a": NaN}'), "NaN, which is no number of JSON"),
    "a long number": (raw(b'{"a": ' + b"1" * 5000 + b"}"), "Exceeds the limit"),
    "deep lists": (raw(b'{"a": ' + b"[" * 100_000 + b"}"), "lists in lists without an end"),
    "a name twice": (
        raw(b'{"a": ' + json.dumps(TENSOR).encode() + b', "a": []}', bytes(8)),
        "expected one tensor of a name, found several",
    ),
    "a part twice": (
        raw(json.dumps(entry()).replace('"dtype"', '"dtype": "I32", "dtype"').encode(), bytes(8)),
        "expected one tensor of a name, found several",
    ),
    "no entry": (raw({"a": 3}), "expected dtype, shape and data_offsets, found 3"),
    "a part too few": (raw({"a": {"dtype": "F32", "shape": []}}), "found dtype, shape"),
    "a part too many": (raw(entry(strides=[1]), bytes(8)), "found dtype, shape, data_offsets, s"),
    "an unknown dtype": (raw(entry(dtype="F31"), bytes(8)), "found 'F31'"),
    "half bytes": (raw(entry(dtype="F4", shape=[16]), bytes(8)), "share a byte, which is not read"),
    "no dtype": (raw(entry(dtype=["F32"]), bytes(8)), "found ['F32']"),
    "no shape": (raw(entry(shape=2), bytes(8)), "a shape of at most 64 sizes, found 2"),
    "a negative size": (raw(entry(shape=[-2]), bytes(8)), "found [-2]"),
    "a size that is a bool": (raw(entry(shape=[True, 2]), bytes(8)), "found [True, 2]"),
    "a size that is a float": (raw(entry(shape=[2.0]), bytes(8)), "found [2.0]"),
    "a huge size": (raw(entry(shape=[2**64]), bytes(8)), "a shape of at most 64 sizes"),
    "many axes": (raw(entry(shape=[1] * 64 + [2]), bytes(8)), "a shape of at most 64 sizes"),
    "sizes that overflow": (
        raw(entry(shape=[2**40, 2**40, 0], data_offsets=[0, 0])),
        "a shape that an array can have",
    ),
    "another size": (raw(entry(shape=[3]), bytes(8)), "expected 12 bytes, as F32 of shape [3] has"),
    "offsets that turn": (raw(entry(data_offsets=[8, 0]), bytes(8)), "two data_offsets"),
    "one offset": (raw(entry(data_offsets=[0]), bytes(8)), "two data_offsets"),
    "an offset beyond the file": (raw(entry(), bytes(7)), "data_offsets up to 7"),
    "a hole in front": (raw(entry(data_offsets=[4, 12]), bytes(12)), "found 4: a hole"),
    "bytes behind": (raw(entry(), bytes(9)), "expected 8 bytes of tensors, found 9"),
    "bytes of no tensor": (raw({}, bytes(1)), "expected 0 bytes of tensors, found 1"),
    "shared bytes": (
        raw({**entry(), "b": {**TENSOR, "data_offsets": [4, 12]}}, bytes(12)),
        "found 4: it shares bytes with another",
    ),
    "no texts": (raw({"__metadata__": {"format": 1}}), "expected texts by name"),
    "a list of texts": (raw({"__metadata__": []}), "expected texts by name"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, case: str) -> None:
    content, text = DAMAGED[case]
    (tmp_path / "model.safetensors").write_bytes(content)
    for read in (cs.hf.metadata, cs.hf.load, cs.infer):
        with pytest.raises(cs.CheckpointMismatchError) as raised:
            read(tmp_path)
        assert text in str(raised.value)
    with pytest.raises(cs.CheckpointMismatchError, match=r"model\.safetensors"):
        cs.hf.restore(tmp_path, {"a": jnp.zeros(2)})


def test_all_faults_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    tensors = {"a": np.zeros(2, np.float32), "b": np.ones(2, np.float32), "c": np.ones(1)}
    written(tmp_path, tensors, files=3)
    wrong = {"x": {**TENSOR, "dtype": "F31"}, "y": {**TENSOR, "shape": [7]}}
    (tmp_path / "model-00001.safetensors").write_bytes(raw(wrong, bytes(8)))
    (tmp_path / "model-00003.safetensors").unlink()
    with pytest.raises(cs.CheckpointMismatchError) as raised:
        cs.hf.metadata(tmp_path)
    assert [fault.path for fault in raised.value.mismatches] == [
        "model-00003.safetensors",
        "model-00001.safetensors: x",
        "model-00001.safetensors: y",
    ]


INDICES: dict[str, tuple[Any, str]] = {
    "no JSON": (b"{", "Expecting property name"),
    "no map": ({"metadata": {}}, "found {'metadata': {}}"),
    "a list": ([], "found []"),
    "an empty map": ({"weight_map": {}}, "found {'weight_map': {}}"),
    "a name twice": (b'{"weight_map": {"a": "1.safetensors", "a": "2.safetensors"}}', "twice"),
    "a file elsewhere": ({"weight_map": {"a": "../1.safetensors"}}, "a file beside the index"),
    "no file": ({"weight_map": {"a": 1}}, "the name of a file beside the index, found 1"),
    "no such file": ({"weight_map": {"a": "3.safetensors"}}, "expected a file, found no such file"),
    "a tensor in another file": (
        {"weight_map": {"a": "2.safetensors", "b": "2.safetensors"}},
        "expected the tensor that the index names, found none",
    ),
    "a tensor that is not named": (
        {"weight_map": {"a": "1.safetensors"}},
        "expected no tensor but those that the index names, found one",
    ),
    "a tensor in two files": (
        {"weight_map": {"a": "1.safetensors", "b": "2.safetensors", "c": "2.safetensors"}},
        "expected each tensor in one file, found it in 1.safetensors too",
    ),
}


@pytest.mark.parametrize("case", INDICES)
def test_an_index_that_does_not_fit_is_refused(tmp_path: Path, case: str) -> None:
    index, text = INDICES[case]
    one = np.zeros(2, np.float32)
    double = case == "a tensor in two files"
    save_file(
        {"a": one, "c": one} if not double else {"a": one, "b": one}, tmp_path / "1.safetensors"
    )
    save_file({"b": one, "c": one} if double else {"b": one}, tmp_path / "2.safetensors")
    told = index if isinstance(index, bytes) else json.dumps(index).encode()
    (tmp_path / "model.safetensors.index.json").write_bytes(told)
    with pytest.raises(cs.CheckpointMismatchError) as raised:
        cs.hf.metadata(tmp_path)
    assert text in str(raised.value)


FOLDERS: dict[str, tuple[list[str], str]] = {
    "an empty one": ([], "found an empty directory"),
    "others": (["notes.txt"], "found a directory with notes.txt"),
    "pickles": (["pytorch_model.bin", "notes.txt"], "a pickle runs code when it is read"),
    "Orbax": (["_METADATA"], "found a checkpoint of Orbax (ckpt_schema.orbax reads it)"),
    "several": (["1.safetensors", "2.safetensors"], "need the index that names them"),
    "a file and an index": (
        ["model.safetensors", "model.safetensors.index.json"],
        "several: model.safetensors, model.safetensors.index.json",
    ),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_that_could_be_anything_is_refused(tmp_path: Path, case: str) -> None:
    names, text = FOLDERS[case]
    for name in names:
        (tmp_path / name).write_bytes(save({}))
    with pytest.raises(cs.CheckpointMismatchError) as raised:
        cs.hf.metadata(tmp_path)
    assert text in str(raised.value.mismatches[0])


def test_no_such_path(tmp_path: Path) -> None:
    with pytest.raises(cs.CheckpointMismatchError, match="nothing is downloaded"):
        cs.hf.load(tmp_path / "meta-llama")


def test_only_files_of_orbax_are_converted_on_disk(tmp_path: Path) -> None:
    written(tmp_path / "old", plain_tensors())
    with pytest.raises(cs.CheckpointMismatchError, match=r"hf\.restore reads it"):
        cs.orbax.convert(tmp_path / "old", tmp_path / "new", Plain(nnx.Rngs(0)), rules=PLAIN)


def test_adapters_beside_the_file_of_a_model_are_not_meant(tmp_path: Path) -> None:
    written(tmp_path, {"a": np.zeros(2)})
    save_file({"b": np.zeros(2)}, tmp_path / "adapter_model.safetensors")
    assert [*cs.hf.metadata(tmp_path)] == ["a"]
    assert [*cs.hf.metadata(tmp_path / "adapter_model.safetensors")] == ["b"]


def test_a_bool_is_one_of_two_bytes(tmp_path: Path) -> None:
    header = {"a": {"dtype": "BOOL", "shape": [2], "data_offsets": [0, 2]}}
    (tmp_path / "model.safetensors").write_bytes(raw(header, b"\1\2"))
    with pytest.raises(cs.CheckpointMismatchError, match="neither 0 nor 1, in BOOL"):
        cs.hf.load(tmp_path)


def test_a_file_that_was_cut_since_is_an_error(tmp_path: Path) -> None:
    written(tmp_path, {"a": np.zeros(1000)})
    weights = read_weights(tmp_path)
    os.truncate(tmp_path / "model.safetensors", 800)
    with pytest.raises(cs.CheckpointMismatchError, match="the end of the file"):
        ranges.read_tensor(weights.tensors["a"])


def test_what_the_target_is_not_is_told_before_anything_is_read(
    tmp_path: Path, count: Callable[[], int]
) -> None:
    tensors = llama.tensors()
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:, :4].copy()
    del tensors["model.layers.1.mlp.up_proj.weight"]
    written(tmp_path, tensors)
    with pytest.raises(cs.CheckpointMismatchError) as raised:
        cs.hf.restore(tmp_path, llama.Llama(nnx.Rngs(0)), LENS)
    text = str(raised.value)
    assert "model.layers.1.mlp.up_proj.weight" in text
    assert "lm_head.weight" in text
    assert count() == 0


def test_a_part_is_restored_by_what_its_names_begin_with(
    tmp_path: Path, count: Callable[[], int]
) -> None:
    """Without it the lens and the rules name them; a part of several is told by its own name."""
    tensors = llama.tensors()
    other = {"vision_tower.patch.weight": np.ones((2, 2), np.float32)}
    seeing = {f"language_model.{name}": array for name, array in tensors.items()} | other
    written(tmp_path / "hub", seeing)
    lens = cs.derive(llama.File, cs.nnx.Params[llama.Model], rules=llama.RULES)
    found = cs.hf.restore(tmp_path / "hub", llama.Llama(nnx.Rngs(0)), lens, at="language_model")
    assert count() == sum(array.nbytes for array in tensors.values())
    back = lens.put(nnx.state(found, nnx.Param))
    assert all(same(back[name], array) for name, array in tensors.items())

    target = {"weight": jax.ShapeDtypeStruct(tensors["model.norm.weight"].shape, "float32")}
    norm = cs.hf.restore(tmp_path / "hub", target, at="language_model.model.norm")
    assert same(norm["weight"], tensors["model.norm.weight"])
    path = {"text": tmp_path / "hub"}
    several = cs.hf.restore(
        path,
        nnx.eval_shape(lambda: llama.Llama(nnx.Rngs(0))),
        cs.merge(text=(lens, "")),
        at={"text": "language_model"},
    )
    cs.assert_trees_identical(nnx.state(several, nnx.Param), nnx.state(found, nnx.Param))
    with pytest.raises(cs.ConformanceError, match="a key path for some of text"):
        cs.hf.restore(path, target, at="language_model")
    with pytest.raises(cs.CheckpointMismatchError, match="found language_model, vision_tower"):
        cs.hf.restore(tmp_path / "hub", target, at="text")


def test_what_metadata_tells_is_a_target(tmp_path: Path, mesh: Mesh) -> None:
    tensors = {"model.layers.0.w": np.ones((8, 2), "f4"), "norm": np.ones(3, "f4")}
    written(tmp_path, tensors)
    target = cs.hf.metadata(tmp_path)
    rows = NamedSharding(mesh, PartitionSpec("x"))
    target["model.layers.0.w"] = jax.ShapeDtypeStruct((8, 2), "float32", sharding=rows)
    found = cs.hf.restore(tmp_path, target)
    assert found["model.layers.0.w"].sharding == rows
    assert all(same(found[name], array) for name, array in tensors.items())


# --- names with dots in memory ---


class Block(nnx.Module):
    """A layer."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Makes it."""
        self.up = nnx.Linear(4, 6, rngs=rngs)
        self.norm = nnx.RMSNorm(4, rngs=rngs)


class Net(nnx.Module):
    """Two layers and a head."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Makes them."""
        self.layers = nnx.List([Block(rngs) for _ in range(2)])
        self.head = nnx.Linear(4, 6, rngs=rngs)


def named_as_net() -> dict[str, np.ndarray[Any, Any]]:
    """Tensors with the names of the leaves of `Net`, no two of them alike."""
    found: dict[str, np.ndarray[Any, Any]] = {}
    for number, node in enumerate(("layers.0.up", "layers.1.up", "head")):
        found[f"{node}.kernel"] = np.arange(24, dtype="f4").reshape(4, 6) + number
        found[f"{node}.bias"] = np.full(6, number, "f4")
    for number in range(2):
        found[f"layers.{number}.norm.scale"] = np.full(4, 9 + number, "f4")
    return found


@pytest.mark.parametrize("how", ["load", "metadata", "layout"])
def test_what_a_folder_gives_is_adapted_as_the_folder_is(how: str, tmp_path: Path) -> None:
    """Names are paths, and numbers in them layers of a list; so is a flat dict that nobody has written."""
    tensors, net = named_as_net(), Net(nnx.Rngs(0))
    folder = written(tmp_path / "hub", tensors)
    given = {"load": cs.hf.load, "metadata": cs.hf.metadata, "layout": cs.infer}[how](folder)
    lens, of_folder = cs.adapt(given, net), cs.adapt(folder, net)
    assert str(lens).splitlines()[1:] == str(of_folder).splitlines()[1:]
    assert str(cs.adapt(net, given)).splitlines()[1:] == str(~lens).splitlines()[1:]
    made = lens.get(tensors, onto=net)
    assert same(made.layers[1].up.kernel[...], tensors["layers.1.up.kernel"])
    assert all(same(array, tensors[name]) for name, array in lens.put(made).items())
    assert cs.infer(cs.hf.load(folder)).rows == cs.infer(folder).rows


def test_of_names_in_memory_a_part_is_what_begins_so(tmp_path: Path) -> None:
    part = named_as_net()
    whole = {f"language_model.{name}": array for name, array in part.items()}
    whole["vision_tower.weight"] = np.ones(3, "f4")
    lens = cs.adapt(whole, Net(nnx.Rngs(0)), at="language_model")
    assert str(lens) == str(cs.adapt(part, Net(nnx.Rngs(0))))
    with pytest.raises(cs.ConformanceError, match="nothing at language"):
        cs.adapt(whole, Net(nnx.Rngs(0)), at="language")


def test_the_rules_of_an_error_are_of_paths() -> None:
    """In which one rule is one of all layers; the second error says that torch turns its weights."""
    torch = {
        name.replace("kernel", "weight"): array.T if "kernel" in name else array
        for name, array in named_as_net().items()
    }
    rules: list[Any] = []
    for axes in ("", ", axes='1 0'"):
        with pytest.raises(cs.DerivationError) as caught:
            cs.adapt(torch, Net(nnx.Rngs(0)), rules=rules)
        rules = [*caught.value.rules]
        assert [*map(str, rules)] == [
            f"rename('head/weight', 'head/kernel'{axes})",
            f"rename('layers[]/up/weight', 'layers[]/up/kernel'{axes})",
        ]
    assert len(cs.adapt(torch, Net(nnx.Rngs(0)), rules=rules).joins) == 5


@pytest.mark.parametrize("names", [("a", "a.b"), ("a..b", "c"), (".a", "c"), ("a.", "c")])
def test_names_that_are_no_paths_stay_names(names: tuple[str, str]) -> None:
    """A leaf that is a node as well, and a dot beside nothing."""
    tree = {name: np.ones(2, "f4") for name in names}
    assert [row.model_path for row in cs.infer(tree).rows] == [(name,) for name in names]
    assert cs.infer({"node": tree, "other": {"x.y": np.ones(2)}}).rows[-1].path[-1] == "x.y"
