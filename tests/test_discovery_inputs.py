"""Discovery of models that say less than all: what rounds, what is masked, what an input does not exercise."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ckpt_schema as cs
from ckpt_schema.discovery import DiscoveryError, discover
from ckpt_schema.discovery._cautions import colliding_sizes
from ckpt_schema.discovery._leaf_pieces import whole_piece

X = jnp.linspace(-1.0, 2.0, 12).reshape(3, 4)
TREE = {"up": jnp.ones((4, 6)), "down": jnp.ones((6, 5))}


def plain(p: Any) -> Any:
    return jnp.tanh(X @ p["up"]) @ p["down"]


def notes(found: Any) -> str:
    return "\n".join(found.notes)


def test_a_run_that_is_another_each_time_is_refused() -> None:
    """Jax traces it once for the outputs and once for the gradients, so running it twice shows nothing."""
    random = np.random.default_rng(0)

    def dropped(p: Any) -> Any:
        return plain(p) * (random.random(5) > 0.5)

    with pytest.raises(DiscoveryError, match="turn dropout and other randomness off"):
        discover(plain, TREE, dropped, TREE)


def test_float32_inside_sets_the_tolerance_and_is_said() -> None:
    def rounded(p: Any) -> Any:
        y = X.astype(jnp.float32) @ p["up"].astype(jnp.float32)
        return jnp.tanh(y) @ p["down"].astype(jnp.float32)

    found = discover(plain, TREE, rounded, TREE)
    assert found.status == "complete" and 1e-9 < found.evidence.noise < 1e-6
    assert found.evidence.outputs < 30 * found.evidence.noise


def test_another_epsilon_is_said_and_no_factor_is_made_of_it() -> None:
    """Among thousands of factors some come nearer by chance."""
    inputs = jnp.array(np.random.default_rng(0).normal(size=(9, 4)))

    def normed(p: Any, epsilon: float) -> Any:
        y = inputs @ p["up"]
        return jnp.tanh(y / jnp.sqrt((y * y).mean(-1, keepdims=True) + epsilon)) @ p["down"]

    found = discover(lambda p: normed(p, 1e-6), TREE, lambda p: normed(p, 1e-5), TREE)
    assert (found.status, found.rules, len(found.pairings)) == ("complete", (), 2)
    assert "only: another epsilon, or float32 inside" in notes(found)


TOKENS = jnp.array([[0, 1, 2], [3, 1, 0]])
TABLE = {"table": jnp.ones((5, 4)), "w": jnp.ones((4, 6))}


def embedded(p: Any, *, masked: bool = False) -> Any:
    rows = p["table"][TOKENS]
    if masked:  # as padding_idx=0 of torch is
        rows = jnp.where((TOKENS == 0)[..., None], jax.lax.stop_gradient(rows), rows)
    return jnp.tanh(rows @ p["w"])


def test_where_a_gradient_is_masked_the_outputs_decide_and_it_is_said() -> None:
    found = discover(embedded, TABLE, lambda p: embedded(p, masked=True), TABLE)
    assert found.status == "complete"
    assert {str(each.view) for each in found.pairings} == {"table", "w"}
    assert "outputs agree and gradients do not, as of a masked row: table" in notes(found)


def test_tokens_and_positions_that_the_input_does_not_have_are_listed() -> None:
    tree = {**TABLE, "positions": jnp.ones((8, 4))}

    def run(p: Any) -> Any:
        return jnp.tanh((p["table"][TOKENS] + p["positions"][:3]) @ p["w"])

    found = discover(run, tree, run, tree)
    assert found.status == "complete"
    assert "this input does not exercise positions[3:8], table[4]" in notes(found)


def test_an_expert_that_no_token_chooses_is_open() -> None:
    def run(p: Any) -> Any:
        best = jnp.argmax(X @ p["router"], -1)
        return jax.nn.softmax(X @ p["router"]).max(-1)[:, None] * jnp.einsum(
            "bw,bwh->bh", X, p["experts"][best]
        )

    tree = {"router": jnp.ones((4, 7)), "experts": jnp.ones((7, 4, 5))}
    found = discover(run, tree, run, tree)
    said = [*found.notes, *map(str, found.open)]
    assert any("experts[" in each for each in said) and found.status.startswith("complete")


def test_a_branch_that_is_not_taken_is_open() -> None:
    def run(p: Any, *, training: bool = False) -> Any:
        return plain(p) + (X @ p["extra"] if training else 0.0)

    tree = {**TREE, "extra": jnp.ones((4, 5))}
    found = discover(run, tree, run, tree)
    [extra] = found.open
    assert extra.sources == ("extra",) and "no value of it changes the outputs" in extra.reason
    assert found.status == "complete but for choices"


def test_sizes_that_collide_are_said_where_not_all_is_told() -> None:
    tree = {"a": jnp.ones((4, 4)), "b": jnp.ones((4, 8))}
    found = discover(
        lambda p: jnp.tanh(X @ p["a"]) @ p["b"],
        tree,
        lambda p: jax.nn.gelu(X @ p["a"]) @ p["b"],
        tree,
        budget=50,
    )
    assert found.status == "refused"
    assert "sizes collide, 4 is two axes of one leaf, 8 is 4 + 4" in notes(found)
    with pytest.raises(DiscoveryError, match="sizes collide"):
        found.lens()


def test_sizes_that_are_all_other_do_not_collide() -> None:
    assert not colliding_sizes([whole_piece("a", (7, 10)), whole_piece("b", (10, 23))])
    [said] = colliding_sizes([whole_piece("a", (3, 10)), whole_piece("b", (10, 30))])
    assert "30 is 3 * 10" in said


def test_outputs_of_other_shapes_are_said() -> None:
    found = discover(plain, TREE, lambda p: plain(p).T, TREE, budget=20)
    assert found.status == "refused"
    assert "their outputs have other shapes: (3, 5) and (5, 3)" in notes(found)


def test_an_abstract_leaf_that_is_no_float_is_refused() -> None:
    tree = {**TREE, "table": jax.ShapeDtypeStruct((3,), "int32")}
    with pytest.raises(DiscoveryError, match="give the tree with its values"):
        discover(plain, tree, plain, TREE)


def test_what_is_no_tree_is_refused() -> None:
    with pytest.raises(cs.CkptSchemaError):
        discover(plain, {"up": "text"}, plain, TREE)
