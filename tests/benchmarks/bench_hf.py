"""Folders of Hugging Face beside Orbax's own reader of safetensors, and beside a plain copy of their files.

Run it with ``python tests/benchmarks/bench_hf.py``; ``--gigabytes 0.2 --rounds 3`` for a smaller model.
It needs three times that much disk in the temporary folder. The model is a Llama in float32, in
several files with an index; it is restored on a mesh of 8 virtual CPU devices, 4 by 2.

Rows of time, each of ours by the call of Orbax or the copy before or after it, which come in turns:
    no lens: a restore into the tensors of the files.
    family: a restore into the model of NNX, through the lens of the family, which turns every kernel.
    wider: the same from files in bfloat16, of which Orbax is asked for float32 too.
    save, save family: a save of the tensors of the files, and of the model of NNX, beside a copy of
        the files.
*Rows* are shards along the first axis of each tensor of the files; *blocks* are cut along both axes,
as models are. Orbax is always asked for the tensors of the files without a lens, each cut as what we
make of it is. Of blocks there are fewer ratios: its reader takes a minute for them.

Rows of memory: the peak, in a process of its own, besides what it had before; what of it is not the
result, as a ratio to the largest tensor of the files.

Rows of bytes: what each of several processes reads in all, as a ratio to its share of the files.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from bench_memory import MALLOC, bytes_of
from bench_restore import measured, quartiles
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

import ckpt_schema as cs
from ckpt_schema.testing import run_distributed

DEPTH, HEAD, FILES = 8, 64, 4
CUTS = ("rows", "blocks")
RESTORES = ("no lens", "family", "wider")
ROWS = (*RESTORES, "save", "save family")
FEWEST = {"save": 1 / 0.7, "save family": None}
"""How many times the time of a copy a save may take: what is turned on the way is not bounded."""


def sizes(gigabytes: float) -> dict[str, int]:
    """The dims of a model that takes no fewer bytes in float32."""
    width = math.ceil(math.sqrt(gigabytes * 1e9 / 4 / (12 * DEPTH + 16)) / 256) * 256
    heads = {"heads": width // HEAD, "kv": width // HEAD // 2, "head_dim": HEAD}
    return {"embed": width, "mlp": 3 * width, "vocab": 8 * width, "depth": DEPTH, **heads}


def placed(name: str, leaf: Any, mesh: Mesh, cut: str) -> jax.ShapeDtypeStruct:
    """A tensor of the files, cut over all devices."""
    turned = "o_proj" in name or "down_proj" in name
    blocks = ("wide", "deep")[:: -1 if turned else 1]
    spec = blocks if cut == "blocks" and len(leaf.shape) == 2 else (mesh.axis_names,)
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def tensors(folder: Path, cut: str, dtype: Any = None) -> dict[str, jax.ShapeDtypeStruct]:
    """What is in a folder, cut over all devices."""
    count = jax.device_count()
    mesh = jax.make_mesh((math.gcd(count, 2), count // math.gcd(count, 2)), ("wide", "deep"))
    found = {}
    for name, leaf in cs.hf.metadata(folder).items():
        asked = jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype)
        found[name] = placed(name, asked, mesh, cut)
    return found


def nested(tree: dict[str, Any]) -> dict[str, Any]:
    """The tensors in a tree, each part of a name a key."""
    made: dict[str, Any] = {}
    for name, leaf in tree.items():
        *above, last = name.split(".")
        node = made
        for part in above:
            node = node.setdefault(part, {})
        node[last] = leaf
    return made


def write(home: Path, gigabytes: float) -> None:
    """Writes the model, in float32 and in bfloat16."""
    dims = sizes(gigabytes)
    draw = np.random.default_rng(0)
    values = {
        name: draw.standard_normal(leaf.shape, "float32")
        for name, leaf in cs.abstract(cs.families.llama.Files, dims).items()
    }
    total = sum(value.nbytes for value in values.values())
    cs.hf.save(home / "float32", values, shard_bytes=total // FILES)
    narrow = {name: value.astype(jnp.bfloat16) for name, value in values.items()}
    cs.hf.save(home / "bfloat16", narrow, shard_bytes=total // FILES)


def lens_of(folder: Path) -> cs.Lens:
    """The lens of the family, which no shape tells the width of a head."""
    return cs.families.llama.lens_of(folder).bind(head_dim=HEAD)


def ours(home: Path, row: str, cut: str) -> Callable[[], Any]:
    """A restore of ours, or a save."""
    if row in FEWEST:
        return saves(home, row, cut)[0]
    folder = home / ("bfloat16" if row == "wider" else "float32")
    if row == "no lens":
        target: Any = nested(tensors(folder, cut))
        return lambda: cs.hf.restore(folder, target)
    lens = lens_of(folder)
    target = lens.get(tensors(folder, cut))
    return lambda: cs.hf.restore(folder, target, lens)


def theirs(home: Path, row: str, cut: str) -> Callable[[], Any]:
    """Orbax's load of the same tensors."""
    folder = home / ("bfloat16" if row == "wider" else "float32")
    target = tensors(folder, cut, jnp.float32)
    layout = ocp.Context()
    layout.checkpoint_layout = "safetensors"

    def load() -> Any:
        with layout:
            return ocp.load(folder, target)

    return load


