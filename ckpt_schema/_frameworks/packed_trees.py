"""Trees that `flax.serialization` has packed into one file of msgpack."""

from __future__ import annotations

from typing import Any

from flax import serialization

__all__ = ["ELSEWHERE", "is_packed", "unpacked"]

ELSEWHERE = "//GDAPlaceholder:"
"""What `flax.training.checkpoints` writes for an array of several processes, whose data stands in another folder."""


def is_packed(head: bytes) -> bool:
    """Whether bytes begin a map in msgpack, as Flax writes a state."""
    # The tags of msgpack: a map of up to 15 entries has its length in the tag, longer ones after it.
    return bool(head) and (0x80 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF))


def unpacked(data: bytes) -> Any:
    """The tree: nested dicts of arrays and numbers; a list is a dict with the keys "0", "1", ...

    Raises:
        ValueError: These are not the bytes of a packed tree, or not all of them.
    """
    return serialization.msgpack_restore(data)
