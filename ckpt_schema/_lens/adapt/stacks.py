"""Nodes whose layers one side stacks, or both on two axes: those that are given, and those of which one reading exists."""

from __future__ import annotations

import collections
import itertools
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ckpt_schema._layouts.immutable import immutable, replaced
from ckpt_schema._layouts.paths import LogicalPath, glob_means, parse_path
from ckpt_schema._layouts.table import Row
from ckpt_schema._lens.adapt.scan_lines import (
    AxisPair,
    Kinds,
    ScanLine,
    doubtful_node,
    line_of,
    otherwise,
    scan_lines,
    with_globs,
)
from ckpt_schema._lens.read_sides import Axes, ReadSide, ReadSides, told_shape
from ckpt_schema.errors import DerivationError, Mismatch

__all__ = ["Scan", "axes_of_sides", "with_stacks"]

Scan = Mapping[str, Axes | tuple[Axes, Axes]]
"""The axis for each stacked node; two where both sides are stacked, the source's first."""


@immutable
class _Leaf:
    """A leaf that is stacked on one side or both, as both sides have it."""

    path: LogicalPath  # in the model, without marks of repetition
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    kinds: Kinds
    count: int | None = None  # of the list that one side has
    lists: tuple[int, ...] = ()  # segments of its path that are lists on both sides


def with_stacks(sides: ReadSides, given: Scan) -> ReadSides:
    """Both sides with their stacks: those that are given, and those of which one reading exists."""
    scans = axes_of_sides(sides, given)
    spoken = [*map(parse_path, given)]
    # An axis of None takes a leaf out of the stack that is said of the node above it.
    alone = _leaves_of_one(sides, 0), _leaves_of_one(sides, 1)
    for scan, lone in zip(scans, alone, strict=True):
        scan.update(dict.fromkeys(_unstacked_in(scan, lone)))
    faults: list[Mismatch] = []
    stacked: list[LogicalPath] = []
    shared = [*_shared_leaves(sides)]
    for node, members in _stacked_nodes(shared, spoken):
        text = "/".join(node)
        stacked.append(node)
        for scan, lone, axes in zip(scans, alone, _settled(node, members, faults), strict=True):
            scan.update(axes)
            scan.update(dict.fromkeys(_unstacked(lone.get(node, ()), axes.get(text))))
    faults += _doubtful(shared, stacked, spoken)
    faults += _crossed(shared, spoken)
    if faults:
        here, there = sides[0].name, sides[1].name
        # A node may be in doubt in two ways. The last is the more exact: it says both axes.
        unique: dict[str, Mismatch] = {}
        for fault in faults:
            unique[fault.path] = fault
        raise DerivationError(
            f"{here} and {there} can be read in more than one way",
            [*with_globs(unique.values())],
        )
    left, right = sides
    return left.read(scan=scans[0]), right.read(scan=scans[1])


def axes_of_sides(sides: ReadSides, given: Scan) -> tuple[dict[str, Axes], dict[str, Axes]]:
    """Which of the axes that are given are of which side."""
    scans: tuple[dict[str, Axes], dict[str, Axes]] = ({}, {})
    spoken = [*map(parse_path, given)]
    for node, axes in given.items():
        for number, axis in _of_sides(sides, node, axes, spoken):
            scans[number][node] = axis
    return scans


def _leaves_of_one(sides: ReadSides, number: int) -> dict[LogicalPath, list[tuple[str, int]]]:
    """The leaves that one side alone has, and their ranks, by each node above them."""
    below: dict[LogicalPath, list[tuple[str, int]]] = collections.defaultdict(list)
    far = sides[1 - number].weights
    for path, row in sides[number].weights.items():
        if path in far:
            continue
        for end in range(1, len(path)):
            below[path[:end]].append(("/".join(path), len(row.leaf.dims)))
    return below


