"""A hundred cases of each kind of input that nobody should give; ``python tests/fuzz/sweep.py`` runs thousands."""

from __future__ import annotations

import numpy as np
import pytest
from fuzz.attempts import SilentError, ended
from fuzz.sweep import KINDS
from fuzz.trees import plain, verify
from support.profiles import THOROUGH

import ckpt_schema as cs

CASES = 1000 if THOROUGH else 100


@pytest.mark.parametrize("kind", KINDS)
def test_each_input_is_named_or_taken_rightly(kind: str) -> None:
    ends = {seed: ended(KINDS[kind], seed) for seed in range(CASES)}
    assert not {seed: end for seed, end in ends.items() if end.fault}
    assert sum(end.kind == "named" for end in ends.values()) > CASES / 4, "the inputs are wrong"


def test_a_fault_is_told_from_an_error_of_ours() -> None:
    def named(_: np.random.Generator) -> None:
        cs.infer(object())

    def raw(_: np.random.Generator) -> None:
        raise KeyError("emb")

    def silent(_: np.random.Generator) -> None:
        tree = {"emb": np.zeros((2, 3), "float32"), "key": cs}
        verify(tree, {"emb": np.zeros((2, 3), "float32"), "layers": {}})

    assert ended(named, 0).kind == "named"
    assert ended(raw, 0).said == "KeyError at ?: 'emb'"
    assert ended(silent, 0).fault
    with pytest.raises(SilentError, match="taken for float32"):
        plain(np.zeros(2, "float64"), "float32")
