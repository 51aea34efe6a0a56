"""Saving through a lens: what is written, what is refused, and what is left behind."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from pathlib import Path
from typing import Any

import flax_models as models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float32, Int32
from orbax.checkpoint import v1 as ocp

import ckpt_schema as cs

TX = models.OPTIMIZERS["chain schedule"]
same = cs.assert_trees_identical


@pytest.fixture(scope="module")
def lens() -> cs.Lens:
    return cs.derive(
        cs.linen.TrainState[models.ScannedSchema, TX], cs.nnx.TrainState[models.NnxSchema, TX]
    )


@pytest.fixture(scope="module")
def linen_state() -> Any:
    return models.linen_state(TX)


@pytest.fixture(scope="module")
def nnx_state() -> Any:
    return models.nnx_state(TX)


def files(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()
    }


# --- what is written  ---


def test_a_view_is_written_as_the_source(
    tmp_path: Path, lens: cs.Lens, linen_state: Any, nnx_state: Any
) -> None:
    cs.orbax.save(tmp_path / "0", nnx_state, lens)
    loaded = ocp.load(tmp_path / "0", lens.put(nnx_state))  # by one who knows only Linen and Orbax
    same(loaded, lens.put(nnx_state))
    state = linen_state.replace(step=jnp.int32(0))
    assert jax.tree.structure(ocp.load(tmp_path / "0", state)) == jax.tree.structure(state)


def test_a_module_and_a_pure_dict_are_written_as_the_source(tmp_path: Path, lens: cs.Lens) -> None:
    module = models.nnx_module(TX)
    cs.orbax.save(tmp_path / "module", module, lens)
    cs.orbax.save(tmp_path / "pure", nnx.to_pure_dict(nnx.state(module)), lens)
    expected = lens.put(nnx.state(module))
    same(ocp.load(tmp_path / "module", expected), expected)
    same(ocp.load(tmp_path / "pure", expected), expected)


def test_a_source_is_written_as_it_is(
    tmp_path: Path, lens: cs.Lens, linen_state: Any, nnx_state: Any
) -> None:
    cs.orbax.save(tmp_path / "linen", linen_state, lens)
    same(ocp.load(tmp_path / "linen", linen_state), linen_state)
    cs.orbax.save(tmp_path / "nnx", nnx_state, ~lens)
    same(ocp.load(tmp_path / "nnx", nnx_state), nnx_state)
    cs.orbax.save(tmp_path / "other", linen_state, ~lens)
    same(ocp.load(tmp_path / "other", nnx_state), lens.get(linen_state))


def test_what_is_saved_is_restored(
    tmp_path: Path, lens: cs.Lens, linen_state: Any, nnx_state: Any
) -> None:
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    spread = jax.device_put(nnx_state, NamedSharding(mesh, PartitionSpec()))
    cs.orbax.save(tmp_path / "0", spread, lens)
    same(cs.orbax.restore(tmp_path / "0", spread, lens), spread)
    same(
        cs.orbax.restore(tmp_path / "0", linen_state, lens, aux=None),
        lens.put(nnx_state, onto=linen_state),
    )


def test_parents_are_made(tmp_path: Path, lens: cs.Lens, linen_state: Any) -> None:
    cs.orbax.save(tmp_path / "runs" / "1" / "100", linen_state, lens)
    assert ocp.is_orbax_checkpoint(tmp_path / "runs" / "1" / "100")


class Odds(cs.Schema):
    """Leaves that Orbax by itself refuses, or stores so that it cannot say what it stored."""

    done: Bool[Array, ""]
    loss: Float32[Array, ""]
    step: Int32[Array, ""]


def test_numpy_scalars_and_bools_are_written_as_arrays(tmp_path: Path) -> None:
    state = {"done": True, "loss": np.float32(1.5), "step": 3}
    lens = cs.derive(Odds, Odds)
    cs.orbax.save(tmp_path / "0", state, lens)
    assert cs.orbax.restore(tmp_path / "0", state, lens) == {"done": True, "loss": 1.5, "step": 3}


# --- what is refused  ---


def test_what_exists_is_not_touched(
    tmp_path: Path, lens: cs.Lens, linen_state: Any, nnx_state: Any
) -> None:
    cs.orbax.save(tmp_path / "0", linen_state, lens)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    before = files(tmp_path)
    for name in ("0", "empty", "file"):
        with pytest.raises(cs.CheckpointExistsError, match="is not overwritten"):
            cs.orbax.save(tmp_path / name, nnx_state, lens)
    assert files(tmp_path) == before and not list((tmp_path / "empty").iterdir())


def refused(path: Path, state: Any, lens: cs.Lens) -> list[tuple[str, str]]:
    """The faults of a save that must not leave anything."""
    with pytest.raises(cs.ConformanceError) as caught:
        cs.orbax.save(path, state, lens)
    assert not list(path.parent.iterdir())
    return [(fault.path, fault.kind) for fault in caught.value.mismatches]


def test_a_state_of_neither_side_is_refused(
    tmp_path: Path, lens: cs.Lens, linen_state: Any
) -> None:
    (fault,) = refused(tmp_path / "0", linen_state.replace(step=jnp.float32(3)), lens)
    assert fault == ("step", "dtype")


def test_leaves_without_values_are_refused_all_at_once(
    tmp_path: Path, lens: cs.Lens, linen_state: Any
) -> None:
    head = {"kernel": jnp.zeros((8, 11)), "bias": jax.ShapeDtypeStruct((11,), jnp.float32)}
    head["kernel"].delete()
    params = {"params": {**linen_state.params["params"], "head": head}}
    found = refused(tmp_path / "0", linen_state.replace(params=params), lens)
    assert found == [
        ("params/params/head/bias", "abstract"),
        ("params/params/head/kernel", "abstract"),
    ]


def test_a_step_that_the_source_cannot_hold_is_refused(
    tmp_path: Path, lens: cs.Lens, nnx_state: Any
) -> None:
    state = nnx.State({**nnx_state})
    state["optimizer"] = nnx.State(
        {**nnx_state["optimizer"], "step": nnx.optimizer.OptState(jnp.uint32(2**31))}
    )
    assert refused(tmp_path / "0", state, lens) == [("optimizer/step/value", "cast")]


class Dotted(cs.Schema):
    """Two leaves whose key paths are the same when joined by dots, as Orbax joins them."""

    flat: Float32[Array, " n"] = cs.field(key="a.b")
    deep: Float32[Array, " n"] = cs.field(key="a/b")


@pytest.mark.parametrize("n", [0, 2])
def test_leaves_that_orbax_would_lose_are_refused(tmp_path: Path, n: int) -> None:
    found = refused(
        tmp_path / "0", {"a.b": jnp.ones(n), "a": {"b": jnp.zeros(n)}}, cs.derive(Dotted, Dotted)
    )
    assert [path for path, kind in found if kind == "ambiguous"] == ["a.b", "a/b"]
    assert [path for path, kind in found if kind == "shape"] == ([] if n else ["a.b", "a/b"])


# --- what is left behind  ---


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # of Orbax's writes, cut off by the failure
def test_a_save_that_fails_leaves_nothing(
    tmp_path: Path, lens: cs.Lens, linen_state: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ocp.options.ArrayOptions().saving.array_metadata_store
    write, at_work = type(store).write, []

    async def full(*_: Any, **__: Any) -> None:
        await asyncio.sleep(
            1
        )  # the arrays are written meanwhile: nothing is left that could write after the failure
        at_work.extend(path.name for path in tmp_path.iterdir())
        raise OSError("disk full")

    monkeypatch.setattr(type(store), "write", full)
    with pytest.raises(OSError, match="disk full"):
        cs.orbax.save(tmp_path / "0", linen_state, lens)
    assert at_work  # something was being written when it failed
    gc.collect()  # so that they are reported here
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(type(store), "write", write)
    cs.orbax.save(tmp_path / "0", linen_state, lens)
    same(cs.orbax.restore(tmp_path / "0", linen_state, lens), linen_state)


def test_what_is_written_after_the_failure_is_removed_too(
    tmp_path: Path, lens: cs.Lens, linen_state: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late() -> None:
        time.sleep(0.1)
        made[0].mkdir(parents=True)

    writer, made = threading.Thread(target=late), list[Path]()

    def failing(path: Path, *_: Any, **__: Any) -> None:
        made.append(path)
        writer.start()
        raise OSError("disk full")

    monkeypatch.setattr(ocp, "save_checkpointables_async", failing)
    with pytest.raises(OSError, match="disk full"):
        cs.orbax.save(tmp_path / "0", linen_state, lens)
    assert not writer.is_alive()
    assert not list(tmp_path.iterdir())


def test_nothing_is_made_below_a_file(tmp_path: Path, lens: cs.Lens, linen_state: Any) -> None:
    (tmp_path / "file").write_text("a file")
    with pytest.raises(cs.CheckpointExistsError, match="below a file"):
        cs.orbax.save(tmp_path / "file" / "0", linen_state, lens)
    assert (tmp_path / "file").read_text() == "a file"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("dtype", ["uint4", "uint2", "float8_e4m3"])
def test_a_dtype_that_orbax_has_no_place_for_is_named(tmp_path: Path, dtype: str) -> None:
    tree = {"a": {"w": jnp.ones(2, dtype)}, "b": jnp.ones(2)}
    layout = cs.infer(tree)
    assert refused(tmp_path / "0", tree, cs.derive(layout, layout)) == [("a/w", "dtype")]
    with pytest.raises(
        Exception, match="Unsupported data type"
    ):  # when this fails, there is one less to refuse
        ocp.save(tmp_path / "1", tree)
    gc.collect()
