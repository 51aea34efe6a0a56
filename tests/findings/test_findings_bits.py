"""Values, bit for bit: what a lens once made another value of, each as a test of the value that is right."""

from __future__ import annotations

import copy
import functools
import math
import pickle
import sys
import zlib
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
from flax import nnx
from jaxtyping import (
    Array,
    Complex64,
    Complex128,
    Float32,
    Float64,
    Int32,
    Int64,
    UInt32,
)

import ckpt_schema as cs
from ckpt_schema._layouts import leaves
from ckpt_schema._lens.arrays import execution
from ckpt_schema._lens.cells import Constant
from ckpt_schema._lens.plan.tasks import applications
from ckpt_schema.errors import ConformanceError


def bits(value: Any) -> tuple[Any, ...]:
    """Dtype, shape and bytes of an array."""
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return (str(value.dtype), value.shape, np.asarray(jax.random.key_data(value)).tobytes())
    array = np.asarray(value)
    return (str(array.dtype), array.shape, np.ascontiguousarray(array).tobytes())


def plain(name: str, **leaves: Any) -> type[cs.Schema]:
    """A schema of leaves; a pair of an annotation and a field is a leaf with its field."""
    pairs = {key: leaf for key, leaf in leaves.items() if isinstance(leaf, tuple)}
    kinds = {key: pairs[key][0] if key in pairs else leaf for key, leaf in leaves.items()}
    fields = {key: leaf[1] for key, leaf in pairs.items()}
    return type(name, (cs.Schema,), {"__annotations__": kinds, **fields})


# --- 1.4: 64 bits that are NumPy's ---


@pytest.mark.parametrize(
    ("kind", "values", "other"),
    [
        (Float64, [1.0, 2.0], [1.0, 2.0 + 1e-12]),
        (Int64, [1, 2], [1, 2 + (1 << 32)]),
        (Float64, [0.0, math.nan], [-0.0, math.nan]),
    ],
)
def test_1_4_copies_of_64_bits_are_compared_by_numpy(kind: Any, values: Any, other: Any) -> None:
    old = plain("Old", a=kind[Array, " n"], b=kind[Array, " n"])
    lens = cs.derive(old, plain("New", a=kind[Array, " n"]), rules=[cs.tie("b", "a")])
    same = {"a": np.array(values), "b": np.array(values)}
    assert bits(lens.get(same)["a"]) == bits(same["a"])
    with pytest.raises(ConformanceError, match="tied leaves are not one"):
        lens.get({"a": np.array(values), "b": np.array(other)})


def test_1_4_a_copy_may_be_numpys_where_the_other_is_jaxs() -> None:
    old = plain("Old", a=Float64[Array, " n"], b=Float64[Array, " n"])
    lens = cs.derive(old, plain("New", a=Float64[Array, " n"]), rules=[cs.tie("b", "a")])
    with jax.enable_x64(True):
        wide = jnp.asarray([1.0, 2.0])
    assert lens.get({"a": np.array([1.0, 2.0]), "b": wide})
    for pair in ((wide, np.array([1.0, 2 + 1e-12])), (np.array([1.0, 2 + 1e-12]), wide)):
        with pytest.raises(ConformanceError, match=r"b  +expected what a has.*\[1\]"):
            lens.get(dict(zip("ab", pair, strict=True)))


@pytest.mark.parametrize(
    ("kind", "lost"), [(Float64, 1e-300), (Int64, 1 << 32), (Float64, -0.0), (Complex128, 1e-300j)]
)
def test_1_4_padding_of_64_bits_is_looked_at(kind: Any, lost: Any) -> None:
    padded, short = (plain("Side", a=kind[Array, size]) for size in (" padded", " vocab"))
    rule = cs.pad("a", "vocab", "padded")
    lens = cs.derive(short, padded, rules=[rule], dims={"vocab": 2, "padded": 4})
    dtype = kind.dtypes[0]
    whole = {"a": np.array([1, 2, 0, 0], dtype)}
    assert bits(lens.get(lens.put(whole))["a"]) == bits(whole["a"])
    with pytest.raises(ConformanceError, match=r"at \[0\] of it"):
        lens.put({"a": np.array([1, 2, lost, 0], dtype)})


@pytest.mark.parametrize("exponent", [-100, 100])
def test_1_4_scaled_values_of_64_bits_come_back(exponent: int) -> None:
    side = plain("Side", a=Float64[Array, " n"])
    lens = cs.derive(side, side, rules=[cs.scale("a", 2.0**exponent)])
    state = {"a": np.array([1e-200, 1.0, 1e200])}
    view = lens.get(state)
    assert bits(view["a"]) == bits(np.ldexp(state["a"], exponent))
    assert bits(lens.put(view)["a"]) == bits(state["a"])
    extreme = {"a": np.array([1.0, 1e-300 if exponent < 0 else 1e300])}
    with pytest.raises(ConformanceError, match="over- or underflows"):
        lens.get(extreme)


# --- 1.5: Python numbers for leaves of 64 bits ---


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        (Float64, 0.1),
        (Int64, 1 << 40),
        (Int64, -(1 << 63)),
        (Complex128, 0.1j),
        (Float64, -0.0),
        (UInt32, 3_000_000_000),
    ],
)
def test_1_5_a_python_number_becomes_all_of_its_64_bits(kind: Any, number: Any) -> None:
    side = plain("Side", step=kind[Array, ""])
    lens = cs.derive(side, side)
    found = lens.get({"step": number}, onto={"step": np.zeros((), kind.dtypes[0])})["step"]
    assert bits(found) == bits(np.asarray(number, kind.dtypes[0]))
    assert lens.get({"step": number}, onto={"step": type(number)(0)})["step"] == number


def test_1_5_a_number_is_cast_if_it_fits_whatever_jax_would_make_of_it() -> None:
    wide, narrow = plain("Wide", step=Int64[Array, ""]), plain("Narrow", step=Int32[Array, ""])
    lens = cs.derive(wide, narrow)
    assert bits(lens.get({"step": 5})["step"]) == bits(jnp.int32(5))
    for number in ((1 << 32) + 5, np.int64((1 << 32) + 5)):
        with pytest.raises(ConformanceError, match="would wrap"):
            lens.get({"step": number})


