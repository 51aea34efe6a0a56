"""Tied leaves: one leaf that a layout stores twice. Which they are, and that they are equal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ckpt_schema import leaves
from ckpt_schema.errors import ConformanceError, Mismatch
from ckpt_schema.lens.rules import Rule, Tie, under
from ckpt_schema.table import Layout

__all__ = ["Pair", "copies", "verify_same"]

Pair = tuple[Any, Any, tuple[str, str, str]]
"""A leaf, its copy, the key paths of what both are made of, and that of what they are to be."""


def copies(table: Layout, rules: Sequence[Rule]) -> dict[int, int]:
    """The rows that rules call copies, by number, each with the number of the row that it is a copy of."""
    numbers = {row.path: number for number, row in enumerate(table.rows)}
    found: dict[int, int] = {}
    for rule in rules:
        for number, row in enumerate(table.rows):
            start = under(row, rule.copy) if isinstance(rule, Tie) else None
            if isinstance(rule, Tie) and start is not None:
                of = numbers.get((*row.path[:start], *rule.of, *row.path[start + len(rule.copy) :]))
                if of is not None:
                    found[number] = of
    return found


def verify_same(pairs: Sequence[Pair]) -> None:
    """Raises unless each copy is equal to its original, to the last bit. Abstract leaves have no bits.

    Raises:
        ConformanceError: With the first element in which each pair differs, or that a pair is traced.
    """
    faults = [fault for first, copy, names in pairs for fault in _fault(first, copy, names)]
    if faults:
        raise ConformanceError(f"tied leaves are not one: {len(faults)} fault(s)", faults)


def _fault(first: Any, copy: Any, names: tuple[str, str, str]) -> list[Mismatch]:
    if first is copy or leaves.is_abstract(first) or leaves.is_abstract(copy):
        return []
    if isinstance(first, Tracer) or isinstance(copy, Tracer):
        hint = "ties are verified by value: translate outside of jit"
        return [Mismatch(names[1], "tie", f"what {names[0]} has", "a tracer", hint)]
    a, b = _together(first, copy)
    if not bool(_local(_differ(a, b))):
        return []
    index, *values = (_local(x) for x in _first(a, b))
    place = " ".join(map(str, index))
    here, there = (f"{_shown(value)} at {names[2]}[{place}]" for value in values)
    hint = "tied leaves are equal to the last bit: make them so, or drop the tie and give each a place"
    return [Mismatch(names[1], "tie", f"what {names[0]} has, {here}", there, hint)]


def _together(first: Any, copy: Any) -> tuple[jax.Array, jax.Array]:
    """Both as jax arrays on the same devices."""
    a = first if isinstance(first, jax.Array) else jnp.asarray(first)
    return a, jax.device_put(copy, a.sharding)


@jax.jit
def _differ(a: jax.Array, b: jax.Array) -> jax.Array:
    return _unlike(a, b).any()


@jax.jit
def _first(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The first index at which two arrays that differ do so, and what they have there."""
    mask, index = _unlike(a, b), list[Any]()
    for _ in range(a.ndim):
        index.append(jnp.argmax(mask.any(axis=tuple(range(1, mask.ndim)))))
        mask = mask[index[-1]]
    values = (_data(x[tuple(index)]) for x in (a, b))
    return jnp.array(index, "int32"), *values


def _unlike(a: jax.Array, b: jax.Array) -> jax.Array:
    """Where two arrays differ in any bit."""
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        return (_data(a) != _data(b)).any(axis=-1)
    if jnp.issubdtype(a.dtype, jnp.complexfloating):
        return _unlike(a.real, b.real) | _unlike(a.imag, b.imag)
    if jnp.issubdtype(a.dtype, jnp.floating):
        bits = jnp.dtype(f"uint{jnp.finfo(a.dtype).bits}")
        a, b = (jax.lax.bitcast_convert_type(x, bits) for x in (a, b))
    return a != b


def _data(value: Any) -> Any:
    return jax.random.key_data(value) if jnp.issubdtype(value.dtype, jax.dtypes.prng_key) else value


def _local(value: jax.Array) -> np.ndarray[Any, Any]:
    return np.asarray(value.addressable_data(0))


def _shown(value: np.ndarray[Any, Any]) -> str:
    """A value and its bits: two floats may print alike and not be the same."""
    return f"{value} (0x{value.tobytes()[::-1].hex()})"
