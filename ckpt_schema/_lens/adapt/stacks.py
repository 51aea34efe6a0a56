"""Nodes whose layers one side stacks, or both on two axes: those that are given, and those of which one reading exists."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ckpt_schema._layouts.immutable import immutable, replaced
from ckpt_schema._layouts.paths import LogicalPath, glob_means, parse_path
from ckpt_schema._layouts.table import Row
from ckpt_schema._lens.adapt.scan_lines import ScanLine, scan_lines
from ckpt_schema._lens.read_sides import Axes, ReadSide, ReadSides, told_shape
from ckpt_schema._messages.text import counted
from ckpt_schema.errors import DerivationError, Mismatch

__all__ = ["Scan", "axes_of_sides", "with_stacks"]

Scan = Mapping[str, Axes | tuple[Axes, Axes]]
"""The axis for each stacked node; two where both sides are stacked, the source's first."""


@immutable
class _Leaf:
    """A leaf that is stacked on one side or both, as both sides have it."""

    path: LogicalPath  # in the model, without marks of repetition
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    kinds: tuple[Any, Any]
    count: int | None = None  # of the list that one side has
    lists: tuple[int, ...] = ()  # segments of its path that are lists on both sides


_Reading = tuple[int | None, int | None]
"""The axis on each side that all leaves of a node are stacked on; None where a side has a list."""


def with_stacks(sides: ReadSides, given: Scan) -> ReadSides:
    """Both sides with their stacks: those that are given, and those of which one reading exists."""
    scans = axes_of_sides(sides, given)
    spoken = [parse_path(node) for node in given]
    alone = _leaves_of_one(sides, 0), _leaves_of_one(sides, 1)
    for scan, lone in zip(scans, alone, strict=True):
        scan.update(dict.fromkeys(_unstacked_in(scan, lone)))
    faults: list[Mismatch] = []
    moved: list[LogicalPath] = []
    shared = [*_shared_leaves(sides)]
    for node, members in _stacked_nodes(shared, spoken):
        text = "/".join(node)
        moved.append(node)
        for at, found in enumerate(_settled(node, members, faults)):
            scans[at].update(found)
            scans[at].update(dict.fromkeys(_unstacked(alone[at].get(node, ()), found.get(text))))
    faults += _doubtful(shared, moved, spoken)
    faults += _crossed(shared, spoken)
    if faults:
        here, there = (side.name for side in sides)
        unique = {fault.path: fault for fault in faults}
        raise DerivationError(
            f"{here} and {there} can be read in more than one way",
            [*_with_globs(unique.values())],
        )
    left, right = sides
    return left.read(scan=scans[0]), right.read(scan=scans[1])


def axes_of_sides(sides: ReadSides, given: Scan) -> tuple[dict[str, Axes], dict[str, Axes]]:
    """Which of the axes that are given are of which side."""
    scans: tuple[dict[str, Axes], dict[str, Axes]] = ({}, {})
    spoken = [parse_path(node) for node in given]
    for node, axes in given.items():
        for at, axis in _of_sides(sides, node, axes, spoken):
            scans[at][node] = axis
    return scans


_NUMBER = re.compile(r"\d+(?=/|$)")
"""That of a sibling, in a path."""


def _with_globs(faults: Iterable[Mismatch]) -> Iterator[Mismatch]:
    """The faults, where those of siblings that differ in their number alone have one line, which settles all of them."""
    alike: dict[str, list[Mismatch]] = collections.defaultdict(list)
    for fault in faults:
        alike[fault.hint.replace(fault.path, _NUMBER.sub("*", fault.path))].append(fault)
    for hint, several in alike.items():
        for fault in several:
            yield dataclasses.replace(fault, hint=hint if len(several) > 1 else fault.hint)


