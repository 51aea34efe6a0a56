"""Key paths, key patterns and logical paths.

A *key path* is how one layout spells a leaf: ``("model", "layers", 0, "scale")``, written ``model/layers/0/scale``; a string
key that looks like a number is written in quotes, ``'0'``. A *pattern* is a key path in which a segment may hold an index
symbol: ``layers/{i}`` (int keys), ``layers_{i}`` (string keys), ``layers/'{i}'`` (string keys that look like numbers). The
numbers may start elsewhere, skip some, and be padded with zeros: ``{i+1}``, ``{2*i+1}``, ``{i:02}``.
A *logical path* is the chain of attribute names, in which a repeated node is written ``layers[]``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence

from ckpt_schema._messages.text import shown
from ckpt_schema.errors import Mismatch, SchemaError

__all__ = [
    "Index",
    "Key",
    "KeyPath",
    "LogicalPath",
    "NaturalOrder",
    "Pattern",
    "fill",
    "format_path",
    "int_key",
    "may_coincide",
    "natural",
    "outlined",
    "parse_pattern",
]

Key = str | int
KeyPath = tuple[Key, ...]
LogicalPath = tuple[str, ...]

_SYMBOL = re.compile(
    r"\{(?:(?P<step>[1-9]\d{0,17})\*)?[A-Za-z_]\w*(?:\+(?P<first>\d{1,18}))?(?::0(?P<width>[1-9]\d?))?\}"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Index:
    """A segment that stands for one key per index of a repeated node.

    Attributes:
        prefix: What stands before the number, ``"layers_"``; empty for a bare number.
        suffix: What stands after it.
        text: Whether the key is a string; a bare number may be an int key (``nnx.List``) or a string key.
        first: The number of the first key.
        step: How far the numbers of two keys in turn are apart.
        width: To how many digits numbers are padded with zeros; 0 where they are not.
    """

    prefix: str = ""
    suffix: str = ""
    text: bool = False
    first: int = 0
    step: int = 1
    width: int = 0

    def key(self, index: int) -> Key:
        """The key of one index.

        Example:
            >>> Index("layers_", text=True).key(3), Index().key(3), Index("block", text=True, first=1, width=2).key(3)
            ('layers_3', 3, 'block04')
        """
        number = self.first + self.step * index
        return f"{self.prefix}{number:0{self.width}}{self.suffix}" if self.text else number

    def index(self, key: Key) -> int | None:
        """The index that ``key`` spells, or None when it is no key of this segment; without a width, ``01`` spells none."""
        if isinstance(key, int):
            return None if self.text or isinstance(key, bool) else self._counted(key)
        if not isinstance(key, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            return None  # a dict may have keys of any kind
        if not self.text or not key.startswith(self.prefix) or not key.endswith(self.suffix):
            return None
        digits = key[len(self.prefix) : len(key) - len(self.suffix)]
        number = int_key(digits.lstrip("0") or digits[:1])
        if number is None or f"{number:0{self.width}}" != digits:
            return None
        return self._counted(number)

    def _counted(self, number: int) -> int | None:
        index, rest = divmod(number - self.first, self.step)
        return index if index >= 0 and not rest else None

    def meets(self, other: Index, counts: tuple[int | None, int | None]) -> bool:
        """Whether both spell one number, each in so many keys: the first that both can is the one to look at."""
        start = max(self.first, other.first)
        for number in range(start, start + self.step * other.step):
            mine, theirs = self._counted(number), other._counted(number)
            if mine is not None and theirs is not None:
                return (counts[0] is None or mine < counts[0]) and (
                    counts[1] is None or theirs < counts[1]
                )
        return False

    def __str__(self) -> str:
        """The segment as it is written in a pattern."""
        step, first = (
            f"{self.step}*" if self.step != 1 else "",
            f"+{self.first}" if self.first else "",
        )
        body = (
            f"{self.prefix}{{{step}i{first}{f':0{self.width}' if self.width else ''}}}{self.suffix}"
        )
        return f"'{body}'" if self.text and not self.prefix and not self.suffix else body


Pattern = tuple[Key | Index, ...]


def parse_pattern(text: str) -> Pattern:
    """The pattern that ``text`` spells.

    Args:
        text: Segments joined by ``/``. ``0`` is an int key, ``'0'`` a string key, ``{i}`` an index symbol, ``{2*i+1:03}`` one
            with numbers from 1 on, in steps of 2, of three digits.

    Raises:
        SchemaError: A segment is empty, holds more than one index symbol, or pads int keys with zeros.

    Example:
        >>> parse_pattern("blocks/0/'1'/layers_{i}")[3].key(2), parse_pattern("layers_{i+1:02}")[0].key(2)
        ('layers_2', 'layers_03')
    """
    return tuple(_segment(part, text) for part in text.split("/"))


def _segment(part: str, whole: str) -> Key | Index:
    quoted = len(part) >= 2 and part[0] == part[-1] == "'"
    body = part[1:-1] if quoted else part
    if not quoted and (part.startswith("'") or part.endswith("'")):
        hint = (
            "a key that holds a slash cannot be declared yet: rename it in the tree first"
            if "/" in whole
            else "a key that starts or ends with a quote is written in quotes, key=\"'a''\""
        )
        fault = Mismatch(whole, "declaration", "quotes around one segment", repr(part), hint)
        raise SchemaError(f"{whole!r} is no key pattern", [fault])
    symbols = list(_SYMBOL.finditer(body))
    if not body or len(symbols) > 1 or body.count("{") != len(symbols):
        hint = (
            "write layers/{i}, layers_{i}, layers_{i+1}, layers_{2*i} or layers_{i:02}"
            if body
            else "a key has at least one character: drop the slash, or rename it in the tree first"
        )
        fault = Mismatch(
            whole, "declaration", "key segments with at most one index symbol", repr(part), hint
        )
        raise SchemaError(f"{whole!r} is no key pattern", [fault])
    if not symbols:
        number = None if quoted else int_key(body)
        return body if number is None else number
    prefix, suffix = body[: symbols[0].start()], body[symbols[0].end() :]
    step, first, width = symbols[0].group("step", "first", "width")
    text_key = quoted or bool(prefix or suffix)
    if width and not text_key:
        fault = Mismatch(
            whole,
            "declaration",
            "int keys without a width",
            repr(part),
            f"string keys are written '{part}'",
        )
        raise SchemaError(f"{whole!r} is no key pattern", [fault])
    return Index(prefix, suffix, text_key, int(first or 0), int(step or 1), int(width or 0))


_LONGEST = 18
"""How many digits a number in a key may have: no list is longer, and Python reads no number of more than 4300."""


def int_key(text: str) -> int | None:
    """The int key that a string of digits stands for, or None: it has one spelling, in ASCII and without leading zeros.

    Example:
        >>> int_key("10"), int_key("0"), int_key("00"), int_key("1a"), int_key("")
        (10, 0, None, None, None)
    """
    if not (text.isascii() and text.isdecimal()) or len(text) > _LONGEST:
        return None
    return None if text[0] == "0" and text != "0" else int(text)


def fill(pattern: Pattern, indices: Sequence[int]) -> KeyPath:
    """The key path of one index tuple: each index symbol in ``pattern`` replaced, from the left."""
    remaining = iter(indices)
    return tuple([s.key(next(remaining)) if isinstance(s, Index) else s for s in pattern])


def format_path(path: Iterable[Key | Index]) -> str:
    """The one spelling of a path in every message.

    Example:
        >>> format_path(("opt_state", 1, "0", "mu"))
        "opt_state/1/'0'/mu"
    """
    return "/".join(map(_format_key, path))


def _format_key(key: Key | Index) -> str:
    if isinstance(key, str):
        quoted = key.isdecimal() or "/" in key or "'" in (key[:1], key[-1:])
        return f"'{key}'" if quoted else key
    return shown(key) if isinstance(key, int) else str(key)


def natural(text: str) -> list[tuple[int, int | str]]:
    """A sort key under which ``layers_2`` stands before ``layers_10``.

    Example:
        >>> sorted(["a10", "a2", "a"], key=natural)
        ['a', 'a2', 'a10']
    """
    return [
        (0, int(part)) if part.isdecimal() and len(part) <= _LONGEST else (1, part)
        for part in re.split(r"(\d+)", text)
        if part
    ]


class NaturalOrder:
    """The natural order of many paths, segment by segment; most segments stand in many of them.

    Example:
        >>> sorted(["a_10/b", "a_2/c", "a_2/b"], key=NaturalOrder())
        ['a_2/b', 'a_2/c', 'a_10/b']
    """

    def __init__(self) -> None:
        """Knows no segment yet."""
        self._segments: dict[str, list[tuple[int, int | str]]] = {}

    def __call__(self, path: str) -> list[list[tuple[int, int | str]]]:
        """The sort key of a path."""
        found: list[list[tuple[int, int | str]]] = []
        for segment in path.split("/"):
            parts = self._segments.get(segment)
            if parts is None:
                parts = self._segments[segment] = natural(segment)
            found.append(parts)
        return found


def outlined(pattern: Pattern) -> tuple[str, ...]:
    """``pattern`` with every number and index symbol replaced by ``#``: what can spell one key path has one outline.

    Example:
        >>> outlined(parse_pattern("layers_{i}/0")) == outlined(parse_pattern("layers_12/{i}")) == ("layers_#", "#")
        True
    """
    return tuple(
        re.sub(r"\d+", "#", str(s.key(0)) if isinstance(s, Index) else str(s)) for s in pattern
    )


def may_coincide(
    left: Key | Index, right: Key | Index, counts: tuple[int | None, int | None] = (None, None)
) -> bool:
    """Whether two segments can spell one key.

    Args:
        left: A segment.
        right: Another.
        counts: How many keys each of them spells, where that is known.

    Example:
        >>> may_coincide(Index("layers_", text=True), "layers_0"), may_coincide(Index(), "0")
        (True, False)
        >>> may_coincide(Index(step=2), Index(first=1, step=2)), may_coincide(Index(), Index(first=3), (3, None))
        (False, False)
    """
    if not isinstance(left, Index):
        return (
            left == right
            if not isinstance(right, Index)
            else may_coincide(right, left, (counts[1], counts[0]))
        )
    if not isinstance(right, Index):
        index = left.index(right)
        return index is not None and (counts[0] is None or index < counts[0])
    ends = ((left.prefix, right.prefix), (left.suffix[::-1], right.suffix[::-1]))
    if left.text != right.text or not all(_digits_apart(a, b) for a, b in ends):
        return False
    return (left.prefix, left.suffix) != (right.prefix, right.suffix) or left.meets(right, counts)


def _digits_apart(left: str, right: str) -> bool:
    short, long = sorted((left, right), key=len)
    rest = long.removeprefix(short)
    return long.startswith(short) and (not rest or rest.isdecimal())
