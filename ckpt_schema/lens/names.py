"""What the leaves of the source are called in the view: by rules that rename or move, of which the longest path wins."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from ckpt_schema.lens.align import Alignment
from ckpt_schema.lens.rules import Move, Rename, Rule
from ckpt_schema.lens.scope import Hit, Scope
from ckpt_schema.paths import LogicalPath
from ckpt_schema.table import Part, Row

__all__ = ["Names", "nowhere"]

Named = Rename | Move


@dataclasses.dataclass(frozen=True, slots=True)
class Names:
    """The rules that rename or move, by the paths of the source.

    A path of a leaf has two halves: those segments before the model's own, such as ``opt_state/0/mu``, and those in the
    model. One rule may speak of each, and then both hold.

    Attributes:
        renames: The rules that rename.
        moves: The rules that move.
        views: The rules that rename, by the paths of the view.
    """

    renames: Scope[Named]
    moves: Scope[Named]
    views: Scope[Named]

    @classmethod
    def of(cls, rules: Sequence[Rule]) -> Names:
        """Those among ``rules``."""
        renames = [rule for rule in rules if isinstance(rule, Rename)]
        moves = ((rule.source, rule) for rule in rules if isinstance(rule, Move))
        by_source = Scope[Named]((rule.source, rule) for rule in renames)
        by_view = Scope[Named]((rule.view, rule) for rule in renames)
        return cls(by_source, Scope(moves), by_view)

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
        rules = [hit.rule for hit in self.views.prefixes(path)]
        for rule in rules:
            yield (*rule.source, *path[len(rule.view) :])

    def over(self, row: Row) -> list[Hit[Named]]:
        """All that speak of a row of the source."""
        return [*self.renames.over(row), *self._moving(row)]

    def is_inner(self, hit: Hit[Named], row: Row) -> bool:
        """Whether a rule says what a leaf is called in the model, not where the model stands."""
        return isinstance(hit.rule, Rename) and hit.end > (row.body or 0)

    def deciding(self, row: Row) -> tuple[Hit[Named] | None, Hit[Named] | None]:
        """The rule for the half of a row's path in the model, and the rule for the half before it."""
        hits = self.renames.over(row)
        inner = next((hit for hit in hits if self.is_inner(hit, row)), None)
        if inner is not None and inner.start == 0 and row.body:
            return inner, None  # it says the whole path
        outer = [hit for hit in hits if not self.is_inner(hit, row)] + self._moving(row)
        return inner, max(outer, key=lambda hit: hit.end, default=None)

    def placed(self, row: Row, part: Part | None, alignment: Alignment) -> LogicalPath:
        """The path of a row of the source in the view's words."""
        inner, outer = self.deciding(row) if self else (None, None)
        head, body = row.path[: row.body or 0], row.path[row.body or 0 :]
        if inner is not None and inner.start == 0 and head:
            return (*inner.rule.view, *row.path[inner.end :])
        if inner is not None:
            body = (*inner.rule.view, *row.path[inner.end :])
        whole = (*head, *body)
        if outer is not None:
            return (*outer.rule.view, *whole[outer.end :])
        if part is None:
            return whole
        if part.path in alignment.apart[0]:
            return nowhere(row)
        return (*alignment.moved.get(part.path, part.path), *whole[len(part.path) :])

    def _moving(self, row: Row) -> list[Hit[Named]]:
        return [hit for hit in self.moves.over(row) if hit.start == 0]


def nowhere(row: Row) -> LogicalPath:
    """A path that no row has."""
    return ("", *row.path)
