"""Bytes without a dtype, which NumPy's files keep of dtypes that NumPy does not know: what to do about them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ckpt_schema._layouts import leaves

__all__ = ["cure"]


def cure(value: Any, wanted: str = "") -> str:
    """What to do about bytes without a dtype, as ``numpy.save`` keeps a bfloat16.

    Empty where ``value`` is something else.

    Args:
        value: A leaf.
        wanted: The dtype that it should have, if that is known.

    Example:
        >>> cure(np.zeros(2, "V2"), "bfloat16")
        'bytes without a dtype, as numpy.save keeps bfloat16: x.view(jax.numpy.bfloat16) reads them'
    """
    dtype = getattr(value, "dtype", None)
    if not isinstance(dtype, np.dtype) or dtype.kind != "V" or not str(dtype).startswith("|V"):
        return ""
    told = "bytes without a dtype"
    if not wanted:
        name = "bfloat16" if dtype.itemsize == 2 else "..."
        return (
            f"{told}, as numpy.save keeps bfloat16 and float8: view them, x.view(jax.numpy.{name})"
        )
    if wanted.startswith("key<") or leaves.dtype_of(wanted).itemsize != dtype.itemsize:
        return f"{told}, {dtype.itemsize} an element, which is no {wanted}"
    return f"{told}, as numpy.save keeps {wanted}: x.view(jax.numpy.{wanted}) reads them"
