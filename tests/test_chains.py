"""Chains of transformations that have changed: what is aligned without a word, what is asked, and how new parts start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax_models import NnxSchema, NnxTrainState, ScannedSchema, linen_state, nnx_module
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Float32
from orbax.checkpoint import v1 as ocp
from support.profiles import examples

import ckpt_schema as cs
from ckpt_schema.testing import _laws as laws
from ckpt_schema.testing._container_kinds import orbax_tree

SCHEDULE = optax.linear_schedule(1e-3, 0.0, 10)
KEEPS: dict[str, Any] = {
    "adam": optax.scale_by_adam,
    "trace": lambda: optax.trace(0.9),
    "ema": lambda: optax.ema(0.9),
    "schedule": lambda: optax.scale_by_schedule(SCHEDULE),
    "noise": lambda: optax.add_noise(0.1, 0.5, jax.random.key(1)),
    "rms": optax.scale_by_rms,
}
NOTHING: dict[str, Any] = {
    "clip": lambda: optax.clip_by_global_norm(1.0),
    "decay": lambda: optax.add_decayed_weights(1e-4),
    "scale": lambda: optax.scale(-1.0),
}
WRAPPERS: dict[str, Any] = {
    "chain": lambda tx: optax.chain(optax.clip(1.0), tx),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, every_k_schedule=2),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
}


class Body(cs.Schema):
    """Two params, with the same names on both sides."""

    kernel: Float32[Array, "embed mlp"]
    bias: Float32[Array, " mlp"]


PARAMS = {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.arange(3.0) - 1}


def layout(tx: Any) -> cs.Layout:
    return cs.linen.BareTrainState[Body, tx]


def state(tx: Any, start: int = 3) -> dict[str, Any]:
    """A state in which no two leaves are equal."""
    made = {"step": jnp.int32(start), "params": PARAMS, "opt_state": tx.init(PARAMS)}
    flat, treedef = jax.tree.flatten(made)
    keys = jax.random.key(start)
    moved = [
        keys if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x + i + start
        for i, x in enumerate(flat)
    ]
    return treedef.unflatten(moved)


def kept(tree: Any) -> dict[str, Any]:
    """Every NamedTuple in a state that has leaves of its own, by its type."""
    found: dict[str, Any] = {}

    def visit(node: Any) -> bool:
        if hasattr(node, "_fields") and jax.tree.leaves(node):
            found[type(node).__name__] = node
        return False

    jax.tree.map(lambda x: x, tree, is_leaf=visit)
    return found


def faults(source: Any, view: Any) -> list[tuple[str, str]]:
    with pytest.raises(cs.DerivationError) as caught:
        cs.derive(source, view)
    return [(m.path, m.kind) for m in caught.value.mismatches]


# --- what is aligned  ---


@st.composite
def grown(draw: st.DrawFn) -> tuple[Any, Any]:
    """A chain, and the same with things around and between that keep nothing, parts nested in other ways."""
    names = draw(st.lists(st.sampled_from(sorted(KEEPS)), min_size=1, max_size=4, unique=True))

    def chain() -> Any:
        parts: list[Any] = []
        for name in names:
            parts += [
                NOTHING[n]() for n in draw(st.lists(st.sampled_from(sorted(NOTHING)), max_size=2))
            ]
            parts.append(KEEPS[name]())
        while len(parts) > 1 and draw(st.booleans()):
            at = draw(st.integers(0, len(parts) - 2))
            parts[at : at + 2] = [optax.chain(*parts[at : at + 2])]
        return optax.chain(*parts)

    return chain(), chain()


@given(grown(), st.integers(0, 9))
@examples(1)
def test_parts_follow_their_type_wherever_they_stand(chains: tuple[Any, Any], start: int) -> None:
    before, after = chains
    through = cs.derive(layout(before), layout(after))
    s, v = state(before, start), state(after, start + 20)
    made = through.get(s)
    assert jax.tree.structure(made) == jax.tree.structure(v)
    cs.assert_trees_identical(kept(made["opt_state"]), kept(s["opt_state"]))
    laws.get_put(through, s)
    laws.put_get(through, v)
    laws.abstraction(through, s, v)
    laws.sharing(through, s, v)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapper_around_the_old_chain_moves_it_one_level_down(wrapper: str) -> None:
    old = optax.adamw(SCHEDULE)
    new = WRAPPERS[wrapper](old)
    own = {"chain": [], "MultiSteps": ["opt_state"], "apply_if_finite": ["opt_state"]}[wrapper]
    rules = [cs.reset(view=f"opt_state/{name}") for name in _own(new)] if own else []
    through = cs.derive(layout(old), layout(new), rules=rules)
    s = state(old)
    made = through.get(s)
    cs.assert_trees_identical(
        kept(made["opt_state"])["ScaleByAdamState"], kept(s["opt_state"])["ScaleByAdamState"]
    )
    cs.assert_trees_identical(through.put(made, onto=s), s)


def _own(tx: Any) -> list[str]:
    """The fields of a wrapper's state that hold no inner state."""
    return [
        name
        for name in tx.init(PARAMS)._fields
        if not name.startswith("inner") and name != "skip_state"
    ]


