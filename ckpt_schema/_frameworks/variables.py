"""NNX's Variables: their types, states of them, and modules read and written.

A module is read as a state, and written back as one.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import jax
from flax import nnx

from ckpt_schema._frameworks.tracing import Box
from ckpt_schema._layouts import leaves
from ckpt_schema._layouts.kinds import Dicts
from ckpt_schema._layouts.leaves import Leaf
from ckpt_schema._layouts.paths import KeyPath, format_path
from ckpt_schema._layouts.pytrees import TreeDef, children, inner_nodes, is_inner_node
from ckpt_schema._layouts.table import Row, is_part
from ckpt_schema.errors import CkptSchemaError, ConformanceError, Mismatch, SchemaError

__all__ = [
    "Variables",
    "abstract_of",
    "build_state",
    "completed",
    "inner_containers",
    "is_filter",
    "is_param",
    "is_state",
    "is_variable",
    "passing",
    "plain_train_state",
    "state_of",
    "updated",
    "variable_labels",
    "variable_type",
    "variables_of",
    "whole_state",
]


def abstract_of(factory: Callable[..., Any]) -> Any:
    """What a function without arguments makes, with abstract leaves; nothing is computed.

    A class may take ``rngs`` besides.

    Raises:
        SchemaError: It is a class that needs other arguments, or fails when it is traced.
    """
    if not isinstance(factory, type):
        return _traced(factory, factory)
    # The signature of the class itself is that of its metaclass, which takes anything.
    _, *taken = inspect.signature(factory.__init__).parameters.values()
    # *args and **kwargs have no default either, and may be left out.
    several = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    needed: list[str] = []
    for parameter in taken:
        if parameter.default is parameter.empty and parameter.kind not in several:
            needed.append(parameter.name)
    if not issubclass(factory, nnx.Pytree) or {*needed} - {"rngs"}:
        name = factory.__name__
        expected = "a class of modules that needs no arguments but rngs"
        hint = f"pass what makes one, lambda: {name}(...)"
        found = f"one that needs {', '.join(needed)}" if needed else "another class"
        raise SchemaError(
            f"no layout ({name}) can be read off the class",
            [Mismatch(name, "argument", expected, found, hint)],
        )
    # Given though it may have a default: with rngs=None a module may have fewer leaves.
    is_random = any(parameter.name == "rngs" for parameter in taken)

    def make() -> Any:
        given: dict[str, Any] = {"rngs": nnx.Rngs(0)} if is_random else {}
        return factory(**given)

    return _traced(make, factory)


def _traced(make: Callable[[], Any], factory: Callable[..., Any]) -> Any:
    """What a function makes, with abstract leaves.

    Raises:
        SchemaError: The function fails.
    """
    try:
        return nnx.eval_shape(make)
    except CkptSchemaError:  # it says already what to do
        raise
    except Exception as error:  # of the user's own code, or of jax in it
        name = getattr(factory, "__name__", type(factory).__name__)
        said = next(iter(str(error).strip().splitlines()), "")
        found = f"{type(error).__name__}: {said}"
        hint = "it is traced, so that nothing is computed: nothing in it may depend on the values of arrays"
        expected = "a function without arguments that jax.eval_shape takes"
        fault = Mismatch(name, "argument", expected, found, hint)
        raise SchemaError(f"{name} cannot be traced", [fault]) from error


def is_variable(value: Any) -> bool:
    """Whether ``value`` is an NNX Variable."""
    return isinstance(value, nnx.Variable)


def variable_type(kind: Any, leaf: Leaf) -> type[nnx.Variable[Any]]:
    """The Variable class a field names: itself, by its name in ``flax.nnx``, or the default for such a leaf.

    Raises:
        SchemaError: The name is none of ``flax.nnx``'s Variable types.
    """
    if kind is None:
        return nnx.RngKey if leaf.is_key else nnx.Param
    # By name, so that a schema need not import NNX to be one of a model of it.
    variable = getattr(nnx, kind, None) if isinstance(kind, str) else kind
    if isinstance(variable, type) and issubclass(variable, nnx.Variable):
        return variable
    hint = "write type=nnx.BatchStat, type='BatchStat' or your own subclass"
    expected = "a subclass of nnx.Variable, or the name of one in flax.nnx"
    fault = Mismatch("type", "declaration", expected, repr(kind), hint)
    raise SchemaError(f"{kind!r} is no Variable type", [fault])


def is_filter(value: Any) -> bool:
    """Whether ``flax.nnx`` takes a value for a filter."""
    try:
        nnx.filterlib.to_predicate(value)
    except (TypeError, ValueError):  # its own message fails on what it cannot format
        return False
    # Flax takes any class; one that is no Variable would pass no leaf, and nobody would be told.
    if isinstance(value, type):
        return issubclass(value, nnx.Variable)
    return not isinstance(value, Mapping)


class Variables(Dicts):
    """States of Variables: what a leaf is, its Variable type says."""

    container = "nnx"
    homes = (("model",),)

    def model(self, row: Row, collection: str | None) -> Row:
        """A leaf of a model.

        ``Param``, or for keys ``RngKey``, is what a field that names no type means.
        """
        # A plain array stays one: it is in no Variable, and nothing trains it.
        kind = row.kind if row.kind is jax.Array else variable_type(row.kind, row.leaf)
        return dataclasses.replace(row, kind=kind, inside=row.held[0][0] if row.held else 0)

    def leaf(self, row: Row) -> Row:
        """A leaf beside models and optimizers.

        ``Variable`` is what a field that names no type means.
        """
        plain = row.kind is None and not row.leaf.is_key
        return self.model(dataclasses.replace(row, kind=nnx.Variable) if plain else row, None)

    def trained(self, wrt: Any) -> Callable[[Row, KeyPath], bool]:
        """Whether an optimizer trains a leaf of a model: by a filter of ``flax.nnx``, ``Param`` unless given."""
        if not is_filter(wrt):
            hint = 'write wrt=nnx.LoRAParam, or wrt=nnx.All(nnx.Param, nnx.PathContains("head"))'
            fault = Mismatch("wrt", "declaration", "a filter of flax.nnx", repr(wrt), hint)
            raise SchemaError("an optimizer is not well declared", [fault])
        passes = nnx.filterlib.to_predicate(nnx.Param if wrt is None else wrt)

        def is_trained(row: Row, key: KeyPath) -> bool:
            if row.kind is jax.Array:
                return False
            # A filter may ask for the type, the path or a tag, so it is given a Variable with these.
            return bool(passes(key, row.kind(0, **dict(row.metadata))))

        return is_trained

    def kept(self, *, mirror: bool, boxed: bool) -> Any:
        """The Variable type of a leaf of an optimizer state."""
        return nnx.optimizer.OptVariable if boxed else nnx.optimizer.OptArray

    def parted(self, owner: str, trained: Sequence[Row]) -> SchemaError | None:
        """The error for params with parts, which no optimizer state of NNX is typed for."""
        hint = "train params without parts, or read the layout off a state with ckpt_schema.infer"
        faults: list[Mismatch] = []
        for row in trained:
            if row.held:
                path, found = "/".join(row.path[1:]), f"a part of a {row.held[0][1].__name__}"
                expected = "a param without parts"
                faults.append(Mismatch(path, "declaration", expected, found, hint))
        header = f"{owner.split('[')[0]} has no place for these params"
        return SchemaError(header, faults) if faults else None

    @property
    def box(self) -> Box:
        """How ``nnx.Optimizer`` gives params to a transformation."""
        return Box(_state_of_params, _value)


def _state_of_params(params: dict[Any, Any], rows: Mapping[KeyPath, Row]) -> nnx.State[Any, Any]:
    # The parts of one value, as an array and its scale, are in one Variable, which stands above them.
    return build_state(params, {key[: len(key) - row.inside]: row for key, row in rows.items()})


def _value(node: Any) -> Any:
    return node.get_value() if is_variable(node) else node


_KINDS = (
    (nnx.RngState, "stream"),
    (nnx.Cache, "cache"),
    (nnx.Intermediate, "record"),
    (nnx.metrics.MetricState, "record"),
)


def passing(kind: type) -> str | None:
    """What a Variable type is called where a model works without it: ``stream``, ``cache`` or ``record``; else None.

    A record is what a pass leaves behind: an intermediate, a metric.
    """
    for known, name in _KINDS:
        if issubclass(kind, known):
            return name
    return None


def is_param(kind: type) -> bool:
    """Whether optimizers train Variables of this type, unless they are told otherwise."""
    return issubclass(kind, nnx.Param)


def build_state(
    values: dict[Any, Any],
    variables: Mapping[KeyPath, Row | None],
    labelled: Mapping[KeyPath, Mapping[str, Any]] | None = None,
) -> nnx.State[Any, Any]:
    """An ``nnx.State`` with a new Variable at each of the given key paths, of its row's type and metadata.

    Args:
        values: Nested dicts of what the Variables hold; they are filled with the Variables.
        variables: Where they stand. Without a row, what a mask left of an optimizer's Variable.
        labelled: What some of them say of their axes.
    """
    # This runs for each leaf of a model. Variables of one type and metadata share a structure.
    structures: dict[Any, TreeDef] = {}
    for key, row in variables.items():
        if row is not None and row.kind is jax.Array:
            continue  # a plain array stays one
        parent = values
        for segment in key[:-1]:
            parent = parent[segment]
        kind = nnx.optimizer.OptVariable if row is None else variable_type(row.kind, row.leaf)
        alike = kind, row.metadata if row else ()
        # To make a Variable of its structure takes a fifth of what its constructor takes.
        if alike not in structures:
            structures[alike] = jax.tree.structure(kind(0, **dict(alike[1])))
        made = parent[key[-1]] = structures[alike].unflatten([parent[key[-1]]])
        if labelled and key in labelled:
            # Said when it is made, they would move its value onto the mesh in context.
            made.set_metadata(**labelled[key])
    return nnx.State(values)


# The last three as ``Partitioned`` hands them over.
_LABELS = ("out_sharding", "mesh", "sharding_rules", "linen_meta_type")


def variable_labels(state: Any) -> dict[int, dict[str, Any]]:
    """What the Variables of a State say of their axes, for a State whose leaves are their own positions."""
    labels: dict[int, dict[str, Any]] = {}
    flat: Any = nnx.to_flat_state(state) if isinstance(state, nnx.State) else ()
    for _, variable in flat:
        said = variable.get_metadata() if is_variable(variable) else {}
        # Metadata holds much else, as tags and hooks, which no axis is named by.
        if said.get("out_sharding") is not None:
            label = {name: said[name] for name in _LABELS if name in said}
            labels |= dict.fromkeys(jax.tree.leaves(variable.get_value()), label)
    return labels


def is_state(value: Any) -> bool:
    """Whether ``value`` is an ``nnx.State`` of Variables."""
    return bool(variables_of(value))


def state_of(value: Any) -> Any:
    """The state of a module; of a tree with modules in it, the tree with their states; anything else as it is.

    What its Variables hold in references is read.

    Raises:
        ConformanceError: Two modules of the tree share a Variable, which has one place in a state.
    """
    whole = _whole(value)
    if whole is not None:
        return _read(nnx.state(whole))
    parts = dict(_modules(value, ()))
    # A module of its own keeps what it shares once; two states beside one another would both have it.
    _verify_apart(parts)
    return _replaced(value, lambda module, _: _read(nnx.state(module)), value) if parts else value


def whole_state(tree: Any) -> Any:
    """A dict that has states in it as one state, so that what they hold is known for Variables.

    Anything else as it is.
    """
    return nnx.State(tree) if isinstance(tree, dict) and _has_state(tree) else tree


def plain_train_state(tree: Any) -> tuple[Any, list[tuple[KeyPath, Any]] | None]:
    """A train state that holds states of Variables beside an optimizer's, with dicts of values in the place of all of them.

    Who splits a model and trains its state with functions has ``{"params": nnx.state(model), "opt_state":
    tx.init(nnx.state(model))}``, which is kept as Linen's train state is. Anything else as it is.

    Returns:
        The tree, and its `inner_nodes` where it has no states: to look for these is to see all nodes.
    """
    if isinstance(tree, (nnx.State, nnx.Pytree)):
        return tree, None
    nodes = [*_nodes(tree, ())]
    kinds = {type(node) for _, node in nodes}
    if nnx.State not in kinds:
        return tree, [held for held in nodes if is_inner_node(*held)]
    if not any(is_part(kind) and kind.__module__.startswith("optax.") for kind in kinds):
        return tree, None

    def plain(node: Any) -> Any:
        return nnx.to_pure_dict(node, _value) if isinstance(node, nnx.State) else _value(node)

    return jax.tree.map(plain, tree, is_leaf=_is_state_or_variable), None


def _nodes(node: Any, key: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    """All containers of a tree, but for those inside of states of Variables."""
    kind: type = type(node)
    if node is None or kind is nnx.State:
        yield key, node
    elif not jax.tree_util.all_leaves([node]):
        yield key, node
        for name, child in children(node):
            # jax is not asked of each of very many leaves, whose classes tell.
            held: type = type(child)
            if held is not jax.ShapeDtypeStruct and not leaves.is_array_class(held):
                yield from _nodes(child, (*key, name))


def _is_state_or_variable(node: Any) -> bool:
    return isinstance(node, nnx.State) or is_variable(node)


def _has_state(node: Any) -> bool:
    if not isinstance(node, dict):
        return isinstance(node, nnx.State)
    below = cast(dict[Any, Any], node).values()
    # Not asked of each of very many leaves: what is no class of Python's own asks for long.
    return any(_has_state(child) for child in below if not leaves.is_array_class(type(child)))


def updated(target: Any, state: Any) -> Any:
    """The result of a restore as the kind of thing ``target`` is: a module with its state updated, or the state itself.

    Of a tree with modules in it, these are updated, and stand in the result.
    """
    whole = _whole(target)
    if whole is not None:
        _update(whole, state)
        return target
    return _replaced(target, _update, state) if any(_modules(target, ())) else state


def completed(state: Any, whole: Any) -> Any:
    """A state with the Variables that it lacks, from the whole that it is a part of.

    Anything else as it is.
    """
    if not isinstance(state, nnx.State) or not isinstance(whole, nnx.State):
        return state
    flat: Any = dict(nnx.to_flat_state(state))
    parts: Any = nnx.to_flat_state(whole)
    # A lens may speak of a part of a state alone, and a restore hands all of it back.
    lacking = {key: variable for key, variable in parts if key not in flat}
    return nnx.from_flat_state({**flat, **lacking}) if lacking else state


def _whole(value: Any) -> nnx.Pytree | None:
    """A module, or a dict of nothing but modules as the one module that it stands for."""
    if isinstance(value, nnx.Pytree):
        return value
    # Only text can be an attribute of a module, which nnx.Dict keeps its items as.
    if type(value) is not dict or not value or not all(isinstance(key, str) for key in value):
        return None
    if not all(isinstance(child, nnx.Pytree) for child in value.values()):
        return None
    # One graph, so that what both modules share is once in the state, as NNX has it.
    return nnx.Dict(value)


def _modules(tree: Any, at: KeyPath) -> Iterator[tuple[KeyPath, nnx.Pytree]]:
    """The modules in dicts and sequences, with the key path of each."""
    if isinstance(tree, nnx.Pytree):
        yield at, tree
    elif isinstance(tree, (dict, list, tuple)):
        items: Any = tree.items() if isinstance(tree, dict) else enumerate(tree)
        for key, child in items:
            # Not asked of each of very many leaves, as above.
            if not leaves.is_array_class(type(child)):
                yield from _modules(child, (*at, key))


def _replaced(tree: Any, made: Callable[[Any, Any], Any], other: Any) -> Any:
    """``other``, a tree like ``tree``, with what is made of both in the place of each module of ``tree``."""
    if isinstance(tree, nnx.Pytree):
        return made(tree, other)
    if not any(_modules(tree, ())):
        return other
    if isinstance(tree, dict):
        kind: Any = type(tree)
        return kind({key: _replaced(child, made, other[key]) for key, child in tree.items()})
    both = [_replaced(child, made, theirs) for child, theirs in zip(tree, other, strict=True)]
    # A NamedTuple takes its fields one by one, and a tuple or list takes them together.
    return type(tree)(*both) if hasattr(tree, "_fields") else type(tree)(both)


def _verify_apart(parts: Mapping[KeyPath, nnx.Pytree]) -> None:
    """Raises where two modules share a Variable."""
    # By the id of a Variable, the module that has it first, and where it stands there.
    seen: dict[int, tuple[KeyPath, str]] = {}
    faults: list[Mismatch] = []
    for key, module in parts.items() if len(parts) > 1 else ():
        for path, node in nnx.iter_graph(module):
            whole: tuple[Any, ...] = (*key, *path)
            where = format_path(whole)
            # What one module shares in itself, as tied embeddings, its state has once.
            if is_variable(node) and seen.setdefault(id(node), (key, where))[0] != key:
                hint = "put both modules into one nnx.Dict, which has each Variable once"
                other = f"that of {seen[id(node)][1]}"
                faults.append(Mismatch(where, "ambiguous", "a Variable of its own", other, hint))
    if faults:
        raise ConformanceError("modules of the tree share Variables", faults)


def _read(state: Any) -> Any:
    """A state with values where its Variables hold references, or are such themselves."""
    if not any(map(leaves.is_mutable, jax.tree.leaves(state))):
        return state

    def plain(node: Any) -> Any:
        if is_variable(node) and jax.tree_util.all_leaves([node]):  # of hijax: a leaf to jax
            # So a new Variable has its value, and all that its metadata says but that it is one.
            kind: Any = node.type
            made = jax.tree.structure(kind(0)).unflatten([node.get_value()])
            made.set_metadata(**{**node.get_metadata(), "hijax": False})
            node = made
        return jax.tree.map(lambda leaf: leaf[...] if leaves.is_mutable(leaf) else leaf, node)

    return jax.tree.map(plain, state, is_leaf=is_variable)


def _update(module: Any, state: Any) -> Any:
    """The module, with its Variables updated.

    A reference that one holds is written to, and stays.
    """
    held: list[tuple[Any, Any]] = []
    for _, node in nnx.iter_graph(module):
        if is_variable(node):
            held.append((node, node.get_raw_value()))
    nnx.update(module, state)
    # The update has put plain arrays in the place of references. Other code may hold the reference,
    # so the new value goes into it, and it goes back into the Variable.
    for variable, raw in held:
        if leaves.is_mutable(raw):
            raw[...] = variable.get_value()
            variable.set_raw_value(raw)
    return module


def inner_containers(state: Any) -> Iterator[tuple[KeyPath, Any]]:
    """Every container that is, or is inside of, the value of a Variable: what a mask leaves, lists of factors."""
    flat: Any = nnx.to_flat_state(state)
    for key, variable in flat:
        if is_variable(variable):
            yield from inner_nodes(variable.get_value(), key)


def variables_of(state: Any) -> dict[KeyPath, tuple[type, tuple[tuple[str, Any], ...]]]:
    """The Variable type and stream tag at every key path of an ``nnx.State``.

    Empty for any other tree.
    """
    variables: dict[KeyPath, tuple[type, tuple[tuple[str, Any], ...]]] = {}
    if isinstance(state, nnx.State):
        flat: Any = nnx.to_flat_state(state)  # its own path type admits more than keys
        for key, variable in flat:
            if is_variable(variable):
                # The tag of a stream is its name, "params" or "dropout": it tells one key from another.
                tag = variable.get_metadata().get("tag")
                variables[key] = (type(variable), (("tag", tag),) if tag is not None else ())
    return variables