def _leaves_of_one(sides: ReadSides, at: int) -> dict[LogicalPath, list[tuple[str, int]]]:
    """The leaves that one side alone has, and their ranks, by each node above them."""
    below: dict[LogicalPath, list[tuple[str, int]]] = collections.defaultdict(list)
    other = sides[1 - at].weights
    for path, row in sides[at].weights.items():
        for end in range(1, len(path)) if path not in other else ():
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
    nodes = {text: parse_path(text) for text in given}
    for text, axes in given.items():
        node = nodes[text]
        longer = _Nodes(other for other in nodes.values() if len(other) > len(node))
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
        for at, axis in enumerate(axes):
            if axis is not None or not _is_list(sides[at], path):
                yield at, axis
        return
    has = [at for at in (0, 1) if any(glob_means(path, one) for one in sides[at].nodes)]
    if not has:
        here, there = (side.name for side in sides)
        hint = "write its path in the model, without params or model in front"
        fault = Mismatch(node, "rule", f"a node of {here} or {there}", "no such node", hint)
        raise DerivationError(f"scan= does not fit {here} or {there}", [fault])
    stack = min([one for one in given if one == path[: len(one)]], key=len)
    around, inside = ([_is_list(side, one) for side in sides] for one in (stack, path))
    crossed = [False, False]
    if path != stack and around != inside and sorted(around) == sorted(inside) == [False, True]:
        # A list in a stack, and on the other side a stack in a list: the inner axis is that of the latter.
        crossed = around
    for at in has:
        if crossed[at] or not (around[at] or any(crossed)):
            yield at, axes


def _is_list(side: ReadSide, node: LogicalPath) -> bool:
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
        alone = {*levels[0]} ^ {*levels[1]}  # what is a list on both sides is one layer here
        if len(alone) == 1 and path not in spoken:
            [(at, count)] = alone
            listed[path[: at + 1]].append(replaced(leaf, count=count))
    yield from listed.items()
    plain = {path: leaf for path, leaf in _plain_leaves(shared) if path not in spoken}
    yield from _moved((), plain)


class _Nodes:
    """Nodes, which globs may name, and all that stands in them."""

    def __init__(self, nodes: Iterable[LogicalPath]) -> None:
        self._nodes = frozenset(nodes)
        starred = (node for node in self._nodes if any("*" in segment for segment in node))
        self._globs = [(*node, "**") for node in starred]

    def __contains__(self, path: LogicalPath) -> bool:
        """Whether a leaf stands in one of them."""
        if not self._nodes:
            return False
        inside = any(path[:end] in self._nodes for end in range(len(path) + 1))
        return inside or any(glob_means(glob, path) for glob in self._globs)


_Levels = Sequence[tuple[int, int]]


_Shared = tuple[LogicalPath, _Leaf, tuple[_Levels, _Levels]]
"""A leaf that both sides have, with its levels in lists on both."""


def _shared_leaves(sides: ReadSides) -> Iterator[_Shared]:
    """The leaves that both sides have, each with its levels in lists on both."""
    left, right = (side.weights for side in sides)
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
            lists = tuple([at for at, _ in levels[0]])
            yield path, replaced(leaf, lists=lists) if lists else leaf


def _levels(row: Row) -> list[tuple[int, int]]:
    """The levels of a row in lists: where each stands in the model's path, and its count."""
    if not row.repeats:
        return []
    marks = [at for at, segment in enumerate(row.model_path) if segment.endswith("[]")]
    return [
        (at, int(repeat.size[0]))
        for at, repeat in zip(marks, row.repeats, strict=True)
        if isinstance(repeat.size[0], int)
    ]


