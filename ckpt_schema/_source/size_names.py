"""Names for dims of which numbers alone are known: one for each size, and what is to be doubted of it."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from ckpt_schema._layouts.dims import Dim
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

    def dims(self, branch: Branch, way: tuple[str, ...] = ()) -> Iterator[Dim]:
        """The dims of an attribute and of what is below it, by name."""
        here = (*way, branch.name)
        if branch.count is not None:
            yield self.counts.get(here, branch.count)
        for dim in () if branch.leaf is None else branch.leaf.dims:
            yield self.axis(dim)
        for child in branch.children:
            yield from self.dims(child, here)

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
    votes: dict[int, collections.Counter[str]] = {}
    counts: dict[tuple[str, ...], int] = {}
    for root in roots:
        for child in root.children:
            _look(child, (), votes, counts)
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


def _look(
    branch: Branch,
    way: tuple[str, ...],
    votes: dict[int, collections.Counter[str]],
    counts: dict[tuple[str, ...], int],
) -> None:
    """Gathers the sizes of an attribute and of what is below it."""
    here = (*way, branch.name)
    if branch.count is not None and isinstance(branch.count[0], int):
        counts[here] = branch.count[0]
    if branch.leaf is not None:
        dims = branch.leaf.dims
        for dim, name in zip(dims, _axes_of(here, len(dims)), strict=True):
            if len(dim) == 1 and isinstance(dim[0], int) and dim[0] > 1:
                votes.setdefault(dim[0], collections.Counter())[name] += 1
    for child in branch.children:
        _look(child, here, votes, counts)


def _axes_of(path: tuple[str, ...], rank: int) -> Sequence[str]:
    """What the axes of a leaf are, as far as names tell."""
    words, leaf = " ".join(path).lower(), path[-1]
    if leaf == "embedding" and rank == 2:
        return ["positions" if "pos" in words else "vocab", "embed"]
    if leaf == "scale" and rank == 1:
        return ["embed"]
    node = path[-2].lower() if len(path) > 1 else ""
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
