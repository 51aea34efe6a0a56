"""Ready-made blocks in the place of classes: where a block of Flax's layers says what a class would say, and nothing else.

A block is of any float, and a tree may lack some of its leaves. What a text's ``cs.layout(...)`` says of both for
all blocks at once, ``dtype=`` and ``has=``, no class has to say.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from ckpt_schema import blocks
from ckpt_schema._frameworks.state_names import USUAL_COLLECTION
from ckpt_schema._frameworks.variables import Variables
from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts.dims import Dim, Dims
from ckpt_schema._layouts.formats import FORMATS
from ckpt_schema._layouts.kinds import Dicts, Untold
from ckpt_schema._layouts.leaves import Leaf
from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.schema import body_rows
from ckpt_schema._source.branches import Branch, Grower
from ckpt_schema._source.importing import Imports

__all__ = ["BlockFit", "BlockKind", "ReadyBlocks", "globs_of"]

BlockKind = Literal["nnx", "linen", "plain", "bare"]
"""What the leaves of blocks are: Variables, of collections, of none in a model, or of none in no model."""

_AXES: Mapping[str, frozenset[str]] = {
    "Conv": frozenset({"kernel_size"}),
    "ConvTranspose": frozenset({"kernel_size"}),
    "ConvLSTMCell": frozenset({"kernel_size"}),
    "ConvLocal": frozenset({"positions"}),
    "DenseGeneral": frozenset({"in_features", "out_features"}),
    "Einsum": frozenset({"shape", "bias_shape"}),
}
"""The dims of blocks that stand for several axes."""

_ORDER = (
    "MultiHeadAttention",
    "LSTMCell",
    "OptimizedLSTMCell",
    "GRUCell",
    "MGUCell",
    "SimpleCell",
    "ConvLSTMCell",
    "LoRALinear",
    "BatchNorm",
    "RMSNorm",
    "LayerNorm",
    "Embed",
    "PReLU",
    "Dense",
    "Conv",
    "DenseGeneral",
    "Einsum",
    "Fp8DotGeneral",
    "Dropout",
)
"""Which block is tried first where nothing calls it by its name: of two that fit, the one that says more."""

_OTHER_NAMES = {"Dense": "Linear", "DenseGeneral": "LinearGeneral"}
"""What NNX calls layers of Linen."""

_WHOLE = ("heads", "head_dim")
"""Axes that one dim of a layer stands for, and that no two do."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Entry:
    """A leaf below a node, or a stream.

    Attributes:
        mark: The names of the attributes that lead to it, and what their fields say.
        leaf: What it is; None of a stream.
        stream: The implementation of the key of a stream.
        absence: How its field says that a tree may lack it; empty where it has to have it.
        at: Which of the dims of the node are its own.
    """

    mark: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    leaf: Leaf | None
    stream: str
    absence: tuple[tuple[str, str], ...]
    at: slice

    @property
    def path(self) -> LogicalPath:
        """Its logical path from the node on."""
        return tuple([name for name, _ in self.mark])


@dataclasses.dataclass(frozen=True, slots=True)
class BlockFit:
    """A block that says what stands in a place.

    Attributes:
        name: What it is called.
        dims: What the place calls the dims of the block, where it calls them otherwise.
        open_leaves: The leaves, by their paths from there, that are any float by the block, and are one here.
        present: The leaves and streams that a tree may lack by the block, and that are here.
        absent: Those that are not.
        has_collections: Whether leaves of it, absent ones too, are of other collections than params.
    """

    name: str
    dims: Mapping[str, str]
    open_leaves: tuple[LogicalPath, ...]
    present: tuple[LogicalPath, ...]
    absent: tuple[LogicalPath, ...]
    has_collections: bool


