"""Which of the leaves that a tree may lack a layout has: ``cs.layout(schema, has=[...])``."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax
import pytest
from jaxtyping import Array, Float32

import ckpt_schema as cs
from ckpt_schema import blocks


class Model(cs.Schema):
    up: blocks.nnx.Linear
    norm: blocks.nnx.LayerNorm


def keys(layout: cs.Layout) -> list[str]:
    return ["/".join(map(str, row.key)) for row in layout.rows]


def tree(*names: str) -> dict[str, Any]:
    """Weights of the model with these leaves."""
    leaves = {
        "up": {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)},
        "norm": {"scale": jnp.zeros(3), "bias": jnp.zeros(3)},
    }
    found: dict[str, Any] = {}
    for name in names:
        node, leaf = name.split("/")
        found.setdefault(node, {})[leaf] = leaves[node][leaf]
    return found


ALL = ["up/kernel", "up/bias", "norm/scale", "norm/bias"]


@pytest.mark.parametrize(
    ("has", "expected"),
    [
        ([], ["up/kernel"]),
        (["**/bias"], ["up/kernel", "up/bias", "norm/bias"]),
        (["norm"], ["up/kernel", "norm/scale", "norm/bias"]),
        (["up/bias", "**/scale"], ["up/kernel", "up/bias", "norm/scale"]),
        (["**"], ALL),
    ],
)
def test_a_tree_has_to_have_what_is_named_and_nothing_else(
    has: list[str], expected: list[str]
) -> None:
    layout = cs.layout(Model, has=has)
    assert sorted(keys(layout)) == sorted(expected)
    assert cs.check(layout, tree(*expected)).ok
    for name in ALL:
        other = [one for one in ALL if (one != name) == (one in expected)]
        assert not cs.check(layout, tree(*other)).ok, name


def test_without_it_a_tree_may_lack_them_all() -> None:
    assert len(cs.layout(Model).rows) == 4
    assert cs.check(Model, tree("up/kernel")).ok and cs.check(Model, tree(*ALL)).ok


@pytest.mark.parametrize("kept", [True, False])
def test_what_an_optimizer_keeps_goes_with_its_param(kept: bool) -> None:
    tx = optax.adam(1e-3)
    state: Any = (
        cs.kept(of="params", mirrors=["0/mu", "0/nu"]) if kept else cs.optimizer(tx, of="params")
    )

    class State(cs.Schema):
        params: Model
        opt_state: cs.OptState = state

    for name in (*cs.layout(State).rows,):
        assert name.optional == (name.path[-1] != "kernel" and name.path[-1] != "count")
    found = {key for key in keys(cs.layout(State, has=["up/bias"])) if "count" not in key}
    model = {"up/kernel", "up/bias"}
    moments = {f"opt_state/0/{kind}/{leaf}" for kind in ("mu", "nu") for leaf in model}
    assert found == {f"params/{leaf}" for leaf in model} | moments


def test_an_optimizer_that_is_declared_first_goes_with_its_params_too() -> None:
    class State(cs.Schema):
        opt_state: cs.OptState = cs.optimizer(optax.adam(1e-3), of="params")
        params: Model

    found = keys(cs.layout(State, has=["params/up/bias"]))
    bias = [key for key in found if key.endswith("up/bias")]
    assert bias == ["opt_state/0/mu/up/bias", "opt_state/0/nu/up/bias", "params/up/bias"]


def test_caches_are_leaves_like_any_other_where_they_are_named() -> None:
    layout = cs.layout(blocks.nnx.MultiHeadAttention, has=["cached_*", "cache_index"])
    caches = [row for row in layout.rows if row.path[0].startswith("cache")]
    assert len(caches) == 3 and not any(row.ephemeral or row.optional for row in layout.rows)


def test_every_glob_has_to_mean_something_that_a_tree_may_lack() -> None:
    with pytest.raises(cs.SchemaError) as error:
        cs.layout(Model, has=["**/bias", "up/kernel", "head"])
    assert [fault.path for fault in error.value.mismatches] == ["has='up/kernel'", "has='head'"]


@pytest.mark.parametrize("wrong", ["**/bias", [1], 5])
def test_it_is_a_list_of_globs(wrong: Any) -> None:
    with pytest.raises(cs.SchemaError, match="a list of globs of paths"):
        cs.layout(Model, has=wrong)


def test_a_schema_without_optional_leaves_takes_an_empty_list() -> None:
    class Norm(cs.Schema):
        scale: Float32[Array, " embed"]

    assert cs.layout(Norm, has=[]) == cs.layout(Norm)
