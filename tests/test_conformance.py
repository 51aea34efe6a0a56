"""``check`` and ``assert_conforms``: every kind of mismatch, all of them at once, on arrays, abstract values and tracers."""

from __future__ import annotations

import copy
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax_models import (
    OPTIMIZERS,
    NnxSchema,
    ScannedSchema,
    linen_state,
    linen_variables,
    nnx_state,
    on_disk,
)
from jaxtyping import Array, BFloat16, Bool, Complex64, Float32, Int8, Int32, UInt32

import ckpt_schema as cs
from ckpt_schema._layouts.leaves import describe


def sds(*shape: int, dtype: str = "float32") -> jax.ShapeDtypeStruct:
    """An abstract leaf."""
    return jax.ShapeDtypeStruct(shape, dtype)


class Norm(cs.Schema):
    scale: Float32[Array, " embed"]
    bias: Float32[Array, " embed"] | None


class Block(cs.Schema):
    norm: Norm
    qkv: Float32[Array, "embed 3*heads*head_dim"]
    out: Float32[Array, "heads head_dim embed"]


class Model(cs.Schema):
    embedding: Float32[Array, "vocab embed"]
    layers: list[Block] = cs.field(length="depth")
    table: Int8[Array, "vocab 4"]
    dropout: cs.Stream["urbg"]


def block(embed: int = 6, heads: int = 2, head_dim: int = 5) -> dict[str, Any]:
    """A conforming block."""
    return {
        "norm": {"scale": sds(embed)},
        "qkv": sds(embed, 3 * heads * head_dim),
        "out": sds(heads, head_dim, embed),
    }


def model(depth: int = 3) -> dict[str, Any]:
    """A conforming tree."""
    key = jax.eval_shape(lambda: jax.random.key(0, impl="unsafe_rbg"))
    return {
        "embedding": sds(9, 6),
        "layers": {i: block() for i in range(depth)},
        "table": sds(9, 4, dtype="int8"),
        "dropout": {"key": key, "count": sds(dtype="uint32")},
    }


def found(
    tree: Any, schema: Any = Model, dims: dict[str, int] | None = None
) -> list[tuple[str, str]]:
    """Path and kind of every mismatch."""
    return [(m.path, m.kind) for m in cs.check(schema, tree, dims)]


def changed(path: str, value: Any) -> dict[str, Any]:
    """A model in which the leaf or node at ``path`` is ``value``, or gone when that is None."""
    tree = model()
    node: Any = tree
    *heads, last = [int(part) if part.isdecimal() else part for part in path.split("/")]
    for part in heads:
        node = node[part]
    if value is None:
        del node[last]
    else:
        node[last] = value
    return tree


def test_a_conforming_tree_has_an_empty_falsy_report_with_its_dims() -> None:
    report = cs.check(Model, model())
    assert report.ok
    assert report == []
    assert len(report) == 0
    assert list(report) == []
    assert report.dims == {"vocab": 9, "embed": 6, "heads": 2, "head_dim": 5, "depth": 3}
    assert str(report) == "conforms to Model"
    assert cs.assert_conforms(Model, model()) == report.dims


@pytest.mark.parametrize(
    ("path", "value", "kind", "expected", "got"),
    [
        ("embedding", None, "missing", "float32[vocab=9 embed=6]", "nothing"),
        ("layers/1/norm/scale", None, "missing", "float32[embed=6]", "nothing"),
        (
            "layers/2/qkv",
            sds(6, 31),
            "shape",
            "float32[embed=6 3*heads*head_dim=30]",
            "float32[6 31]",
        ),
        (
            "layers/0/out",
            sds(10, 6),
            "shape",
            "float32[heads=2 head_dim=5 embed=6]",
            "float32[10 6]",
        ),
        ("table", sds(9, 5, dtype="int8"), "shape", "int8[vocab=9 4]", "int8[9 5]"),
        (
            "embedding",
            sds(9, 6, dtype="bfloat16"),
            "dtype",
            "float32[vocab=9 embed=6]",
            "bfloat16[9 6]",
        ),
        ("table", sds(9, 4, dtype="uint8"), "dtype", "int8[vocab=9 4]", "uint8[9 4]"),
        ("extra", sds(2), "extra", "nothing", "float32[2]"),
        ("layers/1/norm/offset", sds(6), "extra", "nothing", "float32[6]"),
        ("dropout/count", sds(dtype="int32"), "dtype", "uint32[]", "int32[]"),
        ("embedding", "weights.npy", "leaf", "float32[vocab=9 embed=6]", "a str"),
        ("dropout/count", -1, "cast", "uint32[]", "Python int -1"),
        ("dropout/count", 2**32, "cast", "uint32[]", "Python int 4294967296"),
        ("dropout/count", 1.0, "dtype", "uint32[]", "Python float 1.0"),
        ("dropout/count", True, "dtype", "uint32[]", "Python bool True"),
    ],
)
def test_one_mismatch(path: str, value: Any, kind: str, expected: str, got: str) -> None:
    tree = changed(path, value)
    (fault,) = cs.check(Model, tree)
    assert (fault.path, fault.kind, fault.expected, fault.found) == (path, kind, expected, got)
    with pytest.raises(cs.ConformanceError) as caught:
        cs.assert_conforms(Model, tree)
    assert caught.value.mismatches == (fault,)
    assert f"  {path}  expected {expected}, found {got}\n" in f"{caught.value}\n"


