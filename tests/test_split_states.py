"""Train states of NNX models that programs split: states of Variables in a dict or a dataclass, and in an optimizer of optax's.

The oracle is Flax's own: its state dict of Linen's train state against pure dicts of the states.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization
from flax.training import train_state
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

import ckpt_schema as cs

TXS = {
    "adamw": optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(optax.cosine_decay_schedule(1e-3, 100))
    ),
    "accumulated": optax.MultiSteps(optax.adam(1e-3), 2),
    "finite": optax.apply_if_finite(optax.adam(1e-3), 3),
    "sgd": optax.sgd(1e-3),
    "adafactor": optax.adafactor(1e-3),
}
FORMS = "dict", "dataclass"


class LinenModel(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(4, name="b")(nn.relu(nn.Dense(3, name="a")(x)))


class NnxModel(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.a = nnx.Linear(2, 3, rngs=rngs)
        self.b = nnx.Linear(3, 4, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.b(nn.relu(self.a(x)))


def drawn(tree: Any, seed: int) -> Any:
    """A tree like this one with other numbers."""
    draw = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(draw.integers(0, 9, jnp.shape(leaf)), jnp.asarray(leaf).dtype),
        tree,
    )


def linen_state(tx: Any) -> train_state.TrainState:
    params = LinenModel().init(jax.random.key(0), jnp.ones((1, 2)))["params"]
    state = train_state.TrainState.create(apply_fn=LinenModel().apply, params=params, tx=tx)
    return drawn(state.replace(step=jnp.int32(0)), 1)


def split_state(tx: Any, form: str, **beside: Any) -> Any:
    params = nnx.state(NnxModel(nnx.Rngs(1)), nnx.Param)
    if form == "dataclass":
        state = train_state.TrainState.create(apply_fn=print, params=params, tx=tx)
        return state.replace(step=jnp.int32(0))
    return {"step": jnp.int32(0), "params": params, "opt_state": tx.init(params), **beside}


def as_dicts(state: Any) -> Any:
    """A train state as Flax's state dict has it, with pure dicts for states of Variables."""

    def pure(node: Any) -> Any:
        return nnx.to_pure_dict(node) if isinstance(node, nnx.State) else node

    plain = jax.tree.map(pure, state, is_leaf=lambda node: isinstance(node, nnx.State))
    return serialization.to_state_dict(plain)


def assert_same(found: Any, expected: Any) -> None:
    left, right = as_dicts(found), as_dicts(expected)
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert one.dtype == other.dtype
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", TXS)
def test_what_linen_trained_goes_on_in_a_split_model(name: str, form: str) -> None:
    linen, target = linen_state(TXS[name]), split_state(TXS[name], form)
    lens = cs.adapt(linen, target)
    found = lens.get(linen, onto=target)
    assert jax.tree.structure(found) == jax.tree.structure(target)
    assert_same(found, linen)
    back = lens.put(found, onto=linen)
    assert jax.tree.structure(back) == jax.tree.structure(linen)
    assert_same(back, linen)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_any_save_is_restored_into_any_form(name: str, form: str, tmp_path: Path) -> None:
    tx = TXS[name]
    linen, target = linen_state(tx), split_state(tx, form)
    split = cs.adapt(linen, target).get(linen, onto=target)
    cs.orbax.save(tmp_path / "linen", linen)
    cs.orbax.save(tmp_path / "ours", split)
    ocp.save(tmp_path / "orbax", split)
    for place in ("linen", "ours", "orbax"):
        assert_same(cs.orbax.restore(tmp_path / place, target), linen)
        assert_same(cs.orbax.restore(tmp_path / place, linen), linen)
        model = NnxModel(nnx.Rngs(2))
        run = {"model": model, "optimizer": nnx.Optimizer(model, tx, wrt=nnx.Param)}
        cs.orbax.restore(tmp_path / place, run)
        assert_same(nnx.to_pure_dict(nnx.state(model)), linen.params)
        assert run["optimizer"].step[...] == linen.step


