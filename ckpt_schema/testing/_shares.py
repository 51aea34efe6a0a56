"""Parts of one leaf: which share of an axis, or of a list of layers, each of several rows has, for the oracle of origins."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ckpt_schema._layouts.dims import Dim, Sum
from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.table import Row, Series
from ckpt_schema._lens.rules import Fuse
from ckpt_schema.testing._named_arrays import (
    AxisToken,
    Ids,
    Named,
    NamedRow,
    Sizes,
    factor_size,
    frame_of,
    size,
)

__all__ = ["PartOf", "Share", "fused", "layers_of", "levels_by_name", "merged_shares", "split_axis"]


@dataclasses.dataclass(frozen=True)
class PartOf:
    """What a row is a part of: of what, which part, and where the path of the model starts in its own."""

    rule: Series | Fuse
    number: int
    start: int


Share = tuple[NamedRow, AxisToken, int, int, list[tuple[AxisToken, int]]]
"""A part: how it is looked at, the factor of the whole that it has a share of, from where to where, and that in the part."""


def split_axis(
    ids: Ids, tokens: tuple[AxisToken, ...], at: int, inner: Sequence[tuple[AxisToken, int]]
) -> Named:
    """An axis of shares as the factors that the part has."""
    own: list[AxisToken] = []
    lengths: list[int] = []
    for token, length in inner:
        own.append(token)
        lengths.append(length)
    shape = (*ids.shape[:at], *lengths, *ids.shape[at + 1 :])
    return Named((*tokens[:at], *own, *tokens[at + 1 :]), ids.reshape(shape))


def merged_shares(
    named: Named,
    tokens: tuple[AxisToken, ...],
    token: AxisToken,
    inner: Sequence[tuple[AxisToken, int]],
) -> Ids | None:
    """A part by the names of the whole: the factors of its share as one axis."""
    own = [inner_token for inner_token, _ in inner]
    at = tokens.index(token)
    # The share stands where the whole has the axis: `embed [q heads] [dim]` for `embed qkv`.
    wanted = [*tokens[:at], *own, *tokens[at + 1 :]]
    if sorted(wanted) != sorted(named.tokens):
        return None
    ids = np.transpose(named.ids, [named.tokens.index(each) for each in wanted])
    length = math.prod(length for _, length in inner)
    return ids.reshape((*ids.shape[:at], length, *ids.shape[at + len(inner) :]))


def fused(
    whole: Row, rule: Fuse, parts: Sequence[tuple[int, Row, PartOf]], sizes: Sizes
) -> tuple[NamedRow, dict[int, Share]] | None:
    """The axis that parts of a leaf share: a sum of as many terms, or so many times a dim."""
    frame = frame_of(whole)
    tokens: list[tuple[AxisToken, list[Dim]]] = []
    for (kind, dim), axis in zip(frame.axes, frame.tokens(), strict=True):
        for token, factor in axis if kind == "axis" else ():
            terms = _terms(factor, len(parts))
            if terms is not None and rule.axis in (None, (factor,), dim):
                tokens.append((token, terms))
    # Where two axes could be shared, as in `3*heads 3*dim`, nothing but the rule tells which is.
    if len(tokens) != 1:
        return None
    token, terms = tokens[0]
    factors = frame.factors()
    # A rule that turns its parts, `axes="embed 2*out -> out embed"`, says which axis is which. Where two are
    # one dim, names would tell them by their order, which is another one in the parts.
    if rule.spelled is not None and any(number > 0 for (_, _, number), _ in factors):
        return None
    names = {known[:2] for known, _ in factors}
    shares: dict[int, Share] = {}
    # The parts stand side by side: each begins where the one before it ends.
    start = 0
    for (number, row, _), term in zip(parts, terms, strict=True):
        inner: list[tuple[AxisToken, int]] = []
        seen: set[tuple[str, str]] = set()
        for factor in term:
            if factor == 1:
                continue
            name = "axis", str(factor)
            if name in names or name in seen:
                return None  # names do not tell them apart
            seen.add(name)
            inner.append(((*name, 0), factor_size(factor, sizes)))
        length = size(term, sizes)
        shares[number] = (frame_of(row), token, start, start + length, inner)
        start += length
    return frame, shares


def _terms(factor: Any, count: int) -> list[Dim] | None:
    """What each of so many parts has of a factor; None where it is not shared among so many."""
    # `3*heads*dim` of q, k and v: each has one of the 3, whatever stands beside it.
    if isinstance(factor, int):
        return list[Dim]([(1,)]) * count if factor == count else None
    if not isinstance(factor, Sum):
        return None
    if len(factor.terms) == count:
        return list(factor.terms)
    # `heads+2*groups` of three parts: heads, groups, groups.
    apart: list[Dim] = []
    for term in factor.terms:
        times = term[0] if isinstance(term[0], int) else 1
        apart += [term[1:] or (1,)] * times if times != 1 else [term]
    return apart if len(apart) == count else None


def layers_of(
    whole: Row, rule: Series, parts: Sequence[tuple[int, Row, PartOf]], sizes: Sizes
) -> tuple[NamedRow, dict[int, Share]] | None:
    """The list that parts are, one after the other: all of the first come first, outer levels counted last."""
    # The rule speaks of the model, which may begin below the root.
    starts = whole.body or 0, 0
    places = [at for at in starts if whole.path[at : at + len(rule.path)] == rule.path]
    if not places:
        return None
    level = levels_by_name(whole.path[: places[0] + len(rule.path)]) - 1
    frame = _with_list(frame_of(whole), range(level, level + 1))
    axes = list(frame.axes)
    for at in frame.listed:
        kind, dim = axes[at]
        axes[at] = (kind, (Sum((dim,)),))  # one factor, whatever it is
    frame = dataclasses.replace(frame, axes=tuple(axes))
    token: AxisToken = ("level", "list", 0)
    shares: dict[int, Share] = {}
    start = 0
    for number, row, part in parts:
        # A member may be layers in layers, `stages[]/blocks[]`: the list goes through both levels.
        first = levels_by_name(row.path[: part.start])
        span = range(first, first + levels_by_name(rule.members[part.number]))
        own = _with_list(frame_of(row), span)
        named = own.tokens()
        inner: list[tuple[AxisToken, int]] = []
        for at in own.by_level():
            if at in own.listed:
                inner += [(each, factor_size(factor, sizes)) for each, factor in named[at]]
        length = math.prod(count for _, count in inner)
        shares[number] = (own, token, start, start + length, inner)
        start += length
    return frame, shares


def _with_list(frame: NamedRow, span: range) -> NamedRow:
    """The frame, these levels being the list that is shared."""
    inner = frozenset(at for at, level in enumerate(frame.levels) if level in span)
    return dataclasses.replace(frame, listed=inner)


def levels_by_name(path: LogicalPath) -> int:
    """How many levels of repetition a path has."""
    return sum(segment.endswith("[]") for segment in path)
