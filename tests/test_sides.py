"""Trees and checkpoints that could be of either side of a lens: told apart where that is sure, and never guessed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jaxtyping import Array, Float32
from orbax.checkpoint import v1 as ocp

import ckpt_schema as cs


class Old(cs.Schema):
    kernel: Float32[Array, "embed mlp"]


class New(cs.Schema):
    kernel: Float32[Array, "mlp embed"]


LENS = cs.derive(Old, New)
MODULE = cs.derive(cs.linen.BareParams[Old], cs.nnx.Params[New])


def tree(rows: int = 2) -> dict[str, jax.Array]:
    return {"kernel": jnp.arange(3.0 * rows).reshape(rows, 3)}


def ambiguous(use: Callable[[], Any], argument: str) -> None:
    with pytest.raises(
        cs.ConformanceError, match=f'say which: {argument}="source" or {argument}="view"'
    ) as caught:
        use()
    assert [m.kind for m in caught.value.mismatches] == ["ambiguous"]


def test_a_state_that_could_be_on_either_side_is_saved_when_its_side_is_told(
    tmp_path: Path,
) -> None:
    ambiguous(lambda: cs.orbax.save(tmp_path / "0", tree(), LENS), "side")
    assert not list(tmp_path.iterdir())
    cs.orbax.save(tmp_path / "source", tree(), LENS, side="source")
    cs.orbax.save(tmp_path / "view", tree(), LENS, side="view")
    cs.assert_trees_identical(ocp.load(tmp_path / "source", tree()), tree())
    cs.assert_trees_identical(ocp.load(tmp_path / "view", LENS.put(tree())), LENS.put(tree()))


def test_variables_tell_the_side_of_a_state(tmp_path: Path) -> None:
    cs.orbax.save(tmp_path / "0", nnx.State({"kernel": nnx.Param(tree()["kernel"])}), MODULE)
    wanted = MODULE.put(tree())
    cs.assert_trees_identical(ocp.load(tmp_path / "0", wanted), wanted)


def test_a_target_that_could_be_on_either_side_is_told(tmp_path: Path) -> None:
    ocp.save(tmp_path / "0", tree())
    target = jax.eval_shape(lambda: LENS.get(tree()))
    ambiguous(lambda: cs.orbax.restore(tmp_path / "0", target, LENS), "target_side")
    cs.assert_trees_identical(
        cs.orbax.restore(tmp_path / "0", target, LENS, target_side="view"), LENS.get(tree())
    )
    turned = cs.orbax.restore(tmp_path / "0", target, LENS, target_side="source")
    cs.assert_trees_identical(turned, LENS.put(tree()))


def test_shapes_tell_what_is_on_disk(tmp_path: Path) -> None:
    target = nnx.State({"kernel": nnx.Param(jnp.zeros((3, 2)))})
    ocp.save(tmp_path / "linen", tree())
    ocp.save(tmp_path / "nnx", nnx.to_pure_dict(MODULE.get(tree())))
    for name in ("linen", "nnx"):
        cs.assert_trees_identical(
            cs.orbax.restore(tmp_path / name, target, MODULE), MODULE.get(tree())
        )


def test_a_checkpoint_that_could_be_of_either_side_is_told(tmp_path: Path) -> None:
    square = tree(3)
    ocp.save(tmp_path / "0", square)
    target = nnx.State({"kernel": nnx.Param(jnp.zeros((3, 3)))})
    ambiguous(lambda: cs.orbax.restore(tmp_path / "0", target, MODULE), "disk_side")
    restored = cs.orbax.restore(tmp_path / "0", target, MODULE, disk_side="source")
    cs.assert_trees_identical(restored, MODULE.get(square))
    restored = cs.orbax.restore(tmp_path / "0", target, MODULE, disk_side="view")
    cs.assert_trees_identical(restored["kernel"].get_value(), square["kernel"])


def test_sides_that_say_the_same_are_no_question(tmp_path: Path) -> None:
    same = cs.derive(Old, Old)
    cs.orbax.save(tmp_path / "0", tree(), same)
    cs.assert_trees_identical(cs.orbax.restore(tmp_path / "0", tree(), same), tree())


def test_a_side_that_is_told_wrong_is_an_error(tmp_path: Path) -> None:
    class Other(cs.Schema):
        weight: Float32[Array, "embed mlp"]

    lens = cs.derive(Old, Other, rules=[cs.rename("kernel", "weight")])
    with pytest.raises(cs.ConformanceError, match=r"nearest is .*Other: 2 fault"):
        cs.orbax.save(tmp_path / "0", tree(), lens, side="view")
