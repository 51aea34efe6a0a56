"""Values with parts: quantized arrays, statistics in one Variable, what `sow` keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn
from flax import nnx, struct
from jaxtyping import Array, Float32, Int8, Int32
from orbax.checkpoint import v1 as ocp

import ckpt_schema as cs
from ckpt_schema.orbax._metadata import read_metadata
from ckpt_schema.testing import _laws as laws


@struct.dataclass
class QArray:
    """A quantized array, as libraries for it have them."""

    qvalue: Any
    scale: Any
    zero_point: Any = None
    qtype: Any = struct.field(pytree_node=False, default=None)

    def __post_init__(self) -> None:
        """Takes its type from its values, whatever they are."""
        if self.qtype is None:
            object.__setattr__(self, "qtype", jnp.dtype(self.qvalue.dtype))


@struct.dataclass
class WithHow:
    """A box that says how its content came to be, which no leaf tells."""

    array: Any
    how: Any = struct.field(pytree_node=False)


class Pair(NamedTuple):
    """Two parts."""

    low: Any
    high: Any


class Stat(nnx.Variable[Any]):
    """A Variable for statistics."""


class QKernel(cs.Schema):
    qvalue: Int8[Array, "inputs outputs"]
    scale: Float32[Array, "1 outputs"]
    zero_point: Int8[Array, "1 outputs"] | None


class Range(cs.Schema):
    low: Float32[Array, ""]
    high: Float32[Array, ""]


class Sum(cs.Schema):
    count: Int32[Array, ""]
    total: Float32[Array, "1 outputs"]


class Sown(cs.Schema):
    first: Float32[Array, "batch outputs"] = cs.field(key="0")


class Layer(cs.Schema):
    kernel: QKernel = cs.field(value=QArray)
    range: Range = cs.field(value=Pair, type=Stat, collection="stats")
    sum: Sum = cs.field(value=dict, type=Stat, collection="stats")


class Net(cs.Schema):
    bias: Float32[Array, " outputs"]
    layers: list[Layer] = cs.field(length="depth")
    hidden: Sown = cs.field(value=tuple, type=nnx.Intermediate, collection="intermediates")


class Stacked(cs.Schema):
    bias: Float32[Array, " outputs"]
    layers: Layer = cs.field(scan="depth")
    hidden: Sown = cs.field(value=tuple, type=nnx.Intermediate, collection="intermediates")


def quantized(seed: int, *lead: int) -> QArray:
    return QArray(jnp.full((*lead, 2, 3), seed, "int8"), jnp.full((*lead, 1, 3), float(seed)))


def linen_state() -> dict[str, Any]:
    stats = {
        "range": Pair(jnp.zeros(2), jnp.ones(2)),
        "sum": {"count": jnp.arange(2), "total": jnp.ones((2, 1, 3))},
    }
    kernel = jax.tree.map(lambda *x: jnp.stack(x), quantized(1), quantized(2))
    return {
        "params": {"layers": {"kernel": kernel}, "bias": jnp.zeros(3)},
        "stats": {"layers": stats},
        "intermediates": {"hidden": (jnp.ones((4, 3)),)},
    }


class NnxLayer(nnx.Module):
    """One Variable for each value."""

    def __init__(self, seed: int) -> None:
        """Makes them."""
        self.kernel = nnx.Param(quantized(seed))
        self.range = Stat(Pair(jnp.float32(0), jnp.float32(1)))
        self.sum = Stat({"count": jnp.int32(seed - 1), "total": jnp.ones((1, 3))})


class NnxNet(nnx.Module):
    """A list of layers, and what one sows."""

    def __init__(self) -> None:
        """Makes the layers and calls them."""
        self.bias = nnx.Param(jnp.zeros(3))
        self.layers = nnx.List([NnxLayer(1), NnxLayer(2)])
        self.hidden = nnx.Intermediate((jnp.ones((4, 3)),))  # as `sow` makes it


LENS = cs.derive(cs.linen.Params[Stacked], cs.nnx.Params[Net])


def test_each_value_is_one_variable_and_one_struct() -> None:
    real, linen = nnx.state(NnxNet()), linen_state()
    assert cs.check(LENS.view, real) == []
    assert cs.check(LENS.source, linen) == []
    cs.assert_trees_identical(LENS.get(linen), real)
    cs.assert_trees_identical(LENS.put(real), linen)
    assert isinstance(LENS.put(real)["params"]["layers"]["kernel"], QArray)


@pytest.mark.parametrize(
    "law", [laws.get_put, laws.put_get, laws.conforms, laws.abstraction, laws.inverse]
)
def test_the_laws_hold(law: Any) -> None:
    trees = {laws.get_put: (linen_state(),), laws.put_get: (nnx.state(NnxNet()),)}
    law(LENS, *trees.get(law, (linen_state(), nnx.state(NnxNet()))))


def test_they_go_through_disk(tmp_path: Path) -> None:
    real, linen = nnx.state(NnxNet()), linen_state()
    for name, state, lens in (("linen", real, LENS), ("nnx", linen, ~LENS)):
        cs.orbax.save(tmp_path / name, state, lens)
        cs.assert_trees_identical(
            nnx.state(cs.orbax.restore(tmp_path / name, NnxNet(), LENS)), real
        )
        cs.assert_trees_identical(cs.orbax.restore(tmp_path / name, linen, LENS), linen)
    assert (
        read_metadata(tmp_path / "linen").tree["params"]["layers"]["kernel"]["zero_point"] is None
    )
    cs.assert_trees_identical(ocp.load(tmp_path / "linen", linen), linen)  # by Orbax alone


class How(cs.Schema):
    array: QKernel = cs.field(value=QArray)


class Boxed(cs.Schema):
    kernel: How = cs.field(value=WithHow)


class Plain(cs.Schema):
    kernel: QKernel = cs.field(key="kernel/array")


def test_what_no_leaf_tells_comes_from_onto_or_is_an_error() -> None:
    tree = {"params": {"kernel": WithHow(quantized(1), "by hand")}}
    lens = cs.derive(
        cs.linen.Params[Plain], cs.linen.Params[Boxed], rules=[cs.rename("kernel", "kernel/array")]
    )
    with pytest.raises(cs.ConformanceError) as caught:
        lens.get(lens.put(tree))
    assert [(fault.path, fault.kind) for fault in caught.value.mismatches] == [
        ("params/kernel", "container")
    ]
    assert "how" in caught.value.mismatches[0].found
    cs.assert_trees_identical(lens.get(lens.put(tree), onto=jax.eval_shape(lambda: tree)), tree)


def test_inferred_layouts_keep_what_no_leaf_tells() -> None:
    state = nnx.State(
        {
            "w": nnx.Param(WithHow(quantized(1), "by hand")),
            "b": nnx.Param([jnp.ones(2), (jnp.zeros(1),)]),
        }
    )
    linen = {"params": {"w": WithHow(quantized(1), "by hand"), "b": [jnp.ones(2), (jnp.zeros(1),)]}}
    lens = cs.derive(cs.infer(linen), cs.infer(state))
    cs.assert_trees_identical(lens.get(linen), state)
    cs.assert_trees_identical(lens.put(state), linen)


def test_a_layout_read_off_a_checkpoint_is_that_of_the_state(tmp_path: Path) -> None:
    state = nnx.state(NnxNet())
    ocp.save(tmp_path / "0", state)
    lens = cs.derive(cs.infer(read_metadata(tmp_path / "0").tree), cs.infer(state))
    cs.assert_trees_identical(cs.orbax.restore(tmp_path / "0", state, lens), state)


class Alone(nn.Module):
    """Sows its input twice."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The input."""
        self.sow("intermediates", "hidden", x)
        return x


