"""What was found wrong on disk, each by the number it was found under: saves, and what a restore is given."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from flax import nnx, serialization
from jaxtyping import Array, Bool, Complex64, Float32, Float64, Int32, Int64, UInt32
from orbax.checkpoint import v1 as ocp
from support import races

import ckpt_schema as cs

same = cs.assert_trees_identical


class Pair(cs.Schema):
    step: Int32[Array, ""]
    w: Float32[Array, " a"]


class Drawn(cs.Schema):
    """The same under other keys, with a stream beside it."""

    step: Int32[Array, ""]
    w: Float32[Array, " a"] = cs.field(key="weight")
    drop: cs.Stream["fry"] = cs.field(default=cs.fresh_key(0))


PLAIN = cs.derive(Pair, Pair)
DRAWN = cs.derive(Pair, Drawn)


def plain_state() -> dict[str, Any]:
    return {"step": jnp.int32(3), "w": jnp.arange(2.0)}


def drawn_state() -> Any:
    """A state whose stream was drawn from."""
    state = DRAWN.get(plain_state())
    state["drop"]["count"] = jnp.uint32(9)
    return state


def faults(error: pytest.ExceptionInfo[cs.CkptSchemaError]) -> list[cs.Mismatch]:
    return list(error.value.mismatches)


# --- 3.2 and its kin: where nothing may be saved  ---


@pytest.mark.parametrize("name", ["a\\b", "*glob[ab]", "#frag?x=1", "back\\slash/in", "gl*b/in"])
def test_3_2_a_path_that_orbax_does_not_find_again_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(cs.ConformanceError, match="could not be read again") as caught:
        cs.orbax.save(tmp_path / name, plain_state(), PLAIN)
    assert all(fault.hint.endswith("save elsewhere") for fault in faults(caught))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("aux", ["a\\b", "..", ".", "\0", "metrics", "_METADATA", "a[b]", 5, b"x"])
def test_3_2_a_name_that_no_item_can_have_is_refused(tmp_path: Path, aux: Any) -> None:
    with pytest.raises(cs.ConformanceError, match="names no item"):
        cs.orbax.save(tmp_path / "0", drawn_state(), DRAWN, aux=aux)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name",
    [
        *("with space", "a'b\"c", "x%20y", "ünï 日本", "new\nline", "é" * 120),
        *("-dash", "~tilde", "${HOME}", "a|b", "x" * 240),
    ],
)
def test_3_2_other_names_are_as_good_as_any(tmp_path: Path, name: str) -> None:
    cs.orbax.save(tmp_path / name, drawn_state(), DRAWN, aux=name[:20])
    same(cs.orbax.restore(tmp_path / name, drawn_state(), DRAWN, aux=name[:20]), drawn_state())


@pytest.mark.parametrize("name", ["a.orbax-checkpoint-tmp", "b.orbax-checkpoint-tmp-1"])
def test_3_9_a_name_of_an_unfinished_save_is_refused_both_ways(tmp_path: Path, name: str) -> None:
    with pytest.raises(cs.ConformanceError, match="unfinished save"):
        cs.orbax.save(tmp_path / name, plain_state(), PLAIN)
    ocp.save(tmp_path / "0", plain_state())
    (tmp_path / "0").rename(tmp_path / name)
    with pytest.raises(cs.CheckpointMismatchError, match="an unfinished save has left"):
        cs.orbax.restore(tmp_path / name, plain_state(), PLAIN)


# --- 3.3: two writers  ---


@pytest.fixture(scope="module")
def writers(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with races.writers(2, tmp_path_factory.mktemp("converted")) as started:
        yield started


@pytest.mark.parametrize("gap", [0.0, 0.05, 0.2])
def test_3_3_one_writer_wins_and_the_others_are_told(
    writers: races.Writers, tmp_path: Path, gap: float
) -> None:
    outcome = writers.race(tmp_path / "0", [gap])
    assert outcome.good, outcome


@pytest.mark.parametrize("theirs", ["checkpoint", "file", "empty directory"])
def test_3_3_what_came_meanwhile_is_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, theirs: str
) -> None:
    write, place = ocp.save_checkpointables_async, tmp_path / "0"
    other = {"step": jnp.int32(4), "w": jnp.ones(2)}
    make = {
        "checkpoint": lambda: ocp.save(place, other),
        "file": lambda: place.write_text("theirs"),
        "empty directory": place.mkdir,
    }

    def meanwhile(path: Any, items: Any, **options: Any) -> Any:
        saving = write(path, items, **options)
        saving.result()
        make[theirs]()
        return saving

    monkeypatch.setattr(ocp, "save_checkpointables_async", meanwhile)
    with pytest.raises(cs.CheckpointExistsError, match="is not overwritten"):
        cs.orbax.save(place, plain_state(), PLAIN)
    assert [path.name for path in tmp_path.iterdir()] == ["0"]
    monkeypatch.undo()
    if theirs == "checkpoint":
        same(cs.orbax.restore(place, plain_state(), PLAIN), other)


def test_3_3_what_others_are_writing_is_not_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = tmp_path / "0.orbax-checkpoint-tmp-theirs" / "0"

    def failing(path: Path, *_: Any, **__: Any) -> None:
        path.mkdir(parents=True)
        theirs.mkdir(parents=True)
        raise OSError("disk full")

    monkeypatch.setattr(ocp, "save_checkpointables_async", failing)
    with pytest.raises(cs.CheckpointWriteError, match="disk full"):
        cs.orbax.save(tmp_path / "0", plain_state(), PLAIN)
    assert theirs.exists() and [*tmp_path.iterdir()] == [theirs.parent]


def test_3_3_one_thread_wins_and_the_other_is_told(tmp_path: Path) -> None:
    def save(number: int) -> str:
        try:
            cs.orbax.save(tmp_path / "0", {"step": number, "w": jnp.full(2, number * 1.0)}, PLAIN)
        except cs.CkptSchemaError as error:
            return type(error).__name__
        return str(number)

    with ThreadPoolExecutor(2) as threads:
        ends = list(threads.map(save, (1, 2)))
    (won,) = [int(end) for end in ends if end.isdecimal()]
    assert ends[2 - won] == "CheckpointExistsError"
    assert [path.name for path in tmp_path.iterdir()] == ["0"]
    found = cs.orbax.restore(tmp_path / "0", {"step": 0, "w": jnp.zeros(2)}, PLAIN)
    same(found, {"step": won, "w": jnp.full(2, won * 1.0)})


# --- 3.4: what cannot be written  ---

_FULL = """
import sys
import jax
import ckpt_schema as cs
state = {"w": jax.random.normal(jax.random.key(0), (300000,))}
layout = cs.infer(state)
for path in sys.argv[1:]:
    try:
        cs.orbax.save(path, state, cs.derive(layout, layout))
    except cs.CheckpointWriteError as error:
        (fault,) = error.mismatches
        print(fault.path, "|", fault.hint, "|", state["w"].is_deleted())