def test_1_5_what_jax_has_narrowed_is_said_to_be_that() -> None:
    side = plain("Side", step=Float64[Array, ""])
    with pytest.raises(ConformanceError, match="jax makes float32 of float64") as caught:
        cs.derive(side, side).get({"step": jnp.float32(0)})
    assert "jax_enable_x64" in str(caught.value)


def test_1_5_a_number_that_jax_would_narrow_does_not_go_to_a_device() -> None:
    side = plain("Side", step=Float64[Array, ""])
    with jax.enable_x64(True):
        wide = jnp.zeros((), "float64")
    with pytest.raises(ConformanceError, match="jax_enable_x64"):
        cs.derive(side, side).get({"step": 0.1}, onto={"step": wide})


def test_1_5_a_scaled_python_number() -> None:
    for kind in (Float64, Float32):
        side = plain("Side", a=kind[Array, ""])
        lens = cs.derive(side, side, rules=[cs.scale("a", 0.5)])
        assert float(lens.get({"a": 0.5})["a"]) == 0.25


# --- 1.6: 64 bits that are jax's, where jax has none ---

STACKED = plain("Inner", w=Float64[Array, " a"], c=Complex128[Array, " a"], i=Int64[Array, " a"])


def test_1_6_a_jax_array_of_64_bits_is_edited_with_64_bits_or_not_at_all() -> None:
    lists = plain("Lists", layers=(list[STACKED], cs.field(length="n")))
    stack = plain("Stack", layers=(STACKED, cs.field(scan="n", axis=0)))
    lens = cs.derive(stack, lists)
    ramp = np.pi * np.arange(1, 7).reshape(2, 3)
    host = {"layers": {"w": ramp, "c": ramp * 1j, "i": np.arange(6).reshape(2, 3) + (1 << 40)}}
    with jax.enable_x64(True):
        state = jax.tree.map(jnp.asarray, host)
        inside = lens.get(state)
    for made in (inside, lens.get(host)):
        for at in range(2):
            for name, value in host["layers"].items():
                assert bits(made["layers"][at][name]) == bits(value[at])
    with pytest.raises(ConformanceError, match="jax_enable_x64") as caught:
        lens.get(state)
    assert [fault.path for fault in caught.value.mismatches] == [
        "layers/w",
        "layers/c",
        "layers/i",
    ]
    with pytest.raises(ConformanceError, match="jax_enable_x64"):
        lens.put(inside)


def test_1_6_what_only_moves_stays_and_abstract_leaves_keep_their_64_bits() -> None:
    old = plain("Old", m=Float64[Array, "a b"], x=Float64[Array, ""])
    new = plain("New", m=(Float64[Array, "b a"], cs.field(key="mm")), x=Float64[Array, ""])
    lens = cs.derive(old, new)
    with jax.enable_x64(True):
        x = jnp.asarray(0.1)
    host = {"m": np.ones((2, 3)), "x": x}
    assert lens.get(host)["x"] is x
    shapes = {
        "m": jax.ShapeDtypeStruct((2, 3), "float64"),
        "x": jax.ShapeDtypeStruct((), "float64"),
    }
    assert lens.get(shapes)["mm"] == jax.ShapeDtypeStruct((3, 2), "float64")


def test_1_6_rules_of_values_are_refused_too() -> None:
    old = plain("Old", a=Float64[Array, "4"], t=Float64[Array, " n"], u=Float64[Array, " n"])
    new = plain("New", a=Float64[Array, "2"], t=Float64[Array, " n"])
    rules = [cs.pad("a", "2", "4"), cs.tie("u", "t"), cs.scale("t", 0.5)]
    with jax.enable_x64(True):
        state = {"a": jnp.zeros(4), "t": jnp.ones(2), "u": jnp.ones(2)}
        assert cs.derive(old, new, rules=rules).get(state)["t"].tolist() == [0.5, 0.5]
    with pytest.raises(ConformanceError, match="jax_enable_x64") as caught:
        cs.derive(old, new, rules=rules).get(state)
    assert {fault.path for fault in caught.value.mismatches} == {"a", "t", "u"}


# --- 1.7: numbers are equal when their bits are ---


def test_1_7_minus_zero_is_not_zero_in_edits_and_rules_and_defaults() -> None:
    nans = [
        np.array([word], np.uint64).view(np.float64)[0].item()
        for word in (0x7FF8 << 48, 0x7FF8000000000001)
    ]
    for one, other in ((0.0, -0.0), (0, -0.0), (nans[0], nans[1]), (1.0, 2.0)):
        assert cs.pad("a", "n", "m", fill=one) != cs.pad("a", "n", "m", fill=other)
        assert cs.private("a", one) != cs.private("a", other)
        fills = [Constant(leaves.Fill(fill), is_fill=True) for fill in (one, other)]
        assert fills[0] != fills[1]
    again = np.array([0x7FF8000000000001], np.uint64).view(np.float64)[0].item()
    for one, other in ((0, 0.0), (nans[1], again), (1, 1.0)):
        assert cs.pad("a", "n", "m", fill=one) == cs.pad("a", "n", "m", fill=other)
        fills = [Constant(leaves.Fill(fill), is_fill=True) for fill in (one, other)]
        assert fills[0] == fills[1]


def test_1_7_two_lenses_of_one_process_pad_each_with_its_own_zero() -> None:
    padded, short = (plain("Side", a=Float32[Array, size]) for size in (" padded", " vocab"))
    for fill in (0.0, -0.0):
        sizes = {"vocab": 2, "padded": 4}
        lens = cs.derive(
            short, padded, rules=[cs.pad("a", "vocab", "padded", fill=fill)], dims=sizes
        )
        found = np.asarray(lens.get({"a": jnp.ones(2)})["a"])
        assert np.signbit(found[2:]).tolist() == [math.copysign(1, fill) < 0] * 2
    complex_ = [plain("Side", a=Complex64[Array, size]) for size in (" vocab", " padded")]
    with pytest.raises(cs.CkptSchemaError, match=r"not padded with -0\.0"):
        cs.derive(*complex_, rules=[cs.pad("a", "vocab", "padded", fill=-0.0)])


