"""Discovery: a sample of `python tests/discovered.py`, what is never guessed, and what cannot be compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import discovered
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import rewritten
from flax import nnx
from support.profiles import sampled

import ckpt_schema as cs
from ckpt_schema.discovery import DiscoveryError, discover
from ckpt_schema.discovery._known_leaves import KnownLeaves
from ckpt_schema.discovery._leaf_ways import cuts_into
from ckpt_schema.discovery._models import JaxModel
from ckpt_schema.testing import assert_discovered

X = jnp.linspace(-1.0, 2.0, 12).reshape(3, 4)


@pytest.mark.parametrize(
    "name",
    sampled(["gated by gelu", "decoder, rotary pairs", "1 of 3 experts", "tied embeddings"], 2),
)
def test_names_that_say_nothing(name: str) -> None:
    _, verdict = discovered.run(name, 0, words=True)
    assert verdict.status == "complete"
    assert verdict.right and not verdict.wrong and not verdict.open


@pytest.mark.parametrize("name", sampled(["as torch's", "gate and up one by one"], 2))
def test_a_rewritten_decoder_gets_a_lens(name: str) -> None:
    found, verdict = discovered.run(f"decoder, {name}", 0, words=False)
    assert verdict.status == "complete" and not verdict.wrong
    own = rewritten.leaves()
    made = found.lens().get(rewritten.nested(own))
    cs.assert_trees_identical(made, rewritten.nested(rewritten.WAYS[name].there(own)))
    cs.assert_trees_identical(found.lens().put(made), rewritten.nested(own))


@pytest.mark.parametrize("shape", [(2, 3, 4), (6, 4), (4, 2, 6), (12,), (2, 12, 5)])
def test_each_way_to_cut_a_leaf_has_every_number_once(shape: tuple[int, ...]) -> None:
    forms = {(4,), (6,), (2, 4), (4, 6), (4, 5), (2, 5), (3, 4), (2, 3)}
    ways = cuts_into(shape, forms)
    assert len(ways) > 1
    for way in ways:
        places = np.concatenate([piece.places.ravel() for piece in way])
        assert sorted(places) == [*range(math.prod(shape))]


def test_layers_on_a_known_axis_have_every_number_once() -> None:
    """Also where the leaf can be cut, on another axis alone: 20 layers are more than are looked for."""
    ways = cuts_into((20, 4, 6), {(6, 20)})
    [layers] = KnownLeaves(stacks=({"w": (0,)}, {})).ways(0, "w", ways)
    assert [piece.shape for piece in layers] == [(4, 6)] * 20
    assert sorted(np.concatenate([piece.places.ravel() for piece in layers])) == [*range(480)]


def test_axes_may_be_joined_whatever_stands_between_them() -> None:
    ways = cuts_into((2, 5, 3), {(5, 6)})
    numbers = np.arange(30).reshape(2, 5, 3)
    heads_first, heads_last = (numbers.transpose(order) for order in ((0, 2, 1), (2, 0, 1)))
    found = [piece.places.tolist() for [piece] in ways]
    assert heads_first.reshape(6, 5).tolist() in found
    assert heads_last.reshape(6, 5).tolist() in found


def test_the_axis_of_layers_is_told_from_another_of_its_size() -> None:
    """Cutting both axes agrees as well, and no rule says what it finds."""

    def run(kernels: Sequence[Any]) -> Any:
        y = X
        for kernel in kernels:
            y = jnp.tanh(y @ kernel[0] + 2 * (y @ kernel[1]) + 3 * (y @ kernel[2]))
        return y

    old = {"layers": {str(n): {"kernel": jnp.full((3, 4, 4), float(n))} for n in range(3)}}
    found = discover(
        lambda p: run([p["layers"][str(number)]["kernel"] for number in range(3)]),
        old,
        lambda p: run([p["stack"]["kernel"][:, number] for number in range(3)]),
        {"stack": {"kernel": jnp.ones((3, 3, 4, 4))}},
    )
    made = found.lens().get(old)
    assert made["stack"]["kernel"][0, :, 0, 0].tolist() == [0, 1, 2]


def test_the_rules_hold_for_other_sizes() -> None:
    old, new = {"up": jnp.ones((4, 6)), "down": jnp.ones((6, 5))}, {}
    new = {"w1": jnp.ones((6, 4)), "w2": jnp.ones((5, 6))}
    found = discover(
        lambda p: jnp.tanh(X @ p["up"]) @ p["down"],
        old,
        lambda p: jnp.tanh(X @ p["w1"].T) @ p["w2"].T,
        new,
    )
    large = {"up": jnp.ones((40, 60)), "down": jnp.arange(3000.0).reshape(60, 50)}
    goal = {"w1": jnp.ones((60, 40)), "w2": jnp.ones((50, 60))}
    lens = cs.adapt(large, goal, rules=found.rules, scan=found.scan, lists=found.lists)
    np.testing.assert_array_equal(lens.get(large)["w2"], large["down"].T)


def test_what_agrees_at_the_shared_point_alone_is_not_complete() -> None:
    square = jnp.eye(4)

    def both(p: Any) -> Any:
        return jnp.tanh(jnp.tanh(X @ p["one"]) @ p["two"])

    def first_twice(p: Any) -> Any:
        return jnp.tanh(jnp.tanh(X @ p["one"]) @ p["one"])

    tree = {"one": square, "two": square}
    found = discover(both, tree, first_twice, tree, budget=300)
    assert found.status == "incomplete"
    with pytest.raises(DiscoveryError, match="incomplete"):
        found.lens()


def test_another_function_is_refused() -> None:
    tree = {"up": jnp.ones((4, 6)), "down": jnp.ones((6, 5))}
    found = discover(
        lambda p: jnp.tanh(X @ p["up"]) @ p["down"],
        tree,
        lambda p: jax.nn.gelu(X @ p["up"]) @ p["down"],
        tree,
        budget=300,
    )
    assert found.status == "refused" and not found.rules and not found.pairings
    with pytest.raises(DiscoveryError, match="refused"):
        found.lens()


def _layered(acts: Sequence[Any], head: Any = jnp.tanh) -> tuple[Any, Any]:
    """A run and leaves of a stack of layers, each with an activation of its own."""

    def run(p: Any) -> Any:
        x = X
        for layer, act in zip(p["layers"], acts, strict=True):
            x = x + act(x @ layer["up"]) @ layer["down"]
        return head(x @ p["head"])

    layer = {"up": jnp.ones((4, 6)), "down": jnp.ones((6, 4))}
    return run, {"layers": [layer] * len(acts), "head": jnp.ones((4, 5))}


@pytest.mark.parametrize(("wrong", "said"), [(1, "the first 1 of"), (0, "with no layers they are")])
def test_it_is_said_at_which_layer_two_models_begin_to_differ(wrong: int, said: str) -> None:
    acts, others = [jnp.tanh] * 3, [jnp.tanh] * 3
    others[wrong] = jax.nn.gelu
    factories = (lambda n: _layered(acts[:n]), lambda n: _layered(others[:n]))
    found = discover(*factories[0](3), *factories[1](3), with_layers=factories, budget=100)
    assert (found.status, found.differ_from) == ("refused", wrong + 1)
    assert f"they begin to differ in layer {wrong + 1}" in str(found)
    with pytest.raises(DiscoveryError, match=said):
        found.lens()


def test_what_differs_without_any_layer_stands_around_them() -> None:
    acts = [jnp.tanh] * 2
    factories = (lambda n: _layered(acts[:n]), lambda n: _layered(acts[:n], jax.nn.gelu))
    found = discover(*factories[0](2), *factories[1](2), with_layers=factories, budget=100)
    assert found.differ_from == 0 and "in what stands before or behind" in str(found)


def test_a_model_that_has_no_layers_is_left_out() -> None:
    acts, others = [jnp.tanh] * 2, [jax.nn.gelu] * 2
    factories = (lambda n: 1 / n and _layered(acts[:n]), lambda n: _layered(others[:n]))
    found = discover(*_layered(acts), *_layered(others), with_layers=factories, budget=100)
    assert found.differ_from == 1


def test_a_factory_that_does_not_fit_is_refused() -> None:
    acts, others = [jnp.tanh] * 2, [jax.nn.gelu] * 2
    given = *_layered(acts), *_layered(others)
    larger = (lambda n: _layered([jnp.tanh] * 3), lambda n: _layered(others[:n]))
    with pytest.raises(DiscoveryError, match="with_layers does not fit the models"):
        discover(*given, with_layers=larger, budget=100)
    with pytest.raises(DiscoveryError, match="expected two functions of a number of layers"):
        discover(*given, with_layers=larger[0], budget=100)  # type: ignore[arg-type]
    nothing = (lambda n: None, lambda n: _layered(others[:n]))
    with pytest.raises(DiscoveryError, match="each takes a number and gives a run"):
        discover(*given, with_layers=nothing, budget=100)


def test_equal_branches_are_a_choice() -> None:
    def run(p: Any) -> Any:
        return jnp.tanh(X @ p["left"]) + jnp.tanh(X @ p["right"])

    tree = {"left": jnp.ones((4, 6)), "right": jnp.ones((4, 6))}
    found = discover(run, tree, run, tree)
    assert found.status == "complete but for choices"
    [choice] = found.open
    assert len(choice.options) == 2
    assert {*choice.sources} == {*choice.views} == {"left", "right"}


def test_a_scale_that_may_stand_in_two_leaves_is_the_users_choice() -> None:
    def run(p: Any) -> Any:
        return jnp.tanh((X @ p["q"]) @ p["k"]) @ p["out"]

    def scaled(p: Any) -> Any:
        return jnp.tanh((2 * X @ p["q"]) @ p["k"]) @ p["out"]

    tree = {"q": jnp.ones((4, 6)), "k": jnp.ones((6, 5)), "out": jnp.ones((5, 3))}
    found = discover(run, tree, scaled, tree)
    assert found.status == "complete but for choices"
    assert [each.view.leaf for each in found.pairings] == ["out"]  # the values of others are open
    [moved] = found.open
    assert {*moved.options} == {(cs.scale("q", 0.5),), (cs.scale("k", 0.5),)}
    assert not found.rules
    with pytest.raises(DiscoveryError, match=r"rules=\[cs.scale\('k', 0.5\)\]"):
        found.lens()
    lens = found.lens(rules=[cs.scale("k", 0.5)])
    moved = lens.get(tree)
    assert (moved["k"] == 0.5).all() and (moved["q"] == 1).all()
    known = discover(run, tree, scaled, tree, rules=[cs.scale("q", 0.5)])
    assert (known.status, known.rules) == ("complete", (cs.scale("q", 0.5),))


def test_what_follows_from_a_choice_belongs_to_it() -> None:
    def run(p: Any) -> Any:
        return jnp.tanh(X @ p["w1"] + p["b1"]) + jnp.tanh(X @ p["w2"] + p["b2"])

    def crossed(p: Any) -> Any:
        return run({**p, "b1": p["b2"], "b2": p["b1"]})

    tree = {"w1": jnp.ones((4, 6)), "w2": jnp.ones((4, 6)), "b1": jnp.ones(6), "b2": jnp.ones(6)}
    drawn = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape), tree)
    drawn["b2"] = -drawn["b2"]
    found = discover(run, tree, crossed, tree)
    [choice] = found.open
    assert {*choice.sources} == {*tree} and len(choice.options) == 2
    with pytest.raises(DiscoveryError, match="a choice is the user's"):
        found.lens()
    for option in choice.options:
        made = found.lens(rules=option).get(drawn)
        np.testing.assert_allclose(crossed(made), run(drawn), rtol=1e-6)
    apart = [cs.rename("b1", "b1"), cs.rename("b2", "b2")]  # and kernels by name
    with pytest.raises(DiscoveryError, match="it would make another function"):
        found.lens(rules=apart)


def _gated(p: Any) -> Any:
    return jnp.tanh(jax.nn.relu(X @ p["a"] + p["bias"]) @ p["c"])


def _residual(p: Any) -> Any:
    def normed(x: Any) -> Any:
        return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)

    x = p["table"][jnp.arange(5)]
    x = x + jax.nn.silu(normed(x) @ p["a"]) @ p["c"]
    return normed(x) @ p["head"]


GATED = {"a": jnp.ones((4, 6)), "bias": jnp.ones(6), "c": jnp.ones((6, 5))}
RESIDUAL = {
    "table": jnp.ones((7, 4)),
    "a": jnp.ones((4, 6)),
    "c": jnp.ones((6, 4)),
    "head": jnp.ones((4, 9)),
}


def test_a_factor_that_several_leaves_take_over_together_is_open() -> None:
    found = discover(_gated, GATED, lambda p: _gated({**p, "c": 2 * p["c"]}), GATED)
    [moved] = found.open
    other = cs.scale("a", 0.5), cs.scale("bias", 0.5)
    assert {*moved.options} == {(cs.scale("c", 0.5),), other}
    assert found.lens(rules=other)


def test_a_factor_with_one_place_is_a_rule() -> None:
    # Of the residual an epsilon knows the size: the layer's own kernel is no other place.
    found = discover(
        _residual, RESIDUAL, lambda p: _residual({**p, "table": 2 * p["table"]}), RESIDUAL
    )
    assert (found.status, found.rules) == ("complete", (cs.scale("table", 0.5),))


def test_a_leaf_that_the_view_has_twice_is_tied() -> None:
    tokens = jnp.arange(5)
    old = {"table": jnp.ones((7, 4)), "w": jnp.ones((4, 6)), "v": jnp.ones((6, 4))}
    new = {**old, "head": jnp.ones((7, 4))}

    def tied(p: Any) -> Any:
        return jnp.tanh(p["table"][tokens] @ p["w"]) @ p["v"] @ p["table"].T

    def untied(p: Any) -> Any:
        return jnp.tanh(p["table"][tokens] @ p["w"]) @ p["v"] @ p["head"].T

    found = discover(tied, old, untied, new)
    assert (found.status, found.rules) == ("complete", (cs.tie("head", "table"),))
    table = jnp.arange(28.0).reshape(7, 4)
    assert (found.lens().get({**old, "table": table})["head"] == table).all()
    # The other way round the functions are one only where both leaves are equal.
    found = discover(untied, new, tied, old)
    assert found.status == "incomplete"
    assert "only where they are always equal" in str(found.open[0])


@pytest.mark.parametrize("rows", [7, 4])
def test_a_copy_that_is_turned_is_not_tied_as_it_stands(rows: int) -> None:
    tokens = jnp.arange(3)
    old = {"table": jnp.ones((rows, 4)), "w": jnp.ones((4, 4))}
    new = {**old, "head": jnp.ones((4, rows))}

    def tied(p: Any) -> Any:
        return jnp.tanh(p["table"][tokens] @ p["w"]) @ p["table"].T

    def untied(p: Any) -> Any:
        return jnp.tanh(p["table"][tokens] @ p["w"]) @ p["head"]

    found = discover(tied, old, untied, new)
    assert cs.tie("head", "table") not in found.rules
    assert any(each.reason.startswith("head is table turned") for each in found.open)
    with pytest.raises(cs.DerivationError, match="head"):
        found.lens()


def test_exchanged_names_are_seen_through() -> None:
    tree = {"a": jnp.arange(16.0).reshape(4, 4), "b": -jnp.arange(16.0).reshape(4, 4)}
    found = discover(
        lambda p: jnp.tanh(X @ p["a"]) @ p["b"],
        tree,
        lambda p: jnp.tanh(X @ p["b"]) @ p["a"].T,
        tree,
    )
    made = found.lens().get(tree)
    assert (made["b"] == tree["a"]).all() and (made["a"] == tree["b"].T).all()


def test_norms_about_one_are_shifted() -> None:
    def run(p: Any) -> Any:
        return jnp.tanh(X * p["norm"]) @ p["w"]

    tree = {"norm": jnp.full(4, 1.5), "w": jnp.ones((4, 3))}
    found = discover(run, tree, lambda p: run({**p, "norm": p["norm"] + 1}), tree)
    assert (found.status, found.rules) == ("complete", (cs.shift("norm", -1.0),))
    assert (found.lens().get(tree)["norm"] == 0.5).all()


def test_norms_of_other_sizes_are_shifted_together_beside_a_factor() -> None:
    def normed(x: Any, scale: Any) -> Any:
        return x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * scale

    def run(p: Any) -> Any:
        x = p["table"][jnp.array([4, 0, 3, 1, 5])]
        inside = normed(x, p["norm"])
        query, key = (normed(inside @ p[name], p[f"{name} norm"]) for name in ("q", "k"))
        x += jax.nn.softmax(query @ key.T, -1) @ inside @ p["out"]
        return normed(x, p["last"]) @ p["head"]

    norms = {"norm": 7, "q norm": 4, "k norm": 4, "last": 7}
    kernels = {"table": (6, 7), "q": (7, 4), "k": (7, 4), "out": (7, 7), "head": (7, 3)}
    tree = {name: jnp.ones(shape) for name, shape in (norms | kernels).items()}

    def other(p: Any) -> Any:
        used = {name: p[name] + 1 for name in norms} | {"table": p["table"] * 7**0.5}
        return run(p | used)

    found = discover(run, tree, other, tree)
    assert found.status == "complete but for choices"  # a query's scale may be the key's as well
    shifts = {cs.shift(name, -1.0) for name in norms}
    assert shifts | {cs.scale("table", 7**-0.5)} == {
        rule for rule in found.rules if str(rule).startswith(("shift(", "scale("))
    }
    [norms_of_heads] = found.open
    assert len(norms_of_heads.options) == 2
    numbers = np.random.default_rng(0)
    values = {name: numbers.normal(size=leaf.shape) for name, leaf in tree.items()}
    values = jax.tree.map(lambda leaf: jnp.asarray(leaf, "float32"), values)
    for option in norms_of_heads.options:
        made = found.lens(option).get(values)
        np.testing.assert_allclose(other(made), run(values), rtol=1e-4)


def test_a_list_in_each_member_of_a_list_is_one_pattern() -> None:
    def run(layers: Sequence[Any]) -> Any:
        x = X
        for layer in layers:
            x += jnp.tanh(x * layer["norm_0"]) @ layer["kernel"] * layer["norm_1"]
        return x

    layer = {"norm_0": jnp.ones(4), "kernel": jnp.ones((4, 4)), "norm_1": jnp.ones(4)}
    apart = {f"layers_{i}": layer for i in range(3)}
    stacked = {"layers": jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), layer)}
    found = discover(
        lambda p: run([p[f"layers_{i}"] for i in range(3)]),
        apart,
        lambda p: run([jax.tree.map(lambda leaf: leaf[i], p["layers"]) for i in range(3)]),  # noqa: B023
        stacked,
    )
    assert found.status == "complete"
    drawn = jax.tree.map(lambda leaf: leaf + jnp.arange(leaf.size).reshape(leaf.shape), stacked)
    lens = found.lens()
    cs.assert_trees_identical(lens.get(lens.put(drawn)), drawn)


def test_layers_are_a_list_though_one_alone_has_the_stream_that_all_share() -> None:
    class Layer(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.dense = nnx.Linear(4, 4, rngs=rngs)
            self.dropout = nnx.Dropout(0.1, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.dropout(jnp.tanh(self.dense(x)), deterministic=True)

    class Model(nnx.Module):
        def __init__(self) -> None:
            rngs = nnx.Rngs(0)
            self.layers_0, self.layers_1 = Layer(rngs), Layer(rngs)

        def __call__(self, x: Any) -> Any:
            return self.layers_1(self.layers_0(x))

    def run(p: Any) -> Any:
        x = X
        for name in ("layers_0", "layers_1"):
            x = jnp.tanh(x @ p[name]["w"] + p[name]["b"])
        return x

    layer = {"w": jnp.ones((4, 4)), "b": jnp.ones(4)}
    found = discover(run, {"layers_0": layer, "layers_1": layer}, lambda model: model(X), Model())
    assert (found.status, found.lists) == ("complete", ("layers_{i}",))
    assert [str(rule) for rule in found.rules] == [
        "rename('layers[]/b', 'layers[]/dense/bias')",
        "rename('layers[]/w', 'layers[]/dense/kernel', axes='0 1')",
    ]
    assert found.lens().private


def test_what_no_rule_can_say_is_open() -> None:
    def run(p: Any, factors: Sequence[float] = (1.0, 1.0)) -> Any:
        x = X
        for layer, factor in zip(p["layers"], factors, strict=True):
            x += jnp.tanh(x @ layer["up"]) @ layer["down"] * factor
        return x

    layer = {"up": jnp.ones((4, 7)), "down": jnp.ones((7, 4))}
    tree = {"layers": [layer, layer]}
    found = discover(run, tree, lambda p: run(p, (1.0, 0.5)), tree)
    assert found.status == "complete but for choices"
    assert "it holds in 1 of 2 layers alone" in str(found.open)


def test_what_no_value_changes_is_open() -> None:
    def run(p: Any) -> Any:
        scores = (X @ p["q"]) @ (X @ p["k"] + p["bias"]).T
        return jax.nn.softmax(scores, -1) @ X

    tree = {"q": jnp.ones((4, 5)), "k": jnp.ones((4, 5)), "bias": jnp.ones(5)}
    other = {"query": jnp.ones((4, 5)), "key": jnp.ones((4, 5)), "b": jnp.ones(5)}
    found = discover(
        run, tree, lambda p: run({"q": p["query"], "k": p["key"], "bias": p["b"]}), other
    )
    assert found.status == "complete but for choices"
    [bias] = found.open
    assert (bias.sources, bias.views) == (("bias",), ("b",))
    with pytest.raises(cs.DerivationError, match="running the models does not tell these"):
        found.lens()
    lens = found.lens(rules=[cs.rename("bias", "b")])
    np.testing.assert_array_equal(lens.get(tree)["b"], tree["bias"])


def _scored(p: Any) -> Any:
    scores = (X @ p["q"]) @ (X @ p["k"] + p["bias"]).T
    return jax.nn.softmax(scores, -1) @ X


SCORED = {"q": jnp.ones((4, 5)), "k": jnp.ones((4, 5)), "bias": jnp.ones(5)}


def test_what_a_rule_says_of_a_leaf_that_nothing_tells_is_not_open() -> None:
    rule = cs.rename("bias", "b")
    other = {"q": SCORED["q"], "k": SCORED["k"], "b": SCORED["bias"]}
    found = discover(_scored, SCORED, lambda p: _scored({**p, "bias": p["b"]}), other, rules=[rule])
    assert (found.status, found.rules, found.open) == ("complete", (rule,), ())
    assert found.lens().get(SCORED)["b"].shape == (5,)


def _branches(p: Any) -> Any:
    return jnp.tanh(X @ p["left"]) + jnp.tanh(X @ p["right"])


BRANCHES = {"left": jnp.ones((4, 6)), "right": 2 * jnp.ones((4, 6))}


def test_a_rule_settles_a_choice_beforehand() -> None:
    rules = [cs.rename("left", "right"), cs.rename("right", "left")]
    found = discover(_branches, BRANCHES, _branches, BRANCHES, rules=rules)
    assert (found.status, found.open) == ("complete", ())
    assert (found.lens().get(BRANCHES)["right"] == 1).all()


def test_a_rule_that_is_not_so_leaves_nothing_complete() -> None:
    tree = {"a": jnp.ones((4, 4)), "b": jnp.ones((4, 4))}
    rules = [cs.rename("a", "b"), cs.rename("b", "a")]

    def run(p: Any) -> Any:
        return jnp.tanh(X @ p["a"]) @ p["b"]

    found = discover(run, tree, run, tree, rules=rules, budget=100)
    assert found.status == "incomplete"


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (cs.rename("left", "middle"), "a leaf of view, or a node"),
        (cs.scale("middle", 2.0), "a leaf of view, or a node"),
        (cs.fuse("both", ["left", "right"], axes="i 2*j -> i j"), "a leaf of view, or a node"),
        (cs.scale("left", "d"), "give the number"),
        (cs.fuse("left", ["left", "right"], axes="i 2*j -> i j"), "not cut into the shapes"),
    ],
)
def test_a_rule_that_fits_no_leaf_is_refused(rule: Any, said: str) -> None:
    with pytest.raises(DiscoveryError, match="rules= does not fit the models") as caught:
        discover(_branches, BRANCHES, _branches, BRANCHES, rules=[rule])
    assert said in str(caught.value)


def _layers(layers: Sequence[Any], factor: float = 1.0) -> Any:
    x = X
    for layer in layers:
        gate = jax.nn.silu(factor * (x @ layer["gate"]))
        x = x + (gate * (x @ layer["up"])) @ layer["down"]
    return x


def _fused_layers(p: Any) -> Any:
    """Layers that are stacked on two axes, of fused kernels, the gate's weights times 0.3 in the code."""
    wi, down = p["blocks"]["wi"], jnp.moveaxis(p["blocks"]["down"], 1, 0)
    layers = [
        {"gate": w[:, 0], "up": w[:, 1], "down": own} for w, own in zip(wi, down, strict=True)
    ]
    return _layers(layers, 0.3)


