"""One side of an adaptation: its tree, and the layout that is read off it, with more or fewer nodes taken as repeated."""

from __future__ import annotations

import dataclasses
import functools
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from ckpt_schema._layouts.dims import Dims
from ckpt_schema._layouts.paths import LogicalPath, path_names
from ckpt_schema._layouts.schema import Schema, layout
from ckpt_schema._layouts.table import Layout, Row
from ckpt_schema._lens.rules import Replicated
from ckpt_schema._trees.inference import infer_tree
from ckpt_schema.errors import SchemaError

__all__ = [
    "Axes",
    "ReadSide",
    "ReadSides",
    "have_in_common",
    "is_path",
    "made_abstract",
    "name_of",
    "read_once",
    "told_shape",
]

Axes = int | Mapping[Any, int] | None
"""The axis that layers are stacked on, or one by Linen collection or Variable type.

None where leaves are not stacked.
"""


def made_abstract(tree: Any, inputs: Sequence[Any] = ()) -> Any:
    """The tree that a factory, a class of modules or a module of Linen makes, abstract; anything else as it is.

    A module of Linen makes its variables of ``inputs``, which nothing else takes.
    """
    # Unless flax is loaded there is no module of Linen, and it is not loaded to find that out.
    if inputs or "flax" in sys.modules:
        from ckpt_schema._frameworks.linen_modules import abstract_variables, is_linen

        if inputs or is_linen(tree):
            return abstract_variables(tree, inputs)
    if isinstance(tree, _FACTORIES) or (isinstance(tree, type) and not issubclass(tree, Schema)):
        from ckpt_schema._frameworks.variables import abstract_of

        return abstract_of(tree)
    return tree


_FACTORIES = types.FunctionType, types.MethodType, functools.partial
"""What is traced; modules and pytrees that happen to be callable are trees."""


def is_path(given: Any) -> bool:
    """Whether this is the path of a checkpoint, and no tree."""
    return isinstance(given, (str, PurePath)) or hasattr(given, "__fspath__")


def name_of(given: Any, otherwise: str) -> str:
    """What messages call a side: the name of a directory, or of a class of the user's."""
    if isinstance(given, ReadSide):
        return given.name
    if is_path(given):
        return PurePath(given).name or otherwise
    kind: type = given if isinstance(given, type) else type(given)
    return (
        otherwise if kind.__module__ == "builtins" or kind is functools.partial else kind.__name__
    )


