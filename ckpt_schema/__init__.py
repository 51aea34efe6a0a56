"""Structural-typing schemas and lenses for Flax checkpoints.

Declare the layouts you expect as typed classes, derive the lens between them, and use it: ``lens.get``, ``lens.put``, a sharded
Orbax restore or save through it. Everything is loaded on first use; importing this package costs no more than jax.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ckpt_schema import blocks as blocks
    from ckpt_schema import discovery as discovery
    from ckpt_schema import families as families
    from ckpt_schema import hf as hf
    from ckpt_schema import linen as linen
    from ckpt_schema import nnx as nnx
    from ckpt_schema import orbax as orbax
    from ckpt_schema._breaking.breaking import breaking as breaking
    from ckpt_schema._breaking.verdicts import Breaking as Breaking
    from ckpt_schema._diff.comparing import diff as diff
    from ckpt_schema._diff.entries import Diff as Diff
    from ckpt_schema._frameworks.kept_states import kept as kept
    from ckpt_schema._frameworks.states import optimizer as optimizer
    from ckpt_schema._json.json_text import from_json as from_json
    from ckpt_schema._json.json_text import to_json as to_json
    from ckpt_schema._layouts.annotations import Key as Key
    from ckpt_schema._layouts.bare_trees import Plain as Plain
    from ckpt_schema._layouts.drafts import OptState as OptState
    from ckpt_schema._layouts.fallbacks import same_as as same_as
    from ckpt_schema._layouts.fields import field as field
    from ckpt_schema._layouts.fields import series as series
    from ckpt_schema._layouts.leaves import constant_key as constant_key
    from ckpt_schema._layouts.leaves import fresh_key as fresh_key
    from ckpt_schema._layouts.schema import Schema as Schema
    from ckpt_schema._layouts.schema import layout as layout
    from ckpt_schema._layouts.streams import Stream as Stream
    from ckpt_schema._layouts.table import Layout as Layout
    from ckpt_schema._lens.axis_rules import flip as flip
    from ckpt_schema._lens.axis_rules import pad as pad
    from ckpt_schema._lens.axis_rules import repeat as repeat
    from ckpt_schema._lens.axis_rules import replicated as replicated
    from ckpt_schema._lens.derived_lens import derive as derive
    from ckpt_schema._lens.fold_rules import dequantize as dequantize
    from ckpt_schema._lens.fold_rules import lora as lora
    from ckpt_schema._lens.fold_rules import total as total
    from ckpt_schema._lens.lens import Lens as Lens
    from ckpt_schema._lens.merged_lens import merge as merge
    from ckpt_schema._lens.registry import Registry as Registry
    from ckpt_schema._lens.rules import apart as apart
    from ckpt_schema._lens.rules import fuse as fuse
    from ckpt_schema._lens.rules import move as move
    from ckpt_schema._lens.rules import own as own
    from ckpt_schema._lens.rules import private as private
    from ckpt_schema._lens.rules import raw_key as raw_key
    from ckpt_schema._lens.rules import rename as rename
    from ckpt_schema._lens.rules import reset as reset
    from ckpt_schema._lens.rules import tie as tie
    from ckpt_schema._lens.value_rules import cast as cast
    from ckpt_schema._lens.value_rules import scale as scale
    from ckpt_schema._lens.value_rules import shift as shift
    from ckpt_schema._source.source import to_source as to_source
    from ckpt_schema._trees.abstract_states import abstract as abstract
    from ckpt_schema._trees.conformance import Report as Report
    from ckpt_schema._trees.conformance import assert_conforms as assert_conforms
    from ckpt_schema._trees.conformance import check as check
    from ckpt_schema._trees.equality import TreesDifferError as TreesDifferError
    from ckpt_schema._trees.equality import assert_trees_identical as assert_trees_identical
    from ckpt_schema._trees.equality import differences as differences
    from ckpt_schema._trees.infer import infer as infer
    from ckpt_schema.discovery._discovery import discover as discover
    from ckpt_schema.errors import AxesWarning as AxesWarning
    from ckpt_schema.errors import CheckpointExistsError as CheckpointExistsError
    from ckpt_schema.errors import CheckpointMismatchError as CheckpointMismatchError
    from ckpt_schema.errors import CheckpointWriteError as CheckpointWriteError
    from ckpt_schema.errors import CkptSchemaError as CkptSchemaError
    from ckpt_schema.errors import ConformanceError as ConformanceError
    from ckpt_schema.errors import DerivationError as DerivationError
    from ckpt_schema.errors import Mismatch as Mismatch
    from ckpt_schema.errors import SchemaError as SchemaError
    from ckpt_schema.errors import ServedWeightsWarning as ServedWeightsWarning
    from ckpt_schema.errors import ShardingWarning as ShardingWarning
    from ckpt_schema.orbax._adapt import adapt as adapt
    from ckpt_schema.orbax._missing import init as init

__version__ = "0.1.0"

_HOMES = {
    "discovery._discovery": ("discover",),
    "_breaking.breaking": ("breaking",),
    "_breaking.verdicts": ("Breaking",),
    "_diff.comparing": ("diff",),
    "_diff.entries": ("Diff",),
    "_trees.abstract_states": ("abstract",),
    "_trees.conformance": ("Report", "assert_conforms", "check"),
    "_trees.equality": ("TreesDifferError", "assert_trees_identical", "differences"),
    "errors": (
        "AxesWarning",
        "CheckpointExistsError",
        "CheckpointMismatchError",
        "CheckpointWriteError",
        "CkptSchemaError",
        "ConformanceError",
        "DerivationError",
        "Mismatch",
        "SchemaError",
        "ServedWeightsWarning",
        "ShardingWarning",
    ),
    "_trees.infer": ("infer",),
    "orbax._adapt": ("adapt",),
    "orbax._missing": ("init",),
    "_layouts.table": ("Layout",),
    "_layouts.annotations": ("Key",),
    "_layouts.leaves": ("constant_key", "fresh_key"),
    "_lens.derived_lens": ("derive",),
    "_lens.lens": ("Lens",),
    "_lens.merged_lens": ("merge",),
    "_lens.registry": ("Registry",),
    "_lens.fold_rules": ("dequantize", "lora", "total"),
    "_lens.axis_rules": ("flip", "pad", "repeat", "replicated"),
    "_lens.rules": (
        "apart",
        "fuse",
        "move",
        "own",
        "private",
        "raw_key",
        "rename",
        "reset",
        "tie",
    ),
    "_frameworks.kept_states": ("kept",),
    "_lens.value_rules": ("cast", "scale", "shift"),
    "_frameworks.states": ("optimizer",),
    "_layouts.drafts": ("OptState",),
    "_layouts.fallbacks": ("same_as",),
    "_layouts.fields": ("field", "series"),
    "_layouts.bare_trees": ("Plain",),
    "_layouts.schema": ("Schema", "layout"),
    "_layouts.streams": ("Stream",),
    "_source.source": ("to_source",),
    "_json.json_text": ("from_json", "to_json"),
}
_MODULES = ("blocks", "discovery", "families", "hf", "linen", "nnx", "orbax")
_NAMES = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AxesWarning",
    "Breaking",
    "CheckpointExistsError",
    "CheckpointMismatchError",
    "CheckpointWriteError",
    "CkptSchemaError",
    "ConformanceError",
    "DerivationError",
    "Diff",
    "Key",
    "Layout",
    "Lens",
    "Mismatch",
    "OptState",
    "Plain",
    "Registry",
    "Report",
    "Schema",
    "SchemaError",
    "ServedWeightsWarning",
    "ShardingWarning",
    "Stream",
    "TreesDifferError",
    "abstract",
    "adapt",
    "apart",
    "assert_conforms",
    "assert_trees_identical",
    "blocks",
    "breaking",
    "cast",
    "check",
    "constant_key",
    "dequantize",
    "derive",
    "diff",
    "differences",
    "discover",
    "discovery",
    "families",
    "field",
    "flip",
    "fresh_key",
    "from_json",
    "fuse",
    "hf",
    "infer",
    "init",
    "kept",
    "layout",
    "linen",
    "lora",
    "merge",
    "move",
    "nnx",
    "optimizer",
    "orbax",
    "own",
    "pad",
    "private",
    "raw_key",
    "rename",
    "repeat",
    "replicated",
    "reset",
    "same_as",
    "scale",
    "series",
    "shift",
    "tie",
    "to_json",
    "to_source",
    "total",
]


def __getattr__(name: str) -> Any:
    """Loads a public name from its module on first use."""
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
