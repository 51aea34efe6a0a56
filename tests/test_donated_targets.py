"""Restoring into a target whose arrays the caller gives up: freed before the read, and said so where the read fails."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Float32, Int8, Int32
from orbax.checkpoint import v1 as ocp
from safetensors.numpy import save_file

import ckpt_schema as cs

same = cs.assert_trees_identical
WIDE = 40  # arrays of less stand in the index of a checkpoint
GONE = r"the target was given up before the read \(donate_target=True\), and has no values now"


class Layer(cs.Schema):
    kernel: Float32[Array, "embed mlp"]


class Stacked(cs.Schema):
    layers: Layer = cs.field(scan="depth", axis=1)
    embedding: Float32[Array, "vocab embed"]


class Listed(cs.Schema):
    layers: list[Layer] = cs.field(length="depth")
    embedding: Float32[Array, "grown embed"]
    noise: Float32[Array, " noise"]


LENS = cs.derive(
    Stacked,
    Listed,
    rules=[
        cs.private("embedding", 0.0, small="vocab", large="grown"),
        cs.private("noise", cs.own),
    ],
)


def stacked() -> Any:
    kernel = jnp.arange(24.0).reshape(4, 2, 3)
    return {"layers": {"kernel": kernel}, "embedding": jnp.arange(8.0).reshape(2, 4)}


def listed() -> Any:
    layers = {n: {"kernel": jnp.full((4, 3), n - 7.0)} for n in range(2)}
    return {"layers": layers, "embedding": jnp.full((3, 4), 5.0), "noise": jnp.arange(2.0)}


def on_mesh(tree: Any) -> Any:
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def alive(tree: Any) -> list[bool]:
    return [not leaf.is_deleted() for leaf in jax.tree.leaves(tree)]


@pytest.fixture
def at_reads(monkeypatch: pytest.MonkeyPatch) -> list[list[bool]]:
    """Which leaves of a target had values when arrays were read; the target is put in by the test."""
    seen: list[Any] = []
    load = ocp.load

    def spy(*given: Any, **options: Any) -> Any:
        seen.extend(alive(target) for target in seen[:1])
        return load(*given, **options)

    monkeypatch.setattr(ocp, "load", spy)
    return seen


@pytest.mark.parametrize("where", [lambda tree: tree, on_mesh], ids=["one device", "a mesh"])
@pytest.mark.parametrize("saved", [stacked, listed])
def test_what_is_read_is_freed_before_and_the_rest_stays(
    tmp_path: Path, saved: Callable[[], Any], where: Callable[[Any], Any], at_reads: list[Any]
) -> None:
    cs.orbax.save(tmp_path / "0", saved())
    expected = cs.orbax.restore(tmp_path / "0", where(listed()), LENS)
    target = where(listed())
    at_reads[:] = [target]
    result = cs.orbax.restore(tmp_path / "0", target, LENS, donate_target=True)
    same(result, expected)
    left = {"layers": False, "embedding": saved is stacked, "noise": saved is stacked}
    wanted = [left[path[0].key] for path, _ in jax.tree_util.tree_leaves_with_path(target)]
    assert at_reads[1] == wanted == alive(target)
    assert (result["noise"] is target["noise"]) == (saved is stacked)
    assert result["embedding"][2, 0] == 5.0  # its own row, of a leaf that is read in part


def test_without_a_word_the_target_stays(tmp_path: Path) -> None:
    cs.orbax.save(tmp_path / "0", stacked())
    target = listed()
    cs.orbax.restore(tmp_path / "0", target, LENS)
    assert all(alive(target))


class Model(nnx.Module):
    def __init__(self, seed: int) -> None:
        rngs = nnx.Rngs(seed)
        self.first = nnx.Linear(WIDE, WIDE, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)


class Training(nnx.Module):
    def __init__(self, seed: int) -> None:
        self.model = Model(seed)
        self.optimizer = nnx.Optimizer(self.model, optax.adam(1e-2), wrt=nnx.Param)


def test_a_module_is_filled_and_keeps_its_streams(tmp_path: Path) -> None:
    kernel = {"kernel": jnp.ones((WIDE, WIDE)), "bias": jnp.zeros(WIDE)}
    cs.orbax.save(tmp_path / "0", {"params": {"first": kernel}})
    module = Training(0)
    before = jax.tree.leaves(nnx.state(module.model, nnx.Param))
    cs.orbax.restore(tmp_path / "0", module.model, donate_target=True)
    assert before
    assert not any(alive(before))
    expected = nnx.state(Training(0))
    expected["model"]["first"]["kernel"].set_value(jnp.ones((WIDE, WIDE)))
    same(nnx.state(module), expected)


def test_a_checkpoint_of_the_same_layout_and_its_private_leaves(tmp_path: Path) -> None:
    cs.orbax.save(tmp_path / "0", Training(0))
    module = Training(1)
    before = jax.tree.leaves(nnx.state(module))
    result = cs.orbax.restore(tmp_path / "0", module, donate_target=True)
    same(nnx.state(result), nnx.state(Training(0)))
    assert not any(alive(before))


def test_what_starts_anew_is_made_of_what_is_read(tmp_path: Path) -> None:
    class Body(cs.Schema):
        w: Float32[Array, " embed"]

    old, new = optax.sgd(1e-2), optax.chain(optax.sgd(1e-2), optax.ema(0.9))
    lens = cs.derive(
        cs.linen.BareTrainState[Body, old],
        cs.linen.BareTrainState[Body, new],
        rules=[cs.reset(view="opt_state/1")],
    )

    def state(value: float, tx: Any) -> Any:
        params = {"w": jnp.full(4, value)}
        return {"step": jnp.int32(3), "params": params, "opt_state": tx.init(params)}

    cs.orbax.save(tmp_path / "0", state(1.0, old))
    target = state(2.0, new)
    expected = cs.orbax.restore(tmp_path / "0", state(2.0, new), lens)
    same(cs.orbax.restore(tmp_path / "0", target, lens, donate_target=True), expected)
    assert not any(alive(target))


def test_a_buffer_that_two_leaves_share_stays(tmp_path: Path) -> None:
    cs.orbax.save(tmp_path / "0", {"w": jnp.ones(4)})

    class One(cs.Schema):
        w: Float32[Array, " n"]

    class Two(One):
        own: Float32[Array, " n"]

    shared = jnp.arange(4.0)
    target = {"w": jax.device_put(shared, shared.sharding), "own": shared}
    lens = cs.derive(One, Two, rules=[cs.private("own", cs.own)])
    result = cs.orbax.restore(tmp_path / "0", target, lens, donate_target=True)
    same(result, {"w": jnp.ones(4), "own": jnp.arange(4.0)})


def test_targets_without_arrays_have_nothing_to_give_up(tmp_path: Path) -> None:
    cs.orbax.save(tmp_path / "0", {"w": jnp.ones(4), "step": 7})
    numbers = {"w": np.zeros(4, "float32"), "step": 0}
    abstract = {"w": jax.ShapeDtypeStruct((4,), "float32"), "step": 0}
    for target in (numbers, abstract):
        result = cs.orbax.restore(tmp_path / "0", target, donate_target=True)
        same(result, {"w": jnp.ones(4), "step": 7})
    assert not numbers["w"].any()


def test_a_folder_of_hugging_face(tmp_path: Path) -> None:
    save_file({"fc.weight": np.ones((2, 3), "float32")}, tmp_path / "model.safetensors")
    target = {"kernel": jnp.zeros((3, 2)), "own": jnp.zeros(2)}
    rules = [cs.rename("fc/weight", "kernel", axes="1 0"), cs.private("own", cs.own)]
    result = cs.hf.restore(tmp_path, target, rules=rules, donate_target=True)
    same(result, {"kernel": jnp.ones((3, 2)), "own": jnp.zeros(2)})
    assert alive(target) == [False, True]


# --- what goes wrong  ---


def test_nothing_is_freed_where_the_target_does_not_fit(tmp_path: Path) -> None:
    cs.orbax.save(tmp_path / "0", {"w": jnp.ones(4), "b": jnp.ones(2)})
    target = {"w": jnp.zeros(4), "b": jnp.zeros(3)}
    with pytest.raises(cs.CkptSchemaError) as caught:
        cs.orbax.restore(tmp_path / "0", target, donate_target=True)
    assert "given up" not in str(caught.value)
    assert all(alive(target))


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # Orbax abandons coroutines when a load fails
def test_a_failed_read_says_that_the_target_has_no_values(tmp_path: Path) -> None:
    for name in ("0", "1"):
        cs.orbax.save(tmp_path / name, Training(0))
    shutil.rmtree(tmp_path / "0" / "state" / "ocdbt.process_0")
    module = Training(1)
    with pytest.raises(cs.CheckpointMismatchError, match=GONE) as caught:
        cs.orbax.restore(tmp_path / "0", module, donate_target=True)
    assert "whose arrays cannot be read" in str(caught.value)
    assert not any(alive(nnx.state(module)))
    with pytest.raises(cs.CheckpointMismatchError) as caught:  # as it is without
        cs.orbax.restore(tmp_path / "0", Training(1))
    assert "given up" not in str(caught.value)
    cs.orbax.restore(tmp_path / "1", module, donate_target=True)  # what the error says to do
    same(nnx.state(module), nnx.state(Training(0)))
    gc.collect()


def test_a_value_that_does_not_fit_is_found_after_the_read(tmp_path: Path) -> None:
    class Wide(cs.Schema):
        w: Int32[Array, " n"]

    class Narrow(cs.Schema):
        w: Int8[Array, " n"]

    cs.orbax.save(tmp_path / "0", {"w": jnp.array([1, 300])})
    target = {"w": jnp.zeros(2, "int8")}
    with pytest.raises(cs.CheckpointMismatchError, match=rf"(?s)300.*{GONE}"):
        cs.orbax.restore(tmp_path / "0", target, cs.derive(Wide, Narrow), donate_target=True)


def test_an_interrupt_says_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    cs.orbax.save(tmp_path / "0", {"w": jnp.ones(4)})
    monkeypatch.setattr(ocp, "load", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        cs.orbax.restore(tmp_path / "0", {"w": jnp.zeros(4)}, donate_target=True)
    (note,) = caught.value.__notes__
    assert "has no values now" in note
