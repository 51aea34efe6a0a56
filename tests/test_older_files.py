"""What old releases of Flax and Orbax have written is read, or it is said what to pass instead; see tests/older/write.py."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization
from flax.training.train_state import TrainState
from older.values import STEP, params
from support.profiles import sampled

import ckpt_schema as cs

ARCHIVES = Path(__file__).parent / "older"
TX = optax.adam(1e-3)

PACKED = ["to_bytes", "flax_legacy/checkpoint_7"]
FOLDERS = [
    "flax_on_orbax/checkpoint_7",
    "pytree",
    "pytree_files",
    "pytree_database",
    "aggregated",
    "standard",
    "manager/7",
]
MANAGED = ["manager_of_args/7", "manager_composite/7"]
STATES = {
    "0.3.5": [*PACKED, *FOLDERS],
    "0.5.3": [*PACKED, *FOLDERS, *MANAGED],
    "0.11.0": [*PACKED, *FOLDERS, *MANAGED, "pytree_zarr3", "pytree_zarr3_files"],
}
CASES = [(release, form) for release, forms in STATES.items() for form in forms]
MODULES = ["0.5.3", "0.11.0"]


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("older")
    for archive in ARCHIVES.glob("orbax-*.tar.xz"):
        name = archive.name.removesuffix(".tar.xz").removeprefix("orbax-")
        with tarfile.open(archive) as packed:
            packed.extractall(folder / name, filter="data")
    return folder


def like(times: float) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(x) * times, params())


def state() -> TrainState:
    """The state that was written."""
    whole = TrainState.create(apply_fn=None, params=like(1), tx=TX)
    adam = whole.opt_state[0]._replace(count=jnp.int32(STEP), mu=like(2), nu=like(3))
    return whole.replace(step=STEP, opt_state=(adam, *whole.opt_state[1:]))


def empty() -> TrainState:
    """One that has none of its values."""
    return TrainState.create(apply_fn=None, params=like(0), tx=TX)


@pytest.mark.parametrize(("release", "form"), CASES)
def test_a_train_state_is_restored(archives: Path, release: str, form: str) -> None:
    cs.assert_trees_identical(cs.orbax.restore(archives / release / form, empty()), state())


@pytest.mark.parametrize(("release", "form"), sampled(CASES, 4))
def test_what_is_loaded_has_the_bits_that_were_written(
    archives: Path, release: str, form: str
) -> None:
    found = cs.orbax.load(archives / release / form)
    assert found["step"] == STEP
    cs.assert_trees_identical(found["params"], like(1))
    part = cs.orbax.load(archives / release / form, only="params/dense/*")
    cs.assert_trees_identical(part, {"params": {"dense": like(1)["dense"]}})


@pytest.mark.parametrize("release", STATES)
def test_some_leaves_in_one_file_and_others_in_arrays(archives: Path, release: str) -> None:
    found = cs.orbax.load(archives / release / "aggregated_partly")
    cs.assert_trees_identical(found["params"], like(1))
    cs.assert_trees_identical(found["scale"], like(2))


@pytest.mark.parametrize("release", STATES)
def test_a_state_in_several_items_of_a_step(archives: Path, release: str) -> None:
    step = archives / release / "manager_of_items" / "step_7"
    items = {"params": "params"}
    found = cs.orbax.restore(step, empty(), items=items, rules=(), item="rest")
    cs.assert_trees_identical(found, state())


@pytest.mark.parametrize("release", STATES)
@pytest.mark.parametrize(
    ("root", "step"),
    [("flax_legacy", "checkpoint_7"), ("manager", "7"), ("manager_of_items", "step_7")],
)
def test_a_directory_of_checkpoints_names_them(
    archives: Path, release: str, root: str, step: str
) -> None:
    folder = archives / release / root
    with pytest.raises(cs.CheckpointMismatchError) as error:
        cs.orbax.restore(folder, empty())
    assert f"pass one of them: {folder / step}" in error.value.mismatches[0].hint


def test_a_layout_is_read_off_an_older_file(archives: Path) -> None:
    layouts = [cs.infer(archives / "0.3.5" / form) for form in ("pytree", "to_bytes")]
    for table in layouts:
        assert {row.path for row in table.rows} == {row.path for row in cs.infer(state()).rows}


def test_it_goes_where_the_target_is(archives: Path) -> None:
    mesh = jax.make_mesh((2,), ("x",))
    sharding = jax.NamedSharding(mesh, jax.P("x"))
    for form in ("pytree", "to_bytes", "aggregated"):
        part = cs.orbax.load(archives / "0.3.5" / form, only="**/kernel", sharding=sharding)
        cs.assert_trees_identical(
            part["params"]["dense"]["kernel"],
            jax.device_put(params()["dense"]["kernel"], sharding),
        )


def test_what_is_not_whole_is_named(archives: Path, tmp_path: Path) -> None:
    data = (archives / "0.3.5" / "to_bytes").read_bytes()
    for number in (1, 40, len(data) - 1):
        cut = tmp_path / str(number)
        cut.write_bytes(data[:number])
        with pytest.raises(cs.CheckpointMismatchError, match="a msgpack file of Flax: no tree"):
            cs.orbax.load(cut)
    shutil.copytree(archives / "0.3.5" / "pytree", tmp_path / "lost")
    shutil.rmtree(tmp_path / "lost" / "params.dense.kernel")
    with pytest.raises(cs.CheckpointMismatchError, match=r"dense\.kernel"):
        cs.orbax.load(tmp_path / "lost")


def test_arrays_of_several_processes_beside_a_packed_file(tmp_path: Path) -> None:
    tree = {"w": "//GDAPlaceholder:w", "b": np.zeros(2)}
    (tmp_path / "packed").write_bytes(serialization.to_bytes(tree))
    with pytest.raises(cs.CheckpointMismatchError, match="in a folder beside it"):
        cs.orbax.load(tmp_path / "packed")


def test_an_item_of_a_file_that_has_none(archives: Path) -> None:
    with pytest.raises(cs.CheckpointMismatchError, match="leave item= out"):
        cs.orbax.load(archives / "0.3.5" / "to_bytes", item="state")


def test_files_of_older_releases_are_not_converted(archives: Path, tmp_path: Path) -> None:
    for form in ("to_bytes", "pytree"):
        with pytest.raises(cs.CheckpointMismatchError, match="restore it, and save"):
            cs.orbax.convert(archives / "0.3.5" / form, tmp_path / "new", empty())
    assert not [*tmp_path.iterdir()]


ARRAYS = [case for case in CASES if case[1] not in PACKED and case[0] != "0.3.5"]
ARRAYS = [case for case in ARRAYS if case[0] != "0.5.3" or case[1] not in FOLDERS[::4]]


@pytest.mark.parametrize(("release", "form"), sampled([("0.3.5", "standard"), *ARRAYS], 5))
def test_arrays_of_every_age_are_converted(
    archives: Path, tmp_path: Path, release: str, form: str
) -> None:
    own = like(0)
    own["mlp"] = own.pop("dense")
    target = TrainState.create(apply_fn=None, params=own, tx=TX)
    rules = [cs.rename("dense", "mlp")]
    source = archives / release / form
    done = cs.orbax.convert(source, tmp_path / "new", target, rules=rules, verify=True)
    assert not done.rewritten
    found = cs.orbax.restore(tmp_path / "new", target)
    cs.assert_trees_identical(found.opt_state[0].nu["mlp"], like(3)["dense"])
    assert found.step == STEP


# --- modules  ---


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.dense = nnx.Linear(2, 3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)


class Training(nnx.Module):
    def __init__(self) -> None:
        self.model = Net(nnx.Rngs(1))
        self.optimizer = nnx.Optimizer(self.model, TX, wrt=nnx.Param)


@pytest.mark.parametrize("release", MODULES)
def test_an_optimizer_that_held_its_module(archives: Path, release: str) -> None:
    training = Training()
    assert cs.orbax.restore(archives / release / "module", training) is training
    found = nnx.to_pure_dict(nnx.state(training))
    adam = found["optimizer"]["opt_state"][0]
    for times, node in ((1, found["model"]), (2, adam["mu"]), (3, adam["nu"])):
        expected = jax.tree.map(lambda x: x.astype("float32"), like(times)["dense"])
        cs.assert_trees_identical(node["dense"], expected)
    stream = found["model"]["dropout"]["rngs"]
    counts = [found["optimizer"]["step"], adam["count"], stream["count"]]
    assert [int(count) for count in counts] == [STEP, STEP, STEP]
    raw = cs.orbax.load(archives / release / "module", only="**/key/*")
    own = raw["model"]["dropout"]["rngs"]["default"]["key"]
    assert np.array_equal(jax.random.key_data(stream["key"]), next(iter(own.values())))
