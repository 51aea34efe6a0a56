"""Lists whose items are not all of one schema, as attributes: one for each item.

A list of repeats has the same leaves in each item, and one row for all. The first layers of many models differ from
the rest, so each of their items has rows of its own: ``layers/0``, ``layers/1``.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from ckpt_schema._layouts import paths
from ckpt_schema._layouts.annotations import alternatives, spelled_annotation
from ckpt_schema._layouts.fields import Field, declaration, field, verify_field
from ckpt_schema._layouts.paths import Index, Pattern
from ckpt_schema._messages.text import shown

__all__ = ["NamedItem", "named_items"]

NamedItem = tuple[Any, Field]
"""The annotation of an attribute, and its field."""


def named_items(name: str, annotation: Any, spec: Field, base: type) -> Iterator[NamedItem]:
    """What an attribute with ``items=`` stands for.

    Args:
        name: The attribute.
        annotation: A ``list[...]`` of the schemas of its items.
        spec: What its field says.
        base: The class that schemas derive from.

    Yields:
        One attribute, whose schema has an item for each number; or, where the logical names of the
        items are said, as ``name="layers_{i}"``, one attribute for each.

    Raises:
        SchemaError: The annotation names other schemas than the items are of, or the field says what no such list has.
    """
    items = _verified(name, annotation, spec)
    one = dataclasses.replace(spec, items=None)
    if spec.name is not None and _has_symbol(spec.name):
        own_names = paths.parse_pattern(spec.name)
        keys = _keys(name, spec.key if spec.key is not None else spec.name)
        for number, item in enumerate(items):
            own = paths.format_path(paths.fill(own_names, (number,)))
            # Most are spelled as they are called.
            key = own if keys == own_names else paths.format_path(paths.fill(keys, (number,)))
            yield item, dataclasses.replace(one, name=own, key=key)
        return
    keys = _keys(name, spec.key if spec.key is not None else f"{paths.named(name)}/{{i}}")
    # blocks/inner_{i}/w: the list stands at blocks, and its item 3 at inner_3/w from there.
    start = next(at for at, segment in enumerate(keys) if isinstance(segment, Index))
    numbered = _numbered(name, items, keys[start:], base)
    yield numbered, dataclasses.replace(one, key=paths.format_path(keys[:start]))


def _keys(name: str, text: Any) -> Pattern:
    """The pattern of the keys of the items.

    Raises:
        SchemaError: It has not one index symbol.
    """
    pattern = paths.parse_pattern(text) if isinstance(text, str) and text else ()
    if paths.symbols(pattern) != 1:
        hint = 'such as key="layers/{i}" or key="layers_{i}"'
        raise declaration(name, "one index symbol in key= beside items=", shown(text), hint)
    return pattern


def _has_symbol(name: str) -> bool:
    return paths.symbols(paths.parse_pattern(name)) > 0


def _numbered(name: str, items: Sequence[Any], keys: Pattern, base: type) -> type:
    """A schema with an attribute for each item, which has its number as its name."""
    annotations: dict[str, Any] = {}
    members: dict[str, Any] = {"__annotations__": annotations}
    for number, item in enumerate(items):
        annotations[f"item_{number}"] = item
        key = paths.format_path(paths.fill(keys, (number,)))
        members[f"item_{number}"] = field(name=str(number), key=key)
    return types.new_class(name, (base,), {}, lambda body: body.update(members))


def _verified(name: str, annotation: Any, spec: Field) -> Sequence[Any]:
    """The items, of a field that does not contradict the annotation beside it.

    Raises:
        SchemaError: It does.
    """
    own_names = paths.parse_pattern(spec.name) if isinstance(spec.name, str) and spec.name else ()
    # The numbers of the items are not part of what verify_field holds against the annotation.
    plain = dataclasses.replace(spec, key=None, name=None, length=None)
    verify_field(name, plain, many=False)
    items = spec.items
    if not items:
        raise declaration(name, "at least one schema in items=", "none", "leave the attribute out")
    if spec.length is not None or spec.scan is not None or spec.axis is not None:
        hint = "leave length=, scan= and axis= out: the items are counted"
        raise declaration(name, "items= alone to say how many there are", "both", hint)
    if spec.value is not None or spec.tag is not None:
        hint = "say it in the schemas of the items"
        raise declaration(name, "value= and tag= on one schema", "on a list", hint)
    if paths.symbols(own_names) > 1 or len(own_names) > 1:
        hint = 'such as name="layers_{i}"'
        raise declaration(
            name, "one segment with one index symbol as name=", shown(spec.name), hint
        )
    if typing.get_origin(annotation) is not list:
        written = _annotation_of(items)
        raise declaration(
            name,
            "a list[...] annotation beside items=",
            spelled_annotation(annotation),
            f"write {name}: {written}",
        )
    (inner,) = typing.get_args(annotation)
    if set(alternatives(inner)) != set(items):
        written = _annotation_of(items)
        raise declaration(
            name,
            "the schemas of items= in the annotation",
            spelled_annotation(annotation),
            f"write {name}: {written}",
        )
    return items


def _annotation_of(items: Sequence[Any]) -> str:
    """The annotation of a list of these items."""
    names = [getattr(item, "__name__", shown(item)) for item in dict.fromkeys(items)]
    return f"list[{' | '.join(names)}]"
