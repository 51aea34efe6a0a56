"""Optimizers on a bench: a transformation with params of small sizes to try it on.

What an optimizer does is found by running it, not by a list of known ones: how it starts, and by
which degree it scales what it keeps. The sizes of a model would cost a training of it. So the same
transformation gets small params of the same kinds, at which it makes a state of the same kind.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ckpt_schema._compat import ClosedJaxpr, Literal, jaxpr_as_fun
from ckpt_schema._frameworks.optimizer_rows import Start, Starts
from ckpt_schema._frameworks.tracing import nested
from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts import paths
from ckpt_schema._layouts.formats import FORMATS
from ckpt_schema._layouts.leaves import Leaf
from ckpt_schema._layouts.paths import KeyPath
from ckpt_schema._layouts.table import Layout, Row, Slot, slots_of
from ckpt_schema._trees.containers import flatten
from ckpt_schema._trees.slots import SlotFinder

__all__ = ["Bench", "NoBench", "StateLeaves", "StepPart", "benches_of", "failure"]

StateLeaves = list[Any]
"""The leaves of an optimizer state, in jax's order."""

_LARGEST = 1 << 24  # elements of all params together


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """A transformation with params of small sizes to try it on.

    Attributes:
        table: The rows of the params, and of what mirrors them.
        trained: Which of them are params.
        params: The slots of the params, in order.
        shapes: Their shapes.
        init: Makes a state of params.
        program: What makes the next one, of gradients, a state and params, each in order.
        rows: The number of the row that each leaf of a state belongs to, or None.
    """

    table: tuple[Row, ...]
    trained: tuple[bool, ...]
    params: tuple[Slot, ...]
    shapes: tuple[jax.ShapeDtypeStruct, ...]
    init: Callable[[Sequence[Any]], StateLeaves]
    program: ClosedJaxpr
    rows: tuple[int | None, ...]

    def drawn(self, seed: int) -> list[Any]:
        """Values of every param, of magnitudes from one to two: none is lost beside another."""
        random = np.random.default_rng(seed)
        values: list[Any] = []
        for like in self.shapes:
            size = random.uniform(1.0, 2.0, like.shape)
            # Of both signs: a step may treat them differently, as one that keeps params positive does.
            values.append(np.asarray(size * random.choice((-1, 1), like.shape), like.dtype))
        return values

    def scaled(self, values: Iterable[Any], param: int, exponent: int) -> list[Any]:
        """Values of the params, those of one row times two to the exponent."""
        # By a power of two, which changes no bit of a float but its exponent: equality can be asked for.
        scaled: list[Any] = []
        for (number, _), value in zip(self.params, values, strict=True):
            is_scaled = number == param
            scaled.append(value * value.dtype.type(2.0**exponent) if is_scaled else value)
        return scaled


@dataclasses.dataclass(frozen=True, slots=True)
class NoBench:
    """That a transformation cannot be tried.

    Attributes:
        reason: Why, for messages.
    """

    reason: str


def failure(error: Exception) -> str:
    """Why a transformation cannot be tried, from what it raises when it is."""
    text = (str(error).splitlines() or [""])[0]
    return f"a step of it cannot be tried ({type(error).__name__}: {text[:80]})"


def benches_of(layout: Layout) -> tuple[tuple[Start, Bench | NoBench], ...]:
    """Each optimizer of a layout, on params of small sizes."""
    starts = layout.initial  # None where the layout was read off a tree
    benches: list[tuple[Start, Bench | NoBench]] = []
    for start in starts.each if isinstance(starts, Starts) else ():
        benches.append((start, _bench(_Key.of(layout, start))))
    return tuple(benches)


# --- a bench is made ---


