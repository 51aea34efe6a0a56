"""The declared layouts against what Flax and optax really make: in every container, concrete, abstract and traced."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState
from flax_models import (
    DEPTH,
    OPTIMIZERS,
    DecoderSchema,
    DenseSchema,
    EmbedSchema,
    NnxDecoder,
    NnxSchema,
    NnxTrainState,
    ScannedSchema,
    UnrolledSchema,
    linen_logits,
    linen_state,
    linen_variables,
    nnx_logits,
    nnx_module,
    nnx_state,
    on_disk,
)
from jaxtyping import Array, Float32
from orbax.checkpoint import v1 as ocp
from support.models import TX

import ckpt_schema as cs
from ckpt_schema.testing import _container_kinds as containers
from ckpt_schema.testing._states import makers

LINEN = {
    (True, False): ScannedSchema,
    (False, False): UnrolledSchema,
    (True, True): ScannedSchema,
    (False, True): UnrolledSchema,
}


@functools.cache
def linen_layout(optimizer: str, *, scan: bool, bare: bool) -> cs.Layout:
    """The declared layout of `linen_state`."""
    envelope = cs.linen.BareTrainState if bare else cs.linen.TrainState
    return envelope[LINEN[scan, bare], OPTIMIZERS[optimizer]]


@functools.cache
def nnx_layout(optimizer: str) -> cs.Layout:
    """The declared layout of `nnx_state`."""
    return cs.nnx.TrainState[NnxSchema, OPTIMIZERS[optimizer]]


def linen_containers(state: TrainState) -> dict[str, Any]:
    """One Linen train state in all the containers it is met in."""
    fields = {"step": state.step, "params": state.params, "opt_state": state.opt_state}
    return {
        "TrainState": state,
        "abstract": jax.eval_shape(lambda: state),
        "dict": fields,
        "frozen": flax.core.freeze(fields),
        "on disk": on_disk(state),
        "numpy on disk": jax.tree.map(lambda x: np.asarray(jnp.asarray(x)), on_disk(state)),
    }


def nnx_containers(module: NnxTrainState) -> dict[str, Any]:
    """One NNX train state in all the containers it is met in."""
    state = nnx.state(module)
    pure = nnx.to_pure_dict(state)
    return {
        "module": module,
        "State": state,
        "abstract": jax.eval_shape(lambda: state),
        "pure dict": pure,
        "on disk": on_disk(state),
        "pure dict on disk": on_disk(pure),
    }


def without_one_leaf(tree: Any) -> Any:
    """``tree`` as dicts and lists, its last leaf gone."""
    tree = copy.deepcopy(on_disk(tree))
    node, path = tree, jax.tree_util.tree_flatten_with_path(tree)[0][-1][0]
    for entry in path[:-1]:
        node = node[getattr(entry, "key", getattr(entry, "idx", None))]
    node[getattr(path[-1], "key", getattr(path[-1], "idx", None))] = None
    return tree


@pytest.mark.parametrize(("scan", "bare"), LINEN)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_linen_train_state_conforms_in_every_container(
    optimizer: str, scan: bool, bare: bool
) -> None:
    layout = linen_layout(optimizer, scan=scan, bare=bare)
    state = linen_state(OPTIMIZERS[optimizer], scan=scan, bare=bare)
    for name, tree in linen_containers(state).items():
        report = cs.check(layout, tree)
        assert report == [], f"{name}: {report}"
        assert report.dims == {
            "vocab": 11,
            "embed": 8,
            "mlp": 16,
            "heads": 2,
            "head_dim": 4,
            "depth": DEPTH,
        }
    assert len(cs.check(layout, without_one_leaf(state))) == 1


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_nnx_train_state_conforms_in_every_container(optimizer: str) -> None:
    layout = nnx_layout(optimizer)
    module = nnx_module(OPTIMIZERS[optimizer])
    for name, tree in nnx_containers(module).items():
        report = cs.check(layout, tree)
        assert report == [], f"{name}: {report}"
        assert report.dims["depth"] == DEPTH
    assert len(cs.check(layout, without_one_leaf(nnx.state(module)))) == 1


def test_what_eval_shape_makes_of_a_factory_conforms() -> None:
    tx = OPTIMIZERS["chain schedule"]
    abstract = nnx.eval_shape(lambda: NnxTrainState(NnxDecoder(nnx.Rngs(0)), tx))
    assert cs.check(nnx_layout("chain schedule"), abstract) == []
    assert cs.check(nnx_layout("chain schedule"), nnx.state(abstract)) == []
    made = jax.eval_shape(
        lambda v: TrainState.create(apply_fn=None, params=v, tx=tx), linen_variables(scan=True)
    )
    assert cs.check(linen_layout("chain schedule", scan=True, bare=False), made) == []


@pytest.mark.parametrize(("scan", "bare"), LINEN)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_linen_state_is_rebuilt_with_the_containers_that_optax_makes(
    optimizer: str, scan: bool, bare: bool
) -> None:
    layout = linen_layout(optimizer, scan=scan, bare=bare)
    state = linen_state(OPTIMIZERS[optimizer], scan=scan, bare=bare)
    rebuilt = cs.derive(layout, layout).get(on_disk(state))
    cs.assert_trees_identical(
        rebuilt, {"step": state.step, "params": state.params, "opt_state": state.opt_state}
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_nnx_state_is_rebuilt_with_the_variables_that_nnx_makes(optimizer: str) -> None:
    layout, state = nnx_layout(optimizer), nnx_state(OPTIMIZERS[optimizer])
    rebuilt = cs.derive(layout, layout).get(on_disk(state))
    cs.assert_trees_identical(rebuilt, state)
    for (path, made), (_, real) in zip(
        nnx.to_flat_state(rebuilt), nnx.to_flat_state(state), strict=True
    ):
        assert type(made) is type(real), path
        assert made.get_metadata() == real.get_metadata(), path


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("scan", [True, False])
def test_a_linen_model_computes_the_same_after_it_became_an_nnx_model(
    optimizer: str, scan: bool
) -> None:
    tx = OPTIMIZERS[optimizer]
    state = linen_state(tx, scan=scan)
    lens = cs.derive(linen_layout(optimizer, scan=scan, bare=False), nnx_layout(optimizer))
    module = nnx_module(tx)
    nnx.update(module, lens.get(state, onto=nnx.state(module)))
    wanted = linen_logits(linen_variables(scan=scan), scan=scan)
    np.testing.assert_allclose(nnx_logits(module.model), wanted, rtol=1e-5, atol=1e-6)
    assert module.optimizer.step.get_value() == 7
    cs.assert_trees_identical(lens.put(nnx.state(module), onto=state), state)


def test_scanned_and_unrolled_linen_are_the_same_function() -> None:
    lens = cs.derive(cs.linen.Params[ScannedSchema], cs.linen.Params[UnrolledSchema])
    scanned = linen_variables(scan=True)
    unrolled = lens.get(scanned)
    assert jax.tree.structure(unrolled) == jax.tree.structure(linen_variables(scan=False))
    wanted = linen_logits(scanned, scan=True)
    np.testing.assert_allclose(linen_logits(unrolled, scan=False), wanted, rtol=1e-5, atol=1e-6)
    kernel = scanned["params"]["layers"]["Dense_0"]["kernel"]
    np.testing.assert_array_equal(unrolled["params"]["layers_2"]["Dense_0"]["kernel"], kernel[:, 2])


def test_modules_called_key_and_value_survive_in_every_container() -> None:
    optimizer = "adam"
    lens = cs.derive(linen_layout(optimizer, scan=False, bare=False), nnx_layout(optimizer))
    module = nnx_module(OPTIMIZERS[optimizer])
    names = {row.key[-2:] for row in lens.view.rows if "attention" in row.key}
    assert {("key", "kernel"), ("value", "kernel"), ("key", "bias"), ("value", "bias")} <= names
    source = lens.put(nnx.state(module))
    attention = source["params"]["params"]["layers_0"]["MultiHeadDotProductAttention_0"]
    assert attention.keys() == {"query", "key", "value", "out"}
    for name, tree in nnx_containers(module).items():
        if name not in ("module", "abstract"):
            cs.assert_trees_identical(lens.put(tree), source)


class Plain(cs.Schema):
    kernel: Float32[Array, "inputs outputs"]
    bias: Float32[Array, " outputs"]


class NamedLikeTheTree(cs.Schema):
    """Modules with the names that trees, boxes and envelopes use themselves."""

    value: Plain
    key: Plain
    params: Plain
    model: Plain
    step: Plain
    opt_state: Plain
    optimizer: list[Plain] = cs.field(length="n")
    count: Float32[Array, " outputs"] = cs.field(collection="value", type=nnx.BatchStat)


def test_modules_named_like_parts_of_a_tree_survive_in_every_container(tmp_path: Path) -> None:
    layouts = cs.linen.TrainState[NamedLikeTheTree, TX], cs.nnx.TrainState[NamedLikeTheTree, TX]
    lens = cs.derive(*layouts)
    sizes = {"inputs": 2, "outputs": 3, "n": 2}
    linen, real = (
        maker(np.random.default_rng(3), jnp.asarray) for maker in makers(sizes, *layouts)
    )
    kinds = {
        name: kind for name, kind in containers.LINEN.items() if "TrainState" not in name
    }  # which has no field `value`
    for at, (name, kind) in enumerate([*kinds.items(), *containers.NNX.items()]):
        tree, source = kind(linen if name in kinds else real), lens if name in kinds else ~lens
        assert cs.check(source.source, tree) == []
        cs.assert_trees_identical(source.put(source.get(tree), onto=tree), tree)
        ocp.save(tmp_path / str(at), tree)
        cs.assert_trees_identical(
            cs.orbax.restore(tmp_path / str(at), source.get(tree), lens), source.get(tree)
        )
    assert set(cs.infer(real).names()) == set()
    cs.assert_trees_identical(cs.derive(cs.infer(real), cs.infer(real)).get(real), real)


def test_under_jit_tracers_are_checked() -> None:
    layout = linen_layout("adam", scan=True, bare=False)
    state = linen_state(OPTIMIZERS["adam"])

    @jax.jit
    def norm(state: TrainState) -> jax.Array:
        dims = cs.assert_conforms(layout, state)
        return optax.tree.norm(state.params) * dims["depth"]

    np.testing.assert_allclose(norm(state), optax.tree.norm(state.params) * DEPTH, rtol=1e-6)
    with pytest.raises(
        cs.ConformanceError, match=r"head/bias +expected float32\[vocab=11\], found float32\[12\]"
    ):
        norm(state.replace(params=_with_head_bias(state.params, jnp.zeros(12))))


def _with_head_bias(variables: Any, bias: Any) -> Any:
    params = variables["params"]
    return {"params": {**params, "head": {**params["head"], "bias": bias}}}


# --- weights alone  ---


def test_weights_alone_conform_in_every_container() -> None:
    variables = linen_variables(scan=True)
    for tree in (variables, flax.core.freeze(variables), jax.eval_shape(lambda: variables)):
        assert cs.check(cs.linen.Params[ScannedSchema], tree) == []
    assert cs.check(cs.linen.Params[ScannedSchema], variables["params"]) != []
    module = nnx_module(OPTIMIZERS["sgd"])
    state = nnx.state(module.model)
    for tree in (
        module.model,
        state,
        nnx.to_pure_dict(state),
        on_disk(state),
        on_disk(nnx.to_pure_dict(state)),
    ):
        assert cs.check(cs.nnx.Params[NnxSchema], tree) == []


def test_weights_alone_may_lack_streams_but_no_weight() -> None:
    model = nnx_module(OPTIMIZERS["sgd"]).model
    weights = nnx.state(model, nnx.Param)
    assert cs.check(cs.nnx.Params[NnxSchema], weights) == []
    lens = cs.derive(cs.linen.Params[ScannedSchema], cs.nnx.Params[NnxSchema])
    made = lens.get(linen_variables(scan=True), onto=weights)
    assert jax.tree.structure(made) == jax.tree.structure(weights)
    pure = nnx.to_pure_dict(weights)
    del pure["layers"][1]["attention"]["value"]["bias"]
    assert [m.path for m in cs.check(cs.nnx.Params[NnxSchema], pure)] == [
        "layers/1/attention/value/bias"
    ]


# --- collections and Variable types  ---


class Scaled(nnx.Param):
    """A user's own kind of weight."""


