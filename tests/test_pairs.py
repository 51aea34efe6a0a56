"""A sample of what `pairs.py` tries: random layouts of one model, in pairs and composed, against NumPy."""

from __future__ import annotations

import pytest
from pairs import Tally, differences, held, on_devices, through_disk, tried
from support.mingled import paired
from support.mingling import Case, drawn
from support.profiles import THOROUGH

import ckpt_schema as cs

TIMES = 10 if THOROUGH else 1


def verify_right(tally: Tally, wanted: int) -> None:
    assert not tally.wrong, "\n".join(tally.wrong)
    assert not tally.refused, tally.refused
    assert tally.pairs >= wanted


def test_random_pairs_and_triples_are_what_numpy_says() -> None:
    tally = Tally()
    for number in range(14 * TIMES):
        tried(f"sample/{number}", tally)
    verify_right(tally, 40 * TIMES)
    several = sum(count for kinds, count in tally.kinds.items() if int(kinds) >= 3)
    assert several >= 0.3 * tally.kinds.total(), "kinds of difference meet on one leaf"
    assert tally.composed >= 12 * TIMES


def test_sizes_that_an_error_asks_for_are_asked_until_they_decide() -> None:
    """One error asks for the size of a padded axis, and the next for that of what is padded."""
    tally = Tally()
    tried("0/cases/2338", tally)
    verify_right(tally, 3)
    assert tally.decided


@pytest.mark.skipif(not THOROUGH, reason="compiles half a minute for a draw of three layouts")
def test_random_pairs_on_devices() -> None:
    tally = Tally()
    for number in range(TIMES):
        on_devices(f"sample/{number}", tally)
    verify_right(tally, TIMES)


def test_random_pairs_through_disk() -> None:
    tally = Tally()
    for number in range(2 * TIMES):
        through_disk(f"sample/{number}", tally)
    verify_right(tally, 2 * TIMES)


def test_what_differs_is_seen() -> None:
    case = drawn("sample/0")
    one, other = case.layouts[:2]
    cs.derive(one.schema, other.schema, rules=paired(one, other).rules)
    right, wrong = held(case, one), held(case, other)
    assert not [*differences(right, right)]
    assert [*differences(right, wrong)]


@pytest.mark.parametrize("seed", ["a", "b"])
def test_a_seed_says_everything(seed: str) -> None:
    assert drawn(seed).layouts == drawn(seed).layouts


def _loses_nothing(case: Case) -> bool:
    """Whether the middle has all that both ends have, in dtypes that hold it, once, and without padding."""
    for number, layout in enumerate(case.layouts):
        members = [member for place in layout.places for member in place.members]
        for kept in (kept for member in members for kept in member.leaves):
            if kept.copy is not None or kept.unit.private:
                return False
            narrow = kept.dtype != "float32" and len(kept.unit.dtypes) > 1
            if number == 1 and (kept.pads or narrow):
                return False
    return True


def test_where_the_middle_loses_nothing_the_composite_prints_as_the_derived_lens() -> None:
    compared = 0
    for number in range(60 * TIMES):
        case = drawn(f"print/{number}")
        if not _loses_nothing(case):
            continue
        first, middle, last = case.layouts
        one, other, direct = (
            cs.derive(source.schema, view.schema, rules=paired(source, view).rules)
            for source, view in ((first, middle), (middle, last), (first, last))
        )
        lines = [[" ".join(x.split()) for x in str(x).split("\n")] for x in (one >> other, direct)]
        assert sorted(lines[0]) == sorted(lines[1]), number
        compared += 1
    assert compared >= 5
