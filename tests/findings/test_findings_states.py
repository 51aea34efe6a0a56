"""Train states that people have: any fields and names, several models and optimizers, and what a rule reaches in them."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from beartype import beartype
from flax import linen, nnx
from flax.training import dynamic_scale
from flax.training.train_state import TrainState
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float32, Int32, TypeCheckError, UInt32, jaxtyped
from orbax.checkpoint import v1 as ocp

import ckpt_schema as cs
from ckpt_schema.testing import LensLaws

ADAM = optax.adam(1e-2)


class Dense(cs.Schema):
    kernel: Float32[Array, "i o"]
    bias: Float32[Array, " o"]


class Body(cs.Schema):
    body: Dense = cs.field(dims={"i": "inputs", "o": "hidden"})
    head: Dense = cs.field(dims={"i": "hidden", "o": "classes"})


class Model(nnx.Module):
    """Two layers, under the names of `Body`."""

    def __init__(self, seed: int = 0) -> None:
        rngs = nnx.Rngs(seed)
        self.body = nnx.Linear(2, 4, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)


class Training(nnx.Module):
    """A model and what trains it, under names that are given."""

    def __init__(self, names: str = "model optimizer", wrt: Any = nnx.Param, **more: Any) -> None:
        model, optimizer = names.split()
        trained = Model(1)
        setattr(self, model, trained)
        setattr(self, optimizer, nnx.Optimizer(trained, ADAM, wrt=wrt))
        for name, value in more.items():
            setattr(self, name, value)


def params_of(seed: float = 0.0) -> dict[str, Any]:
    """Values of which no two are equal."""
    sizes = {"body": (2, 4), "head": (4, 3)}
    found: dict[str, Any] = {}
    for n, (name, (i, o)) in enumerate(sizes.items()):
        kernel = jnp.arange(i * o, dtype="float32").reshape(i, o) + seed + 100 * n
        found[name] = {"kernel": kernel, "bias": jnp.arange(o, dtype="float32") + seed + 50}
    return found


def trained(seed: float = 0.0, **more: Any) -> dict[str, Any]:
    """A bare train state after two steps, as a dict."""
    state = TrainState.create(apply_fn=None, params=params_of(seed), tx=ADAM)
    for n in range(2):
        state = state.apply_gradients(grads=jax.tree.map(lambda p, n=n: (p + n) / 7, state.params))
    return {"step": jnp.int32(2), "params": state.params, "opt_state": state.opt_state, **more}


def head_kernel(tree: Any) -> np.ndarray:
    """That of a dict, a state or a module."""
    tree = nnx.state(tree) if isinstance(tree, nnx.Module) else tree
    return np.asarray(tree["head"]["kernel"][...])


def refused(do: Callable[[], Any]) -> cs.CkptSchemaError:
    """The error that something raises."""
    with pytest.raises(cs.CkptSchemaError) as caught:
        do()
    return caught.value


# --- reach 04, 04b: fields beside params  ---


class Scale(cs.Schema):
    scale: Float32[Array, ""]
    fin_steps: Int32[Array, ""]


class RunState(cs.Schema):
    step: Int32[Array, ""] = cs.field(default=0)
    params: Body
    opt_state: cs.OptState = cs.optimizer(ADAM, of="params")
    ema_params: Body = cs.field(default=0.0)
    dynamic_scale: Scale = cs.field(optional=True, default=0)
    dropout_rng: UInt32[Array, "2"] = cs.field(default=0)


def run_state() -> dict[str, Any]:
    ema = jax.tree.map(lambda p: p * 0.5, params_of())
    return trained(
        ema_params=ema,
        dynamic_scale=dynamic_scale.DynamicScale(),
        dropout_rng=jax.random.PRNGKey(7),
    )


def test_reach_04_a_train_state_with_more_fields_is_declared_and_restored(tmp_path: Path) -> None:
    state = run_state()
    assert cs.check(RunState, state).ok
    ocp.save(tmp_path / "c", state)
    lens = cs.derive(RunState, cs.nnx.TrainState[Body, ADAM])
    found = cs.orbax.restore(tmp_path / "c", Training(), lens)
    np.testing.assert_array_equal(head_kernel(found.model), head_kernel(state["params"]))
    mu = nnx.state(found)["optimizer"]["opt_state"][0]["mu"]
    np.testing.assert_array_equal(head_kernel(mu), head_kernel(state["opt_state"][0].mu))


def test_reach_04_a_field_that_may_be_absent_may_be(tmp_path: Path) -> None:
    state = run_state()
    del state["dynamic_scale"]
    assert cs.check(RunState, state).ok
    lens = cs.derive(RunState, RunState)
    cs.orbax.save(tmp_path / "c", state, lens)
    back = cs.orbax.restore(tmp_path / "c", jax.tree.map(jnp.zeros_like, state), lens)
    cs.assert_trees_identical(back, state)


def test_reach_04_averages_are_served_as_the_weights(tmp_path: Path) -> None:
    class Served(cs.Schema):
        params: Body = cs.field(key="ema_params")

    state = run_state()
    served = cs.derive(Served, cs.nnx.Params[Body])
    model = nnx.state(Model())
    found = served.get({"ema_params": state["ema_params"]}, onto=model)
    np.testing.assert_array_equal(head_kernel(found), head_kernel(state["ema_params"]))


def test_reach_04_the_averages_follow_what_a_rule_says_of_the_model() -> None:
    state = run_state()
    lens = cs.derive(RunState, RunState, rules=[cs.flip("head/kernel", "classes")])
    found = lens.get(state)
    for name in ("params", "ema_params"):
        np.testing.assert_array_equal(head_kernel(found[name]), head_kernel(state[name])[:, ::-1])
    mu = state["opt_state"][0].mu
    np.testing.assert_array_equal(head_kernel(found["opt_state"][0].mu), head_kernel(mu)[:, ::-1])


# --- reach 15, 19, 21: other names, no step, ModelAndOptimizer  ---


class Named(cs.nnx.State):
    params: Body = cs.field(key="net")
    step: UInt32[Array, ""] = cs.field(key="opt/step", type=nnx.optimizer.OptState)
    opt_state: cs.OptState = cs.optimizer(ADAM, of="params", key="opt/opt_state")


def test_reach_15_a_training_object_has_its_own_attribute_names(tmp_path: Path) -> None:
    state = trained()
    ocp.save(tmp_path / "c", state)
    lens = cs.derive(cs.linen.BareTrainState[Body, ADAM], Named)
    found: Any = cs.orbax.restore(tmp_path / "c", Training("net opt"), lens)
    np.testing.assert_array_equal(head_kernel(found.net), head_kernel(state["params"]))
    assert int(found.opt.step[...]) == 2


def test_reach_19_no_step_and_an_optimizer_state_of_another_name(tmp_path: Path) -> None:
    class Slim(cs.Schema):
        params: Body
        opt_state: cs.OptState = cs.optimizer(ADAM, key="optimizer_state")

    state = trained()
    slim = {"params": state["params"], "optimizer_state": state["opt_state"]}
    ocp.save(tmp_path / "c", slim)
    view = cs.nnx.TrainState[Body, ADAM]
    lens = cs.derive(Slim, view, rules=[cs.private("step", 0)])
    found: Any = cs.orbax.restore(tmp_path / "c", Training(), lens)
    np.testing.assert_array_equal(head_kernel(found.model), head_kernel(state["params"]))


def test_reach_21_a_model_and_optimizer_in_one_object(tmp_path: Path) -> None:
    state = trained()
    ocp.save(tmp_path / "c", state)
    both = cs.nnx.ModelAndOptimizer[Body, ADAM]
    one = nnx.ModelAndOptimizer(Model(3), ADAM, wrt=nnx.Param)
    assert cs.check(both, nnx.state(one)).ok
    lens = cs.derive(cs.linen.BareTrainState[Body, ADAM], both)
    found = cs.orbax.restore(tmp_path / "c", one, lens)
    np.testing.assert_array_equal(head_kernel(found.model), head_kernel(state["params"]))
    onward = cs.derive(both, cs.nnx.TrainState[Body, ADAM])
    cs.assert_trees_identical(onward.get(nnx.state(found))["model"], nnx.state(found)["model"])


def test_reach_21_a_model_and_optimizer_that_nobody_declared(tmp_path: Path) -> None:
    state, one = trained(), nnx.ModelAndOptimizer(Model(3), ADAM, wrt=nnx.Param)
    for layout in (cs.infer(one), cs.infer(nnx.state(one))):
        mirrors = {row.path[:3] for row in layout.rows if row.mirrors == "params/head/kernel"}
        assert mirrors == {("opt_state", "0", "mu"), ("opt_state", "0", "nu")}
    ocp.save(tmp_path / "linen", state)
    found = cs.orbax.restore(tmp_path / "linen", one)
    np.testing.assert_array_equal(head_kernel(found.model), head_kernel(state["params"]))
    cs.orbax.save(tmp_path / "both", one)
    training = cs.orbax.restore(tmp_path / "both", Training())
    cs.assert_trees_identical(nnx.state(training.model), nnx.state(one.model))
    moments = nnx.state(one)["opt_state"]
    cs.assert_trees_identical(nnx.state(training.optimizer)["opt_state"], moments)


# --- jobs 08, 09: a filter as wrt, more in the training object  ---


def test_jobs_08_what_is_trained_is_any_filter(tmp_path: Path) -> None:
    wrt = nnx.All(nnx.Param, nnx.PathContains("head"))
    state = trained()
    ocp.save(tmp_path / "c", state)
    view = cs.nnx.TrainState[Body, ADAM, wrt]
    rules = [cs.reset(source=f"opt_state/0/{name}/body") for name in ("mu", "nu")]
    lens = cs.derive(cs.linen.BareTrainState[Body, ADAM], view, rules=rules)
    found: Any = cs.orbax.restore(tmp_path / "c", Training(wrt=wrt), lens)
    np.testing.assert_array_equal(head_kernel(found.model), head_kernel(state["params"]))
    mu = nnx.state(found)["optimizer"]["opt_state"][0]["mu"]
    np.testing.assert_array_equal(head_kernel(mu), head_kernel(state["opt_state"][0].mu))
    assert "body" not in mu


def test_jobs_08_a_filter_that_tells_layers_apart_is_an_error() -> None:
    class Deep(cs.Schema):
        layers: list[Dense] = cs.field(length="depth", dims={"i": "e", "o": "e"})

    wrt = nnx.All(nnx.Param, nnx.PathContains(0))
    error = refused(lambda: cs.nnx.TrainState[Deep, ADAM, wrt])
    assert "all members of a list, or none" in str(error)


class Average(cs.Schema):
    count: Int32[Array, ""]
    total: Float32[Array, ""]


class Metrics(cs.Schema):
    accuracy: Average
    loss: Average


class More(cs.nnx.State):
    params: Body = cs.field(key="model")
    step: UInt32[Array, ""] = cs.field(key="optimizer/step", type=nnx.optimizer.OptState)
    opt_state: cs.OptState = cs.optimizer(ADAM, of="params", key="optimizer/opt_state")
    metrics: Metrics = cs.field(type=nnx.metrics.MetricState, default=0)
    ema: Body = cs.field(default=0.0)
    dropout: cs.Stream["fry"] = cs.field(key="rngs/dropout", default=cs.fresh_key(0))
    epoch: Int32[Array, ""] = cs.field(default=0)


def test_jobs_09_metrics_averages_streams_and_an_epoch_beside_them(tmp_path: Path) -> None:
    target = Training(
        metrics=nnx.MultiMetric(accuracy=nnx.metrics.Accuracy(), loss=nnx.metrics.Average("loss")),
        ema=Model(5),
        rngs=nnx.Rngs(dropout=3),
        epoch=nnx.Variable(jnp.int32(4)),
    )
    assert cs.check(More, nnx.state(target)).ok
    state = trained()
    ocp.save(tmp_path / "c", state)
    lens = cs.derive(cs.linen.BareTrainState[Body, ADAM], More)
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(target.ema)))
    found: Any = cs.orbax.restore(tmp_path / "c", target, lens)
    np.testing.assert_array_equal(head_kernel(found.model), head_kernel(state["params"]))
    cs.assert_trees_identical(
        jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(found.ema))), before
    )
    assert int(found.epoch[...]) == 4
    cs.orbax.save(tmp_path / "d", found, lens)
    again: Any = cs.orbax.restore(tmp_path / "d", found, lens)
    assert int(again.epoch[...]) == 4


# --- jobs 05: two models with two optimizers  ---


class Train(cs.Schema):
    step: Int32[Array, ""]
    params: Body
    opt_state: cs.OptState = cs.optimizer(ADAM, of="params")


class Gan(cs.Schema):
    generator: Train
    discriminator: Train = cs.field(dims={"classes": "scores"})


def test_jobs_05_a_rule_reaches_what_mirrors_the_weight_in_its_own_state() -> None:
    gan = {"generator": trained(), "discriminator": trained(1000.0)}
    assert cs.check(Gan, gan).ok
    rule = cs.flip("generator/params/head/kernel", "classes")
    found = cs.derive(Gan, Gan, rules=[rule]).get(gan)
    for kept in (lambda one: one["params"], lambda one: one["opt_state"][0].nu):
        one, other = kept(found["generator"]), kept(gan["generator"])
        np.testing.assert_array_equal(head_kernel(one), head_kernel(other)[:, ::-1])
    cs.assert_trees_identical(found["discriminator"], gan["discriminator"])


def test_jobs_05_both_states_start_anew_each_from_its_own_model() -> None:
    class Weights(cs.Schema):
        params: Body

    class Slim(cs.Schema):
        generator: Weights
        discriminator: Weights = cs.field(dims={"classes": "scores"})

    slim = {"generator": {"params": params_of()}, "discriminator": {"params": params_of(9.0)}}
    rules = [
        *(cs.private(f"{name}/step", 0) for name in ("generator", "discriminator")),
        *(cs.reset(view=f"{name}/opt_state") for name in ("generator", "discriminator")),
    ]
    found = cs.derive(Slim, Gan, rules=rules).get(slim)
    for name, one in slim.items():
        cs.assert_trees_identical(found[name]["params"], one["params"])
        cs.assert_trees_identical(found[name]["opt_state"], ADAM.init(one["params"]))


# --- words b08: an inferred layout as the body  ---


def test_words_b08_a_layout_is_a_body() -> None:
    state = nnx.state(Training())
    view = cs.nnx.TrainState[cs.infer(Model()), ADAM]
    assert cs.check(view, state).ok
    source = cs.linen.BareTrainState[cs.infer(params_of()), ADAM]
    lens = cs.derive(source, view)
    bare = trained()
    np.testing.assert_array_equal(head_kernel(lens.get(bare)["model"]), head_kernel(bare["params"]))


# --- what is wrong with a declaration  ---


def test_words_b08_what_was_read_off_tells_the_sizes_of_what_is_declared() -> None:
    """An inferred layout joins a declared one, in weights alone and in train states, transposed leaves too."""
    state = trained()
    params, declared = state["params"], cs.linen.BareTrainState[Body, ADAM]
    for lens in (
        cs.derive(cs.infer(params), cs.linen.BareParams[Body]),
        cs.derive(cs.linen.BareParams[Body], cs.infer(params)),
        cs.derive(cs.infer(params), cs.linen.BareParams[Body], dims={"classes": 3}),
        cs.adapt(params, cs.linen.BareParams[Body]),
    ):
        cs.assert_trees_identical(lens.get(params), params)
    onto_nnx = cs.derive(declared, cs.nnx.TrainState[cs.infer(Model(0)), ADAM])
    made = onto_nnx.get(state)
    np.testing.assert_array_equal(head_kernel(made["model"]), head_kernel(params))
    moments = made["optimizer"]["opt_state"][0]["mu"]["head"]["kernel"].get_value()
    np.testing.assert_array_equal(moments, state["opt_state"][0].mu["head"]["kernel"])

    class Turned(cs.Schema):
        w: Float32[Array, "outputs inputs"]
        b: Float32[Array, " outputs"]

    class Straight(cs.Schema):
        w: Float32[Array, "inputs outputs"]
        b: Float32[Array, " outputs"]

    tree = {"w": jnp.zeros((2, 3)), "b": jnp.zeros(3)}
    assert cs.derive(cs.infer(tree), Straight).get(tree)["w"].shape == (2, 3)
    error = refused(lambda: cs.derive(cs.infer(tree), Turned))  # outputs would be 2 and 3
    assert "differ in" in str(error)


def test_of_names_an_attribute_that_is_one_model() -> None:
    def nothing() -> None:
        class Wrong(cs.Schema):
            weights: Body
            state: cs.OptState = cs.optimizer(ADAM)

        del Wrong

    def leaf() -> None:
        class Wrong(cs.Schema):
            params: Float32[Array, " n"]
            body: Body
            state: cs.OptState = cs.optimizer(ADAM)

        del Wrong

    assert "one model (weights), found of='params'" in str(refused(nothing))
    assert "one model (body)" in str(refused(leaf))


def test_an_optimizer_that_trains_nothing_of_its_model_is_an_error() -> None:
    def declare() -> None:
        class Wrong(cs.Schema):
            params: Body
            state: cs.OptState = cs.optimizer(ADAM, wrt="lora")

        del Wrong

    assert "at least one trainable leaf, found none" in str(refused(declare))


def test_an_optimizer_has_its_annotation_and_the_annotation_its_optimizer() -> None:
    def unmarked() -> None:
        class Wrong(cs.Schema):
            params: Body
            state: Body = cs.optimizer(ADAM)

        del Wrong

    def bare() -> None:
        class Wrong(cs.Schema):
            params: Body
            state: cs.OptState

        del Wrong

    for declare in (unmarked, bare):
        assert "state: cs.OptState = cs.optimizer(tx)" in str(refused(declare))


class Normed(cs.Schema):
    dense: Dense
    mean: Float32[Array, " o"] = cs.field(collection="batch_stats")


def test_collections_of_a_model_stand_somewhere() -> None:
    def declare() -> None:
        class Wrong(cs.Schema):
            params: Normed
            state: cs.OptState = cs.optimizer(ADAM)

        del Wrong

    assert 'key={"params": "params", ...: "{collection}"}' in str(refused(declare))


# --- the abstract state of a layout  ---

SIZES = {"inputs": 2, "hidden": 4, "classes": 6}
AXES: dict[str, Any] = {"hidden": "tensor", "inputs": "fsdp", "classes": None}


def mesh_of_two() -> Any:
    return jax.make_mesh((2, 2), ("fsdp", "tensor"))


class Labelled(nnx.Module):
    """A model that says of its axes what they are."""

    def __init__(self) -> None:
        rngs, names = nnx.Rngs(0), {"body": ("inputs", "hidden"), "head": ("hidden", "classes")}
        for name, (i, o) in names.items():
            kernel = nnx.with_partitioning(nnx.initializers.zeros, (i, o))
            bias = nnx.with_partitioning(nnx.initializers.zeros, (o,))
            made = nnx.Linear(SIZES[i], SIZES[o], kernel_init=kernel, bias_init=bias, rngs=rngs)
            setattr(self, name, made)


def specs_of(tree: Any) -> dict[str, Any]:
    """The partition spec of each leaf that Flax or an abstract state names, by its path."""
    flat = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda x: isinstance(x, PartitionSpec)
    )
    found: dict[str, Any] = {}
    for path, leaf in flat[0]:
        spec = leaf if isinstance(leaf, PartitionSpec) else leaf.sharding.spec
        found[jax.tree_util.keystr(path)] = tuple(spec)
    return found


def test_an_abstract_state_is_sharded_as_flax_says(tmp_path: Path) -> None:
    mesh = mesh_of_two()
    rules = tuple(AXES.items())
    with jax.set_mesh(mesh), nnx.logical_axis_rules(rules):
        model = nnx.eval_shape(Labelled)
        module = nnx.Dict(model=model, optimizer=nnx.Optimizer(model, ADAM, wrt=nnx.Param))
        theirs = specs_of(nnx.get_partition_spec(nnx.state(module)))
    ours = cs.abstract(cs.nnx.TrainState[Body, ADAM], SIZES, mesh, AXES)
    assert specs_of(ours) == theirs
    assert cs.check(cs.nnx.TrainState[Body, ADAM], ours).ok
    state = cs.abstract(cs.linen.BareTrainState[Body, ADAM], SIZES)
    real = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), state)
    ocp.save(tmp_path / "c", real)
    lens = cs.derive(cs.linen.BareTrainState[Body, ADAM], cs.nnx.TrainState[Body, ADAM])
    found = cs.orbax.restore(tmp_path / "c", ours, lens)
    assert specs_of(found) == specs_of(ours)


def test_an_abstract_state_is_sharded_as_linen_says() -> None:
    def dense(name: str, i: str, o: str) -> Any:
        kernel = linen.with_logical_partitioning(linen.initializers.zeros, (i, o))
        bias = linen.with_logical_partitioning(linen.initializers.zeros, (o,))
        return linen.Dense(SIZES[o], kernel_init=kernel, bias_init=bias, name=name)

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            return dense("head", "hidden", "classes")(dense("body", "inputs", "hidden")(x))

    variables = jax.eval_shape(Net().init, jax.random.key(0), jnp.ones((1, 2)))
    theirs = linen.logical_to_mesh(linen.get_partition_spec(variables), tuple(AXES.items()))
    ours = cs.abstract(cs.linen.Params[Body], SIZES, mesh_of_two(), AXES)
    assert specs_of(ours) == specs_of(theirs)


def test_an_abstract_state_names_all_that_does_not_fit() -> None:
    wrong = refused(
        lambda: cs.abstract(
            Body, {"inputs": 2, "hidden": 4}, mesh_of_two(), {"embed": "fsdp", "hidden": "data"}
        )
    )
    assert [fault.path for fault in wrong.mismatches] == ["classes", "embed", "hidden"]
    odd = refused(lambda: cs.abstract(Body, {**SIZES, "hidden": 3}, mesh_of_two(), AXES))
    assert "hidden in 2 equal shares, over tensor" in str(odd)


def test_of_a_square_leaf_the_first_axis_has_the_mesh_axis() -> None:
    class Square(cs.Schema):
        w: Float32[Array, "in=embed out=embed"]
        q: Float32[Array, "embed heads*head_dim"]

    sizes = {"embed": 4, "heads": 2, "head_dim": 3}
    found = cs.abstract(Square, sizes, mesh_of_two(), {"embed": "fsdp", "heads": "tensor"})
    assert found["w"].sharding.spec == PartitionSpec("fsdp", None)
    assert found["q"].sharding.spec == PartitionSpec("fsdp", "tensor")


# --- a schema is a type  ---


def test_a_tree_is_an_instance_where_check_finds_nothing() -> None:
    state = run_state()
    wrong = {**state, "step": jnp.float32(0)}
    for schema in (RunState, cs.linen.BareTrainState[Body, ADAM], Gan, cs.linen.BareParams[Body]):
        for tree in (state, wrong, trained(), state["params"], {}, None, 3, [state]):
            try:
                conforms = cs.check(schema, tree).ok
            except cs.CkptSchemaError:
                conforms = False
            assert isinstance(tree, schema) == conforms
    assert isinstance(nnx.state(Training()), cs.nnx.TrainState[Body, ADAM])
    assert isinstance(Training(), cs.nnx.TrainState[Body, ADAM])
    assert not isinstance(state, cs.Schema)


@pytest.mark.parametrize("jitted", [False, True])
def test_a_train_step_is_checked_eagerly_and_when_it_is_traced(jitted: bool) -> None:
    @jaxtyped(typechecker=beartype)
    def step(state: RunState, other: Body) -> RunState:
        params = jax.tree.map(lambda a, b: a + jnp.sum(b), state["params"], other)
        return {**state, "params": params}

    run = jax.jit(step) if jitted else step
    state = run_state()
    other = jax.tree.map(lambda x: jnp.ones((*x.shape[:-1], 9)), params_of())  # sizes of its own
    other["head"]["kernel"] = jnp.ones((9, 3))
    other["head"]["bias"] = jnp.ones(3)
    other["body"]["bias"] = jnp.ones(9)
    run(state, other)
    with pytest.raises(TypeCheckError) as caught:
        run({**state, "step": jnp.float32(0)}, other)
    said: list[str] = []
    error: BaseException | None = caught.value
    while error is not None:
        said.append(str(error))
        error = error.__cause__
    assert any("the tree does not conform to RunState: 1 fault" in text for text in said)
    assert any("step  expected int32[], found float32[]" in text for text in said)


def test_of_equal_train_states_one_class_is_made() -> None:
    assert cs.nnx.TrainState[Body, ADAM] is cs.nnx.TrainState[Body, ADAM]


def test_a_ready_made_train_state_is_extended_as_a_class_is() -> None:
    class Mine(cs.linen.BareTrainState[Body, ADAM]):
        ema: Body = cs.field(optional=True)
        rng: cs.Key["fry"] = cs.field(default=cs.fresh_key(0))

    state = trained(rng=jax.random.key(0))
    assert isinstance(state, Mine)
    assert isinstance({**state, "ema": params_of()}, Mine)
    assert not isinstance({**state, "ema": 3}, Mine)


def test_two_models_in_boxes_keep_what_is_said_of_each() -> None:
    def boxed(state: dict[str, Any], name: str) -> dict[str, Any]:
        def box(path: Any, leaf: Any) -> Any:
            whole = jax.tree_util.keystr(path)
            return (
                linen.Partitioned(leaf, (name, None))
                if "head" in whole and leaf.ndim == 2
                else leaf
            )

        return jax.tree_util.tree_map_with_path(box, state)

    gan = {"generator": boxed(trained(), "one"), "discriminator": boxed(trained(9.0), "other")}
    found = cs.derive(Gan, Gan, rules=[cs.flip("head/kernel", "classes")]).get(gan)
    for model, name in (("generator", "one"), ("discriminator", "other")):
        assert found[model]["params"]["head"]["kernel"].names == (name, None)
        assert found[model]["opt_state"][0].nu["head"]["kernel"].names == (name, None)


# --- words of train states stand where train states are made  ---


def spelled(source: str) -> set[str]:
    """The words of train states among the constants of a module."""
    words = {"opt_state", "params", "mu", "nu"}
    found = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    return {word for word in found if isinstance(word, str) and word in words}


def test_the_words_of_train_states_stand_where_train_states_are_made() -> None:
    root = Path(cs.__file__).parent
    made = ("_frameworks", "linen", "nnx", "demo")
    found: set[str] = set()
    for path in root.rglob("*.py"):
        module = ".".join(path.relative_to(root).with_suffix("").parts)
        if not module.startswith(made) and spelled(path.read_text()):
            found.add(module)
    assert not found
    assert spelled("x = ['mu', 'xmu']") == {"mu"}


def test_train_states_of_any_shape_obey_the_laws() -> None:
    class Laws(LensLaws):
        lens = cs.derive(RunState, More)
        max_examples = 1

    class Two(LensLaws):
        lens = cs.derive(Gan, Gan, rules=[cs.flip("generator/params/head/kernel", "classes")])
        max_examples = 1

    for laws in (Laws(), Two()):
        laws.test_get_put()
        laws.test_naming()
