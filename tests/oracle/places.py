"""Where a program may have its leaves: NumPy in either order, jax on one device, on meshes of both kinds, under jit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

Put = Callable[[Any], Any]


def on_mesh(kind: AxisType) -> Put:
    """Puts a leaf on a mesh of (4, 2), cut along as many of its axes as the mesh's divide."""

    def put(leaf: np.ndarray[Any, Any]) -> jax.Array:
        mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
        free = dict(mesh.shape)
        spec: list[str | None] = []
        for size in leaf.shape:
            name = next((name for name, parts in free.items() if size % parts == 0), None)
            spec.append(name)
            free.pop(name, None)
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*spec)))

    return put


PLACES: dict[str, tuple[Put, bool]] = {
    "NumPy": (np.ascontiguousarray, False),
    "Fortran": (np.asfortranarray, False),
    "jax": (jnp.asarray, False),
    "Auto": (on_mesh(AxisType.Auto), False),
    "Explicit": (on_mesh(AxisType.Explicit), False),
    "jit": (jnp.asarray, True),
}
"""By name: what puts a leaf there, and whether the translation runs under jit."""
