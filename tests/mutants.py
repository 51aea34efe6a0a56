"""Plants one fault at a time in what a lens does, and sees whether the law suite finds it: ``python tests/mutants.py``.

A fault is an operation on what a plan makes, aimed at one class of leaves in one direction, or a change of an edit in a join.
Kinds are the products of both: an operation that finds nothing to work on in a lens is no kind of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import settings
from pair_schemas import NAMES, pair

import ckpt_schema as cs
from ckpt_schema import leaves
from ckpt_schema.lens.arrays import Rearrange
from ckpt_schema.lens.core import Lens, _Translator
from ckpt_schema.lens.edits import Chain
from ckpt_schema.lens.joins import Join
from ckpt_schema.lens.partial import Cast
from ckpt_schema.lens.plan import Plan
from ckpt_schema.lens.stacks import Stack, Unstack
from ckpt_schema.testing import LAWS, virtual_devices
from ckpt_schema.testing.suite import BrokenLawError, Options, check_law

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
    return [Aim("moved", 0, taken), Aim("kept", taken, kept), Aim("edited", kept, edited), Aim("made", edited, made)]


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
    return np.where(np.abs(x.astype(np.float64)) < float(jnp.finfo(x.dtype).smallest_normal), np.zeros_like(x), x)


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
    impl = {"unsafe_rbg": "rbg", "rbg": "unsafe_rbg", "threefry2x32": "rbg"}[str(jax.random.key_impl(leaf))]
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
    return jax.device_put(leaf, jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec()))


def _stale_mesh(leaf: Any) -> Any:
    sharding = getattr(leaf, "sharding", None)
    if not isinstance(sharding, jax.sharding.NamedSharding):
        return leaf
    other = jax.make_mesh((1, 8), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    return jax.device_put(leaf, jax.sharding.NamedSharding(other, jax.sharding.PartitionSpec()))


OPERATIONS: dict[str, Fault] = {
    "one bit flipped": lambda leaf: _bits(leaf, lambda octet: octet ^ 1) if not leaves.is_scalar(leaf) else leaf + 1,
    "NaN payloads lost": _floats(lambda x: np.where(np.isnan(x), np.full_like(x, np.nan), x)),
    "-0 made 0": _floats(lambda x: np.where(x == 0, np.zeros_like(x), x)),
    "subnormals flushed": _floats(_subnormals_flushed),
    "infinities clipped": _floats(lambda x: np.where(np.isinf(x), jnp.finfo(x.dtype).max, x)),
    "through a narrower float": _floats(lambda x: x.astype("float8_e4m3fn" if x.dtype.itemsize < 4 else "bfloat16")),
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
            if any(isinstance(x, (int, jax.core.Tracer)) for x in results) and not any(map(_is_value, results)):
                return results  # numbers of places, or a trace
            changed = self._change(plan, pool, list(results))
            self.hit = self.hit or any(one is not other for one, other in zip(results, changed, strict=True))
            return changed

        return dataclasses.replace(plan, gather=gather)


def _value_fault(operation: Fault, aim: str) -> Planting:
    """An operation on one leaf of a class."""

    def change(plan: Plan, _: Values, results: Values) -> Values:
        for at in _aimed(plan, aim):
            if _is_value(results[at]):
                changed = operation(results[at])
                if cs.differences(changed, results[at]) or (operation is _copied and aim in ("moved", "kept")):
                    return [*results[:at], changed, *results[at + 1 :]]
        return results

    return Planting(change)


def _is_value(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic)) and not isinstance(leaf, jax.core.Tracer)


def _aimed(plan: Plan, name: str) -> list[int]:
    """The positions in the result of all leaves of a class."""
    aim = next(each for each in aims(plan) if each.name == name)
    order = plan.gather([*range(aims(plan)[-1].stop + (len(plan.restart.likes) if plan.restart else 0))])
    return [at for at, source in enumerate(order) if aim.start <= source < aim.stop]


def _order_fault(exchange: Callable[[list[int]], dict[int, int]], aim: str) -> Planting:
    """Leaves of a class that are alike change places."""

    def change(plan: Plan, _: Values, results: Values) -> Values:
        found = sorted((at for at in _aimed(plan, aim) if _is_value(results[at])), key=lambda at: (_kind(results[at]), at))
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
    return dataclasses.replace(plan, jobs=tuple(dataclasses.replace(job, likes=(None,) * len(job.likes)) for job in plan.jobs))


# --- In the joins  ---


def _turned(edit: Any) -> Any:
    if not isinstance(edit, Rearrange) or len(edit.view) < 2:
        return None
    return Rearrange(edit.source, (edit.view[1], edit.view[0], *edit.view[2:]))


def _other_axis(edit: Any) -> Any:
    return dataclasses.replace(edit, axis=edit.axis + 1) if isinstance(edit, (Stack, Unstack)) else None


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
                edits = (*join.chain.edits[:number], *(found if found == () else (found,)), *join.chain.edits[number + 1 :])
                return (*joins[:at], dataclasses.replace(join, chain=Chain(edits)), *joins[at + 1 :])
    return None


def _exchanged(joins: Sequence[Join], lens: Lens) -> tuple[Join, ...] | None:
    """Two joins of leaves that are declared alike, such as two moments of one optimizer, that change views."""
    by_leaf: dict[Any, int] = {}
    for at, join in enumerate(joins):
        rows = [lens.source.rows[p.row] for p in join.sources], [lens.view.rows[p.row] for p in join.views]
        alike = tuple((row.leaf, row.repeats) for side in rows for row in side)
        if join.plain and (first := by_leaf.setdefault(alike, at)) != at:
            one, other = joins[first], join
            pair = dataclasses.replace(one, views=other.views), dataclasses.replace(other, views=one.views)
            return (*joins[:first], pair[0], *joins[first + 1 : at], pair[1], *joins[at + 1 :])
    return None


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
        return type(self)(lens.source, lens.view, lens.joins, lens.dims, self.fault, forward)


@dataclasses.dataclass(frozen=True)
class Planted:
    """A mutant, and what was planted.

    Attributes:
        kind: Which fault.
        where: In which leaves: ``moved``, ``edited``, ``kept`` from ``onto``, ``made`` by a default; or in the ``joins``.
        way: In ``get``, in ``put``, or in both.
        lens: The faulty lens.
        fault: Tells whether it changed anything.
    """

    kind: str
    where: str
    way: str
    lens: Lens
    fault: Any


def mutants(lens: Lens) -> Iterator[Planted]:
    """Every mutant of a lens."""

    def planted(kind: str, where: str, way: str, fault: Any) -> Planted:
        return Planted(kind, where, way, Mutant(lens.source, lens.view, lens.joins, lens.dims, fault, way == "get"), fault)

    for way, where in itertools.product(("get", "put"), ("moved", "edited", "kept", "made")):
        for kind, operation in OPERATIONS.items():
            yield planted(kind, where, way, _value_fault(operation, where))
        for kind, exchange in ORDERS.items():
            yield planted(kind, where, way, _order_fault(exchange, where))
    for way in ("get", "put"):
        yield planted("a stale leaf of onto", "moved", way, Planting(_stale))
        yield planted("started anew", "kept", way, Planting(_anew))
        yield planted("sharding of onto ignored", "edited", way, _no_likes)
    changed = {kind: _edited(lens.joins, change) for kind, change in EDITS.items()}
    for kind, joins in {**changed, "two leaves exchanged": _exchanged(lens.joins, lens)}.items():
        if joins is not None:
            yield Planted(kind, "joins", "both", Lens(lens.source, lens.view, joins, lens.dims), None)


# --- Whether they are found  ---


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a mutant.

    Attributes:
        planted: The mutant.
        law: The law that it broke, or None where it broke none.
        hit: Whether the fault changed anything at all.
        seconds: How long it took.
    """

    planted: Planted
    law: str | None
    hit: bool
    seconds: float


