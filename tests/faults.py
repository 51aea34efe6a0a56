"""Faults: one at a time in what a lens does, or in what a layout says; each makes a lens that the law suite is to find.

A fault is an operation on what a plan makes, aimed at one class of leaves in one direction; a change of a task in one
direction; a change of a cell in a join; or a mistake in a row of a layout. Kinds are their products. One that finds nothing
to work on in a lens is no kind of it.
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
from ckpt_schema._layouts import leaves
from ckpt_schema._layouts.paths import Index, Pattern
from ckpt_schema._layouts.table import Layout, Row, verify_table
from ckpt_schema._lens.arrays.blocks import Block, Task
from ckpt_schema._lens.cells import Cell, Constant, Digit, Geometry
from ckpt_schema._lens.codecs import Codec, Exact, inverted
from ckpt_schema._lens.derive.joins import Join
from ckpt_schema._lens.lens import Lens
from ckpt_schema._lens.plan.plan import Job, Plan
from ckpt_schema._lens.plan.translation import Translator
from ckpt_schema._lens.rules import Rule, Tie

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
        self.hit = self.hit or changed is not plan
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
    if all(like is None for job in plan.jobs for like in job.likes):
        return plan
    return dataclasses.replace(
        plan,
        jobs=tuple(dataclasses.replace(job, likes=(None,) * len(job.likes)) for job in plan.jobs),
    )


class _Unverified(Plan):
    """A plan that looks at no values: casts wrap, scalings round, padding and copies are lost."""

    __slots__ = ()

    def _verify(self, pool: Sequence[Any], kept: Sequence[Any]) -> None:
        del pool, kept


def _unverified(plan: Plan) -> Plan:
    """The plan, its values not verified; itself where none are."""
    if not plan.same and not any(map(_verifies, plan.jobs)):
        return plan
    told = {field.name: getattr(plan, field.name) for field in dataclasses.fields(plan)}
    return _Unverified(**{**told, "same": ()})


def _verifies(job: Job) -> bool:
    task = job.task
    return bool(task.checks) or any(copy.block.codec or copy.compares for copy in task.copies)


# --- In the tasks  ---


Tampering = Callable[[Job], Job | None]
"""From a job to another; None where a fault has nothing to work on."""


def _first_job(change: Tampering) -> Callable[[Plan], Plan]:
    """The plan, the first job that a change is for being changed."""

    def changed(plan: Plan) -> Plan:
        for at, job in enumerate(plan.jobs):
            found = change(job)
            if found is not None and found != job:
                jobs = (*plan.jobs[:at], found, *plan.jobs[at + 1 :])
                return dataclasses.replace(plan, jobs=jobs)
        return plan

    return changed


def _task(change: Callable[[Task], Task | None]) -> Callable[[Plan], Plan]:
    def changed(job: Job) -> Job | None:
        task = change(job.task)
        return None if task is None else dataclasses.replace(job, task=task)

    return _first_job(changed)


def _block(change: Callable[[Block], Block | None]) -> Callable[[Plan], Plan]:
    """The plan, the first block that a change is for being changed in all copies by it."""

    def changed(task: Task) -> Task | None:
        for block in dict.fromkeys(copy.block for copy in task.copies if not copy.compares):
            found = change(block)
            if found is not None and found != block:
                copies = tuple(
                    dataclasses.replace(copy, block=found) if copy.block == block else copy
                    for copy in task.copies
                )
                return dataclasses.replace(task, copies=copies)
        return None

    return _task(changed)


def _without_a_copy(task: Task) -> Task | None:
    return dataclasses.replace(task, copies=task.copies[1:]) if len(task.copies) > 1 else None


def _turns_exchanged(task: Task) -> Task | None:
    """Two layers of a stack, each in the place of the other."""
    turning = [at for at, copy in enumerate(task.copies) if copy.turns and not copy.compares]
    for one, other in itertools.combinations(turning, 2):
        a, b = task.copies[one], task.copies[other]
        if a.block == b.block and a.turns != b.turns:
            copies = [*task.copies]
            copies[one] = dataclasses.replace(a, turns=b.turns)
            copies[other] = dataclasses.replace(b, turns=a.turns)
            return dataclasses.replace(task, copies=tuple(copies))
    return None


def _inputs_exchanged(job: Job) -> Job | None:
    """Two leaves that are read and are of one kind, each for the other."""
    for one, other in itertools.combinations(range(len(job.inputs)), 2):
        if job.task.inputs[one] == job.task.inputs[other]:
            inputs = [*job.inputs]
            inputs[one], inputs[other] = inputs[other], inputs[one]
            return dataclasses.replace(job, inputs=tuple(inputs))
    return None


def _other_fillings(task: Task) -> Task:
    fillings = (dataclasses.replace(each, bits=each.bits ^ 1) for each in task.fillings)
    return dataclasses.replace(task, fillings=tuple(fillings))


def _no_fillings(task: Task) -> Task:
    """What no leaf has is zero, whatever was said."""
    return dataclasses.replace(
        task, fillings=tuple(each for each in task.fillings if not each.bits)
    )


def _uncompared(plan: Plan) -> Plan:
    """Copies that nobody holds against what they are copies of."""
    compared = any(copy.compares for job in plan.jobs for copy in job.task.copies)
    if not plan.same and not compared:
        return plan
    jobs: list[Job] = []
    for job in plan.jobs:
        copies = tuple(copy for copy in job.task.copies if not copy.compares)
        jobs.append(dataclasses.replace(job, task=dataclasses.replace(job.task, copies=copies)))
    return dataclasses.replace(plan, jobs=tuple(jobs), same=())


def _axes_turned(block: Block) -> Block | None:
    """A block of which two steps go where the other one should."""
    for one, other in itertools.combinations(range(len(block.steps)), 2):
        a, b = block.steps[one], block.steps[other]
        if not a.is_turn and not b.is_turn and None not in (a.at[1], b.at[1]):
            steps = [*block.steps]
            steps[one] = dataclasses.replace(a, at=(a.at[0], b.at[1]))
            steps[other] = dataclasses.replace(b, at=(b.at[0], a.at[1]))
            return dataclasses.replace(block, steps=tuple(steps))
    return None


def _step_reversed(block: Block) -> Block | None:
    """A block of which one step goes the other way."""
    for number, step in enumerate(block.steps):
        spot = step.at[1]
        if spot is not None and not step.is_turn and step.size > 1:
            axis, stride = spot
            start = list(block.starts[1])
            start[axis] += (step.size - 1) * stride
            back = dataclasses.replace(step, at=(step.at[0], (axis, -stride)))
            steps = (*block.steps[:number], back, *block.steps[number + 1 :])
            return dataclasses.replace(block, starts=(block.starts[0], tuple(start)), steps=steps)
    return None


def _step_left_out(block: Block) -> Block | None:
    """A block that copies nothing but the first of some elements."""
    for number, step in enumerate(block.steps):
        if not step.is_turn and step.size > 1:
            steps = (*block.steps[:number], *block.steps[number + 1 :])
            return dataclasses.replace(block, steps=steps)
    return None


def _step_short(block: Block) -> Block | None:
    """A block that leaves out the last of some elements."""
    for number, step in enumerate(block.steps):
        if not step.is_turn and step.size > 1:
            short = dataclasses.replace(step, size=step.size - 1)
            steps = (*block.steps[:number], short, *block.steps[number + 1 :])
            return dataclasses.replace(block, steps=steps)
    return None


def _starts_late(side: int) -> Callable[[Block], Block | None]:
    def changed(block: Block) -> Block | None:
        if not block.starts[side]:
            return None
        starts = list(block.starts)
        starts[side] = (starts[side][0] + 1, *starts[side][1:])
        return dataclasses.replace(block, starts=(starts[0], starts[1]))

    return changed


TASKS: dict[str, Callable[[Plan], Plan]] = {
    "a copy left out": _task(_without_a_copy),
    "two layers exchanged": _task(_turns_exchanged),
    "two inputs exchanged": _first_job(_inputs_exchanged),
    "fillings left out": _task(_no_fillings),
    "other fillings": _task(_other_fillings),
    "padding not verified": _task(lambda task: dataclasses.replace(task, checks=())),
    "copies not compared": _uncompared,
    "axes of a block turned": _block(_axes_turned),
    "a step of a block reversed": _block(_step_reversed),
    "a step of a block left out": _block(_step_left_out),
    "a step of a block too short": _block(_step_short),
    "a block read too late": _block(_starts_late(0)),
    "a block written too late": _block(_starts_late(1)),
    "a codec left out": _block(lambda block: dataclasses.replace(block, codec=())),
    "a codec doubled": _block(
        lambda block: dataclasses.replace(block, codec=_doubled(block.codec))
    ),
}


# --- In the joins  ---


Mistake = Callable[[Cell], tuple[Cell, ...] | None]
"""From a cell to what stands in its place; None where a fault has nothing to work on."""


def _doubled(codec: Codec) -> Codec:
    """The codec, its factors applied twice."""
    return tuple(
        dataclasses.replace(word, exponent=2 * word.exponent) if isinstance(word, Exact) else word
        for word in codec
    )


def _coded(change: Callable[[Codec], Codec]) -> Mistake:
    """The cell with another codec, where it has one."""

    def mistake(cell: Cell) -> tuple[Cell, ...] | None:
        return (dataclasses.replace(cell, codec=change(cell.codec)),) if cell.codec else None

    return mistake


def _other_dtype_made(codec: Codec) -> Codec:
    return tuple(
        dataclasses.replace(word, view="uint8")
        if isinstance(word, Exact) and word.source != word.view
        else word
        for word in codec
    )


def _shaped(change: Callable[[Geometry], Geometry | None]) -> Mistake:
    """The cell with another geometry, where that joins two rows."""

    def mistake(cell: Cell) -> tuple[Cell, ...] | None:
        made = None if cell.is_constant else change(cell.geometry)
        return None if made is None else (dataclasses.replace(cell, geometry=made),)

    return mistake


def _places_exchanged(geometry: Geometry) -> Geometry | None:
    """Two digits, each where the other one should go on the view's side."""
    for one, other in itertools.combinations(range(len(geometry.digits)), 2):
        a, b = geometry.digits[one], geometry.digits[other]
        if None not in (a.at[1], b.at[1]) and a.at[1] != b.at[1]:
            digits = [*geometry.digits]
            digits[one] = Digit(a.size, (a.at[0], b.at[1]))
            digits[other] = Digit(b.size, (b.at[0], a.at[1]))
            return Geometry(geometry.starts, tuple(digits))
    return None


