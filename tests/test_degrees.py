"""What an optimizer keeps for a param goes along where a rule scales it: by its degree."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from jax.sharding import AxisType
from jaxtyping import Array, Float32
from support import optimizers
from support.profiles import sampled, thorough_only

import ckpt_schema as cs
from ckpt_schema._frameworks.benches import Bench, StepPart, benches_of
from ckpt_schema._frameworks.degrees import Degree, Degrees, NoDegree
from ckpt_schema.testing import BrokenLawError, _origins, check_laws

C = 0.125
SIZES = {"embed": 4, "heads": 6}
WIDE = {"embed": 130, "heads": 129}


class Old(cs.Schema):
    q: Float32[Array, "embed heads"] = cs.field(key="Dense_0/kernel")
    k: Float32[Array, "embed heads"]


class New(cs.Schema):
    q: Float32[Array, "embed heads"]
    k: Float32[Array, "embed heads"]


RULE = cs.scale("q", C)


def derived(tx: Any, *sizes: Any, rules: Any = (RULE,)) -> cs.Lens:
    """The lens of two train states, of which the view's query is scaled."""
    return cs.derive(
        cs.linen.TrainState[(Old, tx, *sizes)], cs.nnx.TrainState[(New, tx, *sizes)], rules=rules
    )


def degrees(tx: Any, *sizes: Any) -> dict[str, Any]:
    """The degrees of what is kept for the query, by the path in the optimizer state."""
    found = Degrees(cs.nnx.TrainState[(New, tx, *sizes)]).all()
    return {"/".join(path[1:-1]): each for path, each in found.items() if path[-1] == "q"}


# --- The table  ---


def documented() -> dict[str, str]:
    """The table of the docs."""
    text = (Path(__file__).parents[1] / "docs" / "design.md").read_text()
    rows = re.findall(r"^\| (`[a-z0-9_`, ]+`) \| ([^|]+) \|$", text, re.MULTILINE)
    return {name: said for names, said in rows for name in re.findall(r"`(\w+)`", names)}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", sampled(sorted(documented()), 6))
def test_the_docs_say_the_degrees(name: str) -> None:
    if name not in optimizers.found():
        pytest.skip("this optax does not have it")
    assert optimizers.degrees(name) == documented()[name]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_docs_name_every_optimizer_that_keeps_something_for_params() -> None:
    named = documented().keys()
    missing = sorted(optimizers.found().keys() - named - optimizers.EXCEPTIONS.keys())
    keeping = [
        name for name in missing if any(r.mirrors for r in optimizers.lens(name).source.rows)
    ]
    assert keeping == []