def _unstacked(alone: Iterable[tuple[str, int]], axes: Axes) -> Iterator[str]:
    """Leaves of one side alone, below a stacked node, that have no such axis: streams, as a rule."""
    for path, rank in alone:
        if isinstance(axes, int) and not -rank <= axes < rank:
            yield path


def _unstacked_in(
    given: Mapping[str, Axes], alone: Mapping[LogicalPath, Sequence[tuple[str, int]]]
) -> Iterator[str]:
    """The same below nodes that were given, but for leaves that a longer path names."""
    nodes = [*map(parse_path, given)]
    for node, axes in zip(nodes, given.values(), strict=True):
        longer = _Nodes([other for other in nodes if len(other) > len(node)])
        for path in _unstacked(alone.get(node, ()), axes):
            if parse_path(path) not in longer:
                yield path


def _of_sides(
    sides: ReadSides,
    node: str,
    axes: Axes | tuple[Axes, Axes],
    given: Sequence[LogicalPath],
) -> Iterator[tuple[int, Axes]]:
    """For which sides an axis was given: those that have the node, and not as a list, nor in one that was given."""
    path = parse_path(node)
    if isinstance(axes, tuple):
        for number, axis in enumerate(axes):
            # None is what a list has in the place of an axis; of a plain node it says: no stack.
            if axis is not None or not _is_list(sides[number], path):
                yield number, axis
        return
    having = [number for number in (0, 1) if _has_node(sides[number], path)]
    if not having:
        here, there = sides[0].name, sides[1].name
        hint = "write its path in the model, without params or model in front"
        fault = Mismatch(node, "rule", f"a node of {here} or {there}", "no such node", hint)
        raise DerivationError(f"scan= does not fit {here} or {there}", [fault])
    # The outermost node above this one of which an axis is said; it may be this one itself.
    stack = min([outer for outer in given if outer == path[: len(outer)]], key=len)
    around = _is_list(sides[0], stack), _is_list(sides[1], stack)
    inside = _is_list(sides[0], path), _is_list(sides[1], path)
    crossed = False, False
    if path != stack and around != inside and sorted(around) == sorted(inside) == [False, True]:
        # A list in a stack, and on the other side a stack in a list: the inner axis is that of the latter.
        crossed = around
    for number in having:
        if crossed[number] or not (around[number] or any(crossed)):
            yield number, axes


def _has_node(side: ReadSide, pattern: LogicalPath) -> bool:
    return any(glob_means(pattern, node) for node in side.nodes)


def _is_list(side: ReadSide, node: LogicalPath) -> bool:
    """Whether the last name of a node is that of a list: the first leaf in it tells."""
    for path, row in side.weights.items():
        if glob_means(node, path[: len(node)]):
            return row.path[(row.body or 0) + len(node) - 1].endswith("[]")
    return False


def _stacked_nodes(
    shared: Sequence[_Shared], given: Sequence[LogicalPath]
) -> Iterator[tuple[LogicalPath, list[_Leaf]]]:
    """The nodes that both sides have and one side stacks, or both, each with the leaves below it, but those that are given."""
    listed: dict[LogicalPath, list[_Leaf]] = collections.defaultdict(list)
    spoken = _Nodes(given)
    for path, leaf, levels in shared:
        # What is a list on both sides is one layer here. Of lists that differ twice `_crossed` tells.
        alone = {*levels[0]} ^ {*levels[1]}
        if len(alone) == 1 and path not in spoken:
            [(depth, count)] = alone
            listed[path[: depth + 1]].append(replaced(leaf, count=count))
    yield from listed.items()
    plain: dict[LogicalPath, _Leaf] = {}
    for path, leaf in _plain_leaves(shared):
        if path not in spoken:
            plain[path] = leaf
    yield from _moved((), plain)