LAYER = {"gate": jnp.ones((4, 6)), "up": jnp.ones((4, 6)), "down": jnp.ones((6, 4))}
BLOCKS = {"blocks": {"wi": jnp.ones((2, 4, 2, 6)), "down": jnp.ones((6, 2, 4))}}


STACKS = {"blocks": 0, "blocks/down": 1}
FUSED_LAYERS = (
    _fused_layers,
    BLOCKS,
    lambda p: _layers([p["layers_0"], p["layers_1"]]),
    {"layers_0": LAYER, "layers_1": LAYER},
)


def test_what_is_known_of_layers_and_values_is_carried_over_first() -> None:
    """Beyond what is searched for: a factor that is no root of a size."""
    known = cs.scale("layers[]/gate", 0.3)
    found = discover(*FUSED_LAYERS, rules=[known], scan=STACKS, lists=["layers_{i}"])
    assert (found.status, found.rules[-1]) == ("complete", known)
    assert {**found.scan, **STACKS} == found.scan and found.lists == ("layers_{i}",)
    assert discover(*FUSED_LAYERS, budget=300).status == "refused"


def test_a_fused_leaf_that_is_known_is_cut_so() -> None:
    rules = [
        cs.fuse("blocks[]/wi", ["layers[]/gate", "layers[]/up"], axes="a 2 b -> a b"),
        cs.scale("layers[]/gate", 0.3),
    ]
    found = discover(*FUSED_LAYERS, rules=rules, scan=STACKS, lists=["layers_{i}"])
    assert found.status == "complete" and found.rules[-2:] == tuple(rules)
    blocks = jax.tree.map(lambda x: jnp.arange(1.0 + x.size)[1:].reshape(x.shape), BLOCKS)
    made = found.lens().get(blocks)
    assert (made["layers_1"]["up"] == blocks["blocks"]["wi"][1, :, 1]).all()


