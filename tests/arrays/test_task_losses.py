"""What tasks would lose of values is found in every part that is read, and in none that is not."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from ckpt_schema._lens.arrays import checks
from ckpt_schema._lens.arrays.blocks import Block, Check, Copy, Filling, Kind, Step, Task
from ckpt_schema._lens.codecs import Exact
from ckpt_schema.errors import ConformanceError

CAST = (Exact("int32", "uint32"),)


def verified(task: Task, values: list[Any]) -> None:
    checks.verify(
        [checks.LeafTask(task, values, [None] * len(task.results), ["x", "y", "z"][: len(values)])]
    )


def layers(*, padded: bool) -> Task:
    """Three layers of two numbers, one after the other on an axis, each cast; the second axis may be padded."""
    steps = (Step(3, ((0, 1), None), is_turn=True), Step(2, ((1, 1), (0, 1))))
    block = Block(((0, 0), (0,)), steps, CAST)
    copies = tuple(Copy(0, number, block, (number,)) for number in range(3))
    beside = Block(((0, 2), ()), (Step(3, ((0, 1), None)), Step(1, ((1, 1), None))))
    found = (Check(0, beside, 0, 0),) if padded else ()
    inputs = (Kind((3, 3 if padded else 2), "int32"),)
    return Task(inputs, (Kind((2,), "uint32"),) * 3, copies, (), found)


@pytest.mark.parametrize("place", [np.asarray, jnp.asarray])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("layer", [0, 2])
def test_each_layer_is_looked_through(place: Any, padded: bool, layer: int) -> None:
    value = np.zeros((3, 3 if padded else 2), np.int32)
    verified(layers(padded=padded), [place(value)])
    value[layer, 1] = -1
    with pytest.raises(ConformanceError, match="x  expected values of uint32"):
        verified(layers(padded=padded), [place(value)])


@pytest.mark.parametrize("place", [np.asarray, jnp.asarray])
def test_what_is_not_read_need_not_survive(place: Any) -> None:
    block = Block(((1,), (0,)), (Step(2, ((0, 1), (0, 1))),), CAST)
    task = Task((Kind((3,), "int32"),), (Kind((2,), "uint32"),), (Copy(0, 0, block),))
    verified(task, [place(np.array([-1, 2, 3], np.int32))])
    with pytest.raises(ConformanceError, match="x  expected values of uint32"):
        verified(task, [place(np.array([1, 2, -3], np.int32))])


@pytest.mark.parametrize("place", [np.asarray, jnp.asarray])
def test_a_block_of_no_elements_loses_none(place: Any) -> None:
    block = Block(((3,), (0,)), (Step(0, ((0, 1), (0, 1))),), CAST)
    task = Task((Kind((3,), "int32"),), (Kind((0,), "uint32"),), (Copy(0, 0, block),))
    verified(task, [place(np.array([-1, 2, 3], np.int32))])


# --- Copies of one leaf  ---


def tied(*, turned: bool, padded: bool) -> Task:
    """A leaf that two others have: the second has its axes exchanged, or the result is padded."""
    shape = (3, 2)
    rows = Step(2, ((0, 1), (0, 1))), Step(3, ((1, 1), (1, 1)))
    over = Step(3, ((0, 1), (1, 1))), Step(2, ((1, 1), (0, 1)))
    first = Copy(0, 0, Block(((0, 0), (0, 0)), rows))
    second = Copy(1, 0, Block(((0, 0), (0, 0)), over if turned else rows), (), compares=True)
    beside = Filling(0, Block(((), (0, 3)), (Step(2, (None, (0, 1))),)), 0)
    return Task(
        (Kind((2, 3), "float32"), Kind(shape if turned else (2, 3), "float32")),
        (Kind((2, 4 if padded else 3), "float32"),),
        (first, second),
        (beside,) if padded else (),
    )


@pytest.mark.parametrize("place", [np.asarray, jnp.asarray])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_copies_are_compared_element_by_element(place: Any, turned: bool, padded: bool) -> None:
    task = tied(turned=turned, padded=padded)
    value = np.arange(6, dtype=np.float32).reshape(2, 3)
    other = (value.T if turned else value).copy()
    verified(task, [place(value), place(other)])
    other[(2, 1) if turned else (1, 2)] = 7
    with pytest.raises(ConformanceError, match=r"y  expected 5.0 .* at \[1 2\] of x, found 7.0"):
        verified(task, [place(value), place(other)])


@pytest.mark.parametrize("place", [np.asarray, jnp.asarray])
def test_a_copy_of_what_two_leaves_make_is_compared_with_both(place: Any) -> None:
    one = Step(2, ((0, 1), (0, 1)))
    copies = (
        Copy(0, 0, Block(((0,), (0,)), (one,))),
        Copy(1, 0, Block(((0,), (2,)), (one,))),
        # Neither starts where the one does that is compared, nor is as long.
        Copy(2, 0, Block(((0,), (1,)), (Step(3, ((0, 1), (0, 1))),)), (), compares=True),
    )
    pair = Kind((2,), "int32")
    task = Task((pair, pair, Kind((3,), "int32")), (Kind((4,), "int32"),), copies)
    values = [np.array([1, 2], np.int32), np.array([3, 4], np.int32)]
    verified(task, [place(each) for each in (*values, np.array([2, 3, 4], np.int32))])
    with pytest.raises(ConformanceError, match=r"z  expected 4 .* at \[1\] of y, found 5"):
        verified(task, [place(each) for each in (*values, np.array([2, 3, 5], np.int32))])


@pytest.mark.parametrize("dtype", ["complex64", "float32", "bfloat16"])
def test_a_signalling_nan_that_differs_is_told_without_a_warning(dtype: str) -> None:
    bits = np.uint16(0x7F81) if dtype == "bfloat16" else np.uint32(0x7F800001)
    value = np.full(2 if dtype == "complex64" else 1, bits).view(dtype)
    pair = Kind((1,), dtype)
    first = Copy(0, 0, Block(((0,), (0,)), ()))
    task = Task((pair, pair), (pair,), (first, dataclasses.replace(first, source=1, compares=True)))
    with pytest.raises(ConformanceError, match=r"y  expected .*nan.* at \[0\] of x"):
        verified(task, [value, np.zeros_like(value)])
