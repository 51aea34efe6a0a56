"""Lists of layers that the other side has stacked under another name: the error says which lines join them.

By its name alone nobody would find such a node, and leaf by leaf no type fits, for each leaf has one axis more. All
leaves of a node together show it: without the axis that stacks them, they are those of the list.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from ckpt_schema._layouts import paths
from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.table import Layout, Row
from ckpt_schema._lens.read_sides import told_shape
from ckpt_schema._lens.rules import Rename, Rule
from ckpt_schema.errors import DerivationError

__all__ = ["with_lone_stacks"]

_Nodes = Mapping[LogicalPath, list[Row]]


def with_lone_stacks(
    error: DerivationError, source: Layout, view: Layout, rules: Sequence[Rule]
) -> DerivationError:
    """The error, where leaves of a stack and of a list that have no partner are told what joins them.

    Args:
        error: What derivation says of the two layouts.
        source: The source's layout, as it was read off.
        view: The view's.
        rules: What was said. A rename of a stack to a list does not say how the layers are stacked.
    """
    unplaced = {fault.path for fault in error.mismatches if fault.kind == "unplaced"}
    tables = source, view
    lists = [_lists(table, unplaced) for table in tables]
    nodes = [_nodes(table, unplaced) for table in tables]
    hints: dict[str, str] = {}
    for near, far in ((0, 1), (1, 0)):
        hints |= _stacked_twice(tables[near], tables[far], unplaced)
        for stack, layers, axes in _pairs(nodes[near], lists[far]):
            scan, rename = _words(stack, layers, axes, near)
            hint = "{} may be the layers of {}, stacked: add {}"
            hint = hint.format("/".join(stack), "/".join(layers), scan)
            # A stack that is called what the list is needs no rename, once it is said to be one.
            if (*stack[:-1], f"{stack[-1]}[]") != layers:
                hint += f" and {rename}"
            for row in (*nodes[near][stack], *lists[far][layers]):
                hints["/".join(row.path)] = hint
    told = {path for path in hints if path in unplaced}
    for near, stack, layers in _said(rules):
        stacks = [row for row in _weights(tables[near]) if row.model_path[: len(stack)] == stack]
        members = [r for r in _weights(tables[1 - near]) if r.model_path[: len(layers)] == layers]
        axes = _axes(stacks, members) if stacks and members else []
        if axes:
            hint = "the layers of {} are stacked there: add {} and write {}"
            hint = hint.format("/".join(stack), *_words(stack, layers, axes, near))
            for row in (*stacks, *members):
                hints["/".join(row.path)] = hint
                told.add("/".join(row.path))
    if not told:
        return error
    faults = [
        dataclasses.replace(fault, hint=hints[fault.path])
        if fault.path in told and not fault.rules
        else fault
        for fault in error.mismatches
    ]
    return DerivationError(error.header, faults, error.notes)


def _stacked_twice(near: Layout, far: Layout, unplaced: set[str]) -> dict[str, str]:
    """What is said of the leaves of lists in lists that are one leaf of two axes more on the far side, and of that leaf."""
    whole = {row.path: row for row in far.rows if "/".join(row.path) in unplaced}
    hints: dict[str, str] = {}
    for row in near.rows:
        sizes = [size for repeat in row.repeats for size in repeat.size if repeat.axis is None]
        counts = [size for size in sizes if isinstance(size, int)]
        other = whole.get(paths.path_names(row.path))
        if len(counts) != 2 or other is None or "/".join(row.path) not in unplaced:
            continue
        shape, stacked = told_shape(row), told_shape(other)
        if shape is None or stacked is None or sorted(stacked) != sorted((*shape, *counts)):
            continue
        said = f"{paths.format_path(other.key)} is stacked twice, by {counts[0]} and by {counts[1]}"
        hint = f"{said}, which scan= does not say: declare both layouts, with scan= in scan=, and derive"
        hints |= {"/".join(each.path): hint for each in (row, other)}
    return hints


def _words(
    stack: LogicalPath, layers: LogicalPath, axes: Sequence[int], near: int
) -> tuple[str, str]:
    """The axis of a stack as it is said, one of those that fit; and the rule that then joins it to a list."""
    scan = " or ".join(f"scan={{{'/'.join(stack)!r}: {axis}}}" for axis in axes)
    stacked = (*stack[:-1], f"{stack[-1]}[]")
    return scan, str(Rename(layers, stacked) if near else Rename(stacked, layers))


def _said(rules: Sequence[Rule]) -> Iterator[tuple[int, LogicalPath, LogicalPath]]:
    """The renames of a node that is no list to a list, or back: the side of the first, and both paths."""
    for rule in rules:
        if isinstance(rule, Rename) and rule.source and rule.view:
            ends = rule.source, rule.view
            marked = [end[-1].endswith("[]") for end in ends]
            if marked[0] != marked[1]:
                near = marked.index(False)
                yield near, ends[near], ends[1 - near]


def _lists(table: Layout, unplaced: set[str]) -> _Nodes:
    """The lists of a model of which no leaf has a partner, by the path that rules call them."""
    found: dict[LogicalPath, list[Row]] = collections.defaultdict(list)
    placed: set[LogicalPath] = set()
    for row in _weights(table):
        marks = [at for at, name in enumerate(row.model_path) if name.endswith("[]")]
        if len(marks) != 1:
            continue
        node = row.model_path[: marks[0] + 1]
        found[node].append(row)
        if "/".join(row.path) not in unplaced:
            placed.add(node)
    return {node: rows for node, rows in found.items() if node not in placed}


def _nodes(table: Layout, unplaced: set[str]) -> _Nodes:
    """The other nodes of a model of which no leaf has a partner."""
    found: dict[LogicalPath, list[Row]] = collections.defaultdict(list)
    placed: set[LogicalPath] = set()
    for row in _weights(table):
        path = row.model_path
        for end in range(1, len(path)):
            found[path[:end]].append(row)
            if "/".join(row.path) not in unplaced or any(name.endswith("[]") for name in path):
                placed.add(path[:end])
    return {node: rows for node, rows in found.items() if node not in placed}


def _weights(table: Layout) -> Iterator[Row]:
    """The rows of the model itself: what mirrors it follows."""
    return (row for row in table.rows if row.is_weight)


def _pairs(stacks: _Nodes, lists: _Nodes) -> Iterator[tuple[LogicalPath, LogicalPath, list[int]]]:
    """Each stack and list of which one can be the other and nothing else, and the axes on which it fits."""
    found = [
        (stack, layers, axes)
        for layers, own in lists.items()
        for stack, rows in stacks.items()
        if (axes := _axes(rows, own))
    ]
    both = collections.Counter(node for stack, layers, _ in found for node in (stack, layers))
    for stack, layers, axes in found:
        if both[stack] == both[layers] == 1:
            yield stack, layers, axes


def _axes(stacked: list[Row], layers: list[Row]) -> list[int]:
    """The axes without which the leaves of a node are those of a list, as many as that has layers."""
    (count,) = layers[0].repeats[0].size
    shapes = [told_shape(row) for row in stacked]
    wanted = sorted(map(str, (told_shape(row) for row in layers)))
    if len(shapes) != len(wanted) or not isinstance(count, int) or None in shapes:
        return []
    known = [shape for shape in shapes if shape is not None]
    fitting: list[int] = []
    for axis in range(min(map(len, known))):
        rests = sorted(str((*shape[:axis], *shape[axis + 1 :])) for shape in known)
        if rests == wanted and all(shape[axis] == count for shape in known):
            fitting.append(axis)
    return fitting
