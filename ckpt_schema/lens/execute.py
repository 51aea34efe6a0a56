"""Edits and defaults carried out on real leaves: jax arrays under ``jit``, NumPy arrays, tracers, abstract values."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ckpt_schema import leaves
from ckpt_schema.errors import ConformanceError, Mismatch
from ckpt_schema.leaves import Fill, FreshKey, Leaf
from ckpt_schema.lens.axes import Entries
from ckpt_schema.lens.edits import Chain, Edit
from ckpt_schema.lens.partial import Cast, Pad, Partial, Scale, Unpad

__all__ = ["edit", "make", "mesh_of", "narrowed", "on_devices", "restart", "verify_values"]


def edit(chain: Chain, values: Sequence[Any], sizes: Mapping[str, int], leaf: Leaf, likes: Sequence[Any]) -> list[Any]:
    """The edited leaves.

    Args:
        chain: What is done.
        values: The leaves, all of one shape and dtype.
        sizes: The sizes of the dims that ``chain`` needs.
        leaf: What the values are declared to be.
        likes: For each result, the leaf it stands for in the tree it goes onto, or None. A result takes its sharding, and
            becomes a Python number where it is one.

    Returns:
        The results: abstract where an input is, sharded as the edits map the inputs' sharding where ``likes`` doesn't say.
    """
    inputs = [jnp.asarray(v, leaf.dtype) if leaves.is_scalar(v) else v for v in values]
    if not chain:
        results = inputs
    elif any(leaves.is_abstract(v) for v in inputs):
        results = _abstract(chain, inputs, sizes)
    elif any(isinstance(v, Tracer) for v in inputs):
        return _traced_edit(chain, inputs, sizes)
    elif not any(isinstance(v, jax.Array) for v in inputs):
        made = chain.apply([np.asarray(v) for v in inputs], sizes)
        results = [x if isinstance(x, jax.Array) else np.asarray(x, order="C") for x in made]  # NumPy has no keys
    else:
        results = _compiled_edit(chain, inputs, sizes)
    return [_like(result, like) for result, like in zip(results, likes, strict=True)]


def _like(result: Any, like: Any) -> Any:
    if leaves.is_abstract(result):
        target = getattr(like, "sharding", None)
        return result if target is None else jax.ShapeDtypeStruct(result.shape, result.dtype, sharding=target)
    if leaves.is_scalar(like):
        return type(like)(result)
    if isinstance(like, np.generic):
        return np.asarray(result)[()]
    if isinstance(like, np.ndarray):
        return np.asarray(result)
    target = on_devices(getattr(like, "sharding", None))
    if target is None or not isinstance(result, jax.Array) or result.sharding == target:
        return result
    return jax.device_put(result, target)


def _abstract(chain: Chain, values: Sequence[Any], sizes: Mapping[str, int]) -> list[jax.ShapeDtypeStruct]:
    bare = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in values]
    found = jax.eval_shape(lambda *xs: chain.apply(xs, sizes), *bare)
    shardings = _result_shardings(chain, values, sizes) or [None] * len(found)
    return [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s) for x, s in zip(found, shardings, strict=True)]


def _compiled_edit(chain: Chain, values: Sequence[Any], sizes: Mapping[str, int]) -> list[Any]:
    shardings = _result_shardings(chain, values, sizes)
    named = tuple(s for s in shardings if isinstance(s, NamedSharding))
    return list(_compiled(chain, tuple(sorted(sizes.items())), named)(*values))


@functools.lru_cache(maxsize=1024)
def _compiled(chain: Chain, sizes: tuple[tuple[str, int], ...], shardings: tuple[NamedSharding, ...]) -> Any:
    """One jitted function per distinct edit and sharding of the results; jax then compiles it once per shape."""

    def run(*values: Any) -> list[Any]:
        return _apply(chain, values, dict(sizes))

    if not shardings:
        return jax.jit(run)
    if AxisType.Explicit in shardings[0].mesh.axis_types:
        return jax.jit(_told(run, shardings))
    return jax.jit(run, out_shardings=list(shardings))


def _told(run: Callable[..., list[Any]], shardings: Sequence[NamedSharding]) -> Callable[..., list[Any]]:
    """``run`` with its results' shardings given: on an explicit mesh a sharded axis is not split or merged without."""
    told: Any = jax.sharding.auto_axes(out_sharding=list(shardings))(run)
    return told


