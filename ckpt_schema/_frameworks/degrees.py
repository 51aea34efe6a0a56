"""How what an optimizer keeps for a param is scaled where the param is: found by running it.

Where a param is stored times ``c``, its gradient is that of the other divided by ``c``. What an
optimizer keeps for it, of degree ``d`` in the gradient and ``p`` in the param, is then stored times
``c ** (p - d)``: Adam's first moment divided by ``c``, its second by its square, what holds the
param's own starting point times ``c``.

A degree is believed where it holds bit for bit: states of which one param's leaves alone are scaled
are trained beside states of which none is, with gradients small and large enough to meet any usual
threshold or epsilon, and have to stay scaled step by step.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from ckpt_schema._layouts.paths import KeyPath, LogicalPath
from ckpt_schema._layouts.table import Layout, Row, Slot, slots_of
from ckpt_schema._trees.containers import flatten
from ckpt_schema._trees.slots import SlotFinder

__all__ = ["Degree", "Degrees", "NoDegree"]


@dataclasses.dataclass(frozen=True, slots=True)
class Degree:
    """By which powers a leaf of an optimizer state goes along with its param.

    Attributes:
        gradient: It is times ``c`` to this where the param's gradient is times ``c``.
        param: The same for the param itself.
    """

    gradient: int
    param: int

    @property
    def power(self) -> int:
        """The leaf is times ``c`` to this where the param is times ``c``, the gradient ``1/c``."""
        return self.param - self.gradient

    @property
    def told(self) -> int | str:
        """The power, or why there is none."""
        return self.power


@dataclasses.dataclass(frozen=True, slots=True)
class NoDegree:
    """That a leaf has no degree, or none that can be found.

    Attributes:
        reason: Why, for messages.
    """

    reason: str

    @property
    def told(self) -> int | str:
        """The power, or why there is none."""
        return self.reason


MIXED = NoDegree(
    "a step of training adds what is not scaled with it, such as an epsilon or a norm of all params"
)
UNKNOWN = NoDegree("its layout was found in a tree, and does not know the transformation")

_STEPS = 3  # after the first in which everything has moved
_MOST = 130  # until everything has, as accumulated gradients take their time
_LARGEST = 1 << 24  # elements of all params together
# Of the gradients. Smaller ones would meet Adafactor's 1e-30, which no gradient of a model does.
_MAGNITUDES = (1.0, 2.0**30, 2.0**-20)
_TRIALS = ((1, 0), (0, 1), (-3, 3), (2, -2))  # the exponents of gradient and param that are tried
_POWERS = (0, 1, 2, -1, -2, 3, -3, 4, -4)


class Degrees:
    """The degrees of what an optimizer keeps, in one layout; nothing is run before one is asked.

    Example:
        >>> import ckpt_schema as cs, optax
        >>> from jaxtyping import Array, Float32
        >>> class Body(cs.Schema):
        ...     w: Float32[Array, "a b"]
        >>> for path, each in Degrees(cs.linen.TrainState[Body, optax.adam(1e-3)]).all().items():
        ...     print("/".join(path), each)
        opt_state/0/mu/w Degree(gradient=1, param=0)
        opt_state/0/nu/w Degree(gradient=2, param=0)
    """

    def __init__(self, layout: Layout) -> None:
        """Takes the layout, which knows its transformation if it was declared with one."""
        self._layout = layout

    def of(self, row: Row) -> Degree | NoDegree:
        """The degree of a row of the layout that mirrors a param."""
        for start, bench in self.benches:
            if row.mirrors in start.trained:
                return bench if isinstance(bench, NoDegree) else bench.found(row)
        return UNKNOWN

    def all(self) -> dict[LogicalPath, Degree | NoDegree]:
        """The degree of each row of the layout that mirrors a param, by its logical path."""
        return {row.path: self.of(row) for row in self._layout.rows if row.mirrors}

    @functools.cached_property
    def benches(self) -> tuple[tuple[Start, _Bench | NoDegree], ...]:
        """Each optimizer, tried on params of small sizes."""
        starts = self._layout.initial  # None where the layout was read off a tree
        each = starts.each if isinstance(starts, Starts) else ()
        return tuple([(start, self._bench(start)) for start in each])

    def _bench(self, start: Start) -> _Bench | NoDegree:
        rows: list[Row] = []
        for row in self._layout.rows:
            if row.mirrors in start.trained or "/".join(row.path) in start.trained:
                # Metadata and defaults are of no interest to a transformation, and may have no hash.
                leaf = _widened(row.leaf)
                rows.append(dataclasses.replace(row, metadata=(), default=None, leaf=leaf))
        trained = tuple([not row.mirrors for row in rows])
        sizes = self._layout.sizes
        # A key of plain values: two layouts with one optimizer share a bench, and what it has found.
        key = _Key(start.tx, start.head, start.home, start.box, tuple(rows), trained, sizes)
        return _bench(key)


def _widened(leaf: Leaf) -> Leaf:
    """The leaf, a float as a wide one, which no large gradient overflows: one bench serves all floats."""
    return leaf.with_dtype("float32") if leaf.is_open or leaf.dtype in FORMATS else leaf


def _is_mirror_of(row: Row, param: Row) -> bool:
    """Whether an optimizer keeps ``row`` for ``param``.

    It may keep several things there, or one for all layers of a stack.
    """
    return row.mirrors == "/".join(param.path)


@dataclasses.dataclass(frozen=True)
class _Key:
    """All that the degrees depend on."""

    tx: optax.GradientTransformation
    head: KeyPath  # where the layout keeps what the transformation is given
    home: KeyPath  # where it keeps the state
    box: Any  # how params are wrapped
    rows: tuple[Row, ...]  # those of the params, and of what mirrors them
    trained: tuple[bool, ...]  # which of them are params
    sizes: tuple[tuple[str, int], ...]  # those that the state was declared for, or none


_State = list[Any]
"""The leaves of an optimizer state, in jax's order."""