@pytest.mark.parametrize("other", [-0.0, 1.0])
def test_1_7_paddings_that_differ_do_not_cancel(other: float) -> None:
    padded, short = (plain("Side", a=Float32[Array, size]) for size in (" padded", " vocab"))
    sizes = {"vocab": 2, "padded": 4}

    def to(fill: float) -> cs.Lens:
        return cs.derive(
            short, padded, rules=[cs.pad("a", "vocab", "padded", fill=fill)], dims=sizes
        )

    with pytest.raises(cs.CkptSchemaError, match="one fill in the padding of padded"):
        to(0.0) >> ~to(other)
    state = {"a": np.array([1, 2, 0, 0], "float32")}
    both = ~to(0.0) >> to(other)
    assert bits(both.get(state)["a"]) == bits(np.array([1, 2, other, other], "float32"))
    assert bits(both.put(both.get(state))["a"]) == bits(state["a"])
    with pytest.raises(ConformanceError, match="in the padding"):
        both.put(state)
    again = both >> ~to(other)
    assert bits(again.get(state)["a"]) == bits(state["a"][:2])
    assert bits((again >> to(0.0)).get(state)["a"]) == bits(state["a"])
    assert bits((to(0.0) >> both).get({"a": state["a"][:2]})["a"]) == bits(both.get(state)["a"])


@pytest.mark.parametrize("fill", [0.0, -0.0])
def test_1_7_a_default_is_the_zero_that_is_declared(fill: float) -> None:
    lens = cs.derive(
        plain("One", b=Float32[Array, ""]),
        plain("Two", a=(Float32[Array, ""], cs.field(default=fill)), b=Float32[Array, ""]),
    )
    like = {
        "a": jax.ShapeDtypeStruct((), "float32", sharding=jnp.ones(()).sharding),
        "b": jnp.ones(()),
    }
    found = lens.get({"b": jnp.ones(())}, onto=like)["a"]
    assert np.signbit(np.asarray(found)) == np.signbit(fill)


# --- 1.8: what shares a buffer with what is needed is not freed ---


def test_1_8_donation_counts_buffers() -> None:
    old = plain("Old", x=Int32[Array, "a b"], y=Int32[Array, "a b"], z=Int32[Array, "1*c"])
    new = plain("New", x=Int32[Array, "b a"], y=Int32[Array, "a b"], z=Int32[Array, " c"])
    lens = cs.derive(old, new)
    x, z = jnp.arange(6).reshape(2, 3), jnp.arange(5)
    found = lens.get({"x": x, "y": jax.device_put(x, x.sharding), "z": z}, donate=True)
    assert np.asarray(found["y"]).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert np.asarray(found["x"]).tolist() == [[0, 3], [1, 4], [2, 5]]
    assert np.asarray(found["z"]).tolist() == [0, 1, 2, 3, 4]
    alone = jnp.arange(6).reshape(2, 3)
    lens.get({"x": alone, "y": jnp.zeros((2, 3), int), "z": jnp.arange(5)}, donate=True)
    assert alone.is_deleted()


def test_1_8_a_key_and_its_data_are_one_buffer() -> None:
    old = plain("Old", x=cs.Key["fry", "a b"], y=UInt32[Array, "a b 2"])
    new = plain("New", x=cs.Key["fry", "b a"], y=UInt32[Array, "a b 2"])
    keys = jax.random.split(jax.random.key(0, impl="threefry2x32"), (2, 3))
    data = np.asarray(jax.random.key_data(keys)).copy()
    state = {"x": keys, "y": jax.random.key_data(keys)}
    found = cs.derive(old, new).get(state, onto=None, donate=True)
    assert np.array_equal(np.asarray(found["y"]), data)
    assert np.array_equal(jax.random.key_data(found["x"]), data.swapaxes(0, 1))


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (1, 1), (5, 5)])
def test_1_8_a_donated_leaf_is_turned_whatever_its_shape(shape: tuple[int, int]) -> None:
    lens = cs.derive(plain("Old", x=Int32[Array, "a b"]), plain("New", x=Int32[Array, "b a"]))
    ramp = np.arange(shape[0] * shape[1], dtype="int32").reshape(shape)
    assert bits(lens.get({"x": jnp.asarray(ramp)}, donate=True)["x"]) == bits(ramp.T)


@pytest.mark.parametrize("depth", [1, 11])
def test_1_8_donated_stacks_come_back(depth: int) -> None:
    layer = plain("Layer", w=Int32[Array, " a"], k=cs.Key["fry"], c=Complex64[Array, " a"])
    stack = plain("Stack", layers=(layer, cs.field(scan="d", axis=0)))
    lens = cs.derive(stack, plain("List", layers=(list[layer], cs.field(length="d"))))
    ramp = jnp.arange(depth * 3).reshape(depth, 3)
    keys = jax.random.split(jax.random.key(0, impl="threefry2x32"), depth)
    state = {"layers": {"w": ramp, "k": keys, "c": ramp * 1j + 1}}
    before = {name: bits(leaf) for name, leaf in state["layers"].items()}
    back = lens.put(lens.get(state, donate=True), donate=True)["layers"]
    assert {name: bits(leaf) for name, leaf in back.items()} == before


def test_1_8_what_onto_holds_is_needed_too() -> None:
    old = plain("Old", x=Int32[Array, "a b"])
    new = plain("New", x=Int32[Array, "b a"], own=(Int32[Array, "a b"], cs.field(default=0)))
    x = jnp.arange(6).reshape(2, 3)
    onto = {"x": jnp.zeros((3, 2), int), "own": jax.device_put(x, x.sharding)}
    found = cs.derive(old, new).get({"x": x}, onto=onto, donate=True)
    assert np.asarray(found["own"]).tolist() == [[0, 1, 2], [3, 4, 5]]


