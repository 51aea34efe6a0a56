"""Tables as a notebook shows them: HTML that folds what is long, and takes its colours from the page."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import NamedTuple

from ckpt_schema._messages.text import counted

__all__ = ["NUMBERS", "Section", "page", "used_columns"]

NUMBERS = frozenset({"bytes", "size", "absolute", "relative"})
"""The headers of columns that are aligned right."""

_LONG = 60  # rows of a section that is shown folded
_WIDE = 48  # characters of a cell that may fold, though others stand behind it

# A notebook aligns tables right, and paints every other row in a colour of its own.
_STYLE = """<style>
.ckpt-schema table {border-collapse: collapse; font-family: monospace; font-size: 0.9em}
.ckpt-schema tr, .ckpt-schema tr:nth-child(odd) {background: none}
.ckpt-schema th, .ckpt-schema td {text-align: left; vertical-align: top; padding: 0 1.5em 0.1em 0}
.ckpt-schema th, .ckpt-schema td {white-space: pre}
.ckpt-schema td:last-child {white-space: pre-wrap}
.ckpt-schema td.long {white-space: pre-wrap; min-width: 40ch}
.ckpt-schema th.number, .ckpt-schema td.number {text-align: right; white-space: pre}
.ckpt-schema th {font-weight: normal; opacity: 0.6}
.ckpt-schema summary {cursor: pointer; padding: 0.2em 0}
</style>"""


class Section(NamedTuple):
    """A table under a title.

    Attributes:
        title: What several rows are; how many there are is added.
        header: A word for each column; none are shown where all are empty.
        rows: A text for each column.
        folded: Whether only the title is seen at first. A long table is folded anyway.
        one: What one row is, where that is not called as several are.
        note: What is said of all of them, behind the title.
        number: How many are counted, where these are not the rows; 0 where none are to be.
        code: Whether the rows are lines of code.
        headed: Whether a terminal shows the header; a row that folds has its words in any case.
        partly: Whether rows stand for several that are not shown.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = False
    one: str = ""
    note: str = ""
    number: int | None = None
    code: bool = False
    headed: bool = True
    partly: bool = False

    @property
    def heading(self) -> str:
        """How many rows there are of what, and what is said of them."""
        count = len(self.rows) if self.number is None else self.number
        title = counted(count, self.one or self.title, self.title) if count else self.title
        return f"{title}, {self.note}" if self.note else title


def used_columns(section: Section) -> list[int]:
    """The numbers of the columns in which any row has something."""
    used: set[int] = set()
    for row in section.rows:
        used.update([number for number, cell in enumerate(row) if cell])
    return sorted(used)


def page(title: str, sections: Sequence[Section]) -> str:
    """The sections that have rows, below a title. Columns that are empty in all rows are left out.

    Example:
        >>> page("a < b", [Section("rows", ("key", "leaf"), [("w", "")], one="row")]).endswith(
        ...     '<details open><summary>1 row</summary><table><tr><th>key</th></tr>'
        ...     '<tr><td>w</td></tr></table></details></div>'
        ... )
        True
    """
    tables: list[str] = []
    for section in sections:
        if section.rows:
            tables.append(_section(section))
    below = "".join(tables)
    return f'<div class="ckpt-schema">{_STYLE}<div>{html.escape(title)}</div>{below}</div>'


def _section(section: Section) -> str:
    """One table, under a heading that opens and folds it."""
    used = used_columns(section)
    names = [section.header[number] for number in used]
    # Of columns without words nothing stands on top.
    lines = [_line("th", names, names)] if any(names) else []
    for row in section.rows:
        lines.append(_line("td", [row[number] for number in used], names))
    # A long one folds, so that what stands below it is seen.
    state = "" if section.folded or len(section.rows) > _LONG else " open"
    title = html.escape(section.heading)
    return f"<details{state}><summary>{title}</summary><table>{''.join(lines)}</table></details>"


def _line(tag: str, cells: Sequence[str], names: Sequence[str]) -> str:
    """One row of a table, under columns of these names."""
    written: list[str] = []
    for cell, name in zip(cells, names, strict=True):
        kind = ' class="number"' if name in NUMBERS else ' class="long"' * (len(cell) > _WIDE)
        written.append(f"<{tag}{kind}>{html.escape(cell)}</{tag}>")
    return f"<tr>{''.join(written)}</tr>"
