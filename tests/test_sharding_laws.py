"""The laws on sharded leaves: shardings are what the lens makes of shardings, on every mesh, and no leaf is gathered."""

from __future__ import annotations

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
from support.chains import Case, cases
from support.profiles import examples

import ckpt_schema as cs
from ckpt_schema import leaves
from ckpt_schema.demo import schemas
from ckpt_schema.dims import parse_dims
from ckpt_schema.lens import execute
from ckpt_schema.lens.axes import Entries
from ckpt_schema.lens.edits import Chain
from ckpt_schema.lens.rearranged import Rearrange
from ckpt_schema.lens.stacks import Stack, Unstack
from ckpt_schema.testing import laws
from ckpt_schema.testing.containers import LINEN, NNX
from ckpt_schema.testing.meshes import MESHES, Sharded, mesh, shardings
from ckpt_schema.testing.states import bound, makers

pytestmark = pytest.mark.filterwarnings("ignore::ckpt_schema.ShardingWarning")
SEEDS = st.integers(0, 2**32 - 1)
ON = st.sampled_from(MESHES)
SHARDED = cases(Rearrange, Unstack, Stack, length=2, sizes=(2, 4, 8))
each_mesh = pytest.mark.parametrize(
    "on", [mesh(*m) for m in MESHES], ids=[f"{shape} {kind.name}" for shape, kind in MESHES]
)


# --- Single edits  ---


@each_mesh
@examples(0.2)
@given(case=SHARDED, pick=SEEDS)
def test_edits_of_sharded_leaves(on: Mesh, case: Case, pick: int) -> None:
    inputs = case.inputs(functools.partial(jax.device_put, device=_pick(on, case.shape, pick)))
    results = execute.edit(case.chain, inputs, case.needed, case.leaf, [None] * case.results)
    abstract = [leaves.abstract(x) for x in inputs]
    foretold = execute.edit(case.chain, abstract, case.needed, case.leaf, [None] * case.results)
    laws.identical(foretold, [leaves.abstract(x) for x in results])
    plain = execute.edit(
        case.chain, case.inputs(jnp.asarray), case.needed, case.leaf, [None] * case.results
    )
    laws.identical(laws.gathered(results), plain)
    again = execute.edit(~case.chain, results, case.needed, case.leaf, inputs)
    laws.identical(again, inputs)


@pytest.mark.parametrize("dtype", ["complex64", "float32", "bfloat16", "float8_e5m2"])
def test_a_signalling_nan_that_is_sliced_between_devices_keeps_its_payload(dtype: str) -> None:
    bits = {"float8_e5m2": np.uint8(0x7D), "bfloat16": np.uint16(0x7F81)}.get(
        dtype, np.uint32(0x7F800001)
    )
    value = np.full(8 if dtype == "complex64" else 4, bits).view(dtype)
    placed = jax.device_put(value, NamedSharding(mesh((4, 2), AxisType.Auto), PartitionSpec("x")))
    results = execute.edit(
        Chain((Unstack(0, (4,)),)), [placed], {}, leaves.Leaf(((4,),), dtype), [None] * 4
    )
    cs.assert_trees_identical([np.asarray(x) for x in results], [value[i, ...] for i in range(4)])


def _pick(on: Mesh, shape: tuple[int, ...], pick: int) -> NamedSharding:
    found = shardings(on, shape)
    return found[pick % len(found)]


@examples(8)
@given(case=cases(Rearrange, Unstack, Stack, length=3, sizes=(1, 2, 3, 4, 8)), on=ON, pick=SEEDS)
def test_no_mesh_axis_is_dropped_that_another_axis_could_take(
    case: Case, on: Any, pick: int
) -> None:
    ways = dict(mesh(*on).shape)
    before = _entries(_pick(mesh(*on), case.shape, pick), len(case.shape))
    several, shapes = [before] * case.arity, [case.shape] * case.arity
    for edit in case.chain.edits:
        (entries,) = set(several)
        several = edit.entries(several, shapes, case.sizes, ways)
        shapes = edit.shapes(shapes, case.sizes)
        (shape,), (after,) = set(shapes), set(several)
        used = [axis for group in after for axis in group]
        assert len(after) == len(shape) and len(set(used)) == len(used)
        shards = [
            size // math.prod(ways[a] for a in group)
            for size, group in zip(shape, after, strict=True)
        ]
        assert all(
            size % math.prod(ways[a] for a in group) == 0
            for size, group in zip(shape, after, strict=True)
        )
        for axis in {a for group in entries for a in group} - set(used):
            assert not any(length and length % ways[axis] == 0 for length in shards), (
                f"{edit} drops {axis}"
            )
    assert (
        case.chain.entries([before] * case.arity, [case.shape] * case.arity, case.sizes, ways)
        == several
    )


def _entries(sharding: NamedSharding, rank: int) -> Entries:
    spec = (*sharding.spec, *[None] * (rank - len(sharding.spec)))
    return tuple(
        () if axes is None else axes if isinstance(axes, tuple) else (axes,) for axes in spec
    )


@pytest.mark.parametrize(
    ("chain", "before", "after"),
    [
        ("embed heads*dim -> heads dim embed", "x|y", "y||x"),
        ("embed heads*dim -> heads dim embed", "|x,y", "x|y|"),
        ("embed 3*heads -> 3 heads embed", "x|y", "|y|x"),
        ("heads dim embed -> embed heads*dim", "y||x", "x|y"),
        ("embed mlp -> mlp embed", "x|y", "y|x"),
        ("unstack depth", "x||y", "x|y"),
        ("unstack depth", "|x|", "|x"),
        ("unstack depth", "y|x|", "y|x"),
        ("stack depth", "x|y", "x||y"),
    ],
)
def test_mesh_axes_follow_their_dims(chain: str, before: str, after: str) -> None:
    sizes, ways = {"embed": 8, "heads": 4, "dim": 8, "mlp": 16, "depth": 4}, {"x": 4, "y": 2}
    source, _, view = chain.partition(" -> ")
    edit = (
        Rearrange(parse_dims(source), parse_dims(view))
        if view
        else (Unstack if source[0] == "u" else Stack)(1, ("depth",))
    )
    dims = parse_dims(
        source if view else "embed depth mlp" if isinstance(edit, Unstack) else "embed mlp"
    )
    shape = tuple(math.prod(sizes.get(f, f) for f in dim) for dim in dims)  # type: ignore[call-overload,misc]
    groups: list[Entries] = [
        tuple(tuple(filter(None, g.split(","))) for g in text.split("|"))
        for text in (before, after)
    ]
    count = edit.takes(sizes)
    assert set(edit.entries([groups[0]] * count, [shape] * count, sizes, ways)) == {groups[1]}


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
    laws.identical(laws.gathered(traced), laws.gathered(at.lens.get(s)))


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
        through.get(laws.abstract(state))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cs.assert_trees_identical(laws.gathered(through.get(state, onto=view)), laws.gathered(view))
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
    laws.identical(laws.gathered(restored), laws.gathered(through.put(listed)))


def _share(tree: Any) -> int:
    """The elements of a tree that one device holds."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(tree))
