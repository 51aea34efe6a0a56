"""Sizes that hold for all values of their dims: polynomials with whole coefficients.

A dim is at least 1. A *slack* is at least 0: what a pad adds, or a rest that may be empty.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Mapping

__all__ = ["ONE", "ZERO", "Monomial", "Size", "UndecidedError", "greater", "lesser", "slack"]

Monomial = tuple[str, ...]
"""The names of a product in order, each as often as it is a factor; ``()`` is 1."""

_SLACK = "~"  # ends the name of a slack; no dim is called so


class UndecidedError(Exception):
    """Whether one size is less than another depends on the sizes of dims.

    Attributes:
        points: The sizes that are compared.
        why: What would have to hold for all sizes.
    """

    def __init__(self, why: str, *points: Size) -> None:
        """Keeps both."""
        super().__init__(why)
        self.why, self.points = why, points


@dataclasses.dataclass(frozen=True, slots=True)
class Size:
    """A polynomial in the names of dims.

    Attributes:
        terms: Each product of names with its coefficient, none of which is 0. The leading one
            comes first: the longest, and of these the last in the order of the alphabet.

    Example:
        >>> heads, dim = Size.of("heads"), Size.of("dim")
        >>> print((heads + 2) * dim, "|", (heads + 2) * dim - dim * heads)
        dim*heads+2*dim | 2*dim
    """

    terms: tuple[tuple[Monomial, int], ...]
    _hash: int = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Sizes are looked up far more often than they are made."""
        object.__setattr__(self, "_hash", hash(self.terms))

    def __hash__(self) -> int:
        """That of its terms."""
        return self._hash

    @staticmethod
    def of(value: Size | int | str) -> Size:
        """A number, or the dim of a name, as a size; a size as it is."""
        if isinstance(value, Size):
            return value
        if isinstance(value, str):
            return _from_terms({(value,): 1})
        return _from_terms({(): value})

    def __add__(self, other: Size | int) -> Size:
        """The sum."""
        return _sum(self, Size.of(other))

    def __sub__(self, other: Size | int) -> Size:
        """The difference."""
        return _sum(self, -Size.of(other))

    def __mul__(self, other: Size | int) -> Size:
        """The product."""
        return _product(self, Size.of(other))

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> Size:
        """The size with the opposite sign."""
        # The order of terms is that of their names, and stays right when every sign turns.
        return Size(tuple((names, -count) for names, count in self.terms))

    def __bool__(self) -> bool:
        """Whether it is anything but 0 for all sizes."""
        return bool(self.terms)

    def __divmod__(self, by: Size) -> tuple[Size, Size]:
        """Quotient and rest: ``self == quotient * by + rest``, no term of the rest divisible by the leading one."""
        return _division(self, by)

    def over(self, by: Size) -> Size | None:
        """The exact quotient, if there is one.

        Example:
            >>> a, b = Size.of("a"), Size.of("b")
            >>> print((a * b + 2 * a).over(a), (a * b + 1).over(a))
            b+2 None
        """
        quotient, rest = divmod(self, by)
        return None if rest else quotient

    @property
    def nonnegative(self) -> bool:
        """Whether it is at least 0 for all sizes.

        Each dim is written as 1 plus something that is at least 0. If no coefficient is negative
        then, nor is the size. The answer yes is always right; no may also mean "not always".

        Example:
            >>> a, b = Size.of("a"), Size.of("b")
            >>> (a * b - a - b + 1).nonnegative, (a - b).nonnegative, (b - a).nonnegative
            (True, False, False)
        """
        return _nonnegative(self)

    @property
    def number(self) -> int | None:
        """Its value, if that is the same for all sizes."""
        if not self.terms:
            return 0
        # The longest product stands first: where that is (), there is nothing but a number.
        names, count = self.terms[0]
        return None if names else count

    @property
    def parts(self) -> tuple[Size, Size]:
        """Two sizes of which it is the difference: what is added, and what is taken off.

        Example:
            >>> print(*(Size.of("padded") - Size.of("vocab")).parts)
            padded vocab
        """
        added: list[tuple[Monomial, int]] = []
        for names, count in self.terms:
            if count > 0:
                added.append((names, count))
        whole = Size(tuple(added))
        return whole, whole - self

    @property
    def names(self) -> frozenset[str]:
        """Every dim in it."""
        every: set[str] = set()
        for names, _ in self.terms:
            every.update(names)
        return frozenset(every)

    @property
    def slacks(self) -> frozenset[str]:
        """The names in it that may be 0."""
        return frozenset(name for name in self.names if name.endswith(_SLACK))

    def at(self, sizes: Mapping[str, int]) -> int:
        """Its value in elements.

        Args:
            sizes: The size of each dim in it, in elements.
        """
        total = 0
        for names, count in self.terms:
            # The product of no names is 1, so that the number at the end counts as it is.
            total += count * math.prod([sizes[name] for name in names])
        return total

    def where(self, known: Mapping[str, Size]) -> Size:
        """The same with what is known put in for names.

        Example:
            >>> padded = Size.of("padded")
            >>> print((padded * 2 + 1).where({"padded": Size.of("vocab") + slack("padded")}))
            2*vocab+2*padded~+1
        """
        if known.keys().isdisjoint(self.names):
            return self
        total = ZERO
        for names, count in self.terms:
            # What is known may be a sum, so each product is multiplied out anew.
            term = Size.of(count)
            for name in names:
                term *= known[name] if name in known else Size.of(name)
            total += term
        return total

    def __str__(self) -> str:
        """Its spelling as a dim's: ``heads*dim+2``."""
        spelled = "+".join([_spelled(names, count) for names, count in self.terms])
        # A term that is taken off has a sign of its own: a+-b is a-b. Without terms the size is 0.
        return spelled.replace("+-", "-") or "0"


