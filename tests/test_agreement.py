"""Processes that wait for one another: how long, and what they say of those that do not come."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from orbax.checkpoint import v1 as ocp
from support import peers
from support.profiles import thorough_only

import ckpt_schema as cs
from ckpt_schema.orbax import _agreement


class Service:
    """What jax's service does for three processes, of which those in ``there`` have come."""

    def __init__(self, there: dict[int, bytes]) -> None:
        self.kept: dict[str, bytes] = {}
        self.there = there
        self.waited: list[int] = []

    def key_value_set_bytes(self, key: str, value: bytes) -> None:
        self.kept[key] = value
        place = key.rpartition("/")[0]
        self.kept |= {f"{place}/{number}": said for number, said in self.there.items()}

    def wait_at_barrier(self, name: str, milliseconds: int) -> None:
        self.waited.append(milliseconds)
        if len(self.there) < 2:
            raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: Barrier timed out.\nmore")

    def key_value_dir_get_bytes(self, place: str) -> list[tuple[str, bytes]]:
        return [(key, value) for key, value in self.kept.items() if key.startswith(place)]

    def key_value_delete(self, place: str) -> None:
        for key in [key for key in self.kept if key.startswith(place)]:
            del self.kept[key]


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    def started(there: dict[int, bytes]) -> Service:
        service = Service(there)
        monkeypatch.setattr(_agreement, "coordination_client", lambda: service)
        monkeypatch.setattr(jax, "process_count", lambda: 3)
        return service

    yield started


def test_all_that_come_hear_one_another(several: Any) -> None:
    service = several({1: b".", 2: b"."})
    for _ in range(3):
        with _agreement.raised_by_all():
            pass
    assert len(service.kept) == 3, "what was said before is forgotten"
    assert _agreement.told_by_first("token") == "token"


def test_who_does_not_come_is_named_after_the_seconds_of_the_context(several: Any) -> None:
    service = several({2: b"."})
    context = ocp.Context()
    context.asynchronous.timeout_secs = 7
    with context, pytest.raises(cs.CkptSchemaError, match="another process is gone") as raised:
        _agreement.agree("they differ", {"path": "a"})
    assert service.waited == [7000]
    [fault] = raised.value.mismatches
    assert fault.found == "none from process 1"
    assert "3 processes within 7 s" in fault.expected
    assert raised.value.notes == ("jax says: DEADLINE_EXCEEDED: Barrier timed out.",)


def test_a_fault_of_one_is_raised_by_all(several: Any) -> None:
    fault = cs.Mismatch("w", "shape", "(2,)", "(3,)", "cut it")
    said = _agreement._encoded(cs.ConformanceError("no fit", [fault]))
    several({1: b".", 2: b"." + said})
    with pytest.raises(cs.ConformanceError, match="no fit") as raised, _agreement.raised_by_all():
        pass
    assert raised.value.mismatches == (fault,)
    assert raised.value.notes == ("found by process 2",)


def test_more_faults_than_the_service_takes_are_counted(several: Any) -> None:
    many = [cs.Mismatch(str(n), "shape", "(2,)", "(3,)", "x" * 500) for n in range(20_000)]
    said = _agreement._encoded(cs.ConformanceError("no fit", many))
    assert len(said) < 2**20
    assert "and 19000 faults more" in said.decode()


def test_without_a_service_it_is_said_what_starts_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    with pytest.raises(cs.ConformanceError, match=r"jax\.distributed\.initialize"):
        _agreement.told_by_first("token")


@thorough_only
def test_a_process_that_is_killed_is_named_by_the_others() -> None:
    script = Path(peers.__file__)
    run = subprocess.run(
        [sys.executable, "-W", "ignore", script, "--only", "7"], capture_output=True, text=True
    )
    assert not run.returncode, run.stdout + run.stderr
