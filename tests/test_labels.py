"""Logical names of axes: Linen's boxes and the metadata of NNX's Variables say the same, and a lens carries it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn
from flax import nnx
from hypothesis import given
from jax.sharding import AxisType
from jaxtyping import Array, Float32
from support.leaf import both_ways
from support.tasks import INVERTIBLE, Case, cases

import ckpt_schema as cs
from ckpt_schema._lens.arrays.step_labels import labelled
from ckpt_schema.orbax._metadata import read_metadata

TX = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
INPUT = jnp.ones((1, 4))


# --- real models  ---


class LinenBlock(nn.Module):
    """A dense layer whose kernel is boxed and whose bias is not."""

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        """The layer."""
        named = nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("embed", "mlp"))
        return nn.Dense(4, kernel_init=named, name="dense")(x), None


class LinenNet(nn.Module):
    """A stack of them after one by itself."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The layers, one after the other."""
        x = nn.Dense(
            4, kernel_init=nn.with_partitioning(nn.initializers.ones, ("in", "embed")), name="first"
        )(x)
        stack = nn.scan(
            LinenBlock,
            variable_axes={"params": 1},
            split_rngs={"params": True},
            length=2,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return stack(name="layers")(x, None)[0]


class NnxBlock(nnx.Module):
    """The same in NNX."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Makes the layer."""
        named = nnx.with_partitioning(nnx.initializers.lecun_normal(), ("embed", "mlp"))
        self.dense = nnx.Linear(4, 4, kernel_init=named, rngs=rngs)


class NnxNet(nnx.Module):
    """The same with a list."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Makes the layers."""
        self.first = nnx.Linear(
            4,
            4,
            kernel_init=nnx.with_partitioning(nnx.initializers.ones, ("in", "embed")),
            rngs=rngs,
        )
        self.layers = nnx.List([NnxBlock(rngs) for _ in range(2)])


class Training(nnx.Module):
    """A model and its optimizer."""

    def __init__(self, tx: optax.GradientTransformation) -> None:
        """Makes both."""
        self.model = NnxNet(nnx.Rngs(0))
        self.optimizer = nnx.Optimizer(self.model, tx, wrt=nnx.Param)


class Dense(cs.Schema):
    kernel: Float32[Array, "embed mlp"]
    bias: Float32[Array, " mlp"]


class Block(cs.Schema):
    dense: Dense


class LinenLayout(cs.Schema):
    first: Dense
    layers: Block = cs.field(scan="depth", axis=1)


class NnxLayout(cs.Schema):
    first: Dense
    layers: list[Block] = cs.field(length="depth")


@contextlib.contextmanager
def mesh() -> Iterator[None]:
    """One over the names that NNX wants to shard by as soon as it makes a Variable."""
    with jax.set_mesh(
        jax.make_mesh(
            (1, 1, 1, 1), ("in", "embed", "mlp", "layers"), axis_types=(AxisType.Auto,) * 4
        )
    ):
        yield


def linen_state(tx: optax.GradientTransformation) -> dict[str, Any]:
    params = LinenNet().init(jax.random.key(0), INPUT)
    return {"step": jnp.int32(0), "params": params, "opt_state": tx.init(params)}


def nnx_state(tx: optax.GradientTransformation, *, eager: bool = True) -> Any:
    with mesh(), nnx.use_eager_sharding(eager):
        return nnx.state(Training(tx))


def said(state: Any) -> dict[Any, Any]:
    """The names on the axes of every Variable that has any."""
    found = {key: leaf.get_metadata().get("out_sharding") for key, leaf in nnx.to_flat_state(state)}
    return {key: names for key, names in found.items() if names}


LENS = cs.derive(cs.linen.TrainState[LinenLayout, TX], cs.nnx.TrainState[NnxLayout, TX])


def test_a_boxed_state_says_in_nnx_what_nnx_says_itself() -> None:
    through, real = LENS.get(linen_state(TX)), nnx_state(TX)
    assert said(through) == said(real)
    assert len(said(real)) == 9  # the params, mu and nu
    first = through["model"]["first"]["kernel"]
    assert jax.tree.structure(first) == jax.tree.structure(real["model"]["first"]["kernel"])


def test_back_in_linen_there_are_the_boxes_again() -> None:
    state = linen_state(TX)
    again = LENS.put(LENS.get(state))
    for box in (state["params"], state["opt_state"][1][0].mu):
        assert box["params"]["layers"]["dense"]["kernel"].names == ("embed", "layers", "mlp")
    for box in (again["params"], again["opt_state"][1][0].mu):
        kernel = box["params"]["layers"]["dense"]["kernel"]
        assert type(kernel) is nn.LogicallyPartitioned
        assert kernel.names == (
            "embed",
            None,
            "mlp",
        )  # NNX has no stack axis, and so no name for it
    assert type(again["params"]["params"]["layers"]["dense"]["bias"]) is not nn.LogicallyPartitioned
    cs.assert_trees_identical(LENS.put(LENS.get(state), onto=state), state)


def test_what_is_not_stacked_keeps_its_box_whole() -> None:
    layout = cs.linen.Params[LinenLayout]
    there = cs.derive(layout, cs.nnx.Params[LinenLayout])
    params = linen_state(TX)["params"]
    cs.assert_trees_identical(there.put(there.get(params)), params)


@pytest.mark.parametrize("name", ["adafactor", "muon", "lbfgs"])
def test_what_mirrors_the_params_says_what_they_say(name: str) -> None:
    tx = {
        "adafactor": optax.adafactor(1e-3),
        "muon": optax.contrib.muon(1e-3),
        "lbfgs": optax.lbfgs(1e-3),
    }[name]
    given_ = ({"embed": 4, "mlp": 4, "depth": 2},) if name == "adafactor" else ()
    layouts = (
        cs.linen.TrainState[(NnxLinenLayout, tx, *given_)],
        cs.nnx.TrainState[(NnxLayout, tx, *given_)],
    )
    params = {"params": unrolled(linen_state(TX)["params"]["params"])}
    state = {"step": jnp.int32(0), "params": params, "opt_state": tx.init(params)}
    lens, real = (
        cs.derive(*layouts),
        nnx_state(tx, eager=False),
    )  # NNX would shard factors as if they had the param's axes
    assert said(lens.get(state)) == said(real)
    cs.assert_trees_identical(lens.put(lens.get(state)), state)


class NnxLinenLayout(cs.Schema):
    """Linen without a scan: named as the list of NNX is."""

    first: Dense
    layers: list[Block] = cs.field(key="layers_{i}", length="depth")


def unrolled(params: dict[str, Any]) -> dict[str, Any]:
    kernel = nn.Partitioned(jnp.ones((4, 4)), ("embed", "mlp"))
    return {
        "first": params["first"],
        **{f"layers_{i}": {"dense": {"kernel": kernel, "bias": jnp.ones(4)}} for i in range(2)},
    }


def test_a_mesh_in_context_moves_nothing() -> None:
    state = linen_state(TX)
    with jax.set_mesh(jax.make_mesh((4, 2), ("embed", "mlp"), axis_types=(AxisType.Auto,) * 2)):
        through = LENS.get(state)
    assert (
        through["model"]["first"]["kernel"].get_value()
        is state["params"]["params"]["first"]["kernel"].value
    )


# --- on disk  ---


def test_a_save_writes_boxes_only_onto_boxes(tmp_path: Path) -> None:
    boxed, state = linen_state(TX), nnx_state(TX)
    cs.orbax.save(tmp_path / "plain", state, LENS)
    cs.orbax.save(tmp_path / "boxed", state, LENS, onto=boxed)
    assert not isinstance(
        read_metadata(tmp_path / "plain").tree["params"]["params"]["first"]["kernel"], dict
    )
    assert isinstance(
        read_metadata(tmp_path / "boxed").tree["params"]["params"]["first"]["kernel"], dict
    )
    for name in ("plain", "boxed"):
        for target in (state, boxed, nn.unbox(boxed)):
            restored = cs.orbax.restore(tmp_path / name, target, LENS)
            wanted = state if target is state else LENS.put(state, onto=target)
            cs.assert_trees_identical(
                jax.tree.map(gathered, restored), jax.tree.map(gathered, wanted)
            )


def gathered(x: Any) -> Any:
    return jax.device_put(x, jax.devices()[0])


# --- names that do not fit  ---


class Kernel(cs.Schema):
    kernel: Float32[Array, "embed mlp"]


class Turned(cs.Schema):
    kernel: Float32[Array, "mlp embed"]


class Kernels(cs.Schema):
    layers: list[Kernel] = cs.field(length="depth")


class Stacked(cs.Schema):
    layers: Kernel = cs.field(scan="depth", axis=-1)


def named(*names: Any) -> nn.Partitioned[Any]:
    return nn.Partitioned(jnp.ones((2, 3)), names=names)


def test_names_follow_their_axes() -> None:
    lens = cs.derive(cs.linen.Params[Kernel], cs.nnx.Params[Turned])
    for names, turned in (
        (("a", "b"), ("b", "a")),
        (("a",), (None, "a")),
        ((("a", "c"), None), (None, ("a", "c"))),
    ):
        state = lens.get({"params": {"kernel": named(*names)}})
        assert state["kernel"].get_metadata()["out_sharding"] == turned


def test_more_names_than_axes_are_an_error() -> None:
    lens = cs.derive(cs.linen.Params[Kernel], cs.nnx.Params[Turned])
    with pytest.raises(cs.ConformanceError) as caught:
        lens.get({"params": {"kernel": named("a", "b", "c")}})
    assert str(caught.value) == (
        "the names of axes do not fit linen.Params[Kernel]: 1 fault\n"
        "  params/kernel/value  expected 2 names, for float32[embed mlp], found ('a', 'b', 'c')\n"
        "                       -> one name for each axis"
    )


@pytest.mark.parametrize(
    "other", [named("a", "c"), jnp.ones((2, 3))], ids=["another name", "no name"]
)
def test_a_stack_of_unlike_names_is_an_error(other: Any) -> None:
    lens = cs.derive(cs.linen.Params[Kernels], cs.nnx.Params[Stacked])
    state = {"params": {"layers": {0: {"kernel": named("a", "b")}, 1: {"kernel": other}}}}
    with pytest.raises(cs.ConformanceError, match="expected one set of names, found "):
        lens.get(state)


@given(case=cases(INVERTIBLE))
def test_there_is_a_name_for_every_axis(case: Case) -> None:
    before = [tuple(f"name{i}" for i in range(len(kind.shape))) for kind in case.task.inputs]
    after = labelled(case.task, before)
    assert [len(names) for names in after] == [len(kind.shape) for kind in case.task.results]


def test_names_that_only_move_come_back() -> None:
    sizes = {"a": 2, "b": 3, "c": 4}
    there, back = both_ways("a b c", "c a b", sizes)
    assert labelled(there, [("x", "y", "z")]) == [("z", "x", "y")]
    assert labelled(back, labelled(there, [("x", "y", "z")])) == [("x", "y", "z")]


class Apart(cs.Schema):
    kernel: Float32[Array, "embed heads dim"]


class Merged(cs.Schema):
    kernel: Float32[Array, "embed heads*dim"]


class Across(cs.Schema):
    kernel: Float32[Array, "heads*embed dim"]


@pytest.mark.parametrize(
    ("embed", "heads", "dim"), [(3, 2, 2), (1, 2, 2), (3, 1, 2), (3, 2, 1), (1, 2, 1)]
)
def test_names_do_not_depend_on_sizes(embed: int, heads: int, dim: int) -> None:
    """A factor of one element is one that has a name, and stands where it is declared; of two no stride tells which."""
    whole = nn.Partitioned(jnp.ones((embed, heads * dim)), names=("embed", "heads"))
    sizes = {"embed": embed, "heads": heads, "dim": dim}
    for view, names in ((Apart, ("embed", "heads", None)), (Across, (("heads", "embed"), None))):
        lens = cs.derive(Merged, view).bind(**sizes)
        assert lens.get({"kernel": whole})["kernel"].names == names
    parted = nn.Partitioned(jnp.ones((embed, heads, dim)), names=("embed", "heads", "dim"))
    lens = cs.derive(Apart, Across).bind(**sizes)
    assert lens.get({"kernel": parted})["kernel"].names == (("heads", "embed"), "dim")
