"""What is known of sizes beyond that a dim is at least 1: what is padded is no shorter, and of a rest there may be none."""

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
        there: By name.
        back: By the name of what is put in.
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
            for digit in cell.geometry.digits if cell.is_constant else ():
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
    return cells_.composed(_known(one, known), _known(other, known))


def _known(cells: Iterable[Cell], sizes: Mapping[str, Size]) -> list[Cell]:
    """Cells with what is known put in for names."""
    return [cell.where(sizes) for cell in cells]


def _rests(rows: Iterable[Row]) -> set[str]:
    """The names that count what is left of a list: there may be none."""
    names: set[str] = set()
    for dim in {repeat.size for row in rows for repeat in row.repeats}:
        for factor in dim:
            if isinstance(factor, Sum):
                names |= {str(term[0]) for term in factor.terms if _is_name(term)}
    return names


def _is_name(dim: Dim) -> bool:
    return len(dim) == 1 and isinstance(dim[0], str)


def _read_bound(more: Size, there: dict[str, Size], back: dict[str, Size]) -> None:
    """Reads, off how much longer a padded axis is, that it is no shorter: its name becomes the other size and a slack."""
    if more.nonnegative:
        return
    # The first name that stands alone is the longer axis: "padded" of "padded - vocab".
    for names, count in more.terms:
        least = Size.of(names[0]) - more if count == 1 and len(names) == 1 else None
        if least is not None and names[0] not in there and names[0] not in least.names:
            there[names[0]] = least.where(there) + slack(names[0])
            back[str(slack(names[0]))] = more
            return