def _interleaved(geometry: Geometry) -> Geometry | None:
    """Two factors of one axis, the minor one before the major one."""
    for one, other in itertools.permutations(range(len(geometry.digits)), 2):
        outer, inner = geometry.digits[one], geometry.digits[other]
        for side in (0, 1):
            wide, narrow = outer.at[side], inner.at[side]
            if wide is None or narrow is None or wide[0] != narrow[0]:
                continue
            if wide[1] == narrow[1] * inner.size:
                digits = [*geometry.digits]
                digits[one] = _placed(outer, side, (wide[0], narrow[1]))
                digits[other] = _placed(inner, side, (wide[0], narrow[1] * outer.size))
                return Geometry(geometry.starts, tuple(digits))
    return None


def _placed(digit: Digit, side: int, place: Any) -> Digit:
    """The digit with another place on a side."""
    at = list(digit.at)
    at[side] = place
    return Digit(digit.size, (at[0], at[1]))


def turned_back(is_wanted: Callable[[Digit], bool]) -> Callable[[Geometry], Geometry | None]:
    """The geometry, the first digit that is wanted going the other way on the view's side."""

    def changed(geometry: Geometry) -> Geometry | None:
        for number, digit in enumerate(geometry.digits):
            place = digit.at[1]
            if place is None or not is_wanted(digit):
                continue
            axis, stride = place
            start = list(geometry.starts[1])
            start[axis] = start[axis] + stride * (digit.size - 1)
            digits = [*geometry.digits]
            digits[number] = _placed(digit, 1, (axis, -stride))
            return Geometry((geometry.starts[0], tuple(start)), tuple(digits))
        return None

    return changed


