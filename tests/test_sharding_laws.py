"""The laws on sharded leaves: shardings are what the lens makes of shardings, on every mesh, and no leaf is gathered."""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float32
from orbax.checkpoint import v1 as ocp
from support import drawn, models
from support.leaf import both_ways, run
from support.profiles import examples
from support.tasks import INVERTIBLE, Case, cases, inverse

import ckpt_schema as cs
from ckpt_schema._layouts import leaves
from ckpt_schema._lens.arrays import execution
from ckpt_schema._lens.arrays.axes import Entries
from ckpt_schema._lens.arrays.shardings import results
from ckpt_schema.demo import schemas
from ckpt_schema.testing import _laws as laws
from ckpt_schema.testing._container_kinds import LINEN, NNX
from ckpt_schema.testing._meshes import MESHES, Sharded, all_shardings, mesh
from ckpt_schema.testing._states import bound, makers

pytestmark = pytest.mark.filterwarnings("ignore::ckpt_schema.ShardingWarning")
SEEDS = st.integers(0, 2**32 - 1)
ON = st.sampled_from(MESHES)
SHARDED = cases(dataclasses.replace(INVERTIBLE, sizes=(2, 4, 8), pads=False, codecs=False))
each_mesh = pytest.mark.parametrize(
    "on", [mesh(*m) for m in MESHES], ids=[f"{shape} {kind.name}" for shape, kind in MESHES]
)


# --- Single leaves  ---


@each_mesh
@examples(0.1)
@given(case=SHARDED, pick=SEEDS)
def test_tasks_on_sharded_leaves(on: Mesh, case: Case, pick: int) -> None:
    task = case.task

    def place(value: Any) -> Any:
        return jax.device_put(value, _pick(on, value.shape, pick))

    inputs = case.values(place)
    results = run(task, inputs)
    foretold = run(task, [leaves.abstract(x) for x in inputs])
    laws.identical(foretold, [leaves.abstract(x) for x in results])
    plain = run(task, case.values(jnp.asarray))
    laws.identical(laws.gathered_leaves(results), plain)
    again = execution.run(inverse(task), results, inputs)
    laws.identical(again, inputs)


@pytest.mark.parametrize("dtype", ["complex64", "float32", "bfloat16", "float8_e5m2"])
def test_a_signalling_nan_that_is_sliced_between_devices_keeps_its_payload(dtype: str) -> None:
    bits = {"float8_e5m2": np.uint8(0x7D), "bfloat16": np.uint16(0x7F81)}.get(
        dtype, np.uint32(0x7F800001)
    )
    value = np.full(8 if dtype == "complex64" else 4, bits).view(dtype)
    placed = jax.device_put(value, NamedSharding(mesh((4, 2), AxisType.Auto), PartitionSpec("x")))
    task, _ = both_ways("", "", {"depth": 4}, dtype=dtype, stacked=(0, None))
    cs.assert_trees_identical(
        [np.asarray(x) for x in run(task, [placed])], [value[i, ...] for i in range(4)]
    )


def _pick(on: Mesh, shape: tuple[int, ...], pick: int) -> NamedSharding:
    found = all_shardings(on, shape)
    return found[pick % len(found)]


