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

from ckpt_schema._frameworks.tracing import Box, StatePlace, Trace, nested, told_state, trace
from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts.dims import EITHER, AxisName, Dim, Dims
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
    shared = iter(r.size in [s.size for s in repeats] for r in param.repeats)
    return tuple(
        segment.removesuffix("[]") if segment.endswith("[]") and not next(shared) else segment
        for segment in param.model_path
    )


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
        own = [n for n in self.nodes if n not in self.inner and is_part(n.type)]
        return tuple(Part(tuple(map(named, n.key)), n.type) for n in own)


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
        start, own = len(self.head), [p for p in params if "/".join(p[1].path) in self.trained]
        values = nested({key[start:]: value for key, _, value in own})
        return self.tx.init(self.box.close(values, {key[start:]: row for key, row, _ in own}))


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
        fault = Mismatch(
            "opt_state",
            "declaration",
            "at least one trainable leaf",
            "none",
            "the schema declares no params",
        )
        raise SchemaError("an optimizer state needs params", [fault])
    names = sorted(set().union(*(dims_.dim_names(row.dims) for row in params)))
    counting = set[str]().union(*(dims_.dim_names(row.unrolled) for row in params))
    counts = {name: size for name, size in given.items() if name in counting}
    _verify_given(name, names, counts, given)

    def typed(*sizes: Sizes) -> _Typing:
        return _Typing(params, [trace(tx, params, each, counts, box or Box()) for each in sizes])

    # Dims that are equally long at the given sizes are told apart by sizes near them. Both orders are
    # tried, for an optimizer may treat the longer of two axes in its own way.
    if given:
        near = [typed(*_around(names, given, step)) for step in (1, -1)]
        return typed(given).agreed_near(near, name)
    # A type that holds at small primes and at large ones, in the other order, holds for all sizes.
    small = typed(*(dict(zip(names, _primes(3, skip), strict=False)) for skip in (0, 1)))
    large = typed(
        *(dict(zip(reversed(names), _primes(1009, skip), strict=False)) for skip in (0, 1))
    )
    sizes = ", ".join(f'"{n}": ...' for n in names)
    return small.agreed(large, name, spelled.replace("{SIZES}", f"{{{sizes}}}"))


def _verify_given(name: str, names: Sequence[str], counts: Sizes, given: Sizes) -> None:
    missing = [n for n in names if n not in given] if given else []
    unknown = [n for n in given if n not in names and n not in counts]
    faults = [
        Mismatch(n, "dims", "the size of every dim of the params", "none", f'add "{n}": ...')
        for n in missing
    ]
    faults += [
        Mismatch(n, "dims", f"a dim of the params ({', '.join(names)})", "an unknown name")
        for n in unknown
    ]
    if faults:
        raise SchemaError(f"the sizes of {name}[...] are not well formed", faults)


def _primes(start: int, skip: int) -> Iterator[int]:
    """Distinct primes from an odd ``start`` on, so that sizes that agree do so because their dims do."""
    return itertools.islice(filter(_is_odd_prime, itertools.count(start, 2)), skip, None)


def _is_odd_prime(number: int) -> bool:
    return all(number % divisor for divisor in range(3, int(number**0.5) + 1, 2))


def _around(names: Sequence[str], given: Sizes, step: int) -> Iterator[Sizes]:
    """Sizes near the given ones, in the same order, and all different.

    ``step`` says which of equal ones comes first.
    """
    order = sorted(names[::step], key=lambda n: given[n])
    for skip in (1, len(names) + 1):
        sizes: dict[str, int] = {}
        for n in order:
            sizes[n] = max(given[n] + skip, max(sizes.values(), default=0) + 1)
        yield sizes


