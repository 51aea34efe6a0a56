"""Leaves that jax cannot edit as they are, found before anything is edited."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.core import Tracer

from ckpt_schema import leaves
from ckpt_schema.errors import Mismatch
from ckpt_schema.lens.edits import Chain
from ckpt_schema.lens.partial import Cast
from ckpt_schema.lens.stacks import Concat, Split, edits_of
from ckpt_schema.lens.verify import narrowed

__all__ = ["deleted", "refused"]

_ABORTING = frozenset({"int2", "uint2"})
"""XLA's CPU backend ends the process, or writes where it must not, where it cuts or joins arrays of
these, and where it edits one that is on several devices."""


def refused(
    chain: Chain, dtype: str, values: Sequence[Any], likes: Sequence[Any], names: Sequence[str]
) -> Iterator[Mismatch]:
    """What cannot be edited as it is.

    Args:
        chain: What is done.
        dtype: What the leaves are declared to be.
        values: The leaves that go in.
        likes: What the results stand for.
        names: The key paths of the leaves.
    """
    if any(map(leaves.is_abstract, values)):
        return
    faults = [
        fault for value, name in zip(values, names, strict=True) if (fault := deleted(value, name))
    ]
    faults = faults or [*_apart(values, names), *_too_wide(chain, dtype, values, likes, names)]
    if dtype in _ABORTING and _ends(chain, values):
        hint = (
            "pass NumPy arrays, or declare another dtype: "
            "XLA ends the process where it cuts, joins or reshards such"
        )
        faults.append(Mismatch(names[0], "dtype", f"no jax array of {dtype}", "one", hint))
    yield from faults


def _ends(chain: Chain, values: Sequence[Any]) -> bool:
    """Whether an edit of arrays of two bits would end the process."""
    arrays = [value for value in values if isinstance(value, jax.Array)]
    divided = any(isinstance(edit, (Concat, Split)) for edit in edits_of(chain))
    spread = any(
        not isinstance(value, Tracer) and len(value.sharding.device_set) > 1 for value in arrays
    )
    return bool(arrays) and (divided or spread)


def deleted(value: Any, name: str) -> Mismatch | None:
    """The fault of an array that is no more."""
    if not leaves.is_deleted(value):
        return None
    hint = "a step that it was donated to has used it up: pass what that step returned"
    return Mismatch(name, "deleted", "an array", "one that was deleted", hint)


def _apart(values: Sequence[Any], names: Sequence[str]) -> Iterator[Mismatch]:
    """Leaves on other devices than the first, of which one is to be made, where jax has been told to keep them there."""
    placed = [
        (name, value.sharding.device_set)
        for name, value in zip(names, values, strict=True)
        if isinstance(value, jax.Array) and not isinstance(value, Tracer) and value.committed
    ]
    for name, devices in placed:
        first, wanted = placed[0]
        if devices != wanted:
            expected = f"it on the devices of {first}, {_ids(wanted)}"
            hint = "put all of them on the same devices, by jax.device_put with one sharding"
            yield Mismatch(name, "sharding", expected, _ids(devices), hint)


def _ids(devices: set[Any]) -> str:
    """Devices as messages write them."""
    numbers = sorted(device.id for device in devices)
    return f"{next(iter(devices)).platform} {', '.join(map(str, numbers))}"


def _too_wide(
    chain: Chain, dtype: str, values: Sequence[Any], likes: Sequence[Any], names: Sequence[str]
) -> Iterator[Mismatch]:
    """Leaves of 64 bits that jax would make narrower on the way, or where they go; NumPy edits its own."""
    if leaves.is_narrowed(dtype):
        jaxs = [
            name for value, name in zip(values, names, strict=True) if isinstance(value, jax.Array)
        ]
        yield from filter(None, (narrowed(name, dtype) for name in jaxs))
    casts = [edit.view for edit in edits_of(chain) if isinstance(edit, Cast)]
    made = casts[-1] if casts else dtype
    if any(getattr(like, "sharding", None) is not None for like in likes):
        yield from filter(None, [narrowed(names[0], made)])
