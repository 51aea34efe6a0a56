"""Warnings, each at the line of the user's code that caused it."""

from __future__ import annotations

import inspect
import warnings
from pathlib import PurePath

__all__ = ["warn"]

_PACKAGE = str(PurePath(__file__).parent.parent)


def warn(text: str, category: type[Warning] = UserWarning) -> None:
    """Warns at the first caller outside of this package.

    Args:
        text: What is said.
        category: The class of the warning.
    """
    # No fixed number of levels is right: a lens is derived by way of many calls.
    level, frame = 1, inspect.currentframe()
    while frame and frame.f_back and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, category, stacklevel=level)
