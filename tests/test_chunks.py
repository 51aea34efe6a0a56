"""A save that knows its reader: the same bits, and no reader reads more than it holds."""

from __future__ import annotations

import itertools
import json
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from jaxtyping import Array, Float32
from orbax.checkpoint import v1 as ocp

import ckpt_schema as cs
from ckpt_schema.orbax import _chunks

same = cs.assert_trees_identical
DEVICES = np.asarray(jax.devices()[:8])
SAVED = Mesh(DEVICES.reshape(8), ("all",))
READER = Mesh(DEVICES.reshape(2, 4), ("data", "model"))


class Old(cs.Schema):
    wide: Float32[Array, "embed mlp"]
    stack: Float32[Array, "depth rows columns"]
    scale: Float32[Array, " embed"]
    noise: cs.Key["rbg"]


class New(cs.Schema):
    wide: Float32[Array, "mlp embed"] = cs.field(key="up/kernel")
    stack: Float32[Array, "depth rows columns"] = cs.field(key="down/kernel")
    scale: Float32[Array, " embed"] = cs.field(key="norm/scale")
    noise: cs.Key["rbg"] = cs.field(key="rngs/noise")


LENS = cs.derive(Old, New)
SPECS = {"wide": ("all",), "stack": (None, "all"), "scale": (), "noise": ()}


def saved() -> dict[str, Any]:
    """What is saved: sharded over all devices on one axis each; random bits, which do not compress."""
    rng = np.random.default_rng(0)
    made: dict[str, Any] = {"noise": jax.random.key(3, impl="rbg")}
    for name, shape in {"wide": (64, 4096), "stack": (4, 64, 1024), "scale": (64,)}.items():
        made[name] = rng.integers(0, 2**31, shape, np.int32).view("float32")
    made = {name: made[name] for name in SPECS}
    place = {name: NamedSharding(SAVED, PartitionSpec(*spec)) for name, spec in SPECS.items()}
    return {name: jax.device_put(leaf, place[name]) for name, leaf in made.items()}


ACROSS = {"wide": (None, "model"), "stack": (None, None, "model"), "scale": (), "noise": ()}


def target(mesh: Any = READER) -> dict[str, Any]:
    """How it is read: cut across the axes of the save."""
    made: dict[str, Any] = {}
    for name, leaf in saved().items():
        sharding = NamedSharding(mesh, PartitionSpec(*ACROSS[name]))
        made[name] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return made


def chunks(path: Path) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """What was written at once of each array, and its chunks, as Orbax has noted them."""
    (file,) = (path / "state" / "array_metadatas").iterdir()
    notes = [each["array_metadata"] for each in json.loads(file.read_text())["array_metadatas"]]
    found: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    for note in notes:
        found[note["param_name"]] = tuple(note["write_shape"]), tuple(note["chunk_shape"])
    return found


def held(tree: Any, processes: int) -> int:
    """The most bytes that a process holds, each part of a leaf once."""
    most = [0] * processes
    for leaf in jax.tree.leaves(tree):
        parts: list[set[str]] = [set() for _ in most]
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        for shard in leaf.addressable_shards:
            process = shard.device.id * processes // len(jax.devices())
            if str(shard.index) not in parts[process]:
                parts[process].add(str(shard.index))
                most[process] += shard.data.nbytes
    return max(most)


# --- the law: the same bits, and next to nothing is read that is not held  ---


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_a_reader_reads_what_it_holds(tmp_path: Path, processes: int) -> None:
    state, wanted = saved(), target()
    cs.orbax.save(tmp_path / "plain", state)
    cs.orbax.save(tmp_path / "cut", state, read_as=wanted)
    restored = {name: cs.orbax.restore(tmp_path / name, wanted) for name in ("plain", "cut")}
    same(restored["plain"], restored["cut"])
    same(cs.orbax.restore(tmp_path / "cut", state), state)
    same(ocp.load(tmp_path / "cut", state), state)  # by one who knows Orbax alone
    share = held(restored["cut"], processes)
    read: dict[str, int] = {}
    for name in ("plain", "cut"):
        read[name] = max(cs.orbax.dry_run(tmp_path / name, wanted, processes=processes).read)
    assert read["cut"] <= 1.1 * share
    if processes > 2:  # of two, each holds all parts of the axis "model"
        assert read["plain"] > 1.9 * share


