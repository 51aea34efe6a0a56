"""How the leaves of both models are cut under a reading, and what they hold at the shared point."""

from __future__ import annotations

import bisect
import collections
import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from ckpt_schema.discovery._beforehand import KnownLeaves
from ckpt_schema.discovery._cuts import (
    AxisSizes,
    LeafPiece,
    Recode,
    cuts_into,
    divided_factor,
    form_of,
    joined_forms,
    narrowed_factor,
    unstacked_forms,
    whole_piece,
)
from ckpt_schema.discovery._models import RunnableModel
from ckpt_schema.discovery._points import in_axis_order, shared_block
from ckpt_schema.discovery._roles import kind_of_leaf

__all__ = ["Cutting", "ReadingChange", "ReadingChanges", "changed"]

Models = tuple[RunnableModel, RunnableModel]
Array = np.ndarray[Any, Any]
Counts = collections.Counter[AxisSizes]

_MOST_STATES = 400
_MOST_BASES = 24


@dataclasses.dataclass(frozen=True)
class ReadingChange:
    """One thing that a reading says of some leaves.

    Attributes:
        what: They are cut in one of the ways that they can be, they hold other values, or every axis of
            one size is cut in parts, on both sides.
        side: Of the source, 0, or of the view, 1; -1 for both.
        names: Which leaves; none where it is all.
        how: The number of the way, the `Recode`, or the size and the number of parts.
    """

    what: Literal["cut", "recode", "halve"]
    side: int
    names: tuple[str, ...]
    how: Any


ReadingChanges = frozenset[ReadingChange]
_Gap = frozenset[tuple[AxisSizes, int]]
_LeafReading = tuple[int, Recode | None, tuple[tuple[int, int], ...]]
"""Of one leaf: the number of its way, its values, and the sizes that are cut in parts."""


def changed(base: ReadingChanges, more: ReadingChanges) -> ReadingChanges:
    """A reading with other changes: a leaf is cut in one way, and holds its values in one."""
    found = set(more)
    for change in base:
        told: set[str] = set()
        for other in more:
            if (other.what, other.side) == (change.what, change.side):
                told |= set(other.names)
        rest = tuple(name for name in change.names if name not in told)
        if rest or change.what == "halve":
            found.add(dataclasses.replace(change, names=rest))
    return frozenset(found)


