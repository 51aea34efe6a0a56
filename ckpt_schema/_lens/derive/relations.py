"""Two rows that are one leaf: which element of the one is which of the other, or why nobody can say."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts import leaves
from ckpt_schema._layouts.dims import EITHER, Dim, Dims, Sum
from ckpt_schema._layouts.formats import FORMATS
from ckpt_schema._layouts.leaves import ANY_FLOAT, Leaf
from ckpt_schema._layouts.sizes import Size, UndecidedError
from ckpt_schema._layouts.table import Repeat, Row
from ckpt_schema._lens import spellings
from ckpt_schema._lens.axis_rules import Repeated, Reverse
from ckpt_schema._lens.cells import Cell, Geometry, through
from ckpt_schema._lens.codecs import Codec
from ckpt_schema._lens.derive.axis_names import axes_called, fault, matched, same_axes, sized
from ckpt_schema._lens.derive.joins import Join
from ckpt_schema._lens.derive.leaf_rules import UNTOLD, PaddedAxis, Told, ValueRule, codec_of
from ckpt_schema._lens.derive.levels import levels_of
from ckpt_schema._lens.derive.repeats import Once, count_of, once, repeated_by
from ckpt_schema._lens.derive.row_parts import RowPart, Within, mentions, places_of, spots_of
from ckpt_schema._lens.rules import RawKey, Reset
from ckpt_schema._lens.spellings import Span, Spelling, Token, of_dim
from ckpt_schema._lens.value_rules import Factor, Offset, Rounding
from ckpt_schema.errors import Mismatch

__all__ = [
    "GivenSizes",
    "Relation",
    "applies",
    "relate",
    "stripped",
    "undecided",
]

GivenSizes = Mapping[str, Size]
"""Sizes that are given beforehand."""


@dataclasses.dataclass(frozen=True, slots=True)
class Relation:
    """Which elements of one row are which of another.

    Attributes:
        geometries: Blocks of both, that share no element.
        codec: What happens to each element.
        fills: What a side has besides, as padding: which side, its elements, and what they hold.
    """

    geometries: tuple[Geometry, ...]
    codec: Codec = ()
    fills: tuple[tuple[int, Geometry, PaddedAxis], ...] = ()

    def cells(
        self, source: int, view: int, compares: tuple[bool, bool] = (False, False)
    ) -> tuple[Cell, ...]:
        """The cells of the rows of these numbers."""
        cells = [Cell(source, view, each, self.codec, compares) for each in self.geometries]
        for side, region, fill in self.fills:
            padding = Cell(fill.rest, (source, view)[side], region)
            cells.append(padding if side else ~padding)
        return tuple(cells)

    def join(self, source: int, view: int, told: Told = UNTOLD) -> Join:
        """The join of the rows of these numbers, which are one leaf."""
        return Join(self.cells(source, view), told, plain=True)


def undecided(source: Row, view: Row, found: UndecidedError) -> Mismatch:
    """The fault of two rows of which sizes alone say which elements they share."""
    points = " and ".join(str(point) for point in found.points)
    names = sorted({name for point in found.points for name in point.names})
    given = ", ".join(f'"{name}": ...' for name in names)
    hint = f"{found.why}; the sizes decide it, where {points} is cut: give dims={{{given}}}"
    return fault(source, view, "dims", hint)


def relate(
    source: Row | RowPart, view: Row | RowPart, told: Told = UNTOLD, known: GivenSizes | None = None
) -> Relation | Mismatch:
    """Which elements of one row are which of another, or why nobody can say.

    Args:
        source: The source's row.
        view: The view's row.
        told: What rules say of the leaf.
        known: Sizes that are given beforehand, for what no sizes decide.
    """
    one, other = (each if isinstance(each, RowPart) else RowPart(each) for each in (source, view))
    if one.row.reshaped or other.row.reshaped:
        return _mirrored(one, other, told, known or {})
    return _related(one, other, told, known or {})


def _mirrored(source: RowPart, view: RowPart, told: Told, known: GivenSizes) -> Relation | Mismatch:
    """The relation of what an optimizer keeps for a param in a shape of its own: such leaves join only their like."""
    rows = source.row, view.row
    single = once(*rows, told.repeats)
    if isinstance(single, Mismatch):
        return single
    sizes = [sorted(map(dims_.format_dim, each.row.leaf.dims)) for each in single]
    reset = Reset(rows[0].path, rows[1].path)
    turned = told.axes is not None and [*told.axes] != sorted(told.axes)
    if rows[0].reshaped != rows[1].reshaped or sizes[0] != sizes[1]:
        why = "an optimizer keeps a param in one of these shapes or in the other, with other values"
        return fault(*rows, "shape", f"{why}: start it anew, {reset}")
    if turned and any(size != "1" for size in sizes[0]):
        why = "a rule says another order of the axes of its param, not of what is left of them here"
        return fault(*rows, "rule", f"{why}: start it anew, {reset}")
    made = _related(source, view, dataclasses.replace(told, axes=None), known)
    if isinstance(made, Mismatch) and str(reset) not in made.hint:
        return dataclasses.replace(made, hint=f"{made.hint}; or start it anew, {reset}")
    return made


def _related(source: RowPart, view: RowPart, told: Told, known: GivenSizes) -> Relation | Mismatch:
    rows = source.row, view.row
    is_raw = told.raw and rows[0].leaf.is_key != rows[1].leaf.is_key
    before, after = (row.leaf for row in rows)
    moved = told.flips or told.fills or told.repeats or told.axes is not None or is_raw
    alike = before.dims == after.dims and rows[0].repeats == rows[1].repeats
    stays = not moved and alike and same_axes(before, after)
    if stays and not told.changes and before.dtype == after.dtype:
        return _as_it_is(source, view)
    if is_raw:
        wrong = _raw_fault(*rows)
        if wrong is not None:
            return wrong
    codec = () if is_raw else _codec(*rows, told)
    if isinstance(codec, Mismatch):
        return codec
    if stays and not source.within and not view.within:  # other values, and where they were
        return dataclasses.replace(_as_it_is(source, view), codec=codec)
    kept = _unpadded(source, view, told)
    if isinstance(kept, Mismatch):
        return kept
    geometries = _geometries(*kept, told, known, is_raw)
    if isinstance(geometries, Mismatch):
        return geometries
    fills = [fill for side, part in enumerate(kept) for fill in _fills(side, part)]
    return Relation(geometries, codec, tuple(fills))


def _as_it_is(source: RowPart, view: RowPart) -> Relation:
    """That of two rows which differ in their spelling at most."""
    dims = source.row.leaf.dims
    is_key = source.row.leaf.is_key
    words = leaves.key_words(source.row.leaf.dtype) if is_key else 0
    return _identity(dims, source.row.repeats, words, source.within, view.within)


@functools.lru_cache(1 << 14)
def _identity(
    dims: Dims,
    repeats: tuple[Repeat, ...],
    words: int,
    ours: tuple[Within, ...],
    theirs: tuple[Within, ...],
) -> Relation:
    row = Row((), (), Leaf(dims, "float32"), repeats)
    factors = _own(row)
    levels = _numbered(row)
    spelled = [_spelled(RowPart(row, each), factors, levels, words)[0] for each in (ours, theirs)]
    return Relation((spellings.between(*spelled, frozenset()),))


def _own(row: Row) -> list[Token]:
    """A token for each factor of a leaf's own axes."""
    return [("leaf", number) for number, _ in enumerate(sized(dims_.factors(row.leaf.dims)))]