class Table(nnx.Variable):
    """A user's own kind of state that is not trained."""


class NormSchema(cs.Schema):
    """Batch normalization: one module, two collections or Variable types."""

    scale: Float32[Array, " features"]
    bias: Float32[Array, " features"]
    mean: Float32[Array, " features"] = cs.field(collection="batch_stats", type=nnx.BatchStat)
    var: Float32[Array, " features"] = cs.field(collection="batch_stats", type="BatchStat")


class NetSchema(cs.Schema):
    """A network with batch normalization."""

    wi: DenseSchema = cs.field(key="Dense_0", dims={"outputs": "features"})
    norm: NormSchema = cs.field(key="BatchNorm_0")


class NnxNetSchema(cs.Schema):
    """The same in NNX."""

    wi: DenseSchema = cs.field(dims={"outputs": "features"})
    norm: NormSchema


class Net(nn.Module):
    """The network in Linen."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The network in evaluation mode."""
        return nn.BatchNorm(use_running_average=True)(nn.Dense(4)(x))


class NnxNet(nnx.Module):
    """The network in NNX."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.wi = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The network in evaluation mode."""
        return self.norm(self.wi(x))


class Stateful(TrainState):
    """A train state with batch statistics, as Flax's own guide writes it."""

    batch_stats: Any = None