def _moved(
    node: LogicalPath, below: Mapping[LogicalPath, _Leaf]
) -> Iterator[tuple[LogicalPath, list[_Leaf]]]:
    """Nodes of which all leaves can have a stack axis moved, some certainly.

    A square leaf among them looks as if it stayed. It is stacked where its siblings are.
    """
    differing = [leaf for leaf in below.values() if leaf.shapes[0] != leaf.shapes[1]]
    if len(differing) < 2:  # one leaf alone is transposed, if its sizes say so
        return
    members = list(below.values())
    is_list = any(len(node) - 1 in leaf.lists for leaf in members)
    if node and not is_list and _readings(members):
        yield node, members
        return
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
        if [len(own) for own in lists] == [1, 1]:
            # Each side stacks what the other has as a list.
            stacks = [(path[: at + 1], count) for at, count in (*lists[1], *lists[0])]
            if not all(_is_said(node, given) for node, _ in stacks):
                pairs[tuple(stacks)].append(leaf)
    for stacks, members in pairs.items():
        ((left, first), (right, second)) = stacks
        readings: list[ScanLine] = []
        for each in _crossed_readings(members, (first, second)):
            most = max(each, key=lambda axes: len(each[axes]))
            axes = {"/".join(left): (most[0], None), "/".join(right): (None, most[1])}
            rest = _otherwise(min(left, right, key=len), each, most)
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
) -> Iterator[Mapping[_Reading, Sequence[LogicalPath]]]:
    """The ways to read leaves as stacked on one axis a side, those of each kind alike: which leaves on which."""
    ranks = range(max(len(shape) for leaf in members for shape in leaf.shapes))
    groups: dict[tuple[Any, Any], list[_Leaf]] = collections.defaultdict(list)
    for leaf in members:
        groups[leaf.kinds].append(leaf)
    fits: list[list[_Reading]] = []
    for inner in groups.values():
        both = itertools.product(ranks, ranks)
        fits.append([axes for axes in both if all(_is_crossed(x, axes, counts) for x in inner)])
    for way in itertools.product(*fits):
        each: dict[_Reading, list[LogicalPath]] = collections.defaultdict(list)
        for axes, inner in zip(way, groups.values(), strict=True):
            each[axes] += [leaf.path for leaf in inner]
        yield each


def _is_said(node: LogicalPath, given: Iterable[LogicalPath]) -> bool:
    return any(glob_means(one, node) for one in given)


def _is_crossed(leaf: _Leaf, axes: _Reading, counts: tuple[int, int]) -> bool:
    """Whether the two sides are the same leaf, but for one axis each, of as many layers as the list of the other."""
    rests: list[list[int]] = []
    for shape, axis, count in zip(leaf.shapes, axes, counts, strict=True):
        if axis is None or axis >= len(shape) or shape[axis] != count:
            return False
        rests.append([*shape[:axis], *shape[axis + 1 :]])
    return rests[0] == rests[1]


_Order = tuple[int, ...]
"""Which axis of the one side each axis of the other is; of a list against a stack, the stacked axis alone."""


def _readings(members: Sequence[_Leaf]) -> dict[tuple[_Order, ...], _Reading]:
    """The ways to read leaves as stacked on one axis a side, by what each makes of every leaf.

    An axis that is counted from the end is another reading where ranks differ. To move axis 0 to 1
    and to move axis 1 to 0 is one reading.
    """
    most = max(len(shape) for leaf in members for shape in leaf.shapes)
    axes = [*range(most), *range(-1, -most - 1, -1)]
    lists = [
        [None] if all(len(leaf.shapes[at]) < len(leaf.shapes[1 - at]) for leaf in members) else axes
        for at in (0, 1)
    ]
    found: dict[tuple[_Order, ...], _Reading] = {}
    for before in lists[0]:
        for after in lists[1]:
            if before is not None and after is not None and (before < 0) != (after < 0):
                continue
            each = tuple(_read_so(leaf, (before, after)) for leaf in members)
            whole = tuple(one for one in each if one is not None)
            if len(whole) == len(each) and len({_layers(m, (before, after)) for m in members}) == 1:
                found.setdefault(whole, (before, after))
    return found


def _layers(leaf: _Leaf, reading: _Reading) -> int | None:
    """How many layers a leaf has by a reading that it allows: all leaves of a node have the same."""
    at = 0 if reading[0] is not None else 1
    axis = reading[at]
    return None if axis is None else leaf.shapes[at][axis]


