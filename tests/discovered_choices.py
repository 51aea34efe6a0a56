"""Discovery of twins that are one function in several ways: each way is a choice, which is the user's.

`python tests/discovered_choices.py` discovers each symmetry and each gauge of `CASES`, in as many
twins as `--seeds` says, and prints a row for each. Right is what is reported as open, and each of the
choices that are listed is held: the lens that it gives carries random values to equal outputs. Where a
choice is missing, or one that is listed is none, the exit status is 1. `--kept FILE` remembers outcomes.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import drawn_models as m
from discovered import DISCOVERY, TESTS, gives_lens
from support.kept import Kept

import ckpt_schema as cs
from ckpt_schema.discovery import Discovery, Open, discover

MODULES = ("drawn_models.py", "discovered_choices.py")
SOURCES = (DISCOVERY, *(TESTS / name for name in MODULES))
X = jnp.asarray(np.random.default_rng(3).normal(size=(2, 5, 4)))
"""What all of these are given: batch by time by width."""

Run = Callable[[Any], Any]

KINDS = {
    "choice": "which leaf is which, where several ways are one",
    "gauge": "where a factor stands",
    "inert": "leaves that no value changes the outputs by",
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A function that is its own twin in several ways.

    Attributes:
        kind: One of `KINDS`.
        shapes: Of its leaves.
        run: The function of them.
        twin: What the twin computes of its leaves, where that is something else.
        ways: How many ways there are; for what is inert, how many leaves.
    """

    kind: str
    shapes: m.Shapes
    run: Run
    ways: int
    twin: Run | None = None


# --- Choices  ---


def _branches(act: str, count: int, *, biased: bool = False, joined: str = "sum") -> Case:
    """Equal branches, added up or multiplied."""
    shapes: m.Shapes = {f"w{at}": (4, 6) for at in range(count)}
    if biased:
        shapes |= {f"b{at}": (6,) for at in range(count)}

    def run(p: Any) -> Any:
        each = [X @ p[f"w{at}"] + (p[f"b{at}"] if biased else 0) for at in range(count)]
        whole = m.ACTS[act](each[0])
        for one in each[1:]:
            whole = whole + m.ACTS[act](one) if joined == "sum" else whole * m.ACTS[act](one)
        return whole

    return Case("choice", shapes, run, 2 if count == 2 else 6)


def _layers(act: str) -> Case:
    """Two equal layers beside a residual, each of two kernels."""
    shapes: m.Shapes = {"up0": (4, 7), "down0": (7, 4), "up1": (4, 7), "down1": (7, 4)}

    def run(p: Any) -> Any:
        each = [m.ACTS[act](X @ p[f"up{at}"]) @ p[f"down{at}"] for at in (0, 1)]
        return jnp.tanh(X + each[0] + each[1])

    return Case("choice", shapes, run, 2)


def _heads(causal: bool, count: int = 2) -> Case:
    """Heads whose leaves are apart: each head is as good as another."""
    shapes: m.Shapes = {}
    for at in range(count):
        shapes |= {f"q{at}": (4, 3), f"k{at}": (4, 3), f"v{at}": (4, 5), f"o{at}": (5, 4)}

    def run(p: Any) -> Any:
        total = X
        for at in range(count):
            total = total + _attended(p, str(at), causal)
        return jnp.tanh(total)

    return Case("choice", shapes, run, 2)


def _attended(p: Any, at: str = "", causal: bool = False, factor: float = 1.0) -> Any:
    """One head of attention."""
    q, k, v = (X @ p[f"{name}{at}"] for name in "qkv")
    seen = jnp.tril(jnp.ones((5, 5), bool)) if causal else jnp.ones((5, 5), bool)
    k = k + p[f"kb{at}"] if f"kb{at}" in p else k
    scores = jnp.where(seen, factor * q @ k.swapaxes(-1, -2), -1e9)
    return jax.nn.softmax(scores, -1) @ v @ p[f"o{at}"]


def _experts(act: str) -> Case:
    """Experts, each with its own column of the router."""
    shapes: m.Shapes = {}
    for at in (0, 1):
        shapes |= {f"up{at}": (4, 6), f"down{at}": (6, 5), f"router{at}": (4,)}

    def run(p: Any) -> Any:
        shares = jax.nn.softmax(jnp.stack([X @ p[f"router{at}"] for at in (0, 1)], -1), -1)
        each = [m.ACTS[act](X @ p[f"up{at}"]) @ p[f"down{at}"] for at in (0, 1)]
        return each[0] * shares[..., :1] + each[1] * shares[..., 1:]

    return Case("choice", shapes, run, 2)


