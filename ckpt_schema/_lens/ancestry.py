"""What a lens was derived from: two layouts and the rules between them, kept for whoever wants to tell what it should do."""

from __future__ import annotations

import dataclasses

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
    """

    source: Layout
    view: Layout
    rules: tuple[Rule, ...] = ()
    inverted: bool = False

    @property
    def inverse(self) -> Derivation:
        """The way back."""
        return dataclasses.replace(self, inverted=not self.inverted)

    @property
    def ends(self) -> tuple[Layout, Layout]:
        """The layout that the lens starts from, and the one that it ends with."""
        return (self.view, self.source) if self.inverted else (self.source, self.view)