def _read_so(leaf: _Leaf, reading: _Reading) -> _Order | None:
    """What a reading makes of the axes of one leaf; None where the leaf does not allow it."""
    items: list[tuple[int, ...]] = []
    counts: list[int | None] = []
    axes: list[int] = []
    for shape, axis in zip(leaf.shapes, reading, strict=True):
        if axis is None:
            items.append(shape)
            counts.append(leaf.count)
            continue
        if not -len(shape) <= axis < len(shape):
            return None
        at = axis % len(shape)
        items.append(shape[:at] + shape[at + 1 :])
        counts.append(shape[at])
        axes.append(at)
    if items[0] != items[1] or counts[0] != counts[1]:
        return None
    if len(axes) == 1:
        return (axes[0],)
    order = [at for at in range(len(leaf.shapes[0])) if at != axes[0]]
    return (*order[: axes[1]], axes[0], *order[axes[1] :])


def _settled(
    node: LogicalPath, members: Sequence[_Leaf], faults: list[Mismatch]
) -> tuple[Mapping[str, Axes], Mapping[str, Axes]]:
    """The axes that a node is stacked on, on each side: for each kind of leaf, one for all kinds if they agree.

    Each kind must have one reading of its own: kernels on axis 1 may stand beside streams on axis 0,
    and a reading by which both are on axis 0 would not be the only one.
    """
    groups: dict[tuple[Any, Any], list[_Leaf]] = collections.defaultdict(list)
    for leaf in members:
        groups[leaf.kinds].append(leaf)
    each = {kinds: [*_readings(inner).values()] for kinds, inner in groups.items()}
    each = {kinds: readings for kinds, readings in each.items() if readings}
    ways = [dict(zip(each, way, strict=True)) for way in itertools.product(*each.values())]
    found = [_stacks(node, way, groups) for way in ways if way]
    if len(found) > 1:
        faults.append(_ambiguous(node, len(members), found))
        return {}, {}
    stacks = next(iter(found), {})
    left, right = (
        {text: axes[at] for text, axes in stacks.items() if axes[at] is not None} for at in (0, 1)
    )
    return left, right


def _stacks(
    node: LogicalPath,
    way: Mapping[tuple[Any, Any], _Reading],
    groups: Mapping[tuple[Any, Any], Sequence[_Leaf]],
) -> ScanLine:
    """Axes as they are said: one for all, or one for each kind, or for leaves that no kind tells apart by their paths."""
    text = "/".join(node)
    if all(_kinds_tell(way, at) for at in (0, 1)):
        return {text: (_by_side(way, 0), _by_side(way, 1))}
    each: dict[_Reading, list[LogicalPath]] = collections.defaultdict(list)
    for kinds, reading in way.items():
        each[reading] += [leaf.path for leaf in groups[kinds]]
    # What most leaves have is said of the node.
    most = max(each, key=lambda reading: len(each[reading]))
    return {text: most, **dict(_otherwise(node, each, most))}


def _otherwise(
    node: LogicalPath, each: Mapping[_Reading, Sequence[LogicalPath]], most: _Reading
) -> Iterator[tuple[str, _Reading]]:
    """The paths of the leaves in a node that are read otherwise than most, and how."""
    for reading, own in each.items():
        if reading != most:
            others = [path for other, inner in each.items() if other != reading for path in inner]
            yield from ((path, reading) for path in _called(node, own, others))


def _kinds_tell(way: Mapping[tuple[Any, Any], _Reading], at: int) -> bool:
    """Whether the kinds of one side tell on which axis a leaf is stacked there."""
    own = {(kinds[at], reading[at]) for kinds, reading in way.items()}
    return len({axis for _, axis in own}) == 1 or (
        len({kind for kind, _ in own}) == len(own) and not any(kind is None for kind, _ in own)
    )


def _called(
    node: LogicalPath, own: Sequence[LogicalPath], others: Sequence[LogicalPath]
) -> list[str]:
    """Paths of some leaves in a node: one name on the way to them that leads to no others, or else each."""
    for end in range(1, min(map(len, own)) - len(node) + 1):
        names = {path[-end] for path in own}
        if len(names) == 1 and not any(names.intersection(path[len(node) :]) for path in others):
            return ["/".join((*node, "**", *names))]
    return ["/".join(path) for path in own]