WRAPPED = {
    "MultiSteps": (
        optax.MultiSteps(optax.adam(1e-3), 5).gradient_transformation(),
        {"inner_opt_state/0/mu": 1, "inner_opt_state/0/nu": 2, "acc_grads": 1},
    ),
    "inject_hyperparams": (
        optax.inject_hyperparams(optax.adamw)(learning_rate=1e-3),
        {"inner_state/0/mu": 1, "inner_state/0/nu": 2},
    ),
    "half precision": (optax.adamw(1e-3, mu_dtype=jnp.bfloat16), {"0/mu": 1, "0/nu": 2}),
    "clip of values": (optax.chain(optax.clip(1.0), optax.sgd(1.0, 0.9)), {"1/0/trace": None}),
    "a clip far above": (
        optax.chain(optax.clip_by_global_norm(1e5), optax.adam(1e-3)),
        {"1/0/mu": None, "1/0/nu": None},
    ),
    "decay in the gradient": (
        optax.chain(optax.add_decayed_weights(1e-4), optax.trace(0.9)),
        {"1/trace": None},
    ),
    "normalized by all": (
        optax.chain(optax.normalize_by_update_norm(), optax.trace(0.9)),
        {"1/trace": None},
    ),
    "steps of a trust ratio": (
        optax.chain(optax.scale_by_trust_ratio(), optax.trace(0.9)),
        {"1/trace": -1},
    ),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_what_a_wrapper_or_a_chain_does_is_seen(name: str) -> None:
    tx, expected = WRAPPED[name]
    found = degrees(tx)
    powers = {
        path: -each.power if isinstance(each, Degree) else None for path, each in found.items()
    }
    assert powers == expected


def test_a_chain_is_tried_for_each_param_by_itself() -> None:
    clipped = optax.chain(optax.clip_by_global_norm(1.0), optax.trace(0.9))

    def labels(tree: Any) -> Any:
        names = jax.tree_util.tree_map_with_path(lambda path, _: "'q'" in str(path), tree)
        return jax.tree.map(lambda is_q: "free" if is_q else "held", names)

    tx = optax.partition({"free": optax.trace(0.9), "held": clipped}, labels)
    found = Degrees(cs.linen.TrainState[New, tx]).all()
    by_param = {path[-1]: each for path, each in found.items()}
    assert by_param["q"] == Degree(1, 0)
    assert isinstance(by_param["k"], NoDegree)


# --- Training  ---

TRAINED = {
    "adamw": (optax.adamw(1e-2), SIZES),
    "momentum": (optax.sgd(1e-2, momentum=0.9), SIZES),
    "lion": (optax.lion(1e-2), SIZES),
    "rmsprop": (optax.rmsprop(1e-2), SIZES),
    "adagrad": (optax.adagrad(1e-2), SIZES),
    "adafactor": (optax.adafactor(1e-2), WIDE),
}


@pytest.mark.parametrize(
    ("name", "factor"),
    sampled([(name, factor) for name in TRAINED for factor in (0.125, 4.0)], 5),
)
def test_a_scaled_state_stays_that_of_the_scaled_model(name: str, factor: float) -> None:
    tx, sizes = TRAINED[name]
    lens = derived(tx, sizes, rules=[cs.scale("q", factor)])
    random = np.random.default_rng(0)

    def draw(shape: tuple[int, ...]) -> jax.Array:
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    def loss(params: Any, x: jax.Array, scaled: float) -> jax.Array:
        q, k = params["Dense_0"]["kernel"] / scaled, params["k"]
        return jnp.mean(jnp.square(jnp.tanh(x @ q) * (x @ k) - 1))

    shape = sizes["embed"], sizes["heads"]
    params = {"Dense_0": {"kernel": draw(shape)}, "k": draw(shape)}
    state = tx.init({"params": params})

    @jax.jit
    def step(state: Any, params: Any, x: jax.Array, scaled: float) -> Any:
        gradients = {"params": jax.grad(loss)(params["params"], x, scaled)}
        return tx.update(gradients, state, params)

    def tree(count: int) -> dict[str, Any]:
        return {"step": jnp.int32(count), "params": {"params": params}, "opt_state": state}

    scaled: Any = None
    for count in range(5):
        x = draw((3, sizes["embed"]))
        if count == 2:  # after some training, the state is carried over, and trained beside it
            scaled = to_dict(tx, lens.get(tree(count)), params)
        if scaled is not None:
            kernel = params["Dense_0"]["kernel"] * factor
            seen = {"params": {"Dense_0": {"kernel": kernel}, "k": params["k"]}}
            _, scaled = step(scaled, seen, x, factor)
        updates, state = step(state, {"params": params}, x, 1.0)
        params = optax.apply_updates(params, updates["params"])
    cs.assert_trees_identical(to_dict(tx, lens.get(tree(5)), params), scaled)
    cs.assert_trees_identical(lens.put(lens.get(tree(5))), tree(5))


def to_dict(tx: Any, state: Any, params: Any) -> Any:
    """The optimizer state of a view, as optax makes it for Linen's params."""
    shape = params["k"].shape
    same = cs.derive(
        cs.linen.TrainState[(Old, tx, dict(zip(("embed", "heads"), shape, strict=True)))],
        cs.nnx.TrainState[(New, tx, dict(zip(("embed", "heads"), shape, strict=True)))],
    )
    return same.put(state)["opt_state"]


# --- Rules  ---


def test_a_scaled_param_needs_no_word_about_its_moments() -> None:
    text = str(derived(optax.adamw(1e-3)))
    moments = [line.split()[-2:] for line in text.splitlines() if line.endswith(("2**3", "2**6"))]
    assert moments == [["times", "2**3"], ["times", "2**6"]]


def test_a_rule_for_the_moment_itself_wins() -> None:
    text = str(derived(optax.adam(1e-3), rules=[RULE, cs.scale("opt_state/0/mu/q", 1)]))
    assert "times 2**3" not in text and "times 2**6" in text


def test_where_no_degree_holds_the_error_gives_rules_that_mend_it() -> None:
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    with pytest.raises(cs.DerivationError, match="no power of the factor that carries it") as info:
        derived(tx)
    assert {fault.path for fault in info.value.mismatches} == {
        "opt_state/1/0/mu/q",
        "opt_state/1/0/nu/q",
    }
    assert "an epsilon or a norm of all params (linen.TrainState[Old])" in str(info.value)
    derived(tx, rules=[RULE, *info.value.rules])
    derived(tx, rules=[RULE, *(cs.scale(f"opt_state/1/0/{m}/q", 1) for m in ("mu", "nu"))])


def test_both_sides_have_to_agree() -> None:
    adam, clipped = optax.adam(1e-3), optax.chain(optax.clip(1.0), optax.adam(1e-3))
    with pytest.raises(cs.DerivationError, match=re.escape("(nnx.TrainState[New])")):
        cs.derive(cs.linen.TrainState[Old, adam], cs.nnx.TrainState[New, clipped], rules=[RULE])


def test_a_layout_of_a_tree_does_not_know_its_transformation() -> None:
    tx = optax.adam(1e-3)
    params = {"params": {"q": jnp.ones((4, 6)), "k": jnp.ones((4, 6))}}
    state = {"step": jnp.int32(0), "params": params, "opt_state": tx.init(params)}
    found = cs.infer(state)
    with pytest.raises(cs.DerivationError, match="does not know the transformation") as info:
        cs.derive(found, found, rules=[RULE])
    lens = cs.derive(found, found, rules=[RULE, *info.value.rules])
    assert "times 2**-3" in str(lens)


def test_why_there_is_no_degree() -> None:
    long = optax.MultiSteps(optax.adam(1e-3), 1000).gradient_transformation()
    found = degrees(long)
    assert found["acc_grads"] == Degree(1, 0)
    assert "it stays as it starts" in found["inner_opt_state/0/mu"].reason
    adagrad = optax.MultiSteps(optax.adagrad(1e-3), 1000).gradient_transformation()
    waiting = degrees(adagrad)["inner_opt_state/0/sum_of_squares"]
    assert "it stays as it starts" in waiting.reason
    lbfgs = Degrees(cs.linen.BareTrainState[New, optax.lbfgs()]).all()
    assert all("cannot be tried" in each.reason for each in lbfgs.values())
    huge = Degrees(
        cs.linen.BareTrainState[
            New,
            optax.adafactor(1e-3, min_dim_size_to_factor=10**5),
            {"embed": 10**6, "heads": 10**6},
        ]
    ).all()
    assert all("such large sizes" in each.reason for each in huge.values())


def test_nothing_is_run_where_no_param_is_scaled() -> None:
    def update(*_: Any, **__: Any) -> Any:
        raise AssertionError("it is run")

    adam = optax.adam(1e-3)
    silent = optax.GradientTransformationExtraArgs(adam.init, update)
    derived(silent, rules=[])
    with pytest.raises(cs.DerivationError, match="AssertionError: it is run"):
        derived(silent)


class Block(cs.Schema):
    query: Float32[Array, "embed heads dim"] = cs.field(key="attn/q/kernel")
    scale: Float32[Array, " embed"]


class Stacked(cs.Schema):
    blocks: Block = cs.field(scan="depth", axis=0)


class Layer(cs.Schema):
    q: Float32[Array, "heads*dim embed"]
    scale: Float32[Array, " embed"]


class Listed(cs.Schema):
    blocks: list[Layer] = cs.field(key="block_{i}", length="depth")


def test_moments_go_along_through_other_names_axes_and_stacks() -> None:
    tx = optax.adam(1e-3)
    lens = cs.derive(
        cs.linen.BareTrainState[Stacked, tx],
        cs.linen.BareTrainState[Listed, tx],
        rules=[cs.rename("blocks[]/query", "blocks[]/q"), cs.scale("blocks[]/q", C)],
    )
    random = np.random.default_rng(0)
    params = {
        "blocks": {
            "attn": {"q": {"kernel": jnp.asarray(random.normal(size=(2, 4, 3, 5)), jnp.float32)}},
            "scale": jnp.ones((2, 4)),
        }
    }
    _, state = tx.update(params, tx.init(params), params)
    seen = lens.get({"step": jnp.int32(1), "params": params, "opt_state": state})
    for number in range(2):
        for moment, power in ((state[0].mu, -1), (state[0].nu, -2)):
            kernel = moment["blocks"]["attn"]["q"]["kernel"][number]
            field = "mu" if power == -1 else "nu"
            found = getattr(seen["opt_state"][0], field)[f"block_{number}"]
            expected = np.asarray(kernel).reshape(4, 15).T * np.float32(C) ** power
            np.testing.assert_array_equal(found["q"], expected)
            np.testing.assert_array_equal(found["scale"], moment["blocks"]["scale"][number])


def test_a_lens_may_be_derived_where_transfers_are_guarded_and_on_a_mesh() -> None:
    on = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    with jax.set_mesh(on), jax.transfer_guard("disallow"):
        assert "times 2**6" in str(derived(optax.adam(4e-3)))


def test_a_lens_may_be_derived_while_jax_traces() -> None:
    @jax.jit
    def traced(x: jax.Array) -> jax.Array:
        assert "times 2**6" in str(derived(optax.adam(3e-3)))
        return x

    traced(jnp.ones(2))


def test_of_a_step_only_what_a_param_needs_is_run() -> None:
    names = {f"w{n}": Float32[Array, "embed mlp"] for n in range(40)}
    wide = type("Wide", (cs.Schema,), {"__annotations__": names, "__module__": __name__})
    for tx, alone in ((optax.adam(1e-3), True), (optax.contrib.prodigy(1e-3), False)):
        ((_, bench),) = benches_of(cs.linen.BareTrainState[wide, tx])
        assert isinstance(bench, Bench)
        moments = [n for n, row in enumerate(bench.table) if row.mirrors and row.path[-1] == "w0"]
        leaves = [i for i, row in enumerate(bench.rows) if row in moments]
        assert (len(StepPart.of(bench, leaves).used) < 10) == alone


class Scaled(cs.Schema):
    q: Float32[Array, "a b"]


@thorough_only
def test_laws_know_what_becomes_of_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle of the laws has degrees of its own: it holds those that a lens finds, and sees another."""
    tx = optax.adam(1e-3)
    sides = cs.linen.TrainState[Scaled, tx], cs.nnx.TrainState[Scaled, tx]
    lens = cs.derive(*sides, rules=[cs.scale("q", 0.25)])
    laws = ("Naming", "Values", "Inverse")
    check_laws(lens, laws, max_examples=4)
    monkeypatch.setattr(_origins, "DEGREES", {"mu": 1, "nu": 1})
    other = cs.derive(*sides, rules=[cs.scale("q", 0.5)])  # what is known of a lens is kept
    with pytest.raises(BrokenLawError, match="nu/q"):
        check_laws(other, laws, max_examples=4)
