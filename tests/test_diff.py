"""What `cs.diff` tells of trees of which most is the same, held against a comparison leaf by leaf."""

from __future__ import annotations

import random
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import ckpt_schema as cs

SHAPES = ((2, 3), (3, 3), (4,), (2, 3, 5))
DTYPES = ("float32", "bfloat16", "int32")


def leaf(rng: random.Random) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(rng.choice(SHAPES), rng.choice(DTYPES))


def drawn(rng: random.Random, depth: int = 3) -> dict[str, Any]:
    """A tree without numbers in its names, so that nothing of it is a list."""
    tree: dict[str, Any] = {}
    for name in rng.sample("abcdefg", rng.randint(1, 4)):
        is_node = depth and rng.random() < 0.6
        tree[name] = drawn(rng, depth - 1) if is_node else leaf(rng)
    return tree


def edited(tree: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """The same, of which some leaves are others, or gone, or new."""
    found: dict[str, Any] = {}
    for name, child in tree.items():
        fate = rng.random()
        if isinstance(child, dict):
            found[name] = edited(child, rng)
        elif fate > 0.1:
            found[name] = child if fate < 0.8 else leaf(rng)
    if rng.random() < 0.2:
        found["new"] = leaf(rng)
    return found or {"new": leaf(rng)}


def flat(tree: dict[str, Any]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of each leaf, by its path."""
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(k.key for k in path): (x.shape, str(x.dtype)) for path, x in pairs}


@pytest.mark.parametrize("seed", range(30))
def test_a_diff_tells_what_differs_leaf_by_leaf(seed: int) -> None:
    rng = random.Random(seed)
    old = drawn(rng)
    new = edited(old, rng)
    before, after = flat(old), flat(new)
    told: dict[str, set[str]] = {}
    for change in cs.diff({"params": old}, {"params": new}).changes:
        path = change.path.removeprefix("params/")
        if change.kind == "likely renamed":
            told.setdefault("removed", set()).add(path)
            told.setdefault("added", set()).add(change.after.removeprefix("params/"))
        else:
            told.setdefault(change.kind, set()).add(path)
    both = before.keys() & after.keys()
    reshaped = {path for path in both if before[path][0] != after[path][0]}
    recast = {path for path in both - reshaped if before[path] != after[path]}
    renamed = told.get("removed", set())
    assert renamed == before.keys() - after.keys()
    assert told.get("added", set()) == after.keys() - before.keys()
    # What is renamed may be of another dtype besides.
    assert told.get("reshaped", set()) - renamed == reshaped
    assert told.get("recast", set()) - renamed == recast


def test_what_an_optimizer_keeps_is_told_with_its_param_or_by_itself() -> None:
    def state(tx: optax.GradientTransformation, bias: int = 3) -> dict[str, Any]:
        shapes = {"kernel": (2, 4), "bias": (bias,), "scale": (5,)}
        params = {name: jnp.ones(shape) for name, shape in shapes.items()}
        return {"params": params, "opt_state": tx.init(params), "step": 0}

    def told(a: Any, b: Any) -> list[tuple[str, str, int]]:
        return [(change.kind, change.path, change.mirrors) for change in cs.diff(a, b).changes]

    adam = state(optax.adam(1e-3))
    assert cs.diff(adam, adam).same
    assert cs.diff(adam, adam).mended
    assert told(adam, state(optax.adam(1e-3), bias=9)) == [("reshaped", "params/bias", 2)]
    narrow = state(optax.adam(1e-3, mu_dtype="bfloat16"))
    assert told(adam, narrow) == [("recast", "opt_state/0/mu/**", 0)]
    assert told(adam, state(optax.lion(1e-3))) == [("removed", "opt_state/0/nu/**", 0)]
    assert told(state(optax.lion(1e-3)), adam) == [("added", "opt_state/0/nu/**", 0)]


def test_a_state_below_a_key_of_the_other_is_a_diff() -> None:
    kernel, bias = (jax.ShapeDtypeStruct(shape, "float32") for shape in ((4, 8), (8,)))
    state = {"up": {"kernel": kernel}, "down": {"kernel": kernel, "bias": bias}}
    found = cs.diff({"model": state, "notes": {"loss": bias}}, state)
    assert not found.same
    assert not found.mended
    assert "pass at='model'" in str(found)
    assert cs.adapt({"model": state, "notes": {"loss": bias}}, state, at="model")


def test_rules_are_told_of_what_differs_where_its_siblings_do_not() -> None:
    kernel, bias = (jax.ShapeDtypeStruct(shape, "float32") for shape in ((4, 8), (8,)))
    old = {"up": {"kernel": kernel, "bias": bias}, "down": {"kernel": kernel}}
    new = {"up": {"kernel": kernel}, "down": {"kernel": kernel}, "out": {"bias": bias}}
    found = cs.diff(old, new)
    assert [(change.kind, change.path) for change in found.changes] == [
        ("likely renamed", "params/up/bias")
    ]
    assert not found.mended or cs.adapt(old, new, rules=found.rules)
