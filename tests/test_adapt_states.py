"""Train states that people write: fields of any names, collections in a field; each held against the arrays themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, struct
from orbax.checkpoint import v1 as ocp

import ckpt_schema as cs

TX = optax.adam(1e-3)


class Net(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.up = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)


class Run(nnx.Module):
    def __init__(self) -> None:
        self.model = Net()
        self.optimizer = nnx.Optimizer(self.model, TX, wrt=nnx.Param)


@struct.dataclass
class Other:
    """Names that no framework has."""

    weights: Any
    statistics: Any
    optimizer_state: Any
    iteration: Any


@struct.dataclass
class Averaged:
    online: Any
    ema: Any
    optim: Any


def filled(tree: Any) -> Any:
    """Other numbers in each leaf."""
    leaves, treedef = jax.tree.flatten(tree)
    made: list[Any] = []
    for number, leaf in enumerate(leaves):
        values = np.arange(np.size(leaf)).reshape(np.shape(leaf)) / 8 + number + 1
        made.append(jnp.asarray(values, leaf.dtype))
    return treedef.unflatten(made)


def params() -> Any:
    up = {"kernel": jnp.zeros((3, 4)), "bias": jnp.zeros(4)}
    return {"up": up, "norm": {"scale": jnp.zeros(4), "bias": jnp.zeros(4)}}


STATS = {"batch_stats": {"norm": {"mean": jnp.zeros(4), "var": jnp.zeros(4)}}}


def other() -> Any:
    return filled(Other(params(), STATS, TX.init(params()), jnp.int32(0)))


def assert_same(run: Any, state: Any) -> None:
    adam: Any = nnx.state(run.optimizer)["opt_state"][0]
    moments = state.optimizer_state[0]
    assert np.array_equal(run.model.up.kernel[...], state.weights["up"]["kernel"])
    assert np.array_equal(run.model.norm.scale[...], state.weights["norm"]["scale"])
    assert np.array_equal(adam["mu"]["up"]["bias"][...], moments.mu["up"]["bias"])
    assert np.array_equal(adam["nu"]["norm"]["bias"][...], moments.nu["norm"]["bias"])
    assert int(adam["count"][...]) == int(moments.count)
    stats = state.statistics["batch_stats"]["norm"]
    assert np.array_equal(run.model.norm.mean[...], stats["mean"])
    assert np.array_equal(run.model.norm.var[...], stats["var"])
    assert int(run.optimizer.step[...]) == int(state.iteration)


def test_fields_of_any_name_are_told_by_the_moments(tmp_path: Path) -> None:
    state = other()
    ocp.save(str(tmp_path / "1"), state)
    with pytest.raises(cs.DerivationError) as raised:
        cs.orbax.restore(tmp_path / "1", Run())
    hints = {fault.path: fault.hint for fault in raised.value.mismatches}
    rule = cs.rename("iteration", "step")
    assert hints.keys() == {"iteration", "step"}
    assert all(f"{rule} if these two are one" in hint for hint in hints.values())
    run = cs.orbax.restore(tmp_path / "1", Run(), rules=[rule])
    assert_same(run, state)
    cs.orbax.save(tmp_path / "2", run)
    empty = jax.tree.map(jnp.zeros_like, state)
    assert_same(
        run, cs.orbax.restore(tmp_path / "2", empty, rules=[cs.rename("step", "iteration")])
    )


def test_such_a_state_is_restored_as_it_is_and_its_weights_alone(tmp_path: Path) -> None:
    state = other()
    ocp.save(str(tmp_path / "1"), state)
    empty = jax.tree.map(jnp.zeros_like, state)
    cs.assert_trees_identical(cs.orbax.restore(tmp_path / "1", empty), state)
    weights: Any = filled(Averaged(params(), params(), TX.init(params())))
    ocp.save(str(tmp_path / "2"), weights)
    alone = cs.orbax.restore(tmp_path / "2", jax.tree.map(jnp.zeros_like, params()))
    cs.assert_trees_identical(alone, weights.online)


def test_of_two_trees_that_moments_mirror_the_average_is_no_model(tmp_path: Path) -> None:
    state: Any = filled(Averaged(params(), params(), TX.init(params())))
    ocp.save(str(tmp_path / "1"), state)
    target = {"params": params(), "ema_params": params(), "opt_state": TX.init(params())}
    rule = cs.rename("ema", "ema_params")
    made = cs.orbax.restore(tmp_path / "1", target, rules=[rule])
    cs.assert_trees_identical(made["params"], state.online)
    cs.assert_trees_identical(made["ema_params"], state.ema)


def test_two_trees_that_either_may_be_the_model_are_refused() -> None:
    tree = {"one": params(), "two": params(), "optim": TX.init(params())}
    with pytest.raises(cs.SchemaError, match="optimizer of a train state"):
        cs.infer(tree)


def test_collections_in_a_field_are_the_models(tmp_path: Path) -> None:
    tree = {"params": params(), "model_state": STATS, "opt_state": TX.init(params())}
    state = filled({**tree, "step": jnp.int32(0)})
    ocp.save(str(tmp_path / "1"), state)
    run = cs.orbax.restore(tmp_path / "1", Run())
    assert np.array_equal(
        run.model.norm.var[...], state["model_state"]["batch_stats"]["norm"]["var"]
    )
    cs.orbax.save(tmp_path / "2", run)
    back = cs.orbax.restore(tmp_path / "2", jax.tree.map(jnp.zeros_like, state))
    cs.assert_trees_identical(back["model_state"], state["model_state"])
    cs.assert_trees_identical(back["params"], state["params"])


def test_a_key_stored_as_raw_data_has_the_line(tmp_path: Path) -> None:
    stored = {
        "params": params(),
        "opt_state": TX.init(params()),
        "rng": jnp.array([3, 4], "uint32"),
    }
    ocp.save(str(tmp_path / "1"), stored)
    target = {**jax.tree.map(jnp.zeros_like, stored), "rng": jax.random.key(0)}
    with pytest.raises(cs.DerivationError) as raised:
        cs.orbax.restore(tmp_path / "1", target)
    assert str(cs.raw_key("rng")) in raised.value.mismatches[0].hint
    made = cs.orbax.restore(tmp_path / "1", target, rules=[cs.raw_key("rng")])
    assert np.array_equal(jax.random.key_data(made["rng"]), [3, 4])
