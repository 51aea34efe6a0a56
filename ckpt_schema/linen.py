"""The layouts Linen code makes: ``TrainState`` with its weights kept either way, and weights alone."""

from __future__ import annotations

from typing import Any, Final

from jaxtyping import Array, Int32

from ckpt_schema._frameworks.states import arguments, optimizer, remembered
from ckpt_schema._layouts.fields import field
from ckpt_schema._layouts.schema import OptState, Schema, body_rows, schema_name
from ckpt_schema.errors import Mismatch, SchemaError

__all__ = ["BareParams", "BareTrainState", "Params", "TrainState"]


class _TrainState:
    """``TrainState[Body, tx]``: the layout of ``{step, params: {params: ...}, opt_state}``, the whole variables dict kept."""

    @remembered
    def __getitem__(self, item: Any) -> type[Schema]:
        """The schema for a body, the transformation that made its optimizer state, and sizes if its type depends on them."""
        body, tx, sizes = arguments("linen.TrainState", item)
        name = f"linen.TrainState[{schema_name(body)}]"

        class State(Schema, name=name):
            step: Int32[Array, ""]
            params: body = field(key={"params": "params/params", ...: "{collection}"})  # pyright: ignore[reportInvalidTypeForm]
            opt_state: OptState = optimizer(tx, of="params", sizes=sizes)

        return State


class _BareTrainState:
    """``BareTrainState[Body, tx]``: the layout of ``{step, params: ..., opt_state}``, with ``variables['params']`` kept."""

    @remembered
    def __getitem__(self, item: Any) -> type[Schema]:
        """The schema for a body, the transformation that made its optimizer state, and sizes if its type depends on them."""
        body, tx, sizes = arguments("linen.BareTrainState", item)
        name = f"linen.BareTrainState[{schema_name(body)}]"

        class State(Schema, name=name):
            step: Int32[Array, ""]
            params: body = field(key={"params": "params", ...: "{collection}"})  # pyright: ignore[reportInvalidTypeForm]
            opt_state: OptState = optimizer(tx, of="params", sizes=sizes)

        return State


class _Params:
    """``Params[Body]``: the layout of a variables dict, ``{params: ...}`` and any other collections."""

    @remembered
    def __getitem__(self, body: Any) -> type[Schema]:
        """The schema for a body."""

        class Variables(Schema, name=f"linen.Params[{schema_name(body)}]"):
            params: body = field(key={...: "{collection}"})  # pyright: ignore[reportInvalidTypeForm]

        return Variables


class _BareParams:
    """``BareParams[Body]``: the layout of ``variables['params']`` alone."""

    @remembered
    def __getitem__(self, body: Any) -> type[Schema]:
        """The schema for a body, all of whose leaves are params."""
        name = f"linen.BareParams[{schema_name(body)}]"
        hint = f"write linen.Params[{schema_name(body)}], the layout of the whole variables dict"
        expected = "a leaf of the collection params"
        faults = [
            Mismatch("/".join(row.path), "declaration", expected, f"one of {collection}", hint)
            for row, collection in body_rows(body)
            if collection not in (None, "params")
        ]
        if faults:
            raise SchemaError(f"{name} has no place for collections", faults)

        class Weights(Schema, name=name):
            params: body = field(key="")  # pyright: ignore[reportInvalidTypeForm]

        return Weights


TrainState: Final = _TrainState()
BareTrainState: Final = _BareTrainState()
Params: Final = _Params()
BareParams: Final = _BareParams()
