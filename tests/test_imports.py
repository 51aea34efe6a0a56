"""What importing costs, told by the modules that are loaded afterwards and never by a clock."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

ON_FIRST_USE = {"flax", "optax", "orbax", "tensorstore", "rich", "hypothesis", "pytest"}
PROBE = "import json, sys; exec(sys.argv[1]); print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"


def loaded(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after ``statement``."""
    run = subprocess.run(
        [sys.executable, "-c", PROBE, statement], stdout=subprocess.PIPE, text=True, check=True
    )
    return set(
        json.loads(run.stdout.splitlines()[-1])
    )  # the last line, because the statement may print too


def run_main(*argv: str) -> str:
    """A statement that runs the command line in the process that probes itself afterwards."""
    return f"""
from ckpt_schema.cli import main
try:
    main({list(argv)!r})
except SystemExit as stop:
    assert not stop.code, stop.code
"""


def test_importing_the_package_loads_jax_at_most() -> None:
    assert not loaded("import ckpt_schema") & ON_FIRST_USE


def test_the_core_loads_jax_and_no_framework() -> None:
    modules = loaded(
        "from ckpt_schema import Schema, assert_conforms, check, derive, field, infer, layout"
    )
    assert "jax" in modules
    assert not modules & ON_FIRST_USE


@pytest.mark.parametrize(
    ("name", "library"), [("linen", "optax"), ("nnx", "flax"), ("orbax", "orbax")]
)
def test_a_framework_loads_on_first_use(name: str, library: str) -> None:
    assert library in loaded(f"import ckpt_schema; ckpt_schema.{name}")


def test_discovery_is_loaded_where_it_is_asked_for_and_torch_where_its_model_is() -> None:
    modules = loaded(
        "import sys, ckpt_schema\n"
        "assert not [name for name in sys.modules if 'discovery' in name]\n"
        "assert ckpt_schema.discover and 'ckpt_schema.discovery' in sys.modules"
    )
    assert "torch" not in modules


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_the_command_line_answers_without_jax(argument: str) -> None:
    modules = loaded(run_main(argument))
    assert "ckpt_schema" in modules
    assert not modules & ({"jax", "numpy"} | ON_FIRST_USE)


@pytest.mark.parametrize("library", ["jax", "rich"])
def test_the_probe_can_fail(library: str) -> None:
    assert library in loaded(f"import ckpt_schema, {library}")


def test_every_public_name_is_there() -> None:
    loaded("import ckpt_schema as cs; [getattr(cs, name) for name in dir(cs)]")


def test_the_module_runs_as_the_command_does() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "ckpt_schema", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.startswith("ckpt-schema ")


def test_a_command_is_required() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "ckpt_schema"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert "COMMAND" in run.stderr