def _traced_edit(chain: Chain, values: Sequence[Any], sizes: Mapping[str, int]) -> list[Any]:
    def run(*xs: Any) -> list[Any]:
        return _apply(chain, xs, sizes)

    shardings = _result_shardings(chain, [jax.typeof(v) if isinstance(v, Tracer) else v for v in values], sizes)
    named = [s for s in shardings if isinstance(s, NamedSharding) and AxisType.Explicit in s.mesh.axis_types]
    return _told(run, named)(*values) if named else run(*values)


def _apply(chain: Chain, values: Sequence[Any], sizes: Mapping[str, int]) -> list[Any]:
    """The edited leaves of traced ones; floats travel as unsigned integers, so that no backend touches a bit of them.

    XLA may compute on a wider float between two moves, which changes the payload of a NaN: its CPU backend does so where it
    fuses the slices and transposes of ``float8_e5m2``. Between devices it adds what each has of a slice to the zeros of the
    others, which changes one as well: complex numbers travel as two floats.
    """
    edited = list(values)
    for scaled, edits in itertools.groupby(chain.edits, lambda edit: isinstance(edit, Scale)):
        part = Chain(tuple(edits))
        edited = part.apply(edited, sizes) if scaled else _moved(part, edited, sizes)
    return edited


def _moved(chain: Chain, values: Sequence[Any], sizes: Mapping[str, int]) -> list[Any]:
    """What edits that compute nothing make of traced leaves."""
    dtype = values[0].dtype
    if jnp.issubdtype(dtype, jnp.complexfloating):
        parts = [_moved(chain, [part(x) for x in values], sizes) for part in (jax.lax.real, jax.lax.imag)]
        return [jax.lax.complex(real, imaginary) for real, imaginary in zip(*parts, strict=True)]
    if not jnp.issubdtype(dtype, jnp.floating):
        return chain.apply(values, sizes)
    bits = jnp.dtype(f"uint{jnp.finfo(dtype).bits}")

    @jax.custom_jvp
    def moved(*xs: Any) -> list[Any]:
        edited = _filled(chain, dtype).apply([jax.lax.bitcast_convert_type(x, bits) for x in xs], sizes)
        return [jax.lax.bitcast_convert_type(x, dtype) for x in edited]

    def tangents(primals: tuple[Any, ...], along: tuple[Any, ...]) -> tuple[list[Any], list[Any]]:
        # An integer has no derivative, but what moves floats is linear.
        return moved(*primals), _filled(chain, None).apply(along, sizes)

    moved.defjvp(tangents)
    return moved(*values)


def _filled(chain: Chain, dtype: Any) -> Chain:
    """The chain for the bits of floats, or for tangents: padding is of the bits of its fill, or does not depend on anything."""

    def fill(edit: Edit) -> Edit:
        if not isinstance(edit, Pad):
            return edit
        bits = 0 if dtype is None else int(np.asarray(edit.fill).astype(dtype).view(f"uint{jnp.finfo(dtype).bits}"))
        return dataclasses.replace(edit, fill=bits)

    return Chain(tuple(map(fill, chain.edits)))


def _result_shardings(chain: Chain, values: Sequence[Any], sizes: Mapping[str, int]) -> list[Any]:
    """How each result is sharded, from the inputs' shardings; nothing where that is unknown."""
    shardings = [getattr(value, "sharding", None) for value in values]
    shapes = [tuple(value.shape) for value in values]
    first = next((s for s in shardings if isinstance(s, NamedSharding)), None)
    if first is None:
        alike = shardings[0] is not None and all(s == shardings[0] for s in shardings)
        return [shardings[0]] * len(chain.shapes(shapes, sizes)) if alike else []
    ways: dict[str, int] = dict(first.mesh.shape)
    specs = [s.spec if isinstance(s, NamedSharding) and s.mesh == first.mesh else () for s in shardings]
    split = [_entries(spec, len(shape)) for spec, shape in zip(specs, shapes, strict=True)]
    found = chain.entries(split, shapes, sizes, ways)
    return [NamedSharding(first.mesh, _spec(each), memory_kind=first.memory_kind) for each in found]


def _entries(spec: PartitionSpec | tuple[()], rank: int) -> Entries:
    full = (*spec, *[None] * (rank - len(spec)))
    return tuple(axes if isinstance(axes, tuple) else (axes,) if isinstance(axes, str) else () for axes in full)


