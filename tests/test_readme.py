"""The README is a program: its Python runs as one, from top to bottom."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parent.parent / "README.md"
FENCE = re.compile(r"(?<=^```python\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)


def python_of(text: str) -> str:
    """The Python in a Markdown text, every line at its own line number."""
    lines = [""] * text.count("\n")
    for fence in FENCE.finditer(text):
        start = text.count("\n", 0, fence.start())
        code = fence.group().splitlines()
        lines[start : start + len(code)] = code
    return "\n".join(lines)


def test_what_the_readme_says_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = python_of(README.read_text()).replace("/tmp/my-run", str(tmp_path))
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(program, str(README), "exec"), names)
    assert names["training"].optimizer.step[...] == 1000
    assert "layers" in capsys.readouterr().out


def test_an_error_in_the_readme_names_its_line() -> None:
    with pytest.raises(NameError) as raised:
        exec(compile(python_of("text\n```python\nx = 1\n```\n\n```python\ny = 2\nz\n```\n"), "it", "exec"), {})
    assert raised.traceback[-1].lineno == 7  # counted from 0
