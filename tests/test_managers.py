"""Training loops with Orbax's managers: Linen, then NNX, then Linen, the losses those of a run that never stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as v0
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float32, Int32, UInt32
from orbax.checkpoint import v1
from support.profiles import sampled

import ckpt_schema as cs
from ckpt_schema.demo.corpus import standard_library
from ckpt_schema.demo.linen_gpt import ModelSizes
from ckpt_schema.demo.training import BATCH, Form, LinenForm, NnxForm, make_mesh, make_optimizer

same = cs.assert_trees_identical
SIZES = ModelSizes(embed=16, heads=2, head_dim=8, mlp=16, depth=2, length=8)
LINEN = LinenForm(SIZES, make_optimizer(), scanned=False)
NNX = NnxForm(SIZES, make_optimizer(), scanned=False)
# Checkpoints have a layout that neither run has: layers stacked as Linen scans them.
ON_DISK = LinenForm(SIZES, make_optimizer(), scanned=True).layout
LENSES = {LINEN: cs.derive(ON_DISK, LINEN.layout), NNX: cs.derive(ON_DISK, NNX.layout)}
TEXT = standard_library()
STEPS = 2  # in each run


class Batches:
    """A data iterator: it knows which batch is next."""

    def __init__(self) -> None:
        self.number = 0

    def __next__(self) -> jax.Array:
        self.number += 1
        return jnp.asarray(TEXT.batch(self.number, BATCH, SIZES.length))

    # What a checkpointable of Orbax v1 is.

    async def save(self, directory: Any) -> Any:
        number = self.number

        async def write() -> None:
            folder = await directory.await_creation()
            (folder / "data.json").write_text(json.dumps(number))

        return write()

    async def load(self, directory: Any) -> Any:
        async def read() -> None:
            self.number = json.loads((directory / "data.json").read_text())

        return read()


# --- the loop of a user, with each manager: what they write besides is marked  ---


class Manager(Protocol):
    """What a loop does with a manager."""

    def save(self, step: int, state: Any, lens: cs.Lens, data: Batches) -> None: ...
    def restore(self, step: int, target: Any, lens: cs.Lens, data: Batches) -> Any: ...


@dataclasses.dataclass
class WithV0:
    """A loop with the manager of Orbax's v0 API."""

    manager: v0.CheckpointManager

    def save(self, step: int, state: Any, lens: cs.Lens, data: Batches) -> None:
        items = cs.orbax.items_of(state, lens)  # <- and then each item, in the place of the state
        args = {name: v0.args.StandardSave(tree) for name, tree in items.items()}
        told = v0.args.JsonSave({"next": data.number})
        self.manager.save(step, args=v0.args.Composite(**args, data=told))

    def restore(self, step: int, target: Any, lens: cs.Lens, data: Batches) -> Any:
        has = self.manager.item_metadata(step)
        aux = "nnx_aux" if "nnx_aux" in has else None
        wanted = cs.orbax.abstract_items(target, lens, aux=aux)  # <-
        args = {name: v0.args.StandardRestore(tree) for name, tree in wanted.items()}
        told = v0.args.JsonRestore()
        found = self.manager.restore(step, args=v0.args.Composite(**args, data=told))
        data.number = found["data"]["next"]
        return cs.orbax.state_of(found, target, lens)  # <-


@dataclasses.dataclass
class WithV1:
    """A loop with the checkpointer of Orbax's v1 API."""

    checkpointer: v1.training.Checkpointer
    is_async: bool

    def save(self, step: int, state: Any, lens: cs.Lens, data: Batches) -> None:
        items = cs.orbax.items_of(state, lens)  # <-
        if self.is_async:
            self.checkpointer.save_checkpointables_async(step, {**items, "data": data})
        else:
            self.checkpointer.save_checkpointables(step, {**items, "data": data})

    def restore(self, step: int, target: Any, lens: cs.Lens, data: Batches) -> Any:
        has = self.checkpointer.checkpointables_metadata(step).metadata
        aux = "nnx_aux" if "nnx_aux" in has else None
        wanted = cs.orbax.abstract_items(target, lens, aux=aux)  # <-
        found = self.checkpointer.load_checkpointables(step, {**wanted, "data": data})
        return cs.orbax.state_of(found, target, lens)  # <-


