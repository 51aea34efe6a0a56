"""The laws of random tasks: every kind of array is moved alike, the way back undoes the way there, nothing is lost unseen."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from jax.sharding import AxisType
from support.profiles import examples
from support.tasks import INVERTIBLE, Case, Wanted, agreed, cases, elements, inverse, words

from ckpt_schema import assert_trees_identical
from ckpt_schema._layouts import leaves
from ckpt_schema._lens.arrays import checks, execution
from ckpt_schema._lens.arrays.blocks import Block, Copy, Kind, Step, Task
from ckpt_schema._lens.codecs import Exact
from ckpt_schema._trees import placement
from ckpt_schema.errors import ConformanceError
from ckpt_schema.testing import _laws as laws
from ckpt_schema.testing._meshes import (
    Mixed,
    Sharded,
    all_shardings,
    as_jax,
    as_numpy,
    mesh,
    other_memories,
)
from ckpt_schema.testing._values import DTYPES, IMPLS, INTEGERS, hostile

PLAIN = tuple(dtype for dtype in DTYPES if dtype not in IMPLS)  # NumPy has no keys
HOST = Wanted(dtypes=PLAIN)
SEEDS = st.integers(0, 2**32 - 1)


def run(task: Task, values: list[Any], likes: list[Any] | None = None) -> list[Any]:
    return execution.run(task, values, likes or [None] * len(task.results))


def as_host(results: list[Any]) -> list[Any]:
    return [words(placement.near(each)) for each in results]


def is_small(case: Case) -> bool:
    """Whether XLA has not too many programs to compile for it."""
    return 0 < len(case.task.copies) <= 24


# --- What is made, element by element  ---


@examples(15)
@given(cases(HOST))
def test_numpy_arrays(case: Case) -> None:
    assume(case.task.inputs)
    values = case.values(as_numpy)
    found = run(case.task, values)
    assert all(isinstance(each, np.ndarray) for each in found)
    assert_trees_identical(found, case.expected(values))


@pytest.mark.parametrize("dtype", DTYPES)
@examples(0.3)
@given(st.data())
def test_jax_arrays(dtype: str, data: st.DataObject) -> None:
    case = data.draw(cases(Wanted(dtypes=(dtype,))))
    assume(is_small(case))
    values = case.values(as_jax)
    found = run(case.task, values)
    assert [Kind(each.shape, str(each.dtype)) for each in found] == [*case.task.results]
    assert_trees_identical(as_host(found), case.expected(values))


@examples(0.7)
@given(cases(HOST))
def test_jax_arrays_beside_numpy_arrays(case: Case) -> None:
    assume(is_small(case) and len(case.task.inputs) > 1)
    values = case.values()
    assert_trees_identical(
        as_host(run(case.task, case.values(Mixed(as_jax)))), case.expected(values)
    )


@pytest.mark.parametrize(
    "wanted",
    # Where XLA does not optimize, it repeats a bfloat16 as a float32, also if it is bits until then.
    [Wanted(repeats=False), Wanted(dtypes=tuple(each for each in DTYPES if each != "bfloat16"))],
    ids=["all dtypes", "repeats"],
)
@examples(0.7)
@given(st.data())
def test_tracers(wanted: Wanted, data: st.DataObject) -> None:
    case = data.draw(cases(wanted))
    assume(is_small(case))
    values = case.values(as_jax)
    found = jax.jit(lambda given: run(case.task, given))(values)
    assert_trees_identical(as_host(found), case.expected(values))


@examples(4)
@given(cases())
def test_abstract_values(case: Case) -> None:
    assume(case.task.inputs)
    given_ = [leaves.abstract(each) for each in case.values()]
    found = run(case.task, given_)
    assert all(isinstance(each, jax.ShapeDtypeStruct) for each in found)
    assert [Kind(each.shape, str(each.dtype)) for each in found] == [*case.task.results]


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda kind: kind.name)
@examples(0.5)
@given(case=cases(Wanted(sizes=(1, 2, 4, 8))), seed=SEEDS)
def test_tracers_on_a_mesh(kind: AxisType, case: Case, seed: int) -> None:
    assume(is_small(case))
    assume(not any(each.dtype == "bfloat16" for each in case.task.results))
    on = mesh((4, 2), kind)
    values = case.values(Sharded(on, seed - seed % 6))  # in the memory that programs run in
    with jax.set_mesh(on):
        found = jax.jit(lambda given: run(case.task, given))(values)
    assert_trees_identical(as_host(found), case.expected(values))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda kind: kind.name)
@examples(0.4)
@given(case=cases(), seed=SEEDS)
def test_arrays_on_a_mesh(kind: AxisType, case: Case, seed: int) -> None:
    on = mesh((4, 2), kind)

    def place(value: Any) -> Any:
        found = all_shardings(on, value.shape)
        return jax.device_put(value, found[seed % len(found)])

    found = run(case.task, case.values(place))
    assert_trees_identical(as_host(laws.gathered_leaves(found)), case.expected(case.values()))


@pytest.mark.parametrize("memory", other_memories())
@examples(0.5)
@given(case=cases(Wanted(sizes=(1, 2, 4))), seed=SEEDS)
def test_arrays_in_another_memory_stay_there(memory: str, case: Case, seed: int) -> None:
    assume(is_small(case))
    on = Sharded(mesh((4, 2)), seed - seed % 6)

    def place(value: Any) -> Any:
        return jax.device_put(value, on.sharding(value.shape).with_memory_kind(memory))

    values = case.values(place)
    found = run(case.task, values)
    foretold = run(case.task, [leaves.abstract(each) for each in values])
    laws.identical(foretold, [leaves.abstract(each) for each in found])
    assert {each.sharding.memory_kind for each in found} <= {memory}
    assert_trees_identical(as_host(found), case.expected(case.values()))


# --- The way back  ---


@examples(8)
@given(cases(dataclasses.replace(INVERTIBLE, dtypes=PLAIN)))
def test_the_way_back_of_numpy_arrays(case: Case) -> None:
    there_and_back(case, as_numpy)


@examples(1)
@given(cases(INVERTIBLE))
def test_the_way_back_of_jax_arrays(case: Case) -> None:
    assume(is_small(case))
    there_and_back(case, as_jax)


def there_and_back(case: Case, place: Any) -> None:
    # What no result has comes back only where it is known: it holds what is filled in.
    task = case.task
    back = inverse(task)
    assume(task.inputs and task.results and _writes_all(back))
    before = case.values(place)
    verified(task, before)
    after = run(task, before)
    again = run(back, after)
    assert_trees_identical(as_host(again), as_host(before))
    assert_trees_identical(as_host(run(task, again)), as_host(after))


def _writes_all(task: Task) -> bool:
    """Whether every element of every result is written once."""
    try:
        Case(task, 0).expected([_zeros(kind) for kind in task.inputs])
    except AssertionError:
        return False
    return True


def _zeros(kind: Kind) -> Any:
    if kind.dtype in IMPLS:
        return hostile(np.random.default_rng(0), kind.dtype, kind.shape)
    return np.zeros(kind.shape, jnp.dtype(kind.dtype))


# --- What would be lost  ---


def verified(task: Task, values: list[Any]) -> None:
    paths = [f"leaf{number}" for number in range(len(values))]
    checks.verify([checks.LeafTask(task, values, [None] * len(task.results), paths)])


PLACES = pytest.mark.parametrize(("place", "most"), [(as_numpy, 1000), (as_jax, 8)])


@PLACES
@examples(1)
@given(case=cases(dataclasses.replace(HOST, repeats=False, parts=2)), pick=SEEDS)
def test_whatever_is_cut_off_is_what_the_way_back_fills_in(
    place: Any, most: int, case: Case, pick: int
) -> None:
    task = case.task
    assume(0 < len(task.checks) <= most and len(task.copies) <= most)
    values = case.values()
    verified(task, [place(each) for each in values])
    check = task.checks[pick % len(task.checks)]
    several = elements(check.block, 0)
    index = several[pick % len(several)]
    value = values[check.source] = np.array(values[check.source])
    value[index] = 1 if abs(value[index]) == 0 else 0
    with pytest.raises(ConformanceError, match=f"leaf{check.source} .*padding"):
        verified(task, [place(each) for each in values])


@PLACES
@examples(2)
@given(case=cases(dataclasses.replace(HOST, parts=2)), pick=SEEDS)
def test_copies_that_are_not_written_are_equal_to_those_that_are(
    place: Any, most: int, case: Case, pick: int
) -> None:
    task = case.task
    compared = [copy for copy in task.copies if copy.compares]
    assume(compared and len(task.copies) <= most)
    values = agreed(task, case.values())
    verified(task, [place(each) for each in values])
    copy = compared[pick % len(compared)]
    several = elements(copy.block, 0, copy.turns)
    assume(several)
    value = values[copy.source] = np.array(values[copy.source])
    index = several[pick % len(several)]
    size = value.dtype.itemsize // (1 + (value.dtype.kind == "c"))  # of a complex number, one half
    value[..., None].view(f"u{size}")[index][0] ^= 1
    with pytest.raises(ConformanceError, match=f"leaf{copy.source} "):
        verified(task, [place(each) for each in values])


def cast(before: str, after: str, shape: tuple[int, ...]) -> Task:
    """A task that casts a leaf."""
    start = (0,) * len(shape)
    steps = tuple(Step(size, ((axis, 1), (axis, 1))) for axis, size in enumerate(shape))
    block = Block((start, start), steps, (Exact(before, after),))
    return Task((Kind(shape, before),), (Kind(shape, after),), (Copy(0, 0, block),))


@pytest.mark.parametrize("place", [as_numpy, as_jax, int])
@examples(2)
@given(st.sampled_from(INTEGERS), st.sampled_from(INTEGERS), SEEDS)
def test_a_cast_passes_exactly_the_values_it_keeps(
    place: Any, before: str, after: str, seed: int
) -> None:
    assume(before != after)
    shape = () if place is int else (3,)
    value = hostile(np.random.default_rng(seed), before, shape)
    low, high = int(jnp.iinfo(after).min), int(jnp.iinfo(after).max)
    kept = all(low <= int(each) <= high for each in value.reshape(-1))
    if kept:
        verified(cast(before, after, shape), [place(value)])
    else:
        with pytest.raises(ConformanceError, match=r"leaf0 .*expected values of u?int"):
            verified(cast(before, after, shape), [place(value)])


def test_an_empty_leaf_has_nothing_that_a_cast_could_change() -> None:
    verified(cast("int32", "uint32", (0,)), [np.zeros(0, np.int32)])
    verified(cast("int32", "uint32", (2, 0)), [jnp.zeros((2, 0), jnp.int32)])


def test_a_cast_under_a_trace_is_refused() -> None:
    with pytest.raises(ConformanceError, match="translate outside of jit"):
        jax.jit(lambda x: verified(cast("int32", "uint32", ()), [x]))(jnp.int32(3))


@pytest.mark.parametrize(
    "value",
    [7, np.int32(7), np.asarray(7, np.int32)],
    ids=["number", "NumPy scalar", "NumPy array"],
)
def test_a_result_is_a_number_where_it_goes_onto_one(value: Any) -> None:
    (found,) = run(cast("int32", "uint32", ()), [value], [3])
    assert type(found) is int and found == 7