def _added(what: str) -> Case:
    """Two leaves of which only the sum, or the product, is used."""
    w: m.Shapes = {"w": (4, 6)}
    if what == "biases":
        return Case(
            "choice",
            w | {"b0": (6,), "b1": (6,)},
            lambda p: jnp.tanh(X @ p["w"] + p["b0"] + p["b1"]),
            2,
        )
    if what == "scales":
        return Case(
            "choice",
            w | {"s0": (6,), "s1": (6,)},
            lambda p: jnp.tanh(X @ p["w"] * p["s0"] * p["s1"]),
            2,
        )
    if what == "tables":
        return Case(
            "choice",
            w | {"t0": (7, 4), "t1": (7, 4)},
            lambda p: jnp.tanh((p["t0"] + p["t1"])[jnp.arange(7)] @ p["w"]),
            2,
        )
    return Case(
        "choice",
        {"w0": (4, 6), "w1": (4, 6)},
        lambda p: jnp.tanh(X @ p["w0"] + X @ p["w1"]),
        2,
    )


def _convolutions(act: str) -> Case:
    """Two equal convolutions beside each other."""

    def run(p: Any) -> Any:
        total = 0.0
        for at in (0, 1):
            taps = [X[:, tap : tap + 3] @ p[f"c{at}"][tap] for tap in range(3)]
            total = total + m.ACTS[act](taps[0] + taps[1] + taps[2])
        return total

    return Case("choice", {"c0": (3, 4, 6), "c1": (3, 4, 6)}, run, 2)


# --- Gauges  ---


def _times(run: Callable[[Any, float], Any], factor: float, shapes: m.Shapes, ways: int) -> Case:
    return Case("gauge", shapes, lambda p: run(p, 1.0), ways, lambda p: run(p, factor))


_HEAD: m.Shapes = {"q": (4, 3), "k": (4, 3), "v": (4, 5), "o": (5, 4)}
_PAIR: m.Shapes = {"w1": (4, 7), "w2": (7, 5)}


def _query(factor: float, causal: bool = False) -> Case:
    """A factor of scores: in the query, or in the key."""
    return _times(lambda p, by: X + _attended(p, "", causal, by), factor, _HEAD, 2)


def _value(factor: float) -> Case:
    """A factor of what attention adds: in the value, or in what is behind it."""
    return _times(lambda p, by: jnp.tanh(X + by * _attended(p)), factor, _HEAD, 2)


def _pair(act: str, factor: float) -> Case:
    """A factor between two kernels with nothing between that bends."""
    return _times(lambda p, by: jnp.tanh(m.ACTS[act](by * X @ p["w1"]) @ p["w2"]), factor, _PAIR, 2)


def _gate(factor: float) -> Case:
    """A factor of a gated layer: in what is multiplied, or in what is behind it."""
    shapes: m.Shapes = {"gate": (4, 7), "up": (4, 7), "down": (7, 4)}
    return _times(
        lambda p, by: jnp.tanh(X + (jax.nn.silu(X @ p["gate"]) * (by * X @ p["up"])) @ p["down"]),
        factor,
        shapes,
        2,
    )


def _norm(factor: float, *, centered: bool = False) -> Case:
    """A factor between the scale of a norm and the kernel behind it."""
    norm = m.Norm(4, centered=centered, biased=False)
    return _times(
        lambda p, by: jnp.tanh(by * norm({"scale": p["scale"]}, X) @ p["w"]),
        factor,
        {"scale": (4,), "w": (4, 6)},
        2,
    )


def _table(factor: float) -> Case:
    """A factor between a table and the kernel behind it."""
    return _times(
        lambda p, by: jnp.tanh(by * p["table"][jnp.arange(7)] @ p["w"]),
        factor,
        {"table": (7, 4), "w": (4, 6)},
        2,
    )


def _sign() -> Case:
    """The signs of units of an odd activation."""
    return _times(lambda p, by: jnp.tanh(jnp.tanh(by * X @ p["w1"]) @ p["w2"]), -1.0, _PAIR, 2)


# --- What no value changes the outputs by  ---