_Trial = tuple[int, int]  # to which powers of two a param's gradient is scaled, and the param
_Host = Mapping[int, list[Any]]  # by the number of a row, its leaves as arrays of numpy


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Bench:
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
    init: Callable[[Sequence[Any]], _State]
    program: ClosedJaxpr
    rows: tuple[int | None, ...]

    def found(self, row: Row) -> Degree | NoDegree:
        """The degree of a row that mirrors one of the params."""
        for number, param in enumerate(self.table):
            if self.trained[number] and _is_mirror_of(row, param):
                return _searched(self, number).get(row.path, MIXED)
        return UNKNOWN

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
        several = zip(self.params, values, strict=True)
        return [x * x.dtype.type(2.0**exponent) if n == param else x for (n, _), x in several]


@functools.lru_cache(maxsize=64)
def _bench(key: _Key) -> _Bench | NoDegree:
    """The bench for a transformation; or why it cannot be tried."""
    try:
        return _made(key)
    except Exception as error:  # a transformation may raise anything
        return _failed(error)


def _made(key: _Key) -> _Bench | NoDegree:
    names, counts = set[str](), set[str]()
    for row in key.rows:
        names |= dims_.dim_names(row.dims)
        counts |= dims_.dim_names(row.unrolled)
    # Two members of each list are enough: every member is trained alike.
    sizes = _sizes(key, names, dict.fromkeys(counts - names, 2))
    if sizes is None:
        return NoDegree("no step of it can be tried at such large sizes")
    params, shapes = _abstract(key, sizes)
    tree = _trees(key, params)
    abstract = jax.eval_shape(lambda values: key.tx.init(tree(values)), shapes)
    structure = jax.tree.structure(abstract)

    def advanced(extra: bool, gradients: Any, state: _State, values: Any) -> _State:
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
    return _Bench(key.rows, key.trained, params, shapes, init, program, tuple(numbers))


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


@functools.lru_cache(maxsize=4096)
def _searched(bench: _Bench, param: int) -> Mapping[LogicalPath, Degree | NoDegree]:
    """The degrees of what is kept for one param."""
    rows = {n: row for n, row in enumerate(bench.table) if _is_mirror_of(row, bench.table[param])}
    try:
        # A lens may be derived inside a jit of the caller's, or under a guard, and this is none of theirs.
        with jax.ensure_compile_time_eval(), jax.transfer_guard("allow"):
            degrees = _Search(bench, param, tuple(rows)).degrees()
    except Exception as error:  # a transformation may raise anything
        return dict.fromkeys((row.path for row in rows.values()), _failed(error))
    return {rows[number].path: each for number, each in degrees.items()}


def _failed(error: Exception) -> NoDegree:
    text = (str(error).splitlines() or [""])[0]
    return NoDegree(f"a step of it cannot be tried ({type(error).__name__}: {text[:80]})")


@functools.lru_cache(maxsize=64)
def _first(bench: _Bench) -> _State:
    """The state of the first values that are drawn."""
    return bench.init(_drawn(bench, 0))


@functools.lru_cache(maxsize=256)
def _drawn(bench: _Bench, seed: int) -> list[Any]:
    """The same values for the search of every param."""
    return bench.drawn(seed)


