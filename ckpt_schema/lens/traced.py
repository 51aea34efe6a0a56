"""Edits of traced leaves: floats travel as unsigned integers, so that no backend touches a bit of them.

XLA may compute on a wider float between two moves, which changes the payload of a NaN: its CPU backend does so where it fuses
the slices and transposes of ``float8_e5m2``. Between devices it adds what each has of a slice to the zeros of the others, which
changes one as well: complex numbers travel as two floats. So does a move between shardings: bits have theirs given before it.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ckpt_schema.lens import shardings
from ckpt_schema.lens.axes import Sizes
from ckpt_schema.lens.edits import Chain, Edit
from ckpt_schema.lens.partial import Pad, Scale
from ckpt_schema.lens.stacks import Beside, edits_of

__all__ = ["differentiable", "edited"]

_Bits = tuple[Any, ...]  # the arrays that stand for a leaf while it is moved
_Move = Callable[[Chain, Sequence[Any], Sizes], list[Any]]


def edited(
    chain: Chain,
    values: Sequence[Any],
    sizes: Sizes,
    before: Sequence[Any] = (),
    after: Sequence[Any] = (),
    dtype: Any = None,
) -> list[Any]:
    """The edited leaves of traced ones.

    Args:
        chain: What is done: moves, or what computes.
        values: The leaves.
        sizes: The sizes of the dims that the chain needs.
        before: How the leaves are sharded, if that is known: or else XLA may move them between devices before they are bits.
        after: How the results are to be.
        dtype: Of the results, if the leaves are only their bits.
    """
    return _alternating(
        chain, values, sizes, functools.partial(_moved, before=before, after=after, dtype=dtype)
    )


def differentiable(chain: Chain, values: Sequence[Any], sizes: Sizes) -> list[Any]:
    """The same, with derivatives: an integer has none, but what moves floats is linear."""
    return _alternating(chain, values, sizes, _linear)


def _alternating(chain: Chain, values: Sequence[Any], sizes: Sizes, move: _Move) -> list[Any]:
    """What computes on floats, and by ``move`` what is between."""
    results = list(values)
    if not chain:
        return move(chain, results, sizes)
    for kind, edits in itertools.groupby(chain.edits, _computes):
        part = Chain(tuple(edits))
        if kind is Scale:
            results = part.apply(results, sizes)
        elif kind is Beside:
            for edit in part.edits:
                results = _side_by_side(edit, results, sizes, move)
        else:
            results = move(part, results, sizes)
    return results


def _computes(edit: Edit) -> type[Edit] | None:
    """The kind of an edit that computes on floats, or holds some that do; None of one that moves them."""
    if isinstance(edit, Scale):
        return Scale
    inside = isinstance(edit, Beside) and any(
        isinstance(each, Scale) for each in edits_of(Chain((edit,)))
    )
    return Beside if inside else None


def _side_by_side(edit: Edit, values: Sequence[Any], sizes: Sizes, move: _Move) -> list[Any]:
    """What chains side by side make of leaves, each on its own."""
    assert isinstance(edit, Beside)
    both = edit.dealt(values, sizes)
    return [x for chain, own in both for x in _alternating(chain, own, sizes, move)]


def _moved(
    chain: Chain,
    values: Sequence[Any],
    sizes: Sizes,
    before: Sequence[Any] = (),
    after: Sequence[Any] = (),
    dtype: Any = None,
) -> list[Any]:
    """What edits that compute nothing make of leaves, or of their bits."""
    dtype = values[0].dtype if dtype is None else dtype
    bits = _placed([_to_bits(value) for value in values], before)
    return [
        _from_bits(each, dtype) for each in _placed(_moved_bits(chain, bits, dtype, sizes), after)
    ]


def _placed(values: Sequence[_Bits], given: Sequence[Any]) -> list[_Bits]:
    """The bits of leaves, sharded as given."""
    if not given:
        return list(values)
    return [
        tuple(shardings.constrained(x, to) for x in each)
        for each, to in zip(values, given, strict=True)
    ]


def _moved_bits(chain: Chain, values: Sequence[_Bits], dtype: Any, sizes: Sizes) -> list[_Bits]:
    """The same of their bits; ``dtype`` is what the leaves themselves have."""
    filled = _filled(chain, dtype) if jnp.issubdtype(dtype, jnp.floating) else chain
    return [*zip(*(filled.apply(part, sizes) for part in zip(*values, strict=True)), strict=True)]


def _to_bits(value: Any) -> _Bits:
    """A leaf as arrays that no backend computes on: itself, or its bits, or those of both parts of a complex number."""
    if jnp.issubdtype(value.dtype, jnp.complexfloating):
        return *_to_bits(jax.lax.real(value)), *_to_bits(jax.lax.imag(value))
    if not jnp.issubdtype(value.dtype, jnp.floating):
        return (value,)
    return (jax.lax.bitcast_convert_type(value, f"uint{jnp.finfo(value.dtype).bits}"),)


def _from_bits(bits: _Bits, dtype: Any) -> Any:
    """The leaf of this dtype, from what `_to_bits` made of it; what was no float may be of another dtype by now."""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        part = jnp.finfo(dtype).dtype
        return jax.lax.complex(*(_from_bits((each,), part) for each in bits))
    return (
        jax.lax.bitcast_convert_type(bits[0], dtype)
        if jnp.issubdtype(dtype, jnp.floating)
        else bits[0]
    )


def _linear(chain: Chain, values: Sequence[Any], sizes: Sizes) -> list[Any]:
    """`_moved`, which a derivative passes through."""
    if not jnp.issubdtype(values[0].dtype, jnp.inexact):
        return _moved(chain, values, sizes)

    @jax.custom_jvp
    def moved(*xs: Any) -> list[Any]:
        return _moved(chain, xs, sizes)

    def tangents(primals: tuple[Any, ...], along: tuple[Any, ...]) -> tuple[list[Any], list[Any]]:
        return moved(*primals), _filled(chain, None).apply(along, sizes)

    moved.defjvp(tangents)
    return moved(*values)


def _filled(chain: Chain, dtype: Any) -> Chain:
    """The chain for the bits of floats, or for tangents: padding is of the bits of its fill, or does not depend on anything."""

    def fill(edit: Edit) -> Edit:
        if isinstance(edit, Beside):
            return Beside(tuple(_filled(each, dtype) for each in edit.chains))
        if not isinstance(edit, Pad):
            return edit
        bits = (
            0
            if dtype is None
            else int(np.asarray(edit.fill).astype(dtype).view(f"uint{jnp.finfo(dtype).bits}"))
        )
        return dataclasses.replace(edit, fill=bits)

    return Chain(tuple(map(fill, chain.edits)))
