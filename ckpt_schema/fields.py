"""What a schema says of an attribute beside its annotation."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["Field", "field", "wrong_types"]


@dataclasses.dataclass(frozen=True, slots=True)
class Field:
    """What `field` was told; see there."""

    key: str | None = None
    default: Any = None
    scan: str | int | None = None
    axis: int | None = None
    length: str | int | None = None
    dims: Mapping[str, str | int] = dataclasses.field(default_factory=dict[str, str | int])
    type: Any = None
    collection: str | None = None
    optional: bool = False
    ephemeral: bool = False
    value: type | None = None
    tag: str | None = None


def field(
    *,
    key: str | None = None,
    default: Any = None,
    scan: str | int | None = None,
    axis: int | None = None,
    length: str | int | None = None,
    dims: Mapping[str, str | int] | None = None,
    type: Any = None,
    collection: str | None = None,
    optional: bool = False,
    ephemeral: bool = False,
    value: type | None = None,
    tag: str | None = None,
) -> Any:
    """Says of a schema's attribute what its annotation cannot.

    Args:
        key: How this layout spells the attribute, where that is not its name: ``"LayerNorm_0"``, ``"dropout/rngs"``, with an
            index symbol for a list: ``"layers/{i}"`` (int keys), ``"layers_{i}"``, ``"layers/'{i}'"`` (string keys), also
            ``{i+1}``, ``{2*i+1}`` and ``{i:02}``.
        default: What the leaves below hold where the other layout has no place for them: a number, or `fresh_key`.
        scan: The dim that counts the repeats which are stacked in each leaf below, as ``nn.scan`` does.
        axis: The axis they are stacked on, 0 unless given. On a leaf inside a scanned schema: this leaf's own axis.
        length: The dim that counts the items of a ``list[...]`` attribute.
        dims: New names (or fixed sizes) for dims of the schema used here: ``{"mlp": "ff"}``.
        type: The NNX Variable type of the leaves below, as a class or by its name in ``flax.nnx``; ``Param`` unless given.
        collection: The Linen variable collection of the leaves below; ``params`` unless given.
        optional: Whether a tree may lack this attribute.
        ephemeral: Whether it is left out of checkpoints, as caches and intermediates are; a tree may lack it. A restore leaves
            what a concrete target has of it, and makes it from its default where the target is abstract.
        value: The class of the container of the leaves below, where they are the parts of one value, as of a quantized array:
            ``dict``, ``tuple``, ``list``, a NamedTuple or a dataclass that is a pytree. NNX keeps it in one Variable. Fields
            that are not declared are None.
        tag: The stream name a new RNG Variable carries; the attribute's name unless given.

    Returns:
        A marker that the schema class reads; typed ``Any`` so that any annotation may stand beside it.
    """
    renames = dict(dims) if isinstance(dims, Mapping) else dims or {}
    return Field(key, default, scan, axis, length, renames, type, collection, optional, ephemeral, value, tag)


def wrong_types(spec: Field) -> Iterator[tuple[str, str, str]]:
    """The arguments of `field` that are of another type than declared: each with what is expected, and what was found.

    Example:
        >>> list(wrong_types(field(key=0, axis=True)))
        [('key', 'a string', '0'), ('axis', 'an integer', 'True')]
    """
    for argument in ("key", "collection", "tag"):
        value = getattr(spec, argument)
        if value is not None and not isinstance(value, str):
            yield argument, "a string", repr(value)
    for argument in ("scan", "length"):
        value = getattr(spec, argument)
        if value is not None and not isinstance(value, str) and not (_is_integer(value) and value > 0):
            yield argument, "the name of a dim, or a positive integer", repr(value)
    if not isinstance(spec.dims, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        yield "dims", "a dict of names", repr(spec.dims)
    if spec.value is not None and not isinstance(spec.value, type):  # pyright: ignore[reportUnnecessaryIsInstance]
        yield "value", "the class of a container", repr(spec.value)
    if spec.axis is not None and not _is_integer(spec.axis):
        yield "axis", "an integer", repr(spec.axis)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
