"""A restore and a save, beside Orbax's own of the same bytes: ratios taken in turns, their quartiles, and our own CPU time.

Run it with ``python tests/benchmarks/bench_restore.py``; ``--gigabytes 0.1 --leaves 300`` for smaller checkpoints. Rows of many
leaves are a list of small layers, rows of bytes one of large kernels; each on disk in one layout.

Rows:
    same layout: restored into a target of the layout on disk, through a lens that has it on one side.
    no lens: the same, with no lens given.
    renamed: each leaf of the target has another name.
    stacked: the layers of the list on disk are stacked in the target.
    transposed: each kernel of the target is a transposed one.
    save, save renamed: a save in the layout of the state, and in that of the other side.

A ratio is the time of one of ours by that of the Orbax call before or after it, which come in turns. *CPU* is the ratio of the
CPU times of the process. *Own* is the CPU time that a call of ours spends outside of Orbax's load or save, in
all threads together.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import math
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding
from jaxtyping import Array, Float32
from orbax.checkpoint import v1 as ocp

import ckpt_schema as cs


class Layer(cs.Schema):
    """A layer of the list on disk."""

    kernel: Float32[Array, "inputs outputs"]
    bias: Float32[Array, "outputs"]


class Listed(cs.Schema):
    """What is on disk."""

    layers: list[Layer] = cs.field(length="depth", key="layers_{i}")


class Renamed(cs.Schema):
    """Other names."""

    layers: list[Layer] = cs.field(length="depth", key="blocks/{i}")


class Stacked(cs.Schema):
    """The layers as one, on a first axis."""

    layers: Layer = cs.field(scan="depth", axis=0)


class Turned(cs.Schema):
    """A layer whose kernel is transposed."""

    kernel: Float32[Array, "outputs inputs"]
    bias: Float32[Array, "outputs"]


class Transposed(cs.Schema):
    """Other kernels."""

    layers: list[Turned] = cs.field(length="depth", key="layers_{i}")


OTHERS = {"renamed": Renamed, "stacked": Stacked, "transposed": Transposed}


@dataclasses.dataclass
class Times:
    """What the calls of one row took, in seconds.

    Attributes:
        theirs: Orbax's, each as wall time and CPU time.
        ours: The same of ours.
        own: The CPU time of ours outside of Orbax's load or save.
    """

    theirs: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    ours: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    own: list[float] = dataclasses.field(default_factory=list)

    def ratios(self, kind: int) -> list[float]:
        """Ours by theirs, of wall or CPU time."""
        return [a[kind] / b[kind] for a, b in zip(self.ours, self.theirs, strict=True)]


_within: list[float] = []
"""The CPU times of the calls of Orbax within ours."""


@contextlib.contextmanager
def counted() -> Iterator[None]:
    """Orbax's load and save, timed wherever they are called."""
    load, save = ocp.load, ocp.save_checkpointables_async

    def timed_load(*given: Any, **named: Any) -> Any:
        start = time.process_time()
        try:
            return load(*given, **named)
        finally:
            _within.append(time.process_time() - start)

    class Waited:
        def __init__(self, saving: Any) -> None:
            self._saving = saving

        def result(self, timeout: float | None = None) -> Any:
            start = time.process_time()
            try:
                return self._saving.result(timeout=timeout)
            finally:
                _within.append(time.process_time() - start)

    def timed_save(*given: Any, **named: Any) -> Any:
        start = time.process_time()
        saving = save(*given, **named)
        _within.append(time.process_time() - start)
        return Waited(saving)

    ocp.load, ocp.save_checkpointables_async = timed_load, timed_save
    try:
        yield
    finally:
        ocp.load, ocp.save_checkpointables_async = load, save


def clocked(call: Callable[[], Any]) -> tuple[float, float]:
    """The wall time and CPU time of a call, whose result is let go."""
    gc.collect()
    start, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(call())
    return time.perf_counter() - start, time.process_time() - cpu


