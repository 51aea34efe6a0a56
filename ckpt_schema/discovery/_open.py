"""What running two models does not decide: each with its candidates, and the rules that settle it."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._lens.adapt.one_sided import derived
from ckpt_schema._lens.rules import Rule
from ckpt_schema.discovery._found_rules import FoundRules
from ckpt_schema.discovery._known_leaves import KnownLeaves
from ckpt_schema.discovery._leaf_pieces import AxisSizes, LeafPiece
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
        ours = leaf_kinds([piece_text(piece, self._names[0]) for piece in self.sources])
        theirs = leaf_kinds([piece_text(piece, self._names[1]) for piece in self.views])
        sides = f"{ours} <-> {theirs}: " if self.sources else ""
        options = "; or ".join(map(rules_text, self.options))
        return f"{sides}{self.reason}{': ' * bool(options)}{options}"

    @property
    def where(self) -> str:
        """What it is of: its pieces of the view, or else of the source, as rules call their leaves."""
        pieces, names = self.sources, self._names[0]
        if self.views:
            pieces, names = self.views, self._names[1]
        return ", ".join(piece_text(piece, names) for piece in pieces)

    def is_settled(self, rules: Sequence[Rule]) -> bool:
        """Whether some rules say which of its options it is: one of them, or a word on one of its leaves."""
        # What has no options is settled by the derivation, which places it or says what is missing.
        if not self.options or any(set(option) <= set(rules) for option in self.options):
            return True
        # A rule of the user's own, as a scale of the leaf by another factor, is a word on it too;
        # so is one of a node above it. Whether the models then agree is proved by running them.
        named = _paths_of(itertools.chain(*self.options))
        nodes = _paths_of(rules)
        return any(path[: len(node)] == node for path in named for node in nodes)


def _paths_of(rules: Iterable[Rule]) -> set[LogicalPath]:
    """All logical paths that some rules speak of."""
    paths: set[LogicalPath] = set()
    for rule in rules:
        paths.update(rule_paths(rule))
    return paths


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
    words: list[str] = []
    for kind, of_kind in alike.items():
        # One alone by its own name: it may be one layer of many.
        words.append(of_kind[0] if len(of_kind) == 1 else f"{kind} ({len(of_kind)})")
    return ", ".join(words) or "nothing"


def rules_text(rules: Sequence[Rule]) -> str:
    """Rules as they are pasted."""
    return "[" + ", ".join(f"cs.{rule}" for rule in rules) + "]"


def rule_paths(rule: Rule) -> Iterator[LogicalPath]:
    """The logical paths that a rule speaks of."""
    # Rules are data, and each calls its paths by a few names.
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
        sources, views = tuple(map(str, choice.sources)), tuple(map(str, choice.views))
        opens.append(Open(sources, views, choice.why, options))
    return opens


def _merged(matched: Matched) -> list[Open]:
    """Leaves of the source that the view has once: a tie, or a layer that is used twice by mistake."""
    reason = "the view has one leaf for these: the same function only where they are always equal"
    opens: list[Open] = []
    for pairing in matched.merged:
        opens.append(Open(tuple(map(str, pairing.sources)), (str(pairing.view),), reason))
    return opens


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
    # The derivation joins them by name; what it cannot place is in its error.
    try:
        derived(*found.layouts, [*rules], None)
    except DerivationError as error:
        unplaced = {fault.path for fault in error.mismatches if fault.kind == "unplaced"}
    else:
        return []
    left: list[tuple[str, ...]] = []
    for model, side in zip(models, found.sides, strict=True):
        named: list[str] = []
        for leaf in model.skipped:
            # A model of another framework may name leaves that its tree does not have.
            if leaf in side.slots and "/".join(side.slots[leaf][0].path) in unplaced:
                named.append(leaf)
        left.append(tuple(named))
    reason = "it is no float, so no gradient tells it, and no leaf of the other side has its name"
    return [Open(left[0], left[1], reason)] if any(left) else []


def _alone(matched: Matched) -> list[Open]:
    return _by_form(matched.alone, "it has a gradient, and no piece of the other side has the same")


def _by_form(pieces: tuple[Sequence[LeafPiece], Sequence[LeafPiece]], reason: str) -> list[Open]:
    """An entry for each form, in the order in which the forms are met."""
    by_form: dict[AxisSizes, tuple[list[str], list[str]]] = {}
    for side, pieces_of_side in enumerate(pieces):
        for piece in pieces_of_side:
            by_form.setdefault(piece.form, ([], []))[side].append(str(piece))
    return [Open(tuple(sources), tuple(views), reason) for sources, views in by_form.values()]
