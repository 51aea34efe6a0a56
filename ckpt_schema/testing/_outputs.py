"""The law that two models are one function, for leaves that are alike may be exchanged.

What two models compute is compared in units of rounding: a state is drawn, and every weight of it
is rounded anew. By as much as that changes an output or a gradient may the models differ, times a
tolerance, and by no more.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ckpt_schema._layouts.paths import fill, format_path
from ckpt_schema._layouts.table import Layout, Slot
from ckpt_schema._lens.lens import Lens
from ckpt_schema._trees.conformance import Match, Matcher, check
from ckpt_schema._trees.containers import Tree
from ckpt_schema.errors import Mismatch
from ckpt_schema.testing._gradients import Measured, Model, is_float, numbers, pairs
from ckpt_schema.testing._laws import LawError
from ckpt_schema.testing._states import bound, demands

__all__ = ["Compared", "Comparison", "Outputs", "function"]

Outputs = tuple[Callable[[Any], Any], Callable[[Any], Any]]
"""What the model of the source computes with a state, and what that of the view does: arrays in any
containers."""

_Both = tuple[Measured, Measured]
_Arrays = tuple[Any, Any]
_NOISE = 0.2  # how far floats are moved, as a ratio to the leaf's own size, or if that is nothing
_GROWTH = (1.0, 2.0, 1.0, 2.0)  # how large the weights of each draw are, as a ratio to the given
_ROUNDED = 2  # how often the weights of a draw are rounded anew
_FAINT = 1e-3  # of the greatest gradient: what a gradient is taken for that is less


def function(
    lens: Lens,
    s: Tree,
    v: Tree | None,
    outputs: Outputs,
    tolerance: float,
    *,
    gradients: bool = True,
) -> None:
    """``g(get(s, onto=v))`` is ``f(s)``, and the gradient of ``g`` is that of ``f`` carried over.

    Args:
        lens: The lens.
        s: A concrete state of the source, such as training begins with.
        v: One of the view, whose container and private leaves are taken; defaults without.
        outputs: ``f`` and ``g``.
        tolerance: By how much both may differ, as a multiple of what one rounding of every weight
            changes.
        gradients: Whether gradients are compared beside outputs.

    Raises:
        LawError: With every output that is another, is not finite, or is the same whatever the
            state, and with every leaf whose gradient is another.
    """
    models = (
        Model("source_outputs", outputs[0], gradients=gradients),
        Model("view_outputs", outputs[1], gradients=gradients),
    )
    Comparison(lens, s, v, models).verify(tolerance)


@dataclasses.dataclass(frozen=True)
class Compared:
    """An output, or the gradient of a leaf, of both models for one draw.

    Attributes:
        name: Of the output, or of the leaf.
        kind: ``outputs`` or ``gradient``.
        size: How great it is.
        off: By how much the models differ.
        units: The same as a multiple of what rounding changes.
    """

    name: str
    kind: str
    size: float
    off: float
    units: float

    def mismatch(self) -> Mismatch:
        """As a fault."""
        expected = "what the source computes" if self.kind == "outputs" else "that of the source"
        return Mismatch(
            self.name,
            self.kind,
            f"{expected}, of size {self.size:.2g}",
            f"a difference of {self.off:.2g}, about {self.units:.1g} times what one rounding changes",
        )


class Comparison:
    """Two models with a lens between them, each compiled once."""

    def __init__(self, lens: Lens, s: Tree, v: Tree | None, models: tuple[Model, Model]) -> None:
        """Keeps the lens for the sizes of both states, the states, and the models."""
        given = check(lens.source, s).dims
        given = given if v is None else {**check(lens.view, v).dims, **given}
        self._lens, self._s, self._v = bound(lens, {**given, **lens.dims}), s, v
        self._f, self._g = models
        self._source = Matcher(self._lens.source).match(s)
        self._view = Matcher(self._lens.view).match(self._lens.get(s, onto=v))

    def verify(self, tolerance: float, seed: int = 0) -> None:
        """Raises what `function` raises, for the states that a seed draws.

        Where one of two states differs, two more are drawn, and one of these must differ too: a
        step from one branch to another, as at the corner of a ReLU, may show in one.
        """
        rng = np.random.default_rng(seed)
        first, second = self._first(rng)
        differing = [self._differing(first, tolerance), self._differing(second, tolerance)]
        if any(differing) and not all(differing):
            for growth in _GROWTH[2:]:
                differing.append(self._differing(self._measured(rng, growth), tolerance))
        faults = self._unfit(first, second)
        wrong = [each for each in differing if each]
        if len(wrong) > 1:
            # Of several states that tell the same, one is shown: where it is plainest.
            worst = max(wrong, key=lambda each: max(x.units for x in each))
            faults += [each.mismatch() for each in worst]
        if faults:
            hint = (
                "are leaves of one shape exchanged, or dims of one size? "
                "Do both run without dropout?"
            )
            raise LawError("the models compute different things", faults, [hint])

    def draws(self, seed: int = 0) -> list[list[Compared]]:
        """All that is compared, for each of the two states that a seed draws first."""
        first, second = self._first(np.random.default_rng(seed))
        return [self._compared(first), self._compared(second)]

    # --- What is measured  ---

    def _first(self, rng: np.random.Generator) -> tuple[list[_Both], list[_Both]]:
        """What is measured for two states, the second of larger weights unless too large."""
        first = self._measured(rng, _GROWTH[0])
        self._verify_shapes(*first[0])
        # Larger weights show what is nearly linear else, unless an output overflows.
        second = self._measured(rng, _GROWTH[1])
        return first, second if _finite(second) else self._measured(rng, _GROWTH[0])

    def _measured(self, rng: np.random.Generator, growth: float) -> list[_Both]:
        """What both models compute with a state, and with the same after each rounding of it."""
        drawn = self._carried(_drawn(self._s, rng, growth))
        measured = [self._both(drawn)]
        unit = max(self._f.unit, self._g.unit)
        for _ in range(_ROUNDED):
            measured.append(self._both(self._carried(_rounded(drawn, rng, unit))))
        return measured

    def _both(self, s: Tree) -> _Both:
        return self._f(s), self._g(self._lens.get(s, onto=self._v))

    def _carried(self, s: Tree) -> Tree:
        """The state with what the lens asks of values: fills in padding, copies that are equal."""
        asked = demands(self._lens, 0)
        if asked is None:
            return s
        match = Matcher(self._lens.source).match(s)
        leaves = list(match.flat.leaves)
        # Floats alone were moved: all else is as it was given, and so as the lens asks.
        values: dict[Slot, Any] = {}
        for slot, at in match.slots.items():
            if is_float(leaves[at]):
                values[slot] = np.asarray(leaves[at])
        asked.settle(values, self._lens.dims)
        for slot, value in values.items():
            leaves[match.slots[slot]] = _placed(value, leaves[match.slots[slot]])
        return match.flat.treedef.unflatten(leaves)

    # --- What is compared  ---

    def _verify_shapes(self, one: Measured, other: Measured) -> None:
        names, others = list(map(format_path, one.names)), list(map(format_path, other.names))
        if names != others:
            fault = Mismatch("", "outputs", str(names), str(others))
            raise LawError("the models have other outputs", [fault])
        faults: list[Mismatch] = []
        for name, x, y in zip(names, one.outputs, other.outputs, strict=True):
            if x.shape != y.shape:
                expected = f"the shape {x.shape}"
                faults.append(Mismatch(name, "outputs", expected, str(y.shape)))
        if faults:
            raise LawError("the models have outputs of other shapes", faults)

    def _unfit(self, *draws: list[_Both]) -> list[Mismatch]:
        """Outputs that are no numbers, or tell nothing of the state."""
        (one, other), (second, _) = draws[0][0], draws[1][0]
        faults: list[Mismatch] = []
        for at, key in enumerate(one.names):
            values = one.outputs[at], other.outputs[at], second.outputs[at]
            if not np.isfinite(np.stack(values)).all():
                faults.append(Mismatch(format_path(key), "outputs", "finite numbers", "others"))
            # A model that uses weights of its own agrees with every other of the same weights.
            elif np.array_equal(values[0], values[2]):
                said = "what depends on the state", "the same for two states"
                hint = "use the state that is given"
                faults.append(Mismatch(format_path(key), "outputs", *said, hint))
        return faults

    def _differing(self, measured: list[_Both], tolerance: float) -> list[Compared]:
        """What differs by more than it may, for one draw."""
        return [each for each in self._compared(measured) if not each.units <= tolerance]

    def _compared(self, measured: Sequence[_Both]) -> list[Compared]:
        """Every output, and the gradient of every leaf, for one draw."""
        # Both models compute in the coarser precision of the two, as far as rounding goes.
        unit = max(self._f.unit, self._g.unit)
        compared: list[Compared] = []
        for at, key in enumerate(measured[0][0].names):
            values = [(one.outputs[at], other.outputs[at]) for one, other in measured]
            compared.append(_compared(format_path(key), "outputs", values, unit))
        by_leaf = [self._by_leaf(*both) for both in measured]
        greatest = max((_size(x) for x, _ in by_leaf[0].values()), default=0.0)
        for layout, slot in by_leaf[0]:
            # A gradient has the dtype of its leaf, and is rounded to it.
            own = max(unit, _unit(layout.rows[slot[0]].leaf.dtype))
            values = [each[layout, slot] for each in by_leaf]
            name = _spelled(layout, slot)
            compared.append(_compared(name, "gradient", values, own, _FAINT * greatest))
        return compared

    def _by_leaf(self, one: Measured, other: Measured) -> dict[tuple[Layout, Slot], _Arrays]:
        """The gradients that must be equal, by the leaf whose they are."""
        ours, theirs = _by_slot(self._source, one), _by_slot(self._view, other)
        tables = self._lens.source, self._lens.view
        gradients: dict[tuple[Layout, Slot], _Arrays] = {}
        for side, slot, x, y in pairs(self._lens, ours, theirs):
            gradients[tables[side], slot] = x, y
        return gradients


def _by_slot(match: Match, measured: Measured) -> dict[Slot, Any]:
    gradients = measured.gradients
    return {slot: gradients[at] for slot, at in match.slots.items() if at in gradients}


def _spelled(layout: Layout, slot: Slot) -> str:
    return format_path(fill(layout.rows[slot[0]].key, slot[1]))


def _finite(measured: Sequence[_Both]) -> bool:
    """Whether all outputs of both models are numbers."""
    for one, other in measured:
        for output in (*one.outputs, *other.outputs):
            if not np.isfinite(output).all():
                return False
    return True


def _compared(
    name: str, kind: str, values: Sequence[_Arrays], unit: float, faint: float = 0.0
) -> Compared:
    """Values of both models for a state and for its roundings; what is NaN is not compared."""
    kept = np.ones(np.shape(values[0][0]), bool)
    for one, other in values:
        kept &= np.isfinite(one) & np.isfinite(other)
    (one, other), *rounded = [(x[kept], y[kept]) for x, y in values]
    apart, ours, theirs = [one - other], list[Any](), list[Any]()
    for x, y in rounded:
        apart.append(x - y)
        ours.append(x - one)
        theirs.append(y - other)
    off = _size(apart)
    # What rounding changes in the model that it changes more is the measure of both.
    spread = max(_size(ours), _size(theirs))
    size = max(_size(one), _size(other))
    # An output that no weight has a part in is rounded by itself.
    least = max(spread, unit * max(size, faint))
    return Compared(name, kind, size, off, off / least if off else 0.0)


def _size(values: Any) -> float:
    """The root of the mean square of all elements."""
    array = np.asarray(values)
    return float(np.sqrt(np.mean(np.abs(array) ** 2))) if array.size else 0.0


def _unit(dtype: Any) -> float:
    return float(jnp.finfo(dtype).eps)


# --- States that are drawn  ---


def _drawn(tree: Tree, rng: np.random.Generator, growth: float) -> Tree:
    """The tree with every float moved: no bias is zero, no scale one, nothing newly negative.

    Leaves with negative elements are weights. Where these are to grow, they are so many times as
    large, and large enough for a sum of products with them to be of the size of what comes in: so
    that what is not linear acts. Counters are ahead of each other by a few steps.
    """

    def draw(x: Any) -> Any:
        if is_float(x):
            value, size = numbers(x), _size(numbers(x))
            if np.iscomplexobj(value) or (value < 0).any():
                # All axes but the last are summed over, as in a kernel.
                least = max(1, math.prod(x.shape[:-1])) ** -0.5 if growth > 1 else 0.0
                larger = max(growth, least / size)
                noise = _NOISE * size * rng.standard_normal(x.shape)
                return _placed(larger * (value + noise), x)
            # Variances and scales have to stay positive.
            return _placed(value + _NOISE * (size or 1.0) * rng.random(x.shape), x)
        counts = isinstance(x, (jax.Array, np.ndarray)) and jnp.issubdtype(x.dtype, jnp.integer)
        # Tables of integers are no counters, and may be places in other arrays.
        return _placed(np.asarray(x) + rng.integers(0, 8), x) if counts and not x.ndim else x

    return jax.tree.map(draw, tree)


def _rounded(tree: Tree, rng: np.random.Generator, unit: float) -> Tree:
    """The tree with every float a unit of rounding greater or less."""

    def draw(x: Any) -> Any:
        if not is_float(x):
            return x
        signs = rng.choice((-1.0, 1.0), x.shape)
        return _placed(numbers(x) * (1 + max(unit, _unit(x.dtype)) * signs), x)

    return jax.tree.map(draw, tree)


def _placed(value: Any, like: Any) -> Any:
    """A value of the dtype of a leaf, where that is."""
    made = np.asarray(value).astype(like.dtype)
    return jax.device_put(made, like.sharding) if isinstance(like, jax.Array) else made
