"""Names for dims of which numbers alone are known: one for each size, and what is to be doubted of it.

A layout that was read off a tree has ``512`` where a schema has ``embed``. Each leaf votes for what its axes are
called, by its name and its node's: of 512 a kernel of ``wi`` says ``embed``, an output head says ``vocab``. The name
with most votes is taken, and the others are a doubt in the text.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
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
            # Labels of axes were made for the dims as they were.
            names = leaf.names if dims == leaf.dims else ()
            leaf = Leaf(dims, leaf.dtype, names, leaf.any_float)
        # How often a node is repeated has a name for each place.
        inside = here if self.counts else ()
        known = self._known.get((id(branch.children), inside))
        if known is None:
            children = tuple([self.named(child, inside) for child in branch.children])
            # The old children are kept, so that nothing else has their identity.
            known = self._known[id(branch.children), inside] = branch.children, children
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
    ballot = _Ballot()
    votes: dict[int, collections.Counter[str]] = {}
    counts: dict[tuple[str, ...], int] = {}
    for root in roots:
        counts.update(_counts(root.children, ()))
        for (size, name), times in ballot.votes(root.children, "", is_position=False).items():
            votes.setdefault(size, collections.Counter())[name] += times
    taken: set[str] = set()
    sizes: dict[str, int] = {}
    doubts: dict[str, str] = {}
    # Counts have names of their own, even where an axis has the same size: 12 layers are no 12 heads.
    levels: dict[tuple[str, ...], Dim] = {}
    for path, size in counts.items():
        name = _free(_count_name(path, counts), taken, size)
        levels[path] = (name,)
        sizes[name] = size
    axes: dict[int, Dim] = {}
    # What most leaves say has the first choice.
    for size in sorted(votes, key=lambda size: (-votes[size].total(), -size)):
        # An empty vote is that of a leaf whose name tells nothing.
        choices = [name for name, _ in votes[size].most_common() if name]
        if "heads" in choices and "kv_heads" in choices:  # as many as those of queries
            choices.remove("kv_heads")
        name = _free(choices[0] if choices else "size", taken, size)
        axes[size] = (name,)
        sizes[name] = size
        if not choices:
            doubts[name] = "nothing tells what it is"
        elif len(choices) > 1:
            doubts[name] = f"{', '.join(choices[1:])} as well, of one size here"
    return SizeNames(axes, levels, sizes, doubts)


def _counts(
    children: Sequence[Branch], way: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], int]]:
    """How often attributes, and what is below them, are repeated, by their paths."""
    for child in children:
        if child.count is not None and isinstance(child.count[0], int):
            yield (*way, child.name), child.count[0]
        if child.children:
            yield from _counts(child.children, (*way, child.name))


_Votes = collections.Counter[tuple[int, str]]
"""How often an axis of a size is called so."""


class _Ballot:
    """What axes of each size are called, in equal parts of a model counted once."""

    def __init__(self) -> None:
        """Has counted nothing."""
        self._known: dict[tuple[object, ...], _Votes] = {}

    def votes(self, children: tuple[Branch, ...], node: str, *, is_position: bool) -> _Votes:
        """Those of the axes of some attributes, and of what is below them.

        Args:
            children: The attributes.
            node: The name of the node that they are in.
            is_position: Whether that, or a node above it, is called after positions.
        """
        is_position = is_position or "pos" in node.lower()
        usual = _usual_axes(node)
        # Equal parts vote alike where their nodes' names tell the same.
        mark = id(children), is_position, *usual.values()
        known = self._known.get(mark)
        if known is None:
            known = self._known[mark] = collections.Counter()
            for child in children:
                if child.leaf is None:
                    below = self.votes(child.children, child.name, is_position=is_position)
                else:
                    below = _votes_of(child.name, child.leaf, usual, is_position=is_position)
                for vote, times in below.items():
                    known[vote] += times
        return known


def _votes_of(
    name: str, leaf: Leaf, usual: Mapping[int, tuple[str, ...]], *, is_position: bool
) -> _Votes:
    """What the axes of a leaf are, as far as its name tells and the node that it is in."""
    rank = len(leaf.dims)
    # What is no kernel of a layer may be a layer's weight itself.
    axes = usual.get(rank) or _usual_axes(name).get(rank, ("",) * rank)
    if name == "embedding" and rank == 2:
        axes = "positions" if is_position else "vocab", "embed"
    elif name == "scale" and rank == 1:
        axes = ("embed",)
    elif name == "kernel" and rank == 4:
        axes = "height", "width", "", ""
    votes: _Votes = collections.Counter()
    for dim, axis in zip(leaf.dims, axes, strict=True):
        size = dim[0]
        # An axis of one element is of no size that a name would stand for.
        if len(dim) == 1 and isinstance(size, int) and size > 1:
            votes[size, axis] += 1
    return votes


def _usual_axes(node: str) -> Mapping[int, tuple[str, ...]]:
    """What the axes of leaves of some ranks are in a node of this name."""
    node = node.lower()

    def has(*words: str) -> bool:
        return any(word in node for word in words)

    axes: dict[int, tuple[str, ...]] = {}
    # A node of two axes is a layer of an MLP or a head; with three, there is one for each expert, ...
    if has("wi", "up", "gate", "fc1"):
        axes[2] = "embed", "mlp"
        axes[3] = "experts", "embed", "expert_mlp"
    elif has("wo", "down", "fc2"):
        axes[2] = "mlp", "embed"
        axes[3] = "experts", "expert_mlp", "embed"
    elif has("router"):
        axes[2] = "embed", "experts"
    elif has("head", "logits"):
        axes[2] = "embed", "vocab"
    # ... or it projects to the heads of attention, or from them.
    if has("query", "q"):
        axes[3] = "embed", "heads", "head_dim"
    elif has("key", "value", "k", "v_proj"):
        axes[3] = "embed", "kv_heads", "head_dim"
    elif has("out", "o_proj"):
        axes[3] = "heads", "head_dim", "embed"
    return axes


def _count_name(path: tuple[str, ...], counts: Mapping[tuple[str, ...], int]) -> str:
    """What the number of repeats of a node is called: ``number_layers``, or the depth if nothing else is repeated."""
    if len(counts) == 1:
        return "depth"
    # Where an encoder and a decoder have layers: `number_encoder_layers`.
    lasts = [other[-1] for other in counts]
    words = path[-2:] if lasts.count(path[-1]) > 1 else path[-1:]
    return identifier("_".join(("number", *words)))


def _free(name: str, taken: set[str], size: int) -> str:
    """A name that nothing else has: the given one, with a number where that is taken.

    Args:
        name: The name; ``size`` where nothing tells one.
        taken: The names that something has; it is added.
        size: The size that it is for.
    """
    free, number = name if name != "size" else f"size_{size}", 1
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    taken.add(free)
    return free
