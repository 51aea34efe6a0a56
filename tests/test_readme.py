"""The README and the guides are programs: the Python of each runs as one, from top to bottom."""

from __future__ import annotations

import re
import unittest
from pathlib import Path
from typing import Any

import pytest
from orbax.checkpoint import v1 as ocp
from support.pages import FENCE, python_of
from support.profiles import THOROUGH

import ckpt_schema as cs
from ckpt_schema.testing import LAWS

README = Path(__file__).parent.parent / "README.md"
GUIDE = README.parent / "docs" / "testing.md"


def test_what_the_readme_says_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = python_of(README.read_text()).replace("/tmp/my-run", str(tmp_path))
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(program, str(README), "exec"), names)
    training, state = names["training"], names["state"]
    assert training.optimizer.step[...] == 1000
    stacked = state.params["params"]["layers"]
    assert (training.model.layers[2].norm.scale[...] == stacked["LayerNorm_0"]["scale"][2]).all()
    assert "1000 -> Training" in capsys.readouterr().out
    saved = ocp.load(tmp_path / "1001", checkpointable_name="state")
    assert (saved["params"]["params"]["layers"]["wi"]["kernel"] == stacked["wi"]["kernel"]).all()


def test_what_the_error_of_the_readme_says_settles_it(tmp_path: Path) -> None:
    program = python_of(README.read_text()).replace("/tmp/my-run", str(tmp_path))
    head, _, _ = program.partition("rules = [")
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(head, str(README), "exec"), names)
    with pytest.raises(cs.DerivationError) as raised:
        cs.orbax.restore(tmp_path / "1000", names["training"])
    assert list(raised.value.rules) == [cs.rename("layers[]/LayerNorm_0", "layers[]/norm")]
    assert "cs.rename('layers[]/LayerNorm_0', 'layers[]/norm')" in str(raised.value)


def test_what_the_page_on_declaring_says_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = README.parent / "docs" / "declaring.md"
    program = python_of(page.read_text()).replace("/tmp/my-run", str(tmp_path))
    names: dict[str, Any] = {"__name__": "declaring"}
    exec(compile(program, str(page), "exec"), names)
    assert names["training"].optimizer.step[...] == 1000
    written = ocp.load(tmp_path / "1001", checkpointable_name="state")
    cs.assert_trees_identical(written, ocp.load(tmp_path / "1000"))
    assert "layers" in capsys.readouterr().out


def test_what_the_tutorial_says_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = README.parent / "docs" / "tutorial.md"
    exec(compile(python_of(page.read_text()), str(page), "exec"), {"__name__": "tutorial"})
    printed = capsys.readouterr().out
    assert re.search(r"Linen \d\.\d{6}, NNX \d\.\d{6}\n", printed)
    assert "the models compute different things" in printed


def test_each_page_that_the_readme_names_is_there() -> None:
    named = set(re.findall(r"\]\((docs/[\w-]+(?:\.md)?)\)", README.read_text()))
    pages = {f"docs/{page.name}" for page in README.parent.glob("docs/*") if page.is_file()}
    assert named <= pages
    # What is read beside another page, and not from the front door.
    beside = {"docs/failures.md", "docs/mutants.md"}
    # And what makes the site of them, of which the README is the first page.
    assert pages - named <= beside | {"docs/conf.py", "docs/index.md"}


def test_what_the_page_on_checkpoints_without_a_declaration_says_runs() -> None:
    page = README.parent / "docs" / "adapt.md"
    exec(compile(python_of(page.read_text()), str(page), "exec"), {"__name__": "adapt"})


def test_what_the_recipes_say_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = README.parent / "docs" / "recipes.md"
    exec(compile(python_of(page.read_text()), str(page), "exec"), {"__name__": "recipes"})
    assert "2 of 3 arrays on disk are read" in capsys.readouterr().out


def test_what_the_page_on_checkpoints_on_disk_says_runs() -> None:
    page = README.parent / "docs" / "on-disk.md"
    exec(compile(python_of(page.read_text()), str(page), "exec"), {"__name__": "on_disk"})


def test_what_the_page_on_keys_says_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = README.parent / "docs" / "keys.md"
    exec(compile(python_of(page.read_text()), str(page), "exec"), {"__name__": "keys"})
    printed = capsys.readouterr().out
    assert "model.layers.{i}.mlp.experts.{j}.up_proj.weight" in printed
    assert "encoder/{i}/norm_1/scale" in printed


def test_what_the_page_on_hugging_face_says_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = README.parent / "docs" / "hugging-face.md"
    exec(compile(python_of(page.read_text()), str(page), "exec"), {"__name__": "hugging_face"})
    assert "2*heads*half embed -> embed heads half*2" in capsys.readouterr().out


def test_what_the_page_on_leaves_that_are_computed_says_runs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = README.parent / "docs" / "computed.md"
    exec(compile(python_of(page.read_text()), str(page), "exec"), {"__name__": "computed"})
    assert "rounded in float32" in capsys.readouterr().out


def test_what_the_page_on_several_checkpoints_says_runs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = README.parent / "docs" / "merging.md"
    exec(compile(python_of(page.read_text()), str(page), "exec"), {"__name__": "merging"})
    assert "vision_encoder/layers/kernel" in capsys.readouterr().out


def test_what_the_page_on_engines_says_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = README.parent / "docs" / "engines.md"
    exec(compile(python_of(page.read_text()), str(page), "exec"), {"__name__": "engines"})
    assert capsys.readouterr().out.count("layers/") == 8


def test_what_the_page_on_leaves_of_which_one_side_has_more_says_runs() -> None:
    page = README.parent / "docs" / "parts.md"
    exec(compile(python_of(page.read_text()), str(page), "exec"), {"__name__": "parts"})


def test_what_the_page_on_blocks_says_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = README.parent / "docs" / "blocks.md"
    exec(compile(python_of(page.read_text()), str(page), "exec"), {"__name__": "blocks"})
    assert "dropout/rngs/key" in capsys.readouterr().out


def test_what_the_page_on_discovery_says_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = README.parent / "docs" / "discover.md"
    exec(compile(python_of(page.read_text()), str(page), "exec"), {"__name__": "discovery"})
    said = capsys.readouterr().out
    assert "no value of it changes the outputs at this input" in said
    assert "fuse('blocks[]/wi', ['layers[]/gate', 'layers[]/up'], axes='a 2 b -> a b')" in said


def test_what_the_page_on_numbers_that_change_says_runs() -> None:
    page = README.parent / "docs" / "numbers.md"
    exec(compile(python_of(page.read_text()), str(page), "exec"), {"__name__": "numbers"})


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


def test_cells_of_a_notebook_are_read_as_blocks_are_without_their_options() -> None:
    cell = "```{code-cell} python\n:tags: [hide-input]\n:name: it\n\nx = 1\n```\n"
    page = f"text\n{cell}```text\ny\n```\n```python\nz = 2\n```\n"
    lines = python_of(page).split("\n")
    assert [line for line in lines if line] == ["x = 1", "z = 2"]
    assert [page.split("\n").index(line) for line in ("x = 1", "z = 2")] == [5, 11]
    assert [lines.index(line) for line in ("x = 1", "z = 2")] == [5, 11]


def test_what_the_page_on_written_schemas_says_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = README.parent / "docs" / "source.md"
    exec(compile(python_of(page.read_text()), str(page), "exec"), {"__name__": "source"})
    assert "class Inferred(" in capsys.readouterr().out
