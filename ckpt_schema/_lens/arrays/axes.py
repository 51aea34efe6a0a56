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

    Example:
        >>> deal(["x", "y", "z"], [2, 12], {"x": 2, "y": 4, "z": 5})
        ([('x',), ('y',)], ['z'])
    """
    dealt: list[tuple[str, ...]] = [()] * len(sizes)
    homeless: list[str] = []
    for axis in axes:
        for factor, size in enumerate(sizes):
            taken = (*dealt[factor], axis)
            if size % _shards(taken, ways) == 0:
                dealt[factor] = taken
                break
        else:
            homeless.append(axis)
    return dealt, homeless


def _shards(axes: Sequence[str], ways: Mapping[str, int]) -> int:
    """How many shards mesh axes make together."""
    return math.prod(ways[axis] for axis in axes)


def house(
    entries: Entries, shape: Sequence[int], homeless: Sequence[str], ways: Mapping[str, int]
) -> Entries:
    """Gives each homeless mesh axis to the longest shard it divides, so that no leaf is gathered where that can be avoided.

    Example:
        >>> house(((), ("x",)), (6, 16), ["y"], {"x": 2, "y": 2})
        ((), ('x', 'y'))
    """
    placed = list(entries)
    for name in homeless:
        best, longest = -1, 0
        for axis, size in enumerate(shape):
            length = size // _shards(placed[axis], ways)
            # Of two shards of one length the first takes it.
            if length > longest and length % ways[name] == 0:
                best, longest = axis, length
        if longest:
            placed[best] = (*placed[best], name)
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
    named: list[Any] = []
    for label in labels:
        names = label if isinstance(label, tuple) else (label,)
        named += [name for name in names if name is not None]
    if len(named) < 2:
        return named[0] if named else None
    return tuple(named)


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
    labels: list[Any] = []
    for column in zip(*several, strict=True):
        names = tuple(dict.fromkeys(column))
        labels.append(names[0] if len(names) == 1 else Clash(names))
    return tuple(labels)
