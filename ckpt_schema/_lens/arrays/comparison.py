"""Where two arrays differ in any bit, found on the devices that they are on, or by NumPy where they are on none.

Every look at values comes here: what a cast loses, what stands in a padding, whether tied leaves are
equal, whether a leaf still is what a lens made of it. A NaN is equal to itself, and 0.0 is not -0.0.
"""

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
        found = _looked_for(_Beyond(axis, start), value, wanted)
    else:
        unlike = (octets(value) != octets(wanted)).any(axis=-1).reshape(value.shape)
        unlike[(*(slice(None),) * axis, slice(0, start))] = False
        found = _looked_through(unlike, value, np.broadcast_to(wanted, value.shape))
    if found is None:
        return None
    place, here, there = found
    index = [int(number) for number in place.split()]
    index[axis] -= start
    return " ".join(map(str, index)), here, there


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
    # Mostly they do not: the program that searches is not even compiled then.
    if not bool(_local(_program(_differ, where, a.sharding)(a, b))):
        return None
    index, *values = map(_local, _program(_first, where, a.sharding)(a, b))
    if jnp.issubdtype(a.dtype, jnp.floating):
        values = [value.view(a.dtype) for value in values]
    here, there = map(_shown, values)
    return " ".join(map(str, index)), here, there


def _looked_through(
    unlike: np.ndarray[Any, Any], a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]
) -> Difference | None:
    """The same of NumPy arrays, from where they differ."""
    if not unlike.any():
        return None
    index = np.unravel_index(int(unlike.argmax()), a.shape)
    here, there = _shown(np.asarray(a[index])), _shown(np.asarray(b[index]))
    return " ".join(map(str, index)), here, there


def _together(first: Any, copy: Any) -> tuple[Any, Any]:
    """Both as jax arrays on the same devices.

    As NumPy arrays where none is jax's, or jax would narrow the other.
    """
    if leaves.is_scalar(first) and leaves.is_scalar(copy):
        both = np.asarray([first, copy])  # of one dtype that holds both
        return both[:1].reshape(()), both[1:].reshape(())
    # A Python number has the dtype of the array that it is held against.
    dtype = (copy if leaves.is_scalar(first) else first).dtype
    a, b = _near(first, dtype), _near(copy, dtype)
    on_devices = [array for array in (a, b) if isinstance(array, jax.Array)]
    if not on_devices or leaves.is_narrowed(dtype):
        return placement.gathered(a), placement.gathered(b)
    # The first one stays where it is, if it is anywhere.
    if not isinstance(a, jax.Array):
        a = placement.placed(a, on_devices[0].sharding)
    return a, placement.placed(b, a.sharding)


def _near(value: Any, dtype: Any) -> Any:
    """A leaf in the memory of its devices; a Python number as an array."""
    return placement.near(np.asarray(value, dtype) if leaves.is_scalar(value) else value)


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
    mask = where(a, b)
    index: list[Any] = []
    # Axis by axis: one number for all elements would exceed int32 in a large leaf.
    for _ in range(a.ndim):
        index.append(jnp.argmax(mask.any(axis=tuple(range(1, mask.ndim)))))
        mask = mask[index[-1]]
    here, there = as_bits(_data(a)), as_bits(_data(b))
    if here.ndim:
        here = here[tuple(index)]
    if there.ndim:  # what is one value for all has no axis
        there = there[tuple(index)]
    return jnp.array(index, "int32"), here, there


def differs(a: jax.Array, b: jax.Array) -> jax.Array:
    """Where two arrays differ in any bit."""
    if leaves.is_typed_key(a):
        return (_data(a) != _data(b)).any(axis=-1)
    if jnp.issubdtype(a.dtype, jnp.complexfloating):
        return differs(a.real, b.real) | differs(a.imag, b.imag)
    return as_bits(a) != as_bits(b)


def _data(value: Any) -> Any:
    """A leaf, or the words of keys: a typed key cannot be compared."""
    return jax.random.key_data(value) if leaves.is_typed_key(value) else value


def _local(value: jax.Array) -> np.ndarray[Any, Any]:
    return np.asarray(value.addressable_data(0))


def _shown(value: np.ndarray[Any, Any]) -> str:
    """A value and its bits: two floats may print alike and not be the same."""
    # NumPy writes a number as a wider one, which tells of some NaNs.
    with np.errstate(invalid="ignore"):
        text = str(value)
    return f"{text} (0x{value.tobytes()[::-1].hex()})"
