"""Edits of leaves: each an isomorphism that knows its inverse, and what it does to shapes, shardings and names of axes.

An edit turns a list of leaves into a list of leaves, group by group: so many leaves go in, and so many come out. ``a >> b``
composes, ``~a`` inverts, and ``~a >> a`` is the identity, which composition sees and drops.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ckpt_schema.dims import Dim
from ckpt_schema.lens.axes import Entries, Labels, Shape, Sizes

__all__ = ["Chain", "Edit", "Leafwise", "groups"]


class Edit:
    """An invertible edit of a list of leaves."""

    __slots__ = ()

    @property
    def inverse(self) -> Edit:
        """The edit that undoes this one."""
        raise NotImplementedError

    @property
    def names(self) -> set[str]:
        """The dims whose sizes it needs."""
        return set()

    @property
    def constraints(self) -> tuple[tuple[Dim, Dim], ...]:
        """What must hold of these sizes, and does not for all: of two dims, the first is no smaller."""
        return ()

    def takes(self, sizes: Sizes) -> int:
        """How many leaves go into one application."""
        return 1

    def gives(self, sizes: Sizes) -> int:
        """How many leaves come out of it."""
        return 1

    def apply(self, values: Sequence[Any], sizes: Sizes) -> list[Any]:
        """The edited leaves; NumPy arrays stay NumPy arrays, everything else goes through ``jax.numpy``."""
        raise NotImplementedError

    def shapes(self, shapes: Sequence[Shape], sizes: Sizes) -> list[Shape]:
        """The shape of each result, from those of the inputs."""
        raise NotImplementedError

    def entries(
        self,
        entries: Sequence[Entries],
        shapes: Sequence[Shape],
        sizes: Sizes,
        ways: Mapping[str, int],
    ) -> list[Entries]:
        """How each result is sharded.

        Args:
            entries: How each input is sharded.
            shapes: The shape of each input.
            sizes: Sizes of the dims.
            ways: The size of each mesh axis.
        """
        raise NotImplementedError

    def labels(self, labels: Sequence[Labels], sizes: Sizes) -> list[Labels]:
        """The logical names of each result's axes, from those of the inputs."""
        raise NotImplementedError

    def followed_by(self, other: Edit) -> Edit | None:
        """The one edit that does what this and ``other`` do in turn, where there is one."""
        return None

    def __rshift__(self, other: Edit | Chain) -> Chain:
        """First this edit, then the other."""
        return Chain((self,)) >> other

    def __invert__(self) -> Edit:
        """The inverse edit."""
        return self.inverse


class Leafwise(Edit):
    """An edit of each leaf by itself."""

    __slots__ = ()

    def one(self, value: Any, sizes: Sizes) -> Any:
        """The edited leaf."""
        raise NotImplementedError

    def shape(self, shape: Shape, sizes: Sizes) -> Shape:
        """Its shape; the same unless said."""
        return shape

    def sharded(
        self, entries: Entries, shape: Shape, sizes: Sizes, ways: Mapping[str, int]
    ) -> Entries:
        """How it is sharded; as before unless said."""
        return entries

    def named(self, labels: Labels) -> Labels:
        """What its axes are called; as before unless said."""
        return labels

    def apply(self, values: Sequence[Any], sizes: Sizes) -> list[Any]:
        """Each leaf edited."""
        return [self.one(value, sizes) for value in values]

    def shapes(self, shapes: Sequence[Shape], sizes: Sizes) -> list[Shape]:
        """The shape of each."""
        return [self.shape(shape, sizes) for shape in shapes]

    def entries(
        self,
        entries: Sequence[Entries],
        shapes: Sequence[Shape],
        sizes: Sizes,
        ways: Mapping[str, int],
    ) -> list[Entries]:
        """How each is sharded."""
        return [
            self.sharded(e, shape, sizes, ways) for e, shape in zip(entries, shapes, strict=True)
        ]

    def labels(self, labels: Sequence[Labels], sizes: Sizes) -> list[Labels]:
        """What the axes of each are called."""
        return [self.named(each) for each in labels]


def groups(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """``values`` in groups of ``size``."""
    return (values[at : at + size] for at in range(0, len(values), size))


@dataclasses.dataclass(frozen=True, slots=True)
class Chain:
    """Edits one after the other; the empty chain moves a leaf as it is.

    Example:
        >>> from ckpt_schema.lens.partial import Cast
        >>> from ckpt_schema.lens.stacks import Unstack
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
    def constraints(self) -> tuple[tuple[Dim, Dim], ...]:
        """What must hold of these sizes: of two dims, the first is no smaller."""
        return tuple(dict.fromkeys(c for edit in self.edits for c in edit.constraints))

    def takes(self, sizes: Sizes) -> int:
        """How many leaves go into one application of the chain."""
        needed = 1
        for edit in reversed(self.edits):
            needed = max(1, needed // max(1, edit.gives(sizes))) * edit.takes(sizes)
        return needed

    def gives(self, sizes: Sizes) -> int:
        """How many leaves come out of it."""
        count = self.takes(sizes)
        for edit in self.edits:
            count = count // edit.takes(sizes) * edit.gives(sizes)
        return count

    def apply(self, values: Sequence[Any], sizes: Sizes) -> list[Any]:
        """The edited leaves."""
        edited = list(values)
        for edit in self.edits:
            edited = edit.apply(edited, sizes)
        return edited

    def shapes(self, shapes: Sequence[Shape], sizes: Sizes) -> list[Shape]:
        """The shape of each result."""
        found = list(shapes)
        for edit in self.edits:
            found = edit.shapes(found, sizes)
        return found

    def entries(
        self,
        entries: Sequence[Entries],
        shapes: Sequence[Shape],
        sizes: Sizes,
        ways: Mapping[str, int],
    ) -> list[Entries]:
        """How each result is sharded, from the sharding and shape of the inputs."""
        found, shaped = list(entries), list(shapes)
        for edit in self.edits:
            found = edit.entries(found, shaped, sizes, ways)
            shaped = edit.shapes(shaped, sizes)
        return found

    def labels(self, labels: Sequence[Labels], sizes: Sizes) -> list[Labels]:
        """The logical names of each result's axes."""
        found = list(labels)
        for edit in self.edits:
            found = edit.labels(found, sizes)
        return found


def _join(edits: tuple[Edit, ...], edit: Edit) -> tuple[Edit, ...]:
    if edits and edits[-1] == edit.inverse:
        return edits[:-1]
    one = edits[-1].followed_by(edit) if edits else None
    return (*edits, edit) if one is None else (*edits[:-1], one)