def _trained(params: Any, **more: Any) -> Any:
    return {"params": params, "opt_state": optax.adam(1e-3).init(params), **more}


def test_the_moments_of_an_optimizer_follow_their_params() -> None:
    old = _trained({"up": jnp.ones((4, 6)), "down": jnp.ones((6, 5))}, step=jnp.array(3))
    new = _trained({"w1": jnp.ones((6, 4)), "w2": jnp.ones((5, 6))}, step=jnp.array(0))
    found = discover(
        lambda s: jnp.tanh(X @ s["params"]["up"]) @ s["params"]["down"],
        old,
        lambda s: jnp.tanh(X @ s["params"]["w1"].T) @ s["params"]["w2"].T,
        new,
    )
    assert (found.status, found.open) == ("complete", ())
    state = old["opt_state"]
    moved = state[0]._replace(mu=jax.tree.map(lambda x: x + jnp.arange(x.shape[-1]), state[0].mu))
    made = found.lens().get({**old, "opt_state": (moved, *state[1:])})
    assert made["opt_state"][0].mu["w1"].tolist() == moved.mu["up"].T.tolist()
    assert made["step"] == 3


def test_counts_join_by_name_or_by_rule_or_are_open() -> None:
    old = {"w": jnp.ones((4, 3)), "seen": jnp.array(3), "steps": jnp.array(4)}
    new = {"v": jnp.ones((4, 3)), "seen": jnp.array(0), "count": jnp.array(0)}
    runs = lambda p: jnp.tanh(X @ p["w"]), lambda p: jnp.tanh(X @ p["v"])
    found = discover(runs[0], old, runs[1], new)
    [count] = found.open
    assert (count.sources, count.views) == (("steps",), ("count",))
    assert found.status == "complete but for choices" and "it is no float" in count.reason
    with pytest.raises(cs.DerivationError, match="steps"):
        found.lens()
    found = discover(runs[0], old, runs[1], new, rules=[cs.rename("steps", "count")])
    assert (found.status, found.open) == ("complete", ())
    assert {k: int(v) for k, v in found.lens().get(old).items() if k != "v"} == {
        "seen": 3,
        "count": 4,
    }


