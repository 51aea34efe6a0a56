"""`adapt` of a state that stands below a key: the lens is that which a restore with the same words makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from orbax.checkpoint import v1 as ocp

import ckpt_schema as cs

TX = optax.adam(1e-3)


class Model(nnx.Module):
    def __init__(self) -> None:
        self.up = nnx.Linear(3, 4, rngs=nnx.Rngs(0))


def state() -> dict[str, Any]:
    up = {"kernel": jnp.arange(12.0).reshape(3, 4), "bias": jnp.full(4, 5.0)}
    return {"params": {"Dense_0": up}}


RULES = [cs.rename("Dense_0", "up")]


def beside() -> dict[str, Any]:
    return {"run": {"weights": state()}, "config": {"width": jnp.int32(4)}}


def assert_moved(module: Any) -> None:
    assert np.array_equal(module.up.kernel[...], state()["params"]["Dense_0"]["kernel"])
    assert np.array_equal(module.up.bias[...], np.full(4, 5.0))


@pytest.mark.parametrize("stored", [True, False])
def test_a_state_below_a_key(stored: bool, tmp_path: Path) -> None:
    cs.orbax.save(tmp_path / "1", beside())
    source = tmp_path / "1" if stored else beside()
    lens = cs.adapt(source, Model(), rules=RULES, at="run/weights")
    module: Any = Model()
    nnx.update(module, lens.get(state(), onto=nnx.state(module)))
    assert_moved(module)
    words: Any = {"at": "run/weights"}
    assert_moved(cs.orbax.restore(tmp_path / "1", Model(), lens, **words))
    assert_moved(cs.orbax.restore(tmp_path / "1", Model(), rules=RULES, **words))


def test_a_part_of_a_module() -> None:
    class Run(nnx.Module):
        def __init__(self) -> None:
            self.model = Model()
            self.seen = nnx.Variable(jnp.int32(0))

    run = Run()
    lens = cs.adapt(run, {"up": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}}, at="model")
    got = lens.get(nnx.state(run.model))
    assert np.array_equal(got["up"]["kernel"], run.model.up.kernel[...])


@pytest.mark.parametrize("stored", [True, False])
def test_the_error_names_the_key(stored: bool, tmp_path: Path) -> None:
    cs.orbax.save(tmp_path / "1", beside())
    source = tmp_path / "1" if stored else beside()
    with pytest.raises(cs.CheckpointMismatchError, match="pass at='run/weights'"):
        cs.adapt(source, Model(), rules=RULES)


def test_an_item_is_named(tmp_path: Path) -> None:
    ocp.save_checkpointables(str(tmp_path / "1"), {"old": state(), "new": state()})
    with pytest.raises(cs.CheckpointMismatchError, match="item='new'"):
        cs.adapt(tmp_path / "1", Model(), rules=RULES)
    lens = cs.adapt(tmp_path / "1", Model(), rules=RULES, item="new")
    assert_moved(cs.orbax.restore(tmp_path / "1", Model(), lens, item="new"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"at": "run/nothing"}, "name one of these keys"),
        ({"at": "config/width/more"}, "found no keys"),
        ({"at": 3}, 'at="model"'),
        ({"item": "state"}, "pass the path"),
    ],
)
def test_what_no_tree_has_is_an_error(words: dict[str, Any], said: str) -> None:
    with pytest.raises(cs.ConformanceError) as raised:
        cs.adapt(beside(), Model(), **words)
    assert said in str(raised.value)


def run_state() -> dict[str, Any]:
    params = state()["params"]
    return {"params": params, "opt_state": TX.init(params), "step": jnp.int32(7)}


def test_items_under_other_names_are_said_with_the_line(tmp_path: Path) -> None:
    whole = run_state()
    parts = {"train_params": whole["params"], "optim": whole["opt_state"]}
    ocp.save_checkpointables(str(tmp_path / "1"), {**parts, "counter": {"step": whole["step"]}})
    target = jax.tree.map(jnp.zeros_like, whole)
    with pytest.raises(cs.CheckpointMismatchError) as raised:
        cs.orbax.restore(tmp_path / "1", target)
    [fault] = raised.value.mismatches
    items = {"params": "train_params", "opt_state": "optim"}
    assert fault.hint == f"pass items={items!r}, item='counter'"
    made = cs.orbax.restore(tmp_path / "1", target, items=items, item="counter")
    cs.assert_trees_identical(made, whole)


def test_an_item_that_is_not_there_is_told_with_the_nearest(tmp_path: Path) -> None:
    parts: dict[str, Any] = {"meta": {"seen": jnp.ones(3)}, "state": run_state()}
    ocp.save_checkpointables(str(tmp_path / "1"), parts)
    target = jax.tree.map(jnp.zeros_like, run_state())
    with pytest.raises(cs.CheckpointMismatchError, match="pass item='state'"):
        cs.orbax.restore(tmp_path / "1", target, item="train_state")
    with pytest.raises(cs.CheckpointMismatchError, match="near: 'params': 'state'"):
        cs.orbax.restore(tmp_path / "1", target, items={"params": "states"})
