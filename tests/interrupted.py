"""Training runs that are killed, each resumed in the other framework: every loss is that of a run that never stopped.

``python tests/interrupted.py --kills 6`` trains with each of Orbax's managers, v0 and v1,
synchronous and not. A process takes up the last whole checkpoint, as Linen or NNX in turns, saves
after each step, and is killed at a time that is spread over a step and its save; the last one is
let run to the end. It prints from where each went on, and exits with 1 unless each loss has the
bits of the unbroken run, and the data iterator stood where it should.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STEPS = 12

_ROOT = Path(__file__).parents[1]


def train(folder: Path, name: str, kind: str) -> None:
    """Trains to the last step from the last checkpoint, if there is one, and prints each loss."""
    import test_managers as loops

    mesh, data = loops.make_mesh(1, 1), loops.Batches()
    with loops.MANAGERS[name](folder) as manager:
        done = _latest(manager)
        # Where no checkpoint is whole yet, the Linen run starts again.
        form: Any = loops.NNX if done and kind == "nnx" else loops.LINEN
        lens = loops.LENSES[form]
        state: Any = None if done else form.start(form.init(), mesh)
        if done:
            state = manager.restore(done, form.abstract(mesh), lens, data)
        if data.number != done:
            raise SystemExit(f"the iterator stands at {data.number} after step {done}")
        print("from", done, flush=True)
        for step in range(done + 1, STEPS + 1):
            state, (loss,) = loops.trained(form, state, data, 1)
            print("loss", step, loss.hex(), flush=True)
            manager.save(step, state, lens, data)


def _latest(manager: Any) -> int:
    """The step of the last whole checkpoint; 0 where there is none."""
    if hasattr(manager, "manager"):
        return manager.manager.latest_step() or 0
    latest = manager.checkpointer.latest
    return 0 if latest is None else latest.step


def unbroken() -> list[str]:
    """The losses of a Linen run that is not stopped."""
    import test_managers as loops

    form: Any = loops.LINEN
    state = form.start(form.init(), loops.make_mesh(1, 1))
    return [loss.hex() for loss in loops.trained(form, state, loops.Batches(), STEPS)[1]]


def _child(folder: Path, name: str, kind: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(_ROOT), str(_ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", __file__, "--train", str(folder), name, kind],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


class Run:
    """One run with one manager.

    Attributes:
        losses: Each loss that was seen, by step: the same step may be trained twice.
        starts: From which step each process went on.
    """

    def __init__(self, name: str, folder: Path) -> None:
        """Begins nothing yet."""
        self._name, self._folder = name, folder
        self.losses: list[tuple[int, str]] = []
        self.starts: list[int] = []

    def go_on(self, number: int, kills: int) -> bool:
        """Lets one process train, and kills it a few steps on; whether it was killed."""
        process = _child(self._folder, self._name, ("linen", "nnx")[number % 2])
        assert process.stdout is not None
        seen, last = 0, time.monotonic()
        try:
            for line in process.stdout:
                word, *told = line.split()
                if word == "from":
                    self.starts.append(int(told[0]))
                    continue
                self.losses.append((int(told[0]), told[1]))
                seen, took, last = seen + 1, time.monotonic() - last, time.monotonic()
                if number < kills and seen == 2:
                    time.sleep(took * (number + 0.5) / kills)
                    process.send_signal(signal.SIGKILL)
        finally:
            process.kill()
            code = process.wait()
        if code not in (0, -signal.SIGKILL):
            raise SystemExit(f"{self._name}: process {number} ended with {code}")
        return code != 0


def main() -> int:
    """Kills runs with each manager, and prints how they went on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=5, help="of each run")
    parser.add_argument("--train", nargs=3, help="what a process is told")
    given = parser.parse_args()
    if given.train:
        folder, name, kind = given.train
        train(Path(folder), name, kind)
        return 0
    expected, bad = unbroken(), 0
    print("| manager | killed | went on from step | losses seen | other losses |")
    print("|---|---|---|---|---|", flush=True)
    for name in ("v0, sync", "v0, async", "v1, sync", "v1, async"):
        with tempfile.TemporaryDirectory() as folder:
            run = Run(name, Path(folder) / "run")
            killed = [run.go_on(number, given.kills) for number in range(given.kills + 1)]
        others = sum(expected[step - 1] != loss for step, loss in run.losses)
        is_whole = {step for step, _ in run.losses} == {*range(1, STEPS + 1)}
        bad += bool(others) or not is_whole
        starts = ", ".join(map(str, run.starts))
        print(f"| {name} | {sum(killed)} | {starts} | {len(run.losses)} | {others} |", flush=True)
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
