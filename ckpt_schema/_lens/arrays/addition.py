"""Leaves that are added element by element, and what is left of a sum."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ckpt_schema._compat import Tracer
from ckpt_schema._layouts import leaves
from ckpt_schema._lens.arrays.comparison import difference, differs
from ckpt_schema._trees import placement
from ckpt_schema._trees.jitted import Program

__all__ = ["InfiniteError", "is_same", "minus", "one_of", "plus"]


class InfiniteError(Exception):
    """A sum of finite numbers is none."""


def plus(values: Sequence[Any], dtype: str) -> Any:
    """The sum of leaves of one shape and dtype, in the order in which they are given.

    Args:
        values: The leaves. The sum is where the first is, and abstract where one is.
        dtype: What Python's numbers among them are.

    Raises:
        InfiniteError: It is no finite number where the leaves are.

    Example:
        >>> plus([np.float32([1, 2]), np.float32([10, 20])], "float32")
        array([11., 22.], dtype=float32)
    """
    return functools.reduce(functools.partial(_computed, dtype, True), values)


def minus(total: Any, values: Sequence[Any], dtype: str) -> Any:
    """What is left of a sum without some of what was added; see `plus`."""
    return functools.reduce(functools.partial(_computed, dtype, False), values, total)


def _computed(dtype: str, is_sum: bool, first: Any, second: Any) -> Any:
    if leaves.is_abstract(first) or leaves.is_abstract(second):
        return leaves.abstract(first)
    one, other = (leaves.materialized(value, dtype) for value in (first, second))
    if isinstance(one, Tracer) or isinstance(other, Tracer):
        return one + other if is_sum else one - other
    if not isinstance(one, jax.Array):
        other = placement.gathered(other)
        with np.errstate(all="ignore"):
            made = np.asarray(one + other if is_sum else one - other, one.dtype)
        finite = np.isfinite(made) | ~np.isfinite(one) | ~np.isfinite(other)
    else:
        if not isinstance(other, jax.Array) or other.sharding != one.sharding:
            other = placement.placed(other, one.sharding)
        program = _SUM if is_sum else _DIFFERENCE
        made, finite = program(placement.near(one), placement.near(other))
        made = placement.placed(made, one.sharding)
    if not bool(placement.gathered(finite).all()):
        raise InfiniteError
    return made


def _with_check(made: Any, one: Any, other: Any) -> tuple[Any, Any]:
    return made, (jnp.isfinite(made) | ~jnp.isfinite(one) | ~jnp.isfinite(other)).all()


_SUM = Program(lambda one, other: _with_check(one + other, one, other))
_DIFFERENCE = Program(lambda one, other: _with_check(one - other, one, other))


def is_same(one: Any, other: Any) -> Any:
    """Whether two leaves are equal to the last bit; under a trace that is traced, and abstract leaves are not."""
    if one is other:
        return True
    both = one, other
    if any(leaves.is_abstract(each) or leaves.is_deleted(each) for each in both):
        return False
    if any(isinstance(each, Tracer) for each in both):
        pair = [jax.lax.stop_gradient(jnp.asarray(each)) for each in both]
        return ~differs(*pair).any()
    return difference(one, other) is None


def one_of(flag: Any, yes: Any, no: Any) -> Any:
    """One of two leaves, by a flag that may be traced."""
    return jnp.where(flag, yes, no) if isinstance(flag, Tracer) else yes if flag else no
