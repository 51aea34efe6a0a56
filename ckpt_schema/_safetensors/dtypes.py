"""The dtypes of safetensors, and what they are called here."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

__all__ = ["RANKS", "UNREAD_DTYPES", "dtype_named", "name_of_dtype"]

# The dtype here by its name in the format. The order is the one in which `safetensors` lays
# tensors out: the widest first, so that each is aligned.
_DTYPES = {
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
    "C64": "complex64",
    "F32": "float32",
    "U32": "uint32",
    "I32": "int32",
    "BF16": "bfloat16",
    "F16": "float16",
    "U16": "uint16",
    "I16": "int16",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    # The format has no name for jax's float8_e4m3, which has infinities: this one has none.
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}

RANKS = {name: rank for rank, name in enumerate(_DTYPES)}
"""Where tensors of a dtype stand in a file that `safetensors` writes: those of a lower rank first."""

UNREAD_DTYPES = ("F4", "F6_E2M3", "F6_E3M2")
"""Dtypes of fewer than 8 bits, several elements of which share a byte: no array of NumPy does."""

_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def dtype_named(name: str) -> np.dtype[Any]:
    """The dtype that safetensors calls so.

    Example:
        >>> dtype_named("BF16"), dtype_named("F8_E4M3").itemsize
        (dtype(bfloat16), 1)
    """
    # jax's, not NumPy's: NumPy alone knows no bfloat16.
    return jnp.dtype(_DTYPES[name])


def name_of_dtype(dtype: object) -> str | None:
    """What safetensors calls a dtype; None where it has no such.

    Example:
        >>> name_of_dtype(np.dtype("float32")), name_of_dtype(np.dtype("complex128"))
        ('F32', None)
    """
    return _NAMES.get(str(dtype))
