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
from ckpt_schema._layouts.paths import KeyPath, LogicalPath, fill
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
from ckpt_schema.testing._values import Bounds, Request, Values, make

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
        plain: Rows of numbers that are added up or scaled: neither infinite nor far from 1, for a
            sum that overflows is refused.
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
        slots: list[Slot] = []
        requests: list[Request] = []
        for at, row in enumerate(rows):
            if at in absent:
                continue
            request = row.leaf.dtype, self._shape(row), self.bounds.get(at)
            for indices in slots_of(row, self.sizes):
                slots.append((at, indices))
                requests.append(request)
        # All leaves are made at once, which is many times as fast as one after the other.
        made = dict(zip(slots, make(rng, requests, values), strict=True))
        for slot in made:
            if slot[0] in self.plain:
                made[slot] = _plain(made[slot])
        # A zero that loses its sign is the fault easiest to overlook: every leaf gets one to flip.
        if self.flipped is not None:
            for slot, value in made.items():
                made[slot] = _with_zero(value)
        if self.carried is not None:
            self.carried.settle(made, self.sizes)
        # The flip comes after the settling, which would mend it.
        if self.flipped is not None:
            self._flip(made, rng)
        built: list[tuple[KeyPath, Row, Any]] = []
        for (at, indices), value in made.items():
            leaf = self._leaf(rows[at], value, place)
            built.append((fill(rows[at].key, indices), rows[at], leaf))
        return containers.build(self.layout, built, self.sizes)

    def _flip(self, made: dict[Slot, Any], rng: np.random.Generator) -> None:
        """Makes one bit another, where something may begin, or of the zero that all leaves have in front."""
        slots: list[Slot] = []
        for slot, value in made.items():
            if "/".join(self.layout.rows[slot[0]].path) == self.flipped and value.size:
                slots.append(slot)
        if slots:
            slot = slots[int(rng.integers(len(slots)))]
            made[slot] = _flipped(made[slot], rng, [*self.sizes.values()])

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
    several: list[Maker] = []
    for layout in layouts:
        bounds: dict[int, Bounds] = {}
        for at, row in enumerate(layout.rows):
            if row.path in common:
                bounds[at] = common[row.path]
        several.append(Maker(layout, sizes, bounds, number and not several))
    return tuple(several)


def _common(dtypes: Collection[str]) -> Bounds:
    """The least and the greatest integer that all dtypes hold: ``(0, 127)`` of int8 and uint8."""
    lows: list[int] = []
    highs: list[int] = []
    for dtype in dtypes:
        info = jnp.iinfo(dtype)
        lows.append(int(info.min))
        highs.append(int(info.max))
    return max(lows), min(highs)


def _plain(value: Any) -> Any:
    """The leaf with ones for floats that are no numbers, or very great or small."""
    if not jnp.issubdtype(value.dtype, jnp.floating):
        return value
    with np.errstate(all="ignore"):
        size = np.abs(value.astype(np.float64))
        # NaN is neither, and so becomes a one too.
        return np.where((size >= 2.0**-6) & (size <= 2.0**6), value, np.ones_like(value))


def _with_zero(value: Any) -> Any:
    """The leaf with a zero in front, where it holds floats."""
    if not value.size or not jnp.issubdtype(value.dtype, jnp.floating):
        return value
    zeroed = value.copy()
    zeroed[(0,) * value.ndim] = 0
    return zeroed


def _flipped(value: Any, rng: np.random.Generator, begins: Sequence[int]) -> Any:
    """The leaf with another bit: of keys one of one word, of numbers the sign as often as the lowest."""
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        data = _flipped(np.asarray(jax.random.key_data(value)), rng, begins)
        return jax.random.wrap_key_data(jnp.asarray(data), impl=jax.random.key_impl(value))
    flipped, zero = value.copy(), not rng.integers(2)
    index = (0,) * value.ndim
    if not zero:
        # Where padding begins, or a part: at the size of a dim.
        places: list[int] = []
        for length in value.shape:
            pool = [at for at in begins if at < length] or [length - 1]
            places.append(int(rng.choice(pool)))
        index = tuple(places)
    octets = np.ascontiguousarray(flipped[index]).reshape(1).view(np.uint8)
    # The last octet has the sign; what is narrower than an octet has its own bits lowest in it.
    sign = {"bool": 0x01, "int4": 0x08, "uint4": 0x08}.get(flipped.dtype.name, 0x80)
    signed = zero or bool(rng.integers(2))
    octets[-1 if signed else 0] ^= sign if signed else 0x01
    flipped[index] = octets.view(flipped.dtype)[0]
    return flipped


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
    bounds = {**_bounds(lens, side), **_exponents(lens, side)}
    freed: set[int] = set()
    for at, row in enumerate(layout.rows):
        if "/".join(row.path) == free:
            freed.add(at)
            bounds.pop(at, None)
    carries = demands(lens, side)
    if carries is not None:
        # A join that reads the leaf would settle it; the others still hold.
        joins = [join for join in carries.joins if freed.isdisjoint(join.sources)]
        carries = Demand(tuple(joins), carries.rows)
    return Maker(layout, lens.dims, bounds, number, carries, flipped, _computed_rows(lens, side))


def _computed_rows(lens: Lens, side: int) -> frozenset[int]:
    """The rows of one side that are computed with, or are what is computed of those of the other."""
    pairs: list[tuple[int, int]] = []
    for join in lens.joins:
        pairs += join.pairs
    rows: set[int] = set()
    for own, folds in enumerate(lens.folds):
        for fold in folds:
            if own == side:
                rows.update(fold.parts)
            else:
                rows.update(pair[side] for pair in pairs if pair[own] == fold.row)
    return frozenset(rows)


