"""Layers around another layer: the class of one that is told what it holds, ``RNN[LSTMCell]``."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts.fields import Field
from ckpt_schema._layouts.leaves import ANY_FLOAT, Leaf
from ckpt_schema._layouts.schema import Schema, body_rows, schema_name

__all__ = ["Beside", "Inner", "around"]


class Inner(NamedTuple):
    """A param of the layer inside.

    Attributes:
        key: Its key path there.
        rank: How many axes it has.
        last: The last of them.
        optional: Whether the layer may lack it.
    """

    key: tuple[Any, ...]
    rank: int
    last: str
    optional: bool


class Beside(NamedTuple):
    """What is kept beside the layer for one of its params.

    Attributes:
        name: What it is called, behind the names of the param.
        dims: Its axes.
        field: Where it stands.
    """

    name: str
    dims: str
    field: Field


def around(
    kind: type[Schema],
    layers: dict[str, Any],
    beside: Callable[[Inner], tuple[Beside, ...]] = lambda inner: (),
) -> type[Schema]:
    """The class of a layer around others: one for each choice of them.

    Args:
        kind: What it has by itself.
        layers: The layers in it, by the names of its attributes.
        beside: What it keeps for each param of the layer in it.

    Raises:
        SchemaError: What is given for a layer is no schema.
    """
    for layer in layers.values():
        schema_name(layer)
    made: Any = _around  # a class is hashable, whatever a schema is open to
    return made(kind, tuple(layers.items()), beside)


@functools.cache
def _around(
    kind: type[Schema],
    layers: tuple[tuple[str, Any], ...],
    beside: Callable[[Inner], tuple[Beside, ...]],
) -> type[Schema]:
    annotations: dict[str, Any] = dict(layers)
    members: dict[str, Any] = {"__module__": kind.__module__, "__doc__": kind.__doc__}
    for _, layer in layers:
        for inner in _params(layer):
            for kept in beside(inner):
                name = "_".join([*map(str, inner.key), kept.name])
                annotations[name] = Leaf(dims_.parse_dims(kept.dims), ANY_FLOAT)
                members[name] = kept.field
    names = ", ".join(schema_name(layer) for _, layer in layers)
    members["__annotations__"] = annotations
    return types.new_class(
        f"{kind.__name__}[{names}]", (kind,), exec_body=lambda body: body.update(members)
    )


def _params(layer: Any) -> Iterator[Inner]:
    for row, collection in body_rows(layer):
        if row.kind in (None, "Param") and collection is None and row.leaf.dims:
            last = dims_.format_dim(row.leaf.dims[-1])
            yield Inner(row.key, len(row.leaf.dims), last, row.optional)
