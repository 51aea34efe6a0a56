"""Public models at full size as Python: six shapes of them, read abstractly, written, imported and held against the first."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from support.public_models import MODELS, PARAMS
from test_source import executed, told

import ckpt_schema as cs


def params(layout: cs.Layout) -> int:
    """How many elements the model has."""
    several = [row for row in layout.rows if row.is_weight and not row.optimizer]
    sizes: list[Any] = [[dim[0] for dim in row.all_dims] for row in several]
    return sum(map(math.prod, sizes))


@pytest.mark.parametrize("name", MODELS)
def test_a_public_model_is_written_in_a_page_that_is_the_same_layout(name: str) -> None:
    layout = MODELS[name]()
    assert params(layout) == PARAMS[name]
    text = cs.to_source(layout)
    assert told(executed(text)) == told(layout)
    lines = text.splitlines()
    assert len(lines) < 150 and max(map(len, lines)) <= 100
    # mypy and pyright, both strict, read that file.
    written = Path(__file__).parent / "typing" / f"{name}.py"
    assert written.read_text() == text
