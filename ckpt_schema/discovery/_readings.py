"""Readings of two models: how the leaves of both are cut, and which hold other values than the other side's.

A reading under which both models have equal outputs at the shared point may be right. All are kept
that do, and the fewest changes come first.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ckpt_schema.discovery._candidate_changes import Candidates
from ckpt_schema.discovery._cutting import Cutting, ReadingChange, ReadingChanges, changed
from ckpt_schema.discovery._known_leaves import KnownLeaves, likely_stacks
from ckpt_schema.discovery._leaf_pieces import AxisSizes
from ckpt_schema.discovery._models import RunnableModel
from ckpt_schema.discovery._mutes import Suspicion
from ckpt_schema.discovery._points import relative_gap

__all__ = ["NEARLY", "Reading", "Search", "turns_of"]

Models = tuple[RunnableModel, RunnableModel]

_ROUNDING = {True: 1e-6, False: 3e-5}
"""The largest difference of outputs at the shared point that rounding makes, in float64 and in float32."""

_EXACT = 1e-11
"""A difference of outputs that float64 makes; a reading that is worse is none where another is as good as this."""

_ROUNDED = 1e-9
"""The largest difference that rounding in float64 alone makes of a model."""

NEARLY = 1e-3
"""The largest that another epsilon or an approximation makes; more is another function."""

_VARIED = 3  # of the bases of the least cutting, so many are varied, each in so many ways
_MOST_VARIANTS = 200
_VARIED_LEAVES = 3  # leaves of other shapes at once, as a query, a key and a value are
_MOST_SINGLE = 2500
_MOST_PAIRS = 1000
_MOST_UNSUSPECTED = 600  # readings that muting speaks against, where nothing else is left
_DEEPEST = 3  # changes of unlike leaves, one after the other
_MOST_LIKELY = 3  # numbers of layers that leaves may be stacks of
_BASES = 4  # of those that do not agree, so many are changed


@dataclasses.dataclass(frozen=True)
class Reading:
    """How both models are read, and how far their outputs differ at the shared point."""

    changes: ReadingChanges
    noise: float

    @property
    def recodes(self) -> list[ReadingChange]:
        """Which leaves hold other values, and how."""
        return [change for change in self.changes if change.what == "recode"]


class Search:
    """The search for readings under which two models agree at the shared point.

    Attributes:
        tried: How many readings were tried.
        cutting: The pieces of both models.
    """

    def __init__(self, models: Models, seed: int, budget: int, known: KnownLeaves) -> None:
        """Cuts the leaves of both models into pieces that the other can have too.

        Args:
            models: The source and the view.
            seed: Of the random values.
            budget: How many readings to try at most.
            known: What rules, lists and stacks say of the leaves.
        """
        self._models, self._seed, self._budget = models, seed, budget
        self.cutting = Cutting(models, seed, known)
        self._outputs: dict[tuple[int, ReadingChanges, AxisSizes | None], np.ndarray[Any, Any]] = {}
        self._read_so_far: dict[ReadingChanges, Reading] = {}
        self._bases: list[Reading] = []
        self._suspicions: list[Suspicion] = []
        self.tried = 0

    @property
    def agrees(self) -> float:
        """The largest difference of outputs that is none."""
        return _ROUNDING[all(model.wide for model in self._models)]

    @property
    def suspects(self) -> tuple[frozenset[str], frozenset[str]] | None:
        """The fewest leaves of each side among which is all that differs; None where muting tells nothing."""
        told = [suspicion.suspects for suspicion in self._suspicions]
        known = [suspects for suspects in told if suspects is not None]
        return min(known, key=lambda suspects: sum(map(len, suspects)), default=None)

    def base_readings(self) -> Iterator[list[Reading]]:
        """The readings that agree where leaves are cut alone, one after the other."""
        # Most pairs of models agree here, where cutting is all that tells them apart. It is a
        # generator, so that the caller matches what it gets before more is searched.
        for number, base in enumerate(self.cutting.bases()):
            reading = self._reading(base)
            self._bases.append(reading)
            if reading.noise >= self.agrees and number < _VARIED:
                reading = self._variant(base) or reading
            if reading.noise < self.agrees:
                yield [reading]

    def changed_readings(self) -> Iterator[list[Reading]]:
        """Those that agree where values differ too, in turns, after the bases; at last the best of all."""
        yield from self._changed(self._bases[:_BASES])
        yield self._as_good_as_the_best()

    def _variant(self, base: ReadingChanges) -> Reading | None:
        """A base that agrees where some of its leaves are cut otherwise, into as many pieces of the same forms.

        It comes before bases that cut more: of layers stacked on another axis of the same size, these
        agree too, and no rule says what they find.
        """
        for changes in itertools.islice(self.cutting.alike(base, _VARIED_LEAVES), _MOST_VARIANTS):
            reading = self._reading(changes)
            if reading.noise < self.agrees:
                return reading
        return None

    def _changed(self, bases: list[Reading]) -> Iterator[list[Reading]]:
        """Changes of each base: one; two that are alike; any that muting tells apart; any two."""
        # What is tried gets wider and dearer from step to step, and a step that brings the models
        # to agree is the last.
        candidates = Candidates(self._models, self.cutting, self._seed)
        self._suspicions = [self._suspicion(base.changes) for base in bases]
        both = list(zip(bases, self._suspicions, strict=True))
        for base, suspicion in both:
            self._try(base, candidates.allowed(suspicion), _MOST_SINGLE)
        yield from self._agreeing()
        for base, suspicion in both:
            self._try(base, candidates.alike_pairs(suspicion), _MOST_PAIRS)
        yield from self._agreeing()
        for base, suspicion in both[:2]:
            self._peel(base, suspicion, candidates, _DEEPEST)
        yield from self._agreeing()

        # How near a change alone has come; one that muting spoke against was not tried.
        def alone(change: ReadingChange) -> float:
            reading = self._read_so_far.get(changed(bases[0].changes, frozenset({change})))
            return math.inf if reading is None else reading.noise

        for base, suspicion in both[:2]:
            self._try(base, candidates.unlike_pairs(suspicion, alone), _MOST_PAIRS)
        yield from self._agreeing()
        # At last those too that muting speaks against.
        singles = (frozenset({change}) for change in candidates.single)
        self._try(bases[0], singles, _MOST_UNSUSPECTED)
        yield from self._agreeing()

    def _suspicion(self, changes: ReadingChanges) -> Suspicion:
        return Suspicion(self._models, self.cutting, changes, self.agrees)

    def _agreeing(self) -> Iterator[list[Reading]]:
        if min(reading.noise for reading in self._read_so_far.values()) < self.agrees:
            yield self._as_good_as_the_best()

    def _as_good_as_the_best(self) -> list[Reading]:
        """The readings that are as good as the best, the fewest changes first; the best four where none is good.

        Where rounding alone is left, that is what differs about as little. Where more is left, as of
        another epsilon, then among thousands of factors some come nearer by chance, and what is nearly
        equal without them is as good.
        """
        ordered = sorted(self._read_so_far.values(), key=lambda reading: reading.noise)
        best = ordered[0].noise
        rounding = _ROUNDED if all(model.wide for model in self._models) else self.agrees
        bound = max(_EXACT, 30 * best) if best < rounding else NEARLY
        alike = [reading for reading in ordered if reading.noise <= bound]
        fewest = sorted(alike, key=lambda reading: (len(reading.changes), reading.noise))
        return fewest or ordered[:4]

    def _try(self, base: Reading, candidates: Iterable[ReadingChanges], most: int) -> None:
        """Runs both models under up to so many changes of a base; `_read_so_far` keeps how they differ."""
        for more in itertools.islice(candidates, most):
            if self.tried >= self._budget:
                return
            self._reading(changed(base.changes, more))

    def _reading(self, changes: ReadingChanges) -> Reading:
        reading = self._read_so_far.get(changes)
        if reading is None:
            reading = self._read_so_far[changes] = Reading(changes, self._differ(changes))
        return reading

    def _differ(self, changes: ReadingChanges, muted: AxisSizes | None = None) -> float:
        self.tried += 1
        return relative_gap(self._output(0, changes, muted), self._output(1, changes, muted))

    def _output(
        self, side: int, changes: ReadingChanges, muted: AxisSizes | None
    ) -> np.ndarray[Any, Any]:
        # A change of one side leaves the other's outputs as they are: most readings take one run.
        of_side = frozenset(change for change in changes if change.side in (side, -1))
        outputs = self._outputs.get((side, of_side, muted))
        if outputs is None:
            leaves = self.cutting.shared_leaves(side, of_side, muted)
            outputs = self._outputs[side, of_side, muted] = self._models[side].run(leaves)
        return outputs

    def _peel(
        self, base: Reading, suspicion: Suspicion, candidates: Candidates, deepest: int
    ) -> None:
        """Changes that are told one after the other: while a form is muted, one may be all that is heard."""
        for mute in suspicion.mutes:
            if mute.agrees:
                continue
            for change in candidates.single:
                if self.tried >= self._budget:
                    return
                # What is silent while the form is muted cannot be what is heard then.
                is_silent = set(change.names) <= mute.silent[change.side]
                if is_silent or not suspicion.may_be_one(change):
                    continue
                changes = changed(base.changes, frozenset({change}))
                if changes == base.changes or self._differ(changes, mute.form) >= self.agrees:
                    continue
                # With this change the muted models agree. Unmuted they may still differ, in what was
                # silent: that is looked for with the change taken.
                reading = self._reading(changes)
                if reading.noise < self.agrees or deepest == 1:
                    continue
                rest = self._suspicion(changes)
                self._try(reading, candidates.allowed(rest), _MOST_SINGLE)
                self._try(reading, candidates.alike_pairs(rest), _MOST_PAIRS)
                self._peel(reading, rest, candidates, deepest - 1)
                return


def turns_of(
    models: Models, seed: int, budget: int, known: KnownLeaves, searches: list[Search]
) -> Iterator[tuple[Search, list[Reading]]]:
    """The readings to match, in turns, each with the search that has their pieces.

    Args:
        models: The source and the view.
        seed: Of the random values.
        budget: How many readings each search tries at most.
        known: What rules, lists and stacks say of the leaves.
        searches: Each search is added to it as it begins.
    """
    first = Search(models, seed, budget, known)
    searches.append(first)
    for readings in first.base_readings():
        yield first, readings
    # What is likely a stack is tried before values are changed, for these are many.
    for likely in itertools.islice(likely_stacks(models, known), _MOST_LIKELY):
        search = Search(models, seed, budget, likely)
        searches.append(search)
        for readings in search.base_readings():
            yield search, readings
    for readings in first.changed_readings():
        yield first, readings