def _net() -> tuple[Any, jax.Array]:
    x = jnp.arange(6, dtype=jnp.float32).reshape(2, 3) / 4
    variables = Net().init(jax.random.key(1), x)
    stats = {"BatchNorm_0": {"mean": jnp.arange(4.0), "var": jnp.arange(4.0) + 0.5}}
    return {"params": variables["params"], "batch_stats": stats}, x


def test_batch_statistics_are_a_collection_in_linen_and_a_variable_type_in_nnx() -> None:
    variables, x = _net()
    lens = cs.derive(cs.linen.Params[NetSchema], cs.nnx.Params[NnxNetSchema])
    assert cs.check(lens.source, variables) == []
    model = NnxNet(nnx.Rngs(0))
    assert cs.check(lens.view, model) == []
    state = lens.get(variables)
    assert jax.tree.structure(state) == jax.tree.structure(nnx.state(model))
    assert type(state["norm"]["mean"]) is nnx.BatchStat
    assert type(state["norm"]["scale"]) is nnx.Param
    nnx.update(model, state)
    np.testing.assert_allclose(model(x), Net().apply(variables, x), rtol=1e-6)
    cs.assert_trees_identical(lens.put(nnx.state(model)), variables)


def test_a_model_may_not_lack_its_statistics() -> None:
    model = NnxNet(nnx.Rngs(0))
    report = cs.check(cs.nnx.Params[NnxNetSchema], nnx.state(model, nnx.Param))
    assert [(m.path, m.kind) for m in report] == [("norm/mean", "missing"), ("norm/var", "missing")]
    lens = cs.derive(cs.linen.Params[NetSchema], cs.nnx.Params[NnxNetSchema])
    variables, _ = _net()
    with pytest.raises(cs.ConformanceError, match="batch_stats/BatchNorm_0/var"):
        lens.get({"params": variables["params"]}, onto=nnx.state(model))


