"""Conversion on disk: what is converted restores as the source does through the lens, and what only moves is not read."""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as v0
import pytest
import tensorstore as ts
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float32, Int32
from orbax.checkpoint import v1 as ocp
from support import killed
from support.models import SIZES, to_nnx, to_stacked
from support.profiles import thorough_only

import ckpt_schema as cs
from ckpt_schema.orbax import _pytree_files, _rewriting
from ckpt_schema.testing._meshes import as_jax
from ckpt_schema.testing._states import makers

same = cs.assert_trees_identical


def abstract(tree: Any) -> Any:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def files(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()
    }


# --- formats: what wrote the source  ---


def in_v1(path: Path, tree: Any, *, ocdbt: bool = True, zarr3: bool = True) -> Path:
    context = ocp.Context()
    context.array.saving.use_ocdbt, context.array.saving.use_zarr3 = ocdbt, zarr3
    with context:
        ocp.save(path, tree)
    return path


def by_standard(path: Path, tree: Any) -> Path:
    with v0.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
    return path


def by_pytree(path: Path, tree: Any) -> Path:
    v0.PyTreeCheckpointer(use_ocdbt=False).save(path, tree)
    return path


def by_manager(path: Path, tree: Any) -> Path:
    with v0.CheckpointManager(path) as manager:
        items = {"state": v0.args.StandardSave(tree), "config": v0.args.JsonSave({"lr": 0.1})}
        manager.save(3, args=v0.args.Composite(**items))
    return path / "3"


WRITERS: dict[str, Callable[[Path, Any], Path]] = {
    "v1": in_v1,
    "v1, files of zarr3": functools.partial(in_v1, ocdbt=False),
    "v1, a database of zarr2": functools.partial(in_v1, zarr3=False),
    "StandardCheckpointer": by_standard,
    "PyTreeCheckpointer, files of zarr2": by_pytree,
    "CheckpointManager": by_manager,
}


# --- the law: convert, then restore == restore through the lens  ---


@pytest.mark.filterwarnings("ignore:.*which are not read")
@pytest.mark.parametrize("made", [to_nnx, to_stacked])
def test_what_is_converted_restores_as_the_source_does(
    tmp_path: Path, made: Callable[[], cs.Lens]
) -> None:
    lens, rng = made().bind(heads=4, head_dim=2), np.random.default_rng(0)
    source, view = (make(rng, as_jax) for make in makers(SIZES[0], lens.source, lens.view))
    old, new, back = tmp_path / "old", tmp_path / "new", tmp_path / "back"
    ocp.save(old, source)
    expected = cs.orbax.restore(old, abstract(view), lens)
    done = cs.orbax.convert(old, new, lens, verify=True)
    assert done.moved and done.edited and done.made
    shutil.rmtree(old)
    same(cs.orbax.restore(new, abstract(view), lens), expected)
    same(cs.orbax.restore(new, abstract(source), lens), source)
    cs.orbax.convert(new, back, lens)
    shutil.rmtree(new)
    same(ocp.load(back, abstract(source)), source)  # by one who knows only Orbax
    same(cs.orbax.restore(back, abstract(view), lens), expected)


class Attention(cs.Schema):
    q: Float32[Array, "embed out"]
    k: Float32[Array, "embed out"]
    v: Float32[Array, "embed out"]
    norm: Float32[Array, " embed"]


class Apart(cs.Schema):
    layers: list[Attention] = cs.field(length="depth")
    step: Int32[Array, ""]
    rng: cs.Key["rbg"]


class FusedAttention(cs.Schema):
    qkv: Float32[Array, "embed 3*out"]
    norm: Float32[Array, " embed"] = cs.field(key="norm/scale")


class Fused(cs.Schema):
    layers: FusedAttention = cs.field(key="blocks", scan="depth", axis=0)
    step: Int32[Array, ""]
    rng: cs.Key["rbg"] = cs.field(key="stream/key")


FUSED = cs.derive(
    Apart,
    Fused,
    rules=[cs.fuse("layers[]/qkv", ["layers[]/q", "layers[]/k", "layers[]/v"])],
)


def apart() -> Any:
    def leaf(n: int, *shape: int) -> Any:
        return jnp.arange(n, n + int(np.prod(shape)), dtype="float32").reshape(shape)

    layers = [
        {"q": leaf(n, 4, 2), "k": leaf(n + 8, 4, 2), "v": leaf(n + 16, 4, 2), "norm": leaf(n, 4)}
        for n in (0, 50, 90)
    ]
    return {"layers": layers, "step": jnp.int32(7), "rng": jax.random.key(3, impl="rbg")}


