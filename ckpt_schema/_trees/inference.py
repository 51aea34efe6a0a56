"""A layout read off a tree, for those who would rather not write classes.

What a tree shows is taken: key paths, shapes, dtypes, Variable types, containers, which parts of an optimizer state mirror the
params. What it cannot show is asked for: that an axis stacks layers, and that ``layers_0``, ``layers_1`` are a list.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from ckpt_schema._frameworks.envelopes import (
    Envelope,
    Found,
    Read,
    envelope,
    has_train_state,
    lost_params,
    param_of,
    parts_of,
    strays,
)
from ckpt_schema._frameworks.state_names import OPTIMIZER_STATE, USUAL_COLLECTION, WEIGHTS
from ckpt_schema._layouts import leaves, paths
from ckpt_schema._layouts.dims import Dims
from ckpt_schema._layouts.immutable import object_maker, replaced
from ckpt_schema._layouts.leaves import Leaf
from ckpt_schema._layouts.paths import Key, KeyPath, LogicalPath, int_key, named
from ckpt_schema._layouts.pytrees import inner_nodes
from ckpt_schema._layouts.table import VALUE_LEVELS, Layout, Repeat, Row, verify_table
from ckpt_schema._trees import foreign
from ckpt_schema._trees.containers import (
    FlatTree,
    Tree,
    flatten,
    flatten_plain,
    nodes_of,
    verify_readable,
)
from ckpt_schema._trees.repeated_keys import RepeatedKey, repeated_keys
from ckpt_schema.errors import Mismatch, SchemaError

__all__ = ["infer_tree"]

_Held = tuple[KeyPath, Any]
"""A container, and where it stands."""


def infer_tree(
    tree: Tree,
    *,
    scan: Mapping[str, int | Mapping[Any, int] | None] | None = None,
    lists: Sequence[str] = (),
    joined: str | None = None,
    name: str = "inferred",
    tx: Any = None,
) -> Layout:
    """The layout of a tree; see `ckpt_schema.infer`, which takes what makes or keeps one besides.

    Example:
        >>> import jax
        >>> leaf = jax.ShapeDtypeStruct((2, 3), "float32")
        >>> print(infer_tree({"params": {"kernel": leaf}}, name="old"))
        old: 1 row
          params/kernel  params/kernel  float32[2 3]  params
    """
    from ckpt_schema._frameworks.boxes import unboxed
    from ckpt_schema._frameworks.variables import (
        inner_containers,
        plain_train_state,
        state_of,
        variables_of,
        whole_state,
    )

    _verify_arguments(scan, lists)
    plain = flatten_plain(tree)
    inner: list[_Held] | None = None
    if plain is None:
        verify_readable(tree)
        tree, inner = plain_train_state(state_of(tree))
        if inner is None:
            tree = whole_state(tree)
    container = "a dict or another container"
    if tree is None:
        fault = Mismatch("the tree", "container", container, "None", "pass the state itself")
        raise SchemaError(f"no layout ({name}) can be read off nothing", [fault])
    flat, variables = plain or flatten(tree), variables_of(tree)
    # A box of Linen adds a level called value. A tree without one is not walked for boxes.
    if plain is None and not variables and any(key and key[-1] == "value" for key in flat.keys):
        tree, inner = unboxed(tree), None
        flat = flatten(tree)
    if () in flat.keys:
        found_leaf, hint = leaves.describe(flat.leaves[0]), "give the leaf a name"
        fault = Mismatch("the tree", "leaf", container, found_leaf, hint)
        raise SchemaError(f"no layout ({name}) can be read off a lone leaf", [fault])
    found: list[_Held] = []
    if plain is None and variables:
        found += inner_containers(tree)
    elif plain is None:
        found += inner_nodes(tree) if inner is None else inner
    # Keys become what they were before a save, then paths; after that nothing knows of files.
    read = _read(flat, variables)
    if flat.stored:
        read, found = _numbered(read, found)
    _verify_leaves(read, name)
    joined = _dotted(read) if joined is None else joined
    if joined is not None:
        read = _as_paths(read, joined, name)
    kinds = envelope(read)
    faults = [*strays(read, kinds, found), *lost_params(read, kinds)]
    if faults:
        raise SchemaError(f"no layout ({name}) can be read off the tree", faults)
    repeated = repeated_keys(read, scan or {}, lists, kinds)
    rows = _merge([*_Rows(read, kinds, repeated.model, repeated.beside)], name)
    if joined is not None:
        rows = tuple(_in_one_key(rows, flat, joined))
    homes = (OPTIMIZER_STATE, *(kinds.optimizer or ())[:1])
    # What has been stored may spell numbers as strings, and has lost the classes of containers but for lists.
    held: list[_Held] = []
    for key, node in found:
        if key[0] in homes or not flat.stored:
            held.append((key, node))
    nodes = tuple(nodes_of(held))
    table = Layout(
        name,
        rows,
        nodes,
        "nnx" if read.variables else "dict",
        kinds.homes,
        parts=tuple(parts_of(nodes, kinds)),
        states=() if kinds.optimizer is None else (((OPTIMIZER_STATE,), kinds.optimizer),),
    )
    table = verify_table(table)
    if tx is None:
        return table
    from ckpt_schema._trees.optimizer_parts import with_parts

    return with_parts(table, tree, tx, kinds)


def _read(flat: FlatTree, variables: Mapping[KeyPath, Any]) -> Read:
    names = ("value",) if variables else _levels_on_disk(flat)
    if not names:
        none = itertools.repeat(None), itertools.repeat(()), itertools.repeat(0)
        fields = zip(flat.keys, flat.leaves, *none, strict=False)
        # As NamedTuples are made inside, without a call of Python's for each.
        return Read([*map(tuple.__new__, itertools.repeat(Found), fields)], bool(variables))
    found: list[Found] = []
    for key, value in zip(flat.keys, flat.leaves, strict=True):
        levels = range(len(key) - 1, -1, -1)
        at = next(
            (n for n in levels if key[n] in names and (key[:n] in variables or not variables)),
            len(key),
        )
        # Beside Variables, an array that is in none of them is a plain one, and stays one.
        kind, metadata = variables.get(key[:at], (jax.Array if variables else None, ()))
        found.append(
            Found((*key[:at], *key[at + 1 :]), value, kind, metadata, max(len(key) - 1 - at, 0))
        )
    return Read(found, bool(variables))


def _dotted(read: Read) -> str | None:
    """The dot, where every leaf is at the root and names with dots are paths, as in files of Hugging Face; else None."""
    names: list[str] = []
    for leaf in read.leaves:
        if len(leaf.key) == 1 and isinstance(leaf.key[0], str):
            names.append(leaf.key[0])
    if read.variables or len(names) < len(read.leaves) or "." not in "".join(names):
        return None
    spelled = [tuple(name.split(".")) for name in names]
    whole = set(spelled)
    for path in spelled:
        # A name that others begin with is a leaf, and no node as well: then no dot parts them.
        if not all(path) or any(path[:end] in whole for end in range(1, len(path))):
            return None
    return "."


def _as_paths(read: Read, joined: str, name: str) -> Read:
    """What was read, the keys at the root as the paths that they are made of."""
    depths = {len(leaf.key) for leaf in read.leaves}
    is_text = all(isinstance(leaf.key[0], str) for leaf in read.leaves)
    # A joint with digits would split the numbers in the keys.
    if not joined or any(map(str.isdigit, joined)) or len(depths) > 1 or not is_text:
        expected = "a text without digits that joins the string keys of a tree of one depth"
        spelled = f"{joined!r}, and keys of depth {' and '.join(map(str, sorted(depths)))}"
        fault = Mismatch("joined", "declaration", expected, spelled)
        raise SchemaError(f"no layout ({name}) can be read off the tree", [fault])
    found: list[Found] = []
    for leaf in read.leaves:
        found.append(leaf._replace(key=(*str(leaf.key[0]).split(joined), *leaf.key[1:])))
    whole = {leaf.key for leaf in found}
    hint = "as they stand the keys can be read without joined="
    expected = "a leaf, or what has leaves"
    faults: list[Mismatch] = []
    for leaf in found:
        for end in range(1, len(leaf.key)):
            # As paths, "a" and "a.b" would be a leaf and a dict in one place.
            if leaf.key[:end] in whole:
                where = paths.format_path(leaf.key[:end])
                faults.append(Mismatch(where, "ambiguous", expected, "both", hint))
    if faults:
        raise SchemaError(f"no layout ({name}) can be read off the tree", faults)
    return _numbered(Read(found, read.variables), [])[0]


def _in_one_key(rows: Sequence[Row], flat: FlatTree, joined: str) -> Iterator[Row]:
    """Rows with the keys that the tree has."""
    # All keys have one depth: what stood behind the joined key still does.
    apart = len(flat.keys[0]) - 1
    for row in rows:
        end = len(row.key) - apart
        key = (paths.joined_key(row.key[:end], joined), *row.key[end:])
        yield replaced(row, key=key)


def _levels_on_disk(flat: FlatTree) -> Sequence[str]:
    """The names of the levels that Variables add, where the leaves stand in such, as a save writes them.

    Under ``value`` they all stand; some have values with parts. Under ``raw_value``, and under
    ``value`` until Flax 0.10, the counts of an optimizer do not.
    """
    usual, older = VALUE_LEVELS
    ends = {key[-1] for key in flat.keys} if flat.stored else set[Key]()
    if older in ends:
        return (older,)
    if usual not in ends:
        return ()
    # A step, or a key, at the root of a train state stands in no Variable either.
    is_train_state = has_train_state({key[0] for key in flat.keys if key})
    for at, key in enumerate(flat.keys):
        is_beside = (is_train_state and len(key) == 1) or _is_count(flat, at)
        if usual not in key[1:] and not is_beside:
            return ()
    return (usual,)


def _is_count(flat: FlatTree, at: int) -> bool:
    """Whether a leaf is a number of an optimizer's own."""
    told = leaves.signature(flat.leaves[at])
    return OPTIMIZER_STATE in flat.keys[at] and told is not None and told[0] == ()


