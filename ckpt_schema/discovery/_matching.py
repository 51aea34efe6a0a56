"""Which piece of one model is which piece of the other, under one reading.

Pieces with equal gradients at the shared point are candidates. Those that are one to one are found;
they get values of their own on both sides, and the outputs must still agree: two functions may agree
at the shared point alone. What was asleep there, such as a router whose experts were all equal, wakes
then, and the rest is matched again, until nothing is added.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ckpt_schema.discovery._known_leaves import KnownLeaves
from ckpt_schema.discovery._leaf_pieces import AxisSizes, LeafPiece
from ckpt_schema.discovery._models import Leaves, RunnableModel
from ckpt_schema.discovery._points import gradients_at, orders, relative_gap
from ckpt_schema.discovery._proof import (
    Order,
    Pairs,
    PieceOrigin,
    Proof,
    ProofPoint,
    inverse_order,
)

__all__ = ["Choice", "Matched", "Pairing", "match_pieces"]

Array = np.ndarray[Any, Any]
_Ways = Mapping[tuple[int, int], Sequence[Order]]
_ROUNDS = 12
_MOST_LEFT = 3  # so many pieces of one form are told by trying all assignments
_MOST_TIED = 4
_MOST_CHOICES = 48
_MOST_SUMS = 60


@dataclasses.dataclass(frozen=True)
class Pairing:
    """A piece of the view, and what of the source it is.

    Attributes:
        view: The piece of the view.
        sources: The pieces of the source: one, or several of which it is the sum.
        orders: For each, which of its axes each axis of the view's piece is.
    """

    view: LeafPiece
    sources: tuple[LeafPiece, ...]
    orders: tuple[Order, ...]

    def made_of(self, leaves: Leaves) -> Array:
        """What the piece of the view holds where the source's leaves hold these values."""
        parts: list[Array] = []
        for piece, order in zip(self.sources, self.orders, strict=True):
            own = leaves[piece.leaf].reshape(-1)[piece.places].transpose(order)
            parts.append((own - piece.offset) / piece.scale)
        return self.view.scale * (sum(parts[1:], parts[0]) / len(parts)) + self.view.offset


@dataclasses.dataclass(frozen=True)
class Choice:
    """Pieces that running the models does not tell apart, and every assignment that leaves the outputs equal.

    What follows from an assignment is part of it: where the biases of two equal branches are exchanged,
    so are their kernels.
    """

    sources: tuple[LeafPiece, ...]
    views: tuple[LeafPiece, ...]
    options: tuple[tuple[Pairing, ...], ...]
    why: str


@dataclasses.dataclass(frozen=True)
class Matched:
    """What was found under one reading.

    Attributes:
        pairings: The pieces of the view that are told.
        choices: Those that are told but for a choice.
        merged: Those that two of the source have together: the view's function is the source's only where
            these two are equal.
        asleep: Pieces of each side that no value changes the outputs by, or that have no gradient.
        alone: Pieces of each side that have a gradient and no partner.
        inert: Whether no value of the view's pieces that are asleep changes its outputs.
        outputs: How far the outputs differ at independent random values of all that was found.
        gradients: How far the gradients of what was found differ there, at most.
        odd: Pieces of the view whose outputs agree and whose gradients do not, as where one is masked.
        noise: How far outputs differ at the shared point.
        nearest: The least difference of gradients that was refused.
        agrees: Whether the outputs agree at random values.
        values: The random values of both models that this was proved at.
    """

    pairings: tuple[Pairing, ...]
    choices: tuple[Choice, ...]
    merged: tuple[Pairing, ...]
    asleep: tuple[tuple[LeafPiece, ...], tuple[LeafPiece, ...]]
    alone: tuple[tuple[LeafPiece, ...], tuple[LeafPiece, ...]]
    inert: bool
    outputs: float
    gradients: float
    odd: tuple[LeafPiece, ...]
    noise: float
    nearest: float
    agrees: bool
    values: tuple[Leaves, Leaves]

    @property
    def complete(self) -> bool:
        """Whether everything that has a gradient has its place."""
        return self.agrees and self.inert and not self.merged and not any(self.alone)


