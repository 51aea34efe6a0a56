"""Whether two key patterns can spell one key path: such rows would be two leaves in one place."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence

from ckpt_schema._layouts.paths import Index, Key, Pattern, parts_of_key

__all__ = ["KeyTrie", "coincide", "may_coincide", "outlined"]


def outlined(pattern: Pattern) -> tuple[str, ...]:
    """``pattern`` with every number and index symbol replaced by ``#``: what can spell one key path has one outline.

    Example:
        >>> from ckpt_schema._layouts.paths import parse_pattern
        >>> outlined(parse_pattern("layers_{i}/0")) == outlined(parse_pattern("layers_12/{i}")) == ("layers_#", "#")
        True
    """
    outline: list[str] = []
    for segment in pattern:
        # Of layers_{i} the key of index 0 will do: which number it is makes no difference.
        key = segment.key(*[0] * segment.count) if isinstance(segment, Index) else segment
        outline.append(re.sub(r"\d+", "#", str(key)))
    return tuple(outline)


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
        if not isinstance(right, Index):
            return left == right
        return may_coincide(right, left, (counts[1], counts[0]))
    if not isinstance(right, Index):
        index = left.index(right)
        return index is not None and (counts[0] is None or index < counts[0])
    # h{i} and h1{i} can both spell h12, for the 1 may be of the number; h{i} and hx{i} nothing.
    if left.text != right.text or not _digits_apart(left.prefix, right.prefix):
        return False
    # Ends are held against each other from behind: {i}a beside {i}1a.
    if not _digits_apart(left.suffix[::-1], right.suffix[::-1]):
        return False
    # Where texts differ nothing is known of the numbers, and the answer is yes.
    return (left.prefix, left.suffix) != (right.prefix, right.suffix) or left.meets(right, counts)


def coincide(
    left: Pattern,
    right: Pattern,
    counts: tuple[Sequence[int | None], Sequence[int | None]],
) -> bool:
    """Whether two patterns of one length can spell one key path.

    Args:
        left: A pattern.
        right: Another.
        counts: How many keys each index symbol of either spells, where that is known.

    Example:
        >>> from ckpt_schema._layouts.paths import parse_pattern
        >>> some = [parse_pattern(t) for t in ("a.{i}.b.0", "a.0.b.{i}", "a.{i}.b.{j+1}")]
        >>> coincide(some[0], some[1], ([None], [None])), coincide(some[0], some[2], ([None], [2, 2]))
        (True, False)
    """
    # One count for each symbol in turn, through all segments.
    remaining = iter(counts[0]), iter(counts[1])
    for one, other in zip(left, right, strict=True):
        parts = [[one], [other]]
        if isinstance(one, Index) or isinstance(other, Index):
            # 0 and "0" are two keys.
            if _is_text(one) != _is_text(other):
                return False
            # a.{i}.b.0 beside a.0.b.{i}: as many numbers in both, and each is asked alone.
            parts = [_chunks(one), _chunks(other)]
            if len(parts[0]) != len(parts[1]):
                return False
        sizes: list[list[int | None]] = []
        for counted, chunks in zip(remaining, parts, strict=True):
            sizes.append([next(counted) if isinstance(part, Index) else 1 for part in chunks])
        if not all(map(may_coincide, parts[0], parts[1], zip(*sizes, strict=True))):
            return False
    return True


def _is_text(segment: Key | Index) -> bool:
    return segment.text if isinstance(segment, Index) else isinstance(segment, str)


def _chunks(segment: Key | Index) -> list[Key | Index]:
    """A key cut after each of its numbers: of each number, whether it is that of another key is asked alone."""
    if not _is_text(segment):
        return [segment]
    chunks: list[Key | Index] = [""]
    for part in parts_of_key(segment) if isinstance(segment, Index) else (str(segment),):
        last = chunks[-1]
        if isinstance(part, Index):
            chunks[-1] = dataclasses.replace(part, prefix=str(last), text=True)
            continue
        # .b.0.c is cut to .b.0 and .c: a chunk ends with its number.
        after, *rest = re.findall(r"\D+\d*|^\d+", part) or [""]
        if isinstance(last, Index) and after.isdecimal():
            chunks[-1] = dataclasses.replace(last, suffix=after)
        elif isinstance(last, Index):
            rest = [after, *rest]
        else:
            chunks[-1] = after
        chunks += rest
    return chunks


def _digits_apart(left: str, right: str) -> bool:
    # What one has more than the other may be digits, which could be those of a number.
    short, long = sorted((left, right), key=len)
    rest = long.removeprefix(short)
    return long.startswith(short) and (not rest or rest.isdecimal())


class KeyTrie:
    """The keys of rows as a trie of their segments, so that a row meets those alone which it may be.

    Attributes:
        fixed: What stands below a segment without an index symbol.
        alike: The same, by the outline of the segment: what an index symbol may spell.
        open: What stands below segments with an index symbol, by their outline.
        rows: The rows whose key ends here.
    """

    __slots__ = ("alike", "fixed", "open", "rows")

    def __init__(self) -> None:
        self.fixed: dict[Key, KeyTrie] = {}
        self.alike: dict[str, dict[Key, KeyTrie]] = {}
        self.open: dict[str, dict[Index, KeyTrie]] = {}
        self.rows: list[int] = []

    def add(self, number: int, key: Pattern, outline: tuple[str, ...]) -> None:
        """Puts the row of this number where its key leads."""
        node = self
        for segment, shape in zip(key, outline, strict=True):
            if isinstance(segment, Index):
                node = node.open.setdefault(shape, {}).setdefault(segment, KeyTrie())
            else:
                below = node.fixed.get(segment)
                if below is None:
                    below = node.fixed[segment] = KeyTrie()
                    node.alike.setdefault(shape, {})[segment] = below
                node = below
        node.rows.append(number)

    def near(self, key: Pattern, outline: tuple[str, ...]) -> Iterator[int]:
        """The numbers of the rows that may have a key in common with ``key``."""
        nodes = [self]
        for segment, shape in zip(key, outline, strict=True):
            below: list[KeyTrie] = []
            for node in nodes:
                for index, child in node.open.get(shape, {}).items():
                    if _meet(index, segment):
                        below.append(child)
                # Two keys without symbols meet where they are equal, which one look-up tells.
                if not isinstance(segment, Index):
                    below += filter(None, (node.fixed.get(segment),))
                    continue
                for fixed, child in node.alike.get(shape, {}).items():
                    if _meet(segment, fixed):
                        below.append(child)
            nodes = below
        for node in nodes:
            yield from node.rows


_UNKNOWN = [None] * 99  # how many keys the symbols of one segment spell


def _meet(left: Index, right: Key | Index) -> bool:
    return left == right or coincide((left,), (right,), (_UNKNOWN, _UNKNOWN))