def test_all_mismatches_are_found_at_once_in_natural_order() -> None:
    tree = model(depth=11)
    tree["layers"][10]["qkv"] = sds(6, 7)
    tree["layers"][2]["qkv"] = sds(6, 30, dtype="float16")
    del tree["layers"][9]["out"]
    tree["layers"][3]["more"] = sds(1)
    tree["dropout"]["key"] = jax.random.key(0, impl="rbg")
    tree["embedding"] = sds(9, 7)
    assert found(tree) == [
        ("dropout/key", "impl"),
        ("embedding", "shape"),
        ("layers/2/qkv", "dtype"),
        ("layers/3/more", "extra"),
        ("layers/9/out", "missing"),
        ("layers/10/qkv", "shape"),
    ]


@pytest.mark.parametrize("first", ["a", "b"])
def test_a_wrong_leaf_is_one_fault_wherever_it_stands(first: str) -> None:
    class Three(cs.Schema):
        a: Float32[Array, "n m"]
        b: Float32[Array, "n m"]
        c: Float32[Array, "m n"]

    tree = {"a": sds(2, 3), "b": sds(2, 3), "c": sds(3, 2)}
    (fault,) = cs.check(Three, {**tree, first: sds(4, 3)})
    assert (fault.path, fault.found) == (first, "float32[4 3]")
    assert fault.expected == "float32[n=2 m=3]"


def test_of_two_sizes_with_as_many_leaves_the_first_is_taken_for_right() -> None:
    class Pair(cs.Schema):
        a: Float32[Array, " n"]
        b: Float32[Array, " n"]

    (fault,) = cs.check(Pair, {"a": sds(2), "b": sds(3)})
    assert (fault.path, fault.expected, fault.hint) == ("b", "float32[n=2]", "dims: n=2 (from a)")


def test_a_list_that_is_longer_than_the_others_has_the_extra_members() -> None:
    class Three(cs.Schema):
        a: list[Norm] = cs.field(length="depth")
        b: list[Norm] = cs.field(length="depth")
        c: list[Norm] = cs.field(length="depth")

    tree = {
        "a": [{"scale": sds(2)}] * 3,
        "b": [{"scale": sds(2)}] * 2,
        "c": [{"scale": sds(2)}] * 2,
    }
    (fault,) = cs.check(Three, tree)
    assert (fault.path, fault.kind, fault.expected, fault.found) == (
        "a/2/scale",
        "extra",
        "2 repeats (depth)",
        "index 2",
    )
    assert fault.hint == "dims: depth=2 (from the number of b/{i}/scale)"


def test_a_dim_that_is_used_inconsistently_names_both_origins() -> None:
    (fault,) = cs.check(Model, changed("layers/1/norm/scale", sds(8)))
    assert (fault.path, fault.kind, fault.found) == ("layers/1/norm/scale", "shape", "float32[8]")
    assert fault.expected == "float32[embed=6]"
    assert fault.hint == "dims: embed=6 (from embedding)"


def test_a_dim_that_is_given_is_what_counts() -> None:
    report = cs.check(Model, model(), {"embed": 7, "depth": 3})
    assert {m.kind for m in report} == {"shape"}
    assert all("embed=7 (from argument)" in m.hint for m in report)
    assert cs.check(Model, model(), {"embed": 6, "heads": 2, "depth": 3}) == []
    assert found(model(), dims={"depth": 2}) == [
        (f"layers/2/{leaf}", "extra") for leaf in ("norm/scale", "out", "qkv")
    ]
    assert found(model(), dims={"depth": 4}) == [
        (f"layers/3/{leaf}", "missing") for leaf in ("norm/scale", "out", "qkv")
    ]


