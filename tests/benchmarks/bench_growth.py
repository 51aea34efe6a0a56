"""Whether costs grow with the leaves and the rules, and no faster.

Run it with ``python tests/benchmarks/bench_growth.py``; ``--leaves 1000 10000`` for other sizes, ``--memory`` for the
two rows on memory. Leaves are distinct, not repeated, ten to a block. Times are CPU times, medians of interleaved repeats,
each as a ratio to the identity map ``jax.tree.map(lambda x: x, tree)`` of the same tree, and as how many times faster it
grew than the leaves did since the column before. It exits with 1 where a row grows faster than the leaves do.

Rows:
    infer: of keys ``k{i}_{i % 7}``, which run in two numbers.
    check, good: a tree that conforms.
    check, all wrong: the same tree with every leaf of another dtype, and the text of its report.
    derive: two declared layouts, without rules.
    derive, rules: the same with a rule for each hundred leaves, of three kinds.
    derive, globs: the same two layouts, with a glob of ``**`` or of ``*`` in the place of each rule.
    derive, all wrong: no leaf of one side has a name of the other; with the text of the error.
    get, numbers: the first ``get`` of a tree of Python numbers.
    rules: 588 of them on 2,500 leaves, against the same without; bound 2.
    shapes, classes (``--memory``): what the third thousand of them adds to the process.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float32

import ckpt_schema as cs

LEAVES = (1_000, 10_000, 100_000)
STEEPEST = 1.6  # times linear: caches miss more often in larger trees
RULES = 2.0  # derive with rules to derive without
GREATEST = 0.05  # growth of the process from the second thousand to the third
LINES = 40  # of an error, whatever its number of faults
NAMES = "abcdefghij"

Run = Callable[[], object]


class Block(cs.Schema):
    """Ten leaves."""

    a: Float32[Array, "n m"]
    b: Float32[Array, "n m"]
    c: Float32[Array, "n m"]
    d: Float32[Array, "n m"]
    e: Float32[Array, "n m"]
    f: Float32[Array, "n m"]
    g: Float32[Array, "n m"]
    h: Float32[Array, "n m"]
    i: Float32[Array, "n m"]
    j: Float32[Array, "n m"]


def schema(attributes: Mapping[str, Any]) -> type[cs.Schema]:
    """A schema of these attributes."""
    return type("Declared", (cs.Schema,), {"__annotations__": dict(attributes)})


def blocks(leaves: int, name: str = "block") -> cs.Layout:
    """A declared layout of so many leaves."""
    return cs.layout(schema({f"{name}_{n}": Block for n in range(leaves // 10)}))


def tree(leaves: int, dtype: str = "float32") -> dict[str, Any]:
    """An abstract tree of that layout."""
    leaf = jax.ShapeDtypeStruct((2, 3), dtype)
    return {f"block_{n}": dict.fromkeys(NAMES, leaf) for n in range(leaves // 10)}


def ruled(leaves: int, count: int) -> tuple[cs.Layout, cs.Layout, list[Any]]:
    """Two layouts of so many leaves, and rules that make them one: a third each of renames, private leaves and scales."""
    third = count // 3
    old = {f"block_{n}": Block for n in range(leaves // 10)}
    new = {f"renamed_{n}" if n < third else f"block_{n}": Block for n in range(leaves // 10)}
    new |= {f"extra_{n}": Float32[Array, " n"] for n in range(third)}
    rules = [cs.rename(f"block_{n}", f"renamed_{n}") for n in range(third)]
    rules += [cs.private(f"extra_{n}", 0.0) for n in range(third)]
    rules += [cs.scale(f"renamed_{n}/c", 2) for n in range(third)]
    return cs.layout(schema(old)), cs.layout(schema(new)), rules


def globbed(rules: Sequence[Any]) -> list[Any]:
    """The same rules as globs that mean the same nodes."""
    found: list[Any] = []
    for rule in rules:
        if isinstance(rule, type(cs.rename("a", "b"))):
            found.append(cs.rename(*(f"**/{path[0]}" for path in (rule.source, rule.view))))
        else:
            path = (*rule.path[:-1], f"*{rule.path[-1]}")
            found.append(dataclasses.replace(rule, path=path))
    return found


def refused(run: Run) -> Run:
    """What ends in an error, with its text."""

    def attempt() -> str:
        try:
            run()
        except cs.CkptSchemaError as error:
            return str(error)
        raise AssertionError("it was to be refused")

    return attempt


def rows(leaves: int) -> dict[str, Callable[[], Run]]:
    """What is measured, by name: each prepares what it needs anew, and returns what is timed."""
    layout, other, good = blocks(leaves), blocks(leaves, "other"), tree(leaves)
    wrong = tree(leaves, "int8")
    mixed = {
        f"k{n}_{n % 7}": {"a": jax.ShapeDtypeStruct((n % 11 + 1,), "float32")}
        for n in range(leaves)
    }
    source, view, rules = ruled(leaves, leaves // 100)
    scalars = cs.layout(schema({f"s_{n}": Float32[Array, ""] for n in range(leaves)}))
    numbers = {f"s_{n}": 1.0 for n in range(leaves)}

    def get() -> Run:
        lens = cs.derive(scalars, scalars)
        return lambda: lens.get(numbers)

    return {
        "infer": lambda: lambda: cs.infer(mixed),
        "check, good": lambda: lambda: cs.check(layout, good),
        "check, all wrong": lambda: lambda: str(cs.check(layout, wrong)),
        "derive": lambda: lambda: cs.derive(layout, layout),
        "derive, rules": lambda: lambda: cs.derive(source, view, rules=rules),
        "derive, globs": lambda: lambda: cs.derive(source, view, rules=globbed(rules)),
        "derive, all wrong": lambda: refused(lambda: cs.derive(layout, other)),
        "get, numbers": get,
    }


def cpu(run: Run) -> float:
    """CPU seconds of one call."""
    gc.collect()
    gc.disable()
    try:
        start = time.process_time()
        run()
        return time.process_time() - start
    finally:
        gc.enable()


def medians(runs: Mapping[str, Callable[[], Run]], repeats: int) -> dict[str, float]:
    """The median CPU time of each, measured in turn."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, prepare in runs.items():
            times[name].append(cpu(prepare()))
    return {name: statistics.median(each) for name, each in times.items()}


