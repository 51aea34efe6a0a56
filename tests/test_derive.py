"""``derive``: what the declared types alone say, what rules add, and what no lens can be made of."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax_models import OPTIMIZERS, NnxSchema, ScannedSchema, UnrolledSchema, linen_state, nnx_state
from jaxtyping import Array, Float32, Int8, Int32, UInt8, UInt32
from support.words import done

import ckpt_schema as cs


class Norm(cs.Schema):
    scale: Float32[Array, " embed"]


class Old(cs.Schema):
    w: Float32[Array, "embed mlp"]
    b: Float32[Array, " mlp"]


class New(cs.Schema):
    w: Float32[Array, "mlp embed"]
    bias: Float32[Array, " mlp"]


def leaf(*shape: int) -> jax.Array:
    """An array of distinct numbers."""
    return jnp.arange(int(np.prod(shape)), dtype=jnp.float32).reshape(shape)


def one(
    source: str, view: str, *, dtype: Any = Float32, dims: dict[str, int] | None = None
) -> cs.Lens:
    """The lens between two schemas of one leaf, ``x``."""

    class Source(cs.Schema):
        x: dtype[Array, source]

    class View(cs.Schema):
        x: dtype[Array, view]

    return cs.derive(Source, View, dims=dims)


def faults(
    derive: Callable[[], Any], error: type[cs.CkptSchemaError] = cs.DerivationError
) -> list[tuple[str, str]]:
    """Path and kind of every fault of the error that ``derive`` raises."""
    with pytest.raises(error) as caught:
        derive()
    return [(m.path, m.kind) for m in caught.value.mismatches]


# --- from the types alone  ---

REARRANGED: dict[tuple[str, str], Callable[[Any], Any]] = {
    ("a b", "b a"): lambda x: x.T,
    ("a b c", "c a b"): lambda x: x.transpose(2, 0, 1),
    ("a b*c", "a b c"): lambda x: x.reshape(2, 3, 5),
    ("a b*c", "b a*c"): lambda x: x.reshape(2, 3, 5).transpose(1, 0, 2).reshape(3, 10),
    ("a*b*c", "c*b*a"): lambda x: x.reshape(2, 3, 5).transpose(2, 1, 0).reshape(30),
    ("a 3*c", "3 c a"): lambda x: x.reshape(2, 3, 5).transpose(1, 2, 0),
    ("a b*c", "a c*b"): lambda x: x.reshape(2, 3, 5).transpose(0, 2, 1).reshape(2, 15),
}
SIZES = {"a": 2, "b": 3, "c": 5}


@pytest.mark.parametrize(("source", "view"), REARRANGED)
def test_axes_are_split_permuted_and_merged_by_the_names_of_their_dims(
    source: str, view: str
) -> None:
    lens = one(source, view).bind(**{n: s for n, s in SIZES.items() if n in source and n in view})
    entry = next(cs.layout(lens.source).entries(SIZES))
    x = leaf(*entry.shape)
    made = lens.get({"x": x})["x"]
    np.testing.assert_array_equal(made, REARRANGED[source, view](x))
    np.testing.assert_array_equal(lens.put({"x": made})["x"], x)
    np.testing.assert_array_equal(lens.get({"x": np.asarray(x)})["x"], made)


SPELLED = {
    "embed groups*(per+2)*dim": lambda x: x.transpose(3, 0, 1, 2).reshape(2, -1),
    "groups*(per+2)*dim embed": lambda x: x.reshape(-1, 2),
    "groups per+2 dim embed": lambda x: x,
    "dim groups*(per+2) embed": lambda x: x.transpose(2, 0, 1, 3).reshape(5, -1, 2),
}
"""Spellings of heads in groups, each with keys and values beside its queries; from an axis for each."""


@pytest.mark.parametrize("source", SPELLED)
@pytest.mark.parametrize("view", SPELLED)
def test_a_sum_in_parentheses_is_one_factor_of_its_axis(source: str, view: str) -> None:
    x = np.asarray(leaf(3, 6, 5, 2))
    lens = one(source, view).bind(groups=3, dim=5)
    made = lens.get({"x": SPELLED[source](x)})
    cs.assert_trees_identical(made, {"x": np.ascontiguousarray(SPELLED[view](x))})
    back = lens.put(made)
    cs.assert_trees_identical(back, {"x": np.ascontiguousarray(SPELLED[source](x))})


def test_a_sum_in_parentheses_tells_what_it_cannot_be() -> None:
    lens = one("groups*(per+2)*dim", "groups per+2 dim").bind(groups=30, dim=5)
    with pytest.raises(cs.ConformanceError, match="1 is less than 2, which is known of per"):
        lens.get({"x": np.zeros(150, "float32")})


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_scan_and_list_are_stacked_and_unstacked(axis: int) -> None:
    class Block(cs.Schema):
        w: Float32[Array, "embed mlp"]

    class Wide(cs.Schema):
        w: Float32[Array, "mlp embed"]

    class Scanned(cs.Schema):
        layers: Block = cs.field(scan="depth", axis=axis)

    class Listed(cs.Schema):
        layers: list[Wide] = cs.field(length="depth")

    shape = [2, 3]
    shape.insert(axis if axis >= 0 else 3 + axis, 4)
    x = leaf(*shape)
    lens = cs.derive(Scanned, Listed)
    made = lens.get({"layers": {"w": x}})
    assert list(made["layers"]) == [0, 1, 2, 3]
    for i in range(4):
        np.testing.assert_array_equal(made["layers"][i]["w"], np.take(np.asarray(x), i, axis).T)
    cs.assert_trees_identical(lens.put(made), {"layers": {"w": x}})


def test_a_stack_moves_from_axis_to_axis() -> None:
    class First(cs.Schema):
        layers: Norm = cs.field(scan="depth", axis=0)

    class Last(cs.Schema):
        layers: Norm = cs.field(scan="depth", axis=-1)

    x = leaf(3, 2)
    np.testing.assert_array_equal(
        cs.derive(First, Last).get({"layers": {"scale": x}})["layers"]["scale"], x.T
    )


def test_of_two_levels_one_or_both_are_unrolled() -> None:
    class Inner(cs.Schema):
        blocks: Norm = cs.field(scan="inner", axis=0)

    class Outer(cs.Schema):
        layers: Inner = cs.field(scan="outer", axis=1)

    class Listed(cs.Schema):
        layers: list[Inner] = cs.field(length="outer")

    class Flat(cs.Schema):
        blocks: list[Norm] = cs.field(length="inner")

    class Unrolled(cs.Schema):
        layers: list[Flat] = cs.field(length="outer")

    x = leaf(5, 2, 3)  # inner outer embed
    made = cs.derive(Outer, Listed).get({"layers": {"blocks": {"scale": x}}})
    np.testing.assert_array_equal(made["layers"][1]["blocks"]["scale"], x[:, 1])
    unrolled = cs.derive(Outer, Unrolled).get({"layers": {"blocks": {"scale": x}}})
    np.testing.assert_array_equal(unrolled["layers"][1]["blocks"][4]["scale"], x[4, 1])
    cs.assert_trees_identical(
        cs.derive(Outer, Unrolled).put(unrolled)["layers"]["blocks"]["scale"], x
    )
    outer, inner = cs.derive(Outer, Listed), cs.derive(Listed, Unrolled)
    cs.assert_trees_identical((outer >> inner).get({"layers": {"blocks": {"scale": x}}}), unrolled)
    cs.assert_trees_identical(inner.get(outer.get({"layers": {"blocks": {"scale": x}}})), unrolled)


def test_one_level_is_stacked_where_the_other_is_unrolled() -> None:
    class Inner(cs.Schema):
        blocks: Norm = cs.field(scan="inner", axis=1)

    class Outer(cs.Schema):
        layers: list[Inner] = cs.field(length="outer")

    class Flat(cs.Schema):
        blocks: list[Norm] = cs.field(length="inner")

    class Turned(cs.Schema):
        layers: Flat = cs.field(scan="outer", axis=-1)

    xs = [leaf(3, 5), leaf(3, 5) + 100]  # embed inner
    lens = cs.derive(Outer, Turned)
    made = lens.get({"layers": {i: {"blocks": {"scale": x}} for i, x in enumerate(xs)}})
    for i in range(5):
        np.testing.assert_array_equal(
            made["layers"]["blocks"][i]["scale"], np.stack([x[:, i] for x in xs], -1)
        )
    assert lens.put(made)["layers"][1]["blocks"]["scale"].tolist() == xs[1].tolist()
    assert not any(done(lens >> ~lens))


def test_zero_sizes_pass() -> None:
    lens = one("a b*c", "c b a", dims={"b": 3})
    assert lens.get({"x": leaf(0, 6)})["x"].shape == (2, 3, 0)


def test_keys_of_random_numbers_are_moved_and_stacked_whole() -> None:
    class Block(cs.Schema):
        key: cs.Key["urbg", "a b"]

    class Turned(cs.Schema):
        key: cs.Key["urbg", "b a"]

    class Scanned(cs.Schema):
        layers: Block = cs.field(scan="depth", axis=1)

    class Listed(cs.Schema):
        layers: list[Turned] = cs.field(length="depth")

    keys = jax.random.split(jax.random.key(3, impl="unsafe_rbg"), (2, 4, 3))
    lens = cs.derive(Scanned, Listed)
    made = lens.get({"layers": {"key": keys}})
    assert str(made["layers"][0]["key"].dtype) == "key<urbg>"
    np.testing.assert_array_equal(
        jax.random.key_data(made["layers"][2]["key"]), jax.random.key_data(keys[:, 2].T)
    )
    cs.assert_trees_identical(lens.put(made), {"layers": {"key": keys}})


def test_what_only_moves_is_the_same_object() -> None:
    class Moved(cs.Schema):
        w: Float32[Array, "embed mlp"] = cs.field(key="deep/down/weight")
        b: Float32[Array, " mlp"]

    tree = {"w": leaf(2, 3), "b": leaf(3)}
    lens = cs.derive(Old, Moved)
    made = lens.get(tree)
    assert made["deep"]["down"]["weight"] is tree["w"]
    assert lens.put(made)["w"] is tree["w"]
    assert lens.get(tree, onto=made)["b"] is tree["b"]


# --- casts  ---


class Signed(cs.Schema):
    step: Int32[Array, ""]


class Unsigned(cs.Schema):
    step: UInt32[Array, ""]


STEPS = [
    lambda n: n,
    lambda n: np.asarray(n),
    lambda n: np.asarray(n)[()],
    lambda n: jnp.asarray(n),
]


@pytest.mark.parametrize("make", STEPS, ids=["Python", "NumPy array", "NumPy scalar", "jax"])
@pytest.mark.parametrize("step", [0, 1, 2**31 - 1])
def test_a_step_in_range_of_both_keeps_its_value(step: int, make: Callable[[Any], Any]) -> None:
    lens = cs.derive(Signed, Unsigned)
    source = step if make is STEPS[0] else make(np.int32(step))
    made = lens.get({"step": source})["step"]
    assert (str(made.dtype), made.shape, int(made)) == ("uint32", (), step)
    back = lens.put({"step": step if make is STEPS[0] else make(np.uint32(step))})["step"]
    assert (str(back.dtype), back.shape, int(back)) == ("int32", (), step)


@pytest.mark.parametrize("make", STEPS, ids=["Python", "NumPy array", "NumPy scalar", "jax"])
def test_t4_a_step_out_of_range_of_the_other_dtype_is_an_error_that_names_it(
    make: Callable[[Any], Any],
) -> None:
    lens = cs.derive(Signed, Unsigned)
    for step in (-1, -(2**31)):
        source = step if make is STEPS[0] else make(np.int32(step))
        assert faults(lambda source=source: lens.get({"step": source}), cs.ConformanceError) == [
            ("step", "cast")
        ]
    for step in (2**31, 2**32 - 1):
        view = step if make is STEPS[0] else make(np.uint32(step))
        assert faults(lambda view=view: lens.put({"step": view}), cs.ConformanceError) == [
            ("step", "cast")
        ]


@pytest.mark.parametrize("step", [2**31, -(2**31) - 1, 2**32, -1])
def test_a_python_int_that_its_own_side_cannot_hold_is_an_error(step: int) -> None:
    lens = cs.derive(Signed, Unsigned)
    if step != -1:
        assert faults(lambda: lens.get({"step": step}), cs.ConformanceError) == [("step", "cast")]
    if step != 2**31:
        assert faults(lambda: lens.put({"step": step}), cs.ConformanceError) == [("step", "cast")]


def test_every_value_of_an_array_is_looked_at_and_nothing_is_made_when_one_does_not_fit() -> None:
    lens = one("n", "n", dtype=Int8)
    assert not done(lens)[0]

    class Two(cs.Schema):
        a: Int8[Array, " n"]
        b: Int8[Array, " n"]

    class Unsigneds(cs.Schema):
        a: UInt8[Array, " n"]
        b: UInt8[Array, " n"]

    narrow = cs.derive(Two, Unsigneds)
    good, bad = jnp.asarray([0, 127], jnp.int8), jnp.asarray([5, -1], jnp.int8)
    np.testing.assert_array_equal(
        narrow.get({"a": good, "b": good})["b"], np.asarray([0, 127], np.uint8)
    )
    assert faults(lambda: narrow.get({"a": bad, "b": bad}), cs.ConformanceError) == [
        ("a", "cast"),
        ("b", "cast"),
    ]
    assert (
        narrow.get({"a": jnp.zeros(0, jnp.int8), "b": jnp.zeros(0, jnp.int8)})["a"].dtype
        == jnp.uint8
    )


def test_a_cast_under_jit_is_refused_for_its_value_is_not_known() -> None:
    lens = cs.derive(Signed, Unsigned)
    with pytest.raises(cs.ConformanceError, match="translate outside of jit"):
        jax.jit(lambda step: lens.get({"step": step}))(jnp.int32(3))


def test_under_jit_everything_else_works() -> None:
    lens = one("a b", "b a")
    np.testing.assert_array_equal(
        jax.jit(lambda x: lens.get({"x": x})["x"])(leaf(2, 3)), leaf(2, 3).T
    )


@pytest.mark.parametrize(
    ("source", "view"),
    [(Float32, Int8), (Int32, Float32), (Float32, UInt32), (Int8, Float32)],
    ids=lambda d: d.__name__,
)
def test_t5_no_cast_that_loses_anything_is_derived(source: Any, view: Any) -> None:
    class Source(cs.Schema):
        x: source[Array, " n"]

    class View(cs.Schema):
        x: view[Array, " n"]

    assert faults(lambda: cs.derive(Source, View)) == [("x", "dtype")]


def test_t1_a_key_is_never_taken_for_one_of_another_implementation_nor_for_its_data() -> None:
    class Typed(cs.Schema):
        x: cs.Key["urbg"]

    class Other(cs.Schema):
        x: cs.Key["rbg"]

    class Raw(cs.Schema):
        x: UInt32[Array, " 4"]

    assert faults(lambda: cs.derive(Typed, Other)) == [("x", "impl")]
    assert faults(lambda: cs.derive(Typed, Raw)) == [("x", "dtype")]
    assert faults(lambda: cs.derive(Raw, Typed)) == [("x", "dtype")]


# --- what has no place  ---


def test_every_row_of_both_sides_that_has_no_place_is_named() -> None:
    class Left(cs.Schema):
        same: Norm
        left: Norm
        kept: Norm = cs.field(default=0)
        maybe: Norm | None

    class Right(cs.Schema):
        same: Norm
        right: Float32[Array, "n m"]
        dropout: cs.Stream["fry"] = cs.field(default=cs.fresh_key(0))

    assert faults(lambda: cs.derive(Left, Right)) == [
        ("left/scale", "unplaced"),
        ("right", "unplaced"),
    ]
    assert faults(lambda: cs.derive(Right, Left)) == [
        ("right", "unplaced"),
        ("left/scale", "unplaced"),
    ]


def test_rows_of_the_optimizer_that_mirror_an_unplaced_weight_are_named_on_its_line() -> None:
    tx = OPTIMIZERS["chain"]
    with pytest.raises(cs.DerivationError) as caught:
        cs.derive(cs.linen.TrainState[Old, tx], cs.nnx.TrainState[New, tx])
    paths = [m.path for m in caught.value.mismatches]
    assert paths == ["params/b", "params/bias"]
    assert caught.value.mismatches[0].found == "float32[mlp] in linen.TrainState[Old] alone"
    assert caught.value.mismatches[0].also == ("opt_state/1/0/mu", "opt_state/1/0/nu")


def test_a_likely_partner_is_named_with_the_rule_that_joins_them() -> None:
    with pytest.raises(cs.DerivationError) as caught:
        cs.derive(Old, New)
    assert [m.hint for m in caught.value.mismatches] == [
        "only bias can be it; rename('b', 'bias') joins them",
        "only b can be it; rename('b', 'bias') joins them",
    ]
    assert cs.derive(Old, New, rules=[cs.rename("b", "bias")])


def test_the_suggested_rule_is_the_shortest_and_is_one_that_works() -> None:
    class Dense(cs.Schema):
        kernel: Float32[Array, "i o"]
        bias: Float32[Array, " o"]

    class Before(cs.Schema):
        decoder: Dense = cs.field(key="Dense_0")
        layers: Norm = cs.field(scan="depth")

    class After(cs.Schema):
        decode: Dense
        blocks: list[Norm] = cs.field(length="depth")

    tx = OPTIMIZERS["adam"]
    source, view = cs.linen.TrainState[Before, tx], cs.nnx.TrainState[After, tx]
    with pytest.raises(cs.DerivationError) as caught:
        cs.derive(source, view)
    hints = [m.hint.partition("; ")[2].partition(" joins")[0] for m in caught.value.mismatches]
    assert set(hints) == {"rename('decoder', 'decode')", "rename('layers[]', 'blocks[]')"}
    assert len(
        cs.derive(source, view, rules=[eval(f"cs.{hint}") for hint in sorted(set(hints))]).joins
    ) == len(view.rows)


def test_axes_of_size_one_come_and_go() -> None:
    tree = {"x": jnp.arange(6.0).reshape(1, 2, 3)}
    lens = one("1 a b", "b 1*a 1")
    assert lens.get(tree)["x"].shape == (3, 2, 1)
    np.testing.assert_array_equal(lens.get(tree)["x"][:, :, 0], tree["x"][0].T)
    cs.assert_trees_identical(lens.put(lens.get(tree)), tree)
    assert str(lens).splitlines()[1].split(None, 2)[2] == "1 a b -> b a 1"


def test_dims_that_do_not_relate_are_an_error() -> None:
    assert faults(lambda: one("a b", "a c")) == [("x", "dims")]
    assert faults(lambda: one("a b", "a b 2")) == [("x", "dims")]
    assert faults(lambda: one("a b", "a")) == [("x", "dims")]
    assert faults(lambda: one("2*a", "a 3")) == [("x", "dims")]


@pytest.mark.parametrize(
    ("source", "view"), [("a a b", "b a a"), ("a*a", "a a"), ("4 4 b", "b 4 4"), ("a b*a", "b a a")]
)
def test_a_name_that_stands_twice_in_one_leaf_is_ambiguous(source: str, view: str) -> None:
    assert faults(lambda: one(source, view)) == [("x", "ambiguous")]


def test_a_name_that_stands_twice_is_fine_where_nothing_is_edited() -> None:
    assert not done(one("a a b", "a a b"))[0]


def test_a_stack_of_square_leaves_is_not_ambiguous() -> None:
    class Square(cs.Schema):
        w: Float32[Array, "embed embed"]

    class Scanned(cs.Schema):
        layers: Square = cs.field(scan="depth", axis=1)

    class Listed(cs.Schema):
        layers: list[Square] = cs.field(length="depth")

    x = leaf(2, 3, 2)
    np.testing.assert_array_equal(
        cs.derive(Scanned, Listed).get({"layers": {"w": x}})["layers"][1]["w"], x[:, 1]
    )


def test_repeats_that_are_counted_by_other_dims_are_an_error() -> None:
    class Scanned(cs.Schema):
        layers: Norm = cs.field(scan="depth")

    class Listed(cs.Schema):
        layers: list[Norm] = cs.field(length="layers")

    class Fixed(cs.Schema):
        layers: list[Norm] = cs.field(length=3)

    assert faults(lambda: cs.derive(Scanned, Listed)) == [("layers[]/scale", "dims")]
    assert faults(lambda: cs.derive(Scanned, Fixed)) == [("layers[]/scale", "dims")]
    assert faults(lambda: cs.derive(Scanned, Norm)) == [
        ("layers[]/scale", "unplaced"),
        ("scale", "unplaced"),
    ]


# --- rules  ---


def test_a_rename_holds_in_the_model_and_in_all_that_mirrors_it() -> None:
    tx = OPTIMIZERS["adamw schedule"]
    lens = cs.derive(
        cs.linen.BareTrainState[Old, tx], cs.nnx.TrainState[New, tx], rules=[cs.rename("b", "bias")]
    )
    moved = {
        lens.source.rows[a].key[-1]: lens.view.rows[b].key[-1]
        for j in lens.joins
        for a, b in j.pairs
    }
    assert moved["b"] == "bias"
    assert len(lens.joins) == len(lens.source.rows) == len(lens.view.rows)


def test_a_rename_of_a_node_renames_all_below_it_and_a_full_path_one_leaf() -> None:
    class Two(cs.Schema):
        a: Old
        c: Old

    class Renamed(cs.Schema):
        x: Old
        c: New

    lens = cs.derive(Two, Renamed, rules=[cs.rename("a", "x"), cs.rename("c/b", "c/bias")])
    assert [str(lens.view.rows[j.views[0]].path) for j in lens.joins] == [
        str(r.path) for r in lens.view.rows
    ]


def test_names_can_be_swapped() -> None:
    class Pair(cs.Schema):
        a: Norm
        b: Norm

    lens = cs.derive(Pair, Pair, rules=[cs.rename("a", "b"), cs.rename("b", "a")])
    tree = {"a": {"scale": leaf(2)}, "b": {"scale": leaf(2) + 5}}
    cs.assert_trees_identical(lens.get(tree), {"a": tree["b"], "b": tree["a"]})


def test_two_source_leaves_for_one_view_leaf_are_an_error() -> None:
    class Pair(cs.Schema):
        a: Norm
        b: Norm

    class Single(cs.Schema):
        a: Norm

    found = faults(lambda: cs.derive(Pair, Single, rules=[cs.rename("b", "a")]))
    assert found == [("a/scale", "ambiguous")]


@pytest.mark.parametrize(
    "rules",
    [
        [cs.rename("c", "bias")],
        [cs.rename("b", "bais")],
        [cs.rename("b/scale", "bias/scale")],
        [cs.private("c", 0)],
        [cs.rename("params/b", "params/bias")],
    ],
    ids=str,
)
def test_a_rule_that_matches_nothing_is_an_error(rules: Sequence[Any]) -> None:
    found = faults(lambda: cs.derive(Old, New, rules=[*rules, cs.rename("b", "bias")]))
    assert (str(rules[0]), "rule") in found


def test_a_rule_for_private_leaves_gives_them_a_default() -> None:
    rules = [cs.private("b", 0.5), cs.private("bias", cs.fresh_key(1))]
    lens = cs.derive(Old, New, rules=rules)
    assert len(lens.joins) == 1
    tree = {"w": leaf(2, 3), "b": leaf(3)}
    view = lens.get(tree)
    np.testing.assert_array_equal(view["bias"], np.zeros(3))
    np.testing.assert_array_equal(lens.put(view)["b"], np.full(3, 0.5))
    cs.assert_trees_identical(lens.put(view, onto=tree), tree)


def test_a_rule_that_calls_a_joined_leaf_private_is_an_error() -> None:
    rules = [cs.rename("b", "bias"), cs.private("w", 0)]
    assert faults(lambda: cs.derive(Old, New, rules=rules)) == [("private('w', 0)", "rule")]


def test_a_default_that_the_leaf_cannot_hold_is_an_error() -> None:
    class Keyed(cs.Schema):
        w: Float32[Array, "embed mlp"]
        b: Float32[Array, " mlp"]
        key: cs.Key["fry"]
        count: UInt32[Array, ""]

    rules = [cs.private("key", 0), cs.private("count", -1)]
    assert faults(lambda: cs.derive(Old, Keyed, rules=rules)) == [
        ("key", "dtype"),
        ("count", "dtype"),
    ]


@pytest.mark.parametrize("rules", ["b", cs.rename("b", "bias"), ["b"], [("b", "bias")], [None]])
def test_what_is_no_list_of_rules_is_an_error(rules: Any) -> None:
    assert faults(lambda: cs.derive(Old, New, rules=rules)) == [("rules", "rule")]


# --- binding  ---


def test_a_dim_that_no_tree_tells_is_asked_for_and_may_be_bound() -> None:
    lens = one("heads*head_dim embed", "heads head_dim embed")
    tree = {"x": leaf(6, 2)}
    with pytest.raises(
        cs.ConformanceError, match=r"lens\.bind\(head_dim=\.\.\., heads=\.\.\.\)"
    ) as caught:
        lens.get(tree)
    assert [(m.path, m.kind) for m in caught.value.mismatches] == [("x", "dims")]
    assert lens.bind(heads=2).get(tree)["x"].shape == (2, 3, 2)
    assert lens.bind(head_dim=2).get(tree)["x"].shape == (3, 2, 2)
    assert lens.get(tree, onto={"x": leaf(2, 3, 2)})["x"].shape == (2, 3, 2)
    assert lens.put({"x": leaf(2, 3, 2)})["x"].shape == (6, 2)


def test_a_bound_dim_that_does_not_divide_is_an_error() -> None:
    lens = one("heads*head_dim embed", "heads head_dim embed").bind(heads=4)
    with pytest.raises(cs.ConformanceError, match=r"6 is no multiple of 4 in heads\*head_dim"):
        lens.get({"x": leaf(6, 2)})


def test_a_dim_on_which_both_trees_disagree_names_both_origins() -> None:
    lens = one("a b", "b a")
    with pytest.raises(cs.ConformanceError, match="onto does not conform to") as caught:
        lens.get({"x": leaf(2, 3)}, onto={"x": leaf(3, 5)})
    (fault,) = caught.value.mismatches
    assert (fault.path, fault.expected, fault.found) == ("x", "float32[b=3 a=2]", "float32[3 5]")
    assert "a=2 (from x of " in fault.hint


def test_an_unknown_dim_cannot_be_bound() -> None:
    assert faults(lambda: one("a b", "b a").bind(c=2)) == [("c", "dims")]
    assert faults(lambda: one("a b", "b a", dims={"A": 2})) == [("A", "dims")]


# --- lenses  ---


def test_put_of_a_source_side_tree_says_so() -> None:
    tx = OPTIMIZERS["adam"]
    lens = cs.derive(cs.linen.TrainState[ScannedSchema, tx], cs.nnx.TrainState[NnxSchema, tx])
    with pytest.raises(
        cs.ConformanceError, match="on the other side of the lens already, swap get and put"
    ):
        lens.put(linen_state(tx))
    with pytest.raises(
        cs.ConformanceError, match="on the other side of the lens already, swap get and put"
    ):
        lens.get(nnx_state(tx))
    with pytest.raises(cs.ConformanceError) as caught:
        lens.get({"neither": leaf(2)})
    assert "swap" not in str(caught.value)


def test_a_wrong_onto_is_an_error_that_says_which_tree_it_is() -> None:
    lens = cs.derive(Old, New, rules=[cs.rename("b", "bias")])
    tree = {"w": leaf(2, 3), "b": leaf(3)}
    with pytest.raises(cs.ConformanceError, match="onto does not conform to New: 3 fault"):
        lens.get(tree, onto=tree)


def test_an_abstract_leaf_gives_no_value() -> None:
    class Kept(cs.Schema):
        w: Float32[Array, "embed mlp"]
        b: Float32[Array, " mlp"]
        stats: Float32[Array, " embed"] | None

    lens = cs.derive(Old, Kept)
    tree = {"w": leaf(2, 3), "b": leaf(3)}
    onto = jax.eval_shape(lambda: {**tree, "stats": leaf(2)})
    assert faults(lambda: lens.get(tree, onto=onto), cs.ConformanceError) == [("stats", "abstract")]
    assert lens.get(tree, onto={**tree, "stats": leaf(2)})["stats"].shape == (2,)
    assert "stats" not in lens.get(tree)


def test_composition_and_inversion() -> None:
    scanned, unrolled, nnx_ = (
        cs.linen.Params[ScannedSchema],
        cs.linen.Params[UnrolledSchema],
        cs.nnx.Params[NnxSchema],
    )
    first, second = cs.derive(scanned, unrolled), cs.derive(unrolled, nnx_)
    tree = linen_state(OPTIMIZERS["sgd"]).params
    both = first >> second
    wanted = second.get(first.get(tree))
    cs.assert_trees_identical(both.get(tree), wanted)
    cs.assert_trees_identical((~both).get(wanted), both.put(wanted))
    cs.assert_trees_identical((~both).put(tree), wanted)
    assert not any(done(first >> ~first))
    with pytest.raises(cs.DerivationError, match="are not one layout"):
        _ = second >> first


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_stack_on_the_way_from_list_to_list_vanishes(axis: int) -> None:
    class Block(cs.Schema):
        w: Float32[Array, "a b"]

    class Turned(cs.Schema):
        w: Float32[Array, "b a"]

    class Listed(cs.Schema):
        layers: list[Block] = cs.field(length="depth")

    class First(cs.Schema):
        layers: Block = cs.field(scan="depth", axis=0)

    class Other(cs.Schema):
        layers: Turned = cs.field(scan="depth", axis=axis)

    class Back(cs.Schema):
        layers: list[Turned] = cs.field(key="layers_{i}", length="depth")

    tree = {"layers": {i: {"w": leaf(2, 3) + 10 * i} for i in range(4)}}
    steps = [cs.derive(Listed, First), cs.derive(First, Other), cs.derive(Other, Back)]
    both = steps[0] >> steps[1] >> steps[2]
    wanted = steps[2].get(steps[1].get(steps[0].get(tree)))
    assert done(both) == ["a b -> b a"]
    cs.assert_trees_identical(both.get(tree), wanted)
    cs.assert_trees_identical(both.put(wanted), tree)


def test_composition_is_total_too() -> None:
    class Needs(cs.Schema):
        w: Float32[Array, " n"]
        stats: Float32[Array, " n"]

    class May(cs.Schema):
        w: Float32[Array, " n"]
        stats: Float32[Array, " n"] | None

    class Filled(cs.Schema):
        w: Float32[Array, " n"]
        stats: Float32[Array, " n"] = cs.field(default=1)

    class Without(cs.Schema):
        w: Float32[Array, " n"]

    assert faults(lambda: cs.derive(Needs, May) >> cs.derive(May, Without)) == [
        ("stats", "unplaced")
    ]
    assert faults(lambda: cs.derive(Without, May) >> cs.derive(May, Needs)) == [
        ("stats", "unplaced")
    ]
    np.testing.assert_array_equal(
        (cs.derive(Without, Filled) >> cs.derive(Filled, Needs)).get({"w": leaf(2)})["stats"],
        np.ones(2),
    )
    np.testing.assert_array_equal(
        (cs.derive(Without, May) >> cs.derive(May, Filled)).get({"w": leaf(2)})["stats"], np.ones(2)
    )


def test_the_table_shows_what_moves_what_is_edited_and_what_is_private() -> None:
    tx = OPTIMIZERS["sgd"]

    class Streams(cs.Schema):
        w: Float32[Array, "mlp embed"]
        dropout: cs.Stream["urbg"] = cs.field(default=cs.fresh_key(3))

    class Stats(cs.Schema):
        w: Float32[Array, "embed mlp"]
        mean: Float32[Array, " embed"] = cs.field(collection="batch_stats", default=0)

    lens = cs.derive(cs.linen.TrainState[Stats, tx], cs.nnx.TrainState[Streams, tx])
    assert lens.in_full().splitlines() == [
        "linen.TrainState[Stats] -> nnx.TrainState[Streams]: "
        "2 joined, 1 private to linen.TrainState[Stats], 2 private to nnx.TrainState[Streams]",
        "  params/params/w   model/w              embed mlp -> mlp embed",
        "  step              optimizer/step       int32 -> uint32",
        "  batch_stats/mean  -                    private, float32[embed], default 0",
        "  -                 model/dropout/key    private, key<urbg>[], default fresh_key(3)",
        "  -                 model/dropout/count  private, uint32[], default 0",
    ]


def test_plans_are_compiled_once_per_structure() -> None:
    tx = OPTIMIZERS["chain"]
    lens = cs.derive(cs.linen.TrainState[ScannedSchema, tx], cs.nnx.TrainState[NnxSchema, tx])
    state = linen_state(tx)
    lens.get(state)
    plans = list(lens._forward._plans[None])
    assert len(plans) == 1
    changed = state.replace(params=jax.tree.map(lambda x: x + 1, state.params), step=8)
    view = lens.get(changed.replace(step=7))
    assert lens._forward._plans[None] == plans
    assert (
        float(view["model"]["norm"]["scale"].get_value()[0])
        == float(state.params["params"]["norm"]["scale"][0]) + 1
    )
    lens.get(jax.eval_shape(lambda: state))
    assert len(lens._forward._plans[None]) == 2


def test_a_cached_plan_takes_no_other_tree() -> None:
    lens = cs.derive(Old, New, rules=[cs.rename("b", "bias")])
    lens.get({"w": leaf(2, 3), "b": leaf(3)})
    assert lens.get({"w": leaf(4, 5), "b": leaf(5)})["w"].shape == (5, 4)
    for bad in (
        {"w": leaf(2, 3), "b": leaf(4)},
        {"w": leaf(2, 3)},
        {"w": leaf(2, 3), "b": jnp.zeros(3, jnp.int32)},
    ):
        with pytest.raises(cs.ConformanceError):
            lens.get(bad)


def test_defaults_are_made_with_the_leaf_s_own_implementation() -> None:
    class Bare(cs.Schema):
        w: Float32[Array, " n"]

    for tag, name in {"fry": "threefry2x32", "rbg": "rbg", "urbg": "unsafe_rbg"}.items():

        class Streamed(Bare):
            dropout: cs.Stream[tag] = cs.field(default=cs.constant_key(7))

        class Stacked(cs.Schema):
            layers: Streamed = cs.field(scan="depth")

        class Plain(cs.Schema):
            layers: Bare = cs.field(scan="depth")

        made = cs.derive(Plain, Stacked).get({"layers": {"w": leaf(3, 2)}})["layers"]["dropout"]
        wanted = jnp.broadcast_to(jax.random.key(7, impl=name), (3,))
        cs.assert_trees_identical(made, {"key": wanted, "count": jnp.zeros(3, jnp.uint32)})


def test_private_leaves_come_from_onto_before_defaults() -> None:
    tx = OPTIMIZERS["adam"]
    lens = cs.derive(cs.linen.TrainState[ScannedSchema, tx], cs.nnx.TrainState[NnxSchema, tx])
    onto = nnx_state(tx)
    used = onto["model"]["layers"][1]["dropout"]["rngs"]["count"]
    used.set_value(used.get_value() + jnp.uint32(41))
    made = lens.get(linen_state(tx), onto=onto)
    assert made["model"]["layers"][1]["dropout"]["rngs"]["count"].get_value() is used.get_value()
    fresh = lens.get(linen_state(tx), onto=nnx.state(nnx.eval_shape(lambda: onto)))
    assert int(fresh["model"]["layers"][1]["dropout"]["rngs"]["count"].get_value()) == 0


# --- stack axes are told from other axes  ---


@pytest.mark.parametrize(("before", "after"), [(0, 1), (1, 0), (0, 2), (2, 1)])
@pytest.mark.parametrize("depth", [3, 2])
def test_a_stack_axis_moves_though_every_size_agrees(before: int, after: int, depth: int) -> None:
    class Model(cs.Schema):
        kernel: Float32[Array, "embed embed"]

    class From(cs.Schema):
        layers: Model = cs.field(scan="depth", axis=before)

    class To(cs.Schema):
        layers: Model = cs.field(scan="depth", axis=after)

    layers = [leaf(3, 3) + 10 * i for i in range(depth)]
    lens = cs.derive(From, To)
    s, v = ({"layers": {"kernel": jnp.stack(layers, axis=axis)}} for axis in (before, after))
    np.testing.assert_array_equal(lens.get(s)["layers"]["kernel"], v["layers"]["kernel"])
    np.testing.assert_array_equal(lens.put(v)["layers"]["kernel"], s["layers"]["kernel"])


def test_a_stack_axis_of_an_inferred_layout_moves_too() -> None:
    s, v = (
        {"layers": {"kernel": jnp.stack([leaf(4, 3), leaf(4, 3) + 20] * 2, axis=axis)}}
        for axis in (0, 1)
    )
    lens = cs.derive(cs.infer(s, scan={"layers": 0}), cs.infer(v, scan={"layers": 1}))
    np.testing.assert_array_equal(lens.get(s)["layers"]["kernel"], v["layers"]["kernel"])


def test_sizes_alone_do_not_say_which_axis_is_which() -> None:
    layouts = [cs.infer({"kernel": leaf(*shape)}) for shape in ((4, 8), (8, 4))]
    assert faults(lambda: cs.derive(*layouts)) == [("params/kernel", "ambiguous")]


# --- compositions do what their parts do  ---


def test_an_absent_leaf_is_filled_in_by_the_layout_between() -> None:
    class May(cs.Schema):
        x: Float32[Array, ""] = cs.field(optional=True)
        w: Float32[Array, " n"]

    class First(cs.Schema):
        x: Float32[Array, ""] = cs.field(default=1.0)
        w: Float32[Array, " n"]

    class Second(cs.Schema):
        x: Float32[Array, ""] = cs.field(default=2.0)
        w: Float32[Array, " n"]

    class Required(cs.Schema):
        x: Float32[Array, ""]
        w: Float32[Array, " n"]

    tree = {"w": leaf(2)}
    for last in (Second, Required):
        a, b = cs.derive(May, First), cs.derive(First, last)
        cs.assert_trees_identical((a >> b).get(tree), b.get(a.get(tree)))
        cs.assert_trees_identical((~(a >> b)).put(tree), (~a).put(tree))


def test_a_default_of_the_layout_between_must_fit_the_far_side() -> None:
    class Without(cs.Schema):
        w: Float32[Array, " n"]

    class Unsigned(Without):
        m: UInt32[Array, ""] = cs.field(default=2**32 - 1)

    class Signed(Without):
        m: Int32[Array, ""]

    assert faults(lambda: cs.derive(Without, Unsigned) >> cs.derive(Unsigned, Signed)) == [
        ("m", "dtype")
    ]


def test_lenses_bound_to_other_sizes_do_not_compose() -> None:
    first = one("3*h*k", "3 h k").bind(h=4)
    second = cs.derive(first.view, first.view).bind(h=2)
    assert faults(lambda: first >> second) == [("h", "dims")]


def test_key_paths_that_print_alike_are_not_one_layout() -> None:
    flat, nested = (cs.infer(tree) for tree in ({"a/b": leaf(2)}, {"a": {"b": leaf(2)}}))
    assert len(faults(lambda: cs.derive(flat, flat) >> cs.derive(nested, nested))) == 2


# --- hints  ---


def hints(*layouts: Any) -> list[str]:
    """What the error advises, fault by fault."""
    with pytest.raises(cs.DerivationError) as caught:
        cs.derive(*layouts)
    return [m.hint for m in caught.value.mismatches]


def rules(advice: list[str]) -> list[Any]:
    """Every rename that the hints spell out, once."""
    found = dict.fromkeys(re.findall(r"rename\('[^']*', '[^']*'\)", " ".join(advice)))
    return [eval(f"cs.{rule}") for rule in found]


def test_the_order_of_numbers_is_no_proof() -> None:
    """Which of two equal layers is which no name can tell; both sides' faults list what each may be."""

    def kernel(value: float) -> dict[str, Any]:
        return {"kernel": jnp.full((3, 3), value)}

    old = cs.infer({"params": {f"Conv_{i}": kernel(i) for i in range(3)}})
    new = cs.infer({"params": {f"conv{i + 1}": kernel(i) for i in range(3)}})
    with pytest.raises(cs.DerivationError) as caught:
        cs.derive(old, new)
    assert not caught.value.rules and not rules(hints(old, new))
    listed = "params/conv1/kernel, params/conv2/kernel, params/conv3/kernel"
    assert hints(old, new)[0] == (
        f"one of {listed} may be it: say which with a rename; "
        "where they count layers, declare each side's as a list"
    )


