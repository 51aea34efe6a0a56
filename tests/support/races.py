"""Several processes that save to one path at once, and one that converts to it, and what became of it.

``python tests/support/races.py --writers 4 --rounds 200`` runs many, the last of the writers a
converter, and prints how they ended; it exits with 1 unless in each of them one writer won, every
other had a named error in time, and the bits of the winner were all that was left.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Sequence
from pathlib import Path

import numpy as np
from orbax.checkpoint import v1 as ocp

import ckpt_schema

SLOWEST = 30.0  # seconds that any writer may take, on a busy machine

_PACKAGE = Path(ckpt_schema.__file__).parents[1]  # the same as here, wherever this runs

_WRITER = """
import logging, sys, tempfile
logging.disable(logging.CRITICAL)
import jax.numpy as jnp
import ckpt_schema as cs
number, kind = int(sys.argv[1]), sys.argv[2]
state = {"w": {f"k{i}": jnp.full((50, 40), float(number), jnp.float32) for i in range(8)}}
layout = cs.infer(state)
lens = cs.derive(layout, layout)
other = {"v": state["w"]}
folder = tempfile.TemporaryDirectory(dir=sys.argv[3])
source, rules = folder.name + "/0", [cs.rename("v", "w")]
cs.orbax.save(source, other)
print("ready", flush=True)
for line in sys.stdin:
    try:
        if kind == "save":
            cs.orbax.save(line.strip(), state, lens)
        else:
            cs.orbax.convert(source, line.strip(), state, rules=rules)
        print("saved" if kind == "save" else "converted", flush=True)
    except cs.CkptSchemaError as error:
        print("named", type(error).__name__, flush=True)
    except BaseException as error:
        print("raw", type(error).__name__, str(error)[:100].replace(chr(10), " "), flush=True)
"""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How one race ended.

    Attributes:
        said: What each writer said: ``saved``, ``converted``, ``named ...``, ``raw ...`` or ``hang``.
        seconds: How long the slowest took.
        names: What lies in the directory afterwards.
        holds: The number of the writer whose values the checkpoint holds; None if it is not whole.
    """

    said: tuple[str, ...]
    seconds: float
    names: tuple[str, ...]
    holds: int | None

    @property
    def good(self) -> bool:
        """Whether one won, all others lost in time and by name, and nothing else is left."""
        lost = [text for text in self.said if text == "named CheckpointExistsError"]
        ways = ("saved", "converted")
        won = [number for number, text in enumerate(self.said) if text in ways]
        ended = len(won) == 1 and len(lost) == len(self.said) - 1 and self.seconds < SLOWEST
        return ended and self.holds == won[0] and len(self.names) == 1


class Writers:
    """Processes that have started and wait for a path."""

    def __init__(self, count: int, root: Path) -> None:
        """Starts them; each saves another value, and the last converts to it."""
        kinds = ["save"] * (count - 1) + ["convert"]
        self._all = [
            subprocess.Popen(
                [sys.executable, "-c", _WRITER, str(number), kind, str(root)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                cwd="/",
                env=dict(os.environ) | {"PYTHONPATH": str(_PACKAGE)},
            )
            for number, kind in enumerate(kinds)
        ]
        for process in self._all:
            assert process.stdout is not None
            assert process.stdout.readline().strip() == "ready"

    def race(self, path: Path, gaps: Sequence[float], first: int = 0) -> Outcome:
        """Lets all of them save to ``path``, each some seconds after the one before, from the ``first`` on."""
        start = time.monotonic()
        turned = [*self._all[first:], *self._all[:first]]
        for process, gap in zip(turned, (0.0, *gaps), strict=True):
            time.sleep(gap)
            assert process.stdin is not None
            process.stdin.write(f"{path}\n")
            process.stdin.flush()
        said = tuple(self._answer(process) for process in self._all)
        seconds = time.monotonic() - start
        names = tuple(sorted(child.name for child in path.parent.iterdir()))
        return Outcome(said, seconds, names, _held(path))

    @staticmethod
    def _answer(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        until = time.monotonic() + SLOWEST
        try:
            while time.monotonic() < until:
                line = process.stdout.readline()
                if line:
                    return line.strip()
                time.sleep(0.01)
        finally:
            os.set_blocking(process.stdout.fileno(), True)
        return "hang"

    def close(self) -> None:
        """Ends them."""
        for process in self._all:
            process.kill()
            process.communicate()


def _held(path: Path) -> int | None:
    try:
        leaves = ocp.load(path)["w"].values()
        values = {float(x) for leaf in leaves for x in np.unique(np.asarray(leaf))}
    except Exception:  # what cannot be read is no whole checkpoint, whatever Orbax says
        return None
    return int(values.pop()) if len(values) == 1 else None


@contextlib.contextmanager
def writers(count: int, root: Path) -> Generator[Writers]:
    """Processes that are ended with the block, and have a folder for what they convert."""
    started = Writers(count, root)
    try:
        yield started
    finally:
        started.close()


def _new(parent: Path) -> Path:
    parent.mkdir()
    return parent / "0"


def main() -> int:
    """Runs races and prints how they ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--writers", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    ends, slowest, bad = Counter[str](), 0.0, 0
    with tempfile.TemporaryDirectory() as root, writers(options.writers, Path(root)) as started:
        for number in range(options.rounds):
            gaps = [number % 10 * 0.01] * (options.writers - 1)
            # The converter is slower: it is the first one as often as each of the others.
            first = number // 10 % options.writers
            outcome = started.race(_new(Path(root) / str(number)), gaps, first)
            ends[", ".join(sorted(outcome.said))] += 1
            slowest, bad = max(slowest, outcome.seconds), bad + (not outcome.good)
            if not outcome.good:
                print(outcome)
    print("| what the writers said | races |\n|---|---|")
    for text, count in ends.most_common():
        print(f"| {text} | {count} |")
    print(
        f"\n{options.rounds} races, {bad} that did not end well; the slowest took {slowest:.1f} s."
    )
    return bad > 0


if __name__ == "__main__":
    raise SystemExit(main())
