"""Square leaves that were joined axis by axis, where only their equal sizes speak for it."""

from __future__ import annotations

from collections.abc import Mapping

from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.table import Row, called
from ckpt_schema._lens.derive.axis_names import guessed, guessed_tie, in_doubt
from ckpt_schema._lens.derive.middle import Joined
from ckpt_schema._messages.warned import warn
from ckpt_schema.errors import AxesWarning, DerivationError, Mismatch

__all__ = ["verify_squares"]


def verify_squares(lens: Joined) -> None:
    """Looks at all leaves that were joined axis by axis, where only their equal sizes speak for it.

    Those of one name are taken for the same leaf, unless a rule says of another that the sides order axes in two ways.

    Raises:
        DerivationError: With every such leaf of which a rule turns a namesake: a linear layer beside it has
            its ``weight`` turned to be a ``kernel``, so the order that was taken is probably the wrong one.

    Warns:
        AxesWarning: With all others.
    """
    turned = _turned(lens)
    guesses: dict[str, None] = {}  # rules to paste; an empty one where nothing is guessed
    doubts: dict[str, Mismatch] = {}  # by such a rule: what an optimizer keeps of a leaf is none
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
            guess = guessed(before, after, join.told, turned=bool(turned))
            order = turned.get(_names(before, after))
            if guess and order is not None:
                doubts.setdefault(guess, in_doubt(before, after, order))
            else:
                guesses[guess] = None
        elif join.told.axes is None:
            guesses[guessed_tie(before, first_before) or guessed_tie(after, first_after)] = None
    if doubts:
        header = "no lens from {} to {}".format(*called(lens.source, lens.view))
        raise DerivationError(header, [*doubts.values()])
    lines = "".join(f"\n  {line}" for line in guesses if line)
    if lines:
        header = (
            "{} and {} have square leaves, whose sizes do not show the order of their axes. They "
            "were joined without a transpose. If that is right, put these rules in the place of those "
            "that then decide nothing; if a leaf is transposed, exchange the numbers of its axes:"
        ).format(*called(lens.source, lens.view))
        warn(header + lines, AxesWarning)


def _turned(lens: Joined) -> Mapping[tuple[LogicalPath, LogicalPath], tuple[int, ...]]:
    """By the last names of a leaf on both sides, an order of axes by which a rule turns such a leaf."""
    orders: dict[tuple[LogicalPath, LogicalPath], tuple[int, ...]] = {}
    for join in lens.joins:
        axes = join.told.axes
        # A copy may be turned though the sides order axes alike.
        if axes is None or list(axes) == sorted(axes) or any(join.compares):
            continue
        here, there = join.pairs[0]
        orders.setdefault(_names(lens.source.rows[here], lens.view.rows[there]), axes)
    return orders


def _names(source: Row, view: Row) -> tuple[LogicalPath, LogicalPath]:
    """What a leaf itself is called on both sides, as ``weight`` and ``kernel``; a model of one array has no name."""
    return source.model_path[-1:], view.model_path[-1:]
