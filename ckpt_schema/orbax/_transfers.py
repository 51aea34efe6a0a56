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
    arrays = [leaf for leaf in jax.tree.leaves(tree) if leaves.signature(leaf) is not None]
    # One process shows it: the others read and write as much.
    if not arrays or jax.process_index():
        return contextlib.nullcontext()
    total = functools.partial(_bytes_here, arrays)
    return watched(what, len(arrays), total, functools.partial(_counted, kind))


def _counted(kind: str) -> int:
    """The bytes that this process has read from stores, or written to them, since it began."""
    total = 0
    for metric in ts.experimental_collect_matching_metrics("/tensorstore/kvstore/"):
        # "/tensorstore/kvstore/file/bytes_read"
        store, _, name = str(metric["name"]).removeprefix("/tensorstore/kvstore/").partition("/")
        if store in _STORES and name == kind:
            for value in metric["values"]:
                total += int(value["value"])
    return total


def _bytes_here(arrays: list[Any]) -> int:
    """The bytes of what the devices of this process hold, each part once."""
    total = 0
    for leaf in arrays:
        shape, dtype = leaves.signature(leaf) or ((), "bool")
        sharding = getattr(leaf, "sharding", None)
        elements = math.prod(shape)
        if sharding is not None:
            # Devices that hold the same part read it once: a part is told by where in the array it is.
            boxes = sharding.addressable_devices_indices_map(shape).values()
            parts = set(map(str, boxes))
            elements = math.prod(sharding.shard_shape(shape)) * len(parts)
        total += leaves.itemsize(dtype) * elements
    return total