def _by_side(way: Mapping[tuple[Any, Any], _Reading], at: int) -> Axes:
    """One axis for all kinds, or one for each."""
    own = {kinds[at]: axis for kinds, reading in way.items() if (axis := reading[at]) is not None}
    if len(set(own.values())) > 1:
        return own
    return next(iter(own.values()), None)


def _ambiguous(node: LogicalPath, count: int, readings: Iterable[ScanLine]) -> Mismatch:
    """The fault for a node that is stacked on one of several axes, and the lines that settle it."""
    text = "/".join(node)
    expected = f"one axis that the layers of {text} are stacked on"
    found = f"several that fit {counted(count, 'leaf', 'leaves')} each"
    hint = f"the sizes do not tell; add one of {scan_lines(readings)}"
    return Mismatch(text, "ambiguous", expected, found, hint)


# --- Leaves that look as if they stayed  ---


def _doubtful(
    shared: Sequence[_Shared], moved: Iterable[LogicalPath], given: Iterable[LogicalPath]
) -> Iterator[Mismatch]:
    """Leaves of equal shapes on both sides, which the move of an axis that others show would not change.

    They are doubtful where they have as many layers as those that move, or stand below a node of the same name.
    """
    stacks, told = _Nodes(moved), _Nodes(given)
    leaves = dict(_plain_leaves(shared))
    shown = {path: leaf for path, leaf in leaves.items() if leaf.shapes[0] != leaf.shapes[1]}
    signs: set[tuple[str, _Reading]] = set()
    counts: set[tuple[int | None, _Reading]] = set()
    kinds: dict[tuple[str, int | None], set[tuple[Any, Any]]] = collections.defaultdict(set)
    for path, leaf in shown.items():
        if path in told:
            continue
        inside = path in stacks
        for reading in _moves(leaf):
            count = _layers(leaf, reading)
            signs.update((name, reading) for name in path[:-1])
            for name in path[:-1]:
                kinds[name, count].add(leaf.kinds)
            if inside:
                counts.add((count, reading))
    ways: dict[LogicalPath, dict[_Order, _Reading]] = collections.defaultdict(dict)
    known = sorted({reading for _, reading in signs | counts}, key=str)
    for path, leaf in leaves.items():
        if path in shown or path in stacks or path in told:
            continue
        for reading in known:
            order = _read_so(leaf, reading)
            if order is None or not _changes(order, leaf.shapes[0]):
                continue
            named = any((name, reading) in signs for name in path[:-1])
            if named or (_layers(leaf, reading), reading) in counts:
                ways[path[:-1] or path].setdefault(order, reading)
        # Leaves of another kind may move otherwise in the same stack.
        for (order,), reading in _readings([leaf]).items() if kinds else ():
            count = _layers(leaf, reading)
            near = set[tuple[Any, Any]]().union(*(kinds.get((n, count), ()) for n in path[:-1]))
            if near - {leaf.kinds} and _changes(order, leaf.shapes[0]):
                ways[path[:-1] or path].setdefault(order, reading)
    for node, orders in ways.items():
        text = "/".join(node)
        lines = [f"scan={{{text!r}: {axes}}}" for axes in (*orders.values(), None)]
        yield Mismatch(
            text,
            "ambiguous",
            "leaves that show whether their layers are stacked on another axis, as others are",
            "equal sizes, which do not show it",
            f"the sizes do not tell; add one of {' or '.join(lines)}",
        )


def _moves(leaf: _Leaf) -> list[_Reading]:
    """All ways to read a leaf as stacked on both sides.

    Axis 0 moved to 1 and axis 1 moved to 0 make the same of it, and are of other numbers of layers.
    """
    left, right = (range(len(shape)) for shape in leaf.shapes)
    return [way for way in itertools.product(left, right) if _read_so(leaf, way) is not None]


def _changes(order: _Order, shape: tuple[int, ...]) -> bool:
    """Whether another order of the axes is another order of the elements."""
    wide = [axis for axis in order if shape[axis] > 1]
    return wide != sorted(wide)
