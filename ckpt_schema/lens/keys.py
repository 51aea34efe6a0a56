"""Edits between typed PRNG keys and the raw data that older code keeps of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ckpt_schema import leaves
from ckpt_schema.lens.axes import Entries, Labels, Shape, Sizes, house
from ckpt_schema.lens.edits import Leafwise

__all__ = ["UnwrapKey", "WrapKey"]


@dataclasses.dataclass(frozen=True, slots=True)
class WrapKey(Leafwise):
    """Raw key data, ``uint32[..., n]``, to typed keys of one implementation, as ``jax.random.wrap_key_data`` does.

    Example:
        >>> edit = WrapKey("key<rbg>")
        >>> print(edit, "|", ~edit)
        raw data -> key<rbg> | key<rbg> -> raw data
        >>> edit.one(jnp.zeros((3, 4), "uint32"), {}).shape
        (3,)
    """

    dtype: str

    @property
    def inverse(self) -> UnwrapKey:
        """The edit that takes their data again."""
        return UnwrapKey(self.dtype)

    def one(self, value: Any, sizes: Sizes) -> Any:
        """The keys."""
        return jax.random.wrap_key_data(jnp.asarray(value), impl=leaves.key_impl(self.dtype))

    def shape(self, shape: Shape, sizes: Sizes) -> Shape:
        """The shape without the words of each key."""
        return shape[:-1]

    def sharded(
        self, entries: Entries, shape: Shape, sizes: Sizes, ways: Mapping[str, int]
    ) -> Entries:
        """The sharding of the keys; mesh axes that split their words go to another axis they divide."""
        return house(entries[:-1], shape[:-1], entries[-1], ways)

    def named(self, labels: Labels) -> Labels:
        """The names without that of the words."""
        return labels[:-1]

    def __str__(self) -> str:
        """What becomes what."""
        return f"raw data -> {self.dtype}"


@dataclasses.dataclass(frozen=True, slots=True)
class UnwrapKey(Leafwise):
    """Typed keys of one implementation to their raw data, as ``jax.random.key_data`` does."""

    dtype: str

    @property
    def inverse(self) -> WrapKey:
        """The edit that makes keys of them again."""
        return WrapKey(self.dtype)

    def one(self, value: Any, sizes: Sizes) -> Any:
        """The data."""
        return jax.random.key_data(value)

    def shape(self, shape: Shape, sizes: Sizes) -> Shape:
        """The shape with the words of each key."""
        return (*shape, leaves.key_words(self.dtype))

    def sharded(
        self, entries: Entries, shape: Shape, sizes: Sizes, ways: Mapping[str, int]
    ) -> Entries:
        """The sharding of the keys; their words are not split."""
        return (*entries, ())

    def named(self, labels: Labels) -> Labels:
        """The names with none for the words."""
        return (*labels, None)

    def __str__(self) -> str:
        """What becomes what."""
        return f"{self.dtype} -> raw data"
