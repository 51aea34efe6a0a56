"""The lines that say on which axes layers are stacked, as an error prints them to be pasted."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax

from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._lens.read_sides import Axes
from ckpt_schema._messages.text import counted
from ckpt_schema.errors import Mismatch

__all__ = [
    "AxisPair",
    "Kinds",
    "ScanLine",
    "doubtful_node",
    "line_of",
    "otherwise",
    "scan_lines",
    "with_globs",
]

Kinds = tuple[Any, Any]
"""What each side says of the kind of a leaf: a Variable type of NNX, a collection of Linen, or None."""

AxisPair = tuple[int | None, int | None]
"""The axis on each side that all leaves of a node are stacked on; None where a side has a list."""

ScanLine = Mapping[str, tuple[Axes, Axes]]
"""For a node, and for what is in it and stacked otherwise, the axes on both sides."""

_SHOWN = 4
"""How many lines a message offers where several settle it."""

_KIND = "nnx.{}"


def scan_lines(readings: Iterable[ScanLine]) -> str:
    """The first of the lines that say readings."""
    lines: list[str] = []
    for stacks in readings:
        entries = [f"{path!r}: {_of_both(axes)}" for path, axes in stacks.items()]
        lines.append(f"scan={{{', '.join(entries)}}}")
    # A node whose sizes are all equal has a reading for each pair of axes.
    more = f" or another of {len(lines)}" if len(lines) > _SHOWN else ""
    return " or ".join(lines[:_SHOWN]) + more


def _of_both(axes: tuple[Axes, Axes]) -> str:
    """The axes on both sides as they are pasted: one where one side alone is stacked."""
    source, view = axes
    # One axis is enough then: the side that has a list in the place of the stack needs none.
    if source is None:
        return _written(view)
    if view is None:
        return _written(source)
    return f"({_written(source)}, {_written(view)})"


def _written(axes: Axes) -> str:
    """Axes as they are pasted."""
    if not isinstance(axes, Mapping):
        return repr(axes)
    entries: list[str] = []
    for kind, axis in axes.items():
        entries.append(f"{_kind(kind)}: {axis}")
    return f"{{{', '.join(entries)}}}"


def _kind(kind: type | str) -> str:
    """A collection of Linen by its name, or a Variable type, as it is pasted."""
    if not isinstance(kind, type):
        return repr(kind)
    return "jax.Array" if kind is jax.Array else _KIND.format(kind.__name__)


# --- The faults that have such lines  ---


def doubtful_node(node: LogicalPath, count: int, readings: Iterable[ScanLine]) -> Mismatch:
    """The fault for a node that is stacked on one of several axes, and the lines that settle it."""
    text = "/".join(node)
    expected = f"one axis that the layers of {text} are stacked on"
    found = f"several that fit {counted(count, 'leaf', 'leaves')} each"
    hint = f"the sizes do not tell; add one of {scan_lines(readings)}"
    return Mismatch(text, "ambiguous", expected, found, hint)


_NUMBER = re.compile(r"\d+(?=/|$)")
"""That of a sibling, in a path."""


def with_globs(faults: Iterable[Mismatch]) -> Iterator[Mismatch]:
    """The faults, where those of siblings that differ in their number alone have one line, which settles all of them."""
    alike: dict[str, list[Mismatch]] = collections.defaultdict(list)
    for fault in faults:
        alike[fault.hint.replace(fault.path, _NUMBER.sub("*", fault.path))].append(fault)
    for hint, several in alike.items():
        for fault in several:
            yield dataclasses.replace(fault, hint=hint if len(several) > 1 else fault.hint)


# --- What a line says of one node  ---


def line_of(
    node: LogicalPath,
    way: Mapping[Kinds, AxisPair],
    paths: Mapping[Kinds, Sequence[LogicalPath]],
) -> ScanLine:
    """Axes as they are said: one for all, or one for each kind, or for leaves that no kind tells apart by their paths.

    Args:
        node: What is stacked.
        way: How the leaves of each kind are read.
        paths: The leaves of each kind.
    """
    text = "/".join(node)
    if _kinds_tell(way, 0) and _kinds_tell(way, 1):
        return {text: (_by_side(way, 0), _by_side(way, 1))}
    leaves: dict[AxisPair, list[LogicalPath]] = collections.defaultdict(list)
    for kinds, reading in way.items():
        leaves[reading] += paths[kinds]
    # What most leaves have is said of the node.
    most = max(leaves, key=lambda reading: len(leaves[reading]))
    return {text: most, **dict(otherwise(node, leaves, most))}


def otherwise(
    node: LogicalPath, leaves: Mapping[AxisPair, Sequence[LogicalPath]], most: AxisPair
) -> Iterator[tuple[str, AxisPair]]:
    """The paths of the leaves in a node that are read otherwise than most, and how."""
    for reading, members in leaves.items():
        if reading == most:
            continue
        others: list[LogicalPath] = []
        for other, paths in leaves.items():
            if other != reading:
                others += paths
        for path in _called(node, members, others):
            yield path, reading


def _kinds_tell(way: Mapping[Kinds, AxisPair], side: int) -> bool:
    """Whether the kinds of one side tell on which axis a leaf is stacked there.

    They do not where a collection of one side is two types of the other, on two axes.
    """
    axes_by_kind: dict[Any, set[int | None]] = collections.defaultdict(set)
    axes: set[int | None] = set()
    for kinds, reading in way.items():
        axes_by_kind[kinds[side]].add(reading[side])
        axes.add(reading[side])
    if len(axes) == 1:
        return True
    # A leaf without a kind cannot be named by it.
    return None not in axes_by_kind and all(len(one) == 1 for one in axes_by_kind.values())


def _called(
    node: LogicalPath, members: Sequence[LogicalPath], others: Sequence[LogicalPath]
) -> list[str]:
    """Paths of some leaves in a node: one name on the way to them that leads to no others, or else each."""
    # Counted from the end: the name of the leaves themselves comes first, then that of what holds them.
    for end in range(1, min(map(len, members)) - len(node) + 1):
        names = {path[-end] for path in members}
        if len(names) == 1 and not any(names.intersection(path[len(node) :]) for path in others):
            return ["/".join((*node, "**", *names))]
    return [*map("/".join, members)]


def _by_side(way: Mapping[Kinds, AxisPair], side: int) -> Axes:
    """One axis for all kinds, or one for each."""
    axes: dict[Any, int] = {}
    for kinds, reading in way.items():
        axis = reading[side]
        if axis is not None:
            axes[kinds[side]] = axis
    if len(set(axes.values())) > 1:
        return axes
    return next(iter(axes.values()), None)
