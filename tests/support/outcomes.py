"""What a test says of an outcome: that an array is another one, or that something is refused in these words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ckpt_schema as cs

__all__ = ["refused", "same"]


def same(found: Any, wanted: Any) -> None:
    """Values and dtype of one array are those of another."""
    np.testing.assert_array_equal(np.asarray(found), np.asarray(wanted))
    assert found.dtype == wanted.dtype


def refused(run: Callable[[], object], *words: str) -> None:
    """What runs raises an error of this library that has these words."""
    with pytest.raises(cs.CkptSchemaError) as error:
        run()
    for word in words:
        assert word in str(error.value)
