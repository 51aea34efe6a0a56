"""Restoring real train states that Orbax wrote: every container, both sides of the lens, other meshes, and what is refused."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax_models as models
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as orbax_v0
import pytest
from etils import epath
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from jaxtyping import Array, Float32
from orbax.checkpoint import v1 as ocp
from support.profiles import sampled

import ckpt_schema as cs
from ckpt_schema.orbax import RestoreTimes

TX = models.OPTIMIZERS["chain schedule"]
BYTES = "/jax/orbax/read/worker/io/requested/gbytes"
same = cs.assert_trees_identical


@functools.cache
def lens() -> cs.Lens:
    """Linen's scanned train state to the unrolled one of NNX."""
    return cs.derive(
        cs.linen.TrainState[models.ScannedSchema, TX], cs.nnx.TrainState[models.NnxSchema, TX]
    )


@functools.cache
def weights() -> cs.Lens:
    """The same for weights alone."""
    return cs.derive(cs.linen.Params[models.ScannedSchema], cs.nnx.Params[models.NnxSchema])


@functools.cache
def mesh(*shape: int) -> Mesh:
    return jax.make_mesh(shape, ("x", "y"), axis_types=(AxisType.Auto,) * len(shape))


def sharded(tree: Any, on: Mesh) -> Any:
    """The tree spread over a mesh: each leaf over as many axes as its shape allows, each mesh axis once."""

    def place(leaf: Any) -> Any:
        leaf = jnp.int32(leaf) if isinstance(leaf, int) else leaf
        free, spec = [*on.axis_names], []
        for size in leaf.shape:
            spec.append(next((name for name in free if size % on.shape[name] == 0), None))
            free = [name for name in free if name != spec[-1]]
        return jax.device_put(leaf, NamedSharding(on, PartitionSpec(*spec)))

    return jax.tree.map(place, tree)


def abstract(tree: Any) -> Any:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
        sharded(tree, mesh(2, 4)),
    )


