"""Plain text tables."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["columns"]


def columns(rows: Sequence[Sequence[str]], indent: int = 2) -> list[str]:
    """Rows of cells as lines, each column as wide as its widest cell; trailing blanks are cut.

    Example:
        >>> columns([("a", "bb", "c"), ("aaa", "b", "")])
        ['  a    bb  c', '  aaa  b']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return [" " * indent + line.rstrip() for line in lines]
