"""Collections that no checkpoint keeps: caches, intermediates, perturbations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState
from jaxtyping import Array, Float32, Int32
from orbax.checkpoint import v1 as ocp
from support.models import TX

import ckpt_schema as cs
from ckpt_schema.orbax._metadata import read_metadata


class LinenNet(nn.Module):
    """A dense layer with a running cache, and a perturbation of its result."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Counts its calls, and keeps the last input."""
        index = self.variable("cache", "index", lambda: jnp.int32(0))
        last = self.variable("cache", "last", jnp.zeros, x.shape)
        index.value, last.value = index.value + 1, x
        return self.perturb("dense_out", nn.Dense(3, name="dense")(x))


class NnxNet(nnx.Module):
    """The same."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Makes the parts."""
        self.dense = nnx.Linear(2, 3, rngs=rngs)
        self.index = nnx.Cache(jnp.int32(0))
        self.last = nnx.Cache(jnp.zeros((1, 2)))
        self.dense_out = nnx.Perturbation(jnp.zeros((1, 3)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Counts its calls, and keeps the last input."""
        self.index.set_value(self.index.get_value() + 1)
        self.last.set_value(x)
        return self.dense(x) + self.dense_out.get_value()


class Dense(cs.Schema):
    kernel: Float32[Array, "inputs outputs"]
    bias: Float32[Array, " outputs"]


class Net(cs.Schema):
    dense: Dense
    index: Int32[Array, ""] = cs.field(
        collection="cache", type=nnx.Cache, ephemeral=True, default=0
    )
    last: Float32[Array, "batch inputs"] = cs.field(
        collection="cache", type="Cache", ephemeral=True
    )
    dense_out: Float32[Array, "batch outputs"] = cs.field(
        collection="perturbations", type=nnx.Perturbation, ephemeral=True
    )


LENS = cs.derive(cs.linen.TrainState[Net, TX], cs.nnx.TrainState[Net, TX])
INPUT = jnp.ones((1, 2))


class Stateful(TrainState):
    """A train state that keeps its other collections too."""

    cache: Any = None
    perturbations: Any = None


def linen_state() -> TrainState:
    variables = LinenNet().init(jax.random.key(0), INPUT)
    params = {"params": variables.pop("params")}
    return Stateful.create(apply_fn=LinenNet().apply, params=params, tx=TX, **variables)


class Training(nnx.Module):
    """A model and its optimizer."""

    def __init__(self) -> None:
        """Makes both; the model has been called twice."""
        self.model = NnxNet(nnx.Rngs(0))
        self.optimizer = nnx.Optimizer(self.model, TX, wrt=nnx.Param)
        for _ in range(2):
            self.model(INPUT)


def keys(path: Path) -> set[str]:
    tree = read_metadata(path).tree
    return {
        jax.tree_util.keystr(key, simple=True, separator="/")
        for key, _ in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def test_in_memory_they_are_leaves_like_others() -> None:
    state = nnx.state(Training())
    through = LENS.put(state)
    assert int(through["cache"]["index"]) == 2
    assert through["perturbations"]["dense_out"].shape == (1, 3)
    cs.assert_trees_identical(LENS.get(through, onto=state), state)
    assert cs.check(LENS.source, linen_state()) == []


def test_no_checkpoint_keeps_them_whichever_side_is_saved(tmp_path: Path) -> None:
    linen, training = linen_state(), Training()
    for at, (state, lens) in enumerate(
        ((linen, LENS), (training, LENS), (training, ~LENS), (linen, ~LENS))
    ):
        cs.orbax.save(tmp_path / str(at), state, lens)
        found = keys(tmp_path / str(at))
        assert not any("cache" in key or "last" in key or "dense_out" in key for key in found)
        assert any(
            key.endswith("dense/kernel") or key.endswith("dense/kernel/value") for key in found
        )
        assert not (tmp_path / str(at) / "nnx_aux").exists()


@pytest.mark.parametrize("lens", [LENS, ~LENS], ids=["saved as Linen", "saved as NNX"])
def test_a_restore_leaves_those_of_the_target(tmp_path: Path, lens: cs.Lens) -> None:
    saved, target = Training(), Training()
    cs.orbax.save(tmp_path / "0", saved, lens)
    target.model.index.set_value(jnp.int32(7))
    target.model.last.set_value(jnp.full((1, 2), 5.0))
    restored = cs.orbax.restore(tmp_path / "0", target, lens)
    assert int(restored.model.index.get_value()) == 7
    assert float(restored.model.last.get_value()[0, 0]) == 5.0
    cs.assert_trees_identical(
        nnx.state(restored.model, nnx.Param), nnx.state(saved.model, nnx.Param)
    )


def test_what_neither_target_nor_default_fills_is_named(tmp_path: Path) -> None:
    cs.orbax.save(tmp_path / "0", linen_state(), LENS)
    abstract = nnx.state(nnx.eval_shape(Training))
    with pytest.raises(cs.CheckpointMismatchError) as caught:
        cs.orbax.restore(tmp_path / "0", abstract, LENS)
    assert [fault.path for fault in caught.value.mismatches] == ["model/dense_out", "model/last"]
    del abstract["model"]["dense_out"], abstract["model"]["last"]
    restored = cs.orbax.restore(tmp_path / "0", abstract, LENS)
    assert int(restored["model"]["index"].get_value()) == 0


def test_an_old_checkpoint_that_has_them_is_read(tmp_path: Path) -> None:
    linen = linen_state().replace(step=3, cache={"index": jnp.int32(9), "last": INPUT * 3})
    ocp.save(tmp_path / "0", linen)
    restored = cs.orbax.restore(tmp_path / "0", Training(), LENS)
    assert int(restored.model.index.get_value()) == 9
    assert float(restored.model.last.get_value()[0, 0]) == 3.0


def test_the_table_says_so() -> None:
    # A line that is folded goes on below.
    table = " ".join(str(LENS.view).split())
    assert "params/last model/last float32[batch inputs] Cache, ephemeral" in table
    assert "params/index model/index int32[] Cache, default 0, ephemeral" in table
