"""The types of edits for all sizes at once: evaluated on symbolic dims."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from ckpt_schema import dims as dims_
from ckpt_schema.dims import Dim, Dims
from ckpt_schema.lens.axes import product
from ckpt_schema.lens.edits import Chain

__all__ = ["same_size", "symbols", "typed"]


@functools.lru_cache(maxsize=4096)
def typed(
    chain: Chain, inputs: tuple[Dims, ...], dtype: str, counts: frozenset[str]
) -> tuple[str, ...]:
    """The symbolic types of a chain's results, as ``jax.eval_shape`` finds them for all sizes at once.

    Args:
        chain: The edits.
        inputs: The dims of each input.
        dtype: The dtype of the inputs.
        counts: Names that count repeats: they become 2, for the number of leaves is no array size.

    Returns:
        One ``dtype[dims]`` per result, symbolic dims spelled by jax.
    """
    with jax.enable_x64():  # the type of an int64 leaf is int64, whatever jax makes of it later
        return _evaluated(chain, inputs, dtype, counts)


def _evaluated(
    chain: Chain, inputs: tuple[Dims, ...], dtype: str, counts: frozenset[str]
) -> tuple[str, ...]:
    names = dims_.names(dim for dims in inputs for dim in dims) | chain.names
    sizes = symbols(sorted(names - counts), counts, chain.constraints)
    shapes = [tuple(product(dim, sizes) for dim in dims) for dims in inputs]
    # A key's type plays no part in how its axes move, and jax has no symbolic key arrays to speak of.
    kind = jnp.dtype("uint32" if dtype.startswith("key<") else dtype)
    leaves = [jax.ShapeDtypeStruct(shape, kind) for shape in shapes]
    found = jax.eval_shape(lambda *xs: chain.apply(xs, sizes), *leaves)
    return tuple(f"{dtype if dtype.startswith('key<') else x.dtype}{x.shape}" for x in found)


def symbols(
    names: Sequence[str], counts: frozenset[str], least: Sequence[tuple[Dim, Dim]] = ()
) -> dict[str, Any]:
    """A symbolic size for each name, and 2 for each count; of each pair of dims in ``least``, the first is no smaller."""
    sizes: dict[str, Any] = dict.fromkeys(counts, 2)
    spelled = [" >= ".join(map(dims_.format_dim, pair)) for pair in least]
    constraints = [text for pair, text in zip(least, spelled, strict=True) if dims_.names(pair)]
    if names:
        sizes |= zip(
            names, export.symbolic_shape(",".join(names), constraints=constraints), strict=True
        )
    return sizes


def same_size(one: Dim, other: Dim) -> bool:
    """Whether two dims are equal for all sizes.

    Example:
        >>> from ckpt_schema.dims import parse_dims
        >>> same_size(*parse_dims("6*blocks+rest rest+blocks*6")), same_size(*parse_dims("6*blocks 5*blocks"))
        (True, False)
    """
    sizes = symbols(sorted(dims_.names((one, other))), frozenset())
    return bool(product(one, sizes) == product(other, sizes))
