"""A model as discovery sees it: float leaves by name, outputs, and a pullback; NumPy in and out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ckpt_schema._frameworks.variables import state_of, whole_state
from ckpt_schema._layouts.leaves import is_typed_key
from ckpt_schema._layouts.paths import format_path
from ckpt_schema._layouts.schema import Schema
from ckpt_schema._layouts.table import Layout
from ckpt_schema._lens.read_sides import is_path, made_abstract
from ckpt_schema._trees.abstract_states import abstract
from ckpt_schema._trees.containers import flatten
from ckpt_schema._trees.inference import infer_tree
from ckpt_schema._trees.slots import SlotFinder
from ckpt_schema.errors import CkptSchemaError, Mismatch

__all__ = [
    "DiscoveryError",
    "JaxModel",
    "Leaves",
    "RunnableModel",
    "drawn_tree",
    "model_of",
    "named_values",
    "unstable_run",
]

Leaves = Mapping[str, np.ndarray[Any, Any]]
"""Values of the float leaves, by their key paths."""


class DiscoveryError(CkptSchemaError):
    """Two models that cannot be compared, or whose leaves are not told by running them."""


@runtime_checkable
class RunnableModel(Protocol):
    """What discovery asks of a model, in any framework.

    Attributes:
        shapes: The shape of each float leaf, by its key path.
        skipped: The key paths of other leaves, which no gradient tells; without the moments of an
            optimizer, which follow their params.
        wide: Whether it computes in float64; one that has float32 in its code rounds more.
        tree: What `ckpt_schema.infer` reads the layout of its leaves off: arrays or abstract values.
    """

    shapes: Mapping[str, tuple[int, ...]]
    skipped: Sequence[str]
    wide: bool
    tree: Any

    def run(self, leaves: Leaves) -> np.ndarray[Any, Any]:
        """The outputs at these values, float64, flat."""
        ...

    def pullback(
        self, leaves: Leaves, cotangent: np.ndarray[Any, Any]
    ) -> dict[str, np.ndarray[Any, Any]]:
        """The gradient of each leaf at these values, float64, for a cotangent of the outputs."""
        ...


def model_of(
    run: Callable[[Any], Any] | None, given: Any, side: str, joined: str | None = None
) -> RunnableModel:
    """The model of one side.

    Args:
        run: What computes the outputs of what is given.
        given: A tree of arrays or abstract values, an ``nnx.Module``, a layout or schema whose dims
            have sizes, the path of a checkpoint, or a `RunnableModel`, which has a run of its own.
        side: What messages call it.
        joined: What joins the paths of a tree to one key.

    Raises:
        DiscoveryError: There is no run, or a leaf that is no float has no value.
    """
    if isinstance(given, RunnableModel):
        return given
    if run is None or isinstance(run, RunnableModel):
        hint, passed = "run(tree) -> outputs", "None"
        # Who has a model that runs itself may take it for the run.
        if run is not None:
            hint = "it runs itself: pass None in its place, and it in the place of the tree"
            passed = f"a {type(run).__name__}"
        fault = Mismatch(side, "argument", "a function that runs it", passed, hint)
        raise DiscoveryError("wrong arguments", [fault])
    if is_path(given):
        # Orbax takes long to load, and only checkpoints need it.
        from ckpt_schema.orbax._metadata import read_metadata

        disk = read_metadata(given).without("nnx_aux").without_texts()
        given, joined = disk.tree, disk.joined
    elif isinstance(given, Layout) or (isinstance(given, type) and issubclass(given, Schema)):
        given = abstract(given)
    return JaxModel(run, made_abstract(given), side, joined)


def unstable_run(side: str) -> DiscoveryError:
    """The error of a run that gives other outputs at the same values."""
    hint = "turn dropout and other randomness off"
    fault = Mismatch(side, "outputs", "the same at the same values", "others each time", hint)
    return DiscoveryError("the models cannot be compared", [fault])


def drawn_tree(model: RunnableModel, seed: int) -> Any:
    """The tree of a model with random floats, of the size that training begins with."""
    random = np.random.default_rng([seed, 13])

    def value(leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return np.zeros(leaf.shape, leaf.dtype) if _is_abstract_number(leaf) else leaf
        drawn = random.normal(size=leaf.shape)
        # What has one axis may be a variance, or the scale of a norm: it stays positive.
        if len(leaf.shape) < 2:
            drawn = 1 + 0.3 * np.clip(drawn, -2, 2)
        else:
            drawn /= math.sqrt(math.prod(leaf.shape) / max(leaf.shape))
        # jax holds no float64 where x64 is off; NumPy does.
        return drawn if leaf.dtype == np.float64 else jnp.asarray(drawn, leaf.dtype)

    return jax.tree.map(value, model.tree)


def named_values(model: RunnableModel, tree: Any) -> dict[str, np.ndarray[Any, Any]]:
    """The values of a model's float leaves in a tree of its own, by their key paths."""
    flat = flatten(tree)
    values: dict[str, np.ndarray[Any, Any]] = {}
    for key, leaf in zip(flat.keys, flat.leaves, strict=True):
        name = format_path(key)
        if name in model.shapes:
            values[name] = np.asarray(leaf, np.float64)
    return values