def test_a_given_dim_the_layout_has_not_is_a_mismatch() -> None:
    (fault,) = cs.check(Model, model(), {"embd": 6})
    assert (fault.path, fault.kind, fault.hint) == ("embd", "dims", "near: embed")


def test_products_are_checked_when_their_factors_are_known_from_elsewhere() -> None:
    class Fused(cs.Schema):
        qkv: Float32[Array, "embed 3*heads*head_dim"]

    assert found({"qkv": sds(6, 30)}, Fused) == []
    assert found({"qkv": sds(6, 31)}, Fused) == [("qkv", "shape")]
    assert found({"qkv": sds(6, 30)}, Fused, {"heads": 2}) == []
    (fault,) = cs.check(Fused, {"qkv": sds(6, 30)}, {"heads": 4})
    assert fault.hint == "30 is no multiple of 12 in 3*heads*head_dim"
    assert cs.check(Fused, {"qkv": sds(6, 30)}, {"heads": 2}).dims["head_dim"] == 5


def test_layers_that_are_missing_in_the_middle_are_named() -> None:
    tree = model(depth=4)
    del tree["layers"][1]
    assert found(tree) == [(f"layers/1/{leaf}", "missing") for leaf in ("norm/scale", "out", "qkv")]


def test_different_numbers_of_layers_in_two_lists_of_one_length() -> None:
    class Two(cs.Schema):
        a: list[Norm] = cs.field(length="depth")
        b: list[Norm] = cs.field(length="depth")

    norms = {i: {"scale": sds(2)} for i in range(3)}
    assert found({"a": norms, "b": {0: norms[0], 1: norms[1]}}, Two) == [("b/2/scale", "missing")]


def test_layer_ten_is_the_eleventh() -> None:
    class Marked(cs.Schema):
        layers: list[Norm] = cs.field(key="layers_{i}", length="depth")

    class Stacked(cs.Schema):
        layers: Norm = cs.field(scan="depth")

    tree = {f"layers_{i}": {"scale": jnp.full(2, i, jnp.float32)} for i in range(12)}
    stacked = cs.derive(Marked, Stacked).get(tree)["layers"]["scale"]
    np.testing.assert_array_equal(stacked[:, 0], np.arange(12))


def test_a_number_with_leading_zeros_is_no_index() -> None:
    class Marked(cs.Schema):
        layers: list[Norm] = cs.field(key="layers_{i}", length="depth")

    tree = {"layers_0": {"scale": sds(2)}, "layers_01": {"scale": sds(2)}}
    assert found(tree, Marked) == [("layers_01/scale", "extra")]


# --- keys and containers  ---


class Ints(cs.Schema):
    layers: list[Norm] = cs.field(length="depth")
    other: list[Norm] = cs.field(length="depth")


class Strings(cs.Schema):
    layers: list[Norm] = cs.field(key="layers/'{i}'", length="depth")


def norms(*keys: Any) -> dict[Any, Any]:
    """Norms at these keys."""
    return {key: {"scale": sds(2)} for key in keys}


def test_int_keys_and_string_keys_are_told_apart() -> None:
    assert found({"layers": norms(0, 1), "other": norms(0, 1)}, Ints) == []
    mixed = cs.check(Ints, {"layers": norms("0", "1"), "other": norms(0, 1)})
    assert [(m.path, m.kind, m.expected, m.found) for m in mixed] == [
        ("layers/'0'/scale", "key", "int key 0", "str key '0'"),
        ("layers/'1'/scale", "key", "int key 1", "str key '1'"),
    ]
    assert "a save turns int keys into strings" in mixed.mismatches[0].hint
    turned = cs.check(Strings, {"layers": norms(0, 1)})
    assert [(m.path, m.kind, m.expected, m.found) for m in turned] == [
        ("layers/0/scale", "key", "str key '0'", "int key 0"),
        ("layers/1/scale", "key", "str key '1'", "int key 1"),
    ]


def test_t9_a_saved_tree_has_strings_for_all_int_keys_and_conforms() -> None:
    assert found({"layers": norms("0", "1"), "other": norms("0", "1")}, Ints) == []
    assert found({"layers": norms("0", "1")}, Strings) == []