def test_the_optimizer_mirrors_params_and_nothing_else() -> None:
    tx = optax.adam(1e-3)
    variables, _ = _net()
    linen = Stateful.create(
        apply_fn=None, params=variables["params"], batch_stats=variables["batch_stats"], tx=tx
    )
    assert cs.check(cs.linen.BareTrainState[NetSchema, tx], linen) == []
    module = NnxTrainState(NnxNet(nnx.Rngs(0)), tx)
    assert cs.check(cs.nnx.TrainState[NnxNetSchema, tx], module) == []
    lens = cs.derive(cs.linen.BareTrainState[NetSchema, tx], cs.nnx.TrainState[NnxNetSchema, tx])
    state = lens.get(linen)
    assert "mean" not in state["optimizer"]["opt_state"][0]["mu"]["norm"]
    cs.assert_trees_identical(lens.put(state, onto=linen), linen.replace(step=0))


class Custom(nnx.Module):
    """A module with Variables of a user's own types."""

    def __init__(self) -> None:
        self.weight = Scaled(jnp.ones(3))
        self.table = Table(jnp.zeros((2, 3)))
        self.lora = nnx.LoRAParam(jnp.ones((3, 2)))


class CustomSchema(cs.Schema):
    """Its layout."""

    weight: Float32[Array, " embed"] = cs.field(type=Scaled)
    table: Float32[Array, "rows embed"] = cs.field(type=Table)
    lora: Float32[Array, "embed rank"] = cs.field(type="LoRAParam")


