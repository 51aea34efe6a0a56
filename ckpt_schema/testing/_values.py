"""Arrays whose bits are drawn, not their numbers: NaN payloads, infinities, both zeros, subnormals, the extreme integers."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from ckpt_schema._layouts.leaves import key_impl, key_words

__all__ = [
    "DTYPES",
    "IMPLS",
    "INTEGERS",
    "VALUES",
    "Bounds",
    "Request",
    "Values",
    "hostile",
    "make",
]

IMPLS = ("key<fry>", "key<rbg>", "key<urbg>")
INTEGERS = ("int4", "uint4", "int8", "uint8", "int16", "uint16", "int32", "uint32")
DTYPES = (
    "float32",
    "bfloat16",
    "float16",
    "float8_e4m3fn",
    "float8_e5m2",
    "complex64",
    "bool",
    *INTEGERS,
    *IMPLS,
)

Bounds = tuple[int, int]
"""The least and the greatest integer wanted."""
Request = tuple[str, tuple[int, ...], Bounds | None]
"""The dtype of a leaf, its shape, and for integers their bounds."""
Values = Literal["counted", "hostile"]
"""What stands in leaves: small numbers that count up, for people to read.

Or the worst bits there are.
"""
VALUES: tuple[Values, ...] = get_args(Values)


def make(
    rng: np.random.Generator, requests: Sequence[Request], values: Values = "hostile"
) -> list[Any]:
    """Leaves of drawn values: NumPy arrays, and typed key arrays.

    Those of one dtype are drawn at once, which takes a tenth of the time that one after the other
    does.

    Args:
        rng: Where the values come from.
        requests: What is wanted. A dtype's name may be a key's.
        values: ``hostile``: random bits, about half of the elements replaced by the worst ones of
            their dtype. ``counted``: numbers that count up through all leaves of a dtype.
    """
    draw = hostile if values == "hostile" else _counted
    alike: dict[tuple[str, Bounds | None], list[int]] = {}
    for at, (dtype, _, bounds) in enumerate(requests):
        alike.setdefault(("uint32" if dtype in IMPLS else dtype, bounds), []).append(at)
    made: list[Any] = [None] * len(requests)
    for (dtype, bounds), places in alike.items():
        shapes = [_stored(*requests[at][:2]) for at in places]
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
        # One long array, which is cut where each leaf ends.
        drawn = draw(rng, dtype, (int(ends[-1]),), bounds)
        parts = np.split(drawn, ends[:-1])
        for at, shape, part in zip(places, shapes, parts, strict=True):
            made[at] = _leaf(requests[at][0], part.reshape(shape))
    return made


def _stored(dtype: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the numbers that a leaf holds: of keys, their words."""
    return (*shape, key_words(dtype)) if dtype in IMPLS else shape


def _leaf(dtype: str, value: np.ndarray[Any, Any]) -> Any:
    """A leaf of its numbers."""
    if dtype in IMPLS:
        return jax.random.wrap_key_data(jnp.asarray(value), impl=key_impl(dtype))
    return value


def _counted(
    rng: np.random.Generator, dtype: str, shape: tuple[int, ...], bounds: Bounds | None = None
) -> Any:
    """An array that counts up, from 1 on unless its dtype is too narrow."""
    kind, count = jnp.dtype(dtype), np.arange(1, 1 + int(np.prod(shape)))
    if jnp.issubdtype(kind, jnp.integer):
        low, high = bounds or (int(jnp.iinfo(kind).min), int(jnp.iinfo(kind).max))
        most = min(high - max(low, 0) + 1, 2**62)  # NumPy takes no greater number
        # Where the dtype, or its partner's, ends, it is counted from the beginning again.
        count = max(low, 0) + count % most
    elif kind == jnp.bool_:
        count = count % 3 == 0
    elif kind.itemsize < 4:
        count = count % 2 ** jnp.finfo(kind).nmant  # what the dtype tells apart
    return count.astype(kind).reshape(shape)


def hostile(
    rng: np.random.Generator, dtype: str, shape: tuple[int, ...], bounds: Bounds | None = None
) -> Any:
    """An array of random bits, about half of its elements replaced by the worst ones of its dtype.

    Args:
        rng: Where the bits come from.
        dtype: A dtype's name; a key's gives a typed key array.
        shape: The shape.
        bounds: The least and greatest integer wanted.
    """
    if dtype in IMPLS:
        return _leaf(dtype, hostile(rng, "uint32", _stored(dtype, shape)))
    kind, size = jnp.dtype(dtype), int(np.prod(shape))
    if jnp.issubdtype(kind, jnp.integer):
        low, high = bounds or (int(jnp.iinfo(kind).min), int(jnp.iinfo(kind).max))
        # Drawn wider than they are, for NumPy draws no integers of four bits.
        wide = np.uint64 if high >= 2**63 else np.int64
        drawn = rng.integers(low, high, size, wide, endpoint=True)
        known = [number for number in (low, high, 0, -1, 1) if low <= number <= high]
        mixed = _half(rng, drawn, np.array(known, drawn.dtype))
        return mixed.astype(kind).reshape(shape)
    if kind == jnp.bool_:
        return rng.integers(0, 2, size).astype(bool).reshape(shape)
    part = jnp.finfo(kind).dtype  # complex numbers are pairs of it
    # As integers, for a NaN that is handled as a float may lose its payload.
    bits = np.dtype(f"u{part.itemsize}")
    drawn = np.frombuffer(rng.bytes(size * kind.itemsize), bits)
    return _half(rng, drawn, _worst(part.name)).view(kind).reshape(shape)


def _half(rng: np.random.Generator, drawn: Any, worst: Any) -> Any:
    """What was drawn, about half of it replaced by the worst there is."""
    return np.where(rng.random(drawn.size) < 0.5, drawn, rng.choice(worst, drawn.size))


@functools.cache
def _worst(dtype: str) -> np.ndarray[Any, Any]:
    """The bit patterns of a float that are easiest to lose."""
    kind = jnp.dtype(dtype)
    info, bits = jnp.finfo(kind), np.dtype(f"u{kind.itemsize}")
    sign, mantissa = 1 << (info.bits - 1), (1 << info.nmant) - 1
    exponent = sign - 1 - mantissa
    quiet = exponent | (mantissa + 1) >> 1
    plain = [
        0,
        1,  # the least number above zero
        mantissa,  # the greatest subnormal one
        mantissa + 1,  # the least normal one
        exponent,  # infinity, where the dtype has one
        exponent | 1,  # a signaling NaN, which becomes a quiet one if it is computed with
        quiet,
        quiet | 1,  # a NaN with a payload
        sign - 1,  # all bits but the sign: a NaN as a rule
        int(_bits_of(info.max)),
    ]
    patterns: list[int] = []
    for pattern in plain:
        patterns += [pattern, pattern | sign]
    return np.array(patterns, bits)


def _bits_of(value: Any) -> Any:
    array = np.asarray(value)
    return array.reshape(1).view(f"u{array.dtype.itemsize}")[0]