@pytest.mark.parametrize("writer", WRITERS)
def test_every_format_is_converted(tmp_path: Path, writer: str) -> None:
    state = apart()
    path = WRITERS[writer](tmp_path / "old", state)
    before = files(path)
    done = cs.orbax.convert(path, tmp_path / "new", FUSED, verify=True)
    assert (done.moved, done.edited, done.made) == (2, 2, 0)
    assert files(path) == before
    shutil.rmtree(tmp_path / "old")
    expected = FUSED.get(state)
    same(cs.orbax.restore(tmp_path / "new", abstract(expected), FUSED), expected)
    told = cs.orbax.load(tmp_path / "new")
    same(told["stream"]["key"], state["rng"])
    if writer == "CheckpointManager":
        shutil.move(tmp_path / "new", tmp_path / "run" / "3")
        with v0.CheckpointManager(tmp_path / "run") as manager:
            items = {"state": v0.args.StandardRestore(expected), "config": v0.args.JsonRestore()}
            found = manager.restore(3, args=v0.args.Composite(**items))
        same(found["state"], expected)
        assert found["config"] == {"lr": 0.1}


# --- what only moves is not read  ---


class Old(cs.Schema):
    a: Float32[Array, "n n"]
    b: Float32[Array, "n n"]


class New(cs.Schema):
    a: Float32[Array, "n n"] = cs.field(key="model/a/kernel")
    b: Float32[Array, "n n"] = cs.field(key="model/b/kernel")


RENAMED = cs.derive(Old, New)
READ, WRITTEN = (f"/tensorstore/kvstore/file/bytes_{verb}" for verb in ("read", "written"))


def counted(metric: str) -> int:
    found = ts.experimental_collect_matching_metrics(metric)
    return sum(value["value"] for each in found for value in each["values"])


@pytest.mark.parametrize("ocdbt", [True, False])
def test_a_rename_reads_and_writes_no_byte_of_an_array(tmp_path: Path, ocdbt: bool) -> None:
    rng, mesh = np.random.default_rng(0), jax.make_mesh((4,), ("x",))
    spread = NamedSharding(mesh, PartitionSpec("x"))
    state = {name: jax.device_put(rng.random((512, 512), "float32"), spread) for name in "ab"}
    old, new = in_v1(tmp_path / "old", state, ocdbt=ocdbt), tmp_path / "new"
    size = sum(map(len, files(old).values()))
    before = counted(READ), counted(WRITTEN)
    done = cs.orbax.convert(old, new, RENAMED)
    assert (done.moved, done.linked, done.written) == (2, 2 * 2**20, 0)
    assert counted(READ) - before[0] < 20_000
    assert counted(WRITTEN) - before[1] < 20_000
    own = [file for file in new.rglob("*") if file.is_file() and file.stat().st_nlink == 1]
    assert sum(file.stat().st_size for file in own) < 10_000 < size
    shutil.rmtree(old)
    found = ocp.load(new)  # as it was sharded, without a target
    assert found["model"]["a"]["kernel"].sharding.spec == PartitionSpec("x")
    same(found, RENAMED.get(state))


def test_what_no_leaf_needs_is_not_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    layers = {f"layers_{i}": {"w": rng.random((256, 256), "float32")} for i in range(4)}
    old = in_v1(tmp_path / "old", {"net": layers})
    stack = np.stack([layer["w"] for layer in layers.values()])
    cs.orbax.convert(old, tmp_path / "new", {"net": {"layers": {"w": stack}}})
    shutil.rmtree(old)
    assert sum(map(len, files(tmp_path / "new").values())) < 1.1 * stack.nbytes


def test_a_leaf_is_let_go_before_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    names = [f"kernel_{i}" for i in range(4)]
    listed = {f"layers_{i}": {n: rng.random((8, 8), "float32") for n in names} for i in range(3)}
    in_v1(tmp_path / "old", {"net": listed})
    stacked = {"net": {"layers": dict.fromkeys(names, np.zeros((3, 8, 8), "float32"))}}
    largest = 3 * 8 * 8 * 4
    read_arrays, alive = _rewriting.read_arrays, list[int]()

    def counted(*given: Any) -> Any:
        alive.append(sum(array.nbytes for array in jax.live_arrays()))
        return read_arrays(*given)

    monkeypatch.setattr(_rewriting, "_SMALL", 0)  # or else all of it is held at once
    monkeypatch.setattr(_rewriting, "read_arrays", counted)
    before = sum(array.nbytes for array in jax.live_arrays())
    cs.orbax.convert(tmp_path / "old", tmp_path / "new", stacked, verify=True)
    made, looked_at = alive[: len(names)], alive[len(names) :]
    assert len(looked_at) == 2 * len(names)
    assert max(made) - before <= largest, "what was made waits for its save"
    assert [bytes - before for bytes in looked_at] == [0, largest] * len(names)