@dataclasses.dataclass(frozen=True, slots=True)
class ReadyBlocks:
    """The blocks that a text may use.

    Attributes:
        side: What their leaves are.
        tells_dtypes: Whether the layout of the text says which floats all of them are.
        tells_presence: Whether it says which of the leaves that a tree may lack it has.
        axes: On which axes layers are stacked in the layout: what a block has has to have them.
    """

    side: BlockKind
    tells_dtypes: bool
    tells_presence: bool
    axes: frozenset[int] = frozenset()
    _known: dict[Any, tuple[object, BlockFit | None]] = dataclasses.field(
        default_factory=dict[Any, Any], repr=False
    )

    @property
    def library(self) -> str:
        """The module that has them."""
        return "nnx" if self.side == "nnx" else "linen"

    def fit(self, branch: Branch, dims: Sequence[Dim]) -> BlockFit | None:
        """The block that says what is below an attribute; None where none says just that.

        Args:
            branch: The attribute.
            dims: What it calls the dims of all that is below it.
        """
        if branch.leaf is not None or branch.stream or branch.separator:
            return None
        mark = id(branch.children), branch.name, tuple(dims)
        if mark not in self._known:
            # The children are kept, so that nothing else has their identity.
            self._known[mark] = branch.children, self._found(branch, dims)
        return self._known[mark][1]

    def _found(self, branch: Branch, dims: Sequence[Dim]) -> BlockFit | None:
        entries = _entries(branch.children)
        if not entries:
            return None
        library = getattr(blocks, self.library)
        for name in _names(branch.name, _rank(entries, dims), self.side):
            if hasattr(library, name):
                found = self._fit(name, entries, dims)
                if found is not None:
                    return found
        return None

    def _fit(self, name: str, entries: Sequence[_Entry], dims: Sequence[Dim]) -> BlockFit | None:
        pattern = {entry.mark: entry for entry in _pattern(self.side, name)}
        found = {entry.mark: entry for entry in entries}
        # The first leaf is that without which a layer is another one.
        first = next((mark for mark, entry in pattern.items() if entry.leaf is not None), None)
        if not found.keys() <= pattern.keys() or first not in found:
            return None
        absent = [entry for mark, entry in pattern.items() if mark not in found]
        if any(not self._may_be_absent(entry) for entry in absent):
            return None
        pairs: list[tuple[Leaf, Dims]] = []
        for mark, entry in found.items():
            whole = pattern[mark]
            if not self._is_like(entry, whole):
                return None
            if whole.leaf is not None:
                pairs.append((whole.leaf, tuple(dims[entry.at])))
        renames = _renames(pairs, _AXES.get(_linen_name(name), frozenset()))
        if renames is None:
            return None
        kept = [pattern[mark] for mark in found]
        is_open = [entry for entry in kept if entry.leaf is not None and entry.leaf.is_open]
        present = [entry for entry in kept if entry.absence]
        return BlockFit(
            name,
            renames,
            tuple([entry.path for entry in is_open if self.tells_dtypes]),
            tuple([entry.path for entry in present if self.tells_presence]),
            tuple([entry.path for entry in absent]),
            any(word == "collection" for mark in pattern for _, said in mark for word, _ in said),
        )

    def _may_be_absent(self, entry: _Entry) -> bool:
        """Whether the text can say that what a block speaks of is not there."""
        rank = 0 if entry.leaf is None else len(entry.leaf.dims)
        stacked = all(-rank - 1 <= axis <= rank for axis in self.axes)
        return self.tells_presence and bool(entry.absence) and stacked

    def _is_like(self, entry: _Entry, whole: _Entry) -> bool:
        """Whether a leaf is what a block says, but for its dims and for what the text says of all."""
        if entry.stream != whole.stream or (entry.leaf is None) != (whole.leaf is None):
            return False
        if not self.tells_presence and entry.absence != whole.absence:
            return False
        if entry.leaf is None or whole.leaf is None:
            return True
        labels = [[name.label for name in leaf.names] for leaf in (entry.leaf, whole.leaf)]
        if any(labels[0]) and labels[0] != labels[1]:
            return False
        if whole.leaf.is_open and self.tells_dtypes:
            return entry.leaf.dtype in FORMATS
        return entry.leaf.dtype == whole.leaf.dtype


def _linen_name(name: str) -> str:
    return next((own for own, other in _OTHER_NAMES.items() if other == name), name)


def _names(attribute: str, rank: int, side: BlockKind) -> Iterator[str]:
    """The blocks to try for an attribute: what it is called, then the others."""
    word = attribute.rstrip("0123456789").rstrip("_")
    order = [name for name in (word, *_hinted(word.lower())) if name in _known_names(side)]
    for name in _ORDER:
        # A kernel of three axes is a projection to heads, unless it is called a convolution; one of two is a matrix.
        if name == "Conv" and rank < 4 and "conv" not in word.lower():
            continue
        if name == "Einsum" and rank < 3:
            continue
        order.append(_OTHER_NAMES.get(name, name) if side == "nnx" else name)
    return iter(dict.fromkeys(order))


def _hinted(word: str) -> Iterator[str]:
    if "transpose" in word:
        yield "ConvTranspose"
    if "group" in word:
        yield "GroupNorm"
    if "instance" in word:
        yield "InstanceNorm"


def _known_names(side: BlockKind) -> Sequence[str]:
    return blocks.nnx.__all__ if side == "nnx" else blocks.linen.__all__


def _rank(entries: Sequence[_Entry], dims: Sequence[Dim]) -> int:
    """How many axes the kernel has that is a node's own."""
    kernels = (entry for entry in entries if entry.path == ("kernel",))
    return next((len(dims[entry.at]) for entry in kernels), 0)


_LEVELS, _CHILDREN = 2, 12
"""How deep blocks are, and how much they have side by side, at the most."""


