"""Edits between typed PRNG keys and the raw data that older code keeps of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ckpt_schema import leaves
from ckpt_schema.lens.axes import Entries, Labels, Sizes, house
from ckpt_schema.lens.edits import Edit

__all__ = ["UnwrapKey", "WrapKey"]


@dataclasses.dataclass(frozen=True, slots=True)
class WrapKey(Edit):
    """Raw key data, ``uint32[..., n]``, to typed keys of one implementation, as ``jax.random.wrap_key_data`` does.

    Example:
        >>> edit = WrapKey("key<rbg>")
        >>> print(edit, "|", ~edit)
        raw data -> key<rbg> | key<rbg> -> raw data
        >>> edit.apply([jnp.zeros((3, 4), "uint32")], {})[0].shape
        (3,)
    """

    dtype: str

    @property
    def inverse(self) -> UnwrapKey:
        """The edit that takes their data again."""
        return UnwrapKey(self.dtype)

    def apply(self, values: list[Any], sizes: Sizes) -> list[Any]:
        """The keys."""
        return [jax.random.wrap_key_data(jnp.asarray(v), impl=leaves.key_impl(self.dtype)) for v in values]

    def shape(self, shape: tuple[int, ...], sizes: Sizes) -> tuple[int, ...]:
        """The shape without the words of each key."""
        return shape[:-1]

    def entries(self, entries: Entries, shape: tuple[int, ...], sizes: Sizes, ways: Mapping[str, int]) -> Entries:
        """The sharding of the keys; mesh axes that split their words go to another axis they divide."""
        return house(entries[:-1], shape[:-1], entries[-1], ways)

    def labels(self, labels: Labels) -> Labels:
        """The names without that of the words."""
        return labels[:-1]

    def __str__(self) -> str:
        """What becomes what."""
        return f"raw data -> {self.dtype}"


@dataclasses.dataclass(frozen=True, slots=True)
class UnwrapKey(Edit):
    """Typed keys of one implementation to their raw data, as ``jax.random.key_data`` does."""

    dtype: str

    @property
    def inverse(self) -> WrapKey:
        """The edit that makes keys of them again."""
        return WrapKey(self.dtype)

    def apply(self, values: list[Any], sizes: Sizes) -> list[Any]:
        """The data."""
        return [jax.random.key_data(v) for v in values]

    def shape(self, shape: tuple[int, ...], sizes: Sizes) -> tuple[int, ...]:
        """The shape with the words of each key."""
        return (*shape, leaves.key_words(self.dtype))

    def entries(self, entries: Entries, shape: tuple[int, ...], sizes: Sizes, ways: Mapping[str, int]) -> Entries:
        """The sharding of the keys; their words are not split."""
        return (*entries, ())

    def labels(self, labels: Labels) -> Labels:
        """The names with none for the words."""
        return (*labels, None)

    def __str__(self) -> str:
        """What becomes what."""
        return f"{self.dtype} -> raw data"
