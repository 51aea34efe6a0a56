"""What a checkpoint lacks is made by the target's own function, where it is named, and nothing else is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import ckpt_schema as cs

TX = optax.adam(1e-2)


class Old(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.up = nnx.Linear(3, 4, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)


class New(nnx.Module):
    """The same with adapters, and with a head of its own beside the old one."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.up = nnx.Linear(3, 4, rngs=rngs)
        self.lora_up = nnx.LoRA(3, 2, 4, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)
        self.value_head = nnx.Linear(4, 1, kernel_init=nnx.initializers.normal(), rngs=rngs)


class Training(nnx.Module):
    def __init__(self, model: nnx.Module, wrt: Any = nnx.Param) -> None:
        self.model = model
        self.optimizer = nnx.Optimizer(model, TX, wrt=wrt)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Training]:
    training = Training(Old(nnx.Rngs(1)))
    gradients = jax.tree.map(jnp.ones_like, nnx.state(training.model, nnx.Param))
    training.optimizer.update(training.model, gradients)
    path = tmp_path_factory.mktemp("missing") / "1"
    cs.orbax.save(path, training)
    return path, training


def made() -> Training:
    return Training(New(nnx.Rngs(7)))


def test_named_leaves_are_made_and_all_others_are_restored(run: tuple[Path, Training]) -> None:
    path, old = run
    found = cs.orbax.restore(path, made, missing=cs.init("lora_*/**", "value_head/**"))
    wanted = made()
    assert isinstance(found, Training)
    for name in ("lora_a", "lora_b"):
        ours, theirs = (getattr(each.model.lora_up, name)[...] for each in (found, wanted))
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(
        found.model.value_head.kernel[...], wanted.model.value_head.kernel[...]
    )
    np.testing.assert_array_equal(found.model.up.kernel[...], old.model.up.kernel[...])
    mu = found.optimizer.opt_state[0].mu
    np.testing.assert_array_equal(
        mu["up"]["kernel"][...], old.optimizer.opt_state[0].mu["up"]["kernel"][...]
    )
    assert not mu["value_head"]["kernel"][...].any()
    assert found.optimizer.step[...] == 1


def test_nothing_is_computed_that_is_not_named(
    run: tuple[Path, Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = run
    programs: list[str] = []
    jit = jax.jit

    def spied(function: Any, **options: Any) -> Any:
        compiled = jit(function, **options)
        if getattr(function, "__name__", "") == "made":
            programs.append(compiled.lower().as_text())
        return compiled

    monkeypatch.setattr(jax, "jit", spied)
    cs.orbax.restore(path, made, missing=cs.init("lora_*/**", "value_head/**"))
    [text] = programs
    results = text.split("->", 1)[1].split("{\n")[0]
    assert "tensor<3x4xf32>" not in results and "tensor<4x1xf32>" in results


def test_what_is_not_named_is_still_an_error(run: tuple[Path, Training]) -> None:
    path, _ = run
    with pytest.raises(cs.DerivationError, match="value_head"):
        cs.orbax.restore(path, made, missing=cs.init("lora_*/**"))


def test_a_name_that_means_nothing_that_is_missing_is_an_error(run: tuple[Path, Training]) -> None:
    path, _ = run
    names = cs.init("lora_*/**", "value_head/**", "up/**")
    with pytest.raises(cs.ConformanceError, match=r"up/\*\*"):
        cs.orbax.restore(path, made, missing=names)


def test_a_target_that_is_no_function_cannot_make_what_is_missing(
    run: tuple[Path, Training],
) -> None:
    path, _ = run
    with pytest.raises(cs.ConformanceError, match="lambda"):
        cs.orbax.restore(path, made(), missing=cs.init("lora_*/**"))


def test_what_is_made_goes_to_the_mesh_that_the_function_says(run: tuple[Path, Training]) -> None:
    path, _ = run
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("x", "y"))

    def sharded() -> dict[str, Any]:
        model = New(nnx.Rngs(7))
        kernel = NamedSharding(mesh, PartitionSpec())
        return {"model": jax.lax.with_sharding_constraint(nnx.state(model), kernel)}

    found = cs.orbax.restore(
        path, lambda: sharded()["model"], missing=cs.init("lora_*/**", "value_head/**")
    )
    wanted = nnx.state(New(nnx.Rngs(7)))
    np.testing.assert_array_equal(
        found["value_head"]["kernel"][...], wanted["value_head"]["kernel"][...]
    )