# --- 1.12: an int key has one spelling on disk ---


@pytest.mark.parametrize(
    "keys", [["\u0660", "\u0661"], ["00", "01"], ["0", "\u0661"], ["0", "1" * 5000]]
)
def test_1_12_a_string_of_digits_is_an_int_key_in_one_spelling(keys: Any) -> None:
    lists = plain("Lists", layers=(list[Float32[Array, " a"]], cs.field(length="n")))
    good = {"layers": {"0": jnp.ones(2), "1": jnp.ones(2)}}
    assert cs.check(lists, good) == []
    assert cs.check(lists, {"layers": dict.fromkeys(keys, jnp.ones(2))}) != []


def test_1_12_a_pattern_has_int_keys_in_one_spelling_too() -> None:
    side = plain("Side", a=(Float32[Array, ""], cs.field(key="00")))
    assert cs.check(side, {"00": jnp.ones(())}) == []
    assert cs.check(side, {"0": jnp.ones(())}) != []


# --- 1.14: checks look inside ---


def test_1_14_values_are_checked_inside_parts() -> None:
    apart = plain("Apart", p=Int32[Array, " a"], q=UInt32[Array, " a"])
    fused = plain("Fused", w=UInt32[Array, "2*a"])
    lens = cs.derive(apart, fused, rules=[cs.fuse("w", ["p", "q"])])
    good, bad, high = (np.array(x, "int32") for x in ([1, 2], [1, -1], [1, -1]))
    for to in (np.asarray, jnp.asarray):
        own = to(good.astype("uint32"))
        whole = lens.get({"p": to(good), "q": own})["w"]
        assert np.asarray(whole).tolist() == [1, 2, 1, 2]
        with pytest.raises(ConformanceError, match=r"p  expected values of uint32.*found -1 to 1"):
            lens.get({"p": to(bad), "q": own})
        large = to(high.view("uint32"))
        kept = lens.put({"w": to(np.concatenate([good.view("uint32"), high.view("uint32")]))})
        assert np.array_equal(kept["q"], large)
        with pytest.raises(ConformanceError, match=r"w  expected values of int32.*1 to 4294967295"):
            lens.put({"w": to(np.concatenate([high.view("uint32"), good.view("uint32")]))})


def test_1_14_what_computes_inside_parts_computes_on_floats() -> None:
    apart = plain("Apart", p=Float32[Array, " a"], q=Float32[Array, " a"])
    fused = plain("Fused", w=Float32[Array, "2*a"])
    lens = cs.derive(apart, fused, rules=[cs.fuse("w", ["p", "q"]), cs.scale("p", 2)])
    rows = lens.source.rows, lens.view.rows
    (made,) = applications(lens.joins[0], rows, {"a": 2})
    values = [jnp.asarray([1.0, jnp.nan]), jnp.asarray([3.0, 4.0])]
    found = jax.jit(lambda *xs: execution.run(made.task, xs, [None]))(*values)
    assert np.array_equal(np.asarray(found[0]), [2, np.nan, 3, 4], equal_nan=True)


# --- 1.11: default keys ---

IMPLS = {"fry": "threefry2x32", "rbg": "rbg", "urbg": "unsafe_rbg"}


def key_at(seed: int, impl: str, path: str, number: int | None = None) -> Any:
    """The default key of a path, and of one repeat of it."""
    folded = jax.random.fold_in(jax.random.key(seed, impl=IMPLS[impl]), zlib.crc32(path.encode()))
    return folded if number is None else jax.random.fold_in(folded, number)


@pytest.mark.parametrize("impl", IMPLS)
def test_1_11_default_keys_differ_by_stream_and_by_layer(impl: str) -> None:
    layer = plain(
        "Layer",
        dropout=(cs.Stream[impl], cs.field(default=cs.fresh_key(3))),
        noise=(cs.Key[impl], cs.field(default=cs.fresh_key(3))),
        own=(cs.Key[impl, "2"], cs.field(default=cs.constant_key(3))),
        w=Float32[Array, ""],
    )
    bare = plain("Bare", w=Float32[Array, ""])
    outer = plain("Outer", inner=(list[layer], cs.field(length="n")))
    inside = plain("Inside", inner=(list[bare], cs.field(length="n")))
    view = plain("View", layers=(outer, cs.field(scan="m", axis=0)), top=(layer, cs.field()))
    source = plain("Source", layers=(inside, cs.field(scan="m", axis=0)), top=(bare, cs.field()))
    weights = {"layers": {"inner": {i: {"w": jnp.ones(2)} for i in range(3)}}}
    state = {**weights, "top": {"w": jnp.ones(())}}
    bound = cs.linen.Params[source], cs.nnx.Params[view]
    made = cs.derive(*bound).get({"params": state})
    stacked = made["layers"]["inner"]
    top = made["top"]["noise"][...], made["top"]["dropout"]["key"][...]
    found = dict(zip((("top/noise", None), ("top/dropout/key", None)), top, strict=True))
    for path, number in found:
        assert bits(found[path, number]) == bits(key_at(3, impl, path))
    for outermost in range(2):
        for at in range(3):
            for path in ("noise", "dropout/key"):
                leaf = stacked[at][path] if path == "noise" else stacked[at]["dropout"]["key"]
                number = outermost * 3 + at
                found[path, number] = leaf[...][outermost]
                expected = key_at(3, impl, f"layers[]/inner[]/{path}", number)
                assert bits(found[path, number]) == bits(expected)
            assert int(stacked[at]["dropout"]["count"][...][outermost]) == 0
            constant = jax.random.key(3, impl=IMPLS[impl])
            assert bits(stacked[at]["own"][...][outermost, 1]) == bits(constant)
    assert len({bits(key) for key in found.values()}) == 14