def _numbered(read: Read, nodes: Sequence[_Held]) -> tuple[Read, list[_Held]]:
    """Leaves and containers with the ints that strings of digits were before a save, where a node has no other keys.

    A layout of ints matches both.
    """
    segments = read.segments.union(*[key for key, _ in nodes])
    if not any(isinstance(key, str) and int_key(key) is not None for key in segments):
        return read, [*nodes]
    # Nodes with a key that is no number: {"0": ..., "head": ...} had strings before the save too.
    words: set[KeyPath] = set()
    for path in (*[leaf.key for leaf in read.leaves], *[key for key, _ in nodes]):
        for at, key in enumerate(path):
            if not isinstance(key, str) or int_key(key) is None:
                words.add(path[:at])

    def numbered(path: KeyPath) -> KeyPath:
        return tuple(k if path[:at] in words else int(k) for at, k in enumerate(path))

    found = [leaf._replace(key=numbered(leaf.key)) for leaf in read.leaves]
    return Read(found, read.variables), [(numbered(key), node) for key, node in nodes]


def _verify_arguments(scan: object, lists: object) -> None:
    faults: list[Mismatch] = []
    if scan is not None and not _are_axes(scan):
        hint = 'write scan={"layers": 0}'
        faults.append(Mismatch("scan", "declaration", "axes by path", repr(scan), hint))
    # A string is a sequence of strings too: lists="layers_{i}" would be a pattern for each letter.
    given: Any = lists
    is_list = isinstance(lists, Sequence) and not isinstance(lists, str)
    if not is_list or not all(isinstance(pattern, str) for pattern in given):
        hint = 'write lists=["layers_{i}"]'
        faults.append(Mismatch("lists", "declaration", "a list of patterns", repr(lists), hint))
    if faults:
        raise SchemaError("the arguments of infer are not well formed", faults)