class Cutting:
    """The pieces of both models, and their values, under any reading. Each leaf is cut once in each way.

    Attributes:
        bases: The readings to begin with, which change no values: under each, both models have as many
            pieces of each form, as two models of one function do.
    """

    def __init__(self, models: Models, seed: int, known: KnownLeaves) -> None:
        """Finds the ways to cut each leaf into pieces that the other model can have too.

        Args:
            models: The source and the view.
            seed: Of the values at the shared point.
            known: What rules, lists and stacks say of the leaves.

        Raises:
            DiscoveryError: A leaf cannot be cut into the parts that a rule names.
        """
        self._models, self._seed, self._known = models, seed, known
        forms = _common_forms(models)
        settled = _settled_forms(models, known)
        self._ways: list[dict[object, list[list[LeafPiece]]]] = []
        for side, model in enumerate(models):
            ways: dict[object, list[list[LeafPiece]]] = {}
            for name, shape in model.shapes.items():
                likeness = self._likeness(side, name)
                if likeness not in ways:
                    stays = form_of(shape) in settled
                    whole = [[whole_piece("", shape)]]
                    ways[likeness] = known.ways(
                        side, name, whole if stays else cuts_into(shape, forms)
                    )
            self._ways.append(ways)
        self._cut: dict[tuple[int, str, _LeafReading], list[LeafPiece]] = {}
        self._held: dict[tuple[int, str, _LeafReading, AxisSizes | None], Array] = {}
        self._blocks: dict[AxisSizes, Array] = {}
        self.bases = self._balanced()

    def ways(self, side: int, name: str) -> Sequence[list[LeafPiece]]:
        """The ways to cut a leaf, the least cutting first."""
        return self._ways[side][self._likeness(side, name)]

    def _likeness(self, side: int, name: str) -> object:
        """What leaves have in common that can be cut in the same ways."""
        return tuple(self._models[side].shapes[name]), self._known.mark(side, name)

    def both_pieces(self, changes: ReadingChanges) -> tuple[list[LeafPiece], list[LeafPiece]]:
        """The pieces of both models under a reading."""
        return self.pieces(0, changes), self.pieces(1, changes)

    def pieces(self, side: int, changes: ReadingChanges) -> list[LeafPiece]:
        """The pieces of one model under a reading."""
        found: list[LeafPiece] = []
        for name, reading in self._leaf_readings(side, changes):
            found += self._leaf_pieces(side, name, reading)
        return found

    def shared_leaves(
        self, side: int, changes: ReadingChanges, muted: AxisSizes | None = None
    ) -> dict[str, Array]:
        """What the leaves of one model hold at the shared point under a reading.

        Args:
            side: Which model.
            changes: The reading.
            muted: A form all of whose pieces are zero instead.
        """
        found: dict[str, Array] = {}
        for name, reading in self._leaf_readings(side, changes):
            found[name] = self._leaf_values(side, name, reading, muted)
        return found

    def alike(self, base: ReadingChanges, most: int) -> Iterator[ReadingChanges]:
        """Readings with as many pieces of each form: leaves of up to so many groups are cut otherwise."""
        numbers: dict[tuple[int, str], int] = {}
        for change in base:
            numbers |= {(change.side, name): change.how for name in change.names}
        others: list[list[ReadingChange]] = []
        for side, names in self._groups(is_kind=False):
            ways = self.ways(side, names[0])
            own = numbers.get((side, names[0]), 0)
            alike: list[ReadingChange] = []
            for number, way in enumerate(ways):
                if number != own and _form_counts(way) == _form_counts(ways[own]):
                    alike.append(ReadingChange("cut", side, names, number))
            others += [alike] if alike else []
        for count in range(1, most + 1):
            for several in itertools.combinations(others, count):
                for changes in itertools.product(*several):
                    yield changed(base, frozenset(changes))

    def _leaf_readings(
        self, side: int, changes: ReadingChanges
    ) -> Iterator[tuple[str, _LeafReading]]:
        cut: dict[str, int] = {}
        recoded: dict[str, Recode] = {}
        halved: list[tuple[int, int]] = []
        for change in changes:
            if change.what == "halve":
                halved.append(change.how)
            elif change.side == side and change.what == "cut":
                for name in change.names:
                    cut[name] = change.how
            elif change.side == side:
                for name in change.names:
                    recoded[name] = change.how
        parts = tuple(sorted(halved))
        for name in self._models[side].shapes:
            recode = recoded.get(name, self._known.recodes.get(name) if side else None)
            yield name, (cut.get(name, 0), recode, parts)

    def _leaf_pieces(self, side: int, name: str, reading: _LeafReading) -> list[LeafPiece]:
        found = self._cut.get((side, name, reading))
        if found is None:
            number, recode, parts = reading
            ways = self.ways(side, name)
            found = []
            for piece in _halved(ways[min(number, len(ways) - 1)], dict(parts)):
                own = dataclasses.replace(piece, leaf=name)
                found.append(own if recode is None else _recoded(own, recode))
            self._cut[side, name, reading] = found
        return found

    def _leaf_values(
        self, side: int, name: str, reading: _LeafReading, muted: AxisSizes | None
    ) -> Array:
        pieces = self._leaf_pieces(side, name, reading)
        if all(piece.form != muted for piece in pieces):
            muted = None
        key = side, name, reading, muted
        found = self._held.get(key)
        if found is None:
            found = np.ones(self._models[side].shapes[name])
            for piece in pieces:
                block = np.zeros(piece.form) if piece.form == muted else self._block(piece.form)
                value = piece.scale * in_axis_order(block, piece) + piece.offset
                found.reshape(-1)[piece.places] = value
            self._held[key] = found
        return found

    def _block(self, form: AxisSizes) -> Array:
        found = self._blocks.get(form)
        if found is None:
            found = self._blocks[form] = shared_block(form, self._seed)
        return found

    # --- Where to begin  ---

    def _balanced(self) -> list[ReadingChanges]:
        """Ways to cut leaves under which both models have as many pieces of each form.

        A stack of heads may have the form of another leaf as it stands; counting tells that it is none.
        All leaves of one shape are cut alike, or where nothing comes out even so, those of one kind;
        where nothing does at all, what is the least unlike is begun with.
        """
        options: list[list[_Option]] = []
        for is_kind in (False, True):
            options = self._options(is_kind)
            found = _even(options)
            if found:
                return found
        return [_least_unlike(options)]

    def _options(self, is_kind: bool) -> list[list[_Option]]:
        """For each group of leaves that are cut alike, what they may be cut into.

        Leaves of one size come after one another, for they are likely each other's: so little is left
        over on the way.
        """
        found: list[tuple[int, list[_Option]]] = []
        for side, names in self._groups(is_kind=is_kind):
            size = math.prod(self._models[side].shapes[names[0]]) * len(names)
            found.append((size, self._group_options(side, names)))
        found.sort(key=lambda each: (each[0], len(each[1])))
        return [options for _, options in found]

    def _groups(self, *, is_kind: bool) -> Iterator[tuple[int, tuple[str, ...]]]:
        """The leaves of each side that are cut alike."""
        for side, model in enumerate(self._models):
            groups: dict[object, list[str]] = collections.defaultdict(list)
            for name in model.shapes:
                kind = kind_of_leaf(name) if is_kind else ""
                groups[self._likeness(side, name), kind].append(name)
            yield from ((side, tuple(names)) for names in groups.values())

    def _group_options(self, side: int, names: tuple[str, ...]) -> list[_Option]:
        sign = 1 if side == 0 else -1
        found: dict[object, _Option] = {}
        for number, way in enumerate(self.ways(side, names[0])):
            counts = _form_counts(way)
            total = Counts({form: sign * n * len(names) for form, n in counts.items()})
            change = ReadingChange("cut", side, names, number)
            option = _Option(
                total, len(way) - 1 + bool(number), frozenset({change} if number else ())
            )
            # Ways into the same forms are tried by the search.
            found.setdefault(frozenset(counts.items()), option)
        return list(found.values())


