"""Plain text: tables, and numbers of things."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

__all__ = [
    "PRINT_WIDTH",
    "columns",
    "counted",
    "in_bytes",
    "number_span",
    "printed_table",
    "shown",
    "text_lines",
]


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


PRINT_WIDTH = 120
"""How many columns what `print` shows takes at most; a path that is longer has a line of its own."""

_GAP = 2  # blanks between two columns
_BELOW = 4  # how far what belongs to a line is indented below it

# A string is one word: a rule that is printed stays code, and a key with a blank in it one key. So is float32[4 8],
# unless it has more axes than anybody reads at a glance. A bracket before a quote is that of a list of strings.
_WORD = re.compile(r"""(\s*)((?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\[[^\]'"]{0,40}\]|\S)+)""")


def text_lines(text: str, width: int = PRINT_WIDTH, hang: int = 0) -> list[str]:
    """A line as several that are no longer than ``width``, but for a word that is longer itself.

    Args:
        text: The line.
        width: How many columns there are.
        hang: How far all lines but the first are indented.

    Example:
        >>> text_lines("q/kernel k/kernel 'a b'", 18, hang=2)
        ['q/kernel k/kernel', "  'a b'"]
    """
    if len(text) <= width:
        return [text]
    lines: list[str] = []
    line = ""
    for blank, word in _WORD.findall(text):
        if line.strip() and len(line) + len(blank) + len(word) > width:
            lines.append(line)
            line = " " * hang + word
        else:
            line += blank + word
    return [*lines, line]


def columns(rows: Sequence[Sequence[str]], indent: int = 2, width: int | None = None) -> list[str]:
    """Rows of cells as lines, each column as wide as its widest cell; trailing blanks are cut.

    Args:
        rows: The cells of each.
        indent: How many blanks each line begins with.
        width: How many columns there are. Cells that are too long fold. A row whose words are too long to stand side by
            side goes on below.

    Example:
        >>> columns([("a", "bb", "c"), ("aaa", "b", "")])
        ['  a    bb  c', '  aaa  b']
        >>> columns([("q k v", "qkv", "x"), ("w", "w", "y")], width=11)
        ['  q  qkv  x', '  k', '  v', '  w  w    y']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if width is None or indent + sum(widths) + _GAP * (len(widths) - 1) <= width:
        return [_line(row, widths, indent) for row in rows]
    free = width - indent - _GAP * (len(widths) - 1)
    words = [[_longest_word(cell) for cell in row] for row in rows]
    outside = _too_wide(words, free)
    inside = [number for number in range(len(rows)) if number not in outside]
    parts: dict[int, list[list[str]]] = {}
    below: dict[int, str] = {}
    if inside:
        limits = _limits([rows[n] for n in inside], [words[n] for n in inside], free)
        for number in inside:
            cells = zip(rows[number], limits, strict=True)
            *others, last = [text_lines(cell, limit) for cell, limit in cells]
            # Beside the lines of another cell those of the last one would seem to belong to each of them.
            if len(last) > 1 and any(len(other) > 1 for other in others):
                below[number], last = rows[number][-1], [""]
            parts[number] = [*others, last]
        widths = []
        for column in zip(*parts.values(), strict=True):
            widths.append(max(map(len, itertools.chain.from_iterable(column))))
    lines: list[str] = []
    for number, row in enumerate(rows):
        if number in outside:
            lines += _record(row, indent, width)
        else:
            for cells in itertools.zip_longest(*parts[number], fillvalue=""):
                lines.append(_line(cells, widths, indent))
            if number in below:
                text = " " * (indent + _BELOW) + below[number]
                lines += text_lines(text, width, indent + 2 * _BELOW)
    return lines


def printed_table(
    title: str, rows: Sequence[Sequence[str]], width: int | None = PRINT_WIDTH
) -> str:
    """A title, and rows in columns below it, as `print` shows them.

    Args:
        title: One line.
        rows: The cells of each.
        width: How many columns there are; None where every row is to be one line.

    Example:
        >>> print(printed_table("two leaves", [("a/kernel", "float32[2]"), ("b", "int8[]")]))
        two leaves
          a/kernel  float32[2]
          b         int8[]
    """
    above = [title] if width is None else text_lines(title, width, hang=_BELOW)
    return "\n".join([*above, *columns(rows, width=width)])


def _line(cells: Sequence[str], widths: Sequence[int], indent: int) -> str:
    """Cells side by side."""
    padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
    return " " * indent + (" " * _GAP).join(padded).rstrip()


def _longest_word(cell: str) -> int:
    return max([len(word) for _, word in _WORD.findall(cell)], default=0)


def _too_wide(words: Sequence[Sequence[int]], free: int) -> set[int]:
    """The rows to be taken out so that the words of all others fit side by side: those with the longest.

    Args:
        words: How long the longest word of each cell is.
        free: How many columns there are for all cells of a row.
    """
    outside: set[int] = set()
    # The rows by their longest word in each column, from the longest on; what is taken out is passed over.
    orders: list[list[int]] = []
    for column in zip(*words, strict=True):
        orders.append(sorted(range(len(words)), key=column.__getitem__))
    while len(outside) < len(words):
        longest: list[int] = []
        for at, order in enumerate(orders):
            while order[-1] in outside:
                order.pop()
            longest.append(words[order[-1]][at])
        if sum(longest) <= free:
            break
        outside.add(orders[longest.index(max(longest))][-1])
    return outside


def _limits(rows: Sequence[Sequence[str]], words: Sequence[Sequence[int]], free: int) -> list[int]:
    """How wide each column may be: as its widest cell, but for the widest columns, which fold as much as they have to."""
    natural = [max(map(len, column)) for column in zip(*rows, strict=True)]
    least = [max(column) for column in zip(*words, strict=True)]
    limits, most = natural, max(natural)
    while sum(limits) > free:
        most -= 1
        limits = [max(low, min(wide, most)) for low, wide in zip(least, natural, strict=True)]
    return limits


def _record(row: Sequence[str], indent: int, width: int) -> list[str]:
    """A row that is in no columns: its cells one after the other, as many on a line as fit."""
    lines: list[str] = []
    margin = " " * indent
    line = ""
    for cell in filter(None, row):
        if line and len(line) + _GAP + len(cell) <= width:
            line += " " * _GAP + cell
            continue
        if line:
            lines.append(line)
        *above, line = text_lines(margin + cell, width, hang=indent + 2 * _BELOW)
        lines += above
        margin = " " * (indent + _BELOW)
    return [*lines, line]
