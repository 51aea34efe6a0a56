"""Models that train in Linen and in NNX: converted both ways in mid-training, they go on with the same losses, bit for bit."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh
from orbax.checkpoint import v1 as ocp
from pair_models import Run, images, make_mesh, placed, sharded, train
from pair_schemas import NAMES, Pair, pair
from support.profiles import THOROUGH

import ckpt_schema as cs

BEFORE, AFTER = range(3), range(3, 7)


@pytest.fixture(scope="module", params=NAMES)
def at(request: pytest.FixtureRequest) -> Pair:
    """Each pair, with all of its tests in a row: what it compiles is compiled once."""
    return pair(request.param)


def assert_same_run(at: Pair, linen: tuple[Any, list[str]], view: tuple[Any, list[str]]) -> None:
    """Losses are equal as hexadecimal floats, they do change, and each final state is what the lens makes of the other."""
    assert linen[1] == view[1]
    assert len(set(linen[1])) == len(AFTER)
    cs.assert_trees_identical(at.lens.get(linen[0], onto=view[0]), view[0])
    cs.assert_trees_identical(at.lens.put(view[0], onto=linen[0]), linen[0])


def test_both_declared_layouts_are_those_of_the_real_train_states(at: Pair) -> None:
    assert cs.check(at.lens.source, at.linen.start) == []
    assert cs.check(at.lens.view, at.nnx.start) == []
    assert jax.tree.structure(at.lens.get(at.linen.start)) == jax.tree.structure(at.nnx.start)


def test_what_linen_began_goes_on_in_nnx_with_the_same_losses(at: Pair) -> None:
    state, _ = train(at.linen, at.linen.start, BEFORE)
    module = at.nnx.module(at.nnx.start)
    nnx.update(module, at.lens.get(state))
    cs.assert_trees_identical(at.lens.put(nnx.state(module), onto=state), state)
    assert_same_run(at, train(at.linen, state, AFTER), train(at.nnx, nnx.state(module), AFTER))


def test_what_nnx_began_goes_on_in_linen_with_the_same_losses(at: Pair) -> None:
    state, _ = train(at.nnx, at.nnx.start, BEFORE)
    linen = at.lens.put(state, onto=at.linen.start)
    cs.assert_trees_identical(at.lens.get(linen, onto=state), state)
    assert_same_run(at, train(at.linen, linen, AFTER), train(at.nnx, state, AFTER))


def test_a_run_that_is_converted_to_and_fro_at_every_step_has_the_losses_of_one_that_never_is(
    at: Pair,
) -> None:
    straight = converted = at.linen.start
    for number in AFTER:
        step = range(number, number + 1)
        straight, losses = train(at.linen, straight, step)
        view, others = train(at.nnx, at.lens.get(converted), step)
        converted = at.lens.put(view, onto=converted)
        assert others == losses
        cs.assert_trees_identical(converted, straight)


@pytest.mark.parametrize("first", ["Linen", "NNX"])
def test_a_checkpoint_of_either_goes_on_in_both_on_another_mesh(
    at: Pair, first: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    number = NAMES.index(request.node.callspec.params["at"])
    if not THOROUGH and (number % 6, first) not in ((0, "Linen"), (3, "NNX")):
        pytest.skip("a sample of pairs, each with one that is first, but in the thorough profile")
    run = at.linen if first == "Linen" else at.nnx
    state, _ = train(run, run.start, BEFORE)
    cs.orbax.save(tmp_path / "0", placed(state, make_mesh(4, 2)), at.lens)
    mesh = make_mesh(2, 4)
    linen = restored(at, at.linen, tmp_path / "0", mesh)
    view = restored(at, at.nnx, tmp_path / "0", mesh)
    cs.assert_trees_identical(linen if run is at.linen else view, placed(state, mesh))
    cs.assert_trees_identical(at.lens.put(view, onto=linen), linen)
    assert_same_run(at, train(at.linen, linen, AFTER, mesh), train(at.nnx, view, AFTER, mesh))


def restored(at: Pair, run: Run, path: Path, mesh: Mesh) -> Any:
    """What is in the checkpoint, sharded over a mesh."""
    target = sharded(run.start, mesh)
    state = cs.orbax.restore(path, target, at.lens, aux=None if run is at.linen else "nnx_aux")
    found = [x.sharding for x in jax.tree.leaves(state)]
    assert found == [x.sharding for x in jax.tree.leaves(target)]
    assert not all(sharding.is_fully_replicated for sharding in found)
    return state


# --- what is special about each  ---


def test_running_averages_that_linen_gathered_are_those_that_nnx_evaluates_with() -> None:
    at, (pictures, _) = pair("ResNet"), images(99)
    state, _ = train(at.linen, at.linen.start, BEFORE)
    model = at.nnx.module(at.lens.get(state)).model
    model.eval()
    apply = jax.jit(functools.partial(at.linen.model.apply, train=False))
    logits, before = (
        apply({"params": state.params, "batch_stats": s.batch_stats}, pictures)
        for s in (state, at.linen.start)
    )
    np.testing.assert_array_equal(nnx.jit(lambda model, x: model(x))(model, pictures), logits)
    assert not np.array_equal(logits, before), "the averages take part"


@pytest.mark.parametrize("name", ["LoRA", "LoRA alone"])
def test_only_adapters_are_trained_and_only_they_have_moments(name: str) -> None:
    at = pair(name)
    start = at.lens.get(at.linen.start)
    state, _ = train(at.nnx, start, BEFORE)
    changed = {
        path
        for path, *_ in (
            d.path.split("/value") for d in cs.differences(start["model"], state["model"])
        )
    }
    assert changed == {
        f"{layer}/lora/lora_{matrix}" for layer in ("wi", "wo") for matrix in ("a", "b")
    }
    moments = {
        path[-3:] for path, _ in nnx.to_flat_state(state["optimizer"]) if {"mu", "nu"} & set(path)
    }
    assert {"/".join(path) for path in moments if path[1] == "lora"} == changed


def test_a_table_under_two_attributes_is_still_one_table_after_a_restore(tmp_path: Path) -> None:
    at = pair("tied embeddings")
    state, _ = train(at.linen, at.linen.start, BEFORE)
    ocp.save(tmp_path / "0", state)
    module = cs.orbax.restore(tmp_path / "0", at.nnx.module(at.nnx.start), at.lens)
    assert module.model.embed is module.model.decoder.table
    assert set(nnx.state(module)["model"]) == {"decoder"}
    cs.assert_trees_identical(nnx.state(module), at.lens.get(state))
    assert_same_run(at, train(at.linen, state, AFTER), train(at.nnx, nnx.state(module), AFTER))
