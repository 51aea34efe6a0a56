"""Faults: one at a time in what a lens does, or in what a layout says; each makes a lens that the law suite is to find.

A fault is an operation on what a plan makes, aimed at one class of leaves in one direction; a change of an edit in a join;
or a mistake in a row of a layout. Kinds are their products. One that finds nothing to work on in a lens is no kind of it.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import ckpt_schema as cs
from ckpt_schema import leaves
from ckpt_schema.lens.core import Lens, _Translator
from ckpt_schema.lens.edits import Chain
from ckpt_schema.lens.joins import Join
from ckpt_schema.lens.partial import Cast, Partial
from ckpt_schema.lens.plan import Plan
from ckpt_schema.lens.rearranged import Rearrange
from ckpt_schema.lens.rules import Rule, Tie
from ckpt_schema.lens.stacks import Stack, Unstack
from ckpt_schema.paths import Index, Pattern
from ckpt_schema.table import Layout, Row, verify_table

# --- What is planted  ---

Values = list[Any]


@dataclasses.dataclass(frozen=True)
class Aim:
    """Which leaves of a result a fault is for.

    Attributes:
        name: ``moved``, ``edited``, ``kept`` (private, from ``onto``) or ``made`` (a default).
        start: Where they begin in the pool of a plan.
        stop: Where they end.
    """

    name: str
    start: int
    stop: int


def aims(plan: Plan) -> list[Aim]:
    """The classes of leaves that a plan gathers."""
    taken = len(plan.source.shapes)
    kept = taken + (len(plan.onto.shapes) if plan.onto is not None else 0)
    edited = kept + sum(len(job.likes) for job in plan.jobs)
    made = edited + len(plan.makes)
    return [
        Aim("moved", 0, taken),
        Aim("kept", taken, kept),
        Aim("edited", kept, edited),
        Aim("made", edited, made),
    ]


Fault = Callable[[Any], Any]
"""From a leaf to another; the leaf itself where the fault has nothing to work on."""


def _numbers(leaf: Any) -> np.ndarray[Any, Any]:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _is_key(leaf: Any) -> bool:
    return not leaves.is_scalar(leaf) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _is_float(leaf: Any) -> bool:
    return not leaves.is_scalar(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating)


def _like(leaf: Any, numbers: Any) -> Any:
    """A leaf of these numbers that is otherwise as the other was."""
    if leaves.is_scalar(leaf):
        return type(leaf)(numbers)
    if _is_key(leaf):
        made = jax.random.wrap_key_data(jnp.asarray(numbers), impl=jax.random.key_impl(leaf))
        return jax.device_put(made, leaf.sharding)
    if isinstance(leaf, jax.Array):
        return jax.device_put(jnp.asarray(numbers), leaf.sharding)
    return np.asarray(numbers)


def _bits(leaf: Any, change: Callable[[Any], Any]) -> Any:
    """The leaf with the bits of its first element changed."""
    numbers = _numbers(leaf).copy()
    octets = numbers.reshape(-1).view(np.uint8)
    if not octets.size:
        return leaf
    octets[0] = change(octets[0])
    return _like(leaf, numbers)


def _floats(change: Callable[[Any], Any]) -> Fault:
    def fault(leaf: Any) -> Any:
        if not _is_float(leaf):
            return leaf
        numbers = _numbers(leaf)
        with np.errstate(all="ignore"):
            return _like(leaf, change(numbers).astype(numbers.dtype))

    return fault


def _arranged(change: Callable[[Any], Any]) -> Fault:
    def fault(leaf: Any) -> Any:
        if leaves.is_scalar(leaf) or not leaf.ndim:
            return leaf
        return _like(leaf, np.ascontiguousarray(change(_numbers(leaf))))

    return fault


def _subnormals_flushed(x: Any) -> Any:
    return np.where(
        np.abs(x.astype(np.float64)) < float(jnp.finfo(x.dtype).smallest_normal),
        np.zeros_like(x),
        x,
    )


def _swapped_axes(x: Any) -> Any:
    return np.swapaxes(x, 0, 1).reshape(x.shape) if x.ndim > 1 else x


def _dtype_changed(leaf: Any) -> Any:
    if _is_key(leaf) or leaves.is_scalar(leaf):
        return leaf
    other = "float16" if _is_float(leaf) else "int16"
    return leaf.astype(other) if str(leaf.dtype) != other else leaf.astype("int8")


def _other_impl(leaf: Any) -> Any:
    if not _is_key(leaf):
        return leaf
    impl = {"unsafe_rbg": "rbg", "rbg": "unsafe_rbg", "threefry2x32": "rbg"}[
        str(jax.random.key_impl(leaf))
    ]
    data = _numbers(leaf)
    data = np.concatenate([data, data], -1) if data.shape[-1] == 2 else data
    return jax.device_put(jax.random.wrap_key_data(jnp.asarray(data), impl=impl), leaf.sharding)


def _copied(leaf: Any) -> Any:
    return leaf.copy() if isinstance(leaf, (jax.Array, np.ndarray)) and not _is_key(leaf) else leaf


def _on_host(leaf: Any) -> Any:
    return np.asarray(leaf) if isinstance(leaf, jax.Array) and not _is_key(leaf) else leaf


def _on_one_device(leaf: Any) -> Any:
    return jax.device_put(leaf, jax.devices()[0]) if isinstance(leaf, jax.Array) else leaf


def _replicated(leaf: Any) -> Any:
    sharding = getattr(leaf, "sharding", None)
    if not isinstance(sharding, jax.sharding.NamedSharding):
        return leaf
    return jax.device_put(
        leaf, jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    )


def _stale_mesh(leaf: Any) -> Any:
    sharding = getattr(leaf, "sharding", None)
    if not isinstance(sharding, jax.sharding.NamedSharding):
        return leaf
    other = jax.make_mesh((1, 8), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    return jax.device_put(leaf, jax.sharding.NamedSharding(other, jax.sharding.PartitionSpec()))


OPERATIONS: dict[str, Fault] = {
    "one bit flipped": lambda leaf: (
        _bits(leaf, lambda octet: octet ^ 1) if not leaves.is_scalar(leaf) else leaf + 1
    ),
    "NaN payloads lost": _floats(lambda x: np.where(np.isnan(x), np.full_like(x, np.nan), x)),
    "-0 made 0": _floats(lambda x: np.where(x == 0, np.zeros_like(x), x)),
    "subnormals flushed": _floats(_subnormals_flushed),
    "infinities clipped": _floats(lambda x: np.where(np.isinf(x), jnp.finfo(x.dtype).max, x)),
    "through a narrower float": _floats(
        lambda x: x.astype("float8_e4m3fn" if x.dtype.itemsize < 4 else "bfloat16")
    ),
    "doubled": _floats(lambda x: x + x),
    "rolled": _arranged(lambda x: np.roll(x, 1, 0)),
    "reversed": _arranged(lambda x: x[::-1]),
    "axes swapped": _arranged(_swapped_axes),
    "last element repeated": _arranged(lambda x: np.concatenate([x[:-1], x[:1]]) if len(x) else x),
    "zeroed": _arranged(np.zeros_like),
    "an axis more": _arranged(lambda x: x[None]),
    "another dtype": _dtype_changed,
    "another key implementation": _other_impl,
    "copied": _copied,
    "moved to the host": _on_host,
    "gathered on one device": _on_one_device,
    "replicated": _replicated,
    "on a stale mesh": _stale_mesh,
}


class Planting:
    """A fault in plans, and whether it has changed anything yet: one that never does is no mutant."""

    def __init__(self, change: Callable[[Plan, Values, Values], Values]) -> None:
        """Keeps what makes other results of the pool and the results of a plan."""
        self._change, self.hit = change, False

    def __call__(self, plan: Plan) -> Plan:
        """The plan with the fault."""

        def gather(pool: Values) -> Sequence[Any]:
            results = list(plan.gather(pool))
            if any(isinstance(x, (int, jax.core.Tracer)) for x in results) and not any(
                map(_is_value, results)
            ):
                return results  # numbers of places, or a trace
            changed = self._change(plan, pool, list(results))
            self.hit = self.hit or any(
                one is not other for one, other in zip(results, changed, strict=True)
            )
            return changed

        return dataclasses.replace(plan, gather=gather)


class _Replanned:
    """A plan that is made otherwise, and whether that was so for any."""

    def __init__(self, change: Callable[[Plan], Plan]) -> None:
        """Keeps what makes the other plan."""
        self._change, self.hit = change, False

    def __call__(self, plan: Plan) -> Plan:
        """The plan with the fault."""
        changed = self._change(plan)
        self.hit = self.hit or (changed.jobs, changed.same) != (plan.jobs, plan.same)
        return changed


def _value_fault(operation: Fault, aim: str) -> Planting:
    """An operation on one leaf of a class."""

    def change(plan: Plan, _: Values, results: Values) -> Values:
        for at in _aimed(plan, aim):
            if _is_value(results[at]):
                changed = operation(results[at])
                if cs.differences(changed, results[at]) or (
                    operation is _copied and aim in ("moved", "kept")
                ):
                    return [*results[:at], changed, *results[at + 1 :]]
        return results

    return Planting(change)


def _is_value(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic)) and not isinstance(
        leaf, jax.core.Tracer
    )


def _aimed(plan: Plan, name: str) -> list[int]:
    """The positions in the result of all leaves of a class."""
    aim = next(each for each in aims(plan) if each.name == name)
    order = plan.gather(
        [*range(aims(plan)[-1].stop + (len(plan.restart.likes) if plan.restart else 0))]
    )
    return [at for at, source in enumerate(order) if aim.start <= source < aim.stop]


def _order_fault(exchange: Callable[[list[int]], dict[int, int]], aim: str) -> Planting:
    """Leaves of a class that are alike change places."""

    def change(plan: Plan, _: Values, results: Values) -> Values:
        found = sorted(
            (at for at in _aimed(plan, aim) if _is_value(results[at])),
            key=lambda at: (_kind(results[at]), at),
        )
        for _, alike in itertools.groupby(found, lambda at: _kind(results[at])):
            places = exchange([*alike])
            if any(cs.differences(results[at], results[other]) for at, other in places.items()):
                return [results[places.get(at, at)] for at in range(len(results))]
        return results

    return Planting(change)


def _kind(leaf: Any) -> str:
    return f"{type(leaf).__name__} {leaves.signature(leaf)}"


ORDERS: dict[str, Callable[[list[int]], dict[int, int]]] = {
    "two swapped": lambda at: {at[0]: at[1], at[1]: at[0]} if len(at) > 1 else {},
    "first and last swapped": lambda at: {at[0]: at[-1], at[-1]: at[0]} if len(at) > 2 else {},
    "one twice": lambda at: {at[0]: at[1]} if len(at) > 1 else {},
    "off by one": lambda at: dict(zip(at, [*at[1:], at[0]], strict=True)) if len(at) > 2 else {},
    "in reverse": lambda at: dict(zip(at, at[::-1], strict=True)) if len(at) > 2 else {},
}


def _stale(plan: Plan, pool: Values, results: Values) -> Values:
    """A leaf of ``onto`` in the place of what is translated."""
    start = len(plan.source.shapes)
    for at in (at for name in ("edited", "moved") for at in _aimed(plan, name)):
        if (
            plan.onto is not None
            and start + at < start + len(plan.onto.shapes)
            and cs.differences(results[at], pool[start + at])
        ):
            return [*results[:at], pool[start + at], *results[at + 1 :]]
    return results


def _anew(plan: Plan, _: Values, results: Values) -> Values:
    """All private leaves of ``onto`` made anew."""
    kept = [at for at in _aimed(plan, "kept") if _is_value(results[at])]
    zeros = {at: _like(results[at], np.zeros_like(_numbers(results[at]))) for at in kept}
    return [zeros.get(at, x) for at, x in enumerate(results)]


def _no_likes(plan: Plan) -> Plan:
    """Edits that do not care how ``onto`` is sharded."""
    return dataclasses.replace(
        plan,
        jobs=tuple(dataclasses.replace(job, likes=(None,) * len(job.likes)) for job in plan.jobs),
    )


def _unverified(plan: Plan) -> Plan:
    """Casts that wrap, scalings that round, padding that is lost, ties of what differs."""

    def careless(edit: Any) -> Any:
        if not isinstance(edit, Partial):
            return edit
        kind = type(type(edit).__name__, (type(edit),), {"found": lambda *_: None, "__slots__": ()})
        return kind(*(getattr(edit, field.name) for field in dataclasses.fields(edit)))

    jobs = [
        dataclasses.replace(job, chain=Chain(tuple(map(careless, job.chain.edits))))
        for job in plan.jobs
    ]
    return dataclasses.replace(plan, jobs=tuple(jobs), same=())


# --- In the joins  ---


def _turned(edit: Any) -> Any:
    if not isinstance(edit, Rearrange) or len(edit.view) < 2:
        return None
    return Rearrange(edit.source, (edit.view[1], edit.view[0], *edit.view[2:]))


def _other_axis(edit: Any) -> Any:
    return (
        dataclasses.replace(edit, axis=edit.axis + 1)
        if isinstance(edit, (Stack, Unstack))
        else None
    )


def _wider(edit: Any) -> Any:
    return Cast(edit.source, "uint8") if isinstance(edit, Cast) else None


EDITS: dict[str, Callable[[Any], Any]] = {
    "an edit dropped": lambda edit: (),
    "an edit undone": lambda edit: edit.inverse,
    "axes of an edit swapped": _turned,
    "stacked on the wrong axis": _other_axis,
    "cast to another dtype": _wider,
}


def _edited(joins: Sequence[Join], change: Callable[[Any], Any]) -> tuple[Join, ...] | None:
    """The joins with the first edit changed that a change is for."""
    for at, join in enumerate(joins):
        for number, edit in enumerate(join.chain.edits):
            found = change(edit)
            if found is not None and found != edit:
                edits = (
                    *join.chain.edits[:number],
                    *(found if found == () else (found,)),
                    *join.chain.edits[number + 1 :],
                )
                return (
                    *joins[:at],
                    dataclasses.replace(join, chain=Chain(edits)),
                    *joins[at + 1 :],
                )
    return None


def _exchanged(joins: Sequence[Join], lens: Lens) -> tuple[Join, ...] | None:
    """Two joins of leaves that are declared alike, such as two moments of one optimizer, that change views."""
    by_leaf: dict[Any, int] = {}
    for at, join in enumerate(joins):
        rows = (
            [lens.source.rows[p.row] for p in join.sources],
            [lens.view.rows[p.row] for p in join.views],
        )
        alike = tuple((row.leaf, row.repeats) for side in rows for row in side)
        first = by_leaf.setdefault(alike, at)
        one, other = joins[first], join
        if join.plain and one.views != other.views:
            pair = (
                dataclasses.replace(one, views=other.views),
                dataclasses.replace(other, views=one.views),
            )
            return (*joins[:first], pair[0], *joins[first + 1 : at], pair[1], *joins[at + 1 :])
    return None


# --- In the layouts  ---


def _renamed(key: Pattern, change: Callable[[Any], Any]) -> Pattern | None:
    """The pattern, its last segment that is for it changed."""
    for at in reversed(range(len(key))):
        found = change(key[at])
        if found is not None:
            return (*key[:at], found, *key[at + 1 :])
    return None


def _with_key(change: Callable[[Any], Any]) -> Callable[[Row], Row | None]:
    def mistake(row: Row) -> Row | None:
        key = _renamed(row.key, change)
        return None if key is None else dataclasses.replace(row, key=key)

    return mistake


def _index(key: Any, **other: Any) -> Index | None:
    return dataclasses.replace(key, **other) if isinstance(key, Index) else None


def _dims_exchanged(row: Row) -> Row | None:
    dims = row.leaf.dims
    if len(dims) < 2 or dims[0] == dims[1]:
        return None
    return dataclasses.replace(
        row, leaf=dataclasses.replace(row.leaf, dims=(dims[1], dims[0], *dims[2:]))
    )


def _other_dtype(row: Row) -> Row | None:
    other = {
        "float32": "bfloat16",
        "int32": "uint32",
        "uint32": "int32",
        "key<fry>": "key<rbg>",
        "key<urbg>": "key<rbg>",
    }
    return dataclasses.replace(
        row, leaf=dataclasses.replace(row.leaf, dtype=other.get(row.leaf.dtype, "float32"))
    )


def _stacked_elsewhere(row: Row) -> Row | None:
    if not row.repeats or row.repeats[0].axis is None or not row.leaf.dims:
        return None
    moved = dataclasses.replace(
        row.repeats[0], axis=(row.repeats[0].axis + 1) % (len(row.leaf.dims) + 1)
    )
    return dataclasses.replace(row, repeats=(moved, *row.repeats[1:]))


def _of_another_kind(row: Row) -> Row | None:
    return dataclasses.replace(row, kind=nnx.Intermediate) if isinstance(row.kind, type) else None


MISTAKES: dict[str, Callable[[Row], Row | None]] = {
    "dims exchanged": _dims_exchanged,
    "another dtype declared": _other_dtype,
    "another stack axis": _stacked_elsewhere,
    "another Variable type": _of_another_kind,
    "a key misspelt": _with_key(lambda key: f"{key}_" if isinstance(key, str) else None),
    "layers numbered from one": _with_key(lambda key: _index(key, first=1)),
    "strings for int keys": _with_key(lambda key: _index(key, text=not getattr(key, "text", True))),
}


def _mistaken(table: Layout, mistake: Callable[[Row], Row | None]) -> Layout | None:
    """The layout with a mistake in the first row that there is one for."""
    for at, row in enumerate(table.rows):
        found = mistake(row)
        if found is not None:
            return dataclasses.replace(table, rows=(*table.rows[:at], found, *table.rows[at + 1 :]))
    return None


def _keys_exchanged(
    table: Layout, *, alike: bool, tied: Container[frozenset[Any]] = ()
) -> Layout | None:
    """Two leaves, declared alike or not, each with the key of the other; tied ones are equal, so that theirs say the same."""
    of = lambda row: (row.leaf, row.repeats, row.kind, row.body is None)  # noqa: E731
    for one, other in itertools.combinations(range(len(table.rows)), 2):
        a, b = table.rows[one], table.rows[other]
        if frozenset((a.path, b.path)) in tied:
            continue
        if (of(a) == of(b)) == alike and a.unrolled == b.unrolled and a.held == b.held == ():
            rows = list(table.rows)
            rows[one], rows[other] = (
                dataclasses.replace(a, key=b.key),
                dataclasses.replace(b, key=a.key),
            )
            return dataclasses.replace(table, rows=tuple(rows))
    return None


def _forgotten(table: Layout) -> Layout | None:
    """A leaf that is not declared."""
    return dataclasses.replace(table, rows=table.rows[1:]) if len(table.rows) > 1 else None


def _layouts(table: Layout, rules: Sequence[Rule]) -> Iterator[tuple[str, Layout]]:
    """Every layout with a mistake."""
    tied = {frozenset((rule.copy, rule.of)) for rule in rules if isinstance(rule, Tie)}
    found = {kind: _mistaken(table, mistake) for kind, mistake in MISTAKES.items()}
    found |= {"keys of two leaves alike exchanged": _keys_exchanged(table, alike=True, tied=tied)}
    found |= {
        "keys of two leaves exchanged": _keys_exchanged(table, alike=False),
        "a leaf forgotten": _forgotten(table),
    }
    yield from ((kind, wrong) for kind, wrong in found.items() if wrong is not None)


# --- Mutants  ---


class _Faulty(_Translator):
    """A direction of a lens with a fault in its plans."""

    def __init__(self, *of: Any, fault: Callable[[Plan], Plan]) -> None:
        """Keeps what any direction has, and the fault."""
        super().__init__(*of)
        self._fault = fault

    def compile(self, tree: Any, onto: Any, *, abstract: bool | None = None) -> Any:
        """The plan, the fault planted."""
        plan, *rest = super().compile(tree, onto, abstract=abstract)
        return self._fault(plan), *rest


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Mutant(Lens):
    """A lens with a fault in its ``get`` (forward) or its ``put``."""

    fault: Callable[[Plan], Plan] = lambda plan: plan
    forward: bool = True

    @functools.cached_property
    def _forward(self) -> _Translator:
        of = self.source, self.view, self.joins, self.dims
        return _Faulty(*of, fault=self.fault) if self.forward else _Translator(*of)

    @functools.cached_property
    def _backward(self) -> _Translator:
        of = self.view, self.source, tuple(join.inverse for join in self.joins), self.dims
        return _Translator(*of) if self.forward else _Faulty(*of, fault=self.fault)

    def bind(self, **dims: int) -> Mutant:
        """The mutant for fixed sizes."""
        return self._like(super().bind(**dims), forward=self.forward)

    def __invert__(self) -> Mutant:
        """The mutant in the other direction."""
        return self._like(super().__invert__(), forward=not self.forward)

    def _like(self, lens: Lens, *, forward: bool) -> Mutant:
        return type(self)(*_parts(lens), self.fault, forward)


class OneSided(Mutant):
    """A mutant whose inverse has no fault."""

    def __invert__(self) -> Any:
        """A lens that is none of it."""
        return Mutant(*_parts(Lens(*_parts(self)).__invert__()))


def _parts(lens: Lens) -> Any:
    return lens.source, lens.view, lens.joins, lens.dims, lens.derivations


class _Lenient(_Translator):
    """A direction of a lens that casts what has another dtype than the tree before it had."""

    good: Any = None

    def __call__(self, tree: Any, onto: Any, *, donate: bool, drop: bool = False) -> Any:
        """What is made of the tree, or of the tree after a cast."""
        try:
            found = super().__call__(tree, onto, donate=donate, drop=drop)
        except cs.ConformanceError:
            if jax.tree.structure(tree) != jax.tree.structure(self.good):
                raise
            tree = jax.tree.map(_cast_like, tree, self.good)
            return super().__call__(tree, onto, donate=donate, drop=drop)
        self.good = tree
        return found


def _cast_like(leaf: Any, good: Any) -> Any:
    return leaf.astype(good.dtype) if isinstance(leaf, np.ndarray) else leaf


class Lenient(Lens):
    """A lens whose ``get`` casts."""

    @functools.cached_property
    def _forward(self) -> _Translator:
        return _Lenient(self.source, self.view, self.joins, self.dims)


@dataclasses.dataclass(frozen=True)
class Planted:
    """A mutant, and what was planted.

    Attributes:
        kind: Which fault.
        where: In which leaves: ``moved``, ``edited``, ``kept`` from ``onto``, ``made`` by a default; or in the ``joins``, or in
            a ``layout``.
        way: In ``get``, in ``put``, or in both; or of which side the layout is.
        lens: The faulty lens; None where `ckpt_schema.derive` refuses the mistake.
        fault: Tells whether it changed anything.
    """

    kind: str
    where: str
    way: str
    lens: Lens | None
    fault: Any = None


def mutants(lens: Lens, rules: Sequence[Rule] = ()) -> Iterator[Planted]:
    """Every mutant of a lens, which was derived by these rules."""
    yield from _in_plans(lens)
    changed = {kind: _edited(lens.joins, change) for kind, change in EDITS.items()}
    for kind, joins in {**changed, "two leaves exchanged": _exchanged(lens.joins, lens)}.items():
        if joins is not None:
            yield Planted(kind, "joins", "both", dataclasses.replace(lens, joins=joins))
    for kind, wrong in _layouts(lens.source, rules):
        yield Planted(kind, "layout", "source", _derived(wrong, lens.view, rules, lens.dims))
    for kind, wrong in _layouts(lens.view, rules):
        yield Planted(kind, "layout", "view", _derived(lens.source, wrong, rules, lens.dims))


def _derived(
    source: Layout, view: Layout, rules: Sequence[Rule], dims: Mapping[str, int]
) -> Lens | None:
    try:
        return cs.derive(verify_table(source), verify_table(view), rules=rules, dims=dims)
    except cs.CkptSchemaError:
        return None


def _in_plans(lens: Lens) -> Iterator[Planted]:
    def planted(kind: str, where: str, way: str, fault: Any, of: type[Mutant] = Mutant) -> Planted:
        return Planted(
            kind,
            where,
            way,
            of(*_parts(lens), fault, way == "get"),
            fault,
        )

    for way, where in itertools.product(("get", "put"), ("moved", "edited", "kept", "made")):
        for kind, operation in OPERATIONS.items():
            yield planted(kind, where, way, _value_fault(operation, where))
        for kind, exchange in ORDERS.items():
            yield planted(kind, where, way, _order_fault(exchange, where))
    yield Planted("another dtype accepted", "moved", "get", Lenient(*_parts(lens)))
    for way in ("get", "put"):
        yield planted("a stale leaf of onto", "moved", way, Planting(_stale))
        yield planted("started anew", "kept", way, Planting(_anew))
        yield planted("sharding of onto ignored", "edited", way, _Replanned(_no_likes))
        yield planted("values not verified", "edited", way, _Replanned(_unverified))
        yield planted(
            "not in the inverse",
            "moved",
            way,
            _value_fault(OPERATIONS["one bit flipped"], "moved"),
            OneSided,
        )
