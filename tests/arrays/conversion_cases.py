"""Codecs and the worst values for them; run as a program, it compares what jax makes of them with what NumPy does."""

from __future__ import annotations

import os
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ckpt_schema._lens.arrays.conversions import converted
from ckpt_schema._lens.codecs import Codec, Exact, Plus, Rounded, Times
from ckpt_schema.testing._values import hostile

CODECS: tuple[tuple[str, Codec], ...] = (
    ("bfloat16", (Exact("bfloat16", "float32"),)),
    ("float32", (Rounded("float32", "bfloat16"), Exact("bfloat16", "float32"))),
    ("float16", (Exact("float16", "float32"),)),
    ("float32", (Rounded("float32", "float16"),)),
    ("float32", (Rounded("float32", "float8_e4m3fn"),)),
    ("float8_e5m2", (Rounded("float8_e5m2", "float8_e4m3fnuz"),)),
    ("float8_e4m3fn", (Exact("float8_e4m3fn", "bfloat16", -120),)),
    ("float4_e2m1fn", (Exact("float4_e2m1fn", "float32"),)),
    ("float32", (Rounded("float32", "float4_e2m1fn"),)),
    ("float8_e8m0fnu", (Exact("float8_e8m0fnu", "float32"),)),
    ("float32", (Exact("float32", "float32", -130),)),
    ("bfloat16", (Exact("bfloat16", "bfloat16", 7),)),
    ("float32", (Times(1 / 3), Plus(-1 / 3), Times(1 / 3, divides=True))),
    ("float32", (Times(0.1, divides=True), Plus(1.0))),
    ("bfloat16", (Times(-0.1), Times(-0.1, divides=True))),
    ("float16", (Plus(1.0), Plus(-1.0))),
    ("float8_e4m3fn", (Times(1.7),)),
    ("int4", (Exact("int4", "int32"),)),
    ("int32", (Exact("int32", "uint4"),)),
    ("complex64", (Times(0.7), Plus(1.0))),
)
WIDE: tuple[tuple[str, Codec], ...] = (
    ("float64", (Rounded("float64", "float32"),)),
    ("float64", (Rounded("float64", "bfloat16"),)),
    ("float32", (Exact("float32", "float64"),)),
    ("float64", (Exact("float64", "float64", -1000),)),
    ("float64", (Times(1 / 3), Plus(-1 / 3), Times(1 / 3, divides=True))),
    ("uint64", (Exact("uint64", "int8"),)),
)


def values(dtype: str, size: int = 6000) -> Any:
    """Random bits, and the worst ones there are."""
    return hostile(np.random.default_rng(7), dtype, (size,))


def octets(value: Any) -> bytes:
    """The bits of an array."""
    return np.asarray(value).tobytes()


def unlike(codecs: tuple[tuple[str, Codec], ...]) -> list[str]:
    """The codecs for which jax makes other bits than NumPy, jitted or not."""
    found: list[str] = []
    for dtype, codec in codecs:
        given = values(dtype)
        wanted = converted(given, codec)
        made = jax.jit(lambda value, codec=codec: converted(value, codec))(jnp.asarray(given))
        if made.dtype != wanted.dtype or octets(made) != octets(wanted):
            found.append(f"{dtype}: {', '.join(map(str, codec))}")
    return found


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    # At process end jax's clients are torn down; what was found is said before.
    print("unlike:", unlike(WIDE + CODECS if "--all" in sys.argv else WIDE), flush=True)
    os._exit(0)
