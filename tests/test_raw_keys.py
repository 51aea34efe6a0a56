"""Raw key data, as older code keeps it, and typed keys: only where a rule says so, for every implementation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Float32, UInt32
from orbax.checkpoint import v1 as ocp
from support.profiles import examples
from support.words import done

import ckpt_schema as cs
from ckpt_schema.testing import _laws as laws

IMPLS = {"fry": ("threefry2x32", 2), "rbg": ("rbg", 4), "urbg": ("unsafe_rbg", 4)}
RULES = [cs.raw_key("rng")]


def schemas(tag: str, dims: str) -> tuple[type[cs.Schema], type[cs.Schema]]:
    """A layout that keeps raw data, and one that keeps keys."""
    words = IMPLS[tag][1]

    class Raw(cs.Schema):
        rng: UInt32[Array, f"{dims} {words}"]
        same: Float32[Array, " n"]

    class Typed(cs.Schema):
        rng: cs.Key[tag, dims]
        same: Float32[Array, " n"]

    return Raw, Typed


def data(tag: str, shape: tuple[int, ...], seed: int) -> jax.Array:
    words = IMPLS[tag][1]
    return jnp.asarray(np.random.default_rng(seed).integers(0, 2**32, (*shape, words), np.uint32))


@given(
    st.sampled_from(sorted(IMPLS)),
    st.sampled_from([("", ()), ("a", (3,)), ("a b", (2, 3))]),
    st.integers(0, 99),
)
@examples(1)
def test_the_laws_hold_for_every_implementation(
    tag: str, dims: tuple[str, tuple[int, ...]], seed: int
) -> None:
    through = cs.derive(*schemas(tag, dims[0]), rules=RULES)
    raw = [{"rng": data(tag, dims[1], seed + i), "same": jnp.ones(2)} for i in range(3)]
    keys = [{**x, "rng": jax.random.wrap_key_data(x["rng"], impl=IMPLS[tag][0])} for x in raw]
    cs.assert_trees_identical(through.get(raw[0]), keys[0])
    cs.assert_trees_identical(through.put(keys[1]), raw[1])
    laws.get_put(through, raw[0])
    laws.put_get(through, keys[0])
    laws.put_put(through, raw[0], keys[1], keys[2])
    laws.get_get(through, raw[0], raw[1], keys[2])
    laws.abstraction(through, raw[0], keys[0])
    laws.sharing(through, raw[0], keys[0])
    laws.inverse(through, raw[0], keys[0])
    assert not done(through >> ~through)[0]


def test_without_the_rule_a_key_is_no_array() -> None:
    with pytest.raises(cs.DerivationError, match=r"or say raw_key\('rng'\)"):
        cs.derive(*schemas("fry", ""))


def test_numpy_data_becomes_keys() -> None:
    through = cs.derive(*schemas("rbg", "a"), rules=RULES)
    raw = {"rng": np.arange(8, dtype=np.uint32).reshape(2, 4), "same": np.ones(2, np.float32)}
    made = through.get(raw)
    cs.assert_trees_identical(made["rng"], jax.random.wrap_key_data(raw["rng"], impl="rbg"))
    assert made["same"] is raw["same"]


class Layer(cs.Schema):
    """A layer that keeps raw data."""

    rng: UInt32[Array, "2"]


class Stacked(cs.Schema):
    """The layers under ``nn.scan``."""

    layers: Layer = cs.field(scan="depth")


class TypedLayer(cs.Schema):
    """The same with a key."""

    rng: cs.Key["fry"]


class Listed(cs.Schema):
    """The layers as a list."""

    layers: list[TypedLayer] = cs.field(length="depth")


def test_a_stack_of_raw_data_is_taken_apart_to_keys() -> None:
    through = cs.derive(Stacked, Listed, rules=[cs.raw_key("layers[]/rng")])
    raw = {"layers": {"rng": data("fry", (3,), 0)}}
    made = through.get(raw)
    for i in range(3):
        np.testing.assert_array_equal(
            jax.random.key_data(made["layers"][i]["rng"]), raw["layers"]["rng"][i]
        )
    laws.get_put(through, raw)
    laws.put_get(through, made)
    cs.assert_trees_identical((through >> cs.derive(Listed, Listed)).get(raw), made)


def test_keys_are_sharded_as_their_data_is() -> None:
    through = cs.derive(*schemas("fry", "a"), rules=RULES)
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    for spec, wanted in ((("x",), ("x",)), (("x", "y"), (("x", "y"),)), ((None, "y"), ("y",))):
        raw = jax.device_put(data("fry", (8,), 1), NamedSharding(mesh, PartitionSpec(*spec)))
        made = through.get({"rng": raw, "same": jnp.ones(2)})["rng"]
        assert made.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec(*wanted)), 1), spec
        np.testing.assert_array_equal(jax.random.key_data(made), raw)


@pytest.mark.parametrize(
    ("raw", "typed", "says"),
    [
        (UInt32[Array, "2"], cs.Key["rbg"], "with 4 words on the last axis"),
        (UInt32[Array, "words"], cs.Key["fry"], "with 2 words on the last axis"),
        (Float32[Array, "2"], cs.Key["fry"], "is uint32"),
        (UInt32[Array, "2"], UInt32[Array, "2"], "a key on one side and raw data on the other"),
        (cs.Key["fry"], cs.Key["rbg"], "a key keeps its implementation"),
    ],
)
def test_what_is_no_raw_data_of_such_a_key_is_refused(raw: Any, typed: Any, says: str) -> None:
    def schema(leaf: Any) -> Any:
        class One(cs.Schema):
            rng: leaf

        return One

    for sides in ((raw, typed), (typed, raw)):
        with pytest.raises(cs.DerivationError, match=says):
            cs.derive(*map(schema, sides), rules=RULES)


def test_orbax_1105_a_checkpoint_of_raw_keys_restores_to_typed_ones(tmp_path: Path) -> None:
    """Users converted keys by hand, by name, because NNX states with keys could not be saved."""

    class Old(cs.Schema):
        kernel: Float32[Array, "i o"]
        rng: UInt32[Array, "2"] = cs.field(collection="rngs")

    class New(cs.Schema):
        kernel: Float32[Array, "i o"]
        rng: cs.Key["fry"] = cs.field(type=nnx.RngKey)

    saved = {"params": {"kernel": jnp.ones((2, 3))}, "rngs": {"rng": jax.random.PRNGKey(5)}}
    ocp.save(tmp_path / "0", saved)
    through = cs.derive(cs.linen.Params[Old], cs.nnx.Params[New], rules=RULES)
    target = jax.tree.map(lambda x: x, through.get(saved))
    restored = cs.orbax.restore(tmp_path / "0", jax.eval_shape(lambda: target), through)
    cs.assert_trees_identical(restored["rng"].get_value(), jax.random.key(5))
    cs.orbax.save(tmp_path / "1", restored, through)
    cs.assert_trees_identical(ocp.load(tmp_path / "1", jax.eval_shape(lambda: saved)), saved)


def test_a_key_in_an_optimizer_state_is_a_leaf_like_any_other() -> None:
    class Body(cs.Schema):
        kernel: Float32[Array, "i o"]

    for name, _ in IMPLS.values():
        tx = optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(3, impl=name)), optax.sgd(0.1))
        through = cs.derive(cs.linen.BareTrainState[Body, tx], cs.nnx.TrainState[Body, tx])
        params = {"kernel": jnp.ones((2, 3))}
        s = {"step": jnp.int32(1), "params": params, "opt_state": tx.init(params)}
        made = through.get(s)["optimizer"]["opt_state"][0]["rng_key"].get_value()
        assert made is s["opt_state"][0].rng_key
