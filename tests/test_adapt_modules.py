"""Runs that are one module: a model and its optimizer under any names, and what people keep beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import ckpt_schema as cs

TX = optax.adam(1e-3)


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.up = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)


class Run(nnx.Module):
    """A model and its optimizer, and one more thing."""

    def __init__(self, kept: str = "") -> None:
        self.net = Net(nnx.Rngs(0))
        self.opt = nnx.Optimizer(self.net, TX, wrt=nnx.Param)
        if kept == "key":
            self.key = nnx.Variable(jax.random.key(5))
        if kept == "rngs":
            self.rngs = nnx.Rngs(dropout=3)
        if kept == "metrics":
            self.metrics = nnx.MultiMetric(loss=nnx.metrics.Average("loss"))
        if kept == "ema":
            self.ema = nnx.clone(self.net)
        if kept == "ema of params":
            self.ema = nnx.data(jax.tree.map(lambda x: x * 0, nnx.state(self.net, nnx.Param)))
        if kept == "teacher":
            self.teacher = nnx.clone(self.net)


class State(TrainState):
    batch_stats: Any = None


class StateWithKey(State):
    key: Any = None


class StateWithEma(State):
    ema_params: Any = None


def params(start: float) -> dict[str, Any]:
    up = {"kernel": jnp.full((3, 4), start), "bias": jnp.full(4, start + 1)}
    return {"up": up, "norm": {"scale": jnp.full(4, start + 2), "bias": jnp.full(4, start + 3)}}


def linen_run(kind: type[State] = State, **more: Any) -> Any:
    stats = {"norm": {"mean": jnp.full(4, 7.0), "var": jnp.full(4, 8.0)}}
    state: Any = kind.create(
        apply_fn=lambda: None, params=params(1.0), tx=TX, batch_stats=stats, **more
    )
    return state.apply_gradients(grads=params(5.0))


def assert_same_run(state: Any, run: Any) -> None:
    """By hand, leaf by leaf: weights, statistics, both moments, step."""
    adam: Any = nnx.state(run.opt)["opt_state"][0]
    for node, leaf in (("up", "kernel"), ("up", "bias"), ("norm", "scale"), ("norm", "bias")):
        own = getattr(getattr(run.net, node), leaf)[...]
        assert np.array_equal(own, state.params[node][leaf])
        for moment in ("mu", "nu"):
            there = getattr(state.opt_state[0], moment)[node][leaf]
            assert np.array_equal(adam[moment][node][leaf][...], there)
    assert np.array_equal(run.net.norm.mean[...], state.batch_stats["norm"]["mean"])
    assert int(run.opt.step[...]) == int(state.step) == 1


@pytest.mark.parametrize("kept", ["", "key", "rngs", "metrics"])
def test_a_linen_run_goes_into_a_module_whatever_is_kept_beside(kept: str, tmp_path: Path) -> None:
    state = linen_run()
    cs.orbax.save(tmp_path / "1", state)
    run = cs.orbax.restore(tmp_path / "1", Run(kept))
    assert_same_run(state, run)
    if kept == "key":  # the target's own
        assert np.array_equal(jax.random.key_data(run.key[...]), [0, 5])


def test_a_key_of_the_same_name_goes_along_and_back(tmp_path: Path) -> None:
    state = linen_run(StateWithKey, key=jax.random.key(9))
    cs.orbax.save(tmp_path / "1", state)
    run = cs.orbax.restore(tmp_path / "1", Run("key"))
    assert_same_run(state, run)
    assert np.array_equal(jax.random.key_data(run.key[...]), [0, 9])
    cs.orbax.save(tmp_path / "2", run)  # types are lost there, and structure tells
    other = linen_run(StateWithKey, key=jax.random.key(1))
    back = cs.orbax.restore(tmp_path / "2", jax.tree.map(jnp.zeros_like, other))
    assert_same_run(back, run)
    assert np.array_equal(jax.random.key_data(back.key), [0, 9])


def test_one_key_that_may_be_another_has_both_lines(tmp_path: Path) -> None:
    state = linen_run(StateWithKey, key=jax.random.key(9))
    cs.orbax.save(tmp_path / "1", state)
    with pytest.raises(cs.DerivationError) as raised:
        cs.orbax.restore(tmp_path / "1", Run("rngs"))
    joined, apart = cs.rename("key", "rngs/dropout/key"), ["key", "rngs/dropout/key"]
    own: list[Any] = [cs.private(path, cs.own) for path in apart]
    assert f"{joined} if it is, or else {own[0]} and {own[1]}" in str(raised.value)
    run = cs.orbax.restore(tmp_path / "1", Run("rngs"), rules=[joined])
    assert np.array_equal(jax.random.key_data(run.rngs.dropout.key[...]), [0, 9])
    run = cs.orbax.restore(tmp_path / "1", Run("rngs"), rules=own)
    assert np.array_equal(jax.random.key_data(run.rngs.dropout.key[...]), [0, 3])


@pytest.mark.parametrize("kept", ["ema", "ema of params"])
def test_an_average_goes_along_by_the_line_of_the_error(kept: str, tmp_path: Path) -> None:
    state = linen_run(StateWithEma, ema_params=params(20.0))
    cs.orbax.save(tmp_path / "1", state)
    rules: list[Any] = []
    while True:  # what an average lacks of a clone, its statistics, is told when it is joined
        try:
            run = cs.orbax.restore(tmp_path / "1", Run(kept), rules=rules)
            break
        except cs.DerivationError as error:
            more = [*error.rules, *private_lines(str(error))]
            assert more and not {*map(str, more)} <= {*map(str, rules)}
            rules += more
    assert_same_run(state, run)
    ema: Any = run.ema if kept == "ema of params" else nnx.state(run.ema)
    assert np.array_equal(ema["up"]["kernel"][...], params(20.0)["up"]["kernel"])
    cs.orbax.save(tmp_path / "2", run)
    if kept == "ema of params":
        target = jax.tree.map(jnp.zeros_like, state)
        back = cs.orbax.restore(tmp_path / "2", target, rules=[cs.rename("ema", "ema_params")])
        assert_same_run(back, run)
        assert np.array_equal(back.ema_params["up"]["bias"], params(20.0)["up"]["bias"])


def private_lines(message: str) -> list[Any]:
    """The commented rules of an error, without their mark."""
    lines = [line.strip() for line in message.splitlines()]
    return [eval(line[2:].rstrip(",")) for line in lines if line.startswith("# cs.private(")]


def test_of_two_models_one_optimizer_may_train_the_error_says_how_to_say_which() -> None:
    run: Any = Run("teacher")
    with pytest.raises(cs.SchemaError) as raised:
        cs.adapt(linen_run(), run)
    [fault] = raised.value.mismatches
    said = '{"model": run.net, "optimizer": run.opt, "teacher": run.teacher}'
    assert f"each of net and teacher: say which, {said}" in fault.hint
    lens = cs.adapt(
        linen_run(),
        {"model": run.net, "optimizer": run.opt, "teacher": run.teacher},
        rules=[cs.private("teacher", cs.own)],
    )
    assert ("teacher", "up", "kernel") in {row.path for row in lens.view.rows}
