"""What is computed of rows by a rule for a fold, and what the whole is as a leaf; or what keeps the rows from that.

Of a sum and of a base with an adapter the whole is as its first part is. A product with scales has
the dtype of these, and numbers in words have more elements than words there are::

    words  uint8[out groups 16]     scales  uint8[out groups]     whole  bfloat16[out groups 32]
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import jax.numpy as jnp

from ckpt_schema._layouts import leaves
from ckpt_schema._layouts.dims import Dim
from ckpt_schema._layouts.formats import FORMATS
from ckpt_schema._layouts.leaves import Leaf
from ckpt_schema._layouts.sizes import Size
from ckpt_schema._layouts.table import Row
from ckpt_schema._lens.fold_rules import (
    EXPONENTS,
    PACKED,
    Adapter,
    Addition,
    Dequantize,
    FoldKind,
    FoldRule,
    LowRank,
    Packing,
    Scaling,
    Total,
)
from ckpt_schema._lens.spellings import of_dim
from ckpt_schema.errors import Mismatch

__all__ = ["as_stored_leaf", "as_whole", "fold_fault", "fold_kind", "is_quantized", "scaling"]


# --- What the whole is  ---


def as_whole(row: Row, kind: FoldKind, dtype: str, *, any_float: bool = False) -> Leaf:
    """The leaf of a row that stands for what is computed.

    Args:
        row: The row, as it is declared.
        kind: What is computed.
        dtype: What the whole is.
        any_float: Whether that was declared as any float.
    """
    leaf = Leaf(row.leaf.dims, dtype, row.leaf.names, any_float)
    if not isinstance(kind, Scaling) or kind.packing is None:
        return leaf
    _, axis = row.axes[kind.packing.axis]
    return _with_axis(leaf, axis, _times(leaf.dims[axis], kind.packing.count))


def as_stored_leaf(row: Row, kind: FoldKind, of: Leaf) -> Leaf:
    """The inverse: the leaf of what is stored, where a derivation has called its axes anew.

    Args:
        row: The row of the whole, as the derivation has left it.
        kind: What is computed.
        of: The leaf as it is declared.
    """
    leaf = Leaf(row.leaf.dims, of.dtype, row.leaf.names, of.any_float)
    if not isinstance(kind, Scaling) or kind.packing is None:
        return leaf
    _, axis = row.axes[kind.packing.axis]
    return _with_axis(leaf, axis, _divided(leaf.dims[axis], kind.packing.count))


def _with_axis(leaf: Leaf, axis: int, dim: Dim) -> Leaf:
    # An axis is made a new leaf of, which has any float no more than its dtype says.
    made = leaf.with_axis(axis, dim)
    return Leaf(made.dims, leaf.dtype, made.names, leaf.any_float)


def _times(dim: Dim, count: int) -> Dim:
    """An axis whose elements are several each: of words 16, two numbers in each, 32."""
    *rest, last = dim
    return (*rest, last * count) if isinstance(last, int) else (*dim, count)


def _divided(dim: Dim, count: int) -> Dim:
    """The inverse of `_times`."""
    *rest, last = dim
    assert isinstance(last, int) and last % count == 0
    return (*rest, last // count) if last != count or not rest else tuple(rest)


# --- What is computed  ---


def fold_kind(rule: FoldRule, row: Row, others: Sequence[Row]) -> FoldKind | Mismatch:
    """What is computed of rows, or what keeps them from that."""
    for other in others:
        # Computed is a whole leaf at once, all of its layers, and a part that is absent has no value.
        if other.repeats != row.repeats or other.optional or row.optional:
            hint = f"{rule} computes leaf by leaf: declare them alike"
            expected = f"{row.stored} and the others always there, with the same layers"
            return fold_fault(row, expected, f"{other.stored} at {'/'.join(other.path)}", hint)
    if isinstance(rule, Total):
        return _addition(rule, row, others)
    if isinstance(rule, Adapter):
        return _low_rank(rule, row, others)
    return scaling(rule, row, others)


def _is_float(row: Row) -> bool:
    """Whether a row has floats, open ones included."""
    # Neither has a dtype that numpy knows.
    if row.leaf.is_open or row.leaf.is_key:
        return row.leaf.is_open
    return jnp.issubdtype(leaves.dtype_of(row.leaf.dtype), jnp.floating)


def _addition(rule: Total, row: Row, others: Sequence[Row]) -> FoldKind | Mismatch:
    hint = f"{rule} adds element by element: declare the parts alike"
    if not _is_float(row):
        return fold_fault(row, "floats", str(row.stored), hint)
    for other in others:
        if str(other.stored) != str(row.stored):
            where = f"{other.stored} at {'/'.join(other.path)}"
            return fold_fault(row, f"{row.stored} in each part", where, hint)
    return Addition()


def is_quantized(row: Row) -> bool:
    """Whether a row has numbers of few bits, which take a scale to stand for anything."""
    return _is_narrow(row.leaf.dtype)


def _is_narrow(dtype: str) -> bool:
    form = FORMATS.get(dtype)
    return dtype in _NARROW or (form is not None and form.bits <= 8)


_NARROW = frozenset({"int8", "uint8", "int4", "uint4", "int2", "uint2"})

WORDS = {"int8": 8, "uint8": 8, "int16": 16, "uint16": 16, "int32": 32, "uint32": 32}
"""The dtypes of words that numbers may stand in, and how many bits each has."""


def scaling(rule: Dequantize, row: Row, others: Sequence[Row]) -> Scaling | Mismatch:
    """What a rule computes of numbers and scales, and of what stands for zero."""
    count = _count(rule, row)
    if isinstance(count, Mismatch):
        return count
    numbers = rule.packed or row.leaf.dtype
    is_float = numbers in FORMATS
    scales = others[0]
    # In the formats of few bits with powers of two for scales, these are told as bytes.
    if not _is_float(scales) and not (is_float and scales.leaf.dtype in EXPONENTS):
        where = f"{scales.stored} at {'/'.join(scales.path)}"
        return fold_fault(row, "scales that are floats", where, "declare them as they are stored")
    for zeros in others[1:]:
        if zeros.leaf.dtype not in _NARROW and zeros.leaf.dtype not in WORDS:
            hint = "declare them as they are stored"
            return fold_fault(zeros, "integers, for zero", str(zeros.stored), hint)
    if is_float and rule.zero:
        hint = "a float has a zero of its own: leave zero= out"
        return fold_fault(row, f"integers, for {rule}", numbers, hint)
    if isinstance(rule.zero, int) and rule.zero:
        info = jnp.iinfo(numbers)
        if not info.min <= rule.zero < info.max:
            hint = "zero= is one of the numbers, and not the greatest"
            return fold_fault(row, f"{numbers}, {info.min} to {info.max}", str(rule.zero), hint)
    axes = len(row.leaf.dims)
    if len(rule.block) > axes:
        hint = "a block has a number, or None, for each of the last axes"
        return fold_fault(row, f"{len(rule.block)} axes, for {rule}", str(row.stored), hint)
    # (128, 128) of a leaf [experts in out] is (1, 128, 128): it is of the last axes.
    of_axes = [*[1] * (axes - len(rule.block)), *rule.block]
    block: list[int | None] = []
    for what, number in row.axes:
        # A stack has scales for each layer.
        block.append(of_axes[number] if what == "axis" else 1)
    packing = None
    if rule.packed is not None:
        packing = Packing(numbers, row.axes.index(("axis", axes + rule.along)), count)
    zero = rule.zero if isinstance(rule.zero, int) else 0
    return Scaling(tuple(block), rule.rounds, packing, zero, len(others) > 1)


def _count(rule: Dequantize, row: Row) -> int | Mismatch:
    """How many numbers an element of a row is."""
    dtype, stored = row.leaf.dtype, str(row.stored)
    if rule.packed is None:
        if is_quantized(row):
            return 1
        hint = "other dtypes hold what they stand for: leave the rule out"
        if dtype in WORDS:
            hint = 'where a word holds several numbers, say what they are: packed="uint4"'
        return fold_fault(row, "float8_*, int8, int4", stored, hint)
    count = WORDS.get(dtype, 0) // PACKED[rule.packed]
    if count < 2:
        hint = "an element that is one number takes no packed="
        return fold_fault(row, f"integers that hold several {rule.packed}", stored, hint)
    if -rule.along > len(row.leaf.dims):
        hint = "along= is the axis along which a word holds several, counted from the end"
        return fold_fault(row, f"{-rule.along} axes, for {rule}", stored, hint)
    return count


def _low_rank(rule: Adapter, row: Row, others: Sequence[Row]) -> FoldKind | Mismatch:
    for part in (row, *others):
        if not _is_float(part):
            return fold_fault(part, "floats", str(part.stored), f"{rule} multiplies and adds")
    first, second = others
    # Of square leaves both ways fit, and they are two products.
    ways = [*_subscripts(row, first, second)]
    if len(ways) == 1:
        return LowRank(rule.alpha, ways[0])
    both = f"{first.stored} and {second.stored}"
    hint = "declare a as [rank, in] and b as [out, rank], beside [out, in], with names for the dims"
    if ways:
        return fold_fault(row, "one axis that is the rank", f"several in {both}", hint)
    return fold_fault(row, f"two leaves whose product is {row.stored}", both, hint)


_LAYOUTS = ("ri", "or", "oi"), ("ir", "ro", "io")
"""The axes of both narrow leaves and the base by letters, as PEFT has them, and as Flax does."""


def _subscripts(row: Row, first: Row, second: Row) -> Iterator[str]:
    """The ways in which a product of two leaves is like another one."""
    # By names, where all axes of each leaf have their own: a [rank embed], b [mlp rank], [mlp embed].
    named = [_labels(part, [*map(of_dim, part.leaf.dims)]) for part in (first, second, row)]
    a, b, whole = map(set, named)
    rank = a & b - whole
    is_apart = [len(a), len(b), len(whole)] == [*map(len, named)]
    if is_apart and len(rank) == 1 and whole == (a | b) - rank:
        yield _spelled(named)
        return
    # By sizes alone, where a leaf was read off a tree, in the two ways that libraries have.
    parts = first, second, row
    if [len(part.leaf.dims) for part in parts] != [2, 2, 2]:
        return
    for layout in _LAYOUTS:
        size_of: dict[str, Size] = {}
        labels: list[list[Hashable]] = []
        fits = True
        for part, letters in zip(parts, layout, strict=True):
            labels.append(_labels(part, letters))
            for letter, dim in zip(letters, part.leaf.dims, strict=True):
                # A letter has one size, wherever it stands.
                fits = fits and size_of.setdefault(letter, of_dim(dim)) == of_dim(dim)
        if fits:
            yield _spelled(labels)


def _labels(row: Row, names: Sequence[Hashable]) -> list[Hashable]:
    """What the axes of a leaf as it is stored are called, stacks included."""
    # A stack axis is in all three leaves, and so is contracted with none.
    return [names[number] if what == "axis" else ("level", number) for what, number in row.axes]


def _spelled(labels: Sequence[Sequence[Hashable]]) -> str:
    """Labels of the axes of two factors and their product, as ``einsum`` takes them: ``ab,ca->cb``."""
    letters: dict[Hashable, str] = {}
    words: list[str] = []
    for of_leaf in labels:
        word = ""
        for label in of_leaf:
            word += letters.setdefault(label, chr(ord("a") + len(letters)))
        words.append(word)
    first, second, whole = words
    return f"{first},{second}->{whole}"


def fold_fault(row: Row, expected: str, found: str, hint: str) -> Mismatch:
    """The fault of a row that a rule for a fold speaks of."""
    return Mismatch("/".join(row.path), "rule", expected, found, hint)