@contextlib.contextmanager
def v0_manager(folder: Path, *, is_async: bool) -> Iterator[Manager]:
    options = v0.CheckpointManagerOptions(max_to_keep=4, enable_async_checkpointing=is_async)
    with v0.CheckpointManager(folder, options=options) as manager:
        yield WithV0(manager)
        manager.wait_until_finished()


@contextlib.contextmanager
def v1_checkpointer(folder: Path, *, is_async: bool) -> Iterator[Manager]:
    with v1.training.Checkpointer(folder) as checkpointer:
        yield WithV1(checkpointer, is_async)


MANAGERS: dict[str, Callable[[Path], Any]] = {
    "v0, sync": lambda folder: v0_manager(folder, is_async=False),
    "v0, async": lambda folder: v0_manager(folder, is_async=True),
    "v1, sync": lambda folder: v1_checkpointer(folder, is_async=False),
    "v1, async": lambda folder: v1_checkpointer(folder, is_async=True),
}


def trained(form: Form, state: Any, data: Batches, count: int) -> tuple[Any, list[float]]:
    losses: list[float] = []
    for _ in range(count):
        state, loss = form.step(state, next(data))
        losses.append(float(loss))
    return state, losses


@pytest.fixture(scope="module")
def mesh() -> Any:
    return make_mesh(1, 1)


@pytest.fixture(scope="module")
def unbroken(mesh: Any) -> list[float]:
    """The losses of a Linen run that never stops."""
    return trained(LINEN, LINEN.start(LINEN.init(), mesh), Batches(), 4 * STEPS)[1]


@pytest.mark.parametrize("name", sampled([*MANAGERS], 3))
def test_a_run_goes_on_in_the_other_framework(
    tmp_path: Path, name: str, mesh: Any, unbroken: list[float]
) -> None:
    runs: list[LinenForm | NnxForm] = [LINEN, NNX, NNX, LINEN]
    losses: list[float] = []
    streams: list[Any] = []
    for number, form in enumerate(runs):
        data = Batches()
        with MANAGERS[name](tmp_path / "run") as manager:
            if number:
                target = form.abstract(mesh)
                state = manager.restore(number * STEPS, target, LENSES[form], data)
                jax.tree.map(lambda x, t: _verify_placed(x, t), state, target)
            else:
                state = LINEN.start(LINEN.init(), mesh)
            if number == 2:  # what Linen has no place for stands beside it
                same(state["model"]["layers"][0]["dropout"], streams[0])
            state, more = trained(form, state, data, STEPS)
            losses += more
            if form is NNX:
                streams.append(jax.tree.map(lambda x: x, state["model"]["layers"][0]["dropout"]))
            manager.save((number + 1) * STEPS, state, LENSES[form], data)
    assert losses == unbroken
    assert (number + 1) * STEPS == data.number


def _verify_placed(leaf: Any, target: Any) -> None:
    assert leaf.sharding == target.sharding


# --- the core, without a manager  ---


class Old(cs.Schema):
    w: Float32[Array, "a b"]
    noise: cs.Key["rbg"]
    step: Int32[Array, ""]


class New(cs.Schema):
    w: Float32[Array, "b a"] = cs.field(key="dense/kernel")
    noise: cs.Key["rbg"] = cs.field(key="rngs/noise")
    step: UInt32[Array, ""]
    dropout: cs.Key["urbg"] = cs.field(key="rngs/dropout", default=cs.fresh_key(0))


SMALL = cs.derive(Old, New)


def new() -> Any:
    keys = {name: jax.random.key(7, impl=impl) for name, impl in _IMPLS.items()}
    kernel = jnp.arange(6, dtype="float32").reshape(3, 2)
    return {"dense": {"kernel": kernel}, "rngs": keys, "step": jnp.uint32(5)}