def _numbered(row: Row) -> list[list[Token]]:
    """A token for each factor of each level of a row."""
    levels: list[list[Token]] = []
    for number, repeat in enumerate(row.repeats):
        levels.append([("level", number, at) for at in range(len(repeat.size))])
    return levels


# --- Keys and dtypes  ---


def _raw_fault(source: Row, view: Row) -> Mismatch | None:
    """Why one of two rows does not hold the raw data of the keys of the other."""
    raw, keys = (view, source) if source.leaf.is_key else (source, view)
    words = leaves.key_words(keys.leaf.dtype)
    stacks = [repeat.axis for repeat in raw.repeats if repeat.axis is not None]
    is_last = raw.dims[-1:] == ((words,),) and not any(axis < 0 for axis in stacks)
    if raw.leaf.dtype == "uint32" and is_last:
        return None
    why = f"raw data of such a key is uint32, with {words} words on the last axis"
    return fault(source, view, "dtype", why)


def _codec(source: Row, view: Row, told: Told) -> Codec | Mismatch:
    codec = codec_of(source.leaf.dtype, view.leaf.dtype, told)
    if not isinstance(codec, str):
        return codec
    both_keys = source.leaf.is_key and view.leaf.is_key
    codec = codec.replace("raw_key(...)", str(RawKey(view.model_path)))
    return fault(source, view, "impl" if both_keys else "dtype", codec)


