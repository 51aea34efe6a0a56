"""Random layouts of one array, built twice: as cells, which are tested, and by NumPy, which shares no code with them.

A row has axes, of its key and of its array alike. An axis is a product of factors, major first; a
factor is a size or a sum of axes, one after the other.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ckpt_schema._layouts.sizes import ONE, ZERO, Size, slack
from ckpt_schema._lens.cells import Cell, Constant, Digit, Geometry, Place, composed, identity
from ckpt_schema._lens.codecs import Codec, Exact
from ckpt_schema._lens.normal import normal

MOST_ELEMENTS = 4000
MOST_ROWS = 6


@dataclasses.dataclass(frozen=True)
class Sum:
    """Parts of an axis, one after the other."""

    terms: tuple[Axis, ...]


Factor = Size | Sum
Axis = tuple[Factor, ...]


@dataclasses.dataclass(frozen=True)
class Spelling:
    """One row, and as the oracle has it: one array with an axis for each."""

    axes: tuple[Axis, ...]
    array: np.ndarray[Any, Any]

    @property
    def dims(self) -> tuple[Size, ...]:
        """The size of each axis."""
        return tuple(map(size, self.axes))


@dataclasses.dataclass(frozen=True)
class Piece:
    """A row that an operation makes of another one, and where its elements were.

    Attributes:
        row: The new row.
        geometry: Which elements of the old row are which of the new one.
        codec: What happened to each.
        fills: The elements of the new row that are padding, and what they hold.
        is_copy: Whether another piece has the same elements.
    """

    row: Spelling
    geometry: Geometry
    codec: Codec = ()
    fills: tuple[tuple[Geometry, float], ...] = ()
    is_copy: bool = False


Rows = dict[str, Spelling]
Operation = Callable[[random.Random, Mapping[str, int], Spelling], list[Piece]]


def size(axis: Axis) -> Size:
    return functools.reduce(Size.__mul__, map(factor_size, axis), ONE)


def factor_size(factor: Factor) -> Size:
    return factor if isinstance(factor, Size) else sum(map(size, factor.terms), ZERO)


def terms(factor: Factor) -> tuple[Axis, ...]:
    """What a factor is a sum of: a small number is one of ones."""
    if isinstance(factor, Sum):
        return factor.terms
    return ((ONE,),) * factor.number if factor.number is not None else ()


def zeros(rank: int) -> tuple[Size, ...]:
    return (ZERO,) * rank


def with_item(items: Sequence[Any], at: int, *new: Any) -> tuple[Any, ...]:
    """The items with those given in the place of one."""
    return (*items[:at], *new, *items[at + 1 :])


def kept(dims: Sequence[Size], to: Callable[[int], Place | None]) -> tuple[Digit, ...]:
    """A digit for each axis of the old row, which steps as ``to`` says in the new one."""
    return tuple(Digit(dim, ((n, ONE), to(n))) for n, dim in enumerate(dims))


def picked(rng: random.Random, among: Sequence[Any]) -> Any:
    """One of several; none, if there is none."""
    return rng.choice(among) if among else None


# --- Operations that move  ---


def arranged(rng: random.Random, _: Mapping[str, int], old: Spelling) -> list[Piece]:
    order = rng.sample(range(len(old.axes)), len(old.axes))
    row = Spelling(tuple(old.axes[n] for n in order), old.array.transpose(order))
    start = zeros(len(order))
    digits = kept(old.dims, lambda n: (order.index(n), ONE))
    return [Piece(row, Geometry((start, start), digits))]


def grouped(rng: random.Random, _: Mapping[str, int], old: Spelling) -> list[Piece]:
    """Two axes become one."""
    if len(old.axes) < 2:
        return []
    at = rng.randrange(len(old.axes) - 1)
    shape, inner = old.array.shape, old.dims[at + 1]
    axes = (*old.axes[:at], old.axes[at] + old.axes[at + 1], *old.axes[at + 2 :])
    array = old.array.reshape(*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :])

    def to(n: int) -> Place:
        return (n, inner) if n == at else (n - (n > at), ONE)

    starts = zeros(len(old.axes)), zeros(len(axes))
    return [Piece(Spelling(axes, array), Geometry(starts, kept(old.dims, to)))]


def ungrouped(rng: random.Random, sizes: Mapping[str, int], old: Spelling) -> list[Piece]:
    """An axis becomes two."""
    cuts = [(n, k) for n, axis in enumerate(old.axes) for k in range(1, len(axis))]
    if not cuts:
        return []
    at, k = rng.choice(cuts)
    outer, inner = old.axes[at][:k], old.axes[at][k:]
    array = old.array.reshape(
        *old.array.shape[:at],
        size(outer).at(sizes),
        size(inner).at(sizes),
        *old.array.shape[at + 1 :],
    )
    others = [d for d in kept(old.dims, lambda n: (n + (n > at), ONE)) if d.at[0] != (at, ONE)]
    both = [
        Digit(size(outer), ((at, size(inner)), (at, ONE))),
        Digit(size(inner), ((at, ONE), (at + 1, ONE))),
    ]
    starts = zeros(len(old.axes)), zeros(len(old.axes) + 1)
    row = Spelling(with_item(old.axes, at, outer, inner), array)
    return [Piece(row, Geometry(starts, (*others, *both)))]


def refactored(rng: random.Random, _: Mapping[str, int], old: Spelling) -> list[Piece]:
    """The same axis, cut in other places: 12 as 2*6, as 3*4 or as 5+7; (k, 12) as (3*k, 4)."""
    at, k = picked(
        rng,
        [
            (n, k)
            for n, axis in enumerate(old.axes)
            for k, factor in enumerate(axis)
            if isinstance(factor, Size) and len(factor.terms) == 1
        ],
    ) or (None, None)
    if at is None:
        return []
    axis = old.axes[at]
    names, count = axis[k].terms[0]
    part = rng.choice([n for n in range(1, count + 1) if count % n == 0])
    rest = axis[k].over(Size.of(part))
    ways: list[Axis] = [(*axis[:k], rest, Size.of(part), *axis[k + 1 :])]
    if k and isinstance(axis[k - 1], Size):
        ways.append((*axis[: k - 1], axis[k - 1] * axis[k], *axis[k + 1 :]))
    if not names and count > 1:
        first = rng.randint(1, count - 1)
        both = Sum(((Size.of(first),), (Size.of(count - first),)))
        ways.append((*axis[:k], both, *axis[k + 1 :]))
    chosen = tuple(f for f in rng.choice(ways) if f != ONE) or (ONE,)
    start = zeros(len(old.axes))
    row = Spelling(with_item(old.axes, at, chosen), old.array)
    return [Piece(row, Geometry((start, start), kept(old.dims, lambda n: (n, ONE))))]


def squeezed(rng: random.Random, _: Mapping[str, int], old: Spelling) -> list[Piece]:
    """An axis of one element more."""
    return _widened(rng, old, (), lambda array, at: np.expand_dims(array, at), ())


def repeated(rng: random.Random, sizes: Mapping[str, int], old: Spelling) -> list[Piece]:
    """Each element several times, along an axis of its own."""
    times = Size.of(rng.choice(["rep", 2]))

    def array(values: Any, at: int) -> Any:
        return np.repeat(np.expand_dims(values, at), times.at(sizes), axis=at)

    return _widened(rng, old, (times,), array, (times,))


def _widened(
    rng: random.Random,
    old: Spelling,
    axis: Axis,
    array: Callable[[Any, int], Any],
    repeats: Sequence[Size],
) -> list[Piece]:
    at = rng.randint(0, len(old.axes))
    starts = zeros(len(old.axes)), zeros(len(old.axes) + 1)
    digits = kept(old.dims, lambda n: (n + (n >= at), ONE))
    digits += tuple(Digit(times, (None, (at, ONE))) for times in repeats)
    axes = (*old.axes[:at], axis, *old.axes[at:])
    return [Piece(Spelling(axes, array(old.array, at)), Geometry(starts, digits))]


def flipped(rng: random.Random, _: Mapping[str, int], old: Spelling) -> list[Piece]:
    if not old.axes:
        return []
    at = rng.randrange(len(old.axes))

    def turned(factor: Factor) -> Factor:
        return Sum(factor.terms[::-1]) if isinstance(factor, Sum) else factor

    row = Spelling(
        with_item(old.axes, at, tuple(map(turned, old.axes[at]))), np.flip(old.array, at)
    )
    start = with_item(zeros(len(old.axes)), at, old.dims[at] - 1)
    digits = kept(old.dims, lambda n: (n, -ONE if n == at else ONE))
    return [Piece(row, Geometry((zeros(len(old.axes)), start), digits))]


def tied(_: random.Random, __: Mapping[str, int], old: Spelling) -> list[Piece]:
    """The row, stored twice."""
    return [
        Piece(old, identity("L", old.dims).geometry),
        Piece(old, identity("L", old.dims).geometry, is_copy=True),
    ]


def padded(rng: random.Random, sizes: Mapping[str, int], old: Spelling) -> list[Piece]:
    """An axis becomes longer at one end."""
    if not old.axes:
        return []
    at, is_front, fill = (
        rng.randrange(len(old.axes)),
        rng.random() < 0.3,
        rng.choice([0.0, 1.0, -3.0]),
    )
    more = rng.choice([slack("p"), slack("r"), ONE])
    width = [(0, 0)] * len(old.axes)
    width[at] = (more.at(sizes), 0) if is_front else (0, more.at(sizes))
    both = ((more,), old.axes[at]) if is_front else (old.axes[at], (more,))
    array = np.pad(old.array, width, constant_values=fill)
    start = with_item(zeros(len(old.axes)), at, more if is_front else ZERO)
    hole = with_item(zeros(len(old.axes)), at, ZERO if is_front else old.dims[at])
    padding = [Digit(more if n == at else dim, (None, (n, ONE))) for n, dim in enumerate(old.dims)]
    return [
        Piece(
            Spelling(with_item(old.axes, at, (Sum(both),)), array),
            Geometry((zeros(len(old.axes)), start), kept(old.dims, lambda n: (n, ONE))),
            fills=((Geometry(((), hole), tuple(padding)), fill),),
        )
    ]


# --- Operations on what is the sum of parts  ---


def _cut_places(old: Spelling) -> list[tuple[int, int]]:
    return [
        (n, k)
        for n, axis in enumerate(old.axes)
        for k, factor in enumerate(axis)
        if len(terms(factor)) > 1
    ]


@dataclasses.dataclass(frozen=True)
class _Parts:
    """A factor of an axis that is a sum, its terms in groups."""

    old: Spelling
    at: int
    before: Axis
    groups: tuple[tuple[Axis, ...], ...]
    after: Axis

    @staticmethod
    def of(old: Spelling, at: int, k: int, groups: Sequence[Sequence[Axis]]) -> _Parts:
        axis = old.axes[at]
        return _Parts(old, at, axis[:k], tuple(map(tuple, groups)), axis[k + 1 :])

    def length(self, group: int) -> Size:
        return sum(map(size, self.groups[group]), ZERO)

    @property
    def total(self) -> Size:
        return sum(map(self.length, range(len(self.groups))), ZERO)

    def offset(self, group: int, order: Sequence[int]) -> Size:
        """Where a group begins, if the groups stand in this order."""
        return sum(map(self.length, order[: order.index(group)]), ZERO)

    def array(self, group: int, sizes: Mapping[str, int]) -> Any:
        """The part of the array, the factor on an axis of its own."""
        shape = self.old.array.shape
        apart = self.old.array.reshape(
            *shape[: self.at],
            size(self.before).at(sizes),
            self.total.at(sizes),
            size(self.after).at(sizes),
            *shape[self.at + 1 :],
        )
        low = self.offset(group, range(len(self.groups))).at(sizes)
        cut = slice(low, low + self.length(group).at(sizes))
        return apart[(*(slice(None),) * (self.at + 1), cut)]

    def geometry(self, group: int, start: Size, total: Size) -> Geometry:
        """Where a group stands in an axis whose sum is so long, from so far on."""
        inner = size(self.after)
        others = [d for d in kept(self.old.dims, lambda n: (n, ONE)) if d.at[0] != (self.at, ONE)]
        own = [
            Digit(size(self.before), ((self.at, self.total * inner), (self.at, total * inner))),
            Digit(self.length(group), ((self.at, inner), (self.at, inner))),
            Digit(inner, ((self.at, ONE), (self.at, ONE))),
        ]
        here = self.offset(group, range(len(self.groups))) * inner
        rank = len(self.old.axes)
        starts = (
            with_item(zeros(rank), self.at, here),
            with_item(zeros(rank), self.at, start * inner),
        )
        return Geometry(starts, (*others, *own))


def split(rng: random.Random, sizes: Mapping[str, int], old: Spelling) -> list[Piece]:
    """A row for each part of a sum, or for several of them."""
    at, k = picked(rng, _cut_places(old)) or (None, None)
    if at is None or k is None:
        return []
    own = terms(old.axes[at][k])
    bounds = sorted({0, len(own), *rng.sample(range(1, len(own)), rng.randint(1, len(own) - 1))})
    parts = _Parts.of(old, at, k, [own[a:b] for a, b in itertools.pairwise(bounds)])
    pieces: list[Piece] = []
    for number, group in enumerate(parts.groups):
        middle: Axis = group[0] if len(group) == 1 else (Sum(group),)
        axes = with_item(old.axes, at, parts.before + middle + parts.after)
        shape = [size(axis).at(sizes) for axis in axes]
        row = Spelling(axes, parts.array(number, sizes).reshape(shape))
        pieces.append(Piece(row, parts.geometry(number, ZERO, parts.length(number))))
    return pieces


def reordered(rng: random.Random, sizes: Mapping[str, int], old: Spelling) -> list[Piece]:
    """The parts of a sum in another order; it takes several geometries, so the row is cut and put together."""
    at, k = picked(rng, _cut_places(old)) or (None, None)
    if at is None or k is None:
        return []
    own = terms(old.axes[at][k])
    parts = _Parts.of(old, at, k, [[term] for term in own])
    order = rng.sample(range(len(own)), len(own))
    arrays = [parts.array(number, sizes) for number in order]
    array = np.concatenate(arrays, axis=at + 1).reshape(old.array.shape)
    axis = (*parts.before, Sum(tuple(own[n] for n in order)), *parts.after)
    row = Spelling(with_item(old.axes, at, axis), array)
    return [
        Piece(row, parts.geometry(number, parts.offset(number, order), parts.total))
        for number in range(len(own))
    ]


# --- Operations on elements  ---


def _coded(old: Spelling, array: Any, codec: Codec) -> list[Piece]:
    return [Piece(Spelling(old.axes, array), identity("L", old.dims).geometry, codec)]


def scaled(rng: random.Random, _: Mapping[str, int], old: Spelling) -> list[Piece]:
    exponent, dtype = rng.choice([-2, 1, 3]), str(old.array.dtype)
    return _coded(
        old, old.array * old.array.dtype.type(2.0**exponent), (Exact(dtype, dtype, exponent),)
    )


def cast(_: random.Random, __: Mapping[str, int], old: Spelling) -> list[Piece]:
    dtype = str(old.array.dtype)
    other = {"float32": "float64", "float64": "float32"}[dtype]
    return _coded(old, old.array.astype(other), (Exact(dtype, other),))


OPERATIONS: Mapping[str, tuple[int, Operation]] = {
    "arrange": (2, arranged),
    "group": (2, grouped),
    "ungroup": (2, ungrouped),
    "squeeze": (1, squeezed),
    "split": (3, split),
    "reorder": (1, reordered),
    "flip": (1, flipped),
    "pad": (1, padded),
    "tie": (1, tied),
    "repeat": (1, repeated),
    "scale": (1, scaled),
    "cast": (1, cast),
    "refactor": (3, refactored),
}
_WEIGHTED = [name for name, (weight, _) in OPERATIONS.items() for _ in range(weight)]


# --- Layouts  ---


def _axis(*factors: str | int | Sum) -> Axis:
    return tuple(each if isinstance(each, Sum) else _size(each) for each in factors)


def _size(value: str | int) -> Size:
    return slack(value[:-1]) if isinstance(value, str) and value.endswith("~") else Size.of(value)


def _sum(*parts: Sequence[str | int]) -> Sum:
    return Sum(tuple(_axis(*part) for part in parts))


AXES: Sequence[Axis] = [
    _axis("e"),
    _axis("layers"),
    _axis("kv", "rep", "hd"),
    _axis(_sum(["q"], ["kv"], ["kv"])),
    _axis("g", _sum(["per"], [1], [1]), "hd"),
    _axis(_sum(["blocks", 2], ["rest~"])),
    _axis(_sum(["blocks", 3], ["rest"])),
    _axis("mlp", 2),
    _axis(3, "heads", "hd"),
    _axis(2, 3),
    _axis(_sum([1], [2]), "hd"),
    _axis("k", 2, 3),
    _axis("k", 12),
    _axis(12),
    _axis(7, "hd"),
    _axis(_sum(["n", 6], ["rest~"])),
]
NAMES = [
    "e",
    "layers",
    "kv",
    "rep",
    "hd",
    "q",
    "g",
    "per",
    "blocks",
    "rest~",
    "rest",
    "mlp",
    "heads",
    "k",
    "n",
    "p~",
    "r~",
]


def logical(rng: random.Random) -> tuple[dict[str, int], Spelling]:
    """Sizes, and an array whose elements are told apart."""
    axes = tuple(rng.sample(AXES, rng.randint(1, 3)))
    sizes = {name: rng.randint(0 if name.endswith("~") else 1, 3) for name in NAMES}
    shape = [size(axis).at(sizes) for axis in axes]
    array = np.arange(1, math.prod(shape) + 1, dtype="float32").reshape(shape)
    return sizes, Spelling(axes, array)


def layout(
    rng: random.Random, sizes: Mapping[str, int], root: Spelling, letter: str, steps: int
) -> tuple[Rows, list[Cell]]:
    """A random layout of the logical array: its rows, and the cells from them to it."""
    names = (f"{letter}{n}" for n in itertools.count())
    rows: Rows = {"L": root}
    cells = [identity("L", root.dims)]
    for _ in range(steps):
        name = rng.choice(sorted(rows))
        kind = rng.choice(_WEIGHTED)
        if kind in ("tie", "split") and len(rows) >= MOST_ROWS:
            continue
        pieces = OPERATIONS[kind][1](rng, sizes, rows[name])
        if not pieces or sum(piece.row.array.size for piece in pieces) > MOST_ELEMENTS:
            continue
        made = {id(piece.row): next(names) for piece in pieces}
        if kind == "tie":
            made = {number: next(names) for number in range(2)}
        rows, step = _stepped(rows, name, kind, pieces, made)
        cells = list(normal(composed([~cell for cell in step], cells)))
    return rows, cells


def _stepped(
    rows: Rows, name: str, kind: str, pieces: Sequence[Piece], made: Mapping[int, str]
) -> tuple[Rows, list[Cell]]:
    """The rows after an operation on one of them, and the cells from the rows before."""
    left = {other: row for other, row in rows.items() if other != name}
    step = [identity(other, row.dims) for other, row in left.items()]
    for number, piece in enumerate(pieces):
        new = made[number if kind == "tie" else id(piece.row)]
        left[new] = piece.row
        # From the copy nothing is written: it is compared with what is.
        step.append(Cell(name, new, piece.geometry, piece.codec, (piece.is_copy, False)))
        for geometry, fill in piece.fills:
            codec = _to_dtype(piece.row)
            step.append(Cell(Constant(fill, is_fill=True), new, geometry, codec))
    return left, step


def _to_dtype(row: Spelling) -> Codec:
    dtype = str(row.array.dtype)
    return () if dtype == "float32" else (Exact("float32", dtype),)
