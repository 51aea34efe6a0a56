"""`cs.adapt(..., run=(f, g))`: what names do not settle is told by running both models, and what they do is proved so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float32
from orbax.checkpoint import v1 as ocp

import ckpt_schema as cs
from ckpt_schema.discovery import DiscoveryError

X = jnp.linspace(-1.0, 2.0, 12).reshape(3, 4)
SQUARE = {"a": jnp.arange(16.0).reshape(4, 4), "b": -jnp.arange(16.0).reshape(4, 4)}


def first(p: Any) -> Any:
    return jnp.tanh(X @ p["a"]) @ p["b"]


def crossed(p: Any) -> Any:
    """The same function, its two leaves of one shape called otherwise."""
    return jnp.tanh(X @ p["b"]) @ p["a"]


def other_names(p: Any) -> Any:
    return jnp.tanh(X @ p["one"]) @ p["two"]


def test_names_that_are_right_are_taken() -> None:
    by_names = cs.adapt(SQUARE, SQUARE)
    assert str(cs.adapt(SQUARE, SQUARE, run=(first, first))) == str(by_names)


def test_names_that_mislead_are_seen_through() -> None:
    made = cs.adapt(SQUARE, SQUARE, run=(first, crossed)).get(SQUARE)
    np.testing.assert_array_equal(made["b"], SQUARE["a"])
    np.testing.assert_array_equal(made["a"], SQUARE["b"])


def test_leaves_that_share_no_name_are_told() -> None:
    view = {"one": jnp.ones((4, 4)), "two": jnp.ones((4, 4))}
    with pytest.raises(cs.DerivationError, match=r"found = cs.discover\("):
        cs.adapt(SQUARE, view)
    made = cs.adapt(SQUARE, view, run=(first, other_names)).get(SQUARE)
    np.testing.assert_array_equal(made["one"], SQUARE["a"])


def test_two_functions_get_no_lens() -> None:
    with pytest.raises(DiscoveryError, match="refused"):
        cs.adapt(SQUARE, SQUARE, run=(first, lambda p: jax.nn.gelu(X @ p["a"]) @ p["b"]))


def test_what_rules_say_is_kept() -> None:
    def branches(p: Any) -> Any:
        return jnp.tanh(X @ p["a"]) + jnp.tanh(X @ p["b"])

    view = {"one": jnp.ones((4, 4)), "two": jnp.ones((4, 4))}
    runs = branches, lambda p: branches({"a": p["one"], "b": p["two"]})
    with pytest.raises(DiscoveryError, match="a choice is the user's"):
        cs.adapt(SQUARE, view, run=runs)
    rules = [cs.rename("a", "two", axes="0 1"), cs.rename("b", "one", axes="0 1")]
    made = cs.adapt(SQUARE, view, run=runs, rules=rules).get(SQUARE)
    np.testing.assert_array_equal(made["two"], SQUARE["a"])


def test_a_checkpoint_is_run_as_it_is_stored(tmp_path: Path) -> None:
    state = {"params": SQUARE, "step": jnp.array(3)}
    ocp.save(tmp_path / "old", state)
    view = {"params": {"one": jnp.ones((4, 4)), "two": jnp.ones((4, 4))}, "step": jnp.array(0)}
    lens = cs.adapt(
        tmp_path / "old",
        view,
        run=(lambda s: first(s["params"]), lambda s: other_names(s["params"])),
    )
    made = lens.get(state)
    np.testing.assert_array_equal(made["params"]["two"], SQUARE["b"])
    assert made["step"] == 3


def test_a_schema_is_a_side() -> None:
    class Pair(cs.Schema):
        one: Float32[Array, "4 5"]
        two: Float32[Array, "5 4"]

    view = {"v": jnp.ones((4, 5)), "w": jnp.ones((5, 4))}
    found = cs.discover(
        other_names, Pair, lambda p: other_names({"one": p["v"], "two": p["w"]}), view
    )
    assert found.rules == (cs.rename("one", "v"), cs.rename("two", "w"))


def test_one_run_alone_is_refused() -> None:
    with pytest.raises(cs.ConformanceError, match="expected two functions"):
        cs.adapt(SQUARE, SQUARE, run=first)  # type: ignore[arg-type]
