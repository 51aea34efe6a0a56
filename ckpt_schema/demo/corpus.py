"""Text that is on any machine with Python: sources of its standard library, as characters."""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
import types

import numpy as np
from numpy.typing import NDArray

__all__ = ["Text", "standard_library"]


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
    """Encoded text.

    Attributes:
        tokens: int32[length], one per character.
        vocabulary: How many different tokens there can be.
    """

    tokens: NDArray[np.int32]
    vocabulary: int

    def batch(self, step: int, size: int, length: int) -> NDArray[np.int32]:
        """The batch of one training step, int32[size, length + 1]: the same for every run, whatever came before."""
        starts = np.random.default_rng(step).integers(0, len(self.tokens) - length - 1, size)
        return np.stack([self.tokens[s : s + length + 1] for s in starts])


def standard_library(*modules: types.ModuleType) -> Text:
    """The sources of some modules, in ASCII; any other character becomes a blank.

    Args:
        modules: Modules written in Python; three of the standard library's unless given.

    Example:
        >>> text = standard_library(textwrap)
        >>> text.vocabulary, text.batch(0, 4, 16).shape
        (128, (4, 17))
    """
    source = "".join(
        inspect.getsource(module) for module in modules or (textwrap, inspect, dataclasses)
    )
    codes = np.frombuffer(source.encode("ascii", "replace"), np.uint8).astype(np.int32)
    return Text(codes, 128)
