"""Strategies: sizes, states, meshes and shardings for a schema or a lens, which shrink to what a person can read."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from jax.sharding import Mesh, PartitionSpec

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts.dims import Dim
from ckpt_schema._layouts.paths import format_path
from ckpt_schema._layouts.schema import Schema, layout
from ckpt_schema._layouts.sizes import ONE, Size
from ckpt_schema._layouts.table import Layout, Row
from ckpt_schema._lens.lens import Lens
from ckpt_schema._lens.plan.folded_leaves import scale_dims, with_scales
from ckpt_schema._lens.plan.tasks import needed
from ckpt_schema.errors import Mismatch, SchemaError
from ckpt_schema.testing._choices import Choices
from ckpt_schema.testing._container_kinds import container_kinds
from ckpt_schema.testing._meshes import MESHES, MeshSpec, all_shardings, mesh
from ckpt_schema.testing._samples import Sample
from ckpt_schema.testing._values import VALUES

__all__ = [
    "Bound",
    "Space",
    "counts",
    "mesh_and_specs",
    "optional",
    "samples",
    "sizes",
    "space",
    "states",
]

Bound = int | tuple[int, int]
"""The size of a dim, or the least and the greatest."""
_SIZES = (1, 2, 3, 4, 8, 0)  # what divides over meshes, what does not, and nothing at all
# The greatest size, and number of layers, which is less: each layer has leaves, which take time.
_MOST, _LAYERS = 8, 4
_SEEDS = st.integers(0, 2**32 - 1)
_MANY, _LONG = 12, (625, 79, 17)  # numbers of layers, and sizes, that are drawn now and then
_ROOM = (500, 100_000)  # leaves and elements that such a state may have

Subject = type[Schema] | Layout | Lens


@dataclasses.dataclass(frozen=True)
class Space:
    """All sizes that dims may have.

    Attributes:
        pools: For each dim, its sizes, simplest first.
        fixed: The sizes of those that cannot be chosen.
        constraints: Of two sizes each, the first is no smaller.
        free: Those that nobody has told, which may be greater than all of their pool now and then.
        counts: Those of them that are numbers of layers.
        rows: The rows of all states.
        settled: Makes sizes of those that follow from others.
    """

    pools: Mapping[str, Sequence[int]]
    fixed: Mapping[str, int]
    constraints: Sequence[tuple[Size, Size]]
    free: frozenset[str]
    counts: Sequence[str]
    rows: Sequence[Row]
    settled: Callable[[dict[str, int]], dict[str, int]] = dict[str, int]

    def drawn(self) -> st.SearchStrategy[dict[str, int]]:
        """Any of them."""
        several = {name: st.sampled_from(pool) for name, pool in self.pools.items()}
        return st.fixed_dictionaries(several).map(self._raised)

    def chosen(self, choose: Choices) -> dict[str, int]:
        """Those that are chosen.

        In three of four there is no empty leaf, which would show nothing.
        """
        empty = choose.of((False, False, False, True))
        chosen: dict[str, int] = {}
        for name, pool in self.pools.items():
            # A dim that is told to be 0 stays so.
            several = [size for size in pool if size or empty] or pool
            chosen[name] = choose.of(several)
        return self._raised(chosen)

    def picked(self, rng: np.random.Generator, *, even: bool) -> dict[str, int]:
        """Random ones; if ``even``, such as meshes divide, wherever there are."""
        chosen: dict[str, int] = {}
        for name, pool in self.pools.items():
            fit = [size for size in pool if size and not size % 2] if even else []
            chosen[name] = int(rng.choice(fit or pool))
        return self._raised(chosen, more=2 * even)  # or else padding were mostly none

    def widened(self, chosen: Mapping[str, int]) -> dict[str, int]:
        """The same sizes, but for two where there is one or none, if that may be: of one element nothing tells its axis."""
        wider = dict(chosen)
        for name, pool in self.pools.items():
            several = [size for size in pool if size > 1]
            if wider[name] < 2 and several:
                wider[name] = several[0]
        return self._raised(wider)

    def stretched(self, chosen: Mapping[str, int], which: int) -> dict[str, int]:
        """The same sizes, but for many layers and one long axis, as far as states stay small enough to be tried."""
        longer = dict(chosen)
        for name in self.counts:
            longer = self._longer(longer, name, _MANY)
        names = sorted(self.free - set(self.counts))
        return self._longer(longer, names[which % len(names)], *_LONG) if names else longer

    def _longer(self, chosen: dict[str, int], name: str, *sizes: int) -> dict[str, int]:
        """The sizes with the first of some for one name, if there is room for it."""
        for size in sizes:
            longer = self._raised({**chosen, name: size})
            if self._has_room(longer):
                return longer
        return chosen

    def _has_room(self, sizes: Mapping[str, int]) -> bool:
        """Whether states of these sizes have no more leaves and elements than can be tried."""
        leaves = elements = 0
        for row in self.rows:
            # Layers that are stacked are no leaves of their own, and count as elements.
            count = math.prod(dims_.sizes_of(row.unrolled, sizes) or ())
            leaves += count
            elements += count * math.prod(dims_.sizes_of(row.dims, sizes) or ())
        return leaves <= _ROOM[0] and elements <= _ROOM[1]

    def _raised(self, chosen: Mapping[str, int], more: int = 0) -> dict[str, int]:
        """The sizes, those raised that a constraint has no smaller than others, or greater by so many."""
        raised = {**self.fixed, **chosen}
        for large, small in self.constraints:
            # A name that both sizes have is not raised: they would grow together for ever.
            free = large.names - self.fixed.keys() - small.names
            least = small.at(raised) + more
            while free and large.at(raised) < least:
                for name in free:
                    raised[name] += 1
        return self.settled(raised)


def sizes(
    of: Subject,
    bounds: Mapping[str, Bound] | None = None,
    *,
    multiples: Mapping[str, int] | None = None,
    empty: bool = True,
) -> st.SearchStrategy[dict[str, int]]:
    """Sizes of all dims and numbers of layers, which respect every constraint of the lens.

    Args:
        of: A schema, a layout or a lens.
        bounds: The size of a dim, or the least and the greatest, in elements; without, between 0
            and 8, numbers of layers between 1 and 4.
        multiples: What the size of a dim is to be a multiple of, such as that of a mesh axis.
        empty: Whether a dim may be 0; a number of layers never is.

    Raises:
        SchemaError: A name is no dim of it, or no size is within its bounds.
    """
    return space(of, bounds or {}, multiples or {}, empty=empty).drawn()


def space(
    of: Subject,
    bounds: Mapping[str, Bound],
    multiples: Mapping[str, int] | None = None,
    *,
    empty: bool = True,
) -> Space:
    """What `sizes` draws from."""
    factors, layers = multiples or {}, counts(of)
    fixed: dict[str, int] = {}
    names: set[str] = set()
    rows: list[Row] = []
    for table in _tables(of):
        fixed |= dict(table.sizes)
        names |= table.names()
        rows += table.rows
    constraints: list[tuple[Size, Size]] = []
    followed: set[str] = set()
    if isinstance(of, Lens):
        fixed |= dict(of.dims)
        # A cell may speak of a dim that no leaf has.
        for join in of.joins:
            names |= needed(join, (of.source.rows, of.view.rows))
        constraints, followed = [*_least(of)], scale_dims(of)
    faults: list[Mismatch] = []
    for name in sorted({*bounds, *factors} - names):
        known = f"a dim: {', '.join(sorted(names))}"
        faults.append(Mismatch(name, "dims", known, "an unknown name"))
    pools: dict[str, list[int]] = {}
    for name in sorted(names - fixed.keys()):
        # Of no layers there is no leaf, of which any law holds.
        ends = (1, _LAYERS) if name in layers else (int(not empty), _MOST)
        told, multiple = bounds.get(name), factors.get(name, 1)
        pools[name] = _pool(told, multiple, ends)
        if not pools[name]:
            faults.append(_none(name, told, multiple))
    if faults:
        raise SchemaError("no sizes to draw", faults)
    free = frozenset(pools.keys() - bounds.keys() - factors.keys())

    def settled(sizes: dict[str, int]) -> dict[str, int]:
        if not isinstance(of, Lens) or not followed:
            return sizes
        # How many blocks there are follows from the numbers and their block, whatever was drawn.
        drawn = {name: size for name, size in sizes.items() if name not in followed}
        return with_scales(of, drawn)

    return Space(pools, fixed, constraints, free, sorted(free & layers), rows, settled)


def _least(lens: Lens) -> Iterator[tuple[Size, Size]]:
    """Of two sizes each, the first is no smaller: what is padded, and what is in it.

    Copies, and one.
    """
    for join in lens.joins:
        for cell in join.cells:
            for digit in cell.geometry.digits:
                # Of no copies there would be nothing to make the leaf of.
                if not cell.is_constant and None in digit.at:
                    yield digit.size, ONE
                # Padding is as long as `padded - vocab`.
                elif cell.is_constant and not digit.size.nonnegative:
                    yield digit.size.parts


def _none(name: str, told: Bound | None, multiple: int) -> Mismatch:
    if isinstance(told, tuple) and told[0] > told[1]:
        return Mismatch(
            name,
            "dims",
            f"the least size, {told[0]}, and then the greatest",
            f"{told[1]}, which is less",
        )
    return Mismatch(name, "dims", f"a size within {told} that is a multiple of {multiple}", "none")


def _tables(of: Subject) -> tuple[Layout, ...]:
    return (of.source, of.view) if isinstance(of, Lens) else (layout(of),)


def counts(of: Subject) -> set[str]:
    """The names that numbers of layers are made of."""
    dims: list[Dim] = []
    for table in _tables(of):
        for row in table.rows:
            dims += [repeat.size for repeat in row.repeats]
        # What holds no leaf, as an empty state of optax does, may be repeated too.
        for node in table.nodes:
            dims += node.counts
    return dims_.dim_names(dims)


def _pool(told: Bound | None, multiple: int, ends: tuple[int, int]) -> list[int]:
    if isinstance(told, int):
        return [told] if told % multiple == 0 else []
    low, high = told or (ends[0], max(ends[1], multiple))
    # Unless somebody has told, few sizes will do, and programs are compiled for each.
    candidates = _SIZES if told is None and multiple == 1 else range(low, high + 1)
    return [size for size in candidates if low <= size <= high and size % multiple == 0]


def _absences(of: Layout | Lens, side: int = 0) -> st.SearchStrategy[tuple[str, ...]]:
    """The logical paths of optional leaves that a state may lack, of a layout or of one side of a lens.

    What is optional on one side and needed on the other is never lacking.
    """
    groups = optional(of, side)
    several = st.sets(st.sampled_from(groups)) if groups else st.just(set[tuple[str, ...]]())
    return several.map(lambda lacking: tuple(sorted(itertools.chain.from_iterable(lacking))))


def optional(of: Layout | Lens, side: int) -> list[tuple[str, ...]]:
    """The logical paths of leaves that a state may lack, those together that are there or not as one."""
    return sorted(_optional(of, side))


def _optional(of: Layout | Lens, side: int) -> Iterator[tuple[str, ...]]:
    """Optional rows; those that are parts of one leaf lack together."""
    tables = _tables(of)
    rows = tables[side].rows
    uses: collections.Counter[int] = collections.Counter()
    copies: collections.Counter[int] = collections.Counter()
    if isinstance(of, Lens):
        partners = tables[1 - side].rows
        ends: list[tuple[Sequence[int], Sequence[int]]] = []
        for join in of.joins:
            own, others = ((join.sources, join.views), (join.views, join.sources))[side]
            ends.append((own, others))
            uses.update(own)
            copies.update(others)
        for own, others in ends:
            if not _are_optional(rows, own) or not _are_optional(partners, others):
                continue
            # What two joins share is stored twice: of copies, one does not lack alone.
            if _are_used_once(uses, own) and _are_used_once(copies, others):
                yield tuple("/".join(rows[row].path) for row in own)
    for at, row in enumerate(rows):
        if row.optional and at not in uses:
            yield ("/".join(row.path),)


def _are_optional(rows: Sequence[Row], numbers: Iterable[int]) -> bool:
    return all(rows[number].optional for number in numbers)


def _are_used_once(uses: Mapping[int, int], numbers: Iterable[int]) -> bool:
    return all(uses[number] == 1 for number in numbers)


@st.composite
def samples(
    draw: st.DrawFn,
    of: Subject,
    bounds: Mapping[str, Bound] | None = None,
    *,
    multiples: Mapping[str, int] | None = None,
) -> Sample:
    """Random states of a schema, told by few words: `Sample.of` makes them.

    Of a lens, `Sample.source` and `Sample.view`.
    """
    tables = _tables(of)
    absent = _absences(of if isinstance(of, Lens) else tables[0])
    # One sample is of both sides of a lens, which have no container in common.
    names = [*container_kinds(tables[0])] if len(tables) == 1 else []
    return Sample(
        draw(sizes(of, bounds, multiples=multiples)),
        draw(_SEEDS),
        draw(st.sampled_from(VALUES)),
        draw(st.sampled_from(names)) if names else None,
        draw(absent),
    )


def states(
    schema: type[Schema] | Layout,
    bounds: Mapping[str, Bound] | None = None,
    *,
    multiples: Mapping[str, int] | None = None,
) -> st.SearchStrategy[Any]:
    """Random states of a schema: of every size, with every dtype's worst values, in every container they are met in."""
    return samples(schema, bounds, multiples=multiples).map(lambda sample: sample.of(schema))


