"""What a checkpoint holds, as an abstract tree: one metadata read, no array data."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from ckpt_schema import leaves
from ckpt_schema.errors import CheckpointMismatchError, Mismatch
from ckpt_schema.paths import KeyPath
from ckpt_schema.pytrees import key_paths
from ckpt_schema.trees import Tree

__all__ = ["DiskTree", "load", "read"]


@dataclasses.dataclass(frozen=True, slots=True)
class DiskTree:
    """A checkpoint's state without its values.

    Attributes:
        path: Where it lies.
        tree: Dicts, lists and None slots as Orbax returns them, of ``ShapeDtypeStruct``s without sharding and Python numbers;
            typed keys have the dtype of the implementation they were saved with.
    """

    path: epath.Path
    tree: Tree

    def at(self, prefix: KeyPath) -> Tree | None:
        """The subtree at ``prefix``, or None when there is none."""
        node = self.tree
        for key in prefix:
            if not isinstance(node, dict) or key not in node:
                return None
            node = node[key]
        return node


def read(path: epath.PathLike) -> DiskTree:
    """Reads the metadata of the checkpoint at ``path``, once.

    Raises:
        CheckpointMismatchError: There is no checkpoint, or none that Orbax can read the metadata of.
    """
    place = epath.Path(path)
    try:
        found = ocp.metadata(place).metadata
    except Exception as error:  # Orbax has no one class for what may be wrong with a directory
        raise _no_checkpoint(place, error) from error
    flat, treedef = jax.tree_util.tree_flatten_with_path(found)
    keys, _ = key_paths(at for at, _ in flat)
    impls = _key_impls(place) if any(_may_be_key(leaf) for _, leaf in flat) else {}
    typed = [_abstract(leaf, impls.get(".".join(map(str, key)))) for key, (_, leaf) in zip(keys, flat, strict=True)]
    return DiskTree(place, treedef.unflatten(typed))


def _no_checkpoint(place: epath.Path, error: Exception) -> CheckpointMismatchError:
    if not place.exists():
        found, hint = "no such path", "check the path"
    elif not place.is_dir():
        found, hint = "a file", "a checkpoint is a directory"
    else:
        steps = sorted(p.name for p in place.iterdir() if (p / "_CHECKPOINT_METADATA").exists())
        found = "a directory that is none" if not steps else f"a directory of {len(steps)} checkpoint(s)"
        hint = f"pass one of them: {', '.join(str(place / s) for s in steps[-3:])}" if steps else "it may be half copied"
    fault = Mismatch(str(place), "checkpoint", "an Orbax checkpoint", found, hint)
    return CheckpointMismatchError(f"{place} is no checkpoint: 1 fault", [fault], [f"Orbax says: {str(error).splitlines()[0]}"])


def _may_be_key(leaf: Any) -> bool:
    return leaves.signature(leaf) is not None and not leaves.is_scalar(leaf) and str(leaf.dtype) == "uint32" and bool(leaf.shape)


def _abstract(leaf: Any, impl: str | None) -> Any:
    if leaves.signature(leaf) is None or leaves.is_scalar(leaf):
        return leaf
    if impl is None:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    key = jax.eval_shape(lambda: jax.random.key(0, impl=impl))
    return jax.ShapeDtypeStruct(leaf.shape[:-1], key.dtype)


def _key_impls(place: epath.Path) -> Mapping[str, str]:
    """The implementation each typed key was saved with, by its dotted name.

    No public function of Orbax tells it without reading the key, so this reads the file it is stored in:
    ``array_metadatas/process_*`` of the item, as Orbax has written since 0.11. Where there is none, keys read as raw data.
    """
    impls: dict[str, str] = {}
    for file in [*place.glob("array_metadatas/process_*"), *place.glob("*/array_metadatas/process_*")]:
        for entry in json.loads(file.read_text())["array_metadatas"]:
            inner = entry["array_metadata"]
            impl = (inner.get("ext_metadata") or {}).get("random_key_impl")
            if impl is not None:
                impls[inner["param_name"]] = impl
    return impls


def load(disk: DiskTree, prefix: KeyPath, wanted: Tree) -> Tree:
    """Reads the subtree at ``prefix``, and nothing else, into the shardings of ``wanted``.

    Args:
        disk: The checkpoint.
        prefix: Where in it the subtree stands.
        wanted: Abstract leaves with shardings, in the containers of the disk.
    """
    if not prefix:
        return ocp.load(disk.path, wanted)
    # Orbax skips what is a placeholder, as long as the containers are all there.
    skipped: Any = jax.tree.map(lambda _: ocp.PLACEHOLDER, disk.tree)
    node = skipped
    for key in prefix[:-1]:
        node = node[key]
    node[prefix[-1]] = wanted
    loaded: Any = ocp.load(disk.path, skipped)
    for key in prefix:
        loaded = loaded[key]
    return loaded

