"""What a restore would cost, held against what one does cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, BFloat16, Float32
from orbax.checkpoint import v1 as ocp

import ckpt_schema as cs
from ckpt_schema.cli import main

DEVICES = np.asarray(jax.devices()[:8])
SAVED, WANTED = Mesh(DEVICES.reshape(8), ("all",)), Mesh(DEVICES.reshape(4, 2), ("data", "model"))


def sharded(mesh: Mesh, *spec: Any) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(*spec))


def saved() -> dict[str, Any]:
    """What is on disk: sharded over all devices on the first axis."""
    arrays = {"a": jnp.ones((16, 24)), "b": jnp.ones((8, 6), jnp.bfloat16), "c": jnp.ones(5)}
    specs = {"a": ("all",), "b": ("all",), "c": ()}
    return {"params": {n: jax.device_put(x, sharded(SAVED, *specs[n])) for n, x in arrays.items()}}


def target() -> dict[str, Any]:
    """What it is restored into, on another mesh."""
    specs = {"a": (None, "model"), "b": ("data", "model"), "c": ()}
    shapes = {"a": (16, 24), "b": (8, 6), "c": (5,)}
    dtypes = {"a": "float32", "b": "bfloat16", "c": "float32"}
    made: dict[str, Any] = {}
    for name, spec in specs.items():
        sharding = sharded(WANTED, *spec)
        made[name] = jax.ShapeDtypeStruct(shapes[name], dtypes[name], sharding=sharding)
    return {"params": made}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cost") / "1"
    cs.orbax.save(path, saved())
    return path


def chunks(array: jax.Array, parts: tuple[int, int], devices: Any) -> int:
    """The bytes of all chunks of which some devices have something, found element by element."""
    touched = np.zeros(array.shape, bool)
    rows, columns = (np.arange(n) // c for n, c in zip(array.shape, parts, strict=True))
    cells = rows[:, None] * 1000 + columns[None, :]
    for shard in array.addressable_shards:
        if shard.device in devices:
            touched |= np.isin(cells, np.unique(cells[shard.index]))
    return int(touched.sum()) * array.dtype.itemsize


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_each_process_reads_the_chunks_that_it_needs(path: Path, processes: int) -> None:
    cost = cs.orbax.dry_run(path, target(), processes=processes)
    restored = cs.orbax.restore(path, target())["params"]
    stored = {"a": (2, 24), "b": (1, 6)}
    share = len(jax.devices()) // processes
    for number, read in enumerate(cost.read):
        own = jax.devices()[number * share : (number + 1) * share]
        expected = sum(chunks(restored[name], parts, own) for name, parts in stored.items())
        expected += 20 if set(own) & set(DEVICES) else 0  # the vector that is whole everywhere
        assert read == expected, number


def read_from_files() -> int:
    """How many bytes TensorStore has read from files, as it counts them itself."""
    name = "/tensorstore/kvstore/file/bytes_read"
    metrics = tensorstore.experimental_collect_matching_metrics(name)
    counts = [each["values"] for each in metrics if each["name"] == name]
    return sum(value["value"] for values in counts for value in values)


@pytest.mark.parametrize("spec", [("data",), ("model", "data"), (None, "model"), ()])
def test_what_it_reads_is_what_tensorstore_reads(tmp_path: Path, spec: tuple[Any, ...]) -> None:
    shape = 512, 1024
    noise = np.random.default_rng(0).integers(0, 2**32, shape, np.uint32)  # cannot be compressed
    saved_as = sharded(SAVED, None, "all")
    cs.orbax.save(tmp_path / "1", {"params": {"a": jax.device_put(noise, saved_as)}})
    leaf = jax.ShapeDtypeStruct(shape, np.uint32, sharding=sharded(WANTED, *spec))
    cost = cs.orbax.dry_run(tmp_path / "1", {"params": {"a": leaf}})
    before = read_from_files()
    jax.block_until_ready(cs.orbax.restore(tmp_path / "1", {"params": {"a": leaf}}))
    read = read_from_files() - before
    # Metadata, and the hundredth part that noise grows by where it is compressed.
    assert 0.99 * sum(cost.read) <= read <= 1.02 * sum(cost.read_at_most) + 2**14
    if spec in ((None, "model"), ()):  # each device needs whole chunks
        assert cost.read == cost.read_at_most


def held(tree: Any) -> int:
    """The most bytes of a tree that a device holds."""
    totals = dict.fromkeys(jax.devices(), 0)
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            totals[shard.device] += shard.data.nbytes
    return max(totals.values())


def test_a_device_holds_its_shards_of_the_result(path: Path) -> None:
    cost = cs.orbax.dry_run(path, target())
    assert cost.result == held(cs.orbax.restore(path, target())) == cost.peak
    assert (cost.leaves, cost.stored) == (3, 3)


def test_what_is_edited_needs_room_for_it(path: Path) -> None:
    class Old(cs.Schema):
        a: Float32[Array, "rows columns"]
        b: BFloat16[Array, "x y"]
        c: Float32[Array, " z"]

    class New(cs.Schema):
        a: Float32[Array, "columns rows"] = cs.field(key="turned")
        b: BFloat16[Array, "x y"]
        c: Float32[Array, " z"]

    lens = cs.derive(Old, New)
    dims = {"rows": 16, "columns": 24, "x": 8, "y": 6, "z": 5}
    into = cs.abstract(New, dims, WANTED, {"columns": "model"})
    cost = cs.orbax.dry_run(path, into, lens, at="params")
    largest = 16 * 12 * 4
    restored = cs.orbax.restore(path, into, lens, at="params")
    assert cost.result == held(restored) == largest + 96 + 20
    assert cost.peak == cost.result + 2 * largest


def test_what_the_target_has_no_place_for_is_not_read(path: Path) -> None:
    lone = {"params": {"c": target()["params"]["c"]}}
    rules = [cs.private("a", cs.own), cs.private("b", cs.own)]
    cost = cs.orbax.dry_run(path, lone, rules=rules, processes=2)
    assert (cost.leaves, cost.stored, cost.read) == (1, 3, (20, 20))


def test_nothing_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object, **named: object) -> None:
        raise AssertionError("an array is read")

    monkeypatch.setattr(ocp, "load", refuse)
    cs.orbax.dry_run(path, target())
    with pytest.raises(cs.CheckpointMismatchError):
        cs.orbax.restore(path, target())


def test_what_a_restore_refuses_is_refused(path: Path) -> None:
    wrong = {"params": {**target()["params"], "d": jax.ShapeDtypeStruct((3,), "float32")}}
    with pytest.raises(cs.DerivationError) as planned:
        cs.orbax.dry_run(path, wrong)
    with pytest.raises(cs.DerivationError) as restored:
        cs.orbax.restore(path, wrong)
    assert str(planned.value) == str(restored.value)
    with pytest.raises(cs.ConformanceError, match="processes"):
        cs.orbax.dry_run(path, target(), processes=0)


MODELS = """
import jax
from jax.sharding import NamedSharding, PartitionSpec

