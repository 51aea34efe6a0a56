"""The leaves of a layout as a tree that a person reads: nodes with sizes, and no more lines than are read."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ckpt_schema._layouts.row_sizes import RowSize, summed
from ckpt_schema._messages.html import Section
from ckpt_schema._messages.pictures import Picture
from ckpt_schema._messages.text import counted, in_bytes, number_span

__all__ = ["BESIDE", "MODEL", "OPTIMIZER", "ShownLeaf", "table_picture", "tree_picture"]

MODEL, BESIDE, OPTIMIZER = "of the model", "beside the model", "of the optimizer"

_LINES = 60  # lines of a tree; what is more is counted
_FIRST = 20  # children of a node that has too many
_HEADER = "key path", "leaf", "", "bytes", "sharding", "kind"


class ShownLeaf(NamedTuple):
    """A row, as it is shown.

    Attributes:
        part: What it is of.
        path: Its logical path.
        key: The segments of its key path.
        leaf: Its dtype and dims.
        size: How large it is.
        sharding: How it lies on devices.
        remarks: Its kind, and what else there is to say.
        twins: Its dtype and that of its param, where it is a moment that is like it in all else.
    """

    part: str
    path: str
    key: tuple[str, ...]
    leaf: str
    size: RowSize
    sharding: str = ""
    remarks: str = ""
    twins: tuple[str, str] | None = None


class _Node:
    """A node of the tree: what it is called, its leaf or its children, and how large all of it is."""

    def __init__(self, name: str, leaf: ShownLeaf | None = None) -> None:
        self.name = name
        self.leaf = leaf
        self.children: dict[str, _Node] = {}
        self.opened = 0  # how many children have lines of their own

    def shown(self) -> Iterator[ShownLeaf]:
        """The leaves in it."""
        if self.leaf is not None:
            yield self.leaf
        for child in self.children.values():
            yield from child.shown()

    def lines(self) -> int:
        """How many lines it is, if all of it is shown."""
        count = 1
        for child in self.children.values():
            count += child.lines()
        return count

    def likeness(self) -> str:
        """What is said of moments that are all like their params; nothing of other leaves, or of one alone."""
        pairs: list[tuple[str, str]] = []
        for leaf in self.shown():
            # One leaf that has something of its own to say, and all of them are shown.
            if leaf.twins is None:
                return ""
            pairs.append(leaf.twins)
        if len(pairs) < 2:
            return ""
        dtypes: set[str] = set()
        is_cast = False
        for dtype, of_param in pairs:
            dtypes.add(dtype)
            is_cast = is_cast or dtype != of_param
        if not is_cast:
            return " like their params"
        # Moments of two dtypes cannot be told in a word: then each has a line.
        return f" like their params, in {dtypes.pop()}" if len(dtypes) == 1 else ""

    @property
    def is_partly(self) -> bool:
        """Whether any line is left out, be it that another one says the same."""
        children = [*self.children.values()]
        return self.opened < len(children) or any(child.is_partly for child in children)

    def content(self) -> tuple[object, ...]:
        """What is in it; equal for nodes that differ in their names alone."""
        # The paths hold the name of the node: layers_0 and layers_1 would never be equal with them.
        leaf = None if self.leaf is None else self.leaf._replace(path="", key=())
        inside = [(child.name, child.content()) for child in self.children.values()]
        return leaf, tuple(inside)


def table_picture(title: str, shown: Sequence[ShownLeaf]) -> Picture:
    """The leaves in parts, a line for each, with both its paths.

    Args:
        title: What has the leaves.
        shown: The leaves, in order.
    """
    sections: list[Section] = []
    for part, own in _parts(shown):
        rows: list[tuple[str, ...]] = []
        for leaf in own:
            rows.append((leaf.path, "/".join(leaf.key), *_leaf_cells(leaf)))
        # Few open the optimizer's leaves; where there is nothing else, they are what was asked for.
        is_folded = part == OPTIMIZER and bool(sections)
        sections.append(_section(part, own, ("path", *_HEADER), rows)._replace(folded=is_folded))
    return Picture(_whole(title, shown), sections)


def tree_picture(title: str, shown: Sequence[ShownLeaf]) -> Picture:
    """The leaves in parts, each as a tree: a row is a node, and its first cell is indented.

    Of a node with one child that is no list they are one row. Moments that are like their params
    are a row together. Where there are too many lines for a person, siblings that differ in a
    number are one node, and nodes deep inside are counted.

    Args:
        title: What has the leaves.
        shown: The leaves, in order.

    Example:
        >>> leaf = ShownLeaf(MODEL, "a/b", ("a", "b"), "int8[4]", RowSize(1, 4, 4))
        >>> other = ShownLeaf(MODEL, "a/c", ("a", "c"), "int8[2]", RowSize(1, 2, 2))
        >>> title, sections = tree_picture("x", [leaf, other])
        >>> title, sections[0].heading
        ('x: 2 leaves, 6 elements, 6 B', '2 leaves of the model, 6 B')
        >>> for row in sections[0].rows: print(row[:4])
        ('a', '', '', '6 B')
        ('  b', 'int8[4]', '', '4 B')
        ('  c', 'int8[2]', '', '2 B')
    """
    sections: list[Section] = []
    for part, own in _parts(shown):
        root = _Node("")
        for leaf in own:
            _put(root, leaf)
        # In this order: siblings are compared when each of them is one node, and lines are counted last.
        _join(root)
        if root.lines() > _LINES:
            _merge(root)
        _open(root)
        section = _section(part, own, _HEADER, [*_rows(root, 0)])
        sections.append(section._replace(headed=False, partly=root.is_partly))
    return Picture(_whole(title, shown), sections)


def _parts(shown: Sequence[ShownLeaf]) -> Iterator[tuple[str, list[ShownLeaf]]]:
    """The leaves by what they are of."""
    for part in (MODEL, BESIDE, OPTIMIZER):
        of_part = [leaf for leaf in shown if leaf.part == part]
        if of_part:
            yield part, of_part


def _whole(title: str, shown: Sequence[ShownLeaf]) -> str:
    """What is said of all leaves."""
    size = str(_summed(shown))
    # A title with a count in it, "Model: 3 rows", has a colon already.
    between = ", " if ": " in title else ": "
    return between.join(filter(None, [title, size]))


def _section(
    part: str, shown: Sequence[ShownLeaf], header: Sequence[str], rows: Sequence[Sequence[str]]
) -> Section:
    """A section whose heading says how many leaves there are, and how many bytes they have."""
    size = _summed(shown)
    titles = f"leaves {part}", f"leaf {part}"
    if size.leaves is None:  # a dim that has no size says it
        titles = f"rows {part}", f"row {part}"
    count = len(shown) if size.leaves is None else size.leaves
    return Section(titles[0], header, rows, one=titles[1], note=_bytes(size), number=count)


def _put(root: _Node, leaf: ShownLeaf) -> None:
    # A node of the tree is a leaf, or has children: no leaf of a layout stands inside of another.
    node = root
    for segment in leaf.key:
        node = node.children.setdefault(segment, _Node(segment))
    node.leaf = leaf


def _join(node: _Node) -> None:
    """Makes one of each node and its only child."""
    joined: dict[str, _Node] = {}
    for child in node.children.values():
        _join(child)
        only = [*child.children.values()]
        # Below comes first, so that a chain of single nodes a, b, c is a/b/c in the end.
        if len(only) == 1 and child.leaf is None:
            only[0].name = f"{child.name}/{only[0].name}"
            child = only[0]
        joined[child.name] = child
    node.children = joined


def _merge(node: _Node) -> None:
    """Makes one of siblings that differ in one number of their names."""
    for child in node.children.values():
        _merge(child)
    # layers_0 to layers_11 are one family, layers_12 with another dtype inside is one by itself.
    families: dict[object, list[_Node]] = {}
    for child in node.children.values():
        outline = re.sub(r"\d+", "#", child.name)
        families.setdefault((outline, child.content()), []).append(child)
    merged: dict[str, _Node] = {}
    for family in families.values():
        names = _span([child.name for child in family]) if len(family) > 1 else None
        if names is not None:
            # The first stands for all, which are equal to it but for their names.
            family[0].name = names
            _multiply(family[0], len(family))
            family = family[:1]
        for child in family:
            merged[child.name] = child
    node.children = merged


def _span(names: Sequence[str]) -> str | None:
    """One name for all, in which the number that is not the same is a span; None where several are not."""
    # h_0_a and h_1_a are cut to h_ 0 _a and h_ 1 _a: of three columns, the second differs.
    cut = [re.split(r"(\d+)", name) for name in names]
    parts: list[str] = []
    spans = 0
    for column in zip(*cut, strict=True):
        is_same = len(set(column)) == 1
        parts.append(column[0] if is_same else number_span(column))
        spans += not is_same
    return "".join(parts) if spans == 1 else None


def _multiply(node: _Node, count: int) -> None:
    """Makes a node stand for several."""
    if node.leaf is not None:
        size = node.leaf.size
        # As a sum, for what is not known of one is not known of several.
        node.leaf = node.leaf._replace(size=summed([size] * count))
    for child in node.children.values():
        _multiply(child, count)


def _open(root: _Node) -> None:
    """Opens nodes from the outermost on, as long as there are lines for what is in them."""
    left = _LINES
    waiting = collections.deque([root])
    while waiting:
        node = waiting.popleft()
        more = len(node.children)
        if node.likeness() or (more > left and left <= _FIRST and node is not root):
            continue
        # With few lines left, a node that does not fit stays closed. Of the outermost one the first
        # children are shown in any case.
        node.opened = more if more <= left else _FIRST
        left -= node.opened + (node.opened < more)
        waiting.extend([*node.children.values()][: node.opened])


def _rows(node: _Node, depth: int) -> Iterator[tuple[str, ...]]:
    """The lines of what is in a node."""
    children = [*node.children.values()]
    indent = "  " * depth
    for child in children[: node.opened]:
        yield (indent + child.name, *_cells(child))
        yield from _rows(child, depth + 1)
    rest = children[node.opened :]
    if node.opened and rest:
        inside: list[ShownLeaf] = []
        for child in rest:
            inside += child.shown()
        yield (f"{indent}... and {len(rest)} more", *_group(inside, ""))


def _cells(node: _Node) -> tuple[str, ...]:
    """What is said of a node."""
    if node.leaf is not None:
        return _leaf_cells(node.leaf)
    inside = [*node.shown()]
    if node.opened:
        return "", "", _bytes(_summed(inside)), "", ""
    return _group(inside, node.likeness())


def _leaf_cells(leaf: ShownLeaf) -> tuple[str, ...]:
    several = "" if leaf.size.leaves in (None, 1) else f"x {leaf.size.leaves}"
    # A collection is the kind of a leaf of Linen, and mostly a key on the way to it.
    remarks = "" if leaf.remarks in leaf.key else leaf.remarks
    return leaf.leaf, several, _bytes(leaf.size), leaf.sharding, remarks


def _group(inside: Sequence[ShownLeaf], likeness: str) -> tuple[str, ...]:
    """What is said of leaves that have no lines of their own."""
    whole = _summed(inside)
    count = len(inside) if whole.leaves is None else whole.leaves
    # Where leaves lie otherwise nothing is said of how they lie, rather than what holds for some.
    alike = {leaf.sharding for leaf in inside}
    sharding = alike.pop() if len(alike) == 1 and not likeness else ""
    return counted(count, "leaf", "leaves") + likeness, "", _bytes(whole), sharding, ""


def _summed(shown: Sequence[ShownLeaf]) -> RowSize:
    return summed([leaf.size for leaf in shown])


def _bytes(size: RowSize) -> str:
    return "" if size.bytes is None else in_bytes(size.bytes)
