"""What is told of two things that differ, as data and as text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NoReturn

from ckpt_schema._lens.rules import Rule
from ckpt_schema._messages.html import Section
from ckpt_schema._messages.pictures import Picture, Pictured
from ckpt_schema._messages.text import PRINT_WIDTH, columns, counted, text_lines

__all__ = ["Change", "Diff", "ValueDifference"]

_KINDS = ("removed", "added", "likely renamed", "reshaped", "recast", "resharded")


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """One thing that differs, of all layers of a list or a stack at once.

    Attributes:
        kind: ``removed``, ``added``, ``likely renamed``, ``reshaped``, ``recast`` or ``resharded``.
        path: Its logical path on the first side; on the second where the first lacks it.
        before: What the first side has; empty where it has nothing.
        after: What the second side has; of what is renamed, the path there.
        mirrors: How many leaves of optimizers follow it.
    """

    kind: str
    path: str
    before: str
    after: str
    mirrors: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class ValueDifference:
    """How far the values of one leaf are apart.

    Attributes:
        path: Its key path in the second tree.
        absolute: The greatest absolute difference; infinite where one is a NaN or infinite and the other is not the same.
        relative: The greatest difference in proportion to the greater of the two.
    """

    path: str
    absolute: float
    relative: float


@dataclasses.dataclass(frozen=True, slots=True)
class Diff(Pictured):
    """What `diff` found. It has no truth value: ask for `same`.

    Attributes:
        names: What the two sides are called.
        changes: What differs between the layouts.
        respelled: How many leaves have other key paths, and are the same otherwise.
        rules: With these a lens goes from the first to the second, if `mended` says so.
        mended: Whether there is such a lens.
        values: The leaves whose values differ, where they were compared; None where they were not.
        notes: What is to be said besides: that one side's state stands below a key of the other.
    """

    names: tuple[str, str]
    changes: tuple[Change, ...]
    respelled: int = 0
    rules: tuple[Rule, ...] = ()
    mended: bool = False
    values: tuple[ValueDifference, ...] | None = None
    notes: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not self.changes and not self.respelled and not self.values

    def __bool__(self) -> NoReturn:
        """No answer: it could be taken for either.

        Raises:
            TypeError: Always.
        """
        raise TypeError("a diff has no truth value: diff.same says whether anything differs")

    def __str__(self) -> str:
        """The changes, a kind after the other; then the rules, and the values that differ."""
        lines: list[str] = []
        for line in self._lines(PRINT_WIDTH):
            lines += text_lines(line, hang=len(line) - len(line.lstrip()) + 4)
        return "\n".join(lines)

    def in_full(self) -> str:
        """The same with one line for each change and each rule, where `print` folds what is too long for a line."""
        return "\n".join(self._lines(None))

    def _picture(self) -> Picture:
        """The changes, a kind after the other; then the rules, and the values that differ."""
        both = " and ".join(self.names)
        if self.same:
            return Picture(f"{both} are the same", [])
        title = f"{both}: {counted(len(self.changes), 'change')}"
        if self.respelled:
            title += f", {counted(self.respelled, 'row')} under other keys and the same otherwise"
        sections: list[Section] = []
        for kind in _KINDS:
            rows = [_row(change) for change in self.changes if change.kind == kind]
            sections.append(Section(kind, ("path", *self.names, "mirrored by"), rows))
        # Rules that are certain, but do not make a lens, are in the text of the error that adapt raises.
        rules = [(line,) for line in _call(self.rules)] if self.mended else []
        lens = "a lens goes from one to the other"
        sections.append(Section(lens, ("",), rules, number=0, code=True))
        notes = [(note,) for note in self.notes]
        sections.append(Section("notes", ("",), notes, one="note"))
        values: list[tuple[str, ...]] = []
        for value in self.values or ():
            values.append((value.path, f"{value.absolute:.3g}", f"{value.relative:.3g}"))
        header = "path", "absolute", "relative"
        one = "leaf whose values differ, by at most"
        several = "leaves whose values differ, by at most"
        sections.append(Section(several, header, values, one=one))
        return Picture(title, sections)

    def _lines(self, width: int | None) -> Iterator[str]:
        both = " and ".join(self.names)
        if self.same:
            yield f"{both} are the same"
            return
        yield f"{both}: {counted(len(self.changes), 'change')}"
        if self.respelled:
            yield f"  {counted(self.respelled, 'row')} under other keys, the same otherwise"
        for kind in _KINDS:
            alike: list[tuple[str, str]] = []
            for change in self.changes:
                if change.kind == kind:
                    alike.append(_cells(change))
            if alike:
                yield f"{kind}:"
                yield from columns(alike, width=width)
        if self.mended:
            yield "a lens goes from one to the other:"
            for line in _call(self.rules):
                yield f"  {line}"
        yield from self.notes
        for number, value in enumerate(self.values or ()):
            if not number:
                yield "values that differ, by at most (absolute, relative):"
            yield f"  {value.path}  {value.absolute:.3g}  {value.relative:.3g}"


def _cells(change: Change) -> tuple[str, str]:
    # What was added has nothing before, and what was removed nothing after.
    arrow = " -> " if change.before and change.after else ""
    told = f"{change.before}{arrow}{change.after}"
    # Here the path stands to the left already, and what it is called now is all that is new.
    if change.kind == "likely renamed":
        told = f"-> {change.after}"
    if change.mirrors:
        told += f"  (and {change.mirrors} that mirror it)"
    return change.path, told


def _row(change: Change) -> tuple[str, str, str, str]:
    """A change as a row of a table."""
    mirrored = counted(change.mirrors, "leaf", "leaves") if change.mirrors else ""
    return change.path, change.before, change.after, mirrored


def _call(rules: tuple[Rule, ...]) -> list[str]:
    """The call that makes the lens."""
    if not rules:
        return ["cs.adapt(a, b)"]
    lines = ["cs.adapt(a, b, rules=["]
    for rule in rules:
        lines.append(f"    cs.{rule},")
    return [*lines, "])"]
