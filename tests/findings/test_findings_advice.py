"""What errors advise is right: what is certain is a rule, what is open a list, and a weight is never given up."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from jaxtyping import Array, BFloat16, Float32, UInt32
from orbax.checkpoint import v1 as ocp

import ckpt_schema as cs


def refused(do: Callable[[], Any]) -> cs.CkptSchemaError:
    """The error that something raises."""
    with pytest.raises(cs.CkptSchemaError) as caught:
        do()
    return caught.value


def zeros(*shape: int) -> Any:
    return np.zeros(shape, np.float32)


class Dense(cs.Schema):
    kernel: Float32[Array, "i o"]
    bias: Float32[Array, " o"]


class Body(cs.Schema):
    body: Dense = cs.field(dims={"i": "inputs", "o": "hidden"})
    head: Dense = cs.field(dims={"i": "hidden", "o": "classes"})


# --- 2.2 a weight is never given a default  ---


def made_up(error: cs.CkptSchemaError) -> list[str]:
    """What an error advises to leave aside with another value than its own, and each mention of a default."""
    values = re.findall(r"private\('[^']*', ([^)]*)", str(error))
    return [value for value in values if value != "own"] + re.findall("default", str(error))


class Weight(cs.Schema):
    emb: Float32[Array, "v a"]


@pytest.mark.parametrize(
    ("source", "view"),
    [
        (Weight, cs.nnx.Params[Dense]),
        (cs.linen.Params[Weight], cs.nnx.Params[Body]),
        (Dense, Body),
        (cs.infer({"w": zeros(2, 3)}), cs.infer({"v": zeros(5, 7)})),
    ],
)
def test_2_2_no_advice_makes_a_weight_of_zeros(source: Any, view: Any) -> None:
    error = refused(lambda: cs.derive(source, view))
    assert not [rule for rule in error.rules if "private" in str(rule)]
    assert not made_up(error)


def test_2_2_what_a_model_works_without_is_made_anew_by_what_it_is() -> None:
    class Attention(cs.Schema):
        kernel: Float32[Array, "i o"]
        dropout: cs.Stream["fry"] = cs.field(key="dropout/rngs", tag="default")
        cached: Float32[Array, " o"] = cs.field(type=nnx.Cache, collection="cache")
        seen: Float32[Array, " o"] = cs.field(type=nnx.Intermediate, collection="intermediates")

    class Bare(cs.Schema):
        kernel: Float32[Array, "i o"]

    tx = optax.sgd(0.1)
    layouts = cs.linen.BareTrainState[Bare, tx], cs.nnx.TrainState[Attention, tx]
    error = refused(lambda: cs.derive(*layouts))
    assert [str(rule) for rule in error.rules] == [
        "private('dropout/key', fresh_key(0))",
        "private('dropout/count', fresh_key(0))",
        "private('cached', 0)",
        "private('seen', 0)",
    ]
    assert cs.derive(*layouts, rules=error.rules)


def test_2_2_a_count_is_offered_its_start_and_no_rule_is_made_of_it() -> None:
    tx = optax.sgd(0.1)
    error = refused(lambda: cs.derive(cs.linen.BareParams[Dense], cs.nnx.TrainState[Dense, tx]))
    (fault,) = error.mismatches
    assert not error.rules and "private('step', 0) starts it at 0" in fault.hint


# --- 2.4 certain only where it is unique both ways  ---


class Net(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.pre = nnx.LayerNorm(8, use_bias=False, rngs=rngs)
        self.up = nnx.Linear(8, 8, use_bias=False, rngs=rngs)
        self.post = nnx.LayerNorm(8, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(8, 8, use_bias=False, rngs=rngs)


def test_2_4_leaves_of_one_shape_are_candidates_on_both_sides() -> None:
    class Compact(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            for _ in range(2):
                x = linen.Dense(8, use_bias=False)(linen.LayerNorm(use_bias=False)(x))
            return x

    old = jax.eval_shape(Compact().init, jax.random.key(0), zeros(1, 8))
    error = refused(lambda: cs.derive(cs.infer(old), cs.infer(Net())))
    assert not error.rules and len(error.mismatches) == 8
    hints = {fault.path: fault.hint for fault in error.mismatches}
    assert hints["params/Dense_0/kernel"].startswith("one of ")
    assert all(name in hints["params/Dense_0/kernel"] for name in ("down/kernel", "up/kernel"))
    assert all(name in hints["params/down/kernel"] for name in ("Dense_0", "Dense_1"))
    assert "rename(" not in str(error)


def test_2_4_one_of_several_that_is_alone_in_its_node_is_certain() -> None:
    old = cs.infer({"a": {"w": zeros(3, 3), "b": zeros(3)}, "c": {"w": zeros(3, 3)}})
    new = cs.infer({"d": {"w": zeros(3, 3), "b": zeros(3)}, "e": {"w": zeros(3, 3)}})
    assert {str(rule) for rule in refused(lambda: cs.derive(old, new)).rules} == {
        "rename('a', 'd')",
        "rename('c', 'e')",
    }


def test_2_4_numbers_that_may_have_shifted_are_no_proof() -> None:
    """All but one join by name; that one may be any of them, for the numbers may have shifted."""
    old = cs.infer({f"block_{i}": {"w": zeros(3, 3)} for i in range(3)})
    new = cs.infer({f"block_{i + 1}": {"w": zeros(3, 3)} for i in range(3)})
    error = refused(lambda: cs.derive(old, new))
    assert not error.rules and len(error.mismatches) == 2


# --- 2.11 a wrapper's own leaves are reset, and the moments stay  ---

ADAM = optax.adam(1e-2)


@pytest.mark.parametrize(
    ("wrapped", "fields"),
    [
        (optax.apply_if_finite(ADAM, 5), ["last_finite", "notfinite_count", "total_notfinite"]),
        (optax.MultiSteps(ADAM, 2).gradient_transformation(), ["acc_grads", "gradient_step", "mini_step"]),
        (optax.inject_hyperparams(optax.adam)(learning_rate=1e-2), ["count", "hyperparams"]),
        (optax.conditionally_mask(ADAM, lambda step: step > 0), ["step"]),
        (optax.chain(optax.apply_if_finite(ADAM, 5)), ["0/last_finite", "0/notfinite_count", "0/total_notfinite"]),
    ],
    ids=["apply_if_finite", "MultiSteps", "inject_hyperparams", "conditionally_mask", "in a chain"],
)  # fmt: skip
@pytest.mark.parametrize("unwrapped", [False, True])
def test_2_11_the_own_leaves_of_a_wrapper_are_reset_by_name(
    wrapped: Any, fields: list[str], unwrapped: bool
) -> None:
    side = "source" if unwrapped else "view"
    txs = (wrapped, ADAM) if unwrapped else (ADAM, wrapped)
    layouts = cs.linen.BareTrainState[Body, txs[0]], cs.nnx.TrainState[Body, txs[1]]
    error = refused(lambda: cs.derive(*layouts))
    assert sorted(map(str, error.rules)) == [f"reset({side}='opt_state/{f}')" for f in fields]
    lens = cs.derive(*layouts, rules=error.rules)
    moments = {row.path[-3:] for row in lens.source.rows if {"mu", "nu"} & set(row.path)}
    joined = {lens.source.rows[number].path[-3:] for number in lens.joined[0]}
    assert len(moments) == 8 and moments <= joined


def test_2_11_wrappers_around_a_chain_that_has_two_of_one_kind() -> None:
    """Types alone tell two Adams apart no more; that all of it stands in the wrapper does."""

    def labels(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key, params)

    inner = optax.partition({"body": ADAM, "head": ADAM}, labels)
    layouts = (
        cs.linen.BareTrainState[Body, inner],
        cs.linen.BareTrainState[Body, optax.apply_if_finite(inner, 5)],
    )
    lens = cs.derive(*layouts, rules=refused(lambda: cs.derive(*layouts)).rules)
    assert len(lens.joined[0]) == len(lens.source.rows)


def test_2_11_weights_alone_have_no_optimizer_state_that_could_be_it() -> None:
    layouts = cs.linen.BareParams[Body], cs.nnx.TrainState[Body, ADAM]
    error = refused(lambda: cs.derive(*layouts))
    assert [str(rule) for rule in error.rules] == ["reset(view='opt_state')"]
    assert cs.derive(*layouts, rules=[*error.rules, cs.private("step", 0)])
    (rule,) = refused(lambda: cs.derive(*layouts[::-1])).rules
    assert str(rule) == "reset(source='opt_state')"


# --- 2.12 what really differs  ---


class LoraDense(Dense):
    lora_a: Float32[Array, "i r"] = cs.field(type=nnx.LoRAParam, default=0)
    lora_b: Float32[Array, "r o"] = cs.field(type=nnx.LoRAParam, default=0)


class LoraBody(cs.Schema):
    body: Dense = cs.field(dims={"i": "inputs", "o": "hidden"})
    head: LoraDense = cs.field(dims={"i": "hidden", "o": "classes"})


def test_2_12_what_the_other_side_does_not_train_is_left_behind() -> None:
    layouts = cs.linen.BareTrainState[Body, ADAM], cs.nnx.TrainState[LoraBody, ADAM, nnx.LoRAParam]
    error = refused(lambda: cs.derive(*layouts))
    assert {str(rule) for rule in error.rules} == {
        "reset(source='opt_state/0/mu')",
        "reset(source='opt_state/0/nu')",
    }
    assert "wrt=" in str(error) and "declare it alike" not in str(error)
    assert cs.derive(*layouts, rules=error.rules)


def part(head: str, body: str) -> Any:
    """Trains the head and the body, or freezes them."""

    def labels(params: Any) -> Any:
        def label(path: Any, _: Any) -> str:
            return head if "head" in jax.tree_util.keystr(path) else body

        return jax.tree_util.tree_map_with_path(label, params)

    return optax.partition({"train": ADAM, "freeze": optax.set_to_zero()}, labels)


def test_2_12_what_is_trained_from_now_on_starts_anew() -> None:
    layouts = [cs.nnx.TrainState[Body, part("train", body)] for body in ("freeze", "train")]
    error = refused(lambda: cs.derive(*layouts))
    moments = "opt_state/inner_states/train/inner_state/0"
    assert {str(rule) for rule in error.rules} == {
        f"reset(view='{moments}/mu/body')",
        f"reset(view='{moments}/nu/body')",
    }
    assert "Param here and Param there" not in str(error)
    lens = cs.derive(*layouts, rules=error.rules)
    assert len(lens.joined[0]) == len(lens.source.rows)


def test_2_12_a_group_of_another_name_keeps_its_moments() -> None:
    """The same transformation trains the leaf on, under another label: its moments are carried over."""

    def labels(which: str) -> Callable[[Any], Any]:
        return lambda params: {**jax.tree.map(lambda _: "b", params), "body": which}

    txs = {"a": optax.adam(1e-2), "b": optax.adam(1e-3)}
    layouts = [
        cs.linen.BareTrainState[Three, optax.partition(txs, labels(which))] for which in ("a", "b")
    ]
    error = refused(lambda: cs.derive(*layouts))
    assert not [rule for rule in error.rules if "mu" in str(rule) and "reset" in str(rule)]


class Three(cs.Schema):
    body: Float32[Array, "a b"]
    head: Float32[Array, "b c"]
    last: Float32[Array, "c d"]


def test_2_12_the_number_of_axes_is_said_where_it_differs() -> None:
    """Muon takes matrices: what one side stores on three axes, the other on two, two transformations train."""

    class Flat(cs.Schema):
        query: Float32[Array, "embed heads*dim"]
        other: Float32[Array, "embed mlp"]

    class Split(cs.Schema):
        query: Float32[Array, "embed heads dim"]
        other: Float32[Array, "embed mlp"]

    tx = optax.contrib.muon(1e-2)
    error = refused(
        lambda: cs.derive(cs.linen.BareTrainState[Split, tx], cs.nnx.TrainState[Flat, tx])
    )
    assert "the number of its axes" in str(error)
    assert cs.derive(
        cs.linen.BareTrainState[Split, tx], cs.nnx.TrainState[Flat, tx], rules=error.rules
    )


# --- 2.14 hints that, followed, give another lens  ---


def test_2_14_one_of_two_leaves_that_make_one_is_not_given_up() -> None:
    class Torch(cs.Schema):
        bi: Float32[Array, " hidden"] = cs.field(key="bias_ih")
        bh: Float32[Array, " hidden"] = cs.field(key="bias_hh")

    class Cell(cs.Schema):
        bh: Float32[Array, " hidden"] = cs.field(key="bias")

    error = refused(lambda: cs.derive(Torch, Cell))
    assert not error.rules
    assert not made_up(error)


def test_2_14_a_reset_of_one_side_asks_for_the_other() -> None:
    make = optax.inject_hyperparams(optax.adamw)
    old, new = make(learning_rate=1e-3), make(learning_rate=1e-5)
    layouts = cs.linen.BareTrainState[Body, old], cs.nnx.TrainState[Body, new]
    rate = "opt_state/hyperparams/learning_rate"
    given = [cs.reset(view=rate)]
    error = refused(lambda: cs.derive(*layouts, rules=given))
    assert [str(rule) for rule in error.rules] == [f"reset(source='{rate}')"]
    assert "move(" not in str(error)
    assert cs.derive(*layouts, rules=[*given, *error.rules])


def test_2_14_two_groups_that_become_one_part_are_open() -> None:
    def labels(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key, params)

    two = optax.partition({"body": ADAM, "head": ADAM}, labels)
    layouts = cs.linen.BareTrainState[Body, two], cs.linen.BareTrainState[Body, ADAM]
    for pair in (layouts, layouts[::-1]):
        error = refused(lambda pair=pair: cs.derive(*pair))
        assert not error.rules and "move(" not in str(error) and "reset(" not in str(error)


def test_2_14_moves_of_an_untold_chain() -> None:
    """A state that was read off dicts tells no types: what stands at a position tells it, if that is the only one."""
    params = {"w": zeros(2, 3)}
    adam = {"count": np.int32(0), "mu": params, "nu": params}
    old = {"step": np.int32(0), "params": params, "opt_state": {"0": adam}}
    new = {"step": np.int32(0), "params": params, "opt_state": {"1": {"0": adam}}}
    layouts = cs.infer(old), cs.infer(new)
    (rule,) = refused(lambda: cs.derive(*layouts)).rules
    assert str(rule) == "move('opt_state', 'opt_state/1')"
    lens = cs.derive(*layouts, rules=[rule])
    assert len(lens.joins) == len(lens.source.rows)


def test_2_14_raw_data_may_be_a_key() -> None:
    class Typed(cs.Schema):
        key: cs.Key["fry"]

    class Raw(cs.Schema):
        rng: UInt32[Array, " 2"]

    error = refused(lambda: cs.derive(Typed, Raw))
    assert not error.rules and all(" may be " in fault.hint for fault in error.mismatches)


def as_saved() -> dict[str, Any]:
    """What ``numpy.load`` makes of a bfloat16."""
    file = io.BytesIO()
    np.savez(file, w=np.asarray(jnp.arange(6, dtype=jnp.bfloat16).reshape(3, 2)))
    file.seek(0)
    return dict(np.load(file).items())


class Half(cs.Schema):
    w: BFloat16[Array, "o i"]


def test_2_14_bytes_without_a_dtype_are_to_be_viewed() -> None:
    tree = as_saved()
    error = refused(lambda: cs.derive(Half, Half).get(tree))
    assert "x.view(jax.numpy.bfloat16)" in str(error) and "cast it yourself" not in str(error)
    viewed = {"w": tree["w"].view(jnp.bfloat16)}
    assert cs.check(Half, viewed).ok

    class Single(cs.Schema):
        w: Float32[Array, "o i"]

    error = refused(lambda: cs.assert_conforms(Single, tree))
    assert "2 an element, which is no float32" in str(error)


def test_2_14_no_layout_is_read_off_bytes_without_a_dtype() -> None:
    error = refused(lambda: cs.infer(as_saved()))
    assert "x.view(jax.numpy.bfloat16)" in str(error)


# --- 2.9 the nearer side is the one of which more matches  ---


def test_2_9_a_target_that_lacks_one_level_is_near_its_own_side(tmp_path: Path) -> None:
    lens = cs.derive(cs.linen.TrainState[Body, ADAM], cs.nnx.TrainState[Body, ADAM])
    params = {
        "body": {"kernel": zeros(2, 4), "bias": zeros(4)},
        "head": {"kernel": zeros(4, 3), "bias": zeros(3)},
    }
    variables = {"params": params}
    whole = {"step": np.int32(0), "params": variables, "opt_state": ADAM.init(variables)}
    lacking = {**whole, "params": params}
    cs.orbax.save(tmp_path / "0", whole, lens)
    error = refused(lambda: cs.orbax.restore(tmp_path / "0", lacking, lens))
    assert "nearest is linen.TrainState[Body]" in str(error)
    bare = {"step": np.int32(0), "params": params, "opt_state": ADAM.init(params)}
    error = refused(lambda: cs.orbax.restore(tmp_path / "0", bare, lens))
    assert "nearest is linen.TrainState[Body]" in str(error)


def test_2_9_a_checkpoint_that_lacks_one_level_too(tmp_path: Path) -> None:
    lens = cs.derive(cs.linen.TrainState[Body, ADAM], cs.nnx.TrainState[Body, ADAM])
    params = {
        "body": {"kernel": jnp.zeros((2, 4)), "bias": jnp.zeros(4)},
        "head": {"kernel": jnp.zeros((4, 3)), "bias": jnp.zeros(3)},
    }
    ocp.save(
        tmp_path / "0", {"step": jnp.int32(0), "params": params, "opt_state": ADAM.init(params)}
    )
    target = lens.get(
        {
            "step": jnp.int32(0),
            "params": {"params": params},
            "opt_state": ADAM.init({"params": params}),
        }
    )
    error = refused(lambda: cs.orbax.restore(tmp_path / "0", target, lens))
    assert "nearest is linen.TrainState[Body]" in str(error)


# --- 2.15 what a body does not declare and a model works without  ---


class Mlp(nnx.Module):
    def __init__(self, extra: Any = None) -> None:
        rngs = nnx.Rngs(0)
        self.body = nnx.Linear(2, 4, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)
        if extra is not None:
            self.extra = extra


EXTRAS: dict[str, Callable[[], Any]] = {
    "a stream": lambda: nnx.Dropout(0.5, rngs=nnx.Rngs(1)),
    "an intermediate": lambda: nnx.Intermediate((jnp.zeros(3),)),
    "a cache": lambda: nnx.Cache(jnp.full(3, 2.0)),
    "a metric": lambda: nnx.metrics.Average("loss"),
}
WEIGHTS = cs.derive(cs.linen.BareParams[Body], cs.nnx.Params[Body])


def identical(left: Any, right: Any) -> None:
    cs.assert_trees_identical(nnx.to_pure_dict(left), nnx.to_pure_dict(right))


@pytest.mark.parametrize("name", EXTRAS)
@pytest.mark.parametrize("form", [lambda model: model, nnx.state], ids=["module", "state"])
def test_2_15_what_is_not_declared_is_left_as_the_target_has_it(
    name: str, form: Callable[[Any], Any], tmp_path: Path
) -> None:
    params = WEIGHTS.put(nnx.state(Mlp()))
    params = jax.tree.map(lambda x: x + 1, params)
    ocp.save(tmp_path / "0", params)
    model = Mlp(EXTRAS[name]())
    before = nnx.state(model)["extra"]
    before = jax.tree.map(lambda x: x, before)
    made = cs.orbax.restore(tmp_path / "0", form(model), WEIGHTS)
    state = nnx.state(made) if isinstance(made, nnx.Module) else made
    assert jax.tree.structure(state) == jax.tree.structure(nnx.state(model))
    cs.assert_trees_identical(jax.tree.leaves(state["extra"]), jax.tree.leaves(before))
    np.testing.assert_array_equal(state["head"]["kernel"][...], params["head"]["kernel"])


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("a stream", 'extra: cs.Stream["fry"] = cs.field(key=\'extra/rngs\', default=cs.fresh_key(0)'),
        ("an intermediate", "nnx.state(model, nnx.Not(nnx.Intermediate))"),
        ("a cache", "nnx.state(model, nnx.Not(nnx.Cache))"),
        ("a metric", "nnx.state(model, nnx.Not(nnx.metrics.MetricState))"),
    ],
)  # fmt: skip
def test_2_15_elsewhere_the_line_to_write_is_named(name: str, cure: str) -> None:
    model = Mlp(EXTRAS[name]())
    error = refused(lambda: WEIGHTS.put(nnx.state(model)))
    assert cure in str(error)


def test_2_15_the_line_that_is_named_declares_the_stream() -> None:
    class Dropping(Body):
        extra: cs.Stream["fry"] = cs.field(key="extra/rngs", default=cs.fresh_key(0), tag="default")

    assert cs.check(cs.nnx.Params[Dropping], nnx.state(Mlp(EXTRAS["a stream"]()))).ok


def test_2_15_streams_beside_the_model_are_left_alone_too(tmp_path: Path) -> None:
    class Training(nnx.Module):
        def __init__(self) -> None:
            self.model = Mlp()
            self.optimizer = nnx.Optimizer(self.model, ADAM, wrt=nnx.Param)
            self.rngs = nnx.Rngs(1)

    lens = cs.derive(cs.linen.BareTrainState[Body, ADAM], cs.nnx.TrainState[Body, ADAM])
    ocp.save(tmp_path / "0", state_of(ADAM))
    training = cs.orbax.restore(tmp_path / "0", Training(), lens)
    assert isinstance(training.rngs, nnx.Rngs)
    error = refused(lambda: lens.put(nnx.state(Training())))
    assert "a stream beside the model" in str(error)


def test_2_15_a_weight_that_is_not_declared_is_still_a_fault(tmp_path: Path) -> None:
    ocp.save(tmp_path / "0", WEIGHTS.put(nnx.state(Mlp())))
    model = Mlp(nnx.BatchStat(jnp.zeros(3)))
    error = refused(lambda: cs.orbax.restore(tmp_path / "0", model, WEIGHTS))
    assert "extra" in str(error)


# --- 2.16 weights that are not the params  ---

FREE = optax.contrib.schedule_free_adamw(1e-2, b1=0.9)
SERVED = "optax.contrib.schedule_free_eval_params"


def state_of(tx: Any) -> dict[str, Any]:
    params = WEIGHTS.put(nnx.state(Mlp()))
    return {"step": jnp.int32(0), "params": params, "opt_state": tx.init(params)}


def test_2_16_dropping_the_state_of_schedule_free_is_told() -> None:
    sgd = optax.sgd(1e-2)
    layouts = cs.linen.BareTrainState[Body, FREE], cs.nnx.TrainState[Body, sgd]
    lens = cs.derive(*layouts, rules=refused(lambda: cs.derive(*layouts)).rules)
    with pytest.warns(cs.ServedWeightsWarning, match=SERVED):
        made = lens.get(state_of(FREE))
    with pytest.warns(cs.ServedWeightsWarning, match=SERVED):
        (~lens).put(state_of(FREE))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lens.put(made)
        cs.derive(layouts[0], cs.nnx.TrainState[Body, FREE]).get(state_of(FREE))


def test_2_16_taking_the_weights_alone_from_a_checkpoint_is_told(tmp_path: Path) -> None:
    ocp.save(tmp_path / "0", state_of(FREE))
    with pytest.warns(cs.ServedWeightsWarning, match=SERVED):
        cs.orbax.restore(tmp_path / "0", Mlp(), WEIGHTS)
    ocp.save(tmp_path / "1", state_of(ADAM))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cs.orbax.restore(tmp_path / "1", Mlp(), WEIGHTS)
