"""Two rows that are one leaf: which element of the one is which of the other, or why nobody can say.

Here names end and the core begins. Who is one leaf is told by `pairing`, what rules say of it by
`leaf_rules`; what comes out are blocks of both rows, for all sizes. Each step may end in a fault:

1. what is padding is taken off both rows (`padded_rows`);
2. levels of repetition are matched (`levels`), then what one side repeats (`repeats`), then the axes
   of the leaf (`axis_names`), so that each factor has one token on both sides;
3. each row spells these tokens as it keeps them (`row_spellings`), and the core holds one spelling
   against the other.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts import leaves
from ckpt_schema._layouts.dims import Dims
from ckpt_schema._layouts.leaves import Leaf
from ckpt_schema._layouts.sizes import Size, UndecidedError
from ckpt_schema._layouts.table import Repeat, Row
from ckpt_schema._lens import spellings
from ckpt_schema._lens.cells import Cell, Geometry, through
from ckpt_schema._lens.codecs import Codec
from ckpt_schema._lens.derive.axis_names import fault, matched, same_axes, sized
from ckpt_schema._lens.derive.joins import Join
from ckpt_schema._lens.derive.leaf_rules import UNTOLD, PaddedAxis, Told, codec_of
from ckpt_schema._lens.derive.levels import levels_of
from ckpt_schema._lens.derive.named_axes import is_unsure, one_of_several, spots_called
from ckpt_schema._lens.derive.padded_rows import fills_of, unpadded
from ckpt_schema._lens.derive.repeats import once
from ckpt_schema._lens.derive.row_parts import RowPart, Within
from ckpt_schema._lens.derive.row_spellings import leaf_tokens, level_tokens, spelled_row
from ckpt_schema._lens.rules import RawKey, Reset
from ckpt_schema._lens.spellings import Spelling, Token
from ckpt_schema.errors import Mismatch

__all__ = ["GivenSizes", "Relation", "relate", "undecided"]

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
        cells: list[Cell] = []
        for geometry in self.geometries:
            cells.append(Cell(source, view, geometry, self.codec, compares))
        for side, region, fill in self.fills:
            # A region leads from the constant to the row; the source's padding ends in the constant.
            padding = Cell(fill.rest, (source, view)[side], region)
            cells.append(padding if side else ~padding)
        return tuple(cells)

    def join(self, source: int, view: int, told: Told = UNTOLD) -> Join:
        """The join of the rows of these numbers, which are one leaf."""
        return Join(self.cells(source, view), told, plain=True)


def undecided(source: Row, view: Row, found: UndecidedError) -> Mismatch:
    """The fault of two rows of which sizes alone say which elements they share."""
    points = " and ".join(str(point) for point in found.points)
    names: set[str] = set()
    for point in found.points:
        names |= point.names
    given = ", ".join(f'"{name}": ...' for name in sorted(names))
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
    one = source if isinstance(source, RowPart) else RowPart(source)
    other = view if isinstance(view, RowPart) else RowPart(view)
    if one.row.reshaped or other.row.reshaped:
        return _related_reshaped(one, other, told, known or {})
    return _related(one, other, told, known or {})


def _related_reshaped(
    source: RowPart, view: RowPart, told: Told, known: GivenSizes
) -> Relation | Mismatch:
    """The relation of what an optimizer keeps for a param in a shape of its own: such leaves join only their like.

    Adafactor keeps a row and a column of means for a matrix, and the whole for a vector.
    """
    rows = source.row, view.row
    both_once = once(*rows, told.repeats)
    if isinstance(both_once, Mismatch):
        return both_once
    ours = sorted(map(dims_.format_dim, both_once[0].row.leaf.dims))
    theirs = sorted(map(dims_.format_dim, both_once[1].row.leaf.dims))
    reset = Reset(rows[0].path, rows[1].path)
    if rows[0].reshaped != rows[1].reshaped or ours != theirs:
        why = "an optimizer keeps a param in one of these shapes or in the other, with other values"
        return fault(*rows, "shape", f"{why}: start it anew, {reset}")
    is_turned = told.axes is not None and [*told.axes] != sorted(told.axes)
    # What has one element is the same in any order of axes.
    if is_turned and set(ours) - {"1"}:
        why = "a rule says another order of the axes of its param, not of what is left of them here"
        return fault(*rows, "rule", f"{why}: start it anew, {reset}")
    made = _related(source, view, dataclasses.replace(told, axes=None), known)
    if isinstance(made, Mismatch) and str(reset) not in made.hint:
        return dataclasses.replace(made, hint=f"{made.hint}; or start it anew, {reset}")
    return made


def _related(source: RowPart, view: RowPart, told: Told, known: GivenSizes) -> Relation | Mismatch:
    """The relation of two rows whose axes are those of the leaf."""
    rows = source.row, view.row
    before, after = rows[0].leaf, rows[1].leaf
    is_raw = told.raw and before.is_key != after.is_key
    is_moved = told.flips or told.fills or told.repeats or told.axes is not None or is_raw
    is_alike = before.dims == after.dims and rows[0].repeats == rows[1].repeats
    # Nearly all leaves of nearly all lenses stay where they are, and are done here.
    stays = not is_moved and is_alike and same_axes(before, after)
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
    inner = unpadded(source, view, told)
    if isinstance(inner, Mismatch):
        return inner
    geometries = _geometries(*inner, told, known, is_raw)
    if isinstance(geometries, Mismatch):
        return geometries
    fills = *fills_of(0, inner[0]), *fills_of(1, inner[1])
    return Relation(geometries, codec, fills)


def _as_it_is(source: RowPart, view: RowPart) -> Relation:
    """That of two rows which differ in their spelling at most."""
    dims = source.row.leaf.dims
    is_key = source.row.leaf.is_key
    words = leaves.key_words(source.row.leaf.dtype) if is_key else 0
    return _identity(dims, source.row.repeats, words, source.within, view.within)


# Leaves of a few shapes make up a model: what is computed of shapes alone is computed once.
@functools.lru_cache(1 << 14)
def _identity(
    dims: Dims,
    repeats: tuple[Repeat, ...],
    words: int,
    ours: tuple[Within, ...],
    theirs: tuple[Within, ...],
) -> Relation:
    row = Row((), (), Leaf(dims, "float32"), repeats)
    factors, levels = leaf_tokens(row), level_tokens(row)
    before = spelled_row(RowPart(row, ours), factors, levels, words).spelling
    after = spelled_row(RowPart(row, theirs), factors, levels, words).spelling
    return Relation((spellings.between(before, after, frozenset()),))


# --- Keys and dtypes  ---


def _raw_fault(source: Row, view: Row) -> Mismatch | None:
    """Why one of two rows does not hold the raw data of the keys of the other."""
    raw, keys = (view, source) if source.leaf.is_key else (source, view)
    words = leaves.key_words(keys.leaf.dtype)
    are_words_last = raw.dims[-1:] == ((words,),)
    for repeat in raw.repeats:
        # A stack on an axis that is counted from the end would stand behind the words.
        if repeat.axis is not None and repeat.axis < 0:
            are_words_last = False
    if raw.leaf.dtype == "uint32" and are_words_last:
        return None
    why = f"raw data of such a key is uint32, with {words} words on the last axis"
    return fault(source, view, "dtype", why)


def _codec(source: Row, view: Row, told: Told) -> Codec | Mismatch:
    """What happens to each element, or why nothing makes the one dtype of the other."""
    codec = codec_of(source.leaf.dtype, view.leaf.dtype, told)
    if not isinstance(codec, str):
        return codec
    are_keys = source.leaf.is_key and view.leaf.is_key
    # `codec_of` knows dtypes alone; here the rule that it names gets the path to copy.
    why = codec.replace("raw_key(...)", str(RawKey(view.model_path)))
    return fault(source, view, "impl" if are_keys else "dtype", why)


# --- Geometry  ---


def _geometries(
    source: RowPart, view: RowPart, told: Told, known: GivenSizes, is_raw: bool
) -> tuple[Geometry, ...] | Mismatch:
    """Which elements of two rows are one, both without padding."""
    parts = source, view
    if is_raw:
        parts = _as_keys(source), _as_keys(view)
    # The words of keys are one more axis, which no row declares. Both sides have as many.
    words = 0
    for part in parts:
        if part.row.leaf.is_key:
            words = leaves.key_words(part.row.leaf.dtype)
    levels = levels_of(parts[0].row, parts[1].row)
    if isinstance(levels, Mismatch):
        return levels
    both_once = once(parts[0].row, parts[1].row, told.repeats)
    if isinstance(both_once, Mismatch):
        return both_once
    ours, theirs = both_once
    # For each factor of the view's, the number of the source's that it is.
    order = matched(ours.row, theirs.row, Told(axes=told.axes))
    if isinstance(order, Mismatch):
        return order
    factors = leaf_tokens(ours.row)
    tokens = ours.tokens(factors), theirs.tokens([factors[number] for number in order])
    flipped = _flipped(parts, tokens, told)
    if isinstance(flipped, Mismatch):
        return flipped
    before = spelled_row(parts[0], tokens[0], levels.tokens[0], words).spelling
    after = spelled_row(parts[1], tokens[1], levels.tokens[1], words).spelling
    if not levels.blocks[0]:
        return (spellings.between(before, after, flipped),)
    # For all sizes first, so that a lens without dims= stays one; given sizes decide the rest.
    try:
        return _by_blocks((before, after), levels.blocks, flipped, {})
    except UndecidedError as found:
        if not known:
            return undecided(source.row, view.row, found)
    try:
        return _by_blocks((before, after), levels.blocks, flipped, known)
    except UndecidedError as found:
        return undecided(source.row, view.row, found)


def _as_keys(part: RowPart) -> RowPart:
    """A row of raw data as one of keys: each is what stands on the last axis."""
    leaf = part.row.leaf
    if leaf.is_key:
        return part
    inner = Leaf(leaf.dims[:-1], leaf.dtype, leaf.names[:-1])
    return dataclasses.replace(part, row=dataclasses.replace(part.row, leaf=inner))


def _flipped(
    parts: tuple[RowPart, RowPart], factors: Sequence[Sequence[Token]], told: Told
) -> frozenset[Token] | Mismatch:
    """The factors that one side counts from their end."""
    flipped: set[Token] = set()
    rows = parts[0].row, parts[1].row
    for dim in sorted(told.flips, key=str):
        for row, tokens in zip(rows, factors, strict=True):
            spots = spots_called(row, dim)
            if len(spots) > 1 or is_unsure(row, dim):
                return fault(*rows, "ambiguous", one_of_several(row, dim))
            if spots:
                at, first, last = spots[0]
                # Factors of size 1 have no token: they are left out of the count.
                before = len(sized(dims_.factors(row.leaf.dims[:at])))
                before += len(sized(row.leaf.dims[at][:first]))
                count = len(sized(row.leaf.dims[at][first:last]))
                # What two rules reverse is as it was.
                flipped ^= {*tokens[before : before + count]}
                # Tokens are the same on both sides: one of them that has the axis is enough.
                break
    return frozenset(flipped)


def _by_blocks(
    spelled: tuple[Spelling, Spelling],
    blocks: tuple[list[Token], list[Token]],
    flipped: frozenset[Token],
    known: GivenSizes,
) -> tuple[Geometry, ...]:
    """The geometries of two rows with other blocks: both are held against an array that counts through all of them.

    3 blocks of 2 layers and 2 blocks of 3 are both 6 layers in one array, and cut each other there.

    Raises:
        UndecidedError: The blocks of one side are cut by those of the other, and sizes alone say where.
    """
    # Besides the blocks, what both rows have: each factor is an axis of the array between them.
    theirs = {*spellings.tokens(spelled[1])}
    others: list[list[Token]] = []
    for token in spellings.tokens(spelled[0]):
        if token in theirs:
            others.append([token])
    # One of both ways counts from the end what is flipped: the way in, so that the way out is plain.
    way_in = spellings.whole(spelled[0], [blocks[0], *others], flipped)
    way_out = spellings.whole(spelled[1], [blocks[1], *others], frozenset())
    paths = through(way_in.where(known), ~way_out.where(known))
    return tuple(path.geometry for path in paths)