"""


@contextlib.contextmanager
def mounted(path: Path, options: str) -> Iterator[Path]:
    """A small disk, or one that takes nothing."""
    path.mkdir()
    call = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
    if subprocess.run(call, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def test_3_4_a_disk_that_takes_nothing_is_named(tmp_path: Path) -> None:
    with mounted(tmp_path / "full", "size=200k") as full, mounted(tmp_path / "ro", "ro") as fixed:
        done = subprocess.run(
            [sys.executable, "-c", _FULL, str(full / "0"), str(fixed / "0")],
            stdout=subprocess.PIPE,
            text=True,
            timeout=60,  # that it ends is a part of what is tested
            check=True,
            env=dict(os.environ) | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert done.stdout.splitlines() == [
            f"{full / '0'} | make room, or save elsewhere | False",
            f"{fixed / '0'} | save where this process may write | False",
        ]
        assert not list(full.iterdir()) and not list(fixed.iterdir())


# --- arguments that are none  ---


class Holder:
    """As Orbax's checkpointers have it: the directory of all steps."""

    directory = "/runs/1"


@pytest.mark.parametrize("path", [5, None, b"bytes", Holder(), "a\0b", "foo://bar/x"])
def test_3_14_what_is_no_path_is_named(path: Any) -> None:
    for call in (cs.orbax.save, cs.orbax.restore):
        with pytest.raises(cs.CkptSchemaError) as caught:
            call(path, plain_state(), PLAIN)
        (fault,) = faults(caught)
        assert fault.path == "path" and fault.hint
        assert "/runs/1/100" in fault.hint or not isinstance(path, Holder)


