"""The site of the docs: each public name is in its reference, and each page in its index."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
MODULES = (
    "",
    ".linen",
    ".nnx",
    ".blocks.linen",
    ".blocks.nnx",
    ".orbax",
    ".hf",
    ".discovery",
    ".testing",
)
SHOWN_ELSEWHERE = {"discover"}  # of `ckpt_schema.discovery`, which `ckpt_schema` has too


def documented() -> dict[str, set[str]]:
    """The names that the reference has of each module."""
    found: dict[str, set[str]] = {}
    module = ""
    for word, name in re.findall(
        r"^\.\. (currentmodule|autofunction|autoclass|autodata|data):: ([\w.]+)$",
        (DOCS / "reference.md").read_text(),
        re.MULTILINE,
    ):
        if word == "currentmodule":
            module = name
        else:
            found.setdefault(module, set()).add(name)
    return found


@pytest.mark.parametrize("below", MODULES)
def test_each_public_name_is_in_the_reference(below: str) -> None:
    module = importlib.import_module(f"ckpt_schema{below}")
    public = {name for name in module.__all__ if not _is_module(module, name)}
    if below == ".discovery":
        public -= SHOWN_ELSEWHERE
    assert documented()[module.__name__] == public


def _is_module(module: object, name: str) -> bool:
    return type(getattr(module, name)).__name__ == "module"


def test_each_page_is_in_the_index() -> None:
    listed = re.findall(r"^([\w-]+)$", (DOCS / "index.md").read_text(), re.MULTILINE)
    pages = {page.stem for page in DOCS.glob("*.md")} - {"index"}
    assert sorted(listed) == sorted(pages)
