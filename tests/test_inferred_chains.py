"""``infer(tree, tx=tx)``: the chain of a state that has lost its classes, told by the transformation that made it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from flax_models import on_disk

import ckpt_schema as cs

SCHEDULE = optax.linear_schedule(1e-3, 0.0, 10)
GROWN = optax.chain(
    optax.clip_by_global_norm(1.0), optax.trace(0.9), optax.adam(SCHEDULE), optax.trace(0.5)
)


def _wide(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


CHAINS: dict[str, optax.GradientTransformation] = {
    "sgd": optax.sgd(0.1),
    "adam": optax.adam(SCHEDULE),
    "bfloat16": optax.adamw(1e-3, mu_dtype=jnp.bfloat16),
    "grown": GROWN,
    "adafactor": optax.adafactor(1e-3),
    "masked": optax.masked(optax.adam(1e-3), _wide),
    "several": optax.MultiSteps(optax.adam(1e-3), 2),
    "inject": optax.inject_hyperparams(optax.adam)(1e-3),
    "partition": optax.partition(
        {"a": optax.adam(1e-3), "b": optax.sgd(0.1, momentum=0.9)},
        lambda params: jax.tree.map(lambda wide: "ab"[wide], _wide(params)),
    ),
}


def _linen(tx: optax.GradientTransformation, *, bare: bool) -> TrainState:
    block = {"kernel": jnp.ones((4, 6)), "bias": jnp.zeros(6)}
    weights = {"layers_0": block, "layers_1": block, "norm": {"scale": jnp.ones(6)}}
    params = weights if bare else {"params": weights}
    return TrainState.create(apply_fn=None, params=params, tx=tx)


def _containers(layout: cs.Layout) -> set[tuple[Any, type]]:
    return {(key, node.type) for node in layout.nodes for key in node.keys({})}


@pytest.mark.parametrize("bare", [True, False], ids=["bare", "variables"])
@pytest.mark.parametrize("chain", CHAINS)
def test_a_saved_state_has_the_parts_that_its_transformation_has(chain: str, bare: bool) -> None:
    tx = CHAINS[chain]
    state = _linen(tx, bare=bare)
    lists = ["layers_{i}"]
    whole, saved = cs.infer(state, lists=lists), on_disk(state)
    told = cs.infer(saved, lists=lists, tx=tx)
    assert cs.infer(saved, lists=lists).parts == () or chain in ("masked", "partition")
    assert told.parts == whole.parts
    assert {(row.path, row.key, row.stored, row.repeats, row.mirrors) for row in told.rows} == {
        (row.path, row.key, row.stored, row.repeats, row.mirrors) for row in whole.rows
    }
    assert _containers(told) == _containers(whole)
    # What is made of it is the state itself, with optax's own classes.
    made = cs.derive(told, told).get(saved)
    for field in ("params", "opt_state"):
        cs.assert_trees_identical(made[field], getattr(state, field))


class Model(nnx.Module):
    """Two layers, and what no optimizer trains: a stream and statistics."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Makes them."""
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(2)])
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)


class Training(nnx.Module):
    """A model and its optimizer, each leaf another."""

    def __init__(self, tx: optax.GradientTransformation, seed: int) -> None:
        """Makes both."""
        self.model = Model(nnx.Rngs(seed))
        self.optimizer = nnx.Optimizer(self.model, tx, wrt=nnx.Param)
        flat, treedef = jax.tree.flatten(nnx.state(self, nnx.Not(nnx.RngKey)))
        filled = [np.full(leaf.shape, seed + at, leaf.dtype) for at, leaf in enumerate(flat)]
        nnx.update(self, treedef.unflatten(filled))


def _numbers(tree: Any) -> list[np.ndarray[Any, Any]]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(tree, nnx.Not(nnx.RngKey)))]