def growth(sizes: Sequence[int], repeats: int, only: Sequence[str]) -> list[str]:
    """Prints the table, and returns the rows that grow too fast."""
    found: dict[str, list[float]] = {}
    floors: list[float] = []
    lengths: list[int] = []
    for leaves in sizes:
        good = tree(leaves)
        chosen = {n: run for n, run in rows(leaves).items() if not only or n in only}
        floor = {"identity": lambda good=good: lambda: jax.tree.map(lambda x: x, good)}
        times = medians({**floor, **chosen}, repeats)
        floors.append(times.pop("identity"))
        for name, seconds in times.items():
            found.setdefault(name, []).append(seconds)
        wrong, layout = tree(leaves, "int8"), blocks(leaves)
        text = refused(lambda layout=layout, wrong=wrong: cs.assert_conforms(layout, wrong))()
        lengths.append(str(text).count("\n") + 1)
    print(f"{'':20}" + "".join(f"{leaves:>23,} leaves" for leaves in sizes))
    steep: list[str] = []
    for name, times in found.items():
        cells: list[str] = []
        for at, seconds in enumerate(times):
            ratio = f"{1000 * seconds:,.1f} ms {seconds / floors[at]:6.1f} x"
            steps = seconds / times[at - 1] / (sizes[at] / sizes[at - 1]) if at else 1.0
            cells.append(f"{ratio}{f' {steps:5.2f}' if at else '':6}")
            if steps > STEEPEST:
                steep.append(f"{name}: {steps:.2f} times linear at {sizes[at]:,} leaves")
        print(f"{name:20}" + "".join(f"{cell:>30}" for cell in cells), flush=True)
    print(f"{'rules':20}" + "".join(f"{leaves // 100:>30,}" for leaves in sizes))
    print(f"{'lines of the error':20}" + "".join(f"{lines:>30}" for lines in lengths))
    if max(lengths) > LINES:
        steep.append(f"an error of {max(lengths)} lines")
    return steep


