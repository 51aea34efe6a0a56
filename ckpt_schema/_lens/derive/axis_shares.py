"""Which part of an axis each of several leaves has, that are one leaf on the other side.

`parts` asks it before it cuts a whole: the class of the whole may write it, as ``q+k+v`` or ``3*heads``,
or the parts tell it by what they have, or nobody can say, and the error shows what to write.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts.dims import EITHER, AxisName, Dim, DimFactor, Dims, Sum
from ckpt_schema._layouts.leaves import Leaf
from ckpt_schema._layouts.sizes import ZERO, Size
from ckpt_schema._layouts.table import Row
from ckpt_schema._lens.derive.row_parts import RowPart, Within
from ckpt_schema._lens.spellings import of_dim
from ckpt_schema.errors import Mismatch

__all__ = ["AxisShare", "axes_of_parts", "axis_shares", "cut_by", "is_told", "undecided_share"]


@dataclasses.dataclass(frozen=True, slots=True)
class AxisShare:
    """An axis that parts share.

    Attributes:
        at: Which axis.
        factor: Which of its factors; None if it is all of them.
        terms: What each part has of it.
    """

    at: int
    factor: int | None
    terms: list[Dim]


def axis_shares(row: Row, parts: Sequence[Row], axis: Dim | None) -> list[AxisShare]:
    """The ways in which parts may share an axis of their whole: one, or nobody can say.

    Args:
        row: The row of the whole.
        parts: Those of the parts, without what rules say that these have besides.
        axis: The factor that they share, if that was said.
    """
    # As the class of the whole writes it, "q+k+v" or "3*heads", is what its author meant.
    written = [*_shared(row.leaf.dims, len(parts), axis)]
    fitting = [share for share in written if _fits(row, share, parts)]
    if len(fitting) == 1:
        return fitting
    by_parts = [*_shared_by(row, parts, axis)]
    # If the parts do not tell it either, the caller has an error of what was written, which it shows.
    return by_parts if len(by_parts) == 1 else written


def _shared(dims: Dims, count: int, wanted: Dim | None) -> Iterator[AxisShare]:
    """The factors that may be shared among so many parts."""
    for at, dim in enumerate(dims):
        for number, factor in enumerate(dim):
            terms = _terms(factor, count)
            # A user may name the axis, or the factor of it that is shared.
            if terms is not None and wanted in (None, (factor,), dim):
                yield AxisShare(at, number, terms)


def _terms(factor: DimFactor, count: int) -> list[Dim] | None:
    """What each of ``count`` parts has of a factor, or None where it is not shared among so many.

    Of ``q+2*kv`` two parts have ``q`` and ``2*kv``, three have ``q``, ``kv`` and ``kv``; of the
    number 3 each of three parts has 1.
    """
    if isinstance(factor, Sum):
        terms = list(factor.terms)
        if len(terms) != count:
            terms = _single(factor)
        return terms if len(terms) == count else None
    # A name is as long as sizes say, so it is never known to be shared among so many.
    return list[Dim]([(1,)]) * count if factor == count else None


def _single(factor: DimFactor) -> list[Dim]:
    """The terms of a factor, each counted once: of ``q+2*kv`` it is ``q``, ``kv`` and ``kv``."""
    terms: list[Dim] = []
    for term in factor.terms if isinstance(factor, Sum) else ((factor,),):
        count, rest = (term[0], term[1:]) if isinstance(term[0], int) else (1, term)
        terms += [rest or (1,)] * count
    return terms


def _ends(terms: Iterable[Dim]) -> list[Size]:
    """Where each of some terms ends that stand one after the other."""
    return [*itertools.accumulate(map(of_dim, terms))]


def _fits(row: Row, share: AxisShare, parts: Sequence[Row]) -> bool:
    """Whether each part has its term of a factor, and all others."""
    others = collections.Counter(dims_.factors(row.leaf.dims))
    others.subtract([row.leaf.dims[share.at][share.factor or 0]])
    # Their order does not count: a part may have its axes in another one than the whole.
    for term, part in zip(share.terms, parts, strict=True):
        left = collections.Counter(dims_.factors(part.leaf.dims))
        left.subtract(others)
        left.subtract(term)
        del left[1]  # ones count for nothing
        if any(left.values()):
            return False
    return True


def _shared_by(row: Row, parts: Sequence[Row], axis: Dim | None) -> Iterator[AxisShare]:
    """The same told by the parts: each has all other factors of the leaf, and what is left is its share.

    Of a whole ``[embed, q+2*kv]`` with the parts ``[embed, q+kv]`` and ``[embed, kv]`` the terms are
    ``q+kv`` and ``kv``: the cut between them is one that the sum has.
    """
    for at, dim in enumerate(row.leaf.dims):
        for number, factor in enumerate(dim):
            if axis not in (None, (factor,), dim):
                continue
            others = collections.Counter(dims_.factors(row.leaf.dims))
            others.subtract([factor])
            terms = _left_of_each(parts, others)
            if terms is None:
                continue
            ends, cuts = _ends(terms), _ends(_single(factor))
            # Else the parts are of other sizes than the terms, or stand in another order.
            if ends[-1] == cuts[-1] and {*ends} <= {*cuts}:
                yield AxisShare(at, number, terms)


def _left_of_each(parts: Sequence[Row], others: collections.Counter[DimFactor]) -> list[Dim] | None:
    """What each part has beside some factors, ones left out; None where one of them lacks a factor."""
    terms: list[Dim] = []
    for part in parts:
        factors = dims_.factors(part.leaf.dims)
        left = collections.Counter(factors)
        left.subtract(others)
        if any(count < 0 and factor != 1 for factor, count in left.items()):
            return None
        term: list[DimFactor] = []
        for factor in factors:
            if factor != 1 and left[factor] > 0:
                term.append(factor)
        # A part with all other factors, and nothing more, has one step of the axis.
        terms.append(tuple(term) or (1,))
    return terms


def _term_names(leaf: Leaf, at: int, factor: int, terms: Sequence[Dim]) -> list[tuple[str, ...]]:
    """What the factors of each part of a shared axis are called: by the label of the axis, or as its class writes the part.

    With ``dims={"q": 8, "kv": 2}`` the axis ``q+2*kv`` counts ``8+4``; its parts are ``q`` and
    ``2*kv`` all the same, and so match the parts of the other side by these names.
    """
    own = leaf.own[at]
    called = own.factors[factor]
    written: list[Dim] | None = None
    # `embed_or_mlp` was given by a trace, and is no dim that anybody wrote.
    if EITHER not in called:
        parsed = dims_.parse_dims(called)[0]
        written = _terms(parsed[0], len(terms)) if len(parsed) == 1 else None
    if written is None:
        return [(called,) * len(term) for term in terms]
    names: list[tuple[str, ...]] = []
    for term, words in zip(terms, written, strict=True):
        factors = tuple(map(str, words))
        # Sizes may have as many factors as the words, or not: then all are called the same.
        if len(factors) != len(term):
            factors = (dims_.format_dim(words),) * len(term)
        names.append(factors)
    return names


def cut_by(row: Row, share: AxisShare) -> list[RowPart]:
    """What each part has of a row."""
    dim = row.leaf.dims[share.at]
    first, last = (0, len(dim)) if share.factor is None else (share.factor, share.factor + 1)
    size, start = of_dim(dim[first:last]), ZERO
    names = _term_names(row.leaf, share.at, first, share.terms)
    cuts: list[RowPart] = []
    for term, name in zip(share.terms, names, strict=True):
        leaf = row.leaf.with_factors(share.at, first, last, term)
        # A leaf without names has those of its dims, which are the part's own now.
        if row.leaf.names:
            own = row.leaf.own[share.at]
            axes = [*leaf.names]
            axes[share.at] = AxisName((*own.factors[:first], *name, *own.factors[last:]), own.label)
            leaf = dataclasses.replace(leaf, names=tuple(axes))
        where = Within(("axis", share.at), first, first + len(term), size, start)
        cuts.append(RowPart(dataclasses.replace(row, leaf=leaf), (where,)))
        start += of_dim(term)
    return cuts


# --- What to say where nobody can  ---


def undecided_share(
    row: Row, parts: Sequence[Row], axis: Dim | None, shares: Sequence[AxisShare]
) -> Mismatch:
    """The fault of a leaf of which nobody can say how its parts share it."""
    expected = f"one axis that {len(parts)} leaves share"
    if axis is not None:
        expected = f"{expected}, {dims_.format_dim(axis)}"
    dims = [dims_.format_dim(row.leaf.dims[share.at]) for share in shares]
    hint = _undeclared(row, parts) or (
        'declare it as a sum, "embed q+k+v", or as so many times a dim, "embed 3*heads"; axis= says which'
    )
    found = f"{' and '.join(dims) or 'none'} in {row.stored}"
    return Mismatch("/".join(row.path), "dims", expected, found, hint)


def _undeclared(row: Row, parts: Sequence[Row]) -> str:
    """What to say of a leaf of which sizes alone are known: rules spell its axes, for no class does.

    Of a whole ``[8, 12]`` whose three parts are ``[8, 4]`` both ways are printed, to paste one:
    ``a 3*b -> a b`` where the parts stand one after the other, ``a b*3 -> a b`` where they take turns.
    """
    shape = dims_.sizes_of(row.leaf.dims, {})
    if shape is None or None in [dims_.sizes_of(part.leaf.dims, {}) for part in parts]:
        return ""
    axes = axes_of_parts(row, parts)
    # None where the parts have more axes than the whole: nobody could guess which become one.
    if axes is None:
        return (
            "sizes alone do not say how; write the axes of the whole, and then those of its parts, "
            'such as axes="embed 3*heads*dim -> embed heads dim"'
        )
    after, among = axes
    hint = f"sizes alone do not say how: axes={after!r} where the parts stand one after the other"
    return f"{hint}, axes={among!r} where their elements take turns" if among else hint


def axes_of_parts(row: Row, parts: Sequence[Row]) -> tuple[str, str] | None:
    """What is written for ``axes=`` of a leaf and its parts, of which sizes alone are known.

    Args:
        row: The row of the whole.
        parts: Those of the parts.

    Returns:
        It where the parts stand one after the other; and where their elements take turns, which is
        empty for parts of several sizes. None where no one axis is as long as theirs together.
    """
    shape = dims_.sizes_of(row.leaf.dims, {})
    part_shapes = [dims_.sizes_of(part.leaf.dims, {}) for part in parts]
    axes = [at for at in range(len(shape or ())) if _joined_along(shape or (), part_shapes, at)]
    if shape is None or len(axes) != 1:
        return None
    (at,) = axes
    count, letters = len(parts), "abcdefgh"[: len(shape)]

    def with_axis(word: str) -> str:
        return " ".join((*letters[:at], word, *letters[at + 1 :]))

    if len(set(part_shapes)) == 1:
        one = " ".join(letters)
        after, among = with_axis(f"{count}*{letters[at]}"), with_axis(f"{letters[at]}*{count}")
        return f"{after} -> {one}", f"{among} -> {one}"
    # Parts of several sizes can only stand one after the other.
    names = [f"{letters[at]}{number}" for number in range(count)]
    whole, spelled = with_axis("+".join(names)), ", ".join(map(with_axis, names))
    return f"{whole} -> {spelled}", ""


def is_told(row: Row, parts: Sequence[Row]) -> bool:
    """Whether the classes of a leaf and of some others say by themselves how these share an axis of it."""
    fitting: list[AxisShare] = []
    for share in _shared(row.leaf.dims, len(parts), None):
        if _fits(row, share, parts):
            fitting.append(share)
    return len(fitting) == 1 or (not fitting and len([*_shared_by(row, parts, None)]) == 1)


def _joined_along(
    shape: Sequence[int], part_shapes: Sequence[Sequence[int] | None], at: int
) -> bool:
    """Whether leaves one after the other on an axis are as large as a whole."""
    total = 0
    for other in part_shapes:
        if other is None or len(other) != len(shape):
            return False
        if (*other[:at], *other[at + 1 :]) != (*shape[:at], *shape[at + 1 :]):
            return False
        total += other[at]
    return total == shape[at]
