"""What bad input gets: one grouped error each, with the line that settles it. All of each text is held."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import optax
import pytest
from jaxtyping import Array, Float32, Int32
from orbax.checkpoint import v1 as ocp

import ckpt_schema as cs

TX = optax.sgd(0.1, momentum=0.9)


class Body(cs.Schema):
    w: Float32[Array, "a b"]


class Other(cs.Schema):
    v: Float32[Array, " b"]


class Weights(cs.Schema):
    params: Body


class Renamed(cs.Schema):
    q: Body


class Deep(cs.Schema):
    a: Body
    b: Body


LENS = cs.derive(Weights, Weights)


def weights() -> dict[str, Any]:
    return {"w": jnp.ones((2, 3))}


def said(run: Callable[[], object]) -> str:
    with pytest.raises(cs.CkptSchemaError) as error:
        run()
    return str(error.value)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("refused")
    state = {"step": jnp.int32(1), "params": weights(), "opt_state": TX.init(weights())}
    config = {"config": {"x": jnp.ones(1)}}
    ocp.save(root / "below", {**config, "model": {"params": weights()}})
    ocp.save(root / "whole", {**config, "model": state})
    ocp.save_checkpointables(root / "two", {"a": {"params": weights()}, "b": {"params": weights()}})
    ocp.save(root / "neither", {"params": {**weights(), "extra": jnp.ones(3)}, "x": jnp.ones(1)})
    return root


# --- Where it stands  ---


@pytest.mark.parametrize(
    ("lens", "at", "header"),
    [
        (LENS, None, "is a checkpoint of neither Weights (view) nor Weights (source); nearest is"),
        (LENS, "config", "(at config) is a checkpoint of neither Weights (view) nor"),
        (LENS, "nothing", "has nothing at nothing: 1 fault"),
        (None, None, "has no such state where it is read: 1 fault"),
    ],
)
def test_no_at_that_fits(root: Path, lens: Any, at: Any, header: str) -> None:
    text = said(lambda: cs.orbax.restore(root / "below", {"params": weights()}, lens, at=at))
    first, *lines = text.splitlines()
    assert first.startswith(f"{root / 'below'} {header}")
    where = "" if lens is None else f" in {root / 'below'}, at model"
    found = "one at model" if lens is None else f"one{where}"
    assert lines == [
        f"  at  expected a state where it is read, found {found}",
        "      -> pass at='model'",
    ]


def test_no_at_of_a_whole_train_state(root: Path) -> None:
    state = {"step": jnp.int32(0), "params": weights(), "opt_state": TX.init(weights())}
    for target in (state, {"params": weights()}):
        assert said(lambda target=target: cs.orbax.restore(root / "whole", target)) == (
            f"{root / 'whole'} has no such state where it is read: 1 fault\n"
            "  at  expected a state where it is read, found one at model\n"
            "      -> pass at='model'"
        )
    found = cs.orbax.restore(root / "whole", state, at="model")
    cs.assert_trees_identical(found["step"], jnp.int32(1))


def test_two_items_that_both_hold_params(root: Path) -> None:
    target = {"params": weights()}
    for lens in (LENS, None):
        assert said(lambda lens=lens: cs.orbax.restore(root / "two", target, lens)) == (
            f"{root / 'two'} holds several such states: 1 fault\n"
            "  item  expected one item that fits, found what fits in each of a, b\n"
            "        -> say which: item='a', or another of them"
        )


def test_a_checkpoint_of_neither_layout(root: Path) -> None:
    lens = cs.derive(Weights, Renamed, rules=[cs.rename("params", "q")])
    target = {"params": weights()}
    assert said(lambda: cs.orbax.restore(root / "neither", target, lens)) == (
        f"{root / 'neither'} is a checkpoint of neither Weights nor Renamed; nearest is Weights: 2 faults\n"
        "  params/extra  expected nothing, found float32[3]\n"
        "  x             expected nothing, found float32[1]\n"
        "dims: a=2 (from params/w), b=3 (from params/w)"
    )


# --- What an optimizer is of  ---


@pytest.mark.parametrize("of", ["weights", "step"])
def test_an_of_that_names_no_model(of: str) -> None:
    def declared() -> Any:
        class Run(cs.Schema):
            params: Body
            step: Int32[Array, ""]
            opt_state: cs.OptState = cs.optimizer(TX, of=of)

        return Run

    assert said(declared) == (
        "opt_state is not well declared: 1 fault\n"
        f"  opt_state  expected the name of an attribute that is one model (params), found of={of!r}\n"
        '             -> write of="params", params: Body beside it'
    )


def test_a_body_that_the_optimizer_does_not_mirror() -> None:
    class Run(cs.Schema):
        params: Body
        other: Other
        opt_state: cs.OptState = cs.optimizer(TX, of="other")

    state = {"params": weights(), "other": {"v": jnp.ones(3)}, "opt_state": TX.init(weights())}
    lines = said(lambda: cs.assert_conforms(Run, state)).splitlines()
    assert lines[1:3] == [
        "  opt_state/0  expected TraceState: trace, for the leaves of other, such as v, "
        "found the same for other leaves, such as w",
        "               -> it was made of another model than other: say which, optimizer(tx, of=...)",
    ]
    assert not any("found nothing" in line for line in lines)


# --- Rules, and readings  ---


def test_globs_that_match_nothing_or_draw() -> None:
    assert said(lambda: cs.derive(Deep, Deep, rules=[cs.scale("**/x*", 2.0)])) == (
        "no lens from Deep (source) to Deep (view): 1 fault\n"
        "  scale('**/x*', 2)  expected leaves of Deep (view) at **/x*, found none\n"
        "                     -> * is one segment or a part of one, ** any number of them; "
        "print the layout to see its paths"
    )
    rules = [cs.scale("*/w", 2.0), cs.scale("a/*", 4.0)]
    assert said(lambda: cs.derive(Deep, Deep, rules=rules)) == (
        "no lens from Deep (source) to Deep (view): 1 fault\n"
        "  scale('a/*', 4)  expected one rule for one path, found scale('*/w', 2) too\n"
        "                   -> they contradict one another: drop one of the two"
    )


def test_sizes_that_give_adapt_two_readings() -> None:
    stack = {"params": {"layers": {"kernel": jnp.zeros((3, 3, 4))}}}
    layers = {"params": {f"layers_{n}": {"kernel": jnp.zeros((3, 4))} for n in range(3)}}
    assert said(lambda: cs.adapt(stack, layers)) == (
        "source and view can be read in more than one way: 1 fault\n"
        "  layers  expected one axis that the layers of layers are stacked on, "
        "found several that fit 1 leaf each\n"
        "          -> the sizes do not tell; add one of scan={'layers': 0} or scan={'layers': 1}"
    )


# --- Targets that are made  ---


def failing() -> Any:
    raise ValueError("no such config\nand more")


def looking() -> Any:
    return {"params": weights()} if jnp.ones(2).sum() > 1 else None


@pytest.mark.parametrize(
    ("factory", "found"),
    [
        (failing, "ValueError: no such config"),
        (looking, "TracerBoolConversionError: Attempted boolean conversion of traced array with"),
        (lambda number: number, "TypeError: "),
    ],
)
def test_a_factory_that_fails_under_tracing(root: Path, factory: Any, found: str) -> None:
    name = factory.__name__
    for run in (
        lambda: cs.orbax.restore(root / "neither", factory),
        lambda: cs.adapt(root / "neither", factory),
        lambda: cs.infer(factory),
    ):
        header, fault, hint = said(run).splitlines()
        assert header == f"{name} cannot be traced: 1 fault"
        expected = "expected a function without arguments that jax.eval_shape takes, found "
        assert fault.startswith(f"  {name}  {expected}{found}")
        assert hint.strip() == (
            "-> it is traced, so that nothing is computed: nothing in it may depend on the values of arrays"
        )