@dataclasses.dataclass(frozen=True)
class _Typing:
    """Traces of one transformation at several sizes, read as types of leaves."""

    params: Sequence[Row]
    traces: Sequence[Trace]

    def agreed(self, other: _Typing, name: str, spelled: str) -> OptimizerState:
        """The type that holds at the sizes of both; ``spelled`` is how to declare it for one."""
        mine, theirs = dict(self._types()), dict(other._types())
        faults = [t for t in mine.values() if isinstance(t, Mismatch)]
        if not faults:
            hint = f"its type depends on the sizes: give them, {spelled}"
            places = {**mine, **theirs}
            faults = [
                Mismatch(
                    str(place),
                    "dims",
                    "one type for all sizes",
                    _either(mine.get(place), theirs.get(place)),
                    hint,
                )
                for place in places
                if mine.get(place) != theirs.get(place)
            ]
        if faults:
            raise SchemaError(
                f"the optimizer state of {name} cannot be typed for all sizes",
                faults,
            )
        return self._state([t for t in mine.values() if not isinstance(t, Mismatch)])

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
                dims = [_stored(g) for g in guesses if isinstance(g, OptimizerLeaf)]
                dims = [d for d in dims if dims_.sizes_of(d, truth.sizes) == shape]
                item, repeats = _unstacked(
                    _settled(kind.param.dims, shape, dims, truth.sizes), kind.param
                )
                types[place] = dataclasses.replace(
                    kind, leaf=_called(item, kind.leaf.dtype, kind.param), repeats=repeats
                )
            elif any(guess != kind for guess in guesses):
                faults.append(Mismatch(str(place), "shape", *_mixed(place, shape, kind.leaf.dtype)))
        if faults:
            raise SchemaError(
                f"the optimizer state of {name} belongs to no params",
                faults,
            )
        return self._state([t for t in types.values() if not isinstance(t, Mismatch)])

    def _state(self, found: Sequence[OptimizerLeaf | Node]) -> OptimizerState:
        nodes = tuple(t for t in found if isinstance(t, Node))
        inner = [
            t
            for place, t in zip(self.traces[0].found, found, strict=True)
            if isinstance(t, Node) and place.param is not None
        ]
        nodes += self._held()
        return OptimizerState(
            tuple(t for t in found if isinstance(t, OptimizerLeaf)), nodes, frozenset(inner)
        )

    def _held(self) -> tuple[Node, ...]:
        """The containers of params with parts, wherever they are mirrored."""
        rows = {row.key: row for row in self.params if row.held}
        mirrored = [
            (place.prefix, rows[place.param])
            for place in self.traces[0].found
            if place.param in rows
        ]
        return tuple(
            {
                n
                for head, row in mirrored
                for n in holders([dataclasses.replace(row, key=(*head, *row.key))])
            }
        )

    def _types(self) -> Iterator[tuple[StatePlace, OptimizerLeaf | Node | Mismatch]]:
        rows = {row.key: row for row in self.params}
        first, *others = self.traces
        for place, here in first.found.items():
            several = [here, *(other.found.get(place) for other in others)]
            if isinstance(here, type):
                key = (*place.prefix, *(place.param or ()), *place.tail)
                yield (
                    place,
                    Node(key, here, self._counts(place))
                    if set(several) == {here}
                    else _unlike(place, several),
                )
            elif any(not isinstance(s, tuple) or s[1] != here[1] for s in several):
                yield place, _unlike(place, several)
            else:
                shapes = [s[0] for s in several if isinstance(s, tuple)]
                param = rows.get(place.param) if place.param is not None else None
                yield place, self._leaf(place, param, shapes, here[1])

    def _counts(self, place: StatePlace) -> tuple[Dim, ...]:
        """The sizes of the lists on the way to a place."""
        count = symbols(place.param or ())
        length = len(place.param or ())
        if count:
            return next(r.unrolled[:count] for r in self.params if r.key[:length] == place.param)
        return ()

    def _leaf(
        self, place: StatePlace, param: Row | None, shapes: Sequence[tuple[int, ...]], dtype: str
    ) -> OptimizerLeaf | Mismatch:
        dims = _dims(param.dims if param else (), shapes, [t.sizes for t in self.traces])
        boxed = place in self.traces[0].boxed
        if dims is None:
            return Mismatch(str(place), "shape", *_mixed(place, shapes[0], dtype))
        if param is None:
            return OptimizerLeaf(place, None, Leaf(dims, dtype), boxed=boxed)
        item, repeats = _unstacked(dims, param)
        return OptimizerLeaf(place, param, _called(item, dtype, param), repeats, boxed)


def _dims(param: Dims, shapes: Sequence[tuple[int, ...]], sizes: Sequence[Sizes]) -> Dims | None:
    """The dims of a leaf that has these shapes at these sizes.

    Those of its param where it has the same.
    """
    if len({len(shape) for shape in shapes}) > 1:
        return None
    if [dims_.sizes_of(param, at) for at in sizes] == list(shapes):
        return param
    dims = [_axis(param, lengths, sizes) for lengths in zip(*shapes, strict=True)]
    return None if None in dims else tuple(dim for dim in dims if dim is not None)


