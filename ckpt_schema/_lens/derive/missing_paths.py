"""Rules for paths that no row has, and what the user may have meant by each.

Every step of `derivation` that looks rules up by their paths tells here of those that it met nowhere.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from ckpt_schema._layouts import paths
from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.table import Layout
from ckpt_schema._lens.rules import Rule
from ckpt_schema.errors import Mismatch

__all__ = ["MissingPaths"]


class MissingPaths:
    """The faults of rules for paths that no row has.

    What is near is looked up for the first few of them.
    """

    def __init__(self) -> None:
        """Nothing is looked up yet."""
        self._left = 20  # a look-up compares a path with all of a layout
        self._paths: dict[tuple[int, tuple[int, ...]], list[str]] = {}
        self._slashes: dict[int, list[LogicalPath]] = {}

    def fault(self, rule: Rule, path: LogicalPath, *tables: Layout, hint: str = "") -> Mismatch:
        """The fault of a rule for a path that no row of some layouts has.

        ``hint`` where a cure is known.
        """
        text = "/".join(path)
        hint = hint or self._slashed(text, tables) or ""
        # A known cure is better than what merely looks alike, and the look-up is dear.
        close = None if hint else self._close(text, len(path), tables)
        if close:
            hint = f"near: {close}"
        elif not hint:
            hint = "logical paths are chains of attribute names; print the layout to see them"
        names = " or ".join(dict.fromkeys(table.name for table in tables))
        return Mismatch(str(rule), "rule", f"a leaf of {names} at {text} or below", "none", hint)

    def _slashed(self, text: str, tables: Sequence[Layout]) -> str | None:
        """Why a path names nothing, though it reads like one that is there: that has a key in quotes.

        ``encoder/layer_0/w`` may be ``'encoder/layer_0'/w``, whose first key holds a slash.
        """
        for table in tables:
            if id(table) not in self._slashes:
                self._slashes[id(table)] = _with_quoted_keys(table)
            for path in self._slashes[id(table)]:
                if "/".join(map(paths.unquoted, path)).startswith(text):
                    # Any one key in quotes shows how it is done.
                    key = next(segment for segment in path if "'" in segment)
                    return f"one key that holds a slash is written in quotes: {key}"
        return None

    def _close(self, text: str, length: int, tables: Sequence[Layout]) -> str | None:
        """The path as long as a rule's that is the most like it."""
        if not self._left:
            return None
        self._left -= 1
        # Rules speak of nodes as well as of leaves, so paths are cut to the length of the rule's.
        key = length, tuple(map(id, tables))
        if key not in self._paths:
            heads: set[str] = set()
            for table in tables:
                for row in table.rows:
                    heads.add("/".join(row.model_path[:length]))
            self._paths[key] = sorted(heads)
        return next(iter(difflib.get_close_matches(text, self._paths[key], n=1)), None)


def _with_quoted_keys(table: Layout) -> list[LogicalPath]:
    """The paths of a layout's rows that have a key in quotes."""
    quoted: list[LogicalPath] = []
    for row in table.rows:
        path = row.model_path
        if any("'" in segment for segment in path):
            quoted.append(path)
    return quoted
