"""Where leaves are: put on devices of other processes too, gathered from them, told in messages. No bit is lost on the way."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ckpt_schema._compat import Tracer, process_allgather
from ckpt_schema._layouts.leaves import is_typed_key
from ckpt_schema._trees.jitted import Program

__all__ = [
    "as_bits",
    "describe_shardings",
    "divides",
    "gathered",
    "in_memory",
    "near",
    "octets",
    "placed",
]


def placed(value: Any, sharding: Any) -> jax.Array:
    """The value with this sharding, as ``jax.device_put`` gives it, where devices of other processes have a part in it too.

    Args:
        value: An array that every process has, or one over the devices of several.
        sharding: Where it goes.
    """
    value = in_memory(value, sharding.memory_kind)
    spread = isinstance(value, jax.Array) and not value.is_fully_addressable
    if sharding.is_fully_addressable and not spread:
        return jax.device_put(value, sharding)
    # jax moves keys within one process only. Their words are an array like any, with one axis more.
    if is_typed_key(value):
        spec = getattr(sharding, "spec", None)
        if spec is not None:
            unsharded = [None] * (value.ndim - len(spec))
            sharding = NamedSharding(sharding.mesh, PartitionSpec(*spec, *unsharded, None))
        words = placed(jax.random.key_data(value), sharding)
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(value))
    # From several processes to several: jax moves it, and does so without a change only to integers.
    if spread and not sharding.is_fully_addressable:
        return _from_bits(value.dtype, sharding)(jax.device_put(as_bits(value), sharding))
    # jax would compare it with what the others have, and take two NaNs for different.
    host = gathered(value)
    return jax.make_array_from_callback(
        host.shape, sharding, lambda index: host[index], dtype=host.dtype
    )


def gathered(value: Any) -> np.ndarray[Any, Any]:
    """An array as NumPy has it, from other processes too."""
    is_spread = isinstance(value, jax.Array) and not value.is_fully_addressable
    # What each process has whole is read from its own devices, without the others.
    if is_spread and not value.is_fully_replicated:
        return process_allgather(as_bits(value), tiled=True).view(value.dtype)
    return np.asarray(value)


def as_bits(value: Any) -> Any:
    """Floats as unsigned integers: between processes XLA computes on wider ones, and loses the payload of a NaN."""
    if not jnp.issubdtype(value.dtype, jnp.floating):
        return value
    return jax.lax.bitcast_convert_type(value, f"uint{jnp.finfo(value.dtype).bits}")


def near(value: Any) -> Any:
    """A leaf in the memory that programs compute on: one that is in another, such as a host's, as a copy there."""
    if not isinstance(value, jax.Array) or isinstance(value, Tracer):
        return value
    return in_memory(value, _usual_memory(value.sharding))


def in_memory(value: Any, kind: str | None) -> Any:
    """A leaf of jax's in another memory of the devices that it is on: jax does not move between both at once."""
    if not isinstance(value, jax.Array) or isinstance(value, Tracer):
        return value
    usual = _usual_memory(value.sharding)
    if (value.sharding.memory_kind or usual) == (kind or usual):
        return value
    return jax.device_put(value, value.sharding.with_memory_kind(kind or usual))


def divides(sharding: Any, shape: Sequence[int]) -> bool:
    """Whether an array of a shape can be sharded so: each device has as much."""
    try:
        sharding.shard_shape(tuple(shape))
    except ValueError:
        return False
    return True


def _usual_memory(sharding: Any) -> str:
    here = sharding.addressable_devices or jax.local_devices()
    kind: str = next(iter(here)).default_memory().kind
    return kind


def octets(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The bytes of each element, least significant first.

    Of an element narrower than a byte, its own bits.
    """
    flat = np.ascontiguousarray(array).reshape(-1)
    found = flat.view(np.uint8).reshape(array.size, array.dtype.itemsize)
    # An int4 has a byte in memory, whose upper half may be anything.
    width = _width(array.dtype)
    return found & ((1 << width) - 1) if width < 8 else found


@functools.cache
def _width(dtype: Any) -> int:
    """The bits of an element of one byte that count; 8 for wider ones, all of whose bits do."""
    if dtype.itemsize > 1 or dtype == np.bool_:
        return 8
    return jnp.iinfo(dtype).bits if jnp.issubdtype(dtype, jnp.integer) else jnp.finfo(dtype).bits


@functools.lru_cache(maxsize=256)
def _from_bits(dtype: Any, sharding: Any) -> Any:
    """From what `as_bits` made to leaves of a dtype."""
    if not jnp.issubdtype(dtype, jnp.floating):
        return lambda bits: bits
    return Program(lambda bits: jax.lax.bitcast_convert_type(bits, dtype), out_shardings=sharding)


def describe_shardings(*shardings: Any) -> tuple[str, ...]:
    """Shardings as messages write them, ``P('x', None) over x=4 y=2``.

    In full where that would not tell them apart.
    """
    short = tuple(map(_short, shardings))
    return short if len({*short}) == len({*shardings}) else tuple(map(str, shardings))


def _short(sharding: Any) -> str:
    if not isinstance(sharding, NamedSharding) or not _in_usual_memory(sharding):
        return "no sharding" if sharding is None else str(sharding)
    mesh, sizes = sharding.mesh, list[str]()
    for name, size, kind in zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True):
        # Most axes are of the usual kind, which is not worth a word.
        remark = "" if kind == AxisType.Auto else f" ({kind.name.lower()})"
        sizes.append(f"{name}={size}{remark}")
    return f"P({', '.join(map(repr, sharding.spec))}) over {' '.join(sizes)}"


def _in_usual_memory(sharding: NamedSharding) -> bool:
    # An abstract mesh has no devices, and no memory of theirs.
    if not isinstance(sharding.mesh, Mesh):
        return True
    usual = sharding.mesh.devices.flat[0].default_memory().kind
    return sharding.memory_kind in (None, usual)
