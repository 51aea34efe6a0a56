"""A sample of the runs that tests/interrupted.py kills, and that it sees what it looks for."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import interrupted
import jax.numpy as jnp
import pytest
from support import killed
from support.profiles import thorough_only

import ckpt_schema as cs


def ran(script: str, *arguments: str) -> str:
    """What a command prints that must not fail."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", script, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert not run.returncode, run.stdout + run.stderr
    return run.stdout


def test_a_save_that_is_killed_is_whole_or_nothing() -> None:
    assert "| async save | 1 |" in ran(killed.__file__, "--rounds", "1", "--jobs", "async save")


@thorough_only
@pytest.mark.parametrize("manager", interrupted.MANAGERS)
def test_a_run_that_is_killed_goes_on_in_the_other_framework(manager: str) -> None:
    told = ran(interrupted.__file__, "--kills", "1", "--managers", manager)
    assert f"| {manager} | 1 |" in told


def state(value: float) -> Any:
    return {"w": jnp.full(4, value), "step": jnp.int32(1)}


@pytest.fixture
def task(tmp_path: Path) -> interrupted.Task:
    """A run that has saved two steps."""
    folder = tmp_path / "run"
    for step in (1, 2):
        cs.orbax.save(folder / str(step), state(step))
    digests = {step: interrupted.digest(state(step)) for step in (1, 2)}
    return interrupted.Task(folder, "v1, sync", "linen", 3, False, digests)


def told_of(task: interrupted.Task) -> list[tuple[Any, ...]]:
    told: list[tuple[Any, ...]] = []
    interrupted.look_at(task, lambda *words: told.append(words))
    return told


def test_what_a_kill_should_not_leave_is_told(task: interrupted.Task) -> None:
    assert not told_of(task)
    (task.folder / "3.orbax-checkpoint-tmp").mkdir()
    assert not told_of(task)
    shutil.copytree(task.folder / "1", task.folder / "half")
    assert told_of(task) == [("half", Path("half"))]
    shutil.rmtree(task.folder / "half")
    changed = {**task.digests, 1: interrupted.digest({**state(1), "step": jnp.uint32(1)})}
    assert told_of(dataclasses.replace(task, digests=changed)) == [("damaged", 1)]
    for file in (task.folder / "2").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.unlink()
    assert told_of(task) == [("damaged", 2)]


@pytest.mark.parametrize(
    ("words", "phase"), [("", "before"), ("commit", "within"), ("commit saved", "after")]
)
def test_where_a_save_was(words: str, phase: str) -> None:
    heard = [("save", ["1"], 0.0), ("commit", ["1"], 1.0), ("saved", ["1"], 2.0)]
    heard += [("save", ["2"], 3.0), *((word, ["2"], 4.0) for word in words.split())]
    assert interrupted.Heard(heard).last == (2, phase)


def test_what_went_wrong_is_seen() -> None:
    good = interrupted.Found(kills=2, before=1, after=1, resumed=2, losses=6)
    assert good.good
    for name in ("others", "damaged", "half", "hangs", "kills"):
        assert not dataclasses.replace(good, **{name: getattr(good, name) + 1}).good
