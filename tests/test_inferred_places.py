"""``infer`` of lists outside of the model, of modules of Linen with inputs, and of checkpoints of several items."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from orbax.checkpoint import v1 as ocp

import ckpt_schema as cs
from ckpt_schema._json.json_text import lock_text

TX = optax.adam(1e-3)


def leaf(number: int, *shape: int) -> Any:
    """An array that no other is equal to."""
    return jnp.asarray(np.arange(number, number + np.prod(shape), dtype="float32").reshape(shape))


# --- lists outside of the model  ---


def _state(*, counted: bool) -> dict[str, Any]:
    """A train state with lists beside its model: of siblings with numbers in their names, or below one node."""

    def several(stem: str, members: list[Any]) -> dict[Any, Any]:
        if counted:
            return {stem: dict(enumerate(members))}
        return {f"{stem}_{n}": member for n, member in enumerate(members)}

    params = several("layers", [{"w": leaf(10 * n, 2, 3)} for n in range(2)])
    slow = several("layers", [{"w": leaf(100 + 10 * n, 2, 3)} for n in range(2)])
    extra = several(
        "b", [{"x": leaf(200 + n, 3), **several("c", [leaf(n, 1)] * 2)} for n in (0, 7)]
    )
    return {
        "step": jnp.int32(3),
        "params": params,
        "opt_state": TX.init(params),
        # Half as many digits: no copy of the weights, so that nothing else says that it is a list.
        "slow": {"inner": jax.tree.map(lambda x: x.astype("bfloat16"), slow)},
        "extra": extra,
    }


NAMED = ["layers_{i}", "slow/inner/layers_{i}", "extra/b_{i}", "extra/b_{i}/c_{j}"]
COUNTED = ["slow/inner/layers/{i}", "extra/b/{i}", "extra/b/{i}/c/{j}"]


def test_a_list_outside_of_the_model_is_read_as_one() -> None:
    named, counted = _state(counted=False), _state(counted=True)
    left, right = cs.infer(named, lists=NAMED), cs.infer(counted, lists=COUNTED)
    paths = ["/".join(row.path) for row in left.rows]
    assert paths == ["/".join(row.path) for row in right.rows]
    assert {"slow/inner/layers[]/w", "extra/b[]/x", "extra/b[]/c[]"} <= {*paths}
    assert cs.check(left, named).ok and cs.check(right, counted).ok
    lens = cs.derive(left, right)
    cs.assert_trees_identical(lens.get(named), counted)
    cs.assert_trees_identical(lens.put(counted), named)
    both = cs.adapt(named, counted, lists=[*NAMED, *COUNTED])
    cs.assert_trees_identical(both.get(named), counted)


def test_a_record_of_two_models_has_lists_in_both() -> None:
    def model(number: int) -> dict[str, Any]:
        return {f"l_{n}": {"w": leaf(number + n, 2)} for n in range(3)}

    both = {"generator": model(0), "critic": model(10)}
    layout = cs.infer(both, lists=["generator/l_{i}", "critic/l_{i}"])
    assert [row.path for row in layout.rows] == [
        ("params", "critic", "l[]", "w"),
        ("params", "generator", "l[]", "w"),
    ]
    cs.assert_trees_identical(cs.derive(layout, layout).get(both), both)


def test_numbers_outside_of_the_model_are_no_list_unless_it_is_said() -> None:
    state = {**_state(counted=False), "pair": {0: leaf(0, 2), 1: leaf(5, 2)}}
    layout = cs.infer(state, lists=["layers_{i}"])
    assert ("pair", "0") in [row.path for row in layout.rows]


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("extra/d_{i}", "no such node"),
        ("ragged/r_{i}", "members that differ"),
        ("opt_state/{i}", "no such node"),
    ],
)
def test_a_list_outside_of_the_model_that_is_none_is_named(pattern: str, says: str) -> None:
    ragged = {"r_0": {"x": leaf(0, 2)}, "r_1": {"x": leaf(0, 3)}}
    with pytest.raises(cs.SchemaError, match=says):
        cs.infer({**_state(counted=False), "ragged": ragged}, lists=[pattern])


# --- modules of Linen  ---


class Net(nn.Module):
    """A layer, whose kernel has as many rows as the input has columns."""

    width: int = 4

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """The output; what is asked of ``train`` cannot be traced."""
        x = nn.Dropout(0.1, deterministic=not train)(nn.Dense(self.width)(x))
        if train:
            x = nn.Dense(self.width, name="in_training")(x)
        return nn.BatchNorm(use_running_average=not train)(x)


@pytest.mark.parametrize("x", [jnp.ones((2, 3)), jax.ShapeDtypeStruct((2, 3), "float32")])
@pytest.mark.parametrize("train", [(), (True,), (False,)])
def test_a_module_of_linen_is_read_with_its_inputs(x: Any, train: Any) -> None:
    layout = cs.infer(Net(), x, *train)
    variables = Net().init(jax.random.key(0), jnp.ones((2, 3)), *train)
    whole = cs.infer(variables)
    assert layout.name == "Net"
    assert {(row.path, row.key, row.stored, row.kind) for row in layout.rows} == {
        (row.path, row.key, row.stored, row.kind) for row in whole.rows
    }
    assert cs.check(layout, variables).ok
    assert not cs.check(layout, Net().init(jax.random.key(0), jnp.ones((2, 5)))).ok


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((Net(),), r"pass what makes them|infer\(Net\(\.\.\.\), x\)"),
        ((Net, jnp.ones((2, 3))), r"pass Net\(\.\.\.\) and the inputs"),
        (({"w": jnp.ones(3)}, jnp.ones(3)), "leave the inputs out"),
        (("/nowhere", jnp.ones(3)), "leave the inputs out"),
        ((Net(), jnp.ones(())), "Net cannot be traced"),
    ],
)
def test_a_module_without_what_its_variables_depend_on_is_refused(given: Any, says: str) -> None:
    with pytest.raises(cs.SchemaError, match=says):
        cs.infer(*given)


def test_a_module_of_linen_as_a_target_says_what_it_lacks(tmp_path: Path) -> None:
    cs.orbax.save(tmp_path / "run", {"params": {"w": jnp.ones(3)}})
    with pytest.raises(cs.SchemaError, match="the inputs too"):
        cs.orbax.restore(tmp_path / "run", Net())


# --- several items  ---

TOGETHER = {"params": "params", "opt_state": "opt_state"}


def _spread(path: Path, *, names: dict[str, str]) -> dict[str, Any]:
    """Saves a state in items of these names, and returns it."""
    params = {"dense": {"w": leaf(1, 2, 3)}}
    state = {"params": params, "opt_state": jax.tree.map(lambda x: x + 1, TX.init(params))}
    items = {name: state[key] for key, name in names.items()}
    ocp.save_checkpointables(path, {**items, "notes": {"run": jnp.int32(7), "why": "a text"}})
    return state


def test_all_items_are_read_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = _spread(tmp_path / "run", names=TOGETHER)
    with caplog.at_level(logging.INFO, "ckpt_schema"):
        layout = cs.infer(tmp_path / "run", tx=TX)
    assert "all items are read" in caplog.text and "'opt_state': 'opt_state'" in caplog.text
    told = {("/".join(row.path), str(row.stored)) for row in layout.rows}
    assert told == {
        ("notes/run", "int32[]"),
        *(("/".join(row.path), str(row.stored)) for row in cs.infer(state).rows),
    }
    assert layout.parts == cs.infer(state).parts


@pytest.mark.parametrize("names", [TOGETHER, {"params": "weights", "opt_state": "optimizer"}])
def test_one_state_of_several_items_is_said_and_restored(
    tmp_path: Path, names: dict[str, str]
) -> None:
    state = _spread(tmp_path / "run", names=names)
    layout = cs.infer(tmp_path / "run", items=names, tx=TX)
    assert "notes/run" not in str(layout) and layout.parts
    empty = jax.tree.map(jnp.zeros_like, state)
    lens = cs.derive(layout, cs.infer(empty))
    with pytest.raises(cs.CheckpointMismatchError, match="pass items="):
        cs.orbax.restore(tmp_path / "run", empty, lens)
    found = cs.orbax.restore(tmp_path / "run", empty, lens, items=names)
    cs.assert_trees_identical(found, state)


def test_a_state_at_a_key_is_read_there(tmp_path: Path) -> None:
    state = {"params": {"w": leaf(0, 3)}}
    cs.orbax.save(tmp_path / "run", {"model": state, "other": {"a": leaf(0, 2)}})
    layout = cs.infer(tmp_path / "run", at="model")
    assert [row.path for row in layout.rows] == [("params", "w")]
    lens = cs.derive(layout, layout)
    empty = jax.tree.map(jnp.zeros_like, state)
    found = cs.orbax.restore(tmp_path / "run", empty, lens, at="model")
    cs.assert_trees_identical(found, state)


def test_items_that_are_no_one_state_say_what_to_pass(tmp_path: Path) -> None:
    params = {"w": leaf(0, 3)}
    state = {"step": jnp.int32(0), "params": params, "opt_state": TX.init(params)}
    ocp.save_checkpointables(tmp_path / "run", {"old": state, "new": state})
    with pytest.raises(cs.SchemaError, match="it holds new, old: item= says which is meant"):
        cs.infer(tmp_path / "run")
    assert cs.infer(tmp_path / "run", item="new").states
    with pytest.raises(cs.CheckpointMismatchError, match="items new, old"):
        cs.infer(tmp_path / "run", items={"params": "weights"})


def test_what_stands_beside_the_usual_item_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    items = {"state": {"params": {"w": leaf(0, 3)}}, "ema": {"w": leaf(0, 3)}}
    ocp.save_checkpointables(tmp_path / "run", items)
    with caplog.at_level(logging.INFO, "ckpt_schema"):
        assert len(cs.infer(tmp_path / "run").rows) == 1
    assert "item 'state' is read, and not ema" in caplog.text


@pytest.mark.parametrize("said", [{"item": "state"}, {"at": "model"}, {"items": {"a": "b"}}])
def test_of_a_tree_in_memory_nothing_is_said_of_a_checkpoint(said: Any) -> None:
    with pytest.raises(cs.SchemaError, match="expected the path of a checkpoint"):
        cs.infer({"params": {"w": jnp.ones(3)}}, **said)


# --- a run with an average, as a module  ---


class Averaged(nnx.Module):
    """A model with statistics, its optimizer, a copy of it, and a count of the run's own."""

    def __init__(self, rngs: nnx.Rngs, copied: Callable[[Any], Any]) -> None:
        norms = [nnx.BatchNorm(3, rngs=rngs) for _ in range(2)]
        self.model = nnx.Dict(layers=nnx.List(norms), head=nnx.Linear(3, 2, rngs=rngs))
        self.optimizer = nnx.Optimizer(self.model, optax.adam(1e-3), wrt=nnx.Param)
        self.average = copied(self.model)
        self.step = nnx.Variable(jnp.int32(7))


