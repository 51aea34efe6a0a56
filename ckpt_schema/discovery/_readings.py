"""Readings of two models: how the leaves of both are cut, and which hold other values than the other side's.

A reading under which both models have equal outputs at the shared point may be right. All are kept
that do, and the fewest changes come first.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ckpt_schema.discovery._cuts import (
    AxisSizes,
    LeafPiece,
    cuts_into,
    divided_factor,
    form_of,
    narrowed_factor,
    whole_piece,
)
from ckpt_schema.discovery._models import RunnableModel
from ckpt_schema.discovery._points import leaves_of, relative_gap, shared_values

__all__ = ["NEARLY", "Reading", "Recode", "Search", "kind_of_leaf"]

Models = tuple[RunnableModel, RunnableModel]

_ROUNDING = {True: 1e-6, False: 3e-5}
"""The largest difference of outputs at the shared point that rounding makes, in float64 and in float32."""

_EXACT = 1e-11
"""A difference of outputs that float64 makes; a reading that is worse is none where another is as good as this."""

NEARLY = 1e-3
"""The largest that another epsilon or an approximation makes; more is another function."""

_TIERS = 3

_NUMBER = re.compile(r"(?<![^/.'])\d+(?![^/.'])|(?<=_)\d+")


@dataclasses.dataclass(frozen=True, order=True)
class Recode:
    """How the values of a leaf of one side differ from those of the other side.

    Attributes:
        scale: The leaf holds this times the other side's value, ...
        offset: ... plus this.
        rotary: The size of a head and of the outer part of its axis, of which the other side has
            the two parts in the other order; (0, 0) where none is.
        axis: Which axis of the leaf the heads are on.
    """

    scale: float = 1.0
    offset: float = 0.0
    rotary: tuple[int, int] = (0, 0)
    axis: int = 0

    def __str__(self) -> str:
        """In words."""
        words = [] if self.scale == 1 else [f"times {self.scale:.6g}"]
        words += [] if not self.offset else [f"plus {self.offset:g}"]
        words += [] if not self.rotary[0] else [f"rotary order of heads of {self.rotary[0]}"]
        return " ".join(words)


Preference = Callable[[Sequence[list[LeafPiece]]], int]
"""Which of the ways to cut a leaf to begin with."""

Change = tuple[str, int, str, Any]
"""What, on which side, of which kind of leaves, and how: the number of a cut, or a `Recode`."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """How both models are read, and how far their outputs differ at the shared point."""

    changes: frozenset[Change]
    noise: float

    @property
    def recodes(self) -> list[tuple[int, str, Recode]]:
        """Which leaves hold other values: the side, the kind of leaf, and how."""
        return sorted(
            (side, kind, how) for what, side, kind, how in self.changes if what == "recode"
        )


def kind_of_leaf(name: str) -> str:
    """A name without the number of its layer: leaves of one kind are read alike.

    Example:
        >>> kind_of_leaf("layers/0/attention/query/kernel"), kind_of_leaf("Dense_0/kernel")
        ('layers/*/attention/query/kernel', 'Dense_*/kernel')
    """
    return _NUMBER.sub("*", name, count=1)


def _settled_forms(models: Models) -> set[AxisSizes]:
    """The forms that as many leaves of both models have: these are not cut."""
    counts = [
        collections.Counter(form_of(shape) for shape in model.shapes.values()) for model in models
    ]
    return {form for form, count in counts[0].items() if counts[1][form] == count}


def _reachable(models: Models) -> list[set[AxisSizes]]:
    """The forms that pieces of each model can have: those of its leaves, and of parts that the other one has.

    A leaf that the other model has, or can make of its own, need not be cut. Axes side by side may be
    one axis there, as heads are where a leaf is fused.
    """
    shapes = [set(model.shapes.values()) for model in models]
    whole = [{form_of(shape) for shape in own} for own in shapes]
    joined = [{form for shape in own for form in _joined_forms(shape)} for own in shapes]
    parts: list[dict[AxisSizes, set[AxisSizes]]] = []
    for side, own in enumerate(shapes):
        forms = whole[1 - side] | joined[1 - side]
        ways = {form_of(shape): cuts_into("", shape, forms) for shape in own}
        parts.append(
            {form: {piece.form for way in each for piece in way} for form, each in ways.items()}
        )
    made = [set[AxisSizes]().union(*own.values()) for own in parts]
    found: list[set[AxisSizes]] = []
    for side in (0, 1):
        others = whole[1 - side] | made[1 - side]
        cut = [parts[side][form] for form in whole[side] - others]
        found.append(whole[side].union(*cut) | (joined[side] & made[1 - side]))
    return found


def _joined_forms(shape: Sequence[int]) -> Iterator[AxisSizes]:
    """The forms of a leaf with two axes as one."""
    for at in range(len(shape) - 1):
        yield form_of([*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :]])


class Search:
    """The search for readings under which two models agree at the shared point."""

    def __init__(
        self, models: Models, seed: int, budget: float, known: Mapping[str, Recode]
    ) -> None:
        """Cuts the leaves of both models into pieces that the other can have too.

        Args:
            models: The source and the view.
            seed: Of the random values.
            budget: For how many seconds at most to search.
            known: Leaves of the view whose values are known to differ, and how.
        """
        self._models, self._seed, self._budget, self._known = models, seed, budget, known
        reach = _reachable(models)
        self._cuts: list[dict[str, list[list[LeafPiece]]]] = []
        settled = _settled_forms(models)
        for model, forms in zip(models, reach[::-1], strict=True):
            ways: dict[tuple[int, ...], list[list[LeafPiece]]] = {}
            for shape in set(model.shapes.values()):
                whole = [[whole_piece("", shape)]]
                stays = form_of(shape) in settled
                ways[shape] = whole if stays else cuts_into("", shape, forms)
            self._cuts.append({name: ways[shape] for name, shape in model.shapes.items()})
        # Heads may be joined with the axis before them or behind them: either is tried, on either side.
        starts = (
            (_first, _first),
            (_plainest, _plainest),
            (_first, _last_joined),
            (_last_joined, _first),
        )
        self._bases = list(dict.fromkeys(self._balanced(start) for start in starts))
        self._outputs: dict[tuple[int, frozenset[Change]], np.ndarray[Any, Any]] = {}
        self.tried = 0

    @property
    def agrees(self) -> float:
        """The largest difference of outputs that is none."""
        return _ROUNDING[all(model.wide for model in self._models)]

    def both_pieces(self, changes: frozenset[Change]) -> tuple[list[LeafPiece], list[LeafPiece]]:
        """The pieces of both models under a reading."""
        return self.pieces(0, changes), self.pieces(1, changes)

    def pieces(self, side: int, changes: frozenset[Change]) -> list[LeafPiece]:
        """The pieces of one model under a reading."""
        cut: dict[str, int] = {}
        recoded: dict[str, Recode] = {}
        halved: dict[int, int] = {}
        for what, at, kind, how in changes:
            if what == "halve":
                halved[int(kind)] = how
            elif at == side and what == "cut":
                cut[kind] = how
            elif at == side:
                recoded[kind] = how
        found: list[LeafPiece] = []
        for name, ways in self._cuts[side].items():
            kind = kind_of_leaf(name)
            recode = recoded.get(kind, self._known.get(name) if side else None)
            way = ways[min(cut.get(kind, 0), len(ways) - 1)]
            for piece in _halved(way, halved):
                own = dataclasses.replace(piece, leaf=name)
                found.append(own if recode is None else _recoded(own, recode))
        return found

    def readings(self) -> Iterator[list[Reading]]:
        """The readings that agree, in turns: those of the fewest changes first; at last the best of all."""
        start = time.monotonic()
        tried = {base: Reading(base, self._differ(base)) for base in self._bases}
        agreeing = [each for each in tried.values() if each.noise < self.agrees]
        if agreeing:
            yield agreeing[:1]
        for tier, base in itertools.product(range(_TIERS), self._bases):
            for more in self._tier(tier):
                changes = _changed(base, more)
                if changes in tried:
                    continue
                if time.monotonic() - start > self._budget:
                    break
                tried[changes] = Reading(changes, self._differ(changes))
            agreeing = sorted(
                (each for each in tried.values() if each.noise < self.agrees),
                key=lambda each: (len(each.changes), each.noise),
            )
            if agreeing:
                # What differs as little as the best does is as good: none is preferred.
                best = min(each.noise for each in agreeing)
                yield [each for each in agreeing if each.noise <= max(_EXACT, 30 * best)]
        yield sorted(tried.values(), key=lambda each: each.noise)[:4]

    def _balanced(self, preferred: tuple[Preference, Preference]) -> frozenset[Change]:
        """The cuts under which both models have as many pieces of each form: those of one function do.

        A stack of heads may have the form of another leaf as it stands; counting tells that it is none.
        """
        chosen: dict[tuple[int, str], int] = {}
        counts: dict[tuple[int, str], list[collections.Counter[AxisSizes]]] = {}
        for side, cuts in enumerate(self._cuts):
            for name, ways in cuts.items():
                each = [collections.Counter(piece.form for piece in way) for way in ways]
                kind = side, kind_of_leaf(name)
                own = counts.setdefault(kind, [collections.Counter() for _ in each])
                for number, total in enumerate(own):
                    total.update(each[min(number, len(each) - 1)])
                chosen[kind] = preferred[side](ways)
        gap: collections.Counter[AxisSizes] = collections.Counter()
        for kind, each in counts.items():
            _add(gap, each[chosen[kind]], 1 if kind[0] == 0 else -1)
        while any(gap.values()):
            best: tuple[int, tuple[int, str], int] | None = None
            for kind, each in counts.items():
                sign = 1 if kind[0] == 0 else -1
                for number in range(len(each)):
                    moved = each[number].copy()
                    moved.subtract(each[chosen[kind]])
                    gain = _total(gap, {}, sign) - _total(gap, moved, sign)
                    if gain > (0 if best is None else best[0]):
                        best = gain, kind, number
            if best is None:
                break
            _, kind, number = best
            sign = 1 if kind[0] == 0 else -1
            _add(gap, counts[kind][chosen[kind]], -sign)
            _add(gap, counts[kind][number], sign)
            chosen[kind] = number
        return frozenset(
            ("cut", side, kind, number) for (side, kind), number in chosen.items() if number
        )

    def _differ(self, changes: frozenset[Change]) -> float:
        self.tried += 1
        return relative_gap(self._output(0, changes), self._output(1, changes))

    def _output(self, side: int, changes: frozenset[Change]) -> np.ndarray[Any, Any]:
        own = frozenset(each for each in changes if each[1] == side or each[0] == "halve")
        found = self._outputs.get((side, own))
        if found is None:
            pieces = self.pieces(side, own)
            leaves = leaves_of(self._models[side], pieces, shared_values(pieces, self._seed))
            found = self._outputs[side, own] = self._models[side].run(leaves)
        return found

    def _tier(self, number: int) -> Iterator[frozenset[Change]]:
        """Changes to try: one, then two that are alike, then any two."""
        single = list(self._changes())
        if number == 0:
            yield from single
            return
        for one, other in itertools.combinations(single, 2):
            both = one | other
            is_two = len({each[:3] for each in both}) == len(one) + len(other)
            if is_two and _alike(both) == (number == 1):
                yield both

    def _changes(self) -> Iterator[frozenset[Change]]:
        """Changes of one kind of leaf, or of several that are treated alike."""
        for side, cuts in enumerate(self._cuts):
            kinds = {kind_of_leaf(name): len(ways) for name, ways in cuts.items()}
            for kind, count in kinds.items():
                for number in range(count):
                    yield frozenset({("cut", side, kind, number)})
        sizes = [
            {size for shape in model.shapes.values() for size in shape} for model in self._models
        ]
        for size in sorted(sizes[0] & sizes[1]):
            for parts in (2, 3, 4):
                if size % parts == 0 and size > parts:
                    yield frozenset({("halve", -1, str(size), parts)})
        yield from self._recodings(sizes[0] | sizes[1])

    def _recodings(self, sizes: set[int]) -> Iterator[frozenset[Change]]:
        """What the field does to values: scales by roots of sizes, offsets by one, the order of rotary pairs."""
        shapes = [
            {kind_of_leaf(name): shape for name, shape in model.shapes.items()}
            for model in self._models
        ]
        side = int(len(shapes[1]) >= len(shapes[0]))  # the one whose names tell more relative_gap
        divisors = sorted(
            {part for size in sizes for part in range(2, size + 1) if size % part == 0}
        )
        roots = {root for part in divisors for root in (part**0.5, part**-0.5)}
        recodes = [Recode(offset=-1.0), Recode(offset=1.0)]
        recodes += [Recode(scale=scale) for scale in sorted({-1.0, 2.0, 0.5} | roots)]
        for kinds in _treated_alike(shapes[side]):
            for recode in recodes:
                yield frozenset(("recode", side, kind, recode) for kind in kinds)
        for kind, shape in shapes[side].items():
            for axis, size in enumerate(shape):
                for head in divisors if len(shape) < 3 else [size]:
                    if head % 2 or head < 4 or size % head:
                        continue
                    for outer in sorted({2, head // 2}):
                        recode = Recode(rotary=(head, outer), axis=axis)
                        yield frozenset({("recode", side, kind, recode)})


def _last_joined(ways: Sequence[list[LeafPiece]]) -> int:
    """The last way to have the leaf in one piece."""
    return max((number for number, way in enumerate(ways) if len(way) == 1), default=0)


def _first(ways: Sequence[list[LeafPiece]]) -> int:
    """The way with the least cutting."""
    return 0


def _plainest(ways: Sequence[list[LeafPiece]]) -> int:
    """The way whose pieces have the fewest axes: heads that one leaf has on one axis are so in all."""
    ranks = [max(len(piece.form) for piece in way) for way in ways]
    return ranks.index(min(ranks))


def _add(gap: collections.Counter[AxisSizes], counts: Mapping[AxisSizes, int], sign: int) -> None:
    for form, count in counts.items():
        gap[form] += sign * count


def _total(gap: Mapping[AxisSizes, int], counts: Mapping[AxisSizes, int], sign: int) -> int:
    """How unlike the two models are with these pieces besides."""
    forms = gap.keys() | counts.keys()
    return sum(abs(gap.get(form, 0) + sign * counts.get(form, 0)) for form in forms)


def _changed(base: frozenset[Change], more: frozenset[Change]) -> frozenset[Change]:
    """A reading with other changes: a kind of leaf is cut in one way."""
    told = {each[:3] for each in more}
    return more | {each for each in base if each[:3] not in told}


def _treated_alike(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, ...]]:
    """Kinds of leaves that may hold other values together: each alone, all of one shape, all of one last name too."""
    found: dict[tuple[str, ...], None] = {}
    for kind, shape in shapes.items():
        alike = tuple(other for other, own in shapes.items() if own == shape)
        last = re.split("[/.]", kind)[-1]
        named = tuple(other for other in alike if re.split("[/.]", other)[-1] == last)
        found |= dict.fromkeys([(kind,), named, alike])
    yield from sorted(found, key=len)


def _alike(changes: frozenset[Change]) -> bool:
    """Whether leaves of several kinds are changed in the same way: a query and a key share a rotary order."""
    whats = {(what, side, how) for what, side, _, how in changes}
    return len(whats) == 1 and next(iter(whats))[0] != "cut"


def _halved(way: Sequence[LeafPiece], parts: Mapping[int, int]) -> list[LeafPiece]:
    """Pieces whose axes of given sizes are cut in as many parts, as gates are that both sides fuse otherwise."""
    found = list(way)
    for size, count in parts.items():
        for axis in range(max((len(piece.shape) for piece in found), default=0)):
            cut: list[LeafPiece] = []
            for piece in found:
                fits = axis < len(piece.shape) and piece.shape[axis] == size
                cut += _in_runs(piece, axis, count) if fits else [piece]
            found = cut
    return found


def _in_runs(piece: LeafPiece, at: int, count: int) -> list[LeafPiece]:
    """A piece in equal runs of one axis, where that axis is one factor."""
    if len(piece.axes[at]) > 1:
        return [piece]
    [number] = piece.axes[at]
    start, stop = piece.spans[number]
    step = (stop - start) // count
    firsts = range(start, stop, step)
    return [narrowed_factor(piece, number, (first, first + step)) for first in firsts]


def _recoded(piece: LeafPiece, recode: Recode) -> LeafPiece:
    """The piece of a leaf that holds other values."""
    own = dataclasses.replace(piece, scale=recode.scale, offset=recode.offset)
    head, outer = recode.rotary
    if not head:
        return own
    # The axis is heads times outer times inner here, and heads times inner times outer there.
    number = own.first_factor(recode.axis)
    sizes = own.factors[recode.axis]
    is_axis = any(number in axis for axis in own.axes)
    if len(sizes) != 1 or sizes[0] % head or not is_axis or own.spans[number] != (0, sizes[0]):
        return own
    return _swapped(divided_factor(own, number, (sizes[0] // head, outer, head // outer)), number)


def _swapped(piece: LeafPiece, number: int) -> LeafPiece:
    """The piece of which one factor has become three, with all of them in its axis, the last two in the other order."""
    order = (number, number + 2, number + 1)
    axes: list[tuple[int, ...]] = []
    for own in piece.axes:
        numbers: list[int] = []
        for each in own:
            numbers += order if each == number else (each,)
        axes.append(tuple(numbers))
    return dataclasses.replace(piece, axes=tuple(axes))
