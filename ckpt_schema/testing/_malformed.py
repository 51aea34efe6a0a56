"""The law of refusal: a state that is not of its layout is an error, which names the leaf, whoever is asked."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ckpt_schema._layouts import leaves
from ckpt_schema._layouts.paths import KeyPath, fill, format_path, parse_path, unquoted
from ckpt_schema._layouts.table import Layout, Row
from ckpt_schema._lens.lens import Lens
from ckpt_schema._trees.conformance import check
from ckpt_schema._trees.containers import Tree, flatten, without
from ckpt_schema.errors import CkptSchemaError, Mismatch
from ckpt_schema.testing._held import host
from ckpt_schema.testing._laws import LawError
from ckpt_schema.testing._named_arrays import Sizes, indices_of, key_of, size

__all__ = ["refusal_law"]

_EXTRA = "unexpected"
_DTYPES = {"float32": "float16", "int32": "int16", "uint32": "int32", "bool": "int8"}
_IMPLS = {"threefry2x32": "rbg", "rbg": "unsafe_rbg", "unsafe_rbg": "rbg"}

Wrong = tuple[str, KeyPath, Tree]
"""What is wrong with a tree, at which leaf, and the tree."""


def refusal_law(lens: Lens, s: Tree, v: Tree) -> None:
    """``get(s)``, ``get(s, onto=v)``, ``get(t, onto=s)`` of the way back and ``check`` refuse ``s`` where it is malformed.

    Args:
        lens: The lens.
        s: A state of its source, which is right.
        v: One of its view.

    What is made wrong, and where, follows from the values of ``s``: a state is all that it takes to
    see it again.
    """
    rng = np.random.default_rng(_checksum(s))
    lens.get(s)  # so that there is a plan for such trees, which must not take one that is like them
    lens.put(v, onto=s, drop=True)
    faults: list[Mismatch] = []
    # Each is asked by itself, for each has its own way to a tree.
    for what, key, wrong in _malformed(lens, s, rng):
        asked: dict[str, Callable[[], object]] = {
            "get": lambda wrong=wrong: lens.get(wrong),
            "get onto a view": lambda wrong=wrong: lens.get(wrong, onto=v, drop=True),
            "put onto it": lambda wrong=wrong: lens.put(v, onto=wrong, drop=True),
            "dry_run": lambda wrong=wrong: lens.dry_run(wrong),
            "check": lambda wrong=wrong: _checked(lens, wrong),
        }
        for name, ask in asked.items():
            # A refusal that names another leaf sends the reader to the wrong place.
            said = _said(ask, key)
            if said:
                expected = f"an error of {name} that names it, for {what}"
                faults.append(Mismatch(format_path(key), "refusal", expected, said))
    if faults:
        raise LawError("malformed states are not refused", faults)


def _checksum(tree: Tree) -> int:
    """A number that follows from the bits of a tree."""
    checksum = 0
    for leaf in jax.tree.leaves(tree):
        checksum = zlib.crc32(np.ascontiguousarray(host(leaf)).tobytes(), checksum)
    return checksum


def _checked(lens: Lens, tree: Tree) -> None:
    """Raises what `check` says of a tree of the source, as a lens would."""
    names = lens.source.names()
    # Without the sizes of the lens a tree of other sizes is one of this layout, and right.
    known = {name: size for name, size in lens.dims.items() if name in names}
    report = check(lens.source, tree, known)
    if report.mismatches:
        raise CkptSchemaError("it does not conform", report.mismatches)


def _said(ask: Callable[[], object], key: KeyPath) -> str:
    """What is wrong with the answer; nothing where it is an error that names the leaf."""
    try:
        ask()
    except CkptSchemaError as error:
        named = [fault.path for fault in error.mismatches]
        return "" if any(_about(path, key) for path in named) else f"an error about {named[:3]}"
    except Exception as error:  # an error of jax or NumPy names no leaf
        return f"{type(error).__name__}: {error}"[:200]
    return "no error"


def _about(path: str, key: KeyPath) -> bool:
    """Whether a path is that of a leaf, or of what it stands in."""
    words = list(map(unquoted, parse_path(path)))
    own = list(map(str, key))
    # Of a leaf that is missing with its whole node, the node may be named.
    shorter = min(len(words), len(own))
    return bool(path) and words[:shorter] == own[:shorter]


# --- What is made wrong  ---


def _malformed(lens: Lens, tree: Tree, rng: np.random.Generator) -> Iterator[Wrong]:
    """The tree made wrong in two of all ways that there are for it, and at times with a layer more.

    All ways would take long, and a law is tried many times.
    """
    ways: list[Callable[[Lens, Tree, np.random.Generator], Wrong | None]]
    ways = [_of_dtype, _of_impl, _of_rank, _of_size, _missing, _extra, _nested]
    ways += [_stacked, _respelled]
    count = 0
    for at in rng.permutation(len(ways)):
        wrong = ways[int(at)](lens, tree, rng)
        if wrong is not None:
            yield wrong
            count += 1
        if count == 2:
            break
    longer = _more(lens, tree, rng) if rng.integers(4) == 0 else None
    if longer is not None:
        yield longer


def _of_dtype(lens: Lens, tree: Tree, rng: np.random.Generator) -> Wrong | None:
    def change(leaf: Any) -> Any:
        dtype = str(leaf.dtype)
        return np.zeros(leaf.shape, jnp.dtype(_DTYPES.get(dtype, "float32")))

    return _changed("another dtype", tree, rng, lambda leaf: not _is_key(leaf), change)


def _of_impl(lens: Lens, tree: Tree, rng: np.random.Generator) -> Wrong | None:
    def change(leaf: Any) -> Any:
        impl = _IMPLS[str(jax.random.key_impl(leaf))]
        return jnp.broadcast_to(jax.random.key(0, impl=impl), leaf.shape)

    return _changed("keys of another implementation", tree, rng, _is_key, change)


def _of_rank(lens: Lens, tree: Tree, rng: np.random.Generator) -> Wrong | None:
    return _changed("one axis more", tree, rng, lambda leaf: True, lambda leaf: leaf[None])


def _of_size(lens: Lens, tree: Tree, rng: np.random.Generator) -> Wrong | None:
    """One layer or element more on some axis than all others have: the lens is bound to sizes."""
    # Drawn before a leaf is chosen, and taken by the number of axes that this one has.
    axis = int(rng.integers(8))

    def change(leaf: Any) -> Any:
        more = [(0, 0)] * leaf.ndim
        more[axis % leaf.ndim] = (0, 1)
        return np.pad(np.asarray(leaf), more)

    def fits(leaf: Any) -> bool:
        return leaf.ndim > 0 and not _is_key(leaf)

    return _changed("one element more on an axis", tree, rng, fits, change)


def _stacked(lens: Lens, tree: Tree, rng: np.random.Generator) -> Wrong | None:
    """A leaf stacked as another one of its declaration is: what is right for that one is wrong here."""
    rows = lens.source.rows
    keys = flatten(tree).keys
    places = {_bare(key): at for at, key in enumerate(keys)}
    flat, treedef = jax.tree.flatten(tree)
    for number in rng.permutation(len(rows)):
        row = rows[int(number)]
        own = _places_of(row, lens.dims, places)
        for other in rows:
            if other.leaf != row.leaf or other.repeats == row.repeats:
                continue
            there = _places_of(other, lens.dims, places)
            # The last layer: the first may be all that is looked at.
            if own and there and np.shape(flat[own[-1]]) != np.shape(flat[there[0]]):
                changed = [*flat]
                changed[own[-1]] = flat[there[0]]
                key = keys[own[-1]]
                return ("what belongs to another stack", key, treedef.unflatten(changed))
    return None


def _places_of(row: Row, sizes: Sizes, places: Mapping[tuple[str, ...], int]) -> list[int]:
    """The positions in a tree of the leaves of a row."""
    own: list[int] = []
    for indices in indices_of(row, sizes):
        key = key_of(row, indices)
        if key in places:
            own.append(places[key])
    return own


def _respelled(lens: Lens, tree: Tree, rng: np.random.Generator) -> Wrong | None:
    """Strings for the int keys of one container: a save makes them of all int keys, or of none."""
    numbered = [*_numbered(tree)]
    # With one such container alone, strings are a tree as a save leaves it.
    if len(numbered) < 2:
        return None
    key = numbered[int(rng.integers(len(numbered)))]
    return ("strings for the int keys of one container", key, _with_strings(tree, key))


def _numbered(tree: Any, prefix: KeyPath = ()) -> Iterator[KeyPath]:
    """The key paths of dicts with int keys."""
    if isinstance(tree, dict):
        node: dict[Any, Any] = tree
        if any(isinstance(key, int) for key in node):
            yield prefix
        for key, child in node.items():
            yield from _numbered(child, (*prefix, key))


def _with_strings(tree: Any, at: KeyPath) -> Any:
    """A copy of nested dicts with strings for all keys of the one at a key path."""
    if not at:
        return {str(key): child for key, child in tree.items()}
    return {**tree, at[0]: _with_strings(tree[at[0]], at[1:])}


def _nested(lens: Lens, tree: Tree, rng: np.random.Generator) -> Wrong | None:
    return _changed(
        "a dict in its place", tree, rng, lambda leaf: True, lambda leaf: {_EXTRA: leaf}
    )


def _missing(lens: Lens, tree: Tree, rng: np.random.Generator) -> Wrong | None:
    """The tree without a leaf that it must have."""
    needed = _needed(lens.source)
    keys = [key for key in flatten(tree).keys if _bare(key) in needed]
    if not keys:
        return None
    key = keys[int(rng.integers(len(keys)))]
    return ("no such leaf", _bare(key), without(tree, {key}))


def _extra(lens: Lens, tree: Tree, rng: np.random.Generator) -> Wrong | None:
    """The tree with a leaf more; a train state, whose fields are fixed, has no room for one."""
    more = np.zeros(2, np.float32)
    what = "a leaf that is not declared"
    if isinstance(tree, dict):
        return (what, (_EXTRA,), {**tree, _EXTRA: more})
    if isinstance(tree, nnx.State):
        state = nnx.State({**dict(tree.items()), _EXTRA: nnx.Param(more)})
        return (what, (_EXTRA,), state)
    return None


def _more(lens: Lens, tree: Tree, rng: np.random.Generator) -> Wrong | None:
    """One layer more in a list than the lens is bound to."""
    flat = flatten(tree)
    leaves_at = dict(zip(flat.keys, flat.leaves, strict=True))
    # Rows that are repeated once, and unrolled: of layers in layers a whole list would be missing.
    rows: list[Row] = []
    for row in lens.source.rows:
        if len(row.repeats) == 1 and row.repeats[0].axis is None:
            rows.append(row)
    for at in rng.permutation(len(rows)):
        row = rows[int(at)]
        count = size(row.repeats[0].size, lens.dims)
        leaf = leaves_at.get(fill(row.key, (count - 1,)))
        key = fill(row.key, (count,))
        if leaf is not None and key not in leaves_at:
            more = _with(tree, key, leaf)
            return None if more is None else ("one layer more", key, more)
    return None


def _with(tree: Any, key: KeyPath, leaf: Any) -> Any:
    """A copy of nested dicts with one leaf more; None where what is on the way is no dict."""
    if not isinstance(tree, dict):
        return None
    copy: dict[Any, Any] = dict(tree)
    inner = leaf if len(key) == 1 else _with(copy.get(key[0], {}), key[1:], leaf)
    return None if inner is None else {**copy, key[0]: inner}


def _changed(
    what: str,
    tree: Tree,
    rng: np.random.Generator,
    fits: Callable[[Any], bool],
    change: Callable[[Any], Any],
) -> Wrong | None:
    """The tree with one leaf changed."""
    flat, treedef = jax.tree.flatten(tree)
    keys = flatten(tree).keys
    # A step that is a Python number has no dtype or shape that could be another.
    places = [at for at, leaf in enumerate(flat) if not leaves.is_scalar(leaf) and fits(leaf)]
    if not places:
        return None
    at = places[int(rng.integers(len(places)))]
    changed = treedef.unflatten([*flat[:at], change(flat[at]), *flat[at + 1 :]])
    return (what, keys[at], changed)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _needed(layout: Layout) -> set[tuple[str, ...]]:
    """The leaves that a tree must have, by key path as strings, unless a Variable has a container in it.

    Those of layers are left out: without its last layers a list is a shorter one.
    """
    keys: set[tuple[str, ...]] = set()
    for row in layout.rows:
        if not (row.optional or row.ephemeral or row.inside or row.repeats):
            keys.add(key_of(row, ()))
    return keys


def _bare(key: KeyPath) -> tuple[str, ...]:
    """A key path as strings, without the level of a Variable or box."""
    texts = tuple(map(str, key))
    return texts[:-1] if texts[-1] == "value" else texts