def test_what_has_one_name_is_told_by_its_type() -> None:
    before = optax.chain(optax.scale_by_adam(), optax.scale_by_schedule(SCHEDULE))
    after = optax.chain(optax.scale_by_schedule(SCHEDULE), optax.scale_by_adam())
    s = state(before)
    made = cs.derive(layout(before), layout(after)).get(s)["opt_state"]
    cs.assert_trees_identical(made, (s["opt_state"][1], s["opt_state"][0]))


def test_renames_and_stacks_go_on_inside_of_a_part_that_moves() -> None:
    old, new = optax.adamw(1e-3), optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    through = cs.derive(cs.linen.TrainState[ScannedSchema, old], cs.nnx.TrainState[NnxSchema, new])
    same = cs.derive(cs.linen.TrainState[ScannedSchema, old], cs.nnx.TrainState[NnxSchema, old])
    s = linen_state(old)
    made, plain = through.get(s), same.get(s)
    cs.assert_trees_identical(made["optimizer"]["opt_state"][1], plain["optimizer"]["opt_state"])
    cs.assert_trees_identical(made["model"], plain["model"])
    cs.assert_trees_identical(through.put(made, onto=s), s)


# --- what is asked  ---


def test_a_part_is_never_taken_for_one_of_another_type() -> None:
    adam, belief = optax.adam(1e-3), optax.adabelief(1e-3)
    assert faults(layout(adam), layout(belief)) == [
        ("opt_state/0", "chain"),
        ("opt_state/0", "chain"),
    ]
    s = state(adam)
    forced = cs.derive(layout(adam), layout(belief), rules=[cs.move("opt_state/0", "opt_state/0")])
    cs.assert_trees_identical(jax.tree.leaves(forced.get(s)), jax.tree.leaves(s))


def test_which_of_several_of_one_type_is_not_guessed() -> None:
    one, two = optax.chain(optax.ema(0.9)), optax.chain(optax.ema(0.9), optax.ema(0.99))
    assert faults(layout(one), layout(two)) == [(f"opt_state/{at}", "chain") for at in (0, 0, 1)]
    s = state(one)
    for at in (0, 1):
        rules = [cs.move("opt_state/0", f"opt_state/{at}"), cs.reset(view=f"opt_state/{1 - at}")]
        made = cs.derive(layout(one), layout(two), rules=rules).get(s)["opt_state"]
        cs.assert_trees_identical(made[at], s["opt_state"][0])
        cs.assert_trees_identical(made[1 - at], two.init(PARAMS)[1 - at])
    settled = cs.derive(layout(one), layout(two), rules=[cs.reset(view="opt_state/1")])
    cs.assert_trees_identical(settled.get(s)["opt_state"][0], s["opt_state"][0])


