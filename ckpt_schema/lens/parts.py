"""A leaf that is one row on one side and several on the other: parts of an axis, or of a list of layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from ckpt_schema import dims as dims_
from ckpt_schema.dims import EITHER, AxisName, Dim, Dims, Factor, Sum
from ckpt_schema.errors import Mismatch
from ckpt_schema.leaves import Leaf
from ckpt_schema.lens.edits import Chain
from ckpt_schema.lens.joins import Join, Place, Symbol
from ckpt_schema.lens.relate import Relation, relate
from ckpt_schema.lens.stacks import Beside, Split
from ckpt_schema.lens.symbolic import same_size, typed
from ckpt_schema.table import Repeat, Row

__all__ = ["Numbered", "listed", "split"]

Numbered = tuple[int, Row]
"""A row and its number."""


def listed(
    whole: Numbered, parts: Sequence[Numbered], level: int, spans: Sequence[tuple[int, int]]
) -> list[Join] | Mismatch:
    """The joins of a list with the parts it consists of, one after the other.

    Args:
        whole: The row of the list.
        parts: A row for each part.
        level: Which of the whole's levels of repetition the list is.
        spans: Which of each part's levels make up its share: the first, and the one after the last.
    """
    row, own = whole[1], whole[1].repeats[level]
    shares = [
        tuple(f for repeat in part.repeats[start:end] for f in repeat.size)
        for (_, part), (start, end) in zip(parts, spans, strict=True)
    ]
    if not same_size(own.size, dims_.add(shares)):
        wanted, found = dims_.format_dim(dims_.add(shares)), dims_.format_dim(own.size)
        hint = (
            f'its parts have {wanted} together: declare length="{wanted}" or scan="{wanted}", '
            "or dims= where the class is used"
        )
        return Mismatch("/".join(row.path), "dims", f"{wanted} repeats", found, hint)
    virtual = [_with_level(row, level, Repeat(share, own.axis)) for share in shares]
    if own.axis is not None and len(parts) > 1:
        return _split(whole, row, parts, virtual, _Share("level", level, tuple(shares)))
    made: list[Join] = []
    symbol = sum(repeat.axis is None for repeat in row.repeats[:level])
    for at, ((number, part), each) in enumerate(zip(parts, virtual, strict=True)):
        relation = relate(each, part)
        if isinstance(relation, Mismatch):
            return _unlike(relation, row, each, part)
        ours = list(relation.symbols[0])
        if own.axis is None:
            ours[symbol] = dataclasses.replace(ours[symbol], start=tuple(shares[:at]))
        places = Place(whole[0], tuple(ours)), Place(number, relation.symbols[1])
        made.append(Join(places[:1], places[1:], relation.chain, relation.levels))
    return made


_WITHOUT_AXIS = (
    "a part without the axis, beside one that has several, cannot be said yet: give each part "
    'the axis in its tree, x[None], and declare it by names, "a+b heads" of "a heads" and "b heads"'
)


def split(whole: Numbered, parts: Sequence[Numbered], axis: Dim | None) -> list[Join] | Mismatch:
    """The join of a leaf with the leaves that are parts of one of its axes, one after the other.

    Args:
        whole: The row of the leaf.
        parts: A row for each part.
        axis: The factor of its dims that is shared, where more than one could be.
    """
    row = whole[1]
    found = list(_shared(row.leaf.dims, len(parts), axis))
    if len(found) != 1:
        expected = f"one axis that {len(parts)} leaves share" + (
            "" if axis is None else f", {dims_.format_dim(axis)}"
        )
        several = " and ".join(dims_.format_dim(row.leaf.dims[at]) for at, _, _ in found) or "none"
        hint = 'declare it as a sum, "embed q+k+v", or as so many times a dim, "embed 3*heads"; axis= says which'
        if len({len(part.leaf.dims) for _, part in parts}) > 1:
            hint = _WITHOUT_AXIS
        return Mismatch("/".join(row.path), "dims", expected, f"{several} in {row.stored}", hint)
    at, factor, terms = found[0]
    leaf, place = _cut(row.leaf, at, factor)
    cut = dataclasses.replace(row, leaf=leaf)
    names = _term_names(leaf, place, terms)
    virtual = [
        dataclasses.replace(cut, leaf=_with_term(leaf, place, term, name))
        for term, name in zip(terms, names, strict=True)
    ]
    made = _split(whole, cut, parts, virtual, _Share("axis", place, tuple(terms)))
    if isinstance(made, Mismatch):
        short = any(len(part.leaf.dims) < len(leaf.dims) for _, part in parts)
        hint = (
            _WITHOUT_AXIS if short and len({len(p.leaf.dims) for _, p in parts}) > 1 else made.hint
        )
        return dataclasses.replace(made, hint=hint)
    return made


def _shared(dims: Dims, count: int, wanted: Dim | None) -> Iterator[tuple[int, int, list[Dim]]]:
    """The factors that may be shared: which axis, which of its factors, and what each part has of it."""
    for at, dim in enumerate(dims):
        for number, factor in enumerate(dim):
            terms = _terms(factor, count)
            if terms is not None and wanted in (None, (factor,), dim):
                yield at, number, terms


def _terms(factor: Factor, count: int) -> list[Dim] | None:
    """What each of ``count`` parts has of a factor, or None where it is not shared among so many."""
    if isinstance(factor, Sum):
        terms = list(factor.terms)
        if len(terms) != count:  # 2*kv is two parts of kv each
            several = (
                [term[1:] or (1,)] * term[0] if isinstance(term[0], int) else [term]
                for term in terms
            )
            terms = list[Dim](part for group in several for part in group)
        return terms if len(terms) == count else None
    return list[Dim]([(1,)]) * count if factor == count else None


def _cut(leaf: Leaf, at: int, factor: int) -> tuple[Leaf, int]:
    """The leaf with one factor of one axis as an axis by itself, and where that is then."""
    dim, own = leaf.dims[at], leaf.own[at]
    cuts = [(0, factor), (factor, factor + 1), (factor + 1, len(dim))]
    spans = [(start, end) for start, end in cuts if start < end]
    dims = tuple(dim[start:end] for start, end in spans)
    names = tuple(AxisName(own.factors[start:end], own.label) for start, end in spans)
    whole = Leaf(
        (*leaf.dims[:at], *dims, *leaf.dims[at + 1 :]),
        leaf.dtype,
        (*leaf.own[:at], *names, *leaf.own[at + 1 :]) if leaf.names else (),
    )
    return whole, at + (factor > 0)


def _term_names(leaf: Leaf, place: int, terms: Sequence[Dim]) -> list[AxisName]:
    """What each part of a shared axis is called: by the label of the axis, or as its class writes the part."""
    own = leaf.own[place]
    written: list[Dim] | None = None
    if EITHER not in own.factors[0]:
        written = _terms(dims_.parse_dims(own.factors[0])[0][0], len(terms))
    names: list[AxisName] = []
    for at, term in enumerate(terms):
        text = dims_.format_dim(written[at]) if written else str(own)
        factors = tuple(map(str, written[at])) if written else ()
        if len(factors) != len(term):
            factors = (text,) * len(term)
        names.append(AxisName(factors, own.label))
    return names


def _with_term(leaf: Leaf, place: int, term: Dim, name: AxisName) -> Leaf:
    dims = (*leaf.dims[:place], term, *leaf.dims[place + 1 :])
    names = (*leaf.own[:place], name, *leaf.own[place + 1 :]) if leaf.names else ()
    return Leaf(dims, leaf.dtype, names)


@dataclasses.dataclass(frozen=True, slots=True)
class _Share:
    """The axis that parts share.

    Attributes:
        kind: Whether it is an ``axis`` of the leaf's own, or stacks a ``level`` of repetition.
        number: Which of them.
        parts: What each part has of it.
    """

    kind: str
    number: int
    parts: tuple[Dim, ...]


def _split(
    whole: Numbered, cut: Row, parts: Sequence[Numbered], virtual: Sequence[Row], share: _Share
) -> list[Join] | Mismatch:
    """The join of a leaf with parts of it.

    Args:
        whole: The leaf.
        cut: Its row with the shared axis by itself.
        parts: The parts.
        virtual: The row of each part as it is cut off.
        share: The shared axis.
    """
    first = [relate(each, part) for each, (_, part) in zip(virtual, parts, strict=True)]
    made = _stackings(cut, first)
    if made is None:
        hint = "repeats that some parts stack and others do not: stack them all alike"
        return Mismatch(
            "/".join(cut.path), "dims", "parts that are repeated alike", str(cut.stored), hint
        )
    restacked = _restacked(cut, made)
    before = relate(whole[1], restacked)
    rest = [
        relate(_restacked(each, made), part) for each, (_, part) in zip(virtual, parts, strict=True)
    ]
    for each, (_, part), *found in zip(virtual, parts, first, rest, strict=True):
        wrong = [relation for relation in found if isinstance(relation, Mismatch)]
        if wrong:
            return _unlike(wrong[0], cut, each, part)
    if isinstance(before, Mismatch):
        return before
    edit = Split(restacked.axes.index((share.kind, share.number)), share.parts)
    return _wired(
        whole,
        parts,
        before,
        edit,
        [relation for relation in rest if isinstance(relation, Relation)],
    )


def _unlike(fault: Mismatch, whole: Row, cut: Row, part: Row) -> Mismatch:
    """The fault of a part that is not what it is of the whole.

    It stands at the whole, and speaks of no side: the whole may be on either.
    """
    expected = f"{cut.stored} in {'/'.join(part.path)}, a part of it"
    return dataclasses.replace(
        fault, path="/".join(whole.path), expected=expected, found=str(part.stored)
    )


def _stackings(row: Row, relations: Sequence[Relation | Mismatch]) -> set[int] | None:
    """Which of the row's unrolled levels all parts stack; None where they do so differently."""
    unrolled = [at for at, repeat in enumerate(row.repeats) if repeat.axis is None]
    found: list[set[int]] = []
    for relation in relations:
        if isinstance(relation, Mismatch):
            continue
        kept = {level for symbol in relation.symbols[1] for level in symbol.levels}
        status = [{level in kept for level in symbol.levels} for symbol in relation.symbols[0]]
        if any(len(each) > 1 for each in status):
            return None
        found.append({at for at, each in zip(unrolled, status, strict=True) if each == {False}})
    return (found[0] if all(each == found[0] for each in found) else None) if found else set()


