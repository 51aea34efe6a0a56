"""One joined pair of rows: the edits that take the leaf of one to that of the other, or why there are none."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import jax.numpy as jnp

from ckpt_schema import dims as dims_
from ckpt_schema import leaves
from ckpt_schema.dims import EITHER, Dim, Dims, Factor
from ckpt_schema.errors import Mismatch
from ckpt_schema.leaves import Leaf
from ckpt_schema.lens.axis_names import axes_called, fault, matched, same_axes
from ckpt_schema.lens.edits import Chain
from ckpt_schema.lens.joins import Join, Place, Symbol
from ckpt_schema.lens.keys import WrapKey
from ckpt_schema.lens.partial import Cast, Scale, Unpad
from ckpt_schema.lens.rearranged import Flip, Rearrange
from ckpt_schema.lens.rules import Reset
from ckpt_schema.lens.stacks import Stack, Unstack
from ckpt_schema.lens.symbolic import typed
from ckpt_schema.lens.told import UNTOLD, Fill, Told
from ckpt_schema.table import Repeat, Row
from ckpt_schema.text import shown

__all__ = ["Relation", "relate"]


@dataclasses.dataclass(frozen=True, slots=True)
class Relation:
    """How the leaf of one row becomes that of another.

    Attributes:
        chain: The edits.
        levels: The size of each level of repetition, one factor each, outermost first as the source has them.
        symbols: For the source and the view: one per index symbol of the key.
    """

    chain: Chain
    levels: tuple[Dim, ...] = ()
    symbols: tuple[tuple[Symbol, ...], tuple[Symbol, ...]] = ((), ())

    @property
    def inverse(self) -> Relation:
        """The way back."""
        return Relation(~self.chain, self.levels, (self.symbols[1], self.symbols[0]))

    def join(self, source: int, view: int, told: Told) -> Join:
        """The join of the rows of these numbers."""
        return Join(
            (Place(source, self.symbols[0]),),
            (Place(view, self.symbols[1]),),
            self.chain,
            self.levels,
            told,
        )


def relate(source: Row, view: Row, told: Told = UNTOLD) -> Relation | Mismatch:
    """How the leaf of one row becomes that of another, or why it cannot.

    Args:
        source: The source's row.
        view: The view's row.
        told: What rules say of the leaf.
    """
    if source.reshaped or view.reshaped:
        return _mirrored(source, view, told)
    return _related(source, view, told)


def _mirrored(source: Row, view: Row, told: Told) -> Relation | Mismatch:
    """The relation of what an optimizer keeps for a param in a shape of its own: such leaves join only their like."""
    sizes = [sorted(map(dims_.format_dim, row.leaf.dims)) for row in (source, view)]
    reset = Reset(source.path, view.path)
    turned = told.axes is not None and [*told.axes] != sorted(told.axes)
    if source.reshaped != view.reshaped or sizes[0] != sizes[1]:
        hint = (
            "an optimizer keeps a param in one of these shapes or in the other, with other values"
        )
        return fault(source, view, "shape", f"{hint}: start it anew, {reset}")
    if turned and any(size != "1" for size in sizes[0]):
        hint = (
            "a rule says another order of the axes of its param, not of what is left of them here"
        )
        return fault(source, view, "rule", f"{hint}: start it anew, {reset}")
    made = _related(source, view, dataclasses.replace(told, axes=None))
    if isinstance(made, Mismatch) and str(reset) not in made.hint:
        return dataclasses.replace(made, hint=f"{made.hint}; or start it anew, {reset}")
    return made


def _related(source: Row, view: Row, told: Told) -> Relation | Mismatch:
    if told.raw and source.leaf.is_key != view.leaf.is_key:
        return _raw(source, view, told)
    if told.flips or told.fills or told.exponent:
        return _framed(source, view, told)
    alike = source.leaf == view.leaf and source.repeats == view.repeats
    if alike and told.axes is None and same_axes(source.leaf, view.leaf):
        return _as_it_is(source.repeats)
    cast = _cast(source, view)
    if isinstance(cast, Mismatch):
        return cast
    shaped = _reshape(source, view, told)
    if isinstance(shaped, Mismatch):
        return shaped
    relation = dataclasses.replace(shaped, chain=shaped.chain >> cast)
    return _type_fault(source, view, relation) or relation


@functools.lru_cache(maxsize=1024)  # levels by name: a model has a handful
def _as_it_is(repeats: tuple[Repeat, ...]) -> Relation:
    """That of two rows which differ in their spelling at most."""
    if not repeats:
        return Relation(Chain())
    numbers = itertools.count()
    symbols = [(repeat, Symbol(tuple(next(numbers) for _ in repeat.size))) for repeat in repeats]
    unrolled = tuple(symbol for repeat, symbol in symbols if repeat.axis is None)
    return Relation(
        Chain(),
        tuple((factor,) for repeat in repeats for factor in repeat.size),
        (unrolled, unrolled),
    )


def _raw(source: Row, view: Row, told: Told) -> Relation | Mismatch:
    """The chain from raw data to keys, or back; the words of each key stand on the last axis."""
    if source.leaf.is_key:
        turned = _raw(view, source, told.inverse)
        return turned if isinstance(turned, Mismatch) else turned.inverse
    words, stacks = (
        leaves.key_words(view.leaf.dtype),
        [r.axis for r in source.repeats if r.axis is not None],
    )
    if (
        source.leaf.dtype != "uint32"
        or source.dims[-1:] != ((words,),)
        or any(axis < 0 for axis in stacks)
    ):
        return fault(
            source,
            view,
            "dtype",
            f"raw data of such a key is uint32, with {words} words on the last axis",
        )
    leaf = Leaf(source.leaf.dims[:-1], view.leaf.dtype, source.leaf.names[:-1])
    keys = dataclasses.replace(source, leaf=leaf)
    made = _related(keys, view, Told(axes=told.axes))
    if isinstance(made, Mismatch):
        return made
    return dataclasses.replace(made, chain=WrapKey(view.leaf.dtype) >> made.chain)


def _framed(source: Row, view: Row, told: Told) -> Relation | Mismatch:
    """The chain where rules say more than types: what they say is done to the leaf as one of the sides has it."""
    first, last, inner = Chain(), Chain(), [source, view]
    for start, end in told.ends:
        for padded, fill in _padded(inner, start, end):
            row = inner[padded]
            if row.leaf.dims.count(fill.large) > 1:
                return fault(source, view, "ambiguous", _which(row, fill.large))
            axis = row.leaf.dims.index(fill.large)
            unfilled = _unfilled(source, view, fill)
            if unfilled is not None:
                return unfilled
            edit = Unpad(row.axes.index(("axis", axis)), fill.small, fill.large, fill.value)
            # Padding is put on in the order of the rules, as lenses do one after the other.
            first, last = (first >> edit, last) if padded == 0 else (first, last >> edit.inverse)
            inner[padded] = dataclasses.replace(row, leaf=row.leaf.with_axis(axis, fill.small))
    for dim in sorted(told.flips, key=str):
        for side, row in enumerate(inner):
            axes = axes_called(row.leaf, dim)
            if len(axes) > 1 or _unsure(row, dim):
                return fault(source, view, "ambiguous", _which(row, dim))
            if axes:
                edit = Flip(row.axes.index(("axis", axes[0])))
                first, last = (first >> edit, last) if side == 0 else (first, edit >> last)
                break
    bits = _float_bits(source.leaf.dtype) if told.exponent else None
    if bits is not None:
        if bits < 16:
            why = f"{source.leaf.dtype} has too few values to be scaled: scale it before it is cast"
            return fault(source, view, "dtype", why)
        first = first >> Scale(told.exponent)
    made = _related(inner[0], inner[1], Told(axes=told.axes))
    if isinstance(made, Mismatch):
        return made
    relation = Relation(first >> made.chain >> last, made.levels, made.symbols)
    if not told.flips and not told.fills:
        return relation  # a factor changes no type
    return _type_fault(source, view, relation) or relation


@functools.lru_cache(maxsize=64)  # there are some twenty dtypes
def _float_bits(dtype: str) -> int | None:
    """How many bits a float of a dtype has; None if it is none."""
    is_key = dtype.startswith("key<")
    if is_key or not jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
        return None
    return jnp.finfo(dtype).bits


def _padded(inner: Sequence[Row], start: Fill, end: Fill) -> list[tuple[int, Fill]]:
    """Which of both rows are cut to the size without padding, and what theirs holds: one; or both, where that differs."""
    large = [fill.large in row.leaf.dims for row, fill in zip(inner, (start, end), strict=True)]
    small = [start.small in row.leaf.dims for row in inner]
    if large[0] and small[1]:
        return [(0, start)]
    if large[1] and small[0]:
        return [(1, end)]
    return [(0, start), (1, end)] if all(large) and start != end else []


def _unsure(row: Row, dim: Dim) -> bool:
    """Whether an axis of a leaf may be the one that is called so, and nobody can say."""
    names = (name for own in row.leaf.names for name in own.parts if EITHER in name)
    spelled = dims_.format_dim(dim)
    return any(spelled in name.split(EITHER) for name in names)


def _which(row: Row, dim: Dim) -> str:
    """What to do where a rule names an axis that a leaf has twice."""
    spelled = dims_.format_dim(dim)
    if row.reshaped:
        reset = Reset(view=row.path)
        return f"nobody can say which axis of the param {spelled} is here: start it anew, {reset}"
    names = [str(own) for own, size in zip(row.leaf.own, row.leaf.dims, strict=True) if size == dim]
    if len(set(names)) == len(names):
        return f"{spelled} is the size of several axes: name one of them, {' or '.join(names)}"
    return (
        f"{spelled} is the size of several axes, and nothing tells them apart: "
        f'give them labels, "in={spelled} out={spelled}", and name one of these'
    )


def _unfilled(source: Row, view: Row, fill: Fill) -> Mismatch | None:
    """Why a leaf cannot be padded so."""
    sizes = [dims_.size_of(dim, {}) for dim in (fill.small, fill.large)]
    if None not in sizes and (sizes[0] or 0) > (sizes[1] or 0):
        return fault(
            source, view, "dims", f"{sizes[0]} cannot be padded to {sizes[1]}, which is less"
        )
    is_complex = not source.leaf.is_key and jnp.issubdtype(
        jnp.dtype(source.leaf.dtype), jnp.complexfloating
    )
    unlike_zero = leaves.number_bits(fill.value) != 0
    if not leaves.holds(source.leaf, leaves.Fill(fill.value)) or (is_complex and unlike_zero):
        return fault(
            source,
            view,
            "dtype",
            f"{source.leaf.dtype} is not padded with {shown(fill.value)}: give another fill=",
        )
    return None


def _cast(source: Row, view: Row) -> Chain | Mismatch:
    before, after = source.leaf.dtype, view.leaf.dtype
    if before == after:
        return Chain()
    if (
        not source.leaf.is_key
        and not view.leaf.is_key
        and all(jnp.issubdtype(jnp.dtype(d), jnp.integer) for d in (before, after))
    ):
        return Chain((Cast(before, after),))
    if source.leaf.is_key and view.leaf.is_key:
        return fault(
            source, view, "impl", "a key keeps its implementation: declare the same on both sides"
        )
    if source.leaf.is_key or view.leaf.is_key:
        return fault(
            source,
            view,
            "dtype",
            'a key is no array of its data: declare Key["..."] on both sides, or say raw_key(...)',
        )
    hint = "only integers are cast, where that keeps their values: declare one dtype on both sides, and cast the tree yourself"
    return fault(source, view, "dtype", hint)


@dataclasses.dataclass(frozen=True, slots=True)
class _Level:
    """A level of repetition that both rows have: a factor of a number of repeats.

    Attributes:
        factor: Its size.
        places: In each row, which repeat it is part of.
    """

    factor: Factor
    places: tuple[int, int]


_Token = tuple[str, int]
"""A factor of an axis: the number of a level, or of a factor of the leaf's own dims."""