def test_a_part_that_mirrors_other_params_is_not_the_same_part() -> None:
    every = optax.adam(1e-3)
    some = optax.chain(
        optax.clip(1.0), optax.masked(optax.adam(1e-3), {"kernel": True, "bias": False})
    )
    assert {path for path, _ in faults(layout(every), layout(some))} == {
        "opt_state/0",
        "opt_state/1/inner_state/0",
    }


def test_the_error_shows_both_chains_and_the_rules_that_settle_it() -> None:
    old = optax.sgd(0.1, momentum=0.9)
    new = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(SCHEDULE))
    with pytest.raises(cs.DerivationError) as caught:
        cs.derive(layout(old), layout(new))
    hints = [m.hint for m in caught.value.mismatches]
    assert hints == [
        "reset(source='opt_state/0') to leave it behind",
        "reset(view='opt_state/1/0') to start it anew",
        "reset(view='opt_state/1/1') to start it anew",
    ]
    shown = [line.split() for line in str(caught.value).splitlines()[-5:]]
    assert shown == [
        ["the", "two", "chains:"],
        ["linen.BareTrainState[Body]", "(source)", "linen.BareTrainState[Body]", "(view)"],
        ["opt_state/0", "TraceState", "opt_state/0", "EmptyState"],
        ["opt_state/1", "EmptyState", "opt_state/1/0", "ScaleByAdamState"],
        ["opt_state/1/1", "ScaleByScheduleState"],
    ]
    rules = [eval(f"cs.{hint.partition(')')[0]})") for hint in hints]
    through = cs.derive(layout(old), layout(new), rules=rules)
    made = through.get(state(old))
    cs.assert_trees_identical(made["opt_state"], new.init(made["params"]))


NEW = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(SCHEDULE))
OTHER_CHAIN = """3 faults
  opt_state/0    expected nothing, found trace
                 -> declare the transformation that made the state; a lens between both chains then aligns their parts
  opt_state/1/0  expected ScaleByAdamState: count, mu, nu, found nothing
                 -> declare the transformation that made the state; a lens between both chains then aligns their parts
  opt_state/1/1  expected ScaleByScheduleState: count, found nothing
                 -> declare the transformation that made the state; a lens between both chains then aligns their parts
dims: mlp=3 (from params/bias), embed=2 (from params/kernel)
  the two chains:
    linen.BareTrainState[Body]            the tree
    1/0  ScaleByAdamState: count, mu, nu  0  trace
    1/1  ScaleByScheduleState: count"""


def test_a_state_of_another_chain_is_told_as_such() -> None:
    momentum = state(optax.sgd(0.1, momentum=0.9))
    for tree in (momentum, orbax_tree(momentum)):
        with pytest.raises(cs.ConformanceError) as caught:
            cs.assert_conforms(layout(NEW), tree)
        assert str(caught.value).endswith(OTHER_CHAIN)


def test_a_checkpoint_of_another_chain_too(tmp_path: Path) -> None:
    momentum = optax.sgd(0.1, momentum=0.9)
    cs.orbax.save(tmp_path / "0", state(momentum), cs.derive(layout(momentum), layout(momentum)))
    with pytest.raises(cs.CheckpointMismatchError) as caught:
        cs.orbax.restore(
            tmp_path / "0", state(NEW), cs.derive(layout(NEW), cs.nnx.TrainState[Body, NEW])
        )
    assert str(caught.value).endswith(OTHER_CHAIN)


