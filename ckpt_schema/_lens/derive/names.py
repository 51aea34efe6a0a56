"""What the leaves of the source are called in the view: by rules that rename or move, of which the longest path wins.

`derivation` asks for the *decision* of each row, and `pairing` for the path that follows from it:

    rename("wi", "up")            params/mlp/wi/kernel  ->  params/mlp/up/kernel
    move("opt_state/0", "adam")   opt_state/0/mu/wi/kernel  ->  adam/mu/wi/kernel
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.table import Part, Row
from ckpt_schema._lens.derive.alignment import Alignment
from ckpt_schema._lens.derive.scope import Hit, Scope
from ckpt_schema._lens.rules import Move, Rename, Rule

__all__ = ["Decision", "Names", "is_inner", "moved_paths", "nowhere"]

Named = Rename | Move


@dataclasses.dataclass(frozen=True, slots=True)
class Decision:
    """What rules that rename or move say of one leaf of the source.

    Attributes:
        hits: All that speak of it.
        inner: The one for the half of its path in the model.
        outer: The one for the half before it.
    """

    hits: Sequence[Hit[Named]] = ()
    inner: Hit[Named] | None = None
    outer: Hit[Named] | None = None


_UNDECIDED = Decision()


@dataclasses.dataclass(frozen=True, slots=True)
class Names:
    """The rules that rename or move, by the paths of the source.

    A path of a leaf has two halves: those segments before the model's own, such as
    ``opt_state/0/mu``, and those in the model. One rule may speak of each, and then both hold.

    Attributes:
        renames: The rules that rename.
        moves: The rules that move.
        views: The rules that rename, by the paths of the view.
        goals: The rules that move, by the paths of the view.
    """

    renames: Scope[Named]
    moves: Scope[Named]
    views: Scope[Named]
    goals: Scope[Named]

    @classmethod
    def of(cls, rules: Sequence[Rule]) -> Names:
        """Those among ``rules``."""
        renames: list[tuple[LogicalPath, Named]] = []
        moves: list[tuple[LogicalPath, Named]] = []
        views: list[tuple[LogicalPath, Named]] = []
        goals: list[tuple[LogicalPath, Named]] = []
        for rule in rules:
            if isinstance(rule, Rename):
                renames.append((rule.source, rule))
                views.append((rule.view, rule))
            elif isinstance(rule, Move):
                moves.append((rule.source, rule))
                goals.append((rule.view, rule))
        return cls(Scope(renames), Scope(moves), Scope(views), Scope(goals))

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self.renames) or bool(self.moves)

    def called(self, path: LogicalPath) -> LogicalPath:
        """What a path of the source's model is in the view's words."""
        for hit in self.renames.prefixes(path):
            return (*hit.rule.view, *path[hit.end :])
        return path

    def uncalled(self, path: LogicalPath) -> Iterator[LogicalPath]:
        """What a path in the view's words may be in the source's."""
        for hit in self.views.prefixes(path):
            yield (*hit.rule.source, *path[hit.end :])

    def matched(self, rows: Sequence[Row]) -> Iterator[Named]:
        """The rules that lead to a path at or above that of any of the view's rows, some several times."""
        last: object = None
        for hits in self.views.along(rows).values():
            if hits is not last:  # leaves of one node share them
                yield from (hit.rule for hit in hits)
                last = hits
        for hits in self.goals.along(rows).values():
            yield from (hit.rule for hit in _rooted(hits))

    def decisions(self, rows: Sequence[Row]) -> dict[int, Decision]:
        """What is said of rows of the source, by number.

        Rows of which nothing is said are left out.
        """
        renames, moves = self.renames.along(rows), self.moves.along(rows)
        numbers = sorted(renames.keys() | moves.keys()) if moves else renames
        decided: dict[int, Decision] = {}
        last: tuple[object, object] = None, None
        decision = _UNDECIDED
        for number in numbers:
            hits = renames.get(number), moves.get(number)
            if hits[0] is not last[0] or hits[1] is not last[1]:  # of one node they are shared
                decision = _decided(rows[number], hits[0] or (), _rooted(hits[1] or ()))
                last = hits
            # A move that does not start at the root speaks of no state, and may be all there is.
            if decision.hits:
                decided[number] = decision
        return decided

    def decision(self, row: Row) -> Decision:
        """What is said of one row of the source."""
        return _decided(row, self.renames.over(row), _rooted(self.moves.over(row)))


def moved_paths(
    row: Row, decision: Decision | None, part: Part | None, alignment: Alignment
) -> LogicalPath:
    """The path of a row of the source in the view's words."""
    whole = row.path
    if decision is not None and decision.inner is not None:
        inner = decision.inner
        renamed = (*inner.rule.view, *row.path[inner.end :])
        # A rule that starts at the root says where the model stands, too.
        if inner.start == 0 and row.body:
            return renamed
        whole = (*row.root, *renamed)
    # After the half in the model: what is before that keeps its length, so the rule still fits it.
    if decision is not None and decision.outer is not None:
        outer = decision.outer
        return (*outer.rule.view, *whole[outer.end :])
    if part is None:
        return whole
    # By its own path it would meet a part of another type that stands there in the view.
    if part.path in alignment.apart[0]:
        return nowhere(row)
    return (*alignment.moved.get(part.path, part.path), *whole[len(part.path) :])


def is_inner(hit: Hit[Named], row: Row) -> bool:
    """Whether a rule says what a leaf is called in the model, not where the model stands."""
    return isinstance(hit.rule, Rename) and hit.end > (row.body or 0)


def _rooted(moves: Iterable[Hit[Named]]) -> list[Hit[Named]]:
    return [hit for hit in moves if hit.start == 0]


def _decided(row: Row, renames: Sequence[Hit[Named]], moves: Sequence[Hit[Named]]) -> Decision:
    """The longest path wins in each half of the row's path."""
    hits = [*renames, *moves]
    if not hits:
        return _UNDECIDED
    inner = next((hit for hit in renames if is_inner(hit, row)), None)
    if inner is not None and inner.start == 0 and row.body:
        return Decision(hits, inner)  # it says the whole path
    outer = [hit for hit in hits if not is_inner(hit, row)]
    # Renames and moves are each in their order, and not in one of both.
    return Decision(hits, inner, max(outer, key=lambda hit: (hit.rank, hit.end), default=None))


def nowhere(row: Row) -> LogicalPath:
    """A path that no row has."""
    # No attribute has an empty name.
    return ("", *row.path)