def test_arguments_that_are_exchanged_or_unknown_are_named(tmp_path: Path) -> None:
    exchanged: list[Any] = [PLAIN, plain_state()]
    for call in (cs.orbax.save, cs.orbax.restore):
        with pytest.raises(cs.CkptSchemaError, match="expected a Lens, found a dict"):
            call(tmp_path / "0", *exchanged)
    wrong: Any = "views"
    with pytest.raises(cs.CkptSchemaError, match='side  expected "source" or "view", found \'vi'):
        cs.orbax.save(tmp_path / "0", plain_state(), PLAIN, side=wrong)
    with pytest.raises(cs.CkptSchemaError, match="disk_side"):
        cs.orbax.restore(tmp_path / "0", plain_state(), PLAIN, disk_side=wrong)


# --- 3.11: what stands beside the state  ---


def test_3_11_other_items_and_metadata_go_into_the_checkpoint(tmp_path: Path) -> None:
    config = {"lr": 1e-3, "bias": True, "name": "x"}
    cs.orbax.save(
        tmp_path / "0",
        drawn_state(),
        DRAWN,
        also={"data": {"next_index": 6}, "config": config},
        custom_metadata={"run": 7},
    )
    found = ocp.load_checkpointables(tmp_path / "0")
    assert found["data"] == {"next_index": 6} and found["config"] == config
    told = ocp.metadata(tmp_path / "0").custom_metadata
    assert told.keys() == {"run", "ckpt_schema"} and told["run"] == 7
    same(cs.orbax.restore(tmp_path / "0", drawn_state(), DRAWN), drawn_state())


def test_3_11_the_items_can_be_had_for_any_call_of_orbax(tmp_path: Path) -> None:
    items = cs.orbax.items_of(drawn_state(), DRAWN)
    assert sorted(items) == ["nnx_aux", "state"]
    same(items["state"], plain_state())
    with ocp.training.Checkpointer(tmp_path) as checkpointer:
        checkpointer.save_checkpointables(7, {**items, "data": {"next_index": 6}})
        same(cs.orbax.restore(tmp_path / "7", drawn_state(), DRAWN), drawn_state())
    assert ocp.load_checkpointables(tmp_path / "7")["data"] == {"next_index": 6}


@pytest.mark.parametrize("name", ["state", "nnx_aux", "", "a/b", 5])
def test_3_11_an_item_has_a_name_of_its_own(tmp_path: Path, name: Any) -> None:
    with pytest.raises(cs.ConformanceError, match="also names no item"):
        cs.orbax.save(tmp_path / "0", drawn_state(), DRAWN, also={name: {"a": 1}})
    assert not list(tmp_path.iterdir())


def test_3_11_what_nobody_can_save_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(cs.CheckpointWriteError, match="valid handler"):
        cs.orbax.save(tmp_path / "0", plain_state(), PLAIN, also={"data": object()})
    with pytest.raises(cs.ConformanceError, match="what JSON can say"):
        cs.orbax.save(tmp_path / "0", plain_state(), PLAIN, custom_metadata={"w": np.ones(2)})
    assert not list(tmp_path.iterdir())


# --- 1.3: which side a tree is on  ---


class Square(cs.Schema):
    k: Float32[Array, "a b"]


class Turned(cs.Schema):
    k: Float32[Array, "b a"]


def test_1_3_a_pure_dict_that_may_be_of_either_side_asks_for_the_side(tmp_path: Path) -> None:
    lens = cs.derive(Square, cs.nnx.Params[Turned], rules=[cs.rename("k", "params/k")])
    state = lens.get({"k": jnp.arange(4.0).reshape(2, 2)})
    pure = nnx.to_pure_dict(state)
    with pytest.raises(cs.ConformanceError, match='side="source" or side="view"'):
        cs.orbax.save(tmp_path / "0", pure, lens)
    cs.orbax.save(tmp_path / "0", pure, lens, side="view")
    assert ocp.load(tmp_path / "0")["k"].tolist() == [[0, 1], [2, 3]]
    with pytest.raises(cs.ConformanceError, match='target_side="source" or target_side="view"'):
        cs.orbax.restore(tmp_path / "0", pure, lens, disk_side="source")
    sides: dict[str, Any] = {"disk_side": "source", "target_side": "view"}
    same(cs.orbax.restore(tmp_path / "0", pure, lens, **sides), pure)
    cs.orbax.save(tmp_path / "1", state, lens)  # a State is of the NNX side: no word is needed
    same(cs.orbax.restore(tmp_path / "1", state, lens, disk_side="source"), state)


