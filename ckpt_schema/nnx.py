"""The layouts NNX code makes: a model with its optimizer, and a model alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final

import optax
from flax import nnx

from ckpt_schema._frameworks.optimizer import Start, arguments, optimizer_state
from ckpt_schema._frameworks.tracing import Box
from ckpt_schema._frameworks.variables import build_state, is_variable, variable_type
from ckpt_schema._layouts.leaves import Leaf
from ckpt_schema._layouts.paths import KeyPath
from ckpt_schema._layouts.schema import Schema, body_rows, body_series
from ckpt_schema._layouts.table import Layout, Row, holders, verify_table
from ckpt_schema.errors import Mismatch, SchemaError

__all__ = ["Params", "TrainState"]


def _model(body: type[Schema], head: KeyPath) -> list[Row]:
    rows: list[Row] = []
    faults: list[Mismatch] = []
    for row, _ in body_rows(body):
        try:
            kind = variable_type(row.kind, row.leaf)
        except SchemaError as error:
            faults += (
                dataclasses.replace(fault, path="/".join(row.path)) for fault in error.mismatches
            )
            continue
        inside = row.held[0][0] if row.held else 0
        place = {"path": ("params", *row.path), "key": (*head, *row.key)}
        rows.append(dataclasses.replace(row, **place, kind=kind, body=1, inside=inside))
    if faults:
        raise SchemaError(f"{body.__name__} has leaves of no Variable type", faults)
    return rows


_OPTIMIZER = ("optimizer", "opt_state")


def _variables(params: dict[Any, Any], rows: Mapping[KeyPath, Row]) -> nnx.State[Any, Any]:
    """The state that ``nnx.Optimizer`` gives to ``tx.init``."""
    return build_state(params, {key[: len(key) - row.inside]: row for key, row in rows.items()})


def _value(node: Any) -> Any:
    return node.get_value() if is_variable(node) else node


def _parted(trained: Sequence[Row]) -> SchemaError | None:
    """The error for params with parts, which no optimizer state of NNX is typed for."""
    hint = "train params without parts, or read the layout off a state with ckpt_schema.infer"
    faults = [
        Mismatch(
            "/".join(row.path[1:]),
            "declaration",
            "a param without parts",
            f"a part of a {row.held[0][1].__name__}",
            hint,
        )
        for row in trained
        if row.held
    ]
    return SchemaError("nnx.TrainState has no place for these params", faults) if faults else None


class _TrainState:
    """``TrainState[Body, tx]``: a module that holds ``model`` and ``optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)``.

    ``TrainState[Body, tx, nnx.LoRAParam]`` is the same with ``wrt=nnx.LoRAParam``: other params are not trained.
    """

    def __getitem__(self, item: tuple[type[Schema], optax.GradientTransformation]) -> Layout:
        """The layout for a body, the transformation that made its optimizer state, and the type of what it trains."""
        given: tuple[Any, ...] = item if isinstance(item, tuple) else (item,)  # pyright: ignore[reportUnnecessaryIsInstance]
        kinds = [
            kind for kind in given[2:] if isinstance(kind, type) and issubclass(kind, nnx.Variable)
        ]
        body, tx, sizes = arguments(
            "nnx.TrainState", tuple(x for x in given if x not in kinds) if kinds else item
        )
        model = _model(body, ("model",))

        def is_trained(row: Row) -> bool:
            return issubclass(row.kind, tuple(kinds) or nnx.Param)

        trained = [dataclasses.replace(r, key=r.key[1:]) for r in model if is_trained(r)]
        box = Box(_variables, _value)
        try:
            state = optimizer_state("nnx.TrainState", tx, trained, sizes, box)
        except SchemaError as error:
            raise _parted(trained) or error from None
        rows = [
            *model,
            Row(("step",), ("optimizer", "step"), Leaf((), "uint32"), kind=nnx.optimizer.OptState),
        ]
        for leaf in state.leaves:
            kind = nnx.optimizer.OptVariable if leaf.boxed else nnx.optimizer.OptArray
            rows.append(leaf.row(_OPTIMIZER, kind))
        # Outside of Variables, a state has no containers but dicts, and nothing where there is no leaf.
        nodes = (
            *holders(model),
            *(
                dataclasses.replace(n, key=(*_OPTIMIZER, *n.key))
                for n in state.nodes
                if n in state.inner
            ),
        )
        name = f"nnx.TrainState[{body.__name__}]"
        start, counts = (
            Start(tx, ("model",), _OPTIMIZER, is_trained, box),
            tuple(sorted(sizes.items())),
        )
        return verify_table(
            Layout(
                name,
                tuple(rows),
                nodes,
                "nnx",
                sizes=counts,
                parts=state.parts,
                initial=start,
                series=body_series(body),
            )
        )


# What a model works without, and what no step of training depends on: these a model's own state may lack.
_PASSING = (nnx.RngState, nnx.Cache, nnx.Intermediate)


class _Params:
    """``Params[Body]``: a model's own state; streams, caches and intermediates may be left out, statistics may not."""

    def __getitem__(self, body: type[Schema]) -> Layout:
        """The layout for a body."""
        rows = [
            dataclasses.replace(r, optional=True) if issubclass(r.kind, _PASSING) else r
            for r in _model(body, ())
        ]
        name = f"nnx.Params[{body.__name__}]"
        return verify_table(
            Layout(
                name,
                tuple(rows),
                holders(rows),
                "nnx",
                homes=(("model",),),
                series=body_series(body),
            )
        )


TrainState: Final = _TrainState()
Params: Final = _Params()
