"""Saves and conversions that are killed, at times spread over what one takes: what is left, and whether they run again.

``python tests/support/killed.py`` kills so many of each kind as ``--rounds`` says. It prints how many fell
before, within and after the commit, which begins with the rename that puts the checkpoint in its
place and ends when the call returns, and exits with 1 unless each has left a whole checkpoint or
none, the source of a conversion as it was, and has run again. One kill in four waits for the commit.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import os
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from orbax.checkpoint import v1 as ocp

import ckpt_schema as cs

_LAYERS = 6
_AIMED = 4  # one kill in so many


def _layers() -> list[dict[str, Any]]:
    return [
        {"a": np.full((64, 64), i, "float32"), "b": np.full(8, i, "float32")}
        for i in range(_LAYERS)
    ]


def old() -> Any:
    """What is converted."""
    return {
        "net": {f"layers_{i}": layer for i, layer in enumerate(_layers())},
        "c": np.ones(99, "float32"),
    }


def new() -> Any:
    """What each job makes."""
    layers = _layers()
    stacks = {name: np.stack([layer[name] for layer in layers]) for name in "ab"}
    return {"net": {"layers": stacks}, "d": np.ones(99, "float32")}


_RULES = [cs.rename("c", "d")]


def _saved(root: Path, place: Path) -> None:
    cs.orbax.save(place, old(), layout=new(), rules=[cs.rename("d", "c")])


def _saved_async(root: Path, place: Path) -> None:
    lens = cs.adapt(new(), old(), rules=[cs.rename("d", "c")])
    with ocp.training.Checkpointer(place.parent) as checkpointer:
        items = cs.orbax.items_of(old(), lens)
        checkpointer.save_checkpointables_async(int(place.name), items).result()


def _converted(root: Path, place: Path) -> None:
    cs.orbax.convert(root / "old", place, new(), rules=_RULES)


JOBS: dict[str, Callable[[Path, Path], None]] = {
    "save": _saved,
    "async save": _saved_async,
    "convert": _converted,
}


@dataclasses.dataclass
class Outcome:
    """What became of the killed.

    Attributes:
        before: How many were killed before the commit.
        within: How many in it.
        after: How many after it.
        half: How many had left one that loads and is not whole, or another source, or none after
            the commit, or one before it.
        failed: How many did not run again.
    """

    before: int = 0
    within: int = 0
    after: int = 0
    half: int = 0
    failed: int = 0

    @property
    def good(self) -> bool:
        """Whether each was whole or nothing, and ran again."""
        return not self.half and not self.failed


@dataclasses.dataclass(frozen=True)
class _Marks:
    """When a process began its work, its commit, and had done it, in seconds of the clock; None where it did not."""

    start: float | None
    commit: float | None
    end: float | None

    @property
    def phase(self) -> str:
        """Where it was when it ended."""
        return "after" if self.end else "within" if self.commit else "before"


def in_child(job: Callable[[Any], None], place: Any, kill: tuple[str, float] | None) -> _Marks:
    """Runs a job in a process, which is killed so many seconds after a mark."""
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):

            def told(event: str, given: tuple[Any, ...]) -> None:
                if event == "os.rename" and os.fspath(given[1]) == str(place):
                    os.write(writes, b"c")

            sys.addaudithook(told)
            os.write(writes, b"s")
            job(place)
            os.write(writes, b"e")
        os._exit(0)
    os.close(writes)
    marks: dict[str, float] = {}
    due = None
    while True:
        left = None if due is None else max(0.0, due - time.perf_counter())
        if not select.select([reads], [], [], left)[0]:
            os.kill(child, signal.SIGKILL)
            due = None
            continue
        mark = os.read(reads, 1).decode()
        if not mark:
            break
        marks.setdefault(mark, time.perf_counter())
        if kill is not None and mark == kill[0] and due is None:
            due = time.perf_counter() + kill[1]
    os.close(reads)
    os.waitpid(child, 0)
    return _Marks(*map(marks.get, "sce"))


def holds(path: Path, expected: Any) -> bool:
    """Whether a checkpoint is this tree, to the last bit."""
    return flat(cs.orbax.load(path)) == flat(expected)


def flat(tree: Any) -> list[tuple[str, str, bytes]]:
    """The leaves of a tree: path, dtype and bits."""
    return [*_flat(tree)]


def _flat(tree: Any, at: str = "") -> Any:
    if isinstance(tree, dict):
        for key in sorted(tree):
            yield from _flat(tree[key], f"{at}/{key}")
    else:
        yield at, str(np.asarray(tree).dtype), np.asarray(tree).tobytes()


def _is_sound(root: Path, place: Path, phase: str) -> bool:
    """Whether a killed job has left nothing that loads, or a whole checkpoint, as it should have."""
    for left in place.parent.iterdir():
        if left != place and left.is_dir():
            with contextlib.suppress(cs.CkptSchemaError):
                cs.orbax.load(left)
                return False
    if not holds(root / "old", old()):
        return False
    if not place.exists():
        return phase != "after"
    with contextlib.suppress(cs.CkptSchemaError):
        return phase != "before" and holds(place, new())
    return False


def run(name: str, root: Path, rounds: int) -> Outcome:
    """Kills a job so often, and looks at what is left."""

    def job(place: Path) -> None:
        JOBS[name](root, place)

    # Of what runs before, nothing may start threads, which a fork would not have.
    first = in_child(job, _made(root / f"{name} measured"), None)
    if first.start is None or first.commit is None or first.end is None:
        raise SystemExit(f"{name} does not run to its end, or its commit was not seen")
    whole, commit = first.end - first.start, first.end - first.commit
    places = [_made(root / f"{name} {number}") for number in range(rounds)]
    phases: list[str] = []
    for number, place in enumerate(places):
        share = (number + 0.5) / rounds
        is_aimed = number % _AIMED == 0
        kill = ("c", share * commit) if is_aimed else ("s", share * whole)
        phases.append(in_child(job, place, kill).phase)
    found = Outcome()
    for place, phase in zip(places, phases, strict=True):
        setattr(found, phase, getattr(found, phase) + 1)
        found.half += not _is_sound(root, place, phase)
        again = place.with_name("2") if place.exists() else place
        job(again)
        found.failed += not holds(again, new())
    return found


def _made(parent: Path) -> Path:
    parent.mkdir()
    return parent / "1"


def main(arguments: list[str] | None = None) -> int:
    """Kills each job, and prints what became of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200, help="kills of each kind")
    parser.add_argument("--jobs", nargs="*", default=[*JOBS], help="; ".join(JOBS))
    given = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)
    good = True
    print("| killed in | kills | before the commit | within | after | half-made | not run again |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name in given.jobs:
        reads, writes = os.pipe()
        child = os.fork()  # each starts threads in the end
        if not child:
            os.write(writes, _row(name, given.rounds).encode())
            os._exit(0)
        os.close(writes)
        with os.fdopen(reads) as told:
            row = told.read()
        os.waitpid(child, 0)
        print(row, flush=True)
        good = good and row.endswith("| 0 | 0 |")
    return int(not good)


def _row(name: str, rounds: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        saver = os.fork()
        if not saver:
            ocp.save(root / "old", old())
            os._exit(0)
        os.waitpid(saver, 0)
        found = run(name, root, rounds)
    numbers = [rounds, *dataclasses.astuple(found)]
    return f"| {name} | {' | '.join(map(str, numbers))} |"


if __name__ == "__main__":
    sys.exit(main())
