"""Key paths, key patterns and logical paths.

A *key path* is how one layout spells a leaf: ``("model", "layers", 0, "scale")``, written ``model/layers/0/scale``. A string
key that looks like a number, is empty, or holds a slash, a quote, a brace, a bracket or a star is written in quotes,
``'0'`` or ``'mlp/~/linear_0'``; a quote inside is written twice, and so is a brace.
A *pattern* is a key path in which a segment may hold index symbols. ``layers/{i}`` has int keys, ``layers_{i}`` string keys,
``layers/'{i}'`` string keys that look like numbers, and ``layers.{i}.experts.{j}`` one key with two symbols. The numbers may
start elsewhere, skip some, and be padded with zeros: ``{i+1}``, ``{2*i+1}``, ``{i:02}``.
A *logical path* is the chain of attribute names, in which a repeated node is written ``layers[]``.
Its segments are kept as they are written: what is joined by slashes can be read back.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

from ckpt_schema._messages.text import shown
from ckpt_schema.errors import Mismatch, SchemaError

__all__ = [
    "Index",
    "Key",
    "KeyPath",
    "LogicalPath",
    "NaturalOrder",
    "Pattern",
    "VariableKind",
    "fill",
    "format_path",
    "glob_means",
    "int_key",
    "joined_key",
    "list_depth",
    "named",
    "natural",
    "parse_path",
    "parse_pattern",
    "parts_of_key",
    "path_names",
    "rule_path",
    "symbols",
    "unquoted",
]

Key = str | int
KeyPath = tuple[Key, ...]
LogicalPath = tuple[str, ...]

_SYMBOL = re.compile(
    r"\{(?:(?P<step>[1-9]\d{0,17})\*)?[A-Za-z_]\w*(?:\+(?P<first>\d{1,18}))?(?::0(?P<width>[1-9]\d?))?\}"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Index:
    """A segment that stands for one key per index of a repeated node, or per tuple of indices of several.

    Attributes:
        prefix: What stands before the number, ``"layers_"``; empty for a bare number.
        suffix: What stands after it; empty where another symbol follows.
        text: Whether the key is a string; a bare number may be an int key (``nnx.List``) or a string key.
        first: The number of the first key.
        step: How far the numbers of two keys in turn are apart.
        width: To how many digits numbers are padded with zeros; 0 where they are not.
        then: The next symbol of the same key, whose prefix begins with no digit.
    """

    prefix: str = ""
    suffix: str = ""
    text: bool = False
    first: int = 0
    step: int = 1
    width: int = 0
    then: Index | None = None

    @property
    def count(self) -> int:
        """How many symbols there are."""
        return 1 if self.then is None else 1 + self.then.count

    def key(self, *indices: int) -> Key:
        """The key of one index for each symbol.

        Example:
            >>> Index("layers_", text=True).key(3), Index().key(3), Index("block", text=True, first=1, width=2).key(3)
            ('layers_3', 3, 'block04')
        """
        number = self.first + self.step * indices[0]
        if not self.text:
            return number
        rest = "" if self.then is None else self.then.key(*indices[1:])
        return f"{self.prefix}{number:0{self.width}}{self.suffix}{rest}"

    def index(self, key: Key) -> int | None:
        """The index that ``key`` spells where there is one symbol, or None."""
        indices = self.indices(key)
        return indices[0] if indices is not None and len(indices) == 1 else None

    def indices(self, key: Key) -> tuple[int, ...] | None:
        """The indices that ``key`` spells, or None when it is no key of this segment; without a width, ``01`` spells none."""
        if isinstance(key, int):
            whole = None if self.text or isinstance(key, bool) else self._counted(key)
            return None if whole is None else (whole,)
        if not isinstance(key, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            return None  # a dict may have keys of any kind
        if not self.text or not key.startswith(self.prefix) or not key.endswith(self.suffix):
            return None
        rest: tuple[int, ...] | None = ()
        end = len(key) - len(self.suffix)
        if self.then is not None:
            digits = _DIGITS.match(key, len(self.prefix))
            end = len(self.prefix) if digits is None else digits.end()
            rest = self.then.indices(key[end:])
        digits = key[len(self.prefix) : end]
        number = int_key(digits.lstrip("0") or digits[:1])
        if rest is None or number is None or f"{number:0{self.width}}" != digits:
            return None
        index = self._counted(number)
        return None if index is None else (index, *rest)

    def _counted(self, number: int) -> int | None:
        index, rest = divmod(number - self.first, self.step)
        return index if index >= 0 and not rest else None

    def meets(self, other: Index, counts: tuple[int | None, int | None]) -> bool:
        """Whether both spell one number, each in so many keys: the first that both can is the one to look at."""
        start = max(self.first, other.first)
        for number in range(start, start + self.step * other.step):
            mine, theirs = self._counted(number), other._counted(number)
            if mine is not None and theirs is not None:
                is_ours = counts[0] is None or mine < counts[0]
                return is_ours and (counts[1] is None or theirs < counts[1])
        return False

    def __str__(self) -> str:
        """The segment as it is written in a pattern."""
        names = iter("ijklmn" if self.count <= len("ijklmn") else (f"i{n}" for n in range(99)))
        # A string key that is a number alone stands in quotes, or it would be read as an int key.
        parts = [*parts_of_key(self)]
        quoted = len(parts) == 1
        body = ""
        for part in parts:
            if isinstance(part, str):
                quoted = quoted or _is_special(part)
            body += _escaped(part) if isinstance(part, str) else part._symbol(next(names))
        return f"'{body}'" if self.text and quoted else body

    def _symbol(self, name: str) -> str:
        """The symbol alone, as it is written."""
        step = f"{self.step}*" if self.step != 1 else ""
        first = f"+{self.first}" if self.first else ""
        width = f":0{self.width}" if self.width else ""
        return f"{{{step}{name}{first}{width}}}"


Pattern = tuple[Key | Index, ...]

_DIGITS = re.compile("[0-9]+")
_NUMBER = re.compile("-?(?:0|[1-9][0-9]*)")
_SPECIAL = frozenset("/'\"{}[]*<>")
"""What a key in a path is put in quotes for."""


def _is_special(text: str) -> bool:
    return not _SPECIAL.isdisjoint(text)


def _escaped(text: str) -> str:
    """A part of a key as it stands between quotes."""
    if not _is_special(text):
        return text
    return text.replace("'", "''").replace("{", "{{").replace("}", "}}")


def parts_of_key(segment: Index) -> Iterator[str | Index]:
    """What a segment consists of: texts, and symbols that stand for a number alone."""
    symbol: Index | None = segment
    while symbol is not None:
        if symbol.prefix:
            yield symbol.prefix
        yield dataclasses.replace(symbol, prefix="", suffix="", then=None)
        if symbol.suffix:
            yield symbol.suffix
        symbol = symbol.then


def symbols(pattern: Pattern) -> int:
    """How many index symbols a pattern has.

    Example:
        >>> symbols(parse_pattern("layers.{i}.experts.{j}/w"))
        2
    """
    return sum([segment.count for segment in pattern if isinstance(segment, Index)])


# --- reading what is written  ---


def _cut(text: str, whole: str) -> list[tuple[str, bool, str]]:
    """The segments of a path: each without its quotes, whether it had any, and what follows the closing one."""
    pieces: list[tuple[str, bool, str]] = []
    at = 0
    while True:
        if text[at : at + 1] == "'":
            end = _closing(text, at, whole)
            slash = text.find("/", end)
            slash = len(text) if slash < 0 else slash
            body, tail = text[at + 1 : end - 1].replace("''", "'"), text[end:slash]
            if tail not in ("", "[]"):
                hint = (
                    f"a quote inside of quotes is written twice: {_spelled(body + chr(39) + tail)}"
                )
                expected = "a slash after the closing quote"
                raise _no_path(whole, expected, repr(text[at:slash]), hint)
        else:
            slash = text.find("/", at)
            slash = len(text) if slash < 0 else slash
            body, tail = text[at:slash], ""
            if body.endswith("'"):
                hint = f"a key with a quote in it is written {_spelled(body)}"
                raise _no_path(whole, "quotes around a whole key", repr(body), hint)
        pieces.append((body, text[at : at + 1] == "'", tail))
        if slash == len(text):
            return pieces
        at = slash + 1


def _closing(text: str, start: int, whole: str) -> int:
    """The place after the quote that closes the one at ``start``."""
    at = start + 1
    while (at := text.find("'", at)) >= 0:
        if text[at + 1 : at + 2] != "'":
            return at + 1
        at += 2
    rest = text[start:]
    hint = f"close it, {rest}'; a quote that is part of a key is written twice"
    raise _no_path(whole, "a closing quote", repr(rest), hint)


def _no_path(whole: str, expected: str, found: str, hint: str) -> SchemaError:
    fault = Mismatch(whole, "declaration", expected, found, hint)
    return SchemaError(f"{whole!r} is no path", [fault])


def parse_pattern(text: str) -> Pattern:
    """The pattern that ``text`` spells.

    Args:
        text: Segments joined by ``/``. ``0`` is an int key, ``'0'`` a string key, ``'a/b'`` one key with a slash in it,
            ``{i}`` an index symbol, ``{2*i+1:03}`` one with numbers from 1 on, in steps of 2, of three digits; ``{{`` a brace.

    Raises:
        SchemaError: An empty segment, an open quote, index symbols that touch, padded int keys.

    Example:
        >>> parse_pattern("blocks/0/'1'/layers_{i}")[3].key(2), parse_pattern("layers_{i+1:02}")[0].key(2)
        ('layers_2', 'layers_03')
        >>> parse_pattern("'transformer/layer_0/attn'/w")
        ('transformer/layer_0/attn', 'w')
    """
    return (text,) if text.isidentifier() else tuple([_segment(p, text) for p in _cut(text, text)])


def _segment(part: tuple[str, bool, str], whole: str) -> Key | Index:
    body, quoted, tail = part
    if tail:
        hint = "brackets belong to rules; a key that ends with them has them inside the quotes"
        raise _no_path(whole, "a key", repr(_spelled(body) + tail), hint)
    if not body and not quoted:
        hint = "drop the slash; the empty key is written ''"
        raise _no_path(whole, "a key between two slashes", "nothing", hint)
    if not quoted and _NUMBER.fullmatch(body) and body != "-0" and len(body) <= _WRITABLE:
        return int(body)
    parts = _parts(body, whole)
    if not any(isinstance(one, Index) for one in parts):
        return "".join([one for one in parts if isinstance(one, str)])
    if len(parts) == 1 and not quoted:
        (symbol,) = parts
        assert isinstance(symbol, Index)
        if symbol.width:
            hint = f"string keys are written '{body}'"
            raise _no_path(whole, "int keys without a width", repr(body), hint)
        return symbol
    linked = _linked(parts)
    if linked is None:
        hint = "put something between them, layers_{i}_{j}"
        raise _no_path(whole, "no digit after an index symbol before another", repr(body), hint)
    return linked


def _parts(body: str, whole: str) -> list[str | Index]:
    """The texts and index symbols that a key is made of."""
    parts: list[str | Index] = []
    at = 0
    for brace in re.finditer(r"\{\{|\}\}|\{[^{}]*\}?|\}", body):
        parts.append(body[at : brace.start()])
        at = brace.end()
        if brace[0] in ("{{", "}}"):
            parts.append(brace[0][0])
            continue
        match = _SYMBOL.fullmatch(brace[0])
        if match is None:
            hint = (
                "write layers/{i}, layers_{i}, layers_{i+1}, layers_{2*i} or layers_{i:02}; "
                "a brace that is part of the key is written twice, {{"
            )
            raise _no_path(whole, "index symbols in braces", repr(body), hint)
        step, first, width = match.group("step", "first", "width")
        parts.append(Index(first=int(first or 0), step=int(step or 1), width=int(width or 0)))
    return [part for part in (*parts, body[at:]) if part != ""]


def _linked(parts: Sequence[str | Index]) -> Index | None:
    """One segment of several texts and symbols; None where the numbers of two symbols could not be told apart."""
    link: Index | None = None
    text = ""
    for part in reversed(parts):
        if isinstance(part, str):
            text = part + text
            continue
        if link is None:
            link = dataclasses.replace(part, suffix=text, text=True)
        elif not text or "0" <= text[0] <= "9":
            return None
        else:
            then = dataclasses.replace(link, prefix=text)
            link = dataclasses.replace(part, text=True, then=then)
        text = ""
    return link and dataclasses.replace(link, prefix=text)


def joined_key(pattern: Pattern, separator: str) -> Key | Index:
    """The one key that a layout has for a path whose segments it joins.

    Example:
        >>> str(joined_key(parse_pattern("layers/{i}/experts/{j}/up.weight"), "."))
        'layers.{i}.experts.{j}.up.weight'
    """
    parts: list[str | Index] = []
    for segment in pattern:
        parts.append(separator if parts else "")
        if isinstance(segment, Index):
            parts += parts_of_key(segment)
        else:
            parts.append(str(segment))
    linked = _linked([part for part in parts if part])
    return "".join([part for part in parts if isinstance(part, str)]) if linked is None else linked


_WRITABLE = 4300
"""How many digits Python reads at most."""

_LONGEST = 18
"""How many digits a number in a key may have: no list is longer, and Python reads no number of more than 4300."""


def int_key(text: str) -> int | None:
    """The int key that a string stands for, or None: it has one spelling, in ASCII and without leading zeros.

    Example:
        >>> int_key("10"), int_key("0"), int_key("00"), int_key("1a"), int_key("")
        (10, 0, None, None, None)
    """
    if len(text) > _LONGEST or text == "-0" or not _NUMBER.fullmatch(text):
        return None
    return int(text)


def fill(pattern: Pattern, indices: Sequence[int]) -> KeyPath:
    """The key path of one index tuple: each index symbol in ``pattern`` replaced, from the left."""
    remaining = iter(indices)
    return tuple([_filled(s, remaining) if isinstance(s, Index) else s for s in pattern])


def _filled(segment: Index, remaining: Iterator[int]) -> Key:
    if segment.then is None:
        return segment.key(next(remaining))
    return segment.key(*[next(remaining) for _ in range(segment.count)])


def format_path(path: Iterable[Key | Index]) -> str:
    """The one spelling of a path in every message.

    Example:
        >>> format_path(("opt_state", 1, "0", "mu"))
        "opt_state/1/'0'/mu"
    """
    return "/".join(map(_format_key, path))


def _format_key(key: Key | Index) -> str:
    if isinstance(key, str):
        return f"'{key}'" if key.isdecimal() or _NUMBER.fullmatch(key) else _spelled(key)
    return shown(key) if isinstance(key, int) else str(key)


def _spelled(key: str) -> str:
    """A string key, in quotes where it holds what paths are written with."""
    return key if key and not _is_special(key) else f"'{_escaped(key)}'"


@lru_cache(maxsize=4096, typed=True)
def named(key: Key | Index) -> str:
    """The segment of a logical path for a key: in quotes where it needs them; a number is the string of its digits.

    Example:
        >>> named(0), named("0"), named("Dense_0"), named("mlp/~/linear_0")
        ('0', '0', 'Dense_0', "'mlp/~/linear_0'")
    """
    return _spelled(key if isinstance(key, str) else str(key))


def parse_path(text: str) -> LogicalPath:
    """The logical path that ``text`` spells, each segment written in the one way.

    Raises:
        SchemaError: A quote is not closed.

    Example:
        >>> parse_path("layers[]/'norm'/'mlp/~/linear_0'")
        ('layers[]', 'norm', "'mlp/~/linear_0'")
    """
    if "'" not in text:
        return tuple(text.split("/"))
    segments: list[str] = []
    for body, quoted, tail in _cut(text, text):
        segments.append(named(_unescaped(body)) + tail if quoted or "'" in body else body)
    return tuple(segments)


def list_depth(path: LogicalPath) -> int:
    """How many lists of layers a logical path goes into."""
    return sum(segment.endswith("[]") for segment in path)


def path_names(path: LogicalPath) -> LogicalPath:
    """A logical path without the marks of its lists: the names alone."""
    return tuple(segment.removesuffix("[]") for segment in path)


def glob_means(pattern: LogicalPath, path: LogicalPath) -> bool:
    """Whether a glob means a path: segment by segment, with every length that ``**`` may have."""
    # How many segments of the path may be used up; of a/b/c by **/b it is 0 to 3, and then 2.
    reached = {0}
    for segment in pattern:
        if segment == "**":
            reached = set(range(min(reached), len(path) + 1)) if reached else reached
            continue
        after: set[int] = set()
        for at in reached:
            if at < len(path) and _segment_means(segment, path[at]):
                after.add(at + 1)
        reached = after
    return len(path) in reached


def _segment_means(pattern: str, segment: str) -> bool:
    # What stands in quotes is literal, stars too. A bracket is no class of letters: layers[] has them.
    if pattern.startswith("'"):
        return segment == pattern
    return fnmatch.fnmatchcase(segment, pattern.replace("[", "[[]"))


class VariableKind(str):
    """The one segment of a path that stands for all leaves of a Variable type of NNX, ``<RngState>``.

    Attributes:
        kind: The type, or its name in ``flax.nnx``.
    """

    __slots__ = ("kind",)
    kind: type | str

    def __new__(cls, kind: type | str) -> VariableKind:
        """The segment for a type."""
        name = kind
        if isinstance(kind, type):
            own = kind.__module__.partition(".")[0] == "flax"
            name = kind.__qualname__ if own else f"{kind.__module__}.{kind.__qualname__}"
        segment = super().__new__(cls, f"<{name}>")
        segment.kind = kind
        return segment

    def __reduce__(self) -> tuple[type[VariableKind], tuple[type | str]]:
        """What a copy is made of."""
        return VariableKind, (self.kind,)


def rule_path(where: str | type) -> LogicalPath:
    """The path that a rule speaks of: a logical path, in which there may be stars, or a Variable type.

    Example:
        >>> rule_path("**/LayerNorm_*"), rule_path("<RngState>")
        (('**', 'LayerNorm_*'), ('<RngState>',))
    """
    if isinstance(where, type):
        return (VariableKind(where),)
    if where.startswith("<") and where.endswith(">") and where[1:-1].isidentifier():
        return (VariableKind(where[1:-1]),)
    return parse_path(where) if where else ()


def _unescaped(body: str) -> str:
    return body.replace("{{", "{").replace("}}", "}")


def unquoted(segment: str) -> str:
    """The key that a segment of a logical path is written for, with the ``[]`` of a repeated node.

    Example:
        >>> unquoted("'mlp/~/linear_0'"), unquoted("layers[]")
        ('mlp/~/linear_0', 'layers[]')
    """
    if not segment.startswith("'"):
        return segment
    body, tail = segment.removesuffix("[]"), "[]" if segment.endswith("[]") else ""
    return _unescaped(body[1:-1].replace("''", "'")) + tail


def natural(text: str) -> list[tuple[int, int | str]]:
    """A sort key under which ``layers_2`` stands before ``layers_10``.

    Example:
        >>> sorted(["a10", "a2", "a"], key=natural)
        ['a', 'a2', 'a10']
    """
    ranks: list[tuple[int, int | str]] = []
    for part in re.split(r"(\d+)", text):
        if part:
            is_number = part.isdecimal() and len(part) <= _LONGEST
            ranks.append((0, int(part)) if is_number else (1, part))
    return ranks


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
        ranks: list[list[tuple[int, int | str]]] = []
        for segment in path.split("/"):
            parts = self._segments.get(segment)
            if parts is None:
                parts = self._segments[segment] = natural(segment)
            ranks.append(parts)
        return ranks
