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
    _compat
    _messages
    _messages.text
    _messages.warned
    _messages.html
    _messages.terminal
    _messages.pictures
    _messages.progress
    _messages.strict_json
    _messages.faults
    errors
    _layouts
    _layouts.immutable
    _layouts.formats
    _layouts.paths
    _layouts.overlaps
    _layouts.sizes
    _layouts.dims
    _layouts.fallbacks
    _layouts.leaves
    _layouts.annotations
    _layouts.pytrees
    _layouts.row_sizes
    _layouts.leaf_trees
    _layouts.table
    _layouts.precision
    _layouts.presence
    _frameworks
    _frameworks.state_names
    _layouts.kinds
    _layouts.fields
    _layouts.mixed_lists
    _layouts.drafts
    _layouts.schema
    _layouts.streams
    _layouts.bare_trees
    _frameworks.boxes
    _frameworks.moment_names
    _frameworks.tracing
    _frameworks.mirror_dims
    _frameworks.optimizer_rows
    _frameworks.variables
    _frameworks.linen_modules
    _frameworks.states
    _frameworks.kept_states
    _frameworks.packed_trees
    _frameworks.named_types
    linen
    nnx
    _safetensors
    _safetensors.dtypes
    _safetensors.header
    _safetensors.weights
    _safetensors.ranges
    _safetensors.packing
    _trees
    _trees.raw_bytes
    _trees.foreign
    _trees.jitted
    _trees.placement
    _safetensors.shards
    _trees.defaults
    _trees.containers
    _trees.abstract_states
    _trees.undeclared
    _trees.slots
    _frameworks.benches
    _frameworks.degrees
    _frameworks.starting_values
    _trees.chains
    _trees.leaf_faults
    _trees.conformance
    _trees.equality
    _frameworks.envelopes
    _trees.repeated_keys
    _trees.optimizer_parts
    _trees.inference
    _lens
    _lens.digits
    _lens.expressions
    _lens.codecs
    _lens.cells
    _lens.covering
    _lens.normal
    _lens.spellings
    _lens.wellformed
    _lens.spelled_axes
    _lens.axis_rules
    _lens.value_rules
    _lens.fold_rules
    _lens.rules
    _lens.ancestry
    _lens.derive
    _lens.derive.scope
    _lens.derive.globs
    _lens.derive.spelled_rows
    _lens.derive.leaf_rules
    _lens.derive.row_parts
    _lens.derive.moments
    _lens.derive.axis_names
    _lens.derive.bounds
    _lens.derive.joins
    _lens.losses
    _lens.derive.fold_kinds
    _lens.derive.folded_rows
    _lens.derive.view_names
    _lens.derive.levels
    _lens.derive.repeats
    _lens.derive.named_axes
    _lens.derive.row_spellings
    _lens.derive.padded_rows
    _lens.derive.relations
    _lens.derive.axis_shares
    _lens.derive.parts
    _lens.derive.ties
    _lens.derive.alignment
    _lens.derive.names
    _lens.derive.nameless_states
    _lens.derive.partners
    _lens.derive.restarts
    _lens.derive.copies_of_weights
    _lens.derive.outside_partners
    _lens.derive.fuse_guesses
    _lens.derive.lone_arrays
    _lens.derive.unplaced
    _lens.derive.wholes
    _lens.derive.causes
    _lens.derive.missing_paths
    _lens.derive.private_pairs
    _lens.derive.idle_rules
    _lens.derive.rename_faults
    _lens.derive.exemptions
    _lens.derive.disputes
    _lens.derive.pairing
    _lens.derive.leaf_joins
    _lens.derive.derivation
    _lens.derive.lists
    _lens.derive.middle
    _lens.derive.composition
    _lens.derive.served_weights
    _lens.description
    _lens.arrays
    _lens.arrays.blocks
    _lens.arrays.axes
    _lens.arrays.frames
    _lens.arrays.comparison
    _lens.arrays.floats
    _lens.arrays.conversions
    _lens.arrays.moves
    _lens.arrays.shardings
    _lens.arrays.programs
    _lens.arrays.packed_words
    _lens.arrays.block_scales
    _lens.arrays.low_rank
    _lens.arrays.fold_arithmetic
    _lens.arrays.execution
    _lens.arrays.checks
    _lens.arrays.fold_tasks
    _lens.arrays.own_bits
    _lens.arrays.tie_checks
    _lens.arrays.donation
    _lens.arrays.step_labels
    _lens.plan
    _lens.plan.new_leaves
    _lens.plan.moved_leaves
    _lens.plan.tasks
    _lens.plan.folded_leaves
    _lens.plan.labels
    _lens.plan.outline
    _lens.plan.plan
    _lens.plan.fallback_leaves
    _lens.plan.pieces
    _lens.plan.refusals
    _lens.plan.matched_trees
    _lens.plan.leaf_sources
    _lens.plan.restart_states
    _lens.plan.compilation
    _lens.plan.translation
    _lens.step_dtypes
    _lens.read_sides
    _lens.replicas
    _lens.handover
    _lens.square_leaves
    _lens.known_sizes
    _lens.lens_table
    _lens.lens
    _lens.derived_lens
    _lens.merged_lens
    _lens.registry
    _lens.adapt
    _lens.adapt.candidate_renames
    _lens.adapt.lone_nodes
    _lens.adapt.lone_stacks
    _lens.adapt.older_streams
    _lens.adapt.one_sided
    _lens.adapt.siblings
    _lens.adapt.scan_lines
    _lens.adapt.stacks
    _lens.adapt.adaptation
    blocks._around
    blocks.linen
    blocks.nnx
    blocks
    _source
    _source.flat_keys
    _source.importing
    _source.branches
    _source.equal_parts
    _source.mixed_lists_text
    _source.size_names
    _source.ready_blocks
    _source.class_names
    _source.python_text
    _source.kept_text
    _source.layout_text
    _source.source
    _json
    _json.json_objects
    _json.values_json
    _json.layout_json
    _json.rules_json
    _json.json_text
    orbax._transfers
    orbax._collector
    orbax._contexts
    orbax._agreement
    orbax._places
    orbax._older
    orbax._pytree_files
    orbax._array_headers
    orbax._folders
    orbax._metadata
    orbax._loaded_leaves
    orbax._records
    orbax._sides
    orbax._whereabouts
    orbax._private_leaves
    discovery._leaf_pieces
    discovery._leaf_ways
    discovery._models
    discovery._points
    discovery._roles
    discovery._layer_levels
    discovery._known_leaves
    discovery._even_choices
    discovery._cutting
    discovery._mutes
    discovery._candidate_changes
    discovery._readings
    discovery._proof
    discovery._matching
    discovery._axis_letters
    discovery._coarse_pairs
    discovery._found_rules
    discovery._factor_places
    discovery._open
    discovery._open_values
    discovery._cautions
    discovery._depths
    discovery._discovery
    discovery._torch
    discovery
    orbax._adapt
    orbax._load
    orbax._missing
    orbax._versions
    orbax._targets
    orbax._same_layout
    orbax._restore
    orbax._cost
    orbax._raw_keys
    orbax._items
    orbax._managed
    orbax._chunks
    orbax._save
    orbax._route
    orbax._conversion
    orbax._rewriting
    orbax._convert
    orbax
    hf._load
    hf._restore
    hf._save
    hf._stored
    hf
    families._family
    families._decoders
    families._centered
    families._maxtext
    families.llama
    families.qwen2
    families.qwen3
    families.gemma2
    families.gemma3
    families.mixtral
    families.qwen3_moe
    families.gpt2
    families.vit
    families.whisper
    families
    _trees.infer
    _diff
    _diff.both_sides
    _diff.found_lists
    _diff.entries
    _diff.comparing
    _breaking
    _breaking.saved_form
    _breaking.verdicts
    _breaking.breaking
    __init__
    demo
    demo.corpus
    demo.linen_gpt
    demo.nnx_gpt
    demo.schemas
    demo.training
    demo.report
    demo.matrix
    testing._devices
    testing._worker
    testing._distributed
    testing._values
    testing._meshes
    testing._container_kinds
    testing._named_arrays
    testing._held
    testing._sums
    testing._lossy
    testing._applied
    testing._states
    testing._choices
    testing._samples
    testing.strategies
    testing._laws
    testing._own_values
    testing._provenance
    testing._shares
    testing._statements
    testing._origins
    testing._naming
    testing._known
    testing._axis_law
    testing._default_law
    testing._malformed
    testing._gradients
    testing._outputs
    testing._trials
    testing._lawbook
    testing._suite
    testing._discovered
    testing
    _commands
    _commands.operands
    _commands.device_layouts
    _commands.answers
    _commands.folders_of_families
    cli
    __main__