def with_rules(repeats: int) -> list[str]:
    """Prints what 588 rules cost on 2,500 leaves, and returns it if that is too much."""
    source, view, rules = ruled(2_500, 588)
    one, other = blocks(2_500), blocks(2_500)  # two layouts, as those with rules are
    runs: dict[str, Callable[[], Run]] = {
        "without": lambda: lambda: cs.derive(one, other),
        "with": lambda: lambda: cs.derive(source, view, rules=rules),
    }
    times = medians(runs, max(repeats, 9))
    ratio = times["with"] / times["without"]
    print(f"588 rules on 2,500 leaves: {ratio:.2f} times derive without rules (bound {RULES})")
    return [f"588 rules cost {ratio:.2f}"] if ratio > RULES else []


# --- memory  ---


def resident() -> int:
    """Bytes that the process holds."""
    gc.collect()
    with open("/proc/self/statm") as file:  # noqa: PTH123  not a file of anybody's
        return int(file.read().split()[1]) * 4096


class Layer(cs.Schema):
    """One layer."""

    w: Float32[Array, "a b"]


class Listed(cs.Schema):
    """Layers as a list."""

    layers: list[Layer] = cs.field(length="depth")


class Stacked(cs.Schema):
    """Layers as a stack."""

    layers: Layer = cs.field(scan="depth", axis=0)


def thousands(one: Callable[[int], object], count: int) -> list[int]:
    """What the process holds after each of three times ``count`` calls."""
    sizes: list[int] = []
    for n in range(3 * count):
        one(n)
        if (n + 1) % count == 0:
            sizes.append(resident())
    return sizes


def shapes(count: int) -> list[int]:
    """The process, while ever more shapes go through one lens and back."""
    lens = cs.derive(Listed, Stacked)

    def one(n: int) -> None:
        layer = jax.device_put(np.zeros((1 + n % 60, 1 + n // 60), "float32"))
        lens.put(lens.get({"layers": {0: {"w": layer}, 1: {"w": layer}}}))

    return thousands(one, count)


def classes(count: int) -> list[int]:
    """The process, while ever more schema classes are declared, used and forgotten."""

    def one(_: int) -> None:
        made = schema({f"block_{k}": Block for k in range(3)})
        leaf = jax.ShapeDtypeStruct((2, 3), "float32")
        given = {f"block_{k}": dict.fromkeys(NAMES, leaf) for k in range(3)}
        cs.derive(made, made)
        cs.check(made, given)

    return thousands(one, count)


MEMORY = {"shapes": shapes, "classes": classes}


def memory(count: int) -> list[str]:
    """Prints how the process grows, each row in a process of its own, and returns the rows that grow too much."""
    steep: list[str] = []
    for name in MEMORY:
        command = [sys.executable, __file__, "--row", name, "--count", str(count)]
        run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        sizes: list[int] = json.loads(run.stdout.splitlines()[-1])
        last = sizes[2] / sizes[1] - 1
        shown = ", ".join(f"{size / 1e6:,.0f} MB" for size in sizes)
        print(
            f"{name}: {shown} after each {count:,}; the third adds {100 * last:.1f} %", flush=True
        )
        if last > GREATEST:
            steep.append(f"{name}: the third {count:,} add {100 * last:.1f} %")
    return steep


def main() -> None:
    """Measures, prints, and exits with 1 where something grows too fast."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--leaves", type=int, nargs="+", default=LEAVES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=(), help="rows")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--count", type=int, default=1000, help="shapes, or classes")
    parser.add_argument("--row", choices=MEMORY, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        print(json.dumps(MEMORY[options.row](options.count)))
        return
    if options.memory:
        steep = memory(options.count)
    else:
        steep = growth(options.leaves, options.repeats, options.only)
        steep += with_rules(options.repeats)
    for line in steep:
        print(f"too fast: {line}")
    sys.exit(bool(steep))


if __name__ == "__main__":
    main()
