"""What a conversion on disk does, in numbers, and how long it is expected to take."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from ckpt_schema._messages.text import counted, in_bytes

__all__ = ["SUMMED", "Conversion", "TimedLeaf"]


@dataclasses.dataclass(frozen=True, slots=True)
class TimedLeaf:
    """A leaf that was converted by itself, and how long that took.

    Attributes:
        bytes: Its bytes, in memory.
        seconds: What it took to read what it is made of, to make it, and to write it.
    """

    bytes: int
    seconds: float

    @property
    def rate(self) -> float:
        """Bytes in a second."""
        return max(self.bytes, 1) / max(self.seconds, 1e-6)

    def __str__(self) -> str:
        """The rate, and what it was measured of."""
        return f"{in_bytes(round(self.rate))}/s, measured of a leaf of {in_bytes(self.bytes)}"


@dataclasses.dataclass(frozen=True, slots=True)
class Conversion:
    """What a conversion on disk has done.

    Attributes:
        moved: How many leaves of the new checkpoint are arrays of the old one, of which none was read.
        edited: How many are made of those.
        made: How many are made of nothing, by their defaults.
        linked: The bytes of the arrays that moved, in memory.
        written: The bytes of those that were edited or made.
        rewritten: The key paths of those, in the new checkpoint.
        versions: Of a registry, the versions that it was led through, the one on disk first.
        steps: Of a directory of checkpoints, what was done with each.
        already: How many of its checkpoints were there already, and stay as they are.
        sample: Of a plan, what was tried of it to see how fast it goes, if that was asked for.
    """

    moved: int
    edited: int
    made: int
    linked: int
    written: int
    rewritten: Sequence[str] = ()
    versions: Sequence[str] = ()
    steps: Mapping[str, Conversion] = dataclasses.field(default_factory=dict[str, "Conversion"])
    already: int = 0
    sample: TimedLeaf | None = None

    @property
    def seconds(self) -> float | None:
        """How long it will take at the rate of the sample; None where none was taken."""
        return None if self.sample is None else self.written / self.sample.rate

    @classmethod
    def of_steps(cls, steps: Mapping[str, Conversion], already: int) -> Conversion:
        """Those of several checkpoints as one."""
        sums = dict.fromkeys(SUMMED, 0)
        # The same leaf is rewritten in each step, and is named once: a dict keeps the order.
        rewritten: dict[str, None] = {}
        for step in steps.values():
            for name in SUMMED:
                sums[name] += getattr(step, name)
            rewritten |= dict.fromkeys(step.rewritten)
        return cls(**sums, rewritten=tuple(rewritten), steps=steps, already=already)

    def __str__(self) -> str:
        """It in one line."""
        if self.already and not self.steps:
            return f"nothing to do: {counted(self.already, 'checkpoint')} there already"
        several = f"{counted(len(self.steps), 'checkpoint')}: " if self.steps else ""
        there = f"; {counted(self.already, 'checkpoint')} there already" if self.already else ""
        return (
            f"{several}{counted(self.moved, 'leaf', 'leaves')} moved ({self.linked:,} bytes, none of them read), "
            f"{self.edited} edited and {self.made} made ({self.written:,} bytes){there}"
        )


# The fields that are sums where several checkpoints are told of as one.
SUMMED = ("moved", "edited", "made", "linked", "written")
