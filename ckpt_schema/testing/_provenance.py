"""Where an element of a result comes from, as an oracle tells it, and what became of its number."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from ckpt_schema.testing._named_arrays import Ids

__all__ = ["Line", "Origin", "is_alike", "order_of_copy"]


@dataclasses.dataclass(frozen=True)
class Line:
    """A number times a factor, plus an amount, each step of which may be rounded.

    Attributes:
        factor: The factor.
        amount: What is added.
        reach: How large what was added on the way may have been: what is rounded, though it is taken off again.
        dtypes: What is rounded to on the way; none where each bit is kept.
    """

    factor: float = 1.0
    amount: float = 0.0
    reach: float = 0.0
    dtypes: frozenset[str] = frozenset()

    def then(self, after: Line, exponent: int) -> Line:
        """This, then a power of two, then another line."""
        by = after.factor * 2.0**exponent
        # An `Origin` tells the power of two apart: here it scales what was added before it.
        return Line(
            self.factor * after.factor,
            self.amount * by + after.amount,
            self.reach * abs(by) + after.reach,
            self.dtypes | after.dtypes,
        )

    def back(self, exponent: int) -> Line:
        """The way back from this, which came after a power of two."""
        # y = x * 2**e * f + a, and so x = y * 2**-e / f - a / (f * 2**e).
        by = 1 / (self.factor * 2.0**exponent)
        return Line(1 / self.factor, -self.amount * by, self.reach * abs(by), self.dtypes)


@dataclasses.dataclass(frozen=True, eq=False)
class Origin:
    """Where the leaves of a row come from.

    Attributes:
        ids: For each element of all its leaves, unrolled levels first, the number of an element of the other layout, where
            those are counted through its rows and their leaves; or ``-2 - n`` where it is the fill of number n.
        rows: The rows of the other layout that it comes from.
        exponent: What its floats are multiplied by, a power of two.
        fills: What padding holds.
        line: What becomes of them after that.
    """

    ids: Ids
    rows: tuple[int, ...]
    exponent: int = 0
    fills: tuple[float, ...] = ()
    line: Line = dataclasses.field(default_factory=Line)


def order_of_copy(
    order: tuple[int, ...] | None, tied: tuple[int, ...] | None, *, on_source: bool
) -> tuple[int, ...] | None:
    """Which axis of a row of the source each of the view is, where one of both is a copy with its axes in another order.

    Args:
        order: The same of what it is a copy of; as they stand unless given.
        tied: Which axis of the copy each of that is.
        on_source: Whether the copy is the source's.
    """
    if tied is None:
        return order
    order = order or tuple(range(len(tied)))
    # Axis 0 of the view is axis order[0] of what the copy is of, and that is axis tied[order[0]].
    if on_source:
        return tuple(tied[axis] for axis in order)
    # The other way round it takes the inverse: which axis of the original each of the copy is.
    places = [tied.index(at) for at in range(len(tied))]
    return tuple(order[place] for place in places)


def is_alike(line: Line, expected: np.ndarray[Any, Any], found: np.ndarray[Any, Any]) -> bool:
    """Whether numbers are those expected, each step having been rounded to one of its dtypes."""
    if expected.shape != found.shape:
        return False
    # The coarsest of the dtypes sets the measure: a few of its roundings, by a few steps.
    unit = least = 0.0
    for dtype in line.dtypes:
        info = jnp.finfo(dtype)
        unit = max(unit, 4 * float(info.eps))
        least = max(least, 4 * float(info.smallest_subnormal))
    with np.errstate(invalid="ignore"):
        numbers = found.astype(np.longdouble)
        far = np.abs(numbers - expected)
        within = far <= unit * (np.abs(expected) + line.reach) + least
        alike = within | (numbers == expected) | (np.isnan(numbers) & np.isnan(expected))
    return bool(alike.all())
