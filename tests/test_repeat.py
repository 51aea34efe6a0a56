"""Heads that one side keeps several times: written as often as that, and read once all copies are equal."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.words import done
from test_combinations import schema, whole

import ckpt_schema as cs
from ckpt_schema.testing import LensLaws

EMBED, KV, REP, DIM = 3, 2, 4, 2
SIZES = {"embed": EMBED, "kv": KV, "rep": REP, "dim": DIM}
rng = np.random.default_rng(1)
k = rng.normal(size=(EMBED, KV, DIM)).astype("float32")
Once = schema("Once", k="embed kv dim")
RULE = cs.repeat("k", "rep")


def held(lens: cs.Lens, source: Any, view: Any) -> None:
    """Holds both ways of a lens against what they are to give, on NumPy's arrays and on jax's."""
    for place in (np.asarray, jnp.asarray):
        ours, theirs = (jax.tree.map(place, tree) for tree in (source, view))
        cs.assert_trees_identical(lens.get(ours), theirs)
        cs.assert_trees_identical(lens.put(theirs), ours)


def placed(kind: str) -> np.ndarray[Any, Any]:
    """The key's heads repeated, by NumPy."""
    heads = np.repeat(k, REP, 1)
    made = {
        "embed kv*rep dim": heads,
        "embed rep*kv dim": np.tile(k, (1, REP, 1)),
        "embed kv rep dim": heads.reshape(EMBED, KV, REP, DIM),
        "kv*rep*dim embed": heads.reshape(EMBED, -1).T,
        "rep embed kv*dim": np.broadcast_to(k.reshape(EMBED, -1), (REP, EMBED, KV * DIM)),
    }
    return np.ascontiguousarray(made[kind])


KINDS = (
    "embed kv*rep dim",
    "embed rep*kv dim",
    "embed kv rep dim",
    "kv*rep*dim embed",
    "rep embed kv*dim",
)


@pytest.mark.parametrize("kind", KINDS)
def test_heads_are_repeated_as_numpy_repeats_them(kind: str) -> None:
    made = placed(kind)
    there = cs.derive(Once, schema("Many", k=kind), rules=[RULE], dims=SIZES)
    held(there, {"k": k}, {"k": made})
    back = cs.derive(schema("Many", k=kind), Once, rules=[RULE], dims=SIZES)
    held(back, {"k": made}, {"k": k})


@pytest.mark.parametrize("place", [np.asarray, jnp.asarray])
def test_copies_that_differ_are_refused_with_leaf_index_and_both_values(place: Any) -> None:
    lens = cs.derive(Once, schema("Many", k="embed kv*rep dim"), rules=[RULE], dims=SIZES)
    wrong = placed("embed kv*rep dim")
    wrong[1, 5, 0] = 7  # head 1, its second copy
    with pytest.raises(cs.ConformanceError) as error:
        lens.put({"k": place(wrong)})
    text = str(error.value)
    assert f"expected {k[1, 1, 0]:.7} " in text and "at [1 4 0] of k" in text
    assert "found 7.0 " in text and "at [1 5 0] of k" in text


def test_a_repeated_leaf_is_fused_scaled_and_stacked_in_one_lens() -> None:
    layer = schema("Layer", q="embed heads", k="embed kv dim", v="embed kv dim")
    listed = schema("Listed", layers=(list[layer], cs.field(length="depth")))
    fused = schema("Fused", qkv="embed heads+2*kv*rep*dim")
    stacked = schema("Stacked", layers=(fused, cs.field(scan="depth", axis=1)))
    rules = [
        cs.fuse("layers[]/qkv", [f"layers[]/{name}" for name in "qkv"]),
        cs.repeat("layers[]/k", "rep"),
        cs.repeat("layers[]/v", "rep"),
        cs.scale("layers[]/q", 0.5),
    ]
    lens = cs.derive(listed, stacked, rules=rules, dims={**SIZES, "heads": 5})
    q = rng.normal(size=(EMBED, 5)).astype("float32")
    several = [{"q": q + i, "k": k + i, "v": k - i} for i in range(2)]
    made: list[Any] = []
    for each in several:
        heads = [np.repeat(each[name], REP, 1).reshape(EMBED, -1) for name in "kv"]
        made.append(whole(each["q"] * np.float32(0.5), *heads))
    source = {"layers": dict(enumerate(several))}
    held(lens, source, {"layers": {"qkv": np.stack(made, 1)}})


def test_the_number_of_copies_may_be_a_number() -> None:
    lens = cs.derive(Once, schema("Many", k="embed kv*3 dim"), rules=[cs.repeat("k", 3)])
    held(lens, {"k": k}, {"k": np.repeat(k, 3, 1)})


