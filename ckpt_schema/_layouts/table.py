"""The layout: one immutable table, a row per logical leaf. Pure data; nothing after it knows where a layout came from."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts import leaf_trees, overlaps, paths
from ckpt_schema._layouts.dims import AxisName, Dim, Dims
from ckpt_schema._layouts.immutable import immutable, replaced
from ckpt_schema._layouts.leaves import Default, Leaf, kind_name
from ckpt_schema._layouts.paths import Index, Key, KeyPath, LogicalPath, Pattern
from ckpt_schema._layouts.pytrees import TreeDef
from ckpt_schema._layouts.row_sizes import row_size
from ckpt_schema._messages.pictures import Picture, Pictured
from ckpt_schema._messages.text import counted, printed_table
from ckpt_schema.errors import Mismatch, SchemaError

__all__ = [
    "VALUE_LEVELS",
    "Entry",
    "Initial",
    "Layout",
    "Node",
    "Part",
    "Repeat",
    "Row",
    "Series",
    "Slot",
    "called",
    "holders",
    "is_part",
    "shown_leaves",
    "verify_table",
]

Slot = tuple[int, tuple[int, ...]]
"""A concrete leaf of a layout: the number of its row, and one index per unrolled level."""

VALUE_LEVELS = ("value", "raw_value")
"""What the level of a Variable or a box is called in a tree that was saved; the second by Flax 0.8.2 to 0.8.5."""


@dataclasses.dataclass(frozen=True, slots=True)
class Repeat:
    """One level of repetition of a leaf, as by a stack of equal layers.

    Attributes:
        size: How often; a single name or integer.
        axis: The axis of the leaf on which all repeats are stacked, or None where each has a leaf of its own.
    """

    size: Dim
    axis: int | None


@immutable
class Row:
    """One logical leaf and how this layout spells it.

    Attributes:
        path: The chain of attribute names; a repeated node is written ``layers[]``.
        key: The key path, with one index symbol per unrolled repeat.
        leaf: The leaf of *one* repeat: its dims and dtype.
        repeats: The levels of repetition, outermost first, one per ``[]`` of the path.
        kind: The NNX Variable type, ``jax.Array`` for a plain array beside Variables, or the Linen collection, or None.
        metadata: What a new Variable of this row carries besides its value.
        default: How the leaf is made where the other side has no place for it; None makes it required.
        optional: Whether a tree may lack it.
        ephemeral: Whether it is left out of checkpoints.
        body: How many segments of `path` stand before those of the model's own schema; None outside of it.
        inside: How many segments of `key` stand inside of a Variable's or box's value, which is a container then.
        reshaped: Whether an optimizer keeps it for a param in a shape of its own, which is not the param's.
        held: The containers of a value with parts, outermost first: how many segments of `key` stand inside of each, its class.
        optimizer: How many segments of `path` lead to the optimizer state that it stands in; 0 outside of one.
        mirrors: The logical path of the param that an optimizer keeps it for; else empty.
    """

    path: LogicalPath
    key: Pattern
    leaf: Leaf
    repeats: tuple[Repeat, ...] = ()
    kind: Any = None
    metadata: tuple[tuple[str, Any], ...] = ()
    default: Default | None = None
    optional: bool = False
    ephemeral: bool = False
    body: int | None = None
    inside: int = 0
    held: tuple[tuple[int, type], ...] = ()
    reshaped: bool = False
    optimizer: int = 0
    mirrors: str = ""

    @property
    def root(self) -> LogicalPath:
        """The path of the model, or of what is kept like it, that it is a leaf of."""
        return self.path[: self.body or 0]

    @property
    def model_path(self) -> LogicalPath:
        """Its path below that; all of its path outside of a model."""
        return self.path[self.body or 0 :]

    @property
    def is_weight(self) -> bool:
        """Whether it is a leaf of a model, or of a tree like it, and nothing that an optimizer keeps for one."""
        return self.body is not None and not self.mirrors

    @property
    def all_dims(self) -> Dims:
        """The dims of one layer's leaf, and of each level of layers, whether stacked or in a list."""
        return (*self.leaf.dims, *(repeat.size for repeat in self.repeats))

    @property
    def axes(self) -> tuple[tuple[str, int], ...]:
        """The axes of the leaf as it is stored: each an ``axis`` of its own or that of a stacked ``level``, by number."""
        # Levels are inserted innermost first: [a b], stacked on axis 1 twice, is [a l b], then [a L l b].
        stored: list[tuple[str, int]] = [("axis", n) for n in range(len(self.leaf.dims))]
        for number in reversed(range(len(self.repeats))):
            axis = self.repeats[number].axis
            if axis is not None:
                # Counted from the end, -1 is the last place of an array that has one axis more by then.
                stored.insert(axis if axis >= 0 else len(stored) + 1 + axis, ("level", number))
        return tuple(stored)

    @property
    def dims(self) -> Dims:
        """The dims of the leaf as it is stored."""
        if not self.repeats:
            return self.leaf.dims
        stored: list[Dim] = []
        for kind, n in self.axes:
            stored.append(self.leaf.dims[n] if kind == "axis" else self.repeats[n].size)
        return tuple(stored)

    @property
    def unrolled(self) -> tuple[Dim, ...]:
        """The sizes of the unrolled levels, outermost first: one per index symbol of the key."""
        return tuple([r.size for r in self.repeats if r.axis is None]) if self.repeats else ()

    @property
    def stored(self) -> Leaf:
        """The leaf as it is stored."""
        if not self.repeats:
            return self.leaf
        return Leaf(self.dims, self.leaf.dtype, self._names() if self.leaf.names else ())

    def _names(self) -> tuple[AxisName, ...]:
        """What the axes of the leaf as it is stored are called."""
        # The class of the leaf knows nothing of layers: a level is called as its size is spelled.
        levels = dims_.own_names([one.size for one in self.repeats])
        own = self.leaf.own
        return tuple([own[n] if kind == "axis" else levels[n] for kind, n in self.axes])

    def __str__(self) -> str:
        """The row on one line: key path, then leaf."""
        return f"{paths.format_path(self.key)}  {self.stored}"


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """A container that is no dict, or holds no leaf: a tuple, list, NamedTuple or None slot of an optimizer chain.

    Attributes:
        key: Where it stands, with one index symbol per list on the way.
        type: ``tuple``, ``list``, ``NoneType``, a NamedTuple, or the class of another pytree.
        counts: How many members each of these lists has.
        static: Its structure and the keys of its children, where it was found and not declared: with data that no leaf tells.
    """

    key: Pattern
    type: type
    counts: tuple[Dim, ...] = ()
    static: tuple[TreeDef, tuple[Key, ...]] | None = None

    def keys(self, sizes: Mapping[str, int]) -> Iterator[KeyPath]:
        """Every key path it has under ``sizes``; every dim must be bound."""
        return (paths.fill(self.key, indices) for indices in _members(self.counts, sizes))


