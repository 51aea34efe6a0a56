"""What a codec does to values, and which of them it would lose."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ckpt_schema.lens.arrays.differences import difference
from ckpt_schema.lens.codecs import Codec, Exact, Word

__all__ = ["converted", "expected", "lost", "subnormal"]


def converted(value: Any, codec: Codec) -> Any:
    """The values after a codec; NumPy arrays stay NumPy arrays, everything else goes through ``jax.numpy``."""
    for word in codec:
        value = _converted(value, word)
    return value


def _converted(value: Any, word: Word) -> Any:
    if not isinstance(word, Exact):
        raise NotImplementedError(str(word))
    if word.exponent:
        value = _scaled(value, word.exponent)
    if word.source == word.view:
        return value
    if isinstance(value, np.ndarray):
        # NumPy knows no cast between the integers narrower than a byte; int64 holds every value that both dtypes hold.
        value = value.astype(np.int64)
    return value.astype(jnp.dtype(word.view))


def _scaled(value: Any, exponent: int) -> Any:
    """The product with a power of two; what is no number stays as it is."""
    if isinstance(value, np.ndarray):
        with np.errstate(
            all="ignore"
        ):  # what over- or underflows has been refused, or is being looked for
            scaled = np.ldexp(value.astype(np.float64), exponent).astype(value.dtype)
            return np.where(np.isnan(value), value, scaled)
    return jnp.where(jnp.isnan(value), value, jnp.ldexp(value, exponent))


def expected(codec: Codec) -> str:
    """Which values a codec keeps."""
    word = codec[0]
    assert isinstance(word, Exact)
    if word.exponent:
        return f"values that 2**{word.exponent} times themselves tell exactly"
    info = jnp.iinfo(word.view)
    return f"values of {word.view} ({info.min} to {info.max})"


def lost(value: Any, codec: Codec) -> tuple[str, str] | None:
    """What a concrete array has that a codec does not keep, and what to do about it; None where it keeps all."""
    for word in codec:
        found = _lost(value, word)
        if found is not None:
            return found
    return None


def _lost(value: Any, word: Word) -> tuple[str, str] | None:
    if not isinstance(word, Exact):
        return None
    if word.exponent:
        return _beyond(value, word)
    low, high = _range(value)
    info = jnp.iinfo(word.view)
    if int(info.min) <= low and high <= int(info.max):
        return None
    return str(low if low == high else f"{low} to {high}"), f"{word} would wrap"


def _beyond(value: Any, word: Exact) -> tuple[str, str] | None:
    """The first value that does not come back from a scaling."""
    scaled = _scaled(value, word.exponent)
    gone = subnormal(value) | subnormal(scaled)  # devices flush them to zero
    xp = np if isinstance(value, np.ndarray) else jnp
    back = xp.where(gone, xp.zeros_like(value), _scaled(scaled, -word.exponent))
    differs = difference(value, back)
    if differs is None:
        return None
    what = f"{differs[1]} at [{differs[0]}], which comes back as {differs[2]}"
    return what, "it over- or underflows: scale it by less"


def _range(value: Any) -> tuple[int, int]:
    """The least and greatest element."""
    if not isinstance(value, jax.Array):
        array = np.asarray(value)
        return int(array.min()), int(array.max())
    low, high = (value, value) if value.ndim == 0 else (jnp.min(value), jnp.max(value))
    return int(np.asarray(low.addressable_data(0))), int(np.asarray(high.addressable_data(0)))


def subnormal(value: Any) -> Any:
    """Tells which floats are subnormal, by their bits: compared as numbers they may count as zero."""
    unsigned = np.dtype(f"u{value.dtype.itemsize}")
    sign = unsigned.type(1 << (8 * unsigned.itemsize - 1))
    smallest = np.asarray(jnp.finfo(value.dtype).smallest_normal, value.dtype).view(unsigned)[()]
    magnitude = value.view(unsigned) & ~sign
    return (magnitude > 0) & (magnitude < smallest)
