"""What every test runs under: eight CPU devices, and a hypothesis profile that repeats itself exactly.

``HYPOTHESIS_PROFILE=ci`` picks the thorough profile, which is a command of its own (docs/figures.md).
"""

from __future__ import annotations

import gc
import os
import tempfile

import hypothesis
import pytest

DEVICES = 8
PROFILE = os.environ.get("HYPOTHESIS_PROFILE") or "dev"

# For type checkers, which do not run it; and commands that need torch.
collect_ignore = [
    "typing",
    "older/write.py",
    "older/write_nnx.py",  # runs where an old Flax is
    "discovered_families.py",
    "discovered_torch.py",
    "families_torch.py",
]

# jax keeps millions of objects of the programs that it compiles, none of them garbage: looking for some takes 7 % of the time.
gc.set_threshold(100_000, 50, 1000)

os.environ["JAX_PLATFORMS"] = "cpu"  # for the processes that tests start
if (
    "JAX_COMPILATION_CACHE_DIR" not in os.environ
):  # one for all processes of a run: most programs are met several times
    _programs = tempfile.TemporaryDirectory(prefix="ckpt-schema-programs-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
if PROFILE == "dev":  # compiling takes most of the time; what is thorough runs as users run it
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}".strip()
)

from ckpt_schema.testing import DevicesError, virtual_devices  # noqa: E402  jax reads the variables above once, when it starts

try:
    virtual_devices(DEVICES)
except DevicesError as error:
    pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)

# Both are derandomized: a failure is the same on every machine and in every run, and no example database is left behind.
# A deadline would time jax's compilations, not the code.
hypothesis.settings.register_profile(
    "dev", derandomize=True, deadline=None, database=None, max_examples=8
)
hypothesis.settings.register_profile(
    "ci", derandomize=True, deadline=None, database=None, max_examples=200
)
hypothesis.settings.load_profile(PROFILE)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish() -> None:
    """Looks for garbage once more, for what pytest tells of it; then never again.

    pytest and Python would look several times while they end, each time through all that jax keeps.
    """
    gc.collect()
    gc.freeze()
