"""Training runs that are killed, each resumed in the other framework: every loss is that of a run that never stopped.

``python tests/interrupted.py --kills 12`` trains with each of Orbax's managers, v0 and v1,
synchronous and not. The first process is let be: it says how long a save takes. Each of the next is
killed in its second save or soon after it, at times that are spread evenly over that and a quarter
more, one in four over the commit, which begins with the rename that makes the step visible and ends
when the save has returned. The one after it first looks at what was left, then takes up the last
whole checkpoint, as Linen or NNX in turns. It exits with 1 unless each loss has the bits of the
unbroken run, each visible step has its state, nothing else loads, the data iterator stands where it
should, and none hangs.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import importlib
import logging
import os
import select
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

MANAGERS = ("v0, sync", "v0, async", "v1, sync", "v1, async")
BOUND = 300.0  # seconds without a word, after which a process hangs
_STEPS = 3  # of each process that is killed: in the second save, or a little later
_SPREAD = 1.25  # of what a save takes: some kills are to fall after it
_AIMED = 4  # one kill in so many waits for the commit
_KEPT = 4  # so many checkpoints are looked at, the last ones: a manager removes older ones
_GOLDEN = 0.6180339887498949

Tell = Callable[..., None]


# --- in a process of its own, which prints what it does  ---


@dataclasses.dataclass(frozen=True)
class Task:
    """What one process trains.

    Attributes:
        folder: The directory of the run.
        manager: Which of `MANAGERS`.
        kind: ``linen`` or ``nnx``.
        steps: How many steps.
        doomed: Whether it waits to be killed when it has trained them.
        digests: What each step holds in the unbroken run.
    """

    folder: Path
    manager: str
    kind: str
    steps: int
    doomed: bool
    digests: dict[int, str]


def train(task: Task, tell: Tell) -> None:
    """Goes on from the last checkpoint, if there is one, and saves after each step."""
    import test_managers as loops

    look_at(task, tell)
    mesh, data = loops.make_mesh(1, 1), loops.Batches()
    with loops.MANAGERS[task.manager](task.folder) as manager:
        done = _latest(manager)
        # Where no checkpoint is whole yet, the Linen run starts again.
        form: Any = loops.NNX if done and task.kind == "nnx" else loops.LINEN
        lens = loops.LENSES[form]
        state: Any = None if done else form.start(form.init(), mesh)
        if done:
            state = manager.restore(done, form.abstract(mesh), lens, data)
        if data.number != done:
            raise RuntimeError(f"the iterator stands at {data.number} after step {done}")
        tell("from", done)
        for step in range(done + 1, done + task.steps + 1):
            state, (loss,) = loops.trained(form, state, data, 1)
            tell("loss", step, loss.hex())
            if step > done + 1:  # an asynchronous save has run beside this step
                _wait(manager)
                tell("saved", step - 1)
            tell("save", step)
            manager.save(step, state, lens, data)
            if not task.manager.endswith("async"):
                tell("saved", step)
        _wait(manager)
        tell("saved", done + task.steps)
        while task.doomed:
            signal.pause()


def _latest(manager: Any) -> int:
    """The step of the last whole checkpoint; 0 where there is none."""
    if hasattr(manager, "manager"):
        return manager.manager.latest_step() or 0
    latest = manager.checkpointer.latest
    return 0 if latest is None else latest.step


def _wait(manager: Any) -> None:
    if hasattr(manager, "manager"):
        manager.manager.wait_until_finished()
    else:
        manager.checkpointer.wait()


def look_at(task: Task, tell: Tell) -> None:
    """Tells of steps that are not as they should be, and of what else loads, before a manager tidies up."""
    import ckpt_schema as cs

    if not task.folder.exists():
        return
    steps: list[int] = []
    for left in task.folder.iterdir():
        if left.name.isdigit():
            steps.append(int(left.name))
            continue
        for path in (left, *(inner for inner in left.glob("*") if inner.is_dir())):
            with contextlib.suppress(cs.CkptSchemaError, NotADirectoryError):
                cs.orbax.load(path, item="state" if path == left else None)
                tell("half", path.relative_to(task.folder))
    for step in sorted(steps)[-_KEPT:]:
        try:
            found = digest(cs.orbax.load(task.folder / str(step), item="state"))
        except cs.CkptSchemaError:
            found = "does not load"
        if found != task.digests[step]:
            tell("damaged", step)


def unbroken(steps: int, tell: Tell) -> None:
    """Trains a Linen run that is not stopped, and tells each loss and what would be saved."""
    import test_managers as loops

    import ckpt_schema as cs

    form: Any = loops.LINEN
    data, state = loops.Batches(), form.start(form.init(), loops.make_mesh(1, 1))
    for step in range(1, steps + 1):
        state, (loss,) = loops.trained(form, state, data, 1)
        saved = cs.orbax.items_of(state, loops.LENSES[form])["state"]
        tell("loss", step, loss.hex(), digest(saved))


def digest(tree: Any) -> str:
    """The key paths, dtypes, shapes and bits of all leaves, as one number."""
    found = hashlib.sha256()
    for path, leaf in sorted(_leaves(tree, "")):
        found.update(f"{path} {leaf.dtype} {leaf.shape} ".encode() + leaf.tobytes())
    return found.hexdigest()


def _leaves(tree: Any, path: str) -> Any:
    """Each leaf with its path, of containers as they are in memory and as Orbax gives them back."""
    import jax
    import numpy as np

    if tree is None:
        return
    if isinstance(tree, tuple) and hasattr(tree, "_asdict"):
        tree = tree._asdict()  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(tree, dict):
        for name, inner in tree.items():
            yield from _leaves(inner, f"{path}/{name}")
    elif isinstance(tree, (list, tuple)):
        for number, inner in enumerate(tree):
            yield from _leaves(inner, f"{path}/{number}")
    elif jax.numpy.issubdtype(tree.dtype, jax.dtypes.prng_key):
        yield f"{path} {jax.random.key_impl(tree)}", np.asarray(jax.random.key_data(tree))
    else:
        yield path, np.asarray(tree)


# --- the process that starts and kills them: it has no threads, which a fork would not have  ---


@dataclasses.dataclass
class Heard:
    """What a process told.

    Attributes:
        lines: Each word, with what was told, and when.
        killed: Whether it was killed on purpose.
        hung: Whether it was killed because it told nothing more.
    """

    lines: list[tuple[str, list[str], float]]
    killed: bool = False
    hung: bool = False

    def all(self, word: str) -> list[list[str]]:
        """What was told with this word."""
        return [told for said, told, _ in self.lines if said == word]

    def when(self, word: str, step: int) -> float:
        """When it was first told of a step."""
        for said, told, at in self.lines:
            if said == word and told[0] == str(step):
                return at
        raise SystemExit(f"no {word} of step {step} was seen")

    @property
    def last(self) -> tuple[int, str]:
        """The step whose save began last, and where it was when the process ended."""
        step = self.all("save")[-1]
        phase = "within" if step in self.all("commit") else "before"
        return int(step[0]), "after" if step in self.all("saved") else phase


@dataclasses.dataclass(frozen=True)
class Kill:
    """When a process is killed: so many seconds after it has told a word for the so-many-th time."""

    word: str
    time: int
    after: float


def watched(job: Callable[[Tell], None], folder: Path, kill: Kill | None = None) -> Heard:
    """Runs a job in a process, and kills it in time."""
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        os.close(reads)
        _as_child(job, folder, writes)
    os.close(writes)
    heard, rest, due = Heard([]), b"", None
    while True:
        left = BOUND if due is None else max(0.0, due - time.monotonic())
        if not select.select([reads], [], [], left)[0]:
            os.kill(child, signal.SIGKILL)
            heard.killed, heard.hung = due is not None, due is None
            break
        got = os.read(reads, 4096)
        if not got:
            break
        *lines, rest = (rest + got).split(b"\n")
        for line in lines:
            word, *told, at = line.decode().split()
            heard.lines.append((word, told, float(at)))
            if kill and not due and (word, len(heard.all(word))) == (kill.word, kill.time):
                due = float(at) + kill.after
    for line in os.fdopen(reads, "rb").read().split(b"\n"):  # told before it was killed
        word, *told = (rest + line).decode().split() or [""]
        rest = b""
        if word:
            heard.lines.append((word, told[:-1], float(told[-1])))
    _, code = os.waitpid(child, 0)
    for told in heard.all("error"):
        raise SystemExit(bytes.fromhex(told[0]).decode())
    if code and not heard.killed and not heard.hung:
        raise SystemExit(f"a process ended with {code}")
    return heard


def _as_child(job: Callable[[Tell], None], folder: Path, writes: int) -> None:
    """Does the job, and ends the process."""

    def tell(*words: Any) -> None:
        told = " ".join(map(str, [*words, time.monotonic()]))
        os.write(writes, f"{told}\n".encode())

    def renamed(event: str, given: tuple[Any, ...]) -> None:
        if event == "os.rename":
            place = Path(os.fspath(given[1]))
            if place.parent == folder and place.name.isdigit():
                tell("commit", place.name)

    sys.addaudithook(renamed)
    code = 1
    try:
        job(tell)
        code = 0
    except BaseException:
        tell("error", traceback.format_exc()[-1500:].encode().hex())
    os._exit(code)


@dataclasses.dataclass
class Found:
    """What became of the runs of one manager, as counts."""

    kills: int = 0
    before: int = 0
    within: int = 0
    after: int = 0
    resumed: int = 0
    losses: int = 0
    others: int = 0
    damaged: int = 0
    half: int = 0
    hangs: int = 0

    @property
    def good(self) -> bool:
        """Whether all went on as it should."""
        wrong = self.others + self.damaged + self.half + self.hangs
        return not wrong and self.resumed == self.kills

    def __str__(self) -> str:
        """The cells of a row."""
        equal = f"{self.losses - self.others} of {self.losses}"
        phases = [self.kills, self.before, self.within, self.after, self.resumed]
        return " | ".join(map(str, [*phases, equal, self.damaged, self.half, self.hangs]))


class Run:
    """A run with one manager, in one process after the other."""

    def __init__(self, manager: str, folder: Path, expected: dict[int, list[str]]) -> None:
        """Begins nothing yet."""
        self._manager, self._folder, self._expected = manager, folder, expected
        self._before: tuple[int, str] | None = None
        self.found = Found()

    def killed(self, kills: int) -> Found:
        """Measures a save, kills so many processes, and lets the last one be."""
        found = self.found
        first = self._go_on("linen", None)
        whole, commit = self._measured(first)
        for number in range(kills):
            share = (0.5 + number * _GOLDEN) % 1
            kill = Kill("save", 2, share * whole * _SPREAD)
            if number % _AIMED == _AIMED - 1:
                kill = Kill("commit", 2, share * commit)
            heard = self._go_on(("nnx", "linen")[number % 2], kill)
            found.kills += heard.killed
            if heard.killed:
                self._before = heard.last
                setattr(found, heard.last[1], getattr(found, heard.last[1]) + 1)
        self._go_on(("nnx", "linen")[kills % 2], None)
        return found

    def _measured(self, heard: Heard) -> tuple[float, float]:
        """The seconds of a save, and of its commit; the first save of a process is left out, which takes longer."""
        steps = range(2, _STEPS + 1)
        ends = [heard.when("saved", step) for step in steps]
        starts = [heard.when("save", step) for step in steps]
        commits = [heard.when("commit", step) for step in steps]
        return (
            statistics.mean(ends) - statistics.mean(starts),
            statistics.mean(ends) - statistics.mean(commits),
        )

    def _go_on(self, kind: str, kill: Kill | None) -> Heard:
        digests = {step: told[1] for step, told in self._expected.items()}
        task = Task(self._folder, self._manager, kind, _STEPS, kill is not None, digests)
        heard, found = watched(lambda tell: train(task, tell), self._folder, kill), self.found
        for step, loss in heard.all("loss"):
            found.losses += 1
            found.others += loss != self._expected[int(step)][0]
        found.damaged += len(heard.all("damaged"))
        found.half += len(heard.all("half"))
        found.hangs += heard.hung
        starts = [int(told[0]) for told in heard.all("from")]
        if self._before is not None and starts:
            found.resumed += bool(heard.all("loss"))
            step, phase = self._before
            right = {"before": [step - 1], "within": [step - 1, step], "after": [step]}[phase]
            found.damaged += starts[0] not in right  # a step that was saved is lost
        self._before = None
        return heard


def main(arguments: list[str] | None = None) -> int:
    """Kills runs with each manager, and prints how they went on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=12, help="of each run")
    parser.add_argument(
        "--managers", nargs="*", default=[*MANAGERS], choices=MANAGERS, help="; ".join(MANAGERS)
    )
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as programs:
        # Compiling would take most of the time, and each process would do it again.
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", programs)
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
        os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        os.environ["JAX_PLATFORMS"] = "cpu"
        return _killed(given.managers, given.kills)


def _killed(managers: list[str], kills: int) -> int:
    importlib.import_module("test_managers")  # once, for all that are forked

    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        steps = _STEPS * (kills + 2)
        told = watched(lambda tell: unbroken(steps, tell), Path(folder)).all("loss")
        expected = {int(step): rest for step, *rest in told}
        good = True
        print("| manager | kills | before the commit | within | after | resumed ", end="")
        print("| losses equal | damaged | half-made that loaded | hangs |")
        print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
        for number, name in enumerate(managers):
            found = Run(name, Path(folder) / f"run {number}", expected).killed(kills)
            good = good and found.good
            print(f"| {name} | {found} |", flush=True)
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
