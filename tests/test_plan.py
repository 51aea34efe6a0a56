"""What a compiled plan may take for granted of the next tree, and what it must look at again."""

from __future__ import annotations

import collections
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Float16, Float32, Int32, Int64, UInt32

import ckpt_schema as cs
from ckpt_schema._lens.plan import translation


class Old(cs.Schema):
    moved: Float32[Array, " embed"]
    turned: Float32[Array, "embed mlp"]


class New(cs.Schema):
    moved: Float32[Array, " embed"]
    turned: Float32[Array, "mlp embed"]


def tree() -> dict[str, jax.Array]:
    return {"moved": jnp.arange(2.0), "turned": jnp.arange(6.0).reshape(2, 3)}


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """One entry for each plan that was compiled."""
    plans: list[Any] = []
    compile_plan = translation.compile_plan

    def counted(*args: Any, **kwargs: Any) -> Any:
        plans.append(compile_plan(*args, **kwargs))
        return plans[-1]

    monkeypatch.setattr(translation, "compile_plan", counted)
    return plans


def test_variables_do_not_pass_for_their_values() -> None:
    lens = cs.derive(Old, New)
    wanted = lens.get(tree())
    state = nnx.State({key: nnx.Param(value) for key, value in tree().items()})
    cs.assert_trees_identical(lens.get(state), wanted)
    variables = {key: nnx.Param(value) for key, value in tree().items()}
    cs.assert_trees_identical(lens.get(variables), wanted)
    cs.assert_trees_identical(lens.get(tree(), onto=wanted), wanted)
    cs.assert_trees_identical(lens.get(tree(), onto=lens.get(state)), wanted)