def saves(home: Path, row: str, cut: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """A save of ours, and a copy of the files."""
    folder = home / "float32"
    state = ours(home, "no lens" if row == "save" else "family", cut)()
    lens = None if row == "save" else lens_of(folder)
    limit = bytes_of(cs.hf.metadata(folder)) // FILES
    made = home / "made"

    def save() -> None:
        shutil.rmtree(made, ignore_errors=True)
        cs.hf.save(made, state, lens, shard_bytes=limit)

    def copy() -> None:
        shutil.rmtree(made, ignore_errors=True)
        shutil.copytree(folder, made)

    return save, copy


def timed(home: Path, row: str, cut: str, rounds: int) -> str:
    """A row of time as it is printed."""
    few = rounds if cut == "rows" or row in FEWEST else max(2, rounds // 4)
    both = (
        saves(home, row, cut) if row in FEWEST else (ours(home, row, cut), theirs(home, row, cut))
    )
    times = measured(*both, few)
    wall, cpu = quartiles(times.ratios(0)), quartiles(times.ratios(1))
    other = statistics.median(each[0] for each in times.theirs)
    bound = FEWEST.get(row, 1.1)
    most = "-" if bound is None else f"{bound:.2f}"
    return f"{row:14}{cut:8}{wall:>20}{most:>8}{cpu:>20}{other:10.2f} s"


def peak(home: Path, row: str, cut: str) -> tuple[int, int, int]:
    """The bytes at the peak of a call besides those before, those of its result, and of the largest leaf."""
    ours(home / "small", row, cut)()  # what loads once
    call = ours(home, row, cut)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory()
    made = jax.block_until_ready(call())
    after = memory()
    largest = max(map(bytes_of, cs.hf.metadata(home / "float32").values()))
    return after - before, bytes_of(made), largest


def memory() -> int:
    """The bytes that this process has used at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def read_by_each(home: Path, row: str, cut: str) -> tuple[int, int]:
    """What this process reads in all of a restore, and its share of the files."""
    ours(home / "small", row, cut)()  # what is imported and compiled is read too
    restore = ours(home, row, cut)
    before = _read()
    jax.block_until_ready(restore())
    return _read() - before, bytes_of(cs.hf.metadata(home / "float32")) // jax.process_count()


def _read() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("rchar"))


def in_process(*given: str) -> Any:
    """What a process of its own prints."""
    command = [sys.executable, "-W", "ignore", __file__, *given]
    run = subprocess.run(
        command, env={**os.environ, **MALLOC}, stdout=subprocess.PIPE, text=True, check=True
    )
    lines = run.stdout.splitlines()
    return json.loads(lines[-1]) if lines else None


def every(rows: list[str]) -> Iterator[tuple[str, str]]:
    """Each row that is asked for, with its cuts: Orbax takes a minute for what is cut in blocks, so of these there is one."""
    for row in ROWS:
        for cut in CUTS if row == "family" or row in FEWEST else CUTS[:1]:
            if row in rows:
                yield row, cut


def back_memory() -> None:
    """Touches most of what memory is free, once.

    A virtual machine has a page of its memory from its host only when it first touches it. A file
    that is written takes free pages, and of a copy and a save any one may be given such pages: each
    then takes up to twice as long, in the kernel, which tells nothing of either.
    """
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) for line in lines if line.startswith("MemFree")) * 1024
    np.empty(free * 4 // 5, np.uint8)[:: os.sysconf("SC_PAGE_SIZE")] = 1


def print_times(home: Path, rows: list[str], rounds: int) -> None:
    """Prints the rows of time."""
    back_memory()
    print(f"\n{'time':22}{'ratio':>20}{'bound':>8}{'CPU':>20}{'theirs':>12}")
    for row, cut in every(rows):
        print(timed(home, row, cut, rounds), flush=True)


def print_peaks(home: Path, rows: list[str]) -> None:
    """Prints the rows of memory."""
    print(f"\n{'peak memory':22}{'GB':>8}{'of it beside the result':>26}{'bound':>8}")
    for row, cut in every(rows):
        found, result, largest = in_process("--peak", row, cut, "--folder", str(home))
        beside = (found - result) / largest
        print(f"{row:14}{cut:8}{found / 1e9:8.2f}{beside:19.2f} leaves{2:8}", flush=True)


def print_reads(home: Path, rows: list[str]) -> None:
    """Prints the rows of bytes."""
    import bench_hf  # by its name, by which other processes import it

    print(f"\n{'bytes read':22}{'processes':>10}{'share':>10}{'ratio':>8}{'bound':>8}")
    for n in (2, 4):
        for row, cut in every([row for row in rows if row == "family"]):
            job = functools.partial(bench_hf.read_by_each, home, row, cut)
            found = run_distributed(n, job, devices=8 // n, timeout=600)
            share = found[0][1]
            most = max(read for read, _ in found) / share
            print(f"{row:14}{cut:8}{n:10}{share / 1e6:7.0f} MB{most:8.2f}{1.1:8.2f}", flush=True)


def main() -> None:
    """Prints the rows; with ``--peak``, measures one of memory and prints it as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows", nargs="*", default=[*ROWS])
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="where the model is written meanwhile")
    given = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 8)
    if given.write:
        write(given.folder, given.gigabytes)
        write(given.folder / "small", 0.001)
        return
    if given.peak:
        print(json.dumps(peak(given.folder, *given.peak)))
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        home = Path(place)
        in_process("--write", "--gigabytes", str(given.gigabytes), "--folder", place)
        total = bytes_of(cs.hf.metadata(home / "float32"))
        leaf = max(map(bytes_of, cs.hf.metadata(home / "float32").values()))
        print(
            f"{total / 1e9:.2f} GB in {FILES + 1} files at most, the largest tensor {leaf / 1e9:.2f} GB;"
            f" {given.rounds} ratios each, the median and quartiles"
        )
        print_times(home, given.rows, given.rounds)
        print_peaks(home, given.rows)
        print_reads(home, given.rows)


if __name__ == "__main__":
    sys.exit(main())
