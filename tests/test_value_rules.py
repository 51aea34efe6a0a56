"""Rules for what stands in leaves: axes that run the other way, padding, factors; and what would not come back."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Complex64, Float32, Int32
from support.leaf import both_ways
from support.profiles import examples
from support.words import done

import ckpt_schema as cs
from ckpt_schema._lens.arrays import checks, execution
from ckpt_schema._lens.derive.leaf_rules import PaddedAxis, Told
from ckpt_schema.testing import _laws as laws
from ckpt_schema.testing._meshes import as_jax, as_numpy, mesh
from ckpt_schema.testing._values import hostile

TX = optax.adam(1e-3)


class Plain(cs.Schema):
    kernel: Float32[Array, "width embed"]
    table: Float32[Array, "vocab embed"]
    names: Int32[Array, " vocab"]


class Padded(cs.Schema):
    kernel: Float32[Array, "embed width"]
    table: Float32[Array, "embed padded"]
    names: Int32[Array, " padded"]


class Layers(cs.Schema):
    layers: Plain = cs.field(scan="depth", axis=1)


class Listed(cs.Schema):
    layers: list[Padded] = cs.field(length="depth")


FLIP = cs.flip("kernel", "width")
PADS = [cs.pad("table", "vocab", "padded"), cs.pad("names", "vocab", "padded", fill=-1)]
SIZES = {"vocab": 3, "padded": 5}


def plain(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "kernel": jnp.asarray(hostile(rng, "float32", (2, 4))),
        "table": jnp.asarray(hostile(rng, "float32", (3, 4))),
        "names": jnp.asarray(hostile(rng, "int32", (3,))),
    }


def fault(use: Any, error: type[cs.CkptSchemaError]) -> str:
    with pytest.raises(error) as caught:
        use()
    return str(caught.value)


# --- One leaf by itself  ---


SAID = {
    "flip the first": ("2 3", "2 3", Told(flips=frozenset({(2,)}))),
    "flip the last": ("2 3", "2 3", Told(flips=frozenset({(3,)}))),
    "pad the last": ("2 a", "2 b", Told(fills=(PaddedAxis.of(("a",), ("b",), 1),))),
    "pad the first": ("2 3", "b 3", Told(fills=(PaddedAxis.of((2,), ("b",), 0),))),
}


@pytest.mark.parametrize("said", SAID)
@pytest.mark.parametrize("place", [as_numpy, as_jax], ids=["NumPy", "jax"])
@examples(1)
@given(
    dtype=st.sampled_from(["float32", "bfloat16", "float8_e5m2", "int8", "uint32"]),
    more=st.integers(0, 2),
    seed=st.integers(0, 2**32 - 1),
)
def test_there_and_back(said: str, place: Any, dtype: str, more: int, seed: int) -> None:
    before, after, told = SAID[said]
    there, back = both_ways(before, after, {"a": 3, "b": 3 + more}, dtype=dtype, told=told)
    value = place(hostile(np.random.default_rng(seed), dtype, (2, 3)))
    (made,) = execution.run(there, [value], [None])
    checks.verify([checks.LeafTask(back, [made], [None], ["x"])])
    cs.assert_trees_identical(execution.run(back, [made], [None]), [value])
    if told.fills:
        rest = np.asarray(made)[2:] if said == "pad the first" else np.asarray(made)[:, 3:]
        wanted = np.full(rest.shape, told.fills[0].rest.value.value).astype(made.dtype)
        np.testing.assert_array_equal(rest, wanted)
    else:
        axis = 0 if said == "flip the first" else 1
        np.testing.assert_array_equal(
            np.asarray(made).view("u1"), np.flip(np.asarray(value), axis).copy().view("u1")
        )


@pytest.mark.parametrize("place", [as_numpy, as_jax], ids=["NumPy", "jax"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@examples(1)
@given(exponent=st.integers(-30, 30), seed=st.integers(0, 2**32 - 1))
def test_a_scaled_leaf_comes_back_or_is_refused(
    place: Any, dtype: str, exponent: int, seed: int
) -> None:
    there, back = both_ways("9", "9", {}, dtype=dtype, told=Told(exponent=exponent or 1))
    value = place(hostile(np.random.default_rng(seed), dtype, (9,)))
    try:
        checks.verify([checks.LeafTask(there, [value], [None], ["x"])])
    except cs.ConformanceError as error:
        assert "which comes back as" in str(error)
        return
    made = execution.run(there, [value], [None])
    cs.assert_trees_identical(execution.run(back, made, [None]), [value])
    with np.errstate(invalid="ignore"):  # signaling NaNs
        before, after = np.asarray(value).astype("float64"), np.asarray(made[0]).astype("float64")
    numbers = ~np.isnan(before)
    np.testing.assert_array_equal(after[numbers], before[numbers] * 2.0 ** (exponent or 1))


# --- Flip and pad  ---


def test_what_is_flipped_and_padded_is_so_in_the_model_and_in_all_that_mirrors_it() -> None:
    rules = [*PADS, FLIP]
    lens = cs.derive(cs.linen.Params[Plain], cs.nnx.Params[Padded], rules=rules, dims=SIZES)
    state = {"params": plain()}
    made = lens.get(state)
    np.testing.assert_array_equal(
        made["kernel"][...].view("u4"), state["params"]["kernel"][::-1].T.view("u4")
    )
    np.testing.assert_array_equal(
        made["table"][...][:, :3].view("u4"), state["params"]["table"].T.view("u4")
    )
    assert not made["table"][...][:, 3:].view("u4").any() and made["names"][...][3:].tolist() == [
        -1,
        -1,
    ]
    laws.get_put(lens, state)
    laws.put_get(lens, made)
    laws.inverse(lens, state, made)
    laws.abstraction(lens, state, made)


class Weights(cs.Schema):
    table: Float32[Array, "vocab embed"]


class Wide(cs.Schema):
    table: Float32[Array, "padded embed"]


def test_the_moments_of_what_is_padded_are_padded_with_zeros() -> None:
    rule = cs.pad("table", "vocab", "padded", fill=7)
    lens = cs.derive(
        cs.linen.BareTrainState[Weights, TX], cs.nnx.TrainState[Wide, TX], rules=[rule], dims=SIZES
    )
    params = {"table": jnp.ones((3, 2))}
    state = {
        "params": params,
        "opt_state": TX.update(params, TX.init(params), params)[1],
        "step": jnp.int32(1),
    }
    made = lens.get(state)
    assert made["model"]["table"][...][3:].tolist() == [[7, 7], [7, 7]]
    assert made["optimizer"]["opt_state"][0]["mu"]["table"][...][3:].tolist() == [[0, 0], [0, 0]]
    laws.get_put(lens, state)
    whole = [cs.pad("opt_state/0/nu/table", "vocab", "padded", fill=1), rule]
    other = cs.derive(
        cs.linen.BareTrainState[Weights, TX], cs.nnx.TrainState[Wide, TX], rules=whole, dims=SIZES
    ).get(state)
    assert other["optimizer"]["opt_state"][0]["nu"]["table"][...][3:].tolist() == [[1, 1], [1, 1]]


def test_stacked_layers_are_padded_and_flipped_one_by_one() -> None:
    below = [
        cs.pad("layers[]/table", "vocab", "padded"),
        cs.pad("layers[]/names", "vocab", "padded"),
    ]
    lens = cs.derive(
        Layers, Listed, rules=[*below, cs.flip("layers[]/kernel", "width")], dims=SIZES
    )
    each = [plain(seed) for seed in range(3)]
    stacked = {
        "layers": {key: jnp.stack([layer[key] for layer in each], axis=1) for key in each[0]}
    }
    made = lens.get(stacked)
    for layer, found in zip(each, made["layers"].values(), strict=True):
        np.testing.assert_array_equal(
            found["kernel"].view("u4"), layer["kernel"][::-1].T.view("u4")
        )
        assert found["table"].shape == (4, 5) and found["names"].tolist() == [
            *layer["names"].tolist(),
            0,
            0,
        ]
    cs.assert_trees_identical(lens.put(made), stacked)


def test_padding_that_is_none_is_told_with_where_it_is() -> None:
    lens = cs.derive(Weights, Wide, rules=[cs.pad("table", "vocab", "padded")], dims=SIZES)
    table = jnp.zeros((5, 2)).at[4, 1].set(-0.0)
    assert fault(lambda: lens.put({"table": table}), cs.ConformanceError) == (
        "values cannot be carried over exactly: 1 fault\n"
        "  table  expected 0 in the padding of axis 0, from 3 on, found -0.0 (0x80000000) at [1 1] of it\n"
        "         -> values there would be lost: declare the padded size, or another fill="
    )


def test_a_padded_axis_is_no_shorter() -> None:
    lens = cs.derive(Weights, Wide, rules=[cs.pad("table", "vocab", "padded")])
    text = fault(
        lambda: lens.get({"table": jnp.zeros((3, 2))}, onto={"table": jnp.zeros((2, 2))}),
        cs.ConformanceError,
    )
    assert "expected padded of vocab or more, found padded=2, vocab=3" in text
    assert "lens.bind(padded=...)" in fault(
        lambda: lens.get({"table": jnp.zeros((3, 2))}), cs.ConformanceError
    )


def test_padding_is_sharded_as_far_as_it_divides() -> None:
    lens = cs.derive(
        Weights, Wide, rules=[cs.pad("table", "vocab", "padded")], dims={"vocab": 4, "padded": 6}
    )
    on = mesh((4, 2), AxisType.Auto)
    table = jax.device_put(jnp.ones((4, 8)), NamedSharding(on, PartitionSpec("x", "y")))
    made = lens.get({"table": table})["table"]
    assert made.sharding.spec == PartitionSpec(None, ("y", "x"))
    assert lens.put({"table": made})["table"].sharding.shard_shape((4, 8)) == (4, 1)


# --- Scale  ---


class Query(cs.Schema):
    query: Float32[Array, "embed heads"]


@pytest.mark.parametrize("said", [True, False])
def test_a_factor_holds_for_the_param_and_its_moments_go_along(said: bool) -> None:
    sides = cs.linen.BareTrainState[Query, TX], cs.nnx.TrainState[Query, TX]
    moments = [cs.scale("opt_state/0/mu/query", 2), cs.scale("opt_state/0/nu/query", 4)]
    lens = cs.derive(*sides, rules=[cs.scale("query", 0.5), *(moments if said else ())])
    params = {"query": jnp.full((2, 2), 3.0)}
    state = {
        "params": params,
        "opt_state": TX.update(params, TX.init(params), params)[1],
        "step": jnp.int32(1),
    }
    made = lens.get(state)
    assert made["model"]["query"][...].tolist() == [[1.5, 1.5], [1.5, 1.5]]
    moments_ = made["optimizer"]["opt_state"][0]
    np.testing.assert_array_equal(
        moments_["mu"]["query"][...], state["opt_state"][0].mu["query"] * 2
    )
    np.testing.assert_array_equal(
        moments_["nu"]["query"][...], state["opt_state"][0].nu["query"] * 4
    )
    laws.get_put(lens, state)
    assert not any(done(lens >> ~lens))


def test_what_does_not_come_back_is_told_with_where_it_is() -> None:
    lens = cs.derive(Query, Query, rules=[cs.scale("query", 2**-20)])
    text = fault(lambda: lens.get({"query": jnp.full((1, 2), 1e-37)}), cs.ConformanceError)
    assert (
        "query  expected values that 2**-20 times themselves tell exactly" in text
        and "at [0 0]" in text
    )


def test_values_are_not_known_under_a_trace() -> None:
    lens = cs.derive(Query, Query, rules=[cs.scale("query", 2)])
    assert "translate outside of jit" in fault(
        lambda: jax.jit(lens.get)({"query": jnp.ones((1, 2))}), cs.ConformanceError
    )


# --- What is refused  ---


class Imaginary(cs.Schema):
    table: Complex64[Array, "vocab embed"]


class WideImaginary(cs.Schema):
    table: Complex64[Array, "padded embed"]


@pytest.mark.parametrize(
    ("sides", "rule", "says"),
    [
        ((Query, Query), cs.flip("query", "width"), "a leaf with an axis width, at query or below"),
        ((Query, Query), cs.flip("key", "heads"), "a leaf with an axis heads, at key or below"),
        (
            (Weights, Weights),
            cs.pad("table", "vocab", "padded"),
            "a leaf with vocab on one side and padded on the other",
        ),
        (
            (Weights, Wide),
            cs.pad("table", "vocab", "paded"),
            "a leaf with vocab on one side and paded on the other",
        ),
        (
            (Imaginary, WideImaginary),
            cs.pad("table", "vocab", "padded", fill=1),
            "complex64 is not padded with 1",
        ),
        (
            (Weights, Wide),
            cs.pad("table", "vocab", "padded", fill=1e300),
            "float32 is not padded with 1e+300",
        ),
    ],
)
def test_a_rule_that_does_nothing_or_cannot_be_is_an_error(
    sides: Any, rule: Any, says: str
) -> None:
    assert says in fault(lambda: cs.derive(*sides, rules=[rule]), cs.DerivationError)


@pytest.mark.parametrize(
    "declare",
    [
        lambda: cs.scale("x", 0),
        lambda: cs.scale("x", float("inf")),
        lambda: cs.scale("x", True),
        lambda: cs.flip("x", "a b"),
        lambda: cs.flip("x", 0),  # type: ignore[arg-type]
        lambda: cs.pad("x", "a", "b", fill="0"),  # type: ignore[arg-type]
        lambda: cs.pad("x", "", "b"),
        lambda: cs.pad("", "a", "b"),
    ],
)
def test_a_rule_that_is_not_well_formed_is_told_so(declare: Any) -> None:
    assert "is not well formed: 1 fault" in fault(declare, cs.SchemaError)


def test_padding_of_a_fixed_size_to_a_smaller_one_is_refused() -> None:
    class Five(cs.Schema):
        table: Float32[Array, "5 embed"]

    class Four(cs.Schema):
        table: Float32[Array, "4 embed"]

    assert "5 cannot be padded to 4" in fault(
        lambda: cs.derive(Five, Four, rules=[cs.pad("table", "5", "4")]), cs.DerivationError
    )
