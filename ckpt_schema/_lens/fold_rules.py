"""Rules for leaves that are computed of several of the other side, and what is computed: a fold."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ckpt_schema._layouts.paths import LogicalPath, rule_path
from ckpt_schema._lens.wellformed import not_well_formed, verify_paths
from ckpt_schema.errors import Mismatch

__all__ = ["Addition", "FoldKind", "FoldRule", "Total", "total"]


# --- What is computed  ---


@dataclasses.dataclass(frozen=True, slots=True)
class Addition:
    """The sum of leaves that are alike."""

    @property
    def made(self) -> int:
        """How many of the parts the way back makes, the first ones; the others are private."""
        return 1

    def told(self, parts: str) -> str:
        """What it is, in words."""
        return f"the sum of {parts}"

    def lost(self, parts: Sequence[str], dtype: str) -> str:
        """What is lost of the parts."""
        return f"the sum of {' and '.join(parts)} alone is kept, rounded in {dtype}"

    def cure(self, others: Sequence[str]) -> str:
        """What to do where nobody says what becomes of the parts."""
        rules = " and ".join(f"private({name!r}, 0.0)" for name in others)
        return (
            f"add {rules}: what onto has there stays, else it is 0, and this one has what is left"
        )


FoldKind = Addition
"""What a fold computes."""


# --- What a user says  ---


@dataclasses.dataclass(frozen=True, slots=True)
class Total:
    """See `total`."""

    whole: LogicalPath
    parts: tuple[LogicalPath, ...]

    def __str__(self) -> str:
        """The rule as it is written."""
        return f"total({'/'.join(self.whole)!r}, {['/'.join(part) for part in self.parts]})"

    __repr__ = __str__


FoldRule = Total
"""A rule for a fold."""


def total(whole: str, parts: Sequence[str]) -> Total:
    """A rule: the leaf at ``whole`` of one side is the sum of several of the other, as the bias of a cell that has two there.

    The sum is rounded, and does not tell its parts. So the way back is an error until it is said what becomes of all
    parts but one: ``private("bias_ih", 0.0)`` takes it from ``onto``, else it is 0, and ``private("bias_ih", own)`` takes it
    from ``onto`` alone. The last part then has what is left. Parts of which the sum is as it was are as they were, whatever
    is said.

    What an optimizer keeps for the parts does not follow: it takes a `reset`.

    Args:
        whole: The logical path of the leaf or node that is the sum, in the words of the side that has it.
        parts: Those of its parts, in the words of theirs; they are alike in dims, dtype and layers.

    Returns:
        The rule.

    Raises:
        SchemaError: A path is no string, or there are not several parts, or one is there twice.

    Example:
        >>> print(total("bias", ["bias_ih", "bias_hh"]))
        total('bias', ['bias_ih', 'bias_hh'])
    """
    several: list[str] = list(parts) if isinstance(parts, (list, tuple)) else []
    verify_paths("total", whole=whole, **{f"parts[{n}]": part for n, part in enumerate(several)})
    if len(several) < 2 or len({*several}) < len(several):
        expected = "the paths of at least two leaves, each once"
        hint = 'such as total("bias", ["bias_ih", "bias_hh"])'
        fault = Mismatch("parts", "declaration", expected, repr(parts), hint)
        raise not_well_formed("total", fault)
    return Total(rule_path(whole), tuple(map(rule_path, several)))
