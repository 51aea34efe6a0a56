"""Floats by their values: fractions, tables of all values of a dtype, and the bits that stand for them.

Nothing here is the library's: what a float is worth is asked of ``struct`` and of ``ml_dtypes``, and
the nearest one is looked up among all.
"""

from __future__ import annotations

import functools
import struct
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np

NARROW = (
    "bfloat16",
    "float16",
    "float8_e5m2",
    "float8_e4m3",
    "float8_e3m4",
    "float8_e4m3fn",
    "float8_e5m2fnuz",
    "float8_e4m3fnuz",
    "float8_e4m3b11fnuz",
    "float8_e8m0fnu",
    "float4_e2m1fn",
)
ALL_BITS = {"bfloat16": 16, "float16": 16, "float4_e2m1fn": 4}
WITH_INFINITY = ("bfloat16", "float16", "float8_e5m2", "float8_e4m3", "float8_e3m4")


def everything(dtype: str) -> np.ndarray[Any, Any]:
    """All values of a narrow float, in the order of their bits."""
    bits = ALL_BITS.get(dtype, 8)
    return np.arange(1 << bits, dtype="u2" if bits == 16 else "u1").view(jnp.dtype(dtype))


def bits_of(value: Any) -> np.ndarray[Any, Any]:
    """The bits of floats, as unsigned integers."""
    array = np.asarray(value)
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}").reshape(array.shape)


@functools.cache
def worth(dtype: str) -> np.ndarray[Any, Any]:
    """What each value of a narrow float is worth."""
    if dtype == "float16":
        return np.array([struct.unpack("<e", struct.pack("<H", n))[0] for n in range(1 << 16)])
    if dtype == "bfloat16":
        return np.array(
            [struct.unpack("<f", struct.pack("<I", n << 16))[0] for n in range(1 << 16)]
        )
    return everything(dtype).astype("float64")


def nearest(values: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any]:
    """The magnitudes of the nearest values of a narrow float, as bits; -1 of what is beyond all.

    Args:
        values: Finite and not negative, with fewer digits than a float64 has.
        dtype: The narrow float.
    """
    known = worth(dtype)
    finite = np.flatnonzero(np.isfinite(known) & ~np.signbit(known))
    order = finite[np.argsort(known[finite])]
    table = known[order]
    step = table[-1] - table[-2]
    table = np.append(table, table[-1] * 2 if dtype == "float8_e8m0fnu" else table[-1] + step)
    above = np.clip(np.searchsorted(table, values), 1, len(table) - 1)
    low, high = table[above - 1], table[above]
    up = values - low > high - values
    is_tie = values - low == high - values
    is_odd = (order[above - 1] & 1 == 1) | (dtype == "float8_e8m0fnu")
    places = above - 1 + (up | (is_tie & is_odd))
    return np.where(places == len(table) - 1, -1, np.append(order, -1)[places])


def rounded(value: Fraction, digits: int, least: int = -(10**6)) -> Fraction:
    """A number rounded to binary digits, to the even of two; to a multiple of two to ``least`` at most."""
    if not value:
        return value
    size = abs(value)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= size < Fraction(2) ** exponent
    unit = Fraction(2) ** max(exponent - digits + 1, least)
    return round(value / unit) * unit


def is_nan(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Which floats are no numbers; ``ml_dtypes`` warns of those that are signaling."""
    with np.errstate(invalid="ignore"):
        return np.isnan(values)