_Axes = tuple[tuple[_Token, ...], ...]
"""The axes of a leaf as it is stored, each with its factors."""


def _reshape(source: Row, view: Row, told: Told) -> Relation | Mismatch:
    levels = _levels(source, view)
    if isinstance(levels, Mismatch):
        return levels
    own = matched(source, view, told)
    if isinstance(own, Mismatch):
        return own
    work = _Work(source, view, levels, own)
    return Relation(
        work.chain(), tuple((level.factor,) for level in levels), (work.symbols(0), work.symbols(1))
    )


def _levels(source: Row, view: Row) -> list[_Level] | Mismatch:
    """The levels of two rows, in the source's order: by name, or where names do not tell, by position."""
    before, after = (
        [(f, n) for n, r in enumerate(row.repeats) for f in r.size] for row in (source, view)
    )
    factors = [[factor for factor, _ in each] for each in (before, after)]
    if factors[0] == factors[1]:
        return [_Level(f, (n, m)) for (f, n), (_, m) in zip(before, after, strict=True)]
    if sorted(map(str, factors[0])) != sorted(map(str, factors[1])):
        counts = [
            " ".join(dims_.format_dim(r.size) for r in row.repeats) or "none"
            for row in (view, source)
        ]
        hint = f"repeats: {counts[0]} in the view, {counts[1]} in the source; count them with the same dim"
        return fault(source, view, "dims", hint)
    if len(set(factors[0])) < len(factors[0]):
        return fault(
            source,
            view,
            "ambiguous",
            "levels of one size in another order: count them with named dims",
        )
    places = dict(after)
    return [_Level(f, (n, places[f])) for f, n in before]


