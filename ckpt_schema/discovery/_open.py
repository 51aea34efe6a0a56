"""What running two models does not decide: each with its candidates, and the rules that settle it."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._lens.adapt.one_sided import derived
from ckpt_schema._lens.rules import Rule
from ckpt_schema.discovery._beforehand import KnownLeaves
from ckpt_schema.discovery._cuts import LeafPiece
from ckpt_schema.discovery._found_rules import FoundRules
from ckpt_schema.discovery._matching import Matched
from ckpt_schema.discovery._models import RunnableModel
from ckpt_schema.discovery._roles import kind_of_leaf
from ckpt_schema.errors import DerivationError

__all__ = [
    "Open",
    "SpokenNames",
    "leaf_kinds",
    "open_asleep",
    "open_entries",
    "open_skipped",
    "open_unsaid",
    "piece_text",
    "rule_paths",
    "rules_text",
]

Models = tuple[RunnableModel, RunnableModel]

SpokenNames = tuple[Mapping[str, str], Mapping[str, str]]
"""What rules call the leaves of each side, by their key paths: without what a Variable adds."""


@dataclasses.dataclass(frozen=True)
class Open:
    """What running the models does not decide.

    Attributes:
        sources: Pieces of the source, as text: the leaf, and which indices of it.
        views: Pieces of the view that they may be; each of the sources may be each of these unless
            ``options`` say more.
        reason: Why it is open.
        options: Where several ways leave the outputs equal: the rules of each, of which one is to be
            given to `Discovery.lens`.
    """

    sources: tuple[str, ...]
    views: tuple[str, ...]
    reason: str
    options: tuple[tuple[Rule, ...], ...] = ()
    _names: SpokenNames = dataclasses.field(default=({}, {}), repr=False, compare=False)

    def __str__(self) -> str:
        """On one line, layers of one kind together."""
        ours, theirs = (
            leaf_kinds([piece_text(piece, names) for piece in pieces])
            for pieces, names in zip((self.sources, self.views), self._names, strict=True)
        )
        sides = f"{ours} <-> {theirs}: " if self.sources else ""
        options = "; or ".join(map(rules_text, self.options))
        return f"{sides}{self.reason}{': ' * bool(options)}{options}"

    @property
    def where(self) -> str:
        """What it is of: its pieces of the view, or else of the source, as rules call their leaves."""
        pieces, names = (
            (self.views, self._names[1]) if self.views else (self.sources, self._names[0])
        )
        return ", ".join(piece_text(piece, names) for piece in pieces)

    def is_settled(self, rules: Sequence[Rule]) -> bool:
        """Whether some rules say which of its options it is: one of them, or a word on one of its leaves."""
        if not self.options or any(set(option) <= set(rules) for option in self.options):
            return True
        named = {path for option in self.options for rule in option for path in rule_paths(rule)}
        given = {path for rule in rules for path in rule_paths(rule)}
        return any(path[: len(node)] == node for path in named for node in given)


def piece_text(piece: str, names: Mapping[str, str]) -> str:
    """A piece as it is told, its leaf as rules call it.

    Example:
        >>> piece_text("model/q/kernel/value[:, 0:2]", {"model/q/kernel/value": "q/kernel"})
        'q/kernel[:, 0:2]'
    """
    leaf, bracket, indices = piece.partition("[")
    return f"{names.get(leaf, leaf)}{bracket}{indices}"


def leaf_kinds(names: Sequence[str]) -> str:
    """Names, those that differ in the numbers of their layers alone once, with their count."""
    alike: dict[str, list[str]] = collections.defaultdict(list)
    for name in names:
        alike[kind_of_leaf(name)].append(name)
    words = [own[0] if len(own) == 1 else f"{kind} ({len(own)})" for kind, own in alike.items()]
    return ", ".join(words) or "nothing"


def rules_text(rules: Sequence[Rule]) -> str:
    """Rules as they are pasted."""
    return "[" + ", ".join(f"cs.{rule}" for rule in rules) + "]"


def rule_paths(rule: Rule) -> Iterator[LogicalPath]:
    """The logical paths that a rule speaks of."""
    for field in dataclasses.fields(rule):
        value = getattr(rule, field.name)
        if field.name in ("path", "source", "view", "copy", "of", "whole") and value:
            yield value
        elif field.name == "parts":
            yield from value


def open_entries(matched: Matched, found: FoundRules) -> list[Open]:
    """Everything that a match leaves open, but what has no gradient."""
    return [*_choices(found), *_merged(matched), *_alone(matched)]


def open_unsaid(found: FoundRules) -> list[Open]:
    """What was found and no rule says, once for each reason: no lens follows without another word."""
    alike: dict[str, list[str]] = collections.defaultdict(list)
    for each in found.unsaid:
        alike[each.why].append(each.what)
    opens: list[Open] = []
    for why, what in alike.items():
        more = f" (and {len(what) - 1} more)" if len(what) > 1 else ""
        opens.append(Open((), (), f"{what[0]}{more}: {why}"))
    return opens


def _choices(found: FoundRules) -> list[Open]:
    opens: list[Open] = []
    for choice, options in found.options:
        sources, views = (tuple(map(str, side)) for side in (choice.sources, choice.views))
        opens.append(Open(sources, views, choice.why, options))
    return opens


def _merged(matched: Matched) -> list[Open]:
    """Leaves of the source that the view has once: a tie, or a layer that is used twice by mistake."""
    reason = "the view has one leaf for these: the same function only where they are always equal"
    return [
        Open(tuple(map(str, each.sources)), (str(each.view),), reason) for each in matched.merged
    ]


def open_asleep(matched: Matched, known: KnownLeaves) -> list[Open]:
    """Pieces without a gradient that no rule tells, those of one form together."""
    reason = (
        "no value of it changes the outputs at this input"
        if matched.inert
        else "it has no gradient here, yet its values matter"
    )
    left: list[list[LeafPiece]] = []
    for side, pieces in enumerate(matched.asleep):
        left.append([piece for piece in pieces if not known.is_told(side, piece.leaf)])
    return _by_form((left[0], left[1]), reason)


def open_skipped(models: Models, found: FoundRules, rules: Sequence[Rule]) -> list[Open]:
    """Leaves that are no floats, where neither a name nor a rule says what they are: counts, caches, flags."""
    if not any(model.skipped for model in models):
        return []
    try:
        derived(*found.layouts, [*rules], None)
    except DerivationError as error:
        unplaced = {fault.path for fault in error.mismatches if fault.kind == "unplaced"}
    else:
        return []
    left: list[tuple[str, ...]] = []
    for model, side in zip(models, found.sides, strict=True):
        # A model of another framework may name leaves that its tree does not have.
        within = [leaf for leaf in model.skipped if leaf in side.slots]
        named = [leaf for leaf in within if "/".join(side.slots[leaf][0].path) in unplaced]
        left.append(tuple(named))
    reason = "it is no float, so no gradient tells it, and no leaf of the other side has its name"
    return [Open(left[0], left[1], reason)] if any(left) else []


def _alone(matched: Matched) -> list[Open]:
    return _by_form(matched.alone, "it has a gradient, and no piece of the other side has the same")


def _by_form(pieces: tuple[Sequence[LeafPiece], Sequence[LeafPiece]], reason: str) -> list[Open]:
    forms = dict.fromkeys(piece.form for side in pieces for piece in side)
    found: list[Open] = []
    for form in forms:
        sources, views = (tuple(str(p) for p in side if p.form == form) for side in pieces)
        found.append(Open(sources, views, reason))
    return found
