"""What a folder of Hugging Face holds, without a target: its names and shapes, or its tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from etils import epath
from jax.sharding import Sharding

from ckpt_schema._layouts import paths
from ckpt_schema._layouts.paths import named
from ckpt_schema._messages.text import counted
from ckpt_schema._safetensors.ranges import read_tensor
from ckpt_schema._safetensors.shards import read_sharded
from ckpt_schema._safetensors.weights import Weights, read_weights
from ckpt_schema.errors import CheckpointMismatchError, Mismatch
from ckpt_schema.orbax._agreement import agree, raised_by_all

__all__ = ["load", "metadata"]


def metadata(path: epath.PathLike) -> dict[str, jax.ShapeDtypeStruct]:
    """The names, shapes and dtypes of the tensors of a folder of Hugging Face. Its headers alone are read.

    Args:
        path: A folder, a safetensors file, or the index of several.

    Returns:
        The abstract tensors by name. ``ckpt_schema.infer(path)`` is their layout.

    Raises:
        CheckpointMismatchError: There are none, or the files are damaged, with every fault.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from safetensors.numpy import save_file
        >>> folder = tempfile.mkdtemp()
        >>> save_file({"model.norm.weight": np.ones(3)}, folder + "/model.safetensors")
        >>> metadata(folder)
        {'model.norm.weight': ShapeDtypeStruct(shape=(3,), dtype=float64)}
    """
    return read_weights(path).tree


def load(
    path: epath.PathLike,
    *,
    only: str | Sequence[str] = "**",
    sharding: Sharding | Callable[[str, jax.ShapeDtypeStruct], Sharding] | None = None,
) -> dict[str, Any]:
    """The tensors of a folder of Hugging Face by name: no target, no lens.

    Args:
        path: A folder, a safetensors file, or the index of several.
        only: Globs of the names that are read, in which a dot is written as a slash: ``*`` is one
            part of a name or some of it, ``**`` any number of parts. Nothing else is read.
        sharding: Where tensors go: one sharding for all, or a function of name and abstract tensor.
            Each process then reads what its own devices hold.

    Returns:
        NumPy arrays, of any dtype that the files have; jax arrays where a sharding is given.

    Raises:
        CheckpointMismatchError: There are none, a glob matches nothing, or the files are damaged.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from safetensors.numpy import save_file
        >>> folder = tempfile.mkdtemp()
        >>> both = {"model.norm.weight": np.ones(3), "lm_head.weight": np.ones((2, 3))}
        >>> save_file(both, folder + "/model.safetensors")
        >>> load(folder, only="**/norm/*")
        {'model.norm.weight': array([1., 1., 1.])}
    """
    globs = [only] if isinstance(only, str) else list(only)
    with raised_by_all():
        weights = read_weights(path)
        names = _wanted(weights, globs)
    # Processes read together, tensor by tensor: one that reads others would wait without an end.
    agree("processes do not load the same", {"path": weights.path, "only": globs})
    with raised_by_all():
        return {name: _read(weights, name, sharding) for name in names}


def _read(
    weights: Weights,
    name: str,
    sharding: Sharding | Callable[[str, jax.ShapeDtypeStruct], Sharding] | None,
) -> Any:
    tensor = weights.tensors[name]
    # NumPy's: jax would make a float32 of a float64, unless it has been told otherwise.
    if sharding is None:
        return read_tensor(tensor)
    if not isinstance(sharding, Sharding):
        sharding = sharding(name, jax.ShapeDtypeStruct(tensor.shape, tensor.dtype))
    return read_sharded(tensor, sharding)


def _wanted(weights: Weights, globs: Sequence[str]) -> list[str]:
    """The names that some glob means, in the order of the files.

    Raises:
        CheckpointMismatchError: With every glob that means none.
    """
    # model.layers.0.norm.weight is found as model/layers/0/norm/weight.
    spelled = {name: tuple(map(named, name.split("."))) for name in weights.tensors}
    wanted: set[str] = set()
    faults: list[Mismatch] = []
    for glob in globs:
        pattern = paths.rule_path(glob)
        matches = {name for name, path in spelled.items() if paths.glob_means(pattern, path)}
        # A glob with a slip of the pen would read nothing, and nobody would know.
        if not matches:
            few = ", ".join([*spelled][:3])
            hint = f"there are {counted(len(spelled), 'tensor')}: {few}, ..."
            faults.append(Mismatch(glob, "rule", "tensors of the files", "none", hint))
        wanted |= matches
    if faults:
        raise CheckpointMismatchError(f"{weights.path} has no such tensors", faults)
    # Once each, however many globs mean it, and in an order that all processes have.
    return [name for name in weights.tensors if name in wanted]