class _Nodes:
    """Nodes, which globs may name, and all that stands in them."""

    def __init__(self, nodes: Iterable[LogicalPath]) -> None:
        self._nodes = frozenset(nodes)
        self._globs = [(*node, "**") for node in self._nodes if "*" in "".join(node)]

    def __contains__(self, path: LogicalPath) -> bool:
        """Whether a leaf stands in one of them."""
        if not self._nodes:
            return False
        # Most nodes are plain: to look up each beginning of a path is faster than to match patterns.
        inside = any(path[:end] in self._nodes for end in range(len(path) + 1))
        return inside or any(glob_means(glob, path) for glob in self._globs)


_Levels = Sequence[tuple[int, int]]


_Shared = tuple[LogicalPath, _Leaf, tuple[_Levels, _Levels]]
"""A leaf that both sides have, with its levels in lists on both."""


def _shared_leaves(sides: ReadSides) -> Iterator[_Shared]:
    """The leaves that both sides have, each with its levels in lists on both."""
    left, right = sides[0].weights, sides[1].weights
    for path, row in left.items():
        if path not in right:
            continue
        rows = row, right[path]
        shapes = told_shape(rows[0]), told_shape(rows[1])
        if shapes[0] is None or shapes[1] is None:
            continue
        leaf = _Leaf(path, (shapes[0], shapes[1]), (rows[0].kind, rows[1].kind))
        yield path, leaf, (_levels(rows[0]), _levels(rows[1]))


def _plain_leaves(shared: Sequence[_Shared]) -> Iterator[tuple[LogicalPath, _Leaf]]:
    """Those that both sides have in the same lists, or in none."""
    for path, leaf, levels in shared:
        if levels[0] == levels[1]:
            lists = tuple([depth for depth, _ in levels[0]])
            yield path, replaced(leaf, lists=lists) if lists else leaf


def _levels(row: Row) -> list[tuple[int, int]]:
    """The levels of a row in lists: where each stands in the model's path, and its count."""
    # Most rows repeat nothing.
    if not row.repeats:
        return []
    levels: list[tuple[int, int]] = []
    repeats = iter(row.repeats)
    for depth, segment in enumerate(row.model_path):
        # There is a repeat for each mark. The count of a declared layout may have a name.
        if segment.endswith("[]"):
            count = next(repeats).size[0]
            if isinstance(count, int):
                levels.append((depth, count))
    return levels


def _moved(
    node: LogicalPath, below: Mapping[LogicalPath, _Leaf]
) -> Iterator[tuple[LogicalPath, list[_Leaf]]]:
    """Nodes of which all leaves can have a stack axis moved, some certainly.

    A square leaf among them looks as if it stayed. It is stacked where its siblings are.
    """
    members = list(below.values())
    # One leaf alone is transposed, if its sizes say so.
    if sum(leaf.shapes[0] != leaf.shapes[1] for leaf in members) < 2:
        return
    is_list = any(len(node) - 1 in leaf.lists for leaf in members)
    if node and not is_list and _readings(members):
        yield node, members
        return
    # The highest node that can be read as a stack is one; if this is none, those in it are asked.
    children: dict[str, dict[LogicalPath, _Leaf]] = collections.defaultdict(dict)
    for path, leaf in below.items():
        children[path[len(node)]][path] = leaf
    for name, inner in children.items():
        if any(len(path) > len(node) + 1 for path in inner):
            yield from _moved((*node, name), inner)


