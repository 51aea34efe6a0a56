"""What a thing looks like in a notebook and in a terminal: one picture, drawn in two ways."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple, TextIO

from ckpt_schema._messages.html import Section, page

__all__ = ["Picture", "Pictured", "put"]


class Picture(NamedTuple):
    """A title, and what stands below it.

    Attributes:
        title: One line, or several.
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

    def _drawing(self) -> Picture:
        """The picture for a terminal, where that is not the same."""
        return self._picture()

    def _repr_html_(self) -> str:
        """It as a notebook shows it."""
        return page(*self._picture())

    def __rich_console__(self, console: Any, options: Any) -> Any:
        """It as Rich prints it: what is too long for a line folds, and of many rows the first are shown."""
        from ckpt_schema._messages.terminal import drawn

        yield drawn(*self._drawing(), options.max_width, more="print", whole=False)


def put(given: Any, text: str = "", file: TextIO | None = None) -> None:
    """Prints for whoever runs a command: on a terminal as a picture, or as text that folds; elsewhere as plain text.

    Args:
        given: What is printed.
        text: The plain text, where that is not what `print` shows.
        file: Where to; stdout unless given.
    """
    out = sys.stdout if file is None else file
    # A pipe or a file gets what `print` gives.
    if not out.isatty():
        print(text or given, file=out)
        return
    # Imported where somebody looks: most processes never draw.
    from rich.console import Console

    from ckpt_schema._messages.terminal import drawn, fitted

    console = Console(file=out, highlight=False)
    if isinstance(given, Pictured):
        given = given._drawing()  # pyright: ignore[reportPrivateUsage]
    if isinstance(given, Picture):
        console.print(drawn(*given, console.width, more="| less", whole=True))
    else:
        print(fitted(text or str(given), console.width), file=out)