@pytest.mark.parametrize("impl", IMPLS)
def test_1_11_a_stack_has_the_keys_of_a_list(impl: str) -> None:
    weight = Float32[Array, ""], cs.field(axis=0)
    key = cs.Key[impl, "2"], cs.field(default=cs.fresh_key(0))
    layer, bare = plain("Layer", w=weight, key=key), plain("Bare", w=weight)
    source = plain("Source", layers=(bare, cs.field(scan="n", axis=0)))
    first, second, lists, spelled = (
        plain("View", layers=(kind, field))
        for kind, field in (
            (layer, cs.field(scan="n", axis=0)),
            (layer, cs.field(scan="n", axis=1)),
            (list[layer], cs.field(length="n")),
            (list[layer], cs.field(length="n", key="h_{i+1}")),
        )
    )
    state = {"layers": {"w": jnp.ones(3)}}
    over = jax.sharding.NamedSharding(jax.make_mesh((2,), ("x",)), jax.sharding.PartitionSpec())
    stacked = cs.derive(source, second)
    keys = stacked.get(state)["layers"]["key"]
    assert bits(jax.jit(stacked.get)(state)["layers"]["key"]) == bits(keys)
    ways = [
        cs.derive(source, first).get(state)["layers"]["key"],
        [cs.derive(source, lists).get(state)["layers"][at]["key"] for at in range(3)],
        [cs.derive(source, spelled).get(state)[f"h_{at + 1}"]["key"] for at in range(3)],
        stacked.get(jax.device_put(state, over))["layers"]["key"].swapaxes(0, 1),
        keys.swapaxes(0, 1),
    ]
    for at in range(3):
        expected = jnp.broadcast_to(key_at(0, impl, "layers[]/key", at), 2)
        assert [bits(found[at]) for found in ways] == [bits(expected)] * len(ways)


def test_1_11_a_target_keeps_its_own_streams() -> None:
    layer = plain(
        "Layer", w=Float32[Array, ""], key=(cs.Key["fry"], cs.field(default=cs.fresh_key(0)))
    )
    lens = cs.derive(plain("Bare", w=Float32[Array, ""]), layer)
    own = jax.random.key(9, impl="threefry2x32")
    assert lens.get({"w": jnp.ones(())}, onto={"w": jnp.ones(()), "key": own})["key"] is own


# --- 1.9: what changes in place ---

DENSE = plain("Dense", kernel=Float32[Array, "a b"])
LISTED = cs.nnx.Params[plain("Listed", layers=(list[DENSE], cs.field(length="n")))]
TO_LISTED = cs.derive(
    cs.linen.Params[plain("Scanned", layers=(DENSE, cs.field(scan="n", axis=0)))], LISTED
)
KERNELS = np.arange(12, dtype="float32").reshape(2, 2, 3)
SCANNED = {"params": {"layers": {"kernel": jnp.asarray(KERNELS)}}}


class Layers(nnx.Module):
    """Two layers, of Variables made so."""

    def __init__(self, **how: bool) -> None:
        self.layers = nnx.List(
            [nnx.Dict(kernel=nnx.Param(jnp.zeros((2, 3)), **how)) for _ in range(2)]
        )


@pytest.mark.parametrize("how", [{}, {"ref": True}, {"hijax": True}])
def test_1_9_a_module_of_references_is_saved_and_restored_as_any(how: Any, tmp_path: Path) -> None:
    cs.orbax.save(tmp_path / "scanned", SCANNED, TO_LISTED)
    module = Layers(**how)
    before = [layer["kernel"] for layer in module.layers]
    raw = [x.get_raw_value() for x in before]
    told = [x.get_metadata() for x in before]
    assert cs.orbax.restore(tmp_path / "scanned", module, TO_LISTED) is module
    for at, (variable, metadata) in enumerate(zip(before, told, strict=True)):
        assert module.layers[at]["kernel"] is variable
        assert variable.get_metadata() == metadata
        assert bits(variable[...]) == bits(KERNELS[at])
        if "ref" in how:
            assert variable.get_raw_value() is raw[at]
            assert bits(raw[at][...]) == bits(KERNELS[at])
    cs.orbax.save(tmp_path / "listed", module, TO_LISTED)
    back = cs.orbax.restore(tmp_path / "listed", SCANNED, TO_LISTED)
    assert bits(back["params"]["layers"]["kernel"]) == bits(KERNELS)
    assert str(cs.infer(module)) == str(cs.infer(Layers()))


@pytest.mark.parametrize("how", [{"ref": True}, {"hijax": True}])
def test_1_9_a_state_of_references_is_refused_by_name(how: Any, tmp_path: Path) -> None:
    state = nnx.state(Layers(**how))
    TO_LISTED.put(nnx.state(Layers()))  # whose plan takes no references either
    for refused in (
        lambda: TO_LISTED.get(SCANNED, onto=state),
        lambda: TO_LISTED.put(state),
        lambda: cs.orbax.save(tmp_path / "x", state, TO_LISTED),
    ):
        with pytest.raises(cs.CkptSchemaError, match="it changes in place"):
            refused()
    assert not (tmp_path / "x").exists()


def test_1_9_references_are_no_leaves() -> None:
    one, other = plain("One", k=Float32[Array, "a b"]), plain("Other", k=Float32[Array, "b a"])
    for lens in (cs.derive(one, other), cs.derive(one, one)):
        lens.get({"k": jnp.ones((2, 3))})
        for make in (jax.new_ref, lambda x: nnx.Param(x, hijax=True)):
            with pytest.raises(ConformanceError, match="it changes in place"):
                lens.get({"k": make(jnp.ones((2, 3)))})


# --- 1.10: targets that hold modules ---


class Small(nnx.Pytree):
    """A model that is no Module."""

    def __init__(self, seed: int) -> None:
        self.body = nnx.Linear(2, 3, rngs=nnx.Rngs(seed))


