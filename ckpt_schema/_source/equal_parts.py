"""Equal parts of a model as one class: what differs in sizes alone is one class, whose dims are renamed where it is used.

An encoder's ``Dense`` of ``embed mlp`` and a decoder's of ``embed vocab`` are one class of ``embed outputs``,
which the first place uses with ``dims={"outputs": "mlp"}``, and the second with ``dims={"outputs": "vocab"}``.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Sequence

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts.dims import Dim
from ckpt_schema._source.branches import Branch

__all__ = ["SharedClass", "Sharing"]

_Shape = tuple[object, ...]

_NONE: Dim = (0,)
"""The dim of an axis without elements, and the count of layers of which there are none."""


@dataclasses.dataclass(slots=True)
class SharedClass:
    """A class, for all places where it stands.

    Attributes:
        children: Its attributes, as the first of these places has them.
        first: The attributes on the way to that place.
        uses: The dims that it has, position by position, in each of them.
        places: How many of them are an attribute of a name, which is repeated or is not.
    """

    children: tuple[Branch, ...]
    first: tuple[Branch, ...]
    uses: dict[tuple[Dim, ...], None]
    places: collections.Counter[tuple[str, bool]] = dataclasses.field(
        default_factory=collections.Counter[tuple[str, bool]]
    )
    _own: tuple[Dim, ...] = ()

    @property
    def separator(self) -> str:
        """What the class joins keys by; empty where it does not."""
        return self.first[-1].separator

    @property
    def own(self) -> tuple[Dim, ...]:
        """What the class itself calls each dim: as all places do, or by a name that they rename."""
        if not self._own:
            self._own = tuple(self._named())
        return self._own

    @property
    def renamed(self) -> set[str]:
        """The names that are its own, and that each place has to rename."""
        names: set[str] = set()
        for dim, several in zip(self.own, self._positions, strict=True):
            if len(set(several)) > 1:
                names.add(str(dim[0]))
        return names

    @property
    def _positions(self) -> list[tuple[Dim, ...]]:
        """What the places call the dim at each position: for two places ``(("mlp",), ("vocab",))``."""
        return [*zip(*self.uses, strict=True)]

    def _named(self) -> Iterator[Dim]:
        """What the class calls each dim, position by position."""
        if len(self.uses) == 1:  # a class that stands once calls its dims as its place does
            yield from next(iter(self.uses))
            return
        positions = self._positions
        # What all places call the same, the class calls so too.
        taken = dims_.dim_names(several[0] for several in positions if len(set(several)) == 1)
        # Positions that are the same in each place are one dim: by what the places call them.
        names: dict[tuple[Dim, ...], str] = {}
        suggestions = self._suggestions()
        # A position that tells much of its dim names it for those that tell little.
        for at in sorted(range(len(positions)), key=lambda at: -suggestions[at][0]):
            several = positions[at]
            if len(set(several)) == 1 or several in names:
                continue
            name = suggestions[at][1]
            if not name:
                first = several[0]
                name = str(first[0]) if len(first) == 1 and isinstance(first[0], str) else "size"
                # Of several sizes no number tells which: that is for the places to say.
                name = name.rstrip("0123456789").removesuffix("_")
            number, free = 1, name
            while free in taken:
                number += 1
                free = f"{name}_{number}"
            taken.add(free)
            names[several] = free
        for several in positions:
            yield several[0] if len(set(several)) == 1 else (names[several],)

    def _suggestions(self) -> list[tuple[int, str]]:
        """For each position, how much it says of what a dim is, and what it would call it."""
        names: list[tuple[int, str]] = []
        for child in self.children:
            # Below a node, it is for the node's own class to name dims.
            if child.leaf is None:
                names += [(0, "")] * child.width
                continue
            # How often a leaf is repeated tells nothing.
            if child.count is not None:
                names.append((0, ""))
            names += _axis_names(child.name, len(child.leaf.dims))
        return names


def _axis_names(leaf: str, rank: int) -> list[tuple[int, str]]:
    """What the axes of a leaf are called, where nothing else is known of them; and how much that says, the rank.

    A kernel of four axes has ``kernel_0 kernel_1 inputs outputs``. Of a bias nothing but its rank is known: what the
    kernel beside it calls the same dim says more.
    """
    if not rank:
        return []
    if rank == 1:
        return [(1, "features")]
    ends = ("rows", "features") if leaf == "embedding" else ("inputs", "outputs")
    names = [*[f"{leaf}_{n}" for n in range(rank - 2)], *ends]
    return [(rank, name) for name in names]


class Sharing:
    """The classes of a text.

    Attributes:
        classes: Each class by its shape, in the order of their first places.
    """

    def __init__(self, roots: Sequence[Branch]) -> None:
        """Finds the classes below some attributes."""
        self.classes: dict[int, SharedClass] = {}
        self._numbers: dict[_Shape, int] = {}
        # By the identity of what is below an attribute, which equal parts of a model share.
        self._shapes: dict[tuple[int, str], int] = {}
        self._dims: dict[int, tuple[Dim, ...]] = {}
        for root in roots:
            self._visit(root, ())

    def dims(self, branch: Branch) -> tuple[Dim, ...]:
        """Every dim of an attribute and of what is below it, in order."""
        count = () if branch.count is None else (branch.count,)
        inner = self.inner_dims(branch.children) if branch.leaf is None else branch.leaf.dims
        return (*count, *inner)

    def inner_dims(self, children: tuple[Branch, ...]) -> tuple[Dim, ...]:
        """Those of all attributes of a class."""
        known = self._dims.get(id(children))
        if known is None:
            dims: list[Dim] = []
            for child in children:
                dims += self.dims(child)
            known = self._dims[id(children)] = tuple(dims)
        return known

    def shape(self, branch: Branch) -> int:
        """The shape of what is below an attribute: equal where one class will do."""
        return self._shapes[id(branch.children), branch.separator]

    def shared(self, branch: Branch) -> SharedClass:
        """The class of an attribute."""
        return self.classes[self.shape(branch)]

    def _visit(self, branch: Branch, way: tuple[Branch, ...]) -> _Shape:
        """What tells an attribute from others but for its sizes."""
        # A place cannot say of a name that it is 0: what has no elements is not equal to what has some.
        is_empty = branch.count == _NONE
        field = (
            branch.name,
            branch.said,
            branch.count is None,
            is_empty,
            branch.is_list,
            branch.stream,
        )
        # Of a leaf how many dims it has and their labels, but not what they are: that is what places may rename.
        if branch.leaf is not None:
            labels = tuple([name.label for name in branch.leaf.names])
            are_empty = tuple([dim == _NONE for dim in branch.leaf.dims])
            return *field, branch.leaf.dtype, are_empty, labels
        if branch.stream:
            return field
        mark = id(branch.children), branch.separator
        number = self._shapes.get(mark)
        if number is None:
            # What is below comes first: a class is told by the numbers of the classes in it.
            children = [self._visit(child, (*way, branch)) for child in branch.children]
            number = self._numbers.setdefault((branch.separator, *children), len(self._numbers))
            self._shapes[mark] = number
            # The first place gives the class its attributes; the others add what they call its dims.
            first = SharedClass(branch.children, (*way, branch), {})
            known = self.classes.setdefault(number, first)
            known.uses[self.inner_dims(branch.children)] = None
        self.classes[number].places[branch.name, branch.count is not None] += 1
        return *field, number
