"""Rules that speak of one leaf: the longest path decides, and a rule that decides nothing at all is an error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ckpt_schema._layouts.table import Layout
from ckpt_schema._lens.derive.exemptions import Alone
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
        self._deciding: set[int] = set()
        self._beaten: dict[int, tuple[Rule, dict[str, None]]] = {}
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
        named = {rule for pair in self._contradictions for rule in pair}
        for first, other in self._contradictions:
            hint = "they contradict one another: drop one of the two"
            yield Mismatch(other, "rule", "one rule for one path", f"{first} too", hint)
        for number, (rule, winners) in self._beaten.items():
            if number in self._deciding or str(rule) in named or isinstance(rule, Apart):
                continue  # what parts two leaves does so whatever they hold then
            shown = [*list(winners)[:_NAMED], *["..."][: len(winners) - _NAMED]]
            yield Mismatch(
                str(rule),
                "rule",
                "a leaf that it decides",
                f"none: all of its leaves are decided by {', '.join(shown)}",
                "of several rules the longest path wins: drop this rule, or the longer ones",
            )


def _family(rule: Rule) -> object:
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
    last: Decision | None = None
    for number, decision in decisions.items():
        row, member = source.rows[number], members.get(number)
        if decision is last and member is None:
            continue  # leaves of one node, of which the same is said
        last = decision if member is None else None
        if member is not None:
            for hit in decision.hits:
                if isinstance(hit.rule, Rename):
                    contest.yields(hit.rule, member.group.rule)
            continue
        inner, outer = decision.inner, decision.outer
        for hit in decision.hits:
            winner = inner if inner is not None and is_inner(hit, row) else outer
            winner = winner or inner
            if hit is inner or hit is outer:
                contest.decides(hit.rule)
            elif winner is not None:
                contest.loses(hit, winner)


def _ties(source: Layout, view: Layout, rules: Sequence[Rule], contest: _Contest) -> None:
    ties: Scope[Tie] = Scope((rule.copy, rule) for rule in rules if isinstance(rule, Tie))
    for table in (source, view):
        for hits in originals(table, ties).values():
            contest.settle([hit for hit, _ in hits])


def _defaults(
    source: Layout, view: Layout, rules: Sequence[Rule], alone: Alone, contest: _Contest
) -> None:
    """A reset says how a leaf starts, whatever a rule that makes it private says."""
    resets = [rule for rule in rules if isinstance(rule, Reset)]
    sides = zip((source, view), ("source", "view"), alone, strict=True)
    for table, side, spoken_of in sides:
        given = [(getattr(rule, side), rule) for rule in resets]
        anew = Scope((path, rule) for path, rule in given if path is not None)
        for number, several in spoken_of.items():
            hits = [
                hit
                for hit in several
                if isinstance(hit.rule, Private) or hit.rule.default is not None
            ]
            resetting = anew.over(table.rows[number]) if hits and anew else ()
            over = [hit.rule for hit in resetting if hit.start == 0]
            if over:
                for hit in hits:
                    contest.yields(hit.rule, over[0])
            else:
                contest.settle(hits)
