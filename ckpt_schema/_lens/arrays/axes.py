"""What goes with the axes of a leaf: the mesh axes that shard them, and their logical names."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = [
    "Clash",
    "Entries",
    "Labels",
    "agreed",
    "deal",
    "deal_label",
    "house",
    "merge_labels",
]

Entries = tuple[tuple[str, ...], ...]
"""The mesh axes that shard each axis of a leaf: a PartitionSpec of full length without shorthands."""

Labels = tuple[Any, ...]
"""The logical name of each axis, as Linen's boxes and NNX's Variables keep them: a string, several, or None."""


def deal(
    axes: Sequence[str], sizes: Sequence[int], ways: Mapping[str, int]
) -> tuple[list[tuple[str, ...]], list[str]]:
    """Mesh axes of a product dealt out to its factors, major first.

    Those that no factor can take come second.
    """
    dealt: list[tuple[str, ...]] = [()] * len(sizes)
    homeless: list[str] = []
    for axis in axes:
        for i, size in enumerate(sizes):
            if size % math.prod(ways[a] for a in (*dealt[i], axis)) == 0:
                dealt[i] = (*dealt[i], axis)
                break
        else:
            homeless.append(axis)
    return dealt, homeless


def house(
    entries: Entries, shape: Sequence[int], homeless: Sequence[str], ways: Mapping[str, int]
) -> Entries:
    """Gives each homeless mesh axis to the longest shard it divides, so that no leaf is gathered where that can be avoided."""
    placed = list(entries)
    for axis in homeless:
        shards = [
            (size // math.prod(ways[a] for a in placed[i]), i) for i, size in enumerate(shape)
        ]
        fits = [(length, -i) for length, i in shards if length and length % ways[axis] == 0]
        if fits:
            at = -max(fits)[1]
            placed[at] = (*placed[at], axis)
    return tuple(placed)


def deal_label(label: Any, factors: int) -> tuple[Any, ...]:
    """The names of an axis dealt out to its factors: to each its own, or all to the first.

    Example:
        >>> deal_label("heads", 2), deal_label(("heads", "head_dim"), 2)
        (('heads', None), ('heads', 'head_dim'))
    """
    if isinstance(label, tuple) and len(label) == factors > 1:
        return label
    return (label, *[None] * (factors - 1)) if factors else ()


def merge_labels(labels: Sequence[Any]) -> Any:
    """The names of factors as those of their product.

    Example:
        >>> merge_labels(["heads", None]), merge_labels(["heads", "head_dim"]), merge_labels([None, None])
        ('heads', ('heads', 'head_dim'), None)
    """
    if len(labels) == 1:
        return labels[0]
    named = [
        name
        for label in labels
        for name in (label if isinstance(label, tuple) else (label,))
        if name is not None
    ]
    return None if not named else named[0] if len(named) == 1 else tuple(named)


@dataclasses.dataclass(frozen=True, slots=True)
class Clash:
    """Names that leaves which become one have for the same axis.

    Attributes:
        names: Each of them once.
    """

    names: tuple[Any, ...]


def agreed(several: Sequence[Labels]) -> Labels:
    """The names that leaves have in common; a `Clash` where they differ.

    Example:
        >>> agreed([("embed", None), ("embed", "mlp")])
        ('embed', Clash(names=(None, 'mlp')))
    """
    columns = (tuple(dict.fromkeys(column)) for column in zip(*several, strict=True))
    return tuple(column[0] if len(column) == 1 else Clash(column) for column in columns)
