"""Which slot of a layout a key path spells.

`conformance` asks for each leaf of a tree. Of the row ``layers/{i}/w`` with the number 4 the key path
``layers/3/w`` spells the slot ``(4, (3,))``.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts.overlaps import outlined
from ckpt_schema._layouts.paths import Index, Key, KeyPath, Pattern, int_key
from ckpt_schema._layouts.table import VALUE_LEVELS, Layout, Slot

__all__ = ["SlotFinder"]


class _Trie:
    """The key patterns of a layout by segment.

    Literal keys are looked up, and index symbols by the outline of their keys.
    """

    __slots__ = ("literals", "row", "symbols")

    def __init__(self) -> None:
        self.literals: dict[Key, _Trie] = {}
        self.symbols: dict[str, list[tuple[Index, _Trie]]] = {}
        self.row: int | None = None

    def insert(self, pattern: Pattern, row: int) -> None:
        """Adds a row at its pattern."""
        node = self
        for segment in pattern:
            node = node._child(segment)
        node.row = row

    def _child(self, segment: Key | Index) -> _Trie:
        if isinstance(segment, Index):
            alike = self.symbols.setdefault(outlined((segment,))[0], [])
            for symbol, node in alike:
                if symbol == segment:
                    return node
            alike.append((segment, _Trie()))
            return alike[-1][1]
        child = self.literals.get(segment)
        if child is None:
            child = self.literals[segment] = _Trie()
        return child

    def below(self, segment: Key) -> Sequence[_Place]:
        """The nodes below ``segment``, each with the indices that it spells where it stands at symbols.

        A literal key may stand beside a symbol that spells it too.
        """
        literal = self.literals.get(segment)
        steps: list[_Place] = [] if literal is None else [(literal, ())]
        if self.symbols:
            # layer_07_out has the outline layer_#_out; only symbols of that outline are tried.
            for symbol, below in self.symbols.get(re.sub(r"\d+", "#", str(segment)), ()):
                indices = symbol.indices(segment)
                if indices is not None:
                    steps.append((below, indices))
        return steps


_Place = tuple[_Trie, tuple[int, ...]]
"""A node of the patterns, and the indices that were spelled on the way to it."""


class SlotFinder:
    """Finds the slot of a key path in one layout: one dict look-up for most, a walk of the patterns for repeated nodes."""

    def __init__(self, table: Layout) -> None:
        """Reads the key patterns of ``table``."""
        self._rows = table.rows
        # Patterns with symbols are in it as well: no tree has a symbol for a key, so none meets them.
        self._plain = {row.key: (number, ()) for number, row in enumerate(table.rows)}
        self._inside = sorted({row.inside for row in table.rows})
        self._walked: dict[tuple[KeyPath, bool], Slot | None] = {}
        self._parents: dict[tuple[KeyPath, bool], Sequence[_Place]] = {}

    @functools.cached_property
    def _odd(self) -> Mapping[Any, Key]:
        """The keys that are neither strings nor numbers, such as tuples, by what a save makes of them."""
        segments: set[Any] = set()
        for row in self._rows:
            segments.update(row.key)
        odd: dict[Any, Key] = {}
        for segment in segments:
            is_usual = isinstance(segment, (str, int, Index))
            # A string that the layout has itself means itself.
            if not is_usual and str(segment) not in segments:
                odd[str(segment)] = segment
        return odd

    @functools.cached_property
    def _patterns(self) -> _Trie:
        # Made late: a tree whose keys are all rows' own needs none.
        root = _Trie()
        for number, row in enumerate(self._rows):
            root.insert(row.key, number)
        return root

    def slot(self, key: KeyPath, *, stored: bool) -> Slot | None:
        """The slot ``key`` spells, with or without the level of a Variable or box.

        None if there is none.

        Args:
            key: The key path of a leaf.
            stored: Whether strings may stand for keys of other kinds, as after any save.
        """
        if stored and self._odd:
            key = tuple([self._odd.get(segment, segment) for segment in key])
        found = self._plain.get(key)
        if found is not None:
            return found
        # A tree is held against a layout more than once on its way.
        if (key, stored) not in self._walked:
            self._walked[key, stored] = self._spelled(key, stored=stored)
        return self._walked[key, stored]

    def _spelled(self, key: KeyPath, *, stored: bool) -> Slot | None:
        """The slot of a key path that is no row's as it stands."""
        # Without symbols first, for a key that is declared by itself is no item of a list.
        for bare, inside in self._spellings(key):
            plain = self._plain.get(bare)
            # A level is a Variable's only where it stands as deep as this row has it.
            if plain is not None and inside in (None, self._rows[plain[0]].inside):
                return plain
        for bare, inside in self._spellings(key):
            slots: list[Slot] = []
            for node, indices in self._places(bare, stored=stored):
                row = node.row
                if row is not None and inside in (None, self._rows[row].inside):
                    slots.append((row, indices))
            # Items 0 to 3 of one row and 4 on of another are spelled alike: the counts tell which.
            # An item past the end of all is still told as one of the first.
            if slots:
                return next(filter(self._within, slots), slots[0])
        return None

    def _places(self, key: KeyPath, *, stored: bool) -> Sequence[_Place]:
        """Where a key path, or the beginning of one, may stand in the patterns."""
        if not key:
            return [(self._patterns, ())]
        parent, segment = (key[:-1], stored), key[-1]
        if parent not in self._parents:  # siblings ask for it in turn
            self._parents[parent] = self._places(key[:-1], stored=stored)
        # After a save "3" may have been 3.
        number = int_key(segment) if stored and isinstance(segment, str) else None
        spellings = (segment,) if number is None else (segment, number)
        places: list[_Place] = []
        for node, indices in self._parents[parent]:
            for spelled in spellings:
                for below, further in node.below(spelled):
                    places.append((below, (*indices, *further)))
        return places

    def _within(self, slot: Slot) -> bool:
        """Whether it is one of the slots that the row has, as far as its numbers of repeats are fixed."""
        number, indices = slot
        for index, dim in zip(indices, self._rows[number].unrolled, strict=True):
            # No sizes are known yet: a number says itself, a name nothing.
            count = dims_.size_of(dim, {})
            if count is not None and index >= count:
                return False
        return True

    def _spellings(self, key: KeyPath) -> Iterator[tuple[KeyPath, int | None]]:
        """The key path as it is, and without a level of a Variable or box, with how many segments stand inside of that."""
        yield key, None
        # w/value is w; of a leaf with two segments inside of its Variable, w/value/scale/0 is w/scale/0.
        for inside in self._inside:
            level = len(key) - 1 - inside
            if level >= 0 and key[level] in VALUE_LEVELS:
                yield (*key[:level], *key[level + 1 :]), inside
