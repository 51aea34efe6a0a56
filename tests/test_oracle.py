"""A sample of what ``python tests/oracle/sweep.py`` compares: get and put against plain NumPy, to the last bit."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
from oracle.sweep import PRODUCT, compared, differences
from support.profiles import sampled


# Neither 24 dtypes, nor 18 layouts, nor 6 places divide evenly by it: each of them is in the sample.
@pytest.mark.parametrize(("dtype", "name", "place"), sampled(PRODUCT, 53))
def test_a_lens_gives_what_the_oracle_says(dtype: str, name: str, place: str) -> None:
    assert compared(dtype, name, place) in ([], None)


def test_the_oracle_shares_no_code_with_lenses() -> None:
    for module in (Path(__file__).parent / "oracle").glob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [n.name for n in node.names] if isinstance(node, ast.Import) else []
            assert not any(name.startswith("ckpt_schema._lens") for name in names), module.name


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ({"a": np.float32(0.0)}, ["/a: other bits"]),
        ({"a": np.int32(0)}, ["/a: int32() instead of float32()"]),
        ({"b": np.float32(-0.0)}, ["(root): ['b'] instead of ['a']"]),
        ({"a": np.float32([-0.0])}, ["/a: float32(1,) instead of float32()"]),
    ],
)
def test_what_differs_is_told(found: object, says: list[str]) -> None:
    assert list(differences(found, {"a": np.float32(-0.0)})) == says