def _crossed(shared: Sequence[_Shared], given: Sequence[LogicalPath]) -> Iterator[Mismatch]:
    """Faults for a list in a stack, where the other side has a stack in a list: two axes are to be said at once."""
    pairs: dict[tuple[tuple[LogicalPath, int], ...], list[_Leaf]] = collections.defaultdict(list)
    for path, leaf, (left, right) in shared:
        if not left and not right:
            continue
        lists = {*left} - {*right}, {*right} - {*left}
        if len(lists[0]) == len(lists[1]) == 1:
            # Each side stacks what the other has as a list.
            [(left_depth, first)], [(right_depth, second)] = lists[1], lists[0]
            stack, other = path[: left_depth + 1], path[: right_depth + 1]
            if not (_is_said(stack, given) and _is_said(other, given)):
                pairs[(stack, first), (other, second)].append(leaf)
    for ((left, first), (right, second)), members in pairs.items():
        readings: list[ScanLine] = []
        for leaves_by_axes in _crossed_readings(members, (first, second)):
            most = max(leaves_by_axes, key=lambda axes: len(leaves_by_axes[axes]))
            axes = {"/".join(left): (most[0], None), "/".join(right): (None, most[1])}
            # What other leaves have is said of them, below the outer of the two nodes.
            rest = otherwise(min(left, right, key=len), leaves_by_axes, most)
            readings.append({**axes, **dict(rest)})
        if readings:
            yield Mismatch(
                "/".join(max(left, right, key=len)),
                "ambiguous",
                "a list in a stack on both sides, or a stack in a list",
                "one on each side",
                f"say both axes: add {scan_lines(readings)}",
            )


def _crossed_readings(
    members: Sequence[_Leaf], counts: tuple[int, int]
) -> Iterator[Mapping[AxisPair, Sequence[LogicalPath]]]:
    """The ways to read leaves as stacked on one axis a side, those of each kind alike: which leaves on which."""
    ranks = range(_greatest_rank(members))
    groups = _by_kinds(members)
    fits: list[list[AxisPair]] = []
    for group in groups.values():
        fitting: list[AxisPair] = []
        for axes in itertools.product(ranks, ranks):
            if all(_is_crossed(leaf, axes, counts) for leaf in group):
                fitting.append(axes)
        fits.append(fitting)
    # Each kind for itself: kernels on axis 1 may go with any axis that streams fit.
    for way in itertools.product(*fits):
        leaves_by_axes: dict[AxisPair, list[LogicalPath]] = collections.defaultdict(list)
        for axes, group in zip(way, groups.values(), strict=True):
            leaves_by_axes[axes] += map(_path, group)
        yield leaves_by_axes


def _by_kinds(members: Iterable[_Leaf]) -> dict[Kinds, list[_Leaf]]:
    """Leaves by what both sides say of their kind: a Variable type, or a collection."""
    groups: dict[Kinds, list[_Leaf]] = collections.defaultdict(list)
    for leaf in members:
        groups[leaf.kinds].append(leaf)
    return groups


_path = operator.attrgetter("path")


def _greatest_rank(members: Iterable[_Leaf]) -> int:
    return max(max(map(len, leaf.shapes)) for leaf in members)


def _is_said(node: LogicalPath, given: Iterable[LogicalPath]) -> bool:
    return any(glob_means(one, node) for one in given)


def _is_crossed(leaf: _Leaf, axes: AxisPair, counts: tuple[int, int]) -> bool:
    """Whether the two sides are the same leaf, but for one axis each, of as many layers as the list of the other."""
    rests: list[list[int]] = []
    for shape, axis, count in zip(leaf.shapes, axes, counts, strict=True):
        if axis is None or axis >= len(shape) or shape[axis] != count:
            return False
        rests.append([*shape[:axis], *shape[axis + 1 :]])
    return rests[0] == rests[1]


_Order = tuple[int, ...]
"""Which axis of the one side each axis of the other is; of a list against a stack, the stacked axis alone."""


def _readings(members: Sequence[_Leaf]) -> dict[tuple[_Order, ...], AxisPair]:
    """The ways to read leaves as stacked on one axis a side, by what each makes of every leaf.

    An axis that is counted from the end is another reading where ranks differ. To move axis 0 to 1
    and to move axis 1 to 0 is one reading.
    """
    most = _greatest_rank(members)
    axes = [*range(most), *range(-1, -most - 1, -1)]
    # The side of which all leaves have an axis less has the list.
    more = [len(leaf.shapes[0]) - len(leaf.shapes[1]) for leaf in members]
    befores = [None] if max(more) < 0 else axes
    afters = [None] if min(more) > 0 else axes
    readings: dict[tuple[_Order, ...], AxisPair] = {}
    for reading in itertools.product(befores, afters):
        before, after = reading
        # Both sides count from the same end: a mixture would be a reading more, for nothing that is kept so.
        if before is not None and after is not None and (before < 0) != (after < 0):
            continue
        orders: list[_Order] = []
        counts: set[int | None] = set()
        for leaf in members:
            order = _read_so(leaf, reading)
            if order is None:
                break
            orders.append(order)
            counts.add(_layers(leaf, reading))
        if len(orders) == len(members) and len(counts) == 1:
            # Of readings that make the same of every leaf the first stays: the one from the front.
            readings.setdefault(tuple(orders), reading)
    return readings