def test_the_next_step_is_the_same_to_the_last_bit() -> None:
    tx = TXS["adamw"]
    linen, target = linen_state(tx), split_state(tx, "dict")
    state = cs.adapt(linen, target).get(linen, onto=target)
    graph, _ = nnx.split(NnxModel(nnx.Rngs(0)))
    x = jnp.linspace(-1.0, 1.0, 10).reshape(5, 2)
    theirs = jax.grad(lambda params: LinenModel().apply({"params": params}, x).sum())(linen.params)
    ours = jax.grad(lambda params: nnx.merge(graph, params)(x).sum())(state["params"])
    expected = linen.apply_gradients(grads=theirs)
    updates, opt_state = tx.update(ours, state["opt_state"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    found = {"step": state["step"] + 1, "params": params, "opt_state": opt_state}
    assert_same(found, expected)


def test_averages_and_statistics_beside_it_have_their_places() -> None:
    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.a = nnx.Linear(2, 3, rngs=rngs)
            self.norm = nnx.BatchNorm(3, rngs=rngs)

    tx = optax.adam(1e-3)
    params = nnx.state(Model(nnx.Rngs(0)), nnx.Param)
    statistics = nnx.state(Model(nnx.Rngs(0)), nnx.BatchStat)
    target = {
        "step": jnp.int32(0),
        "params": params,
        "batch_stats": statistics,
        "ema_params": jax.tree.map(jnp.copy, params),
        "opt_state": tx.init(params),
    }
    plain = as_dicts(target)
    linen = drawn({**plain, "opt_state": tx.init(plain["params"])}, 3)
    found = cs.adapt(linen, target).get(linen, onto=target)
    assert_same(found, linen)


class NormedLinen(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        for name in ("a", "b"):
            x = nn.Dense(3, name=name)(x)
            x = nn.BatchNorm(use_running_average=True, name=f"{name}_norm")(x)
        return x


class NormedNnx(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        for name in ("a", "b"):
            setattr(self, name, nnx.Linear(3, 3, rngs=rngs))
            setattr(self, f"{name}_norm", nnx.BatchNorm(3, rngs=rngs))


def normed(tx: Any) -> tuple[Any, Any]:
    """A train state of Linen with statistics, and one that a program splits, which keeps them beside its params."""
    linen = NormedLinen().init(jax.random.key(0), jnp.ones((1, 3)))
    _, params, rest = nnx.split(NormedNnx(nnx.Rngs(0)), nnx.Param, ...)
    step = jnp.int32(0)
    target = {"step": step, "params": params, "opt_state": tx.init(params), "rest": rest}
    return drawn({**linen, "step": step, "opt_state": tx.init(linen["params"])}, 5), target


STATISTICS = (
    cs.rename("params/**/mean", "rest/**/mean"),
    cs.rename("params/**/var", "rest/**/var"),
)
BACK = tuple([cs.rename("/".join(rule.view), "/".join(rule.source)) for rule in STATISTICS])


def test_the_error_prints_the_renames_of_statistics_beside_split_params(tmp_path: Path) -> None:
    linen, target = normed(optax.adam(1e-3))
    model = NormedNnx(nnx.Rngs(1))
    run = {"model": model, "optimizer": nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)}
    cs.orbax.save(tmp_path / "linen", linen)
    for source, view, rules in (
        (linen, target, STATISTICS),
        (run, target, STATISTICS),
        (target, linen, BACK),
        (target, run, BACK),
        (tmp_path / "linen", target, STATISTICS),
    ):
        with pytest.raises(cs.DerivationError) as caught:
            cs.adapt(source, view)
        assert caught.value.rules == rules
        text = str(caught.value)
        assert all(f"    cs.{rule}," in text.splitlines() for rule in rules)
        assert "no leaf of" not in text
        cs.adapt(source, view, rules=caught.value.rules)
    # Every value is where Linen's statistics say, and goes back.
    lens = cs.adapt(linen, target, rules=STATISTICS)
    found = lens.get(linen, onto=target)
    assert_same(found["rest"], linen["batch_stats"])
    assert_same(found["params"], linen["params"])
    assert_same(lens.put(found, onto=linen), linen)
    assert_same(cs.orbax.restore(tmp_path / "linen", target, rules=STATISTICS), found)


def test_of_two_places_for_statistics_the_error_names_none() -> None:
    linen, target = normed(optax.sgd(0.1))
    target["older"] = jax.tree.map(jnp.copy, target["rest"])
    with pytest.raises(cs.DerivationError) as caught:
        cs.adapt(linen, target)
    assert caught.value.rules == ()
    near = "of its type, which nothing proves: rename('params/a_norm/mean', '"
    assert near in " ".join(str(caught.value).split())


def test_a_single_leaf_of_a_name_has_a_rename_of_its_own() -> None:
    linen, target = normed(optax.sgd(0.1))
    del linen["batch_stats"]["b_norm"]["var"], target["rest"]["b_norm"]["var"]
    with pytest.raises(cs.DerivationError) as caught:
        cs.adapt(linen, target)
    var = cs.rename("params/a_norm/var", "rest/a_norm/var")
    assert set(caught.value.rules) == {STATISTICS[0], var}
    cs.adapt(linen, target, rules=caught.value.rules)


def test_a_target_may_be_abstract_and_sharded(tmp_path: Path) -> None:
    tx = optax.adam(1e-3)
    linen, target = linen_state(tx), split_state(tx, "dict")
    cs.orbax.save(tmp_path / "linen", linen)
    sharding = NamedSharding(jax.make_mesh((8,), ("x",)), PartitionSpec())
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), target
    )
    found = cs.orbax.restore(tmp_path / "linen", abstract)
    assert_same(found, linen)
    assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(found))


def test_states_without_an_optimizer_stay_states_of_variables() -> None:
    params = nnx.state(NnxModel(nnx.Rngs(0)))
    layout = cs.infer({"params": params})
    assert {row.kind for row in layout.rows} == {nnx.Param}
