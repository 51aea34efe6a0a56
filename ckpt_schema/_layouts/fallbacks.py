"""Defaults that are another leaf of the same tree."""

from __future__ import annotations

import dataclasses

from ckpt_schema._layouts.paths import LogicalPath, parse_path
from ckpt_schema._messages.text import shown
from ckpt_schema.errors import Mismatch, SchemaError

__all__ = ["SameAs", "same_as"]


@dataclasses.dataclass(frozen=True, slots=True)
class SameAs:
    """See `same_as`.

    Attributes:
        path: The logical path of the other leaf, from the schema that declares the default on.
        depth: How many segments of the path of a leaf that has the default stand below that schema.
    """

    path: LogicalPath
    depth: int = 1

    def of(self, path: LogicalPath) -> LogicalPath:
        """The path of the other leaf, for a leaf at ``path``."""
        # For layers[]/head/kernel and depth 2, the path of the other leaf goes on from layers[].
        return (*path[: len(path) - self.depth], *self.path)

    def below(self, path: LogicalPath) -> SameAs:
        """The default of a leaf at ``path`` below what this is declared for."""
        return SameAs((*self.path, *path), self.depth + len(path))

    def __str__(self) -> str:
        """The default as it is declared."""
        return f"same_as({'/'.join(self.path)!r})"


def same_as(path: str) -> SameAs:
    """A default that is another leaf of the same tree: the embedding, for a head that many files leave out.

    ``head: ... = field(optional=True, default=same_as("embedding"))`` is the head where a tree has
    one, and the embedding where it has none. On the way back into a tree without a head, the head
    has to be equal to the embedding to the last bit, for nothing else would keep it.

    Args:
        path: The logical path of the other leaf, from the schema on that declares the default. Both
            have the same axes and the same dtype.

    Raises:
        SchemaError: ``path`` is no path.

    Example:
        >>> print(same_as("embedding"))
        same_as('embedding')
    """
    if not isinstance(path, str) or not path:  # pyright: ignore[reportUnnecessaryIsInstance]
        expected, hint = "a logical path", 'such as "embedding", of an attribute beside it'
        fault = Mismatch("path", "declaration", expected, shown(path), hint)
        raise SchemaError("same_as(...) is not well formed", [fault])
    return SameAs(parse_path(path))
