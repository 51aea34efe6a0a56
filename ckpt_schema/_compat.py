"""What the package uses of jax and Orbax beyond their stable names, each with a test that fails when it moves.

Of Orbax these are the names of its files: no public function says what stands in them.
"""

from __future__ import annotations

from typing import Any

from jax._src import distributed
from jax.core import Tracer
from jax.experimental.multihost_utils import process_allgather
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

__all__ = [
    "ARRAY_METADATA_FILES",
    "CHECKPOINT_FILE",
    "COMMIT_FILE",
    "DATABASE_FILE",
    "OLD_PYTREE_FILE",
    "PYTREE_FILE",
    "ROOT_FILE",
    "ClosedJaxpr",
    "Literal",
    "Tracer",
    "coordination_client",
    "jaxpr_as_fun",
    "process_allgather",
]


def coordination_client() -> Any:
    """The client of the service by which the processes of `jax.distributed` find one another.

    None where there is none such. Orbax asks for it in the same way.
    """
    return distributed.global_state.client


CHECKPOINT_FILE = "_CHECKPOINT_METADATA"
"""The file of a checkpoint: when it was written, and by which handlers."""

PYTREE_FILE = "_METADATA"
"""The file of a pytree in a checkpoint: its key paths and the types of its leaves."""

OLD_PYTREE_FILE = "checkpoint"
"""What releases until 0.3.5 wrote for a pytree, in msgpack."""

ROOT_FILE = "metadata/_ROOT_METADATA"
"""What a manager keeps of its own beside the checkpoints of a run."""

DATABASE_FILE = "manifest.ocdbt"
"""What is there where all arrays of a pytree stand in one database."""

ARRAY_METADATA_FILES = "array_metadatas"
"""The folder of files, one a process, that alone tell the implementation of a typed key."""

COMMIT_FILE = "commit_success.txt"
"""What says that a checkpoint on a remote store is whole."""
