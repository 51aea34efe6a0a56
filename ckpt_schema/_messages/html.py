"""Tables as a notebook shows them: HTML that folds what is long, and takes its colours from the page."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Section", "page"]

_LONG = 60  # rows of a section that is shown folded

# A notebook aligns tables right, and paints every other row in a colour of its own.
_STYLE = """<style>
.ckpt-schema table {border-collapse: collapse; font-family: monospace; font-size: 0.9em}
.ckpt-schema tr, .ckpt-schema tr:nth-child(odd) {background: none}
.ckpt-schema th, .ckpt-schema td {text-align: left; vertical-align: top; padding: 0 1.5em 0.1em 0}
.ckpt-schema td:first-child {white-space: nowrap}
.ckpt-schema th {font-weight: normal; opacity: 0.6}
.ckpt-schema summary {cursor: pointer; padding: 0.2em 0}
</style>"""


class Section(NamedTuple):
    """A table under a title.

    Attributes:
        title: What its rows have in common; how many there are is added.
        header: A word for each column; none are shown where all are empty.
        rows: A text for each column.
        folded: Whether only the title is seen at first. A long table is folded anyway.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = False


def page(title: str, sections: Sequence[Section]) -> str:
    """The sections that have rows, below a title. Columns that are empty in all rows are left out.

    Example:
        >>> page("a < b", [Section("rows", ("key", "leaf"), [("w", "")])]).endswith(
        ...     '<details open><summary>1 rows</summary><table><tr><th>key</th></tr>'
        ...     '<tr><td>w</td></tr></table></details></div>'
        ... )
        True
    """
    shown = "".join(_section(each) for each in sections if each.rows)
    return f'<div class="ckpt-schema">{_STYLE}<div>{html.escape(title)}</div>{shown}</div>'


def _section(section: Section) -> str:
    used = [
        number for number in range(len(section.header)) if any(row[number] for row in section.rows)
    ]
    names = [section.header[number] for number in used]
    lines = [_line("th", names)] if any(names) else []
    for row in section.rows:
        lines.append(_line("td", [row[number] for number in used]))
    state = "" if section.folded or len(section.rows) > _LONG else " open"
    title = f"{len(section.rows)} {html.escape(section.title)}"
    return f"<details{state}><summary>{title}</summary><table>{''.join(lines)}</table></details>"


def _line(tag: str, cells: Sequence[str]) -> str:
    written = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
    return f"<tr>{written}</tr>"