""".split()  # noqa: SIM905  read line by line; a list would be formatted into a column
PLACES = {
    "flax": {"_frameworks", "linen", "nnx", "demo", "discovery", "testing"},
    "optax": {"_frameworks", "linen", "nnx", "demo"},
    "orbax": {"orbax"},
    "tensorstore": {"orbax"},
    "rich": {"demo", "_messages"},
    "hypothesis": {"testing"},
    "pytest": {"testing"},
}
MODULES = {
    ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
    for p in ROOT.rglob("*.py")
}


# What users import. The demo is an example to read, so its modules are named like a user's own.
PUBLIC = {
    *("__init__", "__main__", "cli", "discovery", "errors", "hf", "linen", "nnx", "orbax"),
    *("families", "families.gemma2", "families.gemma3", "families.gpt2", "families.llama"),
    *("families.mixtral", "families.qwen2", "families.qwen3", "families.qwen3_moe"),
    *("families.vit", "families.whisper"),
    *("blocks", "blocks.linen", "blocks.nnx", "testing", "testing.strategies"),
    *("demo", "demo.corpus", "demo.linen_gpt", "demo.nnx_gpt", "demo.schemas", "demo.training"),
    *("demo.report", "demo.matrix"),
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


UNSTABLE = ("jax.core", "jax.experimental", "jax.extend", "jax.interpreters")


def unstable(source: str) -> list[str]:
    """What a module imports of other packages' private or unstable parts."""
    found = imports(ast.parse(source))
    return [
        name for name in found if name.startswith(UNSTABLE) or "._" in name.split("ckpt_schema")[0]
    ]


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"_compat"}))
def test_unstable_names_of_other_packages_stand_in_one_module(module: str) -> None:
    assert unstable(MODULES[module].read_text()) == []


