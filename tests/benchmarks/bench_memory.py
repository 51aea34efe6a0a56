"""How much memory a translation of stacked layers takes at its peak, and how fast it moves bytes.

Run it with ``python tests/benchmarks/bench_memory.py``; ``--gigabytes 0.5`` for a smaller checkpoint. It needs twice that much
disk in the temporary folder, and memory. Each row runs in a process of its own, on 8 virtual CPU devices unless a GPU is there:
what a process has used at its peak never falls again.

Rows of memory, in bytes besides what the process had before, as a ratio to the checkpoint's:
    load: Orbax alone, into the layout on disk; what any restore must hold, and what reading costs on the way.
    restore, stacked -> list: through a lens.
    restore, list -> stacked: through a lens.
    restore, ... onto arrays: into a concrete target, whose own bytes are counted too.
    restore, ... given up: the same with ``donate_target=True``.
    get, put: the same in memory, the tree given up; the bytes of the tree itself are counted.
Bound: the checkpoint, and twice its largest leaf (of either layout). On CPUs the memory counts that the system has lent: glibc
is told to return at once what is freed, for by default it keeps up to 32 MiB of each size for its own thread.

Rows of speed, as a ratio to a plain copy of the same arrays on their devices, both at their best of several:
    unstack, stack: a lens between a stack and a list, nothing given up.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEVICES = 8
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}".strip()
)

import jax  # noqa: E402  jax reads the variable above once, when it starts
import jax.numpy as jnp  # noqa: E402
from jax.sharding import AxisType, NamedSharding, PartitionSpec  # noqa: E402
from jaxtyping import Array, Float32  # noqa: E402
from orbax.checkpoint import v1 as ocp  # noqa: E402

import ckpt_schema as cs  # noqa: E402

DEPTH, ROWS, KERNELS = 32, 1024, 8
MEMORY = (
    "load",
    "restore, stacked -> list",
    "restore, list -> stacked",
    "restore, stacked -> list, onto arrays",
    "restore, stacked -> list, given up",
    "restore, list -> stacked, given up",
    "get, stacked -> list",
    "put, list -> stacked",
)
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
SPEED = ("unstack axis 0", "stack axis 0", "unstack axis 1", "stack axis 1")


class Kernel(cs.Schema):
    """One kernel."""

    w: Float32[Array, "inputs outputs"]


class Layer(cs.Schema):
    """One layer: kernels of one size."""

    kernels: list[Kernel] = cs.field(length="kernels", key="kernel_{i}")


class Stacked(cs.Schema):
    """The layers stacked on the first axis."""

    layers: Layer = cs.field(scan="depth", axis=0)


class Inner(cs.Schema):
    """The layers stacked on the second axis."""

    layers: Layer = cs.field(scan="depth", axis=1)


class Listed(cs.Schema):
    """The layers in a list."""

    layers: list[Layer] = cs.field(length="depth")


def lens(axis: int = 0) -> cs.Lens:
    """From stacked layers to a list."""
    return cs.derive((Stacked, Inner)[axis], Listed, dims={"depth": DEPTH, "kernels": KERNELS})


def spread(axis: int, shape: tuple[int, ...]) -> NamedSharding:
    """A sharding of a stack over all devices."""
    count = len(jax.devices())
    mesh = jax.make_mesh(
        (max(1, count // 2), min(2, count)), ("x", "y"), axis_types=(AxisType.Auto,) * 2
    )
    entries = ["x", "y"]
    entries.insert(axis, None)  # type: ignore[arg-type]
    return NamedSharding(
        mesh, PartitionSpec(*entries) if len(shape) == 3 else PartitionSpec("x", "y")
    )


def abstract(gigabytes: float, axis: int = 0) -> Any:
    """The stacked layout's abstract tree of this size."""
    outputs = round(gigabytes * 1e9 / 4 / KERNELS / DEPTH / ROWS / 64) * 64
    shape = [ROWS, outputs]
    shape.insert(axis, DEPTH)
    leaf = jax.ShapeDtypeStruct(tuple(shape), jnp.float32, sharding=spread(axis, tuple(shape)))
    return {"layers": {f"kernel_{i}": {"w": leaf} for i in range(KERNELS)}}


def concrete(tree: Any) -> Any:
    """Its arrays, none of whose pages are shared."""
    make = functools.cache(
        lambda leaf: jax.jit(lambda: jnp.ones(leaf.shape, leaf.dtype), out_shardings=leaf.sharding)
    )
    return jax.block_until_ready(jax.tree.map(lambda leaf: make(leaf)(), tree))