@examples(8)
@given(case=cases(dataclasses.replace(INVERTIBLE, sizes=(1, 2, 3, 4, 8))), on=ON, pick=SEEDS)
def test_no_mesh_axis_is_dropped_that_another_axis_could_take(
    case: Case, on: Any, pick: int
) -> None:
    ways = dict(mesh(*on).shape)
    given_ = [
        jax.ShapeDtypeStruct(kind.shape, "float32", sharding=_pick(mesh(*on), kind.shape, pick))
        for kind in case.task.inputs
    ]
    before = {axis for value in given_ for axis in _used(value.sharding)}
    for kind, after in zip(case.task.results, results(case.task, given_), strict=True):
        entries = _entries(after, len(kind.shape))
        used = _used(after)
        assert len(set(used)) == len(used)
        shards: list[int] = []
        for size, group in zip(kind.shape, entries, strict=True):
            shards.append(size // math.prod(ways[axis] for axis in group))
            assert size % math.prod(ways[axis] for axis in group) == 0
        for axis in before - set(used):
            assert not any(length and length % ways[axis] == 0 for length in shards), axis


def _used(sharding: NamedSharding) -> list[str]:
    return [axis for group in _entries(sharding, len(sharding.spec)) for axis in group]


def _entries(sharding: NamedSharding, rank: int) -> Entries:
    spec = (*sharding.spec, *[None] * (rank - len(sharding.spec)))
    return tuple(
        () if axes is None else axes if isinstance(axes, tuple) else (axes,) for axes in spec
    )


@pytest.mark.parametrize(
    ("dims", "stacked", "before", "after"),
    [
        ("embed heads*dim -> heads dim embed", None, "x|y", "y||x"),
        ("embed heads*dim -> heads dim embed", None, "|x,y", "x|y|"),
        ("embed 3*heads -> 3 heads embed", None, "x|y", "|y|x"),
        ("heads dim embed -> embed heads*dim", None, "y||x", "x|y"),
        ("embed mlp -> mlp embed", None, "x|y", "y|x"),
        ("embed mlp -> embed mlp", (1, None), "x||y", "x|y"),
        ("embed mlp -> embed mlp", (1, None), "|x|", "|x"),
        ("embed mlp -> embed mlp", (1, None), "y|x|", "y|x"),
        ("embed mlp -> embed mlp", (None, 1), "x|y", "x||y"),
    ],
)
def test_mesh_axes_follow_their_dims(dims: str, stacked: Any, before: str, after: str) -> None:
    sizes = {"embed": 8, "heads": 4, "dim": 8, "mlp": 16, "depth": 4}
    task, _ = both_ways(*dims.split(" -> "), sizes, stacked=stacked)
    on = mesh((4, 2), AxisType.Auto)
    names = dict(zip("xy", on.axis_names, strict=True))
    groups: list[Entries] = [
        tuple(tuple(names[n] for n in g.split(",") if n) for g in text.split("|"))
        for text in (before, after)
    ]
    spec = PartitionSpec(*(group or None for group in groups[0]))
    values = [
        jax.ShapeDtypeStruct(kind.shape, "float32", sharding=NamedSharding(on, spec))
        for kind in task.inputs
    ]
    found = results(task, values)
    rank = len(task.results[0].shape)
    assert {_entries(each, rank) for each in found} == {groups[1]}


# --- Whole lenses  ---


@functools.cache
def lens(number: int) -> cs.Lens:
    """Of weights alone: what a train state has besides is sharded no differently."""
    source, view, sizes = (
        (models.LinenDecoder, models.NnxDecoder, models.SIZES[0]),
        (schemas.LinenScanned, schemas.NnxUnrolled, models.DEMO_SIZES[0]),
    )[number]
    return bound(cs.derive(cs.linen.Params[source], cs.nnx.Params[view]), sizes)


class Meshes:
    """A lens with its states: sources on one mesh, views on another."""

    def __init__(
        self, number: int, on: tuple[Any, Any], containers: tuple[str, str], seed: int
    ) -> None:
        """Keeps what was drawn."""
        self.lens, self.on, self.seed = lens(number), tuple(mesh(*m) for m in on), seed
        self.containers = (
            {"dict": LINEN["dict"], "orbax": LINEN["orbax"]}[containers[0]],
            NNX[containers[1]],
        )
        self.text = f"lens {number} on {on} in {containers}, seed {seed}"

    def __repr__(self) -> str:
        """What was drawn."""
        return self.text

    def states(self, *sides: int) -> list[Any]:
        """One random state for each number of a side."""
        rng = np.random.default_rng(self.seed)
        made = makers(self.lens.dims, self.lens.source, self.lens.view)
        return [
            self.containers[side](made[side](rng, Sharded(self.on[side], self.seed % 3)))
            for side in sides
        ]


WEIGHTS = st.builds(
    Meshes,
    st.integers(0, 1),
    st.tuples(ON, ON),
    st.tuples(st.sampled_from(["dict", "orbax"]), st.sampled_from(list(NNX))),
    SEEDS,
)


def placement(at: Meshes) -> None:
    """What is made or edited goes where ``onto`` has it, or else is a global array on the mesh of the rest."""
    s, v = at.states(0, 1)
    for value in jax.tree.leaves(at.lens.get(s)):
        assert value.sharding.device_set == set(at.on[0].devices.flat)
    moved = {id(x) for x in jax.tree.leaves(s)}
    for value, like in zip(
        jax.tree.leaves(at.lens.get(s, onto=v)), jax.tree.leaves(v), strict=True
    ):
        assert id(value) in moved or value.sharding == like.sharding


@pytest.mark.parametrize(
    "law",
    [
        drawn.get_put,
        drawn.put_get,
        drawn.put_put,
        drawn.get_get,
        drawn.abstraction,
        drawn.sharing,
        drawn.inverse,
        placement,
    ],
    ids=lambda law: law.__name__,
)
@examples(0.15)
@given(at=WEIGHTS)
def test_sharded_weights(law: Callable[[Meshes], None], at: Meshes) -> None:
    law(at)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda kind: kind.name)
def test_sharded_train_state(kind: AxisType) -> None:
    whole = bound(models.to_nnx(), models.SIZES[0])
    source, view = makers(models.SIZES[0], whole.source, whole.view)
    rng = np.random.default_rng(0)
    s, v = source(rng, Sharded(mesh((4, 2), kind))), view(rng, Sharded(mesh((2, 4), kind)))
    laws.get_put(whole, LINEN["TrainState"](s))
    laws.put_get(whole, v)
    laws.abstraction(whole, s, v)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda kind: kind.name)
def test_edits_under_a_trace(kind: AxisType) -> None:
    at = Meshes(0, (((4, 2), kind), ((4, 2), kind)), ("dict", "State"), 0)
    (s,) = at.states(0)
    with jax.set_mesh(at.on[0]):
        traced = jax.jit(at.lens.get)(s)
    laws.identical(laws.gathered_leaves(traced), laws.gathered_leaves(at.lens.get(s)))


