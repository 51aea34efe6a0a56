"""What optax calls the moments that it keeps, and what they are of the gradient.

Laws hold lenses against this table. A lens does not read it: it finds degrees by running the
transformation.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["DEGREES"]

DEGREES: Mapping[str, int] = MappingProxyType(
    {"mu": 1, "nu": 2, "nu_max": 2, "trace": 1, "sum_of_squares": 2, "ema": 1, "grad_acc": 1}
)
"""How often a moment has the gradient as a factor, by its name."""
