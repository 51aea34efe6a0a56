"""Rows as arrays whose axes have names: all leaves of a row numbered, and the numbers moved about by the names of axes alone.

Written anew, in plain NumPy, for an oracle that shares no code with what it is an oracle of.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ckpt_schema._layouts.dims import Dim, Sum
from ckpt_schema._layouts.paths import Index
from ckpt_schema._layouts.table import Layout, Row

__all__ = [
    "FILLS",
    "Axis",
    "AxisToken",
    "Ids",
    "Named",
    "NamedRow",
    "Sizes",
    "bases",
    "factor_size",
    "frame_of",
    "indices_of",
    "key_of",
    "read_numbers",
    "size",
    "words",
    "write_numbers",
]

Ids = np.ndarray[Any, Any]
Sizes = Mapping[str, int]
Axis = tuple[str, Dim]
"""An axis of all leaves of a row as one array: ``level``, ``axis`` or ``words``, and its dim."""
AxisToken = tuple[str, str, int]
"""A factor of an axis by its name: of which kind, what it is called, and how many of that name stand before it."""
FILLS = -2  # this number and less: what padding holds, the first fill, the second, and so on
_WORDS = {"key<fry>": 2, "key<rbg>": 4, "key<urbg>": 4}


# --- Sizes and leaves, worked out anew  ---


def size(dim: Dim, sizes: Sizes) -> int:
    """How many elements an axis has."""
    return math.prod(factor_size(factor, sizes) for factor in dim)


def factor_size(factor: Any, sizes: Sizes) -> int:
    """How many elements a factor of an axis has."""
    if isinstance(factor, Sum):
        return sum(size(term, sizes) for term in factor.terms)
    return factor if isinstance(factor, int) else sizes[factor]


def words(row: Row) -> int:
    """How many words of data each key of a row has; 0 where it holds no keys."""
    return _WORDS.get(row.leaf.dtype, 0)


def indices_of(row: Row, sizes: Sizes) -> list[tuple[int, ...]]:
    """The indices of all leaves of a row, the outermost level counted through last."""
    counts = [size(repeat.size, sizes) for repeat in row.repeats if repeat.axis is None]
    return list(np.ndindex(*counts))


def key_of(row: Row, indices: Sequence[int]) -> tuple[str, ...]:
    """The key path of a leaf, all segments as strings."""
    segments: list[str] = []
    left = list(indices)
    for segment in row.key:
        if not isinstance(segment, Index):
            segments.append(str(segment))
            continue
        spelled, symbol = "", segment
        # One segment may have several numbers: `block_{stage}_{layer}`.
        while symbol is not None:
            number = str(symbol.first + symbol.step * left.pop(0))
            spelled += symbol.prefix + number.rjust(symbol.width, "0") + symbol.suffix
            symbol = symbol.then
        segments.append(spelled)
    return tuple(segments)


def _axes(row: Row, *, raw: bool) -> list[Axis]:
    """The axes of all leaves of a row as one array: unrolled levels, then those that each leaf is stored with."""
    stored: list[Axis] = [("axis", dim) for dim in row.leaf.dims]
    if raw and stored:
        stored[-1] = ("words", stored[-1][1])
    # An outer scan stacks what an inner one has stacked: its axis is counted with the inner one.
    unrolled: list[Axis] = []
    for repeat in reversed(row.repeats):
        if repeat.axis is None:
            unrolled.insert(0, ("level", repeat.size))
        else:
            place = repeat.axis if repeat.axis >= 0 else len(stored) + 1 + repeat.axis
            stored.insert(place, ("level", repeat.size))
    held: list[Axis] = [("words", (words(row),))] if words(row) else []
    return [*unrolled, *stored, *held]


# --- Rows as arrays whose axes have names  ---


@dataclasses.dataclass(frozen=True, eq=False)
class NamedRow:
    """How a row is looked at: its axes, with what rules make of them.

    Attributes:
        row: The row.
        axes: Its axes, those that are padded with the dim that they have without padding.
        levels: For each axis that is a level, which of the row's levels it is.
        large: For axes that are padded here, the dim with padding and the number of the fill.
        flipped: The axes that run the other way here.
        listed: The levels that are the list which is shared, in one axis or several.
        called: For axes whose factors have other names than their dims say: these names.
    """

    row: Row
    axes: tuple[Axis, ...]
    levels: tuple[int | None, ...]
    large: Mapping[int, tuple[Dim, int]] = dataclasses.field(default_factory=dict)
    flipped: frozenset[int] = frozenset()
    listed: frozenset[int] = frozenset()
    called: Mapping[int, tuple[str, ...]] = dataclasses.field(
        default_factory=dict[int, tuple[str, ...]]
    )

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        """The shape of all leaves as one array, as they are stored."""
        lengths: list[int] = []
        for at, (_, dim) in enumerate(self.axes):
            stored = self.large[at][0] if at in self.large else dim
            lengths.append(size(stored, sizes))
        return tuple(lengths)

    def tokens(self) -> list[list[tuple[AxisToken, Any]]]:
        """For each axis its factors by name, each with the factor itself.

        Those of size 1 are none.
        """
        tokens: list[list[tuple[AxisToken, Any]]] = [[] for _ in self.axes]
        seen: collections.Counter[tuple[str, str]] = collections.Counter()
        for at in self.by_level():
            kind, dim = self.axes[at]
            names = self.called.get(at, tuple(map(str, dim)))
            for factor, own in zip(dim, names, strict=True):
                if factor == 1:
                    continue
                # However many nodes a list is told as, and whatever counts them: it is one list.
                name = "list" if at in self.listed else own
                # Of `embed embed` the first is `embed` number 0, and the second number 1.
                number = seen[kind, name]
                seen[kind, name] += 1
                tokens[at].append(((kind, name, number), factor))
        return tokens

    def factors(self) -> list[tuple[AxisToken, Any]]:
        """The factors of all axes in turn, each by name and the factor itself."""
        factors: list[tuple[AxisToken, Any]] = []
        for axis in self.tokens():
            factors += axis
        return factors

    def own(self) -> list[int]:
        """Which axes are the leaf's own, in their order."""
        return [at for at, (kind, _) in enumerate(self.axes) if kind == "axis"]

    def by_level(self) -> list[int]:
        """The axes, levels first and the outermost of them first, wherever they are stacked."""
        return sorted(range(len(self.axes)), key=lambda at: (self._level(at), at))

    def _level(self, at: int) -> float:
        level = self.levels[at]
        return math.inf if level is None else level