def _key_biases(count: int, causal: bool = False) -> Case:
    """Biases of keys: softmax takes off what all keys have alike."""
    shapes: m.Shapes = {}
    for at in range(count):
        shapes |= {f"{name}{at}": shape for name, shape in _HEAD.items()}
        shapes[f"kb{at}"] = (3,)

    def run(p: Any) -> Any:
        total = X
        for at in range(count):
            total = total + (at + 1) * _attended(p, str(at), causal)
        return total

    return Case("inert", shapes, run, count)


def _unused(count: int) -> Case:
    """Leaves that nothing reads."""
    shapes = _PAIR | {f"n{at}": (9, 3) for at in range(count)}
    return Case("inert", shapes, lambda p: jnp.tanh(X @ p["w1"]) @ p["w2"], count)


def _shift() -> Case:
    """One number that is added to all logits before a softmax."""
    return Case(
        "inert",
        {"w": (4, 6), "shift": (1,)},
        lambda p: jax.nn.softmax(X @ p["w"] + p["shift"], -1),
        1,
    )


CASES: dict[str, Callable[[], Case]] = {}


def _listed() -> Iterator[tuple[str, Callable[[], Case]]]:
    for act in ("tanh", "gelu", "silu", "relu"):
        yield f"two {act} branches", lambda act=act: _branches(act, 2)
        yield f"two {act} branches with biases", lambda act=act: _branches(act, 2, biased=True)
    yield "two branches multiplied", lambda: _branches("tanh", 2, joined="product")
    yield "two kernels multiplied", lambda: _branches("none", 2, joined="product")
    yield "three branches", lambda: _branches("gelu", 3)
    yield "three branches with biases", lambda: _branches("tanh", 3, biased=True)
    for act in ("gelu", "relu", "tanh"):
        yield f"two layers of {act}", lambda act=act: _layers(act)
    for causal in (False, True):
        word = ", causal" if causal else ""
        yield f"two heads{word}", lambda causal=causal: _heads(causal)
    for act in ("gelu", "silu"):
        yield f"experts with their gates, {act}", lambda act=act: _experts(act)
        yield f"two convolutions, {act}", lambda act=act: _convolutions(act)
    for what in ("biases", "scales", "tables", "kernels"):
        yield f"two {what} together", lambda what=what: _added(what)
    for factor in (2.0, 0.5, -1.0):
        yield f"scores times {factor}", lambda factor=factor: _query(factor)
        yield f"values times {factor}", lambda factor=factor: _value(factor)
        yield f"a linear pair times {factor}", lambda factor=factor: _pair("none", factor)
        yield f"a gated layer times {factor}", lambda factor=factor: _gate(factor)
        yield f"a norm times {factor}", lambda factor=factor: _norm(factor)
        yield f"a table times {factor}", lambda factor=factor: _table(factor)
    for factor in (2.0, 0.5):
        yield f"a relu pair times {factor}", lambda factor=factor: _pair("relu", factor)
        yield f"a centered norm times {factor}", lambda f=factor: _norm(f, centered=True)
    yield "causal scores times 2.0", lambda: _query(2.0, causal=True)
    yield "signs of tanh units", _sign
    for count in (1, 2, 3):
        yield f"{count} key biases", lambda count=count: _key_biases(count)
    yield "2 key biases, causal", lambda: _key_biases(2, causal=True)
    yield "a leaf that nothing reads", lambda: _unused(1)
    yield "two leaves that nothing reads", lambda: _unused(2)
    yield "a shift before a softmax", _shift


CASES |= dict(_listed())


# --- What is said, and whether it holds  ---


@dataclasses.dataclass(frozen=True)
class Twins:
    """A case and its twin, whose leaves have other names and are turned."""

    runs: tuple[Run, Run]
    values: tuple[m.Leaves, m.Leaves]


def twins_of(case: Case, seed: int) -> Twins:
    """The case, and a twin whose names say nothing."""
    random = np.random.default_rng([5, seed])
    names = list(case.shapes)
    words = {name: "".join(random.choice(list("bcdfghkmnpq"), 6)) for name in names}
    turned = {name for name in names if len(case.shapes[name]) == 2 and random.random() < 0.5}
    values = {name: m.moderate(case.shapes[name], seed, at) for at, name in enumerate(names)}
    view = {
        words[name]: values[name].T if name in turned else values[name]
        for name in random.permutation(names)
    }
    twin = case.twin or case.run

    def view_run(p: Any) -> Any:
        return twin({n: p[words[n]].T if n in turned else p[words[n]] for n in names})

    return Twins((case.run, view_run), (values, view))


