"""Rules that speak of one leaf: the longest path decides, and a rule that decides nothing at all is an error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ckpt_schema.errors import Mismatch
from ckpt_schema.lens.names import Names
from ckpt_schema.lens.rules import Apart, Fuse, Private, Reset, Rule, Tie
from ckpt_schema.lens.scope import Hit, Scope
from ckpt_schema.lens.ties import originals
from ckpt_schema.lens.told import ValueRule, by_family
from ckpt_schema.lens.wholes import Member
from ckpt_schema.table import Layout

__all__ = ["disputes"]

_NAMED = 3  # of the rules that leave another one nothing


def disputes(
    source: Layout,
    view: Layout,
    rules: Sequence[Rule],
    names: Names,
    values: Scope[ValueRule],
    members: Mapping[int, Member],
) -> Iterator[Mismatch]:
    """Rules of one path that contradict one another, and rules whose leaves are all decided by others.

    Args:
        source: The source's layout.
        view: The view's layout.
        rules: The rules.
        names: Those that rename or move.
        values: Those that speak of values.
        members: The rows of the source that are parts of one leaf, by number.
    """
    contest = _Contest()
    if names:
        _named(source, names, members, contest)
    if values:
        for row in view.rows:
            for hits in by_family(row, values).values():
                contest.settle(hits)
    _ties(source, view, rules, contest)
    _defaults(source, view, rules, contest)
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
        if hit.place != to.place or _family(hit.rule) != _family(to.rule):
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


def _named(source: Layout, names: Names, members: Mapping[int, Member], contest: _Contest) -> None:
    for number, row in enumerate(source.rows):
        member = members.get(number)
        if member is not None and isinstance(member.group.rule, Fuse):
            for hit in names.renames.over(row):
                contest.yields(hit.rule, member.group.rule)
            continue
        inner, outer = names.deciding(row)
        for hit in names.over(row):
            winner = inner if inner is not None and (names.is_inner(hit, row)) else outer
            winner = winner or inner
            if hit in (inner, outer):
                contest.decides(hit.rule)
            elif winner is not None:
                contest.loses(hit, winner)


def _ties(source: Layout, view: Layout, rules: Sequence[Rule], contest: _Contest) -> None:
    ties: Scope[Tie] = Scope((rule.copy, rule) for rule in rules if isinstance(rule, Tie))
    for table in (source, view):
        for hits in originals(table, ties).values():
            contest.settle([hit for hit, _ in hits])


def _defaults(source: Layout, view: Layout, rules: Sequence[Rule], contest: _Contest) -> None:
    """A reset says how a leaf starts, whatever a rule that makes it private says."""
    privates = Scope[Private | Apart](
        (rule.path, rule)
        for rule in rules
        if isinstance(rule, (Private, Apart)) and rule.default is not None
    )
    if not privates:
        return
    resets = [rule for rule in rules if isinstance(rule, Reset)]
    for table, side in ((source, "source"), (view, "view")):
        given = [(getattr(rule, side), rule) for rule in resets]
        anew = Scope((path, rule) for path, rule in given if path is not None)
        for row in table.rows:
            hits = privates.over(row)
            over = [hit.rule for hit in anew.over(row) if hit.start == 0] if hits else []
            if over:
                for hit in hits:
                    contest.yields(hit.rule, over[0])
            else:
                contest.settle(hits)