@dataclasses.dataclass(frozen=True)
class _Option:
    """What some leaves may be cut into.

    Attributes:
        counts: How many pieces of each form; those of the view are negative.
        cost: How much cutting it is.
        changes: The change that says it.
    """

    counts: Counts
    cost: int
    changes: ReadingChanges


_Entry = tuple[int, int, "_Chain"]
"""A choice of options so far: its cost, a number that no other has, and the options, the last first."""

_Chain = tuple["_Option", "_Chain"] | None


def _even(options: Sequence[Sequence[_Option]]) -> list[ReadingChanges]:
    """The choices of one option each whose counts add up to nothing, the least cutting first.

    Groups are gone through one after the other; what is kept of each choice is what does not yet come
    out even.
    """
    later = _forms_later(options)
    numbers = itertools.count()
    states: dict[_Gap, list[_Entry]] = {frozenset(): [(0, next(numbers), None)]}
    for at, each in enumerate(options):
        own = {form for option in each for form in option.counts}
        closing = (own if at == 0 else own | later[at - 1]) - later[at]
        following: dict[_Gap, list[_Entry]] = {}
        for gap, entries in states.items():
            before = dict(gap)
            for option in each:
                left = _gap_after(before, option, closing)
                if left is None:
                    continue
                kept = following.setdefault(left, [])
                for cost, _, chain in entries:
                    total = cost + option.cost
                    if len(kept) == _MOST_BASES and total >= kept[-1][0]:
                        break
                    bisect.insort(kept, (total, next(numbers), (option, chain)))
                    del kept[_MOST_BASES:]
        fewest = sorted(following.items(), key=lambda item: (len(item[0]), item[1][0][0]))
        states = dict(fewest[:_MOST_STATES])
    return [_chosen(chain) for _, _, chain in states.get(frozenset(), [])]