@dataclasses.dataclass(frozen=True, slots=True)
class _Step:
    """What some leaves need of a step of training, which is little of that of a large model."""

    kept: tuple[int, ...]  # the leaves of the state that are carried on
    used: tuple[int, ...]  # the inputs that they are made of
    run: Callable[..., Sequence[Any]]  # makes the ones of the others

    @classmethod
    def of(cls, bench: _Bench, leaves: Iterable[int]) -> _Step:
        """The part of a step that makes some leaves, and all that these need in later steps."""
        program, start = bench.program.jaxpr, len(bench.params)
        place = {variable: at for at, variable in enumerate(program.invars)}
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
            used = sorted([place[x] for x in needed if x in place])
            # The inputs are the gradients, then the state, then the params.
            before = {at - start for at in used if start <= at < start + len(bench.rows)}
            if before <= kept:
                break
            kept |= before
        inputs = [program.invars[at] for at in used]
        part = program.replace(invars=inputs, outvars=ends, eqns=equations[::-1])
        run = jaxpr_as_fun(ClosedJaxpr(part, bench.program.consts))
        return cls(tuple(sorted(kept)), tuple(used), jax.jit(run))

    def after(self, gradients: Sequence[Any], state: _State, values: Sequence[Any]) -> _State:
        """The next state; leaves that are not carried on stay as they are."""
        several = [*gradients, *state, *values]
        made = self.run(*[several[at] for at in self.used])
        after = list(state)
        for i, leaf in zip(self.kept, made, strict=True):
            after[i] = leaf
        return after


_Powers = Mapping[int, int]
"""By the number of a row: two to which power its leaves are scaled by."""


