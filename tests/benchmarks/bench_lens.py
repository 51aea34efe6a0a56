"""How long a translation takes, as a ratio to the identity map of the same tree measured in the same process.

Run it with ``python tests/benchmarks/bench_lens.py``; ``--leaves 1000 10000`` for other sizes. A train state of AdamW with
distinct (not repeated) leaves is translated between a Linen layout and an NNX layout that spell every block differently.

Rows:
    get, dict -> dict: plan cached; floor: identity map of the dict that is translated.
    put, dict -> dict: the same, back.
    get, dict -> State: plan cached, into a new ``nnx.State``; floor: identity map of that State.
    put, State -> dict: plan cached; floor: identity map of the State that is translated.
    first get, dict -> State: derive, bind, check and get with nothing cached; floor: identity map of that State.
    infer + first get: the same, with both layouts inferred from trees besides.
    bridge, dict -> State: ``flax.nnx.bridge.linen_vars_to_nnx_attrs`` and ``nnx.State`` on the same weights and moments.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import sys
import timeit
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from flax.nnx import bridge

import ckpt_schema as cs

TX = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
LEAVES_PER_BLOCK = 10
BOUNDS = {
    "get, dict -> dict": 1.0,
    "put, dict -> dict": 1.0,
    "get, dict -> State": 1.0,
    "put, State -> dict": 1.0,
    "first get, dict -> State": 10.0,
}


def linen_state(leaves: int) -> dict[str, Any]:
    """A Linen train state, as Orbax returns it, of about ``leaves`` leaves: a third weights, two thirds moments."""
    blocks = max(1, leaves // 3 // LEAVES_PER_BLOCK)
    params = {f"block_{i}": _block() for i in range(blocks)}
    return {
        "step": jnp.int32(3),
        "params": {"params": params},
        "opt_state": TX.init({"params": params}),
    }


def _block() -> dict[str, Any]:
    return {
        "LayerNorm_0": {"scale": jnp.ones(2), "bias": jnp.zeros(2)},
        "Attention_0": {
            name: {"kernel": jnp.ones((2, 2))} for name in ("query", "key", "value", "out")
        },
        "Dense_0": {"kernel": jnp.ones((2, 4)), "bias": jnp.zeros(4)},
        "Dense_1": {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)},
    }


NAMES = {"LayerNorm_0": "norm", "Attention_0": "attention", "Dense_0": "wi", "Dense_1": "wo"}


def nnx_dict(state: dict[str, Any]) -> dict[str, Any]:
    """The same train state as a pure dict in an NNX layout."""
    weights = _renamed(state["params"]["params"])
    adam = state["opt_state"][1][0]
    moments = {
        "count": adam.count,
        "mu": _renamed(adam.mu["params"]),
        "nu": _renamed(adam.nu["params"]),
    }
    return {"model": weights, "optimizer": {"step": jnp.uint32(3), "opt_state": {1: {0: moments}}}}


def _renamed(tree: dict[str, Any]) -> dict[str, Any]:
    return {
        block: {NAMES[name]: leaf for name, leaf in inner.items()} for block, inner in tree.items()
    }


def nnx_state(pure: dict[str, Any]) -> nnx.State[Any, Any]:
    """That pure dict as a State of Variables."""
    optimizer = {
        "step": nnx.optimizer.OptState(pure["optimizer"]["step"]),
        "opt_state": jax.tree.map(nnx.optimizer.OptVariable, pure["optimizer"]["opt_state"]),
    }
    return nnx.State({"model": jax.tree.map(nnx.Param, pure["model"]), "optimizer": optimizer})


def rules(state: dict[str, Any]) -> list[Any]:
    """What neither tree can say: which block of one layout is which of the other."""
    return [
        cs.rename(f"{block}/{old}", f"{block}/{new}")
        for block in state["params"]["params"]
        for old, new in NAMES.items()
    ]


def declared(state: dict[str, Any]) -> tuple[cs.Layout, cs.Layout, cs.Layout]:
    """The Linen layout, and the NNX one as a dict and as a State, spelled as schema classes would: no rules are needed."""
    linen = cs.infer(state, name="linen")
    renamed = cs.infer(nnx_dict(state), name="nnx dict")
    variables = cs.infer(nnx_state(nnx_dict(state)), name="nnx State")
    paths = {tuple(NAMES.get(part, part) for part in row.path): row for row in linen.rows}
    assert paths.keys() == {row.path for row in renamed.rows}
    return _with_paths(linen, {row.path: path for path, row in paths.items()}), renamed, variables


def _with_paths(layout: cs.Layout, paths: dict[Any, Any]) -> cs.Layout:
    rows = tuple(dataclasses.replace(row, path=paths[row.path]) for row in layout.rows)
    return dataclasses.replace(layout, rows=rows)


def ratio(
    run: Callable[[], Any], floor: Callable[[], Any], repeats: int
) -> tuple[float, float, float]:
    """Best seconds of ``run`` and of ``floor``, taken in turns, and their ratio; ``timeit`` holds off the garbage collector.

    What other processes do to caches and clocks only ever adds time, so the best of several is what compares.
    """
    timers = timeit.Timer(run), timeit.Timer(floor)
    run(), floor()  # what is compiled once is not counted
    number = max(1, round(0.4 / sum(timer.timeit(1) for timer in timers)))
    best = [float("inf"), float("inf")]
    for _ in range(repeats):
        gc.collect()
        best = [
            min(b, timer.timeit(number) / number) for b, timer in zip(best, timers, strict=True)
        ]
    return best[0], best[1], best[0] / best[1]


def identity(tree: Any) -> Callable[[], Any]:
    """The floor: the identity map of ``tree``."""
    return lambda: jax.tree.map(lambda leaf: leaf, tree)


def bench(leaves: int, repeats: int) -> list[tuple[str, float, float, float]]:
    """All rows for one size: name, seconds, seconds of the floor, ratio."""
    source = linen_state(leaves)
    pure = nnx_dict(source)
    linen, as_dict, as_state = declared(source)
    to_dict, to_state = cs.derive(linen, as_dict), cs.derive(linen, as_state)
    state = to_state.get(source)
    adam = source["opt_state"][1][0]
    # The bridge wants each path in one collection only, so weights and moments go in as three modules.
    variables = {
        "params": {
            "w": source["params"]["params"],
            "mu": adam.mu["params"],
            "nu": adam.nu["params"],
        }
    }

    def first() -> Any:
        return cs.derive(linen, as_state).get(source)

    def inferred() -> Any:
        return cs.derive(cs.infer(source), cs.infer(state), rules=rules(source)).get(source)

    def bridged() -> Any:
        return nnx.State(bridge.variables.linen_vars_to_nnx_attrs(variables))

    cases: list[tuple[str, Callable[[], Any], Any]] = [
        ("get, dict -> dict", lambda: to_dict.get(source), source),
        ("put, dict -> dict", lambda: to_dict.put(pure), pure),
        ("get, dict -> State", lambda: to_state.get(source), state),
        ("put, State -> dict", lambda: to_state.put(state), state),
        ("first get, dict -> State", first, state),
        ("bridge, dict -> State", bridged, bridged()),
    ]
    if (
        leaves <= 1000
    ):  # a rule is tried on every row, so thousands of them are quadratic; nobody writes thousands
        cases.append(("infer + first get", inferred, state))
    return [(name, *ratio(run, identity(floor), repeats)) for name, run, floor in cases]


def main(arguments: list[str] | None = None) -> int:
    """Prints a table per size; exits 1 when a bound is missed at 10,000 leaves or more."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--leaves", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args(arguments)
    missed = 0
    print(f"{'leaves':>8}  {'what':<26}{'ms':>10}{'floor ms':>10}{'ratio':>8}{'bound':>8}")
    for leaves in options.leaves:
        for name, seconds, floor, found in bench(leaves, options.repeats):
            bound = BOUNDS.get(name)
            late = bound is not None and leaves >= 10_000 and found > bound
            missed += late
            cells = (
                f"{leaves:>8}  {name:<26}{seconds * 1e3:>10.2f}{floor * 1e3:>10.2f}{found:>8.2f}"
            )
            print(
                cells + ("" if bound is None else f"{bound:>8.1f}") + ("  MISSED" if late else ""),
                flush=True,
            )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
