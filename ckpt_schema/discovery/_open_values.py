"""Rules for values that differ: which of them the outputs tell, and which may stand elsewhere as well."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Mapping, Sequence

from ckpt_schema._lens.rules import Rule
from ckpt_schema._lens.value_rules import scale
from ckpt_schema.discovery._factor_places import factor_places
from ckpt_schema.discovery._known_leaves import KnownLeaves
from ckpt_schema.discovery._matching import Matched
from ckpt_schema.discovery._models import RunnableModel
from ckpt_schema.discovery._open import Open, rule_paths

__all__ = ["OpenValues"]

_MOVED = "the values differ by this factor, and the outputs do not tell in which leaf it stands"
_SEVERAL = "the values differ in one of several ways, and the outputs do not tell which"


class OpenValues:
    """The rules that say how values differ.

    Attributes:
        settled: Those that the outputs tell.
        opens: What they do not tell, with the rules of each way.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        """Begins with what the best reading says, as if it were all."""
        self._found = tuple(rules)
        self.settled: tuple[Rule, ...] = tuple(rules)
        self.opens: list[Open] = []
        self._moved: list[frozenset[Rule]] = []
        self._ways: list[tuple[Rule, ...]] = []

    def add_places(
        self,
        view: RunnableModel,
        paths: Mapping[str, str],
        matched: Matched,
        known: KnownLeaves,
        seed: int,
    ) -> None:
        """Finds the factors that may stand in other leaves; those that the user has said stay."""
        factors = _factors(matched, paths)
        for leaf in known.recodes:
            factors.pop(paths[leaf], None)
        # The difference that proves a pair as well: see `Proof.bound`.
        bound = max(1e-9, 30 * matched.noise)
        for places in factor_places(view, paths, factors, matched.values[1], bound, seed):
            options: list[tuple[Rule, ...]] = []
            for way in places.ways:
                options.append(tuple(scale(path, factor) for path, factor in sorted(way.items())))
            # A reading that differs from the best by where this factor stands says nothing new.
            rest = set(self._found) - set(options[0])
            for option in options:
                self._moved.append(frozenset(rest | set(option)))
            # The first place is where it was found: it is one of the options now.
            self.settled = tuple(rule for rule in self.settled if rule not in options[0])
            leaves = dict.fromkeys(itertools.chain(*places.ways))
            self.opens.append(Open((), tuple(leaves), _MOVED, tuple(options)))

    @property
    def paths(self) -> set[str]:
        """The leaves whose values are open, by their logical paths."""
        paths: set[str] = set()
        for entry in self.opens:
            for rule in itertools.chain(*entry.options):
                paths.update(map("/".join, rule_paths(rule)))
        return paths

    def add_way(self, rules: Sequence[Rule]) -> None:
        """Adds another way, which leaves the outputs as equal."""
        way = frozenset(rules)
        # More than is needed is no way of its own, nor is a factor in another of its places.
        if way in self._moved or any(set(each) <= way for each in (self._found, *self._ways)):
            return
        # Now all values are open, in one entry: an option says all of them.
        self._ways.append(tuple(rules))
        options = (self._found, *self._ways)
        self.settled = ()
        self.opens = [Open((), (), _SEVERAL, options)]


def _factors(matched: Matched, paths: Mapping[str, str]) -> dict[str, float]:
    """The factor of each leaf of the view that is the source's times a number, by its logical path."""
    # All pieces of all layers of a path must have one factor. None is of what is no multiple.
    by_path: dict[str, set[float | None]] = collections.defaultdict(set)
    for pairing in matched.pairings:
        factor: float | None = None
        if len(pairing.sources) == 1 and pairing.view.offset == pairing.sources[0].offset == 0:
            factor = pairing.view.scale / pairing.sources[0].scale
        by_path[paths[pairing.view.leaf]].add(factor)
    factors: dict[str, float] = {}
    for path, several in by_path.items():
        factor = next(iter(several))
        if len(several) == 1 and factor is not None and factor != 1:
            factors[path] = factor
    return factors