def bare(tree: Any) -> Any:
    """Shapes and dtypes alone, as ``jax.eval_shape`` gives them."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.asarray(x).dtype), tree)


def placed_like(tree: Any, target: Any) -> Any:
    return jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), tree, target)


def blank(tree: Any) -> Any:
    """The tree with other values everywhere, so that a leaf which is not restored shows."""
    return jax.tree.map(lambda x: jax.random.fold_in(x, 1) if is_key(x) else x * 0 - 1, tree)


def is_key(leaf: Any) -> bool:
    return not isinstance(leaf, int) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


@functools.cache
def linen_state() -> TrainState:
    return models.linen_state(TX)


@functools.cache
def nnx_state() -> Any:
    """A state whose streams were drawn from."""

    def drawn(leaf: Any) -> Any:
        if is_key(leaf):
            return jax.random.fold_in(leaf, 9)
        return leaf + jnp.asarray(3, leaf.dtype) if leaf.dtype == jnp.uint32 else leaf

    return jax.tree.map(drawn, models.nnx_state(TX))


CHECKPOINTS: dict[str, Callable[[], Any]] = {
    "linen": linen_state,
    "bare": lambda: models.linen_state(TX, bare=True),
    "weights": lambda: linen_state().params,
    "nnx": nnx_state,
    "pure": lambda: nnx.to_pure_dict(nnx_state()),
    "nnx weights": lambda: nnx_state()["model"],
    "linen on a mesh": lambda: sharded(linen_state(), mesh(4, 2)),
    "nnx on a mesh": lambda: sharded(nnx_state(), mesh(4, 2)),
}


class Disk:
    """One checkpoint of each kind, as users write them, with Orbax alone; each is saved when it is first asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __truediv__(self, name: str) -> Path:
        if not (self.root / name).exists():
            ocp.save(self.root / name, CHECKPOINTS[name]())
        return self.root / name


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Disk:
    return Disk(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What Orbax is asked to load, call by call."""
    asked: list[Any] = []
    load = ocp.load

    def spy(path: Any, wanted: Any, **options: Any) -> Any:
        asked.append(wanted)
        return load(path, wanted, **options)

    monkeypatch.setattr(ocp, "load", spy)
    return asked


@pytest.fixture
def read_bytes() -> Iterator[Callable[[], int]]:
    """How many bytes of arrays Orbax has read since it was asked last."""
    seen: list[float] = []

    def listen(event: str, value: float, **_: Any) -> None:
        if event == BYTES:
            seen.append(value)

    def total() -> int:
        found = round(sum(seen) * 2**30)
        seen.clear()
        return found

    jax.monitoring.register_scalar_listener(listen)
    yield total
    jax.monitoring.unregister_scalar_listener(listen)


def size(tree: Any) -> int:
    """The bytes of a tree's arrays."""
    return sum(jnp.asarray(x).nbytes for x in jax.tree.leaves(tree))


# --- every container, both ways  ---


@pytest.mark.parametrize("saved", sampled(["linen", "linen on a mesh"], 2, start=1))
def test_linen_into_every_container_of_nnx(disk: Disk, saved: str) -> None:
    target = sharded(blank(nnx_state()), mesh(2, 4))
    expected = placed_like(lens().get(linen_state(), onto=target), target)
    same(cs.orbax.restore(disk / saved, target, lens()), expected)
    pure = cs.orbax.restore(disk / saved, nnx.to_pure_dict(target), lens())
    same(pure, nnx.to_pure_dict(expected))


@pytest.mark.parametrize("saved", sampled(["nnx", "pure", "nnx on a mesh"], 3))
def test_nnx_into_every_container_of_linen(disk: Disk, saved: str) -> None:
    target = sharded(blank(linen_state()), mesh(2, 4))
    expected = placed_like(lens().put(nnx_state(), onto=target), target)
    same(cs.orbax.restore(disk / saved, target, lens()), expected)
    as_dict = {"step": target.step, "params": target.params, "opt_state": target.opt_state}
    result = cs.orbax.restore(disk / saved, as_dict, lens())
    same(
        result, {"step": expected.step, "params": expected.params, "opt_state": expected.opt_state}
    )
    on_disk = cs.orbax.restore(disk / saved, models.on_disk(target), lens())
    same(on_disk, models.on_disk(expected))


@pytest.mark.parametrize("saved", ["linen", "linen on a mesh"])
def test_the_same_layout_into_another_container(disk: Disk, saved: str) -> None:
    target = sharded(blank(linen_state()), mesh(2, 4))
    expected = placed_like(linen_state(), target)
    for side in (lens(), ~lens()):
        same(cs.orbax.restore(disk / saved, target, side), expected)
    same(cs.orbax.restore(disk / saved, models.on_disk(target), lens()), models.on_disk(expected))


@pytest.mark.parametrize("saved", ["nnx", "pure", "nnx on a mesh"])
def test_t9_the_same_layout_of_nnx_keeps_streams_and_int_keys(disk: Disk, saved: str) -> None:
    target = sharded(blank(nnx_state()), mesh(2, 4))
    expected = placed_like(nnx_state(), target)
    restored = cs.orbax.restore(disk / saved, target, lens())
    same(restored, expected)
    assert list(restored["model"]["layers"]) == [0, 1, 2]  # on disk they are strings
    same(
        cs.orbax.restore(disk / saved, nnx.to_pure_dict(target), lens()), nnx.to_pure_dict(expected)
    )


def test_abstract_targets_say_where_leaves_go(disk: Disk) -> None:
    target = abstract(nnx_state())
    same(
        cs.orbax.restore(disk / "linen on a mesh", target, lens()),
        placed_like(lens().get(linen_state()), target),
    )
    state = abstract(linen_state())
    result = cs.orbax.restore(disk / "nnx on a mesh", state, lens())
    assert isinstance(result, TrainState)
    same(state_of(result), placed_like(lens().put(nnx_state()), state_of(state)))


def state_of(state: TrainState) -> Any:
    return {"step": state.step, "params": state.params, "opt_state": state.opt_state}


def test_a_module_is_updated_and_returned(disk: Disk) -> None:
    module = models.nnx_module(TX)
    expected = lens().get(linen_state(), onto=nnx.state(module))
    assert cs.orbax.restore(disk / "linen", module, lens()) is module
    same(nnx.state(module), expected)
    logits = models.Decoder().apply(linen_state().params, models.TOKENS)
    np.testing.assert_allclose(module.model(models.TOKENS), logits, rtol=1e-5, atol=1e-6)


def test_an_abstract_module_is_filled(disk: Disk) -> None:
    module = nnx.eval_shape(lambda: models.NnxTrainState(models.NnxDecoder(nnx.Rngs(0)), TX))
    restored = cs.orbax.restore(disk / "linen", module, lens())
    same(nnx.state(restored), lens().get(linen_state(), onto=bare(nnx_state())))


def test_leaves_without_a_sharding(disk: Disk) -> None:
    plain = cs.orbax.restore(disk / "linen on a mesh", bare(nnx_state()), lens())
    assert {leaf.sharding for leaf in jax.tree.leaves(plain)} == {
        SingleDeviceSharding(jax.devices()[0])
    }
    target = bare(linen_state())
    kernel = target.params["params"]["head"]["kernel"]
    split = NamedSharding(mesh(2, 4), PartitionSpec("y"))
    target.params["params"]["head"]["kernel"] = jax.ShapeDtypeStruct(
        kernel.shape, kernel.dtype, sharding=split
    )
    mixed = cs.orbax.restore(disk / "linen", target, lens())
    assert mixed.params["params"]["head"]["kernel"].sharding == split
    assert mixed.params["params"]["head"]["bias"].sharding == NamedSharding(
        mesh(2, 4), PartitionSpec()
    )


# --- numbers  ---


@pytest.mark.parametrize(
    "saved", ["linen", "linen on a mesh"]
)  # the first has the number 7, the second an int32[]
def test_a_step_is_what_the_target_has(disk: Disk, saved: str) -> None:
    number = cs.orbax.restore(disk / saved, models.linen_state(TX), lens()).step
    assert type(number) is int and number == 7
    array = cs.orbax.restore(disk / saved, abstract(linen_state()), lens()).step
    assert array.dtype == jnp.int32 and array == 7 and array.sharding.mesh == mesh(2, 4)
    view = cs.orbax.restore(disk / saved, abstract(nnx_state()), lens())["optimizer"][
        "step"
    ].get_raw_value()
    assert view.dtype == jnp.uint32 and view == 7 and view.sharding.mesh == mesh(2, 4)


def test_an_nnx_step_becomes_a_number(disk: Disk) -> None:
    step = cs.orbax.restore(disk / "nnx", models.linen_state(TX), lens()).step
    assert type(step) is int and step == nnx_state()["optimizer"]["step"].get_raw_value()


@pytest.mark.parametrize("step", [-1, jnp.int32(-1)])
def test_t4_a_step_out_of_range_is_an_error(tmp_path: Path, step: Any) -> None:
    ocp.save(tmp_path / "0", linen_state().replace(step=step))
    with pytest.raises(cs.CheckpointMismatchError, match=r"step .*values of uint32 .*found -1"):
        cs.orbax.restore(tmp_path / "0", models.nnx_state(TX), lens())


def test_a_number_that_the_dtype_cannot_hold_is_an_error(tmp_path: Path) -> None:
    ocp.save(
        tmp_path / "0", linen_state().replace(step=2**40)
    )  # Orbax would load it into an int32 as 0
    with pytest.raises(
        cs.CheckpointMismatchError, match=r"step .*int32.*found Python int 1099511627776"
    ):
        cs.orbax.restore(tmp_path / "0", abstract(linen_state()), lens())


# --- private leaves  ---


def test_private_leaves_come_from_a_concrete_target_or_from_defaults(disk: Disk) -> None:
    kept = cs.orbax.restore(disk / "linen", nnx_state(), lens())
    same(kept["model"]["layers"][0]["dropout"], nnx_state()["model"]["layers"][0]["dropout"])
    target = abstract(nnx_state())
    made = cs.orbax.restore(disk / "linen", target, lens())
    default = placed_like(lens().get(linen_state()), target)
    stream = made["model"]["layers"][0]["dropout"]["rngs"]
    assert stream["count"].get_raw_value() == 0
    same(made["model"]["layers"][0]["dropout"], default["model"]["layers"][0]["dropout"])
    assert stream["key"].get_raw_value().dtype == jax.random.key(0).dtype


def test_what_the_target_has_no_place_for_is_not_read(
    disk: Disk, read_bytes: Callable[[], int]
) -> None:
    cs.orbax.restore(disk / "nnx", bare(linen_state()), lens())
    streams = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(nnx_state()["model"])
        if "rngs" in str(path)
    ]
    assert len(streams) == 4 * models.DEPTH
    assert read_bytes() == size(nnx_state()) - size(streams)


