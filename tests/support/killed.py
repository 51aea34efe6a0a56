"""Conversions that are killed, at times spread over what one takes: what is left of them, and whether they run again.

``python tests/support/killed.py --rounds 50`` kills so many and prints how many fell before the
new checkpoint was there and how many after; it exits with 1 unless each has left a whole checkpoint
or none, and its source as it was, and has run again.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from orbax.checkpoint import v1 as ocp

import ckpt_schema as cs

_LAYERS = 6


@dataclasses.dataclass
class Outcome:
    """What became of conversions that were killed.

    Attributes:
        before: How many had left no checkpoint.
        after: How many had left a whole one.
        half: How many had left one that loads and is not whole, or another source.
        failed: How many did not run again.
    """

    before: int = 0
    after: int = 0
    half: int = 0
    failed: int = 0


def _layers() -> list[dict[str, Any]]:
    return [
        {"a": np.full((64, 64), i, "float32"), "b": np.full(8, i, "float32")}
        for i in range(_LAYERS)
    ]


def _old() -> Any:
    return {
        "net": {f"layers_{i}": layer for i, layer in enumerate(_layers())},
        "c": np.ones(99, "float32"),
    }


def _new() -> Any:
    layers = _layers()
    stacks = {name: np.stack([layer[name] for layer in layers]) for name in "ab"}
    return {"net": {"layers": stacks}, "d": np.ones(99, "float32")}


def _converted(old: Path, new: Path) -> None:
    cs.orbax.convert(old, new, _new(), rules=[cs.rename("c", "d")])


def _in_child(old: Path, new: Path, seconds: float | None) -> float:
    """How long a process takes that converts, or is killed after so many seconds."""
    start = time.perf_counter()
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            _converted(old, new)
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return time.perf_counter() - start


def _holds(path: Path, expected: Any) -> bool:
    found, treedef = [*_flat(cs.orbax.load(path))], [*_flat(expected)]
    return found == treedef


def _flat(tree: Any, at: str = "") -> Any:
    if isinstance(tree, dict):
        for key in sorted(tree):
            yield from _flat(tree[key], f"{at}/{key}")
    else:
        yield at, str(np.asarray(tree).dtype), np.asarray(tree).tobytes()


def _outcome(old: Path, new: Path) -> str:
    """What a killed conversion has left: nothing that loads, a whole checkpoint, or what should not be."""
    for left in new.parent.iterdir():
        if left != new and not left.name.startswith("old"):
            with contextlib.suppress(Exception):
                ocp.load(left)
                return "half"
    if not _holds(old, _old()):
        return "half"
    if not new.exists():
        return "before"
    with contextlib.suppress(cs.CkptSchemaError):
        return "after" if _holds(new, _new()) else "half"
    return "half"


def run(root: Path, rounds: int) -> Outcome:
    """Kills so many conversions, and looks at what they left."""
    # Of what runs before, nothing may start threads, which a fork would not have.
    whole = _in_child(root / "old", root / "measured" / "new", None)
    places = [root / str(number) / "new" for number in range(rounds)]
    for number, place in enumerate(places):
        place.parent.mkdir()
        _in_child(root / "old", place, whole * (number + 0.5) / rounds)
    found = Outcome()
    for place in places:
        ended = _outcome(root / "old", place)
        setattr(found, ended, getattr(found, ended) + 1)
        again = place.with_name("again") if place.exists() else place
        _converted(root / "old", again)
        found.failed += not _holds(again, _new())
    return found


def main(arguments: list[str] | None = None) -> int:
    """Runs the rounds, and prints what became of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    rounds = parser.parse_args(arguments).rounds
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        saver = os.fork()
        if not saver:
            ocp.save(root / "old", _old())
            os._exit(0)
        os.waitpid(saver, 0)
        found = run(root, rounds)
    print(f"{rounds} kills: {found.before} left nothing, {found.after} a whole checkpoint")
    print(f"half-made that load: {found.half}; that did not run again: {found.failed}")
    return int(bool(found.half or found.failed or found.before + found.after != rounds))


if __name__ == "__main__":
    sys.exit(main())
