"""Train states of any float: what an optimizer keeps is of the dtype that its transformation makes."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState
from jaxtyping import Array, BFloat16, Float, Float16, Float32
from support import optimizers

import ckpt_schema as cs

FLOATS: dict[str, Any] = {"float32": Float32, "bfloat16": BFloat16, "float16": Float16}
# What is in no shape of a param, or no dtype of it, or in none at all; the others go as Adam does.
SAMPLE = ["adafactor", "adamw", "muon", "noisy_sgd", "schedule_free", "sm3"]


@functools.cache
def schema(kind: Any) -> type[cs.Schema]:
    class Layer(cs.Schema):
        kernel: kind[Array, "embed mlp"]
        scale: kind[Array, " embed"]

    class Model(cs.Schema):
        embed: kind[Array, "vocab embed"]
        layers: list[Layer] = cs.field(length="depth")

    return Model


def names() -> list[str]:
    return [name for name in SAMPLE if name in optimizers.found()]


@pytest.mark.parametrize("name", names())
def test_a_state_of_any_float_is_that_of_each_once_it_is_known(name: str) -> None:
    framework = cs.linen if SAMPLE.index(name) % 2 else cs.nnx
    tx = optimizers.make(name)
    sizes = ({**optimizers.SIZED[name], "depth": 2},) if name in optimizers.SIZED else ()
    opened = framework.TrainState[(schema(Float), tx, *sizes)]
    for dtype, kind in FLOATS.items():
        rows = cs.layout(framework.TrainState[(schema(kind), tx, *sizes)]).rows
        assert cs.layout(opened, dtype=dtype).rows == rows


def moments(table: Any) -> dict[str, str]:
    return {row.path[2]: row.leaf.dtype for row in table.rows if row.mirrors}


def test_a_moment_that_does_not_follow_its_param_keeps_its_dtype() -> None:
    assert moments(cs.linen.TrainState[schema(Float), optax.adam(1e-3)]) == {
        "mu": "Float",
        "nu": "Float",
    }
    for dtype in ("float32", "bfloat16"):
        tx = optax.adam(1e-3, mu_dtype=dtype)
        state = cs.linen.TrainState[schema(Float), tx]
        assert moments(state) == {"mu": dtype, "nu": "Float"}
        assert moments(cs.layout(state, dtype="float16")) == {"mu": dtype, "nu": "float16"}


def test_moments_go_along_with_their_params_unless_they_are_named() -> None:
    state = cs.linen.TrainState[schema(Float), optax.adam(1e-3)]
    said = {"**": "float32", "layers[]/kernel": "bfloat16", "opt_state/*/nu": "float16"}
    found = {"/".join(row.path): row.leaf.dtype for row in cs.layout(state, dtype=said).rows}
    assert found == {
        "step": "int32",
        "params/embed": "float32",
        "params/layers[]/kernel": "bfloat16",
        "params/layers[]/scale": "float32",
        "opt_state/0/count": "int32",
        "opt_state/0/mu/embed": "float32",
        "opt_state/0/mu/layers[]/kernel": "bfloat16",
        "opt_state/0/mu/layers[]/scale": "float32",
        **{
            f"opt_state/0/nu/{path}": "float16"
            for path in ("embed", "layers[]/kernel", "layers[]/scale")
        },
    }


def test_a_state_of_another_type_for_each_float_is_refused() -> None:
    def init(params: Any) -> Any:
        narrow = any(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(params))
        return jax.tree.map(lambda x: x.astype("float32"), params) if narrow else ()

    tx = optax.GradientTransformation(init, lambda updates, state, params=None: (updates, state))
    with pytest.raises(cs.SchemaError, match="another state for each float") as caught:
        cs.linen.TrainState[schema(Float), tx]
    assert "nothing or float32" in str(caught.value)
    cs.linen.TrainState[schema(Float32), tx]


# --- through a lens  ---

TX = optax.adamw(1e-2)
SIZES = {"vocab": 7, "embed": 4, "mlp": 5}


def params(dtype: str) -> dict[str, Any]:
    random = np.random.default_rng(0)

    def leaf(*shape: int) -> jax.Array:
        return jnp.asarray(random.normal(size=shape), dtype)

    layers = [{"kernel": leaf(4, 5), "scale": leaf(4)} for _ in range(2)]
    return {"params": {"embed": leaf(7, 4), "layers": dict(enumerate(layers))}}


def trained(dtype: str) -> Any:
    """A state after a step, so that no moment is zero."""
    weights = params(dtype)
    state = TrainState.create(apply_fn=lambda: None, params=weights, tx=TX)
    return state.apply_gradients(grads=jax.tree.map(lambda x: x * 0.25, weights))


def as_dtype(tree: Any, dtype: str) -> Any:
    def cast(x: Any) -> Any:
        value = np.asarray(x)
        is_float = jnp.issubdtype(value.dtype, jnp.floating)
        return value.astype(jnp.dtype(dtype)) if is_float else value

    return jax.tree.map(cast, tree)


LENS = cs.derive(
    cs.linen.TrainState[schema(Float), TX],
    cs.nnx.TrainState[schema(Float), TX],
    rules=[cs.cast("**", rounding="nearest")],
)


@pytest.mark.parametrize(
    ("before", "after"),
    [("float32", "bfloat16"), ("bfloat16", "float32"), ("float16", "bfloat16")],
)
def test_a_trained_state_goes_to_every_float_and_back(before: str, after: str) -> None:
    state = trained(before)
    made = LENS.get(state, dtype=after)
    wanted = as_dtype(state, after)
    for name, tree in (("mu", wanted.opt_state[0].mu), ("nu", wanted.opt_state[0].nu)):
        found = made["optimizer"]["opt_state"][0][name]
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(tree), strict=True):
            assert np.asarray(one).tobytes() == other.tobytes() and one.dtype == other.dtype
    kept = as_dtype(made["model"], after)
    for one, other in zip(jax.tree.leaves(kept), jax.tree.leaves(wanted.params), strict=True):
        assert one.tobytes() == other.tobytes() and one.dtype == other.dtype
    cs.assert_trees_identical(LENS.put(made, onto=state), state)


def test_moments_are_bound_by_themselves() -> None:
    state = trained("bfloat16")
    wide = optax.adamw(1e-2, mu_dtype="float32")
    target = TrainState.create(apply_fn=lambda: None, params=state.params, tx=wide)
    lens = cs.derive(
        cs.linen.TrainState[schema(Float), TX], cs.linen.TrainState[schema(Float), wide]
    )
    made = lens.get(state, onto=jax.eval_shape(lambda: target))
    assert {x.dtype for x in jax.tree.leaves(made.opt_state[0].mu)} == {jnp.dtype("float32")}
    assert {x.dtype for x in jax.tree.leaves(made.opt_state[0].nu)} == {jnp.dtype("bfloat16")}
    for one, other in zip(
        jax.tree.leaves(made.opt_state[0].mu), jax.tree.leaves(state.opt_state[0].mu), strict=True
    ):
        assert np.asarray(one).tobytes() == np.asarray(other).astype(np.float32).tobytes()


def test_the_moments_of_a_scaled_param_go_along_in_every_precision() -> None:
    lens = cs.derive(
        cs.linen.TrainState[schema(Float), TX],
        cs.linen.TrainState[schema(Float), TX],
        rules=[cs.scale("embed", 4.0), cs.cast("**", rounding="nearest")],
    )
    state = trained("bfloat16")
    made = lens.get(state, dtype="float32")
    for tree, original, factor in (
        (made["params"], state.params, 4.0),
        (made["opt_state"][0].mu, state.opt_state[0].mu, 1 / 4),
        (made["opt_state"][0].nu, state.opt_state[0].nu, 1 / 16),
    ):
        wanted = np.asarray(original["params"]["embed"]).astype(np.float32) * np.float32(factor)
        assert np.asarray(tree["params"]["embed"]).tobytes() == wanted.tobytes()


def test_what_starts_anew_is_what_the_transformation_makes() -> None:
    sgd = optax.sgd(1e-2)
    lens = cs.derive(
        cs.linen.TrainState[schema(Float), sgd],
        cs.linen.TrainState[schema(Float), TX],
        rules=[cs.reset(view="opt_state/0")],
    )
    weights = params("float32")
    given = {"step": jnp.int32(3), "params": weights, "opt_state": sgd.init(weights)}
    for dtype in FLOATS:
        made = lens.get(given, dtype={"**": dtype}) if dtype == "float32" else None
        if made is not None:
            cs.assert_trees_identical(made["opt_state"], TX.init(made["params"]))
    with pytest.raises(cs.ConformanceError, match="from the transformation"):
        lens.get(given, dtype={"**": "float32", "opt_state/**": "bfloat16"})
