"""Python's collector of garbage while a checkpoint is read or written: it passes over what was there before.

Orbax makes some hundred objects for each leaf. That many new ones make the collector look through all objects of the
process again and again, those of jax and of the model among them. Of 3,000 leaves it took a third of the CPU time of
Orbax's load.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Generator

__all__ = ["old_objects_aside"]


@contextlib.contextmanager
def old_objects_aside() -> Generator[None]:
    """Has the collector look at new objects alone; garbage among these is collected as ever.

    Example:
        >>> with old_objects_aside():
        ...     gc.get_freeze_count() > 0
        True
        >>> gc.get_freeze_count()
        0
    """
    # Who has set objects aside already, in this thread or in another one, also takes them back:
    # objects that a caller has set aside for a fork stay so.
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
