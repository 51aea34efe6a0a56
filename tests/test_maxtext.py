"""One of the 24 states of MaxText's shapes; `python tests/maxtext_states.py` runs them all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import maxtext_states
from flax import nnx

import ckpt_schema as cs


def test_there_are_24() -> None:
    assert len({*maxtext_states.combinations()}) == 24


def test_an_unrolled_run_of_fp8_goes_on_from_what_it_saved_as_linen_has_it(tmp_path: Path) -> None:
    """In one line: the layers share a stream, and a collection stands beside the params."""
    found = maxtext_states.outcome("unrolled", "wrapped", "fp8", tmp_path, steps=2)
    assert found.equal
    assert not found.words


def test_what_a_mask_leaves_tells_no_chain() -> None:
    """Under Muon an optimizer of adapters holds MaskedNodes alone besides leaves; the error has the lines all the same."""
    words = "scanned", "muon", "lora"
    target = nnx.eval_shape(lambda: maxtext_states.Training(*words, 0))
    rules: list[Any] = []
    linen = maxtext_states.linen_state(*words)
    maxtext_states.settled(lambda rules: cs.adapt(linen, target, rules=rules), rules)
    assert cs.private("opt_state/inner_states/muon/inner_state/0/mu", cs.own) in rules
