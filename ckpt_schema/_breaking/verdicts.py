"""What is told of a change: which rules it breaks, by which rows, and what mends it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Literal, NoReturn

from ckpt_schema._messages.text import counted
from ckpt_schema.errors import Mismatch, format_faults

__all__ = ["Breaking", "Migration", "RuleName", "Verdict"]

RuleName = Literal["READ", "WRITE", "RESUME", "EXACT"]

MEANINGS: Mapping[RuleName, str] = {
    "READ": "new code loads the model of an old checkpoint",
    "WRITE": "old code loads the model of a new checkpoint",
    "RESUME": "new code goes on with an old run",
    "EXACT": "no leaf has another dtype",
}
"""What each rule asks for."""

_LINES, _ALL = 40, 10**9


@dataclasses.dataclass(frozen=True, slots=True)
class Migration:
    """What a lens does about a rule that is broken.

    Attributes:
        name: The lens.
        carried: How many leaves it carries over.
        leaves: How many there are.
        is_exact: Whether it loses nothing.
        faults: What is wrong with it all the same; nothing where it mends the rule.
    """

    name: str
    carried: int
    leaves: int
    is_exact: bool
    faults: tuple[Mismatch, ...] = ()

    def __str__(self) -> str:
        """On one line."""
        exact = "exact" if self.is_exact else "not exact"
        return f"{self.name}: {self.carried} of {self.leaves} leaves, {exact}"


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a change breaks one rule.

    Attributes:
        rule: The rule.
        faults: What breaks it, a row for each, and nothing that breaks a rule which it builds on.
        follows: The rule that it builds on, where that is broken.
        notes: What else is to be said, such as rules to paste.
        migration: What a lens does about it, where one was given.
    """

    rule: RuleName
    faults: tuple[Mismatch, ...] = ()
    follows: RuleName | None = None
    notes: tuple[str, ...] = ()
    migration: Migration | None = None

    @property
    def breaks(self) -> bool:
        """Whether the change breaks it."""
        return bool(self.faults) or self.follows is not None

    @property
    def passes(self) -> bool:
        """Whether it is not broken, or a lens mends it."""
        return not self.breaks or (self.migration is not None and not self.migration.faults)

    @property
    def state(self) -> str:
        """How it stands, in a few words."""
        if not self.breaks:
            return "holds"
        if self.migration is None:
            return "breaking"
        if self.passes:
            return f"breaking, migrated by {self.migration}"
        return f"breaking, not migrated by {self.migration}"

    def lines(self, *, in_full: bool = False) -> Iterator[str]:
        """The lines that tell it: all of them, or the first forty of each list of faults, and none that the lens mends."""
        most = _ALL if in_full else _LINES
        meaning = MEANINGS[self.rule]
        if not self.breaks:
            yield f"{self.rule} holds: {meaning}"
            return
        header = f"{self.rule} {self.state}"
        # The rule that it builds on has told all that is wrong.
        if self.follows is not None and not self.faults:
            yield f"{header}, with {self.follows}"
            return
        if self.migration is None:
            told = header, self.faults, self.notes
            text = format_faults(*told, lines=most, at_length=in_full)
            yield from text.splitlines()
        else:
            # Who has the lens has no use for what would be wrong without it, nor for rules to paste.
            yield f"{header}; {counted(len(self.faults), 'fault')} without it"
        if self.migration is not None and self.migration.faults:
            header = f"with {self.migration.name}"
            told = header, self.migration.faults
            text = format_faults(*told, lines=most, at_length=in_full)
            for line in text.splitlines():
                yield f"  {line}"


@dataclasses.dataclass(frozen=True, slots=True)
class Breaking:
    """What `breaking` found. It has no truth value: ask for `passes`.

    Attributes:
        names: What the old and the new side are called.
        verdicts: One for each rule that was asked for.
    """

    names: tuple[str, str]
    verdicts: tuple[Verdict, ...]

    @property
    def passes(self) -> bool:
        """Whether no rule is broken, but for those that the lens mends."""
        return all(verdict.passes for verdict in self.verdicts)

    def called(self, names: tuple[str, str], lens: str = "") -> Breaking:
        """The same, with other names of the sides, and of the lens if there is one."""
        verdicts: list[Verdict] = []
        for verdict in self.verdicts:
            migration = verdict.migration
            # A command knows the lens by its file, which is what its user knows it by.
            if migration is not None and lens:
                migration = dataclasses.replace(migration, name=lens)
            verdicts.append(dataclasses.replace(verdict, migration=migration))
        return Breaking(names, tuple(verdicts))

    def __getitem__(self, rule: RuleName) -> Verdict:
        """The verdict on a rule."""
        return next(verdict for verdict in self.verdicts if verdict.rule == rule)

    def __bool__(self) -> NoReturn:
        """No answer: it could be taken for either.

        Raises:
            TypeError: Always.
        """
        raise TypeError("breaking(...).passes says whether a change breaks anything")

    def __str__(self) -> str:
        """What is broken, a rule after the other."""
        return "\n".join(self._lines())

    def in_full(self) -> str:
        """Every pattern of faults, where `print` shows the first forty lines of each rule."""
        return "\n".join(self._lines(in_full=True))

    def _lines(self, *, in_full: bool = False) -> Iterator[str]:
        broken = [verdict for verdict in self.verdicts if not verdict.passes]
        migrated = [verdict for verdict in self.verdicts if verdict.breaks and verdict.passes]
        said = f"{counted(len(broken), 'rule')} broken" if broken else "nothing breaks"
        if migrated:
            said += f", {counted(len(migrated), 'rule')} migrated"
        yield f"{self.names[0]} -> {self.names[1]}: {said}"
        for verdict in self.verdicts:
            yield from verdict.lines(in_full=in_full)
