"""Sums, by NumPy: what leaves of several rows are together, and how far off a part may be that was taken off again."""

from __future__ import annotations

import dataclasses
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
    Packing,
    Scaling,
    Total,
)
from ckpt_schema._lens.lens import Lens
from ckpt_schema._lens.rules import Private, Rename, Rule
from ckpt_schema.testing._held import host
from ckpt_schema.testing._named_arrays import Sizes, indices_of, key_of

__all__ = [
    "add_sums",
    "alike_sums",
    "computed_again",
    "is_within_bound",
    "rules_without_sums",
    "sum_bounds",
    "unpacked_layout",
]


def rules_without_sums(origin: Derivation) -> Sequence[Rule]:
    """The rules of a derivation; a sum is told as the rename of the part that is compared as the sum."""
    rules: list[Rule] = []
    for rule in origin.rules:
        if isinstance(rule, (Dequantize, Adapter)):
            continue  # what is computed is called as the first of its parts
        if not isinstance(rule, Total):
            rules.append(rule)
            continue
        open_parts = [part for part in rule.parts if not _is_private(origin.rules, part)]
        # The part that has the name of the sum stands for it, or else the last that may change.
        rest = rule.whole if rule.whole in open_parts else open_parts[-1]
        paths = [row.path for row in origin.source.rows]
        # A part may be called as the sum is: the side of the parts is the one that has all of them.
        is_source = all(_stands(paths, part) for part in (rest, *rule.parts))
        if rest != rule.whole:
            rules.append(Rename(rest, rule.whole) if is_source else Rename(rule.whole, rest))
    return rules


def _is_private(rules: Sequence[Rule], path: LogicalPath) -> bool:
    """Whether a rule says that a leaf is private."""
    private = [rule.path for rule in rules if isinstance(rule, Private)]
    return any(path[: len(start)] == start for start in private)


def _stands(paths: Sequence[LogicalPath], part: LogicalPath) -> bool:
    """Whether a row stands at a path, or below, wherever the model of it begins."""
    for path in paths:
        for at in range(len(path)):
            if path[at : at + len(part)] == part:
                return True
    return False


def add_sums(
    table: Layout,
    sums: Sequence[FoldedRow],
    held: MutableMapping[tuple[str, ...], Any],
    sizes: Sizes,
) -> dict[tuple[str, ...], Any]:
    """Puts the sum of several rows in the place of one of them.

    Returns:
        How large what was added is, for each element of these sums, by key path: as large as that
        is what rounding is measured by, however small the sum.
    """
    added: dict[tuple[str, ...], Any] = {}
    for one in sums:
        for indices in indices_of(table.rows[one.row], sizes):
            keys = [_key(table, number, indices, held) for number in (one.row, *one.others)]
            parts = [host(held[key]) for key in keys if key is not None]
            if keys[0] is None or len(parts) < len(keys):
                continue  # a tree without a part has no sum
            with np.errstate(all="ignore"):
                held[keys[0]] = _computed(one.kind, parts)
                added[keys[0]] = _added(one.kind, parts)
    return added


def _added(kind: FoldKind, parts: Sequence[Any]) -> Any:
    """How large what is added is, once for each time that a sum may be rounded."""
    sizes = list(map(_size, parts))
    if isinstance(kind, Addition):
        return sum(sizes) * (len(parts) - 1)
    if isinstance(kind, LowRank):
        # An element of the product is a sum of as many terms as the rank.
        rank = _rank(kind, parts)
        step = np.einsum(kind.subscripts, sizes[1], sizes[2]) * abs(kind.alpha / rank)
        return sizes[0] + step * (rank + 1)
    return np.zeros(parts[0].shape, np.longdouble)  # one product, which is rounded once


def _rank(kind: LowRank, parts: Sequence[Any]) -> int:
    """The rank of two factors: of ``dr,rh->dh`` the size of ``r``, which both have, and their product has not."""
    factors, product = kind.subscripts.split("->")
    first, second = factors.split(",")
    lengths = dict(zip(first + second, parts[1].shape + parts[2].shape, strict=True))
    (shared,) = (set(first) & set(second)) - set(product)
    return lengths[shared]


