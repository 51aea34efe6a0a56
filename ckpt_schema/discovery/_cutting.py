"""How the leaves of both models are cut under a reading, and what they hold at the shared point."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from ckpt_schema.discovery._even_choices import (
    FormCounts,
    PieceOption,
    even_choices,
    least_unlike,
)
from ckpt_schema.discovery._known_leaves import KnownLeaves
from ckpt_schema.discovery._leaf_pieces import (
    AxisSizes,
    LeafPiece,
    Recode,
    divided_factor,
    form_of,
    narrowed_factor,
)
from ckpt_schema.discovery._leaf_ways import (
    LeafWay,
    cuts_into,
    forms_of_cuts,
    joined_forms,
    unstacked_forms,
    whole_way,
)
from ckpt_schema.discovery._models import RunnableModel
from ckpt_schema.discovery._points import in_axis_order, shared_block
from ckpt_schema.discovery._roles import kind_of_leaf

__all__ = ["Cutting", "ReadingChange", "ReadingChanges", "changed"]

Models = tuple[RunnableModel, RunnableModel]
Array = np.ndarray[Any, Any]


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
_LeafReading = tuple[int, Recode | None, tuple[tuple[int, int], ...]]
"""Of one leaf: the number of its way, its values, and the sizes that are cut in parts."""


def changed(base: ReadingChanges, more: ReadingChanges) -> ReadingChanges:
    """A reading with other changes: a leaf is cut in one way, and holds its values in one."""
    changes = set(more)
    for change in base:
        # What is said anew of some leaves stays as it was for the others of their group.
        anew: set[str] = set()
        for other in more:
            if (other.what, other.side) == (change.what, change.side):
                anew |= set(other.names)
        rest = tuple(name for name in change.names if name not in anew)
        # A change of a size names no leaves, and stays.
        if rest or change.what == "halve":
            changes.add(dataclasses.replace(change, names=rest))
    return frozenset(changes)


class Cutting:
    """The pieces of both models, and their values, under any reading. Each leaf is cut once in each way."""

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
        settled = _settled_forms(models, known)
        # Leaves of one shape have the same ways: a model of a hundred layers has a dozen shapes.
        self._ways: list[dict[object, list[LeafWay]]] = []
        for side, model in enumerate(models):
            ways: dict[object, list[LeafWay]] = {}
            for name, shape in model.shapes.items():
                likeness = self._likeness(side, name)
                if likeness not in ways:
                    stays = form_of(shape) in settled
                    possible = [whole_way(shape)] if stays else cuts_into(shape, self._forms)
                    ways[likeness] = known.ways(side, name, possible)
            self._ways.append(ways)
        # Thousands of readings are tried, and each is new for a few leaves alone: what the others
        # are cut into, and what they hold, is made once.
        self._cut: dict[tuple[int, str, _LeafReading], list[LeafPiece]] = {}
        self._held: dict[tuple[int, str, _LeafReading, AxisSizes | None], Array] = {}
        self._blocks: dict[AxisSizes, Array] = {}

    @functools.cached_property
    def _forms(self) -> set[AxisSizes]:
        # Not asked for where as many leaves of each form are on both sides: it takes long.
        return _common_forms(self._models)

    def ways(self, side: int, name: str) -> Sequence[LeafWay]:
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
        pieces: list[LeafPiece] = []
        for name, reading in self._leaf_readings(side, changes):
            pieces += self._leaf_pieces(side, name, reading)
        return pieces

    def shared_leaves(
        self, side: int, changes: ReadingChanges, muted: AxisSizes | None = None
    ) -> dict[str, Array]:
        """What the leaves of one model hold at the shared point under a reading.

        Args:
            side: Which model.
            changes: The reading.
            muted: A form all of whose pieces are zero instead.
        """
        leaves: dict[str, Array] = {}
        for name, reading in self._leaf_readings(side, changes):
            leaves[name] = self._leaf_values(side, name, reading, muted)
        return leaves

    def alike(self, base: ReadingChanges, most: int) -> Iterator[ReadingChanges]:
        """Readings with as many pieces of each form: leaves of up to so many groups are cut otherwise."""
        # The number of the way that the base cuts each leaf in; what it does not name stays whole.
        taken: dict[tuple[int, str], int] = {}
        for change in base:
            for name in change.names:
                taken[change.side, name] = change.how
        others: list[list[ReadingChange]] = []
        for side, names in self._groups(is_kind=False):
            ways = self.ways(side, names[0])
            current = taken.get((side, names[0]), 0)
            alike: list[ReadingChange] = []
            for number, way in enumerate(ways):
                if number != current and way.forms == ways[current].forms:
                    alike.append(ReadingChange("cut", side, names, number))
            if alike:
                others.append(alike)
        # One group alone first, then any two, and so on.
        for count in range(1, most + 1):
            for several in itertools.combinations(others, count):
                for changes in itertools.product(*several):
                    yield changed(base, frozenset(changes))

    def _leaf_readings(
        self, side: int, changes: ReadingChanges
    ) -> Iterator[tuple[str, _LeafReading]]:
        """What a reading says of each leaf of one model."""
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
            # The user's rules speak of the view's values; a change that is tried goes over them.
            recode = recoded.get(name, self._known.recodes.get(name) if side else None)
            yield name, (cut.get(name, 0), recode, parts)

    def _leaf_pieces(self, side: int, name: str, reading: _LeafReading) -> list[LeafPiece]:
        pieces = self._cut.get((side, name, reading))
        if pieces is None:
            number, recode, parts = reading
            ways = self.ways(side, name)
            pieces = []
            for nameless in _halved(ways[min(number, len(ways) - 1)], dict(parts)):
                piece = dataclasses.replace(nameless, leaf=name)
                pieces.append(piece if recode is None else _recoded(piece, recode))
            self._cut[side, name, reading] = pieces
        return pieces

    def _leaf_values(
        self, side: int, name: str, reading: _LeafReading, muted: AxisSizes | None
    ) -> Array:
        pieces = self._leaf_pieces(side, name, reading)
        # A leaf that has no piece of the muted form holds what it does when none is muted.
        if all(piece.form != muted for piece in pieces):
            muted = None
        key = side, name, reading, muted
        leaf = self._held.get(key)
        if leaf is None:
            leaf = np.ones(self._models[side].shapes[name])
            for piece in pieces:
                block = np.zeros(piece.form) if piece.form == muted else self._block(piece.form)
                value = piece.scale * in_axis_order(block, piece) + piece.offset
                leaf.reshape(-1)[piece.places] = value
            self._held[key] = leaf
        return leaf

    def _block(self, form: AxisSizes) -> Array:
        block = self._blocks.get(form)
        if block is None:
            block = self._blocks[form] = shared_block(form, self._seed)
        return block

    # --- Where to begin  ---

    def bases(self) -> Iterator[ReadingChanges]:
        """The readings to begin with, which change no values: both models have as many pieces of each form.

        So it is with two models of one function. A stack of heads may have the form of another leaf as
        it stands; counting tells that it is none. All leaves of one shape are cut alike, or where
        nothing comes out even so, those of one kind; where nothing does at all, what is the least
        unlike is begun with.
        """
        options: list[list[PieceOption]] = []
        for is_kind in (False, True):
            options = self._options(is_kind)
            is_even = False
            for base in even_choices(options):
                is_even = True
                yield base
            if is_even:
                return
        yield least_unlike(options)

    def _options(self, is_kind: bool) -> list[list[PieceOption]]:
        """For each group of leaves that are cut alike, what they may be cut into.

        Leaves of one size come after one another, for they are likely each other's: so little is left
        over on the way.
        """
        sized: list[tuple[int, list[PieceOption]]] = []
        for side, names in self._groups(is_kind=is_kind):
            size = math.prod(self._models[side].shapes[names[0]]) * len(names)
            sized.append((size, self._group_options(side, names)))
        sized.sort(key=lambda group: (group[0], len(group[1])))
        return [options for _, options in sized]

    def _groups(self, *, is_kind: bool) -> Iterator[tuple[int, tuple[str, ...]]]:
        """The leaves of each side that are cut alike."""
        for side, model in enumerate(self._models):
            groups: dict[object, list[str]] = collections.defaultdict(list)
            for name in model.shapes:
                kind = kind_of_leaf(name) if is_kind else ""
                groups[self._likeness(side, name), kind].append(name)
            for names in groups.values():
                yield side, tuple(names)

    def _group_options(self, side: int, names: tuple[str, ...]) -> list[PieceOption]:
        # The view's pieces are counted below zero, so that what is even adds up to nothing.
        sign = 1 if side == 0 else -1
        by_forms: dict[object, PieceOption] = {}
        for number, way in enumerate(self.ways(side, names[0])):
            total: FormCounts = FormCounts()
            for form, count in way.forms.items():
                total[form] = sign * count * len(names)
            # The first way is what a reading that says nothing takes, and so it costs the least.
            change = ReadingChange("cut", side, names, number)
            changes = frozenset({change} if number else ())
            option = PieceOption(total, len(way) - 1 + bool(number), changes)
            # Ways into the same forms are tried by the search.
            by_forms.setdefault(frozenset(way.forms.items()), option)
        return list(by_forms.values())


def _settled_forms(models: Models, known: KnownLeaves) -> set[AxisSizes]:
    """The forms that as many leaves of both models have: these are not cut, unless they are known to be."""
    counts: list[FormCounts] = []
    for side, model in enumerate(models):
        forms: FormCounts = FormCounts()
        for leaf, shape in model.shapes.items():
            if not known.mark(side, leaf):
                forms[form_of(shape)] += 1
        counts.append(forms)
    return {form for form, count in counts[0].items() if counts[1][form] == count}


def _common_forms(models: Models) -> set[AxisSizes]:
    """The forms that pieces of both models can have.

    A leaf has the forms that come of it where stacks are taken apart and axes are joined, and those of
    parts of it that are leaves, or joined leaves, of the other model. Axes that the other model has
    apart as well are not joined.
    """
    shapes = [set(model.shapes.values()) for model in models]
    # What each model can have of itself, with joined axes and without.
    joined: list[set[AxisSizes]] = []
    apart: list[set[AxisSizes]] = []
    for shapes_of_side in shapes:
        forms = [form_of(shape) for shape in shapes_of_side]
        joined.append(set().union(*map(joined_forms, forms)))
        apart.append(set().union(*map(unstacked_forms, forms)))
    # And what is part of a leaf here where it is a leaf there: a fused query, key and value.
    made = [set(forms) for forms in joined]
    for side, shapes_of_side in enumerate(shapes):
        for shape in shapes_of_side:
            apart[side] |= forms_of_cuts(shape, joined[1 - side], joins=False)
            made[side] |= forms_of_cuts(shape, joined[1 - side], joins=True)
    # One of the two has it without joining: what both only have joined, both have apart.
    return (apart[0] & made[1]) | (made[0] & apart[1])


def _halved(way: LeafWay, parts: Mapping[int, int]) -> list[LeafPiece]:
    """Pieces whose axes of given sizes are cut in as many parts, as gates are that both sides fuse otherwise."""
    pieces = list(way)
    for size, count in parts.items():
        most_axes = max((len(piece.shape) for piece in pieces), default=0)
        for axis in range(most_axes):
            cut: list[LeafPiece] = []
            for piece in pieces:
                fits = axis < len(piece.shape) and piece.shape[axis] == size
                cut += _in_runs(piece, axis, count) if fits else [piece]
            pieces = cut
    return pieces


def _in_runs(piece: LeafPiece, axis: int, count: int) -> list[LeafPiece]:
    """A piece in equal runs of one axis, where that axis is one factor."""
    if len(piece.axes[axis]) > 1:
        return [piece]
    [factor] = piece.axes[axis]
    start, stop = piece.spans[factor]
    step = (stop - start) // count
    runs: list[LeafPiece] = []
    for first in range(start, stop, step):
        runs.append(narrowed_factor(piece, factor, (first, first + step)))
    return runs


def _recoded(piece: LeafPiece, recode: Recode) -> LeafPiece:
    """The piece of a leaf that holds other values."""
    recoded = dataclasses.replace(piece, scale=recode.scale, offset=recode.offset)
    head, outer = recode.rotary
    if not head:
        return recoded
    # The axis is heads times outer times inner here, and heads times inner times outer there:
    # x1 x2 x3 y1 y2 y3 beside x1 y1 x2 y2 x3 y3.
    factor = recoded.first_factor(recode.axis)
    sizes = recoded.factors[recode.axis]
    is_axis = any(factor in factors for factors in recoded.axes)
    # What is cut on that axis already has no whole heads to order.
    if len(sizes) != 1 or sizes[0] % head or not is_axis:
        return recoded
    if recoded.spans[factor] != (0, sizes[0]):
        return recoded
    return _swapped(
        divided_factor(recoded, factor, (sizes[0] // head, outer, head // outer)), factor
    )


def _swapped(piece: LeafPiece, first: int) -> LeafPiece:
    """The piece of which one factor has become three, with all of them in its axis, the last two in the other order."""
    order = (first, first + 2, first + 1)
    axes: list[tuple[int, ...]] = []
    for factors in piece.axes:
        numbers: list[int] = []
        for factor in factors:
            numbers += order if factor == first else (factor,)
        axes.append(tuple(numbers))
    return dataclasses.replace(piece, axes=tuple(axes))
