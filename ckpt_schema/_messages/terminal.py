"""Tables as a terminal shows them: no wider than it is, and with nothing cut.

What does not fit folds. Where a table with numbers fits as far as these go, what stands behind them
stands below each row, by name. A table that is too wide by its first column alone gives the cells that
are too long a line of their own, one that is too wide by its last folds the text in that, and any
other writes each row as a record: its first cell, and below it the others by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.text import Text

from ckpt_schema._messages.html import NUMBERS, Section, used_columns

__all__ = ["drawn", "fitted", "wrapped"]

_LONG = 60  # rows of a section that are all shown
_FIRST = 20  # rows of a longer one that are shown
_FEW = 3  # rows that are shown though they are folded elsewhere
_INDENT = 2
_GAP = 2
_BELOW = 4  # how far what belongs to a line is indented below it
_PROSE = 30  # columns that a text needs to be read where it is folded in a table
_DEEP = 12  # columns that a line is indented by where it is aligned with something above
_NAME = 24  # columns that are enough for most first cells

_WORD = re.compile(r"(\s*)(\S+)")
# A string of code is one word: it is not what it was once a blank in it is a new line.
_CODE = re.compile(r"""(\s*)((?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\S)+)""")


def wrapped(text: str, width: int, *, hang: int = 0, code: bool = False) -> list[str]:
    """A line of text as lines of at most ``width`` columns.

    It is broken at blanks, inside of a word that is longer than a line behind a slash, and only
    where there is none of these anywhere.

    Args:
        text: The line.
        width: How many columns there are.
        hang: How far all lines but the first are indented.
        code: Whether it is code, of which no string is broken at a blank.

    Example:
        >>> wrapped("layers/attention/kernel is there", 20)
        ['layers/attention/', 'kernel is there']
    """
    lines: list[str] = []
    line = ""
    for blank, whole in (_CODE if code else _WORD).findall(text):
        if line.strip() and cell_len(line + blank + whole) > width:
            lines.append(line)
            line = " " * hang
        else:
            line += blank
        # A word that is longer than a line is broken itself.
        word = whole
        while cell_len(line + word) > width and len(word) > 1:
            head = _head(word, width - cell_len(line))
            lines.append(line + head)
            word, line = word[len(head) :], " " * hang
        line += word
    return [*lines, line]


def _head(word: str, free: int) -> str:
    """As much of the beginning of a word as fits, up to a slash where one is in it."""
    end, taken = 0, 0
    for letter in word[:-1]:
        taken += cell_len(letter)
        if taken > free and end:
            break
        end += 1
    slash = word.rfind("/", 0, end)
    return word[: slash + 1 if slash > 0 else end]


def fitted(text: str, width: int) -> str:
    """The text of an error in ``width`` columns; rules to paste stay code.

    Example:
        >>> print(fitted("a/b  expected one thing", 18))
        a/b  expected one
            thing
    """
    lines: list[str] = []
    is_code = False
    is_wide = any(cell_len(line) > width for line in text.split("\n"))
    for line in text.split("\n"):
        is_code = (is_code and line != "]") or line == "rules=["
        if is_wide and _indent(line) > _DEEP:  # aligned with what is now on a line of its own
            line = " " * (_INDENT + _BELOW) + line.lstrip()
        lines += wrapped(line, width, hang=_indent(line) + _BELOW, code=is_code)
    return "\n".join(lines)


def drawn(title: str, sections: Sequence[Section], width: int, *, more: str, whole: bool) -> Text:
    """A title and the sections that have rows below it, in ``width`` columns.

    Args:
        title: Lines.
        sections: The sections.
        width: How many columns there are.
        more: What shows the rows that are not shown here.
        whole: Whether sections that are folded elsewhere are shown here, where they are not long.
    """
    lines: list[Text] = []
    for line in title.split("\n"):
        lines += [Text(part, "bold") for part in wrapped(_safe(line), width)]
    for section in sections:
        if section.rows:
            lines += _section(section, width, more, whole=whole)
    return Text("\n").join(lines)


def _section(section: Section, width: int, more: str, *, whole: bool) -> Iterator[Text]:
    """The heading of a section, its rows, and how many are not shown; of one that is folded the heading alone."""
    heading = [Text(part, "bold") for part in wrapped(_safe(section.heading), width)]
    count = len(section.rows)
    if section.folded and count > (_LONG if whole else _FEW):
        yield from heading[:-1]
        yield heading[-1] + Text(f" ({more} shows them)", "dim not bold")
        return
    if section.partly:
        heading[-1] += Text(f" ({more} shows all)", "dim not bold")
    yield from heading
    first = _FIRST if count > _LONG else count
    yield from _Table(section, first, width).lines()
    if first < count:
        yield Text(f"{' ' * _INDENT}... and {count - first} more ({more} shows them)", "dim")


class _Table:
    """The first rows of a section, in some columns of a terminal."""

    def __init__(self, section: Section, first: int, width: int) -> None:
        used = used_columns(section)
        self._names = [section.header[number] for number in used]
        self._rows = [[_safe(row[number]) for number in used] for row in section.rows[:first]]
        self._width = width
        self._code = section.code
        self._is_headed = section.headed and any(self._names)
        self._columns: list[int] = []
        for name, column in zip(self._names, zip(*self._rows, strict=True), strict=True):
            cells = (name, *column) if self._is_headed else column
            self._columns.append(max(map(cell_len, cells)))

    def lines(self) -> Iterator[Text]:
        """All of it, by the first of the ways in which it fits."""
        if len(self._columns) == 1 and not any(self._names):
            for (cell,) in self._rows:
                yield from self._plain(cell)
            return
        side_by_side = self._fit()
        if self._is_headed and side_by_side > 1:
            yield Text(self._line(self._names[:side_by_side]), "dim")
        for row in self._rows:
            if side_by_side == 1:
                yield from self._plain(row[0])
            else:
                yield from self._row(row[:side_by_side])
            yield from self._facts(row, side_by_side)

    def _fit(self) -> int:
        """How many cells of a row stand side by side; the columns that fold are made as narrow as they have to be."""
        count = core = len(self._columns)
        # The columns up to the last one with numbers belong together.
        for at, name in enumerate(self._names):
            if name in NUMBERS:
                core = at + 1
        spare = self._spare(count)
        free = self._columns[0] + spare, self._columns[-1] + spare
        if spare >= 0:
            return count
        if self._spare(core) >= 0:
            return core
        if free[0] >= _NAME:
            firsts = [cell_len(row[0]) for row in self._rows if cell_len(row[0]) <= free[0]]
            self._columns[0] = max([cell_len(self._names[0]), *firsts])
            return count
        if free[1] >= _PROSE:
            self._columns[-1] = free[1]
            return count
        return 1

    def _spare(self, count: int) -> int:
        """How many columns are left where so many cells stand side by side."""
        return self._width - _INDENT - sum(self._columns[:count]) - _GAP * (count - 1)

    def _plain(self, cell: str) -> Iterator[Text]:
        """A cell on a line of its own."""
        line = " " * _INDENT + cell
        hang = _indent(line) + _BELOW // 2
        for part in wrapped(line, self._width, hang=hang, code=self._code):
            yield Text(part)

    def _line(self, cells: Sequence[str]) -> str:
        """Cells side by side."""
        padded: list[str] = []
        for name, cell, width in zip(self._names, cells, self._columns, strict=False):
            blanks = " " * (width - cell_len(cell))
            padded.append(blanks + cell if name in NUMBERS else cell + blanks)
        return (" " * _INDENT + (" " * _GAP).join(padded)).rstrip()

    def _row(self, cells: list[str]) -> Iterator[Text]:
        """A row on one line, or on several where its first or its last cell is too long."""
        if cell_len(cells[0]) > self._columns[0]:
            yield from self._plain(cells[0])
            cells = ["", *cells[1:]]
        if not any(cells):
            return
        parts = wrapped(cells[-1], self._columns[len(cells) - 1]) if cells[-1] else [""]
        for number, part in enumerate(parts):
            before = [""] * (len(cells) - 1) if number else cells[:-1]
            yield Text(self._line([*before, part]))

    def _facts(self, row: Sequence[str], start: int) -> Iterator[Text]:
        """The cells from a column on, each by its name, as many on a line as fit, indented below the first cell."""
        margin = " " * (_INDENT + _indent(row[0]) + _BELOW)
        line = Text(margin)
        for name, cell in zip(self._names[start:], row[start:], strict=True):
            if not cell:
                continue
            label = f"{name}: " if name else ""
            fact = Text(label + cell)
            fact.stylize("dim", 0, len(label))
            between = "   " if line.plain.strip() else ""
            if line.cell_len + len(between) + fact.cell_len <= self._width:
                line = line + Text(between) + fact
                continue
            if between:
                yield line
            first, *rest = wrapped(margin + fact.plain, self._width, hang=len(margin) + _GAP)
            line = Text(first)
            line.stylize("dim", len(margin), len(margin) + len(label))
            for part in rest:
                yield line
                line = Text(part)
        if line.plain.strip():
            yield line


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def _safe(text: str) -> str:
    """A text in which what would move the cursor of a terminal is spelled: a key may be any string."""
    return _CONTROL.sub(lambda control: repr(control[0])[1:-1], text)


def _indent(line: str) -> int:
    """How many blanks a line begins with."""
    return len(line) - len(line.lstrip())