def _exponents(lens: Lens, side: int) -> dict[int, Bounds]:
    """For the rows of one side that are exponents of scales: some not far from those of 1."""
    table, found = (lens.source, lens.view)[side], dict[int, Bounds]()
    for fold in lens.folds[side]:
        scales = fold.others[0]
        if isinstance(fold.kind, Scaling) and table.rows[scales].leaf.dtype == "uint8":
            found[scales] = 121, 133
    return found


def refusable(lens: Lens, side: int) -> tuple[str, ...]:
    """The logical paths of the leaves of one side with values that a lens may refuse: it casts, unpads, scales or ties them."""
    layout, refused = (lens.source, lens.view)[side], {*_bounds(lens, side)}
    carries = demands(lens, side)
    if carries is not None:
        refused.update(*(join.sources for join in carries.joins))
    return tuple("/".join(layout.rows[at].path) for at in sorted(refused))


def _bounds(lens: Lens, side: int) -> dict[int, Bounds]:
    """For the rows of one side that are integers of another dtype on the other: the values that both hold."""
    bounds: dict[int, Bounds] = {}
    for join in lens.joins:
        for source, view in join.pairs:
            dtypes = lens.source.rows[source].leaf.dtype, lens.view.rows[view].leaf.dtype
            if dtypes[0] != dtypes[1] and all(map(is_integer, dtypes)):
                low, high = _common(dtypes)
                # A row with several partners, parts of it, holds what all of them can.
                row = (source, view)[side]
                before = bounds.get(row, (low, high))
                bounds[row] = max(low, before[0]), min(high, before[1])
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
                if not values.keys() >= {*made.inputs}:
                    continue
                if other.keys() >= {*made.results}:
                    continue  # this is a copy of what was there before
                kept = {slot: _survivors(made, slot, values[slot]) for slot in made.inputs}
                other |= carry(made, kept, {}, self.rows[0], sizes)
                if own is not None:
                    own |= kept
            for made in applications(join.inverse, (self.rows[1], self.rows[0]), sizes):
                # A leaf that is absent on this side is not made.
                if not other.keys() >= {*made.inputs}:
                    continue
                if values.keys() >= {*made.results}:
                    back = carry(made, other, values, self.rows[1], sizes)
                    values |= back if own is None else own


def demands(lens: Lens, side: int) -> Demand | None:
    """What a lens asks of the values of its source (0) or view (1), if it asks anything."""
    rows = lens.wholes[0].rows, lens.wholes[1].rows
    # What is computed is no leaf that a value could be written to.
    products = {one.row for one in lens.folds[side] if not isinstance(one.kind, Addition)}
    turned: list[Join] = []
    sources: collections.Counter[int] = collections.Counter()
    views: collections.Counter[int] = collections.Counter()
    for given in lens.joins:
        join = given if side == 0 else given.inverse
        if products.isdisjoint(join.sources):
            turned.append(join)
            sources.update(join.sources)
            views.update(join.views)
    asking: list[Join] = []
    for join in turned:
        # Two joins of one row are copies, which have to stay equal: ties, and what is kept twice.
        is_shared = any(sources[row] > 1 for row in join.sources)
        is_shared = is_shared or any(views[row] > 1 for row in join.views)
        if is_shared or _scales_or_cuts(join) or _has_copies(join):
            asking.append(join)
    return Demand(tuple(asking), rows if side == 0 else (rows[1], rows[0])) if asking else None


def _scales_or_cuts(join: Join) -> bool:
    """Whether a join changes floats, cuts padding off, or compares copies."""
    for cell in join.cells:
        is_cut = cell.is_constant and isinstance(cell.source, int)
        if is_cut or changes_floats(cell.codec) or any(cell.compares):
            return True
    return False


def _only_rounds(join: Join) -> bool:
    """Whether nothing but what a join may lose keeps values from coming back."""
    for cell in join.cells:
        if cell.is_constant or any(cell.compares) or is_checked(cell.codec):
            return False
    return not _has_copies(join)


def _has_copies(join: Join) -> bool:
    """Whether a leaf of the source keeps several times what the view has once."""
    for cell in join.cells:
        if cell.is_constant:
            continue
        for digit in cell.geometry.digits:
            # It goes nowhere in the view: the source's copies are read one after the other.
            if digit.at[1] is None:
                return True
    return False


def _survivors(made: Application, slot: Slot, value: Any) -> Any:
    """A leaf; elements that a scaling, or a cast of floats, would not give back are zero."""
    codec = scaled_by(made.task).get(made.inputs.index(slot))
    if codec is None:
        return value
    lost = np.zeros(value.shape, bool)
    after = value
    for word in codec:  # what each makes of the number before it is what is refused
        before, after = after, converted(after, (word,))
        lost |= ~_survives(before, after, word)
    return np.where(lost, np.zeros_like(value), value)


def _survives(given: Any, made: Any, word: Word) -> Any:
    """Which elements a word gives back: to the last bit, or up to its loss where it has one."""
    back = converted(made, (word.inverse,))
    if not isinstance(word, Exact):
        return within_loss(given, back, (word,))
    bits = f"u{given.dtype.itemsize}"
    same = np.ascontiguousarray(given).view(bits) == np.ascontiguousarray(back).view(bits)
    if word.exponent:
        same &= ~(subnormal(given) | subnormal(made))  # devices flush them to zero
    return same