def _goes_back(digit: Digit) -> bool:
    return any(place is not None and not place[1].nonnegative for place in digit.at)


def _way_back(geometry: Geometry) -> Geometry | None:
    """The sides exchanged, where both have as many axes."""
    source, view = geometry.starts
    return ~geometry if len(source) == len(view) and ~geometry != geometry else None


def _started_late(side: int) -> Callable[[Geometry], Geometry | None]:
    """The geometry, starting one layer, or one element, further on."""

    def changed(geometry: Geometry) -> Geometry | None:
        starts = list(geometry.starts)
        if not starts[side]:
            return None
        starts[side] = (starts[side][0] + 1, *starts[side][1:])
        return Geometry((starts[0], starts[1]), geometry.digits)

    return changed


def _digit_left_out(geometry: Geometry) -> Geometry | None:
    """Nothing but the first step of a digit."""
    return Geometry(geometry.starts, geometry.digits[1:]) if geometry.digits else None


def _one_for_all(geometry: Geometry) -> Geometry | None:
    """One element of the source for a whole axis of the view."""
    if not geometry.digits:
        return None
    return Geometry(geometry.starts, (_placed(geometry.digits[0], 0, None), *geometry.digits[1:]))


def _constant(change: Callable[[Constant], Constant]) -> Mistake:
    """The cell with another constant, where it has one."""

    def mistake(cell: Cell) -> tuple[Cell, ...] | None:
        ends = [
            change(end) if isinstance(end, Constant) and end.is_fill else end
            for end in (cell.source, cell.view)
        ]
        return (dataclasses.replace(cell, source=ends[0], view=ends[1]),)

    return mistake


