"""The law suite: property tests of a lens, in two lines; strategies for states, meshes and shardings; several processes.

Nothing here is imported by the rest of the package, and nothing runs in anybody's test session who does not ask for it.
Everything is loaded on first use: virtual devices need no package that only the laws need.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ckpt_schema.errors import CkptSchemaError, Mismatch

if TYPE_CHECKING:
    from ckpt_schema.testing._devices import DevicesError as DevicesError
    from ckpt_schema.testing._devices import virtual_devices as virtual_devices
    from ckpt_schema.testing._discovered import assert_discovered as assert_discovered
    from ckpt_schema.testing._distributed import DistributedError as DistributedError
    from ckpt_schema.testing._distributed import run_distributed as run_distributed
    from ckpt_schema.testing._lawbook import LAWS as LAWS
    from ckpt_schema.testing._lawbook import Law as Law
    from ckpt_schema.testing._lawbook import weakened as weakened
    from ckpt_schema.testing._samples import Sample as Sample
    from ckpt_schema.testing._suite import BrokenLawError as BrokenLawError
    from ckpt_schema.testing._suite import LensLaws as LensLaws
    from ckpt_schema.testing._suite import Options as Options
    from ckpt_schema.testing._suite import check_laws as check_laws

# By module, for each is loaded when one of its names is asked for.
_HOMES = {
    "_discovered": ("assert_discovered",),
    "_devices": ("DevicesError", "virtual_devices"),
    "_distributed": ("DistributedError", "run_distributed"),
    "_lawbook": ("LAWS", "Law", "weakened"),
    "_samples": ("Sample",),
    "_suite": ("BrokenLawError", "LensLaws", "Options", "check_laws"),
}
_NAMES = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "LAWS",
    "BrokenLawError",
    "DevicesError",
    "DistributedError",
    "Law",
    "LensLaws",
    "MissingPackageError",
    "Options",
    "Sample",
    "assert_discovered",
    "check_laws",
    "run_distributed",
    "virtual_devices",
    "weakened",
]


class MissingPackageError(CkptSchemaError, ImportError):
    """A package that the laws need is not installed."""


def __getattr__(name: str) -> Any:
    """Loads a public name from its module on first use."""
    if name in _NAMES:
        return getattr(_loaded(_NAMES[name], name), name)
    if name == "strategies":
        return _loaded(name, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _loaded(module: str, name: str) -> Any:
    try:
        return importlib.import_module(f"{__name__}.{module}")
    except ModuleNotFoundError as error:
        # Any other module that is missing is none of the extra `test`, and tells its own name.
        if error.name not in ("hypothesis", "pytest"):
            raise
        hint = "pip install 'ckpt-schema[test]'"
        fault = Mismatch(error.name, "package", f"{error.name}, which {name} needs", "none", hint)
        raise MissingPackageError(
            f"ckpt_schema.testing.{name} cannot be loaded", [fault]
        ) from error