def test_the_check_of_unstable_names_can_fail() -> None:
    assert unstable("from jax.experimental import io_callback") == ["jax.experimental"]
    assert unstable("from orbax.checkpoint._src import x") == ["orbax.checkpoint._src"]


def test_every_module_has_one_place_in_the_order() -> None:
    assert sorted(ORDER) == sorted(MODULES)


def test_only_public_modules_lack_an_underscore() -> None:
    hidden = {name for name in MODULES if any(part[0] == "_" for part in name.split("."))}
    assert MODULES.keys() - hidden - {"__init__", "__main__"} == PUBLIC - {"__init__", "__main__"}


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
            "from ckpt_schema._trees.containers import Tree",
            "_layouts.paths imports ckpt_schema._trees.containers, which does not stand above it",
        ),
        (
            "from ckpt_schema._trees import containers",
            "_layouts.paths imports ckpt_schema._trees.containers, which does not stand above it",
        ),
        (
            "import ckpt_schema as cs",
            "_layouts.paths imports ckpt_schema, which does not stand above it",
        ),
        (
            "def f():\n    import rich.table",
            "_layouts.paths imports rich, whose place is ['_messages', 'demo']",
        ),
    ],
)
def test_the_check_can_fail(source: str, fault: str) -> None:
    assert list(faults("_layouts.paths", source)) == [fault]
