"""What is published: the wheel and the source archive are built, and the wheel alone is enough to import and to run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ckpt_schema"

# What nobody has who installs no extra, and what is loaded on first use alone.
NOT_LOADED = ("torch", "hypothesis", "pytest", "beartype", "qwix", "flax", "optax", "orbax", "rich")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that both are built into."""
    pytest.importorskip("hatchling", reason="what builds the package is not installed")
    folder = tmp_path_factory.mktemp("built")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    return folder


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that has the wheel's files, as an installation has them."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    return folder


def run(installed: Path, *arguments: str) -> str:
    """What Python prints that has the package from the wheel, and not from here."""
    made = {**os.environ, "PYTHONPATH": str(installed), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=installed, env=made, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_has_every_module_and_the_mark_of_types_and_no_test(installed: Path) -> None:
    found = {path.relative_to(installed) for path in (installed / "ckpt_schema").rglob("*.py")}
    assert found == {path.relative_to(ROOT) for path in PACKAGE.rglob("*.py")}
    assert (installed / "ckpt_schema" / "py.typed").exists()
    assert {path.name.partition("-")[0] for path in installed.iterdir()} == {"ckpt_schema"}


def test_the_wheel_needs_no_extra(installed: Path) -> None:
    told = next(installed.glob("*.dist-info")) / "METADATA"
    needed = [line for line in told.read_text().splitlines() if line.startswith("Requires-Dist")]
    always = [line.split(": ")[1] for line in needed if "extra ==" not in line]
    assert len(always) == 9 and not any(line.startswith(("torch", "hypo")) for line in always)


def test_what_is_imported_is_the_wheel_and_nothing_heavy(installed: Path) -> None:
    code = "import json, sys, ckpt_schema as cs; print(json.dumps([cs.__file__, *sys.modules]))"
    file, *loaded = json.loads(run(installed, "-c", code))
    assert Path(file).is_relative_to(installed)
    assert not [name for name in loaded if name.split(".")[0] in NOT_LOADED]


def test_the_command_answers(installed: Path) -> None:
    assert "usage: ckpt-schema" in run(installed, "-m", "ckpt_schema", "--help")


def test_the_source_archive_has_what_its_tests_need(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "docs/LICENSE", "tests/conftest.py"} <= names
    assert {str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*.py")} <= names
