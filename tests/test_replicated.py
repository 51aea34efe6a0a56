"""States that pmap leaves behind: an axis of copies in front of every leaf, which are read once they are equal."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import jax_utils, nnx
from jaxtyping import Array, Float32

import ckpt_schema as cs
from ckpt_schema.testing import LensLaws

TX = optax.adam(1e-2)
DEVICES = 4
RULE = cs.replicated(0)
rng = np.random.default_rng(3)


def drawn(*shape: int) -> Any:
    return jnp.asarray(rng.normal(size=shape).astype("float32"))


def linen_state() -> dict[str, Any]:
    """A Linen state with scanned layers, after a step; square where the copies' number might mislead."""
    params = {
        "layers": {"kernel": drawn(3, DEVICES, DEVICES)},
        "head": {"kernel": drawn(DEVICES, 7)},
    }
    _, opt_state = TX.update(jax.tree.map(jnp.ones_like, params), TX.init(params), params)
    return {"step": jnp.int32(5), "params": params, "opt_state": opt_state}


class Dense(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.kernel = nnx.Param(jnp.zeros((DEVICES, DEVICES)))
        self.dropout = nnx.Dropout(0.1, rngs=rngs)


class Model(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([Dense(rngs) for _ in range(3)])
        self.head = nnx.Linear(DEVICES, 7, use_bias=False, rngs=rngs)


class Training(nnx.Module):
    def __init__(self) -> None:
        self.model = Model(nnx.Rngs(0))
        self.optimizer = nnx.Optimizer(self.model, TX, wrt=nnx.Param)


def of_devices(state: Any) -> Any:
    """What a run with pmap keeps."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pmap is on its way out
        return jax_utils.replicate(state, jax.devices()[:DEVICES])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """A checkpoint of copies, what it holds, and one copy."""
    state = linen_state()
    copies = of_devices(state)
    assert copies["step"].shape == (DEVICES,)
    path = tmp_path_factory.mktemp("replicated") / "5"
    cs.orbax.save(path, copies)
    return path, copies, state


# --- Said, and read  ---


def test_copies_are_recognised_and_the_error_has_the_rule(run: Any) -> None:
    path, _, state = run
    with pytest.raises(cs.DerivationError) as error:
        cs.orbax.restore(path, state)
    assert str(error.value) == (
        "no lens from 5 to the target: 1 fault\n"
        "  the tree  expected one copy of the state, found 4 in front of the shape of every leaf of 5, "
        "as pmap keeps a state\n"
        "            -> add cs.replicated(0) to the rules of the lens: it verifies that all 4 are equal"
    )
    with pytest.raises(cs.DerivationError, match=r"add cs\.replicated\(0, side='view'\)"):
        cs.adapt(state, path)


def test_copies_that_are_equal_are_read_as_one(run: Any) -> None:
    path, _, state = run
    found = cs.orbax.restore(path, jax.tree.map(jnp.zeros_like, state), rules=[RULE])
    cs.assert_trees_identical(found, state)


def test_scanned_copies_go_into_a_list_of_layers(run: Any) -> None:
    path, copies, state = run
    training = cs.orbax.restore(path, Training(), rules=[RULE])
    for number in range(3):
        kernel = training.model.layers[number].kernel[...]
        np.testing.assert_array_equal(kernel, state["params"]["layers"]["kernel"][number])
    assert int(training.optimizer.step[...]) == 5
    lens = cs.adapt(path, training, rules=[RULE])
    back = lens.put(nnx.state(training), onto=copies)
    cs.assert_trees_identical(back, copies)


def test_a_state_goes_into_copies(run: Any, tmp_path: Path) -> None:
    _, copies, state = run
    cs.orbax.save(tmp_path / "1", state)
    rules = [cs.replicated(0, side="view")]
    found = cs.orbax.restore(tmp_path / "1", copies, rules=rules)
    cs.assert_trees_identical(found, copies)


def test_copies_are_converted_on_disk(run: Any, tmp_path: Path) -> None:
    path, _, state = run
    cs.orbax.convert(path, tmp_path / "1", cs.adapt(path, state, rules=[RULE]), verify=True)
    cs.assert_trees_identical(cs.orbax.restore(tmp_path / "1", state), state)


# --- Never a guess  ---


def test_copies_that_differ_are_refused(run: Any, tmp_path: Path) -> None:
    _, copies, state = run
    head = copies["params"]["head"]["kernel"].at[2, 1, 3].set(7.0)
    params = {**copies["params"], "head": {"kernel": head}}
    cs.orbax.save(tmp_path / "1", {**copies, "params": params})
    with pytest.raises(cs.CheckpointMismatchError) as error:
        cs.orbax.restore(tmp_path / "1", state, rules=[RULE])
    text = str(error.value)
    assert "1 fault" in text and "params/head/kernel" in text
    assert "at [0 1 3] of" in text and "found 7.0 (0x40e00000) at [2 1 3] of" in text


def test_keys_of_each_device_keep_their_own(run: Any, tmp_path: Path) -> None:
    _, copies, state = run
    keys = jax.random.split(jax.random.key(1), DEVICES)
    cs.orbax.save(tmp_path / "1", {**copies, "dropout_rng": keys})
    target = {**state, "dropout_rng": jax.random.key(9)}
    with pytest.raises(cs.CheckpointMismatchError, match="dropout_rng"):
        cs.orbax.restore(tmp_path / "1", target, rules=[RULE])
    rules = [RULE, cs.apart("dropout_rng")]
    found = cs.orbax.restore(tmp_path / "1", target, rules=rules)
    cs.assert_trees_identical(found, target)


def test_a_number_beside_copies_is_there_once(run: Any, tmp_path: Path) -> None:
    _, copies, state = run
    cs.orbax.save(tmp_path / "1", {**copies, "epoch": 3})
    target = {**state, "epoch": 0}
    with pytest.raises(cs.DerivationError, match=r"add cs\.replicated"):
        cs.orbax.restore(tmp_path / "1", target)
    found = cs.orbax.restore(tmp_path / "1", target, rules=[RULE])
    cs.assert_trees_identical(found, {**state, "epoch": 3})


def test_leaves_of_another_count_are_named(run: Any) -> None:
    _, copies, state = run
    with pytest.raises(cs.DerivationError) as error:
        cs.adapt({**copies, "history": jnp.zeros((9, 2))}, state, rules=[RULE])
    assert "history  expected 4 copies on axis 0, as most leaves have" in str(error.value)
    with pytest.raises(cs.DerivationError, match="leaves with an axis 5, found none"):
        cs.adapt(copies, state, rules=[cs.replicated(5)])


def test_layers_are_no_copies() -> None:
    """A stack of layers beside one layer has a leading axis as well, and is not called copies where other leaves have none."""
    layer = {"kernel": jnp.zeros((4, 5)), "bias": jnp.zeros(5)}
    stack = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), layer)
    both = [{"params": {"layers": each, "head": jnp.zeros(2)}} for each in (stack, layer)]
    with pytest.raises(cs.DerivationError) as error:
        cs.adapt(*both)
    assert "pmap" not in str(error.value)


@pytest.mark.parametrize("wrong", [{"axis": "0"}, {"axis": True}, {"side": "left"}])
def test_arguments(wrong: Any) -> None:
    with pytest.raises(cs.SchemaError, match=f"{next(iter(wrong))} +expected"):
        cs.replicated(**wrong)


# --- Declared  ---


class Layer(cs.Schema):
    kernel: Float32[Array, "embed mlp"]
    bias: Float32[Array, " mlp"]


class Turned(cs.Schema):
    kernel: Float32[Array, "mlp embed"]
    bias: Float32[Array, " mlp"]


class Scanned(cs.Schema):
    layers: Layer = cs.field(scan="depth", axis=1)
    head: Float32[Array, "embed vocab"]


class Listed(cs.Schema):
    layers: list[Layer] = cs.field(length="depth")
    head: Float32[Array, "vocab embed"]


def numbered(shape: tuple[int, ...], start: int) -> Any:
    return np.arange(start, start + np.prod(shape, dtype=int), dtype="float32").reshape(shape)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_the_axis_may_be_another(axis: int) -> None:
    one = {"layers": {"kernel": numbered((2, 3, 4), 0), "bias": numbered((4, 3), 50)}}
    one["head"] = numbered((2, 6), 90)
    copies = jax.tree.map(lambda leaf: np.stack([leaf] * 5, axis), one)
    plain = cs.derive(Scanned, Listed)
    lens = cs.derive(Scanned, Listed, rules=[cs.replicated(axis)], dims={"devices": 5})
    cs.assert_trees_identical(lens.get(copies), plain.get(one))
    cs.assert_trees_identical(lens.put(plain.get(one)), copies)
    turned = cs.derive(Listed, Scanned, rules=[cs.replicated(axis, side="view")])
    cs.assert_trees_identical(turned.bind(devices=5).get(plain.get(one)), copies)


def test_an_axis_that_a_leaf_cannot_have_is_named() -> None:
    with pytest.raises(cs.DerivationError) as error:
        cs.derive(Scanned, Listed, rules=[cs.replicated(3)])
    assert str(error.value) == (
        "replicated(3) does not fit Scanned: 2 faults\n"
        "  layers[]/bias  expected a leaf that has copies on axis 3, found float32[mlp depth]\n"
        "                 -> replicate puts them in front: replicated(0)\n"
        "  head           expected a leaf that has copies on axis 3, found float32[embed vocab]\n"
        "                 -> replicate puts them in front: replicated(0)"
    )


def test_a_restore_through_a_lens_names_the_rule(tmp_path: Path) -> None:
    sides = cs.linen.Params[Layer], cs.linen.Params[Turned]
    state = {"params": {"kernel": drawn(3, 4), "bias": drawn(4)}}
    cs.orbax.save(tmp_path / "1", of_devices(state))
    plain = cs.derive(*sides)
    target = plain.get(state)
    with pytest.raises(cs.CheckpointMismatchError) as error:
        cs.orbax.restore(tmp_path / "1", target, plain)
    assert str(error.value) == (
        f"{tmp_path / '1'} is kept once for each device: 1 fault\n"
        "  the tree  expected one copy of the state, found 4 in front of the shape of every leaf of 1, "
        "as pmap keeps a state\n"
        "            -> add cs.replicated(0) to the rules of the lens: it verifies that all 4 are equal"
    )
    lens = cs.derive(*sides, rules=[RULE])
    cs.assert_trees_identical(cs.orbax.restore(tmp_path / "1", target, lens), target)


def test_what_an_optimizer_keeps_in_shapes_of_its_own_has_copies_too() -> None:
    tx = optax.adafactor(1e-2, min_dim_size_to_factor=2)
    side = cs.linen.TrainState[Layer, tx, {"embed": 3, "mlp": 4}]
    lens = cs.derive(side, side, rules=[RULE])
    params = {"params": {"kernel": drawn(3, 4), "bias": drawn(4)}}
    state = {"step": jnp.int32(1), "params": params, "opt_state": tx.init(params)}
    state = jax.tree.map(np.asarray, state)
    cs.assert_trees_identical(lens.get(jax.tree.map(lambda x: np.stack([x] * 3), state)), state)


def test_the_lens_is_written_as_python() -> None:
    lens = cs.derive(Scanned, Listed, rules=[RULE])
    found: dict[str, Any] = {}
    exec(cs.to_source(lens), found)
    assert str(found["lens"]) == str(lens)


class TestCopies(LensLaws):
    """All laws of a lens whose source has copies."""

    max_examples = 2
    sizes: ClassVar = {"devices": (1, 4)}
    meshes = ()
    lens = cs.derive(cs.linen.Params[Layer], cs.nnx.Params[Turned], rules=[RULE])


def test_a_restore_logs_what_it_did(run: Any, caplog: pytest.LogCaptureFixture) -> None:
    path, _, state = run
    with caplog.at_level(logging.INFO, "ckpt_schema"):
        cs.orbax.restore(path, state, rules=[RULE])
    assert "0 leaves moved, 8 edited, 0 made, 0 left" in caplog.text