def _axis(param: Dims, lengths: Sequence[int], sizes: Sequence[Sizes]) -> Dim | None:
    """The dim of a param, or product of neighbouring ones, that is always as long as an axis.

    If there is none, its one length.
    """
    fits = {dim for dim in param if [dims_.size_of(dim, at) for at in sizes] == list(lengths)}
    if len(fits) == 1 and not (len(set(lengths)) == 1 and len(sizes) == 1):
        return fits.pop()
    # An axis that no size changes is a number of the transformation's own.
    if len(set(lengths)) == 1:
        return (lengths[0],)
    runs = (
        dims_.factors(param[i:j]) for i in range(len(param)) for j in range(i + 2, len(param) + 1)
    )
    return next(
        (run for run in runs if [dims_.size_of(run, at) for at in sizes] == list(lengths)), None
    )


def _settled(param: Dims, shape: Sequence[int], guesses: Sequence[Dims], sizes: Sizes) -> Dims:
    """The dims of a leaf at one size.

    An axis that the guesses do not tell has the names of all dims that are as long.

    A dim called ``embed_or_mlp`` is the same in two layouts only if both keep these two in this
    order.
    """
    dims: list[Dim] = []
    for axis, length in enumerate(shape):
        told = {guess[axis] for guess in guesses}
        fits = [dim for dim in param if dims_.size_of(dim, sizes) == length]
        if len(told) == 1:
            dims.append(told.pop())
        elif len(set(fits)) > 1:
            dims.append(("_or_".join(dims_.format_dim(dim).replace("*", "_x_") for dim in fits),))
        else:
            dims.append(fits[0] if fits else (length,))
    return tuple(dims)


def _unstacked(stored: Dims, param: Row) -> tuple[Dims, tuple[Repeat, ...]]:
    """Dims as stored, split into those of one repeat and the levels of repetition the leaf shares with its param."""
    if stored == param.dims:
        return param.leaf.dims, param.repeats
    rest, repeats = list(stored), list[Repeat]()
    # Outermost first: each axis is told as it stands once those before are taken out.
    for repeat in param.repeats:
        if repeat.axis is None:
            repeats.append(repeat)
        elif rest.count(repeat.size) == 1 and param.dims.count(repeat.size) == 1:
            repeats.append(Repeat(repeat.size, rest.index(repeat.size)))
            rest.remove(repeat.size)
    return tuple(rest), tuple(repeats)


def _called(dims: Dims, dtype: str, param: Row) -> Leaf:
    """A leaf that is kept for a param, its axes called as those of the param are.

    Where several axes of the param have this dim, an axis has the names of all of them, in their
    order: it is the same in two layouts only if both keep these axes in one order, for which of
    them an optimizer reduces may hang on that.
    """
    own = param.leaf
    if dims == own.dims:
        return Leaf(dims, dtype, own.names)
    if not own.names:
        return Leaf(dims, dtype)
    return Leaf(dims, dtype, tuple(_axis_name(dim, own) for dim in dims))


def _axis_name(dim: Dim, own: Leaf) -> AxisName:
    several = [name for each, name in zip(own.dims, own.names, strict=True) if each == dim]
    if len(several) == 1:
        return several[0]
    if several:
        return AxisName((EITHER.join(map(str, several)),) * len(dim))
    ends = range(len(own.dims) + 1)
    runs = ((start, end) for start in ends for end in ends if start < end)
    for start, end in runs:
        if dims_.factors(own.dims[start:end]) == dim:
            return AxisName(tuple(part for name in own.names[start:end] for part in name.parts))
    return AxisName(tuple(map(str, dim)))


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
    kinds = " or ".join(dict.fromkeys(told_state(s) for s in several))
    return Mismatch(
        str(place),
        "shape",
        "the same structure for all sizes",
        kinds,
        "declare this state with ckpt_schema.infer",
    )


def _either(first: Any, second: Any) -> str:
    return " or ".join(_type(t) for t in (first, second))


def _type(found: OptimizerLeaf | Node | Mismatch | None) -> str:
    if isinstance(found, OptimizerLeaf):
        return str(Leaf(_stored(found), found.leaf.dtype))
    if isinstance(found, Mismatch):
        return found.found
    return told_state(found.type if isinstance(found, Node) else None)