# --- Padding  ---


def _unpadded(source: RowPart, view: RowPart, told: Told) -> tuple[RowPart, RowPart] | Mismatch:
    """Both rows without what rules say is padding."""
    inner = [source, view]
    for start, end in told.ends:
        for side, fill in _padded(inner, start, end, told):
            row = inner[side].row
            spots = places_of(row, fill.large)
            if len(spots) > 1:
                return fault(source.row, view.row, "ambiguous", _which(row, fill.large))
            unfilled = _unfilled(source.row, view.row, fill)
            if unfilled is not None:
                return unfilled
            inner[side] = inner[side].cut(*spots[0], fill)
    return inner[0], inner[1]


def stripped(row: Row, told: Told, parts: Sequence[Row] = ()) -> Row:
    """A row as its parts have it: without what it has more of by rules, or with what these have more of."""
    part = RowPart(row)
    for start, _ in told.ends:
        spots = places_of(part.row, start.large)
        fill = start
        if not spots and parts and not any(places_of(each, start.small) for each in parts):
            spots = places_of(part.row, start.small)
            fill = PaddedAxis(start.large, start.small, start.rest)
        if len(spots) == 1:
            part = part.cut(*spots[0], fill)
    row = part.row
    for rule in told.repeats:
        spots = repeated_by(row, rule)
        if len(spots) == 1:
            row = Once(row, frozenset(spots)).row
    return row


def applies(rule: ValueRule, rows: tuple[Row, Row]) -> bool:
    """Whether a rule says anything of a leaf that has these rows, one of which may be a part of the other."""
    dtypes = [row.leaf.dtype for row in rows]
    floats = FORMATS.keys() | {ANY_FLOAT}
    if isinstance(rule, Reverse):
        return any(_called(row, rule.dim) for row in rows)
    if isinstance(rule, Repeated):
        return count_of(rows[0], rule) != count_of(rows[1], rule)
    if isinstance(rule, Rounding):
        # Of any float it is not known which, or was not when the rule was written.
        may_differ = any(row.leaf.any_float or row.leaf.is_open for row in rows)
        return floats >= {*dtypes} and (may_differ or dtypes[0] != dtypes[1])
    if isinstance(rule, Factor):
        return rule.factor == 1 or dtypes[0] in floats
    if isinstance(rule, Offset):
        return not rule.amount or dtypes[0] in floats
    if isinstance(rule, RawKey):
        return rows[0].leaf.is_key != rows[1].leaf.is_key
    # Of a list in several parts each has a term of its length.
    several = [rule.large, *(term for f in rule.large if isinstance(f, Sum) for term in f.terms)]
    return any(mentions(row, dim) for row in rows for dim in several)


def _padded(
    inner: Sequence[RowPart], start: PaddedAxis, end: PaddedAxis, told: Told
) -> list[tuple[int, PaddedAxis]]:
    """Which of both rows are cut to the size without padding, and what theirs holds.

    One is, where the other has that size, or is cut to it by another rule; and both, where a rule
    speaks of padding that both have.
    """
    large = [
        bool(places_of(part.row, fill.large))
        for part, fill in zip(inner, (start, end), strict=True)
    ]
    if all(large):
        return [(0, start), (1, end)]
    several = {start.small, *(fill.large for fill in told.fills if fill.small == start.small)}
    small = [any(places_of(part.row, dim) for dim in several) for part in inner]
    if large[0] and small[1]:
        return [(0, start)]
    return [(1, end)] if large[1] and small[0] else []


def _unfilled(source: Row, view: Row, fill: PaddedAxis) -> Mismatch | None:
    """Why a leaf cannot be padded so."""
    sizes = [dims_.size_of(dim, {}) for dim in (fill.small, fill.large)]
    if None not in sizes and (sizes[0] or 0) > (sizes[1] or 0):
        why = f"{sizes[0]} cannot be padded to {sizes[1]}, which is less"
        return fault(source, view, "dims", why)
    default = fill.rest.value
    if isinstance(default, leaves.Init):  # the transformation's own start fits
        return None
    assert isinstance(default, leaves.Default)
    is_complex = source.leaf.dtype.startswith("complex")
    unlike_zero = fill.rest.is_fill and default != leaves.Fill(0)
    if not leaves.holds(source.leaf, default) or (is_complex and unlike_zero):
        why = f"{source.leaf.dtype} is not padded with {default}: give another fill="
        if not fill.rest.is_fill:
            why = f"{source.leaf.dtype} does not start with {default}: give it a rule of its own"
        return fault(source, view, "dtype", why)
    return None


