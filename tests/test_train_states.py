"""Train states that are there already: schemas of few lines, with nothing that a user's own could not do."""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import Any

import optax
import pytest
from flax import nnx
from flax_models import NnxSchema, ScannedSchema
from jaxtyping import Array, Int32, UInt32

import ckpt_schema as cs

MAX_LINES = 25
TX = optax.adamw(1e-3)
STATES: dict[str, tuple[Any, type[cs.Schema]]] = {
    "linen.TrainState": (cs.linen.TrainState, ScannedSchema),
    "linen.BareTrainState": (cs.linen.BareTrainState, ScannedSchema),
    "nnx.TrainState": (cs.nnx.TrainState, NnxSchema),
    "nnx.ModelAndOptimizer": (cs.nnx.ModelAndOptimizer, NnxSchema),
}
PUBLIC: dict[str, Any] = {
    **{name: getattr(cs, name) for name in ("Schema", "OptState", "field", "optimizer")},
    **{"State": cs.nnx.State, "nnx": nnx, "Array": Array, "Int32": Int32, "UInt32": UInt32},
}
"""What a user imports to write a schema."""


def without_docstrings(node: ast.stmt) -> ast.stmt:
    """A statement without what is said of it."""
    for inner in ast.walk(node):
        body: Any = getattr(inner, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            del body[0]
    return node


def written(state: Any) -> ast.ClassDef:
    """What makes a train state of what stands in its brackets, without docstrings."""
    source = textwrap.dedent(inspect.getsource(type(state)))
    (made,) = ast.parse(source).body
    assert isinstance(made, ast.ClassDef)
    without_docstrings(made)
    return made


def schema_of(made: ast.ClassDef) -> ast.ClassDef:
    """The class statement with the fields."""
    (found,) = [n for n in ast.walk(made) if isinstance(n, ast.ClassDef) and n is not made]
    return found


@pytest.mark.parametrize("name", STATES)
def test_a_train_state_is_a_schema_of_few_lines(name: str) -> None:
    # As ruff formats it: the schema itself, and what reads the brackets around it.
    made = written(STATES[name][0])
    lines = ast.unparse(made).splitlines()
    source = inspect.getsource(type(STATES[name][0])).splitlines()
    assert len([line for line in lines if line.strip()]) <= MAX_LINES
    assert len(source) <= MAX_LINES
    assert len(ast.unparse(schema_of(made)).splitlines()) <= 6


@pytest.mark.parametrize("name", STATES)
def test_a_user_can_write_the_same_schema(name: str) -> None:
    state, body = STATES[name]
    module = ast.Module([schema_of(written(state))], [])
    names = {"body": body, "tx": TX, "sizes": {}, "wrt": None, "name": f"{name}[{body.__name__}]"}
    given: dict[str, Any] = {**PUBLIC, **names}
    exec(compile(module, name, "exec"), given)
    (mine,) = [x for x in given.values() if isinstance(x, type) and x.__name__ == names["name"]]
    ours, theirs = cs.layout(mine), cs.layout(state[body, TX])
    assert (ours.name, ours.rows, ours.nodes) == (theirs.name, theirs.rows, theirs.nodes)
    assert (ours.parts, ours.states, ours.homes) == (theirs.parts, theirs.states, theirs.homes)