@dataclasses.dataclass(frozen=True)
class ReadSide:
    """One side: its tree, how it is read, and its layout when it is read so.

    Attributes:
        tree: What is read; None where the layout is declared.
        name: What messages call it.
        layout: Its layout.
        scan: The axes that it is read with, by node.
        lists: The patterns of lists that it is read with.
        joined: What joins its paths to keys, as in flat files.
        left_out: The paths of rows that its layout leaves out, whatever it is read with.
    """

    tree: Any
    name: str
    layout: Layout
    scan: Mapping[str, Axes] = dataclasses.field(default_factory=dict[str, Axes])
    lists: tuple[str, ...] = ()
    joined: str | None = None
    left_out: frozenset[LogicalPath] = frozenset()

    @classmethod
    def of(cls, given: Any, name: str, joined: str | None = None) -> ReadSide:
        """A side as it is without a word; one that was read already, as it was."""
        if isinstance(given, ReadSide):
            return given
        if isinstance(given, Layout) or (isinstance(given, type) and issubclass(given, Schema)):
            return cls(None, name, layout(given))
        tree = made_abstract(given)
        return cls(tree, name, infer_tree(tree, joined=joined, name=name), joined=joined)

    def read(
        self, *, scan: Mapping[str, Axes] | None = None, lists: Sequence[str] = ()
    ) -> ReadSide:
        """The same, read with these nodes taken as repeated besides."""
        # What was read with is kept: a list in a list is found in a second round.
        more = [pattern for pattern in lists if pattern not in self.lists]
        if self.tree is None or not (scan or more):
            return self
        both = {**self.scan, **(scan or {})}, (*self.lists, *more)
        how: dict[str, Any] = {"joined": self.joined, "name": self.name}
        made = infer_tree(self.tree, scan=both[0], lists=both[1], **how)
        side = dataclasses.replace(self, layout=made, scan=both[0], lists=both[1])
        return side.without(self.left_out) if self.left_out else side

    def without(self, paths: frozenset[LogicalPath]) -> ReadSide:
        """The same, of whose rows some are left out."""
        rows = tuple([row for row in self.layout.rows if row.path not in paths])
        table = dataclasses.replace(self.layout, rows=rows)
        return dataclasses.replace(self, layout=table, left_out=paths)

    @functools.cached_property
    def weights(self) -> dict[LogicalPath, Row]:
        """The leaves of the model, by their path in it without marks of repetition."""
        rows: dict[LogicalPath, Row] = {}
        # A declared layout says itself what is stacked, and on which axis: nothing is to be found out.
        for row in self.layout.rows if self.tree is not None else ():
            # Of an average of the weights the first tree tells all.
            if row.is_weight:
                rows.setdefault(path_names(row.model_path), row)
        return rows

    @functools.cached_property
    def roots(self) -> frozenset[LogicalPath]:
        """The paths of the model, and of what is kept like it."""
        return frozenset(row.root for row in self.weights.values())

    @functools.cached_property
    def item_counts(self) -> dict[LogicalPath, int]:
        """How many items each list of the model has, by its path without marks of repetition."""
        counts: dict[LogicalPath, int] = {}
        for path, row in self.weights.items():
            repeats = iter(row.repeats)
            for end, segment in enumerate(row.model_path if row.repeats else (), 1):
                if not segment.endswith("[]"):
                    continue
                repeat = next(repeats)
                # Layers that are stacked are no items.
                if repeat.axis is None and isinstance(repeat.size[0], int):
                    counts[path[:end]] = repeat.size[0]
        return counts

    @functools.cached_property
    def nodes(self) -> frozenset[LogicalPath]:
        """Every node of the model, without marks of repetition."""
        nodes: set[LogicalPath] = set()
        for path in self.weights:
            for end in range(1, len(path) + 1):
                nodes.add(path[:end])
        return frozenset(nodes)


ReadSides = tuple[ReadSide, ReadSide]
"""The source as it is read, and the view."""


def told_shape(row: Row) -> tuple[int, ...] | None:
    """The shape of one repeat of a leaf, where it is told in numbers."""
    return _told(row.leaf.dims)


@functools.lru_cache(maxsize=1024)
def _told(dims: Dims) -> tuple[int, ...] | None:
    """The sizes of axes, where they are told in numbers; most leaves have those of another one."""
    sizes: list[int] = []
    for dim in dims:
        if len(dim) != 1 or not isinstance(dim[0], int):
            return None
        sizes.append(dim[0])
    return tuple(sizes)


def read_once(
    sides: tuple[Any, Any], names: tuple[str, str], rules: Sequence[Any]
) -> ReadSides | None:
    """Both sides as they are read, for more than one question; None where they are to be read again.

    Args:
        sides: A tree in memory, and what it is held against.
        names: What messages call them.
        rules: What is said of them.
    """
    left, right = sides
    if (
        not isinstance(left, (dict, ReadSide))
        or isinstance(right, (type, Layout))
        or is_path(right)
    ):
        return None
    # Wrong rules are told before wrong trees.
    if not isinstance(rules, (list, tuple)):
        return None
    # Copies are taken out of the trees before these are read.
    if any(isinstance(rule, Replicated) for rule in rules):
        return None
    # What is wrong with the trees is said by whoever reads them again.
    try:
        return ReadSide.of(left, names[0]), ReadSide.of(right, names[1])
    except SchemaError:
        return None


def have_in_common(*sides: Any) -> bool:
    """Whether any weight of two trees, or of two sides that were read, has one path in both."""
    paths: list[set[LogicalPath]] = []
    for each in sides:
        try:
            rows = each.layout.rows if isinstance(each, ReadSide) else infer_tree(each).rows
        # What holds a state below a key is none itself.
        except SchemaError:
            return False
        paths.append({row.path for row in rows if row.is_weight})
    return not paths[0].isdisjoint(paths[1])
