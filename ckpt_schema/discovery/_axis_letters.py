"""The axes of pieces that belong together, in letters, as rules spell them."""

from __future__ import annotations

import dataclasses
import itertools
import re
import string
from collections.abc import Mapping, Sequence

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts.dims import Binder
from ckpt_schema.discovery._leaf_pieces import LeafPiece
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
        self._letters = iter(string.ascii_lowercase)
        self._shared = shared
        # The letters of each factor of the whole that all parts have, ...
        self.own: dict[int, list[str]] = {}
        # ... and those of the shared one, for each part.
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
        # An earlier part may have cut a factor of 12 as 3 * 4 where this one cuts it as 6 * 2.
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
    # q of (8, 4), k and v of (8, 2) as one leaf of (8, 8): the whole is a b+c+d, the parts are
    # a b, a c and a d.
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
            # The whole names the letters of the axis, major first; the part takes them in order.
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
    # In the whole the shared factor is the sum of what its parts have of it.
    words = dict(lettering.own)
    if shared is not None:
        words[shared] = [_sum_of(lettering.runs)]
    return _with_numbers(_axis_words(wholes[0], words), behind, lettering.sizes)


def _with_numbers(
    whole: list[str], behind: list[list[str]], sizes: Mapping[str, int]
) -> tuple[list[str], list[list[str]]]:
    """The same with numbers for letters whose sizes no axis tells, as the halves of a head are 2 and the rest."""
    # What a derivation can tell of sizes is asked of the very binder that it uses.
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
    # The smallest becomes a number; with it the others may be told.
    letter = unknown[0]
    word = re.compile(rf"\b{letter}\b")
    number = str(sizes[letter])
    sides: list[list[str]] = []
    for axes in (whole, *behind):
        sides.append([word.sub(number, axis) for axis in axes])
    others = dict(sizes)
    del others[letter]
    return _with_numbers(sides[0], sides[1:], others)


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
    if len({whole.factors for whole in wholes}) > 1:
        return None
    # The spans of one factor in all parts, column by column.
    columns = zip(*[whole.spans for whole in wholes], strict=True)
    unlike = [factor for factor, spans in enumerate(columns) if len(set(spans)) > 1]
    return unlike[0] if len(unlike) == 1 else None


def _common_factors(
    before: Sequence[int], after: Sequence[int]
) -> tuple[list[list[int]], list[list[int]]] | None:
    """The common factors that each size of two equal products falls in, major first; None where they cut across."""
    # [12, 2] and [4, 6]: 12 is 4 * 3 and 6 is 3 * 2, so both are 4 * 3 * 2.
    cuts: tuple[list[list[int]], list[list[int]]] = [[] for _ in before], [[] for _ in after]
    sides = before, after
    # What is left of each size, and which size of each side is being cut.
    rest = list(before), list(after)
    current = [0, 0]
    while True:
        # What is used up, or of size 1, is no factor.
        for side in (0, 1):
            while current[side] < len(sides[side]) and rest[side][current[side]] == 1:
                current[side] += 1
        if current[0] == len(before) or current[1] == len(after):
            return cuts if current == [len(before), len(after)] else None
        size = min(rest[0][current[0]], rest[1][current[1]])
        for side in (0, 1):
            if rest[side][current[side]] % size:
                return None
            cuts[side][current[side]].append(size)
            rest[side][current[side]] //= size


def _axis_words(part: LeafPiece, words: Mapping[int, Sequence[str]]) -> list[str]:
    """Each axis of a leaf as the product of its letters; a sum that is multiplied stands in parentheses."""
    axes: list[str] = []
    factors = itertools.count()
    for sizes in part.factors:
        names: list[str] = []
        for factor in itertools.islice(factors, len(sizes)):
            names += words.get(factor, [])
        if len(names) > 1:
            names = [f"({name})" if "+" in name else name for name in names]
        # A factor of which each part has one index has no letter.
        axes.append("*".join(names) or "1")
    return axes