def test_repeats_compose() -> None:
    many = schema("Many", k="embed kv*rep dim")
    turned = schema("Turned", k="rep*kv embed dim")
    first = cs.derive(Once, many, rules=[RULE], dims=SIZES)
    second = cs.derive(many, turned, dims=SIZES)
    made = np.ascontiguousarray(np.tile(k, (1, REP, 1)).transpose(1, 0, 2))
    held(first >> second, {"k": k}, {"k": made})
    back = cs.derive(turned, Once, rules=[RULE], dims=SIZES)
    held(first >> second >> back, {"k": k}, {"k": k})
    assert not any(done(first >> second >> back))
    there = ~first >> first  # copies are verified, and written again
    held(there, {"k": placed("embed kv*rep dim")}, {"k": placed("embed kv*rep dim")})
    with pytest.raises(cs.ConformanceError, match=r"at \[0 1 0\] of k"):
        there.get({"k": np.arange(48, dtype="float32").reshape(3, 8, 2)})


def test_abstract_and_sharded_leaves() -> None:
    mesh = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2])
    places = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "x"))
    many = schema("Many", k="embed kv*rep dim")
    lens = cs.derive(Once, many, rules=[RULE], dims=SIZES)
    abstract = jax.ShapeDtypeStruct((EMBED, KV, DIM), "float32")
    assert lens.get({"k": abstract})["k"].shape == (EMBED, KV * REP, DIM)
    onto = {"k": jax.ShapeDtypeStruct((EMBED, KV * REP, DIM), "float32", sharding=places)}
    made = lens.get({"k": jnp.asarray(k)}, onto=onto)["k"]
    assert made.sharding.is_equivalent_to(places, 3)
    cs.assert_trees_identical(
        lens.put({"k": made}, onto={"k": jnp.asarray(k)}), {"k": jnp.asarray(k)}
    )


# --- What an optimizer keeps  ---


def _trained(dims: str) -> Any:
    return cs.linen.TrainState[schema("Body", k=dims, rest="embed"), optax.adam(0.1)]


def test_moments_of_copies_take_a_word_of_their_own() -> None:
    sides = _trained("embed kv dim"), _trained("embed kv*rep dim")
    with pytest.raises(cs.DerivationError, match="each copy has a gradient of its own") as error:
        cs.derive(*sides, rules=[RULE])
    assert len(error.value.rules) == 2, "one for mu, one for nu"
    lens = cs.derive(*sides, rules=[RULE, *error.value.rules], dims=SIZES)
    words = str(lens)
    assert "mu/params/k" in words and "private" in words
    same = [cs.repeat(f"opt_state/0/{name}/k", "rep") for name in ("mu", "nu")]
    lens = cs.derive(*sides, rules=[RULE, *same], dims=SIZES)
    assert "private" not in lens.in_full().split("\n", 1)[1]


# --- Rules that say nothing, or not enough  ---


@pytest.mark.parametrize(
    ("dims", "rule", "says"),
    [
        ("embed kv dim", RULE, "a leaf with a factor rep on one side alone"),
        ("embed kv*2 dim*2", cs.repeat("k", 2), "say which axis it repeats, axis='kv[*]2' or"),
        ("embed kv*more dim", RULE, "or repeat[(]'k', 'more'[)] if they are copies"),
    ],
)
def test_a_rule_that_cannot_be_is_an_error(dims: str, rule: Any, says: str) -> None:
    with pytest.raises(cs.DerivationError, match=says):
        cs.derive(Once, schema("Many", k=dims), rules=[rule])


def test_an_axis_says_which_of_two() -> None:
    many, few = schema("Many", k="embed kv*2 dim*2"), schema("Few", k="embed kv dim*2")
    lens = cs.derive(few, many, rules=[cs.repeat("k", 2, axis="kv*2")])
    wide = rng.normal(size=(EMBED, KV, 4)).astype("float32")
    held(lens.bind(dim=2), {"k": wide}, {"k": np.repeat(wide, 2, 1)})


@pytest.mark.parametrize("times", ["", "a*b", None, 1, True, 2.5])
def test_times_is_one_factor(times: Any) -> None:
    with pytest.raises(cs.SchemaError, match="repeat"):
        cs.repeat("k", times)


def test_no_copies_are_nothing_to_read() -> None:
    lens = cs.derive(Once, schema("Many", k="embed kv*rep dim"), rules=[RULE])
    made = lens.bind(rep=0).get({"k": k})
    assert made["k"].shape == (EMBED, 0, DIM)
    with pytest.raises(cs.ConformanceError, match="at least one copy") as error:
        lens.bind(kv=KV, rep=0).put(made)
    assert "rep=0" in str(error.value)


class TestCopies(LensLaws):
    """All laws, from the side that has the copies."""

    max_examples = 5
    lens = cs.derive(
        cs.linen.Params[schema("Many", k="embed kv*rep dim", b="embed")],
        cs.nnx.Params[schema("Few", k="embed kv dim", b="embed")],
        rules=[RULE],
    )
