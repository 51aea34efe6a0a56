"""What an attack found sound, so that it stays: saves that are killed, and checkpoints made to harm."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import attacked

import ckpt_schema as cs

STOPS = 15


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Path, Any]]:
    """The process, where it works, and what it said of the attack."""
    root = tmp_path_factory.mktemp("attacked")
    process = subprocess.Popen(
        [sys.executable, attacked.__file__, str(root)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env=dict(os.environ) | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    try:
        yield process, root, json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("name", attacked.HOSTILE)
def test_hostile_checkpoints_are_refused_by_name_or_restored_rightly(
    victim: Any, name: str
) -> None:
    assert victim[2]["ends"][name] in ("named", "restored")


def test_a_restore_runs_nothing_writes_nothing_and_calls_nobody(victim: Any) -> None:
    _, root, told = victim
    assert told["seen"] == []
    places = (root, *root.parents[:5])
    assert [place for place in places if (place / "ran").exists()] == []


def test_a_save_that_is_killed_leaves_a_whole_checkpoint_or_none(
    victim: Any, tmp_path: Path
) -> None:
    """What a kill would leave on disk is what lies there while the process is stopped."""
    process, root, _ = victim
    runs = root / "runs"
    assert process.stdout.readline() == "0\n"
    unfinished = 0
    for stop in range(STOPS):
        time.sleep(0.013 * (stop % 5 + 1))
        last = stop == STOPS - 1
        os.kill(process.pid, signal.SIGKILL if last else signal.SIGSTOP)
        if not last:
            os.waitpid(process.pid, os.WUNTRACED)
        else:
            process.wait()
        names = [path.name for path in runs.iterdir()]
        whole = max(int(name) for name in names if name.isdecimal())
        left = {name for name in names if not name.isdecimal()}
        # Between the rename of a save and its return stands the empty folder that held its draft.
        emptied = {name for name in left if name.startswith(f"{whole}.orbax-checkpoint-tmp")}
        assert all(not any((runs / name).iterdir()) for name in emptied), emptied
        begun = left - emptied
        assert all(name.startswith(f"{whole + 1}.orbax-checkpoint-tmp") for name in begun), begun
        unfinished += bool(begun)
        copy = Path(shutil.copytree(runs / str(whole), tmp_path / str(stop)))
        if not last:
            os.kill(process.pid, signal.SIGCONT)
        found = cs.orbax.restore(copy, attacked.state(0), attacked.LENS)
        cs.assert_trees_identical(found, attacked.state(whole))
    assert unfinished > STOPS // 3
    again = runs / str(whole + 1)
    cs.orbax.save(again, attacked.state(1), attacked.LENS)
    found = cs.orbax.restore(again, attacked.state(0), attacked.LENS)
    cs.assert_trees_identical(found, attacked.state(1))
