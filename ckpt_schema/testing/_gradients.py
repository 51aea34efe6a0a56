"""What a model computes with a state, its gradient, and gradients carried through a lens."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ckpt_schema._layouts.paths import KeyPath
from ckpt_schema._layouts.table import Slot
from ckpt_schema._lens.lens import Lens
from ckpt_schema._lens.plan.tasks import Application
from ckpt_schema._trees.containers import Tree, flatten
from ckpt_schema.errors import Mismatch
from ckpt_schema.testing._applied import applied, carry, turned
from ckpt_schema.testing._laws import LawError

__all__ = ["Measured", "Model", "is_float", "numbers", "pairs", "rounding"]

_CURE = (
    "make the model inside of it, as nnx.merge(graphdef, state) does, and return arrays; "
    "gradients = False compares the outputs alone"
)


_Arrays = tuple[dict[int, Any], dict[int, Any]]
"""The arrays of floats of a state, and all other arrays, by position."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a model computes with one state.

    Attributes:
        names: The key path of each output.
        outputs: The outputs.
        gradients: For each float leaf of the state, by its position, the gradient of a sum of the
            outputs with random weights.
    """

    names: list[KeyPath]
    outputs: list[np.ndarray[Any, Any]]
    gradients: Mapping[int, np.ndarray[Any, Any]]


class Model:
    """A function of states, compiled once for all that are of one structure."""

    def __init__(self, name: str, function: Callable[[Any], Any], *, gradients: bool) -> None:
        """Keeps the function, what it is called in errors, and whether gradients are asked for."""
        self.name, self.function, self.gradients = name, function, gradients
        self._program: Any = None
        self.unit = float(jnp.finfo(jnp.float32).eps)

    def __call__(self, state: Tree) -> Measured:
        """What it computes with a state.

        Raises:
            LawError: jax cannot differentiate the function.
        """
        if not self.gradients:
            flat = flatten(self.function(state))
            return Measured(flat.keys, list(map(numbers, flat.leaves)), {})
        leaves, treedef = jax.tree.flatten(state)
        floats, others = _parted(leaves)
        if self._program is None:
            # A Python number is part of the program: the function may branch on it.
            plain = [None if _is_array(x) else x for x in leaves]
            self._program = self._compiled((floats, others), plain, treedef)
        # Accelerators multiply float32 in fewer bits unless they are told, and no unit of rounding
        # that the program tells would say so.
        with jax.default_matmul_precision("highest"):
            (_, outputs), gradients = self._program(floats, others)
        flat = flatten(outputs)
        return Measured(
            flat.keys,
            list(map(numbers, flat.leaves)),
            {at: numbers(x) for at, x in gradients.items()},
        )

    def _compiled(self, given: _Arrays, plain: Sequence[Any], treedef: Any) -> Any:
        """The program of outputs and gradients, for arrays like those that are given."""

        def total(floats: Mapping[int, Any], others: Mapping[int, Any]) -> tuple[Any, Any]:
            every = [*plain]
            for at, x in (*others.items(), *floats.items()):
                every[at] = x
            outputs = self.function(treedef.unflatten(every))
            return _weighted(flatten(outputs).leaves), outputs

        # It runs a few times: to compile it well takes longer than all runs.
        cheap = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}
        program = jax.jit(jax.value_and_grad(total, has_aux=True), compiler_options=cheap)
        try:
            with jax.default_matmul_precision("highest"):
                traced = program.trace(*given)
        except Exception as error:
            # The first line: jax goes on for a page.
            said = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            fault = Mismatch(
                self.name, "outputs", "a function that jax can differentiate", said, _CURE
            )
            raise LawError(f"{self.name} has no gradient", [fault]) from error
        self.unit = max(self.unit, *rounding(traced.jaxpr))
        return program


def is_float(value: Any) -> bool:
    """Whether a leaf is an array of floats, real or complex."""
    return _is_array(value) and bool(jnp.issubdtype(value.dtype, jnp.inexact))


def numbers(value: Any) -> np.ndarray[Any, Any]:
    """A leaf as NumPy's widest floats, real or complex; of keys, their data."""
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    array = np.asarray(value)
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)