# --- weights alone  ---


@pytest.mark.parametrize("saved", ["linen", "bare", "weights", "nnx", "nnx weights"])
def test_weights_alone_are_found_wherever_they_are(
    disk: Disk, saved: str, read_bytes: Callable[[], int]
) -> None:
    params, model = linen_state().params, nnx_state()["model"]
    target = nnx.state(models.nnx_decoder(), nnx.Param)
    expected = (
        weights().get(params, onto=target)
        if "nnx" not in saved
        else nnx.filter_state(model, nnx.Param)
    )
    same(cs.orbax.restore(disk / saved, target, weights()), expected)
    assert read_bytes() == size(params)  # neither moments nor streams
    same(
        cs.orbax.restore(disk / saved, params, weights()),
        params if "nnx" not in saved else weights().put(expected),
    )


@pytest.mark.parametrize("saved", ["bare", "weights", "nnx"])
def test_bare_weights_too(disk: Disk, saved: str) -> None:
    inner = cs.derive(cs.linen.BareParams[models.ScannedSchema], cs.nnx.Params[models.NnxSchema])
    restored = cs.orbax.restore(disk / saved, linen_state().params["params"], inner)
    if saved != "nnx":
        same(restored, linen_state().params["params"])


def test_weights_into_a_module_leave_its_streams(disk: Disk) -> None:
    model = models.nnx_decoder()
    before = nnx.state(model, nnx.RngState)
    cs.orbax.restore(disk / "linen", model, weights())
    same(nnx.state(model, nnx.RngState), before)
    same(
        nnx.state(model, nnx.Param),
        weights().get(linen_state().params, onto=nnx.state(model, nnx.Param)),
    )


