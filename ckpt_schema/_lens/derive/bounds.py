"""What is known of sizes beyond that a dim is at least 1: what is padded is no shorter, and of a rest there may be none.

Composition holds blocks against each other for all sizes. A size is at least 0 there if each dim
is 1 plus something; so a dim of which more is known, or less, is replaced by a name that is at
least 0, its *slack*, and put back in what comes out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from ckpt_schema._layouts.dims import Dim, Sum
from ckpt_schema._layouts.sizes import Size, UndecidedError, slack
from ckpt_schema._layouts.table import Row
from ckpt_schema._lens import cells as cells_
from ckpt_schema._lens.cells import Cell

__all__ = ["SizeBounds", "composed_if_known"]


@dataclasses.dataclass(frozen=True, slots=True)
class SizeBounds:
    """What is put in for names that are at least another size, or may be 0; and the way back.

    Attributes:
        there: By name: that ``padded`` is ``vocab`` and a slack.
        back: By the name of what is put in: that this slack is ``padded - vocab``.
    """

    there: Mapping[str, Size]
    back: Mapping[str, Size]

    @classmethod
    def of(cls, rows: Iterable[Row], cells: Iterable[Cell]) -> SizeBounds:
        """What rows say of the rests of lists, and cells of padding."""
        there: dict[str, Size] = {}
        back: dict[str, Size] = {}
        for name in _rests(rows):
            there[name] = slack(name)
            back[str(slack(name))] = Size.of(name)
        # A cell of padding has a digit as long as the padding, and no lens has less than none of it.
        for cell in cells:
            if cell.is_constant:
                for digit in cell.geometry.digits:
                    _read_bound(digit.size, there, back)
        return cls(there, back)

    def composed(self, first: Iterable[Cell], second: Iterable[Cell]) -> list[Cell]:
        """The cells from end to end.

        Raises:
            UndecidedError: Which elements meet depends on the sizes.
            ContradictionError: What the first fills in is not what the second cuts off.
        """
        before, after = _known(first, self.there), _known(second, self.there)
        return _known(cells_.composed(before, after), self.back)


def composed_if_known(
    first: Iterable[Cell], second: Iterable[Cell], known: Mapping[str, Size]
) -> list[Cell]:
    """The cells from end to end, for all sizes if that can be; or else for those that are known.

    Raises:
        UndecidedError: Which elements meet depends on the sizes.
        ContradictionError: What the first fills in is not what the second cuts off.
    """
    one, other = [*first], [*second]  # each is read twice
    bounds = SizeBounds.of((), [*one, *other])
    try:
        return bounds.composed(one, other)
    except UndecidedError:
        if not known:
            raise
    # Last, for such cells are right for these sizes alone.
    return cells_.composed(_known(one, known), _known(other, known))


def _known(cells: Iterable[Cell], sizes: Mapping[str, Size]) -> list[Cell]:
    """Cells with what is known put in for names."""
    return [cell.where(sizes) for cell in cells]


def _rests(rows: Iterable[Row]) -> set[str]:
    """The names that count what is left of a list: there may be none."""
    # All layers of a stack have the same repeats, so most of them were seen before.
    counts: set[Dim] = set()
    for row in rows:
        for repeat in row.repeats:
            counts.add(repeat.size)
    names: set[str] = set()
    for count in counts:
        for factor in count:
            for term in factor.terms if isinstance(factor, Sum) else ():
                # Of 6*blocks+rest only the rest may be none: a dim that counts blocks is at least 1.
                if len(term) == 1 and isinstance(term[0], str):
                    names.add(term[0])
    return names


def _read_bound(more: Size, there: dict[str, Size], back: dict[str, Size]) -> None:
    """Reads, off how much longer a padded axis is, that it is no shorter: its name becomes the other size and a slack."""
    if more.nonnegative:  # of vocab+64 there is nothing to be read
        return
    # The first name that stands alone is the longer axis: "padded" of "padded - vocab".
    for names, count in more.terms:
        if count != 1 or len(names) != 1 or names[0] in there:
            continue
        longer = names[0]
        least = Size.of(longer) - more
        # A size that has the name in it grows with it, and is no bound.
        if longer not in least.names:
            there[longer] = least.where(there) + slack(longer)
            back[str(slack(longer))] = more
            return
