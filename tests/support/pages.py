"""Writes the Python of a page to a file, for a type checker: ``python tests/support/pages.py README.md FILE``.

The lines keep their numbers, so that what a checker says of the file is said of the page.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

# A block of Python, or a cell of a page that is a notebook, whose options stand before its code.
FENCE = re.compile(
    r"^```(?:python|\{code-cell\} python)\n(?::[\w-]+:.*\n)*(?P<code>(?s:.*?))^```$", re.MULTILINE
)


def python_of(text: str) -> str:
    """The Python in a Markdown text, every line at its own line number."""
    lines = [""] * text.count("\n")
    for fence in FENCE.finditer(text):
        start = text.count("\n", 0, fence.start("code"))
        code = fence["code"].splitlines()
        lines[start : start + len(code)] = code
    return "\n".join(lines)


if __name__ == "__main__":
    page, target = map(Path, sys.argv[1:])
    program = python_of(page.read_text()).split("\n")
    # A page is several programs, one after the other; models in it are written as Flax's users do.
    program[0] = "# pyright: basic, reportRedeclaration=false"
    target.write_text("\n".join(program))