def _computed(kind: FoldKind, parts: Sequence[Any]) -> Any:
    """What is computed of parts, rounded once."""
    wide = [part.astype(np.longdouble) for part in parts]
    if isinstance(kind, Addition):
        return np.sum(wide, axis=0).astype(parts[0].dtype)
    if isinstance(kind, LowRank):
        step = np.einsum(kind.subscripts, wide[1], wide[2])
        return (wide[0] + step * (kind.alpha / _rank(kind, parts))).astype(parts[0].dtype)
    # Numbers with a scale for each block are left: element by element, each looks its own up.
    numbers = wide[0] if kind.packing is None else _numbers(parts[0], kind.packing)
    made = np.empty(numbers.shape, jnp.dtype(kind.dtype([str(part.dtype) for part in parts])))
    blocks: list[int] = []
    grid: list[int] = []
    for told, length in zip(kind.block, made.shape, strict=True):
        block = length if told is None else told
        blocks.append(block)
        grid.append(-(-length // max(block, 1)))  # rounded up
    scales = wide[1].reshape(grid)
    if parts[1].dtype == np.uint8:
        scales = np.longdouble(2) ** (scales - 127)
    zeros = _zeros(parts, kind, grid) if kind.has_zeros else np.full(grid, kind.zero)
    for place in np.ndindex(*made.shape):
        number = tuple(at // block for at, block in zip(place, blocks, strict=True))
        made[place] = (numbers[place] - zeros[number]) * scales[number]
    return made


def _numbers(words: Any, packing: Packing) -> Any:
    """The numbers in words, taken one by one out of the bytes of each."""
    made = np.empty(packing.whole(words.shape), np.longdouble)
    kind = jnp.dtype(packing.numbers)
    for at in np.ndindex(*words.shape):
        octets = [int(octet) for octet in words[at].tobytes()]
        for number in range(packing.count):
            octet, half = divmod(number * packing.bits, 8)
            code = octets[octet] >> half & (1 << packing.bits) - 1
            place = [*at]
            place[packing.axis] = at[packing.axis] * packing.count + number
            # Of int4 a whole byte is kept, whose upper half counts for nothing.
            made[tuple(place)] = np.uint8(code).view(kind)
    return made


def _zeros(parts: Sequence[Any], kind: Scaling, grid: Sequence[int]) -> Any:
    """What stands for zero in each block: words where they are fewer, and plain integers else."""
    stored, packing = parts[2], kind.packing
    if packing is None or [n for n in stored.shape if n > 1] == [n for n in grid if n > 1]:
        return stored.astype(np.int64).reshape(grid)
    (axis,) = [at for at, n in enumerate(grid) if stored.shape[at] != n]
    full = _numbers(stored, dataclasses.replace(packing, axis=axis))
    return full[tuple(slice(n) for n in grid)]


def unpacked_layout(table: Layout, folds: Sequence[FoldedRow]) -> Layout:
    """A layout, whose leaves of words have an element for each number."""
    rows = list(table.rows)
    for fold in folds:
        if not isinstance(fold.kind, Scaling) or fold.kind.packing is None:
            continue
        row, packing = rows[fold.row], fold.kind.packing
        _, axis = row.axes[packing.axis]
        *rest, last = row.leaf.dims[axis]
        more = (last * packing.count,) if isinstance(last, int) else (last, packing.count)
        rows[fold.row] = dataclasses.replace(row, leaf=row.leaf.with_axis(axis, (*rest, *more)))
    return dataclasses.replace(table, rows=tuple(rows)) if rows != [*table.rows] else table


def _key(
    table: Layout, number: int, indices: tuple[int, ...], held: Mapping[tuple[str, ...], Any]
) -> tuple[str, ...] | None:
    """The key path of a leaf in a tree: on disk a Variable has one level more, and so has a box."""
    key = key_of(table.rows[number], indices)
    at = len(key) - table.rows[number].inside
    boxed = (*key[:at], "value", *key[at:])
    return key if key in held else boxed if boxed in held else None


def alike_sums(expected: Any, found: Any, added: Any, bound: Any) -> bool:
    """Whether sums are equal as numbers: what is no number has no bits, and the smallest may be zero.

    Args:
        expected: What the sums are.
        found: What the lens makes.
        added: How large what was added is, for each element.
        bound: How far off each may be besides, where it was taken apart and is computed again.
    """
    if expected.shape != found.shape or str(expected.dtype) not in FORMATS:
        return False
    with np.errstate(all="ignore"):
        one, two = expected.astype(np.longdouble), found.astype(np.longdouble)
        alike = (one == two) | (np.isnan(one) & np.isnan(two))
        bound = bound + _bound(expected, np.abs(one) + added)
        # Of what is infinite there is no rounding.
        return bool((alike | (np.isfinite(bound) & (np.abs(one - two) <= bound))).all())


def _least(form: Any) -> Any:
    """The least number that devices do not flush to zero."""
    return np.ldexp(np.longdouble(1), form.normal)


def computed_again(lens: Lens, row: int, values: Any) -> Any:
    """How far off each element of a row of the view may be that is taken apart, and computed again of its parts."""
    for one in lens.folds[1]:
        if one.row == row and str(values.dtype) in FORMATS:
            return _there_and_back(one.kind, lens, row, values, _fills(lens, one))
    return np.longdouble(0)


def _fills(lens: Lens, one: FoldedRow) -> list[float]:
    """How large the numbers are that fill the parts which are not made of the whole."""
    fills: list[float] = []
    for number in one.others:
        default = lens.view.rows[number].default
        if isinstance(default, Fill):
            fills.append(abs(float(default.value)))
    return fills


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
                # Added and taken off again: what is small beside the others is rounded as they are.
                size = _size(leaves[at])
                for other in one.others:
                    size = size + _size(leaves[slots[other, indices]])
                yield at, _bound(leaves[at], 2 * size)
    for one in lens.folds[1]:
        fills = _fills(lens, one)
        rows: set[int] = set()
        for join in lens.joins:
            rows.update(source for source, view in join.pairs if view == one.row)
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
    dtype = kind.numbers(lens.view.rows[row].leaf.dtype)
    form = FORMATS.get(dtype)
    # Floats have steps that grow with the number; those of integers are all of one size. A scale
    # that is a power of two may be almost twice as large as the greatest number asks for.
    step = 2.0**-form.mantissa if form else 0.5 / (int(jnp.iinfo(dtype).max) - kind.zero)
    return _bound(leaf, size) + most * np.longdouble(step * 1.02 + 2.0**-7)


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