def test_keys_that_mix_ints_and_strings_in_one_dict_cannot_be_flattened_and_are_refused() -> None:
    with pytest.raises(cs.ConformanceError, match="a dict must not have both kinds") as caught:
        cs.check(Ints, {"layers": norms(0, "1"), "other": norms(0, 1)})
    assert caught.value.mismatches[0].kind == "key"


def test_a_list_and_a_tuple_are_int_keys() -> None:
    entries = list(norms(0, 1).values())
    for container in (entries, tuple(entries)):
        assert found({"layers": container, "other": norms(0, 1)}, Ints) == []


def test_sequences_within_a_saved_tree() -> None:
    assert found({"layers": list(norms(0, 1).values()), "other": norms("0", "1")}, Ints) == []


def test_frozen_dicts_are_dicts() -> None:
    assert found(flax.core.freeze({"layers": norms(0, 1), "other": norms(0, 1)}), Ints) == []


@pytest.mark.parametrize("tree", [{}, None, (), sds(3), {"layers": None}, {"layers": {}}])
def test_degenerate_trees_are_reported_not_raised(tree: Any) -> None:
    report = cs.check(Model, tree)
    assert len(report) >= 7
    assert {m.kind for m in report} <= {"missing", "extra"}


def test_a_value_level_is_no_name_wherever_it_stands() -> None:
    class Attention(cs.Schema):
        value: Norm
        key: Norm
        scale: Float32[Array, " n"] = cs.field(key="value/value/value")

    def wrapped(leaf: Any) -> dict[str, Any]:
        return {"value": leaf}

    inner = {"scale": sds(2)}
    bare = {"value": {**inner, "value": {"value": sds(3)}}, "key": inner}
    assert found(bare, Attention) == []
    assert found(jax.tree.map(wrapped, bare), Attention) == []
    assert found(jax.tree.map(wrapped, jax.tree.map(wrapped, bare)), Attention) != []


# --- keys of random numbers  ---


class Typed(cs.Schema):
    key: cs.Key["urbg"]


class Raw(cs.Schema):
    key: UInt32[Array, " 4"]


def test_a_key_never_passes_for_another_implementation_or_for_its_data() -> None:
    key = jax.random.key(0, impl="unsafe_rbg")
    assert found({"key": key}, Typed) == []
    assert found({"key": jax.random.key(0, impl="rbg")}, Typed) == [("key", "impl")]
    assert found({"key": jax.random.key(0, impl="threefry2x32")}, Typed) == [("key", "impl")]
    (fault,) = cs.check(Typed, {"key": jax.random.key_data(key)})
    assert (fault.kind, fault.expected, fault.found) == ("dtype", "key<urbg>[]", "uint32[4]")
    assert "wrap_key_data" in fault.hint
    (fault,) = cs.check(Raw, {"key": key})
    assert (fault.kind, fault.expected, fault.found) == ("dtype", "uint32[4]", "key<urbg>[]")
    assert "key_data" in fault.hint


def test_key_arrays_have_dims() -> None:
    class Batched(cs.Schema):
        keys: cs.Key["fry", "layers"]
        scale: Float32[Array, " layers"]

    keys = jax.random.split(jax.random.key(0, impl="threefry2x32"), 3)
    assert found({"keys": keys, "scale": sds(3)}, Batched) == []
    assert found({"keys": keys, "scale": sds(4)}, Batched) == [("scale", "shape")]
    assert found({"keys": keys[0], "scale": sds(3)}, Batched) == [("keys", "shape")]


# --- dtypes and numbers  ---

DTYPED = {
    "float32": Float32,
    "bfloat16": BFloat16,
    "int8": Int8,
    "int32": Int32,
    "uint32": UInt32,
    "bool": Bool,
    "complex64": Complex64,
}


@pytest.mark.parametrize("expected", DTYPED)
def test_t5_no_dtype_passes_for_another(expected: str) -> None:
    declared = DTYPED[expected][Array, " n"]

    class One(cs.Schema):
        x: declared

    for dtype in [*DTYPED, "float16", "int4", "uint8", "float8_e5m2"]:
        report = cs.check(One, {"x": sds(3, dtype=dtype)})
        assert (report == []) == (dtype == expected), dtype
        if not report.ok:
            assert report.mismatches[0].kind == "dtype"


