"""Where one stopped who tried it: siblings that rules call by their names, parts of a leaf, a model of one array."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax
import pytest
from jaxtyping import Array, Float32

import ckpt_schema as cs


def kernel(start: float) -> Any:
    return {"kernel": np.arange(start, start + 12, dtype="float32").reshape(4, 3)}


A, B, C = kernel(0.0), kernel(10.0), kernel(20.0)

CASES: dict[str, tuple[Any, Any, list[Any]]] = {
    "a node of their name": (
        {"mid_0": A, "mid_1": B},
        {"bottleneck": A, "mid": B},
        [cs.rename("mid_0/kernel", "bottleneck/kernel"), cs.rename("mid_1", "mid")],
    ),
    "from the root": (
        {"mid_0": A, "mid_1": B},
        {"bottleneck": A, "mid": B},
        [
            cs.rename("params/mid_0", "params/bottleneck"),
            cs.rename("params/mid_1", "params/mid"),
        ],
    ),
    "a glob for the members alone": (
        {"mid_0": A, "mid_1": B, "last": C},
        {"top_0": A, "top_1": B, "mid": C},
        [cs.rename("mid_*/kernel", "top_*/kernel"), cs.rename("last", "mid")],
    ),
    "a glob on the way": (
        {"a": {"mid_0": A, "mid_1": B}},
        {"a": {"first": A, "mid": B}},
        [cs.rename("**/mid_0", "**/first"), cs.rename("a/mid_1", "a/mid")],
    ),
    "a list of another name": (
        {"down1": A, "down2": B},
        {"net": [B, A]},
        [cs.rename("down1", "net/1"), cs.rename("down2", "net/0")],
    ),
    "items of the list of their name": (
        {"down_0": A, "down_1": B},
        {"down": [A, B]},
        [cs.rename("down_0", "down/0"), cs.rename("down_1", "down/1")],
    ),
    "a fuse": (
        {"mid_0": A, "mid_1": B, "mid": C},
        {"both": {"kernel": np.concatenate([A["kernel"], B["kernel"]], 1)}, "mid": C},
        [cs.fuse("both/kernel", ["mid_0/kernel", "mid_1/kernel"], axes="a 2*b -> a b")],
    ),
    "a list": (
        {"net": [A, B]},
        {"fc1": A, "fc2": B},
        [cs.rename("net/0/kernel", "fc1/kernel"), cs.rename("net/1", "fc2")],
    ),
    "a list in a list": (
        {"towers": [{"net": [A, B]}]},
        {"towers": [{"fc1": A, "fc2": B}]},
        [cs.rename("towers[]/net/0", "towers[]/fc1"), cs.rename("towers[]/net/1", "towers[]/fc2")],
    ),
    "items that change places": (
        {"net": [A, B]},
        {"net": [B, A]},
        [cs.rename("net/0", "net/1"), cs.rename("net/1", "net/0")],
    ),
    "an item that one side lacks": (
        {"net": [A, B]},
        {"net": [A]},
        [cs.private("net/1/kernel", 0.0)],
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("turned", [False, True])
def test_a_rule_that_calls_one_by_its_name_leaves_all_apart(case: str, turned: bool) -> None:
    old, new, rules = CASES[case]
    trees = {"params": old}, {"params": new}
    if turned:
        trees = trees[::-1]
        rules = [
            cs.rename("/".join(rule.view), "/".join(rule.source)) if "rename" in str(rule) else rule
            for rule in rules
        ]
    lens = cs.adapt(*trees, rules=rules)
    cs.assert_trees_identical(lens.get(trees[0], onto=trees[1]), trees[1])
    cs.assert_trees_identical(lens.put(trees[1], onto=trees[0]), trees[0])
    assert cs.diff(*trees, rules=rules).mended
    assert cs.diff(*trees, lens=lens).mended


def test_the_items_of_a_file_with_dots_are_left_apart_too() -> None:
    old = {"net.0.weight": A["kernel"], "net.1.weight": B["kernel"]}
    rules = [cs.rename("net/0/weight", "fc1/kernel"), cs.rename("net/1/weight", "fc2/kernel")]
    lens = cs.adapt(old, {"params": {"fc1": A, "fc2": B}}, rules=rules)
    cs.assert_trees_identical(lens.get(old), {"params": {"fc1": A, "fc2": B}})


def test_siblings_of_the_name_elsewhere_are_a_list_still() -> None:
    old = {"params": {"a": {"mid_0": A, "mid_1": B}, "b": {"mid_0": A, "mid_1": C}}}
    stack = {"kernel": np.stack([A["kernel"], C["kernel"]])}
    new = {"params": {"a": {"first": A, "mid": B}, "b": {"mid": stack}}}
    rules = [cs.rename("a/mid_0", "a/first"), cs.rename("a/mid_1", "a/mid")]
    lens = cs.adapt(old, new, rules=rules)
    cs.assert_trees_identical(lens.get(old), new)


def test_a_rule_for_one_that_means_all_is_told_what_all_are_called() -> None:
    old = {"params": {"layers": [{"up": A["kernel"]} for _ in range(3)]}}
    new = {"params": {"layers": [{"wi": A["kernel"]} for _ in range(3)]}}
    for rule in (
        cs.rename("layers/0/up", "layers[]/wi"),
        cs.rename("layers/0/up", "layers/0/wi"),
    ):
        with pytest.raises(cs.DerivationError) as raised:
            cs.adapt(old, new, rules=[rule])
        assert "near: layers[]/up" in str(raised.value)


def test_one_rule_of_several_is_told_the_others() -> None:
    trees = {"params": {"net": [A, B]}}, {"params": {"fc1": A, "fc2": B}}
    rules: list[Any] = [cs.rename("net/0", "fc1")]
    with pytest.raises(cs.DerivationError) as raised:
        cs.adapt(*trees, rules=rules)
    assert "net[]" not in str(raised.value)
    rules += raised.value.rules
    cs.assert_trees_identical(cs.adapt(*trees, rules=rules).get(trees[0]), trees[1])


# --- several leaves that the other side has in one: a line to confirm  ---


def leaf(*shape: int, start: int) -> Any:
    return np.arange(np.prod(shape), dtype="float32").reshape(shape) + start


def drawn(**shapes: tuple[int, ...]) -> dict[str, Any]:
    return {name: leaf(*each, start=1000 * at) for at, (name, each) in enumerate(shapes.items())}


def guesses(error: cs.DerivationError) -> list[Any]:
    """The open lines of an error, uncommented."""
    lines = [line[6:] for line in str(error).split("\n") if line.startswith("    # cs.fuse(")]
    return eval(f"[{' '.join(lines)}]", {"cs": cs})


FUSED: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    "four of one shape": (
        drawn(gate=(16, 16), k=(16, 16), q=(16, 16), v=(16, 16)),
        "whole",
        ["q", "k", "v", "gate"],
    ),
    "three of one shape": (drawn(q=(4, 8), k=(4, 8), v=(4, 8)), "qkv", ["q", "k", "v"]),
    "several widths": (drawn(q=(8, 8), k=(8, 2), v=(8, 2)), "w_qkv", ["q", "k", "v"]),
    "another axis": (drawn(up=(3, 5, 7), gate=(3, 5, 7)), "gate_up", ["gate", "up"]),
    "words of their own": (
        drawn(query=(6, 6), key=(6, 6), value=(6, 6)),
        "c_attn",
        ["query", "key", "value"],
    ),
}


@pytest.mark.parametrize("case", FUSED)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("depth", ["leaves", "nodes", "layers"])
def test_parts_of_a_leaf_are_offered_as_a_fuse(case: str, turned: bool, depth: str) -> None:
    parts, name, order = FUSED[case]
    whole = np.concatenate([parts[each] for each in order], 1)
    here: Any = {each: {"kernel": value} for each, value in parts.items()}
    there: Any = {name: {"weight": whole}}
    if depth == "leaves":
        here, there = parts, {name: whole}
    if depth == "layers":
        here, there = {"h": [{"attn": here}] * 3}, {"h": [{"attn": there}] * 3}
    trees = {"params": here}, {"params": there}
    trees = trees[::-1] if turned else trees
    with pytest.raises(cs.DerivationError) as raised:
        cs.adapt(*trees)
    text = str(raised.value)
    assert not raised.value.rules and "private(" not in text and "confirm" in text
    [rule] = guesses(raised.value)
    lens = cs.adapt(*trees, rules=[rule])
    cs.assert_trees_identical(lens.get(trees[0], onto=trees[1]), trees[1])
    cs.assert_trees_identical(lens.put(trees[1], onto=trees[0]), trees[0])
    assert f"cs.{rule}" in cs.diff(*trees).in_full()


def test_biases_go_with_their_kernels_and_what_is_no_part_is_left_out() -> None:
    def node(width: int, start: int) -> Any:
        return {"kernel": leaf(6, width, start=start), "bias": leaf(width, start=start)}

    old = {name: node(6, 100 * at) for at, name in enumerate(("q", "k", "v", "o"))}
    both = {
        name: np.concatenate([old[each][name] for each in "qkv"], -1) for name in ("kernel", "bias")
    }
    trees = {"params": {"attn": old}}, {"params": {"attn": {"qkv": both, "proj": old["o"]}}}
    with pytest.raises(cs.DerivationError) as raised:
        cs.adapt(*trees)
    rules = [
        *guesses(raised.value),
        cs.rename("attn/o/kernel", "attn/proj/kernel", axes="0 1"),
        cs.rename("attn/o/bias", "attn/proj/bias"),
    ]
    assert len(rules) == 4
    lens = cs.adapt(*trees, rules=rules)
    cs.assert_trees_identical(lens.get(trees[0]), trees[1])


def test_each_layer_has_its_own() -> None:
    old: dict[str, Any] = {}
    new: dict[str, Any] = {}
    for at in range(2):
        parts = drawn(q=(4, 4 + at), k=(4, 4 + at), v=(4, 4 + at))
        old[f"block_{at}"] = parts
        new[f"h{at}"] = {"qkv": np.concatenate([*parts.values()], 1)}
    trees = {"params": old}, {"params": new}
    with pytest.raises(cs.DerivationError) as raised:
        cs.adapt(*trees)
    lens = cs.adapt(*trees, rules=guesses(raised.value))
    cs.assert_trees_identical(lens.get(trees[0]), trees[1])


@pytest.mark.parametrize(
    ("here", "there"),
    [
        (drawn(q=(4, 4), k=(4, 4)), drawn(one=(4, 8), two=(4, 8))),  # which of both
        (drawn(q=(4, 4), k=(4, 4)), drawn(one=(4, 9))),  # too many
        (drawn(q=(4, 4), k=(5, 4)), drawn(one=(4, 8))),  # not of one height
        (drawn(a=(4,), b=(4,)), drawn(one=(8,))),  # vectors alone
    ],
)
def test_where_sizes_fit_otherwise_or_twice_no_fuse_is_offered(here: Any, there: Any) -> None:
    with pytest.raises(cs.DerivationError) as raised:
        cs.adapt({"params": here}, {"params": there})
    assert "fuse(" not in str(raised.value)


class Apart(cs.Schema):
    q: Float32[Array, "embed heads"]
    k: Float32[Array, "embed heads"]
    v: Float32[Array, "embed heads"]
    out: Float32[Array, "embed heads"]


class Whole(cs.Schema):
    qkv: Float32[Array, "embed 3*heads"]
    proj: Float32[Array, "embed heads"]


class Sum(cs.Schema):
    qkv: Float32[Array, "embed wide+2*narrow"]


class OfSum(cs.Schema):
    q: Float32[Array, "embed wide"]
    k: Float32[Array, "embed narrow"]
    v: Float32[Array, "embed narrow"]


@pytest.mark.parametrize("sides", [(Apart, Whole), (Whole, Apart), (OfSum, Sum), (Sum, OfSum)])
def test_what_classes_write_of_a_sum_needs_no_axes(sides: tuple[Any, Any]) -> None:
    with pytest.raises(cs.DerivationError) as raised:
        cs.derive(*sides)
    rules = guesses(raised.value)
    assert rules == [cs.fuse("qkv", ["q", "k", "v"])]
    if Apart in sides:
        rules.append(cs.rename(*(("out", "proj") if sides[0] is Apart else ("proj", "out"))))
    assert cs.derive(*sides, rules=rules)


# --- a model that is one array  ---


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("trained", [False, True])
def test_a_model_of_one_array_joins_a_leaf_by_the_rules_that_are_printed(
    turned: bool, trained: bool
) -> None:
    def state(params: Any) -> Any:
        tree = {"params": params}
        if trained:
            moments = optax.adam(1e-3).init(params)
            tree["opt_state"] = jax.tree.map(lambda x: x + 1, moments)
        return tree

    array = leaf(4, 8, start=0)
    trees = state(array), state({"a": array})
    trees = trees[::-1] if turned else trees
    with pytest.raises(cs.DerivationError) as raised:
        cs.adapt(*trees)
    rules: Any = raised.value.rules
    text = str(raised.value)
    assert "private(" not in text
    wanted = "cs.rename('a', '')" if turned else "cs.rename('params', 'params/a')"
    assert wanted in text
    lens = cs.adapt(*trees, rules=rules)
    cs.assert_trees_identical(lens.get(trees[0]), trees[1])
    cs.assert_trees_identical(lens.put(trees[1]), trees[0])
    assert cs.diff(*trees).mended


def test_a_model_of_one_array_that_several_leaves_may_be_is_told_each() -> None:
    array = leaf(4, 8, start=0)
    trees = {"params": array}, {"params": {"a": array, "b": array}}
    with pytest.raises(cs.DerivationError) as raised:
        cs.adapt(*trees)
    hints = {fault.path: fault.hint for fault in raised.value.mismatches}
    assert "params/a, params/b may be it" in hints["params"]
    for name in "ab":
        assert str(cs.rename("params", f"params/{name}")) in hints[f"params/{name}"]
    rules = [cs.rename("params", "params/b"), cs.private("a", 0.0)]
    assert np.array_equal(cs.adapt(*trees, rules=rules).get(trees[0])["params"]["b"], array)
