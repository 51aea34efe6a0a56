"""A sample of damaged checkpoints; ``python tests/fuzz/damage.py`` tries thousands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz import damage as fuzzing

CASES = 100


@pytest.fixture(scope="module")
def restorer() -> Iterator[fuzzing.Restorer]:
    started = fuzzing.Restorer()
    yield started
    started.close()


@pytest.fixture(scope="module")
def fuzz(restorer: fuzzing.Restorer, tmp_path_factory: pytest.TempPathFactory) -> fuzzing.Fuzz:
    return fuzzing.Fuzz("drawn", tmp_path_factory.mktemp("damage"), restorer)


def test_no_damaged_checkpoint_is_restored_to_other_values(fuzz: fuzzing.Fuzz) -> None:
    every = fuzz.damages(seed=7)
    step = len(every) / CASES
    sample = [every[int(number * step)] for number in range(CASES)]
    outcomes = [fuzz.outcome(damage) for damage in sample]
    assert [outcome for outcome in outcomes if not outcome.good] == []
    ends = {outcome.end for outcome in outcomes}
    assert {"named", "right"} <= ends  # some files hold nothing that a restore needs


def test_what_is_whole_is_right_and_the_fuzz_can_fail(fuzz: fuzzing.Fuzz) -> None:
    assert fuzz.outcome(None).end == "right"

    def another(root: Path) -> None:
        fuzzing.exchange(root, fuzz.other, "state")

    assert fuzz.outcome(fuzzing.Damage("directory of another", "state", another)).end == "silent"
    known = fuzzing.Damage("directory of another", "state", another, exchanges=True)
    assert fuzz.outcome(known).end == "theirs"