@st.composite
def mesh_and_specs(
    draw: st.DrawFn,
    schema: type[Schema] | Layout,
    sizes: Mapping[str, int],
    meshes: Sequence[MeshSpec] = MESHES,
) -> tuple[Mesh, dict[str, PartitionSpec]]:
    """A mesh over the virtual devices, and for every leaf, by its key path, a legal `PartitionSpec`.

    Args:
        draw: Given by hypothesis.
        schema: A schema or layout.
        sizes: The size of every dim, in elements.
        meshes: The shapes of the meshes, and whether their axes are explicit.

    Returns:
        They shrink to leaves that are replicated. Leaves whose axes no mesh axis divides are always
        so: jax has no leaves that are sharded unevenly.
    """
    on = mesh(*draw(st.sampled_from(tuple(meshes))))
    specs: dict[str, PartitionSpec] = {}
    by_shape: dict[tuple[int, ...], PartitionSpec] = {}
    for entry in layout(schema).entries(sizes):
        # Leaves of one shape are sharded alike, as by logical axis rules.
        if entry.shape not in by_shape:
            # Replicated first: that is what an example shrinks to.
            ways = all_shardings(on, entry.shape)[::-1]
            by_shape[entry.shape] = ways[draw(st.integers(0, len(ways) - 1))].spec
        specs[format_path(entry.key)] = by_shape[entry.shape]
    return on, specs