def _restacked(row: Row, made: set[int]) -> Row:
    """The row with some levels stacked in front."""
    repeats = tuple(Repeat(r.size, 0) if at in made else r for at, r in enumerate(row.repeats))
    return dataclasses.replace(row, repeats=repeats)


def _wired(
    whole: Numbered,
    parts: Sequence[Numbered],
    before: Relation,
    cut: Split,
    rest: Sequence[Relation],
) -> list[Join] | Mismatch:
    """The join from the relation of the leaf to its cut form, and those of the parts as cut off to the parts."""
    levels, places = list(before.levels), list[Place]()
    for (number, _), relation in zip(parts, rest, strict=True):
        pairs = zip(relation.symbols[0], before.symbols[1], strict=True)
        numbers = {
            a: b for mine, theirs in pairs for a, b in zip(mine.levels, theirs.levels, strict=True)
        }
        for level, size in enumerate(relation.levels):
            if level not in numbers:
                numbers[level] = len(levels)
                levels.append(size)
        places.append(
            Place(
                number,
                tuple(Symbol(tuple(numbers[n] for n in s.levels)) for s in relation.symbols[1]),
            )
        )
    chain = before.chain >> cut
    if any(relation.chain for relation in rest):
        chain = chain >> Beside(tuple(relation.chain for relation in rest))
    join = Join((Place(whole[0], before.symbols[0]),), tuple(places), chain, tuple(levels))
    return _type_fault(whole[1], [part for _, part in parts], join) or [join]