def test_it_is_said_in_each_way_that_names_shardings(tmp_path: Path) -> None:
    state, wanted = saved(), target()
    ways: dict[str, Any] = {
        "target": wanted,
        "of the other side": LENS.get(wanted),
        "abstract mesh": target(AbstractMesh((2, 4), ("data", "model"))),
        "shardings": jax.tree.map(lambda leaf: leaf.sharding, wanted),
        "Variables": nnx.State({name: nnx.Param(leaf) for name, leaf in wanted.items()}),
    }
    found: dict[str, Any] = {}
    for name, read_as in ways.items():
        cs.orbax.save(tmp_path / name, state, LENS, read_as=read_as)
        found[name] = chunks(tmp_path / name)
    assert found == dict.fromkeys(ways, found["target"])
    assert found["target"]["wide"] == ((8, 4096), (1, 1024))
    assert found["target"]["scale"] == ((8,), (8,))
    module = nnx.State({name: nnx.Param(leaf) for name, leaf in state.items()})
    cs.orbax.save(tmp_path / "module", module, LENS, read_as=wanted)
    assert chunks(tmp_path / "module")["wide.value"] == found["target"]["wide"]


def test_what_says_no_shardings_is_refused(tmp_path: Path) -> None:
    state = saved()
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
    for read_as in (target, shapes, lambda: shapes):
        with pytest.raises(cs.ConformanceError, match=r"expected shardings, found none"):
            cs.orbax.save(tmp_path / "0", state, read_as=read_as)
    with pytest.raises(cs.ConformanceError, match="read_as conforms to neither"):
        cs.orbax.save(tmp_path / "0", state, LENS, read_as={"wide": target()["wide"]})
    assert not (tmp_path / "0").exists()


def test_a_mesh_keeps_the_specs(tmp_path: Path) -> None:
    state = saved()
    for number, mesh in enumerate([AbstractMesh((64,), ("all",)), AbstractMesh((2,), ("all",))]):
        cs.orbax.save(tmp_path / str(number), LENS.get(state), LENS, read_as=mesh)
    finer, coarser = (chunks(tmp_path / name) for name in "01")
    assert finer["wide"] == ((8, 4096), (1, 4096))
    assert coarser["wide"] == ((8, 4096), (8, 4096))
    with pytest.raises(cs.ConformanceError) as caught:
        cs.orbax.save(tmp_path / "2", state, read_as=READER)
    assert {fault.path for fault in caught.value.mismatches} == {"wide", "stack"}
    assert "data, model" in str(caught.value) and "abstract target" in str(caught.value)
    with pytest.raises(cs.ConformanceError, match="share evenly"):
        cs.orbax.save(tmp_path / "2", state, read_as=AbstractMesh((24,), ("all",)))
    with pytest.raises(cs.ConformanceError, match="another structure"):
        cs.orbax.save(tmp_path / "2", state, read_as={"wide": SingleDeviceSharding(DEVICES[0])})
    assert not (tmp_path / "2").exists()


def test_what_stands_elsewhere_is_cut_too(tmp_path: Path) -> None:
    state, items = saved(), {"stack": "stacks"}
    cs.orbax.save(tmp_path / "0", state, read_as=target())
    cs.orbax.save(tmp_path / "1", state, read_as=target(), at="run/model")
    cs.orbax.save(tmp_path / "2", state, read_as=target(), items=items)
    expected, below, spread = (chunks(tmp_path / name) for name in "012")
    assert {f"run.model.{name}": told for name, told in expected.items()} == below
    assert {name: told for name, told in expected.items() if name != "stack"} == spread
    (file,) = (tmp_path / "2" / "stacks" / "array_metadatas").iterdir()
    (note,) = json.loads(file.read_text())["array_metadatas"]
    assert tuple(note["array_metadata"]["chunk_shape"]) == expected["stack"][1]