class _Work:
    """The edits between two rows whose levels and factors are known to be the same."""

    def __init__(
        self, source: Row, view: Row, levels: Sequence[_Level], own: Sequence[int]
    ) -> None:
        self.rows, self.levels = (source, view), levels
        self.factors = [f for f in dims_.factors(source.leaf.dims) if f != 1]
        self.axes = self._axes(0, range(len(own))), self._axes(1, own)

    def _axes(self, side: int, own: Sequence[int]) -> _Axes:
        """The axes in the order that `Row.dims` has them."""
        row, numbers = self.rows[side], iter(own)
        axes = [tuple(("leaf", next(numbers)) for f in dim if f != 1) for dim in row.leaf.dims]
        stacks = [
            tuple(("level", n) for n in self._inside(at, side)) for at in range(len(row.repeats))
        ]
        return tuple((axes if kind == "axis" else stacks)[at] for kind, at in row.axes)

    def symbols(self, side: int) -> tuple[Symbol, ...]:
        """How each index symbol of a row is made of the levels."""
        unrolled = [at for at, repeat in enumerate(self.rows[side].repeats) if repeat.axis is None]
        return tuple(Symbol(self._inside(at, side)) for at in unrolled)

    def _inside(self, repeat: int, side: int) -> tuple[int, ...]:
        """The levels that one repeat consists of, in its own order."""
        found = [
            (n, level.factor) for n, level in enumerate(self.levels) if level.places[side] == repeat
        ]
        order = self.rows[side].repeats[repeat].size
        return tuple(n for n, _ in sorted(found, key=lambda item: order.index(item[1])))

    def _stacked(self, level: _Level, side: int) -> bool:
        return self.rows[side].repeats[level.places[side]].axis is not None

    def chain(self) -> Chain:
        """The edits: stack what the view stacks, rearrange, unstack what the source stacks."""
        status = [(self._stacked(level, 0), self._stacked(level, 1)) for level in self.levels]
        taken = [n for n, (before, after) in enumerate(status) if before and not after]
        made = [n for n, (before, after) in enumerate(status) if after and not before]
        if made and not taken:
            return ~self._unstacked(self.axes[1], self.axes[0], made)
        axes, chain = self.axes[0], Chain()
        for level in reversed(made):
            chain, axes = (
                chain >> Stack(0, (self.levels[level].factor,)),
                ((("level", level),), *axes),
            )
        return chain >> self._unstacked(axes, self.axes[1], taken)

    def _unstacked(self, before: _Axes, after: _Axes, taken: Sequence[int]) -> Chain:
        """The edits that unstack some levels, outermost first, and rearrange the rest."""
        alone = [(("level", level),) for level in taken]
        apart = tuple(
            piece for axis in before for piece in _apart(axis, [token for (token,) in alone])
        )
        chain, axes = self._rearranged(before, apart), list(apart)
        for level, axis in zip(taken, alone, strict=True):
            at = axes.index(axis)
            chain = chain >> Unstack(at, (self.levels[level].factor,))
            del axes[at]
        return chain >> self._rearranged(tuple(axes), after)

    def _rearranged(self, before: _Axes, after: _Axes) -> Chain:
        if before == after:
            return Chain()
        order = [token for axis in before for token in axis]
        found = tuple(order.index(token) for axis in after for token in axis)
        return Chain((Rearrange(self._dims(before), self._dims(after), found),))

    def _dims(self, axes: _Axes) -> Dims:
        return tuple(tuple(self._factor(token) for token in axis) or (1,) for axis in axes)

    def _factor(self, token: _Token) -> Factor:
        kind, number = token
        return self.levels[number].factor if kind == "level" else self.factors[number]


