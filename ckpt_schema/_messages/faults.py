"""The fault record, and the one text of many faults.

A model has sixty equal layers, and its optimizer mirrors every param twice, so one cause is easily
a thousand faults. The text tells each *pattern* once: faults that differ in nothing but the numbers
in their paths, or in a value that is lost, are one, and a moment is told with the param that it
mirrors.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from ckpt_schema._messages.html import Section
from ckpt_schema._messages.text import counted, number_span

__all__ = ["Mismatch", "fault_section", "format_faults"]


@dataclasses.dataclass(frozen=True, slots=True)
class Mismatch:
    """One fault: a place, what was expected there, what was found, and what to do about it.

    Attributes:
        path: The key path (or logical path, or field name) the fault is at.
        kind: A stable word for programs: ``missing``, ``extra``, ``shape``, ``dtype``, ``impl``,
            ``key``, ``dims``, ``cast``, ``abstract``, ``ambiguous``, ``unplaced``, ``declaration``,
            ``checkpoint`` ...
        expected: What the declaration asks for, in words.
        found: What is there instead, in words.
        hint: The likeliest cure; may be empty.
        rules: The rules that are certain to mend it, ready for ``derive``; none where it is open
            what was meant.
        guesses: Rules that sizes allow and nothing proves, for somebody to confirm.
        mirrors: The path of the leaf that this one mirrors, as a moment of an optimizer mirrors a
            param. The same fault of both is told once, at the param.
        also: Other places where the same is wrong, and which what mends this fault mends too.
    """

    path: str
    kind: str
    expected: str
    found: str
    hint: str = ""
    rules: tuple[object, ...] = dataclasses.field(default=(), kw_only=True)
    guesses: tuple[object, ...] = dataclasses.field(default=(), kw_only=True)
    mirrors: str = dataclasses.field(default="", kw_only=True)
    also: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)

    def __str__(self) -> str:
        """The fault as one line."""
        also = f", and in {', '.join(self.also)}" if self.also else ""
        line = f"{self.path or '(root)'}: expected {self.expected}, found {self.found}{also}"
        return f"{line} ({self.hint})" if self.hint else line


# --- what is one pattern  ---

_NUMBER = re.compile(r"\d+")

# In a text, a number that may repeat one of the path: part of another path, or an int key. Not the
# 32 of float32, and not a size.
_NAMED = re.compile(r"(?:u?int|b?float|complex)\d\w*|(?:(?<=[A-Za-z_/'])|(?<=key )|(?<=index ))\d+")

_HOLE = re.compile("\0(\\d+)\0")

# Faults of these kinds are not about leaves.
_NO_LEAVES = frozenset({"chain", "checkpoint", "declaration", "law", "process", "rule"})

# What is found is a value, which in each leaf is another: one is enough to tell.
_VALUES = frozenset({"cast", "scale"})


@dataclasses.dataclass(frozen=True, slots=True)
class _Pattern:
    """Faults that differ in the numbers of their paths alone.

    Attributes:
        texts: What is expected, what is found, and the hint; where these repeat a number of the
            path they have a hole, which says which number of the path it is.
        first: The first of the faults.
        numbers: The numbers in the path of each fault, from the left.
        places: Where else the same is wrong.
    """

    texts: tuple[str, str, str]
    first: Mismatch
    numbers: list[tuple[str, ...]]
    places: tuple[str, ...]

    def lines(self, width: int) -> list[str]:
        """The pattern as it is printed, its path padded to ``width``."""
        spans = [number_span(column) for column in zip(*self.numbers, strict=True)]
        expected, found, hint = (_filled(text, spans) for text in self.texts)
        if self.first.kind in _VALUES and len(self.numbers) > 1:
            found = f"{found}, in the first"
        line = f"expected {expected}, found {found}"
        if len(self.numbers) > 1:
            line = f"{self._count()}: {line}"
        lines = [f"  {_shortened(self.path()):<{width}}  {line}"]
        if self.places:
            lines.append(f"  {'':<{width}}  and in {', '.join(self.places)}")
        if hint:
            lines.append(f"  {'':<{width}}  -> {hint}")
        return "\n".join(lines).split("\n")

    def cells(self) -> tuple[str, ...]:
        """The pattern as a row of a table."""
        spans = [number_span(column) for column in zip(*self.numbers, strict=True)]
        count = self._count() if len(self.numbers) > 1 else ""
        where = ", and in ".join((_shortened(self.path()), *self.places))
        texts = [" ".join(_filled(text, spans).split()) for text in self.texts]
        return where, count, *texts

    def path(self) -> str:
        """The path, each number that is not the same in all faults as the span of what it is."""
        spans = iter([number_span(column) for column in zip(*self.numbers, strict=True)])
        return _NUMBER.sub(lambda _: next(spans), self.first.path) or "(root)"

    def _count(self) -> str:
        count = len(self.numbers)
        if self.first.kind in _NO_LEAVES:
            return f"{count} times"
        return counted(count, "leaf", "leaves")


def _patterns(mismatches: Iterable[Mismatch]) -> list[_Pattern]:
    """The patterns, each where its first fault stands."""
    outline = _Outlines()
    patterns: dict[tuple[object, ...], _Pattern] = {}
    for fault, places in _with_mirrors(list(mismatches)):
        numbers = tuple(_NUMBER.findall(fault.path))
        texts = (
            outline(fault.expected, numbers),
            outline(fault.found, numbers),
            outline(fault.hint, numbers),
        )
        alike = (texts[0], texts[2]) if fault.kind in _VALUES else texts
        key = (_NUMBER.sub("#", fault.path), fault.kind, alike, places)
        pattern = patterns.get(key)
        if pattern is None:
            patterns[key] = _Pattern(texts, fault, [numbers], places)
        else:
            pattern.numbers.append(numbers)
    return list(patterns.values())


def _with_mirrors(faults: Sequence[Mismatch]) -> Iterator[tuple[Mismatch, tuple[str, ...]]]:
    """Each fault that is told by itself, with the places where what mirrors it has the same."""
    leads: dict[tuple[str, ...], Mismatch] = {}
    for fault in faults:
        if not fault.mirrors:
            leads[fault.path, fault.kind, fault.expected, fault.found] = fault
    places: dict[tuple[str, ...], list[str]] = {}
    for fault in faults:
        if fault.mirrors:
            key = (fault.mirrors, fault.kind, fault.expected, fault.found)
            # Where nothing is wrong with the param itself, its first moment is told.
            if leads.setdefault(key, fault) is not fault:
                places.setdefault(key, []).append(_place(fault))
    for fault in faults:
        key = (fault.mirrors or fault.path, fault.kind, fault.expected, fault.found)
        if leads[key] is fault:
            yield fault, (*fault.also, *places.get(key, ()))
        elif not fault.mirrors:
            yield fault, fault.also


def _place(fault: Mismatch) -> str:
    """The place in the optimizer's state below which a fault mirrors another leaf."""
    own, other = fault.path.split("/"), fault.mirrors.split("/")
    while len(own) > 1 and other and own[-1] == other[-1]:
        own.pop()
        other.pop()
    return "/".join(own)