def test_own_variable_types_are_kept_and_params_are_told_by_subclass() -> None:
    tx = optax.sgd(0.1, momentum=0.9)
    module = NnxTrainState(Custom(), tx)
    state = nnx.state(module)
    layout = cs.nnx.TrainState[CustomSchema, tx]
    assert cs.check(layout, state) == []
    mirrored = [row.key[-1] for row in layout.rows if "trace" in row.key]
    assert mirrored == ["weight", "lora"]
    rebuilt = cs.derive(layout, layout).get(on_disk(state))
    cs.assert_trees_identical(rebuilt, state)
    assert [type(rebuilt["model"][n]) for n in ("weight", "table", "lora")] == [
        Scaled,
        Table,
        nnx.LoRAParam,
    ]


class Flagged(cs.Schema):
    """A leaf of what is no Variable type."""

    a: Float32[Array, " n"] = cs.field(type="Parameter")
    b: Float32[Array, " n"] = cs.field(type=int)


def test_a_type_that_is_no_variable_type_is_an_error_that_names_every_leaf() -> None:
    with pytest.raises(cs.SchemaError) as caught:
        _ = cs.nnx.Params[Flagged]
    assert [m.path for m in caught.value.mismatches] == ["a", "b"]


# --- stacks in NNX  ---


class Layer(nnx.Module):
    """A layer with a stream."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.linear = nnx.Linear(4, 6, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)


class LayerSchema(cs.Schema):
    """Its layout."""

    linear: DenseSchema
    dropout: cs.Stream["fry"] = cs.field(key="dropout/rngs", default=cs.fresh_key(0), tag="default")


def _stack(axis: int) -> nnx.Module:
    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=0, out_axes=nnx.StateAxes({nnx.Param: axis, ...: 0}))
    def make(rngs: nnx.Rngs) -> Layer:
        return Layer(rngs)

    return nnx.Dict(layers=make(nnx.Rngs(0)))


class ListedSchema(cs.Schema):
    """The stack, unrolled."""

    layers: list[LayerSchema] = cs.field(length="depth")


class StackedAtOne(cs.Schema):
    """Params are stacked on axis 1, streams on axis 0, as MaxText does."""

    layers: LayerSchema = cs.field(scan="depth", axis=1)


class StackedAtZero(cs.Schema):
    """Everything is stacked on axis 0."""

    layers: LayerSchema = cs.field(scan="depth")


@pytest.mark.parametrize(("axis", "schema"), [(0, StackedAtZero), (1, StackedAtOne)])
def test_a_vmapped_stack_conforms_and_is_unrolled(axis: int, schema: type[cs.Schema]) -> None:
    state = nnx.state(_stack(axis))
    lens = cs.derive(cs.nnx.Params[schema], cs.nnx.Params[ListedSchema])
    assert cs.check(lens.source, state) == []
    unrolled = lens.get(state)
    for i in range(3):
        layer = unrolled["layers"][i]
        kernel = state["layers"]["linear"]["kernel"].get_value()
        np.testing.assert_array_equal(
            layer["linear"]["kernel"].get_value(), jnp.take(kernel, i, axis=axis)
        )
        key = state["layers"]["dropout"]["rngs"]["key"].get_value()[i]
        np.testing.assert_array_equal(
            jax.random.key_data(layer["dropout"]["rngs"]["key"].get_value()),
            jax.random.key_data(key),
        )
    cs.assert_trees_identical(lens.put(unrolled, onto=state), state)


# --- boxes  ---


class Boxed(nn.Module):
    """A layer whose kernel is boxed and whose bias is not."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The layer."""
        return nn.Dense(
            4, kernel_init=nn.with_partitioning(nn.initializers.ones, ("embed", "mlp"))
        )(x)


class BoxedSchema(cs.Schema):
    """Its layout, which does not mention the box."""

    dense: DenseSchema = cs.field(key="Dense_0")


def test_boxes_are_containers() -> None:
    boxed = Boxed().init(jax.random.key(0), jnp.ones((2, 3)))
    layout = cs.linen.Params[BoxedSchema]
    stored = {"params": {"Dense_0": {"kernel": {"value": jnp.ones((3, 4))}, "bias": jnp.zeros(4)}}}
    for tree in (boxed, nn.unbox(boxed), stored):
        assert cs.check(layout, tree) == []
    lens = cs.derive(layout, layout)
    cs.assert_trees_identical(lens.get(nn.unbox(boxed), onto=boxed), boxed)
    cs.assert_trees_identical(lens.get(nn.unbox(boxed)), nn.unbox(boxed))
    cs.assert_trees_identical(lens.get(boxed), boxed)


