"""The parts of an optimizer state that was read off a tree, where the transformation that made it is given.

A tree that was saved, or is an ``nnx.State``, has lost the classes of its chain: a layout that is read off it has no parts,
and no lens can tell where one went in a chain that has grown. The transformation tells them, as it does for a schema.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp

from ckpt_schema._frameworks.envelopes import Envelope
from ckpt_schema._frameworks.state_names import OPTIMIZER_STATE, USUAL_COLLECTION, WEIGHTS
from ckpt_schema._frameworks.states import optimizer
from ckpt_schema._frameworks.variables import Variables, is_param
from ckpt_schema._layouts import leaves, paths
from ckpt_schema._layouts.fields import Body, OptimizerTable
from ckpt_schema._layouts.kinds import Dicts, Untold
from ckpt_schema._layouts.paths import KeyPath
from ckpt_schema._layouts.table import Layout, Node, Part, Row, verify_table
from ckpt_schema._trees.conformance import check
from ckpt_schema._trees.containers import Tree
from ckpt_schema.errors import Mismatch, SchemaError

__all__ = ["with_parts"]


def with_parts(table: Layout, tree: Tree, tx: Any, kinds: Envelope) -> Layout:
    """A layout that was read off a tree, its optimizer state as a transformation makes it.

    Args:
        table: The layout.
        tree: The tree.
        tx: The transformation.
        kinds: Where the tree keeps what.

    Raises:
        SchemaError: The tree has no optimizer state, or one that this transformation does not make.
    """
    if kinds.optimizer is None:
        expected = "a train state, of which it made the optimizer's"
        hint = "leave tx= out, or give infer the whole train state"
        fault = Mismatch("tx", "argument", expected, "no optimizer state that infer knows", hint)
        raise SchemaError(f"no layout ({table.name}) can be read off the tree", [fault])
    first_error: SchemaError | None = None
    head = _head(kinds)
    for trained in _trained(table, head):
        # A transformation may refuse leaves that it was never given.
        try:
            made = _made(table, tx, kinds, trained, head)
        except SchemaError as error:
            first_error = first_error or error
            continue
        # The tree itself decides whether this is what the transformation was given.
        report = check(made, tree)
        if report.ok:
            return made
        header = f"the optimizer state of {table.name} is not one that tx= makes"
        first_error = first_error or SchemaError(header, report.mismatches, report.notes)
    # The error of the likeliest choice is told; those of the others would mislead.
    assert first_error is not None
    raise first_error


def _trained(table: Layout, head: KeyPath) -> Iterator[list[Row]]:
    """What an optimizer may have been given: the params, as most are; what it keeps something for; or all."""
    # Only the model's own leaves can have been given to it.
    weights: list[Row] = []
    mirrored: set[str] = set()
    for row in table.rows:
        if row.path[:1] == (WEIGHTS,) and row.body == 1:
            weights.append(row)
        if row.mirrors:
            mirrored.add(row.mirrors)
    yield list(filter(_is_param, weights))
    # Some params may be frozen, or statistics trained: the moments tell.
    if mirrored:
        yield [row for row in weights if "/".join(row.path) in mirrored]
    # tx.init(variables) was given the statistics too.
    given: list[Row] = []
    for row in weights:
        if row.key[: len(head)] == head and not row.leaf.is_key:
            given.append(row)
    yield given


def _is_param(row: Row) -> bool:
    """Whether a leaf is a param as far as its kind tells, or where it is of none, its dtype."""
    if isinstance(row.kind, type):
        return is_param(row.kind)
    if row.kind is not None:
        return row.kind == USUAL_COLLECTION
    return not row.leaf.is_key and jnp.issubdtype(leaves.dtype_of(row.leaf.dtype), jnp.inexact)


def _head(kinds: Envelope) -> KeyPath:
    """Where the tree stands that a transformation was given.

    What mirrors the params says so: a whole variables dict, or the params in it.
    """
    # Mirrors at opt_state/0/mu/params are of the dict that has params, at .../mu of params itself.
    prefix = kinds.weights[0][0]
    is_whole = len(prefix) > 1 and all(key[-1:] == prefix[-1:] for key in kinds.mirrors)
    return prefix[:-1] if is_whole else prefix


def _made(table: Layout, tx: Any, kinds: Envelope, trained: Sequence[Row], head: KeyPath) -> Layout:
    """The layout with the state that a transformation makes for some params, given the tree at ``head``."""
    framework, wrt = _framework(table, trained)
    spec = optimizer(tx, of=WEIGHTS, wrt=wrt, root=paths.format_path(head))
    body = Body(WEIGHTS, kinds.weights[0][0], tuple(trained), framework)
    home = kinds.optimizer or ()
    state: OptimizerTable = spec.state(table.name, home, body)
    # What was read off of the state gives way to what the transformation says of it.
    rows: list[Row] = []
    for row in table.rows:
        if not row.optimizer:
            rows.append(row)
    for row in state.rows:
        rows.append(_below(row, home))
    nodes: list[Node] = []
    for node in table.nodes:
        if node.key[: len(home)] != home:
            nodes.append(node)
    for node in _nodes(table, state, kinds):
        nodes.append(dataclasses.replace(node, key=(*home, *node.key)))
    parts: list[Part] = []
    for part in state.parts:
        parts.append(Part((OPTIMIZER_STATE, *part.path), part.type))
    made = dataclasses.replace(
        table, rows=tuple(rows), nodes=tuple(nodes), parts=tuple(parts), initial=state.initial
    )
    return verify_table(made)


def _framework(table: Layout, trained: Sequence[Row]) -> tuple[Dicts, Any]:
    """What the leaves of a model are, and what is trained of those that are given: all."""
    if table.container == "nnx":
        return Variables(), ...
    collections: set[Any] = set()
    for row in trained:
        if row.kind is not None:
            collections.add(row.kind)
    # A dict of params alone names no collection: it may be of any framework.
    return (Dicts(), sorted(collections)) if collections else (Untold(), None)


def _nodes(table: Layout, state: OptimizerTable, kinds: Envelope) -> Iterator[Node]:
    """The containers of the state: of NNX those that the tree has, for its chain is of dicts."""
    home = kinds.optimizer or ()
    if table.container != "nnx" and kinds.weights[0][1] is not None:
        yield from state.nodes
        return
    for node in table.nodes:
        if node.key[: len(home)] == home:
            yield dataclasses.replace(node, key=node.key[len(home) :])


def _below(row: Row, home: KeyPath) -> Row:
    """A row of the state, seen from the root."""
    # Paths and keys begin with the state now, and the model in a mirror so much further down.
    body = None if row.body is None else 1 + row.body
    path, key = (OPTIMIZER_STATE, *row.path), (*home, *row.key)
    return dataclasses.replace(row, path=path, key=key, body=body, optimizer=1)
