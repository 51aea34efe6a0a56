"""What is computed of several leaves, and the parts of what was: sums, and what is left of them.

`fold_tasks` calls `whole_of` before a task and `unfolded_parts` after it. Here is which arithmetic a
kind of fold stands for; that of scales and of narrow factors is in modules of their own.
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
from ckpt_schema._lens.arrays.block_scales import dequantized, has_nan_exponents, requantized
from ckpt_schema._lens.arrays.blocks import Kind
from ckpt_schema._lens.arrays.low_rank import with_low_rank
from ckpt_schema._lens.fold_rules import Addition, FoldKind, Scaling
from ckpt_schema._trees import placement
from ckpt_schema._trees.jitted import Program

__all__ = ["InfiniteError", "unfolded_parts", "whole_of"]


class InfiniteError(Exception):
    """A sum of finite numbers is none, or a value has none that stands for it.

    Attributes:
        part: The number of the part that it is told of.
        found: What it is.
        hint: What to do.
    """

    def __init__(self, found: str = "", part: int = 0, hint: str = "") -> None:
        super().__init__(found)
        self.part, self.found = part, found or "one that is none"
        self.hint = hint or (
            "parts that are not computed with keep their values: give each a place of its own"
        )


def whole_of(kind: FoldKind, parts: Sequence[Any], kinds: Sequence[Kind]) -> Any:
    """What is computed of leaves, in the order in which they are given.

    Args:
        kind: What is computed.
        parts: The leaves. The whole is where the first is, and abstract where one is.
        kinds: What each is; Python's numbers among them become that.

    Raises:
        InfiniteError: It is no finite number where the leaves are.

    Example:
        >>> from ckpt_schema._lens.fold_rules import Addition
        >>> both = [np.float32([1, 2]), np.float32([10, 20])]
        >>> whole_of(Addition(), both, [Kind((2,), "float32")] * 2)
        array([11., 22.], dtype=float32)
    """
    dtypes = [each.dtype for each in kinds]
    if any(map(leaves.is_abstract, parts)):
        first = leaves.abstract(parts[0])
        dtype = leaves.dtype_of(kind.dtype(dtypes))
        # What shards the words of an axis shards the numbers in them.
        shape = kind.whole(first.shape) if isinstance(kind, Scaling) else first.shape
        return jax.ShapeDtypeStruct(shape, dtype, sharding=first.sharding)
    # From left to right: floats are not associative, and the way back takes them off in this order.
    if isinstance(kind, Addition):
        return functools.reduce(functools.partial(_computed, dtypes[0], True), parts)
    given = [leaves.materialized(part, dtype) for part, dtype in zip(parts, dtypes, strict=True)]
    if isinstance(kind, Scaling):
        if has_nan_exponents(given[1], dtypes[1]):
            hint = "its block stands for nothing: look for what has written the scale"
            raise InfiniteError("an exponent of 255, which is none", 1, hint)
        return _finite(*dequantized(given, kind, kinds))
    step = (kind.subscripts, kind.alpha, dtypes[0])
    return _finite(*with_low_rank(given[0], given[1:], *step, is_sum=True))


def _finite(made: Any, is_finite: bool) -> Any:
    if not is_finite:
        raise InfiniteError
    return made


def unfolded_parts(
    kind: FoldKind, whole: Any, others: Sequence[Any], kinds: Sequence[Kind]
) -> list[Any]:
    """The parts that the way back makes of what was computed of them.

    Args:
        kind: What was computed.
        whole: That.
        others: The parts that it does not make.
        kinds: What each of all the parts is.

    Raises:
        InfiniteError: One is no finite number where the whole is.
    """
    dtype = kinds[0].dtype
    if isinstance(kind, Addition):
        return [functools.reduce(functools.partial(_computed, dtype, False), others, whole)]
    if isinstance(kind, Scaling):
        made, fault = requantized(whole, kind, kinds)
        if fault:
            raise InfiniteError(fault)
        return made
    step = (kind.subscripts, kind.alpha, dtype)
    return [_finite(*with_low_rank(whole, others, *step, is_sum=False))]


def _computed(dtype: str, is_sum: bool, first: Any, second: Any) -> Any:
    """A sum or a difference, where the first of both is.

    Raises:
        InfiniteError: It is no finite number where both are.
    """
    one, other = leaves.materialized(first, dtype), leaves.materialized(second, dtype)
    if isinstance(one, Tracer) or isinstance(other, Tracer):
        return one + other if is_sum else one - other
    if not isinstance(one, jax.Array):
        other = placement.gathered(other)
        with np.errstate(all="ignore"):
            made = np.asarray(one + other if is_sum else one - other, one.dtype)
        # An infinity that was there before is nobody's fault.
        finite = np.isfinite(made) | ~np.isfinite(one) | ~np.isfinite(other)
    else:
        if not isinstance(other, jax.Array) or other.sharding != one.sharding:
            other = placement.placed(other, one.sharding)
        program = _SUM if is_sum else _DIFFERENCE
        made, finite = program(placement.near(one), placement.near(other))
        if isinstance(made, Tracer):  # within a trace no program is run
            return made
        made = placement.placed(made, one.sharding)
    if not bool(placement.gathered(finite).all()):
        raise InfiniteError
    return made


def _with_check(made: Any, one: Any, other: Any) -> tuple[Any, Any]:
    return made, (jnp.isfinite(made) | ~jnp.isfinite(one) | ~jnp.isfinite(other)).all()


_SUM = Program(lambda one, other: _with_check(one + other, one, other))
_DIFFERENCE = Program(lambda one, other: _with_check(one - other, one, other))
