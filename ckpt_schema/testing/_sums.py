"""Sums, by NumPy: what leaves of several rows are together, and how far off a part may be that was taken off again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ckpt_schema._layouts.formats import FORMATS
from ckpt_schema._layouts.leaves import Fill
from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.table import Layout, Slot
from ckpt_schema._lens.ancestry import Derivation
from ckpt_schema._lens.derive.folded_rows import FoldedRow
from ckpt_schema._lens.fold_rules import (
    Adapter,
    Addition,
    Dequantize,
    FoldKind,
    LowRank,
    Total,
)
from ckpt_schema._lens.lens import Lens
from ckpt_schema._lens.rules import Private, Rename, Rule
from ckpt_schema.testing._held import host
from ckpt_schema.testing._named_arrays import Sizes, indices_of, key_of

__all__ = ["add_sums", "alike_sums", "is_within_bound", "rules_without_sums", "sum_bounds"]


def rules_without_sums(origin: Derivation) -> Sequence[Rule]:
    """The rules of a derivation; a sum is told as the rename of the part that is compared as the sum."""
    rules: list[Rule] = []
    for rule in origin.rules:
        if isinstance(rule, (Dequantize, Adapter)):
            continue  # what is computed is called as the first of its parts
        if not isinstance(rule, Total):
            rules.append(rule)
            continue
        open_ = [p for p in rule.parts if not any(_is_private(r, p) for r in origin.rules)]
        rest = rule.whole if rule.whole in open_ else open_[-1]
        is_source = any(_stands(row.path, rest) for row in origin.source.rows)
        is_source = is_source and all(
            any(_stands(row.path, part) for row in origin.source.rows) for part in rule.parts
        )
        if rest != rule.whole:
            rules.append(Rename(rest, rule.whole) if is_source else Rename(rule.whole, rest))
    return rules


def _is_private(rule: Rule, path: LogicalPath) -> bool:
    return isinstance(rule, Private) and path[: len(rule.path)] == rule.path


def _stands(path: LogicalPath, part: LogicalPath) -> bool:
    """Whether a row stands at a path, or below, wherever the model of it begins."""
    return any(path[at : at + len(part)] == part for at in range(len(path)))


def add_sums(
    table: Layout,
    sums: Sequence[FoldedRow],
    held: MutableMapping[tuple[str, ...], Any],
    sizes: Sizes,
) -> None:
    """Puts the sum of several rows in the place of one of them."""
    for one in sums:
        for indices in indices_of(table.rows[one.row], sizes):
            keys = [_key(table, number, indices, held) for number in (one.row, *one.others)]
            parts = [host(held[key]) for key in keys if key is not None]
            if keys[0] is None or len(parts) < len(keys):
                continue
            with np.errstate(all="ignore"):
                held[keys[0]] = _computed(one.kind, parts)


def _computed(kind: FoldKind, parts: Sequence[Any]) -> Any:
    """What is computed of parts, rounded once."""
    wide = [part.astype(np.longdouble) for part in parts]
    if isinstance(kind, Addition):
        return np.sum(wide, axis=0).astype(parts[0].dtype)
    if isinstance(kind, LowRank):
        first, second = kind.subscripts.split("->")[0].split(",")
        rank = dict(zip(first + second, parts[1].shape + parts[2].shape, strict=True))
        (shared,) = (set(first) & set(second)) - set(kind.subscripts.split("->")[1])
        step = np.einsum(kind.subscripts, wide[1], wide[2])
        return (wide[0] + step * (kind.alpha / rank[shared])).astype(parts[0].dtype)
    made = np.empty(parts[0].shape, parts[1].dtype)
    blocks = [n if b is None else b for b, n in zip(kind.block, made.shape, strict=True)]
    grid = [-(-n // max(b, 1)) for b, n in zip(blocks, made.shape, strict=True)]
    scales = wide[1].reshape(grid)
    for at in np.ndindex(*made.shape):
        block = tuple(i // b for i, b in zip(at, blocks, strict=True))
        made[at] = wide[0][at] * scales[block]
    return made


def _key(
    table: Layout, number: int, indices: tuple[int, ...], held: Mapping[tuple[str, ...], Any]
) -> tuple[str, ...] | None:
    key = key_of(table.rows[number], indices)
    at = len(key) - table.rows[number].inside
    both = key, (*key[:at], "value", *key[at:])
    return next((each for each in both if each in held), None)


def alike_sums(expected: Any, found: Any) -> bool:
    """Whether sums are equal as numbers: what is no number has no bits, and the smallest may be zero."""
    form = FORMATS.get(str(expected.dtype))
    if expected.shape != found.shape or form is None:
        return False
    with np.errstate(all="ignore"):
        one, two = (each.astype(np.longdouble) for each in (expected, found))
        alike = (one == two) | (np.isnan(one) & np.isnan(two))
        near = np.abs(one - two) <= np.ldexp(np.abs(one), -form.mantissa)
        return bool((alike | near | (np.abs(one - two) <= _least(form))).all())


def _least(form: Any) -> Any:
    return np.ldexp(np.longdouble(1), -form.normal)


def sum_bounds(
    lens: Lens, slots: Mapping[Slot, int], leaves: Sequence[Any]
) -> Iterator[tuple[int, Any]]:
    """Leaves of a tree of the source, by position, and how far off each element may come back.

    Args:
        lens: The lens.
        slots: The positions of the leaves of each row.
        leaves: What they were.
    """
    for one in lens.folds[0]:
        for (number, indices), at in slots.items():
            if not isinstance(one.kind, Addition):
                # Other numbers may stand for the same: what they stand for is looked at elsewhere.
                if number in one.parts[: one.kind.made]:
                    yield at, np.longdouble(np.inf)
            elif number == one.row:
                others = [slots[other, indices] for other in one.others]
                sizes = [_size(leaves[each]) for each in (at, *others)]
                yield at, _bound(leaves[at], 2 * sum(sizes))
    for one in lens.folds[1]:
        defaults = [lens.view.rows[number].default for number in one.others]
        fills = [abs(float(each.value)) for each in defaults if isinstance(each, Fill)]
        rows = {source for join in lens.joins for source, view in join.pairs if view == one.row}
        for (number, _), at in slots.items():
            if number in rows:
                yield at, _there_and_back(one.kind, lens, one.row, leaves[at], fills)


def _there_and_back(kind: FoldKind, lens: Lens, row: int, leaf: Any, fills: Sequence[float]) -> Any:
    """How far off each element may be that was taken apart and computed again."""
    if isinstance(kind, Addition):
        return _bound(leaf, _size(leaf) + 2 * sum(fills))
    if isinstance(kind, LowRank):
        return _bound(leaf, _size(leaf) + 4 * abs(kind.alpha) * math.prod(fills))
    # No more than half a step of the greatest number of all blocks, and the rounding of scales.
    size = _size(leaf)
    most = size[np.isfinite(size)].max(initial=0)
    form = FORMATS.get(lens.view.rows[row].leaf.dtype)
    step = 2.0 ** -(form.mantissa + 1) if form else 0.5 / _tops(lens.view.rows[row].leaf.dtype)
    return _bound(leaf, size) + most * np.longdouble(step * 1.02 + 2.0**-7)


def _tops(dtype: str) -> int:
    return int(jnp.iinfo(dtype).max)


def is_within_bound(found: Any, expected: Any, bound: Any) -> bool:
    """Whether every element is as far off as it may be, or less."""
    one, two = host(found), host(expected)
    if one.shape != two.shape or one.dtype != two.dtype:
        return False
    with np.errstate(all="ignore"):
        one, two = one.astype(np.longdouble), two.astype(np.longdouble)
        alike = (one == two) | (np.isnan(one) & np.isnan(two))
        return bool((alike | (np.abs(one - two) <= bound) | ~np.isfinite(bound)).all())


def _size(leaf: Any) -> Any:
    with np.errstate(all="ignore"):
        return np.abs(host(leaf).astype(np.longdouble))


def _bound(leaf: Any, size: Any) -> Any:
    """What two roundings of numbers of a size make at most."""
    form = FORMATS[str(leaf.dtype)]
    return np.ldexp(size * np.longdouble(1.05), -form.mantissa) + 2 * _least(form)
