"""Train states that people write: fields of any names, collections in a field; each held against the arrays themselves."""

from __future__ import annotations

import itertools
import re
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


@pytest.mark.parametrize("model", ["model_state", None], ids=["in a field", "at the root"])
def test_statistics_of_an_average_are_not_the_models(model: str | None, tmp_path: Path) -> None:
    own = {model: STATS} if model else STATS
    tree = {"params": params(), **own, "opt_state": TX.init(params()), "step": jnp.int32(0)}
    state = filled({**tree, "ema_params": params(), "ema_state": STATS})
    ocp.save(str(tmp_path / "1"), state)
    cs.assert_trees_identical(
        cs.orbax.restore(tmp_path / "1", jax.tree.map(jnp.zeros_like, state)), state
    )
    without = [cs.private("ema_params/**", 0.0), cs.private("ema_state/**", 0.0)]
    run = cs.orbax.restore(tmp_path / "1", Run(), rules=without)
    stats = (state[model] if model else state)["batch_stats"]["norm"]
    assert np.array_equal(run.model.norm.mean[...], stats["mean"])
    assert np.array_equal(run.model.norm.var[...], stats["var"])


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


# --- moments that stand on disk where nothing says that they are an optimizer's  ---


def listed(adam: Any) -> Any:
    return {"saved": jax.tree.leaves(adam)}


def called_otherwise(adam: Any) -> Any:
    return {"saved": {"first": adam.mu, "second": adam.nu, "updates": adam.count}}


def beside_the_weights(adam: Any) -> Any:
    return {"first": adam.mu, "second": adam.nu, "updates": adam.count}


OPTIMIZER = "opt_state/0"
LEAVES = itertools.product(("mu", "nu"), ("norm/bias", "norm/scale", "up/bias", "up/kernel"))
LISTED = [("saved/0", "count")]
LISTED += [(f"saved/{number}", "/".join(leaf)) for number, leaf in enumerate(LEAVES, 1)]
NAMED = [("first", "mu"), ("second", "nu"), ("updates", "count")]
BELOW = [(f"saved/{old}", new) for old, new in NAMED]


@pytest.mark.parametrize(
    ("kept", "names", "target"),
    [
        (listed, LISTED, Run),
        (called_otherwise, BELOW, lambda: cs.infer(Run(), tx=TX)),
        (beside_the_weights, NAMED, Run),
    ],
)
def test_moments_that_may_be_on_disk_are_not_offered_to_be_given_up(
    kept: Any, names: Any, target: Any
) -> None:
    adam: Any = filled(TX.init(params()))[0]
    state = {"params": params(), **STATS, "step": jnp.int32(0), **kept(adam)}
    with pytest.raises(cs.DerivationError) as raised:
        cs.adapt(state, target())
    said = str(raised.value)
    assert "own)" not in said and "reset(" not in said
    assert not raised.value.rules
    [hint] = {fault.hint for fault in raised.value.mismatches}
    told = "source names no optimizer, and may have at "
    assert hint.startswith(told + ", ".join(dict.fromkeys(n.split("/")[0] for n, _ in names)))
    assert "keeps at opt_state: rename each node or leaf of it" in hint
    rules = [cs.rename(old, f"{OPTIMIZER}/{new}") for old, new in names]
    made = cs.adapt(state, target(), rules=rules).get(state, onto=nnx.state(Run()))
    found: Any = made["optimizer"]["opt_state"][0]
    assert np.array_equal(found["mu"]["up"]["kernel"][...], adam.mu["up"]["kernel"])
    assert np.array_equal(found["nu"]["norm"]["bias"][...], adam.nu["norm"]["bias"])
    assert int(found["count"][...]) == int(adam.count)


def test_an_optimizer_that_is_not_on_disk_is_offered_to_keep_its_own() -> None:
    """What else is there is not as many leaves of the shapes of weights as a moment has."""
    state = {"params": {**params(), "head": {"bias": jnp.zeros(4)}}, **STATS, "step": jnp.int32(0)}
    with pytest.raises(cs.DerivationError, match=r"# cs.private\('opt_state', cs.own\)"):
        cs.adapt(state, Run())


# --- averages that stand deeper on one side than on the other  ---


class Kept(Run):
    """A run with a clone of its model."""

    def __init__(self, place: str) -> None:
        super().__init__()
        clone = nnx.clone(self.model)
        if place == "averaged":
            self.averaged = clone
        else:
            self.extra = nnx.Dict(shadow=clone)


@pytest.mark.parametrize(
    ("key", "place"),
    [("ema", "extra/shadow"), ("ema/params", "averaged"), ("extra/ema", "averaged")],
)
def test_averages_of_two_places_are_joined_by_one_line(key: str, place: str) -> None:
    """What an average of params lacks of a clone, its statistics, is told when the two are joined."""
    average: Any = filled(params())
    kept = average
    for name in reversed(key.split("/")):
        kept = {name: kept}
    adam = TX.init(params())
    state = {"params": params(), **STATS, "opt_state": adam, "step": jnp.int32(0), **kept}
    rules: list[Any] = []
    while True:
        try:
            lens = cs.adapt(state, Kept(place), rules=rules)
            break
        except cs.DerivationError as error:
            lines = re.findall(r"cs\.private\([^)]*\)", str(error))
            if not rules:
                assert error.rules == (cs.rename(key, place),)
            else:
                assert len(rules) == 1 and not error.rules and len(lines) == 2
                assert all("norm" in line and place in line for line in lines)
            rules += [*error.rules] or [eval(line, {"cs": cs}) for line in lines]
    found: Any = lens.get(state, onto=nnx.state(Kept(place)))
    for name in place.split("/"):
        found = found[name]
    assert np.array_equal(found["up"]["kernel"][...], average["up"]["kernel"])
    assert np.array_equal(found["norm"]["bias"][...], average["norm"]["bias"])


def test_what_an_average_lacks_of_a_clone_of_one_name_is_told_by_its_own_path() -> None:
    run = Kept("averaged")
    state = {"params": params(), **STATS, "opt_state": TX.init(params()), "step": jnp.int32(0)}
    with pytest.raises(cs.DerivationError) as raised:
        cs.adapt({**state, "averaged": params()}, run)
    lines = re.findall(r"# (cs\.private\(.*\)),", str(raised.value))
    assert lines == [f"cs.private('averaged/norm/{name}', cs.own)" for name in ("mean", "var")]
    rules = [eval(line, {"cs": cs}) for line in lines]
    assert len(cs.adapt({**state, "averaged": params()}, run, rules=rules).joins) == 20
