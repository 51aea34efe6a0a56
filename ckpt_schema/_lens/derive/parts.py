"""A leaf that is one row on one side and several on the other: parts of an axis, or of a list of layers.

`wholes` tells which rows are parts of what, and `leaf_joins` and `lists` ask here for their cells.
The way is always the same: the whole is *cut* into row parts, one for each part there is, and each of
these is related with its part as any two rows are.

    qkv [embed, q+k+v]  --cut-->  [embed, q] at 0, [embed, k] at q, [embed, v] at q+k  --  q, k, v
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts.dims import Dim, DimFactor
from ckpt_schema._layouts.leaves import Leaf
from ckpt_schema._layouts.sizes import ZERO, UndecidedError
from ckpt_schema._layouts.table import Repeat, Row
from ckpt_schema._lens.cells import Cell
from ckpt_schema._lens.derive.axis_names import fault, sized
from ckpt_schema._lens.derive.axis_shares import AxisShare, axis_shares, cut_by, undecided_share
from ckpt_schema._lens.derive.bounds import composed_if_known
from ckpt_schema._lens.derive.joins import Join
from ckpt_schema._lens.derive.leaf_rules import UNTOLD, Told
from ckpt_schema._lens.derive.padded_rows import stripped
from ckpt_schema._lens.derive.relations import (
    GivenSizes,
    relate,
    undecided,
)
from ckpt_schema._lens.derive.row_parts import RowPart, Within
from ckpt_schema._lens.rules import Rule
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
    # How many layers each part has: all its levels that are of the list, multiplied.
    shares: list[Dim] = []
    for part, (start, end) in zip(divided.parts, spans, strict=True):
        share: Dim = ()
        for repeat in part.row.repeats[start:end]:
            share += repeat.size
        shares.append(share)
    # They are compared as sizes: "a+b" and "b+a" are written otherwise, and are as many.
    if of_dim(own.size) != sum(map(of_dim, shares), ZERO):
        wanted, found = dims_.format_dim(dims_.add(shares)), dims_.format_dim(own.size)
        hint = (
            f'its parts have {wanted} together: declare length="{wanted}" or scan="{wanted}", '
            "or dims= where the class is used"
        )
        return Mismatch("/".join(row.path), "dims", f"{wanted} repeats", found, hint)
    # 6 layers as 2 and 4 of them: the cuts are [2] from 0 and [4] from 2.
    cuts: list[RowPart] = []
    start = ZERO
    for share in shares:
        where = Within(("level", level), 0, len(share), of_dim(own.size), start)
        cuts.append(RowPart(_with_level(row, level, Repeat(share, own.axis)), (where,)))
        start += of_dim(share)
    made = _related(divided, cuts, known)
    if isinstance(made, Mismatch):
        return made
    if own.axis is not None:  # the list is one array, which all parts are in
        return [_one_join(divided, made)]
    joins: list[Join] = []
    for cells, part in zip(made, divided.parts, strict=True):  # each is a leaf of its own there
        joins.append(Join(cells, part.told))
    return joins


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
    plain_parts = [stripped(part.row, part.told) for part in divided.parts]
    shares = axis_shares(row, plain_parts, axis)
    if len(shares) != 1:
        return undecided_share(row, plain_parts, axis, shares)
    made = _related(divided, cut_by(row, shares[0]), known)
    return made if isinstance(made, Mismatch) else [_one_join(divided, made)]


def _one_join(divided: Divided, several: Iterable[Sequence[Cell]]) -> Join:
    """The join of a leaf with all of its parts."""
    cells: list[Cell] = []
    for cells_of_part in several:
        cells += cells_of_part
    return Join(tuple(cells), Told(rules=_rules_of((divided.whole, *divided.parts))))


def _rules_of(rows: Iterable[Numbered]) -> tuple[Rule, ...]:
    """The rules that speak of any of some rows, each once."""
    rules: dict[Rule, None] = {}
    for row in rows:
        rules.update(dict.fromkeys(row.told.rules))
    return tuple(rules)


def _edited(
    divided: Divided, known: GivenSizes, make: Callable[[Divided], list[Join] | Mismatch]
) -> list[Join] | Mismatch:
    """The joins of a whole that rules speak of: what they say is done to it as a whole, and then it has its parts.

    whole -> whole as rules say it (a row that no side has) -> parts
    """
    number, row, told = divided.whole.number, divided.whole.row, divided.whole.told
    if told.rounds:  # it is between the whole and its parts that dtypes differ
        parts: list[Numbered] = []
        for part in divided.parts:
            rounded = dataclasses.replace(part.told, rounds=True)
            parts.append(dataclasses.replace(part, told=rounded))
        divided = dataclasses.replace(divided, parts=tuple(parts))
    inner = stripped(row, told, [part.row for part in divided.parts])
    # A rule that only rounds leaves the row as it is, and this step copies it.
    relation = relate(row, inner, told, known)
    if isinstance(relation, Mismatch):
        return relation
    # Nothing is said of the row between, so this comes here no second time.
    made = make(dataclasses.replace(divided, whole=Numbered(_BETWEEN, inner)))
    if isinstance(made, Mismatch):
        return made
    onward: list[Cell] = []
    for join in made:
        onward += join.cells
    try:
        cells = composed_if_known(relation.cells(number, _BETWEEN), onward, known)
    except UndecidedError as found:
        return undecided(row, divided.parts[0].row, found)
    return [_one_join(divided, [cells])]


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
    wholes: list[_Whole] = []
    for parts, axis in zip((first, second), axes, strict=True):
        made = _whole(parts, axis)
        if isinstance(made, Mismatch):
            return made
        wholes.append(made)
    ours, theirs = wholes
    both = first[0].row, second[0].row
    if of_dim(ours.axis) != of_dim(theirs.axis):
        why = (
            f"the parts have {dims_.format_dim(theirs.axis)} together in the view: declare the same"
        )
        return fault(*both, "dims", why)
    # Both count the shared axis alike, whatever its parts are: "q+k+v" here is "q+kv" there.
    leaf = theirs.row.leaf.with_axis(theirs.share.at, ours.axis)
    theirs = dataclasses.replace(theirs, row=dataclasses.replace(theirs.row, leaf=leaf))
    relation = relate(ours.row, theirs.row)
    if isinstance(relation, Mismatch):
        return relation
    before = _cells_of_whole(ours, first, known)
    if isinstance(before, Mismatch):
        return before
    after = _cells_of_whole(theirs, second, known)
    if isinstance(after, Mismatch):
        return after
    try:
        # parts of the source -> whole -> whole -> parts of the view
        onward = composed_if_known(relation.cells(_BETWEEN, _BETWEEN), after, known)
        between = composed_if_known([~cell for cell in before], onward, known)
    except UndecidedError as found:
        return undecided(*both, found)
    return [Join(tuple(between), Told(rules=_rules_of((*first, *second))))]


@dataclasses.dataclass(frozen=True, slots=True)
class _Whole:
    """The row that several would be together, and how they share it."""

    row: Row
    share: AxisShare

    @property
    def axis(self) -> Dim:
        """The axis that they share."""
        return self.row.leaf.dims[self.share.at]


def _cells_of_whole(
    whole: _Whole, parts: Sequence[Numbered], known: GivenSizes
) -> list[Cell] | Mismatch:
    """The cells from a whole that no side has to its parts."""
    divided = Divided(Numbered(_BETWEEN, whole.row), tuple(parts))
    made = _related(divided, cut_by(whole.row, whole.share), known)
    if isinstance(made, Mismatch):
        return made
    cells: list[Cell] = []
    for cells_of_part in made:
        cells += cells_of_part
    return cells


def _whole(parts: Sequence[Numbered], axis: Dim | None) -> _Whole | Mismatch:
    """The row that several would be together: ``[embed, q]`` and ``[embed, k]`` make ``[embed, q+k]``."""
    rows = [stripped(part.row, part.told) for part in parts]
    # Axes with names of their own stay where they are: what is put together of factors has none.
    has_names = any(row.leaf.names for row in rows)
    if axis is None and not has_names:
        by_factors = _by_factors(rows)
        if by_factors is not None:
            return by_factors
    unlike = _unlike_axes(rows)
    # Parts of one size differ nowhere: [embed, dim] and [embed, dim]. Then the rule says the axis.
    if axis is not None and len(unlike) != 1:
        unlike = _axes_of_size(rows[0], axis)
    if len(unlike) != 1:
        names = " and ".join("/".join(row.path) for row in rows)
        hint = "say which axis they share, fuse(..., axis=...)"
        expected = "leaves that differ on one axis, which is the one that they share"
        found = f"{names}, {rows[0].stored}"
        return Mismatch("/".join(rows[0].path), "dims", expected, found, hint)
    at = unlike[0]
    terms = [row.leaf.dims[at] for row in rows]
    leaf = rows[0].leaf.with_axis(at, dims_.add(terms))
    return _Whole(dataclasses.replace(rows[0], leaf=leaf), AxisShare(at, None, terms))


def _axes_of_size(row: Row, size: Dim) -> list[int]:
    """The axes of a leaf that have a size."""
    return [at for at, dim in enumerate(row.leaf.dims) if dim == size]


def _unlike_axes(rows: Sequence[Row]) -> list[int]:
    """The axes on which some leaves differ; none where they have not equally many."""
    first = rows[0].leaf.dims
    unlike: set[int] = set()
    for row in rows[1:]:
        if len(row.leaf.dims) != len(first):
            return []
        for at, (dim, other) in enumerate(zip(first, row.leaf.dims, strict=True)):
            if dim != other:
                unlike.add(at)
    return sorted(unlike)


def _by_factors(rows: Sequence[Row]) -> _Whole | None:
    """The same where parts have their axes in any order: what all have, and what is left of each on one axis.

    Of ``[embed, q]`` and ``[k*dim, embed]`` the whole is ``[embed, q+k*dim]``.
    """
    factors_of: list[list[DimFactor]] = []
    for row in rows:
        factors = [*sized(dims_.factors(row.leaf.dims))]
        # Of a factor that a part has twice nobody can say which is the common one.
        if len(set(factors)) < len(factors):
            return None
        factors_of.append(factors)
    common = set(factors_of[0]).intersection(*factors_of[1:])
    terms: list[Dim] = []
    for row in rows:
        term = _left_on_one_axis(row, common)
        if term is None:
            return None
        terms.append(term)
    # No side has the whole, so its axes may stand in any order: the shared one is the last.
    axes: list[Dim] = [(factor,) for factor in factors_of[0] if factor in common]
    leaf = Leaf((*axes, dims_.add(terms)), rows[0].leaf.dtype)
    return _Whole(dataclasses.replace(rows[0], leaf=leaf), AxisShare(len(axes), None, terms))


def _left_on_one_axis(row: Row, common: set[DimFactor]) -> Dim | None:
    """What a part has beside the common factors; None if that is not one run of factors of one axis."""
    axes: list[Dim] = []
    for dim in row.leaf.dims:
        if not common.issuperset(set(dim) - {1}):
            axes.append(dim)
    # A part that is all of the common factors is one element of the shared axis.
    if not axes:
        return (1,)
    if len(axes) > 1:
        return None
    term: list[DimFactor] = []
    has_ended = False
    for factor in axes[0]:
        is_own = factor not in common and factor != 1
        if is_own and has_ended:
            return None  # a common factor stands in between
        if is_own:
            term.append(factor)
        elif term:
            has_ended = True
    return tuple(term)


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

    Where it has more or less than its share, by way of the share itself: whole -> share -> part.
    """
    if not part.told.fills:
        relation = relate(cut, part.row, part.told, known)
        if isinstance(relation, Mismatch):
            return relation
        return relation.cells(whole.number, part.number)
    # What is wrong with the part is nearer to what its author wrote, so it is looked at first.
    rest = relate(cut.row, part.row, part.told, known)
    if isinstance(rest, Mismatch):
        return rest
    share = relate(cut, cut.row, UNTOLD, known)
    if isinstance(share, Mismatch):
        return share
    try:
        onward = rest.cells(_BETWEEN, part.number)
        return tuple(composed_if_known(share.cells(whole.number, _BETWEEN), onward, known))
    except UndecidedError as found:
        return undecided(whole.row, part.row, found)


def _unlike(found: Mismatch, whole: Row, cut: Row, part: Row) -> Mismatch:
    """The fault of a part that is not what it is of the whole.

    It stands at the whole, and speaks of no side: the whole may be on either.
    """
    expected = f"{cut.stored} in {'/'.join(part.path)}, a part of it"
    return dataclasses.replace(
        found, path="/".join(whole.path), expected=expected, found=str(part.stored)
    )


def _with_level(row: Row, level: int, repeat: Repeat) -> Row:
    repeats = [*row.repeats]
    repeats[level] = repeat
    return dataclasses.replace(row, repeats=tuple(repeats))
