"""A product of two narrow leaves, added to a leaf or taken off it: computed whole, and the same on every mesh.

``kernel + (alpha / r) * A @ B``, where A is ``[in r]`` and B ``[r out]``: `fold_arithmetic` calls it
for the rule `lora`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ckpt_schema._compat import Tracer
from ckpt_schema._layouts import leaves
from ckpt_schema._lens.arrays.block_scales import by_shards
from ckpt_schema._trees import placement
from ckpt_schema._trees.jitted import Program

__all__ = ["with_low_rank"]


def with_low_rank(
    base: Any, narrow: Sequence[Any], subscripts: str, alpha: float, dtype: str, *, is_sum: bool
) -> tuple[Any, bool]:
    """A leaf with a product of two others added, or taken off; and whether what is made is finite.

    The product is contracted on one device, of all of both: so its bits are those of one program,
    whatever the leaf is sharded over. It is computed in float32, or float64 where the leaf is that,
    and the sum is rounded once.

    Args:
        base: The leaf; the result is where it is.
        narrow: The two others, in the order of the subscripts.
        subscripts: Which axis is which, as ``einsum`` takes them: ``"ri,or->oi"``.
        alpha: What the product is multiplied by, over the size of the axis that is contracted.
        dtype: That of the leaf.
        is_sum: Whether the product is added.
    """
    wide = str(jnp.promote_types("float32", dtype))
    factor = (1 if is_sum else -1) * alpha / _rank(narrow, subscripts)
    step = _stepper(subscripts, factor, wide)
    if any(isinstance(each, Tracer) for each in (base, *narrow)):
        return _traced(step, base, narrow), True
    if leaves.is_narrowed(wide):  # jax has no such arrays: NumPy computes
        parts = [placement.gathered(each).astype(wide) for each in narrow]
        product: Any = np.einsum(subscripts, *parts) * factor
    else:
        here = jax.local_devices()[0]
        parts = [jax.device_put(placement.gathered(each), here) for each in narrow]
        product = _program(subscripts, factor, wide)(*parts)
    if not isinstance(base, jax.Array):
        with np.errstate(all="ignore"):
            made = _added(np.asarray(base), np.asarray(product))
    else:
        made = by_shards(
            placement.near(base),
            lambda data, index: _ADDED(data, jax.device_put(product[index], data.device)),
        )
        if made is None:
            return _traced(step, base, narrow), True
        made = placement.in_memory(made, base.sharding.memory_kind)
    return made, _is_finite(made, base, *narrow)


def _traced(step: Any, base: Any, narrow: Sequence[Any]) -> Any:
    # Fused with the sum, the product might be kept in more digits than the program alone gives it.
    product = jax.lax.optimization_barrier(step(*map(jnp.asarray, narrow)))
    return _added(jnp.asarray(base), product)


def _rank(narrow: Sequence[Any], subscripts: str) -> int:
    """The size of the axis that is contracted: ``r`` of ``"ri,or->oi"``."""
    inputs, output = subscripts.split("->")
    first, second = inputs.split(",")
    contracted = (set(first) & set(second)) - set(output)
    return narrow[0].shape[first.index(contracted.pop())]


def _stepper(subscripts: str, factor: float, wide: str) -> Any:
    def step(first: Any, second: Any) -> Any:
        both = first.astype(wide), second.astype(wide)
        product = jnp.einsum(subscripts, *both, precision=jax.lax.Precision.HIGHEST)
        return jax.lax.optimization_barrier(product) * np.asarray(factor, wide)

    return step


@functools.lru_cache(maxsize=256)
def _program(subscripts: str, factor: float, wide: str) -> Program:
    return Program(_stepper(subscripts, factor, wide))


def _added(base: Any, product: Any) -> Any:
    return (base.astype(product.dtype) + product).astype(base.dtype)


_ADDED = Program(_added)


def _is_finite(made: Any, *parts: Any) -> bool:
    """Whether what is made is finite, where all is that it is made of."""
    return _all_finite(made) or not all(map(_all_finite, parts))


def _all_finite(value: Any) -> bool:
    if not isinstance(value, jax.Array):
        with np.errstate(all="ignore"):
            return bool(np.isfinite(np.asarray(value).astype(np.float64)).all())
    return bool(placement.gathered(_FINITE(placement.near(value))))


_FINITE = Program(lambda value: jnp.isfinite(value).all())