class _Outlines:
    """Texts with holes for the numbers that they share with a path."""

    def __init__(self) -> None:
        """Starts with no text looked at."""
        self._plain: set[str] = set()  # most faults say the same, and name no path

    def __call__(self, text: str, numbers: Sequence[str]) -> str:
        """``text``, in which a number of a path that is also one of ``numbers`` is a hole."""
        if text in self._plain:
            return text
        shares = _Shared(numbers)
        shared = _NAMED.sub(shares, text)
        if not shares.any:
            self._plain.add(text)
        return shared


class _Shared:
    """Puts the place of a number in a path for the number itself, from the left to the right."""

    def __init__(self, numbers: Sequence[str]) -> None:
        """Knows the numbers of the path."""
        self._numbers = numbers
        self._next = 0
        self.any = False

    def __call__(self, match: re.Match[str]) -> str:
        number = match[0]
        if not number.isdigit():
            return number
        self.any = True
        for start in (self._next, 0):
            if number in self._numbers[start:]:
                at = self._numbers.index(number, start)
                self._next = at + 1
                return f"\0{at}\0"
        return number


def _filled(text: str, spans: Sequence[str]) -> str:
    fill: Callable[[re.Match[str]], str] = lambda hole: spans[int(hole[1])]  # noqa: E731
    return _shortened(_HOLE.sub(fill, text))


_CELL = 1500  # characters; a key may have any length


def _shortened(text: str) -> str:
    """``text``, or its beginning and its end where it is longer than anybody reads."""
    return text if len(text) <= _CELL else f"{text[: _CELL - 200]} ... {text[-190:]}"


def fault_section(mismatches: Iterable[Mismatch], title: str, one: str = "") -> Section:
    """The faults as a table, a pattern to a row. What to do is said once of rows that follow one another.

    Args:
        mismatches: The faults.
        title: What several patterns are called.
        one: What one pattern is called, where that is not the same.

    Example:
        >>> layers = [Mismatch(f"layers_{n}/w", "missing", "float32[8]", "nothing") for n in range(60)]
        >>> fault_section(layers, "faults").rows
        [('layers_{0..59}/w', '60 leaves', 'float32[8]', 'nothing', '')]
    """
    rows: list[tuple[str, ...]] = []
    above = ""
    for pattern in _patterns(mismatches):
        *cells, hint = pattern.cells()
        said = "the same" if hint and hint == above else hint
        rows.append((*cells, said))
        above = hint
    header = "where", "how many", "expected", "found", "what to do"
    return Section(title, header, rows, one=one)