# --- optimizers that no layout can be declared for  ---


@pytest.mark.parametrize(
    "tx", [optax.adafactor(1e-3), optax.flatten(optax.adam(1e-3))], ids=["adafactor", "flatten"]
)
def test_a_state_that_the_dims_do_not_tell_is_refused_leaf_by_leaf(
    tx: optax.GradientTransformation,
) -> None:
    with pytest.raises(cs.SchemaError, match="cannot be typed for all sizes") as caught:
        _ = cs.linen.TrainState[DecoderSchema, tx]
    assert all(
        "give them" in m.hint or "no lens can carry it" in m.hint for m in caught.value.mismatches
    )
    assert len({m.path for m in caught.value.mismatches}) == len(caught.value.mismatches) > 1


def test_members_of_a_list_that_a_mask_tells_apart_are_refused() -> None:
    def first_layer(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "layers_0" in jax.tree_util.keystr(path), params
        )

    with pytest.raises(cs.SchemaError, match="members of a list differently") as caught:
        _ = cs.linen.TrainState[UnrolledSchema, optax.masked(optax.adam(1e-3), first_layer)]
    assert {m.kind for m in caught.value.mismatches} == {"ambiguous"}
    assert all("layers_{i}" in m.path for m in caught.value.mismatches)


SMALL = {"embed": 256, "vocab": 300, "mlp": 512}


@pytest.mark.parametrize(
    ("sizes", "fault"),
    [
        ({"embed": 0}, "argument"),
        ([("embed", 256)], "argument"),
        ({"embed": 256, "vocab": 300}, "mlp"),
        ({**SMALL, "heads": 4}, "heads"),
    ],
    ids=["zero", "no mapping", "too few", "too many"],
)
def test_sizes_that_are_no_sizes_of_the_params_are_errors(sizes: Any, fault: str) -> None:
    with pytest.raises(cs.SchemaError) as caught:
        _ = cs.nnx.TrainState[FactoredSchema, optax.adafactor(1e-3), sizes]
    assert [m.path for m in caught.value.mismatches] == [fault]


class FactoredLayer(cs.Schema):
    kernel: Float32[Array, "embed mlp"]


class FactoredSchema(cs.Schema):
    table: Float32[Array, "vocab embed"]
    layers: list[FactoredLayer] = cs.field(length="depth")


class TurnedLayer(cs.Schema):
    kernel: Float32[Array, "mlp embed"]


class TurnedSchema(cs.Schema):
    table: Float32[Array, "vocab embed"]
    layers: list[TurnedLayer] = cs.field(length="depth")


def test_a_layout_for_given_sizes_holds_for_no_others() -> None:
    layout = cs.nnx.TrainState[FactoredSchema, optax.adafactor(1e-3), SMALL]
    assert {"/".join(row.path): str(row.stored) for row in layout.rows if "v_row" in row.path} == {
        "opt_state/0/v_row/table": "float32[embed]",
        "opt_state/0/v_row/layers[]/kernel": "float32[embed]",
    }
    with pytest.raises(cs.SchemaError, match=r"256, as nnx\.TrainState"):
        cs.check(layout, {}, dims={"embed": 128})
    with pytest.raises(cs.DerivationError, match=r"256, as nnx\.TrainState"):
        cs.derive(layout, layout, dims={"embed": 128})
    other = cs.nnx.TrainState[FactoredSchema, optax.adafactor(1e-3), {**SMALL, "embed": 192}]
    with pytest.raises(
        cs.DerivationError, match=r"as nnx\.TrainState\[FactoredSchema\] is declared for"
    ):
        cs.derive(layout, other)


def test_factors_follow_their_axes_and_are_never_taken_for_one_another() -> None:
    tx = optax.adafactor(1e-3)

    def lens(**sizes: int) -> cs.Lens:
        given = {**SMALL, **sizes}
        return cs.derive(
            cs.linen.BareTrainState[FactoredSchema, tx, given],
            cs.nnx.TrainState[TurnedSchema, tx, given],
        )

    assert any("embed mlp -> mlp embed" in line for line in str(lens()).splitlines())
    with pytest.raises(
        cs.DerivationError, match="embed_or_mlp"
    ):  # which of two equal axes was summed over, nothing tells
        lens(mlp=256)


