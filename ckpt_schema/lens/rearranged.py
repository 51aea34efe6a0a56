"""Edits of one array each: its axes split, permuted, merged and reversed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ckpt_schema import dims as dims_
from ckpt_schema.dims import Dim, Dims
from ckpt_schema.lens.axes import (
    Entries,
    Labels,
    Shape,
    Sizes,
    deal,
    deal_label,
    house,
    merge_labels,
    product,
    xp,
)
from ckpt_schema.lens.edits import Edit, Leafwise

__all__ = ["Flip", "Rearrange"]


def _sized(factors: Dim) -> Dim:
    """The factors that an axis is made of, without any 1."""
    return tuple([factor for factor in factors if factor != 1])


@dataclasses.dataclass(frozen=True, slots=True)
class Rearrange(Leafwise):
    """Splits, permutes and merges axes, from the dims of one layout to those of the other.

    Attributes:
        source: The dims before.
        view: The dims after: the same factors in another order or grouping. Axes of size 1 come and go.
        order: For each factor of the view, its place among the source's, those of size 1 not counted. It follows from the names
            of the factors, unless one occurs twice.

    Example:
        >>> edit = Rearrange(dims_.parse_dims("embed 3*heads"), dims_.parse_dims("3 heads embed"))
        >>> print(edit, "|", ~edit)
        embed 3*heads -> 3 heads embed | 3 heads embed -> embed 3*heads
        >>> edit.shape((4, 6), {"embed": 4, "heads": 2})
        (3, 2, 4)
    """

    source: Dims
    view: Dims
    order: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Reads the order off the names."""
        before, after = (_sized(dims_.factors(dims)) for dims in (self.source, self.view))
        if not self.order:
            object.__setattr__(self, "order", tuple(before.index(factor) for factor in after))

    @property
    def inverse(self) -> Rearrange:
        """From the dims after to the dims before."""
        return Rearrange(
            self.view, self.source, tuple(self.order.index(i) for i in range(len(self.order)))
        )

    @property
    def names(self) -> set[str]:
        """Every name, unless the axes are merely permuted."""
        return set() if self._permutes else dims_.names(self.source)

    @property
    def _permutes(self) -> bool:
        """Whether no axis is split or merged."""
        return all(len(_sized(dim)) == 1 for dim in (*self.source, *self.view))

    def one(self, value: Any, sizes: Sizes) -> Any:
        """The leaf split to its factors, permuted, and merged."""
        if any(len(_sized(dim)) != 1 for dim in self.source):
            value = xp(value).reshape(
                value, tuple(product((f,), sizes) for f in _sized(dims_.factors(self.source)))
            )
        value = xp(value).transpose(value, self.order)
        if any(len(_sized(dim)) != 1 for dim in self.view):
            value = xp(value).reshape(value, tuple(product(dim, sizes) for dim in self.view))
        return value

    def shape(self, shape: Shape, sizes: Sizes) -> Shape:
        """The view's dims under ``sizes``; a mere permutation needs none."""
        if self._permutes:
            return tuple(shape[i] for i in self.order)
        return tuple(product(dim, sizes) for dim in self.view)

    def sharded(
        self, entries: Entries, shape: Shape, sizes: Sizes, ways: Mapping[str, int]
    ) -> Entries:
        """Mesh axes follow their factors; one that fits no factor of its product goes to another axis it divides."""
        if self._permutes:
            return tuple(entries[i] for i in self.order)
        atoms: list[tuple[str, ...]] = []
        homeless: list[str] = []
        for dim, axes in zip(self.source, entries, strict=True):
            split, left = deal(axes, [product((f,), sizes) for f in _sized(dim)], ways)
            atoms += split
            homeless += left
        moved = iter([atoms[i] for i in self.order])
        merged = tuple(
            tuple(axis for _ in _sized(dim) for axis in next(moved)) for dim in self.view
        )
        return house(merged, self.shape(shape, sizes), homeless, ways)

    def named(self, labels: Labels) -> Labels:
        """Names follow their factors; that of a product is the first's."""
        atoms = [
            part
            for dim, label in zip(self.source, labels, strict=True)
            for part in deal_label(label, len(_sized(dim)))
        ]
        moved = iter([atoms[i] for i in self.order])
        return tuple(merge_labels([next(moved) for _ in _sized(dim)]) for dim in self.view)

    def followed_by(self, other: Edit) -> Edit | None:
        """Of two rearrangements in turn, the one that does both."""
        if not isinstance(other, Rearrange) or other.source != self.view:
            return None
        return Rearrange(self.source, other.view, tuple(self.order[i] for i in other.order))

    def __str__(self) -> str:
        """The dims before and after, and the order of the factors where their names do not say it."""
        spelled = f"{dims_.format_dims(self.source)} -> {dims_.format_dims(self.view)}"
        twins = len(set(_sized(dims_.factors(self.source)))) < len(self.order)
        return f"{spelled} ({' '.join(map(str, self.order))})" if twins else spelled


@dataclasses.dataclass(frozen=True, slots=True)
class Flip(Leafwise):
    """Reverses an axis.

    Example:
        >>> print(Flip(1))
        flip axis 1
    """

    axis: int

    @property
    def inverse(self) -> Flip:
        """Itself."""
        return self

    def one(self, value: Any, sizes: Sizes) -> Any:
        """The leaf with the axis in reverse."""
        return xp(value).flip(value, self.axis)

    def __str__(self) -> str:
        """Which axis."""
        return f"flip axis {self.axis}"
