"""What happens to each element on its way: words that compose.

A codec is a sequence of words, the first of which is done first. Steps that are exact merge: what
they make together is checked once, in the wider dtype. A step that loses something never merges,
not even with its own inverse, for both together are not the identity.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import jax.numpy as jnp

from ckpt_schema._layouts import formats
from ckpt_schema._lens import expressions

__all__ = [
    "Codec",
    "Exact",
    "Plus",
    "Rounded",
    "Times",
    "Word",
    "dims_of",
    "evaluated",
    "holds",
    "inverted",
    "is_exact",
    "is_undone",
    "joined",
    "reworded",
]


@dataclasses.dataclass(frozen=True, slots=True)
class Exact:
    """Times a power of two, in another dtype: what does not come back from there is refused.

    Attributes:
        source: The dtype before.
        view: The dtype after.
        exponent: Of two.
    """

    source: str
    view: str
    exponent: int = 0

    @property
    def inverse(self) -> Exact:
        """The way back."""
        return Exact(self.view, self.source, -self.exponent)

    def __str__(self) -> str:
        """The factor and the dtypes."""
        steps = [f"times 2**{self.exponent}"] if self.exponent else []
        steps += [f"{self.source} -> {self.view}"] if self.source != self.view else []
        return ", ".join(steps)


@dataclasses.dataclass(frozen=True, slots=True)
class Rounded:
    """In another dtype: to the nearest value that it has, in whichever direction it has fewer.

    Attributes:
        source: The dtype before.
        view: The dtype after.
    """

    source: str
    view: str

    @property
    def inverse(self) -> Rounded:
        """The way back."""
        return Rounded(self.view, self.source)

    def __str__(self) -> str:
        """The dtypes."""
        return f"{self.source} -> {self.view}, rounded"


@dataclasses.dataclass(frozen=True, slots=True)
class Times:
    """Times a factor that is no power of two; the way back divides by it.

    Attributes:
        factor: The factor as it is declared: a number, or an expression of dims.
        divides: Whether the element is divided by it.
    """

    factor: float | str
    divides: bool = False

    @property
    def inverse(self) -> Times:
        """The way back."""
        return Times(self.factor, not self.divides)

    def __str__(self) -> str:
        """The factor."""
        return f"divided by {self.factor}" if self.divides else f"times {self.factor}"


@dataclasses.dataclass(frozen=True, slots=True)
class Plus:
    """Plus a number; the way back takes it off.

    Attributes:
        amount: The number.
    """

    amount: float

    @property
    def inverse(self) -> Plus:
        """The way back."""
        return Plus(-self.amount)

    def __str__(self) -> str:
        """The number."""
        return f"plus {self.amount}"


Word = Exact | Rounded | Times | Plus
Codec = tuple[Word, ...]


def joined(first: Codec, second: Codec) -> Codec:
    """The codec that does one and then the other.

    Example:
        >>> up, down = Exact("bfloat16", "float32", 3), Exact("float32", "bfloat16")
        >>> [str(word) for word in joined((up,), (down,))]
        ['times 2**3']
        >>> round_trip = joined((Rounded("float32", "bfloat16"),), (Rounded("bfloat16", "float32"),))
        >>> [str(word) for word in round_trip]
        ['float32 -> bfloat16, rounded', 'bfloat16 -> float32, rounded']
    """
    words = list(first)
    for word in second:
        _append(words, word)
    return tuple(words)


def _append(words: list[Word], word: Word) -> None:
    """Adds a word to others, as one with those before it that it merges with."""
    rest: Codec = () if _is_identity(word) else (word,)
    while rest:
        merged = _merged(words[-1], rest[0]) if words else None
        if merged is None:
            words.append(rest[0])
            return
        words.pop()
        # What they make may merge with the word before in turn.
        rest = merged


def _is_identity(word: Word) -> bool:
    """Whether a word does nothing: from a dtype to the same one."""
    return (
        isinstance(word, (Exact, Rounded))
        and word.source == word.view
        and not (isinstance(word, Exact) and word.exponent)
    )


def inverted(codec: Codec) -> Codec:
    """The codec of the way back."""
    return tuple([word.inverse for word in reversed(codec)])


def is_undone(codec: Codec) -> bool:
    """Whether a codec gives back what its inverse was given, bit for bit, whatever that was.

    Example:
        >>> is_undone((Rounded("float32", "bfloat16"),)), is_undone((Rounded("bfloat16", "float32"),))
        (True, False)
    """
    for word in codec:
        # To a dtype that has all values nothing is rounded on the way there.
        if isinstance(word, Rounded) and not holds(word.source, word.view):
            return False
        if not isinstance(word, Rounded) and not is_exact(word):
            return False
    return True


def is_exact(word: Word) -> bool:
    """Whether a word keeps every bit of what it does not refuse: it may change the sign.

    Example:
        >>> is_exact(Exact("float32", "bfloat16")), is_exact(Times(-1.0)), is_exact(Times(0.3))
        (True, True, False)
    """
    # Of all factors minus one alone is no power of two and loses nothing: only the sign is another.
    return isinstance(word, Exact) or word == Times(-1.0)


def dims_of(codec: Codec) -> frozenset[str]:
    """The dims that a codec names.

    Example:
        >>> sorted(dims_of((Times("2 * heads"), Plus(1.0))))
        ['heads']
    """
    names: set[str] = set()
    for word in codec:
        if isinstance(word, Times) and isinstance(word.factor, str):
            names |= expressions.dims_in(word.factor)
    return frozenset(names)


def reworded(codec: Codec, called: Mapping[str, str]) -> Codec:
    """The codec with other names of dims.

    Example:
        >>> reworded((Times("2 * heads"),), {"heads": "q_heads"})
        (Times(factor='2 * q_heads', divides=False),)
    """
    words: list[Word] = []
    for word in codec:
        if isinstance(word, Times) and isinstance(word.factor, str):
            word = dataclasses.replace(word, factor=expressions.with_dims(word.factor, called))
        words.append(word)
    return tuple(words)


def evaluated(codec: Codec, sizes: Mapping[str, int]) -> Codec:
    """The codec with numbers for expressions.

    Args:
        codec: The codec.
        sizes: The sizes of the dims that it names.

    Raises:
        ArithmeticError: An expression is no finite number, or 0.

    Example:
        >>> evaluated((Times("head_dim ** -0.5"),), {"head_dim": 16})
        (Times(factor=0.25, divides=False),)
    """
    return tuple([_bound(word, sizes) for word in codec])


def _bound(word: Word, sizes: Mapping[str, int]) -> Word:
    """A word with a number for its expression."""
    if not isinstance(word, Times) or not isinstance(word.factor, str):
        return word
    factor = expressions.value(word.factor, sizes)
    # The way back would divide by it.
    if not factor:
        raise ArithmeticError("it is 0")
    return dataclasses.replace(word, factor=factor)


def _merged(one: Word, other: Word) -> Codec | None:
    """Two words as one, or as none at all; None where they do not merge."""
    if isinstance(one, Exact) and isinstance(other, Exact):
        merged = Exact(one.source, other.view, one.exponent + other.exponent)
        return () if _is_identity(merged) else (merged,)
    if not isinstance(one, (Exact, Rounded)) or not isinstance(other, (Exact, Rounded)):
        return None
    # With a factor the middle may overflow where both ends do not.
    if any(isinstance(word, Exact) and word.exponent for word in (one, other)):
        return None
    # A middle that holds both ends loses nothing, whether it would round or refuse.
    if not holds(one.view, one.source) or not holds(one.view, other.view):
        return None
    if one.source == other.view:
        return ()
    if isinstance(one, Rounded) and isinstance(other, Rounded):
        return (Rounded(one.source, other.view),)
    # One way back rounds, the other refuses.
    return None


@functools.cache
def holds(wide: str, narrow: str) -> bool:
    """Whether a dtype has every value of another one.

    Example:
        >>> holds("float32", "bfloat16"), holds("float16", "bfloat16"), holds("int32", "uint16")
        (True, False, True)
    """
    if wide == narrow:
        return True
    # Of floats both the digits and the range count: float16 has more digits than bfloat16, and less range.
    if wide in formats.FORMATS and narrow in formats.FORMATS:
        return formats.holds(wide, narrow)
    if not jnp.issubdtype(wide, jnp.integer) or not jnp.issubdtype(narrow, jnp.integer):
        return False
    outer, inner = jnp.iinfo(wide), jnp.iinfo(narrow)
    return int(outer.min) <= int(inner.min) and int(outer.max) >= int(inner.max)