def test_streams_that_nothing_fills_are_an_error(disk: Disk, loads: list[Any]) -> None:
    layout = cs.infer(nnx_state()["model"])
    streams = [row for row in layout.rows if "rngs" in row.key]
    assert streams
    with pytest.raises(cs.CheckpointMismatchError, match="rngs/key"):
        cs.orbax.restore(
            disk / "weights", abstract(nnx_state()["model"]), cs.derive(layout, layout)
        )
    assert not loads


# --- one metadata read  ---


@pytest.mark.parametrize(
    ("saved", "target"), [("linen", nnx_state), ("linen", linen_state), ("nnx", linen_state)]
)
def test_one_metadata_read_is_added_to_what_a_load_does(
    disk: Disk,
    saved: str,
    target: Callable[[], Any],
    loads: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[str] = []
    read = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda self: opened.append(self.name) or read(self))

    class Counting(type(epath.Path())):  # type: ignore[misc]
        def read_text(self, *args: Any, **options: Any) -> str:
            opened.append(self.name)
            return super().read_text(*args, **options)

    with ocp.Context(file_options=ocp.options.FileOptions(path_class=Counting)):
        cs.orbax.restore(disk / saved, target(), lens())
        assert opened.count("_METADATA") == 2 and len(loads) == 1
        opened.clear()
        ocp.load(disk / saved, loads[0])
        assert opened.count("_METADATA") == 1


def test_the_same_layout_is_not_translated(disk: Disk) -> None:
    through = cs.derive(lens().source, lens().view)
    cs.orbax.restore(disk / "nnx", nnx_state(), through)
    cs.orbax.restore(disk / "linen", linen_state(), through)
    assert "_forward" not in vars(through) and "_backward" not in vars(
        through
    )  # neither direction was ever set up


def test_times_are_told(disk: Disk) -> None:
    told: list[RestoreTimes] = []
    cs.orbax.restore(disk / "linen", abstract(nnx_state()), lens(), times=told.append)
    (times,) = told
    assert min(times.metadata, times.read, times.lens) > 0


# --- what is refused, before a byte is read  ---


def refused(
    path: Path, target: Any, through: cs.Lens, loads: list[Any]
) -> cs.CheckpointMismatchError:
    """The error of a restore that must read nothing and change nothing."""
    before = jax.tree.leaves(nnx.state(target) if isinstance(target, nnx.Module) else target)
    with pytest.raises(cs.CheckpointMismatchError) as caught:
        cs.orbax.restore(path, target, through)
    assert not loads
    after = jax.tree.leaves(nnx.state(target) if isinstance(target, nnx.Module) else target)
    assert all(a is b for a, b in zip(before, after, strict=True))
    assert str(path) in str(caught.value)
    return caught.value


def faults(error: cs.CkptSchemaError) -> list[tuple[str, str]]:
    return [(fault.path, fault.kind) for fault in error.mismatches]


