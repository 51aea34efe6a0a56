"""The errors of the library, the one fault record and the one formatter of error text.

Every error names both sides in its header and then lists *all* faults, one per line: where, what was expected, what was
found, what to do. The faults stay available as data in ``error.mismatches``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

__all__ = [
    "CheckpointExistsError",
    "CheckpointMismatchError",
    "CkptSchemaError",
    "ConformanceError",
    "DerivationError",
    "Mismatch",
    "SchemaError",
    "ShardingWarning",
    "format_faults",
]


@dataclasses.dataclass(frozen=True, slots=True)
class Mismatch:
    """One fault: a place, what was expected there, what was found, and what to do about it.

    Attributes:
        path: The key path (or logical path, or field name) the fault is at.
        kind: A stable word for programs: ``missing``, ``extra``, ``shape``, ``dtype``, ``impl``, ``key``, ``dims``,
            ``cast``, ``abstract``, ``ambiguous``, ``unplaced``, ``declaration``, ``checkpoint`` ...
        expected: What the declaration asks for, in words.
        found: What is there instead, in words.
        hint: The likeliest cure; may be empty.
        rules: The rules that are certain to mend it, ready for ``derive``; none where it is open what was meant.
    """

    path: str
    kind: str
    expected: str
    found: str
    hint: str = ""
    rules: tuple[object, ...] = dataclasses.field(default=(), kw_only=True)

    def __str__(self) -> str:
        """The fault as one line."""
        line = f"{self.path or '(root)'}: expected {self.expected}, found {self.found}"
        return f"{line} ({self.hint})" if self.hint else line


def format_faults(header: str, mismatches: Iterable[Mismatch], notes: Iterable[str] = ()) -> str:
    """The text of an error: a header, one aligned line per fault, then notes.

    Args:
        header: One sentence that names both sides.
        mismatches: The faults, all of which are printed.
        notes: Lines printed after the faults, such as the dims that were bound.

    Returns:
        The text, without a trailing newline.

    Example:
        >>> fault = Mismatch("a/b", "dtype", "float32", "int8", "cast it")
        >>> print(format_faults("x does not conform to Y: 1 fault", [fault]))
        x does not conform to Y: 1 fault
          a/b  expected float32, found int8
               -> cast it
    """
    faults = list(mismatches)
    width = min(max((len(f.path or "(root)") for f in faults), default=0), 60)
    lines = [header]
    for fault in faults:
        lines.append(
            f"  {fault.path or '(root)':<{width}}  expected {fault.expected}, found {fault.found}"
        )
        if fault.hint:
            lines.append(f"  {'':<{width}}  -> {fault.hint}")
    lines.extend(f"{note}" for note in notes)
    return "\n".join(lines)


class CkptSchemaError(Exception):
    """The base of every error this library raises on purpose.

    Attributes:
        mismatches: Every fault that was found, as data.
        rules: All rules that are certain to mend one of them, each once, in the order of the faults.
        notes: What else the message says, after the faults.
    """

    def __init__(
        self, header: str, mismatches: Iterable[Mismatch] = (), notes: Iterable[str] = ()
    ) -> None:
        """Formats ``header``, all ``mismatches`` and ``notes`` into the message."""
        self.mismatches: tuple[Mismatch, ...] = tuple(mismatches)
        self.rules: tuple[object, ...] = tuple(
            dict.fromkeys(r for f in self.mismatches for r in f.rules)
        )
        self.notes: tuple[str, ...] = tuple(notes)
        super().__init__(format_faults(header, self.mismatches, self.notes))


class SchemaError(CkptSchemaError):
    """A declaration is wrong: a schema class, a field, a dimension string, a rule."""


class DerivationError(CkptSchemaError):
    """No total lens exists between two layouts as declared: rows are unplaced, ambiguous or of different types."""


class ConformanceError(CkptSchemaError):
    """A tree does not conform to a layout, or a value cannot be carried over exactly."""


class CheckpointMismatchError(ConformanceError):
    """What is on disk is no checkpoint, or one that neither side of the lens, nor the target, describes."""


class CheckpointExistsError(CkptSchemaError, FileExistsError):
    """There is something where a checkpoint was to be saved; it was not touched."""


class ShardingWarning(UserWarning):
    """An edit has no axis for what shards its input, so that devices hold more of its result than their share."""
