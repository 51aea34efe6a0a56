"""How many bytes of arrays are read or written, as TensorStore counts them while it works."""

from __future__ import annotations

import contextlib
import functools
import math
from typing import Any, Literal

import jax
import tensorstore as ts

from ckpt_schema._layouts import leaves
from ckpt_schema._messages.progress import watched
from ckpt_schema._trees.containers import Tree

__all__ = ["watched_arrays"]

_STORES = ("file", "gcs", "gcs_grpc", "s3")  # what stands on top of these counts the same bytes


def watched_arrays(
    what: str, tree: Tree, kind: Literal["bytes_read", "bytes_written"]
) -> contextlib.AbstractContextManager[None]:
    """Shows how far the arrays of a tree are read or written in the body, on the first of several processes.

    Args:
        what: ``reading`` or ``writing``.
        tree: The arrays, abstract or not. What has no shape and dtype does not count.
        kind: What TensorStore counts.
    """
    found = [leaf for leaf in jax.tree.leaves(tree) if leaves.signature(leaf) is not None]
    if not found or jax.process_index():
        return contextlib.nullcontext()
    total = functools.partial(_bytes_here, found)
    return watched(what, len(found), total, functools.partial(_counted, kind))


def _counted(kind: str) -> int:
    """The bytes that this process has read from stores, or written to them, since it began."""
    total = 0
    for metric in ts.experimental_collect_matching_metrics("/tensorstore/kvstore/"):
        store, _, name = str(metric["name"]).removeprefix("/tensorstore/kvstore/").partition("/")
        if store in _STORES and name == kind:
            total += sum(int(value["value"]) for value in metric["values"])
    return total


def _bytes_here(found: list[Any]) -> int:
    """The bytes of what the devices of this process hold, each part once."""
    total = 0
    for leaf in found:
        shape, dtype = leaves.signature(leaf) or ((), "bool")
        sharding = getattr(leaf, "sharding", None)
        parts = {str(shape): shape}
        if sharding is not None:
            own = sharding.shard_shape(shape)
            boxes = sharding.addressable_devices_indices_map(shape).values()
            parts = {str(box): own for box in boxes}
        total += leaves.itemsize(dtype) * sum(map(math.prod, parts.values()))
    return total