def test_trees_in_another_container_are_not_read_to_be_told_apart(
    compiled: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Block(cs.Schema):
        kernel: Float32[Array, "embed mlp"]

    class Linen(cs.Schema):
        layers: Block = cs.field(scan="depth")

    class Nnx(cs.Schema):
        layers: list[Block] = cs.field(length="depth")

    tx = optax.adamw(1e-3)
    lens = cs.derive(cs.linen.TrainState[Linen, tx], cs.nnx.TrainState[Nnx, tx])
    params = {"params": {"layers": {"kernel": jnp.ones((3, 2, 4))}}}
    found = TrainState.create(apply_fn=print, params=params, tx=tx)
    as_dict = {"step": jnp.int32(0), "params": params, "opt_state": found.opt_state}
    as_read = {
        **as_dict,
        "opt_state": [{"count": found.opt_state[0].count, "mu": params, "nu": params}, None, None],
    }
    views = [lens.get(found), nnx.to_pure_dict(lens.get(found))]
    del compiled[:]

    def read(array: jax.Array) -> str:
        raise AssertionError("an array is read")

    monkeypatch.setattr(type(params["params"]["layers"]["kernel"]), "__repr__", read)
    for state in (as_dict, found, as_read, as_dict, found, as_read):
        lens.get(state)
    for view in [*views, *views]:
        lens.put(view, onto=as_dict)
    assert len(compiled) == 2 + 2, "of the source, two more containers, and both of the view"


def test_a_dict_with_a_default_is_not_filled() -> None:
    lens = cs.derive(Old, New)
    lens.get(collections.defaultdict(lambda: jnp.zeros(2), tree()))
    other = collections.defaultdict(
        lambda: jnp.zeros(2), {"moved": jnp.arange(2.0), "twisted": jnp.zeros(2)}
    )
    with pytest.raises(cs.ConformanceError):
        lens.get(other)
    assert sorted(other) == ["moved", "twisted"]


def test_a_number_is_looked_at_in_every_call_and_compiled_for_once(compiled: list[Any]) -> None:
    class Counted(cs.Schema):
        step: Int32[Array, ""]

    class Unsigned(cs.Schema):
        step: UInt32[Array, ""]

    lens = cs.derive(Counted, Unsigned)
    assert [int(lens.get({"step": step})["step"]) for step in range(12)] == list(range(12))
    assert len(compiled) == 1
    for step in (-1, 2**31, True):
        with pytest.raises(cs.ConformanceError):
            lens.get({"step": step})


def test_floats_are_numbers_that_must_fit() -> None:
    class Rate(cs.Schema):
        rate: Float32[Array, ""]

    assert cs.check(Rate, {"rate": 0.5}) == cs.check(Rate, {"rate": float("nan")}) == []
    for value in (0.1, 1e300, -1e300, 1):
        assert [m.kind for m in cs.check(Rate, {"rate": value})] in (["dtype"], ["cast"]), value


def test_gradients_pass_through_edits() -> None:
    lens = cs.derive(Old, New)
    weight = {"moved": jnp.arange(2.0), "turned": jnp.arange(6.0).reshape(3, 2)}

    def dot(s: Any) -> jax.Array:
        return sum(
            jnp.vdot(a, b)
            for a, b in zip(jax.tree.leaves(lens.get(s)), jax.tree.leaves(weight), strict=True)
        )

    for gradient in (jax.grad(dot), jax.jit(jax.grad(dot)), jax.jacfwd(dot)):
        np.testing.assert_array_equal(gradient(tree())["turned"], weight["turned"].T)
        np.testing.assert_array_equal(gradient(tree())["moved"], weight["moved"])


def test_numpy_leaves_of_onto_stay_numpy() -> None:
    lens = cs.derive(Old, New)
    for kind in (np.asarray, jnp.asarray):
        source = jax.tree.map(kind, tree())
        cs.assert_trees_identical(lens.put(lens.get(source), onto=source), source)

    class Counted(cs.Schema):
        step: Int32[Array, ""]

    class Unsigned(cs.Schema):
        step: UInt32[Array, ""]

    counted = cs.derive(Counted, Unsigned)
    for step in (np.int32(3), np.asarray(3, np.int32), jnp.int32(3), 3):
        cs.assert_trees_identical(
            counted.put(counted.get({"step": step}), onto={"step": step}), {"step": step}
        )


def test_what_jax_would_narrow_is_an_error() -> None:
    class Narrow(cs.Schema):
        count: Int32[Array, ""]

    class Wide(cs.Schema):
        count: Int64[Array, ""]
        total: Int64[Array, ""] = cs.field(default=2**40)

    lens = cs.derive(Narrow, Wide)
    for count in (jnp.int32(1), jax.ShapeDtypeStruct((), "int32")):
        with pytest.raises(cs.ConformanceError, match="jax_enable_x64") as caught:
            lens.get({"count": count})
        assert {m.path for m in caught.value.mismatches} <= {"count", "total"}
    with jax.enable_x64():
        made = lens.get({"count": jnp.int32(1)})
    assert (str(made["count"].dtype), int(made["total"])) == ("int64", 2**40)


@pytest.mark.parametrize("value", [70000.0, 2**11 + 1, -1e300])
def test_a_default_that_would_overflow_or_round_is_refused(value: float) -> None:
    with pytest.raises(cs.SchemaError, match="a default that float16 can hold"):

        class Half(cs.Schema):
            x: Float16[Array, ""] = cs.field(default=value)

    class Bare(cs.Schema):
        x: Float16[Array, ""]

    class Nothing(cs.Schema):
        y: Float32[Array, ""]

    with pytest.raises(cs.DerivationError, match=r"a default for float16\[\]"):
        cs.derive(Bare, Nothing, rules=[cs.private("x", value), cs.private("y", 0.1)])


def test_an_optional_leaf_that_some_repeats_lack_is_not_dropped() -> None:
    class Layer(cs.Schema):
        kernel: Float32[Array, " n"]
        bias: Float32[Array, " n"] = cs.field(optional=True, default=0.0)

    class Listed(cs.Schema):
        layers: list[Layer] = cs.field(length="depth")

    class Stacked(cs.Schema):
        layers: Layer = cs.field(scan="depth")

    lens = cs.derive(Listed, Stacked)
    kernel = jnp.ones(2)
    for layers in ([{"kernel": kernel, "bias": kernel}] * 2, [{"kernel": kernel}] * 2):
        lens.get({"layers": dict(enumerate(layers))})
    with pytest.raises(cs.ConformanceError, match="though other repeats have it") as caught:
        lens.get({"layers": {0: {"kernel": kernel, "bias": kernel}, 1: {"kernel": kernel}}})
    assert [m.path for m in caught.value.mismatches] == ["layers/1/bias"]


def test_keys_that_are_no_index_are_extra() -> None:
    class Listed(cs.Schema):
        layers: list[Float32[Array, " n"]] = cs.field(length="depth")

    for stray in (-1, 7):
        layers = {0: jnp.ones(2), 1: jnp.ones(2), stray: jnp.ones(2)}
        assert not cs.check(Listed, {"layers": layers}).ok, stray


def test_a_literal_key_may_stand_beside_a_symbol() -> None:
    class Layer(cs.Schema):
        kernel: Float32[Array, " n"]

    class Model(cs.Schema):
        layers: list[Layer] = cs.field(length="depth")
        extra: Float32[Array, " n"] = cs.field(key="layers/0/extra")

    layers = {0: {"kernel": jnp.ones(2), "extra": jnp.ones(2)}, 1: {"kernel": jnp.ones(2)}}
    assert cs.check(Model, {"layers": layers}) == []


def test_layers_that_are_sharded_differently_are_stacked_without_gathering() -> None:
    class Listed(cs.Schema):
        layers: list[Float32[Array, "n m"]] = cs.field(length="depth")

    class Stacked(cs.Schema):
        layers: Float32[Array, "n m"] = cs.field(scan="depth")

    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    sharded, whole = (NamedSharding(mesh, PartitionSpec(axis)) for axis in ("x", None))
    lens = cs.derive(Listed, Stacked)
    for order in ((sharded, whole), (whole, sharded)):
        layers = {i: jax.device_put(jnp.ones((8, 2)), at) for i, at in enumerate(order)}
        assert lens.get({"layers": layers})["layers"].sharding.spec[:2] == (None, "x"), order
