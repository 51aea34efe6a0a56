"""Edits and defaults carried out on real leaves: jax arrays under ``jit``, NumPy arrays, tracers, abstract values."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ckpt_schema import defaults, leaves, placement
from ckpt_schema.defaults import Spot
from ckpt_schema.leaves import Fill, Leaf, Made
from ckpt_schema.lens import shardings, stages, traced
from ckpt_schema.lens.edits import Chain
from ckpt_schema.lens.shardings import on_devices

__all__ = ["edit", "make", "restart"]


def edit(
    chain: Chain,
    values: Sequence[Any],
    sizes: Mapping[str, int],
    leaf: Leaf,
    likes: Sequence[Any],
    beside: Sequence[Any] = (),
) -> list[Any]:
    """The edited leaves.

    Args:
        chain: What is done.
        values: The leaves, all of one shape and dtype.
        sizes: The sizes of the dims that ``chain`` needs.
        leaf: What the values are declared to be.
        likes: For each result, the leaf it stands for in the tree it goes onto, or None. A result takes its sharding, and
            becomes a Python number where it is one.
        beside: The leaves of the same tree. Where several hosts have a part in them, a Python number becomes an array that is
            on all of their mesh.

    Returns:
        The results: abstract where an input is, sharded as the edits map the inputs' sharding where ``likes`` doesn't say.
    """
    inputs = [_array(v, leaf.dtype, beside) if leaves.is_scalar(v) else v for v in values]
    if not chain:
        results = inputs
    elif any(leaves.is_abstract(v) for v in inputs):
        results = _abstract(chain, inputs, sizes)
    elif any(isinstance(v, Tracer) for v in inputs):
        return _traced_edit(chain, inputs, sizes)
    elif not any(isinstance(v, jax.Array) for v in inputs):
        made = chain.apply([np.asarray(v) for v in inputs], sizes)
        number = all(map(leaves.is_scalar, values))
        results = [_on_host(x, number=number) for x in made]
    else:
        results = stages.run(chain, _on_one_mesh(inputs), sizes)
    return [_like(result, like) for result, like in zip(results, likes, strict=True)]


def _array(value: complex, dtype: str, beside: Sequence[Any]) -> Any:
    mesh = shardings.mesh_of(beside) if jax.process_count() > 1 else None
    if mesh is None or leaves.is_narrowed(dtype):
        return leaves.materialized(value, dtype)
    return placement.placed(
        np.asarray(value, jnp.dtype(dtype)), NamedSharding(mesh, PartitionSpec())
    )


def _on_one_mesh(values: Sequence[Any]) -> Sequence[Any]:
    """Leaves beside those on an explicit mesh are put on all of it, if nobody said where: no program takes both."""
    named = [s for v in values if isinstance(s := getattr(v, "sharding", None), NamedSharding)]
    if not named or len(named) == len(values) or AxisType.Explicit not in named[0].mesh.axis_types:
        return values
    whole = NamedSharding(named[0].mesh, PartitionSpec())
    return [
        v if isinstance(getattr(v, "sharding", None), NamedSharding) else placement.placed(v, whole)
        for v in values
    ]


def _on_host(result: Any, *, number: bool) -> Any:
    """What NumPy made; of a number, an array of jax's as every number becomes, where jax has such."""
    if isinstance(result, jax.Array):  # NumPy has no keys
        return result
    array = np.asarray(result, order="C")
    return jnp.asarray(array) if number and not leaves.is_narrowed(array.dtype) else array


def _like(result: Any, like: Any) -> Any:
    if leaves.is_abstract(result):
        target = getattr(like, "sharding", None)
        if leaves.is_scalar(like) or isinstance(like, (np.generic, np.ndarray)):
            return jax.ShapeDtypeStruct(
                result.shape, result.dtype
            )  # what it stands for is on no device
        return (
            result
            if target is None
            else jax.ShapeDtypeStruct(result.shape, result.dtype, sharding=target)
        )
    if leaves.is_scalar(like):
        return type(like)(result)
    if isinstance(like, np.generic):
        return placement.gathered(result)[()]
    if isinstance(like, np.ndarray):
        return placement.gathered(result)
    target = on_devices(getattr(like, "sharding", None))
    if target is None or (isinstance(result, jax.Array) and result.sharding == target):
        return result
    return stages.settled(placement.placed(result, target))


def _abstract(
    chain: Chain, values: Sequence[Any], sizes: Mapping[str, int]
) -> list[jax.ShapeDtypeStruct]:
    found = _evaluated(
        chain,
        stages.needed_sizes(chain, sizes),
        tuple((tuple(v.shape), v.dtype) for v in values),
        any(map(leaves.is_narrowed, (v.dtype for v in values))),
    )
    told = shardings.results(chain, values, sizes) or [None] * len(found)
    return [
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s) for x, s in zip(found, told, strict=True)
    ]


@functools.lru_cache(maxsize=1024)
def _evaluated(
    chain: Chain,
    sizes: tuple[tuple[str, int], ...],
    inputs: tuple[tuple[tuple[int, ...], Any], ...],
    wide: bool,
) -> list[jax.ShapeDtypeStruct]:
    """The shapes and dtypes of the edited leaves: most layers and moments have those of another."""
    # Of 64 bits are NumPy's leaves, where jax would make others: what NumPy makes of them is asked for.
    with jax.enable_x64(True) if wide else contextlib.nullcontext():
        return jax.eval_shape(
            lambda *xs: chain.apply(xs, dict(sizes)),
            *(jax.ShapeDtypeStruct(*each) for each in inputs),
        )


def _traced_edit(chain: Chain, values: Sequence[Any], sizes: Mapping[str, int]) -> list[Any]:
    def run(*xs: Any) -> list[Any]:
        return traced.differentiable(chain, xs, sizes)

    found = shardings.results(
        chain, [jax.typeof(v) if isinstance(v, Tracer) else v for v in values], sizes
    )
    named = [
        s for s in found if isinstance(s, NamedSharding) and AxisType.Explicit in s.mesh.axis_types
    ]
    return stages.told(run, named)(*values) if named else run(*values)


def make(
    default: Made,
    dtype: str,
    shape: tuple[int, ...],
    spot: Spot,
    like: Any,
    mesh: Mesh | None,
    *,
    abstract: bool,
) -> Any:
    """A default, sharded like ``like``, or else replicated over ``mesh``: one global array, whatever the number of hosts.

    One of 64 bits that jax would narrow is NumPy's, as a file of such leaves needs it.
    """
    sharding = (
        getattr(like, "sharding", None) if abstract else on_devices(getattr(like, "sharding", None))
    )
    if sharding is None and mesh is not None:
        sharding = NamedSharding(mesh, PartitionSpec())
    if abstract:
        return jax.ShapeDtypeStruct(shape, leaves.dtype_of(dtype), sharding=sharding)
    if leaves.is_narrowed(dtype):
        return np.full(shape, default.value if isinstance(default, Fill) else 0, jnp.dtype(dtype))
    return defaults.make_default(default, dtype, shape, sharding, spot)


def restart(
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
    owns = [getattr(params[at], "sharding", None) if at is not None else None for at in along]
    told = [getattr(like, "sharding", None) for like in likes]
    shardings = [a or b or spare for a, b in zip(told, owns, strict=True)]
    if abstract:
        made = jax.eval_shape(run, [jax.ShapeDtypeStruct(p.shape, p.dtype) for p in params])
        return [
            jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
            for x, s in zip(made, shardings, strict=True)
        ]
    if any(isinstance(p, Tracer) for p in params):
        return run(params)
    return jax.jit(run, out_shardings=[on_devices(s) for s in shardings])(params)
