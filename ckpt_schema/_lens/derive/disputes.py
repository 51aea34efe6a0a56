"""Rules that speak of one leaf: the longest path decides, and a rule that decides nothing at all is an error.

The steps of `derivation` each take the rule that decides; nobody but this module looks at those
that do not. For each leaf they are noted, and at the end it is known which of them never won.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ckpt_schema._layouts.table import Layout, Row
from ckpt_schema._lens.derive.exemptions import Alone, resets_by_side
from ckpt_schema._lens.derive.leaf_rules import ValueRule, by_family
from ckpt_schema._lens.derive.names import Decision, is_inner
from ckpt_schema._lens.derive.scope import Hit, Scope, Spoken
from ckpt_schema._lens.derive.ties import originals
from ckpt_schema._lens.derive.wholes import Member
from ckpt_schema._lens.rules import Apart, Private, Rename, Reset, Rule, Tie
from ckpt_schema.errors import Mismatch

__all__ = ["disputes"]

_NAMED = 3  # of the rules that leave another one nothing


def disputes(
    source: Layout,
    view: Layout,
    rules: Sequence[Rule],
    decisions: Mapping[int, Decision],
    values: Spoken[ValueRule],
    alone: Alone,
    members: Mapping[int, Member],
) -> Iterator[Mismatch]:
    """Rules of one path that contradict one another, and rules whose leaves are all decided by others.

    Args:
        source: The source's layout.
        view: The view's layout.
        rules: The rules.
        decisions: What those that rename or move say of rows of the source.
        values: Those that speak of the values of rows of the view.
        alone: Those that speak of rows without a partner, of the source and of the view.
        members: The rows of the source that are parts of one leaf, by number.
    """
    contest = _Contest()
    _named(source, decisions, members, contest)
    for number, over in values.items():
        for hits in by_family(view.rows[number], over).values():
            contest.settle(hits)
    _ties(source, view, rules, contest)
    _defaults(source, view, rules, alone, contest)
    yield from contest.faults()


class _Contest:
    """Who decided a leaf, and who did not."""

    def __init__(self) -> None:
        # The ids of rules that decided a leaf: such a rule may lose any number of others.
        self._deciding: set[int] = set()
        # By its id, a rule that has lost a leaf, and the rules that won; a dict keeps their order.
        self._beaten: dict[int, tuple[Rule, dict[str, None]]] = {}
        # Two rules for one path, the first one first: each pair is told once, however many leaves it has.
        self._contradictions: dict[tuple[str, str], None] = {}

    def settle(self, hits: Sequence[Hit[Rule]]) -> None:
        """The first of several rules decides a leaf."""
        if not hits:
            return
        first = hits[0]
        self.decides(first.rule)
        for other in hits[1:]:
            self.loses(other, first)

    def decides(self, rule: Rule) -> None:
        """Notes that a rule decides a leaf."""
        self._deciding.add(id(rule))

    def loses(self, hit: Hit[Rule], to: Hit[Rule]) -> None:
        """Notes that a rule gives way to another for a leaf."""
        if not hit.draws(to) or _family(hit.rule) != _family(to.rule):
            self.yields(hit.rule, to.rule)
        elif _said(hit.rule) == _said(to.rule):
            self.decides(hit.rule)  # it says the same once more
        else:
            self._contradictions[str(to.rule), str(hit.rule)] = None

    def yields(self, rule: Rule, to: Rule) -> None:
        """Notes that a rule gives way to one of another kind."""
        self._beaten.setdefault(id(rule), (rule, {}))[1][str(to)] = None

    def faults(self) -> Iterator[Mismatch]:
        """What is wrong with the rules."""
        contradicting: set[str] = set()
        for pair in self._contradictions:
            contradicting.update(pair)
            hint = "they contradict one another: drop one of the two"
            first, other = pair
            yield Mismatch(other, "rule", "one rule for one path", f"{first} too", hint)
        for number, (rule, winners) in self._beaten.items():
            if number in self._deciding or str(rule) in contradicting or isinstance(rule, Apart):
                continue  # what parts two leaves does so whatever they hold then
            shown = list(winners)
            if len(shown) > _NAMED:
                shown[_NAMED:] = ["..."]
            yield Mismatch(
                str(rule),
                "rule",
                "a leaf that it decides",
                f"none: all of its leaves are decided by {', '.join(shown)}",
                "of several rules the longest path wins: drop this rule, or the longer ones",
            )


def _family(rule: Rule) -> object:
    """What kind of rule it is; only those of one kind can contradict one another."""
    # Both say what a leaf without a partner holds.
    return Private if isinstance(rule, Apart) else type(rule)


def _said(rule: Rule) -> str:
    """What a rule says of its path, as it is written: 0.0 is not -0.0."""
    return str(rule.default) if isinstance(rule, (Private, Apart)) else str(rule)


def _named(
    source: Layout,
    decisions: Mapping[int, Decision],
    members: Mapping[int, Member],
    contest: _Contest,
) -> None:
    """A rename or a move for each half of a path; a part of a leaf has the name of its whole."""
    last: Decision | None = None
    for number, decision in decisions.items():
        row, member = source.rows[number], members.get(number)
        if decision is last and member is None:
            continue  # leaves of one node, of which the same is said
        last = decision if member is None else None
        if member is not None:
            # A part is called as its whole is, so that a rename of the part decides nothing.
            for hit in decision.hits:
                if isinstance(hit.rule, Rename):
                    contest.yields(hit.rule, member.group.rule)
            continue
        inner, outer = decision.inner, decision.outer
        for hit in decision.hits:
            # A rule gives way to the one for its own half of the path, if there is one.
            winner = inner if inner is not None and is_inner(hit, row) else outer
            winner = winner or inner
            if hit is inner or hit is outer:
                contest.decides(hit.rule)
            elif winner is not None:
                contest.loses(hit, winner)


def _ties(source: Layout, view: Layout, rules: Sequence[Rule], contest: _Contest) -> None:
    """Of several ties a leaf is the copy that the first one says."""
    ties: Scope[Tie] = Scope((rule.copy, rule) for rule in rules if isinstance(rule, Tie))
    for table in (source, view):
        for of_copy in originals(table, ties).values():
            contest.settle([hit for hit, _ in of_copy])


def _defaults(
    source: Layout, view: Layout, rules: Sequence[Rule], alone: Alone, contest: _Contest
) -> None:
    """A reset says how a leaf starts, whatever a rule that makes it private says."""
    resets = resets_by_side(rules)
    for table, of_side, spoken_of in zip((source, view), resets, alone, strict=True):
        anew = Scope(of_side)
        for number, lone_hits in spoken_of.items():
            # An `apart` without a default says nothing of what the leaf holds.
            hits: list[Hit[Private | Apart]] = []
            for hit in lone_hits:
                if isinstance(hit.rule, Private) or hit.rule.default is not None:
                    hits.append(hit)
            reset = _reset_of(table.rows[number], anew) if hits else None
            if reset is None:
                contest.settle(hits)
            else:
                for hit in hits:
                    contest.yields(hit.rule, reset)


def _reset_of(row: Row, resets: Scope[Reset]) -> Reset | None:
    """The reset that a row begins anew by."""
    for hit in resets.over(row) if resets else ():
        # A reset speaks of the optimizer state alone: a path in the model is not meant.
        if hit.start == 0:
            return hit.rule
    return None
