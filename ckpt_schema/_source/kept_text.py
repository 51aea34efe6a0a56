"""What an optimizer keeps, as the arguments of ``cs.kept``: what follows from the params of the model is not written.

A mirror, Adam's ``mu``, has a leaf for each param: of a mirror that is as its params are, only where it stands is
written; of another, its dtype, which params have a leaf in it, and the leaves that are not as their params are.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set

from ckpt_schema._layouts import paths
from ckpt_schema._layouts.leaves import Leaf
from ckpt_schema._layouts.paths import Index, KeyPath, LogicalPath, Pattern
from ckpt_schema._layouts.table import Node, Row
from ckpt_schema._source.importing import Imports, quoted
from ckpt_schema._source.python_text import mapping

__all__ = ["KeptText", "TrainedModel", "container_items"]


@dataclasses.dataclass(frozen=True, slots=True)
class TrainedModel:
    """A model that an optimizer is of.

    Attributes:
        name: The attribute.
        params: The rows that are trained unless something else is said, and their keys from the model's root, by their
            paths from there.
        others: The same of its other rows.
    """

    name: str
    params: Mapping[LogicalPath, tuple[Row, Pattern]]
    others: Mapping[LogicalPath, tuple[Row, Pattern]]

    def at(self, path: LogicalPath) -> tuple[Row, Pattern] | None:
        """The row at a path, and its key."""
        return self.params.get(path) or self.others.get(path)


class KeptText:
    """Writes a state.

    Args:
        model: The model that it is of.
        imports: Where the classes of containers are noted.
        annotation: What writes the annotation of a leaf.
    """

    def __init__(
        self, model: TrainedModel, imports: Imports, annotation: Callable[[Leaf], str]
    ) -> None:
        """Has written nothing."""
        self._model, self._imports, self._annotation = model, imports, annotation

    def arguments(
        self, rows: Sequence[Row], nodes: Sequence[Node], home: Pattern, key: str | None
    ) -> list[tuple[str, str]]:
        """The arguments for a state of these rows and containers.

        Args:
            rows: Its rows.
            nodes: Its containers.
            home: Where it stands.
            key: How that is spelled, where it is not the attribute's name.
        """
        mirrors: dict[Pattern, dict[LogicalPath, Row]] = collections.defaultdict(dict)
        leaves: dict[str, str] = {}
        axes: dict[str, str] = {}
        root: Pattern = ()
        for row in rows:
            own_key = row.key[len(home) :]
            if not row.mirrors:
                leaves[paths.format_path(own_key)] = self._annotation(row.leaf)
                continue
            # How many segments lead from the state to the mirror: 2 to Adam's `0/mu`.
            start = (row.body or 1) - 1
            param = self._model.at(tuple(row.mirrors.split("/")[1:]))
            if param is not None:
                # A mirror may keep several leaves for a param, each one segment below it.
                inner = len(row.path) - 1 - start - len(param[0].path) + 1
                # Between the mirror and the key of the param stands the root that `tx.init` was given.
                root = own_key[start : len(own_key) - len(param[1]) - max(inner, 0)]
            mirrors[own_key[:start]][row.path[1 + start :]] = row
        # What `mirrors=` says of each: None of one with a leaf for each param, or the params that have one.
        heads: dict[str, str] = {}
        dtypes: dict[str, str] = {}
        for head, below in mirrors.items():
            where = paths.format_path(head)
            dtype = self._dtype(below)
            if dtype is not None:
                dtypes[where] = quoted(dtype)
            alike: dict[LogicalPath, str] = {}
            for path, row in below.items():
                name = "/".join(path)
                if self._is_like(path, row, dtype):
                    alike[path] = quoted(name)
                    continue
                # What is not as its param is, is written leaf by leaf.
                name = f"{where}/{name}" if where else name
                leaves[name] = self._annotation(row.leaf)
                axis = self._axis(path, row)
                if axis is not None:
                    axes[name] = str(axis)
            is_whole = self._is_whole(below.keys(), alike.keys())
            heads[where] = "None" if is_whole else f"[{', '.join(alike.values())}]"
        said = [("of", quoted(self._model.name))]
        if key is not None:
            said.append(("key", quoted(key)))
        # Where no mirror needs a list of its own, a list of the mirrors is enough.
        if heads and set(heads.values()) == {"None"}:
            said.append(("mirrors", f"[{', '.join(map(quoted, heads))}]"))
        elif heads:
            said.append(("mirrors", mapping(heads)))
        if root:
            said.append(("root", quoted(paths.format_path(root))))
        items = container_items(nodes, home, self._imports, [*mirrors])
        written = {"dtypes": dtypes, "leaves": leaves, "axes": axes, "containers": items}
        for name, value in written.items():
            if value:
                said.append((name, mapping(value)))
        return said

    def _is_whole(self, below: Set[LogicalPath], alike: Set[LogicalPath]) -> bool:
        """Whether a mirror is said without a list of params: it has a leaf for each, and none as another row is.

        Args:
            below: The paths of its rows.
            alike: Those whose rows are as their params are; one at least has to be.
        """
        trained = self._model.params.keys()
        return bool(alike) and trained <= below and alike <= trained

    def _dtype(self, below: Mapping[LogicalPath, Row]) -> str | None:
        """The dtype of what is kept for params, where it is not their own."""
        # The empty string counts those that have their param's own.
        dtypes: collections.Counter[str] = collections.Counter()
        for path, row in below.items():
            param = self._model.at(path)
            if param is not None and param[0].leaf.dims == row.leaf.dims:
                dtypes[row.leaf.dtype if row.leaf.dtype != param[0].leaf.dtype else ""] += 1
        usual = dtypes.most_common(1)
        return usual[0][0] or None if usual else None

    def _is_like(self, path: LogicalPath, row: Row, dtype: str | None) -> bool:
        """Whether a row is that of its param, but for the dtype."""
        param = self._model.at(path)
        if param is None:
            return False
        leaf = param[0].leaf if dtype is None else dataclasses.replace(param[0].leaf, dtype=dtype)
        return (leaf, param[0].repeats) == (row.leaf, row.repeats)

    def _axis(self, path: LogicalPath, row: Row) -> int | None:
        """The axis that layers are stacked on, where it is not that of the param."""
        param = self._model.at(path)
        axes = _stack_axes_of(row)
        axes_of_param = [] if param is None else _stack_axes_of(param[0])
        return axes[0] if axes and axes != axes_of_param else None


def _stack_axes_of(row: Row) -> list[int]:
    """The axes that layers of a row are stacked on, outermost first."""
    return [repeat.axis for repeat in row.repeats if repeat.axis is not None]


def container_items(
    nodes: Sequence[Node], home: Pattern, imports: Imports, heads: Sequence[Pattern]
) -> dict[str, str]:
    """Containers by their key path below ``home``.

    Those of one kind that differ in numbers alone are one item; but only below ``heads``, for parts of a chain have an order.
    """
    # By what they look like without their numbers, and their class: `layers/#`, `tuple`.
    groups: dict[tuple[str, str], list[KeyPath]] = {}
    for node in nodes:
        # A node whose key has a symbol belongs to a model, and is of its list.
        if node.key[: len(home)] != home or paths.symbols(node.key):
            continue
        key = tuple([part for part in node.key[len(home) :] if not isinstance(part, Index)])
        inside = any(key[: len(head)] == head for head in heads)
        outline = _outline(key) if inside else paths.format_path(key)
        groups.setdefault((outline, imports.spell(node.type)), []).append(key)
    items: dict[str, str] = {}
    for (_, kind), keys in groups.items():
        for pattern, counts in _patterns(keys):
            value = kind if not counts else f"({', '.join([kind, *map(str, counts)])})"
            items[paths.format_path(pattern)] = value
    return items


def _outline(key: KeyPath) -> str:
    """A key path with its numbers left out: ``layers_#/#``."""
    words = ["#" if isinstance(segment, int) else _letters(segment) for segment in key]
    return "/".join(words)


