"""Ready-made blocks in the place of classes: where a block of Flax's layers says what a class would say, and nothing else.

A block is of any float, and a tree may lack some of its leaves. What a text's ``cs.layout(...)`` says of both for
all blocks at once, ``dtype=`` and ``has=``, no class has to say.

Before ``python_text`` writes a class, it asks here whether a block fits. Blocks are tried in turn; each is read as
branches, as the layout is, and both are held against each other leaf by leaf, dims last.
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
from ckpt_schema._source.flat_keys import Placed
from ckpt_schema._source.importing import Imports
from ckpt_schema._source.size_names import without_number

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

    @property
    def rank(self) -> int:
        """How many axes it has; a stream has none."""
        return 0 if self.leaf is None else len(self.leaf.dims)

    @property
    def is_open(self) -> bool:
        """Whether it is any float."""
        return self.leaf is not None and self.leaf.is_open


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
        # Of thousands of layers alike each has a number of its own, which tells nothing of what they are.
        word = without_number(branch.name)
        mark = id(branch.children), word, tuple(dims)
        if mark not in self._known:
            # The children are kept, so that nothing else has their identity.
            self._known[mark] = branch.children, self._first_fit(branch.children, word, dims)
        return self._known[mark][1]

    def _first_fit(
        self, children: Sequence[Branch], word: str, dims: Sequence[Dim]
    ) -> BlockFit | None:
        """The first block that fits what is below an attribute, of all that there are."""
        entries = _entries(children)
        if not entries:
            return None
        library = getattr(blocks, self.library)
        for name in _names(word, _rank(entries, dims), self.side):
            if hasattr(library, name):
                fit = self._fit(name, entries, dims)
                if fit is not None:
                    return fit
        return None

    def _fit(self, name: str, entries: Sequence[_Entry], dims: Sequence[Dim]) -> BlockFit | None:
        """How a block fits some leaves, of which an attribute calls the dims so; None where it does not."""
        pattern = {entry.mark: entry for entry in _pattern(self.side, name)}
        marks = {entry.mark for entry in entries}
        # The first leaf is that without which a layer is another one.
        first = next((mark for mark, entry in pattern.items() if entry.leaf is not None), None)
        if not marks <= pattern.keys() or first not in marks:
            return None
        absent: list[LogicalPath] = []
        for mark, of_block in pattern.items():
            if mark not in marks:
                if not self._may_be_absent(of_block):
                    return None
                absent.append(of_block.path)
        # What the block has, and the axes of it here: of these its dims get their names.
        pairs: list[tuple[Leaf, Dims]] = []
        open_leaves: list[LogicalPath] = []
        present: list[LogicalPath] = []
        for entry in entries:
            of_block = pattern[entry.mark]
            if not self._is_like(entry, of_block):
                return None
            if of_block.leaf is not None:
                pairs.append((of_block.leaf, tuple(dims[entry.at])))
            if of_block.is_open and self.tells_dtypes:
                open_leaves.append(of_block.path)
            if of_block.absence and self.tells_presence:
                present.append(of_block.path)
        renames = _renames(pairs, _AXES.get(_linen_name(name), frozenset()))
        if renames is None:
            return None
        return BlockFit(
            name,
            renames,
            tuple(open_leaves),
            tuple(present),
            tuple(absent),
            has_collections=any(map(_is_of_collection, pattern.values())),
        )

    def _may_be_absent(self, entry: _Entry) -> bool:
        """Whether the text can say that what a block speaks of is not there."""
        # An axis that layers are stacked on is declared for all leaves of a block, for absent ones too: each has to have it.
        can_stack = all(-entry.rank - 1 <= axis <= entry.rank for axis in self.axes)
        return self.tells_presence and bool(entry.absence) and can_stack

    def _is_like(self, entry: _Entry, of_block: _Entry) -> bool:
        """Whether a leaf is what a block says, but for its dims and for what the text says of all."""
        if entry.stream != of_block.stream or (entry.leaf is None) != (of_block.leaf is None):
            return False
        if not self.tells_presence and entry.absence != of_block.absence:
            return False
        if entry.leaf is None or of_block.leaf is None:
            return True
        # Labels of axes stand in a class; a block says its own, and no place can change them.
        labels = [name.label for name in entry.leaf.names]
        if any(labels) and labels != [name.label for name in of_block.leaf.names]:
            return False
        if of_block.leaf.is_open and self.tells_dtypes:
            return entry.leaf.dtype in FORMATS
        return entry.leaf.dtype == of_block.leaf.dtype


def _is_of_collection(entry: _Entry) -> bool:
    """Whether a field on the way to a leaf names a collection."""
    return any("collection" in dict(said) for _, said in entry.mark)


def _linen_name(name: str) -> str:
    """What Linen calls a layer: ``Dense``, where NNX has ``Linear``."""
    for linen_name, nnx_name in _OTHER_NAMES.items():
        if nnx_name == name:
            return linen_name
    return name


def _names(word: str, rank: int, side: BlockKind) -> Iterator[str]:
    """The blocks to try for an attribute: what it is called, then the others."""
    # Linen calls a layer that nobody has named by its class: `Dense_0`.
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
    """The blocks that a word in the name of an attribute means, which are not in `_ORDER`."""
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
    for entry in entries:
        if entry.path == ("kernel",):
            return len(dims[entry.at])
    return 0


_LEVELS, _CHILDREN = 2, 12
"""How deep blocks are, and how much they have side by side, at the most."""


def _entries(children: Sequence[Branch], levels: int = _LEVELS) -> list[_Entry]:
    """All leaves below a node in order; none where it is no layer: something is repeated, or has joined keys."""
    entries: list[_Entry] = []
    if not levels or len(children) > _CHILDREN:
        return entries
    # Where in the dims of the node those of the next child begin.
    start = 0
    for child in children:
        if child.count is not None or child.separator:
            return []
        # What a tree may lack is compared apart from the rest: the text may say of all blocks what is there.
        absence: list[tuple[str, str]] = []
        others: list[tuple[str, str]] = []
        for pair in child.said:
            (absence if pair[0] in ("optional", "ephemeral") else others).append(pair)
        mark = child.name, tuple(others)
        if child.leaf is not None or child.stream:
            at = slice(start, start + child.width)
            entries.append(_Entry((mark,), child.leaf, child.stream, tuple(absence), at))
            start += child.width
            continue
        below = _entries(child.children, levels - 1)
        # No block has a whole node that a tree may lack.
        if not below or absence:
            return []
        for entry in below:
            at = slice(start + entry.at.start, start + entry.at.stop)
            entries.append(dataclasses.replace(entry, mark=(mark, *entry.mark), at=at))
        start += child.width
    return entries


@functools.cache
def _pattern(side: BlockKind, name: str) -> tuple[_Entry, ...]:
    """What a block has, as a text of this side would write it."""
    library: Any = blocks.nnx if side == "nnx" else blocks.linen
    kinds: Dicts = {"nnx": Variables(), "linen": Dicts()}.get(side, Untold())
    usual = (USUAL_COLLECTION, USUAL_COLLECTION)
    if side in ("nnx", "bare"):
        usual = ("Param", "RngKey") if side == "nnx" else ("", "")
    placed: list[Placed] = []
    for row, collection in body_rows(getattr(library, name)):
        # In a bare tree nothing is of a collection.
        placed.append((row if side == "bare" else kinds.model(row, collection), row.key))
    return tuple(_entries(Grower(Imports(), usual).grow(placed)))


def _renames(pairs: Sequence[tuple[Leaf, Dims]], several: frozenset[str]) -> dict[str, str] | None:
    """What a place calls the dims of a block, as ``dims=`` says it; None where it has other axes.

    Args:
        pairs: The leaves of the block, and the axes that each has in the place.
        several: The dims that may be several axes there.
    """
    by_cost: dict[int, list[_Solution]] = {}
    for solution in _solutions(pairs, several, {}):
        # Products were passed over: only now are all their factors known.
        if all(_renamed(leaf, solution) == dims for leaf, dims in pairs):
            by_cost.setdefault(_cost(solution), []).append(solution)
    if not by_cost:
        return None
    best = by_cost[min(by_cost)]
    if len(best) > 1:
        return None  # nothing tells which
    renames: dict[str, str] = {}
    for name, axes in sorted(best[0].items()):
        if axes != ((name,),):
            renames[name] = dims_.format_dims(axes)
    return renames


_Solution = Mapping[str, Dims]
"""What each dim of a block is called in a place; ``{"features": (("heads",), ("head_dim",))}`` is several axes."""


def _renamed(leaf: Leaf, solution: _Solution) -> Dims:
    """The axes of a leaf of a block where its dims are called so."""
    return leaf.renamed({name: dims_.format_dims(axes) for name, axes in solution.items()}).dims


def _cost(solution: _Solution) -> int:
    """How much speaks against a reading: heads that are parted, and axes that are one dim for no reason."""
    cost = 0
    for axes in solution.values():
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
    for solution in _read(leaf.dims, dims, several, known):
        yield from _solutions(rest, several, solution)


def _read(
    of_block: Dims, dims: Dims, several: frozenset[str], known: _Solution
) -> Iterator[_Solution]:
    """The ways to read the axes of a place as the dims of one leaf of a block, from the left on.

    ``in_features out_features`` are read of ``embed heads head_dim`` in two ways, where both may be several axes.
    """
    if not of_block or not dims:
        if not of_block and not dims:
            yield known
        return
    name = of_block[0][0] if len(of_block[0]) == 1 else None
    if not isinstance(name, str):  # of a product, its factors have to be told by other leaves
        yield from _read(of_block[1:], dims[1:], several, known)
        return
    # What another leaf has said of a dim holds for all.
    if name in known:
        axes = known[name]
        if dims[: len(axes)] == axes:
            yield from _read(of_block[1:], dims[len(axes) :], several, known)
        return
    # Each dim after this one has to have an axis as well.
    most = len(dims) - len(of_block) + 1 if name in several else 1
    for end in range(1, most + 1):
        # `dims=` takes no 0: where an axis has no elements, a class says so.
        if (0,) not in dims[:end]:
            yield from _read(of_block[1:], dims[end:], several, {**known, name: dims[:end]})


def globs_of(meant: Sequence[LogicalPath], others: Sequence[LogicalPath]) -> list[str]:
    """The shortest globs that mean some nodes, and nothing in or above others.

    Example:
        >>> globs_of([("a", "up", "bias"), ("b", "up", "bias")], [("a", "down", "bias")])
        ['**/up/bias']
    """
    # What a glob of so many segments must not end with: all that stands in others, in a row.
    inside: dict[int, set[LogicalPath]] = {}
    globs: dict[str, None] = {}
    for path in meant:
        # The last segments of the path, one more each time, until they are in no other.
        for size in range(1, len(path) + 1):
            end = path[len(path) - size :]
            if size not in inside:
                inside[size] = _windows(others, size)
            if end not in inside[size] or size == len(path):
                head = ("**",) if size < len(path) else ()
                globs["/".join((*head, *end))] = None
                break
    return [*globs]


def _windows(several: Sequence[LogicalPath], size: int) -> set[LogicalPath]:
    """All that stands in a row in some paths, so many segments at a time: ``a/b`` and ``b/c`` of ``a/b/c``."""
    windows: set[LogicalPath] = set()
    for path in several:
        for start in range(len(path) - size + 1):
            windows.add(path[start : start + size])
    return windows