def _are_axes(scan: object) -> bool:
    """Whether these are axes by the paths of nodes."""
    if not isinstance(scan, Mapping):
        return False
    given: Mapping[Any, Any] = scan
    return all(isinstance(path, str) and _is_axis(axis) for path, axis in given.items())


def _is_axis(given: object) -> bool:
    """Whether this is an axis or None, or axes by collection or Variable type."""
    # Not isinstance: True is an int and no axis.
    if not isinstance(given, Mapping):
        return given is None or type(given) is int
    axes: Mapping[Any, Any] = given
    are_kinds = all(isinstance(kind, (str, type)) for kind in axes)
    return bool(axes) and are_kinds and all(type(axis) is int for axis in axes.values())


def _has_dtype(value: Any) -> bool:
    """Whether jax has a dtype for a value; a Python number may be too large."""
    try:
        return not leaves.is_scalar(value) or bool(leaves.abstract(value).dtype)
    except (OverflowError, ValueError):  # of more than 4300 digits, Python writes none
        return False


def _verify_leaves(read: Read, name: str) -> None:
    faults: list[Mismatch] = []
    sound: set[tuple[type, str]] = set()  # arrays of one class and dtype are told apart by nothing
    for leaf, signature in zip(read.leaves, read.signatures, strict=True):
        kind = type(leaf.value), "" if signature is None else signature[1]
        if kind in sound:
            continue
        fault = _leaf_fault(leaf, signature)
        if fault is not None:
            faults.append(fault)
        elif kind[1] not in leaves.SCALARS:
            sound.add(kind)
    if faults:
        raise SchemaError(f"no layout ({name}) can be read off the tree", faults)


