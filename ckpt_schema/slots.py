"""Which slot of a layout a key path spells."""

from __future__ import annotations

import functools

from ckpt_schema.paths import Index, Key, KeyPath, Pattern
from ckpt_schema.table import Layout, Slot

__all__ = ["SlotFinder"]


class _Trie:
    """The key patterns of a layout by segment; literal keys are looked up, index symbols tried in turn."""

    __slots__ = ("literals", "row", "symbols")

    def __init__(self) -> None:
        self.literals: dict[Key, _Trie] = {}
        self.symbols: list[tuple[Index, _Trie]] = []
        self.row: int | None = None

    def insert(self, pattern: Pattern, row: int) -> None:
        """Adds a row at its pattern."""
        node = self
        for segment in pattern:
            node = node._child(segment)
        node.row = row

    def _child(self, segment: Key | Index) -> _Trie:
        if isinstance(segment, Index):
            for symbol, node in self.symbols:
                if symbol == segment:
                    return node
            self.symbols.append((segment, _Trie()))
            return self.symbols[-1][1]
        found = self.literals.get(segment)
        if found is None:
            found = self.literals[segment] = _Trie()
        return found

    def step(self, segment: Key) -> tuple[_Trie, int | None] | None:
        """The node below ``segment``, and the index it spells where it stands at a symbol."""
        literal = self.literals.get(segment)
        if literal is not None:
            return literal, None
        for symbol, below in self.symbols:
            index = symbol.index(segment)
            if index is not None:
                return below, index
        return None


class SlotFinder:
    """Finds the slot of a key path in one layout: one dict look-up for most, a walk of the patterns for repeated nodes."""

    def __init__(self, table: Layout) -> None:
        """Reads the key patterns of ``table``."""
        self._rows = table.rows
        self._plain = {row.key: (number, ()) for number, row in enumerate(table.rows)}

    @functools.cached_property
    def _patterns(self) -> _Trie:
        root = _Trie()
        for number, row in enumerate(self._rows):
            root.insert(row.key, number)
        return root

    def slot(self, key: KeyPath, *, stored: bool) -> Slot | None:
        """The slot ``key`` spells, with or without the ``value`` level of a Variable or box; None if there is none.

        Args:
            key: The key path of a leaf.
            stored: Whether strings of digits may stand for int keys.
        """
        plain = self._plain.get(key)
        if plain is None and key and key[-1] == "value":
            plain = self._plain.get(key[:-1])
        return self._walk(key, stored=stored) if plain is None else plain

    def _walk(self, key: KeyPath, *, stored: bool) -> Slot | None:
        node, indices = self._patterns, ()
        for position, segment in enumerate(key):
            step = node.step(segment)
            if step is None and stored and isinstance(segment, str) and segment.isdecimal():
                step = node.step(int(segment))
            if step is None:
                wrapped = segment == "value" and position == len(key) - 1
                return (node.row, indices) if wrapped and node.row is not None else None
            node, found = step
            if found is not None:
                indices = (*indices, found)
        return None if node.row is None else (node.row, indices)