def test_a_checkpoint_of_neither_side_shows_the_nearest_diff(
    tmp_path: Path, loads: list[Any]
) -> None:
    params: Any = {"params": {**linen_state().params["params"]}}
    params["params"]["heads"] = params["params"].pop("head")
    ocp.save(tmp_path / "0", linen_state().replace(params=params))
    error = refused(tmp_path / "0", models.nnx_module(TX), lens(), loads)
    assert "neither nnx.TrainState[NnxSchema] nor linen.TrainState[ScannedSchema]" in str(error)
    assert faults(error) == [
        ("params/params/head/bias", "missing"),
        ("params/params/head/kernel", "missing"),
        ("params/params/heads/bias", "extra"),
        ("params/params/heads/kernel", "extra"),
    ]
    assert all("near: params/params/head" in fault.hint for fault in error.mismatches)


def test_a_target_of_neither_side_is_an_error(disk: Disk) -> None:
    with pytest.raises(cs.ConformanceError, match="the target conforms to neither"):
        cs.orbax.restore(disk / "linen", linen_state().params, lens())


def test_another_size_is_an_error_that_names_every_leaf(disk: Disk, loads: list[Any]) -> None:
    target = bare(nnx_state())
    target["model"]["layers"] = nnx.State({i: target["model"]["layers"][i] for i in range(2)})
    for mirror in ("mu", "nu"):
        del target["optimizer"]["opt_state"][1][0][mirror]["layers"][2]
    error = refused(disk / "linen", target, lens(), loads)
    assert {kind for _, kind in faults(error)} == {"shape"} and len(faults(error)) > 20
    assert "depth=2" in str(error)


def test_t6_a_missing_leaf_is_an_error(tmp_path: Path, loads: list[Any]) -> None:
    state = models.on_disk(nnx_state())
    del state["model"]["layers"]["1"]["wi"]["bias"]
    ocp.save(tmp_path / "0", state)
    for target in (nnx_state(), abstract(nnx_state()), linen_state(), models.nnx_module(TX)):
        assert faults(refused(tmp_path / "0", target, lens(), loads)) == [
            ("model/layers/1/wi/bias", "missing")
        ]


def test_an_extra_leaf_is_an_error(tmp_path: Path, loads: list[Any]) -> None:
    state = models.on_disk(nnx_state())
    ocp.save(tmp_path / "0", {**state, "to_nnx__rngs": {"count": jnp.uint32(3)}})
    assert faults(refused(tmp_path / "0", linen_state(), lens(), loads)) == [
        ("to_nnx__rngs/count", "extra")
    ]


class Noisy(nnx.Module):
    """A layer with dropout whose stream has keys of one implementation."""

    def __init__(self, impl: str) -> None:
        rngs = nnx.Rngs(params=0, dropout=jax.random.key(7, impl=impl))
        self.linear = nnx.Linear(3, 4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)


IMPLS = ("threefry2x32", "rbg", "unsafe_rbg")


def noisy(impl: str) -> tuple[Any, cs.Lens]:
    """The state of a `Noisy`, and the lens from its layout to itself."""
    state = nnx.state(Noisy(impl))
    layout = cs.infer(state)
    return state, cs.derive(layout, layout)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_key_keeps_its_implementation(tmp_path: Path, impl: str) -> None:
    state, through = noisy(impl)
    ocp.save(tmp_path / "0", state)
    same(cs.orbax.restore(tmp_path / "0", noisy(impl)[0], through), state)


@pytest.mark.parametrize("saved", IMPLS)
@pytest.mark.parametrize("wanted", IMPLS)
def test_t1_a_key_of_another_implementation_is_an_error(
    tmp_path: Path, saved: str, wanted: str, loads: list[Any]
) -> None:
    if saved == wanted:
        return
    ocp.save(tmp_path / "0", noisy(saved)[0])
    error = refused(tmp_path / "0", *noisy(wanted), loads)
    assert faults(error) == [("dropout/rngs/key/value", "impl")]


@pytest.mark.parametrize("impl", IMPLS)
def test_t2_a_key_where_raw_data_is_wanted_and_back_is_an_error(
    tmp_path: Path, impl: str, loads: list[Any]
) -> None:
    keyed, through = noisy(impl)
    raw = jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, keyed)
    ocp.save(tmp_path / "keys", keyed)
    ocp.save(tmp_path / "data", raw)
    layout = cs.infer(raw)
    assert faults(refused(tmp_path / "keys", raw, cs.derive(layout, layout), loads)) == [
        ("dropout/rngs/key/value", "dtype")
    ]
    assert faults(refused(tmp_path / "data", keyed, through, loads)) == [
        ("dropout/rngs/key/value", "dtype")
    ]


