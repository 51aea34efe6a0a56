"""The errors of the library.

Every error names both sides in its header and then lists the faults by pattern: where, what was
expected, what was found, what to do. All of them are data in ``error.mismatches``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from ckpt_schema._messages.faults import Mismatch, format_faults

__all__ = [
    "AxesWarning",
    "CheckpointExistsError",
    "CheckpointMismatchError",
    "CheckpointWriteError",
    "CkptSchemaError",
    "ConformanceError",
    "DerivationError",
    "Mismatch",
    "SchemaError",
    "ServedWeightsWarning",
    "ShardingWarning",
    "format_faults",
]


class CkptSchemaError(Exception):
    """The base of every error this library raises on purpose.

    Attributes:
        header: What is wrong, in one sentence that names both sides.
        mismatches: Every fault that was found, as data.
        rules: All rules that are certain to mend one of them, each once, in the order of the
            faults.
        notes: What else the message says, after the faults.
    """

    counts: ClassVar[str] = "fault"
    """What the message calls a fault."""

    lines: ClassVar[int] = 40
    """How long the message may be, in lines."""

    def __init__(
        self, header: str, mismatches: Iterable[Mismatch] = (), notes: Iterable[str] = ()
    ) -> None:
        """An error about ``mismatches``; its text is made when it is asked for."""
        super().__init__(header)
        self.header = header
        self.mismatches: tuple[Mismatch, ...] = tuple(mismatches)
        self.rules: tuple[object, ...] = tuple(
            dict.fromkeys(r for f in self.mismatches for r in f.rules)
        )
        self.notes: tuple[str, ...] = tuple(notes)

    def __str__(self) -> str:
        """Header, faults, rules to paste and notes, as `format_faults` lays them out."""
        return format_faults(
            self.header, self.mismatches, self.notes, counts=self.counts, lines=self.lines
        )


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


class CheckpointWriteError(CkptSchemaError, OSError):
    """A checkpoint could not be written; what had been written of it is removed."""


class AxesWarning(UserWarning):
    """Leaves were joined axis by axis, and their sizes would allow another order, which nothing says or excludes."""


class ShardingWarning(UserWarning):
    """An edit has no axis for what shards its input, so that devices hold more of its result than their share."""


class ServedWeightsWarning(UserWarning):
    """The weights to serve are made of params and of a state that a lens drops: the params alone are others."""
