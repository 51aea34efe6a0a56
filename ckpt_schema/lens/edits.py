"""Edits of leaves: each an isomorphism that knows its inverse, what it does to shapes and what it does to shardings.

An edit turns a list of leaves into a list of leaves; all but the stacking ones act on each leaf by itself. ``a >> b`` composes,
``~a`` inverts, and ``~a >> a`` is the identity, which composition sees and drops.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ckpt_schema import dims as dims_
from ckpt_schema.dims import Dim, Dims
from ckpt_schema.lens.axes import Entries, Labels, Sizes, deal, deal_label, house, merge_labels, product

__all__ = ["Cast", "Chain", "Edit", "Rearrange", "Stack", "Unstack"]


class Edit:
    """An invertible edit of a list of leaves."""

    __slots__ = ()

    @property
    def inverse(self) -> Edit:
        """The edit that undoes this one."""
        raise NotImplementedError

    def apply(self, values: list[Any], sizes: Sizes) -> list[Any]:
        """The edited leaves; NumPy arrays stay NumPy arrays, everything else goes through ``jax.numpy``."""
        raise NotImplementedError

    def entries(self, entries: Entries, shape: tuple[int, ...], sizes: Sizes, ways: Mapping[str, int]) -> Entries:
        """How each result is sharded.

        Args:
            entries: How each input is sharded.
            shape: The shape of each input.
            sizes: Sizes of the dims.
            ways: The size of each mesh axis.
        """
        raise NotImplementedError

    def shape(self, shape: tuple[int, ...], sizes: Sizes) -> tuple[int, ...]:
        """The shape of each result, from that of each input."""
        raise NotImplementedError

    def labels(self, labels: Labels) -> Labels:
        """The logical names of each result's axes, from those of each input's."""
        raise NotImplementedError

    @property
    def names(self) -> set[str]:
        """The dims whose sizes it needs."""
        return set()

    def __rshift__(self, other: Edit | Chain) -> Chain:
        """First this edit, then the other."""
        return Chain((self,)) >> other

    def __invert__(self) -> Edit:
        """The inverse edit."""
        return self.inverse


def _sized(factors: Dim) -> Dim:
    """The factors that an axis is made of, without any 1."""
    return tuple([factor for factor in factors if factor != 1])


def _xp(value: Any) -> Any:
    return np if isinstance(value, np.ndarray) else jnp


@dataclasses.dataclass(frozen=True, slots=True)
class Rearrange(Edit):
    """Splits, permutes and merges axes, from the dims of one layout to those of the other.

    Attributes:
        source: The dims before.
        view: The dims after: the same factors in another order or grouping, none of them twice. Axes of size 1 come and go.

    Example:
        >>> edit = Rearrange(dims_.parse_dims("embed 3*heads"), dims_.parse_dims("3 heads embed"))
        >>> print(edit, "|", ~edit)
        embed 3*heads -> 3 heads embed | 3 heads embed -> embed 3*heads
        >>> edit.shape((4, 6), {"embed": 4, "heads": 2})
        (3, 2, 4)
    """

    source: Dims
    view: Dims

    @property
    def inverse(self) -> Rearrange:
        """From the dims after to the dims before."""
        return Rearrange(self.view, self.source)

    @property
    def names(self) -> set[str]:
        """Every name, unless the axes are merely permuted."""
        return set() if self._permutes else dims_.names(self.source)

    @property
    def _permutes(self) -> bool:
        """Whether no axis is split or merged."""
        return all(len(_sized(dim)) == 1 for dim in (*self.source, *self.view))

    @property
    def permutation(self) -> tuple[int, ...]:
        """For each factor of the view, its place among the source's."""
        before, after = (_sized(dims_.factors(dims)) for dims in (self.source, self.view))
        return tuple(before.index(factor) for factor in after)

    def apply(self, values: list[Any], sizes: Sizes) -> list[Any]:
        """Each leaf split to its factors, permuted, and merged."""
        return [self._one(value, sizes) for value in values]

    def _one(self, value: Any, sizes: Sizes) -> Any:
        xp = _xp(value)
        if any(len(_sized(dim)) != 1 for dim in self.source):
            value = xp.reshape(value, tuple(product((f,), sizes) for f in _sized(dims_.factors(self.source))))
        value = xp.transpose(value, self.permutation)
        if any(len(_sized(dim)) != 1 for dim in self.view):
            value = xp.reshape(value, tuple(product(dim, sizes) for dim in self.view))
        return value

    def shape(self, shape: tuple[int, ...], sizes: Sizes) -> tuple[int, ...]:
        """The view's dims under ``sizes``; a mere permutation needs none."""
        if self._permutes:
            return tuple(shape[i] for i in self.permutation)
        return tuple(product(dim, sizes) for dim in self.view)

    def entries(self, entries: Entries, shape: tuple[int, ...], sizes: Sizes, ways: Mapping[str, int]) -> Entries:
        """Mesh axes follow their factors; one that fits no factor of its product goes to another axis it divides."""
        if self._permutes:
            return tuple(entries[i] for i in self.permutation)
        atoms: list[tuple[str, ...]] = []
        homeless: list[str] = []
        for dim, axes in zip(self.source, entries, strict=True):
            split, left = deal(axes, [product((f,), sizes) for f in _sized(dim)], ways)
            atoms += split
            homeless += left
        moved = iter([atoms[i] for i in self.permutation])
        merged = tuple(tuple(axis for _ in _sized(dim) for axis in next(moved)) for dim in self.view)
        return house(merged, self.shape(shape, sizes), homeless, ways)

    def labels(self, labels: Labels) -> Labels:
        """Names follow their factors; that of a product is the first's."""
        atoms = [part for dim, label in zip(self.source, labels, strict=True) for part in deal_label(label, len(_sized(dim)))]
        moved = iter([atoms[i] for i in self.permutation])
        return tuple(merge_labels([next(moved) for _ in _sized(dim)]) for dim in self.view)

    def __str__(self) -> str:
        """The dims before and after."""
        return f"{dims_.format_dims(self.source)} -> {dims_.format_dims(self.view)}"


