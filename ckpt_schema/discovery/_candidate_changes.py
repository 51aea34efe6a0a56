"""The changes of a reading that are worth a try, likeliest first."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

from ckpt_schema.discovery._cutting import Cutting, ReadingChange, ReadingChanges
from ckpt_schema.discovery._leaf_pieces import Recode
from ckpt_schema.discovery._models import RunnableModel
from ckpt_schema.discovery._mutes import Suspicion
from ckpt_schema.discovery._roles import LeafRoles

__all__ = ["Candidates"]

Models = tuple[RunnableModel, RunnableModel]


class Candidates:
    """What leaves that are treated alike may be read as.

    Attributes:
        single: Each change of one group of leaves: groups that play one role first.
    """

    def __init__(self, models: Models, cutting: Cutting, seed: int) -> None:
        """Groups the leaves of both models.

        Args:
            models: The source and the view.
            cutting: The ways to cut their leaves.
            seed: Of the random values that show which leaves play one role.
        """
        self._models, self._cutting = models, cutting
        self._roles = [LeafRoles(model, seed) for model in models]
        self.single: list[ReadingChange] = [*self._cuts(), *self._halves(), *self._recodes()]

    def _cuts(self) -> Iterator[ReadingChange]:
        """All ways to cut each group; those of the least cutting first."""
        changes: list[ReadingChange] = []
        for side, roles in enumerate(self._roles):
            for names in roles.groups:
                for number in range(len(self._cutting.ways(side, names[0]))):
                    changes.append(ReadingChange("cut", side, names, number))
        # Ways are numbered by how much they cut.
        yield from sorted(changes, key=lambda change: change.how)

    def _sizes(self) -> list[set[int]]:
        """The sizes of the axes of both models."""
        return [set(itertools.chain(*model.shapes.values())) for model in self._models]

    def _halves(self) -> Iterator[ReadingChange]:
        """Axes that are cut in parts on both sides, as gates are that both fuse otherwise."""
        # An axis of 24 that both sides fuse of four gates, each in its own order, is four of 6.
        before, after = self._sizes()
        for size in sorted(before & after):
            for parts in (2, 3, 4):
                if size % parts == 0 and size > parts:
                    yield ReadingChange("halve", -1, (), (size, parts))

    def _recodes(self) -> Iterator[ReadingChange]:
        """What the field does to values: scales by roots of sizes, offsets by one, the order of rotary pairs."""
        # The side that has more leaves can say it of a part that the other has fused.
        side = int(len(self._models[1].shapes) >= len(self._models[0].shapes))
        shapes = self._models[side].shapes
        # A score is divided by the root of a head, an embedding multiplied by that of the width:
        # these are sizes of axes, or parts of them.
        divisors = _divisors(set().union(*self._sizes()))
        scales = {-1.0, 2.0, 0.5}
        for part in divisors:
            scales |= {part**0.5, part**-0.5}
        values = [Recode(offset=-1.0), Recode(offset=1.0)]
        for scale in sorted(scales):
            values.append(Recode(scale=scale))
        roles = self._roles[side]
        for names in roles.groups:
            for recode in [*_rotary_orders(shapes[names[0]], divisors), *values]:
                yield ReadingChange("recode", side, names, recode)
        # A model that keeps the scale of one norm as 1 + w keeps that of each so, whatever their sizes.
        if len({shapes[name] for name in roles.scales}) > 1:
            for recode in values:
                yield ReadingChange("recode", side, roles.scales, recode)

    def allowed(self, suspicion: Suspicion) -> Iterator[ReadingChanges]:
        """Each change that muting does not speak against."""
        for change in self.single:
            if suspicion.allows([change]):
                yield frozenset({change})

    def alike_pairs(self, suspicion: Suspicion) -> Iterator[ReadingChanges]:
        """Two groups that hold other values in one way, as a query and a key share a rotary order."""
        several: dict[Recode, list[ReadingChange]] = collections.defaultdict(list)
        for change in self.single:
            if change.what == "recode" and suspicion.may_be_one(change):
                # Heads may be on another axis of the other group.
                several[dataclasses.replace(change.how, axis=0)].append(change)
        # There are few orders; behind so many factors they would come too late.
        for is_order in (True, False):
            ways: list[list[ReadingChange]] = []
            for how, changes in several.items():
                if bool(how.rotary[0]) == is_order:
                    ways.append(changes)
            # In turns, for one factor alone may have more pairs than are tried.
            yield from _allowed_pairs(_in_turns(map(_early_pairs, ways)), suspicion)

    def unlike_pairs(
        self, suspicion: Suspicion, noise: Callable[[ReadingChange], float]
    ) -> Iterator[ReadingChanges]:
        """Any two changes, those first that better something alone.

        Args:
            suspicion: What muting shows.
            noise: How far the outputs differ with a change alone.
        """
        single = sorted(filter(suspicion.may_be_one, self.single), key=noise)
        yield from _allowed_pairs(_early_pairs(single), suspicion)


def _divisors(sizes: Iterable[int]) -> list[int]:
    divisors: set[int] = set()
    for size in sizes:
        for part in range(2, size + 1):
            if size % part == 0:
                divisors.add(part)
    return sorted(divisors)


def _rotary_orders(shape: Sequence[int], divisors: Sequence[int]) -> Iterator[Recode]:
    """The orders that heads on an axis of a leaf may have."""
    for axis, size in enumerate(shape):
        # A kernel (width, heads, head) has heads on an axis of their own; one of two axes may have
        # all heads on one.
        for head in divisors if len(shape) < 3 else [size]:
            if head % 2 or head < 4 or size % head:
                continue
            # Two halves, x y, or pairs, xy xy xy: each is the other way round on the other side.
            for outer in sorted({2, head // 2}):
                yield Recode(rotary=(head, outer), axis=axis)


_Pair = tuple[ReadingChange, ReadingChange]


def _early_pairs(changes: Sequence[ReadingChange]) -> Iterator[_Pair]:
    """All pairs; those of early ones come first."""
    for at, later in enumerate(changes):
        for earlier in changes[:at]:
            yield earlier, later


def _in_turns(several: Iterable[Iterator[_Pair]]) -> Iterator[_Pair]:
    """The first of each, then the second of each."""
    waiting = list(several)
    while waiting:
        following: list[Iterator[_Pair]] = []
        for pairs in waiting:
            pair = next(pairs, None)
            if pair is not None:
                yield pair
                following.append(pairs)
        waiting = following


def _allowed_pairs(pairs: Iterable[_Pair], suspicion: Suspicion) -> Iterator[ReadingChanges]:
    """Those that are of other leaves, and that muting does not speak against."""
    for one, other in pairs:
        if not _overlap(one, other) and suspicion.allows((one, other)):
            yield frozenset({one, other})


def _overlap(one: ReadingChange, other: ReadingChange) -> bool:
    """Whether two changes say the same of one leaf."""
    if (one.what, one.side) != (other.what, other.side):
        return False
    return not one.names or not set(one.names).isdisjoint(other.names)
