"""Two sides as they are read, and what of them differs: of large trees that are compared, most does not."""

from __future__ import annotations

import dataclasses
import functools

from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.table import Layout
from ckpt_schema._lens.read_sides import ReadSides

__all__ = ["BothSides", "same_rows"]


@dataclasses.dataclass(frozen=True)
class BothSides:
    """Both as they are read now."""

    sides: ReadSides

    @functools.cached_property
    def rest(self) -> ReadSides:
        """Both without what is the same row of each, however they are read from here on."""
        left, right = self.sides
        same = same_rows(left.layout, right.layout)
        return left.without(same), right.without(same)


def same_rows(one: Layout, other: Layout) -> frozenset[LogicalPath]:
    """The paths of rows that two layouts have alike.

    A param and what mirrors it go together: where one of these differs, none is the same. What an optimizer keeps beside is
    never among them, so that a layout without these rows still tells of each optimizer what it is.
    """
    known = {row.path: row for row in other.rows}
    same = {row.path for row in one.rows if known.get(row.path) == row}
    # Weights alone need not be held together with anything.
    if not any(row.optimizer for row in one.rows):
        return frozenset(same)
    params: set[str] = set()  # those that differ, or that have a mirror that does
    for table in (one, other):
        for row in table.rows:
            if row.path not in same:
                params.add(row.mirrors or "/".join(row.path))
    for row in one.rows:
        param = row.mirrors or "/".join(row.path)
        # A count mirrors nothing, and shows which optimizer it is of.
        if param in params or (row.optimizer and not row.mirrors):
            same.discard(row.path)
    return frozenset(same)
