"""Rows and layers that one side alone has: as the target has them, else as a rule says."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.words import done
from test_combinations import schema

import ckpt_schema as cs
from ckpt_schema.testing import LensLaws

VOCAB, GROWN, EMBED = 3, 5, 2
rng = np.random.default_rng(3)


def values(*shape: int) -> np.ndarray[Any, Any]:
    return rng.normal(size=shape).astype("float32")


def placed(tree: Any, place: Any) -> Any:
    return jax.tree.map(place, tree)


def held(lens: cs.Lens, small: Any, large: Any, default: Any) -> None:
    """Holds a lens from the side that has less against what NumPy says.

    Args:
        lens: The lens.
        small: The tree that has less.
        large: One that has more, which agrees with it.
        default: The same with the default in what it has besides.
    """
    for place in (np.asarray, jnp.asarray):
        ours, theirs, plain = (placed(tree, place) for tree in (small, large, default))
        cs.assert_trees_identical(jax.tree.map(place, lens.get(ours)), plain)
        cs.assert_trees_identical(lens.get(ours, onto=theirs), theirs)
        cs.assert_trees_identical(lens.put(theirs), ours)
        other = jax.tree.map(lambda leaf: leaf + 1, ours)
        cs.assert_trees_identical(lens.put(theirs, onto=other), ours)
        cs.assert_trees_identical((~lens).put(ours, onto=theirs), theirs)
        cs.assert_trees_identical((~lens).get(theirs), ours)


Small = schema("Small", w="vocab embed")
RULE = cs.private("w", 7.0, small="vocab", large="grown")
SIZES = {"vocab": VOCAB, "grown": GROWN, "embed": EMBED}


@pytest.mark.parametrize("dims", ["grown embed", "embed grown", "embed*grown", "grown*embed"])
def test_new_rows_are_as_the_target_has_them(dims: str) -> None:
    lens = cs.derive(Small, schema("Large", w=dims), rules=[RULE], dims=SIZES)
    w, more = values(VOCAB, EMBED), values(GROWN, EMBED)
    more[:VOCAB] = w
    made = np.full_like(more, 7)
    made[:VOCAB] = w
    turn = dims.startswith("embed")
    shape = (-1,) if "*" in dims else (EMBED, GROWN) if turn else (GROWN, EMBED)
    large, default = ((x.T if turn else x).reshape(shape).copy() for x in (more, made))
    held(lens, {"w": w}, {"w": large}, {"w": default})


def test_new_heads_in_a_fused_leaf() -> None:
    apart = schema("Apart", q="embed heads*dim", k="embed kv*dim")
    fused = schema("Fused", qk="embed heads*dim+more*dim")
    rules = [cs.fuse("qk", ["q", "k"]), cs.private("k", 0.0, small="kv", large="more")]
    sizes = {"embed": 2, "heads": 2, "dim": 3, "kv": 1, "more": 2}
    lens = cs.derive(apart, fused, rules=rules, dims=sizes)
    q, k, rest = values(2, 6), values(2, 3), values(2, 3)
    default = np.concatenate([q, k, np.zeros_like(rest)], 1)
    held(lens, {"q": q, "k": k}, {"qk": np.concatenate([q, k, rest], 1)}, {"qk": default})


def test_rows_of_both_kinds_pad_and_private() -> None:
    large = schema("Large", w="grown wide")
    rules = [RULE, cs.pad("w", "embed", "wide", 9)]
    lens = cs.derive(Small, large, rules=rules, dims={**SIZES, "wide": 3})
    w = values(VOCAB, EMBED)
    made = np.full((GROWN, 3), 7, "float32")
    made[:, 2] = 9
    made[:VOCAB, :2] = w
    cs.assert_trees_identical(lens.get({"w": w}), {"w": made})
    theirs = values(GROWN, 3)
    theirs[:, 2] = 9
    cs.assert_trees_identical(lens.put({"w": theirs}), {"w": theirs[:VOCAB, :2].copy()})
    theirs[1, 2] = 8
    with pytest.raises(cs.ConformanceError, match="9 in the padding"):
        lens.put({"w": theirs})


# --- Layers  ---

LAYERS = cs.private("layers[]", 7.0, small="depth", large="more")
SHAPES: dict[str, dict[str, Any]] = {
    "list": {"length": "{}"},
    "stack on 0": {"scan": "{}", "axis": 0},
    "stack on 1": {"scan": "{}", "axis": 1},
    "stack on -1": {"scan": "{}", "axis": -1},
}


def layered(kind: str, depth: str, dims: str = "a b") -> Any:
    layer = schema("Layer", w=dims)
    told = {
        name: value.format(depth) if isinstance(value, str) else value
        for name, value in SHAPES[kind].items()
    }
    return schema("Layers", layers=(list[layer] if kind == "list" else layer, cs.field(**told)))


def stacked(kind: str, layers: np.ndarray[Any, Any]) -> Any:
    if kind == "list":
        return {"layers": {i: {"w": layer} for i, layer in enumerate(layers)}}
    return {"layers": {"w": np.ascontiguousarray(np.moveaxis(layers, 0, int(kind.split()[-1])))}}


@pytest.mark.parametrize("after", SHAPES)
@pytest.mark.parametrize("before", SHAPES)
def test_a_model_that_has_grown_by_layers(before: str, after: str) -> None:
    lens = cs.derive(layered(before, "depth"), layered(after, "more"), rules=[LAYERS])
    more = values(5, 2, 3)
    default = more.copy()
    default[3:] = 7
    trees = stacked(before, more[:3]), stacked(after, more), stacked(after, default)
    held(lens.bind(depth=3, more=5), *trees)


@pytest.mark.parametrize("after", SHAPES)
def test_layers_that_are_padding_are_verified(after: str) -> None:
    rule = cs.pad("layers[]", "depth", "more", 1)
    lens = cs.derive(layered("list", "depth"), layered(after, "more"), rules=[rule])
    lens = lens.bind(depth=2, more=3)
    w = values(3, 2, 3)
    w[2:] = 1
    large = stacked(after, w)
    for place in (np.asarray, jnp.asarray):
        ours, theirs = placed(stacked("list", w[:2]), place), placed(large, place)
        cs.assert_trees_identical(jax.tree.map(place, lens.get(ours)), theirs)
        stale = jax.tree.map(lambda leaf: leaf + 1, theirs)
        cs.assert_trees_identical(jax.tree.map(place, lens.get(ours, onto=stale)), theirs)
        cs.assert_trees_identical(lens.put(theirs), ours)
        w[2, 1, 0] = 8
        with pytest.raises(cs.ConformanceError, match="1 in the padding"):
            lens.put(placed(stacked(after, w), place))
        w[2, 1, 0] = 1


def test_layers_of_a_list_that_only_move_are_the_same_objects() -> None:
    lens = cs.derive(layered("list", "depth"), layered("list", "more"), rules=[LAYERS])
    lens = lens.bind(depth=2, more=3)
    ours, theirs = (placed(stacked("list", values(n, 2, 3)), jnp.asarray) for n in (2, 3))
    made = lens.get(ours, onto=theirs)["layers"]
    assert made[1]["w"] is ours["layers"][1]["w"]
    assert made[2]["w"] is theirs["layers"][2]["w"]


def test_a_series_that_has_grown() -> None:
    layer = schema("Layer", w="a")
    body = {
        "blocks": (layer, cs.field(scan="blocks", axis=0)),
        "last": (list[layer], cs.field(length="rest")),
    }
    series = type("S", (schema("Blocks", **body),), {"layers": cs.series("blocks[]", "last[]")})
    listed = schema("Listed", layers=(list[layer], cs.field(length="depth")))
    rule = cs.private("layers[]", 7.0, small="depth", large="blocks+rest")
    with pytest.raises(cs.DerivationError, match="the sizes decide it"):
        cs.derive(listed, series, rules=[rule])  # blocks may be new as a whole
    lens = cs.derive(listed, series, rules=[rule], dims={"depth": 3, "blocks": 2, "rest": 2})
    w = values(4, 2)
    default = w.copy()
    default[3] = 7
    small = {"layers": {i: {"w": w[i]} for i in range(3)}}
    large, plain = (
        {"blocks": {"w": x[:2].copy()}, "last": {i: {"w": x[2 + i]} for i in range(2)}}
        for x in (w, default)
    )
    held(lens, small, large, plain)


def test_keys_of_new_layers() -> None:
    layer = schema("Layer", w="a", k=cs.Key["fry"])
    sides = [
        schema("Layers", layers=(list[layer], cs.field(length=depth)))
        for depth in ("depth", "more")
    ]
    with pytest.raises(cs.DerivationError, match="a rule of its own"):
        cs.derive(*sides, rules=[LAYERS])
    keys = cs.private("layers[]/k", cs.fresh_key(0), small="depth", large="more")
    lens = cs.derive(*sides, rules=[LAYERS, keys]).bind(depth=1, more=3)
    made = lens.get({"layers": {0: {"w": jnp.ones(2), "k": jax.random.key(5)}}})["layers"]
    data = [tuple(jax.random.key_data(made[i]["k"]).tolist()) for i in range(3)]
    assert len(set(data)) == 3 and data[0] == (0, 5)


# --- Composition  ---


def test_what_is_private_in_part_composes() -> None:
    large, turned = schema("Large", w="grown embed"), schema("Turned", w="embed grown")
    first = cs.derive(Small, large, rules=[RULE], dims=SIZES)
    second = cs.derive(large, turned, dims={"grown": GROWN, "embed": EMBED})
    w, more = values(VOCAB, EMBED), values(GROWN, EMBED)
    more[:VOCAB] = w
    default = more.copy()
    default[VOCAB:] = 7
    held(first >> second, {"w": w}, {"w": more.T.copy()}, {"w": default.T.copy()})
    assert not any(done(first >> ~first)), "there and back only moves"
    # Cut and grown again: the new rows are those of the end.
    there = ~first >> first
    theirs = values(GROWN, EMBED)
    made = theirs.copy()
    made[VOCAB:] = 7
    cs.assert_trees_identical(there.get({"w": theirs}), {"w": made})
    cs.assert_trees_identical(there.get({"w": theirs}, onto={"w": more})["w"][VOCAB:], more[VOCAB:])


def test_grown_layers_compose() -> None:
    first = cs.derive(layered("list", "depth"), layered("stack on 1", "more"), rules=[LAYERS])
    second = cs.derive(layered("stack on 1", "more"), layered("list", "more"))
    more = values(5, 2, 3)
    default = more.copy()
    default[3:] = 7
    trees = (stacked("list", each) for each in (more[:3], more, default))
    held((first >> second).bind(depth=3, more=5), *trees)


# --- What an optimizer keeps  ---


def _state(dims: str, tx: Any) -> Any:
    return cs.linen.TrainState[schema("Body", w=dims), tx]


def test_moments_of_new_rows_start_as_the_transformation_starts_them() -> None:
    tx = optax.adagrad(0.1, initial_accumulator_value=0.5)
    lens = cs.derive(_state("vocab embed", tx), _state("grown embed", tx), rules=[RULE], dims=SIZES)
    w = jnp.asarray(values(VOCAB, EMBED))
    params = {"params": {"w": w}}
    state = {"step": jnp.int32(1), "params": params, "opt_state": tx.init(params)}
    made = lens.get(state)
    rows = jax.tree.leaves(made["opt_state"])[0]
    assert rows.shape == (GROWN, EMBED) and (rows == 0.5).all()
    assert (made["params"]["params"]["w"][VOCAB:] == 7).all()
    cs.assert_trees_identical(lens.put(made, onto=state), state)


def test_what_no_number_starts_takes_a_rule_of_its_own() -> None:
    tx = optax.contrib.schedule_free(optax.sgd(0.1), learning_rate=0.1)
    sides = _state("vocab embed", tx), _state("grown embed", tx)
    with pytest.raises(cs.DerivationError, match="it depends on the params") as error:
        cs.derive(*sides, rules=[RULE])
    (fault,) = error.value.mismatches
    assert fault.hint.startswith("say it: private('opt_state/")
    rule = eval(fault.hint.removeprefix("say it: "), {"private": cs.private})
    cs.derive(*sides, rules=[RULE, rule])


# --- Rules that say nothing, or not enough  ---


@pytest.mark.parametrize(
    ("dims", "rule", "says"),
    [
        ("vocab embed", RULE, "a leaf with vocab on one side and grown on the other"),
        ("grown embed", cs.private("v", 0.0, small="vocab", large="grown"), "expected a leaf"),
    ],
)
def test_a_rule_that_cannot_be_is_an_error(dims: str, rule: Any, says: str) -> None:
    with pytest.raises(cs.DerivationError, match=says):
        cs.derive(Small, schema("Large", w=dims), rules=[rule])


def test_one_size_alone_is_an_error() -> None:
    with pytest.raises(cs.SchemaError, match="one dim"):
        cs.private("w", 0.0, small="vocab")


def test_less_than_the_other_side_has_is_an_error() -> None:
    lens = cs.derive(Small, schema("Large", w="grown embed"), rules=[RULE])
    with pytest.raises(cs.ConformanceError, match="grown of vocab or more"):
        lens.bind(grown=2).get({"w": values(VOCAB, EMBED)})


class TestGrown(LensLaws):
    """All laws, of rows and of layers."""

    max_examples = 5
    lens = cs.derive(
        cs.linen.Params[layered("stack on 1", "depth", "vocab b")],
        cs.nnx.Params[layered("list", "more", "grown b")],
        rules=[LAYERS, cs.private("layers[]/w", 7.0, small="vocab", large="grown")],
    )
