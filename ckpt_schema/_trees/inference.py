"""A layout read off a tree, for those who would rather not write classes.

What a tree shows is taken: key paths, shapes, dtypes, Variable types, containers, which parts of an optimizer state mirror the
params. What it cannot show is asked for: that an axis stacks layers, and that ``layers_0``, ``layers_1`` are a list.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ckpt_schema._layouts import leaves, paths
from ckpt_schema._layouts.dims import Dims
from ckpt_schema._layouts.leaves import Leaf
from ckpt_schema._layouts.paths import Index, Key, KeyPath, LogicalPath, Pattern, int_key, named
from ckpt_schema._layouts.pytrees import inner_nodes
from ckpt_schema._layouts.table import Layout, Repeat, Row, verify_table
from ckpt_schema._trees import foreign
from ckpt_schema._trees.containers import FlatTree, Tree, flatten, nodes_of, verify_readable
from ckpt_schema._trees.envelopes import Envelope, Found, Read, envelope, param_of, parts_of, strays
from ckpt_schema.errors import Mismatch, SchemaError

__all__ = ["infer"]

_BARE = "write its path in the model, without params or model in front"
_OWN_AXIS = "declare the layout as a class, with axis= for this leaf"


def infer(
    tree: Tree,
    *,
    scan: Mapping[str, int | Mapping[Any, int] | None] | None = None,
    lists: Sequence[str] = (),
    joined: str | None = None,
    name: str = "inferred",
) -> Layout:
    """The layout of a tree.

    Train states of Linen (``params``, ``opt_state``, perhaps ``step``, and a tree like the params, ``ema_params``)
    and NNX (``model``, ``optimizer``, or under other names where Variables tell which is which), variables dicts,
    model states and plain dicts are told apart by structure. The state of an optimizer anywhere else is an error.
    Int keys ``0 .. n-1`` with equal contents, as ``nnx.List`` makes,
    become one repeated node.

    Args:
        tree: Arrays or abstract values in any container, or an ``nnx.Module``.
        scan: For each node under ``nn.scan`` or ``nnx.scan``, by its path in the model: the axis its
            leaves are stacked on; or the axis by collection or Variable type,
            ``{"layers": {nnx.Param: 1, nnx.RngState: 0}}``, as `nnx.StateAxes` has it. A path inside of
            a stacked node gives leaves there another axis; None says that they are not stacked.
        lists: Patterns of other repeated nodes in the model: ``"layers_{i}"``.
        joined: What joins the segments of a path to one key, as ``"."`` does in files of Hugging Face:
            the keys at the root are read as paths, ``"layers.0.norm"`` as the first of a list.
        name: What messages call the layout.

    Returns:
        A layout whose dims are all fixed.

    Raises:
        SchemaError: With every leaf that is no array, every stack axis a leaf does not have, and every pattern or node in
            ``scan`` and ``lists`` that the tree does not have, or that is none.

    Example:
        >>> import jax
        >>> leaf = jax.ShapeDtypeStruct((2, 3), "float32")
        >>> print(infer({"params": {"layers_0": {"kernel": leaf}, "layers_1": {"kernel": leaf}}}, lists=["layers_{i}"]))
        inferred: 1 rows
          params/layers[]/kernel  params/layers_{i}/kernel  float32[2 3]  params
    """
    from ckpt_schema._frameworks.boxes import unboxed
    from ckpt_schema._frameworks.variables import (
        inner_containers,
        state_of,
        variables_of,
        whole_state,
    )

    _verify_arguments(scan, lists)
    verify_readable(tree)
    tree = whole_state(state_of(tree))
    if tree is None:
        fault = Mismatch(
            "the tree", "container", "a dict or another container", "None", "pass the state itself"
        )
        raise SchemaError(f"no layout ({name}) can be read off nothing", [fault])
    flat, variables = flatten(tree), variables_of(tree)
    if not variables and any(key and key[-1] == "value" for key in flat.keys):
        tree = unboxed(tree)
        flat = flatten(tree)
    if () in flat.keys:
        fault = Mismatch(
            "the tree",
            "leaf",
            "a dict or another container",
            leaves.describe(flat.leaves[0]),
            "give the leaf a name",
        )
        raise SchemaError(f"no layout ({name}) can be read off a lone leaf", [fault])
    read = _read(flat, variables)
    _verify_leaves(read, name)
    if joined is not None:
        read = _as_paths(read, joined, name)
    kinds = envelope(read)
    container = "nnx" if read.variables else "dict"
    found = list(inner_containers(tree) if container == "nnx" else inner_nodes(tree))
    faults = [*strays(read, kinds, found)]
    if faults:
        raise SchemaError(f"no layout ({name}) can be read off the tree", faults)
    folds = _folds(
        [(kinds.body(leaf.key), leaf) for leaf in read.leaves if kinds.body(leaf.key) is not None],
        {node: _by_kind(axis) for node, axis in (scan or {}).items()},
        lists,
        kinds,
    )
    rows = _merge(list(_rows(read, kinds, folds)), name)
    if joined is not None:
        rows = tuple(_in_one_key(rows, flat, joined))
    # What has been stored may spell numbers as strings, and has lost the classes of containers but for lists.
    nodes = tuple(
        nodes_of((key, node) for key, node in found if key[0] == "opt_state" or not flat.stored)
    )
    return verify_table(
        Layout(
            name,
            rows,
            nodes,
            container,
            kinds.homes,
            parts=tuple(parts_of(nodes, kinds)),
            states=() if kinds.optimizer is None else ((("opt_state",), kinds.optimizer),),
        )
    )


def _read(flat: FlatTree, variables: Mapping[KeyPath, Any]) -> Read:
    wrapped = bool(variables) or (flat.stored and _on_disk(flat.keys))
    found: list[Found] = []
    for key, value in zip(flat.keys, flat.leaves, strict=True):
        levels = range(len(key) - 1, -1, -1) if wrapped else ()
        at = next(
            (n for n in levels if key[n] == "value" and (key[:n] in variables or not variables)),
            len(key),
        )
        kind, metadata = variables.get(key[:at], (None, ()))
        found.append(
            Found((*key[:at], *key[at + 1 :]), value, kind, metadata, max(len(key) - 1 - at, 0))
        )
    return Read(_numbered(found) if flat.stored else found, bool(variables))


def _as_paths(read: Read, joined: str, name: str) -> Read:
    """What was read, the keys at the root as the paths that they are made of."""
    depths = {len(leaf.key) for leaf in read.leaves}
    lone = [leaf.key[0] for leaf in read.leaves if not isinstance(leaf.key[0], str)]
    if not joined or any(map(str.isdigit, joined)) or len(depths) > 1 or lone:
        expected = "a text without digits that joins the string keys of a tree of one depth"
        depth = " and ".join(map(str, sorted(depths)))
        fault = Mismatch(
            "joined", "declaration", expected, f"{joined!r}, and keys of depth {depth}"
        )
        raise SchemaError(f"no layout ({name}) can be read off the tree", [fault])
    found = [
        dataclasses.replace(leaf, key=(*str(leaf.key[0]).split(joined), *leaf.key[1:]))
        for leaf in read.leaves
    ]
    whole = {leaf.key for leaf in found}
    hint = "as they stand the keys can be read without joined="
    faults = [
        Mismatch(
            paths.format_path(leaf.key[:at]),
            "ambiguous",
            "a leaf, or what has leaves",
            "both",
            hint,
        )
        for leaf in found
        for at in range(1, len(leaf.key))
        if leaf.key[:at] in whole
    ]
    if faults:
        raise SchemaError(f"no layout ({name}) can be read off the tree", faults)
    return Read(_numbered(found), read.variables)


def _in_one_key(rows: Sequence[Row], flat: FlatTree, joined: str) -> Iterator[Row]:
    """Rows with the keys that the tree has."""
    apart = len(flat.keys[0]) - 1
    for row in rows:
        end = len(row.key) - apart
        key = (paths.joined_key(row.key[:end], joined), *row.key[end:])
        yield dataclasses.replace(row, key=key)


def _on_disk(keys: Sequence[KeyPath]) -> bool:
    """Whether every leaf stands in a Variable, as a save writes them; some have values with parts."""
    return (
        bool(keys)
        and all("value" in key[1:] for key in keys)
        and any(key[-1] == "value" for key in keys)
    )


def _numbered(found: Sequence[Found]) -> list[Found]:
    """Strings of digits as the ints they were before a save, where a node has no other keys; such a layout matches both."""
    names = {(leaf.key[:at], key) for leaf in found for at, key in enumerate(leaf.key)}
    words = {
        parent for parent, key in names if not (isinstance(key, str) and int_key(key) is not None)
    }
    return [
        dataclasses.replace(
            leaf,
            key=tuple(k if leaf.key[:at] in words else int(k) for at, k in enumerate(leaf.key)),
        )
        for leaf in found
    ]


def _verify_arguments(scan: object, lists: object) -> None:
    faults: list[Mismatch] = []
    given: Mapping[Any, Any] | None = scan if isinstance(scan, Mapping) else None
    if scan is not None and not (
        given is not None and all(isinstance(n, str) and _is_axis(a) for n, a in given.items())
    ):
        faults.append(
            Mismatch("scan", "declaration", "axes by path", repr(scan), 'write scan={"layers": 0}')
        )
    several: Sequence[Any] | None = (
        lists if isinstance(lists, Sequence) and not isinstance(lists, str) else None
    )
    if several is None or not all(isinstance(pattern, str) for pattern in several):
        faults.append(
            Mismatch(
                "lists",
                "declaration",
                "a list of patterns",
                repr(lists),
                'write lists=["layers_{i}"]',
            )
        )
    if faults:
        raise SchemaError("the arguments of infer are not well formed", faults)


def _is_axis(given: object) -> bool:
    """Whether this is an axis or None, or axes by collection or Variable type."""
    if not isinstance(given, Mapping):
        return given is None or type(given) is int
    axes: Mapping[Any, Any] = given
    return bool(axes) and all(
        isinstance(kind, (str, type)) and type(axis) is int for kind, axis in axes.items()
    )


_Axes = Mapping[Any, int | None]
"""The axis that leaves are stacked on, by collection or Variable type; ``object`` stands for any."""


def _by_kind(given: int | Mapping[Any, int] | None) -> _Axes:
    return given if isinstance(given, Mapping) else {object: given}


def _axis_of(kind: Any, axes: _Axes) -> int | None:
    """The axis for a leaf of a collection or Variable type: that of the nearest type that is named."""
    own: list[Any] = [*kind.__mro__] if isinstance(kind, type) else [kind, object]
    return next((axes[one] for one in own if one in axes), None)


def _has_dtype(value: Any) -> bool:
    """Whether jax has a dtype for a value; a Python number may be too large."""
    try:
        return not leaves.is_scalar(value) or bool(leaves.abstract(value).dtype)
    except (OverflowError, ValueError):  # of more than 4300 digits, Python writes none
        return False


def _verify_leaves(read: Read, name: str) -> None:
    faults: list[Mismatch] = []
    for leaf in read.leaves:
        if leaves.signature(leaf.value) is None:
            expected, kind = "an array, an abstract value or a number", "leaf"
            hint = foreign.leaf_cure(leaf.value)
        elif foreign.dtype_cure(leaf.value):
            expected, kind, hint = "a leaf of numbers", "dtype", foreign.dtype_cure(leaf.value)
        elif not _has_dtype(leaf.value):
            expected, kind = "a number that jax's own integers hold", "dtype"
            hint = "pass it as a NumPy array of its dtype, or switch jax_enable_x64 on"
        else:
            continue
        found = leaves.describe(leaf.value)
        faults.append(Mismatch(paths.format_path(leaf.key), kind, expected, found, hint))
    if faults:
        raise SchemaError(f"no layout ({name}) can be read off the tree", faults)


@dataclasses.dataclass(frozen=True, slots=True)
class _Fold:
    """How one body key is seen as part of repeated nodes."""

    path: LogicalPath
    key: Pattern
    axis: int | None  # stacked on this axis
    count: int | None  # unrolled, this often


def _folds(
    body: Sequence[tuple[KeyPath | None, Found]],
    scan: Mapping[str, _Axes],
    lists: Sequence[str],
    kinds: Envelope,
) -> dict[KeyPath, _Fold]:
    """For each body key that is part of a repeated node, how."""
    keys = {key: leaf for key, leaf in body if key is not None}
    faults: list[Mismatch] = []
    folds = dict(_stacked(keys, scan, kinds, faults))
    groups: dict[tuple[Pattern, KeyPath], list[tuple[int, KeyPath]]] = collections.defaultdict(list)
    named = [paths.parse_pattern(text) for text in lists]
    for key in keys:
        at = _list_segment(key, named)
        if at is not None and key not in folds:
            head, index, number = at
            groups[(*head, index), key[len(head) + 1 :]].append((number, key))
    heads: dict[Pattern, dict[KeyPath, list[tuple[int, KeyPath]]]] = collections.defaultdict(dict)
    for (pattern, rest), members in groups.items():
        heads[pattern][rest] = sorted(members)
    for pattern, rests in heads.items():
        if _uniform(rests, keys):
            for rest, members in rests.items():
                fold = _Fold(_logical(pattern, rest), (*pattern, *rest), None, len(members))
                folds |= {key: fold for _, key in members}
    faults += _unused_lists(named, heads, folds)
    if faults:
        raise SchemaError("scan= and lists= do not fit the tree", faults)
    return folds


def _stacked(
    keys: Mapping[KeyPath, Found],
    scan: Mapping[str, _Axes],
    kinds: Envelope,
    faults: list[Mismatch],
) -> Iterator[tuple[KeyPath, _Fold]]:
    """How the leaves below stacked nodes are folded.

    A path inside of a stacked node says that leaves below it are stacked on another axis.
    """
    heads = {paths.parse_path(text): axes for text, axes in scan.items()}
    used: set[LogicalPath] = set()
    for key, leaf in keys.items():
        spelled = tuple(map(named, key))
        above = [spelled[:end] for end in range(1, len(key) + 1) if spelled[:end] in heads]
        used.update(above)
        kind = leaf.kind or kinds.collection(leaf.key)
        axis = _axis_of(kind, heads[above[-1]]) if above else None
        if axis is None:
            continue
        rank = len((leaves.signature(leaf.value) or ((),))[0])
        if not -rank <= axis < rank:
            where = paths.format_path(key)
            expected, found = f"a leaf with axis {axis}", leaves.describe(leaf.value)
            faults.append(Mismatch(where, "shape", expected, found, _OWN_AXIS))
        head = above[0]
        path = (*head[:-1], f"{head[-1]}[]", *spelled[len(head) :])
        yield key, _Fold(path, key, axis % max(rank, 1), None)
    for head in heads.keys() - used:
        where = "/".join(head)
        faults.append(Mismatch(where, "rule", "a node of the model", "no leaf below it", _BARE))


def _list_segment(key: KeyPath, named: Sequence[Pattern]) -> tuple[KeyPath, Index, int] | None:
    """The first repeated node on a key: what stands above it, its index symbol, and the index."""
    for pattern in named:
        head, symbol = pattern[:-1], pattern[-1]
        if isinstance(symbol, Index) and len(key) > len(head) and key[: len(head)] == head:
            index = symbol.index(key[len(head)])
            if index is not None:
                return key[: len(head)], symbol, index
    for at, segment in enumerate(key):
        if isinstance(segment, int) and at > 0:
            return key[:at], Index(), segment
    return None


def _uniform(
    rests: Mapping[KeyPath, Sequence[tuple[int, KeyPath]]], keys: Mapping[KeyPath, Found]
) -> bool:
    """Whether every member of a list has every leaf, of one shape and dtype."""
    counts = {tuple(number for number, _ in members) for members in rests.values()}
    whole = len(counts) == 1 and all(c == tuple(range(len(c))) for c in counts)
    return whole and all(
        len({leaves.signature(keys[k].value) for _, k in members}) == 1
        for members in rests.values()
    )


def _logical(pattern: Pattern, rest: KeyPath) -> LogicalPath:
    """``layers_{i}`` and ``layers/{i}`` are both the logical node ``layers[]``."""
    head, symbol = pattern[:-1], pattern[-1]
    assert isinstance(symbol, Index)
    stem = named((symbol.prefix + symbol.suffix).strip("_-."))
    names = [*map(named, head), stem] if stem != named("") else [*map(named, head)]
    return (*names[:-1], f"{names[-1]}[]", *map(named, rest))


def _unused_lists(
    named: Sequence[Pattern], heads: Mapping[Pattern, Any], folds: Mapping[KeyPath, _Fold]
) -> Iterator[Mismatch]:
    used = {fold.key[: len(pattern)] for fold in folds.values() for pattern in named}
    for pattern in named:
        if pattern not in used:
            where, expected = paths.format_path(pattern), "a repeated node of the model"
            if pattern in heads:
                yield Mismatch(
                    where,
                    "rule",
                    expected,
                    "members that differ",
                    "members 0 .. n-1 must have the same leaves",
                )
            else:
                yield Mismatch(where, "rule", expected, "no such node", _BARE)


def _rows(read: Read, kinds: Envelope, folds: Mapping[KeyPath, _Fold]) -> Iterator[Row]:
    shapes = {
        body: _leaf(leaf).dims for leaf in read.leaves if (body := kinds.body(leaf.key)) is not None
    }
    places = [(prefix, ("params",), kind) for prefix, kind in kinds.weights]
    places += [(prefix, (named(prefix[0]),), None) for prefix in kinds.copies]
    for leaf in read.leaves:
        for prefix, head, collection in places:
            if leaf.key[: len(prefix)] == prefix:
                yield _row(leaf, head, prefix, folds, leaf.kind or collection, shapes)
                break
        else:
            mirror = next(
                (leaf.key[:n] for n in range(len(leaf.key)) if leaf.key[:n] in kinds.mirrors), None
            )
            optimizer = kinds.optimizer or ()
            if mirror is not None:
                start = tuple(map(named, _strip(mirror, optimizer, kinds)))
                row = _row(leaf, ("opt_state", *start), mirror, folds, leaf.kind, shapes)
                param = "/".join(("params", *row.path[1 + len(start) :]))
                yield dataclasses.replace(row, optimizer=1, mirrors=param)
            else:
                inside = leaf.key[: len(optimizer)] == optimizer
                rest = (
                    leaf.key[len(optimizer) :]
                    if inside
                    else leaf.key[-1:]
                    if leaf.key[:1] == optimizer[:-1]
                    else leaf.key
                )
                path = tuple(map(named, ("opt_state", *rest) if inside else rest))
                yield Row(
                    path,
                    leaf.key,
                    _leaf(leaf),
                    kind=leaf.kind,
                    metadata=leaf.metadata,
                    optimizer=int(inside),
                )


def _strip(mirror: KeyPath, optimizer: KeyPath, kinds: Envelope) -> KeyPath:
    """The logical place of a mirror: without the envelope, and without the inner ``params`` of a variables dict."""
    inner = len(kinds.weights[0][0]) - 1 if optimizer == ("opt_state",) else 0
    return mirror[len(optimizer) : len(mirror) - inner]


def _row(
    leaf: Found,
    head: LogicalPath,
    prefix: Sequence[Key],
    folds: Mapping[KeyPath, _Fold],
    kind: Any,
    shapes: Mapping[KeyPath, Dims],
) -> Row:
    """The row of a leaf of the model, or of what mirrors it; ``shapes`` are those of the model's leaves."""
    stored = _leaf(leaf)
    rest = leaf.key[len(prefix) :]
    body = param_of(rest, shapes) or rest
    tail = rest[len(body) :]
    fold = folds.get(body)
    axis = (
        None
        if fold is None or fold.count is not None
        else _shared_axis(fold.axis or 0, stored.dims, shapes[body])
    )
    if fold is None or (fold.count is None and axis is None):
        path = (*head, *map(named, (*body, *tail)))
        return Row(
            path,
            leaf.key,
            stored,
            kind=kind,
            metadata=leaf.metadata,
            body=len(head),
            inside=leaf.inside,
            reshaped=stored.dims != shapes.get(body, stored.dims),
        )
    if axis is None:
        assert fold.count is not None
        repeats, item = (Repeat((fold.count,), None),), stored
    else:
        item = Leaf((*stored.dims[:axis], *stored.dims[axis + 1 :]), stored.dtype)
        repeats = (Repeat(stored.dims[axis], axis),)
    key, path = (*prefix, *fold.key, *tail), (*head, *fold.path, *map(named, tail))
    return Row(
        path,
        key,
        item,
        repeats,
        kind,
        leaf.metadata,
        body=len(head),
        inside=leaf.inside,
        reshaped=stored.dims != shapes.get(body, stored.dims),
    )