def attack(planted: Planted) -> Outcome:
    """Tries all laws with their default settings, up to the first that is broken."""
    start, found = time.perf_counter(), None
    for law in LAWS.values():
        if law.kind == "disk" and not getattr(planted.fault, "hit", True):
            break  # there is nothing for it to work on
        try:
            check_law(planted.lens, law, Options(shrinking=0.0))
        except BrokenLawError:
            found = law.name
            break
    hit = found is not None or getattr(planted.fault, "hit", True)
    return Outcome(planted, found, hit, time.perf_counter() - start)


def report(outcomes: Sequence[Outcome]) -> list[str]:
    """A table in Markdown: a line for each kind, how many mutants of it there were, and by which laws they were found."""
    lines = ["| planted | in | mutants | found | by |", "|---|---|---|---|---|"]
    key = lambda each: (each.planted.kind, each.planted.where)  # noqa: E731
    for (kind, where), group in itertools.groupby(sorted(outcomes, key=key), key):
        several = [*group]
        found = [each.law for each in several if each.law]
        laws = ", ".join(name for name in LAWS if name in found)
        lines.append(f"| {kind} | {where} | {len(several)} | {len(found)} | {laws} |")
    return lines


def main() -> int:
    """Prints the table, and the survivors; exits with 1 where fewer than 95 % were found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", nargs="*", default=[*NAMES], help="the model pairs")
    parser.add_argument("--every", type=int, default=1, help="take every n-th mutant only")
    told = parser.parse_args()
    settings.register_profile("mutants", derandomize=True, database=None)
    settings.load_profile("mutants")
    outcomes = [attack(each) for name in told.pairs for each in itertools.islice(mutants(pair(name).lens), 0, None, told.every)]
    real = [each for each in outcomes if each.hit]
    found = [each for each in real if each.law]
    print("\n".join(report(real)))
    kinds = len({(each.planted.kind, each.planted.where) for each in real})
    share = len(found) / len(real)
    seconds = sum(each.seconds for each in outcomes)
    print(f"\n{len(found)} of {len(real)} mutants of {kinds} kinds found, {share:.1%}, in {seconds:.0f} s")
    for each in real:
        if not each.law:
            print(f"survivor: {each.planted.kind}, {each.planted.where}, {each.planted.way}, {each.planted.lens!r}")
    return int(share < 0.95)


if __name__ == "__main__":
    virtual_devices()
    sys.exit(main())
