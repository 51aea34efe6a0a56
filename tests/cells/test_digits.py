"""`meet` against sets of integers: what two blocks of one axis share, counted out at several sizes."""

from __future__ import annotations

import collections
import itertools
import random
from collections.abc import Mapping, Sequence

import pytest
from support.profiles import THOROUGH

from ckpt_schema._layouts.sizes import ONE, ZERO, Size, UndecidedError
from ckpt_schema._lens.digits import Common, Run, Shared, coarse_first, meet

SIZES = [{"k": k, "d": d} for k, d in ((1, 1), (1, 2), (2, 1), (3, 2), (2, 5), (4, 3))]
PAIRS = 24_000 if THOROUGH else 1200
Block = tuple[Size, list[Run]]


def box(rng: random.Random, side: int) -> Block:
    """A start and nested digits, some with gaps, of sizes that may or may not go into one another."""
    digits: list[tuple[Size, Size]] = []
    stride = Size.of(rng.choice([1, 1, 1, 2, "d"]))
    for _ in range(rng.randint(0, 3)):
        size = Size.of(rng.choice([2, 3, 4, 5, 6, "k", "k", "d"])) * rng.choice([1, 1, 2, 3])
        digits.insert(0, (size, stride))
        stride = stride * size * rng.choice([1, 1, 1, 2])
    start = Size.of(rng.choice([0, 0, 1, 3, "d"]))
    for _, stride in digits:
        start += stride * rng.choice([0, 1, 2])
    return start, [Run(size, stride, side, n) for n, (size, stride) in enumerate(digits)]


def known(block: Block, sizes: Mapping[str, Size]) -> Block:
    """The block with sizes put in."""
    start, runs = block
    return start.where(sizes), [
        Run(run.size.where(sizes), run.stride.where(sizes), run.side, run.digit) for run in runs
    ]


def points(start: int, digits: Sequence[tuple[int, int]]) -> list[int]:
    """Every element of a block, in the order of its digits."""
    steps = itertools.product(*(range(size) for size, _ in digits))
    strides = [stride for _, stride in digits]
    return [start + sum(n * s for n, s in zip(each, strides, strict=True)) for each in steps]


def of_block(block: Block, sizes: Mapping[str, int]) -> list[int]:
    start, runs = block
    return points(start.at(sizes), [(r.size.at(sizes), r.stride.at(sizes)) for r in runs])


def of_common(
    common: Common, blocks: Sequence[Block], side: int, sizes: Mapping[str, int]
) -> list[int]:
    """The elements of one side's block that are common, in the order of the common digits."""
    start, runs = blocks[side]
    at = start.at(sizes)
    for shift in common.shifts:
        if shift.side == side:
            at += runs[shift.digit].stride.at(sizes) * shift.steps.at(sizes)

    def stride(shared: Shared) -> int:
        end = shared.ends[side]
        return runs[end[0]].stride.at(sizes) * end[1].at(sizes) if end else 0

    return points(at, [(shared.size.at(sizes), stride(shared)) for shared in common.digits])


def pair(seed: int) -> tuple[Block, Block]:
    rng = random.Random(seed)
    blocks = box(rng, 0), box(rng, 1)
    if rng.random() < 0.3:  # with all sizes known, few pairs are left open
        numbers = {"k": Size.of(3), "d": Size.of(2)}
        blocks = known(blocks[0], numbers), known(blocks[1], numbers)
    return blocks


def attempt(seed: int) -> str:
    """What became of a pair of blocks: ``undecided``, ``apart`` or ``common``; wrong elements raise."""
    blocks = pair(seed)
    (a, one), (b, other) = blocks
    try:
        found = meet(b - a, one, other)
    except UndecidedError:
        return "undecided"
    for sizes in SIZES:
        held: list[int] = []
        for common in found:
            ours, theirs = (of_common(common, blocks, side, sizes) for side in (0, 1))
            assert ours == theirs, (seed, sizes)
            held += ours
        wanted = set(of_block(blocks[0], sizes)) & set(of_block(blocks[1], sizes))
        assert len(held) == len(set(held)), (seed, sizes)
        assert set(held) == wanted, (seed, sizes)
    return "common" if found else "apart"


@pytest.mark.parametrize("part", range(4))
def test_what_two_blocks_share_is_what_the_sets_of_their_elements_share(part: int) -> None:
    seen = collections.Counter(attempt(seed) for seed in range(part, PAIRS, 4))
    assert seen["common"] > 0.1 * seen.total()
    assert seen["undecided"] < 0.5 * seen.total()


@pytest.mark.parametrize("seed", range(0, 400, 3))
def test_it_does_not_matter_which_block_comes_first(seed: int) -> None:
    (a, one), (b, other) = pair(seed)

    def outcome(at: Size, first: list[Run], second: list[Run]) -> object:
        try:
            found = meet(at, first, second)
        except UndecidedError:
            return "undecided"
        return collections.Counter((frozenset(c.digits), _moves(c)) for c in found)

    if a != b and (b - a).over(one[0].stride if one else ONE) is None:
        return  # slots are counted from the first block first
    assert outcome(b - a, one, other) == outcome(a - b, other, one)


def _moves(common: Common) -> frozenset[tuple[int, int, Size]]:
    """How far the start moves along each digit."""
    steps = collections.defaultdict[tuple[int, int], Size](lambda: ZERO)
    for shift in common.shifts:
        steps[shift.side, shift.digit] += shift.steps
    return frozenset((*key, size) for key, size in steps.items() if size)


Q, KV, HEADS, DIM, K = map(Size.of, ("q", "kv", "heads", "dim", "k"))


@pytest.mark.parametrize(
    ("at", "one", "other", "why"),
    [
        (ZERO, [(Q, ONE)], [(KV, ONE)], "neither of q and kv is the smaller for all sizes"),
        (ZERO, [(HEADS, DIM), (DIM, ONE)], [(Size.of(3), ONE)], "neither of 3 and dim*heads is the smaller"),
        (ZERO, [(Q, KV), (KV, ONE)], [(KV, Q), (Q, ONE)], "share no block for all sizes"),
        (ZERO, [(K, Size.of(6)), (Size.of(6), ONE)], [(Q, Size.of(4)), (Size.of(4), ONE)], "k is no multiple of 2"),
        (Q - KV, [], [], "whether q-kv is 0"),
    ],
)  # fmt: skip
def test_what_no_blocks_tell_is_undecided(
    at: Size, one: list[tuple[Size, Size]], other: list[tuple[Size, Size]], why: str
) -> None:
    runs = [
        [Run(*digit, side, n) for n, digit in enumerate(each)]
        for side, each in enumerate((one, other))
    ]
    with pytest.raises(UndecidedError, match=why.replace("*", r"\*")) as caught:
        meet(at, *runs)
    assert len(caught.value.points) == 2


def test_digits_are_taken_coarsest_first() -> None:
    runs = [Run(DIM, ONE, 0, 0), Run(HEADS, DIM, 0, 1), Run(K, HEADS * DIM, 0, 2)]
    assert [run.digit for run in coarse_first(runs)] == [2, 1, 0]