def _layers(leaf: _Leaf, reading: AxisPair) -> int | None:
    """How many layers a leaf has by a reading that it allows: all leaves of a node have the same."""
    # Where both are stacked either tells, for the other axis is of the same size.
    side = 0 if reading[0] is not None else 1
    axis = reading[side]
    return None if axis is None else leaf.shapes[side][axis]


def _read_so(leaf: _Leaf, reading: AxisPair) -> _Order | None:
    """What a reading makes of the axes of one leaf; None where the leaf does not allow it.

    Of (3, 5, 7) and (5, 3, 7), axis 0 here and 1 there leave (5, 7) of 3 layers on both: (1, 0, 2).
    """
    layers: list[tuple[int, ...]] = []  # the shape of one, on each side
    counts: list[int | None] = []
    axes: list[int] = []
    for shape, axis in zip(leaf.shapes, reading, strict=True):
        if axis is None:
            layers.append(shape)
            counts.append(leaf.count)
            continue
        if not -len(shape) <= axis < len(shape):
            return None
        axis %= len(shape)
        layers.append(shape[:axis] + shape[axis + 1 :])
        counts.append(shape[axis])
        axes.append(axis)
    if layers[0] != layers[1] or counts[0] != counts[1]:
        return None
    if len(axes) == 1:
        return (axes[0],)
    order = [*range(len(leaf.shapes[0]))]
    order.remove(axes[0])
    order.insert(axes[1], axes[0])
    return tuple(order)


def _settled(
    node: LogicalPath, members: Sequence[_Leaf], faults: list[Mismatch]
) -> tuple[Mapping[str, Axes], Mapping[str, Axes]]:
    """The axes that a node is stacked on, on each side: for each kind of leaf, one for all kinds if they agree.

    Each kind must have one reading of its own: kernels on axis 1 may stand beside streams on axis 0,
    and a reading by which both are on axis 0 would not be the only one.
    """
    paths_of: dict[Kinds, list[LogicalPath]] = {}
    readings_of: dict[Kinds, list[AxisPair]] = {}
    for kinds, group in _by_kinds(members).items():
        readings = [*_readings(group).values()]
        # A kind that no axis fits is not stacked here; what is wrong with it derivation says.
        if readings:
            readings_of[kinds] = readings
            paths_of[kinds] = [*map(_path, group)]
    lines: list[ScanLine] = []
    for way in itertools.product(*readings_of.values()):
        if way:
            lines.append(line_of(node, dict(zip(readings_of, way, strict=True)), paths_of))
    if len(lines) > 1:
        faults.append(doubtful_node(node, len(members), lines))
        return {}, {}
    scans: tuple[dict[str, Axes], dict[str, Axes]] = ({}, {})
    for line in lines:
        for text, axes in line.items():
            for scan, axis in zip(scans, axes, strict=True):
                # None would say that the node is no stack; of a list nothing is said.
                if axis is not None:
                    scan[text] = axis
    return scans


# --- Leaves that look as if they stayed  ---


