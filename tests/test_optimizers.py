"""Every optimizer of the installed optax, alone and wrapped: its declared state, there and back, on disk, a step further."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp
from support import optimizers
from support.optimizers import EXCEPTIONS, SIZED, SIZES, WRAPPERS, applicable, found, lens
from support.profiles import THOROUGH, sampled

import ckpt_schema as cs

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning"
    ),  # a few of optax's own are, and still have states
    pytest.mark.filterwarnings("ignore:Specifying a key:UserWarning"),
]


COUNT = itertools.count(1)


@pytest.fixture(autouse=True)
def few_executables() -> Iterator[None]:
    """Every optimizer is compiled anew, and a process can map only so much code."""
    yield
    if next(COUNT) % 50 == 0:
        jax.clear_caches()


NAMES = sorted(set(found()) - set(EXCEPTIONS))


def wrapped() -> list[tuple[str, str]]:
    """Each optimizer in each wrapper, or in two of them by turns."""
    pairs = [
        [(name, w) for w in WRAPPERS if w != "alone" and applicable(name, w)] for name in NAMES
    ]
    return [
        pair
        for at, several in enumerate(pairs)
        for k, pair in enumerate(several)
        if THOROUGH or (k - at) % 23 == 0
    ]


def states(name: str, wrapper: str) -> tuple[Any, Any, Any]:
    """A real Linen state, a real NNX module, and the transformation."""
    tx, sizes = WRAPPERS[wrapper](name), SIZED.get(name, SIZES)
    return optimizers.linen_state(tx, sizes), optimizers.NnxTrainState(tx, sizes), tx


EXTRA = {
    **dict.fromkeys(
        ("lbfgs", "scale_by_backtracking_linesearch", "scale_by_zoom_linesearch"),
        ("value", "grad", "value_fn"),
    ),
    **dict.fromkeys(
        ("momo", "momo_adam", "polyak_sgd", "reduce_on_plateau", "scale_by_polyak"), ("value",)
    ),
    **dict.fromkeys(("hutchinson_estimator_diag_hessian", "sophia"), ("obj_fn",)),
}
BATCHED = ("differentially_private_aggregate", "dpsgd")  # what takes a gradient for each example
STEPLESS = {
    "lookahead": "takes pairs of fast and slow params",
    "measure_with_ema": "makes a state of another structure in its first step",
    "monitor": "makes a state of another structure in its first step",
    "scale_by_muon": "takes the dimension numbers of every param",
}
STUCK = {  # what cannot take a step in optax or NNX themselves
    ("adopt", "inject_hyperparams"): "calls the number that its schedule has become",
    **{
        (name, wrapper): "takes the gradients of all params, of which a mask hides some"
        for name in ("lbfgs", "scale_by_backtracking_linesearch", "scale_by_zoom_linesearch")
        for wrapper in ("masked", "partition")
    },
    **{
        (name, wrapper): "takes a batch of gradients, of which a mask hides some"
        for name in BATCHED
        for wrapper in ("masked", "partition")
    },
    **{
        (
            name,
            wrapper,
        ): "takes a batch of gradients, and this wrapper asks for updates of the gradients' own shapes"
        for name in BATCHED
        for wrapper in ("MultiSteps", "apply_if_finite")
    },
    **{
        (name, wrapper): "has lists of factors, which NNX makes States of and this wrapper does not"
        for name in ("sm3", "scale_by_sm3")
        for wrapper in ("MultiSteps", "apply_if_finite")
    },
}


def stepped(name: str, linen: Any, module: Any, tx: Any) -> tuple[Any, Any]:
    """Both states after one step of training, with the same gradients."""
    extra = EXTRA.get(name, ())

    def value_of(tree: Any) -> jax.Array:
        return sum((jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(tree)), jnp.float32(0))

    def given(tree: Any) -> dict[str, Any]:
        every = {
            "value": value_of(tree),
            "grad": gradients(tree),
            "value_fn": value_of,
            "obj_fn": value_of,
        }
        return {key: value for key, value in every.items() if key in extra}

    def gradients(tree: Any) -> Any:
        found = jax.grad(value_of)(tree)
        return jax.tree.map(lambda x: x[None], found) if name in BATCHED else found

    updates, opt_state = tx.update(
        gradients(linen["params"]), linen["opt_state"], linen["params"], **given(linen["params"])
    )
    after = {
        "step": linen["step"] + 1,
        "params": optax.apply_updates(linen["params"], updates),
        "opt_state": opt_state,
    }
    weights = nnx.state(module.model, nnx.Param)
    module.optimizer.update(module.model, gradients(weights), **given(weights))
    return after, nnx.state(module)


def test_every_exception_is_there() -> None:
    named = (
        EXCEPTIONS.keys()
        | SIZED.keys()
        | STEPLESS.keys()
        | EXTRA.keys()
        | {name for name, _ in STUCK}
    )
    assert named <= found().keys() or optax.__version__ < "0.2.8"
    assert len(found()) > 100


@pytest.mark.parametrize("name", EXCEPTIONS)
def test_an_exception_is_refused_with_its_reason(name: str) -> None:
    with pytest.raises(cs.SchemaError, match="it mixes params"):
        lens(name)


@pytest.mark.parametrize("name", sorted(SIZED.keys() & found().keys()))
def test_a_state_whose_type_depends_on_sizes_asks_for_them(name: str) -> None:
    with pytest.raises(
        cs.SchemaError,
        match=r'give them, nnx.TrainState\[Body, tx, \{"embed": ..., "mlp": ..., "vocab": ...\}\]',
    ):
        _ = cs.nnx.TrainState[optimizers.NnxSchema, optimizers.make(name)]


EVERY = [*((name, "alone") for name in NAMES), *wrapped()]


@pytest.mark.parametrize(("name", "wrapper"), EVERY)
def test_declared_states_are_the_real_ones(name: str, wrapper: str) -> None:
    linen, module, _ = states(name, wrapper)
    through, real = lens(name, wrapper), nnx.state(module)
    assert cs.check(through.source, linen) == []
    assert cs.check(through.view, real) == []
    # Containers included: holes, lists of factors, named chains.
    assert jax.tree.structure(through.get(linen)) == jax.tree.structure(real)
    cs.assert_trees_identical(through.put(real), linen)
    cs.assert_trees_identical(through.get(linen, onto=real), real)
    cs.assert_trees_identical(through.put(through.get(linen)), linen)


@pytest.mark.parametrize(
    ("name", "wrapper"),
    sampled([pair for pair in EVERY if pair[0] not in STEPLESS and pair not in STUCK], 11),
)
def test_a_step_further_is_the_same_step(name: str, wrapper: str) -> None:
    linen, module, tx = states(name, wrapper)
    after, trained = stepped(name, linen, module, tx)
    through = lens(name, wrapper)
    cs.assert_trees_identical(through.put(trained, onto=after), after)
    nnx.update(module, through.get(after, onto=trained))
    again, further = stepped(name, after, module, tx)
    cs.assert_trees_identical(through.get(again, onto=further), further)


@pytest.mark.parametrize(("name", "wrapper"), sampled(EVERY, 7, 3))
def test_a_sharded_state_goes_through_disk(name: str, wrapper: str, tmp_path: Path) -> None:
    linen, module, _ = states(name, wrapper)
    meshes = [
        jax.make_mesh(shape, ("x", "y"), axis_types=(AxisType.Auto,) * 2)
        for shape in ((4, 2), (2, 4))
    ]

    def spread(x: jax.Array, on: Any) -> NamedSharding:
        free = iter(on.axis_names)
        return NamedSharding(
            on, PartitionSpec(*(next(free, None) if n % 8 == 0 and n else None for n in x.shape))
        )

    saved = jax.tree.map(lambda x: jax.device_put(x, spread(x, meshes[0])), linen)
    real = nnx.state(module)
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=spread(x, meshes[1])), real
    )
    if any(0 in x.shape for x in jax.tree.leaves(saved)):
        pytest.skip("Orbax saves no empty arrays")
    ocp.save(tmp_path / "0", saved)
    restored = cs.orbax.restore(tmp_path / "0", target, lens(name, wrapper))
    cs.assert_trees_identical(
        restored, jax.tree.map(lambda x, t: jax.device_put(x, t.sharding), real, target)
    )


@pytest.mark.parametrize(
    "name", ["muon", "sm3", "adafactor", "masked", "lbfgs", "novograd", "named_chain"]
)
def test_inferred_states_are_the_real_ones(name: str) -> None:
    linen, module, _ = states(name, "alone")
    real = nnx.state(module)
    layouts = cs.infer(linen, lists=["layers_{i}"]), cs.infer(real)
    through = cs.derive(*layouts, rules=[cs.rename("embed/embedding", "embed")])
    assert jax.tree.structure(through.get(linen)) == jax.tree.structure(real)
    cs.assert_trees_identical(through.put(real), linen)
    cs.assert_trees_identical(through.get(linen, onto=real), real)


@pytest.mark.parametrize("name", ["adafactor", "sm3", "novograd", "adam"])
def test_an_inferred_stack_is_that_of_the_params(name: str) -> None:
    kernel = jnp.arange(2.0 * 130 * 131).reshape(130, 2, 131)
    params = {"layers": {"kernel": kernel}}
    state = {
        "step": jnp.int32(0),
        "params": params,
        "opt_state": optimizers.make(name).init(params),
    }
    layout = cs.infer(state, scan={"layers": 1})
    assert cs.check(layout, state) == []
    stacked = {
        row.path: row.repeats for row in layout.rows if row.body and row.path[0] == "opt_state"
    }
    for path, repeats in stacked.items():
        assert ("layers[]" in path) == bool(repeats), path
        row = next(row for row in layout.rows if row.path == path)
        assert all(row.dims[r.axis] == (2,) for r in repeats if r.axis is not None), row
