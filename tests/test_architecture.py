"""The modules stand in one total order: each imports only what stands above it, and each library has its one place."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import ckpt_schema

ROOT = Path(ckpt_schema.__file__).parent
PACKAGE = ROOT.name
MAX_LINES = 560
ORDER = """
    text faults errors paths sizes dims leaves raw_bytes foreign programs placement pytrees table defaults fields schema
    frameworks frameworks.tracing frameworks.optimizer frameworks.linen frameworks.nnx
    trees undeclared slots frameworks.degrees chains conformance equality envelopes inference
    lens lens.digits lens.formats lens.codecs lens.losses lens.cells lens.covering lens.normal lens.spellings
    lens.rules lens.scope lens.told lens.moments lens.axis_names lens.joins lens.levels
    lens.relate lens.parts lens.ties lens.align
    lens.names lens.partners lens.restarts lens.unplaced lens.wholes lens.causes lens.idle
    lens.defaults lens.disputes lens.derive lens.middle lens.compose
    lens.derivation lens.served lens.described
    lens.blocks lens.arrays lens.arrays.axes lens.arrays.frames lens.arrays.differences
    lens.arrays.floats lens.arrays.conversions
    lens.arrays.moves lens.arrays.shardings lens.arrays.programs lens.arrays.execution lens.arrays.checks
    lens.arrays.equals lens.arrays.donation lens.arrays.labels lens.made
    lens.tasks lens.labels lens.outline lens.plan lens.compile lens.core
    orbax.agreement orbax.places orbax.folders orbax.metadata orbax.sides orbax.private
    orbax.restore orbax.items orbax.save orbax
    __init__ demo demo.text demo.linen_gpt demo.nnx_gpt demo.schemas demo.training demo.report demo.matrix
    testing.devices testing.worker testing.distributed testing.values testing.meshes testing.containers
    testing.applied testing.states
    testing.choices testing.samples testing.strategies testing.laws testing.frames testing.shares testing.origins
    testing.held testing.naming testing.known testing.axes testing.defaults
    testing.malformed testing.gradients testing.outputs testing.trials
    testing.lawbook
    testing.suite testing
    cli __main__
""".split()  # noqa: SIM905  read line by line; a list would be formatted into a column
PLACES = {
    "flax": {"frameworks", "demo", "testing"},
    "optax": {"frameworks", "demo"},
    "orbax": {"orbax"},
    "tensorstore": set[str](),
    "rich": {"render", "demo"},
    "hypothesis": {"testing"},
    "pytest": {"testing"},
}
MODULES = {
    ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
    for p in ROOT.rglob("*.py")
}


def imports(tree: ast.AST) -> Iterator[str]:
    """Every dotted name that a module imports, on its top level or inside a function or a ``TYPE_CHECKING`` branch."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, "relative import"
            inner = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (
                name if name.removeprefix(f"{PACKAGE}.") in MODULES else node.module
                for name in inner
            )


def faults(module: str, source: str) -> Iterator[str]:
    """What is wrong with the imports of a module."""
    for name in imports(ast.parse(source)):
        library, _, own = name.partition(".")
        if library == PACKAGE and (own or "__init__") not in ORDER[: ORDER.index(module)]:
            yield f"{module} imports {name}, which does not stand above it"
        if library in PLACES and module.partition(".")[0] not in PLACES[library]:
            yield f"{module} imports {library}, whose place is {sorted(PLACES[library])}"


def test_every_module_has_one_place_in_the_order() -> None:
    assert sorted(ORDER) == sorted(MODULES)


@pytest.mark.parametrize(
    "module", sorted(MODULES.keys() - {"__init__"})
)  # which loads everything, on first use
def test_a_module_imports_only_what_stands_above_it(module: str) -> None:
    assert not list(faults(module, MODULES[module].read_text()))


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_short(module: str) -> None:
    lines = MODULES[module].read_text().count("\n")
    assert lines <= MAX_LINES


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        (
            "from ckpt_schema.trees import Tree",
            "paths imports ckpt_schema.trees, which does not stand above it",
        ),
        (
            "from ckpt_schema import trees",
            "paths imports ckpt_schema.trees, which does not stand above it",
        ),
        ("import ckpt_schema as cs", "paths imports ckpt_schema, which does not stand above it"),
        (
            "def f():\n    import rich.table",
            "paths imports rich, whose place is ['demo', 'render']",
        ),
    ],
)
def test_the_check_can_fail(source: str, fault: str) -> None:
    assert list(faults("paths", source)) == [fault]
