"""What was found wrong on disk, each by the number it was found under: saves, and what a restore is given."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float32, Int32
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


@pytest.mark.parametrize("name", ["a\\b", "*glob[ab]", "a?b", "back\\slash/in", "gl*b/in"])
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


@pytest.mark.parametrize("name", ["with space", "a'b\"c", "x%20y", "ünï", "new\nline", "é" * 120])
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
def writers() -> Any:
    with races.writers(2) as started:
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
    write, place = ocp.save_checkpointables, tmp_path / "0"
    other = {"step": jnp.int32(4), "w": jnp.ones(2)}
    make = {
        "checkpoint": lambda: ocp.save(place, other),
        "file": lambda: place.write_text("theirs"),
        "empty directory": place.mkdir,
    }

    def meanwhile(path: Any, items: Any, **options: Any) -> None:
        write(path, items, **options)
        make[theirs]()

    monkeypatch.setattr(ocp, "save_checkpointables", meanwhile)
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

    monkeypatch.setattr(ocp, "save_checkpointables", failing)
    with pytest.raises(cs.CheckpointWriteError, match="disk full"):
        cs.orbax.save(tmp_path / "0", plain_state(), PLAIN)
    assert theirs.exists() and [*tmp_path.iterdir()] == [theirs.parent]


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
    assert ocp.metadata(tmp_path / "0").custom_metadata == {"run": 7}
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