# --- 3.1, 3.13: what a checkpoint lists  ---


@pytest.fixture(scope="module")
def drawn_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("drawn") / "0"
    cs.orbax.save(path, drawn_state(), DRAWN, also={"data": {"next_index": 6}})
    return path


def copied(path: Path, to: Path) -> Path:
    shutil.copytree(path, to)
    return to


def refused(path: Path, **options: Any) -> cs.Mismatch:
    """The one fault of a restore that says what is wrong with the checkpoint."""
    with pytest.raises(cs.CheckpointMismatchError) as caught:
        cs.orbax.restore(path, drawn_state(), DRAWN, **options)
    (fault,) = faults(caught)
    return fault


@pytest.mark.parametrize("lost", ["nnx_aux", "nnx_aux/_METADATA", "nnx_aux/everything"])
def test_3_1_an_item_that_is_listed_and_not_there_is_refused(
    drawn_disk: Path, tmp_path: Path, lost: str
) -> None:
    path = copied(drawn_disk, tmp_path / "0")
    if lost.endswith("_METADATA"):
        (path / lost).unlink()
    else:
        shutil.rmtree(path / "nnx_aux")
    if lost.endswith("everything"):
        copied(drawn_disk / "state" / "d", path / "nnx_aux")  # a directory, and no pytree
    fault = refused(path)
    assert fault.found == "a checkpoint without its item 'nnx_aux', which it lists"
    assert fault.hint.endswith("or read without it: item='state', aux=None")
    restored = cs.orbax.restore(path, plain_state(), DRAWN, item="state", aux=None)
    same(restored, plain_state())
    assert refused(path, aux=None).found == fault.found


def test_3_1_an_item_of_another_model_is_refused(drawn_disk: Path, tmp_path: Path) -> None:
    path = copied(drawn_disk, tmp_path / "0")
    shutil.rmtree(path / "nnx_aux")
    copied(drawn_disk / "data", path / "nnx_aux")
    with pytest.raises(cs.CheckpointMismatchError, match="not those of the target"):
        cs.orbax.restore(path, drawn_state(), DRAWN)


def test_3_1_what_is_not_asked_for_may_be_missing(drawn_disk: Path, tmp_path: Path) -> None:
    path = copied(drawn_disk, tmp_path / "0")
    shutil.rmtree(path / "data")
    assert refused(path).hint == "take a copy that has data; or read without it: item='state'"
    same(cs.orbax.restore(path, drawn_state(), DRAWN, item="state"), drawn_state())


@pytest.mark.parametrize("leaf", ["('drop', 'count')", "('drop', 'key')"])
def test_3_1_an_array_that_the_metadata_lost_is_no_default(tmp_path: Path, leaf: str) -> None:
    """The bytes are there, and one file still tells of them."""
    cs.orbax.save(tmp_path / "0", drawn_state(), ~DRAWN)  # the stream is within the state
    metadata = tmp_path / "0" / "state" / "_METADATA"
    told = json.loads(metadata.read_text())
    del told["tree_metadata"][leaf]
    metadata.write_text(json.dumps(told))
    target = jax.eval_shape(drawn_state)  # without a value, so that a default would stand in
    with pytest.raises(cs.CheckpointMismatchError) as caught:
        cs.orbax.restore(tmp_path / "0", target, DRAWN)
    (fault,) = faults(caught)
    name = ".".join(ast.literal_eval(leaf))
    assert fault.found == f"an array {name} that its metadata does not name"
    assert "a copy may be incomplete" in fault.hint


@pytest.mark.parametrize("name", ["state", "nnx_aux"])
def test_3_13_an_unfinished_item_is_refused(drawn_disk: Path, tmp_path: Path, name: str) -> None:
    path = copied(drawn_disk, tmp_path / "0")
    (path / name).rename(path / f"{name}.orbax-checkpoint-tmp-7")
    (path / "_CHECKPOINT_METADATA").write_text("{}")  # one that lists nothing
    assert f"{name}.orbax-checkpoint-tmp-7" in refused(path).found


# --- 3.6, 3.14: what a path is instead  ---