def test_the_context_of_the_caller_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options, asked = ocp.options.ArrayOptions.Saving.StorageOptions, list[str]()

    def mine(key: Any, leaf: Any) -> Any:
        asked.append(jax.tree_util.keystr(key))
        return options(dtype=jnp.bfloat16) if leaf.ndim == 1 else None

    context = ocp.Context()
    context.array.saving.scoped_storage_options_creator = mine
    with context:
        cs.orbax.save(tmp_path / "0", saved(), read_as=target())
    assert {*asked} == {f"['{name}']" for name in SPECS}
    found = cs.orbax.load(tmp_path / "0")
    assert str(found["scale"].dtype) == "bfloat16"
    assert chunks(tmp_path / "0")["wide"][1] != (8, 4096)
    assert context.array.saving.scoped_storage_options_creator is mine
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


# --- what Orbax makes of the words that it is told  ---

SHAPES = st.lists(st.sampled_from([1, 6, 8, 20, 64, 96]), min_size=1, max_size=3).map(tuple)


@given(st.data(), SHAPES)
def test_a_cut_is_the_best_there_is(data: Any, shape: tuple[int, ...]) -> None:
    parts = {n: [m for m in range(1, n + 1) if n % m == 0] for n in set(shape)}
    written, shard = (tuple(data.draw(st.sampled_from(parts[n])) for n in shape) for _ in range(2))
    ratio = read_by_elements(shape, shard, written)
    index = 80 * np.prod(shape) / np.prod(written) / np.prod(shard) / 1024
    assert _chunks._ratio(shape, shard, written, 1024) == pytest.approx(ratio + index)
    cut = _chunks._best(shape, written, shard, 1024)
    if cut is None:
        return
    assert read_by_elements(shape, shard, cut.chunk) < ratio
    assert np.prod(cut.chunk) * 1024 == cut.bytes


def read_by_elements(shape: Any, shard: Any, chunk: Any) -> float:
    """What a device reads at most, by what it holds; found element by element."""
    most = 0
    for where in itertools.product(*(range(0, n, m) for n, m in zip(shape, shard, strict=True))):
        touched = np.zeros(shape, bool)
        index = tuple(slice(a, a + m) for a, m in zip(where, shard, strict=True))
        numbers = [np.arange(n) // m for n, m in zip(shape, chunk, strict=True)]
        for axis, (each, own) in enumerate(zip(numbers, index, strict=True)):
            needed = np.isin(each, each[own])
            wide = needed.reshape([-1 if n == axis else 1 for n in range(len(shape))])
            touched = np.broadcast_to(wide, shape) if axis == 0 else touched & wide
        most = max(most, int(touched.sum()))
    return most / int(np.prod(shard))


@pytest.mark.parametrize("replicated", [False, True])
def test_orbax_cuts_as_it_is_foretold(tmp_path: Path, replicated: bool) -> None:
    """When this fails, Orbax cuts otherwise: read_as still saves the same bits, but chooses badly."""
    spec = ("data", None, "model") if replicated else ("model", "data")
    leaf = jnp.zeros((24, 64, 48))
    leaf = jax.device_put(leaf, NamedSharding(READER, PartitionSpec(*spec)))
    if replicated:
        leaf = jax.device_put(leaf, NamedSharding(READER, PartitionSpec(None, None, "model")))
    written = _chunks._shape_written(leaf)
    for number, axes in enumerate([(), (0,), (1, 2)]):
        wanted = [*_chunks._chunks(leaf.shape, written, axes)]
        for count, chunk in enumerate(wanted[:: max(len(wanted) // 4, 1)]):
            cut = _chunks.Chunking(int(np.prod(chunk)) * 4, axes, chunk)
            path = tmp_path / f"{number}-{count}"
            with _chunks.written_in({id(leaf): cut}):
                ocp.save(path, {"a": leaf})
            assert chunks(path)["a"] == (written, chunk)
