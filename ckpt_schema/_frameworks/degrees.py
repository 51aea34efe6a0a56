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
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ckpt_schema._frameworks.benches import (
    Bench,
    NoBench,
    StateLeaves,
    StepPart,
    benches_of,
    failure,
)
from ckpt_schema._frameworks.optimizer_rows import Start
from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.table import Layout, Row

__all__ = ["Degree", "Degrees", "NoDegree"]


@dataclasses.dataclass(frozen=True, slots=True)
class Degree:
    """By which powers a leaf of an optimizer state goes along with its param: Adam's nu by gradient=2, param=0.

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
        for start, bench in self._benches:
            if row.mirrors in start.trained:
                return NoDegree(bench.reason) if isinstance(bench, NoBench) else _found(bench, row)
        return UNKNOWN

    def all(self) -> dict[LogicalPath, Degree | NoDegree]:
        """The degree of each row of the layout that mirrors a param, by its logical path."""
        return {row.path: self.of(row) for row in self._layout.rows if row.mirrors}

    @functools.cached_property
    def _benches(self) -> tuple[tuple[Start, Bench | NoBench], ...]:
        """Each optimizer, made ready when a degree is asked for."""
        return benches_of(self._layout)


def _found(bench: Bench, row: Row) -> Degree | NoDegree:
    """The degree of a row that mirrors one of the params."""
    for number, param in enumerate(bench.table):
        if bench.trained[number] and _is_mirror_of(row, param):
            return _searched(bench, number).get(row.path, MIXED)
    return UNKNOWN


def _is_mirror_of(row: Row, param: Row) -> bool:
    """Whether an optimizer keeps ``row`` for ``param``.

    It may keep several things there, or one for all layers of a stack.
    """
    return row.mirrors == "/".join(param.path)


_Trial = tuple[int, int]  # to which powers of two a param's gradient is scaled, and the param
_Host = Mapping[int, list[Any]]  # by the number of a row, its leaves as arrays of numpy


@functools.lru_cache(maxsize=4096)
def _searched(bench: Bench, param: int) -> Mapping[LogicalPath, Degree | NoDegree]:
    """The degrees of what is kept for one param."""
    paths: dict[int, LogicalPath] = {}
    for number, row in enumerate(bench.table):
        if _is_mirror_of(row, bench.table[param]):
            paths[number] = row.path
    try:
        # A lens may be derived inside a jit of the caller's, or under a guard, and this is none of theirs.
        with jax.ensure_compile_time_eval(), jax.transfer_guard("allow"):
            degrees = _Search(bench, param, tuple(paths)).degrees()
    except Exception as error:  # a transformation may raise anything
        return dict.fromkeys(paths.values(), NoDegree(failure(error)))
    return {paths[number]: degree for number, degree in degrees.items()}


@functools.lru_cache(maxsize=64)
def _first(bench: Bench) -> StateLeaves:
    """The state of the first values that are drawn."""
    return bench.init(_drawn(bench, 0))


@functools.lru_cache(maxsize=256)
def _drawn(bench: Bench, seed: int) -> list[Any]:
    """The same values for the search of every param."""
    return bench.drawn(seed)


_Powers = Mapping[int, int]
"""By the number of a row: two to which power its leaves are scaled by."""


class _Search:
    """The search for the degrees of what is kept for one param."""

    def __init__(self, bench: Bench, param: int, rows: Sequence[int]) -> None:
        """Trains the states that all others are compared with."""
        self._bench, self._param = bench, param
        # By row, where its leaves stand in a state: a list of layers has one for each.
        self._places: dict[int, list[int]] = {number: [] for number in rows}
        for place, number in enumerate(bench.rows):
            if number in self._places:
                self._places[number].append(place)
        # Four and five in turn, so that no step is one of an earlier one, for twenty steps.
        self._params = [_drawn(bench, seed) for seed in range(4)]
        self._gradients = [_drawn(bench, 100 + seed) for seed in range(5)]
        first = _first(bench)
        self._step = StepPart.of(bench, itertools.chain.from_iterable(self._places.values()))
        self._idle: set[int] = set()  # rows that never change
        self._copies = {n for n in rows if self._is_copy(first, n)}
        # How many steps are needed is counted in a training that may take the most.
        self._steps = _MOST
        self._steps = self._needed(self._host(first))
        # What each guess is made from: the gradient times two, and then the param times two.
        self._begun = [list(self._states(1.0, trial, {})) for trial in ((1, 0), (0, 1))]
        # What all that is scaled is held against: nothing is scaled, of each magnitude.
        self._plain: dict[float, list[_Host]] = {}
        for size in (*_MAGNITUDES, 0.0):
            self._plain[size] = list(self._states(size, (0, 0), {}))

    def degrees(self) -> dict[int, Degree | NoDegree]:
        """The degree of each row."""
        # Each row is guessed by itself; then all guesses are held against training together.
        degrees: dict[int, Degree | None] = {}
        for number in self._places:
            degrees[number] = Degree(0, 1) if number in self._copies else self._guess(number)
        # Then those that say nothing by themselves, beside the ones that are guessed.
        for number, degree in list(degrees.items()):
            if degree is None:
                degrees[number] = self._sought(number, degrees)
        known = _known(degrees)
        # A row of a wrong guess may be what another is made of: all are tried at once, each time.
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
        answers: dict[int, Degree | NoDegree] = {}
        for number in degrees:
            answers[number] = stuck if number in self._idle else known.get(number, MIXED)
        return answers

    def _host(self, state: StateLeaves) -> _Host:
        """The leaves of each row."""
        return {number: _arrays(state, places) for number, places in self._places.items()}

    def _is_copy(self, state: StateLeaves, number: int) -> bool:
        """Whether a row is the param itself, in a state that no step has changed."""
        values = self._values()
        kept = _arrays(state, self._places[number])
        return len(kept) == len(values) and all(map(np.array_equal, kept, values))

    def _values(self) -> list[Any]:
        """What the param's leaves hold when the first state is made."""
        values: list[Any] = []
        for (number, _), value in zip(self._bench.params, self._params[0], strict=True):
            if number == self._param:
                values.append(value)
        return values

    def _needed(self, first: _Host) -> int:
        """How many steps to train: some more once all of each row has moved from where it starts.

        Placeholders of one element, as Adafactor has, are not waited for, nor is what keeps the
        param itself.
        """
        param = sum([value.size for value in self._values()])
        waiting: set[int] = set()
        for number, leaves in first.items():
            floats = list(filter(_is_float, leaves))
            size = sum([leaf.size for leaf in floats])
            # One element a leaf, where the param has more.
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
        for number, places in self._places.items():
            for place in places if powers.get(number) else ():
                factor = jnp.asarray(2.0 ** powers[number], state[place].dtype)
                state[place] = state[place] * factor
        yield self._host(state)
        for step in range(self._steps):
            # The first params have made the state: the next are those after them.
            gradients, values = [*self._gradients[step % 5]], self._params[(step + 1) % 4]
            # Of a large model most inputs have no part in what is looked at, and need no work.
            for number, gradient in enumerate(gradients):
                if number in used:
                    gradients[number] = gradient * gradient.dtype.type(size)
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
        # Adagrad starts from 0.1 and adds squares of gradients. The sum is scaled only if the start
        # is scaled too, by the degree that is looked for.
        known = _known(found)
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
        return {n for n in self._places if not self._holds(n, size, scaled, powers.get(n, 0))}

    def _holds(self, number: int, size: float, scaled: Sequence[_Host], power: int) -> bool:
        """Whether a row is scaled by two to this power in all of some states, to the last bit."""
        for plain, other in zip(self._plain[size], scaled, strict=True):
            pairs = zip(plain[number], other[number], strict=True)
            if not all(_is_times(x, y, power) for x, y in pairs):
                return False
        return True


def _known(degrees: Mapping[int, Degree | None]) -> dict[int, Degree]:
    """Those of the degrees that there are."""
    return {number: degree for number, degree in degrees.items() if degree is not None}


def _arrays(state: StateLeaves, places: Sequence[int]) -> list[Any]:
    """Leaves of a state as arrays of NumPy."""
    return [np.asarray(state[place]) for place in places]


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
