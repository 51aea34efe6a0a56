"""What is shown while much is read or written: a bar on a terminal, and a line of the log."""

from __future__ import annotations

import io
import logging
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import rich.progress  # noqa: F401  # which takes longer than the bars of these tests
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import ckpt_schema as cs
from ckpt_schema._messages import progress
from ckpt_schema._messages.progress import watched
from ckpt_schema.orbax import _transfers
from ckpt_schema.testing import _suite, check_laws


class Terminal(io.StringIO):
    """A terminal, as far as anybody asks."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_AFTER", 0.05)
    monkeypatch.setattr(progress, "_EVERY", 0.02)


def work(counter: list[int], steps: int = 10) -> None:
    with watched("reading", 3, lambda: 2**20, lambda: counter[0]):
        for _ in range(steps):
            time.sleep(0.02)
            counter[0] += 2**20 // steps


def plain(text: str) -> str:
    """A text without what moves the cursor and colours it."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


@pytest.mark.usefixtures("impatient")
def test_a_terminal_shows_leaves_bytes_and_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    work([0])
    shown = plain(terminal.getvalue())
    assert "reading 3 leaves" in shown and "MiB" in shown and "/s" in shown


def try_laws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries two laws, each of which takes long for the impatient."""
    tried: list[str] = []

    def check_law(lens: cs.Lens, law: Any, options: Any) -> None:
        tried.append(law.name)
        time.sleep(0.4)

    monkeypatch.setattr(_suite, "check_law", check_law)
    lens = cs.adapt({"a": np.ones(2)}, {"b": np.ones(2)}, rules=[cs.rename("a", "b")])
    check_laws(lens, ["GetPut", "PutGet"])
    assert tried == ["GetPut", "PutGet"]


@pytest.mark.usefixtures("impatient")
def test_a_terminal_shows_which_law_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    try_laws(monkeypatch)
    shown = plain(terminal.getvalue())
    assert "laws of source -> view: GetPut" in shown and "0/2" in shown
    assert "laws of source -> view: PutGet" in shown and "1/2" in shown


@pytest.mark.usefixtures("impatient")
def test_a_law_that_takes_long_is_a_line_of_the_log(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, logger="ckpt_schema"):
        try_laws(monkeypatch)
    lines = [line for line in caplog.messages if "took" in line]
    for law, line in zip(("GetPut", "PutGet"), lines, strict=True):
        assert re.fullmatch(rf"laws of source -> view: {law} took 0\.\d s", line)
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("impatient")
def test_elsewhere_there_is_a_line_of_the_log_and_nothing_else(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="ckpt_schema"):
        work([5])
    assert re.fullmatch(
        r"reading 3 leaves: 1024\.0 KiB in 0\.\d s, \d+\.\d MiB/s", caplog.messages[-1]
    ), caplog.messages
    assert capfd.readouterr() == ("", "")


def test_what_is_quick_shows_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with caplog.at_level(logging.INFO, logger="ckpt_schema"):
        work([0], steps=2)
    assert terminal.getvalue() == "" and not caplog.messages


@pytest.mark.usefixtures("impatient")
def test_a_failure_passes_and_ends_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    before = threading.active_count()
    with (
        pytest.raises(ZeroDivisionError),
        watched("writing", 1, lambda: 1, lambda: 0),
    ):
        time.sleep(0.1)
        raise ZeroDivisionError
    end = time.perf_counter() + 5  # Rich's own thread ends a little later
    while threading.active_count() > before and time.perf_counter() < end:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_bytes_are_those_that_are_read_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(0, 2**32, (256, 1024), np.uint32)
    asked: list[tuple[str, int, int, int]] = []

    def spy(what: str, leaves: int, total: object, done: object) -> object:
        start = done()  # pyright: ignore[reportCallIssue]

        class Watch:
            def __enter__(self) -> None:
                return None

            def __exit__(self, *_: object) -> None:
                asked.append((what, leaves, total(), done() - start))  # pyright: ignore[reportCallIssue]

        return Watch()

    monkeypatch.setattr(_transfers, "watched", spy)
    mesh = Mesh(np.asarray(jax.devices()[:2]), ("x",))
    sharding = NamedSharding(mesh, PartitionSpec("x"))
    state = {"params": {"a": jax.device_put(noise, sharding), "key": jax.random.key(0)}, "step": 7}
    cs.orbax.save(tmp_path / "1", state)
    cs.orbax.restore(tmp_path / "1", state)
    for (what, leaves, total, done), name in zip(asked, ("writing", "reading"), strict=True):
        assert (what, leaves) == (name, 3)
        assert noise.nbytes <= total <= noise.nbytes + 16
        assert 0.98 * noise.nbytes <= done <= 1.05 * noise.nbytes + 2**14
