"""The layouts Linen code makes: ``TrainState`` with its weights kept either way, and weights alone."""

from __future__ import annotations

import dataclasses
from typing import Final

import optax

from ckpt_schema._frameworks.optimizer import Start, arguments, optimizer_state
from ckpt_schema._layouts.leaves import Leaf
from ckpt_schema._layouts.schema import Schema, body_rows, body_series
from ckpt_schema._layouts.table import Layout, Row, holders, verify_table
from ckpt_schema.errors import Mismatch, SchemaError

__all__ = ["BareParams", "BareTrainState", "Params", "TrainState"]

_PARAMS = "params"
_OPTIMIZER = ("opt_state",)


def _weights(body: type[Schema], inner: tuple[str, ...]) -> list[Row]:
    """The body's rows by collection; those of ``params`` have ``inner`` between the collection and their own key."""
    rows: list[Row] = []
    for row, collection in body_rows(body):
        head = (*inner,) if (collection or _PARAMS) == _PARAMS else (collection or "",)
        path = (_PARAMS, *row.path)
        rows.append(
            dataclasses.replace(
                row, path=path, key=(*head, *row.key), kind=collection or _PARAMS, body=1
            )
        )
    return rows


def _train_state(
    name: str, item: tuple[type[Schema], optax.GradientTransformation], *, bare: bool
) -> Layout:
    body, tx, sizes = arguments(name, item)
    weights = _weights(body, (_PARAMS,) if bare else (_PARAMS, _PARAMS))
    trained = [dataclasses.replace(r, key=r.key[1:]) for r in weights if r.kind == _PARAMS]
    state = optimizer_state(name, tx, trained, sizes)
    rows = [Row(("step",), ("step",), Leaf((), "int32")), *weights]
    rows += (leaf.row(_OPTIMIZER, None if leaf.param is None else _PARAMS) for leaf in state.leaves)
    below = (dataclasses.replace(node, key=(*_OPTIMIZER, *node.key)) for node in state.nodes)
    nodes = tuple(sorted((*holders(weights), *below), key=lambda node: len(node.key)))
    start = Start(tx, ("params",), _OPTIMIZER, lambda row: row.kind == _PARAMS)
    counts = tuple(sorted(sizes.items()))
    return verify_table(
        Layout(
            f"{name}[{body.__name__}]",
            tuple(rows),
            nodes,
            sizes=counts,
            parts=state.parts,
            initial=start,
            series=body_series(body),
        )
    )


class _TrainState:
    """``TrainState[Body, tx]``: the layout of ``{step, params: {params: ...}, opt_state}``, the whole variables dict kept."""

    def __getitem__(self, item: tuple[type[Schema], optax.GradientTransformation]) -> Layout:
        """The layout for a body and the transformation that made its optimizer state."""
        return _train_state("linen.TrainState", item, bare=False)


class _BareTrainState:
    """``BareTrainState[Body, tx]``: the layout of ``{step, params: ..., opt_state}``, with ``variables['params']`` kept."""

    def __getitem__(self, item: tuple[type[Schema], optax.GradientTransformation]) -> Layout:
        """The layout for a body and the transformation that made its optimizer state."""
        return _train_state("linen.BareTrainState", item, bare=True)


class _Params:
    """``Params[Body]``: the layout of a variables dict, ``{params: ...}`` and any other collections."""

    def __getitem__(self, body: type[Schema]) -> Layout:
        """The layout for a body."""
        rows = tuple(_weights(body, (_PARAMS,)))
        return verify_table(
            Layout(
                f"linen.Params[{body.__name__}]",
                rows,
                holders(rows),
                homes=((_PARAMS,),),
                series=body_series(body),
            )
        )


class _BareParams:
    """``BareParams[Body]``: the layout of ``variables['params']`` alone."""

    def __getitem__(self, body: type[Schema]) -> Layout:
        """The layout for a body, all of whose leaves are params."""
        rows = tuple(_weights(body, ()))
        hint = f"write linen.Params[{body.__name__}], the layout of the whole variables dict"
        faults = [
            Mismatch(
                "/".join(row.path[1:]),
                "declaration",
                "a leaf of the collection params",
                f"one of {row.kind}",
                hint,
            )
            for row in rows
            if row.kind != _PARAMS
        ]
        if faults:
            raise SchemaError(
                f"linen.BareParams[{body.__name__}] has no place for collections",
                faults,
            )
        return verify_table(
            Layout(
                f"linen.BareParams[{body.__name__}]",
                rows,
                holders(rows),
                homes=((_PARAMS,),),
                series=body_series(body),
            )
        )


TrainState: Final = _TrainState()
BareTrainState: Final = _BareTrainState()
Params: Final = _Params()
BareParams: Final = _BareParams()
