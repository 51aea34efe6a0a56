"""What rules say of one joined leaf, beyond what its types do."""

from __future__ import annotations

import dataclasses

__all__ = ["UNTOLD", "Told"]


@dataclasses.dataclass(frozen=True, slots=True)
class Told:
    """What is said of a leaf.

    Attributes:
        raw: Whether it is a key on one side, and the raw data of one on the other.
    """

    raw: bool = False

    @property
    def inverse(self) -> Told:
        """The same said of the way back."""
        return self

    def then(self, other: Told) -> Told:
        """What is said of a leaf that goes on by another lens."""
        return Told(self.raw or other.raw)


UNTOLD = Told()
"""Nothing is said."""
