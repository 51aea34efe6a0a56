"""One side of an adaptation: its tree, and the layout that is read off it, with more or fewer nodes taken as repeated."""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Mapping, Sequence
from typing import Any

from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.schema import Schema, layout
from ckpt_schema._layouts.table import Layout, Row
from ckpt_schema._trees.inference import infer

__all__ = ["Axes", "ReadSide", "ReadSides", "made_abstract", "plain"]

Axes = int | Mapping[Any, int] | None
"""The axis that layers are stacked on, or one by Linen collection or Variable type; None where leaves are not stacked."""


def made_abstract(tree: Any) -> Any:
    """The tree that a factory makes, abstract; anything else as it is."""
    if not isinstance(tree, (types.FunctionType, types.MethodType, functools.partial)):
        return tree
    from ckpt_schema._frameworks.variables import abstract_of

    return abstract_of(tree)


@dataclasses.dataclass(frozen=True)
class ReadSide:
    """One side: its tree, how it is read, and its layout when it is read so."""

    tree: Any
    name: str
    layout: Layout
    scan: Mapping[str, Axes] = dataclasses.field(default_factory=dict[str, Axes])
    lists: tuple[str, ...] = ()
    joined: str | None = None

    @classmethod
    def of(cls, given: Any, name: str, joined: str | None = None) -> ReadSide:
        """A side as it is without a word."""
        if isinstance(given, Layout) or (isinstance(given, type) and issubclass(given, Schema)):
            return cls(None, name, layout(given))
        tree = made_abstract(given)
        return cls(tree, name, infer(tree, joined=joined, name=name), joined=joined)

    def read(
        self, *, scan: Mapping[str, Axes] | None = None, lists: Sequence[str] = ()
    ) -> ReadSide:
        """The same, read with these nodes folded besides."""
        if self.tree is None or not (scan or lists):
            return self
        both = {**self.scan, **(scan or {})}, (*self.lists, *lists)
        how: dict[str, Any] = {"joined": self.joined, "name": self.name}
        made = infer(self.tree, scan=both[0], lists=both[1], **how)
        return dataclasses.replace(self, layout=made, scan=both[0], lists=both[1])

    @functools.cached_property
    def weights(self) -> dict[LogicalPath, Row]:
        """The leaves of the model, by their path in it without marks of repetition."""
        found: dict[LogicalPath, Row] = {}
        for row in self.layout.rows if self.tree is not None else ():
            if row.body is not None and not row.mirrors:
                found.setdefault(plain(row.path[row.body :]), row)
        return found

    @functools.cached_property
    def nodes(self) -> frozenset[LogicalPath]:
        """Every node of the model, without marks of repetition."""
        return frozenset(path[:end] for path in self.weights for end in range(1, len(path) + 1))


def plain(path: LogicalPath) -> LogicalPath:
    """A logical path without marks of repetition."""
    return tuple(segment.removesuffix("[]") for segment in path)


ReadSides = tuple[ReadSide, ReadSide]
"""The source as it is read, and the view."""
