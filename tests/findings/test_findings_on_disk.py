"""What was found beside the conversion on disk."""

from __future__ import annotations

import numpy as np
import pytest

import ckpt_schema as cs


def test_a_rule_beside_a_collection_that_is_a_leaf_is_a_named_error() -> None:
    old = {"params": {"w": np.zeros(2)}, "noise": np.zeros(3)}
    new = {"params": {"w": np.zeros(2)}, "dropout": np.zeros(3)}
    with pytest.raises(cs.DerivationError, match="rename"):
        cs.adapt(old, new, rules=[cs.rename("noise", "dropout")])