def test_a_part_of_which_one_leaf_is_there_is_told_leaf_by_leaf() -> None:
    tree = orbax_tree(state(NEW))
    del tree["opt_state"][1][0]["mu"]["bias"]
    assert [(fault.path, fault.kind) for fault in cs.check(layout(NEW), tree)] == [
        ("opt_state/1/0/mu/bias", "missing")
    ]


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (cs.move("opt_state/7", "opt_state/0"), "none"),
        (cs.move("opt_state/0", "opt_state/7"), "none"),
        (cs.reset(view="opt_state/7"), "none"),
        (cs.reset(source="params/kernel"), "a known start"),
    ],
)
def test_a_rule_that_fits_nothing_is_named(rule: Any, says: str) -> None:
    tx = optax.adam(1e-3)
    with pytest.raises(cs.DerivationError, match=says) as caught:
        cs.derive(layout(tx), layout(tx), rules=[rule])
    assert str(rule) in [m.path for m in caught.value.mismatches]


def test_where_types_are_not_told_the_hint_is_a_move_that_works() -> None:
    adam = optax.adam(1e-3)
    masked = {
        "step": jnp.int32(0),
        "params": PARAMS,
        "opt_state": optax.masked(adam, {"kernel": True, "bias": True}).init(PARAMS),
    }
    model = nnx.Dict({name: nnx.Param(value) for name, value in PARAMS.items()})
    view = nnx.state(nnx.Dict(model=model, optimizer=nnx.Optimizer(model, adam, wrt=nnx.Param)))
    layouts = cs.infer(masked), cs.infer(view)
    with pytest.raises(cs.DerivationError) as caught:
        cs.derive(*layouts)
    assert caught.value.rules == (cs.move("opt_state/inner_state", "opt_state"),)
    lens = cs.derive(*layouts, rules=caught.value.rules)
    cs.assert_trees_identical(lens.put(view, onto=masked), masked)


def test_what_has_no_transformation_cannot_start_anew() -> None:
    tx = optax.adam(1e-3)
    inferred = cs.infer(state(tx))
    with pytest.raises(cs.DerivationError, match="declare the train state with its transformation"):
        cs.derive(inferred, inferred, rules=[cs.reset(view="opt_state/0", source="opt_state/0")])


# --- how new parts start  ---

STARTS = {
    "a copy of the params": optax.contrib.schedule_free(optax.sgd(0.1), 0.1),
    "a key": optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(7)), optax.sgd(0.1)),
    "a learning rate": optax.inject_hyperparams(optax.sgd)(learning_rate=0.25, momentum=0.9),
    "factors": optax.sm3(0.1),
    "holes": optax.masked(optax.adam(1e-3), {"kernel": True, "bias": False}),
}


# Of schedule_free's state the weights to serve are made, and nobody serves any here.
@pytest.mark.filterwarnings("ignore::ckpt_schema.errors.ServedWeightsWarning")
@pytest.mark.parametrize("name", STARTS)
def test_a_new_part_starts_as_its_transformation_starts_it(name: str) -> None:
    new, old = STARTS[name], optax.sgd(0.1)
    through = cs.derive(layout(old), layout(new), rules=[cs.reset(view="opt_state")])
    s, v = state(old), state(new, 9)
    cs.assert_trees_identical(through.get(s)["opt_state"], new.init(s["params"]))
    for law in (laws.get_put, laws.put_get):
        law(through, s if law is laws.get_put else v)
    laws.put_put(through, s, v, state(new, 30))
    laws.get_get(through, s, state(old, 30), v)
    laws.conforms(through, s, v)
    laws.abstraction(through, s, v)


def test_what_is_reset_on_both_sides_is_not_carried_over() -> None:
    tx = optax.adam(SCHEDULE)
    with pytest.raises(cs.DerivationError):
        cs.derive(layout(tx), layout(tx), rules=[cs.reset(view="opt_state/1")])
    through = cs.derive(
        layout(tx), layout(tx), rules=[cs.reset(source="opt_state/1", view="opt_state/1")]
    )
    s = state(tx)
    made = through.get(s)["opt_state"]
    assert made[1].count == 0
    cs.assert_trees_identical(made[0], s["opt_state"][0])


