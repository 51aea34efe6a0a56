"""Random trees of a layout, with values that a lens can carry."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ckpt_schema._layouts.dims import sizes_of
from ckpt_schema._layouts.paths import LogicalPath, fill
from ckpt_schema._layouts.precision import verify_closed
from ckpt_schema._layouts.table import Layout, Row, Slot, slots_of
from ckpt_schema._lens.arrays.conversions import converted, is_checked, subnormal
from ckpt_schema._lens.codecs import Exact, Word
from ckpt_schema._lens.derive.joins import Join
from ckpt_schema._lens.fold_rules import Addition, Scaling
from ckpt_schema._lens.lens import Lens
from ckpt_schema._lens.plan.tasks import Application, applications
from ckpt_schema._trees import containers
from ckpt_schema.testing._applied import carry, changes_floats, is_integer, scaled_by
from ckpt_schema.testing._lossy import within_loss
from ckpt_schema.testing._meshes import Placer
from ckpt_schema.testing._values import Bounds, Values, make

__all__ = ["Demand", "Maker", "bound", "demands", "maker", "makers", "refusable"]


@dataclasses.dataclass(frozen=True)
class Maker:
    """Makes random trees of one layout.

    Attributes:
        layout: The layout.
        sizes: All of its dims, in elements.
        bounds: For rows whose partners have other integer dtypes: the values that all can hold.
        number: Whether a step is a Python number, as ``TrainState.create`` leaves it.
        carried: What else is asked of the values.
        flipped: The logical path of a leaf of whose values one bit is another than the lens carries.
        plain: Rows of numbers of which new scales may be made: neither infinite nor far from 1.
    """

    layout: Layout
    sizes: Mapping[str, int]
    bounds: Mapping[int, Bounds] = dataclasses.field(default_factory=dict[int, Bounds])
    number: bool = False
    carried: Demand | None = None
    flipped: str | None = None
    plain: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        """Refuses leaves of any float: it is said of each which it is."""
        verify_closed(self.layout, "a state")

    def __call__(
        self,
        rng: np.random.Generator,
        place: Placer,
        absent: Collection[int] = (),
        values: Values = "hostile",
    ) -> containers.Tree:
        """A tree in the layout's own container.

        Args:
            rng: Where the values come from.
            place: What makes a leaf of a value.
            absent: The numbers of (optional) rows that it lacks.
            values: What stands in the leaves.
        """
        rows = self.layout.rows
        slots = [
            (at, indices)
            for at, row in enumerate(rows)
            if at not in absent
            for indices in slots_of(row, self.sizes)
        ]
        requests = [
            (rows[at].leaf.dtype, self._shape(rows[at]), self.bounds.get(at)) for at, _ in slots
        ]
        found = dict(zip(slots, make(rng, requests, values), strict=True))
        for slot in found:
            if slot[0] in self.plain:
                found[slot] = _plain(found[slot])
        if self.flipped is not None:
            found = {slot: _with_zero(value) for slot, value in found.items()}
        if self.carried is not None:
            self.carried.settle(found, self.sizes)
        if self.flipped is not None:
            self._flip(found, rng)
        leaves = (
            (fill(rows[at].key, indices), rows[at], self._leaf(rows[at], found[at, indices], place))
            for at, indices in slots
        )
        return containers.build(self.layout, leaves, self.sizes)

    def _flip(self, found: dict[Slot, Any], rng: np.random.Generator) -> None:
        """Makes one bit another, where something may begin, or of the zero that all leaves have in front."""
        slots = [
            slot
            for slot, value in found.items()
            if "/".join(self.layout.rows[slot[0]].path) == self.flipped and value.size
        ]
        if slots:
            slot = slots[int(rng.integers(len(slots)))]
            found[slot] = _flipped(found[slot], rng, [*self.sizes.values()])

    def _shape(self, row: Row) -> tuple[int, ...]:
        shape = sizes_of(row.dims, self.sizes)
        assert shape is not None, f"unbound dims in {row}"
        return shape

    def _leaf(self, row: Row, value: Any, place: Placer) -> Any:
        return int(value) if self.number and row.path == ("step",) else place(value)


def makers(sizes: Mapping[str, int], *layouts: Layout, number: bool = False) -> tuple[Maker, ...]:
    """One maker per layout; integers are such that the dtype of every layout holds them.

    With ``number``, the step of the first is a Python number, as ``TrainState.create`` leaves it.
    """
    dtypes: dict[LogicalPath, set[str]] = {}
    for layout in layouts:
        for row in layout.rows:
            dtypes.setdefault(row.path, set()).add(row.leaf.dtype)
    common = {path: _common(kinds) for path, kinds in dtypes.items() if len(kinds) > 1}
    bounds = [
        {at: common[row.path] for at, row in enumerate(each.rows) if row.path in common}
        for each in layouts
    ]
    return tuple(
        Maker(each, sizes, own, number and at == 0)
        for at, (each, own) in enumerate(zip(layouts, bounds, strict=True))
    )


def _common(dtypes: Collection[str]) -> Bounds:
    infos = [jnp.iinfo(dtype) for dtype in dtypes]
    return max(int(info.min) for info in infos), min(int(info.max) for info in infos)


def _plain(value: Any) -> Any:
    """The leaf with ones for floats that are no numbers, or very great or small."""
    if not jnp.issubdtype(value.dtype, jnp.floating):
        return value
    with np.errstate(all="ignore"):
        size = np.abs(value.astype(np.float64))
        return np.where((size >= 2.0**-6) & (size <= 2.0**6), value, np.ones_like(value))


def _with_zero(value: Any) -> Any:
    """The leaf with a zero in front, where it holds floats."""
    if not value.size or not jnp.issubdtype(value.dtype, jnp.floating):
        return value
    found = value.copy()
    found[(0,) * value.ndim] = 0
    return found


def _flipped(value: Any, rng: np.random.Generator, begins: Sequence[int]) -> Any:
    """The leaf with another bit: of keys one of one word, of numbers the sign as often as the lowest."""
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        data = _flipped(np.asarray(jax.random.key_data(value)), rng, begins)
        return jax.random.wrap_key_data(jnp.asarray(data), impl=jax.random.key_impl(value))
    found, zero = value.copy(), not rng.integers(2)
    # Where padding begins, or a part: at the size of a dim.
    places = [[at for at in begins if at < length] or [length - 1] for length in value.shape]
    index = tuple(0 if zero else int(rng.choice(pool)) for pool in places)
    octets = np.ascontiguousarray(found[index]).reshape(1).view(np.uint8)
    # The last octet has the sign; what is narrower than an octet has its own bits lowest in it.
    sign = {"bool": 0x01, "int4": 0x08, "uint4": 0x08}.get(found.dtype.name, 0x80)
    signed = zero or bool(rng.integers(2))
    octets[-1 if signed else 0] ^= sign if signed else 0x01
    found[index] = octets.view(found.dtype)[0]
    return found


def maker(
    lens: Lens,
    side: int,
    *,
    number: bool = False,
    free: str | None = None,
    flipped: str | None = None,
) -> Maker:
    """A maker of trees of the source (0) or view (1) of a lens whose dims are all bound.

    Args:
        lens: The lens.
        side: 0 or 1.
        number: Whether a step is a Python number.
        free: The logical path of a leaf with any values; what stands in all others the lens can carry.
        flipped: That of a leaf of whose values one bit is another.
    """
    layout = (lens.source, lens.view)[side]
    kept = [at for at, row in enumerate(layout.rows) if "/".join(row.path) != free]
    bounds = {at: found for at, found in _bounds(lens, side).items() if at in kept}
    carries = demands(lens, side)
    if carries is not None:
        carries = Demand(
            tuple(join for join in carries.joins if all(row in kept for row in join.sources)),
            carries.rows,
        )
    return Maker(layout, lens.dims, bounds, number, carries, flipped, _scaled_rows(lens, side))


def _scaled_rows(lens: Lens, side: int) -> frozenset[int]:
    """The rows of one side that have scales, or are the products with those of the other."""
    found: set[int] = set()
    for own, folds in enumerate(lens.folds):
        for fold in folds:
            if isinstance(fold.kind, Scaling):
                pairs = [pair for join in lens.joins for pair in join.pairs]
                partners = {pair[side] for pair in pairs if pair[own] == fold.row}
                found.update(fold.parts if own == side else partners)
    return frozenset(found)


def refusable(lens: Lens, side: int) -> tuple[str, ...]:
    """The logical paths of the leaves of one side with values that a lens may refuse: it casts, unpads, scales or ties them."""
    rows = {*_bounds(lens, side)}
    carries = demands(lens, side)
    if carries is not None:
        rows |= {row for join in carries.joins for row in join.sources}
    return tuple("/".join((lens.source, lens.view)[side].rows[at].path) for at in sorted(rows))


def _bounds(lens: Lens, side: int) -> dict[int, Bounds]:
    """For the rows of one side that are integers of another dtype on the other: the values that both hold."""
    layouts = lens.source, lens.view
    bounds: dict[int, Bounds] = {}
    for join in lens.joins:
        for pair in join.pairs:
            dtypes = [layout.rows[at].leaf.dtype for layout, at in zip(layouts, pair, strict=True)]
            if len({*dtypes}) > 1 and all(is_integer(dtype) for dtype in dtypes):
                low, high = _common(dtypes)
                before = bounds.get(pair[side], (low, high))
                bounds[pair[side]] = max(low, before[0]), min(high, before[1])
    return bounds


def bound(lens: Lens, sizes: Mapping[str, int]) -> Lens:
    """The lens for fixed sizes of all its dims."""
    known = lens.source.names() | lens.view.names()
    return lens.bind(**{name: size for name, size in sizes.items() if name in known})


# --- What a lens asks of values  ---


@dataclasses.dataclass(frozen=True)
class Demand:
    """What a lens asks of the values of one side, beyond their dtypes.

    Attributes:
        joins: Those that only some values survive, and those of what a side stores twice; their source is this side.
        rows: The rows of this side, and of the other.
    """

    joins: tuple[Join, ...]
    rows: tuple[Sequence[Row], Sequence[Row]]

    def settle(self, values: dict[Slot, Any], sizes: Mapping[str, int]) -> None:
        """Replaces what would not survive: each leaf becomes what comes back from the other side.

        Args:
            values: The leaves by slot; a slot without one is left alone.
            sizes: The sizes of all dims, in elements.
        """
        other: dict[Slot, Any] = {}
        for join in self.joins:
            # What only rounds is not asked to come back: its own values are harder than these.
            own: dict[Slot, Any] | None = {} if _only_rounds(join) else None
            for made in applications(join, self.rows, sizes):
                if not all(slot in values for slot in made.inputs):
                    continue
                if all(slot in other for slot in made.results):
                    continue  # this is a copy of what was there before
                kept = {slot: _survivors(made, slot, values[slot]) for slot in made.inputs}
                other |= carry(made, kept, {}, self.rows[0], sizes)
                if own is not None:
                    own |= kept
            for made in applications(join.inverse, (self.rows[1], self.rows[0]), sizes):
                if all(slot in other for slot in made.inputs) and all(
                    slot in values for slot in made.results
                ):
                    back = carry(made, other, values, self.rows[1], sizes)
                    values |= back if own is None else own


def demands(lens: Lens, side: int) -> Demand | None:
    """What a lens asks of the values of its source (0) or view (1), if it asks anything."""
    rows = lens.wholes[0].rows, lens.wholes[1].rows
    turned = lens.joins if side == 0 else tuple(join.inverse for join in lens.joins)
    # What is computed is no leaf that a value could be written to.
    products = {one.row for one in lens.folds[side] if not isinstance(one.kind, Addition)}
    turned = tuple(join for join in turned if products.isdisjoint(join.sources))
    uses = collections.Counter(
        (end, row) for join in turned for end in (0, 1) for row in _ends(join)[end]
    )
    found = [
        join
        for join in turned
        if _scales_or_cuts(join)
        or _has_copies(join)
        or any(uses[end, row] > 1 for end in (0, 1) for row in _ends(join)[end])
    ]
    return Demand(tuple(found), rows if side == 0 else (rows[1], rows[0])) if found else None


def _scales_or_cuts(join: Join) -> bool:
    return any(
        (cell.is_constant and isinstance(cell.source, int))
        or changes_floats(cell.codec)
        or any(cell.compares)
        for cell in join.cells
    )


def _only_rounds(join: Join) -> bool:
    """Whether nothing but what a join may lose keeps values from coming back."""
    looks = any(cell.is_constant or any(cell.compares) for cell in join.cells)
    checked = any(is_checked(cell.codec) for cell in join.cells)
    return not looks and not checked and not _has_copies(join)


def _has_copies(join: Join) -> bool:
    """Whether a leaf of the source keeps several times what the view has once."""
    both = (cell.geometry.digits for cell in join.cells if not cell.is_constant)
    return any(digit.at[1] is None for digits in both for digit in digits)


def _ends(join: Join) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return join.sources, join.views


def _survivors(made: Application, slot: Slot, value: Any) -> Any:
    """A leaf; elements that a scaling, or a cast of floats, would not give back are zero."""
    codec = scaled_by(made.task).get(made.inputs.index(slot))
    if codec is None:
        return value
    lost = np.zeros(value.shape, bool)
    made = value
    for word in codec:  # what each makes of the number before it is what is refused
        given, made = made, converted(made, (word,))
        lost |= ~_survives(given, made, word)
    return np.where(lost, np.zeros_like(value), value)


def _survives(given: Any, made: Any, word: Word) -> Any:
    """Which elements a word gives back: to the last bit, or up to its loss where it has one."""
    back = converted(made, (word.inverse,))
    if not isinstance(word, Exact):
        return within_loss(given, back, (word,))
    both = [np.ascontiguousarray(x).view(f"u{given.dtype.itemsize}") for x in (given, back)]
    same = both[0] == both[1]
    if word.exponent:
        same &= ~(subnormal(given) | subnormal(made))  # devices flush them to zero
    return same
