"""Several processes: what some save others restore, each its own shards; and what goes wrong in one of them."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import distributed_jobs as jobs
import pytest
from support.profiles import THOROUGH, sampled, thorough_only

import ckpt_schema as cs
from ckpt_schema.testing._distributed import DistributedError, run_distributed

pytestmark = pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the tests read /proc")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("several")


@pytest.fixture(scope="module")
def by_four(root: Path) -> Path:
    assert run_distributed(4, jobs.save_linen, root, THOROUGH) == [True] * 4
    return root


@pytest.mark.parametrize(("n", "devices", "shape"), sampled([(2, 2, (4,)), (1, 4, (2, 2))], 2))
def test_what_four_save_fewer_restore_and_save_again(
    by_four: Path, n: int, devices: int, shape: Any
) -> None:
    found = run_distributed(n, jobs.restore_nnx, by_four, shape, f"again-{n}", devices=devices)
    assert found == [{"unlike": [], "elsewhere": [], "not of all": []}] * n


def test_what_four_saved_is_converted_by_one(by_four: Path, tmp_path: Path) -> None:
    done = cs.orbax.convert(by_four / "linen", tmp_path / "new", jobs.LENS, verify=True)
    assert done.moved and done.edited
    expected = jobs.LENS.get(jobs.linen_state(5))
    found = cs.orbax.restore(tmp_path / "new", jobs.abstract(expected), jobs.LENS, aux=None)
    cs.assert_trees_identical(found, expected)


# benchmarks/bench_processes.py prints the same of more processes.
@pytest.mark.skipif(not THOROUGH, reason="38 MB and two clusters, in the thorough profile")
def test_each_process_reads_what_its_shards_need(by_four: Path, record_property: Any) -> None:
    found = run_distributed(2, jobs.read_big, by_four)
    record_property("bytes_held_stored_read", found)
    for each in found:
        for name in ("along", "along, chunks", "across, chunks", "across, read_as"):
            share, stored, every = each[name]
            assert share > 18e6
            assert stored <= every <= 1.1 * share, f"{name}: {each}"
        share, stored, _ = each["across"]
        assert stored > 1.9 * share, (
            "Orbax cuts chunks as shards are: say in the docs that it does so no more"
        )


@thorough_only
def test_streams_go_with_a_checkpoint_from_two_to_four(root: Path) -> None:
    assert run_distributed(2, jobs.save_nnx, root, devices=2) == [([], [])] * 2
    assert run_distributed(4, jobs.restore_streams, root) == [[]] * 4


@pytest.fixture(scope="module")
def by_two(root: Path) -> tuple[jobs.Found, jobs.Found]:
    """What each of two processes finds in all that two are asked: to start them is dearer than what they do."""
    cs.hf.save(root / "hub", {"a.w": jobs.WEIGHT})
    first, second = run_distributed(2, jobs.found_by_two, root, devices=2)
    return first, second


def test_what_is_wrong_anywhere_is_raised_everywhere(root: Path, by_two: Any) -> None:
    first, second = (each.refused for each in by_two)
    expected = {
        "exists": ("CheckpointExistsError", [str(root / "taken")]),
        "cast": ("ConformanceError", ["ids"]),
        "cast, saved": ("ConformanceError", ["ids"]),
        "cast, restored": ("CheckpointMismatchError", ["ids"]),
        "tie": ("ConformanceError", ["head"]),
        "on one host": ("ConformanceError", ["step"]),
        "without a value in one": ("ConformanceError", ["ids"]),
        "not there for one": ("CheckpointMismatchError", [str(root / "no")]),
    }
    assert {name: first[name][:2] for name in expected} == expected
    assert {name: second[name][:2] for name in expected} == expected
    assert not (root / "no").exists()
    assert "found by process 0" in second["exists"][2]
    assert "found by process 1" in first["without a value in one"][2]
    assert "-4" in first["cast"][2]
    assert "[3 1]" in first["tie"][2]
    assert first["unequal shard"] == ("", [], "")
    assert "the first at [3 1]" in second["unequal shard"][2]


def test_what_one_process_alone_does_is_raised_everywhere(root: Path, by_two: Any) -> None:
    both = [each.alone for each in by_two]
    expected = {
        "damaged": ("CheckpointMismatchError", [str(root / "damaged")]),
        "arrays": ("ConformanceError", ["ids"]),
        "numbers": ("ConformanceError", ["step"]),
        "paths": ("ConformanceError", ["path"]),
        "private": ("CheckpointMismatchError", [str(root / "no")]),
    }
    for each in both:
        assert {name: each[name][:2] for name in expected} == expected
        assert "Orbax says: " in each["damaged"][2]
        assert "expected 3, as in process 0, found 4 in process 1" in each["numbers"][2]
    assert not (root / "no").exists()
    assert "KeyboardInterrupt" in both[0]["interrupted"][2] and both[1]["interrupted"][2] == ""
    assert "UserWarning" in both[0]["warned"][2]


def test_no_bit_of_a_float_is_lost_between_processes(by_two: Any) -> None:
    assert [each.lost for each in by_two] == [[], []]


def test_orbax_reads_in_the_context_of_the_caller(by_two: Any) -> None:
    assert [each.context for each in by_two] == [(True, True)] * 2


def test_each_process_reads_and_writes_its_own_of_a_folder(root: Path, by_two: Any) -> None:
    shares = {"()": 1, "('x',)": 0.5, "(None, 'x')": 0.5, "('y', 'x')": 0.5, "('x', 'y')": 0.5}
    expected = {spec: (share, []) for spec, share in shares.items()}
    assert [each.folder for each in by_two] == [expected] * 2
    found = cs.hf.load(root / "both")
    assert len(found) == len(shares)
    assert all(array.tobytes() == jobs.WEIGHT.tobytes() for array in found.values())


# --- `run_distributed`  ---


def test_results_come_in_order_from_new_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "XLA_FLAGS",
        "--xla_force_host_platform_device_count=8 --xla_force_host_platform_device_count=8",
    )
    found = run_distributed(3, jobs.ranks, 10, devices=2)
    assert [each[:3] for each in found] == [(0, 3, 2), (1, 3, 2), (2, 3, 2)]
    assert [each[4] for each in found] == [[10, 11, 12]] * 3
    assert len({os.getpid(), *(each[3] for each in found)}) == 4


@pytest.fixture
def pids(tmp_path: Path) -> Iterator[Path]:
    """Where processes leave their numbers; in the end, none of them is there any more."""
    yield tmp_path
    left = [int(path.name) for path in tmp_path.iterdir()]
    until = time.monotonic() + 5
    while any(map(alive, left)) and time.monotonic() < until:
        time.sleep(0.05)
    assert len(left) >= 2
    assert not [pid for pid in left if alive(pid)]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("who", sampled([(0, 1), (1,)], 2))
def test_all_that_raise_are_named(pids: Path, who: tuple[int, ...]) -> None:
    start = time.monotonic()
    with pytest.raises(DistributedError, match="raising did not return in every process") as caught:
        run_distributed(2, jobs.raising, pids, who)
    assert time.monotonic() - start < 30
    assert [fault.path for fault in caught.value.mismatches] == [
        f"process {number}" for number in who
    ]
    assert all(f"ValueError: no luck in {number}" in str(caught.value) for number in who)
    assert "distributed_jobs.py" in str(caught.value)


@pytest.mark.parametrize("who", sampled([0, 1], 2))
def test_a_process_that_dies_is_named_at_once(pids: Path, who: int) -> None:
    start = time.monotonic()
    with pytest.raises(DistributedError) as caught:
        run_distributed(2, jobs.killed, pids, who)
    assert time.monotonic() - start < 30
    assert [(f.path, f.kind, f.found) for f in caught.value.mismatches] == [
        (f"process {who}", "died", "killed by SIGKILL")
    ]
    assert "these are my last words" in str(caught.value)


def test_a_process_that_dies_with_a_child_that_lives_is_named_at_once() -> None:
    start = time.monotonic()
    with pytest.raises(DistributedError, match="killed by SIGKILL"):
        run_distributed(1, jobs.forked, timeout=60)
    assert time.monotonic() - start < 30


def test_large_results_take_no_longer_than_they_need() -> None:
    start = time.monotonic()
    (found,) = run_distributed(1, jobs.large, 100_000_000)
    assert len(found) == 100_000_000
    assert time.monotonic() - start < 30


def test_there_is_nothing_to_read_on_standard_input() -> None:
    assert run_distributed(1, jobs.listening, timeout=60) == [""]


def test_a_process_that_exits_is_named() -> None:
    with pytest.raises(DistributedError, match="exit code 3"):
        run_distributed(1, jobs.leaving)


def test_a_process_that_is_late_says_where_it_is(pids: Path) -> None:
    # On a machine at work the other process may not have ended in time either.
    for timeout in (6, 90):
        with pytest.raises(DistributedError) as caught:
            run_distributed(2, jobs.stuck, pids, timeout=timeout)
        late = [(fault.path, fault.kind) for fault in caught.value.mismatches]
        if late == [("process 1", "unfinished")]:
            break
    assert late == [("process 1", "unfinished")]
    assert "in stuck" in str(caught.value)


@pytest.mark.parametrize("sign", sampled([signal.SIGKILL, signal.SIGINT], 2))
def test_no_process_outlives_the_one_that_started_it(pids: Path, sign: signal.Signals) -> None:
    command = [sys.executable, jobs.__file__, str(pids)]
    path = os.pathsep.join(sys.path)
    with subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.DEVNULL
    ) as parent:
        until = time.monotonic() + 60
        while len(list(pids.iterdir())) < 4 and time.monotonic() < until:
            time.sleep(0.05)
        assert all(alive(int(path.name)) for path in pids.iterdir())
        parent.send_signal(sign)
        parent.wait(30)


def inner() -> Any:
    return lambda: 0


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        ((0, jobs.ranks), {}, "n  expected 1 or more, found 0"),
        ((2, jobs.ranks), {"devices": 0}, "devices  expected 1 or more, found 0"),
        ((2, jobs.ranks), {"timeout": -1}, "timeout  expected 0 or more, found -1"),
        (
            (2, lambda: 0),
            {},
            "fn  expected a function that a new process can import, found test_distributed.<lambda>",
        ),
        (
            (2, functools.partial(lambda x: x, 0)),
            {},
            "fn  expected a function that a new process can import",
        ),
        ((2, inner()), {}, "found test_distributed.inner.<locals>.<lambda>"),
        (
            (2, jobs.ranks, threading.Lock()),
            {},
            "found TypeError: cannot pickle '_thread.lock' object",
        ),
    ],
)
def test_what_cannot_be_run_is_refused(args: Any, options: Any, message: str) -> None:
    with pytest.raises(DistributedError) as caught:
        run_distributed(*args, **options)
    assert message in str(caught.value)
