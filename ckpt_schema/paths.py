"""Key paths, key patterns and logical paths.

A *key path* is how one layout spells a leaf: ``("model", "layers", 0, "scale")``, written ``model/layers/0/scale``; a string
key that looks like a number is written in quotes, ``'0'``. A *pattern* is a key path in which a segment may hold an index
symbol: ``layers/{i}`` (int keys), ``layers_{i}`` (string keys), ``layers/'{i}'`` (string keys that look like numbers).
A *logical path* is the chain of attribute names, in which a repeated node is written ``layers[]``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence

from ckpt_schema.errors import Mismatch, SchemaError

__all__ = [
    "Index",
    "Key",
    "KeyPath",
    "LogicalPath",
    "Pattern",
    "fill",
    "format_path",
    "may_coincide",
    "natural",
    "outline",
    "parse_pattern",
]

Key = str | int
KeyPath = tuple[Key, ...]
LogicalPath = tuple[str, ...]

_SYMBOL = re.compile(r"\{([A-Za-z_]\w*)\}")


@dataclasses.dataclass(frozen=True, slots=True)
class Index:
    """A segment that stands for one key per index of a repeated node.

    Attributes:
        prefix: What stands before the number, ``"layers_"``; empty for a bare number.
        suffix: What stands after it.
        text: Whether the key is a string; a bare number may be an int key (``nnx.List``) or a string key.
    """

    prefix: str = ""
    suffix: str = ""
    text: bool = False

    def key(self, index: int) -> Key:
        """The key of one index.

        Example:
            >>> Index("layers_", text=True).key(3), Index().key(3)
            ('layers_3', 3)
        """
        return f"{self.prefix}{index}{self.suffix}" if self.text else index

    def index(self, key: Key) -> int | None:
        """The index that ``key`` spells, or None when it is no key of this segment; ``01`` spells none."""
        if isinstance(key, int):
            return None if self.text or isinstance(key, bool) or key < 0 else key
        if not self.text or not key.startswith(self.prefix) or not key.endswith(self.suffix):
            return None
        digits = key[len(self.prefix) : len(key) - len(self.suffix)]
        return int(digits) if digits.isdecimal() and (digits == "0" or digits[0] != "0") else None

    def __str__(self) -> str:
        """The segment as it is written in a pattern."""
        body = f"{self.prefix}{{i}}{self.suffix}"
        return f"'{body}'" if self.text and not self.prefix and not self.suffix else body


Pattern = tuple[Key | Index, ...]


def parse_pattern(text: str) -> Pattern:
    """The pattern that ``text`` spells.

    Args:
        text: Segments joined by ``/``. ``0`` is an int key, ``'0'`` a string key, ``{i}`` an index symbol.

    Raises:
        SchemaError: A segment is empty, or holds more than one index symbol.

    Example:
        >>> parse_pattern("blocks/0/'1'/layers_{i}")
        ('blocks', 0, '1', Index(prefix='layers_', suffix='', text=True))
    """
    return tuple(_segment(part, text) for part in text.split("/"))


def _segment(part: str, whole: str) -> Key | Index:
    quoted = len(part) >= 2 and part[0] == part[-1] == "'"
    body = part[1:-1] if quoted else part
    symbols = list(_SYMBOL.finditer(body))
    if not body or len(symbols) > 1 or ("{" in body) != bool(symbols):
        fault = Mismatch(
            whole, "declaration", "key segments with at most one index symbol", repr(part), "write layers/{i} or layers_{i}"
        )
        raise SchemaError(f"{whole!r} is no key pattern: 1 fault", [fault])
    if not symbols:
        return int(body) if body.isdecimal() and not quoted else body
    prefix, suffix = body[: symbols[0].start()], body[symbols[0].end() :]
    return Index(prefix, suffix, text=quoted or bool(prefix or suffix))


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
    return "/".join(f"'{k}'" if isinstance(k, str) and k.isdecimal() else str(k) for k in path)


def natural(text: str) -> list[tuple[int, int | str]]:
    """A sort key under which ``layers_2`` stands before ``layers_10``.

    Example:
        >>> sorted(["a10", "a2", "a"], key=natural)
        ['a', 'a2', 'a10']
    """
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", text) if part]


def outline(pattern: Pattern) -> tuple[str, ...]:
    """``pattern`` with every number and index symbol replaced by ``#``: what can spell one key path has one outline.

    Example:
        >>> outline(parse_pattern("layers_{i}/0")) == outline(parse_pattern("layers_12/{i}")) == ("layers_#", "#")
        True
    """
    return tuple(re.sub(r"\d+", "#", str(s.key(0)) if isinstance(s, Index) else str(s)) for s in pattern)


def may_coincide(left: Key | Index, right: Key | Index) -> bool:
    """Whether two segments can spell one key.

    Example:
        >>> may_coincide(Index("layers_", text=True), "layers_0"), may_coincide(Index(), "0")
        (True, False)
    """
    if not isinstance(left, Index):
        return left == right if not isinstance(right, Index) else right.index(left) is not None
    if not isinstance(right, Index):
        return left.index(right) is not None
    ends = ((left.prefix, right.prefix), (left.suffix[::-1], right.suffix[::-1]))
    return left.text == right.text and all(_digits_apart(a, b) for a, b in ends)


def _digits_apart(left: str, right: str) -> bool:
    short, long = sorted((left, right), key=len)
    rest = long.removeprefix(short)
    return long.startswith(short) and (not rest or rest.isdecimal())
