"""What several processes do together ends alike in all of them: where one finds a fault, all raise it, and none waits."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Mapping
from typing import Any

import jax
import numpy as np

from ckpt_schema import errors
from ckpt_schema._compat import process_allgather
from ckpt_schema.errors import CkptSchemaError, ConformanceError, Mismatch

__all__ = ["agree", "raised_by_all", "told_by_first"]


@contextlib.contextmanager
def raised_by_all() -> Generator[None, None, None]:
    """Code that every process runs, and that ends without an error in all of them or in none. One process alone pays nothing.

    Raises:
        CkptSchemaError: What another process raised; of the same class, if it is one of this
            library's. Or that one is gone.
    """
    if jax.process_count() == 1:
        yield
        return
    try:
        yield
    except BaseException as error:
        _exchanged(_encoded(error))
        raise
    for number, said in enumerate(_exchanged(b"")):
        if said:
            raise _decoded(said, number)


def agree(header: str, told: Mapping[str, object]) -> None:
    """Raises in all processes unless each tells the same.

    Args:
        header: What an error begins with.
        told: What this process tells, by name; only its ``str`` is compared.

    Raises:
        ConformanceError: With everything that another process tells otherwise than the first.
    """
    if jax.process_count() == 1:
        return
    own = json.dumps({name: str(value) for name, value in told.items()})
    first, *others = map(json.loads, _exchanged(own.encode()))
    faults = [
        Mismatch(
            name,
            "process",
            f"{first.get(name, 'nothing')}, as in process 0",
            f"{other.get(name, 'nothing')} in process {n}",
        )
        for n, other in enumerate(others, 1)
        for name in {**first, **other}
        if other.get(name) != first.get(name)
    ]
    if faults:
        raise ConformanceError(header, faults)


def told_by_first(text: str) -> str:
    """What process 0 tells, in every process."""
    return text if jax.process_count() == 1 else _exchanged(text.encode())[0].decode()


def _exchanged(message: bytes) -> list[bytes]:
    """The messages of all processes. Unless there is one, it is one number that goes around."""
    count = jax.process_count()
    lengths = _gathered(np.int32(len(message))).reshape(count)
    padded = np.zeros(int(lengths.max()), np.uint8)
    if not padded.size:
        return [b""] * count
    padded[: len(message)] = np.frombuffer(message, np.uint8)
    rows = _gathered(padded).reshape(count, -1)
    return [row[:length].tobytes() for row, length in zip(rows, lengths, strict=True)]


def _gathered(value: Any) -> np.ndarray[Any, Any]:
    try:
        return np.asarray(process_allgather(value))
    except jax.errors.JaxRuntimeError as error:
        hint = "its own log says why"
        fault = Mismatch(
            "jax.distributed",
            "process",
            "an answer from every process",
            "none from one of them",
            hint,
        )
        raise CkptSchemaError("another process is gone", [fault], [f"jax says: {error}"]) from error


def _encoded(error: BaseException) -> bytes:
    text = str(error) or type(error).__name__
    if not isinstance(error, CkptSchemaError):
        return json.dumps(["CkptSchemaError", f"{type(error).__name__}: {text}", [], []]).encode()
    return json.dumps(
        [type(error).__name__, error.header, [*map(_told, error.mismatches)], error.notes]
    ).encode()


def _told(fault: Mismatch) -> dict[str, Any]:
    """A fault in words; its rules are objects of this process, and its hint says them."""
    words = [fault.path, fault.kind, fault.expected, fault.found, fault.hint]
    return {"words": words, "mirrors": fault.mirrors, "also": fault.also}


def _decoded(message: bytes, number: int) -> CkptSchemaError:
    name, header, faults, notes = json.loads(message)
    kind: type[CkptSchemaError] = getattr(errors, name, CkptSchemaError)
    mismatches = [
        Mismatch(*fault["words"], mirrors=fault["mirrors"], also=tuple(fault["also"]))
        for fault in faults
    ]
    return kind(header, mismatches, [*notes, f"found by process {number}"])