def _fills(side: int, part: RowPart) -> Iterator[tuple[int, Geometry, PaddedAxis]]:
    """What a row has in its padding. Where the padding of two axes meets, it is of what was put on last."""
    padded = [within for within in part.within if within.fill is not None]
    if not padded:
        return
    # A view is padded in the order of the rules, and a source is cut in it: put on in the other.
    last_first = padded[::-1] if side else padded
    # A layer that the other side does not have is as its rule says, whatever else is padded in it.
    last_first.sort(key=lambda within: within.at[0] != "level")
    factors = _own(part.row)
    words = leaves.key_words(part.row.leaf.dtype) if part.row.leaf.is_key else 0
    spelled, spans = _spelled(part, factors, _numbered(part.row), words)
    regions = spellings.beside(spelled, tuple(spans[within] for within in last_first))
    for within, region in zip(last_first, regions, strict=True):
        assert within.fill is not None
        yield side, region, within.fill


# --- Geometry  ---


def _geometries(
    source: RowPart, view: RowPart, told: Told, known: GivenSizes, is_raw: bool
) -> tuple[Geometry, ...] | Mismatch:
    """Which elements of two rows are one, both without padding."""
    parts = [source, view]
    rows = source.row, view.row
    if is_raw:
        parts = [part if part.row.leaf.is_key else _without_words(part) for part in parts]
    keys = [part.row.leaf.dtype for part in parts if part.row.leaf.is_key]
    words = leaves.key_words(keys[0]) if keys else 0
    levels = levels_of(parts[0].row, parts[1].row)
    if isinstance(levels, Mismatch):
        return levels
    single = once(parts[0].row, parts[1].row, told.repeats)
    if isinstance(single, Mismatch):
        return single
    own = matched(single[0].row, single[1].row, Told(axes=told.axes))
    if isinstance(own, Mismatch):
        return own
    factors = _own(single[0].row)
    both = single[0].tokens(factors), single[1].tokens([factors[number] for number in own])
    flipped = _flipped(parts, both, told)
    if isinstance(flipped, Mismatch):
        return flipped
    spelled: list[Spelling] = []
    for part, each, its in zip(parts, both, levels.tokens, strict=True):
        spelled.append(_spelled(part, each, its, words)[0])
    if not levels.blocks[0]:
        return (spellings.between(spelled[0], spelled[1], flipped),)
    try:
        return _by_blocks(spelled, levels.blocks, flipped, {})
    except UndecidedError as found:
        if not known:
            return undecided(*rows, found)
    try:
        return _by_blocks(spelled, levels.blocks, flipped, known)
    except UndecidedError as found:
        return undecided(*rows, found)


def _without_words(part: RowPart) -> RowPart:
    """A row of raw data as one of keys: each is what stands on the last axis."""
    leaf = part.row.leaf
    inner = Leaf(leaf.dims[:-1], leaf.dtype, leaf.names[:-1])
    return dataclasses.replace(part, row=dataclasses.replace(part.row, leaf=inner))


def _flipped(
    parts: Sequence[RowPart], factors: Sequence[Sequence[Token]], told: Told
) -> frozenset[Token] | Mismatch:
    """The factors that one side counts from their end."""
    flipped: set[Token] = set()
    rows = parts[0].row, parts[1].row
    for dim in sorted(told.flips, key=str):
        for row, tokens in zip(rows, factors, strict=True):
            spots = _called(row, dim)
            if len(spots) > 1 or _unsure(row, dim):
                return fault(*rows, "ambiguous", _which(row, dim))
            if spots:
                # Factors of size 1 have no token: they are left out of the count.
                at, first, last = spots[0]
                before = sum(len(sized(axis)) for axis in row.leaf.dims[:at])
                before += len(sized(row.leaf.dims[at][:first]))
                count = len(sized(row.leaf.dims[at][first:last]))
                flipped ^= {*tokens[before : before + count]}
                break
    return frozenset(flipped)


def _called(row: Row, dim: Dim) -> list[tuple[int, int, int]]:
    """The axes of a leaf that are called so, or else the factors of an axis that are."""
    whole = [(at, 0, len(row.leaf.dims[at])) for at in axes_called(row.leaf, dim)]
    return whole or spots_of(row, dim)