def _shared_axis(axis: int, dims: Dims, param: Dims) -> int | None:
    """The axis on which a leaf is stacked as its param is: the same where their shapes are, or else one of that size alone."""
    if dims == param:
        return axis
    only = dims.count(param[axis]) == param.count(param[axis]) == 1
    return dims.index(param[axis]) if only else None


def _leaf(leaf: Found) -> Leaf:
    shape, dtype = leaves.signature(leaf.value) or ((), "")
    if leaves.is_scalar(leaf.value):
        dtype = str(leaves.abstract(leaf.value).dtype)
    return Leaf(tuple((size,) for size in shape), dtype)


def _merge(rows: Sequence[Row], name: str) -> tuple[Row, ...]:
    """One row per logical path; the members of a list must agree."""
    merged: dict[LogicalPath, Row] = {}
    faults: list[Mismatch] = []
    for row in rows:
        first = merged.setdefault(row.path, row)
        if first.leaf != row.leaf or first.key != row.key:
            where = "/".join(row.path)
            faults.append(
                Mismatch(
                    where,
                    "shape",
                    f"{first} for all members",
                    str(row),
                    "declare this layout as a class",
                )
            )
    if faults:
        raise SchemaError(f"no layout ({name}) can be read off the tree", faults)
    return tuple(merged.values())
