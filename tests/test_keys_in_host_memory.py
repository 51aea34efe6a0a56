"""Typed keys that a target has in the memory of the host: they come back there from every place of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import ckpt_schema as cs


def on_host() -> NamedSharding:
    mesh = jax.make_mesh((8,), ("x",))
    return NamedSharding(mesh, PartitionSpec(), memory_kind="pinned_host")


def state() -> dict[str, Any]:
    """A weight and a key, both in the memory of the host."""
    made = {"w": jnp.arange(8.0), "rng": jax.random.key(3, impl="rbg")}
    return {name: jax.device_put(leaf, on_host()) for name, leaf in made.items()}


def abstract(tree: Any) -> Any:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree
    )


def assert_same(found: Any, wanted: Any) -> None:
    for name, leaf in wanted.items():
        assert found[name].sharding == leaf.sharding, name
        ours, theirs = found[name], leaf
        if name == "rng":
            ours, theirs = jax.random.key_data(ours), jax.random.key_data(theirs)
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


@pytest.mark.parametrize("is_private", [False, True])
def test_a_key_is_restored_into_the_memory_of_its_target(tmp_path: Path, is_private: bool) -> None:
    wanted = state()
    source = {"w": wanted["w"]} if is_private else wanted
    rules = [cs.private("rng", cs.fresh_key(0))] if is_private else []
    lens = cs.adapt(source, wanted, rules=rules)
    cs.orbax.save(str(tmp_path / "saved"), wanted, lens)
    assert_same(cs.orbax.restore(str(tmp_path / "saved"), abstract(wanted), lens), wanted)


def test_a_key_is_loaded_into_the_memory_that_was_asked_for(tmp_path: Path) -> None:
    wanted = state()
    cs.orbax.save(str(tmp_path / "saved"), wanted)
    assert_same(cs.orbax.load(str(tmp_path / "saved"), sharding=on_host()), wanted)
