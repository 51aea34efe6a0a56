"""Lists of layers that the other side has stacked under another name: the error says which lines join them.

By its name alone nobody would find such a node, and leaf by leaf no type fits, for each leaf has one axis more. All
leaves of a node together show it: without the axis that stacks them, they are those of the list, or have as many
elements as these, where some are turned or fused.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

from ckpt_schema._layouts import paths
from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.table import Layout, Row
from ckpt_schema._lens.read_sides import told_shape
from ckpt_schema._lens.rules import Rename, Rule
from ckpt_schema.errors import DerivationError, Mismatch

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
    lists = _lists(source, unplaced), _lists(view, unplaced)
    nodes = _nodes(source, unplaced), _nodes(view, unplaced)
    hints: dict[str, str] = {}  # by the path of a leaf, as faults write it
    for near, far in ((0, 1), (1, 0)):
        hints |= _stacked_twice(tables[near], tables[far], unplaced)
        for stack, layers, axes in _pairs(nodes[near], lists[far]):
            hint = _joined_by(stack, layers, axes, near)
            for row in (*nodes[near][stack], *lists[far][layers]):
                hints["/".join(row.path)] = hint
    hinted = unplaced.intersection(hints)
    # Leaves that a rename joins are not unplaced: their fault is that one has an axis more.
    for near, stack, layers in _said(rules):
        stacked = _weights_below(tables[near], stack)
        members = _weights_below(tables[1 - near], layers)
        axes = _axes(stacked, members) if stacked and members else []
        if axes:
            hint = "the layers of {} are stacked there: add {} and write {}"
            hint = hint.format("/".join(stack), *_words(stack, layers, axes, near))
            for row in (*stacked, *members):
                hints["/".join(row.path)] = hint
                hinted.add("/".join(row.path))
    if not hinted:
        return error
    faults: list[Mismatch] = []
    for fault in error.mismatches:
        # Rules that are certain are more than a guess from shapes.
        if fault.path in hinted and not fault.rules:
            faults.append(dataclasses.replace(fault, hint=hints[fault.path], guesses=()))
        else:
            faults.append(fault)
    return DerivationError(error.header, faults, error.notes)


def _joined_by(stack: LogicalPath, layers: LogicalPath, axes: Sequence[int], near: int) -> str:
    """What to do where a node of one side may be a list of the other, stacked."""
    scan, rename = _words(stack, layers, axes, near)
    hint = f"{'/'.join(stack)} may be the layers of {'/'.join(layers)}, stacked: add {scan}"
    # A stack that is called what the list is needs no rename, once it is said to be one.
    if (*stack[:-1], f"{stack[-1]}[]") != layers:
        hint += f" and {rename}"
    return hint


def _stacked_twice(near: Layout, far: Layout, unplaced: set[str]) -> dict[str, str]:
    """What is said of the leaves of lists in lists that are one leaf of two axes more on the far side, and of that leaf."""
    # A tree whose two axes were never said to be layers has the path of the lists without their marks:
    # towers[]/layers[]/kernel float32[4 8], in a list of 2 lists of 3, and towers/layers/kernel float32[2 3 4 8].
    wholes: dict[LogicalPath, Row] = {}
    for row in far.rows:
        if "/".join(row.path) in unplaced:
            wholes[row.path] = row
    hints: dict[str, str] = {}
    for row in near.rows:
        counts: list[int] = []
        for repeat in row.repeats:
            if repeat.axis is None and isinstance(repeat.size[0], int):
                counts.append(repeat.size[0])
        whole = wholes.get(paths.path_names(row.path))
        if len(counts) != 2 or whole is None or "/".join(row.path) not in unplaced:
            continue
        shape, stacked = told_shape(row), told_shape(whole)
        # On which axes the layers are nobody knows, so sizes are compared in any order.
        if shape is None or stacked is None or sorted(stacked) != sorted((*shape, *counts)):
            continue
        key = paths.format_path(whole.key)
        hint = (
            f"{key} is stacked twice, by {counts[0]} and by {counts[1]}, which scan= does not say: "
            "declare both layouts, with scan= in scan=, and derive"
        )
        hints["/".join(row.path)] = hint
        hints["/".join(whole.path)] = hint
    return hints


def _words(
    stack: LogicalPath, layers: LogicalPath, axes: Sequence[int], near: int
) -> tuple[str, str]:
    """The axis of a stack as it is said, one of those that fit; and the rule that then joins it to a list."""
    scan = " or ".join(f"scan={{{'/'.join(stack)!r}: {axis}}}" for axis in axes)
    # Rules speak of a layout as it is read then: with scan= the node is repeated, and so marked.
    stacked = (*stack[:-1], f"{stack[-1]}[]")
    return scan, str(Rename(layers, stacked) if near else Rename(stacked, layers))


def _said(rules: Sequence[Rule]) -> Iterator[tuple[int, LogicalPath, LogicalPath]]:
    """The renames of a node that is no list to a list, or back: the side of the first, and both paths."""
    for rule in rules:
        if isinstance(rule, Rename) and rule.source and rule.view:
            from_list = rule.source[-1].endswith("[]")
            to_list = rule.view[-1].endswith("[]")
            if to_list and not from_list:
                yield 0, rule.source, rule.view
            elif from_list and not to_list:
                yield 1, rule.view, rule.source


def _lists(table: Layout, unplaced: set[str]) -> _Nodes:
    """The lists of a model of which no leaf has a partner, by the path that rules call them."""
    members: dict[LogicalPath, list[Row]] = collections.defaultdict(list)
    placed: set[LogicalPath] = set()
    for row in _weights(table):
        # Lists in lists are stacked on two axes, which one line does not say.
        if paths.list_depth(row.model_path) != 1:
            continue
        for end, name in enumerate(row.model_path, 1):
            if name.endswith("[]"):
                node = row.model_path[:end]
                members[node].append(row)
                if "/".join(row.path) not in unplaced:
                    placed.add(node)
    return _without(placed, members)


def _nodes(table: Layout, unplaced: set[str]) -> _Nodes:
    """The other nodes of a model of which no leaf has a partner."""
    members: dict[LogicalPath, list[Row]] = collections.defaultdict(list)
    placed: set[LogicalPath] = set()
    for row in _weights(table):
        path = row.model_path
        # What holds a list is no stack of layers itself: it is left out as if it were placed.
        is_out = "/".join(row.path) not in unplaced or paths.list_depth(path) > 0
        for end in range(1, len(path)):
            members[path[:end]].append(row)
            if is_out:
                placed.add(path[:end])
    return _without(placed, members)


def _without(placed: set[LogicalPath], members: _Nodes) -> _Nodes:
    """The nodes that no leaf with a partner stands in: the other side may have all of each."""
    return {node: rows for node, rows in members.items() if node not in placed}


def _weights(table: Layout) -> Iterator[Row]:
    """The rows of the model itself, but for streams: what mirrors it follows, and a stream needs no partner."""
    streams = {row.path[:-1] for row in table.rows if row.leaf.is_key}
    for row in table.rows:
        # A key has its count beside it.
        if row.is_weight and row.path[:-1] not in streams:
            yield row


def _weights_below(table: Layout, node: LogicalPath) -> list[Row]:
    """Those in a node."""
    return [row for row in _weights(table) if row.model_path[: len(node)] == node]


def _pairs(stacks: _Nodes, lists: _Nodes) -> Iterator[tuple[LogicalPath, LogicalPath, list[int]]]:
    """Each stack and list of which one can be the other and nothing else, and the axes on which it fits."""
    fitting: list[tuple[LogicalPath, LogicalPath, list[int]]] = []
    # A stack and a list are of two sides, and a list has its mark: no node is counted as both.
    choices: collections.Counter[LogicalPath] = collections.Counter()
    for layers, members in lists.items():
        for stack, stacked in stacks.items():
            axes = _axes(stacked, members)
            if axes:
                fitting.append((stack, layers, axes))
                choices.update((stack, layers))
    # Where several fit, shapes do not tell which is which: a line to paste would be a guess.
    for stack, layers, axes in fitting:
        if choices[stack] == choices[layers] == 1:
            yield stack, layers, axes


def _axes(stacked: list[Row], layers: list[Row]) -> list[int]:
    """The axes without which the leaves of a node are those of a list, as many as that has layers.

    Leaves that are turned or fused on one side have other shapes, and together as many elements.
    """
    (count,) = layers[0].repeats[0].size
    shapes, wanted = _shapes(stacked), _shapes(layers)
    if not isinstance(count, int) or shapes is None or wanted is None:
        return []
    elements = count * sum(map(math.prod, wanted))
    fitting: list[int] = []
    alike: list[int] = []
    for axis in range(min(map(len, shapes))):
        rests: list[tuple[int, ...]] = []
        for shape in shapes:
            if shape[axis] == count:
                rests.append((*shape[:axis], *shape[axis + 1 :]))
        # Names may differ, so shapes are held against each other as two bags: sorted.
        if sorted(rests) == sorted(wanted):
            fitting.append(axis)
        elif len(rests) == len(shapes) and sum(map(math.prod, shapes)) == elements:
            alike.append(axis)
    return fitting or alike


def _shapes(rows: list[Row]) -> list[tuple[int, ...]] | None:
    """The shapes of some leaves of a model; a tree like it beside it has the same, and they count once."""
    shapes: dict[LogicalPath, tuple[int, ...]] = {}
    for row in rows:
        shape = told_shape(row)
        # A shape that has names in it was declared, and says itself what is stacked.
        if shape is None:
            return None
        shapes.setdefault(row.model_path, shape)
    return list(shapes.values())
