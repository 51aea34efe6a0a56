"""One of the 24 states of MaxText's shapes; `python tests/maxtext_states.py` runs them all."""

from __future__ import annotations

from pathlib import Path

import maxtext_states


def test_there_are_24() -> None:
    assert len({*maxtext_states.combinations()}) == 24


def test_an_unrolled_run_of_fp8_goes_on_from_what_it_saved_as_linen_has_it(tmp_path: Path) -> None:
    """In one line: the layers share a stream, and a collection stands beside the params."""
    found = maxtext_states.outcome("unrolled", "wrapped", "fp8", tmp_path, steps=2)
    assert found.equal
    assert not found.words
