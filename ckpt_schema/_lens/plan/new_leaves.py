"""Leaves that are made of no leaf: defaults, and what an optimizer starts with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ckpt_schema._compat import Tracer
from ckpt_schema._layouts import leaves
from ckpt_schema._layouts.leaves import Fill, Made
from ckpt_schema._lens.arrays.shardings import on_devices
from ckpt_schema._trees import defaults
from ckpt_schema._trees.defaults import Receiver

__all__ = ["anew", "default"]


def default(
    how: Made,
    dtype: str,
    shape: tuple[int, ...],
    spot: Receiver,
    like: Any,
    mesh: Mesh | None,
    *,
    abstract: bool,
) -> Any:
    """A default, sharded like ``like``, or else replicated over ``mesh``: one global array, whatever the number of hosts.

    One of 64 bits that jax would narrow is NumPy's, as a file of such leaves needs it.
    """
    sharding = getattr(like, "sharding", None)
    # An abstract mesh is no place to put values on.
    if not abstract:
        sharding = on_devices(sharding)
    if sharding is None and mesh is not None:
        sharding = NamedSharding(mesh, PartitionSpec())
    if abstract:
        return jax.ShapeDtypeStruct(shape, leaves.dtype_of(dtype), sharding=sharding)
    # Unless 64 bits are enabled, jax would make a leaf of 32 of it.
    if leaves.is_narrowed(dtype):
        return np.full(shape, how.value if isinstance(how, Fill) else 0, jnp.dtype(dtype))
    return defaults.make_default(how, dtype, shape, sharding, spot)


def anew(
    run: Callable[[Sequence[Any]], list[Any]],
    params: Sequence[Any],
    likes: Sequence[Any],
    along: Sequence[int | None],
    mesh: Mesh | None,
    *,
    abstract: bool,
) -> list[Any]:
    """Leaves that ``run`` makes of params, sharded like ``likes``, or else like their params, or replicated over ``mesh``."""
    spare = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    shardings: list[Any] = []
    for like, number in zip(likes, along, strict=True):
        of_param = None if number is None else getattr(params[number], "sharding", None)
        shardings.append(getattr(like, "sharding", None) or of_param or spare)
    if abstract:
        shapes = [jax.ShapeDtypeStruct(param.shape, param.dtype) for param in params]
        made: list[Any] = []
        for leaf, sharding in zip(jax.eval_shape(run, shapes), shardings, strict=True):
            made.append(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding))
        return made
    # Within a trace the caller's own jit says where results are to be.
    if any(isinstance(param, Tracer) for param in params):
        return run(params)
    return jax.jit(run, out_shardings=[*map(on_devices, shardings)])(params)
