"""Keys that are whole key paths joined by dots or slashes, taken apart for the class that joins them.

A file of weights may have ``{"blocks.norm.scale": ...}`` where a tree has three dicts. The text has nested classes
of it all the same, below one that says ``joined="."``.
"""

from __future__ import annotations

from collections.abc import Sequence

from ckpt_schema._layouts import paths
from ckpt_schema._layouts.paths import Index, Pattern
from ckpt_schema._layouts.table import Row

__all__ = ["Placed", "holds_levels", "parted_key", "parted_rows", "separator_of"]

Placed = tuple[Row, Pattern]
"""A row, and its key from the model's own root."""

_SEPARATORS = (".", "/")
"""What joins levels; where keys have both, it is the first."""


def separator_of(rows: Sequence[Placed], depth: int, start: int) -> str:
    """What joins the rest of each path to the one segment that is left of its key; empty where nothing does.

    Args:
        rows: The rows of a class.
        depth: How many segments of their paths are above the class.
        start: How many segments of their keys are above the class.
    """
    joined: list[str] = []
    has_levels = False
    for row, key in rows:
        # Below one row of several segments the tree has dicts: nothing is joined.
        if len(key) != start + 1:
            return ""
        has_levels = has_levels or len(row.path) > depth + 1
        joined.append(paths.format_path(key[start:]))
    # A dot in the key of a leaf that is right in the class separates nothing.
    if not has_levels:
        return ""
    for separator in _SEPARATORS:
        if any(separator in key for key in joined):
            return separator
    return ""


def parted_rows(rows: Sequence[Placed], start: int, separator: str) -> list[Placed]:
    """Rows whose keys have the segment at ``start``, the last one, in parts again: see `parted_key`."""
    return [(row, parted_key(key, start, separator)) for row, key in rows]


def parted_key(key: Pattern, start: int, separator: str) -> Pattern:
    """A key whose segment at ``start``, the last one, is in parts again.

    Example:
        >>> parted_key(("flat", "norm.scale"), 1, ".")
        ('flat', 'norm', 'scale')
    """
    segment = key[start]
    written = ""
    # A layer's number is a symbol between texts: of "blocks.{i}.scale", "blocks." and {i} and ".scale".
    parts = paths.parts_of_key(segment) if isinstance(segment, Index) else [str(segment)]
    for part in parts:
        # By itself a symbol in a string key stands in quotes: '{i}'.
        written += part if isinstance(part, str) else str(part).strip("'")
    return (*key[:start], *paths.parse_pattern(written.replace(separator, "/")))


def holds_levels(key: Pattern, levels: int) -> bool:
    """Whether the last segment of a key may be so many segments joined.

    Example:
        >>> holds_levels(("flat", "blocks.norm.scale"), 3), holds_levels(("flat", "scale"), 3)
        (True, False)
    """
    segment = str(key[-1]) if key else ""
    # Three levels are joined by two separators.
    most = max([segment.count(separator) for separator in _SEPARATORS])
    return most + 1 >= levels
