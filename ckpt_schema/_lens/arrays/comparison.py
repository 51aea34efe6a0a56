"""Where two arrays differ in any bit, found on the devices that they are on, or by NumPy where they are on none."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ckpt_schema._layouts import leaves
from ckpt_schema._trees import placement
from ckpt_schema._trees.jitted import Program
from ckpt_schema._trees.placement import as_bits, octets

__all__ = ["difference", "differs", "stray"]

Difference = tuple[str, str, str]
"""An index, and what each of two arrays has there."""


def difference(first: Any, second: Any) -> Difference | None:
    """The first index at which two arrays of one shape and dtype differ, and what each has there.

    None where they do not.

    Example:
        >>> difference(np.float32([1, 0.0]), np.float32([1, -0.0]))
        ('1', '0.0 (0x00000000)', '-0.0 (0x80000000)')
    """
    a, b = _together(first, second)
    if isinstance(a, jax.Array):
        return _looked_for(differs, a, b)
    return _looked_through((octets(a) != octets(b)).any(axis=-1).reshape(a.shape), a, b)


def stray(value: Any, fill: Any, axis: int, start: int) -> Difference | None:
    """The first index from ``start`` on, counted from there, at which an array is not filled with ``fill``.

    Nothing is sliced: an axis that is sharded need not divide there.

    Example:
        >>> stray(np.float32([1, 0.0, -0.0]), 0.0, axis=0, start=1)
        ('1', '-0.0 (0x80000000)', '0.0 (0x00000000)')
    """
    wanted = np.asarray(fill, value.dtype)
    if isinstance(value, jax.Array):
        place = _looked_for(_Beyond(axis, start), value, wanted)
    else:
        unlike = (octets(value) != octets(wanted)).any(axis=-1).reshape(value.shape)
        unlike[(*(slice(None),) * axis, slice(0, start))] = False
        place = _looked_through(unlike, value, np.broadcast_to(wanted, value.shape))
    if place is None:
        return None
    index = [int(at) - start * (axis == number) for number, at in enumerate(place[0].split())]
    return " ".join(map(str, index)), *place[1:]


@dataclasses.dataclass(frozen=True, slots=True)
class _Beyond:
    """Where two arrays differ from an index of an axis on."""

    axis: int
    start: int

    def __call__(self, a: jax.Array, b: jax.Array) -> jax.Array:
        return differs(a, b) & (jax.lax.broadcasted_iota("int32", a.shape, self.axis) >= self.start)


def _looked_for(where: Callable[..., Any], a: jax.Array, b: Any) -> Difference | None:
    """The first index at which two arrays differ where they are looked at.

    The second may be one value for all.
    """
    if not bool(_local(_program(_differ, where, a.sharding)(a, b))):
        return None
    index, *values = (_local(x) for x in _program(_first, where, a.sharding)(a, b))
    floats = jnp.issubdtype(a.dtype, jnp.floating)
    here, there = (_shown(value.view(a.dtype) if floats else value) for value in values)
    return " ".join(map(str, index)), here, there


def _looked_through(
    unlike: np.ndarray[Any, Any], a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]
) -> Difference | None:
    """The same of NumPy arrays, from where they differ."""
    if not unlike.any():
        return None
    index = np.unravel_index(int(unlike.argmax()), a.shape)
    here, there = (_shown(np.asarray(x[index])) for x in (a, b))
    return " ".join(map(str, index)), here, there


def _together(first: Any, copy: Any) -> tuple[Any, Any]:
    """Both as jax arrays on the same devices.

    As NumPy arrays where none is jax's, or jax would narrow the other.
    """
    if leaves.is_scalar(first) and leaves.is_scalar(copy):
        both = np.asarray([first, copy])
        return both[:1].reshape(()), both[1:].reshape(())
    dtype = (copy if leaves.is_scalar(first) else first).dtype
    pair = [np.asarray(x, dtype) if leaves.is_scalar(x) else x for x in (first, copy)]
    pair = [placement.near(x) for x in pair]
    sharded = next((x.sharding for x in pair if isinstance(x, jax.Array)), None)
    if sharded is None or leaves.is_narrowed(dtype):
        return placement.gathered(pair[0]), placement.gathered(pair[1])
    a, b = (x if isinstance(x, jax.Array) else placement.placed(x, sharded) for x in pair)
    return a, placement.placed(b, a.sharding)


@functools.lru_cache(maxsize=64)
def _program(what: Callable[..., Any], where: Callable[..., Any], sharding: Any) -> Any:
    """A function jitted, with results that every host has.

    On an explicit mesh, a sharded axis is not indexed otherwise.
    """
    function = functools.partial(what, where)
    if not isinstance(sharding, NamedSharding):
        return Program(function)
    whole = NamedSharding(sharding.mesh, PartitionSpec())
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return Program(function, out_shardings=whole)
    automatic: Any = jax.sharding.auto_axes(function, out_sharding=whole)
    return Program(automatic)


def _differ(where: Callable[..., Any], a: jax.Array, b: jax.Array) -> jax.Array:
    return where(a, b).any()


def _first(
    where: Callable[..., Any], a: jax.Array, b: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The first index at which two arrays that differ do so, and what they have there."""
    mask, index = where(a, b), list[Any]()
    for _ in range(a.ndim):
        index.append(jnp.argmax(mask.any(axis=tuple(range(1, mask.ndim)))))
        mask = mask[index[-1]]
    values = (x[tuple(index)] if x.ndim else x for x in (as_bits(_data(a)), as_bits(_data(b))))
    return jnp.array(index, "int32"), *values


def differs(a: jax.Array, b: jax.Array) -> jax.Array:
    """Where two arrays differ in any bit."""
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        return (_data(a) != _data(b)).any(axis=-1)
    if jnp.issubdtype(a.dtype, jnp.complexfloating):
        return differs(a.real, b.real) | differs(a.imag, b.imag)
    return as_bits(a) != as_bits(b)


def _data(value: Any) -> Any:
    return jax.random.key_data(value) if jnp.issubdtype(value.dtype, jax.dtypes.prng_key) else value


def _local(value: jax.Array) -> np.ndarray[Any, Any]:
    return np.asarray(value.addressable_data(0))


def _shown(value: np.ndarray[Any, Any]) -> str:
    """A value and its bits: two floats may print alike and not be the same."""
    with np.errstate(
        invalid="ignore"
    ):  # NumPy writes a number as a wider one, which tells of some NaNs
        text = str(value)
    return f"{text} (0x{value.tobytes()[::-1].hex()})"
