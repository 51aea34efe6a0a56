"""Rows of which one side has more: a padded axis, new layers, factors that repeat.

`relations` takes off here what a rule says is padding, and holds what is left against the other side.
What was taken off is not forgotten: it stands in the row part, and becomes a constant of the join.

    vocab=50257 here, padded=50304 there  ->  50257 of both are one, the last 47 there are the fill
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts import leaves
from ckpt_schema._layouts.dims import Dim
from ckpt_schema._layouts.table import Row
from ckpt_schema._lens import spellings
from ckpt_schema._lens.cells import Geometry
from ckpt_schema._lens.derive.axis_names import fault
from ckpt_schema._lens.derive.leaf_rules import PaddedAxis, Told
from ckpt_schema._lens.derive.named_axes import one_of_several
from ckpt_schema._lens.derive.repeats import Once, repeated_by
from ckpt_schema._lens.derive.row_parts import RowPart, places_of
from ckpt_schema._lens.derive.row_spellings import leaf_tokens, level_tokens, spelled_row
from ckpt_schema.errors import Mismatch

__all__ = ["fills_of", "stripped", "unpadded"]


def unpadded(source: RowPart, view: RowPart, told: Told) -> tuple[RowPart, RowPart] | Mismatch:
    """Both rows without what rules say is padding."""
    inner = [source, view]
    for ours, theirs in told.ends:
        for side, fill in _padded_sides(inner, ours, theirs, told):
            row = inner[side].row
            spots = places_of(row, fill.large)
            if len(spots) > 1:
                return fault(source.row, view.row, "ambiguous", one_of_several(row, fill.large))
            wrong = _unfilled(source.row, view.row, fill)
            if wrong is not None:
                return wrong
            # The next rule speaks of what is left: one axis may be padded twice, by two of them.
            inner[side] = inner[side].cut(*spots[0], fill)
    return inner[0], inner[1]


def _padded_sides(
    inner: Sequence[RowPart], ours: PaddedAxis, theirs: PaddedAxis, told: Told
) -> list[tuple[int, PaddedAxis]]:
    """Which of both rows are cut to the size without padding, and what theirs holds.

    One is, where the other has that size, or is cut to it by another rule; and both, where a rule
    speaks of padding that both have.
    """
    is_large_here = bool(places_of(inner[0].row, ours.large))
    is_large_there = bool(places_of(inner[1].row, theirs.large))
    if is_large_here and is_large_there:
        return [(0, ours), (1, theirs)]
    # The size without padding, or another that is padded from it: "vocab", or "padded_to_128".
    same_inside = {ours.small}
    for fill in told.fills:
        if fill.small == ours.small:
            same_inside.add(fill.large)
    if is_large_here and _has_any(inner[1].row, same_inside):
        return [(0, ours)]
    if is_large_there and _has_any(inner[0].row, same_inside):
        return [(1, theirs)]
    return []


def _has_any(row: Row, dims: Iterable[Dim]) -> bool:
    """Whether a row has any of some dims."""
    return any(places_of(row, dim) for dim in dims)


def _unfilled(source: Row, view: Row, fill: PaddedAxis) -> Mismatch | None:
    """Why a leaf cannot be padded so."""
    small, large = dims_.size_of(fill.small, {}), dims_.size_of(fill.large, {})
    # Names have no size yet: what they say of each other is seen when sizes are bound.
    if small is not None and large is not None and small > large:
        why = f"{small} cannot be padded to {large}, which is less"
        return fault(source, view, "dims", why)
    default = fill.rest.value
    if isinstance(default, leaves.Init):  # the transformation's own start fits
        return None
    assert isinstance(default, leaves.Default)
    dtype = source.leaf.dtype
    # The fill of a rule is a real number: of complex leaves, 0 alone is taken for meant.
    is_complex = dtype.startswith("complex") and fill.rest.is_fill and default != leaves.Fill(0)
    if leaves.holds(source.leaf, default) and not is_complex:
        return None
    why = f"{dtype} is not padded with {default}: give another fill="
    if not fill.rest.is_fill:
        why = f"{dtype} does not start with {default}: give it a rule of its own"
    return fault(source, view, "dtype", why)


def stripped(row: Row, told: Told, parts: Sequence[Row] = ()) -> Row:
    """A row as its parts have it: without what it has more of by rules, or with what these have more of."""
    part = RowPart(row)
    for fill, _ in told.ends:
        spots = places_of(part.row, fill.large)
        has_small = [bool(places_of(each, fill.small)) for each in parts]
        if not spots and parts and not any(has_small):
            # It is the parts that are padded: the whole becomes as large as they are together.
            spots = places_of(part.row, fill.small)
            fill = PaddedAxis(fill.large, fill.small, fill.rest)
        if len(spots) == 1:
            part = part.cut(*spots[0], fill)
    row = part.row
    for rule in told.repeats:
        spots = repeated_by(row, rule)
        # Several spots are a fault, which `relate` tells of this very row.
        if len(spots) == 1:
            row = Once(row, frozenset(spots)).row
    return row


def fills_of(side: int, part: RowPart) -> Iterator[tuple[int, Geometry, PaddedAxis]]:
    """What a row has in its padding: the side, the elements, and what these hold.

    Where the padding of two axes meets, it is of what was put on last.
    """
    padded = [within for within in part.within if within.fill is not None]
    if not padded:
        return
    # A view is padded in the order of the rules, and a source is cut in it: put on in the other.
    last_first = padded[::-1] if side else padded
    # A layer that the other side does not have is as its rule says, whatever else is padded in it.
    last_first.sort(key=lambda within: within.at[0] != "level")
    row = part.row
    words = leaves.key_words(row.leaf.dtype) if row.leaf.is_key else 0
    spelled = spelled_row(part, leaf_tokens(row), level_tokens(row), words)
    spots = tuple([spelled.spots[within] for within in last_first])
    regions = spellings.beside(spelled.spelling, spots)
    for within, region in zip(last_first, regions, strict=True):
        assert within.fill is not None
        yield side, region, within.fill