def test_a_transformation_that_refuses_the_params_is_an_error_with_its_reason() -> None:
    tx = optax.masked(optax.adam(1e-3), {"params": {"head": True}})
    with pytest.raises(cs.SchemaError, match="masks and labels must be callables"):
        _ = cs.linen.TrainState[EmbedSchema, tx]


class Nothing(cs.Schema):
    """A schema without leaves."""


@pytest.mark.parametrize(
    "declare",
    [
        lambda: cs.linen.TrainState[EmbedSchema],
        lambda: cs.nnx.TrainState[EmbedSchema],
        lambda: cs.linen.BareTrainState[EmbedSchema, 3],
        lambda: cs.nnx.TrainState[EmbedSchema, optax.sgd(0.1), 3],
        lambda: cs.nnx.Params[int],
        lambda: cs.linen.TrainState[Nothing, optax.adam(1e-3)],
        lambda: cs.nnx.TrainState[Nothing, optax.adam(1e-3)],
    ],
)
def test_an_envelope_around_the_wrong_things_is_a_schema_error(
    declare: Callable[[], cs.Layout],
) -> None:
    with pytest.raises(cs.SchemaError) as caught:
        declare()
    assert caught.value.mismatches
    assert caught.value.mismatches[0].hint


def test_bare_params_have_no_place_for_other_collections() -> None:
    class Normalized(cs.Schema):
        scale: Float32[Array, " embed"]
        mean: Float32[Array, " embed"] = cs.field(collection="batch_stats", type=nnx.BatchStat)

    with pytest.raises(cs.SchemaError, match=r"write linen\.Params\[Normalized\]") as caught:
        _ = cs.linen.BareParams[Normalized]
    assert [m.path for m in caught.value.mismatches] == ["mean"]
    assert len(cs.linen.Params[Normalized].rows) == 2


# --- adapters, which alone are trained  ---


class Adapted(nnx.Module):
    """A frozen layer with an adapter."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Makes both."""
        self.dense = nnx.Linear(3, 4, use_bias=False, rngs=rngs)
        self.lora = nnx.LoRA(3, 2, 4, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Their sum."""
        return self.dense(x) + self.lora(x)


class KernelSchema(cs.Schema):
    kernel: Float32[Array, "inputs outputs"]


class LoraSchema(cs.Schema):
    lora_a: Float32[Array, "inputs rank"] = cs.field(type=nnx.LoRAParam)
    lora_b: Float32[Array, "rank outputs"] = cs.field(type=nnx.LoRAParam)


class AdaptedSchema(cs.Schema):
    dense: KernelSchema
    lora: LoraSchema


def test_an_optimizer_of_adapters_mirrors_these_alone() -> None:
    adam = optax.adam(1e-3)
    module = nnx.Dict(
        model=(model := Adapted(nnx.Rngs(0))),
        optimizer=nnx.Optimizer(model, adam, wrt=nnx.LoRAParam),
    )
    real = nnx.state(module)
    layout = cs.nnx.TrainState[AdaptedSchema, adam, nnx.LoRAParam]
    assert cs.check(layout, real) == []
    assert sum(row.path[0] == "opt_state" for row in layout.rows) == 5
    assert (
        len(cs.check(cs.nnx.TrainState[AdaptedSchema, adam], real)) == 2
    )  # mu and nu of the kernel

    def adapters(params: Any) -> Any:
        return {"dense": {"kernel": False}, "lora": {"lora_a": True, "lora_b": True}}

    masked = optax.masked(adam, adapters)
    lens = cs.derive(cs.linen.BareTrainState[AdaptedSchema, masked], layout)
    linen = lens.put(real)
    assert jax.tree.structure(linen["opt_state"]) == jax.tree.structure(
        masked.init(linen["params"])
    )
    cs.assert_trees_identical(lens.get(linen), real)


def test_what_an_optimizer_trains_is_a_type_of_variable() -> None:
    with pytest.raises(cs.SchemaError, match="sizes of dims by name"):
        _ = cs.nnx.TrainState[AdaptedSchema, optax.adam(1e-3), int]
