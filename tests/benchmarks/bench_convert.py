"""What a conversion on disk reads and writes, how long it takes, and how much memory.

Run it with ``python tests/benchmarks/bench_convert.py``; ``--gigabytes 0.5`` for a smaller
checkpoint. It needs three times that much disk in the folder of ``--folder``, the temporary one
unless given, and half as much memory. Each row runs in a process of its own: what a process has
used at its peak never falls again.

Rows:
    copied: the files of the checkpoint copied, to compare with.
    renamed: other names for all leaves; no byte of an array is read or written.
    unstacked: a stack of layers on disk made into a list; every leaf is edited.
    stacked: a list of layers made into a stack.
Of each: seconds, the bytes that TensorStore has read and written, and the peak of memory besides
what the process had before, as a ratio to the largest leaf. Bound of the last: 2.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import tensorstore as ts
from orbax.checkpoint import v1 as ocp

import ckpt_schema as cs

DEPTH, KERNELS, ROWS = 8, 8, 1024
ROWS_PRINTED = ("copied", "renamed", "unstacked", "stacked")
SAVED = "saved"  # no row: what is converted, saved in a process of its own as well
# glibc is told to return at once what is freed.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def trees(gigabytes: float, *, depth: int = DEPTH) -> tuple[Any, Any, Any]:
    """The abstract trees of a stack of layers, of the same with other names, and of a list."""
    columns = max(1, round(gigabytes * 1e9 / 4 / KERNELS / DEPTH / ROWS))
    layer = jax.ShapeDtypeStruct((ROWS, columns), "float32")
    stack = jax.ShapeDtypeStruct((depth, ROWS, columns), "float32")
    names = [f"kernel_{i}" for i in range(KERNELS)]
    stacked = {"layers": dict.fromkeys(names, stack)}
    renamed = {"model": {"blocks": {name: {"w": stack} for name in names}}}
    listed = {f"layers_{i}": dict.fromkeys(names, layer) for i in range(depth)}
    return stacked, renamed, listed


def concrete(tree: Any) -> Any:
    """Its arrays: random bits, which no compression makes smaller."""
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    made = [jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return treedef.unflatten(made)


def counted(verb: str) -> int:
    """The bytes of files that TensorStore has read or written in this process."""
    found = ts.experimental_collect_matching_metrics(f"/tensorstore/kvstore/file/bytes_{verb}")
    return sum(value["value"] for each in found for value in each["values"])


def used() -> int:
    """The bytes that this process has used at its peak."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def lens_of(row: str, gigabytes: float) -> cs.Lens:
    """The lens of a row."""
    stacked, renamed, listed = trees(gigabytes)
    if row == "renamed":
        names = stacked["layers"]
        rules = [cs.rename(f"layers/{name}", f"model/blocks/{name}/w") for name in names]
        return cs.adapt(stacked, renamed, rules=rules)
    return cs.adapt(stacked, listed)


def measured(row: str, gigabytes: float, folder: Path) -> dict[str, float]:
    """One row, in this process."""
    if row == SAVED:
        stacked, _, listed = trees(gigabytes)
        for name, tree in (("stack", stacked), ("list", listed)):
            ocp.save(folder / name, concrete(tree))
        return {}
    old, new = folder / ("list" if row == "stacked" else "stack"), folder / "new"
    stacked, _, _ = trees(gigabytes)
    largest = max(leaf.size * 4 for leaf in jax.tree.leaves(stacked))
    warm(row, folder)
    before = used(), counted("read"), counted("written")
    start = time.perf_counter()
    if row == "copied":
        shutil.copytree(old, new)
    else:
        cs.orbax.convert(old, new, lens_of(row, gigabytes))
    seconds = time.perf_counter() - start
    shutil.rmtree(new)
    return {
        "seconds": seconds,
        "read": counted("read") - before[1],
        "written": counted("written") - before[2],
        "peak": (used() - before[0]) / largest,
    }


def warm(row: str, folder: Path) -> None:
    """Runs a small conversion once, for what loads once."""
    small, _, listed = trees(0.001)
    ocp.save(folder / "small", concrete(listed if row == "stacked" else small))
    if row != "copied":
        cs.orbax.convert(folder / "small", folder / "warm", lens_of(row, 0.001))
        shutil.rmtree(folder / "warm")
    shutil.rmtree(folder / "small")


def in_process(row: str, gigabytes: float, folder: str) -> dict[str, float]:
    """What a process of its own measures."""
    command = [sys.executable, __file__, "--row", row, "--folder", folder]
    run = subprocess.run(
        [*command, "--gigabytes", str(gigabytes)],
        env={**os.environ, **MALLOC},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(run.stdout.splitlines()[-1])


def main(arguments: list[str] | None = None) -> None:
    """Prints all rows."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=5.0)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--row", choices=(SAVED, *ROWS_PRINTED))
    given = parser.parse_args(arguments)
    if given.row:
        print(json.dumps(measured(given.row, given.gigabytes, given.folder)))
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        stacked, _, _ = trees(given.gigabytes)
        size = sum(leaf.size * 4 for leaf in jax.tree.leaves(stacked)) / 1e9
        print(f"{size:.2f} GB in {KERNELS} stacks of {DEPTH} layers\n")
        print("| what | seconds | read | written | peak, in largest leaves |")
        print("|---|---|---|---|---|")
        in_process(SAVED, given.gigabytes, folder)
        for row in ROWS_PRINTED:
            found = in_process(row, given.gigabytes, folder)
            read, written = found["read"], found["written"]
            if row == "copied":  # by the system, unseen by TensorStore
                read = written = size * 1e9
            told = f"{read / 1e9:.6f} GB | {written / 1e9:.6f} GB | {found['peak']:.2f}"
            print(f"| {row} | {found['seconds']:.2f} | {told} |", flush=True)


if __name__ == "__main__":
    main()