class Normed(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0, dropout=1)
        self.inner = nnx.Linear(4, 6, rngs=rngs)
        self.norm = nnx.BatchNorm(6, use_running_average=True, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, deterministic=True, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return jnp.tanh(self.dropout(self.norm(self.inner(x))))


def test_running_statistics_are_told_and_streams_are_private() -> None:
    def run(p: Any) -> Any:
        y = (X @ p["k"] + p["d"] - p["a"]) / jnp.sqrt(p["c"] + 1e-5)
        return jnp.tanh(y * p["b"] + p["e"])

    old = {"k": jnp.ones((4, 6)), **{name: jnp.arange(1.0, 7.0) for name in "abcde"}}
    found = discover(run, old, lambda module: module(X), Normed())
    pairs = {str(each.view): str(each.sources[0]) for each in found.pairings}
    assert pairs["norm/scale/value"] == "b" and pairs["norm/var/value"] == "c"
    # A mean that is taken off and a bias that is added are one but for a sign: either may be either.
    assert found.status.startswith("complete") and not any("rngs" in str(e) for e in found.open)


def test_variances_that_are_stacked_are_told() -> None:
    def run(p: Any) -> Any:
        y = X
        for layer in range(2):
            mean, variance = (p["stats"][name][layer] for name in ("mean", "var"))
            y = jnp.tanh((y @ p["k"][layer] - mean) / jnp.sqrt(variance + 1e-5))
        return y

    def run_list(p: Any) -> Any:
        layers = p["layers"]  # a list, or what is read off one
        stack = jax.tree.map(lambda *each: jnp.stack(each), layers[0], layers[1])
        return run({"k": stack["w"], "stats": {"mean": stack["a"], "var": stack["v"]}})

    old = {"k": jnp.ones((2, 4, 4)), "stats": {n: jnp.ones((2, 4)) for n in ("mean", "var")}}
    new = {"layers": [{"w": jnp.ones((4, 4)), "a": jnp.ones(4), "v": jnp.ones(4)}] * 2}
    found = discover(run, old, run_list, new)
    assert found.status == "complete", found
    drawn = jax.tree.map(
        lambda leaf: jnp.exp(jnp.sin(jnp.arange(leaf.size))).reshape(leaf.shape), old
    )
    assert jnp.allclose(run_list(found.lens().get(drawn)), run(drawn), atol=1e-6)


def test_a_stream_that_is_drawn_from_for_nothing_is_no_state_that_changes() -> None:
    class Recurrent(nnx.Module):
        def __init__(self) -> None:
            self.rnn = nnx.RNN(nnx.SimpleCell(4, 3, rngs=nnx.Rngs(0)))

        def __call__(self, x: Any) -> Any:
            return self.rnn(x[None])  # draws a key for its first carry, which is zero

    def run(p: Any) -> Any:
        carry, outputs = jnp.zeros(3), []
        for each in X:
            carry = jnp.tanh(each @ p["i"] + p["b"] + carry @ p["h"])
            outputs.append(carry)
        return jnp.stack(outputs)[None]

    old = {"i": jnp.ones((4, 3)), "b": jnp.ones(3), "h": jnp.ones((3, 3))}
    module = Recurrent()
    count = int(module.rnn.rngs.count[...])
    found = discover(run, old, lambda m: m(X), module)
    assert found.status == "complete", found
    assert int(module.rnn.rngs.count[...]) == count


@pytest.mark.parametrize("word", [{"scan": {"layers": 0}}, {"lists": ["blocks_{i}"]}])
def test_a_list_or_stack_that_is_not_there_is_refused(word: dict[str, Any]) -> None:
    with pytest.raises(cs.DerivationError, match="does not fit source or view"):
        discover(_branches, BRANCHES, _branches, BRANCHES, **word)


class Dropped(nnx.Module):
    def __init__(self) -> None:
        self.linear = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(1))

    def __call__(self, x: Any) -> Any:
        return self.dropout(self.linear(x))