_IMPLS = {"noise": "rbg", "dropout": "unsafe_rbg"}


def abstract(tree: Any) -> Any:
    mesh = jax.make_mesh((2,), ("x",))
    spread = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=spread), tree)


def test_what_is_asked_for_is_what_is_saved() -> None:
    for state in (new(), SMALL.get(SMALL.put(new())), SMALL.put(new())):
        items = cs.orbax.items_of(state, SMALL)
        wanted = cs.orbax.abstract_items(abstract(state), SMALL)
        assert jax.tree.structure(items) == jax.tree.structure(wanted)
        for asked, saved in zip(jax.tree.leaves(wanted), jax.tree.leaves(items), strict=True):
            assert (asked.shape, asked.dtype) == (saved.shape, saved.dtype)
            assert asked.sharding.mesh.size == 2
        same(cs.orbax.state_of(items, state, SMALL), state)
    assert set(cs.orbax.abstract_items(new(), SMALL, disk_side="view")) == {"state"}


def test_a_state_of_either_side_becomes_the_target() -> None:
    state, target = new(), abstract(new())
    plain = {"state": jax.tree.map(_as_numpy, SMALL.put(state))}
    found = cs.orbax.state_of(plain, target, SMALL)  # without private leaves, by one who has none
    same(found["dense"]["kernel"], jax.device_put(state["dense"]["kernel"], _sharding(target)))
    assert jax.tree.map(lambda x: x.sharding, found) == jax.tree.map(lambda x: x.sharding, target)
    own = cs.orbax.state_of({"state": state, "config": {"lr": 1}}, state, SMALL)
    same(own, state)
    old = cs.orbax.state_of(
        {"run": {"model": state}}, SMALL.put(state), SMALL, item="run", at="model"
    )
    same(old, SMALL.put(state))


def _as_numpy(leaf: Any) -> Any:
    return leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else np.asarray(leaf)


def _sharding(tree: Any) -> Any:
    return jax.tree.leaves(tree)[0].sharding


def test_what_v0_gives_silently_is_an_error() -> None:
    state = SMALL.put(new())
    raw = {**state, "noise": np.asarray(jax.random.key_data(state["noise"]))}
    with pytest.raises(cs.CheckpointMismatchError, match=r"noise .*expected key<rbg>"):
        cs.orbax.state_of({"state": raw}, new(), SMALL)
    longer = {**state, "w": np.zeros((2, 4), "float32")}
    with pytest.raises(cs.CheckpointMismatchError, match="does not fit"):
        cs.orbax.state_of({"state": longer}, abstract(new()), SMALL)
    with pytest.raises(cs.CheckpointMismatchError, match="step"):
        cs.orbax.state_of({"state": {**state, "step": np.int32(-1)}}, new(), SMALL)
    with pytest.raises(cs.CheckpointMismatchError, match=r"say item=, one of model, config"):
        cs.orbax.state_of({"model": state, "config": {}}, new(), SMALL)
    other = {"rngs": {"dropout": jax.random.key(0, impl="rbg")}}
    with pytest.raises(cs.CheckpointMismatchError, match="rngs/dropout"):
        cs.orbax.state_of({"state": state, "nnx_aux": other}, new(), SMALL)


