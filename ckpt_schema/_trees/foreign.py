"""Leaves that JAX has no array for: what to do about them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ckpt_schema._layouts import leaves
from ckpt_schema._trees import raw_bytes

__all__ = ["dtype_cure", "leaf_cure"]

_ALIEN = {
    "U": "text",
    "S": "text",
    "O": "objects",
    "M": "dates",
    "m": "dates",
}
"""What NumPy's arrays may hold, and jax's not, by the kind of their dtype."""


def leaf_cure(value: Any) -> str:
    """What to do about a value that is no leaf; empty where nothing is known of it.

    Example:
        >>> class Config(dict): pass
        >>> leaf_cure(Config(a=1))
        'jax takes it for one leaf: make it a plain dict, or register its class as a pytree'
    """
    if leaves.is_mutable(value):
        return (
            "it changes in place: give its value, ref[...], or save and restore the module itself"
        )
    if isinstance(value, Mapping):
        return "jax takes it for one leaf: make it a plain dict, or register its class as a pytree"
    if isinstance(value, (str, bytes)):
        return _beside("text")
    return ""


def _beside(told: str) -> str:
    return f"no array of jax holds {told}: keep it beside the state, as save(also=...) does"


def dtype_cure(value: Any, wanted: str = "") -> str:
    """What to do about an array whose dtype jax has no array for; empty where jax has.

    Args:
        value: A leaf.
        wanted: The dtype that it should have, if that is known.

    Example:
        >>> dtype_cure(np.zeros(2, np.dtype("float32").newbyteorder()), "float32")
        'its bytes are in reverse: x.astype("float32") has them in order'
    """
    # Bytes without a dtype are of the kind V, as records are, and have a better cure.
    raw = raw_bytes.cure(value, wanted)
    if raw:
        return raw
    if isinstance(value, jax.Array):
        return _narrowed(value, wanted)
    dtype = getattr(value, "dtype", None)
    if not isinstance(dtype, np.dtype):
        return ""
    if dtype.kind in _ALIEN or dtype.names:
        return _beside(_ALIEN.get(dtype.kind, "records"))
    if not dtype.isnative and wanted in ("", dtype.name):
        return f'its bytes are in reverse: x.astype("{dtype.name}") has them in order'
    return ""


def _narrowed(value: jax.Array, wanted: str) -> str:
    """The cure of an array that jax has made in half of its bits."""
    if not wanted or wanted.startswith("key<") or not leaves.is_narrowed(leaves.dtype_of(wanted)):
        return ""
    if jax.dtypes.canonicalize_dtype(leaves.dtype_of(wanted)) != value.dtype:
        return ""
    return (
        f"jax makes {value.dtype} of {wanted}: pass NumPy's array, "
        'or set jax.config.update("jax_enable_x64", True)'
    )
