"""The rows of an optimizer state, computed from the optax transformation itself.

``tx.init`` is traced on abstract params of the schema's own structure. A subtree of the state with the structure of the params
*mirrors* them: its rows follow the params' rows through every translation. All other leaves are rows of their own.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ckpt_schema import dims as dims_
from ckpt_schema import leaves, paths
from ckpt_schema.errors import Mismatch, SchemaError
from ckpt_schema.leaves import Leaf
from ckpt_schema.paths import KeyPath
from ckpt_schema.pytrees import children
from ckpt_schema.table import Node, Row

__all__ = ["OptimizerLeaf", "optimizer_leaves", "schema_and_transformation"]


@dataclasses.dataclass(frozen=True, slots=True)
class OptimizerLeaf:
    """One leaf of an optimizer state.

    Attributes:
        prefix: Its key path, or for a mirrored leaf that of the subtree that mirrors the params.
        mirrored: The params' row it follows, or None.
        leaf: Its dims and dtype; dims of one repeat where it is mirrored.
    """

    prefix: KeyPath
    mirrored: Row | None
    leaf: Leaf


def schema_and_transformation(name: str, item: Any) -> tuple[Any, optax.GradientTransformation]:
    """The two arguments in the brackets of a train state.

    Raises:
        SchemaError: They are not two, or the second is no optax transformation.
    """
    if isinstance(item, tuple) and len(item) == 2 and callable(getattr(item[1], "init", None)):
        return item
    hint = f"write {name}[Body, optax.adamw(3e-4)]; for weights alone, {name.split('.')[0]}.Params[Body]"
    found = f"{len(item)} arguments" if isinstance(item, tuple) and len(item) != 2 else "no transformation"
    fault = Mismatch("argument", "declaration", "a Schema class and an optax transformation", found, hint)
    raise SchemaError(f"{name}[...] is not well formed: 1 fault", [fault])


def optimizer_leaves(tx: optax.GradientTransformation, params: Sequence[Row]) -> tuple[list[OptimizerLeaf], list[Node]]:
    """The leaves and the containers of ``tx``'s state for params of these rows.

    ``tx.init`` is traced twice, with two different sets of sizes for the dims, on the CPU's abstract values only: a leaf whose
    shape changes without mirroring the params is one that cannot be typed for all sizes.

    Args:
        tx: The transformation that made the state.
        params: The rows of the params, keys relative to the tree that ``tx.init`` is given.

    Raises:
        SchemaError: ``tx.init`` fails on such params, or makes leaves whose shapes the dims don't determine.
    """
    if not params:
        fault = Mismatch("opt_state", "declaration", "at least one trainable leaf", "none", "the schema declares no params")
        raise SchemaError("an optimizer state needs params: 1 fault", [fault])
    first, second = (_trace(tx, params, start) for start in (0, 1))
    found = list(_walk(first.state, second.state, (), first))
    faults = [item for item in found if isinstance(item, Mismatch)]
    if faults:
        raise SchemaError(f"the state of {_name(tx)} cannot be typed for all sizes: {len(faults)} fault(s)", faults)
    return [i for i in found if isinstance(i, OptimizerLeaf)], [i for i in found if isinstance(i, Node)]


def _name(tx: optax.GradientTransformation) -> str:
    return getattr(tx.init, "__qualname__", "the optimizer").split(".")[0]


@dataclasses.dataclass(frozen=True, slots=True)
class _Trace:
    """An abstract optimizer state, and the params it was made for."""

    state: Any
    params: Any
    structure: Any
    rows: tuple[Row, ...]  # in the order of the params' leaves


def _trace(tx: optax.GradientTransformation, params: Sequence[Row], start: int) -> _Trace:
    sizes = dict(zip(sorted(set().union(*(dims_.names(row.dims) for row in params))), _primes(start), strict=False))
    numbers: dict[Any, Any] = {}
    for number, row in enumerate(params):
        _insert(numbers, [s if not isinstance(s, paths.Index) else str(s) for s in row.key], number)
    tree = jax.tree.map(lambda n: _abstract(params[n], sizes), numbers)
    order = tuple(params[n] for n in jax.tree.leaves(numbers))
    try:
        state = jax.eval_shape(tx.init, tree)
    except Exception as error:
        cure = "masks and labels must be callables of the params; for a state of another kind use ckpt_schema.infer"
        fault = Mismatch("opt_state", "declaration", "tx.init to accept the schema's params", f"{type(error).__name__}", cure)
        raise SchemaError(f"{_name(tx)}.init fails on the params of the schema: 1 fault", [fault], [str(error)]) from error
    return _Trace(state, tree, jax.tree.structure(tree), order)


def _primes(start: int) -> Iterator[int]:
    """Distinct primes, so that sizes that agree do so because their dims do."""
    candidates = itertools.count(3, 2)
    primes = (n for n in candidates if all(n % d for d in range(3, int(n**0.5) + 1, 2)))
    return itertools.islice(primes, start, None)


def _insert(tree: dict[Any, Any], key: Sequence[Any], value: Any) -> None:
    for segment in key[:-1]:
        tree = tree.setdefault(segment, {})
    tree[key[-1]] = value


def _abstract(row: Row, sizes: Mapping[str, int]) -> jax.ShapeDtypeStruct:
    shape = dims_.sizes_of(row.dims, sizes)
    assert shape is not None
    return jax.ShapeDtypeStruct(shape, jnp.dtype(row.leaf.dtype))


def _walk(node: Any, twin: Any, prefix: KeyPath, trace: _Trace) -> Iterator[OptimizerLeaf | Node | Mismatch]:
    """The leaves and containers below ``node``; ``twin`` is the same place of the second trace."""
    if node is None:
        yield Node(prefix, type(None))
    elif jax.tree.structure(node) == trace.structure:
        yield from _mirror(node, prefix, trace)
    elif leaves.signature(node) is not None:
        yield _plain(node, twin, prefix)
    else:
        if not isinstance(node, dict):
            yield Node(prefix, type(node))
        for (key, child), (_, other) in zip(children(node), children(twin), strict=True):
            yield from _walk(child, other, (*prefix, key), trace)


def _mirror(node: Any, prefix: KeyPath, trace: _Trace) -> Iterator[OptimizerLeaf | Mismatch]:
    for row, leaf, param in zip(trace.rows, jax.tree.leaves(node), jax.tree.leaves(trace.params), strict=True):
        if leaf.shape != param.shape:
            hint = "its shape is not the param's; declare this state with ckpt_schema.infer from a real one"
            where = paths.format_path(("opt_state", *prefix, *row.key))
            yield Mismatch(where, "shape", "the shape of the param it mirrors", leaves.describe(leaf), hint)
        else:
            yield OptimizerLeaf(prefix, row, Leaf(row.leaf.dims, str(leaf.dtype)))


def _plain(node: Any, twin: Any, prefix: KeyPath) -> OptimizerLeaf | Mismatch:
    found, again = leaves.signature(node), leaves.signature(twin)
    assert found is not None
    if found != again:
        hint = "its shape depends on the params without mirroring them; declare it with ckpt_schema.infer from a real state"
        where = paths.format_path(("opt_state", *prefix))
        return Mismatch(where, "shape", "a shape the dims determine", leaves.describe(node), hint)
    return OptimizerLeaf(prefix, None, Leaf(tuple((size,) for size in found[0]), found[1]))
