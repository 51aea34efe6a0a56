"""Tiles and small lenses, in any order on one leaf, against NumPy's reshapes, transposes, flips, pads and cuts."""

from __future__ import annotations

import collections
import itertools
import math
import random
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import pytest
from carrying import carried
from spellings import Spelling
from support.profiles import THOROUGH

from ckpt_schema.lens.cells import Cell, Constant, Geometry, composed
from ckpt_schema.lens.normal import normal
from ckpt_schema.lens.tiles import flipped, padded, parts, repeated, tile, whole
from ckpt_schema.sizes import Size

NUMBERS = {"a": 2, "b": 3, "c": 4, "d": 2, "one": 1, "more": 2, "times": 3}
SIZES: dict[Hashable, Size] = {name: Size.of(name) for name in NUMBERS} | {"one": Size.of(1)}
CASES = 2000 if THOROUGH else 120


def grouped(rng: random.Random, factors: Sequence[str]) -> list[list[str]]:
    """The factors in a random order, next ones on one axis or on two, with an empty axis at times."""
    order = rng.sample(list(factors), len(factors))
    axes: list[list[str]] = [[]]
    for factor in order:
        if rng.random() < 0.5:
            axes.append([])
        axes[-1].append(factor)
    return axes


def stored(array: Any, factors: Sequence[str], axes: Sequence[Sequence[str]]) -> Any:
    """The oracle: a logical array, an axis for each factor, as a row has it."""
    order = [factors.index(factor) for axis in axes for factor in axis]
    sizes = dict(zip(factors, array.shape, strict=True))
    shape = [math.prod(sizes[factor] for factor in axis) for axis in axes]
    return np.ascontiguousarray(array.transpose(order).reshape(shape))


def dims_of(factors: Sequence[str], longer: dict[str, Size]) -> list[Size]:
    return [(SIZES | longer)[factor] for factor in factors]


def verify(cells: Sequence[Cell], source: dict[str, Any], view: dict[str, Any]) -> None:
    """Both ways are what NumPy says."""

    def rows(arrays: dict[str, Any]) -> dict[str, Spelling]:
        return {name: Spelling(((),) * array.ndim, array) for name, array in arrays.items()}

    made = carried(cells, NUMBERS, source, rows(view))
    back = carried([~each for each in cells], NUMBERS, view, rows(source))
    for found, wanted in ((made, view), (back, source)):
        for name, array in wanted.items():
            np.testing.assert_array_equal(found[name], array)


def between(first: Geometry, *others: Geometry, row: str = "x", to: str = "y") -> list[Cell]:
    """The cells from one row to another, through logical arrays that nobody keeps."""
    names = [row, *(f"middle {n}" for n in range(len(others))), to]
    steps = [
        Cell(one, other, each)
        for one, other, each in zip(names, names[1:], (first, *others), strict=False)
    ]
    cells = steps[:1]
    for step in steps[1:]:
        cells = composed(cells, [step])
    return list(normal(cells))


@pytest.mark.parametrize("part", range(4))
def test_orders_and_groupings_are_reshapes_and_transposes(part: int) -> None:
    for seed in range(part, CASES, 4):
        rng = random.Random(seed)
        factors = rng.sample(["a", "b", "c", "d", "one"], rng.randint(0, 5))
        array = np.arange(math.prod(NUMBERS[f] for f in factors), dtype="float32")
        array = array.reshape([NUMBERS[f] for f in factors])
        one, other = grouped(rng, factors), grouped(rng, factors)
        cells = between(tile(one, SIZES, factors), ~tile(other, SIZES, factors))
        assert len(cells) == 1
        verify(cells, {"x": stored(array, factors, one)}, {"y": stored(array, factors, other)})


