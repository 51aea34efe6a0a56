"""Leaves that play one role in one model, as running it alone shows: no name is looked at.

Layers of a kind have leaves of a kind. A leaf that is set to zero puts others to sleep: without queries no
key matters, without values no attention. Which shapes a leaf puts to sleep, which put it to sleep, and
with which it may exchange a factor tells a key from a value, and a gate from what it lets through.
"""

from __future__ import annotations

import collections
import functools
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ckpt_schema.discovery._models import RunnableModel
from ckpt_schema.discovery._points import own_block

__all__ = ["LeafRoles", "kind_of_leaf"]

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]

_MOST_LEAVES = 200  # each takes a gradient; names and shapes alone group more
_COTANGENTS = 3
_EQUAL = 1e-7

_NUMBER = re.compile(r"(?<![^/.'])\d+(?![^/.'])|(?<=_)\d+")


def kind_of_leaf(name: str) -> str:
    """A name without the number of its layer.

    Example:
        >>> kind_of_leaf("layers/0/attention/query/kernel"), kind_of_leaf("Dense_0/kernel")
        ('layers/*/attention/query/kernel', 'Dense_*/kernel')
    """
    return _NUMBER.sub("*", name, count=1)


class LeafRoles:
    """What each leaf of a model does to the others.

    Attributes:
        groups: Leaves that may be treated alike, of one shape in each group, no group twice: those of one
            role, of one kind by name, of one shape, or one alone. Groups that are likelier come first.
    """

    def __init__(self, model: RunnableModel, seed: int) -> None:
        """Runs a model with each leaf set to zero.

        Args:
            model: The model.
            seed: Of the random values.
        """
        self._model, self._seed = model, seed
        self._values: dict[str, Array] = {}
        for number, (name, shape) in enumerate(model.shapes.items()):
            self._values[name] = own_block(shape, seed, number)
        self._floor = 1e-9 if model.wide else 1e-5
        # For each leaf, those that it puts to sleep: a query silences its key.
        self._silenced: dict[str, list[str]] = {}
        if len(model.shapes) <= _MOST_LEAVES:
            self._silenced = {name: self._asleep_at(0.0, name) for name in model.shapes}
        self.groups = self._groups()

    @functools.cached_property
    def scales(self) -> tuple[str, ...]:
        """The leaves of one axis that let others through, as the scales of all norms do, whatever their sizes.

        Others are asleep where they are zero, or where they are -1, as 1 + w has it. It takes more runs,
        and is asked of one model alone.
        """
        return tuple(filter(self._is_scale, self._silenced))

    def _is_scale(self, name: str) -> bool:
        if len(self._model.shapes[name]) != 1:
            return False
        return bool(self._silenced[name] or self._asleep_at(-1.0, name))

    def _groups(self) -> list[tuple[str, ...]]:
        shapes = self._model.shapes
        kinds = {name: (kind_of_leaf(name), shape) for name, shape in shapes.items()}
        by_role = self._marks()
        # A dict in place of a set: the order is that in which they are tried.
        groups: dict[tuple[str, ...], None] = {}
        for marks in (by_role, kinds, shapes):
            alike: dict[object, list[str]] = collections.defaultdict(list)
            for name in shapes:
                alike[marks[name]].append(name)
            # A leaf that is alone by its role is one group; by its name it may be alone for want of any.
            for names in alike.values():
                if marks is by_role or len(names) > 1:
                    groups[tuple(names)] = None
        for name in shapes:
            groups[(name,)] = None
        return list(groups)

    def _marks(self) -> Mapping[str, object]:
        """What tells the role of each leaf."""
        shapes = self._model.shapes
        # Too many leaves to run each: the shape is all that is known.
        if not self._silenced:
            return shapes
        # By shapes, not by names: so the leaves of one layer and those of the next come out alike.
        silenced: dict[str, set[Shape]] = {name: set() for name in shapes}
        silencers: dict[str, set[Shape]] = {name: set() for name in shapes}
        for name, asleep in self._silenced.items():
            for other in asleep:
                silenced[name].add(shapes[other])
                silencers[other].add(shapes[name])
        partners = self._partners()
        marks: dict[str, object] = {}
        for name, shape in shapes.items():
            several = silenced[name], silencers[name], partners[name]
            marks[name] = (shape, *map(frozenset, several))
        return marks

    def _asleep_at(self, value: float, name: str) -> list[str]:
        """The leaves that have no gradient where all numbers of one leaf are this."""
        values = {**self._values, name: np.full(self._model.shapes[name], value)}
        outputs = self._model.run(values)
        if not np.isfinite(outputs).all():
            return []
        gradients = self._model.pullback(values, self._cotangent(outputs, 0))
        sizes: dict[str, float] = {}
        for other, gradient in gradients.items():
            sizes[other] = float(np.linalg.norm(gradient))
        # Rounding leaves a little of a gradient that is zero.
        largest = max(sizes.values(), default=0.0)
        asleep: list[str] = []
        for other, size in sizes.items():
            if other != name and size <= self._floor * largest:
                asleep.append(other)
        return asleep

    def _partners(self) -> dict[str, set[Shape]]:
        """For each leaf, the shapes of those that may take a factor over from it: see `_factor_places`."""
        shapes = self._model.shapes
        outputs = self._model.run(self._values)
        # If q times t and k by t leave the outputs as they are, the sums of gradient times value of
        # q and of k are equal, for each cotangent.
        sums: dict[str, list[float]] = {name: [] for name in shapes}
        for number in range(_COTANGENTS):
            gradients = self._model.pullback(self._values, self._cotangent(outputs, number))
            for name, sums_of_leaf in sums.items():
                sums_of_leaf.append(float(np.vdot(gradients[name], self._values[name])))
        partners: dict[str, set[Shape]] = {name: set() for name in shapes}
        rows = {name: np.array(sums_of_leaf) for name, sums_of_leaf in sums.items()}
        tolerance = _EQUAL if self._model.wide else 1e-3
        for name, row in rows.items():
            size = max(float(np.linalg.norm(row)), 1e-300)
            for other, other_row in rows.items():
                if other != name and np.linalg.norm(row - other_row) <= tolerance * size:
                    partners[name].add(shapes[other])
        return partners

    def _cotangent(self, outputs: Array, number: int) -> Array:
        return np.random.default_rng([self._seed, 17, number]).normal(size=outputs.shape)