@dataclasses.dataclass(frozen=True)
class _Key:
    """All that a bench depends on, as plain values.

    Two layouts with one optimizer share a bench, and what has been found on it.
    """

    tx: optax.GradientTransformation
    head: KeyPath  # where the layout keeps what the transformation is given
    home: KeyPath  # where it keeps the state
    box: Any  # how params are wrapped
    rows: tuple[Row, ...]  # those of the params, and of what mirrors them
    trained: tuple[bool, ...]  # which of them are params
    sizes: tuple[tuple[str, int], ...]  # those that the state was declared for, or none

    @classmethod
    def of(cls, layout: Layout, start: Start) -> _Key:
        """The key of one optimizer of a layout."""
        rows: list[Row] = []
        for row in layout.rows:
            if row.mirrors in start.trained or "/".join(row.path) in start.trained:
                # Metadata and defaults are of no interest to a transformation, and may have no hash.
                leaf = _widened(row.leaf)
                rows.append(dataclasses.replace(row, metadata=(), default=None, leaf=leaf))
        trained = tuple([not row.mirrors for row in rows])
        return cls(start.tx, start.head, start.home, start.box, tuple(rows), trained, layout.sizes)


def _widened(leaf: Leaf) -> Leaf:
    """The leaf, a float as a wide one, which no large gradient overflows: one bench serves all floats."""
    return leaf.with_dtype("float32") if leaf.is_open or leaf.dtype in FORMATS else leaf


@functools.lru_cache(maxsize=64)
def _bench(key: _Key) -> Bench | NoBench:
    """The bench for a transformation; or why it cannot be tried."""
    try:
        return _made(key)
    except Exception as error:  # a transformation may raise anything
        return NoBench(failure(error))


def _made(key: _Key) -> Bench | NoBench:
    names, counts = set[str](), set[str]()
    for row in key.rows:
        names |= dims_.dim_names(row.dims)
        counts |= dims_.dim_names(row.unrolled)
    # Two members of each list are enough: every member is trained alike.
    sizes = _sizes(key, names, dict.fromkeys(counts - names, 2))
    if sizes is None:
        return NoBench("no step of it can be tried at such large sizes")
    params, shapes = _abstract(key, sizes)
    tree = _trees(key, params)
    abstract = jax.eval_shape(lambda values: key.tx.init(tree(values)), shapes)
    structure = jax.tree.structure(abstract)

    def advanced(extra: bool, gradients: Any, state: StateLeaves, values: Any) -> StateLeaves:
        given: dict[str, Any] = {}
        if extra:  # the loss is the same, whatever its params are scaled by
            given = {"value": jnp.float32(2.0), "grad": tree(gradients)}
        before = jax.tree.unflatten(structure, state)
        _, after = key.tx.update(tree(gradients), before, tree(values), **given)
        flat, now = jax.tree.flatten(after)
        if now != structure:
            raise TypeError("a step makes a state of another structure")
        return flat

    # Most take no loss beside the gradients and refuse one; some, as polyak's step, ask for it.
    step = functools.partial(advanced, False)
    try:
        jax.eval_shape(step, shapes, jax.tree.leaves(abstract), shapes)
    except TypeError:
        step = functools.partial(advanced, True)
        jax.eval_shape(step, shapes, jax.tree.leaves(abstract), shapes)
    find = SlotFinder(Layout("the state of an optimizer", key.rows)).slot
    numbers: list[int | None] = []
    for place in flatten(nested({key.home: abstract})).keys:
        slot = find(place, stored=False)
        numbers.append(None if slot is None else slot[0])  # a count is of no row here
    init = jax.jit(lambda values: jax.tree.leaves(key.tx.init(tree(values))))
    program = jax.make_jaxpr(step)(shapes, jax.tree.leaves(abstract), shapes)
    return Bench(key.rows, key.trained, params, shapes, init, program, tuple(numbers))


def _abstract(
    key: _Key, sizes: Mapping[str, int]
) -> tuple[tuple[Slot, ...], tuple[jax.ShapeDtypeStruct, ...]]:
    """The slots of the params, and what each holds at some sizes."""
    params: list[Slot] = []
    shapes: list[jax.ShapeDtypeStruct] = []
    for number, row in enumerate(key.rows):
        if not key.trained[number]:
            continue
        shape = dims_.sizes_of(row.dims, sizes) or ()
        for indices in slots_of(row, sizes):
            params.append((number, indices))
            shapes.append(jax.ShapeDtypeStruct(shape, jnp.dtype(row.leaf.dtype)))
    return tuple(params), tuple(shapes)


