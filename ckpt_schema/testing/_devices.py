"""Virtual devices: what a test of shardings needs, on any machine."""

from __future__ import annotations

import os

import jax

from ckpt_schema.errors import CkptSchemaError, Mismatch

__all__ = ["DevicesError", "verify_devices", "virtual_devices"]


# XLA launches what it runs on virtual devices from as many threads as there are cores, or from so many. Few can deadlock: those
# that wait to launch more than 32 programs at once are missing where one of these goes between devices.
_THREADS = 64


class DevicesError(CkptSchemaError):
    """There are too few devices, and it is too late for more."""


def virtual_devices(count: int = 8) -> None:
    """Makes jax run on this many CPU devices, in this process.

    It takes one line on top of a ``conftest.py``, before anything that uses jax; imports of jax may
    stand before it. Under pytest-xdist, every worker runs it.

    Args:
        count: How many.

    Raises:
        DevicesError: jax has already started, with fewer devices or other ones.
    """
    os.environ.setdefault("PJRT_NPROC", str(_THREADS))
    try:
        jax.config.update("jax_num_cpu_devices", count)
        jax.config.update("jax_platforms", "cpu")
    except RuntimeError:  # what jax raises once it has started
        devices = jax.devices()
        if len(devices) >= count and devices[0].platform == "cpu":
            return
        hint = "call virtual_devices() first thing in conftest.py: some import or plugin before it uses jax"
        fault = Mismatch(
            "jax",
            "devices",
            f"{count} CPU devices",
            f"{len(devices)} of kind {devices[0].platform}",
            hint,
        )
        raise DevicesError("jax has started already", [fault]) from None


def verify_devices(count: int) -> None:
    """Raises unless jax has this many devices.

    Raises:
        DevicesError: It has not.
    """
    present = len(jax.devices())
    if present < count:
        hint = (
            "put `from ckpt_schema.testing import virtual_devices; virtual_devices()` on top of conftest.py, or of the script; "
            "or ask for no sharded leaves, meshes=()"
        )
        raise DevicesError(
            "too few devices",
            [Mismatch("jax", "devices", f"{count} devices", str(present), hint)],
        )