def test_keys_go_as_words_through_managers_that_hold_none(tmp_path: Path) -> None:
    state, target = new(), abstract(new())
    items = cs.orbax.items_of(state, SMALL, raw_keys=True)
    wanted = cs.orbax.abstract_items(target, SMALL, raw_keys=True)
    assert str(items["state"]["noise"].dtype) == "uint32"
    same(items, jax.tree.map(_as_words, cs.orbax.items_of(state, SMALL)))
    assert jax.tree.structure(items) == jax.tree.structure(wanted)
    for asked, saved in zip(jax.tree.leaves(wanted), jax.tree.leaves(items), strict=True):
        assert (asked.shape, asked.dtype) == (saved.shape, saved.dtype)
        assert asked.sharding.mesh.size == 2
    with v0.CheckpointManager(tmp_path) as manager:  # whose PyTreeRestore knows no typed key
        args = {name: v0.args.PyTreeSave(tree) for name, tree in items.items()}
        manager.save(1, args=v0.args.Composite(**args))
        asked = {name: v0.args.PyTreeRestore(tree) for name, tree in wanted.items()}
        found = manager.restore(1, args=v0.args.Composite(**asked))
    again = cs.orbax.state_of(found, target, SMALL, raw_keys=True)
    same(
        jax.tree.map(_as_words, again),
        jax.tree.map(_as_words, jax.device_put(state, _sharding(target))),
    )
    assert jax.random.key_impl(again["rngs"]["dropout"]) == "unsafe_rbg"
    below = cs.orbax.items_of(state, SMALL, at="a/b", raw_keys=True)
    same(cs.orbax.state_of(below, state, SMALL, at="a/b", raw_keys=True), state)
    other = {"state": SMALL.put(state)} | {"nnx_aux": items["nnx_aux"]}  # some are typed
    same(cs.orbax.state_of(other, state, SMALL, raw_keys=True), state)
    of_view = {"state": jax.tree.map(_as_words, state)}
    same(cs.orbax.state_of(of_view, state, SMALL, disk_side="view", raw_keys=True), state)
    with pytest.raises(cs.CheckpointMismatchError, match=r"noise .*expected key<rbg>"):
        shorter = {**items["state"], "noise": jnp.zeros(2, "uint32")}
        cs.orbax.state_of({**items, "state": shorter}, state, SMALL, raw_keys=True)
    with pytest.raises(cs.CheckpointMismatchError, match=r"(?s)rngs/dropout .*raw_keys=True"):
        cs.orbax.state_of({**items, "state": SMALL.put(state)}, state, SMALL)


def _as_words(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


# --- each door of Orbax: what is saved, and what comes back of what is asked for  ---

Door = Callable[[Path, Any, Any], Any]


def by_items(path: Path, items: Any, wanted: Any) -> Any:
    v1.save_checkpointables(path, items)
    return v1.load_checkpointables(path, wanted)


def by_items_async(path: Path, items: Any, wanted: Any) -> Any:
    v1.save_checkpointables_async(path, items).result()
    return v1.load_checkpointables(path, wanted)


def as_one_pytree(path: Path, items: Any, wanted: Any) -> Any:
    v1.save(path, items)
    return v1.load(path, wanted)


def by_arguments(kind: Any) -> Door:
    def door(path: Path, items: Any, wanted: Any) -> Any:
        with kind(v0.CompositeCheckpointHandler()) as checkpointer:
            told = {name: v0.args.StandardSave(tree) for name, tree in items.items()}
            config = {"config": v0.args.JsonSave({"lr": 0.1})}
            checkpointer.save(path, args=v0.args.Composite(**told, **config))
            if kind is v0.AsyncCheckpointer:
                checkpointer.wait_until_finished()
            asked = {name: v0.args.StandardRestore(tree) for name, tree in wanted.items()}
            config = {"config": v0.args.JsonRestore()}
            found = checkpointer.restore(path, args=v0.args.Composite(**asked, **config))
        assert found["config"] == {"lr": 0.1}
        return found

    return door


def by_standard(path: Path, items: Any, wanted: Any) -> Any:
    with v0.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, items)
        checkpointer.wait_until_finished()
        return checkpointer.restore(path, wanted)


DOORS: dict[str, Door] = {
    "save_checkpointables": by_items,
    "save_checkpointables_async": by_items_async,
    "save": as_one_pytree,
    "Checkpointer": by_arguments(v0.Checkpointer),
    "AsyncCheckpointer": by_arguments(v0.AsyncCheckpointer),
    "StandardCheckpointer": by_standard,
}