def _letters(segment: str) -> str:
    head, number = _cut(segment)
    return segment if number is None else f"{head}#"


def _cut(segment: str) -> tuple[str, int | None]:
    """A key that ends in a number: what stands before it, and the number."""
    head = segment.rstrip("0123456789")
    number = paths.int_key(segment[len(head) :])
    return (segment, None) if not head or number is None else (head, number)


def _patterns(keys: Sequence[KeyPath]) -> Iterator[tuple[Pattern, tuple[int, ...]]]:
    """Key paths that differ in numbers alone: as one with symbols where they are all there, else one by one.

    The containers at ``layers_0/0``, ``layers_0/1``, ... ``layers_3/1`` are one at ``layers_{i}/{j}``, of counts 4 and 2.
    """
    # The numbers at each place of one: (0, 1, 2, 3), and (0, 1).
    columns: list[list[int]] = []
    counts: list[int] = []
    is_full = True
    for numbers in zip(*map(_numbers, keys), strict=True):
        column = sorted(set(numbers))
        columns.append(column)
        if len(column) > 1:
            counts.append(len(column))
            is_full = is_full and column == [*range(len(column))]
    # Two or three are as short one by one; and of a grid with holes symbols would say too much.
    if len(keys) < 4 or not is_full or math.prod(counts) != len(set(keys)):
        for key in keys:
            yield key, ()
        return
    pattern: list[str | int | Index] = []
    several = iter(columns)
    for segment in keys[0]:
        head, number = ("", segment) if isinstance(segment, int) else _cut(segment)
        if number is not None and len(next(several)) > 1:
            pattern.append(Index(head, text=isinstance(segment, str)))
        else:
            pattern.append(segment)
    yield tuple(pattern), tuple(counts)


def _numbers(key: KeyPath) -> Iterator[int]:
    for segment in key:
        number = segment if isinstance(segment, int) else _cut(segment)[1]
        if number is not None:
            yield number