@pytest.mark.parametrize(
    ("stored", "wanted"), [("float32", "int8"), ("float32", "bfloat16"), ("int32", "float32")]
)
def test_t5_another_dtype_is_an_error(
    tmp_path: Path, stored: str, wanted: str, loads: list[Any]
) -> None:
    state = jax.tree.map(lambda x: x.astype(stored), nnx.state(nnx.Linear(3, 4, rngs=nnx.Rngs(0))))
    ocp.save(tmp_path / "0", state)
    target = jax.tree.map(lambda x: x.astype(wanted), state)
    layout = cs.infer(target)
    error = refused(tmp_path / "0", target, cs.derive(layout, layout), loads)
    assert faults(error) == [("bias/value", "dtype"), ("kernel/value", "dtype")]


def test_all_faults_come_at_once(tmp_path: Path, loads: list[Any]) -> None:
    state, through = noisy("rbg")
    stored = models.on_disk(state)
    stored["dropout"]["rngs"]["key"]["value"] = jax.random.key(0, impl="unsafe_rbg")
    stored["linear"]["kernel"]["value"] = jnp.zeros((3, 5))
    stored["linear"]["weight"] = stored["linear"].pop("bias")
    ocp.save(tmp_path / "0", stored)
    assert sorted(faults(refused(tmp_path / "0", state, through, loads))) == [
        ("dropout/rngs/key/value", "impl"),
        ("linear/bias", "missing"),
        ("linear/kernel/value", "shape"),
        ("linear/weight/value", "extra"),
    ]


# --- what Orbax's older API has written  ---


def test_checkpoints_of_the_v0_api(tmp_path: Path) -> None:
    orbax_v0.PyTreeCheckpointer().save(tmp_path / "pytree", linen_state())
    with orbax_v0.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "standard", nnx_state())
    with orbax_v0.CheckpointManager(tmp_path / "run") as manager:
        manager.save(3, args=orbax_v0.args.StandardSave(state_of(linen_state())))
    target = abstract(nnx_state())
    expected = placed_like(lens().get(linen_state()), target)
    same(cs.orbax.restore(tmp_path / "pytree", target, lens()), expected)
    same(cs.orbax.restore(tmp_path / "run" / "3", target, lens()), expected)
    same(cs.orbax.restore(tmp_path / "standard", target, lens()), placed_like(nnx_state(), target))


def test_the_step_of_a_v1_checkpointer(tmp_path: Path) -> None:
    with ocp.training.Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(3, linen_state())
    same(cs.orbax.restore(tmp_path / "3", linen_state(), lens()), linen_state())


# --- targets that ask for what cannot be had  ---


def test_a_mesh_without_devices_needs_one_in_context(disk: Disk, loads: list[Any]) -> None:
    target = nnx.state(models.nnx_module(TX))
    own = jax.sharding.AbstractMesh((2, 4), ("x", "y"))
    spread = NamedSharding(own, PartitionSpec())
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=spread), target)
    with pytest.raises(cs.ConformanceError, match=r"found no mesh") as caught:
        cs.orbax.restore(disk / "linen", target, lens())
    assert len(caught.value.mismatches) == len(jax.tree.leaves(target))
    with (
        jax.set_mesh(mesh(4, 2)),
        pytest.raises(cs.ConformanceError, match=r"found \{'x': 4, 'y': 2\}"),
    ):
        cs.orbax.restore(disk / "linen", target, lens())
    assert not loads


def test_dims_that_one_side_alone_has_do_not_disturb_a_load_of_the_other(tmp_path: Path) -> None:
    class Fused(cs.Schema):
        qkv: Float32[Array, "3*heads*size"]

    class Split(cs.Schema):
        qkv: Float32[Array, "3 heads size"] = cs.field(key="attention/qkv")

    through = cs.derive(Fused, Split, dims={"heads": 2})
    fused = {"qkv": jnp.arange(24.0)}
    for name, tree in (("fused", fused), ("split", through.get(fused))):
        ocp.save(tmp_path / name, tree)
        cs.assert_trees_identical(cs.orbax.restore(tmp_path / name, fused, through), fused)
        cs.assert_trees_identical(
            cs.orbax.restore(tmp_path / name, through.get(fused), through), through.get(fused)
        )


def test_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    tree = {"w": jnp.arange(3.0)}
    same = cs.derive(cs.infer(tree), cs.infer(tree))
    for path in ("here", "a/../below/there", "~/home", Path("as a path")):
        cs.orbax.save(path, tree, same)
        cs.assert_trees_identical(cs.orbax.restore(path, tree, same), tree)
    assert {p.name for p in tmp_path.iterdir()} == {"here", "below", "home", "as a path"}
