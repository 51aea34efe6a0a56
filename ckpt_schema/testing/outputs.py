"""The law that two models compute the same: whatever names and shapes agree on, leaves that are alike may be exchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ckpt_schema.equality import flatten
from ckpt_schema.errors import Mismatch
from ckpt_schema.lens.core import Lens
from ckpt_schema.paths import format_path
from ckpt_schema.testing.laws import LawError
from ckpt_schema.trees import Tree

__all__ = ["Outputs", "function"]

Outputs = tuple[Callable[[Any], Any], Callable[[Any], Any]]
"""What the model of the source computes with a state, and what that of the view does: arrays or numbers in any containers."""
_NOISE = 0.1


def function(lens: Lens, s: Tree, v: Tree | None, outputs: Outputs, tolerance: float) -> None:
    """``g(get(s, onto=v))`` is ``f(s)``, where every float of ``s`` has been moved, as far as rounding lets two models agree.

    Args:
        lens: The lens.
        s: A concrete state of the source, such as training begins with.
        v: One of the view, whose container and private leaves are taken; defaults without.
        outputs: ``f`` and ``g``.
        tolerance: By how much outputs may differ, as a ratio to the greatest of them.

    Raises:
        LawError: With every output that is another, is not finite, or is the same whatever the state.
    """
    f, g = outputs
    moved = [_moved(s, seed) for seed in range(2)]
    expected = [flatten(f(state)) for state in moved]
    found = [flatten(g(lens.get(state, onto=v))) for state in moved]
    names = [format_path(key) for key in expected[0].keys]
    if any(each.keys != expected[0].keys for each in found):
        raise LawError(
            "the models have other outputs",
            [Mismatch("", "outputs", str(names), str(found[0].keys))],
        )
    both = zip(names, *(each.leaves for each in (*expected, *found)), strict=True)
    faults = [
        fault
        for name, *values in both
        for fault in _faults(name, [np.asarray(x) for x in values], tolerance)
    ]
    if faults:
        hint = (
            "are leaves of one shape exchanged, or dims of one size? Do both run without dropout?"
        )
        raise LawError("the models compute different things", faults, [hint])


def _faults(name: str, values: list[Any], tolerance: float) -> Iterator[Mismatch]:
    """The values are those of the source for two states, and those of the view for the same."""
    first, second, *others = values
    if any(x.shape != first.shape for x in values):
        yield Mismatch(name, "outputs", f"the shape {first.shape}", str(others[0].shape))
    elif not all(np.isfinite(x).all() for x in values):
        yield Mismatch(name, "outputs", "finite numbers", "others")
    elif np.array_equal(first, second):
        yield Mismatch(
            name,
            "outputs",
            "what depends on the state",
            "the same for two states",
            "use the state that is given",
        )
    else:
        off = max(
            float(np.max(np.abs(x - y), initial=0.0))
            for x, y in zip((first, second), others, strict=True)
        )
        greatest = max(float(np.max(np.abs(x), initial=0.0)) for x in (first, second))
        if off > tolerance * greatest:
            yield Mismatch(
                name,
                "outputs",
                f"what the source computes, up to {greatest:.4g}",
                f"a difference of {off:.4g}",
            )


def _moved(tree: Tree, seed: int) -> Tree:
    """The tree with every float a little greater: no bias is zero, no scale is one, and what may not be negative is not.

    Counters are ahead of each other by a few steps.
    """
    rng = np.random.default_rng(seed)

    def move(x: Any) -> Any:
        if not isinstance(x, (jax.Array, np.ndarray)):
            return x
        if jnp.issubdtype(x.dtype, jnp.integer) and not x.ndim:
            more = np.asarray(rng.integers(0, 8), x.dtype)
        elif jnp.issubdtype(x.dtype, jnp.floating):
            more = np.asarray(_NOISE * rng.random(x.shape), x.dtype)
        else:
            return x
        return jax.device_put(x + more, x.sharding) if isinstance(x, jax.Array) else x + more

    return jax.tree.map(move, tree)
