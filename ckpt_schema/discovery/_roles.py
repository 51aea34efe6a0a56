"""Leaves that play one role in one model, as running it alone shows: no name is looked at.

Layers of a kind have leaves of a kind. A leaf that is set to zero puts others to sleep: without queries no
key matters, without values no attention. Which shapes a leaf puts to sleep, which put it to sleep, and
with which it may exchange a factor tells a key from a value, and a gate from what it lets through.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ckpt_schema.discovery._models import RunnableModel
from ckpt_schema.discovery._points import own_block

__all__ = ["kind_of_leaf", "leaf_groups"]

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


def leaf_groups(model: RunnableModel, seed: int) -> list[tuple[str, ...]]:
    """Leaves that may be treated alike: of one role, of one kind by name, of one shape, or one alone.

    Args:
        model: The model.
        seed: Of the random values.

    Returns:
        Names of leaves of one shape in each group, no group twice; groups that are likelier come first.
    """
    marks: list[Mapping[str, object]] = [
        _Roles(model, seed).marks(),
        {name: (kind_of_leaf(name), shape) for name, shape in model.shapes.items()},
        model.shapes,
    ]
    found: dict[tuple[str, ...], None] = {}
    for number, mark in enumerate(marks):
        groups: dict[object, list[str]] = collections.defaultdict(list)
        for name in model.shapes:
            groups[mark[name]].append(name)
        # A leaf that is alone by its role is one group; by its name it may be alone for want of any.
        several = [tuple(names) for names in groups.values() if number == 0 or len(names) > 1]
        found |= dict.fromkeys(several)
    return list(found | {(name,): None for name in model.shapes})


class _Roles:
    """What each leaf of a model does to the others."""

    def __init__(self, model: RunnableModel, seed: int) -> None:
        self._model, self._seed = model, seed
        self._values: dict[str, Array] = {}
        for number, (name, shape) in enumerate(model.shapes.items()):
            self._values[name] = own_block(shape, seed, number)
        self._floor = 1e-9 if model.wide else 1e-5

    def marks(self) -> Mapping[str, object]:
        """What tells the role of each leaf."""
        shapes = self._model.shapes
        if len(shapes) > _MOST_LEAVES:
            return shapes
        silenced: dict[str, set[Shape]] = {}
        silencers: dict[str, set[Shape]] = {name: set() for name in shapes}
        for name, shape in shapes.items():
            asleep = self._asleep_without(name)
            silenced[name] = {shapes[other] for other in asleep}
            for other in asleep:
                silencers[other].add(shape)
        partners = self._partners()
        return {
            name: (
                shape,
                frozenset(silenced[name]),
                frozenset(silencers[name]),
                frozenset(partners[name]),
            )
            for name, shape in shapes.items()
        }

    def _asleep_without(self, name: str) -> list[str]:
        """The leaves that have no gradient where one leaf is zero."""
        values = {**self._values, name: np.zeros(self._model.shapes[name])}
        outputs = self._model.run(values)
        if not np.isfinite(outputs).all():
            return []
        gradients = self._model.pullback(values, self._cotangent(outputs, 0))
        sizes = {other: float(np.linalg.norm(each)) for other, each in gradients.items()}
        largest = max(sizes.values(), default=0.0)
        return [
            other
            for other, size in sizes.items()
            if other != name and size <= self._floor * largest
        ]

    def _partners(self) -> dict[str, set[Shape]]:
        """For each leaf, the shapes of those that may take a factor over from it: see `_gauges`."""
        shapes = self._model.shapes
        outputs = self._model.run(self._values)
        sums: dict[str, list[float]] = {name: [] for name in shapes}
        for number in range(_COTANGENTS):
            gradients = self._model.pullback(self._values, self._cotangent(outputs, number))
            for name, own in sums.items():
                own.append(float(np.vdot(gradients[name], self._values[name])))
        found: dict[str, set[Shape]] = {name: set() for name in shapes}
        rows = {name: np.array(own) for name, own in sums.items()}
        tolerance = _EQUAL if self._model.wide else 1e-3
        for name, row in rows.items():
            for other, its in rows.items():
                size = max(float(np.linalg.norm(row)), 1e-300)
                if other != name and np.linalg.norm(row - its) <= tolerance * size:
                    found[name].add(shapes[other])
        return found

    def _cotangent(self, outputs: Array, number: int) -> Array:
        return np.random.default_rng([self._seed, 17, number]).normal(size=outputs.shape)
