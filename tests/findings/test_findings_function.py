"""What the law suite says of lenses that are right, and of models that are not the same function."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis.errors import FlakyFailure
from jaxtyping import Array, Float32

import ckpt_schema as cs
from ckpt_schema.testing import BrokenLawError, Law, check_laws
from ckpt_schema.testing import _laws as laws
from ckpt_schema.testing._suite import Options, check_law


class Torch(cs.Schema):
    kernel: Float32[Array, "outputs inputs"] = cs.field(key="weight")


class Plain(cs.Schema):
    kernel: Float32[Array, "inputs outputs"]


# --- 2.8  ---


@pytest.mark.parametrize("side", ["view", "source"])
def test_2_8_a_module_may_be_given_for_a_plain_schema(side: str) -> None:
    weights = {"weight": np.arange(6, dtype=np.float32).reshape(3, 2)}
    module = nnx.Linear(2, 3, use_bias=False, rngs=nnx.Rngs(0))
    lens = cs.derive(Torch, Plain)
    given: dict[str, Any] = {"source": weights, "view": module}
    if side == "source":
        lens, given = ~lens, {"source": module, "view": weights}
    check_laws(lens, ["Declaration"], **given)
    wrong = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    with pytest.raises(BrokenLawError, match="bias"):
        check_laws(lens, ["Declaration"], **given | {side: wrong})


def test_2_8_types_are_asked_for_where_the_layout_declares_them() -> None:
    lens = cs.derive(cs.linen.BareParams[Torch], cs.nnx.Params[Plain])
    module = nnx.Linear(2, 3, use_bias=False, rngs=nnx.Rngs(0))
    check_laws(lens, ["Declaration"], view=module)
    module.kernel = nnx.BatchStat(module.kernel.get_value())
    with pytest.raises(BrokenLawError, match=r"expected nnx\.Param, or a class of it"):
        check_laws(lens, ["Declaration"], view=module)


# --- 2.17  ---


class One(cs.Schema):
    table: Float32[Array, "vocab embed"]


class Two(One):
    head: Float32[Array, "vocab embed"]


class Turned(One):
    head: Float32[Array, "embed vocab"]


class Three(Two):
    other: Float32[Array, "vocab embed"]


def tied(many: type[cs.Schema], *copies: str) -> cs.Lens:
    return cs.derive(many, One, rules=[cs.tie(copy, "table") for copy in copies])


TIED = {
    "two": tied(Two, "head"),
    "one": ~tied(Two, "head"),
    "a copy that is turned": tied(Turned, "head"),
    "three": tied(Three, "head", "other"),
}


@pytest.mark.parametrize("name", TIED)
def test_2_17_leaves_that_are_tied_share_one_object(name: str) -> None:
    check_laws(TIED[name], ["Sharing"], max_examples=15, shrinking=0.0)


def test_2_17_a_tied_leaf_that_is_copied_is_still_found() -> None:
    class Copying(cs.Lens):
        def get(self, s: Any, onto: Any = None, *, donate: bool = False, drop: bool = False) -> Any:
            return jax.tree.map(np.array, super().get(s, onto, drop=drop))

    right = TIED["two"]
    lens = Copying(right.source, right.view, right.joins)
    tables = np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32)
    s, v = {"table": tables[0], "head": tables[0].copy()}, {"table": tables[1]}
    laws.sharing(right, s, v)
    with pytest.raises(laws.LawError, match=r"table +expected that of table or head, the object"):
        laws.sharing(lens, s, v)


class Heads(cs.Schema):
    out: Float32[Array, "heads head_dim embed"]


class Merged(cs.Schema):
    out: Float32[Array, "heads*head_dim embed"]


class Scanned(cs.Schema):
    layers: Heads = cs.field(scan="depth", axis=0)


class Listed(cs.Schema):
    layers: list[Merged] = cs.field(length="depth")


SIZES = {"depth": 4, "heads": 2, "head_dim": 2, "embed": 2}


def test_2_17_what_no_axis_of_a_layer_takes_goes_to_the_axis_of_the_stack() -> None:
    lens = cs.derive(Scanned, Listed, dims=SIZES)
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("y", "x"))
    values = np.arange(32, dtype=np.float32).reshape(4, 4, 2)
    layers = [{"out": jax.device_put(x, spec)} for x in values]
    made = lens.put({"layers": layers})["layers"]["out"]
    assert made.sharding.spec == jax.sharding.PartitionSpec("y", None, None, "x")
    np.testing.assert_array_equal(made, values.reshape(4, 2, 2, 2))
    back = lens.get({"layers": {"out": made}})["layers"]
    assert [x.sharding.shard_shape(x.shape) for x in jax.tree.leaves(back)] == [(1, 1)] * 4
    # Abstract leaves say beforehand how it will be.
    likes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=spec), layers)
    assert lens.put({"layers": likes})["layers"]["out"].sharding == made.sharding


def test_2_17_no_mesh_axis_is_lost_that_a_stack_could_keep() -> None:
    lens = cs.derive(Scanned, Listed, dims=SIZES)
    check_laws(lens, ["Sharding"], max_examples=24, shrinking=0.0)


class Bare(cs.Schema):
    w: Float32[Array, " n"]


class Extra(Bare):
    extra: Float32[Array, " n"] = cs.field(optional=True)


class Other(Extra):
    more: Float32[Array, " n"] = cs.field(key="more_", optional=True)


@pytest.mark.parametrize("view", [Extra, Other])
def test_2_17_no_value_is_asked_for_that_nobody_has(view: type[cs.Schema]) -> None:
    for lens in (cs.derive(Extra, view), cs.derive(view, Extra)):
        check_laws(lens, ["Restore"], max_examples=20, shrinking=0.0)


def test_2_17_what_is_broken_once_is_told_as_the_law_it_broke() -> None:
    broken: list[str] = []

    def check(at: Any) -> None:
        if not broken:
            broken.append(repr(at))
            raise cs.ConformanceError("stale", [cs.Mismatch("a/b", "bits", "one", "another")])

    law = Law("GetPut", "put(get(s), onto=s) == s", "s", check)
    with pytest.raises(BrokenLawError) as caught:
        check_law(cs.derive(Bare, Extra), law, Options())
    assert str(caught.value).startswith("GetPut does not hold for Bare -> Extra: ")
    assert "is something kept from one call to the next?" in str(caught.value)
    assert isinstance(caught.value.__cause__, FlakyFailure)
    assert [fault.path for fault in caught.value.mismatches] == ["a/b"]


# --- 2.1  ---

WIDTH, WIDE, VOCAB = 6, 10, 7
_RNG = np.random.default_rng(0)


def weights(**shapes: tuple[int, ...]) -> dict[str, Any]:
    """Weights at the scale that a model begins with."""
    return {
        name: jnp.asarray(0.02 * _RNG.standard_normal(shape), jnp.float32)
        for name, shape in shapes.items()
    }


GATED = weights(
    embed=(VOCAB, WIDTH),
    gate=(WIDTH, WIDE),
    up=(WIDTH, WIDE),
    down=(WIDE, WIDTH),
    head=(WIDTH, VOCAB),
)


def gated(state: Any) -> Any:
    """A GeGLU beside a residual, between an embedding and a head."""
    x = state["embed"][jnp.arange(VOCAB)]
    hidden = jax.nn.gelu(x @ state["gate"]) * (x @ state["up"])
    return (x + hidden @ state["down"]) @ state["head"]


def exchanged(state: Any) -> Any:
    return gated({**state, "gate": state["up"], "up": state["gate"]})


def test_2_1_a_gate_and_what_it_gates_are_told_apart_at_their_initial_scale() -> None:
    lens = cs.derive(cs.infer(GATED), cs.infer(GATED))
    shown = np.abs(np.asarray(gated(GATED)) - exchanged(GATED)).max()
    assert shown < 1e-3 * np.abs(np.asarray(gated(GATED))).max(), "outputs hide it"
    check_laws(lens, ["Function"], source=GATED, outputs=(gated, gated))
    with pytest.raises(BrokenLawError) as caught:
        check_laws(lens, ["Function"], source=GATED, outputs=(gated, exchanged))
    found = {fault.path: fault.kind for fault in caught.value.mismatches}
    assert found["gate"] == found["up"] == "gradient"


class Spelled(cs.Schema):
    table: Float32[Array, "vocab embed"]
    head: Float32[Array, "vocab embed"]
    kernel: Float32[Array, "width embed"]
    query: Float32[Array, "embed width"]
    layers: list[Bare] = cs.field(length="depth")


class Ruled(cs.Schema):
    """The same padded, tied, reversed, scaled, transposed and stacked."""

    table: Float32[Array, "padded embed"]
    kernel: Float32[Array, "embed width"]
    query: Float32[Array, "embed width"]
    layers: Bare = cs.field(scan="depth")
    private: Float32[Array, " n"] = cs.field(default=0.5)


RULES = (
    cs.pad("table", "vocab", "padded"),
    cs.tie("head", "table"),
    cs.flip("kernel", "width"),
    cs.scale("query", 0.125),
)


def spelled(state: Any) -> Any:
    x = state["table"][jnp.arange(VOCAB)]
    x = x + jnp.tanh(x @ state["kernel"].T) @ state["query"].T
    for layer in state["layers"]:
        x = jnp.tanh(x * layer["w"])
    return {"logits": x @ state["head"].T}


def ruled(state: Any, scaled: float = 8.0) -> Any:
    x = state["table"][jnp.arange(VOCAB)]
    x = x + jnp.tanh(x @ state["kernel"][:, ::-1]) @ (scaled * state["query"]).T
    for w in state["layers"]["w"]:
        x = jnp.tanh(x * w)
    return {"logits": x @ state["table"][:VOCAB].T}


def states() -> tuple[Any, Any]:
    s = weights(table=(VOCAB, WIDTH), kernel=(WIDE, WIDTH), query=(WIDTH, WIDE))
    layers = [weights(w=(WIDTH,)) for _ in range(2)]
    return {**s, "head": s["table"], "layers": layers}, {
        **weights(
            table=(VOCAB + 2, WIDTH), kernel=(WIDTH, WIDE), query=(WIDTH, WIDE), private=(WIDTH,)
        ),
        "layers": weights(w=(2, WIDTH)),
    }


def test_2_1_gradients_go_through_every_edit() -> None:
    lens = cs.derive(Spelled, Ruled, rules=RULES)
    s, v = states()
    for both in ((lens, s, v, (spelled, ruled)), (~lens, lens.get(s, onto=v), s, (ruled, spelled))):
        check_laws(both[0], ["Function"], source=both[1], view=both[2], outputs=both[3])
    forgotten = spelled, lambda state: ruled(state, scaled=1.0)
    with pytest.raises(BrokenLawError, match=r"query +expected that of the source"):
        check_laws(lens, ["Function"], source=s, view=v, outputs=forgotten)


def test_2_1_what_is_computed_in_fewer_bits_is_compared_in_its_own_units() -> None:
    lens = cs.derive(cs.infer(GATED), cs.infer(GATED))

    def narrow(state: Any, *, turned: bool = False) -> Any:
        state = jax.tree.map(lambda x: x.astype(jnp.bfloat16), state)
        return (exchanged if turned else gated)(state).astype(jnp.float32)

    def other(state: Any) -> Any:  # the same in another order
        state = jax.tree.map(lambda x: x.astype(jnp.bfloat16), state)
        x = state["embed"]
        hidden = (x @ state["up"]) * jax.nn.gelu(x @ state["gate"])
        return (x @ state["head"] + hidden @ state["down"] @ state["head"]).astype(jnp.float32)

    check_laws(lens, ["Function"], source=GATED, outputs=(narrow, other))
    with pytest.raises(BrokenLawError, match="gradient"):
        turned = narrow, lambda state: narrow(state, turned=True)
        check_laws(lens, ["Function"], source=GATED, outputs=turned, tolerance=8.0)


def test_2_1_a_function_that_jax_cannot_trace_is_told_with_the_cure() -> None:
    lens = cs.derive(cs.infer(GATED), cs.infer(GATED))

    def plain(state: Any) -> Any:
        return float(np.asarray(gated(state)).sum())

    with pytest.raises(BrokenLawError) as caught:
        check_laws(lens, ["Function"], source=GATED, outputs=(gated, plain))
    (fault,) = caught.value.mismatches
    assert fault.path == "view_outputs"
    assert "nnx.merge(graphdef, state)" in fault.hint
    assert "gradients = False" in fault.hint
    check_laws(lens, ["Function"], source=GATED, outputs=(plain, plain), gradients=False)
