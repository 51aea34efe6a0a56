"""Rules and layouts that combine on one leaf, in one lens: each held against what NumPy says it is."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jaxtyping import Array, Float32
from support.words import done

import ckpt_schema as cs

SIZES = {"embed": 3, "heads": 4, "kv": 2, "dim": 2}
E, Q, KV = 3, 8, 4


def schema(name: str, **leaves: Any) -> Any:
    """A schema of these leaves, by their dims; one of another dtype is said by both."""
    annotations: dict[str, Any] = {}
    fields: dict[str, Any] = {}
    for leaf, told in leaves.items():
        if isinstance(told, str):
            annotations[leaf] = Float32[Array, told]
        elif isinstance(told, tuple) and isinstance(told[0], str):
            annotations[leaf] = getattr(jaxtyping, told[0])[Array, told[1]]
        elif isinstance(told, tuple):
            annotations[leaf], fields[leaf] = told
        else:
            annotations[leaf] = told
    return type(name, (cs.Schema,), {"__annotations__": annotations, **fields})


Apart = schema("Apart", q="embed heads*dim", k="embed kv*dim", v="embed kv*dim")
FUSE = cs.fuse("qkv", ["q", "k", "v"])
rng = np.random.default_rng(0)
q, k, v = (rng.normal(size=(E, n)).astype("float32") for n in (Q, KV, KV))
PARTS = {"q": q, "k": k, "v": v}


def held(lens: cs.Lens, source: Any, view: Any) -> None:
    """Holds both ways of a lens against what they are to give, on NumPy's arrays and on jax's."""
    for place in (np.asarray, jnp.asarray):
        ours, theirs = (
            {name: _placed(value, place) for name, value in tree.items()} for tree in (source, view)
        )
        cs.assert_trees_identical(lens.get(ours), theirs)
        cs.assert_trees_identical(lens.put(theirs), ours)
    words = done(lens >> ~lens)
    assert all("pad" in each for each in words if each), "there and back all but padding only moves"


def _placed(value: Any, place: Any) -> Any:
    if isinstance(value, dict):
        return {name: _placed(each, place) for name, each in value.items()}
    return place(value)


def whole(*parts: Any, axis: int = 1) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(np.concatenate(parts, axis))


# --- fuse with everything else  ---

WHOLE = "embed heads*dim+2*kv*dim"
FUSED: dict[str, tuple[Any, list[Any], Any]] = {
    "scale of a part": (WHOLE, [cs.scale("q", 0.5)], whole(q * np.float32(0.5), k, v)),
    "scale of the whole": (WHOLE, [cs.scale("qkv", 0.5)], whole(q, k, v) * np.float32(0.5)),
    "scale of both": (
        WHOLE,
        [cs.scale("q", 0.5), cs.scale("qkv", 4)],
        whole(q * np.float32(2), k * np.float32(4), v * np.float32(4)),
    ),
    "flip of a part": (WHOLE, [cs.flip("k", "embed")], whole(q, k[::-1], v)),
    "flip of a part's own axis": (WHOLE, [cs.flip("k", "kv*dim")], whole(q, k[:, ::-1], v)),
    "flip of the whole": (WHOLE, [cs.flip("qkv", "embed")], whole(q, k, v)[::-1].copy()),
    "flip of the axis that is shared": (
        WHOLE,
        [cs.flip("qkv", "heads*dim+2*kv*dim")],
        whole(q, k, v)[:, ::-1].copy(),
    ),
    "pad of the whole": (
        "rows heads*dim+2*kv*dim",
        [cs.pad("qkv", "embed", "rows", 7)],
        np.pad(whole(q, k, v), ((0, 2), (0, 0)), constant_values=7),
    ),
    "pad of the axis that is shared": (
        "embed all",
        [cs.pad("qkv", "heads*dim+2*kv*dim", "all")],
        np.pad(whole(q, k, v), ((0, 0), (0, 4))),
    ),
    "transpose": ("heads*dim+2*kv*dim embed", [], whole(q, k, v).T.copy()),
    "scale, flip and transpose": (
        "heads*dim+2*kv*dim embed",
        [cs.scale("v", 2), cs.flip("q", "embed"), cs.flip("qkv", "embed")],
        whole(q, k[::-1], v[::-1] * np.float32(2)).T.copy(),
    ),
}


@pytest.mark.parametrize("what", FUSED)
def test_a_fused_leaf_combines_with(what: str) -> None:
    dims, rules, made = FUSED[what]
    sizes = {**SIZES, "rows": 5, "all": 20}
    used = {name: sizes[name] for name in sizes if name in dims or name in SIZES}
    lens = cs.derive(Apart, schema("Fused", qkv=dims), rules=[FUSE, *rules], dims=used)
    held(lens, PARTS, {"qkv": made})


@pytest.mark.parametrize("what", FUSED)
def test_it_does_the_same_from_the_side_that_has_it_whole(what: str) -> None:
    dims, rules, made = FUSED[what]
    sizes = {**SIZES, "rows": 5, "all": 20}
    used = {name: sizes[name] for name in sizes if name in dims or name in SIZES}
    turned = [
        cs.scale("/".join(r.path), 2.0**-r.exponent) if hasattr(r, "exponent") else r for r in rules
    ]
    lens = cs.derive(schema("Fused", qkv=dims), Apart, rules=[FUSE, *turned], dims=used)
    held(lens, {"qkv": made}, PARTS)


def test_a_part_of_another_dtype() -> None:
    apart = schema("Apart", a=("Int32", "embed heads"), b=("Int8", "embed kv"))
    fused = schema("Fused", ab=("Int32", "embed heads+kv"))
    a = np.arange(12, dtype="int32").reshape(3, 4)
    b = np.arange(6, dtype="int8").reshape(3, 2)
    lens = cs.derive(apart, fused, rules=[cs.fuse("ab", ["a", "b"])])
    held(lens.bind(heads=4, kv=2), {"a": a, "b": b}, {"ab": whole(a, b.astype("int32"))})
    with pytest.raises(cs.ConformanceError, match="values of int8"):
        lens.bind(heads=4, kv=2).put({"ab": np.full((3, 6), 300, "int32")})


def test_a_tied_part() -> None:
    twice = schema(
        "Twice", q="embed heads*dim", k="embed kv*dim", v="embed kv*dim", key="embed kv*dim"
    )
    lens = cs.derive(
        twice, schema("Fused", qkv=WHOLE), rules=[FUSE, cs.tie("key", "k")], dims=SIZES
    )
    made = {"qkv": whole(q, k, v)}
    cs.assert_trees_identical(lens.get({**PARTS, "key": k.copy()}), made)
    cs.assert_trees_identical(lens.put(made), {**PARTS, "key": k})
    with pytest.raises(cs.ConformanceError, match="copies of one leaf are equal"):
        lens.get({**PARTS, "key": k + 1})


# --- Stacks and lists of what is fused  ---


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_fused_in_a_stack_on_one_side_and_apart_in_a_list_on_the_other(axis: int) -> None:
    layer = schema("Layer", q="embed heads*dim", k="embed kv*dim", v="embed kv*dim")
    listed = schema("Listed", layers=(list[layer], cs.field(length="depth")))
    fused = schema("FusedLayer", qkv=WHOLE)
    stacked = schema("Stacked", layers=(fused, cs.field(scan="depth", axis=axis)))
    rules = [
        cs.fuse("layers[]/qkv", [f"layers[]/{name}" for name in "qkv"]),
        cs.scale("layers[]/q", 0.5),
    ]
    lens = cs.derive(listed, stacked, rules=rules, dims=SIZES)
    several = [{name: value + i for name, value in PARTS.items()} for i in range(3)]
    made = [whole(each["q"] * np.float32(0.5), each["k"], each["v"]) for each in several]
    held(
        lens,
        {"layers": dict(enumerate(several))},
        {"layers": {"qkv": np.ascontiguousarray(np.stack(made, axis))}},
    )


def _series(told: Any, **rest: Any) -> Any:
    layer = schema("Block", w=told)
    body = {
        "blocks": (layer, cs.field(scan="blocks", axis=1)),
        "last": (list[layer], cs.field(length="rest")),
        **rest,
    }
    made = schema("Blocks", **body)
    return type("Series", (made,), {"layers": cs.series("blocks[]", "last[]")})


SERIES: dict[str, tuple[str, Any, Any]] = {
    "flip": ("a b", [cs.flip("layers[]/w", "a")], lambda w: w[::-1]),
    "scale": ("a b", [cs.scale("layers[]/w", 4)], lambda w: w * np.float32(4)),
    "pad": (
        "a c",
        [cs.pad("layers[]/w", "b", "c", 1)],
        lambda w: np.pad(w, ((0, 0), (0, 2)), constant_values=1),
    ),
    "transpose": ("b a", [], lambda w: w.T),
    "cast": (("Int8", "a b"), [], lambda w: w.astype("int8")),
}


@pytest.mark.parametrize("what", SERIES)
def test_a_series_of_a_stack_and_a_list_combines_with(what: str) -> None:
    dims, rules, change = SERIES[what]
    kind = ("Int32", "a b") if what == "cast" else "a b"
    layer = schema("Layer", w=dims)
    listed = schema("Listed", layers=(list[layer], cs.field(length="blocks+rest")))
    lens = cs.derive(_series(kind), listed, rules=rules, dims={"blocks": 2, "rest": 1})
    if what == "pad":
        lens = lens.bind(b=3, c=5)
    w = np.arange(18, dtype="int32" if what == "cast" else "float32").reshape(3, 2, 3)
    source = {
        "blocks": {"w": np.ascontiguousarray(np.stack(w[:2], 1))},
        "last": {0: {"w": w[2]}},
    }
    view = {"layers": {i: {"w": np.ascontiguousarray(change(each))} for i, each in enumerate(w)}}
    held(lens, source, view)


# --- What an axis may be  ---


def test_parts_both_ways_of_a_whole_that_no_side_has() -> None:
    two = schema("Two", q="embed heads*dim", kv="embed 2*kv*dim")
    rules = [FUSE, cs.fuse("qkv", ["q", "kv"])]
    lens = cs.derive(Apart, two, rules=rules, dims=SIZES)
    held(lens, PARTS, {"q": q, "kv": whole(k, v)})


def test_two_of_three_parts() -> None:
    two = schema("Two", q="embed heads*dim", kv="embed 2*kv*dim")
    lens = cs.derive(Apart, two, rules=[cs.fuse("kv", ["k", "v"])], dims=SIZES)
    held(lens, PARTS, {"q": q, "kv": whole(k, v)})


def test_layers_in_other_blocks_on_each_side() -> None:
    layer = schema("Layer", w="a")
    six = schema(
        "Six",
        layers=(
            schema("Inner", each=(layer, cs.field(scan="6", axis=0))),
            cs.field(scan="2*k", axis=0),
        ),
    )
    four = schema(
        "Four",
        layers=(
            schema("Inner", each=(layer, cs.field(scan="4", axis=0))),
            cs.field(scan="3*k", axis=0),
        ),
    )
    lens = cs.derive(six, four)
    w = np.arange(24.0, dtype="float32").reshape(2, 6, 2)
    held(
        lens.bind(k=1),
        {"layers": {"each": {"w": w}}},
        {"layers": {"each": {"w": w.reshape(3, 4, 2)}}},
    )


def test_one_query_and_two_keys_as_heads_of_one_axis() -> None:
    apart = schema("Apart", q="heads dim", kv="2 heads dim")
    x = np.arange(24.0, dtype="float32").reshape(3, 4, 2)
    lens = cs.derive(
        apart, schema("Fused", qkv="1+2 heads dim"), rules=[cs.fuse("qkv", ["q", "kv"])]
    )
    held(lens, {"q": x[0], "kv": x[1:]}, {"qkv": x})


def test_groups_of_queries_with_their_key_and_value() -> None:
    apart = schema("Apart", q="groups per dim", k="groups dim", v="groups dim")
    x = np.arange(2 * 5 * 2.0, dtype="float32").reshape(2, 5, 2)
    lens = cs.derive(
        apart,
        schema("Fused", qkv="groups*(per+1+1)*dim"),
        rules=[cs.fuse("qkv", ["q", "k", "v"])],
        dims={"groups": 2, "dim": 2, "per": 3},
    )
    parts = {"q": x[:, :3].copy(), "k": x[:, 3].copy(), "v": x[:, 4].copy()}
    held(lens, parts, {"qkv": x.reshape(-1)})


def test_gate_and_up_interleaved_and_transposed() -> None:
    apart = schema("Apart", gate="embed mlp", up="embed mlp")
    gate, up = (rng.normal(size=(3, 4)).astype("float32") for _ in range(2))
    lens = cs.derive(
        apart, schema("Fused", both="mlp*2 embed"), rules=[cs.fuse("both", ["gate", "up"])]
    )
    made = np.ascontiguousarray(np.stack([gate, up], -1).reshape(3, 8).T)
    held(lens, {"gate": gate, "up": up}, {"both": made})


def test_a_pad_inside_of_a_product() -> None:
    plain, padded = schema("Plain", w="embed heads*dim"), schema("Padded", w="heads*wide embed")
    lens = cs.derive(plain, padded, rules=[cs.pad("w", "dim", "wide", 9)]).bind(
        heads=4, dim=2, wide=3
    )
    made = np.pad(q.reshape(3, 4, 2), ((0, 0), (0, 0), (0, 1)), constant_values=9)
    held(lens, {"w": q}, {"w": np.ascontiguousarray(made.reshape(3, 12).T)})
    wrong = np.ascontiguousarray(made.reshape(3, 12).T)
    wrong[2] = 8
    with pytest.raises(cs.ConformanceError, match="9 in the padding"):
        lens.put({"w": wrong})


def test_a_flip_of_one_factor_of_a_product() -> None:
    plain = schema("Plain", w="embed heads*dim")
    lens = cs.derive(plain, schema("Other", w="heads*dim embed"), rules=[cs.flip("w", "dim")]).bind(
        heads=4, dim=2
    )
    made = q.reshape(3, 4, 2)[..., ::-1].reshape(3, 8).T
    held(lens, {"w": q}, {"w": np.ascontiguousarray(made)})


# --- Composition  ---


def test_parts_that_are_joined_and_split_again_compose() -> None:
    fused = schema("Fused", qkv=WHOLE)
    two = schema("Two", q="embed heads*dim", kv="embed 2*kv*dim")
    first = cs.derive(Apart, fused, rules=[FUSE], dims=SIZES)
    second = cs.derive(fused, two, rules=[cs.fuse("qkv", ["q", "kv"])], dims=SIZES)
    held(first >> second, PARTS, {"q": q, "kv": whole(k, v)})
    again = cs.derive(fused, Apart, rules=[FUSE], dims=SIZES)
    held(first >> again, PARTS, PARTS)
    assert not any(done(first >> again))


def test_split_and_then_transposed_composes() -> None:
    fused = schema("Fused", qkv=WHOLE)
    turned = schema("Turned", q="heads*dim embed", k="kv dim embed", v="embed kv dim")
    first = cs.derive(fused, Apart, rules=[FUSE], dims=SIZES)
    second = cs.derive(Apart, turned, rules=[cs.scale("k", 2)], dims=SIZES)
    made = {
        "q": np.ascontiguousarray(q.T),
        "k": np.ascontiguousarray((k * np.float32(2)).reshape(3, 2, 2).transpose(1, 2, 0)),
        "v": v.reshape(3, 2, 2),
    }
    held(first >> second, {"qkv": whole(q, k, v)}, made)


def test_a_leaf_of_which_a_part_is_not_written_is_an_error() -> None:
    lens = cs.derive(Apart, schema("Fused", qkv=WHOLE), rules=[FUSE], dims=SIZES)
    (join,) = lens.joins
    less = dataclasses.replace(join, cells=join.cells[:2])
    with pytest.raises(cs.ConformanceError, match="every element of float32"):
        dataclasses.replace(lens, joins=(less,)).get(PARTS)


# --- Copies, padding on both sides, and spellings  ---


@pytest.mark.parametrize("what", ["scale", "flip", "pad"])
def test_what_is_said_of_a_leaf_is_said_of_its_copies(what: str) -> None:
    rule = {
        "scale": cs.scale("w", 2),
        "flip": cs.flip("w", "embed"),
        "pad": cs.pad("w", "embed", "rows", 3),
    }[what]
    dims = "rows kv*dim" if what == "pad" else "embed kv*dim"
    plain = schema("Plain", w="embed kv*dim")
    twice = schema("Twice", w=dims, copy=dims)
    made = {
        "scale": k * np.float32(2),
        "flip": k[::-1].copy(),
        "pad": np.pad(k, ((0, 2), (0, 0)), constant_values=3),
    }[what]
    sizes = {"kv": 2, "dim": 2, **({"embed": 3, "rows": 5} if what == "pad" else {})}
    lens = cs.derive(plain, twice, rules=[rule, cs.tie("copy", "w")]).bind(**sizes)
    held(lens, {"w": k}, {"w": made, "copy": made.copy()})


def test_a_copy_of_a_padded_leaf_that_has_parts() -> None:
    fused = schema("Fused", qkv="rows heads*dim+2*kv*dim", copy="heads*dim+2*kv*dim rows")
    rules = [FUSE, cs.pad("qkv", "embed", "rows", 7), cs.tie("copy", "qkv")]
    made = np.pad(whole(q, k, v), ((0, 2), (0, 0)), constant_values=7)
    lens = cs.derive(Apart, fused, rules=rules).bind(**SIZES, rows=5)
    cs.assert_trees_identical(lens.get(PARTS), {"qkv": made, "copy": made.T.copy()})
    cs.assert_trees_identical(lens.put({"qkv": made, "copy": made.T.copy()}), PARTS)


def test_both_sides_pad_an_axis_each_to_its_own_size() -> None:
    ours, theirs = schema("Ours", w="five kv*dim"), schema("Theirs", w="kv*dim four")
    rules = [cs.pad("w", "embed", "five", 1), cs.pad("w", "embed", "four"), cs.flip("w", "embed")]
    lens = cs.derive(ours, theirs, rules=rules).bind(embed=3, five=5, four=4, kv=2, dim=2)
    before = np.pad(k, ((0, 2), (0, 0)), constant_values=1)
    after = np.ascontiguousarray(np.pad(k[::-1], ((0, 1), (0, 0))).T)
    held(lens, {"w": before}, {"w": after})


def test_both_sides_pad_alike_what_runs_the_other_way() -> None:
    padded = schema("Padded", w="five kv*dim")
    rules = [cs.pad("w", "embed", "five", 1), cs.flip("w", "embed")]
    lens = cs.derive(padded, padded, rules=rules).bind(embed=3, kv=2, dim=2)
    before, after = (np.pad(x, ((0, 2), (0, 0)), constant_values=1) for x in (k, k[::-1]))
    held(lens, {"w": before}, {"w": after})


def test_a_sum_has_one_spelling() -> None:
    ours, theirs = schema("Ours", w="groups*(per+1+1)"), schema("Theirs", w="groups per+2")
    w = np.arange(8, dtype="float32")
    lens = cs.derive(ours, theirs, dims={"groups": 2, "per": 2})
    held(lens, {"w": w}, {"w": w.reshape(2, 4)})


def test_blocks_that_have_the_numbers_of_the_other_side_the_other_way_round() -> None:
    layer = schema("Layer", w="a")

    def blocks(outer: str, inner: str) -> Any:
        each = schema("Inner", each=(list[layer], cs.field(length=inner)))
        return schema("Outer", layers=(list[each], cs.field(length=outer)))

    def tree(outer: int, inner: int) -> Any:
        w = np.arange(24, dtype="float32").reshape(outer, inner, 2)
        return {
            "layers": {
                i: {"each": {j: {"w": each.copy()} for j, each in enumerate(block)}}
                for i, block in enumerate(w)
            }
        }

    lens = cs.derive(blocks("2*k", "3"), blocks("3*k", "2"))
    held(lens.bind(k=2), tree(4, 3), tree(6, 2))


def test_a_whole_and_its_parts_with_copies_on_both_sides() -> None:
    ours = schema("Ours", kv="embed 2*kv*dim", copy="2 kv dim embed")
    theirs = schema("Theirs", k="embed kv*dim", v="kv*dim embed", again="embed kv*dim")
    rules = [cs.fuse("kv", ["k", "v"]), cs.tie("copy", "kv"), cs.tie("again", "v")]
    lens = cs.derive(ours, theirs, rules=rules, dims={"kv": 2, "dim": 2})
    made = whole(k, v)
    source = {"kv": made, "copy": np.ascontiguousarray(made.T).reshape(2, 2, 2, 3)}
    view = {"k": k, "v": v.T.copy(), "again": v.copy()}
    for place in (np.asarray, jnp.asarray):
        cs.assert_trees_identical(lens.get(_placed(source, place)), _placed(view, place))
        cs.assert_trees_identical(lens.put(_placed(view, place)), _placed(source, place))
    with pytest.raises(cs.ConformanceError, match="are equal to the last bit"):
        lens.put({**view, "again": v + 1})
    with pytest.raises(cs.ConformanceError, match="are equal to the last bit"):
        lens.get({**source, "copy": source["copy"] + 1})


# --- Lists that one side has in several nodes  ---

LAYER = schema("Layer", q="embed heads*dim", k="embed kv*dim", v="embed kv*dim")
FUSED_LAYER = schema("FusedLayer", qkv=WHOLE)
SEVERAL = [{name: value + i for name, value in PARTS.items()} for i in range(3)]
WHOLES = [whole(each["q"], each["k"], each["v"]) for each in SEVERAL]


def _in_nodes(layer: Any, *nodes: tuple[str, str]) -> Any:
    """A schema whose layers stand in several nodes, the first stacked on axis 1, the others in lists."""
    (first, count), *others = nodes
    made: dict[str, Any] = {first: (layer, cs.field(scan=count, axis=1))}
    made |= {name: (list[layer], cs.field(length=size)) for name, size in others}
    body = schema("Nodes", **made)
    return type(
        "Series", (body,), {"layers": cs.series(f"{first}[]", *(f"{n}[]" for n, _ in others))}
    )


def _stack(several: Any) -> Any:
    names = several[0]
    return {name: np.ascontiguousarray(np.stack([s[name] for s in several], 1)) for name in names}


@pytest.mark.parametrize("divided", ["apart", "fused"])
def test_a_list_in_several_nodes_is_fused(divided: str) -> None:
    rules = [
        cs.fuse("layers[]/qkv", [f"layers[]/{name}" for name in "qkv"]),
        cs.flip("layers[]/q", "embed"),
    ]
    ours, theirs = (LAYER, FUSED_LAYER) if divided == "apart" else (FUSED_LAYER, LAYER)
    listed = schema("Listed", layers=(list[theirs], cs.field(length="blocks+rest")))
    nodes = _in_nodes(ours, ("blocks", "blocks"), ("last", "rest"))
    lens = cs.derive(nodes, listed, rules=rules, dims={**SIZES, "blocks": 2})
    turned = [{"qkv": whole(each["q"][::-1], each["k"], each["v"])} for each in SEVERAL]
    one, other = (SEVERAL, turned) if divided == "apart" else (turned, SEVERAL)
    source = {"blocks": _stack(one[:2]), "last": {0: one[2]}}
    held(lens, source, {"layers": dict(enumerate(other))})


def test_a_list_in_several_nodes_has_another_name_and_so_do_its_leaves() -> None:
    ours = _in_nodes(schema("Block", w="embed kv*dim"), ("blocks", "blocks"), ("last", "rest"))
    layer = schema("Layer", x="kv*dim embed", copy="embed kv*dim")
    theirs = schema("Listed", h=(list[layer], cs.field(length="blocks+rest")))
    rules = [cs.rename("layers[]/w", "h[]/x"), cs.scale("h[]/x", 2), cs.tie("h[]/copy", "h[]/x")]
    lens = cs.derive(ours, theirs, rules=rules, dims={"kv": 2, "dim": 2, "blocks": 2})
    keys = [each["k"] for each in SEVERAL]
    source = {"blocks": _stack([{"w": key} for key in keys[:2]]), "last": {0: {"w": keys[2]}}}
    twice = [key * np.float32(2) for key in keys]
    view = {"h": {i: {"x": key.T.copy(), "copy": key.copy()} for i, key in enumerate(twice)}}
    cs.assert_trees_identical(lens.get(source), view)
    cs.assert_trees_identical(lens.put(view), source)


def test_both_sides_divide_a_list_in_different_ways() -> None:
    ours = _in_nodes(LAYER, ("blocks", "2"), ("last", "1"))
    theirs = _in_nodes(FUSED_LAYER, ("first", "1"), ("others", "2"))
    rules = [cs.fuse("layers[]/qkv", [f"layers[]/{name}" for name in "qkv"])]
    lens = cs.derive(ours, theirs, rules=rules, dims=SIZES)
    source = {"blocks": _stack(SEVERAL[:2]), "last": {0: SEVERAL[2]}}
    made = [{"qkv": each} for each in WHOLES]
    held(lens, source, {"first": _stack(made[:1]), "others": dict(enumerate(made[1:]))})


def test_the_nodes_of_a_list_differ_in_what_each_does_to_its_leaves() -> None:
    block, rest = schema("Block", w="rows kv*dim"), schema("Rest", w="kv*dim embed")
    body = schema(
        "Nodes",
        blocks=(block, cs.field(scan="blocks", axis=1)),
        last=(list[rest], cs.field(length="rest")),
    )
    ours = type("Series", (body,), {"layers": cs.series("blocks[]", "last[]")})
    layer = schema("Layer", w="embed kv*dim")
    theirs = schema("Listed", layers=(list[layer], cs.field(length="blocks+rest")))
    rules = [
        cs.pad("blocks[]/w", "embed", "rows", 5),
        cs.scale("last[]/w", 4),
        cs.flip("layers[]/w", "embed"),
    ]
    lens = cs.derive(ours, theirs, rules=rules).bind(kv=2, dim=2, rows=5, blocks=2)
    keys = [each["k"] for each in SEVERAL]
    padded = [np.pad(key[::-1], ((0, 2), (0, 0)), constant_values=5) for key in keys]
    source = {
        "blocks": _stack([{"w": each} for each in padded[:2]]),
        "last": {0: {"w": np.ascontiguousarray((keys[2][::-1] / np.float32(4)).T)}},
    }
    held(lens, source, {"layers": {i: {"w": key.copy()} for i, key in enumerate(keys)}})


def test_parts_that_are_cut_elsewhere_than_the_whole_is_written() -> None:
    theirs = schema("Theirs", qk="heads*dim+kv*dim embed", v="embed kv*dim")
    lens = cs.derive(
        schema("Fused", qkv=WHOLE), theirs, rules=[cs.fuse("qkv", ["qk", "v"])], dims=SIZES
    )
    held(lens, {"qkv": whole(q, k, v)}, {"qk": whole(q, k).T.copy(), "v": v})
    ours = schema("Ours", q="dim embed heads", kv="2*kv dim embed")
    theirs = schema("Theirs", qk="embed heads+kv dim", v="dim kv embed")
    rules = [cs.fuse("qkv", ["q", "kv"]), cs.fuse("qkv", ["qk", "v"])]
    lens = cs.derive(ours, theirs, rules=rules, dims={"heads": 4, "kv": 2})
    x, y, z = q.reshape(3, 4, 2), k.reshape(3, 2, 2), v.reshape(3, 2, 2)
    source = {"q": x.transpose(2, 0, 1).copy(), "kv": whole(y, z).transpose(1, 2, 0).copy()}
    held(lens, source, {"qk": whole(x, y), "v": z.transpose(2, 1, 0).copy()})


def test_all_of_a_merged_axis_of_a_list_in_several_nodes_runs_the_other_way() -> None:
    ours = schema("Listed", layers=(list[schema("L", w="kv*2")], cs.field(length="blocks+rest")))
    theirs = _in_nodes(schema("N", w="2*kv"), ("blocks", "blocks"), ("last", "rest"))
    rules = [cs.flip("layers[]/w", "2"), cs.flip("layers[]/w", "kv"), cs.scale("layers[]/w", 2)]
    lens = cs.derive(ours, theirs, rules=rules).bind(kv=3, blocks=2)
    w = np.arange(18, dtype="float32").reshape(3, 3, 2)
    made = [np.ascontiguousarray(each[::-1, ::-1].T).reshape(6) * np.float32(2) for each in w]
    source = {"layers": {i: {"w": each.reshape(6)} for i, each in enumerate(w)}}
    held(
        lens, source, {"blocks": _stack([{"w": x} for x in made[:2]]), "last": {0: {"w": made[2]}}}
    )


def test_a_flip_of_a_factor_that_has_the_size_of_a_list_of_layers() -> None:
    def blocks(dims: str) -> Any:
        inner = schema("Inner", each=(list[schema("L", w=dims)], cs.field(length="2")))
        return schema("Outer", blocks=(list[inner], cs.field(length="n")))

    rules = [cs.flip("blocks[]/each[]/w", "2")]
    lens = cs.derive(blocks("a*2"), blocks("2 a"), rules=rules)
    w = np.arange(12, dtype="float32").reshape(2, 3, 2)
    source = {"blocks": {0: {"each": {i: {"w": w[i].reshape(6)} for i in range(2)}}}}
    made = [np.ascontiguousarray(each[:, ::-1].T) for each in w]
    view = {"blocks": {0: {"each": {i: {"w": made[i]} for i in range(2)}}}}
    held(lens, source, view)


def test_the_size_that_neither_side_has_is_given_beforehand() -> None:
    ours, theirs = schema("Ours", w="five kv*dim"), schema("Theirs", w="kv*dim four")
    rules = [cs.pad("w", "embed", "five", 1), cs.pad("w", "embed", "four")]
    lens = cs.derive(ours, theirs, rules=rules, dims={"embed": 3, "kv": 2})
    before = np.pad(k, ((0, 2), (0, 0)), constant_values=1)
    after = np.ascontiguousarray(np.pad(k, ((0, 1), (0, 0))).T)
    held(lens.bind(five=5, four=4), {"w": before}, {"w": after})


def test_padding_that_a_middle_has_twice_is_filled_once() -> None:
    ours, theirs = schema("Ours", w="five kv"), schema("Theirs", w="four kv")
    twice = schema("Twice", w="five kv", copy="kv five")
    first = cs.derive(ours, twice, rules=[cs.tie("copy", "w")])
    pads = [cs.pad("w", "embed", "five", 1), cs.pad("w", "embed", "four")]
    second = cs.derive(twice, theirs, rules=[*pads, cs.tie("copy", "w")])
    x = np.arange(6, dtype="float32").reshape(3, 2)
    before = np.pad(x, ((0, 2), (0, 0)), constant_values=1)
    after = np.pad(x, ((0, 1), (0, 0)))
    lens = (first >> second).bind(embed=3, five=5, four=4)
    cs.assert_trees_identical(lens.get({"w": before}), {"w": after})
    cs.assert_trees_identical(lens.put({"w": after}), {"w": before})


def test_a_leaf_that_the_second_lens_leaves_to_its_side_is_left_to_the_far_one() -> None:
    first, second = schema("A", w="a", x="a"), schema("B", w="a", x="a")
    there = cs.derive(second, schema("C", w="a"), rules=[cs.private("x", cs.own)])
    whole = cs.derive(first, second) >> there
    tree = {"w": np.float32([1, 2]), "x": np.float32([3, 4])}
    cs.assert_trees_identical(whole.get(tree), {"w": tree["w"]})
    found = whole.put({"w": np.float32([5, 6])}, onto=tree)
    cs.assert_trees_identical(found, {"w": np.float32([5, 6]), "x": tree["x"]})
    cs.assert_trees_identical((~whole).get({"w": tree["w"]}, onto=tree), tree)
    with pytest.raises(cs.ConformanceError, match="neither partner, onto nor default"):
        whole.put({"w": np.float32([5, 6])})