class AloneSchema(cs.Schema):
    hidden: Sown = cs.field(
        value=tuple, type=nnx.Intermediate, collection="intermediates", ephemeral=True
    )
    scale: Float32[Array, ""]


def test_what_linen_sows_is_what_nnx_sows() -> None:
    sown = Alone().apply({}, jnp.ones((4, 3)), mutable=["intermediates"])[1]
    tree = {"params": {"scale": jnp.float32(1)}, **sown}
    state = cs.derive(cs.linen.Params[AloneSchema], cs.nnx.Params[AloneSchema]).get(tree)
    assert isinstance(state["hidden"], nnx.Intermediate)
    cs.assert_trees_identical(state["hidden"].get_value(), sown["intermediates"]["hidden"])


class Trained(cs.Schema):
    w: Range = cs.field(value=Pair)
    b: Float32[Array, " n"]


def test_linen_s_optimizers_mirror_the_containers_of_params() -> None:
    tx = optax.masked(optax.adam(1e-3), lambda params: jax.tree.map(lambda x: x.ndim == 0, params))
    params = {"w": Pair(jnp.float32(0), jnp.float32(1)), "b": jnp.ones(3)}
    state = {"step": jnp.int32(0), "params": params, "opt_state": tx.init(params)}
    layout = cs.linen.BareTrainState[Trained, tx]
    cs.assert_trees_identical(cs.derive(layout, layout).get(state), state)


def test_params_with_parts_are_no_params_of_nnx_s_optimizers() -> None:
    with pytest.raises(cs.SchemaError) as caught:
        _ = cs.nnx.TrainState[Trained, optax.adam(1e-3)]
    assert [(fault.path, fault.found) for fault in caught.value.mismatches] == [
        ("w/low", "a part of a Pair"),
        ("w/high", "a part of a Pair"),
    ]


def test_value_is_refused_where_it_means_nothing() -> None:
    with pytest.raises(cs.SchemaError, match="a leaf is a value without parts"):

        class _Leaf(cs.Schema):
            w: Float32[Array, ""] = cs.field(value=dict)

    with pytest.raises(
        cs.SchemaError, match="give value= to the attributes of the schema in the list"
    ):

        class _List(cs.Schema):
            w: list[Range] = cs.field(length="n", value=dict)

    with pytest.raises(cs.SchemaError, match="the class of a container as value=, found 'dict'"):

        class _Word(cs.Schema):
            w: Range = cs.field(value="dict")
