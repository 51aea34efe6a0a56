"""A leaf that is one row on one side and several on the other: parts of an axis, or of a list of layers."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts.dims import EITHER, AxisName, Dim, DimFactor, Dims, Sum
from ckpt_schema._layouts.leaves import Leaf
from ckpt_schema._layouts.sizes import ZERO, Size, UndecidedError
from ckpt_schema._layouts.table import Repeat, Row
from ckpt_schema._lens.cells import Cell
from ckpt_schema._lens.derive.axis_names import fault, sized
from ckpt_schema._lens.derive.bounds import composed_if_known
from ckpt_schema._lens.derive.joins import Join
from ckpt_schema._lens.derive.leaf_rules import UNTOLD, Told
from ckpt_schema._lens.derive.relations import (
    GivenSizes,
    Relation,
    relate,
    stripped,
    undecided,
)
from ckpt_schema._lens.derive.row_parts import RowPart, Within
from ckpt_schema._lens.spellings import of_dim
from ckpt_schema.errors import Mismatch

__all__ = ["Divided", "Numbered", "between_parts", "listed", "split"]

_BETWEEN = -1  # the number of a row that no side has


@dataclasses.dataclass(frozen=True, slots=True)
class Numbered:
    """A row, its number, and what rules say of it on the way from the whole to its parts."""

    number: int
    row: Row
    told: Told = UNTOLD


@dataclasses.dataclass(frozen=True, slots=True)
class Divided:
    """A row that has several parts on the other side, in their order."""

    whole: Numbered
    parts: tuple[Numbered, ...]


def listed(
    divided: Divided, level: int, spans: Sequence[tuple[int, int]], known: GivenSizes
) -> list[Join] | Mismatch:
    """The joins of a list with the parts it consists of, one after the other.

    Args:
        divided: The row of the list, and a row for each part.
        level: Which of the whole's levels of repetition the list is.
        spans: Which of each part's levels make up its share: the first, and the one after the last.
        known: Sizes that are given beforehand.
    """
    if divided.whole.told != UNTOLD:
        return _edited(divided, known, lambda inner: listed(inner, level, spans, known))
    row = divided.whole.row
    own = row.repeats[level]
    shares: list[Dim] = []
    for part, (start, end) in zip(divided.parts, spans, strict=True):
        repeats = part.row.repeats[start:end]
        shares.append(tuple(factor for repeat in repeats for factor in repeat.size))
    if of_dim(own.size) != sum(map(of_dim, shares), ZERO):
        wanted, found = dims_.format_dim(dims_.add(shares)), dims_.format_dim(own.size)
        hint = (
            f'its parts have {wanted} together: declare length="{wanted}" or scan="{wanted}", '
            "or dims= where the class is used"
        )
        return Mismatch("/".join(row.path), "dims", f"{wanted} repeats", found, hint)
    virtual: list[RowPart] = []
    start = ZERO
    for share in shares:
        where = Within(("level", level), 0, len(share), of_dim(own.size), start)
        virtual.append(RowPart(_with_level(row, level, Repeat(share, own.axis)), (where,)))
        start += of_dim(share)
    made = _related(divided, virtual, known)
    if isinstance(made, Mismatch):
        return made
    if own.axis is None:  # each is a leaf of its own there
        return [Join(cells, part.told) for cells, part in zip(made, divided.parts, strict=True)]
    return [_one(divided, made)]


def split(divided: Divided, axis: Dim | None, known: GivenSizes) -> list[Join] | Mismatch:
    """The join of a leaf with the leaves that are parts of one of its axes, one after the other.

    Args:
        divided: The row of the leaf, and a row for each part.
        axis: The factor of its dims that is shared, where more than one could be.
        known: Sizes that are given beforehand.
    """
    if divided.whole.told != UNTOLD:
        return _edited(divided, known, lambda inner: split(inner, axis, known))
    row = divided.whole.row
    count = len(divided.parts)
    plain = [stripped(part.row, part.told) for part in divided.parts]
    spelled = [*_shared(row.leaf.dims, count, axis)]
    shares = [share for share in spelled if _fits(row, share, plain)]
    if len(shares) != 1:
        shares = [*_shared_by(row, plain, axis)]
    if len(shares) != 1:
        shares = spelled
    if len(shares) != 1:
        expected = f"one axis that {count} leaves share" + (
            "" if axis is None else f", {dims_.format_dim(axis)}"
        )
        several = (
            " and ".join(dims_.format_dim(row.leaf.dims[each.at]) for each in shares) or "none"
        )
        hint = _undeclared(row, plain) or (
            'declare it as a sum, "embed q+k+v", or as so many times a dim, "embed 3*heads"; axis= says which'
        )
        return Mismatch("/".join(row.path), "dims", expected, f"{several} in {row.stored}", hint)
    made = _related(divided, _cut(row, shares[0]), known)
    return made if isinstance(made, Mismatch) else [_one(divided, made)]


def _undeclared(row: Row, parts: Sequence[Row]) -> str:
    """What to say of a leaf of which sizes alone are known: rules spell its axes, for no class does."""
    shape = dims_.sizes_of(row.leaf.dims, {})
    others = [dims_.sizes_of(part.leaf.dims, {}) for part in parts]
    if shape is None or None in others:
        return ""
    count, letters = len(parts), "abcdefgh"[: len(shape)]
    axes = [at for at in range(len(shape)) if _joined_along(shape, others, at)]
    if len(axes) != 1:
        return (
            "sizes alone do not say how; write the axes of the whole, and then those of its parts, "
            'such as axes="embed 3*heads*dim -> embed heads dim"'
        )
    (at,) = axes
    one = " ".join(letters)
    if len(set(others)) == 1:
        after, among = (
            " ".join((*letters[:at], word, *letters[at + 1 :]))
            for word in (f"{count}*{letters[at]}", f"{letters[at]}*{count}")
        )
        return (
            f"sizes alone do not say how: axes='{after} -> {one}' where the parts stand one after "
            f"the other, axes='{among} -> {one}' where their elements take turns"
        )
    names = [f"{letters[at]}{number}" for number in range(count)]
    whole = " ".join((*letters[:at], "+".join(names), *letters[at + 1 :]))
    each = ", ".join(" ".join((*letters[:at], name, *letters[at + 1 :])) for name in names)
    return f"sizes alone do not say how: axes='{whole} -> {each}' where the parts stand one after the other"


def _joined_along(shape: Sequence[int], others: Sequence[Sequence[int] | None], at: int) -> bool:
    """Whether leaves one after the other on an axis are as large as a whole."""
    total = 0
    for other in others:
        if other is None or len(other) != len(shape):
            return False
        if (*other[:at], *other[at + 1 :]) != (*shape[:at], *shape[at + 1 :]):
            return False
        total += other[at]
    return total == shape[at]


def _one(divided: Divided, several: Iterable[Sequence[Cell]]) -> Join:
    """The join of a leaf with all of its parts."""
    told = [divided.whole.told, *(part.told for part in divided.parts)]
    rules = dict.fromkeys(rule for each in told for rule in each.rules)
    return Join(tuple(cell for cells in several for cell in cells), Told(rules=tuple(rules)))


def _edited(
    divided: Divided, known: GivenSizes, make: Callable[[Divided], list[Join] | Mismatch]
) -> list[Join] | Mismatch:
    """The joins of a whole that rules speak of: what they say is done to it as a whole, and then it has its parts."""
    number, row, told = divided.whole.number, divided.whole.row, divided.whole.told
    if told.rounds:  # it is between the whole and its parts that dtypes differ
        parts = [
            dataclasses.replace(part, told=dataclasses.replace(part.told, rounds=True))
            for part in divided.parts
        ]
        divided = dataclasses.replace(divided, parts=tuple(parts))
    inner = stripped(row, told, [part.row for part in divided.parts])
    relation = relate(row, inner, told, known)
    if isinstance(relation, Mismatch):
        return relation
    made = make(dataclasses.replace(divided, whole=Numbered(_BETWEEN, inner)))
    if isinstance(made, Mismatch):
        return made
    cells = [cell for join in made for cell in join.cells]
    try:
        return [_one(divided, [composed_if_known(relation.cells(number, _BETWEEN), cells, known)])]
    except UndecidedError as found:
        return undecided(row, divided.parts[0].row, found)


def between_parts(
    first: Sequence[Numbered],
    second: Sequence[Numbered],
    axes: Sequence[Dim | None],
    known: GivenSizes,
) -> list[Join] | Mismatch:
    """The join of leaves that are parts of one whole with others that are parts of it, where no side has it whole.

    Args:
        first: The parts that the source has.
        second: Those that the view has.
        axes: For each side, the factor that its parts share, if that was said.
        known: Sizes that are given beforehand.
    """
    wholes: list[tuple[Row, _Share]] = []
    for parts, axis in zip((first, second), axes, strict=True):
        made = _whole(parts, axis)
        if isinstance(made, Mismatch):
            return made
        wholes.append(made)
    (one, ours), (other, theirs) = wholes
    sums = one.leaf.dims[ours.at], other.leaf.dims[theirs.at]
    if of_dim(sums[0]) != of_dim(sums[1]):
        why = f"the parts have {dims_.format_dim(sums[1])} together in the view: declare the same"
        return fault(first[0].row, second[0].row, "dims", why)
    # Both count the shared axis alike, whatever its parts are.
    other = dataclasses.replace(other, leaf=other.leaf.with_axis(theirs.at, sums[0]))
    relation = relate(one, other)
    cells = [
        _related(Divided(Numbered(_BETWEEN, row), tuple(parts)), _cut(row, share), known)
        for row, share, parts in ((one, ours, first), (other, theirs, second))
    ]
    for made in (relation, *cells):
        if isinstance(made, Mismatch):
            return made
    assert isinstance(relation, Relation)
    before, after = (
        [cell for each in made for cell in each] for made in cells if not isinstance(made, Mismatch)
    )
    try:
        onward = composed_if_known(relation.cells(_BETWEEN, _BETWEEN), after, known)
        between = composed_if_known([~cell for cell in before], onward, known)
        rules = dict.fromkeys(rule for part in (*first, *second) for rule in part.told.rules)
        return [Join(tuple(between), Told(rules=tuple(rules)))]
    except UndecidedError as found:
        return undecided(first[0].row, second[0].row, found)


def _whole(parts: Sequence[Numbered], axis: Dim | None) -> tuple[Row, _Share] | Mismatch:
    """The row that several would be together, and how they share it."""
    rows = [stripped(part.row, part.told) for part in parts]
    if axis is None and not any(row.leaf.names for row in rows):
        by_factors = _by_factors(rows)
        if by_factors is not None:
            return by_factors
    ranks = {len(row.leaf.dims) for row in rows}
    unlike: list[int] = []
    if len(ranks) == 1:
        columns = zip(*(row.leaf.dims for row in rows), strict=True)
        unlike = [at for at, column in enumerate(columns) if len(set(column)) > 1]
    if axis is not None and len(unlike) != 1:
        unlike = [at for at, dim in enumerate(rows[0].leaf.dims) if dim == axis]
    if len(unlike) != 1:
        names = " and ".join("/".join(row.path) for row in rows)
        hint = "say which axis they share, fuse(..., axis=...)"
        expected = "leaves that differ on one axis, which is the one that they share"
        return Mismatch(
            "/".join(rows[0].path), "dims", expected, f"{names}, {rows[0].stored}", hint
        )
    at = unlike[0]
    terms = [row.leaf.dims[at] for row in rows]
    leaf = rows[0].leaf.with_axis(at, dims_.add(terms))
    return dataclasses.replace(rows[0], leaf=leaf), _Share(at, None, terms)


def _by_factors(rows: Sequence[Row]) -> tuple[Row, _Share] | None:
    """The same where parts have their axes in any order: what all have, and what is left of each on one axis."""
    several = [[*sized(dims_.factors(row.leaf.dims))] for row in rows]
    common = set(several[0]).intersection(*several[1:])
    if any(len(set(own)) < len(own) for own in several):
        return None
    terms: list[Dim] = []
    for row in rows:
        axes = [dim for dim in row.leaf.dims if not common.issuperset(set(dim) - {1})]
        if len(axes) > 1:
            return None
        left = [f not in common and f != 1 for f in axes[0]] if axes else []
        if left and True in left[left.index(True) + sum(left) :]:
            return None
        terms.append(tuple(f for f in axes[0] if f not in common and f != 1) if axes else (1,))
    dims = *((factor,) for factor in several[0] if factor in common), dims_.add(terms)
    leaf = Leaf(dims, rows[0].leaf.dtype)
    return dataclasses.replace(rows[0], leaf=leaf), _Share(len(dims) - 1, None, terms)


def _related(
    divided: Divided, virtual: Sequence[RowPart], known: GivenSizes
) -> list[tuple[Cell, ...]] | Mismatch:
    """The cells of each part, from what is cut off of the whole."""
    whole = divided.whole
    cells: list[tuple[Cell, ...]] = []
    for cut, part in zip(virtual, divided.parts, strict=True):
        made = _of_part(whole, cut, part, known)
        if isinstance(made, Mismatch):
            return _unlike(made, whole.row, cut.row, part.row)
        cells.append(made)
    return cells


def _of_part(
    whole: Numbered, cut: RowPart, part: Numbered, known: GivenSizes
) -> tuple[Cell, ...] | Mismatch:
    """The cells of one part.

    Where it has more or less than its share, by way of the share itself.
    """
    if not part.told.fills:
        relation = relate(cut, part.row, part.told, known)
        return (
            relation
            if isinstance(relation, Mismatch)
            else relation.cells(whole.number, part.number)
        )
    share, rest = relate(cut, cut.row, UNTOLD, known), relate(cut.row, part.row, part.told, known)
    for each in (rest, share):
        if isinstance(each, Mismatch):
            return each
    assert isinstance(share, Relation) and isinstance(rest, Relation)
    try:
        onward = rest.cells(_BETWEEN, part.number)
        return tuple(composed_if_known(share.cells(whole.number, _BETWEEN), onward, known))
    except UndecidedError as found:
        return undecided(whole.row, part.row, found)


@dataclasses.dataclass(frozen=True, slots=True)
class _Share:
    """An axis that parts share.

    Attributes:
        at: Which axis.
        factor: Which of its factors; None if it is all of them.
        terms: What each part has of it.
    """

    at: int
    factor: int | None
    terms: list[Dim]


def _cut(row: Row, share: _Share) -> list[RowPart]:
    """What each part has of a row."""
    dim = row.leaf.dims[share.at]
    first, last = (0, len(dim)) if share.factor is None else (share.factor, share.factor + 1)
    size, start = of_dim(dim[first:last]), ZERO
    names = _term_names(row.leaf, share.at, first, share.terms)
    row_parts: list[RowPart] = []
    for term, name in zip(share.terms, names, strict=True):
        leaf = row.leaf.with_factors(share.at, first, last, term)
        if row.leaf.names:
            own = row.leaf.own[share.at]
            factors = (*own.factors[:first], *name, *own.factors[last:])
            axes = [*leaf.names]
            axes[share.at] = AxisName(factors, own.label)
            leaf = dataclasses.replace(leaf, names=tuple(axes))
        where = Within(("axis", share.at), first, first + len(term), size, start)
        row_parts.append(RowPart(dataclasses.replace(row, leaf=leaf), (where,)))
        start += of_dim(term)
    return row_parts


def _shared(dims: Dims, count: int, wanted: Dim | None) -> Iterator[_Share]:
    """The factors that may be shared among so many parts."""
    for at, dim in enumerate(dims):
        for number, factor in enumerate(dim):
            terms = _terms(factor, count)
            if terms is not None and wanted in (None, (factor,), dim):
                yield _Share(at, number, terms)


def _terms(factor: DimFactor, count: int) -> list[Dim] | None:
    """What each of ``count`` parts has of a factor, or None where it is not shared among so many."""
    if isinstance(factor, Sum):
        terms = list(factor.terms)
        if len(terms) != count:  # 2*kv is two parts of kv each
            terms = _single(factor)
        return terms if len(terms) == count else None
    return list[Dim]([(1,)]) * count if factor == count else None


def _single(factor: DimFactor) -> list[Dim]:
    """The terms of a factor, each counted once."""
    terms: list[Dim] = []
    for term in factor.terms if isinstance(factor, Sum) else ((factor,),):
        count, rest = (term[0], term[1:]) if isinstance(term[0], int) else (1, term)
        terms += [rest or (1,)] * count
    return terms


def _ends(terms: Iterable[Dim]) -> list[Size]:
    """Where each of some terms ends that stand one after the other."""
    return [*itertools.accumulate(map(of_dim, terms))]


def _fits(row: Row, share: _Share, parts: Sequence[Row]) -> bool:
    """Whether each part has its term of a factor, and all others."""
    others = collections.Counter(dims_.factors(row.leaf.dims))
    others.subtract([row.leaf.dims[share.at][share.factor or 0]])
    for term, part in zip(share.terms, parts, strict=True):
        left = collections.Counter(dims_.factors(part.leaf.dims))
        left.subtract(others)
        left.subtract(term)
        if any(count for factor, count in left.items() if factor != 1):
            return False
    return True


def _shared_by(row: Row, parts: Sequence[Row], axis: Dim | None) -> Iterator[_Share]:
    """The same told by the parts: each has all other factors of the leaf, and what is left is its share."""
    for at, dim in enumerate(row.leaf.dims):
        for number, factor in enumerate(dim):
            if axis not in (None, (factor,), dim):
                continue
            others = collections.Counter(dims_.factors(row.leaf.dims))
            others.subtract([factor])
            terms: list[Dim] = []
            for part in parts:
                own = dims_.factors(part.leaf.dims)
                left = collections.Counter(own)
                left.subtract(others)
                if any(count < 0 for each, count in left.items() if each != 1):
                    break
                terms.append(tuple(f for f in own if f != 1 and left[f] > 0) or (1,))
            ends, cuts = _ends(terms), _ends(_single(factor))
            if len(terms) == len(parts) and ends[-1] == cuts[-1] and {*ends} <= {*cuts}:
                yield _Share(at, number, terms)


def _term_names(leaf: Leaf, at: int, factor: int, terms: Sequence[Dim]) -> list[tuple[str, ...]]:
    """What the factors of each part of a shared axis are called: by the label of the axis, or as its class writes the part."""
    own = leaf.own[at]
    called = own.factors[factor]
    written: list[Dim] | None = None
    if EITHER not in called:
        parsed = dims_.parse_dims(called)[0]
        written = _terms(parsed[0], len(terms)) if len(parsed) == 1 else None
    names: list[tuple[str, ...]] = []
    for number, term in enumerate(terms):
        text = dims_.format_dim(written[number]) if written else called
        factors = tuple(map(str, written[number])) if written else ()
        names.append(factors if len(factors) == len(term) else (text,) * len(term))
    return names


def _unlike(found: Mismatch, whole: Row, cut: Row, part: Row) -> Mismatch:
    """The fault of a part that is not what it is of the whole.

    It stands at the whole, and speaks of no side: the whole may be on either.
    """
    expected = f"{cut.stored} in {'/'.join(part.path)}, a part of it"
    return dataclasses.replace(
        found, path="/".join(whole.path), expected=expected, found=str(part.stored)
    )


def _with_level(row: Row, level: int, repeat: Repeat) -> Row:
    return dataclasses.replace(
        row, repeats=(*row.repeats[:level], repeat, *row.repeats[level + 1 :])
    )