@pytest.mark.parametrize("join", [cs.derive, cs.adapt])
def test_a_chain_that_has_grown_aligns(tmp_path: Path, join: Callable[..., cs.Lens]) -> None:
    old, new = Training(optax.adam(SCHEDULE), 1), Training(GROWN, 2)
    cs.orbax.save(tmp_path / "run", old)
    # Nobody who has the trees alone can tell the first trace from the second.
    with pytest.raises(cs.DerivationError, match="infer"):
        cs.derive(cs.infer(tmp_path / "run"), cs.infer(new))
    before = cs.infer(tmp_path / "run", tx=optax.adam(SCHEDULE))
    after = cs.infer(new, tx=GROWN)
    with pytest.raises(cs.DerivationError) as caught:
        join(before, after)
    resets = [cs.reset(view="opt_state/1"), cs.reset(view="opt_state/3")]
    assert list(caught.value.rules) == resets
    wanted_model, wanted = _numbers(old.model), nnx.to_pure_dict(nnx.state(old.optimizer))
    found = cs.orbax.restore(tmp_path / "run", new, join(before, after, rules=resets))
    for one, other in zip(_numbers(found.model), wanted_model, strict=True):
        np.testing.assert_array_equal(one, other)
    chain = nnx.to_pure_dict(nnx.state(found.optimizer))["opt_state"]
    same = jax.tree.map(np.array_equal, chain[2], wanted["opt_state"])
    assert all(jax.tree.leaves(same))
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves((chain[1], chain[3])))


def test_what_alone_is_trained_is_what_the_state_keeps_something_for() -> None:
    class Adapted(nnx.Module):
        def __init__(self) -> None:
            self.base = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
            self.lora = nnx.LoRA(4, 2, 4, rngs=nnx.Rngs(1))

    model, tx = Adapted(), optax.adam(1e-3)
    state = nnx.state(nnx.Dict(model=model, optimizer=nnx.Optimizer(model, tx, wrt=nnx.LoRAParam)))
    for tree in (state, on_disk(state)):
        layout = cs.infer(tree, tx=tx)
        assert [part.type.__name__ for part in layout.parts] == [
            "ScaleByAdamState",
            "EmptyState",
        ]
        assert {row.mirrors for row in layout.rows if row.optimizer} == {
            "",
            "params/lora/lora_a",
            "params/lora/lora_b",
        }
        assert {(row.path, row.key) for row in layout.rows} == {
            (row.path, row.key) for row in cs.infer(tree).rows
        }
        assert cs.check(layout, state).ok


def test_statistics_in_the_tree_that_was_optimized_are_part_of_it() -> None:
    """A ``TrainState`` that was made of a whole variables dict keeps moments of statistics too."""
    variables = {"params": {"kernel": jnp.ones((2, 3))}, "batch_stats": {"mean": jnp.zeros(3)}}
    tx = optax.adam(1e-3)
    state = TrainState.create(apply_fn=None, params=variables, tx=tx)
    layout = cs.infer(on_disk(state), tx=tx)
    assert layout.parts == cs.infer(state).parts
    cs.assert_trees_identical(
        cs.derive(layout, layout).get(on_disk(state))["opt_state"], state.opt_state
    )


@pytest.mark.parametrize(
    ("tree", "tx", "says"),
    [
        (on_disk(_linen(CHAINS["adam"], bare=True)), GROWN, "is not one that tx= makes"),
        (on_disk(_linen(GROWN, bare=True)), CHAINS["adam"], "expected nothing, found trace"),
        (
            on_disk(_linen(optax.adam(1e-3), bare=True)),
            optax.adam(1e-3, mu_dtype=jnp.bfloat16),
            "expected bfloat16",
        ),
        ({"params": {"kernel": jnp.ones(3)}}, optax.adam(1e-3), "no optimizer state that infer"),
        (on_disk(_linen(CHAINS["adam"], bare=True)), "adam", "expected an optax transformation"),
    ],
    ids=["shorter", "longer", "dtype", "none", "no transformation"],
)
def test_another_transformation_is_an_error(tree: Any, tx: Any, says: str) -> None:
    with pytest.raises(cs.SchemaError, match=says):
        cs.infer(tree, tx=tx)