def measured(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> Times:
    """Both in turns, the first of each unseen: it compiles and fills caches."""
    times = Times()
    clocked(theirs), clocked(ours)
    for number in range(rounds):
        for mine in (number % 2 == 0, number % 2 == 1):
            if not mine:
                times.theirs.append(clocked(theirs))
                continue
            _within.clear()
            with counted():
                times.ours.append(clocked(ours))
            times.own.append(times.ours[-1][1] - sum(_within))
    return times


def listed(leaves: int, gigabytes: float) -> Any:
    """A list of so many leaves, that take so many bytes together."""
    depth = leaves // 2
    outputs = max(4, round(math.sqrt(gigabytes * 1e9 / 4 / depth)))
    draw = np.random.default_rng(0)
    return {
        f"layers_{i}": {
            "kernel": jnp.asarray(draw.standard_normal((outputs + 1, outputs), "float32")),
            "bias": jnp.asarray(draw.standard_normal(outputs, "float32")),
        }
        for i in range(depth)
    }


def asked(tree: Any) -> Any:
    """The abstract tree, each leaf with a sharding."""
    place = SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)


def rows(tree: Any, path: Path, names: list[str]) -> Iterator[tuple[str, Callable[[], Any], Any]]:
    """Each row: its name, our call and that of Orbax."""
    depth = len(tree)
    target = asked(tree)
    load: Callable[[], Any] = lambda: ocp.load(path, target)  # noqa: E731
    lenses = {
        name: cs.derive(Listed, other, dims={"depth": depth}) for name, other in OTHERS.items()
    }
    if "same layout" in names:
        yield "same layout", lambda: cs.orbax.restore(path, target, lenses["renamed"]), load
    if "no lens" in names:
        yield "no lens", lambda: cs.orbax.restore(path, target), load
    for name, lens in lenses.items():
        if name in names:
            goal = asked(lens.get(tree))
            yield name, lambda goal=goal, lens=lens: cs.orbax.restore(path, goal, lens), load
    for name in ("save", "save renamed"):
        if name in names:
            lens = lenses["renamed"]
            state = tree if name == "save" else lens.get(tree)
            yield (
                name,
                lambda state=state, lens=lens: _saved(path, cs.orbax.save, state, lens),
                lambda: _saved(path, ocp.save, tree),
            )


ROWS = ("same layout", "no lens", *OTHERS, "save", "save renamed")


def _saved(path: Path, save: Callable[..., Any], *given: Any) -> None:
    place = path.parent / "saved"
    save(place, *given)
    start = time.process_time()
    shutil.rmtree(place)
    _within.append(time.process_time() - start)


def quartiles(values: list[float]) -> str:
    """The median and the quartiles."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def line(name: str, leaves: int, times: Times) -> str:
    """A row as it is printed."""
    own = statistics.median(times.own) * 1000
    theirs = statistics.median(each[0] for each in times.theirs)
    wall, cpu = quartiles(times.ratios(0)), quartiles(times.ratios(1))
    return f"{name:14}{wall:>20}{cpu:>20}{theirs:10.2f} s{own:10.0f} ms{own / leaves:10.3f} ms"


def main() -> None:
    """Prints the rows, of many leaves and of many bytes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--leaves", type=int, default=3000)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rows", nargs="*", default=[*ROWS])
    parser.add_argument("--folder", type=Path, help="where checkpoints are written meanwhile")
    given = parser.parse_args()
    sizes = {
        f"{given.leaves:,} leaves": (given.leaves, given.leaves * 300 / 1e9),
        f"{given.gigabytes:g} GB": (64, given.gigabytes),
    }
    print(f"{given.rounds} ratios each, the median and quartiles")
    for size, (leaves, gigabytes) in sizes.items():
        if not gigabytes or not leaves:
            continue
        titles = f"{size:14}{'time':>20}{'CPU':>20}{'Orbax':>12}{'own':>13}{'a leaf':>13}"
        print(f"\n{titles}", flush=True)
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            path = Path(folder) / "list"
            tree = listed(leaves, gigabytes)
            ocp.save(path, tree)
            for name, ours, theirs in rows(tree, path, given.rows):
                print(line(name, leaves, measured(ours, theirs, given.rounds)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