def _leaf_fault(leaf: Found, signature: object) -> Mismatch | None:
    """Why a leaf is none that a layout can have."""
    cure = "" if signature is None else foreign.dtype_cure(leaf.value)
    if signature is None:
        expected, kind = "an array, an abstract value or a number", "leaf"
        cure = foreign.leaf_cure(leaf.value)
    elif cure:
        expected, kind = "a leaf of numbers", "dtype"
    elif not _has_dtype(leaf.value):
        expected, kind = "a number that jax's own integers hold", "dtype"
        cure = "pass it as a NumPy array of its dtype, or switch jax_enable_x64 on"
    else:
        return None
    found = leaves.describe(leaf.value)
    return Mismatch(paths.format_path(leaf.key), kind, expected, found, cure)


class _Place(NamedTuple):
    """Where a tree keeps a model, or what is like one.

    Attributes:
        prefix: The keys that lead to it.
        head: Its logical path.
        kind: The Linen collection of its leaves, where they do not tell it.
        of_model: Whether it is the model itself.
    """

    prefix: KeyPath
    head: LogicalPath
    kind: str | None
    of_model: bool


_Above = tuple[_Place, LogicalPath]
"""What a leaf is in: the model or one like it, and the logical path of the node."""


class _Rows:
    """The rows of what was read. What all leaves of one node have in common is found once."""

    def __init__(
        self,
        read: Read,
        kinds: Envelope,
        repeated: Mapping[KeyPath, RepeatedKey],
        beside: Mapping[KeyPath, RepeatedKey],
    ) -> None:
        self._read, self._kinds, self._repeated, self._beside = read, kinds, repeated, beside
        self._places: list[_Place] = []
        for prefix, kind in kinds.weights:
            self._places.append(_Place(prefix, (WEIGHTS,), kind, True))
        for prefix in kinds.copies:
            self._places.append(_Place(prefix, (named(prefix[0]),), USUAL_COLLECTION, False))
        self._roots = {leaf.key for leaf in read.leaves if len(leaf.key) == 1}
        self._lone = {place.prefix for place in self._places if place.prefix}  # that may be leaves
        # A model alone has no leaf that is like one of another tree.
        self._alone = len(self._places) == 1 and not repeated and not kinds.mirrors
        self._nodes: dict[KeyPath, _Above | None] = {}
        self._stored: list[Leaf] = []
        self._above: list[_Above | None] = []
        self._shapes: dict[KeyPath, Dims] = {}  # of the leaves of the model, by their keys in it
        # Most leaves of a tree are like another one.
        known: dict[leaves.LeafSignature | None, Leaf] = {}
        for leaf, signature in zip(read.leaves, read.signatures, strict=True):
            stored = known.get(signature)
            if stored is None:
                stored = known[signature] = _leaf(leaf, signature)
            self._stored.append(stored)
            node = leaf.key if self._lone and leaf.key in self._lone else leaf.key[:-1]
            above = self._nodes.get(node)
            if above is None and node not in self._nodes:
                above = self._nodes[node] = self._found(node)
            self._above.append(above)
            if above is not None and above[0].of_model and not self._alone:
                self._shapes[leaf.key[len(above[0].prefix) :]] = stored.dims

    def __iter__(self) -> Iterator[Row]:
        """A row for each leaf; the members of a list have equal ones."""
        shapes, repeated, alone = self._shapes, self._repeated, self._alone
        made = object_maker(Row)
        for leaf, stored, above in zip(self._read.leaves, self._stored, self._above, strict=True):
            if above is None:
                yield self._outside(leaf, stored)
                continue
            place, names = above
            key, _, kind, metadata, inside = leaf
            rest = key[len(place.prefix) :]
            dims = stored.dims if alone else shapes.get(rest)
            if not rest or dims is None or (repeated and rest in repeated):
                yield self._row(leaf, stored, place.head, place.prefix, place.kind)
                continue
            yield made(
                (*names, named(rest[-1])),
                key,
                stored,
                kind=kind or place.kind,
                metadata=metadata,
                body=len(place.head),
                inside=inside,
                reshaped=dims is not stored.dims and dims != stored.dims,
            )

    def _found(self, node: KeyPath) -> _Above | None:
        """What the leaves of a node are in; None where that is no model."""
        for place in self._places:
            if node[: len(place.prefix)] == place.prefix:
                return place, (*place.head, *map(named, node[len(place.prefix) :]))
        return None

    def _outside(self, leaf: Found, stored: Leaf) -> Row:
        """The row of a leaf of an optimizer, or of what stands beside model and optimizer."""
        kinds = self._kinds
        mirror: KeyPath | None = None
        for end in range(len(leaf.key)):
            if leaf.key[:end] in kinds.mirrors:
                mirror = leaf.key[:end]
                break
        optimizer = kinds.optimizer or ()
        # opt_state/0/mu/dense/kernel: below the mirror opt_state/0/mu stands what stands in the model.
        if mirror is not None:
            start = tuple(map(named, _strip(mirror, optimizer, kinds)))
            row = self._row(leaf, stored, (OPTIMIZER_STATE, *start), mirror, None)
            rest = leaf.key[len(mirror) :]
            # An optimizer may keep several leaves for one param, below its key.
            body = param_of(rest, self._shapes) or rest
            repeated = self._repeated.get(body)
            param = tuple(map(named, body)) if repeated is None else repeated.path
            mirrored = "/".join((WEIGHTS, *param))
            return replaced(row, optimizer=1, mirrors=mirrored)
        inside = leaf.key[: len(optimizer)] == optimizer
        rest = leaf.key
        if inside:
            rest = leaf.key[len(optimizer) :]
        # The count of an optimizer is the step of the run, unless the run counts itself.
        elif leaf.key[:1] == optimizer[:-1] and leaf.key[-1:] not in self._roots:
            rest = leaf.key[-1:]
        path = tuple(map(named, (OPTIMIZER_STATE, *rest) if inside else rest))
        more: dict[str, Any] = {"kind": leaf.kind, "metadata": leaf.metadata}
        if leaf.key in self._beside:
            repeated = self._beside[leaf.key]
            repeats = tuple(Repeat((count or 0,), None) for count in repeated.levels)
            return Row(repeated.path, repeated.key, stored, repeats, **more)
        return Row(path, leaf.key, stored, optimizer=int(inside), **more)

    def _row(self, leaf: Found, stored: Leaf, head: LogicalPath, prefix: KeyPath, kind: Any) -> Row:
        """The row of a leaf of the model, or of what mirrors it, wherever lists and stacks are."""
        rest = leaf.key[len(prefix) :]
        body = param_of(rest, self._shapes) or rest
        tail = rest[len(body) :]
        dims = self._shapes.get(body, stored.dims)
        more: dict[str, Any] = {
            "kind": leaf.kind or kind,
            "metadata": leaf.metadata,
            "body": len(head),
            "inside": leaf.inside,
            "reshaped": stored.dims != dims,
        }
        repeated = self._repeated.get(body)
        axis = None
        # What is kept for a param may have another shape, as Adafactor's rows do.
        if repeated is not None and repeated.axis is not None:
            axis = _shared_axis(repeated.axis, stored.dims, self._shapes[body])
        if repeated is None or (repeated.axis is not None and axis is None):
            return Row((*head, *map(named, rest)), leaf.key, stored, **more)
        # A row has the leaf of one layer; the stack axis is of its repeats.
        item = stored
        if axis is not None:
            item = Leaf((*stored.dims[:axis], *stored.dims[axis + 1 :]), stored.dtype)
        repeats: list[Repeat] = []
        for count in repeated.levels:
            is_stack = count is None
            repeats.append(
                Repeat(stored.dims[axis or 0], axis) if is_stack else Repeat((count,), None)
            )
        path = (*head, *repeated.path, *map(named, tail))
        return Row(path, (*prefix, *repeated.key, *tail), item, tuple(repeats), **more)


