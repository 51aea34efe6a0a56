"""Several processes on one machine, joined by ``jax.distributed``: for tests of what several hosts do together."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import pickle
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

from ckpt_schema.errors import CkptSchemaError, Mismatch

__all__ = ["DistributedError", "run_distributed"]

_Result = TypeVar("_Result")
_Job = tuple[str, str | None, bytes]
_WORKER = str(Path(__file__).with_name("_worker.py"))
_GRACE = 1.0  # seconds that others have to fail, too, once one has raised
_LINES, _BYTES = 40, 1 << 16  # of a traceback, or of what a process has printed last


class DistributedError(CkptSchemaError):
    """Processes could not be started, or one failed, or did not finish in time."""


def run_distributed(
    n: int, fn: Callable[..., _Result], *args: Any, devices: int = 1, timeout: float = 120.0
) -> list[_Result]:
    """Runs ``fn(*args)`` in ``n`` new processes, each with CPU devices of its own, as the hosts of a cluster run it.

    jax is started in each of them before the module of ``fn`` is imported, and is not started in
    this one. No process of theirs outlives the call, nor the caller, however that ends, unless it
    begins a session of its own. When one fails, the others are ended at once. It needs a POSIX
    system.

    Args:
        n: How many processes.
        fn: A function on the top level of a module; a test module will do.
        args: Its arguments; they are pickled.
        devices: How many virtual devices each process has.
        timeout: The seconds after which the processes are ended, and the error says where each of
            them was.

    Returns:
        The results, in the order of ``jax.process_index()``. They are pickled: return NumPy arrays,
        not jax ones.

    Raises:
        DistributedError: ``fn`` cannot be sent to other processes; or some of them raised, died or
            did not finish, with each that did so on its own account, and the end of its traceback
            or of what it printed.
    """
    for name, number, least in (("n", n, 1), ("devices", devices, 1), ("timeout", timeout, 0)):
        if number < least:
            raise _refused(name, f"{least} or more", str(number))
    job = _sendable(fn, args)
    # Whatever happens from here on, each process that was started is ended.
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(_port())
        running: list[_Process] = []
        for number in range(n):
            running.append(stack.enter_context(_started(number, n, port, devices, job)))
        return _results(_listened(running, timeout), getattr(fn, "__qualname__", str(fn)), timeout)


def _refused(where: str, expected: str, found: str, hint: str = "") -> DistributedError:
    """The error of what was asked for and cannot be done."""
    fault = Mismatch(where, "declaration", expected, found, hint)
    return DistributedError("nothing was run", [fault])


def _sendable(fn: Callable[..., Any], args: Sequence[Any]) -> _Job:
    """The module of ``fn``, its file, and the pickled call."""
    inner = fn.func if isinstance(fn, functools.partial) else fn
    whole = inner if hasattr(inner, "__qualname__") else type(inner)  # an object that can be called
    module, name = whole.__module__, whole.__qualname__
    hint = "put it on the top level of a module that can be imported: no lambda, no inner function, none of __main__"
    if module == "__main__" or "<" in name:
        raise _refused("fn", "a function that a new process can import", f"{module}.{name}", hint)
    try:
        call = pickle.dumps((fn, args))
    except Exception as error:  # pickle has no one class for what it cannot take
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        raise _refused("fn", "a function and arguments that can be pickled", text, hint) from error
    return module, getattr(sys.modules.get(module), "__file__", None), call


@contextlib.contextmanager
def _port() -> Generator[int, None, None]:
    """A free port of this machine. It is held to the end, so that nobody else is given it.

    Jax's server shares it.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@dataclasses.dataclass(frozen=True, slots=True)
class _Process:
    number: int
    popen: subprocess.Popen[bytes]
    log: IO[bytes]

    def printed(self) -> str:
        """What it has printed last; its place in the file is not moved."""
        start = max(0, os.fstat(self.log.fileno()).st_size - _BYTES)
        return os.pread(self.log.fileno(), _BYTES, start).decode(errors="replace")


@contextlib.contextmanager
def _started(
    number: int, n: int, port: int, devices: int, job: _Job
) -> Generator[_Process, None, None]:
    """A process that is sent its job on a pipe, which stays open: when it closes, this process is gone, and the other ends."""
    # What can be imported here can be there, whatever has changed `sys.path` since the start.
    entries = [str(Path(entry).absolute()) for entry in sys.path]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(entries)}
    command, pipe = [sys.executable, "-P", _WORKER], subprocess.PIPE
    with tempfile.TemporaryFile() as log:
        popen = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=log, env=env, start_new_session=True
        )
        try:
            with contextlib.suppress(BrokenPipeError):  # it has died already, and will be reported
                assert popen.stdin is not None
                popen.stdin.write(pickle.dumps((number, n, port, devices, *job)))
                popen.stdin.flush()
            yield _Process(number, popen, log)
        finally:
            _killed(popen)
            # What the process has started may hold the other ends.
            for end in (popen.stdin, popen.stdout):
                with contextlib.suppress(BrokenPipeError):
                    assert end is not None
                    end.close()