@pytest.mark.parametrize(
    ("dtype", "good", "bad"),
    [
        (
            "int32",
            [0, -(2**31), 2**31 - 1, np.int32(3)],
            [2**31, -(2**31) - 1, 0.0, True, np.int64(3)],
        ),
        ("uint32", [0, 2**32 - 1, np.uint32(3)], [-1, 2**32, np.int32(3)]),
        ("int8", [127], [128]),
        ("float32", [0.5, float("inf")], [1, True, 1j, np.float64(0.5)]),
        ("bool", [True], [1, 0.0]),
        ("complex64", [1j], [1, 0.5]),
    ],
)
def test_python_and_numpy_numbers_stand_for_scalars_that_hold_them(
    dtype: str, good: list[Any], bad: list[Any]
) -> None:
    declared = DTYPED[dtype]

    class Scalar(cs.Schema):
        x: declared[Array, ""]

    class Vector(cs.Schema):
        x: declared[Array, " n"]

    for value in good:
        assert found({"x": value}, Scalar) == [], value
        assert found({"x": value}, Vector) != [], value
    for value in bad:
        assert next(kind for _, kind in found({"x": value}, Scalar)) in ("dtype", "cast"), value


# --- arrays, abstract values, tracers  ---


def test_arrays_abstract_values_and_tracers_are_checked_alike() -> None:
    class Pair(cs.Schema):
        a: Float32[Array, "n m"]
        b: Float32[Array, "m n"]

    good, bad = (
        {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 2))},
        {"a": jnp.ones((2, 3)), "b": jnp.ones((2, 3))},
    )
    for tree, wanted in ((good, []), (bad, [("b", "shape")])):
        seen: list[Any] = []
        jax.jit(lambda t, seen=seen: seen.append(found(t, Pair)))(tree)
        jax.eval_shape(lambda t, seen=seen: seen.append(found(t, Pair)), tree)
        jax.vmap(lambda t, seen=seen: seen.append(found(t, Pair)))(
            jax.tree.map(lambda x: x[None], tree)
        )
        seen += [
            found(tree, Pair),
            found(jax.tree.map(np.asarray, tree), Pair),
            found(jax.eval_shape(lambda t=tree: t), Pair),
        ]
        assert seen == [wanted] * 6


def test_real_states_of_both_frameworks_report_what_is_done_to_them() -> None:
    tx = OPTIMIZERS["chain schedule"]
    linen, nnx_ = cs.linen.TrainState[ScannedSchema, tx], cs.nnx.TrainState[NnxSchema, tx]
    state = on_disk(linen_state(tx))
    state["opt_state"][1][0]["mu"]["params"]["layers"]["Dense_0"]["bias"] = jnp.zeros((16, 4))
    assert found(state, linen) == [("opt_state/1/0/mu/params/layers/Dense_0/bias", "shape")]
    assert found(linen_state(OPTIMIZERS["adam"]), linen) != []
    pure = nnx.to_pure_dict(nnx_state(tx))
    pure["model"]["layers"][2]["dropout"]["rngs"]["key"] = jax.random.key(0, impl="rbg")
    pure["optimizer"]["step"] = -1
    assert found(pure, nnx_) == [
        ("model/layers/2/dropout/rngs/key", "impl"),
        ("optimizer/step", "cast"),
    ]
    assert found(nnx_state(tx), linen) != []
    assert found(linen_state(tx), nnx_) != []


def test_a_missing_and_an_extra_leaf_point_at_each_other() -> None:
    variables = copy.deepcopy(jax.tree.map(lambda x: x, linen_variables(scan=True)))
    variables["params"]["layer"] = variables["params"].pop("layers")
    report = cs.check(cs.linen.Params[ScannedSchema], variables)
    hints = {m.path: m.hint for m in report}
    assert hints["params/layers/Dense_0/bias"] == "near: params/layer/Dense_0/bias"
    assert hints["params/layer/Dense_0/bias"] == "near: params/layers/Dense_0/bias"


def test_reports_are_values() -> None:
    one, two = (cs.check(Model, changed("embedding", None)) for _ in range(2))
    assert one == two
    assert hash(one) == hash(two)
    assert one != cs.check(Model, model())
    assert one == list(one.mismatches)
    assert one != "a string"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (jnp.ones((2, 3)), "float32[2 3]"),
        (np.float32(1), "float32[]"),
        (7, "Python int 7"),
        (jax.random.key(0, impl="rbg"), "key<rbg>[]"),
        ("x", "a str"),
        ([], "a list"),
    ],
)
def test_what_is_found_is_described(value: Any, text: str) -> None:
    assert describe(value) == text