def _doubtful(
    shared: Sequence[_Shared], moved: Iterable[LogicalPath], given: Iterable[LogicalPath]
) -> Iterator[Mismatch]:
    """Leaves of equal shapes on both sides, which the move of an axis that others show would not change.

    They are doubtful where they have as many layers as those that move, or stand below a node of the same name.
    """
    stacks, told = _Nodes(moved), _Nodes(given)
    leaves = dict(_plain_leaves(shared))
    stays: dict[LogicalPath, _Leaf] = {}
    signs = _Signs()
    for path, leaf in leaves.items():
        if path in told:
            continue
        if leaf.shapes[0] != leaf.shapes[1]:
            signs.add(path, leaf, is_stacked=path in stacks)
        # In a node that moves as a whole a square leaf goes where its siblings go.
        elif path not in stacks:
            stays[path] = leaf
    ways: dict[LogicalPath, dict[_Order, AxisPair]] = collections.defaultdict(dict)
    known = signs.readings()
    for path, leaf in stays.items():
        for order, reading in signs.moves_of(path, leaf, known):
            if _changes(order, leaf.shapes[0]):
                ways[path[:-1] or path].setdefault(order, reading)
    for node, orders in ways.items():
        text = "/".join(node)
        # The last line says that the leaves do stay.
        lines = [f"scan={{{text!r}: {axes}}}" for axes in (*orders.values(), None)]
        yield Mismatch(
            text,
            "ambiguous",
            "leaves that show whether their layers are stacked on another axis, as others are",
            "equal sizes, which do not show it",
            f"the sizes do not tell; add one of {' or '.join(lines)}",
        )


class _Signs:
    """What leaves whose stack axis moves tell of those that look as if it stayed."""

    def __init__(self) -> None:
        """Knows of no leaf yet."""
        # The ways to read leaves: by the names that they stand below, and by how many layers they have.
        self._named: set[tuple[str, AxisPair]] = set()
        self._counted: set[tuple[int | None, AxisPair]] = set()
        self._kinds: dict[tuple[str, int | None], set[Kinds]] = collections.defaultdict(set)

    def add(self, path: LogicalPath, leaf: _Leaf, *, is_stacked: bool) -> None:
        """Takes in a leaf of other shapes on both sides; of a known stack the number of layers counts too."""
        for reading in _moves(leaf):
            count = _layers(leaf, reading)
            for name in path[:-1]:
                self._named.add((name, reading))
                self._kinds[name, count].add(leaf.kinds)
            if is_stacked:
                self._counted.add((count, reading))

    def readings(self) -> list[AxisPair]:
        """All ways to read the leaves, in an order that is the same each time: errors print them."""
        return sorted({reading for _, reading in self._named | self._counted}, key=str)

    def moves_of(
        self, path: LogicalPath, leaf: _Leaf, known: Iterable[AxisPair]
    ) -> Iterator[tuple[_Order, AxisPair]]:
        """How another leaf may be moved, by what is known of these."""
        for reading in known:
            order = _read_so(leaf, reading)
            if order is None:
                continue
            is_named = any((name, reading) in self._named for name in path[:-1])
            if is_named or (_layers(leaf, reading), reading) in self._counted:
                yield order, reading
        # Leaves of another kind may move otherwise in the same stack.
        for (order,), reading in _readings([leaf]).items() if self._kinds else ():
            near: set[Kinds] = set()
            for name in path[:-1]:
                near.update(self._kinds.get((name, _layers(leaf, reading)), ()))
            if near - {leaf.kinds}:
                yield order, reading


def _moves(leaf: _Leaf) -> list[AxisPair]:
    """All ways to read a leaf as stacked on both sides.

    Axis 0 moved to 1 and axis 1 moved to 0 make the same of it, and are of other numbers of layers.
    """
    left, right = leaf.shapes
    ways = itertools.product(range(len(left)), range(len(right)))
    return [way for way in ways if _read_so(leaf, way) is not None]


def _changes(order: _Order, shape: tuple[int, ...]) -> bool:
    """Whether another order of the axes is another order of the elements."""
    wide = [axis for axis in order if shape[axis] > 1]
    return wide != sorted(wide)
