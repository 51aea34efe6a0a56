"""The law suite: property tests of a lens, in two lines; strategies for states, meshes and shardings; several processes.

Nothing here is imported by the rest of the package, and nothing runs in anybody's test session who does not ask for it.
"""

from __future__ import annotations

from ckpt_schema.testing.devices import DevicesError, virtual_devices
from ckpt_schema.testing.distributed import DistributedError, run_distributed
from ckpt_schema.testing.lawbook import LAWS, Law
from ckpt_schema.testing.samples import Sample
from ckpt_schema.testing.suite import BrokenLawError, LensLaws, Options, check_laws

__all__ = [
    "LAWS",
    "BrokenLawError",
    "DevicesError",
    "DistributedError",
    "Law",
    "LensLaws",
    "Options",
    "Sample",
    "check_laws",
    "run_distributed",
    "virtual_devices",
]
