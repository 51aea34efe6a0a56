"""Where on disk a state stands: under a key, in one item of several, in several items at once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp0
import pytest
from flax import nnx
from jaxtyping import Array, Float32
from orbax.checkpoint import v1 as ocp

import ckpt_schema as cs

TX = optax.adam(1e-2)
ITEMS = {"params": "model_params", "opt_state": "optimizer_state"}


class Dense(cs.Schema):
    kernel: Float32[Array, "i o"]


class Body(cs.Schema):
    dense: Dense
    drop: cs.Stream["fry"] = cs.field(key="drop/rngs", default=cs.fresh_key(0), tag="default", collection="rngs")  # fmt: skip


class Model(nnx.Module):
    """A layer and a stream."""

    def __init__(self, seed: int = 0) -> None:
        self.dense = nnx.Linear(2, 3, use_bias=False, rngs=nnx.Rngs(seed))
        self.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(seed))


class Training(nnx.Module):
    """A model with its optimizer."""

    def __init__(self, seed: int = 1) -> None:
        self.model = Model(seed)
        self.optimizer = nnx.Optimizer(self.model, TX, wrt=nnx.Param)


class Weights(cs.Schema):
    dense: Dense


BARE = cs.linen.BareTrainState[Weights, TX]
NNX = cs.nnx.TrainState[Body, TX]
LENS = cs.derive(BARE, NNX)
ALONE = cs.derive(cs.linen.BareParams[Weights], cs.nnx.Params[Weights])
KERNEL = np.arange(6, dtype=np.float32).reshape(2, 3)


def state() -> dict[str, Any]:
    params = {"dense": {"kernel": jnp.asarray(KERNEL)}}
    return {"step": jnp.int32(7), "params": params, "opt_state": TX.init(params)}


def verify(found: Any) -> None:
    """That it is the state that was saved."""
    np.testing.assert_array_equal(np.asarray(found.model.dense.kernel[...]), KERNEL)
    assert int(found.optimizer.step[...]) == 7


def refused(do: Callable[[], Any]) -> str:
    with pytest.raises(cs.CkptSchemaError) as caught:
        do()
    return str(caught.value)


def test_reach_03b_06_a_state_under_a_key_with_siblings(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = {"model": state(), "config": {"d": np.array([5, 3])}, "data": [jnp.ones(3)]}
    ocp.save(tmp_path / "c", whole)
    with caplog.at_level(logging.INFO, "ckpt_schema"):
        verify(cs.orbax.restore(tmp_path / "c", Training(), LENS, at="model"))
    (said,) = [r.getMessage() for r in caplog.records if r.name == "ckpt_schema"]
    assert "what stands beside model is not read: config, data" in said
    for at in (None, "modle"):
        told = refused(lambda at=at: cs.orbax.restore(tmp_path / "c", Training(), LENS, at=at))
        assert "pass at='model'" in told


def test_reach_06_the_root_is_a_tuple(tmp_path: Path) -> None:
    ocp0.PyTreeCheckpointer().save(tmp_path / "c", ({"mean": jnp.zeros(2)}, state()))
    verify(cs.orbax.restore(tmp_path / "c", Training(), LENS, at="1"))
    told = refused(lambda: cs.orbax.restore(tmp_path / "c", Training(), LENS))
    assert "pass at='1'" in told


def test_one_state_from_several_items_and_saved_so(tmp_path: Path) -> None:
    parts = state()
    named = {name: parts.pop(key) for key, name in ITEMS.items()}
    ocp.save_checkpointables(tmp_path / "c", {**named, "state": parts})
    found = cs.orbax.restore(tmp_path / "c", Training(), LENS, items=ITEMS)
    verify(found)
    told = refused(lambda: cs.orbax.restore(tmp_path / "c", Training(), LENS))
    assert f"pass items={ITEMS!r}" in told
    cs.orbax.save(tmp_path / "d", found, LENS, items=ITEMS)
    names = {path.name for path in (tmp_path / "d").iterdir() if path.is_dir()}
    assert {"model_params", "optimizer_state", "state", "nnx_aux"} <= names
    target = Training(5)
    again: Any = cs.orbax.restore(tmp_path / "d", target, LENS, items=ITEMS)
    cs.assert_trees_identical(nnx.state(again), nnx.state(found))


def test_items_that_are_not_there_are_all_named(tmp_path: Path) -> None:
    ocp.save_checkpointables(tmp_path / "c", {"model_params": state()["params"]})
    wrong = {"params": "model_param", "opt_state": "optimizer"}
    told = refused(lambda: cs.orbax.restore(tmp_path / "c", Training(), LENS, items=wrong))
    assert "lacks items: 2 faults" in told
    assert "model_param " in told
    assert "optimizer " in told
    told = refused(lambda: cs.orbax.save(tmp_path / "d", Training(), LENS, items={"parms": "x"}))
    assert "a key of the state (opt_state, params, step)" in told
    for at, items in ((3, None), (None, {"params": 3}), ("", {})):
        said = refused(
            lambda at=at, items=items: cs.orbax.restore(
                tmp_path / "c", Training(), LENS, at=at, items=items
            )
        )
        assert "wrong arguments" in said


def test_3_7_of_several_items_the_one_that_fits_is_found(tmp_path: Path) -> None:
    params = state()["params"]
    for number, other in enumerate(("state", "train_state")):
        items = {"params": params, other: {"x": jnp.ones(3)}}
        ocp.save_checkpointables(tmp_path / str(number), items)
        found = cs.orbax.restore(tmp_path / str(number), Model(4), ALONE)
        np.testing.assert_array_equal(np.asarray(found.dense.kernel[...]), KERNEL)
    ocp.save_checkpointables(tmp_path / "two", {"params": params, "ema": params})
    told = refused(lambda: cs.orbax.restore(tmp_path / "two", Model(4), ALONE))
    assert "what fits in each of ema, params" in told
    assert "item='ema'" in told
    ocp.save_checkpointables(
        tmp_path / "no", {"a": {"x": jnp.ones(3)}, "state": {"x": jnp.ones(2)}}
    )
    told = refused(lambda: cs.orbax.restore(tmp_path / "no", Model(4), ALONE))
    assert "no other item fits: a" in told


def test_3_7_the_item_that_fits_is_found_where_nothing_is_declared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    params, other = state()["params"], {"x": jnp.ones(2)}
    ocp.save_checkpointables(tmp_path / "c", {"params": params, "state": other, "also": other})
    with caplog.at_level(logging.INFO, "ckpt_schema"):
        found = cs.orbax.restore(tmp_path / "c", Model(4))
    np.testing.assert_array_equal(np.asarray(found.dense.kernel[...]), KERNEL)
    assert "item 'params' fits" in caplog.text
    ocp.save_checkpointables(tmp_path / "one", {"params": params, "also": other})
    kernel = cs.adapt(tmp_path / "one", Model(4)).get(params)["dense"]["kernel"]
    np.testing.assert_array_equal(np.asarray(kernel.get_value()), KERNEL)
    ocp.save_checkpointables(tmp_path / "two", {"params": params, "ema": params})
    told = refused(lambda: cs.orbax.restore(tmp_path / "two", Model(4)))
    assert "what fits in each of ema, params" in told
    assert "item='ema'" in told
    ocp.save_checkpointables(tmp_path / "no", {"a": other, "b": other, "state": other})
    told = refused(lambda: cs.orbax.restore(tmp_path / "no", Model(4)))
    assert "it holds state, a, b: item= says which is meant" in told


def test_a_state_in_several_items_is_named_where_nothing_is_declared(tmp_path: Path) -> None:
    parts = state()
    step = {"step": parts.pop("step")}
    ocp.save_checkpointables(tmp_path / "c", {**parts, "state": step})
    told = refused(lambda: cs.orbax.restore(tmp_path / "c", Training()))
    items = {"opt_state": "opt_state", "params": "params"}
    assert f"pass items={items}" in told
    ocp.save_checkpointables(tmp_path / "d", {"a": state()["params"], "b": step})
    both = cs.infer(tmp_path / "d")  # where none is named, it reads all
    assert {row.key[0] for row in both.rows} == {"a", "b"}
    assert [row.path for row in cs.infer(tmp_path / "d", item="b").rows][-1][-1] == "step"
    verify(cs.orbax.restore(tmp_path / "c", Training(), items=items))


def test_reach_18_bare_weights_are_found_in_a_variables_dict(tmp_path: Path) -> None:
    whole = {"params": state()["params"]}
    ocp.save(tmp_path / "c", {"step": 3, "params": whole, "opt_state": TX.init(whole)})
    found = cs.orbax.restore(tmp_path / "c", Model(4), ALONE)
    np.testing.assert_array_equal(np.asarray(found.dense.kernel[...]), KERNEL)


def test_an_item_has_the_name_that_is_said_and_a_state_the_place(tmp_path: Path) -> None:
    training = cs.orbax.restore(_saved(tmp_path / "a"), Training(), LENS)
    cs.orbax.save(tmp_path / "c", training, LENS, item="run", at="train/state")
    assert (tmp_path / "c" / "run").is_dir()
    verify(cs.orbax.restore(tmp_path / "c", Training(), LENS, at="train/state"))
    verify(cs.orbax.restore(tmp_path / "c", Training(), LENS, item="run", at="train/state"))
    items = cs.orbax.items_of(training, LENS, items=ITEMS, item="rest")
    assert set(items) == {"model_params", "optimizer_state", "rest", "nnx_aux"}
    told = refused(lambda: cs.orbax.save(tmp_path / "d", training, LENS, item="nnx_aux"))
    assert "a name of its own for the private leaves" in told


@pytest.mark.parametrize("inside", [False, True])
def test_3_5_private_leaves_inside_the_item_or_beside_it(tmp_path: Path, inside: bool) -> None:
    training = Training(8)
    items = cs.orbax.items_of(training, LENS, at="run")
    if inside:
        items["state"]["run"]["nnx_aux"] = items.pop("nnx_aux")
    ocp.save_checkpointables(tmp_path / "c", items)
    target = Training(9)
    found = cs.orbax.restore(tmp_path / "c", target, LENS, at="run")
    cs.assert_trees_identical(nnx.state(found), nnx.state(training))


@pytest.mark.parametrize("inside", [False, True])
def test_3_5_private_leaves_that_the_target_has_no_place_for(tmp_path: Path, inside: bool) -> None:
    """Maxtext's `nnx_aux`, and a run that has no streams: left unread, and named."""
    plain = {"step": jnp.int32(7), "params": {"w": jnp.asarray(KERNEL)}}
    aside = {"model": {"count": jnp.uint32(5)}}
    if inside:
        ocp.save(tmp_path / "c", {**plain, "nnx_aux": aside})
    else:
        ocp.save_checkpointables(tmp_path / "c", {"state": plain, "nnx_aux": aside})
    renamed = {"step": jnp.int32(0), "params": {"v": jnp.zeros((2, 3))}}
    old, new = cs.infer(plain), cs.infer(renamed)
    same = cs.derive(old, cs.infer(plain))
    lens = cs.derive(old, new, rules=[cs.rename("w", "v")])
    wanted = {**renamed, "step": plain["step"], "params": {"v": plain["params"]["w"]}}
    with pytest.warns(UserWarning, match=r"beside its state \(nnx_aux\), which are not read"):
        cs.assert_trees_identical(cs.orbax.restore(tmp_path / "c", renamed, lens), wanted)
    with pytest.warns(UserWarning, match=r"beside its state \(nnx_aux\), which are not read"):
        cs.assert_trees_identical(cs.orbax.restore(tmp_path / "c", plain, same), plain)
    cs.assert_trees_identical(cs.orbax.restore(tmp_path / "c", renamed, lens, aux=None), wanted)
    found = cs.orbax.restore(tmp_path / "c", renamed, rules=[cs.rename("w", "v")])
    cs.assert_trees_identical(found, wanted)


def _saved(path: Path) -> Path:
    ocp.save(path, state())
    return path
