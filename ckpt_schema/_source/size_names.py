"""Names for dims of which numbers alone are known: one for each size, and what is to be doubted of it.

A layout that was read off a tree has ``512`` where a schema has ``embed``. Each leaf votes for what its axes are
called, by its name and its node's: of 512 a kernel of ``wi`` says ``embed``, an output head says ``vocab``. The name
with most votes is taken, and the others are a doubt in the text.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ckpt_schema._layouts.dims import Dim
from ckpt_schema._layouts.immutable import replaced
from ckpt_schema._layouts.leaves import Leaf
from ckpt_schema._source.branches import Branch

__all__ = ["SizeNames", "guessed_names", "identifier", "without_number"]


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
    votes: dict[int, collections.Counter[_Voice]] = {}
    counts: dict[tuple[str, ...], int] = {}
    for root in roots:
        counts.update(_counts(root.children, ()))
        for (size, *voice), times in ballot.votes(root.children, "", "", "vocab").items():
            votes.setdefault(size, collections.Counter())[_Voice(*voice)] += times
    taken: set[str] = set()
    sizes: dict[str, int] = {}
    # Counts have names of their own, even where an axis has the same size: 12 layers are no 12 heads.
    levels: dict[tuple[str, ...], Dim] = {}
    for path, size in counts.items():
        name = _free(_count_name(path, counts), taken, size)
        levels[path] = (name,)
        sizes[name] = size
    choices = {size: _choices(votes[size]) for size in votes}
    named = _elected(votes, choices, taken)
    doubts: dict[str, str] = {}
    # In the order in which a reader of the model meets them, which no change elsewhere in it moves.
    for size, name in named.items():
        sizes[name] = size
        others = choices[size][1:]
        if not choices[size]:
            doubts[name] = "nothing tells what it is"
        elif others:
            *some, last = others
            listed = f"{', '.join(some)} and {last}" if some else last
            doubts[name] = f"stands for {listed} too, of the same size"
    return SizeNames({size: (name,) for size, name in named.items()}, levels, sizes, doubts)


def _choices(votes: collections.Counter[_Voice]) -> Sequence[str]:
    """What axes of one size are called, the name with most votes first."""
    names: collections.Counter[str] = collections.Counter()
    for voice, times in votes.items():
        names[voice.axis] += times
    # An empty vote is that of a leaf whose name tells nothing.
    choices = [name for name, _ in names.most_common() if name]
    if "heads" in choices and "kv_heads" in choices:  # as many as those of queries
        choices.remove("kv_heads")
    return choices


def _elected(
    votes: Mapping[int, collections.Counter[_Voice]],
    choices: Mapping[int, Sequence[str]],
    taken: set[str],
) -> dict[int, str]:
    """A name for each size, in the order of the votes; of several that want one name the others say where they are."""
    wanted: dict[str, list[int]] = {}
    # What most leaves say has the first choice.
    for size in sorted(votes, key=lambda size: (-votes[size].total(), -size)):
        wanted.setdefault(next(iter(choices[size]), "size"), []).append(size)
    named: dict[int, str] = {}
    for name, several in wanted.items():
        places = {size: _place(votes[size], name) for size in several}
        # The width of what is called mlp is mlp, and that of the shared experts shared_mlp.
        several.sort(key=lambda size: places[size] != name)
        named[several[0]] = _free(name, taken, several[0])
        for size in several[1:]:
            place = places[size] if name != "size" else ""
            named[size] = _free(f"{place}_{name}" if place not in ("", name) else name, taken, size)
    return {size: named[size] for size in votes}


def _place(votes: collections.Counter[_Voice], axis: str) -> str:
    """The node that most leaves are in that call a size so."""
    places: collections.Counter[str] = collections.Counter()
    for voice, times in votes.items():
        if voice.axis == axis:
            places[voice.place] += times
    place = next((place for place, _ in places.most_common(1)), "")
    return identifier(place) if place else ""


def _counts(
    children: Sequence[Branch], way: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], int]]:
    """How often attributes, and what is below them, are repeated, by their paths."""
    for child in children:
        if child.count is not None and isinstance(child.count[0], int):
            yield (*way, child.name), child.count[0]
        if child.children:
            yield from _counts(child.children, (*way, child.name))


class _Voice(NamedTuple):
    """What a leaf says of the size of an axis.

    Attributes:
        axis: What the axis is; empty where nothing tells.
        place: The node that the layer of the leaf is in, without a number.
    """

    axis: str
    place: str


_NUMBER = re.compile(r"_\d+$")
"""The number of one of many layers, which tells nothing of what it is; that of ``fc1`` does."""

_Votes = collections.Counter[tuple[int, str, str]]
"""How often an axis of a size is called so in a place."""


class _Ballot:
    """What axes of each size are called, in equal parts of a model counted once."""

    def __init__(self) -> None:
        """Has counted nothing."""
        self._known: dict[tuple[object, ...], _Votes] = {}

    def votes(self, children: tuple[Branch, ...], node: str, above: str, rows: str) -> _Votes:
        """Those of the axes of some attributes, and of what is below them.

        Args:
            children: The attributes.
            node: The name of the node that they are in.
            above: The name of the node that this is in.
            rows: What the rows of an embedding are, as far as the nodes above tell.
        """
        if "relative" in node.lower():
            rows = "buckets"
        elif "pos" in node.lower():
            rows = "positions"
        usual = _usual_axes(_NUMBER.sub("", node))
        here = without_number(node)
        # Equal parts vote alike where their nodes' names tell the same.
        mark = id(children), rows, here, above, *usual.values()
        known = self._known.get(mark)
        if known is None:
            known = self._known[mark] = collections.Counter()
            for child in children:
                if child.leaf is None:
                    for vote, times in self.votes(child.children, child.name, here, rows).items():
                        known[vote] += times
                    continue
                # A layer's weight says where the layer is, and a bare array where it is itself.
                place = above or here if len(child.leaf.dims) in usual else here
                for size, axis in _votes_of(child.name, child.leaf, usual, rows):
                    known[size, axis, place] += 1
        return known


def without_number(name: str) -> str:
    """The name of an attribute without its number.

    Example:
        >>> without_number("Dense_0"), without_number("norm2"), without_number("head")
        ('Dense', 'norm', 'head')
    """
    return name.rstrip("0123456789").rstrip("_")


def _votes_of(
    name: str, leaf: Leaf, usual: Mapping[int, tuple[str, ...]], rows: str
) -> Iterator[tuple[int, str]]:
    """What the axes of a leaf are, as far as its name tells and the node that it is in."""
    rank = len(leaf.dims)
    # What is no kernel of a layer may be a layer's weight itself.
    axes = usual.get(rank) or _usual_axes(name).get(rank, ("",) * rank)
    if name == "embedding" and rank == 2:
        axes = rows, "heads" if rows == "buckets" else "embed"
    elif name == "scale" and rank == 1:
        axes = ("embed",)
    elif name == "kernel" and rank == 4:
        axes = "height", "width", "", ""
    for dim, axis in zip(leaf.dims, axes, strict=True):
        size = dim[0]
        # An axis of one element is of no size that a name would stand for.
        if len(dim) == 1 and isinstance(size, int) and size > 1:
            yield size, axis


@functools.lru_cache(maxsize=256)
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
    """What the number of repeats of a node is called: ``num_layers``, or the depth if nothing else is repeated."""
    if len(counts) == 1:
        return "depth"
    # Where an encoder and a decoder have layers: `num_encoder_layers`.
    lasts = [other[-1] for other in counts]
    words = path[-2:] if lasts.count(path[-1]) > 1 else path[-1:]
    return identifier("_".join(("num", *words)))


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
