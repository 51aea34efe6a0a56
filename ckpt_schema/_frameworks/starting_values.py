"""What a transformation starts with, where that is one number whatever the params are: found by running it."""

from __future__ import annotations

import numpy as np

from ckpt_schema._frameworks.benches import NoBench, benches_of
from ckpt_schema._layouts.table import Layout, Row

__all__ = ["starting_value"]


def starting_value(layout: Layout, row: Row) -> float | int | bool | None:
    """The number that every element of a row starts with; None where there is none.

    Args:
        layout: The layout, which knows its transformation.
        row: A row of it that mirrors a param.

    Example:
        >>> import ckpt_schema as cs, optax
        >>> from jaxtyping import Array, Float32
        >>> class Body(cs.Schema):
        ...     w: Float32[Array, "a b"]
        >>> state = cs.linen.TrainState[Body, optax.adagrad(1e-3, initial_accumulator_value=0.5)]
        >>> [starting_value(state, row) for row in state.rows if row.mirrors]
        [0.5]
    """
    for start, bench in benches_of(layout):
        if row.mirrors not in start.trained or isinstance(bench, NoBench):
            continue
        starts: list[np.ndarray[tuple[int], np.dtype[np.generic]]] = []
        # Two draws of params: what copies a param starts with other values in each.
        for seed in (0, 1):
            state = bench.init(bench.drawn(seed))
            for number, value in zip(bench.rows, state, strict=True):
                if number is not None and bench.table[number].path == row.path:
                    starts.append(np.ravel(np.asarray(value)))
        values = np.concatenate(starts) if starts else np.zeros(0)
        # Bytes tell 0.0 and -0.0 apart, and a NaN equals itself.
        if values.size and len({value.tobytes() for value in values}) == 1:
            return values[0].item()
    return None
