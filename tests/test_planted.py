"""Planted faults: the command reads them, plants them in a copy, and tells what became of each."""

from __future__ import annotations

import re
from pathlib import Path

import planted_faults
import pytest
from planted_faults import FAULTS, Change, Fault, attempt, faults, parsed

ONE = "breaks: nothing\n  much\nmodule: a/b.py\n=== old\n    x = 1\n\n=== new\n    x = 2\n"


def test_a_fault_is_a_file() -> None:
    assert parsed("one", ONE) == Fault(
        "one", "nothing much", (Change("a/b.py", "    x = 1\n", "    x = 2"),)
    )
    several = parsed("two", ONE + "module: c.py\n=== old\ny\n=== new\n")
    assert several.changes[1] == Change("c.py", "y", "")
    with pytest.raises(SystemExit, match="three is no fault"):
        parsed("three", "breaks: it\n")


def test_all_faults_can_be_read() -> None:
    assert {each.name for each in faults()} == {path.stem for path in FAULTS.iterdir()}


def test_the_old_text_of_every_fault_stands_in_its_module() -> None:
    """A module that is rewritten takes the faults along that stand on its lines."""
    stale: list[str] = []
    for fault in faults():
        for change in fault.changes:
            module = planted_faults.ROOT / change.module
            count = module.read_text().count(change.old) if module.exists() else 0
            if count != 1:
                stale.append(f"{fault.name}: {count} times in {change.module}")
    assert not stale, stale


def test_a_fault_is_planted_once(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("x = 1\ny = 1\n")
    twice = Fault("twice", "it", (Change("m.py", "= 1", "= 2"),))
    assert twice.planted(tmp_path) == "its old text stands 2 times in m.py"
    assert Fault("none", "it", (Change("n.py", "= 1", "= 2"),)).planted(tmp_path)
    assert not Fault("once", "it", (Change("m.py", "y = 1", "y = 2"),)).planted(tmp_path)
    assert (tmp_path / "m.py").read_text() == "x = 1\ny = 2\n"


def test_a_fault_is_found_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planted_faults, "LIMIT", 120.0)
    assert str(attempt(Fault("gone", "it", (Change("no.py", "a", "b"),)), [])).startswith(
        "does not apply"
    )
    (flip,) = faults(["flip_dropped"])
    found = attempt(flip, ["rules"])
    assert (found.verdict, found.by) == ("found", "Naming of rules")


def test_the_docs_argue_what_is_beyond_all_laws_and_nothing_else() -> None:
    page = (Path(__file__).parents[1] / "docs" / "mutants.md").read_text()
    section = page.partition("## Planted by readers")[2].partition("\n## ")[0]
    argued = [each.breaks for each in faults() if each.beyond]
    written = [" ".join(text.split()) for text in re.findall(r"\*([^*]+)\*", section)]
    assert len(written) == len(argued)
    for each in argued:
        assert sum(each.startswith(text) for text in written) == 1, each
    assert f"{len(faults())} faults" in " ".join(section.split())


def test_what_is_beyond_all_laws_has_a_test() -> None:
    tests = {path.name: path.read_text() for path in Path(__file__).parent.rglob("test_*.py")}
    for fault in faults():
        if fault.beyond:
            module, _, name = fault.beyond.rpartition(" ")[2].partition("::")
            assert f"def {name}" in tests[module], fault.name