def _apart(axis: tuple[_Token, ...], taken: Sequence[_Token]) -> list[tuple[_Token, ...]]:
    """An axis cut into those of its factors that are taken out of it, and what is between them."""
    pieces: list[tuple[_Token, ...]] = []
    for token in axis:
        if token in taken or not pieces or pieces[-1][0] in taken:
            pieces.append((token,))
        else:
            pieces[-1] = (*pieces[-1], token)
    return pieces or [()]


def _type_fault(source: Row, view: Row, relation: Relation) -> Mismatch | None:
    """Types the chain for all sizes, both ways."""
    unrolled = [{n for symbol in side for n in symbol.levels} for side in relation.symbols]
    counts = frozenset(dims_.names(relation.levels[n] for n in unrolled[0] ^ unrolled[1]))
    for before, after, chain in ((source, view, relation.chain), (view, source, ~relation.chain)):
        inputs = (before.dims,) * chain.takes(dict.fromkeys(counts, 2))
        found = typed(chain, inputs, before.leaf.dtype, counts)
        wanted = typed(Chain(), (after.dims,), after.leaf.dtype, counts)
        if set(found) != set(wanted):
            return fault(
                source, view, "dims", f"{str(chain) or 'a move'} gives {found[0]}, not {wanted[0]}"
            )
    return None