def _unsure(row: Row, dim: Dim) -> bool:
    """Whether an axis of a leaf may be the one that is called so, and nobody can say."""
    names = (name for own in row.leaf.names for name in own.parts if EITHER in name)
    spelled = dims_.format_dim(dim)
    return any(spelled in name.split(EITHER) for name in names)


def _which(row: Row, dim: Dim) -> str:
    """What to do where a rule names an axis that a leaf has twice."""
    spelled = dims_.format_dim(dim)
    if row.reshaped:
        reset = Reset(view=row.path)
        return f"nobody can say which axis of the param {spelled} is here: start it anew, {reset}"
    names = [str(own) for own, size in zip(row.leaf.own, row.leaf.dims, strict=True) if size == dim]
    if len(names) > 1 and len(set(names)) == len(names):
        return f"{spelled} is the size of several axes: name one of them, {' or '.join(names)}"
    return (
        f"{spelled} is the size of several axes, and nothing tells them apart: "
        f'give them labels, "in={spelled} out={spelled}", and name one of these'
    )


def _spelled(
    part: RowPart, factors: Sequence[Token], levels: Sequence[Sequence[Token]], words: int
) -> tuple[Spelling, dict[Within, tuple[int, int]]]:
    """How a row keeps its factors, and which span what is within more elements is.

    Args:
        part: The row.
        factors: What each factor of the leaf's own axes is, those of size 1 left out.
        levels: For each level of repetition, what each of its factors is.
        words: How many words the last axis has, of keys.
    """
    row, own = part.row, iter(factors)
    axes: list[_Axis] = []
    for number, dim in enumerate(row.leaf.dims):
        told = [(None if factor == 1 else next(own), of_dim((factor,))) for factor in dim]
        axes.append(_axis(("axis", number), told, part.within))
    stacks: list[_Axis] = []
    for number, (repeat, its) in enumerate(zip(row.repeats, levels, strict=True)):
        told = [(token, of_dim((f,))) for token, f in zip(its, repeat.size, strict=True)]
        stacks.append(_axis(("level", number), told, part.within))
    unrolled = [stacks[n] for n, repeat in enumerate(row.repeats) if repeat.axis is None]
    stored = [(axes if kind == "axis" else stacks)[number] for kind, number in row.axes]
    found = [*unrolled, *stored]
    if words:
        size = Size.of(words)
        found.append([(Span((("words", size),), size), None)])
    spelling = tuple(tuple(span for span, _ in axis) for axis in found)
    spots: dict[Within, tuple[int, int]] = {}
    for number, axis in enumerate(found):
        spots |= {within: (number, at) for at, (_, within) in enumerate(axis) if within}
    return spelling, spots


_Axis = list[tuple[Span, Within | None]]


def _axis(
    at: tuple[str, int], factors: Sequence[tuple[Token | None, Size]], within: Sequence[Within]
) -> _Axis:
    """The spans of an axis: of what stands within more elements one, of every other factor one."""
    found: _Axis = []
    begins = {each.first: each for each in within if each.at == at}
    number = 0
    while number < len(factors) or number in begins:
        own = begins.pop(number, None)
        end = number + 1 if own is None else own.last
        inner = tuple((token, size) for token, size in factors[number:end] if token is not None)
        if own is not None:
            found.append((Span(inner, own.size, own.start), own))
        elif inner:
            found.append((Span(inner, inner[0][1]), None))
        number = end
    return found


def _by_blocks(
    spelled: Sequence[Spelling],
    blocks: tuple[list[Token], list[Token]],
    flipped: frozenset[Token],
    known: GivenSizes,
) -> tuple[Geometry, ...]:
    """The geometries of two rows with other blocks: both are held against an array that counts through all of them.

    Raises:
        UndecidedError: The blocks of one side are cut by those of the other, and sizes alone say where.
    """
    theirs = {*spellings.tokens(spelled[1])}
    common = [token for token in spellings.tokens(spelled[0]) if token in theirs]
    wholes: list[Geometry] = []
    for spelling, block in zip(spelled, blocks, strict=True):
        logical = [block, *([token] for token in common)]
        wholes.append(spellings.whole(spelling, logical, flipped if not wholes else frozenset()))
    first, second = (each.where(known) for each in wholes)
    return tuple(path.geometry for path in through(first, ~second))
