"""What several processes do together ends alike in all of them: where one finds a fault, all raise it, and none waits."""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Generator, Mapping
from typing import Any

import jax

from ckpt_schema import errors
from ckpt_schema._compat import coordination_client
from ckpt_schema.errors import CkptSchemaError, ConformanceError, Mismatch
from ckpt_schema.orbax._contexts import patience

__all__ = [
    "agree",
    "first_line",
    "raised_by_all",
    "said_by_all",
    "said_by_others",
    "shortened",
    "told_by_first",
]


def first_line(error: BaseException) -> str:
    """What an error of Orbax or of jax says, shortened."""
    return shortened(str(error) or type(error).__name__)


def shortened(text: str) -> str:
    """The first line of a text; TensorStore goes on with a whole specification."""
    return text.splitlines()[0][:300] if text else ""


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
    # Every process has all messages, so that all of them find the same faults, and raise.
    faults: list[Mismatch] = []
    for number, other in enumerate(others, 1):
        for name in {**first, **other}:  # one may have a leaf that the other has not
            if other.get(name) != first.get(name):
                expected = f"{first.get(name, 'nothing')}, as in process 0"
                found = f"{other.get(name, 'nothing')} in process {number}"
                faults.append(Mismatch(name, "process", expected, found))
    if faults:
        raise ConformanceError(header, faults)


def said_by_all(flag: bool) -> bool:
    """Whether a thing is so in every process."""
    if jax.process_count() == 1:
        return flag
    return all(said == b"yes" for said in _exchanged(b"yes" if flag else b"no"))


def told_by_first(text: str) -> str:
    """What process 0 tells, in every process."""
    return text if jax.process_count() == 1 else _exchanged(text.encode())[0].decode()


def said_by_others(name: str, text: str, *, seconds: float) -> dict[int, str | None]:
    """What each other process says of one thing, None of those that say nothing within seconds.

    Args:
        name: The thing; no two calls in one program may have the same.
        text: What this process says.
        seconds: How long it listens.
    """
    client, count = coordination_client(), jax.process_count()
    if count == 1 or client is None:
        return {}
    place = f"ckpt_schema/said/{name}/"
    said: dict[int, bytes] = {}
    until = time.monotonic() + seconds
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # the service may be gone, too
        client.key_value_set_bytes(f"{place}{jax.process_index()}", text[:_LONGEST].encode())
        while len(said) < count and time.monotonic() < until:
            said = _told_at(client, place)
            time.sleep(0.1)
    others = set(range(count)) - {jax.process_index()}
    return {number: said[number].decode() if number in said else None for number in sorted(others)}


_rounds = itertools.count()


def _exchanged(message: bytes) -> list[bytes]:
    """The messages of all processes, each of which comes here in the same order.

    They go by way of the service by which jax's processes found one another, and not by arrays:
    there a wait has an end, and it is known who did not come.

    Raises:
        CkptSchemaError: Some process does not come.
    """
    client, count = coordination_client(), jax.process_count()
    if client is None:
        hint = "call jax.distributed.initialize() at the start of the program"
        fault = Mismatch("jax.distributed", "process", "a service for processes", "none", hint)
        raise ConformanceError("processes cannot find one another", [fault])
    number = next(_rounds)
    place, seconds = f"ckpt_schema/{number}/", patience()
    try:
        # A value must not be empty.
        client.key_value_set_bytes(f"{place}{jax.process_index()}", b"." + message)
        client.wait_at_barrier(f"ckpt_schema {number}", 1000 * seconds)
        said = _told_at(client, place)
        # Whoever has come here has read what was said before.
        if jax.process_index() == 0:
            client.key_value_delete(f"ckpt_schema/{number - 1}/")
    except jax.errors.JaxRuntimeError as error:
        raise _gone(client, place, seconds, error) from error
    return [said[process][1:] for process in range(count)]


def _told_at(client: Any, place: str) -> dict[int, bytes]:
    told: list[tuple[str, bytes]] = client.key_value_dir_get_bytes(place)
    return {int(key.rpartition("/")[2]): message for key, message in told}


def _gone(client: Any, place: str, seconds: int, error: Exception) -> CkptSchemaError:
    """The error for processes that have not come."""
    said: dict[int, bytes] = {}
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # the service is gone, too
        said = _told_at(client, place)
    missing = [number for number in range(jax.process_count()) if number not in said]
    who = ", ".join(map(str, missing)) if said else "any"
    expected = f"an answer from each of {jax.process_count()} processes within {seconds} s"
    hint = "its own log says why; timeout_secs of Orbax's AsyncOptions, in the context, is the time"
    fault = Mismatch("jax.distributed", "process", expected, f"none from process {who}", hint)
    return CkptSchemaError("another process is gone", [fault], [f"jax says: {first_line(error)}"])


def _encoded(error: BaseException) -> bytes:
    text = str(error) or type(error).__name__
    if not isinstance(error, CkptSchemaError):
        return json.dumps(["CkptSchemaError", f"{type(error).__name__}: {text}", [], []]).encode()
    faults = error.mismatches[:_MOST]
    left = len(error.mismatches) - len(faults)
    notes = [*error.notes, *([f"and {left} faults more"] if left else [])]
    return json.dumps([type(error).__name__, error.header, [*map(_told, faults)], notes]).encode()


_LONGEST, _MOST = 2000, 1000  # characters and faults: the service takes a few megabytes


def _told(fault: Mismatch) -> dict[str, Any]:
    """A fault in words; its rules are objects of this process, and its hint says them."""
    words = [fault.path, fault.kind, fault.expected, fault.found, fault.hint]
    return {"words": words, "mirrors": fault.mirrors, "also": fault.also}


def _decoded(message: bytes, number: int) -> CkptSchemaError:
    name, header, faults, notes = json.loads(message)
    kind: type[CkptSchemaError] = getattr(errors, name, CkptSchemaError)
    mismatches: list[Mismatch] = []
    for fault in faults:
        also = tuple(fault["also"])
        mismatches.append(Mismatch(*fault["words"], mirrors=fault["mirrors"], also=also))
    return kind(header, mismatches, [*notes, f"found by process {number}"])