def _sizes(key: _Key, names: set[str], counts: Mapping[str, int]) -> dict[str, int] | None:
    """Small sizes, at which a transformation makes a state of the same kind; None if none are."""
    given = dict(key.sizes)
    if not given:
        # All different, so that an axis that moves cannot pass for another one.
        return {**counts, **{name: 3 + place for place, name in enumerate(sorted(names))}}
    expected = _outline(key, {**given, **counts})
    # Adafactor factors axes of 128 and more alone: at 8 or 40 its state has other shapes.
    for most in (8, 40, 160, 640, max(given.values())):
        sizes = {**{name: min(size, most) for name, size in given.items()}, **counts}
        _, shapes = _abstract(key, sizes)
        if sum(int(np.prod(like.shape)) for like in shapes) > _LARGEST:
            return None
        if _outline(key, sizes) == expected:
            return sizes
    return None


def _outline(key: _Key, sizes: Mapping[str, int]) -> object:
    """What kind of state is made at some sizes: its structure, and which axes have length one."""
    params, shapes = _abstract(key, sizes)
    tree = _trees(key, params)
    made = jax.eval_shape(lambda values: key.tx.init(tree(values)), shapes)
    flat, structure = jax.tree.flatten(made)
    # A placeholder is of length one, and so is an axis that is not kept.
    return structure, [tuple([length == 1 for length in leaf.shape]) for leaf in flat]


def _trees(key: _Key, params: Sequence[Slot]) -> Callable[[Sequence[Any]], Any]:
    """What makes the tree that a transformation is given of the values of its params."""
    rows: dict[KeyPath, Row] = {}
    for number, indices in params:
        row = key.rows[number]
        rows[paths.fill(row.key, indices)[len(key.head) :]] = row
    return lambda values: key.box.close(nested(dict(zip(rows, values, strict=True))), rows)


# --- a step of training ---


@dataclasses.dataclass(frozen=True, slots=True)
class StepPart:
    """What some leaves need of a step of training, which is little of that of a large model."""

    kept: tuple[int, ...]  # the leaves of the state that are carried on
    used: tuple[int, ...]  # the inputs that they are made of
    run: Callable[..., Sequence[Any]]  # makes the ones of the others

    @classmethod
    def of(cls, bench: Bench, leaves: Iterable[int]) -> StepPart:
        """The part of a step that makes some leaves, and all that these need in later steps."""
        program, start = bench.program.jaxpr, len(bench.params)
        places = {variable: place for place, variable in enumerate(program.invars)}
        kept = set(leaves)
        # What is made may need other leaves, as Adafactor's a count: these are carried on too.
        while True:
            ends = [program.outvars[i] for i in sorted(kept)]
            needed = {end for end in ends if not isinstance(end, Literal)}
            equations: list[Any] = []
            # From the end: what makes a value is known to be needed before it is looked at.
            for equation in reversed(program.eqns):
                if not needed.isdisjoint(equation.outvars):
                    equations.append(equation)
                    needed |= {x for x in equation.invars if not isinstance(x, Literal)}
            used = sorted([places[x] for x in needed if x in places])
            # The inputs are the gradients, then the state, then the params.
            before: set[int] = set()
            for place in used:
                if start <= place < start + len(bench.rows):
                    before.add(place - start)
            if before <= kept:
                break
            kept |= before
        inputs = [program.invars[place] for place in used]
        part = program.replace(invars=inputs, outvars=ends, eqns=equations[::-1])
        run = jaxpr_as_fun(ClosedJaxpr(part, bench.program.consts))
        return cls(tuple(sorted(kept)), tuple(used), jax.jit(run))

    def after(
        self, gradients: Sequence[Any], state: StateLeaves, values: Sequence[Any]
    ) -> StateLeaves:
        """The next state; leaves that are not carried on stay as they are."""
        inputs = [*gradients, *state, *values]
        made = self.run(*[inputs[place] for place in self.used])
        after = list(state)
        for place, leaf in zip(self.kept, made, strict=True):
            after[place] = leaf
        return after
