"""What `adapt` says where names and shapes do not settle it: each line, followed, makes the lens that is right."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import ckpt_schema as cs


class One(nnx.Module):
    def __init__(self) -> None:
        self.c = nnx.Linear(3, 4, rngs=nnx.Rngs(0))


class Run(nnx.Module):
    def __init__(self, tx: optax.GradientTransformation) -> None:
        self.model = One()
        self.optimizer = nnx.Optimizer(self.model, tx, wrt=nnx.Param)


def linen_run(tx: optax.GradientTransformation) -> Any:
    params = {"Dense_0": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}}
    return TrainState.create(apply_fn=lambda: None, params=params, tx=tx)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        (("params/Dense_0", "c"), ("Dense_0", "c")),
        (("Dense_0", "params/c"), ("Dense_0", "c")),
    ],
)
def test_one_path_from_the_root_and_one_in_the_model_are_told(
    wrong: tuple[str, str], right: tuple[str, str]
) -> None:
    tx = optax.adam(1e-3)
    source, view = linen_run(tx), Run(tx)
    with pytest.raises(cs.DerivationError) as raised:
        cs.adapt(source, view, rules=[cs.rename(*wrong)])
    [fault] = raised.value.mismatches  # that its leaves lack a partner follows from it
    assert fault.path == str(cs.rename(*wrong))
    assert fault.hint.endswith(
        f"both are paths in the model; write {cs.rename(*right)} in its place"
    )
    made = cs.adapt(source, view, rules=[cs.rename(*right)]).get(source, onto=nnx.state(view))
    assert np.array_equal(made["model"]["c"]["kernel"][...], source.params["Dense_0"]["kernel"])


def test_a_key_path_in_a_rule_is_told_with_the_path_in_the_model() -> None:
    tx = optax.adam(1e-3)
    with pytest.raises(cs.DerivationError) as raised:
        cs.adapt(linen_run(tx), Run(tx), rules=[cs.rename("Dense_0", "model/c")])
    hints: dict[str, Any] = {fault.path: fault.hint for fault in raised.value.mismatches}
    said = hints[str(cs.rename("Dense_0", "model/c"))]
    assert said == "that is where Run stores it; rules say its path in the model, c"