def _gap_after(
    before: Mapping[AxisSizes, int], option: _Option, closing: set[AxisSizes]
) -> _Gap | None:
    """What does not come out even with one option more; None where that is of a form that no later option has."""
    total = dict(before)
    for form, count in option.counts.items():
        total[form] = total.get(form, 0) + count
    if any(total.get(form) for form in closing):
        return None
    return frozenset(item for item in total.items() if item[1])


def _chosen(chain: _Chain) -> ReadingChanges:
    """The changes of all options of a choice."""
    found: ReadingChanges = frozenset()
    while chain is not None:
        option, chain = chain
        found |= option.changes
    return found


def _least_unlike(options: Sequence[Sequence[_Option]]) -> ReadingChanges:
    """The choice that leaves the forms least unlike; one option is bettered after the other."""
    chosen = [each[0] for each in options]
    gap: Counts = Counts()
    for option in chosen:
        gap.update(option.counts)
    while True:
        best: tuple[int, int, _Option, Counts] | None = None
        for at, each in enumerate(options):
            for option in each:
                moved = gap.copy()
                moved.subtract(chosen[at].counts)
                moved.update(option.counts)
                gain = _unlike(gap) - _unlike(moved)
                if gain > (0 if best is None else best[0]):
                    best = gain, at, option, moved
        if best is None:
            break
        _, at, option, gap = best
        chosen[at] = option
    found: ReadingChanges = frozenset()
    for option in chosen:
        found |= option.changes
    return found


def _unlike(gap: Counts) -> int:
    return sum(map(abs, gap.values()))


def _forms_later(options: Sequence[Sequence[_Option]]) -> list[set[AxisSizes]]:
    """For each place in the options, the forms that those behind it may still have."""
    found: list[set[AxisSizes]] = []
    forms: set[AxisSizes] = set()
    for each in reversed(options):
        found.append(set(forms))
        for option in each:
            forms |= option.counts.keys()
    return found[::-1]


def _settled_forms(models: Models, known: KnownLeaves) -> set[AxisSizes]:
    """The forms that as many leaves of both models have: these are not cut, unless they are known to be."""
    counts: list[Counts] = []
    for side, model in enumerate(models):
        own = [form_of(shape) for leaf, shape in model.shapes.items() if not known.mark(side, leaf)]
        counts.append(collections.Counter(own))
    return {form for form, count in counts[0].items() if counts[1][form] == count}


def _common_forms(models: Models) -> set[AxisSizes]:
    """The forms that pieces of both models can have.

    A leaf has the forms that come of it where stacks are taken apart and axes are joined, and those of
    parts of it that are leaves, or joined leaves, of the other model. Axes that the other model has
    apart as well are not joined.
    """
    shapes = [set(model.shapes.values()) for model in models]
    joined: list[set[AxisSizes]] = []
    apart: list[set[AxisSizes]] = []
    for own in shapes:
        forms = [form_of(shape) for shape in own]
        joined.append(set().union(*map(joined_forms, forms)))
        apart.append(set().union(*map(unstacked_forms, forms)))
    made = [set(forms) for forms in joined]
    for side, own in enumerate(shapes):
        for shape in own:
            apart[side] |= _forms_of(cuts_into(shape, joined[1 - side], joins=False))
            made[side] |= _forms_of(cuts_into(shape, joined[1 - side]))
    return (apart[0] & made[1]) | (made[0] & apart[1])


def _form_counts(way: Sequence[LeafPiece]) -> Counts:
    return collections.Counter(piece.form for piece in way)


def _forms_of(ways: Sequence[Sequence[LeafPiece]]) -> set[AxisSizes]:
    return {piece.form for piece in itertools.chain(*ways)}


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