@pytest.mark.parametrize("copied", [nnx.clone, copy.deepcopy])
def test_a_module_with_a_copy_of_its_model_and_its_own_count_is_read(
    copied: Callable[[Any], Any],
) -> None:
    run = Averaged(nnx.Rngs(0), copied)
    layout = cs.infer(run, lists=["layers/{i}"])
    rows = {"/".join(row.path): row for row in layout.rows}
    # Both counts are there; that of the run is its step.
    assert rows["step"].leaf.dtype == "int32"
    assert rows["optimizer/step"].leaf.dtype == "uint32"
    assert rows["average/head/kernel"].body == 1
    assert rows["average/layers[]/mean"].leaf == rows["params/layers[]/mean"].leaf
    assert cs.check(layout, run).ok
    # All that a command does with it.
    assert cs.from_json(lock_text(layout), cs.Layout).rows
    written: dict[str, Any] = {}
    exec(cs.to_source(layout), written)
    assert {row.key for row in written["layout"].rows} == {row.key for row in layout.rows}
    cs.assert_trees_identical(cs.adapt(run, run).get(nnx.state(run)), nnx.state(run))


def test_an_average_of_the_same_variables_is_told() -> None:
    """Flax names a Variable once, so that the model would have lost its params to the average."""
    run = Averaged(nnx.Rngs(0), lambda model: nnx.data(nnx.state(model, nnx.Param)))
    with pytest.raises(cs.SchemaError, match="which holds the same Variables") as caught:
        cs.infer(run, lists=["layers/{i}"])
    [fault] = caught.value.mismatches
    assert (fault.path, "nnx.clone(model)" in fault.hint) == ("model", True)
    apart = lambda model: nnx.data(jax.tree.map(jnp.copy, nnx.state(model, nnx.Param)))  # noqa: E731
    rows = cs.infer(Averaged(nnx.Rngs(0), apart), lists=["layers/{i}"]).rows
    paths = {"/".join(row.path) for row in rows}
    assert {"average/head/kernel", "params/head/kernel"} <= paths