def _entries(children: Sequence[Branch], levels: int = _LEVELS) -> list[_Entry]:
    """All leaves below a node in order; none where it is no layer: something is repeated, or has joined keys."""
    found: list[_Entry] = []
    if not levels or len(children) > _CHILDREN:
        return found
    at = 0
    for child in children:
        if child.count is not None or child.separator:
            return []
        absence = tuple(pair for pair in child.said if pair[0] in ("optional", "ephemeral"))
        own = child.name, tuple(pair for pair in child.said if pair not in absence)
        if child.leaf is not None or child.stream:
            end = at + (0 if child.leaf is None else len(child.leaf.dims))
            found.append(_Entry((own,), child.leaf, child.stream, absence, slice(at, end)))
            at = end
            continue
        below = _entries(child.children, levels - 1)
        if not below or absence:
            return []
        for entry in below:
            inside = slice(at + entry.at.start, at + entry.at.stop)
            found.append(dataclasses.replace(entry, mark=(own, *entry.mark), at=inside))
        at += child.width
    return found


@functools.cache
def _pattern(side: BlockKind, name: str) -> tuple[_Entry, ...]:
    """What a block has, as a text of this side would write it."""
    library: Any = blocks.nnx if side == "nnx" else blocks.linen
    kinds: Dicts = {"nnx": Variables(), "linen": Dicts()}.get(side, Untold())
    usual = (USUAL_COLLECTION, USUAL_COLLECTION)
    if side in ("nnx", "bare"):
        usual = ("Param", "RngKey") if side == "nnx" else ("", "")
    placed = [
        (row if side == "bare" else kinds.model(row, collection), row.key)
        for row, collection in body_rows(getattr(library, name))
    ]
    return tuple(_entries(Grower(Imports(), usual).grow(placed)))


def _renames(pairs: Sequence[tuple[Leaf, Dims]], several: frozenset[str]) -> dict[str, str] | None:
    """What a place calls the dims of a block, as ``dims=`` says it; None where it has other axes.

    Args:
        pairs: The leaves of the block, and the axes that each has in the place.
        several: The dims that may be several axes there.
    """
    solutions = [
        found
        for found in _solutions(pairs, several, {})
        if all(_renamed(leaf, found) == dims for leaf, dims in pairs)
    ]
    if not solutions:
        return None
    costs = [_cost(found) for found in solutions]
    best = [found for found, cost in zip(solutions, costs, strict=True) if cost == min(costs)]
    if len(best) > 1:
        return None  # nothing tells which
    renames = {
        name: dims_.format_dims(axes) for name, axes in best[0].items() if axes != ((name,),)
    }
    return dict(sorted(renames.items()))


_Solution = Mapping[str, Dims]


def _renamed(leaf: Leaf, found: _Solution) -> Dims:
    """The axes of a leaf of a block where its dims are called so."""
    return leaf.renamed({name: dims_.format_dims(axes) for name, axes in found.items()}).dims


def _cost(found: _Solution) -> int:
    """How much speaks against a reading: heads that are parted, and axes that are one dim for no reason."""
    cost = 0
    for axes in found.values():
        names = tuple([dims_.format_dim(dim) for dim in axes])
        if len(names) > 1 and names != _WHOLE:
            cost += 1
        if len(names) == 1 and names[0] in _WHOLE:
            cost += 2
    return cost


def _solutions(
    pairs: Sequence[tuple[Leaf, Dims]], several: frozenset[str], known: _Solution
) -> Iterator[_Solution]:
    """What dims of a block may be called, so that its leaves have the axes of a place; products are not looked at."""
    if not pairs:
        yield known
        return
    (leaf, dims), *rest = pairs
    for found in _read(leaf.dims, dims, several, known):
        yield from _solutions(rest, several, found)


def _read(own: Dims, dims: Dims, several: frozenset[str], known: _Solution) -> Iterator[_Solution]:
    if not own or not dims:
        if not own and not dims:
            yield known
        return
    name = own[0][0] if len(own[0]) == 1 else None
    if not isinstance(name, str):  # of a product, its factors have to be told by other leaves
        yield from _read(own[1:], dims[1:], several, known)
        return
    if name in known:
        axes = known[name]
        if dims[: len(axes)] == axes:
            yield from _read(own[1:], dims[len(axes) :], several, known)
        return
    most = len(dims) - len(own) + 1 if name in several else 1
    for end in range(1, most + 1):
        if all(dim != (0,) for dim in dims[:end]):
            yield from _read(own[1:], dims[end:], several, {**known, name: dims[:end]})


def globs_of(meant: Sequence[LogicalPath], others: Sequence[LogicalPath]) -> list[str]:
    """The shortest globs that mean some nodes, and nothing in or above others.

    Example:
        >>> globs_of([("a", "up", "bias"), ("b", "up", "bias")], [("a", "down", "bias")])
        ['**/up/bias']
    """
    inside: dict[int, set[LogicalPath]] = {}
    globs: dict[str, None] = {}
    for path in meant:
        for size in range(1, len(path) + 1):
            end = path[len(path) - size :]
            if size not in inside:  # what a glob of so many segments must not end with
                inside[size] = {o[n : n + size] for o in others for n in range(len(o) - size + 1)}
            if end not in inside[size] or size == len(path):
                head = ("**",) if size < len(path) else ()
                globs["/".join((*head, *end))] = None
                break
    return [*globs]
