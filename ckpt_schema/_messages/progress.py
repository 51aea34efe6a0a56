"""How far a long read or write is: a bar where somebody looks at a terminal, a line of the log in any case."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Generator

from ckpt_schema._messages.text import counted, in_bytes

__all__ = ["watched"]

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
    stop = threading.Event()
    said = f"{what} {counted(leaves, 'leaf', 'leaves')}"
    watcher = threading.Thread(
        target=_show, args=(said, total, lambda: done() - before, stop), daemon=True
    )
    if sys.stderr.isatty():
        watcher.start()
    try:
        yield
    finally:
        stop.set()
        if watcher.ident is not None:
            watcher.join()
    seconds = time.perf_counter() - start
    if seconds >= _AFTER:
        size = done() - before
        rate = in_bytes(int(size / seconds))
        _LOGGER.info("%s: %s in %.1f s, %s/s", said, in_bytes(size), seconds, rate)


def _show(
    said: str, total: Callable[[], int], done: Callable[[], int], stop: threading.Event
) -> None:
    """Draws the bar from when it is worth it, until all is done."""
    if stop.wait(_AFTER):
        return
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
            bar.update(task, completed=min(done(), whole))
