"""One of the processes of `run_distributed`, seen from inside: a script that does the call it is sent, and reports."""

from __future__ import annotations

import faulthandler
import importlib
import importlib.util
import os
import pickle
import re
import signal
import sys
import threading
import traceback
import types
from pathlib import Path
from typing import IO, Any

__all__: list[str] = []


def _serve() -> None:
    """Does the call that comes in, reports, and stays up until the process that sent it is gone, or kills this one.

    One that has raised stays up too: what the others do is not disturbed by its end.
    """
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    report = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what is printed is no report
    # A child that keeps the report open would hide the end of this process.
    os.register_at_fork(after_in_child=lambda: report.closed or os.close(report.fileno()))
    pipe = os.fdopen(os.dup(0), "rb")
    with Path(os.devnull).open("rb") as nothing:
        # Code that reads its input, or starts a process that does, must not wait for ever.
        os.dup2(nothing.fileno(), 0)
    job = pickle.load(pipe)
    threading.Thread(target=_end_with_parent, args=[pipe], daemon=True).start()
    try:
        said = "returned", "", "", pickle.dumps(_called(*job))
    except BaseException as error:
        inner = error.__traceback__ and error.__traceback__.tb_next
        lines = traceback.format_exception(error.with_traceback(inner and (inner.tb_next or inner)))
        said = (
            "raised",
            traceback.format_exception_only(error)[-1].splitlines()[0],
            "".join(lines),
            b"",
        )
    sys.stdout.flush()
    with report:
        pickle.dump(said, report)
    threading.Event().wait()


def _end_with_parent(pipe: IO[bytes]) -> None:
    pipe.read(1)  # returns when nobody holds the other end of the pipe any more
    os.killpg(0, signal.SIGKILL)


def _called(
    number: int, n: int, port: int, devices: int, module: str, file: str | None, call: bytes
) -> Any:
    flags = re.sub(
        r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", "")
    )
    flags = flags.strip()  # XLA takes blanks for the name of a file
    os.environ |= {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    os.environ |= {"JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo", "no_grpc_proxy": "127.0.0.1"}
    # For the reason that `ckpt_schema.testing._devices` gives.
    os.environ.setdefault("PJRT_NPROC", "64")
    import jax  # which reads these variables once

    at = f"127.0.0.1:{port}"
    jax.distributed.initialize(
        at,
        n,
        number,
        coordinator_bind_address=at,
        initialization_timeout=60,
        heartbeat_timeout_seconds=30,
    )
    jax.devices()  # all processes start jax together: one whose job does not use it would keep the others waiting
    _import(module, file)
    fn, args = pickle.loads(call)
    return fn(*args)


def _import(module: str, file: str | None) -> None:
    """Imports a module; from its file, where it is not to be found by name."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        spec = importlib.util.spec_from_file_location(module, file) if file else None
        if spec is None or spec.loader is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # or it is a module that this one imports
        for dot in re.finditer(r"\.", module):  # pickle asks for the packages above it too
            sys.modules.setdefault(module[: dot.start()], types.ModuleType(module[: dot.start()]))
        sys.modules[module] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[module])


if __name__ == "__main__":
    _serve()