def changed(
    rng: random.Random, kind: str, factors: list[str], array: Any, longer: dict[str, Size]
) -> tuple[Geometry, list[Cell], list[str], Any]:
    """A rule on one axis of a logical array: its geometry, its padding, and the factors and the array after it."""
    axis = rng.randrange(len(factors))
    dims = dims_of(factors, longer)
    if kind == "flip":
        return flipped(dims, axis), [], factors, np.flip(array, axis)
    if kind == "pad":
        kept, hole = padded(dims, axis, SIZES["more"])
        longer[factors[axis]] = dims[axis] + SIZES["more"]
        width = [(0, 2 * (n == axis)) for n in range(array.ndim)]
        made = np.pad(array, width, constant_values=7.0)
        return kept, [Cell(Constant(7.0, is_fill=True), "y", hole)], factors, made
    times = f"times{len(factors)}"
    longer[times] = SIZES["times"]
    after = [*factors[:axis], times, *factors[axis:]]
    return (
        repeated(dims, axis, SIZES["times"]),
        [],
        after,
        np.repeat(np.expand_dims(array, axis), 3, axis),
    )


@pytest.mark.parametrize("part", range(4))
def test_rules_combine_with_each_other_and_with_any_order(part: int) -> None:
    seen = collections.Counter[str]()
    for seed in range(part, CASES, 4):
        rng = random.Random(seed)
        factors = rng.sample(["a", "b", "c", "one"], rng.randint(1, 3))
        logical = np.arange(1, 1 + math.prod(NUMBERS[f] for f in factors), dtype="float32")
        logical = logical.reshape([NUMBERS[f] for f in factors])
        longer: dict[str, Size] = {}
        kinds = [rng.choice(["flip", "pad", "repeat"]) for _ in range(rng.randint(1, 3))]
        start = grouped(rng, factors)
        cells = [Cell("x", "y", tile(start, SIZES, factors))]
        source = stored(logical, factors, start)
        array = logical
        for kind in kinds:
            if array.size > 400:
                break
            seen[kind] += 1
            geometry, holes, factors, array = changed(rng, kind, factors, array, longer)
            cells = [*composed(cells, [Cell("y", "y", geometry)]), *holes]
        end = grouped(rng, factors)
        sizes = {factor: longer.get(factor, SIZES.get(factor, Size.of(1))) for factor in factors}
        cells = list(normal(composed(cells, [Cell("y", "y", ~tile(end, sizes, factors))])))
        verify(cells, {"x": source}, {"y": stored(array, factors, end)})
    assert min(seen.values()) > 0.1 * seen.total()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_parts_are_cuts_of_one_axis_whatever_each_part_is_stored_as(axis: int) -> None:
    rng = random.Random(axis)
    lengths = [Size.of("a"), Size.of("b") * 2, Size.of("a")]
    numbers = [length.at(NUMBERS) for length in lengths]
    shape = [4, 4, 4]
    shape[axis] = sum(numbers)
    array = np.arange(math.prod(shape), dtype="float32").reshape(shape)
    dims = [Size.of("c")] * 3
    names = ["p", "q", "r"]
    cuts = np.split(array, np.cumsum(numbers)[:-1], axis)
    cells: list[Cell] = []
    view: dict[str, Any] = {}
    for number, geometry in enumerate(parts(dims, axis, lengths)):
        sizes: dict[Hashable, Size] = dict.fromkeys(names, Size.of("c"))
        sizes[names[axis]] = lengths[number]
        axes = grouped(rng, names)
        cells += between(geometry, ~tile(axes, sizes, names), to=f"part {number}")
        view[f"part {number}"] = stored(cuts[number], names, axes)
    verify(cells, {"x": array}, view)


def test_an_array_as_it_is() -> None:
    array = np.arange(6.0, dtype="float32").reshape(2, 3)
    (cell,) = normal([Cell("x", "y", whole([Size.of("a"), Size.of("b")]))])
    verify([cell], {"x": array}, {"y": array})
    assert [str(size) for size in itertools.chain(*cell.geometry.starts)] == ["0"] * 4