SHAPES = {"a": (16, 24), "b": (8, 6), "c": (5,)}
DTYPES = {"a": "float32", "b": "bfloat16", "c": "float32"}


def state(mesh=None):
    spec = PartitionSpec(*(() if mesh is None else mesh.axis_names[:1]))
    made = {}
    for name, shape in SHAPES.items():
        own = None if mesh is None or name == "c" else NamedSharding(mesh, spec)
        made[name] = jax.ShapeDtypeStruct(shape, DTYPES[name], sharding=own)
    return {"params": made}
"""


def test_the_command_prints_it(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "models.py").write_text(MODELS)
    given = ["plan", str(path), f"{tmp_path / 'models.py'}:state"]
    assert main([*given, "--mesh", "4x2", "--processes", "4"]) == 0
    printed = capsys.readouterr().out
    assert "3 of 3 arrays on disk are read" in printed
    assert "each of 4 processes reads 428 B" in printed  # a quarter of two, and all of the third
    assert main([*given, "--mesh", "data=4,model=2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["read"] == [1652]
    assert main([*given, "--mesh", "1000x10"]) == 3
    assert "10000 devices" in capsys.readouterr().err
    assert main([*given, "--mesh", "3x1"]) == 3
    assert "params/a  expected axes that the devices share evenly" in capsys.readouterr().err
    for mesh in ("4x", "data=4,2", "0x1", "x"):
        with pytest.raises(SystemExit):
            main([*given, "--mesh", mesh])