class Noise(cs.Schema):
    key: cs.Key["urbg"]


class NoiseStacked(cs.Schema):
    layers: Noise = cs.field(scan="depth", axis=0)


class NoiseListed(cs.Schema):
    layers: list[Noise] = cs.field(length="depth")


def test_typed_keys_on_a_mesh_of_one_device_that_have_the_spec_of_their_words() -> None:
    one = Mesh(np.array(jax.devices()[:1]), ("x",), axis_types=(AxisType.Auto,))
    words = jnp.arange(16, dtype=jnp.uint32).reshape(4, 4)
    placed = jax.device_put(words, NamedSharding(one, PartitionSpec("x", None)))
    keys = jax.random.wrap_key_data(placed, impl="unsafe_rbg")
    assert len(keys.sharding.spec) == keys.ndim + 1  # what this is about: red if jax changes
    listed = cs.derive(NoiseStacked, NoiseListed).get({"layers": {"key": keys}})
    for number in range(4):
        key = listed["layers"][number]["key"]
        assert key.dtype == keys.dtype
        np.testing.assert_array_equal(jax.random.key_data(key), words[number])
    stacked = cs.derive(NoiseStacked, NoiseListed).put(listed)
    np.testing.assert_array_equal(jax.random.key_data(stacked["layers"]["key"]), words)


# --- What cannot be kept  ---


class Layer(cs.Schema):
    w: Float32[Array, "a b"]
    g: Float32[Array, " b"]


class Stacked(cs.Schema):
    layers: Layer = cs.field(scan="depth", axis=0)


class Listed(cs.Schema):
    layers: list[Layer] = cs.field(length="depth")


def _stacked(on: Mesh, w: PartitionSpec, g: PartitionSpec) -> Any:
    put = functools.partial(jax.device_put, device=NamedSharding(on, w))
    return {
        "layers": {
            "w": put(jnp.ones((4, 3, 6))),
            "g": jax.device_put(jnp.ones((4, 6)), NamedSharding(on, g)),
        }
    }


def test_a_mesh_axis_that_no_axis_of_the_result_can_take_is_told_of() -> None:
    on = mesh((4, 2), AxisType.Auto)
    through = cs.derive(Stacked, Listed)
    state = _stacked(on, PartitionSpec("x", None, "y"), PartitionSpec("x"))
    with pytest.warns(cs.ShardingWarning) as caught:
        view = through.get(state)
    (warning,) = caught
    assert str(warning.message) == (
        "2 edited leaves take more memory than their source: give their shardings by onto=\n"
        "  layers/w  sharded over x, which no axis of float32[3 6] divides by: each device of it holds all of it\n"
        "  layers/g  sharded over x, which no axis of float32[6] divides by: each device of it holds all of it"
    )
    assert view["layers"][0]["w"].sharding.spec == PartitionSpec(None, "y")
    with pytest.warns(cs.ShardingWarning, match="layers/w  sharded over x"):
        through.get(laws.abstract_like(state))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cs.assert_trees_identical(
            laws.gathered_leaves(through.get(state, onto=view)), laws.gathered_leaves(view)
        )
        through.get(_stacked(on, PartitionSpec(None, None, "y"), PartitionSpec(None, "y")))


def test_a_restore_tells_of_it_and_no_device_reads_more_than_its_share_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on, through = mesh((4, 2), AxisType.Auto), cs.derive(Stacked, Listed)
    listed = through.get(_stacked(on, PartitionSpec(None, None, "y"), PartitionSpec(None, "y")))
    ocp.save(tmp_path / "list", listed)
    target = jax.tree.map(
        leaves.abstract, _stacked(on, PartitionSpec("x", None, "y"), PartitionSpec("x", "y"))
    )
    with pytest.warns(cs.ShardingWarning, match="layers/w  sharded over x"):
        made = cs.orbax.restore(tmp_path / "list", target, through)
    assert made["layers"]["w"].sharding.spec == PartitionSpec("x", None, "y")
    other = mesh((2, 4), AxisType.Auto)
    fits = jax.tree.map(
        leaves.abstract, _stacked(other, PartitionSpec(None, None, "x"), PartitionSpec(None, "x"))
    )
    asked: list[Any] = []
    real = ocp.load

    def load(path: Any, wanted: Any, **options: Any) -> Any:
        asked.append(wanted)
        return real(path, wanted, **options)

    monkeypatch.setattr(ocp, "load", load)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=cs.ShardingWarning)
        restored = cs.orbax.restore(tmp_path / "list", fits, through)
    assert 0 < _share(asked[0]) <= _share(fits), "no device reads more than it is to hold"
    laws.identical(laws.gathered_leaves(restored), laws.gathered_leaves(through.put(listed)))


def _share(tree: Any) -> int:
    """The elements of a tree that one device holds."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(tree))
