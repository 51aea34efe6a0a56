"""The laws on sharded leaves: shardings are what the lens makes of shardings, on every mesh, and no leaf is gathered."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import laws
from support.chains import Case, cases
from support.profiles import examples
from support.values import MESHES, mesh, shardings

from ckpt_schema import leaves
from ckpt_schema.lens import execute
from ckpt_schema.lens.edits import Rearrange, Stack, Unstack

SEEDS = st.integers(0, 2**32 - 1)
meshes = pytest.mark.parametrize("on", [mesh(*m) for m in MESHES], ids=[f"{shape} {kind.name}" for shape, kind in MESHES])


def ways(value: Any) -> int:
    """Over how many devices an array is split."""
    split = np.divide(value.shape, value.sharding.shard_shape(value.shape))
    return int(np.prod(split))


@meshes
@examples(0.4)
@given(case=cases(Rearrange, Unstack, Stack, length=2, sizes=(2, 4, 8)), pick=SEEDS)
def test_edits_shard_their_results_as_they_say(on: Any, case: Case, pick: int) -> None:
    found = shardings(on, case.shape)
    sharding = found[pick % len(found)]
    inputs = case.inputs(lambda x: jax.device_put(x, sharding))
    results = execute.edit(case.chain, inputs, case.needed, case.leaf, [None] * case.results)
    abstract = [leaves.abstract(x) for x in inputs]
    laws.identical(
        execute.edit(case.chain, abstract, case.needed, case.leaf, [None] * case.results), [leaves.abstract(x) for x in results]
    )
    plain = case.inputs(jax.numpy.asarray)
    laws.identical(laws.gathered(results), execute.edit(case.chain, plain, case.needed, case.leaf, [None] * case.results))
    again = execute.edit(~case.chain, results, case.needed, case.leaf, inputs)
    laws.identical(again, inputs)