# --- the text  ---

_LEAST = 12  # lines of faults that are shown, whatever else is said
_PASTED = 16  # rules that are printed; all are on the exception
_WIDEST = 60  # columns of paths


def format_faults(
    header: str,
    mismatches: Iterable[Mismatch],
    notes: Iterable[str] = (),
    *,
    counts: str = "fault",
    lines: int = 40,
    at_length: bool = False,
) -> str:
    """The text of an error: a header, each pattern of faults, rules to paste, and notes.

    Args:
        header: One sentence that names both sides; how many faults there are is added to it.
        mismatches: The faults.
        notes: Lines printed after the faults, such as the dims that were bound.
        counts: What a fault is called in the header.
        lines: How long the text may be. What is left out is counted.
        at_length: Whether rules and notes are all printed, however long they are: for whoever has
            the text and not the exception.

    Returns:
        The text, without a trailing newline.

    Example:
        >>> fault = Mismatch("a/b", "dtype", "float32", "int8", "cast it")
        >>> print(format_faults("x does not conform to Y", [fault]))
        x does not conform to Y: 1 fault
          a/b  expected float32, found int8
               -> cast it
        >>> layers = [Mismatch(f"layers_{n}/w", "missing", "float32[8]", "nothing") for n in range(60)]
        >>> print(format_faults("x does not conform to Y", layers))
        x does not conform to Y: 60 faults
          layers_{0..59}/w  60 leaves: expected float32[8], found nothing
    """
    faults = list(mismatches)
    if not faults:
        return "\n".join([header, *notes])
    after = [line for note in notes for line in note.split("\n")]
    pasted = [*_pasted(faults, at_length=at_length), *_guessed(faults, at_length=at_length)]
    free = lines - 1 - len(pasted)
    if len(after) > max(free - _LEAST, 0) and not at_length:
        kept = max(free - _LEAST, 0)
        after = [*after[:kept], f"... and {counted(len(after) - kept, 'more line')} in .notes"]
    rest = "" if at_length else " in .mismatches"
    shown = _shown(_patterns(faults), max(free - len(after), _LEAST), rest)
    return "\n".join([f"{header}: {counted(len(faults), counts)}", *shown, *pasted, *after])


def _shown(patterns: Sequence[_Pattern], most: int, where: str) -> list[str]:
    """As many patterns as ``most`` lines hold, and how many are left out, and where these are."""
    told = used = 0
    for number, pattern in enumerate(patterns):
        more = len(pattern.lines(0))
        last = number == len(patterns) - 1
        if told and used + more > most - (not last):
            break
        told, used = told + 1, used + more
    # What is left out makes no column wide.
    width = min(max(len(pattern.path()) for pattern in patterns[:told]), _WIDEST)
    lines = [line for pattern in patterns[:told] for line in pattern.lines(width)]
    rest = patterns[told:]
    if rest:
        leaves = counted(sum(len(one.numbers) for one in rest), "leaf", "leaves")
        lines.append(f"  ... and {counted(len(rest), 'more pattern')} ({leaves}){where}")
    return lines


def _pasted(faults: Sequence[Mismatch], *, at_length: bool) -> list[str]:
    """The rules that are certain to mend faults, as code."""
    rules = list(dict.fromkeys(rule for fault in faults for rule in fault.rules))
    if not rules:
        return []
    mended = sum(bool(fault.rules) for fault in faults)
    which = "all of them" if mended == len(faults) > 1 else f"{mended} of {len(faults)}"
    said = "to paste:" if len(faults) == 1 else f"to paste, for {which}:"
    most = len(rules) if at_length else _PASTED
    code = [f"    {_as_code(rule)}," for rule in rules[:most]]
    if len(rules) > most:
        code.append(f"    # ... and {len(rules) - _PASTED} more in .rules")
    return [said, "rules=[", *code, "]"]


def _guessed(faults: Sequence[Mismatch], *, at_length: bool) -> list[str]:
    """The rules that may mend faults, as code in comments: pasted as they are they change nothing."""
    rules = list(dict.fromkeys(rule for fault in faults for rule in fault.guesses))
    if not rules:
        return []
    most = len(rules) if at_length else _PASTED
    lines = [f"    # {_as_code(rule)}," for rule in rules[:most]]
    if len(rules) > most:
        lines.append(f"    # ... and {len(rules) - _PASTED} more in .mismatches")
    said = "open: sizes allow these; confirm that it is so, and the order of the parts, and paste them into rules=:"
    return [said, *lines]


def _as_code(rule: object) -> str:
    """A rule as a program that says ``import ckpt_schema as cs`` writes it."""
    return re.sub(r"(?<![\w.'])([a-z_]+)(?=\()", r"cs.\1", str(rule))
