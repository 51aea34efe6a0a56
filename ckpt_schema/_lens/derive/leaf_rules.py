"""What rules say of one joined leaf, beyond what its types do.

`leaf_joins` asks `told` for it once for each pair of rows, and puts it to `relations`, which asks
`codec_of` for what happens to the values. A leaf that no rule speaks of is ``UNTOLD``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

import jax.numpy as jnp

from ckpt_schema._layouts.dims import Dim
from ckpt_schema._layouts.formats import FORMATS
from ckpt_schema._layouts.leaves import ANY_FLOAT, Fill, Init
from ckpt_schema._layouts.table import Row
from ckpt_schema._lens.axis_rules import Grown, Padding, Repeated, Reverse
from ckpt_schema._lens.cells import Constant
from ckpt_schema._lens.codecs import Codec, Exact, Plus, Rounded, Times, holds, inverted, joined
from ckpt_schema._lens.derive.scope import Hit, Scope, is_mirror
from ckpt_schema._lens.rules import RawKey, Rule
from ckpt_schema._lens.value_rules import Factor, Offset, Rounding

__all__ = [
    "UNTOLD",
    "PaddedAxis",
    "Told",
    "ValueRule",
    "by_family",
    "codec_of",
    "spoken",
    "told",
    "unscaled",
    "unshifted",
]


@dataclasses.dataclass(frozen=True, slots=True)
class PaddedAxis:
    """An axis, or layers, of which one side has more: the dim that both have, that of this side, and what is in the rest.

    That is padding, or what has no partner on the other side.
    """

    small: Dim
    large: Dim
    rest: Constant

    @classmethod
    def of(cls, small: Dim, large: Dim, fill: float) -> PaddedAxis:
        """One whose rest is padding."""
        return cls(small, large, Constant(Fill(fill), is_fill=True))


@dataclasses.dataclass(frozen=True, slots=True)
class Told:
    """What is said of a leaf.

    Attributes:
        raw: Whether it is a key on one side, and the raw data of one on the other.
        flips: The axes that run the other way.
        fills: The axes that one side pads. Of one axis there are two where layouts between were padded
            otherwise: what the source's padding holds, then what the view's does.
        exponent: The view's values are two to this times the source's, before the words.
        words: What they are besides: times a factor that is no power of two, plus an amount.
        turned: Whether the exponent and the words are those of the way back, to be undone.
        rounds: Whether they may be rounded where a dtype has fewer values.
        repeats: The rules that say which factors of one side repeat.
        rules: The rules that say so.
        axes: Which of the source's own axes each of the view's is, where a rule says it.
    """

    raw: bool = False
    flips: frozenset[Dim] = frozenset()
    fills: tuple[PaddedAxis, ...] = ()
    exponent: int = 0
    words: Codec = ()
    turned: bool = False
    rounds: bool = False
    repeats: tuple[Repeated, ...] = ()
    rules: tuple[Rule, ...] = ()
    axes: tuple[int, ...] | None = None

    @property
    def inverse(self) -> Told:
        """The same said of the way back."""
        # (2 0 1) is undone by (1 2 0): each place says where its axis has gone.
        back = self.axes and tuple(self.axes.index(at) for at in range(len(self.axes)))
        # What was put on last is taken off first.
        fills = self.fills[::-1]
        return dataclasses.replace(self, fills=fills, turned=not self.turned, axes=back)

    @property
    def changes(self) -> bool:
        """Whether values are other numbers on both sides."""
        return bool(self.exponent or self.words)

    def scaled(self, factor: Factor, power: int) -> Told:
        """The same of what an optimizer keeps for a leaf that a rule scales, which goes by a power of the factor."""
        # The factor comes before what else is said, as it does where one leaf has both rules.
        words = (*_times(factor, power), *self.words)
        exponent = factor.exponent * power
        both = (*self.rules, factor)
        return dataclasses.replace(self, exponent=exponent, words=words, rules=both)

    def shifted(self, shift: Offset, *, follows: bool) -> Told:
        """The same of what an optimizer keeps for a leaf that a rule shifts, if that follows the leaf."""
        words = (*self.words, *_plus(shift)) if follows else self.words
        return dataclasses.replace(self, words=words, rules=(*self.rules, shift))

    @property
    def ends(self) -> tuple[tuple[PaddedAxis, PaddedAxis], ...]:
        """Of each axis that is padded, what the source's padding holds, and what the view's does."""
        by_axis: dict[tuple[Dim, Dim], tuple[PaddedAxis, PaddedAxis]] = {}
        for fill in self.fills:
            pair = fill.small, fill.large
            # A rule that stands alone speaks of both sides; of two the first is the source's.
            first, _ = by_axis.get(pair, (fill, fill))
            by_axis[pair] = first, fill
        return tuple(by_axis.values())


def _times(factor: Factor, power: int = 1) -> Codec:
    """What a power of a factor does to values, its power of two aside.

    Of the factor 12, which is 3 times 2**2, the power -2 divides by 9; the exponent says the rest.
    """
    rest, count = factor.rest, abs(power)
    if not power or rest == 1 or (rest == -1 and count % 2 == 0):
        return ()
    # A change of sign is its own inverse, so it is never written as a division.
    if rest == -1 or count == 1:
        return (Times(rest, divides=power < 0 and rest != -1),)
    # A factor that names dims is no number before sizes are bound: its power is written down.
    several = rest**count if isinstance(rest, float) else f"({rest}) ** {count}"
    return (Times(several, divides=power < 0),)


def _plus(shift: Offset) -> Codec:
    return (Plus(shift.amount),) if shift.amount else ()


UNTOLD = Told()
"""Nothing is said."""


ValueRule = RawKey | Reverse | Padding | Grown | Repeated | Factor | Offset | Rounding
"""A rule that speaks of what is in a leaf."""

R = TypeVar("R", Factor, Offset)


def spoken(rules: Iterable[Rule]) -> Scope[ValueRule]:
    """Those among ``rules`` that speak of what is in leaves, by the view's paths."""
    entries = ((rule.path, rule) for rule in rules if isinstance(rule, ValueRule))
    return Scope(entries, follows=True)