def _spec(entries: Entries) -> PartitionSpec:
    return PartitionSpec(*(None if not axes else axes[0] if len(axes) == 1 else axes for axes in entries))


def on_devices(sharding: Any) -> Any:
    """A sharding on real devices, or None: ``jax.eval_shape`` leaves an abstract mesh, for which the mesh in context stands."""
    own: Any = getattr(sharding, "mesh", None)
    if not isinstance(sharding, NamedSharding) or isinstance(own, Mesh):
        return sharding
    mesh = jax.sharding.get_mesh()
    return None if mesh.empty else NamedSharding(mesh, sharding.spec)


def mesh_of(values: Sequence[Any]) -> Mesh | None:
    """The mesh that the leaves are sharded over, or None."""
    for value in values:
        sharding = getattr(value, "sharding", None)
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
            return sharding.mesh
    return None


def make(default: Fill | FreshKey, dtype: str, shape: tuple[int, ...], like: Any, mesh: Mesh | None, *, abstract: bool) -> Any:
    """A default, sharded like ``like``, or else replicated over ``mesh``: one global array, whatever the number of hosts."""
    sharding = getattr(like, "sharding", None) if abstract else on_devices(getattr(like, "sharding", None))
    if sharding is None and mesh is not None:
        sharding = NamedSharding(mesh, PartitionSpec())
    if abstract:
        made = jax.eval_shape(lambda: leaves.make_default(default, dtype, shape))
        return jax.ShapeDtypeStruct(made.shape, made.dtype, sharding=sharding)
    return leaves.make_default(default, dtype, shape, sharding)


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
        return [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s) for x, s in zip(made, shardings, strict=True)]
    if any(isinstance(p, Tracer) for p in params):
        return run(params)
    return jax.jit(run, out_shardings=[on_devices(s) for s in shardings])(params)


def verify_values(jobs: Sequence[tuple[Chain, Mapping[str, int], Sequence[Any], Sequence[str]]]) -> None:
    """Raises unless every value survives its edits.

    Args:
        jobs: Edits, the sizes they need, their input leaves and these leaves' key paths.

    Raises:
        ConformanceError: With every leaf whose values do not fit, or are not known under a trace.
    """
    faults: list[Mismatch] = []
    for chain, sizes, values, names in jobs:
        if not any(isinstance(edit, Partial) for edit in chain.edits):
            continue
        for value, name in zip(values, names, strict=True):
            faults += _lost(chain, sizes, value, name)
    if faults:
        raise ConformanceError(f"values cannot be carried over exactly: {len(faults)} fault(s)", faults)


def narrowed(path: str, dtype: str) -> Mismatch | None:
    """The fault where jax would make a leaf of another dtype: it has no 64-bit arrays unless told to."""
    made = None if dtype.startswith("key<") else jax.dtypes.canonicalize_dtype(dtype)
    if made is None or made == jnp.dtype(dtype):
        return None
    found = f"{made}, which is what jax makes of it"
    return Mismatch(path, "dtype", f"an array of {dtype}", found, 'set jax.config.update("jax_enable_x64", True)')


def _lost(chain: Chain, sizes: Mapping[str, int], value: Any, path: str) -> Iterator[Mismatch]:
    """What does not survive. Padding is cut off before anything else is done; the rest treats each element alike."""
    for edit in chain.edits:
        if isinstance(edit, Partial):
            fault = _fault(edit, sizes, value, path)
            if fault is not None:
                yield fault
                return
            if isinstance(edit, Unpad):
                value = jax.eval_shape(edit.one, value, sizes) if leaves.is_abstract(value) else edit.one(value, sizes)


def _fault(edit: Partial, sizes: Mapping[str, int], value: Any, path: str) -> Mismatch | None:
    """What one edit would change in a leaf."""
    if isinstance(edit, Cast) and not isinstance(value, (np.ndarray, np.generic)) and (fault := narrowed(path, edit.view)):
        return fault
    if leaves.is_abstract(value) or (not leaves.is_scalar(value) and 0 in value.shape):
        return None
    kind, expected = type(edit).__name__.lower(), edit.expected(sizes)
    if isinstance(value, Tracer):
        return Mismatch(path, kind, expected, "a tracer", f"{edit} is checked by value: translate outside of jit")
    found = edit.found(value, sizes)
    return None if found is None else Mismatch(path, kind, expected, *found)
