"""Arrays of every dtype, with the worst bits there are: payloads of NaNs, -0.0, subnormals, the ends of the ranges."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np

FLOATS = sorted(
    name for name in dir(ml_dtypes) if name.startswith(("bfloat16", "float8", "float4"))
)
INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (2, 4, 8, 16, 32)]
DTYPES = [
    name
    for name in (*FLOATS, "float16", "float32", "complex64", "bool", *INTEGERS)
    if name in {str(jnp.dtype(name))}
]
"""Every dtype that an array of jax may have without 64 bits."""

Array = np.ndarray[Any, Any]

# Bits of float32: both zeros, subnormals, infinities, quiet and signalling NaNs with payloads.
_SINGLE = (0, 0x80000000, 1, 0x807FFFFF, 0x7F800000, 0xFF800000, 0x7FC00001, 0x7F800001, 0xFFFFFFFF)
_HALF = {
    "float16": (0, 0x8000, 1, 0x83FF, 0x7C00, 0xFC00, 0x7E01, 0x7C01, 0xFFFF),
    "bfloat16": (0, 0x8000, 1, 0x807F, 0x7F80, 0xFF80, 0x7FC1, 0x7F81, 0xFFFF),
}


def array(dtype: str, *shape: int, seed: int = 0) -> Array:
    """An array of random bits of a dtype, the worst ones among the first."""
    rng, count = np.random.default_rng((seed, len(dtype), *shape)), int(np.prod(shape))
    kind = jnp.dtype(dtype)
    if dtype == "bool":
        flat = rng.integers(0, 2, count).astype(bool)
    elif jnp.issubdtype(kind, jnp.integer):
        info = jnp.iinfo(kind)
        low, high = int(info.min), int(info.max)
        flat = rng.integers(low, high + 1, count).astype(kind)
        flat[:2] = np.array([low, high]).astype(kind)[:count]
    elif dtype == "float4_e2m1fn":
        flat = rng.integers(0, 16, count).astype("uint8").view(kind)
    else:
        flat = np.frombuffer(rng.bytes(count * kind.itemsize), kind).copy()
        worst = _worst(dtype)
        words = flat.view(worst.dtype)
        number = min(len(worst), len(words))
        words[:number] = worst[:number]
    return flat.reshape(shape)


def small(dtype: str, *shape: int, seed: int = 0) -> Array:
    """Integers of a dtype that every other integer dtype can hold: 0 and 1."""
    rng = np.random.default_rng((seed, *shape))
    return rng.integers(0, 2, shape).astype(jnp.dtype(dtype))


def _worst(dtype: str) -> Array:
    if dtype in ("float32", "complex64"):
        return np.array(_SINGLE, "uint32")
    if dtype in _HALF:
        return np.array(_HALF[dtype], "uint16")
    return np.arange(256, dtype="uint8")[::-1]  # every pattern that eight bits have
