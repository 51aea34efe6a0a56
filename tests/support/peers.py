"""One of several processes is lost in a save or a restore: when, and with what words, the others raise.

``python tests/support/peers.py`` loses process 1 of 3 in each way at each step, and prints how long
the others took and whether they named it; it exits with 1 unless all of them did so in time.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ckpt_schema as cs

COUNT, LOST = 3, 1
PATIENCE = 6  # seconds that each waits for others
BOUND = 3 * PATIENCE + 10  # for what a busy machine takes besides
STARTS = 60  # seconds that processes may take to start


@dataclasses.dataclass(frozen=True)
class Loss:
    """How a process is lost.

    Attributes:
        job: ``save`` or ``restore``.
        way: ``killed``, ``stopped`` (it lives, and does nothing), or ``failed`` (its write raises).
        step: At which of its exchanges with others; None: while it writes or reads arrays.
    """

    job: str
    way: str
    step: int | None

    @property
    def named(self) -> str:
        """What the others are to say."""
        return "No space left" if self.way == "failed" else f"process {LOST}"


LOSSES = [
    Loss(job, way, step)
    for job, steps in (("save", 7), ("restore", 3))
    for way in ("killed", "stopped")
    for step in (*range(steps), None)
] + [Loss("save", "failed", None)]


def lose(loss: Loss, folder: Path) -> None:
    """What each process runs; it writes down what it was told, and after how many seconds."""
    import jax
    from orbax.checkpoint import v1 as ocp

    from ckpt_schema.orbax import _agreement

    logging.disable(logging.CRITICAL)
    number = jax.process_index()
    mesh = jax.make_mesh((COUNT,), ("x",))
    sharding = jax.NamedSharding(mesh, jax.P("x"))
    make = jax.jit(lambda: {"w": jax.numpy.ones((COUNT, 4))}, out_shardings={"w": sharding})
    state = make()
    if loss.job == "restore":
        cs.orbax.save(folder / "saved", state)
    if number == LOST:
        _plant(loss, _agreement, ocp)
    context = ocp.Context()
    context.asynchronous.timeout_secs = PATIENCE
    start, said = time.monotonic(), "nothing was raised"
    try:
        with context:
            if loss.job == "restore":
                cs.orbax.restore(folder / "saved", state)
            else:
                cs.orbax.save(folder / "new", state)
    except cs.CkptSchemaError as error:
        said = f"named: {error}"
    except BaseException as error:
        said = f"raw: {type(error).__name__}: {error}"
    told = {"seconds": time.monotonic() - start, "said": said}
    (folder / f"said-{number}").write_text(json.dumps(told))


def _plant(loss: Loss, agreement: Any, ocp: Any) -> None:
    def lost(*_: Any, **__: Any) -> None:
        if loss.way == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if loss.way == "failed":
            raise OSError(28, "No space left on device")
        time.sleep(1000)

    if loss.step is None and loss.job == "restore":
        ocp.load = lost
        return
    if loss.step is None:
        from orbax.checkpoint.experimental.v1._src.handlers.pytree_handler import PyTreeHandler

        PyTreeHandler._background_save = lost
        return
    exchanged, steps = agreement._exchanged, iter(range(1000))

    def counted(message: bytes) -> Any:
        return lost() if next(steps) == loss.step else exchanged(message)

    agreement._exchanged = counted


def _run(loss: Loss, folder: Path) -> None:
    """Runs all processes to the end, or until the others have said what they had to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = json.dumps(dataclasses.asdict(loss))
    path = os.pathsep.join([str(Path(cs.__file__).parents[1]), str(Path(__file__).parents[1])])
    env = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    env |= {"JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    command = [sys.executable, "-W", "ignore", __file__, "--worker", told, str(folder), str(port)]
    null = subprocess.DEVNULL
    with contextlib.ExitStack() as stack:
        running = [
            subprocess.Popen([*command, str(number)], env=env, stdout=null, stderr=null)
            for number in range(COUNT)
        ]
        for process in running:
            stack.callback(process.wait)
            stack.callback(process.kill)
        files = [folder / f"said-{number}" for number in range(COUNT) if number != LOST]
        until = time.monotonic() + BOUND + STARTS
        while not all(file.exists() for file in files) and time.monotonic() < until:
            time.sleep(0.2)
        time.sleep(0.2)  # what is written is written whole


def work(told: str, folder: str, port: str, number: str) -> None:
    """One of the processes."""
    import jax

    jax.distributed.initialize(f"127.0.0.1:{port}", COUNT, int(number))
    lose(Loss(**json.loads(told)), Path(folder))
    time.sleep(BOUND + STARTS)  # until it is ended: at its own end jax would wait for the others


def outcome(loss: Loss) -> tuple[float, list[str]]:
    """How long the slowest of the others took, and what was wrong with what they said."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        _run(loss, folder)
        faults: list[str] = []
        slowest = 0.0
        for number in set(range(COUNT)) - {LOST}:
            file = folder / f"said-{number}"
            if not file.exists():
                faults.append(f"process {number} said nothing")
                continue
            told = json.loads(file.read_text())
            slowest = max(slowest, told["seconds"])
            if not told["said"].startswith("named") or loss.named not in told["said"]:
                faults.append(f"process {number}: {told['said']}")
            if told["seconds"] > BOUND:
                faults.append(f"process {number} took {told['seconds']:.0f} s")
        # At the last of its exchanges a save has been put in its place.
        left = [path for path in folder.iterdir() if path.name.startswith("new")]
        for path in left:
            if path.name != "new" or not bool((cs.orbax.load(path)["w"] == 1).all()):
                faults.append(f"left: {path.name}")
        return slowest, faults


def main() -> int:
    """Loses a process in each way, and prints how it ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", nargs=4, help="what a process is told")
    parser.add_argument("--only", type=int, default=None, help="the number of one of the ways")
    given = parser.parse_args()
    if given.worker:
        work(*given.worker)
    only = given.only
    bad = 0
    print("| lost in | how | at its exchange | the others raised within |\n|---|---|---|---|")
    for number, loss in enumerate(LOSSES):
        if only is not None and number != only:
            continue
        seconds, faults = outcome(loss)
        bad += bool(faults)
        step = "arrays" if loss.step is None else str(loss.step + 1)
        print(f"| {loss.job} | {loss.way} | {step} | {seconds:.0f} s |", flush=True)
        for fault in faults:
            print(f"  {fault}", file=sys.stderr, flush=True)
    print(
        f"\n{len(LOSSES)} losses, {bad} that did not end well; each waits {PATIENCE} s for others"
    )
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