class _Search:
    """The search for the degrees of what is kept for one param."""

    def __init__(self, bench: _Bench, param: int, rows: Sequence[int]) -> None:
        """Trains the states that all others are compared with."""
        self._bench, self._param = bench, param
        # By row, where its leaves stand in a state: a list of layers has one for each.
        self._at: dict[int, list[int]] = {number: [] for number in rows}
        for place, number in enumerate(bench.rows):
            if number in self._at:
                self._at[number].append(place)
        # Four and five in turn, so that no step is one of an earlier one, for twenty steps.
        self._params = [_drawn(bench, seed) for seed in range(4)]
        self._gradients = [_drawn(bench, 100 + seed) for seed in range(5)]
        first = _first(bench)
        self._step = _Step.of(bench, itertools.chain.from_iterable(self._at.values()))
        self._idle: set[int] = set()  # rows that never change
        self._copies = {n for n in rows if self._is_copy(first, n)}
        self._steps = _MOST
        self._steps = self._needed(self._host(first))
        self._begun = [list(self._states(1.0, trial, {})) for trial in ((1, 0), (0, 1))]
        self._plain = {size: list(self._states(size, (0, 0), {})) for size in (*_MAGNITUDES, 0.0)}

    def degrees(self) -> dict[int, Degree | NoDegree]:
        """The degree of each row."""
        # Each row is guessed by itself; then all guesses are held against training together.
        degrees: dict[int, Degree | None] = {}
        for number in self._at:
            degrees[number] = Degree(0, 1) if number in self._copies else self._guess(number)
        for number, degree in list(degrees.items()):
            if degree is None:
                degrees[number] = self._sought(number, degrees)
        known = {number: degree for number, degree in degrees.items() if degree is not None}
        for size in _MAGNITUDES:
            for trial in _TRIALS:
                for number in self._wrong(size, trial, known) - self._copies:
                    known.pop(number, None)
        # What starts as the param is moved as the param is, by steps that are not scaled: without
        # gradients, and so without steps, it has to stay scaled.
        for trial in _TRIALS if self._copies else ():
            for number in self._wrong(0.0, trial, known) & self._copies:
                known.pop(number, None)
        stuck = NoDegree(f"it stays as it starts for {_MOST} steps, which tells nothing of it")
        return {n: stuck if n in self._idle else known.get(n, MIXED) for n in degrees}

    def _host(self, state: _State) -> _Host:
        """The leaves of each row."""
        return {n: [np.asarray(state[i]) for i in places] for n, places in self._at.items()}

    def _is_copy(self, state: _State, number: int) -> bool:
        """Whether a row is the param itself, in a state that no step has changed."""
        values = self._values()
        kept = [np.asarray(state[i]) for i in self._at[number]]
        return len(kept) == len(values) and all(map(np.array_equal, kept, values))

    def _values(self) -> list[Any]:
        """What the param's leaves hold when the first state is made."""
        several = zip(self._bench.params, self._params[0], strict=True)
        return [value for (number, _), value in several if number == self._param]

    def _needed(self, first: _Host) -> int:
        """How many steps to train: some more once all of each row has moved from where it starts.

        Placeholders of one element, as Adafactor has, are not waited for, nor is what keeps the
        param itself.
        """
        param = sum([value.size for value in self._values()])
        waiting: set[int] = set()
        for number, leaves in first.items():
            floats = [leaf.size for leaf in leaves if _is_float(leaf)]
            size = sum(floats)
            is_placeholder = size == len(floats) < param
            if size and not is_placeholder and number not in self._copies:
                waiting.add(number)
        moved: set[int] = set()
        for step, state in enumerate(self._states(1.0, (0, 0), {})):
            moved |= {n for n in waiting if not all(map(np.array_equal, state[n], first[n]))}
            # A zero tells nothing, for it is itself times any power: no element may be one.
            waiting = {n for n in waiting if n not in moved or not all(map(np.all, state[n]))}
            if not waiting:
                return step + _STEPS
        self._idle = waiting - moved
        return _MOST

    def _states(self, size: float, trial: _Trial, powers: _Powers) -> Iterator[_Host]:
        """The states of some steps of training, of which one param's leaves are scaled.

        Gradients are of magnitude ``size``. The first state is made of params as they are, its rows then scaled by ``powers``.
        """
        bench = self._bench
        state, used = list(_first(bench)), set(self._step.used)
        for number, places in self._at.items():
            for i in places if powers.get(number) else ():
                state[i] = state[i] * jnp.asarray(2.0 ** powers[number], state[i].dtype)
        yield self._host(state)
        for step in range(self._steps):
            gradients, values = self._gradients[step % 5], self._params[(step + 1) % 4]
            # Of a large model most inputs have no part in what is looked at, and need no work.
            several = enumerate(gradients)
            gradients = [x * x.dtype.type(size) if i in used else x for i, x in several]
            gradients = bench.scaled(gradients, self._param, trial[0])
            values = bench.scaled(values, self._param, trial[1])
            state = self._step.after(gradients, state, values)
            yield self._host(state)

    def _guess(self, number: int) -> Degree | None:
        """The degree that a row would have by itself, trained from the start."""
        exponents: list[int] = []
        # First with the gradient twice as large, then with the param.
        for scaled in self._begun:
            power = next((k for k in _POWERS if self._holds(number, 1.0, scaled, k)), None)
            if power is None:
                return None
            exponents.append(power)
        return Degree(*exponents)

    def _sought(self, number: int, found: Mapping[int, Degree | None]) -> Degree | None:
        """The degree of a row that starts with a number of its own, as Adagrad's: by trying all."""
        known = {other: degree for other, degree in found.items() if degree is not None}
        for gradient in _POWERS:
            tried = {**known, number: Degree(gradient, 0)}
            if all(number not in self._wrong(1.0, trial, tried) for trial in _TRIALS[:2]):
                return tried[number]
        return None

    def _wrong(self, size: float, trial: _Trial, degrees: Mapping[int, Degree]) -> set[int]:
        """The rows of which these degrees do not hold."""
        # Of degree (2, 0), with the gradient times 2**-3, a row has to be times 2**-6.
        powers: dict[int, int] = {}
        for number, degree in degrees.items():
            powers[number] = degree.gradient * trial[0] + degree.param * trial[1]
        scaled = list(self._states(size, trial, powers))
        return {n for n in self._at if not self._holds(n, size, scaled, powers.get(n, 0))}

    def _holds(self, number: int, size: float, scaled: Sequence[_Host], power: int) -> bool:
        """Whether a row is scaled by two to this power in all of some states, to the last bit."""
        for plain, other in zip(self._plain[size], scaled, strict=True):
            pairs = zip(plain[number], other[number], strict=True)
            if not all(_is_times(x, y, power) for x, y in pairs):
                return False
        return True


def _is_float(array: Any) -> bool:
    return bool(jnp.issubdtype(array.dtype, jnp.inexact))


def _is_times(plain: Any, scaled: Any, power: int) -> bool:
    """Whether an array is another times two to this power; nothing is that has no number in it."""
    if not _is_float(plain):
        return not power and np.array_equal(plain, scaled)
    # In double precision, where the power of two cannot overflow.
    wide = np.complex128 if np.iscomplexobj(plain) else np.float64
    expected = plain.astype(wide) * 2.0**power
    return bool(np.isfinite(expected).all() and np.array_equal(expected, scaled.astype(wide)))