@pytest.mark.parametrize("name", DOORS)
def test_every_door_takes_items_and_gives_the_state_back(tmp_path: Path, name: str) -> None:
    state, target = new(), abstract(new())
    items = cs.orbax.items_of(state, SMALL)
    found = DOORS[name](tmp_path / "0", items, cs.orbax.abstract_items(target, SMALL))
    expected = jax.device_put(state, _sharding(target))
    same(cs.orbax.state_of(found, target, SMALL), expected)
    if name not in ("save", "StandardCheckpointer"):
        same(cs.orbax.restore(tmp_path / "0", target, SMALL), expected)


def test_a_step_that_takes_the_state_does_not_change_what_is_being_saved(tmp_path: Path) -> None:
    state = {
        "w": jnp.ones((512, 512)),
        "noise": jax.random.key(0, impl="rbg"),
        "step": jnp.int32(1),
    }
    over = jax.jit(lambda w: w * 3, donate_argnums=0)
    lens = cs.derive(Old, Old)
    with v1.training.Checkpointer(tmp_path) as checkpointer:
        manager = WithV1(checkpointer, is_async=True)
        for step in range(3):
            manager.save(step, state, lens, Batches())
            state["w"] = over(state["w"])
            checkpointer.wait()  # a save that meets another one is left out
    for step in range(3):
        found = cs.orbax.restore(tmp_path / str(step), abstract(state), lens)
        assert (np.asarray(found["w"]) == 3**step).all()


# --- the diffs of the page: what is left and added, run as it stands there  ---

PAGE = Path(cs.__file__).parents[1] / "docs" / "on-disk.md"
DIFFS = re.findall(r"(?ms)^With (`[^\n]*?):\n\n```diff\n(.*?)^```$", PAGE.read_text())


def after(diff: str, old: str = "", new: str = "") -> str:
    """The code that a diff makes, of another call of the same form where one is named."""
    lines = [line[2:] for line in diff.splitlines() if not line.startswith("-")]
    return "\n".join(lines).replace(old, new) if old else "\n".join(lines)


@pytest.mark.parametrize("is_async", [False, True])
def test_the_diffs_of_the_page_run(tmp_path: Path, is_async: bool) -> None:
    (in_manager, manager), (in_v0, checkpointer), (in_v1, training) = DIFFS
    assert "CheckpointManager" in in_manager and "AsyncCheckpointer" in in_v0
    assert "training.Checkpointer" in in_v1
    data = Batches()
    data.number = 7
    names: dict[str, Any] = {"cs": cs, "lens": SMALL, "step": 3, "state": new()}
    options = v0.CheckpointManagerOptions(enable_async_checkpointing=is_async)
    with v0.CheckpointManager(tmp_path / "manager", options=options) as made:
        found = {**names, "ocp": v0, "manager": made, "data": {"next": 7}}
        save, _, load = after(manager).partition("\n\n")
        exec(save, found)
        made.wait_until_finished()
        exec(load, found)
    same(found["state"], new())
    assert found["found"]["data"] == {"next": 7}

    handler = v0.CompositeCheckpointHandler()
    kind = v0.AsyncCheckpointer if is_async else v0.Checkpointer
    with kind(handler) as made:
        found = {**names, "ocp": v0, "checkpointer": made, "data": {"next": 7}}
        found["path"] = tmp_path / "v0"
        exec(after(checkpointer), found)
        if isinstance(made, v0.AsyncCheckpointer):
            made.wait_until_finished()
        exec(load.replace("manager.restore(step", "checkpointer.restore(path"), found)
    same(found["state"], new())

    with v1.training.Checkpointer(tmp_path / "v1") as made:
        found = {**names, "ocp": v1, "checkpointer": made, "iterator": data}
        save, _, load = after(training, *(() if is_async else ("_async", ""))).partition("\n\n")
        exec(save, found)
        made.wait()
        found["iterator"] = Batches()
        exec(load, found)
    same(found["state"], new())
    assert found["iterator"].number == 7