def test_what_is_declared_as_a_list_on_both_sides_is_one_rename() -> None:
    old = {"params": {f"Conv_{i}": {"kernel": jnp.full((3, 2), i)} for i in range(3)}}
    new = {"params": {f"conv{i + 1}": {"kernel": jnp.full((3, 2), i)} for i in range(3)}}
    layouts = cs.infer(old, lists=["Conv_{i}"]), cs.infer(new, lists=["conv{i+1}"])
    with pytest.raises(cs.DerivationError) as caught:
        cs.derive(*layouts)
    assert len(caught.value.rules) == 1
    cs.assert_trees_identical(cs.derive(*layouts, rules=caught.value.rules).get(old), new)


def test_what_stands_beside_a_leaf_tells_it_apart() -> None:
    kernel, bias = jnp.ones((2, 2)), jnp.zeros(2)
    old = cs.infer(
        {"params": {"Dense_0": {"kernel": kernel}, "Dense_1": {"kernel": kernel, "bias": bias}}}
    )
    new = cs.infer(
        {"params": {"dense1": {"kernel": kernel, "bias": bias}, "dense2": {"kernel": kernel}}}
    )
    found = {str(rule) for rule in rules(hints(old, new))}
    assert found == {"rename('Dense_0', 'dense2')", "rename('Dense_1', 'dense1')"}