@dataclasses.dataclass(frozen=True, slots=True)
class Cast(Edit):
    """Casts an integer leaf to another integer dtype; only values that both can hold pass.

    Example:
        >>> print(Cast("int32", "uint32"))
        int32 -> uint32
    """

    source: str
    view: str

    @property
    def inverse(self) -> Cast:
        """The cast back."""
        return Cast(self.view, self.source)

    def apply(self, values: list[Any], sizes: Sizes) -> list[Any]:
        """Each leaf cast; `fits` says beforehand whether that keeps its values."""
        # NumPy knows no cast between the integers narrower than a byte; int64 holds every value that both dtypes hold.
        wide = [value.astype(np.int64) if isinstance(value, np.ndarray) else value for value in values]
        return [value.astype(self.view) for value in wide]

    def fits(self, low: int, high: int) -> bool:
        """Whether values between ``low`` and ``high`` are kept."""
        info = jnp.iinfo(self.view)
        return int(info.min) <= low and high <= int(info.max)

    def shape(self, shape: tuple[int, ...], sizes: Sizes) -> tuple[int, ...]:
        """The same shape."""
        return shape

    def entries(self, entries: Entries, shape: tuple[int, ...], sizes: Sizes, ways: Mapping[str, int]) -> Entries:
        """The same sharding."""
        return entries

    def labels(self, labels: Labels) -> Labels:
        """The same names."""
        return labels

    def __str__(self) -> str:
        """The dtypes before and after."""
        return f"{self.source} -> {self.view}"


@dataclasses.dataclass(frozen=True, slots=True)
class Unstack(Edit):
    """One leaf, stacked on an axis, to one leaf per repeat.

    Attributes:
        axis: The stack axis.
        size: The number of repeats.

    Example:
        >>> print(Unstack(1, ("depth",)), "|", ~Unstack(1, ("depth",)))
        unstack depth on axis 1 | stack depth on axis 1
    """

    axis: int
    size: Dim

    @property
    def inverse(self) -> Stack:
        """The edit that stacks them again."""
        return Stack(self.axis, self.size)

    @property
    def names(self) -> set[str]:
        """The number of repeats, where it has a name."""
        return dims_.names((self.size,))

    def apply(self, values: list[Any], sizes: Sizes) -> list[Any]:
        """The slices of the one leaf, in order."""
        (value,) = values
        at = (slice(None),) * self.axis
        return [value[(*at, i, ...)] for i in range(product(self.size, sizes))]  # the dots keep a 0-d NumPy array an array

    def shape(self, shape: tuple[int, ...], sizes: Sizes) -> tuple[int, ...]:
        """The shape without the stack axis."""
        return (*shape[: self.axis], *shape[self.axis + 1 :])

    def entries(self, entries: Entries, shape: tuple[int, ...], sizes: Sizes, ways: Mapping[str, int]) -> Entries:
        """The sharding without the stack axis; mesh axes that sharded it go to another axis they divide."""
        rest = (*entries[: self.axis], *entries[self.axis + 1 :])
        return house(rest, self.shape(shape, sizes), entries[self.axis], ways)

    def labels(self, labels: Labels) -> Labels:
        """The names without that of the stack axis."""
        return (*labels[: self.axis], *labels[self.axis + 1 :])

    def __str__(self) -> str:
        """What is unstacked, and where."""
        return f"unstack {dims_.format_dim(self.size)} on axis {self.axis}"


