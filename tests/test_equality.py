"""Bitwise equality: what it tells apart that looser comparisons do not, and what it says about it."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from support.profiles import examples

import ckpt_schema as cs
from ckpt_schema.testing._meshes import as_jax, as_numpy, mesh
from ckpt_schema.testing._values import DTYPES, IMPLS, hostile


class Point(NamedTuple):
    x: Any
    y: Any


def lines(left: Any, right: Any) -> list[str]:
    return [str(fault) for fault in cs.differences(left, right)]


def floats(*bits: int) -> np.ndarray[Any, Any]:
    return np.array(bits, np.uint32).view(np.float32)


@pytest.mark.parametrize("place", [as_numpy, as_jax])
@examples(4)
@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(0, 3), max_size=3),
    seed=st.integers(0, 2**32 - 1),
)
def test_equal_bits_are_equal_and_one_other_bit_is_not(
    place: Any, dtype: str, shape: list[int], seed: int
) -> None:
    left, right = (
        place(hostile(np.random.default_rng(seed), dtype, tuple(shape))) for _ in range(2)
    )
    assert cs.differences({"x": left}, {"x": right}) == ()
    if left.size:
        data = np.array(jax.random.key_data(left) if dtype in IMPLS else left)
        octets = data.reshape(-1).view(np.uint8)
        octets[seed % octets.size] ^= 1  # the least bit of every dtype is one of its own
        flipped = (
            jax.random.wrap_key_data(jnp.asarray(data), impl=jax.random.key_impl(left))
            if dtype in IMPLS
            else place(data)
        )
        (fault,) = cs.differences({"x": left}, {"x": flipped})
        assert (fault.path, fault.kind) == ("x", "bits") and "1 of " in fault.hint


def test_nan_payloads_and_signs_of_zero_are_seen() -> None:
    left = {"a": floats(0x7FC00000, 0x7FC00001), "b": [floats(0), floats(0x7FC00000)]}
    right = {"a": floats(0x7FC00000, 0x7FC00002), "b": [floats(0x80000000), floats(0x7FC00000)]}
    assert lines(left, right) == [
        "a: expected bits 0x7fc00001, found 0x7fc00002 (1 of 2 elements differ, the first at [1])",
        "b/0: expected bits 0x00000000, found 0x80000000 (1 of 1 elements differ, the first at [0])",
    ]
    with pytest.raises(AssertionError, match="not identical: 2 difference"):
        cs.assert_trees_identical(left, right)


def test_first_element_that_differs_is_named() -> None:
    left = np.zeros((2, 3, 4), np.int16)
    right = left.copy()
    right[1, 2, 0] = right[1, 2, 3] = -1
    (fault,) = cs.differences(left, right)
    assert (fault.path, fault.expected, fault.found) == ("", "bits 0x0000", "0xffff")
    assert fault.hint == "2 of 24 elements differ, the first at [1 2 0]"


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        (1, 1.0, "x: expected a Python int, found a Python float"),
        (1, True, "x: expected a Python int, found a Python bool"),
        (1, np.int32(1), "x: expected a Python int, found a NumPy scalar"),
        (np.int32(1), np.array(1, np.int32), "x: expected a NumPy scalar, found a NumPy array"),
        (np.ones(2, np.float32), jnp.ones(2), "x: expected a NumPy array, found a jax array"),
        (
            jnp.ones(2),
            jax.ShapeDtypeStruct((2,), "float32"),
            "x: expected a jax array, found a ShapeDtypeStruct",
        ),
        (
            0.0,
            -0.0,
            "x: expected 0.0, bits 0x0000000000000000, found -0.0, bits 0x8000000000000000",
        ),
        (
            2**70,
            2**70 + 1,
            f"x: expected {2**70}, bits 0x400000000000000000, found {2**70 + 1}, bits 0x400000000000000001",
        ),
        (jnp.ones(2), jnp.ones((2, 1)), "x: expected float32[2], found float32[2 1]"),
        (jnp.ones(2), jnp.ones(2, jnp.bfloat16), "x: expected float32[2], found bfloat16[2]"),
        (
            jax.random.key(0, impl="rbg"),
            jax.random.key(0, impl="unsafe_rbg"),
            "x: expected key<rbg>[], found key<urbg>[]",
        ),
        (
            jax.random.key(0),
            jax.random.key_data(jax.random.key(0)),
            "x: expected key<fry>[], found uint32[2]",
        ),
        (
            jax.ShapeDtypeStruct((2,), "int8"),
            jax.ShapeDtypeStruct((3,), "int8"),
            "x: expected int8[2], found int8[3]",
        ),
        (
            "a",
            "b",
            "x: expected 'a', found 'b' (not the same object, and nothing that could be compared)",
        ),
    ],
)
def test_leaves_that_look_alike(left: Any, right: Any, expected: str) -> None:
    assert lines({"x": left}, {"x": right}) == [expected]


def test_numbers_equal_to_the_last_bit() -> None:
    nan = float("nan")
    assert cs.differences([1, nan, 1j, True, "a"], [1, nan, 1j, True, "a"]) == ()
    assert len(cs.differences([nan], [-nan])) == 1


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ({"a": (1, 2)}, {"a": [1, 2]}, ["a: expected a tuple, found a list"]),
        ({"a": (1, 2)}, {"a": Point(1, 2)}, ["a: expected a tuple, found a Point"]),
        (
            {"a": {"b": 1}},
            OrderedDict(a={"b": 1}),
            ["(root): expected a dict, found a OrderedDict"],
        ),
        ({"a": None}, {"a": ()}, ["a: expected a NoneType, found a tuple"]),
        (
            {"a": {"0": 1}},
            {"a": {0: 1}},
            [
                "a/'0': expected Python int 1, found nothing (near: 0)",
                "a/0: expected nothing, found Python int 1 (near: 0)",
            ],
        ),
        ({"a": 1, "b": 2}, {"a": 1}, ["b: expected Python int 2, found nothing"]),
        ({"a": {"b": 1}}, {"a": 1}, ["a: expected a dict, found Python int 1"]),
        (
            {"a": [1, 2]},
            {"a": [1, 3, 4]},
            [
                "a/2: expected nothing, found Python int 4",
                "a/1: expected 2, bits 0x2, found 3, bits 0x3",
            ],
        ),
    ],
)
def test_containers(left: Any, right: Any, expected: list[str]) -> None:
    assert lines(left, right) == expected


def test_variables_and_their_metadata() -> None:
    def state(kind: Any, **metadata: Any) -> Any:
        return nnx.State({"m": {"x": kind(jnp.ones(2), **metadata)}})

    assert cs.differences(state(nnx.Param), state(nnx.Param)) == ()
    (fault,) = cs.differences(state(nnx.Param), state(nnx.BatchStat))
    assert str(fault) == "m/x: expected a Param, found a BatchStat"
    (fault,) = cs.differences(state(nnx.Param, tag="a"), state(nnx.Param, tag="b"))
    assert (fault.path, fault.kind, fault.hint) == (
        "m/x",
        "container",
        "static data of the Param differ",
    )
    (fault,) = cs.differences(state(nnx.Param), nnx.to_pure_dict(state(nnx.Param)))
    assert str(fault) == "(root): expected a State, found a dict"


def test_static_fields_of_a_train_state() -> None:
    states = [
        TrainState.create(apply_fn=None, params={"w": jnp.ones(2)}, tx=optax.sgd(0.1))
        for _ in range(2)
    ]
    (fault,) = cs.differences(*states)
    assert fault.path == "" and "static data of the TrainState differ" in fault.hint
    assert cs.differences(states[0], states[0].replace(params={"w": jnp.ones(2)})) == ()


def test_all_differences_are_reported_beside_those_of_structure() -> None:
    found = lines({"a": 1.5, "b": {"c": (1,)}, "d": 2}, {"a": 2.5, "b": {"c": [1]}, "e": 2})
    assert [line.split(":")[0] for line in found] == ["d", "e", "b/c", "a"]


def test_shardings() -> None:
    auto, explicit = (mesh((4, 2), kind) for kind in (AxisType.Auto, AxisType.Explicit))
    x = np.arange(16, dtype=np.float32).reshape(8, 2)

    def put(on: Any, *spec: Any) -> Any:
        return jax.device_put(x, NamedSharding(on, PartitionSpec(*spec)))

    assert cs.differences(put(auto, "x"), put(auto, "x", None)) == ()
    assert cs.differences(put(auto, "x"), put(auto, ("x",))) == ()
    assert [f.kind for f in cs.differences(put(auto, "x"), put(auto, "y"))] == ["sharding"]
    assert [f.kind for f in cs.differences(put(auto, "x"), jnp.asarray(x))] == ["sharding"]
    assert [f.kind for f in cs.differences(put(auto, "x"), put(explicit, "x"))] == [
        "sharding"
    ]  # another type under jit
    assert cs.differences(put(explicit, "x"), put(explicit, "x")) == ()
    abstract = [
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=put(auto, *spec).sharding)
        for spec in (("x",), ("y",), ("x",))
    ]
    assert cs.differences(abstract[0], abstract[2]) == ()
    assert [f.kind for f in cs.differences(abstract[0], abstract[1])] == ["sharding"]
    bare = jax.ShapeDtypeStruct(x.shape, x.dtype)
    assert [f.kind for f in cs.differences(abstract[0], bare)] == ["sharding"]


def test_sharded_key_arrays() -> None:
    keys = jax.random.split(jax.random.key(0, impl="unsafe_rbg"), 8)
    placed = [
        jax.device_put(keys, NamedSharding(mesh((8,), AxisType.Auto), PartitionSpec(s)))
        for s in ("x", "x", None)
    ]
    assert cs.differences(placed[0], placed[1]) == ()
    assert [f.kind for f in cs.differences(placed[0], placed[2])] == ["sharding"]


def test_tracers_are_compared_by_identity() -> None:
    def step(x: Any, y: Any) -> Any:
        assert cs.differences({"x": x}, {"x": x}) == ()
        assert [f.kind for f in cs.differences({"x": x}, {"x": y})] == ["leaf"]
        return x

    jax.jit(step)(jnp.ones(2), jnp.ones(2))


def test_tree_that_cannot_be_read_is_an_error() -> None:
    with pytest.raises(cs.ConformanceError, match="cannot be read"):
        cs.differences({"a": 1, 0: 2}, {"a": 1})