def _is_array(value: Any) -> bool:
    return isinstance(value, (jax.Array, np.ndarray, np.generic))


def _parted(leaves: Sequence[Any]) -> _Arrays:
    """The arrays of floats among leaves, and all other arrays, by position."""
    floats: dict[int, Any] = {}
    others: dict[int, Any] = {}
    for at, x in enumerate(leaves):
        if _is_array(x):
            (floats if is_float(x) else others)[at] = x
    return floats, others


def _weighted(outputs: Sequence[Any]) -> Any:
    """The sum of all outputs, each of one size, and each element with a random weight."""
    rng, total = np.random.default_rng(0), jnp.float32(0)
    for output in outputs:
        x = jnp.asarray(output)
        weights = rng.standard_normal(x.shape)
        if jnp.issubdtype(x.dtype, jnp.inexact):
            # Or else a large output would drown the gradients of a small one.
            size = jax.lax.stop_gradient(jnp.sqrt(jnp.mean(jnp.abs(x) ** 2)))
            scaled = jnp.real(x / jnp.where(size > 0, size, 1))
            total = total + jnp.sum(scaled.astype(jnp.float32) * weights.astype(np.float32))
    return total


def rounding(jaxpr: Any) -> Iterator[float]:
    """The units of rounding of all that a program computes; to change a dtype is no operation."""
    yield 0.0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if equation.primitive.name != "convert_element_type":
            for made in equation.outvars:
                dtype = getattr(made.aval, "dtype", None)
                if dtype is not None and jnp.issubdtype(dtype, jnp.floating):
                    yield float(jnp.finfo(dtype).eps)
        # Loops, branches and inner functions have programs of their own among their parameters.
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                if hasattr(getattr(inner, "jaxpr", inner), "eqns"):
                    yield from rounding(inner)


# --- Through a lens  ---

_Gradients = Mapping[Slot, np.ndarray[Any, Any]]
_Sums = dict[Slot, np.ndarray[Any, Any]]


def pairs(lens: Lens, ours: _Gradients, theirs: _Gradients) -> Iterator[tuple[int, Slot, Any, Any]]:
    """The gradients of the source and of the view that must be equal.

    A leaf that the lens scales by c has a gradient scaled by 1/c; those of what is stored twice add
    up to that of the one; padding, of which no other leaf knows, has NaN.

    Args:
        lens: The lens, its dims bound.
        ours: The gradient of each leaf of the source that has any.
        theirs: That of each leaf of the view.

    Yields:
        A leaf of the view (1), or of the source (0) where that stores it once, and the gradients
        of both.
    """
    several: list[Application] = []
    taken: collections.Counter[Slot] = collections.Counter()
    given: collections.Counter[Slot] = collections.Counter()
    for _, made in applied(lens):
        if ours.keys() >= {*made.inputs} and theirs.keys() >= {*made.results}:
            several.append(made)
            taken.update(made.inputs)
            given.update(made.results)
    forward: _Sums = {}
    backward: _Sums = {}
    for made in several:
        # What the view stores twice is compared where it is one leaf: in the source, below.
        if not any(taken[slot] > 1 for slot in made.inputs):
            carried = carry(made, ours, {}, lens.source.rows, lens.dims, turned)
            _add(forward, carried)
    for _, made in applied(~lens):
        if not (theirs.keys() >= {*made.inputs} and ours.keys() >= {*made.results}):
            continue
        is_copied = any(taken[slot] > 1 for slot in made.results)
        if is_copied and not any(given[slot] > 1 for slot in made.inputs):
            _add(backward, carry(made, theirs, {}, lens.view.rows, lens.dims, turned))
    for slot, gradient in forward.items():
        yield 1, slot, gradient, theirs[slot]
    for slot, gradient in backward.items():
        yield 0, slot, ours[slot], gradient


def _add(sums: _Sums, gradients: Mapping[Slot, Any]) -> None:
    """Adds gradients up: that of a leaf which is used twice is the sum of both uses."""
    for slot, gradient in gradients.items():
        sums[slot] = sums[slot] + gradient if slot in sums else gradient