def slack(name: str) -> Size:
    """A size that is at least 0.

    Args:
        name: The dim that is longer by so much than what it is to hold, or that counts a rest.
    """
    return Size.of(f"{name}{_SLACK}")


def lesser(a: Size, b: Size) -> Size:
    """The smaller of two sizes.

    Raises:
        UndecidedError: Which one it is depends on the dims.
    """
    if (b - a).nonnegative:
        return a
    if (a - b).nonnegative:
        return b
    raise UndecidedError(f"neither of {a} and {b} is the smaller for all sizes", a, b)


def greater(a: Size, b: Size) -> Size:
    """The greater of two sizes.

    Raises:
        UndecidedError: Which one it is depends on the dims.
    """
    # By way of the smaller one, so that both are undecided for the same pairs.
    return b if lesser(a, b) == a else a


def _spelled(names: Monomial, count: int) -> str:
    if not names:
        return str(count)
    sign = {1: "", -1: "-"}.get(count, f"{count}*")
    return sign + "*".join(names)


def _from_terms(counts: Mapping[Monomial, int]) -> Size:
    """A size of products with their coefficients."""
    # A size has one spelling only, for equality compares terms: no term of it counts 0 times.
    kept = [(names, count) for names, count in counts.items() if count]
    # Any order does that a common factor does not change: then division ends, and is exact where it can be.
    kept.sort(key=lambda term: (len(term[0]), term[0]), reverse=True)
    return Size(tuple(kept))


ZERO = Size(())
ONE = _from_terms({(): 1})


# A derivation meets the same few sizes thousands of times: what is made of them is remembered.
@functools.lru_cache(1 << 16)
def _sum(a: Size, b: Size) -> Size:
    counts = collections.defaultdict[Monomial, int](int, a.terms)
    for names, count in b.terms:
        counts[names] += count
    return _from_terms(counts)


@functools.lru_cache(1 << 16)
def _product(a: Size, b: Size) -> Size:
    counts = collections.defaultdict[Monomial, int](int)
    for ours, count in a.terms:
        for theirs, times in b.terms:
            # Factors are in order, so that a*b and b*a are one term.
            counts[tuple(sorted(ours + theirs))] += count * times
    return _from_terms(counts)


@functools.lru_cache(1 << 16)
def _division(size: Size, by: Size) -> tuple[Size, Size]:
    """Long division by the leading term."""
    # a*b+2*a by a: a*b gives b, then 2*a gives 2, and nothing is left.
    lead, divisor = by.terms[0]
    quotient, rest, left = ZERO, ZERO, size
    while left:
        names, count = left.terms[0]
        other = _without(names, lead)
        # Whole numbers only: of 3*a by 2*a the quotient is 1, and the a that is over goes to the rest.
        times = 0 if other is None else count // divisor
        # A leading term is gone in two turns at most, and all that follows it is less: this ends.
        if other is None or not times:
            term = _from_terms({names: count})
            rest, left = rest + term, left - term
        else:
            term = _from_terms({other: times})
            quotient, left = quotient + term, left - term * by
    return quotient, rest


def _without(names: Monomial, factors: Monomial) -> Monomial | None:
    """A product without some of its factors; None where it does not have all of them."""
    left = list(names)
    # One by one, for a factor may occur several times: a*a without a is a.
    for factor in factors:
        if factor not in left:
            return None
        left.remove(factor)
    return tuple(left)


@functools.lru_cache(1 << 16)
def _nonnegative(size: Size) -> bool:
    # The commonest case, which nothing has to be put in for.
    if _adds_only(size):
        return True
    # a*b-a is no such sum, but with a = 1+a' and b = 1+b' it is b'+a'*b'.
    # A name stands for its own rest here. A slack may be 0, and stays as it is.
    at_least_one = {name: Size.of(name) + 1 for name in size.names - size.slacks}
    return _adds_only(size.where(at_least_one))


def _adds_only(size: Size) -> bool:
    """Whether no term of it is taken off."""
    return all(count > 0 for _, count in size.terms)
