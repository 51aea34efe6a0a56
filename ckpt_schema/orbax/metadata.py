"""What a checkpoint holds, as an abstract tree: one metadata read, no array data. And the reading of a part of it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from ckpt_schema import leaves, paths
from ckpt_schema.errors import CheckpointMismatchError, Mismatch
from ckpt_schema.orbax.places import UNFINISHED, absolute, active_context, first_line
from ckpt_schema.paths import KeyPath
from ckpt_schema.pytrees import key_paths
from ckpt_schema.text import counted
from ckpt_schema.trees import Tree

__all__ = ["SKIP", "DiskTree", "alone", "load", "read"]

SKIP = ocp.PLACEHOLDER
"""Stands for a leaf that is not to be read."""

_CHECKPOINT = "_CHECKPOINT_METADATA"  # Orbax's file in a checkpoint
_ITEM = "_METADATA"  # and in each pytree of it


@dataclasses.dataclass(frozen=True, slots=True)
class DiskTree:
    """A checkpoint's state without its values.

    Attributes:
        path: Where it lies.
        item: The name of the pytree in it; None where it stands at the root, as older versions of Orbax wrote it.
        tree: Dicts, lists and None slots as Orbax returns them, of ``ShapeDtypeStruct``s without sharding and Python numbers.
            Typed keys have the dtype of the implementation they were saved with; a number says its type, not its value.
        beside: The names of the other pytrees in it.
    """

    path: epath.Path
    item: str | None
    tree: Tree
    beside: frozenset[str] = frozenset()

    def at(self, prefix: KeyPath) -> Tree | None:
        """The subtree at ``prefix``, or None when there is none."""
        return _at(self.tree, prefix)

    def without(self, key: str | None) -> DiskTree:
        """The same without what is at one key of the root."""
        if not isinstance(self.tree, dict) or key not in self.tree:
            return self
        return dataclasses.replace(
            self, tree={name: child for name, child in self.tree.items() if name != key}
        )


def _at(tree: Tree, prefix: KeyPath) -> Tree | None:
    for key in prefix:
        if not isinstance(tree, dict) or key not in tree:
            return None
        tree = tree[key]
    return tree


def read(path: epath.PathLike, item: str | None = None, *, aux: str | None = None) -> DiskTree:
    """Reads the metadata of the checkpoint at ``path``, once.

    Args:
        path: A checkpoint of Orbax's v1 or v0 API.
        item: Which pytree of it, where it holds several.
        aux: One that is not meant unless it is named.

    Raises:
        CheckpointMismatchError: There is no checkpoint, no such item, or no metadata that Orbax can read.
    """
    place = absolute(path)
    name, items = _item(place, item, aux)
    try:
        found = ocp.metadata(place, checkpointable_name=name).metadata
        if found is None:  # Orbax logs what went wrong and returns nothing
            raise ValueError("no metadata could be read; the log says why")
        flat, treedef = jax.tree_util.tree_flatten_with_path(found)
        keys, _ = key_paths(at for at, _ in flat)
        impls = (
            _key_impls(place / (name or "")) if any(_may_be_key(leaf) for _, leaf in flat) else {}
        )
        typed = [
            _abstract(leaf, impls.get(".".join(map(str, key))))
            for key, (_, leaf) in zip(keys, flat, strict=True)
        ]
    except Exception as error:  # Orbax has no one class for what may be wrong with a directory
        hint = "a copy may be incomplete; a plain Python bool among the leaves has this effect too"
        raise _refusal(
            place, "a checkpoint that cannot be read", hint, [f"Orbax says: {first_line(error)}"]
        ) from error
    return DiskTree(place, name, treedef.unflatten(typed), items - {name or ""})


def _refusal(
    place: epath.Path, found: str, hint: str, notes: list[str] | None = None
) -> CheckpointMismatchError:
    fault = Mismatch(str(place), "checkpoint", "an Orbax checkpoint", found, hint)
    return CheckpointMismatchError(f"{place} cannot be restored", [fault], notes or ())


def _item(
    place: epath.Path, wanted: str | None, aux: str | None
) -> tuple[str | None, frozenset[str]]:
    """The name of the pytree that is meant, and of all that there are.

    Raises:
        CheckpointMismatchError: There is none, or none of that name, or several that could be meant.
    """
    if not place.is_dir() or UNFINISHED in place.name:
        raise _no_checkpoint(place, [])
    children = sorted((child.name for child in place.iterdir()), key=paths.natural)
    steps = [name for name in children if (place / name / _CHECKPOINT).exists()]
    every = frozenset(name for name in children if (place / name / _ITEM).exists())
    items = [name for name in children if name in every - {aux or ""}] or [*every]
    flat = _ITEM in children and not (place.parent / _CHECKPOINT).exists()
    if (steps and _CHECKPOINT not in children) or not (flat or items):
        raise _no_checkpoint(place, steps)
    if wanted is None and (
        flat or len(items) == 1 or "state" in items
    ):  # `state` is what `save` of Orbax v1 calls it
        return None if flat else items[0] if len(items) == 1 else "state", every
    if wanted in every:
        return wanted, every
    found = f"{'a pytree without a name' if flat else ', '.join(items)}"
    hint = "leave item= out" if flat else f"pass item={items[0]!r}, or another of them"
    raise _refusal(place, f"a checkpoint that holds {found}", hint)


def _no_checkpoint(place: epath.Path, steps: list[str]) -> CheckpointMismatchError:
    """The error for a path that is no checkpoint, with what it is instead."""
    if not place.exists():
        return _refusal(place, "no such path", "check the path")
    if not place.is_dir():
        return _refusal(place, "a file", "a checkpoint is a directory")
    if UNFINISHED in place.name:
        return _refusal(
            place,
            "what an unfinished save has left",
            "pass a checkpoint that was saved to its end, or save again",
        )
    if steps:
        latest = ", ".join(str(place / name) for name in steps[-3:])
        return _refusal(
            place,
            f"a directory of {counted(len(steps), 'checkpoint')}",
            f"pass one of them: {latest}",
        )
    if (place.parent / _CHECKPOINT).exists():
        hint = f"pass {place.parent}" + (
            f" with item={place.name!r}" if (place / _ITEM).exists() else ""
        )
        return _refusal(place, "a part of a checkpoint", hint)
    if not any(place.iterdir()):
        return _refusal(place, "an empty directory", "check the path")
    return _refusal(
        place,
        "a directory without a pytree that Orbax wrote",
        "check the path; a copy may be incomplete",
    )


def _may_be_key(leaf: Any) -> bool:
    return (
        leaves.signature(leaf) is not None
        and not leaves.is_scalar(leaf)
        and str(leaf.dtype) == "uint32"
        and bool(leaf.shape)
    )


def _abstract(leaf: Any, impl: str | None) -> Any:
    if leaves.signature(leaf) is None or leaves.is_scalar(leaf):
        return leaf
    if impl is None:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    key = jax.eval_shape(functools.partial(jax.random.key, impl=impl), 0)
    return jax.ShapeDtypeStruct(leaf.shape[:-1], key.dtype)


def _key_impls(item: epath.Path) -> Mapping[str, str]:
    """The implementation each typed key was saved with, by its dotted name.

    No public function of Orbax tells it without reading the key, so this reads the file that Orbax keeps it in. Where there is
    none, keys read as raw data, which conforms to no key.
    """
    impls: dict[str, str] = {}
    for file in item.glob("array_metadatas/process_*"):
        for entry in json.loads(file.read_text())["array_metadatas"]:
            array = entry["array_metadata"]
            impl = (array.get("ext_metadata") or {}).get("random_key_impl")
            if impl is not None:
                impls[array["param_name"]] = impl
    return impls


def load(disk: DiskTree, prefix: KeyPath, wanted: Tree) -> Tree:
    """Reads a part of the subtree at ``prefix``, and nothing else, into the shardings of ``wanted``.

    Args:
        disk: The checkpoint.
        prefix: Where in it the subtree stands.
        wanted: Abstract leaves with shardings, Python numbers, or `SKIP`, in the containers of the disk; if it is a dict, some
            keys may be left out.

    Returns:
        A tree like ``wanted``, with values.

    Raises:
        CheckpointMismatchError: Orbax cannot read it.
    """
    # Orbax skips what is a placeholder, as long as the containers are all there.
    skipped = jax.tree.map(lambda _: SKIP, disk.tree)
    try:
        with alone():
            whole = ocp.load(
                disk.path, _planted(skipped, prefix, wanted), checkpointable_name=disk.item
            )
    except Exception as error:  # Orbax has no one class for what may be wrong with its files
        hint = "a copy may be incomplete, or a file damaged"
        notes = [f"Orbax says: {first_line(error)}"]
        raise _refusal(
            disk.path, "a checkpoint whose arrays cannot be read", hint, notes
        ) from error
    loaded = _at(whole, prefix)
    return (
        {key: loaded[key] for key in wanted}
        if isinstance(wanted, dict) and loaded is not None
        else loaded
    )


def alone() -> contextlib.AbstractContextManager[Any]:
    """The caller's context, but that Orbax reads without waiting for other processes: one that fails would not come.

    What is read is agreed on afterwards.
    """
    if jax.process_count() == 1:
        return contextlib.nullcontext()
    active = active_context()
    number = jax.process_index()
    only = ocp.options.MultiprocessingOptions(primary_host=number, active_processes={number})
    return ocp.Context(active, multiprocessing_options=only)


def _planted(tree: Any, prefix: KeyPath, wanted: Tree) -> Tree:
    if prefix:
        return {**tree, prefix[0]: _planted(tree[prefix[0]], prefix[1:], wanted)}
    return {**tree, **wanted} if isinstance(wanted, dict) else wanted