SMALL = plain(
    "SmallSchema", body=plain("Body", kernel=Float32[Array, "a b"], bias=Float32[Array, " b"])
)
TX = optax.adam(1e-3)
STATES = cs.derive(cs.linen.BareTrainState[SMALL, TX], cs.nnx.TrainState[SMALL, TX])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A train state on disk, and its params."""
    params = {"body": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.arange(3.0)}}
    grads = jax.tree.map(lambda x: x + 1, params)
    path = tmp_path_factory.mktemp("states") / "0"
    state = {"step": 7, "params": params, "opt_state": TX.update(grads, TX.init(params), params)[1]}
    cs.orbax.save(path, state, STATES)
    return path, params["body"]["kernel"]


@pytest.mark.parametrize("wrap", [dict, nnx.Dict, lambda **parts: {**parts}])
def test_1_10_a_dict_of_modules_is_updated_in_place(wrap: Any, saved: Any) -> None:
    path, kernel = saved
    model = Small(9)
    optimizer = nnx.Optimizer(model, TX, wrt=nnx.Param)
    target = wrap(model=model, optimizer=optimizer)
    restored = cs.orbax.restore(path, target, STATES)
    assert restored["model"] is model
    assert restored["optimizer"] is optimizer
    assert bits(model.body.kernel[...]) == bits(kernel)
    moments = nnx.state(optimizer)["opt_state"][0]["mu"]["body"]["kernel"][...]
    assert bits(moments) == bits(jnp.float32(0.1) * (kernel + 1))
    assert int(optimizer.step[...]) == 7


def test_1_10_a_pytree_that_is_no_module_is_updated(saved: Any, tmp_path: Path) -> None:
    path, kernel = saved
    lens = cs.derive(cs.linen.BareParams[SMALL], cs.nnx.Params[SMALL])
    model = Small(9)
    assert cs.orbax.restore(path, model, lens) is model
    assert bits(model.body.kernel[...]) == bits(kernel)
    cs.orbax.save(tmp_path / "small", model, lens)
    again = Small(1)
    cs.orbax.restore(tmp_path / "small", again, lens)
    assert bits(again.body.kernel[...]) == bits(kernel)


def test_1_10_modules_stand_beside_arrays_and_apart(tmp_path: Path) -> None:
    both = plain("Both", model=SMALL, step=Int32[Array, ""], other=SMALL)
    lens = cs.derive(both, both)

    def target(seed: int) -> Any:
        return {"model": Small(seed), "step": jnp.int32(seed), "other": Small(seed + 1)}

    state = target(3)
    cs.orbax.save(tmp_path / "both", state, lens, side="source")
    goal = target(5)
    found = cs.orbax.restore(
        tmp_path / "both", goal, lens, target_side="source", disk_side="source"
    )
    assert found["model"] is goal["model"]
    assert found["other"] is goal["other"]
    assert int(found["step"]) == 3
    for name in ("model", "other"):
        assert bits(goal[name].body.kernel[...]) == bits(state[name].body.kernel[...])
    twice = {**goal, "other": goal["model"]}
    with pytest.raises(cs.CkptSchemaError, match="share Variables"):
        cs.orbax.restore(tmp_path / "both", twice, lens)


# --- 1.13: nothing is dropped without a word ---


def test_1_13_an_optional_leaf_that_onto_lacks_is_an_error_unless_it_may_be_dropped() -> None:
    head = Float32[Array, " a"], cs.field(optional=True)
    cache = Float32[Array, ""], cs.field(optional=True, ephemeral=True)
    spelled = head[0], cs.field(key="top", optional=True)
    one = plain("One", w=Float32[Array, ""], head=head, cache=cache)
    lens = cs.derive(one, plain("View", w=Float32[Array, ""], head=spelled, cache=cache))
    whole = {"w": jnp.ones(()), "head": jnp.ones(2), "cache": jnp.ones(())}
    bare = {"w": jnp.zeros(())}
    for _ in range(2):  # with a plan that is known too
        with pytest.raises(ConformanceError, match="drop=True") as caught:
            lens.get(whole, onto=bare)
        assert [(fault.path, fault.kind) for fault in caught.value.mismatches] == [
            ("head", "dropped")
        ]
        assert lens.get(whole, onto=bare, drop=True).keys() == {"w"}
    with pytest.raises(ConformanceError, match="drop=True"):
        lens.dry_run(whole, onto=bare)
    lens.dry_run(whole, onto=bare, drop=True)
    with pytest.raises(ConformanceError, match="onto lacks leaves of One"):
        lens.put(lens.get(whole), onto=bare)
    assert lens.put(lens.get(whole), onto=bare, drop=True).keys() == {"w"}
    assert lens.get(bare, onto=lens.get(whole)).keys() == {"w", "top", "cache"}


def test_1_13_a_leaf_that_is_its_default_is_not_lost() -> None:
    told = Float32[Array, " a"], cs.field(optional=True)
    key = cs.Key["fry"], cs.field(optional=True, default=cs.fresh_key(1))
    made = told[0], cs.field(optional=True, default=2)
    keys = key[0], cs.field(optional=True)
    one = plain("One", w=Float32[Array, " a"], own=told, key=keys)
    lens = cs.derive(one, plain("Two", w=Float32[Array, " a"], own=made, key=key))
    bare = {"w": jnp.ones(2)}
    view = lens.get(bare)
    assert view.keys() == {"w", "own", "key"}
    assert lens.put(view, onto=bare).keys() == {"w"}
    for name, other in (("own", jnp.float32([2, 3])), ("key", jax.random.key(1))):
        with pytest.raises(ConformanceError, match="drop=True") as caught:
            lens.put({**view, name: other}, onto=bare)
        assert [fault.path for fault in caught.value.mismatches] == [name]


def test_1_13_a_restore_reads_what_the_target_has_a_place_for(tmp_path: Path) -> None:
    head = Float32[Array, " a"], cs.field(optional=True)
    one = plain("One", w=Float32[Array, ""], head=head)
    other = plain("Other", weight=(Float32[Array, ""], cs.field(key="w")), head=head)
    lens = cs.derive(one, other, rules=[cs.rename("w", "weight")])
    cs.orbax.save(tmp_path / "x", {"w": jnp.ones(()), "head": jnp.ones(2)}, lens, side="source")
    target = {"w": jnp.zeros(())}
    found = cs.orbax.restore(tmp_path / "x", target, lens, target_side="view", disk_side="source")
    assert found == {"w": 1}


# --- Raw exceptions of values, and what they cost ---

TURNED = cs.derive(
    plain("Before", a=Float32[Array, "a b"], n=Int32[Array, ""]),
    plain("After", a=Float32[Array, "b a"], n=Int32[Array, ""]),
)
SOUND = {"a": jnp.ones((2, 3)), "n": jnp.int32(1)}
HUGE = 10**5000
ODD = {
    "str": "x",
    "bytes": b"x",
    "object": object(),
    "objects": np.array([object(), object()]),
    "dates": np.array(["2020-01-01"], "datetime64[D]"),
    "big endian": np.ones((2, 3), ">f4"),
    "strings": np.array(["a"]),
    "void": np.zeros(2, "V2"),
    "records": np.zeros(2, [("a", "f4"), ("b", "i4")]),
    "10**400": 10**400,
    "10**5000": HUGE,
    "-10**5000": -HUGE,
    "complex": 1j,
    "set": {1},
    "class": int,
}


@pytest.mark.parametrize("name", ODD)
def test_4_a_leaf_of_any_kind_is_a_named_fault(name: str) -> None:
    view = TURNED.get(SOUND)
    for key in ("a", "n"):
        tree = {**SOUND, key: ODD[name]}
        assert [fault.path for fault in cs.check(TURNED.source, tree)] == [key]
        for refused in (
            lambda tree=tree: TURNED.get(tree),
            lambda key=key: TURNED.get(SOUND, onto={**view, key: ODD[name]}),
        ):
            with pytest.raises(ConformanceError, match=f"{key} +expected"):
                refused()
        assert [fault.path for fault in cs.differences(SOUND, tree)] == [key]
    if name != "complex":
        try:
            assert isinstance(cs.infer(tree), cs.Layout)
        except cs.CkptSchemaError as error:
            assert [fault.path for fault in error.mismatches] == ["n"]


class Config(dict[str, Any]):
    """A dict that jax takes for a leaf."""


def test_4_a_dict_that_jax_takes_for_a_leaf_is_told_so() -> None:
    inner = plain("Inner", x=Int32[Array, " a"])
    side = plain("Side", m=inner, n=Int32[Array, ""])
    lens = cs.derive(side, side)
    good = {"m": {"x": jnp.arange(2)}, "n": 1}
    assert lens.get(good)
    for wrong in ({**good, "m": Config(good["m"])}, {**good, "n": Config()}):
        with pytest.raises(ConformanceError, match="for one leaf: make it a plain dict"):
            lens.get(wrong)


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("str", "no array of jax holds text"),
        ("strings", "no array of jax holds text"),
        ("records", "no array of jax holds records"),
        ("objects", "no array of jax holds objects"),
        ("dates", "no array of jax holds dates"),
        ("big endian", 'x.astype("float32") has them'),
    ],
)
def test_4_what_no_array_of_jax_holds_is_not_to_be_cast(name: str, cure: str) -> None:
    tree = {**SOUND, "a": ODD[name]}
    with pytest.raises(cs.CkptSchemaError) as inferred:
        cs.infer(tree)
    for faults in (cs.check(TURNED.source, tree).mismatches, inferred.value.mismatches):
        assert [(fault.path, cure in fault.hint) for fault in faults] == [("a", True)]


def test_a_result_has_the_containers_of_its_target_whatever_came_before() -> None:
    inner = plain("Inner", x=Int32[Array, " a"], y=Int32[Array, ""])
    side = plain("Side", m=inner)
    lens = cs.derive(side, side)
    leaves = {"x": jnp.arange(2), "y": jnp.int32(1)}
    for kind in (dict, OrderedDict, functools.partial(defaultdict, int), dict):
        target = {"m": kind(reversed(leaves.items()))}
        found = lens.get({"m": leaves}, onto=target)
        assert type(found["m"]) is type(target["m"])
        if kind is OrderedDict:
            assert list(found["m"]) == list(target["m"])
        assert not cs.differences(lens.get(lens.put(target), onto=target), target)


def test_a_lens_that_was_used_is_copied_and_pickled() -> None:
    view = TURNED.get(SOUND)
    for copied in (copy.deepcopy(TURNED), pickle.loads(pickle.dumps(cs.derive(Wide, Tall)))):
        found = copied.get(SOUND)
        assert bits(found["a"]) == bits(view["a"])


class Wide(cs.Schema):
    """A class that a pickle can name."""

    a: Float32[Array, "a b"]
    n: Int32[Array, ""]


class Tall(cs.Schema):
    """The same, turned."""

    a: Float32[Array, "b a"]
    n: Int32[Array, ""]


def test_4_what_cannot_be_compared_is_said_to_differ() -> None:
    empty, numbers = np.zeros(0), np.array(["a", "b"])
    for left, right in (
        ("s", empty),
        (empty, "s"),
        (b"x", "x"),
        ("s", jnp.zeros((0, 2))),
        ("s", np.zeros(2)),
        (np.zeros(2), numbers),
        (np.array([object()]), np.array([object()])),
        (HUGE, HUGE + 1),
        ("s", jax.random.key(0)),
    ):
        assert [fault.path for fault in cs.differences({"x": left}, {"x": right})] == ["x"]
    for same in ("s", HUGE, numbers):
        assert not cs.differences({"x": same}, {"x": same})


@pytest.mark.parametrize(
    ("kind", "number"),
    [(Int32, 10**400), (Float32, HUGE), (Complex64, complex(1e300, math.nan)), (Float32, 1e300)],
    ids=["10**400", "10**5000", "half a NaN", "1e300"],
)
def test_4_a_number_that_no_element_holds_is_refused(kind: Any, number: Any) -> None:
    side = plain("Side", n=kind[Array, ""])
    with pytest.raises(ConformanceError, match=r"n +expected"):
        cs.derive(side, side).get({"n": number})
    for rule in (
        lambda: cs.derive(side, plain("Bare"), rules=[cs.private("n", number)]),
        lambda: plain("Told", n=(kind[Array, ""], cs.field(default=number))),
    ):
        with pytest.raises(cs.CkptSchemaError):
            rule()
    assert str(cs.private("n", HUGE)).startswith("private('n', ")


def donated(value: Any) -> Any:
    """An array that is no more."""
    value.delete()
    return value


def test_4_a_deleted_array_is_a_named_fault_where_it_is_read() -> None:
    keys = plain("Keys", k=cs.Key["fry", "a b"]), plain("Turned", k=cs.Key["fry", "b a"])
    cast = plain("Signed", n=Int32[Array, ""]), plain("Unsigned", n=UInt32[Array, ""])
    twice = plain("Twice", p=Float32[Array, " a"], q=Float32[Array, " a"])
    tied = cs.derive(twice, plain("Once", p=Float32[Array, " a"]), rules=[cs.tie("q", "p")])
    random = jax.random.split(jax.random.key(0, impl="threefry2x32"), (2, 3))
    for lens, tree, path in (
        (TURNED, {**SOUND, "a": donated(jnp.ones((2, 3)))}, "a"),
        (cs.derive(*keys), {"k": donated(random)}, "k"),
        (cs.derive(*cast), {"n": donated(jnp.int32(5))}, "n"),
        (tied, {"p": jnp.ones(2), "q": donated(jnp.ones(2))}, "q"),
    ):
        for donate in (False, True):
            with pytest.raises(ConformanceError, match="deleted") as caught:
                lens.get(tree, donate=donate)
            assert [fault.path for fault in caught.value.mismatches] == [path]
    left, right = {"a": donated(jnp.ones(2))}, {"a": jnp.ones(2)}
    for pair in ((left, right), (right, left)):
        assert [fault.kind for fault in cs.differences(*pair)] == ["deleted"]


def test_4_layers_on_different_devices_are_a_named_fault() -> None:
    lists = plain("Lists", layers=(list[Float32[Array, " a"]], cs.field(length="n")))
    lens = cs.derive(
        lists, plain("Stack", layers=(Float32[Array, " a"], cs.field(scan="n", axis=0)))
    )
    devices = jax.devices()
    spec = jax.sharding.PartitionSpec("x")

    def over(at: int, kind: Any = jax.sharding.AxisType.Auto) -> Any:
        mesh = jax.make_mesh((2,), ("x",), devices=devices[at : at + 2], axis_types=(kind,))
        return jax.sharding.NamedSharding(mesh, spec)

    layer = np.arange(4, dtype="float32")
    for first, second in ((devices[0], devices[1]), (over(0), over(2)), (devices[0], over(2))):
        tree = {"layers": {i: jax.device_put(layer, to) for i, to in enumerate((first, second))}}
        with pytest.raises(ConformanceError, match=r"jax\.device_put") as caught:
            lens.get(tree)
        assert [fault.path for fault in caught.value.mismatches] == ["layers/1"]
    for kind in jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit:
        placed = jax.device_put(layer, over(2, kind))
        for loose in (layer, jnp.asarray(layer)):  # nobody said where these go
            found = lens.get({"layers": {0: loose, 1: placed}})["layers"]
            assert bits(found) == bits(np.stack([layer, layer]))
            assert found.sharding.mesh == placed.sharding.mesh


@pytest.mark.parametrize("name", ["int2", "uint2"])
def test_4_a_join_that_ends_the_process_is_refused(name: str) -> None:
    leaf = type(name, (jaxtyping.AbstractDtype,), {"dtypes": [name]})[Array, " a"]
    whole = type(name, (jaxtyping.AbstractDtype,), {"dtypes": [name]})[Array, "2*a"]
    rule = cs.fuse("w", ["p", "q"])
    lens = cs.derive(plain("Parts", p=leaf, q=leaf), plain("Whole", w=whole), rules=[rule])
    host = {"p": np.array([0, 1, 1], jnp.dtype(name)), "q": np.array([1, 0, 1], jnp.dtype(name))}
    assert bits(lens.get(host)["w"]) == bits(np.concatenate([host["p"], host["q"]]))
    state = jax.tree.map(jnp.asarray, host)
    for get in (lens.get, jax.jit(lens.get)):
        with pytest.raises(ConformanceError, match="XLA ends the process"):
            get(state)
    assert bits(lens.put(lens.get(host))["q"]) == bits(host["q"])
    with pytest.raises(ConformanceError, match="XLA ends the process"):
        lens.put({"w": jnp.asarray(lens.get(host)["w"])})


@pytest.mark.parametrize(
    "name", ["float8_e4m3fn", "float8_e5m2", "float4_e2m1fn", "float8_e8m0fnu"]
)
def test_4_floats_of_a_byte_are_not_scaled(name: str) -> None:
    leaf = type(name, (jaxtyping.AbstractDtype,), {"dtypes": [name]})[Array, " a"]
    side = plain("Side", a=leaf)
    with pytest.raises(cs.CkptSchemaError, match="too few values to be scaled") as caught:
        cs.derive(side, side, rules=[cs.scale("a", 2.0)])
    assert len(caught.value.mismatches) == 1


def test_4_a_fault_of_a_leaf_is_not_told_twice() -> None:
    padded, short = (plain("Side", a=Int32[Array, size]) for size in (" padded", " vocab"))
    with pytest.raises(cs.CkptSchemaError, match="is not padded with") as caught:
        cs.derive(padded, short, rules=[cs.pad("a", "vocab", "padded", fill=0.5)])
    assert len(caught.value.mismatches) == 1


def lines_run(work: Callable[[], Any]) -> int:
    """How many lines of Python some work takes: what it costs, on any machine."""
    count = 0

    def trace(frame: Any, event: str, arg: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def test_5_ten_times_the_python_numbers_cost_ten_times_as_much() -> None:
    def cost(number: int) -> int:
        side = plain("Side", **{f"a{at}": Int32[Array, ""] for at in range(number)})
        lens, tree = cs.derive(side, side), {f"a{at}": at for at in range(number)}
        return lines_run(lambda: lens.get(tree))

    cost(2)  # what is done once
    assert cost(400) <= 12 * cost(40)
