"""What a caller knows of two models before they are run: rules, lists and stacks, as their leaves have them."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

from ckpt_schema._layouts.paths import LogicalPath, glob_means
from ckpt_schema._lens.adapt.siblings import with_lists
from ckpt_schema._lens.adapt.stacks import Scan, axes_of_sides
from ckpt_schema._lens.read_sides import ReadSide
from ckpt_schema._lens.rules import Fuse, Rename, Rule, verify_rules
from ckpt_schema._lens.value_rules import Factor, Offset
from ckpt_schema.discovery._layer_levels import Addresses, LayerLevels
from ckpt_schema.discovery._leaf_pieces import Recode
from ckpt_schema.discovery._leaf_ways import LeafWay, is_stack, layers_way
from ckpt_schema.discovery._models import DiscoveryError, RunnableModel
from ckpt_schema.discovery._roles import kind_of_leaf
from ckpt_schema.errors import Mismatch

__all__ = ["KnownLeaves", "known_leaves", "likely_stacks"]

Models = tuple[RunnableModel, RunnableModel]
Allowed = Mapping[str, frozenset[str]]
"""For leaves of one side that rules speak of, the leaves of the other side that they may be."""


@dataclasses.dataclass(frozen=True)
class KnownLeaves:
    """What is known of the leaves of two models.

    Attributes:
        rules: The rules that say it.
        levels: How each side is read: the lists and stacks that are given.
        stacks: For each side, the axes that a leaf is stacked on.
        recodes: Leaves of the view whose values differ, and how.
        allowed: For each side, which leaves of the other a leaf may be, where rules say it.
        parts: For each side, of how many parts a leaf is.
    """

    rules: tuple[Rule, ...] = ()
    levels: tuple[LayerLevels, LayerLevels] = (LayerLevels(), LayerLevels())
    stacks: tuple[Mapping[str, tuple[int, ...]], Mapping[str, tuple[int, ...]]] = ({}, {})
    recodes: Mapping[str, Recode] = dataclasses.field(default_factory=dict[str, Recode])
    allowed: tuple[Allowed, Allowed] = ({}, {})
    parts: tuple[Mapping[str, int], Mapping[str, int]] = ({}, {})

    def allows(self, source: str, view: str) -> bool:
        """Whether no rule says that two leaves are others."""
        here, there = self.allowed
        return view in here.get(source, (view,)) and source in there.get(view, (source,))

    def is_told(self, side: int, leaf: str) -> bool:
        """Whether a rule says what a leaf is."""
        return leaf in self.allowed[side]

    def mark(self, side: int, leaf: str) -> object:
        """What is known of how a leaf is cut; nothing, where that is left to be found."""
        stacks, parts = self.stacks[side].get(leaf), self.parts[side].get(leaf)
        return (stacks, parts) if stacks or parts else None

    def ways(self, side: int, leaf: str, ways: list[LeafWay]) -> list[LeafWay]:
        """The ways to cut a leaf that are what is known of it.

        Raises:
            DiscoveryError: There is none.
        """
        stacks, parts = self.stacks[side].get(leaf, ()), self.parts[side].get(leaf)
        if stacks:
            # Layers on the axis that is given: where no way has them, the leaf in layers is the one.
            apart = [way for way in ways if _is_in_layers(way, stacks)]
            ways = apart or [layers_way(ways[0].whole.leaf_shape, stacks)]
        if parts is None:
            return ways
        # A fuse of three on a stack of two layers is six pieces.
        shape = ways[0].whole.leaf_shape
        count = parts * math.prod(shape[axis] for axis in stacks)
        fitting = [way for way in ways if len(way) == count]
        if not fitting:
            hint = "give lists= and scan= if layers are stacked; see the sizes of the parts"
            sizes = " ".join(map(str, shape))
            found = f"{sizes}, which is not cut into the shapes of the other side"
            fault = Mismatch(leaf, "rule", f"{parts} parts", found, hint)
            raise DiscoveryError("rules= does not fit the models", [fault])
        return fitting


def known_leaves(
    models: Models,
    rules: Sequence[Rule],
    scan: Scan | None,
    lists: Sequence[str] | None,
    names: tuple[str, str],
) -> KnownLeaves:
    """What rules, stacks and lists say of the leaves of two models.

    Args:
        models: The source and the view.
        rules: Rules for `derive`.
        scan: As in `ckpt_schema.adapt`.
        lists: The same.
        names: What messages call the two.

    Raises:
        DiscoveryError: A rule names no leaf, or says what running the models cannot use.
        DerivationError: A list or a stack is on neither side.
    """
    verify_rules(rules)
    # Mostly nothing is known; then no layout is read, which takes long for many leaves.
    if not (rules or scan or lists):
        return KnownLeaves()
    # Read as `adapt` reads two trees, so that its words mean the same here.
    sides = (
        ReadSide.of(models[0].tree, names[0], getattr(models[0], "joined", None)),
        ReadSide.of(models[1].tree, names[1], getattr(models[1], "joined", None)),
    )
    sides = with_lists(sides, lists or (), rules)
    scans = axes_of_sides(sides, scan or {})
    # That rules call items of a list by their numbers, which keeps these apart, is known of each side.
    levels = (
        LayerLevels(sides[0].lists, {**sides[0].scan, **scans[0]}),
        LayerLevels(sides[1].lists, {**sides[1].scan, **scans[1]}),
    )
    both = (
        Addresses(models[0], levels[0], names[0]),
        Addresses(models[1], levels[1], names[1]),
    )
    reader = _RuleReader(both, names)
    for rule in rules:
        reader.read(rule)
    if reader.faults:
        raise DiscoveryError("rules= does not fit the models", reader.faults)
    return KnownLeaves(
        tuple(rules),
        levels,
        (_stacks(both[0]), _stacks(both[1])),
        reader.recodes,
        (_frozen(reader.allowed[0]), _frozen(reader.allowed[1])),
        reader.parts,
    )


def likely_stacks(models: Models, known: KnownLeaves) -> Iterator[KnownLeaves]:
    """What is known, and that nodes are stacks of layers, as their shapes and the names of the other side suggest it.

    A query, a key and a value of three layers are three leaves of as many indices; fused of three, so
    are the leaves of the layers. To cut other axes of these comes out even too, and cheaper.
    """
    nodes = [_nodes_by_layers(model) for model in models]
    # Of so many layers the other side has a list, or a stack.
    counts = [
        set(collections.Counter(map(kind_of_leaf, model.shapes)).values()) for model in models
    ]
    for layers in sorted({*nodes[0], *nodes[1]}):
        stacks: list[dict[str, tuple[int, ...]]] = []
        for side in (0, 1):
            is_there = layers in counts[1 - side] or layers in nodes[1 - side]
            leaves = nodes[side].get(layers, ()) if is_there else ()
            free = [leaf for leaf in leaves if known.mark(side, leaf) is None]
            stacks.append({**known.stacks[side], **dict.fromkeys(free, (0,))})
        both = stacks[0], stacks[1]
        if both != known.stacks:
            yield dataclasses.replace(known, stacks=both)


def _nodes_by_layers(model: RunnableModel) -> dict[int, list[str]]:
    """The leaves of nodes whose leaves all have one size of their first axis, and others behind it, by that size."""
    below: dict[tuple[str, ...], list[str]] = collections.defaultdict(list)
    for leaf in model.shapes:
        path = leaf.split("/")
        for depth in range(len(path)):
            below[tuple(path[:depth])].append(leaf)
    by_layers: dict[int, list[str]] = collections.defaultdict(list)
    done: set[str] = set()
    # From the root down: the highest node counts.
    for node in sorted(below, key=len):
        leaves = below[node]
        sizes = {model.shapes[leaf][0] if len(model.shapes[leaf]) > 1 else 0 for leaf in leaves}
        size = min(sizes)
        if len(leaves) > 1 and len(sizes) == 1 and size > 1 and done.isdisjoint(leaves):
            if is_stack(size):
                by_layers[size] += leaves
            done.update(leaves)
    return by_layers


def _stacks(side: Addresses) -> dict[str, tuple[int, ...]]:
    """The axes that each leaf is stacked on."""
    stacks: dict[str, tuple[int, ...]] = {}
    for leaf, (row, _) in side.slots.items():
        axes: list[int] = []
        for axis, (kind, _) in enumerate(row.axes):
            if kind == "level":
                axes.append(axis)
        if axes:
            stacks[leaf] = tuple(axes)
    return stacks


def _frozen(allowed: Mapping[str, set[str]]) -> Allowed:
    return {leaf: frozenset(others) for leaf, others in allowed.items()}


class _RuleReader:
    """Takes rules one after the other."""

    def __init__(self, sides: tuple[Addresses, Addresses], names: tuple[str, str]) -> None:
        self._sides, self._names = sides, names
        self.recodes: dict[str, Recode] = {}
        self.allowed: tuple[dict[str, set[str]], dict[str, set[str]]] = (
            collections.defaultdict(set),
            collections.defaultdict(set),
        )
        self.parts: tuple[dict[str, int], dict[str, int]] = {}, {}
        self.faults: list[Mismatch] = []

    def read(self, rule: Rule) -> None:
        """Takes what a rule says of leaves; what it says besides, the derivation takes."""
        if isinstance(rule, Factor):
            self._recode(rule, rule.path, scale=rule.factor)
        elif isinstance(rule, Offset):
            self._recode(rule, rule.path, offset=rule.amount)
        elif isinstance(rule, Rename):
            self._pair(rule, rule.source, rule.view)
        elif isinstance(rule, Fuse):
            self._fuse(rule)

    def _recode(self, rule: Rule, path: LogicalPath, **change: float | str) -> None:
        # scale("q", "head**0.5") is for all sizes. Here the models are run, at the sizes they have.
        if any(isinstance(value, str) for value in change.values()):
            hint = "these models have sizes: give the number that it is for them"
            self.faults.append(Mismatch(str(rule), "rule", "a number", "an expression", hint))
            return
        # Such rules name the view's path.
        leaves = self._leaves(1, path)
        self._expect(rule, path, 1, leaves)
        for leaf in leaves:
            # A leaf may be scaled and shifted, by two rules.
            before = self.recodes.get(leaf, Recode())
            self.recodes[leaf] = dataclasses.replace(before, **change)

    def _pair(self, rule: Rule, source: LogicalPath, view: LogicalPath) -> None:
        here, there = self._leaves(0, source), self._leaves(1, view)
        self._expect(rule, source, 0, here)
        self._expect(rule, view, 1, there)
        # A rename of a node: its leaves go by the names that they have below it.
        for leaf, rest in here.items():
            for other, other_rest in there.items():
                if rest == other_rest:
                    self._allow(leaf, other)

    def _fuse(self, rule: Fuse) -> None:
        # Either side may have the whole; a whole that neither has is expected of the view.
        side = 0 if self._leaves(0, rule.whole) else 1
        wholes = self._leaves(side, rule.whole)
        self._expect(rule, rule.whole, side, wholes)
        for path in rule.parts:
            parts = self._leaves(1 - side, path)
            self._expect(rule, path, 1 - side, parts)
            # Of layers in a list there are as many wholes: which is whose part, running tells.
            for whole in wholes:
                for part in parts:
                    source, view = (whole, part) if side == 0 else (part, whole)
                    self._allow(source, view)
        for whole in wholes:
            self.parts[side][whole] = len(rule.parts)

    def _allow(self, source: str, view: str) -> None:
        self.allowed[0][source].add(view)
        self.allowed[1][view].add(source)

    def _leaves(self, side: int, path: LogicalPath) -> dict[str, LogicalPath]:
        """The leaves that a path names, or that are below it, and what of their path is below it."""
        rests: dict[str, LogicalPath] = {}
        for leaf, (row, _) in self._sides[side].slots.items():
            # Rules may say a path in the model, or in the whole tree, as of optimizer states.
            for leaf_path in (row.model_path, row.path):
                for end in range(1, len(leaf_path) + 1):
                    if glob_means(path, leaf_path[:end]):
                        rests[leaf] = leaf_path[end:]
                        break
        return rests

    def _expect(
        self, rule: Rule, path: LogicalPath, side: int, leaves: Mapping[str, object]
    ) -> None:
        if not leaves:
            name = self._names[side]
            hint = "write its path in the model, without params in front, with [] behind a list"
            expected = f"a leaf of {name}, or a node"
            found = f"none at {'/'.join(path)!r}"
            self.faults.append(Mismatch(str(rule), "rule", expected, found, hint))


def _is_in_layers(way: LeafWay, stacks: Sequence[int]) -> bool:
    """Whether each piece of a way has one index of each of these axes."""
    # Pieces of one way have the same of each such axis, or none of them has one index of it.
    for piece in way.samples:
        for axis in stacks:
            start, stop = piece.spans[piece.first_factor(axis)]
            if stop != start + 1:
                return False
    return True
