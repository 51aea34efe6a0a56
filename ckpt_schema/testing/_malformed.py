"""The law of refusal: a state that is not of its layout is an error, which names the leaf, whoever is asked."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ckpt_schema._layouts import leaves
from ckpt_schema._layouts.paths import KeyPath, fill, format_path, parse_path, unquoted
from ckpt_schema._layouts.table import Layout
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
    for what, key, wrong in _malformed(lens, s, rng):
        asked: dict[str, Callable[[], object]] = {
            "get": lambda wrong=wrong: lens.get(wrong),
            "get onto a view": lambda wrong=wrong: lens.get(wrong, onto=v, drop=True),
            "put onto it": lambda wrong=wrong: lens.put(v, onto=wrong, drop=True),
            "dry_run": lambda wrong=wrong: lens.dry_run(wrong),
            "check": lambda wrong=wrong: _checked(lens, wrong),
        }
        for name, ask in asked.items():
            said = _said(ask, key)
            if said:
                expected = f"an error of {name} that names it, for {what}"
                faults.append(Mismatch(format_path(key), "refusal", expected, said))
    if faults:
        raise LawError("malformed states are not refused", faults)


def _checksum(tree: Tree) -> int:
    checksum = 0
    for leaf in jax.tree.leaves(tree):
        checksum = zlib.crc32(np.ascontiguousarray(host(leaf)).tobytes(), checksum)
    return checksum


def _checked(lens: Lens, tree: Tree) -> None:
    names = lens.source.names()
    report = check(lens.source, tree, {n: size for n, size in lens.dims.items() if n in names})
    if report.mismatches:
        raise CkptSchemaError("it does not conform", report.mismatches)


def _said(ask: Callable[[], object], key: KeyPath) -> str:
    """What is wrong with the answer; nothing where it is an error that names the leaf."""
    try:
        ask()
    except CkptSchemaError as error:
        named = [fault.path for fault in error.mismatches]
        return "" if any(_about(path, key) for path in named) else f"an error about {named[:3]}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]
    return "no error"


def _about(path: str, key: KeyPath) -> bool:
    """Whether a path is that of a leaf, or of what it stands in."""
    words = [unquoted(word) for word in parse_path(path)]
    own = [str(segment) for segment in key]
    shorter = min(len(words), len(own))
    return bool(path) and words[:shorter] == own[:shorter]


# --- What is made wrong  ---


def _malformed(lens: Lens, tree: Tree, rng: np.random.Generator) -> Iterator[Wrong]:
    """The tree made wrong in two of all ways that there are for it, and at times with a layer more."""
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
    rows, sizes = lens.source.rows, lens.dims
    keys = flatten(tree).keys
    at = {_bare(key): number for number, key in enumerate(keys)}
    flat, treedef = jax.tree.flatten(tree)
    for number in rng.permutation(len(rows)):
        row = rows[int(number)]
        others = [o for o in rows if o.leaf == row.leaf and o.repeats != row.repeats]
        for other in others:
            own, there = (
                [at[key] for i in indices_of(each, sizes) if (key := key_of(each, i)) in at]
                for each in (row, other)
            )
            if own and there and np.shape(flat[own[-1]]) != np.shape(flat[there[0]]):
                changed = [*flat]
                changed[own[-1]] = flat[there[0]]
                key = keys[own[-1]]
                return ("what belongs to another stack", key, treedef.unflatten(changed))
    return None


def _respelled(lens: Lens, tree: Tree, rng: np.random.Generator) -> Wrong | None:
    """Strings for the int keys of one container: a save makes them of all int keys, or of none."""
    numbered = [*_numbered(tree)]
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
    needed = _needed(lens.source, lens.dims)
    keys = [key for key in flatten(tree).keys if _bare(key) in needed]
    if not keys:
        return None
    key = keys[int(rng.integers(len(keys)))]
    left = without(tree, {key})
    return ("no such leaf", needed[_bare(key)], left)


def _extra(lens: Lens, tree: Tree, rng: np.random.Generator) -> Wrong | None:
    more = np.zeros(2, np.float32)
    if isinstance(tree, dict):
        return ("a leaf that is not declared", (_EXTRA,), {**tree, _EXTRA: more})
    if isinstance(tree, nnx.State):
        return (
            "a leaf that is not declared",
            (_EXTRA,),
            nnx.State({**dict(tree.items()), _EXTRA: nnx.Param(more)}),
        )
    return None


def _more(lens: Lens, tree: Tree, rng: np.random.Generator) -> Wrong | None:
    """One layer more in a list than the lens is bound to."""
    flat = flatten(tree)
    leaves_at = dict(zip(flat.keys, flat.leaves, strict=True))
    rows = [row for row in lens.source.rows if [each.axis for each in row.repeats] == [None]]
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
    places = [at for at, leaf in enumerate(flat) if not leaves.is_scalar(leaf) and fits(leaf)]
    if not places:
        return None
    at = places[int(rng.integers(len(places)))]
    changed = treedef.unflatten([*flat[:at], change(flat[at]), *flat[at + 1 :]])
    return (what, keys[at], changed)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _needed(layout: Layout, sizes: Sizes) -> dict[tuple[str, ...], KeyPath]:
    """The leaves that a tree must have, by key path as strings, unless a Variable has a container in it."""
    rows = [r for r in layout.rows if not (r.optional or r.ephemeral or r.inside or r.repeats)]
    return {key_of(row, ()): key_of(row, ()) for row in rows for _ in indices_of(row, sizes)}


def _bare(key: KeyPath) -> tuple[str, ...]:
    """A key path as strings, without the level of a Variable or box."""
    texts = tuple(map(str, key))
    return texts[:-1] if texts[-1] == "value" else texts