def _type_fault(whole: Row, parts: Sequence[Row], join: Join) -> Mismatch | None:
    """Types the edits for all sizes, both ways."""
    levels = [place.levels for place in (*join.sources, *join.views)]
    fanned = set.union(*levels) - set.intersection(*levels)
    counts = frozenset(dims_.names(join.levels[n] for n in fanned))
    two = dict.fromkeys(counts, 2)
    chains = (
        join.chain.edits[-1].chains
        if isinstance(join.chain.edits[-1], Beside)
        else [Chain()] * len(parts)
    )
    told = [(part.dims,) * chain.gives(two) for part, chain in zip(parts, chains, strict=True)]
    inputs, outputs = (
        (whole.dims,) * join.chain.takes(two),
        tuple(dims for each in told for dims in each),
    )
    for dims, after, chain in ((inputs, outputs, join.chain), (outputs, inputs, ~join.chain)):
        found, wanted = (
            typed(each, given, whole.leaf.dtype, counts)
            for each, given in ((chain, dims), (Chain(), after))
        )
        for one, other in zip(found, wanted, strict=True):
            if one != other:
                hint = "see how the parts declare their dims"
                return Mismatch("/".join(whole.path), "dims", other, f"{one} of {chain}", hint)
    return None


def _with_level(row: Row, level: int, repeat: Repeat) -> Row:
    return dataclasses.replace(
        row, repeats=(*row.repeats[:level], repeat, *row.repeats[level + 1 :])
    )