def by_family(row: Row, hits: Sequence[Hit[ValueRule]]) -> dict[Hashable, list[Hit[ValueRule]]]:
    """What is said of a row of the view.

    Of rules that say one kind of thing, the first one holds.
    """
    mirror = is_mirror(row)
    families: dict[Hashable, list[Hit[ValueRule]]] = {}
    for hit in hits:
        # A param's scale is not that of its moments, which go by a power of it: see `with_moments`.
        is_of_param = mirror and hit.start > 0
        if not (is_of_param and isinstance(hit.rule, (Factor, Offset))):
            families.setdefault(_family(hit.rule), []).append(hit)
    return families


def _family(rule: ValueRule) -> Hashable:
    """What a rule decides: two of one family are about one thing, and only one can hold."""
    # Several axes may each be reversed, padded or repeated. A leaf has one scale and one offset.
    if isinstance(rule, Reverse):
        return Reverse, rule.dim
    if isinstance(rule, (Padding, Grown)):
        return Padding, rule.small, rule.large
    if isinstance(rule, Repeated):
        return Repeated, rule.times
    return type(rule)


def told(row: Row, spoken_of: Sequence[Hit[ValueRule]]) -> Told:
    """What rules that speak of a row of the view say of it."""
    hits = [family[0] for family in by_family(row, spoken_of).values()]
    if not hits:
        return UNTOLD
    # In the order in which the rules are given: the second of two paddings goes around the first.
    hits.sort(key=lambda hit: hit.number)
    raw, rounds, exponent = False, False, 0
    factors: Codec = ()
    amounts: Codec = ()
    flips: list[Dim] = []
    fills: list[PaddedAxis] = []
    repeats: list[Repeated] = []
    for hit in hits:
        rule = hit.rule
        if isinstance(rule, RawKey):
            raw = True
        elif isinstance(rule, Reverse):
            flips.append(rule.dim)
        elif isinstance(rule, Factor):
            exponent, factors = rule.exponent, _times(rule)
        elif isinstance(rule, Offset):
            amounts = _plus(rule)
        elif isinstance(rule, Rounding):
            rounds = True
        elif isinstance(rule, Repeated):
            repeats.append(rule)
        else:
            fills.append(_more(rule, follows=hit.start > 0 and is_mirror(row)))
    rules = tuple([hit.rule for hit in hits])
    # Values are scaled first and shifted then, whichever rule is given first.
    return Told(
        raw,
        frozenset(flips),
        tuple(fills),
        exponent,
        (*factors, *amounts),
        rounds=rounds,
        repeats=tuple(repeats),
        rules=rules,
    )