@dataclasses.dataclass(frozen=True, slots=True)
class Stack(Edit):
    """One leaf per repeat, to one leaf stacked on an axis."""

    axis: int
    size: Dim

    @property
    def inverse(self) -> Unstack:
        """The edit that takes them apart again."""
        return Unstack(self.axis, self.size)

    @property
    def names(self) -> set[str]:
        """The number of repeats, where it has a name."""
        return dims_.names((self.size,))

    def apply(self, values: list[Any], sizes: Sizes) -> list[Any]:
        """The one stacked leaf."""
        return [_xp(values[0]).stack(values, axis=self.axis)]

    def shape(self, shape: tuple[int, ...], sizes: Sizes) -> tuple[int, ...]:
        """The shape with the stack axis."""
        return (*shape[: self.axis], product(self.size, sizes), *shape[self.axis :])

    def entries(self, entries: Entries, shape: tuple[int, ...], sizes: Sizes, ways: Mapping[str, int]) -> Entries:
        """The sharding with a stack axis that is not sharded."""
        return (*entries[: self.axis], (), *entries[self.axis :])

    def labels(self, labels: Labels) -> Labels:
        """The names with none for the stack axis."""
        return (*labels[: self.axis], None, *labels[self.axis :])

    def __str__(self) -> str:
        """What is stacked, and where."""
        return f"stack {dims_.format_dim(self.size)} on axis {self.axis}"


@dataclasses.dataclass(frozen=True, slots=True)
class Chain:
    """Edits one after the other; the empty chain moves a leaf as it is.

    Example:
        >>> chain = Unstack(0, ("depth",)) >> Cast("int32", "uint32")
        >>> print(chain, "|", ~chain, "|", (chain >> ~chain).edits)
        unstack depth on axis 0, int32 -> uint32 | uint32 -> int32, stack depth on axis 0 | ()
    """

    edits: tuple[Edit, ...] = ()

    def __rshift__(self, other: Edit | Chain) -> Chain:
        """First this chain, then the other; what cancels is dropped."""
        joined = self.edits
        for edit in other.edits if isinstance(other, Chain) else (other,):
            joined = _join(joined, edit)
        return Chain(joined)

    def __invert__(self) -> Chain:
        """The chain that undoes this one."""
        return Chain(tuple(edit.inverse for edit in reversed(self.edits)))

    def __bool__(self) -> bool:
        """Whether anything is edited at all."""
        return bool(self.edits)

    def __str__(self) -> str:
        """The edits in order."""
        return ", ".join(str(edit) for edit in self.edits)

    @property
    def names(self) -> set[str]:
        """The dims whose sizes the edits need."""
        return set[str]().union(*(edit.names for edit in self.edits))

    @property
    def casts(self) -> Iterator[Cast]:
        """Those edits that only some values survive."""
        return (edit for edit in self.edits if isinstance(edit, Cast))

    def apply(self, values: Sequence[Any], sizes: Sizes) -> list[Any]:
        """The edited leaves."""
        edited = list(values)
        for edit in self.edits:
            edited = edit.apply(edited, sizes)
        return edited

    def entries(self, entries: Entries, shape: tuple[int, ...], sizes: Sizes, ways: Mapping[str, int]) -> Entries:
        """How each result is sharded, from the sharding and shape of the inputs."""
        for edit in self.edits:
            entries = edit.entries(entries, shape, sizes, ways)
            shape = edit.shape(shape, sizes)
        return entries

    def labels(self, labels: Labels) -> Labels:
        """The logical names of each result's axes."""
        for edit in self.edits:
            labels = edit.labels(labels)
        return labels


def _join(edits: tuple[Edit, ...], edit: Edit) -> tuple[Edit, ...]:
    if edits and edits[-1] == edit.inverse:
        return edits[:-1]
    if edits and isinstance(edits[-1], Rearrange) and isinstance(edit, Rearrange) and edits[-1].view == edit.source:
        return (*edits[:-1], Rearrange(edits[-1].source, edit.view))
    return (*edits, edit)