def ways_said(found: Discovery, twins: Twins) -> Iterator[Sequence[Any]]:
    """For each choice that is listed, the rules that take it; of other choices the first is taken."""
    opened = [each.options or tuple(_inert_ways(each, twins)) for each in found.open]
    for at, options in enumerate(opened):
        for option in options:
            taken = [
                option if other == at else each[0] for other, each in enumerate(opened) if each
            ]
            yield list(itertools.chain.from_iterable(taken))


def _inert_ways(each: Open, twins: Twins) -> Iterator[tuple[Any, ...]]:
    """Leaves that no value changes the outputs by may be any of their candidates, and turned."""
    shapes = [{name: x.shape for name, x in side.items()} for side in twins.values]
    for order in itertools.permutations(each.sources):
        rules: list[Any] = []
        for source, view in zip(order, each.views, strict=True):
            is_turned = shapes[0][source] != shapes[1][view]
            rules.append(cs.rename(source, view, axes="1 0" if is_turned else None))
        yield tuple(rules)


def attempt(name: str, seed: int, budget: int) -> dict[str, Any]:
    """Discovers one twin; what is said, and whether each choice holds."""
    case = CASES[name]()
    twins = twins_of(case, seed)
    start = time.process_time()
    runs, values = twins.runs, twins.values
    found = discover(runs[0], values[0], runs[1], values[1], seed=seed, budget=budget)
    faults: list[str] = []
    if found.status != "complete but for choices":
        faults.append(f"{found.status}: {'; '.join(map(str, found.rules))}")
    if gives_lens(found):
        faults.append("a lens is given, and no choice was made")
    held = 0
    for rules in ways_said(found, twins):
        gap = _gap(twins, found, rules)
        if gap == "":
            held += 1
        else:
            faults.append(f"{gap} with {rules}")
    if case.kind == "inert":
        count = sum(len(each.views) for each in found.open)
    else:
        count = max((len(each.options) for each in found.open), default=0)
    if count < case.ways:
        faults.append(f"{count} ways are listed, and there are {case.ways}")
    seconds = time.process_time() - start
    return {"kind": case.kind, "held": held, "faults": faults, "seconds": seconds}


def _gap(twins: Twins, found: Discovery, rules: Sequence[Any]) -> str:
    """What is wrong with the lens that a choice gives; nothing where the outputs are equal."""
    with jax.enable_x64(True):
        values = {name: jnp.asarray(x, np.float64) for name, x in twins.values[0].items()}
        try:
            made = found.lens(rules=rules).get(values)
        except cs.CkptSchemaError as error:
            return f"no lens ({' '.join(str(error).split())[:150]})"
        one, other = np.asarray(twins.runs[0](values)), np.asarray(twins.runs[1](made))
    gap = float(np.linalg.norm(one - other) / np.linalg.norm(one))
    return "" if gap < 1e-6 else f"outputs differ by {gap:.1e}"


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="a word of the names of those to try")
    parser.add_argument("--seeds", type=int, default=1, help="how many twins of each")
    parser.add_argument("--budget", type=int, default=3000, help="readings of each to try")
    parser.add_argument("--kept", type=Path, help="a file of outcomes: these are not tried again")
    given = parser.parse_args()
    jax.config.update("jax_disable_most_optimizations", True)  # compiling is what takes long
    kept = Kept(given.kept, SOURCES)
    rows: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for name in CASES:
        if given.only not in name:
            continue
        for seed in range(given.seeds):
            settings = name, seed, given.budget
            outcome = kept.outcome(repr(settings), lambda each=settings: attempt(*each))
            rows[outcome["kind"]].append(outcome)
            if outcome["faults"]:
                print(f"{name}, seed {seed}: {'; '.join(outcome['faults'])[:300]}", flush=True)
    print(f"{'':46}{'twins':>6}{'right':>7}{'choices held':>14}")
    everything = [outcome for own in rows.values() for outcome in own]
    for kind, own in rows.items():
        print(_row(KINDS[kind], own))
    print(_row("all", everything))
    return int(any(outcome["faults"] for outcome in everything))


def _row(words: str, outcomes: list[dict[str, Any]]) -> str:
    right = sum(not outcome["faults"] for outcome in outcomes)
    held = sum(outcome["held"] for outcome in outcomes)
    return f"{words:46}{len(outcomes):6}{right:7}{held:14}"


if __name__ == "__main__":
    sys.exit(main())
