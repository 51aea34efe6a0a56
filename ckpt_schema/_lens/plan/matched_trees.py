"""The trees that a plan is compiled for: the one that is translated, and the one that the result goes onto.

A plan tells leaves by their positions in a *pool*, a list that grows while the plan runs:

    the tree's leaves | those of onto | what jobs make | defaults | what starts anew
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ckpt_schema._layouts import leaves
from ckpt_schema._layouts.table import Slot
from ckpt_schema._trees.conformance import Match

__all__ = ["MatchedTrees"]


@dataclasses.dataclass(frozen=True, slots=True)
class MatchedTrees:
    """Both trees, held against their layouts.

    Attributes:
        tree: The tree that is translated.
        onto: The tree whose container and private leaves the result takes; or None.
        sizes: The dims as both bind them.
        abstract: Whether abstract leaves will do for the result.
    """

    tree: Match
    onto: Match | None
    sizes: Mapping[str, int]
    abstract: bool

    @property
    def count(self) -> int:
        """How many leaves both have: the position in the pool of the first that is made."""
        kept = 0 if self.onto is None else len(self.onto.flat.leaves)
        return len(self.tree.flat.leaves) + kept

    def like(self, slot: Slot) -> int | None:
        """The position in ``onto`` of the leaf that a result in a slot stands for; None where there is none."""
        return None if self.onto is None else self.onto.slots.get(slot)

    def leaf_of_onto(self, slot: Slot) -> Any:
        """The leaf that a result in a slot stands for; None where there is none."""
        if self.onto is None or slot not in self.onto.slots:
            return None
        return self.onto.flat.leaves[self.onto.slots[slot]]

    def kept_place(self, slot: Slot) -> int:
        """The position in the pool of the leaf that ``onto`` has in a slot."""
        assert self.onto is not None
        return len(self.tree.flat.leaves) + self.onto.slots[slot]

    def has_value(self, slot: Slot) -> bool:
        """Whether ``onto`` has a leaf with values in a slot."""
        return self.like(slot) is not None and not leaves.is_abstract(self.leaf_of_onto(slot))
