"""Strategies: sizes, states, meshes and shardings for a schema or a lens, which shrink to what a person can read."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from jax.sharding import Mesh, PartitionSpec

from ckpt_schema._layouts import dims as dims_
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
# Of a size, and of a number of layers: each has leaves of its own, which take time.
_MOST, _LAYERS = (
    8,
    4,
)
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
        return st.fixed_dictionaries(
            {name: st.sampled_from(pool) for name, pool in self.pools.items()}
        ).map(self._raised)

    def chosen(self, choose: Choices) -> dict[str, int]:
        """Those that are chosen.

        In three of four there is no empty leaf, which would show nothing.
        """
        empty = choose.of((False, False, False, True))
        pools = self.pools.items()
        several = {name: [n for n in pool if n or empty] or pool for name, pool in pools}
        return self._raised({name: choose.of(pool) for name, pool in several.items()})

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
            if wider[name] < 2:
                wider[name] = next((size for size in pool if size > 1), wider[name])
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
            count = math.prod(dims_.sizes_of(row.unrolled, sizes) or ())
            leaves += count
            elements += count * math.prod(dims_.sizes_of(row.dims, sizes) or ())
        return leaves <= _ROOM[0] and elements <= _ROOM[1]

    def _raised(self, chosen: Mapping[str, int], more: int = 0) -> dict[str, int]:
        """The sizes, those raised that a constraint has no smaller than others, or greater by so many."""
        raised = {**self.fixed, **chosen}
        for large, small in self.constraints:
            free = large.names - self.fixed.keys() - small.names
            least = small.at(raised) + more
            while free and large.at(raised) < least:
                raised |= {name: raised[name] + 1 for name in free}
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
    tables, factors = _tables(of), multiples or {}
    fixed = {name: size for table in tables for name, size in table.sizes} | (
        dict(of.dims) if isinstance(of, Lens) else {}
    )
    names = set[str]().union(*(table.names() for table in tables))
    if isinstance(of, Lens):
        rows = of.source.rows, of.view.rows
        names |= {name for join in of.joins for name in needed(join, rows)}
    layers = counts(of)
    ends = {
        name: (int(name in layers or not empty), _LAYERS if name in layers else _MOST)
        for name in names
    }
    pools = {
        n: _pool(bounds.get(n), factors.get(n, 1), ends[n]) for n in sorted(names - fixed.keys())
    }
    unknown = sorted({*bounds, *factors} - names)
    faults = [
        Mismatch(name, "dims", f"a dim: {', '.join(sorted(names))}", "an unknown name")
        for name in unknown
    ]
    faults += [
        _none(name, bounds.get(name), factors.get(name, 1))
        for name, pool in pools.items()
        if not pool
    ]
    if faults:
        raise SchemaError("no sizes to draw", faults)
    constraints = [*_least(of)] if isinstance(of, Lens) else []
    free = frozenset(pools.keys() - bounds.keys() - factors.keys())
    rows = [row for table in tables for row in table.rows]
    followed = scale_dims(of) if isinstance(of, Lens) else set[str]()

    def settled(sizes: dict[str, int]) -> dict[str, int]:
        if not isinstance(of, Lens) or not followed:
            return sizes
        return with_scales(of, {n: size for n, size in sizes.items() if n not in followed})

    return Space(pools, fixed, constraints, free, sorted(free & layers), rows, settled)


def _least(lens: Lens) -> Iterator[tuple[Size, Size]]:
    """Of two sizes each, the first is no smaller: what is padded, and what is in it.

    Copies, and one.
    """
    digits = (
        (cell.is_constant, digit)
        for join in lens.joins
        for cell in join.cells
        for digit in cell.geometry.digits
    )
    for is_constant, digit in digits:
        if not is_constant and None in digit.at:
            yield digit.size, ONE
        elif is_constant and not digit.size.nonnegative:
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
    tables = _tables(of)
    repeated = [repeat.size for table in tables for row in table.rows for repeat in row.repeats]
    return dims_.dim_names(
        [*repeated, *(dim for table in tables for node in table.nodes for dim in node.counts)]
    )


def _pool(told: Bound | None, multiple: int, ends: tuple[int, int]) -> list[int]:
    if isinstance(told, int):
        return [told] if told % multiple == 0 else []
    low, high = told or (ends[0], max(ends[1], multiple))
    candidates = _SIZES if told is None and multiple == 1 else range(low, high + 1)
    return [size for size in candidates if low <= size <= high and size % multiple == 0]


def _absences(of: Layout | Lens, side: int = 0) -> st.SearchStrategy[tuple[str, ...]]:
    """The logical paths of optional leaves that a state may lack, of a layout or of one side of a lens.

    What is optional on one side and needed on the other is never lacking.
    """
    groups = optional(of, side)
    several = st.sets(st.sampled_from(groups)) if groups else st.just(set[tuple[str, ...]]())
    return several.map(lambda found: tuple(sorted(path for group in found for path in group)))


def optional(of: Layout | Lens, side: int) -> list[tuple[str, ...]]:
    """The logical paths of leaves that a state may lack, those together that are there or not as one."""
    return sorted(_optional(of, side))


def _optional(of: Layout | Lens, side: int) -> Iterator[tuple[str, ...]]:
    """Optional rows; those that are parts of one leaf lack together."""
    tables = _tables(of)
    rows = tables[side].rows
    if not isinstance(of, Lens):
        yield from (("/".join(row.path),) for row in rows if row.optional)
        return
    ends = [((join.sources, join.views), (join.views, join.sources))[side] for join in of.joins]
    uses = collections.Counter(row for own, _ in ends for row in own)
    copies = collections.Counter(row for _, others in ends for row in others)
    for own, others in ends:
        is_needed = any(not rows[row].optional for row in own) or any(
            not tables[1 - side].rows[row].optional for row in others
        )
        if (
            not is_needed
            and all(uses[row] == 1 for row in own)
            and all(copies[row] == 1 for row in others)
        ):
            yield tuple("/".join(rows[row].path) for row in own)
    yield from (
        ("/".join(row.path),) for at, row in enumerate(rows) if row.optional and at not in uses
    )


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
            ways = all_shardings(on, entry.shape)[::-1]
            by_shape[entry.shape] = ways[draw(st.integers(0, len(ways) - 1))].spec
        specs[format_path(entry.key)] = by_shape[entry.shape]
    return on, specs
