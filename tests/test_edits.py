"""The laws of each edit: it has an inverse to the last bit, and tells the truth about shapes, types and shardings."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support.chains import NAMES, REPEATS, Case, cases
from support.profiles import examples

from ckpt_schema import assert_trees_identical, leaves
from ckpt_schema.dims import names, parse_dims
from ckpt_schema.errors import ConformanceError
from ckpt_schema.lens import execute, verify
from ckpt_schema.lens.edits import Chain
from ckpt_schema.lens.partial import Cast
from ckpt_schema.lens.rearranged import Rearrange
from ckpt_schema.lens.stacks import Stack, Unstack
from ckpt_schema.lens.symbolic import typed
from ckpt_schema.testing.meshes import as_jax, as_numpy
from ckpt_schema.testing.values import DTYPES, IMPLS, INTEGERS, hostile

EDITS = (Rearrange, Cast, Unstack, Stack)
ANY = cases(*EDITS, length=4)


def edited(chain: Chain, values: list[Any], case: Case, results: int) -> list[Any]:
    return execute.edit(chain, values, case.needed, case.leaf, [None] * results)


def there_and_back(case: Case, place: Any) -> None:
    before = case.inputs(place)
    after = edited(case.chain, before, case, case.results)
    again = edited(~case.chain, after, case, case.arity)
    assert_trees_identical(again, before)
    assert_trees_identical(edited(case.chain, again, case, case.results), after)


@pytest.mark.parametrize("kind", EDITS)
@examples(4)
@given(st.data())
def test_inverse_of_numpy_arrays(kind: Any, data: st.DataObject) -> None:
    case = data.draw(cases(kind))
    assume(case.dtype not in IMPLS)
    there_and_back(case, as_numpy)


@examples(8)
@given(ANY)
def test_inverse_of_chains_of_numpy_arrays(case: Case) -> None:
    assume(case.dtype not in IMPLS)
    there_and_back(case, as_numpy)


@pytest.mark.parametrize("dtype", DTYPES)
@examples(0.15)
@given(st.data())
def test_inverse_of_jax_arrays(dtype: str, data: st.DataObject) -> None:
    case = data.draw(
        cases(*(kind for kind in EDITS if kind is not Cast), length=3, dtypes=(dtype,))
    )
    there_and_back(case, as_jax)


@examples(0.5)
@given(cases(Cast, Rearrange, Unstack, length=3))
def test_inverse_of_casts_of_jax_arrays(case: Case) -> None:
    there_and_back(case, as_jax)


@examples(0.5)
@given(ANY)
def test_jax_and_numpy_arrays_are_edited_alike(case: Case) -> None:
    assume(case.dtype not in IMPLS)
    ours, theirs = (
        edited(case.chain, case.inputs(place), case, case.results) for place in (as_numpy, as_jax)
    )
    assert_trees_identical([np.asarray(x) for x in theirs], ours)


@examples(0.3)
@given(ANY)
def test_tracers_are_edited_alike(case: Case) -> None:
    values = case.inputs(as_jax)
    traced = jax.jit(lambda xs: edited(case.chain, xs, case, case.results))(values)
    assert_trees_identical(traced, edited(case.chain, values, case, case.results))


@examples(4)
@given(ANY)
def test_shape_agrees_with_apply(case: Case) -> None:
    shapes = case.chain.shapes([case.shape] * case.arity, case.needed)
    found = edited(case.chain, [abstract(case)] * case.arity, case, case.results)
    assert len(found) == case.results
    assert [x.shape for x in found] == shapes
    assert (case.chain.takes(case.sizes), case.chain.gives(case.sizes)) == (
        case.arity,
        case.results,
    )


def abstract(case: Case) -> jax.ShapeDtypeStruct:
    return leaves.abstract(hostile(np.random.default_rng(0), case.dtype, case.shape))


@examples(1)
@given(ANY)
def test_abstract_values_are_edited_alike(case: Case) -> None:
    assume(case.dtype not in IMPLS)
    found = edited(case.chain, [abstract(case)] * case.arity, case, case.results)
    concrete = edited(case.chain, case.inputs(as_numpy), case, case.results)
    assert_trees_identical(found, [leaves.abstract(x) for x in concrete])


@examples(1)
@given(ANY)
def test_symbolic_type_holds_for_all_sizes(case: Case) -> None:
    counts = frozenset({REPEATS})
    found = typed(case.chain, (case.dims,) * case.chain.takes({REPEATS: 2}), case.dtype, counts)
    (wanted,) = typed(Chain(), (case.after,), case.after_dtype, counts)
    assert set(found) == {wanted}


@examples(4)
@given(ANY)
def test_chain_with_its_inverse_is_no_edit(case: Case) -> None:
    assert (case.chain >> ~case.chain).edits == ()
    assert (~case.chain >> case.chain).edits == ()
    assert ~~case.chain == case.chain


@examples(4)
@given(ANY, st.integers(0, 4))
def test_composition_is_one_after_the_other(case: Case, cut: int) -> None:
    assume(case.dtype not in IMPLS)
    head, tail = Chain(case.chain.edits[:cut]), Chain(case.chain.edits[cut:])
    composed = Chain()
    for edit in case.chain.edits:
        composed = composed >> edit
    values = case.inputs(as_numpy)
    stepwise = tail.apply(head.apply(values, case.sizes), case.sizes)
    assert_trees_identical((head >> tail).apply(values, case.sizes), stepwise)
    assert_trees_identical(composed.apply(values, case.sizes), stepwise)
    assert composed.names <= {*NAMES, REPEATS}


def test_rearrangements_in_a_row_become_one() -> None:
    chain = Rearrange(parse_dims("a b*c"), parse_dims("c a b")) >> Rearrange(
        parse_dims("c a b"), parse_dims("b*c a")
    )
    assert chain.edits == (Rearrange(parse_dims("a b*c"), parse_dims("b*c a")),)


def test_permutation_needs_no_sizes() -> None:
    edit = Rearrange(parse_dims("a b c"), parse_dims("c a b"))
    assert edit.names == set() and edit.shape((2, 3, 4), {}) == (4, 2, 3)
    assert Rearrange(parse_dims("a b*c"), parse_dims("c a b")).names == names(parse_dims("a b c"))


@pytest.mark.parametrize("kinds", [as_numpy, as_jax, int])
@examples(2)
@given(st.sampled_from(INTEGERS), st.sampled_from(INTEGERS), st.integers(0, 2**32 - 1))
def test_cast_passes_exactly_the_values_it_keeps(
    kinds: Any, before: str, after: str, seed: int
) -> None:
    value = hostile(np.random.default_rng(seed), before, (3,) if kinds is not int else ())
    low, high = int(jnp.iinfo(after).min), int(jnp.iinfo(after).max)
    kept = all(low <= int(x) <= high for x in value.reshape(-1))
    job = (Chain((Cast(before, after),)), {}, [kinds(value)], ["model/step"])
    if kept:
        verify.verify_values([job])
    else:
        with pytest.raises(ConformanceError, match=r"model/step .*expected values of u?int"):
            verify.verify_values([job])


def test_empty_leaf_has_nothing_a_cast_could_change() -> None:
    job = Chain((Cast("int32", "uint32"),))
    verify.verify_values(
        [
            (job, {}, [np.zeros(0, np.int32)], ["x"]),
            (job, {}, [jnp.zeros((2, 0), jnp.int32)], ["y"]),
        ]
    )


def test_cast_under_a_trace_is_refused() -> None:
    job = Chain((Cast("int32", "uint32"),))
    with pytest.raises(ConformanceError, match="translate outside of jit"):
        jax.jit(lambda x: verify.verify_values([(job, {}, [x], ["step"])]))(jnp.int32(3))


@pytest.mark.parametrize(
    "value",
    [7, np.int32(7), np.asarray(7, np.int32)],
    ids=["number", "NumPy scalar", "NumPy array"],
)
def test_result_is_a_number_where_it_goes_onto_one(value: Any) -> None:
    (found,) = execute.edit(
        Chain((Cast("int32", "uint32"),)), [value], {}, leaves.Leaf((), "int32"), [3]
    )
    assert type(found) is int and found == 7
