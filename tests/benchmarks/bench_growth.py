"""Whether costs grow with the leaves and the rules, and no faster.

Run it with ``python tests/benchmarks/bench_growth.py``; ``--leaves 1000 10000`` for other sizes, ``--only`` for some rows,
``--memory`` for the two on memory. Leaves are distinct, not repeated, ten to a block, but where layers are named. Times are
CPU times, medians of interleaved repeats, each as a ratio to the identity map ``jax.tree.map(lambda x: x, tree)`` of the same
tree, and as how many times faster it grew than the leaves did since the column before, which is 1 where the time of a leaf
stays. It exits with 1 where a row grows faster than the leaves do; the bounds on ratios are printed beside.

Rows:
    infer: of a tree of blocks, each with a name of its own.
    infer, numbers: of keys ``k{i}_{i % 7}``, which run in two numbers; a leaf to a node.
    check, good: a tree that conforms.
    check, all wrong: the same tree with every leaf of another dtype, and the text of its report.
    source: the text of a layout that was read off the blocks, executed and verified.
    source, layers: the same where the blocks are layers of one list.
    diff: two trees of blocks, in one of which a leaf in a hundred has another shape.
    diff, layers: two trees of layers, in one of which a leaf of each has another shape.
    lock: the lock file of the blocks.
    derive: two declared layouts, without rules.
    derive, rules: the same with a rule for each hundred leaves, of three kinds.
    derive, globs: the same two layouts, with a glob of ``**`` or of ``*`` in the place of each rule.
    derive, all wrong: no leaf of one side has a name of the other; with the text of the error.
    adapt: two trees; half of the leaves stand in a list of layers on one side, and in a stack on the other.
    adapt, rules: the same with a rule for each hundred leaves, of three kinds.
    adapt, stacks: two trees of many nodes, in each of which one side has a list of layers and the other a stack.
    adapt, all wrong: two trees of which no leaf has a partner; with the text of the error.
    get, numbers: the first ``get`` of a tree of Python numbers.
    rules: 60 of them on 600 leaves, and 588 on 2,500, against the same without.
    ten times the rules: derive and adapt of most leaves, with a rule for each thousand leaves and for each hundred.
    shapes, classes (``--memory``): what the third thousand of them adds to the process.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
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
from ckpt_schema._json.json_text import lock_text

LEAVES = (1_000, 10_000, 100_000)
STEEPEST = 1.6  # times linear: caches miss more often in larger trees
RULED = ((600, 60), (2_500, 588))  # leaves, and how many rules there are
RULES = 3.0  # derive with rules to derive without
BOUNDS = {"infer": 15, "check, good": 15, "source": 40, "diff": 40}  # times the identity map
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


def numbered(leaves: int) -> dict[str, Any]:
    """An abstract tree of keys that run in two numbers."""
    shapes = [jax.ShapeDtypeStruct((n + 1,), "float32") for n in range(11)]
    return {f"k{n}_{n % 7}": {"a": shapes[n % 11]} for n in range(leaves)}


def layers(leaves: int, rows: int = 2) -> dict[str, Any]:
    """An abstract tree of layers, all alike, of one of whose leaves the rows may be more."""
    leaf, other = (jax.ShapeDtypeStruct((n, 3), "float32") for n in (2, rows))
    layer = {**dict.fromkeys(NAMES, leaf), "c": other}
    return {"params": {f"layers_{n}": layer for n in range(leaves // 10)}}


def scattered(leaves: int) -> dict[str, Any]:
    """An abstract tree of blocks, of which one leaf in a hundred has another shape."""
    found = tree(leaves)
    for n in range(0, leaves // 10, 10):
        found[f"block_{n}"]["c"] = jax.ShapeDtypeStruct((3, 3), "float32")
    return found


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


def layered(leaves: int, count: int = 0) -> tuple[Any, Any, list[Any]]:
    """Two trees of so many leaves, half of them in layers, and rules that make them one."""
    third, depth = count // 3, 20
    half = leaves // 20  # of the blocks
    block = dict.fromkeys(NAMES, jax.ShapeDtypeStruct((2, 3), "float32"))
    old = {f"block_{n}": block for n in range(half)}
    new = {f"renamed_{n}" if n < third else f"block_{n}": block for n in range(half)}
    new |= {f"extra_{n}": jax.ShapeDtypeStruct((2,), "float32") for n in range(third)}
    rules = [cs.rename(f"block_{n}", f"renamed_{n}") for n in range(third)]
    rules += [cs.private(f"extra_{n}", 0.0) for n in range(third)]
    rules += [cs.scale(f"renamed_{n}/c", 2) for n in range(third)]
    names = [f"kernel_{n}" for n in range(leaves // 2 // depth)]
    layer = dict.fromkeys(names, jax.ShapeDtypeStruct((5, 7), "float32"))
    old |= {f"layers_{n}": layer for n in range(depth)}
    new["layers"] = dict.fromkeys(names, jax.ShapeDtypeStruct((depth, 5, 7), "float32"))
    return {"params": old}, {"params": new}, rules


def stacked(leaves: int) -> tuple[Any, Any]:
    """Two trees of nodes with four layers of five leaves: lists on one side, stacks on the other."""
    layer = dict.fromkeys(NAMES[:5], jax.ShapeDtypeStruct((5, 7), "float32"))
    listed = {f"layers_{n}": layer for n in range(4)}
    stack = {"layers": dict.fromkeys(NAMES[:5], jax.ShapeDtypeStruct((4, 5, 7), "float32"))}
    nodes = [f"part_{n}_of_many" for n in range(leaves // 20)]
    return {"params": dict.fromkeys(nodes, listed)}, {"params": dict.fromkeys(nodes, stack)}


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
    mixed = numbered(leaves)
    source, view, rules = ruled(leaves, leaves // 100)
    read, listed = cs.infer(good), cs.infer(layers(leaves), lists=["layers_{i}"])
    plain, edited = layered(leaves), layered(leaves, leaves // 100)
    others = tuple({"params": {name: good}} for name in ("old", "new"))
    scalars = cs.layout(schema({f"s_{n}": Float32[Array, ""] for n in range(leaves)}))
    numbers = {f"s_{n}": 1.0 for n in range(leaves)}

    def get() -> Run:
        lens = cs.derive(scalars, scalars)
        return lambda: lens.get(numbers)

    return {
        "infer": lambda: lambda: cs.infer(good),
        "infer, numbers": lambda: lambda: cs.infer(mixed),
        "check, good": lambda: lambda: cs.check(layout, good),
        "check, all wrong": lambda: lambda: str(cs.check(layout, wrong)),
        "source": lambda: lambda: cs.to_source(read),
        "source, layers": lambda: lambda: cs.to_source(listed),
        "diff": lambda: lambda: cs.diff(good, scattered(leaves)),
        "diff, layers": lambda: lambda: cs.diff(layers(leaves), layers(leaves, 3)),
        "lock": lambda: lambda: lock_text(read),
        "derive": lambda: lambda: cs.derive(layout, layout),
        "derive, rules": lambda: lambda: cs.derive(source, view, rules=rules),
        "derive, globs": lambda: lambda: cs.derive(source, view, rules=globbed(rules)),
        "derive, all wrong": lambda: refused(lambda: cs.derive(layout, other)),
        "adapt": lambda: lambda: cs.adapt(*plain[:2]),
        "adapt, rules": lambda: lambda: cs.adapt(*edited[:2], rules=edited[2]),
        "adapt, stacks": lambda: lambda: cs.adapt(*stacked(leaves)),
        "adapt, all wrong": lambda: refused(lambda: cs.adapt(*others)),
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
    found: dict[str, list[tuple[float, float]]] = {}  # seconds, and as a ratio to the identity map
    lengths: list[int] = []
    for name, prepare in rows(100).items():  # what the first run of all imports and compiles
        if not only or name in only:
            prepare()()
    for leaves in sizes:
        good, mixed = tree(leaves), numbered(leaves)
        chosen = {n: run for n, run in rows(leaves).items() if not only or n in only}
        floor = {
            "identity": lambda good=good: lambda: jax.tree.map(lambda x: x, good),
            "of numbers": lambda mixed=mixed: lambda: jax.tree.map(lambda x: x, mixed),
        }
        times = medians({**floor, **chosen}, repeats)
        floors = {name: times.pop(name) for name in floor}
        for name, seconds in times.items():
            own = floors["of numbers" if name == "infer, numbers" else "identity"]
            found.setdefault(name, []).append((seconds, seconds / own))
        wrong, layout = tree(leaves, "int8"), blocks(leaves)
        text = refused(lambda layout=layout, wrong=wrong: cs.assert_conforms(layout, wrong))()
        lengths.append(str(text).count("\n") + 1)
    print(f"{'':20}" + "".join(f"{leaves:>23,} leaves" for leaves in sizes))
    steep: list[str] = []
    for name, times in found.items():
        cells: list[str] = []
        for at, (seconds, ratio) in enumerate(times):
            cell = f"{1000 * seconds:,.1f} ms {ratio:6.1f} x"
            steps = seconds / times[at - 1][0] / (sizes[at] / sizes[at - 1]) if at else 1.0
            cells.append(f"{cell}{f' {steps:5.2f}' if at else '':6}")
            if steps > STEEPEST:
                steep.append(f"{name}: {steps:.2f} times linear at {sizes[at]:,} leaves")
        bound = f"  bound {BOUNDS[name]} x" if name in BOUNDS else ""
        print(f"{name:20}" + "".join(f"{cell:>30}" for cell in cells) + bound, flush=True)
    print(f"{'rules':20}" + "".join(f"{leaves // 100:>30,}" for leaves in sizes))
    print(f"{'lines of the error':20}" + "".join(f"{lines:>30}" for lines in lengths))
    if max(lengths) > LINES:
        steep.append(f"an error of {max(lengths)} lines")
    return steep


def with_rules(repeats: int) -> list[str]:
    """Prints what rules cost beside none, and returns those that cost too much."""
    dear: list[str] = []
    for leaves, count in RULED:
        source, view, rules = ruled(leaves, count)
        one, other = blocks(leaves), blocks(leaves)  # two layouts, as those with rules are
        runs: dict[str, Callable[[], Run]] = {
            "without": lambda one=one, other=other: lambda: cs.derive(one, other),
            "with": lambda a=source, b=view, rules=rules: lambda: cs.derive(a, b, rules=rules),
        }
        times = medians(runs, max(repeats, 9))
        ratio = times["with"] / times["without"]
        what = f"{count} rules on {leaves:,} leaves"
        print(f"{what}: {ratio:.2f} times derive without rules (bound {RULES})")
        if ratio > RULES:
            dear.append(f"{what} cost {ratio:.2f}")
    return dear


def tenfold(leaves: int, repeats: int) -> list[str]:
    """Prints how derive and adapt grow with ten times the rules, and returns what grows more than tenfold."""
    few, many = leaves // 1000, leaves // 100
    declared = {count: ruled(leaves, count) for count in (few, many)}
    read = {count: layered(leaves, count) for count in (few, many)}
    steep: list[str] = []
    for name, of in (("derive", declared), ("adapt", read)):
        make: Callable[..., Any] = getattr(cs, name)
        runs: dict[str, Callable[[], Run]] = {}
        for count, (source, view, rules) in of.items():
            run = functools.partial(make, source, view, rules=rules)
            runs[str(count)] = lambda run=run: run
        times = medians(runs, repeats)
        ratio = times[str(many)] / times[str(few)]
        print(f"{name} of {leaves:,} leaves, {few:,} rules to {many:,}: {ratio:.2f} times as long")
        if ratio > 10:
            steep.append(f"{name}: {ratio:.2f} times as long with ten times the rules")
    return steep


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
        steep += tenfold(max(options.leaves), options.repeats)
    for line in steep:
        print(f"too fast: {line}")
    sys.exit(bool(steep))


if __name__ == "__main__":
    main()