def _killed(popen: subprocess.Popen[bytes]) -> int:
    """The exit status of a process that has come to its end, or does so here, with all that it has started."""
    # Of one that has been waited for, the number may be another process's by now.
    if popen.returncode is None:
        os.killpg(popen.pid, signal.SIGKILL)
    return popen.wait()


@dataclasses.dataclass(frozen=True, slots=True)
class _End:
    """How a process ended, in what words, with what traceback or output, and with what pickled result."""

    number: int
    kind: Literal["returned", "raised", "died", "unfinished"]
    words: str = ""
    text: str = ""
    result: bytes = b""


def _listened(running: Sequence[_Process], timeout: float) -> list[_End]:
    """How each process ended, until all have, or one has failed, or the time is up.

    In the order in which they did.

    One that raised stays up: what others raise within the grace is of their own account. One that
    died takes the others with it, so nobody is listened to any more.
    """
    until, ends, died = time.monotonic() + timeout, list[_End](), False
    said: dict[int, bytearray] = {}
    with selectors.DefaultSelector() as selector:
        for process in running:
            said[process.number] = bytearray()
            assert process.popen.stdout is not None
            selector.register(process.popen.stdout, selectors.EVENT_READ, process)
        while (
            selector.get_map()
            and not died
            and (left := until - time.monotonic()) > 0
            and (ready := selector.select(left))
        ):
            now: list[_End] = []
            for key, _ in ready:
                data = os.read(key.fd, 1 << 20)
                said[key.data.number] += data
                # A report may come in several parts: it is whole when its pipe is closed.
                if not data:
                    selector.unregister(key.fileobj)
                    now.append(_end(key.data, said[key.data.number]))
            kinds = {end.kind for end in now}
            died = "died" in kinds
            # When one process dies, the connections of the others break: these errors tell nothing.
            ends = [end for end in [*ends, *now] if not died or end.kind != "raised"]
            if "raised" in kinds:
                until = min(until, time.monotonic() + _GRACE)
        late = [key.data for key in selector.get_map().values()]
    # Where one has failed, it is no news that others have not come to their end.
    return ends if any(end.kind != "returned" for end in ends) else [*ends, *_dumped(late)]


def _end(process: _Process, said: bytearray) -> _End:
    """How a process ended that has closed its pipe: as it reports, or else it has died."""
    try:
        return _End(process.number, *pickle.loads(said))
    except (EOFError, pickle.UnpicklingError):  # it did not get as far as to report
        code = _killed(process.popen)
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return _End(process.number, "died", how, process.printed())


def _dumped(late: Sequence[_Process]) -> list[_End]:
    """Makes processes print where they are."""
    for process in late:
        # `send_signal` would reap it, and then its children were left.
        os.kill(process.popen.pid, signal.SIGUSR1)
    time.sleep(0.5 if late else 0)  # for they print by themselves
    ends: list[_End] = []
    for process in late:
        ends.append(_End(process.number, "unfinished", "nothing yet", process.printed()))
    return ends


def _results(ends: Sequence[_End], name: str, timeout: float) -> list[Any]:
    late = f"after {timeout:g} s; do all processes make the same calls? where this one was is below"
    hints = {
        "raised": "its traceback is below",
        "died": "what it printed last is below",
        "unfinished": late,
    }
    faults: list[Mismatch] = []
    notes: dict[str, str] = {}  # of processes that failed alike, one
    ends = sorted(ends, key=lambda end: end.number)
    for end in ends:
        if end.kind == "returned":
            continue
        who, expected = f"process {end.number}", f"a result of {name}"
        faults.append(Mismatch(who, end.kind, expected, end.words, hints[end.kind]))
        lines = [f"  {line}" for line in end.text.splitlines()[-_LINES:]]
        notes.setdefault("\n".join(lines), f"{who}:")
    if faults:
        header = f"{name} did not return in every process"
        raise DistributedError(header, faults, [f"{who}\n{text}" for text, who in notes.items()])
    return list(map(_unpickled, ends))


def _unpickled(end: _End) -> Any:
    try:
        return pickle.loads(end.result)
    except Exception as error:  # whatever its class raises
        text, who = f"{type(error).__name__}: {error}", f"process {end.number}"
        fault = Mismatch(who, "returned", "a result that can be unpickled here", text)
        raise DistributedError("a result cannot be read", [fault]) from error