TREE = {"w": jnp.ones((4, 3))}
WRONG = {
    "a run that keeps state": (lambda m: m(X), Dropped(), "changes while it runs"),
    "no finite outputs": (lambda p: X @ p["w"] / 0.0, TREE, "expected finite numbers"),
    "other outputs": (lambda p: (X @ p["w"])[:1], TREE, "expected 9 numbers"),
    "integer outputs": (lambda p: jnp.argmax(X @ p["w"], -1), TREE, "expected arrays of floats"),
    "a run that fails": (lambda p: X @ p["v"], TREE, "cannot be run"),
    "no run": (None, TREE, "a function that runs it"),
    "a model for a run": (JaxModel(lambda p: X @ p["w"], TREE), None, "it runs itself: pass None"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_compared_says_why(case: str) -> None:
    run, tree, said = WRONG[case]
    with pytest.raises(DiscoveryError) as caught:
        discover(lambda p: X @ p["w"], TREE, run, tree)
    assert said in str(caught.value)


def test_a_lens_is_held_against_what_is_discovered() -> None:
    old = {"a": jnp.ones((4, 4)), "b": jnp.ones((4, 4))}
    new = {"c": jnp.ones((4, 4)), "d": jnp.ones((4, 4))}
    runs = (
        lambda p: jnp.tanh(X @ p["a"]) @ p["b"],
        lambda p: jnp.tanh(X @ p["c"]) @ p["d"],
    )
    right = [cs.rename("a", "c", axes="0 1"), cs.rename("b", "d", axes="0 1")]
    lens = cs.adapt(old, new, rules=right)
    assert assert_discovered(lens, runs[0], old, runs[1], new).status == "complete"
    running = JaxModel(runs[0], old)  # has a run of its own, as a model of PyTorch has
    assert assert_discovered(lens, None, running, runs[1], new).status == "complete"
    exchanged = [cs.rename("a", "d", axes="0 1"), cs.rename("b", "c", axes="0 1")]
    turned = [cs.rename("a", "c", axes="1 0"), cs.rename("b", "d", axes="0 1")]
    for rules in (exchanged, turned):
        with pytest.raises(AssertionError, match="the lens makes it of another"):
            assert_discovered(cs.adapt(old, new, rules=rules), runs[0], old, runs[1], new)


def test_items_of_a_list_that_rules_call_by_their_numbers_stand_apart() -> None:
    """As in `adapt`: each is a node of its own, and so it is in the rules that are found."""
    x = jnp.linspace(-1.0, 1.0, 10).reshape(2, 5)
    names = "first", "second", "third"

    def listed(p: Any) -> Any:
        h = x
        for layer in p["net"]:
            h = jnp.tanh(h @ layer["w"] + layer["b"])
        return h @ p["out"]

    def named(p: Any) -> Any:
        h = x
        for name in names:
            h = jnp.tanh(h @ p[name]["kernel"].T + p[name]["bias"])
        return h @ p["head"]

    draw = np.random.default_rng(0)
    square, row, out = (
        draw.normal(size=shape).astype(np.float32) for shape in ((3, 5, 5), (3, 5), (5, 2))
    )
    old = {"net": [{"w": square[n], "b": row[n]} for n in range(3)], "out": out}
    new = {name: {"kernel": jnp.ones((5, 5)), "bias": jnp.ones(5)} for name in names}
    new["head"] = jnp.ones((5, 2))
    given = [cs.rename("net/1/b", "second/bias")]
    found = cs.discover(listed, old, named, new, rules=given)
    assert found.status == "complete", str(found)
    assert found.scan == {"net": None} and found.lists == ()
    made = found.lens().get(old)
    for number, name in enumerate(names):
        np.testing.assert_array_equal(made[name]["kernel"], square[number].T)
        np.testing.assert_array_equal(made[name]["bias"], row[number])
    # The rules alone say the same.
    again = cs.adapt(old, new, rules=found.rules, scan=found.scan, lists=found.lists)
    cs.assert_trees_identical(again.get(old), made)


def test_tokens_of_64_bits_in_a_run_that_float32_alone_allows_are_told() -> None:
    """Jax mixes what it traced with 64 bits with what it lowers with 32, and says nothing of tokens."""
    tokens = np.array([[3, 0, 4, 1]])

    def run(tree: dict[str, Any]) -> jax.Array:
        x = jnp.take(tree["table"], tokens, axis=0)
        # A carry of float32 refuses the float64 that comes of it where 64 bits are on.
        return jax.lax.scan(lambda y, w: (y @ w, None), x.astype(jnp.float32), tree["w"])[0]

    old = {"table": jnp.ones((5, 3)), "w": jnp.ones((2, 3, 3))}
    with pytest.raises(DiscoveryError, match=r"tokens\.astype\(np\.int32\)"):
        discover(run, old, run, old)
    tokens = tokens.astype(np.int32)  # as the hint says
    assert discover(run, old, run, old).status == "complete"
