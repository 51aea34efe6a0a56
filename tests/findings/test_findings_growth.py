"""What grows with leaves, rules, shapes and classes does so linearly, or not at all."""

from __future__ import annotations

import functools
import gc
import sys
import weakref
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from jaxtyping import Array, Float32

import ckpt_schema as cs
from ckpt_schema._trees import jitted

SIZES = 150, 600  # more than are compared with one another where a hint is looked for


def calls(run: Callable[[], object]) -> int:
    """How many functions a run calls, those written in C included: a cost that no clock is needed for."""
    count = 0

    def seen(*_: object) -> None:
        nonlocal count
        count += 1

    sys.setprofile(seen)
    try:
        run()
    except cs.CkptSchemaError:
        pass
    finally:
        sys.setprofile(None)
    return count


def declared(leaves: int, name: str = "w") -> cs.Layout:
    """A layout of so many distinct leaves, and one that every layout has."""
    attributes: dict[str, Any] = {f"{name}_{n}": Float32[Array, " m"] for n in range(leaves)}
    return cs.layout(
        type(
            "Declared",
            (cs.Schema,),
            {"__annotations__": {"shared": Float32[Array, ""], **attributes}},
        )
    )


def renamed(n: int) -> None:
    cs.derive(
        declared(n), declared(n, "v"), rules=[cs.rename(f"w_{k}", f"v_{k}") for k in range(n)]
    )


def private(n: int) -> None:
    cs.derive(declared(0), declared(n), rules=[cs.private(f"w_{k}", 0.0) for k in range(n)])


def parted(n: int) -> None:
    cs.derive(declared(n), declared(n), rules=[cs.apart(f"w_{k}", 0.0) for k in range(n)])


def scaled(n: int) -> None:
    cs.derive(declared(n), declared(n), rules=[cs.scale(f"w_{k}", 2) for k in range(n)])


def tied(n: int) -> None:
    table = declared(2 * n)
    cs.derive(declared(n), table, rules=[cs.tie(f"w_{n + k}", f"w_{k}") for k in range(n)])


def nameless(n: int) -> None:
    cs.derive(declared(n), declared(n), rules=[cs.rename(f"x_{k}", f"y_{k}") for k in range(n)])


def contested(n: int) -> None:
    cs.derive(declared(n), declared(n), rules=[cs.private(f"w_{k}", 0.0) for k in range(n)])


def idle(n: int) -> None:
    cs.derive(declared(n), declared(n), rules=[cs.flip(f"w_{k}", "other") for k in range(n)])


def ordered(n: int) -> None:
    rules = [cs.rename(f"w_{k}", f"v_{k}", axes="0") for k in range(n)]
    cs.derive(declared(n), declared(n, "v"), rules=rules)


RULED = [renamed, private, parted, scaled, tied, nameless, contested, idle, ordered]


@pytest.mark.parametrize("run", RULED)
def test_5_the_cost_of_rules_is_linear(run: Callable[[int], None]) -> None:
    calls(lambda: run(3))
    small, large = (calls(lambda n=n: run(n)) for n in SIZES)
    assert large / small < 1.25 * SIZES[1] / SIZES[0]


def test_5_rules_cost_little_beside_the_leaves() -> None:
    """588 rules on 2,500 leaves: what a clock says of them is in the benchmark."""
    names = "abcdefghij"
    block = type(
        "Block", (cs.Schema,), {"__annotations__": dict.fromkeys(names, Float32[Array, "n m"])}
    )

    def blocks(named: dict[str, Any]) -> cs.Layout:
        return cs.layout(type("Blocks", (cs.Schema,), {"__annotations__": named}))

    plain = blocks({f"block_{n}": block for n in range(250)})
    news = {f"renamed_{n}" if n < 196 else f"block_{n}": block for n in range(250)}
    extra = {f"extra_{n}": Float32[Array, " n"] for n in range(196)}
    rules: list[Any] = []
    for n in range(196):
        rules += [cs.rename(f"block_{n}", f"renamed_{n}"), cs.private(f"extra_{n}", 0.0)]
        rules.append(cs.scale(f"renamed_{n}/c", 2))
    view = blocks(news | extra)
    cs.derive(plain, view, rules=rules)
    without, ruled = (
        calls(lambda: cs.derive(plain, plain)),
        calls(lambda: cs.derive(plain, view, rules=rules)),
    )
    assert ruled < 2 * without


def mistyped(n: int) -> None:
    wrong = jax.ShapeDtypeStruct((2,), "int8")
    str(cs.check(declared(n), {f"w_{k}": wrong for k in range(n)}))


def strange(n: int) -> None:
    str(cs.check(declared(n), {f"x{k}": np.zeros(2, "float32") for k in range(n)}))


def gaps(n: int) -> None:
    layer = {"w": jax.ShapeDtypeStruct((2, 3), "float32")}
    str(cs.check(Listed, {"layers": {2 * k: layer for k in range(n)}}))


def inferred(n: int) -> None:
    leaves = [jax.ShapeDtypeStruct((k + 1,), "float32") for k in range(11)]
    str(cs.infer({f"k{k}_{k % 7}": {"a": leaves[k % 11]} for k in range(n)}))


@pytest.mark.parametrize("run", [mistyped, strange, gaps, inferred])
def test_5_the_cost_of_a_tree_is_linear_however_wrong_it_is(run: Callable[[int], None]) -> None:
    calls(lambda: run(3))
    small, large = (calls(lambda n=n: run(n)) for n in SIZES)
    assert large / small < 1.25 * SIZES[1] / SIZES[0]


class Layer(cs.Schema):
    w: Float32[Array, "a b"]


class Listed(cs.Schema):
    layers: list[Layer] = cs.field(length="depth")


class Stacked(cs.Schema):
    layers: Layer = cs.field(scan="depth", axis=0)


def test_5_programs_that_are_not_used_any_more_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any number of shapes through one lens, no more programs live than are kept."""
    kept = 3
    few = functools.lru_cache(maxsize=kept)(jitted._jitted.__wrapped__)
    monkeypatch.setattr(jitted, "_jitted", few)
    lens = cs.derive(Listed, Stacked)
    client = jax.devices()[0].client

    def live() -> int:
        gc.collect()
        return len(client.live_executables())

    before = live()
    for n in range(1, 6):
        layer = jax.device_put(np.full((1, n), n, "float32"))
        tree = {"layers": {0: {"w": layer}, 1: {"w": layer}}}
        made = lens.put(lens.get(tree))
        cs.assert_trees_identical(made, tree)
    assert live() - before <= kept
    assert few.cache_info().misses == 15


def test_5_schema_classes_that_nobody_uses_are_freed() -> None:
    def make() -> weakref.ref[Any]:
        made = type("Made", (cs.Schema,), {"__annotations__": {"w": Float32[Array, " n"]}})
        cs.derive(made, made)
        return weakref.ref(made)

    first = make()
    for _ in range(300):
        make()
    gc.collect()
    assert first() is None
