"""Arrays whose bits are drawn, not their numbers: NaN payloads, infinities, both zeros, subnormals, the extreme integers."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

IMPLS = {"key<fry>": "threefry2x32", "key<rbg>": "rbg", "key<urbg>": "unsafe_rbg"}
DTYPES = (
    *("float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "complex64", "bool"),
    *("int4", "uint4", "int8", "uint8", "int16", "uint16", "int32", "uint32", *IMPLS),
)
INTEGERS = ("int4", "uint4", "int8", "uint8", "int16", "uint16", "int32", "uint32")

Bounds = tuple[int, int]
Place = Callable[[Any], Any]
"""What makes a leaf of a NumPy array, or of a key array."""


def hostile(rng: np.random.Generator, dtype: str, shape: tuple[int, ...], bounds: Bounds | None = None) -> Any:
    """An array of random bits, about half of its elements replaced by the worst ones of its dtype.

    Args:
        rng: Where the bits come from.
        dtype: A dtype's name; a key's gives a typed key array.
        shape: The shape.
        bounds: The least and greatest integer wanted.
    """
    if dtype in IMPLS:
        words = 2 if dtype == "key<fry>" else 4
        return jax.random.wrap_key_data(jnp.asarray(hostile(rng, "uint32", (*shape, words))), impl=IMPLS[dtype])
    kind, size = jnp.dtype(dtype), int(np.prod(shape))
    if jnp.issubdtype(kind, jnp.integer):
        low, high = bounds or (int(jnp.iinfo(kind).min), int(jnp.iinfo(kind).max))
        drawn = rng.integers(low, high, size, endpoint=True)
        worst = np.clip(np.array([low, high, 0, -1, 1]), low, high)
        return np.where(rng.random(size) < 0.5, drawn, rng.choice(worst, size)).astype(kind).reshape(shape)
    if kind == jnp.bool_:
        return rng.integers(0, 2, size).astype(bool).reshape(shape)
    part = np.dtype(np.float32) if kind == jnp.complex64 else kind
    bits, worst = np.dtype(f"u{part.itemsize}"), _worst(part.name)
    drawn = np.frombuffer(rng.bytes(size * kind.itemsize), bits)
    return np.where(rng.random(drawn.size) < 0.5, drawn, rng.choice(worst, drawn.size)).view(kind).reshape(shape)


@functools.cache
def _worst(dtype: str) -> np.ndarray[Any, Any]:
    """The bit patterns of a float that are easiest to lose."""
    kind = jnp.dtype(dtype)
    info, bits = jnp.finfo(kind), np.dtype(f"u{kind.itemsize}")
    sign, mantissa = 1 << (info.bits - 1), (1 << info.nmant) - 1
    exponent = sign - 1 - mantissa
    quiet = exponent | (mantissa + 1) >> 1
    plain = [0, 1, mantissa, mantissa + 1, exponent, exponent | 1, quiet, quiet | 1, sign - 1, int(_bits_of(info.max))]
    return np.array([pattern | s for pattern in plain for s in (0, sign)], bits)


def _bits_of(value: Any) -> Any:
    array = np.asarray(value)
    return array.reshape(1).view(f"u{array.dtype.itemsize}")[0]


def as_numpy(value: Any) -> Any:
    """A NumPy array where there can be one; key arrays stay jax arrays."""
    return value


def as_jax(value: Any) -> Any:
    """A jax array on one device."""
    return jnp.asarray(value)


@dataclasses.dataclass(frozen=True)
class Sharded:
    """Places leaves on a mesh, sharded in one of the ways their shapes allow.

    Attributes:
        mesh: The mesh.
        seed: Which of the ways; leaves of one shape are sharded alike, as by logical axis rules.
    """

    mesh: Mesh
    seed: int = 0

    def __call__(self, value: Any) -> Any:
        """The leaf, sharded."""
        found = shardings(self.mesh, tuple(value.shape))
        return jax.device_put(value, found[(self.seed * 7919 + 31 * len(value.shape)) % len(found)])


@functools.cache
def mesh(shape: tuple[int, ...], axis_type: AxisType) -> Mesh:
    """A mesh over all eight devices."""
    return jax.make_mesh(shape, ("x", "y")[: len(shape)], axis_types=(axis_type,) * len(shape))


MESHES = tuple((shape, kind) for kind in (AxisType.Auto, AxisType.Explicit) for shape in ((4, 2), (2, 4), (8,)))


@functools.cache
def shardings(on: Mesh, shape: tuple[int, ...]) -> tuple[NamedSharding, ...]:
    """Every way to shard an array of ``shape``, most mesh axes first."""
    names = tuple(on.axis_names)
    groups = [g for n in range(len(names) + 1) for g in itertools.permutations(names, n)]
    found: list[tuple[int, PartitionSpec]] = []
    for spec in itertools.product(groups, repeat=len(shape)):
        used = [axis for group in spec for axis in group]
        fits = all(size % int(np.prod([on.shape[a] for a in g], dtype=int)) == 0 for g, size in zip(spec, shape, strict=True))
        if len(set(used)) == len(used) and fits:
            found.append((-len(used), PartitionSpec(*(None if not g else g[0] if len(g) == 1 else g for g in spec))))
    return tuple(NamedSharding(on, spec) for _, spec in sorted(found, key=lambda item: (item[0], str(item[1]))))