def test_3_6_old_forms_are_read(tmp_path: Path) -> None:
    tree = {"step": 3, "w": np.arange(2.0, dtype=np.float32)}
    packed = serialization.msgpack_serialize(tree)
    (tmp_path / "checkpoint_3").write_bytes(packed)
    item = tmp_path / "run" / "7" / "default"
    item.mkdir(parents=True)
    (item / "checkpoint").write_bytes(packed)
    for form in ("checkpoint_3", "run/7/default", "run/7"):
        found = cs.orbax.load(tmp_path / form)
        assert found["step"] == 3 and found["w"].tolist() == [0.0, 1.0], form
    assert refused(tmp_path).hint == f"pass one of them: {tmp_path / 'checkpoint_3'}"
    assert refused(tmp_path / "run").hint == f"pass one of them: {tmp_path / 'run' / '7'}"


def test_3_6_leaves_in_one_file_that_is_gone(drawn_disk: Path, tmp_path: Path) -> None:
    path = copied(drawn_disk, tmp_path / "0")
    file = path / "state" / "_METADATA"
    told = json.loads(file.read_text())
    entry = told["tree_metadata"]["('w',)"]["value_metadata"]
    entry["skip_deserialize"], entry["value_type"] = True, "unknown"
    file.write_text(json.dumps(told))
    assert refused(path).found == "a checkpoint that cannot be read"


def test_3_14_links_and_relative_paths_lead_where_they_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "ahead").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    monkeypatch.chdir(tmp_path)
    for name, place in (("link/0", "real/0"), ("ahead", "nowhere"), ("near/0", "near/0")):
        cs.orbax.save(name, plain_state(), PLAIN)
        assert (tmp_path / place / "state").is_dir()
        same(cs.orbax.restore(name, plain_state(), PLAIN), plain_state())
    assert (tmp_path / "ahead").is_symlink()
    with pytest.raises(cs.ConformanceError, match=r"oop.*\n.*choose another path"):
        cs.orbax.save("loop", plain_state(), PLAIN)


def test_a_restore_that_fails_leaves_the_module_as_it_was(tmp_path: Path) -> None:
    class Kernel(cs.Schema):
        kernel: Float32[Array, "a b"]

    lens = cs.derive(cs.linen.Params[Kernel], cs.nnx.Params[Kernel])
    cs.orbax.save(tmp_path / "0", {"params": {"kernel": jnp.ones((2, 3))}}, lens)
    for file in (tmp_path / "0" / "state" / "d").iterdir():
        file.write_bytes(bytes(file.stat().st_size))
    module = nnx.Linear(2, 3, use_bias=False, rngs=nnx.Rngs(0))
    before = module.kernel[...]
    with pytest.raises(cs.CheckpointMismatchError):
        cs.orbax.restore(tmp_path / "0", module, lens)
    assert module.kernel[...] is before


def test_3_14_a_step_that_is_gone_tells_which_are_there(tmp_path: Path) -> None:
    with ocp.training.Checkpointer(tmp_path) as checkpointer:
        for step in (9, 10, 100):
            checkpointer.save(step, plain_state())
    fault = refused(tmp_path / "7")
    assert fault.found == "no such path"
    assert fault.hint == f"{tmp_path} holds 3 checkpoints: 9, 10, 100"


def test_3_14_a_default_of_64_bits_is_written(tmp_path: Path) -> None:
    class Torch(cs.Schema):
        mean: Float32[Array, " c"] = cs.field(key="running_mean")
        tracked: Int64[Array, ""] = cs.field(key="num_batches_tracked", default=0)

    class Flax(cs.Schema):
        mean: Float32[Array, " c"]

    made = cs.derive(Torch, Flax).put({"mean": np.ones(3, np.float32)})
    found = made["num_batches_tracked"]
    assert isinstance(found, np.ndarray) and found.dtype == np.int64 and found == 0


# --- 3.8, 3.10, 3.15, 3.16: numbers  ---


class Counted(cs.Schema):
    step: Int32[Array, ""]


class Wide(cs.Schema):
    step: Int64[Array, ""]


class Doubles(cs.Schema):
    w: Float64[Array, " n"]


def identity(layout: type[cs.Schema]) -> cs.Lens:
    return cs.derive(layout, layout)


