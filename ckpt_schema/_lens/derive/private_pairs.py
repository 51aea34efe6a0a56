"""Rules that call leaves private which have a partner: the rule or the pair is a mistake, and nobody says which.

`derivation` asks it once the pairs are known, and before they get cells: such a pair is told of by
its rule alone, whatever else is wrong with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterator, Mapping, Sequence

from ckpt_schema._layouts import paths
from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.table import Layout
from ckpt_schema._lens.derive.scope import GlobPath, Spoken
from ckpt_schema._lens.rules import Apart, Private
from ckpt_schema.errors import Mismatch

__all__ = ["PrivatePairs", "private_pairs"]


@dataclasses.dataclass(frozen=True, slots=True)
class PrivatePairs:
    """Leaves that a rule calls private, and that have a partner which is never absent.

    Attributes:
        pairs: The numbers of both rows, with the rule.
        spelled: For each rule, the key paths of one such leaf on both sides, and how many there are.
    """

    pairs: Mapping[tuple[int, int], Private]
    spelled: Mapping[Private, tuple[str, str, int]]

    def faults(self) -> Iterator[Mismatch]:
        """A fault for each of the rules."""
        for rule, (left, right, count) in self.spelled.items():
            parted = Apart(rule.path, rule.default)
            more = f" (and {count - 1} more)" if count > 1 else ""
            both = f"{left}, which both sides have"
            if left != right:
                both = f"{left} and {right}, which are one leaf"
            # Of a glob it is no fault that one node has a partner, if another has none: `globs`
            # tells by the word "none" that a rule did nothing for its node.
            is_glob = isinstance(rule.path, GlobPath)
            found = f"none: {both}{more}" if is_glob else f"{both}{more}"
            hint = f"drop the rule, or say {parted} if the two share only their name"
            yield Mismatch(
                str(rule), "rule", "a leaf without a partner", found, hint, rules=(parted,)
            )


def private_pairs(
    source: Layout,
    view: Layout,
    alone: tuple[Spoken[Private | Apart], Spoken[Private | Apart]],
    pairs: Sequence[tuple[int, int]],
    losers: Container[LogicalPath],
) -> PrivatePairs:
    """Those pairs of rows, by number, that a rule calls private.

    Args:
        source: The source's layout.
        view: The view's layout.
        alone: The rules for leaves without a partner that speak of each row of the two.
        pairs: The numbers of rows that are one leaf.
        losers: The paths of the source's rows whose name in the view others have: of these a rule may speak.
    """
    about_losers = _about(source, alone[0], losers)
    private: dict[tuple[int, int], Private] = {}
    spelled: dict[Private, tuple[str, str, int]] = {}
    for pair in pairs:
        if pair[0] not in alone[0] and pair[1] not in alone[1]:
            continue
        rows = source.rows[pair[0]], view.rows[pair[1]]
        hits = [*alone[0].get(pair[0], ())]
        if rows[1].path not in losers:
            hits += alone[1].get(pair[1], ())
        rules: dict[int, Private] = {}  # by their numbers: one rule may speak of both rows
        for hit in hits:
            if isinstance(hit.rule, Private) and hit.number not in about_losers:
                rules[hit.number] = hit.rule
        # An optional leaf may be absent, and then it is the rule that says what becomes of it.
        if not rules or rows[0].optional or rows[1].optional:
            continue
        for rule in rules.values():
            if not isinstance(rule.path, GlobPath):  # that is meant for those without a partner
                private[pair] = rule
            left, right, count = spelled.get(rule, ("", "", 0))
            if not count:
                left, right = paths.format_path(rows[0].key), paths.format_path(rows[1].key)
            spelled[rule] = left, right, count + 1
    return PrivatePairs(private, spelled)


def _about(
    source: Layout, over: Spoken[Private | Apart], losers: Container[LogicalPath]
) -> set[int]:
    """The numbers of rules that speak of what has lost its name.

    Such a rule speaks of a node, and not of those of its leaves that no other took the name of.
    """
    numbers: set[int] = set()
    for row_number, hits in over.items():
        if source.rows[row_number].path in losers:
            numbers.update(hit.number for hit in hits)
    return numbers