def _more(rule: Padding | Grown, *, follows: bool) -> PaddedAxis:
    """What a rule says of an axis.

    Of what an optimizer keeps, which follows the param, it starts as that starts it.
    """
    if isinstance(rule, Padding):
        return PaddedAxis.of(rule.small, rule.large, 0 if follows else rule.fill)
    return PaddedAxis(rule.small, rule.large, Constant(Init() if follows else rule.default))


def unscaled(row: Row, hits: Sequence[Hit[ValueRule]]) -> Factor | None:
    """The rule that scales the leaf which a row of the optimizer state mirrors, where none speaks of the row itself."""
    return _rule_of_param(row, hits, Factor)


def unshifted(row: Row, hits: Sequence[Hit[ValueRule]]) -> Offset | None:
    """The same of the rule that shifts it."""
    return _rule_of_param(row, hits, Offset)


def _rule_of_param(row: Row, hits: Sequence[Hit[ValueRule]], kind: type[R]) -> R | None:
    """The rule of a kind that decides for a mirror, if it speaks of the mirror's param."""
    for hit in hits:
        if isinstance(hit.rule, kind):
            # The first one decides. From the root on it speaks of the optimizer state itself.
            return hit.rule if is_mirror(row) and hit.start > 0 else None
    return None


def codec_of(source: str, view: str, said: Told) -> Codec | str:
    """What happens to values on their way from one dtype to another.

    Floats are cast where that keeps their values, and rounded where a rule says so. They are scaled,
    and after that shifted, in the wider dtype of both; where none is wider, in that of the view. The
    way back undoes each step.

    Args:
        source: The dtype before; any float stands for that of the other side.
        view: The dtype after.
        said: What rules say of the leaf.

    Returns:
        The codec, or why there is none.

    Example:
        >>> [str(word) for word in codec_of("bfloat16", "float32", Told(exponent=3))]
        ['times 2**3, bfloat16 -> float32']
        >>> said = Told(words=(Times(0.3), Plus(1.0)), rounds=True)
        >>> [str(word) for word in codec_of("float32", "bfloat16", said)]
        ['times 0.3', 'plus 1.0', 'float32 -> bfloat16, rounded']
        >>> codec_of("float32", "int32", UNTOLD)  # doctest: +ELLIPSIS
        'only integers are cast to integers, and floats to floats, where that keeps their values: ...'
    """
    # What is said of the way back is made as that way, and undone word by word.
    if said.turned:
        back = codec_of(view, source, dataclasses.replace(said, turned=False))
        return back if isinstance(back, str) else inverted(back)
    source, view = _standing_for(source, view), _standing_for(view, source)
    if source in FORMATS and view in FORMATS:
        return _of_floats(source, view, said)
    if source == view:
        return ()
    keys = source.startswith("key<"), view.startswith("key<")
    if all(keys):
        return "a key keeps its implementation: declare the same on both sides"
    if any(keys):
        return (
            'a key is no array of its data: declare Key["..."] on both sides, or say raw_key(...)'
        )
    if all(jnp.issubdtype(jnp.dtype(dtype), jnp.integer) for dtype in (source, view)):
        return (Exact(source, view),)
    return (
        "only integers are cast to integers, and floats to floats, where that keeps their values: "
        "declare one dtype on both sides, and cast the tree yourself"
    )


def _standing_for(dtype: str, other: str) -> str:
    """What any float stands for until it is said which it is: that of the other side."""
    if dtype != ANY_FLOAT:
        return dtype
    return other if other in FORMATS else "float32"


def _of_floats(source: str, view: str, said: Told) -> Codec | str:
    """What happens to floats: cast to the wider dtype, scaled, shifted, and cast on from there."""
    wide = source if holds(source, view) and source != view else view
    if said.changes and FORMATS[wide].bits < 16:
        return f"{wide} has too few values to be scaled: scale it before it is cast"
    scaled: Codec = (Exact(wide, wide, said.exponent),) if said.exponent else ()
    cast: Codec = ()
    if source != view:
        cast = (Rounded(source, view) if said.rounds else Exact(source, view),)
    if wide == view:
        return joined(joined(cast, scaled), said.words)
    # The last exact word is merged with the cast, if nothing else is between them.
    return joined(joined(scaled, said.words), cast)