def holders(rows: Iterable[Row]) -> tuple[Node, ...]:
    """The containers of values with parts, parents before children."""
    found: dict[Pattern, Node] = {}
    for row in rows:
        for inside, kind in row.held:
            key = row.key[: len(row.key) - inside]
            # The lists that the container stands in; those inside of it are its own.
            counts = row.unrolled[: paths.symbols(key)]
            if kind is not dict:
                found.setdefault(key, Node(key, kind, counts))
    return tuple(sorted(found.values(), key=lambda node: len(node.key)))


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """A part of an optimizer state: what one transformation of a chain keeps.

    Attributes:
        path: Its logical path, ``opt_state/1/0``.
        type: The class of its state, ``ScaleByAdamState``.
    """

    path: LogicalPath
    type: type

    def __str__(self) -> str:
        """Path and type."""
        return f"{'/'.join(self.path)}  {self.type.__name__}"


@dataclasses.dataclass(frozen=True, slots=True)
class Series:
    """Repeated nodes that are one list of layers, in this order.

    Attributes:
        path: The logical path of the list.
        members: Those of the nodes, relative to the model's root as that is; all repeats of the first come first.
    """

    path: LogicalPath
    members: tuple[LogicalPath, ...]

    def __str__(self) -> str:
        """As it is written."""
        written = ", ".join(repr("/".join(member)) for member in self.members)
        return f"series({written}, name={'/'.join(self.path)!r})"

    __repr__ = __str__


def is_part(kind: type) -> bool:
    """Whether a container is the state of a transformation, and not what merely holds several."""
    # The states of optax are NamedTuples; a chain of transformations is a plain tuple of them.
    return hasattr(kind, "_fields")


