"""A checkpoint of the very tree that a target is: Orbax loads it, and nothing is planned, edited or compiled."""

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
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float32, Int32
from orbax.checkpoint import v1 as ocp

import ckpt_schema as cs
from ckpt_schema.orbax import _restore as restores

same = cs.assert_trees_identical


class Old(cs.Schema):
    w: Float32[Array, "a b"]
    layers: list[Float32[Array, " n"]] = cs.field(length="depth")
    step: Int32[Array, ""]


class New(cs.Schema):
    w: Float32[Array, "b a"] = cs.field(key="dense/kernel")
    layers: list[Float32[Array, " n"]] = cs.field(length="depth", key="blocks/{i}")
    step: Int32[Array, ""]


LENS = cs.derive(Old, New)


def old() -> dict[str, Any]:
    """Twelve layers: their numbers as strings are in another order."""
    layers = [jnp.full(3, i, "float32") for i in range(12)]
    return {"w": jnp.arange(6.0).reshape(2, 3), "layers": layers, "step": 7}


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any restore that would translate fails."""
    monkeypatch.setattr(restores, "prepared", None)


def empty(tree: Any, *, sharding: Any = None) -> Any:
    def like(leaf: Any) -> Any:
        if not hasattr(leaf, "shape"):
            return type(leaf)()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(like, tree)


@pytest.mark.parametrize("lens", [None, LENS, ~LENS, cs.derive(Old, Old)])
def test_a_tree_of_either_side(tmp_path: Path, lens: Any, alone: None) -> None:
    ocp.save(tmp_path / "0", old())
    same(cs.orbax.restore(tmp_path / "0", empty(old()), lens), old())


def test_it_goes_where_the_target_is(tmp_path: Path, alone: None) -> None:
    saved = {"key": jax.random.key(3, impl="rbg"), "w": jnp.ones((4, 2))}
    ocp.save(tmp_path / "0", saved)
    spread = NamedSharding(jax.make_mesh((2,), ("x",)), PartitionSpec("x"))
    placed = {"w": jax.ShapeDtypeStruct((4, 2), "float32", sharding=spread)}
    target = {**placed, "key": jax.eval_shape(lambda: jax.random.key(0, impl="rbg"))}
    found = cs.orbax.restore(tmp_path / "0", target)
    assert found["w"].sharding == spread and found["key"].sharding.mesh == spread.mesh
    words = [np.asarray(jax.random.key_data(key)) for key in (found["key"], saved["key"])]
    assert words[0].tolist() == words[1].tolist()


def test_train_states_and_modules(tmp_path: Path, alone: None) -> None:
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))
    state = TrainState.create(apply_fn=None, params={"w": jnp.ones(3)}, tx=tx).replace(step=5)
    ocp.save(tmp_path / "linen", state)
    target = jax.tree.map(lambda x: x * 0, state)
    found = cs.orbax.restore(tmp_path / "linen", target)
    same(found, state)
    assert type(found.step) is int
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(1))
    ocp.save(tmp_path / "nnx", nnx.state(model))
    other = nnx.Linear(2, 3, rngs=nnx.Rngs(2))
    assert cs.orbax.restore(tmp_path / "nnx", other) is other
    same(nnx.state(other), nnx.state(model))


class Turned(cs.Schema):
    w: Float32[Array, "b a"]


class Straight(cs.Schema):
    w: Float32[Array, "a b"]


def test_what_could_be_of_either_side_is_still_asked_about(tmp_path: Path) -> None:
    lens = cs.derive(Straight, Turned)
    ocp.save(tmp_path / "0", {"w": jnp.arange(4.0).reshape(2, 2)})
    with pytest.raises(cs.ConformanceError, match="target_side"):
        cs.orbax.restore(tmp_path / "0", {"w": jnp.zeros((2, 2))}, lens)


@pytest.mark.parametrize(
    "change",
    [
        {"w": jax.ShapeDtypeStruct((3, 2), "float32")},
        {"w": jax.ShapeDtypeStruct((2, 3), "bfloat16")},
        {"layers": [jax.ShapeDtypeStruct((3,), "float32")] * 11},
        {"more": jax.ShapeDtypeStruct((3,), "float32")},
    ],
)
def test_another_tree_is_not_taken_for_the_same(
    tmp_path: Path, change: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Asked(Exception):  # noqa: N818  no error, a sign
        pass

    def prepared(*_: Any, **__: Any) -> Any:
        raise Asked

    ocp.save(tmp_path / "0", old())
    monkeypatch.setattr(restores, "prepared", prepared)
    for lens in (None, LENS):
        with pytest.raises(Asked):
            cs.orbax.restore(tmp_path / "0", {**empty(old()), **change}, lens)


def test_numbers_are_those_that_were_saved(tmp_path: Path) -> None:
    for number in (2**40, -1, 0.1):
        place = tmp_path / str(number)
        ocp.save(place, {"n": number, "w": np.ones(2, "float32")})
        found = cs.orbax.restore(place, {"n": type(number)(), "w": jnp.zeros(2)})
        assert found["n"] == number and type(found["n"]) is type(number)
    ocp.save(tmp_path / "wide", {**old(), "step": 2**40})
    with pytest.raises(cs.CheckpointMismatchError, match="step"):
        cs.orbax.restore(tmp_path / "wide", empty(old()), LENS)


def test_private_leaves_beside_it_are_not_passed_over_in_silence(tmp_path: Path) -> None:
    beside = {"rngs": {"count": jnp.uint32(1)}}
    ocp.save_checkpointables(tmp_path / "0", {"state": old(), "nnx_aux": beside})
    with pytest.warns(UserWarning, match="which are not read"):
        cs.orbax.restore(tmp_path / "0", empty(old()), LENS)
