"""Cells between random layouts of one array: covering, get, put, composition and inverse, against NumPy."""

from __future__ import annotations

import argparse
import collections
import itertools
import random
import sys
import time
from collections.abc import Iterable

import pytest
from carrying import arrays, carried, same, writers
from spellings import Rows, layout, logical
from support.profiles import THOROUGH, sampled

from ckpt_schema._layouts.sizes import UndecidedError
from ckpt_schema._lens.cells import Cell, composed, identity
from ckpt_schema._lens.normal import normal

TRIPLES = 3000 if THOROUGH else 60
STEPS = 6


def inverted(cells: Iterable[Cell]) -> list[Cell]:
    return [~cell for cell in cells]


def lens(first: Iterable[Cell], second: Iterable[Cell]) -> tuple[Cell, ...]:
    return normal(composed(first, second))


def verify_written_once(
    cells: Iterable[Cell], side: int, sizes: dict[str, int], rows: Rows
) -> None:
    for name, count in writers(cells, side, sizes, rows).items():
        assert (count == 1).all(), f"{name} is not written once on side {side}"


def attempt(seed: int, steps: int = STEPS) -> str:
    """What became of three random layouts: ``printed alike``, ``printed otherwise`` or ``undecided``; wrong values raise."""
    rng = random.Random(seed)
    sizes, root = logical(rng)
    try:
        (a, of_a), (_, of_m), (c, of_c) = (
            layout(rng, sizes, root, letter, rng.randint(0, steps)) for letter in "AMC"
        )
        derived = lens(of_a, inverted(of_c))
        both = lens(lens(of_a, inverted(of_m)), lens(of_m, inverted(of_c)))
    except UndecidedError:
        return "undecided"
    for cells in (derived, both):
        assert same(carried(cells, sizes, arrays(a), c), c), (seed, "get")
        assert same(carried(inverted(cells), sizes, arrays(c), a), a), (seed, "put")
    verify_written_once(derived, 1, sizes, c)
    verify_written_once(inverted(derived), 1, sizes, a)
    assert normal(inverted(inverted(derived))) == derived, seed
    return "printed alike" if both == derived else "printed otherwise"


@pytest.mark.parametrize("part", range(4))
def test_values_of_random_triples_are_those_of_numpy(part: int) -> None:
    seen = collections.Counter(attempt(seed) for seed in range(part, TRIPLES, 4))
    assert seen["undecided"] <= 0.02 * seen.total() + 1
    assert seen["printed otherwise"] <= 0.02 * seen.total() + 1


@pytest.mark.parametrize("seed", sampled(range(500_000, 500_300), 19))
def test_composition_is_associative(seed: int) -> None:
    rng = random.Random(seed)
    sizes, root = logical(rng)
    of_a, of_m, of_n, of_c = (
        layout(rng, sizes, root, letter, rng.randint(0, 5))[1] for letter in "AMNC"
    )
    f, g, h = (
        lens(one, inverted(other)) for one, other in itertools.pairwise((of_a, of_m, of_n, of_c))
    )
    derived = lens(of_a, inverted(of_c))
    assert lens(lens(f, g), h) == lens(f, lens(g, h)) == derived
    assert normal(inverted(lens(f, g))) == lens(inverted(g), inverted(f))


def test_there_and_back_is_the_identity() -> None:
    for seed in range(20):
        rng = random.Random(seed)
        sizes, root = logical(rng)
        rows, cells = layout(rng, sizes, root, "A", 3)
        back = lens(inverted(cells), cells)
        if not any(cell.is_constant for cell in cells) and len(rows) == 1:
            assert back == normal([identity("L", root.dims)]), seed


def main() -> int:
    """Tries many triples; prints what became of them, and the seeds of what was wrong."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("low", type=int)
    parser.add_argument("high", type=int)
    parser.add_argument("--steps", type=int, default=10)
    told = parser.parse_args()
    seen = collections.Counter[str]()
    began = time.time()
    for seed in range(told.low, told.high):
        try:
            outcome = attempt(seed, told.steps)
        except AssertionError as error:
            outcome = "wrong"
            print(seed, error)
        if outcome in ("undecided", "printed otherwise"):
            print(seed, outcome)
        seen[outcome] += 1
    print(dict(seen), f"{time.time() - began:.0f} s")
    return int(seen["wrong"] > 0)


if __name__ == "__main__":
    sys.exit(main())