def test_a_new_param_brings_what_its_optimizer_keeps_for_it() -> None:
    class Grown(Body):
        scale: Float32[Array, " mlp"] = cs.field(default=1.5)

    tx = optax.chain(optax.adam(1e-3), optax.ema(0.9))
    for view, rules in ((Grown, []), (_Bare, [cs.private("scale", 1.5)])):
        made = cs.derive(layout(tx), cs.nnx.TrainState[view, tx], rules=rules).get(state(tx))
        assert made["model"]["scale"].get_value().tolist() == [1.5] * 3
        assert made["optimizer"]["opt_state"][0][0]["mu"]["scale"].get_value().tolist() == [0.0] * 3


class _Bare(Body):
    """With a param for which no default is declared."""

    scale: Float32[Array, " mlp"]


def test_new_parts_are_sharded_like_their_params() -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    sharded, whole = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in (("x",), ()))
    params = {
        "kernel": jax.device_put(jnp.ones((16, 3)), sharded),
        "bias": jax.device_put(jnp.ones(3), whole),
    }
    s = {
        "step": jax.device_put(jnp.int32(3), whole),
        "params": params,
        "opt_state": optax.sgd(0.1).init(params),
    }
    through = cs.derive(
        layout(optax.sgd(0.1)), layout(optax.adam(1e-3)), rules=[cs.reset(view="opt_state")]
    )
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), s
    )
    for made in (through.get(s), through.get(abstract)):
        adam = made["opt_state"][0]
        assert [adam.mu["kernel"].sharding, adam.nu["bias"].sharding, adam.count.sharding] == [
            sharded,
            whole,
            whole,
        ]


def test_a_restore_starts_new_parts_from_the_params_it_restores(tmp_path: Path) -> None:
    old, new = optax.adamw(1e-3), optax.contrib.schedule_free_adamw(1e-3)
    rules = [cs.reset(source="opt_state/0", view="opt_state")]
    through = cs.derive(
        cs.linen.TrainState[ScannedSchema, old], cs.nnx.TrainState[NnxSchema, new], rules=rules
    )
    saved = linen_state(old)
    ocp.save(
        tmp_path / "0", {"step": jnp.int32(7), "params": saved.params, "opt_state": saved.opt_state}
    )
    module = nnx_module(new)
    restored = cs.orbax.restore(tmp_path / "0", module, through)
    weights = nnx.state(restored.model, nnx.Param)
    cs.assert_trees_identical(weights, nnx.state(_translated(through, saved).model, nnx.Param))
    z = restored.optimizer.opt_state.z
    for mine, theirs in zip(jax.tree.leaves(z), jax.tree.leaves(weights), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def _translated(through: cs.Lens, saved: Any) -> NnxTrainState:
    module = nnx_module(optax.contrib.schedule_free_adamw(1e-3))
    nnx.update(module, through.get(saved, onto=nnx.state(module)))
    return module


def test_composed_lenses_start_what_each_of_them_starts() -> None:
    sgd, trace, adam = optax.sgd(0.1), optax.sgd(0.1, momentum=0.9), optax.adam(1e-3)
    first = cs.derive(layout(sgd), layout(trace), rules=[cs.reset(view="opt_state/0")])
    second = cs.derive(
        layout(trace), layout(adam), rules=[cs.reset(source="opt_state/0", view="opt_state/0")]
    )
    s, v = state(sgd), state(adam)
    cs.assert_trees_identical((first >> second).get(s), second.get(first.get(s)))
    cs.assert_trees_identical((first >> second).put(v), first.put(second.put(v)))


def test_parts_of_inferred_states_are_told_by_their_types_too() -> None:
    before = optax.chain(optax.scale_by_adam(), optax.scale_by_schedule(SCHEDULE))
    after = optax.chain(optax.clip(1.0), optax.scale_by_schedule(SCHEDULE), optax.scale_by_adam())
    s, v = state(before), state(after)
    through = cs.derive(cs.infer(s), cs.infer(v))
    cs.assert_trees_identical(
        through.get(s)["opt_state"][1:], (s["opt_state"][1], s["opt_state"][0])
    )
    laws.put_get(through, v)
