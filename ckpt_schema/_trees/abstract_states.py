"""The abstract state of a layout: shapes, dtypes and shardings, its dims being the logical axes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts import leaves, paths
from ckpt_schema._layouts.dims import Dim
from ckpt_schema._layouts.precision import Dtypes, verify_closed
from ckpt_schema._layouts.schema import Schema, layout
from ckpt_schema._layouts.table import Layout, Row
from ckpt_schema._messages.text import shown
from ckpt_schema._trees.containers import Tree, build
from ckpt_schema.errors import Mismatch, SchemaError

__all__ = ["abstract"]

MeshAxes = str | Sequence[str] | None


def abstract(
    source: type[Schema] | Layout,
    dims: Mapping[str, int] | None = None,
    mesh: Mesh | None = None,
    axes: Mapping[str, MeshAxes] | None = None,
    *,
    dtype: Dtypes | None = None,
) -> Tree:
    """The abstract state of a layout: what a restore or ``jax.jit`` is told of shapes, dtypes and shardings.

    Args:
        source: A schema or a layout.
        dims: The size of every dim.
        mesh: The mesh that the leaves are sharded over.
        axes: The mesh axes of each dim by name, as Flax's logical axis rules say it: ``{"embed":
            "fsdp"}``. A product goes by its first factor, or by its own spelling,
            ``{"heads*head_dim": "tensor"}``. Dims that it does not name are not sharded. Of two
            axes of one leaf that want one mesh axis, the first has it, as in Flax.
        dtype: Which floats the leaves of any float are; see `layout`.

    Returns:
        Nested dicts, or an ``nnx.State`` of Variables, of ``jax.ShapeDtypeStruct``. Leaves that a
        tree may lack, and that have no default, are left out.

    Raises:
        SchemaError: With every dim that has no size, every name that is no dim of the layout or no
            axis of the mesh, every axis whose size its mesh axes do not divide, and every leaf of
            any float without a dtype.

    Example:
        >>> import jax
        >>> from jaxtyping import Array, Float32
        >>> class Dense(Schema):
        ...     kernel: Float32[Array, "embed mlp"]
        >>> mesh = jax.make_mesh((1, 1), ("fsdp", "tensor"))
        >>> state = abstract(Dense, {"embed": 4, "mlp": 8}, mesh, {"embed": "fsdp", "mlp": "tensor"})
        >>> state["kernel"].shape, state["kernel"].sharding.spec
        ((4, 8), P('fsdp', 'tensor'))
    """
    table, given = layout(source, dtype=dtype), {} if axes is None else axes
    verify_closed(table, "an abstract state", 'add dtype="bfloat16"')
    sizes = table.bound(dims)
    rows = tuple(row for row in table.rows if row.default is not None or not row.optional)
    kept = dataclasses.replace(table, rows=rows)  # whose dims alone have to have sizes
    # First what is given, then what follows from it: without sizes no axis can be divided.
    faults = [*_unsized(kept, sizes), *_unknown(table, mesh, given)]
    if faults:
        raise SchemaError(f"no abstract state of {table.name}", faults)
    # Once for a row, and not for each of its layers.
    specs = [_spec(row, sizes, mesh, given, faults) for row in rows]
    if faults:
        raise SchemaError(f"no abstract state of {table.name}", faults)
    made: list[Any] = []
    for entry in kept.entries(sizes):
        number, row = entry.slot[0], rows[entry.slot[0]]
        sharding = None if mesh is None else NamedSharding(mesh, specs[number])
        dtype = leaves.dtype_of(row.leaf.dtype)
        value = jax.ShapeDtypeStruct(entry.shape, dtype, sharding=sharding)
        made.append((entry.key, row, value))
    return build(table, made, sizes)


def _unsized(table: Layout, sizes: Mapping[str, int]) -> Iterator[Mismatch]:
    for name in sorted(table.names() - sizes.keys()):
        yield Mismatch(name, "dims", "the size of every dim", "none", f'add "{name}": ...')


def _unknown(table: Layout, mesh: Mesh | None, axes: Mapping[str, MeshAxes]) -> Iterator[Mismatch]:
    """What is wrong with the axes as they are given."""
    # A name, or a whole axis as the layout spells it: heads, or heads*head_dim.
    known = set(table.names())
    for row in table.rows:
        known.update(map(dims_.format_dim, row.dims))
    there: tuple[Any, ...] = () if mesh is None else mesh.axis_names
    for name, several in axes.items():
        if name not in known:
            hint = f"its dims are {', '.join(sorted(table.names())) or 'none'}"
            yield Mismatch(name, "dims", f"a dim of {table.name}", "an unknown name", hint)
        wrong = [axis for axis in _several(several) if axis not in there]
        if wrong and mesh is None:
            yield Mismatch(name, "sharding", "a mesh beside axes", "none", "give mesh=")
        elif wrong:
            expected = f"axes of the mesh ({', '.join(map(str, there))})"
            yield Mismatch(name, "sharding", expected, shown(several))


def _several(axes: MeshAxes) -> tuple[str, ...]:
    if axes is None:
        return ()
    return (axes,) if isinstance(axes, str) else tuple(axes)


def _spec(
    row: Row,
    sizes: Mapping[str, int],
    mesh: Mesh | None,
    axes: Mapping[str, MeshAxes],
    faults: list[Mismatch],
) -> PartitionSpec:
    """How a leaf is sharded; what does not fit is added to ``faults``."""
    parts: list[MeshAxes] = []
    taken: set[str] = set()
    for dim in row.dims:
        name, first = _named(dim, axes)
        wanted = _several(axes.get(name))
        # No mesh axis can shard two axes of one leaf.
        if mesh is None or not wanted or not taken.isdisjoint(wanted):
            parts.append(None)
            continue
        taken.update(wanted)
        parts.append(wanted[0] if len(wanted) == 1 else wanted)
        count = math.prod(mesh.shape[axis] for axis in wanted)
        # Of heads*head_dim over two devices each has whole heads: the first factor is divided.
        size = dims_.size_of(first, sizes)
        if size is None or size % count:
            expected = f"{name} in {count} equal shares, over {', '.join(wanted)}"
            hint = "choose another mesh, or leave this dim out of axes"
            found = f"a size of {size}"
            faults.append(Mismatch(paths.format_path(row.key), "sharding", expected, found, hint))
    return PartitionSpec(*parts)


def _named(dim: Dim, axes: Mapping[str, MeshAxes]) -> tuple[str, Dim]:
    """By what an axis is named, and the part of it that has to be divided: the whole, or its first factor."""
    whole = dims_.format_dim(dim)
    return (whole, dim) if whole in axes else (str(dim[0]), dim[:1])
