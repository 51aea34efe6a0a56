"""What an optimizer keeps, as the arguments of ``cs.kept``: what follows from the params of the model is not written."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

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
            own = row.key[len(home) :]
            if not row.mirrors:
                leaves[paths.format_path(own)] = self._annotation(row.leaf)
                continue
            start = (row.body or 1) - 1
            param = self._model.at(tuple(row.mirrors.split("/")[1:]))
            if param is not None:
                inner = len(row.path) - 1 - start - len(param[0].path) + 1
                root = own[start : len(own) - len(param[1]) - max(inner, 0)]
            mirrors[own[:start]][row.path[1 + start :]] = row
        said = [("of", quoted(self._model.name))]
        said += [] if key is None else [("key", quoted(key))]
        heads: dict[str, str] = {}
        dtypes: dict[str, str] = {}
        for head, below in mirrors.items():
            where = paths.format_path(head)
            dtype = self._dtype(below)
            alike = [path for path, row in below.items() if self._is_like(path, row, dtype)]
            trained = [*self._model.params]
            known = dtype is not None and len(alike) > 0
            if dtype is not None:
                dtypes[where] = quoted(dtype)
            listed = [path for path in trained if path in below]
            whole = set(listed) == set(trained) and not set(alike) - set(trained)
            names = ", ".join(quoted("/".join(path)) for path in alike)
            heads[where] = "None" if whole and (alike or known) else f"[{names}]"
            for path, row in below.items():
                if path not in alike:
                    text = f"{where}/{'/'.join(path)}" if where else "/".join(path)
                    leaves[text] = self._annotation(row.leaf)
                    axis = self._axis(path, row)
                    axes |= {} if axis is None else {text: str(axis)}
        if heads and set(heads.values()) == {"None"}:
            said.append(("mirrors", f"[{', '.join(map(quoted, heads))}]"))
        elif heads:
            said.append(("mirrors", mapping(heads)))
        if root:
            said.append(("root", quoted(paths.format_path(root))))
        said += [("dtypes", mapping(dtypes))] if dtypes else []
        said += [("leaves", mapping(leaves))] if leaves else []
        said += [("axes", mapping(axes))] if axes else []
        items = container_items(nodes, home, self._imports, [*mirrors])
        said += [("containers", mapping(items))] if items else []
        return said

    def _dtype(self, below: Mapping[LogicalPath, Row]) -> str | None:
        """The dtype of what is kept for params, where it is not their own."""
        dtypes: collections.Counter[str] = collections.Counter()
        for path, row in below.items():
            param = self._model.at(path)
            if param is not None and param[0].leaf.dims == row.leaf.dims:
                dtypes[row.leaf.dtype if row.leaf.dtype != param[0].leaf.dtype else ""] += 1
        return next((dtype for dtype, _ in dtypes.most_common(1) if dtype), None)

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
        own = [repeat.axis for repeat in row.repeats if repeat.axis is not None]
        theirs = [] if param is None else [r.axis for r in param[0].repeats if r.axis is not None]
        return own[0] if own and own != theirs else None


def container_items(
    nodes: Sequence[Node], home: Pattern, imports: Imports, heads: Sequence[Pattern]
) -> dict[str, str]:
    """Containers by their key path below ``home``.

    Those of one kind that differ in numbers alone are one item; but only below ``heads``, for parts of a chain have an order.
    """
    groups: dict[tuple[str, str], list[KeyPath]] = {}
    for node in nodes:
        if node.key[: len(home)] != home or paths.symbols(node.key):
            continue
        key = tuple(segment for segment in node.key[len(home) :] if not isinstance(segment, Index))
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
    """A key path with its numbers left out."""
    return "/".join("#" if isinstance(s, int) else _letters(s) for s in key)


def _letters(segment: str) -> str:
    head, number = _cut(segment)
    return segment if number is None else f"{head}#"


def _cut(segment: str) -> tuple[str, int | None]:
    """A key that ends in a number: what stands before it, and the number."""
    head = segment.rstrip("0123456789")
    number = paths.int_key(segment[len(head) :])
    return (segment, None) if not head or number is None else (head, number)


def _patterns(keys: Sequence[KeyPath]) -> Iterator[tuple[Pattern, tuple[int, ...]]]:
    """Key paths that differ in numbers alone: as one with symbols where they are all there, else one by one."""
    numbers = [tuple(_numbers(key)) for key in keys]
    several = [sorted(set(column)) for column in zip(*numbers, strict=True)]
    full = all(len(column) == 1 or column == [*range(len(column))] for column in several)
    if len(keys) < 4 or not full or math.prod(map(len, several)) != len(set(keys)):
        yield from ((key, ()) for key in keys)
        return
    columns = iter(several)
    pattern: list[str | int | Index] = []
    for segment in keys[0]:
        head, number = ("", segment) if isinstance(segment, int) else _cut(segment)
        column = next(columns) if number is not None else [0]
        if len(column) > 1:
            pattern.append(Index(head, text=isinstance(segment, str)))
        else:
            pattern.append(segment)
    yield tuple(pattern), tuple(len(column) for column in several if len(column) > 1)


def _numbers(key: KeyPath) -> Iterator[int]:
    for segment in key:
        number = segment if isinstance(segment, int) else _cut(segment)[1]
        if number is not None:
            yield number
