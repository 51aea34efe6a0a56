"""A sample of what proves discovery: `discovered_drawn.py`, `discovered_wrong.py`, `discovered_choices.py`."""

from __future__ import annotations

from typing import Any

import discovered
import discovered_choices
import discovered_drawn
import discovered_wrong
import drawn_models
import jax.numpy as jnp
import keepings
import numpy as np
import pytest
import wrong_twins
from benchmarks import bench_discovery
from support.exchangeable import CERTAIN, deviation

from ckpt_schema.discovery import _matching, discover
from ckpt_schema.discovery._layer_levels import Addresses
from ckpt_schema.discovery._points import relative_gap

BUDGET = 300
X = jnp.linspace(-1.0, 2.0, 12).reshape(3, 4)


@pytest.mark.parametrize("seed", range(0, 40, 13))
def test_a_keeping_has_every_number_once(seed: int) -> None:
    random = np.random.default_rng(seed)
    model = drawn_models.drawn(random, collide=bool(seed % 2))
    keeping = keepings.keeping(random, model)
    own = model.leaves(seed)
    kept = keeping.there(own)
    assert sum(x.size for x in kept.values()) == sum(x.size for x in own.values())
    back = keeping.back({name: x.astype(np.float32) for name, x in kept.items()})
    assert all(np.array_equal(back[name], own[name].astype(np.float32)) for name in own)


def test_a_drawn_model_is_found_in_its_twin() -> None:
    outcome = discovered_drawn.attempt(0, BUDGET)
    assert (outcome["status"], outcome["lens"], outcome["wrong"]) == ("complete", "right", [])
    assert outcome["right"] > 5


def test_a_model_without_common_names_is_found() -> None:
    _, verdict = discovered.run("perceptron", 0, words=True)
    assert (verdict.status, verdict.right, verdict.wrong) == ("complete", 6, ())


def test_a_declared_lens_is_held_and_one_that_exchanges_layers_is_not() -> None:
    names = discovered.image_models.mlp_names()
    right = discovered.held(discovered.perceptrons(names), 0, BUDGET)
    assert (right["status"], right["pieces"]) == ("complete", 6)
    turn = {"a": "a", "b": "c", "c": "b"}
    other = {turn[view[0]] + view[1:]: source for view, source in names.items()}
    wrong = discovered.held(discovered.perceptrons(other), 0, BUDGET)
    assert wrong["status"] == "not held"
    assert "the lens makes it of another" in wrong["said"][0]


@pytest.mark.parametrize("name", ["an adapter beside for an adapter in a branch", "logits capped"])
def test_a_wrong_twin_gets_no_lens(name: str) -> None:
    (full,) = [each for each in wrong_twins.planted(75) if each.startswith(name)]
    assert not discovered_wrong.is_taken(discovered_wrong.attempt(full, 75, 0, BUDGET))


def test_a_wrong_lens_is_seen() -> None:
    twin = wrong_twins.exchanged("gated by gelu", "gated by silu")
    same = wrong_twins.exchanged("gated by gelu", "gated by gelu")
    assert twin.gap > discovered_wrong.LEAST > same.gap
    found = discover(same.runs[0], same.trees[0], same.runs[1], same.trees[1])
    assert discovered_wrong.lens_given(same, found) == "equal outputs"
    assert discovered_wrong.lens_given(twin, found) == "other outputs"


def test_draws_tell_other_functions_from_rearranged_ones() -> None:
    leaves = {name: np.random.default_rng(at).normal(size=(4, 4)) for at, name in enumerate("ab")}
    turned = {"c": leaves["b"], "d": leaves["a"].T}

    def run(p: Any) -> Any:
        return jnp.tanh(X @ p["a"]) @ p["b"]

    def exchanged(p: Any) -> Any:
        return jnp.tanh(X @ p["d"]) @ p["c"].T

    def other(p: Any) -> Any:
        return jnp.sin(X @ p["d"]) @ p["c"].T

    assert deviation((run, exchanged), (leaves, turned), most=500) < CERTAIN
    assert deviation((run, other), (leaves, turned), most=500) > CERTAIN


def test_what_is_open_has_the_right_one_among_its_candidates() -> None:
    case = discovered_choices.CASES["2 key biases"]()
    twins = discovered_choices.twins_of(case, 0)
    found = discover(twins.runs[0], twins.values[0], twins.runs[1], twins.values[1])
    assert found.open and not discovered.lost_leaves(found, *twins.values)
    others = {name: x + 9 for name, x in twins.values[0].items()}
    assert len(discovered.lost_leaves(found, others, twins.values[1])) == 2


@pytest.mark.parametrize("name", ["scores times 2.0", "two scales together"])
def test_a_choice_is_the_users(name: str) -> None:
    outcome = discovered_choices.attempt(name, 0, BUDGET)
    assert not outcome["faults"] and outcome["held"]


def test_pieces_are_compared_with_few_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many have one shape: near linear, told by a count and not by a clock."""
    compared: list[int] = []

    def counting(*arrays: Any) -> float:
        compared[-1] += 1
        return relative_gap(*arrays)

    monkeypatch.setattr(_matching, "relative_gap", counting)
    for count in (100, 800):
        compared.append(0)
        bench_discovery.of_pieces(count)
    assert 800 < compared[1] < 10 * compared[0]


def test_the_path_of_a_leaf_is_asked_for_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many leaves there are: once for each of them and not for each pair of them."""
    asked = 0
    path = Addresses.path

    def counting(side: Addresses, name: str) -> str:
        nonlocal asked
        asked += 1
        return path(side, name)

    monkeypatch.setattr(Addresses, "path", counting)
    bench_discovery.of_pieces(200)
    assert 200 <= asked < 20 * 200
