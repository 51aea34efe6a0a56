"""What several processes do together ends alike in all of them: where one finds a fault, all raise it, and none waits."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator

import jax
import numpy as np
from jax.experimental import multihost_utils

from ckpt_schema import errors
from ckpt_schema.errors import CkptSchemaError, Mismatch

__all__ = ["together"]


@contextlib.contextmanager
def together() -> Generator[None, None, None]:
    """Code that every process runs, and that ends without an error in all of them or in none. One process alone pays nothing.

    Raises:
        CkptSchemaError: What another process raised; of the same class, if it is one of this library's.
    """
    if jax.process_count() == 1:
        yield
        return
    try:
        yield
    except Exception as error:
        _exchanged(_encoded(error))
        raise
    for number, said in enumerate(_exchanged(b"")):
        if said:
            raise _decoded(said, number)


def _exchanged(message: bytes) -> list[bytes]:
    """The messages of all processes. Unless there is one, it is one number that goes around."""
    count = jax.process_count()
    lengths = np.asarray(multihost_utils.process_allgather(np.int32(len(message)))).reshape(count)
    padded = np.zeros(int(lengths.max()), np.uint8)
    if not padded.size:
        return [b""] * count
    padded[: len(message)] = np.frombuffer(message, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(count, -1)
    return [row[:length].tobytes() for row, length in zip(rows, lengths, strict=True)]


def _encoded(error: Exception) -> bytes:
    text = str(error) or type(error).__name__
    if not isinstance(error, CkptSchemaError):
        return json.dumps(["CkptSchemaError", f"{type(error).__name__}: {text}", []]).encode()
    faults = [[fault.path, fault.kind, fault.expected, fault.found, fault.hint] for fault in error.mismatches]
    return json.dumps([type(error).__name__, text.partition("\n")[0], faults]).encode()


def _decoded(message: bytes, number: int) -> CkptSchemaError:
    name, header, faults = json.loads(message)
    kind: type[CkptSchemaError] = getattr(errors, name, CkptSchemaError)
    return kind(header, [Mismatch(*fault) for fault in faults], [f"found by process {number}"])