def match_pieces(
    models: tuple[RunnableModel, RunnableModel],
    pieces: tuple[list[LeafPiece], list[LeafPiece]],
    noise: float,
    seed: int,
    known: KnownLeaves | None = None,
) -> Matched:
    """Matches the pieces of two models.

    Args:
        models: The source and the view.
        pieces: Their pieces, under a reading at which their outputs agree.
        noise: How far the outputs differ at the shared point.
        seed: Of the random values.
        known: Which leaves may be which, where that is known.
    """
    return _Matching(models, pieces, noise, seed, known or KnownLeaves()).result()


@dataclasses.dataclass(frozen=True)
class _Fork:
    """Where several assignments agreed and the first was taken to go on with.

    Attributes:
        options: The assignments.
        found: What was found before, ...
        chosen: ... and what was taken.
    """

    options: tuple[Pairs, ...]
    found: Pairs
    chosen: Pairs


class _Matching:
    """The state of one matching: what is found so far, and what a round adds."""

    def __init__(
        self,
        models: tuple[RunnableModel, RunnableModel],
        pieces: tuple[list[LeafPiece], list[LeafPiece]],
        noise: float,
        seed: int,
        known: KnownLeaves,
    ) -> None:
        self._models, self._pieces, self._noise, self._seed = models, pieces, noise, seed
        self._known_leaves = known
        # What rounding makes of outputs it makes of gradients, and more of it.
        self._tolerance = max(1e-9, min(1000 * noise, 3e-3))
        self._proof = Proof(models, pieces, noise, seed)
        self._found: Pairs = {}
        self._chosen: Pairs = {}
        self._forks: list[_Fork] = []
        self._nearest = math.inf
        self._gradients: tuple[list[Array], list[Array]] = [], []
        self._floor = 0.0

    def result(self) -> Matched:
        """Everything that is told."""
        self._go_on()
        is_whole = not any(self._left())
        return self._summary(self._choices() if is_whole else self._first_choice())

    def _go_on(self) -> None:
        """Matches until nothing is added."""
        for number in range(1, _ROUNDS):
            if not self._round(number):
                break

    @property
    def _known(self) -> Pairs:
        return self._found | self._chosen

    def _round(self, number: int) -> bool:
        """Matches what is left; whether anything was added."""
        self._see(self._proof.at(self._known, number))
        left, right = self._left()
        # A letter i is always a piece of the source, by its number, and j one of the view.
        edges = self._edges(left, right)
        several: collections.Counter[int] = collections.Counter()
        for candidates in edges.values():
            several.update({j for j, _ in candidates})
        # What has one candidate, in one order of axes, and is the only one to have it, is found.
        added: Pairs = {}
        for i, candidates in edges.items():
            if len(candidates) == 1 and several[candidates[0][0]] == 1:
                j, order = candidates[0]
                added[j] = ((i, order),)
        # Where there is none such, what gradients tell less plainly is tried, step by step.
        if not added:
            lone = [i for i in left if i not in edges], [j for j in right if not several[j]]
            added = self._sums(left, right, lone)
        if not added:
            added, chose = self._tried(edges, left, right, several)
            if chose:
                return True
        if not added:
            added = self._woken()
        if not added:
            return False
        # Equal gradients at the shared point may be chance: outputs at random values prove it.
        kept = self._proved(added, number)
        self._found |= kept
        return bool(kept)

    def _orders(self, i: int, j: int) -> Iterable[Order]:
        """The orders of axes that make a piece of the source one of the view; none where a rule says that it is another."""
        source, view = self._pieces[0][i], self._pieces[1][j]
        is_allowed = self._known_leaves.allows(source.leaf, view.leaf)
        return orders(source.shape, view.shape) if is_allowed else ()

    def _ways(self, members: Sequence[int], goals: Sequence[int]) -> _Ways:
        ways: dict[tuple[int, int], list[Order]] = {}
        for i, j in itertools.product(members, goals):
            ways[i, j] = list(self._orders(i, j))
        return ways

    def _see(self, point: ProofPoint) -> None:
        """Takes the gradients at a point."""
        by_side: list[list[Array]] = []
        sides = zip(self._models, self._pieces, point.leaves, point.outputs, strict=True)
        for model, pieces, leaves, outputs in sides:
            by_side.append(gradients_at(model, pieces, leaves, outputs, self._seed))
        self._gradients = by_side[0], by_side[1]
        # What is smaller than rounding makes of a common gradient is none.
        sizes = [_size(gradient) for gradient in by_side[0]]
        self._floor = self._tolerance * float(np.median(sizes)) if sizes else 0.0

    def _left(self) -> tuple[list[int], list[int]]:
        """The pieces of both sides that have a gradient and no partner yet."""
        # Asked once, not for each piece: `_known` is made anew each time.
        known = self._known
        used = {i for origins in known.values() for i, _ in origins}
        before, after = self._gradients
        left = [i for i, each in enumerate(before) if i not in used and _size(each) > self._floor]
        right = [j for j, each in enumerate(after) if j not in known and _size(each) > self._floor]
        return left, right

    def _edges(
        self, left: Sequence[int], right: Sequence[int]
    ) -> dict[int, list[tuple[int, Order]]]:
        """For each piece of the source, the pieces of the view whose gradients are equal, however they are turned.

        Only pieces of one form whose gradients are of one size are compared, and the next smaller and
        larger one, which tell how near another comes: near linear.
        """
        sources, views = self._pieces
        before, after = self._gradients
        by_form: dict[AxisSizes, list[tuple[float, int]]] = collections.defaultdict(list)
        for j in right:
            by_form[views[j].form].append((float(np.linalg.norm(after[j])), j))
        norms: dict[AxisSizes, Array] = {}
        for form, entries in by_form.items():
            entries.sort()
            norms[form] = np.array([norm for norm, _ in entries])
        edges: dict[int, list[tuple[int, Order]]] = {}
        for i in left:
            form = sources[i].form
            if form not in norms:
                continue
            # Turning keeps the norm. Arrays whose norms differ by more cannot be equal.
            norm = float(np.linalg.norm(before[i]))
            window = 2 * self._tolerance * norm
            low, high = np.searchsorted(norms[form], [norm - window, norm + window])
            candidates: list[tuple[int, Order]] = []
            for _, j in by_form[form][max(low - 1, 0) : high + 1]:
                for order in self._orders(i, j):
                    gap = relative_gap(before[i].transpose(order), after[j])
                    if gap <= self._tolerance:
                        candidates.append((j, order))
                    else:
                        self._nearest = min(self._nearest, gap)
            if candidates:
                edges[i] = candidates
        return edges

    def _proved(self, added: Pairs, number: int) -> Pairs:
        """Those of the new pairs under which the outputs agree at random values."""
        # All at once takes one run. Only if they fail together is each tried by itself.
        if self._proof.agrees(self._known | added, number + 20):
            return added
        kept: Pairs = {}
        for j, origins in added.items():
            trial = self._known | kept | {j: origins}
            if self._proof.agrees(trial, number + 20, number + 40):
                kept[j] = origins
        return kept

    def _sums(
        self, left: Sequence[int], right: Sequence[int], lone: tuple[list[int], list[int]]
    ) -> Pairs:
        """One piece for two of the other side: stored twice there, or added up there.

        A piece that is used twice has the sum of both gradients.
        """
        sources, views = self._pieces
        before, after = self._gradients
        if max(map(len, lone)) >= _MOST_SUMS:
            return {}
        # One leaf of the source is two of the view.
        for i in lone[0]:
            alike = [j for j in lone[1] if views[j].form == sources[i].form]
            for one, other in itertools.combinations(alike, 2):
                turns = itertools.product(self._orders(i, one), self._orders(i, other))
                for first, second in turns:
                    back = inverse_order(first), inverse_order(second)
                    total = after[one].transpose(back[0]) + after[other].transpose(back[1])
                    if relative_gap(before[i], total) <= self._tolerance:
                        return {one: ((i, first),), other: ((i, second),)}
        # Two leaves of the source are added up, or one is stored twice.
        for j in lone[1]:
            alike = [i for i in lone[0] if sources[i].form == views[j].form]
            for one, other in itertools.combinations(alike, 2):
                turns = itertools.product(self._orders(one, j), self._orders(other, j))
                for first, second in turns:
                    total = before[one].transpose(first) + before[other].transpose(second)
                    if relative_gap(total, after[j]) <= self._tolerance:
                        return {j: ((one, first), (other, second))}
        return {}

    def _tried(
        self,
        edges: Mapping[int, Sequence[tuple[int, Order]]],
        left: Sequence[int],
        right: Sequence[int],
        several: Mapping[int, int],
    ) -> tuple[Pairs, bool]:
        """Tries the few assignments of pieces that gradients do not tell: one that alone agrees is found.

        Returns:
            New pairs, and whether several agreed, of which one was taken to go on with.
        """
        for members, goals, ways in self._ties(edges, left, right, several):
            good: list[Pairs] = []
            options = _assignments(members, goals, ways)
            for option in itertools.islice(options, _MOST_CHOICES):
                if self._proof.agrees(self._known | option, 50, 51):
                    good.append(option)
            if len(good) == 1:
                return good[0], False
            if good:
                fork = _Fork(tuple(good), dict(self._found), dict(self._chosen))
                self._forks.append(fork)
                self._chosen |= good[0]
                return {}, True
        return {}, False

    def _woken(self) -> Pairs:
        """Pieces without a gradient whose values matter all the same, as of a choice of the largest: the outputs tell."""
        asleep = self._asleep()
        sources, views = self._pieces
        for form in dict.fromkeys(sources[i].form for i in asleep[0]):
            members = [i for i in asleep[0] if sources[i].form == form]
            goals = [j for j in asleep[1] if views[j].form == form]
            if not len(members) == len(goals) <= _MOST_LEFT:
                continue
            good: list[Pairs] = []
            for trial in _assignments(members, goals, self._ways(members, goals)):
                if self._proof.agrees(self._known | trial, 60, 61):
                    good.append(trial)
                # Two are no answer, as where no value matters: more runs would not change that.
                if len(good) > 1:
                    break
            if len(good) == 1 and all(self._proof.matters(self._known | good[0], j) for j in goals):
                return good[0]
        return {}

    def _asleep(self) -> tuple[list[int], list[int]]:
        """The pieces of both sides that have no partner and no gradient."""
        left, right = map(set, self._left())
        known = self._known
        used = {i for origins in known.values() for i, _ in origins}
        sources = [i for i in range(len(self._pieces[0])) if i not in used and i not in left]
        views = [j for j in range(len(self._pieces[1])) if j not in known and j not in right]
        return sources, views

    def _ties(
        self,
        edges: Mapping[int, Sequence[tuple[int, Order]]],
        left: Sequence[int],
        right: Sequence[int],
        several: Mapping[int, int],
    ) -> Iterable[tuple[list[int], list[int], _Ways]]:
        """Groups of as many pieces on both sides, and how each may be turned into each."""
        # First those that gradients bring together: as many pieces with the same candidates.
        groups: dict[frozenset[int], list[int]] = collections.defaultdict(list)
        for i, candidates in edges.items():
            groups[frozenset(j for j, _ in candidates)].append(i)
        for goals, members in groups.items():
            if len(members) == len(goals) <= _MOST_TIED:
                ways: dict[tuple[int, int], list[Order]] = collections.defaultdict(list)
                for i in members:
                    for j, order in edges[i]:
                        ways[i, j].append(order)
                yield sorted(members), sorted(goals), ways
        sources, views = self._pieces
        spare: dict[AxisSizes, tuple[list[int], list[int]]] = {}
        for i in left:
            if i not in edges:
                spare.setdefault(sources[i].form, ([], []))[0].append(i)
        for j in right:
            if not several[j]:
                spare.setdefault(views[j].form, ([], []))[1].append(j)
        for members, goals in spare.values():
            if len(members) == len(goals) <= _MOST_LEFT:
                yield members, goals, self._ways(members, goals)

    def _pairing(self, number: int, origins: Sequence[PieceOrigin]) -> Pairing:
        sources, views = self._pieces
        return Pairing(
            views[number],
            tuple(sources[i] for i, _ in origins),
            tuple(order for _, order in origins),
        )

    def _choices(self) -> list[Choice]:
        """The choices that were met, each with what follows from it; the last first.

        What was found after a choice was found for the assignment that was taken. So the matching is
        gone on with once more for each other assignment, and what comes out otherwise belongs to it.
        """
        taken: set[int] = set()
        choices: list[Choice] = []
        for fork in reversed(self._forks):
            ways = [self._known]
            is_last = self._found.keys() == fork.found.keys() and fork is self._forks[-1]
            for option in fork.options[1:]:
                way = self._known | option if is_last else self._way(fork, option)
                if way.keys() == self._known.keys():
                    ways.append(way)
            rest = sorted(self._known.keys() - taken)
            differing = [j for j in rest if any(way[j] != ways[0][j] for way in ways)]
            options = [{number: way[number] for number in differing} for way in ways]
            options = self._holding(options)
            # The others lead nowhere: what was taken is told.
            if len(options) < 2:
                self._found |= options[0]
                continue
            taken.update(differing)
            choices.append(self._choice(options))
        for number in taken:
            self._chosen[number] = self._known[number]
            self._found.pop(number, None)
        return choices

    def _first_choice(self) -> list[Choice]:
        """The first choice that was met, where pieces are left alone whatever is chosen.

        There is no lens, so what follows from each choice is not asked, which may take long: what was
        found after the first is told no more.
        """
        if not self._forks:
            return []
        first = self._forks[0]
        self._found, self._chosen = dict(first.found), dict(first.options[0])
        return [self._choice(first.options)]

    def _way(self, fork: _Fork, option: Pairs) -> Pairs:
        """Everything that is told where another assignment is taken."""
        given = self._models, self._pieces, self._noise, self._seed, self._known_leaves
        other = _Matching(*given)
        other._found = dict(fork.found)
        other._chosen = fork.chosen | option
        other._go_on()
        return other._known

    def _holding(self, options: Sequence[Pairs]) -> list[Pairs]:
        """Those under which the outputs agree, each once."""
        holding = [options[0]]
        for option in options[1:]:
            if option not in holding and self._proof.agrees(self._known | option, 70, 71):
                holding.append(option)
        return holding

    def _choice(self, options: Sequence[Pairs]) -> Choice:
        sources, views = self._pieces
        members = {i for origins in options[0].values() for i, _ in origins}
        pairings: list[tuple[Pairing, ...]] = []
        for option in options:
            pairings.append(tuple(self._pairing(j, origins) for j, origins in option.items()))
        return Choice(
            tuple(sources[i] for i in sorted(members)),
            tuple(views[j] for j in options[0]),
            tuple(pairings),
            f"{len(options)} assignments leave the outputs equal",
        )

    def _summary(self, choices: Sequence[Choice]) -> Matched:
        """What is told, proved once more at fresh values."""
        sources, views = self._pieces
        known = self._known
        point = self._proof.at(known, 99)
        self._see(point)
        before, after = self._gradients
        used = collections.Counter(i for i, _ in itertools.chain(*known.values()))
        # The gradient of a leaf that is used twice is a sum: it is equal to none of the view's.
        gaps: dict[int, float] = {}
        for j, origins in self._found.items():
            if len(origins) == 1 and used[origins[0][0]] == 1:
                [(i, order)] = origins
                gaps[j] = relative_gap(before[i].transpose(order), after[j])
        merged: list[Pairing] = []
        for j, origins in known.items():
            if len(origins) > 1 and not self._proof.is_sum(j, origins):
                merged.append(self._pairing(j, origins))
        live, asleep = self._left(), self._asleep()
        return Matched(
            pairings=tuple(self._pairing(j, origins) for j, origins in self._found.items()),
            choices=tuple(choices),
            merged=tuple(merged),
            asleep=(
                tuple(sources[i] for i in asleep[0]),
                tuple(views[j] for j in asleep[1]),
            ),
            alone=(tuple(sources[i] for i in live[0]), tuple(views[j] for j in live[1])),
            inert=self._proof.is_inert(point, asleep),
            outputs=point.gap,
            gradients=max(gaps.values(), default=0.0),
            odd=tuple(views[j] for j, gap in gaps.items() if gap > 10 * self._tolerance),
            noise=self._noise,
            nearest=self._nearest,
            agrees=point.gap <= self._proof.bound,
            values=point.leaves,
        )


def _assignments(members: Sequence[int], goals: Sequence[int], ways: _Ways) -> Iterator[Pairs]:
    """Every way to make each of some pieces of the view of one of the source, in every order of axes."""
    for perm in itertools.permutations(members):
        origins_of_goals: list[list[tuple[PieceOrigin, ...]]] = []
        for i, j in zip(perm, goals, strict=True):
            origins_of_goals.append([((i, order),) for order in ways.get((i, j), ())])
        for origins in itertools.product(*origins_of_goals):
            yield dict(zip(goals, origins, strict=True))


def _size(gradient: Array) -> float:
    return float(np.sqrt(np.mean(gradient**2))) if gradient.size else 0.0