@pytest.mark.parametrize("stored", [jnp.uint32(7), np.array(7), np.array(7, np.int8), 7])
@pytest.mark.parametrize("target", [jnp.int32(0), 0])
def test_3_8_a_step_is_a_step_whatever_its_bits(tmp_path: Path, stored: Any, target: Any) -> None:
    ocp.save(tmp_path / "0", {"step": stored})
    found = cs.orbax.restore(tmp_path / "0", {"step": target}, identity(Counted))["step"]
    assert found == 7 and type(found) is type(target)


@pytest.mark.parametrize("stored", [jnp.uint32(2**31), np.array(2**40), 2**40, -(2**40)])
def test_3_8_a_step_that_does_not_fit_is_an_error(tmp_path: Path, stored: Any) -> None:
    ocp.save(tmp_path / "0", {"step": stored})
    with pytest.raises(cs.CheckpointMismatchError, match="int32 does not hold it"):
        cs.orbax.restore(tmp_path / "0", {"step": jnp.int32(0)}, identity(Counted))


def test_3_8_a_side_that_declares_what_is_stored_goes_first(tmp_path: Path) -> None:
    class Unsigned(cs.Schema):
        step: UInt32[Array, ""]

    lens = cs.derive(Counted, Unsigned)
    cs.orbax.save(tmp_path / "0", {"step": jnp.int32(7)}, lens)
    found = cs.orbax.restore(tmp_path / "0", {"step": jnp.uint32(0)}, lens)["step"]
    assert found == 7 and found.dtype == jnp.uint32


@pytest.mark.parametrize("value", [5, 2**40])
@pytest.mark.parametrize("target", [0, np.int64(0), np.array(0)])
def test_3_10_numbers_of_64_bits_come_back(tmp_path: Path, value: int, target: Any) -> None:
    assert not jax.config.jax_enable_x64
    cs.orbax.save(tmp_path / "0", {"step": value}, identity(Wide))
    ocp.save(tmp_path / "1", {"step": np.array(value)})
    for name in ("0", "1"):
        found = cs.orbax.restore(tmp_path / name, {"step": target}, identity(Wide))["step"]
        assert found == value and (isinstance(target, int) == isinstance(found, int))


def test_3_15_what_jax_would_narrow_is_named(tmp_path: Path) -> None:
    ocp.save(tmp_path / "0", {"w": np.ones(3) / 10})
    with pytest.raises(cs.CheckpointMismatchError, match="which is what jax makes of it") as caught:
        cs.orbax.restore(tmp_path / "0", {"w": np.zeros(3)}, identity(Doubles))
    (fault,) = faults(caught)
    assert fault.path == "w" and "jax_enable_x64" in fault.hint


def test_3_15_a_python_bool_is_named(tmp_path: Path) -> None:
    ocp.save(tmp_path / "0", {**plain_state(), "flag": True})
    with pytest.raises(cs.CheckpointMismatchError, match="Unsupported dtype: bool") as caught:
        cs.orbax.restore(tmp_path / "0", plain_state(), PLAIN)
    assert "np.asarray" in faults(caught)[0].hint


def test_3_16_a_number_that_was_not_read_has_no_value(tmp_path: Path) -> None:
    ocp.save(tmp_path / "0", {**plain_state(), "epoch": 3, "loss": 0.5})
    with pytest.raises(cs.CheckpointMismatchError) as caught:
        cs.orbax.restore(tmp_path / "0", plain_state(), PLAIN)
    assert [(fault.path, fault.found) for fault in faults(caught)] == [
        ("epoch", "a Python number (int)"),
        ("loss", "a Python number (float)"),
    ]


NUMBERS: dict[str, tuple[Any, Any]] = {
    "minus_zero": (Float32, -0.0),
    "nan": (Float32, float("nan")),
    "inf": (Float32, float("inf")),
    "smallest": (Float32, 2.0**-149),
    "tenth": (Float64, 0.1),
    "large": (Float64, 1e300),
    "yes": (Bool, True),
    "no": (Bool, False),
    "unsigned": (UInt32, 3_000_000_000),
    "greatest": (Int64, 2**63 - 1),
    "least": (Int64, -(2**63)),
}


def numbered(name: str, key: str) -> Any:
    """A schema of Python numbers, and of a leaf under this key."""
    leaves = {number: kind[Array, ""] for number, (kind, _) in NUMBERS.items()}
    body = {"__annotations__": {**leaves, "w": Float32[Array, " a"]}, "w": cs.field(key=key)}
    return type(name, (cs.Schema,), body)


