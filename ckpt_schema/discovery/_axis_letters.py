"""The axes of pieces that belong together, in letters, as rules spell them."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts.dims import Binder
from ckpt_schema.discovery._cuts import LeafPiece
from ckpt_schema.discovery._proof import Order

__all__ = ["LayerPair", "lettered_axes"]


@dataclasses.dataclass(frozen=True)
class LayerPair:
    """Pieces of one layer of both sides, which are one; their leaves are called by logical paths."""

    source: LeafPiece
    view: LeafPiece
    order: Order
    factor: float
    offset: float


class _Lettering:
    """Letters for the factors of a leaf, handed out as they are met; those of the shared factor are each part's own."""

    def __init__(self, shared: int | None) -> None:
        self.sizes: dict[str, int] = {}
        self._letters = (chr(code) for code in range(ord("a"), ord("z") + 1))
        self._shared = shared
        self.own: dict[int, list[str]] = {}
        self.runs: list[list[str]] = []

    def start_part(self) -> None:
        """Begins with another part."""
        self.runs.append([])

    def names(self, factor: int, sizes: Sequence[int]) -> list[str] | None:
        """The letters of a factor that both sides cut so; None where another part cuts it otherwise."""
        if factor == self._shared:
            self.runs[-1] = self._taken(sizes)
            return self.runs[-1]
        names = self.own.get(factor)
        if names is None:
            names = self.own[factor] = self._taken(sizes)
        return names if [self.sizes[name] for name in names] == list(sizes) else None

    def _taken(self, sizes: Sequence[int]) -> list[str]:
        names = list(itertools.islice(self._letters, len(sizes)))
        self.sizes |= zip(names, sizes, strict=True)
        return names


def lettered_axes(
    pairs: Sequence[LayerPair], *, whole_is_view: bool
) -> tuple[list[str], list[list[str]]] | None:
    """The axes of a leaf, and those of each leaf that is part of it on the other side, in letters.

    A leaf that is one leaf there is its only part. None where the sides cut sizes across each other.
    """
    wholes = [pair.view if whole_is_view else pair.source for pair in pairs]
    parts = [pair.source if whole_is_view else pair.view for pair in pairs]
    shared = _shared_factor(wholes)
    if len(pairs) > 1 and shared is None:
        return None
    lettering = _Lettering(shared)
    behind: list[list[str]] = []
    for pair, whole, part in zip(pairs, wholes, parts, strict=True):
        lettering.start_part()
        order = _turned(pair.order, inverse=whole_is_view)
        theirs: dict[int, list[str]] = {}
        for axis, there in enumerate(part.axes):
            here = whole.axes[order[axis]]
            cuts = _common_factors(whole.lengths(here), part.lengths(there))
            if cuts is None:
                return None
            flat: list[str] = []
            for factor, sizes in zip(here, cuts[0], strict=True):
                names = lettering.names(factor, sizes)
                if names is None:
                    return None
                flat += names
            letters = iter(flat)
            for factor, sizes in zip(there, cuts[1], strict=True):
                theirs[factor] = list(itertools.islice(letters, len(sizes)))
        behind.append(_axis_words(part, theirs))
    words = dict(lettering.own)
    if shared is not None:
        words[shared] = [_sum_of(lettering.runs)]
    return _with_numbers(_axis_words(wholes[0], words), behind, lettering.sizes)


def _with_numbers(
    whole: list[str], behind: list[list[str]], sizes: Mapping[str, int]
) -> tuple[list[str], list[list[str]]]:
    """The same with numbers for letters whose sizes no axis tells, as the halves of a head are 2 and the rest."""
    binder = Binder()
    for axes in (whole, *behind):
        for dim in dims_.parse_dims(" ".join(axes)):
            size = dims_.size_of(dim, sizes)
            assert size is not None
            binder.see_dim(dim, size, "")
    binder.settle()
    unknown = sorted(sizes.keys() - binder.sizes.keys(), key=lambda name: sizes[name])
    if not unknown:
        return whole, behind
    word = re.compile(rf"\b{unknown[0]}\b")
    number = str(sizes[unknown[0]])
    sides = [[word.sub(number, axis) for axis in axes] for axes in (whole, *behind)]
    return _with_numbers(sides[0], sides[1:], {n: s for n, s in sizes.items() if n != unknown[0]})


def _sum_of(runs: Sequence[Sequence[str]]) -> str:
    """What parts have of an axis together: their number, where each has one index of it."""
    if not any(runs):
        return str(len(runs))
    return "+".join("*".join(run) or "1" for run in runs)


def _turned(order: Order, *, inverse: bool) -> Order:
    if not inverse:
        return order
    return tuple(order.index(axis) for axis in range(len(order)))


def _shared_factor(wholes: Sequence[LeafPiece]) -> int | None:
    """The factor of which each part has a span of its own, one after the other."""
    if len(wholes) == 1:
        return None
    columns = zip(*(whole.spans for whole in wholes), strict=True)
    unlike = [number for number, column in enumerate(columns) if len(set(column)) > 1]
    if len({whole.factors for whole in wholes}) > 1 or len(unlike) != 1:
        return None
    return unlike[0]


def _common_factors(
    before: Sequence[int], after: Sequence[int]
) -> tuple[list[list[int]], list[list[int]]] | None:
    """The common factors that each size of two equal products falls in, major first; None where they cut across."""
    found: tuple[list[list[int]], list[list[int]]] = [[] for _ in before], [[] for _ in after]
    sides = before, after
    rest = list(before), list(after)
    at = [0, 0]
    while True:
        for side in (0, 1):  # what is used up, or of size 1, is no factor
            while at[side] < len(sides[side]) and rest[side][at[side]] == 1:
                at[side] += 1
        if at[0] == len(before) or at[1] == len(after):
            return found if at == [len(before), len(after)] else None
        size = min(rest[side][at[side]] for side in (0, 1))
        for side in (0, 1):
            if rest[side][at[side]] % size:
                return None
            found[side][at[side]].append(size)
            rest[side][at[side]] //= size


def _axis_words(part: LeafPiece, words: Mapping[int, Sequence[str]]) -> list[str]:
    """Each axis of a leaf as the product of its letters; a sum that is multiplied stands in parentheses."""
    found: list[str] = []
    numbers = itertools.count()
    for sizes in part.factors:
        own = itertools.islice(numbers, len(sizes))
        names = [name for number in own for name in words.get(number, [])]
        several = len(names) > 1
        found.append("*".join(f"({n})" if several and "+" in n else n for n in names) or "1")
    return found
