"""Edits between one array and several: stacks of equal leaves, and parts of one axis."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ckpt_schema import dims as dims_
from ckpt_schema.dims import Dim
from ckpt_schema.lens.axes import Entries, Labels, Shape, Sizes, agreed, deal, house, product, xp
from ckpt_schema.lens.edits import Chain, Edit, groups

__all__ = ["Beside", "Concat", "Split", "Stack", "Unstack", "edits_of"]


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

    def gives(self, sizes: Sizes) -> int:
        """One leaf per repeat."""
        return product(self.size, sizes)

    def apply(self, values: Sequence[Any], sizes: Sizes) -> list[Any]:
        """The slices of each leaf, in order."""
        at = (slice(None),) * self.axis
        # The dots keep a 0-d NumPy array an array.
        return [value[(*at, i, ...)] for value in values for i in range(self.gives(sizes))]

    def shapes(self, shapes: Sequence[Shape], sizes: Sizes) -> list[Shape]:
        """The shape without the stack axis."""
        return [
            (*s[: self.axis], *s[self.axis + 1 :]) for s in shapes for _ in range(self.gives(sizes))
        ]

    def entries(
        self,
        entries: Sequence[Entries],
        shapes: Sequence[Shape],
        sizes: Sizes,
        ways: Mapping[str, int],
    ) -> list[Entries]:
        """The sharding without the stack axis; mesh axes that sharded it go to another axis they divide."""
        found: list[Entries] = []
        for each, shape in zip(entries, shapes, strict=True):
            rest = (*each[: self.axis], *each[self.axis + 1 :])
            inner = (*shape[: self.axis], *shape[self.axis + 1 :])
            found += [house(rest, inner, each[self.axis], ways)] * self.gives(sizes)
        return found

    def labels(self, labels: Sequence[Labels], sizes: Sizes) -> list[Labels]:
        """The names without that of the stack axis."""
        return [
            (*each[: self.axis], *each[self.axis + 1 :])
            for each in labels
            for _ in range(self.gives(sizes))
        ]

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

    def takes(self, sizes: Sizes) -> int:
        """One leaf per repeat."""
        return product(self.size, sizes)

    def apply(self, values: Sequence[Any], sizes: Sizes) -> list[Any]:
        """The stacked leaves."""
        return [
            xp(group[0]).stack(group, axis=self.axis) for group in groups(values, self.takes(sizes))
        ]

    def shapes(self, shapes: Sequence[Shape], sizes: Sizes) -> list[Shape]:
        """The shape with the stack axis."""
        size = self.takes(sizes)
        return [
            (*group[0][: self.axis], size, *group[0][self.axis :]) for group in groups(shapes, size)
        ]

    def entries(
        self,
        entries: Sequence[Entries],
        shapes: Sequence[Shape],
        sizes: Sizes,
        ways: Mapping[str, int],
    ) -> list[Entries]:
        """The sharding of the finest, with a stack axis that is not sharded."""
        finest = [_finest(group, ways) for group in groups(entries, self.takes(sizes))]
        return [(*each[: self.axis], (), *each[self.axis :]) for each in finest]

    def labels(self, labels: Sequence[Labels], sizes: Sizes) -> list[Labels]:
        """The names that all have, with none for the stack axis."""
        common = [agreed(group) for group in groups(labels, self.takes(sizes))]
        return [(*each[: self.axis], None, *each[self.axis :]) for each in common]

    def __str__(self) -> str:
        """What is stacked, and where."""
        return f"stack {dims_.format_dim(self.size)} on axis {self.axis}"


@dataclasses.dataclass(frozen=True, slots=True)
class Split(Edit):
    """One leaf to several, which share one of its axes, one after the other.

    Attributes:
        axis: The shared axis.
        parts: What each part has of it.

    Example:
        >>> edit = Split(1, dims_.parse_dims("heads*dim kv*dim kv*dim"))
        >>> print(edit, "|", ~edit)
        split axis 1 into heads*dim, kv*dim, kv*dim | join heads*dim, kv*dim, kv*dim on axis 1
        >>> edit.shapes([(6, 8)], {"heads": 2, "kv": 1, "dim": 2})
        [(6, 4), (6, 2), (6, 2)]
    """

    axis: int
    parts: tuple[Dim, ...]

    @property
    def inverse(self) -> Concat:
        """The edit that joins the parts again."""
        return Concat(self.axis, self.parts)

    @property
    def names(self) -> set[str]:
        """Every name in the parts."""
        return dims_.names(self.parts)

    def gives(self, sizes: Sizes) -> int:
        """One leaf per part."""
        return len(self.parts)

    def apply(self, values: Sequence[Any], sizes: Sizes) -> list[Any]:
        """The parts of each leaf, in order."""
        at, found, start = (slice(None),) * self.axis, list[Any](), 0
        bounds: list[tuple[Any, Any]] = []
        for part in self.parts:
            bounds.append((start, start + product(part, sizes)))
            start = bounds[-1][1]
        for value in values:
            found += [value[(*at, slice(*each))] for each in bounds]
        return found

    def shapes(self, shapes: Sequence[Shape], sizes: Sizes) -> list[Shape]:
        """The shapes of the parts."""
        spans = [product(part, sizes) for part in self.parts]
        return [
            (*shape[: self.axis], span, *shape[self.axis + 1 :])
            for shape in shapes
            for span in spans
        ]

    def entries(
        self,
        entries: Sequence[Entries],
        shapes: Sequence[Shape],
        sizes: Sizes,
        ways: Mapping[str, int],
    ) -> list[Entries]:
        """Each part is sharded as the whole; a mesh axis that does not divide its share goes to another axis it divides."""
        found: list[Entries] = []
        for each, shape in zip(entries, shapes, strict=True):
            for inner in self.shapes([shape], sizes):
                (kept,), homeless = deal(each[self.axis], inner[self.axis : self.axis + 1], ways)
                found.append(
                    house((*each[: self.axis], kept, *each[self.axis + 1 :]), inner, homeless, ways)
                )
        return found

    def labels(self, labels: Sequence[Labels], sizes: Sizes) -> list[Labels]:
        """The names of the whole."""
        return [each for each in labels for _ in self.parts]

    def __str__(self) -> str:
        """What is split, and how."""
        return f"split axis {self.axis} into {', '.join(map(dims_.format_dim, self.parts))}"


@dataclasses.dataclass(frozen=True, slots=True)
class Concat(Edit):
    """Several leaves to one, in which they share an axis, one after the other."""

    axis: int
    parts: tuple[Dim, ...]

    @property
    def inverse(self) -> Split:
        """The edit that takes them apart again."""
        return Split(self.axis, self.parts)

    @property
    def names(self) -> set[str]:
        """Every name in the parts."""
        return dims_.names(self.parts)

    def takes(self, sizes: Sizes) -> int:
        """One leaf per part."""
        return len(self.parts)

    def apply(self, values: Sequence[Any], sizes: Sizes) -> list[Any]:
        """The joined leaves."""
        return [
            xp(group[0]).concatenate(group, axis=self.axis)
            for group in groups(values, len(self.parts))
        ]

    def shapes(self, shapes: Sequence[Shape], sizes: Sizes) -> list[Shape]:
        """The shape with all parts on the axis."""
        spans = [
            sum(shape[self.axis] for shape in group) for group in groups(shapes, len(self.parts))
        ]
        first = shapes[:: len(self.parts)]
        return [
            (*s[: self.axis], span, *s[self.axis + 1 :])
            for s, span in zip(first, spans, strict=True)
        ]

    def entries(
        self,
        entries: Sequence[Entries],
        shapes: Sequence[Shape],
        sizes: Sizes,
        ways: Mapping[str, int],
    ) -> list[Entries]:
        """The sharding of the finest part; what does not divide the whole axis goes to another axis it divides."""
        found: list[Entries] = []
        finest = [_finest(group, ways) for group in groups(entries, len(self.parts))]
        for each, shape in zip(finest, self.shapes(shapes, sizes), strict=True):
            (kept,), homeless = deal(each[self.axis], shape[self.axis : self.axis + 1], ways)
            found.append(
                house((*each[: self.axis], kept, *each[self.axis + 1 :]), shape, homeless, ways)
            )
        return found

    def labels(self, labels: Sequence[Labels], sizes: Sizes) -> list[Labels]:
        """The names that all have; none for the shared axis where the parts call it differently."""
        found: list[Labels] = []
        for group in groups(labels, len(self.parts)):
            names = {each[self.axis] for each in group}
            shared = next(iter(names)) if len(names) == 1 else None
            common = agreed(
                [(*each[: self.axis], shared, *each[self.axis + 1 :]) for each in group]
            )
            found.append(common)
        return found

    def __str__(self) -> str:
        """What is joined, and where."""
        return f"join {', '.join(map(dims_.format_dim, self.parts))} on axis {self.axis}"


@dataclasses.dataclass(frozen=True, slots=True)
class Beside(Edit):
    """Chains side by side, each for its own leaves."""

    chains: tuple[Chain, ...]

    @property
    def inverse(self) -> Beside:
        """Their inverses."""
        return Beside(tuple(~chain for chain in self.chains))

    @property
    def names(self) -> set[str]:
        """The dims whose sizes any of them needs."""
        return set[str]().union(*(chain.names for chain in self.chains))

    @property
    def constraints(self) -> tuple[tuple[Dim, Dim], ...]:
        """What must hold for any of them."""
        return tuple(dict.fromkeys(c for chain in self.chains for c in chain.constraints))

    def takes(self, sizes: Sizes) -> int:
        """What all of them take."""
        return sum(chain.takes(sizes) for chain in self.chains)

    def gives(self, sizes: Sizes) -> int:
        """What all of them give."""
        return sum(chain.gives(sizes) for chain in self.chains)

    def apply(self, values: Sequence[Any], sizes: Sizes) -> list[Any]:
        """The edited leaves, chain by chain."""
        return [x for chain, own in self.dealt(values, sizes) for x in chain.apply(own, sizes)]

    def shapes(self, shapes: Sequence[Shape], sizes: Sizes) -> list[Shape]:
        """Their shapes."""
        return [x for chain, own in self.dealt(shapes, sizes) for x in chain.shapes(own, sizes)]

    def entries(
        self,
        entries: Sequence[Entries],
        shapes: Sequence[Shape],
        sizes: Sizes,
        ways: Mapping[str, int],
    ) -> list[Entries]:
        """How they are sharded."""
        both = zip(self.dealt(entries, sizes), self.dealt(shapes, sizes), strict=True)
        return [
            x for (chain, own), (_, shaped) in both for x in chain.entries(own, shaped, sizes, ways)
        ]

    def labels(self, labels: Sequence[Labels], sizes: Sizes) -> list[Labels]:
        """What their axes are called."""
        return [x for chain, own in self.dealt(labels, sizes) for x in chain.labels(own, sizes)]

    def dealt(self, values: Sequence[Any], sizes: Sizes) -> list[tuple[Chain, Sequence[Any]]]:
        """Each chain with the leaves it is for, group by group."""
        found: list[tuple[Chain, Sequence[Any]]] = []
        for group in groups(values, self.takes(sizes)):
            start = 0
            for chain in self.chains:
                taken = chain.takes(sizes)
                found.append((chain, group[start : start + taken]))
                start += taken
        return found

    def __str__(self) -> str:
        """The chains in order."""
        return f"[{' | '.join(str(chain) or 'as it is' for chain in self.chains)}]"


def edits_of(chain: Chain) -> Iterator[Edit]:
    """Every edit of a chain, those of the chains inside it too."""
    for edit in chain.edits:
        if isinstance(edit, Beside):
            for inner in edit.chains:
                yield from edits_of(inner)
        else:
            yield edit


def _finest(group: Sequence[Entries], ways: Mapping[str, int]) -> Entries:
    """The sharding into most parts, so that none is gathered."""
    return max(
        group, key=lambda entries: math.prod(ways[axis] for axes in entries for axis in axes)
    )
