"""Pytrees that older releases of Flax and Orbax wrote, and that today's metadata says nothing of.

Their public readers read them whole, and by that their layout is known: a file of msgpack, as
`flax.serialization` and `flax.training.checkpoints` write; a folder of Orbax until 0.3.5, without
`_METADATA`; leaves that Orbax 0.4 and 0.5 put into one file.
"""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as v0
from etils import epath

from ckpt_schema._compat import OLD_PYTREE_FILE, PYTREE_FILE
from ckpt_schema._frameworks.packed_trees import ELSEWHERE, is_packed, unpacked
from ckpt_schema._trees.containers import Tree
from ckpt_schema.orbax._agreement import first_line

__all__ = [
    "is_older_pytree",
    "is_packed_file",
    "is_pytree",
    "read_older_pytree",
    "read_packed_file",
]

_EMPTY = ("None", "Dict", "List", "Tuple", "NamedTuple")  # value types without an array
_NUMBERS = ("int64", "float64")


def is_packed_file(place: epath.Path) -> bool:
    """Whether a path is that of a file that Flax has packed a tree into."""
    if not place.is_file():
        return False
    with place.open("rb") as opened:
        return is_packed(opened.read(1))


def is_pytree(folder: epath.Path) -> bool:
    """Whether a folder is that of a pytree of any release of Orbax."""
    return (folder / PYTREE_FILE).exists() or is_packed_file(folder / OLD_PYTREE_FILE)


def is_older_pytree(folder: epath.Path) -> bool:
    """Whether a folder is that of a pytree of which today's metadata does not tell the leaves."""
    if not (folder / PYTREE_FILE).exists():
        return is_packed_file(folder / OLD_PYTREE_FILE)
    told: Any = json.loads((folder / PYTREE_FILE).read_text())
    # Leaves that Orbax is to skip are in the packed file: its metadata has no shape of them.
    for entry in told["tree_metadata"].values():
        said = entry["value_metadata"]
        if said.get("skip_deserialize") and said.get("value_type") not in _EMPTY:
            return True
    return False


def read_packed_file(place: epath.Path) -> Tree:
    """The tree of a file of msgpack, in the memory of the host.

    Raises:
        ValueError: It is damaged, or does not hold all arrays.
    """
    try:
        tree = unpacked(place.read_bytes())
    except OSError:
        raise
    except Exception as error:  # msgpack and NumPy each have errors of their own for wrong bytes
        raise ValueError(f"no tree can be unpacked: {first_line(error)}") from error
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, str) and leaf.startswith(ELSEWHERE):
            raise ValueError("arrays of several processes stand in a folder beside it")
    return tree


def read_older_pytree(folder: epath.Path) -> Tree:
    """The tree of an older pytree of Orbax, in the memory of the host."""
    alone = v0.options.MultiprocessingOptions(
        primary_host=jax.process_index(), active_processes={jax.process_index()}
    )
    several = jax.process_count() > 1
    options = alone if several else v0.options.MultiprocessingOptions()
    handler = v0.PyTreeCheckpointHandler(multiprocessing_options=options)
    reader = v0.Checkpointer(handler, multiprocessing_options=options)
    if not (folder / PYTREE_FILE).exists():
        return jax.tree.map(_number, reader.restore(folder))
    told = handler.metadata(folder)
    # Into arrays of jax it would read 64 bits as 32.
    order = jax.tree.map(_on_host, told.tree)
    return reader.restore(folder, args=v0.args.PyTreeRestore(restore_args=order))


def _number(value: Any) -> Any:
    """A value, or the Python number that was saved as an array of 64 bits, as releases until 0.3.5 did."""
    is_number = isinstance(value, np.ndarray) and not value.shape and value.dtype in _NUMBERS
    return value.item() if is_number else value


def _on_host(told: Any) -> v0.RestoreArgs:
    is_number = isinstance(told, v0.metadata.ScalarMetadata)
    is_array = isinstance(told, v0.metadata.ArrayMetadata) and not is_number
    return v0.RestoreArgs(restore_type=np.ndarray if is_array else None)
