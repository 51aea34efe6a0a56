"""The law that a lens moves by names: told by the declared tables alone, element by element, not by the edits of the lens."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ckpt_schema import dims as dims_
from ckpt_schema.conformance import Matcher
from ckpt_schema.errors import Mismatch
from ckpt_schema.lens.arrays import Flip
from ckpt_schema.lens.core import Lens
from ckpt_schema.lens.joins import Join
from ckpt_schema.lens.partial import Pad, Scale, Unpad
from ckpt_schema.paths import format_path
from ckpt_schema.table import Layout, Row, Slot, slots_of
from ckpt_schema.testing.laws import LawError
from ckpt_schema.testing.states import edits_of
from ckpt_schema.trees import Tree

__all__ = ["naming"]

_RULED = (Flip, Pad, Scale, Unpad)  # what only a rule says, and no name


def naming(lens: Lens, s: Tree) -> None:
    """``get(s)[name][i] == s[name][i]`` for every leaf and every index ``i`` by the names of dims and layers."""
    before, after = _slots(lens.source, s), _slots(lens.view, lens.get(s))
    faults = _crossed(lens)
    for join in lens.joins:
        one, other = lens.source.rows[join.sources[0].row], lens.view.rows[join.views[0].row]
        if not _told(join, one, other):
            continue
        ours, theirs = (
            _by_name(one, join.sources[0].row, before, lens.dims),
            _by_name(other, join.views[0].row, after, lens.dims),
        )
        if ours is not None and theirs is not None and not _same(ours, theirs):
            expected = f"the elements of {format_path(one.key)}, {one.stored}, by their names"
            faults.append(
                Mismatch(format_path(other.key), "naming", expected, "others, or in another order")
            )
    if faults:
        raise LawError("elements are not where their names say", faults)


def _crossed(lens: Lens) -> list[Mismatch]:
    """Two leaves that both layouts have, each joined with the other."""
    pairs = {
        "/".join(lens.source.rows[join.sources[0].row].path): "/".join(
            lens.view.rows[join.views[0].row].path
        )
        for join in lens.joins
        if join.plain
    }
    return [
        Mismatch(path, "naming", f"to be {path} of {lens.view.name}", other)
        for path, other in pairs.items()
        if path != other and pairs.get(other) == path
    ]


def _told(join: Join, one: Row, other: Row) -> bool:
    """Whether names alone tell where each element goes."""
    if not join.plain or any(isinstance(edit, _RULED) for edit in edits_of(join.chain)):
        return False
    keys = [row.leaf.dtype.startswith("key<") for row in (one, other)]
    return keys[0] == keys[1] and len(one.repeats) == len(other.repeats)


def _slots(layout: Layout, tree: Tree) -> dict[Slot, Any]:
    match = Matcher(layout).match(tree)
    return {slot: match.flat.leaves[position] for slot, position in match.slots.items()}


def _by_name(row: Row, number: int, found: Mapping[Slot, Any], sizes: Mapping[str, int]) -> Any:
    """All repeats of a leaf as one array: the levels first, then every factor of its dims in the order of their names."""
    slots = [(number, indices) for indices in slots_of(row, sizes)]
    if not all(slot in found for slot in slots):
        return None
    values = [_host(found[slot]) for slot in slots]
    counts = tuple(dims_.size_of(size, sizes) or 0 for size in row.unrolled)
    inner = values[0].shape if values else ()
    whole = np.reshape(np.stack(values), (*counts, *inner)) if values else np.zeros(counts)
    names: list[tuple[Any, ...]] = [
        (0, at) for at, level in enumerate(row.repeats) if level.axis is None
    ]
    lengths = [*counts]
    seen: collections.Counter[str] = collections.Counter()
    for kind, at in row.axes:
        if kind == "level":
            names.append((0, at))
            lengths.append(dims_.size_of(row.repeats[at].size, sizes) or 0)
            continue
        for factor in row.leaf.dims[at]:
            seen[str(factor)] += 1
            names.append((1, str(factor), seen[str(factor)]))
            lengths.append(dims_.size_of((factor,), sizes) or 0)
    rest = inner[len(row.axes) :]  # the words of keys
    order = [
        *sorted(range(len(names)), key=names.__getitem__),
        *range(len(names), len(names) + len(rest)),
    ]
    kept = [at for at in order if at >= len(names) or names[at][:2] != (1, "1")]
    every = (*lengths, *rest)
    return np.transpose(np.reshape(whole, every), order).reshape(tuple(every[at] for at in kept))


def _host(value: Any) -> np.ndarray[Any, Any]:
    keys = isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(value) if keys else value)


def _same(one: Any, other: Any) -> bool:
    if one.dtype != other.dtype:  # integers of two dtypes, or a Python number
        return one.shape == other.shape and bool(
            np.all(one.astype(np.int64) == other.astype(np.int64))
        )
    return (
        one.shape == other.shape
        and np.ascontiguousarray(one).tobytes() == np.ascontiguousarray(other).tobytes()
    )
