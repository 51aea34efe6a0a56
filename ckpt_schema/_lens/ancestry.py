"""What a lens was derived from: two layouts and the rules between them, kept for whoever wants to tell what it should do."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from ckpt_schema._layouts.table import Layout
from ckpt_schema._lens.rules import Rule

__all__ = ["Derivation"]


@dataclasses.dataclass(frozen=True, slots=True)
class Derivation:
    """One call of `derive`.

    Attributes:
        source: Its left layout.
        view: Its right layout.
        rules: The rules, in the words of these two.
        inverted: Whether the lens goes from the right layout to the left one.
        called: Names of dims in these two, each with that of the lens, where it is another.
        pairs: Which rows of the two, by number, are one leaf.
    """

    source: Layout
    view: Layout
    rules: tuple[Rule, ...] = ()
    inverted: bool = False
    called: tuple[tuple[str, str], ...] = ()
    pairs: tuple[tuple[int, int], ...] = dataclasses.field(default=(), compare=False, repr=False)

    @property
    def inverse(self) -> Derivation:
        """The way back."""
        return dataclasses.replace(self, inverted=not self.inverted)

    def renamed(self, names: Mapping[str, str]) -> Derivation:
        """The same in a lens that calls dims otherwise."""
        # What the lens calls otherwise already is renamed from there: a dim has one name in a lens.
        called: dict[str, str] = {}
        for own, new in self.called:
            called[own] = names.get(new, new)
        for own, new in names.items():
            called.setdefault(own, new)
        return dataclasses.replace(self, called=tuple(called.items()))

    def sized(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """The sizes of these two layouts' dims, from those of the lens."""
        known = dict(sizes)
        for own, new in self.called:
            if new in sizes:
                known[own] = sizes[new]
        return known

    @property
    def ends(self) -> tuple[Layout, Layout]:
        """The layout that the lens starts from, and the one that it ends with."""
        return (self.view, self.source) if self.inverted else (self.source, self.view)
