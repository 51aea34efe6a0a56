"""Square leaves that were joined axis by axis, where only their equal sizes speak for it."""

from __future__ import annotations

from ckpt_schema._layouts.table import Row, called
from ckpt_schema._lens.derive.axis_names import guessed, guessed_tie
from ckpt_schema._lens.derive.joins import Join
from ckpt_schema._lens.derive.middle import Joined
from ckpt_schema._messages.warned import warn
from ckpt_schema.errors import AxesWarning

__all__ = ["warn_of_squares"]


def warn_of_squares(lens: Joined) -> None:
    """Names all leaves that were joined axis by axis, where only their equal sizes speak for it.

    Those of one name are taken for the same leaf, unless a rule says of another that the sides order axes in two ways.
    """
    turned = any(map(_is_turned, lens.joins))
    found: dict[str, None] = {}
    originals: tuple[dict[int, Row], dict[int, Row]] = {}, {}
    for one in lens.joins:
        here, there = one.pairs[0]
        rows = lens.source.rows[here], lens.view.rows[there]
        # A copy has the order of its original, unless a rule says another.
        of = originals[0].setdefault(here, rows[1]), originals[1].setdefault(there, rows[0])
        if not one.plain:
            continue
        if of[0] is rows[1] and of[1] is rows[0]:
            found[guessed(*rows, one.told, turned=turned)] = None
        elif one.told.axes is None:
            found[guessed_tie(rows[0], of[1]) or guessed_tie(rows[1], of[0])] = None
    lines = [f"\n  {line}" for line in found if line]
    if lines:
        header = (
            "{} and {} have square leaves, whose sizes do not show the order of their axes. They "
            "were joined without a transpose. If that is right, put these rules in the place of those "
            "that then decide nothing; if a leaf is transposed, exchange the numbers of its axes:"
        ).format(*called(lens.source, lens.view))
        warn(header + "".join(lines), AxesWarning)


def _is_turned(join: Join) -> bool:
    """Whether a rule says that the sides order the axes of a leaf, which is no copy, in two ways."""
    axes = join.told.axes
    return axes is not None and list(axes) != sorted(axes) and not any(join.compares)
