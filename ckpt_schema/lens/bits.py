"""Where two arrays differ in any bit, found on the devices that they are on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ckpt_schema import leaves

__all__ = ["difference"]


def difference(first: Any, second: Any) -> tuple[str, str, str] | None:
    """The first index at which two arrays of one shape and dtype differ, and what each has there; None where they do not.

    Example:
        >>> difference(np.float32([1, 0.0]), np.float32([1, -0.0]))
        ('1', '0.0 (0x00000000)', '-0.0 (0x80000000)')
    """
    a, b = _together(first, second)
    if not bool(_local(_program(_differ, a.sharding)(a, b))):
        return None
    index, *values = (_local(x) for x in _program(_first, a.sharding)(a, b))
    here, there = map(_shown, values)
    return " ".join(map(str, index)), here, there


def _together(first: Any, copy: Any) -> tuple[jax.Array, jax.Array]:
    """Both as jax arrays on the same devices."""
    a = first if isinstance(first, jax.Array) else jnp.asarray(first)
    return a, leaves.placed(copy, a.sharding)


@functools.lru_cache(maxsize=64)
def _program(function: Callable[..., Any], sharding: Any) -> Any:
    """A function jitted, with results that every host has; on an explicit mesh, a sharded axis is not indexed otherwise."""
    if not isinstance(sharding, NamedSharding):
        return jax.jit(function)
    whole = NamedSharding(sharding.mesh, PartitionSpec())
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return jax.jit(function, out_shardings=whole)
    automatic: Any = jax.sharding.auto_axes(function, out_sharding=whole)
    return jax.jit(automatic)


def _differ(a: jax.Array, b: jax.Array) -> jax.Array:
    return _unlike(a, b).any()


def _first(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The first index at which two arrays that differ do so, and what they have there."""
    mask, index = _unlike(a, b), list[Any]()
    for _ in range(a.ndim):
        index.append(jnp.argmax(mask.any(axis=tuple(range(1, mask.ndim)))))
        mask = mask[index[-1]]
    values = (_data(x[tuple(index)]) for x in (a, b))
    return jnp.array(index, "int32"), *values


def _unlike(a: jax.Array, b: jax.Array) -> jax.Array:
    """Where two arrays differ in any bit."""
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        return (_data(a) != _data(b)).any(axis=-1)
    if jnp.issubdtype(a.dtype, jnp.complexfloating):
        return _unlike(a.real, b.real) | _unlike(a.imag, b.imag)
    if jnp.issubdtype(a.dtype, jnp.floating):
        bits = jnp.dtype(f"uint{jnp.finfo(a.dtype).bits}")
        a, b = (jax.lax.bitcast_convert_type(x, bits) for x in (a, b))
    return a != b


def _data(value: Any) -> Any:
    return jax.random.key_data(value) if jnp.issubdtype(value.dtype, jax.dtypes.prng_key) else value


def _local(value: jax.Array) -> np.ndarray[Any, Any]:
    return np.asarray(value.addressable_data(0))


def _shown(value: np.ndarray[Any, Any]) -> str:
    """A value and its bits: two floats may print alike and not be the same."""
    return f"{value} (0x{value.tobytes()[::-1].hex()})"
