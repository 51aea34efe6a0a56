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
    guesses: dict[str, None] = {}  # rules to paste; an empty one where nothing is guessed
    # For a row of either side, the first row that it is joined with: a later one makes it a copy.
    originals: tuple[dict[int, Row], dict[int, Row]] = {}, {}
    for join in lens.joins:
        here, there = join.pairs[0]
        before, after = lens.source.rows[here], lens.view.rows[there]
        first_after = originals[0].setdefault(here, after)
        first_before = originals[1].setdefault(there, before)
        if not join.plain:
            continue
        # A copy has the order of its original, unless a rule says another.
        if first_after is after and first_before is before:
            guesses[guessed(before, after, join.told, turned=turned)] = None
        elif join.told.axes is None:
            guesses[guessed_tie(before, first_before) or guessed_tie(after, first_after)] = None
    lines = "".join(f"\n  {line}" for line in guesses if line)
    if lines:
        header = (
            "{} and {} have square leaves, whose sizes do not show the order of their axes. They "
            "were joined without a transpose. If that is right, put these rules in the place of those "
            "that then decide nothing; if a leaf is transposed, exchange the numbers of its axes:"
        ).format(*called(lens.source, lens.view))
        warn(header + lines, AxesWarning)


def _is_turned(join: Join) -> bool:
    """Whether a rule says that the sides order the axes of a leaf, which is no copy, in two ways."""
    axes = join.told.axes
    return axes is not None and list(axes) != sorted(axes) and not any(join.compares)