def _is_abstract_number(leaf: Any) -> bool:
    # NumPy has no zeros of the dtype of a typed key.
    return isinstance(leaf, jax.ShapeDtypeStruct) and not is_typed_key(leaf)


def _beside(tree: Any, joined: str | None) -> dict[str, bool]:
    """The leaves that stand beside the model, such as a step and an optimizer's; whether each follows a param."""
    layout = infer_tree(tree, joined=joined)
    finder = SlotFinder(layout)
    flat = flatten(tree)
    beside: dict[str, bool] = {}
    for key in flat.keys:
        slot = finder.slot(key, stored=flat.stored)
        row = None if slot is None else layout.rows[slot[0]]
        # A leaf that mirrors a param is a moment; a step and a count have no place in a model.
        if row is not None and (row.mirrors or row.body is None):
            beside[format_path(key)] = bool(row.mirrors)
    return beside


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)


class JaxModel:
    """A function of a tree, or of an ``nnx.Module``, in float64 where its code allows that.

    A module is split and merged for the caller. Leaves that are no floats keep their values.
    """

    def __init__(
        self,
        run: Callable[[Any], Any],
        given: Any,
        side: str = "the model",
        joined: str | None = None,
    ) -> None:
        """Reads the leaves; nothing is run yet.

        Args:
            run: Computes outputs, a tree of arrays, of what is given.
            given: A tree, or an ``nnx.Module``.
            side: What messages call it.
            joined: What joins the paths of the tree to one key.

        Raises:
            DiscoveryError: A leaf that is no float has no value.
        """
        self.joined = joined
        self._run, self._given, self._side = run, given, side
        self._changed: list[str] = []
        # The counts of streams that the run draws from. An `nnx.RNN` draws a key for a carry that is zero.
        self._drawn: list[str] = []
        self._are_draws_idle = False
        self.tree: Any = whole_state(state_of(given))
        flat = flatten(self.tree)
        self._names = [format_path(key) for key in flat.keys]
        self._treedef = flat.treedef
        self._constants: dict[str, Any] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        faults: list[Mismatch] = []
        beside = _beside(self.tree, joined)
        for name, leaf in zip(self._names, flat.leaves, strict=True):
            # What a model computes does not depend on its optimizer, nor on a step.
            if name in beside and (beside[name] or _is_abstract_number(leaf)):
                self._constants[name] = np.zeros(leaf.shape, leaf.dtype)
            elif jnp.issubdtype(leaf.dtype, jnp.floating):
                shapes[name] = tuple(leaf.shape)
            elif isinstance(leaf, jax.ShapeDtypeStruct):
                hint = "give the tree with its values, or at least with those of such leaves"
                faults.append(Mismatch(name, "leaf", "a value", f"{leaf.dtype} without one", hint))
            else:
                self._constants[name] = leaf
        if faults:
            raise DiscoveryError(f"{side} cannot be run", faults)
        self.shapes: Mapping[str, tuple[int, ...]] = shapes
        # Moments follow their params, so that nobody has to say what they are.
        self.skipped: Sequence[str] = tuple(n for n in self._constants if not beside.get(n))
        # Where each leaf stands in the one array that a run is given: see `_vector`.
        self._spans: dict[str, slice] = {}
        start = 0
        for name, shape in shapes.items():
            self._spans[name] = slice(start, start + math.prod(shape))
            start += math.prod(shape)
        self.wide = True
        self._is_compared = False
        self.output_shapes: tuple[tuple[int, ...], ...] = ()
        self._outputs = jax.jit(self._flat_outputs)
        self._pulled = jax.jit(self._pull)

    def run(self, leaves: Leaves) -> np.ndarray[Any, Any]:
        """The outputs at these values.

        Raises:
            DiscoveryError: The run fails, changes the model's state, or has no float outputs.
        """
        made = self._tried(leaves)
        # It was set while jax traced the run; a compiled call sets it no more.
        if self._drawn and not self._are_draws_idle:
            self._are_draws_idle = self._is_same_after_draws(leaves, made)
        changed = self._changed
        if self._are_draws_idle:
            changed = [name for name in changed if name not in self._drawn]
        if changed:
            hint = (
                "run it as in evaluation, model.eval(), with running averages and without dropout"
            )
            expected = "a run that keeps what it is given"
            faults: list[Mismatch] = []
            for name in changed:
                faults.append(Mismatch(name, "state", expected, "a new value", hint))
            raise DiscoveryError(f"{self._side} changes while it runs", faults)
        return made

    def _is_same_after_draws(self, leaves: Leaves, made: np.ndarray[Any, Any]) -> bool:
        """Whether the outputs stay what they are where each stream that the run draws from has drawn once more."""
        given = self._constants
        once_more = {name: given[name] + 1 for name in self._drawn}

        # Another function: of the one that it knows, jax has kept what it traced with the old counts.
        def drawn_anew(vector: jax.Array) -> jax.Array:
            return self._flat_outputs(vector)

        self._constants = {**given, **once_more}
        try:
            with jax.enable_x64(self.wide):
                others = np.asarray(jax.jit(drawn_anew)(self._vector(leaves)), np.float64)
        finally:
            self._constants = given
        return np.array_equal(made, others, equal_nan=True)

    def pullback(
        self, leaves: Leaves, cotangent: np.ndarray[Any, Any]
    ) -> dict[str, np.ndarray[Any, Any]]:
        """The gradients at these values."""
        with jax.enable_x64(self.wide):
            given = jnp.asarray(cotangent, self._dtype)
            outputs, pulled = self._pulled(self._vector(leaves), given)
        if not self._is_compared:
            self._compare(leaves, np.asarray(outputs, np.float64))
        vector = np.asarray(pulled, np.float64)
        return {name: vector[span].reshape(self.shapes[name]) for name, span in self._spans.items()}

    def _compare(self, leaves: Leaves, outputs: np.ndarray[Any, Any]) -> None:
        """Raises if the run was another when it was traced for its gradients: jax traces it once for each."""
        before = self.run(leaves)
        gap, size = float(np.linalg.norm(before - outputs)), float(np.linalg.norm(before))
        # Two compiled programs of one function round otherwise, by far less than this.
        if gap > 1e-3 * size:
            raise unstable_run(self._side)
        # Outputs of zero say nothing: then the next pullback compares again.
        self._is_compared = size > 0

    @property
    def _dtype(self) -> type[Any]:
        return np.float64 if self.wide else np.float32

    def _vector(self, leaves: Leaves) -> np.ndarray[Any, Any]:
        """All leaves as one array: handing over many small ones takes longer than running the model."""
        if not self.shapes:
            return np.zeros(0, self._dtype)
        flat = [np.asarray(leaves[name], self._dtype).reshape(-1) for name in self.shapes]
        return np.concatenate(flat)

    def _tried(self, leaves: Leaves) -> np.ndarray[Any, Any]:
        """The outputs; a model that has float32 written in its code is run in it, as the carry of a scan often has."""
        while True:
            try:
                with jax.enable_x64(self.wide):
                    return np.asarray(self._outputs(self._vector(leaves)), np.float64)
            except CkptSchemaError:
                raise
            except Exception as error:
                # A scan refuses a float32 carry that becomes a float64. If that was not it, the
                # same error comes once more.
                if self.wide:
                    self.wide = False
                    continue
                hint = "it is called with random values of the same shapes; see the cause above"
                # jax keeps what it made of an array of NumPy in the run while 64 bits were on, and
                # nothing but another array makes it forget that.
                if "operand type mismatch" in str(error):
                    hint = (
                        "jax takes a NumPy array in the run for what it was with 64 bits; "
                        "give the run tokens.astype(np.int32)"
                    )
                fault = Mismatch(self._side, "run", "outputs", type(error).__name__, hint)
                raise DiscoveryError(f"{self._side} cannot be run", [fault]) from error

    def _flat_outputs(self, vector: jax.Array) -> jax.Array:
        values = dict(self._constants)
        for name, span in self._spans.items():
            values[name] = vector[span].reshape(self.shapes[name])
        tree = jax.tree.unflatten(self._treedef, [values[name] for name in self._names])
        # Of logits with a count of tokens beside them, the logits alone are compared.
        floats: list[jax.Array] = []
        for output in jax.tree.leaves(self._outputs_of(tree)):
            if jnp.issubdtype(jnp.result_type(output), jnp.floating):
                floats.append(jnp.asarray(output, self._dtype))
        self.output_shapes = tuple(output.shape for output in floats)
        if not floats:
            hint = "return logits rather than tokens: only floats have gradients"
            fault = Mismatch(self._side, "outputs", "arrays of floats", "none", hint)
            raise DiscoveryError(f"{self._side} cannot be compared", [fault])
        return jnp.concatenate([*map(jnp.ravel, floats)])

    def _outputs_of(self, tree: Any) -> Any:
        if not isinstance(self._given, nnx.Module):
            return self._run(tree)
        # The caller's module is left alone: the run gets a copy that holds the given values.
        module = nnx.merge(nnx.graphdef(self._given), tree)
        before = jax.tree.leaves(nnx.state(module))
        outputs = self._run(module)
        after = jax.tree.leaves(nnx.state(module))
        # A Variable that was assigned, as of running averages or of a stream, holds another object.
        pairs = zip(self._names, before, after, strict=True)
        self._changed = [name for name, old, new in pairs if old is not new]
        variables = jax.tree.leaves(nnx.state(module), is_leaf=_is_variable)
        counts: set[str] = set()
        for name, variable in zip(self._names, variables, strict=True):
            if isinstance(variable, nnx.RngCount):
                counts.add(name)
        self._drawn = [name for name in self._changed if name in counts]
        return outputs

    def _pull(self, vector: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
        outputs, pull = jax.vjp(self._flat_outputs, vector)
        return outputs, pull(cotangent)[0]
