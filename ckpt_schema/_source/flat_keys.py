"""Keys that are whole key paths joined by dots or slashes, taken apart for the class that joins them."""

from __future__ import annotations

from collections.abc import Sequence

from ckpt_schema._layouts import paths
from ckpt_schema._layouts.paths import Index, Pattern
from ckpt_schema._layouts.table import Row

__all__ = ["Placed", "holds_levels", "parted_key", "separator_of"]

Placed = tuple[Row, Pattern]
"""A row, and its key from the model's own root."""

_SEPARATORS = (".", "/")


def separator_of(rows: Sequence[Placed], depth: int, start: int) -> str:
    """What joins the rest of each path to the one segment that is left of its key; empty where nothing does.

    Args:
        rows: The rows of a class.
        depth: How many segments of their paths are above the class.
        start: How many segments of their keys are above the class.
    """
    if any(len(key) != start + 1 for _, key in rows):
        return ""
    if all(len(row.path) == depth + 1 for row, _ in rows):
        return ""
    joined = [paths.format_path(key[start:]) for _, key in rows]
    return next((each for each in _SEPARATORS if any(each in key for key in joined)), "")


def parted_key(key: Pattern, start: int, separator: str) -> Pattern:
    """A key whose segment at ``start``, the last one, is in parts again.

    Example:
        >>> parted_key(("flat", "norm.scale"), 1, ".")
        ('flat', 'norm', 'scale')
    """
    segment = key[start]
    texts = (
        [segment]
        if isinstance(segment, str)
        else [*paths.parts_of_key(segment)]
        if isinstance(segment, Index)
        else [str(segment)]
    )
    written = "".join(text if isinstance(text, str) else str(text).strip("'") for text in texts)
    return (*key[:start], *paths.parse_pattern(written.replace(separator, "/")))


def holds_levels(key: Pattern, levels: int) -> bool:
    """Whether the last segment of a key may be so many segments joined.

    Example:
        >>> holds_levels(("flat", "blocks.norm.scale"), 3), holds_levels(("flat", "scale"), 3)
        (True, False)
    """
    text = str(key[-1]) if key else ""
    return any(text.count(each) + 1 >= levels for each in _SEPARATORS)