class Initial(Protocol):
    """What makes the optimizer states of a layout for its params."""

    def __call__(self, params: Sequence[tuple[KeyPath, Row, Any]]) -> Any:
        """A tree of the layout that holds the optimizer states alone.

        Args:
            params: The key path, row and value of every leaf of the model that `trains` is true for.
        """

    def trains(self, row: Row) -> bool:
        """Whether a state is made for this row."""
        ...

    def beside(self, other: Any) -> Initial:
        """These, and those of another part of the layout."""
        ...

    def below(self, name: str, key: KeyPath) -> Initial:
        """The same for a layout that has this one as an attribute, spelled so."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One concrete leaf of a bound layout: its slot, key path and shape."""

    slot: Slot
    key: KeyPath
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Layout(Pictured):
    """An ordered table of rows, with the containers that a tree of it is built of.

    Attributes:
        name: How messages call it.
        rows: One per logical leaf.
        nodes: Containers other than dicts, parents before children.
        container: What a tree is built as where no example is given: nested dicts, or an ``nnx.State``.
        homes: For weights alone: the key paths under which a full train state keeps such a tree, ``()`` excluded.
        sizes: Dims whose sizes the layout holds for alone, in elements.
        parts: The parts of the optimizer state, in order, those that keep nothing included; none where types are not told.
        initial: Makes the optimizer states, where the layout was made for transformations.
        series: Which repeated nodes of the model are one list.
        states: Where each optimizer state stands: its logical path and its key path.
    """

    name: str
    rows: tuple[Row, ...]
    nodes: tuple[Node, ...] = ()
    container: Literal["dict", "nnx"] = "dict"
    homes: tuple[KeyPath, ...] = ()
    sizes: tuple[tuple[str, int], ...] = ()
    parts: tuple[Part, ...] = ()
    initial: Initial | None = None
    series: tuple[Series, ...] = ()
    states: tuple[tuple[LogicalPath, Pattern], ...] = ()

    def entries(self, sizes: Mapping[str, int]) -> Iterator[Entry]:
        """The concrete leaves under ``sizes``, row by row; every dim must be bound."""
        for number, row in enumerate(self.rows):
            shape = dims_.sizes_of(row.dims, sizes)
            assert shape is not None, f"unbound dims in {row}"
            for indices in slots_of(row, sizes):
                yield Entry((number, indices), paths.fill(row.key, indices), shape)

    def bound(self, dims: Mapping[str, int] | None = None) -> dict[str, int]:
        """The sizes this layout holds for alone, and ``dims`` besides.

        Raises:
            SchemaError: They contradict one another.
        """
        dims_.verify_sizes({} if dims is None else dims)
        own = dict(self.sizes)
        faults: list[Mismatch] = []
        for name, size in (dims or {}).items():
            if own.get(name, size) != size:
                expected = f"{own[name]}, as {self.name} is declared for"
                faults.append(Mismatch(name, "dims", expected, str(size)))
        if faults:
            raise SchemaError(f"{self.name} is not declared for these sizes", faults)
        return {**own, **(dims or {})}

    def sized(self, dims: Mapping[str, int]) -> Layout:
        """The layout for trees of these sizes alone."""
        sizes = self.bound(dims)
        rows: list[Row] = []
        known: dict[int, Leaf] = {}  # by the leaf that it is made of, which most rows share
        for row in self.rows:
            leaf = known.get(id(row.leaf))
            if leaf is None:
                leaf = known[id(row.leaf)] = row.leaf.sized(sizes)
            if not row.repeats:
                rows.append(replaced(row, leaf=leaf))
                continue
            repeats = [Repeat(dims_.known_dim(one.size, sizes), one.axis) for one in row.repeats]
            rows.append(replaced(row, leaf=leaf, repeats=tuple(repeats)))
        nodes: list[Node] = []
        for node in self.nodes:
            counts = tuple(dims_.known_dim(dim, sizes) for dim in node.counts)
            nodes.append(dataclasses.replace(node, counts=counts))
        # With numbers for counts it is known where a list ends: keys may overlap that did not before.
        return _verified(dataclasses.replace(self, rows=tuple(rows), nodes=tuple(nodes)), _overlaps)

    def names(self) -> set[str]:
        """Every dim name of the layout, layer counts included."""
        # Most rows of a large model share their dims with others: each is looked through once.
        several = {row.all_dims if row.repeats else row.leaf.dims for row in self.rows}
        return dims_.dim_names(itertools.chain.from_iterable(several))

    def __str__(self) -> str:
        """The table, a line per row: logical path, key path, leaf, and what is declared of it."""
        return printed_table(self._title(), [_cells(row) for row in self.rows])

    def _picture(self) -> Picture:
        """The same in parts, with sizes: the model, what else there is, and the optimizer folded."""
        return leaf_trees.table_picture(self._title(), shown_leaves(self))

    def _drawing(self) -> Picture:
        """The same in parts, each as a tree of key paths."""
        return leaf_trees.tree_picture(self._title(), shown_leaves(self))

    def _title(self) -> str:
        return f"{self.name}: {counted(len(self.rows), 'row')}"


