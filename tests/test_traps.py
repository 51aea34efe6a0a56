"""Where checkpoints are silently wrong with Flax and Orbax alone, and what this library does instead.

T1, T2, T4, T5, T6 and T9 are beside the other tests of a restore.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as orbax_v0
import pytest
from flax import nnx
from jaxtyping import Array, Float32, UInt32

import ckpt_schema as cs

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning"
)  # what Orbax's older API says of targets without shardings

IMPLS = {"fry": "threefry2x32", "rbg": "rbg", "urbg": "unsafe_rbg"}


def keyed(impl: str, *shape: int) -> dict[str, Any]:
    return {"w": jnp.arange(4.0), "rng": jax.random.split(jax.random.key(3, impl=impl), shape)}


def itself(tree: Any) -> cs.Lens:
    return cs.derive(cs.infer(tree), cs.infer(tree))


@pytest.mark.parametrize("impl", IMPLS.values())
@pytest.mark.parametrize("shape", [(), (2, 3)], ids=["one", "batch"])
def test_t3_a_key_that_the_older_api_returns_as_its_data_comes_back_as_a_key(
    tmp_path: Path, impl: str, shape: tuple[int, ...]
) -> None:
    tree = keyed(impl, *shape)
    orbax_v0.PyTreeCheckpointer().save(tmp_path / "0", tree)
    with orbax_v0.CheckpointManager(tmp_path / "run") as manager:
        manager.save(3, args=orbax_v0.args.PyTreeSave(tree))
    for path in (tmp_path / "0", tmp_path / "run" / "3"):
        for target in (tree, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)):
            cs.assert_trees_identical(cs.orbax.restore(path, target, itself(tree)), tree)


def test_t7_a_shape_is_the_target_s_and_never_that_of_the_disk(tmp_path: Path) -> None:
    orbax_v0.PyTreeCheckpointer().save(tmp_path / "0", {"w": jnp.arange(4.0)})
    target = {"w": jax.ShapeDtypeStruct((6,), "float32")}
    with pytest.raises(
        cs.CheckpointMismatchError, match=r"w +expected float32\[6\], found float32\[4\]"
    ):
        cs.orbax.restore(tmp_path / "0", target, itself(target))


def test_t8_a_target_without_sharding_gets_jax_arrays(tmp_path: Path) -> None:
    tree = {"w": jnp.arange(4.0)}
    orbax_v0.PyTreeCheckpointer().save(tmp_path / "0", tree)
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    cs.assert_trees_identical(cs.orbax.restore(tmp_path / "0", target, itself(target)), tree)


class Bare(cs.Schema):
    w: Float32[Array, " n"]


def noisy(tag: str) -> type[cs.Schema]:
    class Noisy(Bare):
        rng: cs.Key[tag, "2"] = cs.field(default=cs.constant_key(0))  # type: ignore[valid-type]
        dropout: cs.Stream[tag] = cs.field(default=cs.constant_key(0))  # type: ignore[valid-type]

    return Noisy


@pytest.mark.parametrize("process", IMPLS.values())
@pytest.mark.parametrize("tag", IMPLS)
def test_t10_a_default_key_is_of_the_leaf_s_implementation_and_not_the_process_s(
    tag: str, process: str
) -> None:
    lens = cs.derive(cs.linen.Params[Bare], cs.nnx.Params[noisy(tag)])
    with jax.default_prng_impl(process):
        assert jax.random.key(0).dtype == jax.random.key(0, impl=process).dtype
        state = lens.get({"params": {"w": jnp.arange(4.0)}})
    key = jax.random.key(0, impl=IMPLS[tag])
    assert state["rng"].get_value().dtype == state["dropout"]["key"].get_value().dtype == key.dtype
    for found in (*state["rng"].get_value(), state["dropout"]["key"].get_value()):
        np.testing.assert_array_equal(jax.random.key_data(found), jax.random.key_data(key))


class Layer(cs.Schema):
    w: Float32[Array, ""]
    count: UInt32[Array, ""]


class Stacked(cs.Schema):
    layers: Layer = cs.field(scan="depth")


class Strings(cs.Schema):
    layers: list[Layer] = cs.field(key="layers/'{i}'", length="depth")


class Names(cs.Schema):
    layers: list[Layer] = cs.field(key="layers_{i}", length="depth")


@pytest.mark.parametrize("schema", [Strings, Names])
def test_t11_layer_10_stands_after_layer_9(schema: type[cs.Schema], tmp_path: Path) -> None:
    stacked = {"layers": {"w": jnp.arange(12.0), "count": jnp.arange(12, dtype="uint32")}}
    lens = cs.derive(Stacked, schema)
    unrolled = lens.get(stacked)
    layers = unrolled["layers"] if schema is Strings else unrolled
    assert sorted(layers)[:3] in (["0", "1", "10"], ["layers_0", "layers_1", "layers_10"])
    for at in range(12):
        assert int(layers[str(at) if schema is Strings else f"layers_{at}"]["count"]) == at
    cs.assert_trees_identical(lens.put(unrolled), stacked)
    cs.orbax.save(tmp_path / "0", unrolled, ~lens)
    cs.assert_trees_identical(cs.orbax.restore(tmp_path / "0", stacked, lens), stacked)


class Twelve(nnx.Module):
    def __init__(self) -> None:
        self.layers = nnx.List([nnx.Linear(1, 1, rngs=nnx.Rngs(i)) for i in range(12)])


def test_t11_an_inferred_list_of_twelve_is_in_order_too(tmp_path: Path) -> None:
    state = nnx.state(Twelve())
    cs.orbax.save(tmp_path / "0", state, itself(state))
    cs.assert_trees_identical(cs.orbax.restore(tmp_path / "0", state, itself(state)), state)


def test_t12_a_restore_that_is_refused_prints_nothing(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import sys
        import jax, jax.numpy as jnp
        import ckpt_schema as cs
        from orbax.checkpoint import v1 as ocp

        tree = {f"w{i}": jnp.ones((4, 4)) for i in range(20)}
        ocp.save(sys.argv[1], tree)
        target = {**tree, "w3": jnp.ones((4, 5)), "w7": jnp.ones((4, 4), "int8")}
        try:
            cs.orbax.restore(sys.argv[1], target, cs.derive(cs.infer(target), cs.infer(target)))
        except cs.CheckpointMismatchError as error:
            print(len(error.mismatches), "faults")
        """
    )
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", script, str(tmp_path / "0")]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert run.stdout == "2 faults\n"
    assert (
        "Traceback" not in run.stderr and len(run.stderr.splitlines()) < 5
    )  # not the pages that Orbax prints
