"""What an optax transformation keeps for params of given sizes: its abstract state, each part told by its param."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts import leaves, paths
from ckpt_schema._layouts.paths import KeyPath, Pattern
from ckpt_schema._layouts.pytrees import children
from ckpt_schema._layouts.table import Row
from ckpt_schema.errors import Mismatch, SchemaError

__all__ = ["Box", "StateLeaf", "StatePlace", "Trace", "nested", "told_state", "trace"]


@dataclasses.dataclass(frozen=True, slots=True)
class StatePlace:
    """Where something stands in an optimizer state.

    Attributes:
        prefix: Its key path, or that of the subtree which mirrors the params.
        param: The key pattern of the param, or node of params, whose place in the mirror it has;
            None outside of mirrors.
        tail: Its key path inside of what has that place, such as the number of a factor in SM3.
    """

    prefix: KeyPath
    param: Pattern | None = None
    tail: KeyPath = ()

    def __str__(self) -> str:
        """The key path."""
        return paths.format_path(("opt_state", *self.prefix, *(self.param or ()), *self.tail))


StateLeaf = tuple[tuple[int, ...], str] | type
"""What stands at a place: the shape and dtype of a leaf, or the class of a container that is no dict."""


@dataclasses.dataclass(frozen=True, slots=True)
class Trace:
    """An abstract state.

    Attributes:
        sizes: The sizes of the params' dims it was made for.
        found: What stands at each place, parents before children.
        boxed: The places that are the value of a Variable, or inside of one.
    """

    sizes: Mapping[str, int]
    found: Mapping[StatePlace, StateLeaf]
    boxed: frozenset[StatePlace]


def _as_it_is(node: Any, *_: Any) -> Any:
    return node


@dataclasses.dataclass(frozen=True, slots=True)
class Box:
    """How a framework wraps leaves.

    Attributes:
        close: Makes the tree that ``tx.init`` is given from nested dicts of abstract params, and
            the row of each.
        open: The value of a Variable; anything else as it is.
    """

    close: Callable[[dict[Any, Any], Mapping[KeyPath, Row]], Any] = _as_it_is
    open: Callable[[Any], Any] = _as_it_is


def trace(
    tx: optax.GradientTransformation,
    params: Sequence[Row],
    sizes: Mapping[str, int],
    counts: Mapping[str, int],
    box: Box,
) -> Trace:
    """The abstract state of ``tx`` for params of these rows.

    Args:
        tx: The transformation.
        params: The rows of the params, keys relative to the tree that ``tx.init`` is given.
        sizes: A size for every dim of the params.
        counts: How many members lists have, where that is known; the others get two.
        box: How the params are wrapped.

    Raises:
        SchemaError: ``tx.init`` fails on such params, or treats the members of a list differently,
            or makes a state of another type of each float.
    """
    _verify_trained(params)
    if not any(row.leaf.is_open for row in params):
        return _traced(tx, params, sizes, counts, box)
    # What is of the one dtype and of the other as its params are is any float; all else is as it is.
    wide, narrow = (_traced(tx, _of_dtype(params, dtype), sizes, counts, box) for dtype in _TRIED)
    return _followed(wide, narrow)


def _traced(
    tx: optax.GradientTransformation,
    params: Sequence[Row],
    sizes: Mapping[str, int],
    counts: Mapping[str, int],
    box: Box,
) -> Trace:
    """The trace of params of one dtype each."""
    # Of the row layers/{i}/w the params at layers/0/w and layers/1/w, for tx.init takes real trees.
    rows: dict[KeyPath, Row] = {}
    for row in params:
        for members in _members(row, counts):
            rows[paths.fill(row.key, members)] = row
    # The way back: of layers/1 the pattern is layers/{i}, by which its members are grouped again.
    patterns: dict[KeyPath, Pattern] = {}
    for key, row in rows.items():
        for end in range(len(key) + 1):
            patterns[key[:end]] = row.key[:end]
    abstract = {key: _abstract(row, sizes) for key, row in rows.items()}
    try:
        state = jax.eval_shape(tx.init, box.close(nested(abstract), rows))
    except Exception as error:  # a transformation may raise anything
        cure = "masks and labels must be callables of the params, or fit them; for another kind of state use ckpt_schema.infer"
        expected, found = "tx.init to accept the schema's params", type(error).__name__
        fault = Mismatch("opt_state", "declaration", expected, found, cure)
        header = "the transformation's init fails on the params of the schema"
        raise SchemaError(header, [fault], [str(error)]) from error
    walk = _Walk(nested(abstract), patterns, box)
    return _grouped([*walk.below(state, ())], patterns, sizes)


_TRIED = "float32", "bfloat16"
"""The dtypes of params of any float that a state is made of."""


def _of_dtype(params: Sequence[Row], dtype: str) -> list[Row]:
    """The rows, those of any float with this dtype."""
    rows: list[Row] = []
    for row in params:
        leaf = row.leaf.with_dtype(dtype) if row.leaf.is_open else row.leaf
        rows.append(dataclasses.replace(row, leaf=leaf))
    return rows


def _followed(wide: Trace, narrow: Trace) -> Trace:
    """What is made for any float, from what is made for two of them.

    Raises:
        SchemaError: What stands somewhere differs in more than that.
    """
    found: dict[StatePlace, StateLeaf] = {}
    faults: list[Mismatch] = []
    for place in {**wide.found, **narrow.found}:
        one, other = wide.found.get(place), narrow.found.get(place)
        if one == other and one is not None:
            found[place] = one  # a count, a placeholder: no dtype of a param changes it
        elif (shape := _shape_as_params(one, other)) is not None:
            found[place] = shape, leaves.ANY_FLOAT
        else:
            told = f"{told_state(one)} or {told_state(other)}"
            hint = "declare one dtype of each param, such as BFloat16"
            expected = "one type for all floats, or that of its param"
            faults.append(Mismatch(str(place), "dtype", expected, told, hint))
    if faults:
        raise SchemaError("a transformation keeps another state for each float", faults)
    return dataclasses.replace(wide, found=found)


def _shape_as_params(wide: StateLeaf | None, narrow: StateLeaf | None) -> tuple[int, ...] | None:
    """The shape of a leaf that has the dtype of the params in both traces; None for anything else."""
    if not isinstance(wide, tuple) or not isinstance(narrow, tuple):
        return None
    return wide[0] if (wide[0], wide[1], narrow[1]) == (narrow[0], *_TRIED) else None


def told_state(found: StateLeaf | None) -> str:
    """What stands at a place, in words."""
    if found is None:
        return "nothing"
    if isinstance(found, type):
        return f"a {found.__name__}"
    return f"{found[1]}[{' '.join(map(str, found[0]))}]"


def _verify_trained(params: Sequence[Row]) -> None:
    """Raises where a key stands among the params: no transformation trains one.

    Raises:
        SchemaError: With every such key.
    """
    hint = 'give it a collection of its own, field(collection="rngs"), or keep it out of the model'
    faults: list[Mismatch] = []
    for row in params:
        if row.leaf.is_key:
            path, expected = "/".join(row.path), "params that are arrays"
            faults.append(Mismatch(path, "declaration", expected, str(row.stored), hint))
    if faults:
        raise SchemaError("the params of an optimizer state hold random keys", faults)


def _members(row: Row, counts: Mapping[str, int]) -> Iterator[tuple[int, ...]]:
    # Two where nobody says how many: with one alone, a mask by number would go unseen.
    return itertools.product(*(range(dims_.size_of(dim, counts) or 2) for dim in row.unrolled))


def _abstract(row: Row, sizes: Mapping[str, int]) -> jax.ShapeDtypeStruct:
    shape = dims_.sizes_of(row.dims, sizes)
    assert shape is not None
    return jax.ShapeDtypeStruct(shape, jnp.dtype(row.leaf.dtype))


def nested(found: Mapping[KeyPath, Any]) -> dict[Any, Any]:
    """Nested dicts from key paths.

    Of ``a/b`` and ``a/c`` it is ``{"a": {"b": ..., "c": ...}}``.
    """
    root: dict[Any, Any] = {}
    for key, value in found.items():
        node = root
        for segment in key[:-1]:
            node = node.setdefault(segment, {})
        node[key[-1]] = value
    return root


@dataclasses.dataclass(frozen=True, slots=True)
class _Sight:
    """What stands at a place, for one member of each list on the way."""

    place: StatePlace
    found: StateLeaf
    boxed: bool


@dataclasses.dataclass(frozen=True, slots=True)
class _Walk:
    """A walk of an optimizer state, beside the params it was made for."""

    params: dict[Any, Any]
    patterns: Mapping[KeyPath, Pattern]  # of every param, and of every node above one
    box: Box

    def below(self, node: Any, at: KeyPath) -> Iterator[_Sight]:
        """Everything at and below ``node``, which is inside of no mirror."""
        # Adam's mu has the structure of the params, and is walked beside them: its leaf at w is w's.
        if self._mirrors(node, self.params):
            yield from self._mirror(node, self.params, at, ())
            return
        here = _what(node)
        if here is not None:
            yield _Sight(StatePlace(at), here, False)
        if not isinstance(here, tuple):  # a container: a leaf is told by its shape and dtype
            for key, child in children(node):
                yield from self.below(child, (*at, key))

    def _mirrors(self, node: Any, params: Any) -> bool:
        """Whether ``node`` has the structure of ``params``, parts that a mask hides aside."""
        # Whatever stands where a param does is kept for it: an array, or the factors of one.
        if not isinstance(params, dict):
            return True
        if not isinstance(node, Mapping) or node.keys() != params.keys():
            return False
        return all(_hidden(node[key]) or self._mirrors(node[key], params[key]) for key in params)

    def _mirror(self, node: Any, params: Any, at: KeyPath, key: KeyPath) -> Iterator[_Sight]:
        if isinstance(params, dict) and not _hidden(node):
            for segment in params:
                yield from self._mirror(node[segment], params[segment], at, (*key, segment))
            return
        value = self.box.open(node)
        # A box that opens to something else was a Variable: a layout says so of what is in it.
        yield from self._inside(value, StatePlace(at, self.patterns[key]), value is not node)

    def _inside(self, value: Any, place: StatePlace, boxed: bool) -> Iterator[_Sight]:
        """Everything that stands where one param does."""
        here = _what(value)
        if here is not None:
            yield _Sight(place, here, boxed)
        if not isinstance(here, tuple):
            for segment, child in children(value):
                inner = dataclasses.replace(place, tail=(*place.tail, segment))
                yield from self._inside(child, inner, boxed)


def _hidden(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _what(node: Any) -> StateLeaf | None:
    """What ``node`` is; None for a dict, unless it is empty."""
    # An empty dict has no leaf whose key path would tell of it, so it is told itself.
    return leaves.signature(node) or (None if type(node) is dict and node else type(node))


def _grouped(
    sights: Sequence[_Sight], patterns: Mapping[KeyPath, Pattern], sizes: Mapping[str, int]
) -> Trace:
    """The trace, members of lists taken together.

    Raises:
        SchemaError: Some members have what others have not.
    """
    # layers/0 and layers/1 have the pattern layers/{i}, which so has two members.
    expected = collections.Counter(patterns.values())
    groups: dict[StatePlace, list[StateLeaf]] = {}
    boxed: set[StatePlace] = set()
    for sight in sights:
        groups.setdefault(sight.place, []).append(sight.found)
        if sight.boxed:
            boxed.add(sight.place)
    faults: list[Mismatch] = []
    for place, members in groups.items():
        count = 1 if place.param is None else expected[place.param]
        # A mask may hide what is kept for one layer: then fewer members are there, and all alike.
        if len(set(members)) > 1 or len(members) != count:
            hint = "a mask or label tells them apart: declare them as attributes of their own, or use ckpt_schema.infer"
            wanted, differing = "the same for every member of the list", "members that differ"
            faults.append(Mismatch(str(place), "ambiguous", wanted, differing, hint))
    if faults:
        raise SchemaError("the transformation treats members of a list differently", faults)
    first = {place: members[0] for place, members in groups.items()}
    return Trace(sizes, first, frozenset(boxed))
