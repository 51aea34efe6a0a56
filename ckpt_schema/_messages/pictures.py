"""What a thing looks like in a notebook and in a terminal that has Rich: one picture, drawn in two ways."""

from __future__ import annotations

from typing import Any, NamedTuple

from ckpt_schema._messages.html import Section, page

__all__ = ["Picture", "Pictured"]

_LONG = 60  # rows of a section that a terminal shows whole
_FIRST = 20  # rows of a longer one that it shows
_FEW = 3  # rows that are shown though they are folded elsewhere


class Picture(NamedTuple):
    """A title, and what stands below it.

    Attributes:
        title: One line.
        sections: Tables; those that have no rows are not drawn.
    """

    title: str
    sections: list[Section]


class Pictured:
    """What has a picture."""

    __slots__ = ()

    def _picture(self) -> Picture:
        """The picture."""
        raise NotImplementedError

    def _repr_html_(self) -> str:
        """It as a notebook shows it."""
        return page(*self._picture())

    def __rich__(self) -> Any:
        """It as Rich prints it: each row on one line, of which what is too long is cut; many rows are folded."""
        from rich.console import Group
        from rich.text import Text

        title, sections = self._picture()
        drawn: list[Any] = [Text(title, style="bold")]
        for section in sections:
            if section.rows:
                drawn += _drawn(section)
        return Group(*drawn)


def _drawn(section: Section) -> list[Any]:
    """The heading of a section, its rows, and how many are not shown; of one that is folded the heading alone."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    count = len(section.rows)
    first = _FIRST if count > _LONG else count
    heading = Text(f"{count} {section.title}", style="cyan")
    if section.folded and count > _FEW:
        return [heading + Text(" (print shows them)", style="dim")]
    used = [n for n in range(len(section.header)) if any(row[n] for row in section.rows)]
    names = [section.header[number] for number in used]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=any(names))
    table.header_style = "dim"
    for name in names:
        table.add_column(Text(name), no_wrap=True, overflow="ellipsis")
    for row in section.rows[:first]:
        table.add_row(*[Text(row[number]) for number in used])
    drawn = [heading, Padding(table, (0, 0, 0, 2))]
    if first < count:
        drawn.append(Text(f"  ... and {count - first} more", style="dim"))
    return drawn
