"""How far a long read or write is: a bar where somebody looks at a terminal, a line of the log in any case."""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
import threading
import time
from collections.abc import Callable, Generator

from ckpt_schema._messages.text import counted, in_bytes

__all__ = ["Steps", "watched", "watched_steps"]

_LOGGER = logging.getLogger("ckpt_schema")
_AFTER = 2.0  # seconds that pass before anything is shown
_EVERY = 0.2  # seconds between two looks


@contextlib.contextmanager
def watched(
    what: str, leaves: int, total: Callable[[], int], done: Callable[[], int]
) -> Generator[None]:
    """Shows how far the body is, if it takes long, and logs at its end what it took.

    Args:
        what: What it does, in a word or two.
        leaves: How many leaves it is about.
        total: Says how many bytes these are; asked only if the bar is shown.
        done: A count of bytes that grows while the body runs.
    """
    start, before = time.perf_counter(), done()
    said = f"{what} {counted(leaves, 'leaf', 'leaves')}"
    with _watcher(functools.partial(_show_bytes, said, total, lambda: done() - before)):
        yield
    seconds = time.perf_counter() - start
    if seconds >= _AFTER:
        size = done() - before
        rate = in_bytes(int(size / seconds))
        _LOGGER.info("%s: %s in %.1f s, %s/s", said, in_bytes(size), seconds, rate)


class Steps:
    """How far a body of several steps is.

    Attributes:
        begun: How many steps have begun.
        name: What the last of them is called.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._start = time.perf_counter()
        self.begun = 0
        self.name = ""

    def begin(self, name: str) -> None:
        """Says that the next step begins, and so that the one before is done."""
        self.end()
        self.begun += 1
        self.name = name

    def end(self) -> None:
        """Logs what the step took, if it took long."""
        now = time.perf_counter()
        if self.name and now - self._start >= _AFTER:
            _LOGGER.info("%s: %s took %.1f s", self._what, self.name, now - self._start)
        self._start = now


@contextlib.contextmanager
def watched_steps(what: str, count: int) -> Generator[Steps]:
    """Shows which step the body is at, if all of it takes long; a step that does is a line of the log.

    Args:
        what: What it does.
        count: How many steps there are.

    Yields:
        What the body tells that a step begins.
    """
    steps = Steps(what)
    with _watcher(functools.partial(_show_steps, what, count, steps)):
        yield steps
        steps.end()


@contextlib.contextmanager
def _watcher(show: Callable[[threading.Event], None]) -> Generator[None]:
    """Draws beside the body, if that takes long and somebody looks at a terminal, until it is done."""
    stop = threading.Event()

    def late() -> None:
        # Most bodies are done before anything is shown.
        if not stop.wait(_AFTER):
            show(stop)

    watcher = threading.Thread(target=late, daemon=True)
    if sys.stderr.isatty():
        watcher.start()
    try:
        yield
    finally:
        # The bar is gone before anything else is written to the terminal.
        stop.set()
        if watcher.ident is not None:
            watcher.join()


def _show_bytes(
    said: str, total: Callable[[], int], done: Callable[[], int], stop: threading.Event
) -> None:
    """Draws a bar of bytes."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
    )
    whole = total()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(said, total=whole)
        while not stop.wait(_EVERY):
            # Files have headers too, which are no bytes of arrays.
            bar.update(task, completed=min(done(), whole))


def _show_steps(what: str, count: int, steps: Steps, stop: threading.Event) -> None:
    """Draws a bar of steps, with the name of the one that is under way."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(escape(f"{what}: {steps.name}"), total=count)
        while not stop.wait(_EVERY):
            # The one that is under way is not done yet.
            said = escape(f"{what}: {steps.name}")
            bar.update(task, description=said, completed=max(steps.begun - 1, 0))