def _other_fill(constant: Constant) -> Constant:
    assert isinstance(constant.value, leaves.Fill)
    return dataclasses.replace(constant, value=leaves.Fill(constant.value.value + 1))


CELLS: dict[str, Mistake] = {
    "a cell dropped": lambda cell: None if cell.is_constant else (),
    "padding dropped": lambda cell: () if cell.is_constant else None,
    "a copy dropped": lambda cell: () if any(cell.compares) else None,
    "a codec dropped": _coded(lambda codec: ()),
    "a codec undone": _coded(inverted),
    "a factor doubled": _coded(_doubled),
    "cast to another dtype": _coded(_other_dtype_made),
    "a geometry undone": _shaped(_way_back),
    "axes of a cell exchanged": _shaped(_places_exchanged),
    "factors interleaved": _shaped(_interleaved),
    "a flip removed": _shaped(turned_back(_goes_back)),
    "a flip added": _shaped(turned_back(lambda digit: not _goes_back(digit))),
    "read too late": _shaped(_started_late(0)),
    "written too late": _shaped(_started_late(1)),
    "a digit left out": _shaped(_digit_left_out),
    "one element for all": _shaped(_one_for_all),
    "another fill": _constant(_other_fill),
    "a fill that is a default": _constant(lambda end: dataclasses.replace(end, is_fill=False)),
}


def with_mistake(joins: Sequence[Join], mistake: Mistake) -> tuple[Join, ...] | None:
    """The joins with the first cell changed that a mistake is for; a join of no cells is none."""
    for at, join in enumerate(joins):
        for number, cell in enumerate(join.cells):
            found = mistake(cell)
            if found is not None and found != (cell,):
                cells = (*join.cells[:number], *found, *join.cells[number + 1 :])
                changed = dataclasses.replace(join, cells=cells)
                return (*joins[:at], *([changed] if changed.pairs else []), *joins[at + 1 :])
    return None