def test_3_10_python_numbers_come_back_to_the_last_bit(tmp_path: Path) -> None:
    lens = cs.derive(numbered("Old", "w"), numbered("New", "ww"))
    values = {name: value for name, (_, value) in NUMBERS.items()}
    cs.orbax.save(tmp_path / "0", {**values, "w": jnp.ones(2)}, lens)
    likes = {name: type(value)(0) for name, value in values.items()}
    found = cs.orbax.restore(tmp_path / "0", {**likes, "ww": jnp.zeros(2)}, lens)
    same(found, {**values, "ww": jnp.ones(2)})
    wide = {name: np.zeros((), kind.dtypes[0]) for name, (kind, _) in NUMBERS.items()}
    arrays = cs.orbax.restore(tmp_path / "0", {**wide, "ww": jnp.zeros(2)}, lens)
    for name, (kind, value) in NUMBERS.items():
        assert np.asarray(arrays[name]).tobytes() == np.asarray(value, kind.dtypes[0]).tobytes()


def test_3_15_a_python_complex_number_is_named(tmp_path: Path) -> None:
    class Wave(cs.Schema):
        c: Complex64[Array, ""]

    with pytest.raises(cs.ConformanceError, match="found Python complex 1j") as caught:
        cs.orbax.save(tmp_path / "0", {"c": 1j}, identity(Wave))
    assert "asarray" in faults(caught)[0].hint and not list(tmp_path.iterdir())
    cs.orbax.save(tmp_path / "0", {"c": jnp.asarray(1j, "complex64")}, identity(Wave))
    assert cs.orbax.restore(tmp_path / "0", {"c": 0j}, identity(Wave)) == {"c": 1j}


# --- keys as a checkpoint has them  ---

KEYS = [
    *("a.b", "a b", "é", "日本", "a\nb", "..", "~", "%2F", "'0'", "00", "'-1'", "٣"),
    *("'a'''", "value", "c/value", "x" * 300, "params", "opt_state", "step", "key", "count"),
]


def test_odd_keys_come_back(tmp_path: Path) -> None:
    names = [f"leaf{at}" for at in range(len(KEYS))]
    odd = {name: cs.field(key=key) for name, key in zip(names, KEYS, strict=True)}
    one, other = (
        type("Keys", (cs.Schema,), {"__annotations__": dict.fromkeys(names, kind), **fields})
        for kind, fields in ((Float32[Array, "a b"], odd), (Float32[Array, "b a"], {}))
    )
    lens = cs.derive(one, other)
    view = {name: jnp.arange(6.0).reshape(3, 2) + 10 * at for at, name in enumerate(sorted(names))}
    source = lens.put(view)
    cs.orbax.save(tmp_path / "0", view, lens)
    for target in (view, source):
        found = cs.orbax.restore(tmp_path / "0", jax.tree.map(jnp.zeros_like, target), lens)
        same(found, target)


def test_names_that_frameworks_use_are_names_of_modules_too(tmp_path: Path) -> None:
    names = "params", "step", "opt_state", "model", "optimizer", "value", "key", "count"
    leaf = type(
        "Leaf", (cs.Schema,), {"__annotations__": dict.fromkeys(names[5:], Float32[Array, " a"])}
    )
    inner = type("Inner", (cs.Schema,), {"__annotations__": dict.fromkeys(names, leaf)})

    class Stacked(cs.Schema):
        layers: inner = cs.field(scan="n", axis=0)

    class Listed(cs.Schema):
        layers: list[inner] = cs.field(length="n")

    tx = optax.trace(0.9)
    lens = cs.derive(cs.linen.TrainState[Stacked, tx], cs.nnx.TrainState[Listed, tx])

    def drawn(first: float) -> Any:
        parts = [(name, part) for name in names for part in names[5:]]
        tree: dict[str, Any] = {name: {} for name in names}
        for at, (name, part) in enumerate(parts):
            tree[name][part] = jnp.arange(4.0).reshape(2, 2) + first + 10 * at
        return {"params": {"layers": tree}}

    state = {"step": jnp.int32(5), "params": drawn(0.0), "opt_state": optax.TraceState(drawn(0.5))}
    view = lens.get(state)
    assert view["model"]["layers"][1]["opt_state"]["count"][...].tolist() == [82, 83]
    same(lens.put(view, onto=state), state)
    cs.orbax.save(tmp_path / "0", view, lens)
    for target in (view, state):
        same(cs.orbax.restore(tmp_path / "0", jax.tree.map(jnp.zeros_like, target), lens), target)