def frame_of(row: Row, *, raw: bool = False) -> NamedRow:
    """How a row is looked at without any rules.

    With ``raw`` its last axis has the words of keys.
    """
    axes = _axes(row, raw=raw)
    unrolled: list[int] = []
    # Level by level in the order in which `_axes` puts them: `[None, 0, None]` of a scan on axis 1.
    stacked: list[int | None] = [None] * len(row.leaf.dims)
    for level in reversed(range(len(row.repeats))):
        axis = row.repeats[level].axis
        if axis is None:
            unrolled.insert(0, level)
        else:
            stacked.insert(axis if axis >= 0 else len(stacked) + 1 + axis, level)
    held = [None] if words(row) else []
    return NamedRow(row, tuple(axes), (*unrolled, *stacked, *held))


@dataclasses.dataclass(frozen=True, eq=False)
class Named:
    """Numbers of elements, with a name for each axis of them."""

    tokens: tuple[AxisToken, ...]
    ids: Ids


def read_numbers(frame: NamedRow, ids: Ids, sizes: Sizes) -> Named:
    """All leaves of a row by name: without padding, in the direction that axes have without rules."""
    for at in frame.large:
        kept = size(frame.axes[at][1], sizes)
        ids = np.take(ids, range(kept), axis=at)
    for at in frame.flipped:
        ids = np.flip(ids, axis=at)
    tokens: list[AxisToken] = []
    shape: list[int] = []
    for token, factor in frame.factors():
        tokens.append(token)
        shape.append(factor_size(factor, sizes))
    return Named(tuple(tokens), ids.reshape(shape))


def write_numbers(frame: NamedRow, named: Named, sizes: Sizes) -> Ids | None:
    """The leaves of a row made of what has the same names; None where the names are others."""
    tokens = [token for token, _ in frame.factors()]
    if sorted(tokens) != sorted(named.tokens):
        return None
    ids = np.transpose(named.ids, [named.tokens.index(token) for token in tokens])
    ids = ids.reshape([size(dim, sizes) for _, dim in frame.axes])
    # The other way round than `read_numbers`: what is padded is flipped before there is padding.
    for at in frame.flipped:
        ids = np.flip(ids, axis=at)
    for at, (dim, fill) in frame.large.items():
        more = [(0, 0)] * ids.ndim
        more[at] = (0, size(dim, sizes) - ids.shape[at])
        ids = np.pad(ids, more, constant_values=FILLS - fill)
    return ids


def bases(layout: Layout, sizes: Sizes) -> list[int]:
    """The number of the first element of each row, and at the end of all there are."""
    starts = [0]
    for row in layout.rows:
        starts.append(starts[-1] + math.prod(frame_of(row).shape(sizes)))
    return starts
