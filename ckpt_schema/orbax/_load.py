"""A checkpoint, or part of one, as it is: without a target, and whatever mesh it was saved on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Sharding, SingleDeviceSharding

from ckpt_schema._layouts import leaves, paths
from ckpt_schema._layouts.paths import KeyPath, named
from ckpt_schema._lens.arrays.checks import narrowed
from ckpt_schema._messages.text import counted
from ckpt_schema._trees.containers import flatten
from ckpt_schema.errors import CheckpointMismatchError, Mismatch
from ckpt_schema.orbax import _metadata as metadata
from ckpt_schema.orbax._agreement import agree, raised_by_all
from ckpt_schema.orbax._collector import old_objects_aside
from ckpt_schema.orbax._metadata import SKIP
from ckpt_schema.orbax._sides import verify_names

__all__ = ["load", "number_for", "on_host", "ordered"]


@old_objects_aside()
def load(
    path: epath.PathLike,
    *,
    only: str | Sequence[str] = "**",
    item: str | None = None,
    sharding: Sharding | Callable[[str, jax.ShapeDtypeStruct], Sharding] | None = None,
) -> dict[Any, Any]:
    """What a checkpoint holds, as nested dicts and lists: no target, no lens.

    Orbax alone puts arrays back on the devices that they were saved from, and fails where there are
    none such. This reads them on any machine.

    Args:
        path: A checkpoint directory, local or remote.
        only: Globs of the key paths that are read, as `ckpt_schema` writes them: ``*`` is one key
            or a part of one, ``**`` any number of keys. Nothing else is read.
        item: Which pytree of the checkpoint, where it holds several.
        sharding: Where arrays go: one sharding for all, or a function of key path and abstract
            leaf. Into the memory of the host unless given: they are arrays of the first CPU device.

    Returns:
        The tree, without the leaves that were not asked for. Typed keys have their implementation.

    Raises:
        CheckpointMismatchError: There is no checkpoint, or a glob matches nothing, or it cannot be
            read, or jax would narrow leaves of 64 bits. A number of 64 bits is a Python number.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> import ckpt_schema as cs
        >>> folder = tempfile.mkdtemp() + "/100"
        >>> cs.orbax.save(folder, {"params": {"w": jnp.ones(2), "b": jnp.zeros(1)}, "step": 7})
        >>> cs.orbax.load(folder, only=["**/w", "step"])
        {'params': {'w': Array([1., 1.], dtype=float32)}, 'step': 7}
    """
    with raised_by_all():
        verify_names(item=item)
        disk = metadata.read_metadata(path, item)
        globs = [only] if isinstance(only, str) else list(only)
        flat = flatten(disk.tree)
        wanted = _wanted(flat.keys, globs, str(disk.path))
        place = _placing(sharding)
        order: list[Any] = []
        faults: list[Mismatch] = []
        for key, leaf in zip(flat.keys, flat.leaves, strict=True):
            # A placeholder counts as settled: neither a sharding nor a dtype is asked for.
            number = number_for(leaf) if key in wanted else SKIP
            order.append(ordered(key, leaf, place) if number is None else number)
            fault = narrowed(paths.format_path(key), str(leaf.dtype)) if number is None else None
            faults += [fault] if fault is not None else []
        if faults:
            raise CheckpointMismatchError(f"{disk.where} has leaves that jax would narrow", faults)
    agree("processes do not load the same", {"path": disk.path, "item": disk.item, "only": globs})
    with raised_by_all():
        arrays = metadata.read_arrays(disk, (), flat.treedef.unflatten(order))
    # Orbax gives back the placeholders too, which are nothing to a caller.
    return arrays if len(wanted) == len(flat.keys) else _without(arrays, wanted, ())


def _placing(
    given: Sharding | Callable[[str, jax.ShapeDtypeStruct], Sharding] | None,
) -> Callable[[str, jax.ShapeDtypeStruct], Sharding]:
    if isinstance(given, Sharding):
        return lambda _path, _leaf: given
    if given is not None:
        return given
    return on_host


def on_host(_path: str, _leaf: Any) -> Sharding:
    """Puts a leaf into the memory of the host."""
    try:
        return SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS leaves the CPU out
        return SingleDeviceSharding(jax.local_devices()[0])


def ordered(key: KeyPath, leaf: Any, place: Callable[[str, jax.ShapeDtypeStruct], Sharding]) -> Any:
    """What Orbax is asked for: an array with a sharding, or a number as it is."""
    if leaves.is_scalar(leaf):
        return number_for(leaf)
    return jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=place(paths.format_path(key), leaf)
    )


def number_for(stored: Any) -> Any:
    """What is asked of Orbax for a leaf that is read as a Python number: a number, or of 64 bits where jax has none.

    Orbax loads it as such, whatever its value; into an array it would cut it down to the bits of the dtype.
    """
    if isinstance(stored, str):  # which of Orbax's own trees may hold
        return stored
    if leaves.is_scalar(stored):
        # A bool is an int too, so that it is asked for first.
        return next(kind() for kind in (bool, int, float, complex) if isinstance(stored, kind))
    if stored.shape or not leaves.is_narrowed(stored.dtype):
        return None
    return {"i": 0, "u": 0, "f": 0.0}.get(np.dtype(stored.dtype).kind)


def _wanted(keys: Sequence[KeyPath], globs: Sequence[str], where: str) -> set[KeyPath]:
    """The keys that some glob means.

    Raises:
        CheckpointMismatchError: With every glob that means none.
    """
    matched: set[KeyPath] = set()
    faults: list[Mismatch] = []
    spelled = {key: tuple(map(named, key)) for key in keys}
    for glob in globs:
        pattern = paths.rule_path(glob)
        means = {key for key, path in spelled.items() if paths.glob_means(pattern, path)}
        if not means:
            few = ", ".join(paths.format_path(key) for key in keys[:3])
            hint = f"the checkpoint has {counted(len(keys), 'leaf', 'leaves')}: {few}, ..."
            faults.append(Mismatch(glob, "rule", "leaves of the checkpoint", "none", hint))
        matched |= means
    if faults:
        raise CheckpointMismatchError(f"{where} has no such leaves", faults)
    return matched


_UNREAD = object()
"""Stands for what was not read."""


def _without(node: Any, wanted: set[KeyPath], at: KeyPath) -> Any:
    """A tree without the leaves that were not read, and without nodes that held nothing else.

    Members of a list keep their places.
    """
    if isinstance(node, dict):
        kept: dict[Any, Any] = {}
        for key, child in node.items():
            left = _without(child, wanted, (*at, key))
            if left is not _UNREAD:
                kept[key] = left
        # The root stays, though nothing is in it: an empty checkpoint is an empty dict.
        return kept if kept or not at else _UNREAD
    if isinstance(node, (list, tuple)):
        members = [_without(child, wanted, (*at, place)) for place, child in enumerate(node)]
        if members and all(member is _UNREAD for member in members):
            return _UNREAD
        return [None if member is _UNREAD else member for member in members]
    return node if at in wanted else _UNREAD
