"""The README and the guides are programs: the Python of each runs as one, from top to bottom."""

from __future__ import annotations

import re
import unittest
from pathlib import Path
from typing import Any

import pytest
from support.pages import FENCE, python_of
from support.profiles import THOROUGH

from ckpt_schema.testing import LAWS

README = Path(__file__).parent.parent / "README.md"
GUIDE = README.parent / "docs" / "testing.md"


def test_what_the_readme_says_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = python_of(README.read_text()).replace("/tmp/my-run", str(tmp_path))
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(program, str(README), "exec"), names)
    assert names["training"].optimizer.step[...] == 1000
    assert "layers" in capsys.readouterr().out


def test_what_the_page_on_keys_says_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = README.parent / "docs" / "keys.md"
    exec(compile(python_of(page.read_text()), str(page), "exec"), {"__name__": "keys"})
    printed = capsys.readouterr().out
    assert "model.layers.{i}.mlp.experts.{j}.up_proj.weight" in printed
    assert "encoder/{i}/norm_1/scale" in printed


def test_what_the_page_on_leaves_of_which_one_side_has_more_says_runs() -> None:
    page = README.parent / "docs" / "parts.md"
    exec(compile(python_of(page.read_text()), str(page), "exec"), {"__name__": "parts"})


def test_what_the_guide_to_testing_says_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = FENCE.findall(GUIDE.read_text())
    files = {
        block.split("\n")[0].removeprefix("# "): block for block in blocks if block.startswith("# ")
    }
    assert sorted(files) == ["family.py", "jobs.py", "mixture.py"]
    for name, block in files.items():
        (tmp_path / name).write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    names: dict[str, Any] = {"__name__": "guide"}
    for block in (block for block in blocks if block not in files.values()):
        exec(compile(block, str(GUIDE), "exec"), names)
    real = names["TestRealMixture"]()
    real.max_examples = None if THOROUGH else 2
    real.test_declaration()
    real.test_function()
    small = names["TestSmallMixtures"]()
    small.test_get_put()
    with pytest.raises(unittest.SkipTest):
        small.test_naming()


def test_the_guide_to_testing_lists_all_laws() -> None:
    assert re.findall(r"^\| ([A-Z]\w+) \|", GUIDE.read_text(), re.MULTILINE) == [*LAWS]


def test_an_error_in_the_readme_names_its_line() -> None:
    with pytest.raises(NameError) as raised:
        exec(
            compile(
                python_of("text\n```python\nx = 1\n```\n\n```python\ny = 2\nz\n```\n"), "it", "exec"
            ),
            {},
        )
    assert raised.traceback[-1].lineno == 7  # counted from 0
