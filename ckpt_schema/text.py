"""Plain text: tables, and numbers of things."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["columns", "counted"]


def counted(number: int, one: str, several: str = "") -> str:
    """A number of things, in words.

    Args:
        number: How many there are.
        one: What one of them is called.
        several: What several are called, where that is not ``one`` with an s.

    Example:
        >>> counted(1, "leaf", "leaves"), counted(3, "fault")
        ('1 leaf', '3 faults')
    """
    return f"{number} {one}" if number == 1 else f"{number} {several or one + 's'}"


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
