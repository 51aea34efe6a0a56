"""Plain text: tables, and numbers of things."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["columns", "counted", "in_bytes", "number_span", "shown"]


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


def in_bytes(number: int) -> str:
    """A number of bytes, in the unit that suits it.

    Example:
        >>> in_bytes(12), in_bytes(3 * 2**30)
        ('12 B', '3.0 GiB')
    """
    size, unit = float(number), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{number} B" if unit == "B" else f"{size:.1f} {unit}"


_SHOWN = 200  # characters of a value


def shown(value: object) -> str:
    """A value that a caller gave, as a message writes it: its repr where that is short, and can be made.

    Example:
        >>> shown("a"), shown(10**5000)
        ("'a'", 'an int of too many digits')
    """
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of more than 4300 digits
        text = f"an {type(value).__name__} of too many digits"
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."


_RUNS = 4  # how many runs of numbers are written out


def number_span(column: Sequence[str]) -> str:
    """The numbers that stand in one place of several paths: ``{0..59}``, or the one that all have.

    Example:
        >>> number_span(["0", "1", "2", "5"]), number_span(["7", "7"])
        ('{0..2,5}', '7')
    """
    spelled = sorted(set(column), key=lambda number: (len(number.lstrip("0")), number))
    if len(spelled) == 1:
        return spelled[0]
    if max(map(len, spelled)) > 18:  # no numbers of layers
        return f"{{{len(spelled)} numbers}}"
    runs: list[list[str]] = []
    for number in spelled:
        if runs and int(number) - int(runs[-1][-1]) == 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    shown = [_run(run) for run in runs[:_RUNS]]
    rest = ["..", spelled[-1]] if len(runs) > _RUNS else []
    return f"{{{','.join([*shown, *rest])}}}"


def _run(numbers: Sequence[str]) -> str:
    if len(numbers) <= 2:
        return ",".join(numbers)
    return f"{numbers[0]}..{numbers[-1]}"


def columns(rows: Sequence[Sequence[str]], indent: int = 2) -> list[str]:
    """Rows of cells as lines, each column as wide as its widest cell; trailing blanks are cut.

    Example:
        >>> columns([("a", "bb", "c"), ("aaa", "b", "")])
        ['  a    bb  c', '  aaa  b']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines: list[str] = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append(" " * indent + "  ".join(cells).rstrip())
    return lines