def bytes_of(tree: Any) -> int:
    """The bytes of a tree, abstract or not."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def used() -> int:
    """The bytes that this process has used at its peak: of the GPU's memory, where there is one."""
    statistics = jax.devices()[0].memory_stats()
    if statistics:
        return sum(device.memory_stats()["peak_bytes_in_use"] for device in jax.devices())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory(row: str, gigabytes: float, folder: Path) -> tuple[float, float | None]:
    """The peak of a row, in bytes besides what the process had before, and what ``dry_run`` says of it on all devices."""
    told = None
    stacked = abstract(gigabytes)
    listed = lens().get(stacked)
    cold = jax.tree.map(lambda x: jax.ShapeDtypeStruct((DEPTH, 2, 2), x.dtype), stacked)
    jax.block_until_ready(
        lens().put(lens().get(concrete(jax.tree.map(lambda x: _small(x), cold))))
    )  # what loads once
    kind, _, way = row.partition(", ")
    if kind in ("load", "restore"):
        saved, target = (
            (listed, stacked) if way.startswith("list") else (stacked, listed if way else stacked)
        )
        path = folder / ("list" if saved is listed else "stacked")
        gives_up = way.endswith("given up")
        if kind == "restore" and not gives_up and not way.endswith("onto arrays"):
            told = cs.orbax.dry_run(path, target, lens()).peak * len(jax.devices())
        before = used()
        if gives_up or way.endswith("onto arrays"):
            target = concrete(target)
        through = functools.partial(cs.orbax.restore, donate_target=gives_up)
        made = ocp.load(path, target) if kind == "load" else through(path, target, lens())
    else:
        source = listed if kind == "put" else stacked
        before = used()
        tree = concrete(source)
        made = (lens().put if kind == "put" else lens().get)(tree, donate=True)
    jax.block_until_ready(made)
    return used() - before, told


def _small(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=NamedSharding(spread(0, leaf.shape).mesh, PartitionSpec())
    )


def best(run: Callable[[], Any], repeats: int = 5) -> float:
    """The least seconds of several runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return min(times)


def speed(row: str, gigabytes: float) -> tuple[float, float]:
    """Seconds of a row, and of copying the same arrays."""
    kind, _, axis = row.partition(" axis ")
    tree = concrete(abstract(gigabytes, int(axis)))
    through = lens(int(axis))
    if kind == "stack":
        tree = through.get(tree, donate=True)
    copy = jax.jit(lambda leaves: [jnp.copy(x) for x in leaves])
    leaves = jax.tree.leaves(tree)
    floor = best(lambda: copy(leaves))
    return best(lambda: (through.put if kind == "stack" else through.get)(tree)), floor


def save(gigabytes: float, folder: Path) -> None:
    """Writes the checkpoint in both layouts."""
    stacked = concrete(abstract(gigabytes))
    ocp.save(folder / "stacked", stacked)
    ocp.save(folder / "list", lens().get(stacked, donate=True))


def main() -> None:
    """Prints the rows; with ``--row``, measures one of them and prints it as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--row")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.row:
        _measure(options.row, options.gigabytes, options.folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        again = [
            sys.executable,
            __file__,
            "--gigabytes",
            str(options.gigabytes),
            "--folder",
            folder,
        ]
        _print_table(options.gigabytes, again)


def _measure(row: str, gigabytes: float, folder: Path) -> None:
    if row == "save":
        save(gigabytes, folder)
    elif row in MEMORY:
        print(json.dumps(memory(row, gigabytes, folder)))
    else:
        print(json.dumps(speed(row, gigabytes)))


def _print_table(gigabytes: float, again: list[str]) -> None:
    def measured(row: str) -> Any:
        environment = {**os.environ, **(MALLOC if row in MEMORY else {})}
        run = subprocess.run(
            [*again, "--row", row], check=True, stdout=subprocess.PIPE, text=True, env=environment
        )
        output = run.stdout
        return json.loads(output.splitlines()[-1]) if output.strip() else None

    total, largest = (
        bytes_of(abstract(gigabytes)),
        max(bytes_of(x) for x in jax.tree.leaves(abstract(gigabytes))),
    )
    bound = (total + 2 * largest) / total
    print(
        f"checkpoint of {total / 1e9:.2f} GB, largest leaf {largest / 1e9:.3f} GB, on {len(jax.devices())} devices"
    )
    measured("save")
    print(f"{'peak memory':40}{'GB':>8}{'ratio':>8}{'bound':>8}")
    for row in MEMORY:
        peak, told = measured(row)
        said = "" if told is None else f"  (a dry run says {told / 1e9:.2f} GB)"
        print(f"{row:40}{peak / 1e9:8.2f}{peak / total:8.2f}{bound:8.2f}{said}", flush=True)
    print(f"{'speed':40}{'GB/s':>8}{'copy':>8}{'ratio':>8}")
    for row in SPEED:
        seconds, floor = measured(row)
        print(
            f"{row:40}{total / seconds / 1e9:8.2f}{total / floor / 1e9:8.2f}{seconds / floor:8.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