def test_where_one_side_has_more_of_them_no_rule_is_spelled_out() -> None:
    three = cs.infer({"params": {f"norm_{i}": {"scale": jnp.ones(4)} for i in range(3)}})
    two = cs.infer({"params": {f"norm{i}": {"scale": jnp.ones(4)} for i in range(2)}})
    advice = hints(three, two)
    assert not rules(advice) and len(advice) == 5
    assert advice[0].startswith(
        "one of params/norm0/scale, params/norm1/scale may be it: say which"
    )
    assert advice[3].startswith(
        "one of params/norm_0/scale, params/norm_1/scale, params/norm_2/scale may be it: "
    )


def test_a_leaf_that_is_a_param_on_one_side_alone_is_told_to_be_declared_alike() -> None:
    class Counted(cs.Schema):
        scale: Float32[Array, " embed"]
        mean: Float32[Array, " embed"] = cs.field(collection="batch_stats")

    class Trained(cs.Schema):
        scale: Float32[Array, " embed"]
        mean: Float32[Array, " embed"]

    tx = OPTIMIZERS["adam"]
    linen, nnx_ = cs.linen.TrainState[Counted, tx], cs.nnx.TrainState[Trained, tx]
    wanted = "mean is Param here and batch_stats there: declare it alike, by collection= in Linen and type= in NNX"
    assert hints(linen, nnx_) == hints(nnx_, linen) == [wanted]


def test_a_stack_that_was_not_declared_is_asked_for() -> None:
    class Stacked(cs.Schema):
        layers: Norm = cs.field(scan="depth")

    class Single(cs.Schema):
        layers: Norm

    assert [hint.partition(", or")[0] for hint in hints(Stacked, Single)] == [
        "likeliest: layers/scale; repeats there: none, here: depth; declare scan= or list[...] on both sides",
        "likeliest: layers/scale; repeats there: depth, here: none; declare scan= or list[...] on both sides",
    ]


@pytest.mark.parametrize(
    "rule",
    [lambda: cs.rename(1, "a"), lambda: cs.rename("", "a"), lambda: cs.private(("a", "b"), 0)],
)  # type: ignore[arg-type]
def test_a_rule_of_no_path_is_refused(rule: Callable[[], Any]) -> None:
    with pytest.raises(
        cs.SchemaError, match=r"expected a logical path, such as \"layers\[\]/norm\""
    ):
        rule()