def test_where_no_file_has_two_names_it_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refused)
    ocp.save(tmp_path / "old", apart())
    cs.orbax.convert(tmp_path / "old", tmp_path / "new", FUSED, verify=True)
    same(cs.orbax.restore(tmp_path / "new", FUSED.get(apart()), FUSED), FUSED.get(apart()))


# --- how long it will take  ---


def test_a_plan_tells_how_long_it_takes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    listed = {f"layers_{i}": {"w": rng.random((1024, 1024), "float32")} for i in range(8)}
    run, new = tmp_path / "run", tmp_path / "new"
    for step in ("1", "2"):
        in_v1(run / step, {"net": listed})
    stacked = {"net": {"layers": {"w": np.zeros((8, 1024, 1024), "float32")}}}
    before = files(tmp_path)
    untimed = cs.orbax.convert(run, new, stacked, dry_run=True)
    assert untimed.seconds is untimed.sample is None
    start = time.perf_counter()
    plan = cs.orbax.convert(run, new, stacked, dry_run=True, timed=True)
    taken = time.perf_counter() - start
    assert plan.sample is not None and plan.sample.bytes == 2**25
    assert 0 < plan.sample.seconds < taken
    assert plan.seconds == pytest.approx(2 * plan.sample.seconds)
    alone = cs.orbax.convert(run / "1", new / "deep" / "1", stacked, dry_run=True, timed=True)
    assert alone.sample is not None
    assert alone.seconds == pytest.approx(alone.sample.seconds)
    assert files(tmp_path) == before
    assert dataclasses.replace(plan, sample=None) == untimed
    assert cs.orbax.convert(run, new, stacked) == untimed


def test_what_is_only_renamed_has_no_sample(tmp_path: Path) -> None:
    in_v1(tmp_path / "old", {name: np.ones((4, 4), "float32") for name in "ab"})
    plan = cs.orbax.convert(tmp_path / "old", tmp_path / "new", RENAMED, dry_run=True, timed=True)
    assert (plan.seconds, plan.written) == (None, 0)


def test_a_place_that_takes_nothing_has_no_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_v1(tmp_path / "old", apart())

    def refused(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(_rewriting, "saved", refused)
    plan = cs.orbax.convert(tmp_path / "old", tmp_path / "new", FUSED, dry_run=True, timed=True)
    assert plan.sample is None and plan.edited


# --- what is beside the state  ---


def test_all_that_is_beside_the_state_comes_along(tmp_path: Path) -> None:
    state, also = apart(), {"data": {"index": jnp.arange(3)}}
    told: dict[str, Any] = {"custom_metadata": {"run": "a"}, "at": "model", "item": "items"}
    cs.orbax.save(tmp_path / "old", state, FUSED, also=also, **told)
    cs.orbax.convert(tmp_path / "old", tmp_path / "new", FUSED, item="items", at="model")
    shutil.rmtree(tmp_path / "old")
    assert ocp.metadata(tmp_path / "new").custom_metadata == {"run": "a"}
    same(cs.orbax.load(tmp_path / "new", item="data"), also["data"])
    found = cs.orbax.restore(
        tmp_path / "new", FUSED.get(state), FUSED, item="items", at="model", target_side="view"
    )
    same(found, FUSED.get(state))


def test_what_stands_around_the_state_stays(tmp_path: Path) -> None:
    whole = {"ema": {"x": jnp.ones(3)}, "epoch": 3, "model": apart(), "none": None}
    ocp.save(tmp_path / "old", whole)
    cs.orbax.convert(tmp_path / "old", tmp_path / "new", FUSED, at="model", verify=True)
    same(ocp.load(tmp_path / "new"), whole | {"model": cs.orbax.load(tmp_path / "new")["model"]})
    found = cs.orbax.restore(tmp_path / "new", FUSED.get(apart()), FUSED, at="model")
    same(found, FUSED.get(apart()))


def test_a_state_in_several_items_is_converted(tmp_path: Path) -> None:
    items = {"layers": "params"}
    cs.orbax.save(tmp_path / "old", apart(), cs.derive(Apart, Apart), items=items)
    cs.orbax.convert(tmp_path / "old", tmp_path / "new", FUSED, items=items, verify=True)
    same(cs.orbax.restore(tmp_path / "new", FUSED.get(apart()), FUSED), FUSED.get(apart()))


def test_a_target_says_the_layout(tmp_path: Path) -> None:
    state = apart()
    listed = {"net": {f"layers_{i}": layer for i, layer in enumerate(state["layers"])}}
    ocp.save(tmp_path / "old", listed)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *state["layers"])
    target = {"net": {"layers": stacked}}
    cs.orbax.convert(tmp_path / "old", tmp_path / "new", lambda: target, verify=True)
    same(ocp.load(tmp_path / "new"), target)