def test_keys_that_a_checkpoint_would_make_one_are_refused(tmp_path: Path) -> None:
    class Dotted(cs.Schema):
        x: Float32[Array, " a"] = cs.field(key="a.b")
        y: Float32[Array, " a"] = cs.field(key="a/b")

    state = {"a.b": jnp.ones(2), "a": {"b": jnp.ones(2)}}
    with pytest.raises(cs.ConformanceError, match=r"expected one leaf called a\.b, found 2"):
        cs.orbax.save(tmp_path / "0", state, identity(Dotted))


def test_int_keys_and_the_same_as_strings_are_one_checkpoint(tmp_path: Path) -> None:
    class Texts(cs.Schema):
        x: list[Float32[Array, " a"]] = cs.field(length="n", key="x/'{i}'")

    class Ints(cs.Schema):
        x: list[Float32[Array, " a"]] = cs.field(length="n")

    lens = cs.derive(Texts, Ints)
    view = lens.get({"x": {str(i): jnp.full(2, float(i)) for i in range(12)}})
    cs.orbax.save(tmp_path / "0", view, lens)
    for target in (view, lens.put(view)):
        same(cs.orbax.restore(tmp_path / "0", jax.tree.map(jnp.zeros_like, target), lens), target)


# --- 3.12: keys that are tuples  ---


def test_3_12_statistics_under_tuple_keys_come_back(tmp_path: Path) -> None:
    def made(seed: int) -> Any:
        rngs = nnx.Rngs(seed)
        return nnx.SpectralNorm(nnx.Linear(2, 4, rngs=rngs), rngs=rngs)

    model, target = made(0), made(1)
    model(jnp.ones((5, 2)), update_stats=True)
    layout = cs.infer(nnx.state(model))
    cs.orbax.save(tmp_path / "0", model, cs.derive(layout, layout))
    same(
        nnx.state(cs.orbax.restore(tmp_path / "0", target, cs.derive(layout, layout))),
        nnx.state(model),
    )


# --- kin of the above: a caller's other arguments  ---


def test_a_name_longer_than_any_file_system_has_is_named(tmp_path: Path) -> None:
    with pytest.raises(cs.CkptSchemaError, match="at most 255 bytes"):
        cs.orbax.save(tmp_path / ("x" * 300), plain_state(), PLAIN)
    with pytest.raises(cs.CheckpointMismatchError, match="no such path"):
        cs.orbax.restore(tmp_path / ("x" * 300), plain_state(), PLAIN)
    with pytest.raises(cs.CheckpointWriteError, match="too long"):
        cs.orbax.save(tmp_path / "0", drawn_state(), DRAWN, aux="x" * 300)
    assert not list(tmp_path.iterdir())


def test_names_that_are_none_are_named(drawn_disk: Path, tmp_path: Path) -> None:
    wrong: Any = 5
    with pytest.raises(cs.CkptSchemaError, match=r"item  .*found 5") as caught:
        cs.orbax.restore(drawn_disk, drawn_state(), DRAWN, item=wrong, aux=wrong)
    assert [fault.path for fault in faults(caught)] == ["item", "aux"]
    with pytest.raises(cs.CkptSchemaError, match="name of an item"):
        cs.orbax.load_private(drawn_disk, aux=wrong)
    with pytest.raises(cs.CkptSchemaError, match="items by name"):
        cs.orbax.save(tmp_path / "0", plain_state(), PLAIN, also=wrong)


def test_a_checkpoint_that_nobody_may_read_is_named(
    drawn_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(epath.Path(drawn_disk)), "iterdir", closed)
    with pytest.raises(cs.CheckpointMismatchError, match="Permission denied"):
        cs.orbax.restore(drawn_disk, drawn_state(), DRAWN)


def test_a_save_leaves_the_context_of_the_caller_as_it_is(tmp_path: Path) -> None:
    context = ocp.Context()
    context.asynchronous.timeout_secs = 600
    with context:
        cs.orbax.save(tmp_path / "0", plain_state(), PLAIN)
        assert context.asynchronous.create_directories_asynchronously
    same(cs.orbax.restore(tmp_path / "0", plain_state(), PLAIN), plain_state())