def _strip(mirror: KeyPath, optimizer: KeyPath, kinds: Envelope) -> KeyPath:
    """The logical place of a mirror: without the envelope, and without the inner ``params`` of a variables dict."""
    inner = kinds.weights[0][0][1:] if optimizer == (OPTIMIZER_STATE,) else ()
    end = len(mirror) - len(inner)
    return mirror[len(optimizer) : end if mirror[end:] == inner else len(mirror)]


def _shared_axis(axis: int, dims: Dims, param: Dims) -> int | None:
    """The axis on which a leaf is stacked as its param is: the same where their shapes are, or else one of that size alone."""
    if dims == param:
        return axis
    only = dims.count(param[axis]) == param.count(param[axis]) == 1
    return dims.index(param[axis]) if only else None


def _leaf(leaf: Found, signature: leaves.LeafSignature | None) -> Leaf:
    shape, dtype = signature or ((), "")
    if dtype in leaves.SCALARS and leaves.is_scalar(leaf.value):
        dtype = str(leaves.abstract(leaf.value).dtype)
    return _leaf_of(shape, dtype)


@functools.lru_cache(maxsize=1024)
def _leaf_of(shape: tuple[int, ...], dtype: str) -> Leaf:
    """A leaf of this shape; most leaves of a tree are like another one."""
    return Leaf(tuple([(size,) for size in shape]), dtype)


def _merge(rows: Sequence[Row], name: str) -> tuple[Row, ...]:
    """One row per logical path; the members of a list must agree."""
    merged: dict[LogicalPath, Row] = {}
    faults: list[Mismatch] = []
    for row in rows:
        first = merged.setdefault(row.path, row)
        # The members of a list give equal rows. Unequal ones cannot be one row.
        if first is not row and (first.leaf != row.leaf or first.key != row.key):
            where, expected = "/".join(row.path), f"{first} for all members"
            hint = "declare this layout as a class"
            faults.append(Mismatch(where, "shape", expected, str(row), hint))
    if faults:
        raise SchemaError(f"no layout ({name}) can be read off the tree", faults)
    return tuple(merged.values())