# --- what is wrong  ---


def refused(kind: type[cs.CkptSchemaError], *args: Any, **named: Any) -> str:
    with pytest.raises(kind) as caught:
        cs.orbax.convert(*args, **named)
    return str(caught.value)


IN_PLACE = [cs.rename(name, f"model/{name}/kernel", axes="0 1") for name in "ab"]


def test_what_is_there_already_is_what_would_be_made(tmp_path: Path) -> None:
    run, new = tmp_path / "run", tmp_path / "new"
    state = {"a": jnp.ones((2, 2)), "b": jnp.ones((2, 2))}
    for step in ("1", "2"):
        ocp.save(run / step, state)
    cs.orbax.convert(run / "1", new / "1", RENAMED)
    assert cs.orbax.convert(run, new, RENAMED, dry_run=True).already == 1
    told = str(cs.orbax.convert(run, new, RENAMED))
    assert told.startswith("1 checkpoint: 2 leaves moved") and "; 1 checkpoint there" in told
    there = str(cs.orbax.convert(run, new, RENAMED))
    assert there == "nothing to do: 2 checkpoints there already"
    shutil.rmtree(new / "2")
    other = {"model": {"a": state["a"]}, "c": state["b"]}
    rules = [cs.rename("a", "model/a", axes="0 1"), cs.rename("b", "c", axes="0 1")]
    before = files(new)
    for dry_run in (True, False):
        error = refused(cs.CheckpointExistsError, run, new, other, rules=rules, dry_run=dry_run)
        assert f"{new}/1 is not what this makes" in error
        assert "model.a.kernel  expected no such leaf, found float32[2 2]" in error
    assert files(new) == before
    wider = {"model": {name: {"kernel": jnp.ones((2, 2), "float16")} for name in "ab"}}
    lens = cs.adapt(state, wider, rules=[*IN_PLACE, cs.cast("**", rounding="nearest")])
    error = refused(cs.CheckpointExistsError, run, new, lens)
    assert "expected float16[2 2], found float32[2 2]" in error
    (new / "2").mkdir()
    assert "2" in refused(cs.CheckpointMismatchError, run, new, RENAMED)


def test_what_cannot_be_converted_is_said(tmp_path: Path) -> None:
    ocp.save(tmp_path / "old", apart())
    taken = tmp_path / "taken"
    taken.mkdir()
    assert "not overwritten" in refused(cs.CheckpointExistsError, tmp_path / "old", taken, FUSED)
    assert "neither" in refused(
        cs.CheckpointMismatchError, tmp_path / "old", tmp_path / "new", RENAMED
    )
    assert "a remote store" in refused(
        cs.ConformanceError, "gs://bucket/run/1", tmp_path / "new", FUSED
    )
    assert "none beside a lens" in refused(
        cs.ConformanceError, tmp_path / "old", tmp_path / "new", FUSED, rules=[cs.rename("a", "b")]
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old", "taken"]


def test_what_would_not_survive_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    ocp.save(tmp_path / "old", {"a": np.float32([[1, 0.1]] * 2), "b": np.ones((2, 2), "float32")})
    halves = {name: np.zeros((2, 2), "float16") for name in "ab"}
    text = refused(cs.ConformanceError, tmp_path / "old", tmp_path / "new", halves)
    assert "a" in text and "0.1" in text
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_verify_sees_a_leaf_in_the_place_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    ocp.save(tmp_path / "old", {name: rng.random((64, 64), "float32") for name in "ab"})
    write = _pytree_files.Assembly._refer

    def swapped(self: Any, folder: Path) -> None:
        a, b = self.leaves.values()
        leaves = dict(zip(self.leaves, (b, a), strict=True))
        write(_pytree_files.Assembly(self.entries, leaves, self.like), folder)

    monkeypatch.setattr(_pytree_files.Assembly, "_refer", swapped)
    cs.orbax.convert(tmp_path / "old", tmp_path / "unseen", RENAMED)
    told = refused(
        cs.CheckpointWriteError, tmp_path / "old", tmp_path / "new", RENAMED, verify=True
    )
    assert "model.a.kernel" in told and "model.b.kernel" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old", "unseen"]


@thorough_only
def test_a_conversion_that_is_killed_leaves_nothing_that_loads() -> None:
    script = Path(killed.__file__)
    run = subprocess.run(
        [sys.executable, script, "--rounds", "2"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert not run.returncode, run.stdout + run.stderr