def _turned_layers(joins: Sequence[Join], lens: Lens) -> tuple[Join, ...] | None:
    """Layers that are counted from the last on the view's side."""
    for at, join in enumerate(joins):
        for number, cell in enumerate(join.cells):
            if not isinstance(cell.source, int) or not isinstance(cell.view, int):
                continue
            counts = [
                len(rows[end].unrolled)
                for rows, end in ((lens.source.rows, cell.source), (lens.view.rows, cell.view))
            ]

            def along_key(digit: Digit, counts: list[int] = counts) -> bool:
                both = zip(digit.at, counts, strict=True)
                return any(place is not None and place[0] < count for place, count in both)

            made = turned_back(along_key)(cell.geometry)
            if made is not None:
                changed = dataclasses.replace(cell, geometry=made)
                cells = (*join.cells[:number], changed, *join.cells[number + 1 :])
                return (*joins[:at], dataclasses.replace(join, cells=cells), *joins[at + 1 :])
    return None


def _parts_exchanged(joins: Sequence[Join], lens: Lens) -> tuple[Join, ...] | None:
    """Two cells of one join that have the same digits, each starting where the other one should on the view's side."""
    del lens
    for at, join in enumerate(joins):
        for one, other in itertools.combinations(range(len(join.cells)), 2):
            a, b = join.cells[one], join.cells[other]
            if a.is_constant or b.is_constant or any((*a.compares, *b.compares)):
                continue
            if a.geometry.digits != b.geometry.digits:
                continue
            cells = list(join.cells)
            cells[one], cells[other] = _ending_as(a, b), _ending_as(b, a)
            return (*joins[:at], dataclasses.replace(join, cells=tuple(cells)), *joins[at + 1 :])
    return None


def _ending_as(cell: Cell, other: Cell) -> Cell:
    """A cell that has the other's elements of the view."""
    starts = cell.geometry.starts[0], other.geometry.starts[1]
    return dataclasses.replace(
        cell, view=other.view, geometry=Geometry(starts, cell.geometry.digits)
    )


def _padded_in_front(joins: Sequence[Join], lens: Lens) -> tuple[Join, ...] | None:
    """Padding of a leaf that stands before what is padded, in all joins that make it."""
    del lens
    made = {join: _in_front(join) for join in joins}
    row = next((join.views for join, front in made.items() if front is not None), None)
    if row is None:
        return None
    return tuple(made[join] or join if join.views == row else join for join in joins)


def _in_front(join: Join) -> Join | None:
    """A join of a padded leaf, the padding before what is padded."""
    for padding in join.cells:
        if not isinstance(padding.source, Constant) or not padding.source.is_fill:
            continue
        begin = padding.geometry.starts[1]
        axis = next((number for number, start in enumerate(begin) if start), 0)
        more = next(d.size for d in padding.geometry.digits if d.at[1] and d.at[1][0] == axis)
        cells: list[Cell] = []
        for cell in join.cells:
            start = list(cell.geometry.starts[1])
            start[axis] = start[axis] - begin[axis] if cell is padding else start[axis] + more
            geometry = Geometry((cell.geometry.starts[0], tuple(start)), cell.geometry.digits)
            cells.append(dataclasses.replace(cell, geometry=geometry))
        return dataclasses.replace(join, cells=tuple(cells))
    return None


def _exchanged(joins: Sequence[Join], lens: Lens) -> tuple[Join, ...] | None:
    """Two joins of leaves that are declared alike, such as two moments of one optimizer, that change views."""
    by_leaf: dict[Any, int] = {}
    for at, join in enumerate(joins):
        rows = (
            [lens.source.rows[number] for number in join.sources],
            [lens.view.rows[number] for number in join.views],
        )
        alike = tuple((row.leaf, row.repeats) for side in rows for row in side)
        first = by_leaf.setdefault(alike, at)
        one, other = joins[first], join
        if join.plain and one.views != other.views:
            found = list(joins)
            found[first], found[at] = _into(one, other.views[0]), _into(other, one.views[0])
            return tuple(found)
    return None