def slots_of(row: Row, sizes: Mapping[str, int]) -> list[tuple[int, ...]]:
    """Every index tuple of a row's unrolled levels, in order; ``[()]`` for a row without any."""
    return _members(row.unrolled, sizes)


def _members(counts: tuple[Dim, ...], sizes: Mapping[str, int]) -> list[tuple[int, ...]]:
    # Two blocks of three layers: (0, 0), (0, 1), (0, 2), (1, 0), ...; of no counts it is (), once.
    ranges: list[range] = []
    for dim in counts:
        size = dims_.size_of(dim, sizes)
        assert size is not None, f"unbound number of repeats {dims_.format_dim(dim)}"
        ranges.append(range(size))
    return [*itertools.product(*ranges)]


def _cells(row: Row) -> tuple[str, str, str, str]:
    return "/".join(row.path), paths.format_path(row.key), str(row.stored), _remarks(row)


def shown_leaves(
    table: Layout, shardings: Mapping[Pattern, str] | None = None
) -> list[leaf_trees.ShownLeaf]:
    """The rows as pictures show them, with how their leaves lie on devices, by key paths."""
    params = {"/".join(row.path): row for row in table.rows if not row.mirrors}
    return [_shown(row, params.get(row.mirrors), shardings or {}) for row in table.rows]


def _shown(row: Row, param: Row | None, lying: Mapping[Pattern, str]) -> leaf_trees.ShownLeaf:
    part = leaf_trees.MODEL if row.body is not None else leaf_trees.BESIDE
    one = leaf_trees.ShownLeaf(
        leaf_trees.OPTIMIZER if row.optimizer else part,
        "/".join(row.path),
        tuple([paths.format_path((segment,)) for segment in row.key]),
        str(row.stored),
        row_size(row.stored, row.unrolled),
        lying.get(row.key, ""),
        _remarks(row),
    )
    if param is None or one.remarks or one.sharding != lying.get(param.key, ""):
        return one
    dtypes = row.leaf.dtype, param.leaf.dtype
    alike = row.stored.with_dtype(dtypes[1]), row.unrolled
    return one._replace(twins=dtypes) if alike == (param.stored, param.unrolled) else one


def _remarks(row: Row) -> str:
    absent = "ephemeral" if row.ephemeral else "optional" if row.optional else ""
    default = f"default {row.default}" if row.default else ""
    return ", ".join(filter(None, [kind_name(row.kind), default, absent]))


def verify_table(table: Layout) -> Layout:
    """``table`` itself, after checking that no two leaves can have one key path or logical path.

    Raises:
        SchemaError: Two rows share a key path or a logical path, or one's key path stands inside another's.
    """
    return _verified(table, _clashes)


def _verified(table: Layout, look: Callable[[Layout], Iterator[Mismatch]]) -> Layout:
    faults = [*look(table)]
    if faults:
        raise SchemaError(f"layout {table.name} is not well formed", faults)
    return table


def _clashes(table: Layout) -> Iterator[Mismatch]:
    keys = {row.key for row in table.rows}
    # Two sets tell most tables well formed; which rows are at fault is asked only where they do not.
    if min(len(keys), len({row.path for row in table.rows})) < len(table.rows):
        yield from _shared(table)
    yield from _overlaps(table)
    # The keys of most nodes are strings: then one row of each says all.
    told: dict[Pattern, Row] = {}
    numbers: list[Row] = []
    for row in table.rows:
        if row.key and type(row.key[-1]) is str:
            told[row.key[:-1]] = row
        elif row.key:
            numbers.append(row)
    yield from _mixed(table, [*told.values(), *numbers])
    # Leaves of one node have the same nodes above them, so that all rows are looked at only for a fault.
    nodes = {row.key[:-1] for row in table.rows if row.key}
    if any(node[:end] in keys for node in nodes for end in range(len(node) + 1)):
        for row in table.rows:
            for end in range(len(row.key)):
                if row.key[:end] in keys:
                    where = paths.format_path(row.key)
                    found = f"the leaf {paths.format_path(row.key[:end])}"
                    yield Mismatch(where, "ambiguous", "no leaf above it", found, "check key=")


