"""Rows of an optimizer state, computed from the real optax transformation.

No list of known optimizers.

What mirrors the params follows the params' rows through every translation, also where it has other
shapes (factors, a memory of updates), other dtypes, or holes that a mask made. All other leaves are
rows of their own.

Each shape is told by tracing ``tx.init`` at several sizes: an axis that is always as long as a dim
of the param is that dim.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import optax
import optax.contrib

from ckpt_schema._frameworks.mirror_dims import (
    dims_at_one_size,
    dims_of_shapes,
    mirror_leaf,
    unstacked,
)
from ckpt_schema._frameworks.tracing import Box, StatePlace, Trace, nested, told_state, trace
from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts.dims import Dim, Dims
from ckpt_schema._layouts.leaves import Init, Leaf
from ckpt_schema._layouts.paths import KeyPath, LogicalPath, named, symbols
from ckpt_schema._layouts.table import Node, Part, Repeat, Row, holders, is_part
from ckpt_schema.errors import Mismatch, SchemaError

__all__ = [
    "OptimizerLeaf",
    "OptimizerState",
    "Start",
    "Starts",
    "optimizer_state",
    "served_by",
]

Sizes = Mapping[str, int]


@dataclasses.dataclass(frozen=True, slots=True)
class OptimizerLeaf:
    """One leaf of an optimizer state.

    Attributes:
        place: Where it stands.
        param: The row of the param it belongs to, or None.
        leaf: Its dims and dtype; dims of one repeat.
        repeats: The levels of repetition that it shares with its param.
        boxed: Whether it is the value of a Variable, or inside of one.
    """

    place: StatePlace
    param: Row | None
    leaf: Leaf
    repeats: tuple[Repeat, ...] = ()
    boxed: bool = False

    def row(self, kind: Any) -> Row:
        """Its row, as the state itself sees it."""
        start, tail = tuple(map(named, self.place.prefix)), self.place.tail
        key = (*self.place.prefix, *(self.place.param or ()), *tail)
        # A count or a placeholder: no param lends it a path, so it is called by its key path.
        if self.param is None:
            return Row((*start, *map(named, tail)), key, self.leaf, kind=kind)
        default = None if self.param.default is None else Init()  # what a new param brings with it
        path = (*start, *_path(self.param, self.repeats), *map(named, tail))
        inside = len(tail) if self.boxed else 0
        return Row(
            path,
            key,
            self.leaf,
            self.repeats,
            kind,
            default=default,
            optional=self.param.optional,  # of a leaf that a tree lacks nothing is kept
            body=len(start),
            inside=inside,
            mirrors="/".join(self.param.path),
            reshaped=self.leaf.dims != self.param.leaf.dims or self.repeats != self.param.repeats,
        )


def _path(param: Row, repeats: Sequence[Repeat]) -> LogicalPath:
    """The param's path in the model.

    A level that this leaf does not share is no repetition of it.
    """
    sizes = [repeat.size for repeat in repeats]
    # One for each [] of the path, in order. What Adafactor keeps once for a stack at layers[]/w is
    # at layers/w.
    levels = iter(param.repeats)
    path: list[str] = []
    for segment in param.model_path:
        if segment.endswith("[]") and next(levels).size not in sizes:
            segment = segment.removesuffix("[]")
        path.append(segment)
    return tuple(path)


@dataclasses.dataclass(frozen=True, slots=True)
class OptimizerState:
    """The type of an optimizer state.

    Attributes:
        leaves: Its leaves.
        nodes: Its containers other than dicts, parents before children, keys relative to the state.
        inner: Those of them that stand where a param does, or inside of such a place.
    """

    leaves: tuple[OptimizerLeaf, ...]
    nodes: tuple[Node, ...]
    inner: frozenset[Node]

    @property
    def parts(self) -> tuple[Part, ...]:
        """What each transformation of the chain keeps, by its logical path in the state."""
        parts: list[Part] = []
        for node in self.nodes:
            # A NamedTuple where a param stands is a param's factors, and no step of the chain.
            if node not in self.inner and is_part(node.type):
                parts.append(Part(tuple(map(named, node.key)), node.type))
        return tuple(parts)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Start:
    """What makes one optimizer state of a layout.

    Attributes:
        tx: The transformation.
        head: Where the layout keeps what ``tx.init`` is given.
        home: Where it keeps the state.
        trained: The logical paths of the params.
        box: How params are wrapped.
    """

    tx: optax.GradientTransformation
    head: KeyPath
    home: KeyPath
    trained: frozenset[str]
    box: Box = dataclasses.field(default_factory=Box)

    def state(self, params: Sequence[tuple[KeyPath, Row, Any]]) -> Any:
        """The state for params of a layout, of which those of other optimizers are left out."""
        values: dict[KeyPath, Any] = {}
        rows: dict[KeyPath, Row] = {}
        for key, row, value in params:
            if "/".join(row.path) in self.trained:
                # tx.init is given the params alone, and so their keys without what is above them.
                place = key[len(self.head) :]
                values[place], rows[place] = value, row
        return self.tx.init(self.box.close(nested(values), rows))


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Starts:
    """What makes the optimizer states of a layout; see `Initial`."""

    each: tuple[Start, ...]

    def trains(self, row: Row) -> bool:
        """Whether a state is made for this row."""
        return any("/".join(row.path) in start.trained for start in self.each)

    def __call__(self, params: Sequence[tuple[KeyPath, Row, Any]]) -> Any:
        """A tree that holds the states alone, where the layout keeps them."""
        return nested({start.home: start.state(params) for start in self.each})

    def beside(self, other: Starts) -> Starts:
        """These, and those of another part of the layout."""
        return Starts((*self.each, *other.each))

    def below(self, name: str, key: KeyPath) -> Starts:
        """The same for a layout that has this one as an attribute, spelled so."""
        starts: list[Start] = []
        for start in self.each:
            trained = frozenset(f"{name}/{path}" for path in start.trained)
            head, home = (*key, *start.head), (*key, *start.home)
            starts.append(dataclasses.replace(start, head=head, home=home, trained=trained))
        return Starts(tuple(starts))


def served_by(kind: type) -> str | None:
    """The function that makes the weights to serve, where a state of this type says that params alone are not them."""
    name = "schedule_free_eval_params"
    return f"optax.contrib.{name}" if kind is optax.contrib.ScheduleFreeState else None


def optimizer_state(
    name: str,
    tx: optax.GradientTransformation,
    params: Sequence[Row],
    given: Sizes,
    box: Box | None = None,
    spelled: str = "",
) -> OptimizerState:
    """The type of ``tx``'s state for params of these rows.

    Args:
        name: The train state, for messages.
        tx: The transformation that made the state.
        params: The rows of the params, keys relative to the tree that ``tx.init`` is given.
        given: The sizes of the params' dims, or none: then the type must be the same for all sizes.
        box: How the params are wrapped when they are given to ``tx.init``.
        spelled: How its declaration is written with sizes, these as ``{SIZES}``.

    Raises:
        SchemaError: ``tx.init`` fails on such params, makes leaves whose shapes the dims don't
            determine, or a state whose type depends on sizes that are not given.
    """
    if not params:
        expected, hint = "at least one trainable leaf", "the schema declares no params"
        fault = Mismatch("opt_state", "declaration", expected, "none", hint)
        raise SchemaError("an optimizer state needs params", [fault])
    # Two kinds of names: those of axes, which shapes are told apart by, and those that count the
    # members of lists, which are in no shape.
    in_axes, counting = set[str](), set[str]()
    for row in params:
        in_axes |= dims_.dim_names(row.dims)
        counting |= dims_.dim_names(row.unrolled)
    names = sorted(in_axes)
    counts = {name: size for name, size in given.items() if name in counting}
    _verify_given(name, names, counts, given)

    def typed(*several: Sizes) -> _Typing:
        traces: list[Trace] = []
        for sizes in several:
            traces.append(trace(tx, params, sizes, counts, box or Box()))
        return _Typing(params, traces)

    # Dims that are equally long at the given sizes are told apart by sizes near them. Both orders are
    # tried, for an optimizer may treat the longer of two axes in its own way.
    if given:
        near = [typed(*_around(names, given, step)) for step in (1, -1)]
        return typed(given).agreed_near(near, name)
    # A type that holds at small primes and at large ones, in the other order, holds for all sizes.
    # Two sizes of each, for an axis of 3 may be a dim of that length, or a number of its own.
    small = typed(_prime_sizes(names, 3, 0), _prime_sizes(names, 3, 1))
    turned = names[::-1]
    large = typed(_prime_sizes(turned, 1009, 0), _prime_sizes(turned, 1009, 1))
    sizes = ", ".join([f'"{n}": ...' for n in names])
    return small.agreed(large, name, spelled.replace("{SIZES}", f"{{{sizes}}}"))


def _verify_given(name: str, names: Sequence[str], counts: Sizes, given: Sizes) -> None:
    faults: list[Mismatch] = []
    for dim in names if given else ():  # without sizes the type has to hold for all of them
        if dim not in given:
            expected, hint = "the size of every dim of the params", f'add "{dim}": ...'
            faults.append(Mismatch(dim, "dims", expected, "none", hint))
    for dim in given:
        if dim not in names and dim not in counts:
            expected = f"a dim of the params ({', '.join(names)})"
            faults.append(Mismatch(dim, "dims", expected, "an unknown name"))
    if faults:
        raise SchemaError(f"the sizes of {name}[...] are not well formed", faults)


def _prime_sizes(names: Sequence[str], start: int, skip: int) -> Sizes:
    """Distinct primes from an odd ``start`` on, so that sizes that agree do so because their dims do."""
    # Of a, b, c from 3 on they are 3, 5, 7; with one left out, 5, 7, 11.
    primes = filter(_is_odd_prime, itertools.count(start, 2))
    return dict(zip(names, itertools.islice(primes, skip, None), strict=False))


def _is_odd_prime(number: int) -> bool:
    return all(number % divisor for divisor in range(3, int(number**0.5) + 1, 2))


def _around(names: Sequence[str], given: Sizes, step: int) -> Iterator[Sizes]:
    """Sizes near the given ones, in the same order, and all different.

    ``step`` says which of equal ones comes first.
    """
    # The sort is stable: of a=4, b=4, c=8 it is a, b, c, and with step -1 b, a, c.
    order = sorted(names[::step], key=lambda name: given[name])
    for skip in (1, len(names) + 1):
        sizes: dict[str, int] = {}
        last = 0
        for name in order:
            # a=5, b=6, c=9: each is longer than those before it, as equal axes could not be told apart.
            last = sizes[name] = max(given[name] + skip, last + 1)
        yield sizes


@dataclasses.dataclass(frozen=True)
class _Typing:
    """Traces of one transformation at several sizes, read as types of leaves."""

    params: Sequence[Row]
    traces: Sequence[Trace]

    def agreed(self, other: _Typing, name: str, spelled: str) -> OptimizerState:
        """The type that holds at the sizes of both; ``spelled`` is how to declare it for one."""
        mine, theirs = dict(self._types()), dict(other._types())
        faults = [kind for kind in mine.values() if isinstance(kind, Mismatch)]
        # What has no type at these sizes has another fault at others, which says nothing new.
        if not faults:
            hint = f"its type depends on the sizes: give them, {spelled}"
            for place in {**mine, **theirs}:
                here, there = mine.get(place), theirs.get(place)
                if here != there:
                    found, expected = _either(here, there), "one type for all sizes"
                    faults.append(Mismatch(str(place), "dims", expected, found, hint))
        if faults:
            header = f"the optimizer state of {name} cannot be typed for all sizes"
            raise SchemaError(header, faults)
        return self._state(mine)

    def agreed_near(self, near: Sequence[_Typing], name: str) -> OptimizerState:
        """The type at one size, that of this trace.

        Those near it tell apart the dims that are equally long at it.
        """
        (truth,) = self.traces
        others = [dict(typing._types()) for typing in near]
        types = dict(self._types())
        faults: list[Mismatch] = []
        for place, kind in types.items():
            if not isinstance(kind, OptimizerLeaf):
                continue
            guesses = [other.get(place) for other in others]
            shape = dims_.sizes_of(_stored(kind), truth.sizes)
            assert shape is not None  # at one size every axis has a length
            if kind.param is not None:
                told: list[Dims] = []
                for guess in guesses:
                    dims = _stored(guess) if isinstance(guess, OptimizerLeaf) else None
                    # Near a threshold the transformation may keep another kind of leaf, of another shape.
                    if dims is not None and dims_.sizes_of(dims, truth.sizes) == shape:
                        told.append(dims)
                settled = dims_at_one_size(kind.param.dims, shape, told, truth.sizes)
                item, repeats = unstacked(settled, kind.param)
                leaf = mirror_leaf(item, kind.leaf.dtype, kind.param)
                types[place] = dataclasses.replace(kind, leaf=leaf, repeats=repeats)
            elif guesses != [kind] * len(guesses):
                # Its size is that of several params together, as where all are kept in one vector.
                faults.append(Mismatch(str(place), "shape", *_mixed(place, shape, kind.leaf.dtype)))
        if faults:
            raise SchemaError(f"the optimizer state of {name} belongs to no params", faults)
        return self._state(types)

    def _state(self, types: Mapping[StatePlace, OptimizerLeaf | Node | Mismatch]) -> OptimizerState:
        state_leaves: list[OptimizerLeaf] = []
        nodes: list[Node] = []
        inner: set[Node] = set()
        for place, kind in types.items():
            if isinstance(kind, OptimizerLeaf):
                state_leaves.append(kind)
            elif isinstance(kind, Node):
                nodes.append(kind)
                if place.param is not None:
                    inner.add(kind)
        return OptimizerState(tuple(state_leaves), (*nodes, *self._held()), frozenset(inner))

    def _held(self) -> tuple[Node, ...]:
        """The containers of params with parts, wherever they are mirrored."""
        rows = {row.key: row for row in self.params if row.held}
        held: dict[Node, None] = {}
        for place in self.traces[0].found:
            row = rows.get(place.param) if place.param is not None else None
            if row is not None:
                # A quantized param is an array and its scale in one class, and so is its momentum.
                mirror = dataclasses.replace(row, key=(*place.prefix, *row.key))
                held |= dict.fromkeys(holders([mirror]))
        return tuple(held)

    def _types(self) -> Iterator[tuple[StatePlace, OptimizerLeaf | Node | Mismatch]]:
        """What stands at each place, at all the sizes; or what is wrong with it."""
        rows = {row.key: row for row in self.params}
        for place, here in self.traces[0].found.items():
            several = [one.found.get(place) for one in self.traces]
            if isinstance(here, type):
                if set(several) != {here}:
                    yield place, _unlike(place, several)
                    continue
                key = (*place.prefix, *(place.param or ()), *place.tail)
                yield place, Node(key, here, self._counts(place))
                continue
            shapes: list[tuple[int, ...]] = []
            for found in several:
                if isinstance(found, tuple) and found[1] == here[1]:
                    shapes.append(found[0])
            # Some sizes may have a container there, or nothing, or a leaf of another dtype.
            if len(shapes) < len(several):
                yield place, _unlike(place, several)
            else:
                param = rows.get(place.param) if place.param is not None else None
                yield place, self._leaf(place, param, shapes, here[1])

    def _counts(self, place: StatePlace) -> tuple[Dim, ...]:
        """The sizes of the lists on the way to a place."""
        count = symbols(place.param or ())
        length = len(place.param or ())
        # All params below one node count its lists by the same dims, so the first may tell.
        for row in self.params if count else ():
            if row.key[:length] == place.param:
                return row.unrolled[:count]
        return ()

    def _leaf(
        self, place: StatePlace, param: Row | None, shapes: Sequence[tuple[int, ...]], dtype: str
    ) -> OptimizerLeaf | Mismatch:
        dims = dims_of_shapes(param.dims if param else (), shapes, [t.sizes for t in self.traces])
        boxed = place in self.traces[0].boxed
        if dims is None:
            return Mismatch(str(place), "shape", *_mixed(place, shapes[0], dtype))
        if param is None:
            return OptimizerLeaf(place, None, Leaf(dims, dtype), boxed=boxed)
        item, repeats = unstacked(dims, param)
        return OptimizerLeaf(place, param, mirror_leaf(item, dtype, param), repeats, boxed)


def _mixed(place: StatePlace, shape: Sequence[int], dtype: str) -> tuple[str, str, str]:
    found = f"{dtype}[{' '.join(map(str, shape))}]"
    if place.param is None:
        hint = "it mixes params, whose order a layout may change: no lens can carry it"
        return "a leaf for each param, or one shape for all sizes", found, hint
    hint = "declare this state with ckpt_schema.infer, from a real one"
    return "axes that are as long as dims of the param", found, hint


def _stored(leaf: OptimizerLeaf) -> Dims:
    return leaf.row(None).dims


def _unlike(place: StatePlace, several: Sequence[Any]) -> Mismatch:
    kinds = " or ".join(dict.fromkeys(map(told_state, several)))
    hint = "declare this state with ckpt_schema.infer"
    return Mismatch(str(place), "shape", "the same structure for all sizes", kinds, hint)


def _either(first: Any, second: Any) -> str:
    return f"{_type(first)} or {_type(second)}"


def _type(found: OptimizerLeaf | Node | Mismatch | None) -> str:
    if isinstance(found, OptimizerLeaf):
        return str(Leaf(_stored(found), found.leaf.dtype))
    if isinstance(found, Mismatch):
        return found.found
    return told_state(found.type if isinstance(found, Node) else None)