def _into(join: Join, view: int) -> Join:
    """A join of one leaf that ends in another row of the view."""
    cells = (
        cell if isinstance(cell.view, Constant) else dataclasses.replace(cell, view=view)
        for cell in join.cells
    )
    return dataclasses.replace(join, cells=tuple(cells))


JOINS: dict[str, Callable[[Sequence[Join], Lens], tuple[Join, ...] | None]] = {
    "two leaves exchanged": _exchanged,
    "two parts exchanged": _parts_exchanged,
    "layers in reverse": _turned_layers,
    "padding in front": _padded_in_front,
}


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


class _Faulty(Translator):
    """A direction of a lens with a fault in its plans."""

    def __init__(self, *of: Any, fault: Callable[[Plan], Plan], **how: Any) -> None:
        """Keeps what any direction has, and the fault."""
        super().__init__(*of, **how)
        self._fault = fault

    def compile(self, tree: Any, onto: Any, **how: Any) -> Any:
        """The plan, the fault planted."""
        plan, *rest = super().compile(tree, onto, **how)
        return self._fault(plan), *rest


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Mutant(Lens):
    """A lens with a fault in its ``get`` (forward) or its ``put``."""

    fault: Callable[[Plan], Plan] = lambda plan: plan
    forward: bool = True

    @functools.cached_property
    def _forward(self) -> Translator:
        of = self, self.dims, self._closed, self.matchers
        return _Faulty(*of, fault=self.fault) if self.forward else Translator(*of)

    @functools.cached_property
    def _backward(self) -> Translator:
        turned = Lens.__invert__(self)
        of = turned, self.dims, turned._closed, turned.matchers
        if self.forward:
            return Translator(*of, is_put=True)
        return _Faulty(*of, fault=self.fault, is_put=True)

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
    return lens.source, lens.view, lens.joins, lens.dims, lens.derivations, lens.folds


class _Lenient(Translator):
    """A direction of a lens that casts what has another dtype than the tree before it had."""

    good: Any = None

    def __call__(self, tree: Any, onto: Any, **how: Any) -> Any:
        """What is made of the tree, or of the tree after a cast."""
        try:
            found = super().__call__(tree, onto, **how)
        except cs.ConformanceError:
            if jax.tree.structure(tree) != jax.tree.structure(self.good):
                raise
            tree = jax.tree.map(_cast_like, tree, self.good)
            return super().__call__(tree, onto, **how)
        self.good = tree
        return found


def _cast_like(leaf: Any, good: Any) -> Any:
    return leaf.astype(good.dtype) if isinstance(leaf, np.ndarray) else leaf


class Lenient(Lens):
    """A lens whose ``get`` casts."""

    @functools.cached_property
    def _forward(self) -> Translator:
        return _Lenient(self, self.dims, self._closed, self.matchers)


@dataclasses.dataclass(frozen=True)
class Planted:
    """A mutant, and what was planted.

    Attributes:
        kind: Which fault.
        where: In which leaves: ``moved``, ``edited``, ``kept`` from ``onto``, ``made`` by a default; or in the ``tasks``,
            in the ``joins``, or in a ``layout``.
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
    changed = {kind: with_mistake(lens.joins, mistake) for kind, mistake in CELLS.items()}
    changed |= {kind: change(lens.joins, lens) for kind, change in JOINS.items()}
    for kind, joins in changed.items():
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
        for kind, tampering in TASKS.items():
            yield planted(kind, "tasks", way, _Replanned(tampering))
        yield planted(
            "not in the inverse",
            "moved",
            way,
            _value_fault(OPERATIONS["one bit flipped"], "moved"),
            OneSided,
        )
