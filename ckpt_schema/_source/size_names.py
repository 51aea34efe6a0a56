"""Names for dims of which numbers alone are known: one for each size, and what is to be doubted of it."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from ckpt_schema._layouts.dims import Dim
from ckpt_schema._layouts.immutable import replaced
from ckpt_schema._layouts.leaves import Leaf
from ckpt_schema._source.branches import Branch

__all__ = ["SizeNames", "guessed_names", "identifier"]


@dataclasses.dataclass(frozen=True, slots=True)
class SizeNames:
    """What sizes are called.

    Attributes:
        axes: The dim of axes of each size.
        counts: The dim that counts the repeats of a node, by its path in the model.
        sizes: The size of each name.
        doubts: What is not known of a name, in words.
    """

    axes: Mapping[int, Dim]
    counts: Mapping[tuple[str, ...], Dim]
    sizes: Mapping[str, int]
    doubts: Mapping[str, str]
    _known: dict[Any, tuple[tuple[Branch, ...], tuple[Branch, ...]]] = dataclasses.field(
        default_factory=dict[Any, Any], repr=False
    )

    def named(self, branch: Branch, way: tuple[str, ...] = ()) -> Branch:
        """An attribute and what is below it, each dim by name; equal parts stay one object."""
        here = (*way, branch.name)
        count, leaf = branch.count, branch.leaf
        if count is not None:
            count = self.counts.get(here, count)
        if leaf is not None:
            dims = tuple([self.axis(dim) for dim in leaf.dims])
            names = leaf.names if dims == leaf.dims else ()
            leaf = Leaf(dims, leaf.dtype, names, leaf.any_float)
        # How often a node is repeated has a name for each place.
        inside = here if self.counts else ()
        known = self._known.get((id(branch.children), inside))
        if known is None:
            children = tuple([self.named(child, inside) for child in branch.children])
            known = (
                branch.children,
                children,
            )  # the first is kept, so that nothing else has its identity
            self._known[id(branch.children), inside] = known
        return replaced(branch, count=count, leaf=leaf, children=known[1])

    def axis(self, dim: Dim) -> Dim:
        """The dim of an axis, by name where its size has one."""
        return self.axes.get(dim[0], dim) if len(dim) == 1 and isinstance(dim[0], int) else dim


def identifier(text: str) -> str:
    """A name that Python has, made of any text.

    Example:
        >>> identifier("mlp/~/linear_0"), identifier("0"), identifier("head")
        ('mlp_linear_0', 'item_0', 'head')
    """
    words = "".join(letter if letter.isalnum() else "_" for letter in text).split("_")
    name = "_".join(word for word in words if word) or "item"
    return f"item_{name}" if name[0].isdigit() else name


def guessed_names(roots: Sequence[Branch]) -> SizeNames:
    """Names for the sizes in models: by what leaves of each size are, one name for one size.

    Args:
        roots: The attributes at the roots of the models; what stands at one path in two is one thing.
    """
    looked = _Sizes()
    for root in roots:
        for child in root.children:
            looked.look(child, ())
    votes, counts = looked.votes, looked.counts
    taken: set[str] = set()
    sizes: dict[str, int] = {}
    doubts: dict[str, str] = {}
    levels: dict[tuple[str, ...], Dim] = {}
    for path, size in counts.items():
        name = _free(_count_name(path, counts), taken, size)
        levels[path] = (name,)
        sizes[name] = size
    axes: dict[int, Dim] = {}
    # What most leaves say has the first choice.
    for size in sorted(votes, key=lambda size: (-votes[size].total(), -size)):
        told = [name for name, _ in votes[size].most_common() if name]
        name = _free(told[0] if told else "size", taken, size)
        axes[size] = (name,)
        sizes[name] = size
        if not told:
            doubts[name] = "nothing tells what it is"
        elif len(told) > 1:
            doubts[name] = f"{', '.join(told[1:])} as well, of one size here"
    return SizeNames(axes, levels, sizes, doubts)


class _Sizes:
    """The sizes in models.

    Attributes:
        votes: What axes of each size are called, and how often.
        counts: How often a node is repeated, by its path.
    """

    def __init__(self) -> None:
        """Has seen nothing."""
        self.votes: dict[int, collections.Counter[str]] = {}
        self.counts: dict[tuple[str, ...], int] = {}

    def look(self, branch: Branch, way: tuple[str, ...]) -> None:
        """Gathers the sizes of an attribute and of what is below it."""
        here = (*way, branch.name)
        if branch.count is not None and isinstance(branch.count[0], int):
            self.counts[here] = branch.count[0]
        if branch.leaf is not None:
            dims = branch.leaf.dims
            is_position = branch.name == "embedding" and "pos" in " ".join(here).lower()
            node = way[-1] if way else ""
            for dim, name in zip(
                dims, _axes_of(branch.name, node, len(dims), is_position=is_position), strict=True
            ):
                size = dim[0]
                if len(dim) == 1 and isinstance(size, int) and size > 1:
                    several = self.votes.get(size)
                    if several is None:
                        several = self.votes[size] = collections.Counter()
                    several[name] += 1
        for child in branch.children:
            self.look(child, here)


@functools.lru_cache(maxsize=4096)
def _axes_of(leaf: str, node: str, rank: int, *, is_position: bool) -> Sequence[str]:
    """What the axes of a leaf are, as far as its name tells and that of the node that it is in."""
    if leaf == "embedding" and rank == 2:
        return ["positions" if is_position else "vocab", "embed"]
    if leaf == "scale" and rank == 1:
        return ["embed"]
    node = node.lower()
    if rank == 3 and any(word in node for word in ("query", "key", "value", "q_proj", "q", "k")):
        return ["embed", "heads", "head_dim"]
    if rank == 3 and "out" in node:
        return ["heads", "head_dim", "embed"]
    if rank == 2 and any(word in node for word in ("wi", "up", "gate", "fc1")):
        return ["embed", "mlp"]
    if rank == 2 and any(word in node for word in ("wo", "down", "fc2")):
        return ["mlp", "embed"]
    if rank == 2 and any(word in node for word in ("head", "logits")):
        return ["embed", "vocab"]
    if rank == 4 and leaf == "kernel":
        return ["height", "width", "", ""]
    return [""] * rank


def _count_name(path: tuple[str, ...], counts: Mapping[tuple[str, ...], int]) -> str:
    if len(counts) == 1:
        return "depth"
    alike = [other for other in counts if other[-1] == path[-1]]
    words = path[-2:] if len(alike) > 1 else path[-1:]
    return identifier("_".join(("number", *words)))


def _free(name: str, taken: set[str], size: int) -> str:
    """A name that nothing else has."""
    found, number = name if name != "size" else f"size_{size}", 1
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    taken.add(found)
    return found
