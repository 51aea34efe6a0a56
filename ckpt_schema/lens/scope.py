"""Rules by the paths that they speak of: which of them speak of a row, and which one decides.

All rules of a derivation go into one trie of path segments, and each row is walked down it once. So the work grows with the
rows and with the rules, and not with their product.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, TypeVar

from ckpt_schema.paths import LogicalPath
from ckpt_schema.table import Layout, Row

__all__ = ["Hit", "Scope", "is_mirror", "standing"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclasses.dataclass(frozen=True, slots=True)
class Hit(Generic[T_co]):
    """A rule that speaks of a row.

    Attributes:
        rule: The rule.
        number: Its place among all rules.
        start: Where its path starts in that of the row: at the root, or at the model's root.
        end: Where it ends there.
    """

    rule: T_co
    number: int
    start: int
    end: int

    @property
    def place(self) -> tuple[int, int]:
        """Where its path stands in the row's: rules of one place have one path."""
        return self.start, self.end


class _Node(Generic[T]):
    __slots__ = ("below", "rules")

    def __init__(self) -> None:
        self.below: dict[str, _Node[T]] = {}
        self.rules: list[tuple[int, T]] = []


class Scope(Generic[T]):
    """Rules by path."""

    def __init__(self, entries: Iterable[tuple[LogicalPath, T]]) -> None:
        """Reads rules, each with the path that it speaks of."""
        self._root: _Node[T] = _Node()
        self._size = 0
        for number, (path, rule) in enumerate(entries):
            node = self._root
            for segment in path:
                node = node.below.setdefault(segment, _Node())
            node.rules.append((number, rule))
            self._size = number + 1

    def __bool__(self) -> bool:
        """Whether there is any rule."""
        return self._size > 0

    def over(self, row: Row) -> list[Hit[T]]:
        """The rules that speak of a row, the most specific first.

        The longer path is the more specific one, wherever it starts: at the root, or at the model's root. For what mirrors a
        param in the optimizer state, a path from the root comes first, for it speaks of that state itself.
        """
        below, path, body = self._root.below, row.path, row.body
        # Most rows are spoken of by no rule at all, and each is asked about many times.
        if path[0] not in below and not (body and path[body] in below):
            return []
        hits = list(self._walk(path, 0))
        if body:
            rooted = {hit.number for hit in hits}
            hits += [hit for hit in self._walk(path, body) if hit.number not in rooted]
        if len(hits) > 1:
            own = is_mirror(row)

            def rank(hit: Hit[T]) -> tuple[int, int]:
                at_root = int(hit.start == 0)
                return (-at_root, -hit.end) if own else (-hit.end, -at_root)

            hits.sort(key=rank)
        return hits

    def prefixes(self, path: LogicalPath) -> list[Hit[T]]:
        """The rules whose path ``path`` starts with, the longest first."""
        return list(self._walk(path, 0))[::-1]

    def matched(self, rows: Iterable[Row]) -> set[int]:
        """The numbers of the rules that speak of any of these rows."""
        return {hit.number for row in rows for hit in self.over(row)}

    def _walk(self, path: Sequence[str], start: int) -> Iterator[Hit[T]]:
        node = self._root
        for end in range(start, len(path)):
            below = node.below.get(path[end])
            if below is None:
                return
            node = below
            for number, rule in node.rules:
                yield Hit(rule, number, start, end + 1)


def standing(table: Layout, paths: Iterable[LogicalPath]) -> set[LogicalPath]:
    """Those of some paths that a row of ``table`` stands at or below."""
    scope = Scope((path, path) for path in paths)
    return {hit.rule for row in table.rows for hit in scope.over(row)} if scope else set()


def is_mirror(row: Row) -> bool:
    """Whether a row is what an optimizer keeps for a param."""
    return bool(row.body) and row.path[0] == "opt_state"
