"""Faults of readers that no law on a lens can see, for they are in what comes before or beside it."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from jaxtyping import Array, Float16, Float32
from orbax.checkpoint import v1 as ocp

import ckpt_schema as cs
from ckpt_schema._trees.containers import without


def test_a_default_that_its_dtype_makes_infinite_is_refused() -> None:
    with pytest.raises(cs.SchemaError, match="a default that float16 can hold"):

        class Net(cs.Schema):
            bias: Float16[Array, " embed"] = cs.field(default=1e6)


def test_parts_that_may_share_either_axis_are_refused() -> None:
    class Whole(cs.Schema):
        both: Float32[Array, "2*heads 2*embed"]

    class Apart(cs.Schema):
        one: Float32[Array, "heads 2*embed"]
        two: Float32[Array, "heads 2*embed"]

    with pytest.raises(cs.DerivationError, match="expected one axis that 2 leaves share"):
        cs.derive(Whole, Apart, rules=[cs.fuse("both", ["one", "two"])])


def test_what_is_left_out_of_a_save_takes_nothing_else_along(tmp_path: Path) -> None:
    class Net(cs.Schema):
        kernel: Float32[Array, " n"]
        memory: Float32[Array, " n"] = cs.field(collection="cache", ephemeral=True)

    tx = optax.chain(optax.clip(1.0), optax.sgd(1e-3))
    table = cs.linen.TrainState[Net, tx]
    params = {"params": {"kernel": np.ones(2, np.float32)}}
    state = {"step": np.int32(1), "params": params, "opt_state": tx.init(params)}
    passing = {**state, "cache": {"memory": np.ones(2, np.float32)}}
    for name, tree in (("0", state), ("1", passing)):
        cs.orbax.save(tmp_path / name, tree, cs.derive(table, table), side="view")
    first, second = (
        ocp.load_checkpointables(tmp_path / name)["state"]["opt_state"] for name in "01"
    )
    assert jax.tree.structure(first) == jax.tree.structure(second)


def test_what_is_left_out_takes_no_empty_container_with_it() -> None:
    tree = {"cache": {"key": 1}, "chain": ((), {"mu": {}}), "params": {"w": 2}}
    kept = {"chain": ((), {"mu": {}}), "params": {"w": 2}}
    assert without(tree, {("cache", "key")}) == kept
