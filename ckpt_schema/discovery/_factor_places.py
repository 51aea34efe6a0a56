"""Where else a factor may stand: a query that is doubled scores as a key that is doubled does.

A *gauge* is a change of several leaves that no output shows. Where one leaf holds a factor and a gauge
moves it to others, running the models tells the factor and not its place. If multiplying a leaf by
``t`` and others by powers of ``t`` leaves the outputs as they are, then the gradients know it: the sums
of gradient times value of those leaves cancel. So one pullback shows the candidates, and runs prove them.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from ckpt_schema.discovery._models import Leaves, RunnableModel
from ckpt_schema.discovery._points import relative_gap

__all__ = ["FactorPlaces", "factor_places"]

_MOST_LEAVES = 2  # more leaves than this never take over a factor together
_MOST_PATHS = 80  # of more, each alone is tried
_FAR = (1 / 32, 32.0)
"""Factors at which what is a gauge but for an epsilon is none."""


@dataclasses.dataclass(frozen=True)
class FactorPlaces:
    """A factor, and the places that it may stand in.

    Attributes:
        paths: The leaves that hold it, as found.
        ways: Each place: the factor of each of its leaves. What was found is the first.
    """

    paths: frozenset[str]
    ways: tuple[Mapping[str, float], ...]


def factor_places(
    model: RunnableModel,
    paths: Mapping[str, str],
    factors: Mapping[str, float],
    values: Leaves,
    bound: float,
    seed: int,
) -> list[FactorPlaces]:
    """For each factor that was found, where it may stand as well.

    Args:
        model: The side whose leaves hold the factors.
        paths: The logical path of each of its leaves.
        factors: The factors that were found, by logical path.
        values: Random values of its leaves, with the factors in them.
        bound: The largest difference of outputs that is none.
        seed: Of the random cotangents.

    Returns:
        An entry for each factor that has another place.
    """
    bench = _Bench(model, paths, values, bound, seed)
    places: list[FactorPlaces] = []
    done: set[str] = set()
    # A kernel and its bias are scaled together; where all that have one factor have no other place
    # together, each is looked at by itself.
    alone = [frozenset({path}) for path in factors]
    for group in [*_together(factors), *alone]:
        if done & group:
            continue
        as_found = {path: factors[path] for path in group}
        # All of a group have one factor.
        others = [*bench.others(group, next(iter(as_found.values())))]
        if others:
            done |= group
            places.append(FactorPlaces(group, (as_found, *others)))
    return places


def _together(factors: Mapping[str, float]) -> Iterator[frozenset[str]]:
    """Paths of one factor, where several have it."""
    for factor in dict.fromkeys(factors.values()):
        paths = frozenset(path for path, own in factors.items() if own == factor)
        if len(paths) > 1:
            yield paths


class _Bench:
    """A model at random values, to try where a factor may stand."""

    def __init__(
        self,
        model: RunnableModel,
        paths: Mapping[str, str],
        values: Leaves,
        bound: float,
        seed: int,
    ) -> None:
        self._model, self._values, self._bound = model, values, bound
        self._names: dict[str, list[str]] = {}
        for name in model.shapes:
            if name in paths:
                self._names.setdefault(paths[name], []).append(name)
        self._outputs = model.run(values)
        self._sums = self._gradient_sums(seed)

    def _gradient_sums(self, seed: int) -> dict[str, np.ndarray]:
        """The sum of gradient times value of all leaves of a path, for several cotangents."""
        # Three of them: that two sums are equal by chance for each is not to be expected.
        sums: dict[str, list[float]] = {path: [] for path in self._names}
        random = np.random.default_rng([seed, 11])
        for _ in range(3):
            cotangent = random.normal(size=self._outputs.shape)
            gradients = self._model.pullback(self._values, cotangent)
            for path, names in self._names.items():
                products = [float(np.vdot(gradients[name], self._values[name])) for name in names]
                sums[path].append(sum(products))
        return {path: np.array(sums_of_path) for path, sums_of_path in sums.items()}

    def others(self, group: frozenset[str], factor: float) -> Iterator[dict[str, float]]:
        """The other places of a factor that a group of paths has, the fewest leaves first."""
        of_group = np.zeros(3)
        for path in group:
            of_group = of_group + self._sums[path]
        size = float(np.linalg.norm(of_group))
        sizes = {path: float(np.linalg.norm(sums)) for path, sums in self._sums.items()}
        floor = self._bound * max(sizes.values(), default=0.0)
        # What hardly moves the outputs would have a place everywhere.
        if size <= floor:
            return
        live = [path for path in sizes if path not in group and sizes[path] > floor]
        most = _MOST_LEAVES if len(live) <= _MOST_PATHS else 1
        taken: list[frozenset[str]] = []
        for count in range(1, most + 1):
            for paths in itertools.combinations(live, count):
                # A place with one leaf more is no other place.
                if any(fewer <= frozenset(paths) for fewer in taken):
                    continue
                for powers in itertools.product((1, -1), repeat=count):
                    place = dict(zip(paths, powers, strict=True))
                    sums = sum(power * self._sums[path] for path, power in place.items())
                    # A first look alone: the runs prove it.
                    if np.linalg.norm(of_group - sums) > 1e-3 * size:
                        continue
                    if self._is_gauge(group, place, factor):
                        taken.append(frozenset(paths))
                        yield {path: factor**power for path, power in place.items()}

    def _is_gauge(self, group: Iterable[str], place: Mapping[str, int], factor: float) -> bool:
        """Whether no output changes where other leaves take the factor over, and others far from it."""
        far_factors = [abs(factor) * far for far in _FAR]
        for t in (factor, *far_factors):
            values = dict(self._values)
            for path in group:
                for name in self._names[path]:
                    values[name] = values[name] / t
            for path, power in place.items():
                for name in self._names[path]:
                    values[name] = values[name] * t**power
            if relative_gap(self._outputs, self._model.run(values)) > self._bound:
                return False
        return True
