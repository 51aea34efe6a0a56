"""What the metadata of a checkpoint tells, and the directories that are no checkpoint."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as orbax_v0
import pytest
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState
from orbax.checkpoint import v1 as ocp

import ckpt_schema as cs
from ckpt_schema.orbax import _metadata as metadata


def shape(*sizes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def linen_state() -> TrainState:
    params = nn.Dense(3).init(jax.random.key(0), jnp.ones((1, 2)))
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9))
    return TrainState.create(apply_fn=None, params=params, tx=tx)


def refused(path: Any, item: str | None = None) -> cs.Mismatch:
    """The one fault of reading what is no checkpoint."""
    with pytest.raises(cs.CheckpointMismatchError) as caught:
        metadata.read_metadata(path, item)
    (fault,) = caught.value.mismatches
    assert fault.path == str(path) and fault.expected == "an Orbax checkpoint" and fault.hint
    return fault


# --- what it tells  ---


def test_containers_are_those_that_a_load_returns(tmp_path: Path) -> None:
    ocp.save(tmp_path / "0", linen_state())
    dense = {"bias": shape(3), "kernel": shape(2, 3)}
    found = metadata.read_metadata(tmp_path / "0")
    assert found.tree == {
        "step": 0,
        "params": {"params": dense},
        "opt_state": [None, [{"trace": {"params": dense}}, None]],
    }
    assert jax.tree.structure(found.tree) == jax.tree.structure(ocp.load(tmp_path / "0"))
    assert found.at(("params", "params")) == dense
    assert found.at(("params", "weights")) is None and found.at(("step", "params")) is None


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_keys_have_the_implementation_they_were_saved_with(tmp_path: Path, impl: str) -> None:
    dropout = nnx.state(nnx.Dropout(0.5, rngs=nnx.Rngs(dropout=jax.random.key(0, impl=impl))))
    keys = jax.random.split(jax.random.key(1, impl=impl), (2, 3))
    ocp.save(
        tmp_path / "0", {"layer.0": dropout, "keys": keys, "data": jnp.zeros((2, 4), jnp.uint32)}
    )
    found = metadata.read_metadata(tmp_path / "0").tree
    stream = found["layer.0"]["rngs"]
    assert stream["key"]["value"] == shape(dtype=keys.dtype)
    assert stream["count"]["value"] == shape(dtype=jnp.uint32)
    assert found["keys"] == shape(2, 3, dtype=keys.dtype)
    assert found["data"] == shape(2, 4, dtype=jnp.uint32)


def test_a_part_is_read_alone(tmp_path: Path) -> None:
    state = linen_state()
    ocp.save(tmp_path / "0", state)
    disk = metadata.read_metadata(tmp_path / "0")
    on = jax.sharding.SingleDeviceSharding(jax.devices()[3])
    kernel = jax.ShapeDtypeStruct((2, 3), jnp.float32, sharding=on)
    loaded = metadata.read_arrays(
        disk, ("params", "params"), {"kernel": kernel, "bias": metadata.SKIP}
    )
    assert loaded["bias"] is metadata.SKIP and loaded["kernel"].sharding == on
    assert (loaded["kernel"] == state.params["params"]["kernel"]).all()
    assert list(metadata.read_arrays(disk, ("params", "params"), {"kernel": kernel})) == ["kernel"]
    trace = metadata.read_arrays(
        disk, ("opt_state",), jax.tree.map(lambda _: metadata.SKIP, disk.tree["opt_state"])
    )
    assert trace == [None, [{"trace": {"params": {"bias": ..., "kernel": ...}}}, None]]


# --- which item  ---


def test_one_of_several_items_is_asked_for(tmp_path: Path) -> None:
    items = {"params": {"w": jnp.ones(2)}, "ema": {"w": jnp.zeros(3)}, "meta": {"run": 7}}
    ocp.save_checkpointables(tmp_path / "0", items)
    assert metadata.read_metadata(tmp_path / "0", "ema").tree == {"w": shape(3)}
    fault = refused(tmp_path / "0")
    assert (
        fault.found == "a checkpoint that holds ema, meta, params"
        and fault.hint == "pass item='ema', or another of them"
    )
    assert "ema, meta, params" in refused(tmp_path / "0", "weights").found
    ocp.save_checkpointables(
        tmp_path / "1", {"state": {"w": jnp.ones(2)}, "ema": {"w": jnp.zeros(3)}}
    )
    assert metadata.read_metadata(tmp_path / "1").tree == {"w": shape(2)}


def test_the_items_of_the_v0_api(tmp_path: Path) -> None:
    orbax_v0.PyTreeCheckpointer().save(
        tmp_path / "flat", {"w": jnp.ones(2), "key": jax.random.key(0, impl="rbg")}
    )
    found = metadata.read_metadata(tmp_path / "flat")
    assert found.item is None
    assert found.tree == {"w": shape(2), "key": shape(dtype=jax.random.key(0, impl="rbg").dtype)}
    assert refused(tmp_path / "flat", "state").hint == "leave item= out"
    with orbax_v0.CheckpointManager(tmp_path / "run") as manager:
        manager.save(9, args=orbax_v0.args.StandardSave({"w": jnp.ones(2)}))
        both = {
            "params": orbax_v0.args.StandardSave({"w": jnp.ones(3)}),
            "notes": orbax_v0.args.JsonSave({"a": 1}),
        }
    assert metadata.read_metadata(tmp_path / "run" / "9").item == "default"
    with orbax_v0.CheckpointManager(tmp_path / "more") as manager:
        manager.save(9, args=orbax_v0.args.Composite(**both))
    assert metadata.read_metadata(tmp_path / "more" / "9").item == "params"
    assert (
        refused(tmp_path / "more" / "9" / "params").hint
        == f"pass {tmp_path / 'more' / '9'} with item='params'"
    )


# --- what is no checkpoint  ---


def test_paths_that_are_no_checkpoint(tmp_path: Path) -> None:
    assert refused(tmp_path / "nowhere").found == "no such path"
    (tmp_path / "file").write_text("")
    assert refused(tmp_path / "file").found == "a file"
    (tmp_path / "empty").mkdir()
    assert refused(tmp_path / "empty").found == "an empty directory"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.txt").write_text("")
    assert refused(tmp_path / "other").found == "a directory without a pytree that Orbax wrote"


def test_a_directory_of_checkpoints_names_the_latest(tmp_path: Path) -> None:
    with ocp.training.Checkpointer(tmp_path / "run") as checkpointer:
        for step in (9, 10, 100, 1000):
            checkpointer.save(step, {"w": jnp.ones(2)})
    fault = refused(tmp_path / "run")
    assert fault.found == "a directory of 4 checkpoints"
    assert (
        fault.hint
        == f"pass one of them: {', '.join(str(tmp_path / 'run' / s) for s in ('10', '100', '1000'))}"
    )
    orbax_v0.PyTreeCheckpointer().save(tmp_path / "flat" / "7", {"w": jnp.ones(2)})
    assert refused(tmp_path / "flat").hint == f"pass one of them: {tmp_path / 'flat' / '7'}"


def test_a_part_of_a_checkpoint_is_none(tmp_path: Path) -> None:
    ocp.save(tmp_path / "0", {"w": jnp.ones(2)})
    fault = refused(tmp_path / "0" / "state")
    assert (
        fault.found == "a part of a checkpoint"
        and fault.hint == f"pass {tmp_path / '0'} with item='state'"
    )


def cut(file: str) -> Callable[[Path], None]:
    return lambda path: (path / file).write_text((path / file).read_text()[:-20])


def gone(name: str) -> Callable[[Path], None]:
    return lambda path: (
        shutil.rmtree(path / name) if (path / name).is_dir() else (path / name).unlink()
    )


DAMAGES = {
    "no checkpoint metadata": gone("_CHECKPOINT_METADATA"),
    "no state": gone("state"),
    "no pytree metadata": gone("state/_METADATA"),
    "half the pytree metadata": cut("state/_METADATA"),
    "no manifest": gone("state/manifest.ocdbt"),
    "no index": gone("state/d"),
    "half the array metadata": cut("state/array_metadatas/process_0"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_half_a_checkpoint_is_none(tmp_path: Path, damage: str) -> None:
    ocp.save(tmp_path / "0", {"w": jnp.ones((20, 30)), "key": jax.random.key(0)})
    DAMAGES[damage](tmp_path / "0")
    assert refused(tmp_path / "0").found in (
        "a checkpoint that cannot be read",
        "a checkpoint without its item 'state', which it lists",
    )


def test_what_an_unfinished_save_leaves_is_none(tmp_path: Path) -> None:
    ocp.save(tmp_path / "0", {"w": jnp.ones(2)})
    (tmp_path / "0").rename(tmp_path / "0.orbax-checkpoint-tmp")
    assert refused(tmp_path / "0.orbax-checkpoint-tmp").found == "what an unfinished save has left"


def test_keys_that_lost_their_implementation_are_raw_data(tmp_path: Path) -> None:
    ocp.save(tmp_path / "0", {"w": jnp.ones(2), "key": jax.random.key(0)})
    shutil.rmtree(tmp_path / "0" / "state" / "array_metadatas")
    assert metadata.read_metadata(tmp_path / "0").tree == {
        "w": shape(2),
        "key": shape(2, dtype=jnp.uint32),
    }


def test_an_implementation_that_is_not_registered_is_an_error(tmp_path: Path) -> None:
    ocp.save(tmp_path / "0", {"key": jax.random.key(0)})
    file = tmp_path / "0" / "state" / "array_metadatas" / "process_0"
    stored = json.loads(file.read_text())
    stored["array_metadatas"][0]["array_metadata"]["ext_metadata"]["random_key_impl"] = "mine"
    file.write_text(json.dumps(stored))
    assert refused(tmp_path / "0").found == "a checkpoint that cannot be read"


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # Orbax abandons coroutines when a load fails
def test_arrays_that_are_gone_are_an_error_and_change_nothing(tmp_path: Path) -> None:
    model = nnx.Linear(40, 50, rngs=nnx.Rngs(0))
    layout = cs.infer(model)
    before = jax.tree.leaves(nnx.state(model))
    ocp.save(tmp_path / "0", nnx.state(model))
    shutil.rmtree(tmp_path / "0" / "state" / "ocdbt.process_0")
    with pytest.raises(cs.CheckpointMismatchError, match="whose arrays cannot be read"):
        cs.orbax.restore(tmp_path / "0", model, cs.derive(layout, layout))
    assert all(a is b for a, b in zip(before, jax.tree.leaves(nnx.state(model)), strict=True))
    gc.collect()
