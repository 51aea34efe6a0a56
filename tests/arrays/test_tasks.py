"""Random tasks on NumPy's arrays, on jax's, under a trace and on abstract values, against plain loops over elements."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from jax.sharding import AxisType, NamedSharding
from support.leaf import run
from support.profiles import examples
from support.tasks import INVERTIBLE, Case, cases, inverse, words

from ckpt_schema import leaves
from ckpt_schema.lens.arrays import checks, execution
from ckpt_schema.lens.arrays.programs import bits_shape
from ckpt_schema.lens.blocks import Task
from ckpt_schema.testing import laws
from ckpt_schema.testing.meshes import mesh, shardings

KINDS = (AxisType.Auto, AxisType.Explicit)


def same(found: Any, expected: Any) -> None:
    """Holds results against arrays of NumPy's: of keys, against their words."""
    for made, wanted in zip(found, expected, strict=True):
        got = words(made)
        assert got.shape == wanted.shape and got.dtype == wanted.dtype
        assert np.ascontiguousarray(got).tobytes() == np.ascontiguousarray(wanted).tobytes()


@examples(2)
@given(case=cases())
def test_on_numpy_s_arrays(case: Case) -> None:
    values = case.values()
    same(run(case.task, values), case.expected(values))


@examples(1)
@given(case=cases())
def test_on_jax_s_arrays(case: Case) -> None:
    values = case.values()
    same(run(case.task, case.values(jnp.asarray)), case.expected(values))


@examples(0.4)
@given(case=cases())
def test_under_a_trace(case: Case) -> None:
    values = case.values()
    traced = jax.jit(
        lambda *given_: execution.run(case.task, given_, [None] * len(case.task.results))
    )
    same(traced(*case.values(jnp.asarray)), case.expected(values))


@examples(1)
@given(case=cases())
def test_abstract_values_tell_shape_and_dtype(case: Case) -> None:
    foretold = run(case.task, [leaves.abstract(jnp.asarray(x)) for x in case.values()])
    for kind, made in zip(case.task.results, foretold, strict=True):
        assert (made.shape, str(made.dtype)) == (kind.shape, kind.dtype)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@examples(0.4)
@given(case=cases())
def test_sharded(kind: AxisType, case: Case) -> None:
    on = mesh((4, 2), kind)

    def place(value: Any) -> Any:
        found: list[NamedSharding] = shardings(on, value.shape)
        return jax.device_put(value, found[case.seed % len(found)])

    values = case.values()
    same(laws.gathered(run(case.task, case.values(place))), case.expected(values))


def _reads_all(task: Task) -> bool:
    """Whether every element of the inputs is read: not where a list of no layers is the other side."""
    left = [math.prod(bits_shape(kind)) for kind in task.inputs]
    for each in (*task.copies, *task.checks):
        left[each.source] -= math.prod(s.size for s in each.block.steps if not s.is_turn)
    return not any(left)


@examples(1)
@given(case=cases(INVERTIBLE))
def test_there_and_back(case: Case) -> None:
    assume(_reads_all(case.task))  # of what nothing is made, nothing comes back
    values = case.values(jnp.asarray)
    checks.verify([checks.Given(case.task, values, [], [str(n) for n in range(len(values))])])
    back = inverse(case.task)
    same(run(back, run(case.task, values)), [words(value) for value in values])