def _shared(table: Layout) -> Iterator[Mismatch]:
    """Rows that share a key path or a logical path."""
    by_key: dict[Pattern, Row] = {}
    by_path: dict[LogicalPath, Row] = {}
    for row in table.rows:
        other = by_key.setdefault(row.key, row)
        if other is not row:
            where, hint = paths.format_path(row.key), "give one of them another key="
            both = f"{'/'.join(other.path)} and {'/'.join(row.path)}"
            yield Mismatch(where, "ambiguous", "one leaf at a key path", both, hint)
        if by_path.setdefault(row.path, row) is not row:
            where, hint = "/".join(row.path), "rename one attribute"
            yield Mismatch(where, "ambiguous", "one leaf at a logical path", "two", hint)


def _mixed(table: Layout, rows: Sequence[Row]) -> Iterator[Mismatch]:
    """Dicts that would have int keys beside string keys, which jax cannot put in order."""
    held = {node.key for node in table.nodes}
    kinds: dict[Pattern, dict[bool, Row]] = {}
    for row in rows:
        for end in range(len(row.key) - 1, -1, -1):
            segment, parent = row.key[end], row.key[:end]
            # A tuple has numbers for keys and NamedTuples have names: only a dict may have both.
            if parent in held:
                continue
            is_text = segment.text if isinstance(segment, Index) else isinstance(segment, str)
            both = kinds.setdefault(parent, {})
            if both.setdefault(is_text, row) is not row:
                break  # what is above was looked at with the row before
            if len(both) == 2:
                number = paths.format_path(both[False].key[: end + 1])
                word = paths.format_path(both[True].key[: end + 1])
                hint = "a string key that looks like a number is written in quotes, key=\"'0'\""
                found = f"the int key {number} and the string key {word}"
                where = paths.format_path(row.key)
                yield Mismatch(where, "key", "keys of one kind in a dict", found, hint)


def _counts(row: Row) -> list[int | None]:
    """How many keys each index symbol of a row's key spells, where that is declared."""
    return [dims_.size_of(dim, {}) for dim in row.unrolled]


def called(source: Layout, view: Layout) -> tuple[str, str]:
    """What messages call two layouts: by their names, and which side each is where they share one.

    Example:
        >>> called(Layout("Old", ()), Layout("New", ())), called(Layout("X", ()), Layout("X", ()))
        (('Old', 'New'), ('X (source)', 'X (view)'))
    """
    if source.name != view.name:
        return source.name, view.name
    return f"{source.name} (source)", f"{view.name} (view)"


def _apart(first: Row, other: Row) -> str:
    """What keeps the keys of a repeated row and of another one apart."""
    for left, right in zip(first.key, other.key, strict=True):
        if left == right or not isinstance(left, Index):
            continue
        start = right.first if isinstance(right, Index) else None
        # layers_{i} beside layers_{i+6}: six of the first are all that there is room for.
        if start is not None and start > left.first and (start - left.first) % left.step == 0:
            count = (start - left.first) // left.step
            node = "/".join(first.path[: 1 + _list_of(first.path)])
            return (
                f"say how many {node} there are as a number, length={count}, so that they end "
                f"before {right} begins; or give one of them another key="
            )
    return "give one of them another key="


def _list_of(path: LogicalPath) -> int:
    return next((n for n, segment in enumerate(path) if segment.endswith("[]")), 0)


def _overlaps(table: Layout) -> Iterator[Mismatch]:
    """Rows whose index symbols can spell another row's key path: ``layers_{i}`` beside ``layers_0``."""
    # Rows without an index symbol spell one key each, and were compared as they are.
    if not any(row.repeats and row.unrolled for row in table.rows):
        return
    outlines = [overlaps.outlined(row.key) for row in table.rows]
    keys = overlaps.KeyTrie()
    for number, row in enumerate(table.rows):
        keys.add(number, row.key, outlines[number])
    for number, first in enumerate(table.rows):
        if not first.unrolled:
            continue
        for n in sorted(keys.near(first.key, outlines[number])):
            other = table.rows[n]
            # One key was told before; of two repeated rows each finds the other, and one tells it.
            if other.key == first.key or (other.unrolled and other.path < first.path):
                continue
            if overlaps.coincide(first.key, other.key, (_counts(first), _counts(other))):
                both = f"{'/'.join(first.path)} ({paths.format_path(first.key)}) and {'/'.join(other.path)}"
                hint = f"two leaves cannot share a key path: {_apart(first, other)}"
                where = paths.format_path(other.key)
                yield Mismatch(where, "ambiguous", "one leaf at a key path", both, hint)
